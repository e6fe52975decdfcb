//! From entries to rows, without I/O: what one transaction writes to the truth.
//!
//! After-images make this simple: of several entries that touch the same row, the last one's values stand. Maps are
//! ordered, so that rows are always written in the same order.

use std::collections::{BTreeMap, HashMap};
use uuid::Uuid;

use super::copy::{At, CopyRows};
use crate::domain::event::{OutboxEvent, order_completed};
use crate::domain::{OrderView, TimestampMs};
use crate::log::Entry;
use crate::log::fact::{
    CouponIssued, Facts, Idempotency, OrderCancelled, OrderPlaced, ProductPut, StockAdjusted, TemplatePut,
    WalletCharged,
};
use crate::telemetry::trace::TraceMark;

/// A value that PostgreSQL's `bigint` cannot hold, or an event that cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    #[error("{0} does not fit into PostgreSQL's bigint")]
    TooLarge(u64),
    #[error("an event cannot be written: {0}")]
    Event(#[from] serde_json::Error),
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
    pub coupons: CopyRows,
    /// coupon → the order that uses it, since when; `None`: it was returned
    pub coupon_uses: BTreeMap<Uuid, Option<(Uuid, TimestampMs)>>,
    /// user → balance, when
    pub wallets: BTreeMap<&'a str, (i64, TimestampMs)>,
    pub wallet_entries: CopyRows,
    /// kind of ledger entry → won
    pub won: BTreeMap<&'static str, u64>,
    pub orders: CopyRows,
    pub order_items: CopyRows,
    pub cancellations: Cancellations,
    /// scope → request hash, reply, when
    pub idempotency: BTreeMap<&'a str, (&'a [u8], &'a [u8], TimestampMs)>,
    /// Outbox rows of completed orders. Those of cancelled ones carry the whole order and are made when it is in the
    /// truth.
    pub events: CopyRows,
    /// The time of the last decision.
    pub clock_ms: TimestampMs,
    /// Of the requests that placed orders, by order, and when. An entry's marks are also those of requests that its batch
    /// refused or repeated, so each is looked up in the entry that holds the decision: what an event tells must not depend
    /// on which entries are applied together.
    pub traces: Marks<'a>,
    /// Of the requests that cancelled them.
    pub cancel_traces: Marks<'a>,
}

type Marks<'a> = HashMap<Uuid, (&'a TraceMark, TimestampMs)>;

/// One row of the outbox.
pub fn push_event(rows: &mut CopyRows, event: &OutboxEvent, at: TimestampMs) {
    rows.push([&event.event_id, &event.routing_key, &event.payload, &At(at)]);
}

impl<'a> Plan<'a> {
    pub fn of(entries: &'a [Entry]) -> Result<Self, PlanError> {
        let mut plan = Self::default();
        for entry in entries {
            plan.add(entry)?;
        }
        Ok(plan)
    }

    /// The traces of what was decided, and when it was.
    pub fn traced(&self) -> impl Iterator<Item = (&'static str, &'a TraceMark, TimestampMs)> {
        let orders = self.traces.values().map(|(mark, at)| ("apply order", *mark, *at));
        let cancelled = self.cancel_traces.values().map(|(mark, at)| ("apply cancellation", *mark, *at));
        orders.chain(cancelled)
    }

    /// Outbox rows that this plan writes.
    pub fn event_count(&self) -> u64 {
        self.events.count() + self.cancellations.order_ids.len() as u64
    }

    fn add(&mut self, entry: &'a Entry) -> Result<(), PlanError> {
        self.clock_ms = self.clock_ms.max(entry.decided_at);
        let mark = |(id, at): (Uuid, TimestampMs)| Some((id, (entry.traces.get(&id)?, at)));
        match &entry.facts {
            _ if entry.traces.is_empty() => {}
            Facts::OrdersPlaced(all) => {
                self.traces.extend(all.iter().map(|f| (f.order_id.0, f.ordered_at)).filter_map(mark));
            }
            Facts::OrdersCancelled(all) => {
                self.cancel_traces
                    .extend(all.iter().map(|f| (f.order_id.0, f.cancelled_at)).filter_map(mark));
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
        self.coupons.push([
            &f.coupon_id.0,
            &f.template_id,
            &f.user_id,
            &serial,
            &At(f.issued_at),
            &At(f.expires_at),
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
        self.wallet_entries.push([&user, &kind, &amount, &balance, &ref_id, &At(at)]);
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
            let line_no = i16::try_from(i + 1).map_err(|_| PlanError::TooLarge(i as u64))?;
            let (price, quantity, amount) = (big(line.unit_price)?, big(line.quantity)?, big(line.amount)?);
            self.order_items.push([
                &order_id,
                &line_no,
                &line.product_id,
                &line.name,
                &price,
                &quantity,
                &amount,
            ]);
        }
        if let Some(coupon) = f.coupon_id {
            self.coupon_uses.insert(coupon.0, Some((order_id, at)));
        }
        self.orders.push([
            &order_id,
            &f.user_id,
            &"paid",
            &big(f.subtotal)?,
            &big(f.discount)?,
            &big(f.total)?,
            &f.coupon_id.map(|id| id.0),
            &big(f.balance_after)?,
            &At(at),
        ]);
        let trace = self.traces.get(&order_id).map(|(mark, _)| *mark);
        push_event(&mut self.events, &order_completed(order_id, at, &OrderView::from(f), trace)?, at);
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
