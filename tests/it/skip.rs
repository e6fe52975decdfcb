//! Tests of `rushgate log skip`, and of `rushgate rebuild` with a log that PostgreSQL cannot apply,
//! on a real Redis and PostgreSQL.

use fred::prelude::*;
use rushgate::gate::*;

use rushgate::log::reader::LogReader;
use rushgate::reconciler::cursor::Cursor;
use rushgate::reconciler::quarantine::{self, Choice};
use rushgate::reconciler::{self, Reconciler, SkipError, StepOutcome};
use rushgate::redis::meta::Meta;
use sqlx::{Connection, PgConnection, PgPool};

use crate::cluster::Settings;
use crate::shop::*;
use crate::truth::{self, execute, number};

/// PostgreSQL refuses every charge of this amount.
const POISON: u64 = 777;
const PLANTED: &str = "ALTER TABLE wallet_entries ADD CONSTRAINT planted CHECK (amount <> 777)";

/// Steps until the cell halts. Returns the reason.
async fn halted(shop: &mut Shop) -> String {
    loop {
        match shop.reconciler.step().await.unwrap() {
            StepOutcome::Halted(reason) => return reason,
            StepOutcome::Applied(_) => {}
            other => panic!("{other:?}"),
        }
    }
}

/// Cat is charged an amount that PostgreSQL refuses, spends it, and is charged again; others
/// continue. Returns the number of the refused entry.
async fn poisoned() -> (Shop, u64) {
    let mut shop = Shop::open().await;
    shop.put_product("mug", 1_000, 50).await;
    shop.put_template(open_template("t", 10)).await;
    shop.charge("ann", 10_000).await;
    shop.charge("cat", 500).await;
    shop.apply_all().await;
    execute(&shop.pool, PLANTED).await;
    let charge = ChargeWallet { user_id: user("cat"), amount: POISON };
    shop.gate.charge_wallet(charge, key("cat", "the key"), soon()).await.unwrap().unwrap();
    let poison = shop.meta().await.seq;
    let coupon = shop.issue("t", "cat").await.unwrap().coupon_id.0;
    let order = PlaceOrder { coupon_id: Some(coupon), ..order("cat", &[("mug", 2)], None) };
    let dependent = shop.place(order).await.unwrap();
    assert_eq!((dependent.total, dependent.balance_after), (1_000, 277));
    shop.charge("cat", 50).await;
    let kept = shop.place(PlaceOrder { ..self::order("ann", &[("mug", 1)], None) }).await.unwrap();
    assert_eq!(kept.lines[0].stock_after, 47);
    (shop, poison)
}

async fn rows(pool: &PgPool) -> Vec<(String, String, String)> {
    let sql = "SELECT outcome, kind, user_id FROM quarantined_facts ORDER BY epoch, seq, fact";
    sqlx::query_as(sql).fetch_all(pool).await.unwrap()
}

fn row(outcome: &str, kind: &str, user: &str) -> (String, String, String) {
    (outcome.into(), kind.into(), user.into())
}

/// Checks what PostgreSQL holds after the charge from [`poisoned`] was skipped.
async fn assert_as_if_never_charged(shop: &Shop) {
    let expected = [
        row("skipped", "charge", "cat"),
        row("gone", "order", "cat"),
        row("changed", "charge", "cat"),
    ];
    assert_eq!(rows(&shop.pool).await, expected);
    assert_eq!(shop.balance("cat").await, Some(550));
    assert_eq!((shop.stock("mug").await, shop.balance("ann").await), (49, Some(9_000)));
    let held = shop.gate.held_coupons(&user("cat"), None, 10, None).await.unwrap().unwrap().value;
    assert!(
        held.len() == 1 && held[0].order_id.is_none(),
        "the coupon is hers, and unused: {held:?}"
    );
    assert_eq!(number(&shop.pool, "SELECT count(*) FROM orders").await, 1);
    shop.assert_audit_clean().await;
}

#[tokio::test]
async fn a_skipped_charge_takes_with_it_what_it_paid_for_and_nothing_else() {
    let (mut shop, poison) = poisoned().await;
    let reason = halted(&mut shop).await;
    let first = reason.find("mend the cause").unwrap();
    let last = reason.find(&format!("rushgate log skip --seq {poison} --fact 1")).unwrap();
    assert!(first < last && reason.contains("fact 1 of 1"), "{reason}");

    let mut operator = Reconciler::connect(&shop.servers, 0).await.unwrap();
    let other = operator.skip(poison + 1, Choice::One(1), "no").await;
    assert!(matches!(other, Err(SkipError::NotTheHalted { .. })), "{other:?}");
    let other = operator.skip(poison, Choice::One(2), "no").await;
    assert!(matches!(other, Err(SkipError::NoSuchFact { facts: 1, .. })), "{other:?}");
    assert_eq!(operator.skip(poison, Choice::One(1), "planted by a test").await.unwrap(), 1);
    assert_as_if_never_charged(&shop).await;

    let path = std::env::temp_dir().join(format!("rushgate-skip-{}.jsonl", uuid::Uuid::now_v7()));
    let told = operator.report_skipped(1, Some(path.clone())).await.unwrap();
    assert_eq!(told.facts, 3);
    let file = std::fs::read_to_string(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    let lines: Vec<serde_json::Value> =
        file.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let (skipped, gone, changed) = (&lines[0], &lines[1], &lines[2]);
    assert_eq!((&skipped["user_id"], &skipped["answered"]["amount"]), (&"cat".into(), &777.into()));
    assert_eq!(
        (&skipped["reason"], &skipped["idempotency_key"]),
        (&"planted by a test".into(), &true.into())
    );
    assert_eq!(skipped["holds"], serde_json::json!({ "exists": false, "balance": 550 }));
    assert!(
        gone["reason"].as_str().unwrap().contains("the wallet holds 500, the order costs 1000"),
        "{gone}"
    );
    assert_eq!(
        (&changed["answered"]["balance"], &changed["holds"]["corrected"]["balance"]),
        (&327.into(), &550.into())
    );
    assert!(!file.contains("the key"), "keys are secrets: {file}");

    // The key must not replay the lost charge: the charge is decided anew.
    execute(&shop.pool, "ALTER TABLE wallet_entries DROP CONSTRAINT planted").await;
    let charge = ChargeWallet { user_id: user("cat"), amount: POISON };
    let again =
        shop.gate.charge_wallet(charge, key("cat", "the key"), soon()).await.unwrap().unwrap();
    assert_eq!((again.replayed, again.fact.balance_after), (false, 1_327));
    while !matches!(shop.reconciler.step().await.unwrap(), StepOutcome::Idle) {}
    shop.assert_audit_clean().await;
    // When it is asked again, it finds the work done.
    assert_eq!(operator.skip(poison, Choice::One(1), "again").await.unwrap(), 1);
    assert_eq!(shop.meta().await.epoch, 2);
}

/// The skipping process dies at any point: after registering the skip, or after applying a part of
/// the log. A leader finishes the work.
#[tokio::test]
async fn a_skip_that_was_interrupted_is_finished_by_a_leader() {
    for applied_before in [0, 1, 2] {
        let (mut shop, poison) = poisoned().await;
        halted(&mut shop).await;
        let mut conn = PgConnection::connect(&shop.servers.database_url).await.unwrap();
        let reader = LogReader::connect(&shop.servers.redis_url, 0).await.unwrap();
        let cursor = Cursor::read(&mut conn, 0).await.unwrap();
        let entry = reader.after(1, poison - 1, 1).await.unwrap().remove(0);
        assert!(
            quarantine::register(&mut conn, &cursor, &entry, Choice::One(1), "a test")
                .await
                .unwrap()
        );
        assert!(
            !cursor.lock(&mut conn).await.unwrap(),
            "who has read the cursor before writes nothing"
        );
        // An open gate continues until the rebuild claims it; what is decided now is in the log
        // too.
        shop.charge("dan", 1).await;
        for _ in 0..applied_before {
            let cursor = Cursor::read(&mut conn, 0).await.unwrap();
            assert!(cursor.skipping);
            let entries = reader.after(1, cursor.seq, 2).await.unwrap();
            rushgate::reconciler::apply_differences(&mut conn, &cursor, &entries).await.unwrap();
        }
        // A version that does not know skipping cannot move the cursor.
        let old = "UPDATE cell_cursors SET seq = seq + 1 WHERE cell = 0";
        let refused = sqlx::query(old).execute(&mut conn).await.unwrap_err().to_string();
        assert!(refused.contains("this version cannot apply what follows"), "{refused}");

        let mut leader = Reconciler::connect(&shop.servers, 0).await.unwrap();
        assert_eq!(leader.step().await.unwrap(), StepOutcome::Rebuilt(2), "{applied_before}");
        assert_as_if_never_charged(&shop).await;
        assert_eq!(shop.balance("dan").await, Some(1));
        assert!(matches!(shop.reconciler.skip(poison, Choice::One(1), "again").await, Ok(1)));
    }
}

/// A batch of one script is one entry. The halt names the fact, and the batch's other facts are
/// applied.
#[tokio::test]
async fn of_a_batch_only_the_named_fact_is_left_out() {
    let mut shop = Shop::open().await;
    execute(&shop.pool, PLANTED).await;
    let names: Vec<String> = (0..40).map(|n| format!("u{n}")).collect();
    let charges = names.iter().enumerate().map(|(n, name)| {
        let amount = if n == 29 { POISON } else { 100 + n as u64 };
        shop.gate.charge_wallet(ChargeWallet { user_id: user(name), amount }, None, soon())
    });
    let told = futures::future::join_all(charges).await;
    assert!(told.into_iter().all(|told| told.unwrap().is_ok()));
    let reason = halted(&mut shop).await;
    let command = reason.split("rushgate log skip ").nth(1).unwrap();
    let words: Vec<&str> = command.trim_end_matches('`').split(' ').collect();
    let (seq, fact): (u64, usize) = (words[1].parse().unwrap(), words[3].parse().unwrap());
    let reader = LogReader::connect(&shop.servers.redis_url, 0).await.unwrap();
    let shown = show(&shop).await;
    let line = shown.lines().find(|line| line.contains(&format!("    fact {fact} "))).unwrap();
    assert!(line.contains("u29") && shown.contains("HALTED"), "{shown}");
    let facts = reader.after(1, seq - 1, 1).await.unwrap()[0].decode().unwrap().facts.len();
    assert!(facts > 2 && shown.contains(&format!("    fact {facts} ")), "a batch: {shown}");
    shop.reconciler.skip(seq, Choice::One(fact), "planted").await.unwrap();
    assert_eq!(rows(&shop.pool).await, [row("skipped", "charge", "u29")]);
    assert_eq!(number(&shop.pool, "SELECT count(*) FROM wallet_entries").await, 39);
    shop.assert_audit_clean().await;
}

/// `rushgate log show` as text and as JSON. The limit counts lines, and no key is shown.
#[tokio::test]
async fn log_show_prints_as_many_lines_as_it_is_allowed_and_json_where_it_is_asked_for() {
    let shop = Shop::open().await;
    let charges = (1..=30).map(|n| {
        let charge = ChargeWallet { user_id: user("ann"), amount: n };
        shop.gate.charge_wallet(charge, key("ann", &format!("the key {n}")), soon())
    });
    let told = futures::future::join_all(charges).await;
    assert!(told.into_iter().all(|told| told.unwrap().is_ok()));
    let settings = Settings::default()
        .with("RUSHGATE_REDIS_URL", &shop.servers.redis_url)
        .with("RUSHGATE_DATABASE_URL", &shop.servers.database_url);
    let show = async |limit: &str, more: &[&str]| {
        let args = [&["log", "show", "--limit", limit], more].concat();
        let shown = settings.run(&args).await.assert_success().stdout;
        assert!(!shown.contains("the key"), "keys are secrets: {shown}");
        shown
    };

    let json = show("1000", &["--json", "--seq", "1"]).await;
    let facts: Vec<serde_json::Value> =
        json.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let mut amounts: Vec<u64> =
        facts.iter().map(|fact| fact["answered"]["amount"].as_u64().unwrap()).collect();
    amounts.sort_unstable();
    assert_eq!(amounts, (1..=30).collect::<Vec<u64>>(), "one line for each fact: {json}");
    for fact in &facts {
        let (epoch, seq) = (fact["epoch"].as_u64().unwrap(), fact["seq"].as_u64().unwrap());
        assert_eq!((&fact["cell"], &fact["entry"]), (&0.into(), &format!("{epoch}-{seq}").into()));
        assert_eq!((&fact["kind"], &fact["user_id"]), (&"charge".into(), &"ann".into()));
        assert_eq!(
            (&fact["idempotency_key"], &fact["id"]),
            (&true.into(), &fact["answered"]["charge_id"])
        );
    }
    let batch =
        facts.iter().find(|fact| fact["fact"].as_u64() > Some(4)).expect("a batch is one entry");
    let seq = batch["seq"].as_u64().unwrap();
    let some = show("3", &["--json", "--seq", "1"]).await;
    assert_eq!(some.lines().collect::<Vec<_>>(), json.lines().take(3).collect::<Vec<_>>());

    let lines = |text: &str| {
        text.lines().filter(|line| line.contains("fact ") || line.contains("tip ")).count()
    };
    let text = show("1000", &["--seq", "1"]).await;
    assert!(lines(&text) > 30 && !text.contains("is reached"), "{text}");
    let some = show("4", &["--seq", &seq.to_string()]).await;
    assert!(lines(&some) == 4 && some.contains(&format!("go on with --seq {seq}")), "{some}");
}

/// If nothing is skipped, applying by differences writes the same as applying by after-images.
#[tokio::test]
async fn differences_and_after_images_lead_to_the_same_postgresql() {
    let mut shop = Shop::open().await;
    random_day(&shop, 1_500).await;
    let original = shop.servers.database_url.clone();
    let copy = backup(&mut shop).await;
    while !matches!(shop.reconciler.step().await.unwrap(), StepOutcome::Idle) {}
    let images = dump(&shop.pool).await;
    assert!(
        images.iter().all(|(table, rows)| rows.len() > 2 || *table == "products"),
        "{images:?}"
    );

    use_database(&mut shop, &copy).await;
    assert!(
        number(&shop.pool, "SELECT count(*) FROM orders").await == 0,
        "nothing is applied there"
    );
    execute(&shop.pool, "UPDATE cell_cursors SET skipping = true").await;
    assert_eq!(shop.reconciler.rebuild_now().await.unwrap(), StepOutcome::Rebuilt(2));
    let differences = dump(&shop.pool).await;
    for ((table, one), (_, other)) in images.iter().zip(&differences) {
        assert_eq!(one, other, "{table}");
    }
    assert_eq!(number(&shop.pool, "SELECT count(*) FROM quarantined_facts").await, 0);
    assert_ne!(original, copy);
    shop.assert_audit_clean().await;
}

/// All rows that entries lead to, as text.
async fn dump(pool: &PgPool) -> Vec<(&'static str, Vec<String>)> {
    macro_rules! tables {
        ($($table:literal),*) => {
            vec![$(($table, {
                let sql = concat!("SELECT row_to_json(t)::text FROM ", $table, " AS t ORDER BY 1");
                sqlx::query_scalar(sql).fetch_all(pool).await.unwrap()
            })),*]
        };
    }
    tables![
        "products",
        "stock_adjustments",
        "coupon_templates",
        "coupons",
        "wallets",
        "wallet_entries",
        "orders",
        "order_items",
        "idempotency_records",
        "outbox"
    ]
}

/// Concurrent requests of all kinds, none of which is applied.
async fn random_day(shop: &Shop, requests: usize) {
    let mut rng = fastrand::Rng::with_seed(11);
    for (id, price) in [("mug", 700), ("pen", 300), ("cap", 1_100)] {
        shop.put_product(id, price, 40).await;
    }
    for id in ["spring", "summer", "autumn"] {
        shop.put_template(open_template(id, 30)).await;
    }
    let (mut placed, mut coupons) = (vec![], vec![]);
    for round in 0..requests / 10 {
        let who = |rng: &mut fastrand::Rng| format!("u{}", rng.u8(..20));
        let charges: Vec<_> = (0..4).map(|_| (who(&mut rng), 100 * rng.u64(1..60))).collect();
        let charging = charges.iter().map(|(name, amount)| {
            let charge = ChargeWallet { user_id: user(name), amount: *amount };
            shop.gate.charge_wallet(charge, key(name, &format!("c{round}")), soon())
        });
        futures::future::join_all(charging).await;
        let name = who(&mut rng);
        if let Ok(coupon) = shop.issue(["spring", "summer", "autumn"][rng.usize(..3)], &name).await
        {
            coupons.push((name, coupon.coupon_id.0));
        }
        for _ in 0..4 {
            let (name, coupon) = match rng.choice(&coupons) {
                Some((name, id)) if rng.bool() => (name.clone(), Some(*id)),
                _ => (who(&mut rng), None),
            };
            let wanted = [(["mug", "pen", "cap"][rng.usize(..3)], rng.u64(1..3))];
            if let Ok(order) = shop.place(order(&name, &wanted, coupon)).await {
                placed.push(order);
            }
        }
        if !placed.is_empty() && rng.u8(..3) == 0 {
            let order = placed.swap_remove(rng.usize(..placed.len()));
            let _ = shop.cancel(&order).await;
        }
        if rng.u8(..5) == 0 {
            let adjust = AdjustStock {
                product_id: product(["mug", "pen", "cap"][rng.usize(..3)]),
                delta: rng.i64(-3..20),
                reason: None,
            };
            let _ = shop.gate.adjust_stock(adjust, None, soon()).await.unwrap();
        }
    }
}

/// Copies the database in its present state. The shop continues with the original.
async fn backup(shop: &mut Shop) -> String {
    shop.reconciler = Reconciler::connect(&shop.servers, 0).await.unwrap();
    let original = shop.servers.database_url.clone();
    let name: String =
        sqlx::query_scalar("SELECT current_database()").fetch_one(&shop.pool).await.unwrap();
    shop.pool.close().await;
    let mut session = PgConnection::connect(&truth::database_url("postgres").await).await.unwrap();
    let copy = format!("{name}_copy");
    let create = format!("CREATE DATABASE {copy} TEMPLATE {name}");
    // Instances query the database all the time, and PostgreSQL cannot copy a database that is in
    // use.
    let mut attempts = 0;
    loop {
        let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1";
        sqlx::query(end).bind(&name).execute(&mut session).await.unwrap();
        match sqlx::raw_sql(&create).execute(&mut session).await {
            Ok(_) => break,
            Err(e) => assert!(attempts < 50, "{e}"),
        }
        attempts += 1;
    }
    use_database(shop, &original).await;
    truth::database_url(&copy).await
}

async fn use_database(shop: &mut Shop, url: &str) {
    shop.servers.database_url = url.to_owned();
    shop.pool = PgPool::connect(url).await.unwrap();
    shop.reconciler = Reconciler::connect(&shop.servers, 0).await.unwrap();
    assert!(shop.reconciler.try_lead().await.unwrap());
}

/// Empties Redis: the next epoch begins where PostgreSQL stands.
async fn next_epoch(shop: &mut Shop) {
    let epoch = shop.meta().await.epoch;
    let _: () = shop.raw.flushall(false).await.unwrap();
    assert_eq!(shop.reconciler.step().await.unwrap(), StepOutcome::Rebuilt(epoch + 1));
}

#[tokio::test]
async fn a_log_that_begins_where_a_restored_postgresql_stands_is_applied() {
    let mut shop = Shop::open().await;
    shop.charge("ann", 1_000).await;
    shop.apply_all().await;
    let copy = backup(&mut shop).await;
    next_epoch(&mut shop).await;
    shop.charge("ann", 20).await;
    shop.apply_all().await;
    shop.charge("bob", 3).await; // PostgreSQL never had this one

    use_database(&mut shop, &copy).await;
    assert!(
        matches!(shop.reconciler.step().await.unwrap(), StepOutcome::Halted(_)),
        "nothing opens by itself"
    );
    let shown = show(&shop).await;
    assert!(
        shown.contains("epoch 2, applied up to 0")
            && shown.contains("`rushgate rebuild` applies this log"),
        "{shown}"
    );
    assert!(shown.contains("bob"), "{shown}");
    assert_eq!(shop.reconciler.rebuild_now().await.unwrap(), StepOutcome::Rebuilt(3));
    assert_eq!((shop.balance("ann").await, shop.balance("bob").await), (Some(1_020), Some(3)));
    assert_eq!(number(&shop.pool, "SELECT count(*) FROM quarantined_facts").await, 0);
    shop.assert_audit_clean().await;
}

async fn show(shop: &Shop) -> String {
    let mut conn = PgConnection::connect(&shop.servers.database_url).await.unwrap();
    let reader = LogReader::connect(&shop.servers.redis_url, 0).await.unwrap();
    let which = reconciler::log_admin::Which { from: None, limit: 200, json: false };
    reconciler::log_admin::show(&mut conn, &reader, which).await.unwrap().to_string()
}

#[tokio::test]
async fn a_log_that_a_restored_postgresql_cannot_follow_is_saved_before_it_is_removed() {
    let mut shop = Shop::open().await;
    shop.charge("ann", 1_000).await;
    shop.apply_all().await;
    let copy = backup(&mut shop).await;
    shop.charge("ann", 1).await; // lost with the original
    shop.apply_all().await;
    next_epoch(&mut shop).await;
    let ann = shop.charge("ann", 20).await;
    shop.apply_all().await;
    let bob = shop.charge("bob", 3).await;
    let held: Vec<String> = {
        let reader = LogReader::connect(&shop.servers.redis_url, 0).await.unwrap();
        reader.after(2, 0, 9).await.unwrap().iter().map(|entry| entry.tip.clone()).collect()
    };

    use_database(&mut shop, &copy).await;
    assert!(matches!(shop.reconciler.step().await.unwrap(), StepOutcome::Halted(_)));
    let shown = show(&shop).await;
    assert!(
        shown.contains("began after entry 2 of epoch 1") && shown.contains("cannot apply this log"),
        "{shown}"
    );

    // If the report cannot be written, nothing is removed.
    let nowhere = std::env::temp_dir().join("no such folder").join("lost.jsonl");
    let mut operator = Reconciler::connect(&shop.servers, 0).await.unwrap().reporting_to(nowhere);
    assert!(operator.rebuild_now().await.unwrap_err().to_string().contains("--report"));
    assert!(show(&shop).await.contains("bob"), "the log is still there");

    let path = std::env::temp_dir().join(format!("rushgate-lost-{}.jsonl", uuid::Uuid::now_v7()));
    let mut operator =
        Reconciler::connect(&shop.servers, 0).await.unwrap().reporting_to(path.clone());
    assert!(matches!(operator.rebuild_now().await.unwrap(), StepOutcome::Rebuilt(_)));
    let told = operator.told_lost().unwrap();
    assert_eq!((told.entries, told.facts), (2, 2), "{told:?}");
    let file = std::fs::read_to_string(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    let lines: Vec<serde_json::Value> =
        file.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 4, "{file}");
    for (line, tip) in lines.iter().zip(&held) {
        assert_eq!(line["tip"], tip.as_str());
        assert!(
            line["payload"].as_str().unwrap().len() > 20
                && line["reason"].as_str().unwrap().contains("epoch 2")
        );
    }
    for (line, charge) in lines[2..].iter().zip([&ann, &bob]) {
        assert_eq!(line["user_id"], charge.user_id.as_str());
        assert_eq!(line["id"], charge.charge_id.to_string());
        assert_eq!((&line["outcome"], &line["holds"]["exists"]), (&"lost".into(), &false.into()));
    }
    assert_eq!((shop.balance("ann").await, shop.balance("bob").await), (Some(1_000), None));
    let Meta { epoch, .. } = shop.meta().await;
    assert_eq!(number(&shop.pool, "SELECT epoch FROM cell_cursors").await.unsigned_abs(), epoch);
    shop.assert_audit_clean().await;
    // Reported once: the next rebuild has nothing to add.
    assert!(matches!(operator.rebuild_now().await.unwrap(), StepOutcome::Rebuilt(_)));
    assert_eq!(number(&shop.pool, "SELECT count(*) FROM quarantined_facts").await, 2);
}
