//! What reads of the catalogue have in common: `If-None-Match`, `ETag` and 304.

use serde_json::{Value, json};

/// The operations that answer with [`crate::http::etag`].
const READS: [&str; 4] = ["list_products", "get_product", "list_templates", "get_template"];

pub fn complete(operation: &mut Value) {
    if !READS.contains(&operation["operationId"].as_str().unwrap_or_default()) {
        return;
    }
    let parameters = &mut operation["parameters"];
    if !parameters.is_array() {
        *parameters = json!([]);
    }
    if let Some(parameters) = parameters.as_array_mut() {
        parameters.push(json!({
            "name": "If-None-Match",
            "in": "header",
            "description": "Tags of answers that the client has; if this answer is one of them, it is 304 without a body. \
                `*`: any answer.",
            "required": false,
            "schema": { "type": "string" },
        }));
    }
    let tag = json!({ "ETag": {
        "description": "The tag of this very body, on all instances",
        "schema": { "type": "string" },
    } });
    operation["responses"]["200"]["headers"] = tag.clone();
    operation["responses"]["304"] =
        json!({ "description": "The client has this answer", "headers": tag });
}
