//! The machine and the versions on which the bench ran.

use std::io::Write as _;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use rushgate_loadtest::Outcome;
use serde::Serialize;

#[derive(Debug, Serialize)]
pub struct Machine {
    pub cpu: String,
    pub cores: usize,
    pub memory_gib: f64,
    pub kernel: String,
    /// Median time to write and fdatasync 4 KiB, on the disk where the servers keep their data.
    pub fsync_us: f64,
    pub versions: Vec<String>,
}

impl Machine {
    pub fn here() -> Outcome<Self> {
        let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let model =
            cpu.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or("unknown");
        let memory = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let kib = memory
            .lines()
            .find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB"));
        let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        Ok(Self {
            cpu: model.trim_start_matches([' ', '\t', ':']).to_owned(),
            cores: std::thread::available_parallelism().map_or(0, Into::into),
            memory_gib: kib.and_then(|k| k.parse::<f64>().ok()).unwrap_or(0.0) / 1024.0 / 1024.0,
            kernel: kernel.trim().to_owned(),
            fsync_us: fsync_us(&std::env::temp_dir())?,
            versions: versions(),
        })
    }

    pub fn text(&self) -> String {
        let Self { cpu, cores, memory_gib, kernel, fsync_us, versions } = self;
        format!(
            "{cores} cores of {cpu}, {memory_gib:.0} GiB, Linux {kernel}, fdatasync of 4 KiB {fsync_us:.0} µs; {}",
            versions.join(", ")
        )
    }
}

fn fsync_us(folder: &Path) -> Outcome<f64> {
    let path = folder.join(format!("rushgate-bench-{}", std::process::id()));
    let mut file = std::fs::File::create(&path)?;
    let mut took = vec![];
    for _ in 0..200 {
        let begin = Instant::now();
        file.write_all(&[7; 4096])?;
        file.sync_data()?;
        took.push(begin.elapsed().as_secs_f64() * 1e6);
    }
    std::fs::remove_file(&path)?;
    Ok(crate::statistics::median(took))
}

/// The programs' own version texts.
fn versions() -> Vec<String> {
    let first_line = |program: &str, flag: &str| {
        let output = Command::new(program).arg(flag).output().ok()?;
        let text = [output.stdout, output.stderr].concat();
        Some(String::from_utf8_lossy(&text).lines().next()?.trim().to_owned())
    };
    let redis = first_line("redis-server", "--version");
    let redis =
        redis.and_then(|t| Some(format!("Redis {}", t.split_once("v=")?.1.split(' ').next()?)));
    let postgres =
        first_line("pgbench", "--version").map(|t| t.replace("pgbench (PostgreSQL)", "PostgreSQL"));
    let wrk = first_line("wrk", "-v").and_then(|t| Some(t.split(" [").next()?.to_owned()));
    [redis, postgres, wrk].into_iter().flatten().collect()
}
