//! The query of a request, and pages of lists.

use axum::extract::FromRequestParts;
use axum::http::Uri;
use axum::http::request::Parts;
use utoipa::IntoParams;

use super::path::{Identifier, identify};
use super::percent::percent_decode;
use crate::domain::limits::{DEFAULT_PAGE, MAX_PAGE};
use crate::http::problem::Problem;

/// The parameters of a query, each at most once. The caller takes those that it knows, then calls
/// [`Query::finish`].
#[derive(Debug)]
pub struct Query(Vec<(String, String)>);

impl Query {
    pub fn of(uri: &Uri) -> Result<Self, Problem> {
        let mut pairs: Vec<(String, String)> = Vec::new();
        for pair in uri.query().unwrap_or_default().split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let decode = |text: &str| percent_decode(&text.replace('+', " "));
            let (name, value) = (decode(name)?, decode(value)?);
            if pairs.iter().any(|(seen, _)| *seen == name) {
                return Err(Problem::invalid(name, "may be given once only"));
            }
            pairs.push((name, value));
        }
        Ok(Self(pairs))
    }

    /// The value of a parameter, if it was given.
    pub fn take(&mut self, name: &str) -> Option<String> {
        let place = self.0.iter().position(|(given, _)| given == name)?;
        Some(self.0.swap_remove(place).1)
    }

    /// Refuses the parameters that were not taken.
    pub fn finish(self) -> Result<(), Problem> {
        match self.0.into_iter().next() {
            Some((name, _)) => Err(Problem::invalid(name, "this query parameter is not known")),
            None => Ok(()),
        }
    }

    pub fn page<A: Identifier>(&mut self) -> Result<Page<A>, Problem> {
        let limit = match self.take("limit") {
            None => DEFAULT_PAGE,
            Some(text) => parse_limit(&text)?,
        };
        let after = self.take("after").map(|text| identify("after", &text)).transpose()?;
        Ok(Page { limit, after })
    }
}

fn parse_limit(text: &str) -> Result<usize, Problem> {
    let digits = text.bytes().all(|b| b.is_ascii_digit());
    match text.parse() {
        Ok(limit) if digits && (1..=MAX_PAGE).contains(&limit) => Ok(limit),
        _ => Err(Problem::invalid(
            "limit",
            format_args!("must be a whole number from 1 to {MAX_PAGE}"),
        )),
    }
}

/// A part of a list: `limit` and `after`, and no other parameter.
#[derive(Debug)]
pub struct Page<A> {
    pub limit: usize,
    pub after: Option<A>,
}

impl<S: Send + Sync, A: Identifier> FromRequestParts<S> for Page<A> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        let mut query = Query::of(&parts.uri)?;
        let page = query.page()?;
        query.finish()?;
        Ok(page)
    }
}

/// No query parameters. The extractors of bodies refuse them as well.
#[derive(Debug)]
pub struct NoQuery;

impl<S: Send + Sync> FromRequestParts<S> for NoQuery {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        Query::of(&parts.uri)?.finish()?;
        Ok(Self)
    }
}

/// `limit` and `after`, for the OpenAPI description.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "read by the derive, for the OpenAPI description")]
pub struct PageParams {
    /// Elements of one page.
    #[param(minimum = 1, maximum = 100, default = 20)]
    limit: Option<u8>,
    /// The `next` of the page before; leave it out for the first page.
    after: Option<String>,
}
