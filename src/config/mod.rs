//! Settings: flags and environment variables, their defaults, and checks between them. Bounds that
//! are no settings are in [`bounds`].
//!
//! `clap` parses one of these structures per command; [`secret_files`] adds values from files
//! before that. The structures live as long as the process.

use axum::http::HeaderValue;
use clap::{Args, ValueEnum};
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use crate::domain::limits::{MAX_HOLD_SECS, MIN_HOLD_SECS};

pub mod bounds;
mod limits;
pub mod secret_files;

pub use limits::{Limits, Quota, Rate};

/// Addresses of the servers, for all commands that talk to them.
#[derive(Args, Clone)]
pub struct Servers {
    /// Redis: redis://, rediss:// (TLS), redis-sentinel:// or redis-cluster://;
    /// RUSHGATE_REDIS_URL_FILE: from a file
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
    /// What an instance does that has not seen PostgreSQL for a second: available: go on deciding;
    /// strict: refuse
    #[arg(long, env = "RUSHGATE_FENCE", value_enum, default_value_t = FenceMode::Available)]
    pub fence: FenceMode,
}

/// Without the addresses, which can hold passwords.
impl fmt::Debug for Servers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Servers")
            .field("cells", &self.cells)
            .field("durability", &self.durability)
            .finish_non_exhaustive()
    }
}

/// How tokens are checked: by a secret or by a key file, never both.
#[derive(Args, Clone)]
pub struct Auth {
    /// Secret of HS256 tokens; use at least 32 bytes; RUSHGATE_JWT_SECRET_FILE: from a file
    #[arg(long, env = "RUSHGATE_JWT_SECRET", hide_env_values = true)]
    pub jwt_secret: Option<String>,
    /// JWKS file with the public keys of EdDSA, ES256 or RS256 tokens; read again whenever it
    /// changes
    #[arg(long, env = "RUSHGATE_JWT_JWKS_FILE")]
    pub jwt_jwks_file: Option<PathBuf>,
    #[command(flatten)]
    pub claims: ExpectedClaims,
    /// Seconds by which clocks may differ when exp and nbf are checked
    #[arg(long, env = "RUSHGATE_JWT_LEEWAY_SECS", default_value_t = 0, value_parser = clap::value_parser!(u64).range(0..=300))]
    pub jwt_leeway_secs: u64,
}

/// The expected audience and issuer of tokens; what is not set is not checked.
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

/// TLS of the API's port: both files, or neither. Changed files are read again.
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
    /// Origins whose pages may call the API (CORS), such as https://shop.example; none: only pages
    /// from here
    #[arg(long, env = "RUSHGATE_CORS_ORIGINS", value_delimiter = ',', value_parser = parse_origin)]
    pub cors_origins: Vec<HeaderValue>,
    /// Seconds for which caches may keep reads of products and coupon templates; 0: they keep none
    #[arg(long, env = "RUSHGATE_CATALOGUE_MAX_AGE_SECS", default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=31_536_000))]
    pub catalogue_max_age_secs: u32,
    /// Seconds for which an order that is paid outside is held if it does not say
    #[arg(long, env = "RUSHGATE_HOLD_SECS", default_value_t = 600, value_parser = clap::value_parser!(u64).range(MIN_HOLD_SECS..=MAX_HOLD_SECS))]
    pub hold_secs: u64,
    /// Orders of one user that may wait for a payment outside at once
    #[arg(long, env = "RUSHGATE_PENDING_LIMIT", default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=1_000))]
    pub pending_limit: u64,
    /// on: serve the demo's storefront at /shop/, which hands out tokens for the demo's users to
    /// everybody
    #[arg(long, env = "RUSHGATE_DEMO_SHOP", value_enum, default_value_t = Switch::Off)]
    pub demo_shop: Switch,
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

/// As browsers send it: scheme, host, and the port unless it is the scheme's default.
fn parse_origin(text: &str) -> Result<HeaderValue, String> {
    let host = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-._:[]".contains(c);
    match HeaderValue::from_str(text) {
        Ok(origin) if host.is_some_and(|host| !host.is_empty() && host.chars().all(plain)) => {
            Ok(origin)
        }
        _ => {
            Err(format!("`{text}` is no origin; use one like https://shop.example, without a path"))
        }
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

/// Which scope may charge wallets. A shop that collects the money first allows only its backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ChargeScope {
    Service,
    Shop,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Switch {
    On,
    Off,
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

/// A setting that cannot work; the message names it and says what to change.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0}")]
pub struct InvalidSetting(pub String);

impl Serve {
    /// The niceness of reconcilers and relay: above 0 only where the API runs beside them and does
    /// not wait for PostgreSQL.
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

    /// Checks settings against each other, before anything is started.
    pub fn check(&self) -> Result<(), InvalidSetting> {
        let bad = |text: &str| Err(InvalidSetting(text.to_owned()));
        if self.has(Role::Api) {
            self.auth.check()?;
        }
        if self.demo_shop == Switch::On && self.auth.jwt_secret.is_none() {
            return bad(
                "RUSHGATE_DEMO_SHOP is on without RUSHGATE_JWT_SECRET: the storefront signs tokens with it; set it, or turn the storefront off",
            );
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

    /// Usable, but not for production: HS256 needs a secret of at least 32 bytes (RFC 7518, 3.2).
    pub fn weak_secret(&self) -> bool {
        self.jwt_secret.as_ref().is_some_and(|secret| secret.len() < 32)
    }
}
