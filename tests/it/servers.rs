//! Tests of the local servers: they start, keep their data, and never outlive the process that
//! started them.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use fred::prelude::*;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::{Pid, getpgid};
use rushgate_local_servers::{
    DataFolder, Error, PostgresOptions, PostgresServer, RabbitMqOptions, RabbitMqServer,
    RedisOptions, RedisServer,
};

/// Time limit for the guards of a killed process to clean up.
const CLEAR_UP_LIMIT: Duration = Duration::from_secs(60);
/// Sent at least 200 µs apart, 500 signals cover what a guard does in its first 100 ms, and take
/// half a second at most.
const HANG_UPS: usize = 500;

#[tokio::test]
async fn redis_finds_its_data_again() {
    let folder = tempfile();
    let options = RedisOptions::new(DataFolder::Kept(folder.path.clone()));
    let server = RedisServer::start(options.clone()).await.unwrap();
    let client = redis(&server).await;
    let _: () = client.set("greeting", "hello", None, None, false).await.unwrap();
    let (port, first_pid) = (server.port(), server.pid().unwrap());

    server.kill().await;
    assert!(is_gone(first_pid) && server.pid().is_none());
    server.restart().await.unwrap();
    assert_eq!(server.port(), port);
    let kept: String = redis(&server).await.get("greeting").await.unwrap();
    assert_eq!(kept, "hello");

    server.stop().await;
    drop(server);
    let again = RedisServer::start(options).await.unwrap();
    let kept: String = redis(&again).await.get("greeting").await.unwrap();
    assert_eq!(kept, "hello");
}

#[tokio::test]
async fn redis_would_lose_nothing_that_it_acknowledged() {
    let server = RedisServer::start(RedisOptions::new(DataFolder::Scratch)).await.unwrap();
    let client = redis(&server).await;
    for (name, value) in [
        ("appendonly", "yes"),
        ("appendfsync", "always"),
        ("no-appendfsync-on-rewrite", "no"),
        ("aof-load-truncated", "no"),
        ("maxmemory-policy", "noeviction"),
        ("save", ""),
        ("bind", "127.0.0.1"),
        ("protected-mode", "yes"),
    ] {
        assert_eq!(redis_setting(&client, name).await, value, "{name}");
    }
}

/// A crash tears the last transaction. What is acknowledged after the restart must survive the next
/// crash.
#[tokio::test]
async fn a_torn_write_damages_nothing_that_comes_after_it() {
    let server = RedisServer::start(RedisOptions::new(DataFolder::Scratch)).await.unwrap();
    let pair = |name: &'static str| {
        let server = &server;
        async move {
            let script = "redis.call('HSET', 'b', ARGV[1], 1) redis.call('SET', 'a', ARGV[1])";
            let _: Value =
                redis(server).await.eval(script, vec!["a", "b"], vec![name]).await.unwrap();
        }
    };
    pair("first").await;
    pair("torn").await;
    server.kill().await;
    let file = server.folder().join("appendonlydir/appendonly.aof.1.incr.aof");
    let written = std::fs::read(&file).unwrap();
    // Cuts the file in the middle of the last transaction's second command.
    let tear = written.windows(4).rposition(|part| part == b"\nSET").unwrap() + 2;
    std::fs::File::options().write(true).open(&file).unwrap().set_len(tear as u64).unwrap();
    server.restart().await.unwrap();
    pair("after").await;
    for _ in 0..2 {
        let client = redis(&server).await;
        let (a, mut b): (String, Vec<String>) =
            (client.get("a").await.unwrap(), client.hkeys("b").await.unwrap());
        b.sort();
        assert_eq!((a.as_str(), b), ("after", vec!["after".to_owned(), "first".to_owned()]));
        server.kill().await;
        server.restart().await.unwrap();
    }
    assert!(!std::fs::read(&file).unwrap().windows(4).any(|part| part == b"torn"));
}

#[tokio::test]
async fn extra_configuration_wins() {
    let mut options = RedisOptions::new(DataFolder::Scratch);
    options.extra_config.push("appendfsync everysec".into());
    let server = RedisServer::start(options).await.unwrap();
    assert_eq!(redis_setting(&redis(&server).await, "appendfsync").await, "everysec");
}

#[tokio::test]
async fn a_wrong_configuration_shows_the_end_of_the_log() {
    let mut options = RedisOptions::new(DataFolder::Scratch);
    options.extra_config.push("no-such-setting 1".into());
    let error = RedisServer::start(options).await.err().unwrap();
    assert!(
        matches!(&error, Error::NotStarted { tail, .. } if tail.contains("no-such-setting")),
        "{error}"
    );
}

#[tokio::test]
async fn many_redis_servers_side_by_side() {
    let starts = (0..8).map(|_| RedisServer::start(RedisOptions::new(DataFolder::Scratch)));
    let servers = futures::future::try_join_all(starts).await.unwrap();
    let mut ports: Vec<u16> = servers.iter().map(RedisServer::port).collect();
    ports.sort_unstable();
    ports.dedup();
    assert_eq!(ports.len(), 8);
}

#[tokio::test]
async fn a_paused_server_answers_nothing_until_resumed() {
    let server = RedisServer::start(RedisOptions::new(DataFolder::Scratch)).await.unwrap();
    let client = redis(&server).await;
    server.pause();
    let ping = tokio::spawn(async move { client.ping::<String>(None).await });
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(!ping.is_finished());
    server.resume();
    assert_eq!(ping.await.unwrap().unwrap(), "PONG");
}

#[tokio::test]
async fn a_paused_server_can_be_stopped() {
    let server = PostgresServer::start(scratch_postgres()).await.unwrap();
    let session = sqlx::PgPool::connect(&server.url()).await.unwrap();
    let pid = server.pid().unwrap();
    server.pause();
    server.stop().await;
    assert!(is_gone(pid));
    session.close().await;
}

#[tokio::test]
async fn a_folder_is_for_one_server() {
    let folder = tempfile();
    let first =
        RedisServer::start(RedisOptions::new(DataFolder::Kept(folder.path.clone()))).await.unwrap();
    let mut command = child("servers::a_child_wants_a_folder");
    let output = command.env("RUSHGATE_TEST_FOLDER", &folder.path).output().unwrap();
    let output = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.contains("is in use"), "{output}");
    drop(first);
}

#[tokio::test]
#[ignore = "a part of a_folder_is_for_one_server"]
async fn a_child_wants_a_folder() {
    let folder = DataFolder::Kept(std::env::var_os("RUSHGATE_TEST_FOLDER").unwrap().into());
    println!("{}", RedisServer::start(RedisOptions::new(folder)).await.err().unwrap());
}

#[tokio::test]
async fn postgres_finds_its_data_again() {
    let folder = tempfile();
    let mut options = PostgresOptions::new(DataFolder::Kept(folder.path.clone()));
    options.fsync = false;
    let server = PostgresServer::start(options.clone()).await.unwrap();
    let url = server.create_database("shop").await.unwrap();
    assert_eq!(server.create_database("shop").await.unwrap(), url);
    let shop = sqlx::PgPool::connect(&url).await.unwrap();
    sqlx::query("CREATE TABLE words (word text)").execute(&shop).await.unwrap();
    sqlx::query("INSERT INTO words VALUES ('hello')").execute(&shop).await.unwrap();
    sqlx::query("CHECKPOINT").execute(&shop).await.unwrap();

    server.kill().await;
    shop.close().await;
    server.restart().await.unwrap();
    assert_eq!(word(&url).await, "hello");

    server.stop().await;
    drop(server);
    let again = PostgresServer::start(options).await.unwrap();
    assert_eq!(word(&again.database_url("shop")).await, "hello");
}

#[tokio::test]
async fn postgres_is_as_the_demo_needs_it() {
    let server = PostgresServer::start(PostgresOptions::new(DataFolder::Scratch)).await.unwrap();
    let session = sqlx::PgPool::connect(&server.url()).await.unwrap();
    for (name, value) in [
        ("fsync", "on"),
        ("max_connections", "200"),
        ("server_encoding", "UTF8"),
        ("lc_collate", "C"),
        ("listen_addresses", "127.0.0.1"),
    ] {
        let setting: String = sqlx::query_scalar("SELECT current_setting($1)")
            .bind(name)
            .fetch_one(&session)
            .await
            .unwrap();
        assert_eq!(setting, value, "{name}");
    }
}

#[tokio::test]
async fn followers_step_back_when_they_shall() {
    let postgres =
        PostgresServer::start(PostgresOptions { niceness: 7, ..scratch_postgres() }).await.unwrap();
    let session = sqlx::PgPool::connect(&postgres.url()).await.unwrap();
    let backend: i32 =
        sqlx::query_scalar("SELECT pg_backend_pid()").fetch_one(&session).await.unwrap();
    let ours = niceness(std::process::id());
    assert_eq!(niceness(backend.try_into().unwrap()), ours + 7);
    session.close().await;
    postgres.set_niceness(0);
    postgres.restart().await.unwrap();
    assert_eq!(niceness(postgres.pid().unwrap()), ours);
    let options = RabbitMqOptions::new(DataFolder::Scratch).with_niceness(10);
    let rabbitmq = RabbitMqServer::start(options).await.unwrap();
    assert_eq!(niceness(rabbitmq.pid().unwrap()), ours + 10);
}

pub fn niceness(pid: u32) -> i32 {
    niceness_at(Path::new(&format!("/proc/{pid}")))
}

/// The niceness of a process or thread: the 17th field after the program's name in `/proc/…/stat`.
pub fn niceness_at(task: &Path) -> i32 {
    let stat = std::fs::read_to_string(task.join("stat")).unwrap();
    stat.rsplit_once(") ").unwrap().1.split(' ').nth(16).unwrap().parse().unwrap()
}

#[tokio::test]
async fn rabbitmq_finds_its_data_again() {
    let folder = tempfile();
    let mut options = RabbitMqOptions::new(DataFolder::Kept(folder.path.clone()));
    options.management = true;
    let server = RabbitMqServer::start(options.clone()).await.unwrap();
    let url = server.create_vhost("shop").await.unwrap();
    publish(&url).await;

    server.kill().await;
    server.restart().await.unwrap();
    assert_eq!(queued(&url).await, 1);
    server.delete_vhost("shop").await.unwrap();
    assert!(rabbitmq(&url).await.is_err());

    publish(&server.url()).await;
    server.stop().await;
    drop(server);
    options.management = false;
    let again = RabbitMqServer::start(options).await.unwrap();
    assert_eq!(queued(&again.url()).await, 1);
}

#[tokio::test]
async fn a_missing_program_is_named_with_its_package() {
    let nowhere = Some(PathBuf::from("/nowhere/program"));
    let redis = RedisOptions { program: nowhere.clone(), ..RedisOptions::new(DataFolder::Scratch) };
    let postgres = PostgresOptions {
        bin_folder: nowhere.clone(),
        ..PostgresOptions::new(DataFolder::Scratch)
    };
    let rabbitmq =
        RabbitMqOptions { program: nowhere, ..RabbitMqOptions::new(DataFolder::Scratch) };
    for (error, package) in [
        (RedisServer::start(redis).await.err().unwrap(), "redis-server"),
        (PostgresServer::start(postgres).await.err().unwrap(), "postgresql"),
        (RabbitMqServer::start(rabbitmq).await.err().unwrap(), "rabbitmq-server"),
    ] {
        let text = error.to_string();
        assert!(
            text.starts_with("/nowhere/program")
                && text.contains(package)
                && text.contains("./dev up"),
            "{text}"
        );
    }
}

#[tokio::test]
async fn no_server_outlives_a_killed_parent() {
    let mut parent =
        child("servers::a_child_that_starts_servers").stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(parent.stdout.take().unwrap()).lines().map(Result::unwrap);
    let frozen =
        lines.find_map(|line| Some(line.strip_prefix("frozen ")?.parse().unwrap())).unwrap();
    let frozen_group = getpgid(Some(Pid::from_raw(frozen))).unwrap();
    let scratch: Vec<String> =
        lines.filter_map(|line| Some(line.strip_prefix("scratch ")?.to_owned())).take(3).collect();
    let family = descendants(parent.id());
    assert!(
        family.len() >= 12,
        "a server, a guard, a watcher and a sweeper each at least: {family:?}"
    );
    parent.kill().unwrap();
    // Once the parent is dead, the kernel sends one SIGHUP to the group, because it is orphaned and
    // has a stopped member. That happens at some time after the guard has seen the parent's end.
    // The test sends the signal again and again, so that it arrives at every stage of the guard's
    // work. The guard and its children must survive it.
    for _ in 0..HANG_UPS {
        if killpg(frozen_group, Signal::SIGHUP).is_err() {
            break;
        }
        std::thread::sleep(Duration::from_micros(200));
    }
    parent.wait().unwrap();

    let deadline = Instant::now() + CLEAR_UP_LIMIT;
    loop {
        let processes: Vec<String> =
            family.iter().filter(|pid| !is_gone(**pid)).map(described).collect();
        let folders: Vec<&String> =
            scratch.iter().filter(|folder| Path::new(folder).exists()).collect();
        if processes.is_empty() && folders.is_empty() {
            break;
        }
        assert!(Instant::now() < deadline, "left: {processes:?} {folders:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Name and state of a process, for the assertion's message.
fn described(pid: &u32) -> String {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let of = |field: &str| {
        status.lines().find_map(|line| line.strip_prefix(field)).unwrap_or("gone").trim()
    };
    format!("{pid} {} {}", of("Name:"), of("State:"))
}

#[tokio::test]
#[ignore = "a part of no_server_outlives_a_killed_parent"]
async fn a_child_that_starts_servers() {
    let redis = RedisServer::start(RedisOptions::new(DataFolder::Scratch));
    let postgres = PostgresServer::start(scratch_postgres());
    let rabbitmq = RabbitMqServer::start(RabbitMqOptions::new(DataFolder::Scratch));
    let (redis, postgres, rabbitmq) = tokio::try_join!(redis, postgres, rabbitmq).unwrap();
    // Sessions that are frozen when the parent dies are the hardest to clean up.
    let _session = sqlx::PgPool::connect(&postgres.url()).await.unwrap();
    postgres.pause();
    println!("frozen {}", postgres.pid().unwrap());
    for folder in [redis.folder(), postgres.folder(), rabbitmq.folder()] {
        println!("scratch {}", folder.display());
    }
    std::future::pending::<()>().await;
}

/// Runs one test of this test binary in a child process.
fn child(test: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", test, "--ignored", "--nocapture"]);
    command
}

/// All descendants of a process.
pub fn descendants(pid: u32) -> Vec<u32> {
    let mut found = Vec::new();
    for thread in std::fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten() {
        let children = std::fs::read_to_string(thread.path().join("children")).unwrap_or_default();
        for child in children.split_whitespace().map(|id| id.parse().unwrap()) {
            found.push(child);
            found.extend(descendants(child));
        }
    }
    found
}

/// Whether a process has ended. A zombie counts as ended.
pub fn is_gone(pid: u32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    status.is_empty() || status.contains("State:\tZ")
}

pub struct TempFolder {
    pub path: PathBuf,
}

impl Drop for TempFolder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.path);
    }
}

pub fn tempfile() -> TempFolder {
    let path = std::env::temp_dir().join(format!("rushgate-test-{}", uuid::Uuid::now_v7()));
    std::fs::create_dir(&path).unwrap();
    TempFolder { path }
}

fn scratch_postgres() -> PostgresOptions {
    PostgresOptions { fsync: false, ..PostgresOptions::new(DataFolder::Scratch) }
}

async fn redis(server: &RedisServer) -> Client {
    let client = Client::new(Config::from_url(&server.url()).unwrap(), None, None, None);
    client.init().await.unwrap();
    client
}

async fn redis_setting(client: &Client, name: &str) -> String {
    let config = fred::types::CustomCommand::new_static("CONFIG", None, false);
    let answer: Vec<String> = client.custom(config, vec!["GET", name]).await.unwrap();
    answer.into_iter().nth(1).unwrap()
}

async fn word(url: &str) -> String {
    let session = sqlx::PgPool::connect(url).await.unwrap();
    sqlx::query_scalar("SELECT word FROM words").fetch_one(&session).await.unwrap()
}

async fn rabbitmq(url: &str) -> Result<lapin::Channel, lapin::Error> {
    lapin::Connection::connect(url, lapin::ConnectionProperties::default())
        .await?
        .create_channel()
        .await
}

async fn declare(channel: &lapin::Channel) -> lapin::Queue {
    let options = lapin::options::QueueDeclareOptions { durable: true, ..Default::default() };
    channel.queue_declare("letters".into(), options, Default::default()).await.unwrap()
}

async fn publish(url: &str) {
    let channel = rabbitmq(url).await.unwrap();
    declare(&channel).await;
    channel.confirm_select(Default::default()).await.unwrap();
    let persistent = lapin::BasicProperties::default().with_delivery_mode(2);
    let sent = channel
        .basic_publish("".into(), "letters".into(), Default::default(), b"hello", persistent)
        .await;
    sent.unwrap().await.unwrap();
}

async fn queued(url: &str) -> u32 {
    declare(&rabbitmq(url).await.unwrap()).await.message_count()
}
