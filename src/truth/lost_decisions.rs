//! Finds out which of some ids PostgreSQL knows.

use std::collections::HashSet;

use uuid::Uuid;

use super::{Truth, TruthError};

impl Truth {
    /// Those of these coupons that were issued.
    pub async fn known_coupons(&self, ids: &[Uuid]) -> Result<HashSet<Uuid>, TruthError> {
        self.known("SELECT coupon_id FROM coupons WHERE coupon_id = ANY($1)", ids).await
    }

    /// Those of these orders that were placed.
    pub async fn known_orders(&self, ids: &[Uuid]) -> Result<HashSet<Uuid>, TruthError> {
        self.known("SELECT order_id FROM orders WHERE order_id = ANY($1)", ids).await
    }

    /// Those of these orders that were cancelled.
    pub async fn known_cancellations(&self, ids: &[Uuid]) -> Result<HashSet<Uuid>, TruthError> {
        self.known(
            "SELECT order_id FROM orders WHERE order_id = ANY($1) AND status = 'cancelled'",
            ids,
        )
        .await
    }

    /// Those of these orders whose payment was confirmed.
    pub async fn known_confirmations(&self, ids: &[Uuid]) -> Result<HashSet<Uuid>, TruthError> {
        let sql = "SELECT order_id FROM orders WHERE order_id = ANY($1) AND paid_at IS NOT NULL";
        self.known(sql, ids).await
    }

    /// Those of these charges, of these users, that were booked.
    pub async fn known_charges(
        &self,
        ids: &[Uuid],
        users: &[String],
    ) -> Result<HashSet<Uuid>, TruthError> {
        if ids.is_empty() {
            return Ok(HashSet::new());
        }
        // The index of the ledger is on the user, so the users narrow the search.
        let sql = "SELECT ref_id FROM wallet_entries WHERE user_id = ANY($2) AND kind = 'charge' AND ref_id = ANY($1)";
        let query = sqlx::query_scalar(sql).bind(ids).bind(users);
        Ok(self.read(query.fetch_all(&self.pool)).await?.into_iter().collect())
    }

    /// Those of these ids that are in the quarantine: skipped, gone because they depend on a
    /// skipped fact, or found by a rebuild.
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
