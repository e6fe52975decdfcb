//! `rushgate seed`: fills a demo shop, through the gate like any other change. Repeatable: what
//! exists stays as it is.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt;
use uuid::{Uuid, uuid};

use crate::config::bounds::{DEMO_USERS, RETRY_PAUSE};
use crate::domain::ids::InvalidId;
use crate::domain::{Discount, Line, ProductId, ProductStatus, SaleRules, TemplateId, UserId};
use crate::gate::{
    ChargeWallet, Gate, GateError, IdempotencyKey, PlaceOrder, PutProduct, PutTemplate,
};

/// The demo's first order, by its first user: an example that can be read and cancelled.
const FIRST_ORDER: Uuid = uuid!("01985d2c-5d00-7000-8000-000000000001");
const FIRST_ORDER_BY: &str = "user-1";
const FIRST_ORDER_KEY: &str = "rushgate seed";
const BALANCE: u64 = 100_000;
const TEMPLATES_OPEN_FOR: Duration = Duration::from_secs(365 * 24 * 60 * 60);
const STEP_TIMEOUT: Duration = Duration::from_secs(10);
/// Time for the gate to open: it may still be built, or be taken over by another Redis (or by the
/// same one after a restart).
const OPENS_WITHIN: Duration = Duration::from_secs(30);
/// Users charged concurrently.
const CONCURRENT: usize = 64;

/// The shop could not be filled.
#[derive(Debug, thiserror::Error)]
pub enum SeedError {
    #[error("{0}; is an instance of `rushgate serve` with the role reconciler running?")]
    Gate(#[from] GateError),
    #[error("the gate refused the demo's {what}: {refusal}")]
    Refused { what: String, refusal: String },
    #[error(transparent)]
    Id(#[from] InvalidId),
}

/// id, name, price in won, stock
const PRODUCTS: [(&str, &str, u64, u64); 6] = [
    ("americano", "Americano", 4_500, 100_000),
    ("latte", "Caffè latte", 5_000, 100_000),
    ("cheesecake", "Cheesecake", 7_800, 5_000),
    ("tumbler", "Tumbler, limited edition", 35_000, 500),
    ("sneakers", "Sneakers, numbered", 89_000, 100),
    ("concert-ticket", "Concert ticket", 55_000, 50),
];

/// id, name, discount, minimum subtotal, limit
fn templates() -> [(&'static str, &'static str, Discount, u64, u64); 3] {
    [
        ("welcome", "Welcome: 1,000 won off", Discount::Amount { value: 1_000 }, 0, 10_000),
        (
            "rush-100",
            "First 100: half price",
            Discount::Percent { value: 50, max: Some(20_000) },
            0,
            100,
        ),
        (
            "big-basket",
            "10% off from 30,000 won",
            Discount::Percent { value: 10, max: None },
            30_000,
            1_000,
        ),
    ]
}

/// Fills the shop; returns a summary of its contents.
pub async fn run(gate: &Arc<Gate>) -> Result<String, SeedError> {
    let give_up = Instant::now() + OPENS_WITHIN;
    for (id, name, price, stock) in PRODUCTS {
        // A gate that is not open has decided nothing, so a retry is safe.
        while let Err(e) = put_product(gate, id, name, price, stock).await {
            match e {
                SeedError::Gate(GateError::Unavailable(_)) if Instant::now() < give_up => {
                    tokio::time::sleep(RETRY_PAUSE).await;
                }
                e => return Err(e),
            }
        }
    }
    for (id, name, discount, min_subtotal, max_issued) in templates() {
        put_template(gate, id, name, discount, min_subtotal, max_issued).await?;
    }
    place_first_order(gate).await?;
    let mut charges = futures::stream::iter(1..=DEMO_USERS)
        .map(|n| charge(gate, format!("user-{n}"), BALANCE))
        .buffer_unordered(CONCURRENT);
    while let Some(charged) = charges.next().await {
        charged?;
    }
    Ok(format!(
        "{} products, {} coupon templates, {DEMO_USERS} users with a balance",
        PRODUCTS.len(),
        templates().len()
    ))
}

fn deadline() -> Instant {
    Instant::now() + STEP_TIMEOUT
}

fn refused(what: impl Into<String>) -> impl FnOnce(String) -> SeedError {
    let what = what.into();
    move |refusal| SeedError::Refused { what, refusal }
}

async fn put_product(
    gate: &Gate,
    id: &str,
    name: &str,
    price: u64,
    stock: u64,
) -> Result<(), SeedError> {
    let product_id = ProductId::parse(id)?;
    if !gate.products(std::slice::from_ref(&product_id)).await?.is_empty() {
        return Ok(());
    }
    let (name, status) = (name.to_owned(), ProductStatus::OnSale);
    let request = PutProduct {
        product_id,
        name,
        price,
        status,
        stock: Some(stock),
        rules: SaleRules::default(),
    };
    gate.put_product(request, deadline()).await?.map_err(|r| refused(id)(format!("{r:?}")))?;
    Ok(())
}

async fn put_template(
    gate: &Gate,
    id: &str,
    name: &str,
    discount: Discount,
    min_subtotal: u64,
    max_issued: u64,
) -> Result<(), SeedError> {
    let template_id = TemplateId::parse(id)?;
    let found = gate.template(&template_id).await?;
    if found.value.is_some() {
        return Ok(());
    }
    let open_for_ms = i64::try_from(TEMPLATES_OPEN_FOR.as_millis()).unwrap_or(i64::MAX);
    let request = PutTemplate {
        template_id,
        name: name.to_owned(),
        discount,
        min_subtotal,
        max_issued,
        issue_from: found.now,
        issue_until: found.now.saturating_add(open_for_ms),
    };
    gate.put_template(request, deadline()).await?.map_err(|r| refused(id)(format!("{r:?}")))?;
    Ok(())
}

/// Charges a user who has no wallet yet. Returns whether that was so.
async fn charge(gate: &Gate, id: String, amount: u64) -> Result<bool, SeedError> {
    let user_id = UserId::parse(id.as_str())?;
    if gate.balance(&user_id).await?.is_some() {
        return Ok(false);
    }
    let request = ChargeWallet { user_id, amount };
    gate.charge_wallet(request, None, deadline())
        .await?
        .map_err(|r| refused(id)(format!("{r:?}")))?;
    Ok(true)
}

/// The order whose id the API's description has as an example. Its user gets the price on top, so
/// that every balance is the same.
///
/// Only a user without a wallet can have no order with this id. The key makes two seeds that run at
/// the same time place it once.
async fn place_first_order(gate: &Gate) -> Result<(), SeedError> {
    let (product, _, price, _) = PRODUCTS[0];
    if !charge(gate, FIRST_ORDER_BY.to_owned(), BALANCE + price).await? {
        return Ok(());
    }
    let user = UserId::parse(FIRST_ORDER_BY)?;
    let key = IdempotencyKey { user: user.clone(), key: FIRST_ORDER_KEY.to_owned() };
    let lines = vec![Line { product_id: ProductId::parse(product)?, quantity: 1 }];
    let request = PlaceOrder {
        user_id: user,
        lines,
        coupon_id: None,
        expected_total: None,
        reference: None,
        outside: None,
    };
    gate.place_order_as(Some(FIRST_ORDER), request, Some(key), deadline())
        .await?
        .map_err(|r| refused("first order")(format!("{r:?}")))?;
    Ok(())
}
