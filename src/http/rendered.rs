//! Pages of the catalogue as JSON, kept by what the gate told: equal answers are rendered once. What a client reads is
//! as fresh as without it, for the gate is asked each time.

use bytes::Bytes;
use quick_cache::Weighter;
use quick_cache::sync::Cache;

use super::problem::Problem;
use crate::config::bounds::{RENDERED_PAGES, RENDERED_PAGES_BYTES};
use crate::gate::PackedProducts;

/// What the gate told, and the limit of the page.
type Key = (PackedProducts, usize);

#[derive(Clone)]
struct ByBytes;

impl Weighter<Key, Bytes> for ByBytes {
    fn weight(&self, (told, _): &Key, body: &Bytes) -> u64 {
        (told.byte_len() + body.len()) as u64
    }
}

pub struct RenderedPages(Cache<Key, Bytes, ByBytes>);

impl Default for RenderedPages {
    fn default() -> Self {
        Self(Cache::with_weighter(RENDERED_PAGES, RENDERED_PAGES_BYTES, ByBytes))
    }
}

impl RenderedPages {
    pub fn get_or(
        &self,
        told: PackedProducts,
        limit: usize,
        render: impl FnOnce(&PackedProducts) -> Result<Vec<u8>, Problem>,
    ) -> Result<Bytes, Problem> {
        let key = (told, limit);
        if let Some(body) = self.0.get(&key) {
            return Ok(body);
        }
        let body = Bytes::from(render(&key.0)?);
        self.0.insert(key, body.clone());
        Ok(body)
    }
}
