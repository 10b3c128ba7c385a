//! Setting what goes wrong.

use std::sync::Arc;

use axum::Json;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::StatusCode;
use serde_json::{Value, json};

use super::{JsonResult, read};
use crate::faults::Fault;
use crate::problem::Problem;
use crate::webhooks::{RetryPolicy, WebhookFault};
use crate::world::World;

/// `GET /_sandbox/faults`
pub(super) async fn list(State(world): State<Arc<World>>) -> Json<Value> {
    Json(json!(world.faults().all()))
}

/// `POST /_sandbox/faults`
pub(super) async fn add(State(world): State<Arc<World>>, bytes: Bytes) -> JsonResult {
    let fault = read::<Fault>(&bytes)?
        .checked()
        .map_err(Problem::bad_request)?;
    let shown = json!(fault);
    world.faults().add(fault);
    Ok(Json(shown))
}

/// `DELETE /_sandbox/faults`
pub(super) async fn clear(State(world): State<Arc<World>>) -> StatusCode {
    world.faults().clear();
    StatusCode::NO_CONTENT
}

/// `GET /_sandbox/webhook-faults`
pub(super) async fn list_webhook(State(world): State<Arc<World>>) -> Json<Value> {
    Json(json!(world.courier.faults()))
}

/// `POST /_sandbox/webhook-faults`
pub(super) async fn add_webhook(State(world): State<Arc<World>>, bytes: Bytes) -> JsonResult {
    let fault = read::<WebhookFault>(&bytes)?
        .checked()
        .map_err(Problem::bad_request)?;
    let shown = json!(fault);
    world.courier.add_fault(fault);
    Ok(Json(shown))
}

/// `DELETE /_sandbox/webhook-faults`
pub(super) async fn clear_webhook(State(world): State<Arc<World>>) -> StatusCode {
    world.courier.clear_faults();
    StatusCode::NO_CONTENT
}

/// `GET /_sandbox/webhook-retries`
pub(super) async fn retries(State(world): State<Arc<World>>) -> Json<Value> {
    Json(json!(world.courier.retry_policy()))
}

/// `POST /_sandbox/webhook-retries`: for deliveries from now on.
pub(super) async fn set_retries(State(world): State<Arc<World>>, bytes: Bytes) -> JsonResult {
    let policy: RetryPolicy = read(&bytes)?;
    policy.check().map_err(Problem::bad_request)?;
    world.courier.set_retry_policy(policy);
    Ok(Json(json!(policy)))
}
