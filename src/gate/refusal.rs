//! The gate's decisions and refusals: [`Accepted`] for success, one refusal enum per script for the
//! shop's rules, and [`GateError`] for everything that prevents a decision. The names in metrics
//! are the names that the scripts return.

use crate::domain::{Position, TimestampMs};
use serde::Deserialize;
use uuid::Uuid;

use crate::domain::wire::Id;

/// The gate has not decided, or the decision is unknown. The API answers 503 in most cases, 422 for
/// a reused key and 429 for spent keys.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum GateError {
    #[error("the gate cannot be reached or is closed: {0}")]
    Unavailable(String),
    #[error("too many requests are waiting for the gate")]
    Overloaded,
    #[error("PostgreSQL is too far behind the gate; new decisions wait until it has caught up")]
    BacklogFull,
    #[error("the request was sent to the gate and no answer came back")]
    OutcomeUnknown,
    #[error("this Idempotency-Key was used for another request")]
    IdempotencyKeyReused,
    #[error("the user has reached today's limit of Idempotency-Keys")]
    KeysSpent { retry_after_secs: u64 },
}

/// The name of a refusal in metrics, equal to the name in the script's verdict.
pub trait Refusal {
    const NAMES: &'static [&'static str];
    fn name(&self) -> &'static str;
}

macro_rules! names {
    ($refusal:ident { $($variant:pat => $name:literal)+ }) => {
        impl Refusal for $refusal {
            const NAMES: &'static [&'static str] = &[$($name),+];
            fn name(&self) -> &'static str {
                match self { $($variant => $name),+ }
            }
        }
    };
}

names!(GateError {
    Self::Unavailable(_) => "unavailable"
    Self::Overloaded => "overloaded"
    Self::BacklogFull => "backlog_full"
    Self::OutcomeUnknown => "outcome_unknown"
    Self::IdempotencyKeyReused => "key_reused"
    Self::KeysSpent { .. } => "keys_spent"
});
names!(IssueRefusal {
    Self::UnknownTemplate => "unknown_template"
    Self::AlreadyIssued(_) => "already_issued"
    Self::NotOpenBefore(_) => "not_open_before"
    Self::ClosedSince(_) => "closed_since"
    Self::SoldOut => "sold_out"
});
names!(ChargeRefusal {
    Self::BalanceLimit(_) => "balance_limit"
});
names!(OrderRefusal {
    Self::UnknownProduct(_) => "unknown_product"
    Self::NotOnSale(_) => "not_on_sale"
    Self::SaleNotOpen(..) => "sale_not_open"
    Self::SaleEnded(..) => "sale_ended"
    Self::PurchaseLimit(..) => "purchase_limit"
    Self::InsufficientStock(..) => "insufficient_stock"
    Self::UnknownCoupon => "unknown_coupon"
    Self::CouponUsed => "coupon_used"
    Self::CouponExpired(_) => "coupon_expired"
    Self::SubtotalTooLow(..) => "subtotal_too_low"
    Self::PriceChanged(_) => "price_changed"
    Self::WalletAmountAbove(_) => "wallet_amount_above"
    Self::TooManyPending(_) => "too_many_pending"
    Self::InsufficientBalance(..) => "insufficient_balance"
});
names!(ConfirmRefusal {
    Self::NotPending => "not_pending"
    Self::HoldExpired(_) => "hold_expired"
});
names!(ExpireRefusal {
    Self::NotPending => "not_pending"
    Self::NotDue(_) => "not_due"
    Self::UnknownProduct(_) => "unknown_product"
});
names!(CancelRefusal {
    Self::AlreadyCancelled => "already_cancelled"
    Self::NotPending => "not_pending"
    Self::UnknownProduct(_) => "unknown_product"
    Self::BalanceLimit(_) => "balance_limit"
    Self::StaleRead => "stale_read"
});
names!(ProductRefusal {
    Self::StockGiven => "stock_given"
});
names!(StockRefusal {
    Self::UnknownProduct => "unknown_product"
    Self::BelowZero(_) => "below_zero"
    Self::TooHigh(_) => "too_high"
});
names!(TemplateRefusal {
    Self::LimitBelowIssued(_) => "limit_below_issued"
    Self::TooManyTerms => "too_many_terms"
});

/// Why a wait for PostgreSQL to apply a position has failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotApplied {
    #[error("PostgreSQL did not catch up with the gate in time")]
    TimedOut,
    #[error("the cell was rebuilt meanwhile")]
    EpochChanged,
    #[error(transparent)]
    Gate(#[from] GateError),
}

/// An accepted request.
#[derive(Clone, Debug)]
pub struct Accepted<F> {
    pub fact: F,
    /// The fact is the stored answer to an earlier request with the same idempotency key.
    pub replayed: bool,
    /// The scope of that key's record; `None` unless replayed.
    pub scope: Option<String>,
    /// The end of the log right after the decision.
    pub position: Position,
}

/// `Ok(Ok(_))`: accepted. `Ok(Err(_))`: refused by a rule of the shop, without any change.
/// `Err(_)`: see [`GateError`].
pub type Decision<F, R> = Result<Result<Accepted<F>, R>, GateError>;

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum IssueRefusal {
    UnknownTemplate,
    /// The user already holds this coupon of the template.
    AlreadyIssued(Id),
    NotOpenBefore(TimestampMs),
    ClosedSince(TimestampMs),
    SoldOut,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ChargeRefusal {
    /// The balance would exceed the limit. Holds the current balance.
    BalanceLimit(u64),
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OrderRefusal {
    UnknownProduct(String),
    NotOnSale(String),
    /// The product, the start of its sale.
    SaleNotOpen(String, TimestampMs),
    /// The product, the end of its sale.
    SaleEnded(String, TimestampMs),
    /// The product, its limit per user, pieces that the user has bought, pieces of this order.
    PurchaseLimit(String, u64, u64, u64),
    /// The product, the pieces available.
    InsufficientStock(String, u64),
    /// The coupon does not exist, or belongs to another user.
    UnknownCoupon,
    CouponUsed,
    CouponExpired(TimestampMs),
    /// The coupon's minimum subtotal, the order's subtotal.
    SubtotalTooLow(u64, u64),
    /// The current total.
    PriceChanged(u64),
    /// More was to be taken from the wallet than the order costs. Holds the total.
    WalletAmountAbove(u64),
    /// The most pending orders of a user.
    TooManyPending(u64),
    /// The balance, and what was to be taken from it.
    InsufficientBalance(u64, u64),
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ConfirmRefusal {
    /// The gate has no such pending order: it was confirmed, cancelled, has expired, or never was.
    NotPending,
    /// The end of the hold.
    HoldExpired(TimestampMs),
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExpireRefusal {
    NotPending,
    /// The end of the hold is still to come.
    NotDue(TimestampMs),
    UnknownProduct(String),
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CancelRefusal {
    /// An earlier request has cancelled the order.
    AlreadyCancelled,
    /// The order was read as pending and is not any more, or the other way round. It must be read
    /// again.
    NotPending,
    UnknownProduct(String),
    /// The refund would raise the balance above the limit. Holds the current balance.
    BalanceLimit(u64),
    /// The cell was rebuilt after the order was read. The order must be read again.
    StaleRead,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProductRefusal {
    /// `stock` was given for an existing product, whose stock changes only through adjustments.
    StockGiven,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StockRefusal {
    UnknownProduct,
    /// The stock would become negative. Holds the pieces available.
    BelowZero(u64),
    /// The stock would exceed the maximum. Holds the pieces available.
    TooHigh(u64),
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TemplateRefusal {
    /// The limit would be below the coupons issued so far. Holds their number.
    LimitBelowIssued(u64),
    /// The terms were changed too often.
    TooManyTerms,
}

/// A coupon as shown to its owner, with its template's terms.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeldCoupon {
    pub coupon_id: Uuid,
    pub template: crate::domain::CouponTemplate,
    pub serial: u64,
    pub issued_at: TimestampMs,
    pub expires_at: TimestampMs,
    pub order_id: Option<Uuid>,
}
