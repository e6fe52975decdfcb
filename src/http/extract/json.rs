//! JSON objects of bodies, and what is wrong with one that does not fit.

use serde::de::{DeserializeOwned, IgnoredAny};

use crate::http::fields::Object;
use crate::http::problem::Problem;

/// Reads a JSON object. Text that is not JSON is malformed; JSON of another shape is an invalid
/// field, named by its path.
pub fn parse_json<T: DeserializeOwned>(body: &[u8]) -> Result<T, Problem> {
    let text =
        std::str::from_utf8(body).map_err(|_| Problem::malformed("The body is not UTF-8."))?;
    if let Ok(Object(parsed)) = serde_json::from_str(text) {
        return Ok(parsed);
    }
    // Once more, to find out what is wrong and where.
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let parsed = serde_path_to_error::deserialize::<_, Object<T>>(&mut deserializer);
    // Parsed a third time, because neither error tells whether the text is JSON: a wrong shape may
    // be found before broken syntax, and serde_json reports some numbers as wrong syntax that are
    // only too large.
    if (parsed.is_err() || deserializer.end().is_err())
        && let Err(error) = serde_json::from_str::<IgnoredAny>(text)
    {
        return Err(Problem::malformed(format!("The body is not JSON: {error}.")));
    }
    match parsed {
        Ok(object) => Ok(object.0),
        Err(error) => Err(wrong_shape(&error)),
    }
}

fn wrong_shape(error: &serde_path_to_error::Error<serde_json::Error>) -> Problem {
    let path = error.path().to_string();
    let path = path.trim_end_matches('?').trim_end_matches('.');
    let text = error.inner().to_string();
    let message = text.rsplit_once(" at line ").map_or(text.as_str(), |(message, _)| message);
    if message.starts_with("duplicate field ") {
        return Problem::malformed(format!("The body has a {message}."));
    }
    // The path of an unknown member ends with its name, that of a missing one with the object that
    // lacks it.
    let (member, rule) = match message.strip_prefix("missing field `") {
        Some(rest) => (Some(rest.trim_end_matches('`')), "is missing"),
        None if message.starts_with("unknown field `") => (None, "is not known here"),
        None => (None, message),
    };
    Problem::invalid(join_path(path, member), rule)
}

/// The path of a member of the object at `path`. It is cut to a sensible length, because a client
/// can invent names.
fn join_path(path: &str, member: Option<&str>) -> String {
    const MAX_FIELD_CHARS: usize = 200;
    let joined = match member {
        None => path.to_owned(),
        Some(member) if path.is_empty() => member.to_owned(),
        Some(member) => format!("{path}.{member}"),
    };
    joined.chars().take(MAX_FIELD_CHARS).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct NoMembers {}

    #[test]
    fn an_invented_name_does_not_make_an_endless_answer() {
        let body = format!("{{\"{}\":1}}", "x".repeat(10_000));
        let problem =
            serde_json::to_value(parse_json::<NoMembers>(body.as_bytes()).unwrap_err()).unwrap();
        assert_eq!(problem["field"].as_str().unwrap().len(), 200);
    }
}
