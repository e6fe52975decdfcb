//! What handlers take from a request: path ids, pages, idempotency keys, JSON bodies. Each refuses what the contract
//! refuses: 400 for what cannot be read, 422 with the field's name for what was read and is not acceptable.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use axum::body::{Body, BodyDataStream, HttpBody};
use axum::extract::rejection::RawPathParamsRejection;
use axum::extract::{FromRequest, FromRequestParts, RawPathParams, Request};
use axum::http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use axum::http::request::Parts;
use axum::http::{HeaderMap, Uri};
use bytes::{Bytes, BytesMut};
use futures::{FutureExt, StreamExt};
use serde::Deserialize;
use serde::de::{DeserializeOwned, IgnoredAny};
use utoipa::IntoParams;
use uuid::Uuid;

use super::Api;
use super::fields::{Object, parse_uuid};
use super::problem::{Code, Problem};
use crate::config::bounds::MAX_BODY_BYTES;
use crate::domain::ids::ID_RULE;
use crate::domain::limits::{DEFAULT_PAGE, MAX_IDEMPOTENCY_KEY_CHARS, MAX_PAGE};
use crate::domain::{ProductId, TemplateId, UserId};
use crate::gate::IdempotencyKey;

/// Something that stands in a path or as `after` in a query.
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

/// The place of an entry in a ledger.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntryId(pub i64);

impl Identifier for EntryId {
    const RULE: &'static str = "the `next` of the page before";
    fn from_text(text: &str) -> Option<Self> {
        let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        if digits { text.parse().ok().map(Self) } else { None }
    }
}

fn identify<T: Identifier>(field: &str, text: &str) -> Result<T, Problem> {
    T::from_text(text).ok_or_else(|| Problem::invalid(field, format_args!("must be {}", T::RULE)))
}

/// The id in the route's path; every route has one at most.
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

fn undecodable() -> Problem {
    Problem::malformed("The path or query holds a percent-encoding that is broken or no UTF-8.")
}

/// Decodes `%xx`; refuses what a lenient decoder would let through or replace.
fn percent_decode(text: &str) -> Result<String, Problem> {
    if !text.contains('%') {
        return Ok(text.to_owned());
    }
    let mut bytes = text.bytes();
    let mut decoded = Vec::with_capacity(text.len());
    let hex = |digit: Option<u8>| digit.and_then(|d| char::from(d).to_digit(16)).ok_or_else(undecodable);
    while let Some(byte) = bytes.next() {
        if byte == b'%' {
            let value = hex(bytes.next())? * 16 + hex(bytes.next())?;
            decoded.push(u8::try_from(value).map_err(|_| undecodable())?);
        } else {
            decoded.push(byte);
        }
    }
    String::from_utf8(decoded).map_err(|_| undecodable())
}

/// The parameters of a query, each at most once. Take those that are known, then [`Query::finish`].
#[derive(Debug)]
pub struct Query(Vec<(String, String)>);

impl Query {
    pub fn of(uri: &Uri) -> Result<Self, Problem> {
        let mut pairs: Vec<(String, String)> = Vec::new();
        for pair in uri.query().unwrap_or_default().split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let decode = |text: &str| percent_decode(&text.replace('+', " "));
            let (name, value) = (decode(name)?, decode(value)?);
            if pairs.iter().any(|(seen, _)| *seen == name) {
                return Err(Problem::invalid(name, "may be given once only"));
            }
            pairs.push((name, value));
        }
        Ok(Self(pairs))
    }

    /// The value of a parameter, if it was given.
    pub fn take(&mut self, name: &str) -> Option<String> {
        let place = self.0.iter().position(|(given, _)| given == name)?;
        Some(self.0.swap_remove(place).1)
    }

    /// Refuses parameters that nobody took.
    pub fn finish(self) -> Result<(), Problem> {
        match self.0.into_iter().next() {
            Some((name, _)) => Err(Problem::invalid(name, "this query parameter is not known")),
            None => Ok(()),
        }
    }

    pub fn page<A: Identifier>(&mut self) -> Result<Page<A>, Problem> {
        let limit = match self.take("limit") {
            None => DEFAULT_PAGE,
            Some(text) => parse_limit(&text)?,
        };
        let after = self.take("after").map(|text| identify("after", &text)).transpose()?;
        Ok(Page { limit, after })
    }
}

fn parse_limit(text: &str) -> Result<usize, Problem> {
    let digits = text.bytes().all(|b| b.is_ascii_digit());
    match text.parse() {
        Ok(limit) if digits && (1..=MAX_PAGE).contains(&limit) => Ok(limit),
        _ => Err(Problem::invalid("limit", format_args!("must be a whole number from 1 to {MAX_PAGE}"))),
    }
}

/// Which part of a list: `limit` and `after`, and no other parameter.
#[derive(Debug)]
pub struct Page<A> {
    pub limit: usize,
    pub after: Option<A>,
}

impl<S: Send + Sync, A: Identifier> FromRequestParts<S> for Page<A> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        let mut query = Query::of(&parts.uri)?;
        let page = query.page()?;
        query.finish()?;
        Ok(page)
    }
}

/// No query parameters. Routes with a body take none either.
#[derive(Debug)]
pub struct NoQuery;

impl<S: Send + Sync> FromRequestParts<S> for NoQuery {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        Query::of(&parts.uri)?.finish()?;
        Ok(Self)
    }
}

/// `limit` and `after`, for the OpenAPI description.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "read by the derive, for the OpenAPI description")]
pub struct PageParams {
    /// Elements of one page.
    #[param(minimum = 1, maximum = 100, default = 20)]
    limit: Option<u8>,
    /// The `next` of the page before; leave it out for the first page.
    after: Option<String>,
}

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

/// The JSON object in the request's body.
#[derive(Debug)]
pub struct Json<T>(pub T);

impl<T: DeserializeOwned> FromRequest<Arc<Api>> for Json<T> {
    type Rejection = Problem;

    fn from_request(request: Request, api: &Arc<Api>) -> impl Future<Output = Result<Self, Problem>> + Send {
        json_body(request, NEEDED, api.settings.body_timeout).map(|body| match body? {
            Some(body) => parse_json(&body).map(Self),
            None => Err(Problem::malformed("The body is empty; send a JSON object.")),
        })
    }
}

/// No body, or an object without members. An empty body has no media type to check: HTTP clients send it with any
/// `Content-Type` (curl `-d ''`, aiohttp and .NET each with their own).
#[derive(Debug)]
pub struct NoBody;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct NoMembers {}

impl FromRequest<Arc<Api>> for NoBody {
    type Rejection = Problem;

    fn from_request(request: Request, api: &Arc<Api>) -> impl Future<Output = Result<Self, Problem>> + Send {
        json_body(request, OPTIONAL, api.settings.body_timeout).map(|body| {
            if let Some(body) = body? {
                parse_json::<NoMembers>(&body)?;
            }
            Ok(Self)
        })
    }
}

/// Whether there must be a body: one that is needed is refused by its type before it is read.
const NEEDED: bool = true;
const OPTIONAL: bool = false;

/// The body, `None` when it is empty. A body must say that it is JSON. What is returned does not hold the request: it is
/// moved with the handler.
fn json_body(
    request: Request,
    needed: bool,
    limit: Duration,
) -> impl Future<Output = Result<Option<Bytes>, Problem>> + Send {
    let checked = body_of(request, needed);
    async move {
        let (body, says_json) = checked?;
        let body = read_body(body, limit).await?;
        match (body.is_empty(), says_json) {
            (true, _) => Ok(None),
            (false, false) => Err(not_json()),
            (false, true) => Ok(Some(body)),
        }
    }
}

/// The unread body, if the request's head does not refuse it already, and whether it is said to be JSON.
fn body_of(request: Request, needed: bool) -> Result<(Body, bool), Problem> {
    Query::of(request.uri())?.finish()?;
    let media_type = request.headers().get(CONTENT_TYPE).map(|value| is_json(value.as_bytes()));
    if needed && media_type == Some(false) {
        return Err(not_json());
    }
    let declared = request.headers().get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
    if declared.is_some_and(|bytes: u64| bytes > MAX_BODY_BYTES as u64) {
        return Err(too_large());
    }
    Ok((request.into_body(), media_type == Some(true)))
}

fn is_json(content_type: &[u8]) -> bool {
    let essence = content_type.split(|byte| *byte == b';').next().unwrap_or_default();
    essence.trim_ascii().eq_ignore_ascii_case(b"application/json")
}

fn not_json() -> Problem {
    Problem::new(Code::UnsupportedMediaType, "Send the body as JSON, with `Content-Type: application/json`.")
}

fn too_large() -> Problem {
    Problem::new(Code::BodyTooLarge, format!("The body may have at most {MAX_BODY_BYTES} bytes."))
}

async fn read_body(body: Body, limit: Duration) -> Result<Bytes, Problem> {
    let mut collecting = pin!(collect(body));
    if let Some(body) = at_second_look(collecting.as_mut()).await {
        return body;
    }
    match tokio::time::timeout(limit, collecting).await {
        Ok(body) => body,
        Err(_) => Err(Problem::new(
            Code::RequestTimeout,
            format!("The body did not arrive within {} seconds.", limit.as_secs()),
        )),
    }
}

/// What is there at once, or as soon as the connection has heard that somebody wants it: a body that came with its head. Only
/// slower ones need a timer.
async fn at_second_look<T>(mut future: Pin<&mut impl Future<Output = T>>) -> Option<T> {
    let mut looked = false;
    poll_fn(|cx| match future.as_mut().poll(cx) {
        Poll::Ready(value) => Poll::Ready(Some(value)),
        Poll::Pending if looked => Poll::Ready(None),
        Poll::Pending => {
            looked = true;
            cx.waker().wake_by_ref();
            Poll::Pending
        }
    })
    .await
}

async fn collect(body: Body) -> Result<Bytes, Problem> {
    let mut chunks = body.into_data_stream();
    let first = match chunks.next().await {
        None => return Ok(Bytes::new()),
        Some(first) => first.map_err(unread)?,
    };
    // Nearly every body comes in one piece, and says so.
    if chunks.is_end_stream() {
        return if first.len() > MAX_BODY_BYTES { Err(too_large()) } else { Ok(first) };
    }
    Box::pin(join(first, chunks)).await
}

async fn join(first: Bytes, rest: BodyDataStream) -> Result<Bytes, Problem> {
    let mut chunks = futures::stream::iter([Ok(first)]).chain(rest);
    let mut whole = BytesMut::new();
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(unread)?;
        if whole.len() + chunk.len() > MAX_BODY_BYTES {
            return Err(too_large());
        }
        whole.extend_from_slice(&chunk);
    }
    Ok(whole.freeze())
}

fn unread(_: axum::Error) -> Problem {
    Problem::malformed("The body could not be read to its end.")
}

/// Reads a JSON object. What is no JSON is malformed; JSON of another shape is an invalid field, named by its path.
pub fn parse_json<T: DeserializeOwned>(body: &[u8]) -> Result<T, Problem> {
    let text = std::str::from_utf8(body).map_err(|_| Problem::malformed("The body is not UTF-8."))?;
    if let Ok(Object(parsed)) = serde_json::from_str(text) {
        return Ok(parsed);
    }
    // Once more, to tell what is wrong and where.
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let parsed = serde_path_to_error::deserialize::<_, Object<T>>(&mut deserializer);
    // A shape may be found wrong before the text turns out to be no JSON, and serde_json calls some numbers wrong
    // syntax that are only too large: whether the text is JSON is a question of its own.
    if (parsed.is_err() || deserializer.end().is_err())
        && let Err(error) = serde_json::from_str::<IgnoredAny>(text)
    {
        return Err(Problem::malformed(format!("The body is not JSON: {error}.")));
    }
    match parsed {
        Ok(object) => Ok(object.0),
        Err(error) => Err(wrong_shape(&error)),
    }
}

fn wrong_shape(error: &serde_path_to_error::Error<serde_json::Error>) -> Problem {
    let path = error.path().to_string();
    let path = path.trim_end_matches('?').trim_end_matches('.');
    let text = error.inner().to_string();
    let message = text.rsplit_once(" at line ").map_or(text.as_str(), |(message, _)| message);
    if message.starts_with("duplicate field ") {
        return Problem::malformed(format!("The body has a {message}."));
    }
    // The path of an unknown member ends with its name, that of a missing one with what it is missing from.
    let (member, rule) = match message.strip_prefix("missing field `") {
        Some(rest) => (Some(rest.trim_end_matches('`')), "is missing"),
        None if message.starts_with("unknown field `") => (None, "is not known here"),
        None => (None, message),
    };
    Problem::invalid(join_path(path, member), rule)
}

/// The path of a member of what stands at `path`. A name that a client made up is cut to a sensible length.
fn join_path(path: &str, member: Option<&str>) -> String {
    const MAX_FIELD_CHARS: usize = 200;
    let joined = match member {
        None => path.to_owned(),
        Some(member) if path.is_empty() => member.to_owned(),
        Some(member) => format!("{path}.{member}"),
    };
    joined.chars().take(MAX_FIELD_CHARS).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_body_that_does_not_come_is_not_waited_for() {
        let never = futures::stream::pending::<Result<Vec<u8>, std::io::Error>>();
        let problem = read_body(Body::from_stream(never), Duration::from_millis(10)).await.unwrap_err();
        assert_eq!(problem.code(), Code::RequestTimeout);
    }

    #[test]
    fn percent_encoding_is_decoded_or_refused() {
        assert_eq!(percent_decode("a%20b%ED%95%9c").unwrap(), "a b한");
        for bad in ["%", "%2", "%zz", "%+1", "%FF", "a%"] {
            assert!(percent_decode(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn an_invented_name_does_not_make_an_endless_answer() {
        let body = format!("{{\"{}\":1}}", "x".repeat(10_000));
        let problem = serde_json::to_value(parse_json::<NoMembers>(body.as_bytes()).unwrap_err()).unwrap();
        assert_eq!(problem["field"].as_str().unwrap().len(), 200);
    }

    #[test]
    fn media_types_are_compared_without_their_parameters() {
        assert!(is_json(b"application/json") && is_json(b"APPLICATION/json ;charset=utf-8"));
        assert!(!is_json(b"application/jsonp") && !is_json(b"text/json") && !is_json(b""));
    }
}
