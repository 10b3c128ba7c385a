//! The style sheet and the script of all pages.

use std::sync::LazyLock;

use axum::{
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};
use sha2::{Digest, Sha256};

const STYLE: &str = include_str!("../../templates/console/style.css");
const SCRIPT: &str = include_str!("../../templates/console/console.js");

/// A file that is part of the program.
struct Asset {
    kind: &'static str,
    content: &'static str,
    tag: String,
}

impl Asset {
    fn new(kind: &'static str, content: &'static str) -> Self {
        let hash = Sha256::digest(content);
        Self {
            kind,
            content,
            tag: format!("\"{}\"", hex::encode(&hash[..16])),
        }
    }

    fn response(&'static self, headers: &HeaderMap) -> Response {
        let described = [
            (header::CONTENT_TYPE, self.kind),
            (header::ETAG, self.tag.as_str()),
            // The next version of the service has another one at the same path.
            (header::CACHE_CONTROL, "no-cache"),
        ];
        let known = headers.get(header::IF_NONE_MATCH);
        if known.is_some_and(|known| known == self.tag.as_str()) {
            (StatusCode::NOT_MODIFIED, described).into_response()
        } else {
            (described, self.content).into_response()
        }
    }
}

pub(super) async fn style(headers: HeaderMap) -> Response {
    static ASSET: LazyLock<Asset> = LazyLock::new(|| Asset::new("text/css; charset=utf-8", STYLE));
    ASSET.response(&headers)
}

pub(super) async fn script(headers: HeaderMap) -> Response {
    static ASSET: LazyLock<Asset> =
        LazyLock::new(|| Asset::new("text/javascript; charset=utf-8", SCRIPT));
    ASSET.response(&headers)
}
