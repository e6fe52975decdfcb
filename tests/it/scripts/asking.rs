//! Turns plans into requests with names, numbers and ids, based on the shop's current state.

use rushgate::domain::fact::{Idempotency, TemplateTerms};
use rushgate::domain::limits::{MAX_BALANCE, MAX_QUANTITY};
use rushgate::domain::wire::{Blob, Id};
use rushgate::domain::{OrderStatus, SaleRules};
use sha1::{Digest, Sha1};
use uuid::Uuid;

use super::kind::{Body, Kind};
use super::plan::*;
use crate::history::model::{Order, PayOutside, Refusal, Request, Shop};
use rushgate::gate::OrderRefusal;

/// A request in the form in which it is sent.
#[derive(Clone, Debug)]
pub struct Sent {
    pub request: Request,
    pub body: Body,
    pub key: Option<Idempotency>,
}

/// Turns plans into requests, and keeps those with a key so that they can be repeated.
#[derive(Default)]
pub struct Asking {
    ids: u64,
    /// Requests sent with a key, and their kinds.
    keyed: Vec<(Kind, Sent)>,
    /// Orders in the sequence in which they were placed.
    pub placed: Vec<Id>,
}

impl Asking {
    pub fn ask(&mut self, shop: &Shop, kind: Kind, job: &Job, epoch: u64, now_ms: i64) -> Sent {
        let repeated = match job.key {
            Key::Repeat(n) => self.keyed_before(kind, n),
            _ => None,
        };
        let mut sent = match repeated {
            Some(sent) => sent,
            None => self.fresh(shop, job, epoch, now_ms),
        };
        // The service makes new ids for each attempt, so a repeat gets new ones too.
        self.ids += 1;
        sent.renew(id_from(self.ids));
        if sent.key.is_some() {
            self.keyed.push((kind, sent.clone()));
        }
        sent
    }

    fn keyed_before(&self, kind: Kind, n: Nth) -> Option<Sent> {
        let all: Vec<_> =
            self.keyed.iter().rev().filter(|(of, _)| *of == kind).map(|(_, sent)| sent).collect();
        nth(&all, n).map(|sent| (*sent).clone())
    }

    fn fresh(&self, shop: &Shop, job: &Job, epoch: u64, now_ms: i64) -> Sent {
        let (user, (request, body)) = match &job.ask {
            Ask::Issue { template, user } => (*user, issue(*template, *user)),
            Ask::Charge { user, amount } => (*user, charge(shop, *user, *amount)),
            place @ Ask::CellState { user, .. } => (*user, self.place(shop, place, now_ms)),
            Ask::Cancel { order, epoch: read_in, as_pending } => {
                self.cancel(shop, *order, read_epoch(*read_in, epoch), *as_pending)
            }
            Ask::Confirm { order, reference } => self.confirm(shop, *order, reference),
            Ask::Expire { order } => self.expire(shop, *order),
            put @ Ask::PutProduct { .. } => (0, put_product(shop, put, now_ms)),
            Ask::Adjust { product, delta, reason, highest } => {
                (0, adjust(shop, PRODUCTS[*product], *delta, *reason, *highest))
            }
            Ask::PutTemplate { template, terms } => {
                let (template_id, terms) =
                    (TEMPLATES[*template].to_owned(), terms_at(terms, now_ms));
                let body = Body::PutTemplate(template_id.clone(), terms.clone());
                (0, (Request::PutTemplate { template_id, terms }, body))
            }
        };
        let key = match job.key {
            Key::Name(n) => Some(Idempotency {
                scope: format!("{} key {n}", USERS[user]),
                request_hash: Blob(Sha1::digest(format!("{request:?}"))[..16].to_vec()),
            }),
            _ => None,
        };
        Sent { request, body, key }
    }

    fn place(&self, shop: &Shop, ask: &Ask, now_ms: i64) -> (Request, Body) {
        let Ask::CellState { user, lines, coupon, expected, payment, reference } = ask else {
            panic!("no order: {ask:?}");
        };
        let user_id = USERS[*user].to_owned();
        let mut merged: Vec<(String, u64)> = Vec::new();
        for (product, quantity) in lines {
            let id = PRODUCTS[*product];
            if !merged.iter().any(|(seen, _)| seen == id) {
                merged.push((id.to_owned(), pieces(shop, &user_id, id, *quantity)));
            }
        }
        let own = shop.coupons_of.get(&user_id).map_or(&[][..], Vec::as_slice);
        let coupon_id = match *coupon {
            CouponOf::None => None,
            CouponOf::Unused(n) => {
                let unused = own.iter().filter(|id| shop.coupons[*id].order_id.is_none());
                nth(&unused.collect::<Vec<_>>(), n).map(|id| **id)
            }
            CouponOf::Own(n) => nth(own, n).copied(),
            CouponOf::Any(n) => nth(&shop.coupons.keys().collect::<Vec<_>>(), n).map(|id| **id),
            CouponOf::Unknown => Some(id_from(0)),
        };
        let with = |expected_total, outside| Request::PlaceOrder {
            user_id: user_id.clone(),
            lines: merged.clone(),
            coupon_id,
            expected_total,
            reference: reference.map(str::to_owned),
            outside,
            order_id: Id(Uuid::nil()),
        };
        // A total that no client expects: the refusal then names the real total.
        let total = match shop.refusal(&with(Some(u64::MAX), None), now_ms) {
            Some(Refusal::Order(OrderRefusal::PriceChanged(total))) => total,
            _ => 0,
        };
        let expected_total = match expected {
            Expected::None => None,
            Expected::Total { beyond } => Some(total + beyond),
        };
        let outside = pay_outside(shop, &user_id, *payment, total);
        let more = (reference.is_some() || outside.is_some()).then(|| {
            let outside = outside.map(|it| (it.wallet_amount, it.hold_ms, it.pending_limit));
            (reference.map(str::to_owned), outside)
        });
        let (lines, user) = (merged.clone(), user_id.clone());
        let body = Body::Place(Id(Uuid::nil()), user, lines, coupon_id, expected_total, more);
        (with(expected_total, outside), body)
    }

    /// `None`: PostgreSQL does not have the order.
    fn find<'a>(&self, shop: &'a Shop, order: OrderOf) -> Option<&'a Order> {
        let placed: Vec<&Order> =
            self.placed.iter().rev().filter_map(|id| shop.orders.get(id)).collect();
        let of = |chosen: &dyn Fn(&Order) -> bool| -> Vec<&'a Order> {
            placed.iter().copied().filter(|order| chosen(order)).collect()
        };
        let live =
            |order: &Order| matches!(order.status(), OrderStatus::Paid | OrderStatus::Pending);
        let pending = |order: &Order| order.status() == OrderStatus::Pending;
        let (chosen, n) = match order {
            OrderOf::Live(n) => (of(&live), n),
            OrderOf::WithCoupon(n) => {
                (of(&|order| live(order) && order.placed.coupon_id.is_some()), n)
            }
            OrderOf::Pending(n) => (of(&pending), n),
            OrderOf::Due(n) => {
                let mut due = of(&pending);
                due.sort_by_key(|order| order.hold_expires_at());
                (due, n)
            }
            OrderOf::Placed(n) => (vec![], n),
            OrderOf::Invented { .. } => return None,
        };
        nth(if chosen.is_empty() { &placed } else { &chosen }, n).copied()
    }

    /// A cancellation with the order's details from PostgreSQL; the number tells whose order it is.
    fn cancel(
        &self,
        shop: &Shop,
        of: OrderOf,
        read_in: u64,
        as_pending: bool,
    ) -> (usize, (Request, Body)) {
        let order = self.find(shop, of);
        let Taken { order_id, user, lines, won, coupon_id, limits } = Taken::of(order, of);
        // An order that has expired is refused by what PostgreSQL has of it. So the gate only meets
        // it when it was read before.
        let was_pending = order.is_some_and(|order| match order.status() {
            OrderStatus::Pending | OrderStatus::Expired => true,
            _ => as_pending && order.hold_expires_at().is_some(),
        });
        let paid_outside = match order {
            Some(order) if was_pending => order.outside().map(|_| 0),
            Some(order) => order.paid_outside(),
            None => None,
        };
        let user_id = USERS[user].to_owned();
        let body = Body::Cancel(
            order_id,
            user_id,
            lines,
            won,
            coupon_id,
            limits,
            read_in,
            was_pending,
            paid_outside,
        );
        (user, (Request::CancelOrder { order_id }, body))
    }

    fn confirm(&self, shop: &Shop, of: OrderOf, reference: &str) -> (usize, (Request, Body)) {
        let Taken { order_id, user, .. } = Taken::of(self.find(shop, of), of);
        let payment_reference = reference.to_owned();
        let body = Body::Confirm(order_id, payment_reference.clone());
        (user, (Request::ConfirmOrder { order_id, payment_reference }, body))
    }

    fn expire(&self, shop: &Shop, of: OrderOf) -> (usize, (Request, Body)) {
        let Taken { order_id, user, lines, won, coupon_id, limits } =
            Taken::of(self.find(shop, of), of);
        let body = Body::Expire(order_id, USERS[user].to_owned(), lines, won, coupon_id, limits);
        (user, (Request::ExpireOrder { order_id }, body))
    }
}

/// What an order has taken.
struct Taken {
    order_id: Id,
    user: usize,
    lines: Vec<(String, u64)>,
    won: u64,
    coupon_id: Option<Id>,
    limits: Option<Vec<u64>>,
}

impl Taken {
    fn of(order: Option<&Order>, of: OrderOf) -> Self {
        let Some(order) = order else {
            let user = if let OrderOf::Invented { user } = of { user } else { 0 };
            let lines = vec![(PRODUCTS[PRODUCTS.len() - 1].to_owned(), 1)];
            let order_id = id_from(0);
            return Self { order_id, user, lines, won: 0, coupon_id: None, limits: None };
        };
        let placed = &order.placed;
        let limits: Vec<u64> =
            (0..placed.lines.len()).map(|line| order.limit_of(line).unwrap_or(0)).collect();
        Self {
            order_id: placed.order_id,
            user: USERS.iter().position(|id| *id == placed.user_id).unwrap_or(0),
            lines: placed.lines.iter().map(|l| (l.product_id.clone(), l.quantity)).collect(),
            won: order.wallet_amount(),
            coupon_id: placed.coupon_id,
            limits: limits.iter().any(|number| *number > 0).then_some(limits),
        }
    }
}

fn pay_outside(shop: &Shop, user_id: &str, payment: Payment, total: u64) -> Option<PayOutside> {
    let Payment::Outside { wallet, hold_ms, pending_limit } = payment else { return None };
    let balance = shop.wallets.get(user_id).copied().unwrap_or(0);
    let wallet_amount = match wallet {
        WalletPart::Won(won) => won,
        WalletPart::Total { less } => total.saturating_sub(less),
        WalletPart::Balance { beyond } => balance + beyond,
        WalletPart::AboveTotal { beyond } => total + beyond,
    };
    Some(PayOutside { wallet_amount, hold_ms, pending_limit })
}

fn put_product(shop: &Shop, ask: &Ask, now_ms: i64) -> (Request, Body) {
    let Ask::PutProduct { product, name, price, status, stock, rules } = ask else {
        panic!("no product: {ask:?}");
    };
    let (product_id, name) = (PRODUCTS[*product].to_owned(), (*name).to_owned());
    let stock = match stock {
        Stock::Given(stock) => Some(*stock),
        Stock::IfNew(stock) if !shop.products.contains_key(&product_id) => Some(*stock),
        _ => None,
    };
    let rules = SaleRules {
        sale_from: rules.from_ms.map(|ms| now_ms + ms),
        sale_until: rules.until_ms.map(|ms| now_ms + ms),
        per_user_limit: rules.per_user_limit,
        attributes: rules.attributes.map(str::to_owned),
    };
    let packed = (!rules.is_empty()).then(|| {
        let SaleRules { sale_from, sale_until, per_user_limit, attributes } = rules.clone();
        (sale_from, sale_until, per_user_limit, attributes)
    });
    let (price, status) = (*price, *status);
    let body = Body::PutProduct(product_id.clone(), name.clone(), price, status, stock, packed);
    (Request::PutProduct { product_id, name, price, status, stock, rules }, body)
}

impl Sent {
    /// Replaces the id that the request's coupon, charge or order would get.
    fn renew(&mut self, new: Id) {
        match (&mut self.request, &mut self.body) {
            (Request::IssueCoupon { coupon_id: id, .. }, Body::Issue(_, _, in_body))
            | (Request::ChargeWallet { charge_id: id, .. }, Body::Charge(_, _, in_body))
            | (Request::PlaceOrder { order_id: id, .. }, Body::Place(in_body, ..)) => {
                (*id, *in_body) = (new, new);
            }
            _ => {}
        }
    }
}

fn issue(template: usize, user: usize) -> (Request, Body) {
    let (template_id, user_id) = (TEMPLATES[template].to_owned(), USERS[user].to_owned());
    let coupon_id = Id(Uuid::nil());
    let body = Body::Issue(template_id.clone(), user_id.clone(), coupon_id);
    (Request::IssueCoupon { template_id, user_id, coupon_id }, body)
}

fn charge(shop: &Shop, user: usize, amount: Amount) -> (Request, Body) {
    let user_id = USERS[user].to_owned();
    let balance = shop.wallets.get(&user_id).copied().unwrap_or(0);
    let amount = match amount {
        Amount::Won(won) => won,
        // What pending orders took counts towards the limit.
        Amount::ToLimit { beyond } => {
            MAX_BALANCE - balance - shop.held_in_pending(&user_id) + beyond
        }
        Amount::ToPrice { product, less } => {
            let price = shop.products.get(PRODUCTS[product]).map_or(1, |product| product.price);
            (2 * price - less - balance % price) % price
        }
    };
    let amount = amount.min(MAX_BALANCE);
    let charge_id = Id(Uuid::nil());
    (
        Request::ChargeWallet { user_id: user_id.clone(), amount, charge_id },
        Body::Charge(user_id, amount, charge_id),
    )
}

fn adjust(
    shop: &Shop,
    id: &str,
    delta: Delta,
    reason: Option<&str>,
    highest: u64,
) -> (Request, Body) {
    let stock = shop.products.get(id).map_or(0, |product| product.stock);
    let delta = match delta {
        Delta::Pieces(n) => n,
        Delta::Left { beyond } => -(stock + beyond).cast_signed(),
        Delta::ToHighest { beyond } => (highest + beyond).cast_signed() - stock.cast_signed(),
    };
    let (product_id, reason) = (id.to_owned(), reason.map(str::to_owned));
    let body = Body::Adjust(product_id.clone(), delta, reason.clone(), highest);
    (Request::AdjustStock { product_id, delta, reason, highest }, body)
}

fn pieces(shop: &Shop, user_id: &str, product_id: &str, quantity: Quantity) -> u64 {
    let balance = shop.wallets.get(user_id).copied().unwrap_or(0);
    let (price, stock) = shop.products.get(product_id).map_or((1, 0), |p| (p.price, p.stock));
    let wanted = match quantity {
        Quantity::Pieces(n) => n,
        Quantity::Affordable { beyond } => (balance / price + beyond).min(stock),
        Quantity::Left { beyond } => stock + beyond,
    };
    wanted.clamp(1, MAX_QUANTITY)
}

fn terms_at(terms: &Terms, now_ms: i64) -> TemplateTerms {
    let (kind, value, max) = terms.discount;
    TemplateTerms {
        name: terms.name.to_owned(),
        discount_type: kind.to_owned(),
        discount_value: value,
        discount_max: max,
        min_subtotal: terms.min_subtotal,
        max_issued: terms.max_issued,
        issue_from: now_ms + terms.from_ms,
        issue_until: now_ms + terms.from_ms + terms.length_ms,
    }
}

fn read_epoch(read_in: ReadIn, epoch: u64) -> u64 {
    match read_in {
        ReadIn::This => epoch,
        ReadIn::Earlier => epoch - 1,
        ReadIn::Later => epoch + 1,
    }
}

/// Deterministic ids of arbitrary bytes, the same in every run of a case. 0 gives an id that
/// nothing ever has.
fn id_from(n: u64) -> Id {
    let digest = Sha1::digest(n.to_be_bytes());
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&digest[..16]);
    Id(Uuid::from_bytes(bytes))
}
