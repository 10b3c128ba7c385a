//! The REST API: routes, one file per resource with its request and response types.

mod anonymous;
pub mod auth;
mod body;
mod callback_endpoints;
mod client_types;
mod customer_page;
mod daily_reconciliations;
mod docs;
mod erasure;
mod error;
mod events;
mod examples;
mod idempotency;
mod known_keys;
mod messages;
mod metadata_entry;
mod movements;
mod observe;
mod openapi;
mod openapi_3_0;
mod operations;
mod page_policy;
mod payment_links;
mod performed_operation;
mod problem;
mod problem_type;
mod query;
mod rates;
mod responses;
mod scope;
mod service;
mod sharing;
mod sort;
mod state;
mod webhooks;
mod write_request;

use std::{
    sync::{Arc, LazyLock},
    time::Duration,
};

use axum::{
    Router,
    extract::{DefaultBodyLimit, Request},
    http::{HeaderValue, StatusCode, header},
    middleware::{Next, from_fn, from_fn_with_state},
    response::Response,
};
use serde_json::Value;
use tower_http::{catch_panic::CatchPanicLayer, timeout::TimeoutLayer};
use utoipa_axum::router::OpenApiRouter;

use anonymous::AnonymousRequests;
pub(crate) use auth::Authenticated;
use error::Error;
pub(crate) use events::wait_for_events;
pub(crate) use observe::{FailureCause, REQUEST_ID, RequestId, Sender};
pub use openapi_3_0::NotIn30;
pub(crate) use problem::{ForPeople, Problem};
pub use state::{AppState, Background};

/// The routes for callers.
fn for_callers() -> OpenApiRouter<AppState> {
    payment_links::routes()
        .merge(operations::routes())
        .merge(sharing::routes())
        .merge(messages::routes())
        .merge(erasure::routes())
        .merge(movements::routes())
        .merge(daily_reconciliations::routes())
        .merge(events::routes())
        .merge(callback_endpoints::routes())
}

/// The routes that the OpenAPI document describes, and the document.
fn documented() -> OpenApiRouter<AppState> {
    OpenApiRouter::with_openapi(openapi::header())
        .merge(for_callers())
        .merge(webhooks::routes())
        .merge(service::routes())
}

/// The OpenAPI document. It is made when it is first needed.
#[must_use]
pub fn document() -> &'static Value {
    static DOCUMENT: LazyLock<Value> =
        LazyLock::new(|| openapi::complete(documented().into_openapi()));
    &DOCUMENT
}

/// The OpenAPI document as YAML, as it is in `openapi.yaml`.
#[must_use]
pub fn document_yaml() -> String {
    openapi::to_yaml(document())
}

/// The OpenAPI document in OpenAPI 3.0, as YAML.
///
/// # Errors
///
/// If the document uses what OpenAPI 3.0 can't express. A test converts the document, so this doesn't happen.
pub fn document_3_0_yaml() -> Result<String, NotIn30> {
    openapi_3_0::convert(document().clone()).map(|document| openapi::to_yaml(&document))
}

/// The whole API, for a service that listens on one address.
pub fn router(state: AppState) -> Router {
    let (routes, _) = documented().split_for_parts();
    let pages = docs::routes(document).merge(customer_page::routes());
    complete(routes.merge(pages), state)
}

/// What is served on the public address: the webhooks, short addresses, and `/healthz` for a load balancer.
pub fn public_router(state: AppState) -> Router {
    let (routes, _) = webhooks::routes()
        .merge(service::liveness())
        .split_for_parts();
    complete(routes.merge(customer_page::routes()), state)
}

/// What is served on the other address if there is a public one: everything but the webhooks and short addresses.
pub fn internal_router(state: AppState) -> Router {
    let (routes, _) = for_callers().merge(service::routes()).split_for_parts();
    complete(routes.merge(docs::routes(document)), state)
}

/// Adds what every listener has: the response to unknown paths, and what [`guarded`] adds.
fn complete(routes: Router<AppState>, state: AppState) -> Router {
    // Handlers that create something watch the time themselves, because their response must include an id. This limit is
    // for everything else.
    let request_timeout = state.request_timeout + Duration::from_secs(2);
    let anonymous = Arc::clone(&state.anonymous);
    let routes = routes.fallback(async || Error::NotFound).with_state(state);
    guarded(routes, request_timeout, anonymous)
}

/// Adds to the routes of the console what those of the API have.
pub(crate) fn guard_console(routes: Router, state: &AppState) -> Router {
    // Longer than the requests to the API that a page waits for.
    let request_timeout = state.request_timeout + Duration::from_secs(5);
    let routes = routes.fallback(async || Error::NotFound);
    guarded(routes, request_timeout, Arc::clone(&state.anonymous))
}

/// Wraps every route: limits, a response to panics, problems, and logging.
fn guarded(routes: Router, request_timeout: Duration, anonymous: Arc<AnonymousRequests>) -> Router {
    routes
        .layer(DefaultBodyLimit::max(body::LIMIT))
        .layer(TimeoutLayer::with_status_code(
            StatusCode::SERVICE_UNAVAILABLE,
            request_timeout,
        ))
        .layer(CatchPanicLayer::custom(
            |_: Box<dyn std::any::Any + Send>| {
                // The panic hook has already logged the message.
                axum::response::IntoResponse::into_response(StatusCode::INTERNAL_SERVER_ERROR)
            },
        ))
        .layer(from_fn(problem::complete))
        .layer(from_fn(forbid_caching))
        .layer(from_fn_with_state(anonymous, observe::observe))
}

/// Forbids proxies and browsers to cache anything that may contain customer data: all API responses and all problems.
async fn forbid_caching(request: Request, next: Next) -> Response {
    let is_api = request.uri().path().starts_with("/v1/");
    let mut response = next.run(request).await;
    let status = response.status();
    if is_api || status.is_client_error() || status.is_server_error() {
        let no_store = HeaderValue::from_static("no-store");
        response
            .headers_mut()
            .insert(header::CACHE_CONTROL, no_store);
    }
    response
}

#[cfg(test)]
mod tests {
    use axum::{body::Body, http::Request, routing::get};
    use tower::ServiceExt;

    use super::*;

    async fn response(routes: Router) -> (StatusCode, serde_json::Value) {
        let request = Request::get("/broken").body(Body::empty()).unwrap();
        let response = guarded(routes, Duration::from_millis(50), Arc::default())
            .oneshot(request)
            .await
            .unwrap();
        let status = response.status();
        assert_eq!(
            response.headers()["content-type"],
            "application/problem+json"
        );
        let body = axum::body::to_bytes(response.into_body(), 10_000)
            .await
            .unwrap();
        (status, serde_json::from_slice(&body).unwrap())
    }

    #[tokio::test]
    async fn a_panic_returns_500_without_its_message() {
        async fn broken() -> &'static str {
            panic!("a secret");
        }
        let (status, problem) = response(Router::new().route("/broken", get(broken))).await;
        assert_eq!(status, StatusCode::INTERNAL_SERVER_ERROR);
        assert!(!problem.to_string().contains("secret"));
        assert_ne!(problem["requestId"], "");
    }

    #[tokio::test]
    async fn a_handler_that_hangs_returns_503() {
        let hangs = get(async || std::future::pending::<&'static str>().await);
        let (status, problem) = response(Router::new().route("/broken", hangs)).await;
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(problem["instance"], "/broken");
    }
}
