//! `/_sandbox`: what a test or a demo uses to pay, to break things and to look inside. JSON, no key.

mod faults;
mod intents;
mod records;
mod time;

use std::sync::Arc;

use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::problem::Problem;
use crate::world::World;

type JsonResult = Result<Json<Value>, Problem>;

pub(crate) fn routes(world: Arc<World>) -> Router {
    Router::new()
        .route("/health", get(async || Json(json!({ "status": "ok" }))))
        .route("/payment-intents", get(intents::list).post(intents::add))
        .route("/payment-intents/{id}/pay", post(intents::pay))
        .route("/payment-intents/{id}/decline", post(intents::decline))
        .route("/payment-intents/{id}/challenge", post(intents::challenge))
        .route("/payment-intents/{id}/expire", post(intents::expire))
        .route("/payment-intents/{id}/refund", post(intents::refund))
        .route("/payment-intents/{id}/status", post(intents::force_status))
        .route("/payment-intents/{id}/amount", post(intents::force_amount))
        .route("/clock", get(time::clock).post(time::advance))
        .route(
            "/search-lag",
            get(time::search_lag).post(time::set_search_lag),
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
        .fallback(async || Problem::not_found("The sandbox has no such control."))
        .method_not_allowed_fallback(async || {
            Problem::new(
                StatusCode::METHOD_NOT_ALLOWED,
                "This control does not know this method.",
            )
        })
        .with_state(world)
}

/// Reads a body, whatever its content type says.
fn read<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Problem> {
    serde_json::from_slice(bytes).map_err(|error| Problem::bad_request(error.to_string()))
}

/// Reads a body that may be left out.
fn read_or_default<T: DeserializeOwned + Default>(bytes: &[u8]) -> Result<T, Problem> {
    if bytes.is_empty() {
        Ok(T::default())
    } else {
        read(bytes)
    }
}
