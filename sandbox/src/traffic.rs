//! Every API call passes here: it is recorded, and meets its fault if one is due.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use serde::{Serialize, Serializer};
use serde_json::{Value, json};

use crate::clock::Timestamp;
use crate::faults::{Fault, Kind, Operation};
use crate::ids;
use crate::intents::Intent;
use crate::problem::Problem;
use crate::server;
use crate::world::World;

/// The largest body that is read.
const LARGEST_BODY: usize = 1024 * 1024;

/// The oldest calls are forgotten beyond this many, or beyond this many bytes.
const MOST_ENTRIES: usize = 100_000;
const MOST_BYTES: usize = 256 * 1024 * 1024;

/// One API call received.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Entry {
    at: Timestamp,
    method: String,
    path: String,
    query: Option<String>,
    pub(crate) operation: Operation,
    /// All but the one that holds the key.
    headers: BTreeMap<String, String>,
    #[serde(serialize_with = "as_json")]
    body: Bytes,
    fault: Option<Kind>,
    /// The status, `cut`, `silent`, or nothing while the call is under way.
    answered: Option<Answered>,
}

#[derive(Clone, Copy, Debug)]
enum Answered {
    Status(u16),
    Cut,
    Silent,
}

impl Serialize for Answered {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Status(status) => serializer.serialize_u16(*status),
            Self::Cut => serializer.serialize_str("cut"),
            Self::Silent => serializer.serialize_str("silent"),
        }
    }
}

/// The calls received, oldest first.
#[derive(Debug, Default)]
pub(crate) struct RequestLog {
    entries: VecDeque<Entry>,
    forgotten: u64,
    bytes: usize,
}

impl RequestLog {
    pub(crate) fn all(&self) -> impl Iterator<Item = &Entry> {
        self.entries.iter()
    }

    pub(crate) fn clear(&mut self) {
        self.forgotten += self.entries.len() as u64;
        self.entries.clear();
        self.bytes = 0;
    }

    fn add(&mut self, entry: Entry) -> u64 {
        self.bytes += entry.body.len();
        self.entries.push_back(entry);
        while self.entries.len() > MOST_ENTRIES || self.bytes > MOST_BYTES {
            if let Some(oldest) = self.entries.pop_front() {
                self.bytes -= oldest.body.len();
                self.forgotten += 1;
            }
        }
        self.forgotten + self.entries.len() as u64 - 1
    }

    fn answer(&mut self, number: u64, answered: Answered) {
        let index = number
            .checked_sub(self.forgotten)
            .and_then(|index| usize::try_from(index).ok());
        if let Some(entry) = index.and_then(|index| self.entries.get_mut(index)) {
            entry.answered = Some(answered);
        }
    }
}

/// An API call as it passed.
#[derive(Clone, Debug)]
pub struct Exchange {
    /// What was asked.
    pub request: axum::http::Request<Bytes>,
    /// What the sandbox answers by its own rules; `None` where it was told to answer something else, or nothing.
    pub answer: Option<axum::http::Response<Bytes>>,
}

/// Somebody who wants to see each call.
#[derive(Clone)]
pub(crate) struct Watcher(pub(crate) Arc<dyn Fn(&Exchange) + Send + Sync>);

impl fmt::Debug for Watcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Watcher")
    }
}

/// The middleware. The call runs in a task of its own: a caller that hangs up does not undo what it
/// asked for, as it would not at Dojo.
pub(crate) async fn pass(
    State(world): State<Arc<World>>,
    request: Request,
    next: Next,
) -> Response {
    let shutdown = world.shutdown.clone();
    let tasks = world.tasks.clone();
    let call = tasks.spawn(shutdown.run_until_cancelled_owned(handle(world, request, next)));
    match call.await {
        Ok(Some(response)) => response,
        // Shutting down, or a bug that the panic hook has already told about.
        Ok(None) | Err(_) => server::cut(),
    }
}

async fn handle(world: Arc<World>, request: Request, next: Next) -> Response {
    let (parts, body) = request.into_parts();
    let Ok(body) = axum::body::to_bytes(body, LARGEST_BODY).await else {
        return Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "The body is over 1 MiB.")
            .into_response();
    };
    let operation = Operation::of(&parts.method, parts.uri.path());
    let fault = world.faults().draw(operation, parts.uri.path());
    let number = world.requests().add(Entry {
        at: world.clock.now(),
        method: parts.method.to_string(),
        path: parts.uri.path().to_owned(),
        query: parts.uri.query().map(str::to_owned),
        operation,
        headers: loggable(&parts.headers),
        body: body.clone(),
        fault: fault.as_ref().map(|fault| fault.kind),
        answered: None,
    });

    let watcher = world.watcher();
    let asked = watcher
        .is_some()
        .then(|| Request::from_parts(parts.clone(), body.clone()));
    let own = fault
        .as_ref()
        .is_none_or(|fault| fault.kind.answers_itself());
    let request = Request::from_parts(parts, Body::from(body));
    let (answered, mut response) = match fault {
        None => answer(next.run(request).await),
        Some(fault) => suffer(&world, &fault, request, next).await,
    };
    world.requests().answer(number, answered);
    if let (Some(Watcher(watch)), Some(request)) = (watcher, asked) {
        let mut answer = None;
        if own {
            let (parts, body) = response.into_parts();
            let body = in_memory(body).await;
            answer = Some(Response::from_parts(parts.clone(), body.clone()));
            response = Response::from_parts(parts, Body::from(body));
        }
        watch(&Exchange { request, answer });
    }
    response
}

async fn suffer(
    world: &World,
    fault: &Fault,
    request: Request,
    next: Next,
) -> (Answered, Response) {
    let mut response = None;
    let path = request.uri().path().to_owned();
    if fault.kind == Kind::Latency {
        tokio::time::sleep(fault.latency()).await;
        response = Some(next.run(request).await);
    } else {
        if fault.kind.works() {
            response = Some(next.run(request).await);
        }
        tokio::time::sleep(fault.latency()).await;
    }
    let mut response = match (fault.kind, response) {
        (Kind::CutBefore | Kind::CutAfter, _) => return (Answered::Cut, server::cut()),
        (Kind::SilentBefore | Kind::SilentAfter, _) => {
            return (Answered::Silent, server::silence());
        }
        (Kind::ClockSkew, Some(response)) => skewed(world, fault, response).await,
        (Kind::OtherIntent, Some(response)) => about_another(world, fault, response).await,
        (Kind::Misrouted, _) => misrouted(world, fault, &path),
        (Kind::Fields, Some(response)) => with_fields(fault, response).await,
        (Kind::Latency | Kind::LatencyAfter | Kind::Headers, Some(response)) => response,
        _ => failure(fault),
    };
    // They were checked when the fault was set.
    let headers = fault.header_map().unwrap_or_default();
    response.headers_mut().extend(headers);
    answer(response)
}

fn failure(fault: &Fault) -> Response {
    let status = fault
        .status
        .and_then(|status| StatusCode::from_u16(status).ok());
    let status = status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    Problem::new(status, "The sandbox was told to answer this.").into_response()
}

/// The answer of a node whose clock is wrong.
async fn skewed(world: &World, fault: &Fault, response: Response) -> Response {
    let skew = time::Duration::milliseconds(fault.skew_ms.unwrap_or(0));
    let mut response = rewritten(response, |answer| {
        for intent in intents_in(answer) {
            let told = intent["updatedAt"].as_str().and_then(Timestamp::parse);
            if let Some(told) = told {
                intent["updatedAt"] = json!(told.plus(skew));
            }
        }
    })
    .await;
    let date = world.clock.now().plus(skew).in_http();
    if let Some(Ok(date)) = date.map(HeaderValue::try_from) {
        response.headers_mut().insert(header::DATE, date);
    }
    response
}

/// The answer to somebody else's question. Without an intent to mistake for the right one, it is the right one under
/// another id.
async fn about_another(world: &World, fault: &Fault, response: Response) -> Response {
    rewritten(response, |answer| {
        let Some(asked) = answer["id"].as_str().filter(|id| id.starts_with("pi_")) else {
            return;
        };
        match another(world, fault, asked) {
            Some(other) => *answer = other,
            None => answer["id"] = json!(ids::tagged("pi_sandbox_")),
        }
    })
    .await
}

/// The answer to the same call about another intent, whose work was not done: the intent itself, or a refund of it.
fn misrouted(world: &World, fault: &Fault, path: &str) -> Response {
    let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    let asked = parts.get(1).copied().unwrap_or_default();
    let Some(other) = another(world, fault, asked) else {
        return failure(fault);
    };
    let answer = match parts.get(2) {
        Some(&"refunds") => {
            json!({"paymentIntentId": other["id"], "refundId": ids::tagged("rfnd_")})
        }
        _ => other,
    };
    axum::Json(answer).into_response()
}

/// The intent that a fault names, or else the account's newest one other than `asked`.
fn another(world: &World, fault: &Fault, asked: &str) -> Option<Value> {
    world.with_ledger(|ledger| {
        if let Some(id) = &fault.intent_id {
            return ledger.find(id).map(Intent::to_json);
        }
        let account = &ledger.find(asked)?.account;
        let mut others = ledger.all().rev().map(|(_, intent)| intent);
        others
            .find(|intent| intent.id != asked && intent.account == *account)
            .map(Intent::to_json)
    })
}

/// An answer with some fields that are not as they should be.
async fn with_fields(fault: &Fault, response: Response) -> Response {
    rewritten(response, |answer| {
        if let Some(answer) = answer.as_object_mut() {
            answer.extend(fault.fields.clone());
        }
    })
    .await
}

/// The intents that an answer shows: one, or a page of them.
fn intents_in(answer: &mut Value) -> impl Iterator<Item = &mut Value> {
    let (page, one) = if answer["data"].is_array() {
        (answer["data"].as_array_mut(), None)
    } else {
        (None, Some(answer))
    };
    page.into_iter().flatten().chain(one)
}

/// Rewrites an answer's body, if it is JSON.
async fn rewritten(response: Response, rewrite: impl FnOnce(&mut Value)) -> Response {
    let (mut parts, body) = response.into_parts();
    let bytes = in_memory(body).await;
    let Ok(mut json) = serde_json::from_slice(&bytes) else {
        return Response::from_parts(parts, Body::from(bytes));
    };
    rewrite(&mut json);
    // It was the length of the body as it was.
    parts.headers.remove(header::CONTENT_LENGTH);
    Response::from_parts(parts, Body::from(json.to_string()))
}

/// An answer's body. It was made in memory, so there is nothing that could fail to arrive.
async fn in_memory(body: Body) -> Bytes {
    axum::body::to_bytes(body, usize::MAX)
        .await
        .unwrap_or_default()
}

fn answer(response: Response) -> (Answered, Response) {
    (Answered::Status(response.status().as_u16()), response)
}

fn loggable(headers: &HeaderMap) -> BTreeMap<String, String> {
    let mut shown = BTreeMap::<String, String>::new();
    for (name, value) in headers {
        if name == header::AUTHORIZATION {
            continue;
        }
        let value = String::from_utf8_lossy(value.as_bytes());
        shown
            .entry(name.as_str().to_owned())
            .and_modify(|values| {
                values.push_str(", ");
                values.push_str(&value);
            })
            .or_insert_with(|| value.into_owned());
    }
    shown
}

/// The body as JSON; as text where it is none, and as nothing where there is none.
fn as_json<S: Serializer>(body: &Bytes, serializer: S) -> Result<S::Ok, S::Error> {
    if body.is_empty() {
        return serializer.serialize_none();
    }
    match serde_json::from_slice::<Value>(body) {
        Ok(value) => value.serialize(serializer),
        Err(_) => serializer.serialize_str(&String::from_utf8_lossy(body)),
    }
}
