//! A private Redis that keeps every acknowledged write.

use std::ffi::OsString;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::signal::Signal;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::guard::Spec;
use super::home::{Home, write_private};
use super::program::Program;
use super::{DataFolder, Error, Recipe, Server};

const REDIS: Program = Program { name: "redis-server", package: "redis-server" };

#[derive(Clone, Debug)]
pub struct RedisOptions {
    pub folder: DataFolder,
    /// Lines of redis.conf. They follow the default ones and override them.
    pub extra_config: Vec<String>,
    /// The program, instead of the installed `redis-server`.
    pub program: Option<PathBuf>,
    /// The words of a command that runs the server by `exec` (such as `env NAME=VALUE` or `nice`).
    /// They precede the program's name.
    pub under: Vec<OsString>,
    /// User and password for the readiness probe and the URL, if the configuration turns the user
    /// `default` off.
    pub login: Option<(String, String)>,
}

impl RedisOptions {
    pub fn new(folder: DataFolder) -> RedisOptions {
        RedisOptions {
            folder,
            extra_config: Vec::new(),
            program: None,
            under: Vec::new(),
            login: None,
        }
    }
}

pub type RedisServer = Server<RedisRecipe>;

pub struct RedisRecipe {
    home: Home,
    program: PathBuf,
    extra_config: Vec<String>,
    under: Vec<OsString>,
    login: Option<(String, String)>,
}

impl Server<RedisRecipe> {
    pub async fn start(options: RedisOptions) -> Result<RedisServer, Error> {
        let program = REDIS.find(options.program.as_deref(), &[])?;
        let home = Home::open(&options.folder).await?;
        let RedisOptions { extra_config, under, login, .. } = options;
        Server::start_with(RedisRecipe { home, program, extra_config, under, login }).await
    }

    pub fn url(&self) -> String {
        let login = self.recipe.login.as_ref();
        let login = login.map_or(String::new(), |(user, password)| format!("{user}:{password}@"));
        format!("redis://{login}127.0.0.1:{}", self.port())
    }
}

impl Recipe for RedisRecipe {
    /// Long because Redis reads its append-only file before it is ready.
    const READY_LIMIT: Duration = Duration::from_secs(60);

    fn home(&self) -> &Home {
        &self.home
    }

    fn port_count(&self) -> usize {
        1
    }

    fn spec(&self, ports: &[u16]) -> Result<Spec, Error> {
        let folder = self.home.path();
        let config = folder.join("redis.conf");
        let mut lines = vec![
            "bind 127.0.0.1".to_owned(),
            format!("port {}", ports[0]),
            "protected-mode yes".into(),
            "daemonize no".into(),
            "always-show-logo no".into(),
            "save \"\"".into(),
            "appendonly yes".into(),
            "appendfsync always".into(),
            "no-appendfsync-on-rewrite no".into(),
            "aof-load-truncated no".into(),
            "maxmemory-policy noeviction".into(),
        ];
        lines.extend(self.extra_config.iter().cloned());
        write_private(&config, &(lines.join("\n") + "\n"))?;
        mend(&self.program, folder)?;
        let mut words =
            self.under.iter().cloned().chain([self.program.clone().into(), config.into()]);
        Ok(Spec {
            server: "Redis",
            program: words.next().unwrap_or_default().into(),
            args: words.collect(),
            env: Vec::new(),
            folder: folder.to_owned(),
            log: folder.join("redis.log"),
            stop_signal: Signal::SIGTERM,
            niceness: 0,
            owner: None,
            hold: self.home.hold()?,
        })
    }

    async fn answers(&self, ports: &[u16], pid: u32) -> bool {
        ask(ports[0], self.login.as_ref()).await.is_ok_and(|info| {
            let says = |line: &str| info.lines().any(|other| other == line);
            // While Redis reads its append-only file, it answers `INFO` (with `loading:1`) and no
            // other command.
            says(&format!("process_id:{pid}")) && says("loading:0")
        })
    }
}

/// Cuts off the incomplete transaction that a crash has left at the end of the append-only file.
/// No part of it was acknowledged.
///
/// With `aof-load-truncated yes` Redis would cut by itself, but wrongly (7.0; fixed in Valkey by
/// its pull request 4342): if a command is torn, Redis cuts that command and leaves the beginning
/// of the transaction. The writes acknowledged afterwards become a part of that transaction in the
/// file, and the next start reads them wrongly.
fn mend(redis: &Path, folder: &Path) -> Result<(), Error> {
    let manifest = folder.join("appendonlydir").join("appendonly.aof.manifest");
    if !manifest.exists() {
        return Ok(());
    }
    let failed = |source| Error::io(format!("check {}", manifest.display()), source);
    // `redis-server` becomes `redis-check-aof` by its name in `argv[0]`.
    let mut command = Command::new(redis);
    command
        .arg0("redis-check-aof")
        .arg("--fix")
        .arg(&manifest)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    let mut check = command.spawn().map_err(failed)?;
    if let Some(mut answer) = check.stdin.take() {
        let _ = answer.write_all(b"y\n"); // it asks only if there is something to cut
    }
    let done = check.wait_with_output().map_err(failed)?;
    if done.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&done.stdout);
    let last = said.lines().last().unwrap_or("no output").to_owned();
    Err(failed(std::io::Error::other(last)))
}

async fn ask(port: u16, login: Option<&(String, String)>) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
    if let Some((user, password)) = login {
        stream.write_all(format!("AUTH {user} {password}\r\n").as_bytes()).await?;
    }
    stream.write_all(b"INFO\r\nQUIT\r\n").await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer)
}
