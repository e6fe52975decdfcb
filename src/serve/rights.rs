//! The rights in PostgreSQL that the roles of an instance need. They are checked before the roles
//! start: a role without one of its rights would fail again and again, in some cases only after
//! half of its work.

use sqlx::PgConnection;

use crate::config::Role;

/// A right on a table.
type Right = (&'static str, &'static str);

/// Every instance reads these, for `/metrics`, `/readyz` and `/v1/admin/status`.
const ALL: &[Right] = &[
    ("SELECT", "schema_migrations"),
    ("SELECT", "cell_cursors"),
    ("SELECT", "outbox"),
    ("SELECT", "popular_refreshes"),
    ("SELECT", "relay_progress"),
];

const API: &[Right] = &[
    ("SELECT", "orders"),
    ("SELECT", "order_items"),
    ("SELECT", "order_templates"),
    ("SELECT", "wallet_entries"),
    ("SELECT", "popular_products"),
    ("SELECT", "idempotency_records"),
    ("SELECT", "coupons"),
    ("INSERT", "popular_refreshes"),
    ("INSERT", "popular_products"),
    ("DELETE", "popular_refreshes"),
];

const RECONCILER: &[Right] = &[
    ("SELECT", "products"),
    ("INSERT", "products"),
    ("UPDATE", "products"),
    ("INSERT", "stock_adjustments"),
    ("SELECT", "coupon_templates"),
    ("INSERT", "coupon_templates"),
    ("UPDATE", "coupon_templates"),
    ("SELECT", "coupons"),
    ("INSERT", "coupons"),
    ("UPDATE", "coupons"),
    ("SELECT", "wallets"),
    ("INSERT", "wallets"),
    ("UPDATE", "wallets"),
    ("INSERT", "wallet_entries"),
    ("SELECT", "orders"),
    ("INSERT", "orders"),
    ("UPDATE", "orders"),
    ("SELECT", "order_items"),
    ("INSERT", "order_items"),
    ("SELECT", "purchases"),
    ("INSERT", "purchases"),
    ("UPDATE", "purchases"),
    ("SELECT", "coupon_terms"),
    ("INSERT", "coupon_terms"),
    ("UPDATE", "coupon_terms"),
    ("SELECT", "idempotency_records"),
    ("INSERT", "idempotency_records"),
    ("UPDATE", "idempotency_records"),
    ("INSERT", "cell_cursors"),
    ("UPDATE", "cell_cursors"),
    ("INSERT", "outbox"),
];

const RELAY: &[Right] = &[("DELETE", "outbox"), ("UPDATE", "relay_progress")];

const SCHEDULER: &[Right] = &[
    ("SELECT", "orders"),
    ("SELECT", "order_items"),
    ("INSERT", "popular_refreshes"),
    ("DELETE", "popular_refreshes"),
    ("INSERT", "popular_products"),
];

fn needed_by(role: Role) -> &'static [Right] {
    match role {
        Role::Api => API,
        Role::Reconciler => RECONCILER,
        Role::Relay => RELAY,
        Role::Scheduler => SCHEDULER,
    }
}

/// The rights that these roles lack, in one line that says what to do; `None`: they lack nothing.
/// Tables that do not exist are left to the migrations.
pub async fn missing(
    conn: &mut PgConnection,
    roles: &[Role],
) -> Result<Option<String>, sqlx::Error> {
    let mut lacking = Vec::new();
    let mut user = String::new();
    for (name, rights) in
        roles.iter().map(|role| (role.name(), needed_by(*role))).chain([("every role", ALL)])
    {
        let (kinds, tables): (Vec<&str>, Vec<&str>) = rights.iter().copied().unzip();
        let asking =
            sqlx::query_as(include_str!("sql/missing_rights.sql")).bind(kinds).bind(tables);
        let refused: Vec<(String, String, String)> = asking.fetch_all(&mut *conn).await?;
        for (who, kind, table) in refused {
            user = who;
            lacking.push(format!("{kind} on {table} (for {name})"));
        }
    }
    if lacking.is_empty() {
        return Ok(None);
    }
    Ok(Some(format!(
        "in PostgreSQL, `{user}` lacks {}: run deploy/roles.sql again, or correct RUSHGATE_DATABASE_URL or RUSHGATE_ROLES",
        lacking.join(", ")
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = include_str!("../../deploy/roles.sql");

    /// Whether `deploy/roles.sql` grants this right to that PostgreSQL role.
    fn given(role: &str, (kind, table): Right) -> bool {
        let words = |text: &str| -> Vec<String> {
            text.split([',', ' ', '\n'])
                .filter(|word| !word.is_empty())
                .map(str::to_owned)
                .collect()
        };
        FILE.split(';').filter_map(|statement| statement.split_once("GRANT ")).any(|(_, grant)| {
            let Some((kinds, rest)) = grant.split_once(" ON ") else { return false };
            let Some((tables, roles)) = rest.split_once("TO ") else { return false };
            let has = |list: &str, word: &str| words(list).iter().any(|found| found == word);
            has(kinds, kind) && has(tables, table) && has(roles, role)
        })
    }

    #[test]
    fn the_roles_of_the_deployment_have_what_is_asked_for() {
        for (role, user) in [
            (Role::Api, "rushgate_api"),
            (Role::Reconciler, "rushgate_reconciler"),
            (Role::Relay, "rushgate_relay"),
            (Role::Scheduler, "rushgate_relay"),
        ] {
            for right in needed_by(role).iter().chain(ALL) {
                assert!(given(user, *right), "{user} is not given {right:?}");
            }
        }
    }
}
