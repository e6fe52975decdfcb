//! Settings: flags and environment variables, their defaults, and the checks of one against another.
//!
//! Bounds that are no settings stand in [`bounds`].

use axum::http::HeaderValue;
use clap::{Args, ValueEnum};
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

mod limits;
pub mod secret_files;

pub use limits::{Limits, Quota, Rate};

/// Fixed bounds of waits, queues and retries, in one place.
pub mod bounds {
    use std::time::Duration;

    /// Largest request body, in bytes.
    pub const MAX_BODY_BYTES: usize = 16 * 1024;
    /// When all connections are taken, one that has been idle for this long is closed.
    pub const CROWDED_IDLE: Duration = Duration::from_secs(1);
    /// How often files that may change (keys, certificates) are looked at.
    pub const RELOAD_POLL: Duration = Duration::from_secs(1);
    /// Bytes of such a file.
    pub const MAX_RELOADED_BYTES: u64 = 256 * 1024;
    /// How often callers who have been quiet are forgotten by the rate limits.
    pub const RATE_UPKEEP: Duration = Duration::from_secs(10);
    /// Bytes of one request's headers.
    pub const MAX_HEADER_BYTES: u32 = 32 * 1024;
    /// Pause after a connection could not be accepted (usually: no file descriptor is left).
    pub const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
    /// How long a stopping server waits for requests under way; the rest of SHUTDOWN_TIMEOUT is for what comes after.
    pub const DRAIN_TIMEOUT: Duration = Duration::from_secs(7);
    /// How long a stopping server waits for the first request of a connection.
    pub const FIRST_REQUEST_GRACE: Duration = Duration::from_millis(200);
    /// How often metrics are folded; without it their memory grows, and whoever asks for them waits for it.
    pub const METRICS_UPKEEP: Duration = Duration::from_millis(250);
    /// How often cells, outbox, templates and the like are looked at for metrics.
    pub const METRICS_SAMPLE: Duration = Duration::from_secs(2);
    /// Templates that have metrics of their own.
    pub const METRICS_TEMPLATES: usize = 50;
    /// How often all templates are looked through for open ones …
    pub const METRICS_TEMPLATES_SCAN: Duration = Duration::from_secs(10);
    /// … and how many pages of them at most.
    pub const METRICS_TEMPLATE_PAGES: usize = 50;
    /// From the moment when the ports close (SIGTERM and RUSHGATE_DRAIN_SECS) to the end of the process.
    pub const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(10);
    /// First connection to a server at start-up.
    pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
    /// How often a starting instance looks whether PostgreSQL, which was away, can be used.
    pub const DATABASE_RETRY: Duration = Duration::from_secs(1);
    /// How often readiness looks at Redis and PostgreSQL while nobody asks …
    pub const READY_LOOK: Duration = Duration::from_millis(500);
    /// … how long an answer of `/readyz` waits for a look that is as of now …
    pub const READY_PATIENCE: Duration = Duration::from_millis(100);
    /// … and from when on a server that has not answered counts as away.
    pub const READY_STALE: Duration = Duration::from_secs(2);
    /// Pause before a role that has ended is started again; doubles with each further end …
    pub const ROLE_RESTART_FIRST: Duration = Duration::from_millis(500);
    /// … up to this. A run that was longer counts as recovered.
    pub const ROLE_RESTART_MAX: Duration = Duration::from_secs(30);
    /// How often a failure that goes on is told again, with its count.
    pub const REPEATS_TOLD_EVERY: Duration = Duration::from_secs(120);
    /// One Redis command, gate scripts included.
    pub const REDIS_COMMAND_TIMEOUT: Duration = Duration::from_millis(2_500);
    /// How long a blocking read waits for new log entries; below the command timeout.
    pub const LOG_POLL: Duration = Duration::from_millis(500);
    /// Entries that stay in the log behind the cursor.
    pub const LOG_KEPT_ENTRIES: u64 = 1_000;
    /// Entries that the reconciler applies in one transaction.
    pub const APPLY_ENTRIES: u64 = 64;
    /// Bytes of their payloads and traces together; a single larger entry is still applied.
    pub const APPLY_BYTES: usize = 512 * 1024;
    /// Bytes of the log that one call reads at most, and a larger entry in so many parts …
    pub const LOG_READ_BYTES: usize = 1024 * 1024;
    /// … and how far this is halved while a call takes longer than it should.
    pub const LOG_READ_BYTES_LEAST: usize = 16 * 1024;
    /// A call that reads the log should take no longer, so that what is asked on the same connection is answered in time.
    pub const LOG_READ_SHOULD_TAKE: Duration = Duration::from_millis(600);
    /// Entries from this size on are waited for by looking at `meta`, since a blocking read would bring them whole …
    pub const LOG_LARGE_ENTRY_BYTES: usize = 64 * 1024;
    /// … as often as this.
    pub const LOG_LOOK: Duration = Duration::from_millis(25);
    /// Shortest time from one transaction of the reconciler to the next, while it is level with the gate: fewer and larger
    /// ones cost less …
    pub const APPLY_PACE: Duration = Duration::from_millis(25);
    /// … and with `RUSHGATE_ACK=truth`, where clients wait for each.
    pub const APPLY_PACE_WAITED_FOR: Duration = Duration::from_millis(5);
    /// The niceness of what follows the gate, where it shares a machine with what decides: clients wait for that, and
    /// reconciler, relay, the folding of metrics, PostgreSQL and RabbitMQ follow, with what it leaves them.
    pub const FOLLOWERS_NICENESS: u8 = 10;
    /// Pause between two looks at something that failed.
    pub const RETRY_PAUSE: Duration = Duration::from_millis(500);
    /// How long a sold-out verdict is answered from memory.
    pub const SOLD_OUT_MEMORY: Duration = Duration::from_millis(200);
    /// Templates and products whose sold-out verdicts one instance remembers.
    pub const SOLD_OUT_ENTRIES: usize = 10_000;
    /// How often a batch is sent again after a refusal that changed nothing and that a repeat can mend.
    pub const GATE_REPEATS: u32 = 3;
    /// Lines of orders that one call decides together, so that it stays short and its entry small; a single larger order is still
    /// decided.
    pub const BATCH_LINES: usize = 1_024;
    /// Bytes of coupons of those who hold very many that one call is asked to write, as `lua/gate.lua` has it.
    pub const BATCH_HELD_BYTES: usize = 160 * 1024;
    /// Calls of a script that reads begin at least so far apart …
    pub const READS_GATHER: Duration = Duration::from_millis(1);
    /// … if the one before was for so many requests or more: a few get their answers at once.
    pub const READS_FEW: usize = 8;
    /// Seconds that a client is told to wait after a 503.
    pub const RETRY_AFTER_SECS: u64 = 1;

    /// Events that the relay has under way at once, in number …
    pub const RELAY_ROWS: i64 = 1_000;
    /// … and in bytes; a single larger event is still sent.
    pub const RELAY_BYTES: i64 = 4 * 1024 * 1024;
    /// How often the relay looks into the outbox, as long as it empties it: an event waits this long at most, then only for
    /// RabbitMQ.
    pub const RELAY_POLL: Duration = Duration::from_millis(50);
    /// How often the relay looks for events before those that it has delivered.
    pub const RELAY_LOOK_BELOW: Duration = Duration::from_secs(1);
    /// How often a stand-by tries to become the relay.
    pub const RELAY_STANDBY_POLL: Duration = Duration::from_secs(1);
    /// Connecting to RabbitMQ, its handshake included.
    pub const RELAY_CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
    /// Declaring exchanges, queues and bindings.
    pub const RELAY_TOPOLOGY_TIMEOUT: Duration = Duration::from_secs(10);
    /// Handing the events of one step to RabbitMQ; it takes none while its memory or disk alarm is on.
    pub const RELAY_PUBLISH_TIMEOUT: Duration = Duration::from_secs(5);
    /// From the last event of a step to its confirm.
    pub const RELAY_CONFIRM_TIMEOUT: Duration = Duration::from_secs(10);
    /// Connecting to PostgreSQL, or one statement there, by the relay.
    pub const RELAY_TRUTH_TIMEOUT: Duration = Duration::from_secs(5);
    /// The first claim of a leader, which may meet millions of deleted rows.
    pub const RELAY_FIRST_CLAIM_TIMEOUT: Duration = Duration::from_secs(60);
    /// Pause after the first failure of the relay; doubles with each further one …
    pub const RELAY_RETRY_FIRST: Duration = Duration::from_millis(100);
    /// … up to this.
    pub const RELAY_RETRY_MAX: Duration = Duration::from_secs(5);
    /// Pause after RabbitMQ refused an event, or while exchanges or queues are declared otherwise.
    pub const RELAY_REFUSED_PAUSE: Duration = Duration::from_secs(2);
    /// Heartbeat of the connection to RabbitMQ, in seconds.
    pub const RELAY_HEARTBEAT_SECS: u16 = 10;
    /// How often RabbitMQ's queues are measured.
    pub const RELAY_MEASURE: Duration = Duration::from_secs(5);
    /// How long a step under way may go on at shutdown, so that what was confirmed is not sent again.
    pub const RELAY_STOP_GRACE: Duration = Duration::from_secs(2);
    /// Deliveries of one event to a consumer that keeps failing before it is dead-lettered.
    pub const RELAY_DELIVERY_LIMIT: i64 = 10;

    /// How often the scheduler looks whether something is due.
    pub const SCHEDULER_TICK: Duration = Duration::from_secs(60);
    /// A midnight is acted on this long after it: the gate's clock, which dates orders, may be that far behind.
    pub const SCHEDULER_GRACE: Duration = Duration::from_secs(2);
    /// How long one tick waits for PostgreSQL to follow the gate …
    pub const SCHEDULER_CATCH_UP: Duration = Duration::from_secs(10);
    /// … and how long after midnight ticks insist on it, before the list is made from what is there.
    pub const SCHEDULER_PATIENCE: Duration = Duration::from_secs(30 * 60);
    /// Lists of popular products that are kept.
    pub const SCHEDULER_LISTS: i64 = 10;

    /// How long a step of a migration waits for a lock: others wait behind it in the lock's queue.
    pub const MIGRATION_LOCK_TIMEOUT: Duration = Duration::from_millis(500);
    /// The longest pause before such a step is tried again …
    pub const MIGRATION_RETRY_MAX: Duration = Duration::from_secs(10);
    /// … and how long it is tried, or another instance that migrates is waited for.
    pub const MIGRATION_PATIENCE: Duration = Duration::from_secs(30 * 60);

    /// Elements that one page of a scan through Redis asks for.
    pub const SCAN_PAGE: u32 = 500;
    /// How often the audit compares, at most, because the gate went on meanwhile.
    pub const AUDIT_ATTEMPTS: u32 = 5;
    /// How often the audit looks whether PostgreSQL has caught up.
    pub const AUDIT_POLL: Duration = Duration::from_millis(50);

    /// About how many pages of the catalogue are kept as JSON, and how many bytes of them at most.
    pub const RENDERED_PAGES: usize = 1_000;
    pub const RENDERED_PAGES_BYTES: u64 = 8 * 1024 * 1024;

    /// Decisions that an instance remembers until PostgreSQL has them.
    pub const UNSETTLED_DECISIONS: usize = 100_000;
    /// … and so many of the latest ones whose places PostgreSQL is past …
    pub const SETTLED_DECISIONS: usize = 50_000;
    /// … of which so many are looked up at once after a rebuild.
    pub const SUSPECTS_AT_ONCE: usize = 10_000;
    /// How often it looks whether PostgreSQL has them.
    pub const LOSSES_CHECK: Duration = Duration::from_secs(1);
    /// Lost decisions that are logged one by one; more are only counted.
    pub const LOSSES_TOLD: usize = 1_000;

    /// How far Redis' clock may be ahead of an instance's before that instance lets nothing be dated by it.
    pub const CLOCK_JUMP_LIMIT: Duration = Duration::from_secs(2 * 60 * 60);
    /// Clocks that differ by less count as the same when the gate's is set back …
    pub const CLOCK_SAME: Duration = Duration::from_secs(5);
    /// … and how long that waits for PostgreSQL to have what was dated before.
    pub const CLOCK_RESET_WAIT: Duration = Duration::from_secs(30);

    /// How often an instance looks at PostgreSQL's cursors, at least …
    pub const FENCE_LOOK_EVERY: Duration = Duration::from_millis(500);
    /// … while another Redis or epoch than its own stands there …
    pub const FENCE_LOOK_REFUSED: Duration = Duration::from_millis(50);
    /// … and how long such a look may take before PostgreSQL counts as away; it is waited for all the same, …
    pub const FENCE_LOOK_LIMIT: Duration = Duration::from_millis(400);
    /// … for this long.
    pub const FENCE_ANSWER_LIMIT: Duration = Duration::from_secs(5);
    /// How long, from its beginning, a look lets an instance decide.
    pub const FENCE_LEASE: Duration = Duration::from_secs(1);
    /// With less than this left of it, the next look is waited for.
    pub const FENCE_LEASE_LEAST: Duration = Duration::from_millis(250);
    /// How long a rebuild on another Redis waits between moving the cursor and opening: every lease that began before is
    /// over, with a margin for clocks that run at different speeds.
    pub const FENCE_WAIT: Duration = Duration::from_millis(1_500);
    /// A reply of Redis that is older does not tell what its clock shows now.
    pub const FENCE_CLOCK_AGE: Duration = Duration::from_secs(5);
    /// When a connection that leads to another Redis than the gate is made anew, and how much later each further time …
    pub const FENCE_FOLLOW_FIRST: Duration = Duration::from_secs(3);
    /// … up to this.
    pub const FENCE_FOLLOW_MAX: Duration = Duration::from_secs(15);
    // A look that fails still comes before the lease of the one before it ends, and a rebuild outwaits every lease.
    const _: () = assert!(
        FENCE_LOOK_EVERY.as_millis() + FENCE_LOOK_LIMIT.as_millis() < FENCE_LEASE.as_millis()
            && FENCE_WAIT.as_millis() >= FENCE_LEASE.as_millis() * 3 / 2
    );
}

/// Where the servers are. Shared by all commands that talk to them.
#[derive(Args, Clone)]
pub struct Servers {
    /// Redis: redis://, rediss:// (TLS), redis-sentinel:// or redis-cluster://; RUSHGATE_REDIS_URL_FILE: from a file
    #[arg(
        long,
        env = "RUSHGATE_REDIS_URL",
        default_value = "redis://127.0.0.1:6379",
        hide_env_values = true
    )]
    pub redis_url: String,
    /// PostgreSQL; RUSHGATE_DATABASE_URL_FILE: from a file
    #[arg(
        long,
        env = "RUSHGATE_DATABASE_URL",
        default_value = "postgres://postgres@127.0.0.1:5432/rushgate",
        hide_env_values = true
    )]
    pub database_url: String,
    /// RabbitMQ; RUSHGATE_AMQP_URL_FILE: from a file
    #[arg(
        long,
        env = "RUSHGATE_AMQP_URL",
        default_value = "amqp://guest:guest@127.0.0.1:5672/%2f",
        hide_env_values = true
    )]
    pub amqp_url: String,
    /// Number of cells (independent gates); only 1 for now
    #[arg(long, env = "RUSHGATE_CELLS", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1))]
    pub cells: u32,
    /// strict: refuse to serve on a Redis that would lose acknowledged writes; relaxed: only warn
    #[arg(long, env = "RUSHGATE_DURABILITY", value_enum, default_value_t = Durability::Strict)]
    pub durability: Durability,
    /// What an instance does that has not seen PostgreSQL for a second: available: go on deciding; strict: refuse
    #[arg(long, env = "RUSHGATE_FENCE", value_enum, default_value_t = FenceMode::Available)]
    pub fence: FenceMode,
}

/// Addresses hold passwords.
impl fmt::Debug for Servers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Servers")
            .field("cells", &self.cells)
            .field("durability", &self.durability)
            .finish_non_exhaustive()
    }
}

/// How tokens are checked: by exactly one of secret and key file.
#[derive(Args, Clone)]
pub struct Auth {
    /// Secret of HS256 tokens; use at least 32 bytes; RUSHGATE_JWT_SECRET_FILE: from a file
    #[arg(long, env = "RUSHGATE_JWT_SECRET", hide_env_values = true)]
    pub jwt_secret: Option<String>,
    /// JWKS file with the public keys of EdDSA, ES256 or RS256 tokens; read again whenever it changes
    #[arg(long, env = "RUSHGATE_JWT_JWKS_FILE")]
    pub jwt_jwks_file: Option<PathBuf>,
    #[command(flatten)]
    pub claims: ExpectedClaims,
    /// Seconds by which clocks may differ when exp and nbf are checked
    #[arg(long, env = "RUSHGATE_JWT_LEEWAY_SECS", default_value_t = 0, value_parser = clap::value_parser!(u64).range(0..=300))]
    pub jwt_leeway_secs: u64,
}

/// For whom tokens are made and by whom; what is not set is not looked at.
#[derive(Args, Clone, Debug, Default)]
pub struct ExpectedClaims {
    /// Audience that a token's aud must name
    #[arg(long, env = "RUSHGATE_JWT_AUDIENCE")]
    pub jwt_audience: Option<String>,
    /// Issuer that a token's iss must be
    #[arg(long, env = "RUSHGATE_JWT_ISSUER")]
    pub jwt_issuer: Option<String>,
}

impl fmt::Debug for Auth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Auth").field("jwt_jwks_file", &self.jwt_jwks_file).finish_non_exhaustive()
    }
}

/// TLS of the API's port: both files, or neither. They are read again whenever they change.
#[derive(Args, Clone, Debug, Default)]
pub struct TlsFiles {
    /// Certificate chain (PEM) of the API's port; with RUSHGATE_TLS_KEY_FILE, it speaks TLS only
    #[arg(long, env = "RUSHGATE_TLS_CERT_FILE")]
    pub tls_cert_file: Option<PathBuf>,
    /// Private key (PEM) of the certificate
    #[arg(long, env = "RUSHGATE_TLS_KEY_FILE")]
    pub tls_key_file: Option<PathBuf>,
}

/// Settings of `rushgate serve`.
#[derive(Args, Clone, Debug)]
pub struct Serve {
    #[command(flatten)]
    pub servers: Servers,
    #[command(flatten)]
    pub auth: Auth,
    #[command(flatten)]
    pub limits: Limits,
    #[command(flatten)]
    pub tls: TlsFiles,
    /// Least scope that may charge a wallet: service, or shop: end users charge their own
    #[arg(long, env = "RUSHGATE_CHARGE_SCOPE", value_enum, default_value_t = ChargeScope::Service)]
    pub charge_scope: ChargeScope,
    /// Origins whose pages may call the API (CORS), such as https://shop.example; none: only pages from here
    #[arg(long, env = "RUSHGATE_CORS_ORIGINS", value_delimiter = ',', value_parser = parse_origin)]
    pub cors_origins: Vec<HeaderValue>,
    /// Address of the API
    #[arg(long, env = "RUSHGATE_LISTEN", default_value = "0.0.0.0:8080")]
    pub listen: SocketAddr,
    /// Address of /healthz, /readyz and /metrics
    #[arg(long, env = "RUSHGATE_OPS_LISTEN", default_value = "0.0.0.0:9090")]
    pub ops_listen: SocketAddr,
    /// Seconds from SIGTERM, when /readyz turns 503, until the ports close; 0: at once
    #[arg(long, env = "RUSHGATE_DRAIN_SECS", default_value_t = 5, value_parser = clap::value_parser!(u64).range(0..=60))]
    pub drain_secs: u64,
    /// What this instance does
    #[arg(
        long,
        env = "RUSHGATE_ROLES",
        value_enum,
        value_delimiter = ',',
        default_value = "api,reconciler,relay,scheduler"
    )]
    pub roles: Vec<Role>,
    /// gate: answer when Redis has it on disk; truth: answer when PostgreSQL has it too
    #[arg(long, env = "RUSHGATE_ACK", value_enum, default_value_t = Ack::Gate)]
    pub ack: Ack,
    /// Time zone whose 00:00 refreshes the popular products
    #[arg(long, env = "RUSHGATE_TIMEZONE", default_value = "Asia/Seoul")]
    pub timezone: String,
    /// Time limit of a request; the gate refuses it once this has passed
    #[arg(long, env = "RUSHGATE_REQUEST_TIMEOUT_MS", default_value_t = 3_000, value_parser = clap::value_parser!(u64).range(100..=60_000))]
    pub request_timeout_ms: u64,
    /// How long an answer may wait for PostgreSQL (reads of orders and ledgers; RUSHGATE_ACK=truth)
    #[arg(long, env = "RUSHGATE_TRUTH_TIMEOUT_MS", default_value_t = 2_000, value_parser = clap::value_parser!(u64).range(10..=60_000))]
    pub truth_timeout_ms: u64,
    /// Log entries that PostgreSQL may be behind before the gate refuses with backlog-full
    #[arg(long, env = "RUSHGATE_LOG_LIMIT", default_value_t = 100_000, value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    pub log_limit: u64,
    /// Requests that may wait for one script before more are refused with overloaded
    #[arg(long, env = "RUSHGATE_QUEUE_LIMIT", default_value_t = 8_192, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub queue_limit: u32,
    /// Requests that one script call decides at most
    #[arg(long, env = "RUSHGATE_MAX_BATCH", default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    pub max_batch: u32,
    /// Connections to PostgreSQL for reads
    #[arg(long, env = "RUSHGATE_DATABASE_CONNECTIONS", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    pub database_connections: u32,
    /// Form of the process's own log on standard error
    #[arg(long, env = "RUSHGATE_LOG_FORMAT", value_enum, default_value_t = LogFormat::Pretty)]
    pub log_format: LogFormat,
    /// OpenTelemetry collector that gets traces (OTLP over HTTP), such as http://127.0.0.1:4318
    #[arg(long, env = "RUSHGATE_OTLP_ENDPOINT")]
    pub otlp_endpoint: Option<String>,
    /// Share of requests that are traced, 0 to 1; a client's traceparent decides for itself
    #[arg(long, env = "RUSHGATE_OTLP_RATIO", default_value = "0.01", value_parser = parse_share)]
    pub otlp_ratio: f64,
}

fn parse_share(text: &str) -> Result<f64, String> {
    let share = text.parse().ok().filter(|share| (0.0..=1.0).contains(share));
    share.ok_or_else(|| format!("`{text}` is no share; use a number from 0 to 1"))
}

/// As browsers send it: scheme, host, and the port unless it is the scheme's own.
fn parse_origin(text: &str) -> Result<HeaderValue, String> {
    let host = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-._:[]".contains(c);
    match HeaderValue::from_str(text) {
        Ok(origin) if host.is_some_and(|host| !host.is_empty() && host.chars().all(plain)) => Ok(origin),
        _ => Err(format!("`{text}` is no origin; use one like https://shop.example, without a path")),
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Role {
    Api,
    Reconciler,
    Relay,
    Scheduler,
}

impl Role {
    /// As in `RUSHGATE_ROLES`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Api => "api",
            Self::Reconciler => "reconciler",
            Self::Relay => "relay",
            Self::Scheduler => "scheduler",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Ack {
    Gate,
    Truth,
}

/// Who may charge wallets. A shop that takes the money first lets its backend only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ChargeScope {
    Service,
    Shop,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Durability {
    Strict,
    Relaxed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum FenceMode {
    Available,
    Strict,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    Pretty,
    Json,
}

/// A setting that cannot work; the message says which and what to change.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0}")]
pub struct InvalidSetting(pub String);

impl Serve {
    /// How far this instance's reconcilers and relay step back: only where requests are answered beside them, and do not
    /// wait for PostgreSQL.
    pub fn followers_niceness(&self) -> u8 {
        if self.has(Role::Api) && self.ack == Ack::Gate { bounds::FOLLOWERS_NICENESS } else { 0 }
    }

    pub fn has(&self, role: Role) -> bool {
        self.roles.contains(&role)
    }

    /// How long a stopping instance still takes requests.
    pub fn drain(&self) -> Duration {
        Duration::from_secs(self.drain_secs)
    }

    pub fn request_timeout(&self) -> Duration {
        Duration::from_millis(self.request_timeout_ms)
    }

    pub fn truth_timeout(&self) -> Duration {
        Duration::from_millis(self.truth_timeout_ms)
    }

    /// Checks settings against each other; called before anything is started.
    pub fn check(&self) -> Result<(), InvalidSetting> {
        let bad = |text: &str| Err(InvalidSetting(text.to_owned()));
        if self.has(Role::Api) {
            self.auth.check()?;
        }
        if self.listen == self.ops_listen && self.listen.port() != 0 {
            return bad(
                "RUSHGATE_LISTEN and RUSHGATE_OPS_LISTEN are the same address: give each a port of its own",
            );
        }
        if self.tls.tls_cert_file.is_some() != self.tls.tls_key_file.is_some() {
            return bad(
                "only one of RUSHGATE_TLS_CERT_FILE and RUSHGATE_TLS_KEY_FILE is set: set both, or neither for plain HTTP",
            );
        }
        if jiff::tz::TimeZone::get(&self.timezone).is_err() {
            return Err(InvalidSetting(format!(
                "RUSHGATE_TIMEZONE: `{}` is no time zone name; use one like Asia/Seoul",
                self.timezone
            )));
        }
        Ok(())
    }
}

impl Auth {
    pub fn check(&self) -> Result<(), InvalidSetting> {
        let bad = |text: &str| Err(InvalidSetting(text.to_owned()));
        match (&self.jwt_secret, &self.jwt_jwks_file) {
            (None, None) => bad(
                "neither RUSHGATE_JWT_SECRET nor RUSHGATE_JWT_JWKS_FILE is set: set one, so that callers can be told apart",
            ),
            (Some(_), Some(_)) => bad(
                "RUSHGATE_JWT_SECRET and RUSHGATE_JWT_JWKS_FILE are both set: only one can be used, unset the other",
            ),
            (Some(secret), None) if secret.is_empty() => {
                bad("RUSHGATE_JWT_SECRET is empty: make one with `openssl rand -hex 32`")
            }
            _ if self.claims.jwt_audience.as_deref() == Some("") => {
                bad("RUSHGATE_JWT_AUDIENCE is empty: name the audience, or unset it")
            }
            _ if self.claims.jwt_issuer.as_deref() == Some("") => {
                bad("RUSHGATE_JWT_ISSUER is empty: name the issuer, or unset it")
            }
            _ => Ok(()),
        }
    }

    /// Works, but should not go live: HS256 wants a secret of at least 32 bytes (RFC 7518, 3.2).
    pub fn weak_secret(&self) -> bool {
        self.jwt_secret.as_ref().is_some_and(|secret| secret.len() < 32)
    }
}
