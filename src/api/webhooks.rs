//! Dojo's webhooks.

use std::{sync::LazyLock, time::Instant};

use axum::{
    extract::{Path, State},
    http::{HeaderMap, StatusCode},
};
use secrecy::SecretString;
use tracing::warn;
use utoipa::IntoResponses;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    AppState, Error, body::Raw, examples, observe::Sender, problem::Problem, refusals::Refused,
};
use crate::{
    dojo::{Account, webhook},
    payment_link::NewPaymentLink,
    protocol,
};

pub(super) fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(receive))
        .routes(routes!(receive_for))
}

/// What Dojo is answered, for the document.
#[derive(IntoResponses)]
#[expect(dead_code, reason = "describes what `keep` and `Error` make")]
enum Received {
    /// Kept.
    #[response(status = 204)]
    Kept,
    /// The signature is missing or wrong, or there is no such account. Nothing was kept.
    #[response(status = 401, content_type = "application/problem+json", examples(("bad-signature" = ())))]
    NotGenuine(Problem),
    /// Larger than 256 KiB.
    #[response(status = 413, content_type = "application/problem+json", examples(("body-too-large" = ())))]
    TooLarge(Problem),
    /// Not kept: send it again.
    #[response(status = 503, content_type = "application/problem+json", examples(("database-unavailable" = ()), ("not-kept" = ()), ("timed-out" = ())))]
    NotKept(Problem),
}

/// Receives a webhook of Dojo's for the account `default`.
///
/// Answered only when it is committed: Dojo sends it again otherwise. Whether an event is new or a copy,
/// about a link or about nothing that is known here, of a kind that is understood or not, the answer is the
/// same: it is kept.
#[utoipa::path(
    post, path = "/webhooks/dojo", tag = "Webhooks", security(()),
    params(("dojo-signature" = String, Header, description = "`sha256=` and the HMAC-SHA256 of the body.", example = "sha256=14-C5-95-42-1E-D1-B4-80-3E-B2-B0-EB-7F-5D-70-FF-A1-0C-5F-6B-2D-98-13-44-E7-81-39-C0-5A-F2-66-1B")),
    request_body(content = Object, content_type = "application/json", description = "The event, signed as it is.", example = json!(examples::webhook())),
    responses(Received)
)]
async fn receive(
    State(state): State<AppState>,
    sender: Sender,
    headers: HeaderMap,
    Raw(body): Raw,
) -> Result<StatusCode, Error> {
    let account = genuine(&state, NewPaymentLink::DEFAULT_ACCOUNT, &headers, &body)?;
    sender.is_known();
    keep(&state, account, &body).await
}

/// Receives a webhook of Dojo's for this account.
///
/// The secrets of the account count, and no other's. Answered as `/webhooks/dojo` is. An account that does not exist has
/// no secrets, so whatever is sent there has the wrong signature.
#[utoipa::path(
    post, path = "/webhooks/dojo/{account}", tag = "Webhooks", security(()),
    params(
        ("account" = String, Path, description = "The account's name in this service.", example = "leeds"),
        ("dojo-signature" = String, Header, description = "`sha256=` and the HMAC-SHA256 of the body.", example = "sha256=14-C5-95-42-1E-D1-B4-80-3E-B2-B0-EB-7F-5D-70-FF-A1-0C-5F-6B-2D-98-13-44-E7-81-39-C0-5A-F2-66-1B"),
    ),
    request_body(content = Object, content_type = "application/json", description = "The event, signed as it is.", example = json!(examples::webhook())),
    responses(Received)
)]
async fn receive_for(
    State(state): State<AppState>,
    Path(account): Path<String>,
    sender: Sender,
    headers: HeaderMap,
    Raw(body): Raw,
) -> Result<StatusCode, Error> {
    let account = genuine(&state, &account, &headers, &body)?;
    sender.is_known();
    keep(&state, account, &body).await
}

/// The account of this name, if one of its own secrets signed the webhook.
fn genuine<'a>(
    state: &'a AppState,
    name: &str,
    headers: &HeaderMap,
    body: &[u8],
) -> Result<&'a Account, Error> {
    /// Takes the place of secrets where there are none, so that the response takes no less time and does not tell which
    /// accounts exist. Whatever it may have signed is refused.
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
    count("refused");
    let refused = Refused::Webhook(account.map(|account| account.name.clone()));
    if state.refusals.is_first(refused, Instant::now()) {
        if account.is_some() {
            warn!("a webhook without a valid signature was refused");
        } else {
            warn!("a webhook for an unknown account was refused");
        }
    }
    Err(Error::BadSignature)
}

/// Keeps a webhook that Dojo signed for this account.
async fn keep(state: &AppState, account: &Account, body: &[u8]) -> Result<StatusCode, Error> {
    protocol::webhooks::receive(&state.context(account), body)
        .await
        .map_err(Error::NotKept)?;
    Ok(StatusCode::NO_CONTENT)
}

fn count(verdict: &str) {
    metrics::counter!("webhooks_total", "verdict" => verdict.to_owned()).increment(1);
}
