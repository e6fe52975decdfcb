//! Private Redis, PostgreSQL and RabbitMQ as child processes, for `rushgate demo` and for the
//! tests.
//!
//! The life of a [`Server`]: `start` opens its [`home`](self::home) (a kept folder is locked, a
//! scratch folder gets a sweeper) and chooses free ports. Its [`Recipe`] writes the configuration,
//! and a [`guard`](self::guard) runs the program. `start` returns once this very process has
//! answered, since another server might have taken the port. The server ends with `stop`, `kill`, a
//! drop, or the end of this process; nothing is left running even after `kill -9`.
//!
//! A server is not bound to the tokio runtime that started it, so tests with a runtime each can
//! share one.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod guard;
mod home;
mod port;
mod postgres;
mod program;
mod rabbitmq;
mod redis;

use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::sys::signal::Signal;
use tokio::time::{Instant, sleep, timeout};

pub use self::port::free_ports;
pub use self::postgres::{PostgresOptions, PostgresServer};
pub use self::rabbitmq::{RabbitMqOptions, RabbitMqServer};
pub use self::redis::{RedisOptions, RedisServer};

pub use self::home::{discard, lock, remembered, wait_until_free, write_private};

use self::guard::{Guard, Spec};
use self::home::Home;

/// The most attempts of a start with other ports, if another process takes the chosen ones.
const PORT_ATTEMPTS: u32 = 5;
const FIRST_POLL: Duration = Duration::from_millis(2);
const LONGEST_POLL: Duration = Duration::from_millis(50);
/// The time limit of one readiness probe.
const PROBE_LIMIT: Duration = Duration::from_secs(2);
/// How long the last processes of a killed server may take to end.
const STILL_GOING_LIMIT: Duration = Duration::from_secs(10);

/// The folder of a server's data.
#[derive(Clone, Debug)]
pub enum DataFolder {
    /// This folder, created if needed. A later start finds the data again.
    Kept(PathBuf),
    /// A new folder in the system's temporary folder. It is removed when the server object is
    /// dropped or this process ends.
    Scratch,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(
        "{program} was not found; it is in the package {package} (Debian, Ubuntu), which `./dev up` installs"
    )]
    MissingProgram { program: String, package: &'static str },
    #[error("{server} did not start: {reason}; the end of its log, {}:\n{tail}", log.display())]
    NotStarted { server: &'static str, reason: String, log: PathBuf, tail: String },
    #[error("{} is in use by another process that runs a server there", folder.display())]
    FolderInUse { folder: PathBuf },
    #[error("PostgreSQL refuses to run as root, and {reason}")]
    NoPostgresUser { reason: String },
    #[error("the user `postgres` cannot reach {}; choose a data folder below folders that all users may enter", folder.display())]
    Unreachable { folder: PathBuf },
    #[error("cannot {what}: {source}")]
    Io { what: String, source: std::io::Error },
    #[error("{what}: {source}")]
    Sql { what: String, source: sqlx::Error },
    #[error("RabbitMQ's management API: {0}")]
    Management(String),
}

impl Error {
    fn io(what: String, source: std::io::Error) -> Error {
        Error::Io { what, source }
    }

    /// The last processes of a killed server still run, so a retry may succeed. The text is
    /// PostgreSQL's.
    fn is_still_going(&self) -> bool {
        matches!(self, Error::NotStarted { tail, .. } if tail.contains("is still in use"))
    }

    /// Another process has the port, so a retry with another port may succeed.
    fn is_port_taken(&self) -> bool {
        let Error::NotStarted { tail, .. } = self else { return false };
        ["already in use", "eaddrinuse"].iter().any(|sign| tail.contains(sign))
    }
}

/// The part of [`Server`] that is specific to one kind of server.
pub trait Recipe: Send + Sync {
    const READY_LIMIT: Duration;

    fn home(&self) -> &Home;
    fn port_count(&self) -> usize;
    /// Writes the configuration for these ports and returns the command to run.
    fn spec(&self, ports: &[u16]) -> Result<Spec, Error>;
    /// Whether the process `pid` itself answers on these ports.
    fn answers(&self, ports: &[u16], pid: u32) -> impl Future<Output = bool> + Send;
}

/// A private server; see [`RedisServer`], [`PostgresServer`] and [`RabbitMqServer`].
pub struct Server<R: Recipe> {
    // Declared before the recipe, which owns the home, so that it is dropped first.
    running: Mutex<Option<Guard>>,
    recipe: R,
    ports: Vec<u16>,
}

impl<R: Recipe> Server<R> {
    async fn start_with(recipe: R) -> Result<Server<R>, Error> {
        let mut attempt = 1;
        loop {
            let ports = free_ports(recipe.port_count())?;
            match launch(&recipe, &ports).await {
                Ok(guard) => return Ok(Server { running: Mutex::new(Some(guard)), recipe, ports }),
                Err(error) if error.is_port_taken() && attempt < PORT_ATTEMPTS => attempt += 1,
                Err(error) => return Err(error),
            }
        }
    }

    /// The port for clients, on 127.0.0.1. It stays the same across restarts.
    pub fn port(&self) -> u16 {
        self.ports[0]
    }

    /// The server's process id, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.running().as_ref().map(Guard::pid)
    }

    /// The folder with its data, configuration and log.
    pub fn folder(&self) -> &std::path::Path {
        self.recipe.home().path()
    }

    /// Shuts the server down; kills it if it does not end in time.
    pub async fn stop(&self) {
        let guard = self.running().take();
        if let Some(guard) = guard {
            guard.stop().await;
        }
    }

    /// Simulates a crash: SIGKILL to all of the server's processes. The data stay as they are.
    pub async fn kill(&self) {
        let guard = self.running().take();
        if let Some(guard) = guard {
            guard.kill().await;
        }
    }

    /// Stops the server if it runs, then starts it with the same ports and folder.
    pub async fn restart(&self) -> Result<(), Error> {
        self.stop().await;
        let deadline = Instant::now() + STILL_GOING_LIMIT;
        let guard = loop {
            match launch(&self.recipe, &self.ports).await {
                Err(error) if error.is_still_going() && Instant::now() < deadline => {
                    sleep(LONGEST_POLL).await
                }
                outcome => break outcome?,
            }
        };
        *self.running() = Some(guard);
        Ok(())
    }

    /// Freezes all of the server's processes (SIGSTOP): connections stay open without answers.
    pub fn pause(&self) {
        if let Some(guard) = self.running().as_ref() {
            guard.signal(Signal::SIGSTOP);
        }
    }

    /// Ends a [`pause`](Self::pause).
    pub fn resume(&self) {
        if let Some(guard) = self.running().as_ref() {
            guard.signal(Signal::SIGCONT);
        }
    }

    fn running(&self) -> MutexGuard<'_, Option<Guard>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Runs a server and returns once it answers.
async fn launch<R: Recipe>(recipe: &R, ports: &[u16]) -> Result<Guard, Error> {
    let mut guard = Guard::spawn(recipe.spec(ports)?).await?;
    let deadline = Instant::now() + R::READY_LIMIT;
    let mut pause = FIRST_POLL;
    loop {
        if let Some(status) = guard.ended() {
            return Err(guard.failure(format!("the process ended ({status})")));
        }
        if timeout(PROBE_LIMIT, recipe.answers(ports, guard.pid())).await == Ok(true) {
            return Ok(guard);
        }
        if Instant::now() >= deadline {
            let error = guard.failure(format!("no answer within {} s", R::READY_LIMIT.as_secs()));
            guard.kill().await;
            return Err(error);
        }
        sleep(pause).await;
        pause = (pause * 2).min(LONGEST_POLL);
    }
}

/// Random bytes from the operating system, as hexadecimal digits.
pub fn random_hex(bytes: usize) -> Result<String, Error> {
    use std::fmt::Write as _;
    use std::io::Read as _;
    let mut buffer = vec![0; bytes];
    std::fs::File::open("/dev/urandom")
        .and_then(|mut source| source.read_exact(&mut buffer))
        .map_err(|source| Error::io("read /dev/urandom".into(), source))?;
    Ok(buffer.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    }))
}
