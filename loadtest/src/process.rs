//! Resource use of processes, from /proc.

use std::time::Duration;

use nix::unistd::{SysconfVar, sysconf};

use crate::Outcome;

/// Below a few clock ticks of CPU time, a share is meaningless.
const LEAST_TO_TELL: Duration = Duration::from_millis(100);

/// CPU time of a process, of its living children, and of children that it has waited for.
pub fn cpu_of(pid: u32) -> Duration {
    let mut ticks = 0;
    for pid in family(pid) {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        // The name in parentheses may contain spaces. Fields 14 to 17 are utime, stime, cutime and
        // cstime.
        let fields = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
        ticks +=
            fields.split(' ').skip(11).take(4).filter_map(|t| t.parse::<u64>().ok()).sum::<u64>();
    }
    of_ticks(ticks)
}

/// CPU time of this process's children that have ended.
pub fn cpu_of_ended_children() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
    of_ticks(fields.split(' ').skip(13).take(2).filter_map(|t| t.parse::<u64>().ok()).sum())
}

/// CPU time at one moment: of this process and its descendants, and of the whole machine.
pub struct UseOfMachine {
    ours: Duration,
    all: Duration,
}

impl UseOfMachine {
    pub fn now() -> Self {
        Self { ours: cpu_of(std::process::id()), all: cpu_of_machine() }
    }

    /// The share of other processes in the CPU time used since `before`.
    pub fn foreign_since(&self, before: &Self) -> f64 {
        let (ours, all) = (self.ours - before.ours, self.all - before.all);
        if all < LEAST_TO_TELL {
            0.0
        } else {
            1.0 - (ours.as_secs_f64() / all.as_secs_f64()).min(1.0)
        }
    }
}

/// CPU time that the whole machine has spent working.
fn cpu_of_machine() -> Duration {
    let stat = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    let first: Vec<u64> =
        stat.lines().next().unwrap_or("").split(' ').filter_map(|t| t.parse().ok()).collect();
    // user nice system idle iowait irq softirq steal
    let at_work = [0, 1, 2, 5, 6, 7].iter().filter_map(|i| first.get(*i)).sum();
    of_ticks(at_work)
}

fn of_ticks(ticks: u64) -> Duration {
    let per_s = sysconf(SysconfVar::CLK_TCK).ok().flatten().and_then(|hz| u64::try_from(hz).ok());
    Duration::from_micros(ticks * 1_000_000 / per_s.unwrap_or(100).max(1))
}

/// A process and its living descendants.
pub fn family(pid: u32) -> Vec<u32> {
    let mut found = vec![pid];
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    for task in tasks {
        let children = std::fs::read_to_string(task.path().join("children")).unwrap_or_default();
        for child in children.split_whitespace().filter_map(|id| id.parse().ok()) {
            found.extend(family(child));
        }
    }
    found
}

/// Peak memory of a process since [`forget_peak`], in bytes.
pub fn peak_memory(pid: u32) -> Outcome<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).ok_or("no VmHWM")?;
    Ok(line.trim().trim_end_matches(" kB").trim().parse::<u64>()? * 1024)
}

/// Resets the peak of [`peak_memory`] to the current use.
pub fn forget_peak(pid: u32) -> Outcome<()> {
    Ok(std::fs::write(format!("/proc/{pid}/clear_refs"), "5")?)
}
