//! Values of the gate's hashes, in MessagePack. [`super::keys`] lists the hashes.

use serde::ser::SerializeTuple;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::domain::wire::Blob;
use crate::domain::{CouponTemplate, Discount, ProductStatus, TemplateId, TimestampMs};

/// The value of `products`. Without rules, only the first three fields are stored.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct ProductRecord {
    pub name: String,
    pub price: u64,
    pub status: ProductStatus,
    #[serde(default)]
    pub sale_from: Option<TimestampMs>,
    #[serde(default)]
    pub sale_until: Option<TimestampMs>,
    #[serde(default)]
    pub per_user_limit: Option<u64>,
    /// The number of the limit; present with it.
    #[serde(default)]
    pub limit_number: Option<u64>,
}

impl Serialize for ProductRecord {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let first = (&self.name, self.price, self.status);
        match (self.sale_from, self.sale_until, self.per_user_limit) {
            (None, None, None) => first.serialize(serializer),
            (from, until, limit) => {
                let (name, price, status) = first;
                (name, price, status, from, until, limit, self.limit_number).serialize(serializer)
            }
        }
    }
}

/// Present terms that have another number than their template, because coupons were issued with
/// earlier ones. In a template's value, its fields follow those of [`TemplateRecord`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LaterTerms {
    pub number: u64,
    /// The numbers of earlier terms with coupons, 4 bytes each, in the order of time.
    pub earlier: Blob,
    /// Coupons that were issued with earlier terms.
    pub issued_before: u64,
}

/// The value of `terms`: what coupons keep from their issue on.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct TermsRecord {
    pub discount_type: String,
    pub discount_value: u64,
    pub discount_max: Option<u64>,
    pub min_subtotal: u64,
}

impl TermsRecord {
    /// `None` if the type is unknown, which only another writer could have stored.
    pub fn discount(&self) -> Option<Discount> {
        Discount::from_parts(&self.discount_type, self.discount_value, self.discount_max)
    }
}

/// The value of `templates`.
#[derive(Clone, Debug, PartialEq, Eq)]
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
    pub later_terms: Option<LaterTerms>,
}

impl Serialize for TemplateRecord {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let fields = 9 + if self.later_terms.is_some() { 3 } else { 0 };
        let mut list = serializer.serialize_tuple(fields)?;
        list.serialize_element(&self.number)?;
        list.serialize_element(&self.name)?;
        list.serialize_element(&self.discount_type)?;
        list.serialize_element(&self.discount_value)?;
        list.serialize_element(&self.discount_max)?;
        list.serialize_element(&self.min_subtotal)?;
        list.serialize_element(&self.max_issued)?;
        list.serialize_element(&self.issue_from)?;
        list.serialize_element(&self.issue_until)?;
        if let Some(later) = &self.later_terms {
            list.serialize_element(&later.number)?;
            list.serialize_element(&later.earlier)?;
            list.serialize_element(&later.issued_before)?;
        }
        list.end()
    }
}

impl<'de> Deserialize<'de> for TemplateRecord {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        struct Fields(
            u64,
            String,
            String,
            u64,
            Option<u64>,
            u64,
            u64,
            TimestampMs,
            TimestampMs,
            #[serde(default)] Option<u64>,
            #[serde(default)] Blob,
            #[serde(default)] u64,
        );
        let f = Fields::deserialize(deserializer)?;
        let later = |number| LaterTerms { number, earlier: f.10, issued_before: f.11 };
        Ok(Self {
            number: f.0,
            name: f.1,
            discount_type: f.2,
            discount_value: f.3,
            discount_max: f.4,
            min_subtotal: f.5,
            max_issued: f.6,
            issue_from: f.7,
            issue_until: f.8,
            later_terms: f.9.map(later),
        })
    }
}

/// The value of an idempotency bucket's field.
#[derive(Debug, Deserialize, Serialize)]
pub struct IdempotencyRecord {
    pub request_hash: Blob,
    pub decided_at: TimestampMs,
    pub reply: Blob,
}

impl TemplateRecord {
    /// The number of the present terms.
    pub fn terms_number(&self) -> u64 {
        self.later_terms.as_ref().map_or(self.number, |later| later.number)
    }

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
