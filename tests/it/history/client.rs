//! Clients that send a seeded mix of requests to several instances and record requests and answers.
//!
//! A [`Fleet`] holds the instances; faults take some away and add others. A [`Load`] runs the
//! clients against it and collects their [`Operation`]s until it is stopped.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use fastrand::Rng;
use futures::future::join_all;
use rushgate::domain::wire::Id;
use serde_json::json;

use super::record::{Ask, Operation, Outcome};
use crate::cluster::{Instance, Settings};

/// How often a request without a clear answer is retried with the same key.
const REPEATS: usize = 12;
/// Maximum pause of a client between two requests, in milliseconds.
const THINK_MS: u64 = 12;

/// The instances that clients know. Faults remove and replace them.
pub struct Fleet {
    instances: RwLock<Vec<Arc<Instance>>>,
}

impl Fleet {
    pub fn new(instances: Vec<Instance>) -> Arc<Self> {
        Arc::new(Self { instances: RwLock::new(instances.into_iter().map(Arc::new).collect()) })
    }

    pub async fn start(settings: &[&Settings]) -> Arc<Self> {
        Self::new(join_all(settings.iter().map(|s| Instance::ready(s))).await)
    }

    pub fn get(&self, number: usize) -> Arc<Instance> {
        Arc::clone(&self.instances.read().unwrap_or_else(PoisonError::into_inner)[number])
    }

    pub fn any(&self, rng: &mut Rng) -> Arc<Instance> {
        let count = self.instances.read().unwrap_or_else(PoisonError::into_inner).len();
        self.get(rng.usize(..count))
    }

    /// Replaces an instance that is gone.
    pub fn replace(&self, number: usize, instance: Instance) {
        self.exchange(number, Arc::new(instance));
    }

    /// The same for an instance that is used elsewhere too; returns the one that it replaces.
    pub fn exchange(&self, number: usize, instance: Arc<Instance>) -> Arc<Instance> {
        let mut all = self.instances.write().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut all[number], instance)
    }

    pub fn all(&self) -> Vec<Arc<Instance>> {
        self.instances.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// The size of the shop and the mix of requests.
#[derive(Clone, Copy, Debug)]
pub struct Mix {
    pub clients: usize,
    pub users: usize,
    pub products: usize,
    pub templates: usize,
    /// Percentage of changing requests that have no key.
    pub keyless: u8,
    /// Whether cancellations have keys.
    pub keyed_cancels: bool,
    /// Whether there is anything that versions before 0.2 do not know: orders that are paid
    /// outside, rules of products, changed terms of coupons.
    pub latest_format: bool,
    /// How long orders are held. An hour outlasts every trial, so that a hold that was neither
    /// confirmed nor cancelled stays pending.
    pub hold_secs: u64,
}

impl Default for Mix {
    fn default() -> Self {
        Self {
            clients: 12,
            users: 24,
            products: 4,
            templates: 4,
            keyless: 10,
            keyed_cancels: true,
            latest_format: true,
            hold_secs: 3_600,
        }
    }
}

/// Running clients.
pub struct Load {
    shared: Arc<Shared>,
    clients: Vec<tokio::task::JoinHandle<()>>,
}

struct Shared {
    fleet: Arc<Fleet>,
    mix: Mix,
    started: Instant,
    stop: AtomicBool,
    next: AtomicU64,
    recorded: Mutex<Vec<Operation>>,
    /// Coupons (with their owners) and orders that clients know from answers.
    coupons: Mutex<Vec<(String, Id)>>,
    orders: Mutex<Vec<Id>>,
    /// Those that were pending.
    held: Mutex<Vec<Id>>,
}

impl Load {
    /// Fills an empty shop, then starts the clients. With the same seed each client makes the same
    /// decisions; how the clients interleave depends on the machine.
    pub async fn start(fleet: &Arc<Fleet>, seed: u64, mix: Mix) -> Self {
        let shared = Arc::new(Shared {
            fleet: Arc::clone(fleet),
            mix,
            started: Instant::now(),
            stop: AtomicBool::new(false),
            next: AtomicU64::new(0),
            recorded: Mutex::default(),
            coupons: Mutex::default(),
            orders: Mutex::default(),
            held: Mutex::default(),
        });
        shared.fill(&mut Rng::with_seed(seed)).await;
        let mut load = Self { shared, clients: vec![] };
        load.go(seed);
        load
    }

    fn go(&mut self, seed: u64) {
        for number in 0..self.shared.mix.clients {
            let shared = Arc::clone(&self.shared);
            let mut rng = Rng::with_seed(seed.wrapping_mul(1_000_003).wrapping_add(number as u64));
            self.clients.push(tokio::spawn(async move {
                while !shared.stop.load(Ordering::Relaxed) {
                    shared.one(&mut rng).await;
                    tokio::time::sleep(Duration::from_millis(rng.u64(..THINK_MS))).await;
                }
            }));
        }
    }

    /// Number of changes that have succeeded so far.
    pub fn successes(&self) -> usize {
        lock(&self.shared.recorded).iter().filter(|op| op.succeeded() && !op.ask.is_read()).count()
    }

    /// Microseconds since the start, the time base of operations.
    pub fn now_us(&self) -> u64 {
        self.shared.now_us()
    }

    /// Waits until `more` further changes have succeeded; panics when that takes longer than
    /// `limit`.
    pub async fn until_more(&self, more: usize, limit: Duration) {
        let (from, since_us, deadline) = (self.successes(), self.now_us(), Instant::now() + limit);
        while self.successes() < from + more {
            assert!(
                Instant::now() < deadline,
                "{} more successes within {limit:?}, not {more}; other answers: {:?}",
                self.successes() - from,
                self.troubles(since_us)
            );
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Number of answers since `since_us` that are neither a success nor a refusal by the shop's
    /// rules, per code. Missing answers are counted too.
    pub fn troubles(&self, since_us: u64) -> std::collections::BTreeMap<String, usize> {
        let mut found = std::collections::BTreeMap::new();
        for op in lock(&self.shared.recorded).iter().filter(|op| op.answered_us >= since_us) {
            let name = match &op.outcome {
                Outcome::Answered(answer) if answer.status >= 500 => answer.code().to_owned(),
                Outcome::Answered(_) => continue,
                Outcome::NotSent => "not-sent".to_owned(),
                Outcome::Silence(_) => "silence".to_owned(),
            };
            *found.entry(name).or_default() += 1;
        }
        found
    }

    /// Operations that completed at or after `since_us`.
    pub fn recorded_since(&self, since_us: u64) -> Vec<Operation> {
        lock(&self.shared.recorded)
            .iter()
            .filter(|op| op.answered_us >= since_us)
            .cloned()
            .collect()
    }

    /// Median and maximum response time of operations that completed at or after `since_us`.
    pub fn latency(&self, since_us: u64) -> (Duration, Duration) {
        let recorded = lock(&self.shared.recorded);
        let since = recorded.iter().filter(|op| op.answered_us >= since_us);
        let mut took: Vec<u64> = since.map(|op| op.answered_us - op.asked_us).collect();
        took.sort_unstable();
        let at = |place: usize| Duration::from_micros(took.get(place).copied().unwrap_or(0));
        (at(took.len() / 2), at(took.len().saturating_sub(1)))
    }

    /// Sends one request in addition to the clients' requests and records it like theirs.
    pub async fn send(&self, instance: &Instance, ask: Ask, key: Option<String>) -> Outcome {
        self.shared.send(instance, ask, key).await
    }

    /// Stops each client after its request in flight. Returns everything that was recorded.
    pub async fn stop(self) -> Vec<Operation> {
        self.shared.stop.store(true, Ordering::Relaxed);
        for client in join_all(self.clients).await {
            client.unwrap();
        }
        std::mem::take(&mut lock(&self.shared.recorded))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn user(n: usize) -> String {
    format!("user-{n}")
}
fn product(n: usize) -> String {
    format!("product-{n}")
}
fn template(n: usize) -> String {
    format!("template-{n}")
}

impl Shared {
    fn now_us(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_micros()).unwrap()
    }

    fn unique(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    /// Creates the products and templates, and charges every wallet.
    async fn fill(&self, rng: &mut Rng) {
        let instance = self.fleet.get(0);
        let mut asks = Vec::new();
        for n in 0..self.mix.products {
            let name = format!("first {n}");
            let (price, stock) = (100 * rng.u64(1..30), rng.u64(5..60));
            let product = product(n);
            asks.push(Ask::PutProduct {
                product,
                name,
                price,
                status: "on_sale",
                stock: Some(stock),
            });
        }
        for n in 0..self.mix.templates {
            let limit = match n {
                0 => self.mix.users as u64 * 2,
                _ => rng.u64(3..self.mix.users as u64),
            };
            asks.push(self.put_template(n, limit, rng));
        }
        for n in 0..self.mix.users {
            asks.push(Ask::Charge { user: user(n), amount: rng.u64(1..200) * 1_000 });
        }
        for ask in asks {
            let key = self.keyed(&ask).then(|| self.key());
            let outcome = self.send(&instance, ask, key).await;
            // With `RUSHGATE_ACK=truth`, a busy machine may make PostgreSQL late: then it is a 202.
            assert!(
                matches!(&outcome, Outcome::Answered(a) if matches!(a.status, 201 | 202)),
                "{outcome:?}"
            );
        }
    }

    fn keyed(&self, ask: &Ask) -> bool {
        if matches!(ask, Ask::Cancel { .. }) && !self.mix.keyed_cancels {
            return false;
        }
        let put =
            matches!(ask, Ask::PutProduct { .. } | Ask::PutRules { .. } | Ask::PutTemplate { .. });
        !(ask.is_read() || put)
    }

    fn key(&self) -> String {
        format!("key-{}", self.unique())
    }

    fn put_template(&self, n: usize, limit: u64, rng: &mut Rng) -> Ask {
        let (value, max) = (rng.u64(1..=100), rng.u64(1..5_000));
        let mut min_subtotal = 100 * rng.u64(..10);
        let mut discount = match n % 2 {
            0 => json!({ "type": "amount", "value": 40 * value }),
            _ => json!({ "type": "percent", "value": value, "max": max }),
        };
        if !self.mix.latest_format {
            (discount, min_subtotal) = (json!({ "type": "amount", "value": 100 * (n + 1) }), 0);
        }
        let now = jiff::Timestamp::now();
        let hours = |n: i64| (now + jiff::SignedDuration::from_hours(n)).to_string();
        let body = json!({ "name": format!("put {}", self.unique()), "discount": discount, "max_issued": limit,
            "issue_from": hours(-1), "issue_until": hours(24), "min_subtotal": min_subtotal });
        Ask::PutTemplate { template: template(n), body }
    }

    /// Sends one request, and retries it while its outcome is unclear. Some clear answers are
    /// repeated too.
    async fn one(&self, rng: &mut Rng) {
        let ask = self.choose(rng);
        let keyed = self.keyed(&ask) && rng.u8(..100) >= self.mix.keyless;
        let key = keyed.then(|| self.key());
        for _ in 0..=REPEATS {
            let instance = self.fleet.any(rng);
            let outcome = self.send(&instance, ask.clone(), key.clone()).await;
            self.remember(&ask, &outcome);
            let again = match &outcome {
                Outcome::Answered(answer) if answer.status < 500 => rng.u8(..100) < 8,
                Outcome::Answered(answer) => {
                    // a client backs off briefly after a `Retry-After`
                    let pause = if answer.retry_after { rng.u64(20..80) } else { 5 };
                    tokio::time::sleep(Duration::from_millis(pause)).await;
                    true
                }
                Outcome::NotSent | Outcome::Silence(_) => {
                    tokio::time::sleep(Duration::from_millis(rng.u64(5..40))).await;
                    true
                }
            };
            // Some clients give up before the outcome is clear.
            if key.is_none() || !again || rng.u8(..100) < 10 || self.stop.load(Ordering::Relaxed) {
                break;
            }
        }
    }

    fn choose(&self, rng: &mut Rng) -> Ask {
        let user = user(rng.usize(..self.mix.users));
        let n_product = rng.usize(..self.mix.products);
        match rng.u8(..100) {
            0..16 => Ask::Issue { template: template(rng.usize(..self.mix.templates)), user },
            16..28 => Ask::Charge { user, amount: 100 * rng.u64(1..600) },
            28..53 => self.order(user, rng),
            53..57 => match self.known_held(rng) {
                Some(order) => Ask::Confirm { order, reference: format!("paid {}", self.unique()) },
                None => Ask::Wallet(user),
            },
            57..64 => {
                self.known_order(rng).map_or(Ask::Wallet(user), |order| Ask::Cancel { order })
            }
            64..70 => Ask::Adjust {
                product: product(n_product),
                delta: rng.i64(-6..25),
                reason: format!("adjust {}", self.unique()),
            },
            70..72 if self.mix.latest_format => self.put_rules(n_product, rng),
            70..73 => Ask::PutProduct {
                product: product(n_product),
                name: format!("put {}", self.unique()),
                price: 100 * rng.u64(1..30),
                status: if rng.u8(..5) == 0 { "suspended" } else { "on_sale" },
                stock: None,
            },
            73..75 => {
                let n = rng.usize(..self.mix.templates);
                self.put_template(n, rng.u64(3..2 * self.mix.users as u64), rng)
            }
            75..82 => Ask::Wallet(user),
            82..87 => Ask::Product(product(n_product)),
            87..90 => Ask::Template(template(rng.usize(..self.mix.templates))),
            90..94 => Ask::Coupons(user),
            94..96 => Ask::Orders(user),
            96..98 => Ask::Entries(user),
            _ => self.known_order(rng).map_or(Ask::Orders(user), Ask::GetOrder),
        }
    }

    /// A product with a limit per user, or that is not sold yet or any more.
    fn put_rules(&self, n: usize, rng: &mut Rng) -> Ask {
        let now = jiff::Timestamp::now();
        let hours = |n: i64| (now + jiff::SignedDuration::from_hours(n)).to_string();
        let mut body = json!({ "name": format!("put {}", self.unique()),
            "price": 100 * rng.u64(1..30), "status": "on_sale" });
        if rng.u8(..4) > 0 {
            body["per_user_limit"] = json!(rng.u64(1..12));
        }
        if rng.bool() {
            body["sale_from"] = json!(hours(if rng.u8(..5) == 0 { 5 } else { -1 }));
        }
        if rng.bool() {
            body["sale_until"] = json!(hours(if rng.u8(..5) == 0 { -1 } else { 6 }));
            body["sale_from"] = json!(hours(-3));
        }
        if rng.bool() {
            body["attributes"] =
                json!({ "image_url": format!("https://a.example/{}", rng.u8(..)) });
        }
        Ask::PutRules { product: product(n), body }
    }

    /// An order that was pending when its client was told of it.
    fn known_held(&self, rng: &mut Rng) -> Option<Id> {
        let held = lock(&self.held);
        let from = held.len().saturating_sub(if rng.u8(..8) > 0 { 12 } else { 200 });
        rng.choice(held[from..].iter().copied())
    }

    fn known_order(&self, rng: &mut Rng) -> Option<Id> {
        let orders = lock(&self.orders);
        // Prefers recent orders: other clients may be about to cancel the same ones.
        let from = orders.len().saturating_sub(if rng.bool() { 8 } else { 200 });
        rng.choice(orders[from..].iter().copied())
    }

    fn order(&self, user: String, rng: &mut Rng) -> Ask {
        let mut products: Vec<usize> = (0..self.mix.products).collect();
        rng.shuffle(&mut products);
        let most = self.mix.products.min(3) + 1;
        let lines =
            products[..rng.usize(1..most)].iter().map(|n| (product(*n), rng.u64(1..4))).collect();
        let (mut user, mut coupon) = (user, None);
        if rng.u8(..10) < 4 {
            let coupons = lock(&self.coupons);
            let from = coupons.len().saturating_sub(30);
            if let Some((owner, id)) = rng.choice(coupons[from..].iter()) {
                coupon = Some(*id);
                // Sometimes a user tries another user's coupon.
                if rng.u8(..10) > 0 {
                    user.clone_from(owner);
                }
            }
        }
        if self.mix.latest_format && rng.u8(..4) == 0 {
            let wallet_amount = if rng.bool() { 0 } else { 100 * rng.u64(1..30) };
            let reference = rng.bool().then(|| format!("order {}", self.unique()));
            let hold_secs = self.mix.hold_secs;
            return Ask::Hold { user, lines, coupon, wallet_amount, hold_secs, reference };
        }
        let expected_total = (rng.u8(..20) == 0).then(|| 100 * rng.u64(1..50));
        Ask::Order { user, lines, coupon, expected_total }
    }

    async fn send(&self, instance: &Instance, ask: Ask, key: Option<String>) -> Outcome {
        let request = ask.request(key.as_deref());
        let wall = || jiff::Timestamp::now().as_millisecond();
        let earlier = !self.mix.latest_format;
        let (asked_us, asked_ms) = (self.now_us(), wall());
        let outcome = match instance.try_send(&request).await {
            Ok(answer) => Outcome::Answered(answer),
            Err(error) if error.is_connect() => Outcome::NotSent,
            Err(error) => Outcome::Silence(format!("{error:?}")),
        };
        let (answered_us, wall_ms) = (self.now_us(), (asked_ms, wall()));
        let operation = Operation {
            ask,
            key,
            asked_us,
            answered_us,
            wall_ms,
            earlier,
            outcome: outcome.clone(),
        };
        lock(&self.recorded).push(operation);
        outcome
    }

    /// Makes new ids known to the other clients. Requests sent by a fault itself ([`Load::send`])
    /// are not made known, so that clients do not interfere with them.
    fn remember(&self, ask: &Ask, outcome: &Outcome) {
        let Outcome::Answered(answer) = outcome else { return };
        let id = |name: &str| answer.body[name].as_str().and_then(|id| id.parse().ok().map(Id));
        match ask {
            Ask::Issue { user, .. } => {
                lock(&self.coupons).extend(id("coupon_id").map(|id| (user.clone(), id)));
            }
            Ask::Order { .. } | Ask::Hold { .. } => {
                lock(&self.orders).extend(id("order_id"));
                if matches!(ask, Ask::Hold { .. }) {
                    lock(&self.held).extend(id("order_id"));
                }
            }
            _ => {}
        }
    }
}
