//! A private PostgreSQL. It accepts every connection to its loopback port without a password.

use std::ffi::OsString;
use std::fs::Permissions;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use nix::sys::signal::Signal;
use nix::unistd::Uid;
use sqlx::postgres::{PgConnectOptions, PgSslMode};
use sqlx::{ConnectOptions, Connection, PgConnection};

use super::guard::{Guard, Owner, Spec};
use super::home::{ELSEWHERE, Home, remove_folder};
use super::program::{Program, newest_first};
use super::{DataFolder, Error, Recipe, Server, random_hex};

const POSTGRES: Program = Program { name: "postgres", package: "postgresql" };
const INITDB: Program = Program { name: "initdb", package: "postgresql" };
const INITDB_LIMIT: Duration = Duration::from_secs(120);
/// PostgreSQL's error code for a database that already exists.
const DUPLICATE_DATABASE: &str = "42P04";
/// The home folder of the user `postgres` in Debian's and Ubuntu's packages.
const POSTGRES_HOME: &str = "/var/lib/postgresql";

#[derive(Clone, Debug)]
pub struct PostgresOptions {
    pub folder: DataFolder,
    /// Whether commits wait for the disk. Without it commits are fast, but a crash of the machine
    /// may lose everything: for tests.
    pub fsync: bool,
    /// The niceness of the server, see `nice(1)`.
    pub niceness: u8,
    /// Settings. They override the default ones.
    pub extra_config: Vec<(String, String)>,
    /// The folder of `initdb` and `postgres`, instead of the installed ones.
    pub bin_folder: Option<PathBuf>,
}

impl PostgresOptions {
    pub fn new(folder: DataFolder) -> PostgresOptions {
        PostgresOptions {
            folder,
            fsync: true,
            niceness: 0,
            extra_config: Vec::new(),
            bin_folder: None,
        }
    }

    /// See [`niceness`](Self::niceness).
    pub fn with_niceness(self, niceness: u8) -> PostgresOptions {
        PostgresOptions { niceness, ..self }
    }
}

pub type PostgresServer = Server<PostgresRecipe>;

pub struct PostgresRecipe {
    home: Home,
    program: PathBuf,
    /// The home, or another folder if the user `postgres` cannot reach the home.
    base: PathBuf,
    owner: Option<Owner>,
    fsync: bool,
    niceness: AtomicU8,
    extra_config: Vec<(String, String)>,
}

impl Server<PostgresRecipe> {
    pub async fn start(options: PostgresOptions) -> Result<PostgresServer, Error> {
        let bin_folder = options.bin_folder.as_deref();
        let given = |name| bin_folder.map(|folder| folder.join(name));
        let folders = installed_folders();
        let program = POSTGRES.find(given("postgres").as_deref(), &folders)?;
        let initdb = INITDB.find(given("initdb").as_deref(), &folders)?;
        let owner = if Uid::effective().is_root() { Some(postgres_user()?) } else { None };
        let home = Home::open(&options.folder).await?;
        let base = match owner {
            Some(owner) => reachable_base(&home, owner)?,
            None => home.path().to_owned(),
        };
        let PostgresOptions { fsync, niceness, extra_config, .. } = options;
        let niceness = niceness.into();
        let recipe = PostgresRecipe { home, program, base, owner, fsync, niceness, extra_config };
        recipe.make_cluster(initdb).await?;
        Server::start_with(recipe).await
    }

    /// Takes effect at the next start; see [`PostgresOptions::niceness`].
    pub fn set_niceness(&self, niceness: u8) {
        self.recipe.niceness.store(niceness, Ordering::Relaxed);
    }

    /// The URL of the database `postgres`, which always exists.
    pub fn url(&self) -> String {
        self.database_url("postgres")
    }

    pub fn database_url(&self, database: &str) -> String {
        format!("postgres://postgres@127.0.0.1:{}/{database}", self.port())
    }

    /// Creates a database unless it exists, and returns its URL.
    pub async fn create_database(&self, database: &str) -> Result<String, Error> {
        let what = format!("create the database {database}");
        let failed = |source| Error::Sql { what: what.clone(), source };
        let mut connection = connect(self.port()).await.map_err(failed)?;
        let create = format!("CREATE DATABASE \"{}\"", database.replace('"', "\"\""));
        let created = sqlx::raw_sql(&create).execute(&mut connection).await;
        let _ = connection.close().await;
        match created {
            Ok(_) => {}
            Err(sqlx::Error::Database(error))
                if error.code().as_deref() == Some(DUPLICATE_DATABASE) => {}
            Err(error) => return Err(failed(error)),
        }
        Ok(self.database_url(database))
    }
}

impl PostgresRecipe {
    fn data(&self) -> PathBuf {
        self.base.join("data")
    }

    fn spec_of(&self, program: PathBuf, args: Vec<OsString>) -> Result<Spec, Error> {
        Ok(Spec {
            server: "PostgreSQL",
            program,
            args,
            env: vec![("LC_ALL", "C.UTF-8".into()), ("TZ", "UTC".into())],
            folder: self.base.clone(),
            log: self.base.join("postgres.log"),
            // A "fast" shutdown: sessions are terminated, data are written.
            stop_signal: Signal::SIGINT,
            niceness: self.niceness.load(Ordering::Relaxed),
            owner: self.owner,
            hold: self.home.hold()?,
        })
    }

    /// Runs initdb unless there is a cluster. initdb works in a temporary folder, which is then
    /// renamed, so that an unfinished cluster is never taken for a complete one.
    async fn make_cluster(&self, initdb: PathBuf) -> Result<(), Error> {
        if self.data().exists() {
            return Ok(());
        }
        let unfinished = self.base.join("data.unfinished");
        remove_folder(&unfinished).await?;
        let mut args: Vec<OsString> = vec!["-D".into(), unfinished.clone().into()];
        args.extend(
            ["--username=postgres", "--auth=trust", "--encoding=UTF8", "--locale=C"]
                .map(OsString::from),
        );
        if !self.fsync {
            args.push("--no-sync".into());
        }
        let mut guard = Guard::spawn(self.spec_of(initdb, args)?).await?;
        match guard.wait(INITDB_LIMIT).await {
            Some(status) if status.success() => {}
            Some(status) => return Err(guard.failure(format!("initdb failed ({status})"))),
            None => {
                let error =
                    guard.failure(format!("initdb took more than {} s", INITDB_LIMIT.as_secs()));
                guard.kill().await;
                return Err(error);
            }
        }
        std::fs::rename(&unfinished, self.data())
            .map_err(|source| Error::io("name the new cluster".into(), source))
    }
}

impl Recipe for PostgresRecipe {
    /// Long because PostgreSQL recovers from a crash before it is ready.
    const READY_LIMIT: Duration = Duration::from_secs(120);

    fn home(&self) -> &Home {
        &self.home
    }

    fn port_count(&self) -> usize {
        1
    }

    fn spec(&self, ports: &[u16]) -> Result<Spec, Error> {
        let mut settings = vec![
            ("listen_addresses".to_owned(), "127.0.0.1".to_owned()),
            ("port".into(), ports[0].to_string()),
            ("unix_socket_directories".into(), String::new()),
            ("max_connections".into(), "200".into()),
            ("timezone".into(), "UTC".into()),
            ("log_timezone".into(), "UTC".into()),
        ];
        if !self.fsync {
            settings.extend(
                ["fsync", "synchronous_commit", "full_page_writes"]
                    .map(|name| (name.to_owned(), "off".into())),
            );
        }
        settings.extend(self.extra_config.iter().cloned());
        let mut args: Vec<OsString> = vec!["-D".into(), self.data().into()];
        for (name, value) in settings {
            args.extend(["-c".into(), format!("{name}={value}").into()]);
        }
        self.spec_of(self.program.clone(), args)
    }

    async fn answers(&self, ports: &[u16], pid: u32) -> bool {
        if !is_ready(&self.data(), pid) {
            return false;
        }
        match connect(ports[0]).await {
            Ok(connection) => connection.close().await.is_ok(),
            Err(_) => false,
        }
    }
}

/// Reads the server's lock file: line 1 holds its process id, line 8 its state.
fn is_ready(data: &Path, pid: u32) -> bool {
    let lock = std::fs::read_to_string(data.join("postmaster.pid")).unwrap_or_default();
    let mut lines = lock.lines();
    lines.next().is_some_and(|line| line.trim() == pid.to_string())
        && lines.nth(6).is_some_and(|line| line.trim() == "ready")
}

async fn connect(port: u16) -> Result<PgConnection, sqlx::Error> {
    let options =
        PgConnectOptions::new_without_pgpass().host("127.0.0.1").port(port).username("postgres");
    options.database("postgres").ssl_mode(PgSslMode::Disable).connect().await
}

/// The folders of installed versions. Debian installs each version in a folder outside of `PATH`.
fn installed_folders() -> Vec<PathBuf> {
    let mut folders: Vec<PathBuf> = newest_first("/usr/lib/postgresql")
        .into_iter()
        .map(|version| version.join("bin"))
        .collect();
    if let Ok(output) = Command::new("pg_config").arg("--bindir").stdin(Stdio::null()).output()
        && output.status.success()
    {
        folders.push(PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()));
    }
    folders
}

fn postgres_user() -> Result<Owner, Error> {
    let id = |what: &str| -> Option<u32> {
        let output =
            Command::new("id").args([what, "postgres"]).stdin(Stdio::null()).output().ok()?;
        String::from_utf8_lossy(&output.stdout).trim().parse().ok()
    };
    match (id("-u"), id("-g")) {
        (Some(uid), Some(gid)) => Ok(Owner { uid, gid }),
        _ => Err(Error::NoPostgresUser {
            reason: "there is no user `postgres` (the package postgresql makes it) to run it as"
                .into(),
        }),
    }
}

/// A folder that the user `postgres` owns and can reach. This is the home, unless it lies below a
/// closed folder such as /root. Then it is a folder in the home of `postgres`, and our home holds a
/// link to it.
fn reachable_base(home: &Home, owner: Owner) -> Result<PathBuf, Error> {
    let link = home.path().join(ELSEWHERE);
    if let Ok(elsewhere) = std::fs::read_link(&link)
        && elsewhere.is_dir()
    {
        return Ok(elsewhere);
    }
    give(home.path(), owner)?;
    if is_reachable(home.path(), owner) {
        return Ok(home.path().to_owned());
    }
    let elsewhere = Path::new(POSTGRES_HOME).join(format!("rushgate-{}", random_hex(8)?));
    let unreachable = |_| Error::Unreachable { folder: home.path().to_owned() };
    std::fs::create_dir(&elsewhere).map_err(unreachable)?;
    give(&elsewhere, owner)?;
    let _ = std::fs::remove_file(&link);
    std::os::unix::fs::symlink(&elsewhere, &link).map_err(unreachable)?;
    Ok(elsewhere)
}

fn give(folder: &Path, owner: Owner) -> Result<(), Error> {
    chown(folder, Some(owner.uid), Some(owner.gid))
        .and_then(|()| std::fs::set_permissions(folder, Permissions::from_mode(0o700)))
        .map_err(|source| {
            Error::io(format!("give {} to the user postgres", folder.display()), source)
        })
}

/// Tests access by trying: it depends on more (access control lists, mounts, namespaces) than the
/// mode bits.
fn is_reachable(folder: &Path, owner: Owner) -> bool {
    let mut probe = Command::new("/bin/sh");
    probe
        .args(["-c", "cd \"$0\" && test -w ."])
        .arg(folder)
        .current_dir("/")
        .uid(owner.uid)
        .gid(owner.gid);
    probe.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    probe.status().is_ok_and(|status| status.success())
}
