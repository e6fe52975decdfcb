//! The command line.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use rushgate::demo::{self, DemoOptions};

#[derive(Parser)]
#[command(version, about)]
struct CommandLine {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// A whole shop on private servers, for trying it out
    Demo(DemoArgs),
}

#[derive(Args)]
struct DemoArgs {
    /// Where the servers keep their data
    #[arg(long, value_name = "DIR", default_value = "./data")]
    data: PathBuf,
    #[arg(long, env = "RUSHGATE_LISTEN", default_value = "0.0.0.0:8080")]
    listen: SocketAddr,
    #[arg(long, env = "RUSHGATE_OPS_LISTEN", default_value = "0.0.0.0:9090")]
    ops_listen: SocketAddr,
}

#[tokio::main]
async fn main() -> ExitCode {
    let Command::Demo(DemoArgs { data, listen, ops_listen }) = CommandLine::parse().command;
    match demo::run(DemoOptions { data, listen, ops_listen }).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("rushgate: {error}");
            ExitCode::FAILURE
        }
    }
}
