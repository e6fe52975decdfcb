//! Private servers, and shops on them. A [`Shop`] has a Redis, a database and any number of
//! `rushgate serve` processes ([`Instance`]).
//!
//! All changes go through the HTTP API, like the requests of clients.

use std::collections::{BTreeMap, HashSet};
use std::io::Read as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rushgate_local_servers::{
    DataFolder, PostgresOptions, PostgresServer, RabbitMqOptions, RabbitMqServer, RedisOptions,
    RedisServer,
};
use serde_json::{Value, json};
use sqlx::PgPool;
use sqlx::postgres::PgPoolOptions;

use crate::http::{self, Drive, Pace};
use crate::redis::Redis;
use crate::token::mint_token;
use crate::{Failure, Outcome};

pub const SECRET: &str = "the bench's own secret, of more than 32 bytes";
const TOKEN_TTL: Duration = Duration::from_secs(24 * 60 * 60);
const START_LIMIT: Duration = Duration::from_secs(60);
const STOP_LIMIT: Duration = Duration::from_secs(15);
/// A message that is in the queue is delivered within this time.
const MESSAGE_LIMIT: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_millis(10);
/// Connections used to fill a shop.
const FILLERS: usize = 256;
/// The size of PostgreSQL's cache is chosen for a small machine. The settings that make commits
/// durable keep their defaults.
const POSTGRES_SETTINGS: [(&str, &str); 2] = [("shared_buffers", "512MB"), ("max_wal_size", "4GB")];

/// Niceness of servers that share a machine with the deciding path: Rushgate's
/// `config::bounds::FOLLOWERS_NICENESS`.
pub const FOLLOWERS_NICENESS: u8 = 10;

/// Servers that may be shared by several shops.
pub struct Servers {
    pub postgres: PostgresServer,
    pub rabbitmq: RabbitMqServer,
}

impl Servers {
    pub async fn start() -> Outcome<Self> {
        let mut postgres =
            PostgresOptions::new(DataFolder::Scratch).with_niceness(FOLLOWERS_NICENESS);
        postgres.extra_config =
            POSTGRES_SETTINGS.map(|(name, value)| (name.into(), value.into())).to_vec();
        let rabbitmq = RabbitMqOptions::new(DataFolder::Scratch).with_niceness(FOLLOWERS_NICENESS);
        let rabbitmq = RabbitMqServer::start(rabbitmq);
        let (postgres, rabbitmq) = tokio::try_join!(PostgresServer::start(postgres), rabbitmq)?;
        Ok(Self { postgres, rabbitmq })
    }

    /// Creates an empty shop.
    pub async fn shop(&self, name: &str) -> Outcome<Shop> {
        let redis = RedisServer::start(RedisOptions::new(DataFolder::Scratch)).await?;
        let database_url = self.postgres.create_database(name).await?;
        let pool = PgPoolOptions::new().max_connections(2).connect_lazy(&database_url)?;
        let amqp_url = self.rabbitmq.url();
        Ok(Shop { redis, database_url, amqp_url, pool, instances: AtomicU32::new(0) })
    }

    pub async fn stop(&self) {
        tokio::join!(self.rabbitmq.stop(), self.postgres.stop());
    }
}

pub struct Shop {
    pub redis: RedisServer,
    pub database_url: String,
    pub amqp_url: String,
    pub pool: PgPool,
    instances: AtomicU32,
}

/// The queue for the relay's messages: Rushgate's `relay::topology::ORDERS_QUEUE`.
pub const ORDERS_QUEUE: &str = "data-platform.orders";

impl Shop {
    fn command(&self, rushgate: &Path, args: &[&str]) -> Command {
        // The kernel kills the process when this one ends in any way.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--"]).arg(rushgate).args(args);
        command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command.envs([
            ("RUSHGATE_REDIS_URL", self.redis.url().as_str()),
            ("RUSHGATE_DATABASE_URL", &self.database_url),
            ("RUSHGATE_AMQP_URL", &self.amqp_url),
            ("RUSHGATE_JWT_SECRET", SECRET),
            ("RUSHGATE_LISTEN", "127.0.0.1:0"),
            ("RUSHGATE_OPS_LISTEN", "127.0.0.1:0"),
            ("RUSHGATE_CHARGE_SCOPE", "shop"),
            ("RUSHGATE_USER_WRITE_RATE", "off"),
            ("RUSHGATE_LOG_FORMAT", "json"),
            ("RUSHGATE_DRAIN_SECS", "0"),
        ]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command
    }

    /// Starts an instance with additional settings and waits until it is ready.
    pub fn serve(&self, rushgate: &Path, settings: &[(&str, &str)]) -> Outcome<Instance> {
        let instance = self.start(rushgate, settings)?;
        instance.until_ready()?;
        Ok(instance)
    }

    /// Starts an instance and waits until it listens.
    pub fn start(&self, rushgate: &Path, settings: &[(&str, &str)]) -> Outcome<Instance> {
        let number = self.instances.fetch_add(1, Ordering::Relaxed);
        let log = self.redis.folder().join(format!("rushgate-{number}.log"));
        let mut command = self.command(rushgate, &["serve"]);
        command.envs(settings.iter().copied()).stderr(std::fs::File::create(&log)?);
        let mut instance = Instance {
            child: command.spawn()?,
            api: ([127, 0, 0, 1], 0).into(),
            ops: ([127, 0, 0, 1], 0).into(),
            log,
        };
        let line = instance.until_said("\"serving\"")?;
        let fields = serde_json::from_str::<Value>(&line)?["fields"].take();
        let address = |name: &str| -> Outcome<SocketAddr> {
            let text = fields[name]
                .as_str()
                .unwrap_or("")
                .trim_start_matches("Some(")
                .trim_end_matches(')');
            // Without the role `api` there is no API address.
            if text.is_empty() || text == "None" {
                Ok(([127, 0, 0, 1], 0).into())
            } else {
                Ok(text.parse()?)
            }
        };
        (instance.api, instance.ops) = (address("api")?, address("ops")?);
        Ok(instance)
    }

    /// Runs `rushgate audit`, which must be clean, and returns its report.
    pub fn audit(&self, rushgate: &Path) -> Outcome<String> {
        let output =
            self.command(rushgate, &["audit", "--wait", "120s"]).stdout(Stdio::piped()).output()?;
        let report = String::from_utf8_lossy(&output.stdout).into_owned();
        if output.status.success() {
            Ok(report)
        } else {
            Err(format!("the audit is not clean:\n{report}").into())
        }
    }

    /// Runs a `rushgate` command that must succeed.
    pub fn run(&self, rushgate: &Path, args: &[&str]) -> Outcome<()> {
        let output = self.command(rushgate, args).stderr(Stdio::piped()).output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        if output.status.success() {
            Ok(())
        } else {
            Err(format!("rushgate {args:?}: {said}").into())
        }
    }

    /// Stops the shop's Redis. The database remains until PostgreSQL stops.
    pub async fn close(&self) {
        self.pool.close().await;
        self.redis.stop().await;
    }

    pub fn log(&self) -> Outcome<crate::redis::Log> {
        Redis::connect(self.redis.port())?.log()
    }

    /// Waits until PostgreSQL and RabbitMQ have everything and no rewrite of Redis' append-only
    /// file is running.
    pub async fn settle(&self, limit: Duration) -> Outcome<()> {
        let mut redis = Redis::connect(self.redis.port())?;
        let give_up = Instant::now() + limit;
        loop {
            let log = redis.log()?;
            if log.applied == log.seq && self.outbox_is_empty().await? {
                let info = redis.info()?;
                let busy = [
                    "aof_rewrite_in_progress",
                    "aof_rewrite_scheduled",
                    "lazyfree_pending_objects",
                ];
                if busy.iter().all(|name| info.get(*name) == Some(&0)) {
                    return Ok(());
                }
            }
            if Instant::now() > give_up {
                return Err(format!("not settled after {limit:?}: {log:?}").into());
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Compares counters. A query for remaining rows would have to read past all deleted ones each
    /// time.
    async fn outbox_is_empty(&self) -> Outcome<bool> {
        let counted = "SELECT (SELECT coalesce(sum(events_written), 0) FROM cell_cursors) \
                       = (SELECT coalesce(sum(events_published), 0) FROM relay_progress)";
        Ok(sqlx::query_scalar(counted).fetch_one(&self.pool).await?)
    }

    /// Purges the data platform's queue. Returns the number of messages.
    pub async fn empty_queue(&self) -> Outcome<u32> {
        use lapin::{Connection, ConnectionProperties, options::QueuePurgeOptions};
        let connection =
            Connection::connect(&self.amqp_url, ConnectionProperties::default()).await?;
        let channel = connection.create_channel().await?;
        let count = channel.queue_purge(ORDERS_QUEUE.into(), QueuePurgeOptions::default()).await?;
        connection.close(200, "done".into()).await?;
        Ok(count)
    }

    /// Takes all messages from the data platform's queue. Returns the ids by routing key; a message
    /// that was delivered twice counts once.
    pub async fn take_messages(&self) -> Outcome<BTreeMap<String, HashSet<String>>> {
        use futures_util::StreamExt as _;
        use lapin::options::{BasicConsumeOptions, QueueDeclareOptions};
        use lapin::{Connection, ConnectionProperties, types::FieldTable};
        let connection =
            Connection::connect(&self.amqp_url, ConnectionProperties::default()).await?;
        let channel = connection.create_channel().await?;
        let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        let queue = channel.queue_declare(ORDERS_QUEUE.into(), passive, FieldTable::default());
        let waiting = queue.await?.message_count();
        let options = BasicConsumeOptions { no_ack: true, ..BasicConsumeOptions::default() };
        let mut consumer = channel
            .basic_consume(ORDERS_QUEUE.into(), "".into(), options, FieldTable::default())
            .await?;
        let mut found: BTreeMap<String, HashSet<String>> = BTreeMap::new();
        for _ in 0..waiting {
            let next = tokio::time::timeout(MESSAGE_LIMIT, consumer.next()).await;
            let delivery = next?.ok_or("RabbitMQ ended the delivery")??;
            let id = delivery.properties.message_id().as_ref().map(ToString::to_string);
            let ids = found.entry(delivery.routing_key.to_string()).or_default();
            ids.insert(id.ok_or("a message without an id")?);
        }
        connection.close(200, "done".into()).await?;
        Ok(found)
    }
}

/// A token for the shop's backend, for staff or for a user.
pub fn token(subject: &str, scope: &str) -> Outcome<String> {
    mint_token(SECRET.as_bytes(), subject, scope, TOKEN_TTL)
}

/// A running `rushgate serve`; killed on drop.
pub struct Instance {
    child: Child,
    pub api: SocketAddr,
    pub ops: SocketAddr,
    log: PathBuf,
}

impl Instance {
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits for a log line that contains this text.
    pub fn until_said(&mut self, text: &str) -> Outcome<String> {
        let give_up = Instant::now() + START_LIMIT;
        loop {
            let log = std::fs::read_to_string(&self.log).unwrap_or_default();
            // The last line may be incomplete.
            let whole = log.split_inclusive('\n').filter(|line| line.ends_with('\n'));
            if let Some(line) = whole.into_iter().find(|line| line.contains(text)) {
                return Ok(line.to_owned());
            }
            if let Some(status) = self.child.try_wait()? {
                return Err(format!("rushgate ended ({status}):\n{log}").into());
            }
            if Instant::now() > give_up {
                return Err(format!("rushgate does not say {text}:\n{log}").into());
            }
            std::thread::sleep(POLL);
        }
    }

    pub fn until_ready(&self) -> Outcome<()> {
        let give_up = Instant::now() + START_LIMIT * 5;
        loop {
            let (status, why) =
                http::ask(self.ops, &http::request("GET", "/readyz", None, "", ""))?;
            if status == 200 {
                return Ok(());
            }
            if Instant::now() > give_up {
                return Err(format!("rushgate is not ready: {why}").into());
            }
            std::thread::sleep(POLL);
        }
    }

    /// The number of answers by `<method> <route> <status> <refusal code>`.
    pub fn answers(&self) -> Outcome<BTreeMap<String, u64>> {
        let (_, text) = http::ask(self.ops, &http::request("GET", "/metrics", None, "", ""))?;
        let mut answers = BTreeMap::new();
        for line in
            text.lines().filter_map(|line| line.strip_prefix("rushgate_http_requests_total{"))
        {
            let (labels, value) = line.split_once("} ").ok_or("a metric without a value")?;
            let label = |name: &str| {
                let (_, rest) = labels.split_once(&format!("{name}=\""))?;
                rest.split_once('"').map(|(value, _)| value)
            };
            let [method, route, status, code] =
                ["method", "route", "status", "code"].map(|n| label(n).unwrap_or(""));
            answers.insert(
                format!("{method} {route} {status} {code}").trim_end().to_owned(),
                value.parse()?,
            );
        }
        Ok(answers)
    }

    /// Sends a request by staff that must succeed.
    pub fn staff(&self, method: &str, path: &str, body: &Value) -> Outcome<Value> {
        let token = token("bench-staff", "admin")?;
        let request = http::request(method, path, Some(&token), "", &body.to_string());
        let (status, text) = http::ask(self.api, &request)?;
        match status {
            200 | 201 => Ok(serde_json::from_str(&text)?),
            _ => Err(format!("{method} {path}: {status} {text}").into()),
        }
    }

    pub fn put_product(&self, id: &str, price: u64, stock: u64) -> Outcome<()> {
        let body = json!({"name": format!("Product {id}"), "price": price, "status": "on_sale", "stock": stock});
        self.staff("PUT", &format!("/v1/products/{id}"), &body).map(drop)
    }

    /// An open template with a discount of 500 won.
    pub fn put_template(&self, id: &str, max_issued: u64) -> Outcome<()> {
        let body = json!({
            "name": format!("Template {id}"), "discount": {"type": "amount", "value": 500}, "max_issued": max_issued,
            "issue_from": "2020-01-01T00:00:00Z", "issue_until": "2100-01-01T00:00:00Z",
        });
        self.staff("PUT", &format!("/v1/coupon-templates/{id}"), &body).map(drop)
    }

    /// Sends `count` requests of the shop's backend, each of which must be answered with 201.
    /// Passes on the answers.
    pub fn fill(
        &self,
        count: u64,
        path: impl Fn(u64) -> String,
        body: impl Fn(u64) -> String,
        mut take: impl FnMut(u64, &[u8]),
    ) -> Outcome<()> {
        let token = token("bench-backend", "service")?;
        let drive = Drive { address: self.api, connections: FILLERS, pace: Pace::AtOnce, count };
        let write = |index: u64, out: &mut Vec<u8>| {
            out.extend_from_slice(
                http::request("POST", &path(index), Some(&token), "", &body(index)).as_bytes(),
            );
        };
        drive.run(write, |answer| {
            if answer.status != 201 {
                let text = String::from_utf8_lossy(answer.body);
                return Err(Failure::from(format!(
                    "{}: {} {text}",
                    path(answer.index),
                    answer.status
                )));
            }
            take(answer.index, answer.body);
            Ok(())
        })?;
        Ok(())
    }

    /// Sends SIGTERM and waits until the process has ended.
    pub fn stop(mut self) -> Outcome<()> {
        kill(Pid::from_raw(self.child.id().cast_signed()), Signal::SIGTERM)?;
        let give_up = Instant::now() + STOP_LIMIT;
        while self.child.try_wait()?.is_none() {
            if Instant::now() > give_up {
                return Err("rushgate does not stop".into());
            }
            std::thread::sleep(POLL);
        }
        Ok(())
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        let _ = self.child.kill(); // may have exited already
        let _ = self.child.wait();
    }
}

/// The empty handler that rows are compared with; killed on drop.
pub struct EmptyHandler {
    child: Child,
    pub address: SocketAddr,
}

impl EmptyHandler {
    pub fn start(program: &Path) -> Outcome<Self> {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--"]).arg(program);
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
        let mut line = Vec::new();
        let mut output = child.stdout.take().ok_or("no standard output")?;
        while !line.ends_with(b"\n") {
            let mut byte = [0];
            if output.read(&mut byte)? == 0 {
                return Err(format!("{} says no address", program.display()).into());
            }
            line.push(byte[0]);
        }
        let address = String::from_utf8(line)?.trim().parse()?;
        Ok(Self { child, address })
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for EmptyHandler {
    fn drop(&mut self) {
        let _ = self.child.kill(); // may have exited already
        let _ = self.child.wait();
    }
}
