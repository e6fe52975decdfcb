//! What the demo's storefront needs beside the API: tokens for the demo's users, and a crowd
//! ([`super::rivals`]).
//!
//! Anybody who reaches the port gets such a token, so the storefront is for demos only
//! (`RUSHGATE_DEMO_SHOP`). The tokens have the scope `shop`, for the users that `rushgate seed`
//! makes.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::State;
use serde::{Deserialize, Serialize};

use crate::config::bounds::DEMO_USERS;
use crate::config::{self, Auth, ExpectedClaims};
use crate::domain::{TemplateId, UserId};
use crate::http::Api;
use crate::http::answer::JsonAnswer;
use crate::http::auth::mint_token_for;
use crate::http::extract::Json;
use crate::http::problem::Problem;

use super::rivals::{Crowd, RIVAL, Run};

const TOKEN_TTL: Duration = Duration::from_secs(60 * 60);

/// The state of the storefront.
pub struct DemoShop {
    secret: String,
    claims: ExpectedClaims,
    /// This instance's own port.
    pub(super) address: SocketAddr,
    /// The latest run of a crowd.
    pub(super) rivals: tokio::sync::Mutex<Option<Arc<Run>>>,
}

impl DemoShop {
    /// `None`: the storefront is off. `listening`: the address of this instance's API.
    pub fn from_settings(settings: &config::Serve, listening: SocketAddr) -> Option<Self> {
        let Auth { jwt_secret, claims, .. } = &settings.auth;
        match (settings.demo_shop, jwt_secret) {
            (config::Switch::On, Some(secret)) => {
                let (secret, claims) = (secret.clone(), claims.clone());
                Some(Self { secret, claims, address: local(listening), rivals: Default::default() })
            }
            _ => None,
        }
    }

    /// A crowd for a template. Its tokens do not leave this process except over its own port.
    pub(super) fn crowd(
        &self,
        template_id: &TemplateId,
        rivals: u64,
        opens: Instant,
    ) -> Result<Crowd, String> {
        let rival = |n: u64| {
            let user = UserId::parse(format!("{RIVAL}{n}")).map_err(|error| error.to_string())?;
            let token =
                self.token(&user, "shop").map_err(|_| "a token cannot be signed".to_owned())?;
            Ok::<_, String>((String::from(user), token))
        };
        Ok(Crowd {
            address: self.address,
            path: format!("/v1/coupon-templates/{template_id}/coupons"),
            rivals: (1..=rivals).map(rival).collect::<Result<_, _>>()?,
            opens,
        })
    }

    /// A token for calls of the storefront. Only those of demo users with the scope `shop` are given
    /// away.
    pub(super) fn token(&self, user: &UserId, scope: &str) -> Result<String, Problem> {
        let secret = self.secret.as_bytes();
        mint_token_for(secret, user, scope, TOKEN_TTL, &self.claims).map_err(|error| {
            tracing::error!(%error, "a token for the demo's storefront cannot be signed");
            Problem::internal()
        })
    }
}

impl Api {
    /// The storefront's routes exist only where it is on.
    pub(super) fn storefront(&self) -> Result<&DemoShop, Problem> {
        self.demo_shop.as_ref().ok_or_else(Problem::internal)
    }
}

/// The address at which this machine reaches a port that listens on all of its addresses.
fn local(listening: SocketAddr) -> SocketAddr {
    let ip = match listening.ip() {
        ip if !ip.is_unspecified() => ip,
        IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
    };
    SocketAddr::new(ip, listening.port())
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenBody {
    user_id: UserId,
}

#[derive(Debug, Serialize)]
pub struct TokenView {
    user_id: String,
    token: String,
    expires_in_secs: u64,
}

/// `POST /shop/token` `{user_id}`: a token of a demo user, for one hour.
pub async fn issue_token(
    State(api): State<Arc<Api>>,
    Json(body): Json<TokenBody>,
) -> Result<JsonAnswer<TokenView>, Problem> {
    let user = body.user_id;
    if !is_demo_user(user.as_str()) {
        return Err(Problem::invalid("user_id", format!("must be user-1 to user-{DEMO_USERS}")));
    }
    let token = api.storefront()?.token(&user, "shop")?;
    let expires_in_secs = TOKEN_TTL.as_secs();
    Ok(JsonAnswer(TokenView { user_id: user.into(), token, expires_in_secs }))
}

/// Whether `rushgate seed` makes this user: `user-1` … `user-1000`, without leading zeros.
fn is_demo_user(user: &str) -> bool {
    let number = user.strip_prefix("user-").and_then(|digits| digits.parse::<usize>().ok());
    number.is_some_and(|n| (1..=DEMO_USERS).contains(&n) && user == format!("user-{n}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_for_users_of_the_seed_only() {
        for user in ["user-1", "user-42", "user-1000"] {
            assert!(is_demo_user(user), "{user}");
        }
        for user in ["user-0", "user-1001", "user-01", "user-+1", "user-", "admin", "xuser-1"] {
            assert!(!is_demo_user(user), "{user}");
        }
    }
}
