//! `./dev bench`: the end-to-end performance of Rushgate on this machine, compared with an empty
//! handler behind the same HTTP server.
//!
//! Nothing is switched off: Redis fsyncs its append-only file always, PostgreSQL runs with fsync,
//! RabbitMQ runs, one instance has all roles, and tokens are verified. [`harness`] holds what all
//! rows share. [`rows`] defines what each row sends and how it is checked. [`wrk`] sends the
//! requests. [`figures`] has the measurements that are not rows of requests. [`report`] prints
//! everything.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

mod figures;
mod flame;
mod harness;
mod machine;
mod report;
mod rows;
mod statistics;
mod wrk;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
use rushgate_loadtest::{Outcome, say};

use crate::figures::Figure;
use crate::harness::Harness;
use crate::report::Report;
use crate::rows::Row;

/// Measures Rushgate and prints a table
#[derive(Parser)]
struct Options {
    /// Fewer and shorter rounds (3 of 3 s), for a first look
    #[arg(long)]
    quick: bool,
    /// Only these rows and figures, separated by commas
    #[arg(long, value_delimiter = ',')]
    rows: Vec<String>,
    /// Print the names of all rows and figures, and exit
    #[arg(long)]
    names: bool,
    /// Number of rounds; each drives the empty handler and the row [default: 5]
    #[arg(long)]
    rounds: Option<usize>,
    /// Length of a drive, in seconds [default: 10]
    #[arg(long)]
    seconds: Option<u64>,
    /// Number of wrk's connections
    #[arg(long, default_value_t = 1_024)]
    connections: usize,
    /// Number of wrk's threads
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// Write all figures of every round to this file, as JSON
    #[arg(long)]
    json: Option<PathBuf>,
    /// Draw a chart of the ratios into this file, as SVG
    #[arg(long)]
    svg: Option<PathBuf>,
    /// Draw a flame graph of each row into this folder, from an additional drive under `perf` that
    /// is not counted
    #[arg(long)]
    flame: Option<PathBuf>,
    /// Replace the tables in this page, between its lines `<!-- bench -->` and `<!-- /bench -->`
    #[arg(long)]
    page: Option<PathBuf>,
    /// Binary of Rushgate to measure
    #[arg(long)]
    rushgate: PathBuf,
    /// Binary of the empty handler, built with the same profile
    #[arg(long)]
    empty_handler: PathBuf,
    /// Build profile of both, for the report
    #[arg(long, default_value = "release")]
    built: String,
}

impl Options {
    fn rounds(&self) -> usize {
        self.rounds.unwrap_or(if self.quick { 3 } else { 5 }).max(1)
    }

    fn seconds(&self) -> u64 {
        self.seconds.unwrap_or(if self.quick { 3 } else { 10 }).max(1)
    }

    /// The selected rows and figures; by default all that have a target.
    fn selected(&self) -> Outcome<(Vec<Row>, Vec<Figure>)> {
        let (mut rows, mut figures) = (vec![], vec![]);
        for name in &self.rows {
            match (Row::named(name), Figure::named(name)) {
                (Some(row), _) => rows.push(row),
                (_, Some(figure)) => figures.push(figure),
                _ => return Err(format!("there is no row `{name}`; `--names` prints all").into()),
            }
        }
        if self.rows.is_empty() {
            rows = Row::ALL.into_iter().filter(|row| row.target().is_some()).collect();
            figures = Figure::ALL.into();
        }
        Ok((rows, figures))
    }
}

fn main() -> ExitCode {
    let options = Options::parse();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let outcome = match runtime {
        Ok(runtime) => runtime.block_on(Box::pin(run(&options))),
        Err(e) => Err(e.into()),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            say(format_args!("\nbench: {e}"));
            ExitCode::FAILURE
        }
    }
}

async fn run(options: &Options) -> Outcome<()> {
    if options.names {
        Row::ALL.iter().for_each(|row| say(format_args!("{:<14} {}", row.name(), row.what())));
        Figure::ALL
            .iter()
            .for_each(|figure| say(format_args!("{:<14} {}", figure.name(), figure.what())));
        return Ok(());
    }
    let (rows, figures) = options.selected()?;
    let begin = Instant::now();
    let mut report = Report::new(options)?;
    say("Starting private servers");
    let mut harness = Harness::start(options).await?;
    harness.prepare(&rows)?;
    for round in 1..=options.rounds() {
        for row in &rows {
            let measured = harness.round(*row).await?;
            say(format_args!("round {round}  {measured}"));
            report.add(*row, measured);
        }
    }
    if let Some(folder) = &options.flame {
        std::fs::create_dir_all(folder)?;
        for row in &rows {
            harness.flame(*row, &folder.join(format!("{}.svg", row.name()))).await?;
        }
    }
    let peak = report.medians(Row::Issue).map(|medians| medians.per_s);
    figures::measure(&figures, &mut harness, peak, &mut report.figures).await?;
    say("Audit");
    report.audits = harness.finish().await?;
    report.seconds = begin.elapsed().as_secs();
    say(format_args!("\n{}", report.text()));
    report.write(options)
}
