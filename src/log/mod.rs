//! The log: one Redis Stream per cell and epoch, `rg:{<cell>}:<epoch>:log`.
//!
//! Each element is an *entry*, written by a script in the same atomic step as the changes it tells of. Its id is
//! `<epoch>-<seq>`, with `seq` counting 1, 2, 3, … without gaps; `<epoch>-0` opens the epoch. Field `p` is the payload
//! (MessagePack: version, kind, decided_at, facts), field `t` the tip: `sha1(previous tip · payload)` in hex, so the log
//! is a hash chain. An entry lives until the reconciler has applied it and it is well behind the cursor.

pub mod admin;
pub mod entry;
pub mod fact;
pub mod reader;
pub mod told;
pub mod wire;

pub use entry::{Entry, EntryError, RawEntry};
