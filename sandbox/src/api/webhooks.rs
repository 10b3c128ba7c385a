//! Managing webhook subscriptions and their secrets.

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::{Extension, Json};
use serde_json::{Value, json};

use super::body::{self, BodySchema};
use crate::account::Account;
use crate::app_state::AppState;
use crate::problem::{JsonResult, Problem};
use crate::webhooks::{NewSubscription, Subscription, SubscriptionUpdate};

type NoContent = Result<StatusCode, Problem>;

/// `GET /webhooks/events`
pub(super) async fn events(State(state): State<Arc<AppState>>) -> Json<Value> {
    let offered = state
        .dispatcher
        .with_subscriptions(|subscriptions| subscriptions.offered().to_vec());
    Json(json!([{ "model": "PaymentIntent", "events": offered }]))
}

/// `GET /webhooks`
pub(super) async fn list(
    State(state): State<Arc<AppState>>,
    Extension(account): Extension<Account>,
) -> Json<Value> {
    Json(state.dispatcher.with_subscriptions(|subscriptions| {
        let own: Vec<_> = subscriptions.of(&account).collect();
        json!(own)
    }))
}

/// `POST /webhooks`
pub(super) async fn subscribe(
    State(state): State<Arc<AppState>>,
    Extension(account): Extension<Account>,
    bytes: Bytes,
) -> JsonResult {
    let new: NewSubscription = body::read(BodySchema::Subscription, &bytes)?;
    let now = state.clock.now();
    state.dispatcher.with_subscriptions(|subscriptions| {
        let subscription = subscriptions.subscribe(Some(account), new, None, now)?;
        Ok(Json(json!(subscription)))
    })
}

/// `PATCH /webhooks/{id}`
pub(super) async fn update(
    State(state): State<Arc<AppState>>,
    Path(id): Path<String>,
    bytes: Bytes,
) -> JsonResult {
    let update: SubscriptionUpdate = body::read(BodySchema::SubscriptionUpdate, &bytes)?;
    let now = state.clock.now();
    state.dispatcher.with_subscriptions(|subscriptions| {
        Ok(Json(json!(subscriptions.update(&id, update, now)?)))
    })
}

/// `DELETE /webhooks/{id}`
pub(super) async fn unsubscribe(
    State(state): State<Arc<AppState>>,
    Path(id): Path<String>,
) -> NoContent {
    state
        .dispatcher
        .with_subscriptions(|subscriptions| subscriptions.remove(&id))?;
    Ok(StatusCode::NO_CONTENT)
}

/// `GET /webhooks/{id}/secrets`
pub(super) async fn secrets(
    State(state): State<Arc<AppState>>,
    Path(id): Path<String>,
) -> JsonResult {
    state
        .dispatcher
        .with_subscriptions(|subscriptions| Ok(secrets_json(subscriptions.find(&id)?)))
}

/// `POST /webhooks/{id}/secrets`
pub(super) async fn generate_secret(
    State(state): State<Arc<AppState>>,
    Path(id): Path<String>,
) -> JsonResult {
    let now = state.clock.now();
    state.dispatcher.with_subscriptions(|subscriptions| {
        Ok(secrets_json(subscriptions.generate_secret(&id, now)?))
    })
}

/// `PUT /webhooks/{id}/secrets/{secretId}/activate`
pub(super) async fn activate_secret(
    State(state): State<Arc<AppState>>,
    Path((id, secret)): Path<(String, String)>,
) -> NoContent {
    state
        .dispatcher
        .with_subscriptions(|subscriptions| subscriptions.activate_secret(&id, &secret))?;
    Ok(StatusCode::NO_CONTENT)
}

/// `DELETE /webhooks/{id}/secrets/{secretId}`
pub(super) async fn delete_secret(
    State(state): State<Arc<AppState>>,
    Path((id, secret)): Path<(String, String)>,
) -> NoContent {
    state
        .dispatcher
        .with_subscriptions(|subscriptions| subscriptions.remove_secret(&id, &secret))?;
    Ok(StatusCode::NO_CONTENT)
}

fn secrets_json(subscription: &Subscription) -> Json<Value> {
    Json(json!({ "id": subscription.id, "secrets": subscription.secrets }))
}
