//! Tests of the audit on real servers: it is clean on a consistent shop, and reports each planted
//! difference by name.

use std::time::{Duration, Instant};

use bytes::Bytes;
use fred::prelude::*;
use fred::types::{ClusterHash, CustomCommand};
use rushgate::audit::{Options, Report, audit};
use rushgate::config::{Durability, FenceMode, Servers};
use rushgate::domain::wire::Blob;
use rushgate::redis::held_coupons::HeldCoupon;
use rushgate::redis::keys::Keys;
use rushgate_local_servers::{DataFolder, RedisOptions, RedisServer};
use sqlx::PgPool;
use uuid::Uuid;

use crate::cluster::{Cluster, Request, Settings};
use crate::truth::{database, execute};

const KEYS: Keys = Keys { cell: 0, epoch: 3 };
/// A moment after the time of the shop's idempotency record.
const CLOCK_MS: i64 = 1_700_000_200_000;

const ORDER_1: &str = "00000000-0000-7000-8000-000000000001";
const ORDER_2: &str = "00000000-0000-7000-8000-000000000002";
const COUPON_1: &str = "00000000-0000-7000-8000-0000000000c1";
const COUPON_2: &str = "00000000-0000-7000-8000-0000000000c2";

struct Shop {
    pool: PgPool,
    redis: RedisServer,
    client: Client,
}

impl Shop {
    async fn open() -> Self {
        let redis = RedisServer::start(RedisOptions::new(DataFolder::Scratch)).await.unwrap();
        let client = Builder::from_config(Config::from_url(&redis.url()).unwrap()).build().unwrap();
        client.init().await.unwrap();
        let shop = Self { pool: database().await, redis, client };
        shop.refill().await;
        shop
    }

    async fn refill(&self) {
        execute(&self.pool, include_str!("audit_shop.sql")).await;
        let _: () = self.client.flushall(false).await.unwrap();
        let text = |text: &str| Bytes::copy_from_slice(text.as_bytes());
        self.redis(vec![
            text("XADD"),
            text(&KEYS.log()),
            text("3-7"),
            text("p"),
            text(""),
            text("t"),
            text("tip7"),
        ])
        .await;
        let meta =
            [("epoch", "3"), ("seq", "7"), ("tip", "tip7"), ("applied", "7"), ("state", "open")];
        for (field, value) in meta {
            self.hset(&Keys::meta(0), field, value).await;
        }
        self.hset(&Keys::meta(0), "clock", &CLOCK_MS.to_string()).await;
        for (user, balance) in [("u1", "8500"), ("u2", "5000")] {
            self.hset(&KEYS.wallets(), user, balance).await;
        }
        self.hset(&KEYS.products(), "tea", packed(&("Tea", 1_000, "on_sale"))).await;
        self.hset(&KEYS.products(), "cup", packed(&("Cup \"big\"", 500, "suspended"))).await;
        for (product, stock) in [("tea", "8"), ("cup", "5")] {
            self.hset(&KEYS.stocks(), product, stock).await;
            self.redis(vec![text("ZADD"), text(&KEYS.product_ids()), text("0"), text(product)])
                .await;
        }
        let terms = (
            "Welcome",
            "percent",
            25,
            Some(500),
            0,
            10,
            1_700_000_000_000_i64,
            1_900_000_000_000_i64,
        );
        let (name, kind, value, max, min, limit, from, until) = terms;
        let template = packed(&(1, name, kind, value, max, min, limit, from, until));
        self.hset(&KEYS.templates(), "t1", template).await;
        self.hset(&KEYS.issued(), "t1", "2").await;
        self.redis(vec![text("ZADD"), text(&KEYS.template_ids()), text("0"), text("t1")]).await;
        self.hset(&KEYS.template_numbers(), 1_u32.to_be_bytes(), "t1").await;
        self.hset(&KEYS.held(), "u1", coupon_1().to_bytes()).await;
        self.hset(&KEYS.held(), "u2", coupon_2().to_bytes()).await;
        self.redis(vec![text("SADD"), text(&KEYS.cancelled()), raw(ORDER_2)]).await;
        self.put_record("u1 key", 1_700_000_100_250).await;
    }

    async fn redis(&self, command: Vec<Bytes>) {
        let name = String::from_utf8(command[0].to_vec()).unwrap();
        let command_type = CustomCommand::new(name, ClusterHash::FirstKey, false);
        let _: Value = self.client.custom(command_type, command[1..].to_vec()).await.unwrap();
    }

    async fn hset(&self, key: &str, field: impl AsRef<[u8]>, value: impl AsRef<[u8]>) {
        let bytes = |bytes: &[u8]| Bytes::copy_from_slice(bytes);
        self.redis(vec![
            Bytes::from_static(b"HSET"),
            bytes(key.as_bytes()),
            bytes(field.as_ref()),
            bytes(value.as_ref()),
        ])
        .await;
    }

    async fn put_record(&self, scope: &str, decided_at: i64) {
        let record = (Blob((0..16).collect()), decided_at, Blob(vec![0x93, 0xff, 0x00]));
        self.hset(&KEYS.idempotency(CLOCK_MS / 86_400_000), scope, packed(&record)).await;
    }

    async fn audit(&self) -> Report {
        self.audit_waiting(Duration::ZERO).await
    }

    async fn audit_waiting(&self, wait: Duration) -> Report {
        let servers = Servers {
            redis_url: self.redis.url(),
            database_url: String::new(),
            amqp_url: String::new(),
            cells: 1,
            durability: Durability::Strict,
            fence: FenceMode::Available,
        };
        audit(&servers, &self.pool, Options { wait }).await.unwrap()
    }

    /// Runs the audit, expects this difference, and repairs the shop.
    async fn expect(&self, check: &str, id: &str, expected: &str, found: &str) {
        let report = self.audit().await;
        assert!(!report.clean, "{check}: seen as clean");
        let differences = &report.check(check).unwrap().differences;
        assert!(
            differences.iter().any(|d| {
                d.id.contains(id) && d.expected.contains(expected) && d.found.contains(found)
            }),
            "{check} {id}: {expected} / {found} not in\n{report}"
        );
        self.refill().await;
    }
}

fn packed(value: &impl serde::Serialize) -> Vec<u8> {
    rmp_serde::to_vec(value).unwrap()
}

fn uuid(text: &str) -> Uuid {
    text.parse().unwrap()
}

fn raw(id: &str) -> Bytes {
    Bytes::copy_from_slice(uuid(id).as_bytes())
}

fn coupon_1() -> HeldCoupon {
    HeldCoupon {
        terms_number: 1,
        coupon_id: uuid(COUPON_1),
        serial: 1,
        issued_at: 1_700_000_001_500,
        order_id: Some(uuid(ORDER_1)),
    }
}

fn coupon_2() -> HeldCoupon {
    HeldCoupon {
        coupon_id: uuid(COUPON_2),
        serial: 2,
        issued_at: 1_700_000_002_000,
        order_id: None,
        ..coupon_1()
    }
}

#[tokio::test]
async fn a_clean_shop_is_clean() {
    let shop = Shop::open().await;
    let report = shop.audit().await;
    assert!(report.clean && report.gate_compared, "{report}");
    assert_eq!((report.exit_code(), report.epoch, report.seq), (0, 3, 7));
    for (check, looked_at) in [
        ("gate-wallets", 2),
        ("gate-coupons", 2),
        ("gate-template-numbers", 1),
        ("gate-cancelled", 1),
        ("gate-records", 1),
        ("ledger-steps", 5),
        ("outbox-rows", 1),
        ("events-written", 3),
    ] {
        assert_eq!(report.check(check).unwrap().looked_at, looked_at, "{check}");
    }
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!(json["clean"], true);
    assert!(report.to_string().contains("clean"));
}

#[tokio::test]
async fn nothing_anywhere_is_clean() {
    let shop = Shop { ..Shop::open().await };
    execute(&shop.pool, "TRUNCATE products, stock_adjustments, coupon_templates, coupons, wallets, wallet_entries, orders, order_items, order_templates, purchases, coupon_terms, idempotency_records, cell_cursors, outbox; UPDATE relay_progress SET events_published = 0").await;
    let _: () = shop.client.flushall(false).await.unwrap();
    let report = shop.audit().await;
    assert!(report.clean, "{report}");
}

#[tokio::test]
async fn differences_between_gate_and_truth_are_named() {
    let shop = Shop::open().await;
    shop.hset(&KEYS.wallets(), "u1", "8400").await;
    shop.expect("gate-wallets", "u1", "8500", "8400").await;
    shop.hset(&KEYS.wallets(), "u9", "100").await;
    shop.expect("gate-wallets", "u9", "nothing", "100").await;
    let _: i64 = shop.client.hdel(KEYS.wallets(), "u2").await.unwrap();
    // Keeps the number of wallets equal on both sides.
    shop.hset(&KEYS.wallets(), "u9", "100").await;
    shop.expect("gate-wallets", "u9", "nothing", "100").await;
    let _: i64 = shop.client.hdel(KEYS.wallets(), "u2").await.unwrap();
    shop.expect("gate-wallets", "u2", "5000", "nothing").await;

    shop.hset(&KEYS.stocks(), "tea", "9").await;
    shop.expect("gate-stocks", "tea", "8", "9").await;
    shop.hset(&KEYS.products(), "tea", packed(&("Tea", 1_100, "on_sale"))).await;
    shop.expect("gate-products", "tea", "1000", "1100").await;
    shop.hset(&KEYS.products(), "tea", "rubbish").await;
    shop.expect("gate-products", "tea", "Tea", "undecodable").await;
    let _: i64 = shop.client.zrem(KEYS.product_ids(), "cup").await.unwrap();
    shop.expect("gate-product-ids", "cup", "listed", "nothing").await;
    let _: i64 = shop.client.del(KEYS.template_ids()).await.unwrap();
    shop.expect("gate-template-ids", "t1", "listed", "nothing").await;
    shop.hset(&KEYS.issued(), "t1", "3").await;
    shop.expect("gate-issued", "t1", "2", "3").await;
    execute(&shop.pool, "UPDATE coupon_templates SET max_issued = 11").await;
    shop.expect("gate-templates", "t1", "\"max_issued\":11", "\"max_issued\":10").await;

    shop.hset(&KEYS.template_numbers(), 1_u32.to_be_bytes(), "t2").await;
    shop.expect("gate-template-numbers", "1", "t1", "t2").await;
    shop.hset(&KEYS.template_numbers(), 2_u32.to_be_bytes(), "t1").await;
    shop.expect("gate-template-numbers", "2", "nothing", "t1").await;

    let changes: [(fn(&mut HeldCoupon), _, _); 4] = [
        (|coupon| coupon.order_id = None, ORDER_1, "\"order\":null"),
        (|coupon| coupon.serial = 2, "\"serial\":1", "\"serial\":2"),
        (|coupon| coupon.issued_at += 1, "1700000001500", "1700000001501"),
        (|coupon| coupon.terms_number = 2, "\"terms_number\":1", "\"terms_number\":2"),
    ];
    for (change, expected, found) in changes {
        let mut coupon = coupon_1();
        change(&mut coupon);
        shop.hset(&KEYS.held(), "u1", coupon.to_bytes()).await;
        shop.expect("gate-coupons", COUPON_1, expected, found).await;
    }
    let invented = HeldCoupon { coupon_id: uuid(ORDER_2), ..coupon_2() };
    shop.hset(&KEYS.held(), "u2", [coupon_2().to_bytes(), invented.to_bytes()].concat()).await;
    shop.expect("gate-coupons", ORDER_2, "nothing", "\"serial\":2").await;
    let _: i64 = shop.client.hdel(KEYS.held(), "u1").await.unwrap();
    shop.expect("gate-coupons", "u1", "\"serial\":1", "nothing").await;
    shop.hset(&KEYS.held(), "u3", coupon_2().to_bytes()).await;
    shop.expect("gate-coupons", "u3", "nothing", "\"serial\":2").await;
    shop.hset(&KEYS.held(), "u1", [coupon_1().to_bytes(), coupon_1().to_bytes()].concat()).await;
    shop.expect("gate-coupons", "u1", "once", "twice").await;
    shop.hset(&KEYS.held(), "u1", [&coupon_1().to_bytes()[..], b"\xff"].concat()).await;
    shop.expect("gate-coupons", "u1", "whole", "undecodable: ff").await;
    shop.redis(vec!["SADD".into(), KEYS.cancelled().into(), raw(ORDER_1)]).await;
    shop.expect("gate-cancelled", ORDER_1, "paid", "cancelled").await;

    shop.put_record("u2 key", 1_700_000_100_250).await;
    shop.expect("gate-records", "u2 key", "nothing", "93ff00").await;
    shop.put_record("u1 key", 1_700_000_100_251).await;
    shop.expect("gate-records", "u1 key", "1700000100250", "1700000100251").await;
    shop.put_record("u2 old", CLOCK_MS - 25 * 3_600_000).await; // too old to answer any request
    assert!(shop.audit().await.clean);
}

#[tokio::test]
async fn a_cell_that_cannot_be_compared_is_named() {
    let shop = Shop::open().await;
    let meta = Keys::meta(0);
    shop.hset(&meta, "state", "closed").await;
    shop.hset(&meta, "reason", "script error").await;
    shop.expect("cell", "cell 0", "open", "closed: script error").await;
    shop.hset(&meta, "seq", "8").await;
    shop.expect("cell", "cell 0", "3-7", "3-8").await;
    shop.hset(&meta, "epoch", "4").await;
    shop.expect("cell", "cell 0", "3-7", "4-7").await;
    shop.hset(&meta, "tip", "other").await;
    shop.expect("cell", "cell 0", "tip7", "other").await;
    execute(&shop.pool, "UPDATE cell_cursors SET halted_reason = 'poison'").await;
    shop.expect("cell", "cell 0", "follows", "halted: poison").await;
    let _: () = shop.client.flushall(false).await.unwrap();
    shop.expect("cell", "cell 0", "3-7", "empty").await;
    shop.redis(vec![
        "XADD".into(),
        KEYS.log().into(),
        "3-8".into(),
        "p".into(),
        "x".into(),
        "t".into(),
        "t8".into(),
    ])
    .await;
    shop.expect("gate-log", "cell 0", "3-7", "3-8").await;
    // The rules within PostgreSQL are checked even if the gate cannot be.
    shop.hset(&meta, "state", "closed").await;
    execute(&shop.pool, "UPDATE wallets SET balance = 1 WHERE user_id = 'u1'").await;
    shop.expect("ledger-sum", "u1", "8500", "1").await;
}

#[tokio::test]
async fn it_waits_for_postgresql_and_for_a_quiet_gate() {
    let shop = Shop::open().await;
    execute(&shop.pool, "UPDATE cell_cursors SET seq = 6, tip = 'tip6'").await;
    let since = Instant::now();
    let (report, ()) = tokio::join!(shop.audit_waiting(Duration::from_secs(20)), async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        execute(&shop.pool, "UPDATE cell_cursors SET seq = 7, tip = 'tip7'").await;
    });
    assert!(report.clean, "{report}");
    assert!(since.elapsed() < Duration::from_secs(10));
}

#[tokio::test]
async fn a_gate_that_never_rests_is_not_called_clean() {
    let shop = Shop::open().await;
    let working = async {
        for seq in 8.. {
            shop.hset(&Keys::meta(0), "seq", &seq.to_string()).await;
            sqlx::query("UPDATE cell_cursors SET seq = $1")
                .bind(seq)
                .execute(&shop.pool)
                .await
                .unwrap();
        }
    };
    let report = tokio::select! {
        report = shop.audit_waiting(Duration::from_secs(10)) => report,
        () = working => unreachable!(),
    };
    assert!(!report.clean && !report.gate_compared, "{report}");
    assert_eq!(report.check("cell").unwrap().differences.len(), 1);
    assert_eq!(report.check("ledger-sum").unwrap().looked_at, 2);
}

#[tokio::test]
async fn broken_rules_within_the_truth_are_named() {
    let shop = Shop::open().await;
    let planted: [(&'static str, &str, &str, &str, &str); 22] = [
        (
            "UPDATE wallets SET balance = 8600 WHERE user_id = 'u1'",
            "ledger-sum",
            "u1",
            "8500",
            "8600",
        ),
        ("DELETE FROM wallets WHERE user_id = 'u1'", "ledger-sum", "u1", "8500", "no wallet"),
        (
            "UPDATE wallets SET balance = 8600 WHERE user_id = 'u1'",
            "ledger-last",
            "u1",
            "8500",
            "8600",
        ),
        (
            "UPDATE wallet_entries SET balance_after = 9999 WHERE user_id = 'u1' AND kind = 'charge'",
            "ledger-steps",
            "u1",
            "10000",
            "9999",
        ),
        ("UPDATE products SET stock = 7 WHERE product_id = 'tea'", "stock-sums", "tea", "8", "7"),
        ("DELETE FROM products WHERE product_id = 'tea'", "stock-sums", "tea", "8", "no product"),
        (
            "DELETE FROM order_items WHERE product_id = 'tea'",
            "order-amounts",
            ORDER_1,
            "2000",
            "no items",
        ),
        (
            "UPDATE order_items SET quantity = 3, amount = 3000 WHERE product_id = 'tea'",
            "order-amounts",
            ORDER_1,
            "items 2000",
            "items 3000",
        ),
        (
            "DELETE FROM orders WHERE user_id = 'u1'",
            "order-amounts",
            ORDER_1,
            "no items",
            "no order",
        ),
        (
            "DELETE FROM orders WHERE user_id = 'u1'",
            "order-payments",
            ORDER_1,
            "no entries",
            "u1 paid 1500",
        ),
        (
            "DELETE FROM wallet_entries WHERE kind = 'refund'",
            "order-payments",
            ORDER_2,
            "refunded 500",
            "paid 500",
        ),
        (
            "DELETE FROM wallet_entries WHERE kind = 'payment'",
            "order-payments",
            ORDER_1,
            "paid 1500",
            "no entries",
        ),
        (
            "UPDATE wallet_entries SET user_id = 'u2'",
            "order-payments",
            ORDER_1,
            "u1 paid",
            "u2 paid",
        ),
        (
            "UPDATE coupons SET order_id = NULL, used_at = NULL",
            "coupon-use",
            COUPON_1,
            "order 00000000-0000-7000-8000-000000000001",
            "not used",
        ),
        (
            "UPDATE coupons SET order_id = gen_random_uuid(), used_at = now() WHERE serial = 2",
            "coupon-use",
            COUPON_2,
            "not used",
            "of u2",
        ),
        ("UPDATE coupon_templates SET issued = 3", "template-counts", "t1", "1 to 3", "2 coupons"),
        (
            "UPDATE coupons SET serial = 3 WHERE serial = 2",
            "template-counts",
            "t1",
            "1 to 2",
            "1 to 3",
        ),
        ("DELETE FROM coupon_templates", "template-counts", "t1", "no template", "2 coupons"),
        (
            "UPDATE coupons SET expires_at = now() WHERE serial = 2",
            "coupon-expiry",
            COUPON_2,
            "",
            "",
        ),
        ("DELETE FROM outbox", "outbox-count", "outbox", "1", "0"),
        (
            "UPDATE outbox SET routing_key = 'order.completed'",
            "outbox-rows",
            ORDER_2,
            "cancelled",
            "order.completed",
        ),
        ("UPDATE cell_cursors SET events_written = 2", "events-written", "events", "3", "2"),
    ];
    for (plant, check, id, expected, found) in planted {
        execute(&shop.pool, plant).await;
        shop.expect(check, id, expected, found).await;
    }
    execute(&shop.pool, "UPDATE outbox SET event_id = 'x'").await;
    shop.expect("outbox-rows", "x", "the id of an order", "no order").await;
}

#[tokio::test]
async fn many_differences_are_counted_and_some_named_and_pages_are_bounded() {
    let shop = Shop::open().await;
    execute(
        &shop.pool,
        "INSERT INTO wallets SELECT 'w' || lpad(n::text, 5, '0'), 0, now() FROM generate_series(1, 2500) n",
    )
    .await;
    for first in [1, 1_001] {
        let fields: Vec<(String, i64)> =
            (first..first + 1_000).map(|n| (format!("w{n:05}"), 0)).collect();
        let _: i64 = shop.client.hset(KEYS.wallets(), fields).await.unwrap();
    }
    let report = shop.audit().await;
    let check = report.check("gate-wallets").unwrap();
    assert_eq!((check.looked_at, check.differences.len(), check.more), (2_502, 20, 480));
    assert_eq!(check.differences[0].id, "w02001");
    execute(&shop.pool, "DELETE FROM wallets WHERE user_id LIKE 'w%'").await;
    let report = shop.audit().await;
    let check = report.check("gate-wallets").unwrap();
    assert_eq!(check.differences.len() as i64 + check.more, 2_000);
}

#[tokio::test]
async fn cancelled_orders_are_looked_up_by_their_index() {
    let shop = Shop::open().await;
    let mut session = shop.pool.begin().await.unwrap();
    // From the sixth page on, PostgreSQL uses a generic plan for the audit's query. The test forces
    // one.
    let find = include_str!("../../src/audit/sql/find_orders.sql");
    let prepare = format!(
        "SET LOCAL plan_cache_mode = force_generic_plan; SET LOCAL enable_seqscan = off; PREPARE find (uuid[]) AS {find}"
    );
    sqlx::raw_sql(&prepare).execute(&mut *session).await.unwrap();
    let plan: Vec<String> =
        sqlx::query_scalar("EXPLAIN EXECUTE find ('{}')").fetch_all(&mut *session).await.unwrap();
    assert!(plan.iter().any(|line| line.contains("Index Cond: (order_id = ANY")), "{plan:#?}");
    session.rollback().await.unwrap();
}

/// Exit codes: 0 is clean, 1 is differences, and 2 means that the audit could not compare. In the
/// last case it must end in time and give the reason.
#[tokio::test]
async fn the_exit_code_says_what_became_of_an_audit() {
    let cluster = Cluster::servers().await;
    let instance = cluster.start().await;
    instance.done(&Request::charge("ann", 1_000)).await;
    let settings = &cluster.settings;
    let outcome = async |settings: &Settings, args: &[&str]| {
        let audit = settings.run(&[&["audit", "--wait", "2s"], args].concat()).await;
        assert!(audit.took < Duration::from_secs(30), "{audit:#?}");
        (audit.code, audit.stdout + &audit.stderr)
    };
    cluster.caught_up().await;
    assert_eq!(outcome(settings, &[]).await.0, 0);

    // Accepts connections and never answers.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let silent = format!("127.0.0.1:{}", silent.local_addr().unwrap().port());
    for (name, value) in [
        ("RUSHGATE_DATABASE_URL", "postgres://postgres@127.0.0.1:1/rushgate".to_owned()),
        ("RUSHGATE_DATABASE_URL", format!("postgres://postgres@{silent}/rushgate")),
        ("RUSHGATE_REDIS_URL", "redis://127.0.0.1:1".to_owned()),
        ("RUSHGATE_REDIS_URL", format!("redis://{silent}")),
        ("RUSHGATE_DATABASE_URL", "nonsense".to_owned()),
    ] {
        let (code, said) = outcome(&settings.with(name, value.as_str()), &[]).await;
        assert_eq!(code, 2, "{name}={value}: {said}");
        assert!(said.contains("\"message\"") && said.trim_end().lines().count() == 1, "{said}");
    }
    let mut locked = cluster.pool.begin().await.unwrap();
    sqlx::query("LOCK TABLE wallets").execute(&mut *locked).await.unwrap();
    let (code, said) = outcome(settings, &["--timeout", "2s"]).await;
    assert!(code == 2 && said.contains("--timeout"), "{code}: {said}");
    locked.rollback().await.unwrap();

    execute(&cluster.pool, "UPDATE cell_cursors SET halted_reason = 'a test'").await;
    let (code, said) = outcome(settings, &["--json"]).await;
    assert!(code == 2 && said.contains("\"not_compared\""), "{code}: {said}");
    execute(
        &cluster.pool,
        "UPDATE cell_cursors SET halted_reason = NULL; UPDATE wallets SET balance = 1",
    )
    .await;
    let (code, said) = outcome(settings, &[]).await;
    assert!(code == 1 && said.contains("ann: expected"), "{code}: {said}");
}
