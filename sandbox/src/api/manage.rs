//! What a merchant does with a payment, except for refunds.

use std::sync::Arc;

use axum::Json;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};

use super::body::{self, BodySchema};
use super::rejection::{rejected, unknown_intent};
use crate::app_state::AppState;
use crate::clock::Timestamp;
use crate::faults::Operation;
use crate::ids;
use crate::intent_store::ChangeError;
use crate::intents::{Intent, ItemLine, Rejection, TaxLine};
use crate::money::Money;
use crate::problem::{JsonResult, Problem};
use crate::webhooks::Event;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct CaptureRequest {
    amount: i64,
    tips_amount: Option<i64>,
}

/// `POST /payment-intents/{id}/captures`
pub(super) async fn capture(
    State(state): State<Arc<AppState>>,
    Path(id): Path<String>,
    bytes: Bytes,
) -> JsonResult {
    let CaptureRequest {
        amount,
        tips_amount,
    } = body::read(BodySchema::Capture, &bytes)?;
    let capture_id = state
        .with_intents(|intents| {
            intents
                .change(&id, |intent, now| intent.capture(amount, tips_amount, now))
                .map(|(capture_id, _)| capture_id)
        })
        .map_err(rejected(Operation::Capture))?;
    Ok(Json(
        json!({ "captureId": capture_id, "message": "The payment was captured." }),
    ))
}

/// `POST /payment-intents/{id}/reversal`
pub(super) async fn reverse(
    State(state): State<Arc<AppState>>,
    Path(id): Path<String>,
) -> JsonResult {
    state
        .with_intents(|intents| intents.change(&id, Intent::reverse).map(|_| ()))
        .map_err(rejected(Operation::Reversal))?;
    Ok(Json(
        json!({ "reversalId": ids::uuid(), "message": "The payment was reversed." }),
    ))
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct AmountRequest {
    amount: Money,
    item_lines: Option<Vec<ItemLine>>,
    tax_lines: Option<Vec<TaxLine>>,
}

/// `POST /payment-intents/{id}/amount`
pub(super) async fn set_amount(
    State(state): State<Arc<AppState>>,
    Path(id): Path<String>,
    bytes: Bytes,
) -> JsonResult {
    let request: AmountRequest = body::read(BodySchema::SetAmount, &bytes)?;
    change(&state, Operation::Amount, &id, |intent, _| {
        intent.set_amount(request.amount, request.item_lines, request.tax_lines)
    })
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct TipsRequest {
    tips_amount: Money,
}

/// `POST /payment-intents/{id}/tips-amount`
pub(super) async fn set_tips(
    State(state): State<Arc<AppState>>,
    Path(id): Path<String>,
    bytes: Bytes,
) -> JsonResult {
    let TipsRequest { tips_amount } = body::read(BodySchema::SetTipsAmount, &bytes)?;
    change(&state, Operation::Tips, &id, |intent, _| {
        intent.set_tips(tips_amount)
    })
}

/// `POST /payment-intents/{id}/receipt`: only publishes the event, and sends no email.
pub(super) async fn send_receipt(
    State(state): State<Arc<AppState>>,
    Path(id): Path<String>,
    bytes: Bytes,
) -> Result<StatusCode, Problem> {
    // Only validates the addresses.
    let _: Value = body::read(BodySchema::SendReceipt, &bytes)?;
    let now = state.clock.now();
    state.with_intents(|intents| {
        let intent = intents
            .find(&id)
            .ok_or_else(|| unknown_intent(Operation::Receipt))?;
        intent
            .check_receipt()
            .map_err(|rejection| Problem::bad_request(rejection.to_string()))?;
        let event = Event::send_receipt(intent, now);
        intents.announce(event);
        Ok(StatusCode::NO_CONTENT)
    })
}

/// Changes the intent and returns it.
fn change(
    state: &AppState,
    operation: Operation,
    id: &str,
    rule: impl FnOnce(&mut Intent, Timestamp) -> Result<(), Rejection>,
) -> JsonResult {
    state
        .with_intents(|intents| -> Result<_, ChangeError> {
            intents
                .change(id, rule)
                .map(|((), intent)| intent.to_json())
        })
        .map(Json)
        .map_err(rejected(operation))
}
