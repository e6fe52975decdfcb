//! Which of some ids PostgreSQL knows.

use std::collections::HashSet;

use uuid::Uuid;

use super::{Truth, TruthError};

impl Truth {
    /// The issued ones of these coupons.
    pub async fn known_coupons(&self, ids: &[Uuid]) -> Result<HashSet<Uuid>, TruthError> {
        self.known("SELECT coupon_id FROM coupons WHERE coupon_id = ANY($1)", ids).await
    }

    /// The placed ones of these orders.
    pub async fn known_orders(&self, ids: &[Uuid]) -> Result<HashSet<Uuid>, TruthError> {
        self.known("SELECT order_id FROM orders WHERE order_id = ANY($1)", ids).await
    }

    /// The cancelled ones of these orders.
    pub async fn known_cancellations(&self, ids: &[Uuid]) -> Result<HashSet<Uuid>, TruthError> {
        self.known("SELECT order_id FROM orders WHERE order_id = ANY($1) AND status = 'cancelled'", ids).await
    }

    /// The booked ones of these charges of these users.
    pub async fn known_charges(&self, ids: &[Uuid], users: &[String]) -> Result<HashSet<Uuid>, TruthError> {
        if ids.is_empty() {
            return Ok(HashSet::new());
        }
        // By user, for that is what the ledger has an index on.
        let sql = "SELECT ref_id FROM wallet_entries WHERE user_id = ANY($2) AND kind = 'charge' AND ref_id = ANY($1)";
        let query = sqlx::query_scalar(sql).bind(ids).bind(users);
        Ok(self.read(query.fetch_all(&self.pool)).await?.into_iter().collect())
    }

    /// Those of these ids that stand in the quarantine: skipped, gone without a skipped fact, or found by a rebuild.
    pub async fn quarantined(&self, ids: &[Uuid]) -> Result<HashSet<Uuid>, TruthError> {
        self.known("SELECT id FROM quarantined_facts WHERE id = ANY($1)", ids).await
    }

    async fn known(&self, sql: &'static str, ids: &[Uuid]) -> Result<HashSet<Uuid>, TruthError> {
        if ids.is_empty() {
            return Ok(HashSet::new());
        }
        let query = sqlx::query_scalar(sql).bind(ids);
        Ok(self.read(query.fetch_all(&self.pool)).await?.into_iter().collect())
    }
}
