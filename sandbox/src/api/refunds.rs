//! Refunds: the only operation for which Dojo documents an idempotency key.

use std::sync::Arc;

use axum::Json;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::HeaderMap;
use serde_json::{Value, json};

use super::body::{self, BodySchema};
use super::rejection::{rejected, unknown_intent, unknown_refund};
use crate::app_state::AppState;
use crate::faults::Operation;
use crate::intents::{Intent, Refund, RefundRequest};
use crate::problem::{JsonResult, Problem};

const KEY_HEADER: &str = "idempotencyKey";
const MAX_KEY_LENGTH: usize = 100;

/// `POST /payment-intents/{id}/refunds`. Repeating a key with the same body returns the same refund. With another body,
/// it returns 400, the only status that Dojo's OpenAPI file lists for rejected refunds.
pub(super) async fn create(
    State(state): State<Arc<AppState>>,
    Path(id): Path<String>,
    headers: HeaderMap,
    bytes: Bytes,
) -> JsonResult {
    let key = idempotency_key(&headers)?;
    let request: RefundRequest = body::read(BodySchema::Refund, &bytes)?;
    state.with_intents(|intents| {
        let intent = intents
            .find(&id)
            .ok_or_else(|| unknown_intent(Operation::Refund))?;
        if let Some(refund) = intent
            .refunds
            .iter()
            .find(|refund| refund.idempotency_key == key)
        {
            return if refund.request == request {
                Ok(refund_json(intent, refund))
            } else {
                let message = "This key was already used for another refund.";
                Err(Problem::invalid_field(KEY_HEADER, message))
            };
        }
        intents
            .change(&id, |intent, now| intent.refund(request, key, now))
            .map(|(refund, intent)| refund_json(intent, &refund))
            .map_err(rejected(Operation::Refund))
    })
}

/// `GET /payment-intents/refunds/{refundId}`
pub(super) async fn fetch(
    State(state): State<Arc<AppState>>,
    Path(refund_id): Path<String>,
) -> JsonResult {
    state.with_intents(|intents| {
        intents
            .find_refund(&refund_id)
            .map(|(intent, refund)| refund_json(intent, refund))
            .ok_or_else(unknown_refund)
    })
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
    } else if key.len() > MAX_KEY_LENGTH {
        Err(Problem::invalid_field(
            KEY_HEADER,
            "The value must not be longer than 100 characters.",
        ))
    } else {
        Ok(key.to_owned())
    }
}

fn refund_json(intent: &Intent, refund: &Refund) -> Json<Value> {
    Json(json!({
        "paymentIntentId": intent.id,
        "refundId": refund.id,
        "refundReason": refund.request.refund_reason,
        "notes": refund.request.notes,
    }))
}
