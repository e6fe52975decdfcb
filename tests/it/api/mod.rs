//! Tests of every route of the contract and of every refusal, over real HTTP against `rushgate
//! serve` on real servers.
//!
//! A [`Backend`] is a Redis and a database, an [`Instance`] is a `rushgate serve` on them, and an
//! [`Api`] is a client of one instance. Tests that do not disturb each other share an instance
//! ([`Api::shared`]) and use their own users, products and templates ([`fresh`]). Every answer is
//! checked against `/openapi.json`: its status, its members and its refusal code.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use fred::prelude::*;
use reqwest::header::HeaderMap;
use rushgate::config::{Durability, FenceMode, Servers};
use rushgate::domain::UserId;
use rushgate::http::mint_token;
use rushgate::reconciler::{Reconciler, StepOutcome};
use rushgate_local_servers::{DataFolder, RedisOptions, RedisServer};
use serde_json::{Value, json};
use sqlx::Connection;
use tokio::sync::OnceCell;

use crate::truth;

mod admin;
mod auth;
mod bad_input;
mod browser;
mod cancel;
mod catalogue;
mod description;
mod external;
mod holders;
mod idempotency;
mod limits;
mod live;
mod openapi;
mod order_search;
mod orders;
mod outages;
mod popular;
mod products;
mod refusals;
mod templates_and_coupons;
mod wallets;

use description::Description;

pub const SECRET: &str = "0123456789abcdef0123456789abcdef";
/// Time limit for a start of `rushgate serve` and for anything that a test waits for.
const PATIENCE: Duration = Duration::from_secs(30);

/// An id that no other test uses.
pub fn fresh(name: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    format!("{name}-{}", NEXT.fetch_add(1, Ordering::Relaxed))
}

pub fn token(sub: &str, scope: &str) -> String {
    let sub = UserId::parse(sub).unwrap();
    mint_token(SECRET.as_bytes(), &sub, scope, Duration::from_secs(600)).unwrap()
}

/// A private Redis and a database.
pub struct Backend {
    pub redis: RedisServer,
    pub database_url: String,
}

impl Backend {
    pub async fn new() -> Self {
        let redis = RedisServer::start(RedisOptions::new(DataFolder::Scratch)).await.unwrap();
        let pool = truth::database().await;
        let name: String =
            sqlx::query_scalar("SELECT current_database()").fetch_one(&pool).await.unwrap();
        pool.close().await;
        Self { redis, database_url: truth::database_url(&name).await }
    }

    /// Starts `rushgate serve` with these settings in addition to those of all tests.
    pub async fn serve(&self, settings: &[(&str, &str)]) -> Instance {
        Instance::start(self, settings).await
    }

    /// Starts an instance with all roles except the relay, and waits until it can decide.
    pub async fn serve_all(&self, settings: &[(&str, &str)]) -> Instance {
        let instance = self.serve(settings).await;
        instance.wait_until_ready().await;
        instance
    }

    pub fn servers(&self) -> Servers {
        Servers {
            redis_url: self.redis.url(),
            database_url: self.database_url.clone(),
            amqp_url: String::new(),
            cells: 1,
            durability: Durability::Strict,
            fence: FenceMode::Available,
        }
    }

    /// Builds the gate. Returns the reconciler, which the test drives from then on.
    pub async fn open_gate(&self) -> Reconciler {
        let mut reconciler = Reconciler::connect(&self.servers(), 0).await.unwrap();
        assert!(reconciler.try_lead().await.unwrap());
        assert_eq!(reconciler.step().await.unwrap(), StepOutcome::Rebuilt(1));
        reconciler
    }

    /// The number that an SQL query returns.
    pub async fn number(&self, sql: &'static str) -> i64 {
        let mut session = sqlx::PgConnection::connect(&self.database_url).await.unwrap();
        sqlx::query_scalar(sql).fetch_one(&mut session).await.unwrap()
    }

    /// Sets the gate's clock ahead of the server's clock.
    pub async fn set_clock_ahead(&self, by: Duration) {
        let now = jiff::Timestamp::now().as_millisecond() + by.as_millis() as i64;
        let raw = rushgate::redis::connect(&self.redis.url()).await.unwrap();
        let _: i64 = raw.hset(rushgate::redis::keys::Keys::meta(0), ("clock", now)).await.unwrap();
        raw.quit().await.unwrap();
    }

    /// Runs `rushgate rebuild`, which takes over from the leading instance.
    pub async fn rebuild(&self) {
        let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_rushgate"));
        command.arg("rebuild").env("RUSHGATE_REDIS_URL", self.redis.url());
        let output =
            command.env("RUSHGATE_DATABASE_URL", &self.database_url).output().await.unwrap();
        assert!(output.status.success(), "{output:?}");
    }

    /// Asserts that the audit finds no difference.
    pub async fn assert_audit_clean(&self) {
        let pool = sqlx::PgPool::connect(&self.database_url).await.unwrap();
        let options = rushgate::audit::Options { wait: Duration::from_secs(5) };
        let report = rushgate::audit::audit(&self.servers(), &pool, options).await.unwrap();
        assert!(report.clean && report.gate_compared, "{report:#?}");
    }
}

/// A running `rushgate serve`. It is stopped on drop, and when this process ends in any way.
pub struct Instance {
    pub base: String,
    pub ops: String,
    guard: Child,
}

impl Instance {
    async fn start(backend: &Backend, settings: &[(&str, &str)]) -> Self {
        let log = backend.redis.folder().join(fresh("serve.log"));
        let mut command = Command::new("sh");
        command.args([
            "-c",
            include_str!("../../../crates/local-servers/src/guard.sh"),
            "guard",
            "TERM",
            "10",
        ]);
        command.arg(&log).args([env!("CARGO_BIN_EXE_rushgate"), "serve"]);
        command
            .env("RUSHGATE_LISTEN", "127.0.0.1:0")
            .env("RUSHGATE_OPS_LISTEN", "127.0.0.1:0")
            .env("RUSHGATE_REDIS_URL", backend.redis.url())
            .env("RUSHGATE_DATABASE_URL", &backend.database_url)
            .env("RUSHGATE_ROLES", "api,reconciler,scheduler")
            .env("RUSHGATE_DATABASE_CONNECTIONS", "4")
            .env("RUSHGATE_CHARGE_SCOPE", "shop")
            .env("RUSHGATE_LOG_FORMAT", "json")
            .env("RUSHGATE_DRAIN_SECS", "0")
            .env("RUST_LOG", "rushgate=info")
            .envs(settings.iter().copied());
        if !settings.iter().any(|(name, _)| *name == "RUSHGATE_JWT_JWKS_FILE") {
            command.env("RUSHGATE_JWT_SECRET", SECRET);
        }
        let mut guard = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut pid = String::new();
        BufReader::new(guard.stdout.take().unwrap()).read_line(&mut pid).unwrap();
        let (api, ops) = until("an instance serves", async || addresses(&log, &mut guard)).await;
        Self { base: format!("http://{api}"), ops: format!("http://{ops}"), guard }
    }

    /// Waits until the instance can decide requests.
    pub async fn wait_until_ready(&self) {
        until("the instance is ready", async || {
            let answer = reqwest::get(format!("{}/readyz", self.ops)).await.ok()?;
            (answer.status() == 200).then_some(())
        })
        .await;
    }

    pub fn client(&self) -> Api {
        Api { http: reqwest::Client::new(), base: self.base.clone() }
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        drop(self.guard.stdin.take());
        let _ = self.guard.wait(); // nothing can be done about a failure here
    }
}

/// The addresses that the instance has logged.
fn addresses(log: &Path, guard: &mut Child) -> Option<(String, String)> {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    assert!(guard.try_wait().unwrap().is_none(), "rushgate serve ended: {text}");
    let lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let serving = lines.map(|line| line["fields"].clone()).find(|it| it["message"] == "serving")?;
    let address = |name: &str| Some(serving[name].as_str()?.to_owned());
    Some((address("api")?, address("ops")?))
}

/// Polls until `ask` returns a value; fails after [`PATIENCE`].
pub async fn until<T>(what: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(Instant::now() < deadline, "waited too long until {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// A client of one instance.
pub struct Api {
    http: reqwest::Client,
    pub base: String,
}

/// A request under construction, sent with [`Call::ok`], [`Call::refused`] or [`Call::send`].
pub struct Call {
    request: reqwest::RequestBuilder,
    method: String,
    path: String,
    base: String,
}

/// The answer to a call.
#[derive(Debug)]
pub struct HttpAnswer {
    pub status: u16,
    pub headers: HeaderMap,
    /// `null` if it is not JSON.
    pub body: Value,
}

impl Api {
    /// A client of the instance that independent tests share.
    pub async fn shared() -> Self {
        static SHARED: OnceCell<(Instance, Backend)> = OnceCell::const_new();
        let start = || async {
            let backend = Backend::new().await;
            (backend.serve_all(&[]).await, backend)
        };
        SHARED.get_or_init(start).await.0.client()
    }

    pub fn call(&self, method: &str, path: &str) -> Call {
        let method_name = reqwest::Method::from_bytes(method.as_bytes()).unwrap();
        let request = self.http.request(method_name, format!("{}{path}", self.base));
        Call { request, method: method.to_owned(), path: path.to_owned(), base: self.base.clone() }
    }

    pub fn get(&self, path: &str) -> Call {
        self.call("GET", path)
    }

    pub fn post(&self, path: &str, body: &Value) -> Call {
        self.call("POST", path).json(body)
    }

    pub fn put(&self, path: &str, body: &Value) -> Call {
        self.call("PUT", path).json(body)
    }

    /// Ten million zero bytes, compressed.
    pub fn bomb() -> Vec<u8> {
        let packed = Command::new("sh")
            .args(["-c", "head -c 10000000 /dev/zero | gzip -9"])
            .output()
            .unwrap();
        assert!(packed.status.success() && packed.stdout.len() < 16 * 1024);
        packed.stdout
    }

    // ---- what many tests need first ----

    pub async fn product(&self, price: u64, stock: u64) -> String {
        let id = fresh("product");
        let body =
            json!({"name": "A product", "price": price, "status": "on_sale", "stock": stock});
        self.put(&format!("/v1/products/{id}"), &body).admin().ok(201).await;
        id
    }

    pub async fn template(&self, changes: Value) -> String {
        let id = fresh("template");
        self.put(&format!("/v1/coupon-templates/{id}"), &template(changes)).admin().ok(201).await;
        id
    }

    /// Creates a user with this balance.
    pub async fn user(&self, balance: u64) -> String {
        let id = fresh("user");
        self.charge(&id, balance).user(&id).ok(201).await;
        id
    }

    pub fn charge(&self, user: &str, amount: u64) -> Call {
        self.post(&format!("/v1/users/{user}/wallet/charges"), &json!({"amount": amount}))
    }

    /// Issues a coupon of `template` to `user`, with the user's token.
    pub fn issue(&self, template: &str, user: &str) -> Call {
        self.post(&format!("/v1/coupon-templates/{template}/coupons"), &json!({"user_id": user}))
            .user(user)
    }

    pub async fn coupon(&self, template: &str, user: &str) -> String {
        text(&self.issue(template, user).ok(201).await, "coupon_id")
    }

    /// Places an order of `user`, with the user's token.
    pub fn order(&self, user: &str, items: &[(&str, u64)], more: Value) -> Call {
        let items: Vec<Value> = items
            .iter()
            .map(|(id, quantity)| json!({"product_id": id, "quantity": quantity}))
            .collect();
        let body = with(json!({"user_id": user, "items": items}), more);
        self.post("/v1/orders", &body).user(user)
    }

    pub fn cancel(&self, order: &Value, user: &str) -> Call {
        self.call("POST", &format!("/v1/orders/{}/cancel", text(order, "order_id"))).user(user)
    }

    pub async fn balance(&self, user: &str) -> u64 {
        let wallet = self.get(&format!("/v1/users/{user}/wallet")).service().ok(200).await;
        wallet["balance"].as_u64().unwrap()
    }

    pub async fn stock(&self, product: &str) -> u64 {
        self.get(&format!("/v1/products/{product}")).ok(200).await["stock"].as_u64().unwrap()
    }
}

/// The body of an open template with a discount of 1,000 won, with `changes` applied.
pub fn template(changes: Value) -> Value {
    let hours = |n: i64| (jiff::Timestamp::now() + jiff::SignedDuration::from_hours(n)).to_string();
    let body = json!({"name": "A template", "discount": {"type": "amount", "value": 1_000}, "max_issued": 100,
        "issue_from": hours(-1), "issue_until": hours(1)});
    with(body, changes)
}

/// `value` with the members of `more` added.
pub fn with(mut value: Value, more: Value) -> Value {
    if let (Some(members), Value::Object(more)) = (value.as_object_mut(), more) {
        members.extend(more);
    }
    value
}

pub fn text(value: &Value, member: &str) -> String {
    value[member].as_str().unwrap_or_else(|| panic!("no text {member} in {value}")).to_owned()
}

/// The time in a member; it must be RFC 3339 in UTC.
pub fn time(value: &Value, member: &str) -> jiff::Timestamp {
    let text = text(value, member);
    assert!(text.ends_with('Z'), "{member}: {text}");
    text.parse().unwrap()
}

/// Asserts that the member's time is within the last minute.
pub fn assert_now(value: &Value, member: &str) {
    let ago = jiff::Timestamp::now().duration_since(time(value, member));
    assert!(ago.as_secs().abs() < 60, "{member} is {ago} ago");
}

pub fn members(value: &Value) -> BTreeSet<&str> {
    value.as_object().unwrap().keys().map(String::as_str).collect()
}

/// The value of `member` in each element.
pub fn column<'a>(list: &'a Value, member: &str) -> Vec<&'a Value> {
    list["data"].as_array().unwrap().iter().map(|element| &element[member]).collect()
}

impl Call {
    pub fn bearer(self, token: &str) -> Self {
        self.header("authorization", &format!("Bearer {token}"))
    }

    /// With the token of an end user.
    pub fn user(self, sub: &str) -> Self {
        self.bearer(&token(sub, "shop"))
    }

    /// With the token of the shop's backend.
    pub fn service(self) -> Self {
        self.bearer(&token("backend", "service"))
    }

    pub fn admin(self) -> Self {
        self.bearer(&token("staff", "admin"))
    }

    pub fn key(self, key: &str) -> Self {
        self.header("idempotency-key", key)
    }

    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.request = self.request.header(name, value);
        self
    }

    pub fn json(self, body: &Value) -> Self {
        self.raw(body.to_string().into_bytes())
    }

    /// With a body labelled as JSON.
    pub fn raw(mut self, body: Vec<u8>) -> Self {
        self.request = self.request.header("content-type", "application/json").body(body);
        self
    }

    /// With a body of another media type.
    pub fn body(mut self, content_type: &str, body: &str) -> Self {
        self.request = self.request.header("content-type", content_type).body(body.to_owned());
        self
    }

    /// Sends the request and checks the answer against the description.
    pub async fn send(self) -> HttpAnswer {
        let response = self.request.send().await.unwrap();
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let bytes = response.bytes().await.unwrap();
        let body = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
        let answer = HttpAnswer { status, headers, body };
        Description::of(&self.base).await.check(&self.method, &self.path, &answer);
        answer
    }

    /// The body of a success with this status.
    pub async fn ok(self, status: u16) -> Value {
        let what = format!("{} {}", self.method, self.path);
        let answer = self.send().await;
        assert_eq!(answer.status, status, "{what}: {}", answer.body);
        assert_eq!(answer.headers["content-type"], "application/json");
        answer.body
    }

    /// The body of a refusal with this code; it must be a complete problem document.
    pub async fn refused(self, status: u16, code: &str) -> Value {
        let what = format!("{} {}", self.method, self.path);
        let answer = self.send().await;
        assert_eq!((answer.status, answer.code()), (status, code), "{what}: {}", answer.body);
        answer.body
    }

    /// The invalid field of a 422 `invalid-field`.
    pub async fn refused_field(self) -> String {
        text(&self.refused(422, "invalid-field").await, "field")
    }
}

impl HttpAnswer {
    /// The refusal's code; `""` for a success.
    pub fn code(&self) -> &str {
        if self.status < 400 {
            return "";
        }
        let body = &self.body;
        assert_eq!(self.headers["content-type"], "application/problem+json", "{body}");
        let code = body["code"].as_str().unwrap_or_else(|| panic!("no code in {body}"));
        assert_eq!(body["type"], format!("/problems/{code}"));
        assert_eq!(body["status"], self.status);
        assert!(!text(body, "title").is_empty() && !text(body, "detail").is_empty());
        if matches!(self.status, 429 | 503) {
            let seconds: u64 = self.headers["retry-after"].to_str().unwrap().parse().unwrap();
            assert_eq!(body["retry_after"], seconds);
        }
        code
    }

    pub fn replayed(&self) -> bool {
        self.headers.get("idempotent-replayed").is_some_and(|value| value == "true")
    }
}

/// Reads a user's list page by page.
pub async fn pages(api: &Api, path: &str, limit: usize) -> Vec<Value> {
    let separator = if path.contains('?') { '&' } else { '?' };
    let (mut found, mut after) = (Vec::new(), String::new());
    loop {
        let page = api.get(&format!("{path}{separator}limit={limit}{after}")).admin().ok(200).await;
        assert_eq!(members(&page), BTreeSet::from(["data", "next"]));
        let data = page["data"].as_array().unwrap();
        assert!(data.len() == limit || page["next"].is_null(), "{page}");
        found.extend(data.iter().cloned());
        match page["next"].as_str() {
            Some(next) => after = format!("&after={next}"),
            None => return found,
        }
    }
}
