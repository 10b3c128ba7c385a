//! Checks the API key and the version of each call, and that its path belongs to the key's account.

use std::sync::Arc;

use axum::extract::rejection::RawPathParamsRejection;
use axum::extract::{RawPathParams, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::rejection::{unknown_intent, unknown_refund, unknown_subscription};
use super::version::Version;
use crate::account::Account;
use crate::app_state::AppState;
use crate::faults::Operation;
use crate::problem::Problem;

/// Rejects calls without a valid key and version, and calls about another account's objects.
pub(super) async fn check_access(
    State(state): State<Arc<AppState>>,
    parameters: Result<RawPathParams, RawPathParamsRejection>,
    mut request: Request,
    next: Next,
) -> Response {
    let result = check_key(&state, request.headers()).and_then(|account| {
        let version = Version::of(request.headers())?;
        // Without a matching route, there are no parameters to check.
        if let Ok(parameters) = &parameters {
            check_owner(&state, &account, &request, parameters)?;
        }
        Ok((account, version))
    });
    match result {
        Ok((account, version)) => {
            request.extensions_mut().insert(account);
            version.serve(request, next).await
        }
        Err(problem) => problem.into_response(),
    }
}

/// Treats an object of another account like one that doesn't exist.
fn check_owner(
    state: &AppState,
    account: &Account,
    request: &Request,
    parameters: &RawPathParams,
) -> Result<(), Problem> {
    let operation = Operation::of(request.method(), request.uri().path());
    for (name, id) in parameters {
        let (accessible, unknown) = match name {
            "refund_id" => (
                state.with_intents(|intents| {
                    intents
                        .find_refund(id)
                        .is_none_or(|(intent, _)| intent.account == *account)
                }),
                unknown_refund(),
            ),
            "id" if operation == Operation::Webhooks => (
                state.dispatcher.with_subscriptions(|subscriptions| {
                    subscriptions
                        .find(id)
                        .map_or(true, |subscription| subscription.is_of(account))
                }),
                unknown_subscription(),
            ),
            "id" => (
                state.with_intents(|intents| {
                    intents
                        .find(id)
                        .is_none_or(|intent| intent.account == *account)
                }),
                unknown_intent(operation),
            ),
            _ => continue,
        };
        if !accessible {
            return Err(unknown);
        }
    }
    Ok(())
}

/// The account of the API key. `Basic ` is a literal prefix: the key after it is not in base64.
fn check_key(state: &AppState, headers: &HeaderMap) -> Result<Account, Problem> {
    let sent = headers
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok());
    let key = sent.and_then(|value| value.strip_prefix("Basic "));
    let accepted = key.filter(|key| {
        if state.api_keys.is_empty() {
            key.strip_prefix("sk_sandbox_")
                .is_some_and(|rest| !rest.is_empty())
        } else {
            state.api_keys.iter().any(|expected| expected == key)
        }
    });
    if let Some(key) = accepted {
        return Ok(Account::of_key(key));
    }
    let detail = match sent {
        None => "The Authorization header is missing.",
        Some(_) if key.is_none() => "The Authorization header must be in the form `Basic <key>`.",
        Some(_) => "The API key is unknown.",
    };
    Err(Problem::new(StatusCode::UNAUTHORIZED, detail))
}
