//! Extractors: what handlers take from a request. Each refuses what the API's contract refuses: 400
//! for a part that cannot be read, 422 with the field's name for a part that was read and is not
//! acceptable.

mod body;
mod idempotency_key;
mod json;
mod path;
mod percent;
mod query;

pub use body::{Json, NoBody};
pub use idempotency_key::{IdempotencyKeyParam, Key};
pub use json::parse_json;
pub use path::{EntryId, Identifier, PathId, identify};
pub use query::{NoQuery, Page, PageParams, Query};
