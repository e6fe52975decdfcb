//! One child process under a guard: a small shell that stops it when this process is gone, `kill -9` included.
//!
//! The guard (`guard.sh`) blocks on a pipe whose other end only this process holds; the kernel closes that end with
//! us. Guard and server are a process group of their own, so Ctrl-C in a terminal reaches neither: whoever started
//! them decides when they stop.

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
/// What the guard itself may need on top of that.
const GUARD_MARGIN: Duration = Duration::from_secs(3);
/// A killed process is gone when the kernel has taken its memory back.
const KILL_LIMIT: Duration = Duration::from_secs(10);
const FIRST_POLL: Duration = Duration::from_millis(2);
const LONGEST_POLL: Duration = Duration::from_millis(50);
/// How much of a log an error message shows.
const LOG_TAIL_BYTES: u64 = 4096;
const LOG_TAIL_LINES: usize = 15;

/// The user to run as, where this process is root and the server refuses to be.
#[derive(Clone, Copy, Debug)]
pub struct Owner {
    pub uid: u32,
    pub gid: u32,
}

/// What to run, and how.
pub struct Spec {
    /// For messages.
    pub server: &'static str,
    pub program: PathBuf,
    pub args: Vec<OsString>,
    /// Beside `PATH` and `LANG`, all that the server sees: whatever else stands in our environment could change it.
    pub env: Vec<(&'static str, OsString)>,
    pub folder: PathBuf,
    pub log: PathBuf,
    pub stop_signal: Signal,
    /// How far it steps back behind others when the processors are busy, see `nice(1)`.
    pub niceness: u8,
    pub owner: Option<Owner>,
    /// Held open for as long as the guard lives, see [`super::home::Home`].
    pub hold: OwnedFd,
}

/// A running child with its guard. Dropped, it is stopped in the background.
pub(super) struct Guard {
    server: &'static str,
    /// `None` only once it has been reaped or handed over.
    child: Option<Child>,
    line: Option<ChildStdin>,
    pid: u32,
    log: PathBuf,
    log_start: u64,
}

impl Guard {
    pub(super) async fn spawn(spec: Spec) -> Result<Guard, Error> {
        let server = spec.server;
        // Reading the first line blocks for a millisecond or, on a busy machine, longer.
        tokio::task::spawn_blocking(move || spawn_blocking(spec))
            .await
            .unwrap_or_else(|gone| Err(std::io::Error::other(gone)))
            .map_err(|source| Error::io(format!("start {server}"), source))
    }

    pub(super) fn pid(&self) -> u32 {
        self.pid
    }

    /// How the server ended, if it has.
    pub(super) fn ended(&mut self) -> Option<ExitStatus> {
        self.child.as_mut()?.try_wait().ok().flatten()
    }

    /// Asks the server to stop; kills it when it has not within [`STOP_GRACE`].
    pub(super) async fn stop(mut self) {
        drop(self.line.take());
        if self.wait(STOP_GRACE + GUARD_MARGIN).await.is_none() {
            self.kill().await;
        }
    }

    /// As a crash: the server and all of its children get SIGKILL, nobody is asked.
    pub(super) async fn kill(mut self) {
        // Stopped first, so that it has no time for new children between the look and the blow.
        send(self.pid, Signal::SIGSTOP);
        self.signal(Signal::SIGKILL);
        if self.wait(KILL_LIMIT).await.is_none()
            && let Some(child) = &self.child
        {
            let _ = killpg(as_pid(child.id()), Signal::SIGKILL);
        }
    }

    /// Signals the server and all of its children.
    pub(super) fn signal(&self, signal: Signal) {
        let mut family = vec![self.pid];
        family.extend(descendants(self.pid));
        for pid in family {
            send(pid, signal);
        }
    }

    /// Waits for the guard's end, which is the server's.
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

    /// The error for a server that did not come up, with the end of what it said.
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

/// Waits for a child that is about to end, so that it does not stay behind as a zombie.
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
        // It becomes the program.
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
    let pid = first.trim().parse().map_err(|_| std::io::Error::other("its guard did not come up"));
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

/// A shell script in a process group and with an environment of its own.
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
    // 0 would be our own process group. A process that has ended meanwhile needs no signal.
    if pid != 0 {
        let _ = kill(as_pid(pid), signal);
    }
}

/// Children, their children and so on. Empty where the kernel does not tell (other systems than Linux).
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
