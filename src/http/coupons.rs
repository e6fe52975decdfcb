//! Coupons: issuing them, first come, first served, and listing those of a user.

use std::sync::Arc;

use axum::extract::{FromRequestParts, State};
use axum::http::StatusCode;
use axum::http::request::Parts;
use axum::response::Response;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use super::Api;
use super::answer::{AcceptedCoupon, JsonAnswer, List};
use super::auth::Caller;
use super::coupon_templates::DiscountView;
use super::extract::{IdempotencyKeyParam, Identifier, Json, Key, Page, PageParams, PathId, Query};
use super::fields::ShopId;
use super::problem::Problem;
use super::refusals;
use crate::domain::fact::CouponIssued;
use crate::domain::{CouponStatus, Discount, TemplateId, TimestampMs, UserId, rfc3339};
use crate::gate::{HeldCoupon, IssueCoupon, IssueRefusal};

/// Whom to issue a coupon to.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(title = "IssueCoupon", as = IssueCoupon, example = json!({"user_id": "user-1"}))]
pub struct IssueBody {
    #[schema(value_type = ShopId)]
    user_id: UserId,
}

/// An issued coupon.
#[derive(Debug, Serialize, ToSchema)]
#[schema(title = "IssuedCoupon", as = IssuedCoupon)]
pub struct IssuedView {
    coupon_id: Uuid,
    #[schema(value_type = ShopId, example = "welcome")]
    template_id: String,
    #[schema(value_type = ShopId, example = "user-1")]
    user_id: String,
    /// 1 … `max_issued`, unique within the template.
    #[schema(minimum = 1, example = 17)]
    serial: u64,
    /// As it stays, whatever becomes of the template. (Absent if the gate could not be read again.)
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    discount: Option<DiscountView>,
    /// The minimum subtotal of an order that uses it; 0: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, minimum = 0, example = 0)]
    min_subtotal: Option<u64>,
    status: CouponStatus,
    #[schema(format = DateTime, example = "2026-11-22T09:00:00.000Z")]
    issued_at: String,
    /// 365 days after `issued_at`.
    #[schema(format = DateTime, example = "2027-11-22T09:00:00.000Z")]
    expires_at: String,
}

impl IssuedView {
    fn new(issued: CouponIssued, terms: Option<(Discount, u64)>) -> Self {
        Self {
            discount: terms.map(|(discount, _)| discount.into()),
            min_subtotal: terms.map(|(_, min_subtotal)| min_subtotal),
            coupon_id: issued.coupon_id.0,
            template_id: issued.template_id,
            user_id: issued.user_id,
            serial: issued.serial,
            status: CouponStatus::Available,
            issued_at: rfc3339(issued.issued_at),
            expires_at: rfc3339(issued.expires_at),
        }
    }
}

/// A coupon that a user holds.
#[derive(Debug, Serialize, ToSchema)]
#[schema(title = "Coupon", as = Coupon)]
pub struct CouponView {
    coupon_id: Uuid,
    #[schema(value_type = ShopId, example = "welcome")]
    template_id: String,
    /// The template's name.
    #[schema(example = "Welcome: 1,000 won off")]
    name: String,
    /// 1 … `max_issued`, unique within the template.
    #[schema(minimum = 1, example = 17)]
    serial: u64,
    /// As it was when the coupon was issued.
    discount: DiscountView,
    /// The minimum subtotal of an order that uses it; 0: none.
    #[schema(minimum = 0, example = 0)]
    min_subtotal: u64,
    status: CouponStatus,
    #[schema(format = DateTime, example = "2026-11-22T09:00:00.000Z")]
    issued_at: String,
    #[schema(format = DateTime, example = "2027-11-22T09:00:00.000Z")]
    expires_at: String,
    /// The order that used it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    order_id: Option<Uuid>,
}

impl CouponView {
    fn new(held: HeldCoupon, now: TimestampMs) -> Self {
        Self {
            coupon_id: held.coupon_id,
            template_id: held.template.template_id.into(),
            name: held.template.name,
            serial: held.serial,
            discount: held.template.discount.into(),
            min_subtotal: held.template.min_subtotal,
            status: CouponStatus::at(held.order_id.is_some(), held.expires_at, now),
            issued_at: rfc3339(held.issued_at),
            expires_at: rfc3339(held.expires_at),
            order_id: held.order_id,
        }
    }
}

/// Query of a list of coupons: a page, and a status.
#[derive(Debug)]
pub struct Filter<A> {
    pub page: Page<A>,
    pub status: Option<CouponStatus>,
}

/// `status`, for the OpenAPI description.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "read by the derive, for the OpenAPI description")]
pub struct StatusParam {
    /// Only coupons that are in this state now.
    status: Option<CouponStatus>,
}

impl<S: Send + Sync, A: Identifier> FromRequestParts<S> for Filter<A> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        let mut query = Query::of(&parts.uri)?;
        let page = query.page()?;
        let status = query.take("status").map(|text| parse_status(&text)).transpose()?;
        query.finish()?;
        Ok(Self { page, status })
    }
}

fn parse_status(text: &str) -> Result<CouponStatus, Problem> {
    match text {
        "available" => Ok(CouponStatus::Available),
        "used" => Ok(CouponStatus::Used),
        "expired" => Ok(CouponStatus::Expired),
        _ => Err(Problem::invalid("status", "must be available, used or expired")),
    }
}

/// Issue a coupon, first come, first served
#[utoipa::path(post, path = "/v1/coupon-templates/{id}/coupons", tag = "coupons",
    params(("id" = ShopId, Path), IdempotencyKeyParam),
    request_body = IssueBody, security(("token" = ["shop", "service", "admin"])),
    responses((status = 201, description = "Issued", body = IssuedView),
              (status = 202, description = "Decided, not yet in PostgreSQL", body = AcceptedCoupon)))]
pub async fn issue_coupon(
    State(api): State<Arc<Api>>,
    caller: Caller,
    PathId(template_id): PathId<TemplateId>,
    key: Key,
    Json(body): Json<IssueBody>,
) -> Result<Response, Problem> {
    caller.check_acts_for(&body.user_id)?;
    let key = key.of(&body.user_id);
    let request = IssueCoupon { template_id: template_id.clone(), user_id: body.user_id };
    let _permit = api.concurrency.decide.permit().await?;
    let decision = api.gate.issue_coupon(request, key, api.deadline()).await;
    if let Ok(Err(IssueRefusal::AlreadyIssued(_))) = &decision {
        api.confirm_refusal().await?;
    }
    let terms = match &decision {
        Ok(Ok(issued)) => match api.gate.known_terms(issued) {
            None => Box::pin(api.gate.issued_terms(issued)).await.ok().flatten(),
            known => known,
        },
        _ => None,
    };
    let decided = api.decided(decision, |refusal| refusals::issue(refusal, &template_id)).await?;
    let ids = |it: &CouponIssued| AcceptedCoupon::new(it.coupon_id.0);
    Ok(decided.answer(StatusCode::CREATED, ids, |issued| IssuedView::new(issued, terms)))
}

/// The coupons that a user holds, newest first
#[utoipa::path(get, path = "/v1/users/{user}/coupons", tag = "coupons",
    params(("user" = ShopId, Path), PageParams, StatusParam), security(("token" = ["shop", "service", "admin"])),
    responses((status = 200, body = List<CouponView>)))]
pub async fn list_coupons(
    State(api): State<Arc<Api>>,
    caller: Caller,
    PathId(user_id): PathId<UserId>,
    filter: Filter<Uuid>,
) -> Result<JsonAnswer<List<CouponView>>, Problem> {
    caller.check_acts_for(&user_id)?;
    let _permit = api.concurrency.read.permit().await?;
    let Filter { page, status } = filter;
    let Some(read) = api.gate.held_coupons(&user_id, status, page.limit + 1, page.after).await?
    else {
        return Err(Problem::invalid("after", "must be one of the user's coupons"));
    };
    let coupons = read.value.into_iter().map(|held| CouponView::new(held, read.now)).collect();
    Ok(JsonAnswer(List::page(coupons, page.limit, |coupon| coupon.coupon_id.to_string())))
}
