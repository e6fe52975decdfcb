//! The shop's types and limits, without I/O. The scripts in `lua/` make the decisions; this module
//! holds the definitions on which the scripts and the rest of the service must agree. It depends on
//! no other module.
//!
//! [`fact`] is what a decision changed, in the encoding of [`wire`]. [`Position`] is a place in a
//! cell's log. [`event`] is what the data platform receives, [`order_view`] what clients see.

pub mod coupon;
pub mod event;
pub mod fact;
pub mod hex;
pub mod ids;
pub mod limits;
pub mod order;
pub mod order_view;
mod position;
pub mod product;
pub mod trace_mark;
pub mod wire;

pub use coupon::{CouponStatus, CouponTemplate, Discount, TemplateState};
pub use ids::{ProductId, TemplateId, UserId};
pub use order::{Line, OrderStatus};
pub use order_view::{OrderItemView, OrderView, OutsideView, PaymentMethod};
pub use position::Position;
pub use product::{Product, ProductState, ProductStatus, SalePhase, SaleRules};

use jiff::fmt::temporal::DateTimePrinter;

/// Milliseconds since the Unix epoch, on the gate's clock.
pub type TimestampMs = i64;

/// RFC 3339 in UTC with milliseconds, the format of every time in the API.
pub fn rfc3339(at_ms: TimestampMs) -> String {
    match jiff::Timestamp::from_millisecond(at_ms) {
        Ok(at) => {
            const MILLISECONDS: DateTimePrinter = DateTimePrinter::new().precision(Some(3));
            let mut text = String::with_capacity("9999-12-31T23:59:59.999Z".len());
            let _ = MILLISECONDS.print_timestamp(&at, &mut text); // writing to a String cannot fail
            text
        }
        Err(_) => String::from("9999-12-31T23:59:59.999Z"),
    }
}
