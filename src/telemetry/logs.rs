//! The process's log, on standard error: one event per line, as text or JSON, including a last line
//! for a fatal error.

use std::ffi::OsString;
use std::io::{IsTerminal, Write};

use serde_json::json;
use tracing_subscriber::{EnvFilter, fmt};

use crate::config::LogFormat;

/// The format set by `RUSHGATE_LOG_FORMAT` or `--log-format`. Read before the command line is
/// parsed, so that errors in it are logged in that format, too. Commands without the flag follow
/// the variable.
pub fn format_asked_for() -> LogFormat {
    format_in(std::env::args_os(), std::env::var_os("RUSHGATE_LOG_FORMAT"))
}

fn format_in(args: impl Iterator<Item = OsString>, variable: Option<OsString>) -> LogFormat {
    let args: Vec<OsString> = args.collect();
    let flag = args.iter().enumerate().find_map(|(at, arg)| {
        let arg = arg.to_str()?;
        match arg.strip_prefix("--log-format")? {
            "" => args.get(at + 1)?.to_str(),
            value => value.strip_prefix('='),
        }
    });
    let asked = flag.map_or(variable, |flag| Some(flag.into()));
    if asked.is_some_and(|asked| asked == "json") { LogFormat::Json } else { LogFormat::Pretty }
}

/// Starts the log. RUST_LOG overrides the filter `default`. A panic is logged as a line, too.
pub fn start(format: LogFormat, default: &str) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(default));
    let ansi = std::io::stderr().is_terminal();
    let builder = fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(ansi);
    match format {
        LogFormat::Json => builder.json().init(),
        LogFormat::Pretty => builder.init(),
    }
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        let why = panic.payload_as_str().unwrap_or("without a message");
        tracing::error!(place, why, "a defect: a panic");
    }));
}

/// Logs the error that ends the process.
pub fn fatal(format: LogFormat, error: &str) {
    // A closed standard error is no reason to fail.
    let _ = writeln!(std::io::stderr(), "{}", fatal_line(format, error));
}

fn fatal_line(format: LogFormat, error: &str) -> String {
    match format {
        LogFormat::Pretty => format!("rushgate: {error}"),
        LogFormat::Json => json!({
            "timestamp": jiff::Timestamp::now().to_string(),
            "level": "ERROR",
            "fields": { "message": error, "fatal": true },
            "target": "rushgate",
        })
        .to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(args: &[&str], variable: Option<&str>) -> LogFormat {
        format_in(args.iter().map(OsString::from), variable.map(OsString::from))
    }

    #[test]
    fn the_form_is_known_before_anything_else() {
        assert_eq!(asked(&["rushgate", "serve"], None), LogFormat::Pretty);
        assert_eq!(asked(&["rushgate", "rebuild"], Some("json")), LogFormat::Json);
        assert_eq!(asked(&["rushgate", "serve", "--log-format", "json"], None), LogFormat::Json);
        assert_eq!(
            asked(&["rushgate", "serve", "--log-format=pretty"], Some("json")),
            LogFormat::Pretty
        );
    }

    #[test]
    fn a_fatal_line_is_one_line_of_the_log() {
        assert_eq!(fatal_line(LogFormat::Pretty, "no"), "rushgate: no");
        let line: serde_json::Value =
            serde_json::from_str(&fatal_line(LogFormat::Json, "a \"b\"\nc")).unwrap();
        assert_eq!(
            (&line["level"], &line["fields"]["message"]),
            (&json!("ERROR"), &json!("a \"b\"\nc"))
        );
    }
}
