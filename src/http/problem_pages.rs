//! `/problems/{code}`: the page to which the `type` of a problem leads, in the language asked for. And
//! `/`, which leads on.

use axum::Router;
use axum::extract::Path;
use axum::http::header::{
    CACHE_CONTROL, CONTENT_LANGUAGE, CONTENT_SECURITY_POLICY, CONTENT_TYPE, VARY,
};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Redirect, Response};
use axum::routing::get;

use super::accept::Language;
use super::explanations::{Retry, Text, explanation, in_language, member};
use super::problem::{Code, korean};

const START: &str = "/";
const PAGE: &str = "/problems/{code}";
const STYLE: &str = "/problems/style.css";
/// Every path of this module.
pub const PATHS: [&str; 3] = [START, PAGE, STYLE];
const STYLE_SHEET: &str = include_str!("problem_pages.css");
/// The page loads its style sheet and nothing else.
const POLICY: HeaderValue = HeaderValue::from_static(
    "default-src 'none'; style-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
);
/// How long caches may keep the style sheet and the pages.
const KEPT: HeaderValue = HeaderValue::from_static("public, max-age=3600");

/// Where `/` leads.
pub fn start(demo_shop: bool) -> &'static str {
    if demo_shop { "/shop/" } else { "/docs/" }
}

/// Serves the pages; `start`: where `/` leads.
pub fn router(start: &'static str) -> Router {
    let style = ([(CONTENT_TYPE, "text/css; charset=utf-8")], [(CACHE_CONTROL, KEPT)], STYLE_SHEET);
    Router::new()
        .route(START, get(async move || Redirect::to(start)))
        .route(STYLE, get(move || async move { style }))
        .route(PAGE, get(page))
}

async fn page(path: Option<Path<String>>, headers: HeaderMap) -> Response {
    let language = Language::of(&headers);
    let name = path.as_ref().map_or("", |Path(name)| name.as_str());
    let (status, html) = match Code::ALL.iter().find(|code| code.as_str() == name) {
        Some(code) => (StatusCode::OK, explained(*code, language)),
        None => (StatusCode::NOT_FOUND, unknown(language)),
    };
    let mut response = (status, html).into_response();
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"));
    headers.insert(CONTENT_SECURITY_POLICY, POLICY);
    headers.insert(CONTENT_LANGUAGE, HeaderValue::from_static(language.tag()));
    headers.insert(VARY, HeaderValue::from_static("accept-language"));
    if status == StatusCode::OK {
        headers.insert(CACHE_CONTROL, KEPT);
    }
    response
}

fn explained(code: Code, language: Language) -> String {
    let say = |text: Text| html(in_language(text, language));
    let title = match language {
        Language::English => code.title(),
        Language::Korean => korean::title(code),
    };
    let (status, name) = (code.status().as_u16(), code.as_str());
    let explanation = explanation(code);
    let sections = [
        (["What happened", "무슨 일이 있었나"], say(explanation.meaning)),
        (["What to do", "어떻게 하나"], say(explanation.action)),
        (["Send it again?", "다시 보내도 되나"], say(Retry::of(code).text())),
    ];
    let sections: String = sections
        .into_iter()
        .map(|(heading, text)| format!("<h2>{}</h2>\n<p>{text}</p>\n", say(heading)))
        .collect();
    let members = members(code, language);
    let body = format!(
        "<p class=\"code\"><strong>{status}</strong> <code>{name}</code></p>\n<h1>{}</h1>\n{sections}{members}",
        html(title)
    );
    document(title, &body, language)
}

/// The table of extra members; empty if there are none.
fn members(code: Code, language: Language) -> String {
    let say = |text: Text| html(in_language(text, language));
    let always = code.members().iter().map(|name| (name, ["", ""]));
    let sometimes =
        code.optional_members().iter().map(|name| (name, [" (not always)", " (없을 수 있음)"]));
    let rows: String = always
        .chain(sometimes)
        .filter_map(|(name, note)| {
            let text = say(member(name)?);
            Some(format!(
                "<tr><th scope=\"row\"><code>{name}</code></th><td>{text}{}</td></tr>\n",
                say(note)
            ))
        })
        .collect();
    if rows.is_empty() {
        return rows;
    }
    let heading = say(["Members of the answer", "응답의 멤버"]);
    format!("<h2>{heading}</h2>\n<table>\n{rows}</table>\n")
}

fn unknown(language: Language) -> String {
    let title = in_language(["There is no such problem", "그런 오류는 없습니다"], language);
    let text = in_language(
        [
            "This service answers with no problem of this name.",
            "이 서비스에는 이런 이름의 오류가 없습니다.",
        ],
        language,
    );
    document(title, &format!("<h1>{}</h1>\n<p>{}</p>\n", html(title), html(text)), language)
}

fn document(title: &str, body: &str, language: Language) -> String {
    let docs = in_language(["All routes and their problems", "모든 경로와 오류"], language);
    format!(
        "<!doctype html>\n<html lang=\"{}\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>{} · Rushgate</title>\n\
         <link rel=\"stylesheet\" href=\"{STYLE}\">\n</head>\n<body>\n<main>\n{body}\
         <p><a href=\"/docs/\">{}</a></p>\n</main>\n</body>\n</html>\n",
        language.tag(),
        html(title),
        html(docs)
    )
}

/// Markdown with `code` and **strong** only.
fn html(text: &str) -> String {
    let escaped =
        text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;");
    paired(&paired(&escaped, "`", "code"), "**", "strong")
}

/// Puts what stands between two marks into an element.
fn paired(text: &str, mark: &str, element: &str) -> String {
    let mut out = String::with_capacity(text.len() + 16);
    for (place, part) in text.split(mark).enumerate() {
        match place % 2 {
            0 => out.push_str(part),
            _ => out.push_str(&format!("<{element}>{part}</{element}>")),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_become_html_and_nothing_in_them_is_markup() {
        assert_eq!(
            html("**never** send `a<b>` & \"c\""),
            "<strong>never</strong> send <code>a&lt;b&gt;</code> &amp; &quot;c&quot;"
        );
    }

    #[test]
    fn every_page_has_all_of_its_code_in_its_language() {
        for code in Code::ALL {
            let korean = explained(*code, Language::Korean);
            let english = explained(*code, Language::English);
            for page in [&korean, &english] {
                assert!(page.contains(&format!("<code>{}</code>", code.as_str())), "{page}");
                assert!(!page.contains('`') && !page.contains("**"), "{page}");
                for name in code.members() {
                    assert!(page.contains(&format!("<code>{name}</code>")), "{page}");
                }
            }
            let is_korean = |c: char| ('가'..='힣').contains(&c);
            assert!(korean.contains(is_korean) && !english.contains(is_korean), "{code:?}");
        }
    }
}
