//! The history checker: decides whether a recorded history keeps the service's promises.
//!
//! The log is a total order, so the checker replays it through the model, fact by fact. Each fact
//! must be the one that the model decides. Each answer is then given its place in that order. A
//! success stands at its fact, after everything that had completed before the request was sent. A
//! read or a refusal must match some state between request and answer. PostgreSQL, the queue and
//! the audit must match the state at the end of the replay.
//!
//! [`check`] builds the order of facts ([`Placed`]), finds each answer's place in it ([`Places`],
//! [`Bounds`]), replays it, and returns a [`Report`] of all violations.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;

use rushgate::domain::fact::{Idempotency, PurchaseCount};
use rushgate::domain::wire::Id;
use rushgate::domain::{OrderStatus, TimestampMs, rfc3339};
use rushgate::log::RawEntry;
use rushgate::log::entry::genesis_tip;
use serde_json::Value;

use super::model::{self, Fact, Order, Shop, Verdict, facts_of, request_of, without_images};
use super::record::{
    Ask, Epoch, History, LeftOut, Operation, Truth, TruthCoupon, TruthOrder, TruthProduct,
};
use super::view::{self, KnownTerms};

/// Maximum age of a remembered sold-out verdict: 200 ms, plus a margin for a busy machine.
pub const SOLD_OUT_MEMORY_US: u64 = 1_200_000;
/// Violations of each kind that are printed in full.
const TOLD: usize = 5;

/// The promise that a violation breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// PostgreSQL has applied an entry that no Redis ever held, or the hash chain does not lead to
    /// it.
    LostEntry,
    /// The log contains a fact that the shop's rules refuse.
    NotAllowed,
    /// The request was rightly accepted, but ids, amounts or after-images in the fact are wrong.
    WrongFact,
    /// One idempotency key had two effects.
    TwoEffects,
    /// A fact was left out because of a skipped one, although it is valid without that one.
    LeftOutAnyway,
    /// No client asked for this fact, or the client that did was told that nothing happened.
    Unasked,
    /// A success answer differs from the log.
    WrongAnswer,
    /// A success answer names something that the log does not contain.
    AcknowledgedAndGone,
    /// A fact stands before one that was decided before its request was sent, or after one whose
    /// request was sent after its answer.
    RealTimeOrder,
    /// A read matches no state between request and answer.
    StaleRead,
    /// A refusal matches no state between request and answer.
    WrongRefusal,
    /// PostgreSQL differs from the state that the log leads to.
    Truth,
    /// Stock or money appeared or vanished.
    Conservation,
    /// Messages are missing, superfluous or wrong.
    Messages,
    /// The audit reported a difference.
    Audit,
}

#[derive(Clone, Debug)]
pub struct Violation {
    pub kind: Kind,
    pub detail: String,
}

/// What the injected fault permits.
#[derive(Clone, Debug, Default)]
pub struct Expect {
    /// Redis lost acknowledged writes (`ACK=gate`): acknowledged decisions may be gone.
    pub may_lose: bool,
    /// In these intervals (microseconds) clients may have read what is gone now.
    pub forgiven_us: Vec<(u64, u64)>,
    /// From each of these times (microseconds) on, the Redis clock was this many milliseconds ahead
    /// of the clients' clock.
    pub clock_off_ms: Vec<(u64, i64)>,
}

impl Expect {
    /// The gate's time at request and answer. The gate's clock never runs backwards.
    fn gate_times(&self, operation: &Operation, clock_ms: i64) -> [i64; 2] {
        let (asked_ms, answered_ms) = operation.wall_ms;
        [(operation.asked_us, asked_ms), (operation.answered_us, answered_ms)].map(
            |(at_us, wall_ms)| {
                let off = self.clock_off_ms.iter().rev().find(|(from_us, _)| *from_us <= at_us);
                (wall_ms + off.map_or(0, |(_, ms)| *ms)).max(clock_ms)
            },
        )
    }
}

#[derive(Debug, Default)]
pub struct Report {
    pub violations: Vec<Violation>,
    pub facts: usize,
    /// Facts that a Redis held and PostgreSQL did not apply.
    pub aside: usize,
    /// The ids of what these facts created, where there is one.
    pub aside_ids: HashSet<String>,
    pub epochs: usize,
    /// Successes, reads and refusals that were compared with the log.
    pub checked: usize,
    /// Ids of acknowledged decisions that are gone.
    pub gone: Vec<String>,
}

impl Report {
    pub fn kinds(&self) -> Vec<Kind> {
        let mut kinds: Vec<Kind> = self.violations.iter().map(|v| v.kind).collect();
        kinds.sort();
        kinds.dedup();
        kinds
    }

    fn add(&mut self, kind: Kind, detail: impl fmt::Display) {
        self.violations.push(Violation { kind, detail: detail.to_string() });
    }

    pub fn assert_clean(&self) {
        let mut told: HashMap<Kind, usize> = HashMap::new();
        for violation in &self.violations {
            let n = told.entry(violation.kind).or_default();
            *n += 1;
            if *n <= TOLD {
                println!("{:?}: {}", violation.kind, violation.detail);
            }
        }
        assert!(self.violations.is_empty(), "the history breaks promises: {told:?}");
    }
}

/// A fact at its place in the total order.
#[derive(Debug)]
struct Placed {
    fact: Fact,
    epoch: u64,
    seq: u64,
    last_of_entry: bool,
    /// An earlier fact of the epoch was left out, so the after-images in the log no longer apply.
    rebased: bool,
}

/// Facts that PostgreSQL did not apply.
#[derive(Debug, Default)]
struct Aside {
    facts: Vec<Fact>,
    /// Facts that became invalid without a skipped one, each with the number of placed facts before
    /// it.
    fallen: Vec<(usize, Fact)>,
}

pub fn check(history: &History, expect: &Expect) -> Report {
    let mut report = Report { epochs: history.epochs.len(), ..Report::default() };
    let (placed, Aside { facts: gone, fallen }) = line_up(history, &mut report);
    (report.facts, report.aside) = (placed.len(), gone.len());
    report.aside_ids = gone.iter().filter_map(id_of).map(|id| id.to_string()).collect();
    let mut places = Places::of(&placed);
    if expect.may_lose || !expect.forgiven_us.is_empty() {
        places.only_accepted = !expect.may_lose;
        places.lose(history, &placed);
    }
    let bounds = Bounds::of(history, &places);
    check_asked(history, placed.iter().map(|p| &p.fact).chain(&gone), &mut report);
    check_successes(history, &placed, &places, &bounds, expect, &mut report);
    let last = replay(history, &placed, &fallen, &bounds, expect, &mut report);
    check_truth(&history.truth, &last, &mut report);
    check_conservation(&history.truth, &placed, &mut report);
    check_messages(history, &last, &mut report);
    if let Some(said) = &history.audit {
        report.add(Kind::Audit, said);
    }
    report
}

/// The id of what a fact created. Changes by staff have no id.
fn id_of(fact: &Fact) -> Option<Id> {
    match fact {
        Fact::CouponIssued(f) => Some(f.coupon_id),
        Fact::WalletCharged(f) => Some(f.charge_id),
        Fact::OrderPlaced(f) => Some(f.order_id),
        Fact::OrderCancelled(f) => Some(f.order_id),
        Fact::OrderConfirmed(f) => Some(f.order_id),
        Fact::OrderExpired(f) => Some(f.order_id),
        Fact::ProductPut(_) | Fact::StockAdjusted(_) | Fact::TemplatePut(_) => None,
    }
}

/// All facts that PostgreSQL applied, in order, and those that it did not: left out, or on branches
/// of the log that it did not follow.
fn line_up(history: &History, report: &mut Report) -> (Vec<Placed>, Aside) {
    let (mut placed, mut aside) = (Vec::new(), Aside::default());
    for epoch in &history.epochs {
        let (line, rest) = lineage(epoch, report);
        let mut rebased = false;
        for raw in line {
            let facts = match raw.decode() {
                Ok(entry) => facts_of(entry.facts),
                Err(e) => {
                    report.add(Kind::WrongFact, format!("entry {}-{}: {e}", raw.epoch, raw.seq));
                    continue;
                }
            };
            let last = facts.len().saturating_sub(1);
            for (i, fact) in facts.into_iter().enumerate() {
                let here = |left: &&LeftOut| {
                    (left.epoch, left.seq, left.fact) == (raw.epoch, raw.seq, i + 1)
                };
                if let Some(left) = history.left_out.iter().find(here) {
                    rebased = true;
                    aside.facts.push(fact.clone());
                    if !left.skipped {
                        aside.fallen.push((placed.len(), fact));
                    }
                    continue;
                }
                let (epoch, seq) = (raw.epoch, raw.seq);
                placed.push(Placed { fact, epoch, seq, last_of_entry: i == last, rebased });
            }
        }
        aside.facts.extend(
            rest.iter().filter_map(|raw| raw.decode().ok()).flat_map(|entry| facts_of(entry.facts)),
        );
    }
    (placed, aside)
}

/// Splits an epoch's entries into those that lead to the last entry that PostgreSQL applied, found
/// backwards by their hashes, and all others.
fn lineage<'a>(epoch: &'a Epoch, report: &mut Report) -> (Vec<&'a RawEntry>, Vec<&'a RawEntry>) {
    let mut by_place: HashMap<(u64, &str), &RawEntry> = HashMap::new();
    for entry in &epoch.entries {
        by_place.insert((entry.seq, &entry.tip), entry);
    }
    let genesis = genesis_tip(0, epoch.epoch);
    let mut line = Vec::new();
    let (mut seq, mut tip) = (epoch.last_seq, epoch.last_tip.as_str());
    while seq > 0 {
        let Some(entry) = by_place.get(&(seq, tip)) else {
            report.add(
                Kind::LostEntry,
                format!("entry {}-{seq} with tip {tip} is nowhere", epoch.epoch),
            );
            break;
        };
        line.push(*entry);
        let before = epoch
            .entries
            .iter()
            .filter(|other| other.seq + 1 == seq)
            .map(|other| other.tip.as_str());
        let candidates = before.chain((seq == 1).then_some(genesis.as_str()));
        match candidates.into_iter().find(|tip| entry.follows(tip)) {
            Some(previous) => (seq, tip) = (seq - 1, previous),
            None => {
                report
                    .add(Kind::LostEntry, format!("nothing leads to entry {}-{seq}", epoch.epoch));
                break;
            }
        }
    }
    line.reverse();
    let kept: HashSet<(u64, &str)> =
        line.iter().map(|entry| (entry.seq, entry.tip.as_str())).collect();
    let mut rest: Vec<&RawEntry> =
        by_place.into_values().filter(|entry| !kept.contains(&(entry.seq, &entry.tip))).collect();
    rest.sort_by_key(|entry| entry.seq);
    (line, rest)
}

/// The position in the total order of everything that clients can name.
#[derive(Default)]
struct Places {
    coupons: HashMap<Id, usize>,
    charges: HashMap<Id, usize>,
    orders: HashMap<Id, usize>,
    cancellations: HashMap<Id, usize>,
    confirmations: HashMap<Id, usize>,
    /// By the name or reason, which is unique to a request.
    staff: HashMap<String, usize>,
    /// For histories in which decisions may be lost. A key's answer counts as lost if its request
    /// was sent before this time, when a later request with the key succeeded anew.
    done_anew_us: HashMap<String, u64>,
    /// An order's cancellation counts as lost if the answer gives another time than this one.
    cancelled_at: HashMap<Id, TimestampMs>,
    /// The same for its confirmation.
    confirmed_at: HashMap<Id, TimestampMs>,
    /// Only decisions that were answered with 202 may be lost.
    only_accepted: bool,
}

impl Places {
    fn of(placed: &[Placed]) -> Self {
        let mut places = Self::default();
        for (at, Placed { fact, .. }) in placed.iter().enumerate() {
            match fact {
                Fact::CouponIssued(f) => places.coupons.insert(f.coupon_id, at),
                Fact::WalletCharged(f) => places.charges.insert(f.charge_id, at),
                Fact::OrderPlaced(f) => places.orders.insert(f.order_id, at),
                Fact::OrderCancelled(f) => places.cancellations.insert(f.order_id, at),
                Fact::OrderConfirmed(f) => places.confirmations.insert(f.order_id, at),
                // Nobody asks for it.
                Fact::OrderExpired(_) => None,
                Fact::ProductPut(f) => places.staff.insert(f.name.clone(), at),
                Fact::StockAdjusted(f) => {
                    places.staff.insert(f.reason.clone().unwrap_or_default(), at)
                }
                Fact::TemplatePut(f) => places.staff.insert(f.terms.name.clone(), at),
            };
        }
        places
    }

    /// Collects what distinguishes a lost decision from a later one under the same key or for the
    /// same order.
    fn lose(&mut self, history: &History, placed: &[Placed]) {
        for operation in history.operations.iter().filter(|op| op.succeeded() && !may_be_older(op))
        {
            if let Some(key) = &operation.key {
                let last = self.done_anew_us.entry(key.clone()).or_default();
                *last = operation.asked_us.max(*last);
            }
        }
        for Placed { fact, .. } in placed {
            match fact {
                Fact::OrderCancelled(f) => {
                    self.cancelled_at.insert(f.order_id, f.cancelled_at);
                }
                Fact::OrderConfirmed(f) => {
                    self.confirmed_at.insert(f.order_id, f.paid_at);
                }
                _ => {}
            }
        }
    }

    fn is_lost(&self, operation: &Operation) -> bool {
        let Some(answer) = operation.answer() else { return false };
        if self.only_accepted && answer.status != 202 {
            return false;
        }
        let anew = operation.key.as_ref().and_then(|key| self.done_anew_us.get(key));
        let (at, member) = match &operation.ask {
            Ask::Cancel { order } => (self.cancelled_at.get(order), "cancelled_at"),
            Ask::Confirm { order, .. } => (self.confirmed_at.get(order), "paid_at"),
            _ => return anew.is_some_and(|asked_us| operation.asked_us < *asked_us),
        };
        let Some(at) = at else { return false };
        match answer.body[member].as_str() {
            Some(told) => told != rfc3339(*at),
            None => operation.wall_ms.1 < *at, // a 202 does not tell the time
        }
    }

    /// Another request has cancelled or confirmed the order since.
    fn done_all_the_same(&self, operation: &Operation) -> bool {
        match &operation.ask {
            Ask::Cancel { order } => self.cancelled_at.contains_key(order),
            Ask::Confirm { order, .. } => self.confirmed_at.contains_key(order),
            _ => false,
        }
    }

    fn find(&self, operation: &Operation) -> Option<usize> {
        let answer = operation.answer()?;
        if self.is_lost(operation) {
            return None;
        }
        let id = |name: &str| answer.body[name].as_str()?.parse().ok().map(Id);
        match &operation.ask {
            Ask::Issue { .. } => self.coupons.get(&id("coupon_id")?),
            Ask::Charge { .. } => self.charges.get(&id("charge_id")?),
            Ask::Order { .. } | Ask::Hold { .. } => self.orders.get(&id("order_id")?),
            Ask::Cancel { order } => self.cancellations.get(order),
            Ask::Confirm { order, .. } => self.confirmations.get(order),
            Ask::PutProduct { name, .. } => self.staff.get(name),
            Ask::Adjust { reason, .. } => self.staff.get(reason),
            Ask::PutTemplate { body, .. } | Ask::PutRules { body, .. } => {
                self.staff.get(body["name"].as_str()?)
            }
            _ => None,
        }
        .copied()
    }
}

/// A repeated cancellation or confirmation is answered like the first one, and without the header
/// that marks a replay.
fn may_be_older(operation: &Operation) -> bool {
    operation.answer().is_some_and(|answer| answer.replayed)
        || matches!(operation.ask, Ask::Cancel { .. } | Ask::Confirm { .. })
}

/// The range of states that an operation may have seen. It begins after everything that had
/// completed before the operation started, and ends before everything that started after it
/// completed.
struct Bounds {
    /// (time of answer, number of facts that were certainly decided by then)
    finished: Vec<(u64, usize)>,
    /// (time of request, number of facts before the first one that was certainly decided later)
    begun: Vec<(u64, usize)>,
}

impl Bounds {
    fn of(history: &History, places: &Places) -> Self {
        let (mut finished, mut begun) = (Vec::new(), Vec::new());
        for operation in history.operations.iter().filter(|operation| operation.succeeded()) {
            let Some(place) = places.find(operation) else { continue };
            finished.push((operation.answered_us, place + 1));
            if !may_be_older(operation) {
                begun.push((operation.asked_us, place));
            }
        }
        finished.sort();
        finished.iter_mut().fold(0, |most, (_, n)| {
            *n = most.max(*n);
            *n
        });
        begun.sort();
        begun.iter_mut().rev().fold(usize::MAX, |least, (_, n)| {
            *n = least.min(*n);
            *n
        });
        Self { finished, begun }
    }

    /// Number of facts that were certainly decided before this time.
    fn at_least(&self, asked_us: u64) -> usize {
        let before = self.finished.partition_point(|(answered, _)| *answered < asked_us);
        before.checked_sub(1).map_or(0, |last| self.finished[last].1)
    }

    /// Number of facts that may have been decided by this time.
    fn at_most(&self, answered_us: u64, all: usize) -> usize {
        let first = self.begun.partition_point(|(asked, _)| *asked <= answered_us);
        self.begun.get(first).map_or(all, |(_, n)| *n)
    }
}

fn key_of(fact: &Fact) -> Option<String> {
    let (_, idempotency, _) = request_of(fact);
    let Idempotency { scope, .. } = idempotency?;
    Some(scope.rsplit(' ').next().unwrap_or_default().to_owned())
}

/// Matches requests without a key to facts without one: both have the same trace.
fn trace_of_ask(ask: &Ask) -> Option<String> {
    Some(match ask {
        Ask::Issue { template, user } => format!("issue {template} {user}"),
        Ask::Charge { user, amount } => format!("charge {user} {amount}"),
        Ask::Order { user, lines, coupon, .. } => format!("order {user} {lines:?} {coupon:?}"),
        Ask::Hold { user, lines, coupon, wallet_amount, .. } => {
            format!("hold {user} {lines:?} {coupon:?} {wallet_amount}")
        }
        Ask::Cancel { order } => format!("cancel {order}"),
        Ask::Confirm { order, reference } => format!("confirm {order} {reference}"),
        Ask::PutProduct { name, .. } => format!("staff {name}"),
        Ask::Adjust { reason, .. } => format!("staff {reason}"),
        Ask::PutTemplate { body, .. } | Ask::PutRules { body, .. } => {
            format!("staff {}", body["name"].as_str()?)
        }
        _ => return None,
    })
}

fn trace_of_fact(fact: &Fact) -> String {
    match fact {
        Fact::CouponIssued(f) => format!("issue {} {}", f.template_id, f.user_id),
        Fact::WalletCharged(f) => format!("charge {} {}", f.user_id, f.amount),
        Fact::OrderPlaced(f) => {
            let lines: Vec<_> =
                f.lines.iter().map(|l| (l.product_id.clone(), l.quantity)).collect();
            match f.more.as_ref().and_then(|more| more.outside) {
                None => format!("order {} {lines:?} {:?}", f.user_id, f.coupon_id),
                Some(outside) => format!(
                    "hold {} {lines:?} {:?} {}",
                    f.user_id, f.coupon_id, outside.wallet_amount
                ),
            }
        }
        Fact::OrderCancelled(f) => format!("cancel {}", f.order_id),
        Fact::OrderConfirmed(f) => format!("confirm {} {}", f.order_id, f.payment_reference),
        Fact::OrderExpired(f) => format!("expire {}", f.order_id),
        Fact::ProductPut(f) => format!("staff {}", f.name),
        Fact::StockAdjusted(f) => format!("staff {}", f.reason.as_deref().unwrap_or_default()),
        Fact::TemplatePut(f) => format!("staff {}", f.terms.name),
    }
}

/// Checks that every fact was requested by a client that was told of it or got no clear answer.
/// Without keys, facts of one kind must not outnumber their requests.
fn check_asked<'a>(history: &History, facts: impl Iterator<Item = &'a Fact>, report: &mut Report) {
    let (mut keys, mut traces): (HashSet<&str>, HashMap<String, usize>) = Default::default();
    for operation in history.operations.iter().filter(|op| op.succeeded() || op.unknown()) {
        match &operation.key {
            Some(key) => {
                keys.insert(key);
            }
            None => {
                if let Some(trace) = trace_of_ask(&operation.ask) {
                    *traces.entry(trace).or_default() += 1;
                }
            }
        }
    }
    // The service itself ends holds.
    for fact in facts.filter(|fact| !matches!(fact, Fact::OrderExpired(_))) {
        let asked = match key_of(fact) {
            Some(key) => keys.contains(key.as_str()),
            None => match traces.get_mut(&trace_of_fact(fact)) {
                Some(left) if *left > 0 => {
                    *left -= 1;
                    true
                }
                _ => false,
            },
        };
        if !asked {
            report.add(Kind::Unasked, format!("{fact:?}"));
        }
    }
}

fn check_successes(
    history: &History,
    placed: &[Placed],
    places: &Places,
    bounds: &Bounds,
    expect: &Expect,
    report: &mut Report,
) {
    let terms = KnownTerms::of(placed.iter().map(|placed| &placed.fact));
    for operation in history.operations.iter().filter(|op| op.succeeded() && !op.ask.is_read()) {
        let Some(answer) = operation.answer() else { continue };
        let Some(place) = places.find(operation) else {
            if answer.status == 202 && !expect.forgiven_us.is_empty() {
                // The 202 said that PostgreSQL did not have it yet.
            } else if places.done_all_the_same(operation) {
                // It is the same for the client.
            } else if expect.may_lose {
                report.gone.push(view::id_of(answer));
            } else {
                report.add(Kind::AcknowledgedAndGone, format!("{operation:?}"));
            }
            continue;
        };
        report.checked += 1;
        let before = order_before(placed, places, operation);
        let mut told = view::success(&placed[place].fact, before, &terms);
        if let (true, Value::Object(members)) = (placed[place].rebased, &mut told) {
            // This fact was applied after an earlier one was left out, so a replay tells the values
            // that hold since then.
            for name in ["balance", "serial", "stock", "issued", "remaining"] {
                members.remove(name);
            }
        }
        if answer.status != 202 && !view::tells(operation, answer, &told) {
            report.add(Kind::WrongAnswer, format!("{operation:?} for {told}"));
        }
        let early = place < bounds.at_least(operation.asked_us) && !may_be_older(operation);
        if early || place >= bounds.at_most(operation.answered_us, placed.len()) {
            let Placed { epoch, seq, .. } = placed[place];
            report.add(Kind::RealTimeOrder, format!("{operation:?} is entry {epoch}-{seq}"));
        }
    }
}

/// The order that a request has confirmed or cancelled, as it was before.
fn order_before(placed: &[Placed], places: &Places, operation: &Operation) -> Option<Order> {
    let (order, cancels) = match &operation.ask {
        Ask::Cancel { order } => (order, true),
        Ask::Confirm { order, .. } => (order, false),
        _ => return None,
    };
    let Fact::OrderPlaced(of) = &placed[*places.orders.get(order)?].fact else { return None };
    let confirmed = places.confirmations.get(order).map(|at| &placed[*at].fact);
    let confirmed = match confirmed {
        Some(Fact::OrderConfirmed(confirmed)) if cancels => Some(confirmed.clone()),
        _ => None,
    };
    Some(Order { confirmed, ..Order::new(of.clone()) })
}

/// A read or a refusal that has not yet matched a state.
struct Waiting<'a> {
    operation: &'a Operation,
    first: usize,
    last: usize,
}

fn waiting<'a>(
    history: &'a History,
    bounds: &Bounds,
    expect: &Expect,
    all: usize,
) -> Vec<Waiting<'a>> {
    let mut waiting: Vec<Waiting> = Vec::new();
    for operation in &history.operations {
        let Some(answer) = operation.answer() else { continue };
        let refused = (400..500).contains(&answer.status);
        if !(refused || operation.ask.is_read() && answer.status == 200) {
            continue;
        }
        let overlaps =
            |(from, to): &(u64, u64)| operation.asked_us <= *to && operation.answered_us >= *from;
        if expect.forgiven_us.iter().any(overlaps) {
            continue;
        }
        let remembered = refused && operation.key.is_none() && view::may_be_remembered(answer);
        let asked_us =
            operation.asked_us.saturating_sub(if remembered { SOLD_OUT_MEMORY_US } else { 0 });
        let (first, last) = (bounds.at_least(asked_us), bounds.at_most(operation.answered_us, all));
        waiting.push(Waiting { operation, first, last });
    }
    waiting.sort_by_key(|w| w.first);
    waiting
}

/// Replays the log through the model. Compares each read and refusal with every state that it may
/// have seen.
fn replay(
    history: &History,
    placed: &[Placed],
    fallen: &[(usize, Fact)],
    bounds: &Bounds,
    expect: &Expect,
    report: &mut Report,
) -> Shop {
    let waiting = waiting(history, bounds, expect, placed.len());
    let (mut shop, mut clock_ms) = (Shop::default(), 0);
    let (mut coming, mut active) = (waiting.into_iter().peekable(), Vec::new());
    for state in 0..=placed.len() {
        if let Some(next) = state.checked_sub(1).map(|at| &placed[at]) {
            clock_ms = decide_again(&mut shop, next, clock_ms, report);
        }
        for (_, fact) in fallen.iter().filter(|(after, _)| *after == state) {
            let (request, _, at) = request_of(fact);
            if shop.refusal(&request, at).is_none() {
                report.add(Kind::LeftOutAnyway, format!("{fact:?}"));
            }
        }
        // Reads see whole entries only. A request in a batch also sees the effects of the requests
        // before it.
        let whole = state.checked_sub(1).is_none_or(|at| placed[at].last_of_entry);
        while let Some(w) = coming.next_if(|w| w.first <= state) {
            active.push(w);
        }
        active.retain(|w: &Waiting| {
            let times = expect.gate_times(w.operation, clock_ms);
            if (whole || !w.operation.ask.is_read()) && view::holds(&shop, w.operation, times) {
                report.checked += 1;
                return false;
            }
            if state < w.last {
                return true;
            }
            let kind = if w.operation.ask.is_read() { Kind::StaleRead } else { Kind::WrongRefusal };
            let held = view::now(&shop, w.operation, times[1]);
            let (first, last) = (w.first, w.last);
            report.add(
                kind,
                format!(
                    "{:?}; after {first} to {last} facts; at the end of these: {held}",
                    w.operation
                ),
            );
            false
        });
    }
    shop
}

/// Returns the gate's clock after this fact.
fn decide_again(shop: &mut Shop, placed: &Placed, clock_ms: i64, report: &mut Report) -> i64 {
    let Placed { fact, epoch, seq, rebased, .. } = placed;
    let (request, key, at) = request_of(fact);
    if at < clock_ms {
        report.add(
            Kind::WrongFact,
            format!("entry {epoch}-{seq}: {fact:?} is dated before {clock_ms}"),
        );
    }
    match shop.decide(&request, key.as_ref(), at) {
        Verdict::Accepted(expected) => {
            let (mut is, mut should) = (in_force(shop, fact), in_force(shop, &expected));
            if *rebased {
                (is, should) = (without_images(&is), without_images(&should));
            }
            if is != should {
                report.add(
                    Kind::WrongFact,
                    format!("entry {epoch}-{seq}: {fact:?}; the model: {expected:?}"),
                );
            }
        }
        Verdict::Refused(why) => {
            report.add(
                Kind::NotAllowed,
                format!("entry {epoch}-{seq}: {fact:?}; the model refuses: {why:?}"),
            );
        }
        Verdict::Replayed(_) | Verdict::KeyReused | Verdict::KeysSpent(_) => {
            report.add(Kind::TwoEffects, format!("entry {epoch}-{seq}: {fact:?}"));
        }
    }
    at.max(clock_ms)
}

/// The fact without counts for limits that no product has any more: a rebuild forgets them.
fn in_force(shop: &Shop, fact: &Fact) -> Fact {
    let keep = |count: &PurchaseCount| limits_in_force(shop).any(|n| n == count.limit_number);
    let mut fact = fact.clone();
    match &mut fact {
        Fact::OrderExpired(f) => f.counts.retain(keep),
        Fact::OrderCancelled(f) => {
            f.more.iter_mut().for_each(|more| more.counts.retain(keep));
            f.more.take_if(|more| more.counts.is_empty() && more.paid_outside.is_none());
        }
        _ => {}
    }
    fact
}

fn limits_in_force(shop: &Shop) -> impl Iterator<Item = u64> {
    shop.products.values().filter_map(|product| product.limit_number)
}

/// The model's state in the form of PostgreSQL's tables.
fn as_truth(shop: &Shop) -> Truth {
    let mut truth =
        Truth { wallets: shop.wallets.clone(), ledgers: shop.ledgers.clone(), ..Truth::default() };
    for (id, p) in &shop.products {
        let row = TruthProduct {
            name: p.name.clone(),
            price: p.price,
            status: p.status.as_str().to_owned(),
            stock: p.stock,
            rules: p.rules.clone(),
            limit_number: p.limit_number,
        };
        truth.products.insert(id.clone(), row);
    }
    for (id, t) in &shop.templates {
        truth.templates.insert(id.clone(), (t.terms.max_issued, t.issued));
    }
    for (id, c) in &shop.coupons {
        let row = TruthCoupon {
            template_id: c.template_id.clone(),
            user_id: c.user_id.clone(),
            serial: c.serial,
            order_id: c.order_id,
            terms: shop.templates[&c.template_id].terms_of(c.terms_number).clone(),
        };
        truth.coupons.insert(*id, row);
    }
    for (id, order) in &shop.orders {
        let placed = &order.placed;
        let lines = placed.lines.iter().enumerate();
        let row = TruthOrder {
            user_id: placed.user_id.clone(),
            status: order.status().as_str().to_owned(),
            subtotal: placed.subtotal,
            discount: placed.discount,
            total: placed.total,
            coupon_id: placed.coupon_id,
            lines: lines
                .map(|(at, l)| (l.product_id.clone(), l.quantity, order.limit_of(at)))
                .collect(),
            reference: placed.more.as_ref().and_then(|more| more.reference.clone()),
            wallet_amount: order.outside().map(|outside| outside.wallet_amount),
            hold_expires_at: order.hold_expires_at(),
            payment_reference: order.confirmed.as_ref().map(|c| c.payment_reference.clone()),
        };
        truth.orders.insert(*id, row);
    }
    let limits: HashSet<u64> = limits_in_force(shop).collect();
    let counted = shop.purchases.iter().filter(|((number, _), _)| limits.contains(number));
    truth.purchases = counted.map(|(of, pieces)| (of.clone(), *pieces)).collect();
    truth
}

fn check_truth(truth: &Truth, last: &Shop, report: &mut Report) {
    fn differences<K: Ord + fmt::Debug, V: PartialEq + fmt::Debug>(
        name: &str,
        found: &BTreeMap<K, V>,
        expected: &BTreeMap<K, V>,
        report: &mut Report,
    ) {
        let keys: std::collections::BTreeSet<&K> = found.keys().chain(expected.keys()).collect();
        for key in keys {
            let (there, log) = (found.get(key), expected.get(key));
            if there != log {
                report.add(
                    Kind::Truth,
                    format!("{name} {key:?}: PostgreSQL {there:?}, the log {log:?}"),
                );
            }
        }
    }
    let expected = as_truth(last);
    differences("wallet", &truth.wallets, &expected.wallets, report);
    differences("ledger", &truth.ledgers, &expected.ledgers, report);
    differences("product", &truth.products, &expected.products, report);
    differences("template", &truth.templates, &expected.templates, report);
    differences("coupon", &truth.coupons, &expected.coupons, report);
    differences("order", &truth.orders, &expected.orders, report);
    differences("purchases", &truth.purchases, &expected.purchases, report);
}

/// Independently of the model: stock equals what was put in minus what was sold or is held, and
/// balances equal charges minus spending plus refunds. No template has issued more coupons than its
/// limit, and no user has more pieces of a product than its limit ever allowed.
fn check_conservation(truth: &Truth, placed: &[Placed], report: &mut Report) {
    check_stock(truth, report);
    check_money(truth, placed, report);
    check_purchases(truth, placed, report);
    let issued = truth.coupons.values().fold(BTreeMap::<&str, u64>::new(), |mut issued, coupon| {
        *issued.entry(&coupon.template_id).or_default() += 1;
        issued
    });
    for (template, (limit, count)) in &truth.templates {
        let held = issued.get(template.as_str()).copied().unwrap_or(0);
        if held != *count || held > *limit {
            let what = format!("{template}: {held} coupons, {count} counted, limit {limit}");
            report.add(Kind::Conservation, what);
        }
    }
}

/// Orders that are paid or pending.
fn live_orders(truth: &Truth) -> impl Iterator<Item = &TruthOrder> {
    truth.orders.values().filter(|order| matches!(order.status.as_str(), "paid" | "pending"))
}

fn check_stock(truth: &Truth, report: &mut Report) {
    let mut stock = truth.put_in.clone();
    for order in live_orders(truth) {
        for (product, quantity, _) in &order.lines {
            *stock.entry(product.clone()).or_default() -= quantity.cast_signed();
        }
    }
    for (product, TruthProduct { stock: left, .. }) in &truth.products {
        let expected = stock.get(product).copied().unwrap_or(0);
        if expected != left.cast_signed() {
            report.add(
                Kind::Conservation,
                format!("{product}: put in − sold − held = {expected}, stock {left}"),
            );
        }
    }
}

fn check_purchases(truth: &Truth, placed: &[Placed], report: &mut Report) {
    let mut bought: BTreeMap<(u64, String), u64> = BTreeMap::new();
    for order in live_orders(truth) {
        for (_, quantity, limit) in &order.lines {
            if let Some(number) = limit {
                *bought.entry((*number, order.user_id.clone())).or_default() += quantity;
            }
        }
    }
    for (of, counted) in &truth.purchases {
        let pieces = bought.get(of).copied().unwrap_or(0);
        if pieces != *counted {
            let what = format!("{of:?}: {pieces} pieces in orders, {counted} counted");
            report.add(Kind::Conservation, what);
        }
    }
    let mut highest: HashMap<u64, u64> = HashMap::new();
    for Placed { fact, .. } in placed {
        if let Fact::ProductPut(f) = fact
            && let Some(rules) = &f.rules
            && let (Some(limit), Some(number)) = (rules.per_user_limit, rules.limit_number)
        {
            let most = highest.entry(number).or_default();
            *most = limit.max(*most);
        }
    }
    for ((number, user), pieces) in bought {
        let most = highest.get(&number).copied().unwrap_or(0);
        if pieces > most {
            let what = format!("{user}: {pieces} pieces under limit {number}, at most {most}");
            report.add(Kind::Conservation, what);
        }
    }
}

fn check_money(truth: &Truth, placed: &[Placed], report: &mut Report) {
    let mut money: BTreeMap<&str, i64> = BTreeMap::new();
    for Placed { fact, .. } in placed {
        let (user, amount) = match fact {
            Fact::WalletCharged(f) => (&f.user_id, f.amount.cast_signed()),
            Fact::OrderPlaced(f) => (&f.user_id, -model::wallet_amount(f).cast_signed()),
            Fact::OrderCancelled(f) => (&f.user_id, f.refund.cast_signed()),
            Fact::OrderExpired(f) => (&f.user_id, f.refund.cast_signed()),
            _ => continue,
        };
        *money.entry(user).or_default() += amount;
    }
    for (user, balance) in &truth.wallets {
        let expected = money.get(user.as_str()).copied().unwrap_or(0);
        if expected != balance.cast_signed() {
            let what =
                format!("{user}: charges − spending + refunds = {expected}, balance {balance}");
            report.add(Kind::Conservation, what);
        }
    }
}

/// The queue received exactly one event per completed, cancelled and expired order, with the order's
/// contents at that time.
fn check_messages(history: &History, last: &Shop, report: &mut Report) {
    let mut expected: BTreeMap<String, Value> = BTreeMap::new();
    for (id, order) in &last.orders {
        let paid = Order { cancelled: None, ..order.clone() };
        if paid.status() == OrderStatus::Paid {
            expected.insert(format!("{id}.completed"), view::order(&paid));
        }
        match order.status() {
            status @ (OrderStatus::Cancelled | OrderStatus::Expired) => {
                expected.insert(format!("{id}.{}", status.as_str()), view::order(order));
            }
            OrderStatus::Paid | OrderStatus::Pending => {}
        }
    }
    for (id, order) in &expected {
        match history.events.get(id) {
            None => report.add(Kind::Messages, format!("{id} was not delivered")),
            Some(event) if !view::contains(&event["data"], order) => {
                report.add(Kind::Messages, format!("{id} tells {}, not {order}", event["data"]));
            }
            Some(_) => {}
        }
    }
    for id in history.events.keys().filter(|id| !expected.contains_key(*id)) {
        report.add(Kind::Messages, format!("{id} is of no order"));
    }
}
