//! Instances that die, stall, or lose their connection to Redis.

use std::time::Duration;

use futures::future::{join, join_all};
use nix::sys::signal::Signal;
use rushgate::domain::wire::Id;
use rushgate::redis::keys::{DAY_MS, Keys};
use serde_json::json;

use super::proxy::Behind;
use super::{Outcome, Setup, Trial};
use crate::cluster::{Cluster, HttpAnswer, Instance, eventually};
use crate::history::record::{self, Ask};

/// kill -9 an instance at a random moment; that includes the time between a script call and the
/// answers to its requests.
pub async fn instance_killed(seed: u64) -> Outcome {
    let mut trial = Trial::begin(seed, Setup::default()).await;
    for _ in 0..3 {
        trial.a_while().await;
        let victim = trial.somebody();
        trial.fleet.get(victim).signal(Signal::SIGKILL);
        trial.start_again(victim).await;
    }
    // Clients retry with the same key. The checker verifies that they get the first answer and that
    // there is one effect.
    let (outcome, _) = trial.finish().await;
    assert_eq!(outcome.epochs, 1, "nothing was rebuilt");
    outcome
}

/// kill -9 instances after their scripts have run but before the replies from Redis arrive; the
/// proxy holds the replies back.
pub async fn instance_killed_unheard(seed: u64) -> Outcome {
    let (mut trial, behind) = Behind::begin(seed, Setup::default(), &[]).await;
    for round in 0..2 {
        trial.a_while().await;
        // No other client uses this instance, so each of its queues sends every request at once.
        let victim = Instance::ready(&behind.settings).await;
        let wanted = one_of_each(&trial, round).await;
        behind.proxy.hold_answers();
        let kill = async {
            decided(&trial.cluster, &wanted).await;
            victim.signal(Signal::SIGKILL);
            trial.fleet.get(1).signal(Signal::SIGKILL);
        };
        let (outcomes, ()) = join(all(&trial, &victim, &wanted), kill).await;
        assert!(outcomes.iter().all(|outcome| !is_clear(outcome)), "nobody was told: {outcomes:?}");
        behind.proxy.cut();
        repeated(&trial, &trial.fleet.get(0), &wanted).await;
        trial.fleet.replace(1, Instance::ready(&behind.settings).await);
    }
    let (outcome, _) = trial.finish().await;
    assert_eq!(outcome.epochs, 1, "nothing was rebuilt");
    outcome
}

/// Connections to Redis are cut, or replies arrive too late. Scripts may have run or not.
pub async fn answers_lost(seed: u64) -> Outcome {
    let (mut trial, behind) = Behind::begin(seed, Setup::default(), &[]).await;
    let alone = Instance::ready(&behind.settings).await;
    let mut ways = [Loss::Answers, Loss::Calls, Loss::Time];
    trial.rng.shuffle(&mut ways);
    for (round, way) in ways.into_iter().enumerate() {
        trial.a_while().await;
        let wanted = one_of_each(&trial, round).await;
        let more = Duration::from_millis(trial.rng.u64(..100));
        if way == Loss::Calls {
            behind.proxy.hold_calls()
        } else {
            behind.proxy.hold_answers()
        }
        let lose = async {
            match way {
                Loss::Calls => {
                    behind.proxy.until_held().await;
                    tokio::time::sleep(more).await; // what is sent meanwhile is lost too
                    behind.proxy.cut();
                }
                Loss::Answers => {
                    decided(&trial.cluster, &wanted).await;
                    behind.proxy.cut();
                }
                Loss::Time => {
                    decided(&trial.cluster, &wanted).await;
                    tokio::time::sleep(PAST_COMMAND_TIMEOUT).await;
                    behind.proxy.release();
                }
            }
        };
        let (outcomes, ()) = join(all(&trial, &alone, &wanted), lose).await;
        let unknown = outcomes.iter().filter(|outcome| code(outcome) == "outcome-unknown").count();
        alone.until_ready().await;
        if way == Loss::Calls {
            assert!(unknown > 0, "{outcomes:?}");
            all_done(&trial, &alone, &wanted).await;
        } else {
            assert_eq!(unknown, wanted.len(), "{way:?}: {outcomes:?}");
            repeated(&trial, &alone, &wanted).await;
        }
        trial.serves_within(SERVES_AGAIN).await;
    }
    let (outcome, _) = trial.finish().await;
    assert_eq!(outcome.epochs, 1, "nothing was rebuilt");
    outcome
}

/// What is lost between an instance and Redis.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Loss {
    Answers,
    Calls,
    /// Replies arrive after the command timeout.
    Time,
}

/// A little longer than [`rushgate::config::bounds::REDIS_COMMAND_TIMEOUT`], but short enough that
/// the connection is kept. Late replies must not be taken for those of later calls.
const PAST_COMMAND_TIMEOUT: Duration = Duration::from_millis(2_750);
const SERVES_AGAIN: Duration = Duration::from_secs(10);

/// A request that does not touch anything that the clients use.
struct Wanted {
    ask: Ask,
    key: String,
}

/// One request of each kind that takes an idempotency key. Each can succeed.
async fn one_of_each(trial: &Trial, round: usize) -> Vec<Wanted> {
    let named = |what: &str| format!("{what}-alone-{round}");
    let (user, product, template) = (named("user"), named("product"), named("template"));
    let instance = trial.fleet.get(0);
    let now = jiff::Timestamp::now();
    let hours = |n: i64| (now + jiff::SignedDuration::from_hours(n)).to_string();
    let body = json!({ "name": named("put"), "discount": { "type": "amount", "value": 100 }, "max_issued": 5,
        "issue_from": hours(-2), "issue_until": hours(24) });
    let (name, id) = (named("first"), || product.clone());
    let put = Ask::PutProduct { product: id(), name, price: 100, status: "on_sale", stock: None };
    done(trial, &instance, put, None).await;
    let stock = Ask::Adjust { product: id(), delta: 9, reason: named("restock") };
    done(trial, &instance, stock, Some(named("first-stock"))).await;
    done(trial, &instance, Ask::PutTemplate { template: template.clone(), body }, None).await;
    let charge = Ask::Charge { user: user.clone(), amount: 10_000 };
    done(trial, &instance, charge.clone(), Some(named("first-charge"))).await;
    let lines = vec![(id(), 2)];
    let order = Ask::Order { user: user.clone(), lines, coupon: None, expected_total: None };
    let placed = done(trial, &instance, order.clone(), Some(named("first-order"))).await;
    let placed = placed.text("order_id").parse().map(Id).unwrap();
    let adjust = Ask::Adjust { product, delta: 3, reason: named("adjust") };
    let asks =
        [charge, Ask::Issue { template, user }, order, Ask::Cancel { order: placed }, adjust];
    let wanted = asks.into_iter().enumerate();
    wanted.map(|(n, ask)| Wanted { ask, key: format!("alone-{round}-{n}") }).collect()
}

/// Sends a request that must succeed, and repeats it while the answer is unclear.
pub async fn done(trial: &Trial, instance: &Instance, ask: Ask, key: Option<String>) -> HttpAnswer {
    let answer = eventually("a clear answer", || async {
        match trial.load.send(instance, ask.clone(), key.clone()).await {
            record::Outcome::Answered(answer) if answer.status != 503 => Some(answer),
            _ => None,
        }
    })
    .await;
    assert!((200..300).contains(&answer.status), "{ask:?}: {answer:?}");
    answer
}

async fn all(trial: &Trial, instance: &Instance, wanted: &[Wanted]) -> Vec<record::Outcome> {
    join_all(wanted.iter().map(|w| trial.load.send(instance, w.ask.clone(), Some(w.key.clone()))))
        .await
}

async fn all_done(trial: &Trial, instance: &Instance, wanted: &[Wanted]) -> Vec<HttpAnswer> {
    join_all(wanted.iter().map(|w| done(trial, instance, w.ask.clone(), Some(w.key.clone())))).await
}

/// Repeats the requests. Each must return a replay. The checker verifies that it equals the first
/// answer and that there was one effect.
async fn repeated(trial: &Trial, instance: &Instance, wanted: &[Wanted]) {
    let answers = all_done(trial, instance, wanted).await;
    assert!(answers.iter().all(|answer| answer.replayed), "{answers:#?}");
}

/// Waits until the gate has decided all of these requests.
async fn decided(cluster: &Cluster, wanted: &[Wanted]) {
    let keys: Vec<&str> = wanted.iter().map(|w| w.key.as_str()).collect();
    eventually("scripts have run", || async {
        let known = records(cluster).await;
        keys.iter()
            .all(|key| known.iter().any(|scope| scope.ends_with(&format!(" {key}"))))
            .then_some(())
    })
    .await;
}

/// The scopes of the gate's idempotency records (user and key).
async fn records(cluster: &Cluster) -> Vec<String> {
    use fred::interfaces::HashesInterface;
    let meta = cluster.meta().await;
    let (keys, today) = (Keys::new(0, meta.epoch), meta.clock_ms.div_euclid(DAY_MS));
    let mut scopes = Vec::new();
    for day in [today - 1, today] {
        scopes.extend(cluster.raw.hkeys::<Vec<String>, _>(keys.idempotency(day)).await.unwrap());
    }
    scopes
}

pub fn code(outcome: &record::Outcome) -> &str {
    match outcome {
        record::Outcome::Answered(answer) => answer.code(),
        _ => "",
    }
}

/// Whether the client knows the request's outcome.
fn is_clear(outcome: &record::Outcome) -> bool {
    matches!(outcome, record::Outcome::Answered(answer) if answer.code() != "outcome-unknown")
}

/// Request deadline at the stalled instance.
const DEADLINE_MS: u64 = 800;
/// Requests that wait there when it stalls.
const BURST: usize = 60;
/// Maximum number of requests per script call there.
const BATCH: usize = 4;

/// SIGSTOP an instance for longer than its request deadline, with requests in flight, queued and
/// arriving.
pub async fn instance_stalled(seed: u64) -> Outcome {
    let deadline = DEADLINE_MS.to_string();
    let changes = [("RUSHGATE_REQUEST_TIMEOUT_MS", deadline.as_str()), ("RUSHGATE_MAX_BATCH", "4")];
    let (mut trial, behind) = Behind::begin(seed, Setup::default(), &changes).await;
    for round in 0..2 {
        trial.a_while().await;
        let stalled = trial.fleet.get(1);
        let stall = Duration::from_millis(DEADLINE_MS + trial.rng.u64(200..1_200));
        let before = late(&stalled).await;
        // The proxy holds one call back; later requests wait in the instance's queue.
        behind.proxy.hold_calls();
        let stop = async {
            eventually("all are under way", || async {
                let under_way = figure(&stalled, "rushgate_http_requests_in_flight").await;
                (under_way >= BURST as f64).then_some(())
            })
            .await;
            behind.proxy.until_held().await;
            stalled.signal(Signal::SIGSTOP);
            let (_, ()) = join(others_go_on(&trial, round), tokio::time::sleep(stall)).await;
            behind.proxy.release();
            stalled.signal(Signal::SIGCONT);
        };
        let (outcomes, ()) = join(burst(&trial, &stalled, round), stop).await;
        let refused = outcomes.iter().filter(|outcome| code(outcome) == "overloaded").count();
        // More than one batch, so queued requests are among them. The checker verifies that none of
        // them had an effect.
        assert!(refused > BATCH, "{refused} of {BURST} were late: {outcomes:?}");
        assert!(late(&stalled).await >= before + refused as f64, "the script has refused them");
        trial.serves_within(SERVES_AGAIN).await;
    }
    let (outcome, _) = trial.finish().await;
    assert_eq!(outcome.epochs, 1, "nothing was rebuilt");
    outcome
}

/// Many concurrent charges, each with its own key.
async fn burst(trial: &Trial, instance: &Instance, round: usize) -> Vec<record::Outcome> {
    let one = |n: usize| {
        let charge = Ask::Charge { user: format!("user-late-{n}"), amount: 100 };
        trial.load.send(instance, charge, Some(format!("late-{round}-{n}")))
    };
    join_all((0..BURST).map(one)).await
}

/// While one instance stalls, another one serves.
async fn others_go_on(trial: &Trial, round: usize) {
    for n in 0..10 {
        let charge = Ask::Charge { user: "user-elsewhere".into(), amount: 100 };
        done(trial, &trial.fleet.get(0), charge, Some(format!("elsewhere-{round}-{n}"))).await;
    }
}

/// Charge requests that this instance has refused as late.
async fn late(instance: &Instance) -> f64 {
    let series = r#"rushgate_gate_requests_total{script="charge_wallet",verdict="overloaded"}"#;
    figure(instance, series).await
}

async fn figure(instance: &Instance, series: &str) -> f64 {
    let (_, text) = instance.ops("/metrics").await;
    let value = |line: &str| line.strip_prefix(series)?.strip_prefix(' ')?.parse().ok();
    text.lines().find_map(value).unwrap_or(0.0)
}
