//! Managing webhook subscriptions and their secrets.

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::{Extension, Json};
use serde::Deserialize;
use serde_json::{Value, json};

use super::JsonResult;
use super::body::{self, Shape};
use crate::account::Account;
use crate::problem::Problem;
use crate::webhooks::{SubscribeError, Subscription};
use crate::world::World;

type NoContent = Result<StatusCode, Problem>;

#[derive(Debug, Deserialize)]
struct Subscribe {
    events: Vec<String>,
    url: String,
    description: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Update {
    events: Option<Vec<String>>,
    url: Option<String>,
    description: Option<String>,
}

/// `GET /webhooks/events`
pub(super) async fn events(State(world): State<Arc<World>>) -> Json<Value> {
    let offered = world
        .courier
        .with_subscriptions(|all| all.offered().to_vec());
    Json(json!([{ "model": "PaymentIntent", "events": offered }]))
}

/// `GET /webhooks`
pub(super) async fn list(
    State(world): State<Arc<World>>,
    Extension(account): Extension<Account>,
) -> Json<Value> {
    Json(world.courier.with_subscriptions(|all| {
        let own: Vec<_> = all.of(&account).collect();
        json!(own)
    }))
}

/// `POST /webhooks`
pub(super) async fn subscribe(
    State(world): State<Arc<World>>,
    Extension(account): Extension<Account>,
    bytes: Bytes,
) -> JsonResult {
    let Subscribe {
        events,
        url,
        description,
    } = body::read(Shape::Subscription, &bytes)?;
    let now = world.clock.now();
    world
        .courier
        .with_subscriptions(|all| {
            all.subscribe(Some(account), events, url, description, None, now)
                .map(shown)
        })
        .map_err(problem)
}

/// `PATCH /webhooks/{id}`
pub(super) async fn update(
    State(world): State<Arc<World>>,
    Path(id): Path<String>,
    bytes: Bytes,
) -> JsonResult {
    let Update {
        events,
        url,
        description,
    } = body::read(Shape::SubscriptionUpdate, &bytes)?;
    let now = world.clock.now();
    world
        .courier
        .with_subscriptions(|all| all.update(&id, events, url, description, now).map(shown))
        .map_err(problem)
}

/// `DELETE /webhooks/{id}`
pub(super) async fn unsubscribe(
    State(world): State<Arc<World>>,
    Path(id): Path<String>,
) -> NoContent {
    no_content(world.courier.with_subscriptions(|all| all.remove(&id)))
}

/// `GET /webhooks/{id}/secrets`
pub(super) async fn secrets(State(world): State<Arc<World>>, Path(id): Path<String>) -> JsonResult {
    world
        .courier
        .with_subscriptions(|all| all.find(&id).map(shown_secrets))
        .map_err(problem)
}

/// `POST /webhooks/{id}/secrets`
pub(super) async fn generate_secret(
    State(world): State<Arc<World>>,
    Path(id): Path<String>,
) -> JsonResult {
    let now = world.clock.now();
    world
        .courier
        .with_subscriptions(|all| all.generate_secret(&id, now).map(shown_secrets))
        .map_err(problem)
}

/// `PUT /webhooks/{id}/secrets/{secretId}/activate`
pub(super) async fn activate_secret(
    State(world): State<Arc<World>>,
    Path((id, secret)): Path<(String, String)>,
) -> NoContent {
    no_content(
        world
            .courier
            .with_subscriptions(|all| all.activate_secret(&id, &secret)),
    )
}

/// `DELETE /webhooks/{id}/secrets/{secretId}`
pub(super) async fn delete_secret(
    State(world): State<Arc<World>>,
    Path((id, secret)): Path<(String, String)>,
) -> NoContent {
    no_content(
        world
            .courier
            .with_subscriptions(|all| all.remove_secret(&id, &secret)),
    )
}

fn shown(subscription: &Subscription) -> Json<Value> {
    Json(json!(subscription))
}

fn shown_secrets(subscription: &Subscription) -> Json<Value> {
    Json(json!({ "id": subscription.id, "secrets": subscription.secrets }))
}

fn no_content(result: Result<(), SubscribeError>) -> NoContent {
    result.map(|()| StatusCode::NO_CONTENT).map_err(problem)
}

pub(super) fn no_such_subscription() -> Problem {
    Problem::not_found("There is no such subscription or secret.")
}

fn problem(error: SubscribeError) -> Problem {
    match error {
        SubscribeError::UnknownEvent(name) => {
            Problem::invalid_field("Events", format!("This account has no event {name}."))
        }
        SubscribeError::Taken(name) => Problem::conflict(format!(
            "This account has a subscription to {name} already."
        )),
        SubscribeError::NotFound => no_such_subscription(),
        SubscribeError::TooManySecrets => {
            Problem::conflict("The subscription has as many secrets as it can hold.")
        }
    }
}
