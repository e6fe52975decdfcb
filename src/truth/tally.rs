//! The coupons of one template, counted.

use super::{Truth, TruthError, unsigned};
use crate::domain::{TemplateId, TimestampMs};

/// What PostgreSQL holds of a template's coupons.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CouponTally {
    pub issued: u64,
    /// Different users.
    pub holders: u64,
    /// Different serials, and the first and the last of them.
    pub serials: u64,
    pub serial_min: Option<i64>,
    pub serial_max: Option<i64>,
    /// Coupons of users whose id begins with the given text.
    pub held_by_prefix: u64,
    /// When the coupons were issued, in order; up to a limit.
    pub issued_at: Vec<TimestampMs>,
}

type Counts = (i64, i64, i64, Option<i64>, Option<i64>, i64);

impl Truth {
    /// Counts the coupons of a template. Reads all of them, so it is for small templates.
    pub async fn coupon_tally(
        &self,
        template_id: &TemplateId,
        user_prefix: &str,
        limit: usize,
    ) -> Result<CouponTally, TruthError> {
        let counts = sqlx::query_as::<_, Counts>(include_str!("sql/coupon_tally.sql"))
            .bind(template_id.as_str())
            .bind(user_prefix);
        let counts = self.read(counts.fetch_one(&self.pool)).await?;
        let (issued, holders, serials, serial_min, serial_max, held) = counts;
        let times = sqlx::query_scalar::<_, TimestampMs>(
            "SELECT (extract(epoch FROM issued_at) * 1000)::bigint FROM coupons \
             WHERE template_id = $1 ORDER BY serial LIMIT $2",
        )
        .bind(template_id.as_str())
        .bind(super::limit_of(limit));
        let issued_at = self.read(times.fetch_all(&self.pool)).await?;
        Ok(CouponTally {
            issued: unsigned("count(*)", issued)?,
            holders: unsigned("count(*)", holders)?,
            serials: unsigned("count(*)", serials)?,
            serial_min,
            serial_max,
            held_by_prefix: unsigned("count(*)", held)?,
            issued_at,
        })
    }
}
