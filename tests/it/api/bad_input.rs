//! Malformed and unacceptable input: it is refused as the contract says, changes nothing, and never
//! leads to a 500.

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::*;

/// A shop in which nothing may change any more.
struct Untouched {
    instance: Instance,
    backend: Backend,
    user: String,
    product: String,
    template: String,
    order: Value,
    before: Value,
}

impl Untouched {
    async fn new() -> Self {
        let backend = Backend::new().await;
        let instance = backend.serve_all(&[]).await;
        let api = instance.client();
        let (user, product) = (api.user(50_000).await, api.product(1_000, 10).await);
        let template = api.template(json!({})).await;
        api.coupon(&template, &user).await;
        let order = api.order(&user, &[(&product, 1)], json!({})).ok(201).await;
        let mut shop =
            Self { instance, backend, user, product, template, order, before: Value::Null };
        shop.before = shop.log().await;
        shop
    }

    /// Position of the log: every change adds an entry.
    async fn log(&self) -> Value {
        let status = self.instance.client().get("/v1/admin/status").admin().ok(200).await;
        json!([status["cells"][0]["epoch"], status["cells"][0]["seq"]])
    }

    async fn assert_unchanged(&self) {
        assert_eq!(self.log().await, self.before, "something was changed");
        self.backend.assert_audit_clean().await;
    }

    /// Every call with a body, and a valid body for it.
    fn calls(&self) -> Vec<(&'static str, String, Value)> {
        let items = json!([{"product_id": self.product, "quantity": 1}]);
        vec![
            ("POST", format!("/v1/users/{}/wallet/charges", self.user), json!({"amount": 5})),
            ("POST", "/v1/orders".into(), json!({"user_id": self.user, "items": items})),
            (
                "POST",
                format!("/v1/coupon-templates/{}/coupons", self.template),
                json!({"user_id": "someone"}),
            ),
            (
                "PUT",
                format!("/v1/products/{}", self.product),
                json!({"name": "n", "price": 100, "status": "on_sale"}),
            ),
            ("PUT", format!("/v1/coupon-templates/{}", self.template), template(json!({}))),
            (
                "POST",
                format!("/v1/products/{}/stock-adjustments", self.product),
                json!({"delta": 5}),
            ),
        ]
    }

    fn cancel_path(&self) -> String {
        format!("/v1/orders/{}/cancel", text(&self.order, "order_id"))
    }
}

#[tokio::test]
async fn a_body_that_is_no_json_object_with_the_known_members_is_refused() {
    let shop = Untouched::new().await;
    let api = shop.instance.client();
    for (method, path, good) in shop.calls() {
        let call = |body: &[u8]| api.call(method, &path).admin().raw(body.to_vec());
        let text = good.to_string();
        let doubled = text.replacen('{', &format!("{{{},", first_member(&good)), 1);
        for bad in [
            "",
            " ",
            "{",
            "nonsense",
            "{\"a\":}",
            "{'a':1}",
            "{\"a\":NaN}",
            "{\"a\":01}",
            &format!("{text}x"),
            &format!("{text},{text}"),
            &text[..text.len() - 1],
            &doubled,
            "\u{feff}{}",
        ] {
            call(bad.as_bytes()).refused(400, "malformed-request").await;
        }
        call(b"{\"user_id\":\"\xff\"}").refused(400, "malformed-request").await;
        for bad in ["null", "true", "5", "\"text\"", "[]", &format!("[{text}]"), "{}"] {
            call(bad.as_bytes()).refused(422, "invalid-field").await;
        }
        let unknown = with(good.clone(), json!({"surprise": 1}));
        assert_eq!(
            api.call(method, &path).admin().json(&unknown).refused_field().await,
            "surprise"
        );
        let deep = format!("{{\"x\":{}{}}}", "[".repeat(5_000), "]".repeat(5_000));
        call(deep.as_bytes()).send().await.assert_refused();
        for kind in [
            "text/plain",
            "application/x-www-form-urlencoded",
            "application/xml",
            "multipart/form-data",
            "",
        ] {
            let wrong = api.call(method, &path).admin().body(kind, &text);
            wrong.refused(415, "unsupported-media-type").await;
        }
        call(&vec![b' '; 16 * 1024 + 1]).refused(413, "body-too-large").await;
        let query = api.call(method, &format!("{path}?dry_run=1")).admin().json(&good);
        assert_eq!(query.refused_field().await, "dry_run");
    }
    let cancel = api.call("POST", &shop.cancel_path()).admin();
    assert_eq!(cancel.json(&json!({"reason": "x"})).refused_field().await, "reason");
    api.call("POST", &shop.cancel_path())
        .admin()
        .raw(b"{".to_vec())
        .refused(400, "malformed-request")
        .await;
    shop.assert_unchanged().await;
}

fn first_member(object: &Value) -> String {
    let (name, value) = object.as_object().unwrap().iter().next().unwrap();
    format!("{}:{value}", json!(name))
}

impl HttpAnswer {
    fn assert_refused(&self) {
        assert!((400..500).contains(&self.status), "{self:?}");
    }
}

#[tokio::test]
async fn a_number_that_is_not_whole_or_outside_its_bounds_is_refused() {
    let shop = Untouched::new().await;
    let api = shop.instance.client();
    let numbers = [
        "-1",
        "-0",
        "1.0",
        "0.5",
        "1e3",
        "1E3",
        "1e-3",
        "1e400",
        "-1e400",
        "9007199254740993",
        "9223372036854775807",
        "9223372036854775808",
        "18446744073709551615",
        "18446744073709551616",
        "340282366920938463463374607431768211456",
        "\"5\"",
        "true",
        "[5]",
        "{}",
        "{\"$\":5}",
    ];
    let (user, product) = (&shop.user, &shop.product);
    let order = |quantity: &str| {
        format!(
            r#"{{"user_id":"{user}","items":[{{"product_id":"{product}","quantity":{quantity}}}]}}"#
        )
    };
    let total = |total: &str| {
        format!(
            r#"{{"user_id":"{user}","items":[{{"product_id":"{product}","quantity":1}}],"expected_total":{total}}}"#
        )
    };
    let charge = |amount: &str| format!(r#"{{"amount":{amount}}}"#);
    let price = |price: &str| format!(r#"{{"name":"n","price":{price},"status":"on_sale"}}"#);
    let stock =
        |stock: &str| format!(r#"{{"name":"n","price":100,"status":"on_sale","stock":{stock}}}"#);
    let limit =
        |limit: &str| template(json!({"max_issued": "@"})).to_string().replace("\"@\"", limit);
    let minimum = |minimum: &str| {
        template(json!({"min_subtotal": "@"})).to_string().replace("\"@\"", minimum)
    };
    let value = |value: &str| {
        template(json!({"discount": {"type": "amount", "value": "@"}}))
            .to_string()
            .replace("\"@\"", value)
    };
    let max = |max: &str| {
        template(json!({"discount": {"type": "percent", "value": 5, "max": "@"}}))
            .to_string()
            .replace("\"@\"", max)
    };
    let charges = format!("/v1/users/{user}/wallet/charges");
    let put_product = format!("/v1/products/{}", fresh("new"));
    let put_template = format!("/v1/coupon-templates/{}", fresh("new"));
    type Row<'a> = (&'a str, &'a str, &'a str, &'a dyn Fn(&str) -> String, &'a [&'a str]);
    let rows: [Row; 9] = [
        ("POST", &charges, "amount", &charge, &["1000001", "null"]),
        ("POST", "/v1/orders", "items[0].quantity", &order, &["0", "1001", "null"]),
        ("POST", "/v1/orders", "expected_total", &total, &["50000000000001"]),
        ("PUT", &put_product, "price", &price, &["0", "50", "150", "1000000100", "null"]),
        ("PUT", &put_product, "stock", &stock, &["1000000001"]),
        ("PUT", &put_template, "max_issued", &limit, &["1000000001", "null"]),
        ("PUT", &put_template, "min_subtotal", &minimum, &["50000000000001"]),
        ("PUT", &put_template, "discount.value", &value, &["0", "1000000001", "null"]),
        ("PUT", &put_template, "discount.max", &max, &["0", "1000000001"]),
    ];
    for (method, path, field, body, more) in rows {
        for number in numbers.iter().chain(more) {
            let call = api.call(method, path).admin().raw(body(number).into_bytes());
            assert_eq!(call.refused_field().await, field, "{number}");
        }
    }
    let adjust = format!("/v1/products/{product}/stock-adjustments");
    for number in numbers
        .iter()
        .filter(|number| !["-1", "-0"].contains(*number))
        .chain(&["-1000000001", "1000000001"])
    {
        let call =
            api.call("POST", &adjust).admin().raw(format!(r#"{{"delta":{number}}}"#).into_bytes());
        assert_eq!(call.refused_field().await, "delta", "{number}");
    }
    shop.assert_unchanged().await;
}

#[tokio::test]
async fn lists_and_texts_have_their_lengths_and_ids_their_alphabet() {
    let shop = Untouched::new().await;
    let api = shop.instance.client();
    let order = |items: Value, more: Value| {
        api.post("/v1/orders", &with(json!({"user_id": shop.user, "items": items}), more)).admin()
    };
    let many: Vec<Value> =
        (0..51).map(|n| json!({"product_id": format!("p{n}"), "quantity": 1})).collect();
    let good = json!([{"product_id": shop.product, "quantity": 1}]);
    assert_eq!(order(json!([]), json!({})).refused_field().await, "items");
    assert_eq!(order(json!(many), json!({})).refused_field().await, "items");
    let sum = json!([{"product_id": shop.product, "quantity": 600}, {"product_id": shop.product, "quantity": 401}]);
    assert_eq!(order(sum, json!({})).refused_field().await, "items[1].quantity");
    let long = "x".repeat(65);
    let bad_ids =
        ["", " ", "a b", "a/b", "a\u{0}b", "a\nb", "한글", "a:b", "a{b}", "../a", long.as_str()];
    for bad in bad_ids {
        assert_eq!(
            order(json!([{"product_id": bad, "quantity": 1}]), json!({})).refused_field().await,
            "items[0].product_id"
        );
        assert_eq!(order(good.clone(), json!({"user_id": bad})).refused_field().await, "user_id");
        let issue = api.post(
            &format!("/v1/coupon-templates/{}/coupons", shop.template),
            &json!({"user_id": bad}),
        );
        assert_eq!(issue.admin().refused_field().await, "user_id");
    }
    for bad in [
        "",
        "5",
        "01939e5a7c2f7b3e9d548a1c6f2e0b47",
        "{01939e5a-7c2f-7b3e-9d54-8a1c6f2e0b47}",
        "urn:uuid:01939e5a-7c2f-7b3e-9d54-8a1c6f2e0b47",
        "01939e5a-7c2f-7b3e-9d54-8a1c6f2e0b4g",
    ] {
        assert_eq!(
            order(good.clone(), json!({"coupon_id": bad})).refused_field().await,
            "coupon_id"
        );
    }
    let name = "한".repeat(201);
    for bad in ["", name.as_str(), "a\u{0}b", "a\nb", "\u{7f}"] {
        let body = json!({"name": bad, "price": 100, "status": "on_sale"});
        assert_eq!(
            api.put(&format!("/v1/products/{}", shop.product), &body).admin().refused_field().await,
            "name"
        );
        let body = template(json!({"name": bad}));
        assert_eq!(
            api.put(&format!("/v1/coupon-templates/{}", shop.template), &body)
                .admin()
                .refused_field()
                .await,
            "name"
        );
        let body = json!({"delta": 1, "reason": bad});
        let adjust = api.post(&format!("/v1/products/{}/stock-adjustments", shop.product), &body);
        assert_eq!(adjust.admin().refused_field().await, "reason");
    }
    for (changes, field) in [
        (
            json!({"issue_until": "2020-01-01T00:00:00Z", "issue_from": "2020-01-01T00:00:00Z"}),
            "issue_until",
        ),
        (json!({"issue_from": "2026-02-30T00:00:00Z"}), "issue_from"),
        (json!({"issue_from": 5}), "issue_from"),
        (json!({"discount": {"type": "percent", "value": 101}}), "discount.value"),
        (json!({"discount": {"type": "amount", "value": 5, "max": 5}}), "discount.max"),
        (json!({"discount": {"type": "free", "value": 5}}), "discount.type"),
        (json!({"discount": "10%"}), "discount"),
    ] {
        let call =
            api.put(&format!("/v1/coupon-templates/{}", shop.template), &template(changes.clone()));
        assert_eq!(call.admin().refused_field().await, field, "{changes}");
    }
    shop.assert_unchanged().await;
}

#[tokio::test]
async fn a_path_or_query_that_is_not_acceptable_is_refused() {
    let shop = Untouched::new().await;
    let api = shop.instance.client();
    let long = "x".repeat(65);
    for bad in ["a%20b", "%ED%95%9C", "a%2Fb", "a%00", "a%0Ab", long.as_str()] {
        for (method, path, field) in [
            ("GET", format!("/v1/products/{bad}"), "id"),
            ("GET", format!("/v1/coupon-templates/{bad}"), "id"),
            ("GET", format!("/v1/users/{bad}/wallet"), "user"),
            ("POST", format!("/v1/users/{bad}/wallet/charges"), "user"),
            ("GET", format!("/v1/users/{bad}/wallet/entries"), "user"),
            ("GET", format!("/v1/users/{bad}/coupons"), "user"),
            ("GET", format!("/v1/users/{bad}/orders"), "user"),
            ("PUT", format!("/v1/products/{bad}"), "id"),
            ("POST", format!("/v1/products/{bad}/stock-adjustments"), "id"),
            ("PUT", format!("/v1/coupon-templates/{bad}"), "id"),
            ("POST", format!("/v1/coupon-templates/{bad}/coupons"), "id"),
            ("GET", format!("/v1/orders/{bad}"), "id"),
            ("POST", format!("/v1/orders/{bad}/cancel"), "id"),
        ] {
            assert_eq!(
                api.call(method, &path).admin().refused_field().await,
                field,
                "{method} {path}"
            );
        }
    }
    for path in [
        "/v1/products",
        "/v1/coupon-templates",
        "/v1/users/u/coupons",
        "/v1/users/u/orders",
        "/v1/users/u/wallet/entries",
    ] {
        for bad in ["0", "101", "-1", "1.0", "1e1", "", "%2B1", "99999999999999999999", "%20"] {
            let call = api.get(&format!("{path}?limit={bad}")).admin();
            assert_eq!(call.refused_field().await, "limit", "{path} {bad}");
        }
        assert_eq!(
            api.get(&format!("{path}?after=a%20b")).admin().refused_field().await,
            "after",
            "{path}"
        );
        assert_eq!(api.get(&format!("{path}?page=2")).admin().refused_field().await, "page");
        assert_eq!(
            api.get(&format!("{path}?limit=1&limit=1")).admin().refused_field().await,
            "limit"
        );
        api.get(&format!("{path}?after=%FF")).admin().refused(400, "malformed-request").await;
    }
    assert_eq!(api.get("/v1/users/u/coupons?status=lost").admin().refused_field().await, "status");
    let stranger = "/v1/users/u/coupons?after=01939e5a-7c2f-7b3e-9d54-8a1c6f2e0b47";
    assert_eq!(api.get(stranger).admin().refused_field().await, "after");
    for path in ["/v1/products/%FF", "/v1/products/%zz", "/v1/users/%C3%28/wallet"] {
        api.get(path).admin().refused(400, "malformed-request").await;
    }
    for path in [
        "/v1",
        "/v2/products",
        "/v1/products/",
        "/v1/products/a/b",
        "/v1/users/u",
        "/V1/products",
        "/v1//products",
    ] {
        api.get(path).admin().refused(404, "route-not-found").await;
    }
    shop.assert_unchanged().await;
}

#[tokio::test]
async fn a_method_that_a_route_does_not_know_is_refused_with_those_it_knows() {
    let shop = Untouched::new().await;
    let api = shop.instance.client();
    let described = Description::of(&api.base).await;
    for (path, item) in described.0["paths"].as_object().unwrap() {
        let path = path
            .replace("{id}", "01939e5a-7c2f-7b3e-9d54-8a1c6f2e0b47")
            .replace("{user}", &shop.user);
        for method in ["GET", "PUT", "POST", "DELETE", "PATCH", "OPTIONS", "BREW"] {
            // A product with that id is refused, but not the method.
            let refused_id = method == "PUT" && path == "/v1/products/popular";
            if item.get(method.to_lowercase()).is_none() && !refused_id {
                let answer = api.call(method, &path).admin().json(&json!({})).send().await;
                assert_eq!(
                    (answer.status, answer.code()),
                    (405, "method-not-allowed"),
                    "{method} {path}"
                );
                let allow = answer.headers["allow"].to_str().unwrap();
                for known in item.as_object().unwrap().keys() {
                    assert!(
                        allow.split(',').any(|it| it.trim().eq_ignore_ascii_case(known)),
                        "{method} {path}: {allow}"
                    );
                }
            }
        }
    }
    shop.assert_unchanged().await;
}

#[tokio::test]
async fn an_idempotency_key_is_printable_and_single() {
    let shop = Untouched::new().await;
    let api = shop.instance.client();
    let mut posts: Vec<(String, Option<Value>)> = shop
        .calls()
        .into_iter()
        .filter(|(method, ..)| *method == "POST")
        .map(|(_, path, body)| (path, Some(body)))
        .collect();
    posts.extend([(shop.cancel_path(), None), ("/v1/products/popular/refresh".into(), None)]);
    for (path, body) in posts {
        for bad in [vec![""], vec![&"k".repeat(256)], vec!["열쇠"], vec!["a\tb"], vec!["a", "a"]]
        {
            let mut call = api.call("POST", &path).admin();
            for key in bad {
                call = call.key(key);
            }
            if let Some(body) = &body {
                call = call.json(body);
            }
            assert_eq!(call.refused_field().await, "Idempotency-Key", "{path}");
        }
    }
    shop.assert_unchanged().await;
}

/// Sends raw bytes. Returns everything that the server sends until it closes.
async fn raw(api: &Api, head: &str, body: &[u8]) -> String {
    let mut stream = TcpStream::connect(api.base.trim_start_matches("http://")).await.unwrap();
    let auth = token("staff", "admin");
    let head =
        format!("{head}\r\nhost: x\r\nauthorization: Bearer {auth}\r\nconnection: close\r\n\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    let _ = stream.write_all(body).await; // the server may have answered and closed already
    let mut answer = Vec::new();
    let reading = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await;
    let _ = reading.expect("an answer"); // a reset after the answer does not matter
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn bodies_without_a_length_are_bounded_too() {
    let shop = Untouched::new().await;
    let api = shop.instance.client();
    let head = format!(
        "POST /v1/users/{}/wallet/charges HTTP/1.1\r\ncontent-type: application/json",
        shop.user
    );
    let chunked = format!("{head}\r\ntransfer-encoding: chunked");
    let mut body = Vec::new();
    for _ in 0..20 {
        body.extend_from_slice(b"400\r\n");
        body.extend(vec![b' '; 1_024]);
        body.extend_from_slice(b"\r\n");
    }
    body.extend_from_slice(b"c\r\n{\"amount\":5}\r\n0\r\n\r\n");
    let answer = raw(&api, &chunked, &body).await;
    assert!(answer.starts_with("HTTP/1.1 413 ") && answer.contains("body-too-large"), "{answer}");
    let answer = raw(&api, &chunked, b"zz\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
    let huge = format!("{head}\r\ncontent-length: 99999999999999");
    let answer = raw(&api, &huge, b"{").await;
    assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
    let answer = raw(&api, &format!("{head}\r\ncontent-length: -5"), b"{").await;
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
    shop.assert_unchanged().await;
}
