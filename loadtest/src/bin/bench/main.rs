//! `./dev bench`: what Rushgate does end to end on this machine, held against an empty handler behind the same server.
//!
//! Everything is on: Redis with its append-only file fsynced always, PostgreSQL with fsync, RabbitMQ, one instance with
//! all roles, tokens checked. [`stage`] has what all rows share; [`rows`] says what each row sends and how it is checked;
//! [`wrk`] drives; [`figures`] are the numbers that are no rows of requests; [`report`] shows all of it.

mod figures;
mod flame;
mod machine;
mod report;
mod rows;
mod stage;
mod wrk;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
use rushgate_loadtest::{Outcome, say};

use crate::figures::Figure;
use crate::report::Report;
use crate::rows::Row;
use crate::stage::Stage;

/// Measures Rushgate; prints a table
#[derive(Parser)]
struct Options {
    /// Fewer and shorter rounds (3 of 3 s), for a first look
    #[arg(long)]
    quick: bool,
    /// Only these rows and figures, separated by commas
    #[arg(long, value_delimiter = ',')]
    rows: Vec<String>,
    /// Print the names of all rows and figures, and measure nothing
    #[arg(long)]
    names: bool,
    /// Rounds; each drives the empty handler and then the row [default: 5]
    #[arg(long)]
    rounds: Option<usize>,
    /// Length of one drive, in seconds [default: 10]
    #[arg(long)]
    seconds: Option<u64>,
    /// Connections of wrk
    #[arg(long, default_value_t = 1_024)]
    connections: usize,
    /// Threads of wrk
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// Write all figures, round by round, to this file
    #[arg(long)]
    json: Option<PathBuf>,
    /// Draw the ratios to this file
    #[arg(long)]
    svg: Option<PathBuf>,
    /// Draw a flame graph of each row into this folder, from one more drive with `perf` that is not counted
    #[arg(long)]
    flame: Option<PathBuf>,
    /// Put the tables into this page, between its lines `<!-- bench -->` and `<!-- /bench -->`
    #[arg(long)]
    page: Option<PathBuf>,
    /// The binary that is measured
    #[arg(long)]
    rushgate: PathBuf,
    /// The empty handler, built alike
    #[arg(long)]
    empty_handler: PathBuf,
    /// How both were built, for the report
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

    /// What was asked for; all that the table needs unless something was named.
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
        Figure::ALL.iter().for_each(|figure| say(format_args!("{:<14} {}", figure.name(), figure.what())));
        return Ok(());
    }
    let (rows, figures) = options.selected()?;
    let begin = Instant::now();
    let mut report = Report::new(options)?;
    say("Starting private servers");
    let mut stage = Stage::start(options).await?;
    stage.prepare(&rows)?;
    for round in 1..=options.rounds() {
        for row in &rows {
            let measured = stage.round(*row).await?;
            say(format_args!("round {round}  {measured}"));
            report.add(*row, measured);
        }
    }
    if let Some(folder) = &options.flame {
        std::fs::create_dir_all(folder)?;
        for row in &rows {
            stage.flame(*row, &folder.join(format!("{}.svg", row.name()))).await?;
        }
    }
    figures::measure(&figures, &mut stage, &mut report).await?;
    say("Audit");
    report.audits = stage.finish().await?;
    report.seconds = begin.elapsed().as_secs();
    say(format_args!("\n{}", report.text()));
    report.write(options)
}
