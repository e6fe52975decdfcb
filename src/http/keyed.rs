//! Keys of requests that no script of the gate decides: cancelling what is cancelled, refreshing the popular products. What
//! a key was used for is read in PostgreSQL; its record is made through the gate, as all others, so that the key belongs to
//! the request from then on.

use super::Api;
use super::problem::Problem;
use super::refusals;
use crate::domain::TimestampMs;
use crate::gate::{GateError, IdempotencyKey, KeyedRequest};
use crate::truth::KeyUse;

impl Api {
    /// When the key was used for this request before; `None`: never, in the last 24 hours. PostgreSQL must have what the gate
    /// has, see [`Api::catch_up`].
    pub async fn used_before(
        &self,
        key: &IdempotencyKey,
        request: KeyedRequest,
    ) -> Result<Option<TimestampMs>, Problem> {
        let now = self.gate.now().await?;
        match self.truth.key_use(&request.record(key), now).await? {
            KeyUse::New => Ok(None),
            KeyUse::Same(at) => Ok(Some(at)),
            KeyUse::Other => Err(GateError::IdempotencyKeyReused.into()),
        }
    }

    /// Makes the key's record. Returns whether somebody else did meanwhile, for the same request.
    pub async fn use_key(&self, key: &IdempotencyKey, request: KeyedRequest) -> Result<bool, Problem> {
        let decision = self.gate.use_key(key, request, self.deadline()).await;
        let decided = self.decided(decision, |refusal| refusals::charge(&refusal, 0)).await?;
        Ok(decided.replayed)
    }
}
