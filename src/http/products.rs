//! Products: the catalogue for everyone, and its changes by staff.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::Api;
use super::answer::{AcceptedProduct, List};
use super::auth::Staff;
use super::etag::{IfNoneMatch, Tagged};
use super::extract::{IdempotencyKeyParam, Json, Key, NoQuery, PageParams, PathId};
use super::fields::{Attributes, EnumStr, IntRange, Rfc3339, ShopId, Text, bound};
use super::problem::Problem;
use super::refusals;
use super::selection::{IdsParam, Selection};
use crate::domain::fact::{ProductPut, StockAdjusted};
use crate::domain::limits::{MAX_PAGE, MAX_PER_USER_LIMIT, MAX_PRICE, MAX_STOCK, PRICE_STEP};
use crate::domain::{Product, ProductId, ProductState, ProductStatus, SaleRules, rfc3339};
use crate::gate::{AdjustStock, ProductRefusal, PutProduct};

/// A product. `price` in won, `stock` in pieces.
#[derive(Debug, Serialize, ToSchema)]
#[schema(title = "Product", as = Product)]
pub struct ProductView {
    #[schema(value_type = ShopId, example = "tumbler")]
    pub id: String,
    #[schema(example = "Tumbler, limited edition")]
    pub name: String,
    #[schema(minimum = 100, multiple_of = 100, example = 35_000)]
    pub price: u64,
    #[schema(minimum = 0, example = 500)]
    pub stock: u64,
    pub status: ProductStatus,
    /// Whether it is sold now: the first that applies.
    pub state: ProductState,
    /// Sold from then on.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(format = DateTime, nullable = false, example = "2026-11-22T09:00:00.000Z")]
    pub sale_from: Option<String>,
    /// Sold until then.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(format = DateTime, nullable = false, example = "2026-11-23T09:00:00.000Z")]
    pub sale_until: Option<String>,
    /// The most pieces that one user may buy.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, minimum = 1, maximum = 1_000, example = 2)]
    pub per_user_limit: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub attributes: Option<BTreeMap<String, String>>,
}

impl From<Product> for ProductView {
    fn from(product: Product) -> Self {
        let state = product.state();
        let rules = product.rules;
        Self {
            id: product.product_id.into(),
            name: product.name,
            price: product.price,
            stock: product.stock,
            status: product.status,
            state,
            sale_from: rules.sale_from.map(rfc3339),
            sale_until: rules.sale_until.map(rfc3339),
            per_user_limit: rules.per_user_limit,
            // The gate holds what PUT has checked.
            attributes: rules.attributes.and_then(|text| serde_json::from_str(&text).ok()),
        }
    }
}

/// The product right after the PUT.
fn put_view(put: ProductPut) -> Result<ProductView, Problem> {
    let rules = put.rules.map_or_else(SaleRules::default, |rules| SaleRules {
        sale_from: rules.sale_from,
        sale_until: rules.sale_until,
        per_user_limit: rules.per_user_limit,
        attributes: rules.attributes,
    });
    Ok(ProductView::from(Product {
        product_id: ProductId::parse(put.product_id).map_err(|_| Problem::internal())?,
        name: put.name,
        price: put.price,
        status: put.status,
        stock: put.stock_after,
        phase: rules.phase(put.put_at),
        rules,
        limit_number: None,
    }))
}

/// What staff decide about a product.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(title = "PutProduct", as = PutProduct)]
#[schema(example = json!({"name": "Tumbler, limited edition", "price": 35_000, "status": "on_sale", "stock": 500}))]
pub struct PutProductBody {
    #[schema(value_type = String, min_length = 1, max_length = 200)]
    name: Text,
    /// In won.
    #[schema(value_type = u64, minimum = 100, maximum = 1_000_000_000, multiple_of = 100)]
    price: IntRange<{ bound(PRICE_STEP) }, { bound(MAX_PRICE) }>,
    #[schema(value_type = ProductStatus)]
    status: EnumStr<ProductStatus>,
    /// Of a new product (default 0); later it changes by stock adjustments. A repeat may state it
    /// again as it was.
    #[schema(inline)]
    stock: Option<IntRange<0, { bound(MAX_STOCK) }>>,
    /// Start of the sale; absent: no start.
    #[schema(value_type = Option<String>, format = DateTime)]
    sale_from: Option<Rfc3339>,
    /// End of the sale, after its start; absent: no end.
    #[schema(value_type = Option<String>, format = DateTime)]
    sale_until: Option<Rfc3339>,
    /// Pieces that one user may buy, in pending and paid orders, counted since a limit was first set.
    #[schema(inline)]
    per_user_limit: Option<IntRange<1, { bound(MAX_PER_USER_LIMIT) }>>,
    /// An object of strings, at most 4 KiB of JSON, shown with the product.
    #[schema(value_type = Option<BTreeMap<String, String>>, example = json!({"image_url": "https://shop.example/tumbler.png"}))]
    attributes: Option<Attributes>,
}

/// How much to add to a stock, or to take out of it.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(title = "AdjustStock", as = AdjustStock, example = json!({"delta": -3, "reason": "broken in transit"}))]
pub struct AdjustStockBody {
    #[schema(inline)]
    delta: IntRange<{ -bound(MAX_STOCK) }, { bound(MAX_STOCK) }>,
    #[schema(value_type = Option<String>, min_length = 1, max_length = 200)]
    reason: Option<Text>,
}

/// An adjusted stock.
#[derive(Debug, Serialize, ToSchema)]
#[schema(title = "StockAdjustment", as = StockAdjustment)]
pub struct StockAdjustmentView {
    #[schema(value_type = ShopId, example = "tumbler")]
    product_id: String,
    #[schema(example = -3)]
    delta: i64,
    /// The stock after it.
    #[schema(minimum = 0, example = 497)]
    stock: u64,
}

impl From<StockAdjusted> for StockAdjustmentView {
    fn from(adjusted: StockAdjusted) -> Self {
        Self { product_id: adjusted.product_id, delta: adjusted.delta, stock: adjusted.stock_after }
    }
}

/// Products in the order of their ids, or those with certain ids
#[utoipa::path(get, path = "/v1/products", tag = "products", params(PageParams, IdsParam),
    responses((status = 200, body = List<ProductView>)))]
pub async fn list_products(
    State(api): State<Arc<Api>>,
    wanted: Selection<ProductId>,
    has: IfNoneMatch,
) -> Result<Response, Problem> {
    let _permit = api.concurrency.read.permit().await?;
    let (told, limit) = match &wanted {
        Selection::Page(page) => {
            (api.gate.packed_products(page.after.as_ref(), page.limit + 1).await?, page.limit)
        }
        Selection::Ids(ids) => (api.gate.packed_products_by_id(ids).await?, MAX_PAGE),
    };
    let page = api.product_pages.get_or(told, limit, |told| {
        let list = List::page(told.unpack()?, limit, |product| product.product_id.to_string());
        Tagged::json(&list.map(ProductView::from))
    })?;
    Ok(api.catalogue(page, &has))
}

/// One product
#[utoipa::path(get, path = "/v1/products/{id}", tag = "products", params(("id" = ShopId, Path)),
    responses((status = 200, body = ProductView)))]
pub async fn get_product(
    State(api): State<Arc<Api>>,
    PathId(id): PathId<ProductId>,
    _: NoQuery,
    has: IfNoneMatch,
) -> Result<Response, Problem> {
    let _permit = api.concurrency.read.permit().await?;
    let found = api.gate.products(std::slice::from_ref(&id)).await?.pop();
    let product = found.ok_or_else(|| refusals::no_product(id.as_str()))?;
    Ok(api.catalogue(Tagged::json(&ProductView::from(product))?, &has))
}

/// Create or change a product
#[utoipa::path(put, path = "/v1/products/{id}", tag = "products", params(("id" = ShopId, Path)),
    request_body = PutProductBody, security(("token" = ["admin"])),
    responses((status = 201, description = "Created", body = ProductView),
              (status = 200, description = "Changed", body = ProductView),
              (status = 202, description = "Decided, not yet in PostgreSQL", body = AcceptedProduct)))]
pub async fn put_product(
    State(api): State<Arc<Api>>,
    _: Staff,
    PathId(product_id): PathId<ProductId>,
    Json(body): Json<PutProductBody>,
) -> Result<Response, Problem> {
    let request = body.request(product_id)?;
    let _permit = api.concurrency.staff.permit().await?;
    let decision = match api.gate.put_product(request.clone(), api.deadline()).await {
        Ok(Err(ProductRefusal::StockGiven)) if repeats_stock(&api, &request).await? => {
            api.gate.put_product(PutProduct { stock: None, ..request }, api.deadline()).await
        }
        decision => decision,
    };
    let decided = api.decided(decision, |refusal| refusals::product(&refusal)).await?;
    let status = if decided.fact.created { StatusCode::CREATED } else { StatusCode::OK };
    let ids = |put: &ProductPut| AcceptedProduct::new(put.product_id.clone());
    let view = put_view(decided.fact.clone())?;
    Ok(decided.answer(status, ids, |_| view))
}

/// Whether the given stock is the one that the product was created with: then this is a repeat of
/// the creating request. The gate knows the current stock only.
async fn repeats_stock(api: &Api, request: &PutProduct) -> Result<bool, Problem> {
    let read = async { Ok(api.truth.initial_stock(&request.product_id).await?) };
    let (initial, _) = api.read_truth(read).await?;
    Ok(initial == request.stock)
}

/// `PUT /v1/products/popular`: a product with this id could never be read.
pub async fn refuse_popular(_: Staff) -> Problem {
    Problem::invalid("id", "`popular` is the name of a list, and no product can have it")
}

impl PutProductBody {
    fn request(self, product_id: ProductId) -> Result<PutProduct, Problem> {
        if !self.price.get().is_multiple_of(PRICE_STEP) {
            return Err(Problem::invalid(
                "price",
                format_args!("must be a multiple of {PRICE_STEP}"),
            ));
        }
        let (sale_from, sale_until) =
            (self.sale_from.map(|at| at.0), self.sale_until.map(|at| at.0));
        if let (Some(from), Some(until)) = (sale_from, sale_until)
            && from >= until
        {
            return Err(Problem::invalid("sale_until", "must be after sale_from"));
        }
        Ok(PutProduct {
            product_id,
            name: self.name.0,
            price: self.price.get(),
            status: self.status.0,
            stock: self.stock.map(IntRange::get),
            rules: SaleRules {
                sale_from,
                sale_until,
                per_user_limit: self.per_user_limit.map(IntRange::get),
                attributes: self.attributes.map(|attributes| attributes.json()),
            },
        })
    }
}

/// Add to a product's stock, or take out of it
#[utoipa::path(post, path = "/v1/products/{id}/stock-adjustments", tag = "products",
    params(("id" = ShopId, Path), IdempotencyKeyParam),
    request_body = AdjustStockBody, security(("token" = ["admin"])),
    responses((status = 201, description = "Adjusted", body = StockAdjustmentView),
              (status = 202, description = "Decided, not yet in PostgreSQL", body = AcceptedProduct)))]
pub async fn adjust_stock(
    State(api): State<Arc<Api>>,
    Staff(caller): Staff,
    PathId(product_id): PathId<ProductId>,
    key: Key,
    Json(body): Json<AdjustStockBody>,
) -> Result<Response, Problem> {
    let delta = body.delta.signed();
    let request = AdjustStock {
        product_id: product_id.clone(),
        delta,
        reason: body.reason.map(|text| text.0),
    };
    let _permit = api.concurrency.staff.permit().await?;
    let decision = api.gate.adjust_stock(request, key.of(&caller.sub), api.deadline()).await;
    let decided =
        api.decided(decision, |refusal| refusals::stock(&refusal, &product_id, delta)).await?;
    let ids = |it: &StockAdjusted| AcceptedProduct::new(it.product_id.clone());
    Ok(decided.answer(StatusCode::CREATED, ids, StockAdjustmentView::from))
}
