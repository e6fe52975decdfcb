//! `rushgate demo`: a whole shop in one terminal, on servers of its own that end with it.
//!
//! In the data folder: `lock` (one demo at a time), `jwt-secret` and `*.header` (made here, readable by the owner only),
//! and a folder for each server. Everything but the tokens is found again by the next start.

use std::fmt::Display;
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rushgate_local_servers::{
    self as servers, DataFolder, PostgresOptions, PostgresServer, RabbitMqOptions, RabbitMqServer,
    RedisOptions, RedisServer,
};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::config::bounds::FOLLOWERS_NICENESS;

const DATABASE: &str = "rushgate";
const USER: &str = "user-1";
/// What the printed lines order and take: part of the seed.
const PRODUCT: &str = "americano";
const TEMPLATE: &str = "welcome";
const TOKEN_TTL: Duration = Duration::from_secs(24 * 60 * 60);
/// Serving ends within 10 s by itself; a demo that hung would be worse than one that is cut short.
const SERVE_STOP_LIMIT: Duration = Duration::from_secs(15);
/// A demo that was just stopped with Ctrl-C may need a moment to let go of its folder.
const DATA_LOCK_LIMIT: Duration = Duration::from_millis(200);

pub struct DemoOptions {
    pub data: PathBuf,
    pub listen: SocketAddr,
    pub ops_listen: SocketAddr,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{address} cannot be used ({source}); choose another address with {setting}")]
    Address { address: SocketAddr, setting: &'static str, source: std::io::Error },
    #[error("another demo is running on {}; stop it, or choose another folder with --data", .0.display())]
    DataInUse(PathBuf),
    #[error(transparent)]
    Servers(#[from] servers::Error),
    #[error("cannot {what}: {source}")]
    Io { what: &'static str, source: std::io::Error },
    #[error("{0}")]
    Shop(Box<dyn std::error::Error + Send + Sync>),
}

/// What the demo tells the rest of Rushgate: where the servers are, and the secret of its tokens.
#[derive(Clone, Debug)]
pub struct Settings {
    pub redis_url: String,
    pub database_url: String,
    pub amqp_url: String,
    pub jwt_secret: String,
    pub listen: SocketAddr,
    pub ops_listen: SocketAddr,
}

/// Runs until Ctrl-C or SIGTERM; no server is left when it returns.
pub async fn run(options: DemoOptions) -> Result<(), Error> {
    check_address(options.listen, "RUSHGATE_LISTEN")?;
    check_address(options.ops_listen, "RUSHGATE_OPS_LISTEN")?;
    let data = data_folder(&options.data)?;
    let _lock = lock(&data).await?;
    let stop = stop_on_signals()?;

    say(format_args!("Rushgate demo, data in {}\n", data.display()));
    let started = tokio::select! {
        started = Servers::start(&data) => Some(started),
        () = stop.cancelled() => None,
    };
    let outcome = match started {
        Some(Ok(servers)) => {
            let outcome = run_shop(&servers, &options, &data, &stop).await;
            servers.stop().await;
            outcome
        }
        Some(Err(error)) => Err(error),
        None => Ok(()),
    };
    // Where the start was given up, the guards of the servers that had begun are still at work.
    for folder in Servers::folders(&data) {
        servers::wait_until_free(&folder).await?;
    }
    if outcome.is_ok() {
        say(format_args!("All stopped. The data stay in {}; the next start finds them.", data.display()));
    }
    outcome
}

/// Serves, seeds once it serves, and tells how to use it.
async fn run_shop(
    servers: &Servers,
    options: &DemoOptions,
    data: &Path,
    stop: &CancellationToken,
) -> Result<(), Error> {
    let settings = settings(servers, options, data).await?;
    let stop_serving = stop.child_token();
    let (ready_sender, ready) = oneshot::channel();
    let mut serving = tokio::spawn(shop::serve(settings.clone(), stop_serving.clone(), ready_sender));
    let opening = async {
        // A sender that is gone means that serving has failed, which `serving` tells better.
        if let Ok(addresses) = ready.await {
            let settings = Settings {
                listen: addresses.api.unwrap_or(settings.listen),
                ops_listen: addresses.ops,
                ..settings.clone()
            };
            let contents = shop::seed(&settings).await.map_err(Error::Shop)?;
            say(format_args!("  {:<12} {contents}\n", "Shop"));
            introduce(&settings, data)?;
        }
        Ok::<(), Error>(())
    };
    let opened = tokio::select! {
        opened = opening => opened,
        () = stop.cancelled() => Ok(()),
    };
    if opened.is_ok() {
        tokio::select! {
            ended = &mut serving => return flatten(ended),
            () = stop.cancelled() => say(format_args!("\nStopping …")),
        }
    }
    stop_serving.cancel();
    let served = match timeout(SERVE_STOP_LIMIT, &mut serving).await {
        Ok(ended) => flatten(ended),
        Err(_) => {
            serving.abort();
            Err(Error::Shop("serving did not stop in time".into()))
        }
    };
    opened.and(served)
}

fn flatten(ended: Result<Result<(), shop::Error>, tokio::task::JoinError>) -> Result<(), Error> {
    ended.map_err(|gone| Error::Shop(gone.into()))?.map_err(Error::Shop)
}

struct Servers {
    redis: RedisServer,
    postgres: PostgresServer,
    rabbitmq: RabbitMqServer,
}

impl Servers {
    fn folders(data: &Path) -> [PathBuf; 3] {
        ["redis", "postgres", "rabbitmq"].map(|name| data.join(name))
    }

    async fn start(data: &Path) -> Result<Servers, Error> {
        let [redis, postgres, rabbitmq] = Servers::folders(data).map(DataFolder::Kept);
        let begin = Instant::now();
        let (redis, postgres, rabbitmq) = tokio::try_join!(
            async {
                let server = RedisServer::start(RedisOptions::new(redis)).await?;
                announce("Redis", server.port(), begin);
                Ok::<_, Error>(server)
            },
            async {
                let options = PostgresOptions::new(postgres).with_niceness(FOLLOWERS_NICENESS);
                let server = PostgresServer::start(options).await?;
                announce("PostgreSQL", server.port(), begin);
                Ok(server)
            },
            async {
                let options = RabbitMqOptions::new(rabbitmq).with_niceness(FOLLOWERS_NICENESS);
                let server = RabbitMqServer::start(options).await?;
                announce("RabbitMQ", server.port(), begin);
                Ok(server)
            },
        )?;
        Ok(Servers { redis, postgres, rabbitmq })
    }

    /// All at once: nobody writes any more, so none of them waits for another.
    async fn stop(&self) {
        tokio::join!(self.rabbitmq.stop(), self.redis.stop(), self.postgres.stop());
    }
}

async fn settings(servers: &Servers, options: &DemoOptions, data: &Path) -> Result<Settings, Error> {
    Ok(Settings {
        redis_url: servers.redis.url(),
        database_url: servers.postgres.create_database(DATABASE).await?,
        amqp_url: servers.rabbitmq.url(),
        jwt_secret: servers::remembered(&data.join("jwt-secret"), || servers::random_hex(32))?,
        listen: options.listen,
        ops_listen: options.ops_listen,
    })
}

/// Where to look, whom to be, and three lines to paste.
fn introduce(settings: &Settings, data: &Path) -> Result<(), Error> {
    let (api, ops) = (url(settings.listen), url(settings.ops_listen));
    say(format_args!("The shop is open.\n"));
    say(format_args!("  {:<12} {api}", "API"));
    say(format_args!("  {:<12} {api}/docs", "Read and try"));
    say(format_args!("  {:<12} {ops}/readyz  {ops}/metrics\n", "Operations"));

    say(format_args!("Tokens for this demo, good for {} hours:\n", TOKEN_TTL.as_secs() / 3600));
    for (scope, subject) in [("shop", USER), ("service", "shop-backend"), ("admin", "shop-staff")] {
        let token = shop::token(settings, subject, scope, TOKEN_TTL).map_err(Error::Shop)?;
        // curl reads a header from a file, which keeps the lines below short enough to read.
        servers::write_private(&header(data, scope), &format!("Authorization: Bearer {token}\n"))?;
        say(format_args!("  {scope} ({subject})\n    {token}"));
    }

    let curl = format!("curl -s -H {}", shell_word(&format!("@{}", header(data, "shop").display())));
    let json = "-H 'Content-Type: application/json'";
    let coupon = format!(
        "$({curl} '{api}/v1/users/{USER}/coupons?status=available&limit=1' | grep -o '\"coupon_id\":\"[^\"]*\",')"
    );
    let order = format!(
        r#"{{{coupon}\"user_id\":\"{USER}\",\"items\":[{{\"product_id\":\"{PRODUCT}\",\"quantity\":1}}]}}"#
    );
    say(format_args!("\nIn another terminal: see the products, take a coupon as {USER}, order with it.\n"));
    say(format_args!("curl -s {api}/v1/products\n"));
    say(format_args!(
        r#"{curl} {json} -d '{{"user_id":"{USER}"}}' {api}/v1/coupon-templates/{TEMPLATE}/coupons"#
    ));
    say(format_args!("\n{curl} {json} -d \"{order}\" {api}/v1/orders\n"));
    say(format_args!(
        "A coupon is once per user: taken again, it is refused, and the order goes without one."
    ));
    say(format_args!("Ctrl-C stops everything."));
    Ok(())
}

fn header(data: &Path, scope: &str) -> PathBuf {
    data.join(format!("{scope}.header"))
}

fn announce(server: &str, port: u16, begin: Instant) {
    say(format_args!(
        "  {server:<12} 127.0.0.1:{port:<6} ready after {:.1} s",
        begin.elapsed().as_secs_f64()
    ));
}

/// To whoever is looking; a closed terminal is no reason to stop.
fn say(line: impl Display) {
    let _ = writeln!(std::io::stdout(), "{line}");
}

/// The address as a browser on this machine would name it.
fn url(address: SocketAddr) -> String {
    let local = if address.ip().is_unspecified() {
        SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), address.port())
    } else {
        address
    };
    format!("http://{local}")
}

fn shell_word(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "@/._-".contains(c);
    if text.chars().all(plain) { text.to_owned() } else { format!("'{}'", text.replace('\'', r"'\''")) }
}

fn check_address(address: SocketAddr, setting: &'static str) -> Result<(), Error> {
    TcpListener::bind(address).map(drop).map_err(|source| Error::Address { address, setting, source })
}

fn data_folder(path: &Path) -> Result<PathBuf, Error> {
    std::fs::create_dir_all(path)
        .and_then(|()| path.canonicalize())
        .map_err(|source| Error::Io { what: "make the data folder", source })
}

async fn lock(data: &Path) -> Result<std::fs::File, Error> {
    servers::lock(&data.join("lock"), DATA_LOCK_LIMIT).await.map_err(|error| match error {
        servers::Error::FolderInUse { folder } => Error::DataInUse(folder),
        other => other.into(),
    })
}

/// Cancelled by Ctrl-C, SIGTERM, or the end of the terminal.
fn stop_on_signals() -> Result<CancellationToken, Error> {
    let listen = |kind| signal(kind).map_err(|source| Error::Io { what: "listen for signals", source });
    let mut interrupt = listen(SignalKind::interrupt())?;
    let mut terminate = listen(SignalKind::terminate())?;
    let mut hangup = listen(SignalKind::hangup())?;
    let stop = CancellationToken::new();
    let token = stop.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
        token.cancel();
    });
    Ok(stop)
}

/// The three things that the demo asks of the rest of the crate.
mod shop {
    use std::sync::Arc;
    use std::time::Instant;

    use super::{CancellationToken, Duration, Settings, oneshot};
    use crate::config::{self, Ack, ChargeScope, Durability, FenceMode, LogFormat, Role};
    use crate::domain::UserId;
    use crate::gate::{BatchLimits, Gate};
    use crate::{http, seed, serve};

    pub type Error = Box<dyn std::error::Error + Send + Sync>;

    /// Building the gate from an old demo's data may take a moment.
    const OPEN_LIMIT: Duration = Duration::from_secs(60);
    const OPEN_POLL: Duration = Duration::from_millis(50);

    fn servers(settings: &Settings) -> config::Servers {
        config::Servers {
            redis_url: settings.redis_url.clone(),
            database_url: settings.database_url.clone(),
            amqp_url: settings.amqp_url.clone(),
            cells: 1,
            durability: Durability::Strict,
            fence: FenceMode::Available,
        }
    }

    /// Migrates, runs all roles, says where it listens, and returns once it has been stopped.
    pub async fn serve(
        settings: Settings,
        stop: CancellationToken,
        ready: oneshot::Sender<serve::Addresses>,
    ) -> Result<(), Error> {
        let all = config::Serve {
            servers: servers(&settings),
            auth: config::Auth {
                jwt_secret: Some(settings.jwt_secret),
                jwt_jwks_file: None,
                claims: config::ExpectedClaims::default(),
                jwt_leeway_secs: 0,
            },
            limits: config::Limits::default(),
            tls: config::TlsFiles::default(),
            // A visitor has the shop token only.
            charge_scope: ChargeScope::Shop,
            cors_origins: Vec::new(),
            listen: settings.listen,
            ops_listen: settings.ops_listen,
            drain_secs: 0, // nobody balances load here
            roles: vec![Role::Api, Role::Reconciler, Role::Relay, Role::Scheduler],
            ack: Ack::Gate,
            timezone: "Asia/Seoul".into(),
            request_timeout_ms: 3_000,
            truth_timeout_ms: 2_000,
            log_limit: 100_000,
            queue_limit: 8_192,
            max_batch: 256,
            database_connections: 10,
            log_format: LogFormat::Pretty,
            otlp_endpoint: None,
            otlp_ratio: 0.0,
        };
        Ok(serve::run(all, stop, ready).await?)
    }

    /// Waits until the gate is open, and fills it. Returns what the shop now has, for people to read.
    pub async fn seed(settings: &Settings) -> Result<String, Error> {
        let limits = BatchLimits::default();
        let gate: Arc<Gate> = Gate::with_limits(&servers(settings), limits).await?;
        let give_up = Instant::now() + OPEN_LIMIT;
        while gate.status().await?.iter().any(|cell| cell.state != "open") {
            if Instant::now() > give_up {
                return Err("the gate did not open; see the lines above".into());
            }
            tokio::time::sleep(OPEN_POLL).await;
        }
        let contents = seed::run(&gate).await?;
        gate.close().await;
        Ok(contents)
    }

    pub fn token(settings: &Settings, subject: &str, scope: &str, ttl: Duration) -> Result<String, Error> {
        Ok(http::mint_token(settings.jwt_secret.as_bytes(), &UserId::parse(subject)?, scope, ttl)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_shown_as_one_that_can_be_opened() {
        for (address, shown) in [
            ("0.0.0.0:8080", "http://127.0.0.1:8080"),
            ("[::]:8080", "http://127.0.0.1:8080"),
            ("10.1.2.3:80", "http://10.1.2.3:80"),
            ("[::1]:8080", "http://[::1]:8080"),
        ] {
            assert_eq!(address.parse().map(url), Ok(shown.to_owned()));
        }
    }

    #[test]
    fn a_path_is_one_word_for_the_shell() {
        assert_eq!(shell_word("@/srv/my-shop/data.1"), "@/srv/my-shop/data.1");
        assert_eq!(shell_word("/it's here"), r"'/it'\''s here'");
    }
}
