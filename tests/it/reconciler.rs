//! The reconciler: PostgreSQL applies the log once and in order, or not at all; and the gate is
//! rebuilt from PostgreSQL.

use std::collections::HashMap;
use std::time::Duration;

use bytes::Bytes;
use fred::prelude::*;
use rushgate::config::bounds::APPLY_ENTRIES;
use rushgate::domain::Discount;
use rushgate::gate::*;
use rushgate::log::RawEntry;
use rushgate::log::entry::chain_tip;
use rushgate::log::reader::LogReader;
use rushgate::reconciler::cursor::Cursor;
use rushgate::reconciler::quarantine::Choice;
use rushgate::reconciler::{self, Reconciler, StepOutcome};
use rushgate::redis::control::{ADVANCE_WATERMARK, CLAIM_EPOCH, OPEN_EPOCH};
use rushgate::redis::keys::Keys;
use rushgate::redis::meta::Meta;
use sqlx::{Connection, PgConnection};

use crate::cluster::eventually;
use crate::shop::*;
use crate::truth::{execute, number};

/// A shop with one of everything, in which the coupon is used.
async fn busy_shop() -> Shop {
    let mut shop = Shop::open().await;
    shop.put_product("mug", 1_000, 50).await;
    shop.put_template(open_template("t", 10)).await;
    shop.put_template(PutTemplate {
        discount: Discount::Percent { value: 10, max: Some(500) },
        ..open_template("u", 3)
    })
    .await;
    for name in ["ann", "bob"] {
        let charge = ChargeWallet { user_id: user(name), amount: 20_000 };
        shop.gate.charge_wallet(charge, key(name, "charge"), soon()).await.unwrap().unwrap();
        shop.issue("u", name).await.unwrap();
    }
    let coupon = shop.issue("t", "ann").await.unwrap().coupon_id.0;
    let kept = shop.place(order("ann", &[("mug", 3)], Some(coupon))).await.unwrap();
    let cancelled = shop.place(order("bob", &[("mug", 2)], None)).await.unwrap();
    shop.apply_all().await;
    shop.cancel(&cancelled).await.unwrap();
    shop.apply_all().await;
    assert_eq!(kept.total, 2_000);
    shop
}

/// Everything that the gate answers about the busy shop.
async fn told(shop: &Shop) -> String {
    let mut told = String::new();
    for name in ["ann", "bob"] {
        let held =
            shop.gate.held_coupons(&user(name), None, 100, None).await.unwrap().unwrap().value;
        told += &format!("{:?} {held:?}\n", shop.balance(name).await);
    }
    told += &format!("{:?}\n", shop.gate.list_products(None, 10).await.unwrap());
    told + &format!("{:?}", shop.gate.list_templates(None, 10).await.unwrap().value)
}

impl Shop {
    async fn second_reconciler(&self) -> Reconciler {
        Reconciler::connect(&self.servers, 0).await.unwrap()
    }

    async fn entry(&self, seq: u64) -> RawEntry {
        let reader = LogReader::connect(&self.servers.redis_url, 0).await.unwrap();
        reader.after(self.meta().await.epoch, seq - 1, 1).await.unwrap().remove(0)
    }

    async fn entry_payload(&self, seq: u64) -> Vec<u8> {
        self.entry(seq).await.payload
    }

    /// Adds an entry to Redis' log that no script has written.
    async fn forge(&self, payload: Vec<u8>, tip: String) {
        let Meta { epoch, seq, .. } = self.meta().await;
        let id = format!("{epoch}-{}", seq + 1);
        let fields: HashMap<&str, Bytes> =
            [("p", payload.into()), ("t", tip.clone().into())].into();
        let _: String =
            self.raw.xadd(self.keys().await.log(), true, None::<()>, id, fields).await.unwrap();
        let _: i64 = self
            .raw
            .hset(Keys::meta(0), [("seq", (seq + 1).to_string()), ("tip", tip)])
            .await
            .unwrap();
    }
}

#[tokio::test]
async fn after_a_wiped_redis_the_gate_is_as_before() {
    let mut shop = busy_shop().await;
    shop.assert_audit_clean().await;
    let before = told(&shop).await;
    let _: () = shop.raw.flushall(false).await.unwrap();
    assert!(matches!(shop.gate.balance(&user("ann")).await, Err(GateError::Unavailable(_))));
    assert_eq!(shop.reconciler.step().await.unwrap(), StepOutcome::Rebuilt(2));
    assert_eq!(told(&shop).await, before);
    shop.assert_audit_clean().await;

    // A key that was used before still returns its answer.
    let charge = ChargeWallet { user_id: user("ann"), amount: 20_000 };
    assert!(
        shop.gate
            .charge_wallet(charge, key("ann", "charge"), soon())
            .await
            .unwrap()
            .unwrap()
            .replayed
    );
    // Serials continue, held coupons are known, and new decisions are applied.
    assert!(matches!(shop.issue("t", "ann").await, Err(IssueRefusal::AlreadyIssued(_))));
    assert_eq!(shop.issue("t", "bob").await.unwrap().serial, 2);
    shop.put_template(open_template("later", 1)).await;
    shop.issue("later", "bob").await.unwrap();
    shop.apply_all().await;
    shop.assert_audit_clean().await;
}

#[tokio::test]
async fn a_rebuild_by_hand_loses_nothing_that_was_only_in_the_log() {
    let mut shop = busy_shop().await;
    shop.charge("cat", 700).await;
    shop.place(order("ann", &[("mug", 1)], None)).await.unwrap();
    let before = told(&shop).await;
    assert_eq!(shop.reconciler.rebuild_now().await.unwrap(), StepOutcome::Rebuilt(2));
    assert_eq!((told(&shop).await, shop.balance("cat").await), (before, Some(700)));
    let (_, keys): (String, Vec<String>) =
        shop.raw.scan_page("0", "*", Some(1_000), None).await.unwrap();
    assert!(keys.iter().all(|k| k == "rg:{0}:meta" || k.starts_with("rg:{0}:2:")), "{keys:?}");
    shop.apply_all().await;
    shop.assert_audit_clean().await;
}

#[tokio::test]
async fn a_restart_goes_on_in_the_same_epoch() {
    let mut shop = busy_shop().await;
    shop.charge("ann", 1).await;
    let mut next = shop.second_reconciler().await;
    assert!(!next.try_lead().await.unwrap(), "the first still leads");
    // The first reconciler is dropped, and its lock ends with its connection. The cursor protects
    // the data in any case.
    shop.reconciler = shop.second_reconciler().await;
    assert!(matches!(next.step().await.unwrap(), StepOutcome::Applied(1)));
    assert_eq!(shop.meta().await.epoch, 1);
    shop.assert_audit_clean().await;
}

#[tokio::test]
async fn two_leaders_apply_each_entry_once() {
    let shop = Shop::open().await;
    let (mut one, mut two) = (shop.second_reconciler().await, shop.second_reconciler().await);
    for round in 0..20 {
        for n in 0..5 {
            shop.charge(&format!("u{n}"), round + 1).await;
        }
        let (a, b) = tokio::join!(one.step(), two.step());
        for step in [a.unwrap(), b.unwrap()] {
            assert!(
                matches!(
                    step,
                    StepOutcome::Applied(_) | StepOutcome::Idle | StepOutcome::Superseded
                ),
                "{step:?}"
            );
        }
    }
    while one.step().await.unwrap() != StepOutcome::Idle {}
    assert_eq!(number(&shop.pool, "SELECT count(*) FROM wallet_entries").await, 100);
    shop.assert_audit_clean().await;
}

/// PostgreSQL's own time limits end an idle session, but not one that waits for the rows of a COPY.
#[tokio::test]
async fn a_leader_that_stands_still_within_a_copy_is_ended_by_a_stand_by() {
    let shop = Shop::open().await;
    let (mut leader, mut stand_by) = (
        PgConnection::connect(&shop.servers.database_url).await.unwrap(),
        shop.second_reconciler().await,
    );
    let lock = "SELECT pg_advisory_lock(x'726763656c6c0000'::bit(64)::bigint)";
    sqlx::query(lock).execute(&mut leader).await.unwrap();
    assert!(!stand_by.end_stuck_leader(Duration::ZERO).await.unwrap(), "it is idle");
    let copying =
        leader.copy_in_raw("COPY wallets (user_id, balance, updated_at) FROM STDIN").await.unwrap();
    assert!(
        !stand_by.end_stuck_leader(Duration::from_secs(3_600)).await.unwrap(),
        "not for so long"
    );
    assert!(!stand_by.try_lead().await.unwrap());
    assert!(stand_by.end_stuck_leader(Duration::ZERO).await.unwrap());
    let held = "SELECT count(*) FROM pg_locks l JOIN pg_database d ON d.oid = l.database
        WHERE locktype = 'advisory' AND datname = current_database()";
    eventually("its lock is free", async || (number(&shop.pool, held).await == 0).then_some(()))
        .await;
    assert!(stand_by.try_lead().await.unwrap());
    assert!(copying.finish().await.is_err());
}

#[tokio::test]
async fn two_rebuilds_at_once_open_one_epoch() {
    let mut shop = busy_shop().await;
    let before = told(&shop).await;
    let (mut one, mut two) = (shop.second_reconciler().await, shop.second_reconciler().await);
    let (a, b) = tokio::join!(one.rebuild_now(), two.rebuild_now());
    let outcomes = [a.unwrap(), b.unwrap()];
    assert!(outcomes.iter().any(|s| matches!(s, StepOutcome::Rebuilt(_))), "{outcomes:?}");
    while !matches!(shop.reconciler.step().await.unwrap(), StepOutcome::Idle) {}
    assert_eq!(told(&shop).await, before);
    shop.charge("ann", 1).await;
    shop.apply_all().await;
    shop.assert_audit_clean().await;
}

/// Rebuilders claim, open and overtake each other while charges come in. Acknowledged charges
/// survive.
#[tokio::test]
async fn rebuilds_under_traffic_lose_nothing_that_was_acknowledged() {
    const REBUILDS: u64 = 25;
    let mut shop = Shop::open().await;
    let rebuilders = [shop.second_reconciler().await, shop.second_reconciler().await];
    let rebuilding = rebuilders.map(|mut reconciler| {
        tokio::spawn(async move {
            for n in 0..REBUILDS {
                let step = reconciler.rebuild_now().await.unwrap();
                assert!(
                    matches!(step, StepOutcome::Rebuilt(_) | StepOutcome::Superseded),
                    "{step:?}"
                );
                // Pauses of different lengths, so that the two meet at different points.
                tokio::time::sleep(Duration::from_millis(n % 5 * 3)).await;
            }
        })
    });
    let (mut acknowledged, mut unknown, mut refused) = (0, 0, 0);
    while !rebuilding.iter().all(tokio::task::JoinHandle::is_finished) {
        let charge = ChargeWallet { user_id: user("ann"), amount: 1 };
        match shop.gate.charge_wallet(charge, None, soon()).await {
            Ok(accepted) => acknowledged += accepted.unwrap().fact.amount,
            Err(GateError::OutcomeUnknown) => unknown += 1,
            Err(_) => refused += 1,
        }
    }
    for task in rebuilding {
        task.await.unwrap();
    }
    while shop.reconciler.step().await.unwrap() != StepOutcome::Idle {}
    let balance = shop.balance("ann").await.unwrap();
    println!(
        "{acknowledged} acknowledged, {unknown} unknown, {refused} refused; balance {balance}"
    );
    assert!(acknowledged > 0 && refused > 0, "there was traffic, and it met closed gates");
    assert!((acknowledged..=acknowledged + unknown).contains(&balance));
    shop.assert_audit_clean().await;
}

#[tokio::test]
async fn a_late_claim_applies_what_an_earlier_rebuild_has_opened_meanwhile() {
    let mut shop = Shop::open().await;
    shop.charge("ann", 100).await;
    shop.apply_all().await;
    // A slow rebuilder has read the state while another one had claimed epoch 2.
    let mut conn = PgConnection::connect(&shop.servers.database_url).await.unwrap();
    let cursor = Cursor::read(&mut conn, 0).await.unwrap();
    let seen = Meta { claim: 2, ..shop.meta().await };
    // Meanwhile the other one opens that epoch, and a success is acknowledged that only its log
    // has.
    assert_eq!(
        shop.second_reconciler().await.rebuild_now().await.unwrap(),
        StepOutcome::Rebuilt(2)
    );
    shop.charge("ann", 11).await;
    let step = shop.reconciler.rebuild(&cursor, &seen, "slow").await.unwrap();
    assert_eq!(step, StepOutcome::Rebuilt(3));
    assert_eq!(shop.balance("ann").await, Some(111));
    shop.assert_audit_clean().await;
}

#[tokio::test]
async fn a_claim_that_redis_has_forgotten_opens_nothing() {
    let mut shop = Shop::open().await;
    shop.charge("ann", 100).await;
    shop.apply_all().await;
    let mut conn = PgConnection::connect(&shop.servers.database_url).await.unwrap();
    let cursor = Cursor::read(&mut conn, 0).await.unwrap();
    assert_eq!(
        shop.second_reconciler().await.rebuild_now().await.unwrap(),
        StepOutcome::Rebuilt(2)
    );
    let _: () = shop.raw.flushall(false).await.unwrap();
    // The emptied Redis would grant epoch 2 a second time; the cursor does not.
    let step = shop.reconciler.rebuild(&cursor, &Meta::default(), "slow").await.unwrap();
    assert_eq!(step, StepOutcome::Superseded);
    assert!(shop.meta().await.absent());
    assert_eq!(shop.reconciler.step().await.unwrap(), StepOutcome::Rebuilt(3));
    assert_eq!(shop.balance("ann").await, Some(100));
}

#[tokio::test]
async fn an_epoch_opens_only_when_all_that_was_loaded_is_there() {
    let mut shop = busy_shop().await;
    let keys = Keys::new(0, 2);
    assert!(CLAIM_EPOCH.call(&shop.raw, vec![Keys::meta(0)], vec!["2".into()]).await.unwrap());
    // As if a replica that lacks some data had been promoted while the epoch was loaded: one wallet
    // of two is there.
    let _: i64 = shop.raw.hset(keys.wallets(), ("ann", 1)).await.unwrap();
    let open = async |wallets: &str| {
        let names = vec![Keys::meta(0), keys.log(), keys.wallets()];
        let args = ["2", "tip", "0", "2", "1-0 tip", wallets].map(String::from).to_vec();
        OPEN_EPOCH.call(&shop.raw, names, args).await.unwrap()
    };
    assert!(!open("2").await);
    assert_eq!((shop.meta().await.epoch, shop.meta().await.state.as_str()), (1, "closed"));
    assert_eq!(shop.reconciler.step().await.unwrap(), StepOutcome::Rebuilt(3));
    shop.assert_audit_clean().await;
}

#[tokio::test]
async fn the_watermark_follows_and_the_log_is_trimmed_behind_it() {
    let mut shop = Shop::open().await;
    for n in 0..1_300 {
        shop.charge(&format!("u{}", n % 7), 1).await;
        if n % 200 == 199 {
            shop.apply_all().await;
        }
    }
    shop.apply_all().await;
    let meta = shop.meta().await;
    assert_eq!((meta.seq, meta.applied), (1_300, 1_300));
    let length: u64 = shop.raw.xlen(shop.keys().await.log()).await.unwrap();
    assert!((1_000..1_300).contains(&length), "{length}");
    shop.assert_audit_clean().await;
}

#[tokio::test]
async fn a_watermark_that_was_not_told_is_told_by_the_next_step() {
    let mut shop = busy_shop().await;
    let applied = shop.meta().await.applied;
    let _: i64 = shop.raw.hset(Keys::meta(0), ("applied", 0)).await.unwrap();
    assert_eq!(shop.reconciler.step().await.unwrap(), StepOutcome::Idle);
    assert_eq!(shop.meta().await.applied, applied);
}

#[tokio::test]
async fn a_poison_entry_halts_the_cell_and_is_skipped_by_hand() {
    let mut shop = busy_shop().await;
    // A conflict that the gate does not know: PostgreSQL will refuse cat's coupon.
    execute(
        &shop.pool,
        "INSERT INTO coupons (coupon_id, template_id, user_id, serial, issued_at, expires_at)
         VALUES (gen_random_uuid(), 't', 'cat', 9, now(), now())",
    )
    .await;
    shop.charge("cat", 100).await;
    shop.issue("t", "cat").await.unwrap();
    shop.charge("cat", 200).await;
    let mut steps = vec![];
    let reason = loop {
        match shop.reconciler.step().await.unwrap() {
            StepOutcome::Halted(reason) => break reason,
            step => steps.push(step),
        }
    };
    assert_eq!(steps, [StepOutcome::Applied(1)], "what comes before it goes in");
    assert!(reason.contains("log skip") && reason.contains("duplicate key"), "{reason}");
    assert_eq!(number(&shop.pool, "SELECT balance FROM wallets WHERE user_id = 'cat'").await, 100);
    assert_eq!(shop.charge("cat", 1).await.balance_after, 301, "the gate stays open");
    assert!(!shop.audit().await.clean);
    // A rebuild would lose the entries after it.
    assert!(matches!(shop.reconciler.rebuild_now().await.unwrap(), StepOutcome::Halted(_)));
    assert_eq!(shop.meta().await.state, "open");

    let mut conn = PgConnection::connect(&shop.servers.database_url).await.unwrap();
    let reader = LogReader::connect(&shop.servers.redis_url, 0).await.unwrap();
    let which = reconciler::log_admin::Which { from: None, limit: 20, json: false };
    let shown = reconciler::log_admin::show(&mut conn, &reader, which).await.unwrap().to_string();
    assert!(shown.contains("HALTED") && shown.contains("cat"), "{shown}");
    let poison = shop.meta().await.seq - 2;
    let mut operator = shop.second_reconciler().await;
    assert!(
        operator.skip(poison + 1, Choice::One(1), "no").await.is_err(),
        "only the one it is halted at"
    );
    operator.skip(poison, Choice::One(1), "planted by a test").await.unwrap();
    assert!(
        operator.skip(poison + 1, Choice::One(1), "no").await.is_err(),
        "it is not halted any more"
    );
    assert_eq!(shop.meta().await.epoch, 2, "what follows is applied, and the gate built anew");
    shop.apply_all().await;
    assert_eq!(number(&shop.pool, "SELECT balance FROM wallets WHERE user_id = 'cat'").await, 301);
    assert_eq!(number(&shop.pool, "SELECT count(*) FROM quarantined_facts").await, 1);
}

/// A leader resumes without a restart once the cause is repaired.
#[tokio::test]
async fn a_halted_leader_tries_again_by_itself() {
    let mut shop = Shop::open().await;
    execute(&shop.pool, "ALTER TABLE wallet_entries ADD CONSTRAINT planted CHECK (amount <> 777)")
        .await;
    shop.charge("ann", 777).await;
    assert!(matches!(shop.reconciler.step().await.unwrap(), StepOutcome::Halted(_)));
    assert!(matches!(shop.reconciler.step().await.unwrap(), StepOutcome::Halted(_)));
    execute(&shop.pool, "ALTER TABLE wallet_entries DROP CONSTRAINT planted").await;
    let started = std::time::Instant::now();
    while !matches!(shop.reconciler.step().await.unwrap(), StepOutcome::Applied(1)) {
        assert!(started.elapsed() < Duration::from_secs(60));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(
        number(&shop.pool, "SELECT count(*) FROM cell_cursors WHERE halted_reason IS NULL").await,
        1
    );
    shop.assert_audit_clean().await;
}

#[tokio::test]
async fn an_entry_that_cannot_be_read_halts_too() {
    let mut shop = Shop::open().await;
    shop.charge("ann", 5).await;
    let payload = b"not MessagePack at all".to_vec();
    let tip = chain_tip(&shop.meta().await.tip, &payload);
    shop.forge(payload, tip).await;
    assert_eq!(shop.reconciler.step().await.unwrap(), StepOutcome::Applied(1));
    let halted = shop.reconciler.step().await.unwrap();
    assert!(
        matches!(&halted, StepOutcome::Halted(why) if why.contains("cannot be decoded")),
        "{halted:?}"
    );
    assert!(
        matches!(&halted, StepOutcome::Halted(why) if why.contains("--seq 2 --fact all")),
        "{halted:?}"
    );
    shop.charge("ann", 3).await;
    let by_number = shop.reconciler.skip(2, Choice::One(1), "no").await;
    assert!(by_number.unwrap_err().to_string().contains("--fact all"));
    assert_eq!(shop.reconciler.skip(2, Choice::All, "planted by a test").await.unwrap(), 1);
    assert_eq!(shop.balance("ann").await, Some(8), "what follows goes in");
    assert_eq!(number(&shop.pool, "SELECT count(*) FROM log_quarantine").await, 1);
    shop.assert_audit_clean().await;
}

#[tokio::test]
async fn a_broken_chain_is_not_applied_and_the_gate_is_rebuilt() {
    let mut shop = Shop::open().await;
    shop.charge("ann", 1_000).await;
    shop.apply_all().await;
    // A forged entry: ann's charge again, with a tip that does not follow.
    let payload = shop.entry_payload(1).await;
    shop.forge(payload, "0".repeat(40)).await;
    let _ = shop.reconciler.step().await.unwrap();
    assert_eq!(shop.meta().await.state, "closed");
    assert_eq!(shop.reconciler.step().await.unwrap(), StepOutcome::Rebuilt(2));
    assert_eq!(number(&shop.pool, "SELECT count(*) FROM wallet_entries").await, 1);
    assert_eq!(shop.balance("ann").await, Some(1_000));
    shop.assert_audit_clean().await;
}

#[tokio::test]
async fn a_redis_that_lost_its_tail_is_rebuilt_even_when_it_was_refilled() {
    let mut shop = Shop::open().await;
    shop.charge("ann", 1_000).await;
    let early: HashMap<String, String> = shop.raw.hgetall(Keys::meta(0)).await.unwrap();
    shop.charge("ann", 1_000).await;
    shop.apply_all().await;
    // Redis goes back by one entry, and another charge takes the place of the lost one.
    let keys = shop.keys().await;
    let _: i64 = shop.raw.xdel(keys.log(), "1-2").await.unwrap();
    let _: () = shop.raw.xtrim(keys.log(), ("MAXLEN", "=", 10)).await.unwrap();
    let _: () =
        shop.raw.custom(fred::cmd!("XSETID"), vec![keys.log(), "1-1".into()]).await.unwrap();
    let _: i64 = shop.raw.hset(keys.wallets(), ("ann", 1_000)).await.unwrap();
    let _: i64 = shop.raw.hset(Keys::meta(0), early).await.unwrap();
    let fresh = Gate::with_limits(&shop.servers, LIMITS).await.unwrap();
    let charge = ChargeWallet { user_id: user("bob"), amount: 77 };
    fresh.charge_wallet(charge, None, soon()).await.unwrap().unwrap();
    assert_eq!(shop.reconciler.step().await.unwrap(), StepOutcome::Rebuilt(2));
    assert_eq!((shop.balance("ann").await, shop.balance("bob").await), (Some(2_000), None));
    shop.assert_audit_clean().await;
}

/// Two batches and two more entries in the log. The first batch is applied, and the second has been
/// prefetched.
async fn shop_read_ahead() -> (Shop, u64) {
    let mut shop = Shop::open().await;
    for _ in 0..2 * APPLY_ENTRIES + 2 {
        shop.charge("ann", 1).await;
    }
    assert_eq!(shop.reconciler.step().await.unwrap(), StepOutcome::Applied(APPLY_ENTRIES as usize));
    assert!(!shop.reconciler.is_level());
    (shop, APPLY_ENTRIES)
}

#[tokio::test]
async fn what_was_read_ahead_is_applied_though_the_log_has_been_trimmed_meanwhile() {
    let (mut shop, batch) = shop_read_ahead().await;
    let log = shop.keys().await.log();
    let read: Vec<String> = (batch + 1..=2 * batch).map(|seq| format!("1-{seq}")).collect();
    assert_eq!(shop.raw.xdel::<u64, _, _>(log, read).await.unwrap(), batch);
    assert_eq!(shop.reconciler.step().await.unwrap(), StepOutcome::Applied(batch as usize));
    assert!(!shop.reconciler.is_level());
    assert_eq!(shop.reconciler.step().await.unwrap(), StepOutcome::Applied(2));
    assert!(shop.reconciler.is_level());
    assert_eq!(
        number(&shop.pool, "SELECT count(*) FROM wallet_entries").await,
        2 * batch as i64 + 2
    );
    shop.assert_audit_clean().await;
}

#[tokio::test]
async fn what_was_read_ahead_is_dropped_when_redis_has_lost_it_and_went_on() {
    let (mut shop, batch) = shop_read_ahead().await;
    // Redis goes back to the state after the first batch, and another charge takes the place of the
    // first lost entry.
    let (keys, tip) = (shop.keys().await, shop.entry(batch).await.tip);
    let lost: Vec<String> = (batch + 1..=2 * batch + 2).map(|seq| format!("1-{seq}")).collect();
    let _: i64 = shop.raw.xdel(keys.log(), lost).await.unwrap();
    let id = format!("1-{batch}");
    let _: () = shop.raw.custom(fred::cmd!("XSETID"), vec![keys.log(), id]).await.unwrap();
    let _: i64 = shop.raw.hset(keys.wallets(), ("ann", batch.to_string())).await.unwrap();
    let meta = [("seq", batch.to_string()), ("tip", tip)];
    let _: i64 = shop.raw.hset(Keys::meta(0), meta.to_vec()).await.unwrap();
    let fresh = Gate::with_limits(&shop.servers, LIMITS).await.unwrap();
    let charge = ChargeWallet { user_id: user("bob"), amount: 77 };
    fresh.charge_wallet(charge, None, soon()).await.unwrap().unwrap();
    assert_eq!(shop.reconciler.step().await.unwrap(), StepOutcome::Applied(1));
    let balances = "SELECT sum(balance)::bigint FROM wallets";
    assert_eq!(number(&shop.pool, balances).await, batch as i64 + 77);
    fresh.close().await;
    shop.assert_audit_clean().await;
}

#[tokio::test]
async fn the_watermark_is_not_told_to_a_redis_that_holds_another_entry() {
    let shop = Shop::open().await;
    shop.charge("ann", 1_000).await;
    shop.charge("ann", 1_000).await;
    let (meta, keys) = (shop.meta().await, shop.keys().await);
    let advance = |seq: u64, tip: String| {
        let (names, args) =
            (vec![Keys::meta(0), keys.log()], vec!["1".into(), seq.to_string(), tip, "0".into()]);
        ADVANCE_WATERMARK.call(&shop.raw, names, args)
    };
    let first = shop.entry(1).await.tip;
    for (seq, tip) in [(1, "f".repeat(40)), (2, first.clone()), (3, meta.tip.clone())] {
        assert!(!advance(seq, tip).await.unwrap(), "entry {seq} is another, or not there");
        assert_eq!(shop.meta().await, meta);
    }
    assert!(advance(1, first).await.unwrap());
    assert_eq!(shop.meta().await.applied, 1);
    assert!(advance(2, meta.tip).await.unwrap());
    assert_eq!(shop.meta().await.applied, 2);
}

#[tokio::test]
async fn a_log_without_its_meta_is_applied_before_the_rebuild() {
    for wrong_type in [false, true] {
        let mut shop = Shop::open().await;
        shop.charge("ann", 1_000).await;
        shop.apply_all().await;
        shop.charge("ann", 500).await;
        let _: i64 = shop.raw.del(Keys::meta(0)).await.unwrap();
        if wrong_type {
            let _: () = shop.raw.set(Keys::meta(0), "no hash", None, None, false).await.unwrap();
        }
        assert_eq!(shop.reconciler.step().await.unwrap(), StepOutcome::Rebuilt(2));
        assert_eq!(shop.balance("ann").await, Some(1_500), "what was answered is there");
        shop.assert_audit_clean().await;
    }
}

#[tokio::test]
async fn a_read_that_meets_a_key_of_a_wrong_type_closes_the_cell() {
    let mut shop = Shop::open().await;
    shop.put_product("mug", 1_000, 5).await;
    shop.apply_all().await;
    let ids = shop.keys().await.product_ids();
    let _: () = shop.raw.set(ids, "no sorted set", None, None, false).await.unwrap();
    assert!(matches!(shop.gate.list_products(None, 10).await, Err(GateError::Unavailable(_))));
    assert_eq!(shop.meta().await.state, "closed");
    assert_eq!(shop.reconciler.step().await.unwrap(), StepOutcome::Rebuilt(2));
    assert_eq!(shop.gate.list_products(None, 10).await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_log_or_meta_that_somebody_else_wrote_to_is_rebuilt() {
    let mut shop = Shop::open().await;
    shop.charge("ann", 1_000).await;
    shop.apply_all().await;
    for n in 0..4 {
        let (keys, meta) = (shop.keys().await, Keys::meta(0));
        match n {
            0 => {
                let _: i64 = shop.raw.del(keys.log()).await.unwrap();
                let _: () = shop.raw.set(keys.log(), "no log", None, None, false).await.unwrap();
            }
            1 => {
                let field: HashMap<&str, &str> = [("a", "b")].into();
                let _: String =
                    shop.raw.xadd(keys.log(), true, None::<()>, "*", field).await.unwrap();
            }
            2 => {
                let _: i64 = shop.raw.del(meta.as_str()).await.unwrap();
                let _: () = shop.raw.set(meta, "no hash", None, None, false).await.unwrap();
            }
            _ => {
                // The log vanishes with an entry that PostgreSQL lacks, and no more requests
                // arrive.
                shop.charge("ann", 5).await;
                let _: i64 = shop.raw.del(keys.log()).await.unwrap();
            }
        }
        let charge = ChargeWallet { user_id: user("ann"), amount: 1 };
        if n < 3 {
            assert!(shop.gate.charge_wallet(charge, None, soon()).await.is_err(), "{n}");
        }
        let mut steps = 0;
        while !matches!(shop.reconciler.step().await.unwrap(), StepOutcome::Rebuilt(_)) {
            steps += 1;
            assert!(steps < 5, "{n}: not rebuilt");
        }
        assert_eq!(shop.balance("ann").await, Some(1_000), "{n}");
        shop.assert_audit_clean().await;
    }
}

#[tokio::test]
async fn a_gate_that_is_full_is_relieved_once_postgresql_follows() {
    let mut shop = Shop::open().await;
    shop.charge("ann", 1_000).await;
    let _: () = shop.raw.config_set("maxmemory", "1").await.unwrap();
    assert_eq!(shop.reconciler.step().await.unwrap(), StepOutcome::Applied(1));
    let meta = shop.meta().await;
    assert_eq!((meta.seq, meta.applied), (1, 1));
    let _: () = shop.raw.config_set("maxmemory", "0").await.unwrap();
}

#[tokio::test]
async fn template_numbers_are_never_given_twice() {
    let mut shop = Shop::open().await;
    for id in ["a", "b", "c"] {
        shop.put_template(open_template(id, 5)).await;
    }
    shop.apply_all().await;
    // As after a skipped entry.
    execute(&shop.pool, "DELETE FROM coupon_templates WHERE template_id = 'b'").await;
    let _: () = shop.raw.flushall(false).await.unwrap();
    assert_eq!(shop.reconciler.step().await.unwrap(), StepOutcome::Rebuilt(2));
    assert_eq!(shop.put_template(open_template("d", 5)).await.number, 4);
    shop.apply_all().await;
}

#[tokio::test]
async fn the_audit_misses_a_record_that_the_gate_has_forgotten() {
    let shop = busy_shop().await;
    shop.assert_audit_clean().await;
    let day = shop.meta().await.clock_ms.div_euclid(rushgate::redis::keys::DAY_MS);
    let bucket = shop.keys().await.idempotency(day);
    let _: i64 = shop.raw.hdel(bucket, "ann charge").await.unwrap();
    let report = shop.audit().await;
    let check = report.check("gate-records").unwrap();
    assert_eq!(
        (check.differences[0].expected.as_str(), check.differences[0].found.as_str()),
        ("2", "1")
    );
}

#[tokio::test]
async fn what_is_old_is_tidied_away_and_what_is_young_stays() {
    let shop = busy_shop().await;
    let keys = shop.keys().await;
    let day = shop.meta().await.clock_ms.div_euclid(rushgate::redis::keys::DAY_MS);
    let _: i64 = shop.raw.hset(keys.idempotency(day - 2), ("x", "y")).await.unwrap();
    let _: i64 = shop.raw.hset("rg:{0}:0:wallets", ("x", 1)).await.unwrap();
    execute(
        &shop.pool,
        "INSERT INTO idempotency_records
         VALUES ('old key', decode(repeat('00', 16), 'hex'), '', now() - interval '26 hours')",
    )
    .await;
    assert!(!shop.reconciler.housekeeping().round().await, "there is no more");
    let gone: i64 =
        shop.raw.exists(vec![keys.idempotency(day - 2), "rg:{0}:0:wallets".into()]).await.unwrap();
    assert_eq!(gone, 0);
    assert_eq!(number(&shop.pool, "SELECT count(*) FROM idempotency_records").await, 2);
    shop.assert_audit_clean().await;
}

#[tokio::test]
async fn a_script_that_stopped_half_way_is_seen_applied_and_rebuilt() {
    let mut shop = Shop::open().await;
    shop.charge("ann", 1_000).await;
    shop.apply_all().await;
    let before = shop.meta().await;
    shop.charge("ann", 500).await;
    // As if the script had died after it wrote the entry: balance and meta are those from before.
    let keys = shop.keys().await;
    let _: i64 = shop.raw.hset(keys.wallets(), ("ann", 1_000)).await.unwrap();
    let meta = [("seq", before.seq.to_string()), ("tip", before.tip.clone())];
    let _: i64 = shop.raw.hset(Keys::meta(0), meta).await.unwrap();
    let fresh = Gate::with_limits(&shop.servers, LIMITS).await.unwrap();
    let charge = ChargeWallet { user_id: user("ann"), amount: 1 };
    let outcome = fresh.charge_wallet(charge, None, soon()).await.unwrap_err();
    assert_eq!(outcome, GateError::OutcomeUnknown, "its number is taken");
    assert_eq!(shop.meta().await.state, "closed");
    while !matches!(shop.reconciler.step().await.unwrap(), StepOutcome::Rebuilt(2)) {}
    assert_eq!(shop.balance("ann").await, Some(1_500), "what was logged was decided");
    shop.assert_audit_clean().await;
}

#[tokio::test]
async fn a_truth_that_went_back_opens_nothing_until_an_operator_says_so() {
    let mut shop = busy_shop().await;
    let Meta { epoch, .. } = shop.meta().await;
    execute(&shop.pool, "UPDATE cell_cursors SET seq = seq - 1").await;
    for _ in 0..2 {
        let step = shop.reconciler.step().await.unwrap();
        assert!(
            matches!(&step, StepOutcome::Halted(why) if why.contains("rushgate rebuild")),
            "{step:?}"
        );
    }
    assert_eq!((shop.meta().await.epoch, shop.meta().await.state.as_str()), (epoch, "closed"));
    // It also reports this if a rebuild had closed the cell before and then lost its PostgreSQL.
    let claim = (epoch + 1).to_string();
    assert!(CLAIM_EPOCH.call(&shop.raw, vec![Keys::meta(0)], vec![claim]).await.unwrap());
    assert_eq!(shop.gate.status().await.unwrap()[0].state, "rebuilding");
    assert!(matches!(shop.reconciler.step().await.unwrap(), StepOutcome::Halted(_)));
    let CellStatus { state, reason, .. } = shop.gate.status().await.unwrap().remove(0);
    assert!(state == "closed" && reason.unwrap().contains("rushgate rebuild"));
    let _: () = shop.raw.flushall(false).await.unwrap();
    // A database that never knew this shop, combined with a gate from another database.
    let other = crate::truth::database().await;
    let name: String =
        sqlx::query_scalar("SELECT current_database()").fetch_one(&other).await.unwrap();
    let mut servers = shop.servers.clone();
    assert_eq!(shop.reconciler.rebuild_now().await.unwrap(), StepOutcome::Rebuilt(epoch + 1));
    servers.database_url = crate::truth::database_url(&name).await;
    let mut foreign = Reconciler::connect(&servers, 0).await.unwrap();
    assert!(matches!(foreign.step().await.unwrap(), StepOutcome::Halted(_)));
    assert_eq!(shop.meta().await.epoch, epoch + 1);
}

#[tokio::test]
async fn the_gates_clock_survives_a_rebuild() {
    let mut shop = Shop::open().await;
    let ahead = jiff::Timestamp::now().as_millisecond() + 5_000_000;
    shop.set_clock(ahead).await;
    shop.charge("ann", 1).await;
    shop.apply_all().await;
    let _: () = shop.raw.flushall(false).await.unwrap();
    assert_eq!(shop.reconciler.step().await.unwrap(), StepOutcome::Rebuilt(2));
    assert_eq!(shop.charge("ann", 1).await.charged_at, ahead);
}
