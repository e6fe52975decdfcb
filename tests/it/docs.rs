//! The documentation agrees with the program: settings, refusals, both languages, links and file names.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use rushgate::http::problem::Code;

use crate::attacks::ATTACKS;
use crate::faults::FAULTS;

const READMES: [&str; 2] = ["README.md", "README.ko.md"];
/// What in backticks is a file of this repository.
const FOLDERS: [&str; 9] =
    ["src/", "lua/", "docs/", "tests/", "migrations/", "grafana/", "loadtest/", ".ci/", "deploy/"];

#[test]
fn settings_are_those_of_serve_with_their_defaults() {
    let help = Command::new(env!("CARGO_BIN_EXE_rushgate")).args(["serve", "--help"]).env_clear().output();
    let help = String::from_utf8(help.unwrap().stdout).unwrap();
    let known = settings(&help);
    assert!(known.len() >= 19, "{known:?}");
    for readme in READMES {
        let text = read(readme);
        assert_eq!(settings(&text), known, "{readme}");
        for line in help.lines().filter(|line| line.contains("[env: ")) {
            let name = bracketed(line, "env").unwrap().trim_end_matches('=');
            let row = text.lines().find(|row| row.starts_with(&format!("| `{name}` |")));
            let row = row.unwrap_or_else(|| panic!("{readme}: {name} has no row"));
            if let Some(default) = bracketed(line, "default") {
                assert!(row.contains(&format!("| `{default}` |")), "{readme}: {name} defaults to {default}");
            }
        }
    }
}

#[test]
fn every_refusal_is_explained_with_its_status() {
    let known: BTreeSet<String> = Code::ALL
        .iter()
        .map(|code| format!("| {} | `{}` |", code.status().as_u16(), code.as_str()))
        .collect();
    for readme in READMES {
        let explained: BTreeSet<String> = read(readme)
            .lines()
            .filter(|line| line.starts_with("| ") && line[2..].starts_with(|c: char| c.is_ascii_digit()))
            .map(|row| row.split_inclusive('|').take(3).collect())
            .collect();
        assert_eq!(explained, known, "{readme}");
    }
}

/// The load tests do without Rushgate's crate, so that they build sooner.
#[test]
fn what_the_load_tests_copy_is_as_it_is_here() {
    let copies = read("loadtest/src/shop.rs");
    let niceness = rushgate::config::bounds::FOLLOWERS_NICENESS;
    let queue = rushgate::relay::topology::ORDERS_QUEUE;
    for line in [
        format!("pub const FOLLOWERS_NICENESS: u8 = {niceness};"),
        format!("pub const ORDERS_QUEUE: &str = \"{queue}\";"),
    ] {
        assert!(copies.lines().any(|other| other == line), "{line}");
    }
}

#[test]
fn both_languages_are_in_step() {
    let [english, korean] = READMES
        .map(|readme| read(readme).lines().filter_map(landmark).map(str::to_owned).collect::<Vec<String>>());
    assert!(english.iter().filter(|line| *line == "## ").count() >= 10);
    assert_eq!(english, korean);
}

/// Headings, rows and bullets count; lines to paste must be the same.
fn landmark(line: &str) -> Option<&str> {
    let marks = ["## ", "| ", "- "];
    let pasted = line.starts_with("curl ") || line.starts_with("export ");
    if pasted { Some(line) } else { marks.into_iter().find(|mark| line.starts_with(mark)) }
}

#[test]
fn links_and_file_names_lead_somewhere() {
    let docs = root().join("docs").read_dir().unwrap().map(|entry| entry.unwrap().path());
    let pages: Vec<PathBuf> = READMES.map(|readme| root().join(readme)).into_iter().chain(docs).collect();
    for page in pages {
        let text = std::fs::read_to_string(&page).unwrap();
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let (file, place) = link.split_once('#').unwrap_or((link, ""));
            if link.contains("://") {
                continue;
            }
            let target = if file.is_empty() { page.clone() } else { page.parent().unwrap().join(file) };
            assert!(target.exists(), "{}: {link}", page.display());
            let places = || std::fs::read_to_string(&target).unwrap().lines().map(anchor).collect::<Vec<_>>();
            assert!(place.is_empty() || places().iter().any(|p| p == place), "{}: {link}", page.display());
        }
        for name in text.split('`').filter(|name| FOLDERS.iter().any(|folder| name.starts_with(folder))) {
            assert!(root().join(name).exists(), "{}: {name}", page.display());
        }
    }
}

/// The name by which a heading is linked to.
fn anchor(line: &str) -> String {
    let heading = line.strip_prefix('#').unwrap_or_default().trim_start_matches('#').trim().to_lowercase();
    heading.replace(' ', "-").chars().filter(|c| c.is_alphanumeric() || *c == '-' || *c == '_').collect()
}

/// Every `RUSHGATE_…` in a text.
fn settings(text: &str) -> BTreeSet<String> {
    text.split(|c: char| !(c.is_ascii_uppercase() || c == '_'))
        .filter(|word| word.starts_with("RUSHGATE_"))
        .map(str::to_owned)
        .collect()
}

/// The text of `[name: text]`.
fn bracketed<'a>(line: &'a str, name: &str) -> Option<&'a str> {
    line.split_once(&format!("[{name}: "))?.1.split(']').next()
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(name: &str) -> String {
    std::fs::read_to_string(root().join(name)).unwrap()
}

/// The page has exactly these rows: what it names, and what is said of it.
fn assert_rows<'a>(name: &str, rows: impl ExactSizeIterator<Item = (&'a str, &'a str)>) {
    let page = read(name);
    let count = rows.len();
    let rows = rows.map(|(name, said)| format!("| `{name}` | {said} |"));
    let missing: Vec<String> = rows.filter(|row| !page.contains(row.as_str())).collect();
    assert!(missing.is_empty(), "{name} lacks:\n{}", missing.join("\n"));
    let found = page.lines().filter(|line| line.starts_with("| `")).count();
    assert_eq!(found, count, "{name} has rows of nothing that is there");
}

#[test]
fn every_fault_stands_in_the_guarantees() {
    assert_rows("docs/guarantees.md", FAULTS.iter().map(|fault| (fault.name, fault.expected)));
}

#[test]
fn every_attack_stands_in_the_security_page() {
    assert_rows("docs/security.md", ATTACKS.iter().map(|attack| (attack.name, attack.defence)));
}
