//! Every bound on a value that a client sends. Numbers reach Lua as doubles, so all stay far below 2^53.

/// The highest whole number that a double holds exactly, as all below it.
pub const MAX_EXACT: u64 = (1 << 53) - 1;
/// The most that one charge may add, and that a wallet may hold, in won.
pub const MAX_BALANCE: u64 = 1_000_000;
/// Prices are positive multiples of this, in won.
pub const PRICE_STEP: u64 = 100;
/// The highest price of one piece, in won.
pub const MAX_PRICE: u64 = 1_000_000_000;
/// The highest stock of a product, in pieces.
pub const MAX_STOCK: u64 = 1_000_000_000;
/// The highest limit of a coupon template, in coupons.
pub const MAX_TEMPLATE_LIMIT: u64 = 1_000_000_000;
/// The highest amount in a discount's terms, in won.
pub const MAX_DISCOUNT_AMOUNT: u64 = 1_000_000_000;
/// The highest minimum subtotal and expected total, in won (50 products × 1,000 pieces × the highest price).
pub const MAX_ORDER_AMOUNT: u64 = 50_000_000_000_000;
/// Distinct products in one order.
pub const MAX_ORDER_PRODUCTS: usize = 50;
/// Pieces of one product in one order.
pub const MAX_QUANTITY: u64 = 1_000;
/// Characters of an id that the shop chooses.
pub const MAX_ID_CHARS: usize = 64;
/// Characters of a product's or template's name, and of a stock adjustment's reason.
pub const MAX_NAME_CHARS: usize = 200;
/// Characters of an `Idempotency-Key`.
pub const MAX_IDEMPOTENCY_KEY_CHARS: usize = 255;
/// How long an idempotency record answers repeats.
pub const IDEMPOTENCY_KEPT_MS: i64 = 24 * 60 * 60 * 1000;
/// How long a coupon is usable, from the moment it was issued.
pub const COUPON_USABLE_MS: i64 = 365 * 24 * 60 * 60 * 1000;
/// Elements of one page, and the number when the client does not say.
pub const MAX_PAGE: usize = 100;
/// See [`MAX_PAGE`].
pub const DEFAULT_PAGE: usize = 20;
