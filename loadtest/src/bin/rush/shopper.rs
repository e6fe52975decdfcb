//! A user of goose as a customer of the shop: its session and its requests. Changes are sent with an
//! `Idempotency-Key` and retried with it until the outcome is known, as the README asks of clients.
//! So each user knows its expected balance.

use std::sync::Arc;
use std::time::{Duration, Instant};

use goose::goose::{GooseMethod, GooseRequest, GooseUser, TransactionError, TransactionResult};
use serde_json::Value;

use crate::answers::Outcome;
use crate::crowd::Crowd;

/// Number of attempts of a change whose outcome is unknown.
pub const REPEATS: usize = 5;
/// Pause between the attempts.
pub const REPEAT_PAUSE: Duration = Duration::from_millis(500);

/// Begins the session of a user who is new to the shop.
pub fn come_in(user: &mut GooseUser, crowd: Arc<Crowd>) -> TransactionResult {
    let (number, name, token) =
        crowd.next_user().map_err(|e| TransactionError::Custom(e.to_string()))?;
    user.set_session_data(Shopper {
        crowd,
        number,
        name,
        token,
        balance: 0,
        sure: true,
        keys: 0,
        coupon: None,
        last_order: None,
    });
    Ok(())
}

/// The session of a user.
#[derive(Clone)]
pub struct Shopper {
    pub crowd: Arc<Crowd>,
    pub number: u64,
    pub name: String,
    pub token: String,
    /// The expected balance; valid only while `sure` is true, that is, while every outcome was
    /// known.
    pub balance: u64,
    pub sure: bool,
    /// Number of idempotency keys used.
    pub keys: u64,
    pub coupon: Option<String>,
    /// The order's id and total.
    pub last_order: Option<(String, u64)>,
}

/// The answer to a request.
pub struct HttpAnswer {
    pub status: u16,
    pub body: Value,
}

pub fn me(user: &mut GooseUser) -> Result<&mut Shopper, Box<TransactionError>> {
    user.get_session_data_mut::<Shopper>().ok_or_else(|| Box::new("nobody".into()))
}

/// Sends one request. Anything but a success or a code in `fine` counts as a failure.
pub async fn ask(
    user: &mut GooseUser,
    method: GooseMethod,
    name: &str,
    path: &str,
    (key, body): (Option<&str>, Option<&Value>),
    fine: &[&str],
) -> Result<Option<HttpAnswer>, Box<TransactionError>> {
    let shopper = me(user)?;
    // The shop's backend confirms payments. It also charges the wallets, because
    // `RUSHGATE_CHARGE_SCOPE` requires that by default.
    let by_backend = path.ends_with("/wallet/charges") || path.ends_with("/confirm");
    let token =
        if by_backend { shopper.crowd.backend_token.clone() } else { shopper.token.clone() };
    let mut request = user.get_request_builder(&method, path)?.bearer_auth(token);
    if let Some(key) = key {
        request = request.header("Idempotency-Key", key);
    }
    if let Some(body) = body {
        request = request.json(body);
    }
    let request = GooseRequest::builder()
        .method(method)
        .path(path)
        .name(name)
        .set_request_builder(request)
        .build();
    let (crowd, began) = (Arc::clone(&me(user)?.crowd), Instant::now());
    let count = |outcome| crowd.count(name, outcome, began.elapsed());
    let mut asked = user.request(request).await?;
    let Ok(response) = asked.response else {
        count(Outcome::Failure("no answer".into()));
        return Ok(None);
    };
    let status = response.status().as_u16();
    let Ok(text) = response.text().await else {
        count(Outcome::Failure("the answer was cut off".into()));
        user.set_failure("the answer was cut off", &mut asked.request, None, None)?;
        return Ok(None);
    };
    let body: Value = serde_json::from_str(&text).unwrap_or_default();
    let code = body["code"].as_str().unwrap_or_default().to_owned();
    if status < 400 {
        count(Outcome::Success);
    } else {
        match fine.contains(&code.as_str()) {
            true => {
                count(Outcome::Refusal(format!("{status} {code}")));
                user.set_success(&mut asked.request)?;
            }
            false => {
                count(Outcome::Failure(format!("{status} {code}")));
                // Marks the request as failed for goose. The error is ignored, so that the run
                // continues.
                let _ = user.set_failure(
                    &format!("{status} {code}"),
                    &mut asked.request,
                    None,
                    Some(&text),
                );
            }
        }
    }
    Ok(Some(HttpAnswer { status, body }))
}

/// Sends a change, and retries it with its key until the outcome is known.
pub async fn change(
    user: &mut GooseUser,
    name: &str,
    path: &str,
    body: Option<&Value>,
    fine: &[&str],
) -> Result<Option<HttpAnswer>, Box<TransactionError>> {
    let shopper = me(user)?;
    shopper.keys += 1;
    let key = format!("{}-{}", shopper.name, shopper.keys);
    for _ in 0..REPEATS {
        let answer = ask(user, GooseMethod::Post, name, path, (Some(&key), body), fine).await?;
        match answer {
            Some(answer) if answer.status < 500 => return Ok(Some(answer)),
            _ => tokio::time::sleep(REPEAT_PAUSE).await,
        }
    }
    let shopper = me(user)?;
    shopper.sure = false;
    shopper.crowd.note(|told| told.unknown += 1);
    Ok(None)
}
