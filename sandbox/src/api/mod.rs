//! Dojo's API: the same paths, headers, shapes, statuses and refusals.

mod body;
mod manage;
mod payment_intents;
mod refunds;
mod search;
mod version;
mod webhooks;

use std::sync::Arc;

use axum::extract::rejection::RawPathParamsRejection;
use axum::extract::{RawPathParams, Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, patch, post, put};
use axum::{Json, Router};
use serde_json::Value;

use crate::account::Account;
use crate::faults::Operation;
use crate::intents::Refusal;
use crate::ledger::ChangeError;
use crate::problem::Problem;
use crate::traffic;
use crate::world::World;

use version::Version;

pub(crate) fn routes(world: Arc<World>) -> Router {
    Router::new()
        .route("/payment-intents", post(payment_intents::create))
        .route("/payment-intents/search", post(search::search))
        .route(
            "/payment-intents/{id}",
            get(payment_intents::fetch).delete(payment_intents::cancel),
        )
        .route("/payment-intents/{id}/captures", post(manage::capture))
        .route("/payment-intents/{id}/reversal", post(manage::reverse))
        .route("/payment-intents/{id}/amount", post(manage::set_amount))
        .route("/payment-intents/{id}/tips-amount", post(manage::set_tips))
        .route("/payment-intents/{id}/receipt", post(manage::send_receipt))
        .route("/payment-intents/{id}/refunds", post(refunds::create))
        .route("/payment-intents/refunds/{refund_id}", get(refunds::fetch))
        .route("/webhooks/events", get(webhooks::events))
        .route("/webhooks", get(webhooks::list).post(webhooks::subscribe))
        .route(
            "/webhooks/{id}",
            patch(webhooks::update).delete(webhooks::unsubscribe),
        )
        .route(
            "/webhooks/{id}/secrets",
            get(webhooks::secrets).post(webhooks::generate_secret),
        )
        .route(
            "/webhooks/{id}/secrets/{secret}",
            axum::routing::delete(webhooks::delete_secret),
        )
        .route(
            "/webhooks/{id}/secrets/{secret}/activate",
            put(webhooks::activate_secret),
        )
        .fallback(async || Problem::not_found("The sandbox has no such part of Dojo's API."))
        .method_not_allowed_fallback(async || {
            Problem::new(
                StatusCode::METHOD_NOT_ALLOWED,
                "This path does not know this method.",
            )
        })
        .layer(middleware::from_fn_with_state(Arc::clone(&world), admit))
        .layer(middleware::from_fn_with_state(
            Arc::clone(&world),
            traffic::pass,
        ))
        .layer(middleware::map_response_with_state(
            Arc::clone(&world),
            date,
        ))
        .with_state(world)
}

/// `Date` follows the sandbox's own clock, unless a fault has set another.
async fn date(State(world): State<Arc<World>>, mut response: Response) -> Response {
    if response.headers().contains_key(header::DATE) {
        return response;
    }
    let date = world.clock.now().in_http();
    if let Some(Ok(date)) = date.map(HeaderValue::try_from) {
        response.headers_mut().insert(header::DATE, date);
    }
    response
}

/// Lets in only calls that bear a key and a version, and only to what belongs to the key's account.
async fn admit(
    State(world): State<Arc<World>>,
    parameters: Result<RawPathParams, RawPathParamsRejection>,
    mut request: Request,
    next: Next,
) -> Response {
    let admitted = check_key(&world, request.headers()).and_then(|account| {
        let version = Version::of(request.headers())?;
        // No path, no parameters: nothing to protect.
        if let Ok(parameters) = &parameters {
            check_owner(&world, &account, &request, parameters)?;
        }
        Ok((account, version))
    });
    match admitted {
        Ok((account, version)) => {
            request.extensions_mut().insert(account);
            version.serve(request, next).await
        }
        Err(problem) => problem.into_response(),
    }
}

/// What belongs to another account is not there.
fn check_owner(
    world: &World,
    account: &Account,
    request: &Request,
    parameters: &RawPathParams,
) -> Result<(), Problem> {
    let operation = Operation::of(request.method(), request.uri().path());
    for (name, id) in parameters {
        let (owned, nothing) = match name {
            "refund_id" => (
                world.with_ledger(|ledger| {
                    ledger
                        .find_refund(id)
                        .is_none_or(|(intent, _)| intent.account == *account)
                }),
                refunds::no_such_refund(),
            ),
            "id" if operation == Operation::Webhooks => (
                world.courier.with_subscriptions(|all| {
                    all.find(id)
                        .map_or(true, |subscription| subscription.is_of(account))
                }),
                webhooks::no_such_subscription(),
            ),
            "id" => (
                world.with_ledger(|ledger| {
                    ledger
                        .find(id)
                        .is_none_or(|intent| intent.account == *account)
                }),
                no_such_intent(operation),
            ),
            _ => continue,
        };
        if !owned {
            return Err(nothing);
        }
    }
    Ok(())
}

/// The account of the key. `Basic ` is a literal prefix: the key behind it is not base64.
fn check_key(world: &World, headers: &HeaderMap) -> Result<Account, Problem> {
    let sent = headers
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok());
    let key = sent.and_then(|value| value.strip_prefix("Basic "));
    let accepted = key.filter(|key| {
        if world.api_keys.is_empty() {
            key.strip_prefix("sk_sandbox_")
                .is_some_and(|rest| !rest.is_empty())
        } else {
            world.api_keys.iter().any(|expected| expected == key)
        }
    });
    if let Some(key) = accepted {
        return Ok(Account::of_key(key));
    }
    let detail = match sent {
        None => "The Authorization header is missing.",
        Some(_) if key.is_none() => "The Authorization header is not of the form `Basic <key>`.",
        Some(_) => "The API key is not known here.",
    };
    Err(Problem::new(StatusCode::UNAUTHORIZED, detail))
}

/// 404 where Dojo's document lists it: reading, canceling and receipts. For everything else it lists 400.
fn no_such_intent(operation: Operation) -> Problem {
    let status = match operation {
        Operation::Get | Operation::Cancel | Operation::Receipt => StatusCode::NOT_FOUND,
        _ => StatusCode::BAD_REQUEST,
    };
    Problem::new(status, "There is no payment intent with this id.")
}

/// Turns a refusal into the status that Dojo's document lists for the operation: 409 for captures and reversals, 405 for
/// changes that the intent was not created for, 400 for the rest.
fn refused(operation: Operation) -> impl FnOnce(ChangeError) -> Problem {
    move |error| match error {
        ChangeError::NoSuchIntent => no_such_intent(operation),
        ChangeError::Refused(refusal) => {
            let status = match (operation, &refusal) {
                (_, Refusal::NotAllowed(_)) => StatusCode::METHOD_NOT_ALLOWED,
                (Operation::Capture | Operation::Reversal, _) => StatusCode::CONFLICT,
                _ => StatusCode::BAD_REQUEST,
            };
            Problem::new(status, refusal.to_string())
        }
    }
}

type JsonResult = Result<Json<Value>, Problem>;
