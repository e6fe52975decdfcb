//! Products and their status.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::ProductId;

/// Whether a product can be ordered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ProductStatus {
    OnSale,
    Suspended,
}

impl ProductStatus {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::OnSale => "on_sale",
            Self::Suspended => "suspended",
        }
    }
}

/// A product with its current stock. `price` is in won, `stock` in pieces.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Product {
    pub product_id: ProductId,
    pub name: String,
    pub price: u64,
    pub status: ProductStatus,
    pub stock: u64,
}
