//! The files of the pages, built in from `web/pages`.

use std::sync::LazyLock;

use bytes::Bytes;

use crate::http::etag::Tagged;

/// A built-in file.
pub struct Asset {
    /// Path in `web/pages`.
    pub path: &'static str,
    pub content_type: &'static str,
    pub tagged: Tagged,
}

macro_rules! files {
    ($($path:literal)*) => {
        &[$(($path, include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/web/pages/", $path)))),*]
    };
}

/// Every file of `web/pages`, licences included; a test compares this list with the folder.
const FILES: &[(&str, &[u8])] = files! {
    "client/client.js"
    "client/index.js"
    "client/live.js"
    "client/problem.js"
    "client/repeat.js"
    "common/base.css"
    "common/chart.js"
    "common/clock.js"
    "common/description.js"
    "common/html.js"
    "common/i18n.js"
    "common/icon.svg"
    "common/live.js"
    "common/store.js"
    "common/ui.js"
    "console/audit.js"
    "console/catalogue.js"
    "console/console.css"
    "console/find.js"
    "console/forms.js"
    "console/index.html"
    "console/main.js"
    "console/order.js"
    "console/overview.js"
    "console/rush.js"
    "console/state.js"
    "console/texts.js"
    "shop/art.js"
    "shop/basket.js"
    "shop/coupons.js"
    "shop/header.js"
    "shop/index.html"
    "shop/main.js"
    "shop/mine.js"
    "shop/products.js"
    "shop/rush.js"
    "shop/shop.css"
    "shop/state.js"
    "shop/texts.js"
    "vendor/htm.LICENSE"
    "vendor/htm.js"
    "vendor/openapi-fetch.LICENSE"
    "vendor/openapi-fetch.js"
    "vendor/preact-hooks.js"
    "vendor/preact.LICENSE"
    "vendor/preact.js"
};

/// Hashed once, for their tags.
static ASSETS: LazyLock<Vec<Asset>> = LazyLock::new(|| {
    let asset = |&(path, bytes): &(&'static str, &'static [u8])| Asset {
        path,
        content_type: content_type(path),
        tagged: Tagged::new(Bytes::from_static(bytes)),
    };
    FILES.iter().map(asset).collect()
});

/// The file with this path in `web/pages`.
pub fn find(path: &str) -> Option<&'static Asset> {
    ASSETS.iter().find(|asset| asset.path == path)
}

fn content_type(path: &str) -> &'static str {
    match path.rsplit_once('.').map(|(_, end)| end) {
        Some("html") => "text/html; charset=utf-8",
        Some("js") => "text/javascript; charset=utf-8",
        Some("css") => "text/css; charset=utf-8",
        Some("svg") => "image/svg+xml",
        _ => "text/plain; charset=utf-8",
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use super::*;

    /// Paths of the files below `folder`, relative to `top`. Types of the libraries are for `tsc`.
    fn below(folder: &Path, top: &Path) -> BTreeSet<String> {
        let mut paths = BTreeSet::new();
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                paths.extend(below(&path, top));
            } else if !path.to_str().unwrap().ends_with(".d.ts") {
                paths.insert(path.strip_prefix(top).unwrap().to_str().unwrap().to_owned());
            }
        }
        paths
    }

    #[test]
    fn every_file_is_built_in() {
        let top = Path::new(env!("CARGO_MANIFEST_DIR")).join("web/pages");
        let built_in: BTreeSet<String> = FILES.iter().map(|(path, _)| (*path).to_owned()).collect();
        assert_eq!(built_in, below(&top, &top));
        assert!(FILES.iter().all(|(path, bytes)| !bytes.is_empty() && find(path).is_some()));
    }
}
