//! Requests to the service's own API, within the process, as the person at the console.
//!
//! Whatever the API checks, limits and records, it does for the console as well.

use axum::{
    body::{Body, Bytes, to_bytes},
    http::{Method, Request, StatusCode, header},
};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;
use tower::ServiceExt;
use url::form_urlencoded::Serializer;

use super::{person::Person, state::Console, words::in_british};
use crate::{
    api::{Authenticated, Problem, REQUEST_ID},
    payment_link::Fault,
};

/// More than any response has.
const LIMIT: usize = 64 * 1024 * 1024;

/// How long the API may wait for an outcome that isn't known at once, so that the person sees it.
const PREFER: &str = "wait=20";

/// A page of one of the API's lists.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct List<T> {
    pub(super) data: Vec<T>,
    pub(super) after: String,
    pub(super) has_more: bool,
}

/// A path with those of these parameters that have a value.
pub(super) fn with_query<'a>(
    path: &str,
    parameters: impl IntoIterator<Item = (&'a str, &'a str)>,
) -> String {
    let given = parameters
        .into_iter()
        .filter(|(_, value)| !value.is_empty());
    let query = Serializer::new(String::new()).extend_pairs(given).finish();
    format!("{path}?{query}")
}

/// The response to a request that succeeded.
pub(super) struct Answer {
    pub(super) body: Bytes,
}

impl Answer {
    /// The body as JSON. Null if it isn't.
    pub(super) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }
}

/// Reads something.
pub(super) async fn get<T: DeserializeOwned>(
    console: &Console,
    person: &Person,
    path: &str,
) -> Result<T, Box<Problem>> {
    let answer = send(console, person, Method::GET, path, None, None).await?;
    serde_json::from_slice(&answer.body).map_err(|_| unreadable(path, person))
}

/// Reads an image or a text.
pub(super) async fn get_raw(
    console: &Console,
    person: &Person,
    path: &str,
) -> Result<Answer, Box<Problem>> {
    send(console, person, Method::GET, path, None, None).await
}

/// Requests that something is done. With the same `key`, it is done once.
pub(super) async fn post(
    console: &Console,
    person: &Person,
    path: &str,
    key: Option<&str>,
    body: Option<&Value>,
) -> Result<Answer, Box<Problem>> {
    send(console, person, Method::POST, path, key, body).await
}

async fn send(
    console: &Console,
    person: &Person,
    method: Method,
    path: &str,
    key: Option<&str>,
    body: Option<&Value>,
) -> Result<Answer, Box<Problem>> {
    let mut request = Request::builder()
        .method(method)
        .uri(path)
        .header(REQUEST_ID, &person.request_id)
        .extension(Authenticated(person.who.clone()));
    if let Some(key) = key {
        request = request
            .header("idempotency-key", key)
            .header("prefer", PREFER);
    }
    let body = match body {
        Some(body) => {
            request = request.header(header::CONTENT_TYPE, "application/json");
            Body::from(body.to_string())
        }
        None => Body::empty(),
    };
    let request = request.body(body).map_err(|_| unreadable(path, person))?;
    let Ok(response) = console.api.clone().oneshot(request).await;
    let (parts, body) = response.into_parts();
    let body = to_bytes(body, LIMIT)
        .await
        .map_err(|_| unreadable(path, person))?;
    if parts.status.is_client_error() || parts.status.is_server_error() {
        let problem = serde_json::from_slice(&body).map_err(|_| unreadable(path, person))?;
        return Err(Box::new(for_people(problem)));
    }
    Ok(Answer { body })
}

/// A problem as the console shows it.
fn for_people(problem: Problem) -> Problem {
    let errors = problem.errors.into_iter().map(|fault| Fault {
        detail: in_british(&fault.detail),
        ..fault
    });
    Problem {
        title: in_british(&problem.title),
        detail: in_british(&problem.detail),
        errors: errors.collect(),
        ..problem
    }
}

/// The problem of a response that the console doesn't understand.
fn unreadable(path: &str, person: &Person) -> Box<Problem> {
    Box::new(Problem {
        kind: "/docs/problems#internal-error".to_owned(),
        title: "Something went wrong".to_owned(),
        status: StatusCode::INTERNAL_SERVER_ERROR.as_u16(),
        detail: "the console could not read the service's own response".to_owned(),
        instance: path.to_owned(),
        request_id: person.request_id.clone(),
        errors: Vec::new(),
        allowed_actions: None,
        remaining: None,
        payment_link_id: None,
        operation_id: None,
    })
}

/// The end of a problem's type, which says what to do about it.
pub(super) fn slug(problem: &Problem) -> &str {
    problem.kind.rsplit('#').next().unwrap_or_default()
}
