//! Orders, by id and by user.

use std::collections::HashMap;

use sqlx::PgConnection;
use uuid::Uuid;

use super::{Truth, TruthError, limit_of, unsigned};
use crate::domain::fact::Idempotency;
use crate::domain::limits::IDEMPOTENCY_KEPT_MS;
use crate::domain::{
    OrderItemView, OrderStatus, OrderView, OutsideView, TimestampMs, UserId, rfc3339,
};

#[derive(sqlx::FromRow)]
pub(super) struct OrderRow {
    order_id: Uuid,
    user_id: String,
    status: String,
    subtotal: i64,
    discount: i64,
    total: i64,
    coupon_id: Option<Uuid>,
    balance_after: i64,
    ordered_at_ms: TimestampMs,
    cancelled_at_ms: Option<TimestampMs>,
    reference: Option<String>,
    external: bool,
    wallet_amount: Option<i64>,
    payment_reference: Option<String>,
    hold_expires_at_ms: Option<TimestampMs>,
    expired_at_ms: Option<TimestampMs>,
    paid_at_ms: Option<TimestampMs>,
}

#[derive(sqlx::FromRow)]
struct ItemRow {
    order_id: Uuid,
    product_id: String,
    name: String,
    unit_price: i64,
    quantity: i64,
    amount: i64,
    limit_number: Option<i64>,
}

/// What an `Idempotency-Key` has been used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyUse {
    /// Nothing, in the last 24 hours.
    New,
    /// This very request, at that time.
    Same(TimestampMs),
    /// Another request.
    Other,
}

impl Truth {
    /// One order.
    pub async fn order(&self, order_id: Uuid) -> Result<Option<OrderView>, TruthError> {
        let query = sqlx::query_as::<_, OrderRow>(include_str!("sql/order.sql")).bind(order_id);
        let rows = self.read(query.fetch_all(&self.pool)).await?;
        Ok(self.with_items(rows).await?.pop())
    }

    /// A user's orders that are older than `after`, newest first.
    pub async fn orders_of(
        &self,
        user_id: &UserId,
        after: Option<Uuid>,
        limit: usize,
    ) -> Result<Vec<OrderView>, TruthError> {
        let query = sqlx::query_as::<_, OrderRow>(include_str!("sql/orders_of_user.sql"))
            .bind(user_id.as_str())
            .bind(after)
            .bind(limit_of(limit));
        let rows = self.read(query.fetch_all(&self.pool)).await?;
        self.with_items(rows).await
    }

    /// What a key was used for in the 24 hours before `now`, the gate's clock.
    pub async fn key_use(
        &self,
        record: &Idempotency,
        now: TimestampMs,
    ) -> Result<KeyUse, TruthError> {
        let query = sqlx::query_as::<_, (Vec<u8>, TimestampMs)>(
            "SELECT request_hash, (extract(epoch FROM decided_at) * 1000)::bigint FROM idempotency_records
             WHERE scope = $1 AND decided_at > to_timestamp($2::bigint / 1000.0::float8)",
        )
        .bind(&record.scope)
        .bind(now.saturating_sub(IDEMPOTENCY_KEPT_MS));
        Ok(match self.read(query.fetch_optional(&self.pool)).await? {
            None => KeyUse::New,
            Some((hash, at)) if hash == record.request_hash.0 => KeyUse::Same(at),
            Some(_) => KeyUse::Other,
        })
    }

    /// Whether a request with a key of this scope was ever applied.
    pub async fn has_answered(&self, scope: &str) -> Result<bool, TruthError> {
        let sql = "SELECT EXISTS (SELECT FROM idempotency_records WHERE scope = $1)";
        self.read(sqlx::query_scalar(sql).bind(scope).fetch_one(&self.pool)).await
    }

    pub(super) async fn with_items(
        &self,
        rows: Vec<OrderRow>,
    ) -> Result<Vec<OrderView>, TruthError> {
        if rows.is_empty() {
            return Ok(Vec::new());
        }
        let ids: Vec<Uuid> = rows.iter().map(|row| row.order_id).collect();
        let query = sqlx::query_as::<_, ItemRow>(include_str!("sql/order_items.sql")).bind(ids);
        let mut items: HashMap<Uuid, Vec<OrderItemView>> = HashMap::with_capacity(rows.len());
        for item in self.read(query.fetch_all(&self.pool)).await? {
            items.entry(item.order_id).or_default().push(item.view()?);
        }
        rows.into_iter()
            .map(|row| {
                // Every order has items. If they are missing, PostgreSQL was restored from a backup
                // between the two statements.
                let items = items.remove(&row.order_id);
                row.view(items.ok_or_else(|| {
                    TruthError("an order's items disappeared between reads".into())
                })?)
            })
            .collect()
    }
}

/// Orders by their ids, read in the caller's transaction.
pub async fn orders_by_id(
    conn: &mut PgConnection,
    ids: &[Uuid],
) -> Result<HashMap<Uuid, OrderView>, sqlx::Error> {
    let corrupt = |e: TruthError| sqlx::Error::Decode(Box::new(e));
    let rows = sqlx::query_as::<_, OrderRow>(include_str!("sql/orders_by_id.sql"))
        .bind(ids)
        .fetch_all(&mut *conn)
        .await?;
    let mut items: HashMap<Uuid, Vec<OrderItemView>> = HashMap::with_capacity(rows.len());
    for item in sqlx::query_as::<_, ItemRow>(include_str!("sql/order_items.sql"))
        .bind(ids)
        .fetch_all(conn)
        .await?
    {
        items.entry(item.order_id).or_default().push(item.view().map_err(corrupt)?);
    }
    rows.into_iter()
        .map(|row| {
            let (id, items) = (row.order_id, items.remove(&row.order_id).unwrap_or_default());
            Ok((id, row.view(items).map_err(corrupt)?))
        })
        .collect()
}

impl OrderRow {
    fn view(self, items: Vec<OrderItemView>) -> Result<OrderView, TruthError> {
        let status = OrderStatus::parse(&self.status)
            .ok_or_else(|| TruthError(format!("orders.status has `{}`", self.status)))?;
        let outside = if self.external { Some(self.outside(status)?) } else { None };
        Ok(OrderView {
            order_id: self.order_id,
            user_id: self.user_id,
            status,
            items,
            subtotal: unsigned("orders.subtotal", self.subtotal)?,
            discount: unsigned("orders.discount", self.discount)?,
            total: unsigned("orders.total", self.total)?,
            coupon_id: self.coupon_id,
            balance: unsigned("orders.balance_after", self.balance_after)?,
            ordered_at: rfc3339(self.ordered_at_ms),
            cancelled_at: self.cancelled_at_ms.map(rfc3339),
            reference: self.reference,
            outside,
        })
    }

    fn outside(&self, status: OrderStatus) -> Result<OutsideView, TruthError> {
        let total = unsigned("orders.total", self.total)?;
        let won = unsigned("orders.wallet_amount", self.wallet_amount.unwrap_or(self.total))?;
        let due = total.saturating_sub(won);
        let refund = status == OrderStatus::Cancelled && self.paid_at_ms.is_some();
        Ok(OutsideView {
            paid_at: self.paid_at_ms.map(rfc3339),
            payment_reference: self.payment_reference.clone(),
            expired_at: self.expired_at_ms.map(rfc3339),
            refund_due: refund.then_some(due),
            ..OutsideView::new(total, won, self.hold_expires_at_ms)
        })
    }
}

impl ItemRow {
    fn view(self) -> Result<OrderItemView, TruthError> {
        Ok(OrderItemView {
            product_id: self.product_id,
            name: self.name,
            unit_price: unsigned("order_items.unit_price", self.unit_price)?,
            quantity: unsigned("order_items.quantity", self.quantity)?,
            amount: unsigned("order_items.amount", self.amount)?,
            limit_number: self
                .limit_number
                .map(|number| unsigned("order_items.limit_number", number))
                .transpose()?,
        })
    }
}
