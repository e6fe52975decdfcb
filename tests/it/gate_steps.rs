//! The steps that every deciding script takes, in order: refuse, replay, decide, log first, chain.
//!
//! The tests call the scripts directly, so that they control the contents of each batch and what
//! the caller claims about the cell.

use std::collections::BTreeMap;

use bytes::Bytes;
use fred::prelude::*;
use rushgate::domain::fact::*;
use rushgate::domain::limits::IDEMPOTENCY_KEPT_MS;
use rushgate::domain::wire::{self, Blob, Id};
use rushgate::domain::{Discount, Line, ProductId, SaleRules};
use rushgate::gate::batch::{Batch, FlatLines};
use rushgate::gate::script::{self, CallError, Decided, Reply, Script};
use rushgate::gate::*;
use rushgate::log::RawEntry;
use rushgate::log::entry::{chain_tip, genesis_tip};
use rushgate::log::reader::LogReader;
use rushgate::reconciler::StepOutcome;
use rushgate::redis::keys::{DAY_MS, Keys};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::faults::Clock;
use crate::shop::*;

const NO_DEADLINE: i64 = 4_000_000_000_000;

/// A request in a batch: deadline, idempotency record, body.
type Job<'a, B> = (i64, Option<(&'a str, Blob)>, B);

/// The caller's claims about the cell.
#[derive(Clone)]
struct Claim {
    epoch: u64,
    seen: u64,
    seen_tip: String,
    day: i64,
    log_limit: u64,
}

impl Shop {
    async fn claim(&self) -> Claim {
        let meta = self.meta().await;
        let now = jiff::Timestamp::now().as_millisecond().max(meta.clock_ms);
        Claim {
            epoch: meta.epoch,
            seen: meta.seq,
            seen_tip: meta.tip,
            day: now.div_euclid(DAY_MS),
            log_limit: 100_000,
        }
    }

    /// Calls a script with a batch of (deadline, idempotency, body).
    async fn call(
        &self,
        script: &Script,
        claim: Claim,
        batch: &[Job<'_, impl Serialize>],
    ) -> Result<Reply, CallError> {
        let keys = script.keys(&Keys::new(0, claim.epoch), claim.day);
        let mut requests = Batch::with_capacity(0);
        for (deadline, key, body) in batch {
            let key = key.as_ref().map(|key| wire::pack(key).unwrap());
            requests.add(*deadline, key.as_deref(), &wire::pack(body).unwrap()).unwrap();
        }
        let ((count, values), claim) = (requests.shape(), &claim);
        let Claim { epoch, seen, seen_tip, day, log_limit } = claim;
        let head = (epoch, seen, seen_tip, day, log_limit, count, values, LIMITS.keys);
        script.call(&self.raw, keys, wire::pack(&head).unwrap(), requests.into_bytes()).await
    }

    /// A batch of charges that must be decided.
    async fn charges(&self, batch: &[(&str, u64)]) -> Decided {
        let batch: Vec<_> =
            batch.iter().map(|(u, n)| (NO_DEADLINE, None, (*u, *n, Id::new()))).collect();
        decided(self.call(&script::CHARGE_WALLET, self.claim().await, &batch).await)
    }

    /// Every key of the gate with its serialised value.
    async fn snapshot(&self) -> BTreeMap<String, Bytes> {
        let mut all = BTreeMap::new();
        let (_, keys): (String, Vec<String>) =
            self.raw.scan_page("0", "*", Some(100_000), None).await.unwrap();
        for key in keys {
            let dump: Bytes = self.raw.dump(key.as_str()).await.unwrap();
            all.insert(key, dump);
        }
        all
    }

    async fn entries(&self) -> Vec<RawEntry> {
        let reader = LogReader::connect(&self.servers.redis_url, 0).await.unwrap();
        reader.after(self.meta().await.epoch, 0, 10_000).await.unwrap()
    }
}

fn decided(reply: Result<Reply, CallError>) -> Decided {
    match reply {
        Ok(Reply::Decided(decided)) => decided,
        other => panic!("not decided: {other:?}"),
    }
}

fn refused(reply: Result<Reply, CallError>) -> String {
    match reply {
        Ok(Reply::Refused(refused)) => refused.why,
        other => panic!("not refused: {other:?}"),
    }
}

/// A verdict's code and details.
fn verdict<T: DeserializeOwned>(packed: &Bytes) -> (u8, T) {
    rmp_serde::from_slice(packed).unwrap()
}

fn code(packed: &Bytes) -> u8 {
    // The first byte is the array header (one or two elements), the second is the code.
    packed[1]
}

fn accepted<T: DeserializeOwned>(packed: &Bytes) -> T {
    let (code, fact): (u8, Blob) = verdict(packed);
    assert_eq!(code, 0);
    rmp_serde::from_slice(&fact.0).unwrap()
}

#[tokio::test]
async fn a_caller_of_another_epoch_is_refused() {
    let shop = Shop::open().await;
    let (claim, before) = (shop.claim().await, shop.snapshot().await);
    for epoch in [0, claim.epoch + 1] {
        let batch = [(NO_DEADLINE, None, ("ann", 1_000, Id::new()))];
        assert_eq!(
            refused(
                shop.call(&script::CHARGE_WALLET, Claim { epoch, ..claim.clone() }, &batch).await
            ),
            "epoch"
        );
    }
    assert_eq!(shop.snapshot().await, before);
}

#[tokio::test]
async fn a_redis_that_went_back_in_time_is_refused_and_closed() {
    let mut shop = Shop::open().await;
    shop.charge("ann", 1_000).await;
    let (claim, before) = (shop.claim().await, shop.snapshot().await);
    let batch = [(NO_DEADLINE, None, ("ann", 1_000, Id::new()))];
    let seen = claim.seen + 1;
    assert_eq!(
        refused(shop.call(&script::CHARGE_WALLET, Claim { seen, ..claim.clone() }, &batch).await),
        "behind"
    );
    assert_eq!(shop.snapshot().await, before);

    // An instance that has seen a later entry closes the cell, and the reconciler rebuilds it.
    shop.apply_all().await;
    let _: i64 = shop.raw.hset(Keys::meta(0), ("seq", 0)).await.unwrap();
    let request = ChargeWallet { user_id: user("ann"), amount: 1 };
    let refusal = shop.gate.charge_wallet(request, None, soon()).await.unwrap_err();
    assert!(matches!(refusal, GateError::Unavailable(_)), "{refusal:?}");
    assert_eq!(shop.meta().await.state, "closed");
    assert_eq!(shop.reconciler.step().await.unwrap(), StepOutcome::Rebuilt(2));
    assert_eq!(shop.charge("ann", 500).await.balance_after, 1_500);
    shop.apply_all().await;
    shop.assert_audit_clean().await;
}

#[tokio::test]
async fn a_redis_that_went_back_and_was_written_to_since_is_refused() {
    let mut shop = Shop::open().await;
    shop.charge("ann", 1_000).await;
    shop.apply_all().await;
    let claim = shop.claim().await;
    let batch = || [(NO_DEADLINE, None, ("ann", 1, Id::new()))];
    let forked = Claim { seen_tip: "f".repeat(40), ..claim.clone() };
    let before = shop.snapshot().await;
    let reply = shop.call(&script::CHARGE_WALLET, forked.clone(), &batch()).await;
    assert_eq!(refused(reply), "behind", "the same number, another entry");
    assert_eq!(shop.snapshot().await, before);
    shop.charge("ann", 1_000).await;
    let reply = shop.call(&script::CHARGE_WALLET, forked, &batch()).await;
    assert_eq!(refused(reply), "behind", "another entry, and more after it");
    // A caller that has seen the entry which is there continues, even if it is no longer the last
    // one.
    decided(shop.call(&script::CHARGE_WALLET, claim.clone(), &batch()).await);
    // The same after that entry was trimmed.
    let _: i64 = shop.raw.xtrim(shop.keys().await.log(), ("MAXLEN", "=", 1)).await.unwrap();
    decided(shop.call(&script::CHARGE_WALLET, claim, &batch()).await);
}

#[tokio::test]
async fn an_instance_that_saw_a_lost_success_closes_the_cell() {
    let mut shop = Shop::open().await;
    shop.charge("ann", 1_000).await;
    shop.apply_all().await;
    let snapshot: std::collections::HashMap<String, String> =
        shop.raw.hgetall(Keys::meta(0)).await.unwrap();
    let lost = shop
        .gate
        .charge_wallet(ChargeWallet { user_id: user("ann"), amount: 5 }, None, soon())
        .await;
    let lost = lost.unwrap().unwrap().position;
    // Redis loses that entry before it is applied, and another instance writes a different one in
    // its place.
    let keys = shop.keys().await;
    let _: i64 = shop.raw.xdel(keys.log(), "1-2").await.unwrap();
    let _: () =
        shop.raw.custom(fred::cmd!("XSETID"), vec![keys.log(), "1-1".into()]).await.unwrap();
    let _: i64 = shop.raw.hset(keys.wallets(), ("ann", 1_000)).await.unwrap();
    let _: i64 = shop.raw.hset(Keys::meta(0), snapshot).await.unwrap();
    let other = Gate::with_limits(&shop.servers, LIMITS).await.unwrap();
    other
        .charge_wallet(ChargeWallet { user_id: user("bob"), amount: 7 }, None, soon())
        .await
        .unwrap()
        .unwrap();
    shop.apply_all().await;
    // The instance that answered the lost entry does not report it as applied, and closes the cell
    // for a rebuild.
    let soon_enough = std::time::Instant::now() + std::time::Duration::from_millis(300);
    assert!(shop.gate.wait_applied(lost, soon_enough).await.is_err());
    assert_eq!(shop.meta().await.state, "closed");
    assert_eq!(shop.reconciler.step().await.unwrap(), StepOutcome::Rebuilt(2));
    assert_eq!((shop.balance("ann").await, shop.balance("bob").await), (Some(1_000), Some(7)));
}

#[tokio::test]
async fn a_deadline_passes_while_a_clock_that_was_set_back_catches_up() {
    let shop = Shop::open().await;
    let now = jiff::Timestamp::now().as_millisecond();
    shop.set_clock(now + 3_600_000).await;
    let at = |deadline| [(deadline, None, ("ann", 1, Id::new()))];
    let late = decided(shop.call(&script::CHARGE_WALLET, shop.claim().await, &at(now - 1)).await);
    assert_eq!(code(&late.verdicts[0]), 2);
    let early =
        decided(shop.call(&script::CHARGE_WALLET, shop.claim().await, &at(now + 60_000)).await);
    assert_eq!(code(&early.verdicts[0]), 0);
}

#[tokio::test]
async fn a_request_past_its_deadline_is_refused_alone() {
    let shop = Shop::open().await;
    let (claim, before) = (shop.claim().await, shop.snapshot().await);
    let late = (jiff::Timestamp::now().as_millisecond() - 1, None, ("ann", 1_000, Id::new()));
    let only_late = decided(
        shop.call(&script::CHARGE_WALLET, claim.clone(), std::slice::from_ref(&late)).await,
    );
    assert_eq!(code(&only_late.verdicts[0]), 2);
    assert_eq!(shop.snapshot().await, before);

    let good = (NO_DEADLINE, None, ("bob", 1_000, Id::new()));
    let both = decided(shop.call(&script::CHARGE_WALLET, claim.clone(), &[late, good]).await);
    assert_eq!(both.verdicts.iter().map(code).collect::<Vec<_>>(), [2, 0]);
    assert_eq!((shop.balance("ann").await, shop.balance("bob").await), (None, Some(1_000)));
}

#[tokio::test]
async fn a_full_backlog_is_refused_until_postgresql_has_caught_up() {
    let mut shop = Shop::with_limits(BatchLimits { log: 2, ..LIMITS }).await;
    shop.charge("ann", 1).await;
    shop.charge("ann", 1).await;
    let before = shop.snapshot().await;
    let ask = || ChargeWallet { user_id: user("ann"), amount: 1 };
    assert_eq!(
        shop.gate.charge_wallet(ask(), None, soon()).await.unwrap_err(),
        GateError::BacklogFull
    );
    assert_eq!(shop.snapshot().await, before);
    shop.apply_all().await;
    assert_eq!(shop.charge("ann", 1).await.balance_after, 3);
}

#[tokio::test]
async fn a_closed_cell_and_an_absent_gate_refuse() {
    let shop = Shop::open().await;
    let claim = shop.claim().await;
    let batch = [(NO_DEADLINE, None, ("ann", 1_000, Id::new()))];
    let _: i64 = shop.raw.hset(Keys::meta(0), ("state", "closed")).await.unwrap();
    let before = shop.snapshot().await;
    assert_eq!(refused(shop.call(&script::CHARGE_WALLET, claim.clone(), &batch).await), "closed");
    assert_eq!(shop.snapshot().await, before);
    assert!(matches!(shop.gate.balance(&user("ann")).await, Err(GateError::Unavailable(_))));
    let _: () = shop.raw.flushall(false).await.unwrap();
    assert_eq!(refused(shop.call(&script::CHARGE_WALLET, claim.clone(), &batch).await), "absent");
    assert!(shop.snapshot().await.is_empty());
}

#[tokio::test]
async fn a_caller_on_another_day_is_told_the_time() {
    let shop = Shop::open().await;
    let claim = shop.claim().await;
    let batch = [(NO_DEADLINE, None, ("ann", 1_000, Id::new()))];
    let wrong = Claim { day: claim.day - 1, ..claim.clone() };
    assert_eq!(refused(shop.call(&script::CHARGE_WALLET, wrong, &batch).await), "day");
    // The typed gate learns the time from that refusal and repeats the call.
    shop.charge("ann", 1).await;
    shop.set_clock((claim.day + 3) * DAY_MS + 5).await;
    assert_eq!(shop.charge("ann", 1).await.charged_at, (claim.day + 3) * DAY_MS + 5);
}

#[tokio::test]
async fn a_repeated_key_gets_the_first_answer_and_changes_nothing() {
    let shop = Shop::open().await;
    let ask = |amount| ChargeWallet { user_id: user("ann"), amount };
    let first =
        shop.gate.charge_wallet(ask(500), key("ann", "k 1"), soon()).await.unwrap().unwrap();
    assert!(!first.replayed);
    let before = shop.snapshot().await;
    let again =
        shop.gate.charge_wallet(ask(500), key("ann", "k 1"), soon()).await.unwrap().unwrap();
    assert!(again.replayed);
    assert_eq!(again.fact, first.fact);
    let other = shop.gate.charge_wallet(ask(501), key("ann", "k 1"), soon()).await.unwrap_err();
    assert_eq!(other, GateError::IdempotencyKeyReused);
    assert_eq!(shop.snapshot().await, before);
    // Another user's key of the same name is a different key.
    let bobs = ChargeWallet { user_id: user("bob"), amount: 500 };
    assert!(
        !shop.gate.charge_wallet(bobs, key("bob", "k 1"), soon()).await.unwrap().unwrap().replayed
    );
}

#[tokio::test]
async fn a_key_twice_in_one_batch_has_one_effect() {
    let shop = Shop::open().await;
    let hash = Blob(vec![7; 16]);
    let job = || (NO_DEADLINE, Some(("ann k", hash.clone())), ("ann", 400, Id::new()));
    let reply =
        decided(shop.call(&script::CHARGE_WALLET, shop.claim().await, &[job(), job()]).await);
    assert_eq!(reply.verdicts.iter().map(code).collect::<Vec<_>>(), [0, 1]);
    let (_, first): (u8, Blob) = verdict(&reply.verdicts[0]);
    assert_eq!(verdict::<Blob>(&reply.verdicts[1]).1, first);
    assert_eq!(shop.balance("ann").await, Some(400));
}

#[tokio::test]
async fn a_key_answers_for_24_hours_across_midnight_and_then_is_new() {
    let shop = Shop::open().await;
    let ask = || ChargeWallet { user_id: user("ann"), amount: 100 };
    let charge =
        async || shop.gate.charge_wallet(ask(), key("ann", "k"), soon()).await.unwrap().unwrap();
    let first = charge().await.fact.charged_at;
    shop.set_clock(first + IDEMPOTENCY_KEPT_MS - 1).await;
    assert!(charge().await.replayed, "23:59:59.999 later, which is the next day");
    shop.set_clock(first + IDEMPOTENCY_KEPT_MS).await;
    assert!(!charge().await.replayed);
    assert_eq!(shop.balance("ann").await, Some(200));
}

#[tokio::test]
async fn refusals_leave_no_record() {
    let shop = Shop::open().await;
    let ask = || ChargeWallet { user_id: user("ann"), amount: 600_000 };
    assert!(shop.gate.charge_wallet(ask(), key("ann", "a"), soon()).await.unwrap().is_ok());
    let refusal = shop.gate.charge_wallet(ask(), key("ann", "b"), soon()).await.unwrap();
    assert_eq!(refusal.unwrap_err(), ChargeRefusal::BalanceLimit(600_000));
    let smaller = ChargeWallet { user_id: user("ann"), amount: 1 };
    assert!(
        !shop.gate.charge_wallet(smaller, key("ann", "b"), soon()).await.unwrap().unwrap().replayed
    );
}

#[tokio::test]
async fn what_is_missing_has_a_verdict_of_its_own() {
    let shop = Shop::open().await;
    shop.put_product("mug", 100, 5).await;
    let before = shop.snapshot().await;
    let refusal = shop.place(order("ann", &[("mug", 1)], None)).await;
    assert_eq!(
        refusal,
        Err(OrderRefusal::InsufficientBalance(0, 100)),
        "a user without a wallet has nothing"
    );
    assert_eq!(shop.issue("none", "ann").await, Err(IssueRefusal::UnknownTemplate));
    let adjust = AdjustStock { product_id: product("none"), delta: 1, reason: None };
    let refusal = shop.gate.adjust_stock(adjust, None, soon()).await.unwrap();
    assert_eq!(refusal.unwrap_err(), StockRefusal::UnknownProduct);
    assert_eq!(shop.snapshot().await, before);
    shop.charge("ann", 1_000).await;
    let refusal = shop.place(order("ann", &[("none", 1)], None)).await;
    assert_eq!(refusal, Err(OrderRefusal::UnknownProduct("none".into())));
}

#[tokio::test]
async fn a_refused_order_takes_nothing() {
    let shop = Shop::open().await;
    shop.put_product("mug", 100, 5).await;
    shop.put_product("rare", 100, 1).await;
    shop.put_template(open_template("t", 5)).await;
    shop.charge("ann", 10_000).await;
    let coupon = shop.issue("t", "ann").await.unwrap().coupon_id.0;
    let before = shop.snapshot().await;
    let refusal = shop.place(order("ann", &[("mug", 1), ("rare", 2)], Some(coupon))).await;
    assert_eq!(refusal, Err(OrderRefusal::InsufficientStock("rare".into(), 1)));
    assert_eq!(shop.snapshot().await, before);
}

#[tokio::test]
async fn time_never_runs_before_the_last_time_used() {
    let shop = Shop::open().await;
    let ahead = jiff::Timestamp::now().as_millisecond() + 3_600_000;
    shop.set_clock(ahead).await;
    assert_eq!(shop.charge("ann", 1).await.charged_at, ahead);
    assert_eq!(shop.meta().await.clock_ms, ahead);
}

/// libfaketime moves the Redis clock forward and back.
#[tokio::test]
async fn a_window_that_was_seen_closed_stays_closed_when_the_clock_goes_back() {
    let clock = Clock::new();
    let shop = Shop::under(clock.command()).await;
    let now = || jiff::Timestamp::now().as_millisecond();
    let until = now() + 30 * 60_000;
    shop.put_template(PutTemplate { issue_until: until, ..open_template("t", 5) }).await;
    shop.issue("t", "ann").await.unwrap();
    clock.set_off(60 * 60_000);
    assert_eq!(shop.issue("t", "bob").await, Err(IssueRefusal::ClosedSince(until)));
    // The refusal wrote no entry, but the gate remembers the time.
    let remembered = shop.meta().await.clock_ms;
    assert!(remembered >= until);
    clock.set_off(0);
    let server = rushgate::redis::control::server_time(&shop.raw, 0).await.unwrap();
    assert!(server < until, "the clock was set back: {server}");
    assert_eq!(shop.issue("t", "bob").await, Err(IssueRefusal::ClosedSince(until)));
    assert_eq!(shop.charge("ann", 1).await.charged_at, remembered, "time stands still meanwhile");
}

#[tokio::test]
async fn without_its_log_a_cell_decides_nothing() {
    let mut shop = Shop::open().await;
    shop.charge("ann", 1_000).await;
    shop.apply_all().await;
    let log = shop.keys().await.log();
    let _: i64 = shop.raw.del(log).await.unwrap();
    let before = shop.snapshot().await;
    let batch = [(NO_DEADLINE, None, ("ann", 1_000, Id::new()))];
    let reply = shop.call(&script::CHARGE_WALLET, shop.claim().await, &batch).await;
    assert_eq!(refused(reply), "log-gone");
    assert_eq!(shop.snapshot().await, before);
    let request = ChargeWallet { user_id: user("ann"), amount: 1 };
    shop.gate.charge_wallet(request, None, soon()).await.unwrap_err();
    assert_eq!(shop.reconciler.step().await.unwrap(), StepOutcome::Rebuilt(2));
    assert_eq!(shop.balance("ann").await, Some(1_000));
}

#[tokio::test]
async fn out_of_memory_is_refused_before_any_write() {
    let shop = Shop::open().await;
    shop.put_product("mug", 100, 5).await;
    shop.charge("ann", 1_000).await;
    let before = shop.snapshot().await;
    let _: () = shop.raw.config_set("maxmemory", "1").await.unwrap();
    let refusal =
        shop.gate.place_order(order("ann", &[("mug", 1)], None), None, soon()).await.unwrap_err();
    assert!(matches!(refusal, GateError::Unavailable(_)), "{refusal:?}");
    assert_eq!(shop.balance("ann").await, Some(1_000), "reads go on");
    let _: () = shop.raw.config_set("maxmemory", "0").await.unwrap();
    assert_eq!(shop.snapshot().await, before);
    shop.place(order("ann", &[("mug", 1)], None)).await.unwrap();
}

#[tokio::test]
async fn a_key_of_a_wrong_type_fails_before_any_write_and_is_rebuilt() {
    let mut shop = Shop::open().await;
    shop.put_product("mug", 100, 5).await;
    shop.charge("ann", 1_000).await;
    shop.apply_all().await;
    let stocks = shop.keys().await.stocks();
    let _: i64 = shop.raw.del(stocks.as_str()).await.unwrap();
    let _: () = shop.raw.set(stocks, "no hash", None, None, false).await.unwrap();
    let seq = shop.meta().await.seq;
    let outcome =
        shop.gate.place_order(order("ann", &[("mug", 1)], None), None, soon()).await.unwrap_err();
    assert_eq!(outcome, GateError::OutcomeUnknown);
    assert_eq!((shop.meta().await.seq, shop.meta().await.state.as_str()), (seq, "closed"));
    assert_eq!(shop.reconciler.step().await.unwrap(), StepOutcome::Rebuilt(2));
    assert_eq!(shop.stock("mug").await, 5);
    shop.place(order("ann", &[("mug", 1)], None)).await.unwrap();
    shop.apply_all().await;
    shop.assert_audit_clean().await;
}

#[tokio::test]
async fn every_key_of_a_wrong_type_fails_before_anything_is_written() {
    let shop = Shop::open().await;
    // Orders count for a limit and wait for a payment, coupons have earlier terms: so that each
    // script needs all of its keys.
    let rules = SaleRules { per_user_limit: Some(9), ..SaleRules::default() };
    let mug = PutProduct { stock: Some(9), rules, ..plain_product("mug", 10_000) };
    shop.gate.put_product(mug, soon()).await.unwrap().unwrap();
    shop.put_template(open_template("t", 5)).await;
    shop.charge("ann", 1_000).await;
    let coupon = Id(shop.issue("t", "ann").await.unwrap().coupon_id.0);
    let used = Id(shop.issue("t", "bob").await.unwrap().coupon_id.0);
    let discount = Discount::Amount { value: 10 };
    shop.put_template(PutTemplate { discount, ..open_template("t", 5) }).await;
    shop.charge("bob", 1_000).await;
    let held = async |user_id: &str, coupon: Option<Id>, hold_ms| {
        let outside = Some(PayOutside { wallet_amount: 0, hold_ms, pending_limit: 5 });
        let coupon = coupon.map(|id| id.0);
        let request = PlaceOrder { outside, ..order(user_id, &[("mug", 1)], coupon) };
        Id(shop.place(request).await.unwrap().order_id.0)
    };
    let order_id = held("bob", Some(used), 600_000).await;
    let coupon_of_cat = Id(shop.issue("t", "cat").await.unwrap().coupon_id.0);
    let due = held("cat", Some(coupon_of_cat), 0).await;
    let outside = (None::<&str>, Some((0, 600_000, 5)));
    let (lines, id) = (("mug", 1), Id::new());
    let terms = ("T", "amount", 100, None::<u64>, 0, 5, 0, 1);
    let key = || Some(("ann k", Blob(vec![7; 16])));
    macro_rules! check {
        // Boxed: the futures of all scripts together do not fit onto a test's stack.
        ($script:ident, $body:expr) => {
            Box::pin(async {
                for name in
                    script::$script.keys(&Keys::new(0, 1), shop.claim().await.day).iter().skip(1)
                {
                    let saved: Result<(), _> = shop.raw.rename(name, "saved").await;
                    let _: () = shop.raw.set(name, "no hash", None, None, false).await.unwrap();
                    let before = shop.snapshot().await;
                    let batch = [(NO_DEADLINE, key(), $body)];
                    let outcome = shop.call(&script::$script, shop.claim().await, &batch).await;
                    assert!(
                        matches!(outcome, Err(CallError::ScriptFailed(_))),
                        "{name}: {outcome:?}"
                    );
                    assert_eq!(shop.snapshot().await, before, "{name}");
                    let _: i64 = shop.raw.del(name).await.unwrap();
                    if saved.is_ok() {
                        let _: () = shop.raw.rename("saved", name).await.unwrap();
                    }
                }
                // Only the wrong key types had prevented the decision.
                let batch = [(NO_DEADLINE, None, $body)];
                let reply = decided(shop.call(&script::$script, shop.claim().await, &batch).await);
                assert_eq!(code(&reply.verdicts[0]), 0);
            })
            .await
        };
    }
    check!(ISSUE_COUPON, ("t", "dan", id));
    check!(CHARGE_WALLET, ("ann", 1, id));
    check!(PLACE_ORDER, (id, "ann", &lines, Some(coupon), None::<u64>, Some(outside)));
    check!(CONFIRM_ORDER, (id, "card"));
    check!(CANCEL_ORDER, (order_id, "bob", &lines, 0, Some(used), Some([1]), 1, true, Some(0)));
    check!(EXPIRE_ORDER, (due, "cat", &lines, 0, Some(coupon_of_cat), Some([1])));
    check!(PUT_PRODUCT, ("new", "New", 100, "on_sale", None::<u64>, None::<()>));
    check!(ADJUST_STOCK, ("mug", 1, None::<&str>, 9));
    check!(PUT_TEMPLATE, ("new", terms));
}

#[tokio::test]
async fn one_batch_is_one_entry_with_ids_and_after_images() {
    let shop = Shop::open().await;
    let reply = shop.charges(&[("ann", 100), ("bob", 200), ("ann", 300)]).await;
    assert_eq!(reply.place.seq, 1);
    let entries = shop.entries().await;
    assert_eq!(entries.len(), 1);
    assert_eq!((entries[0].epoch, entries[0].seq), (1, 1));
    let entry = entries[0].decode().unwrap();
    assert_eq!(entry.decided_at, reply.place.now);
    let Facts::WalletsCharged(facts) = entry.facts else { panic!("{entry:?}") };
    let told: Vec<_> =
        facts.iter().map(|f| (f.user_id.as_str(), f.amount, f.balance_after)).collect();
    assert_eq!(told, [("ann", 100, 100), ("bob", 200, 200), ("ann", 300, 400)]);
    let answered: Vec<WalletCharged> = reply.verdicts.iter().map(accepted).collect();
    assert_eq!(answered, facts);
}

#[tokio::test]
async fn the_log_is_a_hash_chain_from_the_epochs_beginning() {
    let shop = Shop::open().await;
    for n in 1..=5 {
        shop.charge("ann", n).await;
    }
    let mut tip = genesis_tip(0, 1);
    let entries = shop.entries().await;
    assert_eq!(entries.iter().map(|e| e.seq).collect::<Vec<_>>(), [1, 2, 3, 4, 5]);
    for entry in entries {
        assert_eq!(entry.tip, chain_tip(&tip, &entry.payload));
        tip = entry.tip;
    }
    assert_eq!(shop.meta().await.tip, tip);
}

#[tokio::test]
async fn a_batch_of_refusals_writes_no_entry() {
    let shop = Shop::open().await;
    let before = shop.snapshot().await;
    let reply = shop.charges(&[("ann", 1_000_001), ("bob", 2_000_000)]).await;
    assert_eq!(reply.verdicts.iter().map(code).collect::<Vec<_>>(), [4, 4]);
    assert_eq!(shop.snapshot().await, before);
}

#[tokio::test]
async fn requests_of_one_batch_see_what_those_before_them_took() {
    let shop = Shop::open().await;
    shop.put_product("mug", 1_000, 3).await;
    shop.put_template(open_template("t", 2)).await;
    for name in ["ann", "bob"] {
        shop.charge(name, 10_000).await;
    }
    let coupons: Vec<_> = ["ann", "ann", "bob", "cat"]
        .iter()
        .map(|u| (NO_DEADLINE, None, ("t", *u, Id::new())))
        .collect();
    let reply = decided(shop.call(&script::ISSUE_COUPON, shop.claim().await, &coupons).await);
    let ann: CouponIssued = accepted(&reply.verdicts[0]);
    assert_eq!(
        verdict::<IssueRefusal>(&reply.verdicts[1]).1,
        IssueRefusal::AlreadyIssued(ann.coupon_id)
    );
    assert_eq!(accepted::<CouponIssued>(&reply.verdicts[2]).serial, 2);
    assert_eq!(verdict::<IssueRefusal>(&reply.verdicts[3]).1, IssueRefusal::SoldOut);

    let orders: Vec<_> = [
        ("ann", 2, Some(ann.coupon_id)),
        ("ann", 1, Some(ann.coupon_id)),
        ("bob", 2, None),
        ("bob", 1, None),
    ]
    .iter()
    .map(|(u, n, c)| (NO_DEADLINE, None, (Id::new(), *u, ("mug", *n), *c, None::<u64>, None::<()>)))
    .collect();
    let reply = decided(shop.call(&script::PLACE_ORDER, shop.claim().await, &orders).await);
    assert_eq!(accepted::<OrderPlaced>(&reply.verdicts[0]).lines[0].stock_after, 1);
    assert_eq!(verdict::<OrderRefusal>(&reply.verdicts[1]).1, OrderRefusal::CouponUsed);
    let short = OrderRefusal::InsufficientStock("mug".into(), 1);
    assert_eq!(verdict::<OrderRefusal>(&reply.verdicts[2]).1, short);
    assert_eq!(accepted::<OrderPlaced>(&reply.verdicts[3]).lines[0].stock_after, 0);
    assert_eq!((shop.stock("mug").await, shop.balance("ann").await), (0, Some(9_000)));
}

#[tokio::test]
async fn a_large_batch_of_large_orders_is_decided_in_one_call() {
    let shop = Shop::open().await;
    let ids: Vec<String> = (0..50).map(|n| format!("p{n}")).collect();
    for id in &ids {
        shop.put_product(id, 100, 1_000_000).await;
    }
    shop.charge("ann", 1_000_000).await;
    let line =
        |id: &String| Line { product_id: ProductId::parse(id.as_str()).unwrap(), quantity: 1 };
    let lines: Vec<Line> = ids.iter().map(line).collect();
    let batch: Vec<_> = (0..200)
        .map(|_| {
            let body = (Id::new(), "ann", FlatLines(&lines), None::<Id>, None::<u64>, None::<()>);
            (NO_DEADLINE, None, body)
        })
        .collect();
    let reply = decided(shop.call(&script::PLACE_ORDER, shop.claim().await, &batch).await);
    assert!(reply.verdicts.iter().all(|v| code(v) == 0));
    assert_eq!((shop.balance("ann").await, shop.stock("p49").await), (Some(0), 999_800));
}

#[tokio::test]
async fn many_wallets_in_one_batch_exceed_no_limit_of_lua() {
    let shop = Shop::open().await;
    let users: Vec<String> = (0..9_000).map(|n| format!("u{n}")).collect();
    let batch: Vec<(&str, u64)> = users.iter().map(|u| (u.as_str(), 1)).collect();
    let reply = shop.charges(&batch).await;
    assert!(reply.verdicts.iter().all(|v| code(v) == 0));
    let stored: i64 = shop.raw.hlen(shop.keys().await.wallets()).await.unwrap();
    assert_eq!(stored, 9_000);
}
