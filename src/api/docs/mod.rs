//! The documentation at `/docs`: the OpenAPI document and the problem types, as pages.
//!
//! They are rendered once, when they are first requested. They contain no scripts and load nothing, so they work without
//! the internet and without JavaScript, and their content security policy allows nothing but their own style.

mod problems;
mod reference;
mod sample;
mod schema;
mod text;

use std::sync::{LazyLock, OnceLock};

use askama::Template;
use axum::{
    Router,
    http::header,
    response::{Html, IntoResponse, Redirect},
    routing::get,
};

use super::{body::Document, page_policy::page_policy};

/// The routes of the pages about the API that this OpenAPI document describes.
pub(super) fn routes<S: Clone + Send + Sync + 'static>(document: Document) -> Router<S> {
    static REFERENCE: OnceLock<String> = OnceLock::new();
    static PROBLEMS: OnceLock<String> = OnceLock::new();
    let reference = move || page(reference::Page::new(document()).render());
    let problems = move || page(problems::Page::new(document()).render());
    Router::new()
        .route(
            "/docs",
            get(async move || response(REFERENCE.get_or_init(reference))),
        )
        .route(
            "/docs/problems",
            get(async move || response(PROBLEMS.get_or_init(problems))),
        )
        .route("/docs/", get(async || Redirect::permanent("/docs")))
}

fn page(rendered: askama::Result<String>) -> String {
    rendered.expect("the templates render, and a test reads the pages")
}

fn response(page: &'static str) -> impl IntoResponse {
    static POLICY: LazyLock<String> = LazyLock::new(|| page_policy(text::STYLE));
    let headers = [
        (header::CONTENT_SECURITY_POLICY, POLICY.as_str()),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        // The next version of the service has other pages at the same URLs.
        (header::CACHE_CONTROL, "no-cache"),
    ];
    (headers, Html(page))
}
