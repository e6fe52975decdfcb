//! Applies a batch of entries in one PostgreSQL transaction: the cursor moves and the rows are
//! written, or neither.
//!
//! [`apply`] writes a [`Plan`] as it is. [`apply_differences`] recomputes the entries first
//! (`differences.rs`); it is used from an operator's skip to the end of the epoch.

use std::collections::BTreeMap;

use sqlx::postgres::PgQueryResult;
use sqlx::{Connection, PgConnection};
use uuid::Uuid;

use super::copy_buffer::{CopyBuffer, Field};
use super::cursor::{Cursor, Target};
use super::differences::rebase;
use super::plan::{Plan, PlanError, Prepared, Won};
use super::quarantine::{self, Skipped};
use crate::domain::TimestampMs;
use crate::domain::event::{OutboxEvent, order_cancelled, order_expired};
use crate::log::{Entry, RawEntry};
use crate::truth;

/// Why a batch was not applied.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// Another reconciler has moved the cursor.
    #[error("another reconciler has moved the cursor")]
    Superseded,
    /// PostgreSQL refuses this batch, and would refuse it again.
    #[error("{0}")]
    Refused(String),
    /// PostgreSQL cannot be reached, or the outcome of the commit is unknown: read the cursor
    /// again.
    #[error("PostgreSQL: {0}")]
    Failed(sqlx::Error),
}

impl From<sqlx::Error> for ApplyError {
    fn from(e: sqlx::Error) -> Self {
        // class 22: data exception, class 23: integrity constraint violation
        match e.as_database_error().and_then(|d| d.code()) {
            Some(code) if code.starts_with("22") || code.starts_with("23") => {
                Self::Refused(e.to_string())
            }
            _ => Self::Failed(e),
        }
    }
}

impl From<PlanError> for ApplyError {
    fn from(e: PlanError) -> Self {
        Self::Refused(e.to_string())
    }
}

/// Applies `plan` and moves the cursor to `target`. Not cancel-safe: run it in a task of its own.
pub async fn apply(
    conn: &mut PgConnection,
    cursor: &Cursor,
    target: &Target,
    plan: &Plan<'_>,
) -> Result<(), ApplyError> {
    let mut tx = conn.begin().await?;
    write(&mut tx, cursor, target, plan).await?;
    tx.commit().await?;
    Ok(())
}

async fn write(
    tx: &mut PgConnection,
    cursor: &Cursor,
    target: &Target,
    plan: &Plan<'_>,
) -> Result<(), ApplyError> {
    if !cursor.advance(tx, target).await? {
        return Err(ApplyError::Superseded);
    }
    catalogue(tx, plan).await?;
    coupons(tx, plan).await?;
    wallets(tx, plan).await?;
    orders(tx, plan).await?;
    idempotency_records(tx, plan).await?;
    outbox(tx, plan).await
}

/// Whether PostgreSQL refuses the first `facts` facts of `raw`, which follows the cursor. The
/// transaction is always rolled back.
pub async fn refuses(
    conn: &mut PgConnection,
    cursor: &Cursor,
    raw: &RawEntry,
    facts: usize,
) -> Result<bool, ApplyError> {
    let mut tx = conn.begin().await?;
    let outcome = match cursor.skipping {
        true => {
            write_differences(&mut tx, cursor, std::slice::from_ref(raw), facts).await.map(|_| ())
        }
        false => {
            let mut entry = raw.decode().map_err(PlanError::from)?;
            entry.facts.truncate(facts);
            let prepared = [Prepared::from_entry(entry)?];
            let plan = Plan::of(&prepared)?;
            write(&mut tx, cursor, &Target::at(raw, &plan), &plan).await
        }
    };
    tx.rollback().await?;
    match outcome {
        Ok(()) => Ok(false),
        Err(ApplyError::Refused(_)) => Ok(true),
        Err(e) => Err(e),
    }
}

/// Applies `entries`, which follow the cursor, by differences: without the facts that were skipped,
/// and without those that no longer hold. The same transaction records what it leaves out in the
/// quarantine. Returns the won that were moved. Not cancel-safe.
pub async fn apply_differences(
    conn: &mut PgConnection,
    cursor: &Cursor,
    entries: &[RawEntry],
) -> Result<Won, ApplyError> {
    let mut tx = conn.begin().await?;
    let won = write_differences(&mut tx, cursor, entries, usize::MAX).await?;
    tx.commit().await?;
    Ok(won)
}

async fn write_differences(
    tx: &mut PgConnection,
    cursor: &Cursor,
    entries: &[RawEntry],
    facts: usize,
) -> Result<Won, ApplyError> {
    let Some(last) = entries.last() else { return Ok(Won::default()) };
    // What is read below must not change before it is written. The lock on the cursor's row ensures
    // that: every transaction that writes these rows moves the cursor first.
    if !cursor.lock(tx).await? {
        return Err(ApplyError::Superseded);
    }
    let skipped = Skipped::read(tx, cursor, last.seq).await?;
    let (places, decoded) = decode(entries, &skipped, facts)?;
    let mut picture = quarantine::picture(tx, &decoded).await?;
    let mut prepared = Vec::with_capacity(decoded.len());
    for (place, entry) in places.into_iter().zip(decoded) {
        let Some(raw) = entries.get(place) else { continue };
        let (entry, untrue) = rebase(&mut picture, entry, &skipped.of(raw))
            .map_err(|e| ApplyError::Refused(e.to_string()))?;
        quarantine::keep(tx, cursor.cell, raw, &untrue).await?;
        prepared.push(Prepared::from_entry(entry)?);
    }
    let plan = Plan::of(&prepared)?;
    write(tx, cursor, &Target::at(last, &plan), &plan).await?;
    Ok(plan.won.clone())
}

/// Decodes the entries that are not skipped as a whole, up to `facts` facts of each. Also returns
/// their positions in `entries`.
fn decode(
    entries: &[RawEntry],
    skipped: &Skipped,
    facts: usize,
) -> Result<(Vec<usize>, Vec<Entry>), ApplyError> {
    let (mut places, mut decoded) = (Vec::new(), Vec::new());
    for (place, raw) in entries.iter().enumerate().filter(|(_, raw)| !skipped.whole(raw)) {
        let mut entry = raw.decode().map_err(PlanError::from)?;
        entry.facts.truncate(facts);
        places.push(place);
        decoded.push(entry);
    }
    Ok((places, decoded))
}

/// An UPDATE must find every row that exists according to the gate.
fn all_found(done: &PgQueryResult, wanted: usize, what: &str) -> Result<(), ApplyError> {
    if done.rows_affected() == wanted as u64 {
        return Ok(());
    }
    Err(ApplyError::Refused(format!(
        "{what}: {wanted} rows to update, {} found",
        done.rows_affected()
    )))
}

/// `UNNEST` pads shorter arrays with nulls, so columns of different lengths must never reach it.
macro_rules! columns {
    ($sql:literal, $first:expr $(, $more:expr)* $(,)?) => {{
        let rows = $first.len();
        $(
            if $more.len() != rows {
                return Err(ApplyError::Refused(format!("{}: columns of different lengths", $sql)));
            }
        )*
        sqlx::query(include_str!(concat!("sql/", $sql, ".sql"))).bind($first)$(.bind($more))*
    }};
}

fn keys<'a, V>(map: &BTreeMap<&'a str, V>) -> Vec<&'a str> {
    map.keys().copied().collect()
}

fn column<'a, K, V, T>(map: &'a BTreeMap<K, V>, value: impl Fn(&'a V) -> T) -> Vec<T> {
    map.values().map(value).collect()
}

fn big(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

async fn catalogue(tx: &mut PgConnection, plan: &Plan<'_>) -> Result<(), ApplyError> {
    let p = &plan.products;
    if !p.is_empty() {
        columns!(
            "products",
            keys(p),
            column(p, |f| f.name.as_str()),
            column(p, |f| big(f.price)),
            column(p, |f| f.status.as_str()),
            column(p, |f| big(f.stock_after)),
            column(p, |f| f.put_at),
            column(p, |f| f.rules.as_ref().and_then(|r| r.sale_from)),
            column(p, |f| f.rules.as_ref().and_then(|r| r.sale_until)),
            column(p, |f| f.rules.as_ref().and_then(|r| r.per_user_limit.map(big))),
            p.keys().map(|id| plan.limit_numbers.get(id).copied()).collect::<Vec<_>>(),
            column(p, |f| f.rules.as_ref().and_then(|r| r.attributes.as_deref())),
        )
        .execute(&mut *tx)
        .await?;
    }
    let s = &plan.stocks;
    if !s.is_empty() {
        let done = columns!("stocks", keys(s), column(s, |v| v.0), column(s, |v| v.1))
            .execute(&mut *tx)
            .await?;
        all_found(&done, s.len(), "products")?;
    }
    let a = &plan.stock_adjustments;
    if !a.product_ids.is_empty() {
        columns!("stock_adjustments", &a.product_ids, &a.deltas, &a.stocks, &a.reasons, &a.at_ms)
            .execute(&mut *tx)
            .await?;
    }
    templates(tx, plan).await
}

async fn templates(tx: &mut PgConnection, plan: &Plan<'_>) -> Result<(), ApplyError> {
    let t = &plan.templates;
    if !t.is_empty() {
        let terms = &plan.terms;
        let numbers: Vec<i64> = terms.keys().copied().collect();
        columns!(
            "terms",
            numbers,
            column(terms, |(template, _)| *template),
            column(terms, |(_, terms)| terms.discount_type.as_str()),
            column(terms, |(_, terms)| big(terms.discount_value)),
            column(terms, |(_, terms)| terms.discount_max.map(big)),
            column(terms, |(_, terms)| big(terms.min_subtotal)),
        )
        .bind(keys(t))
        .execute(&mut *tx)
        .await?;
        columns!(
            "templates",
            keys(t),
            column(t, |f| big(f.number)),
            column(t, |f| f.terms.name.as_str()),
            column(t, |f| f.terms.discount_type.as_str()),
            column(t, |f| big(f.terms.discount_value)),
            column(t, |f| f.terms.discount_max.map(big)),
            column(t, |f| big(f.terms.min_subtotal)),
            column(t, |f| big(f.terms.max_issued)),
            column(t, |f| big(f.issued)),
            column(t, |f| f.terms.issue_from),
            column(t, |f| f.terms.issue_until),
            column(t, |f| f.put_at),
            column(t, |f| f.terms_number.map(big)),
        )
        .execute(&mut *tx)
        .await?;
    }
    Ok(())
}

async fn coupons(tx: &mut PgConnection, plan: &Plan<'_>) -> Result<(), ApplyError> {
    let i = &plan.issued;
    if !i.is_empty() {
        let done = columns!("issued", keys(i), column(i, |n| *n)).execute(&mut *tx).await?;
        all_found(&done, i.len(), "coupon templates")?;
    }
    plan.coupons.write(tx, include_str!("sql/coupons.sql")).await?;
    let later = include_str!("sql/coupons_of_later_terms.sql");
    plan.coupons_of_later_terms.write(tx, later).await?;
    let u = &plan.coupon_uses;
    if !u.is_empty() {
        let ids: Vec<_> = u.keys().copied().collect();
        let orders = column(u, |use_| use_.map(|(order, _)| order));
        let done = columns!("coupon_uses", ids, orders, column(u, |use_| use_.map(|(_, at)| at)))
            .execute(&mut *tx)
            .await?;
        all_found(&done, u.len(), "coupons")?;
    }
    Ok(())
}

async fn wallets(tx: &mut PgConnection, plan: &Plan<'_>) -> Result<(), ApplyError> {
    let w = &plan.wallets;
    if w.is_empty() {
        return Ok(());
    }
    columns!("wallets", keys(w), column(w, |v| v.0), column(w, |v| v.1)).execute(&mut *tx).await?;
    plan.wallet_entries.write(tx, include_str!("sql/wallet_entries.sql")).await?;
    Ok(())
}

async fn orders(tx: &mut PgConnection, plan: &Plan<'_>) -> Result<(), ApplyError> {
    plan.orders.write(tx, include_str!("sql/orders.sql")).await?;
    plan.order_items.write(tx, include_str!("sql/order_items.sql")).await?;
    plan.orders_with_more.write(tx, include_str!("sql/orders_with_more.sql")).await?;
    plan.counted_items.write(tx, include_str!("sql/counted_items.sql")).await?;
    let p = &plan.confirmations;
    if !p.order_ids.is_empty() {
        let done = columns!("confirmations", &p.order_ids, &p.references, &p.balances, &p.at_ms)
            .execute(&mut *tx)
            .await?;
        all_found(&done, p.order_ids.len(), "pending orders to confirm")?;
    }
    let e = &plan.expiries;
    if !e.order_ids.is_empty() {
        let done = columns!("expiries", &e.order_ids, &e.balances, &e.coupon_returned, &e.at_ms)
            .execute(&mut *tx)
            .await?;
        all_found(&done, e.order_ids.len(), "pending orders to expire")?;
    }
    let c = &plan.cancellations;
    if !c.order_ids.is_empty() {
        let done =
            columns!("cancellations", &c.order_ids, &c.balances, &c.coupon_returned, &c.at_ms)
                .execute(&mut *tx)
                .await?;
        all_found(&done, c.order_ids.len(), "paid or pending orders to cancel")?;
    }
    purchases(tx, plan).await
}

async fn purchases(tx: &mut PgConnection, plan: &Plan<'_>) -> Result<(), ApplyError> {
    let p = &plan.purchases;
    if p.is_empty() {
        return Ok(());
    }
    let (limits, users): (Vec<i64>, Vec<&str>) = p.keys().copied().unzip();
    columns!("purchases", limits, users, column(p, |bought| *bought)).execute(tx).await?;
    Ok(())
}

async fn idempotency_records(tx: &mut PgConnection, plan: &Plan<'_>) -> Result<(), ApplyError> {
    let r = &plan.idempotency;
    if r.is_empty() {
        return Ok(());
    }
    columns!(
        "idempotency_records",
        keys(r),
        column(r, |v| v.0),
        column(r, |v| v.1),
        column(r, |v| v.2),
    )
    .execute(tx)
    .await?;
    Ok(())
}

async fn outbox(tx: &mut PgConnection, plan: &Plan<'_>) -> Result<(), ApplyError> {
    let given_back = given_back_events(tx, plan).await?;
    let mut rows = CopyBuffer::<4>::default();
    for (event, at) in plan.events.iter().copied().chain(&given_back) {
        rows.add([
            Field::Text(&event.event_id),
            Field::Text(event.routing_key),
            Field::Text(&event.payload),
            Field::Time(*at),
        ]);
    }
    rows.write(tx, include_str!("sql/outbox.sql")).await?;
    Ok(())
}

/// The event of a cancelled or expired order carries the whole order. This transaction can read it,
/// because orders are written before the outbox.
async fn given_back_events(
    tx: &mut PgConnection,
    plan: &Plan<'_>,
) -> Result<Vec<(OutboxEvent, TimestampMs)>, ApplyError> {
    let (c, e) = (&plan.cancellations, &plan.expiries);
    let ids = [c.order_ids.as_slice(), &e.order_ids].concat();
    if ids.is_empty() {
        return Ok(Vec::new());
    }
    let mut orders = truth::orders_by_id(tx, &ids).await?;
    let mut order = |order_id: &Uuid| {
        orders.remove(order_id).ok_or_else(|| {
            ApplyError::Refused(format!("the order {order_id}, which ended, does not exist"))
        })
    };
    let mut events = Vec::with_capacity(ids.len());
    for (order_id, at) in e.order_ids.iter().zip(&e.at_ms) {
        let order = order(order_id)?;
        events.push((order_expired(*order_id, *at, &order).map_err(PlanError::from)?, *at));
    }
    for (order_id, at) in c.order_ids.iter().zip(&c.at_ms) {
        let order = order(order_id)?;
        let trace = plan.cancel_traces.get(order_id).copied();
        events
            .push((order_cancelled(*order_id, *at, &order, trace).map_err(PlanError::from)?, *at));
    }
    Ok(events)
}
