//! Bodies: their type, size and time limit.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use axum::body::{Body, BodyDataStream, HttpBody};
use axum::extract::{FromRequest, Request};
use axum::http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use bytes::{Bytes, BytesMut};
use futures::{FutureExt, StreamExt};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::json::parse_json;
use super::query::Query;
use crate::config::bounds::MAX_BODY_BYTES;
use crate::http::Api;
use crate::http::problem::{Code, Problem};

/// The JSON object in the request's body.
#[derive(Debug)]
pub struct Json<T>(pub T);

impl<T: DeserializeOwned> FromRequest<Arc<Api>> for Json<T> {
    type Rejection = Problem;

    fn from_request(
        request: Request,
        api: &Arc<Api>,
    ) -> impl Future<Output = Result<Self, Problem>> + Send {
        json_body(request, NEEDED, api.settings.body_timeout).map(|body| match body? {
            Some(body) => parse_json(&body).map(Self),
            None => Err(Problem::malformed("The body is empty; send a JSON object.")),
        })
    }
}

/// No body, or an object without members. The media type of an empty body is not checked, because
/// HTTP clients send it with any `Content-Type` (curl `-d ''`, aiohttp and .NET each with their
/// own).
#[derive(Debug)]
pub struct NoBody;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct NoMembers {}

impl FromRequest<Arc<Api>> for NoBody {
    type Rejection = Problem;

    fn from_request(
        request: Request,
        api: &Arc<Api>,
    ) -> impl Future<Output = Result<Self, Problem>> + Send {
        json_body(request, OPTIONAL, api.settings.body_timeout).map(|body| {
            if let Some(body) = body? {
                parse_json::<NoMembers>(&body)?;
            }
            Ok(Self)
        })
    }
}

/// Whether there must be a body. A body that is needed and has the wrong type is refused before it
/// is read.
const NEEDED: bool = true;
const OPTIONAL: bool = false;

/// The body, `None` when it is empty. A body must be declared as JSON. The returned future does not
/// hold the request: it is moved together with the handler, so its size counts.
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

/// The unread body, unless the request's head is refused, and whether it is declared as JSON.
fn body_of(request: Request, needed: bool) -> Result<(Body, bool), Problem> {
    Query::of(request.uri())?.finish()?;
    let media_type = request.headers().get(CONTENT_TYPE).map(|value| is_json(value.as_bytes()));
    if needed && media_type == Some(false) {
        return Err(not_json());
    }
    let declared =
        request.headers().get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
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
    Problem::new(
        Code::UnsupportedMediaType,
        "Send the body as JSON, with `Content-Type: application/json`.",
    )
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

/// The value if it is ready at once or at the next poll, as for a body that came together with its
/// head: the connection delivers it once it is polled for. Only slower bodies need a timer.
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
    // Nearly every body comes in one piece.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_body_that_does_not_come_is_not_waited_for() {
        let never = futures::stream::pending::<Result<Vec<u8>, std::io::Error>>();
        let problem =
            read_body(Body::from_stream(never), Duration::from_millis(10)).await.unwrap_err();
        assert_eq!(problem.code(), Code::RequestTimeout);
    }

    #[test]
    fn media_types_are_compared_without_their_parameters() {
        assert!(is_json(b"application/json") && is_json(b"APPLICATION/json ;charset=utf-8"));
        assert!(!is_json(b"application/jsonp") && !is_json(b"text/json") && !is_json(b""));
    }
}
