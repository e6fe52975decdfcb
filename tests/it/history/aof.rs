//! The log as it was written: every `XADD` in Redis' append-only file, so that no entry escapes, trimmed or not.

use std::path::{Path, PathBuf};

use rushgate::log::RawEntry;

/// All entries that this Redis wrote down, in order. The file must not have been rewritten (see [`NO_REWRITE`]).
pub fn entries(redis_folder: &Path) -> Vec<RawEntry> {
    all(redis_folder).filter(|entry| entry.seq > 0).collect()
}

/// The epochs that were opened, in order: the log of each begins with its entry 0.
pub fn opened(redis_folder: &Path) -> Vec<u64> {
    all(redis_folder).filter(|entry| entry.seq == 0).map(|entry| entry.epoch).collect()
}

fn all(redis_folder: &Path) -> impl Iterator<Item = RawEntry> {
    files(redis_folder).into_iter().flat_map(|file| entries_of(&std::fs::read(file).unwrap()))
}

/// The line of redis.conf that keeps the file whole.
pub const NO_REWRITE: &str = "auto-aof-rewrite-percentage 0";

/// The incremental files, in the order of their numbers.
pub fn files(redis_folder: &Path) -> Vec<PathBuf> {
    let Ok(folder) = std::fs::read_dir(redis_folder.join("appendonlydir")) else { return vec![] };
    let mut found: Vec<(u64, PathBuf)> = folder
        .filter_map(|file| {
            let path = file.unwrap().path();
            let name = path.file_name()?.to_str()?;
            let number = name.strip_suffix(".incr.aof")?.rsplit('.').next()?.parse().ok()?;
            Some((number, path))
        })
        .collect();
    found.sort();
    found.into_iter().map(|(_, path)| path).collect()
}

/// Commands inside `MULTI` count when their `EXEC` is there: Redis drops the others when it loads the file.
fn entries_of(bytes: &[u8]) -> Vec<RawEntry> {
    let (mut done, mut open, mut in_multi) = (Vec::new(), Vec::new(), false);
    let mut at = 0;
    while let Some(command) = command(bytes, &mut at) {
        match command[0].to_ascii_uppercase().as_slice() {
            b"MULTI" => in_multi = true,
            b"EXEC" => {
                in_multi = false;
                done.append(&mut open);
            }
            b"XADD" => {
                let list = if in_multi { &mut open } else { &mut done };
                list.extend(entry(&command));
            }
            _ => {}
        }
    }
    done
}

/// `*<n>\r\n` and n times `$<length>\r\n<bytes>\r\n`; lines that begin with `#` are notes. `None` at the end, or where
/// the file is cut off.
fn command<'a>(bytes: &'a [u8], at: &mut usize) -> Option<Vec<&'a [u8]>> {
    while bytes.get(*at) == Some(&b'#') {
        line(bytes, at)?;
    }
    let count = number(line(bytes, at)?, b'*')?;
    let mut parts = Vec::with_capacity(count);
    for _ in 0..count {
        let length = number(line(bytes, at)?, b'$')?;
        parts.push(bytes.get(*at..*at + length)?);
        *at += length + 2;
    }
    (*at <= bytes.len()).then_some(parts)
}

fn line<'a>(bytes: &'a [u8], at: &mut usize) -> Option<&'a [u8]> {
    let rest = bytes.get(*at..)?;
    let length = rest.iter().position(|byte| *byte == b'\r')?;
    *at += length + 2;
    Some(&rest[..length])
}

fn number(line: &[u8], mark: u8) -> Option<usize> {
    std::str::from_utf8(line.strip_prefix(&[mark])?).ok()?.parse().ok()
}

/// `XADD <key> [NOMKSTREAM] <epoch>-<seq> p <payload> t <tip>`, or `<epoch>-0` that opens an epoch.
fn entry(command: &[&[u8]]) -> Option<RawEntry> {
    let key = std::str::from_utf8(command.get(1)?).ok()?;
    if !(key.starts_with("rg:{") && key.ends_with(":log")) {
        return None;
    }
    let from = if command.get(2)?.eq_ignore_ascii_case(b"NOMKSTREAM") { 3 } else { 2 };
    let (epoch, seq) = std::str::from_utf8(command.get(from)?).ok()?.split_once('-')?;
    let (epoch, seq) = (epoch.parse().ok()?, seq.parse().ok()?);
    let field = |name: &[u8]| {
        let mut pairs = command[from + 1..].chunks_exact(2);
        pairs.find(|pair| pair[0] == name).map(|pair| pair[1].to_vec())
    };
    Some(RawEntry { epoch, seq, payload: field(b"p")?, tip: String::from_utf8(field(b"t")?).ok()? })
}
