//! The format of a user's value in `held`: all coupons of the user, concatenated, 46 bytes each.
//!
//! | bytes | content |
//! |---|---|
//! | 0 … 3 | the number of its terms: the template's own, or a later one |
//! | 4 … 19 | the coupon's id |
//! | 20 … 23 | its serial |
//! | 24 … 29 | `issued_at`, in milliseconds |
//! | 30 … 45 | the id of the order that uses it; all zeros if unused |
//!
//! Numbers are big-endian. `lua/shared/coupons.lua` reads and writes the same offsets.

use uuid::Uuid;

use crate::domain::TimestampMs;
use crate::domain::limits::MAX_TEMPLATE_LIMIT;

/// Bytes of one coupon.
pub const COUPON_BYTES: usize = 46;

// A serial is at most its template's limit.
const _: () = assert!(MAX_TEMPLATE_LIMIT <= u32::MAX as u64);

/// One coupon of a user.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HeldCoupon {
    /// The number of its terms: the template's own, or a later one.
    pub terms_number: u32,
    pub coupon_id: Uuid,
    pub serial: u32,
    pub issued_at: TimestampMs,
    pub order_id: Option<Uuid>,
}

impl HeldCoupon {
    pub fn to_bytes(&self) -> [u8; COUPON_BYTES] {
        let mut bytes = [0; COUPON_BYTES];
        bytes[..4].copy_from_slice(&self.terms_number.to_be_bytes());
        bytes[4..20].copy_from_slice(self.coupon_id.as_bytes());
        bytes[20..24].copy_from_slice(&self.serial.to_be_bytes());
        bytes[24..30].copy_from_slice(&self.issued_at.to_be_bytes()[2..]);
        bytes[30..].copy_from_slice(self.order_id.unwrap_or_default().as_bytes());
        bytes
    }

    fn from_bytes(bytes: &[u8; COUPON_BYTES]) -> Self {
        let number = |from: usize| u32::from_be_bytes(std::array::from_fn(|n| bytes[from + n]));
        let id = |from: usize| Uuid::from_bytes(std::array::from_fn(|n| bytes[from + n]));
        Self {
            terms_number: number(0),
            coupon_id: id(4),
            serial: number(20),
            issued_at: bytes[24..30].iter().fold(0, |n, byte| n << 8 | i64::from(*byte)),
            order_id: Some(id(30)).filter(|order| !order.is_nil()),
        }
    }
}

/// A user's coupons, and the trailing bytes that are not a whole coupon. There are such bytes only
/// if another writer has changed the value.
pub fn coupons(value: &[u8]) -> (Vec<HeldCoupon>, &[u8]) {
    let (whole, rest) = value.as_chunks::<COUPON_BYTES>();
    (whole.iter().map(HeldCoupon::from_bytes).collect(), rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn coupons_are_read_as_they_were_written() {
        let used = HeldCoupon {
            terms_number: 0x0102_0304,
            coupon_id: Uuid::from_u128(5),
            serial: 1_000_000_000,
            issued_at: 4_102_444_800_123,
            order_id: Some(Uuid::from_u128(u128::MAX)),
        };
        let unused = HeldCoupon { terms_number: u32::MAX, order_id: None, ..used.clone() };
        let mut value = [used.to_bytes(), unused.to_bytes()].concat();
        assert_eq!(coupons(&value), (vec![used.clone(), unused], &[][..]));
        value.truncate(COUPON_BYTES + 1);
        assert_eq!(coupons(&value), (vec![used], &[0xff][..]));
        assert_eq!(coupons(b""), (vec![], &[][..]));
    }
}
