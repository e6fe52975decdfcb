//! What only PostgreSQL knows about products.

use super::{Truth, TruthError, unsigned};
use crate::domain::ProductId;

impl Truth {
    /// The stock that a product was created with: its first adjustment. `None`: no such product.
    pub async fn initial_stock(&self, product_id: &ProductId) -> Result<Option<u64>, TruthError> {
        let query = sqlx::query_scalar::<_, i64>(
            "SELECT stock_after FROM stock_adjustments WHERE product_id = $1 ORDER BY adjustment_id LIMIT 1",
        )
        .bind(product_id.as_str());
        let stock = self.read(query.fetch_optional(&self.pool)).await?;
        stock.map(|stock| unsigned("stock_adjustments.stock_after", stock)).transpose()
    }
}
