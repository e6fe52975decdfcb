//! The catalogue by ids, and conditional reads of it.

use serde_json::json;

use super::*;

/// Each list of the catalogue, with three of its ids, and an id that does not exist.
async fn shelves(api: &Api) -> [(&'static str, [String; 3], String); 2] {
    let mut products = Vec::new();
    let mut templates = Vec::new();
    for _ in 0..3 {
        products.push(api.product(1_000, 5).await);
        templates.push(api.template(json!({})).await);
    }
    [
        ("/v1/products", products.try_into().unwrap(), fresh("nothing")),
        ("/v1/coupon-templates", templates.try_into().unwrap(), fresh("nothing")),
    ]
}

#[tokio::test]
async fn the_catalogue_is_read_by_ids_in_the_order_asked() {
    let api = Api::shared().await;
    for (path, [a, b, c], nothing) in shelves(&api).await {
        let list = api.get(&format!("{path}?ids={c},{nothing},{a},{c},{b}")).ok(200).await;
        assert_eq!(column(&list, "id"), [&c, &a, &b], "each once, unknown ones left out");
        assert_eq!(list["next"], Value::Null);
        assert_eq!(list["data"][1], api.get(&format!("{path}/{a}")).ok(200).await);
        assert_eq!(api.get(&format!("{path}?ids={nothing}")).ok(200).await["data"], json!([]));
        let escaped = api.get(&format!("{path}?ids={b}%2C{a}")).ok(200).await;
        assert_eq!(column(&escaped, "id"), [&b, &a]);
    }
}

#[tokio::test]
async fn at_most_100_ids_are_read_at_once() {
    let api = Api::shared().await;
    for (path, ids, _) in shelves(&api).await {
        let list = |n: usize| {
            let unknown = (ids.len()..n).map(|n| format!("nothing-{n}"));
            unknown.chain(ids.iter().cloned()).collect::<Vec<_>>().join(",")
        };
        let hundred = api.get(&format!("{path}?ids={}", list(100))).ok(200).await;
        assert_eq!(column(&hundred, "id"), [&ids[0], &ids[1], &ids[2]]);
        assert_eq!(api.get(&format!("{path}?ids={}", list(101))).refused_field().await, "ids");
    }
}

#[tokio::test]
async fn ids_that_are_not_acceptable_are_refused() {
    let api = Api::shared().await;
    for path in ["/v1/products", "/v1/coupon-templates"] {
        for bad in ["", ",", "a,", ",a", "a,,b", "a,%20b", "a%2Fb", &"x".repeat(65)] {
            assert_eq!(
                api.get(&format!("{path}?ids={bad}")).refused_field().await,
                "ids",
                "{path} {bad}"
            );
        }
        assert_eq!(api.get(&format!("{path}?ids=a&limit=5")).refused_field().await, "limit");
        assert_eq!(api.get(&format!("{path}?ids=a&after=a")).refused_field().await, "after");
        assert_eq!(api.get(&format!("{path}?ids=a&ids=b")).refused_field().await, "ids");
        assert_eq!(api.get(&format!("{path}/a?ids=a")).refused_field().await, "ids");
    }
}

/// Every read of the catalogue; a page would change while other tests add to it.
async fn reads(api: &Api) -> Vec<String> {
    let mut reads = Vec::new();
    for (path, [a, b, _], _) in shelves(api).await {
        reads.extend([format!("{path}/{a}"), format!("{path}?ids={b},{a}")]);
        reads.push(format!("{path}?limit=1&after={}", &a[..a.len() - 1]));
    }
    reads
}

fn tag(answer: &HttpAnswer) -> String {
    answer.headers["etag"].to_str().unwrap().to_owned()
}

#[tokio::test]
async fn what_the_client_has_is_not_sent_again() {
    let backend = Backend::new().await;
    let (one, other) = (backend.serve_all(&[]).await, backend.serve_all(&[]).await);
    let (api, there) = (one.client(), other.client());
    for path in reads(&api).await {
        let whole = api.get(&path).send().await;
        let tag = tag(&whole);
        assert_eq!((whole.status, tag.len()), (200, 34), "{path}");
        assert!(tag.starts_with('"') && tag.ends_with('"'), "strong: {tag}");
        assert_eq!(whole.headers["cache-control"], "no-store");
        for has in [tag.clone(), format!("W/{tag}"), format!("\"other\", {tag}"), "*".to_owned()] {
            for api in [&api, &there] {
                let answer = api.get(&path).header("if-none-match", &has).send().await;
                assert_eq!(
                    (answer.status, &answer.headers["etag"]),
                    (304, &whole.headers["etag"]),
                    "{path} {has}"
                );
                assert_eq!(answer.headers["cache-control"], "no-store");
                assert!(!answer.headers.contains_key("content-type"));
            }
        }
        for has in ["\"other\"", "nonsense", tag.trim_matches('"')] {
            let answer = api.get(&path).header("if-none-match", has).send().await;
            assert_eq!((answer.status, &answer.body), (200, &whole.body), "{path} {has}");
        }
        let two = api.get(&path).header("if-none-match", "\"other\"").header("if-none-match", &tag);
        assert_eq!(two.send().await.status, 304, "two lines are one list");
    }
    // The description's check has no HEAD.
    let path = format!("{}/v1/products", api.base);
    let head = reqwest::Client::new().head(&path).send().await.unwrap();
    let get = reqwest::get(&path).await.unwrap();
    assert_eq!((head.status().as_u16(), &head.headers()["etag"]), (200, &get.headers()["etag"]));
    let nothing = api.get("/v1/products/nothing").header("if-none-match", "*");
    nothing.refused(404, "product-not-found").await;
}

#[tokio::test]
async fn a_change_changes_the_tag() {
    let api = Api::shared().await;
    let (user, id) = (api.user(10_000).await, api.product(1_000, 5).await);
    let template = api.template(json!({"max_issued": 1})).await;
    let product = format!("/v1/products/{id}");
    let before = api.get(&product).send().await;
    api.order(&user, &[(&id, 1)], json!({})).ok(201).await;
    for path in [&product, &format!("/v1/products?ids={id}")] {
        let after = api.get(path).header("if-none-match", &tag(&before)).send().await;
        assert_eq!(after.status, 200, "{path}");
        assert_ne!(tag(&after), tag(&before));
    }
    let path = format!("/v1/coupon-templates/{template}");
    let open = api.get(&path).send().await;
    api.coupon(&template, &user).await;
    let sold_out = api.get(&path).header("if-none-match", &tag(&open)).send().await;
    assert_eq!((sold_out.status, &sold_out.body["state"]), (200, &json!("sold_out")));
}

#[tokio::test]
async fn a_template_whose_window_opens_gets_another_tag() {
    let api = Api::shared().await;
    let opens = jiff::Timestamp::now() + jiff::SignedDuration::from_secs(2);
    let id = api.template(json!({"issue_from": opens.to_string()})).await;
    let path = format!("/v1/coupon-templates/{id}");
    let scheduled = api.get(&path).send().await;
    assert_eq!(scheduled.body["state"], "scheduled");
    let open = until("the window is open", async || {
        let answer = api.get(&path).header("if-none-match", &tag(&scheduled)).send().await;
        (answer.status == 200).then_some(answer)
    })
    .await;
    assert_eq!(open.body["state"], "open", "nothing was put meanwhile");
}

#[tokio::test]
async fn caches_may_keep_the_catalogue_only_where_the_setting_allows_it() {
    let backend = Backend::new().await;
    let instance = backend.serve_all(&[("RUSHGATE_CATALOGUE_MAX_AGE_SECS", "30")]).await;
    let api = instance.client();
    let user = api.user(100).await;
    for path in reads(&api).await {
        let whole = api.get(&path).send().await;
        assert_eq!(whole.headers["cache-control"], "public, max-age=30", "{path}");
        let unchanged = api.get(&path).header("if-none-match", &tag(&whole)).send().await;
        assert_eq!(
            (unchanged.status, &unchanged.headers["cache-control"]),
            (304, &whole.headers["cache-control"])
        );
    }
    api.call("POST", "/v1/products/popular/refresh").admin().ok(200).await;
    for path in [
        "/v1/products/nothing",
        "/v1/products?ids=",
        "/v1/products/popular",
        &format!("/v1/users/{user}/wallet"),
    ] {
        let answer = api.get(path).service().send().await;
        assert_eq!(answer.headers["cache-control"], "no-store", "{path}");
        assert!(!answer.headers.contains_key("etag"), "{path}");
    }
}
