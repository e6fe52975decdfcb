//! The documentation agrees with the program: settings, commands, refusals, both languages, links
//! and file names.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use rushgate::http::accept::Language;
use rushgate::http::explanations::{Explanation, explanation, in_language};
use rushgate::http::problem::Code;

use crate::attacks::ATTACKS;
use crate::faults::FAULTS;

/// Pages in English and Korean.
const README: [&str; 2] = ["README.md", "README.ko.md"];
const CONFIGURATION: [&str; 2] = ["docs/configuration.md", "docs/ko/configuration.md"];
const ERRORS: [&str; 2] = ["docs/errors.md", "docs/ko/errors.md"];
const DEPLOYING: [&str; 2] = ["docs/deploying.md", "docs/ko/deploying.md"];
const LIMITS: [&str; 2] = ["docs/limits.md", "docs/ko/limits.md"];
const TRANSLATED: [[&str; 2]; 5] = [README, CONFIGURATION, ERRORS, DEPLOYING, LIMITS];

/// A name in backticks that begins like this is a file of this repository.
const FOLDERS: [&str; 11] = [
    "src/",
    "lua/",
    "docs/",
    "tests/",
    "migrations/",
    "grafana/",
    "loadtest/",
    "crates/",
    "deploy/",
    ".ci/",
    ".github/",
];

#[test]
fn settings_are_those_of_serve_with_their_defaults() {
    let help = help(&["serve", "--help"]);
    let known = settings(&help);
    assert!(known.len() >= 19, "{known:?}");
    for page in CONFIGURATION {
        let text = read(page);
        assert_eq!(settings(&text), known, "{page}");
        for line in help.lines().filter(|line| line.contains("[env: ")) {
            let name = bracketed(line, "env").unwrap().trim_end_matches('=');
            let row = text.lines().find(|row| row.starts_with(&format!("| `{name}` |")));
            let row = row.unwrap_or_else(|| panic!("{page}: {name} has no row"));
            if let Some(default) = bracketed(line, "default") {
                assert!(
                    row.contains(&format!("| `{default}` |")),
                    "{page}: {name} defaults to {default}"
                );
            }
        }
    }
}

#[test]
fn no_page_names_a_setting_that_does_not_exist() {
    let known = settings(&help(&["serve", "--help"]));
    for page in TRANSLATED.as_flattened() {
        let unknown: Vec<String> = settings(&read(page)).difference(&known).cloned().collect();
        assert!(unknown.is_empty(), "{page}: {unknown:?}");
    }
}

#[test]
fn every_command_has_a_row() {
    let help = help(&["--help"]);
    let list = help.split("Commands:\n").nth(1).unwrap().split("\n\n").next().unwrap();
    let names = list.lines().filter_map(|line| line.split_whitespace().next());
    let known: BTreeSet<&str> = names.filter(|name| *name != "help").collect();
    assert!(known.len() >= 10, "{known:?}");
    for page in CONFIGURATION {
        let text = read(page);
        let rows = text.lines().filter_map(|line| line.strip_prefix("| `rushgate "));
        let explained: BTreeSet<&str> =
            rows.filter_map(|row| row.split([' ', '`']).next()).collect();
        assert_eq!(explained, known, "{page}");
    }
}

#[test]
fn every_refusal_is_explained_with_its_status() {
    for (page, language) in ERRORS.into_iter().zip([Language::English, Language::Korean]) {
        // As the pages under /problems/ say it.
        let row = |code: &Code| {
            let Explanation { meaning, action } = explanation(*code);
            let [meaning, action] = [meaning, action].map(|text| in_language(text, language));
            format!("| {} | `{}` | {meaning} | {action} |", code.status().as_u16(), code.as_str())
        };
        let known: BTreeSet<String> = Code::ALL.iter().map(row).collect();
        let explained: BTreeSet<String> = read(page)
            .lines()
            .filter(|line| {
                line.starts_with("| ") && line[2..].starts_with(|c: char| c.is_ascii_digit())
            })
            .map(str::to_owned)
            .collect();
        assert_eq!(explained, known, "{page}");
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
    for [english, korean] in TRANSLATED {
        let known = landmarks(&read(english));
        assert!(known.len() >= 12, "{english}: {known:?}");
        assert!(known.iter().any(|mark| mark == "##"), "{english}: {known:?}");
        let found = landmarks(&read(korean));
        let differing = known.iter().zip(&found).position(|(one, other)| one != other);
        let at = differing.unwrap_or(known.len().min(found.len()));
        assert_eq!(
            known.get(at),
            found.get(at),
            "{english} and {korean} differ after {:?}",
            &known[..at]
        );
    }
}

/// What a translation keeps: headings, list items, rows with their first name in backticks, and
/// blocks to paste, without the comments in them.
fn landmarks(text: &str) -> Vec<String> {
    let mut pasted = false;
    let mut found = Vec::new();
    for line in text.lines() {
        let fence = line.starts_with("```");
        if fence || pasted {
            found.push(without_comment(line).to_owned());
        } else if let Some((mark, _)) = line.split_once(' ').filter(|(mark, _)| is_mark(mark)) {
            let name = line.split('`').nth(1).filter(|_| mark == "|").unwrap_or_default();
            found.push(format!("{mark} {name}").trim_end().to_owned());
        }
        pasted ^= fence;
    }
    found
}

fn is_mark(word: &str) -> bool {
    let numbered = word.strip_suffix('.').is_some_and(|number| number.parse::<u32>().is_ok());
    numbered || ["##", "###", "|", "-"].contains(&word)
}

/// A line of a shell without its comment, which each language writes for itself.
fn without_comment(line: &str) -> &str {
    if line.starts_with("# ") {
        return "";
    }
    line.split_once(" # ").map_or(line, |(command, _)| command).trim_end()
}

#[test]
fn links_and_file_names_lead_somewhere() {
    for page in pages() {
        let text = std::fs::read_to_string(&page).unwrap();
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let (file, place) = link.split_once('#').unwrap_or((link, ""));
            if link.contains("://") {
                continue;
            }
            let target =
                if file.is_empty() { page.clone() } else { page.parent().unwrap().join(file) };
            assert!(target.exists(), "{}: {link}", page.display());
            let places = || {
                std::fs::read_to_string(&target).unwrap().lines().map(anchor).collect::<Vec<_>>()
            };
            assert!(
                place.is_empty() || places().iter().any(|p| p == place),
                "{}: {link}",
                page.display()
            );
        }
        for name in
            text.split('`').filter(|name| FOLDERS.iter().any(|folder| name.starts_with(folder)))
        {
            assert!(root().join(name).exists(), "{}: {name}", page.display());
        }
    }
}

/// Every page for readers, except the changelog, which may name what is gone.
fn pages() -> Vec<PathBuf> {
    let mut pages = vec![];
    for folder in [".", "docs", "docs/ko", ".github"] {
        let entries = root().join(folder).read_dir().unwrap().map(|entry| entry.unwrap().path());
        pages.extend(
            entries.filter(|path| path.extension().is_some_and(|extension| extension == "md")),
        );
    }
    pages.retain(|path| !path.ends_with("CHANGELOG.md"));
    assert!(pages.len() >= 16, "{pages:?}");
    pages
}

/// The name by which a heading is linked to.
fn anchor(line: &str) -> String {
    let heading =
        line.strip_prefix('#').unwrap_or_default().trim_start_matches('#').trim().to_lowercase();
    heading
        .replace(' ', "-")
        .chars()
        .filter(|c| c.is_alphanumeric() || *c == '-' || *c == '_')
        .collect()
}

/// What `rushgate` prints about itself.
fn help(words: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_rushgate")).args(words).env_clear().output();
    String::from_utf8(output.unwrap().stdout).unwrap()
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
