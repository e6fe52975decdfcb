//! The lines of an order, and their rules.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::ProductId;
use super::limits::{MAX_ORDER_PRODUCTS, MAX_QUANTITY};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum OrderStatus {
    /// Placed, and to be paid outside before its hold ends.
    Pending,
    Paid,
    Cancelled,
    /// It was not paid before its hold ended.
    Expired,
}

impl OrderStatus {
    /// The name in answers and the database.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Paid => "paid",
            Self::Cancelled => "cancelled",
            Self::Expired => "expired",
        }
    }

    /// The inverse of [`Self::as_str`].
    pub fn parse(name: &str) -> Option<Self> {
        [Self::Pending, Self::Paid, Self::Cancelled, Self::Expired]
            .into_iter()
            .find(|status| status.as_str() == name)
    }
}

/// One product of an order, and the number of pieces.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    pub product_id: ProductId,
    pub quantity: u64,
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum InvalidLines {
    #[error("an order needs at least one product")]
    Empty,
    #[error("an order has at most {MAX_ORDER_PRODUCTS} products")]
    TooMany,
    #[error(
        "the quantity of product {product_id} must be 1 to {MAX_QUANTITY} (the same product named twice counts as the sum)"
    )]
    Quantity { product_id: ProductId },
}

/// Sums the lines of the same product. Products keep the order of their first line.
pub fn merge_lines(lines: Vec<Line>) -> Result<Vec<Line>, InvalidLines> {
    let mut merged: Vec<Line> = Vec::with_capacity(lines.len().min(MAX_ORDER_PRODUCTS));
    for line in lines {
        if line.quantity == 0 || line.quantity > MAX_QUANTITY {
            return Err(InvalidLines::Quantity { product_id: line.product_id });
        }
        let full = merged.len() == MAX_ORDER_PRODUCTS;
        match merged.iter_mut().find(|seen| seen.product_id == line.product_id) {
            Some(seen) if seen.quantity + line.quantity > MAX_QUANTITY => {
                return Err(InvalidLines::Quantity { product_id: line.product_id });
            }
            Some(seen) => seen.quantity += line.quantity,
            None if full => return Err(InvalidLines::TooMany),
            None => merged.push(line),
        }
    }
    if merged.is_empty() { Err(InvalidLines::Empty) } else { Ok(merged) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(product: &str, quantity: u64) -> Line {
        Line { product_id: ProductId::parse(product).unwrap(), quantity }
    }

    #[test]
    fn the_same_product_named_twice_counts_as_the_sum() {
        let merged = merge_lines(vec![line("b", 1), line("a", 2), line("b", 999)]).unwrap();
        assert_eq!(merged, vec![line("b", 1_000), line("a", 2)]);
    }

    #[test]
    fn quantities_and_the_number_of_products_are_bounded() {
        assert_eq!(merge_lines(vec![]), Err(InvalidLines::Empty));
        for bad in
            [vec![line("a", 0)], vec![line("a", 1_001)], vec![line("a", 1_000), line("a", 1)]]
        {
            assert!(matches!(merge_lines(bad), Err(InvalidLines::Quantity { .. })));
        }
        let many = |n: usize| (0..n).map(|i| line(&format!("p{i}"), 1)).collect::<Vec<_>>();
        assert_eq!(merge_lines(many(50)).unwrap().len(), 50);
        assert_eq!(merge_lines(many(51)), Err(InvalidLines::TooMany));
    }
}
