//! The router without its servers: requests that are refused before the gate is called, and
//! requests that need no gate.

use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::{Method, Request, StatusCode};
use axum::response::Response;
use serde_json::Value;
use tower::{Service, ServiceExt};

use super::server::RequestService;
use super::*;
use crate::config::{Ack, ChargeScope, Limits};
use crate::domain::UserId;

const SECRET: &[u8] = b"0123456789abcdef0123456789abcdef";
const NOWHERE: &str = "postgres://postgres@127.0.0.1:1/nowhere";
const ORDER: &str = "/v1/orders/01939e5a-7c2f-7b3e-9d54-8a1c6f2e0b47";

fn app() -> impl RequestService {
    service(Arc::new(api(&Limits::default(), BrowserPolicy::default())))
}

fn limited(limit: Duration, router: Router) -> impl RequestService {
    let mut middleware =
        Middleware::new(&api(&Limits::default(), BrowserPolicy::default()), Routes::new([]));
    middleware.limit = limit;
    Arc::new(middleware).over(router)
}

fn api(limits: &Limits, browser_policy: BrowserPolicy) -> Api {
    let pool = crate::truth::pool(NOWHERE, 1, Duration::from_millis(100)).unwrap();
    Api {
        gate: Arc::new(Gate::without_cells()),
        truth: Truth::new(pool, Duration::from_millis(100)),
        verifier: Arc::new(TokenVerifier::from_secret(SECRET)),
        settings: Settings {
            ack: Ack::Gate,
            charge_scope: ChargeScope::Shop,
            holds: HoldSettings { hold_secs: 600, pending_limit: 5 },
            request_timeout: Duration::from_secs(1),
            truth_timeout: Duration::from_millis(100),
            body_timeout: Duration::from_secs(10),
        },
        rates: Arc::new(Rates::new(limits)),
        concurrency: ConcurrencyLimits::new(limits, Duration::from_secs(1)),
        browser_policy,
        product_pages: Default::default(),
        live: Arc::new(Live::new(10)),
        refresh_popular: Arc::new(|_| Box::pin(async { Ok(()) })),
        audits: Arc::new(Audits::new(Arc::new(|_| Box::pin(async { Err("no servers".into()) })))),
        render_metrics: Arc::new(String::new),
        demo_shop: None,
        rabbitmq_connected: None,
    }
}

fn token(sub: &str, scope: &str) -> String {
    mint_token(SECRET, &UserId::parse(sub).unwrap(), scope, Duration::from_secs(60)).unwrap()
}

fn request(method: &str, uri: &str, token: Option<&str>, body: &str) -> Request<Body> {
    let mut request = Request::builder().method(method).uri(uri);
    if let Some(token) = token {
        request = request.header("authorization", format!("Bearer {token}"));
    }
    if !body.is_empty() {
        request = request.header("content-type", "application/json");
    }
    request.body(Body::from(body.to_owned())).unwrap()
}

async fn send(request: Request<Body>) -> Response {
    app().oneshot(request).await.unwrap()
}

async fn json(response: Response) -> Value {
    let body = axum::body::to_bytes(response.into_body(), usize::MAX).await.unwrap();
    serde_json::from_slice(&body).unwrap()
}

/// Status and code of a refusal, after checking that it is a complete problem.
async fn refused(request: Request<Body>) -> (u16, String) {
    let response = send(request).await;
    let status = response.status();
    assert_eq!(response.headers()["content-type"], "application/problem+json");
    let problem = json(response).await;
    assert_eq!(problem["status"], status.as_u16());
    let code = problem["code"].as_str().unwrap().to_owned();
    assert_eq!(problem["type"], format!("/problems/{code}"));
    assert!(problem["title"].is_string() && problem["detail"].is_string());
    (status.as_u16(), code)
}

async fn refused_field(method: &str, uri: &str, token: Option<&str>, body: &str) -> String {
    let response = send(request(method, uri, token, body)).await;
    assert_eq!(response.status(), StatusCode::UNPROCESSABLE_ENTITY, "{method} {uri} {body}");
    let problem = json(response).await;
    assert_eq!(problem["code"], "invalid-field");
    problem["field"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn unknown_routes_and_methods_are_problems() {
    for uri in ["/v1", "/v1/nothing", "/v1/products/", "/v1/products/a/b", "/docs/nothing"] {
        assert_eq!(
            refused(request("GET", uri, None, "")).await,
            (404, "route-not-found".into()),
            "{uri}"
        );
    }
    let bad_token = request("POST", "/v1/nothing", Some("x"), "{");
    assert_eq!(refused(bad_token).await.0, 404);
    let response = send(request("DELETE", "/v1/products/mug", None, "")).await;
    let mut allowed: Vec<_> = response.headers()["allow"].to_str().unwrap().split(',').collect();
    allowed.sort_unstable();
    assert_eq!(allowed, ["GET", "HEAD", "PUT"]);
    let deleting = request("DELETE", "/v1/orders", None, "");
    assert_eq!(refused(deleting).await, (405, "method-not-allowed".into()));
    assert_eq!(refused(request("PATCH", "/openapi.json", None, "")).await.0, 405);
}

#[tokio::test]
async fn every_route_that_needs_a_token_says_so_before_it_looks_at_anything_else() {
    let routes = [
        ("PUT", "/v1/products/mug"),
        ("POST", "/v1/products/mug/stock-adjustments"),
        ("POST", "/v1/products/popular/refresh"),
        ("GET", "/v1/users/u/wallet"),
        ("POST", "/v1/users/u/wallet/charges"),
        ("GET", "/v1/users/u/wallet/entries?limit=0"),
        ("PUT", "/v1/coupon-templates/t"),
        ("POST", "/v1/coupon-templates/t%20/coupons"),
        ("GET", "/v1/coupon-templates/t%20/coupons?limit=0"),
        ("GET", "/v1/users/u/coupons"),
        ("GET", "/v1/orders?limit=0"),
        ("POST", "/v1/orders"),
        ("GET", "/v1/orders/no-uuid"),
        ("GET", "/v1/users/u/orders"),
        ("POST", "/v1/orders/no-uuid/cancel"),
        ("GET", "/v1/admin/status"),
        ("GET", "/v1/admin/metrics"),
        ("GET", "/v1/admin/audits"),
        ("POST", "/v1/admin/audits"),
    ];
    for (method, uri) in routes {
        for token in [None, Some("nonsense"), Some("a.b.c")] {
            let response = send(request(method, uri, token, "{")).await;
            assert_eq!(response.status(), 401, "{method} {uri}");
            let (challenge, reason) = match token {
                None => ("Bearer", "missing"),
                Some(_) => ("Bearer error=\"invalid_token\"", "invalid"),
            };
            assert_eq!(response.headers()["www-authenticate"], challenge);
            let problem = json(response).await;
            assert_eq!(
                (&problem["code"], &problem["reason"]),
                (&"unauthenticated".into(), &reason.into())
            );
        }
        let none = token("u", "read write");
        assert_eq!(
            refused(request(method, uri, Some(&none), "{")).await,
            (403, "forbidden".into()),
            "{uri}"
        );
    }
}

#[tokio::test]
async fn a_strange_authorization_header_is_no_token() {
    let good = token("u", "admin");
    for value in [good.clone(), format!("Basic {good}"), "Bearer".into(), "Bearer ".into()] {
        let request = Request::get("/v1/admin/status").header("authorization", value);
        assert_eq!(refused(request.body(Body::empty()).unwrap()).await.0, 401);
    }
    let twice = Request::get("/v1/admin/status")
        .header("authorization", format!("Bearer {good}"))
        .header("authorization", format!("Bearer {good}"));
    assert_eq!(refused(twice.body(Body::empty()).unwrap()).await.0, 401);
}

#[tokio::test]
async fn staff_routes_need_the_scope_admin() {
    for scope in ["shop", "service", "shop service"] {
        let token = token("u", scope);
        for (method, uri) in [
            ("PUT", "/v1/products/mug"),
            ("POST", "/v1/products/mug/stock-adjustments"),
            ("POST", "/v1/products/popular/refresh"),
            ("PUT", "/v1/coupon-templates/t"),
            ("GET", "/v1/admin/status"),
            ("GET", "/v1/admin/metrics"),
            ("GET", "/v1/admin/audits"),
            ("POST", "/v1/admin/audits"),
        ] {
            let refusal = refused(request(method, uri, Some(&token), "")).await;
            assert_eq!(refusal, (403, "forbidden".into()), "{method} {uri} {scope}");
        }
    }
}

#[tokio::test]
async fn an_end_user_does_not_see_that_others_exist() {
    let shop = token("me", "shop");
    for (method, uri, body) in [
        ("GET", "/v1/users/you/wallet", ""),
        ("GET", "/v1/users/you/wallet/entries", ""),
        ("GET", "/v1/users/you/coupons", ""),
        ("GET", "/v1/users/you/orders", ""),
        ("POST", "/v1/users/you/wallet/charges", r#"{"amount":1}"#),
        ("POST", "/v1/coupon-templates/t/coupons", r#"{"user_id":"you"}"#),
        ("POST", "/v1/orders", r#"{"user_id":"you","items":[{"product_id":"a","quantity":1}]}"#),
    ] {
        let refusal = refused(request(method, uri, Some(&shop), body)).await;
        assert_eq!(refusal, (404, "user-not-found".into()), "{method} {uri}");
    }
}

#[tokio::test]
async fn paths_and_queries_are_checked() {
    let admin = token("me", "admin");
    let admin = Some(admin.as_str());
    for (uri, field) in [
        ("/v1/products?limit=0", "limit"),
        ("/v1/products?limit=101", "limit"),
        ("/v1/products?limit=abc", "limit"),
        ("/v1/products?limit=", "limit"),
        ("/v1/products?limit=%2B5", "limit"),
        ("/v1/products?limit=1.0", "limit"),
        ("/v1/products?limit=1&limit=1", "limit"),
        ("/v1/products?after=a%20b", "after"),
        ("/v1/products?after=", "after"),
        ("/v1/products?page=2", "page"),
        ("/v1/products/mug?limit=5", "limit"),
        ("/v1/products/popular?limit=5", "limit"),
        ("/v1/users/u/wallet?x", "x"),
        ("/v1/products/a%20b", "id"),
        ("/v1/products/%ED%95%9C", "id"),
        ("/v1/products/a%2Fb", "id"),
        ("/v1/users/u%00/wallet", "user"),
        ("/v1/users/u/coupons?status=gone", "status"),
        ("/v1/users/u/coupons?after=5", "after"),
        ("/v1/users/u/wallet/entries?after=-1", "after"),
        ("/v1/users/u/orders?after=x", "after"),
        ("/v1/orders/1", "id"),
        ("/v1/orders/01939e5a7c2f7b3e9d548a1c6f2e0b47", "id"),
        ("/v1/orders/%7B01939e5a-7c2f-7b3e-9d54-8a1c6f2e0b47%7D", "id"),
    ] {
        assert_eq!(refused_field("GET", uri, admin, "").await, field, "{uri}");
    }
    let long = "x".repeat(65);
    assert_eq!(refused_field("GET", &format!("/v1/products/{long}"), None, "").await, "id");
    for uri in [
        "/v1/products/%FF",
        "/v1/products/%zz",
        "/v1/products/a%2",
        "/v1/products?after=%FF",
        "/v1/products?%=1",
    ] {
        let refusal = refused(request("GET", uri, None, "")).await;
        assert_eq!(refusal, (400, "malformed-request".into()), "{uri}");
    }
}

#[tokio::test]
async fn bodies_are_checked() {
    let admin = token("me", "admin");
    let admin = Some(admin.as_str());
    for (method, uri, body, field) in [
        ("POST", "/v1/users/u/wallet/charges", r#"{"amount":1000001}"#, "amount"),
        ("POST", "/v1/users/u/wallet/charges", r#"{"amount":-1}"#, "amount"),
        ("POST", "/v1/users/u/wallet/charges", "[5]", ""),
        ("PUT", "/v1/products/mug", r#"{"name":"","price":100,"status":"on_sale"}"#, "name"),
        (
            "PUT",
            "/v1/products/mug",
            "{\"name\":\"a\\u0000\",\"price\":100,\"status\":\"on_sale\"}",
            "name",
        ),
        ("PUT", "/v1/products/mug", r#"{"name":"a","price":150,"status":"on_sale"}"#, "price"),
        ("PUT", "/v1/products/mug", r#"{"name":"a","price":0,"status":"on_sale"}"#, "price"),
        ("PUT", "/v1/products/mug", r#"{"name":"a","price":100,"status":"gone"}"#, "status"),
        (
            "PUT",
            "/v1/products/mug",
            r#"{"name":"a","price":100,"status":{"on_sale":null}}"#,
            "status",
        ),
        (
            "PUT",
            "/v1/products/mug",
            r#"{"name":"a","price":100,"status":"on_sale","stock":-1}"#,
            "stock",
        ),
        ("POST", "/v1/products/mug/stock-adjustments", r#"{"delta":1.5}"#, "delta"),
        ("POST", "/v1/products/mug/stock-adjustments", r#"{"delta":1000000001}"#, "delta"),
        ("POST", "/v1/products/mug/stock-adjustments", r#"{"delta":1,"reason":""}"#, "reason"),
        ("POST", "/v1/coupon-templates/t/coupons", "{}", "user_id"),
        ("POST", "/v1/coupon-templates/t/coupons", r#"{"user_id":"a b"}"#, "user_id"),
        ("POST", "/v1/products/popular/refresh", r#"{"now":true}"#, "now"),
    ] {
        assert_eq!(refused_field(method, uri, admin, body).await, field, "{body}");
    }
    assert_eq!(refused_field("POST", "/v1/orders?dry_run=1", admin, "{}").await, "dry_run");
    let long = format!(r#"{{"name":"{}","price":100,"status":"on_sale"}}"#, "한".repeat(201));
    assert_eq!(refused_field("PUT", "/v1/products/mug", admin, &long).await, "name");
    for body in ["", "{", "nonsense"] {
        let charge = request("POST", "/v1/users/u/wallet/charges", admin, body);
        assert_eq!(refused(charge).await, (400, "malformed-request".into()), "{body}");
    }
}

#[tokio::test]
async fn a_body_must_say_that_it_is_json_and_be_small() {
    let admin = token("me", "admin");
    let charge = |content_type: Option<&str>, body: Body| {
        let mut request = Request::post("/v1/users/u/wallet/charges")
            .header("authorization", format!("Bearer {admin}"));
        if let Some(content_type) = content_type {
            request = request.header("content-type", content_type);
        }
        request.body(body).unwrap()
    };
    for bad in [
        None,
        Some("text/plain"),
        Some("application/x-www-form-urlencoded"),
        Some("application/jsonx"),
    ] {
        let refusal = refused(charge(bad, Body::from("{}"))).await;
        assert_eq!(refusal, (415, "unsupported-media-type".into()), "{bad:?}");
    }
    for good in ["application/json", "Application/JSON; charset=utf-8"] {
        assert_eq!(refused(charge(Some(good), Body::from("{}"))).await.0, 422);
    }
    let large = " ".repeat(16 * 1024 + 1);
    let chunks = futures::stream::iter(
        large.as_bytes().to_vec().into_iter().map(|byte| Ok::<_, std::io::Error>(vec![byte])),
    );
    for body in [Body::from(large), Body::from_stream(chunks)] {
        assert_eq!(
            refused(charge(Some("application/json"), body)).await,
            (413, "body-too-large".into())
        );
    }
    let just = format!("{}{{}}", " ".repeat(16 * 1024 - 2));
    assert_eq!(refused(charge(Some("application/json"), Body::from(just))).await.0, 422);
}

#[tokio::test]
async fn idempotency_keys_are_printable_and_single() {
    let admin = token("me", "admin");
    let with = |keys: &[&[u8]]| {
        let mut request = Request::post(format!("{ORDER}/cancel"))
            .header("authorization", format!("Bearer {admin}"));
        for key in keys {
            request = request.header("idempotency-key", *key);
        }
        request.body(Body::empty()).unwrap()
    };
    let long = vec![b'k'; 256];
    for bad in [&[b"".as_slice()][..], &[&long], &["열쇠".as_bytes()], &[b"a\tb"], &[b"a", b"b"]]
    {
        let response = send(with(bad)).await;
        assert_eq!(response.status(), 422);
        assert_eq!(json(response).await["field"], "Idempotency-Key");
    }
}

#[tokio::test]
async fn without_postgresql_what_needs_it_is_refused_for_now() {
    let response = send(request("GET", "/v1/products/popular", None, "")).await;
    assert_eq!(response.status(), 503);
    assert_eq!(response.headers()["retry-after"], "1");
    assert_eq!(json(response).await["code"], "truth-unavailable");
}

/// These futures are moved for every request, and kept in memory while the gate decides.
#[tokio::test]
async fn the_futures_of_a_request_are_small() {
    fn of_four<A, B, C, D, F>(_: impl Fn(A, B, C, D) -> F) -> usize {
        size_of::<F>()
    }
    fn of_five<A, B, C, D, E, F>(_: impl Fn(A, B, C, D, E) -> F) -> usize {
        size_of::<F>()
    }
    let middleware =
        Middleware::new(&api(&Limits::default(), BrowserPolicy::default()), Routes::new([]));
    let answering =
        Arc::new(middleware).over(Router::new()).call(request("GET", "/v1/products", None, ""));
    for (what, bytes, most) in [
        ("around the handlers", size_of_val(&*answering), 1_800),
        ("issue_coupon", of_five(coupons::issue_coupon), 1_400),
        ("charge_wallet", of_five(wallets::charge_wallet), 1_024),
        ("place_order", of_four(orders::place_order), 1_900),
    ] {
        assert!(bytes <= most, "{what}: {bytes} bytes");
    }
}

#[tokio::test]
async fn a_panic_is_an_answer() {
    // Any panic inside of the middleware is caught, whatever the handler does.
    let router = Router::new()
        .route("/", axum::routing::get(async || -> StatusCode { panic!("on purpose") }));
    let response = limited(Duration::from_secs(1), router)
        .oneshot(request("GET", "/", None, ""))
        .await
        .unwrap();
    assert_eq!(response.status(), 500);
    assert_eq!(json(response).await["code"], "internal-error");
}

#[tokio::test]
async fn a_handler_that_hangs_is_ended() {
    let app = || {
        let router =
            Router::new().route("/", axum::routing::any(std::future::pending::<StatusCode>));
        limited(Duration::from_millis(10), router)
    };
    for (method, code) in [("GET", "gate-unavailable"), ("POST", "outcome-unknown")] {
        let response = app().oneshot(request(method, "/", None, "")).await.unwrap();
        assert_eq!(json(response).await["code"], code);
    }
}

#[tokio::test]
async fn the_description_and_its_page_are_served_from_here() {
    let description = json(send(request("GET", "/openapi.json", None, "")).await).await;
    assert!(description["openapi"].as_str().unwrap().starts_with("3."));
    let response = send(request("GET", "/docs", None, "")).await;
    assert_eq!(response.headers()["location"], "/docs/");
    for file in
        ["", "index.html", "swagger-initializer.js", "swagger-ui.css", "swagger-ui-bundle.js"]
    {
        let response = send(request("GET", &format!("/docs/{file}"), None, "")).await;
        assert_eq!(response.status(), 200, "{file}");
        if file == "swagger-initializer.js" || file.is_empty() {
            let body = axum::body::to_bytes(response.into_body(), usize::MAX).await.unwrap();
            let text = String::from_utf8(body.to_vec()).unwrap();
            assert!(!text.contains("http:") && !text.contains("https:"), "{text}");
            assert!(file.is_empty() || text.contains("\"/openapi.json\""), "{text}");
        }
    }
}

#[tokio::test]
async fn metrics_name_routes_not_paths() {
    let recorder = metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder();
    let handle = recorder.handle();
    let guard = ::metrics::set_default_local_recorder(&recorder);
    send(request("GET", "/v1/products/a%20b", None, "")).await;
    send(request("GET", "/nowhere/17", None, "")).await;
    send(
        Request::builder()
            .method(Method::from_bytes(b"BREW").unwrap())
            .uri("/v1/orders")
            .body(Body::empty())
            .unwrap(),
    )
    .await;
    drop(guard);
    let text = handle.render();
    assert!(
        text.contains(
            r#"route="/v1/products/{id}",method="GET",status="422",code="invalid-field""#
        ),
        "{text}"
    );
    assert!(
        text.contains(r#"route="none",method="GET",status="404",code="route-not-found""#),
        "{text}"
    );
    assert!(text.contains(r#"route="/v1/orders",method="other",status="405""#), "{text}");
}

#[tokio::test]
async fn a_user_is_told_how_much_is_left_and_then_when_to_come_again() {
    let limits = Limits { user_rate: "2/10s".parse().unwrap(), ..Limits::default() };
    let app = service(Arc::new(api(&limits, BrowserPolicy::default())));
    let ask = async |scope: &str| {
        let request = request("GET", "/v1/users/u/wallet?x=1", Some(&token("u", scope)), "");
        let response = app.clone().oneshot(request).await.unwrap();
        let header =
            |name: &str| response.headers().get(name).map(|v| v.to_str().unwrap().to_owned());
        (
            response.status().as_u16(),
            header("ratelimit"),
            header("ratelimit-policy"),
            header("retry-after"),
        )
    };
    let policy = Some("\"user\";q=2;w=10".to_owned());
    let standing = |r, t| Some(format!("\"user\";r={r};t={t}"));
    assert_eq!(ask("shop").await, (422, standing(1, 5), policy.clone(), None));
    assert_eq!(
        ask("none").await,
        (403, standing(0, 10), policy.clone(), None),
        "whatever the scope"
    );
    let (status, left, of, again) = ask("shop").await;
    assert_eq!((status, left, of), (429, standing(0, 10), policy));
    assert!(again.is_some_and(|secs| (1..=5).contains(&secs.parse().unwrap())));
    for scope in ["service", "admin"] {
        assert_eq!(ask(scope).await, (422, None, None, None), "{scope} acts for many");
    }
}

#[tokio::test]
async fn an_address_is_counted_before_anything_else() {
    let limits = Limits { address_rate: "2/60s".parse().unwrap(), ..Limits::default() };
    let app = service(Arc::new(api(&limits, BrowserPolicy::default())));
    let ask = async |address: &str, path: &str| {
        let mut request = request("GET", path, Some("nonsense"), "");
        request.extensions_mut().insert(server::Peer(address.parse().unwrap()));
        app.clone().oneshot(request).await.unwrap().status().as_u16()
    };
    assert_eq!(ask("192.0.2.1", "/v1/users/u/wallet").await, 401);
    assert_eq!(ask("192.0.2.1", "/nowhere").await, 404);
    assert_eq!(ask("192.0.2.1", "/openapi.json").await, 429);
    assert_eq!(ask("192.0.2.2", "/openapi.json").await, 200);
}

#[tokio::test]
async fn browsers_are_told_to_guess_and_keep_nothing() {
    let header =
        |response: &Response, name: &str| response.headers()[name].to_str().unwrap().to_owned();
    for (uri, policy) in [("/v1/nowhere", "default-src 'none'"), ("/docs/", "default-src 'self'")] {
        let response = send(request("GET", uri, None, "")).await;
        assert_eq!(header(&response, "x-content-type-options"), "nosniff");
        assert_eq!(header(&response, "cache-control"), "no-store");
        assert_eq!(header(&response, "referrer-policy"), "no-referrer");
        assert!(header(&response, "content-security-policy").starts_with(policy), "{uri}");
        assert!(!response.headers().contains_key("strict-transport-security"));
    }
    let app = service(Arc::new(api(
        &Limits::default(),
        BrowserPolicy { tls: true, ..BrowserPolicy::default() },
    )));
    let response = app.oneshot(request("GET", "/openapi.json", None, "")).await.unwrap();
    assert_eq!(header(&response, "strict-transport-security"), "max-age=31536000");
}

#[tokio::test]
async fn the_storefront_is_there_only_where_it_is_on() {
    let shop = [
        ("GET", "/shop/"),
        ("GET", "/shop"),
        ("POST", "/shop/token"),
        ("POST", "/shop/rivals"),
        ("GET", "/assets/shop/main.js"),
    ];
    for (method, uri) in shop {
        let refusal = refused(request(method, uri, None, "{}")).await;
        assert_eq!(refusal, (404, "route-not-found".into()), "{method} {uri}");
    }
    for uri in ["/console/", "/assets/console/main.js", "/assets/common/base.css"] {
        let response = send(request("GET", uri, None, "")).await;
        assert_eq!(response.status(), StatusCode::OK, "{uri}");
        let policy = response.headers()["content-security-policy"].to_str().unwrap();
        assert!(
            policy.starts_with("default-src 'self';") && !policy.contains("unsafe"),
            "{policy}"
        );
        let tag = response.headers()["etag"].clone();
        let mut again = request("GET", uri, None, "");
        again.headers_mut().insert("if-none-match", tag);
        assert_eq!(send(again).await.status(), StatusCode::NOT_MODIFIED, "{uri}");
    }
    for path in ["..%2fCargo.toml", "../Cargo.toml", "console/none.js", "vendor/preact.d.ts"] {
        assert_eq!(refused(request("GET", &format!("/assets/{path}"), None, "")).await.0, 404);
    }
}

#[tokio::test]
async fn pages_of_other_origins_may_call_only_where_the_settings_name_them() {
    let preflight = |origin: &str| {
        let asking =
            Request::builder().method(Method::OPTIONS).uri("/v1/orders").header("origin", origin);
        asking.header("access-control-request-method", "POST").body(Body::empty()).unwrap()
    };
    let closed = send(preflight("https://shop.example")).await;
    assert!(
        closed.status() == 405 && !closed.headers().contains_key("access-control-allow-origin")
    );
    let browser_policy = BrowserPolicy {
        cors_origins: vec!["https://shop.example".parse().unwrap()],
        ..BrowserPolicy::default()
    };
    let app = service(Arc::new(api(&Limits::default(), browser_policy)));
    let open = app.clone().oneshot(preflight("https://shop.example")).await.unwrap();
    assert_eq!(open.headers()["access-control-allow-origin"], "https://shop.example");
    let allowed = open.headers()["access-control-allow-headers"].to_str().unwrap();
    assert!(allowed.contains("idempotency-key") && allowed.contains("if-none-match"), "{allowed}");
    assert!(!open.headers().contains_key("access-control-allow-credentials"));
    for other in
        ["https://evil.example", "http://shop.example", "https://shop.example.evil.example", "null"]
    {
        let answer = app.clone().oneshot(preflight(other)).await.unwrap();
        assert!(!answer.headers().contains_key("access-control-allow-origin"), "{other}");
    }
}
