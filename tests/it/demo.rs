//! `rushgate demo` from outside: what it refuses, what it prints, and that it leaves nothing running.

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::process::{Command, Output, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::servers::{TempFolder, descendants, is_gone, tempfile};

#[test]
fn a_port_in_use_is_one_clear_line() {
    let folder = tempfile();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap();
    for setting in ["RUSHGATE_LISTEN", "RUSHGATE_OPS_LISTEN"] {
        let Output { status, stderr, .. } = demo(&folder).env(setting, taken.to_string()).output().unwrap();
        let stderr = String::from_utf8(stderr).unwrap();
        assert!(!status.success() && stderr.lines().count() == 1, "{stderr}");
        assert!(stderr.contains(&taken.to_string()) && stderr.contains(setting), "{stderr}");
    }
    assert_eq!(folder.path.read_dir().unwrap().count(), 0, "nothing may have been started");
}

#[test]
fn ctrl_c_stops_everything_and_the_folder_is_for_one_demo() {
    let folder = tempfile();
    let mut running = demo(&folder).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(running.stdout.take().unwrap()).lines().map(Result::unwrap);
    let introduction: Vec<String> = lines.by_ref().take_while(|line| !line.contains("Ctrl-C")).collect();
    for expected in
        ["Redis ", "PostgreSQL ", "RabbitMQ ", "/v1/products", "/v1/coupon-templates/", "/v1/orders"]
    {
        assert!(
            introduction.iter().any(|line| line.contains(expected)),
            "{expected} is not in {introduction:#?}"
        );
    }
    let family = descendants(running.id());

    let second = demo(&folder).output().unwrap();
    let refusal = String::from_utf8(second.stderr).unwrap();
    assert!(!second.status.success() && refusal.contains("another demo is running"), "{refusal}");

    kill(Pid::from_raw(running.id().try_into().unwrap()), Signal::SIGINT).unwrap();
    let rest: Vec<String> = lines.collect();
    assert!(running.wait().unwrap().success(), "{rest:?}");
    let left: Vec<&u32> = family.iter().filter(|pid| !is_gone(**pid)).collect();
    assert!(family.len() >= 9 && left.is_empty(), "left of {family:?}: {left:?}");
}

/// A demo on ports of the system's choice.
fn demo(folder: &TempFolder) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rushgate"));
    command.arg("demo").arg("--data").arg(&folder.path);
    command.env("RUSHGATE_LISTEN", "127.0.0.1:0").env("RUSHGATE_OPS_LISTEN", "127.0.0.1:0");
    command
}
