//! The modules depend on each other in one direction. The sources are read as text, so the check
//! needs no build of its own.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// The modules of `src/` from the bottom up. A module uses only modules of earlier lines.
const LAYERS: &[&[&str]] = &[
    &["domain"],
    &["config", "thread"],
    &["telemetry"],
    &["redis"],
    &["log"],
    &["truth"],
    &["gate"],
    &["reconciler", "relay", "scheduler"],
    &["audit"],
    &["http"],
    &["lost_decisions", "ready", "seed"],
    &["serve"],
    &["demo"],
    &["cli"],
    &["main", "lib"],
];

/// Folders whose files must not depend on each other in a circle. Their `mod.rs` or `main.rs`,
/// which holds the files together, does not count.
const ACYCLIC: &[&str] = &[
    "src/domain",
    "src/http",
    "src/redis",
    "src/log",
    "src/telemetry",
    "src/config",
    "src/audit",
    "src/relay",
    "loadtest/src",
    "loadtest/src/bin/bench",
    "loadtest/src/bin/rush",
];

#[test]
fn modules_depend_on_lower_ones() {
    let place = |name: &str| LAYERS.iter().position(|layer| layer.contains(&name));
    let mut wrong = BTreeSet::new();
    for file in sources(Path::new("src")) {
        let own = module(&file, Path::new("src"));
        let own_place = place(&own).unwrap_or_else(|| panic!("src/{own} has no place in LAYERS"));
        for used in paths_after("crate::", &code(&file)).into_iter().filter(|used| *used != own) {
            // An item of lib.rs itself.
            let Some(used_place) = place(&used) else { continue };
            if used_place >= own_place {
                wrong.insert(format!("{} uses {used}", file.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "upward dependencies: {wrong:#?}");
}

#[test]
fn files_of_a_folder_do_not_depend_on_each_other_in_a_circle() {
    let mut circles = BTreeMap::new();
    for folder in ACYCLIC.iter().map(Path::new) {
        let names: BTreeSet<String> =
            sources(folder).iter().map(|file| module(file, folder)).collect();
        let mut uses: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for file in sources(folder) {
            let own = module(&file, folder);
            let text = code(&file);
            let used =
                prefixes(folder, &file).into_iter().flat_map(|prefix| paths_after(&prefix, &text));
            let used = used.filter(|used| *used != own && names.contains(used));
            uses.entry(own.clone()).or_default().extend(used);
        }
        for hub in ["mod", "main", "lib"] {
            uses.remove(hub);
        }
        // A file that uses none of the others that are left, or that none of them uses, is in no
        // circle.
        loop {
            let used: BTreeSet<&String> = uses.values().flatten().collect();
            let free = |(name, of): &(&String, &BTreeSet<String>)| {
                !used.contains(name) || of.iter().all(|used| !uses.contains_key(used))
            };
            let Some(free) = uses.iter().find(free).map(|(name, _)| name.clone()) else { break };
            uses.remove(&free);
        }
        if !uses.is_empty() {
            circles.insert(folder, uses);
        }
    }
    assert!(circles.is_empty(), "circles among: {circles:#?}");
}

/// The ways in which `file` names another file of `folder`.
fn prefixes(folder: &Path, file: &Path) -> Vec<String> {
    let depth = file.strip_prefix(folder).unwrap().components().count();
    let in_mod = usize::from(file.file_name().is_some_and(|name| name == "mod.rs"));
    let up = "super::".repeat(depth - in_mod);
    let top = match folder.strip_prefix("src") {
        Ok(inner) => format!("crate::{}::", inner.display()),
        Err(_) => "crate::".to_owned(),
    };
    if up.is_empty() { vec![top] } else { vec![top, up] }
}

fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in
        std::fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
    {
        let path = entry.unwrap().path();
        // Binaries are crates of their own.
        if path.is_dir() && !path.ends_with("bin") {
            files.extend(sources(&path));
        } else if path.extension().is_some_and(|end| end == "rs") {
            files.push(path);
        }
    }
    files
}

/// The name of the file or folder directly in `folder`.
fn module(file: &Path, folder: &Path) -> String {
    let first = file.strip_prefix(folder).unwrap().components().next().unwrap();
    Path::new(&first).file_stem().unwrap().to_str().unwrap().to_owned()
}

/// Without comments, which may name anything, and without unit tests.
fn code(file: &Path) -> String {
    let text = std::fs::read_to_string(file).unwrap();
    let code = text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
    code.lines()
        .map(|line| line.split("//").next().unwrap_or_default())
        .collect::<Vec<_>>()
        .join("\n")
}

/// The names that follow `prefix`: `a` of `crate::a::b`, `a` and `b` of `crate::{a, b::c}`.
fn paths_after(prefix: &str, code: &str) -> Vec<String> {
    let mut names = Vec::new();
    for (at, _) in code.match_indices(prefix) {
        // `super::` within `super::super::` is another prefix.
        let before = &code[..at];
        if before.ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == ':')
            || before.ends_with("super::")
        {
            continue;
        }
        let rest = &code[at + prefix.len()..];
        match rest.strip_prefix('{') {
            Some(group) => names.extend(heads(group)),
            None => names.extend(head(rest)),
        }
    }
    names
}

/// The first names of a group's members, up to its closing brace.
fn heads(group: &str) -> Vec<String> {
    let (mut names, mut depth, mut begins) = (Vec::new(), 0, true);
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => begins = true,
            c if begins && !c.is_whitespace() => {
                names.extend(head(&group[at..]));
                begins = false;
            }
            _ => {}
        }
    }
    names
}

fn head(text: &str) -> Option<String> {
    let end = text.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len());
    (end > 0).then(|| text[..end].to_owned())
}

#[test]
fn names_are_found_in_paths_and_groups() {
    let code = "use crate::{a, b::{c, d},\n    e};\nfn f() { crate::g::h() } use super::i; use super::super::j;";
    assert_eq!(paths_after("crate::", code), ["a", "b", "e", "g"]);
    assert_eq!(paths_after("super::", code), ["i", "super"]);
    assert_eq!(paths_after("super::super::", code), ["j"]);
}
