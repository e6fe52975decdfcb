//! Idempotency records: which requests have one, and what identifies a request in it.

use serde::Serialize;
use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::request::{ConfirmOrder, IdempotencyKey};
use crate::domain::fact::Idempotency;
use crate::domain::wire::{Blob, Id};

/// A request that may be answered without a decision of its own, and uses its key all the same.
#[derive(Clone, Copy, Debug)]
pub enum KeyedRequest<'a> {
    /// The order may be cancelled already.
    CancelOrder(Uuid),
    /// The order may be confirmed already.
    ConfirmOrder(&'a ConfirmOrder),
    RefreshPopular,
    StartAudit,
}

impl KeyedRequest<'_> {
    /// The record of this request under `key`.
    pub fn record(self, key: &IdempotencyKey) -> Idempotency {
        match self {
            Self::CancelOrder(order_id) => record_key("cancel_order", key, &Id(order_id)),
            Self::ConfirmOrder(request) => {
                let wanted = (Id(request.order_id), request.payment_reference.as_str());
                record_key("confirm_order", key, &wanted)
            }
            Self::RefreshPopular => record_key("refresh_popular", key, &()),
            Self::StartAudit => record_key("start_audit", key, &()),
        }
    }
}

/// Identifies a request in its record: the user and the key, and a hash of what is wanted (without
/// ids, which are new for each try).
pub(super) fn record_key(
    script: &str,
    key: &IdempotencyKey,
    wanted: &impl Serialize,
) -> Idempotency {
    let mut hash = Sha256::new();
    hash.update(script.as_bytes());
    hash.update(rmp_serde::to_vec(wanted).unwrap_or_default());
    let request_hash = Blob(hash.finalize()[..16].to_vec());
    Idempotency { scope: format!("{} {}", key.user, key.key), request_hash }
}
