//! The documentation at `/docs`: the OpenAPI document and the types of problems, as pages.
//!
//! They are rendered once, when the service starts. Nothing in them comes from elsewhere and none of it is a script, so they
//! work without the internet and without JavaScript, and their content security policy allows nothing but their own style.

mod problems;
mod reference;
mod sample;
mod schema;
mod text;

use askama::Template;
use axum::{
    Router,
    extract::State,
    http::header,
    response::{Html, IntoResponse, Redirect},
    routing::get,
};
use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::AppState;

/// The style of every page. It stands in their heads, so that a page is a single file.
const STYLE: &str = include_str!("../../../templates/docs/style.css");

/// The pages, as they are served.
pub(super) struct Pages {
    reference: String,
    problems: String,
    policy: String,
}

impl Pages {
    /// The pages about the API that this OpenAPI document describes.
    pub(super) fn new(document: &Value) -> askama::Result<Self> {
        let style = STANDARD.encode(Sha256::digest(STYLE));
        Ok(Self {
            reference: reference::Page::new(document).render()?,
            problems: problems::Page::new(document).render()?,
            policy: format!(
                "default-src 'none'; style-src 'sha256-{style}'; img-src data:; base-uri 'none'; \
                 form-action 'none'; frame-ancestors 'none'"
            ),
        })
    }

    fn answer(&self, page: &str) -> impl IntoResponse + use<> {
        let headers = [
            (header::CONTENT_SECURITY_POLICY, self.policy.clone()),
            (header::X_CONTENT_TYPE_OPTIONS, "nosniff".to_owned()),
            (header::REFERRER_POLICY, "no-referrer".to_owned()),
            // The next version of the service has other pages at the same addresses.
            (header::CACHE_CONTROL, "no-cache".to_owned()),
        ];
        (headers, Html(page.to_owned()))
    }
}

pub(super) fn routes() -> Router<AppState> {
    Router::new()
        .route(
            "/docs",
            get(async |State(state): State<AppState>| state.docs.answer(&state.docs.reference)),
        )
        .route(
            "/docs/problems",
            get(async |State(state): State<AppState>| state.docs.answer(&state.docs.problems)),
        )
        .route("/docs/", get(async || Redirect::permanent("/docs")))
}
