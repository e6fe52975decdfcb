//! Finds the servers' programs.

use std::ffi::OsString;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::Error;

/// The folders in which packages install servers. They may be missing from `PATH`.
const MORE_FOLDERS: [&str; 6] =
    ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"];

/// A program that a server needs, and its package.
pub(super) struct Program {
    pub name: &'static str,
    /// The package in Debian and Ubuntu.
    pub package: &'static str,
}

impl Program {
    /// The given path, if any. Otherwise the program in the first of `folders`, then of `PATH`,
    /// that has it.
    pub(super) fn find(&self, given: Option<&Path>, folders: &[PathBuf]) -> Result<PathBuf, Error> {
        if let Some(given) = given {
            return if is_program(given) {
                Ok(given.to_owned())
            } else {
                Err(self.missing(&given.to_string_lossy()))
            };
        }
        let path = search_path();
        folders
            .iter()
            .cloned()
            .chain(std::env::split_paths(&path))
            .map(|folder| folder.join(self.name))
            .find(|file| is_program(file))
            .ok_or_else(|| self.missing(self.name))
    }

    fn missing(&self, program: &str) -> Error {
        Error::MissingProgram { program: program.to_owned(), package: self.package }
    }
}

/// Our `PATH`, followed by the usual folders.
pub(super) fn search_path() -> OsString {
    let ours = std::env::var_os("PATH").unwrap_or_default();
    let all = std::env::split_paths(&ours).chain(MORE_FOLDERS.map(PathBuf::from));
    std::env::join_paths(all).unwrap_or(ours)
}

/// The subfolders of a folder, in descending order of the version in their names.
pub(super) fn newest_first(folder: &str) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = std::fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .collect();
    found.sort_by_key(|path| {
        let name =
            path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let numbers =
            name.split(|c: char| !c.is_ascii_digit()).filter_map(|part| part.parse::<u32>().ok());
        std::cmp::Reverse(numbers.collect::<Vec<u32>>())
    });
    found
}

fn is_program(path: &Path) -> bool {
    path.metadata().is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
}
