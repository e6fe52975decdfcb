//! From entries to rows, without I/O: what one transaction writes to PostgreSQL.
//!
//! Entries hold after-images: if several entries of a batch touch the same row, the values of the
//! last one are written. The maps are ordered, so that rows are always written in the same order.

use std::collections::{BTreeMap, HashMap};
use uuid::Uuid;

use crate::domain::event::{OutboxEvent, order_completed};
use crate::domain::fact::{
    CouponIssued, Facts, Idempotency, OrderCancelled, OrderConfirmed, OrderExpired, OrderExtras,
    OrderPlaced, ProductPut, PurchaseCount, StockAdjusted, TemplatePut, TemplateTerms,
    WalletCharged,
};
use crate::domain::trace_mark::TraceMark;
use crate::domain::{OrderStatus, OrderView, TimestampMs};
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

/// A decoded entry and the events of the orders that it completes: the work that can be done before
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
        let mut complete = |order: &OrderView, at: TimestampMs| -> Result<(), PlanError> {
            let (id, trace) = (order.order_id, entry.traces.get(&order.order_id));
            completed.push((order_completed(id, at, order, trace)?, at));
            Ok(())
        };
        match &entry.facts {
            Facts::OrdersPlaced(orders) => {
                for order in orders {
                    let view = OrderView::from(order);
                    if view.status == OrderStatus::Paid {
                        complete(&view, order.ordered_at)?;
                    }
                }
            }
            Facts::OrdersConfirmed(orders) => {
                for order in orders {
                    complete(&OrderView::from(order), order.paid_at)?;
                }
            }
            _ => {}
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

#[derive(Debug, Default)]
pub struct Confirmations<'a> {
    pub order_ids: Vec<Uuid>,
    pub references: Vec<&'a str>,
    pub balances: Vec<i64>,
    pub at_ms: Vec<i64>,
}

/// Everything that a batch of entries changes. It borrows from the entries, which are many and read
/// only once.
#[derive(Debug, Default)]
pub struct Plan<'a> {
    pub products: BTreeMap<&'a str, &'a ProductPut>,
    /// product → the latest number of a limit per user, also of one that was removed after it was
    /// set: no number may be used twice
    pub limit_numbers: BTreeMap<&'a str, i64>,
    /// product → stock, time of the change
    pub stocks: BTreeMap<&'a str, (i64, TimestampMs)>,
    pub stock_adjustments: StockAdjustments<'a>,
    pub templates: BTreeMap<&'a str, &'a TemplatePut>,
    /// template → coupons issued
    pub issued: BTreeMap<&'a str, i64>,
    /// number → template, terms
    pub terms: BTreeMap<i64, (&'a str, &'a TemplateTerms)>,
    pub coupons: CopyBuffer<6>,
    /// The same with the number of their terms.
    pub coupons_of_later_terms: CopyBuffer<7>,
    /// coupon → the order that uses it and since when; `None`: it was returned
    pub coupon_uses: BTreeMap<Uuid, Option<(Uuid, TimestampMs)>>,
    /// user → balance, time of the change
    pub wallets: BTreeMap<&'a str, (i64, TimestampMs)>,
    pub wallet_entries: CopyBuffer<6>,
    /// Won that `wallet_entries` moves, by kind.
    pub won: Won,
    pub orders: CopyBuffer<9>,
    pub order_items: CopyBuffer<7>,
    /// Orders that have more than a payment from the wallet: also whether paid outside, wallet
    /// amount, end of the hold, reference.
    pub orders_with_more: CopyBuffer<13>,
    /// The same with the number of the limit that the line counts for.
    pub counted_items: CopyBuffer<8>,
    pub confirmations: Confirmations<'a>,
    pub expiries: Cancellations,
    pub cancellations: Cancellations,
    /// (limit, user) → pieces bought
    pub purchases: BTreeMap<(i64, &'a str), i64>,
    /// The highest format version of the entries.
    pub format: u64,
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
        let given_back = self.cancellations.order_ids.len() + self.expiries.order_ids.len();
        (self.events.len() + given_back) as u64
    }

    fn add(&mut self, entry: &'a Entry) -> Result<(), PlanError> {
        self.clock_ms = self.clock_ms.max(entry.decided_at);
        self.format = self.format.max(entry.version);
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
            Facts::OrdersConfirmed(facts) => each!(facts, order_confirmed, &entry.traces),
            Facts::OrdersExpired(facts) => each!(facts, order_expired),
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
        let [id, template, user] =
            [Field::Uuid(f.coupon_id.0), Field::Text(&f.template_id), Field::Text(&f.user_id)];
        let [serial, from, until] =
            [Field::Bigint(serial), Field::Time(f.issued_at), Field::Time(f.expires_at)];
        match f.terms_number {
            None => self.coupons.add([id, template, user, serial, from, until]),
            Some(number) => {
                let number = Field::Bigint(big(number)?);
                let row = [id, template, user, serial, from, until, number];
                self.coupons_of_later_terms.add(row);
            }
        }
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
        let counts = f.more.as_ref().map_or(&[][..], |more| more.counts.as_slice());
        for (i, line) in f.lines.iter().enumerate() {
            self.stocks.insert(&line.product_id, (big(line.stock_after)?, at));
            let [id, number, product, name] = [
                Field::Uuid(order_id),
                Field::Smallint(i16::try_from(i + 1).map_err(|_| PlanError::TooLarge(i as u64))?),
                Field::Text(&line.product_id),
                Field::Text(&line.name),
            ];
            let [price, quantity, amount] = [
                Field::Bigint(big(line.unit_price)?),
                Field::Bigint(big(line.quantity)?),
                Field::Bigint(big(line.amount)?),
            ];
            match counts.iter().find(|count| count.line == i as u64) {
                None => {
                    self.order_items.add([id, number, product, name, price, quantity, amount]);
                }
                Some(count) => {
                    let limit = Field::Bigint(big(count.limit_number)?);
                    let row = [id, number, product, name, price, quantity, amount, limit];
                    self.counted_items.add(row);
                }
            }
        }
        self.count_purchases(&f.user_id, counts)?;
        if let Some(coupon) = f.coupon_id {
            self.coupon_uses.insert(coupon.0, Some((order_id, at)));
        }
        let outside = f.more.as_ref().and_then(|more| more.outside);
        let pending = outside.is_some_and(|outside| outside.hold_expires_at.is_some());
        let row = [
            Field::Uuid(order_id),
            Field::Text(&f.user_id),
            Field::Text(if pending { "pending" } else { "paid" }),
            Field::Bigint(big(f.subtotal)?),
            Field::Bigint(big(f.discount)?),
            Field::Bigint(big(f.total)?),
            f.coupon_id.map_or(Field::Null, |id| Field::Uuid(id.0)),
            Field::Bigint(big(f.balance_after)?),
            Field::Time(at),
        ];
        match &f.more {
            None => self.orders.add(row),
            Some(more) => self.order_with_more(row, more)?,
        }
        let won = outside.map_or(f.total, |outside| outside.wallet_amount);
        self.paid_from_wallet(
            outside.is_some(),
            &f.user_id,
            -big(won)?,
            f.balance_after,
            order_id,
            at,
        )
    }

    fn order_with_more(
        &mut self,
        row: [Field<'_>; 9],
        more: &OrderExtras,
    ) -> Result<(), PlanError> {
        let [id, user, status, subtotal, discount, total, coupon, balance, at] = row;
        let won = more.outside.map(|outside| big(outside.wallet_amount)).transpose()?;
        let ends = more.outside.and_then(|outside| outside.hold_expires_at);
        self.orders_with_more.add([
            id,
            user,
            status,
            subtotal,
            discount,
            total,
            coupon,
            balance,
            at,
            Field::Bool(more.outside.is_some()),
            won.map_or(Field::Null, Field::Bigint),
            ends.map_or(Field::Null, Field::Time),
            more.reference.as_deref().map_or(Field::Null, Field::Text),
        ]);
        Ok(())
    }

    /// What an order took from the wallet, or gave back to it. An order that is paid outside alone
    /// never touches the wallet.
    fn paid_from_wallet(
        &mut self,
        outside: bool,
        user: &'a str,
        amount: i64,
        balance: u64,
        order_id: Uuid,
        at: TimestampMs,
    ) -> Result<(), PlanError> {
        if outside && amount == 0 {
            return Ok(());
        }
        let kind = if amount > 0 { "refund" } else { "payment" };
        self.wallet_changed(user, kind, amount, balance, order_id, at)
    }

    fn count_purchases(
        &mut self,
        user: &'a str,
        counts: &[PurchaseCount],
    ) -> Result<(), PlanError> {
        for count in counts {
            let key = (big(count.limit_number)?, user);
            self.purchases.insert(key, big(count.bought_after)?);
        }
        Ok(())
    }

    fn order_confirmed(
        &mut self,
        f: &'a OrderConfirmed,
        marks: &'a Traces,
    ) -> Result<(), PlanError> {
        let (order_id, at) = (f.order_id.0, f.paid_at);
        self.traced.extend(marks.get(&order_id).map(|mark| ("apply confirmation", mark, at)));
        let c = &mut self.confirmations;
        c.order_ids.push(order_id);
        c.references.push(&f.payment_reference);
        c.balances.push(big(f.balance_after)?);
        c.at_ms.push(at);
        Ok(())
    }

    fn order_expired(&mut self, f: &'a OrderExpired) -> Result<(), PlanError> {
        let (order_id, at) = (f.order_id.0, f.expired_at);
        for line in &f.lines {
            self.stocks.insert(&line.product_id, (big(line.stock_after)?, at));
        }
        self.count_purchases(&f.user_id, &f.counts)?;
        if let (Some(coupon), true) = (f.coupon_id, f.coupon_returned) {
            self.coupon_uses.insert(coupon.0, None);
        }
        let e = &mut self.expiries;
        e.order_ids.push(order_id);
        e.balances.push(big(f.balance_after)?);
        e.coupon_returned.push(f.coupon_returned);
        e.at_ms.push(at);
        self.paid_from_wallet(true, &f.user_id, big(f.refund)?, f.balance_after, order_id, at)
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
        let more = f.more.as_ref();
        if let Some(more) = more {
            self.count_purchases(&f.user_id, &more.counts)?;
        }
        if more.is_some_and(|more| more.paid_outside.is_some()) && f.refund == 0 {
            return Ok(());
        }
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
        if let Some(number) = f.rules.as_ref().and_then(|rules| rules.limit_number) {
            self.limit_numbers.insert(&f.product_id, big(number)?);
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
        self.terms.insert(big(f.terms_number.unwrap_or(f.number))?, (&f.template_id, &f.terms));
        Ok(())
    }
}
