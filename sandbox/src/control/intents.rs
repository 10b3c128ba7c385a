//! Acting as the customer or the merchant's staff, and setting states that Dojo would never reach.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, Query, State};
use serde::Deserialize;
use serde_json::{Value, json};

use super::body::Body;
use super::key::account;
use crate::app_state::AppState;
use crate::clock::Timestamp;
use crate::ids;
use crate::intent_store::ChangeError;
use crate::intents::{
    Card, CreateIntent, CreationContext, Intent, IssuerDecision, PaymentOutcome, RefundRequest,
    Rejection, Status,
};
use crate::problem::{JsonResult, Problem};

/// `GET /_sandbox/payment-intents`: all intents, including canceled ones, oldest first. `?metadata.site=7` filters by
/// metadata.
pub(super) async fn list(
    State(state): State<Arc<AppState>>,
    Query(filters): Query<Vec<(String, String)>>,
) -> Json<Value> {
    let matches = |intent: &Intent| {
        filters
            .iter()
            .all(|(name, value)| match name.strip_prefix("metadata.") {
                Some(key) => intent.metadata.get(key).and_then(Value::as_str) == Some(value),
                None => true,
            })
    };
    let found = state.with_intents(|intents| {
        let intents = intents.all().values();
        intents
            .filter(|intent| matches(intent))
            .map(Intent::to_json)
            .collect::<Vec<_>>()
    });
    Json(Value::Array(found))
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Add {
    #[serde(default)]
    count: usize,
    /// The ids of further intents, which no event announces.
    #[serde(default)]
    ids: Vec<String>,
    /// The status of the intents with these ids. Default: `Created`.
    status: Option<String>,
    /// The account that owns the intents. Default: the first key that the sandbox accepts.
    api_key: Option<String>,
}

/// `POST /_sandbox/payment-intents`: creates many intents, as another program with the same key would, and intents with
/// certain ids, as if they had existed for a while.
pub(super) async fn add(State(state): State<Arc<AppState>>, Body(add): Body<Add>) -> JsonResult {
    const MAX_COUNT: usize = 100_000;
    let count = add.count.saturating_add(add.ids.len());
    if count > MAX_COUNT {
        return Err(Problem::bad_request(format!(
            "count and ids must be at most {MAX_COUNT} intents together."
        )));
    }
    let account = account(&state, add.api_key.as_deref())?;
    let create = |number: usize| {
        let request: CreateIntent = serde_json::from_value(json!({
            "amount": {"value": 100, "currencyCode": "GBP"},
            "reference": format!("Another program's {number}"),
        }))
        .expect("a valid creation");
        let context = CreationContext {
            account: account.clone(),
            public_url: &state.public_url,
            now: state.clock.now(),
        };
        Intent::create(request, context)
    };
    for number in 1..=add.count {
        let intent = create(number);
        state.with_intents(|intents| {
            intents.add(intent);
        });
    }
    for (id, number) in add.ids.into_iter().zip(add.count + 1..) {
        let mut intent = create(number);
        intent.payment_link = format!("{}/checkout/{id}", state.public_url);
        intent.id = id;
        if let Some(status) = &add.status {
            intent.status = Status::parse(status);
        }
        let added = state.with_intents(|intents| {
            let is_new = intents.find(&intent.id).is_none();
            if is_new {
                intents.insert(intent);
            }
            is_new
        });
        if !added {
            return Err(Problem::conflict(
                "There is already an intent with one of these ids.",
            ));
        }
    }
    Ok(Json(json!({"count": count})))
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Pay {
    /// The number of a test card, with or without spaces. Any other card is declined.
    card: Option<String>,
}

/// `POST /_sandbox/payment-intents/{id}/pay`: pays, by default with the card that succeeds. It passes the card's
/// challenge, or one that is already in progress.
pub(super) async fn pay(
    State(state): State<Arc<AppState>>,
    Path(id): Path<String>,
    Body(Pay { card }): Body<Pay>,
) -> JsonResult {
    change(&state, &id, |intent, now| {
        if card.is_none() && intent.challenge.is_some() {
            return intent.finish_challenge(true, now).map(|_| ());
        }
        let card = match &card {
            Some(number) => Card::test_card(&number.replace(' ', "")),
            None => Card::with_decision(IssuerDecision::Approve),
        };
        if intent.present(card, now)? == PaymentOutcome::Challenged {
            intent.finish_challenge(true, now)?;
        }
        Ok(())
    })
}

/// `POST /_sandbox/payment-intents/{id}/decline`: makes a declined attempt. The intent can still be paid.
pub(super) async fn decline(
    State(state): State<Arc<AppState>>,
    Path(id): Path<String>,
) -> JsonResult {
    change(&state, &id, |intent, now| {
        intent
            .present(Card::with_decision(IssuerDecision::Decline), now)
            .map(|_| ())
    })
}

/// `POST /_sandbox/payment-intents/{id}/challenge`: makes an attempt that waits for its 3-D Secure challenge. `pay`
/// passes it.
pub(super) async fn challenge(
    State(state): State<Arc<AppState>>,
    Path(id): Path<String>,
) -> JsonResult {
    change(&state, &id, |intent, now| {
        intent
            .present(Card::with_decision(IssuerDecision::Challenge), now)
            .map(|_| ())
    })
}

/// `POST /_sandbox/payment-intents/{id}/expire`: expires the intent now.
pub(super) async fn expire(
    State(state): State<Arc<AppState>>,
    Path(id): Path<String>,
) -> JsonResult {
    change(&state, &id, Intent::expire)
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PortalRefund {
    /// Minor units. Default: everything that is left.
    amount: Option<i64>,
}

/// `POST /_sandbox/payment-intents/{id}/refund`: a refund that a person issues in Dojo's portal, with the usual
/// webhooks. No caller of the API knows its id or its idempotency key.
pub(super) async fn refund(
    State(state): State<Arc<AppState>>,
    Path(id): Path<String>,
    Body(PortalRefund { amount }): Body<PortalRefund>,
) -> JsonResult {
    if amount.is_some_and(|amount| amount < 1) {
        return Err(Problem::bad_request("amount must be at least 1."));
    }
    change(&state, &id, |intent, now| {
        let amount = amount.unwrap_or_else(|| intent.left_to_refund());
        let request = RefundRequest {
            amount,
            refund_reason: Some("Refunded in the portal".to_owned()),
            notes: None,
            previous_transaction_id: None,
        };
        intent.refund(request, ids::uuid(), now).map(|_| ())
    })
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SetStatus {
    status: String,
}

/// `POST /_sandbox/payment-intents/{id}/status`: sets any status, known or unknown, with the usual webhook.
pub(super) async fn set_status(
    State(state): State<Arc<AppState>>,
    Path(id): Path<String>,
    Body(SetStatus { status }): Body<SetStatus>,
) -> JsonResult {
    change(&state, &id, |intent, now| {
        intent.status = Status::parse(&status);
        intent.authorized_at = intent.authorized_at.or(Some(now));
        Ok(())
    })
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SetAmount {
    /// Minor units.
    amount: i64,
}

/// `POST /_sandbox/payment-intents/{id}/amount`: sets any amount, whatever the status.
pub(super) async fn set_amount(
    State(state): State<Arc<AppState>>,
    Path(id): Path<String>,
    Body(SetAmount { amount }): Body<SetAmount>,
) -> JsonResult {
    change(&state, &id, |intent, _| {
        intent.force_amount(amount);
        Ok(())
    })
}

fn change(
    state: &AppState,
    id: &str,
    rule: impl FnOnce(&mut Intent, Timestamp) -> Result<(), Rejection>,
) -> JsonResult {
    state
        .with_intents(|intents| {
            intents
                .change(id, rule)
                .map(|((), intent)| intent.to_json())
        })
        .map(Json)
        .map_err(|error| match error {
            ChangeError::UnknownIntent => {
                Problem::not_found("There is no payment intent with this id.")
            }
            ChangeError::Rejected(rejection) => Problem::conflict(rejection.to_string()),
        })
}
