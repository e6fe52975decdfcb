//! The types of a recorded history: every request of every client with the times of request and
//! answer, and what the servers hold at the end.

use std::collections::{BTreeMap, HashMap};

use rushgate::domain::SaleRules;
use rushgate::domain::wire::Id;
use rushgate::log::RawEntry;
use serde_json::{Value, json};

use super::model::{CouponTerms, LedgerLine};
use crate::cluster;

/// A client's request.
#[derive(Clone, Debug, PartialEq)]
pub enum Ask {
    Issue {
        template: String,
        user: String,
    },
    Charge {
        user: String,
        amount: u64,
    },
    Order {
        user: String,
        /// Each product at most once.
        lines: Vec<(String, u64)>,
        coupon: Option<Id>,
        expected_total: Option<u64>,
    },
    /// An order that is paid outside.
    Hold {
        user: String,
        /// Each product at most once.
        lines: Vec<(String, u64)>,
        coupon: Option<Id>,
        wallet_amount: u64,
        hold_secs: u64,
        /// The shop's own number.
        reference: Option<String>,
    },
    Cancel {
        order: Id,
    },
    /// `reference` is unique to this request.
    Confirm {
        order: Id,
        reference: String,
    },
    /// `name` is unique to this request.
    PutProduct {
        product: String,
        name: String,
        price: u64,
        status: &'static str,
        stock: Option<u64>,
    },
    /// A product with rules. `body` has a name that is unique to this request.
    PutRules {
        product: String,
        body: Value,
    },
    /// `reason` is unique to this request.
    Adjust {
        product: String,
        delta: i64,
        reason: String,
    },
    /// `body` has a name that is unique to this request.
    PutTemplate {
        template: String,
        body: Value,
    },
    Wallet(String),
    Product(String),
    Template(String),
    Coupons(String),
    GetOrder(Id),
    Orders(String),
    Entries(String),
}

/// The maximum page size, so that everything of one user fits on one page.
pub const PAGE: usize = 100;

impl Ask {
    pub fn request(&self, key: Option<&str>) -> cluster::Request {
        use cluster::Request;
        let request = match self {
            Self::Issue { template, user } => Request::issue(template, user),
            Self::Charge { user, amount } => Request::charge(user, *amount),
            Self::Order { user, lines, coupon, expected_total } => {
                let items: Vec<Value> =
                    lines.iter().map(|(p, n)| json!({ "product_id": p, "quantity": n })).collect();
                let mut body = json!({ "user_id": user, "items": items });
                if let Some(coupon) = coupon {
                    body["coupon_id"] = json!(coupon.to_string());
                }
                if let Some(total) = expected_total {
                    body["expected_total"] = json!(total);
                }
                Request::post("/v1/orders", body)
            }
            Self::Hold { user, lines, coupon, wallet_amount, hold_secs, reference } => {
                let items: Vec<Value> =
                    lines.iter().map(|(p, n)| json!({ "product_id": p, "quantity": n })).collect();
                let mut body = json!({ "user_id": user, "items": items, "payment": "external",
                    "wallet_amount": wallet_amount, "hold_secs": hold_secs });
                if let Some(coupon) = coupon {
                    body["coupon_id"] = json!(coupon.to_string());
                }
                if let Some(reference) = reference {
                    body["reference"] = json!(reference);
                }
                Request::post("/v1/orders", body)
            }
            Self::Cancel { order } => Request::cancel(&order.to_string()),
            Self::Confirm { order, reference } => {
                let body = json!({ "payment_reference": reference });
                Request::post(format!("/v1/orders/{order}/confirm"), body)
            }
            Self::PutProduct { product, name, price, status, stock } => {
                let mut body = json!({ "name": name, "price": price, "status": status });
                if let Some(stock) = stock {
                    body["stock"] = json!(stock);
                }
                Request::put(format!("/v1/products/{product}"), body).admin()
            }
            Self::PutRules { product, body } => {
                Request::put(format!("/v1/products/{product}"), body.clone()).admin()
            }
            Self::Adjust { product, delta, reason } => {
                let body = json!({ "delta": delta, "reason": reason });
                Request::post(format!("/v1/products/{product}/stock-adjustments"), body).admin()
            }
            Self::PutTemplate { template, body } => {
                Request::put(format!("/v1/coupon-templates/{template}"), body.clone()).admin()
            }
            Self::Wallet(user) => Request::get(format!("/v1/users/{user}/wallet")),
            Self::Product(product) => Request::get(format!("/v1/products/{product}")),
            Self::Template(template) => Request::get(format!("/v1/coupon-templates/{template}")),
            Self::Coupons(user) => Request::get(format!("/v1/users/{user}/coupons?limit={PAGE}")),
            Self::GetOrder(order) => Request::get(format!("/v1/orders/{order}")),
            Self::Orders(user) => Request::get(format!("/v1/users/{user}/orders?limit={PAGE}")),
            Self::Entries(user) => {
                Request::get(format!("/v1/users/{user}/wallet/entries?limit={PAGE}"))
            }
        };
        match key {
            Some(key) => request.key(key),
            None => request,
        }
    }

    pub fn is_read(&self) -> bool {
        use Ask::*;
        matches!(
            self,
            Wallet(_)
                | Product(_)
                | Template(_)
                | Coupons(_)
                | GetOrder(_)
                | Orders(_)
                | Entries(_)
        )
    }
}

/// What happened to a request.
#[derive(Clone, Debug)]
pub enum Outcome {
    Answered(cluster::HttpAnswer),
    /// The connection was refused, so the request was never sent.
    NotSent,
    /// The request was sent, but no answer arrived.
    Silence(#[allow(dead_code, reason = "told when a promise is broken")] String),
}

/// A request and its outcome. Times are microseconds since the start of the history.
#[derive(Clone, Debug)]
pub struct Operation {
    pub ask: Ask,
    pub key: Option<String>,
    pub asked_us: u64,
    pub answered_us: u64,
    /// Wall clock at request and answer, in milliseconds.
    pub wall_ms: (i64, i64),
    /// An earlier version may have answered, without the members that are new since then.
    pub earlier: bool,
    pub outcome: Outcome,
}

impl Operation {
    pub fn answer(&self) -> Option<&cluster::HttpAnswer> {
        match &self.outcome {
            Outcome::Answered(answer) => Some(answer),
            _ => None,
        }
    }

    pub fn succeeded(&self) -> bool {
        self.answer().is_some_and(|answer| (200..300).contains(&answer.status))
    }

    /// The request may have taken effect, but no answer says so.
    pub fn unknown(&self) -> bool {
        match &self.outcome {
            Outcome::Answered(answer) => answer.code() == "outcome-unknown",
            Outcome::NotSent => false,
            Outcome::Silence(_) => true,
        }
    }
}

/// One epoch of the cell, as far as PostgreSQL followed it.
#[derive(Clone, Debug, Default)]
pub struct Epoch {
    pub epoch: u64,
    /// Every entry of the epoch that any Redis ever held, in the order of writing. It has forks if
    /// Redis lost writes.
    pub entries: Vec<RawEntry>,
    /// The last entry that PostgreSQL applied.
    pub last_seq: u64,
    pub last_tip: String,
}

/// PostgreSQL's tables at the end, in the model's types.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Truth {
    pub wallets: BTreeMap<String, u64>,
    pub ledgers: BTreeMap<String, Vec<LedgerLine>>,
    pub products: BTreeMap<String, TruthProduct>,
    /// limit, issued
    pub templates: BTreeMap<String, (u64, u64)>,
    pub coupons: BTreeMap<Id, TruthCoupon>,
    pub orders: BTreeMap<Id, TruthOrder>,
    /// (limit, user) → pieces, for limits that products have now
    pub purchases: BTreeMap<(u64, String), u64>,
    /// Net stock added by staff, per product.
    pub put_in: BTreeMap<String, i64>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct TruthProduct {
    pub name: String,
    pub price: u64,
    pub status: String,
    pub stock: u64,
    pub rules: SaleRules,
    pub limit_number: Option<u64>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct TruthCoupon {
    pub template_id: String,
    pub user_id: String,
    pub serial: u64,
    /// The order that uses it.
    pub order_id: Option<Id>,
    /// Those that it was issued with.
    pub terms: CouponTerms,
}

#[derive(Clone, Debug, PartialEq)]
pub struct TruthOrder {
    pub user_id: String,
    pub status: String,
    pub subtotal: u64,
    pub discount: u64,
    pub total: u64,
    pub coupon_id: Option<Id>,
    /// Product, pieces, the limit that they count for.
    pub lines: Vec<(String, u64, Option<u64>)>,
    pub reference: Option<String>,
    /// What it took from the wallet, if it is paid outside.
    pub wallet_amount: Option<u64>,
    pub hold_expires_at: Option<i64>,
    pub payment_reference: Option<String>,
}

/// A fact of the log that PostgreSQL left out. `fact` counts from 1 within the entry.
#[derive(Clone, Debug, PartialEq)]
pub struct LeftOut {
    pub epoch: u64,
    pub seq: u64,
    pub fact: usize,
    /// Whether an operator skipped it. Otherwise it became invalid through a skipped fact.
    pub skipped: bool,
}

/// The input of the checker.
#[derive(Clone, Debug, Default)]
pub struct History {
    pub operations: Vec<Operation>,
    pub epochs: Vec<Epoch>,
    /// Facts that an operator skipped, and facts that became invalid without them.
    pub left_out: Vec<LeftOut>,
    pub truth: Truth,
    /// Events that the data platform received, by id.
    pub events: HashMap<String, Value>,
    /// The audit's output if it found a difference.
    pub audit: Option<String>,
}
