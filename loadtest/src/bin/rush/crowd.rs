//! State shared by all users: what was created in the shop for this run, and what users read in
//! their answers.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use reqwest::Method;
use rushgate_loadtest::Outcome;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::answers::{self, AnswerCounts};
use crate::api::Api;
use crate::card_orders::CardOrders;
use crate::scenario::Scenario;

/// Products that all users of `shop` buy.
pub const PRODUCTS: u64 = 20;
/// Pieces of the product sold by card that a user may buy.
pub const PIECES_PER_USER: u64 = 2;
const PLENTY: u64 = 1_000_000_000;

pub struct Crowd {
    pub api: Api,
    /// Prefix of the names of this run's users, templates and products, so that a host can be used
    /// repeatedly.
    run: String,
    users: AtomicU64,
    /// Coupons of the rush and pieces of the flash sale; 0 if the scenario has none.
    pub coupons: u64,
    pub pieces: u64,
    /// Pieces of the product that is sold by card; 0 if the scenario has none.
    pub card_pieces: u64,
    /// Orders paid by card so far. Decides what their users do next.
    card_orders: AtomicU64,
    /// Payments that come too late, each waiting for its moment.
    pub late_payments: Mutex<JoinSet<()>>,
    /// Whether the catalogue of the scenario `shop` exists.
    pub has_catalogue: bool,
    /// Token of the shop's backend, which charges wallets.
    pub backend_token: String,
    told: Mutex<Told>,
    answers: Mutex<AnswerCounts>,
}

/// What users read in their answers.
#[derive(Clone, Debug, Default)]
pub struct Told {
    /// User and serial of each coupon of the rush.
    pub coupons: Vec<(u64, u64)>,
    /// Pieces of the flash sale that were sold.
    pub pieces: u64,
    pub orders: u64,
    pub cancelled: u64,
    pub card: CardOrders,
    /// Number of balances read, and descriptions of those that differed from what the user
    /// expected.
    pub wallets: u64,
    pub wrong_wallets: Vec<String>,
    /// Changes without a clear answer even after all retries.
    pub unknown: u64,
}

impl Crowd {
    /// Creates what the scenario needs. The rush opens after `arrival`.
    pub async fn gather(
        api: Api,
        scenario: Scenario,
        users: u64,
        arrival: Duration,
    ) -> Outcome<Self> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?;
        let of_each = |weight: u64| users * weight / Scenario::WEIGHTS.iter().sum::<u64>();
        let [rushing, buying, _] = Scenario::WEIGHTS.map(of_each);
        let (coupons, pieces) = match scenario {
            Scenario::CouponRush => (users / 4, 0),
            Scenario::FlashSale => (0, users / 2),
            Scenario::Shop | Scenario::Checkout => (0, 0),
            Scenario::Mixed => (rushing / 4, buying / 2),
        };
        let crowd = Self {
            backend_token: api.token("rush-backend", "service")?,
            api,
            run: format!("rush-{:x}", now.as_millis()),
            users: AtomicU64::new(0),
            coupons: if coupons == 0 && scenario.rushes() { 1 } else { coupons },
            pieces: if pieces == 0 && scenario.sells() { 1 } else { pieces },
            card_pieces: if scenario.checks_out() { (users / 2).max(1) } else { 0 },
            card_orders: AtomicU64::new(0),
            late_payments: Mutex::default(),
            has_catalogue: scenario.browses(),
            told: Mutex::default(),
            answers: Mutex::new(AnswerCounts::new(Instant::now())),
        };
        if scenario.rushes() {
            crowd.put_template(&crowd.template(), crowd.coupons, now + arrival).await?;
        }
        if scenario.sells() {
            crowd.put_product(&crowd.scarce(), 1_000, crowd.pieces, None).await?;
        }
        if scenario.checks_out() {
            let (stock, limit) = (crowd.card_pieces, Some(PIECES_PER_USER));
            crowd.put_product(&crowd.by_card(), 1_000, stock, limit).await?;
        }
        if scenario.browses() {
            crowd.put_template(&crowd.everyday(), PLENTY, Duration::ZERO).await?;
            for number in 0..PRODUCTS {
                let price = (number + 1) * 100;
                crowd.put_product(&crowd.product(number), price, PLENTY, None).await?;
            }
        }
        Ok(crowd)
    }

    async fn put_product(
        &self,
        id: &str,
        price: u64,
        stock: u64,
        per_user_limit: Option<u64>,
    ) -> Outcome<()> {
        let body = json!({
            "name": id, "price": price, "status": "on_sale", "stock": stock,
            "per_user_limit": per_user_limit,
        });
        self.api.staff(Method::PUT, &format!("/v1/products/{id}"), Some(&body)).await.map(drop)
    }

    async fn put_template(&self, id: &str, max_issued: u64, from: Duration) -> Outcome<()> {
        let body = json!({
            "name": id, "discount": {"type": "amount", "value": 50}, "max_issued": max_issued,
            "issue_from": jiff::Timestamp::from_millisecond(i64::try_from(from.as_millis())?)?.to_string(),
            "issue_until": "2100-01-01T00:00:00Z",
        });
        self.api
            .staff(Method::PUT, &format!("/v1/coupon-templates/{id}"), Some(&body))
            .await
            .map(drop)
    }

    /// Number, name and token of the next user.
    pub fn next_user(&self) -> Outcome<(u64, String, String)> {
        let number = self.users.fetch_add(1, Ordering::Relaxed);
        let name = format!("{}-{number}", self.run);
        let token = self.api.token(&name, "shop")?;
        Ok((number, name, token))
    }

    /// The template of the rush.
    pub fn template(&self) -> String {
        format!("{}-coupon", self.run)
    }

    /// The template of which every user gets one coupon.
    pub fn everyday(&self) -> String {
        format!("{}-everyday", self.run)
    }

    /// The product of the flash sale.
    pub fn scarce(&self) -> String {
        format!("{}-scarce", self.run)
    }

    /// The product that is sold by card.
    pub fn by_card(&self) -> String {
        format!("{}-by-card", self.run)
    }

    /// Number of the next order that is paid by card: 0, 1, 2, …
    pub fn next_card_order(&self) -> u64 {
        self.card_orders.fetch_add(1, Ordering::Relaxed)
    }

    pub fn product(&self, number: u64) -> String {
        format!("{}-product-{number}", self.run)
    }

    pub fn note(&self, what: impl FnOnce(&mut Told)) {
        what(&mut self.told.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Counts an answer that has just arrived.
    pub fn count(&self, name: &str, outcome: answers::Outcome, took: Duration) {
        let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        answers.add(name, outcome, took, Instant::now());
    }

    /// Returns everything counted so far, and resets the counts.
    pub fn take_answers(&self, begin: Instant) -> AnswerCounts {
        let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut *answers, AnswerCounts::new(begin))
    }

    pub fn told(&self) -> Told {
        self.told.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// A numeric member of an answer.
pub fn number(answer: &Value, name: &str) -> u64 {
    answer[name].as_u64().unwrap_or_default()
}
