//! The kinds of load that can be chosen.

use clap::ValueEnum;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Scenario {
    /// Every user wants one of few coupons, from a second before they open
    CouponRush,
    /// Every user buys a product of which there are few pieces
    FlashSale,
    /// Users browse, charge, order, cancel and read
    Shop,
    /// Users pay by card for a scarce product: most in time, others too late or never, some cancel
    Checkout,
    /// The rush, the sale and the shop at the same time
    Mixed,
}

impl Scenario {
    /// Of 10 users in `mixed`: how many rush, buy in the flash sale, and shop.
    pub const WEIGHTS: [u64; 3] = [3, 2, 5];

    pub fn rushes(self) -> bool {
        matches!(self, Scenario::CouponRush | Scenario::Mixed)
    }

    pub fn sells(self) -> bool {
        matches!(self, Scenario::FlashSale | Scenario::Mixed)
    }

    pub fn checks_out(self) -> bool {
        self == Scenario::Checkout
    }

    pub fn browses(self) -> bool {
        matches!(self, Scenario::Shop | Scenario::Mixed)
    }
}
