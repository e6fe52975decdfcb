//! Reads from the gate: what `lua/read.lua` answers, as the domain's types.

use bytes::Bytes;
use serde::Deserialize;
use std::cmp::Reverse;

use super::refusal::{GateError, HeldCoupon};
use crate::domain::limits::COUPON_USABLE_MS;
use crate::domain::{CouponTemplate, Discount, Product, ProductId, ProductStatus, TemplateId, TimestampMs};
use crate::log::wire::{Blob, Id};

/// The value of `products`.
#[derive(Debug, Deserialize, serde::Serialize)]
pub struct ProductRecord {
    pub name: String,
    pub price: u64,
    pub status: ProductStatus,
}

/// The value of `templates`.
#[derive(Debug, Deserialize, serde::Serialize)]
pub struct TemplateRecord {
    pub number: u64,
    pub name: String,
    pub discount_type: String,
    pub discount_value: u64,
    pub discount_max: Option<u64>,
    pub min_subtotal: u64,
    pub max_issued: u64,
    pub issue_from: TimestampMs,
    pub issue_until: TimestampMs,
}

/// The value of `coupons`.
#[derive(Debug, Deserialize, serde::Serialize)]
pub struct CouponRecord {
    pub template_id: String,
    pub user_id: String,
    pub serial: u64,
    pub issued_at: TimestampMs,
    pub order_id: Option<Id>,
}

/// The value of an idempotency bucket's field.
#[derive(Debug, Deserialize, serde::Serialize)]
pub struct IdempotencyRecord {
    pub request_hash: Blob,
    pub decided_at: TimestampMs,
    pub reply: Blob,
}

/// One element of the user's value in `held`: 4 bytes of template number, 16 of coupon id.
pub fn held_record(template_number: u64, coupon_id: Id) -> [u8; 20] {
    let mut record = [0; 20];
    let number = u32::try_from(template_number).unwrap_or(u32::MAX);
    record[..4].copy_from_slice(&number.to_be_bytes());
    record[4..].copy_from_slice(coupon_id.0.as_bytes());
    record
}

impl TemplateRecord {
    pub fn template(self, template_id: TemplateId, issued: u64) -> Option<CouponTemplate> {
        Some(CouponTemplate {
            template_id,
            discount: Discount::from_parts(&self.discount_type, self.discount_value, self.discount_max)?,
            name: self.name,
            min_subtotal: self.min_subtotal,
            max_issued: self.max_issued,
            issued,
            issue_from: self.issue_from,
            issue_until: self.issue_until,
        })
    }
}

/// Bytes that do not have the form that [`super::keys`] documents: somebody else wrote into the gate.
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

/// A list of products as the gate tells it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PackedProducts(pub(super) Bytes);

impl PackedProducts {
    pub fn unpack(&self) -> Result<Vec<Product>, GateError> {
        products(&self.0)
    }

    pub fn byte_len(&self) -> usize {
        self.0.len()
    }
}

pub(super) fn products(answer: &[u8]) -> Result<Vec<Product>, GateError> {
    let rows: Vec<(String, Blob, u64)> = unpack(answer, "product list")?;
    rows.into_iter()
        .map(|(id, packed, stock)| {
            let record: ProductRecord = unpack(&packed.0, "product")?;
            let product_id = ProductId::parse(id).map_err(|_| unreadable("product id"))?;
            Ok(Product { product_id, name: record.name, price: record.price, status: record.status, stock })
        })
        .collect()
}

fn template(id: String, packed: &[u8], issued: u64) -> Result<CouponTemplate, GateError> {
    let record: TemplateRecord = unpack(packed, "template")?;
    let id = TemplateId::parse(id).map_err(|_| unreadable("template id"))?;
    record.template(id, issued).ok_or_else(|| unreadable("discount"))
}

pub(super) fn templates(answer: &[u8]) -> Result<Vec<CouponTemplate>, GateError> {
    let rows: Vec<(String, Blob, u64)> = unpack(answer, "template list")?;
    rows.into_iter().map(|(id, packed, issued)| template(id, &packed.0, issued)).collect()
}

/// Newest first. Of coupons of the same millisecond the order of their ids decides: the gate keeps them in the order of
/// issue, which a rebuild does not know.
pub(super) fn held(answer: &[u8]) -> Result<Vec<HeldCoupon>, GateError> {
    let rows: Vec<(Id, Blob, Blob, u64)> = unpack(answer, "list of coupons")?;
    let held: Result<Vec<HeldCoupon>, GateError> = rows
        .into_iter()
        .map(|(coupon_id, coupon, packed_template, issued)| {
            let record: CouponRecord = unpack(&coupon.0, "coupon")?;
            Ok(HeldCoupon {
                coupon_id: coupon_id.0,
                template: template(record.template_id, &packed_template.0, issued)?,
                serial: record.serial,
                issued_at: record.issued_at,
                expires_at: record.issued_at + COUPON_USABLE_MS,
                order_id: record.order_id.map(|id| id.0),
            })
        })
        .collect();
    let mut held = held?;
    held.sort_unstable_by_key(|coupon| Reverse((coupon.issued_at, coupon.coupon_id)));
    Ok(held)
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    fn row(id: u128, issued_at: TimestampMs) -> (Id, Blob, Blob, u64) {
        let coupon = CouponRecord {
            template_id: "t".to_owned(),
            user_id: "ann".to_owned(),
            serial: 1,
            issued_at,
            order_id: None,
        };
        let template = TemplateRecord {
            number: 1,
            name: "T".to_owned(),
            discount_type: "amount".to_owned(),
            discount_value: 100,
            discount_max: None,
            min_subtotal: 0,
            max_issued: 10,
            issue_from: 0,
            issue_until: 1,
        };
        (
            Id(Uuid::from_u128(id)),
            Blob(rmp_serde::to_vec(&coupon).unwrap()),
            Blob(rmp_serde::to_vec(&template).unwrap()),
            1,
        )
    }

    /// A rebuild loads those of one millisecond in the order of their ids; they may have been issued in another.
    #[test]
    fn a_users_coupons_are_listed_in_the_same_order_however_the_gate_keeps_them() {
        let listed = |rows: [(Id, Blob, Blob, u64); 3]| -> Vec<u128> {
            let answer = rmp_serde::to_vec(&rows).unwrap();
            held(&answer).unwrap().iter().map(|coupon| coupon.coupon_id.as_u128()).collect()
        };
        assert_eq!(listed([row(1, 5), row(3, 7), row(2, 7)]), [3, 2, 1]);
        assert_eq!(listed([row(1, 5), row(2, 7), row(3, 7)]), [3, 2, 1]);
    }
}
