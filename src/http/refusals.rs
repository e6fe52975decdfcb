//! The refusals of the shop's rules, as problems.

use uuid::Uuid;

use super::problem::{Code, Problem};
use crate::domain::limits::{MAX_BALANCE, MAX_STOCK};
use crate::domain::order::InvalidLines;
use crate::domain::{Line, ProductId, TemplateId, rfc3339};
use crate::gate::{
    CancelRefusal, ChargeRefusal, IssueRefusal, OrderRefusal, ProductRefusal, StockRefusal,
    TemplateRefusal,
};

/// No coupon template of this id.
pub fn no_template(id: &TemplateId) -> Problem {
    Problem::new(Code::CouponTemplateNotFound, format!("There is no coupon template {id}."))
        .with("template_id", id.as_str())
}

/// No product of this id.
pub fn no_product(id: &str) -> Problem {
    Problem::new(Code::ProductNotFound, format!("There is no product {id}.")).with("product_id", id)
}

/// A coupon was not issued.
pub fn issue(refusal: IssueRefusal, template_id: &TemplateId) -> Problem {
    let problem = match refusal {
        IssueRefusal::UnknownTemplate => return no_template(template_id),
        IssueRefusal::AlreadyIssued(id) => Problem::new(
            Code::AlreadyIssued,
            "The user was issued a coupon of this template before; each user gets one.",
        )
        .with("coupon_id", id.0.to_string()),
        IssueRefusal::NotOpenBefore(at) => {
            let at = rfc3339(at);
            Problem::new(
                Code::IssuanceNotOpen,
                format!("Coupons are issued from {at} on. Come back then."),
            )
            .with("issue_from", at)
        }
        IssueRefusal::ClosedSince(at) => {
            let at = rfc3339(at);
            Problem::new(Code::IssuanceClosed, format!("Coupons were issued until {at}."))
                .with("issue_until", at)
        }
        IssueRefusal::SoldOut => {
            Problem::new(Code::SoldOut, "All coupons of this template are issued.")
        }
    };
    problem.with("template_id", template_id.as_str())
}

/// A wallet was not charged.
pub fn charge(refusal: &ChargeRefusal, amount: u64) -> Problem {
    match *refusal {
        ChargeRefusal::BalanceLimit(balance) => balance_limit(balance, amount),
    }
}

fn balance_limit(balance: u64, amount: u64) -> Problem {
    Problem::new(
        Code::BalanceLimitExceeded,
        format!("The wallet holds {balance} won; {amount} more would exceed its limit of {MAX_BALANCE} won."),
    )
    .with("balance", balance)
    .with("limit", MAX_BALANCE)
}

/// An order was not placed.
pub fn order(refusal: OrderRefusal, lines: &[Line], coupon_id: Option<Uuid>) -> Problem {
    match refusal {
        OrderRefusal::UnknownProduct(id) => no_product(&id),
        OrderRefusal::NotOnSale(id) => Problem::new(
            Code::ProductNotOnSale,
            format!("Product {id} is not on sale. Leave it out."),
        )
        .with("product_id", id),
        OrderRefusal::SaleNotOpen(id, at) => {
            let at = rfc3339(at);
            let detail = format!("Product {id} is sold from {at} on. Come back then.");
            Problem::new(Code::SaleNotOpen, detail).with("product_id", id).with("sale_from", at)
        }
        OrderRefusal::SaleEnded(id, at) => {
            let at = rfc3339(at);
            let detail = format!("Product {id} was sold until {at}. Leave it out.");
            Problem::new(Code::SaleEnded, detail).with("product_id", id).with("sale_until", at)
        }
        OrderRefusal::PurchaseLimit(id, limit, bought, requested) => {
            let detail = format!(
                "A user may buy {limit} of product {id}, has bought {bought}, and asked for {requested}. Order fewer."
            );
            Problem::new(Code::PurchaseLimitExceeded, detail)
                .with("product_id", id)
                .with("limit", limit)
                .with("bought", bought)
                .with("requested", requested)
        }
        OrderRefusal::WalletAmountAbove(total) => Problem::invalid(
            "wallet_amount",
            format_args!("must be at most the order's total, which is {total}"),
        ),
        OrderRefusal::TooManyPending(limit) => Problem::new(
            Code::TooManyPending,
            format!(
                "The user has {limit} orders that wait for a payment. Pay or cancel one of them first."
            ),
        )
        .with("limit", limit),
        OrderRefusal::InsufficientStock(id, available) => insufficient_stock(id, available, lines),
        OrderRefusal::PriceChanged(total) => Problem::new(
            Code::PriceChanged,
            format!(
                "The order now costs {total} won. Show the user the new total and order again."
            ),
        )
        .with("total", total),
        OrderRefusal::InsufficientBalance(balance, total) => Problem::new(
            Code::InsufficientBalance,
            format!(
                "The order takes {total} won from the wallet, which holds {balance}. Charge it first."
            ),
        )
        .with("balance", balance)
        .with("required", total),
        OrderRefusal::UnknownCoupon => with_coupon(
            Problem::new(Code::CouponNotFound, "The user has no such coupon."),
            coupon_id,
        ),
        OrderRefusal::CouponUsed => with_coupon(
            Problem::new(Code::CouponNotAvailable, "The coupon was used for another order."),
            coupon_id,
        ),
        OrderRefusal::CouponExpired(at) => {
            let at = rfc3339(at);
            let problem = Problem::new(Code::CouponExpired, format!("The coupon expired at {at}."));
            with_coupon(problem.with("expired_at", at), coupon_id)
        }
        OrderRefusal::SubtotalTooLow(required, subtotal) => {
            let detail = format!(
                "The coupon can be used from {required} won on, and the order comes to {subtotal}. Order more, or order without it."
            );
            let problem = Problem::new(Code::SubtotalTooLow, detail);
            with_coupon(problem.with("required", required).with("subtotal", subtotal), coupon_id)
        }
    }
}

fn with_coupon(problem: Problem, coupon_id: Option<Uuid>) -> Problem {
    match coupon_id {
        Some(id) => problem.with("coupon_id", id.to_string()),
        None => problem,
    }
}

fn insufficient_stock(id: String, available: u64, lines: &[Line]) -> Problem {
    let required =
        lines.iter().find(|line| line.product_id.as_str() == id).map(|line| line.quantity);
    let problem = Problem::new(
        Code::InsufficientStock,
        format!("Only {available} of product {id} are left. Order fewer, or leave it out."),
    )
    .with("product_id", id)
    .with("available", available);
    match required {
        Some(required) => problem.with("required", required),
        None => problem,
    }
}

/// An order was not cancelled. The caller handles the two refusals that only mean "read again".
pub fn cancel(refusal: CancelRefusal, refund: u64) -> Problem {
    match refusal {
        CancelRefusal::BalanceLimit(balance) => balance_limit(balance, refund),
        CancelRefusal::UnknownProduct(id) => no_product(&id),
        CancelRefusal::AlreadyCancelled | CancelRefusal::NotPending | CancelRefusal::StaleRead => {
            order_in_flux()
        }
    }
}

/// The hold of an order is over, so it cannot be paid or cancelled any more.
pub fn hold_expired(at: impl Into<String>) -> Problem {
    let at = at.into();
    let detail = format!(
        "The order was held until {at}, and what it held is given back. A payment that was made outside is the shop's to give back; order again."
    );
    Problem::new(Code::HoldExpired, detail).with("hold_expires_at", at)
}

/// The order is paid, with another reference or from the wallet.
pub fn already_confirmed(payment_reference: Option<&str>) -> Problem {
    match payment_reference {
        Some(reference) => Problem::new(
            Code::AlreadyConfirmed,
            "The order was confirmed with another payment reference. If both payments were made, one is the shop's to give back.",
        )
        .with("payment_reference", reference),
        None => Problem::new(
            Code::AlreadyConfirmed,
            "The order is paid, and nothing was left to be paid outside.",
        ),
    }
}

/// A cancelled order cannot be confirmed.
pub fn order_cancelled() -> Problem {
    Problem::new(
        Code::OrderCancelled,
        "The order is cancelled. If this payment was made, it is the shop's to give back.",
    )
}

/// The order changed each time it was read.
pub fn order_in_flux() -> Problem {
    Problem::new(
        Code::GateUnavailable,
        "The order changed each time it was read; nothing was changed. Try again shortly.",
    )
}

/// A product was not changed.
pub fn product(refusal: &ProductRefusal) -> Problem {
    match refusal {
        ProductRefusal::StockGiven => Problem::invalid(
            "stock",
            "the product exists and was created with another stock, which changes by POST …/stock-adjustments only; leave this member out",
        ),
    }
}

/// A stock was not adjusted.
pub fn stock(refusal: &StockRefusal, id: &ProductId, delta: i64) -> Problem {
    match *refusal {
        StockRefusal::UnknownProduct => no_product(id.as_str()),
        StockRefusal::BelowZero(available) => Problem::new(
            Code::StockBelowZero,
            format!(
                "Product {id} has {available} in stock; {} cannot be taken out.",
                delta.unsigned_abs()
            ),
        )
        .with("product_id", id.as_str())
        .with("available", available)
        .with("required", delta.unsigned_abs()),
        StockRefusal::TooHigh(available) => Problem::invalid(
            "delta",
            format_args!("the stock is {available}, and with this it would exceed {MAX_STOCK}"),
        )
        .with("product_id", id.as_str())
        .with("available", available),
    }
}

/// A template was not changed.
pub fn template(refusal: &TemplateRefusal, id: &TemplateId) -> Problem {
    match *refusal {
        TemplateRefusal::TooManyTerms => Problem::invalid(
            "discount",
            "the terms of this template were changed too often; make a new template",
        ),
        TemplateRefusal::LimitBelowIssued(issued) => Problem::new(
            Code::LimitBelowIssued,
            format!("{issued} coupons are issued already; max_issued may not be below that."),
        )
        .with("template_id", id.as_str())
        .with("issued", issued),
    }
}

/// The lines of an order are not acceptable. `sent` are the products as the client listed them.
pub fn lines(invalid: &InvalidLines, sent: &[ProductId]) -> Problem {
    match invalid {
        InvalidLines::Empty | InvalidLines::TooMany => Problem::invalid("items", invalid),
        InvalidLines::Quantity { product_id } => {
            let place = sent.iter().rposition(|id| id == product_id).unwrap_or_default();
            Problem::invalid(format!("items[{place}].quantity"), invalid)
                .with("product_id", product_id.as_str())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(id: &str, quantity: u64) -> Line {
        Line { product_id: ProductId::parse(id).unwrap(), quantity }
    }

    #[test]
    fn a_refusal_says_what_is_there_and_what_was_asked_for() {
        let problem =
            order(OrderRefusal::InsufficientStock("mug".into(), 3), &[line("mug", 5)], None);
        let json = serde_json::to_value(problem).unwrap();
        assert_eq!(json["code"], "insufficient-stock");
        assert_eq!((json["available"].as_u64(), json["required"].as_u64()), (Some(3), Some(5)));
        assert_eq!(json["product_id"], "mug");
    }

    #[test]
    fn a_refused_coupon_is_named() {
        let id = Uuid::from_u128(9);
        for refusal in [
            OrderRefusal::UnknownCoupon,
            OrderRefusal::CouponUsed,
            OrderRefusal::CouponExpired(0),
            OrderRefusal::SubtotalTooLow(10_000, 500),
        ] {
            let json = serde_json::to_value(order(refusal, &[], Some(id))).unwrap();
            assert_eq!(json["coupon_id"], id.to_string(), "{json}");
        }
    }

    #[test]
    fn the_line_that_goes_over_the_limit_is_named() {
        let sent = [line("a", 1).product_id, line("b", 1).product_id, line("a", 1).product_id];
        let invalid = InvalidLines::Quantity { product_id: sent[0].clone() };
        assert_eq!(
            serde_json::to_value(lines(&invalid, &sent)).unwrap()["field"],
            "items[2].quantity"
        );
    }
}
