//! Compression of answers (gzip) for clients that ask for it.
//!
//! Answers of up to 1 KiB stay as they are: they fit into one packet, and most answers are that
//! small. Reads of the catalogue are compressed where their bodies are cached ([`super::etag`]),
//! everything else by the middleware ([`compress`]). Only finished bodies are compressed, so an event
//! stream never is.

use std::io::Write;

use axum::body::{Body, HttpBody};
use axum::http::header::{
    ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, ETAG, VARY,
};
use axum::http::{HeaderMap, HeaderValue};
use axum::response::Response;
use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use futures::FutureExt;

use super::accept;
use crate::config::bounds::{COMPRESSED_FROM_BYTES, COMPRESSED_TO_BYTES};

/// A middle level: higher ones take twice the time for 2 % less.
const LEVEL: Compression = Compression::new(4);

pub const GZIP: HeaderValue = HeaderValue::from_static("gzip");
pub const VARY_ENCODING: HeaderValue = HeaderValue::from_static("accept-encoding");

/// Whether the client prefers gzip to no compression.
pub fn accepts_gzip(headers: &HeaderMap) -> bool {
    let Some(lines) = accept::elements(headers, ACCEPT_ENCODING) else { return false };
    let (mut gzip, mut any, mut identity) = (None, None, None);
    for (coding, quality) in lines {
        match coding {
            _ if coding.eq_ignore_ascii_case("gzip") || coding.eq_ignore_ascii_case("x-gzip") => {
                gzip = Some(quality);
            }
            _ if coding.eq_ignore_ascii_case("identity") => identity = Some(quality),
            "*" => any = Some(quality),
            _ => {}
        }
    }
    let gzip = gzip.or(any).unwrap_or(0);
    gzip > 0 && gzip >= identity.unwrap_or(0)
}

/// Whether a body of this size is worth it.
pub fn is_worth_it(bytes: usize) -> bool {
    bytes > COMPRESSED_FROM_BYTES
}

pub fn gzip(bytes: &[u8]) -> Bytes {
    let mut out = GzEncoder::new(Vec::with_capacity(bytes.len() / 3), LEVEL);
    // Writing to a Vec cannot fail.
    let _ = out.write_all(bytes);
    out.finish().unwrap_or_default().into()
}

/// Compresses an answer that is worth it, has the whole of its body ready, and is of a type that
/// shrinks. One with an `ETag` is left as it is: the tag would be that of another body.
pub fn compress(response: Response, accepted: bool) -> Response {
    let size = response.body().size_hint().exact().unwrap_or(0);
    let size = usize::try_from(size).unwrap_or(usize::MAX);
    if !is_worth_it(size) || size > COMPRESSED_TO_BYTES || !shrinks(response.headers()) {
        return response;
    }
    let (mut head, body) = response.into_parts();
    if !head.headers.get_all(VARY).iter().any(|value| value == VARY_ENCODING) {
        head.headers.append(VARY, VARY_ENCODING);
    }
    if !accepted {
        return Response::from_parts(head, body);
    }
    match whole(body) {
        Ok(bytes) => {
            head.headers.insert(CONTENT_ENCODING, GZIP);
            head.headers.remove(CONTENT_LENGTH);
            Response::from_parts(head, Body::from(gzip(&bytes)))
        }
        Err(body) => Response::from_parts(head, body),
    }
}

fn shrinks(headers: &HeaderMap) -> bool {
    let of_text = |value: &HeaderValue| {
        let kind = value.to_str().unwrap_or_default().split(';').next().unwrap_or_default();
        matches!(
            kind,
            "application/json"
                | "application/problem+json"
                | "text/html"
                | "text/css"
                | "text/javascript"
                | "application/javascript"
                | "image/svg+xml"
        )
    };
    headers.get(CONTENT_TYPE).is_some_and(of_text)
        && !headers.contains_key(CONTENT_ENCODING)
        && !headers.contains_key(ETAG)
}

/// The bytes of a body that is one finished piece.
fn whole(mut body: Body) -> Result<Bytes, Body> {
    let frame = std::future::poll_fn(|cx| std::pin::Pin::new(&mut body).poll_frame(cx));
    match frame.now_or_never() {
        Some(Some(Ok(frame))) if body.is_end_stream() => {
            frame.into_data().map_err(|_| Body::empty())
        }
        Some(Some(Ok(frame))) => {
            // It goes on after this piece, which is put in front of the rest.
            let first = frame.into_data().unwrap_or_default();
            let rest = futures::StreamExt::chain(
                futures::stream::iter([Ok(first)]),
                body.into_data_stream(),
            );
            Err(Body::from_stream(rest))
        }
        _ => Err(body),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    fn accepts(lines: &[&str]) -> bool {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(ACCEPT_ENCODING, line.parse().unwrap());
        }
        accepts_gzip(&headers)
    }

    #[test]
    fn gzip_is_used_where_it_is_preferred() {
        for good in [
            "gzip",
            "GZIP",
            "x-gzip",
            "deflate, gzip;q=0.5",
            "*",
            "br;q=1, *;q=0.1",
            "gzip;q=1.0, identity; q=0.5",
        ] {
            assert!(accepts(&[good]), "{good}");
        }
        for bad in [
            "",
            "identity",
            "br",
            "gzip;q=0",
            "*;q=0",
            "gzip;q=0, *",
            "gzip;q=0.2, identity;q=0.9",
            "gzip;q=x",
        ] {
            assert!(!accepts(&[bad]), "{bad}");
        }
        assert!(!accepts(&[]) && accepts(&["br", "gzip"]));
    }

    fn answer(kind: &'static str, body: impl Into<Body>) -> Response {
        let mut response = Response::new(body.into());
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
        response
    }

    async fn bytes(response: Response) -> Bytes {
        axum::body::to_bytes(response.into_body(), 1 << 20).await.unwrap()
    }

    #[tokio::test]
    async fn a_large_text_is_compressed_and_nothing_else() {
        let text = "words and words and ".repeat(100);
        let packed = compress(answer("application/json", text.clone()), true);
        assert_eq!(
            (&packed.headers()[CONTENT_ENCODING], &packed.headers()[VARY]),
            (&GZIP, &VARY_ENCODING)
        );
        let mut unpacked = String::new();
        flate2::read::GzDecoder::new(&*bytes(packed).await).read_to_string(&mut unpacked).unwrap();
        assert_eq!(unpacked, text);
        let plain = compress(answer("application/json", text.clone()), false);
        assert_eq!(plain.headers()[VARY], VARY_ENCODING);
        assert_eq!(bytes(plain).await, text);
        let pieces =
            futures::stream::iter([Ok::<_, std::io::Error>(text.clone()), Ok("end".into())]);
        for left in [
            answer("image/png", text.clone()),
            answer("application/json", "x".repeat(COMPRESSED_FROM_BYTES)),
            answer("application/json", Body::from_stream(pieces)),
            answer("text/event-stream", text.clone()),
        ] {
            let left = compress(left, true);
            assert!(!left.headers().contains_key(CONTENT_ENCODING));
            assert!(bytes(left).await.len() >= COMPRESSED_FROM_BYTES);
        }
    }
}
