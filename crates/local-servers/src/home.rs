//! A server's folder, its lock and its removal.
//!
//! Each [`Home`] has a *hold*: a file descriptor that this process keeps and that every guard
//! inherits. For a kept folder it is a locked file, so that no second server can start on the
//! folder, even while the guard of a killed process is still stopping the first one. For a scratch
//! folder it is the pipe of a sweeper, which removes the folder once all holders have ended.

use std::fs::{DirBuilder, File, Permissions, TryLockError};
use std::io::ErrorKind;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::guard::{STOP_GRACE, reap_in_background, shell};
use super::{DataFolder, Error, random_hex};

const SWEEPER: &str = include_str!("sweeper.sh");
/// Long enough for the guard of a killed process to stop its server.
const LOCK_LIMIT: Duration = STOP_GRACE.saturating_add(Duration::from_secs(5));
/// The name of the link in a home to the server's real folder, if the server's user cannot reach
/// the home.
pub(super) const ELSEWHERE: &str = "elsewhere";
const LOCK_POLL: Duration = Duration::from_millis(50);
const REMOVE_LIMIT: Duration = Duration::from_secs(10);
const REMOVE_PAUSE: Duration = Duration::from_millis(20);

pub struct Home {
    path: PathBuf,
    /// `None` only during the drop.
    hold: Option<OwnedFd>,
    sweeper: Option<Child>,
}

impl Home {
    pub(super) async fn open(folder: &DataFolder) -> Result<Home, Error> {
        match folder {
            DataFolder::Kept(path) => Home::keep(path).await,
            DataFolder::Scratch => Home::scratch(),
        }
    }

    async fn keep(path: &Path) -> Result<Home, Error> {
        let failed = |source| Error::io(format!("use the data folder {}", path.display()), source);
        std::fs::create_dir_all(path).map_err(failed)?;
        let path = path.canonicalize().map_err(failed)?;
        std::fs::set_permissions(&path, Permissions::from_mode(0o700)).map_err(failed)?;
        let lock = lock(&path.join("lock"), LOCK_LIMIT).await?;
        Ok(Home { path, hold: Some(lock.into()), sweeper: None })
    }

    fn scratch() -> Result<Home, Error> {
        let path = std::env::temp_dir().join(format!("rushgate-{}", random_hex(8)?));
        let failed =
            |source| Error::io(format!("make the scratch folder {}", path.display()), source);
        DirBuilder::new().mode(0o700).create(&path).map_err(failed)?;
        let mut sweeper = shell(SWEEPER);
        sweeper
            .arg(&path)
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let mut sweeper = sweeper.spawn().map_err(failed)?;
        let hold = sweeper.stdin.take().map(OwnedFd::from);
        Ok(Home { path, hold, sweeper: Some(sweeper) })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// A copy of the hold for another guard.
    pub(super) fn hold(&self) -> Result<OwnedFd, Error> {
        self.hold
            .as_ref()
            .map_or_else(|| Err(std::io::Error::other("it is being removed")), OwnedFd::try_clone)
            .map_err(|source| Error::io(format!("hold {}", self.path.display()), source))
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        drop(self.hold.take());
        if let Some(sweeper) = self.sweeper.take() {
            reap_in_background(sweeper);
        }
    }
}

/// Locks a file for as long as it is open. Waits at most `limit` for another holder.
pub async fn lock(path: &Path, limit: Duration) -> Result<File, Error> {
    let failed = |source| Error::io(format!("lock {}", path.display()), source);
    let file =
        File::options().create(true).truncate(false).write(true).open(path).map_err(failed)?;
    let deadline = Instant::now() + limit;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) if Instant::now() < deadline => sleep(LOCK_POLL).await,
            Err(TryLockError::WouldBlock) => {
                return Err(Error::FolderInUse {
                    folder: path.parent().unwrap_or(path).to_owned(),
                });
            }
            Err(TryLockError::Error(source)) => return Err(failed(source)),
        }
    }
}

/// Writes a file that only its owner can read.
pub fn write_private(path: &Path, content: &str) -> Result<(), Error> {
    std::fs::write(path, "")
        .and_then(|()| std::fs::set_permissions(path, Permissions::from_mode(0o600)))
        .and_then(|()| std::fs::write(path, content))
        .map_err(|source| Error::io(format!("write {}", path.display()), source))
}

/// The content of a private file. The first call creates it with `make`.
pub fn remembered(
    path: &Path,
    make: impl FnOnce() -> Result<String, Error>,
) -> Result<String, Error> {
    match std::fs::read_to_string(path) {
        Ok(known) if !known.is_empty() => Ok(known),
        _ => {
            let made = make()?;
            write_private(path, &made)?;
            Ok(made)
        }
    }
}

/// Waits until no server runs on a kept folder, including one that a dropped `start` has left to
/// its guard.
pub async fn wait_until_free(folder: &Path) -> Result<(), Error> {
    let file = folder.join("lock");
    if file.exists() { lock(&file, LOCK_LIMIT).await.map(drop) } else { Ok(()) }
}

/// Removes a kept folder with the data of a server, once it is free, and the folder that the link
/// [`ELSEWHERE`] points to.
pub async fn discard(folder: &Path) -> Result<(), Error> {
    wait_until_free(folder).await?;
    let elsewhere = std::fs::read_link(folder.join(ELSEWHERE)).ok();
    for gone in [elsewhere.as_deref(), Some(folder)].into_iter().flatten() {
        remove_folder(gone).await?;
    }
    Ok(())
}

/// Removes a folder and its contents; a missing folder is no error. A killed initdb leaves a
/// PostgreSQL process that still writes for a moment after the guard has ended, and a new file
/// prevents the removal of its folder. So the removal is retried until `REMOVE_LIMIT`.
pub async fn remove_folder(folder: &Path) -> Result<(), Error> {
    let deadline = Instant::now() + REMOVE_LIMIT;
    loop {
        match std::fs::remove_dir_all(folder) {
            Ok(()) => return Ok(()),
            Err(source) => match source.kind() {
                ErrorKind::NotFound if !folder.exists() => return Ok(()),
                ErrorKind::NotFound | ErrorKind::DirectoryNotEmpty if Instant::now() < deadline => {
                    sleep(REMOVE_PAUSE).await;
                }
                _ => return Err(Error::io(format!("remove {}", folder.display()), source)),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_removed_while_somebody_still_writes_into_it() {
        let folder = std::env::temp_dir().join(format!("rushgate-{}", random_hex(8).unwrap()));
        let inner = folder.join("data");
        std::fs::create_dir_all(&inner).unwrap();
        // Many files, so that another one appears during the removal.
        for n in 0..2_000 {
            std::fs::write(inner.join(format!("old-{n}")), "").unwrap();
        }
        let (writes, begun) = std::sync::mpsc::channel();
        let writer = std::thread::spawn(move || {
            let end = std::time::Instant::now() + Duration::from_millis(300);
            for n in 0.. {
                if std::time::Instant::now() > end
                    || std::fs::write(inner.join(format!("{n}")), "").is_err()
                {
                    return;
                }
                let _ = writes.send(());
            }
        });
        begun.recv().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(remove_folder(&folder)).unwrap();
        writer.join().unwrap();
        assert!(!folder.exists());
    }
}
