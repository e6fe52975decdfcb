//! Ended holds: how soon they are given back, alone and 10,000 in the same second, and what requests
//! feel of it that are sent meanwhile (open loop).

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{JoinHandle, sleep, spawn};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rushgate_loadtest::holds::{Hold, moment_ms, seen_back};
use rushgate_loadtest::http::{self, Drive, Pace, request};
use rushgate_loadtest::shop::{Instance, token};
use rushgate_loadtest::{Outcome, say};

use super::latency::p99;
use super::{Figure, Measured, Target};
use crate::harness::{Harness, SETTLE_LIMIT};
use crate::rows::{POOL, Row};

/// Holds that end in the same second, each of one piece.
const MANY: u64 = 10_000;
/// Holds that end one after the other, before those.
const SINGLE: u64 = 50;
const SINGLE_PER_S: f64 = 10.0;
/// Time to place all orders. Those of the same second are placed over this time.
const PLACING_S: u64 = 20;
const SHORTEST_HOLD_S: u64 = 60;
/// Time between the end of the last single hold and those of the same second.
const BETWEEN: Duration = Duration::from_secs(3);
const OTHERS_PER_S: f64 = 200.0;
const CONNECTIONS: usize = 64;
/// The other requests begin so long before the first hold ends and end so long after the last.
const BEFORE: Duration = Duration::from_secs(3);
const AFTER: Duration = Duration::from_secs(10);
/// Interval at which the stock is read.
const LOOK: Duration = Duration::from_millis(10);
/// Each round takes more than a minute.
const ROUNDS: usize = 3;

/// The results of a round, in seconds, except for the latencies in ms.
struct Round {
    all_back: f64,
    others_p99: f64,
    others_p99_before: f64,
    seen: f64,
    /// The longest time between the end and the return of one of the many.
    longest: f64,
}

pub async fn measure(harness: &mut Harness) -> Outcome<Vec<Measured>> {
    harness.prepare_shop(&[Row::Order1, Row::Charge])?;
    let mut rounds = vec![];
    for number in 0..harness.rounds.min(ROUNDS) {
        harness.shop.settle(SETTLE_LIMIT).await?;
        let round = round(harness.instance()?, number)?;
        say(format_args!(
            "holds: all back after {:.2} s (each within {:.2} s of its end), p99 of others {:.1} ms (before: \
             {:.1} ms), a single one seen within {:.2} s",
            round.all_back, round.longest, round.others_p99, round.others_p99_before, round.seen
        ));
        rounds.push(round);
    }
    let of = |what: fn(&Round) -> f64| rounds.iter().map(what).collect::<Vec<_>>();
    let each = of(|round| round.longest).into_iter().fold(0.0, f64::max);
    let before = of(|round| round.others_p99_before).into_iter().fold(0.0, f64::max);
    let (most, limit) = (Target::AtMost, format!("each within {each:.2} s of its end"));
    Ok(vec![
        Measured::new(Figure::HoldsEnd, of(|it| it.all_back), "s", most(3.0)).note(limit),
        Measured::new(Figure::HoldsOthers, of(|it| it.others_p99), "ms", most(50.0))
            .note(format!("before: up to {before:.1} ms")),
        Measured::new(Figure::HoldSeen, of(|it| it.seen), "s", most(1.0))
            .note(format!("while {OTHERS_PER_S:.0} requests/s go on")),
    ])
}

fn round(instance: &Instance, number: usize) -> Outcome<Round> {
    let (single, many) = (format!("single-{number}"), format!("many-{number}"));
    instance.put_product(&single, 1_000, SINGLE)?;
    instance.put_product(&many, 1_000, MANY)?;
    let of_many = place_many(instance, &many)?;
    let first_of_many = of_many.iter().map(|it| it.ends_ms).min().unwrap_or_default();
    let of_single = place_single(instance, &single, first_of_many)?;
    let first = of_single.iter().map(|it| it.ends_ms).min().unwrap_or_default();
    let last = of_many.iter().map(|it| it.ends_ms).max().unwrap_or_default();
    sleep(until(first).saturating_sub(BEFORE));

    let watchers = [single, many].map(|product| Watcher::start(instance.api, product));
    let begin_ms = now_ms();
    let latencies = others(instance.api, until(last) + AFTER)?;
    let [single, many] = watchers.map(Watcher::finish);
    let seen = delays(&of_single, &single?)?;
    let many = delays(&of_many, &many?)?;
    let mut ends: Vec<i64> = of_many.iter().map(|it| it.ends_ms).collect();
    ends.sort_unstable();
    let back = ends.iter().zip(&many).map(|(end, delay)| end + delay).max().unwrap_or_default();
    // From the first of these ends until the last one's pieces were seen, and a little longer, for
    // what PostgreSQL and RabbitMQ have to do then.
    let while_given_back = first_of_many..=back + 1_000;
    let (during, rest): (Vec<_>, Vec<_>) = latencies
        .into_iter()
        .map(|(at, ms)| (begin_ms + at, ms))
        .partition(|(at, _)| while_given_back.contains(at));
    let before = rest.into_iter().filter(|(at, _)| *at < first_of_many);
    let seconds = |ms: i64| ms as f64 / 1e3;
    Ok(Round {
        all_back: seconds(back - first_of_many),
        longest: seconds(many.iter().copied().max().unwrap_or_default()),
        others_p99: p99(during.into_iter().map(|(_, ms)| ms).collect()),
        others_p99_before: p99(before.map(|(_, ms)| ms).collect()),
        seen: seconds(seen.iter().copied().max().unwrap_or_default()),
    })
}

/// Orders whose holds end in the same second: the earlier one is placed, the longer it is held.
fn place_many(instance: &Instance, product: &str) -> Outcome<Vec<Hold>> {
    let begin = Instant::now();
    let longest = SHORTEST_HOLD_S + PLACING_S;
    let hold_secs = || longest.saturating_sub(begin.elapsed().as_secs()).max(SHORTEST_HOLD_S);
    let mut holds = vec![];
    instance.fill(
        MANY,
        |_| "/v1/orders".into(),
        |index| order(product, index, hold_secs()),
        |_, answer| holds.extend(hold(answer)),
    )?;
    let ends = || holds.iter().map(|hold: &Hold| hold.ends_ms);
    let spread = ends().max().unwrap_or_default() - ends().min().unwrap_or_default();
    // Requests wait a little before they are decided.
    match (holds.len() as u64 == MANY, spread) {
        (true, ..1_500) => Ok(holds),
        (_, spread) => Err(format!("{} holds that end within {spread} ms", holds.len()).into()),
    }
}

/// Orders whose holds end one by one, before those that end in the same second.
fn place_single(instance: &Instance, product: &str, before_ms: i64) -> Outcome<Vec<Hold>> {
    let placing = Duration::from_secs_f64(SINGLE as f64 / SINGLE_PER_S);
    let ends = until(before_ms).saturating_sub(BETWEEN + placing);
    let shortest = Duration::from_secs(SHORTEST_HOLD_S);
    sleep(ends.checked_sub(shortest).ok_or("placing 10,000 orders took too long")?);
    let (token, mut holds) = (token("bench-backend", "service")?, vec![]);
    let pace = Pace::PerSecond(SINGLE_PER_S);
    let drive = Drive { address: instance.api, connections: 8, pace, count: SINGLE };
    let write = |index: u64, out: &mut Vec<u8>| {
        let body = order(product, index, SHORTEST_HOLD_S);
        out.extend(request("POST", "/v1/orders", Some(&token), "", &body).bytes());
    };
    drive.run(write, |answer| {
        holds.extend(hold(answer.body));
        Ok(())
    })?;
    match holds.len() as u64 {
        SINGLE => Ok(holds),
        count => Err(format!("only {count} of {SINGLE} orders were held").into()),
    }
}

/// An order of one piece, by a user who has no other order of this product.
fn order(product: &str, index: u64, hold_secs: u64) -> String {
    format!(
        "{{\"user_id\":\"{product}-{index}\",\"payment\":\"external\",\"hold_secs\":{hold_secs},\
         \"items\":[{{\"product_id\":\"{product}\",\"quantity\":1}}]}}"
    )
}

fn hold(answer: &[u8]) -> Option<Hold> {
    let order: serde_json::Value = serde_json::from_slice(answer).ok()?;
    Some(Hold { ends_ms: moment_ms(&order, "hold_expires_at")?, pieces: 1 })
}

fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

fn until(moment_ms: i64) -> Duration {
    Duration::from_millis(u64::try_from(moment_ms - now_ms()).unwrap_or_default())
}

/// Other requests for so long, changes and reads in turn: when each was due, in ms from now on, and
/// its latency in ms. A request that failed has an infinite latency.
fn others(address: SocketAddr, length: Duration) -> Outcome<Vec<(i64, f64)>> {
    let token = token("bench-backend", "service")?;
    let user = |index: u64| index * 7_919 % POOL;
    let text = |index: u64| match index % 4 {
        0 => {
            let user = user(index);
            let body = format!(
                "{{\"user_id\":\"u{user:010}\",\"items\":[{{\"product_id\":\"p01\",\"quantity\":1}}]}}"
            );
            request("POST", "/v1/orders", Some(&token), "", &body)
        }
        1 => {
            let path = format!("/v1/users/c{:010}/wallet/charges", user(index));
            request("POST", &path, Some(&token), "", "{\"amount\":1}")
        }
        2 => request("GET", "/v1/products/p01", None, "", ""),
        _ => {
            let path = format!("/v1/users/u{:010}/wallet", user(index));
            request("GET", &path, Some(&token), "", "")
        }
    };
    let count = (length.as_secs_f64() * OTHERS_PER_S) as u64;
    let pace = Pace::PerSecond(OTHERS_PER_S);
    let drive = Drive { address, connections: CONNECTIONS, pace, count };
    let mut latencies = vec![];
    let write = |index: u64, out: &mut Vec<u8>| out.extend(text(index).bytes());
    drive.run(write, |answer| {
        let due_ms = (answer.index as f64 / OTHERS_PER_S * 1e3) as i64;
        let good = matches!(answer.status, 200 | 201);
        let latency = if good { answer.latency.as_secs_f64() * 1e3 } else { f64::INFINITY };
        latencies.push((due_ms, latency));
        Ok(())
    })?;
    Ok(latencies)
}

/// How long after its end each hold was seen back.
fn delays(holds: &[Hold], samples: &[(i64, u64)]) -> Outcome<Vec<i64>> {
    let seen = seen_back(holds, samples);
    let never = seen.iter().filter(|delay| delay.is_none()).count();
    match (never, seen.len() == holds.len()) {
        (0, true) => Ok(seen.into_iter().flatten().collect()),
        _ => Err(format!("{never} of {} holds were not given back", holds.len()).into()),
    }
}

/// Reads the stock of a product until it is stopped.
struct Watcher {
    stop: Arc<AtomicBool>,
    looking: JoinHandle<Result<Vec<(i64, u64)>, String>>,
}

impl Watcher {
    fn start(address: SocketAddr, product: String) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&stop);
        let looking = spawn(move || look(address, &product, &told).map_err(|e| e.to_string()));
        Self { stop, looking }
    }

    fn finish(self) -> Outcome<Vec<(i64, u64)>> {
        self.stop.store(true, Ordering::Relaxed);
        Ok(self.looking.join().map_err(|_| "the watcher panicked")??)
    }
}

fn look(address: SocketAddr, product: &str, stop: &AtomicBool) -> Outcome<Vec<(i64, u64)>> {
    let text = request("GET", &format!("/v1/products/{product}"), None, "", "");
    let mut samples = vec![];
    while !stop.load(Ordering::Relaxed) {
        let (status, body) = http::ask(address, &text)?;
        if status == 200 {
            let product: serde_json::Value = serde_json::from_str(&body)?;
            let stock = product["stock"].as_u64().ok_or("a product without a stock")?;
            // The time at which the answer was here, not the earlier one at which it held.
            samples.push((now_ms(), stock));
        }
        sleep(LOOK);
    }
    Ok(samples)
}
