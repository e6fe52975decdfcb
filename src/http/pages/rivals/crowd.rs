//! The crowd: each rival presses a little after the opening, as people do, and sends one request
//! over HTTP with a token of their own. At most [`RIVALS_CONNECTIONS`] requests are in flight.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::{Body, to_bytes};
use axum::http::header::{AUTHORIZATION, CONTENT_TYPE};
use axum::http::{Request, StatusCode};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde::Deserialize;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::config::bounds::{
    MAX_BODY_BYTES, RIVALS_ANSWER_LIMIT, RIVALS_CONNECTIONS, RIVALS_PRESS,
};
use crate::http::problem::Code;

/// The outcome of a rival whose request was not answered.
pub const NO_ANSWER: &str = "no-answer";

/// Who asks, where, and when.
pub struct Crowd {
    pub address: SocketAddr,
    pub path: String,
    /// User and token of each rival.
    pub rivals: Vec<(String, String)>,
    pub opens: Instant,
}

type HttpClient = Client<HttpConnector, Body>;

/// Sends the crowd; returns when each rival has an answer or has given up. `told` hears each
/// outcome: `issued`, the code of a refusal, or [`NO_ANSWER`], and how long it took from pressing.
pub async fn send<T>(crowd: Crowd, told: T) -> Result<(), String>
where
    T: Fn(&'static str, Duration) + Clone + Send + 'static,
{
    let client: HttpClient = Client::builder(TokioExecutor::new())
        .pool_max_idle_per_host(RIVALS_CONNECTIONS)
        .build_http();
    let places = Arc::new(Semaphore::new(RIVALS_CONNECTIONS));
    let url: Arc<str> = format!("http://{}{}", crowd.address, crowd.path).into();
    let mut rivals = JoinSet::new();
    for (user, token) in crowd.rivals {
        let press = crowd.opens + reaction();
        let (client, places, url, told) =
            (client.clone(), Arc::clone(&places), Arc::clone(&url), told.clone());
        rivals.spawn(async move {
            tokio::time::sleep_until(press.into()).await;
            let asking = async {
                let _place = places.acquire().await.ok()?;
                ask(&client, &url, &user, &token).await
            };
            let outcome = tokio::time::timeout(RIVALS_ANSWER_LIMIT, asking).await.ok().flatten();
            told(outcome.unwrap_or(NO_ANSWER), press.elapsed());
        });
    }
    while let Some(ended) = rivals.join_next().await {
        ended.map_err(|error| error.to_string())?;
    }
    Ok(())
}

/// From the opening to the press: most rivals press in the middle of [`RIVALS_PRESS`], few at its
/// ends.
fn reaction() -> Duration {
    RIVALS_PRESS.mul_f64((fastrand::f64() + fastrand::f64()) / 2.0)
}

/// One request; `None`: no answer that can be read.
async fn ask(client: &HttpClient, url: &str, user: &str, token: &str) -> Option<&'static str> {
    let body = serde_json::json!({ "user_id": user }).to_string();
    let request = Request::post(url)
        .header(AUTHORIZATION, format!("Bearer {token}"))
        .header(CONTENT_TYPE, "application/json")
        .body(Body::from(body))
        .ok()?;
    let answer = client.request(request).await.ok()?;
    let status = answer.status();
    let body = to_bytes(Body::new(answer.into_body()), MAX_BODY_BYTES).await.ok()?;
    if status == StatusCode::CREATED {
        return Some("issued");
    }
    #[derive(Deserialize)]
    struct Refusal {
        code: String,
    }
    let Refusal { code } = serde_json::from_slice(&body).ok()?;
    Code::ALL.iter().map(|code| code.as_str()).find(|known| *known == code)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rivals_press_after_the_opening_and_few_of_them_at_once() {
        let pressed: Vec<Duration> = (0..2_000).map(|_| reaction()).collect();
        assert!(pressed.iter().all(|press| *press <= RIVALS_PRESS));
        let early = pressed.iter().filter(|press| **press < RIVALS_PRESS / 8).count();
        assert!((20..200).contains(&early), "{early}: about one in 32");
    }
}
