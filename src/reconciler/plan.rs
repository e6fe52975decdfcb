//! From entries to columns, without I/O: what one transaction writes to the truth.
//!
//! After-images make this simple: of several entries that touch the same row, the last one's values stand. Maps are
//! ordered, so that rows are always written in the same order.

use std::collections::{BTreeMap, HashMap};
use uuid::Uuid;

use crate::domain::event::{OutboxEvent, order_completed};
use crate::domain::{OrderView, TimestampMs};
use crate::log::fact::{
    CouponIssued, Facts, Idempotency, OrderCancelled, OrderPlaced, ProductPut, StockAdjusted, TemplatePut,
    WalletCharged,
};
use crate::log::{Entry, EntryError, RawEntry};
use crate::telemetry::trace::TraceMark;

/// A value that PostgreSQL's `bigint` cannot hold, or an event that cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    #[error("{0} does not fit into PostgreSQL's bigint")]
    TooLarge(u64),
    #[error("an event cannot be written: {0}")]
    Event(#[from] serde_json::Error),
    #[error(transparent)]
    Entry(#[from] EntryError),
}

/// An entry, decoded, and the events of the orders that it places: what can be done before its turn has come.
pub struct Prepared {
    entry: Entry,
    completed: Vec<(OutboxEvent, TimestampMs)>,
}

impl Prepared {
    pub fn of(raw: &RawEntry) -> Result<Self, PlanError> {
        let entry = raw.decode()?;
        let mut completed = Vec::new();
        if let Facts::OrdersPlaced(orders) = &entry.facts {
            for order in orders {
                let (id, at) = (order.order_id.0, order.ordered_at);
                let event = order_completed(id, at, &OrderView::from(order), entry.traces.get(&id))?;
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
pub struct WalletEntries<'a> {
    pub user_ids: Vec<&'a str>,
    pub kinds: Vec<&'static str>,
    pub amounts: Vec<i64>,
    pub balances: Vec<i64>,
    pub ref_ids: Vec<Uuid>,
    pub at_ms: Vec<i64>,
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
pub struct Coupons<'a> {
    pub coupon_ids: Vec<Uuid>,
    pub template_ids: Vec<&'a str>,
    pub user_ids: Vec<&'a str>,
    pub serials: Vec<i64>,
    pub issued_at_ms: Vec<i64>,
    pub expires_at_ms: Vec<i64>,
}

#[derive(Debug, Default)]
pub struct Orders<'a> {
    pub order_ids: Vec<Uuid>,
    pub user_ids: Vec<&'a str>,
    pub subtotals: Vec<i64>,
    pub discounts: Vec<i64>,
    pub totals: Vec<i64>,
    pub coupon_ids: Vec<Option<Uuid>>,
    pub balances: Vec<i64>,
    pub at_ms: Vec<i64>,
}

#[derive(Debug, Default)]
pub struct OrderItems<'a> {
    pub order_ids: Vec<Uuid>,
    pub line_nos: Vec<i16>,
    pub product_ids: Vec<&'a str>,
    pub names: Vec<&'a str>,
    pub unit_prices: Vec<i64>,
    pub quantities: Vec<i64>,
    pub amounts: Vec<i64>,
}

#[derive(Debug, Default)]
pub struct Cancellations {
    pub order_ids: Vec<Uuid>,
    pub balances: Vec<i64>,
    pub coupon_returned: Vec<bool>,
    pub at_ms: Vec<i64>,
}

/// Everything that a batch of entries changes. It borrows from the entries: they are many, and read once.
#[derive(Debug, Default)]
pub struct Plan<'a> {
    pub products: BTreeMap<&'a str, &'a ProductPut>,
    /// product → stock, when
    pub stocks: BTreeMap<&'a str, (i64, TimestampMs)>,
    pub stock_adjustments: StockAdjustments<'a>,
    pub templates: BTreeMap<&'a str, &'a TemplatePut>,
    /// template → coupons issued
    pub issued: BTreeMap<&'a str, i64>,
    pub coupons: Coupons<'a>,
    /// coupon → the order that uses it, since when; `None`: it was returned
    pub coupon_uses: BTreeMap<Uuid, Option<(Uuid, TimestampMs)>>,
    /// user → balance, when
    pub wallets: BTreeMap<&'a str, (i64, TimestampMs)>,
    pub wallet_entries: WalletEntries<'a>,
    pub orders: Orders<'a>,
    pub order_items: OrderItems<'a>,
    pub cancellations: Cancellations,
    /// scope → request hash, reply, when
    pub idempotency: BTreeMap<&'a str, (&'a [u8], &'a [u8], TimestampMs)>,
    /// Of completed orders. Those of cancelled ones carry the whole order and are made when it is in the truth.
    pub events: Vec<&'a (OutboxEvent, TimestampMs)>,
    /// The time of the last decision.
    pub clock_ms: TimestampMs,
    /// Of the requests that placed orders, by order. An entry's marks are also those of requests that its batch refused or
    /// repeated, so each is looked up in the entry that holds the decision: what an event tells must not depend on which
    /// entries are applied together.
    pub traces: HashMap<Uuid, &'a TraceMark>,
    /// Of the requests that cancelled them.
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

    /// The traces of what was decided, and when it was.
    pub fn traced(&self) -> impl Iterator<Item = (&'static str, &'a TraceMark, TimestampMs)> {
        fn of<'a>(
            name: &'static str,
            marks: &HashMap<Uuid, &'a TraceMark>,
            ids: &[Uuid],
            at_ms: &[TimestampMs],
        ) -> Vec<(&'static str, &'a TraceMark, TimestampMs)> {
            ids.iter().zip(at_ms).filter_map(|(id, at)| Some((name, *marks.get(id)?, *at))).collect()
        }
        let orders = of("apply order", &self.traces, &self.orders.order_ids, &self.orders.at_ms);
        let c = &self.cancellations;
        let cancelled = of("apply cancellation", &self.cancel_traces, &c.order_ids, &c.at_ms);
        orders.into_iter().chain(cancelled)
    }

    /// Outbox rows that this plan writes.
    pub fn event_count(&self) -> u64 {
        (self.events.len() + self.cancellations.order_ids.len()) as u64
    }

    fn add(&mut self, entry: &'a Entry) -> Result<(), PlanError> {
        self.clock_ms = self.clock_ms.max(entry.decided_at);
        let marks = |ids: Vec<Uuid>| {
            ids.into_iter().filter_map(|id| Some((id, entry.traces.get(&id)?))).collect::<Vec<_>>()
        };
        match &entry.facts {
            _ if entry.traces.is_empty() => {}
            Facts::OrdersPlaced(all) => {
                self.traces.extend(marks(all.iter().map(|f| f.order_id.0).collect()));
            }
            Facts::OrdersCancelled(all) => {
                self.cancel_traces.extend(marks(all.iter().map(|f| f.order_id.0).collect()));
            }
            _ => {}
        }
        let raw = |i: usize| entry.raw_facts.get(i).map_or(&[][..], Vec::as_slice);
        macro_rules! each {
            ($facts:expr, $add:ident) => {
                for (i, fact) in $facts.iter().enumerate() {
                    self.$add(fact)?;
                    self.remember(&fact.idempotency, raw(i), entry.decided_at);
                }
            };
        }
        match &entry.facts {
            Facts::CouponsIssued(facts) => each!(facts, coupon_issued),
            Facts::WalletsCharged(facts) => each!(facts, wallet_charged),
            Facts::OrdersPlaced(facts) => each!(facts, order_placed),
            Facts::OrdersCancelled(facts) => each!(facts, order_cancelled),
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
        let c = &mut self.coupons;
        c.coupon_ids.push(f.coupon_id.0);
        c.template_ids.push(&f.template_id);
        c.user_ids.push(&f.user_id);
        c.serials.push(serial);
        c.issued_at_ms.push(f.issued_at);
        c.expires_at_ms.push(f.expires_at);
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
        let w = &mut self.wallet_entries;
        w.user_ids.push(user);
        w.kinds.push(kind);
        w.amounts.push(amount);
        w.balances.push(balance);
        w.ref_ids.push(ref_id);
        w.at_ms.push(at);
        Ok(())
    }

    fn wallet_charged(&mut self, f: &'a WalletCharged) -> Result<(), PlanError> {
        let amount = big(f.amount)?;
        self.wallet_changed(&f.user_id, "charge", amount, f.balance_after, f.charge_id.0, f.charged_at)
    }

    fn order_placed(&mut self, f: &'a OrderPlaced) -> Result<(), PlanError> {
        let (order_id, at) = (f.order_id.0, f.ordered_at);
        for (i, line) in f.lines.iter().enumerate() {
            self.stocks.insert(&line.product_id, (big(line.stock_after)?, at));
            let items = &mut self.order_items;
            items.order_ids.push(order_id);
            items.line_nos.push(i16::try_from(i + 1).map_err(|_| PlanError::TooLarge(i as u64))?);
            items.product_ids.push(&line.product_id);
            items.names.push(&line.name);
            items.unit_prices.push(big(line.unit_price)?);
            items.quantities.push(big(line.quantity)?);
            items.amounts.push(big(line.amount)?);
        }
        if let Some(coupon) = f.coupon_id {
            self.coupon_uses.insert(coupon.0, Some((order_id, at)));
        }
        let o = &mut self.orders;
        o.order_ids.push(order_id);
        o.user_ids.push(&f.user_id);
        o.subtotals.push(big(f.subtotal)?);
        o.discounts.push(big(f.discount)?);
        o.totals.push(big(f.total)?);
        o.coupon_ids.push(f.coupon_id.map(|id| id.0));
        o.balances.push(big(f.balance_after)?);
        o.at_ms.push(at);
        self.wallet_changed(&f.user_id, "payment", -big(f.total)?, f.balance_after, order_id, at)
    }

    fn order_cancelled(&mut self, f: &'a OrderCancelled) -> Result<(), PlanError> {
        let at = f.cancelled_at;
        for line in &f.lines {
            self.stocks.insert(&line.product_id, (big(line.stock_after)?, at));
        }
        if let (Some(coupon), true) = (f.coupon_id, f.coupon_returned) {
            self.coupon_uses.insert(coupon.0, None);
        }
        let c = &mut self.cancellations;
        c.order_ids.push(f.order_id.0);
        c.balances.push(big(f.balance_after)?);
        c.coupon_returned.push(f.coupon_returned);
        c.at_ms.push(at);
        self.wallet_changed(&f.user_id, "refund", big(f.refund)?, f.balance_after, f.order_id.0, at)
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
        self.stock_adjustment(&f.product_id, f.delta, f.stock_after, f.reason.as_deref(), f.adjusted_at)
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
