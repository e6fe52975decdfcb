//! Checks of docker-compose.yml, Dockerfile and .env.example: they are complete, have no default
//! passwords, and configure the servers as Rushgate needs them. If the client is installed, `docker
//! compose config` must accept the file. `./dev containers` runs the containers
//! (tests/containers/).

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::cluster::{Cluster, Settings, eventually};
use crate::servers::tempfile;

const COMPOSE: &str = "docker-compose.yml";

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn read(file: &str) -> String {
    fs::read_to_string(root().join(file)).unwrap()
}

fn services() -> BTreeMap<String, Value> {
    let whole: Value = serde_saphyr::from_str(&read(COMPOSE)).unwrap();
    serde_json::from_value(whole["services"].clone()).unwrap()
}

/// Every `${NAME}`, with the text after the name.
fn variables(text: &str) -> BTreeSet<(String, String)> {
    let starts = text.split("${").skip(1);
    let name_end =
        |rest: &str| rest.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).unwrap();
    starts
        .map(|rest| (rest[..name_end(rest)].to_owned(), rest[name_end(rest)..].to_owned()))
        .collect()
}

/// The variables of .env.example with their values.
fn example() -> BTreeMap<String, String> {
    let text = read(".env.example");
    let lines =
        text.lines().filter(|line| !line.starts_with('#')).filter_map(|line| line.split_once('='));
    lines.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

#[test]
fn every_variable_is_in_the_example_and_no_secret_has_a_default() {
    let used = variables(&read(COMPOSE));
    let names: BTreeSet<&str> = used.iter().map(|(name, _)| name.as_str()).collect();
    let example = example();
    assert_eq!(names, example.keys().map(String::as_str).collect());
    let is_secret = |name: &str| name.ends_with("PASSWORD") || name.ends_with("SECRET");
    assert!(names.iter().filter(|name| is_secret(name)).count() >= 5);
    for (name, rest) in used.iter().filter(|(name, _)| is_secret(name)) {
        assert!(rest.starts_with(":?"), "{name} must be set: {rest}");
        assert_eq!(example[name], "", "{name}");
    }
    for service in services().values() {
        let set = service["environment"].as_object().cloned().unwrap_or_default();
        for (name, value) in
            set.iter().filter(|(name, _)| name.contains("PASS") || name.ends_with("AUTH"))
        {
            assert!(value.as_str().unwrap().starts_with("${"), "{name} stands in {COMPOSE}");
        }
    }
}

#[test]
fn services_begin_in_order_of_health() {
    let services = services();
    let image_has_check = |name: &str| name == "rushgate";
    let mut ends = BTreeSet::new();
    for (name, service) in &services {
        let runs_on = service["restart"] == "unless-stopped";
        let healthy = image_has_check(name) || service["healthcheck"]["test"].is_array();
        assert!(healthy || !runs_on, "{name} has no health check");
        if !runs_on {
            ends.insert(name.as_str());
        }
        for (on, how) in service["depends_on"].as_object().into_iter().flatten() {
            assert!(services.contains_key(on), "{name} depends on {on}");
            assert_eq!(how["condition"], "service_healthy", "{name} on {on}");
        }
        let image = service["image"].as_str().unwrap();
        let (_, tag) =
            image.split_once(':').unwrap_or_else(|| panic!("{name}: {image} has no tag"));
        assert!(tag != "latest", "{name}: {image}");
    }
    assert_eq!(ends, BTreeSet::from(["load", "redis-cluster-join"]));
    let needs: BTreeSet<&String> =
        services["rushgate"]["depends_on"].as_object().unwrap().keys().collect();
    assert_eq!(needs, BTreeSet::from([&"redis".into(), &"postgres".into(), &"rabbitmq".into()]));
}

#[test]
fn profiles_are_a_cluster_and_load() {
    let services = services();
    let of = |profile: &str| {
        services.values().filter(|s| s["profiles"] == serde_json::json!([profile])).count()
    };
    assert_eq!((of("cluster"), of("load")), (7, 1));
    let stores: BTreeSet<String> = services
        .iter()
        .filter(|(name, _)| name.starts_with("redis-cluster-") && !name.ends_with("join"))
        .map(|(_, service)| service["volumes"].to_string())
        .collect();
    assert_eq!(stores.len(), 6, "each node has a volume of its own: {stores:?}");
}

#[test]
fn redis_keeps_what_it_acknowledges() {
    for (name, service) in services() {
        if !service["image"].as_str().unwrap().starts_with("redis:") || name.ends_with("join") {
            continue;
        }
        let command = service["command"].to_string();
        for setting in [
            "--appendonly yes",
            "--appendfsync always",
            "--no-appendfsync-on-rewrite no",
            "--maxmemory ${REDIS_MAXMEMORY:-1gb}",
            "--maxmemory-policy noeviction",
            "--aof-load-truncated no",
            "--save ''",
            "--requirepass",
        ] {
            assert!(command.contains(setting), "{name}: {setting}: {command}");
        }
    }
}

#[test]
fn nobody_is_root_and_only_volumes_are_written() {
    // These images have a user of their own. The test that runs the containers checks the
    // processes.
    let has_own_user = |image: &str| {
        image.starts_with("rushgate") || image.starts_with("prom/") || image.starts_with("grafana/")
    };
    let mut writes = BTreeSet::new();
    for (name, service) in services() {
        assert_eq!(service["cap_drop"], serde_json::json!(["ALL"]), "{name}");
        assert_eq!(
            service["security_opt"],
            serde_json::json!(["no-new-privileges:true"]),
            "{name}"
        );
        if service["read_only"] != true {
            writes.insert(name.clone());
        }
        let image = service["image"].as_str().unwrap();
        assert!(has_own_user(image) || service["user"] == "999:999", "{name} runs as root");
    }
    assert_eq!(writes, BTreeSet::from(["grafana".to_owned()]));
}

#[test]
fn ports_are_published_on_loopback_only() {
    assert_eq!(example()["BIND"], "127.0.0.1");
    let mut publishing = BTreeSet::new();
    for (name, service) in services() {
        for port in service["ports"].as_array().into_iter().flatten() {
            assert!(port.as_str().unwrap().starts_with("${BIND:-127.0.0.1}:"), "{name}: {port}");
            publishing.insert(name.clone());
        }
    }
    assert_eq!(publishing, BTreeSet::from(["grafana".to_owned(), "rushgate".to_owned()]));
}

/// After SIGTERM an instance may serve for RUSHGATE_DRAIN_SECS (5) and then take 10 s to finish,
/// before it is killed.
#[test]
fn nobody_is_killed_while_stopping() {
    for (name, service) in
        services().iter().filter(|(_, service)| service["restart"] == "unless-stopped")
    {
        // Grafana has no work in progress.
        if name != "grafana" {
            let grace = service["stop_grace_period"]
                .as_str()
                .unwrap_or_else(|| panic!("{name} has no grace period"));
            let seconds: u32 = grace.trim_end_matches('s').parse().unwrap();
            assert!(seconds >= 20, "{name}: {grace}");
        }
    }
}

#[test]
fn what_is_mounted_exists_and_settings_are_known() {
    let help =
        Command::new(env!("CARGO_BIN_EXE_rushgate")).args(["serve", "--help"]).env_clear().output();
    let help = String::from_utf8(help.unwrap().stdout).unwrap();
    for (name, service) in services() {
        for volume in service["volumes"].as_array().into_iter().flatten() {
            let source = volume.as_str().unwrap().split(':').next().unwrap();
            assert!(!source.starts_with('.') || root().join(source).exists(), "{name}: {source}");
        }
        for setting in
            service["environment"].as_object().into_iter().flatten().map(|(name, _)| name)
        {
            let known =
                !setting.starts_with("RUSHGATE_") || help.contains(&format!("[env: {setting}"));
            assert!(known, "{name}: {setting}");
        }
    }
}

#[test]
fn the_image_runs_as_nobody_in_particular_and_has_a_health_check() {
    let text = read("Dockerfile");
    let stages: Vec<&str> = text.split("\nFROM ").skip(1).collect();
    assert!(stages.len() >= 2 && stages[0].contains(" AS build"));
    for image in stages.iter().filter(|stage| stage.starts_with("debian:")) {
        assert!(image.lines().any(|line| line == "USER 10001:10001"), "{image}");
    }
    let last = stages.last().unwrap();
    let line = |start: &str| {
        last.lines().find(|line| line.starts_with(start)).unwrap_or_else(|| panic!("{start}"))
    };
    assert!(line("debian:").ends_with("AS rushgate"));
    assert!(line("HEALTHCHECK ").ends_with(r#"CMD ["rushgate", "ready"]"#));
    assert_eq!(line("ENTRYPOINT "), r#"ENTRYPOINT ["rushgate"]"#);
    assert!(
        !last.contains("cargo") && last.contains("COPY --from=build"),
        "nothing of the build stays"
    );
    assert!(read(".dockerignore").lines().any(|line| line == ".env"), "no secret enters the image");
}

#[tokio::test]
async fn the_health_check_says_what_readiness_says() {
    let cluster = Cluster::servers().await;
    let instance = cluster.start().await;
    let asked = Settings::default().with("RUSHGATE_OPS_LISTEN", instance.operations());
    let ready = asked.run(&["ready"]).await.assert_success();
    assert!(ready.stdout.contains(r#""ready":true"#), "{}", ready.stdout);
    cluster.redis.stop().await;
    // Readiness is answered from cached state, which may be slightly out of date.
    let not_ready = eventually("the health check fails", || async {
        let asked = asked.run(&["ready"]).await;
        (asked.code == 1).then_some(asked)
    })
    .await;
    assert!(not_ready.stdout.contains("Redis"), "{}", not_ready.stdout);
    instance.signal(Signal::SIGKILL);
    instance.gone().await;
    let gone = asked.run(&["ready"]).await;
    assert_eq!(gone.code, 1);
    assert!(
        gone.stderr.contains("no instance answers") && gone.stderr.lines().count() == 1,
        "{}",
        gone.stderr
    );
}

#[test]
fn docker_compose_takes_it_where_there_is_one() {
    let Some(client) = compose_client() else {
        println!("no `docker compose` here: not asked");
        return;
    };
    let home = tempfile();
    let filled = home.path.join("filled.env");
    let example = read(".env.example");
    let value =
        |line: &str| if line.starts_with('#') || !line.ends_with('=') { "" } else { "a1b2c3d4" };
    let text: String = example.lines().map(|line| format!("{line}{}\n", value(line))).collect();
    fs::write(&filled, text).unwrap();
    let whole = config(&client, &filled, &["--profile", "cluster", "--profile", "load"]);
    assert!(whole.status.success(), "{}", String::from_utf8_lossy(&whole.stderr));
    let unset = config(&client, &root().join(".env.example"), &[]);
    assert!(!unset.status.success(), "without passwords it must not start");
}

fn config(client: &[&str], env_file: &Path, more: &[&str]) -> Output {
    let mut command = Command::new(client[0]);
    command.args(&client[1..]).args(["-f", COMPOSE, "--env-file"]).arg(env_file).args(more);
    command.args(["config", "--quiet"]).current_dir(root()).output().unwrap()
}

/// Docker Compose v2; v1 does not support nested variables.
fn compose_client() -> Option<Vec<&'static str>> {
    let client = vec!["docker", "compose"];
    let mut asked = Command::new(client[0]);
    let known =
        asked.args([client[1], "version"]).stdout(Stdio::null()).stderr(Stdio::null()).status();
    known.is_ok_and(|status| status.success()).then_some(client)
}
