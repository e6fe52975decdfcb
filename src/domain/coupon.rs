//! Coupon templates and coupons.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{TemplateId, TimestampMs};

/// A coupon's discount on an order's subtotal, capped at the subtotal. Amounts are in won.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Discount {
    /// A fixed amount.
    Amount { value: u64 },
    /// A whole percentage (1 to 100), rounded down, with an optional maximum.
    Percent { value: u64, max: Option<u64> },
}

impl Discount {
    /// The name in requests, answers and the database.
    pub fn type_name(&self) -> &'static str {
        match self {
            Self::Amount { .. } => "amount",
            Self::Percent { .. } => "percent",
        }
    }

    pub fn value(&self) -> u64 {
        match *self {
            Self::Amount { value } | Self::Percent { value, .. } => value,
        }
    }

    pub fn max(&self) -> Option<u64> {
        match *self {
            Self::Amount { .. } => None,
            Self::Percent { max, .. } => max,
        }
    }

    /// What it takes off an order, in won. `lua/place_order.lua` has the same rule.
    pub fn off(&self, subtotal: u64) -> u64 {
        let off = match *self {
            Self::Amount { value } => value,
            Self::Percent { value, max } => {
                let off = u128::from(subtotal) * u128::from(value) / 100;
                u64::try_from(off).unwrap_or(u64::MAX).min(max.unwrap_or(u64::MAX))
            }
        };
        off.min(subtotal)
    }

    /// The inverse of the first three functions above; `None` for an unknown type.
    pub fn from_parts(type_name: &str, value: u64, max: Option<u64>) -> Option<Self> {
        match type_name {
            "amount" => Some(Self::Amount { value }),
            "percent" => Some(Self::Percent { value, max }),
            _ => None,
        }
    }
}

/// A coupon template with its current count.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CouponTemplate {
    pub template_id: TemplateId,
    pub name: String,
    pub discount: Discount,
    /// The minimum subtotal of an order that uses the coupon, in won; 0 for none.
    pub min_subtotal: u64,
    /// The limit on the number of coupons issued.
    pub max_issued: u64,
    pub issued: u64,
    /// Start of the issuing window, inclusive.
    pub issue_from: TimestampMs,
    /// End of the issuing window, exclusive.
    pub issue_until: TimestampMs,
}

impl CouponTemplate {
    pub fn remaining(&self) -> u64 {
        self.max_issued.saturating_sub(self.issued)
    }

    pub fn state(&self, now: TimestampMs) -> TemplateState {
        if now < self.issue_from {
            TemplateState::Scheduled
        } else if now >= self.issue_until {
            TemplateState::Closed
        } else if self.remaining() == 0 {
            TemplateState::SoldOut
        } else {
            TemplateState::Open
        }
    }
}

/// Whether coupons of a template are issued now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum TemplateState {
    Scheduled,
    Open,
    SoldOut,
    Closed,
}

/// What can be done with a coupon now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum CouponStatus {
    Available,
    Used,
    Expired,
}

impl CouponStatus {
    /// The name in requests, answers and `lua/read.lua`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Available => "available",
            Self::Used => "used",
            Self::Expired => "expired",
        }
    }

    pub fn at(used: bool, expires_at: TimestampMs, now: TimestampMs) -> Self {
        match (used, now < expires_at) {
            (true, _) => Self::Used,
            (false, true) => Self::Available,
            (false, false) => Self::Expired,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn template(max_issued: u64, issued: u64) -> CouponTemplate {
        CouponTemplate {
            template_id: TemplateId::parse("t").unwrap(),
            name: "t".into(),
            discount: Discount::Amount { value: 100 },
            min_subtotal: 0,
            max_issued,
            issued,
            issue_from: 1_000,
            issue_until: 2_000,
        }
    }

    #[test]
    fn a_template_is_open_from_its_first_to_before_its_last_moment() {
        assert_eq!(template(2, 1).state(999), TemplateState::Scheduled);
        assert_eq!(template(2, 1).state(1_000), TemplateState::Open);
        assert_eq!(template(2, 1).state(1_999), TemplateState::Open);
        assert_eq!(template(2, 1).state(2_000), TemplateState::Closed);
        assert_eq!(template(2, 2).state(1_500), TemplateState::SoldOut);
        assert_eq!(template(2, 2).state(2_500), TemplateState::Closed);
    }

    #[test]
    fn a_coupon_expires_unless_it_was_used() {
        assert_eq!(CouponStatus::at(false, 100, 99), CouponStatus::Available);
        assert_eq!(CouponStatus::at(false, 100, 100), CouponStatus::Expired);
        assert_eq!(CouponStatus::at(true, 100, 100), CouponStatus::Used);
    }
}
