//! Polls files that change while an instance runs (token keys, certificates) and compares their
//! contents with those of the last poll. Tools replace such files by rename, by link or in place;
//! file-system notifications differ between these, contents do not.

use std::io::Read;
use std::path::{Path, PathBuf};

use tokio_util::sync::CancellationToken;

use crate::config::bounds::{MAX_RELOADED_BYTES, RELOAD_POLL};

/// Calls `changed` with the contents of all files at the first poll, and whenever a poll finds one
/// of them different from the poll before, until `stopping`. The call at the first poll is needed:
/// the instance has read the files at start, may then have waited for servers, and would miss a
/// change made in that time.
pub async fn follow<const N: usize>(
    files: [PathBuf; N],
    stopping: CancellationToken,
    mut changed: impl FnMut([&[u8]; N]),
) {
    let mut known = [const { None }; N];
    while stopping.run_until_cancelled(tokio::time::sleep(RELOAD_POLL)).await.is_some() {
        let found = read_all(&files).await;
        if found == known {
            continue;
        }
        // A missing file is about to be replaced.
        if found.iter().all(Option::is_some) {
            changed(std::array::from_fn(|at| found[at].as_deref().unwrap_or_default()));
            known = found;
        }
    }
}

async fn read_all<const N: usize>(files: &[PathBuf; N]) -> [Option<Vec<u8>>; N] {
    let files = files.clone();
    let reading = tokio::task::spawn_blocking(move || files.each_ref().map(|file| read(file)));
    reading.await.unwrap_or([const { None }; N])
}

fn read(file: &Path) -> Option<Vec<u8>> {
    let mut content = Vec::new();
    std::fs::File::open(file).ok()?.take(MAX_RELOADED_BYTES).read_to_end(&mut content).ok()?;
    Some(content)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_changed_before_the_first_look_is_noticed() {
        let file = std::env::temp_dir().join(format!("rushgate-reload-{}", uuid::Uuid::now_v7()));
        std::fs::write(&file, "new").unwrap();
        let (stopping, mut seen) = (CancellationToken::new(), Vec::new());
        let changed = |[content]: [&[u8]; 1]| {
            seen.push(content.to_vec());
            stopping.cancel();
        };
        let following = follow([file.clone()], stopping.clone(), changed);
        tokio::time::timeout(RELOAD_POLL * 20, following).await.unwrap();
        std::fs::remove_file(file).unwrap();
        assert_eq!(seen, [b"new"]);
    }
}
