//! The log: one Redis Stream per cell and epoch, `rg:{<cell>}:<epoch>:log`.
//!
//! Each element is an *entry*. A script writes it in the same atomic step as the changes that it
//! records. Its id is `<epoch>-<seq>`, where `seq` counts 1, 2, 3, … without gaps; the element
//! `<epoch>-0` opens the epoch. Field `p` is the payload (MessagePack: version, kind, decided_at,
//! facts). Field `t` is the tip, `sha1(previous tip · payload)` in hex, so the log is a hash chain.
//! Field `x`, if present, holds traces of the requests. An entry is trimmed after the reconciler
//! has applied it and the cursor is well past it.
//!
//! [`wire`] is the encoding, [`fact`] the contents of entries, [`entry`] decodes them and checks
//! the chain, and [`reader`] reads them from Redis.

pub mod admin;
pub mod entry;
pub mod fact;
pub mod reader;
pub mod told;
pub mod wire;

pub use entry::{Entry, EntryError, RawEntry};
