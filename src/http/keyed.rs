//! Idempotency keys of requests that no script of the gate decides: cancelling an order that is
//! cancelled already, refreshing the popular products, and starting an audit. Earlier use of a key is looked up in
//! PostgreSQL. The key's record is made through the gate, as all others are, so that the key
//! belongs to this request from then on.

use super::Api;
use super::problem::Problem;
use super::refusals;
use crate::domain::TimestampMs;
use crate::gate::{GateError, IdempotencyKey, KeyedRequest};
use crate::truth::KeyUse;

impl Api {
    /// When the key was used for this same request; `None`: not in the last 24 hours. PostgreSQL
    /// must have applied what the gate has decided, see [`Api::catch_up`].
    pub async fn used_before(
        &self,
        key: &IdempotencyKey,
        request: KeyedRequest<'_>,
    ) -> Result<Option<TimestampMs>, Problem> {
        let now = self.gate.now().await?;
        match self.truth.key_use(&request.record(key), now).await? {
            KeyUse::New => Ok(None),
            KeyUse::Same(at) => Ok(Some(at)),
            KeyUse::Other => Err(GateError::IdempotencyKeyReused.into()),
        }
    }

    /// Makes the key's record. Returns whether a concurrent call of the same request made it first.
    pub async fn use_key(
        &self,
        key: &IdempotencyKey,
        request: KeyedRequest<'_>,
    ) -> Result<bool, Problem> {
        let decision = self.gate.use_key(key, request, self.deadline()).await;
        let decided = self.decided(decision, |refusal| refusals::charge(&refusal, 0)).await?;
        Ok(decided.replayed)
    }
}
