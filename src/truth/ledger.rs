//! The ledger: the credits and debits of a wallet.

use uuid::Uuid;

use super::{Truth, TruthError, limit_of, unsigned};
use crate::domain::{TimestampMs, UserId};

/// One entry of a wallet's ledger. `amount` is signed: positive for charges and refunds, negative
/// for payments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LedgerEntry {
    pub entry_id: i64,
    /// `charge`, `payment` or `refund`.
    pub kind: String,
    pub amount: i64,
    pub balance_after: u64,
    /// Id of the charge or the order.
    pub ref_id: Uuid,
    pub at: TimestampMs,
}

impl Truth {
    /// A wallet's entries that are older than `after`, newest first.
    pub async fn wallet_entries(
        &self,
        user_id: &UserId,
        after: Option<i64>,
        limit: usize,
    ) -> Result<Vec<LedgerEntry>, TruthError> {
        let query = sqlx::query_as::<_, (i64, String, i64, i64, Uuid, TimestampMs)>(
            "SELECT entry_id, kind, amount, balance_after, ref_id, (extract(epoch FROM at) * 1000)::bigint
             FROM wallet_entries
             WHERE user_id = $1 AND entry_id < $2
             ORDER BY entry_id DESC
             LIMIT $3",
        )
        .bind(user_id.as_str())
        .bind(after.unwrap_or(i64::MAX))
        .bind(limit_of(limit));
        let rows = self.read(query.fetch_all(&self.pool)).await?;
        rows.into_iter()
            .map(|(entry_id, kind, amount, balance, ref_id, at)| {
                let balance_after = unsigned("wallet_entries.balance_after", balance)?;
                Ok(LedgerEntry { entry_id, kind, amount, balance_after, ref_id, at })
            })
            .collect()
    }
}
