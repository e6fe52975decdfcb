//! A private RabbitMQ on loopback ports. It runs without Erlang's port mapper (epmd), which would
//! outlive it.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use base64::Engine as _;
use nix::sys::signal::Signal;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::guard::Spec;
use super::home::{Home, remembered, write_private};
use super::program::{Program, newest_first, search_path};
use super::{DataFolder, Error, Recipe, Server, random_hex};

const RABBITMQ: Program = Program { name: "rabbitmq-server", package: "rabbitmq-server" };
/// The time limit of one call to the management API.
const MANAGEMENT_LIMIT: Duration = Duration::from_secs(10);
/// The bytes with which a client opens every AMQP 0-9-1 connection.
const PROTOCOL_HEADER: &[u8] = b"AMQP\x00\x00\x09\x01";

#[derive(Clone, Debug)]
pub struct RabbitMqOptions {
    pub folder: DataFolder,
    /// Whether to enable the management plugin's HTTP API, on a port of its own.
    /// [`RabbitMqServer::create_vhost`] needs it.
    pub management: bool,
    /// The niceness of the server, see `nice(1)`.
    pub niceness: u8,
    /// Lines of rabbitmq.conf. They follow the default ones.
    pub extra_config: Vec<String>,
    /// The program, instead of the installed `rabbitmq-server`.
    pub program: Option<PathBuf>,
}

impl RabbitMqOptions {
    pub fn new(folder: DataFolder) -> RabbitMqOptions {
        RabbitMqOptions {
            folder,
            management: false,
            niceness: 0,
            extra_config: Vec::new(),
            program: None,
        }
    }

    /// See [`niceness`](Self::niceness).
    pub fn with_niceness(self, niceness: u8) -> RabbitMqOptions {
        RabbitMqOptions { niceness, ..self }
    }
}

pub type RabbitMqServer = Server<RabbitMqRecipe>;

pub struct RabbitMqRecipe {
    home: Home,
    program: PathBuf,
    /// The node's name. It is stored with the data, since Erlang's database is bound to it.
    node: String,
    management: bool,
    niceness: u8,
    extra_config: Vec<String>,
}

impl Server<RabbitMqRecipe> {
    pub async fn start(options: RabbitMqOptions) -> Result<RabbitMqServer, Error> {
        let program = RABBITMQ.find(options.program.as_deref(), &installed_folders())?;
        let home = Home::open(&options.folder).await?;
        let node = remembered(&home.path().join("node-name"), || {
            Ok(format!("rushgate-{}@127.0.0.1", random_hex(6)?))
        })?;
        remembered(&home.path().join(".erlang.cookie"), || random_hex(20))?;
        let RabbitMqOptions { management, niceness, extra_config, .. } = options;
        Server::start_with(RabbitMqRecipe {
            home,
            program,
            node,
            management,
            niceness,
            extra_config,
        })
        .await
    }

    /// The URL of the virtual host `/`, as the user `guest`.
    pub fn url(&self) -> String {
        self.vhost_url("%2f")
    }

    pub fn vhost_url(&self, vhost: &str) -> String {
        format!("amqp://guest:guest@127.0.0.1:{}/{vhost}", self.port())
    }

    /// The URL of the management API, if it is enabled.
    pub fn management_url(&self) -> Option<String> {
        self.management_port().map(|port| format!("http://127.0.0.1:{port}/api"))
    }

    /// Creates a virtual host that `guest` can use, and returns its URL. A name consists of
    /// letters, digits, `-` and `_`.
    pub async fn create_vhost(&self, vhost: &str) -> Result<String, Error> {
        self.manage("PUT", &format!("vhosts/{vhost}"), "{}").await?;
        let everything = r#"{"configure":".*","write":".*","read":".*"}"#;
        self.manage("PUT", &format!("permissions/{vhost}/guest"), everything).await?;
        Ok(self.vhost_url(vhost))
    }

    /// Deletes a virtual host with its contents, and closes its connections.
    pub async fn delete_vhost(&self, vhost: &str) -> Result<(), Error> {
        self.manage("DELETE", &format!("vhosts/{vhost}"), "").await
    }

    /// Runs `rabbitmqctl` on this server and returns its output.
    pub async fn control(&self, args: &[&str]) -> Result<String, Error> {
        let mut command = self.recipe.control(self.ports[1]);
        command.args(args);
        let what = format!("run rabbitmqctl {}", args.join(" "));
        let failed = |source| Error::io(what.clone(), source);
        let output = tokio::task::spawn_blocking(move || command.output())
            .await
            .map_err(|gone| failed(std::io::Error::other(gone)))?
            .map_err(failed)?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        Err(failed(std::io::Error::other(String::from_utf8_lossy(&output.stderr).into_owned())))
    }

    fn management_port(&self) -> Option<u16> {
        self.ports.get(2).copied()
    }

    async fn manage(&self, method: &str, path: &str, body: &str) -> Result<(), Error> {
        let Some(port) = self.management_port() else {
            return Err(Error::Management("not enabled for this server".into()));
        };
        match timeout(MANAGEMENT_LIMIT, call(port, method, path, body)).await {
            Ok(Ok(status)) if (200..300).contains(&status) => Ok(()),
            Ok(Ok(status)) => Err(Error::Management(format!("{method} {path}: status {status}"))),
            Ok(Err(error)) => Err(Error::Management(format!("{method} {path}: {error}"))),
            Err(_) => Err(Error::Management(format!("{method} {path}: no answer"))),
        }
    }
}

impl RabbitMqRecipe {
    fn write_config(&self, ports: &[u16]) -> Result<(), Error> {
        let folder = self.home.path();
        let mut lines = vec![
            format!("listeners.tcp.1 = 127.0.0.1:{}", ports[0]),
            "log.file = false".into(),
            "log.console = true".into(),
            "log.console.level = info".into(),
        ];
        if let Some(port) = ports.get(2) {
            lines.extend([
                "management.tcp.ip = 127.0.0.1".into(),
                format!("management.tcp.port = {port}"),
            ]);
        }
        lines.extend(self.extra_config.iter().cloned());
        write_private(&folder.join("rabbitmq.conf"), &(lines.join("\n") + "\n"))?;
        let plugins = if self.management { "[rabbitmq_management].\n" } else { "[].\n" };
        write_private(&folder.join("enabled_plugins"), plugins)
    }

    /// The command `rabbitmqctl` for this node. Without epmd it needs the node's port.
    fn control(&self, dist_port: u16) -> Command {
        let mut command = Command::new(self.program.with_file_name("rabbitmqctl"));
        let erlang = format!("-start_epmd false -erl_epmd_port {dist_port} -dist_listen false");
        command
            .env_clear()
            .env("PATH", search_path())
            .env("LANG", "C.UTF-8")
            .env("HOME", self.home.path())
            .env("RABBITMQ_CONF_ENV_FILE", "/dev/null")
            .env("RABBITMQ_NODENAME", &self.node)
            .env("RABBITMQ_USE_LONGNAME", "true")
            .env("RABBITMQ_CTL_ERL_ARGS", erlang)
            .stdin(Stdio::null());
        command
    }

    fn erlang_args(&self, dist_port: u16) -> String {
        // With a fixed port, the node needs no epmd to be found and starts none. If RabbitMQ set
        // the node's name itself, it would start epmd, so the name is passed to Erlang.
        //
        // On small machines, one scheduler thread starts faster than several and needs less memory.
        format!(
            "-name {} -start_epmd false -erl_epmd_port {dist_port} \
             -kernel inet_dist_use_interface {{127,0,0,1}} \
             -kernel inet_dist_listen_min {dist_port} -kernel inet_dist_listen_max {dist_port} \
             +S 1:1 +SDcpu 1:1 +SDio 2",
            self.node
        )
    }
}

impl Recipe for RabbitMqRecipe {
    const READY_LIMIT: Duration = Duration::from_secs(180);

    fn home(&self) -> &Home {
        &self.home
    }

    /// The ports for clients, for Erlang's distribution, and for the management API.
    fn port_count(&self) -> usize {
        if self.management { 3 } else { 2 }
    }

    fn spec(&self, ports: &[u16]) -> Result<Spec, Error> {
        self.write_config(ports)?;
        let folder = self.home.path();
        let in_folder = |name: &str| OsString::from(folder.join(name));
        Ok(Spec {
            server: "RabbitMQ",
            program: self.program.clone(),
            args: Vec::new(),
            env: vec![
                ("HOME", folder.into()),
                // With this, the start script runs the server by `exec` instead of waiting for it.
                ("detached", "true".into()),
                // A system-wide file could rename the node.
                ("RABBITMQ_CONF_ENV_FILE", "/dev/null".into()),
                ("RABBITMQ_NODENAME", self.node.clone().into()),
                ("RABBITMQ_USE_LONGNAME", "true".into()),
                ("RABBITMQ_DIST_PORT", ports[1].to_string().into()),
                // RabbitMQ adds ".conf".
                ("RABBITMQ_CONFIG_FILE", in_folder("rabbitmq")),
                ("RABBITMQ_MNESIA_BASE", in_folder("mnesia")),
                ("RABBITMQ_LOG_BASE", in_folder("log")),
                ("RABBITMQ_LOGS", "-".into()),
                ("RABBITMQ_ENABLED_PLUGINS_FILE", in_folder("enabled_plugins")),
                ("RABBITMQ_PID_FILE", in_folder("pid")),
                ("RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS", self.erlang_args(ports[1]).into()),
                // Once a minute RabbitMQ starts a second, short-lived Erlang that ensures that epmd
                // runs. This keeps it from starting one. It then fails, which RabbitMQ ignores.
                ("ERL_ZFLAGS", "-start_epmd false".into()),
                ("ERL_CRASH_DUMP_BYTES", "0".into()),
            ],
            folder: folder.to_owned(),
            log: folder.join("rabbitmq.log"),
            stop_signal: Signal::SIGTERM,
            niceness: self.niceness,
            owner: None,
            hold: self.home.hold()?,
        })
    }

    async fn answers(&self, ports: &[u16], _pid: u32) -> bool {
        let greeted = greeting(ports[0]).await.is_ok_and(|frame| {
            // The cluster's name begins with the name of its first node, followed by the machine's
            // name.
            let name = self.node.split('@').next().unwrap_or(&self.node).as_bytes();
            frame.windows(name.len()).any(|part| part == name)
        });
        let Some(&management) = ports.get(2) else { return greeted };
        greeted && call(management, "GET", "whoami", "").await.is_ok_and(|status| status == 200)
    }
}

/// The first frame that the broker sends, which contains its cluster's name.
async fn greeting(port: u16) -> std::io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
    stream.write_all(PROTOCOL_HEADER).await?;
    let mut head = [0; 7];
    stream.read_exact(&mut head).await?;
    let size = u32::from_be_bytes([head[3], head[4], head[5], head[6]]);
    let mut frame = Vec::new();
    stream.take(u64::from(size)).read_to_end(&mut frame).await?;
    Ok(frame)
}

/// One HTTP call to the management API as `guest`. Returns the status.
async fn call(port: u16, method: &str, path: &str, body: &str) -> std::io::Result<u16> {
    let guest = base64::engine::general_purpose::STANDARD.encode("guest:guest");
    let request = format!(
        "{method} /api/{path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nAuthorization: Basic {guest}\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    );
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    let status =
        String::from_utf8_lossy(&answer).split(' ').nth(1).and_then(|code| code.parse().ok());
    status.ok_or_else(|| std::io::Error::other("no HTTP answer"))
}

/// The folders of the real start script. The one in Debian's `PATH` is a wrapper that requires the
/// system's user and folders.
fn installed_folders() -> Vec<PathBuf> {
    let versions =
        newest_first("/usr/lib/rabbitmq/lib").into_iter().map(|version| version.join("sbin"));
    std::iter::once(PathBuf::from("/usr/lib/rabbitmq/bin")).chain(versions).collect()
}
