//! The shop's words and bounds, without I/O. Decisions themselves are made by the scripts in `lua/`; what stands here
//! is what both sides of the gate must agree on.

pub mod coupon;
pub mod event;
pub mod ids;
pub mod limits;
pub mod order;
pub mod order_view;
pub mod product;

pub use coupon::{CouponStatus, CouponTemplate, Discount, TemplateState};
pub use ids::{ProductId, TemplateId, UserId};
pub use order::{Line, OrderStatus};
pub use order_view::{OrderItemView, OrderView};
pub use product::{Product, ProductStatus};

use jiff::fmt::temporal::DateTimePrinter;

/// Milliseconds since the Unix epoch, as the gate's clock tells them.
pub type TimestampMs = i64;

/// RFC 3339 in UTC with milliseconds, the form of every time in the API.
pub fn rfc3339(at_ms: TimestampMs) -> String {
    match jiff::Timestamp::from_millisecond(at_ms) {
        Ok(at) => {
            const MILLISECONDS: DateTimePrinter = DateTimePrinter::new().precision(Some(3));
            let mut text = String::with_capacity("9999-12-31T23:59:59.999Z".len());
            let _ = MILLISECONDS.print_timestamp(&at, &mut text); // a String takes everything
            text
        }
        Err(_) => String::from("9999-12-31T23:59:59.999Z"),
    }
}
