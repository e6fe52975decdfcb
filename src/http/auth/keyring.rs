//! The keys of one moment, and the tokens that they have verified.
//!
//! All keys are of one algorithm (HS256 by secret; EdDSA, ES256 or RS256 by file), and a token that
//! names any other is refused before its signature is checked. `aud` and `iss` must match the
//! settings, where these name one.
//!
//! A verified token is cached by its whole text until it expires, so that the client's next
//! requests cost no signature check. The cache belongs to the keys: new keys start with an empty
//! one, so a key that is removed from the file takes its tokens along.

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use jsonwebtoken::jwk::{
    AlgorithmParameters, EllipticCurve, Jwk, JwkSet, KeyAlgorithm, PublicKeyUse,
};
use jsonwebtoken::{Algorithm, DecodingKey, Validation, get_current_timestamp};
use quick_cache::Weighter;
use quick_cache::sync::Cache;
use serde::Deserialize;

use super::{Caller, TokenRefused};
use crate::config::{ExpectedClaims, InvalidSetting};
use crate::domain::UserId;
use crate::http::problem::NoToken;

/// The longest token that is read, in bytes.
pub(super) const MAX_TOKEN_BYTES: usize = 8 * 1024;
/// About how many tokens are cached.
const REMEMBERED_TOKENS: usize = 50_000;
/// Most bytes of cached tokens together.
const REMEMBERED_TOKEN_BYTES: u64 = 16 * 1024 * 1024;
/// Most keys in one JWKS file. A token without `kid` is tried against each of them.
const MAX_KEYS: usize = 16;
/// RSA keys below 2048 bits are too weak to trust.
const MIN_RSA_BYTES: usize = 256;

/// The claims that are used here. The library checks `exp` and `nbf` against the clock.
#[derive(Deserialize)]
struct Claims {
    sub: String,
    exp: f64,
    #[serde(default)]
    scope: String,
}

/// Demands on a token besides its signature.
#[derive(Clone, Debug, Default)]
pub(super) struct Rules {
    pub(super) claims: ExpectedClaims,
    pub(super) leeway_secs: u64,
}

/// Keys, and the tokens that they have verified.
pub(super) struct Keyring {
    pub(super) keys: Vec<Key>,
    validation: Validation,
    good: Cache<Box<str>, Good, ByBytes>,
}

/// A verified token.
#[derive(Clone)]
struct Good {
    caller: Caller,
    /// Seconds since 1970, the leeway included. From this second on it is no longer valid.
    exp: u64,
}

/// Cached tokens are bounded by their bytes.
#[derive(Clone)]
struct ByBytes;

impl Weighter<Box<str>, Good> for ByBytes {
    fn weight(&self, token: &Box<str>, _: &Good) -> u64 {
        (token.len() + size_of::<Good>()) as u64
    }
}

pub(super) struct Key {
    id: Option<String>,
    key: DecodingKey,
}

impl Keyring {
    /// HS256 with a shared secret.
    pub(super) fn from_secret(secret: &[u8], rules: &Rules) -> Self {
        let key = Key { id: None, key: DecodingKey::from_secret(secret) };
        Self::new(vec![key], Algorithm::HS256, rules)
    }

    /// EdDSA, ES256 or RS256 with the public keys of a JWKS document, all of one algorithm.
    pub(super) fn from_jwks(json: &str, rules: &Rules) -> Result<Self, InvalidSetting> {
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
            let key = DecodingKey::from_jwk(jwk).map_err(|error| {
                InvalidSetting(format!("one of its keys cannot be used: {error}"))
            })?;
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

    pub(super) fn verify(&self, token: &str) -> Result<Caller, TokenRefused> {
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
            return Err(TokenRefused::invalid("The token is too long."));
        }
        // The library's error for another shape is the one for an `exp` of 0, which has expired.
        if token.split('.').count() != 3 {
            return Err(TokenRefused::invalid("The token cannot be read."));
        }
        let header = jsonwebtoken::decode_header(token)
            .map_err(|_| TokenRefused::invalid("The token cannot be read."))?;
        if header.crit.is_some() {
            return Err(TokenRefused::invalid(
                "The token demands extensions that are not supported.",
            ));
        }
        let mut refused =
            TokenRefused::invalid("The token was signed with a key that is not known here.");
        for key in self.keys.iter().filter(|key| key.serves(header.kid.as_deref())) {
            match jsonwebtoken::decode::<Claims>(token, &key.key, &self.validation) {
                Ok(data) => {
                    let sub = UserId::parse(data.claims.sub)
                        .map_err(|_| TokenRefused::invalid("The token's sub is not a user id."))?;
                    let caller = Caller::new(sub, &data.claims.scope);
                    // a fraction is cut off, so that the token expires too early rather than too
                    // late
                    let exp = (data.claims.exp as u64).saturating_add(self.validation.leeway);
                    return Ok(Good { caller, exp });
                }
                Err(error) => refused = refusal(error.kind()),
            }
        }
        Err(refused)
    }
}

impl Key {
    /// A key without an id (the secret) serves every token; a token without a `kid` is tried
    /// against every key.
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
    // A token is no longer valid in the second that `exp` names (RFC 7519, 4.1.4).
    validation.reject_tokens_expiring_in_less_than = 1;
    validation.validate_nbf = true;
    let mut demanded = vec!["exp", "sub"];
    match &rules.claims.jwt_audience {
        Some(audience) => {
            validation.set_audience(&[audience]);
            demanded.push("aud");
        }
        // Without a configured audience, tokens are accepted whatever their `aud` names.
        None => validation.validate_aud = false,
    }
    if let Some(issuer) = &rules.claims.jwt_issuer {
        validation.set_issuer(&[issuer]);
        demanded.push("iss");
    }
    validation.set_required_spec_claims(&demanded);
    validation
}

fn refusal(kind: &jsonwebtoken::errors::ErrorKind) -> TokenRefused {
    use jsonwebtoken::errors::ErrorKind;
    TokenRefused::invalid(match kind {
        ErrorKind::ExpiredSignature | ErrorKind::InvalidToken => {
            let detail = "The token has expired: get a new one.";
            return TokenRefused { detail, reason: NoToken::Expired };
        }
        ErrorKind::ImmatureSignature => "The token is not valid yet.",
        ErrorKind::InvalidAlgorithm => {
            "The token is signed with an algorithm that is not accepted here."
        }
        ErrorKind::InvalidAudience => "The token was made for somebody else (aud).",
        ErrorKind::InvalidIssuer => "The token's issuer (iss) is not the one that is trusted here.",
        ErrorKind::MissingRequiredClaim(_) => "The token lacks a claim that is demanded here.",
        ErrorKind::InvalidSignature => "The token's signature is wrong.",
        _ => "The token cannot be read.",
    })
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
        Some(other) if other != named => {
            bad("it names an algorithm (alg) other than EdDSA, ES256 or RS256")
        }
        _ => Ok(algorithm),
    }
}
