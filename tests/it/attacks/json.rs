//! JSON that is expensive to parse, or ambiguous.

use std::time::{Duration, Instant};

use serde_json::json;

use super::wire::victim;
use crate::api::Call;

/// A body must be refused within this time.
const AT_ONCE: Duration = Duration::from_secs(2);

/// Texts that are not valid charges, whatever a lenient parser would make of them.
fn charges() -> Vec<Vec<u8>> {
    let mut all: Vec<Vec<u8>> = [
        r#"{"amount":5,"amount":6}"#,
        r#"{"amount":5,"\u0061mount":6}"#,
        r#"{"amount":5,"Amount":6}"#,
        r#"{"amount":5,"amount ":6}"#,
        r#"{"amount":5,"__proto__":{"amount":6}}"#,
        r#"{"\ud800":5}"#,
        r#"{"amount":"\udfff"}"#,
        r#"{"amount":1e308}"#,
        r#"{"amount":1e999999999}"#,
        r#"{"amount":5.0}"#,
        r#"{"amount":5e0}"#,
        r#"{"amount":05}"#,
        r#"{"amount":+5}"#,
        r#"{"amount":0x5}"#,
        r#"{"amount":NaN}"#,
        r#"{"amount":Infinity}"#,
        r#"{"amount":-0}"#,
        r#"{"amount":99999999999999999999999999999999999999}"#,
        r#"{"amount":"5"}"#,
        r#"{"amount":[5]}"#,
        r#"{"amount":null}"#,
        r#"{"amount":true}"#,
        r#"{"amount":5,}"#,
        r#"{"amount":5}{"amount":6}"#,
        r#"{"amount":5}x"#,
        r#"{"amount":5/*6*/}"#,
        r#"{amount:5}"#,
        r#"{'amount':5}"#,
        r#"[{"amount":5}]"#,
        r#""{\"amount\":5}""#,
        "\u{feff}{\"amount\":5}",
        "{\"amount\":5}\0",
        "{\"amount\"\u{a0}:5}",
        "",
        " ",
    ]
    .iter()
    .map(|text| text.as_bytes().to_vec())
    .collect();
    for deep in [100, 1_000, 8_000] {
        all.push(
            [b"{\"amount\":".as_slice(), &b"[".repeat(deep), &b"]".repeat(deep), b"}"].concat(),
        );
        all.push([b"{\"x\":".repeat(deep / 5), b"1".to_vec(), b"}".repeat(deep / 5)].concat());
        all.push(b"[".repeat(deep));
    }
    all.push([b"{\"amount\":".as_slice(), &b"9".repeat(16_000), b"}"].concat());
    all.push([b"{\"amount\":0.".as_slice(), &b"1".repeat(16_000), b"}"].concat());
    all.push([b"{\"amount\":5e".as_slice(), &b"9".repeat(16_000), b"}"].concat());
    all.push([b"{\"".as_slice(), &b"\\u0000".repeat(2_700), b"\":5}"].concat());
    all.push([b"{\"amount\":5,\"".as_slice(), &b"a".repeat(16_000), b"\":1}"].concat());
    all.push(
        (0..1_800)
            .map(|n| format!("\"k{n}\":1,"))
            .fold("{".to_owned(), |all, one| all + &one)
            .into_bytes(),
    );
    all.push(b"{\"amount\":\xff}".to_vec());
    all.push(b"{\"amount\":\"\xed\xa0\x80\"}".to_vec());
    all.push("{\"amount\":5}".encode_utf16().flat_map(u16::to_le_bytes).collect());
    all
}

async fn refused(call: Call, what: &[u8]) {
    let started = Instant::now();
    let answer = call.send().await;
    let what = String::from_utf8_lossy(&what[..what.len().min(60)]);
    assert!((400..500).contains(&answer.status), "{what}: {answer:?}");
    assert!(started.elapsed() < AT_ONCE, "{what}: {:?}", started.elapsed());
}

pub async fn hostile_json(effort: usize) -> usize {
    let (instance, backend) = victim(&[("RUSHGATE_USER_RATE", "off")]).await;
    let api = instance.client();
    let mut tried = 0;
    for _ in 0..effort {
        for body in charges() {
            refused(
                api.call("POST", "/v1/users/ann/wallet/charges").user("ann").raw(body.clone()),
                &body,
            )
            .await;
            refused(api.call("POST", "/v1/orders").user("ann").raw(body.clone()), &body).await;
            refused(api.call("PUT", "/v1/coupon-templates/t").admin().raw(body.clone()), &body)
                .await;
            tried += 3;
        }
        // Bodies are not decompressed, so a compression bomb has no effect.
        let bomb = crate::api::Api::bomb();
        for coding in ["gzip", "deflate", "br", "zstd", "gzip, gzip"] {
            let call = api.call("POST", "/v1/users/ann/wallet/charges").user("ann");
            refused(call.header("content-encoding", coding).raw(bomb.clone()), b"a bomb").await;
            tried += 1;
        }
        for kind in [
            "text/plain",
            "application/json-seq",
            "application/merge-patch+json",
            "application/xml",
        ] {
            let call = api.call("POST", "/v1/users/ann/wallet/charges").user("ann");
            call.body(kind, r#"{"amount":5}"#).refused(415, "unsupported-media-type").await;
            tried += 1;
        }
    }
    assert_eq!(api.balance("ann").await, 0);
    api.post("/v1/users/ann/wallet/charges", &json!({"amount": 5})).user("ann").ok(201).await;
    backend.assert_audit_clean().await;
    tried
}
