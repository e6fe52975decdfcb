//! Makes tokens, for `rushgate token`, the demo and tests.

use std::time::Duration;

use jsonwebtoken::{Algorithm, EncodingKey, Header, get_current_timestamp};
use serde::Serialize;

use crate::config::ExpectedClaims;
use crate::domain::UserId;

#[derive(Serialize)]
struct MintedClaims<'a> {
    sub: &'a str,
    exp: u64,
    scope: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    aud: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    iss: Option<&'a str>,
}

/// A token signed with HS256.
pub fn mint_token(
    secret: &[u8],
    sub: &UserId,
    scope: &str,
    ttl: Duration,
) -> Result<String, jsonwebtoken::errors::Error> {
    mint_token_for(secret, sub, scope, ttl, &ExpectedClaims::default())
}

/// The same, for a given audience and by a given issuer.
pub fn mint_token_for(
    secret: &[u8],
    sub: &UserId,
    scope: &str,
    ttl: Duration,
    claims: &ExpectedClaims,
) -> Result<String, jsonwebtoken::errors::Error> {
    let exp = get_current_timestamp().saturating_add(ttl.as_secs());
    let (aud, iss) = (claims.jwt_audience.as_deref(), claims.jwt_issuer.as_deref());
    let claims = MintedClaims { sub: sub.as_str(), exp, scope, aud, iss };
    jsonwebtoken::encode(&Header::new(Algorithm::HS256), &claims, &EncodingKey::from_secret(secret))
}
