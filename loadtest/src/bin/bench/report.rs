//! Formats all measurements: as tables for the terminal and for a documentation page, as JSON and
//! as a chart.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use rushgate_loadtest::Outcome;
use rushgate_loadtest::shop::FOLLOWERS_NICENESS;
use serde::Serialize;

use crate::Options;
use crate::figures::Measured;
use crate::harness::Round;
use crate::machine::Machine;
use crate::rows::Row;
use crate::statistics::{FOREIGN_CPU, median, readable, thousands};

#[derive(Serialize)]
pub struct Report {
    pub machine: Machine,
    pub commit: String,
    pub built: String,
    pub rounds: usize,
    pub seconds_each: u64,
    pub connections: usize,
    /// Duration of the whole run.
    pub seconds: u64,
    #[serde(serialize_with = "by_name")]
    rows: Vec<(Row, Vec<Round>)>,
    pub figures: Vec<Measured>,
    pub audits: Vec<String>,
}

/// Serialises each row as its medians, followed by its rounds.
fn by_name<S: serde::Serializer>(rows: &[(Row, Vec<Round>)], to: S) -> Result<S::Ok, S::Error> {
    to.collect_seq(rows.iter().map(|(row, rounds)| {
        let medians = Medians::of(rounds);
        let (target, met) = (row.target(), row.target().map(|target| medians.ratio >= target));
        serde_json::json!({
            "name": row.name(), "what": row.what(), "target_ratio": target, "met": met,
            "medians": medians, "rounds": rounds,
        })
    }))
}

/// The medians over a row's rounds.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Medians {
    pub per_s: f64,
    pub p50_ms: f64,
    pub p99_ms: f64,
    pub ratio: f64,
    pub cpu_ratio: f64,
    pub empty_per_s: f64,
    pub empty_cpu_us: f64,
    pub rushgate_cpu_us: f64,
    pub redis_cpu_us: f64,
    pub postgres_cpu_us: f64,
    pub rabbitmq_cpu_us: f64,
    pub wrk_cpu_us: f64,
    pub followed_after_s: f64,
    pub foreign_cpu: f64,
}

impl Medians {
    fn of(rounds: &[Round]) -> Self {
        let of = |what: fn(&Round) -> f64| median(rounds.iter().map(what).collect());
        Self {
            per_s: of(|r| r.per_s),
            p50_ms: of(|r| r.p50_ms),
            p99_ms: of(|r| r.p99_ms),
            ratio: of(|r| r.ratio),
            cpu_ratio: of(|r| r.cpu_ratio),
            empty_per_s: of(|r| r.empty_per_s),
            empty_cpu_us: of(|r| r.empty_cpu_us),
            rushgate_cpu_us: of(|r| r.cpu_us.rushgate),
            redis_cpu_us: of(|r| r.cpu_us.redis),
            postgres_cpu_us: of(|r| r.cpu_us.postgres),
            rabbitmq_cpu_us: of(|r| r.cpu_us.rabbitmq),
            wrk_cpu_us: of(|r| r.cpu_us.wrk),
            followed_after_s: of(|r| r.followed_after_s),
            foreign_cpu: of(|r| r.foreign_cpu),
        }
    }
}

impl Report {
    pub fn new(options: &Options) -> Outcome<Self> {
        let git =
            std::process::Command::new("git").args(["describe", "--always", "--dirty"]).output();
        Ok(Self {
            machine: Machine::here()?,
            commit: git
                .map(|o| String::from_utf8_lossy(&o.stdout).trim().to_owned())
                .unwrap_or_default(),
            built: options.built.clone(),
            rounds: options.rounds(),
            seconds_each: options.seconds(),
            connections: options.connections,
            seconds: 0,
            rows: vec![],
            figures: vec![],
            audits: vec![],
        })
    }

    pub fn add(&mut self, row: Row, round: Round) {
        match self.rows.iter_mut().find(|(of, _)| *of == row) {
            Some((_, rounds)) => rounds.push(round),
            None => self.rows.push((row, vec![round])),
        }
    }

    /// A row's medians, if it was measured.
    pub fn medians(&self, row: Row) -> Option<Medians> {
        self.rows.iter().find(|(of, _)| *of == row).map(|(_, rounds)| Medians::of(rounds))
    }

    fn rows(&self) -> impl Iterator<Item = (Row, Medians)> {
        self.rows.iter().map(|(row, rounds)| (*row, Medians::of(rounds)))
    }

    /// Reasons to doubt some of the figures.
    fn doubts(&self) -> Vec<String> {
        let mut doubts = vec![];
        for (row, rounds) in &self.rows {
            let foreign = Medians::of(rounds).foreign_cpu;
            if foreign > FOREIGN_CPU {
                doubts.push(format!(
                    "{}: {:.0}% of the CPU time was used by other processes",
                    row.name(),
                    foreign * 100.0
                ));
            }
            let mut wrong = BTreeMap::new();
            rounds
                .iter()
                .flat_map(|r| &r.wrong)
                .for_each(|(what, n)| *wrong.entry(what).or_insert(0) += n);
            if !wrong.is_empty() {
                doubts.push(format!("{}: answers that were not counted: {wrong:?}", row.name()));
            }
        }
        for it in self.figures.iter().filter(|it| it.foreign_cpu > FOREIGN_CPU) {
            doubts.push(format!(
                "{}: {:.0}% of the CPU time was used by other processes",
                it.name,
                it.foreign_cpu * 100.0
            ));
        }
        doubts
    }

    /// The report for a terminal.
    pub fn text(&self) -> String {
        let mut text = String::new();
        let cells = self.cells();
        for (table, left) in [(&cells.0, 2), (&cells.1, 2)] {
            if table.len() > 1 {
                text += &aligned(table, left);
                text.push('\n');
            }
        }
        for doubt in self.doubts() {
            text += &format!("! {doubt}\n");
        }
        text + &self.conditions() + "\n"
    }

    fn conditions(&self) -> String {
        format!(
            "Medians of {} rounds of {} s, wrk with {} connections, PostgreSQL and RabbitMQ with niceness \
             {FOLLOWERS_NICENESS}; commit {}, profile {}. {}. {} audits, all clean. {} s in all.",
            self.rounds,
            self.seconds_each,
            self.connections,
            self.commit,
            self.built,
            self.machine.text(),
            self.audits.len(),
            self.seconds
        )
    }

    /// The two tables, rows of requests and figures. The first line of each is its header.
    fn cells(&self) -> (Vec<Vec<String>>, Vec<Vec<String>>) {
        let head = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let mut rows = vec![head(&[
            "row",
            "",
            "requests/s",
            "p50 ms",
            "p99 ms",
            "ratio",
            "target",
            "",
            "by CPU",
            "rushgate µs",
            "Redis µs",
            "PostgreSQL µs",
            "RabbitMQ µs",
            "wrk µs",
            "empty/s",
            "empty µs",
            "followed s",
        ])];
        for (row, m) in self.rows() {
            let cpu = [
                m.rushgate_cpu_us,
                m.redis_cpu_us,
                m.postgres_cpu_us,
                m.rabbitmq_cpu_us,
                m.wrk_cpu_us,
            ];
            let mut cells = vec![
                row.name().into(),
                row.what().into(),
                thousands(m.per_s),
                format!("{:.1}", m.p50_ms),
                format!("{:.1}", m.p99_ms),
                format!("{:.3}", m.ratio),
                row.target().map_or(String::new(), |target| format!("≥ {target:.2}")),
                row.target().map_or(String::new(), |target| met(m.ratio >= target, m.foreign_cpu)),
                format!("{:.3}", m.cpu_ratio),
            ];
            cells.extend(cpu.map(|us| format!("{us:.1}")));
            cells.extend([thousands(m.empty_per_s), format!("{:.1}", m.empty_cpu_us)]);
            cells.push(format!("{:.1}", m.followed_after_s));
            rows.push(cells);
        }
        let mut figures = vec![head(&["figure", "", "measured", "target", ""])];
        for it in &self.figures {
            let measured = format!("{} {}", readable(it.value), it.unit);
            figures.push(vec![
                it.name.into(),
                format!(
                    "{}{}",
                    it.what,
                    if it.note.is_empty() { String::new() } else { format!(" ({})", it.note) }
                ),
                measured.trim().into(),
                it.target.text(it.unit),
                met(it.met(), it.foreign_cpu),
            ]);
        }
        (rows, figures)
    }

    pub fn write(&self, options: &Options) -> Outcome<()> {
        if let Some(path) = &options.json {
            std::fs::write(path, serde_json::to_string_pretty(self)? + "\n")?;
        }
        if let Some(path) = &options.svg {
            std::fs::write(path, self.chart()?)?;
        }
        if let Some(path) = &options.page {
            self.write_page(path)?;
        }
        Ok(())
    }

    /// Replaces the text between the two marks in a page.
    fn write_page(&self, path: &Path) -> Outcome<()> {
        const BEGIN: &str = "<!-- bench -->\n";
        const END: &str = "<!-- /bench -->";
        let page = std::fs::read_to_string(path)?;
        let (before, rest) = page.split_once(BEGIN).ok_or("the page has no line <!-- bench -->")?;
        let (_, after) = rest.split_once(END).ok_or("the page has no line <!-- /bench -->")?;
        let cells = self.cells();
        let mut text = format!("{}\n\n", self.conditions());
        for table in [&cells.0, &cells.1] {
            if table.len() > 1 {
                text += &markdown(table);
                text.push('\n');
            }
        }
        self.doubts().iter().for_each(|doubt| text += &format!("- {doubt}\n"));
        Ok(std::fs::write(path, format!("{before}{BEGIN}\n{text}\n{END}{after}"))?)
    }

    /// A bar chart of the ratios, with a mark at each target.
    fn chart(&self) -> Outcome<String> {
        const LEFT: f64 = 370.0;
        const SCALE: f64 = 440.0;
        const STEP: f64 = 34.0;
        let rows: Vec<(Row, Medians)> = self.rows().collect();
        let height = 74.0 + STEP * rows.len() as f64;
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"960\" height=\"{height}\" viewBox=\"0 0 960 {height}\" \
             font-family=\"sans-serif\" font-size=\"14\">\n<rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n\
             <text x=\"16\" y=\"26\" font-size=\"16\" font-weight=\"bold\">Requests/s, as a share of an empty handler's \
             (black: target)</text>\n"
        );
        for tenth in (0..=10).step_by(2) {
            let x = LEFT + SCALE * f64::from(tenth) / 10.0;
            writeln!(
                svg,
                "<line x1=\"{x}\" y1=\"40\" x2=\"{x}\" y2=\"{}\" stroke=\"#ddd\"/>",
                height - 28.0
            )?;
            let share = f64::from(tenth) / 10.0;
            writeln!(
                svg,
                "<text x=\"{x}\" y=\"{}\" text-anchor=\"middle\" fill=\"#555\">{share:.1}</text>",
                height - 10.0
            )?;
        }
        for (i, (row, m)) in rows.iter().enumerate() {
            let y = 44.0 + STEP * i as f64;
            let colour = match row.target() {
                Some(target) if m.ratio < target => "#d9822b",
                Some(_) => "#2d8a4e",
                None => "#7a8794",
            };
            let (width, middle) = (SCALE * m.ratio.min(1.2), y + 17.0);
            writeln!(
                svg,
                "<text x=\"{}\" y=\"{middle}\" text-anchor=\"end\">{}</text>",
                LEFT - 10.0,
                row.what()
            )?;
            writeln!(
                svg,
                "<rect x=\"{LEFT}\" y=\"{y}\" width=\"{width:.1}\" height=\"24\" fill=\"{colour}\"/>"
            )?;
            let label = format!("{:.2} · {}/s", m.ratio, thousands(m.per_s));
            writeln!(
                svg,
                "<text x=\"{:.1}\" y=\"{middle}\">{label}</text>",
                LEFT + width.max(SCALE * row.target().unwrap_or(0.0)) + 12.0
            )?;
            if let Some(target) = row.target() {
                let x = LEFT + SCALE * target;
                writeln!(
                    svg,
                    "<line x1=\"{x}\" y1=\"{}\" x2=\"{x}\" y2=\"{}\" stroke=\"#000\" stroke-width=\"2\"/>",
                    y - 3.0,
                    y + 27.0
                )?;
            }
        }
        Ok(svg + "</svg>\n")
    }
}

/// `met` or `not met`, with a question mark if other processes used the machine too.
fn met(it_is: bool, foreign_cpu: f64) -> String {
    let doubt = if foreign_cpu > FOREIGN_CPU { "?" } else { "" };
    format!("{}{doubt}", if it_is { "met" } else { "not met" })
}

/// Pads each column to its widest cell. The first `left` columns are texts, the others numbers.
fn aligned(table: &[Vec<String>], left: usize) -> String {
    let wide =
        |column: usize| table.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..table[0].len()).map(wide).collect();
    let mut text = String::new();
    for row in table {
        let mut line = String::new();
        for (i, (cell, width)) in row.iter().zip(&widths).enumerate() {
            let pad = " ".repeat(width - cell.chars().count());
            line += &if i < left { format!("{cell}{pad}  ") } else { format!("{pad}{cell}  ") };
        }
        text += line.trim_end();
        text.push('\n');
    }
    text
}

fn markdown(table: &[Vec<String>]) -> String {
    let mut text = String::new();
    for (i, row) in table.iter().enumerate() {
        text += &format!("| {} |\n", row.join(" | "));
        if i == 0 {
            let rule: Vec<&str> =
                (0..row.len()).map(|column| if column < 2 { "---" } else { "--:" }).collect();
            text += &format!("| {} |\n", rule.join(" | "));
        }
    }
    text
}
