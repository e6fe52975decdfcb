//! Tests of the checker: a history without faults is clean, and each planted defect is found and
//! reported as the right kind.

use std::time::Duration;

use fred::interfaces::HashesInterface;
use rushgate::domain::fact::OrderPlaced;
use rushgate::domain::limits::MIN_HOLD_SECS;
use rushgate::domain::wire::{Blob, Id, pack};
use rushgate::log::RawEntry;
use rushgate::log::entry::{FORMAT_VERSION, chain_tip, genesis_tip};
use rushgate::redis::keys::Keys;
use serde_json::json;

use super::checker::{Expect, Kind, check};
use super::client::{Fleet, Load, Mix};
use super::collect;
use super::model::{Fact, facts_of, kind, packed};
use super::record::{Ask, History, Operation, Outcome, TruthOrder};
use crate::cluster::{Cluster, Private, eventually};

const PATIENCE: Duration = Duration::from_secs(60);

/// Two instances under load, without any fault. Some holds end, and some orders stay pending.
async fn quiet_day() -> (History, Expect) {
    let cluster =
        Cluster::with(Private { redis_config: collect::redis_config(), ..Private::default() })
            .await;
    let fleet = Fleet::start(&[&cluster.settings, &cluster.settings]).await;
    collect::watch_cursor(&cluster.pool).await;
    let mix = Mix { hold_secs: MIN_HOLD_SECS, ..Mix::default() };
    let load = Load::start(&fleet, 7, mix).await;
    load.until_more(800, PATIENCE).await;
    some_of_each(&fleet, &load).await;
    let expect = Expect {
        clock_off_ms: vec![(load.now_us(), end_all_holds(&cluster).await)],
        ..Expect::default()
    };
    // The holds of these end after the history.
    load.until_more(200, PATIENCE).await;
    (collect::collect(&cluster, load.stop().await, vec![]).await, expect)
}

/// What the clients' random choices may leave out: a count for a limit, and a coupon with later terms.
async fn some_of_each(fleet: &Fleet, load: &Load) {
    let named = |name: &str| name.to_owned();
    let now = jiff::Timestamp::now();
    let hours = |n: i64| (now + jiff::SignedDuration::from_hours(n)).to_string();
    let (product, template) = (|| named("limited"), || named("changed"));
    let rules =
        json!({ "name": "put limited", "price": 100, "status": "on_sale", "per_user_limit": 5 });
    let terms = |value: u64| Ask::PutTemplate {
        template: template(),
        body: json!({ "name": format!("put changed {value}"), "max_issued": 5, "issue_from": hours(-1),
            "issue_until": hours(1), "discount": { "type": "amount", "value": value } }),
    };
    let issue = |user: &str| Ask::Issue { template: template(), user: named(user) };
    let hold = Ask::Hold {
        user: named("limited-user"),
        lines: vec![(product(), 2)],
        coupon: None,
        wallet_amount: 0,
        hold_secs: 3_600,
        reference: None,
    };
    let asks = [
        Ask::PutRules { product: product(), body: rules },
        Ask::Adjust { product: product(), delta: 9, reason: named("adjust limited") },
        hold,
        terms(100),
        issue("early"),
        terms(200),
        issue("late"),
    ];
    for ask in asks {
        let shown = format!("{ask:?}");
        match load.send(&fleet.get(0), ask, None).await {
            Outcome::Answered(answer) if (200..300).contains(&answer.status) => {}
            other => panic!("{shown}: {other:?}"),
        }
    }
}

/// Sets the gate's clock forward past the end of every hold, and waits until all are given back.
/// Returns by how many milliseconds.
async fn end_all_holds(cluster: &Cluster) -> i64 {
    let ahead_ms = 1_000 * MIN_HOLD_SECS.cast_signed() + 1;
    let now_ms = jiff::Timestamp::now().as_millisecond() + ahead_ms;
    let _: i64 = cluster.raw.hset(Keys::meta(0), ("clock", now_ms)).await.unwrap();
    eventually("all holds have ended", || async {
        let due = "SELECT count(*) FROM orders
            WHERE status = 'pending' AND hold_expires_at <= to_timestamp($1::bigint / 1000.0::float8)";
        let left: i64 =
            sqlx::query_scalar(due).bind(now_ms).fetch_one(&cluster.pool).await.unwrap();
        (left == 0).then_some(())
    })
    .await;
    ahead_ms
}

#[tokio::test]
async fn a_quiet_day_is_clean_and_every_planted_defect_is_named() {
    let (history, expect) = quiet_day().await;
    let report = check(&history, &expect);
    report.assert_clean();
    for status in ["paid", "pending", "cancelled", "expired"] {
        let outside = |order: &&TruthOrder| order.wallet_amount.is_some();
        let orders = history.truth.orders.values().filter(outside);
        let count = orders.filter(|order| order.status == status).count();
        println!("{count} orders to be paid outside are {status}");
        assert!(count > 0, "no order is {status}");
    }
    assert!(report.facts > 500 && report.checked > 900 && report.epochs == 1, "{report:?}");

    for (defect, name, kind) in DEFECTS {
        let mut spoilt = history.clone();
        defect(&mut spoilt);
        let report = check(&spoilt, &expect);
        assert!(report.kinds().contains(&kind), "{name}: {:?}", report.kinds());
    }
}

type Defect = (fn(&mut History), &'static str, Kind);

const DEFECTS: [Defect; 28] = [
    (double_decrement, "a double decrement", Kind::WrongFact),
    (lost_entry, "a lost entry", Kind::LostEntry),
    (forgotten_entry, "an entry that the log never had", Kind::AcknowledgedAndGone),
    (coupon_used_twice, "a coupon used twice", Kind::NotAllowed),
    (stale_read, "a stale read", Kind::StaleRead),
    (early_read, "a read from the future", Kind::StaleRead),
    (issued_past_the_limit, "one coupon too many", Kind::NotAllowed),
    (same_key_twice, "one key, two effects", Kind::TwoEffects),
    (refusal_out_of_nowhere, "a refusal without a reason", Kind::WrongRefusal),
    (decided_unasked, "a decision that nobody asked for", Kind::Unasked),
    (told_otherwise, "an answer that tells something else", Kind::WrongAnswer),
    (out_of_order, "an effect before its request", Kind::RealTimeOrder),
    (money_from_nowhere, "a balance without a charge", Kind::Conservation),
    (forgotten_by_truth, "an order that PostgreSQL lost", Kind::Truth),
    (silent_order, "an order without its message", Kind::Messages),
    (message_of_no_order, "a message of no order", Kind::Messages),
    (given_back_twice, "a hold that is given back twice", Kind::NotAllowed),
    (confirmed_too_late, "a confirmation after the end of the hold", Kind::NotAllowed),
    (expired_too_early, "a hold that ends early", Kind::NotAllowed),
    (wallet_part_lost, "a wallet part that an ended hold keeps", Kind::WrongFact),
    (limit_forgotten, "a limit that counts anew", Kind::WrongFact),
    (limit_not_counted, "an order that does not count for a limit", Kind::WrongFact),
    (later_terms_applied, "a later version's terms", Kind::WrongFact),
    (terms_changed, "a coupon whose terms have changed", Kind::Truth),
    (still_pending, "a cancelled order that is still pending", Kind::Conservation),
    (purchases_lost, "pieces that PostgreSQL does not count", Kind::Conservation),
    (confirmed_otherwise, "a confirmation of another payment", Kind::WrongAnswer),
    (silent_expiry, "an ended hold without its message", Kind::Messages),
];

/// Changes facts in the log and recomputes the hash chain, as if a wrong script had written them.
fn rewrite(history: &mut History, mut change: impl FnMut(&mut Vec<Fact>)) {
    let epoch = &mut history.epochs[0];
    let mut tip = genesis_tip(0, epoch.epoch);
    let mut written = Vec::new();
    for entry in &epoch.entries {
        let decoded = entry.decode().unwrap();
        let (at, mut facts) = (decoded.decided_at, facts_of(decoded.facts));
        change(&mut facts);
        let Some(kind) = facts.first().map(kind) else { continue };
        let blobs: Vec<Blob> = facts.iter().map(|fact| Blob(packed(fact))).collect();
        let payload = pack(&(FORMAT_VERSION, kind, at, blobs)).unwrap();
        tip = chain_tip(&tip, &payload);
        let seq = written.len() as u64 + 1;
        written.push(RawEntry {
            epoch: epoch.epoch,
            seq,
            payload,
            tip: tip.clone(),
            traces: vec![],
        });
    }
    (epoch.last_seq, epoch.last_tip, epoch.entries) = (written.len() as u64, tip, written);
}

/// Changes only the last fact for which `change` returns true.
fn rewrite_last(history: &mut History, change: impl Fn(&mut Fact) -> bool) {
    let mut all = 0;
    rewrite(history, |facts| {
        all += facts.iter().filter(|fact| change(&mut (*fact).clone())).count()
    });
    assert!(all > 0, "nothing to spoil");
    let mut seen = 0;
    rewrite(history, |facts| {
        for fact in facts {
            let mut changed = fact.clone();
            if change(&mut changed) {
                seen += 1;
                if seen == all {
                    *fact = changed;
                }
            }
        }
    });
}

fn double_decrement(history: &mut History) {
    rewrite_last(history, |fact| match fact {
        Fact::OrderPlaced(f) if f.lines[0].stock_after >= f.lines[0].quantity => {
            f.lines[0].stock_after -= f.lines[0].quantity;
            true
        }
        _ => false,
    });
}

fn lost_entry(history: &mut History) {
    let entries = &mut history.epochs[0].entries;
    entries.remove(entries.len() / 2);
}

fn forgotten_entry(history: &mut History) {
    let mut left = 40; // entries before the one to drop, somewhere in the middle
    rewrite(history, |facts| {
        left -= 1;
        if left == 0 {
            facts.clear();
        }
    });
}

fn coupon_used_twice(history: &mut History) {
    let mut used = None;
    rewrite(history, |facts| {
        for fact in facts {
            if let Fact::OrderPlaced(f) = fact
                && f.coupon_id.is_some()
            {
                used = Some(f.clone());
            }
        }
    });
    let first = used.unwrap();
    let mut done = false;
    rewrite(history, |facts| {
        let at = facts
            .iter()
            .position(|fact| matches!(fact, Fact::OrderPlaced(f) if f.order_id == first.order_id));
        if let Some(at) = at
            && !done
        {
            let mut again = first.clone();
            again.order_id = Id::new();
            again.idempotency = None;
            facts.insert(at + 1, Fact::OrderPlaced(again));
            done = true;
        }
    });
}

/// Changes the last successful read of a wallet whose balance had changed before.
fn wallet_read(history: &mut History, balance: impl Fn(&[u64]) -> Option<u64>) {
    let mut changes: Vec<(String, u64)> = Vec::new();
    rewrite(history, |facts| {
        for fact in facts {
            match fact {
                Fact::WalletCharged(f) => changes.push((f.user_id.clone(), f.balance_after)),
                Fact::OrderPlaced(f) => changes.push((f.user_id.clone(), f.balance_after)),
                Fact::OrderCancelled(f) => changes.push((f.user_id.clone(), f.balance_after)),
                Fact::OrderExpired(f) => changes.push((f.user_id.clone(), f.balance_after)),
                _ => {}
            }
        }
    });
    let read = history.operations.iter_mut().rev().filter(|op| op.succeeded()).find_map(|op| {
        let Ask::Wallet(user) = &op.ask else { return None };
        let known: Vec<u64> =
            changes.iter().filter(|(u, _)| u == user).map(|(_, balance)| *balance).collect();
        let told = op.answer().unwrap().body["balance"].as_u64()?;
        let spoilt = balance(&known).filter(|balance| *balance != told)?;
        Some((op, spoilt))
    });
    let (operation, spoilt) = read.unwrap();
    body(operation)["balance"] = json!(spoilt);
}

fn body(operation: &mut Operation) -> &mut serde_json::Value {
    match &mut operation.outcome {
        super::record::Outcome::Answered(answer) => &mut answer.body,
        other => panic!("no answer: {other:?}"),
    }
}

fn stale_read(history: &mut History) {
    wallet_read(history, |known| {
        (known.len() > 3 && !known[1..].contains(&known[0])).then_some(known[0])
    });
}

fn early_read(history: &mut History) {
    let read =
        history.operations.iter_mut().filter(|op| op.succeeded()).find_map(|op| match &op.ask {
            Ask::Template(_) => Some(op),
            _ => None,
        });
    let answer = body(read.unwrap());
    let limit = answer["max_issued"].as_u64().unwrap();
    answer["issued"] = json!(limit + 1);
}

fn issued_past_the_limit(history: &mut History) {
    // Staff lower the limit to the number issued, and then one more coupon is issued.
    let mut done = false;
    rewrite(history, |facts| {
        for fact in facts {
            if let Fact::TemplatePut(f) = fact
                && f.created
                && !done
            {
                f.terms.max_issued = 1;
                done = true;
            }
        }
    });
}

fn same_key_twice(history: &mut History) {
    let mut done = false;
    rewrite(history, |facts| {
        let charge = facts.iter().find_map(|fact| match fact {
            Fact::WalletCharged(f) if f.idempotency.is_some() && f.amount > 0 => Some(f.clone()),
            _ => None,
        });
        if let Some(mut again) = charge.filter(|_| !done) {
            again.charge_id = Id::new();
            facts.push(Fact::WalletCharged(again));
            done = true;
        }
    });
}

fn refusal_out_of_nowhere(history: &mut History) {
    // The first template begins with a limit of twice the number of users, so this early refusal
    // cannot be `sold-out`.
    let issue = history.operations.iter_mut().find(|op| {
        let open = matches!(&op.ask, Ask::Issue { template, .. } if template == "template-0");
        open && op.key.is_some() && op.answer().is_some_and(|answer| answer.status == 409)
    });
    *body(issue.unwrap()) = json!({ "code": "sold-out" });
}

fn decided_unasked(history: &mut History) {
    let told: Vec<String> = history
        .operations
        .iter()
        .filter(|op| matches!(op.ask, Ask::Charge { .. }) && op.succeeded())
        .filter_map(|op| op.key.clone())
        .collect();
    let key = &told[told.len() / 2];
    history.operations.retain(|op| op.key.as_ref() != Some(key));
}

fn told_otherwise(history: &mut History) {
    let issue = history
        .operations
        .iter_mut()
        .find(|op| matches!(op.ask, Ask::Issue { .. }) && op.succeeded());
    let answer = body(issue.unwrap());
    answer["serial"] = json!(answer["serial"].as_u64().unwrap() + 1);
}

fn out_of_order(history: &mut History) {
    // Moves the first order's request time to the end of the history.
    let last = history.operations.iter().map(|op| op.answered_us).max().unwrap();
    let order = history.operations.iter_mut().find(|op| {
        matches!(op.ask, Ask::Order { .. }) && op.succeeded() && !op.answer().unwrap().replayed
    });
    let order = order.unwrap();
    (order.asked_us, order.answered_us) = (last + 1, last + 2);
}

fn money_from_nowhere(history: &mut History) {
    *history.truth.wallets.values_mut().next().unwrap() += 100;
}

fn forgotten_by_truth(history: &mut History) {
    history.truth.orders.pop_first().unwrap();
}

fn silent_order(history: &mut History) {
    let id = history.events.keys().next().unwrap().clone();
    history.events.remove(&id);
}

fn given_back_twice(history: &mut History) {
    let mut done = false;
    rewrite(history, |facts| {
        let ended = facts.iter().find(|fact| matches!(fact, Fact::OrderExpired(_))).cloned();
        if let (Some(again), false) = (ended, done) {
            facts.push(again);
            done = true;
        }
    });
    assert!(done);
}

fn confirmed_too_late(history: &mut History) {
    rewrite_last(history, |fact| match fact {
        Fact::OrderConfirmed(f) => {
            f.paid_at = f.order.hold_expires_at;
            true
        }
        _ => false,
    });
}

fn expired_too_early(history: &mut History) {
    let mut expired = Vec::new();
    rewrite(history, |facts| {
        for fact in facts {
            if let Fact::OrderExpired(f) = fact {
                expired.push(f.order_id);
            }
        }
    });
    let last = expired.pop().unwrap();
    // As if it had been placed for an hour.
    rewrite_last(history, |fact| match fact {
        Fact::OrderPlaced(f) if f.order_id == last => {
            let outside = f.more.as_mut().and_then(|more| more.outside.as_mut());
            outside.unwrap().hold_expires_at = Some(f.ordered_at + 3_600_000);
            true
        }
        _ => false,
    });
}

fn wallet_part_lost(history: &mut History) {
    rewrite_last(history, |fact| match fact {
        Fact::OrderExpired(f) if f.refund > 0 => {
            f.balance_after -= f.refund;
            true
        }
        _ => false,
    });
}

/// As if a rebuild had not loaded what users had bought.
fn limit_forgotten(history: &mut History) {
    rewrite_last(history, |fact| match fact {
        Fact::OrderPlaced(f) => {
            let quantities: Vec<u64> = f.lines.iter().map(|line| line.quantity).collect();
            let mut counts = f.more.iter_mut().flat_map(|more| &mut more.counts);
            let anew = counts.find_map(|count| {
                let quantity = quantities[usize::try_from(count.line).unwrap()];
                (count.bought_after > quantity).then_some((count, quantity))
            });
            anew.map(|(count, quantity)| count.bought_after = quantity).is_some()
        }
        _ => false,
    });
}

fn limit_not_counted(history: &mut History) {
    rewrite_last(history, |fact| match fact {
        Fact::OrderPlaced(OrderPlaced { more: Some(more), .. }) => {
            !std::mem::take(&mut more.counts).is_empty()
        }
        _ => false,
    });
}

fn later_terms_applied(history: &mut History) {
    rewrite_last(history, |fact| match fact {
        Fact::CouponIssued(f) => {
            f.terms_number = f.terms_number.map(|number| number + 1);
            f.terms_number.is_some()
        }
        _ => false,
    });
}

fn terms_changed(history: &mut History) {
    history.truth.coupons.values_mut().next().unwrap().terms.discount_value += 1;
}

fn still_pending(history: &mut History) {
    let mut orders = history.truth.orders.values_mut();
    orders.find(|order| order.status == "cancelled").unwrap().status = "pending".to_owned();
}

fn purchases_lost(history: &mut History) {
    *history.truth.purchases.values_mut().find(|pieces| **pieces > 0).unwrap() -= 1;
}

fn confirmed_otherwise(history: &mut History) {
    let confirmed = history
        .operations
        .iter_mut()
        .find(|op| matches!(op.ask, Ask::Confirm { .. }) && op.succeeded());
    body(confirmed.unwrap())["payment_reference"] = json!("another");
}

fn silent_expiry(history: &mut History) {
    let id = history.events.keys().find(|id| id.ends_with(".expired")).unwrap().clone();
    history.events.remove(&id);
}

fn message_of_no_order(history: &mut History) {
    history.events.insert(format!("{}.completed", Id::new()), json!({}));
}
