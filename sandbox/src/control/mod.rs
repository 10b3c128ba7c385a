//! The control API under `/_sandbox`: tests and demos use it to pay, to inject faults and to see what happened. It uses
//! JSON and needs no key.

mod body;
mod faults;
mod intents;
mod key;
mod records;
mod time;
mod transactions;

use std::sync::Arc;

use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::{Json, Router};
use serde_json::json;

use crate::app_state::AppState;
use crate::problem::Problem;

pub(crate) fn routes(state: Arc<AppState>) -> Router {
    Router::new()
        .route("/health", get(async || Json(json!({ "status": "ok" }))))
        .route("/payment-intents", get(intents::list).post(intents::add))
        .route("/payment-intents/{id}/pay", post(intents::pay))
        .route("/payment-intents/{id}/decline", post(intents::decline))
        .route("/payment-intents/{id}/challenge", post(intents::challenge))
        .route("/payment-intents/{id}/expire", post(intents::expire))
        .route("/payment-intents/{id}/refund", post(intents::refund))
        .route("/payment-intents/{id}/status", post(intents::set_status))
        .route("/payment-intents/{id}/amount", post(intents::set_amount))
        .route("/clock", get(time::clock).post(time::advance))
        .route(
            "/search-lag",
            get(time::search_lag).post(time::set_search_lag),
        )
        .route(
            "/transactions",
            get(transactions::list).post(transactions::add),
        )
        .route("/transactions/{id}", post(transactions::change))
        .route(
            "/transaction-lag",
            get(time::transaction_lag).post(time::set_transaction_lag),
        )
        .route(
            "/faults",
            get(faults::list).post(faults::add).delete(faults::clear),
        )
        .route(
            "/webhook-faults",
            get(faults::list_webhook)
                .post(faults::add_webhook)
                .delete(faults::clear_webhook),
        )
        .route(
            "/webhook-retries",
            get(faults::retries).post(faults::set_retries),
        )
        .route(
            "/offered-events",
            get(records::offered).post(records::offer),
        )
        .route("/new-secrets", post(records::new_secrets))
        .route("/webhooks/deliver", post(records::deliver))
        .route("/deliveries", get(records::deliveries))
        .route("/deliveries/{event_id}/redeliver", post(records::redeliver))
        .route(
            "/requests",
            get(records::requests).delete(records::clear_requests),
        )
        .fallback(async || Problem::not_found("The control API has no such path."))
        .method_not_allowed_fallback(async || {
            Problem::new(
                StatusCode::METHOD_NOT_ALLOWED,
                "This path does not support this method.",
            )
        })
        .with_state(state)
}
