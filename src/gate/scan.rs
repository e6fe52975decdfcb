//! Reads the gate's whole state in pages, for the audit. Returns plain values and changes nothing.
//!
//! Each page is one bounded command (`HMGET`, `HSCAN`, …), so a scan never blocks Redis for long.
//! The pages are *not* a snapshot: to compare them with another source, read [`Scan::meta`] before
//! and after, and discard the result if it has changed.

use bytes::Bytes;
use fred::prelude::*;
use fred::types::{ClusterHash, CustomCommand};
use serde_json::{Value as Json, json};
use std::collections::HashMap;
use tokio::time::timeout;
use uuid::Uuid;

use crate::config::bounds::{CONNECT_TIMEOUT, SCAN_PAGE};
use crate::domain::fact::{PendingLine, PendingOrder};
use crate::domain::hex::hex;
use crate::redis::connect::{self, RedisSetupError};
use crate::redis::held_coupons::{self, HeldCoupon};
use crate::redis::keys::Keys;
use crate::redis::meta::Meta;
use crate::redis::records::{IdempotencyRecord, ProductRecord, TemplateRecord, TermsRecord};

#[derive(Debug, thiserror::Error)]
pub enum ScanError {
    #[error("Redis: {0}")]
    Redis(#[from] fred::error::Error),
    #[error(transparent)]
    Setup(#[from] RedisSetupError),
    #[error("unexpected answer from Redis to {0}")]
    QueueAnswer(&'static str),
}

/// The newest entry of a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogEnd {
    pub epoch: u64,
    pub seq: u64,
    pub tip: String,
}

/// A part of the state with one value per id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    Wallets,
    Products,
    Stocks,
    ProductIds,
    Templates,
    Issued,
    TemplateIds,
    /// The ids here are the numbers of templates and of later terms.
    TemplateNumbers,
    /// The ids here are the numbers of terms.
    Terms,
    Attributes,
    /// The ids here are the limit's number and the user, with a space between.
    Purchases,
    /// The ids here are orders.
    Pending,
    /// The ids here are orders.
    PendingDue,
    PendingUsers,
}

/// One page of elements, and the position of the next page (`None` after the last). An element may
/// occur twice, as with `SCAN`.
#[derive(Clone, Debug)]
pub struct Page<T> {
    pub elements: Vec<T>,
    pub next: Option<String>,
}

/// The coupons of a user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    pub user: String,
    pub coupons: Vec<HeldCoupon>,
    /// The bytes after the last whole coupon.
    pub rest: Vec<u8>,
}

/// An idempotency record: its scope, and its value as JSON, like the values of a [`Part`].
#[derive(Clone, Debug)]
pub struct Record {
    pub scope: String,
    pub decided_at: i64,
    pub shown: Json,
}

/// A scan's own connection, so that it does not delay decisions and reads.
pub struct Scan {
    client: Client,
}

impl Scan {
    pub async fn connect(redis_url: &str) -> Result<Self, ScanError> {
        Ok(Self { client: connect::connect(redis_url).await? })
    }

    /// `None`: Redis holds no gate for the cell.
    pub async fn meta(&self, cell: u32) -> Result<Option<Meta>, ScanError> {
        let meta = Meta::read(&self.client, cell).await?;
        Ok((!meta.absent()).then_some(meta))
    }

    /// The newest entry of the log. `None`: the log is missing or empty.
    pub async fn log_end(&self, keys: Keys) -> Result<Option<LogEnd>, ScanError> {
        let newest: Vec<(String, HashMap<String, Bytes>)> =
            self.client.xrevrange(keys.log(), "+", "-", Some(1)).await?;
        let Some((id, fields)) = newest.into_iter().next() else {
            return Ok(None);
        };
        let (epoch, seq) = id.split_once('-').ok_or(ScanError::QueueAnswer("XREVRANGE"))?;
        Ok(Some(LogEnd {
            epoch: epoch.parse().map_err(|_| ScanError::QueueAnswer("XREVRANGE"))?,
            seq: seq.parse().map_err(|_| ScanError::QueueAnswer("XREVRANGE"))?,
            tip: fields.get("t").map(|tip| lossy(tip)).unwrap_or_default(),
        }))
    }

    /// The values of these ids, in their order. An undecodable value is returned as hexadecimal
    /// digits.
    pub async fn values(
        &self,
        keys: Keys,
        part: Part,
        ids: &[String],
    ) -> Result<Vec<Option<Json>>, ScanError> {
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        let names: Vec<Bytes> = ids.iter().map(|id| part.field(id)).collect();
        let values: Vec<Option<Bytes>> =
            self.command(part.command("HMGET", "ZMSCORE"), part.key(keys), names).await?;
        if values.len() != ids.len() {
            return Err(ScanError::QueueAnswer("a lookup"));
        }
        Ok(values.into_iter().map(|value| value.map(|value| part.shown(&value))).collect())
    }

    pub async fn count(&self, keys: Keys, part: Part) -> Result<u64, ScanError> {
        self.command(part.command("HLEN", "ZCARD"), part.key(keys), Vec::new()).await
    }

    /// A page of the ids in a part.
    pub async fn ids(
        &self,
        keys: Keys,
        part: Part,
        from: Option<String>,
    ) -> Result<Page<String>, ScanError> {
        let page = self.page(part.command("HSCAN", "ZSCAN"), part.key(keys), from).await?;
        Ok(page.map_pairs(|field, _| part.id(&field)))
    }

    /// The coupons of these users, in their order.
    pub async fn held_by(&self, keys: Keys, users: Vec<String>) -> Result<Vec<Holder>, ScanError> {
        if users.is_empty() {
            return Ok(Vec::new());
        }
        let names = users.iter().map(|user| Bytes::from(user.clone().into_bytes())).collect();
        let values: Vec<Option<Bytes>> = self.command("HMGET", keys.held(), names).await?;
        Ok(users
            .into_iter()
            .zip(values)
            .map(|(user, held)| holder(user, &held.unwrap_or_default()))
            .collect())
    }

    /// A page of users with their coupons.
    pub async fn held(&self, keys: Keys, from: Option<String>) -> Result<Page<Holder>, ScanError> {
        let page = self.page("HSCAN", keys.held(), from).await?;
        Ok(page.map_pairs(|user, held| holder(lossy(&user), &held)))
    }

    /// A page of the orders cancelled in this epoch.
    pub async fn cancelled(
        &self,
        keys: Keys,
        from: Option<String>,
    ) -> Result<Page<String>, ScanError> {
        let page = self.page("SSCAN", keys.cancelled(), from).await?;
        let elements = page.elements.iter().map(|id| uuid_text(id)).collect();
        Ok(Page { elements, next: page.next })
    }

    /// A page of the idempotency records of one day; a record's `day` is its `decided_at` in days.
    /// The same hash holds each user's number of records. Those fields contain no space; the scope
    /// of a record always does.
    pub async fn records(
        &self,
        keys: Keys,
        day: i64,
        from: Option<String>,
    ) -> Result<Page<Record>, ScanError> {
        let page = self.page("HSCAN", keys.idempotency(day), from).await?;
        let mut page = page.map_pairs(|scope, value| record(&lossy(&scope), &value));
        page.elements.retain(|record| record.scope.contains(' '));
        Ok(page)
    }

    /// The gate's counts of idempotency records that these users have created on this day.
    pub async fn records_made(
        &self,
        keys: Keys,
        day: i64,
        users: Vec<String>,
    ) -> Result<Vec<Option<u64>>, ScanError> {
        if users.is_empty() {
            return Ok(Vec::new());
        }
        let names = users.into_iter().map(Bytes::from).collect();
        self.command("HMGET", keys.idempotency(day), names).await
    }

    async fn page(
        &self,
        command: &'static str,
        key: String,
        from: Option<String>,
    ) -> Result<Page<Bytes>, ScanError> {
        let position = from.unwrap_or_else(|| String::from("0"));
        let arguments = vec![position.into(), "COUNT".into(), SCAN_PAGE.to_string().into()];
        let (next, elements): (String, Vec<Bytes>) = self.command(command, key, arguments).await?;
        Ok(Page { elements, next: (next != "0").then_some(next) })
    }

    async fn command<R: FromValue>(
        &self,
        command: &'static str,
        key: String,
        arguments: Vec<Bytes>,
    ) -> Result<R, ScanError> {
        let mut all: Vec<Value> = vec![key.into()];
        all.extend(arguments.into_iter().map(Value::from));
        let command = CustomCommand::new_static(command, ClusterHash::FirstKey, false);
        Ok(self.client.custom(command, all).await?)
    }

    pub async fn close(self) {
        let _ = timeout(CONNECT_TIMEOUT, self.client.quit()).await;
    }
}

impl Page<Bytes> {
    fn map_pairs<T>(self, make: impl Fn(Bytes, Bytes) -> T) -> Page<T> {
        let mut rest = self.elements.into_iter();
        let mut elements = Vec::with_capacity(rest.len() / 2);
        while let (Some(field), Some(value)) = (rest.next(), rest.next()) {
            elements.push(make(field, value));
        }
        Page { elements, next: self.next }
    }
}

impl Part {
    fn key(self, keys: Keys) -> String {
        match self {
            Self::Wallets => keys.wallets(),
            Self::Products => keys.products(),
            Self::Stocks => keys.stocks(),
            Self::ProductIds => keys.product_ids(),
            Self::Templates => keys.templates(),
            Self::Issued => keys.issued(),
            Self::TemplateIds => keys.template_ids(),
            Self::TemplateNumbers => keys.template_numbers(),
            Self::Terms => keys.terms(),
            Self::Attributes => keys.attributes(),
            Self::Purchases => keys.purchases(),
            Self::Pending => keys.pending(),
            Self::PendingDue => keys.pending_due(),
            Self::PendingUsers => keys.pending_users(),
        }
    }

    fn command(self, of_hash: &'static str, of_sorted_set: &'static str) -> &'static str {
        match self {
            Self::ProductIds | Self::TemplateIds | Self::PendingDue => of_sorted_set,
            _ => of_hash,
        }
    }

    /// The name of an id's field (or member) in Redis.
    fn field(self, id: &str) -> Bytes {
        let plain = || Bytes::copy_from_slice(id.as_bytes());
        let number = |text: &str| text.parse::<u32>().ok().map(u32::to_be_bytes);
        match self {
            Self::TemplateNumbers | Self::Terms => {
                number(id).map_or_else(plain, |bytes| Bytes::copy_from_slice(&bytes))
            }
            Self::Purchases => id
                .split_once(' ')
                .and_then(|(limit, user)| Some([&number(limit)?, user.as_bytes()].concat()))
                .map_or_else(plain, Bytes::from),
            Self::Pending | Self::PendingDue => Uuid::try_parse(id)
                .map_or_else(|_| plain(), |id| Bytes::copy_from_slice(id.as_bytes())),
            _ => plain(),
        }
    }

    fn id(self, field: &[u8]) -> String {
        match self {
            Self::TemplateNumbers | Self::Terms => match field.try_into() {
                Ok(number) => u32::from_be_bytes(number).to_string(),
                Err(_) => hex(field),
            },
            Self::Purchases => match field.split_first_chunk() {
                Some((number, user)) => format!("{} {}", u32::from_be_bytes(*number), lossy(user)),
                None => hex(field),
            },
            Self::Pending | Self::PendingDue => uuid_text(field),
            _ => lossy(field),
        }
    }

    fn shown(self, value: &[u8]) -> Json {
        let decoded = match self {
            Self::Wallets | Self::Stocks | Self::Issued | Self::Purchases | Self::PendingDue => {
                lossy(value).parse::<u64>().ok().map(Json::from)
            }
            Self::ProductIds | Self::TemplateIds => Some(json!("listed")),
            Self::Products => product(value),
            Self::Templates => template(value),
            Self::TemplateNumbers | Self::Attributes | Self::PendingUsers => {
                Some(lossy(value).into())
            }
            Self::Terms => terms(value),
            Self::Pending => pending(value),
        };
        decoded.unwrap_or_else(|| undecodable(value))
    }
}

fn product(value: &[u8]) -> Option<Json> {
    let p: ProductRecord = rmp_serde::from_slice(value).ok()?;
    Some(json!({
        "name": p.name, "price": p.price, "status": p.status, "sale_from": p.sale_from, "sale_until": p.sale_until,
        "per_user_limit": p.per_user_limit, "limit_number": p.limit_number,
    }))
}

fn terms(value: &[u8]) -> Option<Json> {
    let t: TermsRecord = rmp_serde::from_slice(value).ok()?;
    Some(json!({
        "discount_type": t.discount_type, "discount_value": t.discount_value, "discount_max": t.discount_max,
        "min_subtotal": t.min_subtotal,
    }))
}

fn pending(value: &[u8]) -> Option<Json> {
    let order: PendingOrder = rmp_serde::from_slice(value).ok()?;
    let line = |it: &PendingLine| {
        json!([it.product_id, it.name, it.unit_price, it.quantity, it.amount, it.limit_number])
    };
    Some(json!({
        "user_id": order.user_id, "lines": order.lines.iter().map(line).collect::<Vec<Json>>(),
        "subtotal": order.subtotal, "discount": order.discount, "total": order.total,
        "coupon_id": order.coupon_id.map(|id| id.0), "wallet_amount": order.wallet_amount,
        "ordered_at": order.ordered_at, "hold_expires_at": order.hold_expires_at, "reference": order.reference,
    }))
}

fn template(value: &[u8]) -> Option<Json> {
    let t: TemplateRecord = rmp_serde::from_slice(value).ok()?;
    Some(json!({
        "number": t.number, "name": t.name, "discount_type": t.discount_type,
        "discount_value": t.discount_value, "discount_max": t.discount_max, "min_subtotal": t.min_subtotal,
        "max_issued": t.max_issued, "issue_from": t.issue_from, "issue_until": t.issue_until,
        "terms_number": t.later_terms.as_ref().map(|later| later.number),
        "issued_before": t.later_terms.as_ref().map_or(0, |later| later.issued_before),
        "earlier": t.later_terms.as_ref().map_or(String::new(), |later| hex(&later.earlier.0)),
    }))
}

fn record(scope: &str, value: &[u8]) -> Record {
    let scope = scope.to_owned();
    match rmp_serde::from_slice(value) {
        Ok(IdempotencyRecord { request_hash, decided_at, reply }) => Record {
            scope,
            decided_at,
            shown: json!({
                "request_hash": hex(&request_hash.0), "decided_at": decided_at, "reply": hex(&reply.0),
            }),
        },
        Err(_) => Record { scope, decided_at: i64::MAX, shown: undecodable(value) },
    }
}

fn holder(user: String, value: &[u8]) -> Holder {
    let (coupons, rest) = held_coupons::coupons(value);
    Holder { user, coupons, rest: rest.to_vec() }
}

fn uuid_text(bytes: &[u8]) -> String {
    Uuid::from_slice(bytes).map_or_else(|_| hex(bytes), |id| id.to_string())
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn undecodable(value: &[u8]) -> Json {
    json!({ "undecodable": hex(value) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_numbers_are_four_bytes() {
        assert_eq!(Part::TemplateNumbers.field("258"), Bytes::from_static(&[0, 0, 1, 2]));
        assert_eq!(Part::TemplateNumbers.id(&[0, 0, 1, 2]), "258");
        assert_eq!(Part::TemplateNumbers.id(&[0xff]), "ff");
        assert_eq!(Part::Wallets.field("258"), Bytes::from_static(b"258"));
    }

    #[test]
    fn values_are_shown_by_their_fields_and_rubbish_as_it_is() {
        let packed = rmp_serde::to_vec(&("Tea", 500, "on_sale")).unwrap();
        let shown = json!({
            "name": "Tea", "price": 500, "status": "on_sale", "sale_from": null, "sale_until": null,
            "per_user_limit": null, "limit_number": null,
        });
        assert_eq!(Part::Products.shown(&packed), shown);
        assert_eq!(Part::Products.shown(b"\xff"), json!({"undecodable": "ff"}));
        assert_eq!(Part::Wallets.shown(b"12"), json!(12));
        assert_eq!(Part::Wallets.shown(b"-1"), json!({"undecodable": "2d31"}));
    }
}
