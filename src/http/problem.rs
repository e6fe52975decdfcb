//! Refusals: the one error type of the HTTP API, and its mapping to status, headers and body (RFC
//! 9457).

use std::borrow::Cow;
use std::sync::{Mutex, PoisonError};

use axum::http::header::{CONTENT_LANGUAGE, RETRY_AFTER, VARY, WWW_AUTHENTICATE};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::ser::{Serialize, SerializeMap, Serializer};
use serde_json::Value;

use super::accept::Language;
use super::json_response::json_response;
use super::request_notes::RequestNotes;
use crate::config::bounds::RETRY_AFTER_SECS;
use crate::gate::{GateError, NotApplied};
use crate::telemetry::repeated::Repeated;
use crate::truth::TruthError;

pub mod korean;

macro_rules! codes {
    ($($name:ident $text:literal $status:ident $title:literal [$($member:literal)*])*) => {
        /// The machine-readable code of a refusal.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Code { $($name),* }

        impl Code {
            /// Every code there is.
            pub const ALL: &[Code] = &[$(Code::$name),*];

            pub fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text),* }
            }

            pub fn status(self) -> StatusCode {
                match self { $(Self::$name => StatusCode::$status),* }
            }

            pub fn title(self) -> &'static str {
                match self { $(Self::$name => $title),* }
            }

            /// The extra members that every problem of this code has.
            pub fn members(self) -> &'static [&'static str] {
                match self { $(Self::$name => &[$($member),*]),* }
            }
        }
    };
}

impl Code {
    /// The extra members that only some problems of this code have.
    pub fn optional_members(self) -> &'static [&'static str] {
        match self {
            Self::InvalidField => &["product_id", "available"],
            // A payment from the wallet has none.
            Self::AlreadyConfirmed => &["payment_reference"],
            _ => &[],
        }
    }
}

codes! {
    MalformedRequest "malformed-request" BAD_REQUEST "The request cannot be read" []
    Unauthenticated "unauthenticated" UNAUTHORIZED "A valid token is needed" ["reason"]
    Forbidden "forbidden" FORBIDDEN "The token does not allow this" []
    ProductNotFound "product-not-found" NOT_FOUND "No such product" ["product_id"]
    CouponTemplateNotFound "coupon-template-not-found" NOT_FOUND "No such coupon template" ["template_id"]
    CouponNotFound "coupon-not-found" NOT_FOUND "No such coupon" ["coupon_id"]
    OrderNotFound "order-not-found" NOT_FOUND "No such order" []
    UserNotFound "user-not-found" NOT_FOUND "No such user" []
    RouteNotFound "route-not-found" NOT_FOUND "No such route" []
    MethodNotAllowed "method-not-allowed" METHOD_NOT_ALLOWED "The route does not know this method" []
    RequestTimeout "request-timeout" REQUEST_TIMEOUT "The request body came too slowly" []
    SoldOut "sold-out" CONFLICT "All coupons are gone" ["template_id"]
    AlreadyIssued "already-issued" CONFLICT "The user has this coupon already" ["coupon_id" "template_id"]
    IssuanceNotOpen "issuance-not-open" CONFLICT "Coupons are not issued yet" ["issue_from" "template_id"]
    IssuanceClosed "issuance-closed" CONFLICT "Coupons are not issued any more" ["issue_until" "template_id"]
    InsufficientStock "insufficient-stock" CONFLICT "Not enough in stock" ["product_id" "available" "required"]
    InsufficientBalance "insufficient-balance" CONFLICT "Not enough in the wallet" ["balance" "required"]
    BalanceLimitExceeded "balance-limit-exceeded" CONFLICT "The wallet cannot hold that much" ["balance" "limit"]
    ProductNotOnSale "product-not-on-sale" CONFLICT "The product is not on sale" ["product_id"]
    SaleNotOpen "sale-not-open" CONFLICT "The sale has not begun" ["product_id" "sale_from"]
    SaleEnded "sale-ended" CONFLICT "The sale is over" ["product_id" "sale_until"]
    PurchaseLimitExceeded "purchase-limit-exceeded" CONFLICT "The user may not buy that many" ["product_id" "limit" "bought" "requested"]
    TooManyPending "too-many-pending" CONFLICT "Too many orders wait for a payment" ["limit"]
    HoldExpired "hold-expired" CONFLICT "The order was not paid in time" ["hold_expires_at"]
    AlreadyConfirmed "already-confirmed" CONFLICT "The order is paid already" []
    OrderCancelled "order-cancelled" CONFLICT "The order was cancelled" []
    CouponNotAvailable "coupon-not-available" CONFLICT "The coupon was used" ["coupon_id"]
    CouponExpired "coupon-expired" CONFLICT "The coupon has expired" ["expired_at" "coupon_id"]
    SubtotalTooLow "subtotal-too-low" CONFLICT "The order is too small for the coupon" ["required" "subtotal" "coupon_id"]
    PriceChanged "price-changed" CONFLICT "The total is not what was expected" ["total"]
    StockBelowZero "stock-below-zero" CONFLICT "The stock would fall below zero" ["product_id" "available" "required"]
    LimitBelowIssued "limit-below-issued" CONFLICT "More coupons than that are issued" ["template_id" "issued"]
    BodyTooLarge "body-too-large" PAYLOAD_TOO_LARGE "The request body is too large" []
    UnsupportedMediaType "unsupported-media-type" UNSUPPORTED_MEDIA_TYPE "The body must be JSON" []
    InvalidField "invalid-field" UNPROCESSABLE_ENTITY "A value is not acceptable" ["field"]
    IdempotencyKeyReused "idempotency-key-reused" UNPROCESSABLE_ENTITY "The key belongs to another request" []
    RateLimited "rate-limited" TOO_MANY_REQUESTS "Too many requests" ["retry_after"]
    InternalError "internal-error" INTERNAL_SERVER_ERROR "Rushgate failed" []
    GateUnavailable "gate-unavailable" SERVICE_UNAVAILABLE "The gate cannot decide now" ["retry_after"]
    Overloaded "overloaded" SERVICE_UNAVAILABLE "Too many requests at once" ["retry_after"]
    BacklogFull "backlog-full" SERVICE_UNAVAILABLE "The database is too far behind" ["retry_after"]
    OutcomeUnknown "outcome-unknown" SERVICE_UNAVAILABLE "It is not known whether this was done" ["retry_after"]
    TruthUnavailable "truth-unavailable" SERVICE_UNAVAILABLE "The database does not answer in time" ["retry_after"]
}

/// Why a request counts as sent without a token: the member `reason` of a 401.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoToken {
    /// There is no bearer token.
    Missing,
    Expired,
    /// Forged, malformed, or of another issuer, audience, algorithm or key.
    Invalid,
}

impl NoToken {
    pub const ALL: [&str; 3] = ["missing", "expired", "invalid"];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Expired => "expired",
            Self::Invalid => "invalid",
        }
    }
}

/// A refusal on its way to the client.
#[derive(Clone, Debug, PartialEq)]
pub struct Problem {
    code: Code,
    detail: Cow<'static, str>,
    members: Vec<(&'static str, Value)>,
    /// Seconds to wait; `None`: [`RETRY_AFTER_SECS`].
    retry_after: Option<u64>,
}

impl Problem {
    /// `detail` says what happened and what to do.
    pub fn new(code: Code, detail: impl Into<Cow<'static, str>>) -> Self {
        Self { code, detail: detail.into(), members: Vec::new(), retry_after: None }
    }

    /// Adds an extra member. It must be in the table of codes, from which the API's description is
    /// made.
    pub fn with(mut self, name: &'static str, value: impl Into<Value>) -> Self {
        debug_assert!(
            self.code.members().contains(&name) || self.code.optional_members().contains(&name),
            "{name} is not described for {:?}",
            self.code
        );
        self.members.push((name, value.into()));
        self
    }

    /// Sets the time to wait before a retry.
    pub fn retry_after(mut self, secs: u64) -> Self {
        self.retry_after = Some(secs);
        self
    }

    pub fn code(&self) -> Code {
        self.code
    }

    /// 400: the request could not even be read.
    pub fn malformed(detail: impl Into<Cow<'static, str>>) -> Self {
        Self::new(Code::MalformedRequest, detail)
    }

    /// 422: one value is not acceptable. `rule` completes the sentence that begins with the field's
    /// name.
    pub fn invalid(field: impl Into<String>, rule: impl std::fmt::Display) -> Self {
        let field = field.into();
        let named = if field.is_empty() { "The body" } else { field.as_str() };
        Self::new(Code::InvalidField, format!("{named}: {rule}.")).with("field", field)
    }

    /// 401: no token, or one that is not accepted.
    pub fn unauthenticated(reason: NoToken, detail: &'static str) -> Self {
        Self::new(Code::Unauthenticated, detail).with("reason", reason.as_str())
    }

    /// The challenge of a 401 (RFC 6750, 3): it names an error only if there was a token.
    fn challenge(&self) -> HeaderValue {
        let missing = |(_, value): &(&str, Value)| value == NoToken::Missing.as_str();
        HeaderValue::from_static(match self.members.iter().any(missing) {
            true => "Bearer",
            false => "Bearer error=\"invalid_token\"",
        })
    }

    /// 404: the user does not exist, or the caller may not act for this user.
    pub fn no_such_user() -> Self {
        Self::new(
            Code::UserNotFound,
            "There is no such user, or the token may not act for this user.",
        )
    }

    /// 404: the caller can see no order with this id.
    pub fn no_such_order() -> Self {
        Self::new(Code::OrderNotFound, "There is no order with this id.")
    }

    /// 500: a defect of Rushgate; the log has the cause.
    pub fn internal() -> Self {
        Self::new(
            Code::InternalError,
            "Rushgate failed to answer; its log says why. Report this as a defect.",
        )
    }

    /// `title` and `detail` in Korean; they are made of the code and its members.
    fn in_korean(&self) -> (&'static str, String) {
        let members =
            korean::Members { members: &self.members, retry_after: self.retry_after_secs() };
        (korean::title(self.code), korean::detail(self.code, members))
    }

    fn retry_after_secs(&self) -> Option<u64> {
        matches!(
            self.code.status(),
            StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS
        )
        .then_some(self.retry_after.unwrap_or(RETRY_AFTER_SECS))
    }
}

impl Serialize for Problem {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.serialize_with(self.code.title(), &self.detail, serializer)
    }
}

impl Problem {
    fn serialize_with<S: Serializer>(
        &self,
        title: &str,
        detail: &str,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("type", &format_args!("/problems/{}", self.code.as_str()))?;
        map.serialize_entry("title", title)?;
        map.serialize_entry("status", &self.code.status().as_u16())?;
        map.serialize_entry("detail", detail)?;
        map.serialize_entry("code", self.code.as_str())?;
        for (name, value) in &self.members {
            map.serialize_entry(name, value)?;
        }
        if let Some(secs) = self.retry_after_secs() {
            map.serialize_entry("retry_after", &secs)?;
        }
        map.end()
    }
}

/// A problem with its texts in Korean.
struct InKorean<'a>(&'a Problem);

impl Serialize for InKorean<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let (title, detail) = self.0.in_korean();
        self.0.serialize_with(title, &detail, serializer)
    }
}

const MEDIA_TYPE: &str = "application/problem+json";

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = self.code.status();
        let language = RequestNotes::current().language;
        let mut response = match language {
            Language::English => json_response(status, MEDIA_TYPE, &self),
            Language::Korean => json_response(status, MEDIA_TYPE, &InKorean(&self)),
        };
        let headers = response.headers_mut();
        headers.insert(VARY, HeaderValue::from_static("accept-language"));
        headers.insert(CONTENT_LANGUAGE, HeaderValue::from_static(language.tag()));
        if let Some(secs) = self.retry_after_secs() {
            headers.insert(RETRY_AFTER, HeaderValue::from(secs));
        }
        if self.code == Code::Unauthenticated {
            headers.insert(WWW_AUTHENTICATE, self.challenge());
        }
        // Read by the metrics.
        RequestNotes::note(|current| current.refusal = self.code.as_str());
        response
    }
}

impl From<GateError> for Problem {
    fn from(error: GateError) -> Self {
        match error {
            GateError::Unavailable(_) => Self::new(
                Code::GateUnavailable,
                "The gate cannot be reached or is closed; nothing was changed. Try again shortly.",
            ),
            GateError::Overloaded => Self::new(
                Code::Overloaded,
                "Too many requests are waiting for the gate; nothing was changed. Try again shortly.",
            ),
            GateError::BacklogFull => Self::new(
                Code::BacklogFull,
                "PostgreSQL is too far behind the gate; nothing was changed. Try again shortly.",
            ),
            GateError::OutcomeUnknown => Self::new(
                Code::OutcomeUnknown,
                "The request was sent to the gate and no answer came back: it may or may not have been done. \
                 Repeat it with the same Idempotency-Key; without one, look before you repeat.",
            ),
            GateError::KeysSpent { retry_after_secs } => Self::new(
                Code::RateLimited,
                "This user has used as many Idempotency-Keys today as one may; nothing was changed. \
                 Wait for Retry-After, or send the request without a key.",
            )
            .retry_after(retry_after_secs),
            GateError::IdempotencyKeyReused => Self::new(
                Code::IdempotencyKeyReused,
                "This Idempotency-Key was used for another request in the last 24 hours. Use a new key.",
            ),
        }
    }
}

impl From<TruthError> for Problem {
    fn from(error: TruthError) -> Self {
        // While PostgreSQL is away, every read fails: the log has the first failure, then a count.
        static TROUBLE: Mutex<Repeated> =
            Mutex::new(Repeated::new("a read from PostgreSQL failed"));
        TROUBLE.lock().unwrap_or_else(PoisonError::into_inner).failed(&error);
        Self::new(Code::TruthUnavailable, "PostgreSQL does not answer. Try again shortly.")
    }
}

impl From<NotApplied> for Problem {
    fn from(error: NotApplied) -> Self {
        match error {
            NotApplied::TimedOut => Self::new(
                Code::TruthUnavailable,
                "PostgreSQL does not yet have what the gate has decided. Try again shortly.",
            ),
            NotApplied::EpochChanged => Self::new(
                Code::TruthUnavailable,
                "The gate was rebuilt meanwhile. Try again shortly.",
            ),
            NotApplied::Gate(error) => error.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::header::CONTENT_TYPE;

    #[test]
    fn a_problem_has_its_members_in_order_and_its_headers() {
        let problem = Problem::new(Code::Overloaded, "Busy.");
        assert_eq!(
            serde_json::to_string(&problem).unwrap(),
            r#"{"type":"/problems/overloaded","title":"Too many requests at once","status":503,"detail":"Busy.","code":"overloaded","retry_after":1}"#
        );
        let response = problem.into_response();
        assert_eq!(response.status(), 503);
        assert_eq!(response.headers()[CONTENT_TYPE], "application/problem+json");
        assert_eq!(response.headers()[RETRY_AFTER], "1");
    }

    #[test]
    fn every_code_has_a_text_of_its_own_and_the_status_of_a_refusal() {
        let texts: std::collections::HashSet<_> =
            Code::ALL.iter().map(|code| code.as_str()).collect();
        assert_eq!(texts.len(), Code::ALL.len());
        assert!(Code::ALL.iter().all(|code| code.status().as_u16() >= 400));
    }
}
