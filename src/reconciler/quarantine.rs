//! The quarantine: decisions that were answered and that PostgreSQL does not have.
//! `quarantined_facts` keeps them fact by fact, `log_quarantine` keeps whole entries.
//!
//! A row is written by the transaction that leaves the fact out or, for a log that cannot be
//! applied, before that log is removed. So a crash in between hides nothing, and writing the same
//! row again changes nothing.

use std::collections::{BTreeMap, BTreeSet};

use sqlx::{Connection, PgConnection};
use uuid::Uuid;

use super::cursor::{Cursor, cell_number, signed};
use super::differences::{HeldBy, Issuing, Outcome, Picture, Skips, Touched, Untrue};
use crate::domain::OrderStatus;
use crate::log::told::ToldFact;
use crate::log::{Entry, RawEntry};

/// Which facts of an entry an operator skips.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// One, by its position from 1.
    One(usize),
    /// The whole entry: the only choice if it cannot be decoded.
    All,
}

/// What an operator has skipped in a range of entries.
#[derive(Debug, Default)]
pub struct Skipped {
    /// An entry's tip → its skipped facts.
    facts: BTreeMap<String, Skips>,
    /// Tips of entries that cannot be decoded and are skipped as a whole.
    whole: BTreeSet<String>,
}

impl Skipped {
    /// Reads the skips of the entries after `cursor`, up to `last_seq`.
    pub async fn read(
        conn: &mut PgConnection,
        cursor: &Cursor,
        last_seq: u64,
    ) -> Result<Self, sqlx::Error> {
        let mut skipped = Self::default();
        let rows: Vec<(String, i32, String)> = sqlx::query_as(
            "SELECT tip, fact, reason FROM quarantined_facts
             WHERE cell = $1 AND epoch = $2 AND seq > $3 AND seq <= $4 AND outcome = 'skipped'",
        )
        .bind(cell_number(cursor.cell))
        .bind(signed(cursor.epoch))
        .bind(signed(cursor.seq))
        .bind(signed(last_seq))
        .fetch_all(&mut *conn)
        .await?;
        for (tip, fact, reason) in rows {
            let facts = skipped.facts.entry(tip).or_default();
            facts.insert(usize::try_from(fact).unwrap_or(0), reason);
        }
        let whole: Vec<String> = sqlx::query_scalar(
            "SELECT tip FROM log_quarantine WHERE cell = $1 AND epoch = $2 AND seq > $3 AND seq <= $4",
        )
        .bind(cell_number(cursor.cell))
        .bind(signed(cursor.epoch))
        .bind(signed(cursor.seq))
        .bind(signed(last_seq))
        .fetch_all(conn)
        .await?;
        skipped.whole.extend(whole);
        Ok(skipped)
    }

    pub fn of(&self, entry: &RawEntry) -> Skips {
        self.facts.get(&entry.tip).cloned().unwrap_or_default()
    }

    /// Whether the entry is skipped as a whole.
    pub fn whole(&self, entry: &RawEntry) -> bool {
        self.whole.contains(&entry.tip)
    }
}

/// Registers a skip if the cursor still stands before the entry. From then on, every reconciler
/// applies what follows by differences. `false`: the cursor has moved.
pub async fn register(
    conn: &mut PgConnection,
    cursor: &Cursor,
    entry: &RawEntry,
    choice: Choice,
    reason: &str,
) -> Result<bool, sqlx::Error> {
    let mut tx = conn.begin().await?;
    let marked = sqlx::query(
        "UPDATE cell_cursors SET skipping = true, halted_reason = NULL, updated_at = now()
         WHERE cell = $1 AND epoch = $2 AND seq = $3 AND tip = $4",
    )
    .bind(cell_number(cursor.cell))
    .bind(signed(cursor.epoch))
    .bind(signed(cursor.seq))
    .bind(&cursor.tip)
    .execute(&mut *tx)
    .await?;
    if marked.rows_affected() != 1 {
        tx.rollback().await?;
        return Ok(false);
    }
    match entry.decode() {
        Ok(decoded) => {
            let mut rows = Rows::default();
            for (at, (answered, raw)) in
                decoded.facts.told().iter().zip(&decoded.raw_facts).enumerate()
            {
                if choice == Choice::All || choice == Choice::One(at + 1) {
                    rows.add(at + 1, Outcome::Skipped.as_str(), answered, reason, raw);
                }
            }
            rows.insert(&mut tx, cursor.cell, entry).await?;
        }
        Err(_) => keep_whole(&mut tx, cursor.cell, entry, reason).await?,
    }
    tx.commit().await?;
    Ok(true)
}

/// The newest epoch in which this skip was registered.
pub async fn registered(
    conn: &mut PgConnection,
    cell: u32,
    seq: u64,
    choice: Choice,
) -> Result<Option<u64>, sqlx::Error> {
    let fact = match choice {
        Choice::One(fact) => i32::try_from(fact).ok(),
        Choice::All => None,
    };
    let epoch: Option<i64> = sqlx::query_scalar(
        "SELECT max(epoch) FROM (
             SELECT epoch FROM quarantined_facts
             WHERE cell = $1 AND seq = $2 AND outcome = 'skipped' AND ($3::int IS NULL OR fact = $3)
             UNION ALL
             SELECT epoch FROM log_quarantine WHERE cell = $1 AND seq = $2 AND $3::int IS NULL
         ) AS registered",
    )
    .bind(cell_number(cell))
    .bind(signed(seq))
    .bind(fact)
    .fetch_one(conn)
    .await?;
    Ok(epoch.map(i64::unsigned_abs))
}

/// Records the facts of an entry whose answers are not true. Existing rows stay as they are.
pub async fn keep(
    conn: &mut PgConnection,
    cell: u32,
    entry: &RawEntry,
    untrue: &[Untrue],
) -> Result<(), sqlx::Error> {
    Rows::of(untrue).insert(conn, cell, entry).await
}

/// The columns of one entry's rows.
#[derive(Default)]
struct Rows {
    facts: Vec<i32>,
    outcomes: Vec<&'static str>,
    kinds: Vec<&'static str>,
    user_ids: Vec<Option<String>>,
    ids: Vec<Option<Uuid>>,
    told: Vec<String>,
    holds: Vec<Option<String>>,
    keyed: Vec<bool>,
    reasons: Vec<String>,
    raw: Vec<Vec<u8>>,
}

impl Rows {
    fn add(
        &mut self,
        fact: usize,
        outcome: &'static str,
        answered: &ToldFact,
        reason: &str,
        raw: &[u8],
    ) {
        self.facts.push(i32::try_from(fact).unwrap_or(i32::MAX));
        self.outcomes.push(outcome);
        self.kinds.push(answered.kind);
        self.user_ids.push(answered.user_id.clone());
        self.ids.push(answered.id);
        self.told.push(answered.told.to_string());
        self.holds.push(None);
        self.keyed.push(answered.keyed);
        self.reasons.push(reason.to_owned());
        self.raw.push(raw.to_vec());
    }

    fn of(untrue: &[Untrue]) -> Self {
        let mut rows = Self::default();
        for u in untrue {
            rows.add(u.fact, u.outcome.as_str(), &u.answered, &u.reason, &u.raw);
            if let Some(last) = rows.holds.last_mut() {
                *last = u.holds.as_ref().map(ToString::to_string);
            }
        }
        rows
    }

    async fn insert(
        self,
        conn: &mut PgConnection,
        cell: u32,
        entry: &RawEntry,
    ) -> Result<(), sqlx::Error> {
        if self.facts.is_empty() {
            return Ok(());
        }
        sqlx::query(include_str!("sql/quarantine.sql"))
            .bind(cell_number(cell))
            .bind(signed(entry.epoch))
            .bind(signed(entry.seq))
            .bind(&entry.tip)
            .bind(self.facts)
            .bind(self.outcomes)
            .bind(self.kinds)
            .bind(self.user_ids)
            .bind(self.ids)
            .bind(self.told)
            .bind(self.holds)
            .bind(self.keyed)
            .bind(self.reasons)
            .bind(self.raw)
            .execute(conn)
            .await?;
        Ok(())
    }
}

async fn keep_whole(
    conn: &mut PgConnection,
    cell: u32,
    entry: &RawEntry,
    reason: &str,
) -> Result<(), sqlx::Error> {
    sqlx::query(
        "INSERT INTO log_quarantine (cell, epoch, seq, payload, tip, reason) VALUES ($1, $2, $3, $4, $5, $6)
         ON CONFLICT DO NOTHING",
    )
    .bind(cell_number(cell))
    .bind(signed(entry.epoch))
    .bind(signed(entry.seq))
    .bind(&entry.payload)
    .bind(&entry.tip)
    .bind(reason)
    .execute(conn)
    .await?;
    Ok(())
}

/// Keeps entries that cannot be applied, and the answers to their facts. Returns the number of
/// facts.
pub async fn keep_lost(
    conn: &mut PgConnection,
    cell: u32,
    entries: &[RawEntry],
    reason: &str,
) -> Result<usize, sqlx::Error> {
    let mut tx = conn.begin().await?;
    let mut facts = 0;
    for entry in entries {
        keep_whole(&mut tx, cell, entry, reason).await?;
        let Ok(decoded) = entry.decode() else { continue };
        let told = decoded.facts.told();
        facts += told.len();
        let mut rows = Rows::default();
        for (at, (answered, raw)) in told.iter().zip(&decoded.raw_facts).enumerate() {
            rows.add(at + 1, "lost", answered, reason, raw);
        }
        rows.insert(&mut tx, cell, entry).await?;
    }
    tx.commit().await?;
    Ok(facts)
}

/// Counts the lost decisions that have not been counted yet, by kind, and marks them as counted.
pub async fn count(conn: &mut PgConnection, cell: u32) -> Result<Vec<(String, i64)>, sqlx::Error> {
    sqlx::query_as(
        "WITH counting AS (
             UPDATE quarantined_facts SET counted = true WHERE cell = $1 AND NOT counted RETURNING kind, outcome
         )
         SELECT kind, count(*) FROM counting WHERE outcome <> 'changed' GROUP BY kind",
    )
    .bind(cell_number(cell))
    .fetch_all(conn)
    .await
}

fn list<T>(set: BTreeSet<T>) -> Vec<T> {
    set.into_iter().collect()
}

/// Reads the rows that `entries` touch, as the caller's transaction sees them.
pub async fn picture(conn: &mut PgConnection, entries: &[Entry]) -> Result<Picture, sqlx::Error> {
    let mut touched = Touched::default();
    entries.iter().for_each(|entry| touched.add(&entry.facts));
    let mut picture = Picture::default();

    let users = list(touched.users);
    let sql = "SELECT user_id, sum(wallet_amount)::bigint FROM orders
        WHERE status = 'pending' AND user_id = ANY($1) GROUP BY user_id";
    let rows: Vec<(String, i64)> = sqlx::query_as(sql).bind(&users).fetch_all(&mut *conn).await?;
    picture.held.extend(rows.into_iter().map(|(user, won)| (user, won.unsigned_abs())));

    let sql = "SELECT user_id, balance FROM wallets WHERE user_id = ANY($1)";
    let rows: Vec<(String, i64)> = sqlx::query_as(sql).bind(users).fetch_all(&mut *conn).await?;
    picture.wallets.extend(rows.into_iter().map(|(user, balance)| (user, balance.unsigned_abs())));

    let sql = "SELECT product_id, stock FROM products WHERE product_id = ANY($1)";
    let rows: Vec<(String, i64)> =
        sqlx::query_as(sql).bind(list(touched.products)).fetch_all(&mut *conn).await?;
    picture.stocks.extend(rows.into_iter().map(|(product, stock)| (product, stock.unsigned_abs())));

    let sql = "SELECT t.template_id, t.issued, t.max_issued, t.terms_number, ARRAY(
            SELECT e.number FROM coupon_terms AS e
            WHERE e.template_id = t.template_id AND e.number <> t.number
        )
        FROM coupon_templates AS t WHERE t.template_id = ANY($1)";
    type TemplateRow = (String, i64, i64, Option<i64>, Vec<i64>);
    let rows: Vec<TemplateRow> =
        sqlx::query_as(sql).bind(list(touched.templates)).fetch_all(&mut *conn).await?;
    picture.templates.extend(rows.into_iter().map(|(id, issued, max_issued, number, later)| {
        let template = Issuing {
            issued: issued.unsigned_abs(),
            max_issued: max_issued.unsigned_abs(),
            terms_number: number.map(i64::unsigned_abs),
            later_terms: later.into_iter().map(i64::unsigned_abs).collect(),
        };
        (id, template)
    }));

    let sql = "SELECT coupon_id, user_id, order_id FROM coupons WHERE coupon_id = ANY($1)";
    let rows: Vec<(Uuid, String, Option<Uuid>)> =
        sqlx::query_as(sql).bind(list(touched.coupons)).fetch_all(&mut *conn).await?;
    picture
        .coupons
        .extend(rows.into_iter().map(|(id, user_id, order_id)| (id, HeldBy { user_id, order_id })));

    let (users, templates): (Vec<String>, Vec<String>) = touched.holders.into_iter().unzip();
    let sql = "SELECT c.user_id, c.template_id, c.coupon_id
        FROM unnest($1::text[], $2::text[]) AS h (user_id, template_id)
        JOIN coupons c ON c.user_id = h.user_id AND c.template_id = h.template_id";
    let rows: Vec<(String, String, Uuid)> =
        sqlx::query_as(sql).bind(users).bind(templates).fetch_all(&mut *conn).await?;
    picture
        .holders
        .extend(rows.into_iter().map(|(user, template, coupon)| ((user, template), coupon)));

    let sql = "SELECT order_id, status FROM orders WHERE order_id = ANY($1)";
    let rows: Vec<(Uuid, String)> =
        sqlx::query_as(sql).bind(list(touched.orders)).fetch_all(&mut *conn).await?;
    let known = |(id, status): (Uuid, String)| Some((id, OrderStatus::parse(&status)?));
    picture.orders.extend(rows.into_iter().filter_map(known));

    let (limits, users): (Vec<i64>, Vec<String>) =
        touched.purchases.into_iter().map(|(limit, user)| (signed(limit), user)).unzip();
    let sql = "SELECT p.limit_number, p.user_id, p.bought
        FROM unnest($1::bigint[], $2::text[]) AS h (limit_number, user_id)
        JOIN purchases p ON p.limit_number = h.limit_number AND p.user_id = h.user_id";
    let rows: Vec<(i64, String, i64)> =
        sqlx::query_as(sql).bind(limits).bind(users).fetch_all(conn).await?;
    picture.purchases.extend(
        rows.into_iter()
            .map(|(limit, user, bought)| ((limit.unsigned_abs(), user), bought.unsigned_abs())),
    );
    Ok(picture)
}
