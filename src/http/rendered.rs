//! Cache of catalogue pages as JSON with their tags, keyed by the gate's reply: equal replies are
//! rendered and hashed once. The gate is still asked for each request, so cached pages are never
//! stale.
//!
//! The cache evicts by size in bytes, of keys and bodies.

use quick_cache::Weighter;
use quick_cache::sync::Cache;

use super::etag::Tagged;
use super::problem::Problem;
use crate::config::bounds::{RENDERED_PAGES, RENDERED_PAGES_BYTES};
use crate::gate::PackedProducts;

/// The gate's reply, and the page's limit.
type Key = (PackedProducts, usize);

#[derive(Clone)]
struct ByBytes;

impl Weighter<Key, Tagged> for ByBytes {
    fn weight(&self, (told, _): &Key, page: &Tagged) -> u64 {
        (told.byte_len() + page.byte_len()) as u64
    }
}

pub struct RenderedPages(Cache<Key, Tagged, ByBytes>);

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
        render: impl FnOnce(&PackedProducts) -> Result<Tagged, Problem>,
    ) -> Result<Tagged, Problem> {
        let key = (told, limit);
        if let Some(page) = self.0.get(&key) {
            return Ok(page);
        }
        let page = render(&key.0)?;
        self.0.insert((key.0.alone(), limit), page.clone());
        Ok(page)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    #[test]
    fn a_kept_page_does_not_hold_what_was_told_to_others() {
        let whole = Bytes::from(b"a page, and what the gate told to others".to_vec());
        let (pages, told) = (RenderedPages::default(), PackedProducts::of(whole.slice(..6)));
        let page = pages.get_or(told.clone(), 6, |_| Ok(Tagged::new(b"[]".to_vec()))).unwrap();
        let again = pages.get_or(told, 6, |_| panic!("it is kept")).unwrap();
        assert_eq!(page.body, again.body);
        assert!(whole.is_unique());
    }
}
