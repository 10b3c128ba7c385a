//! The middleware that every API call passes through: it records the call and applies a fault, if one matches.

use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures_util::{StreamExt, stream};
use serde_json::{Value, json};

use crate::app_state::AppState;
use crate::clock::Timestamp;
use crate::faults::{Fault, Kind, Operation};
use crate::ids;
use crate::intents::Intent;
use crate::problem::Problem;
use crate::requests::{Entry, Exchange, Outcome, Watcher};
use crate::server;

const MAX_BODY: usize = 1024 * 1024;

/// Handles a call in a task of its own: as at Dojo, a call still takes effect if its caller disconnects.
pub(crate) async fn handle(
    State(state): State<Arc<AppState>>,
    request: Request,
    next: Next,
) -> Response {
    let shutdown = state.shutdown.clone();
    let tasks = state.tasks.clone();
    let call = tasks.spawn(shutdown.run_until_cancelled_owned(run(state, request, next)));
    match call.await {
        Ok(Some(response)) => response,
        // The sandbox is stopping, or the handler panicked and the panic hook has reported it.
        Ok(None) | Err(_) => server::cut(),
    }
}

async fn run(state: Arc<AppState>, request: Request, next: Next) -> Response {
    let (parts, body) = request.into_parts();
    let Ok(body) = axum::body::to_bytes(body, MAX_BODY).await else {
        return Problem::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "The body is larger than 1 MiB.",
        )
        .into_response();
    };
    let request = Request::from_parts(parts, body);
    let operation = Operation::of(request.method(), request.uri().path());
    let fault = state.faults().draw(operation, request.uri().path());
    let number = state.requests().add(Entry::new(
        state.clock.now(),
        operation,
        &request,
        fault.as_ref().map(|fault| fault.kind),
    ));

    let watcher = state.watcher();
    let original = watcher.is_some().then(|| request.clone());
    let unchanged = fault
        .as_ref()
        .is_none_or(|fault| fault.kind.keeps_response());
    let request = request.map(Body::from);
    let (outcome, mut response) = match fault {
        None => with_status(next.run(request).await),
        Some(fault) => apply(&state, &fault, request, next).await,
    };
    state.requests().finish(number, outcome);
    if let (Some(Watcher(watch)), Some(request)) = (watcher, original) {
        let mut watched_response = None;
        if unchanged {
            let (parts, body) = response.into_parts();
            let body = in_memory(body).await;
            watched_response = Some(Response::from_parts(parts.clone(), body.clone()));
            response = Response::from_parts(parts, Body::from(body));
        }
        watch(&Exchange {
            request,
            response: watched_response,
        });
    }
    response
}

async fn apply(
    state: &AppState,
    fault: &Fault,
    request: Request,
    next: Next,
) -> (Outcome, Response) {
    let mut response = None;
    let path = request.uri().path().to_owned();
    if fault.kind == Kind::Latency {
        tokio::time::sleep(fault.latency()).await;
        response = Some(next.run(request).await);
    } else {
        if fault.kind.takes_effect() {
            response = Some(next.run(request).await);
        }
        tokio::time::sleep(fault.latency()).await;
    }
    let mut response = match (fault.kind, response) {
        (Kind::CutBefore | Kind::CutAfter, _) => return (Outcome::Cut, server::cut()),
        (Kind::SilentBefore | Kind::SilentAfter, _) => {
            return (Outcome::Silent, server::silence());
        }
        (Kind::ClockSkew, Some(response)) => with_skewed_clock(state, fault, response).await,
        (Kind::OtherIntent, Some(response)) => with_other_intent(state, fault, response).await,
        (Kind::Endless, Some(response)) => endless(response),
        (Kind::Misrouted, _) => misrouted(state, fault, &path),
        (Kind::Fields, Some(response)) => with_fields(fault, response).await,
        (Kind::Latency | Kind::LatencyAfter | Kind::Headers, Some(response)) => response,
        _ => error_response(fault),
    };
    // The headers were validated when the fault was added.
    let headers = fault.header_map().unwrap_or_default();
    response.headers_mut().extend(headers);
    with_status(response)
}

fn error_response(fault: &Fault) -> Response {
    let status = fault
        .status
        .and_then(|status| StatusCode::from_u16(status).ok());
    let status = status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    Problem::new(status, "A fault of the sandbox caused this response.").into_response()
}

/// The same response without an end. JSON may be followed by any number of spaces.
fn endless(response: Response) -> Response {
    let (mut parts, body) = response.into_parts();
    // It is the length of the original body.
    parts.headers.remove(header::CONTENT_LENGTH);
    let spaces = stream::repeat(Bytes::from_static(&[b' '; 16 << 10])).map(Ok);
    Response::from_parts(
        parts,
        Body::from_stream(body.into_data_stream().chain(spaces)),
    )
}

/// The response of a node whose clock is wrong.
async fn with_skewed_clock(state: &AppState, fault: &Fault, response: Response) -> Response {
    let skew = time::Duration::milliseconds(fault.skew_ms.unwrap_or(0));
    let mut response = rewrite(response, |body| {
        for intent in intents_in(body) {
            let updated_at = intent["updatedAt"].as_str().and_then(Timestamp::parse);
            if let Some(updated_at) = updated_at {
                intent["updatedAt"] = json!(updated_at.plus(skew));
            }
        }
    })
    .await;
    let date = state.clock.now().plus(skew).http_date();
    if let Some(Ok(date)) = date.map(HeaderValue::try_from) {
        response.headers_mut().insert(header::DATE, date);
    }
    response
}

/// A response about another intent. If the account has no other one, the right intent gets a wrong id.
async fn with_other_intent(state: &AppState, fault: &Fault, response: Response) -> Response {
    rewrite(response, |body| {
        let Some(id) = body["id"].as_str().filter(|id| id.starts_with("pi_")) else {
            return;
        };
        match other_intent(state, fault, id) {
            Some(other) => *body = other,
            None => body["id"] = json!(ids::prefixed("pi_sandbox_")),
        }
    })
    .await
}

/// The response to the same call about another intent: the intent itself, or a refund of it.
fn misrouted(state: &AppState, fault: &Fault, path: &str) -> Response {
    let segments: Vec<&str> = path.trim_matches('/').split('/').collect();
    let id = segments.get(1).copied().unwrap_or_default();
    let Some(other) = other_intent(state, fault, id) else {
        return error_response(fault);
    };
    let body = match segments.get(2) {
        Some(&"refunds") => {
            json!({"paymentIntentId": other["id"], "refundId": ids::prefixed("rfnd_")})
        }
        _ => other,
    };
    axum::Json(body).into_response()
}

/// The intent that a fault names, or else the newest one of the account other than `id`.
fn other_intent(state: &AppState, fault: &Fault, id: &str) -> Option<Value> {
    state.with_intents(|intents| {
        if let Some(id) = &fault.intent_id {
            return intents.find(id).map(Intent::to_json);
        }
        let account = &intents.find(id)?.account;
        let mut newest_first = intents.all().values().rev();
        newest_first
            .find(|intent| intent.id != id && intent.account == *account)
            .map(Intent::to_json)
    })
}

async fn with_fields(fault: &Fault, response: Response) -> Response {
    rewrite(response, |body| {
        if let Some(body) = body.as_object_mut() {
            body.extend(fault.fields.clone());
        }
    })
    .await
}

/// The intents in a response body: one, or a page of them.
fn intents_in(body: &mut Value) -> impl Iterator<Item = &mut Value> {
    let (page, one) = if body["data"].is_array() {
        (body["data"].as_array_mut(), None)
    } else {
        (None, Some(body))
    };
    page.into_iter().flatten().chain(one)
}

/// Changes a response body, if it is JSON.
async fn rewrite(response: Response, change: impl FnOnce(&mut Value)) -> Response {
    let (mut parts, body) = response.into_parts();
    let bytes = in_memory(body).await;
    let Ok(mut json) = serde_json::from_slice(&bytes) else {
        return Response::from_parts(parts, Body::from(bytes));
    };
    change(&mut json);
    // It is the length of the original body.
    parts.headers.remove(header::CONTENT_LENGTH);
    Response::from_parts(parts, Body::from(json.to_string()))
}

/// The bytes of a response body. Reading them can't fail, because they are already in memory.
async fn in_memory(body: Body) -> Bytes {
    axum::body::to_bytes(body, usize::MAX)
        .await
        .unwrap_or_default()
}

fn with_status(response: Response) -> (Outcome, Response) {
    (Outcome::Status(response.status().as_u16()), response)
}
