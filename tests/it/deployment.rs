//! Checks of deploy/systemd and deploy/kubernetes: known settings only, every role, enough time to
//! stop, and the same alerts everywhere. `./dev deployment` (tests/deployment/) validates the files
//! against the schemas.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

/// Seconds that an instance keeps serving after SIGTERM (default of RUSHGATE_DRAIN_SECS), and that
/// it then has to finish.
const DRAIN_SECS: u64 = 5;
const STOP_SECS: u64 = 10;

fn deploy() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy")
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in folder.read_dir().unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { found.extend(files(&path)) } else { found.push(path) }
    }
    found
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap()
}

/// The file's lines without comments.
fn lines(path: &Path) -> String {
    read(path)
        .lines()
        .filter(|line| !line.trim_start().starts_with('#'))
        .map(|line| format!("{line}\n"))
        .collect()
}

fn manifest(file: &str) -> Value {
    let text = read(&deploy().join("kubernetes/base").join(file));
    let first = text.split("\n---\n").next().unwrap();
    serde_saphyr::from_str(first).unwrap()
}

fn unit(role: &str) -> String {
    lines(&deploy().join(format!("systemd/rushgate-{role}.service")))
}

const UNITS: [&str; 3] = ["api", "reconciler", "relay"];

#[test]
fn settings_are_known() {
    let help =
        Command::new(env!("CARGO_BIN_EXE_rushgate")).args(["serve", "--help"]).env_clear().output();
    let help = String::from_utf8(help.unwrap().stdout).unwrap();
    let mut seen = BTreeSet::new();
    for file in ["systemd", "kubernetes"].iter().flat_map(|folder| files(&deploy().join(folder))) {
        let text = lines(&file);
        for rest in text.split("RUSHGATE_").skip(1) {
            let end =
                rest.find(|c: char| !(c.is_ascii_uppercase() || c == '_')).unwrap_or(rest.len());
            let name = format!("RUSHGATE_{}", &rest[..end]);
            // Any secret may come from a `_FILE`. RUSHGATE_JWT_JWKS_FILE is a setting itself.
            let known = [name.as_str(), name.trim_end_matches("_FILE")];
            let known = known.iter().any(|name| {
                ["=", "]"].iter().any(|end| help.contains(&format!("[env: {name}{end}")))
            });
            assert!(known, "{}: {name}", file.display());
            seen.insert(name);
        }
    }
    assert!(seen.len() >= 6, "{seen:?}");
}

#[test]
fn every_role_runs_once() {
    let all = BTreeSet::from(["api", "reconciler", "relay", "scheduler"]);
    let units = UNITS.map(unit);
    let of_units: Vec<&str> =
        units.iter().flat_map(|text| after(text, "RUSHGATE_ROLES=").split(',')).collect();
    let deployments = UNITS.map(|role| {
        let container =
            manifest(&format!("{role}.yaml"))["spec"]["template"]["spec"]["containers"][0].clone();
        let environment = container["env"].as_array().unwrap().clone();
        let roles = environment.iter().find(|variable| variable["name"] == "RUSHGATE_ROLES");
        roles.unwrap()["value"].as_str().unwrap().to_owned()
    });
    let of_deployments: Vec<&str> = deployments.iter().flat_map(|roles| roles.split(',')).collect();
    for roles in [of_units, of_deployments] {
        assert_eq!(roles.len(), all.len(), "{roles:?}");
        assert_eq!(roles.into_iter().collect::<BTreeSet<_>>(), all);
    }
}

fn after<'a>(text: &'a str, what: &str) -> &'a str {
    let (_, rest) = text.split_once(what).unwrap_or_else(|| panic!("{what} is missing"));
    rest.split_whitespace().next().unwrap()
}

#[test]
fn nobody_is_killed_while_stopping() {
    let pod = &manifest("pod.yaml")["spec"]["template"]["spec"];
    let before = pod["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"].as_u64().unwrap();
    let grace = pod["terminationGracePeriodSeconds"].as_u64().unwrap();
    assert!(grace > before + DRAIN_SECS + STOP_SECS, "{grace} s");
    for role in UNITS {
        let limit: u64 = after(&unit(role), "TimeoutStopSec=").parse().unwrap();
        assert!(limit > DRAIN_SECS + STOP_SECS, "{role}: {limit} s");
    }
}

#[test]
fn followers_step_back() {
    assert!(!unit("api").contains("Nice="));
    for role in ["reconciler", "relay"] {
        assert_eq!(after(&unit(role), "Nice="), "10", "{role}");
    }
}

/// Each database role has its own credentials, as in deploy/roles.sql. So do the two commands that
/// run once.
#[test]
fn credentials_are_split_as_the_rights_are() {
    let roles = read(&deploy().join("roles.sql"));
    for name in ["api", "reconciler", "relay", "audit", "owner"] {
        assert!(roles.contains(&format!("rushgate_{name}")), "{name}");
        let unit = if name == "owner" { "migrate" } else { name };
        let text = self::unit(unit);
        assert!(
            text.contains(&format!(
                "LoadCredential=database-url:/etc/rushgate/{name}/database-url"
            )),
            "{unit}"
        );
        let manifests = files(&deploy().join("kubernetes")).into_iter().map(|file| lines(&file));
        let mounted = manifests
            .filter(|text| text.contains(&format!("secretName: rushgate-{name},")))
            .count();
        assert_eq!(mounted, 1, "{name}");
    }
}

#[test]
fn the_operators_rules_are_those_of_grafana_prometheus() {
    let script = deploy().join("kubernetes/monitoring/generate.py");
    let checked = Command::new("python3").arg(&script).arg("--check").output().unwrap();
    let said = String::from_utf8_lossy(&checked.stderr);
    assert!(
        checked.status.success(),
        "{said}run deploy/kubernetes/monitoring/generate.py and commit what it writes"
    );
}
