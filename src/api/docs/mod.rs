//! The documentation at `/docs`: the OpenAPI document and the problem types, as pages.
//!
//! They are rendered once, when the service starts. They contain no scripts and load nothing, so they work without the internet
//! and without JavaScript, and their content security policy allows nothing but their own style.

mod problems;
mod reference;
mod sample;
mod schema;
mod text;

use std::sync::Arc;

use askama::Template;
use axum::{
    Router,
    http::header,
    response::{Html, IntoResponse, Redirect},
    routing::get,
};
use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::Value;
use sha2::{Digest, Sha256};

/// The routes of the pages about the API that this OpenAPI document describes.
pub(super) fn routes<S: Clone + Send + Sync + 'static>(document: &Value) -> Router<S> {
    let style = STANDARD.encode(Sha256::digest(text::STYLE));
    let policy: Arc<str> = Arc::from(format!(
        "default-src 'none'; style-src 'sha256-{style}'; img-src data:; base-uri 'none'; form-action 'none'; \
         frame-ancestors 'none'"
    ));
    let route = |page: askama::Result<String>| {
        let page: Arc<str> =
            Arc::from(page.expect("the templates render, and a test reads the pages"));
        let policy = Arc::clone(&policy);
        get(async move || response(&page, &policy))
    };
    Router::new()
        .route("/docs", route(reference::Page::new(document).render()))
        .route(
            "/docs/problems",
            route(problems::Page::new(document).render()),
        )
        .route("/docs/", get(async || Redirect::permanent("/docs")))
}

fn response(page: &str, policy: &str) -> impl IntoResponse + use<> {
    let headers = [
        (header::CONTENT_SECURITY_POLICY, policy.to_owned()),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff".to_owned()),
        (header::REFERRER_POLICY, "no-referrer".to_owned()),
        // The next version of the service has other pages at the same URLs.
        (header::CACHE_CONTROL, "no-cache".to_owned()),
    ];
    (headers, Html(page.to_owned()))
}
