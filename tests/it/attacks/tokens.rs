//! Invalid tokens.

use std::path::Path;
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::{Value, json};

use super::wire::victim;
use crate::api::{Api, Backend, Instance, SECRET, until, with};

/// Private Ed25519 keys for tests. The first is from RFC 8037, appendix A.
const SEEDS: [&str; 2] =
    ["nWGxne_9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A", "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE"];
const PUBLIC: [&str; 2] =
    ["11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo", "iojj3XQJ8ZX9UtstPLpdcspnCb8dlBIb83SIAbQPb1w"];

fn now() -> u64 {
    jsonwebtoken::get_current_timestamp()
}

fn jwks(keys: &[usize]) -> String {
    let keys: Vec<Value> = keys
        .iter()
        .map(
            |n| json!({"kty": "OKP", "crv": "Ed25519", "x": PUBLIC[*n], "kid": format!("key-{n}")}),
        )
        .collect();
    json!({ "keys": keys }).to_string()
}

fn signed(key: usize, kid: Option<&str>, claims: &Value) -> String {
    // PKCS #8 of an Ed25519 private key: a fixed prefix and the 32 key bytes.
    let mut der = vec![0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20];
    der.extend(BASE64_URL_SAFE_NO_PAD.decode(SEEDS[key]).unwrap());
    let mut header = Header::new(Algorithm::EdDSA);
    header.kid = kid.map(str::to_owned);
    jsonwebtoken::encode(&header, claims, &EncodingKey::from_ed_der(&der)).unwrap()
}

fn by_secret(secret: &[u8], algorithm: Algorithm, claims: &Value) -> String {
    jsonwebtoken::encode(&Header::new(algorithm), claims, &EncodingKey::from_secret(secret))
        .unwrap()
}

fn unsigned(header: &Value, claims: &Value, signature: &str) -> String {
    let part = |value: &Value| BASE64_URL_SAFE_NO_PAD.encode(value.to_string());
    format!("{}.{}.{signature}", part(header), part(claims))
}

/// An instance that verifies tokens with the keys in `file`, for audience `shop` and issuer
/// `https://id.example`.
async fn guarded(file: &Path, keys: &[usize]) -> (Instance, Backend) {
    std::fs::write(file, jwks(keys)).unwrap();
    victim(&[
        ("RUSHGATE_JWT_JWKS_FILE", file.to_str().unwrap()),
        ("RUSHGATE_JWT_AUDIENCE", "shop"),
        ("RUSHGATE_JWT_ISSUER", "https://id.example"),
    ])
    .await
}

fn claims() -> Value {
    json!({"sub": "ann", "exp": now() + 600, "scope": "admin", "aud": "shop", "iss": "https://id.example"})
}

fn folder() -> crate::servers::TempFolder {
    crate::servers::tempfile()
}

/// Every route that requires a token, according to the description.
async fn guarded_routes(api: &Api) -> Vec<(String, String)> {
    let description = api.get("/openapi.json").ok(200).await;
    let mut routes = Vec::new();
    for (path, item) in description["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            // `security: []` marks a public route.
            if operation["security"].as_array().is_some_and(|schemes| !schemes.is_empty()) {
                let path = path
                    .replace("{id}", "01939e5a-7c2f-7b3e-9d54-8a1c6f2e0b47")
                    .replace("{user}", "ann");
                routes.push((method.to_uppercase(), path));
            }
        }
    }
    assert_eq!(routes.len(), 21);
    routes
}

/// Tokens that must be refused, each with the attack that it tries.
fn strange(good: &Value) -> Vec<(&'static str, String)> {
    let changed = |more: Value| signed(0, Some("key-0"), &with(good.clone(), more));
    let without = |name: &str| {
        let mut claims = good.clone();
        claims.as_object_mut().unwrap().remove(name);
        signed(0, Some("key-0"), &claims)
    };
    let real = signed(0, Some("key-0"), good);
    let (message, signature) = real.rsplit_once('.').unwrap();
    let raw_key = BASE64_URL_SAFE_NO_PAD.decode(PUBLIC[0]).unwrap();
    let none = |alg: &str| unsigned(&json!({"alg": alg, "typ": "JWT"}), good, "");
    let stolen = unsigned(
        &json!({"alg": "EdDSA", "kid": "key-0"}),
        &with(good.clone(), json!({"sub": "bob"})),
        signature,
    );
    let own_key = json!({"alg": "EdDSA", "jwk": {"kty": "OKP", "crv": "Ed25519", "x": PUBLIC[1]}});
    let brought = unsigned(&own_key, good, signed(1, None, good).rsplit_once('.').unwrap().1);
    vec![
        ("expired", changed(json!({"exp": now() - 1}))),
        ("not yet", changed(json!({"nbf": now() + 600}))),
        ("no end", without("exp")),
        ("nobody", without("sub")),
        ("another audience", changed(json!({"aud": "another"}))),
        ("no audience", without("aud")),
        ("another issuer", changed(json!({"iss": "https://evil.example"}))),
        ("no issuer", without("iss")),
        ("alg none", none("none")),
        ("alg None", none("None")),
        ("alg nOnE", none("nOnE")),
        ("alg empty", none("")),
        ("no signature", format!("{message}.")),
        ("no signature part", message.to_owned()),
        ("public key as HMAC secret", by_secret(PUBLIC[0].as_bytes(), Algorithm::HS256, good)),
        ("raw public key as HMAC secret", by_secret(&raw_key, Algorithm::HS256, good)),
        ("key file as HMAC secret", by_secret(jwks(&[0]).as_bytes(), Algorithm::HS256, good)),
        ("empty HMAC secret", by_secret(b"", Algorithm::HS512, good)),
        ("the tests' HMAC secret", by_secret(SECRET.as_bytes(), Algorithm::HS256, good)),
        ("a key that is not in the file", signed(1, Some("key-1"), good)),
        ("another key under a known id", signed(1, Some("key-0"), good)),
        ("another key without an id", signed(1, None, good)),
        ("a known key under another id", signed(0, Some("../key-0"), good)),
        ("claims exchanged", stolen),
        ("a key of its own in the header", brought),
        ("a header of another world", "eyJ4IjoxfQ.e30.AA".to_owned()),
        ("no token at all", "nonsense".to_owned()),
        ("too long", "a".repeat(20_000)),
    ]
}

pub async fn strange_tokens(_: usize) -> usize {
    let folder = folder();
    let (instance, backend) = guarded(&folder.path.join("jwks.json"), &[0]).await;
    let api = instance.client();
    let mut tried = 0;
    let routes = guarded_routes(&api).await;
    let good = claims();
    for (method, path) in &routes {
        let call = || api.call(method, path).raw(b"{}".to_vec());
        call().refused(401, "unauthenticated").await;
        for (what, token) in strange(&good) {
            let answer = call().bearer(&token).send().await;
            let cut = what == "too long" && answer.status == 431;
            assert!(
                cut || (answer.status, answer.code()) == (401, "unauthenticated"),
                "{what}: {method} {path}: {answer:?}"
            );
            tried += 1;
        }
        // A valid token is accepted, so the refusals above have a reason.
        let answer = call().bearer(&signed(0, Some("key-0"), &good)).send().await;
        assert!(![401, 403].contains(&answer.status), "{method} {path}: {answer:?}");
        for scope in ["", "openid", "SHOP", "shop,admin", "admins"] {
            let token = signed(0, None, &with(good.clone(), json!({"scope": scope})));
            call().bearer(&token).refused(403, "forbidden").await;
            tried += 1;
        }
    }
    backend.assert_audit_clean().await;
    tried
}

pub async fn keys_rotated(effort: usize) -> usize {
    let folder = folder();
    let file = folder.path.join("jwks.json");
    let (instance, _backend) = guarded(&file, &[0]).await;
    let api = instance.client();
    let good = claims();
    let tokens = [signed(0, Some("key-0"), &good), signed(1, Some("key-1"), &good)];
    let status =
        async |key: usize| api.get("/v1/users/ann/wallet").bearer(&tokens[key]).send().await.status;
    assert_eq!((status(0).await, status(1).await), (200, 401));
    for round in 0..effort {
        let (kept, gone) = (if round % 2 == 0 { 1 } else { 0 }, if round % 2 == 0 { 0 } else { 1 });
        // First both keys, as an issuer rotates them, then only the new one. The file is replaced
        // by a rename, so that it is never read half-written.
        for keys in [vec![0, 1], vec![kept]] {
            std::fs::write(file.with_extension("new"), jwks(&keys)).unwrap();
            std::fs::rename(file.with_extension("new"), &file).unwrap();
            let wanted = if keys.len() == 2 { (200, 200) } else { (200, 401) };
            let changed = std::time::Instant::now();
            until("the keys are exchanged", async || {
                ((status(kept).await, status(gone).await) == wanted).then_some(())
            })
            .await;
            assert!(changed.elapsed() < Duration::from_secs(5), "{:?}", changed.elapsed());
        }
        for broken in ["", "{}", "{\"keys\":[]}", "nonsense"] {
            std::fs::write(&file, broken).unwrap();
            tokio::time::sleep(Duration::from_millis(300)).await;
            assert_eq!((status(kept).await, status(gone).await), (200, 401), "{broken}");
        }
        // Long enough for the instance to have read the last broken file.
        tokio::time::sleep(Duration::from_millis(1_500)).await;
        assert_eq!((status(kept).await, status(gone).await), (200, 401));
    }
    effort * 6
}

pub async fn token_replayed_after_its_end(effort: usize) -> usize {
    let (instance, _backend) = victim(&[("RUSHGATE_USER_RATE", "off")]).await;
    let api = instance.client();
    let mut tried = 0;
    for _ in 0..effort.min(5) {
        let exp = now() + 2;
        let token = by_secret(
            SECRET.as_bytes(),
            Algorithm::HS256,
            &json!({"sub": "ann", "exp": exp, "scope": "shop"}),
        );
        loop {
            let before = now();
            let status = api.get("/v1/users/ann/wallet").bearer(&token).send().await.status;
            tried += 1;
            assert!(before < exp || status == 401, "{} s after its end: {status}", before - exp);
            assert!(now() >= exp || status == 200);
            if status == 401 {
                break;
            }
        }
    }
    tried
}
