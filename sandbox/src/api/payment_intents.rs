//! Creating, reading and canceling a payment intent.

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::{Path, Query, State};
use axum::{Extension, Json};
use serde::Deserialize;

use super::body::{self, Shape};
use super::version::Version;
use super::{JsonResult, no_such_intent, refused};
use crate::account::Account;
use crate::faults::Operation;
use crate::intents::{
    CreateIntent, Intent, Origin, Status, check_auto_expire_action, check_creation,
};
use crate::world::World;

/// `POST /payment-intents`. A header `idempotencyKey` has no effect: Dojo documents none here.
pub(super) async fn create(
    State(world): State<Arc<World>>,
    Extension(account): Extension<Account>,
    Extension(version): Extension<Version>,
    bytes: Bytes,
) -> JsonResult {
    let now = world.clock.now();
    let shape = Shape::CreatePaymentIntent(version);
    let request: CreateIntent = body::read_with(shape, &bytes, |body| {
        let mut errors = check_creation(body, now);
        if version.requires_auto_expire_action() {
            errors.extend(check_auto_expire_action(body));
        }
        errors
    })?;
    let origin = Origin {
        account,
        public_url: &world.public_url,
        now,
    };
    let intent = Intent::create(request, origin);
    Ok(Json(
        world.with_ledger(|ledger| ledger.add(intent).to_json()),
    ))
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct FetchQuery {
    return_canceled: Option<String>,
}

/// `GET /payment-intents/{id}`: a canceled intent is there only for whoever asks for it.
pub(super) async fn fetch(
    State(world): State<Arc<World>>,
    Path(id): Path<String>,
    Query(query): Query<FetchQuery>,
) -> JsonResult {
    let canceled_too = query
        .return_canceled
        .is_some_and(|wanted| wanted.eq_ignore_ascii_case("true"));
    world
        .with_ledger(|ledger| {
            ledger
                .find(&id)
                .filter(|intent| canceled_too || intent.status != Status::Canceled)
                .map(Intent::to_json)
        })
        .map(Json)
        .ok_or_else(|| no_such_intent(Operation::Get))
}

/// `DELETE /payment-intents/{id}`: the documents name 400, not 409, for an intent in the wrong state.
pub(super) async fn cancel(State(world): State<Arc<World>>, Path(id): Path<String>) -> JsonResult {
    world
        .with_ledger(|ledger| {
            ledger
                .change(&id, |intent, _| intent.cancel())
                .map(|((), intent)| intent.to_json())
        })
        .map(Json)
        .map_err(refused(Operation::Cancel))
}
