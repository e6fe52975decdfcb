//! From the gate's decision to a response: the mark of replays, and with `RUSHGATE_ACK=truth` the
//! wait for PostgreSQL.

use std::time::Instant;

use axum::http::{HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

use super::Api;
use super::json_response::json_response;
use super::problem::Problem;
use crate::config::Ack;
use crate::gate::{Accepted, CaughtUp, Decision, GateError, NotApplied};
use crate::truth::Examined;

const REPLAYED: HeaderName = HeaderName::from_static("idempotent-replayed");

/// An accepted request on its way to a response.
#[derive(Debug)]
pub struct Decided<F> {
    pub fact: F,
    pub replayed: bool,
    /// PostgreSQL has applied it, or need not be waited for: the full body may be sent.
    acknowledged: bool,
}

/// Bodies of 202, which is sent with `RUSHGATE_ACK=truth` only: the request is decided and logged,
/// and PostgreSQL has not applied it yet.
macro_rules! accepted {
    ($($name:ident $id:ident: $type:ty, $about:literal;)*) => {$(
        #[doc = concat!("Decided and logged; PostgreSQL does not have it yet. The id of ", $about, ".")]
        #[derive(Debug, Serialize, ToSchema)]
        pub struct $name {
            status: AcceptedStatus,
            $id: $type,
        }

        impl $name {
            pub fn new($id: $type) -> Self {
                Self { status: AcceptedStatus::Accepted, $id }
            }
        }
    )*};
}

accepted! {
    AcceptedCharge charge_id: Uuid, "the charge";
    AcceptedCoupon coupon_id: Uuid, "the coupon";
    AcceptedOrder order_id: Uuid, "the order";
    AcceptedProduct product_id: String, "the product";
    AcceptedTemplate template_id: String, "the coupon template";
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum AcceptedStatus {
    Accepted,
}

impl Api {
    /// The time by which the gate must have decided a request that arrives now.
    pub fn deadline(&self) -> Instant {
        Instant::now() + self.settings.request_timeout
    }

    /// Waits, up to `truth_timeout`, until PostgreSQL has applied all that the gate has decided, so
    /// that clients can read what earlier answers told them.
    pub async fn catch_up(&self) -> Result<CaughtUp, Problem> {
        Ok(self.gate.catch_up(Instant::now() + self.settings.truth_timeout).await?)
    }

    /// Waits until PostgreSQL has caught up with the gate, then runs `read`. Returns the positions
    /// that PostgreSQL had reached, too. They are checked again after the read, also when it
    /// failed: this detects a PostgreSQL that was restored from a backup in between.
    pub async fn read_truth<T>(
        &self,
        read: impl Future<Output = Result<T, Problem>>,
    ) -> Result<(T, CaughtUp), Problem> {
        let caught_up = self.catch_up().await?;
        let found = read.await;
        self.truth.has_reached(caught_up.positions()).await?;
        Ok((found?, caught_up))
    }

    /// The gate's decision; with `RUSHGATE_ACK=truth`, waits up to `truth_timeout` for PostgreSQL.
    pub async fn decided<F, R>(
        &self,
        decision: Decision<F, R>,
        refused: impl FnOnce(R) -> Problem,
    ) -> Result<Decided<F>, Problem> {
        let accepted = decision?.map_err(refused)?;
        let acknowledged = match self.settings.ack {
            Ack::Gate => true,
            // Boxed, like the other rare waits here: handler futures are moved for every request,
            // and should not have the size of work that they rarely do.
            Ack::Truth => Box::pin(self.truth_has(&accepted)).await?,
        };
        Ok(Decided { fact: accepted.fact, replayed: accepted.replayed, acknowledged })
    }

    /// Whether PostgreSQL has applied the decision before `truth_timeout`.
    async fn truth_has<F>(&self, accepted: &Accepted<F>) -> Result<bool, Problem> {
        let deadline = Instant::now() + self.settings.truth_timeout;
        match self.gate.wait_applied(accepted.position, deadline).await {
            Ok(()) => {}
            // The gate was rebuilt, maybe because Redis had lost this very decision.
            Err(NotApplied::EpochChanged) => return Err(GateError::OutcomeUnknown.into()),
            Err(_) => return Ok(false),
        }
        match &accepted.scope {
            None => Ok(true),
            // A replayed answer may belong to an entry that PostgreSQL refused and an operator
            // skipped. The gate replays it until the next rebuild, and PostgreSQL will never have
            // it.
            Some(scope) => Ok(self.truth.has_answered(scope).await.unwrap_or(false)),
        }
    }

    /// With `RUSHGATE_ACK=truth`, call this before a refusal that clients take for a success ("you
    /// have it already"): it must not report what PostgreSQL does not have.
    pub async fn confirm_refusal(&self) -> Result<(), Problem> {
        if self.settings.ack == Ack::Truth {
            Box::pin(self.catch_up()).await?;
        }
        Ok(())
    }
}

impl<F> Decided<F> {
    /// `body` with `status`; or 202 with the ids alone, while PostgreSQL has not applied it.
    pub fn answer<A: Serialize, B: Serialize>(
        self,
        status: StatusCode,
        ids: impl FnOnce(&F) -> A,
        body: impl FnOnce(F) -> B,
    ) -> Response {
        let response = if self.acknowledged {
            json(status, &body(self.fact))
        } else {
            json(StatusCode::ACCEPTED, &ids(&self.fact))
        };
        marked(response, self.replayed)
    }
}

/// A JSON body with status 200.
#[derive(Debug)]
pub struct JsonAnswer<T>(pub T);

impl<T: Serialize> IntoResponse for JsonAnswer<T> {
    fn into_response(self) -> Response {
        json(StatusCode::OK, &self.0)
    }
}

fn json(status: StatusCode, body: &impl Serialize) -> Response {
    json_response(status, "application/json", body)
}

/// Marks the response as a replay for a repeated `Idempotency-Key`.
pub fn marked(mut response: Response, replayed: bool) -> Response {
    if replayed {
        response.headers_mut().insert(REPLAYED, HeaderValue::from_static("true"));
    }
    response
}

/// One page of a list.
#[derive(Debug, Serialize, ToSchema)]
#[schema(title = "List")]
pub struct List<T> {
    pub data: Vec<T>,
    /// Pass it as `after` to get the next page; null on the last.
    #[schema(required)]
    pub next: Option<String>,
}

impl<T> List<T> {
    /// From up to `limit + 1` elements: an element beyond the limit only shows that there is a next
    /// page.
    pub fn page(mut data: Vec<T>, limit: usize, id: impl Fn(&T) -> String) -> Self {
        let more = data.len() > limit;
        data.truncate(limit);
        let next = if more { data.last().map(id) } else { None };
        Self { data, next }
    }

    /// As [`Self::page`]. Where fewer elements were found and more may follow, the next page begins
    /// after the last place examined.
    pub fn examined<P: ToString>(
        examined: Examined<T, P>,
        limit: usize,
        id: impl Fn(&T) -> String,
    ) -> Self {
        let go_on = examined.go_on_after.map(|place| place.to_string());
        let page = Self::page(examined.found, limit, id);
        Self { next: page.next.or(go_on), ..page }
    }

    pub fn map<U>(self, element: impl FnMut(T) -> U) -> List<U> {
        List { data: self.data.into_iter().map(element).collect(), next: self.next }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_names_the_next_only_when_there_is_one() {
        let page = |n: u64, limit| List::page((0..n).collect(), limit, u64::to_string);
        assert_eq!((page(3, 2).data, page(3, 2).next), (vec![0, 1], Some("1".to_owned())));
        assert_eq!((page(2, 2).data, page(2, 2).next), (vec![0, 1], None));
        assert_eq!(page(0, 2).next, None);
    }
}
