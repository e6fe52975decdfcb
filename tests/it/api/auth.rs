//! Tokens and scopes.

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::json;

use super::*;

fn now() -> u64 {
    jsonwebtoken::get_current_timestamp()
}

fn hs256(claims: &Value, secret: &str) -> String {
    jsonwebtoken::encode(&Header::default(), claims, &EncodingKey::from_secret(secret.as_bytes()))
        .unwrap()
}

/// What a caller may access. Created anew for each caller, so that no row depends on an earlier
/// one.
struct Belongings {
    user: String,
    product: String,
    template: String,
    order: String,
}

impl Belongings {
    async fn new(api: &Api) -> Self {
        let (user, product) = (api.user(100_000).await, api.product(1_000, 10).await);
        let order = api.order(&user, &[(&product, 1)], json!({})).ok(201).await;
        Self {
            user,
            product,
            template: api.template(json!({})).await,
            order: text(&order, "order_id"),
        }
    }

    /// Every route of the contract, with the status for {no token, the user, another user, the
    /// backend, staff}.
    fn routes(&self) -> Vec<(&'static str, String, Option<Value>, [u16; 5])> {
        const ALL: [u16; 5] = [200; 5];
        const OWN: [u16; 5] = [401, 200, 404, 200, 200];
        const OWN_NEW: [u16; 5] = [401, 201, 404, 201, 201];
        const BACKEND: [u16; 5] = [401, 403, 403, 200, 200];
        const STAFF: [u16; 5] = [401, 403, 403, 403, 200];
        const STAFF_NEW: [u16; 5] = [401, 403, 403, 403, 201];
        let Self { user, product, template: id, order } = self;
        let put = json!({"name": "changed", "price": 700, "status": "on_sale"});
        let items = json!([{"product_id": product, "quantity": 1}]);
        vec![
            ("GET", "/v1/products".into(), None, ALL),
            ("GET", format!("/v1/products/{product}"), None, ALL),
            ("GET", "/v1/products/popular".into(), None, ALL),
            ("GET", "/v1/coupon-templates".into(), None, ALL),
            ("GET", format!("/v1/coupon-templates/{id}"), None, ALL),
            ("GET", format!("/v1/users/{user}/wallet"), None, OWN),
            (
                "POST",
                format!("/v1/users/{user}/wallet/charges"),
                Some(json!({"amount": 5})),
                OWN_NEW,
            ),
            ("GET", format!("/v1/users/{user}/wallet/entries"), None, OWN),
            (
                "POST",
                format!("/v1/coupon-templates/{id}/coupons"),
                Some(json!({"user_id": user})),
                OWN_NEW,
            ),
            ("GET", format!("/v1/coupon-templates/{id}/coupons"), None, STAFF),
            ("GET", format!("/v1/users/{user}/coupons"), None, OWN),
            ("GET", format!("/v1/orders?user_id={user}"), None, BACKEND),
            ("POST", "/v1/orders".into(), Some(json!({"user_id": user, "items": items})), OWN_NEW),
            ("GET", format!("/v1/orders/{order}"), None, OWN),
            ("GET", format!("/v1/users/{user}/orders"), None, OWN),
            ("POST", format!("/v1/orders/{order}/cancel"), None, OWN),
            ("PUT", format!("/v1/products/{product}"), Some(put), STAFF),
            (
                "POST",
                format!("/v1/products/{product}/stock-adjustments"),
                Some(json!({"delta": 5})),
                STAFF_NEW,
            ),
            ("POST", "/v1/products/popular/refresh".into(), None, STAFF),
            (
                "PUT",
                format!("/v1/coupon-templates/{id}"),
                Some(template(json!({"max_issued": 7}))),
                STAFF,
            ),
            ("GET", "/v1/admin/status".into(), None, STAFF),
            ("GET", "/v1/admin/metrics".into(), None, STAFF),
            ("GET", "/v1/admin/audits".into(), None, STAFF),
            ("POST", "/v1/admin/audits".into(), None, STAFF_NEW),
        ]
    }

    /// Everything that a forbidden call could have changed.
    async fn state(&self, api: &Api) -> Vec<Value> {
        let mut state = Vec::new();
        for (method, path, _, _) in self.routes() {
            let of_these = [&self.user, &self.product, &self.template, &self.order];
            if method == "GET" && of_these.iter().any(|id| path.contains(*id)) {
                state.push(api.get(&path).admin().ok(200).await);
            }
        }
        assert_eq!(state.len(), 9);
        state
    }
}

#[tokio::test]
async fn every_route_lets_in_whom_the_contract_names() {
    let api = Api::shared().await;
    api.call("POST", "/v1/products/popular/refresh").admin().ok(200).await;
    let described = Description::of(&api.base).await;
    let mut seen = BTreeSet::new();
    for caller in 0..5 {
        let mine = Belongings::new(&api).await;
        let before = mine.state(&api).await;
        for (method, path, body, expected) in mine.routes() {
            seen.insert(described.operation(method, &path).unwrap()["operationId"].to_string());
            let call = match &body {
                Some(body) => api.call(method, &path).json(body),
                None => api.call(method, &path),
            };
            let call = match caller {
                0 => call,
                1 => call.user(&mine.user),
                2 => call.user(&fresh("another")),
                3 => call.service(),
                _ => call.admin(),
            };
            let answer = call.send().await;
            let expected_code = match expected[caller] {
                401 => "unauthenticated",
                403 => "forbidden",
                404 if path.starts_with("/v1/orders/") => "order-not-found",
                404 => "user-not-found",
                _ => "",
            };
            let outcome = (answer.status, answer.code());
            assert_eq!(
                outcome,
                (expected[caller], expected_code),
                "caller {caller}: {method} {path}: {answer:?}"
            );
            if answer.status == 401 {
                assert_eq!(answer.headers["www-authenticate"], "Bearer");
            }
        }
        if [0, 2].contains(&caller) {
            assert_eq!(mine.state(&api).await, before, "caller {caller} changed something");
        }
    }
    assert_eq!(seen.len(), 24, "{seen:?}");
}

#[tokio::test]
async fn several_scopes_in_one_token_add_up() {
    let api = Api::shared().await;
    let user = api.user(5).await;
    let wallet = format!("/v1/users/{user}/wallet");
    api.get(&wallet).bearer(&token("other", "shop service")).ok(200).await;
    api.get(&wallet).bearer(&token("other", "openid shop")).refused(404, "user-not-found").await;
    api.get("/v1/admin/status").bearer(&token("other", "shop admin")).ok(200).await;
    for nothing in ["", "openid", "SHOP", "shop,service"] {
        api.get(&wallet).bearer(&token(&user, nothing)).refused(403, "forbidden").await;
    }
}

#[tokio::test]
async fn a_token_that_is_missing_forged_or_expired_is_no_token() {
    let api = Api::shared().await;
    let user = api.user(5).await;
    let good = json!({"sub": user, "exp": now() + 600, "scope": "shop"});
    let token = hs256(&good, SECRET);
    let charge = || api.charge(&user, 1);
    let other_algorithm = jsonwebtoken::encode(
        &Header::new(Algorithm::HS512),
        &good,
        &EncodingKey::from_secret(SECRET.as_bytes()),
    );
    let unsigned = format!(
        "{}.{}.",
        BASE64_URL_SAFE_NO_PAD.encode(r#"{"alg":"none","typ":"JWT"}"#),
        token.split('.').nth(1).unwrap()
    );
    for bad in [
        "nonsense".into(),
        hs256(&good, "another secret that is 32 bytes."),
        other_algorithm.unwrap(),
        unsigned,
        format!("{token}x"),
        token.rsplit_once('.').unwrap().0.to_owned(),
        hs256(&json!({"sub": user, "scope": "shop"}), SECRET),
        hs256(&json!({"exp": now() + 600, "scope": "shop"}), SECRET),
        hs256(&with(good.clone(), json!({"sub": "a b"})), SECRET),
        hs256(&with(good.clone(), json!({"nbf": now() + 300})), SECRET),
    ] {
        assert_eq!(not_accepted(charge().bearer(&bad)).await, ("invalid".into(), INVALID.into()));
    }
    for ago in [1, 100, now()] {
        let expired = hs256(&with(good.clone(), json!({"exp": now() - ago})), SECRET);
        let expired = not_accepted(charge().bearer(&expired)).await;
        assert_eq!(expired, ("expired".into(), INVALID.into()), "{ago} s ago");
    }
    let basic = charge().header("authorization", &format!("Basic {token}"));
    for missing in [charge(), basic, charge().bearer("")] {
        assert_eq!(not_accepted(missing).await, ("missing".into(), "Bearer".into()));
    }
    let twice = charge().bearer(&token).bearer(&token);
    assert_eq!(not_accepted(twice).await, ("invalid".into(), INVALID.into()));
    assert_eq!(api.balance(&user).await, 5);
    let for_others =
        with(good, json!({"aud": "somebody", "iss": "https://issuer.example", "iat": now()}));
    charge().bearer(&hs256(&for_others, SECRET)).ok(201).await;
}

#[tokio::test]
async fn tokens_are_checked_by_the_keys_of_a_jwks_file() {
    // The key of RFC 8037, appendix A. PKCS #8: a fixed prefix and the 32 key bytes.
    let key = json!({"kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo", "kid": "one"});
    let mut private = vec![0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20];
    private.extend(
        BASE64_URL_SAFE_NO_PAD.decode("nWGxne_9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A").unwrap(),
    );
    let backend = Backend::new().await;
    let file = backend.redis.folder().join("jwks.json");
    std::fs::write(&file, json!({"keys": [key]}).to_string()).unwrap();
    let instance = backend.serve_all(&[("RUSHGATE_JWT_JWKS_FILE", file.to_str().unwrap())]).await;
    let api = instance.client();
    let claims = json!({"sub": "ann", "exp": now() + 600, "scope": "shop"});
    let by = |kid: &str, claims: &Value| {
        let mut header = Header::new(Algorithm::EdDSA);
        header.kid = Some(kid.to_owned());
        jsonwebtoken::encode(&header, claims, &EncodingKey::from_ed_der(&private)).unwrap()
    };
    api.charge("ann", 5).bearer(&by("one", &claims)).ok(201).await;
    let expired = with(claims.clone(), json!({"exp": now() - 1}));
    for bad in
        [by("two", &claims), by("one", &expired), hs256(&claims, SECRET), token("ann", "shop")]
    {
        api.charge("ann", 5).bearer(&bad).refused(401, "unauthenticated").await;
    }
}

/// The challenge for a token that is not accepted.
const INVALID: &str = "Bearer error=\"invalid_token\"";

/// Reason and challenge of a 401.
async fn not_accepted(call: Call) -> (String, String) {
    let answer = call.send().await;
    assert_eq!((answer.status, answer.code()), (401, "unauthenticated"), "{}", answer.body);
    let challenge = answer.headers["www-authenticate"].to_str().unwrap().to_owned();
    (text(&answer.body, "reason"), challenge)
}
