//! Values of the gate's hashes, in MessagePack. [`super::keys`] lists the hashes.

use serde::{Deserialize, Serialize};

use crate::domain::wire::Blob;
use crate::domain::{CouponTemplate, Discount, ProductStatus, TemplateId, TimestampMs};

/// The value of `products`.
#[derive(Debug, Deserialize, Serialize)]
pub struct ProductRecord {
    pub name: String,
    pub price: u64,
    pub status: ProductStatus,
}

/// The value of `templates`.
#[derive(Debug, Deserialize, Serialize)]
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

/// The value of an idempotency bucket's field.
#[derive(Debug, Deserialize, Serialize)]
pub struct IdempotencyRecord {
    pub request_hash: Blob,
    pub decided_at: TimestampMs,
    pub reply: Blob,
}

impl TemplateRecord {
    pub fn template(self, template_id: TemplateId, issued: u64) -> Option<CouponTemplate> {
        Some(CouponTemplate {
            template_id,
            discount: Discount::from_parts(
                &self.discount_type,
                self.discount_value,
                self.discount_max,
            )?,
            name: self.name,
            min_subtotal: self.min_subtotal,
            max_issued: self.max_issued,
            issued,
            issue_from: self.issue_from,
            issue_until: self.issue_until,
        })
    }
}
