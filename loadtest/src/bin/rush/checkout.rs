//! Users who pay by card for a scarce product. Of ten orders, seven are confirmed, one is confirmed
//! after its hold has ended, one is cancelled, and one is left behind.
//!
//! Late payments are sent by tasks beside the users, because a hold lasts longer than most runs.

use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use goose::goose::{GooseUser, TransactionError, TransactionResult};
use reqwest::StatusCode;
use rushgate_loadtest::holds::moment_ms;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio::time::timeout_at;

use crate::answers::Outcome;
use crate::card_orders::Ending;
use crate::crowd::{Crowd, PIECES_PER_USER};
use crate::shopper::{REPEAT_PAUSE, REPEATS, change, come_in, me};

/// The shortest hold that Rushgate takes.
const HOLD_SECS: u64 = 60;
/// How long users take to type their card's number, in ms: from, and up to so much longer.
const TYPING_MS: (u64, u64) = (200, 800);
/// A late payment comes up to this long after the end of its hold.
const LATE_MS: u64 = 2_000;
/// Time for the pieces of the last hold to be seen back.
const RETURN_TIME: Duration = Duration::from_secs(2);
/// Time for the answers to the last payments that come too late.
const LATE_ANSWERS: Duration = Duration::from_secs(20);

/// What the user of an order does once it is placed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Plan {
    Pay,
    PayLate,
    Cancel,
    Vanish,
}

impl Plan {
    fn of(order: u64) -> Self {
        match order % 10 {
            0..=6 => Plan::Pay,
            7 => Plan::PayLate,
            8 => Plan::Cancel,
            _ => Plan::Vanish,
        }
    }
}

/// An order that was placed and not paid yet.
#[derive(Clone)]
struct Placed {
    id: String,
    number: u64,
    /// The hold has ended by then for certain: its length counts from the answer here, but from the
    /// decision in the shop.
    hold_ends: Instant,
}

/// Places an order and does with it what its number says.
pub async fn pay_by_card(user: &mut GooseUser) -> TransactionResult {
    let Some(order) = place(user).await? else { return Ok(()) };
    let crowd = Arc::clone(&me(user)?.crowd);
    match Plan::of(order.number) {
        Plan::Pay => {
            let (from, more) = TYPING_MS;
            let typing = from + order.number * 37 % more;
            tokio::time::sleep(Duration::from_millis(typing)).await;
            let (path, body) = confirmation(&order);
            let answer = change(user, "confirm the payment", &path, Some(&body), &[]).await?;
            let paid = answer.is_some_and(|it| it.status == 200);
            let ending = if paid { Ending::Paid } else { Ending::Unknown };
            crowd.note(|told| told.card.left(&order.id, order.hold_ends, ending));
        }
        Plan::Cancel => {
            let path = format!("/v1/orders/{}/cancel", order.id);
            let answer = change(user, "cancel a pending order", &path, None, &[]).await?;
            let cancelled = answer.is_some_and(|it| it.status == 200);
            let ending = if cancelled { Ending::Cancelled } else { Ending::Unknown };
            crowd.note(|told| told.card.left(&order.id, order.hold_ends, ending));
        }
        Plan::PayLate => {
            crowd.note(|told| {
                told.card.left(&order.id, order.hold_ends, Ending::Expired);
                told.card.late += 1;
            });
            let mut late = crowd.late_payments.lock().unwrap_or_else(PoisonError::into_inner);
            late.spawn(pay_late(Arc::clone(&crowd), order));
        }
        Plan::Vanish => {
            crowd.note(|told| told.card.left(&order.id, order.hold_ends, Ending::Expired));
            // Somebody else takes the place in the crowd.
            come_in(user, crowd)?;
        }
    }
    Ok(())
}

/// Every second user wants two pieces at once, the others one at a time.
async fn place(user: &mut GooseUser) -> Result<Option<Placed>, Box<TransactionError>> {
    let shopper = me(user)?;
    let crowd = Arc::clone(&shopper.crowd);
    let quantity = 1 + shopper.number % PIECES_PER_USER;
    let body = json!({
        "user_id": shopper.name, "payment": "external", "hold_secs": HOLD_SECS,
        "items": [{"product_id": crowd.by_card(), "quantity": quantity}],
    });
    let fine = ["insufficient-stock", "purchase-limit-exceeded"];
    let sent_ms = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
    let answer = change(user, "order by card", "/v1/orders", Some(&body), &fine).await?;
    let Some(answer) = answer.filter(|it| it.status == 201) else { return Ok(None) };
    let moments =
        (moment_ms(&answer.body, "ordered_at"), moment_ms(&answer.body, "hold_expires_at"));
    let (Some(ordered_ms), Some(ends_ms)) = moments else {
        return Err(Box::new("an order without the end of its hold".into()));
    };
    let hold = Duration::from_millis(u64::try_from(ends_ms - ordered_ms).unwrap_or_default());
    let ahead_ms = i64::try_from(sent_ms).unwrap_or_default() - ordered_ms;
    crowd.note(|told| {
        told.card.clock_ahead_ms = told.card.clock_ahead_ms.max(Some(ahead_ms));
    });
    let id = answer.body["order_id"].as_str().unwrap_or_default().to_owned();
    Ok(Some(Placed { id, number: crowd.next_card_order(), hold_ends: Instant::now() + hold }))
}

/// Path and body of a confirmation. Every order has a payment of its own.
fn confirmation(order: &Placed) -> (String, Value) {
    let payment = json!({ "payment_reference": format!("card-{}", order.id) });
    (format!("/v1/orders/{}/confirm", order.id), payment)
}

/// Confirms an order after its hold has ended, which must be refused.
async fn pay_late(crowd: Arc<Crowd>, order: Placed) {
    let late = Duration::from_millis(order.number * 37 % LATE_MS);
    tokio::time::sleep_until((order.hold_ends + late).into()).await;
    let (path, body) = confirmation(&order);
    for _ in 0..REPEATS {
        let began = Instant::now();
        let answer = crowd.api.backend_post(&path, &body).await;
        let (outcome, clear) = match &answer {
            Ok((status, answer)) => late_outcome(*status, answer),
            Err(_) => (Outcome::Failure("no answer".into()), false),
        };
        crowd.count("confirm the payment too late", outcome.clone(), began.elapsed());
        if clear {
            crowd.note(|told| match &outcome {
                Outcome::Refusal(_) => told.card.late_refused += 1,
                Outcome::Success => told.card.late_others.push(format!("{}: 200", order.id)),
                Outcome::Failure(why) => told.card.late_others.push(format!("{}: {why}", order.id)),
            });
            return;
        }
        tokio::time::sleep(REPEAT_PAUSE).await;
    }
    crowd.note(|told| told.unknown += 1);
}

/// The outcome of a payment that came too late, and whether the answer is final.
fn late_outcome(status: StatusCode, answer: &Value) -> (Outcome, bool) {
    let code = answer["code"].as_str().unwrap_or_default();
    let text = format!("{} {code}", status.as_u16());
    match status {
        _ if status.is_success() => (Outcome::Success, true),
        StatusCode::CONFLICT if code == "hold-expired" => (Outcome::Refusal(text), true),
        _ => (Outcome::Failure(text), status.is_client_error()),
    }
}

/// Waits until all holds have ended, late payments are answered and pieces had time to be back.
/// Whatever is still under way then is judged as it is.
pub async fn wait_for_holds(crowd: &Crowd) {
    let mut late: JoinSet<()> =
        std::mem::take(&mut *crowd.late_payments.lock().unwrap_or_else(PoisonError::into_inner));
    let (now, longest) = (Instant::now(), Duration::from_secs(HOLD_SECS));
    let told = crowd.told();
    // An order whose outcome is unknown to its user may be held, too.
    let unknown = (told.unknown > 0).then_some(now + longest);
    let ends = told.card.last_hold_ends.max(unknown).unwrap_or(now).min(now + longest);
    tokio::time::sleep_until((ends + RETURN_TIME).into()).await;
    let answers = async { while late.join_next().await.is_some() {} };
    let limit = ends + Duration::from_millis(LATE_MS) + LATE_ANSWERS;
    if timeout_at(limit.into(), answers).await.is_err() {
        crowd.note(|told| told.unknown += 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_ten_orders_seven_are_paid_in_time_and_one_each_late_cancelled_and_left() {
        let plans: Vec<Plan> = (0..1_000).map(Plan::of).collect();
        let count = |wanted| plans.iter().filter(|plan| **plan == wanted).count();
        let counts = [Plan::Pay, Plan::PayLate, Plan::Cancel, Plan::Vanish].map(count);
        assert_eq!(counts, [700, 100, 100, 100]);
    }

    #[test]
    fn only_hold_expired_is_an_expected_answer_to_a_late_payment() {
        let outcome = |status, code: &str| late_outcome(status, &json!({ "code": code }));
        let refused = Outcome::Refusal("409 hold-expired".into());
        assert_eq!(outcome(StatusCode::CONFLICT, "hold-expired"), (refused, true));
        assert_eq!(outcome(StatusCode::OK, ""), (Outcome::Success, true));
        let other = Outcome::Failure("409 order-cancelled".into());
        assert_eq!(outcome(StatusCode::CONFLICT, "order-cancelled"), (other, true));
        let asked_again = Outcome::Failure("503 overloaded".into());
        assert_eq!(outcome(StatusCode::SERVICE_UNAVAILABLE, "overloaded"), (asked_again, false));
    }
}
