//! `./dev rush`: simulates many concurrent users of a shop, and checks the shop's state afterwards.
//!
//! Each user is a goose task that waits for every answer before it continues (closed loop). The
//! test shows whether the shop stays correct and usable under load, not how much load it can take
//! (`./dev bench` measures that). [`scenarios`] defines what users do, and [`crowd`] records their
//! answers. At the end, [`judge`] compares these with the shop.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

mod answers;
mod api;
mod card_orders;
mod card_sale;
mod checkout;
mod crowd;
mod judge;
mod left;
mod report;
mod scenario;
mod scenarios;
mod shopper;
mod verdict;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use clap::{Parser, ValueEnum};
use goose::client::GooseClientBuilder;
use goose::config::GooseConfiguration;
use goose::{GooseAttack, GooseError};
use rushgate_loadtest::shop::{Instance, SECRET, Servers, Shop};
use rushgate_loadtest::{Outcome, say};
use tokio_util::sync::CancellationToken;

use crate::api::Api;
use crate::card_sale::Observed;
use crate::crowd::Crowd;
use crate::report::Report;
use crate::scenario::Scenario;

/// A request without an answer after this time has failed.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);
/// Default thresholds over all requests. If one is missed, the run fails.
const THRESHOLDS: [&str; 3] = ["error-rate<0.1%", "p95<1s", "p99<2s"];

/// Simulates a crowd of users, and checks that the shop kept its promises
#[derive(Parser)]
// If an option is repeated, the last one counts.
#[command(args_override_self = true)]
struct Options {
    #[arg(value_enum, default_value_t = Scenario::Mixed)]
    scenario: Scenario,
    /// Number of concurrent users
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u64).range(2..=100_000))]
    users: u64,
    /// Duration of the run after all users have arrived, for example 30s or 5m
    #[arg(long, default_value = "30s")]
    run_time: String,
    /// URL of a running Rushgate, for example http://127.0.0.1:8080; without it, private servers
    /// are started
    #[arg(long, value_name = "URL")]
    host: Option<String>,
    /// Secret that signs the users' tokens, for use with --host
    #[arg(long, env = "RUSHGATE_JWT_SECRET", hide_env_values = true)]
    jwt_secret: Option<String>,
    /// File for the HTML report
    #[arg(long, default_value = "rush.html")]
    report: PathBuf,
    /// Threshold that replaces the default ones, for example `p99<500ms` or `rps>=1000`; may be
    /// given several times
    #[arg(long)]
    threshold: Vec<String>,
    /// Binary that serves on the private servers and runs the audit
    #[arg(long)]
    rushgate: PathBuf,
}

#[tokio::main]
async fn main() -> ExitCode {
    match Box::pin(run(Options::parse())).await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(e) => {
            say(format_args!("\nrush: {e}"));
            ExitCode::FAILURE
        }
    }
}

/// Returns whether everything went well.
async fn run(options: Options) -> Outcome<bool> {
    match &options.host {
        Some(host) => {
            let secret = options
                .jwt_secret
                .as_deref()
                .ok_or("set RUSHGATE_JWT_SECRET to the secret of that host")?;
            Box::pin(attack(&options, Api::new(host, secret)?, None)).await
        }
        None => {
            say("Starting private servers");
            let servers = Servers::start().await?;
            let shop = servers.shop("rush").await?;
            let instance = shop.serve(&options.rushgate, &[])?;
            let api = Api::new(&format!("http://{}", instance.api), SECRET)?;
            let went = Box::pin(attack(&options, api, Some(&shop))).await;
            stop(instance, &shop, &servers).await?;
            went
        }
    }
}

async fn stop(instance: Instance, shop: &Shop, servers: &Servers) -> Outcome<()> {
    instance.stop()?;
    shop.close().await;
    servers.stop().await;
    Ok(())
}

async fn attack(options: &Options, api: Api, own: Option<&Shop>) -> Outcome<bool> {
    // Users arrive every few milliseconds. The rush opens when all of them are there.
    let arrival = Duration::from_millis(options.users.clamp(1_000, 10_000));
    let crowd = Arc::new(Crowd::gather(api, options.scenario, options.users, arrival).await?);
    let mut goose = GooseAttack::initialize_with_config(configuration(options, &crowd, arrival))?
        .set_client_builder_without_cookies(
        GooseClientBuilder::new().without_cookies().timeout(ANSWER_LIMIT),
    )?;
    for scenario in scenarios::of(options.scenario, &crowd)? {
        goose = goose.register_scenario(scenario);
    }
    let (began, began_at) = (Instant::now(), SystemTime::now());
    drop(crowd.take_answers(began));
    let stop = CancellationToken::new();
    let sampling = tokio::spawn(left::sample(Arc::clone(&crowd), began, stop.clone()));
    let missed: Vec<String> = match Box::pin(goose.execute()).await {
        Ok(_) => vec![],
        Err(GooseError::ThresholdsFailed { failed, .. }) => {
            failed.iter().map(|rule| format!("{}: {}", rule.rule, rule.observed)).collect()
        }
        Err(e) => return Err(e.into()),
    };
    let crowd_left_s = began.elapsed().as_secs_f64();
    if options.scenario.checks_out() {
        say("The crowd has left. Waiting until the last hold has ended");
        checkout::wait_for_holds(&crowd).await;
    }
    stop.cancel();
    let left = sampling.await?;
    let observed = Observed { left: &left, began: began_at, crowd_left_s };
    let verdict = judge::of(&crowd, own, &options.rushgate, &observed).await?;
    say(format_args!("\n{verdict}"));
    match missed.is_empty() {
        true => say("Thresholds: all met."),
        false => say(format_args!("Thresholds missed: {}.", missed.join("; "))),
    }
    let scenario =
        options.scenario.to_possible_value().map_or(String::new(), |value| value.get_name().into());
    let run = format!("{scenario}, {} users, {}", options.users, options.run_time);
    let answers = crowd.take_answers(began);
    let report = Report { run, verdict: &verdict, missed: &missed, left: &left, answers: &answers };
    std::fs::write(&options.report, report.html())
        .map_err(|e| format!("the report {} cannot be written: {e}", options.report.display()))?;
    say(format_args!("Report: {}", options.report.display()));
    Ok(missed.is_empty() && verdict.is_good())
}

fn configuration(options: &Options, crowd: &Crowd, arrival: Duration) -> GooseConfiguration {
    let thresholds = match options.threshold.is_empty() {
        true => THRESHOLDS.map(str::to_owned).to_vec(),
        false => options.threshold.clone(),
    };
    let mut configuration = GooseConfiguration::default();
    configuration.host = Some(crowd.api.host.clone());
    configuration.users = usize::try_from(options.users).ok();
    configuration.increase_rate = Some((options.users as f64 / arrival.as_secs_f64()).to_string());
    configuration.run_time = Some(options.run_time.clone());
    configuration.threshold = thresholds;
    // The verdict is wanted even if the shop was slow.
    configuration.no_threshold_abort = true;
    configuration.no_telnet = true;
    configuration.quiet = 1;
    configuration
}
