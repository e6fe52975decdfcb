//! Takes blocks of commands out of the documentation and runs them unchanged.
//!
//! A [`BookEnvironment`] maps the folders that the pages name to folders of the test.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::unistd::Uid;

use crate::cluster::Settings;

/// The pages that have such blocks.
const PAGES: [&str; 2] = ["docs/operations.md", "docs/runbook.md"];
/// Marks the block that follows; the block's name comes after it.
const MARK: &str = "<!-- drill: ";
/// Time limit of one block, in seconds.
const LIMIT_SECS: &str = "120";

fn pages() -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    PAGES.map(|page| std::fs::read_to_string(root.join(page)).unwrap()).concat()
}

/// The names of all blocks in the pages.
pub fn blocks() -> BTreeSet<String> {
    let name = |rest: &str| rest.split(" -->").next().unwrap_or_default().to_owned();
    pages().split(MARK).skip(1).map(name).collect()
}

/// The text between the fences after the mark, without the indentation of a list item.
pub fn block(name: &str) -> String {
    let pages = pages();
    let mark = format!("{MARK}{name} -->\n");
    let (_, rest) = pages.split_once(&mark).unwrap_or_else(|| panic!("no block is marked {name}"));
    let mut lines = rest.lines();
    let fence = lines.next().unwrap_or_default();
    assert!(fence.trim_start().starts_with("```"), "{name} is fenced");
    let indent = fence.len() - fence.trim_start().len();
    let body =
        lines.map(|line| line.get(indent..).unwrap_or_default()).take_while(|line| *line != "```");
    body.map(|line| format!("{line}\n")).collect()
}

/// The account that runs a block.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum User {
    Operator,
    /// The owner of PostgreSQL's files.
    Postgres,
}

/// The folders and the environment of the commands.
pub struct BookEnvironment {
    /// A folder in the pages, and the folder that replaces it here.
    folders: Vec<(&'static str, PathBuf)>,
    environment: Vec<(&'static str, String)>,
}

impl BookEnvironment {
    pub fn new(settings: &Settings) -> Self {
        let names = [
            "RUSHGATE_REDIS_URL",
            "RUSHGATE_DATABASE_URL",
            "RUSHGATE_AMQP_URL",
            "RUSHGATE_JWT_SECRET",
        ];
        let environment =
            names.into_iter().map(|name| (name, settings.get(name).to_owned())).collect();
        Self { folders: vec![], environment }
    }

    pub fn folder(mut self, in_the_page: &'static str, here: &Path) -> Self {
        self.folders.push((in_the_page, here.to_owned()));
        self
    }

    pub fn set(mut self, name: &'static str, value: impl ToString) -> Self {
        self.environment.push((name, value.to_string()));
        self
    }

    fn placed(&self, text: &str) -> String {
        let place = |text: String, (page, here): &(&str, PathBuf)| {
            text.replace(page, here.to_str().unwrap())
        };
        self.folders.iter().fold(text.to_owned(), place)
    }

    /// The block as settings of a server: lines `name = value`, without comments.
    pub fn settings(&self, name: &str) -> Vec<(String, String)> {
        let text = self.placed(&block(name));
        let lines = text.lines().map(|line| line.split('#').next().unwrap_or_default().trim());
        lines
            .filter(|line| !line.is_empty())
            .map(|line| line.split_once(" = ").unwrap_or_else(|| panic!("no setting: {line}")))
            .map(|(name, value)| (name.to_owned(), value.trim_matches('\'').to_owned()))
            .collect()
    }

    /// Runs the block, which must succeed; returns what it printed.
    pub fn run(&self, name: &str, user: User) -> String {
        let text = self.placed(&block(name));
        let mut command = Command::new("timeout");
        command.arg(LIMIT_SECS);
        if user == User::Postgres && Uid::effective().is_root() {
            command.args(["setpriv", "--reuid=postgres", "--regid=postgres", "--init-groups"]);
        }
        command.args(["bash", "-euo", "pipefail", "-c", &text]).current_dir("/").env_clear();
        command
            .env("PATH", path())
            .envs(self.environment.iter().map(|(name, value)| (name, value)));
        let output = command.output().unwrap();
        let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let (out, err) = (said(&output.stdout), said(&output.stderr));
        assert!(output.status.success(), "{name}: {text}\n{out}\n{err}");
        println!("-- {name}\n{text}{out}{err}");
        out
    }
}

/// First the built `rushgate`, then PostgreSQL's programs (Debian keeps them outside of `PATH`),
/// then the inherited `PATH`.
fn path() -> String {
    let binary = Path::new(env!("CARGO_BIN_EXE_rushgate")).parent().unwrap();
    let mut folders = vec![binary.to_owned()];
    if let Ok(versions) = std::fs::read_dir("/usr/lib/postgresql") {
        folders.extend(versions.map(|version| version.unwrap().path().join("bin")));
    }
    let usual = std::env::var("PATH").unwrap_or_default();
    folders
        .iter()
        .map(|folder| folder.to_str().unwrap())
        .chain([usual.as_str()])
        .collect::<Vec<_>>()
        .join(":")
}
