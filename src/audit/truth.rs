//! The rules within PostgreSQL. Each rule is one query that returns the rows that break it.

use sqlx::{PgConnection, Row};

use super::report::{Check, Difference};

struct Rule {
    name: &'static str,
    rule: &'static str,
    /// A query for the number of items that the rule covers.
    count: &'static str,
    /// A query for the items that break the rule. Columns: id, expected, found, total.
    broken: &'static str,
}

/// Wraps a rule's query so that it returns the first differences and the total number.
macro_rules! broken {
    ($file:literal) => {
        concat!(
            "SELECT id, expected, found, count(*) OVER () AS total FROM (\n",
            include_str!(concat!("sql/", $file)),
            "\n) AS broken ORDER BY id LIMIT 20"
        )
    };
}

const RULES: [Rule; 15] = [
    Rule {
        name: "ledger-sum",
        rule: "a wallet's balance is the sum of its ledger",
        count: "SELECT count(*) FROM wallets",
        broken: broken!("ledger_sum.sql"),
    },
    Rule {
        name: "ledger-steps",
        rule: "every ledger balance is the previous one plus the amount",
        count: "SELECT count(*) FROM wallet_entries",
        broken: broken!("ledger_steps.sql"),
    },
    Rule {
        name: "ledger-last",
        rule: "a wallet's balance is the last balance of its ledger",
        count: "SELECT count(*) FROM wallets",
        broken: broken!("ledger_last.sql"),
    },
    Rule {
        name: "stock-sums",
        rule: "stock is the sum of adjustments less the pieces of paid and pending orders",
        count: "SELECT count(*) FROM products",
        broken: broken!("stock_sums.sql"),
    },
    Rule {
        name: "order-amounts",
        rule: "an order's items add up to its amounts",
        count: "SELECT count(*) FROM orders",
        broken: broken!("order_amounts.sql"),
    },
    Rule {
        name: "order-payments",
        rule: "the ledger has each payment and refund once",
        count: "SELECT count(*) FROM orders",
        broken: broken!("order_payments.sql"),
    },
    Rule {
        name: "coupon-use",
        rule: "used coupons are those that orders name",
        count: "SELECT count(*) FROM coupons WHERE order_id IS NOT NULL",
        broken: broken!("coupon_use.sql"),
    },
    Rule {
        name: "template-counts",
        rule: "serials are 1 to issued, one per user, within the limit",
        count: "SELECT count(*) FROM coupon_templates",
        broken: broken!("template_counts.sql"),
    },
    Rule {
        name: "coupon-expiry",
        rule: "coupons are usable for 365 days",
        count: "SELECT count(*) FROM coupons",
        broken: broken!("coupon_expiry.sql"),
    },
    Rule {
        name: "outbox-count",
        rule: "the outbox holds the events written less those published",
        count: "SELECT count(*) FROM outbox",
        broken: broken!("outbox_count.sql"),
    },
    Rule {
        name: "outbox-rows",
        rule: "each waiting event matches the state of its order",
        count: "SELECT count(*) FROM outbox",
        broken: broken!("outbox_rows.sql"),
    },
    Rule {
        name: "events-written",
        rule: "each payment, cancellation and end of a hold became one event",
        count: "SELECT count(*) + count(*) FILTER (WHERE status = 'cancelled') FROM orders",
        broken: broken!("events_written.sql"),
    },
    Rule {
        name: "wallet-limit",
        rule: "a wallet has room for what pending orders took from it",
        count: "SELECT count(DISTINCT user_id) FROM orders WHERE status = 'pending'",
        broken: broken!("wallet_limit.sql"),
    },
    Rule {
        name: "purchases",
        rule: "pieces bought under a limit are in pending and paid orders",
        count: "SELECT count(*) FROM purchases",
        broken: broken!("purchases.sql"),
    },
    Rule {
        name: "order-templates",
        rule: "orders with coupons are found by their templates",
        count: "SELECT count(*) FROM order_templates",
        broken: broken!("order_templates.sql"),
    },
];

/// Checks every rule in the transaction `snapshot`.
pub(super) async fn check_truth(snapshot: &mut PgConnection) -> Result<Vec<Check>, sqlx::Error> {
    let mut checks = Vec::with_capacity(RULES.len());
    for rule in &RULES {
        let mut check = Check::new(rule.name, rule.rule);
        check.looked_at = sqlx::query_scalar(rule.count).fetch_one(&mut *snapshot).await?;
        for row in sqlx::query(rule.broken).fetch_all(&mut *snapshot).await? {
            check.differences.push(Difference {
                id: row.try_get("id")?,
                expected: row.try_get("expected")?,
                found: row.try_get("found")?,
            });
            check.more = row.try_get("total")?;
        }
        check.more -= check.differences.len() as i64;
        checks.push(check);
    }
    Ok(checks)
}
