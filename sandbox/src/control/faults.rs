//! Faults in API calls and in webhook deliveries.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde_json::{Value, json};

use super::body::Body;
use crate::app_state::AppState;
use crate::faults::Fault;
use crate::problem::{JsonResult, Problem};
use crate::webhooks::{RetryPolicy, WebhookFault};

/// `GET /_sandbox/faults`
pub(super) async fn list(State(state): State<Arc<AppState>>) -> Json<Value> {
    Json(json!(state.faults().all()))
}

/// `POST /_sandbox/faults`
pub(super) async fn add(
    State(state): State<Arc<AppState>>,
    Body(fault): Body<Fault>,
) -> JsonResult {
    let fault = fault.validated().map_err(Problem::bad_request)?;
    let json = json!(fault);
    state.faults().add(fault);
    Ok(Json(json))
}

/// `DELETE /_sandbox/faults`
pub(super) async fn clear(State(state): State<Arc<AppState>>) -> StatusCode {
    state.faults().clear();
    StatusCode::NO_CONTENT
}

/// `GET /_sandbox/webhook-faults`
pub(super) async fn list_webhook(State(state): State<Arc<AppState>>) -> Json<Value> {
    Json(json!(state.dispatcher.faults()))
}

/// `POST /_sandbox/webhook-faults`
pub(super) async fn add_webhook(
    State(state): State<Arc<AppState>>,
    Body(fault): Body<WebhookFault>,
) -> JsonResult {
    let fault = fault.validated().map_err(Problem::bad_request)?;
    let json = json!(fault);
    state.dispatcher.add_fault(fault);
    Ok(Json(json))
}

/// `DELETE /_sandbox/webhook-faults`
pub(super) async fn clear_webhook(State(state): State<Arc<AppState>>) -> StatusCode {
    state.dispatcher.clear_faults();
    StatusCode::NO_CONTENT
}

/// `GET /_sandbox/webhook-retries`
pub(super) async fn retries(State(state): State<Arc<AppState>>) -> Json<Value> {
    Json(json!(state.dispatcher.retry_policy()))
}

/// `POST /_sandbox/webhook-retries`: affects new deliveries only.
pub(super) async fn set_retries(
    State(state): State<Arc<AppState>>,
    Body(policy): Body<RetryPolicy>,
) -> JsonResult {
    policy.check().map_err(Problem::bad_request)?;
    state.dispatcher.set_retry_policy(policy);
    Ok(Json(json!(policy)))
}
