//! The reference model: a second implementation of the shop's rules, written from the contract
//! (docs/api.md) and not from the scripts.
//!
//! A [`Shop`] is a set of plain maps and decides one request at a time. It does no I/O, has no
//! clock and no optimisations. With the service it shares only the data types of requests, facts
//! and refusals.

use std::collections::{BTreeMap, BTreeSet};

use rushgate::domain::ProductStatus;
use rushgate::domain::fact::*;
use rushgate::domain::wire::{Blob, Id, pack};
use rushgate::gate::{
    CancelRefusal, ChargeRefusal, IssueRefusal, OrderRefusal, ProductRefusal, StockRefusal,
    TemplateRefusal,
};

const DAY_MS: i64 = 24 * 60 * 60 * 1_000;
const HIGHEST_BALANCE: u64 = 1_000_000;

#[derive(Clone, Debug, PartialEq)]
pub struct Product {
    pub name: String,
    pub price: u64,
    pub status: ProductStatus,
    pub stock: u64,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Template {
    pub number: u64,
    pub terms: TemplateTerms,
    pub issued: u64,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Coupon {
    pub template_id: String,
    pub user_id: String,
    pub serial: u64,
    pub issued_at: i64,
    /// The order that uses it, if any.
    pub order_id: Option<Id>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Order {
    pub placed: OrderPlaced,
    pub cancelled: Option<OrderCancelled>,
}

/// A wallet ledger line: kind, signed amount, balance afterwards, the id of its cause, and time.
#[derive(Clone, Debug, PartialEq)]
pub struct LedgerLine {
    pub kind: &'static str,
    pub amount: i64,
    pub balance_after: u64,
    pub ref_id: Id,
    pub at: i64,
}

/// A stored answer, for replays of its idempotency key.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    pub request_hash: Blob,
    pub decided_at: i64,
    pub fact: Fact,
}

/// A change made by an accepted request of any kind.
#[derive(Clone, Debug, PartialEq)]
pub enum Fact {
    CouponIssued(CouponIssued),
    WalletCharged(WalletCharged),
    OrderPlaced(OrderPlaced),
    OrderCancelled(OrderCancelled),
    ProductPut(ProductPut),
    StockAdjusted(StockAdjusted),
    TemplatePut(TemplatePut),
}

/// The reason of a refusal.
#[derive(Clone, Debug, PartialEq)]
pub enum Refusal {
    Issue(IssueRefusal),
    Charge(ChargeRefusal),
    Order(OrderRefusal),
    Cancel(CancelRefusal),
    Product(ProductRefusal),
    Stock(StockRefusal),
    Template(TemplateRefusal),
}

/// A client's request, with the ids that the service assigns to it.
#[derive(Clone, Debug, PartialEq)]
pub enum Request {
    IssueCoupon {
        template_id: String,
        user_id: String,
        coupon_id: Id,
    },
    ChargeWallet {
        user_id: String,
        amount: u64,
        charge_id: Id,
    },
    PlaceOrder {
        user_id: String,
        /// Each product at most once.
        lines: Vec<(String, u64)>,
        coupon_id: Option<Id>,
        expected_total: Option<u64>,
        order_id: Id,
    },
    CancelOrder {
        order_id: Id,
    },
    PutProduct {
        product_id: String,
        name: String,
        price: u64,
        status: ProductStatus,
        stock: Option<u64>,
    },
    AdjustStock {
        product_id: String,
        delta: i64,
        reason: Option<String>,
        highest: u64,
    },
    PutTemplate {
        template_id: String,
        terms: TemplateTerms,
    },
}

/// The model's decision.
#[derive(Clone, Debug, PartialEq)]
pub enum Verdict {
    Accepted(Fact),
    /// The key was used before with the same request: the stored answer.
    Replayed(Fact),
    KeyReused,
    /// The user has reached the daily limit of idempotency records. Milliseconds until the next
    /// day.
    KeysSpent(i64),
    Refused(Refusal),
}

/// The state of the whole shop.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Shop {
    pub wallets: BTreeMap<String, u64>,
    pub ledgers: BTreeMap<String, Vec<LedgerLine>>,
    pub products: BTreeMap<String, Product>,
    pub templates: BTreeMap<String, Template>,
    pub coupons: BTreeMap<Id, Coupon>,
    /// (user, template) → coupon
    pub held: BTreeMap<(String, String), Id>,
    /// The coupons of each user in the order of issue.
    pub coupons_of: BTreeMap<String, Vec<Id>>,
    pub orders: BTreeMap<Id, Order>,
    pub orders_of: BTreeMap<String, BTreeSet<Id>>,
    pub records: BTreeMap<String, Record>,
    /// Limit of idempotency records per user and day (UTC). `None` means no limit.
    pub keys_per_day: Option<u64>,
}

impl Shop {
    /// Whether the user has reached the limit of records on this day.
    pub fn has_spent_keys(&self, key: &Idempotency, now: i64) -> bool {
        let user = key.scope.split(' ').next().unwrap_or_default();
        let prefix = format!("{user} ");
        let of_user = self
            .records
            .range(prefix.clone()..)
            .take_while(|(scope, _)| scope.starts_with(&prefix));
        let today =
            of_user.filter(|(_, r)| r.decided_at.div_euclid(DAY_MS) == now.div_euclid(DAY_MS));
        self.keys_per_day.is_some_and(|most| today.count() as u64 >= most)
    }

    /// Decides one request at `now` (milliseconds). An idempotency key is looked up first.
    pub fn decide(&mut self, request: &Request, key: Option<&Idempotency>, now: i64) -> Verdict {
        if let Some(key) = key
            && let Some(record) = self.records.get(&key.scope)
            && now < record.decided_at + DAY_MS
        {
            return match record.request_hash == key.request_hash {
                true => Verdict::Replayed(record.fact.clone()),
                false => Verdict::KeyReused,
            };
        }
        if key.is_some_and(|key| self.has_spent_keys(key, now)) {
            return Verdict::KeysSpent(DAY_MS - now.rem_euclid(DAY_MS));
        }
        match self.fresh(request, key, now) {
            Ok(fact) => {
                if let Some(Idempotency { scope, request_hash }) = key.cloned() {
                    let record = Record { request_hash, decided_at: now, fact: fact.clone() };
                    self.records.insert(scope, record);
                }
                Verdict::Accepted(fact)
            }
            Err(refusal) => Verdict::Refused(refusal),
        }
    }

    /// The refusal that the request would get now. `None` means that it would be accepted.
    pub fn refusal(&self, request: &Request, now: i64) -> Option<Refusal> {
        self.part(request).fresh(request, None, now).err()
    }

    /// A copy of the part of the shop that a request reads.
    fn part(&self, request: &Request) -> Self {
        let mut part = Self::default();
        match request {
            Request::IssueCoupon { template_id, user_id, .. } => {
                part.copy_template(self, template_id);
                let pair = (user_id.clone(), template_id.clone());
                copy(&mut part.held, &self.held, &pair);
            }
            Request::ChargeWallet { user_id, .. } => {
                copy(&mut part.wallets, &self.wallets, user_id)
            }
            Request::PlaceOrder { user_id, lines, coupon_id, .. } => {
                copy(&mut part.wallets, &self.wallets, user_id);
                lines
                    .iter()
                    .for_each(|(product, _)| copy(&mut part.products, &self.products, product));
                coupon_id.iter().for_each(|id| part.copy_coupon(self, id));
            }
            Request::CancelOrder { order_id } => {
                copy(&mut part.orders, &self.orders, order_id);
                if let Some(Order { placed, .. }) = self.orders.get(order_id) {
                    copy(&mut part.wallets, &self.wallets, &placed.user_id);
                    placed.coupon_id.iter().for_each(|id| part.copy_coupon(self, id));
                }
            }
            Request::PutProduct { product_id, .. } | Request::AdjustStock { product_id, .. } => {
                copy(&mut part.products, &self.products, product_id);
            }
            Request::PutTemplate { template_id, .. } => part.copy_template(self, template_id),
        }
        part
    }

    fn copy_template(&mut self, from: &Self, template_id: &String) {
        copy(&mut self.templates, &from.templates, template_id);
    }

    fn copy_coupon(&mut self, from: &Self, coupon_id: &Id) {
        copy(&mut self.coupons, &from.coupons, coupon_id);
        if let Some(coupon) = from.coupons.get(coupon_id) {
            self.copy_template(from, &coupon.template_id);
        }
    }

    fn fresh(
        &mut self,
        request: &Request,
        key: Option<&Idempotency>,
        now: i64,
    ) -> Result<Fact, Refusal> {
        let idempotency = key.cloned();
        match request {
            Request::IssueCoupon { template_id, user_id, coupon_id } => self
                .issue(template_id, user_id, *coupon_id, now)
                .map(|fact| Fact::CouponIssued(CouponIssued { idempotency, ..fact }))
                .map_err(Refusal::Issue),
            Request::ChargeWallet { user_id, amount, charge_id } => self
                .charge(user_id, *amount, *charge_id, now)
                .map(|fact| Fact::WalletCharged(WalletCharged { idempotency, ..fact }))
                .map_err(Refusal::Charge),
            Request::PlaceOrder { user_id, lines, coupon_id, expected_total, order_id } => self
                .place(user_id, lines, *coupon_id, *expected_total, *order_id, now)
                .map(|fact| Fact::OrderPlaced(OrderPlaced { idempotency, ..fact }))
                .map_err(Refusal::Order),
            Request::CancelOrder { order_id } => self
                .cancel(*order_id, now)
                .map(|fact| Fact::OrderCancelled(OrderCancelled { idempotency, ..fact }))
                .map_err(Refusal::Cancel),
            Request::PutProduct { product_id, name, price, status, stock } => self
                .put_product(product_id, name, *price, *status, *stock, now)
                .map(|fact| Fact::ProductPut(ProductPut { idempotency, ..fact }))
                .map_err(Refusal::Product),
            Request::AdjustStock { product_id, delta, reason, highest } => self
                .adjust(product_id, *delta, reason.as_deref(), *highest, now)
                .map(|fact| Fact::StockAdjusted(StockAdjusted { idempotency, ..fact }))
                .map_err(Refusal::Stock),
            Request::PutTemplate { template_id, terms } => self
                .put_template(template_id, terms, now)
                .map(|fact| Fact::TemplatePut(TemplatePut { idempotency, ..fact }))
                .map_err(Refusal::Template),
        }
    }

    fn issue(
        &mut self,
        template_id: &str,
        user_id: &str,
        coupon_id: Id,
        now: i64,
    ) -> Result<CouponIssued, IssueRefusal> {
        let template = self.templates.get_mut(template_id).ok_or(IssueRefusal::UnknownTemplate)?;
        let pair = (user_id.to_owned(), template_id.to_owned());
        if let Some(holds) = self.held.get(&pair) {
            return Err(IssueRefusal::AlreadyIssued(*holds));
        }
        let terms = &template.terms;
        if now < terms.issue_from {
            return Err(IssueRefusal::NotOpenBefore(terms.issue_from));
        }
        if now >= terms.issue_until {
            return Err(IssueRefusal::ClosedSince(terms.issue_until));
        }
        if template.issued >= terms.max_issued {
            return Err(IssueRefusal::SoldOut);
        }
        template.issued += 1;
        let fact = CouponIssued {
            coupon_id,
            template_id: template_id.to_owned(),
            user_id: user_id.to_owned(),
            serial: template.issued,
            remaining: terms.max_issued - template.issued,
            issued_at: now,
            expires_at: now + 365 * DAY_MS,
            idempotency: None,
        };
        let coupon = Coupon {
            template_id: template_id.to_owned(),
            user_id: user_id.to_owned(),
            serial: fact.serial,
            issued_at: now,
            order_id: None,
        };
        self.coupons.insert(coupon_id, coupon);
        self.held.insert(pair, coupon_id);
        self.coupons_of.entry(user_id.to_owned()).or_default().push(coupon_id);
        Ok(fact)
    }

    fn charge(
        &mut self,
        user_id: &str,
        amount: u64,
        charge_id: Id,
        now: i64,
    ) -> Result<WalletCharged, ChargeRefusal> {
        let balance = self.wallets.get(user_id).copied().unwrap_or(0);
        if balance + amount > HIGHEST_BALANCE {
            return Err(ChargeRefusal::BalanceLimit(balance));
        }
        let balance_after = balance + amount;
        if amount > 0 {
            self.wallets.insert(user_id.to_owned(), balance_after);
            self.book(user_id, "charge", amount.cast_signed(), balance_after, charge_id, now);
        }
        Ok(WalletCharged {
            charge_id,
            user_id: user_id.to_owned(),
            amount,
            balance_after,
            charged_at: now,
            idempotency: None,
        })
    }

    fn book(
        &mut self,
        user: &str,
        kind: &'static str,
        amount: i64,
        balance_after: u64,
        ref_id: Id,
        at: i64,
    ) {
        let line = LedgerLine { kind, amount, balance_after, ref_id, at };
        self.ledgers.entry(user.to_owned()).or_default().push(line);
    }

    fn place(
        &mut self,
        user_id: &str,
        lines: &[(String, u64)],
        coupon_id: Option<Id>,
        expected_total: Option<u64>,
        order_id: Id,
        now: i64,
    ) -> Result<OrderPlaced, OrderRefusal> {
        let balance = self.wallets.get(user_id).copied().unwrap_or(0);
        let mut placed = Vec::new();
        for (product_id, quantity) in lines {
            let unknown = || OrderRefusal::UnknownProduct(product_id.clone());
            let product = self.products.get(product_id).ok_or_else(unknown)?;
            if product.status != ProductStatus::OnSale {
                return Err(OrderRefusal::NotOnSale(product_id.clone()));
            }
            if product.stock < *quantity {
                return Err(OrderRefusal::InsufficientStock(product_id.clone(), product.stock));
            }
            placed.push(PlacedLine {
                product_id: product_id.clone(),
                name: product.name.clone(),
                unit_price: product.price,
                quantity: *quantity,
                amount: product.price * quantity,
                stock_after: product.stock - quantity,
            });
        }
        let subtotal = placed.iter().map(|line| line.amount).sum();
        let discount = match coupon_id {
            Some(id) => self.discount(id, user_id, subtotal, now)?,
            None => 0,
        };
        let total = subtotal - discount;
        if expected_total.is_some_and(|expected| expected != total) {
            return Err(OrderRefusal::PriceChanged(total));
        }
        if balance < total {
            return Err(OrderRefusal::InsufficientBalance(balance, total));
        }

        for line in &placed {
            if let Some(product) = self.products.get_mut(&line.product_id) {
                product.stock -= line.quantity;
            }
        }
        if let Some(coupon) = coupon_id.and_then(|id| self.coupons.get_mut(&id)) {
            coupon.order_id = Some(order_id);
        }
        let balance_after = balance - total;
        self.wallets.insert(user_id.to_owned(), balance_after);
        self.book(user_id, "payment", -total.cast_signed(), balance_after, order_id, now);
        let fact = OrderPlaced {
            order_id,
            user_id: user_id.to_owned(),
            lines: placed,
            subtotal,
            discount,
            total,
            coupon_id,
            balance_after,
            ordered_at: now,
            idempotency: None,
        };
        self.orders.insert(order_id, Order { placed: fact.clone(), cancelled: None });
        self.orders_of.entry(user_id.to_owned()).or_default().insert(order_id);
        Ok(fact)
    }

    fn discount(
        &self,
        coupon_id: Id,
        user_id: &str,
        subtotal: u64,
        now: i64,
    ) -> Result<u64, OrderRefusal> {
        let coupon = self.coupons.get(&coupon_id).ok_or(OrderRefusal::UnknownCoupon)?;
        if coupon.user_id != user_id {
            return Err(OrderRefusal::UnknownCoupon);
        }
        if coupon.order_id.is_some() {
            return Err(OrderRefusal::CouponUsed);
        }
        if now >= coupon.issued_at + 365 * DAY_MS {
            return Err(OrderRefusal::CouponExpired(coupon.issued_at + 365 * DAY_MS));
        }
        let terms = &self.templates[&coupon.template_id].terms;
        if subtotal < terms.min_subtotal {
            return Err(OrderRefusal::SubtotalTooLow(terms.min_subtotal, subtotal));
        }
        let discount = match terms.discount_type.as_str() {
            "percent" => {
                let part = subtotal * terms.discount_value / 100;
                terms.discount_max.map_or(part, |max| part.min(max))
            }
            _ => terms.discount_value,
        };
        Ok(discount.min(subtotal))
    }

    fn cancel(&mut self, order_id: Id, now: i64) -> Result<OrderCancelled, CancelRefusal> {
        // Unknown orders are refused before they reach the gate.
        let unknown = || CancelRefusal::UnknownProduct(String::new());
        let order = self.orders.get(&order_id).ok_or_else(unknown)?;
        if order.cancelled.is_some() {
            return Err(CancelRefusal::AlreadyCancelled);
        }
        let placed = order.placed.clone();
        let balance = self.wallets[&placed.user_id];
        if balance + placed.total > HIGHEST_BALANCE {
            return Err(CancelRefusal::BalanceLimit(balance));
        }
        let lines = placed
            .lines
            .iter()
            .filter_map(|line| {
                let product = self.products.get_mut(&line.product_id)?;
                product.stock += line.quantity;
                Some(ReturnedLine {
                    product_id: line.product_id.clone(),
                    quantity: line.quantity,
                    stock_after: product.stock,
                })
            })
            .collect();
        let coupon = placed.coupon_id.and_then(|id| self.coupons.get_mut(&id));
        let coupon_returned = match coupon {
            Some(coupon) if now < coupon.issued_at + 365 * DAY_MS => {
                coupon.order_id = None;
                true
            }
            _ => false,
        };
        let balance_after = balance + placed.total;
        self.wallets.insert(placed.user_id.clone(), balance_after);
        self.book(
            &placed.user_id,
            "refund",
            placed.total.cast_signed(),
            balance_after,
            order_id,
            now,
        );
        let fact = OrderCancelled {
            order_id,
            user_id: placed.user_id,
            lines,
            refund: placed.total,
            coupon_id: placed.coupon_id,
            coupon_returned,
            balance_after,
            cancelled_at: now,
            idempotency: None,
        };
        if let Some(order) = self.orders.get_mut(&order_id) {
            order.cancelled = Some(fact.clone());
        }
        Ok(fact)
    }

    fn put_product(
        &mut self,
        product_id: &str,
        name: &str,
        price: u64,
        status: ProductStatus,
        stock: Option<u64>,
        now: i64,
    ) -> Result<ProductPut, ProductRefusal> {
        let before = self.products.get(product_id);
        let created = before.is_none();
        if !created && stock.is_some() {
            return Err(ProductRefusal::StockGiven);
        }
        let stock = before.map_or(stock.unwrap_or(0), |product| product.stock);
        let product = Product { name: name.to_owned(), price, status, stock };
        self.products.insert(product_id.to_owned(), product);
        Ok(ProductPut {
            product_id: product_id.to_owned(),
            name: name.to_owned(),
            price,
            status,
            stock_after: stock,
            created,
            put_at: now,
            idempotency: None,
        })
    }

    fn adjust(
        &mut self,
        product_id: &str,
        delta: i64,
        reason: Option<&str>,
        highest: u64,
        now: i64,
    ) -> Result<StockAdjusted, StockRefusal> {
        let product = self.products.get_mut(product_id).ok_or(StockRefusal::UnknownProduct)?;
        let stock = product
            .stock
            .checked_add_signed(delta)
            .ok_or(StockRefusal::BelowZero(product.stock))?;
        if delta > 0 && stock > highest {
            return Err(StockRefusal::TooHigh(product.stock));
        }
        product.stock = stock;
        Ok(StockAdjusted {
            product_id: product_id.to_owned(),
            delta,
            reason: reason.map(str::to_owned),
            stock_after: stock,
            adjusted_at: now,
            idempotency: None,
        })
    }

    fn put_template(
        &mut self,
        template_id: &str,
        terms: &TemplateTerms,
        now: i64,
    ) -> Result<TemplatePut, TemplateRefusal> {
        let before = self.templates.get(template_id);
        let issued = before.map_or(0, |template| template.issued);
        if terms.max_issued < issued {
            return Err(TemplateRefusal::LimitBelowIssued(issued));
        }
        let created = before.is_none();
        let number = before.map_or(self.templates.len() as u64 + 1, |template| template.number);
        self.templates
            .insert(template_id.to_owned(), Template { number, terms: terms.clone(), issued });
        Ok(TemplatePut {
            template_id: template_id.to_owned(),
            number,
            terms: terms.clone(),
            issued,
            created,
            put_at: now,
            idempotency: None,
        })
    }
}

fn copy<K: Ord + Clone, V: Clone>(to: &mut BTreeMap<K, V>, from: &BTreeMap<K, V>, key: &K) {
    if let Some(value) = from.get(key) {
        to.insert(key.clone(), value.clone());
    }
}

/// The request that led to a fact, its idempotency record, and the time of the decision.
pub fn request_of(fact: &Fact) -> (Request, Option<Idempotency>, i64) {
    match fact.clone() {
        Fact::CouponIssued(f) => {
            let request = Request::IssueCoupon {
                template_id: f.template_id,
                user_id: f.user_id,
                coupon_id: f.coupon_id,
            };
            (request, f.idempotency, f.issued_at)
        }
        Fact::WalletCharged(f) => {
            let request = Request::ChargeWallet {
                user_id: f.user_id,
                amount: f.amount,
                charge_id: f.charge_id,
            };
            (request, f.idempotency, f.charged_at)
        }
        Fact::OrderPlaced(f) => {
            let request = Request::PlaceOrder {
                user_id: f.user_id,
                lines: f.lines.into_iter().map(|line| (line.product_id, line.quantity)).collect(),
                coupon_id: f.coupon_id,
                expected_total: None,
                order_id: f.order_id,
            };
            (request, f.idempotency, f.ordered_at)
        }
        Fact::OrderCancelled(f) => {
            (Request::CancelOrder { order_id: f.order_id }, f.idempotency, f.cancelled_at)
        }
        Fact::ProductPut(f) => {
            let request = Request::PutProduct {
                product_id: f.product_id,
                name: f.name,
                price: f.price,
                status: f.status,
                stock: f.created.then_some(f.stock_after),
            };
            (request, f.idempotency, f.put_at)
        }
        Fact::StockAdjusted(f) => {
            let request = Request::AdjustStock {
                product_id: f.product_id,
                delta: f.delta,
                reason: f.reason,
                highest: u64::MAX,
            };
            (request, f.idempotency, f.adjusted_at)
        }
        Fact::TemplatePut(f) => {
            let request = Request::PutTemplate { template_id: f.template_id, terms: f.terms };
            (request, f.idempotency, f.put_at)
        }
    }
}

/// The facts of an entry, one by one.
pub fn facts_of(facts: Facts) -> Vec<Fact> {
    match facts {
        Facts::CouponsIssued(all) => all.into_iter().map(Fact::CouponIssued).collect(),
        Facts::WalletsCharged(all) => all.into_iter().map(Fact::WalletCharged).collect(),
        Facts::OrdersPlaced(all) => all.into_iter().map(Fact::OrderPlaced).collect(),
        Facts::OrdersCancelled(all) => all.into_iter().map(Fact::OrderCancelled).collect(),
        Facts::ProductsPut(all) => all.into_iter().map(Fact::ProductPut).collect(),
        Facts::StocksAdjusted(all) => all.into_iter().map(Fact::StockAdjusted).collect(),
        Facts::TemplatesPut(all) => all.into_iter().map(Fact::TemplatePut).collect(),
    }
}

/// The kind of the entries that hold such a fact.
pub fn kind(fact: &Fact) -> &'static str {
    match fact {
        Fact::CouponIssued(_) => "issue_coupon",
        Fact::WalletCharged(_) => "charge_wallet",
        Fact::OrderPlaced(_) => "place_order",
        Fact::OrderCancelled(_) => "cancel_order",
        Fact::ProductPut(_) => "put_product",
        Fact::StockAdjusted(_) => "adjust_stock",
        Fact::TemplatePut(_) => "put_template",
    }
}

/// The fact's bytes, as they stand in an entry.
pub fn packed(fact: &Fact) -> Vec<u8> {
    match fact {
        Fact::CouponIssued(f) => pack(f),
        Fact::WalletCharged(f) => pack(f),
        Fact::OrderPlaced(f) => pack(f),
        Fact::OrderCancelled(f) => pack(f),
        Fact::ProductPut(f) => pack(f),
        Fact::StockAdjusted(f) => pack(f),
        Fact::TemplatePut(f) => pack(f),
    }
    .unwrap()
}

/// The fact without the values that depend on other facts (balances, stocks and counts afterwards).
/// Code that applies facts by differences must leave the rest unchanged.
pub fn without_images(fact: &Fact) -> Fact {
    let mut fact = fact.clone();
    match &mut fact {
        Fact::CouponIssued(f) => (f.serial, f.remaining) = (0, 0),
        Fact::WalletCharged(f) => f.balance_after = 0,
        Fact::OrderPlaced(f) => {
            f.balance_after = 0;
            f.lines.iter_mut().for_each(|line| line.stock_after = 0);
        }
        Fact::OrderCancelled(f) => {
            f.balance_after = 0;
            f.lines.iter_mut().for_each(|line| line.stock_after = 0);
        }
        Fact::ProductPut(f) => (f.stock_after, f.created) = (0, false),
        Fact::StockAdjusted(f) => f.stock_after = 0,
        Fact::TemplatePut(f) => (f.issued, f.created) = (0, false),
    }
    fact
}
