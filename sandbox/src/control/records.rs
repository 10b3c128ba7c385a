//! What was sent and what was received; and sending what Dojo never would.

use std::sync::Arc;

use axum::Json;
use axum::body::Bytes;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{JsonResult, read};
use crate::faults::Operation;
use crate::problem::Problem;
use crate::webhooks::{Event, SubscribeError};
use crate::world::World;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Deliver {
    payment_intent_id: String,
    status: String,
    event: Option<String>,
}

/// `POST /_sandbox/webhooks/deliver`: a properly signed event that says whatever it is told to.
pub(super) async fn deliver(State(world): State<Arc<World>>, bytes: Bytes) -> JsonResult {
    let Deliver {
        payment_intent_id,
        status,
        event,
    } = read(&bytes)?;
    let now = world.clock.now();
    world
        .with_ledger(|ledger| {
            let intent = ledger.find(&payment_intent_id)?;
            let event = Event::claim(intent, event.as_deref(), &status, now);
            let id = event.id.clone();
            ledger.announce(event);
            Some(id)
        })
        .map(|id| Json(json!({ "eventId": id })))
        .ok_or_else(|| Problem::not_found("There is no payment intent with this id."))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Offer {
    events: Vec<String>,
}

/// `GET /_sandbox/offered-events`: the events that can be subscribed to.
pub(super) async fn offered(State(world): State<Arc<World>>) -> Json<Value> {
    let offered = world
        .courier
        .with_subscriptions(|all| all.offered().to_vec());
    Json(json!({ "events": offered }))
}

/// `POST /_sandbox/offered-events`: an account that offers these alone. What is subscribed stays.
pub(super) async fn offer(State(world): State<Arc<World>>, bytes: Bytes) -> JsonResult {
    let Offer { events } = read(&bytes)?;
    let offered = world.courier.with_subscriptions(|all| {
        all.offer(&events)?;
        Ok(all.offered().to_vec())
    });
    offered
        .map(|offered| Json(json!({ "events": offered })))
        .map_err(|_: SubscribeError| {
            Problem::bad_request("There is an event that Dojo does not have.")
        })
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct NewSecrets {
    sign: bool,
}

/// `POST /_sandbox/new-secrets`: whether a new secret signs from the start.
pub(super) async fn new_secrets(State(world): State<Arc<World>>, bytes: Bytes) -> JsonResult {
    let NewSecrets { sign } = read(&bytes)?;
    world
        .courier
        .with_subscriptions(|all| all.let_new_secrets_sign(sign));
    Ok(Json(json!({ "sign": sign })))
}

/// `GET /_sandbox/deliveries`: every delivery, oldest first.
pub(super) async fn deliveries(State(world): State<Arc<World>>) -> Json<Value> {
    Json(json!(world.courier.deliveries()))
}

/// `POST /_sandbox/deliveries/{eventId}/redeliver`: the same event once more.
pub(super) async fn redeliver(
    State(world): State<Arc<World>>,
    Path(event_id): Path<String>,
) -> Result<StatusCode, Problem> {
    if world.courier.redeliver(&event_id) {
        Ok(StatusCode::ACCEPTED)
    } else {
        Err(Problem::not_found("There is no delivery of this event."))
    }
}

#[derive(Debug, Deserialize)]
pub(super) struct RequestsQuery {
    operation: Option<Operation>,
}

/// `GET /_sandbox/requests`: the API calls received, oldest first; `?operation=create` keeps those.
pub(super) async fn requests(
    State(world): State<Arc<World>>,
    Query(query): Query<RequestsQuery>,
) -> Json<Value> {
    let requests = world.requests();
    let wanted = requests.all().filter(|entry| {
        query
            .operation
            .is_none_or(|operation| entry.operation == operation)
    });
    Json(json!(wanted.collect::<Vec<_>>()))
}

/// `DELETE /_sandbox/requests`
pub(super) async fn clear_requests(State(world): State<Arc<World>>) -> StatusCode {
    world.requests().clear();
    StatusCode::NO_CONTENT
}
