//! Dojo's API: the same paths, headers, schemas, statuses and errors.

mod access;
mod body;
mod manage;
mod names;
mod payment_intents;
mod refunds;
mod rejection;
mod search;
mod transactions;
mod version;
mod webhooks;

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware;
use axum::response::Response;
use axum::routing::{delete, get, patch, post, put};

use crate::app_state::AppState;
use crate::problem::Problem;
use crate::traffic;

pub(crate) fn routes(state: Arc<AppState>) -> Router {
    Router::new()
        .route("/payment-intents", post(payment_intents::create))
        .route("/payment-intents/search", post(search::search))
        .route(
            "/payment-intents/{id}",
            get(payment_intents::fetch).delete(payment_intents::cancel),
        )
        .route("/payment-intents/{id}/captures", post(manage::capture))
        .route("/payment-intents/{id}/reversal", post(manage::reverse))
        .route("/payment-intents/{id}/amount", post(manage::set_amount))
        .route("/payment-intents/{id}/tips-amount", post(manage::set_tips))
        .route("/payment-intents/{id}/receipt", post(manage::send_receipt))
        .route("/payment-intents/{id}/refunds", post(refunds::create))
        .route("/payment-intents/refunds/{refund_id}", get(refunds::fetch))
        .route("/transactions/search", post(transactions::search))
        .route("/webhooks/events", get(webhooks::events))
        .route("/webhooks", get(webhooks::list).post(webhooks::subscribe))
        .route(
            "/webhooks/{id}",
            patch(webhooks::update).delete(webhooks::unsubscribe),
        )
        .route(
            "/webhooks/{id}/secrets",
            get(webhooks::secrets).post(webhooks::generate_secret),
        )
        .route(
            "/webhooks/{id}/secrets/{secret}",
            delete(webhooks::delete_secret),
        )
        .route(
            "/webhooks/{id}/secrets/{secret}/activate",
            put(webhooks::activate_secret),
        )
        .fallback(async || {
            Problem::not_found("The sandbox does not implement this path of Dojo's API.")
        })
        .method_not_allowed_fallback(async || {
            Problem::new(
                StatusCode::METHOD_NOT_ALLOWED,
                "This path does not support this method.",
            )
        })
        .layer(middleware::from_fn_with_state(
            Arc::clone(&state),
            access::check_access,
        ))
        .layer(middleware::from_fn_with_state(
            Arc::clone(&state),
            traffic::handle,
        ))
        .layer(middleware::map_response_with_state(
            Arc::clone(&state),
            set_date,
        ))
        .with_state(state)
}

/// `Date` follows the sandbox's clock, unless a fault has set another date.
async fn set_date(State(state): State<Arc<AppState>>, mut response: Response) -> Response {
    if response.headers().contains_key(header::DATE) {
        return response;
    }
    let date = state.clock.now().http_date();
    if let Some(Ok(date)) = date.map(HeaderValue::try_from) {
        response.headers_mut().insert(header::DATE, date);
    }
    response
}
