//! Test harness: real `rushgate serve` processes on a private Redis, with a database and a RabbitMQ
//! virtual host of their own.
//!
//! A [`Cluster`] owns the servers and lives as long as the test. Each [`Instance`] is one process;
//! dropping it kills the process.

use std::collections::HashMap;
use std::ffi::OsString;
use std::io::{BufRead, BufReader, Read};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use fred::prelude::*;
use futures::future::join_all;
use lapin::options::BasicGetOptions;
use lapin::{Connection, ConnectionProperties};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use reqwest::Method;
use rushgate::config::bounds::SHUTDOWN_TIMEOUT;
use rushgate::http::mint_token;
use rushgate::redis::meta::Meta;
use rushgate::relay::topology::ORDERS_QUEUE;
use rushgate_local_servers::{
    DataFolder, PostgresOptions, PostgresServer, RabbitMqOptions, RabbitMqServer, RedisOptions,
    RedisServer,
};
use serde_json::{Value, json};
use sqlx::PgPool;
use sqlx::postgres::PgPoolOptions;

use crate::shop::user;
use crate::truth;

pub const SECRET: &str = "a secret of the tests, of more than 32 bytes";
/// Time limit for anything that a test waits for. Generous, because the machine may be busy.
const LIMIT: Duration = Duration::from_secs(40);
const POLL: Duration = Duration::from_millis(10);
/// HTTP/2 connections to one instance; enough for 1,024 requests in flight.
const CONNECTIONS: usize = 8;

/// The servers that the instances share.
pub struct Cluster {
    pub redis: RedisServer,
    /// A private server for tests that stop or kill it; otherwise the shared one is used.
    pub postgres: Option<PostgresServer>,
    pub rabbitmq: Option<RabbitMqServer>,
    /// A plain connection to Redis, with which tests inspect and damage its data.
    pub raw: fred::prelude::Client,
    pub pool: PgPool,
    pub settings: Settings,
    /// Messages consumed from the queue so far, by event id.
    taken: tokio::sync::Mutex<HashMap<String, Value>>,
}

/// Environment variables for a `rushgate` process.
#[derive(Clone, Debug, Default)]
pub struct Settings(HashMap<&'static str, String>);

/// Stored among the settings, but read by the tests only: see [`Settings::binary`].
const BINARY: &str = "RUSHGATE_TEST_BINARY";

impl Settings {
    pub fn with(&self, name: &'static str, value: impl Into<String>) -> Self {
        let mut changed = self.clone();
        changed.0.insert(name, value.into());
        changed
    }

    pub fn without(&self, name: &'static str) -> Self {
        let mut changed = self.clone();
        changed.0.remove(name);
        changed
    }

    pub fn get(&self, name: &'static str) -> &str {
        &self.0[name]
    }

    /// Runs another build of `rushgate` instead of the one under test.
    pub fn binary(&self, path: &str) -> Self {
        self.with(BINARY, path)
    }

    /// `rushgate` with these settings and nothing else from the test's environment except `PATH`.
    /// `setpriv` makes the kernel kill the process when the thread that started it ends, even if
    /// the test panics or is killed.
    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new("setpriv");
        let binary = self.0.get(BINARY).map_or(env!("CARGO_BIN_EXE_rushgate"), String::as_str);
        command.args(["--pdeathsig", "KILL", "--", binary]).args(args);
        command.env_clear().env("PATH", std::env::var_os("PATH").unwrap()).envs(&self.0);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// Runs `rushgate` with `args` to completion, within [`LIMIT`].
    pub async fn run(&self, args: &[&str]) -> Finished {
        let started = Instant::now();
        let mut child = Reaped(self.command(args).spawn().unwrap());
        let mut pipes = (child.0.stdout.take().unwrap(), child.0.stderr.take().unwrap());
        let read = std::thread::spawn(move || {
            let (mut out, mut err) = (String::new(), String::new());
            let errors = std::thread::spawn(move || {
                pipes.1.read_to_string(&mut err).unwrap();
                err
            });
            pipes.0.read_to_string(&mut out).unwrap();
            (out, errors.join().unwrap())
        });
        let code = child.exit_code(LIMIT).await;
        let (stdout, stderr) = read.join().unwrap();
        Finished { code, stdout, stderr, took: started.elapsed() }
    }
}

impl Settings {
    /// Runs `rushgate` with `args` and kills it after `after` if it is still running.
    pub async fn run_and_kill(&self, args: &[&str], after: Duration) {
        let mut command = self.command(args);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let child = Reaped(command.spawn().unwrap());
        tokio::time::sleep(after).await;
        drop(child);
    }
}

/// The result of a completed command.
#[derive(Debug)]
pub struct Finished {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
    pub took: Duration,
}

impl Finished {
    pub fn assert_success(self) -> Self {
        assert_eq!(self.code, 0, "{}\n{}", self.stdout, self.stderr);
        self
    }
}

/// A child process that is killed and reaped on drop.
struct Reaped(std::process::Child);

impl Reaped {
    async fn exit_code(&mut self, limit: Duration) -> i32 {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(status) = self.0.try_wait().unwrap() {
                return status.code().unwrap_or(-1);
            }
            assert!(Instant::now() < deadline, "process {} does not end", self.0.id());
            tokio::time::sleep(POLL).await;
        }
    }
}

impl Drop for Reaped {
    fn drop(&mut self) {
        let _ = self.0.kill(); // may have exited already
        let _ = self.0.wait();
    }
}

#[derive(Default)]
pub struct Private {
    pub postgres: bool,
    pub rabbitmq: bool,
    /// Additional lines for redis.conf.
    pub redis_config: Vec<String>,
    /// See [`RedisOptions::under`].
    pub redis_under: Vec<OsString>,
    /// See [`RedisOptions::login`].
    pub redis_login: Option<(String, String)>,
}

impl Cluster {
    /// Starts the servers, without an instance.
    pub async fn servers() -> Self {
        Self::with(Private::default()).await
    }

    pub async fn with(private: Private) -> Self {
        let mut options = RedisOptions::new(DataFolder::Scratch);
        (options.extra_config, options.under) = (private.redis_config, private.redis_under);
        options.login = private.redis_login;
        let redis = RedisServer::start(options).await.unwrap();
        let (postgres, database_url) = match private.postgres {
            false => (None, truth::empty_database().await),
            true => {
                // Without fsync, the server also runs with `synchronous_commit` off. The reconciler
                // turns that on in its own session.
                let options =
                    PostgresOptions { fsync: false, ..PostgresOptions::new(DataFolder::Scratch) };
                let server = PostgresServer::start(options).await.unwrap();
                let url = server.create_database("shop").await.unwrap();
                (Some(server), url)
            }
        };
        let (rabbitmq, amqp_url) = match private.rabbitmq {
            false => (None, truth::virtual_host().await),
            true => {
                let server =
                    RabbitMqServer::start(RabbitMqOptions::new(DataFolder::Scratch)).await.unwrap();
                let url = server.url();
                (Some(server), url)
            }
        };
        let settings = Settings(HashMap::from([
            ("RUSHGATE_REDIS_URL", redis.url()),
            ("RUSHGATE_DATABASE_URL", database_url.clone()),
            ("RUSHGATE_AMQP_URL", amqp_url),
            ("RUSHGATE_JWT_SECRET", SECRET.to_owned()),
            ("RUSHGATE_LISTEN", "127.0.0.1:0".to_owned()),
            ("RUSHGATE_OPS_LISTEN", "127.0.0.1:0".to_owned()),
            ("RUSHGATE_DATABASE_CONNECTIONS", "4".to_owned()),
            // Tests send many requests at once, on a machine that other processes use too.
            ("RUSHGATE_REQUEST_TIMEOUT_MS", "30000".to_owned()),
            ("RUSHGATE_TRUTH_TIMEOUT_MS", "8000".to_owned()),
            ("RUSHGATE_CHARGE_SCOPE", "shop".to_owned()),
            ("RUSHGATE_USER_WRITE_RATE", "off".to_owned()),
            ("RUSHGATE_LOG_FORMAT", "json".to_owned()),
            // There is no load balancer here, so a shutdown need not wait for one.
            ("RUSHGATE_DRAIN_SECS", "0".to_owned()),
        ]));
        let raw = rushgate::redis::connect(&redis.url()).await.unwrap();
        let pool = PgPoolOptions::new().max_connections(2).connect_lazy(&database_url).unwrap();
        Self { redis, postgres, rabbitmq, raw, pool, settings, taken: Default::default() }
    }

    /// Starts the servers and two instances with all roles.
    pub async fn two() -> (Self, Pair) {
        let cluster = Self::servers().await;
        let instances = [cluster.start().await, cluster.start().await];
        (cluster, Pair { instances, next: AtomicUsize::new(0) })
    }

    /// Starts an instance with all roles and waits until it is ready.
    pub async fn start(&self) -> Instance {
        Instance::ready(&self.settings).await
    }

    /// Starts an instance with these roles only and waits until it is ready.
    pub async fn start_roles(&self, roles: &str) -> Instance {
        Instance::ready(&self.settings.with("RUSHGATE_ROLES", roles)).await
    }

    /// Switches to another database.
    pub fn use_database(&mut self, url: &str) {
        self.settings = self.settings.with("RUSHGATE_DATABASE_URL", url);
        self.pool = PgPoolOptions::new().max_connections(2).connect_lazy(url).unwrap();
    }

    pub async fn meta(&self) -> Meta {
        // The connection may still point to a Redis process that was stopped; fred reconnects.
        eventually("Redis answers", || async { Meta::read(&self.raw, 0).await.ok() }).await
    }

    pub async fn flush_redis(&self) {
        self.raw.flushall::<()>(false).await.unwrap();
    }

    pub async fn number(&self, sql: &'static str) -> i64 {
        truth::number(&self.pool, sql).await
    }

    pub async fn texts(&self, sql: &'static str) -> Vec<String> {
        sqlx::query_scalar(sql).fetch_all(&self.pool).await.unwrap()
    }

    /// Waits until PostgreSQL has applied every entry that the gate has logged so far.
    pub async fn caught_up(&self) {
        eventually("PostgreSQL catches up", || async {
            let meta = self.meta().await;
            (!meta.absent() && meta.applied == meta.seq).then_some(())
        })
        .await;
    }

    /// The check at the end of every test: `rushgate audit` is clean, and the queue holds exactly
    /// the events of the orders in PostgreSQL.
    pub async fn assert_consistent(&self) {
        self.settings.run(&["audit", "--wait", "30s"]).await.assert_success();
        self.outbox_delivered().await;
        let events = self.events().await;
        let mut found: Vec<&String> = events.keys().collect();
        found.sort();
        let expected = self
            .texts(
                "SELECT id FROM (SELECT order_id || '.completed' id FROM orders
                 UNION ALL SELECT order_id || '.cancelled' FROM orders WHERE status = 'cancelled') e
                 ORDER BY id COLLATE \"C\"",
            )
            .await;
        assert_eq!(found, expected.iter().collect::<Vec<_>>());
        for (id, event) in &events {
            let (order, kind) = id.split_once('.').unwrap();
            assert_eq!(event["type"], format!("rushgate.order.{kind}.v1"));
            assert_eq!(
                (&event["subject"], &event["data"]["order_id"]),
                (&json!(order), &json!(order))
            );
        }
    }

    pub async fn outbox_delivered(&self) {
        eventually("the outbox is delivered", || async {
            (self.number("SELECT count(*) FROM outbox").await == 0).then_some(())
        })
        .await;
    }

    /// Consumes what is in the queue of the data platform. Returns all messages consumed so far, by
    /// event id.
    pub async fn events(&self) -> HashMap<String, Value> {
        let mut taken = self.taken.lock().await;
        let url = self.settings.get("RUSHGATE_AMQP_URL");
        let connection = Connection::connect(url, ConnectionProperties::default()).await.unwrap();
        let channel = connection.create_channel().await.unwrap();
        let no_ack = BasicGetOptions { no_ack: true };
        while let Some(message) = channel.basic_get(ORDERS_QUEUE.into(), no_ack).await.unwrap() {
            let id = message.delivery.properties.message_id().clone().unwrap().to_string();
            let event: Value = serde_json::from_slice(&message.delivery.data).unwrap();
            assert_eq!(event["id"], id);
            let first = taken.entry(id).or_insert_with(|| event.clone());
            assert_eq!(*first, event, "a repeat is the same event");
        }
        connection.close(200, "done".into()).await.unwrap();
        taken.clone()
    }
}

/// A running `rushgate serve`; killed on drop.
pub struct Instance {
    child: Reaped,
    /// Empty if the instance does not have the role `api`.
    api: String,
    ops: String,
    log: Arc<Mutex<Vec<String>>>,
    http: Vec<reqwest::Client>,
    next: AtomicUsize,
}

impl Instance {
    /// Starts an instance and waits until it is ready.
    pub async fn ready(settings: &Settings) -> Self {
        let instance = Self::listening(settings).await;
        instance.until_ready().await;
        instance
    }

    /// Starts an instance and waits until it listens.
    pub async fn listening(settings: &Settings) -> Self {
        let mut child = Reaped(settings.command(&["serve"]).spawn().unwrap());
        let log = Arc::new(Mutex::new(Vec::new()));
        let (stderr, lines) = (child.0.stderr.take().unwrap(), Arc::clone(&log));
        std::thread::spawn(move || {
            BufReader::new(stderr)
                .lines()
                .map_while(Result::ok)
                .for_each(|l| lines.lock().unwrap().push(l));
        });
        let addresses = || {
            assert!(child.0.try_wait().unwrap().is_none(), "it ended: {:#?}", log.lock().unwrap());
            let said =
                log.lock().unwrap().iter().find(|line| line.contains("\"serving\"")).cloned();
            std::future::ready(said)
        };
        let line = eventually_mut("the instance listens", addresses).await;
        let fields = serde_json::from_str::<Value>(&line).unwrap()["fields"].take();
        let address = |name: &str| {
            // Earlier versions of `rushgate` log `Some(...)` and `None`.
            let text = fields[name].as_str().filter(|text| *text != "None")?;
            Some(format!("http://{}", text.trim_start_matches("Some(").trim_end_matches(')')))
        };
        let http = (0..CONNECTIONS)
            .map(|_| {
                reqwest::Client::builder()
                    .http2_prior_knowledge()
                    .timeout(LIMIT)
                    .no_proxy()
                    .build()
                    .unwrap()
            })
            .collect();
        let (api, ops) = (address("api").unwrap_or_default(), address("ops").unwrap_or_default());
        Self { child, api, ops, log, http, next: AtomicUsize::new(0) }
    }

    pub fn pid(&self) -> u32 {
        self.child.0.id()
    }

    pub async fn until_ready(&self) {
        eventually(&format!("the instance is ready; its log: {:#?}", self.log()), || async {
            (self.readiness().await.0 == 200).then_some(())
        })
        .await;
    }

    /// Status and body of `/readyz`.
    pub async fn readiness(&self) -> (u16, Value) {
        let answer = self.ops("/readyz").await;
        (answer.0, serde_json::from_str(&answer.1).unwrap())
    }

    /// Status and body of a path on the operations port.
    pub async fn ops(&self, path: &str) -> (u16, String) {
        let answer = self.http[0].get(format!("{}{path}", self.ops)).send().await.unwrap();
        (answer.status().as_u16(), answer.text().await.unwrap())
    }

    pub fn log(&self) -> Vec<String> {
        self.log.lock().unwrap().clone()
    }

    /// Whether the log contains this text.
    pub fn said(&self, text: &str) -> bool {
        self.log.lock().unwrap().iter().any(|line| line.contains(text))
    }

    /// Ids that the log lists as lost: decisions that were acknowledged and are gone.
    pub fn listed_as_gone(&self) -> Vec<String> {
        let lines = self.log.lock().unwrap();
        let gone = lines.iter().filter(|line| line.contains("gone: it was decided"));
        gone.filter_map(|line| {
            let fields = serde_json::from_str::<Value>(line).ok()?["fields"].take();
            Some(fields["id"].as_str()?.to_owned())
        })
        .collect()
    }

    pub fn listens_on(&self) -> &str {
        self.api.trim_start_matches("http://")
    }

    /// Host and port of the operations listener.
    pub fn operations(&self) -> &str {
        self.ops.trim_start_matches("http://")
    }

    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.0.id().cast_signed()), signal).unwrap();
    }

    /// Sends SIGSTOP and waits until every thread has stopped. On a busy machine that takes a
    /// while.
    pub async fn freeze(&self) {
        self.signal(Signal::SIGSTOP);
        let threads = format!("/proc/{}/task", self.child.0.id());
        eventually("the process stands still", || async {
            let mut threads = std::fs::read_dir(&threads).unwrap();
            let still = threads.all(|thread| {
                // Format: "<id> (<name>) <state> …". A thread may exit between the listing and the
                // read.
                let stat = std::fs::read_to_string(thread.unwrap().path().join("stat"));
                stat.map_or(true, |stat| {
                    stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('T'))
                })
            });
            still.then_some(())
        })
        .await;
    }

    /// Simulates a crash with SIGKILL.
    pub async fn kill(mut self) {
        self.signal(Signal::SIGKILL);
        self.child.exit_code(LIMIT).await;
    }

    /// Waits until the process has ended, with any exit code.
    pub async fn gone(mut self) {
        self.child.exit_code(LIMIT).await;
    }

    /// Waits until the process has ended, and expects exit code 0.
    pub async fn gone_within(mut self, limit: Duration) {
        let code = self.child.exit_code(limit).await;
        assert_eq!(code, 0, "{:#?}", self.log());
    }

    /// Sends SIGTERM; the process must end with exit code 0 within the shutdown timeout.
    pub async fn stop(self) {
        self.signal(Signal::SIGTERM);
        self.ended().await;
    }

    /// Waits for a clean shutdown after SIGTERM.
    pub async fn ended(mut self) {
        let code = self.child.exit_code(SHUTDOWN_TIMEOUT + Duration::from_millis(500)).await;
        assert_eq!(code, 0, "{:#?}", self.log());
    }

    /// Sends one request. `Err` means that no answer arrived.
    pub async fn try_send(&self, request: &Request) -> Result<HttpAnswer, reqwest::Error> {
        let client = &self.http[self.next.fetch_add(1, Ordering::Relaxed) % self.http.len()];
        let mut building = client
            .request(request.method.clone(), format!("{}{}", self.api, request.path))
            .bearer_auth(&request.token);
        if let Some(body) = &request.body {
            building = building.json(body);
        }
        if let Some(key) = &request.key {
            building = building.header("Idempotency-Key", key);
        }
        let response = building.send().await?;
        let status = response.status().as_u16();
        let replayed = response.headers().contains_key("Idempotent-Replayed");
        let retry_after = response.headers().contains_key("Retry-After");
        let text = response.text().await?;
        let body = serde_json::from_str(&text).unwrap_or(Value::String(text));
        Ok(HttpAnswer { status, replayed, retry_after, body })
    }

    pub async fn send(&self, request: &Request) -> HttpAnswer {
        self.try_send(request)
            .await
            .unwrap_or_else(|e| panic!("{request:?}: {e:?}\n{:#?}", self.log()))
    }

    /// Sends a request that must succeed.
    pub async fn done(&self, request: &Request) -> Value {
        let answer = self.send(request).await;
        assert!((200..300).contains(&answer.status), "{request:?}: {answer:?}");
        answer.body
    }
}

impl Drop for Instance {
    /// Prints the end of the log when the test has failed.
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.log();
            println!("the end of the log of {}:", self.ops);
            log.iter().skip(log.len().saturating_sub(30)).for_each(|line| println!("  {line}"));
        }
    }
}

/// Two instances that receive requests in turn.
pub struct Pair {
    pub instances: [Instance; 2],
    next: AtomicUsize,
}

impl Pair {
    pub fn any(&self) -> &Instance {
        &self.instances[self.next.fetch_add(1, Ordering::Relaxed) % 2]
    }

    pub async fn done(&self, request: &Request) -> Value {
        self.any().done(request).await
    }

    /// Sends all requests concurrently, alternating between the instances.
    pub async fn at_once(&self, requests: impl IntoIterator<Item = Request>) -> Vec<HttpAnswer> {
        let send = |request: Request| async move { self.any().send(&request).await };
        join_all(requests.into_iter().map(send)).await
    }

    /// The instance whose reconciler is the leader, and the other one.
    pub fn by_leadership(self) -> (Instance, Instance) {
        let [first, second] = self.instances;
        match (first.said(LEADS), second.said(LEADS)) {
            (true, false) => (first, second),
            (false, true) => (second, first),
            both => panic!("who leads? {both:?}"),
        }
    }
}

/// Logged by an instance when it becomes a cell's leader.
pub const LEADS: &str = "leads the cell's reconciler";

#[derive(Clone, Debug)]
pub struct Request {
    method: Method,
    path: String,
    body: Option<Value>,
    key: Option<String>,
    token: String,
}

impl Request {
    fn new(method: Method, path: impl Into<String>, body: Option<Value>) -> Self {
        Self { method, path: path.into(), body, key: None, token: token("backend", "service") }
    }

    pub fn post(path: impl Into<String>, body: Value) -> Self {
        Self::new(Method::POST, path, Some(body))
    }

    pub fn put(path: impl Into<String>, body: Value) -> Self {
        Self::new(Method::PUT, path, Some(body))
    }

    pub fn get(path: impl Into<String>) -> Self {
        Self::new(Method::GET, path, None)
    }

    pub fn charge(user: &str, amount: u64) -> Self {
        Self::post(format!("/v1/users/{user}/wallet/charges"), json!({ "amount": amount }))
    }

    pub fn issue(template: &str, user: &str) -> Self {
        Self::post(format!("/v1/coupon-templates/{template}/coupons"), json!({ "user_id": user }))
    }

    pub fn order(user: &str, product: &str, quantity: u64) -> Self {
        let items = json!([{ "product_id": product, "quantity": quantity }]);
        Self::post("/v1/orders", json!({ "user_id": user, "items": items }))
    }

    pub fn coupon(mut self, coupon: &str) -> Self {
        self.body.as_mut().unwrap()["coupon_id"] = json!(coupon);
        self
    }

    pub fn cancel(order: &str) -> Self {
        Self::new(Method::POST, format!("/v1/orders/{order}/cancel"), None)
    }

    pub fn put_product(id: &str, price: u64, stock: u64) -> Self {
        let body = json!({ "name": format!("Product {id}"), "price": price, "status": "on_sale", "stock": stock });
        Self::new(Method::PUT, format!("/v1/products/{id}"), Some(body)).admin()
    }

    pub fn restock(id: &str, delta: i64) -> Self {
        Self::post(format!("/v1/products/{id}/stock-adjustments"), json!({ "delta": delta }))
            .admin()
    }

    /// A template whose window is open now, with a discount of 1,000 won.
    pub fn put_template(id: &str, max_issued: u64) -> Self {
        let now = jiff::Timestamp::now();
        let hours = |n: i64| (now + jiff::SignedDuration::from_hours(n)).to_string();
        let body = json!({ "name": format!("Template {id}"), "discount": { "type": "amount", "value": 1_000 },
            "max_issued": max_issued, "issue_from": hours(-1), "issue_until": hours(24) });
        Self::new(Method::PUT, format!("/v1/coupon-templates/{id}"), Some(body)).admin()
    }

    pub fn admin(self) -> Self {
        Self { token: token("staff", "admin"), ..self }
    }

    /// Sent with the user's own token instead of the backend's.
    pub fn by(self, user: &str) -> Self {
        Self { token: token(user, "shop"), ..self }
    }

    pub fn token(self, token: &str) -> Self {
        Self { token: token.to_owned(), ..self }
    }

    pub fn key(self, key: &str) -> Self {
        Self { key: Some(key.to_owned()), ..self }
    }
}

pub fn token(sub: &str, scope: &str) -> String {
    mint_token(SECRET.as_bytes(), &user(sub), scope, Duration::from_secs(3_600)).unwrap()
}

#[derive(Clone, Debug)]
pub struct HttpAnswer {
    pub status: u16,
    pub replayed: bool,
    pub retry_after: bool,
    pub body: Value,
}

impl HttpAnswer {
    /// The problem's code; empty on success.
    pub fn code(&self) -> &str {
        self.body["code"].as_str().unwrap_or_default()
    }

    /// A text member of the body.
    pub fn text(&self, name: &str) -> String {
        self.body[name].as_str().unwrap().to_owned()
    }
}

/// The bodies of the 201 answers, and the number of answers per refusal code.
pub fn sorted(answers: &[HttpAnswer]) -> (Vec<&Value>, HashMap<&str, usize>) {
    let accepted = answers.iter().filter(|a| a.status == 201).map(|a| &a.body).collect();
    let mut refused = HashMap::new();
    for answer in answers.iter().filter(|a| a.status != 201) {
        *refused.entry(answer.code()).or_default() += 1;
    }
    (accepted, refused)
}

/// Polls until `ask` returns a value; panics after [`LIMIT`].
pub async fn eventually<T, F: Future<Output = Option<T>>>(what: &str, ask: impl Fn() -> F) -> T {
    eventually_mut(what, ask).await
}

async fn eventually_mut<T, F: Future<Output = Option<T>>>(
    what: &str,
    mut ask: impl FnMut() -> F,
) -> T {
    let deadline = Instant::now() + LIMIT;
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(Instant::now() < deadline, "timed out; expected: {what}");
        tokio::time::sleep(POLL).await;
    }
}
