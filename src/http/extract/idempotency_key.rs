//! The header `Idempotency-Key`.

use axum::extract::FromRequestParts;
use axum::http::HeaderMap;
use axum::http::request::Parts;
use utoipa::IntoParams;

use crate::domain::UserId;
use crate::domain::limits::MAX_IDEMPOTENCY_KEY_CHARS;
use crate::gate::IdempotencyKey;
use crate::http::problem::Problem;

/// The header `Idempotency-Key`, for the OpenAPI description.
#[derive(IntoParams)]
#[into_params(parameter_in = Header)]
#[expect(dead_code, reason = "read by the derive, for the OpenAPI description")]
pub struct IdempotencyKeyParam {
    /// Makes the request safe to repeat: for 24 hours, a repeat by the same user gets the first answer again, with
    /// `Idempotent-Replayed: true`. Printable ASCII.
    #[param(rename = "Idempotency-Key", value_type = String, required = false, min_length = 1, max_length = 255, pattern = "^[ -~]{1,255}$")]
    key: Option<String>,
}

/// The request's `Idempotency-Key`, if it has one.
#[derive(Debug)]
pub struct Key(Option<String>);

impl Key {
    const HEADER: &str = "Idempotency-Key";

    /// The key, scoped to the user that the request acts for.
    pub fn of(&self, user: &UserId) -> Option<IdempotencyKey> {
        self.0.clone().map(|key| IdempotencyKey { user: user.clone(), key })
    }

    fn read(headers: &HeaderMap) -> Result<Self, Problem> {
        let mut values = headers.get_all(Self::HEADER).iter();
        let Some(value) = values.next() else {
            return Ok(Self(None));
        };
        if values.next().is_some() {
            return Err(Problem::invalid(Self::HEADER, "may be given once only"));
        }
        let bytes = value.as_bytes();
        let printable = bytes.iter().all(|byte| (b' '..=b'~').contains(byte));
        match value.to_str() {
            Ok(key) if printable && (1..=MAX_IDEMPOTENCY_KEY_CHARS).contains(&bytes.len()) => {
                Ok(Self(Some(key.to_owned())))
            }
            _ => Err(Problem::invalid(
                Self::HEADER,
                format_args!("must be 1 to {MAX_IDEMPOTENCY_KEY_CHARS} printable ASCII characters"),
            )),
        }
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Key {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        Self::read(&parts.headers)
    }
}
