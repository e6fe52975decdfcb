//! The query of a catalogue list: a page (`limit`, `after`), or the elements with certain ids
//! (`ids`).

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use utoipa::IntoParams;

use super::extract::{Identifier, Page, Query};
use super::fields::ShopId;
use super::problem::Problem;
use crate::domain::limits::MAX_PAGE;

/// Which elements of a list are asked for.
#[derive(Debug)]
pub enum Selection<A> {
    Page(Page<A>),
    /// In the order asked, each once.
    Ids(Vec<A>),
}

impl<S: Send + Sync, A: Identifier + PartialEq> FromRequestParts<S> for Selection<A> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        Self::of(Query::of(&parts.uri)?)
    }
}

impl<A: Identifier + PartialEq> Selection<A> {
    fn of(mut query: Query) -> Result<Self, Problem> {
        let Some(ids) = query.take("ids") else {
            let page = query.page()?;
            query.finish()?;
            return Ok(Self::Page(page));
        };
        for other in ["after", "limit"] {
            if query.take(other).is_some() {
                return Err(Problem::invalid(other, "cannot be combined with ids"));
            }
        }
        query.finish()?;
        parse_ids("ids", &ids, MAX_PAGE).map(Self::Ids)
    }
}

/// Ids separated by commas, in their order and each once; `field` is the parameter's name.
pub fn parse_ids<A: Identifier + PartialEq>(
    field: &str,
    text: &str,
    most: usize,
) -> Result<Vec<A>, Problem> {
    if text.split(',').count() > most {
        return Err(Problem::invalid(field, format_args!("may name at most {most} ids")));
    }
    let mut ids = Vec::new();
    for id in text.split(',') {
        let id = A::from_text(id).ok_or_else(|| {
            Problem::invalid(
                field,
                format_args!("must be ids separated by commas, each of them {}", A::RULE),
            )
        })?;
        if !ids.contains(&id) {
            ids.push(id);
        }
    }
    Ok(ids)
}

/// `ids`, for the OpenAPI description. [`super::openapi`] adds an example that is in the demo.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "read by the derive, for the OpenAPI description")]
pub struct IdsParam {
    /// Instead of a page: the elements with these ids, in this order. Unknown ids are left out. Not
    /// together with `limit` or `after`.
    #[param(style = Form, explode = false, value_type = Option<Vec<ShopId>>, min_items = 1, max_items = 100)]
    ids: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::ProductId;

    fn selected(query: &str) -> Result<Selection<ProductId>, String> {
        let query = Query::of(&format!("/?{query}").parse().unwrap()).unwrap();
        Selection::of(query).map_err(|problem| {
            serde_json::to_value(problem).unwrap()["field"].as_str().unwrap().to_owned()
        })
    }

    fn ids(query: &str) -> Vec<String> {
        match selected(query) {
            Ok(Selection::Ids(ids)) => ids.into_iter().map(String::from).collect(),
            other => panic!("{query}: {other:?}"),
        }
    }

    #[test]
    fn ids_keep_their_order_and_stand_once() {
        assert_eq!(ids("ids=b,a,b,c,a"), ["b", "a", "c"]);
        assert_eq!(ids("ids=b%2Ca"), ["b", "a"]);
        let many = |n: usize| (0..n).map(|n| format!("p{n}")).collect::<Vec<_>>().join(",");
        assert_eq!(ids(&format!("ids={}", many(100))).len(), 100);
        assert_eq!(selected(&format!("ids={}", many(101))).unwrap_err(), "ids");
        for bad in ["", ",", "a,", ",a", "a,,b", "a, b", "a;b", "a/b"] {
            assert_eq!(
                selected(&format!("ids={bad}").replace(' ', "%20")).unwrap_err(),
                "ids",
                "{bad}"
            );
        }
    }

    #[test]
    fn ids_and_a_page_exclude_each_other() {
        assert_eq!(selected("ids=a&limit=5").unwrap_err(), "limit");
        assert_eq!(selected("after=a&ids=a").unwrap_err(), "after");
        assert_eq!(selected("ids=a&page=1").unwrap_err(), "page");
        assert!(matches!(
            selected("limit=5&after=a"),
            Ok(Selection::Page(Page { limit: 5, after: Some(_) }))
        ));
    }
}
