//! Checks of dashboards and alert rules. A real Prometheus watches a real instance under load, and
//! each query must return figures. Each alert fires for its cause and has a section in the runbook.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use reqwest::Url;
use rushgate::telemetry::metrics::ALL;
use serde_json::Value;

use crate::cluster::{Cluster, Instance, eventually};
use crate::metrics::shop_a_little;
use crate::servers::{TempFolder, tempfile};

/// From the first scrape until every query must have returned figures.
const LIMIT: Duration = Duration::from_secs(90);
/// The time range that Grafana would show.
const SPAN_SECS: u64 = 20;

#[tokio::test]
async fn every_panel_and_every_rule_has_figures_from_a_real_instance_under_load() {
    let cluster = Cluster::servers().await;
    let instance = cluster.start().await;
    let prometheus = Prometheus::watching(&instance).await;
    let mut waiting = queries();
    assert!(waiting.len() > 120, "{}", waiting.len());
    let mut answered = BTreeMap::new();

    let deadline = Instant::now() + LIMIT;
    let mut round = 0;
    while !waiting.is_empty() {
        assert!(Instant::now() < deadline, "without figures: {waiting:#?}");
        shop_a_little(&instance, round).await;
        round += 1;
        let mut empty = Vec::new();
        for (place, query) in waiting {
            match prometheus
                .figures(&query)
                .await
                .unwrap_or_else(|e| panic!("{place}: {query}: {e}"))
            {
                (0, _) => empty.push((place, query)),
                (series, last) => {
                    answered.insert(
                        place,
                        format!("{series:>3} series, the first ends at {last}: {query}"),
                    );
                }
            }
        }
        waiting = empty;
    }
    // Kept, so that the values in the panels can be inspected after the test.
    let report: String =
        answered.iter().map(|(place, said)| format!("{place}: {said}\n")).collect();
    fs::write(Path::new(env!("CARGO_TARGET_TMPDIR")).join("dashboards.txt"), report).unwrap();

    let unhealthy = prometheus.unhealthy_rules().await;
    assert!(unhealthy.is_empty(), "{unhealthy:#?}");
    let ringing = prometheus.ringing().await;
    assert!(ringing.is_empty(), "in a healthy shop: {ringing:#?}");
}

#[test]
fn rules_are_valid_and_each_alert_rings_for_its_cause_only() {
    for args in [
        ["check", "config", "prometheus.yml"],
        ["check", "rules", "alerts.yml"],
        ["test", "rules", "alerts_test.yml"],
    ] {
        let output = Command::new("promtool").args(args).current_dir(folder("prometheus")).output();
        let output = output.expect("promtool, of the Debian package prometheus");
        let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        assert!(
            output.status.success(),
            "{args:?}: {}{}",
            said(&output.stdout),
            said(&output.stderr)
        );
    }
}

#[test]
fn every_alert_has_a_case_and_a_paragraph_in_the_runbook() {
    let read =
        |file: &str| fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(file)).unwrap();
    let after = |text: &str, mark: &str| -> BTreeSet<String> {
        text.lines().filter_map(|line| Some(line.trim().strip_prefix(mark)?.to_owned())).collect()
    };
    let rules = read("grafana/prometheus/alerts.yml");
    let alerts = after(&rules, "- alert: ");
    assert!(alerts.len() >= 20, "{alerts:?}");
    let mut cases = after(&read("grafana/prometheus/alerts_test.yml"), "- name: ");
    assert!(cases.remove("just below every threshold"));
    // Test cases for which alerts fire, and which do not, while a server is away.
    let outages = cases.extract_if(.., |case| case.starts_with("'outage: ")).count();
    assert_eq!(outages, 3);
    assert_eq!(cases, alerts);
    let runbook = read("docs/runbook.md");
    let paragraphs: BTreeSet<String> = after(&runbook, "## ")
        .into_iter()
        .filter(|heading| heading.starts_with("Rushgate"))
        .collect();
    assert_eq!(paragraphs, alerts);
    for paragraph in runbook.split("\n## Rushgate").skip(1) {
        for part in ["**Symptom.**", "**Meaning.**", "**Look at.**", "**Do.**"] {
            assert!(paragraph.contains(part), "{part} is missing: {paragraph}");
        }
    }
    let page = "https://github.com/rushgate/rushgate/blob/main/docs/runbook.md#";
    let links = after(&rules, "runbook_url: ");
    assert_eq!(
        links,
        alerts.iter().map(|alert| format!("{page}{}", alert.to_lowercase())).collect()
    );
}

#[test]
fn every_panel_says_what_it_shows_and_in_which_unit() {
    let source = fs::read_to_string(folder("provisioning/datasources/prometheus.yml")).unwrap();
    let mut ids = BTreeSet::new();
    for (file, dashboard) in dashboards() {
        assert!(ids.insert(dashboard["uid"].to_string()), "{file}");
        for panel in dashboard["panels"].as_array().unwrap() {
            let text =
                |pointer: &str| panel.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
            let place = format!("{file}: {}", text("/title"));
            let description = text("/description");
            assert!(
                description.ends_with('.') && !description.contains('\n'),
                "{place}: {description}"
            );
            assert!(!text("/fieldConfig/defaults/unit").is_empty(), "{place} has no unit");
            assert!(source.contains(&format!("uid: {}\n", text("/datasource/uid"))), "{place}");
            assert!(!panel["targets"].as_array().unwrap().is_empty(), "{place}");
        }
    }
    assert_eq!(ids.len(), 4);
}

#[test]
fn queries_name_only_metrics_that_exist() {
    let known: BTreeSet<&str> = ALL.iter().map(|metric| metric.name).collect();
    for (place, query) in queries() {
        for word in query.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == ':')) {
            let metric = (word.starts_with("rushgate_") || word.starts_with("process_"))
                && !known.contains(word);
            let family =
                ["_bucket", "_sum", "_count"].iter().find_map(|suffix| word.strip_suffix(suffix));
            assert!(
                !metric || family.is_some_and(|family| known.contains(family)),
                "{place}: {word}"
            );
        }
    }
}

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("grafana").join(name)
}

fn dashboards() -> Vec<(String, Value)> {
    let files = fs::read_dir(folder("dashboards")).unwrap().map(|file| file.unwrap().path());
    files
        .map(|path| {
            let text = fs::read_to_string(&path).unwrap();
            (
                path.file_stem().unwrap().to_string_lossy().into_owned(),
                serde_json::from_str(&text).unwrap(),
            )
        })
        .collect()
}

/// Every query in panels, variables, annotations and rules, with its place, ready to be sent.
fn queries() -> Vec<(String, String)> {
    let mut all = Vec::new();
    for (file, dashboard) in dashboards() {
        let list = |pointer: &str| dashboard.pointer(pointer).unwrap().as_array().unwrap().clone();
        for variable in list("/templating/list") {
            all.push((
                format!("{file}: ${}", variable["name"]),
                label_values(variable["definition"].as_str().unwrap()),
            ));
        }
        for annotation in list("/annotations/list") {
            all.push((
                format!("{file}: {}", annotation["name"]),
                annotation["expr"].as_str().unwrap().to_owned(),
            ));
        }
        for panel in list("/panels") {
            for target in panel["targets"].as_array().unwrap() {
                let place = format!("{file}: {} {}", panel["title"], target["refId"]);
                all.push((place, target["expr"].as_str().unwrap().to_owned()));
            }
        }
    }
    for file in ["recording.yml", "alerts.yml"] {
        let text = fs::read_to_string(folder("prometheus").join(file)).unwrap();
        let mut name = "";
        for line in text.lines().map(|line| line.trim().trim_start_matches("- ")) {
            match line.split_once(": ") {
                Some(("record" | "alert", value)) => name = value,
                Some(("expr", expr)) => all.push((format!("{file}: {name}"), expr.to_owned())),
                _ => {}
            }
        }
    }
    all.into_iter().map(|(place, query)| (place, answerable(&query))).collect()
}

/// Grafana's `label_values(metric, label)` as a Prometheus query.
fn label_values(definition: &str) -> String {
    let inside =
        definition.strip_prefix("label_values(").and_then(|rest| rest.strip_suffix(')')).unwrap();
    let (metric, label) = inside.rsplit_once(", ").unwrap();
    format!("count by ({label}) ({metric})")
}

/// Prepares a query for a healthy shop: fills Grafana's variables in, turns comparisons into `bool`
/// (an alert would otherwise return nothing), and drops `or vector(0)`, so that a missing metric
/// shows. Failure rates keep it, because there are no failures.
fn answerable(query: &str) -> String {
    let mut query = query.replace("$__rate_interval", "5s");
    if !query.contains("5..") {
        query = query.replace(" or vector(0)", "");
    }
    for variable in ["template", "cell", "instance"] {
        query = query.replace(&format!("${variable}"), ".*");
    }
    assert!(!query.contains('$'), "an unknown variable: {query}");
    for comparison in ["==", "!=", ">", "<", ">=", "<="] {
        query = query.replace(&format!(" {comparison} "), &format!(" {comparison} bool "));
    }
    query
}

/// A private Prometheus; killed on drop.
struct Prometheus {
    process: Child,
    url: String,
    http: reqwest::Client,
    _folder: TempFolder,
}

impl Prometheus {
    async fn watching(instance: &Instance) -> Self {
        let home = tempfile();
        let rules = folder("prometheus");
        let config = format!(
            "global: {{ scrape_interval: 1s, evaluation_interval: 1s }}\n\
             rule_files: [{rules}/recording.yml, {rules}/alerts.yml]\n\
             scrape_configs: [{{ job_name: rushgate, static_configs: [{{ targets: ['{}'] }}] }}]\n",
            instance.operations(),
            rules = rules.display(),
        );
        fs::write(home.path.join("prometheus.yml"), config).unwrap();
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let log = fs::File::create(home.path.join("log")).unwrap();
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--", "prometheus", "--config.file=prometheus.yml"]);
        command
            .args(["--storage.tsdb.path=data", &format!("--web.listen-address=127.0.0.1:{port}")]);
        command.current_dir(&home.path).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let process = command.spawn().unwrap();
        let http =
            reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(10)).build().unwrap();
        let this = Self { process, url: format!("http://127.0.0.1:{port}"), http, _folder: home };
        eventually("Prometheus is ready", || async {
            let ready = this.http.get(format!("{}/-/ready", this.url)).send().await;
            ready.is_ok_and(|answer| answer.status().is_success()).then_some(())
        })
        .await;
        this
    }

    async fn get(&self, path: &str, params: &[(&str, String)]) -> Result<Value, String> {
        let url = Url::parse_with_params(&format!("{}/api/v1/{path}", self.url), params).unwrap();
        let answer: Value = self.http.get(url).send().await.unwrap().json().await.unwrap();
        if answer["status"] == "success" {
            Ok(answer["data"].clone())
        } else {
            Err(answer["error"].to_string())
        }
    }

    /// The number of series with figures (not only NaN) in the last seconds, and the latest figure
    /// of the first series.
    async fn figures(&self, query: &str) -> Result<(usize, String), String> {
        let now = std::time::UNIX_EPOCH.elapsed().unwrap().as_secs();
        let params = [
            ("query", query.to_owned()),
            ("start", (now - SPAN_SECS).to_string()),
            ("end", now.to_string()),
            ("step", "1".to_owned()),
        ];
        let data = self.get("query_range", &params).await?;
        let last = data["result"].as_array().unwrap().iter().filter_map(|series| {
            let values = series["values"].as_array().unwrap().iter();
            values.map(|value| value[1].as_str().unwrap()).rfind(|value| *value != "NaN")
        });
        let last: Vec<&str> = last.collect();
        Ok((last.len(), last.first().copied().unwrap_or_default().to_owned()))
    }

    async fn unhealthy_rules(&self) -> Vec<Value> {
        let groups = self.get("rules", &[]).await.unwrap()["groups"].take();
        let rules = groups
            .as_array()
            .unwrap()
            .iter()
            .flat_map(|group| group["rules"].as_array().unwrap().clone());
        rules.filter(|rule| rule["health"] != "ok").collect()
    }

    /// Alerts that would notify someone.
    async fn ringing(&self) -> Vec<Value> {
        let alerts = self.get("alerts", &[]).await.unwrap()["alerts"].take();
        let alerts = alerts.as_array().unwrap().iter();
        alerts
            .filter(|a| a["state"] == "firing" && a["labels"]["severity"] != "info")
            .cloned()
            .collect()
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.process.kill(); // may have exited already
        let _ = self.process.wait();
    }
}
