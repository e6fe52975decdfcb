//! RabbitMQ dies, accepts nothing, or cannot route an event. Clients never notice, and no event is
//! lost.

use std::time::{Duration, Instant};

use lapin::types::FieldTable;
use lapin::{Connection, ConnectionProperties};
use rushgate::domain::event::{ORDER_CANCELLED, ORDER_COMPLETED};
use rushgate::relay::topology::{EVENTS_EXCHANGE, ORDERS_QUEUE};
use rushgate_local_servers::RabbitMqServer;

use super::{Outcome, Setup, Trial};
use crate::cluster::{Private, Request, eventually};
use crate::truth::number;

/// RabbitMQ 3.10 cannot elect a leader for a quorum queue that was declared just before it was
/// killed.
const FIRST_DECLARATION: Duration = Duration::from_secs(6);
/// Upper bound of the median response time on a busy machine. A request that waited for RabbitMQ
/// would take seconds or hang.
const TYPICAL: Duration = Duration::from_secs(1);
const OUTBOX: &str = "SELECT count(*) FROM outbox";
const NO_BROKER: &str = "RabbitMQ cannot be used; events wait in the outbox";

async fn begin(seed: u64, rabbitmq: bool) -> Trial {
    let private = Private { rabbitmq, ..Private::default() };
    // High timeouts, so that only RabbitMQ could delay a request, not a busy machine.
    let settings = vec![
        ("RUSHGATE_REQUEST_TIMEOUT_MS", "20000".to_owned()),
        ("RUSHGATE_TRUTH_TIMEOUT_MS", "20000".to_owned()),
    ];
    Trial::begin(seed, Setup { private, settings, ..Setup::default() }).await
}

fn server(trial: &Trial) -> &RabbitMqServer {
    trial.cluster.rabbitmq.as_ref().unwrap()
}

/// Events that were published but not confirmed, summed over all instances.
async fn unconfirmed(trial: &Trial) -> f64 {
    sum(trial, "rushgate_relay_published_total ").await
        - sum(trial, "rushgate_relay_confirmed_total ").await
}

/// A metric summed over all instances.
async fn sum(trial: &Trial, name: &str) -> f64 {
    let mut sum = 0.0;
    for instance in trial.fleet.all() {
        let (_, metrics) = instance.ops("/metrics").await;
        let values =
            metrics.lines().filter_map(|line| line.strip_prefix(name)?.trim().parse::<f64>().ok());
        sum += values.sum::<f64>();
    }
    sum
}

/// Events wait in the outbox, and operators are informed; `said` is a text of the log.
async fn kept_and_reported(trial: &Trial, said: &str) {
    eventually("events wait in the outbox", || async {
        (number(&trial.cluster.pool, OUTBOX).await > 3).then_some(())
    })
    .await;
    eventually("it is said", || async {
        trial.fleet.all().iter().any(|it| it.said(said)).then_some(())
    })
    .await;
}

/// The same if RabbitMQ cannot be reached or used. The instance whose relay is the leader reports
/// that.
async fn shown_as_unreachable(trial: &Trial) {
    eventually("the relay's instance tells", || async {
        let mut told = 0;
        for instance in trial.fleet.all() {
            let (status, body) = instance.readiness().await;
            assert_eq!(status, 200, "it can decide: {body}");
            let warned = body["warnings"].to_string().contains("RabbitMQ is not connected");
            let status = instance.done(&Request::get("/v1/admin/status").admin()).await;
            let shown = status["connections"]["rabbitmq"] == "unreachable";
            let waiting = status["outbox_length"].as_u64().unwrap() > 0;
            told += usize::from(warned && shown && waiting);
        }
        (told == 1).then_some(())
    })
    .await;
}

/// Since then no answer showed any trouble, and response times were normal.
fn clients_never_noticed(trial: &Trial, since_us: u64) {
    let (troubles, (median, slowest)) =
        (trial.load.troubles(since_us), trial.load.latency(since_us));
    println!("half of the answers took at most {median:?}, the slowest {slowest:?}");
    assert!(troubles.is_empty(), "{troubles:?}");
    assert!(median < TYPICAL, "{median:?}");
}

/// Ends the trial: every event is delivered, and clients never noticed.
async fn finish(trial: Trial, since_us: u64) -> Outcome {
    clients_never_noticed(&trial, since_us);
    let (outcome, _) = trial.finish().await;
    assert_eq!((outcome.epochs, outcome.unknown), (1, 0), "nothing was rebuilt, nothing unclear");
    outcome
}

/// kill -9 RabbitMQ, either at a random moment or while it certainly has unconfirmed events.
pub async fn broker_killed(seed: u64) -> Outcome {
    let mut trial = begin(seed, true).await;
    let since = Instant::now();
    while since.elapsed() < FIRST_DECLARATION {
        trial.a_while().await;
    }
    let (since_us, before) = (trial.load.now_us(), unconfirmed(&trial).await);
    let stands_still = trial.rng.bool();
    if stands_still {
        server(&trial).pause();
        kept_and_reported(&trial, "carrying events").await;
        // The relay polls every 50 ms.
        const TAKEN: &str =
            "SELECT count(*) FROM outbox WHERE created_at < now() - interval '1 second'";
        eventually("the relay has taken some", || async {
            (number(&trial.cluster.pool, TAKEN).await > 0).then_some(())
        })
        .await;
    }
    server(&trial).kill().await;
    kept_and_reported(&trial, NO_BROKER).await;
    shown_as_unreachable(&trial).await;
    if stands_still {
        let now = unconfirmed(&trial).await;
        assert!(now > before, "events were under way: {before} {now}");
    }
    server(&trial).restart().await.unwrap();
    delivers(&trial).await;
    finish(trial, since_us).await
}

/// Waits until events reach RabbitMQ again.
async fn delivers(trial: &Trial) {
    let before = sum(trial, "rushgate_relay_confirmed_total ").await;
    eventually("events are confirmed again", || async {
        (sum(trial, "rushgate_relay_confirmed_total ").await > before).then_some(())
    })
    .await;
}

/// RabbitMQ raises its memory alarm and blocks publishers.
pub async fn broker_full(seed: u64) -> Outcome {
    let mut trial = begin(seed, true).await;
    trial.a_while().await;
    delivers(&trial).await;
    let since_us = trial.load.now_us();
    server(&trial).control(&["set_vm_memory_high_watermark", "0.00001"]).await.unwrap();
    kept_and_reported(&trial, "takes no events (memory or disk alarm)").await;
    shown_as_unreachable(&trial).await;
    trial.a_while().await;
    server(&trial).control(&["set_vm_memory_high_watermark", "0.9"]).await.unwrap();
    delivers(&trial).await;
    finish(trial, since_us).await
}

/// The queue's bindings are removed repeatedly; the relay restores them.
pub async fn queue_unbound(seed: u64) -> Outcome {
    let mut trial = begin(seed, false).await;
    trial.a_while().await;
    let since_us = trial.load.now_us();
    let url = trial.cluster.settings.get("RUSHGATE_AMQP_URL");
    let connection = Connection::connect(url, ConnectionProperties::default()).await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    let unroutable = "rushgate_relay_refused_total{reason=\"unroutable\"} ";
    let enough = sum(&trial, unroutable).await + 10.0;
    eventually("events are refused", || async {
        for key in [ORDER_COMPLETED, ORDER_CANCELLED] {
            let (queue, exchange) = (ORDERS_QUEUE.into(), EVENTS_EXCHANGE.into());
            channel.queue_unbind(queue, exchange, key.into(), FieldTable::default()).await.unwrap();
        }
        (sum(&trial, unroutable).await >= enough).then_some(())
    })
    .await;
    kept_and_reported(&trial, "RabbitMQ refused events; they are kept and sent again").await;
    delivers(&trial).await;
    connection.close(200, "done".into()).await.unwrap();
    finish(trial, since_us).await
}
