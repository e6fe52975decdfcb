//! The command line.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use crate::config::{ExpectedClaims, LogFormat, Serve, Servers, secret_files};
use crate::demo::{self, DemoOptions};
use crate::domain::UserId;
use crate::gate::{BatchLimits, Gate, clock};
use crate::log::reader::LogReader;
use crate::reconciler::quarantine::Choice;
use crate::reconciler::{Reconciler, StepOutcome};
use crate::telemetry::logs;
use crate::truth::migrate;
use crate::{audit, http, ready, reconciler, seed, serve, truth};
use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand};
use jiff::{Span, SpanRelativeTo};
use sqlx::{Connection, PgConnection};
use tokio::signal::unix::{SignalKind, signal};

/// First-come coupons and stock-limited orders, decided by Redis, followed by PostgreSQL.
#[derive(Parser)]
#[command(version = env!("RUSHGATE_VERSION"), about)]
struct CommandLine {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Migrate the database, then run this instance's roles until SIGTERM
    Serve(Box<Serve>),
    /// Bring the database to this version's schema, and nothing else
    Migrate(Servers),
    /// Fill a demo shop: 6 products, 3 coupon templates, 1,000 users; repeatable
    Seed(Servers),
    /// Print a token signed by RUSHGATE_JWT_SECRET
    Token(Token),
    /// Check that gate, truth and outbox agree: exit 0 if they do, 1 with each difference if not, 2
    /// if they could not be compared
    Audit(Audit),
    /// Close the gate, drain its log and rebuild it from PostgreSQL
    Rebuild(Rebuild),
    /// Show log entries, or skip facts that PostgreSQL refuses
    #[command(subcommand)]
    Log(Log),
    /// Compare the gate's clock with the server's, or set it back after a jump
    #[command(subcommand)]
    Clock(ClockCommand),
    /// Ask a running instance whether it can decide: exit 0 if it can, else 1 with the reason
    Ready {
        /// The instance's operations address
        #[arg(long, env = "RUSHGATE_OPS_LISTEN", default_value = "0.0.0.0:9090")]
        ops_listen: std::net::SocketAddr,
    },
    /// Run a whole shop on private servers, for trying it out
    Demo(Box<Demo>),
}

#[derive(Args)]
struct Token {
    /// User whom the token identifies
    #[arg(long)]
    sub: String,
    /// shop, service or admin; several separated by spaces
    #[arg(long)]
    scope: String,
    /// How long it is valid, such as 30s, 15m, 1h, 7d
    #[arg(long, default_value = "1h", value_parser = parse_duration)]
    ttl: Duration,
    #[arg(long, env = "RUSHGATE_JWT_SECRET", hide_env_values = true)]
    jwt_secret: String,
    #[command(flatten)]
    claims: ExpectedClaims,
}

#[derive(Args)]
struct Audit {
    #[command(flatten)]
    servers: Servers,
    /// How long to wait until PostgreSQL has what the gate has decided
    #[arg(long, default_value = "30s", value_parser = parse_duration)]
    wait: Duration,
    /// How long the whole audit may take
    #[arg(long, default_value = "1h", value_parser = parse_duration)]
    timeout: Duration,
    /// Print the report as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
struct Rebuild {
    #[command(flatten)]
    servers: Servers,
    /// The cell to rebuild
    #[arg(long, default_value_t = 0)]
    cell: u32,
    /// File for the log entries that cannot be applied, written if there are any [default:
    /// ./rushgate-lost-<cell>-<time>.jsonl]
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
}

#[derive(Subcommand)]
enum ClockCommand {
    /// Print each cell's clocks: the gate's, PostgreSQL's copy, the server's, this machine's
    Show(Servers),
    /// Set the gate's clock back to the server's
    Reset(Servers),
}

#[derive(Subcommand)]
enum Log {
    /// Print entries, those after the cursor unless --seq says otherwise
    Show {
        #[command(flatten)]
        servers: Servers,
        #[arg(long, default_value_t = 0)]
        cell: u32,
        /// First entry to print
        #[arg(long)]
        seq: Option<u64>,
        /// Lines to print at most, for entries and their facts
        #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u16).range(1..=10_000))]
        limit: u16,
        /// Print one JSON object a line for each fact, or for an entry that cannot be read
        #[arg(long)]
        json: bool,
    },
    /// Leave out one fact of the entry that halted a cell: the last resort, if it can never be
    /// applied
    Skip {
        #[command(flatten)]
        servers: Servers,
        #[arg(long, default_value_t = 0)]
        cell: u32,
        /// The entry at which the cell is halted
        #[arg(long)]
        seq: u64,
        /// The fact's number in that entry, as in `log show`; all: the whole entry, if it cannot be
        /// read
        #[arg(long, value_name = "K", value_parser = parse_choice)]
        fact: Choice,
        /// Reason, for later readers of the quarantine
        #[arg(long, default_value = "skipped by an operator")]
        reason: String,
        /// File that lists, per user, the answers that are not true [default:
        /// ./rushgate-skip-<cell>-<epoch>-<seq>.jsonl]
        #[arg(long, value_name = "FILE")]
        report: Option<PathBuf>,
    },
}

#[derive(Args)]
struct Demo {
    /// Where the servers keep their data
    #[arg(long, value_name = "DIR", default_value = "./data")]
    data: PathBuf,
    #[command(flatten)]
    settings: Serve,
}

/// Settings that the demo sets itself. They may be in the environment, but do not apply to the
/// demo.
const NOT_FOR_THE_DEMO: [&str; 9] = [
    "redis_url",
    "database_url",
    "amqp_url",
    "cells",
    "jwt_secret",
    "jwt_jwks_file",
    "tls_cert_file",
    "tls_key_file",
    "roles",
];

/// Visitors have an end user's token and want to charge a wallet, and see the storefront. No load
/// balancer is in front of the demo, so stopping need not wait for one.
fn for_visitors(demo: clap::Command) -> clap::Command {
    let demo = demo.mut_arg("charge_scope", |arg| arg.default_value("shop"));
    let demo = demo.mut_arg("demo_shop", |arg| arg.default_value("on"));
    let demo = demo.mut_arg("drain_secs", |arg| arg.default_value("0"));
    NOT_FOR_THE_DEMO.iter().fold(demo, |demo, id| demo.mut_arg(id, |arg| arg.hide(true)))
}

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Runs the command that the process was started with.
pub fn main() -> ExitCode {
    let format = logs::format_asked_for();
    let command = match command_line(format) {
        Ok(command_line) => command_line.command,
        Err(e) => return failed(format, &e),
    };
    // Two dependencies bring TLS; both must use the same provider.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(e) => return failed(format, &e.into()),
    };
    let outcome = runtime.block_on(run(command, format));
    // Dropped, it would wait for blocking calls, which may hang with the network: the lookup of a
    // server's name, the export of spans.
    runtime.shutdown_background();
    match outcome {
        Ok(code) => code,
        Err(e) => failed(format, &e),
    }
}

/// Parses flags, environment variables and secret files. Errors are shown to people with hints on
/// further lines, and as one line if the log is JSON.
fn command_line(format: LogFormat) -> Result<CommandLine, Failure> {
    let command = CommandLine::command().mut_subcommand("demo", for_visitors);
    let command = secret_files::read(command)?;
    let read =
        command.try_get_matches().and_then(|matches| CommandLine::from_arg_matches(&matches));
    match read {
        Err(e) if e.use_stderr() && format == LogFormat::Json => {
            let text = e.to_string();
            let lines: Vec<&str> =
                text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
            Err(lines.join("; ").into())
        }
        Err(e) => e.exit(),
        Ok(command_line) => Ok(command_line),
    }
}

fn failed(format: LogFormat, error: &Failure) -> ExitCode {
    logs::fatal(format, &error.to_string());
    // `audit` exits with 1 when it finds differences.
    match std::env::args().nth(1).as_deref() {
        Some("audit") => ExitCode::from(audit::NOT_COMPARED),
        _ => ExitCode::FAILURE,
    }
}

async fn run(command: Command, format: LogFormat) -> Result<ExitCode, Failure> {
    match command {
        Command::Serve(settings) => Box::pin(run_serve(*settings)).await?,
        Command::Migrate(servers) => migrate::migrate(&servers).await?,
        Command::Seed(servers) => {
            let limits = BatchLimits::default();
            let gate = Gate::with_limits(&servers, limits).await?;
            let done = seed::run(&gate).await?;
            gate.close().await;
            say(&format!("The shop has {done}."));
        }
        Command::Token(token) => say(&mint(&token)?),
        Command::Audit(options) => return run_audit(&options).await,
        Command::Rebuild(options) => run_rebuild(&options, format).await?,
        Command::Ready { ops_listen } => {
            let (ready, said) = ready::ask(ops_listen).await?;
            say(&said);
            return Ok(if ready { ExitCode::SUCCESS } else { ExitCode::FAILURE });
        }
        Command::Log(command) => run_log(command, format).await?,
        Command::Clock(command) => run_clock(command).await?,
        Command::Demo(demo) => {
            let Demo { data, settings } = *demo;
            logs::start(format, "rushgate=warn,error,fred=off,lapin=off");
            Box::pin(demo::run(DemoOptions { data, settings })).await?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Prints to standard output; a closed pipe is no reason to fail.
fn say(text: &str) {
    let _ = writeln!(std::io::stdout(), "{text}");
}

async fn run_serve(settings: Serve) -> Result<(), Failure> {
    logs::start(settings.log_format, "rushgate=info,warn,fred=error,lapin=off");
    let stopping = serve::Stopping::default();
    let (mut interrupt, mut terminate) =
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let stop = stopping.clone();
    tokio::spawn(async move {
        // Ctrl-C, or a second signal, means: stop without draining.
        tokio::select! {
            _ = interrupt.recv() => stop.at_once.cancel(),
            _ = terminate.recv() => stop.asked.cancel(),
        }
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        stop.at_once.cancel();
    });
    let (ready, _) = tokio::sync::oneshot::channel();
    Ok(serve::run(settings, stopping, ready).await?)
}

fn mint(token: &Token) -> Result<String, Failure> {
    let user = UserId::parse(token.sub.as_str()).map_err(|e| format!("--sub {e}"))?;
    for scope in token.scope.split_whitespace() {
        if !["shop", "service", "admin"].contains(&scope) {
            return Err(format!("--scope: `{scope}` is unknown; use shop, service or admin").into());
        }
    }
    if token.jwt_secret.is_empty() {
        return Err("RUSHGATE_JWT_SECRET is empty: make one with `openssl rand -hex 32`".into());
    }
    let (secret, claims) = (token.jwt_secret.as_bytes(), &token.claims);
    Ok(http::mint_token_for(secret, &user, &token.scope, token.ttl, claims)?)
}

async fn run_audit(options: &Audit) -> Result<ExitCode, Failure> {
    migrate::reach(&options.servers.database_url).await?;
    let pool = truth::pool_for_audit(&options.servers.database_url, options.timeout)?;
    let audit = audit::audit(&options.servers, &pool, audit::Options { wait: options.wait });
    let report = match tokio::time::timeout(options.timeout, audit).await {
        Ok(report) => report?,
        Err(_) => {
            return Err(
                format!("the audit took longer than its --timeout, {:?}", options.timeout).into()
            );
        }
    };
    say(&if options.json { serde_json::to_string_pretty(&report)? } else { report.to_string() });
    Ok(ExitCode::from(report.exit_code()))
}

async fn run_rebuild(options: &Rebuild, format: LogFormat) -> Result<(), Failure> {
    logs::start(format, "rushgate=info,fred=error");
    migrate::migrate(&options.servers).await?;
    let cell = options.cell;
    let now = jiff::Timestamp::now().as_second();
    let report = options
        .report
        .clone()
        .unwrap_or_else(|| format!("rushgate-lost-{cell}-{now}.jsonl").into());
    let mut reconciler =
        Reconciler::connect(&options.servers, cell).await?.reporting_to(report.clone());
    let step = reconciler.rebuild_now().await;
    if let Some(told) = reconciler.told_lost() {
        say(&format!(
            "{} entries of the log could not be applied: {} decisions were answered and are not in PostgreSQL. {} has all of it:",
            told.entries,
            told.facts,
            report.display()
        ));
        say(told.text.trim_end());
    }
    match step? {
        StepOutcome::Rebuilt(epoch) => say(&format!("Cell {cell} is open, in epoch {epoch}.")),
        StepOutcome::Superseded => say("Another rebuild was faster; the cell opens with that one."),
        StepOutcome::Halted(reason) => return Err(reason.into()),
        other => return Err(format!("the rebuild stopped at {other:?}; run it again").into()),
    }
    Ok(())
}

async fn run_clock(command: ClockCommand) -> Result<(), Failure> {
    let (ClockCommand::Show(servers) | ClockCommand::Reset(servers)) = &command;
    let client = crate::redis::connect(&servers.redis_url).await?;
    let mut conn = PgConnection::connect(&servers.database_url).await?;
    for cell in 0..servers.cells {
        let clocks = match command {
            ClockCommand::Show(_) => clock::show(&client, &mut conn, cell).await?,
            ClockCommand::Reset(_) => clock::reset(&client, &mut conn, cell).await?,
        };
        say(&clocks.to_string());
    }
    Ok(())
}

async fn run_log(command: Log, format: LogFormat) -> Result<(), Failure> {
    match command {
        Log::Show { servers, cell, seq, limit, json } => {
            let mut conn = PgConnection::connect(&servers.database_url).await?;
            let reader = LogReader::connect(&servers.redis_url, cell).await?;
            let which = reconciler::log_admin::Which { from: seq, limit: limit.into(), json };
            let listing = reconciler::log_admin::show(&mut conn, &reader, which).await?;
            if json {
                listing.lines.iter().for_each(|line| say(line));
            } else {
                say(listing.to_string().trim_end());
            }
        }
        Log::Skip { servers, cell, seq, fact, reason, report } => {
            logs::start(format, "rushgate=warn,fred=error");
            migrate::migrate(&servers).await?;
            let mut reconciler = Reconciler::connect(&servers, cell).await?;
            let epoch = reconciler.skip(seq, fact, &reason).await?;
            let report = report
                .unwrap_or_else(|| format!("rushgate-skip-{cell}-{epoch}-{seq}.jsonl").into());
            let told = reconciler.report_skipped(epoch, Some(report.clone())).await?;
            say(told.text.trim_end());
            say(&format!(
                "Cell {cell} is open again. {} answers of epoch {epoch} are not true; {} has all of them.",
                told.facts,
                report.display()
            ));
        }
    }
    Ok(())
}

/// A fact's number, or `all`.
fn parse_choice(text: &str) -> Result<Choice, String> {
    match text.parse() {
        _ if text == "all" => Ok(Choice::All),
        Ok(fact) if fact > 0 => Ok(Choice::One(fact)),
        _ => Err(format!(
            "`{text}` is no fact: they count from 1, as `rushgate log show` prints them"
        )),
    }
}

/// `30s`, `15m`, `1h`, `7d`; a bare number is seconds.
fn parse_duration(text: &str) -> Result<Duration, String> {
    let rule = || format!("`{text}` is no length of time; use one like 30s, 15m, 1h, 7d");
    if let Ok(secs) = text.parse() {
        return Ok(Duration::from_secs(secs));
    }
    let span: Span = text.parse().map_err(|_| rule())?;
    let length = span.to_duration(SpanRelativeTo::days_are_24_hours()).map_err(|_| rule())?;
    Duration::try_from(length).map_err(|_| rule())
}
