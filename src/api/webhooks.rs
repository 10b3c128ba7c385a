//! The endpoints that receive Dojo's webhooks.

use std::{sync::LazyLock, time::Instant};

use axum::{
    Extension,
    body::Bytes,
    extract::{Path, State},
    http::{HeaderMap, StatusCode},
};
use secrecy::SecretString;
use tracing::warn;
use utoipa::IntoResponses;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    anonymous::Anonymous, body::Raw, error::Error, examples, observe::Sender, problem::Problem,
    state::AppState,
};
use crate::{
    dojo::{Account, webhook},
    payment_link::NewPaymentLink,
    protocol::{self, webhooks::Receipt},
};

pub(super) fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(receive))
        .routes(routes!(receive_for))
}

/// The responses to Dojo, for the OpenAPI document.
#[derive(IntoResponses)]
#[expect(dead_code, reason = "describes the responses of `keep` and of `Error`")]
enum Received {
    /// The event is stored.
    #[response(status = 204)]
    Stored,
    /// The signature is missing or wrong, or there is no such account. Nothing was stored.
    #[response(status = 401, content_type = "application/problem+json", examples(("bad-signature" = ())))]
    NotGenuine(Problem),
    /// The body is larger than 256 KiB.
    #[response(status = 413, content_type = "application/problem+json", examples(("body-too-large" = ())))]
    TooLarge(Problem),
    /// The event could not be stored. Send it again.
    #[response(status = 503, content_type = "application/problem+json", examples(("database-unavailable" = ()), ("not-stored" = ()), ("timed-out" = ())))]
    NotStored(Problem),
}

/// Receives a webhook from Dojo for the account `default`.
///
/// The service responds only after the event is committed to the database; otherwise Dojo sends it again. It stores every event
/// with a valid signature and responds in the same way to all of them, whether or not the event is new, belongs to a known link,
/// or has a known type.
#[utoipa::path(
    post, path = "/webhooks/dojo", operation_id = "receiveWebhook", tag = "Webhooks", security(()),
    params(("dojo-signature" = String, Header, description = "`sha256=` followed by the HMAC-SHA256 of the body.", example = "sha256=14-C5-95-42-1E-D1-B4-80-3E-B2-B0-EB-7F-5D-70-FF-A1-0C-5F-6B-2D-98-13-44-E7-81-39-C0-5A-F2-66-1B")),
    request_body(content = Object, content_type = "application/json", description = "The event. The signature covers its exact bytes.", example = json!(examples::webhook())),
    responses(Received)
)]
async fn receive(
    State(state): State<AppState>,
    sender: Sender,
    headers: HeaderMap,
    Raw(body): Raw,
) -> Result<Kept, Error> {
    let account = genuine(&state, NewPaymentLink::DEFAULT_ACCOUNT, &headers, &body)?;
    sender.authenticated();
    keep(&state, account, body).await
}

/// Receives a webhook from Dojo for an account.
///
/// The signature must have been made with one of this account's secrets. Apart from that, the call works like
/// `/webhooks/dojo`. An account that doesn't exist has no secrets, so no signature is valid for it.
#[utoipa::path(
    post, path = "/webhooks/dojo/{account}", operation_id = "receiveAccountWebhook", tag = "Webhooks", security(()),
    params(
        ("account" = String, Path, description = "The account's name in this service.", example = "leeds"),
        ("dojo-signature" = String, Header, description = "`sha256=` followed by the HMAC-SHA256 of the body.", example = "sha256=14-C5-95-42-1E-D1-B4-80-3E-B2-B0-EB-7F-5D-70-FF-A1-0C-5F-6B-2D-98-13-44-E7-81-39-C0-5A-F2-66-1B"),
    ),
    request_body(content = Object, content_type = "application/json", description = "The event. The signature covers its exact bytes.", example = json!(examples::webhook())),
    responses(Received)
)]
async fn receive_for(
    State(state): State<AppState>,
    Path(account): Path<String>,
    sender: Sender,
    headers: HeaderMap,
    Raw(body): Raw,
) -> Result<Kept, Error> {
    let account = genuine(&state, &account, &headers, &body)?;
    sender.authenticated();
    keep(&state, account, body).await
}

/// The response to a stored webhook, with what the log says about it.
type Kept = (Extension<Receipt>, StatusCode);

/// The account of this name, if one of its own secrets signed the webhook.
fn genuine<'a>(
    state: &'a AppState,
    name: &str,
    headers: &HeaderMap,
    body: &[u8],
) -> Result<&'a Account, Error> {
    /// Used if there are no secrets, so that the response takes as long as otherwise and doesn't reveal which accounts exist.
    /// A webhook signed with it is rejected as well.
    static NO_SECRET: LazyLock<[SecretString; 1]> =
        LazyLock::new(|| [SecretString::from("no webhook is signed with this")]);

    let account = state.account(name);
    let secrets = account.map(|account| account.webhook_secrets.as_slice());
    let secrets = secrets.filter(|secrets| !secrets.is_empty());
    let signature = headers
        .get(webhook::SIGNATURE_HEADER)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default();
    let is_genuine =
        webhook::is_genuine(secrets.unwrap_or(&*NO_SECRET), signature, body) && secrets.is_some();
    if let Some(account) = account.filter(|_| is_genuine) {
        return Ok(account);
    }
    count("rejected");
    let kind = Anonymous::Webhook(account.map(|account| account.name.clone()));
    if state.anonymous.is_first(kind, Instant::now()) {
        if account.is_some() {
            warn!("a webhook without a valid signature was rejected");
        } else {
            warn!("a webhook for an unknown account was rejected");
        }
    }
    Err(Error::BadSignature)
}

/// Stores a webhook that Dojo signed for this account.
async fn keep(state: &AppState, account: &Account, body: Bytes) -> Result<Kept, Error> {
    let receipt = protocol::webhooks::receive(&state.intake, &account.name, body.into())
        .await
        .map_err(Error::WebhookNotStored)?;
    Ok((Extension(receipt), StatusCode::NO_CONTENT))
}

fn count(verdict: &str) {
    metrics::counter!("webhooks_total", "verdict" => verdict.to_owned()).increment(1);
}
