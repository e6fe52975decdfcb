//! Prometheus' text format, for values that are sampled, not counted.
//!
//! By hand, because a gauge of the crate `metrics` keeps its last value and its labels: a template
//! that closed, or a server that no longer answers, would be shown for ever.

use std::fmt::Write;

use super::metrics::Metric;

/// Builds the text for `/metrics`, metric by metric.
#[derive(Default)]
pub struct Exposition {
    text: String,
}

impl Exposition {
    /// Adds a metric without labels.
    pub fn put(&mut self, metric: &Metric, value: f64) {
        self.put_all(metric, [([], value)]);
    }

    /// Adds all series of a metric, with label values in the order of the metric's labels. A metric
    /// without series is left out.
    pub fn put_all<'a, const N: usize>(
        &mut self,
        metric: &Metric,
        series: impl IntoIterator<Item = ([&'a str; N], f64)>,
    ) {
        debug_assert_eq!(N, metric.labels.len(), "{}", metric.name);
        let mut series = series.into_iter().peekable();
        if series.peek().is_none() {
            return;
        }
        let Metric { name, kind, help, .. } = metric;
        // Writing to a String cannot fail.
        let _ = writeln!(self.text, "# HELP {name} {help}\n# TYPE {name} {}", kind.as_str());
        for (values, value) in series {
            self.text.push_str(name);
            for (i, (label, text)) in metric.labels.iter().zip(values).enumerate() {
                let _ = write!(self.text, "{}{label}=\"", if i == 0 { '{' } else { ',' });
                escape(text, &mut self.text);
                self.text.push('"');
            }
            let _ = writeln!(self.text, "{} {value}", if N == 0 { "" } else { "}" });
        }
        self.text.push('\n');
    }

    pub fn into_text(self) -> String {
        self.text
    }
}

fn escape(value: &str, out: &mut String) {
    for c in value.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '"' => out.push_str("\\\""),
            '\n' => out.push_str("\\n"),
            other => out.push(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::metrics::{CELL_STATE, LOG_LIMIT, TEMPLATE_LIMIT};

    #[test]
    fn series_stand_under_their_metric_with_labels_escaped() {
        let mut out = Exposition::default();
        out.put(&LOG_LIMIT, 100_000.0);
        out.put_all::<1>(&TEMPLATE_LIMIT, []);
        out.put_all(&CELL_STATE, [(["0", "open"], 1.0), (["0", "a\"b\\c\nd"], 0.5)]);
        let text = out.into_text();
        let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with("# HELP")).collect();
        assert_eq!(
            lines,
            [
                "# TYPE rushgate_log_limit_entries gauge",
                "rushgate_log_limit_entries 100000",
                "",
                "# TYPE rushgate_cell_state gauge",
                r#"rushgate_cell_state{cell="0",state="open"} 1"#,
                r#"rushgate_cell_state{cell="0",state="a\"b\\c\nd"} 0.5"#,
                "",
            ]
        );
    }
}
