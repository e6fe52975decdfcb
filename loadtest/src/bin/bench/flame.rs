//! Flame graphs of the CPU time of Rushgate, Redis and PostgreSQL during a row.

use std::fs::File;
use std::io::{BufReader, BufWriter, Cursor};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use inferno::collapse::Collapse;
use inferno::collapse::perf::{Folder, Options as FoldOptions};
use inferno::flamegraph::{self, Options as DrawOptions};
use rushgate_loadtest::Outcome;
use rushgate_loadtest::process::family;

const SAMPLES_PER_S: &str = "199";

/// A running `perf record`.
pub struct Recording {
    perf: Child,
    data: PathBuf,
}

impl Recording {
    /// Records these processes and their children for `length`. Uses unwind tables, because the
    /// programs have no frame pointers.
    pub fn start(
        folder: &Path,
        pids: impl Iterator<Item = u32>,
        length: Duration,
    ) -> Outcome<Self> {
        let data = folder.join("perf.data");
        let pids: Vec<String> = pids.flat_map(family).map(|pid| pid.to_string()).collect();
        let perf = Command::new("perf")
            .args(["record", "--quiet", "--call-graph", "dwarf,16384", "--freq", SAMPLES_PER_S])
            .args(["--pid", &pids.join(",")])
            .arg("--output")
            .arg(&data)
            .args(["--", "sleep", &length.as_secs().to_string()])
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|e| format!("perf cannot be run ({e}): install linux-perf"))?;
        Ok(Self { perf, data })
    }

    /// Waits for the end and draws the stacks, grouped by process.
    pub fn draw(mut self, title: &str, svg: &Path) -> Outcome<()> {
        if !self.perf.wait()?.success() {
            return Err("perf could not record: see kernel.perf_event_paranoid".into());
        }
        let script = Command::new("perf")
            .args(["script", "--no-inline", "--input"])
            .arg(&self.data)
            .output()?;
        let mut folded = Vec::new();
        Folder::from(FoldOptions::default())
            .collapse(BufReader::new(Cursor::new(script.stdout)), &mut folded)?;
        let mut options = DrawOptions::default();
        options.title = title.to_owned();
        flamegraph::from_reader(
            &mut options,
            BufReader::new(folded.as_slice()),
            BufWriter::new(File::create(svg)?),
        )?;
        Ok(std::fs::remove_file(&self.data)?)
    }
}
