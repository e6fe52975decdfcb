//! Runs one child process under a guard: a small shell script that stops the child when this
//! process ends, even by `kill -9`.
//!
//! The guard (`guard.sh`) blocks on a pipe whose other end only this process holds; the kernel
//! closes that end when this process ends. Guard and server have a process group of their own, so
//! that Ctrl-C in a terminal reaches neither: this process decides when they stop.
//!
//! [`Spec`] describes the command. [`Guard::spawn`] starts it, and `stop`, `kill` or a drop ends
//! it.

use std::ffi::OsString;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use tokio::time::{Instant, sleep};

use super::Error;

const GUARD: &str = include_str!("guard.sh");

/// How long a server may take to stop before it is killed.
pub(super) const STOP_GRACE: Duration = Duration::from_secs(10);
/// The time that the guard itself may need in addition.
const GUARD_MARGIN: Duration = Duration::from_secs(3);
/// A killed process ends only after the kernel has released its memory.
const KILL_LIMIT: Duration = Duration::from_secs(10);
const FIRST_POLL: Duration = Duration::from_millis(2);
const LONGEST_POLL: Duration = Duration::from_millis(50);
/// The part of a log that an error message shows.
const LOG_TAIL_BYTES: u64 = 4096;
const LOG_TAIL_LINES: usize = 15;

/// The user of the server's process, if this process is root and the server refuses to run as root.
#[derive(Clone, Copy, Debug)]
pub struct Owner {
    pub uid: u32,
    pub gid: u32,
}

/// The command of a server and its environment.
pub struct Spec {
    /// The name in messages.
    pub server: &'static str,
    pub program: PathBuf,
    pub args: Vec<OsString>,
    /// The whole environment besides `PATH` and `LANG`. Nothing is inherited, since other variables
    /// could change the server's behaviour.
    pub env: Vec<(&'static str, OsString)>,
    pub folder: PathBuf,
    pub log: PathBuf,
    pub stop_signal: Signal,
    /// The niceness of the server, see `nice(1)`.
    pub niceness: u8,
    pub owner: Option<Owner>,
    /// The home's hold, open for as long as the guard runs; see [`super::home`].
    pub hold: OwnedFd,
}

/// A running child with its guard. A drop stops it in the background.
pub(super) struct Guard {
    server: &'static str,
    /// `None` after it was reaped or handed to a reaper thread.
    child: Option<Child>,
    line: Option<ChildStdin>,
    pid: u32,
    log: PathBuf,
    log_start: u64,
}

impl Guard {
    pub(super) async fn spawn(spec: Spec) -> Result<Guard, Error> {
        let server = spec.server;
        // Reading the first line blocks for a millisecond, or longer on a busy machine.
        tokio::task::spawn_blocking(move || spawn_blocking(spec))
            .await
            .unwrap_or_else(|gone| Err(std::io::Error::other(gone)))
            .map_err(|source| Error::io(format!("start {server}"), source))
    }

    pub(super) fn pid(&self) -> u32 {
        self.pid
    }

    /// The exit status, if the server has ended.
    pub(super) fn ended(&mut self) -> Option<ExitStatus> {
        self.child.as_mut()?.try_wait().ok().flatten()
    }

    /// Asks the server to stop. Kills it after [`STOP_GRACE`].
    pub(super) async fn stop(mut self) {
        drop(self.line.take());
        if self.wait(STOP_GRACE + GUARD_MARGIN).await.is_none() {
            self.kill().await;
        }
    }

    /// Simulates a crash: SIGKILL to the server and all of its children.
    pub(super) async fn kill(mut self) {
        // SIGSTOP first, so that the server cannot fork between the listing and the SIGKILL.
        send(self.pid, Signal::SIGSTOP);
        self.signal(Signal::SIGKILL);
        if self.wait(KILL_LIMIT).await.is_none()
            && let Some(child) = &self.child
        {
            let _ = killpg(as_pid(child.id()), Signal::SIGKILL);
        }
    }

    /// Sends a signal to the server and all of its descendants.
    pub(super) fn signal(&self, signal: Signal) {
        let mut family = vec![self.pid];
        family.extend(descendants(self.pid));
        for pid in family {
            send(pid, signal);
        }
    }

    /// Waits for the end of the guard, which ends with the server.
    pub(super) async fn wait(&mut self, limit: Duration) -> Option<ExitStatus> {
        let deadline = Instant::now() + limit;
        let mut pause = FIRST_POLL;
        loop {
            if let Some(status) = self.ended() {
                self.child = None;
                return Some(status);
            }
            if Instant::now() >= deadline {
                return None;
            }
            sleep(pause).await;
            pause = (pause * 2).min(LONGEST_POLL);
        }
    }

    /// The error for a server that did not start, with the end of its log.
    pub(super) fn failure(&self, reason: String) -> Error {
        Error::NotStarted {
            server: self.server,
            reason,
            log: self.log.clone(),
            tail: log_tail(&self.log, self.log_start).unwrap_or_default(),
        }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        drop(self.line.take());
        if let Some(child) = self.child.take() {
            reap_in_background(child);
        }
    }
}

/// Reaps a child that is about to end, so that it does not remain as a zombie.
pub(super) fn reap_in_background(mut child: Child) {
    let _ = std::thread::Builder::new().name("reaper".into()).spawn(move || child.wait());
}

fn spawn_blocking(spec: Spec) -> std::io::Result<Guard> {
    let log_start = std::fs::metadata(&spec.log).map_or(0, |log| log.len());
    let mut command = shell(GUARD);
    command
        .arg(spec.stop_signal.as_str().trim_start_matches("SIG"))
        .arg(STOP_GRACE.as_secs().to_string())
        .arg(&spec.log)
        // `nice` replaces itself with the program, which keeps its process id.
        .args(["nice", "-n", &spec.niceness.to_string()])
        .arg(&spec.program)
        .args(&spec.args)
        .envs(spec.env)
        .current_dir(&spec.folder)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(spec.hold);
    if let Some(Owner { uid, gid }) = spec.owner {
        command.uid(uid).gid(gid);
    }
    let mut child = command.spawn()?;
    let line = child.stdin.take();
    let mut first = String::new();
    if let Some(output) = child.stdout.take() {
        BufReader::new(output).read_line(&mut first)?;
    }
    let pid = first.trim().parse().map_err(|_| std::io::Error::other("its guard did not start"));
    let guard = Guard {
        server: spec.server,
        child: Some(child),
        line,
        pid: *pid.as_ref().unwrap_or(&0),
        log: spec.log,
        log_start,
    };
    pid.map(|_| guard)
}

/// A command that runs a shell script in a process group of its own, without our environment.
pub(super) fn shell(script: &str) -> Command {
    let mut command = Command::new("/bin/sh");
    command.arg("-c").arg(script).arg("guard").process_group(0).env_clear();
    command.env("PATH", super::program::search_path()).env("LANG", "C.UTF-8");
    command
}

fn as_pid(pid: u32) -> Pid {
    Pid::from_raw(pid.cast_signed())
}

fn send(pid: u32, signal: Signal) {
    // 0 would signal our own process group. The error of a process that has already ended is
    // ignored.
    if pid != 0 {
        let _ = kill(as_pid(pid), signal);
    }
}

/// All descendants. Empty on systems without Linux' `/proc/<pid>/task/<tid>/children`.
fn descendants(pid: u32) -> Vec<u32> {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let mut found = Vec::new();
    for thread in threads {
        let children = std::fs::read_to_string(thread.path().join("children")).unwrap_or_default();
        for child in children.split_whitespace().filter_map(|id| id.parse().ok()) {
            found.push(child);
            found.extend(descendants(child));
        }
    }
    found
}

fn log_tail(log: &Path, from: u64) -> std::io::Result<String> {
    let mut file = File::open(log)?;
    let start = file.metadata()?.len().saturating_sub(LOG_TAIL_BYTES).max(from);
    file.seek(SeekFrom::Start(start))?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().collect();
    Ok(lines[lines.len().saturating_sub(LOG_TAIL_LINES)..].join("\n"))
}
