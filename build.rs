//! Build script: rebuilds when the migrations change, checks their numbers, and sets the version
//! with its commit.

use std::env::var;
use std::process::Command;

fn main() {
    // `sqlx::migrate!` reads the folder when the macro is expanded: a new file must expand it
    // again.
    println!("cargo::rerun-if-changed=migrations");
    println!("cargo::rerun-if-changed=build.rs");
    if let Err(why) = check_migrations() {
        println!("cargo::error={why}");
    }
    println!("cargo::rerun-if-env-changed=RUSHGATE_COMMIT");
    let build = match (var("RUSHGATE_COMMIT"), var("PROFILE").as_deref()) {
        (Ok(commit), _) if !commit.is_empty() => commit,
        (_, Ok("release")) => commit().unwrap_or_else(|| "unknown commit".to_owned()),
        // With the commit in it, each commit would recompile everything.
        _ => "development build".to_owned(),
    };
    println!(
        "cargo::rustc-env=RUSHGATE_VERSION={} ({build})",
        var("CARGO_PKG_VERSION").unwrap_or_default()
    );
}

/// The files are numbered 0001, 0002 and so on, without a gap or a repeat: two branches may have
/// taken the same number.
fn check_migrations() -> Result<(), String> {
    let folder =
        std::path::Path::new(&var("CARGO_MANIFEST_DIR").unwrap_or_default()).join("migrations");
    let files = std::fs::read_dir(&folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    let mut names: Vec<String> = files
        .filter_map(|file| Some(file.ok()?.file_name().to_string_lossy().into_owned()))
        .collect();
    names.sort();
    for (number, name) in (1..).zip(&names) {
        if !name.starts_with(&format!("{number:04}_")) || !name.ends_with(".sql") {
            return Err(format!(
                "migrations/{name} should be number {number:04}: give it the next free one"
            ));
        }
    }
    Ok(())
}

/// The commit that is built, marked if tracked files were changed since.
fn commit() -> Option<String> {
    // Not the commit of a repository that contains this project.
    let top = git(&["rev-parse", "--show-toplevel"])?;
    if std::fs::canonicalize(top).ok()?
        != std::fs::canonicalize(var("CARGO_MANIFEST_DIR").ok()?).ok()?
    {
        return None;
    }
    for file in ["logs/HEAD", "index"] {
        println!(
            "cargo:rerun-if-changed={}",
            git(&["rev-parse", "--path-format=absolute", "--git-path", file])?
        );
    }
    let commit = git(&["rev-parse", "--short=12", "HEAD"])?;
    let changed = git(&["status", "--porcelain", "--untracked-files=no"])?;
    Some(if changed.is_empty() { commit } else { format!("{commit}, changed") })
}

fn git(args: &[&str]) -> Option<String> {
    let folder = var("CARGO_MANIFEST_DIR").ok()?;
    let output = Command::new("git").arg("-C").arg(folder).args(args).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
