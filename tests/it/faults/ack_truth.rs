//! `RUSHGATE_ACK=truth`: no client is told of a success before PostgreSQL has it.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use futures::future::join_all;
use nix::sys::signal::Signal;
use rushgate::domain::wire::Id;
use serde_json::{Value, json};
use sqlx::PgPool;
use uuid::Uuid;

use super::{Outcome, Setup, Trial};
use crate::cluster::{HttpAnswer, Instance, Private, Request, eventually};
use crate::history::record::{self, Ask};

/// Number of successes that must have been looked up in PostgreSQL.
const LOOKED_UP: usize = 60;
/// A timeout that nothing here reaches.
const PATIENT_MS: u64 = 20_000;

fn setup(truth_timeout_ms: u64, postgres: bool) -> Setup {
    let settings = vec![
        ("RUSHGATE_ACK", "truth".to_owned()),
        ("RUSHGATE_TRUTH_TIMEOUT_MS", truth_timeout_ms.to_string()),
    ];
    Setup { private: Private { postgres, ..Private::default() }, settings, ..Setup::default() }
}

/// Sends one request and records it.
async fn send(trial: &Trial, instance: &Instance, ask: &Ask, key: Option<&str>) -> HttpAnswer {
    match trial.load.send(instance, ask.clone(), key.map(str::to_owned)).await {
        record::Outcome::Answered(answer) => answer,
        other => panic!("{ask:?}: {other:?}"),
    }
}

/// Names and reasons are unique to a request, because the checker matches changes by staff by them.
fn put_template(template: &str, name: &str) -> Ask {
    let body = json!({ "name": name, "discount": { "type": "amount", "value": 100 }, "max_issued": 5,
        "issue_from": "2020-01-01T00:00:00Z", "issue_until": "2099-01-01T00:00:00Z" });
    Ask::PutTemplate { template: template.to_owned(), body }
}

fn put_product(product: &str, name: &str, stock: Option<u64>) -> Ask {
    let (product, name) = (product.to_owned(), name.to_owned());
    Ask::PutProduct { product, name, price: 500, status: "on_sale", stock }
}

fn order(user: &str, product: &str, coupon: Option<Id>) -> Ask {
    Ask::Order {
        user: user.to_owned(),
        lines: vec![(product.to_owned(), 1)],
        coupon,
        expected_total: None,
    }
}

fn id(body: &Value, name: &str) -> Id {
    Id(body[name].as_str().unwrap_or_else(|| panic!("{body}")).parse().unwrap())
}

/// Whether PostgreSQL has what this answer describes.
async fn in_postgres(pool: &PgPool, ask: &Ask, body: &Value) -> bool {
    let (sql, uuid, text) = match ask {
        Ask::Issue { .. } => {
            ("SELECT coupon_id FROM coupons WHERE coupon_id = $1", "coupon_id", None)
        }
        Ask::Charge { .. } => {
            ("SELECT ref_id FROM wallet_entries WHERE ref_id = $1", "charge_id", None)
        }
        Ask::Order { .. } => ("SELECT order_id FROM orders WHERE order_id = $1", "order_id", None),
        Ask::Cancel { .. } => (
            "SELECT order_id FROM orders WHERE order_id = $1 AND status = 'cancelled'",
            "order_id",
            None,
        ),
        Ask::PutProduct { name, .. } => {
            ("SELECT FROM products WHERE name = $2", "", Some(name.as_str()))
        }
        Ask::Adjust { reason, .. } => {
            ("SELECT FROM stock_adjustments WHERE reason = $2", "", Some(reason.as_str()))
        }
        Ask::PutTemplate { body, .. } => {
            ("SELECT FROM coupon_templates WHERE name = $2", "", body["name"].as_str())
        }
        _ => panic!("{ask:?} changes nothing"),
    };
    let uuid = if uuid.is_empty() { Uuid::nil() } else { id(body, uuid).0 };
    // Each statement uses one of the two parameters. Both are mentioned here so that both have a
    // type.
    let sql = format!("SELECT EXISTS ({sql}) AND $1::uuid IS NOT NULL AND $2::text IS NOT NULL");
    sqlx::query_scalar(&sql).bind(uuid).bind(text.unwrap_or("")).fetch_one(pool).await.unwrap()
}

/// A client that sends one request after another and looks each success up in PostgreSQL as soon as
/// the answer arrives.
struct Witness<'a> {
    trial: &'a Trial,
    number: usize,
    looked_up: &'a AtomicUsize,
}

impl Witness<'_> {
    async fn run(self, stop: &AtomicBool) {
        for round in 0.. {
            if stop.load(Ordering::Relaxed) {
                return;
            }
            self.round(round).await;
        }
    }

    async fn round(&self, round: usize) {
        let (user, product) =
            (format!("witness-{}", self.number), format!("witness-{}", self.number));
        let (name, template) = (format!("{product} {round}"), format!("{product}-{round}"));
        let stock = (round == 0).then_some(10);
        self.told(&put_product(&product, &name, stock)).await;
        self.told(&Ask::Adjust {
            product: product.clone(),
            delta: 3,
            reason: format!("{name} more"),
        })
        .await;
        self.told(&put_template(&template, &format!("{name} off"))).await;
        self.told(&Ask::Charge { user: user.clone(), amount: 900 }).await;
        let coupon = self.told(&Ask::Issue { template, user: user.clone() }).await;
        let placed =
            self.told(&order(&user, &product, coupon.map(|body| id(&body, "coupon_id")))).await;
        if let Some(placed) = placed {
            self.told(&Ask::Cancel { order: id(&placed, "order_id") }).await;
        }
    }

    /// The body of a success; `None` if there was none.
    async fn told(&self, ask: &Ask) -> Option<Value> {
        let instance = self.trial.fleet.get(self.number % self.trial.fleet.all().len());
        let HttpAnswer { status, body, .. } = send(self.trial, &instance, ask, None).await;
        if !(200..300).contains(&status) {
            return None;
        }
        assert_ne!(status, 202, "it waits as long as it takes: {body}");
        assert!(
            in_postgres(&self.trial.cluster.pool, ask, &body).await,
            "{ask:?} was told: {body}"
        );
        self.looked_up.fetch_add(1, Ordering::Relaxed);
        Some(body)
    }
}

/// Every success is in PostgreSQL when the answer arrives, even if PostgreSQL follows slowly.
pub async fn ack_truth_under_load(seed: u64) -> Outcome {
    let (mut trial, follower) = Trial::apart(seed, setup(PATIENT_MS, false)).await;
    let mut rng = trial.rng.fork();
    let (stop, looked_up) = (AtomicBool::new(false), AtomicUsize::new(0));
    let witnesses = join_all((0..4).map(|number| {
        let looked_up = &looked_up;
        Witness { trial: &trial, number, looked_up }.run(&stop)
    }));
    let stalls = async {
        while looked_up.load(Ordering::Relaxed) < LOOKED_UP {
            follower.signal(Signal::SIGSTOP);
            tokio::time::sleep(Duration::from_millis(rng.u64(..150))).await;
            follower.signal(Signal::SIGCONT);
            tokio::time::sleep(Duration::from_millis(rng.u64(..150))).await;
        }
        stop.store(true, Ordering::Relaxed);
    };
    futures::join!(witnesses, stalls);
    trial.a_while().await;
    let (outcome, _) = trial.finish().await;
    assert_eq!((outcome.epochs, outcome.gone), (1, 0));
    outcome
}

/// PostgreSQL stalls: changes are answered with 202 and their ids. Once it is back, a replay with
/// the same key returns the full first answer.
pub async fn ack_truth_without_postgres(seed: u64) -> Outcome {
    let mut trial = Trial::begin(seed, setup(500, true)).await;
    let instance = trial.fleet.get(0);
    for ask in [
        put_product("patient", "patient 0", Some(5)),
        put_template("patient", "patient 0 off"),
        Ask::Charge { user: "patient".into(), amount: 5_000 },
    ] {
        send(&trial, &instance, &ask, None).await;
    }
    trial.a_while().await;
    trial.settled().await;
    let postgres = trial.cluster.postgres.as_ref().unwrap();
    postgres.pause();
    let since_us = trial.load.now_us();
    let (user, product) = ("patient".to_owned(), "patient".to_owned());
    let posts = [
        (Ask::Charge { user: user.clone(), amount: 7 }, "charge_id"),
        (Ask::Issue { template: "patient".into(), user }, "coupon_id"),
        (order("patient", "patient", None), "order_id"),
        (Ask::Adjust { product, delta: 2, reason: "patient more".into() }, "product_id"),
    ];
    let mut accepted = Vec::new();
    for (ask, id) in &posts {
        accepted.push(only_accepted(&trial, &instance, ask, Some(id), id).await);
    }
    let puts = [
        (put_product("patient", "patient 1", None), "product_id"),
        (put_template("patient", "patient 1 off"), "template_id"),
    ];
    for (ask, id) in &puts {
        only_accepted(&trial, &instance, ask, None, id).await;
    }
    // Meanwhile no other client was told of a success, except for requests that were in flight
    // already.
    let changes = trial.load.recorded_since(since_us);
    let told =
        changes.iter().filter(|op| op.asked_us > since_us && op.succeeded() && !op.ask.is_read());
    for operation in told {
        assert_eq!(operation.answer().map(|answer| answer.status), Some(202), "{operation:?}");
    }

    trial.cluster.postgres.as_ref().unwrap().resume();
    trial.settled().await;
    for ((ask, id), first) in posts.iter().zip(&accepted) {
        let again = in_time(&trial, &instance, ask, Some(id)).await;
        assert!(again.status == 201 && again.replayed, "{again:?}");
        assert_eq!(again.body[*id], first[*id]);
        assert!(again.body.as_object().unwrap().len() > 2, "in full: {again:?}");
    }
    for (ask, _) in &puts {
        assert!(in_postgres(&trial.cluster.pool, ask, &Value::Null).await, "{ask:?}");
    }
    let (outcome, _) = trial.finish().await;
    assert_eq!((outcome.epochs, outcome.gone), (1, 0));
    outcome
}

/// The answer, and its repeat, is a 202 with the id and nothing else.
async fn only_accepted(
    trial: &Trial,
    instance: &Instance,
    ask: &Ask,
    key: Option<&str>,
    id: &str,
) -> Value {
    let answer = send(trial, instance, ask, key).await;
    assert_eq!((answer.status, answer.replayed), (202, false), "{answer:?}");
    assert_eq!(members(&answer.body), BTreeSet::from(["status", id]));
    assert_eq!(answer.body["status"], "accepted");
    if key.is_some() {
        let again = send(trial, instance, ask, key).await;
        assert_eq!((again.status, again.replayed, &again.body), (202, true, &answer.body));
    }
    answer.body
}

fn members(body: &Value) -> BTreeSet<&str> {
    body.as_object().unwrap().keys().map(String::as_str).collect()
}

/// Repeats the request until PostgreSQL is in time; a busy machine can make it late.
async fn in_time(trial: &Trial, instance: &Instance, ask: &Ask, key: Option<&str>) -> HttpAnswer {
    eventually("PostgreSQL is in time", || async {
        Some(send(trial, instance, ask, key).await).filter(|answer| answer.status != 202)
    })
    .await
}

/// Redis loses everything while clients wait for PostgreSQL. Those clients get `outcome-unknown`,
/// and nothing that was acknowledged is lost.
pub async fn ack_truth_redis_emptied(seed: u64) -> Outcome {
    let (mut trial, follower) = Trial::apart(seed, setup(PATIENT_MS, false)).await;
    trial.a_while().await;
    let since_us = trial.settled().await;
    follower.freeze().await;
    let instance = trial.fleet.get(0);
    let charge = |n: u64| Ask::Charge { user: format!("waiting-{n}"), amount: 100 + n };
    let waiting =
        join_all((0..3).map(async |n| send(&trial, &instance, &charge(n), Some("waiting")).await));
    let loss = async {
        for n in 0..3 {
            let wallet = Request::get(format!("/v1/users/waiting-{n}/wallet"));
            eventually("the gate has decided", || async {
                (instance.done(&wallet).await["balance"] == 100 + n).then_some(())
            })
            .await;
        }
        trial.cluster.flush_redis().await;
        follower.signal(Signal::SIGCONT);
    };
    let (answers, ()) = futures::join!(waiting, loss);
    for answer in &answers {
        assert_eq!((answer.status, answer.code()), (503, "outcome-unknown"), "{answer:?}");
    }
    trial.rebuilt_after(1).await;
    for n in 0..3 {
        let again = eventually("it is decided again", || async {
            Some(send(&trial, &instance, &charge(n), Some("waiting")).await)
                .filter(|again| again.status == 201)
        })
        .await;
        assert!(!again.replayed, "what was lost is done anew: {again:?}");
    }
    // Reads may show gate state that PostgreSQL does not have yet. Answers to changes may not.
    trial.forgive_reads_since(since_us);
    let (outcome, _) = trial.finish().await;
    assert_eq!((outcome.epochs, outcome.gone), (2, 0), "nothing acknowledged is gone");
    outcome
}
