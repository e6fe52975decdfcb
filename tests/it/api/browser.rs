//! What browsers and people need: headers that pages of other origins see, compressed answers,
//! problems in Korean, the pages that explain them.

use std::io::Read;

use rushgate::http::problem::Code;
use serde_json::json;

use super::*;

/// One request, without following redirects; the body as it was sent.
async fn get(api: &Api, path: &str, headers: &[(&str, &str)]) -> (u16, HeaderMap, Vec<u8>) {
    let http = reqwest::Client::builder().redirect(reqwest::redirect::Policy::none()).build();
    let mut request = http.unwrap().get(format!("{}{path}", api.base));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let answer = request.send().await.unwrap();
    let (status, headers) = (answer.status().as_u16(), answer.headers().clone());
    (status, headers, answer.bytes().await.unwrap().to_vec())
}

fn unpacked(bytes: &[u8]) -> Vec<u8> {
    let mut plain = Vec::new();
    flate2::read::GzDecoder::new(bytes).read_to_end(&mut plain).unwrap();
    plain
}

fn vary(headers: &HeaderMap) -> String {
    let lines = headers.get_all("vary").iter().map(|line| line.to_str().unwrap());
    lines.collect::<Vec<_>>().join(", ")
}

#[tokio::test]
async fn pages_of_other_origins_see_the_headers_that_clients_use() {
    let backend = Backend::new().await;
    let settings =
        [("RUSHGATE_CORS_ORIGINS", "https://shop.example"), ("RUSHGATE_USER_RATE", "1/1s")];
    let instance = backend.serve_all(&settings).await;
    let api = instance.client();
    let origin = [("origin", "https://shop.example")];
    let (_, headers, _) = get(&api, "/v1/products", &origin).await;
    let exposed = headers["access-control-expose-headers"].to_str().unwrap().to_lowercase();
    let exposed: BTreeSet<&str> = exposed.split(',').map(str::trim).collect();
    let contract = BTreeSet::from([
        "date",
        "etag",
        "retry-after",
        "ratelimit",
        "ratelimit-policy",
        "idempotent-replayed",
        "x-request-id",
        "www-authenticate",
    ]);
    assert_eq!(exposed, contract);
    assert!(headers.contains_key("date") && headers.contains_key("etag"));
    let (status, headers, _) = get(&api, "/v1/users/u/wallet", &origin).await;
    assert_eq!(status, 401);
    assert_eq!(headers["access-control-allow-origin"], "https://shop.example");
    assert!(vary(&headers).contains("origin") && vary(&headers).contains("accept-language"));
}

#[tokio::test]
async fn large_answers_are_compressed_when_asked_for() {
    let api = Api::shared().await;
    let mut ids = Vec::new();
    for _ in 0..20 {
        ids.push(api.product(1_000, 5).await);
    }
    let (many, few) = (ids.join(","), &ids[0]);
    for path in [&*format!("/v1/products?ids={many}"), "/openapi.json", "/docs/swagger-ui.css"] {
        let (_, plain_headers, plain) = get(&api, path, &[]).await;
        assert!(plain.len() > 1_024 && !plain_headers.contains_key("content-encoding"), "{path}");
        let (status, headers, packed) = get(&api, path, &[("accept-encoding", "br, gzip")]).await;
        assert_eq!((status, headers["content-encoding"].as_bytes()), (200, &b"gzip"[..]), "{path}");
        assert_eq!(headers["content-type"], plain_headers["content-type"]);
        assert!(packed.len() < plain.len() && unpacked(&packed) == plain, "{path}");
        for headers in [&headers, &plain_headers] {
            assert!(vary(headers).contains("accept-encoding"), "{path}");
        }
        let (_, headers, _) = get(&api, path, &[("accept-encoding", "gzip;q=0")]).await;
        assert!(!headers.contains_key("content-encoding"), "{path}");
    }
    let (_, headers, _) =
        get(&api, &format!("/v1/products/{few}"), &[("accept-encoding", "gzip")]).await;
    assert!(!headers.contains_key("content-encoding"), "a small answer stays as it is");
}

#[tokio::test]
async fn a_compressed_answer_has_a_tag_of_its_own_and_either_tag_is_known() {
    let api = Api::shared().await;
    let mut ids = Vec::new();
    for _ in 0..20 {
        ids.push(api.product(1_000, 5).await);
    }
    let path = format!("/v1/products?ids={}", ids.join(","));
    let gzip = ("accept-encoding", "gzip");
    let tag = |headers: &HeaderMap| headers["etag"].to_str().unwrap().to_owned();
    let plain = tag(&get(&api, &path, &[]).await.1);
    let packed = tag(&get(&api, &path, &[gzip]).await.1);
    assert!(plain != packed && !plain.starts_with("W/") && !packed.starts_with("W/"));
    for has in [&plain, &packed] {
        let has = ("if-none-match", has.as_str());
        let (status, headers, _) = get(&api, &path, &[has]).await;
        assert_eq!((status, tag(&headers)), (304, plain.clone()));
        let (status, headers, body) = get(&api, &path, &[has, gzip]).await;
        assert_eq!((status, tag(&headers), body.len()), (304, packed.clone(), 0));
        assert!(!headers.contains_key("content-encoding"));
        assert!(vary(&headers).contains("accept-encoding"));
    }
}

#[tokio::test]
async fn problems_are_told_in_korean_to_those_who_prefer_it() {
    let api = Api::shared().await;
    let user = api.user(1_500).await;
    let product = api.product(1_234_500, 5).await;
    let order = || api.order(&user, &[(&product, 1)], json!({}));
    let english = order().send().await;
    let korean = order().header("accept-language", "ko-KR,ko;q=0.9,en;q=0.8").send().await;
    for answer in [&english, &korean] {
        assert_eq!((answer.status, answer.code()), (409, "insufficient-balance"));
        assert_eq!(answer.headers["vary"], "accept-language");
    }
    assert_eq!(english.headers["content-language"], "en");
    assert_eq!(korean.headers["content-language"], "ko");
    assert_eq!(korean.body["title"], "잔액이 부족합니다");
    let detail = text(&korean.body, "detail");
    assert!(detail.contains("1,234,500원") && detail.contains("1,500원"), "{detail}");
    assert_eq!(members(&english.body), members(&korean.body));
    for member in members(&english.body).into_iter().filter(|it| !["title", "detail"].contains(it))
    {
        assert_eq!(english.body[member], korean.body[member], "{member}");
    }
    for language in ["en, ko;q=0.9", "fr", "ko;q=0"] {
        let answer = order().header("accept-language", language).send().await;
        assert_eq!(answer.body["title"], english.body["title"], "{language}");
    }
    // Refusals from outside of the handlers.
    for path in ["/v1/nothing", "/docs/nothing"] {
        let answer = api.get(path).header("accept-language", "ko").send().await;
        assert_eq!((answer.status, text(&answer.body, "title")), (404, "경로가 없습니다".into()));
    }
}

#[tokio::test]
async fn the_type_of_every_problem_leads_to_a_page_in_two_languages() {
    let api = Api::shared().await;
    for code in Code::ALL {
        let path = format!("/problems/{}", code.as_str());
        for (language, word) in [("en", "What to do"), ("ko", "어떻게 하나")] {
            let (status, headers, body) = get(&api, &path, &[("accept-language", language)]).await;
            let body = String::from_utf8(body).unwrap();
            assert_eq!(status, 200, "{path}");
            assert_eq!(headers["content-type"], "text/html; charset=utf-8");
            assert_eq!(headers["content-language"], language);
            assert!(vary(&headers).contains("accept-language"));
            let policy = headers["content-security-policy"].to_str().unwrap();
            assert!(policy.starts_with("default-src 'none'") && !policy.contains("unsafe"));
            assert!(body.contains(word) && body.contains(code.as_str()), "{body}");
            assert!(!body.contains("<script") && !body.contains("style="), "{body}");
        }
    }
    let (status, headers, body) = get(&api, "/problems/no-such-code", &[]).await;
    assert_eq!(
        (status, headers["content-type"].as_bytes()),
        (404, &b"text/html; charset=utf-8"[..])
    );
    assert!(String::from_utf8(body).unwrap().contains("There is no such problem"));
    let forged = get(&api, "/problems/%3Cscript%3E", &[]).await;
    assert!(forged.0 == 404 && !String::from_utf8(forged.2).unwrap().contains("script"));
    let (status, headers, _) = get(&api, "/problems/style.css", &[]).await;
    assert_eq!(
        (status, headers["content-type"].as_bytes()),
        (200, &b"text/css; charset=utf-8"[..])
    );
}

#[tokio::test]
async fn the_start_page_leads_on() {
    let api = Api::shared().await;
    let (status, headers, _) = get(&api, "/", &[]).await;
    assert_eq!((status, headers["location"].to_str().unwrap()), (303, "/docs/"));
}
