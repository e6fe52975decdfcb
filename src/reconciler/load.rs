//! The loading half of a rebuild: copies PostgreSQL's state into an epoch's keys.
//!
//! One read-only transaction streams each table. A `HashLoader` per hash collects the rows and
//! sends them in large HSETs, several of them in flight. [`Loaded`] says how many fields each hash
//! must have, which the script that opens the epoch checks.

use bytes::Bytes;
use fred::interfaces::{ClientLike, SortedSetsInterface};
use fred::prelude::*;
use fred::types::{ClusterHash, CustomCommand};
use futures::TryStreamExt;
use sqlx::{Connection, PgConnection};
use std::collections::HashMap;
use tokio::task::JoinSet;
use uuid::Uuid;

use crate::domain::limits::IDEMPOTENCY_KEPT_MS;
use crate::domain::wire::{self, Blob};
use crate::domain::{ProductStatus, TimestampMs};
use crate::redis::held_coupons::HeldCoupon;
use crate::redis::keys::{DAY_MS, Keys};
use crate::redis::records::{
    IdempotencyRecord, LaterTerms, ProductRecord, TemplateRecord, TermsRecord,
};

use super::pending;

/// Fields per HSET.
const FIELDS_PER_COMMAND: usize = 1_000;
/// HSETs of one hash that are in flight at once.
const COMMANDS_UNDER_WAY: usize = 8;

#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error("PostgreSQL: {0}")]
    Truth(#[from] sqlx::Error),
    #[error("Redis: {0}")]
    Gate(#[from] Error),
    #[error("a row cannot be encoded: {0}")]
    Pack(#[from] rmp_serde::encode::Error),
}

/// What was loaded.
#[derive(Debug, Default)]
pub struct Loaded {
    /// Each hash and its number of fields: the gate opens only if every hash is complete.
    pub hashes: Vec<(String, u64)>,
    /// Of templates and of later terms.
    pub highest_template_number: u64,
    pub highest_limit_number: u64,
    /// The epoch holds what versions that read only the first format do not know.
    pub latest_format: bool,
}

/// Loads everything that the scripts need from one snapshot of PostgreSQL. `clock_ms` is the gate's
/// clock.
pub async fn load(
    conn: &mut PgConnection,
    client: &Client,
    keys: &Keys,
    clock_ms: TimestampMs,
) -> Result<Loaded, LoadError> {
    let mut tx = conn.begin().await?;
    sqlx::query("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        .execute(&mut *tx)
        .await?;
    // All coupons are sorted by user. That is faster in memory than on disk, and the cell is closed
    // meanwhile.
    sqlx::query("SET LOCAL work_mem = '256MB'").execute(&mut *tx).await?;
    let mut loaded = Loaded::default();
    loaded.hashes.push(wallets(&mut tx, client, keys).await?);
    let (hashes, highest) = products(&mut tx, client, keys).await?;
    loaded.hashes.extend(hashes);
    // A limit whose PUT was skipped may have counted before.
    let counted: Option<i64> =
        sqlx::query_scalar("SELECT max(limit_number) FROM purchases").fetch_one(&mut *tx).await?;
    loaded.highest_limit_number = highest.max(counted.map_or(0, unsigned));
    loaded.hashes.push(purchases(&mut tx, client, keys).await?);
    let later_terms = later_terms(&mut tx).await?;
    loaded.hashes.push(terms(&later_terms, client, keys).await?);
    let (hashes, highest) = templates(&mut tx, client, keys, &later_terms).await?;
    loaded.hashes.extend(hashes);
    loaded.highest_template_number = highest;
    loaded.hashes.extend(pending::load(&mut tx, client, keys).await?);
    loaded.latest_format = has_latest_format(&mut tx, keys.cell).await?;
    loaded.hashes.push(coupons(&mut tx, client, keys).await?);
    loaded.hashes.extend(idempotency_records(&mut tx, client, keys, clock_ms).await?);
    tx.commit().await?;
    Ok(loaded)
}

/// Whether an entry of the later format was applied in this cell.
async fn has_latest_format(conn: &mut PgConnection, cell: u32) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar("SELECT coalesce(max(log_format), 1) > 1 FROM cell_cursors WHERE cell = $1")
        .bind(i32::try_from(cell).unwrap_or(i32::MAX))
        .fetch_one(conn)
        .await
}

/// A hash and the number of fields that were sent to it.
pub(super) type LoadedHash = (String, u64);

/// Collects a hash's fields and sends many at a time. While Redis stores (and fsyncs) some, the
/// next rows are read.
pub(super) struct HashLoader<'a> {
    client: &'a Client,
    key: String,
    /// Key, field, value, field, value, …
    command: Vec<Value>,
    under_way: JoinSet<Result<i64, Error>>,
    sent: u64,
}

impl<'a> HashLoader<'a> {
    pub(super) fn new(client: &'a Client, key: String) -> Self {
        let command = new_command(&key);
        Self { client, key, command, under_way: JoinSet::new(), sent: 0 }
    }

    pub(super) async fn add(
        &mut self,
        field: impl Into<Bytes>,
        value: impl Into<Value>,
    ) -> Result<(), Error> {
        self.command.extend([Value::Bytes(field.into()), value.into()]);
        if self.command.len() > FIELDS_PER_COMMAND * 2 { self.flush().await } else { Ok(()) }
    }

    async fn flush(&mut self) -> Result<(), Error> {
        let fields = (self.command.len() as u64 - 1) / 2;
        if fields == 0 {
            return Ok(());
        }
        if self.under_way.len() >= COMMANDS_UNDER_WAY {
            self.stored().await?;
        }
        self.sent += fields;
        let command = std::mem::replace(&mut self.command, new_command(&self.key));
        let client = self.client.clone();
        // Not `hset`, which would collect the fields in a map first.
        let hset = CustomCommand::new_static("HSET", ClusterHash::FirstKey, false);
        self.under_way.spawn(async move { client.custom(hset, command).await });
        Ok(())
    }

    /// Adds a user's coupons; nothing before the first user.
    async fn add_held(&mut self, user: String, held: Vec<u8>) -> Result<(), Error> {
        if held.is_empty() { Ok(()) } else { self.add(user, Value::Bytes(held.into())).await }
    }

    /// Waits for one of the commands in flight; `false`: there is none.
    async fn stored(&mut self) -> Result<bool, Error> {
        match self.under_way.join_next().await {
            None => Ok(false),
            Some(Ok(stored)) => stored.map(|_| true),
            Some(Err(lost)) => Err(Error::new(ErrorKind::Unknown, lost.to_string())),
        }
    }

    pub(super) async fn finish(mut self) -> Result<LoadedHash, Error> {
        self.flush().await?;
        while self.stored().await? {}
        Ok((self.key, self.sent))
    }
}

fn new_command(key: &str) -> Vec<Value> {
    let mut command = Vec::with_capacity(1 + FIELDS_PER_COMMAND * 2);
    command.push(key.into());
    command
}

pub(super) fn packed(value: &impl serde::Serialize) -> Result<Value, rmp_serde::encode::Error> {
    Ok(Value::Bytes(wire::pack(value)?.into()))
}

pub(super) fn unsigned(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(0)
}

/// For numbers that have four bytes in `held`. The gate assigns no larger ones; the audit finds one
/// that the gate did not assign.
fn small(value: i64) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}

async fn wallets(
    conn: &mut PgConnection,
    client: &Client,
    keys: &Keys,
) -> Result<LoadedHash, LoadError> {
    let mut rows =
        sqlx::query_as::<_, (String, i64)>("SELECT user_id, balance FROM wallets").fetch(conn);
    let mut hash = HashLoader::new(client, keys.wallets());
    while let Some((user_id, balance)) = rows.try_next().await? {
        hash.add(user_id, balance).await?;
    }
    Ok(hash.finish().await?)
}

#[derive(sqlx::FromRow)]
struct ProductRow {
    product_id: String,
    name: String,
    price: i64,
    status: String,
    stock: i64,
    sale_from_ms: Option<TimestampMs>,
    sale_until_ms: Option<TimestampMs>,
    per_user_limit: Option<i64>,
    limit_number: Option<i64>,
    attributes: Option<String>,
}

impl ProductRow {
    fn record(&self) -> ProductRecord {
        let on_sale = self.status == "on_sale";
        ProductRecord {
            name: self.name.clone(),
            price: unsigned(self.price),
            status: if on_sale { ProductStatus::OnSale } else { ProductStatus::Suspended },
            sale_from: self.sale_from_ms,
            sale_until: self.sale_until_ms,
            per_user_limit: self.per_user_limit.map(unsigned),
            // PostgreSQL keeps the number of a limit that was removed.
            limit_number: self.per_user_limit.and(self.limit_number).map(unsigned),
        }
    }
}

/// Returns the hashes and the highest number of a limit.
async fn products(
    conn: &mut PgConnection,
    client: &Client,
    keys: &Keys,
) -> Result<([LoadedHash; 3], u64), LoadError> {
    let mut rows =
        sqlx::query_as::<_, ProductRow>(include_str!("sql/load_products.sql")).fetch(conn);
    let mut records = HashLoader::new(client, keys.products());
    let mut stocks = HashLoader::new(client, keys.stocks());
    let mut attributes = HashLoader::new(client, keys.attributes());
    let (mut ids, mut highest) = (Vec::new(), 0);
    while let Some(row) = rows.try_next().await? {
        highest = highest.max(row.limit_number.map_or(0, unsigned));
        records.add(row.product_id.clone(), packed(&row.record())?).await?;
        stocks.add(row.product_id.clone(), row.stock).await?;
        if let Some(text) = row.attributes {
            attributes.add(row.product_id.clone(), text).await?;
        }
        ids.push(row.product_id);
    }
    add_ids(client, keys.product_ids(), ids).await?;
    Ok(([records.finish().await?, stocks.finish().await?, attributes.finish().await?], highest))
}

/// What users have bought of products that have a limit now.
async fn purchases(
    conn: &mut PgConnection,
    client: &Client,
    keys: &Keys,
) -> Result<LoadedHash, LoadError> {
    let sql = "SELECT p.limit_number, p.user_id, p.bought FROM purchases AS p
        JOIN products USING (limit_number) WHERE products.per_user_limit IS NOT NULL";
    let mut rows = sqlx::query_as::<_, (i64, String, i64)>(sql).fetch(conn);
    let mut hash = HashLoader::new(client, keys.purchases());
    while let Some((number, user, bought)) = rows.try_next().await? {
        hash.add([&small(number).to_be_bytes(), user.as_bytes()].concat(), bought).await?;
    }
    Ok(hash.finish().await?)
}

/// Terms that coupons were issued with.
#[derive(sqlx::FromRow)]
struct TermsRow {
    number: i64,
    template_id: String,
    discount_type: String,
    discount_value: i64,
    discount_max: Option<i64>,
    min_subtotal: i64,
}

/// The numbers and terms of templates whose terms have changed, except the present ones.
async fn later_terms(conn: &mut PgConnection) -> Result<Vec<TermsRow>, sqlx::Error> {
    sqlx::query_as(include_str!("sql/load_terms.sql")).fetch_all(conn).await
}

async fn terms(rows: &[TermsRow], client: &Client, keys: &Keys) -> Result<LoadedHash, LoadError> {
    let mut hash = HashLoader::new(client, keys.terms());
    for row in rows {
        let record = TermsRecord {
            discount_type: row.discount_type.clone(),
            discount_value: unsigned(row.discount_value),
            discount_max: row.discount_max.map(unsigned),
            min_subtotal: unsigned(row.min_subtotal),
        };
        hash.add(small(row.number).to_be_bytes().to_vec(), packed(&record)?).await?;
    }
    Ok(hash.finish().await?)
}

async fn add_ids(client: &Client, key: String, ids: Vec<String>) -> Result<(), Error> {
    for some in ids.chunks(FIELDS_PER_COMMAND) {
        let members: Vec<(f64, &str)> = some.iter().map(|id| (0.0, id.as_str())).collect();
        let _: i64 = client.zadd(key.as_str(), None, None, false, false, members).await?;
    }
    Ok(())
}

#[derive(sqlx::FromRow)]
struct TemplateRow {
    template_id: String,
    number: i64,
    name: String,
    discount_type: String,
    discount_value: i64,
    discount_max: Option<i64>,
    min_subtotal: i64,
    max_issued: i64,
    issued: i64,
    issue_from_ms: i64,
    issue_until_ms: i64,
    terms_number: Option<i64>,
    issued_before: i64,
}

/// Returns the hashes and the highest template number.
async fn templates(
    conn: &mut PgConnection,
    client: &Client,
    keys: &Keys,
    earlier: &[TermsRow],
) -> Result<([LoadedHash; 3], u64), LoadError> {
    let mut rows =
        sqlx::query_as::<_, TemplateRow>(include_str!("sql/load_templates.sql")).fetch(conn);
    let mut records = HashLoader::new(client, keys.templates());
    let mut issued = HashLoader::new(client, keys.issued());
    let mut numbers = HashLoader::new(client, keys.template_numbers());
    let (mut ids, mut highest) = (Vec::new(), 0);
    while let Some(row) = rows.try_next().await? {
        highest = highest.max(unsigned(row.terms_number.unwrap_or(row.number)));
        let earlier: Vec<i64> = earlier
            .iter()
            .filter(|terms| terms.template_id == row.template_id)
            .map(|terms| terms.number)
            .collect();
        for number in earlier.iter().chain(&row.terms_number) {
            highest = highest.max(unsigned(*number));
            if *number != row.number {
                let number = small(*number).to_be_bytes().to_vec();
                numbers.add(number, row.template_id.clone()).await?;
            }
        }
        let marks = earlier.iter().flat_map(|number| small(*number).to_be_bytes()).collect();
        let later_terms = row.terms_number.map(|number| LaterTerms {
            number: unsigned(number),
            earlier: Blob(marks),
            issued_before: unsigned(row.issued_before),
        });
        let record = TemplateRecord {
            number: unsigned(row.number),
            name: row.name,
            discount_type: row.discount_type,
            discount_value: unsigned(row.discount_value),
            discount_max: row.discount_max.map(unsigned),
            min_subtotal: unsigned(row.min_subtotal),
            max_issued: unsigned(row.max_issued),
            issue_from: row.issue_from_ms,
            issue_until: row.issue_until_ms,
            later_terms,
        };
        records.add(row.template_id.clone(), packed(&record)?).await?;
        issued.add(row.template_id.clone(), row.issued).await?;
        let number = small(row.number).to_be_bytes();
        numbers.add(Bytes::copy_from_slice(&number), row.template_id.clone()).await?;
        ids.push(row.template_id);
    }
    add_ids(client, keys.template_ids(), ids).await?;
    Ok(([records.finish().await?, issued.finish().await?, numbers.finish().await?], highest))
}

#[derive(sqlx::FromRow)]
struct CouponRow {
    coupon_id: Uuid,
    terms_number: i64,
    user_id: String,
    serial: i64,
    issued_at_ms: i64,
    order_id: Option<Uuid>,
}

/// Rows arrive user by user, so each user's value in `held` is complete when the next user begins.
async fn coupons(
    conn: &mut PgConnection,
    client: &Client,
    keys: &Keys,
) -> Result<LoadedHash, LoadError> {
    let mut rows = sqlx::query_as::<_, CouponRow>(include_str!("sql/load_coupons.sql")).fetch(conn);
    let mut hash = HashLoader::new(client, keys.held());
    let (mut user, mut held) = (String::new(), Vec::new());
    while let Some(row) = rows.try_next().await? {
        let coupon = HeldCoupon {
            terms_number: small(row.terms_number),
            coupon_id: row.coupon_id,
            serial: small(row.serial),
            issued_at: row.issued_at_ms,
            order_id: row.order_id,
        };
        if row.user_id != user {
            let before = std::mem::replace(&mut user, row.user_id);
            hash.add_held(before, std::mem::take(&mut held)).await?;
        }
        held.extend_from_slice(&coupon.to_bytes());
    }
    hash.add_held(user, held).await?;
    Ok(hash.finish().await?)
}

async fn idempotency_records(
    conn: &mut PgConnection,
    client: &Client,
    keys: &Keys,
    clock_ms: TimestampMs,
) -> Result<Vec<LoadedHash>, LoadError> {
    let mut rows = sqlx::query_as::<_, (String, Vec<u8>, Vec<u8>, i64)>(include_str!(
        "sql/load_idempotency.sql"
    ))
    .bind(clock_ms - IDEMPOTENCY_KEPT_MS)
    .fetch(conn);
    let (mut loaded, mut bucket) = (Vec::new(), None::<(i64, HashLoader<'_>)>);
    let mut made = HashMap::new();
    while let Some((scope, hash, reply, decided_at)) = rows.try_next().await? {
        let day = decided_at.div_euclid(DAY_MS);
        if bucket.as_ref().is_none_or(|(of, _)| *of != day) {
            if let Some((_, full)) = bucket.take() {
                loaded.push(counted(full, &mut made).await?);
            }
            bucket = Some((day, HashLoader::new(client, keys.idempotency(day))));
        }
        let user = scope.split(' ').next().unwrap_or_default();
        match made.get_mut(user) {
            Some(count) => *count += 1,
            None => drop(made.insert(user.to_owned(), 1)),
        }
        let record = IdempotencyRecord { request_hash: Blob(hash), decided_at, reply: Blob(reply) };
        if let Some((_, hash)) = bucket.as_mut() {
            hash.add(scope, packed(&record)?).await?;
        }
    }
    if let Some((_, last)) = bucket {
        loaded.push(counted(last, &mut made).await?);
    }
    Ok(loaded)
}

/// Adds each user's number of records to the hash of a day, and finishes the hash.
async fn counted(
    mut hash: HashLoader<'_>,
    made: &mut HashMap<String, i64>,
) -> Result<LoadedHash, Error> {
    for (user, count) in made.drain() {
        hash.add(user, count).await?;
    }
    hash.finish().await
}
