//! The limits on all values that clients send. Numbers reach Lua as doubles, so all limits are far
//! below 2^53.

/// A double represents every integer up to this one exactly.
pub const MAX_EXACT: u64 = (1 << 53) - 1;
/// The maximum of one charge, and of a wallet's balance, in won.
pub const MAX_BALANCE: u64 = 1_000_000;
/// Prices are positive multiples of this, in won.
pub const PRICE_STEP: u64 = 100;
/// The highest price of one piece, in won.
pub const MAX_PRICE: u64 = 1_000_000_000;
/// The highest stock of a product, in pieces.
pub const MAX_STOCK: u64 = 1_000_000_000;
/// The highest issuing limit of a coupon template, in coupons.
pub const MAX_TEMPLATE_LIMIT: u64 = 1_000_000_000;
/// The highest amount in a discount's terms, in won.
pub const MAX_DISCOUNT_AMOUNT: u64 = 1_000_000_000;
/// The highest minimum subtotal and expected total, in won (50 products × 1,000 pieces × the
/// highest price).
pub const MAX_ORDER_AMOUNT: u64 = 50_000_000_000_000;
/// The most distinct products in one order.
pub const MAX_ORDER_PRODUCTS: usize = 50;
/// The most pieces of one product in one order.
pub const MAX_QUANTITY: u64 = 1_000;
/// The most characters of an id that the shop chooses.
pub const MAX_ID_CHARS: usize = 64;
/// The most characters of a product's or template's name, and of a stock adjustment's reason.
pub const MAX_NAME_CHARS: usize = 200;
/// The most characters of an `Idempotency-Key`.
pub const MAX_IDEMPOTENCY_KEY_CHARS: usize = 255;
/// How long an idempotency record answers replays.
pub const IDEMPOTENCY_KEPT_MS: i64 = 24 * 60 * 60 * 1000;
/// How long a coupon is usable, from the time of its issue.
pub const COUPON_USABLE_MS: i64 = 365 * 24 * 60 * 60 * 1000;
/// The most characters of the shop's own order number.
pub const MAX_REFERENCE_CHARS: usize = 64;
/// The most characters of a reference to a payment outside.
pub const MAX_PAYMENT_REFERENCE_CHARS: usize = 128;
/// How long a pending order can be held, in seconds.
pub const MIN_HOLD_SECS: u64 = 60;
pub const MAX_HOLD_SECS: u64 = 3_600;
/// The highest limit of a product's pieces per user.
pub const MAX_PER_USER_LIMIT: u64 = 1_000;
/// The most bytes of a product's attributes, as JSON.
pub const MAX_ATTRIBUTES_BYTES: usize = 4 * 1024;
/// The most characters of an attribute's name.
pub const MAX_ATTRIBUTE_NAME_CHARS: usize = 64;
/// The most elements of one page.
pub const MAX_PAGE: usize = 100;
/// The elements of a page if the client gives no number.
pub const DEFAULT_PAGE: usize = 20;
