//! From entries to rows, without I/O: what one transaction writes to PostgreSQL.
//!
//! Entries hold after-images: if several entries of a batch touch the same row, the values of the
//! last one are written. The maps are ordered, so that rows are always written in the same order.

use std::collections::{BTreeMap, HashMap};
use uuid::Uuid;

use crate::domain::event::{OutboxEvent, order_completed};
use crate::domain::fact::{
    CouponIssued, Facts, Idempotency, OrderCancelled, OrderPlaced, ProductPut, StockAdjusted,
    TemplatePut, WalletCharged,
};
use crate::domain::trace_mark::TraceMark;
use crate::domain::{OrderView, TimestampMs};
use crate::log::{Entry, EntryError, RawEntry};

use super::copy_buffer::{CopyBuffer, Field};

/// Trace marks of an entry's requests, by the id of what was decided.
type Traces = HashMap<Uuid, TraceMark>;

/// Won that were moved, by kind of ledger entry.
pub type Won = BTreeMap<&'static str, u64>;

/// Why entries cannot be written: a value is too large for `bigint`, an event cannot be encoded, or
/// an entry cannot be decoded.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    #[error("{0} does not fit into PostgreSQL's bigint")]
    TooLarge(u64),
    #[error("an event cannot be encoded: {0}")]
    Event(#[from] serde_json::Error),
    #[error(transparent)]
    Entry(#[from] EntryError),
}

/// A decoded entry and the events of the orders that it places: the work that can be done before
/// its turn comes.
pub struct Prepared {
    entry: Entry,
    completed: Vec<(OutboxEvent, TimestampMs)>,
}

impl Prepared {
    pub fn of(raw: &RawEntry) -> Result<Self, PlanError> {
        Self::from_entry(raw.decode()?)
    }

    pub fn from_entry(entry: Entry) -> Result<Self, PlanError> {
        let mut completed = Vec::new();
        if let Facts::OrdersPlaced(orders) = &entry.facts {
            for order in orders {
                let (id, at) = (order.order_id.0, order.ordered_at);
                let event =
                    order_completed(id, at, &OrderView::from(order), entry.traces.get(&id))?;
                completed.push((event, at));
            }
        }
        Ok(Self { entry, completed })
    }
}

fn big(value: u64) -> Result<i64, PlanError> {
    i64::try_from(value).map_err(|_| PlanError::TooLarge(value))
}

#[derive(Debug, Default)]
pub struct StockAdjustments<'a> {
    pub product_ids: Vec<&'a str>,
    pub deltas: Vec<i64>,
    pub stocks: Vec<i64>,
    pub reasons: Vec<Option<&'a str>>,
    pub at_ms: Vec<i64>,
}

#[derive(Debug, Default)]
pub struct Cancellations {
    pub order_ids: Vec<Uuid>,
    pub balances: Vec<i64>,
    pub coupon_returned: Vec<bool>,
    pub at_ms: Vec<i64>,
}

/// Everything that a batch of entries changes. It borrows from the entries, which are many and read
/// only once.
#[derive(Debug, Default)]
pub struct Plan<'a> {
    pub products: BTreeMap<&'a str, &'a ProductPut>,
    /// product → stock, time of the change
    pub stocks: BTreeMap<&'a str, (i64, TimestampMs)>,
    pub stock_adjustments: StockAdjustments<'a>,
    pub templates: BTreeMap<&'a str, &'a TemplatePut>,
    /// template → coupons issued
    pub issued: BTreeMap<&'a str, i64>,
    pub coupons: CopyBuffer<6>,
    /// coupon → the order that uses it and since when; `None`: it was returned
    pub coupon_uses: BTreeMap<Uuid, Option<(Uuid, TimestampMs)>>,
    /// user → balance, time of the change
    pub wallets: BTreeMap<&'a str, (i64, TimestampMs)>,
    pub wallet_entries: CopyBuffer<6>,
    /// Won that `wallet_entries` moves, by kind.
    pub won: Won,
    pub orders: CopyBuffer<9>,
    pub order_items: CopyBuffer<7>,
    pub cancellations: Cancellations,
    /// scope → request hash, reply, time of the decision
    pub idempotency: BTreeMap<&'a str, (&'a [u8], &'a [u8], TimestampMs)>,
    /// Events of completed orders. Those of cancelled orders carry the whole order, and are built
    /// once it is in PostgreSQL.
    pub events: Vec<&'a (OutboxEvent, TimestampMs)>,
    /// The time of the latest decision.
    pub clock_ms: TimestampMs,
    /// For each request that placed or cancelled an order: what was done, the trace mark, the time
    /// of the decision. An entry also carries the marks of requests that its batch refused or
    /// replayed, so each mark is looked up in the entry that holds the decision: the content of an
    /// event must not depend on which entries are applied together.
    pub traced: Vec<(&'static str, &'a TraceMark, TimestampMs)>,
    /// Trace marks of the requests that cancelled orders, by order.
    pub cancel_traces: HashMap<Uuid, &'a TraceMark>,
}

impl<'a> Plan<'a> {
    pub fn of(prepared: &'a [Prepared]) -> Result<Self, PlanError> {
        let mut plan = Self::default();
        for Prepared { entry, completed } in prepared {
            plan.add(entry)?;
            plan.events.extend(completed);
        }
        Ok(plan)
    }

    /// Outbox rows that this plan writes.
    pub fn event_count(&self) -> u64 {
        (self.events.len() + self.cancellations.order_ids.len()) as u64
    }

    fn add(&mut self, entry: &'a Entry) -> Result<(), PlanError> {
        self.clock_ms = self.clock_ms.max(entry.decided_at);
        let raw = |i: usize| entry.raw_facts.get(i).map_or(&[][..], Vec::as_slice);
        macro_rules! each {
            ($facts:expr, $add:ident $(, $more:expr)?) => {
                for (i, fact) in $facts.iter().enumerate() {
                    self.$add(fact $(, $more)?)?;
                    self.remember(&fact.idempotency, raw(i), entry.decided_at);
                }
            };
        }
        match &entry.facts {
            Facts::CouponsIssued(facts) => each!(facts, coupon_issued),
            Facts::WalletsCharged(facts) => each!(facts, wallet_charged),
            Facts::OrdersPlaced(facts) => each!(facts, order_placed, &entry.traces),
            Facts::OrdersCancelled(facts) => each!(facts, order_cancelled, &entry.traces),
            Facts::ProductsPut(facts) => each!(facts, product_put),
            Facts::StocksAdjusted(facts) => each!(facts, stock_adjusted),
            Facts::TemplatesPut(facts) => each!(facts, template_put),
        }
        Ok(())
    }

    fn remember(&mut self, key: &'a Option<Idempotency>, reply: &'a [u8], at: TimestampMs) {
        if let Some(Idempotency { scope, request_hash }) = key {
            self.idempotency.insert(scope, (&request_hash.0, reply, at));
        }
    }

    fn coupon_issued(&mut self, f: &'a CouponIssued) -> Result<(), PlanError> {
        let serial = big(f.serial)?;
        self.issued.insert(&f.template_id, serial);
        self.coupons.add([
            Field::Uuid(f.coupon_id.0),
            Field::Text(&f.template_id),
            Field::Text(&f.user_id),
            Field::Bigint(serial),
            Field::Time(f.issued_at),
            Field::Time(f.expires_at),
        ]);
        Ok(())
    }

    fn wallet_changed(
        &mut self,
        user: &'a str,
        kind: &'static str,
        amount: i64,
        balance: u64,
        ref_id: Uuid,
        at: TimestampMs,
    ) -> Result<(), PlanError> {
        let balance = big(balance)?;
        self.wallets.insert(user, (balance, at));
        *self.won.entry(kind).or_default() += amount.unsigned_abs();
        self.wallet_entries.add([
            Field::Text(user),
            Field::Text(kind),
            Field::Bigint(amount),
            Field::Bigint(balance),
            Field::Uuid(ref_id),
            Field::Time(at),
        ]);
        Ok(())
    }

    /// A charge of 0 is logged only for the record of its idempotency key, and changes nothing
    /// else.
    fn wallet_charged(&mut self, f: &'a WalletCharged) -> Result<(), PlanError> {
        let amount = big(f.amount)?;
        if amount == 0 {
            return Ok(());
        }
        self.wallet_changed(
            &f.user_id,
            "charge",
            amount,
            f.balance_after,
            f.charge_id.0,
            f.charged_at,
        )
    }

    fn order_placed(&mut self, f: &'a OrderPlaced, marks: &'a Traces) -> Result<(), PlanError> {
        let (order_id, at) = (f.order_id.0, f.ordered_at);
        self.traced.extend(marks.get(&order_id).map(|mark| ("apply order", mark, at)));
        for (i, line) in f.lines.iter().enumerate() {
            self.stocks.insert(&line.product_id, (big(line.stock_after)?, at));
            self.order_items.add([
                Field::Uuid(order_id),
                Field::Smallint(i16::try_from(i + 1).map_err(|_| PlanError::TooLarge(i as u64))?),
                Field::Text(&line.product_id),
                Field::Text(&line.name),
                Field::Bigint(big(line.unit_price)?),
                Field::Bigint(big(line.quantity)?),
                Field::Bigint(big(line.amount)?),
            ]);
        }
        if let Some(coupon) = f.coupon_id {
            self.coupon_uses.insert(coupon.0, Some((order_id, at)));
        }
        self.orders.add([
            Field::Uuid(order_id),
            Field::Text(&f.user_id),
            Field::Text("paid"),
            Field::Bigint(big(f.subtotal)?),
            Field::Bigint(big(f.discount)?),
            Field::Bigint(big(f.total)?),
            f.coupon_id.map_or(Field::Null, |id| Field::Uuid(id.0)),
            Field::Bigint(big(f.balance_after)?),
            Field::Time(at),
        ]);
        self.wallet_changed(&f.user_id, "payment", -big(f.total)?, f.balance_after, order_id, at)
    }

    fn order_cancelled(
        &mut self,
        f: &'a OrderCancelled,
        marks: &'a Traces,
    ) -> Result<(), PlanError> {
        let (order_id, at) = (f.order_id.0, f.cancelled_at);
        if let Some(mark) = marks.get(&order_id) {
            self.traced.push(("apply cancellation", mark, at));
            self.cancel_traces.insert(order_id, mark);
        }
        for line in &f.lines {
            self.stocks.insert(&line.product_id, (big(line.stock_after)?, at));
        }
        if let (Some(coupon), true) = (f.coupon_id, f.coupon_returned) {
            self.coupon_uses.insert(coupon.0, None);
        }
        let c = &mut self.cancellations;
        c.order_ids.push(order_id);
        c.balances.push(big(f.balance_after)?);
        c.coupon_returned.push(f.coupon_returned);
        c.at_ms.push(at);
        self.wallet_changed(&f.user_id, "refund", big(f.refund)?, f.balance_after, order_id, at)
    }

    fn product_put(&mut self, f: &'a ProductPut) -> Result<(), PlanError> {
        if f.created {
            self.stock_adjustment(
                &f.product_id,
                big(f.stock_after)?,
                f.stock_after,
                Some("initial stock"),
                f.put_at,
            )?;
        }
        self.products.insert(&f.product_id, f);
        Ok(())
    }

    fn stock_adjusted(&mut self, f: &'a StockAdjusted) -> Result<(), PlanError> {
        self.stock_adjustment(
            &f.product_id,
            f.delta,
            f.stock_after,
            f.reason.as_deref(),
            f.adjusted_at,
        )
    }

    fn stock_adjustment(
        &mut self,
        product: &'a str,
        delta: i64,
        stock: u64,
        reason: Option<&'a str>,
        at: TimestampMs,
    ) -> Result<(), PlanError> {
        let stock = big(stock)?;
        self.stocks.insert(product, (stock, at));
        let s = &mut self.stock_adjustments;
        s.product_ids.push(product);
        s.deltas.push(delta);
        s.stocks.push(stock);
        s.reasons.push(reason);
        s.at_ms.push(at);
        Ok(())
    }

    fn template_put(&mut self, f: &'a TemplatePut) -> Result<(), PlanError> {
        self.issued.insert(&f.template_id, big(f.issued)?);
        self.templates.insert(&f.template_id, f);
        Ok(())
    }
}
