//! Ids in a route's path, or as `after` in a query.

use axum::extract::rejection::RawPathParamsRejection;
use axum::extract::{FromRequestParts, RawPathParams};
use axum::http::request::Parts;
use uuid::Uuid;

use super::percent::{percent_decode, undecodable};
use crate::domain::ids::ID_RULE;
use crate::domain::{ProductId, TemplateId, UserId};
use crate::http::fields::parse_uuid;
use crate::http::problem::Problem;

/// An id that a path or the `after` of a query can hold.
pub trait Identifier: Sized {
    /// Completes "must be …".
    const RULE: &'static str;
    fn from_text(text: &str) -> Option<Self>;
}

macro_rules! shop_identifiers {
    ($($id:ty),*) => {
        $(impl Identifier for $id {
            const RULE: &'static str = ID_RULE;
            fn from_text(text: &str) -> Option<Self> {
                Self::parse(text).ok()
            }
        })*
    };
}
shop_identifiers!(UserId, ProductId, TemplateId);

impl Identifier for Uuid {
    const RULE: &'static str = "a UUID such as 01939e5a-7c2f-7b3e-9d54-8a1c6f2e0b47";
    fn from_text(text: &str) -> Option<Self> {
        parse_uuid(text)
    }
}

/// The position of an entry in a ledger.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntryId(pub i64);

impl Identifier for EntryId {
    const RULE: &'static str = "the `next` of the page before";
    fn from_text(text: &str) -> Option<Self> {
        let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        if digits { text.parse().ok().map(Self) } else { None }
    }
}

pub fn identify<T: Identifier>(field: &str, text: &str) -> Result<T, Problem> {
    T::from_text(text).ok_or_else(|| Problem::invalid(field, format_args!("must be {}", T::RULE)))
}

/// The id in the route's path; a route has at most one.
#[derive(Debug)]
pub struct PathId<T>(pub T);

impl<S: Send + Sync, T: Identifier> FromRequestParts<S> for PathId<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        if parts.uri.path().contains('%') {
            percent_decode(parts.uri.path())?;
        }
        let params = match RawPathParams::from_request_parts(parts, state).await {
            Ok(params) => params,
            Err(RawPathParamsRejection::InvalidUtf8InPathParam(_)) => return Err(undecodable()),
            Err(_) => return Err(Problem::internal()),
        };
        let Some((name, value)) = params.iter().next() else {
            return Err(Problem::internal());
        };
        identify(name, value).map(Self)
    }
}
