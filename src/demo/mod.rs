//! `rushgate demo`: a whole shop in one terminal, with its own servers, which end with it.
//!
//! The data folder contains `lock` (one demo at a time), `first-start` (until the shop has opened
//! once), `jwt-secret` and `*.header` (created by the demo, readable by the owner only), and a
//! folder for each server. The next start uses all of it again except the tokens.

mod shop;
mod tour;

use std::fmt::Display;
use std::io::Write as _;
use std::net::{SocketAddr, TcpListener};
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
use crate::config::{self, InvalidSetting, Serve};

const DATABASE: &str = "rushgate";
const SECRET_FILE: &str = "jwt-secret";
/// Serving ends within 10 s by itself; a demo that hangs would be worse than one that is cut off.
const SERVE_STOP_LIMIT: Duration = Duration::from_secs(15);
/// A demo that was just stopped with Ctrl-C may take a moment to release its folder.
const DATA_LOCK_LIMIT: Duration = Duration::from_millis(200);

pub struct DemoOptions {
    pub data: PathBuf,
    /// As `rushgate serve` would read them. The demo overrides the servers, the secret and the
    /// roles, and uses plain HTTP.
    pub settings: Serve,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{address} cannot be used ({source}); choose another address with {setting}")]
    Address { address: SocketAddr, setting: &'static str, source: std::io::Error },
    #[error(transparent)]
    Setting(#[from] InvalidSetting),
    #[error("another demo is running on {}; stop it, or choose another folder with --data", .0.display())]
    DataInUse(PathBuf),
    #[error(transparent)]
    Servers(#[from] servers::Error),
    #[error("cannot {what}: {source}")]
    Io { what: String, source: std::io::Error },
    #[error("{0}")]
    Shop(Box<dyn std::error::Error + Send + Sync>),
}

/// Runs until Ctrl-C or SIGTERM; all servers have ended when it returns.
pub async fn run(options: DemoOptions) -> Result<(), Error> {
    let settings = shop::settings(options.settings);
    settings.check()?;
    check_address(settings.listen, "RUSHGATE_LISTEN")?;
    check_address(settings.ops_listen, "RUSHGATE_OPS_LISTEN")?;
    let data = data_folder(&options.data)?;
    let _lock = lock(&data).await?;
    let stop = stop_on_signals()?;

    say(format_args!("Rushgate demo, data in {}\n", data.display()));
    let first_start = FirstStart::begin(&data).await?;
    let started = tokio::select! {
        started = Servers::start(&data) => Some(started),
        () = stop.cancelled() => None,
    };
    let outcome = match started {
        Some(Ok(servers)) => {
            let outcome = Box::pin(run_shop(&servers, settings, &data, &first_start, &stop)).await;
            servers.stop().await;
            outcome
        }
        Some(Err(error)) => Err(error),
        None => Ok(()),
    };
    // After an interrupted start, the guards of servers that had begun to start are still at work.
    for folder in Servers::folders(&data) {
        servers::wait_until_free(&folder).await?;
    }
    if outcome.is_ok() {
        say(match first_start.is_over() {
            true => format!(
                "All stopped. The data stay in {}; the next start finds them.",
                data.display()
            ),
            false => {
                "All stopped, before the shop was open. The next start begins afresh.".to_owned()
            }
        });
    }
    outcome
}

/// The marker of a first start that is not complete. Until the shop has opened once, the data
/// folder holds nothing worth keeping, and a server may have been killed while it created its
/// files: an interrupted first start begins with empty folders.
struct FirstStart {
    marker: PathBuf,
}

impl FirstStart {
    async fn begin(data: &Path) -> Result<FirstStart, Error> {
        let marker = data.join("first-start");
        let folders = Servers::folders(data);
        if marker.exists() {
            say("The first start in this folder was interrupted; beginning afresh.\n");
            for folder in &folders {
                servers::discard(folder).await?;
            }
        } else if !folders.iter().any(|folder| folder.exists()) {
            std::fs::write(&marker, "").map_err(|source| Error::Io {
                what: format!("write {}", marker.display()),
                source,
            })?;
        }
        Ok(FirstStart { marker })
    }

    fn is_over(&self) -> bool {
        !self.marker.exists()
    }

    fn end(&self) -> Result<(), Error> {
        match std::fs::remove_file(&self.marker) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(Error::Io { what: format!("remove {}", self.marker.display()), source: error })
            }
            _ => Ok(()),
        }
    }
}

/// Serves, seeds the shop once it serves, and prints how to use it.
async fn run_shop(
    servers: &Servers,
    settings: Serve,
    data: &Path,
    first_start: &FirstStart,
    stop: &CancellationToken,
) -> Result<(), Error> {
    let settings = connected(settings, servers, data).await?;
    let stop_serving = stop.child_token();
    let (ready_sender, ready) = oneshot::channel();
    let mut serving =
        tokio::spawn(shop::serve(settings.clone(), stop_serving.clone(), ready_sender));
    let opening = async {
        // A dropped sender means that serving failed; `serving` has the error.
        if let Ok(addresses) = ready.await {
            let contents = shop::seed(&settings).await.map_err(Error::Shop)?;
            first_start.end()?;
            say(format_args!("  {:<12} {contents}\n", "Shop"));
            let listen = addresses.api.unwrap_or(settings.listen);
            let settings = Serve { listen, ops_listen: addresses.ops, ..settings.clone() };
            let management = servers.rabbitmq.management_url().unwrap_or_default();
            tour::introduce(&settings, &management, data)?;
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
                let options = RabbitMqOptions {
                    management: true,
                    niceness: FOLLOWERS_NICENESS,
                    ..RabbitMqOptions::new(rabbitmq)
                };
                let server = RabbitMqServer::start(options).await?;
                announce("RabbitMQ", server.port(), begin);
                Ok(server)
            },
        )?;
        Ok(Servers { redis, postgres, rabbitmq })
    }

    /// All at once: nothing is written any more, so no server depends on another.
    async fn stop(&self) {
        tokio::join!(self.rabbitmq.stop(), self.redis.stop(), self.postgres.stop());
    }
}

/// The settings with the demo's own servers and secret.
async fn connected(settings: Serve, servers: &Servers, data: &Path) -> Result<Serve, Error> {
    let secret = servers::remembered(&data.join(SECRET_FILE), || servers::random_hex(32))?;
    Ok(Serve {
        servers: config::Servers {
            redis_url: servers.redis.url(),
            database_url: servers.postgres.create_database(DATABASE).await?,
            amqp_url: servers.rabbitmq.url(),
            ..settings.servers
        },
        auth: config::Auth { jwt_secret: Some(secret), ..settings.auth },
        ..settings
    })
}

fn announce(server: &str, port: u16, begin: Instant) {
    say(format_args!(
        "  {server:<12} 127.0.0.1:{port:<6} ready after {:.1} s",
        begin.elapsed().as_secs_f64()
    ));
}

/// Prints a line for the visitor; a closed terminal is no reason to stop.
fn say(line: impl Display) {
    let _ = writeln!(std::io::stdout(), "{line}");
}

fn check_address(address: SocketAddr, setting: &'static str) -> Result<(), Error> {
    TcpListener::bind(address).map(drop).map_err(|source| Error::Address {
        address,
        setting,
        source,
    })
}

fn data_folder(path: &Path) -> Result<PathBuf, Error> {
    std::fs::create_dir_all(path).and_then(|()| path.canonicalize()).map_err(|source| Error::Io {
        what: format!("make the data folder {}", path.display()),
        source,
    })
}

async fn lock(data: &Path) -> Result<std::fs::File, Error> {
    servers::lock(&data.join("lock"), DATA_LOCK_LIMIT).await.map_err(|error| match error {
        servers::Error::FolderInUse { folder } => Error::DataInUse(folder),
        other => other.into(),
    })
}

/// Cancelled by Ctrl-C, SIGTERM, or the end of the terminal (SIGHUP).
fn stop_on_signals() -> Result<CancellationToken, Error> {
    let listen = |kind| {
        signal(kind).map_err(|source| Error::Io { what: "listen for signals".into(), source })
    };
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
