//! Compares the gate with the truth. PostgreSQL is read in pages by key, and each page is looked up
//! in Redis. If Redis has more elements than were found, it is scanned for those that PostgreSQL
//! lacks. Memory holds one page of each side.

use serde_json::{Value as Json, json};
use sqlx::types::Json as SqlJson;
use sqlx::{PgConnection, Row};
use std::collections::{BTreeMap, HashMap, HashSet};
use uuid::Uuid;

use super::report::Check;
use super::{AuditError, PAGE_ROWS};
use crate::domain::hex::hex;
use crate::domain::limits::IDEMPOTENCY_KEPT_MS;
use crate::domain::rfc3339;
use crate::gate::scan::{Holder, Part, Record, Scan};
use crate::redis::held_coupons::HeldCoupon;
use crate::redis::keys::{DAY_MS, Keys};
use crate::redis::meta::Meta;

/// One part of the gate, and the rows that it must equal.
struct Equal {
    part: Part,
    name: &'static str,
    rule: &'static str,
    /// A query for at most $2 rows with ids after $1. Columns: id, shown.
    page: &'static str,
    /// A query for those of the ids $1 that exist.
    find: &'static str,
}

const FIND_PRODUCTS: &str = "SELECT product_id FROM products WHERE product_id = ANY ($1)";
const FIND_PENDING: &str =
    "SELECT order_id::text FROM orders WHERE status = 'pending' AND order_id::text = ANY ($1)";
const FIND_TEMPLATES: &str =
    "SELECT template_id FROM coupon_templates WHERE template_id = ANY ($1)";

const EQUALS: [Equal; 14] = [
    Equal {
        part: Part::Wallets,
        name: "gate-wallets",
        rule: "balances: gate = truth",
        page: include_str!("sql/page_wallets.sql"),
        find: "SELECT user_id FROM wallets WHERE user_id = ANY ($1)",
    },
    Equal {
        part: Part::Products,
        name: "gate-products",
        rule: "products' names, prices, status, rules: gate = truth",
        page: include_str!("sql/page_products.sql"),
        find: FIND_PRODUCTS,
    },
    Equal {
        part: Part::Stocks,
        name: "gate-stocks",
        rule: "stock: gate = truth",
        page: include_str!("sql/page_stocks.sql"),
        find: FIND_PRODUCTS,
    },
    Equal {
        part: Part::ProductIds,
        name: "gate-product-ids",
        rule: "the list of products: gate = truth",
        page: include_str!("sql/page_product_ids.sql"),
        find: FIND_PRODUCTS,
    },
    Equal {
        part: Part::Templates,
        name: "gate-templates",
        rule: "templates' terms: gate = truth",
        page: include_str!("sql/page_templates.sql"),
        find: FIND_TEMPLATES,
    },
    Equal {
        part: Part::Issued,
        name: "gate-issued",
        rule: "coupons issued per template: gate = truth",
        page: include_str!("sql/page_issued.sql"),
        find: FIND_TEMPLATES,
    },
    Equal {
        part: Part::TemplateIds,
        name: "gate-template-ids",
        rule: "the list of templates: gate = truth",
        page: include_str!("sql/page_template_ids.sql"),
        find: FIND_TEMPLATES,
    },
    Equal {
        part: Part::TemplateNumbers,
        name: "gate-template-numbers",
        rule: "templates' numbers: gate = truth",
        page: include_str!("sql/page_template_numbers.sql"),
        find: "SELECT number::text FROM (SELECT number FROM coupon_templates UNION SELECT number FROM coupon_terms) AS n
            WHERE number::text = ANY ($1)",
    },
    Equal {
        part: Part::Terms,
        name: "gate-terms",
        rule: "terms of coupons that the template has changed since: gate = truth",
        page: include_str!("sql/page_terms.sql"),
        find: "SELECT number::text FROM coupon_terms WHERE number::text = ANY ($1)",
    },
    Equal {
        part: Part::Attributes,
        name: "gate-attributes",
        rule: "products' attributes: gate = truth",
        page: "SELECT product_id AS id, to_json(attributes) AS shown FROM products
            WHERE attributes IS NOT NULL AND product_id > $1 ORDER BY product_id LIMIT $2",
        find: "SELECT product_id FROM products WHERE product_id = ANY ($1) AND attributes IS NOT NULL",
    },
    Equal {
        part: Part::Purchases,
        name: "gate-purchases",
        rule: "pieces bought under limits per user: gate = truth",
        page: include_str!("sql/page_purchases.sql"),
        // The gate may still have counts of limits that were removed, and so has the truth.
        find: "SELECT limit_number || ' ' || user_id FROM purchases WHERE limit_number || ' ' || user_id = ANY ($1)",
    },
    Equal {
        part: Part::Pending,
        name: "gate-pending",
        rule: "pending orders: gate = truth",
        page: include_str!("sql/page_pending.sql"),
        find: FIND_PENDING,
    },
    Equal {
        part: Part::PendingDue,
        name: "gate-pending-due",
        rule: "ends of holds: gate = truth",
        page: include_str!("sql/page_pending_due.sql"),
        find: FIND_PENDING,
    },
    Equal {
        part: Part::PendingUsers,
        name: "gate-pending-users",
        rule: "pending orders and their won per user: gate = truth",
        page: include_str!("sql/page_pending_users.sql"),
        find: "SELECT DISTINCT user_id FROM orders WHERE status = 'pending' AND user_id = ANY ($1)",
    },
];

const ABSENT: &str = "nothing";
/// How long after the end of a hold the audit expects it to have ended.
const HOLD_SLACK_MS: i64 = 5_000;

/// The two sides of a comparison: the gate's state in an epoch, and PostgreSQL's snapshot.
pub(super) struct Sides<'a> {
    pub scan: &'a Scan,
    pub keys: Keys,
    pub snapshot: &'a mut PgConnection,
}

impl Sides<'_> {
    pub async fn compare(&mut self, meta: &Meta) -> Result<Vec<Check>, AuditError> {
        let mut checks = vec![self.log_end(meta).await?];
        for equal in &EQUALS {
            checks.push(self.equal(equal).await?);
        }
        checks.push(self.coupons().await?);
        checks.push(self.cancelled().await?);
        checks.push(self.holds(meta.clock_ms).await?);
        checks.push(self.records(meta.clock_ms).await?);
        Ok(checks)
    }

    /// The log must end at the position in `meta`. An entry beyond it was left by a script that
    /// failed midway.
    async fn log_end(&mut self, meta: &Meta) -> Result<Check, AuditError> {
        let mut check = Check::new("gate-log", "the log ends at the position of gate and cursor");
        check.looked_at = 1;
        let expected = format!("{}-{} with tip {}", meta.epoch, meta.seq, meta.tip);
        let found = match self.scan.log_end(self.keys).await? {
            Some(end) => format!("{}-{} with tip {}", end.epoch, end.seq, end.tip),
            None => String::from("no log"),
        };
        if found != expected {
            check.differs(format!("cell {}", self.keys.cell), expected, found);
        }
        Ok(check)
    }

    async fn equal(&mut self, equal: &Equal) -> Result<Check, AuditError> {
        let mut check = Check::new(equal.name, equal.rule);
        let mut missing = 0;
        let mut after = String::new();
        loop {
            let rows = page(self.snapshot, equal.page, &after).await?;
            let ids: Vec<String> = rows.iter().map(|(id, _)| id.clone()).collect();
            let values = self.scan.values(self.keys, equal.part, &ids).await?;
            for ((id, truth), gate) in rows.iter().zip(values) {
                missing += i64::from(gate.is_none());
                if gate.as_ref() != Some(truth) {
                    check.differs(
                        id,
                        truth.to_string(),
                        gate.map_or(ABSENT.into(), |gate| gate.to_string()),
                    );
                }
            }
            check.looked_at += rows.len() as i64;
            match ids.into_iter().last() {
                Some(last) => after = last,
                None => break,
            }
        }
        let in_gate = self.scan.count(self.keys, equal.part).await? as i64;
        if in_gate > check.looked_at - missing {
            self.extra(equal, &mut check).await?;
        }
        Ok(check)
    }

    /// Lists the elements that the gate has and the truth lacks.
    async fn extra(&mut self, equal: &Equal, check: &mut Check) -> Result<(), AuditError> {
        let mut from = None;
        loop {
            let page = self.scan.ids(self.keys, equal.part, from).await?;
            let known: Vec<String> = sqlx::query_scalar(equal.find)
                .bind(&page.elements)
                .fetch_all(&mut *self.snapshot)
                .await?;
            let known: HashSet<String> = known.into_iter().collect();
            let extra: Vec<String> =
                page.elements.into_iter().filter(|id| !known.contains(id)).collect();
            let values = self.scan.values(self.keys, equal.part, &extra).await?;
            for (id, gate) in extra.into_iter().zip(values) {
                check.differs(id, ABSENT, gate.map_or(ABSENT.into(), |gate| gate.to_string()));
            }
            match page.next {
                Some(next) => from = Some(next),
                None => return Ok(()),
            }
        }
    }

    /// Every coupon must be in its holder's value with equal fields. The gate must hold no other
    /// coupon, and none twice.
    async fn coupons(&mut self) -> Result<Check, AuditError> {
        let mut check = Check::new(
            "gate-coupons",
            "coupons' templates, holders, serials, times, orders: gate = truth",
        );
        let mut after = String::new();
        loop {
            let rows = sqlx::query(include_str!("sql/page_coupons.sql"))
                .bind(&after)
                .bind(PAGE_ROWS)
                .fetch_all(&mut *self.snapshot)
                .await?;
            let truth = rows.iter().map(coupon_row).collect::<Result<Vec<_>, _>>()?;
            let Some((_, last)) = truth.last() else {
                break;
            };
            after = last.coupon_id.to_string();
            check.looked_at += truth.len() as i64;
            let users: HashSet<&String> = truth.iter().map(|(user, _)| user).collect();
            let users = users.into_iter().cloned().collect();
            let holders = self.scan.held_by(self.keys, users).await?;
            let held: HashMap<(&str, Uuid), &HeldCoupon> = holders
                .iter()
                .flat_map(|Holder { user, coupons, .. }| {
                    coupons.iter().map(|coupon| ((user.as_str(), coupon.coupon_id), coupon))
                })
                .collect();
            for (user, coupon) in &truth {
                let found = held.get(&(user.as_str(), coupon.coupon_id));
                if found != Some(&coupon) {
                    let found = found.map_or(ABSENT.into(), |found| shown(found));
                    check.differs(named(user, coupon), shown(coupon), found);
                }
            }
        }
        self.coupons_beyond_truth(&mut check).await?;
        Ok(check)
    }

    async fn coupons_beyond_truth(&mut self, check: &mut Check) -> Result<(), AuditError> {
        let mut from = None;
        loop {
            let page = self.scan.held(self.keys, from).await?;
            let truth = self.holders_of(&page.elements).await?;
            for Holder { user, coupons, rest } in &page.elements {
                let mut seen = HashSet::new();
                for coupon in coupons {
                    if truth.get(&coupon.coupon_id) != Some(user) {
                        check.differs(named(user, coupon), ABSENT, shown(coupon));
                    } else if !seen.insert(coupon.coupon_id) {
                        check.differs(named(user, coupon), "it once", "it twice");
                    }
                }
                if !rest.is_empty() {
                    check.differs(user, "whole coupons", format!("undecodable: {}", hex(rest)));
                }
            }
            match page.next {
                Some(next) => from = Some(next),
                None => return Ok(()),
            }
        }
    }

    /// The owners of these coupons, according to the truth.
    async fn holders_of(
        &mut self,
        holders: &[Holder],
    ) -> Result<HashMap<Uuid, String>, AuditError> {
        let ids: Vec<Uuid> =
            holders.iter().flat_map(|h| &h.coupons).map(|coupon| coupon.coupon_id).collect();
        let mut truth = HashMap::with_capacity(ids.len());
        for some in ids.chunks(PAGE_ROWS as usize) {
            let rows: Vec<(Uuid, String)> =
                sqlx::query_as("SELECT coupon_id, user_id FROM coupons WHERE coupon_id = ANY ($1)")
                    .bind(some)
                    .fetch_all(&mut *self.snapshot)
                    .await?;
            truth.extend(rows);
        }
        Ok(truth)
    }

    async fn cancelled(&mut self) -> Result<Check, AuditError> {
        let mut check =
            Check::new("gate-cancelled", "orders cancelled in the gate are cancelled in the truth");
        let mut from = None;
        loop {
            let page = self.scan.cancelled(self.keys, from).await?;
            // An element that is not a UUID cannot be an order; it is reported as missing below.
            let ids: Vec<Uuid> =
                page.elements.iter().filter_map(|id| Uuid::try_parse(id).ok()).collect();
            let rows: Vec<(Uuid, String)> = sqlx::query_as(include_str!("sql/find_orders.sql"))
                .bind(ids)
                .fetch_all(&mut *self.snapshot)
                .await?;
            let status: HashMap<String, String> =
                rows.into_iter().map(|(id, status)| (id.to_string(), status)).collect();
            check.looked_at += page.elements.len() as i64;
            for id in page.elements {
                match status.get(&id).map(String::as_str) {
                    Some("cancelled") => {}
                    Some(other) => check.differs(id, other, "cancelled"),
                    None => check.differs(id, "no order", "cancelled"),
                }
            }
            match page.next {
                Some(next) => from = Some(next),
                None => return Ok(check),
            }
        }
    }

    /// No hold is over for long: something was decided well after its end, so its end must have been
    /// decided, too.
    async fn holds(&mut self, clock_ms: i64) -> Result<Check, AuditError> {
        let mut check = Check::new("holds-end", "every hold that is over has ended");
        let count = "SELECT count(*) FROM orders WHERE status = 'pending'";
        check.looked_at = sqlx::query_scalar(count).fetch_one(&mut *self.snapshot).await?;
        let sql = "SELECT order_id::text, (extract(epoch FROM hold_expires_at) * 1000)::bigint FROM orders
            WHERE status = 'pending' AND hold_expires_at < to_timestamp($1::bigint / 1000.0::float8)
            ORDER BY order_id LIMIT 20";
        let overdue: Vec<(String, i64)> = sqlx::query_as(sql)
            .bind(clock_ms - HOLD_SLACK_MS)
            .fetch_all(&mut *self.snapshot)
            .await?;
        for (order, ended_at) in overdue {
            check.differs(order, "ended", format!("pending, held until {}", rfc3339(ended_at)));
        }
        Ok(check)
    }

    /// Every live idempotency record of the gate must be in the truth, and the truth must have
    /// equally many live records. The truth keeps records for longer, so its old ones are not
    /// counted.
    async fn records(&mut self, clock_ms: i64) -> Result<Check, AuditError> {
        let mut check =
            Check::new("gate-records", "live idempotency records are the same in gate and truth");
        let today = clock_ms.div_euclid(DAY_MS);
        let mut made: BTreeMap<String, HashSet<String>> = BTreeMap::new();
        for day in [today - 1, today] {
            let mut from = None;
            loop {
                let page = self.scan.records(self.keys, day, from).await?;
                for Record { scope, .. } in page.elements.iter().filter(|_| day == today) {
                    let user = scope.split(' ').next().unwrap_or_default();
                    made.entry(user.to_owned()).or_default().insert(scope.clone());
                }
                let live = |record: &Record| {
                    record.decided_at > clock_ms.saturating_sub(IDEMPOTENCY_KEPT_MS)
                };
                let live: Vec<Record> = page.elements.into_iter().filter(live).collect();
                self.compare_records(live, &mut check).await?;
                match page.next {
                    Some(next) => from = Some(next),
                    None => break,
                }
            }
        }
        let live_in_truth: i64 = sqlx::query_scalar(include_str!("sql/count_live_records.sql"))
            .bind(clock_ms.saturating_sub(IDEMPOTENCY_KEPT_MS))
            .fetch_one(&mut *self.snapshot)
            .await?;
        if live_in_truth != check.looked_at {
            let found = check.looked_at.to_string();
            check.differs("number of live records", live_in_truth.to_string(), found);
        }
        self.compare_counts(today, made, &mut check).await?;
        Ok(check)
    }

    /// The gate's count of a user's records today must not exceed the records themselves. It may be
    /// lower: versions without the limit on keys did not count.
    async fn compare_counts(
        &mut self,
        day: i64,
        made: BTreeMap<String, HashSet<String>>,
        check: &mut Check,
    ) -> Result<(), AuditError> {
        let made: Vec<(String, usize)> =
            made.into_iter().map(|(user, scopes)| (user, scopes.len())).collect();
        for some in made.chunks(PAGE_ROWS as usize) {
            let users = some.iter().map(|(user, _)| user.clone()).collect();
            let counted = self.scan.records_made(self.keys, day, users).await?;
            for ((user, made), counted) in some.iter().zip(counted) {
                if counted.is_some_and(|counted| counted > *made as u64) {
                    let found = counted.unwrap_or_default().to_string();
                    check.differs(format!("records of {user} today"), made.to_string(), found);
                }
            }
        }
        Ok(())
    }

    async fn compare_records(
        &mut self,
        records: Vec<Record>,
        check: &mut Check,
    ) -> Result<(), AuditError> {
        let scopes: Vec<&str> = records.iter().map(|record| record.scope.as_str()).collect();
        let rows = sqlx::query(include_str!("sql/find_records.sql"))
            .bind(&scopes)
            .fetch_all(&mut *self.snapshot)
            .await?;
        let truth: HashMap<String, Json> = rows.iter().map(shown_row).collect::<Result<_, _>>()?;
        check.looked_at += records.len() as i64;
        for record in records {
            let expected = truth.get(&record.scope);
            if expected != Some(&record.shown) {
                let expected = expected.map_or(ABSENT.into(), Json::to_string);
                check.differs(record.scope, expected, record.shown.to_string());
            }
        }
        Ok(())
    }
}

async fn page(
    snapshot: &mut PgConnection,
    sql: &'static str,
    after: &str,
) -> Result<Vec<(String, Json)>, sqlx::Error> {
    let rows = sqlx::query(sql).bind(after).bind(PAGE_ROWS).fetch_all(snapshot).await?;
    rows.iter().map(shown_row).collect()
}

fn shown_row(row: &sqlx::postgres::PgRow) -> Result<(String, Json), sqlx::Error> {
    let SqlJson(shown) = row.try_get("shown")?;
    Ok((row.try_get("id")?, shown))
}

/// A coupon and its owner. A number out of range becomes 0, so that it is reported as a difference.
fn coupon_row(row: &sqlx::postgres::PgRow) -> Result<(String, HeldCoupon), sqlx::Error> {
    let number = |name| row.try_get::<i64, _>(name).map(|n| u32::try_from(n).unwrap_or_default());
    let coupon = HeldCoupon {
        terms_number: number("number")?,
        coupon_id: row.try_get("coupon_id")?,
        serial: number("serial")?,
        issued_at: row.try_get("issued_at_ms")?,
        order_id: row.try_get("order_id")?,
    };
    Ok((row.try_get("user_id")?, coupon))
}

fn named(user: &str, coupon: &HeldCoupon) -> String {
    format!("coupon {} of {user}", coupon.coupon_id)
}

fn shown(coupon: &HeldCoupon) -> String {
    json!({
        "terms_number": coupon.terms_number, "serial": coupon.serial, "issued_at": coupon.issued_at,
        "order": coupon.order_id.map(|id| id.to_string()),
    })
    .to_string()
}
