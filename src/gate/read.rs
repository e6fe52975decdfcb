//! Converts the answers of `lua/read.lua` to domain types.

use bytes::Bytes;
use serde::Deserialize;
use std::collections::HashMap;
use uuid::Uuid;

use super::refusal::{GateError, HeldCoupon};
use crate::domain::fact::PendingOrder;
use crate::domain::limits::COUPON_USABLE_MS;
use crate::domain::wire::{Blob, Id};
use crate::domain::{
    CouponTemplate, Discount, Product, ProductId, SalePhase, SaleRules, TemplateId, TimestampMs,
};
use crate::redis::held_coupons;
use crate::redis::records::{ProductRecord, TemplateRecord, TermsRecord};

/// The bytes do not have the format that [`crate::redis::keys`] documents: another writer has
/// changed the gate.
fn unreadable(what: &str) -> GateError {
    GateError::Unavailable(format!("the gate holds an unreadable {what}; see the audit"))
}

fn unpack<'a, T: Deserialize<'a>>(bytes: &'a [u8], what: &str) -> Result<T, GateError> {
    rmp_serde::from_slice(bytes).map_err(|_| unreadable(what))
}

pub(super) fn balance(answer: &[u8]) -> Result<Option<u64>, GateError> {
    let balance: Option<String> = unpack(answer, "balance")?;
    balance.map(|text| text.parse().map_err(|_| unreadable("balance"))).transpose()
}

/// A list of products, still packed as the gate returned it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PackedProducts(pub(super) Bytes);

impl PackedProducts {
    #[cfg(test)]
    pub(crate) fn of(told: Bytes) -> Self {
        Self(told)
    }

    /// A copy in its own allocation, for caching: the original is a slice of the whole batch's
    /// answer and would keep all of it alive.
    pub fn alone(&self) -> Self {
        Self(Bytes::copy_from_slice(&self.0))
    }

    pub fn unpack(&self) -> Result<Vec<Product>, GateError> {
        products(&self.0)
    }

    pub fn byte_len(&self) -> usize {
        self.0.len()
    }
}

/// Id, packed product, stock, and if it has rules or attributes: phase of its sale, attributes.
#[derive(Deserialize)]
struct ProductRow(
    String,
    Blob,
    u64,
    #[serde(default)] Option<SalePhase>,
    #[serde(default)] Option<String>,
);

/// Id, packed template, coupons issued.
type TemplateRow = (String, Blob, u64);

pub(super) fn products(answer: &[u8]) -> Result<Vec<Product>, GateError> {
    products_of(unpack(answer, "product list")?)
}

fn products_of(rows: Vec<ProductRow>) -> Result<Vec<Product>, GateError> {
    rows.into_iter()
        .map(|ProductRow(id, packed, stock, phase, attributes)| {
            let record: ProductRecord = unpack(&packed.0, "product")?;
            let product_id = ProductId::parse(id).map_err(|_| unreadable("product id"))?;
            Ok(Product {
                product_id,
                name: record.name,
                price: record.price,
                status: record.status,
                stock,
                rules: SaleRules {
                    sale_from: record.sale_from,
                    sale_until: record.sale_until,
                    per_user_limit: record.per_user_limit,
                    attributes,
                },
                limit_number: record.limit_number,
                phase: phase.unwrap_or_default(),
            })
        })
        .collect()
}

fn template(id: String, packed: &[u8], issued: u64) -> Result<CouponTemplate, GateError> {
    let record: TemplateRecord = unpack(packed, "template")?;
    let id = TemplateId::parse(id).map_err(|_| unreadable("template id"))?;
    record.template(id, issued).ok_or_else(|| unreadable("discount"))
}

/// The terms that coupons were issued with: their number, the template's id, the template, the terms
/// if they are not its present ones, coupons issued.
#[derive(Deserialize)]
struct TermsRow(u64, String, Blob, Option<Blob>, u64);

impl TermsRow {
    /// The number, and the template as its coupons know it.
    fn template(self) -> Result<(u64, CouponTemplate), GateError> {
        let Self(number, id, packed, earlier, issued) = self;
        let mut template = template(id, &packed.0, issued)?;
        if let Some(earlier) = earlier {
            (template.discount, template.min_subtotal) = terms(&earlier.0)?;
        }
        Ok((number, template))
    }
}

/// Discount and minimum subtotal.
fn terms(packed: &[u8]) -> Result<(Discount, u64), GateError> {
    let record: TermsRecord = unpack(packed, "coupon's terms")?;
    Ok((record.discount().ok_or_else(|| unreadable("discount"))?, record.min_subtotal))
}

/// `None`: the template has no terms of that number.
pub(super) fn issued_terms(answer: &[u8]) -> Result<Option<(Discount, u64)>, GateError> {
    let packed: Option<Blob> = unpack(answer, "coupon's terms")?;
    packed.map(|packed| terms(&packed.0)).transpose()
}

/// The pieces that a user has bought under limits.
pub(super) fn bought(answer: &[u8]) -> Result<Vec<u64>, GateError> {
    unpack(answer, "purchases")
}

/// The number of a user's pending orders.
pub(super) fn pending_count(answer: &[u8]) -> Result<u64, GateError> {
    unpack(answer, "number of pending orders")
}

/// Pending orders whose holds are over.
pub(super) fn due(answer: &[u8]) -> Result<Vec<(Uuid, PendingOrder)>, GateError> {
    let rows: Vec<(Id, Blob)> = unpack(answer, "list of pending orders")?;
    rows.into_iter().map(|(id, packed)| Ok((id.0, unpack(&packed.0, "pending order")?))).collect()
}

pub(super) fn templates(answer: &[u8]) -> Result<Vec<CouponTemplate>, GateError> {
    templates_of(unpack(answer, "template list")?)
}

fn templates_of(rows: Vec<TemplateRow>) -> Result<Vec<CouponTemplate>, GateError> {
    rows.into_iter().map(|(id, packed, issued)| template(id, &packed.0, issued)).collect()
}

/// Products and templates at one moment of the gate's clock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Watched {
    pub now: TimestampMs,
    pub products: Vec<Product>,
    pub templates: Vec<CouponTemplate>,
}

pub(super) fn watched(answer: &[u8]) -> Result<Watched, GateError> {
    let (now, products, templates) = unpack(answer, "list of what is watched")?;
    Ok(Watched { now, products: products_of(products)?, templates: templates_of(templates)? })
}

/// A page of a user's coupons, in the order of `lua/read.lua`: newest first; within one millisecond
/// the highest id first.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct HeldPage {
    pub now: TimestampMs,
    pub coupons: Vec<HeldCoupon>,
    /// The last coupon that the script examined; `None` if there are no more.
    pub go_on_after: Option<Uuid>,
}

/// `None`: the user does not hold the coupon that the page should start after.
pub(super) fn held(answer: &[u8]) -> Result<Option<HeldPage>, GateError> {
    type Told = (TimestampMs, Blob, Vec<TermsRow>, Option<Id>);
    let Some((now, elements, rows, go_on)) = unpack::<Option<Told>>(answer, "list of coupons")?
    else {
        return Ok(None);
    };
    let templates: HashMap<u64, CouponTemplate> =
        rows.into_iter().map(TermsRow::template).collect::<Result<_, _>>()?;
    let (coupons, rest) = held_coupons::coupons(&elements.0);
    if !rest.is_empty() {
        return Err(unreadable("coupon"));
    }
    let coupons = coupons.into_iter().map(|coupon| {
        let template = templates.get(&u64::from(coupon.terms_number));
        let template = template.ok_or_else(|| unreadable("coupon's template"))?.clone();
        Ok(HeldCoupon {
            coupon_id: coupon.coupon_id,
            template,
            serial: u64::from(coupon.serial),
            issued_at: coupon.issued_at,
            expires_at: coupon.issued_at + COUPON_USABLE_MS,
            order_id: coupon.order_id,
        })
    });
    let coupons = coupons.collect::<Result<_, GateError>>()?;
    Ok(Some(HeldPage { now, coupons, go_on_after: go_on.map(|id| id.0) }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn coupon(id: u128, issued_at: TimestampMs) -> Vec<u8> {
        let coupon_id = Uuid::from_u128(id);
        let coupon = held_coupons::HeldCoupon {
            terms_number: 7,
            coupon_id,
            serial: 1,
            issued_at,
            order_id: None,
        };
        coupon.to_bytes().to_vec()
    }

    fn answer(coupons: &[Vec<u8>]) -> Vec<u8> {
        let template = TemplateRecord {
            number: 7,
            name: "T".to_owned(),
            discount_type: "amount".to_owned(),
            discount_value: 100,
            discount_max: None,
            min_subtotal: 0,
            max_issued: 10,
            issue_from: 0,
            issue_until: 1,
            later_terms: None,
        };
        let packed = Blob(rmp_serde::to_vec(&template).unwrap());
        let go_on = Some(Id(Uuid::from_u128(9)));
        crate::domain::wire::pack(&(
            50,
            Blob(coupons.concat()),
            [(7, "t", packed, None::<Blob>, 1)],
            go_on,
        ))
        .unwrap()
    }

    #[test]
    fn a_part_of_a_users_coupons_is_read_in_its_order() {
        let page = held(&answer(&[coupon(3, 7), coupon(2, 7), coupon(1, 5)])).unwrap().unwrap();
        let listed: Vec<u128> =
            page.coupons.iter().map(|coupon| coupon.coupon_id.as_u128()).collect();
        assert_eq!(
            (listed, page.now, page.go_on_after),
            (vec![3, 2, 1], 50, Some(Uuid::from_u128(9)))
        );
        assert_eq!(held(&[0xc0]), Ok(None), "nil: `after` is none of the user's");
    }

    #[test]
    fn what_is_no_list_of_coupons_is_refused() {
        assert!(held(&answer(&[])).unwrap().unwrap().coupons.is_empty());
        assert!(held(&answer(&[coupon(1, 5), vec![0]])).is_err());
        let mut of_another = coupon(1, 5);
        of_another[3] = 8;
        assert!(held(&answer(&[of_another])).is_err());
    }
}
