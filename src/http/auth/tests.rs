//! Tokens that must be accepted and refused.

use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, EncodingKey, Header, get_current_timestamp};
use serde_json::{Value, json};

use super::keyring::{Keyring, MAX_TOKEN_BYTES, Rules};
use super::{Caller, TokenRefused, TokenVerifier, mint_token};
use crate::config::ExpectedClaims;
use crate::domain::UserId;

const SECRET: &[u8] = b"0123456789abcdef0123456789abcdef";
/// The key of RFC 8037, appendix A.
const ED_PUBLIC: &str = "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo";
const ED_PRIVATE: &str = "nWGxne_9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A";

fn now() -> u64 {
    get_current_timestamp()
}

fn claims(exp: u64) -> Value {
    json!({"sub": "user-1", "exp": exp, "scope": "shop"})
}

fn signed(header: &Header, claims: &Value, key: &EncodingKey) -> String {
    jsonwebtoken::encode(header, claims, key).unwrap()
}

fn hs256(claims: &Value) -> String {
    signed(&Header::new(Algorithm::HS256), claims, &EncodingKey::from_secret(SECRET))
}

fn unsigned(header: &Value, claims: &Value) -> String {
    let part = |value: &Value| BASE64_URL_SAFE_NO_PAD.encode(value.to_string());
    format!("{}.{}.", part(header), part(claims))
}

fn by_secret(token: &str) -> Result<Caller, TokenRefused> {
    TokenVerifier::from_secret(SECRET).verify(token)
}

fn ed_key(kid: &str) -> Value {
    json!({"kty": "OKP", "crv": "Ed25519", "x": ED_PUBLIC, "kid": kid})
}

fn ed_verifier() -> TokenVerifier {
    let rules = Rules::default();
    let keyring =
        Keyring::from_jwks(&json!({"keys": [ed_key("one")]}).to_string(), &rules).unwrap();
    TokenVerifier::new(keyring, rules, None)
}

fn ed_token(kid: Option<&str>) -> String {
    // PKCS #8 of an Ed25519 private key: a fixed head, then its 32 bytes.
    let mut der = vec![0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20];
    der.extend(BASE64_URL_SAFE_NO_PAD.decode(ED_PRIVATE).unwrap());
    let mut header = Header::new(Algorithm::EdDSA);
    header.kid = kid.map(str::to_owned);
    signed(&header, &claims(now() + 60), &EncodingKey::from_ed_der(&der))
}

#[test]
fn a_good_token_names_its_caller_and_scopes() {
    let mint =
        |scope| mint_token(SECRET, &UserId::parse("u").unwrap(), scope, Duration::from_secs(60));
    let caller = |scope| by_secret(&mint(scope).unwrap()).unwrap();
    assert!(caller("shop").may_act_for("u") && !caller("shop").may_act_for("v"));
    assert!(caller("read service").may_act_for("v") && !caller("service").admin);
    assert!(caller("admin").may_act_for("v") && caller("admin").admin);
    for nothing in ["", "shopping", "SHOP", "admins"] {
        assert!(!caller(nothing).may_act_for("u"), "{nothing}");
    }
}

#[test]
fn a_remembered_token_ends_when_it_expires_and_covers_no_other() {
    let verifier = TokenVerifier::from_secret(SECRET);
    let exp = now() + 2;
    let token = hs256(&claims(exp));
    let forged = format!("{}A", &token[..token.len() - 1]);
    while now() < exp {
        // it may expire between our look at the clock and the verifier's
        assert!(verifier.verify(&token).is_ok() || now() >= exp);
        assert!(forged == token || verifier.verify(&forged).is_err());
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(verifier.verify(&token).is_err());
}

#[test]
fn a_token_ends_when_it_says_and_begins_when_it_says() {
    assert!(by_secret(&hs256(&claims(now() + 30))).is_ok());
    for exp in [0, now() - 3_600, now() - 1, now()] {
        assert!(by_secret(&hs256(&claims(exp))).is_err(), "{exp}");
    }
    let early = json!({"sub": "u", "exp": now() + 60, "nbf": now() + 30, "scope": "shop"});
    assert!(by_secret(&hs256(&early)).is_err());
}

#[test]
fn a_token_without_its_claims_is_refused() {
    let exp = now() + 60;
    for bad in [
        json!({"sub": "u", "scope": "shop"}),
        json!({"exp": exp, "scope": "shop"}),
        json!({"sub": "u", "exp": "never", "scope": "shop"}),
        json!({"sub": "u", "exp": null, "scope": "shop"}),
        json!({"sub": "u", "exp": -1, "scope": "shop"}),
        json!({"sub": "a b", "exp": exp, "scope": "shop"}),
        json!({"sub": "", "exp": exp, "scope": "shop"}),
        json!({"sub": 5, "exp": exp, "scope": "shop"}),
        json!({"sub": "u", "exp": exp, "scope": ["shop"]}),
    ] {
        assert!(by_secret(&hs256(&bad)).is_err(), "{bad}");
    }
}

#[test]
fn claims_that_are_not_ours_do_not_matter() {
    for aud in [json!("another"), json!(["one", "two"])] {
        let claims = json!({"sub": "u", "exp": now() + 60, "scope": "shop", "aud": aud, "iss": "x", "jti": 5});
        assert!(by_secret(&hs256(&claims)).is_ok(), "{claims}");
    }
}

fn by_rules(rules: Rules, claims: &Value) -> Result<Caller, TokenRefused> {
    let verifier = TokenVerifier::new(Keyring::from_secret(SECRET, &rules), rules, None);
    verifier.verify(&hs256(claims))
}

#[test]
fn a_token_for_somebody_else_or_by_somebody_else_is_refused() {
    let wanted =
        ExpectedClaims { jwt_audience: Some("shop".into()), jwt_issuer: Some("https://id".into()) };
    let with = |more: Value| {
        let mut claims = claims(now() + 60);
        claims.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        by_rules(Rules { claims: wanted.clone(), leeway_secs: 0 }, &claims)
    };
    assert!(with(json!({"aud": "shop", "iss": "https://id"})).is_ok());
    assert!(with(json!({"aud": ["x", "shop"], "iss": "https://id"})).is_ok());
    for bad in [
        json!({}),
        json!({"aud": "shop"}),
        json!({"iss": "https://id"}),
        json!({"aud": "shop2", "iss": "https://id"}),
        json!({"aud": ["x"], "iss": "https://id"}),
        json!({"aud": null, "iss": "https://id"}),
        json!({"aud": "shop", "iss": "https://id/"}),
        json!({"aud": "shop", "iss": ""}),
    ] {
        assert!(with(bad.clone()).is_err(), "{bad}");
    }
}

#[test]
fn leeway_is_given_as_far_as_it_is_set() {
    let rules = || Rules { leeway_secs: 30, ..Rules::default() };
    assert!(by_rules(rules(), &claims(now() - 10)).is_ok());
    assert!(by_rules(rules(), &claims(now() - 31)).is_err());
    let early = |secs| json!({"sub": "u", "exp": now() + 60, "nbf": now() + secs, "scope": "shop"});
    assert!(by_rules(rules(), &early(10)).is_ok() && by_rules(rules(), &early(40)).is_err());
    let remembered = TokenVerifier::new(Keyring::from_secret(SECRET, &rules()), rules(), None);
    let token = hs256(&claims(now() - 28));
    assert!(remembered.verify(&token).is_ok());
    let until = now() + 3;
    while now() < until {
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(remembered.verify(&token).is_err());
}

#[test]
fn a_key_that_is_taken_out_takes_its_tokens_along() {
    let verifier = ed_verifier();
    let token = ed_token(Some("one"));
    assert!(verifier.verify(&token).is_ok());
    // Another key under the same id.
    let other = json!({"kty": "OKP", "crv": "Ed25519", "x": BASE64_URL_SAFE_NO_PAD.encode([9; 32]), "kid": "one"});
    assert!(verifier.renew(b"{}").is_err() && verifier.verify(&token).is_ok(), "the old ones stay");
    assert_eq!(verifier.renew(json!({"keys": [other]}).to_string().as_bytes()), Ok(1));
    assert!(verifier.verify(&token).is_err());
    assert_eq!(verifier.renew(json!({"keys": [ed_key("one")]}).to_string().as_bytes()), Ok(1));
    assert!(verifier.verify(&token).is_ok());
}

#[test]
fn a_forged_token_is_refused() {
    let good = hs256(&claims(now() + 60));
    let (message, signature) = good.rsplit_once('.').unwrap();
    let (header, _) = message.split_once('.').unwrap();
    let other = BASE64_URL_SAFE_NO_PAD
        .encode(json!({"sub": "v", "exp": now() + 60, "scope": "admin"}).to_string());
    for bad in [
        format!("{header}.{other}.{signature}"),
        format!("{message}."),
        message.to_owned(),
        format!("{good}x"),
        format!("{good}.{signature}"),
        String::new(),
        "..".to_owned(),
        "x".repeat(MAX_TOKEN_BYTES + 1),
    ] {
        assert!(by_secret(&bad).is_err(), "{bad}");
    }
    let key = EncodingKey::from_secret(b"another secret of 32 bytes or so");
    assert!(by_secret(&signed(&Header::default(), &claims(now() + 60), &key)).is_err());
}

#[test]
fn no_other_algorithm_is_accepted() {
    for alg in ["none", "None", "NONE", "HS384", "RS256", "EdDSA", "ES256", ""] {
        let token = unsigned(&json!({"alg": alg, "typ": "JWT"}), &claims(now() + 60));
        assert!(by_secret(&token).is_err(), "{alg}");
        assert!(ed_verifier().verify(&token).is_err(), "{alg}");
    }
    let key = EncodingKey::from_secret(SECRET);
    for algorithm in [Algorithm::HS384, Algorithm::HS512] {
        assert!(by_secret(&signed(&Header::new(algorithm), &claims(now() + 60), &key)).is_err());
    }
    let critical = unsigned(&json!({"alg": "HS256", "crit": ["exp"]}), &claims(now() + 60));
    assert!(by_secret(&critical).is_err());
}

#[test]
fn a_public_key_is_no_secret() {
    let verifier = ed_verifier();
    for secret in [ED_PUBLIC.as_bytes().to_vec(), BASE64_URL_SAFE_NO_PAD.decode(ED_PUBLIC).unwrap()]
    {
        let token =
            signed(&Header::default(), &claims(now() + 60), &EncodingKey::from_secret(&secret));
        assert!(verifier.verify(&token).is_err());
    }
    assert!(by_secret(&ed_token(None)).is_err());
}

#[test]
fn a_key_is_chosen_by_its_id() {
    let verifier = ed_verifier();
    assert_eq!(verifier.verify(&ed_token(Some("one"))).unwrap().sub.as_str(), "user-1");
    assert!(verifier.verify(&ed_token(None)).is_ok());
    assert!(verifier.verify(&ed_token(Some("two"))).is_err());
}

#[test]
fn a_key_file_holds_keys_of_one_algorithm() {
    let keyring = |text: &str| Keyring::from_jwks(text, &Rules::default());
    let load = |keys: Value| keyring(&json!({"keys": keys}).to_string()).is_ok();
    let coordinate = BASE64_URL_SAFE_NO_PAD.encode([7; 32]);
    let ec = |curve| json!({"kty": "EC", "crv": curve, "x": coordinate, "y": coordinate});
    let rsa = |bytes| json!({"kty": "RSA", "n": BASE64_URL_SAFE_NO_PAD.encode(vec![200; bytes]), "e": "AQAB"});
    assert!(load(json!([ed_key("a"), ed_key("b")])));
    assert!(load(json!([ec("P-256")])) && load(json!([rsa(256)])));
    assert!(!load(json!([])));
    assert!(!load(json!([ed_key("a"), ec("P-256")])), "two algorithms");
    assert!(!load(json!([ec("P-384")])) && !load(json!([rsa(128)])));
    assert!(!load(json!([{"kty": "oct", "k": "c2VjcmV0"}])), "a secret");
    let mut named = ed_key("a");
    named["alg"] = json!("ES256");
    assert!(!load(json!([named])), "an algorithm of another kind of key");
    let mut encryption = ed_key("a");
    encryption["use"] = json!("enc");
    assert!(!load(json!([encryption])), "no key for signatures");
    assert!(keyring("{}").is_err() && keyring("x").is_err());
}
