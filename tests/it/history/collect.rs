//! Reads what the servers hold at the end of a history.

use std::collections::BTreeMap;
use std::path::Path;

use rushgate::domain::wire::Id;
use rushgate::log::RawEntry;
use sqlx::PgPool;
use uuid::Uuid;

use super::aof;
use super::model::LedgerLine;
use super::record::{Epoch, History, LeftOut, Operation, Truth, TruthOrder};
use crate::cluster::Cluster;

/// A trigger in PostgreSQL that records every position of the cursor.
const WATCH_CURSOR: &str = "
    CREATE TABLE watched_cursors (n bigserial PRIMARY KEY, epoch bigint NOT NULL, seq bigint NOT NULL, tip text NOT NULL);
    CREATE FUNCTION watch_cursor() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        INSERT INTO watched_cursors (epoch, seq, tip) VALUES (NEW.epoch, NEW.seq, NEW.tip);
        RETURN NULL;
    END $$;
    INSERT INTO watched_cursors (epoch, seq, tip) SELECT epoch, seq, tip FROM cell_cursors;
    CREATE TRIGGER watch_cursor AFTER UPDATE ON cell_cursors FOR EACH ROW EXECUTE FUNCTION watch_cursor();";

/// The redis.conf lines that history checking needs.
pub fn redis_config() -> Vec<String> {
    vec![aof::NO_REWRITE.to_owned()]
}

/// Call on the migrated database, before the first request.
pub async fn watch_cursor(pool: &PgPool) {
    sqlx::raw_sql(WATCH_CURSOR).execute(pool).await.unwrap();
}

/// Collects everything that the checker needs, after the servers have caught up. `elsewhere` has
/// the entries that were held by a Redis that no longer exists.
pub async fn collect(
    cluster: &Cluster,
    operations: Vec<Operation>,
    elsewhere: Vec<RawEntry>,
) -> History {
    cluster.caught_up().await;
    let audit = cluster.settings.run(&["audit", "--wait", "30s"]).await;
    cluster.outbox_delivered().await;
    History {
        operations,
        epochs: epochs(&cluster.pool, cluster.redis.folder(), elsewhere).await,
        left_out: left_out(&cluster.pool).await,
        truth: truth(&cluster.pool).await,
        events: cluster.events().await,
        audit: (audit.code != 0).then(|| format!("{}{}", audit.stdout, audit.stderr)),
    }
}

async fn epochs(pool: &PgPool, redis_folder: &Path, elsewhere: Vec<RawEntry>) -> Vec<Epoch> {
    let places: Vec<(i64, i64, String)> =
        sqlx::query_as("SELECT epoch, seq, tip FROM watched_cursors ORDER BY n")
            .fetch_all(pool)
            .await
            .unwrap();
    let mut epochs: BTreeMap<u64, Epoch> = BTreeMap::new();
    for (epoch, seq, tip) in places {
        let epoch = unsigned(epoch);
        let last = epochs.entry(epoch).or_insert_with(|| Epoch { epoch, ..Epoch::default() });
        if unsigned(seq) >= last.last_seq {
            (last.last_seq, last.last_tip) = (unsigned(seq), tip);
        }
    }
    for entry in elsewhere.into_iter().chain(aof::entries(redis_folder)) {
        if let Some(epoch) = epochs.get_mut(&entry.epoch) {
            epoch.entries.push(entry);
        }
    }
    epochs.into_values().collect()
}

async fn left_out(pool: &PgPool) -> Vec<LeftOut> {
    let sql = "SELECT epoch, seq, fact, outcome FROM quarantined_facts WHERE outcome IN ('skipped', 'gone')";
    let rows: Vec<(i64, i64, i32, String)> = sqlx::query_as(sql).fetch_all(pool).await.unwrap();
    rows.into_iter()
        .map(|(epoch, seq, fact, outcome)| LeftOut {
            epoch: unsigned(epoch),
            seq: unsigned(seq),
            fact: usize::try_from(fact).unwrap(),
            skipped: outcome == "skipped",
        })
        .collect()
}

fn unsigned(n: i64) -> u64 {
    u64::try_from(n).unwrap()
}

async fn truth(pool: &PgPool) -> Truth {
    let mut truth = Truth::default();
    let wallets: Vec<(String, i64)> =
        sqlx::query_as("SELECT user_id, balance FROM wallets").fetch_all(pool).await.unwrap();
    truth.wallets = wallets.into_iter().map(|(user, balance)| (user, unsigned(balance))).collect();
    truth.ledgers = ledgers(pool).await;
    let products: Vec<(String, String, i64, String, i64)> =
        sqlx::query_as("SELECT product_id, name, price, status, stock FROM products")
            .fetch_all(pool)
            .await
            .unwrap();
    for (id, name, price, status, stock) in products {
        truth.products.insert(id, (name, unsigned(price), status, unsigned(stock)));
    }
    let templates: Vec<(String, i64, i64)> =
        sqlx::query_as("SELECT template_id, max_issued, issued FROM coupon_templates")
            .fetch_all(pool)
            .await
            .unwrap();
    for (id, limit, issued) in templates {
        truth.templates.insert(id, (unsigned(limit), unsigned(issued)));
    }
    let coupons: Vec<(Uuid, String, String, i64, Option<Uuid>)> =
        sqlx::query_as("SELECT coupon_id, template_id, user_id, serial, order_id FROM coupons")
            .fetch_all(pool)
            .await
            .unwrap();
    for (id, template, user, serial, order) in coupons {
        truth.coupons.insert(Id(id), (template, user, unsigned(serial), order.map(Id)));
    }
    truth.orders = orders(pool).await;
    let put_in: Vec<(String, i64)> = sqlx::query_as(
        "SELECT product_id, sum(delta)::bigint FROM stock_adjustments GROUP BY product_id",
    )
    .fetch_all(pool)
    .await
    .unwrap();
    truth.put_in = put_in.into_iter().collect();
    truth
}

async fn ledgers(pool: &PgPool) -> BTreeMap<String, Vec<LedgerLine>> {
    let lines: Vec<(String, String, i64, i64, Uuid, i64)> = sqlx::query_as(
        "SELECT user_id, kind, amount, balance_after, ref_id, (extract(epoch FROM at) * 1000)::bigint
         FROM wallet_entries ORDER BY entry_id",
    )
    .fetch_all(pool)
    .await
    .unwrap();
    let mut ledgers: BTreeMap<String, Vec<LedgerLine>> = BTreeMap::new();
    for (user, kind, amount, balance_after, ref_id, at) in lines {
        let kind = match kind.as_str() {
            "charge" => "charge",
            "payment" => "payment",
            _ => "refund",
        };
        let line = LedgerLine {
            kind,
            amount,
            balance_after: unsigned(balance_after),
            ref_id: Id(ref_id),
            at,
        };
        ledgers.entry(user).or_default().push(line);
    }
    ledgers
}

async fn orders(pool: &PgPool) -> BTreeMap<Id, TruthOrder> {
    type Row = (Uuid, String, bool, i64, i64, i64, Option<Uuid>);
    let rows: Vec<Row> = sqlx::query_as(
        "SELECT order_id, user_id, status = 'cancelled', subtotal, discount, total, coupon_id FROM orders",
    )
    .fetch_all(pool)
    .await
    .unwrap();
    let mut orders: BTreeMap<Id, TruthOrder> = rows
        .into_iter()
        .map(|(id, user_id, cancelled, subtotal, discount, total, coupon)| {
            let order = TruthOrder {
                user_id,
                cancelled,
                subtotal: unsigned(subtotal),
                discount: unsigned(discount),
                total: unsigned(total),
                coupon_id: coupon.map(Id),
                lines: vec![],
            };
            (Id(id), order)
        })
        .collect();
    let lines: Vec<(Uuid, String, i64)> = sqlx::query_as(
        "SELECT order_id, product_id, quantity FROM order_items ORDER BY order_id, line_no",
    )
    .fetch_all(pool)
    .await
    .unwrap();
    for (order, product, quantity) in lines {
        let order =
            orders.get_mut(&Id(order)).unwrap_or_else(|| panic!("lines of no order: {order}"));
        order.lines.push((product, unsigned(quantity)));
    }
    orders
}
