//! Request smuggling: a request hidden inside another one. If a proxy and the server disagreed
//! about where a request ends, one client's request could be read as another's. The hidden request
//! must never be answered, however its cover is written.

use super::wire::{exchange, victim};
use crate::api::token;

/// Covering requests; `{}` marks the hidden part. A proxy and a server need not accept any of them.
fn covers() -> Vec<(&'static str, String)> {
    let post = |headers: &str, rest: &str| {
        let bearer = token("ann", "shop");
        format!(
            "POST /v1/users/ann/wallet/charges HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {bearer}\r\n\
             content-type: application/json\r\n{headers}\r\n\r\n{rest}"
        )
    };
    let chunks = "0\r\n\r\n{}";
    vec![
        ("both lengths", post("content-length: 6\r\ntransfer-encoding: chunked", chunks)),
        (
            "both, the other way round",
            post("transfer-encoding: chunked\r\ncontent-length: 6", chunks),
        ),
        ("both, length zero", post("content-length: 0\r\ntransfer-encoding: chunked", chunks)),
        ("two lengths", post("content-length: 0\r\ncontent-length: 600", "{}")),
        ("a list of lengths", post("content-length: 0, 600", "{}")),
        ("a signed length", post("content-length: +0", "{}")),
        ("a length in hexadecimal", post("content-length: 0x0", "{}")),
        ("a length with a space", post("content-length : 0", "{}")),
        ("a negative length", post("content-length: -1", "{}")),
        ("another coding last", post("transfer-encoding: chunked, identity", chunks)),
        ("an unknown coding", post("transfer-encoding: xchunked", chunks)),
        ("chunked twice", post("transfer-encoding: chunked\r\ntransfer-encoding: chunked", chunks)),
        (
            "chunked and identity",
            post("transfer-encoding: identity\r\ntransfer-encoding: chunked", "{}"),
        ),
        ("a vertical tab", post("transfer-encoding: \u{b}chunked", chunks)),
        ("a space before the colon", post("transfer-encoding : chunked", chunks)),
        ("a folded header", post("transfer-encoding:\r\n chunked", chunks)),
        ("a bare line feed", post("x: y\ntransfer-encoding: chunked", "5\r\nhello\r\n0\r\nx{}")),
        ("a carriage return within", post("x: y\rtransfer-encoding: chunked", "{}")),
        ("a zero byte", post("x: y\0z", "{}")),
        (
            "a chunk size too large",
            post("transfer-encoding: chunked", "ffffffffffffffff1\r\n\r\n{}"),
        ),
        ("a chunk size below zero", post("transfer-encoding: chunked", "-1\r\n\r\n{}")),
        ("a chunk size with a prefix", post("transfer-encoding: chunked", "0x0\r\n\r\n{}")),
        ("a chunk that lies", post("transfer-encoding: chunked", "2\r\n{}abc\r\n0\r\n\r\n")),
        ("a chunk without its end", post("transfer-encoding: chunked", "1\r\na0\r\n\r\n{}")),
        ("an end of another kind", post("transfer-encoding: chunked", "0\n\n{}")),
        (
            "chunked on HTTP/1.0",
            post("transfer-encoding: chunked", chunks).replace("HTTP/1.1", "HTTP/1.0"),
        ),
        ("an unknown version", post("content-length: 0", "{}").replace("HTTP/1.1", "HTTP/1.9")),
        ("no version", "GET /v1/products\r\n\r\n{}".to_owned()),
    ]
}

pub async fn smuggled_requests(effort: usize) -> usize {
    let (instance, backend) = victim(&[]).await;
    let (mut tried, mut seen) = (0, Vec::new());
    for _ in 0..effort {
        for (what, cover) in covers() {
            // If it were executed, it would change a wallet, and its answer would carry this id.
            let hidden = format!(
                "POST /v1/users/hidden/wallet/charges HTTP/1.1\r\nhost: x\r\nx-request-id: hidden-one\r\n\
                 authorization: Bearer {}\r\ncontent-type: application/json\r\ncontent-length: 12\r\n\r\n{{\"amount\":1}}",
                token("hidden", "shop")
            );
            let answer = exchange(&instance, cover.replacen("{}", &hidden, 1).as_bytes()).await;
            if answer.contains("hidden-one") {
                seen.push((what, answer));
            }
            tried += 1;
        }
    }
    assert!(seen.is_empty(), "what was hidden is seen: {seen:#?}");
    assert_eq!(instance.client().balance("hidden").await, 0);
    // The same hidden requests, pipelined correctly, are answered. So the covers were refused, not
    // their contents.
    let bearer = token("hidden", "shop");
    let well = format!(
        "GET /v1/users/hidden/wallet HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {bearer}\r\n"
    );
    let both =
        exchange(&instance, format!("{well}\r\n{well}x-request-id: hidden-one\r\n\r\n").as_bytes())
            .await;
    assert!(both.matches("HTTP/1.1 200 OK").count() == 2 && both.contains("hidden-one"), "{both}");
    backend.assert_audit_clean().await;
    tried
}
