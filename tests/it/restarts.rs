//! Servers and instances that stop and come back, under traffic.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use fred::prelude::*;
use futures::future::join_all;
use serde_json::{Value, json};

use crate::cluster::*;

/// Everything that a shopper can see, to compare before and after.
const VIEWS: [&str; 9] = [
    "/v1/products",
    "/v1/coupon-templates",
    "/v1/users/ann/wallet",
    "/v1/users/bob/wallet",
    "/v1/users/ann/coupons",
    "/v1/users/bob/coupons",
    "/v1/users/ann/orders",
    "/v1/users/bob/orders",
    "/v1/users/ann/wallet/entries",
];

async fn views(instance: &Instance) -> Vec<Value> {
    join_all(VIEWS.iter().map(|path| async { instance.done(&Request::get(*path)).await })).await
}

#[tokio::test]
async fn a_wiped_redis_is_filled_from_postgresql() {
    let cluster = Cluster::servers().await;
    let first = cluster.start().await;
    first.done(&Request::put_product("mug", 10_000, 20)).await;
    first.done(&Request::put_product("shoe", 90_000, 1)).await;
    first.done(&Request::put_template("welcome", 10)).await;
    first.done(&Request::put_template("rare", 1)).await;
    for user in ["ann", "bob"] {
        first.done(&Request::charge(user, 200_000)).await;
    }
    first.done(&Request::restock("mug", 7)).await;
    let used = first.send(&Request::issue("welcome", "ann")).await.text("coupon_id");
    let returned = first.send(&Request::issue("welcome", "bob")).await.text("coupon_id");
    let keyed = [
        Request::order("ann", "mug", 2).coupon(&used).key("an order"),
        Request::charge("ann", 1_000).key("a charge"),
        Request::issue("rare", "ann").key("a coupon"),
        Request::restock("mug", 1).key("a delivery"),
    ];
    let mut answers = Vec::new();
    for request in &keyed {
        answers.push(first.send(request).await);
    }
    let cancelled =
        first.send(&Request::order("bob", "shoe", 1).coupon(&returned)).await.text("order_id");
    let cancellation = first.done(&Request::cancel(&cancelled)).await;
    let before = views(&first).await;
    let epoch = cluster.meta().await.epoch;

    first.stop().await;
    cluster.flush_redis().await;
    let second = cluster.start().await;
    assert_eq!(cluster.meta().await.epoch, epoch + 1);
    for ((path, before), after) in VIEWS.iter().zip(before).zip(views(&second).await) {
        assert_eq!(before, after, "{path}");
    }
    for (request, first_answer) in keyed.iter().zip(&answers) {
        let again = second.send(request).await;
        assert!(again.replayed && again.status == 201, "{request:?}: {again:?}");
        assert_eq!(again.body, first_answer.body);
    }
    let other = second.send(&Request::charge("ann", 2_000).key("a charge")).await;
    assert_eq!(other.code(), "idempotency-key-reused");
    for (request, code) in [
        (Request::order("ann", "mug", 1).coupon(&used), "coupon-not-available"),
        (Request::order("bob", "mug", 1).coupon(&used), "coupon-not-found"),
        (Request::issue("welcome", "ann"), "already-issued"),
        (Request::issue("rare", "bob"), "sold-out"),
    ] {
        assert_eq!(second.send(&request).await.code(), code, "{request:?}");
    }
    assert_eq!(second.done(&Request::cancel(&cancelled)).await, cancellation);
    let next = second.done(&Request::issue("welcome", "cid")).await;
    assert_eq!(next["serial"], 3, "serials go on");
    second.done(&Request::order("bob", "mug", 1).coupon(&returned)).await;
    cluster.assert_consistent().await;
}

#[tokio::test]
async fn a_redis_wiped_under_load_is_filled_again_and_nothing_is_oversold() {
    let (cluster, pair) = Cluster::two().await;
    let rush = Rush::prepare(&pair.instances[0]).await;
    let wipe = async {
        for wiped in 1..=2 {
            rush.until_placed(&cluster, 60 * wiped).await;
            cluster.flush_redis().await;
            eventually("the gate is built anew", || async {
                (cluster.meta().await.epoch > u64::try_from(wiped).unwrap()).then_some(())
            })
            .await;
        }
    };
    Box::pin(rush.run(&[&pair.instances[0], &pair.instances[1]], wipe)).await;
    rush.sell_out(&pair.instances[0]).await;
    rush.assert_sold_exactly(&cluster).await;
}

#[tokio::test]
async fn a_redis_that_was_away_goes_on_where_it_was() {
    let (cluster, pair) = Cluster::two().await;
    pair.done(&Request::put_product("mug", 10_000, 100)).await;
    pair.done(&Request::charge("ann", 500_000)).await;
    let order = Request::order("ann", "mug", 1);
    pair.done(&order).await;
    let before = cluster.meta().await;
    let unknown = AtomicU64::new(0);

    for crash in [false, true] {
        if crash {
            cluster.redis.kill().await
        } else {
            cluster.redis.stop().await
        }
        for instance in &pair.instances {
            eventually("/readyz names Redis", || async {
                let (status, body) = instance.readiness().await;
                (status == 503 && body["reasons"][0].as_str().unwrap().starts_with("Redis"))
                    .then_some(())
            })
            .await;
            eventually("orders are known not to be done", || async {
                let answer = instance.send(&order).await;
                // If it was sent on a connection that was already closed, its outcome may be
                // unknown.
                unknown.fetch_add(u64::from(answer.code() == "outcome-unknown"), Ordering::Relaxed);
                let expected = ["gate-unavailable", "outcome-unknown"].contains(&answer.code());
                assert!(answer.status == 503 && answer.retry_after && expected, "{answer:?}");
                (answer.code() == "gate-unavailable").then_some(())
            })
            .await;
            assert_eq!(instance.send(&order).await.code(), "gate-unavailable");
            assert_eq!(
                instance.send(&Request::get("/v1/products/mug")).await.code(),
                "gate-unavailable"
            );
            assert_eq!(instance.ops("/healthz").await.0, 200);
        }
        cluster.redis.restart().await.unwrap();
        for instance in &pair.instances {
            instance.until_ready().await;
            eventually("orders are taken again", || async {
                let answer = instance.send(&order).await;
                assert!([201, 503].contains(&answer.status), "{answer:?}");
                (answer.status == 201).then_some(())
            })
            .await;
        }
    }
    assert_eq!(cluster.meta().await.epoch, before.epoch);
    cluster.assert_consistent().await;
    let sold = 100 - pair.done(&Request::get("/v1/products/mug")).await["stock"].as_u64().unwrap();
    assert!((5..=5 + unknown.into_inner()).contains(&sold), "{sold}");
}

/// As after a Sentinel failover, or a restart with another configuration.
#[tokio::test]
async fn a_redis_that_comes_back_unsafe_decides_nothing_until_it_is_mended() {
    let cluster = Cluster::servers().await;
    let strict = cluster.start().await;
    let relaxed = Instance::ready(&cluster.settings.with("RUSHGATE_DURABILITY", "relaxed")).await;
    let charge = Request::charge("ann", 1_000);
    strict.done(&charge).await;
    let _: () = cluster.raw.config_set("appendfsync", "everysec").await.unwrap();
    let _: i64 =
        cluster.raw.custom(fred::cmd!("CLIENT"), vec!["KILL", "TYPE", "normal"]).await.unwrap();

    let why = eventually("/readyz says why", || async {
        let (status, body) = strict.readiness().await;
        let why = body["reasons"][0].to_string();
        (status == 503 && why.contains("appendfsync")).then_some(why)
    })
    .await;
    assert!(why.contains("`appendfsync` is `everysec` and must be `always`"), "{why}");
    let before = cluster.meta().await.seq;
    for _ in 0..10 {
        assert_eq!(strict.send(&charge).await.code(), "gate-unavailable");
    }
    assert_eq!(cluster.meta().await.seq, before);
    strict.done(&Request::get("/v1/users/ann/wallet")).await;
    assert!(strict.said("Redis failed the durability check"), "{:#?}", strict.log());
    relaxed.until_ready().await;
    relaxed.done(&charge).await;
    assert!(relaxed.said("`appendfsync` is `everysec`"), "{:#?}", relaxed.log());

    let _: () = cluster.raw.config_set("appendfsync", "always").await.unwrap();
    strict.until_ready().await;
    strict.done(&charge).await;
    cluster.assert_consistent().await;
}

#[tokio::test]
async fn orders_go_on_without_postgresql() {
    let cluster = Cluster::with(Private { postgres: true, ..Private::default() }).await;
    let postgres = cluster.postgres.as_ref().unwrap();
    let instance =
        Instance::ready(&cluster.settings.with("RUSHGATE_TRUTH_TIMEOUT_MS", "500")).await;
    instance.done(&Request::put_product("mug", 10_000, 100)).await;
    instance.done(&Request::charge("ann", 500_000)).await;
    let order = Request::order("ann", "mug", 1);
    let first = instance.send(&order).await.text("order_id");
    instance.done(&Request::get(format!("/v1/orders/{first}"))).await;

    postgres.kill().await;
    let placed = instance.send(&order).await;
    assert_eq!(placed.status, 201, "{placed:?}");
    instance.done(&Request::get("/v1/users/ann/wallet")).await;
    for path in [format!("/v1/orders/{first}"), "/v1/users/ann/orders".into()] {
        let refused = instance.send(&Request::get(path)).await;
        assert_eq!((refused.status, refused.code()), (503, "truth-unavailable"), "{refused:?}");
        assert!(refused.retry_after);
    }
    let (status, body) = instance.readiness().await;
    assert_eq!(status, 200, "{body}");
    assert!(body["warnings"][0].as_str().unwrap().contains("PostgreSQL"), "{body}");
    let status = instance.done(&Request::get("/v1/admin/status").admin()).await;
    assert_eq!(status["connections"]["postgres"], "unreachable", "{status}");
    assert_eq!(
        (&status["cells"][0]["state"], &status["outbox_length"]),
        (&json!("open"), &Value::Null)
    );
    for _ in 0..9 {
        instance.done(&order).await;
    }

    postgres.restart().await.unwrap();
    let path = Request::get(format!("/v1/orders/{}", placed.text("order_id")));
    eventually("the order can be read", || async {
        let answer = instance.send(&path).await;
        assert!([200, 503].contains(&answer.status), "{answer:?}");
        (answer.status == 200).then_some(())
    })
    .await;
    cluster.assert_consistent().await;
    assert_eq!(cluster.number("SELECT count(*) FROM orders").await, 11);
}

#[tokio::test]
async fn orders_go_on_without_rabbitmq() {
    let cluster = Cluster::with(Private { rabbitmq: true, ..Private::default() }).await;
    let rabbitmq = cluster.rabbitmq.as_ref().unwrap();
    let instance = cluster.start().await;
    instance.done(&Request::put_product("mug", 10_000, 100)).await;
    instance.done(&Request::charge("ann", 500_000)).await;
    let order = Request::order("ann", "mug", 1);
    instance.done(&order).await;
    eventually("the first event is delivered", || async {
        (cluster.number("SELECT events_published FROM relay_progress").await == 1).then_some(())
    })
    .await;

    rabbitmq.stop().await;
    let mut slowest = Duration::ZERO;
    for _ in 0..20 {
        let asked = Instant::now();
        instance.done(&order).await;
        slowest = slowest.max(asked.elapsed());
    }
    assert!(slowest < Duration::from_secs(2), "{slowest:?}");
    assert_eq!(instance.readiness().await.0, 200);
    cluster.settings.run(&["audit", "--wait", "30s"]).await.assert_success();
    assert_eq!(cluster.number("SELECT count(*) FROM outbox").await, 20);

    rabbitmq.restart().await.unwrap();
    cluster.assert_consistent().await;
    assert_eq!(cluster.events().await.len(), 21);
}

#[tokio::test]
async fn when_the_leader_is_killed_the_other_goes_on() {
    let (cluster, pair) = Cluster::two().await;
    let rush = Rush::prepare(&pair.instances[0]).await;
    let (leader, other) = pair.by_leadership();
    let victim = std::cell::RefCell::new(Some(leader));
    let crash = async {
        rush.until_placed(&cluster, 60).await;
        let leader = victim.borrow_mut().take().unwrap();
        leader.kill().await;
        eventually("the other leads", || async { other.said(LEADS).then_some(()) }).await;
        rush.until_placed(&cluster, 120).await;
    };
    Box::pin(rush.run(&[&other], crash)).await;
    rush.sell_out(&other).await;
    rush.assert_sold_exactly(&cluster).await;
}

/// Many buyers compete for scarce stock during an event.
struct Rush {
    stopped: AtomicBool,
}

const STOCK: u64 = 2_000;
const BUYERS: u64 = 20;
const BALANCE: u64 = 1_000_000;

impl Rush {
    async fn prepare(instance: &Instance) -> Self {
        instance.done(&Request::put_product("mug", 100, STOCK)).await;
        for n in 0..BUYERS {
            instance.done(&Request::charge(&format!("user-{n}"), BALANCE)).await;
        }
        Self { stopped: AtomicBool::new(false) }
    }

    /// Buyers send orders to the instances until `event` is over.
    async fn run(&self, instances: &[&Instance], event: impl Future<Output = ()>) {
        let buyers = (0..BUYERS).map(|n| async move {
            let user = format!("user-{n}");
            for turn in 0.. {
                if self.stopped.load(Ordering::Relaxed) {
                    return;
                }
                let instance = instances[usize::try_from(n + turn).unwrap() % instances.len()];
                let answer = instance.send(&Request::order(&user, "mug", 1)).await;
                let fine =
                    [201, 503].contains(&answer.status) || answer.code() == "insufficient-stock";
                assert!(fine, "{answer:?}");
                // At the pace of a person, so that the stock lasts for the whole event.
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        });
        let event = async {
            event.await;
            self.stopped.store(true, Ordering::Relaxed);
        };
        futures::join!(join_all(buyers), event);
    }

    async fn until_placed(&self, cluster: &Cluster, orders: i64) {
        eventually("orders arrive in PostgreSQL", || async {
            (cluster.number("SELECT count(*) FROM orders").await >= orders).then_some(())
        })
        .await;
    }

    /// Orders everything that is left, and a little more.
    async fn sell_out(&self, instance: &Instance) {
        let left =
            instance.done(&Request::get("/v1/products/mug")).await["stock"].as_u64().unwrap();
        assert!(left > 0 && left < STOCK, "{left}");
        let pieces = left / BUYERS + 2;
        let rest = (0..BUYERS).map(|n| async move {
            instance.send(&Request::order(&format!("user-{n}"), "mug", pieces)).await
        });
        let answers = join_all(rest).await;
        let (_, refused) = sorted(&answers);
        assert!(refused.keys().all(|code| *code == "insufficient-stock"), "{refused:?}");
        for n in 0.. {
            let answer =
                instance.send(&Request::order(&format!("user-{}", n % BUYERS), "mug", 1)).await;
            if answer.status != 201 {
                assert_eq!(answer.code(), "insufficient-stock");
                break;
            }
        }
    }

    /// The number of pieces sold in PostgreSQL equals the stock, and the payments equal their
    /// price.
    async fn assert_sold_exactly(&self, cluster: &Cluster) {
        cluster.assert_consistent().await;
        let sold = cluster.number("SELECT sum(quantity)::bigint FROM order_items").await;
        assert_eq!(u64::try_from(sold).unwrap(), STOCK);
        let balances = cluster.number("SELECT sum(balance)::bigint FROM wallets").await;
        assert_eq!(u64::try_from(balances).unwrap(), BUYERS * BALANCE - STOCK * 100);
    }
}
