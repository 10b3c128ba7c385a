//! Playing the customer, and forcing what no customer could do.

use std::sync::Arc;

use axum::Json;
use axum::body::Bytes;
use axum::extract::{Path, Query, State};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{JsonResult, read, read_or_default};
use crate::account::Account;
use crate::clock::Timestamp;
use crate::ids;
use crate::intents::{
    Attempt, Card, CreateIntent, Intent, Origin, Reaction, RefundRequest, Refusal, Status,
};
use crate::ledger::ChangeError;
use crate::problem::Problem;
use crate::world::World;

/// `GET /_sandbox/payment-intents`: all, the canceled included, oldest first.
/// `?metadata.site=7` keeps those whose metadata says so.
pub(super) async fn list(
    State(world): State<Arc<World>>,
    Query(filters): Query<Vec<(String, String)>>,
) -> Json<Value> {
    let fits = |intent: &Intent| {
        filters
            .iter()
            .all(|(name, value)| match name.strip_prefix("metadata.") {
                Some(key) => intent.metadata.get(key).and_then(Value::as_str) == Some(value),
                None => true,
            })
    };
    let found = world.with_ledger(|ledger| {
        let intents = ledger.all().map(|(_, intent)| intent);
        intents
            .filter(|intent| fits(intent))
            .map(Intent::to_json)
            .collect::<Vec<_>>()
    });
    Json(Value::Array(found))
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Add {
    count: usize,
    /// Whose they are; the first key that the sandbox accepts unless given.
    api_key: Option<String>,
}

/// `POST /_sandbox/payment-intents`: many intents at once, as another program with the same key would have made them.
pub(super) async fn add(State(world): State<Arc<World>>, bytes: Bytes) -> JsonResult {
    const MOST: usize = 100_000;
    let Add { count, api_key } = read(&bytes)?;
    if count > MOST {
        return Err(Problem::bad_request(format!("count is at most {MOST}.")));
    }
    let Some(key) = api_key.as_ref().or(world.api_keys.first()) else {
        return Err(Problem::bad_request(
            "apiKey is needed: the sandbox accepts any key.",
        ));
    };
    let account = Account::of_key(key);
    for number in 1..=count {
        let request: CreateIntent = read(
            json!({
                "amount": {"value": 100, "currencyCode": "GBP"},
                "reference": format!("Another program's {number}"),
            })
            .to_string()
            .as_bytes(),
        )?;
        let origin = Origin {
            account: account.clone(),
            public_url: &world.public_url,
            now: world.clock.now(),
        };
        let intent = Intent::create(request, origin);
        world.with_ledger(|ledger| {
            ledger.add(intent);
        });
    }
    Ok(Json(json!({"count": count})))
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Pay {
    /// The number of a test card, spaces allowed; any other is declined.
    card: Option<String>,
}

/// `POST /_sandbox/payment-intents/{id}/pay`: presents a card, the one that succeeds unless told
/// otherwise, and passes its challenge where there is one. An open challenge is passed as well.
pub(super) async fn pay(
    State(world): State<Arc<World>>,
    Path(id): Path<String>,
    bytes: Bytes,
) -> JsonResult {
    let Pay { card } = read_or_default(&bytes)?;
    change(&world, &id, |intent, now| {
        if card.is_none() && intent.challenge.is_some() {
            return intent.answer_challenge(true, now).map(|_| ());
        }
        let card = match &card {
            Some(number) => Card::test_card(&number.replace(' ', "")),
            None => Card::that_will(Reaction::Approve),
        };
        if intent.present(card, now)? == Attempt::Challenged {
            intent.answer_challenge(true, now)?;
        }
        Ok(())
    })
}

/// `POST /_sandbox/payment-intents/{id}/decline`: a declined attempt; the intent can still be paid.
pub(super) async fn decline(State(world): State<Arc<World>>, Path(id): Path<String>) -> JsonResult {
    change(&world, &id, |intent, now| {
        intent
            .present(Card::that_will(Reaction::Decline), now)
            .map(|_| ())
    })
}

/// `POST /_sandbox/payment-intents/{id}/challenge`: an attempt that waits for its 3-D Secure
/// challenge. `pay` passes it.
pub(super) async fn challenge(
    State(world): State<Arc<World>>,
    Path(id): Path<String>,
) -> JsonResult {
    change(&world, &id, |intent, now| {
        intent
            .present(Card::that_will(Reaction::Challenge), now)
            .map(|_| ())
    })
}

/// `POST /_sandbox/payment-intents/{id}/expire`: its time is up now, whatever the clock says.
pub(super) async fn expire(State(world): State<Arc<World>>, Path(id): Path<String>) -> JsonResult {
    change(&world, &id, Intent::run_out)
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct PortalRefund {
    /// Minor units; all that is left, unless given.
    amount: Option<i64>,
}

/// `POST /_sandbox/payment-intents/{id}/refund`: a refund that a person issues in Dojo's portal, with the webhooks that
/// any refund causes. No caller of the API knows its id or its key.
pub(super) async fn refund(
    State(world): State<Arc<World>>,
    Path(id): Path<String>,
    bytes: Bytes,
) -> JsonResult {
    let PortalRefund { amount } = read_or_default(&bytes)?;
    if amount.is_some_and(|amount| amount < 1) {
        return Err(Problem::bad_request("A refund is of at least 1."));
    }
    change(&world, &id, |intent, now| {
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
struct ForceStatus {
    status: String,
}

/// `POST /_sandbox/payment-intents/{id}/status`: any word, known or not, with the webhook that a
/// change of status causes.
pub(super) async fn force_status(
    State(world): State<Arc<World>>,
    Path(id): Path<String>,
    bytes: Bytes,
) -> JsonResult {
    let ForceStatus { status } = read(&bytes)?;
    change(&world, &id, |intent, now| {
        intent.status = Status::from_word(&status);
        intent.authorized_at = intent.authorized_at.or(Some(now));
        Ok(())
    })
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ForceAmount {
    /// Minor units.
    amount: i64,
}

/// `POST /_sandbox/payment-intents/{id}/amount`: another amount, in any state.
pub(super) async fn force_amount(
    State(world): State<Arc<World>>,
    Path(id): Path<String>,
    bytes: Bytes,
) -> JsonResult {
    let ForceAmount { amount } = read(&bytes)?;
    change(&world, &id, |intent, _| {
        intent.force_amount(amount);
        Ok(())
    })
}

fn change(
    world: &World,
    id: &str,
    rule: impl FnOnce(&mut Intent, Timestamp) -> Result<(), Refusal>,
) -> JsonResult {
    world
        .with_ledger(|ledger| ledger.change(id, rule).map(|((), intent)| intent.to_json()))
        .map(Json)
        .map_err(|error| match error {
            ChangeError::NoSuchIntent => {
                Problem::not_found("There is no payment intent with this id.")
            }
            ChangeError::Refused(refusal) => Problem::conflict(refusal.to_string()),
        })
}
