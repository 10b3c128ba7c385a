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

#[cfg(test)]
mod tests {
    use super::*;

    /// The values that the style sheet gives to a property.
    fn values(property: &str) -> Vec<&'static str> {
        let declarations = STYLE.split(['{', '}', ';']);
        let declarations = declarations.filter_map(|declaration| declaration.split_once(':'));
        declarations
            .filter(|(name, _)| name.trim() == property)
            .map(|(_, value)| value.trim())
            .collect()
    }

    #[test]
    fn every_size_of_text_is_one_of_the_scale() {
        let scale = ["small", "medium", "large", "huge"].map(|name| format!("var(--{name})"));
        let sizes = values("font-size");
        assert!(sizes.len() > 5, "{sizes:?}");
        for size in sizes {
            assert!(scale.contains(&size.to_owned()), "{size}");
        }
        let fonts = values("font");
        assert!(fonts.len() > 2, "{fonts:?}");
        for font in fonts {
            let is_of_scale = scale.iter().any(|size| font.contains(&format!("{size}/")));
            assert!(is_of_scale || font == "inherit", "{font}");
        }
        let rest = STYLE.matches("font-size").count() + STYLE.matches("font:").count();
        assert_eq!(rest, values("font-size").len() + values("font").len());
    }
}
