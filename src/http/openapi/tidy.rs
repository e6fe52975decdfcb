//! Additions that attributes of handlers and types cannot express: examples of path parameters,
//! lists that refer to their element, number formats.

use serde_json::{Value, json};

use crate::domain::limits::MAX_EXACT;

/// The order that `rushgate seed` places.
const AN_ORDER: &str = "01985d2c-5d00-7000-8000-000000000001";

pub fn operation(path: &str, operation: &mut Value) {
    let parameters = operation.get_mut("parameters").and_then(Value::as_array_mut);
    for parameter in parameters.into_iter().flatten() {
        let name = parameter["name"].as_str().unwrap_or_default();
        if parameter["in"] == "path" {
            let (example, about) = of_the_demo(path, name);
            parameter["example"] = json!(example);
            parameter["description"] = json!(about);
        } else if let Some(example) = query_of_the_demo(path, name) {
            parameter["example"] = example;
        }
    }
    // OpenAPI requires a description of every response, even where the schema says everything.
    for response in
        operation["responses"].as_object_mut().into_iter().flat_map(|all| all.values_mut())
    {
        if response.get("description").and_then(Value::as_str).unwrap_or_default().is_empty() {
            response["description"] = json!("OK");
        }
    }
}

/// Examples are ids that `rushgate seed` creates, so that calls can be tried as they are.
fn of_the_demo(path: &str, name: &str) -> (&'static str, &'static str) {
    match (path.split('/').nth(2), name) {
        (_, "user") => ("user-1", "The user."),
        (Some("products"), _) => ("tumbler", "The product."),
        (Some("coupon-templates"), _) => ("welcome", "The coupon template."),
        _ => (AN_ORDER, "The order: the `order_id` that placing it has answered."),
    }
}

fn query_of_the_demo(path: &str, name: &str) -> Option<Value> {
    match (path.split('/').nth(2), name) {
        (Some("products"), "ids") => Some(json!(["tumbler", "americano"])),
        (Some("coupon-templates"), "ids") => Some(json!(["rush-100", "welcome"])),
        (Some("live"), "products") => Some(json!(["tumbler", "americano"])),
        (Some("live"), "templates") => Some(json!(["rush-100", "welcome"])),
        (_, "user_id") => Some(json!("user-1")),
        (_, "product_id") => Some(json!("tumbler")),
        (_, "template_id") => Some(json!("welcome")),
        _ => None,
    }
}

/// Completes all schemas of the document.
pub fn schemas(api: &mut Value) {
    join_order(&mut api["components"]["schemas"]);
    for (name, schema) in api["components"]["schemas"].as_object_mut().into_iter().flatten() {
        if let Some(element) = name.strip_prefix("List_") {
            schema["properties"]["data"]["items"] =
                json!({ "$ref": format!("#/components/schemas/{element}") });
        }
        // The name of the type in generated clients.
        schema["title"] = json!(name);
    }
    numbers(api);
}

/// The members of a part that is not always there are optional members of the order. (The derived
/// schema has the whole part or null.)
fn join_order(schemas: &mut Value) {
    let part = schemas.as_object_mut().and_then(|all| all.remove("PaidOutside"));
    let parts = schemas["Order"]["allOf"].take();
    let order = parts.as_array().into_iter().flatten().find(|it| it["properties"].is_object());
    let (Some(part), Some(order)) = (part, order) else { return };
    let mut order = order.clone();
    order["description"] = schemas["Order"]["description"].clone();
    for (name, member) in part["properties"].as_object().into_iter().flatten() {
        order["properties"][name] = member.clone();
    }
    schemas["Order"] = order;
}

/// All numbers are below 2^53. Those that fit into 32 bits have the format `int32`; the others have
/// none, because `int64` becomes a type of its own in generated clients of languages whose numbers
/// are doubles.
fn numbers(value: &mut Value) {
    match value {
        Value::Object(members) => {
            let kind = members.get("type");
            let is = |kind: &Value| kind == "integer";
            if kind.is_some_and(|kind| {
                is(kind) || kind.as_array().is_some_and(|kinds| kinds.iter().any(is))
            }) {
                bound(members);
            }
            members.values_mut().for_each(numbers);
        }
        Value::Array(list) => list.iter_mut().for_each(numbers),
        _ => {}
    }
}

fn bound(schema: &mut serde_json::Map<String, Value>) {
    if schema.contains_key("enum") {
        return;
    }
    let exact = i64::try_from(MAX_EXACT).unwrap_or(i64::MAX);
    let most = schema.entry("maximum").or_insert_with(|| json!(exact)).as_i64().unwrap_or(exact);
    let least = schema.entry("minimum").or_insert_with(|| json!(-exact)).as_i64().unwrap_or(-exact);
    if i32::try_from(most).is_ok() && i32::try_from(least).is_ok() {
        schema.insert("format".to_owned(), json!("int32"));
    } else {
        schema.remove("format");
    }
}
