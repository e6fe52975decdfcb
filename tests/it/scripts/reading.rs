//! Reads: what the API requests from `lua/read.lua`, and the model's answers.

use rushgate::domain::CouponStatus;
use rushgate::domain::fact::TemplateTerms;
use rushgate::domain::limits::COUPON_USABLE_MS;
use rushgate::domain::wire::{Blob, Id};
use rushgate::redis::held_coupons;
use rushgate::redis::records::{ProductRecord, TemplateRecord};
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt::Debug;
use uuid::Uuid;

use super::kind::unpacked;
use super::plan::{AfterCoupon, PRODUCTS, Read, TEMPLATES, USERS, nth};
use super::state::terms;
use crate::history::model::{Coupon, Product, Shop};

/// A read in the form that the script takes.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub enum Wanted {
    Of(&'static str, &'static str),
    Some(&'static str, Vec<&'static str>),
    Both(&'static str, Vec<&'static str>, Vec<&'static str>),
    List(&'static str, &'static str, usize),
    Held(&'static str, &'static str, &'static str, usize, Blob),
}

/// Number, terms, coupons issued.
type Template = (u64, TemplateTerms, u64);

pub fn wanted(shop: &Shop, read: &Read) -> Wanted {
    let named = |ids: &[usize], names: &[&'static str]| ids.iter().map(|id| names[*id]).collect();
    match read {
        Read::Balance(user) => Wanted::Of("balance", USERS[*user]),
        Read::Held { user, status, limit, after } => {
            let after = after_id(shop, *user, *after).map_or(vec![], |id| id.0.as_bytes().to_vec());
            Wanted::Held(
                "held",
                USERS[*user],
                status.map_or("", CouponStatus::name),
                *limit,
                Blob(after),
            )
        }
        Read::Products(ids) => Wanted::Some("products", named(ids, &PRODUCTS)),
        Read::Watched(products, templates) => {
            Wanted::Both("watched", named(products, &PRODUCTS), named(templates, &TEMPLATES))
        }
        Read::Templates(ids) => Wanted::Some("templates", named(ids, &TEMPLATES)),
        Read::ListProducts { after, limit } => {
            Wanted::List("list_products", after.map_or("", |id| PRODUCTS[id]), *limit)
        }
        Read::ListTemplates { after, limit } => {
            Wanted::List("list_templates", after.map_or("", |id| TEMPLATES[id]), *limit)
        }
    }
}

/// Everything that can be read.
pub fn everything() -> Vec<Read> {
    let mut all = vec![
        Read::Products((0..PRODUCTS.len()).collect()),
        Read::ListProducts { after: None, limit: 100 },
        Read::Templates((0..TEMPLATES.len()).collect()),
        Read::ListTemplates { after: None, limit: 100 },
    ];
    all.extend((0..USERS.len()).flat_map(|user| {
        [Read::Balance(user), Read::Held { user, status: None, limit: 1_000, after: None }]
    }));
    all
}

/// `now` is the gate's clock from the call's reply.
pub fn compare(shop: &Shop, read: &Read, answer: &[u8], now: i64) -> Result<(), String> {
    match read {
        Read::Balance(user) => {
            let told: Option<String> = unpacked(answer)?;
            let should = shop.wallets.get(USERS[*user]);
            same(read, &told, &should.map(|balance| balance.to_string()))
        }
        Read::Products(ids) => {
            same(read, &products(answer)?, &chosen(ids, &PRODUCTS, |id| product(shop, id)))
        }
        Read::Watched(of_products, of_templates) => {
            type Rows = Vec<(String, Blob, u64)>;
            let (then, rows, more): (i64, Rows, Rows) = unpacked(answer)?;
            same(read, &then, &now)?;
            let should = chosen(of_products, &PRODUCTS, |id| product(shop, id));
            same(read, &products_of(rows)?, &should)?;
            let should = chosen(of_templates, &TEMPLATES, |id| template(shop, id));
            same(read, &templates_of(more)?, &should)
        }
        Read::Templates(ids) => {
            same(read, &templates(answer)?, &chosen(ids, &TEMPLATES, |id| template(shop, id)))
        }
        Read::ListProducts { after, limit } => {
            let above = shop
                .products
                .keys()
                .filter(|id| after.is_none_or(|after| id.as_str() > PRODUCTS[after]));
            let should: Vec<_> = above.take(*limit).filter_map(|id| product(shop, id)).collect();
            same(read, &products(answer)?, &should)
        }
        Read::ListTemplates { after, limit } => {
            let above = shop
                .templates
                .keys()
                .filter(|id| after.is_none_or(|after| id.as_str() > TEMPLATES[after]));
            let should: Vec<_> = above.take(*limit).filter_map(|id| template(shop, id)).collect();
            same(read, &templates(answer)?, &should)
        }
        Read::Held { user, status, limit, after } => {
            let told = held(answer, USERS[*user])?;
            let after = after_id(shop, *user, *after);
            let mut own: Vec<Id> = shop.coupons_of.get(USERS[*user]).cloned().unwrap_or_default();
            own.sort_unstable_by_key(|id| std::cmp::Reverse((shop.coupons[id].issued_at, id.0)));
            let begin = match after {
                None => Some(0),
                Some(after) => own.iter().position(|id| *id == after).map(|place| place + 1),
            };
            let should = begin.map(|begin| {
                let wanted =
                    own[begin..].iter().filter(|id| has_status(&shop.coupons[*id], *status, now));
                (now, wanted.take(*limit).map(|id| held_coupon(shop, *id)).collect())
            });
            same(read, &told, &should)
        }
    }
}

fn has_status(coupon: &Coupon, status: Option<CouponStatus>, now: i64) -> bool {
    let is = CouponStatus::at(coupon.order_id.is_some(), coupon.issued_at + COUPON_USABLE_MS, now);
    status.is_none_or(|status| status == is)
}

/// The coupon after which a page begins.
fn after_id(shop: &Shop, user: usize, after: Option<AfterCoupon>) -> Option<Id> {
    let own = shop.coupons_of.get(USERS[user]).map_or(&[][..], Vec::as_slice);
    match after? {
        AfterCoupon::Own(n) => nth(own, n).copied(),
        AfterCoupon::Unknown => Some(Id(Uuid::from_u128(1))),
    }
}

fn same<T: PartialEq + Debug>(read: &Read, told: &T, should: &T) -> Result<(), String> {
    if told == should {
        Ok(())
    } else {
        Err(format!("{read:?} was answered {told:?}; it should be {should:?}"))
    }
}

/// Unknown ones are omitted.
fn chosen<T>(ids: &[usize], names: &[&str], find: impl Fn(&str) -> Option<T>) -> Vec<T> {
    ids.iter().filter_map(|id| find(names[*id])).collect()
}

fn product(shop: &Shop, id: &str) -> Option<(String, Product)> {
    shop.products.get(id).map(|product| (id.to_owned(), product.clone()))
}

fn template(shop: &Shop, id: &str) -> Option<(String, Template)> {
    shop.templates.get(id).map(|t| (id.to_owned(), (t.number, t.terms.clone(), t.issued)))
}

fn held_coupon(shop: &Shop, id: Id) -> (Id, Coupon, Template) {
    let coupon = shop.coupons[&id].clone();
    let template = &shop.templates[&coupon.template_id];
    (id, coupon, (template.number, template.terms.clone(), template.issued))
}

fn products(answer: &[u8]) -> Result<Vec<(String, Product)>, String> {
    products_of(unpacked(answer)?)
}

fn products_of(rows: Vec<(String, Blob, u64)>) -> Result<Vec<(String, Product)>, String> {
    rows.into_iter()
        .map(|(id, record, stock)| {
            let ProductRecord { name, price, status } = unpacked(&record.0)?;
            Ok((id, Product { name, price, status, stock }))
        })
        .collect()
}

fn template_record(record: &Blob, issued: u64) -> Result<Template, String> {
    let (number, terms) = terms(unpacked::<TemplateRecord>(&record.0)?);
    Ok((number, terms, issued))
}

fn templates(answer: &[u8]) -> Result<Vec<(String, Template)>, String> {
    templates_of(unpacked(answer)?)
}

fn templates_of(rows: Vec<(String, Blob, u64)>) -> Result<Vec<(String, Template)>, String> {
    rows.into_iter()
        .map(|(id, record, issued)| Ok((id, template_record(&record, issued)?)))
        .collect()
}

/// A user's coupons and the time of the read. The answer names each template once, in any order.
type Told = (i64, Vec<(Id, Coupon, Template)>);

/// `None` means that the page was to begin after a coupon that the user does not hold.
fn held(answer: &[u8], user: &str) -> Result<Option<Told>, String> {
    type Packed = (i64, Blob, Vec<(String, Blob, u64)>, Option<Id>);
    let Some((now, value, rows, _)) = unpacked::<Option<Packed>>(answer)? else { return Ok(None) };
    let (coupons, rest) = held_coupons::coupons(&value.0);
    if !rest.is_empty() {
        return Err(format!("half a coupon: {rest:02x?}"));
    }
    let mut templates = BTreeMap::new();
    for (id, record, issued) in rows {
        let template = template_record(&record, issued)?;
        if templates.insert(template.0, (id, template)).is_some() {
            return Err("a template twice".to_owned());
        }
    }
    let coupons = coupons.into_iter().map(|held| {
        let number = u64::from(held.template_number);
        let (template_id, template) =
            templates.get(&number).ok_or("a coupon without its template")?;
        let coupon = Coupon {
            template_id: template_id.clone(),
            user_id: user.to_owned(),
            serial: u64::from(held.serial),
            issued_at: held.issued_at,
            order_id: held.order_id.map(Id),
        };
        Ok((Id(held.coupon_id), coupon, template.clone()))
    });
    Ok(Some((now, coupons.collect::<Result<_, String>>()?)))
}
