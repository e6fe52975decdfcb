//! Reads what the servers hold at the end of a history.

use std::collections::BTreeMap;
use std::path::Path;

use rushgate::domain::SaleRules;
use rushgate::domain::wire::Id;
use rushgate::log::RawEntry;
use sqlx::PgPool;
use uuid::Uuid;

use super::aof;
use super::model::{CouponTerms, LedgerLine};
use super::record::{
    Epoch, History, LeftOut, Operation, Truth, TruthCoupon, TruthOrder, TruthProduct,
};
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
    truth.products = products(pool).await;
    let templates: Vec<(String, i64, i64)> =
        sqlx::query_as("SELECT template_id, max_issued, issued FROM coupon_templates")
            .fetch_all(pool)
            .await
            .unwrap();
    for (id, limit, issued) in templates {
        truth.templates.insert(id, (unsigned(limit), unsigned(issued)));
    }
    truth.coupons = coupons(pool).await;
    truth.orders = orders(pool).await;
    let bought: Vec<(i64, String, i64)> = sqlx::query_as(
        "SELECT limit_number, user_id, bought FROM purchases JOIN products USING (limit_number)
         WHERE per_user_limit IS NOT NULL",
    )
    .fetch_all(pool)
    .await
    .unwrap();
    for (number, user, pieces) in bought {
        truth.purchases.insert((unsigned(number), user), unsigned(pieces));
    }
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

async fn products(pool: &PgPool) -> BTreeMap<String, TruthProduct> {
    type Row = (
        String,
        String,
        i64,
        String,
        i64,
        Option<i64>,
        Option<i64>,
        Option<i64>,
        Option<i64>,
        Option<String>,
    );
    let rows: Vec<Row> = sqlx::query_as(
        "SELECT product_id, name, price, status, stock, (extract(epoch FROM sale_from) * 1000)::bigint,
            (extract(epoch FROM sale_until) * 1000)::bigint, per_user_limit, limit_number, attributes
         FROM products",
    )
    .fetch_all(pool)
    .await
    .unwrap();
    let product = |row: Row| {
        let (id, name, price, status, stock, sale_from, sale_until, limit, number, attributes) =
            row;
        let per_user_limit = limit.map(unsigned);
        let product = TruthProduct {
            name,
            price: unsigned(price),
            status,
            stock: unsigned(stock),
            rules: SaleRules { sale_from, sale_until, per_user_limit, attributes },
            // PostgreSQL keeps the number of a limit that was removed.
            limit_number: per_user_limit.and(number.map(unsigned)),
        };
        (id, product)
    };
    rows.into_iter().map(product).collect()
}

/// Coupons with the terms that they were issued with.
async fn coupons(pool: &PgPool) -> BTreeMap<Id, TruthCoupon> {
    type Row = (Uuid, String, String, i64, Option<Uuid>, String, i64, Option<i64>, i64);
    let rows: Vec<Row> = sqlx::query_as(
        "SELECT c.coupon_id, c.template_id, c.user_id, c.serial, c.order_id,
            coalesce(e.discount_type, t.discount_type), coalesce(e.discount_value, t.discount_value),
            CASE WHEN e.number IS NULL THEN t.discount_max ELSE e.discount_max END,
            coalesce(e.min_subtotal, t.min_subtotal)
         FROM coupons AS c
         JOIN coupon_templates AS t USING (template_id)
         LEFT JOIN coupon_terms AS e ON e.number = coalesce(c.terms_number, t.number)",
    )
    .fetch_all(pool)
    .await
    .unwrap();
    let coupon = |row: Row| {
        let (id, template_id, user_id, serial, order, discount_type, value, max, min) = row;
        let coupon = TruthCoupon {
            template_id,
            user_id,
            serial: unsigned(serial),
            order_id: order.map(Id),
            terms: CouponTerms {
                discount_type,
                discount_value: unsigned(value),
                discount_max: max.map(unsigned),
                min_subtotal: unsigned(min),
            },
        };
        (Id(id), coupon)
    };
    rows.into_iter().map(coupon).collect()
}

#[derive(sqlx::FromRow)]
struct OrderRow {
    order_id: Uuid,
    user_id: String,
    status: String,
    subtotal: i64,
    discount: i64,
    total: i64,
    coupon_id: Option<Uuid>,
    reference: Option<String>,
    wallet_amount: Option<i64>,
    hold_expires_at_ms: Option<i64>,
    payment_reference: Option<String>,
}

async fn orders(pool: &PgPool) -> BTreeMap<Id, TruthOrder> {
    let rows: Vec<OrderRow> = sqlx::query_as(
        "SELECT order_id, user_id, status, subtotal, discount, total, coupon_id, reference, wallet_amount,
            (extract(epoch FROM hold_expires_at) * 1000)::bigint AS hold_expires_at_ms, payment_reference
         FROM orders",
    )
    .fetch_all(pool)
    .await
    .unwrap();
    let mut orders: BTreeMap<Id, TruthOrder> = rows
        .into_iter()
        .map(|row| {
            let order = TruthOrder {
                user_id: row.user_id,
                status: row.status,
                subtotal: unsigned(row.subtotal),
                discount: unsigned(row.discount),
                total: unsigned(row.total),
                coupon_id: row.coupon_id.map(Id),
                lines: vec![],
                reference: row.reference,
                wallet_amount: row.wallet_amount.map(unsigned),
                hold_expires_at: row.hold_expires_at_ms,
                payment_reference: row.payment_reference,
            };
            (Id(row.order_id), order)
        })
        .collect();
    let lines: Vec<(Uuid, String, i64, Option<i64>)> = sqlx::query_as(
        "SELECT order_id, product_id, quantity, limit_number FROM order_items ORDER BY order_id, line_no",
    )
    .fetch_all(pool)
    .await
    .unwrap();
    for (order, product, quantity, limit) in lines {
        let order =
            orders.get_mut(&Id(order)).unwrap_or_else(|| panic!("lines of no order: {order}"));
        order.lines.push((product, unsigned(quantity), limit.map(unsigned)));
    }
    orders
}
