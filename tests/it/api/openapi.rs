//! The description and its page. That answers are as described, [`Call::send`] checks for every answer of these tests.

use super::*;

#[tokio::test]
async fn the_description_has_every_route_of_the_contract() {
    let api = Api::shared().await;
    let description = api.get("/openapi.json").ok(200).await;
    assert!(text(&description, "openapi").starts_with("3."));
    let mut described = BTreeSet::new();
    for (path, item) in description["paths"].as_object().unwrap() {
        described.extend(
            item.as_object().unwrap().keys().map(|method| format!("{} {path}", method.to_uppercase())),
        );
    }
    let contract = "GET /v1/products, GET /v1/products/{id}, GET /v1/products/popular, PUT /v1/products/{id}, \
        POST /v1/products/{id}/stock-adjustments, POST /v1/products/popular/refresh, GET /v1/users/{user}/wallet, \
        POST /v1/users/{user}/wallet/charges, GET /v1/users/{user}/wallet/entries, PUT /v1/coupon-templates/{id}, \
        GET /v1/coupon-templates, GET /v1/coupon-templates/{id}, POST /v1/coupon-templates/{id}/coupons, \
        GET /v1/users/{user}/coupons, POST /v1/orders, GET /v1/orders/{id}, GET /v1/users/{user}/orders, \
        POST /v1/orders/{id}/cancel, GET /v1/admin/status";
    let contract: BTreeSet<String> = contract.split(", ").map(str::to_owned).collect();
    assert_eq!(described, contract);
}

#[tokio::test]
async fn the_description_is_whole() {
    let api = Api::shared().await;
    let description = api.get("/openapi.json").ok(200).await;
    let schemes = &description["components"]["securitySchemes"];
    assert_eq!(schemes["token"]["scheme"], "bearer");
    let mut ids = BTreeSet::new();
    for (path, item) in description["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            let what = format!("{method} {path}");
            assert!(ids.insert(text(operation, "operationId")), "{what}: its id is there twice");
            assert!(!text(operation, "summary").is_empty(), "{what}");
            let parameters = operation["parameters"].as_array().cloned().unwrap_or_default();
            let in_path: BTreeSet<&str> = parameters
                .iter()
                .filter(|it| it["in"] == "path")
                .map(|it| it["name"].as_str().unwrap())
                .collect();
            let named: BTreeSet<&str> =
                path.split('/').filter_map(|it| it.strip_prefix('{')?.strip_suffix('}')).collect();
            assert_eq!(in_path, named, "{what}");
            assert!(
                parameters
                    .iter()
                    .all(|it| it["schema"].is_object() && (it["in"] != "path" || it["required"] == true))
            );
            let responses = operation["responses"].as_object().unwrap();
            assert!(responses.keys().any(|status| status.starts_with('2')), "{what}");
            for (status, response) in responses {
                assert!(!text(response, "description").is_empty(), "{what} {status}");
            }
        }
    }
    let mut references = Vec::new();
    collect_references(&description, &mut references);
    assert!(references.len() > 50);
    for target in references {
        assert!(description.pointer(target.trim_start_matches('#')).is_some(), "{target} leads nowhere");
    }
}

fn collect_references(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::Object(members) => {
            for (name, member) in members {
                match member.as_str() {
                    Some(target) if name == "$ref" => found.push(target.to_owned()),
                    _ => collect_references(member, found),
                }
            }
        }
        Value::Array(list) => list.iter().for_each(|element| collect_references(element, found)),
        _ => {}
    }
}

#[tokio::test]
async fn the_page_loads_nothing_from_elsewhere() {
    let api = Api::shared().await;
    let get = async |path: &str| {
        let answer = reqwest::get(format!("{}{path}", api.base)).await.unwrap();
        assert_eq!(answer.status(), 200, "{path}");
        let policy = answer.headers()["content-security-policy"].to_str().unwrap().to_owned();
        (policy, answer.text().await.unwrap())
    };
    let (policy, page) = get("/docs").await;
    assert!(policy.starts_with("default-src 'self'") && !policy.contains("http"), "{policy}");
    let mut files = Vec::new();
    for attribute in ["src=\"", "href=\""] {
        files.extend(page.split(attribute).skip(1).filter_map(|rest| rest.split('"').next()));
    }
    assert!(files.len() >= 4, "{page}");
    for file in files {
        assert!(!file.contains("//"), "{file} is elsewhere");
        get(&format!("/docs/{}", file.trim_start_matches("./"))).await;
    }
    let (_, start) = get("/docs/swagger-initializer.js").await;
    assert!(start.contains("\"/openapi.json\"") && !start.contains("://"), "{start}");
}
