//! Reads: what the API requests from `lua/read.lua`, and the model's answers.

use rushgate::domain::fact::{PendingOrder, TemplateTerms};
use rushgate::domain::limits::COUPON_USABLE_MS;
use rushgate::domain::wire::{Blob, Id};
use rushgate::domain::{CouponStatus, SalePhase};
use rushgate::redis::held_coupons;
use rushgate::redis::records::{LaterTerms, ProductRecord, TemplateRecord, TermsRecord};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt::Debug;
use uuid::Uuid;

use super::kind::unpacked;
use super::plan::{AfterCoupon, Nth, PRODUCTS, Read, TEMPLATES, USERS, nth};
use super::state::{later_terms, product_record, terms, terms_record};
use crate::history::model::{self, Coupon, CouponTerms, Shop};

/// A read in the form that the script takes.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub enum Wanted {
    Of(&'static str, &'static str),
    Some(&'static str, Vec<&'static str>),
    Both(&'static str, Vec<&'static str>, Vec<&'static str>),
    List(&'static str, &'static str, usize),
    Held(&'static str, &'static str, &'static str, usize, Blob),
    Coupon(&'static str, &'static str, Blob),
    Terms(&'static str, &'static str, Option<u64>),
    Bought(&'static str, &'static str, Vec<u64>),
    Due(&'static str, usize),
}

/// Number, terms, later terms, coupons issued.
type Template = (u64, TemplateTerms, Option<LaterTerms>, u64);
/// A coupon, its template, and the terms that it was issued with.
type Held = (Id, Coupon, Template, TermsRecord);
/// As it is stored, stock, where its sale stands, attributes.
type Product = (ProductRecord, u64, SalePhase, Option<String>);

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
        Read::Coupon { user, coupon } => {
            let id = after_id(shop, *user, Some(*coupon)).unwrap_or(Id(Uuid::nil()));
            Wanted::Coupon("coupon", USERS[*user], Blob(id.0.as_bytes().to_vec()))
        }
        Read::Terms { template, version } => {
            Wanted::Terms("terms", TEMPLATES[*template], version_number(shop, *template, *version))
        }
        Read::Bought(user) => Wanted::Bought("bought", USERS[*user], limits(shop)),
        Read::Pending(user) => Wanted::Of("pending", USERS[*user]),
        Read::Due { most } => Wanted::Due("due", *most),
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
        Read::Due { most: 1_000 },
    ];
    all.extend((0..USERS.len()).flat_map(|user| {
        [
            Read::Balance(user),
            Read::Held { user, status: None, limit: 1_000, after: None },
            Read::Bought(user),
            Read::Pending(user),
        ]
    }));
    all
}

/// The numbers of all limits there ever were, and one that never was.
fn limits(shop: &Shop) -> Vec<u64> {
    (1..=shop.limits + 1).collect()
}

fn version_number(shop: &Shop, template: usize, version: Option<Nth>) -> Option<u64> {
    let versions = shop.templates.get(TEMPLATES[template]).map(|t| t.versions.as_slice());
    version.map(|n| nth(versions.unwrap_or_default(), n).map_or(9_999, |version| version.number))
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
            same(read, &products(answer)?, &chosen(ids, &PRODUCTS, |id| product(shop, id, now)))
        }
        Read::Watched(of_products, of_templates) => {
            type Templates = Vec<(String, Blob, u64)>;
            let (then, rows, more): (i64, Vec<ProductRow>, Templates) = unpacked(answer)?;
            same(read, &then, &now)?;
            let should = chosen(of_products, &PRODUCTS, |id| {
                product(shop, id, now)
                    .map(|(id, (record, stock, phase, _))| (id, (record, stock, phase, None)))
            });
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
            let should: Vec<_> =
                above.take(*limit).filter_map(|id| product(shop, id, now)).collect();
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
        Read::Coupon { user, coupon } => {
            let own = after_id(shop, *user, Some(*coupon)).filter(|id| {
                shop.coupons.get(id).is_some_and(|coupon| coupon.user_id == USERS[*user])
            });
            let should = own.map(|id| (now, vec![held_coupon(shop, id)]));
            same(read, &held(answer, USERS[*user])?, &should)
        }
        Read::Terms { template, version } => {
            let told = unpacked::<Option<Blob>>(answer)?
                .map(|packed| unpacked::<TermsRecord>(&packed.0))
                .transpose()?;
            let number = version_number(shop, *template, *version);
            let should = shop
                .templates
                .get(TEMPLATES[*template])
                .map(|template| terms_record(template.terms_of(number.unwrap_or(template.number))));
            same(read, &told, &should)
        }
        Read::Bought(user) => {
            let should: Vec<u64> =
                limits(shop).into_iter().map(|number| shop.bought(number, USERS[*user])).collect();
            same(read, &unpacked(answer)?, &should)
        }
        Read::Pending(user) => {
            let should =
                shop.pending_of.get(USERS[*user]).map_or(0, std::collections::BTreeSet::len);
            same(read, &unpacked(answer)?, &should)
        }
        Read::Due { most } => {
            let told = unpacked::<Vec<(Id, Blob)>>(answer)?
                .into_iter()
                .map(|(id, packed)| Ok((id, unpacked(&packed.0)?)))
                .collect::<Result<Vec<(Id, PendingOrder)>, String>>()?;
            let pending = shop.pending_of.values().flatten();
            let mut should: Vec<(Id, PendingOrder)> = pending
                .map(|id| (*id, shop.orders[id].as_pending()))
                .filter(|(_, order)| order.hold_expires_at <= now)
                .collect();
            should.sort_by_key(|(id, order)| (order.hold_expires_at, id.0));
            should.truncate(*most);
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

fn product(shop: &Shop, id: &str, now: i64) -> Option<(String, Product)> {
    let product = shop.products.get(id)?;
    let (phase, attributes) = (product.rules.phase(now), product.rules.attributes.clone());
    Some((id.to_owned(), (product_record(product), product.stock, phase, attributes)))
}

fn template(shop: &Shop, id: &str) -> Option<(String, Template)> {
    shop.templates.get(id).map(|template| (id.to_owned(), as_read(template)))
}

fn as_read(template: &model::Template) -> Template {
    (template.number, template.terms.clone(), later_terms(template), template.issued)
}

fn held_coupon(shop: &Shop, id: Id) -> Held {
    let coupon = shop.coupons[&id].clone();
    let template = &shop.templates[&coupon.template_id];
    let terms = terms_record(template.terms_of(coupon.terms_number));
    (id, coupon, as_read(template), terms)
}

fn products(answer: &[u8]) -> Result<Vec<(String, Product)>, String> {
    products_of(unpacked(answer)?)
}

#[derive(Deserialize)]
struct ProductRow(
    String,
    Blob,
    u64,
    #[serde(default)] Option<SalePhase>,
    #[serde(default)] Option<String>,
);

fn products_of(rows: Vec<ProductRow>) -> Result<Vec<(String, Product)>, String> {
    rows.into_iter()
        .map(|ProductRow(id, record, stock, phase, attributes)| {
            Ok((id, (unpacked(&record.0)?, stock, phase.unwrap_or_default(), attributes)))
        })
        .collect()
}

fn template_record(record: &Blob, issued: u64) -> Result<Template, String> {
    let (number, terms, later) = terms(unpacked::<TemplateRecord>(&record.0)?);
    Ok((number, terms, later, issued))
}

fn templates(answer: &[u8]) -> Result<Vec<(String, Template)>, String> {
    templates_of(unpacked(answer)?)
}

fn templates_of(rows: Vec<(String, Blob, u64)>) -> Result<Vec<(String, Template)>, String> {
    rows.into_iter()
        .map(|(id, record, issued)| Ok((id, template_record(&record, issued)?)))
        .collect()
}

/// A user's coupons and the time of the read. The answer names all terms once, in any order.
type Told = (i64, Vec<Held>);

/// `None` means that the page was to begin after a coupon that the user does not hold.
fn held(answer: &[u8], user: &str) -> Result<Option<Told>, String> {
    type Packed = (i64, Blob, Vec<(u64, String, Blob, Option<Blob>, u64)>, Option<Id>);
    let Some((now, value, rows, _)) = unpacked::<Option<Packed>>(answer)? else { return Ok(None) };
    let (coupons, rest) = held_coupons::coupons(&value.0);
    if !rest.is_empty() {
        return Err(format!("half a coupon: {rest:02x?}"));
    }
    let mut templates = BTreeMap::new();
    for (number, id, record, earlier, issued) in rows {
        let template = template_record(&record, issued)?;
        let terms = match earlier {
            Some(packed) => unpacked(&packed.0)?,
            None => terms_record(&CouponTerms::from(&template.1)),
        };
        if templates.insert(number, (id, template, terms)).is_some() {
            return Err("terms twice".to_owned());
        }
    }
    let coupons = coupons.into_iter().map(|held| {
        let number = u64::from(held.terms_number);
        let (template_id, template, terms) =
            templates.get(&number).ok_or("a coupon without its template")?;
        let coupon = Coupon {
            template_id: template_id.clone(),
            terms_number: number,
            user_id: user.to_owned(),
            serial: u64::from(held.serial),
            issued_at: held.issued_at,
            order_id: held.order_id.map(Id),
        };
        Ok((Id(held.coupon_id), coupon, template.clone(), terms.clone()))
    });
    Ok(Some((now, coupons.collect::<Result<_, String>>()?)))
}
