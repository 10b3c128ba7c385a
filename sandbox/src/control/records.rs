//! The record of webhook deliveries and API calls, and settings of webhooks.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};

use super::body::Body;
use crate::app_state::AppState;
use crate::faults::Operation;
use crate::problem::{JsonResult, Problem};
use crate::webhooks::{Event, SubscriptionError};

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Deliver {
    payment_intent_id: String,
    status: String,
    event: Option<String>,
}

/// `POST /_sandbox/webhooks/deliver`: delivers a correctly signed event with any content.
pub(super) async fn deliver(
    State(state): State<Arc<AppState>>,
    Body(Deliver {
        payment_intent_id,
        status,
        event,
    }): Body<Deliver>,
) -> JsonResult {
    let now = state.clock.now();
    state
        .with_intents(|intents| {
            let intent = intents.find(&payment_intent_id)?;
            let event = Event::forged(intent, event.as_deref(), &status, now);
            let id = event.id.clone();
            intents.announce(event);
            Some(id)
        })
        .map(|id| Json(json!({ "eventId": id })))
        .ok_or_else(|| Problem::not_found("There is no payment intent with this id."))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Offer {
    events: Vec<String>,
}

/// `GET /_sandbox/offered-events`: the events that accounts can subscribe to.
pub(super) async fn offered(State(state): State<Arc<AppState>>) -> Json<Value> {
    let offered = state
        .dispatcher
        .with_subscriptions(|subscriptions| subscriptions.offered().to_vec());
    Json(json!({ "events": offered }))
}

/// `POST /_sandbox/offered-events`: limits the events that accounts can subscribe to. Existing subscriptions stay.
pub(super) async fn offer(
    State(state): State<Arc<AppState>>,
    Body(Offer { events }): Body<Offer>,
) -> JsonResult {
    let offered = state.dispatcher.with_subscriptions(|subscriptions| {
        subscriptions.offer(&events)?;
        Ok(subscriptions.offered().to_vec())
    });
    offered
        .map(|offered| Json(json!({ "events": offered })))
        .map_err(|_: SubscriptionError| {
            Problem::bad_request("events contains an event that Dojo does not have.")
        })
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct NewSecrets {
    sign: bool,
}

/// `POST /_sandbox/new-secrets`: whether a new secret becomes active at once.
pub(super) async fn new_secrets(
    State(state): State<Arc<AppState>>,
    Body(NewSecrets { sign }): Body<NewSecrets>,
) -> JsonResult {
    state
        .dispatcher
        .with_subscriptions(|subscriptions| subscriptions.activate_new_secrets(sign));
    Ok(Json(json!({ "sign": sign })))
}

/// `GET /_sandbox/deliveries`: all deliveries, oldest first.
pub(super) async fn deliveries(State(state): State<Arc<AppState>>) -> Json<Value> {
    Json(json!(state.dispatcher.deliveries()))
}

/// `POST /_sandbox/deliveries/{eventId}/redeliver`: delivers the same event again.
pub(super) async fn redeliver(
    State(state): State<Arc<AppState>>,
    Path(event_id): Path<String>,
) -> Result<StatusCode, Problem> {
    if state.dispatcher.redeliver(&event_id) {
        Ok(StatusCode::ACCEPTED)
    } else {
        Err(Problem::not_found("There is no delivery of this event."))
    }
}

#[derive(Debug, Deserialize)]
pub(super) struct RequestsQuery {
    operation: Option<Operation>,
}

/// `GET /_sandbox/requests`: the API calls received, oldest first. `?operation=create` filters by operation.
pub(super) async fn requests(
    State(state): State<Arc<AppState>>,
    Query(query): Query<RequestsQuery>,
) -> Json<Value> {
    let requests = state.requests();
    let matching = requests.all().filter(|entry| {
        query
            .operation
            .is_none_or(|operation| entry.operation == operation)
    });
    Json(json!(matching.collect::<Vec<_>>()))
}

/// `DELETE /_sandbox/requests`
pub(super) async fn clear_requests(State(state): State<Arc<AppState>>) -> StatusCode {
    state.requests().clear();
    StatusCode::NO_CONTENT
}
