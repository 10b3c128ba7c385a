//! Refunds: the one operation that Dojo documents an idempotency key for.

use std::sync::Arc;

use axum::Json;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::HeaderMap;
use serde_json::{Value, json};

use super::body::{self, Shape};
use super::{JsonResult, no_such_intent, refused};
use crate::faults::Operation;
use crate::intents::{Intent, Refund, RefundRequest};
use crate::problem::Problem;
use crate::world::World;

const KEY_HEADER: &str = "idempotencyKey";
const LONGEST_KEY: usize = 100;

/// `POST /payment-intents/{id}/refunds`. The same key with the same body on the same intent is the
/// same refund; with another body it is refused, with the only status documented for refusals.
pub(super) async fn create(
    State(world): State<Arc<World>>,
    Path(id): Path<String>,
    headers: HeaderMap,
    bytes: Bytes,
) -> JsonResult {
    let key = idempotency_key(&headers)?;
    let request: RefundRequest = body::read(Shape::Refund, &bytes)?;
    world.with_ledger(|ledger| {
        let intent = ledger
            .find(&id)
            .ok_or_else(|| no_such_intent(Operation::Refund))?;
        if let Some(refund) = intent
            .refunds
            .iter()
            .find(|refund| refund.idempotency_key == key)
        {
            return if refund.request == request {
                Ok(shown(intent, refund))
            } else {
                let message = "This key was used for another refund.";
                Err(Problem::invalid_field(KEY_HEADER, message))
            };
        }
        ledger
            .change(&id, |intent, now| intent.refund(request, key, now))
            .map(|(refund, intent)| shown(intent, &refund))
            .map_err(refused(Operation::Refund))
    })
}

/// `GET /payment-intents/refunds/{refundId}`
pub(super) async fn fetch(
    State(world): State<Arc<World>>,
    Path(refund_id): Path<String>,
) -> JsonResult {
    world.with_ledger(|ledger| {
        ledger
            .find_refund(&refund_id)
            .map(|(intent, refund)| shown(intent, refund))
            .ok_or_else(no_such_refund)
    })
}

/// Dojo's document lists 400 and no 404 for this.
pub(super) fn no_such_refund() -> Problem {
    Problem::bad_request("There is no refund with this id.")
}

fn idempotency_key(headers: &HeaderMap) -> Result<String, Problem> {
    let key = headers
        .get(KEY_HEADER)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default();
    if key.is_empty() {
        Err(Problem::invalid_field(
            KEY_HEADER,
            "The idempotencyKey header is required.",
        ))
    } else if key.len() > LONGEST_KEY {
        Err(Problem::invalid_field(
            KEY_HEADER,
            "The value is longer than 100 characters.",
        ))
    } else {
        Ok(key.to_owned())
    }
}

fn shown(intent: &Intent, refund: &Refund) -> Json<Value> {
    Json(json!({
        "paymentIntentId": intent.id,
        "refundId": refund.id,
        "refundReason": refund.request.refund_reason,
        "notes": refund.request.notes,
    }))
}
