//! Who holds the coupons of a template, for staff.

use std::sync::Arc;

use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

use super::Api;
use super::answer::{JsonAnswer, List};
use super::auth::Staff;
use super::coupons::{Filter, StatusParam};
use super::extract::{EntryId, PageParams, PathId};
use super::fields::ShopId;
use super::problem::Problem;
use super::refusals;
use crate::domain::{CouponStatus, TemplateId, TimestampMs, rfc3339};
use crate::truth::Holder;

/// A coupon of a template, and who holds it.
#[derive(Debug, Serialize, ToSchema)]
#[schema(title = "CouponHolder", as = CouponHolder)]
pub struct HolderView {
    coupon_id: Uuid,
    #[schema(value_type = ShopId, example = "user-1")]
    user_id: String,
    /// 1 … `max_issued`, unique within the template.
    #[schema(minimum = 1, example = 17)]
    serial: u64,
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

impl HolderView {
    fn new(holder: Holder, now: TimestampMs) -> Self {
        Self {
            coupon_id: holder.coupon_id,
            user_id: holder.user_id,
            serial: holder.serial,
            status: CouponStatus::at(holder.order_id.is_some(), holder.expires_at, now),
            issued_at: rfc3339(holder.issued_at),
            expires_at: rfc3339(holder.expires_at),
            order_id: holder.order_id,
        }
    }
}

/// Who holds the coupons of a template, by serial
///
/// With `status`, a page of a large template may be short, or empty, and still have a `next`.
#[utoipa::path(get, path = "/v1/coupon-templates/{id}/coupons", tag = "coupons",
    params(("id" = ShopId, Path), PageParams, StatusParam), security(("token" = ["admin"])),
    responses((status = 200, body = List<HolderView>)))]
pub async fn list_holders(
    State(api): State<Arc<Api>>,
    _: Staff,
    PathId(template_id): PathId<TemplateId>,
    filter: Filter<EntryId>,
) -> Result<JsonAnswer<List<HolderView>>, Problem> {
    let _permit = api.concurrency.truth.permit().await?;
    let Filter { page, status } = filter;
    let template = api.gate.template(&template_id).await?;
    if template.value.is_none() {
        return Err(refusals::no_template(&template_id));
    }
    let after = page.after.map(|serial| serial.0);
    let read = async {
        Ok(api.truth.holders(&template_id, status, template.now, after, page.limit + 1).await?)
    };
    let (found, _) = api.read_truth(read).await?;
    let list = List::examined(found, page.limit, |holder| holder.serial.to_string());
    Ok(JsonAnswer(list.map(|holder| HolderView::new(holder, template.now))))
}
