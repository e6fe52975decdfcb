//! Checks answers against `/openapi.json`: whether the description allows them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use serde_json::Value;

use super::HttpAnswer;

/// The description served by an instance.
pub struct Description(pub Value);

impl Description {
    /// Fetched once per instance.
    pub async fn of(base: &str) -> Arc<Self> {
        static KNOWN: Mutex<Option<HashMap<String, Arc<Description>>>> = Mutex::new(None);
        if let Some(known) = KNOWN.lock().unwrap().get_or_insert_default().get(base) {
            return known.clone();
        }
        let json =
            reqwest::get(format!("{base}/openapi.json")).await.unwrap().json().await.unwrap();
        let description = Arc::new(Self(json));
        KNOWN.lock().unwrap().get_or_insert_default().insert(base.to_owned(), description.clone());
        description
    }

    /// The operation of a request, if the description has one.
    pub fn operation(&self, method: &str, path: &str) -> Option<&Value> {
        let path = path.split('?').next()?;
        let fits = |template: &str| {
            let (mut want, mut have) = (template.split('/'), path.split('/'));
            loop {
                match (want.next(), have.next()) {
                    (None, None) => return true,
                    (Some(name), Some(given)) if name == given => {}
                    (Some(name), Some(given)) if name.starts_with('{') && !given.is_empty() => {}
                    _ => return false,
                }
            }
        };
        let paths = self.0["paths"].as_object()?;
        let fitting = paths.iter().filter(|(template, _)| fits(template));
        let known = fitting.filter_map(|(template, item)| {
            Some((template, item.get(method.to_ascii_lowercase())?))
        });
        known
            .min_by_key(|(template, _)| template.matches('{').count())
            .map(|(_, operation)| operation)
    }

    /// Fails if the description does not allow the answer.
    pub fn check(&self, method: &str, path: &str, answer: &HttpAnswer) {
        let what = format!("{method} {path} {}", answer.status);
        let Some(operation) = self.operation(method, path) else {
            let outside = path.starts_with("/docs") || path.starts_with("/openapi.json");
            assert!(outside || matches!(answer.status, 404 | 405), "{what} is not described");
            return;
        };
        // The path is another route's: `GET /v1/orders/quote` is no order.
        if answer.status == 405 {
            return;
        }
        let described = &operation["responses"][answer.status.to_string()];
        assert!(described.is_object(), "{what} is not described: {}", answer.body);
        if described["content"].is_object() {
            let media_type = answer.headers["content-type"].to_str().unwrap();
            let schema = &described["content"][media_type]["schema"];
            assert!(schema.is_object(), "{what} is not described as {media_type}");
            // A refusal must be one that the route lists, with exactly its members.
            if let Err(wrong) = self.conforms(schema, &answer.body) {
                panic!("{what}: {wrong} in {}", answer.body);
            }
        } else {
            assert!(!answer.headers.contains_key("content-type"), "{what} has a body");
        }
        for name in described["headers"].as_object().into_iter().flatten().map(|(name, _)| name) {
            // Not every limit has a policy that clients are told.
            let optional =
                ["Idempotent-Replayed", "RateLimit", "RateLimit-Policy"].contains(&name.as_str());
            assert!(optional || answer.headers.contains_key(name), "{what} lacks {name}");
        }
    }

    fn resolve<'a>(&'a self, schema: &'a Value) -> &'a Value {
        match schema["$ref"].as_str() {
            Some(target) => self
                .0
                .pointer(target.trim_start_matches('#'))
                .expect("a reference that leads somewhere"),
            None => schema,
        }
    }

    /// The members that a schema defines, including those of its parts.
    fn properties<'a>(&'a self, schema: &'a Value) -> HashMap<&'a str, &'a Value> {
        let schema = self.resolve(schema);
        let parts = schema["allOf"].as_array().into_iter().flatten();
        let mut known: HashMap<&str, &Value> =
            parts.flat_map(|part| self.properties(part)).collect();
        known.extend(
            schema["properties"]
                .as_object()
                .into_iter()
                .flatten()
                .map(|(name, it)| (name.as_str(), it)),
        );
        known
    }

    /// Whether a value conforms to a schema: types, enum values and exactly its members.
    fn conforms(&self, schema: &Value, value: &Value) -> Result<(), String> {
        let schema = self.resolve(schema);
        if let Some(parts) = schema["oneOf"].as_array() {
            let fits: Vec<Result<(), String>> =
                parts.iter().map(|part| self.conforms(part, value)).collect();
            let one = fits.iter().any(Result::is_ok);
            return if one { Ok(()) } else { Err(format!("none of these fits: {fits:?}")) };
        }
        for missing in schema["required"].as_array().into_iter().flatten() {
            if value.get(missing.as_str().unwrap_or_default()).is_none() {
                return Err(format!("{missing} is missing"));
            }
        }
        for part in schema["allOf"].as_array().into_iter().flatten() {
            self.conforms_in_part(part, value)?;
        }
        let known = self.properties(schema);
        for (name, member) in value.as_object().into_iter().flatten() {
            // A map describes the values of all its members at once.
            let of_all = Some(&schema["additionalProperties"]).filter(|schema| schema.is_object());
            let schema = known.get(name.as_str()).copied().or(of_all);
            let schema = schema.ok_or_else(|| format!("{name} is not described"))?;
            self.conforms(schema, member).map_err(|wrong| format!("{name}: {wrong}"))?;
        }
        for element in value.as_array().into_iter().flatten() {
            self.conforms(&schema["items"], element)?;
        }
        if let Some(words) = schema["enum"].as_array()
            && !words.contains(value)
        {
            return Err(format!("{value} is none of {words:?}"));
        }
        if is_of_type(&schema["type"], value) {
            Ok(())
        } else {
            Err(format!("{value} is no {}", schema["type"]))
        }
    }

    /// Like [`Self::conforms`], but for one of several parts: other members may belong to other
    /// parts.
    fn conforms_in_part(&self, part: &Value, value: &Value) -> Result<(), String> {
        let part = self.resolve(part);
        for missing in part["required"].as_array().into_iter().flatten() {
            if value.get(missing.as_str().unwrap_or_default()).is_none() {
                return Err(format!("{missing} is missing"));
            }
        }
        Ok(())
    }
}

fn is_of_type(types: &Value, value: &Value) -> bool {
    let one = |name: &str| match name {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "integer" => value.is_i64() || value.is_u64(),
        "number" => value.is_number(),
        "boolean" => value.is_boolean(),
        "null" => value.is_null(),
        _ => false,
    };
    match types {
        Value::String(name) => one(name),
        Value::Array(names) => names.iter().any(|name| name.as_str().is_some_and(one)),
        _ => true,
    }
}
