//! The reference model: a second implementation of the shop's rules, written from the contract
//! (docs/api.md) and not from the scripts.
//!
//! A [`Shop`] is a set of plain maps and decides one request at a time. It does no I/O, has no
//! clock and no optimisations. With the service it shares only the data types of requests, facts
//! and refusals.

use std::collections::{BTreeMap, BTreeSet};

use rushgate::domain::fact::*;
use rushgate::domain::wire::{Blob, Id, pack};
use rushgate::domain::{OrderStatus, ProductStatus, SaleRules};
use rushgate::gate::{
    CancelRefusal, ChargeRefusal, ConfirmRefusal, ExpireRefusal, IssueRefusal, OrderRefusal,
    ProductRefusal, StockRefusal, TemplateRefusal,
};

const DAY_MS: i64 = 24 * 60 * 60 * 1_000;
const HIGHEST_BALANCE: u64 = 1_000_000;
/// The default of `RUSHGATE_PENDING_LIMIT`.
pub const PENDING_LIMIT: u64 = 5;
/// The most versions of one template's terms.
const MOST_VERSIONS: usize = 200;

#[derive(Clone, Debug, PartialEq)]
pub struct Product {
    pub name: String,
    pub price: u64,
    pub status: ProductStatus,
    pub stock: u64,
    pub rules: SaleRules,
    /// The number of its limit per user, if it has one.
    pub limit_number: Option<u64>,
}

/// What a coupon keeps from its issue on.
#[derive(Clone, Debug, PartialEq)]
pub struct CouponTerms {
    pub discount_type: String,
    pub discount_value: u64,
    pub discount_max: Option<u64>,
    pub min_subtotal: u64,
}

impl From<&TemplateTerms> for CouponTerms {
    fn from(terms: &TemplateTerms) -> Self {
        Self {
            discount_type: terms.discount_type.clone(),
            discount_value: terms.discount_value,
            discount_max: terms.discount_max,
            min_subtotal: terms.min_subtotal,
        }
    }
}

/// The terms that a template had under one number, and the coupons that were issued with them.
#[derive(Clone, Debug, PartialEq)]
pub struct Version {
    pub number: u64,
    pub terms: CouponTerms,
    pub issued: u64,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Template {
    pub number: u64,
    pub terms: TemplateTerms,
    pub issued: u64,
    /// In the order of time; the last one is in force.
    pub versions: Vec<Version>,
}

impl Template {
    pub fn present(&self) -> &Version {
        &self.versions[self.versions.len() - 1]
    }

    /// The number of the terms in force, if it is not the template's own.
    pub fn later_number(&self) -> Option<u64> {
        Some(self.present().number).filter(|number| *number != self.number)
    }

    pub fn terms_of(&self, number: u64) -> &CouponTerms {
        &self.versions.iter().find(|version| version.number == number).unwrap().terms
    }
}

#[derive(Clone, Debug, PartialEq)]
pub struct Coupon {
    pub template_id: String,
    /// Of the terms that it was issued with.
    pub terms_number: u64,
    pub user_id: String,
    pub serial: u64,
    pub issued_at: i64,
    /// The order that uses it, if any.
    pub order_id: Option<Id>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Order {
    pub placed: OrderPlaced,
    pub confirmed: Option<OrderConfirmed>,
    pub cancelled: Option<OrderCancelled>,
    pub expired: Option<OrderExpired>,
}

impl Order {
    pub fn new(placed: OrderPlaced) -> Self {
        Self { placed, confirmed: None, cancelled: None, expired: None }
    }

    pub fn outside(&self) -> Option<OutsidePayment> {
        outside_of(&self.placed)
    }

    /// The end of its hold, if it was ever pending.
    pub fn hold_expires_at(&self) -> Option<i64> {
        self.outside().and_then(|outside| outside.hold_expires_at)
    }

    pub fn status(&self) -> OrderStatus {
        if self.cancelled.is_some() {
            OrderStatus::Cancelled
        } else if self.expired.is_some() {
            OrderStatus::Expired
        } else if self.hold_expires_at().is_some() && self.confirmed.is_none() {
            OrderStatus::Pending
        } else {
            OrderStatus::Paid
        }
    }

    /// What it took from the wallet.
    pub fn wallet_amount(&self) -> u64 {
        wallet_amount(&self.placed)
    }

    /// What was paid outside by now. `None`: it is paid from the wallet alone.
    pub fn paid_outside(&self) -> Option<u64> {
        let due = self.placed.total - self.wallet_amount();
        self.outside().map(|_| if self.confirmed.is_some() { due } else { 0 })
    }

    /// The number of the limit that a line counts for.
    pub fn limit_of(&self, line: usize) -> Option<u64> {
        let counts = self.placed.more.iter().flat_map(|more| &more.counts);
        counts.into_iter().find(|count| count.line == line as u64).map(|count| count.limit_number)
    }

    /// The order as the gate keeps it while it is pending.
    pub fn as_pending(&self) -> PendingOrder {
        let placed = &self.placed;
        let line = |(at, line): (usize, &PlacedLine)| PendingLine {
            product_id: line.product_id.clone(),
            name: line.name.clone(),
            unit_price: line.unit_price,
            quantity: line.quantity,
            amount: line.amount,
            limit_number: self.limit_of(at),
        };
        PendingOrder {
            user_id: placed.user_id.clone(),
            lines: placed.lines.iter().enumerate().map(line).collect(),
            subtotal: placed.subtotal,
            discount: placed.discount,
            total: placed.total,
            coupon_id: placed.coupon_id,
            wallet_amount: self.wallet_amount(),
            ordered_at: placed.ordered_at,
            hold_expires_at: self.hold_expires_at().unwrap_or_default(),
            reference: placed.more.as_ref().and_then(|more| more.reference.clone()),
        }
    }
}

fn outside_of(placed: &OrderPlaced) -> Option<OutsidePayment> {
    placed.more.as_ref().and_then(|more| more.outside)
}

/// What an order took from the wallet.
pub fn wallet_amount(placed: &OrderPlaced) -> u64 {
    outside_of(placed).map_or(placed.total, |outside| outside.wallet_amount)
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
    OrderConfirmed(OrderConfirmed),
    OrderExpired(OrderExpired),
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
    Confirm(ConfirmRefusal),
    Expire(ExpireRefusal),
    Product(ProductRefusal),
    Stock(StockRefusal),
    Template(TemplateRefusal),
}

/// How an order is paid outside.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PayOutside {
    pub wallet_amount: u64,
    pub hold_ms: u64,
    pub pending_limit: u64,
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
        reference: Option<String>,
        outside: Option<PayOutside>,
        order_id: Id,
    },
    CancelOrder {
        order_id: Id,
    },
    ConfirmOrder {
        order_id: Id,
        payment_reference: String,
    },
    /// By the service itself, of a hold that is over.
    ExpireOrder {
        order_id: Id,
    },
    PutProduct {
        product_id: String,
        name: String,
        price: u64,
        status: ProductStatus,
        stock: Option<u64>,
        rules: SaleRules,
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
    /// Each user's pending orders.
    pub pending_of: BTreeMap<String, BTreeSet<Id>>,
    /// (limit, user) → pieces in pending and paid orders
    pub purchases: BTreeMap<(u64, String), u64>,
    /// The highest number of a limit per user.
    pub limits: u64,
    /// The highest number of a template or of later terms.
    pub numbers: u64,
    pub records: BTreeMap<String, Record>,
    /// Limit of idempotency records per user and day (UTC). `None` means no limit.
    pub keys_per_day: Option<u64>,
    /// The most versions of one template's terms; `None`: the service's own number.
    pub most_versions: Option<usize>,
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
        let mut part = Self { most_versions: self.most_versions, ..Self::default() };
        match request {
            Request::IssueCoupon { template_id, user_id, .. } => {
                part.copy_template(self, template_id);
                let pair = (user_id.clone(), template_id.clone());
                copy(&mut part.held, &self.held, &pair);
            }
            Request::ChargeWallet { user_id, .. } => part.copy_user(self, user_id),
            Request::PlaceOrder { user_id, lines, coupon_id, .. } => {
                part.copy_user(self, user_id);
                for (product, _) in lines {
                    copy(&mut part.products, &self.products, product);
                    let limit = self.products.get(product).and_then(|p| p.limit_number);
                    let bought = limit.map(|number| (number, user_id.clone()));
                    bought.iter().for_each(|of| copy(&mut part.purchases, &self.purchases, of));
                }
                coupon_id.iter().for_each(|id| part.copy_coupon(self, id));
            }
            Request::CancelOrder { order_id }
            | Request::ConfirmOrder { order_id, .. }
            | Request::ExpireOrder { order_id } => {
                copy(&mut part.orders, &self.orders, order_id);
                if let Some(Order { placed, .. }) = self.orders.get(order_id) {
                    part.copy_user(self, &placed.user_id);
                    for line in &placed.lines {
                        copy(&mut part.products, &self.products, &line.product_id);
                    }
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

    /// The user's wallet and pending orders.
    fn copy_user(&mut self, from: &Self, user_id: &String) {
        copy(&mut self.wallets, &from.wallets, user_id);
        copy(&mut self.pending_of, &from.pending_of, user_id);
        for id in from.pending_of.get(user_id).into_iter().flatten() {
            copy(&mut self.orders, &from.orders, id);
        }
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
            Request::PlaceOrder { .. } => self
                .place(request, now)
                .map(|fact| Fact::OrderPlaced(OrderPlaced { idempotency, ..fact }))
                .map_err(Refusal::Order),
            Request::CancelOrder { order_id } => self
                .cancel(*order_id, now)
                .map(|fact| Fact::OrderCancelled(OrderCancelled { idempotency, ..fact }))
                .map_err(Refusal::Cancel),
            Request::ConfirmOrder { order_id, payment_reference } => self
                .confirm(*order_id, payment_reference, now)
                .map(|fact| Fact::OrderConfirmed(OrderConfirmed { idempotency, ..fact }))
                .map_err(Refusal::Confirm),
            Request::ExpireOrder { order_id } => self
                .expire(*order_id, now)
                .map(|fact| Fact::OrderExpired(OrderExpired { idempotency, ..fact }))
                .map_err(Refusal::Expire),
            Request::PutProduct { product_id, name, price, status, stock, rules } => self
                .put_product(product_id, name, *price, *status, *stock, rules, now)
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
        let last = template.versions.len() - 1;
        template.versions[last].issued += 1;
        let fact = CouponIssued {
            coupon_id,
            template_id: template_id.to_owned(),
            user_id: user_id.to_owned(),
            serial: template.issued,
            remaining: terms.max_issued - template.issued,
            issued_at: now,
            expires_at: now + 365 * DAY_MS,
            idempotency: None,
            terms_number: template.later_number(),
        };
        let coupon = Coupon {
            template_id: template_id.to_owned(),
            terms_number: template.present().number,
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
        let balance = self.balance(user_id);
        if balance + self.held_in_pending(user_id) + amount > HIGHEST_BALANCE {
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

    fn balance(&self, user_id: &str) -> u64 {
        self.wallets.get(user_id).copied().unwrap_or(0)
    }

    /// What the user's pending orders took from the wallet.
    pub fn held_in_pending(&self, user_id: &str) -> u64 {
        let pending = self.pending_of.get(user_id).into_iter().flatten();
        pending.map(|id| self.orders[id].wallet_amount()).sum()
    }

    /// Why these pieces of a product are not sold to the user now.
    fn unsellable(
        &self,
        product_id: &str,
        quantity: u64,
        user_id: &str,
        now: i64,
    ) -> Option<OrderRefusal> {
        let id = || product_id.to_owned();
        let Some(product) = self.products.get(product_id) else {
            return Some(OrderRefusal::UnknownProduct(id()));
        };
        if product.status != ProductStatus::OnSale {
            return Some(OrderRefusal::NotOnSale(id()));
        }
        if let Some(from) = product.rules.sale_from.filter(|from| now < *from) {
            return Some(OrderRefusal::SaleNotOpen(id(), from));
        }
        if let Some(until) = product.rules.sale_until.filter(|until| now >= *until) {
            return Some(OrderRefusal::SaleEnded(id(), until));
        }
        if let (Some(limit), Some(number)) = (product.rules.per_user_limit, product.limit_number) {
            let bought = self.bought(number, user_id);
            if bought + quantity > limit {
                return Some(OrderRefusal::PurchaseLimit(id(), limit, bought, quantity));
            }
        }
        (product.stock < quantity).then(|| OrderRefusal::InsufficientStock(id(), product.stock))
    }

    pub fn bought(&self, limit_number: u64, user_id: &str) -> u64 {
        self.purchases.get(&(limit_number, user_id.to_owned())).copied().unwrap_or(0)
    }

    /// What an order takes from the wallet now, and the end of its hold if something stays due.
    fn payment(
        &self,
        user_id: &str,
        total: u64,
        outside: Option<PayOutside>,
        now: i64,
    ) -> Result<(u64, Option<i64>), OrderRefusal> {
        let Some(PayOutside { wallet_amount, hold_ms, pending_limit }) = outside else {
            return Ok((total, None));
        };
        if wallet_amount > total {
            return Err(OrderRefusal::WalletAmountAbove(total));
        }
        if wallet_amount == total {
            return Ok((total, None));
        }
        let pending = self.pending_of.get(user_id).map_or(0, BTreeSet::len) as u64;
        if pending >= pending_limit {
            return Err(OrderRefusal::TooManyPending(pending_limit));
        }
        Ok((wallet_amount, Some(now + hold_ms.cast_signed())))
    }

    fn place(&mut self, request: &Request, now: i64) -> Result<OrderPlaced, OrderRefusal> {
        let Request::PlaceOrder {
            user_id,
            lines,
            coupon_id,
            expected_total,
            reference,
            outside,
            order_id,
        } = request
        else {
            panic!("no order: {request:?}");
        };
        let (coupon_id, order_id) = (*coupon_id, *order_id);
        let mut placed = Vec::new();
        for (product_id, quantity) in lines {
            if let Some(refusal) = self.unsellable(product_id, *quantity, user_id, now) {
                return Err(refusal);
            }
            let product = &self.products[product_id];
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
        let (won, hold_expires_at) = self.payment(user_id, total, *outside, now)?;
        let balance = self.balance(user_id);
        if balance < won {
            return Err(OrderRefusal::InsufficientBalance(balance, won));
        }

        let counts = self.take(&placed, user_id);
        if let Some(coupon) = coupon_id.and_then(|id| self.coupons.get_mut(&id)) {
            coupon.order_id = Some(order_id);
        }
        let balance_after = balance - won;
        // A payment outside alone never touches the wallet.
        if outside.is_none() || won > 0 {
            self.wallets.insert(user_id.clone(), balance_after);
            self.book(user_id, "payment", -won.cast_signed(), balance_after, order_id, now);
        }
        let plain = reference.is_none() && outside.is_none() && counts.is_empty();
        let more = OrderExtras {
            reference: reference.clone(),
            outside: outside.map(|_| OutsidePayment { wallet_amount: won, hold_expires_at }),
            counts,
        };
        let fact = OrderPlaced {
            order_id,
            user_id: user_id.clone(),
            lines: placed,
            subtotal,
            discount,
            total,
            coupon_id,
            balance_after,
            ordered_at: now,
            idempotency: None,
            more: (!plain).then_some(more),
        };
        self.orders.insert(order_id, Order::new(fact.clone()));
        self.orders_of.entry(user_id.clone()).or_default().insert(order_id);
        if hold_expires_at.is_some() {
            self.pending_of.entry(user_id.clone()).or_default().insert(order_id);
        }
        Ok(fact)
    }

    /// Takes the lines from the stocks, and counts those whose products have a limit per user.
    fn take(&mut self, lines: &[PlacedLine], user_id: &str) -> Vec<PurchaseCount> {
        let mut counts = Vec::new();
        for (line, of) in (0..).zip(lines) {
            let product = self.products.get_mut(&of.product_id).unwrap();
            product.stock -= of.quantity;
            if let Some(limit_number) = product.limit_number {
                let bought = self.purchases.entry((limit_number, user_id.to_owned())).or_default();
                *bought += of.quantity;
                counts.push(PurchaseCount { line, limit_number, bought_after: *bought });
            }
        }
        counts
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
        let terms = self.templates[&coupon.template_id].terms_of(coupon.terms_number);
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
        let was_pending = match order.status() {
            OrderStatus::Cancelled => return Err(CancelRefusal::AlreadyCancelled),
            OrderStatus::Expired => return Err(CancelRefusal::NotPending),
            OrderStatus::Pending => true,
            OrderStatus::Paid => false,
        };
        let (user_id, won) = (order.placed.user_id.clone(), order.wallet_amount());
        let paid_outside = order.paid_outside();
        let balance = self.balance(&user_id);
        // What a pending order took counts towards the limit already.
        if !was_pending && balance + self.held_in_pending(&user_id) + won > HIGHEST_BALANCE {
            return Err(CancelRefusal::BalanceLimit(balance));
        }
        let back = self.give_back(order_id, now);
        let plain = paid_outside.is_none() && back.counts.is_empty();
        let more = CancelExtras { was_pending, paid_outside, counts: back.counts };
        let fact = OrderCancelled {
            order_id,
            user_id,
            lines: back.lines,
            refund: won,
            coupon_id: back.coupon_id,
            coupon_returned: back.coupon_returned,
            balance_after: back.balance_after,
            cancelled_at: now,
            idempotency: None,
            more: (!plain).then_some(more),
        };
        self.orders.get_mut(&order_id).unwrap().cancelled = Some(fact.clone());
        Ok(fact)
    }

    fn confirm(
        &mut self,
        order_id: Id,
        payment_reference: &str,
        now: i64,
    ) -> Result<OrderConfirmed, ConfirmRefusal> {
        let order = self.orders.get(&order_id).ok_or(ConfirmRefusal::NotPending)?;
        if order.status() != OrderStatus::Pending {
            return Err(ConfirmRefusal::NotPending);
        }
        if let Some(at) = order.hold_expires_at().filter(|at| now >= *at) {
            return Err(ConfirmRefusal::HoldExpired(at));
        }
        let user_id = order.placed.user_id.clone();
        let fact = OrderConfirmed {
            order_id,
            payment_reference: payment_reference.to_owned(),
            paid_at: now,
            balance_after: self.balance(&user_id),
            order: order.as_pending(),
            idempotency: None,
        };
        self.no_longer_pending(&user_id, order_id);
        self.orders.get_mut(&order_id).unwrap().confirmed = Some(fact.clone());
        Ok(fact)
    }

    fn expire(&mut self, order_id: Id, now: i64) -> Result<OrderExpired, ExpireRefusal> {
        let order = self.orders.get(&order_id).ok_or(ExpireRefusal::NotPending)?;
        if order.status() != OrderStatus::Pending {
            return Err(ExpireRefusal::NotPending);
        }
        if let Some(at) = order.hold_expires_at().filter(|at| now < *at) {
            return Err(ExpireRefusal::NotDue(at));
        }
        let (user_id, refund) = (order.placed.user_id.clone(), order.wallet_amount());
        let back = self.give_back(order_id, now);
        let fact = OrderExpired {
            order_id,
            user_id,
            lines: back.lines,
            refund,
            coupon_id: back.coupon_id,
            coupon_returned: back.coupon_returned,
            balance_after: back.balance_after,
            expired_at: now,
            counts: back.counts,
            idempotency: None,
        };
        self.orders.get_mut(&order_id).unwrap().expired = Some(fact.clone());
        Ok(fact)
    }

    fn no_longer_pending(&mut self, user_id: &str, order_id: Id) {
        if let Some(pending) = self.pending_of.get_mut(user_id) {
            pending.remove(&order_id);
            if pending.is_empty() {
                self.pending_of.remove(user_id);
            }
        }
    }

    /// Gives back everything that an order took.
    fn give_back(&mut self, order_id: Id, now: i64) -> GivenBack {
        let order = self.orders[&order_id].clone();
        let (user_id, won) = (&order.placed.user_id, order.wallet_amount());
        let (mut lines, mut counts) = (Vec::new(), Vec::new());
        for (at, line) in order.placed.lines.iter().enumerate() {
            let product = self.products.get_mut(&line.product_id).unwrap();
            product.stock += line.quantity;
            lines.push(ReturnedLine {
                product_id: line.product_id.clone(),
                quantity: line.quantity,
                stock_after: product.stock,
            });
            if let Some(limit_number) = order.limit_of(at) {
                let bought = self.purchases.entry((limit_number, user_id.clone())).or_default();
                *bought -= line.quantity.min(*bought);
                let line = at as u64;
                counts.push(PurchaseCount { line, limit_number, bought_after: *bought });
            }
        }
        let coupon = order.placed.coupon_id.and_then(|id| self.coupons.get_mut(&id));
        let coupon_returned = match coupon {
            Some(coupon) if now < coupon.issued_at + 365 * DAY_MS => {
                coupon.order_id = None;
                true
            }
            _ => false,
        };
        self.no_longer_pending(user_id, order_id);
        let balance_after = self.balance(user_id) + won;
        if order.outside().is_none() || won > 0 {
            self.wallets.insert(user_id.clone(), balance_after);
            self.book(user_id, "refund", won.cast_signed(), balance_after, order_id, now);
        }
        let coupon_id = order.placed.coupon_id;
        GivenBack { lines, counts, coupon_id, coupon_returned, balance_after }
    }

    #[expect(clippy::too_many_arguments, reason = "a PUT states the whole product")]
    fn put_product(
        &mut self,
        product_id: &str,
        name: &str,
        price: u64,
        status: ProductStatus,
        stock: Option<u64>,
        rules: &SaleRules,
        now: i64,
    ) -> Result<ProductPut, ProductRefusal> {
        let before = self.products.get(product_id);
        let created = before.is_none();
        if !created && stock.is_some() {
            return Err(ProductRefusal::StockGiven);
        }
        let stock = before.map_or(stock.unwrap_or(0), |product| product.stock);
        // A limit keeps its number until it is removed.
        let limit_before = before.and_then(|product| product.limit_number);
        let limit_number = rules.per_user_limit.map(|_| {
            limit_before.unwrap_or_else(|| {
                self.limits += 1;
                self.limits
            })
        });
        let (name, rules) = (name.to_owned(), rules.clone());
        let product = Product { name, price, status, stock, rules: rules.clone(), limit_number };
        let fact = ProductPut {
            product_id: product_id.to_owned(),
            name: product.name.clone(),
            price,
            status,
            stock_after: stock,
            created,
            put_at: now,
            idempotency: None,
            rules: (!rules.is_empty()).then_some(ProductRules {
                sale_from: rules.sale_from,
                sale_until: rules.sale_until,
                per_user_limit: rules.per_user_limit,
                limit_number,
                attributes: rules.attributes,
            }),
        };
        self.products.insert(product_id.to_owned(), product);
        Ok(fact)
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
        let mut versions = before.map_or(vec![], |template| template.versions.clone());
        let new = CouponTerms::from(terms);
        let count = versions.len();
        match versions.last_mut() {
            Some(last) if last.issued == 0 || last.terms == new => last.terms = new,
            _ if count >= self.most_versions.unwrap_or(MOST_VERSIONS) => {
                return Err(TemplateRefusal::TooManyTerms);
            }
            _ => {
                self.numbers += 1;
                versions.push(Version { number: self.numbers, terms: new, issued: 0 });
            }
        }
        let number = versions[0].number;
        let template = Template { number, terms: terms.clone(), issued, versions };
        let fact = TemplatePut {
            template_id: template_id.to_owned(),
            number,
            terms: terms.clone(),
            issued,
            created,
            put_at: now,
            idempotency: None,
            terms_number: template.later_number(),
        };
        self.templates.insert(template_id.to_owned(), template);
        Ok(fact)
    }
}

/// What an order gave back.
struct GivenBack {
    lines: Vec<ReturnedLine>,
    counts: Vec<PurchaseCount>,
    coupon_id: Option<Id>,
    coupon_returned: bool,
    balance_after: u64,
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
            let outside = outside_of(&f).map(|outside| PayOutside {
                wallet_amount: outside.wallet_amount,
                hold_ms: (outside.hold_expires_at.unwrap_or(f.ordered_at) - f.ordered_at)
                    .cast_unsigned(),
                pending_limit: PENDING_LIMIT,
            });
            let request = Request::PlaceOrder {
                user_id: f.user_id,
                lines: f.lines.into_iter().map(|line| (line.product_id, line.quantity)).collect(),
                coupon_id: f.coupon_id,
                expected_total: None,
                reference: f.more.and_then(|more| more.reference),
                outside,
                order_id: f.order_id,
            };
            (request, f.idempotency, f.ordered_at)
        }
        Fact::OrderCancelled(f) => {
            (Request::CancelOrder { order_id: f.order_id }, f.idempotency, f.cancelled_at)
        }
        Fact::OrderConfirmed(f) => {
            let payment_reference = f.payment_reference;
            let request = Request::ConfirmOrder { order_id: f.order_id, payment_reference };
            (request, f.idempotency, f.paid_at)
        }
        Fact::OrderExpired(f) => {
            (Request::ExpireOrder { order_id: f.order_id }, f.idempotency, f.expired_at)
        }
        Fact::ProductPut(f) => {
            let request = Request::PutProduct {
                product_id: f.product_id,
                name: f.name,
                price: f.price,
                status: f.status,
                stock: f.created.then_some(f.stock_after),
                rules: f.rules.map_or_else(SaleRules::default, |rules| SaleRules {
                    sale_from: rules.sale_from,
                    sale_until: rules.sale_until,
                    per_user_limit: rules.per_user_limit,
                    attributes: rules.attributes,
                }),
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
        Facts::OrdersConfirmed(all) => all.into_iter().map(Fact::OrderConfirmed).collect(),
        Facts::OrdersExpired(all) => all.into_iter().map(Fact::OrderExpired).collect(),
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
        Fact::OrderConfirmed(_) => "confirm_order",
        Fact::OrderExpired(_) => "expire_order",
        Fact::ProductPut(_) => "put_product",
        Fact::StockAdjusted(_) => "adjust_stock",
        Fact::TemplatePut(_) => "put_template",
    }
}

/// The format version of an entry with this fact: the first if versions before 0.2 know all of it.
pub fn format_of(fact: &Fact) -> u64 {
    let later = match fact {
        Fact::CouponIssued(f) => f.terms_number.is_some(),
        Fact::OrderPlaced(f) => f.more.is_some(),
        Fact::OrderCancelled(f) => f.more.is_some(),
        Fact::OrderConfirmed(_) | Fact::OrderExpired(_) => true,
        Fact::ProductPut(f) => f.rules.is_some(),
        Fact::TemplatePut(f) => f.terms_number.is_some(),
        Fact::WalletCharged(_) | Fact::StockAdjusted(_) => false,
    };
    if later { 2 } else { 1 }
}

/// The fact's bytes, as they stand in an entry.
pub fn packed(fact: &Fact) -> Vec<u8> {
    match fact {
        Fact::CouponIssued(f) => pack(f),
        Fact::WalletCharged(f) => pack(f),
        Fact::OrderPlaced(f) => pack(f),
        Fact::OrderCancelled(f) => pack(f),
        Fact::OrderConfirmed(f) => pack(f),
        Fact::OrderExpired(f) => pack(f),
        Fact::ProductPut(f) => pack(f),
        Fact::StockAdjusted(f) => pack(f),
        Fact::TemplatePut(f) => pack(f),
    }
    .unwrap()
}

/// The fact without the values that depend on other facts (balances, stocks and counts afterwards,
/// numbers of terms and templates).
/// Code that applies facts by differences must leave the rest unchanged.
pub fn without_images(fact: &Fact) -> Fact {
    fn forget(counts: &mut [PurchaseCount]) {
        counts.iter_mut().for_each(|count| count.bought_after = 0);
    }
    let mut fact = fact.clone();
    match &mut fact {
        Fact::CouponIssued(f) => (f.serial, f.remaining, f.terms_number) = (0, 0, None),
        Fact::WalletCharged(f) => f.balance_after = 0,
        Fact::OrderPlaced(f) => {
            f.balance_after = 0;
            f.lines.iter_mut().for_each(|line| line.stock_after = 0);
            f.more.iter_mut().for_each(|more| forget(&mut more.counts));
        }
        Fact::OrderCancelled(f) => {
            f.balance_after = 0;
            f.lines.iter_mut().for_each(|line| line.stock_after = 0);
            f.more.iter_mut().for_each(|more| forget(&mut more.counts));
        }
        Fact::OrderConfirmed(f) => f.balance_after = 0,
        Fact::OrderExpired(f) => {
            f.balance_after = 0;
            f.lines.iter_mut().for_each(|line| line.stock_after = 0);
            forget(&mut f.counts);
        }
        Fact::ProductPut(f) => (f.stock_after, f.created) = (0, false),
        Fact::StockAdjusted(f) => f.stock_after = 0,
        Fact::TemplatePut(f) => {
            (f.number, f.issued, f.created, f.terms_number) = (0, 0, false, None);
        }
    }
    fact
}
