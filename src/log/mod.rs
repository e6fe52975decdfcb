//! The log: one Redis Stream per cell and epoch, `rg:{<cell>}:<epoch>:log`.
//!
//! Each element is an *entry*. A script writes it in the same atomic step as the changes that it
//! records. Its id is `<epoch>-<seq>`, where `seq` counts 1, 2, 3, … without gaps; the element
//! `<epoch>-0` opens the epoch. Field `p` is the payload (MessagePack: version, kind, decided_at,
//! facts). Field `t` is the tip, `sha1(previous tip · payload)` in hex, so the log is a hash chain.
//! Field `x`, if present, holds traces of the requests. An entry is trimmed after the reconciler
//! has applied it and the cursor is well past it.
//!
//! [`entry`] decodes entries into facts ([`crate::domain::fact`]) and checks the chain, [`reader`]
//! reads them from Redis, and [`told`] describes them for operators.

pub mod entry;
pub mod reader;
pub mod told;

pub use entry::{Entry, EntryError, RawEntry};
