//! Who is calling: bearer tokens (JWT), checked by a secret or by the public keys of a JWKS file.
//!
//! One algorithm is configured (HS256 by secret; EdDSA, ES256 or RS256 by file), and a token that names any other is
//! refused before its signature is looked at. `aud` and `iss` must be those of the settings, where these name one. A token
//! that was found good is remembered until it expires, by its whole text, so that a client's next requests need no
//! signature check. What was remembered belongs to the keys that found it good: new keys begin with an empty memory, so a
//! key that was taken out of the file takes its tokens along.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use axum::extract::FromRequestParts;
use axum::http::header::AUTHORIZATION;
use axum::http::request::Parts;
use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, JwkSet, KeyAlgorithm, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation, get_current_timestamp};
use quick_cache::Weighter;
use quick_cache::sync::Cache;
use serde::{Deserialize, Serialize};

use super::Api;
use super::problem::{Code, Problem};
use super::reload;
use crate::config::{Auth, ChargeScope, ExpectedClaims, InvalidSetting};
use crate::domain::UserId;
use tokio_util::sync::CancellationToken;

/// Longest token that is looked at.
const MAX_TOKEN_BYTES: usize = 8 * 1024;
/// About how many tokens are remembered, and how many bytes of them at most.
const REMEMBERED_TOKENS: usize = 50_000;
/// See [`REMEMBERED_TOKENS`].
const REMEMBERED_TOKEN_BYTES: u64 = 16 * 1024 * 1024;
/// Keys that one JWKS file may hold; a token without `kid` is tried against each.
const MAX_KEYS: usize = 16;
/// RSA keys below 2048 bits are too weak to trust.
const MIN_RSA_BYTES: usize = 256;

#[derive(Serialize)]
struct MintedClaims<'a> {
    sub: &'a str,
    exp: u64,
    scope: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    aud: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    iss: Option<&'a str>,
}

/// What is read from a token; that `exp` and `nbf` hold now is the library's business.
#[derive(Deserialize)]
struct Claims {
    sub: String,
    exp: f64,
    #[serde(default)]
    scope: String,
}

/// The caller of a request, as its token says. To extract one is to refuse a request without a valid token (401), and
/// one whose token has none of the three scopes (403).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    pub sub: UserId,
    shop: bool,
    service: bool,
    admin: bool,
}

/// A caller with scope `admin`; others are refused with 403.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Staff(pub Caller);

/// A caller who may charge wallets by `RUSHGATE_CHARGE_SCOPE`; others are refused with 403.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Charger(pub Caller);

impl Caller {
    fn new(sub: UserId, scope: &str) -> Self {
        let has = |name: &str| scope.split(' ').any(|one| one == name);
        let admin = has("admin");
        Self { sub, shop: has("shop"), service: admin || has("service"), admin }
    }

    /// Whether the caller may act for, and see what belongs to, `user`.
    pub fn may_act_for(&self, user: &str) -> bool {
        self.service || (self.shop && self.sub.as_str() == user)
    }

    /// 404 unless [`Self::may_act_for`]: what is somebody else's is as if it were not there.
    pub fn check_acts_for(&self, user: &UserId) -> Result<(), Problem> {
        if self.may_act_for(user.as_str()) { Ok(()) } else { Err(Problem::no_such_user()) }
    }
}

impl FromRequestParts<Arc<Api>> for Caller {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, api: &Arc<Api>) -> Result<Self, Problem> {
        let token = bearer(parts)?;
        let caller = api.verifier.verify(token).map_err(|refused| unauthenticated(refused.0))?;
        // The shop's backend and staff act for many; what they may send is theirs to bound.
        if !caller.service {
            api.rates.count_user(&caller.sub)?;
            if !parts.method.is_safe() {
                api.rates.count_write(&caller.sub)?;
            }
        }
        if caller.shop || caller.service {
            return Ok(caller);
        }
        Err(forbidden("The token has none of the scopes shop, service and admin."))
    }
}

impl FromRequestParts<Arc<Api>> for Staff {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, api: &Arc<Api>) -> Result<Self, Problem> {
        let caller = Caller::from_request_parts(parts, api).await?;
        if caller.admin { Ok(Self(caller)) } else { Err(forbidden("This needs a token with scope admin.")) }
    }
}

impl FromRequestParts<Arc<Api>> for Charger {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, api: &Arc<Api>) -> Result<Self, Problem> {
        let caller = Caller::from_request_parts(parts, api).await?;
        if caller.service || api.settings.charge_scope == ChargeScope::Shop {
            return Ok(Self(caller));
        }
        Err(forbidden("Charging a wallet needs a token with scope service."))
    }
}

fn bearer(parts: &Parts) -> Result<&str, Problem> {
    let mut values = parts.headers.get_all(AUTHORIZATION).iter();
    let (Some(value), None) = (values.next(), values.next()) else {
        return Err(unauthenticated("Send one header `Authorization: Bearer <token>`."));
    };
    let token = value.to_str().ok().and_then(|text| {
        let (scheme, token) = text.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
    });
    token.ok_or_else(|| unauthenticated("The header must be `Authorization: Bearer <token>`."))
}

fn unauthenticated(detail: &'static str) -> Problem {
    Problem::new(Code::Unauthenticated, detail)
}

fn forbidden(detail: &'static str) -> Problem {
    Problem::new(Code::Forbidden, detail)
}

/// Why a token was refused. Says no more than a client can use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TokenRefused(pub &'static str);

struct Key {
    id: Option<String>,
    key: DecodingKey,
}

/// Checks tokens against the configured keys.
pub struct TokenVerifier {
    keyring: ArcSwap<Keyring>,
    rules: Rules,
    /// Where the keys come from, if they can change.
    file: Option<PathBuf>,
}

/// What is demanded of a token besides its signature.
#[derive(Clone, Debug, Default)]
struct Rules {
    claims: ExpectedClaims,
    leeway_secs: u64,
}

/// The keys of one time, and the tokens that they have found good.
struct Keyring {
    keys: Vec<Key>,
    validation: Validation,
    good: Cache<Box<str>, Good, ByBytes>,
}

/// A token that was found good, until when.
#[derive(Clone)]
struct Good {
    caller: Caller,
    /// Seconds since 1970, the leeway included; in this second it is no longer good.
    exp: u64,
}

/// Remembered tokens are bounded by their bytes.
#[derive(Clone)]
struct ByBytes;

impl Weighter<Box<str>, Good> for ByBytes {
    fn weight(&self, token: &Box<str>, _: &Good) -> u64 {
        (token.len() + size_of::<Good>()) as u64
    }
}

impl TokenVerifier {
    /// By the settings of `rushgate serve`.
    pub fn from_settings(auth: &Auth) -> Result<Self, InvalidSetting> {
        auth.check()?;
        let rules = Rules { claims: auth.claims.clone(), leeway_secs: auth.jwt_leeway_secs };
        if let Some(secret) = &auth.jwt_secret {
            return Ok(Self::new(Keyring::of_secret(secret.as_bytes(), &rules), rules, None));
        }
        let path = auth.jwt_jwks_file.as_deref().unwrap_or_else(|| Path::new(""));
        let bad =
            |reason: String| InvalidSetting(format!("RUSHGATE_JWT_JWKS_FILE {}: {reason}", path.display()));
        let text = std::fs::read_to_string(path).map_err(|error| bad(error.to_string()))?;
        let keyring = Keyring::of_jwks(&text, &rules).map_err(|InvalidSetting(reason)| bad(reason))?;
        Ok(Self::new(keyring, rules, Some(path.to_owned())))
    }

    /// HS256 by a shared secret.
    pub fn from_secret(secret: &[u8]) -> Self {
        let rules = Rules::default();
        Self::new(Keyring::of_secret(secret, &rules), rules, None)
    }

    fn new(keyring: Keyring, rules: Rules, file: Option<PathBuf>) -> Self {
        Self { keyring: ArcSwap::from_pointee(keyring), rules, file }
    }

    /// The caller that a token names.
    pub fn verify(&self, token: &str) -> Result<Caller, TokenRefused> {
        self.keyring.load().verify(token)
    }

    /// Takes over the key file whenever it changes. One that cannot be used changes nothing and is complained of.
    pub async fn follow(&self, stopping: CancellationToken) {
        let Some(file) = self.file.clone() else { return };
        reload::follow([file.clone()], stopping, |[text]| match self.renew(text) {
            Ok(keys) => tracing::info!(file = %file.display(), keys, "the keys of tokens were read again"),
            Err(InvalidSetting(reason)) => tracing::error!(
                file = %file.display(), reason, "the keys of tokens changed and cannot be used; the old ones stay"
            ),
        })
        .await;
    }

    /// Exchanges the keys; returns how many there are now.
    fn renew(&self, jwks: &[u8]) -> Result<usize, InvalidSetting> {
        let text = std::str::from_utf8(jwks).map_err(|error| InvalidSetting(error.to_string()))?;
        let keyring = Keyring::of_jwks(text, &self.rules)?;
        let keys = keyring.keys.len();
        self.keyring.store(Arc::new(keyring));
        Ok(keys)
    }
}

impl Keyring {
    fn of_secret(secret: &[u8], rules: &Rules) -> Self {
        let key = Key { id: None, key: DecodingKey::from_secret(secret) };
        Self::new(vec![key], Algorithm::HS256, rules)
    }

    /// EdDSA, ES256 or RS256 by the public keys of a JWKS document, all of one algorithm.
    fn of_jwks(json: &str, rules: &Rules) -> Result<Self, InvalidSetting> {
        let set: JwkSet = serde_json::from_str(json)
            .map_err(|error| InvalidSetting(format!("this is no JWKS document: {error}")))?;
        if set.keys.len() > MAX_KEYS {
            return Err(InvalidSetting(format!(
                "it holds more than {MAX_KEYS} keys: leave out the retired ones"
            )));
        }
        let mut keys = Vec::new();
        let mut algorithm = None;
        for jwk in set.keys.iter().filter(|jwk| is_for_signatures(jwk)) {
            let this = algorithm_of(jwk)?;
            if *algorithm.get_or_insert(this) != this {
                return Err(InvalidSetting(
                    "its keys are of several algorithms: keep those of one".to_owned(),
                ));
            }
            let key = DecodingKey::from_jwk(jwk)
                .map_err(|error| InvalidSetting(format!("one of its keys cannot be used: {error}")))?;
            keys.push(Key { id: jwk.common.key_id.clone(), key });
        }
        match algorithm {
            Some(algorithm) => Ok(Self::new(keys, algorithm, rules)),
            None => Err(InvalidSetting("it holds no key for signatures".to_owned())),
        }
    }

    fn new(keys: Vec<Key>, algorithm: Algorithm, rules: &Rules) -> Self {
        let good = Cache::with_weighter(REMEMBERED_TOKENS, REMEMBERED_TOKEN_BYTES, ByBytes);
        Self { keys, validation: validation(algorithm, rules), good }
    }

    fn verify(&self, token: &str) -> Result<Caller, TokenRefused> {
        if let Some(Good { caller, exp }) = self.good.get(token)
            && get_current_timestamp() < exp
        {
            return Ok(caller);
        }
        let good = self.check(token)?;
        let caller = good.caller.clone();
        self.good.insert(token.into(), good);
        Ok(caller)
    }

    fn check(&self, token: &str) -> Result<Good, TokenRefused> {
        if token.len() > MAX_TOKEN_BYTES {
            return Err(TokenRefused("The token is too long."));
        }
        let header =
            jsonwebtoken::decode_header(token).map_err(|_| TokenRefused("The token cannot be read."))?;
        if header.crit.is_some() {
            return Err(TokenRefused("The token demands extensions that are not supported."));
        }
        let mut refused = TokenRefused("The token was signed with a key that is not known here.");
        for key in self.keys.iter().filter(|key| key.serves(header.kid.as_deref())) {
            match jsonwebtoken::decode::<Claims>(token, &key.key, &self.validation) {
                Ok(data) => {
                    let sub = UserId::parse(data.claims.sub)
                        .map_err(|_| TokenRefused("The token's sub is not a user id."))?;
                    let caller = Caller::new(sub, &data.claims.scope);
                    // a fraction counts down: rather too early than too late
                    let exp = (data.claims.exp as u64).saturating_add(self.validation.leeway);
                    return Ok(Good { caller, exp });
                }
                Err(error) => refused = TokenRefused(reason(error.kind())),
            }
        }
        Err(refused)
    }
}

impl Key {
    /// A key without an id (the secret) serves every token, a token without a `kid` is tried against every key.
    fn serves(&self, kid: Option<&str>) -> bool {
        match (self.id.as_deref(), kid) {
            (Some(id), Some(kid)) => id == kid,
            _ => true,
        }
    }
}

fn validation(algorithm: Algorithm, rules: &Rules) -> Validation {
    let mut validation = Validation::new(algorithm);
    validation.leeway = rules.leeway_secs;
    // A token is no longer good in the second that `exp` names (RFC 7519, 4.1.4).
    validation.reject_tokens_expiring_in_less_than = 1;
    validation.validate_nbf = true;
    let mut demanded = vec!["exp", "sub"];
    match &rules.claims.jwt_audience {
        Some(audience) => {
            validation.set_audience(&[audience]);
            demanded.push("aud");
        }
        // Nobody has said which audience is ours: tokens with `aud` are good whatever it names.
        None => validation.validate_aud = false,
    }
    if let Some(issuer) = &rules.claims.jwt_issuer {
        validation.set_issuer(&[issuer]);
        demanded.push("iss");
    }
    validation.set_required_spec_claims(&demanded);
    validation
}

fn reason(kind: &jsonwebtoken::errors::ErrorKind) -> &'static str {
    use jsonwebtoken::errors::ErrorKind;
    match kind {
        ErrorKind::ExpiredSignature | ErrorKind::InvalidToken => "The token has expired: get a new one.",
        ErrorKind::ImmatureSignature => "The token is not valid yet.",
        ErrorKind::InvalidAlgorithm => "The token is signed with an algorithm that is not accepted here.",
        ErrorKind::InvalidAudience => "The token was made for somebody else (aud).",
        ErrorKind::InvalidIssuer => "The token's issuer (iss) is not the one that is trusted here.",
        ErrorKind::MissingRequiredClaim(_) => "The token lacks a claim that is demanded here.",
        ErrorKind::InvalidSignature => "The token's signature is wrong.",
        _ => "The token cannot be read.",
    }
}

fn is_for_signatures(jwk: &Jwk) -> bool {
    !matches!(jwk.common.public_key_use, Some(PublicKeyUse::Encryption))
}

fn algorithm_of(jwk: &Jwk) -> Result<Algorithm, InvalidSetting> {
    let bad = |text: &str| Err(InvalidSetting(text.to_owned()));
    let bytes = |text: &str| BASE64_URL_SAFE_NO_PAD.decode(text).map_or(0, |bytes| bytes.len());
    let (algorithm, named) = match &jwk.algorithm {
        AlgorithmParameters::OctetKeyPair(key) => {
            if key.curve != EllipticCurve::Ed25519 || bytes(&key.x) != 32 {
                return bad("its OKP keys must be Ed25519 keys of 32 bytes");
            }
            (Algorithm::EdDSA, KeyAlgorithm::EdDSA)
        }
        AlgorithmParameters::EllipticCurve(key) => {
            if key.curve != EllipticCurve::P256 || bytes(&key.x) != 32 || bytes(&key.y) != 32 {
                return bad("its EC keys must be P-256 keys");
            }
            (Algorithm::ES256, KeyAlgorithm::ES256)
        }
        AlgorithmParameters::RSA(key) => {
            if bytes(&key.n) < MIN_RSA_BYTES {
                return bad("its RSA keys must have at least 2048 bits");
            }
            (Algorithm::RS256, KeyAlgorithm::RS256)
        }
        AlgorithmParameters::OctetKey(_) => {
            return bad("it holds a shared secret: use RUSHGATE_JWT_SECRET for HS256");
        }
        _ => return bad("it holds a key of an unknown kind: keep Ed25519, P-256 or RSA keys"),
    };
    match jwk.common.key_algorithm {
        Some(other) if other != named => bad("it names an algorithm (alg) other than EdDSA, ES256 or RS256"),
        _ => Ok(algorithm),
    }
}

/// A token signed with HS256, for demos and tests.
pub fn mint_token(
    secret: &[u8],
    sub: &UserId,
    scope: &str,
    ttl: Duration,
) -> Result<String, jsonwebtoken::errors::Error> {
    mint_token_for(secret, sub, scope, ttl, &ExpectedClaims::default())
}

/// The same for a given audience and by a given issuer, for `rushgate token`.
pub fn mint_token_for(
    secret: &[u8],
    sub: &UserId,
    scope: &str,
    ttl: Duration,
    claims: &ExpectedClaims,
) -> Result<String, jsonwebtoken::errors::Error> {
    let exp = get_current_timestamp().saturating_add(ttl.as_secs());
    let (aud, iss) = (claims.jwt_audience.as_deref(), claims.jwt_issuer.as_deref());
    let claims = MintedClaims { sub: sub.as_str(), exp, scope, aud, iss };
    jsonwebtoken::encode(&Header::new(Algorithm::HS256), &claims, &EncodingKey::from_secret(secret))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

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
        let keyring = Keyring::of_jwks(&json!({"keys": [ed_key("one")]}).to_string(), &rules).unwrap();
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
        let mint = |scope| mint_token(SECRET, &UserId::parse("u").unwrap(), scope, Duration::from_secs(60));
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
            let claims =
                json!({"sub": "u", "exp": now() + 60, "scope": "shop", "aud": aud, "iss": "x", "jti": 5});
            assert!(by_secret(&hs256(&claims)).is_ok(), "{claims}");
        }
    }

    fn by_rules(rules: Rules, claims: &Value) -> Result<Caller, TokenRefused> {
        let verifier = TokenVerifier::new(Keyring::of_secret(SECRET, &rules), rules, None);
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
        let remembered = TokenVerifier::new(Keyring::of_secret(SECRET, &rules()), rules(), None);
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
        for secret in [ED_PUBLIC.as_bytes().to_vec(), BASE64_URL_SAFE_NO_PAD.decode(ED_PUBLIC).unwrap()] {
            let token = signed(&Header::default(), &claims(now() + 60), &EncodingKey::from_secret(&secret));
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
        let keyring = |text: &str| Keyring::of_jwks(text, &Rules::default());
        let load = |keys: Value| keyring(&json!({"keys": keys}).to_string()).is_ok();
        let coordinate = BASE64_URL_SAFE_NO_PAD.encode([7; 32]);
        let ec = |curve| json!({"kty": "EC", "crv": curve, "x": coordinate, "y": coordinate});
        let rsa =
            |bytes| json!({"kty": "RSA", "n": BASE64_URL_SAFE_NO_PAD.encode(vec![200; bytes]), "e": "AQAB"});
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
}
