//! Turns plans into requests with names, numbers and ids, based on the shop's current state.

use rushgate::domain::fact::{Idempotency, TemplateTerms};
use rushgate::domain::limits::{MAX_BALANCE, MAX_QUANTITY};
use rushgate::domain::wire::{Blob, Id};
use sha1::{Digest, Sha1};
use uuid::Uuid;

use super::kind::{Body, Kind};
use super::plan::*;
use crate::history::model::{Refusal, Request, Shop};
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
            Ask::CellState { user, lines, coupon, expected } => {
                (*user, self.place(shop, *user, lines, *coupon, *expected, now_ms))
            }
            Ask::Cancel { order, epoch: read_in } => {
                self.cancel(shop, *order, read_epoch(*read_in, epoch))
            }
            Ask::PutProduct { product, name, price, status, stock } => {
                let (id, name) = (PRODUCTS[*product].to_owned(), (*name).to_owned());
                let stock = match stock {
                    Stock::Given(stock) => Some(*stock),
                    Stock::IfNew(stock) if !shop.products.contains_key(&id) => Some(*stock),
                    _ => None,
                };
                let body = Body::PutProduct(id.clone(), name.clone(), *price, *status, stock);
                (
                    0,
                    (
                        Request::PutProduct {
                            product_id: id,
                            name,
                            price: *price,
                            status: *status,
                            stock,
                        },
                        body,
                    ),
                )
            }
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

    fn place(
        &self,
        shop: &Shop,
        user: usize,
        lines: &[(usize, Quantity)],
        coupon: CouponOf,
        expected: Expected,
        now_ms: i64,
    ) -> (Request, Body) {
        let user_id = USERS[user].to_owned();
        let mut merged: Vec<(String, u64)> = Vec::new();
        for (product, quantity) in lines {
            let id = PRODUCTS[*product];
            if !merged.iter().any(|(seen, _)| seen == id) {
                merged.push((id.to_owned(), pieces(shop, &user_id, id, *quantity)));
            }
        }
        let own = shop.coupons_of.get(&user_id).map_or(&[][..], Vec::as_slice);
        let coupon_id = match coupon {
            CouponOf::None => None,
            CouponOf::Unused(n) => {
                let unused = own.iter().filter(|id| shop.coupons[*id].order_id.is_none());
                nth(&unused.collect::<Vec<_>>(), n).map(|id| **id)
            }
            CouponOf::Own(n) => nth(own, n).copied(),
            CouponOf::Any(n) => nth(&shop.coupons.keys().collect::<Vec<_>>(), n).map(|id| **id),
            CouponOf::Unknown => Some(id_from(0)),
        };
        let with = |expected_total| Request::PlaceOrder {
            user_id: user_id.clone(),
            lines: merged.clone(),
            coupon_id,
            expected_total,
            order_id: Id(Uuid::nil()),
        };
        let expected_total = match expected {
            Expected::None => None,
            // A total that no client expects: the refusal then names the real total.
            Expected::Total { beyond } => match shop.refusal(&with(Some(u64::MAX)), now_ms) {
                Some(Refusal::Order(OrderRefusal::PriceChanged(total))) => Some(total + beyond),
                _ => Some(beyond),
            },
        };
        let body = Body::Place(
            Id(Uuid::nil()),
            user_id.clone(),
            merged.clone(),
            coupon_id,
            expected_total,
        );
        (with(expected_total), body)
    }

    /// A cancellation with the order's details from PostgreSQL; the number tells whose order it is.
    fn cancel(&self, shop: &Shop, order: OrderOf, read_in: u64) -> (usize, (Request, Body)) {
        let latest_first = || self.placed.iter().rev().filter_map(|id| shop.orders.get(id));
        let paid: Vec<_> = latest_first().filter(|order| order.cancelled.is_none()).collect();
        let with_coupon: Vec<_> =
            paid.iter().filter(|order| order.placed.coupon_id.is_some()).copied().collect();
        let found = match order {
            OrderOf::Paid(n) if !paid.is_empty() => nth(&paid, n).copied(),
            OrderOf::WithCoupon(n) if !with_coupon.is_empty() => nth(&with_coupon, n).copied(),
            OrderOf::Paid(n) | OrderOf::WithCoupon(n) | OrderOf::Placed(n) => {
                nth(&latest_first().collect::<Vec<_>>(), n).copied()
            }
            OrderOf::Invented { .. } => None,
        };
        let Some(placed) = found.map(|order| &order.placed) else {
            let user = if let OrderOf::Invented { user } = order { user } else { 0 };
            let order_id = id_from(0);
            let lines = vec![(PRODUCTS[PRODUCTS.len() - 1].to_owned(), 1)];
            let body = Body::Cancel(order_id, USERS[user].to_owned(), lines, 0, None, read_in);
            return (user, (Request::CancelOrder { order_id }, body));
        };
        let lines =
            placed.lines.iter().map(|line| (line.product_id.clone(), line.quantity)).collect();
        let (order_id, user_id) = (placed.order_id, placed.user_id.clone());
        let user = USERS.iter().position(|id| *id == user_id).unwrap_or(0);
        let body = Body::Cancel(order_id, user_id, lines, placed.total, placed.coupon_id, read_in);
        (user, (Request::CancelOrder { order_id }, body))
    }
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
        Amount::ToLimit { beyond } => MAX_BALANCE - balance + beyond,
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
