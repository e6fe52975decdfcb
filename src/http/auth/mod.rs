//! The caller of a request: bearer tokens (JWT), verified with a secret or with the public keys of
//! a JWKS file.
//!
//! [`Caller`], [`Staff`], [`Charger`] and [`Backend`] are extractors: a handler that takes one
//! refuses requests without a valid token (401) or without the scope (403). A [`TokenVerifier`]
//! lives as long as the API. It holds a [`keyring`], which a changed key file replaces.

mod keyring;
mod mint;
#[cfg(test)]
mod tests;
mod verifier;

use std::sync::Arc;

use axum::extract::FromRequestParts;
use axum::http::header::AUTHORIZATION;
use axum::http::request::Parts;

pub use mint::{mint_token, mint_token_for};
pub use verifier::TokenVerifier;

use super::Api;
use super::problem::{Code, NoToken, Problem};
use crate::config::ChargeScope;
use crate::domain::UserId;

/// Why a token was refused: the detail for people, and the reason for programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TokenRefused {
    pub detail: &'static str,
    pub reason: NoToken,
}

impl TokenRefused {
    /// Not a token that this service accepts.
    pub fn invalid(detail: &'static str) -> Self {
        Self { detail, reason: NoToken::Invalid }
    }
}

/// The caller of a request, as its token says. The extractor refuses a request without a valid
/// token (401), and one whose token has none of the three scopes (403).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    pub sub: UserId,
    shop: bool,
    service: bool,
    admin: bool,
}

/// A caller with scope `admin`; others are refused with 403.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Staff(pub Caller);

/// A caller who may charge wallets by `RUSHGATE_CHARGE_SCOPE`; others are refused with 403.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Charger(pub Caller);

/// A caller with scope `service` or `admin`; others are refused with 403.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backend(pub Caller);

impl Caller {
    fn new(sub: UserId, scope: &str) -> Self {
        let has = |name: &str| scope.split(' ').any(|one| one == name);
        let admin = has("admin");
        Self { sub, shop: has("shop"), service: admin || has("service"), admin }
    }

    /// Whether the caller may act for `user` and see what belongs to that user.
    pub fn may_act_for(&self, user: &str) -> bool {
        self.service || (self.shop && self.sub.as_str() == user)
    }

    /// 404 unless [`Self::may_act_for`]: other users' things look as if they did not exist.
    pub fn check_acts_for(&self, user: &UserId) -> Result<(), Problem> {
        if self.may_act_for(user.as_str()) { Ok(()) } else { Err(Problem::no_such_user()) }
    }
}

impl FromRequestParts<Arc<Api>> for Caller {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, api: &Arc<Api>) -> Result<Self, Problem> {
        let token = bearer(parts)?;
        let caller = api
            .verifier
            .verify(token)
            .map_err(|TokenRefused { detail, reason }| Problem::unauthenticated(reason, detail))?;
        // The shop's backend and staff act for many users, so the rate of one user does not apply
        // to them.
        if !caller.service {
            api.rates.count_user(&caller.sub)?;
            if !parts.method.is_safe() {
                api.rates.count_write(&caller.sub)?;
            }
        }
        if caller.shop || caller.service {
            return Ok(caller);
        }
        Err(forbidden("The token has none of the scopes shop, service and admin."))
    }
}

impl FromRequestParts<Arc<Api>> for Staff {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, api: &Arc<Api>) -> Result<Self, Problem> {
        let caller = Caller::from_request_parts(parts, api).await?;
        if caller.admin {
            Ok(Self(caller))
        } else {
            Err(forbidden("This needs a token with scope admin."))
        }
    }
}

impl FromRequestParts<Arc<Api>> for Charger {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, api: &Arc<Api>) -> Result<Self, Problem> {
        let caller = Caller::from_request_parts(parts, api).await?;
        if caller.service || api.settings.charge_scope == ChargeScope::Shop {
            return Ok(Self(caller));
        }
        Err(forbidden("Charging a wallet needs a token with scope service."))
    }
}

impl FromRequestParts<Arc<Api>> for Backend {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, api: &Arc<Api>) -> Result<Self, Problem> {
        let caller = Caller::from_request_parts(parts, api).await?;
        match caller.service {
            true => Ok(Self(caller)),
            false => Err(forbidden("This needs a token with scope service or admin.")),
        }
    }
}

fn bearer(parts: &Parts) -> Result<&str, Problem> {
    let mut values = parts.headers.get_all(AUTHORIZATION).iter();
    let (Some(value), None) = (values.next(), values.next()) else {
        let detail = "Send one header `Authorization: Bearer <token>`.";
        let some = parts.headers.contains_key(AUTHORIZATION);
        let reason = if some { NoToken::Invalid } else { NoToken::Missing };
        return Err(Problem::unauthenticated(reason, detail));
    };
    let token = value.to_str().ok().and_then(|text| {
        let (scheme, token) = text.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
    });
    let detail = "The header must be `Authorization: Bearer <token>`.";
    token.ok_or_else(|| Problem::unauthenticated(NoToken::Missing, detail))
}

fn forbidden(detail: &'static str) -> Problem {
    Problem::new(Code::Forbidden, detail)
}
