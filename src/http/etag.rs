//! Conditional reads of the catalogue (RFC 9110, 13): a strong `ETag`, `If-None-Match`, and the
//! `Cache-Control` of `RUSHGATE_CATALOGUE_MAX_AGE_SECS`.
//!
//! A compressed body is another representation and has a tag of its own, the body's tag with a
//! suffix; a client that has either has the answer.
//!
//! A tag is made of the body alone, so all instances give equal bodies the same tag. The hash is
//! SHA-256, cut to 128 bits: processors have instructions for it, and nobody can make two bodies
//! with one tag. Bodies that are cached are cached with their tags ([`super::rendered`]).

use std::sync::{Arc, OnceLock};

use axum::body::Body;
use axum::extract::FromRequestParts;
use axum::http::header::{
    CACHE_CONTROL, CONTENT_ENCODING, CONTENT_TYPE, ETAG, IF_NONE_MATCH, VARY,
};
use axum::http::request::Parts;
use axum::http::{HeaderValue, StatusCode};
use axum::response::Response;
use bytes::Bytes;
use serde::Serialize;
use sha2::{Digest, Sha256};

use super::Api;
use super::compress::{self, accepts_gzip};
use super::problem::Problem;
use crate::domain::hex::hex;

/// Bytes of the hash that a tag has, as hexadecimal digits.
const TAG_BYTES: usize = 16;

/// Ends the tag of a compressed body.
const PACKED: &str = "-gzip\"";

/// A JSON body and its tag; cheap to clone.
#[derive(Clone, Debug)]
pub struct Tagged {
    pub body: Bytes,
    tag: HeaderValue,
    /// Of a body that is worth compressing; compressed when it is first asked for.
    packed: Option<Arc<Packed>>,
}

/// The same body, compressed.
#[derive(Debug)]
struct Packed {
    tag: HeaderValue,
    body: OnceLock<Bytes>,
}

impl Tagged {
    /// `value` as JSON.
    pub fn json(value: &impl Serialize) -> Result<Self, Problem> {
        serde_json::to_vec(value).map(Self::new).map_err(|_| Problem::internal())
    }

    pub fn new(body: impl Into<Bytes>) -> Self {
        let body = body.into();
        let hash = hex(&Sha256::digest(&body)[..TAG_BYTES]);
        // Quotes, letters and digits are allowed in a header.
        let tag = |end: &str| {
            HeaderValue::try_from(format!("\"{hash}{end}"))
                .unwrap_or_else(|_| HeaderValue::from_static("\"\""))
        };
        let packed = || Arc::new(Packed { tag: tag(PACKED), body: OnceLock::new() });
        let packed = compress::is_worth_it(body.len()).then(packed);
        Self { tag: tag("\""), packed, body }
    }

    /// Bytes that it may take in memory.
    pub fn byte_len(&self) -> usize {
        self.body.len() * if self.packed.is_some() { 2 } else { 1 }
    }

    /// 200 with the body, compressed if the client accepts that; or 304 if the client has it.
    pub fn answer(self, content_type: &'static str, has: &IfNoneMatch) -> Response {
        let packed = self.packed.as_deref();
        let unchanged =
            has.matches(&self.tag) || packed.is_some_and(|packed| has.matches(&packed.tag));
        let wanted = packed.filter(|_| has.accepts_gzip);
        let body = match wanted {
            _ if unchanged => Body::empty(),
            Some(packed) => {
                Body::from(packed.body.get_or_init(|| compress::gzip(&self.body)).clone())
            }
            None => Body::from(self.body.clone()),
        };
        let mut response = Response::new(body);
        let headers = response.headers_mut();
        if !unchanged {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
        }
        if packed.is_some() {
            headers.insert(VARY, compress::VARY_ENCODING);
        }
        if wanted.is_some() && !unchanged {
            headers.insert(CONTENT_ENCODING, compress::GZIP);
        }
        headers.insert(ETAG, wanted.map_or(self.tag, |packed| packed.tag.clone()));
        if unchanged {
            *response.status_mut() = StatusCode::NOT_MODIFIED;
        }
        response
    }
}

/// The request's `If-None-Match`, and whether it accepts a compressed answer. A header that is not a list of tags matches nothing, as if it
/// were absent: a client that cannot say what it has gets the whole answer.
#[derive(Debug)]
pub struct IfNoneMatch {
    lines: Vec<HeaderValue>,
    accepts_gzip: bool,
}

impl<S: Send + Sync> FromRequestParts<S> for IfNoneMatch {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        Ok(Self {
            lines: parts.headers.get_all(IF_NONE_MATCH).iter().cloned().collect(),
            accepts_gzip: accepts_gzip(&parts.headers),
        })
    }
}

impl IfNoneMatch {
    fn matches(&self, tag: &HeaderValue) -> bool {
        self.lines.iter().any(|line| names(line.as_bytes(), tag.as_bytes()))
    }
}

/// Whether the line of an `If-None-Match` is `*` or lists `tag`. The comparison is weak: `W/`
/// before a tag does not count. Commas may stand within a tag, so the line is read tag by tag.
fn names(line: &[u8], tag: &[u8]) -> bool {
    let mut rest = line.trim_ascii();
    if rest == b"*" {
        return true;
    }
    let (mut listed, mut well_formed) = (false, true);
    while !rest.is_empty() && well_formed {
        rest = match rest[0] {
            b',' | b' ' | b'\t' => &rest[1..],
            _ => {
                let opaque = rest.strip_prefix(b"W/").unwrap_or(rest);
                match one_tag(opaque) {
                    Some((found, behind)) => {
                        listed |= found == tag;
                        behind
                    }
                    None => {
                        well_formed = false;
                        rest
                    }
                }
            }
        };
    }
    listed && well_formed
}

/// The tag, quotes included, with which a text begins, and the text behind it.
fn one_tag(text: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = text.strip_prefix(b"\"")?.iter().position(|byte| *byte == b'"')? + 2;
    let (tag, behind) = text.split_at(end);
    let separated = behind.is_empty() || matches!(behind[0], b',' | b' ' | b'\t');
    let allowed = |byte: &u8| *byte == 0x21 || (0x23..=0x7e).contains(byte) || *byte >= 0x80;
    (separated && tag[1..end - 1].iter().all(allowed)).then_some((tag, behind))
}

/// The `Cache-Control` of catalogue reads; `None`: that of all other answers, `no-store`.
pub fn cache_control(max_age_secs: u32) -> Option<HeaderValue> {
    match max_age_secs {
        0 => None,
        secs => HeaderValue::from_str(&format!("public, max-age={secs}")).ok(),
    }
}

impl Api {
    /// 200 with the body, or 304 if the client has it.
    pub fn catalogue(&self, read: Tagged, has: &IfNoneMatch) -> Response {
        let mut response = read.answer("application/json", has);
        if let Some(cache_control) = &self.browser_policy.catalogue_cache {
            response.headers_mut().insert(CACHE_CONTROL, cache_control.clone());
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(lines: &[&str], tag: &str) -> bool {
        let lines = lines.iter().map(|line| HeaderValue::from_bytes(line.as_bytes()).unwrap());
        IfNoneMatch { lines: lines.collect(), accepts_gzip: false }
            .matches(&HeaderValue::from_str(tag).unwrap())
    }

    #[test]
    fn a_tag_is_strong_and_is_the_bodys() {
        let tag = |body: &str| Tagged::new(body.as_bytes().to_vec()).tag;
        assert_eq!(
            tag("abc"),
            "\"ba7816bf8f01cfea414140de5dae2223\"",
            "the first half of its SHA-256"
        );
        assert_ne!(tag("abc"), tag("abd"));
    }

    #[test]
    fn a_line_lists_tags_or_stands_for_any() {
        assert!(
            matches(&["\"a\""], "\"a\"") && matches(&["*"], "\"a\"") && matches(&[" * "], "\"a\"")
        );
        assert!(matches(&["W/\"a\""], "\"a\""), "the comparison is weak");
        assert!(
            matches(&["\"b\", W/\"c\" ,\"a\""], "\"a\"") && matches(&["\"b\"", "\"a\""], "\"a\"")
        );
        assert!(matches(&["\"b,\", \"a\""], "\"a\"") && matches(&[",,\"a\",,"], "\"a\""));
        assert!(
            !matches(&[], "\"a\"") && !matches(&[""], "\"a\"") && !matches(&["\"b\""], "\"a\"")
        );
        assert!(!matches(&["\"b,\"a\",\""], "\"a\""), "no tag may stand in another");
        for bad in [
            "a",
            "\"a",
            "\"a\"b",
            "\"a\"\"b\"",
            "w/\"a\"",
            "*,\"a\"",
            "\"a\", *",
            "\"a\", b",
            "W/ \"a\"",
        ] {
            assert!(!matches(&[bad], "\"a\""), "{bad}");
        }
    }

    #[test]
    fn an_age_of_0_leaves_answers_uncached() {
        assert_eq!(cache_control(0), None);
        assert_eq!(cache_control(30).unwrap(), "public, max-age=30");
    }
}
