//! The API description and its page. That answers conform to it is checked by [`Call::send`] for
//! every answer of these tests.

use rushgate::http::problem::Code;
use serde_json::json;

use super::*;

#[tokio::test]
async fn the_description_has_every_route_of_the_contract() {
    let api = Api::shared().await;
    let description = api.get("/openapi.json").ok(200).await;
    assert!(text(&description, "openapi").starts_with("3."));
    let mut described = BTreeSet::new();
    for (path, item) in description["paths"].as_object().unwrap() {
        described.extend(
            item.as_object()
                .unwrap()
                .keys()
                .map(|method| format!("{} {path}", method.to_uppercase())),
        );
    }
    let contract = "GET /v1/products, GET /v1/products/{id}, GET /v1/products/popular, PUT /v1/products/{id}, \
        POST /v1/products/{id}/stock-adjustments, POST /v1/products/popular/refresh, GET /v1/users/{user}/wallet, \
        POST /v1/users/{user}/wallet/charges, GET /v1/users/{user}/wallet/entries, PUT /v1/coupon-templates/{id}, \
        GET /v1/coupon-templates, GET /v1/coupon-templates/{id}, POST /v1/coupon-templates/{id}/coupons, \
        GET /v1/coupon-templates/{id}/coupons, GET /v1/users/{user}/coupons, GET /v1/orders, POST /v1/orders, GET /v1/orders/{id}, GET /v1/users/{user}/orders, \
        POST /v1/orders/{id}/cancel, POST /v1/orders/{id}/confirm, POST /v1/orders/quote, GET /v1/live, GET /v1/admin/status, GET /v1/admin/metrics, GET /v1/admin/audits, POST /v1/admin/audits";
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
            assert!(parameters.iter().all(
                |it| it["schema"].is_object() && (it["in"] != "path" || it["required"] == true)
            ));
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
        assert!(
            description.pointer(target.trim_start_matches('#')).is_some(),
            "{target} leads nowhere"
        );
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

/// Every operation: its method and path, and its description.
fn operations(description: &Value) -> Vec<(String, &Value)> {
    let paths = description["paths"].as_object().unwrap().iter();
    paths
        .flat_map(|(path, item)| {
            item.as_object()
                .unwrap()
                .iter()
                .map(move |(method, it)| (format!("{method} {path}"), it))
        })
        .collect()
}

#[tokio::test]
async fn every_route_says_who_may_call_it() {
    let api = Api::shared().await;
    let description = api.get("/openapi.json").ok(200).await;
    let mut public = BTreeSet::new();
    for (what, operation) in operations(&description) {
        match &operation["security"].as_array().unwrap()[..] {
            [] => drop(public.insert(what)),
            [one] => {
                let scopes = one["token"].as_array().unwrap();
                assert!(scopes.contains(&json!("admin")), "{what}: {scopes:?}");
            }
            more => panic!("{what}: {more:?}"),
        }
    }
    let without_token = "get /v1/coupon-templates, get /v1/coupon-templates/{id}, get /v1/live, get /v1/products, \
        get /v1/products/popular, get /v1/products/{id}";
    assert_eq!(Vec::from_iter(public).join(", "), without_token);
}

#[tokio::test]
async fn refusals_are_told_apart_by_their_code() {
    let api = Api::shared().await;
    let description = api.get("/openapi.json").ok(200).await;
    let problem = &description["components"]["schemas"]["Problem"];
    assert_eq!(problem["discriminator"]["propertyName"], "code");
    assert_eq!(problem["oneOf"].as_array().unwrap().len(), Code::ALL.len());
    let refused = |member: &str, code: &str| {
        let schema = problem["discriminator"]["mapping"][code].as_str().unwrap();
        let schema = description.pointer(schema.trim_start_matches('#')).unwrap();
        assert_eq!(schema["properties"]["code"]["enum"], json!([code]));
        schema["properties"][member].clone()
    };
    assert_eq!(refused("limit", "balance-limit-exceeded")["type"], "integer");
    assert_eq!(refused("template_id", "sold-out")["$ref"], "#/components/schemas/ShopId");
    assert_eq!(refused("template_id", "insufficient-stock"), Value::Null);
    for (what, operation) in operations(&description) {
        for (status, response) in operation["responses"].as_object().unwrap() {
            let Some(content) = response["content"].get("application/problem+json") else {
                continue;
            };
            let refs = content["schema"]["oneOf"].as_array().cloned();
            let refs = refs.unwrap_or_else(|| vec![content["schema"].clone()]);
            let described: BTreeSet<String> = refs
                .iter()
                .map(|it| {
                    let target = it["$ref"].as_str().unwrap().trim_start_matches('#');
                    let schema = description.pointer(target).unwrap();
                    schema["properties"]["code"]["enum"][0].as_str().unwrap().to_owned()
                })
                .collect();
            let shown: BTreeSet<String> = content["examples"]
                .as_object()
                .unwrap()
                .values()
                .map(|it| {
                    let target = it["$ref"].as_str().unwrap().trim_start_matches('#');
                    text(&description.pointer(target).unwrap()["value"], "code")
                })
                .collect();
            assert_eq!(shown, described, "{what} {status}");
        }
    }
}

#[tokio::test]
async fn a_202_names_what_was_made() {
    let api = Api::shared().await;
    let description = api.get("/openapi.json").ok(200).await;
    let mut ids = Vec::new();
    for (_, operation) in operations(&description) {
        if let Some(accepted) = operation["responses"].get("202") {
            let schema = text(&accepted["content"]["application/json"]["schema"], "$ref");
            let schema = description.pointer(schema.trim_start_matches('#')).unwrap();
            assert_eq!(schema["required"].as_array().unwrap().len(), 2, "{schema}");
            assert_eq!(schema["required"][0], "status");
            ids.push(schema["required"][1].as_str().unwrap().to_owned());
        }
    }
    ids.sort();
    let expected = [
        "charge_id",
        "coupon_id",
        "order_id",
        "order_id",
        "order_id",
        "product_id",
        "product_id",
        "template_id",
    ];
    assert_eq!(ids, expected);
}

#[tokio::test]
async fn schemas_are_such_that_generated_clients_are_handy() {
    let api = Api::shared().await;
    let description = api.get("/openapi.json").ok(200).await;
    let schemas = description["components"]["schemas"].as_object().unwrap();
    assert_eq!(schemas["EntryKind"]["enum"], json!(["charge", "payment", "refund"]));
    assert_eq!(
        schemas["WalletEntry"]["properties"]["kind"]["$ref"],
        "#/components/schemas/EntryKind"
    );
    assert!(!description.to_string().contains("int64"), "nothing here is as large as 2^53");
    let lists: Vec<(&str, &Value)> =
        schemas.iter().filter_map(|(name, it)| Some((name.strip_prefix("List_")?, it))).collect();
    assert_eq!(lists.len(), 6);
    for (element, list) in lists {
        let items = &list["properties"]["data"]["items"];
        assert_eq!(*items, json!({ "$ref": format!("#/components/schemas/{element}") }));
    }
    assert_eq!(description["info"]["title"], "Rushgate");
}

/// The examples exist in the demo (`rushgate seed`), so each can be tried as it is.
#[tokio::test]
async fn examples_of_path_parameters_are_of_the_demo() {
    let backend = Backend::new().await;
    let instance = backend.serve_all(&[]).await;
    let seeded = tokio::process::Command::new(env!("CARGO_BIN_EXE_rushgate"))
        .arg("seed")
        .env("RUSHGATE_REDIS_URL", backend.redis.url())
        .env("RUSHGATE_DATABASE_URL", &backend.database_url)
        .output()
        .await
        .unwrap();
    assert!(seeded.status.success(), "{seeded:?}");
    let api = instance.client();
    let description = api.get("/openapi.json").ok(200).await;
    let mut tried = 0;
    for (path, item) in description["paths"].as_object().unwrap() {
        for operation in item.as_object().unwrap().values() {
            let parameters = operation["parameters"].as_array().cloned().unwrap_or_default();
            for parameter in parameters.iter().filter(|it| it["in"] == "path") {
                assert!(parameter["example"].is_string(), "{path}: {parameter}");
            }
        }
        let Some(get) = item.get("get") else { continue };
        let parameters = get["parameters"].as_array().cloned().unwrap_or_default();
        let Some(parameter) = parameters.iter().find(|it| it["in"] == "path") else { continue };
        let concrete =
            path.replace(&format!("{{{}}}", text(parameter, "name")), &text(parameter, "example"));
        api.get(&concrete).admin().ok(200).await;
        tried += 1;
    }
    assert!(tried >= 7, "{tried}");
}

/// Redocly and Spectral report nothing, and two generated clients compile: see tests/openapi.
#[tokio::test]
async fn linters_and_generators_of_clients_take_the_description() {
    let api = Api::shared().await;
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let tools = root.join("target/openapi");
    assert!(
        tools.join("node_modules").exists(),
        "the linters are missing: ./dev test installs them"
    );
    let description = api.get("/openapi.json").ok(200).await;
    let folder = crate::servers::tempfile();
    let file = folder.path.join("openapi.json");
    std::fs::write(&file, description.to_string()).unwrap();
    let mut check = tokio::process::Command::new(root.join("tests/openapi/check"));
    let output = check.args([&file, &tools]).kill_on_drop(true).output().await.unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}\n{}", String::from_utf8_lossy(&output.stderr));
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
    assert!(page.contains("<title>Rushgate API</title>"), "{page}");
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
