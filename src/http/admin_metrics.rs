//! The metrics of this instance for staff, as JSON. The console shows them; Prometheus scrapes the
//! operations port, which is not reachable from where staff are.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::State;
use metrics_exporter_prometheus::PrometheusHandle;
use serde::Serialize;
use utoipa::ToSchema;

use super::Api;
use super::answer::JsonAnswer;
use super::auth::Staff;
use super::extract::NoQuery;
use super::metrics::InFlight;
use super::problem::Problem;
use crate::telemetry::sampled::Sampled;

/// Renders the metrics: [`render_metrics`] with its arguments. Passed in by `rushgate serve`.
pub type RenderMetrics = Arc<dyn Fn() -> String + Send + Sync>;

/// The metrics in Prometheus' text format: those that are counted, then those that are sampled.
pub fn render_metrics(counted: &PrometheusHandle, sampled: &Sampled) -> String {
    InFlight::publish();
    counted.render() + &sampled.text()
}

/// The metrics of one instance, at the time of the answer.
#[derive(Debug, Serialize, ToSchema)]
#[schema(title = "Metrics", as = Metrics)]
pub struct MetricsView {
    data: Vec<SampleView>,
}

/// One value; docs/operations.md explains the names. A histogram is its buckets (with the label
/// `le`), `_sum` and `_count`.
#[derive(Debug, PartialEq, Serialize, ToSchema)]
#[schema(title = "MetricSample", as = MetricSample)]
struct SampleView {
    #[schema(example = "rushgate_decisions_lost_total")]
    name: String,
    labels: BTreeMap<String, String>,
    value: f64,
}

/// The metrics of this instance
///
/// What `/metrics` on the operations port has. Counters count from the instance's start.
#[utoipa::path(get, path = "/v1/admin/metrics", tag = "operations", security(("token" = ["admin"])),
    responses((status = 200, body = MetricsView)))]
pub async fn get_metrics(
    State(api): State<Arc<Api>>,
    _: Staff,
    _: NoQuery,
) -> Result<JsonAnswer<MetricsView>, Problem> {
    let _permit = api.concurrency.staff.permit().await?;
    let data = (api.render_metrics)().lines().filter_map(sample).collect();
    Ok(JsonAnswer(MetricsView { data }))
}

/// A line such as `name{label="text"} 1`. `None`: a comment, or a value that JSON cannot express.
fn sample(line: &str) -> Option<SampleView> {
    if line.starts_with('#') {
        return None;
    }
    let (series, value) = line.rsplit_once(' ')?;
    let value = value.parse().ok().filter(|value: &f64| value.is_finite())?;
    let (name, labels) = match series.split_once('{') {
        Some((name, labels)) => (name, parse_labels(labels.strip_suffix('}')?)?),
        None => (series, BTreeMap::new()),
    };
    Some(SampleView { name: name.to_owned(), labels, value })
}

fn parse_labels(mut text: &str) -> Option<BTreeMap<String, String>> {
    let mut labels = BTreeMap::new();
    while !text.is_empty() {
        let (name, rest) = text.split_once("=\"")?;
        let (value, rest) = quoted(rest)?;
        labels.insert(name.to_owned(), value);
        text = rest.strip_prefix(',').unwrap_or(rest);
    }
    Some(labels)
}

/// The text up to the closing quote, without its escapes, and what follows the quote.
fn quoted(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Some((value, &text[at + 1..])),
            '\\' => match chars.next()?.1 {
                'n' => value.push('\n'),
                escaped => value.push(escaped),
            },
            c => value.push(c),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_a_name_labels_and_a_value() {
        let read = |line: &str| {
            let SampleView { name, labels, value } = sample(line)?;
            let labels: Vec<String> = labels.iter().map(|(k, v)| format!("{k}={v}")).collect();
            Some(format!("{name}[{}]{value}", labels.join(";")))
        };
        assert_eq!(read("up 1").as_deref(), Some("up[]1"));
        assert_eq!(read("a{x=\"1\",le=\"0.5\"} 2.5").as_deref(), Some("a[le=0.5;x=1]2.5"));
        assert_eq!(read(r#"a{x="q\"},b=\\ \n"} 3"#).as_deref(), Some("a[x=q\"},b=\\ \n]3"));
        for line in ["# TYPE a counter", "", "a{x=\"1} 2", "a NaN", "a +Inf", "a b c"] {
            assert_eq!(read(line), None, "{line}");
        }
    }
}
