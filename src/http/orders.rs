//! Orders: placing (which pays, too), reading and cancelling them.

use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use utoipa::ToSchema;
use uuid::Uuid;

use super::Api;
use super::answer::{AcceptedOrder, JsonAnswer, List, marked};
use super::auth::{Backend, Caller};
use super::extract::{IdempotencyKeyParam, Json, Key, NoBody, NoQuery, Page, PageParams, PathId};
use super::fields::{EnumStr, IntRange, Object, Printable, ShopId, UuidText, bound};
use super::problem::Problem;
use super::refusals;
use crate::domain::fact::{OrderCancelled, OrderConfirmed, OrderPlaced};
use crate::domain::limits::{
    MAX_BALANCE, MAX_HOLD_SECS, MAX_ORDER_AMOUNT, MAX_PAYMENT_REFERENCE_CHARS, MAX_QUANTITY,
    MAX_REFERENCE_CHARS, MIN_HOLD_SECS,
};
use crate::domain::order::merge_lines;
use crate::domain::{Line, OrderStatus, OrderView, PaymentMethod, ProductId, UserId, rfc3339};
use crate::gate::{
    CancelOrder, CancelRefusal, ConfirmOrder, ConfirmRefusal, IdempotencyKey, KeyedRequest,
    PayOutside, PlaceOrder,
};
use crate::telemetry::metrics::{CONFIRM_DELAY, LATE_CONFIRMS};

/// Attempts to cancel or confirm an order that changes between the read and the decision.
const CANCEL_READS: usize = 4;

/// What to order.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(title = "PlaceOrder", as = PlaceOrder)]
#[schema(example = json!({"user_id": "user-1", "items": [{"product_id": "tumbler", "quantity": 2}], "expected_total": 70_000}))]
pub struct PlaceOrderBody {
    #[schema(value_type = ShopId)]
    user_id: UserId,
    /// 1 to 50 products; the same product named twice counts as the sum.
    #[schema(value_type = Vec<ItemBody>, min_items = 1)]
    items: Vec<Object<ItemBody>>,
    #[schema(value_type = Option<Uuid>)]
    coupon_id: Option<UuidText>,
    /// What the user was shown; another total is refused with `price-changed`.
    #[schema(inline)]
    expected_total: Option<IntRange<0, { bound(MAX_ORDER_AMOUNT) }>>,
    /// `external`: the order is held until its payment outside is confirmed.
    #[schema(value_type = Option<PaymentMethod>)]
    payment: Option<EnumStr<PaymentMethod>>,
    /// With `external`: won to take from the wallet now, at most the total (default 0).
    #[schema(inline)]
    wallet_amount: Option<IntRange<0, { bound(MAX_BALANCE) }>>,
    /// With `external`: for how long the order is held (default `RUSHGATE_HOLD_SECS`).
    #[schema(inline)]
    hold_secs: Option<IntRange<{ bound(MIN_HOLD_SECS) }, { bound(MAX_HOLD_SECS) }>>,
    /// The shop's own order number: printable ASCII. It need not be unique.
    #[schema(value_type = Option<String>, min_length = 1, max_length = 64, example = "2026-000123")]
    reference: Option<Printable<MAX_REFERENCE_CHARS>>,
}

/// One product to order.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(title = "PlaceOrderItem", as = PlaceOrderItem)]
struct ItemBody {
    #[schema(value_type = ShopId)]
    product_id: ProductId,
    #[schema(inline)]
    quantity: IntRange<1, { bound(MAX_QUANTITY) }>,
}

/// The settings for orders that are paid outside.
#[derive(Clone, Copy, Debug)]
pub struct HoldSettings {
    /// How long an order is held if it does not say.
    pub hold_secs: u64,
    /// The most pending orders of a user.
    pub pending_limit: u64,
}

impl PlaceOrderBody {
    pub fn request(self, holds: HoldSettings) -> Result<PlaceOrder, Problem> {
        let outside = self.outside(holds)?;
        let lines: Vec<Line> = self.items.into_iter().map(|Object(item)| item.into()).collect();
        let sent: Vec<ProductId> = lines.iter().map(|line| line.product_id.clone()).collect();
        let lines = merge_lines(lines).map_err(|invalid| refusals::lines(&invalid, &sent))?;
        Ok(PlaceOrder {
            user_id: self.user_id,
            lines,
            coupon_id: self.coupon_id.map(|id| id.0),
            expected_total: self.expected_total.map(IntRange::get),
            reference: self.reference.map(|text| text.0),
            outside,
        })
    }

    fn outside(&self, holds: HoldSettings) -> Result<Option<PayOutside>, Problem> {
        if self.payment.is_some_and(|method| method.0 == PaymentMethod::External) {
            return Ok(Some(PayOutside {
                wallet_amount: self.wallet_amount.map_or(0, IntRange::get),
                hold_ms: self.hold_secs.map_or(holds.hold_secs, IntRange::get) * 1_000,
                pending_limit: holds.pending_limit,
            }));
        }
        let given = [
            ("wallet_amount", self.wallet_amount.is_some()),
            ("hold_secs", self.hold_secs.is_some()),
        ];
        match given.into_iter().find(|(_, given)| *given) {
            Some((field, _)) => Err(Problem::invalid(field, "is for `payment: external` only")),
            None => Ok(None),
        }
    }

    pub fn user_id(&self) -> &UserId {
        &self.user_id
    }
}

impl From<ItemBody> for Line {
    fn from(item: ItemBody) -> Self {
        Self { product_id: item.product_id, quantity: item.quantity.get() }
    }
}

/// Order and pay, or hold an order until it is paid outside
#[utoipa::path(post, path = "/v1/orders", tag = "orders", params(IdempotencyKeyParam),
    request_body = PlaceOrderBody, security(("token" = ["shop", "service", "admin"])),
    responses((status = 201, description = "Ordered and paid, or held", body = OrderView),
              (status = 202, description = "Decided, not yet in PostgreSQL", body = AcceptedOrder)))]
pub async fn place_order(
    State(api): State<Arc<Api>>,
    caller: Caller,
    key: Key,
    Json(body): Json<PlaceOrderBody>,
) -> Result<Response, Problem> {
    caller.check_acts_for(&body.user_id)?;
    let request = body.request(api.settings.holds)?;
    let (key, lines, coupon_id) =
        (key.of(&request.user_id), request.lines.clone(), request.coupon_id);
    let _permit = api.concurrency.decide.permit().await?;
    let decision = api.gate.place_order(request, key, api.deadline()).await;
    let decided =
        api.decided(decision, |refusal| refusals::order(refusal, &lines, coupon_id)).await?;
    let ids = |it: &OrderPlaced| AcceptedOrder::new(it.order_id.0);
    Ok(decided.answer(StatusCode::CREATED, ids, |placed| OrderView::from(&placed)))
}

/// One order
#[utoipa::path(get, path = "/v1/orders/{id}", tag = "orders", params(("id" = Uuid, Path)),
    security(("token" = ["shop", "service", "admin"])), responses((status = 200, body = OrderView)))]
pub async fn get_order(
    State(api): State<Arc<Api>>,
    caller: Caller,
    PathId(order_id): PathId<Uuid>,
    _: NoQuery,
) -> Result<JsonAnswer<OrderView>, Problem> {
    let _permit = api.concurrency.truth.permit().await?;
    let (order, _) = api.read_truth(visible_order(&api, &caller, order_id)).await?;
    Ok(JsonAnswer(order))
}

/// A user's orders, newest first
#[utoipa::path(get, path = "/v1/users/{user}/orders", tag = "orders",
    params(("user" = ShopId, Path), PageParams), security(("token" = ["shop", "service", "admin"])),
    responses((status = 200, body = List<OrderView>)))]
pub async fn list_orders(
    State(api): State<Arc<Api>>,
    caller: Caller,
    PathId(user_id): PathId<UserId>,
    page: Page<Uuid>,
) -> Result<JsonAnswer<List<OrderView>>, Problem> {
    caller.check_acts_for(&user_id)?;
    let _permit = api.concurrency.truth.permit().await?;
    let read = async { Ok(api.truth.orders_of(&user_id, page.after, page.limit + 1).await?) };
    let (found, _) = api.read_truth(read).await?;
    Ok(JsonAnswer(List::page(found, page.limit, |order| order.order_id.to_string())))
}

/// Cancel an order
///
/// Gives back stock, balance and coupon (if not expired by then), once. Cancelling again answers
/// the same.
#[utoipa::path(post, path = "/v1/orders/{id}/cancel", tag = "orders",
    params(("id" = Uuid, Path), IdempotencyKeyParam), security(("token" = ["shop", "service", "admin"])),
    responses((status = 200, description = "Cancelled", body = OrderView),
              (status = 202, description = "Decided, not yet in PostgreSQL", body = AcceptedOrder)))]
pub async fn cancel_order(
    State(api): State<Arc<Api>>,
    caller: Caller,
    PathId(order_id): PathId<Uuid>,
    key: Key,
    _: NoBody,
) -> Result<Response, Problem> {
    let _permit = api.concurrency.truth.permit().await?;
    // The gate does not store orders; it only knows which were cancelled in its epoch. So the order
    // is read from PostgreSQL, and read again when it changed before the gate decided.
    for _ in 0..CANCEL_READS {
        let (order, caught_up) = api.read_truth(visible_order(&api, &caller, order_id)).await?;
        let user_id = UserId::parse(order.user_id.clone()).map_err(|_| Problem::internal())?;
        let key = key.of(&user_id);
        match order.status {
            OrderStatus::Cancelled => {
                let request = KeyedRequest::CancelOrder(order.order_id);
                return answered_before(&api, order, key, request).await;
            }
            OrderStatus::Expired => return Err(expired(&order)),
            OrderStatus::Pending | OrderStatus::Paid => {}
        }
        let request = cancellation(&order, user_id.clone(), caught_up.epoch_of(&user_id))?;
        let decision = match api.gate.cancel_order(request, key, api.deadline()).await {
            Ok(Err(
                CancelRefusal::AlreadyCancelled
                | CancelRefusal::NotPending
                | CancelRefusal::StaleRead,
            )) => continue,
            decision => decision,
        };
        let decided = api
            .decided(decision, |refusal| refusals::cancel(refusal, order.wallet_amount()))
            .await?;
        let ids = |it: &OrderCancelled| AcceptedOrder::new(it.order_id.0);
        return Ok(decided.answer(StatusCode::OK, ids, |fact| order.cancelled(&fact)));
    }
    Err(refusals::order_in_flux())
}

/// An order that the caller may see. Orders of other users are reported as not found.
async fn visible_order(api: &Api, caller: &Caller, order_id: Uuid) -> Result<OrderView, Problem> {
    let order = api.truth.order(order_id).await?.filter(|order| caller.may_act_for(&order.user_id));
    order.ok_or_else(Problem::no_such_order)
}

fn cancellation(
    order: &OrderView,
    user_id: UserId,
    read_in_epoch: u64,
) -> Result<CancelOrder, Problem> {
    let lines = order.items.iter().map(|item| {
        let product_id =
            ProductId::parse(item.product_id.clone()).map_err(|_| Problem::internal())?;
        Ok(Line { product_id, quantity: item.quantity })
    });
    Ok(CancelOrder {
        order_id: order.order_id,
        user_id,
        lines: lines.collect::<Result<_, Problem>>()?,
        refund: order.wallet_amount(),
        coupon_id: order.coupon_id,
        limit_numbers: order.items.iter().map(|item| item.limit_number).collect(),
        read_in_epoch,
        was_pending: order.status == OrderStatus::Pending,
        paid_outside: order.paid_outside(),
    })
}

/// What was paid outside.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(title = "ConfirmOrder", as = ConfirmOrder, example = json!({"payment_reference": "card-7f3a91"}))]
pub struct ConfirmOrderBody {
    /// The payment provider's number: printable ASCII.
    #[schema(value_type = String, min_length = 1, max_length = 128)]
    payment_reference: Printable<MAX_PAYMENT_REFERENCE_CHARS>,
}

/// Confirm that an order was paid outside
///
/// From the end of its hold on, an order cannot be confirmed: what was paid outside is then the
/// shop's to give back. The same reference again answers the same.
#[utoipa::path(post, path = "/v1/orders/{id}/confirm", tag = "orders",
    params(("id" = Uuid, Path), IdempotencyKeyParam), request_body = ConfirmOrderBody,
    security(("token" = ["service", "admin"])),
    responses((status = 200, description = "Confirmed", body = OrderView),
              (status = 202, description = "Decided, not yet in PostgreSQL", body = AcceptedOrder)))]
pub async fn confirm_order(
    State(api): State<Arc<Api>>,
    Backend(caller): Backend,
    PathId(order_id): PathId<Uuid>,
    key: Key,
    Json(body): Json<ConfirmOrderBody>,
) -> Result<Response, Problem> {
    let _permit = api.concurrency.decide.permit().await?;
    let request = ConfirmOrder { order_id, payment_reference: body.payment_reference.0 };
    let key = key.of(&caller.sub);
    for _ in 0..CANCEL_READS {
        let decision = api.gate.confirm_order(&request, key.clone(), api.deadline()).await;
        if !matches!(decision, Ok(Err(ConfirmRefusal::NotPending))) {
            let refused = |refusal| not_confirmed(refusal, &request);
            let decided = api.decided(decision, refused).await?;
            let ids = |it: &OrderConfirmed| AcceptedOrder::new(it.order_id.0);
            note_delay(&decided.fact);
            return Ok(decided.answer(StatusCode::OK, ids, |fact| OrderView::from(&fact)));
        }
        let read = async { Ok(api.truth.order(order_id).await?) };
        let (order, _) = Box::pin(api.read_truth(read)).await?;
        let order = order.ok_or_else(Problem::no_such_order)?;
        match order.status {
            // The gate was rebuilt between the two, or has the decision that placed it by now.
            OrderStatus::Pending => {}
            OrderStatus::Cancelled => return Err(refusals::order_cancelled()),
            OrderStatus::Expired => {
                note_late(&request);
                return Err(expired(&order));
            }
            OrderStatus::Paid => {
                let paid = order.outside.as_ref().and_then(|it| it.payment_reference.as_deref());
                if paid != Some(request.payment_reference.as_str()) {
                    return Err(refusals::already_confirmed(paid));
                }
                let request = KeyedRequest::ConfirmOrder(&request);
                return answered_before(&api, order, key, request).await;
            }
        }
    }
    Err(refusals::order_in_flux())
}

fn not_confirmed(refusal: ConfirmRefusal, request: &ConfirmOrder) -> Problem {
    match refusal {
        ConfirmRefusal::HoldExpired(at) => {
            note_late(request);
            refusals::hold_expired(rfc3339(at))
        }
        ConfirmRefusal::NotPending => refusals::order_in_flux(),
    }
}

/// The refusal of an order whose hold is over.
fn expired(order: &OrderView) -> Problem {
    let at = order.outside.as_ref().and_then(|outside| outside.hold_expires_at.clone());
    refusals::hold_expired(at.unwrap_or_default())
}

/// Somebody has paid for nothing: staff must be able to find it.
fn note_late(request: &ConfirmOrder) {
    LATE_CONFIRMS.counter(&[]).increment(1);
    let ConfirmOrder { order_id, payment_reference } = request;
    tracing::warn!(
        %order_id,
        payment_reference,
        "a payment was confirmed after the end of the order's hold: it is to be given back"
    );
}

fn note_delay(confirmed: &OrderConfirmed) {
    let ms = confirmed.paid_at.saturating_sub(confirmed.order.ordered_at);
    CONFIRM_DELAY.histogram(&[]).record(ms as f64 / 1_000.0);
}

/// The answer for an order that PostgreSQL has as what was asked for. The gate is not asked: after a
/// rebuild it does not know earlier cancellations, nor confirmations. The key, if any, is recorded
/// for this request.
async fn answered_before(
    api: &Api,
    order: OrderView,
    key: Option<IdempotencyKey>,
    request: KeyedRequest<'_>,
) -> Result<Response, Problem> {
    let Some(key) = key else { return Ok(JsonAnswer(order).into_response()) };
    let replayed =
        api.used_before(&key, request).await?.is_some() || api.use_key(&key, request).await?;
    Ok(marked(JsonAnswer(order).into_response(), replayed))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::extract::parse_json;
    use serde_json::{Value, json};

    fn request(body: &str) -> Result<PlaceOrder, (String, String)> {
        let parsed = parse_json::<PlaceOrderBody>(body.as_bytes());
        let holds = HoldSettings { hold_secs: 600, pending_limit: 5 };
        parsed.and_then(|body| body.request(holds)).map_err(|problem| {
            let json = serde_json::to_value(problem).unwrap();
            let text = |name: &str| json[name].as_str().unwrap_or_default().to_owned();
            (text("code"), text("field"))
        })
    }

    fn refused_field(items: &Value) -> String {
        let body = json!({"user_id": "u", "items": items}).to_string();
        let (code, field) = request(&body).unwrap_err();
        assert_eq!(code, "invalid-field", "{body}");
        field
    }

    #[test]
    fn an_order_is_read_with_its_lines_merged() {
        let body = r#"{"user_id":"u","items":[{"product_id":"a","quantity":1},{"product_id":"a","quantity":2}],
            "coupon_id":"01939E5A-7c2f-7b3e-9d54-8a1c6f2e0b47","expected_total":0}"#;
        let order = request(body).unwrap();
        assert_eq!(order.lines, [Line { product_id: ProductId::parse("a").unwrap(), quantity: 3 }]);
        assert_eq!(order.expected_total, Some(0));
        assert!(order.coupon_id.is_some());
    }

    #[test]
    fn the_value_at_fault_is_named_by_its_path() {
        let item = |quantity: Value| json!([{"product_id": "a", "quantity": quantity}]);
        for bad in [
            json!(0),
            json!(-1),
            json!(1_001),
            json!(1.5),
            json!("1"),
            json!(null),
            json!(u64::MAX),
        ] {
            assert_eq!(refused_field(&item(bad)), "items[0].quantity");
        }
        assert_eq!(refused_field(&json!([])), "items");
        assert_eq!(refused_field(&json!("a")), "items");
        assert_eq!(refused_field(&json!([["a", 1]])), "items[0]");
        assert_eq!(refused_field(&json!([{"product_id": "a"}])), "items[0].quantity");
        assert_eq!(
            refused_field(&json!([{"product_id": "a b", "quantity": 1}])),
            "items[0].product_id"
        );
        assert_eq!(
            refused_field(&json!([{"product_id": "a", "quantity": 1, "price": 5}])),
            "items[0].price"
        );
        let twice =
            json!([{"product_id": "a", "quantity": 1_000}, {"product_id": "a", "quantity": 1}]);
        assert_eq!(refused_field(&twice), "items[1].quantity");
        let many: Vec<Value> =
            (0..51).map(|n| json!({"product_id": format!("p{n}"), "quantity": 1})).collect();
        assert_eq!(refused_field(&json!(many)), "items");
    }

    #[test]
    fn what_is_no_json_is_malformed_and_json_of_another_shape_is_invalid() {
        let with_total = |total: &str| {
            format!(
                r#"{{"user_id":"u","items":[{{"product_id":"a","quantity":1}}],"expected_total":{total}}}"#
            )
        };
        for bad in [
            "1.0",
            "1e3",
            "-1",
            "1e400",
            "-0",
            "50000000000001",
            "18446744073709551616",
            "true",
            "[]",
        ] {
            let refused = request(&with_total(bad)).unwrap_err();
            assert_eq!(refused, ("invalid-field".into(), "expected_total".into()), "{bad}");
        }
        for bad in ["01", "+1", "NaN", "0x1", "1_000", "", "'1'"] {
            assert_eq!(request(&with_total(bad)).unwrap_err().0, "malformed-request", "{bad}");
        }
        for bad in ["", "{", "nonsense", "{}x", r#"{"user_id":5,"#, "{\"user_id\":\"\u{1}\"}"] {
            assert_eq!(request(bad).unwrap_err().0, "malformed-request", "{bad}");
        }
        let twice = r#"{"user_id":"u","user_id":"v","items":[]}"#;
        assert_eq!(request(twice).unwrap_err().0, "malformed-request");
        for (bad, field) in [
            ("{}", "user_id"),
            ("[]", ""),
            ("5", ""),
            ("null", ""),
            (r#"["u",[]]"#, ""),
            (r#"{"user_id":"u","items":[],"note":1}"#, "note"),
            (r#"{"user_id":"u/v","items":[]}"#, "user_id"),
            (
                r#"{"user_id":"u","items":[],"coupon_id":"01939e5a7c2f7b3e9d548a1c6f2e0b47"}"#,
                "coupon_id",
            ),
        ] {
            assert_eq!(request(bad).unwrap_err(), ("invalid-field".into(), field.into()), "{bad}");
        }
        assert_eq!(
            parse_json::<PlaceOrderBody>(b"\xff{}").unwrap_err().code().as_str(),
            "malformed-request"
        );
    }
}
