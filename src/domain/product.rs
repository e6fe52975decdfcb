//! Products and their status.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{ProductId, TimestampMs};

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
    pub rules: SaleRules,
    /// The number of its limit per user, if it has one.
    pub limit_number: Option<u64>,
    /// When it was read.
    pub phase: SalePhase,
}

/// When and to whom a product is sold, and what the shop attaches to it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SaleRules {
    /// Start of the sale, inclusive.
    pub sale_from: Option<TimestampMs>,
    /// End of the sale, exclusive.
    pub sale_until: Option<TimestampMs>,
    /// The most pieces that one user may buy.
    pub per_user_limit: Option<u64>,
    /// A JSON object of strings.
    pub attributes: Option<String>,
}

impl SaleRules {
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    pub fn phase(&self, now: TimestampMs) -> SalePhase {
        if self.sale_from.is_some_and(|from| now < from) {
            SalePhase::Scheduled
        } else if self.sale_until.is_some_and(|until| now >= until) {
            SalePhase::Ended
        } else {
            SalePhase::Running
        }
    }
}

/// Whether a product is sold now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ProductState {
    Suspended,
    Scheduled,
    Ended,
    SoldOut,
    Open,
}

/// Where a product's sale stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SalePhase {
    Scheduled,
    #[default]
    Running,
    Ended,
}

impl Product {
    /// The first state that applies, in the order of [`ProductState`].
    pub fn state(&self) -> ProductState {
        match (self.status, self.phase) {
            (ProductStatus::Suspended, _) => ProductState::Suspended,
            (_, SalePhase::Scheduled) => ProductState::Scheduled,
            (_, SalePhase::Ended) => ProductState::Ended,
            (_, SalePhase::Running) if self.stock == 0 => ProductState::SoldOut,
            (_, SalePhase::Running) => ProductState::Open,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_product_is_open_from_the_first_to_before_the_last_moment_of_its_sale() {
        let rules =
            SaleRules { sale_from: Some(1_000), sale_until: Some(2_000), ..SaleRules::default() };
        let state = |status, stock, now| {
            let product = Product {
                product_id: ProductId::parse("mug").unwrap(),
                name: "Mug".into(),
                price: 100,
                status,
                stock,
                phase: rules.phase(now),
                limit_number: None,
                rules: rules.clone(),
            };
            product.state()
        };
        let on_sale = |stock, now| state(ProductStatus::OnSale, stock, now);
        assert_eq!(on_sale(0, 999), ProductState::Scheduled);
        assert_eq!(on_sale(1, 1_000), ProductState::Open);
        assert_eq!(on_sale(0, 1_999), ProductState::SoldOut);
        assert_eq!(on_sale(1, 2_000), ProductState::Ended);
        assert_eq!(state(ProductStatus::Suspended, 1, 1_500), ProductState::Suspended);
    }
}
