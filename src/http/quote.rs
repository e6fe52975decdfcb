//! Quotes: what an order would cost, and every refusal that it would meet now.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::sync::Arc;

use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

use super::Api;
use super::answer::JsonAnswer;
use super::auth::Caller;
use super::extract::Json;
use super::fields::ShopId;
use super::openapi::AnyProblem;
use super::orders::PlaceOrderBody;
use super::problem::Problem;
use super::refusals;
use crate::config::bounds::QUOTED_COUPONS;
use crate::domain::limits::MAX_PAGE;
use crate::domain::{CouponStatus, OrderItemView, Product, ProductState, TimestampMs, UserId};
use crate::gate::{Gate, GateError, HeldCoupon, OrderRefusal, PlaceOrder, ReadAt};

/// What an order would cost now, and why it would be refused. It reserves nothing.
#[derive(Debug, Serialize, ToSchema)]
#[schema(title = "Quote", as = Quote)]
pub struct QuoteView {
    /// The products that exist, with their prices.
    items: Vec<OrderItemView>,
    #[schema(minimum = 0, example = 70_000)]
    subtotal: u64,
    /// What the named coupon takes off.
    #[schema(minimum = 0, example = 1_000)]
    discount: u64,
    /// To be passed as `expected_total`.
    #[schema(minimum = 0, example = 69_000)]
    total: u64,
    #[schema(minimum = 0, maximum = 1_000_000, example = 100_000)]
    balance: u64,
    /// Whether there are no problems.
    orderable: bool,
    /// Every refusal that the order would meet, as the order's answer would say it.
    #[schema(value_type = Vec<AnyProblem>)]
    problems: Vec<Problem>,
    /// The user's available coupons, those that take off most first; at most 100.
    coupons: Vec<QuotedCoupon>,
}

/// A coupon that the user could use.
#[derive(Debug, Serialize, ToSchema)]
#[schema(title = "QuotedCoupon", as = QuotedCoupon)]
struct QuotedCoupon {
    coupon_id: Uuid,
    #[schema(value_type = ShopId, example = "welcome")]
    template_id: String,
    #[schema(example = "Welcome: 1,000 won off")]
    name: String,
    /// Won that it would take off.
    #[schema(minimum = 0, example = 1_000)]
    discount: u64,
    /// What the order would cost with it.
    #[schema(minimum = 0, example = 69_000)]
    total: u64,
    /// Why it cannot be used for this order.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, value_type = Option<AnyProblem>)]
    problem: Option<Problem>,
}

/// Price an order without placing it
///
/// The body is that of an order. Unknown products and coupons are problems in the list.
#[utoipa::path(post, path = "/v1/orders/quote", tag = "orders", request_body = PlaceOrderBody,
    security(("token" = ["shop", "service", "admin"])), responses((status = 200, body = QuoteView)))]
pub async fn quote_order(
    State(api): State<Arc<Api>>,
    caller: Caller,
    Json(body): Json<PlaceOrderBody>,
) -> Result<JsonAnswer<QuoteView>, Problem> {
    caller.check_acts_for(body.user_id())?;
    let request = body.request(api.settings.holds)?;
    let _permit = api.concurrency.read.permit().await?;
    let seen = Seen::read(&api.gate, &request).await?;
    Ok(JsonAnswer(seen.quote(&request)))
}

/// What the quote is made from. The parts are read one after the other: only an order decides.
struct Seen {
    products: HashMap<String, Product>,
    /// product → pieces that the user has bought under its limit
    bought: HashMap<String, u64>,
    balance: u64,
    pending: u64,
    coupon: Option<ReadAt<HeldCoupon>>,
    available: Vec<HeldCoupon>,
}

impl Seen {
    async fn read(gate: &Gate, request: &PlaceOrder) -> Result<Self, GateError> {
        let user = &request.user_id;
        let ids: Vec<_> = request.lines.iter().map(|line| line.product_id.clone()).collect();
        let coupon = async {
            match request.coupon_id {
                Some(id) => gate.held_coupon(user, id).await,
                None => Ok(None),
            }
        };
        let pending = async {
            match request.outside {
                Some(_) => gate.pending_orders(user).await,
                None => Ok(0),
            }
        };
        let available =
            gate.held_coupons(user, Some(CouponStatus::Available), QUOTED_COUPONS, None);
        let (products, balance, coupon, pending, available) =
            tokio::try_join!(gate.products(&ids), gate.balance(user), coupon, pending, available)?;
        let bought = bought(gate, user, &products).await?;
        Ok(Self {
            products: products.into_iter().map(|it| (it.product_id.to_string(), it)).collect(),
            bought,
            balance: balance.unwrap_or(0),
            pending,
            coupon,
            available: available.map_or_else(Vec::new, |read| read.value),
        })
    }

    fn quote(self, request: &PlaceOrder) -> QuoteView {
        let (mut items, mut refused) = (Vec::new(), Vec::new());
        for line in &request.lines {
            let id = line.product_id.as_str();
            let Some(product) = self.products.get(id) else {
                refused.push(OrderRefusal::UnknownProduct(id.to_owned()));
                continue;
            };
            self.check_line(product, line.quantity, &mut refused);
            items.push(OrderItemView {
                product_id: id.to_owned(),
                name: product.name.clone(),
                unit_price: product.price,
                quantity: line.quantity,
                amount: product.price.saturating_mul(line.quantity),
                limit_number: None,
            });
        }
        let subtotal = items.iter().map(|item| item.amount).sum();
        let discount = match self.discount(request, subtotal) {
            Ok(discount) => discount,
            Err(why) => {
                refused.push(why);
                0
            }
        };
        let total = subtotal - discount;
        self.check_payment(request, total, &mut refused);
        let problem = |why| refusals::order(why, &request.lines, request.coupon_id);
        QuoteView {
            items,
            subtotal,
            discount,
            total,
            balance: self.balance,
            orderable: refused.is_empty(),
            problems: refused.into_iter().map(problem).collect(),
            coupons: best_coupons(self.available, subtotal),
        }
    }

    fn check_line(&self, product: &Product, quantity: u64, refused: &mut Vec<OrderRefusal>) {
        let id = product.product_id.to_string();
        let rules = &product.rules;
        match product.state() {
            ProductState::Suspended => refused.push(OrderRefusal::NotOnSale(id.clone())),
            ProductState::Scheduled => {
                let from = rules.sale_from.unwrap_or_default();
                refused.push(OrderRefusal::SaleNotOpen(id.clone(), from));
            }
            ProductState::Ended => {
                let until = rules.sale_until.unwrap_or_default();
                refused.push(OrderRefusal::SaleEnded(id.clone(), until));
            }
            ProductState::SoldOut | ProductState::Open => {}
        }
        let bought = self.bought.get(&id).copied().unwrap_or(0);
        if let Some(limit) = rules.per_user_limit
            && bought.saturating_add(quantity) > limit
        {
            refused.push(OrderRefusal::PurchaseLimit(id.clone(), limit, bought, quantity));
        }
        if product.stock < quantity {
            refused.push(OrderRefusal::InsufficientStock(id, product.stock));
        }
    }

    /// What the named coupon takes off.
    fn discount(&self, request: &PlaceOrder, subtotal: u64) -> Result<u64, OrderRefusal> {
        if request.coupon_id.is_none() {
            return Ok(0);
        }
        let Some(ReadAt { value: held, now }) = &self.coupon else {
            return Err(OrderRefusal::UnknownCoupon);
        };
        usable(held, *now, subtotal)?;
        Ok(held.template.discount.off(subtotal))
    }

    fn check_payment(&self, request: &PlaceOrder, total: u64, refused: &mut Vec<OrderRefusal>) {
        if request.expected_total.is_some_and(|expected| expected != total) {
            refused.push(OrderRefusal::PriceChanged(total));
        }
        let from_wallet = request.outside.map_or(total, |outside| outside.wallet_amount);
        if from_wallet > total {
            refused.push(OrderRefusal::WalletAmountAbove(total));
        }
        if let Some(outside) = request.outside
            && from_wallet < total
            && self.pending >= outside.pending_limit
        {
            refused.push(OrderRefusal::TooManyPending(outside.pending_limit));
        }
        if self.balance < from_wallet {
            refused.push(OrderRefusal::InsufficientBalance(self.balance, from_wallet));
        }
    }
}

/// What the user has bought of those products that have a limit.
async fn bought(
    gate: &Gate,
    user: &UserId,
    products: &[Product],
) -> Result<HashMap<String, u64>, GateError> {
    let limited: Vec<(String, u64)> = products
        .iter()
        .filter_map(|product| Some((product.product_id.to_string(), product.limit_number?)))
        .collect();
    if limited.is_empty() {
        return Ok(HashMap::new());
    }
    let numbers: Vec<u64> = limited.iter().map(|(_, number)| *number).collect();
    let bought = gate.bought(user, &numbers).await?;
    Ok(limited.into_iter().map(|(id, _)| id).zip(bought).collect())
}

fn usable(held: &HeldCoupon, now: TimestampMs, subtotal: u64) -> Result<(), OrderRefusal> {
    if held.order_id.is_some() {
        Err(OrderRefusal::CouponUsed)
    } else if now >= held.expires_at {
        Err(OrderRefusal::CouponExpired(held.expires_at))
    } else if subtotal < held.template.min_subtotal {
        Err(OrderRefusal::SubtotalTooLow(held.template.min_subtotal, subtotal))
    } else {
        Ok(())
    }
}

/// Those that can be used first, and of these the ones that take off most.
fn best_coupons(available: Vec<HeldCoupon>, subtotal: u64) -> Vec<QuotedCoupon> {
    let mut coupons: Vec<QuotedCoupon> = available
        .into_iter()
        .map(|held| {
            let too_low = usable(&held, held.issued_at, subtotal).err();
            let problem = too_low.map(|why| refusals::order(why, &[], Some(held.coupon_id)));
            let discount = if problem.is_none() { held.template.discount.off(subtotal) } else { 0 };
            QuotedCoupon {
                coupon_id: held.coupon_id,
                template_id: held.template.template_id.into(),
                name: held.template.name,
                discount,
                total: subtotal - discount,
                problem,
            }
        })
        .collect();
    coupons.sort_by_key(|coupon| (coupon.problem.is_some(), Reverse(coupon.discount)));
    coupons.truncate(MAX_PAGE);
    coupons
}
