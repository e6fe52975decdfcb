//! All Redis keys of the gate. The keys of one cell share a hash tag, so that all keys of a script
//! are in one slot. All but `meta` contain the epoch, so that a rebuild never touches the keys of
//! the previous epoch.
//!
//! | key | type | holds |
//! |---|---|---|
//! | `rg:{c}:meta` | hash | `epoch`, `seq`, `tip`, `applied`, `clock`, `templates` and `limits` (highest numbers), `state` (`open`, `open-2`, `closed`), `reason`, `claim` |
//! | `rg:{c}:<e>:log` | stream | the log |
//! | `rg:{c}:<e>:wallets` | hash | user → balance |
//! | `rg:{c}:<e>:products` | hash | product → MessagePack `[name, price, status]`, with rules also `[…, sale_from, sale_until, limit per user, its number]` |
//! | `rg:{c}:<e>:attributes` | hash | product → JSON object, for products that have attributes |
//! | `rg:{c}:<e>:purchases` | hash | limit's number (4 bytes, big-endian) and user → pieces bought under it |
//! | `rg:{c}:<e>:stocks` | hash | product → stock |
//! | `rg:{c}:<e>:product_ids` | sorted set, all scores 0 | products in the order of their ids |
//! | `rg:{c}:<e>:templates` | hash | template → MessagePack `[number, name, discount_type, value, max, min_subtotal, max_issued, issue_from, issue_until]`, with later terms also `[…, number of the present terms, earlier numbers, issued before]` |
//! | `rg:{c}:<e>:terms` | hash | number (4 bytes, big-endian) of terms that are not the template's present ones → MessagePack `[discount_type, value, max, min_subtotal]` |
//! | `rg:{c}:<e>:issued` | hash | template → coupons issued |
//! | `rg:{c}:<e>:template_ids` | sorted set, all scores 0 | templates in the order of their ids |
//! | `rg:{c}:<e>:template_numbers` | hash | number of a template or of later terms (4 bytes, big-endian) → template |
//! | `rg:{c}:<e>:held` | hash | user → 46 bytes per coupon, oldest first: see [`super::held_coupons`] |
//! | `rg:{c}:<e>:pending` | hash | order (16 bytes) → MessagePack, see [`crate::domain::fact::PendingOrder`] |
//! | `rg:{c}:<e>:pending_due` | sorted set, by the end of the hold | pending orders |
//! | `rg:{c}:<e>:pending_users` | hash | user → `<pending orders>:<won that they took from the wallet>` |
//! | `rg:{c}:<e>:cancelled` | set | ids (16 bytes) of orders cancelled in this epoch |
//! | `rg:{c}:<e>:idem:<day>` | hash | `<user> <key>` → MessagePack `[request hash, decided_at, reply]`; `day` is `decided_at` in days; also `<user>` → the number of the user's records here |

/// Milliseconds per day, the width of an idempotency bucket.
pub const DAY_MS: i64 = 24 * 60 * 60 * 1000;

/// The keys of one cell in one epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keys {
    pub cell: u32,
    pub epoch: u64,
}

impl Keys {
    pub fn new(cell: u32, epoch: u64) -> Self {
        Self { cell, epoch }
    }

    /// The only key without an epoch: it outlives a rebuild.
    pub fn meta(cell: u32) -> String {
        format!("rg:{{{cell}}}:meta")
    }

    fn of(&self, name: &str) -> String {
        format!("rg:{{{}}}:{}:{name}", self.cell, self.epoch)
    }

    pub fn log(&self) -> String {
        self.of("log")
    }
    pub fn wallets(&self) -> String {
        self.of("wallets")
    }
    pub fn products(&self) -> String {
        self.of("products")
    }
    pub fn stocks(&self) -> String {
        self.of("stocks")
    }
    pub fn product_ids(&self) -> String {
        self.of("product_ids")
    }
    pub fn templates(&self) -> String {
        self.of("templates")
    }
    pub fn issued(&self) -> String {
        self.of("issued")
    }
    pub fn template_ids(&self) -> String {
        self.of("template_ids")
    }
    pub fn template_numbers(&self) -> String {
        self.of("template_numbers")
    }
    pub fn held(&self) -> String {
        self.of("held")
    }
    pub fn cancelled(&self) -> String {
        self.of("cancelled")
    }
    pub fn attributes(&self) -> String {
        self.of("attributes")
    }
    pub fn purchases(&self) -> String {
        self.of("purchases")
    }
    pub fn terms(&self) -> String {
        self.of("terms")
    }
    pub fn pending(&self) -> String {
        self.of("pending")
    }
    pub fn pending_due(&self) -> String {
        self.of("pending_due")
    }
    pub fn pending_users(&self) -> String {
        self.of("pending_users")
    }
    /// `day` is a decision's time in whole days since the Unix epoch.
    pub fn idempotency(&self, day: i64) -> String {
        self.of(&format!("idem:{day}"))
    }

    /// Every key of the epoch except the idempotency buckets, whose names depend on the day.
    pub fn fixed(&self) -> Vec<String> {
        vec![
            self.log(),
            self.wallets(),
            self.products(),
            self.stocks(),
            self.product_ids(),
            self.templates(),
            self.issued(),
            self.template_ids(),
            self.template_numbers(),
            self.held(),
            self.cancelled(),
            self.attributes(),
            self.purchases(),
            self.terms(),
            self.pending(),
            self.pending_due(),
            self.pending_users(),
        ]
    }
}

/// The cell that a user belongs to.
pub fn cell_of(user_id: &str, cells: u32) -> u32 {
    if cells <= 1 {
        return 0;
    }
    u32::from(fred::util::redis_keyslot(user_id.as_bytes())) % cells
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_keys_of_a_cell_are_in_one_slot() {
        for cell in [0, 1, 77] {
            let keys = Keys::new(cell, 12);
            let mut all = keys.fixed();
            all.push(keys.idempotency(20_000));
            let slot = fred::util::redis_keyslot(Keys::meta(cell).as_bytes());
            for key in all {
                assert_eq!(fred::util::redis_keyslot(key.as_bytes()), slot, "{key}");
                assert!(key.contains(":12:"), "{key} does not carry the epoch");
            }
        }
    }
}
