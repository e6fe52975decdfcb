//! `rushgate demo` as a user sees it: what it refuses, what it prints, and that it leaves no
//! process running.

use std::io::{BufRead, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::servers::{TempFolder, descendants, is_gone, tempfile};

#[test]
fn a_port_in_use_is_one_clear_line() {
    let folder = tempfile();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap();
    for setting in ["RUSHGATE_LISTEN", "RUSHGATE_OPS_LISTEN"] {
        let Output { status, stderr, .. } =
            demo(&folder).env(setting, taken.to_string()).output().unwrap();
        let stderr = String::from_utf8(stderr).unwrap();
        assert!(!status.success() && stderr.lines().count() == 1, "{stderr}");
        assert!(stderr.contains(&taken.to_string()) && stderr.contains(setting), "{stderr}");
    }
    assert_eq!(folder.path.read_dir().unwrap().count(), 0, "nothing may have been started");
}

#[test]
fn ctrl_c_stops_everything_and_the_folder_is_for_one_demo() {
    let folder = tempfile();
    let mut running = visited(&folder).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(running.stdout.take().unwrap()).lines().map(Result::unwrap);
    let introduction: Vec<String> =
        lines.by_ref().take_while(|line| !line.contains("Ctrl-C")).collect();
    for expected in [
        "Redis ",
        "PostgreSQL ",
        "RabbitMQ ",
        "/shop/",
        "/console/",
        "/v1/products",
        "/v1/coupon-templates/",
        "/v1/orders",
        "user guest, password guest",
        "rushgate token --sub user-2",
        "redis-cli -u redis://",
        "psql postgres://",
        "/queues/%2F/data-platform.orders/get",
        "/metrics | grep",
        "rushgate audit ",
    ] {
        assert!(
            introduction.iter().any(|line| line.contains(expected)),
            "{expected} is not in {introduction:#?}"
        );
    }
    assert!(!folder.path.join("first-start").exists(), "the first start is over");
    let family = descendants(running.id());
    settings_are_those_of_the_visitor(&introduction, &folder);

    let second = demo(&folder).output().unwrap();
    let refusal = String::from_utf8(second.stderr).unwrap();
    assert!(!second.status.success() && refusal.lines().count() == 1, "{refusal}");
    assert!(refusal.contains("another demo is running"), "{refusal}");

    interrupt(&running);
    let rest: Vec<String> = lines.collect();
    assert!(running.wait().unwrap().success(), "{rest:?}");
    assert!(rest.iter().any(|line| line.starts_with("All stopped. The data stay")), "{rest:?}");
    let left: Vec<&u32> = family.iter().filter(|pid| !is_gone(**pid)).collect();
    assert!(family.len() >= 9 && left.is_empty(), "left of {family:?}: {left:?}");
}

#[test]
fn an_interrupted_first_start_is_begun_afresh() {
    let folder = tempfile();
    let mut first = demo(&folder).stdout(Stdio::null()).spawn().unwrap();
    let half_made = ["redis", "postgres", "rabbitmq"].map(|name| folder.path.join(name));
    let deadline = Instant::now() + Duration::from_secs(120);
    while !half_made.iter().all(|path| path.exists()) {
        assert!(Instant::now() < deadline, "the servers are not begun");
        std::thread::sleep(Duration::from_millis(20));
    }
    first.kill().unwrap();
    first.wait().unwrap();
    assert!(folder.path.join("first-start").exists());
    let trace = folder.path.join("rabbitmq").join("trace");
    std::fs::write(&trace, "of the first start").unwrap();

    // A second interruption, this time by hand.
    let mut second = demo(&folder).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(second.stdout.take().unwrap()).lines().map(Result::unwrap);
    let told = "The first start in this folder was interrupted; beginning afresh.";
    assert!(lines.by_ref().any(|line| line == told));
    interrupt(&second);
    let rest: Vec<String> = lines.collect();
    assert!(second.wait().unwrap().success(), "{rest:?}");
    assert!(rest.iter().any(|line| line.contains("before the shop was open")), "{rest:?}");
    assert!(!trace.exists(), "what the first start left is still there");

    let mut third = demo(&folder).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(third.stdout.take().unwrap()).lines().map(Result::unwrap);
    assert!(lines.by_ref().any(|line| line == "The shop is open."));
    assert!(!folder.path.join("first-start").exists());
    interrupt(&third);
    let rest: Vec<String> = lines.collect();
    assert!(third.wait().unwrap().success(), "{rest:?}");
}

#[test]
fn a_setting_that_cannot_work_is_one_clear_line() {
    let folder = tempfile();
    let refused = demo(&folder).env("RUSHGATE_TIMEZONE", "Asia/Nowhere").output().unwrap();
    let stderr = String::from_utf8(refused.stderr).unwrap();
    assert!(!refused.status.success() && stderr.lines().count() == 1, "{stderr}");
    assert!(stderr.contains("RUSHGATE_TIMEZONE"), "{stderr}");
    assert_eq!(folder.path.read_dir().unwrap().count(), 0, "nothing may have been started");
}

/// A demo by a visitor who tries settings, in a shell that also has the variables of a real
/// installation.
fn visited(folder: &TempFolder) -> Command {
    let mut command = demo(folder);
    command.envs([
        ("RUSHGATE_CORS_ORIGINS", "https://shop.example"),
        ("RUSHGATE_ACK", "truth"),
        ("RUSHGATE_USER_RATE", "7/10s"),
        ("RUSHGATE_JWT_AUDIENCE", "shop"),
        ("RUSHGATE_REDIS_URL", "redis://127.0.0.1:1"),
        ("RUSHGATE_DATABASE_URL", "postgres://127.0.0.1:1/real"),
        ("RUSHGATE_ROLES", "relay"),
        ("RUSHGATE_JWT_SECRET", "of a real installation, not of the demo"),
        ("RUSHGATE_TLS_CERT_FILE", "/nowhere/cert.pem"),
    ]);
    command
}

fn settings_are_those_of_the_visitor(introduction: &[String], folder: &TempFolder) {
    let api = introduction.iter().find_map(|line| line.trim().strip_prefix("API")).unwrap();
    let api = api.trim().strip_prefix("http://").unwrap();
    let token = std::fs::read_to_string(folder.path.join("shop.header")).unwrap();
    let body = r#"{"amount":1000}"#;
    let answer = ask(
        api,
        &format!(
            "POST /v1/users/user-3/wallet/charges HTTP/1.1\r\nHost: {api}\r\nOrigin: https://shop.example\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n{}\r\n\r\n{body}",
            body.len(),
            token.trim_end()
        ),
    );
    // The token belongs to another user, so the request is refused, but only after all the settings
    // have taken effect.
    assert!(answer.starts_with("HTTP/1.1 404"), "{answer}");
    let answer = answer.to_ascii_lowercase();
    assert!(answer.contains("access-control-allow-origin: https://shop.example"), "{answer}");
    assert!(answer.contains("q=7;w=10"), "{answer}");
}

fn ask(address: &str, request: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

fn interrupt(demo: &Child) {
    kill(Pid::from_raw(demo.id().try_into().unwrap()), Signal::SIGINT).unwrap();
}

/// A demo on ports that the system chooses.
fn demo(folder: &TempFolder) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rushgate"));
    command.arg("demo").arg("--data").arg(&folder.path);
    command.env("RUSHGATE_LISTEN", "127.0.0.1:0").env("RUSHGATE_OPS_LISTEN", "127.0.0.1:0");
    command
}
