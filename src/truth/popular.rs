//! The list of popular products, as the scheduler last wrote it.

use super::{Truth, TruthError, unsigned};
use crate::domain::{ProductId, TimestampMs};

/// The latest list: the most sold products of a window of time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PopularList {
    pub refreshed_at: TimestampMs,
    pub from: TimestampMs,
    pub to: TimestampMs,
    /// By rank, from 1.
    pub ranks: Vec<PopularRank>,
}

/// One product of the list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PopularRank {
    pub rank: u64,
    pub product_id: ProductId,
    /// Pieces sold in the window.
    pub sold: u64,
}

impl Truth {
    /// The latest list; `None` before the first refresh.
    pub async fn popular(&self) -> Result<Option<PopularList>, TruthError> {
        self.popular_at(None).await
    }

    /// The list that was the latest at this moment, or is the latest now. `None`: there was none,
    /// or it has been removed since.
    pub async fn popular_at(
        &self,
        at: Option<TimestampMs>,
    ) -> Result<Option<PopularList>, TruthError> {
        // One statement, so that all rows are of one refresh even while the next one is being
        // written.
        type Row =
            (TimestampMs, TimestampMs, TimestampMs, Option<i16>, Option<String>, Option<i64>);
        let query = sqlx::query_as::<_, Row>(include_str!("sql/popular.sql")).bind(at);
        let rows = self.read(query.fetch_all(&self.pool)).await?;
        let Some(&(refreshed_at, from, to, ..)) = rows.first() else {
            return Ok(None);
        };
        let mut ranks = Vec::with_capacity(rows.len());
        for (_, _, _, rank, product_id, sold) in rows {
            // A refresh in which nothing was sold has one row without a product.
            let (Some(rank), Some(product_id), Some(sold)) = (rank, product_id, sold) else {
                continue;
            };
            ranks.push(PopularRank {
                rank: unsigned("popular_products.rank", rank.into())?,
                product_id: ProductId::parse(product_id)
                    .map_err(|error| TruthError(error.to_string()))?,
                sold: unsigned("popular_products.sold", sold)?,
            });
        }
        Ok(Some(PopularList { refreshed_at, from, to, ranks }))
    }
}
