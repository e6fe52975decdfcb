//! Checks that the description is complete, without a server.

use super::refusals::REFUSALS;
use super::*;
use crate::http::problem::Code;
use std::collections::BTreeSet;

fn described() -> serde_json::Value {
    let (_, description) = crate::http::routes().split_for_parts();
    complete(description, ChargeScope::Shop)
}

fn operations(api: &serde_json::Value) -> Vec<&serde_json::Value> {
    let paths = api["paths"].as_object().unwrap();
    paths.values().flat_map(|item| item.as_object().unwrap().values()).collect()
}

fn references(value: &serde_json::Value, found: &mut BTreeSet<String>) {
    match value {
        serde_json::Value::Object(map) => {
            for (key, value) in map {
                match value.as_str() {
                    Some(target) if key == "$ref" => drop(found.insert(target.to_owned())),
                    _ => references(value, found),
                }
            }
        }
        serde_json::Value::Array(list) => list.iter().for_each(|value| references(value, found)),
        _ => {}
    }
}

#[test]
fn every_operation_has_its_row_of_refusals_and_every_row_its_operation() {
    let api = described();
    let described: BTreeSet<&str> =
        operations(&api).iter().map(|it| it["operationId"].as_str().unwrap()).collect();
    let rows: BTreeSet<&str> = REFUSALS.iter().map(|(id, _)| *id).collect();
    assert_eq!(described, rows);
    assert_eq!(rows.len(), 27);
}

#[test]
fn nothing_dangles() {
    let api = described();
    let mut used = BTreeSet::new();
    references(&api, &mut used);
    let dangling: Vec<_> =
        used.iter().filter(|it| api.pointer(it.trim_start_matches('#')).is_none()).collect();
    assert_eq!(dangling, Vec::<&String>::new());
}

#[test]
fn no_schema_contradicts_itself() {
    // The generator describes an inlined number with a description as a number and an object.
    for (name, schema) in described()["components"]["schemas"].as_object().unwrap() {
        for (member, property) in schema["properties"].as_object().into_iter().flatten() {
            assert!(property.get("allOf").is_none(), "{name}.{member}");
        }
    }
}

#[test]
fn every_post_takes_a_key_and_every_answer_has_a_body() {
    let api = described();
    for (path, item) in api["paths"].as_object().unwrap() {
        // A quote changes nothing, so there is nothing to repeat.
        if let Some(post) = item.get("post").filter(|_| path != "/v1/orders/quote") {
            let parameters = post["parameters"].as_array().unwrap();
            assert!(parameters.iter().any(|it| it["name"] == "Idempotency-Key"), "{path}");
        }
        for (method, operation) in item.as_object().unwrap() {
            for (status, response) in operation["responses"].as_object().unwrap() {
                let has_body = status != "304";
                assert_eq!(response["content"].is_object(), has_body, "{method} {path} {status}");
            }
        }
    }
}

#[test]
fn each_refusal_has_an_example_of_its_own_with_the_members_that_it_promises() {
    let api = described();
    for code in Code::ALL {
        let example = &api["components"]["examples"][code.as_str()]["value"];
        assert_eq!(example["code"], code.as_str());
        let schema = &api["components"]["schemas"][format!("{code:?}Problem")];
        let members: BTreeSet<&str> =
            example.as_object().unwrap().keys().map(String::as_str).collect();
        let required: BTreeSet<&str> =
            schema["required"].as_array().unwrap().iter().map(|it| it.as_str().unwrap()).collect();
        let known: BTreeSet<&str> =
            schema["properties"].as_object().unwrap().keys().map(String::as_str).collect();
        assert!(required.is_subset(&members) && members.is_subset(&known), "{code:?}: {members:?}");
        for (name, member) in schema["properties"].as_object().unwrap() {
            assert!(
                member["type"].is_string() || member["$ref"].is_string(),
                "{code:?}: {name} has no type"
            );
        }
    }
}

#[test]
fn end_users_are_named_for_charges_only_where_they_may() {
    let scopes = |charge_scope| {
        let (_, description) = crate::http::routes().split_for_parts();
        let api = complete(description, charge_scope);
        api["paths"]["/v1/users/{user}/wallet/charges"]["post"]["security"][0]["token"].clone()
    };
    assert_eq!(scopes(ChargeScope::Shop), json!(["shop", "service", "admin"]));
    assert_eq!(scopes(ChargeScope::Service), json!(["service", "admin"]));
}
