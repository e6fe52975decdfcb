//! Everything that Redis holds for a cell, and what it should hold, both as the same plain values.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;

use bytes::Bytes;
use fred::prelude::*;
use fred::types::CustomCommand;
use rushgate::domain::fact::{PendingOrder, TemplateTerms};
use rushgate::domain::wire::{Blob, Id};
use rushgate::redis::held_coupons::{self, HeldCoupon};
use rushgate::redis::keys::{DAY_MS, Keys};
use rushgate::redis::records::{
    IdempotencyRecord, LaterTerms, ProductRecord, TemplateRecord, TermsRecord,
};
use serde::de::DeserializeOwned;

use super::kind::unpacked;
use crate::history::model::{CouponTerms, Product, Shop, Template};

/// An idempotency record: request hash, time of the decision, bytes of the answer.
pub type Record = (Vec<u8>, i64, Vec<u8>);

#[derive(Debug, Default, PartialEq)]
pub struct State {
    pub meta: BTreeMap<String, String>,
    pub keys: BTreeSet<String>,
    pub wallets: BTreeMap<String, u64>,
    pub products: BTreeMap<String, ProductRecord>,
    pub attributes: BTreeMap<String, String>,
    /// (limit, user) → pieces
    pub purchases: BTreeMap<(u64, String), u64>,
    pub stocks: BTreeMap<String, u64>,
    pub product_ids: Vec<String>,
    pub templates: BTreeMap<String, (u64, TemplateTerms, Option<LaterTerms>)>,
    /// What is not in force any more.
    pub terms: BTreeMap<u32, TermsRecord>,
    pub issued: BTreeMap<String, u64>,
    pub template_ids: Vec<String>,
    pub template_numbers: BTreeMap<u32, String>,
    /// Each user's coupons in the order of issue.
    pub held: BTreeMap<String, Vec<HeldCoupon>>,
    pub cancelled: BTreeSet<Id>,
    pub pending: BTreeMap<Id, PendingOrder>,
    /// Order → end of the hold.
    pub pending_due: BTreeMap<Id, i64>,
    /// User → orders, won.
    pub pending_users: BTreeMap<String, (u64, u64)>,
    /// Day and scope → record.
    pub records: BTreeMap<(i64, String), Record>,
    /// Day and user → number of records that the user has made.
    pub made: BTreeMap<(i64, String), u64>,
}

impl State {
    /// The state that a gate with this shop should have. `meta` is passed in, because a model has
    /// no log.
    pub fn of_shop(
        shop: &Shop,
        keys: &Keys,
        meta: BTreeMap<String, String>,
        records: BTreeMap<(i64, String), Record>,
    ) -> Self {
        let mut state = Self { meta, records, wallets: shop.wallets.clone(), ..Self::default() };
        for (id, product) in &shop.products {
            state.products.insert(id.clone(), product_record(product));
            if let Some(attributes) = &product.rules.attributes {
                state.attributes.insert(id.clone(), attributes.clone());
            }
            state.stocks.insert(id.clone(), product.stock);
            state.product_ids.push(id.clone());
        }
        for (id, template) in &shop.templates {
            let record = (template.number, template.terms.clone(), later_terms(template));
            state.templates.insert(id.clone(), record);
            state.issued.insert(id.clone(), template.issued);
            state.template_ids.push(id.clone());
            for version in &template.versions {
                state.template_numbers.insert(small(version.number), id.clone());
                if version != template.present() {
                    state.terms.insert(small(version.number), terms_record(&version.terms));
                }
            }
        }
        state.purchases = shop.purchases.clone();
        for (user, ids) in &shop.pending_of {
            let held = (ids.len() as u64, shop.held_in_pending(user));
            state.pending_users.insert(user.clone(), held);
            for id in ids {
                let order = shop.orders[id].as_pending();
                state.pending_due.insert(*id, order.hold_expires_at);
                state.pending.insert(*id, order);
            }
        }
        for (user, ids) in &shop.coupons_of {
            let held = ids.iter().map(|id| held_coupon(shop, *id));
            state.held.insert(user.clone(), held.collect());
        }
        let cancelled = shop.orders.iter().filter(|(_, order)| order.cancelled.is_some());
        state.cancelled = cancelled.map(|(id, _)| *id).collect();
        state.keys = state.expected_keys(keys);
        for (day, scope) in state.records.keys() {
            let user = scope.split(' ').next().unwrap_or_default().to_owned();
            *state.made.entry((*day, user)).or_default() += 1;
        }
        state
    }

    /// Redis has no empty hashes or sets. The log always has its first entry.
    fn expected_keys(&self, keys: &Keys) -> BTreeSet<String> {
        let named = [
            (keys.wallets(), self.wallets.is_empty()),
            (keys.products(), self.products.is_empty()),
            (keys.stocks(), self.stocks.is_empty()),
            (keys.product_ids(), self.product_ids.is_empty()),
            (keys.templates(), self.templates.is_empty()),
            (keys.issued(), self.issued.is_empty()),
            (keys.template_ids(), self.template_ids.is_empty()),
            (keys.held(), self.held.is_empty()),
            (keys.template_numbers(), self.template_numbers.is_empty()),
            (keys.cancelled(), self.cancelled.is_empty()),
            (keys.attributes(), self.attributes.is_empty()),
            (keys.purchases(), self.purchases.is_empty()),
            (keys.terms(), self.terms.is_empty()),
            (keys.pending(), self.pending.is_empty()),
            (keys.pending_due(), self.pending_due.is_empty()),
            (keys.pending_users(), self.pending_users.is_empty()),
        ];
        let used = named.into_iter().filter(|(_, empty)| !empty).map(|(key, _)| key);
        let days = self.records.keys().map(|(day, _)| keys.idempotency(*day));
        used.chain(days).chain([Keys::meta(keys.cell), keys.log()]).collect()
    }

    pub async fn read_meta(
        client: &Client,
        keys: &Keys,
    ) -> Result<BTreeMap<String, String>, String> {
        hash(client, Keys::meta(keys.cell), text, text).await
    }

    pub fn compare_meta(
        is: &BTreeMap<String, String>,
        should: &BTreeMap<String, String>,
    ) -> Result<(), String> {
        same("meta", is, should)
    }

    pub async fn read(client: &Client, keys: &Keys) -> Result<Self, String> {
        let names: Vec<String> = command(client, fred::cmd!("KEYS"), vec!["*".into()]).await?;
        let mut state = Self { keys: names.into_iter().collect(), ..Self::default() };
        state.meta = Self::read_meta(client, keys).await?;
        state.wallets = hash(client, keys.wallets(), text, number).await?;
        state.stocks = hash(client, keys.stocks(), text, number).await?;
        state.issued = hash(client, keys.issued(), text, number).await?;
        state.held = hash(client, keys.held(), text, held_coupons).await?;
        state.template_numbers =
            hash(client, keys.template_numbers(), template_number, text).await?;
        state.product_ids = sorted(client, keys.product_ids()).await?;
        state.template_ids = sorted(client, keys.template_ids()).await?;
        state.products = hash(client, keys.products(), text, record).await?;
        state.attributes = hash(client, keys.attributes(), text, text).await?;
        state.purchases = hash(client, keys.purchases(), purchase, number).await?;
        state.terms = hash(client, keys.terms(), template_number, record).await?;
        state.pending = hash(client, keys.pending(), id, record).await?;
        state.pending_users = hash(client, keys.pending_users(), text, held_by_user).await?;
        state.pending_due = due(client, keys.pending_due()).await?;
        state.templates =
            hash(client, keys.templates(), text, |bytes| record(bytes).map(terms)).await?;
        let cancelled: Vec<Bytes> =
            command(client, fred::cmd!("SMEMBERS"), vec![keys.cancelled()]).await?;
        state.cancelled = cancelled.iter().map(|bytes| id(bytes)).collect::<Result<_, _>>()?;
        for key in state.keys.clone() {
            let Some((_, day)) = key.split_once(":idem:") else { continue };
            let day: i64 = day.parse().map_err(|_| format!("a key without a day: {key}"))?;
            for (name, value) in hash(client, key, text, |bytes| Ok(bytes.to_vec())).await? {
                if name.contains(' ') {
                    let r: IdempotencyRecord = record(&value)?;
                    state.records.insert((day, name), (r.request_hash.0, r.decided_at, r.reply.0));
                } else {
                    state.made.insert((day, name), number(&value)?);
                }
            }
        }
        Ok(state)
    }

    /// Reports the first part in which this state differs from the expected one.
    pub fn compare(&self, should: &Self) -> Result<(), String> {
        same("wallets", &self.wallets, &should.wallets)?;
        same("products", &self.products, &should.products)?;
        same("stocks", &self.stocks, &should.stocks)?;
        same("product ids", &self.product_ids, &should.product_ids)?;
        same("templates", &self.templates, &should.templates)?;
        same("issued", &self.issued, &should.issued)?;
        same("template ids", &self.template_ids, &should.template_ids)?;
        same("template numbers", &self.template_numbers, &should.template_numbers)?;
        same("held", &self.held, &should.held)?;
        same("cancelled", &self.cancelled, &should.cancelled)?;
        same("attributes", &self.attributes, &should.attributes)?;
        same("purchases", &self.purchases, &should.purchases)?;
        same("terms", &self.terms, &should.terms)?;
        same("pending", &self.pending, &should.pending)?;
        same("pending due", &self.pending_due, &should.pending_due)?;
        same("pending users", &self.pending_users, &should.pending_users)?;
        same("idempotency records", &self.records, &should.records)?;
        same("how many records users have made", &self.made, &should.made)?;
        Self::compare_meta(&self.meta, &should.meta)?;
        same("keys", &self.keys, &should.keys)
    }
}

/// The day whose records hold a decision.
pub fn day_of(at_ms: i64) -> i64 {
    at_ms.div_euclid(DAY_MS)
}

fn same<T: PartialEq + Debug>(part: &str, is: &T, should: &T) -> Result<(), String> {
    if is == should {
        Ok(())
    } else {
        Err(format!("{part}: Redis holds {is:?}; it should be {should:?}"))
    }
}

async fn hash<K: Ord, V>(
    client: &Client,
    key: String,
    name: fn(&[u8]) -> Result<K, String>,
    value: fn(&[u8]) -> Result<V, String>,
) -> Result<BTreeMap<K, V>, String> {
    // A custom command whose reply arrives as bytes, because ids are not text.
    let fields: Vec<Bytes> = command(client, fred::cmd!("HGETALL"), vec![key.clone()]).await?;
    fields
        .chunks_exact(2)
        .map(|pair| Ok((name(&pair[0])?, value(&pair[1])?)))
        .collect::<Result<_, String>>()
        .map_err(|e| format!("{key}: {e}"))
}

async fn sorted(client: &Client, key: String) -> Result<Vec<String>, String> {
    command(client, fred::cmd!("ZRANGE"), vec![key, "0".into(), "-1".into()]).await
}

async fn command<R: FromValue>(
    client: &Client,
    command: CustomCommand,
    arguments: Vec<String>,
) -> Result<R, String> {
    client.custom(command, arguments).await.map_err(|e| format!("Redis: {e}"))
}

fn text(bytes: &[u8]) -> Result<String, String> {
    String::from_utf8(bytes.to_vec()).map_err(|_| format!("no text: {bytes:02x?}"))
}

fn number(bytes: &[u8]) -> Result<u64, String> {
    text(bytes)?.parse().map_err(|_| format!("no number: {bytes:02x?}"))
}

fn id(bytes: &[u8]) -> Result<Id, String> {
    uuid::Uuid::from_slice(bytes).map(Id).map_err(|_| format!("no id: {bytes:02x?}"))
}

fn record<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, String> {
    unpacked(bytes)
}

pub fn product_record(product: &Product) -> ProductRecord {
    ProductRecord {
        name: product.name.clone(),
        price: product.price,
        status: product.status,
        sale_from: product.rules.sale_from,
        sale_until: product.rules.sale_until,
        per_user_limit: product.rules.per_user_limit,
        limit_number: product.limit_number,
    }
}

pub fn terms_record(terms: &CouponTerms) -> TermsRecord {
    TermsRecord {
        discount_type: terms.discount_type.clone(),
        discount_value: terms.discount_value,
        discount_max: terms.discount_max,
        min_subtotal: terms.min_subtotal,
    }
}

pub fn later_terms(template: &Template) -> Option<LaterTerms> {
    let (_, earlier) = template.versions.split_last()?;
    template.later_number().map(|number| LaterTerms {
        number,
        earlier: Blob(earlier.iter().flat_map(|v| small(v.number).to_be_bytes()).collect()),
        issued_before: earlier.iter().map(|version| version.issued).sum(),
    })
}

pub fn terms(t: TemplateRecord) -> (u64, TemplateTerms, Option<LaterTerms>) {
    let terms = TemplateTerms {
        name: t.name,
        discount_type: t.discount_type,
        discount_value: t.discount_value,
        discount_max: t.discount_max,
        min_subtotal: t.min_subtotal,
        max_issued: t.max_issued,
        issue_from: t.issue_from,
        issue_until: t.issue_until,
    };
    (t.number, terms, t.later_terms)
}

fn held_coupon(shop: &Shop, id: Id) -> HeldCoupon {
    let coupon = &shop.coupons[&id];
    HeldCoupon {
        terms_number: small(coupon.terms_number),
        coupon_id: id.0,
        serial: small(coupon.serial),
        issued_at: coupon.issued_at,
        order_id: coupon.order_id.map(|order| order.0),
    }
}

fn held_coupons(bytes: &[u8]) -> Result<Vec<HeldCoupon>, String> {
    let (coupons, rest) = held_coupons::coupons(bytes);
    if rest.is_empty() { Ok(coupons) } else { Err(format!("half a coupon: {rest:02x?}")) }
}

fn template_number(bytes: &[u8]) -> Result<u32, String> {
    let bytes = bytes.try_into().map_err(|_| format!("no number of a template: {bytes:02x?}"))?;
    Ok(u32::from_be_bytes(bytes))
}

/// `<number, 4 bytes><user>`
fn purchase(bytes: &[u8]) -> Result<(u64, String), String> {
    let (number, user) =
        bytes.split_first_chunk().ok_or_else(|| format!("no purchase: {bytes:02x?}"))?;
    Ok((u32::from_be_bytes(*number).into(), text(user)?))
}

/// `<orders>:<won>`
fn held_by_user(bytes: &[u8]) -> Result<(u64, u64), String> {
    let told = text(bytes)?;
    let (orders, won) = told.split_once(':').ok_or_else(|| format!("not held: {told}"))?;
    Ok((number(orders.as_bytes())?, number(won.as_bytes())?))
}

async fn due(client: &Client, key: String) -> Result<BTreeMap<Id, i64>, String> {
    let members: Vec<Bytes> =
        command(client, fred::cmd!("ZRANGE"), vec![key.clone(), "0".into(), "-1".into()]).await?;
    if members.is_empty() {
        return Ok(BTreeMap::new());
    }
    let arguments: Vec<Value> =
        std::iter::once(key.into()).chain(members.iter().cloned().map(Value::Bytes)).collect();
    let scores: Vec<f64> =
        client.custom(fred::cmd!("ZMSCORE"), arguments).await.map_err(|e| format!("Redis: {e}"))?;
    // Whole milliseconds.
    let ends = scores.into_iter().map(|at| at as i64);
    members.iter().zip(ends).map(|(member, at)| Ok((id(member)?, at))).collect()
}

fn small(number: u64) -> u32 {
    u32::try_from(number).unwrap()
}
