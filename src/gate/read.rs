//! Converts the answers of `lua/read.lua` to domain types.

use bytes::Bytes;
use serde::Deserialize;
use std::collections::HashMap;
use uuid::Uuid;

use super::refusal::{GateError, HeldCoupon};
use crate::domain::limits::COUPON_USABLE_MS;
use crate::domain::wire::{Blob, Id};
use crate::domain::{CouponTemplate, Product, ProductId, TemplateId, TimestampMs};
use crate::redis::held_coupons;
use crate::redis::records::{ProductRecord, TemplateRecord};

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

/// Id, packed record, stock or coupons issued.
type Row = (String, Blob, u64);

pub(super) fn products(answer: &[u8]) -> Result<Vec<Product>, GateError> {
    products_of(unpack(answer, "product list")?)
}

fn products_of(rows: Vec<Row>) -> Result<Vec<Product>, GateError> {
    rows.into_iter()
        .map(|(id, packed, stock)| {
            let record: ProductRecord = unpack(&packed.0, "product")?;
            let product_id = ProductId::parse(id).map_err(|_| unreadable("product id"))?;
            Ok(Product {
                product_id,
                name: record.name,
                price: record.price,
                status: record.status,
                stock,
            })
        })
        .collect()
}

/// A template and its number.
fn numbered_template(
    id: String,
    packed: &[u8],
    issued: u64,
) -> Result<(u64, CouponTemplate), GateError> {
    let record: TemplateRecord = unpack(packed, "template")?;
    let (id, number) =
        (TemplateId::parse(id).map_err(|_| unreadable("template id"))?, record.number);
    Ok((number, record.template(id, issued).ok_or_else(|| unreadable("discount"))?))
}

pub(super) fn templates(answer: &[u8]) -> Result<Vec<CouponTemplate>, GateError> {
    templates_of(unpack(answer, "template list")?)
}

fn templates_of(rows: Vec<Row>) -> Result<Vec<CouponTemplate>, GateError> {
    rows.into_iter()
        .map(|(id, packed, issued)| Ok(numbered_template(id, &packed.0, issued)?.1))
        .collect()
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
    type Told = (TimestampMs, Blob, Vec<(String, Blob, u64)>, Option<Id>);
    let Some((now, elements, rows, go_on)) = unpack::<Option<Told>>(answer, "list of coupons")?
    else {
        return Ok(None);
    };
    let templates: HashMap<u64, CouponTemplate> = rows
        .into_iter()
        .map(|(id, packed, issued)| numbered_template(id, &packed.0, issued))
        .collect::<Result<_, _>>()?;
    let (coupons, rest) = held_coupons::coupons(&elements.0);
    if !rest.is_empty() {
        return Err(unreadable("coupon"));
    }
    let coupons = coupons.into_iter().map(|coupon| {
        let template = templates.get(&u64::from(coupon.template_number));
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
            template_number: 7,
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
        };
        let packed = Blob(rmp_serde::to_vec(&template).unwrap());
        let go_on = Some(Id(Uuid::from_u128(9)));
        crate::domain::wire::pack(&(50, Blob(coupons.concat()), [("t", packed, 1)], go_on)).unwrap()
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
