//! The coupons of a template, by serial.

use uuid::Uuid;

use super::examined::{Examined, Examining};
use super::{Truth, TruthError, limit_of, unsigned};
use crate::config::bounds::EXAMINED_ROWS;
use crate::domain::{CouponStatus, TemplateId, TimestampMs};

/// An issued coupon and its holder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    pub coupon_id: Uuid,
    pub user_id: String,
    pub serial: u64,
    pub issued_at: TimestampMs,
    pub expires_at: TimestampMs,
    /// The order that uses the coupon.
    pub order_id: Option<Uuid>,
}

type Row = (Uuid, String, i64, TimestampMs, TimestampMs, Option<Uuid>);

impl Truth {
    /// Up to `limit` coupons of a template with serials above `after`, in the order of their
    /// serials, that have this status at `now`.
    pub async fn holders(
        &self,
        template_id: &TemplateId,
        status: Option<CouponStatus>,
        now: TimestampMs,
        after: Option<i64>,
        limit: usize,
    ) -> Result<Examined<Holder, i64>, TruthError> {
        let mut page = Examining::new(after, limit);
        while let Some((after, limit)) = page.next_part() {
            let after = after.unwrap_or(0);
            let end = status.map_or(i64::MAX, |_| after.saturating_add(EXAMINED_ROWS));
            let query = sqlx::query_as::<_, Row>(include_str!("sql/holders.sql"))
                .bind(template_id.as_str())
                .bind(after)
                .bind(end)
                .bind(status.map(CouponStatus::name))
                .bind(now)
                .bind(limit_of(limit));
            let rows = self.read(query.fetch_all(&self.pool)).await?;
            let found = rows.into_iter().map(holder).collect::<Result<Vec<_>, _>>()?;
            let ended = found.len() == limit || !self.has_serial_above(template_id, end).await?;
            page.add(found, (!ended).then_some(end));
        }
        Ok(page.page())
    }

    async fn has_serial_above(
        &self,
        template_id: &TemplateId,
        serial: i64,
    ) -> Result<bool, TruthError> {
        if serial == i64::MAX {
            return Ok(false);
        }
        let sql = "SELECT EXISTS (SELECT FROM coupons WHERE template_id = $1 AND serial > $2)";
        let query = sqlx::query_scalar(sql).bind(template_id.as_str()).bind(serial);
        self.read(query.fetch_one(&self.pool)).await
    }
}

fn holder(
    (coupon_id, user_id, serial, issued_at, expires_at, order_id): Row,
) -> Result<Holder, TruthError> {
    let serial = unsigned("coupons.serial", serial)?;
    Ok(Holder { coupon_id, user_id, serial, issued_at, expires_at, order_id })
}
