//! schemathesis (from PyPI; `./dev` installs it) generates requests from the API description: each
//! route with values at and beyond their bounds, and sequences of routes that use earlier answers.

use std::path::Path;
use std::process::Stdio;

use super::wire::victim;
use crate::api::{Instance, token};

/// The path where `./dev` installs it.
const PROGRAM: &str = "target/schemathesis/bin/schemathesis";
const CHECKS: &str = "not_a_server_error,status_code_conformance,content_type_conformance,response_headers_conformance,\
    response_schema_conformance,negative_data_rejection,missing_required_header,unsupported_method,ignored_auth,\
    use_after_free";
/// For PUT, this path is that of a product with a reserved id, which is refused. The route itself
/// has no PUT.
const CONFIGURATION: &str = r#"
[[operations]]
include-path = "/v1/products/popular"
checks.unsupported_method.enabled = false
"#;

pub async fn described_api(effort: usize) -> usize {
    let (instance, backend) = victim(&[("RUSHGATE_USER_RATE", "off")]).await;
    let api = instance.client();
    // Some data to find.
    api.charge("user-1", 100_000).service().ok(201).await;
    let examples = if effort == 1 { 3 } else { effort * 10 };
    let mut tried = 0;
    for (sub, scope) in [("", ""), ("user-1", "shop"), ("backend", "service"), ("staff", "admin")] {
        tried += run(&instance, sub, scope, examples).await;
    }
    backend.assert_audit_clean().await;
    tried
}

/// Runs schemathesis with the token of one scope. Returns the number of generated cases.
async fn run(instance: &Instance, sub: &str, scope: &str, examples: usize) -> usize {
    let program = Path::new(env!("CARGO_MANIFEST_DIR")).join(PROGRAM);
    assert!(program.exists(), "schemathesis is missing: ./dev test installs it");
    let mut command = tokio::process::Command::new(program);
    command.args(["run", &format!("{}/openapi.json", instance.base), "--url", &instance.base]);
    command.args(["--checks", CHECKS, "--max-examples", &examples.to_string()]);
    // A stream has no end that it could wait for; tests/it/api/live.rs tests it.
    command.args(["--exclude-path", "/v1/live"]);
    // Deterministic, and without a stored database of examples.
    command.args([
        "--seed",
        "6",
        "--generation-database",
        "none",
        "--no-color",
        "--request-timeout",
        "20",
    ]);
    command.args(["--suppress-health-check", "all"]);
    if !scope.is_empty() {
        command.args(["--header", &format!("Authorization: Bearer {}", token(sub, scope))]);
    }
    let folder = crate::servers::tempfile();
    std::fs::write(folder.path.join("schemathesis.toml"), CONFIGURATION).unwrap();
    command.current_dir(&folder.path).stdin(Stdio::null()).kill_on_drop(true);
    let output = command.output().await.unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "scope `{scope}`:\n{said}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let cases = said.lines().find_map(|line| {
        line.trim().split_once(" generated")?.0.split(' ').next_back()?.parse().ok()
    });
    cases.unwrap_or_else(|| panic!("how many cases? {said}"))
}
