//! Reads the log from Redis' append-only file. It has every `XADD`, including entries that were
//! trimmed later.

use std::path::{Path, PathBuf};

use rushgate::log::RawEntry;

/// All entries that this Redis has logged, in order. The file must never have been rewritten (see
/// [`NO_REWRITE`]).
pub fn entries(redis_folder: &Path) -> Vec<RawEntry> {
    all(redis_folder).filter(|entry| entry.seq > 0).collect()
}

/// The epochs that were opened, in order. The log of an epoch begins with its entry 0.
pub fn opened(redis_folder: &Path) -> Vec<u64> {
    all(redis_folder).filter(|entry| entry.seq == 0).map(|entry| entry.epoch).collect()
}

fn all(redis_folder: &Path) -> impl Iterator<Item = RawEntry> {
    files(redis_folder).into_iter().flat_map(|file| entries_of(&std::fs::read(file).unwrap()))
}

/// The redis.conf line that prevents rewrites of the file.
pub const NO_REWRITE: &str = "auto-aof-rewrite-percentage 0";

/// The incremental files in numerical order.
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

/// Truncates the last file before the transaction that wrote the first entry of `epoch` after
/// `seq`, as if the disk had lost its last writes. Redis must not be running. Returns the lost
/// entries.
pub fn cut_after(redis_folder: &Path, epoch: u64, seq: u64) -> Vec<RawEntry> {
    let file = files(redis_folder).pop().unwrap();
    let blocks = blocks_of(&std::fs::read(&file).unwrap());
    let is_after = |entry: &RawEntry| entry.epoch == epoch && entry.seq > seq;
    let Some(first) = blocks.iter().position(|block| block.entries.iter().any(is_after)) else {
        return vec![];
    };
    let file = std::fs::File::options().write(true).open(file).unwrap();
    file.set_len(blocks[first].from as u64).unwrap();
    file.sync_all().unwrap();
    blocks.into_iter().skip(first).flat_map(|block| block.entries).collect()
}

fn entries_of(bytes: &[u8]) -> Vec<RawEntry> {
    blocks_of(bytes).into_iter().flat_map(|block| block.entries).collect()
}

/// A unit that Redis loads completely or not at all: a single command, or everything from `MULTI`
/// to `EXEC`.
struct Block {
    from: usize,
    entries: Vec<RawEntry>,
}

fn blocks_of(bytes: &[u8]) -> Vec<Block> {
    let (mut done, mut open) = (Vec::new(), None::<Block>);
    let (mut at, mut from) = (0, 0);
    while let Some(command) = command(bytes, &mut at) {
        let name = command[0].to_ascii_uppercase();
        let added = if name == b"XADD" { entry(&command) } else { None };
        match (&mut open, name.as_slice()) {
            (None, b"MULTI") => open = Some(Block { from, entries: vec![] }),
            (None, _) => done.push(Block { from, entries: added.into_iter().collect() }),
            (Some(_), b"EXEC") => done.extend(open.take()),
            (Some(block), _) => block.entries.extend(added),
        }
        from = at;
    }
    done
}

/// Parses `*<n>\r\n` followed by n times `$<length>\r\n<bytes>\r\n`. Lines that begin with `#` are
/// annotations. Returns `None` at the end, or where the file is truncated.
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

/// Parses `XADD <key> [NOMKSTREAM] <epoch>-<seq> p <payload> t <tip>`. The id `<epoch>-0` opens an
/// epoch.
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
    Some(RawEntry {
        epoch,
        seq,
        payload: field(b"p")?,
        tip: String::from_utf8(field(b"t")?).ok()?,
        traces: vec![],
    })
}
