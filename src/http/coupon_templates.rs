//! Coupon templates: reading them, and their changes by staff.

use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::Api;
use super::answer::{AcceptedTemplate, List};
use super::auth::Staff;
use super::etag::{IfNoneMatch, Tagged};
use super::extract::{Json, NoQuery, PageParams, PathId};
use super::fields::{EnumStr, IntRange, Object, Rfc3339, ShopId, Text, bound};
use super::problem::Problem;
use super::refusals;
use super::selection::{IdsParam, Selection};
use crate::domain::fact::TemplatePut;
use crate::domain::limits::{MAX_DISCOUNT_AMOUNT, MAX_ORDER_AMOUNT, MAX_PAGE, MAX_TEMPLATE_LIMIT};
use crate::domain::{CouponTemplate, Discount, TemplateId, TemplateState, TimestampMs, rfc3339};
use crate::gate::PutTemplate;

/// What a coupon takes off a subtotal: an amount in won, or a percentage (rounded down) with an
/// optional maximum.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(title = "Discount", as = Discount, example = json!({"type": "percent", "value": 10, "max": 5_000}))]
pub struct DiscountView {
    r#type: DiscountType,
    /// Won, or 1 to 100 percent.
    #[schema(minimum = 1)]
    value: u64,
    /// The most that a percentage takes off, in won.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, nullable = false)]
    max: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum DiscountType {
    Amount,
    Percent,
}

impl From<Discount> for DiscountView {
    fn from(discount: Discount) -> Self {
        let r#type = match discount {
            Discount::Amount { .. } => DiscountType::Amount,
            Discount::Percent { .. } => DiscountType::Percent,
        };
        Self { r#type, value: discount.value(), max: discount.max() }
    }
}

/// A coupon template.
#[derive(Debug, Serialize, ToSchema)]
#[schema(title = "CouponTemplate", as = CouponTemplate)]
pub struct TemplateView {
    #[schema(value_type = ShopId, example = "welcome")]
    id: String,
    #[schema(example = "Welcome: 1,000 won off")]
    name: String,
    discount: DiscountView,
    /// The limit: how many coupons may ever be issued.
    #[schema(example = 10_000)]
    max_issued: u64,
    /// Coupons are issued from this moment on …
    #[schema(format = DateTime, example = "2026-11-22T09:00:00.000Z")]
    issue_from: String,
    /// … and before this one.
    #[schema(format = DateTime, example = "2026-11-29T09:00:00.000Z")]
    issue_until: String,
    /// The least subtotal that the coupon can be used on, in won; 0 for none.
    #[schema(example = 0)]
    min_subtotal: u64,
    #[schema(example = 120)]
    issued: u64,
    #[schema(example = 9_880)]
    remaining: u64,
    state: TemplateState,
}

impl TemplateView {
    fn new(template: CouponTemplate, now: TimestampMs) -> Self {
        Self {
            remaining: template.remaining(),
            state: template.state(now),
            id: template.template_id.into(),
            name: template.name,
            discount: template.discount.into(),
            max_issued: template.max_issued,
            issue_from: rfc3339(template.issue_from),
            issue_until: rfc3339(template.issue_until),
            min_subtotal: template.min_subtotal,
            issued: template.issued,
        }
    }
}

/// What staff decide about a template.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(title = "PutCouponTemplate", as = PutCouponTemplate)]
#[schema(example = json!({"name": "Welcome: 1,000 won off", "discount": {"type": "amount", "value": 1_000},
    "max_issued": 10_000, "issue_from": "2026-11-22T09:00:00Z", "issue_until": "2027-11-22T09:00:00Z", "min_subtotal": 0}))]
pub struct PutTemplateBody {
    #[schema(value_type = String, min_length = 1, max_length = 200)]
    name: Text,
    #[schema(value_type = DiscountBody)]
    discount: Object<DiscountBody>,
    /// May be raised, or lowered to no less than what is issued.
    #[schema(value_type = u64, minimum = 0, maximum = 1_000_000_000)]
    max_issued: IntRange<0, { bound(MAX_TEMPLATE_LIMIT) }>,
    /// RFC 3339, in any offset.
    #[schema(value_type = String, format = DateTime)]
    issue_from: Rfc3339,
    /// After `issue_from`.
    #[schema(value_type = String, format = DateTime)]
    issue_until: Rfc3339,
    #[schema(inline)]
    min_subtotal: Option<IntRange<0, { bound(MAX_ORDER_AMOUNT) }>>,
}

/// A discount as staff write it.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(title = "PutDiscount", as = PutDiscount, example = json!({"type": "percent", "value": 10, "max": 5_000}))]
struct DiscountBody {
    #[schema(value_type = DiscountType)]
    r#type: EnumStr<DiscountType>,
    /// Won, or 1 to 100 percent.
    #[schema(value_type = u64, minimum = 1, maximum = 1_000_000_000)]
    value: IntRange<1, { bound(MAX_DISCOUNT_AMOUNT) }>,
    /// The most that a percentage takes off, in won; for percentages only.
    #[schema(inline)]
    max: Option<IntRange<1, { bound(MAX_DISCOUNT_AMOUNT) }>>,
}

impl DiscountBody {
    fn discount(&self) -> Result<Discount, Problem> {
        let (value, max) = (self.value.get(), self.max.map(IntRange::get));
        match self.r#type.0 {
            DiscountType::Amount if max.is_some() => Err(Problem::invalid(
                "discount.max",
                "only a percentage can have a maximum; leave it out",
            )),
            DiscountType::Amount => Ok(Discount::Amount { value }),
            DiscountType::Percent if value > 100 => {
                Err(Problem::invalid("discount.value", "must be 1 to 100 percent"))
            }
            DiscountType::Percent => Ok(Discount::Percent { value, max }),
        }
    }
}

impl PutTemplateBody {
    fn request(self, template_id: TemplateId) -> Result<PutTemplate, Problem> {
        if self.issue_from.0 >= self.issue_until.0 {
            return Err(Problem::invalid("issue_until", "must be after issue_from"));
        }
        Ok(PutTemplate {
            template_id,
            discount: self.discount.0.discount()?,
            name: self.name.0,
            min_subtotal: self.min_subtotal.map_or(0, IntRange::get),
            max_issued: self.max_issued.get(),
            issue_from: self.issue_from.0,
            issue_until: self.issue_until.0,
        })
    }
}

fn template_after(put: PutTemplate, issued: u64) -> CouponTemplate {
    CouponTemplate {
        template_id: put.template_id,
        name: put.name,
        discount: put.discount,
        min_subtotal: put.min_subtotal,
        max_issued: put.max_issued,
        issued,
        issue_from: put.issue_from,
        issue_until: put.issue_until,
    }
}

/// Coupon templates in the order of their ids, or those with certain ids
#[utoipa::path(get, path = "/v1/coupon-templates", tag = "coupons", params(PageParams, IdsParam),
    responses((status = 200, body = List<TemplateView>)))]
pub async fn list_templates(
    State(api): State<Arc<Api>>,
    wanted: Selection<TemplateId>,
    has: IfNoneMatch,
) -> Result<Response, Problem> {
    let _permit = api.concurrency.read.permit().await?;
    let (read, limit) = match &wanted {
        Selection::Page(page) => {
            (api.gate.list_templates(page.after.as_ref(), page.limit + 1).await?, page.limit)
        }
        Selection::Ids(ids) => (api.gate.templates(ids).await?, MAX_PAGE),
    };
    let list = List::page(read.value, limit, |template| template.template_id.to_string());
    let page = Tagged::json(&list.map(|template| TemplateView::new(template, read.now)))?;
    Ok(api.catalogue(page, &has))
}

/// One coupon template
#[utoipa::path(get, path = "/v1/coupon-templates/{id}", tag = "coupons", params(("id" = ShopId, Path)),
    responses((status = 200, body = TemplateView)))]
pub async fn get_template(
    State(api): State<Arc<Api>>,
    PathId(id): PathId<TemplateId>,
    _: NoQuery,
    has: IfNoneMatch,
) -> Result<Response, Problem> {
    let _permit = api.concurrency.read.permit().await?;
    let read = api.gate.template(&id).await?;
    let template = read.value.ok_or_else(|| refusals::no_template(&id))?;
    Ok(api.catalogue(Tagged::json(&TemplateView::new(template, read.now))?, &has))
}

/// Create or change a coupon template
#[utoipa::path(put, path = "/v1/coupon-templates/{id}", tag = "coupons", params(("id" = ShopId, Path)),
    request_body = PutTemplateBody, security(("token" = ["admin"])),
    responses((status = 201, description = "Created", body = TemplateView),
              (status = 200, description = "Changed", body = TemplateView),
              (status = 202, description = "Decided, not yet in PostgreSQL", body = AcceptedTemplate)))]
pub async fn put_template(
    State(api): State<Arc<Api>>,
    _: Staff,
    PathId(id): PathId<TemplateId>,
    Json(body): Json<PutTemplateBody>,
) -> Result<Response, Problem> {
    let request = body.request(id.clone())?;
    let _permit = api.concurrency.staff.permit().await?;
    let decision = api.gate.put_template(request.clone(), api.deadline()).await;
    let decided = api.decided(decision, |refusal| refusals::template(&refusal, &id)).await?;
    let status = if decided.fact.created { StatusCode::CREATED } else { StatusCode::OK };
    let ids = |put: &TemplatePut| AcceptedTemplate::new(put.template_id.clone());
    Ok(decided.answer(status, ids, |put| {
        TemplateView::new(template_after(request, put.issued), put.put_at)
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::extract::parse_json;
    use serde_json::{Value, json};

    fn body() -> Value {
        json!({"name": "n", "discount": {"type": "amount", "value": 1_000}, "max_issued": 5,
            "issue_from": "2026-01-01T00:00:00+09:00", "issue_until": "2026-01-02T00:00:00Z"})
    }

    fn request(body: &Value) -> Result<PutTemplate, String> {
        let parsed = parse_json::<PutTemplateBody>(body.to_string().as_bytes());
        parsed.and_then(|body| body.request(TemplateId::parse("t").unwrap())).map_err(|problem| {
            serde_json::to_value(problem).unwrap()["field"].as_str().unwrap().to_owned()
        })
    }

    fn changed(path: &str, value: Value) -> Result<PutTemplate, String> {
        let mut body = body();
        *body.pointer_mut(path).unwrap() = value;
        request(&body)
    }

    #[test]
    fn a_template_is_read_with_its_times_in_utc() {
        let put = request(&body()).unwrap();
        assert_eq!(put.discount, Discount::Amount { value: 1_000 });
        assert_eq!(rfc3339(put.issue_from), "2025-12-31T15:00:00.000Z");
        assert_eq!(put.min_subtotal, 0);
    }

    #[test]
    fn a_discount_is_within_its_bounds() {
        let percent =
            changed("/discount", json!({"type": "percent", "value": 100, "max": 1})).unwrap();
        assert_eq!(percent.discount, Discount::Percent { value: 100, max: Some(1) });
        for (discount, field) in [
            (json!({"type": "percent", "value": 101}), "discount.value"),
            (json!({"type": "percent", "value": 0}), "discount.value"),
            (json!({"type": "amount", "value": 1, "max": 5}), "discount.max"),
            (json!({"type": "gift", "value": 1}), "discount.type"),
            (json!({"type": "amount"}), "discount.value"),
            (json!({"type": "amount", "value": 1, "extra": 1}), "discount.extra"),
            (json!(["amount", 1, null]), "discount"),
        ] {
            assert_eq!(changed("/discount", discount.clone()).unwrap_err(), field, "{discount}");
        }
    }

    #[test]
    fn a_window_has_a_length_and_times_are_rfc_3339() {
        assert_eq!(
            changed("/issue_until", json!("2025-12-31T15:00:00Z")).unwrap_err(),
            "issue_until"
        );
        for bad in [
            "",
            "tomorrow",
            "2026-01-01",
            "2026-13-01T00:00:00Z",
            "2026-01-01T00:00:00",
            "1969-12-31T00:00:00Z",
        ] {
            assert_eq!(changed("/issue_from", json!(bad)).unwrap_err(), "issue_from", "{bad}");
        }
        assert_eq!(changed("/issue_from", json!(5)).unwrap_err(), "issue_from");
    }
}
