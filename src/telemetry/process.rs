//! Metrics of this process, under the names that Prometheus' client libraries use. Linux only:
//! elsewhere, and where /proc cannot be read, they are left out.
//!
//! Not the crate `metrics-process` (2.4): it counts processor time in whole seconds, too coarse for
//! a rate over a scrape interval, and its gauges keep their last value when /proc can no longer be
//! read.

use super::exposition::Exposition;
use super::metrics::*;

/// The unit of times in /proc, whatever the kernel's own tick rate.
const TICKS_PER_SEC: f64 = 100.0;

pub fn expose(out: &mut Exposition) {
    let read = |file: &str| std::fs::read_to_string(format!("/proc/{file}")).unwrap_or_default();
    expose_stat(out, &read("self/stat"), &read("stat"));
    expose_status(out, &read("self/status"));
    if let Some(limit) = max_fds(&read("self/limits")) {
        out.put(&PROCESS_MAX_FDS, limit);
    }
    if let Ok(entries) = std::fs::read_dir("/proc/self/fd") {
        // Not counting the descriptor of this directory.
        out.put(&PROCESS_FDS, entries.count() as f64 - 1.0);
    }
}

/// Values from `stat` of the process and of the machine.
pub fn expose_stat(out: &mut Exposition, own: &str, machine: &str) {
    // The second field is the program's name in parentheses, and may contain blanks.
    let Some((_, after_name)) = own.rsplit_once(')') else { return };
    let fields: Vec<f64> =
        after_name.split_whitespace().skip(1).map_while(|f| f.parse().ok()).collect();
    // In the numbering of proc(5), the first of these is field 4.
    let field = |number: usize| fields.get(number - 4);
    if let (Some(user), Some(system)) = (field(14), field(15)) {
        out.put(&PROCESS_CPU, (user + system) / TICKS_PER_SEC);
    }
    if let (Some(boot), Some(start)) = (value_of(machine, "btime "), field(22)) {
        out.put(&PROCESS_START, boot + start / TICKS_PER_SEC);
    }
}

pub fn expose_status(out: &mut Exposition, status: &str) {
    const KIB: f64 = 1_024.0;
    for (metric, name, unit) in [
        (&PROCESS_RESIDENT, "VmRSS:", KIB),
        (&PROCESS_VIRTUAL, "VmSize:", KIB),
        (&PROCESS_THREADS, "Threads:", 1.0),
    ] {
        if let Some(value) = value_of(status, name) {
            out.put(metric, value * unit);
        }
    }
}

/// The number after `name` at the start of a line.
fn value_of(text: &str, name: &str) -> Option<f64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(name))?;
    rest.split_whitespace().next()?.parse().ok()
}

fn max_fds(limits: &str) -> Option<f64> {
    let rest = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    rest.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exposed() -> String {
        let mut out = Exposition::default();
        expose(&mut out);
        out.into_text()
    }

    fn value(text: &str, metric: &Metric) -> f64 {
        value_of(text, &format!("{} ", metric.name))
            .unwrap_or_else(|| panic!("{}: {text}", metric.name))
    }

    #[test]
    fn the_process_is_seen_as_it_is() {
        let text = exposed();
        let now = std::time::UNIX_EPOCH.elapsed().unwrap().as_secs_f64();
        let age = now - value(&text, &PROCESS_START);
        assert!((-2.0..3_600.0).contains(&age), "{age}");
        assert!(value(&text, &PROCESS_RESIDENT) > 1e6);
        assert!(value(&text, &PROCESS_VIRTUAL) > value(&text, &PROCESS_RESIDENT));
        assert!(value(&text, &PROCESS_THREADS) >= 2.0, "this test's and the main one");
        assert!(value(&text, &PROCESS_MAX_FDS) > value(&text, &PROCESS_FDS));

        let opened: Vec<_> = (0..40).map(|_| std::fs::File::open("/dev/null").unwrap()).collect();
        assert!(value(&exposed(), &PROCESS_FDS) >= 40.0);
        drop(opened);
    }

    #[test]
    fn a_program_name_with_blanks_and_brackets_is_no_trouble() {
        let mut out = Exposition::default();
        let numbers: Vec<String> = (4..=22).map(|n| (n * 100).to_string()).collect();
        expose_stat(
            &mut out,
            &format!("7 (a) b (c) S {}", numbers.join(" ")),
            "cpu 1\nbtime 1000\n",
        );
        let text = out.into_text();
        assert_eq!(value(&text, &PROCESS_CPU), 14.0 + 15.0);
        assert_eq!(value(&text, &PROCESS_START), 1_000.0 + 22.0);
    }
}
