//! What a merchant does with a payment intent besides refunding it.

use std::sync::Arc;

use axum::Json;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};

use super::body::{self, Shape};
use super::{JsonResult, no_such_intent, refused};
use crate::clock::Timestamp;
use crate::faults::Operation;
use crate::ids;
use crate::intents::{Intent, ItemLine, Refusal, TaxLine};
use crate::ledger::ChangeError;
use crate::money::Money;
use crate::problem::Problem;
use crate::webhooks::Event;
use crate::world::World;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct CaptureRequest {
    amount: i64,
    tips_amount: Option<i64>,
}

/// `POST /payment-intents/{id}/captures`
pub(super) async fn capture(
    State(world): State<Arc<World>>,
    Path(id): Path<String>,
    bytes: Bytes,
) -> JsonResult {
    let CaptureRequest {
        amount,
        tips_amount,
    } = body::read(Shape::Capture, &bytes)?;
    let capture_id = world
        .with_ledger(|ledger| {
            ledger
                .change(&id, |intent, now| intent.capture(amount, tips_amount, now))
                .map(|(capture_id, _)| capture_id)
        })
        .map_err(refused(Operation::Capture))?;
    Ok(Json(
        json!({ "captureId": capture_id, "message": "The payment was captured." }),
    ))
}

/// `POST /payment-intents/{id}/reversal`
pub(super) async fn reverse(State(world): State<Arc<World>>, Path(id): Path<String>) -> JsonResult {
    world
        .with_ledger(|ledger| ledger.change(&id, Intent::reverse).map(|_| ()))
        .map_err(refused(Operation::Reversal))?;
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
    State(world): State<Arc<World>>,
    Path(id): Path<String>,
    bytes: Bytes,
) -> JsonResult {
    let request: AmountRequest = body::read(Shape::SetAmount, &bytes)?;
    change(&world, Operation::Amount, &id, |intent, _| {
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
    State(world): State<Arc<World>>,
    Path(id): Path<String>,
    bytes: Bytes,
) -> JsonResult {
    let TipsRequest { tips_amount } = body::read(Shape::SetTipsAmount, &bytes)?;
    change(&world, Operation::Tips, &id, |intent, _| {
        intent.set_tips(tips_amount)
    })
}

/// `POST /payment-intents/{id}/receipt`: nothing is sent but the event.
pub(super) async fn send_receipt(
    State(world): State<Arc<World>>,
    Path(id): Path<String>,
    bytes: Bytes,
) -> Result<StatusCode, Problem> {
    // The addresses are checked for their form; nobody is written to.
    let _: Value = body::read(Shape::SendReceipt, &bytes)?;
    let now = world.clock.now();
    world.with_ledger(|ledger| {
        let intent = ledger
            .find(&id)
            .ok_or_else(|| no_such_intent(Operation::Receipt))?;
        intent
            .check_receipt()
            .map_err(|refusal| Problem::bad_request(refusal.to_string()))?;
        let event = Event::send_receipt(intent, now);
        ledger.announce(event);
        Ok(StatusCode::NO_CONTENT)
    })
}

/// Changes the intent and answers it whole.
fn change(
    world: &World,
    operation: Operation,
    id: &str,
    rule: impl FnOnce(&mut Intent, Timestamp) -> Result<(), Refusal>,
) -> JsonResult {
    world
        .with_ledger(|ledger| -> Result<_, ChangeError> {
            ledger.change(id, rule).map(|((), intent)| intent.to_json())
        })
        .map(Json)
        .map_err(refused(operation))
}
