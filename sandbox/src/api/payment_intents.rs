//! Creating, reading and canceling a payment intent.

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::{Path, Query, State};
use axum::{Extension, Json};
use serde::Deserialize;

use super::body::{self, BodySchema};
use super::rejection::{rejected, unknown_intent};
use super::version::Version;
use crate::account::Account;
use crate::app_state::AppState;
use crate::faults::Operation;
use crate::intents::{
    CreateIntent, CreationContext, Intent, Status, check_auto_expire_action, check_creation,
};
use crate::problem::JsonResult;

/// `POST /payment-intents`. The header `idempotencyKey` has no effect, because Dojo doesn't document it here.
pub(super) async fn create(
    State(state): State<Arc<AppState>>,
    Extension(account): Extension<Account>,
    Extension(version): Extension<Version>,
    bytes: Bytes,
) -> JsonResult {
    let now = state.clock.now();
    let schema = BodySchema::CreatePaymentIntent(version);
    let request: CreateIntent = body::read_with(schema, &bytes, |body| {
        let mut errors = check_creation(body, now);
        if version.requires_auto_expire_action() {
            errors.extend(check_auto_expire_action(body));
        }
        errors
    })?;
    let context = CreationContext {
        account,
        public_url: &state.public_url,
        now,
    };
    let intent = Intent::create(request, context);
    Ok(Json(
        state.with_intents(|intents| intents.add(intent).to_json()),
    ))
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct FetchQuery {
    return_canceled: Option<String>,
}

/// `GET /payment-intents/{id}`: returns a canceled intent only with `returnCanceled=true`.
pub(super) async fn fetch(
    State(state): State<Arc<AppState>>,
    Path(id): Path<String>,
    Query(query): Query<FetchQuery>,
) -> JsonResult {
    let return_canceled = query
        .return_canceled
        .is_some_and(|value| value.eq_ignore_ascii_case("true"));
    state
        .with_intents(|intents| {
            intents
                .find(&id)
                .filter(|intent| return_canceled || intent.status != Status::Canceled)
                .map(Intent::to_json)
        })
        .map(Json)
        .ok_or_else(|| unknown_intent(Operation::Get))
}

/// `DELETE /payment-intents/{id}`: Dojo's OpenAPI file lists 400, not 409, for an intent with another status.
pub(super) async fn cancel(
    State(state): State<Arc<AppState>>,
    Path(id): Path<String>,
) -> JsonResult {
    state
        .with_intents(|intents| {
            intents
                .change(&id, |intent, _| intent.cancel())
                .map(|((), intent)| intent.to_json())
        })
        .map(Json)
        .map_err(rejected(Operation::Cancel))
}
