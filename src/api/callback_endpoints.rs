//! Callback endpoints: subscriptions to the feed, and what was sent to them.

use std::time::Duration;

use axum::{
    Json,
    extract::{FromRequestParts, Path, RawQuery, State},
    http::{StatusCode, header, request::Parts},
    response::{IntoResponse, Response},
};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::time::timeout;
use utoipa::{IntoParams, IntoResponses, ToSchema};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    auth::Caller,
    error::Error,
    examples,
    problem::Problem,
    query::{AFTER, Page, PageParameters, Query, to_i64},
    responses::{BadBody, Guarded, InvalidQuery},
    scope::CallbacksManage,
    state::AppState,
    write_request::{Key, WriteRequest},
};
use crate::{
    callbacks::{
        client::{Attempt, Outcome},
        endpoint::{
            ChangedEndpoint, Delivery, DeliveryStatus, Endpoint, EndpointId, LONGEST_OVERLAP,
            NewEndpoint, broken_rules,
        },
        signature::SigningSecret,
    },
    payment_link::{EventId, Fault, PaymentLinkId},
    store::{
        self,
        callback_endpoints::Refused,
        feed::{Cursor, Unusable},
    },
};

pub(super) fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(create, list))
        .routes(routes!(get, change, delete))
        .routes(routes!(rotate_secret))
        .routes(routes!(ping))
        .routes(routes!(pause))
        .routes(routes!(resume))
        .routes(routes!(replay))
        .routes(routes!(deliveries))
}

/// A request that changes an endpoint, or creates one.
type Request<P = ()> = WriteRequest<CallbacksManage, P>;

/// The endpoint's id in a path. If it isn't a valid id, there is no such endpoint.
#[derive(IntoParams)]
#[into_params(parameter_in = Path)]
struct EndpointPath {
    /// The endpoint's id, `cbe_…`.
    #[param(value_type = String, example = "cbe_01kaz8v4wce7q8m6s5gq9nq2fd")]
    id: EndpointId,
}

impl<S: Send + Sync> FromRequestParts<S> for EndpointPath {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Error> {
        let Path(id) = Path::<String>::from_request_parts(parts, state)
            .await
            .map_err(|_| Error::NotFound)?;
        let id = id.parse().map_err(|_| Error::NoSuchEndpoint)?;
        Ok(Self { id })
    }
}

/// There is no such callback endpoint.
#[derive(IntoResponses)]
#[response(status = 404, content_type = "application/problem+json", examples(("not-found" = ())))]
#[expect(dead_code, reason = "describes the response that `Error` creates")]
struct NoSuchEndpoint(Problem);

/// Another endpoint has this URL, or there are too many endpoints.
#[derive(IntoResponses)]
#[response(status = 409, content_type = "application/problem+json", examples(("url-taken" = ()), ("too-many-endpoints" = ())))]
#[expect(dead_code, reason = "describes the responses that `Error` creates")]
struct Refusal(Problem);

/// The request is invalid. `errors` lists everything that is wrong.
#[derive(IntoResponses)]
#[response(status = 422, content_type = "application/problem+json", examples(("invalid-request" = ())))]
#[expect(dead_code, reason = "describes the response that `Error` creates")]
struct InvalidBody(Problem);

/// An endpoint with its secret, which is shown only in this response.
#[derive(Serialize, ToSchema)]
#[schema(as = CallbackEndpointWithSecret)]
struct EndpointWithSecret {
    #[serde(flatten)]
    endpoint: Endpoint,
    /// The secret that signs callbacks, in the form of Standard Webhooks.
    #[schema(example = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSwMfKQ9r8GKYo=")]
    secret: String,
}

/// All callback endpoints.
#[derive(Serialize, ToSchema)]
#[schema(as = CallbackEndpoints)]
struct Endpoints {
    data: Vec<Endpoint>,
}

/// What the schemas don't check about a body that creates or changes an endpoint.
fn faults<P>(request: &Request<P>, body: &Value) -> Vec<Fault> {
    let header = &body["header"];
    let header = header["name"].as_str().zip(header["value"].as_str());
    let mut faults = broken_rules(
        body["url"].as_str(),
        header,
        request.state.callbacks.allow(),
    );
    for (index, account) in body["accounts"]
        .as_array()
        .into_iter()
        .flatten()
        .enumerate()
    {
        let is_known = account.as_str().is_none_or(|name| {
            request.caller.may_see(name) && request.state.accounts.get(name).is_some()
        });
        if !is_known {
            faults.push(Fault::new(
                format!("/accounts/{index}"),
                "is not an account that the API key has access to",
            ));
        }
    }
    faults
}

fn refused(refused: Refused) -> Error {
    match refused {
        Refused::UrlTaken => Error::UrlTaken,
        Refused::TooMany => Error::TooManyEndpoints,
    }
}

/// Creates a callback endpoint.
///
/// The endpoint gets every event that happens from now on, in the order of the feed for each link, at least once. Each
/// callback is a `POST` of the event, signed as [Standard Webhooks](https://www.standardwebhooks.com) specifies, and counts as
/// delivered when the response has a 2xx status. To get earlier events as well, replay them.
///
/// The response has the secret that verifies the signatures. It is not shown again.
#[utoipa::path(
    post, path = "/v1/callback-endpoints", operation_id = "createCallbackEndpoint", tag = "Callbacks",
    request_body(content = NewEndpoint, example = json!({"url": "https://orders.example.com/hooks/payments", "types": ["payment_link.captured", "payment_link.refunded"]})),
    security(("apiKey" = ["callbacks:manage"])),
    responses(
        (status = 201, description = "The endpoint with its secret.", body = EndpointWithSecret, example = json!(examples::endpoint_with_secret())),
        BadBody, Guarded, Refusal, InvalidBody,
    )
)]
async fn create(request: Request) -> Result<Response, Error> {
    let mut new: NewEndpoint = request.body(Key::Optional, |body| faults(&request, body))?;
    if new.accounts.is_none() {
        new.accounts = request.caller.accounts().map(<[String]>::to_vec);
    }
    let secret = SigningSecret::generate();
    let created = store::callback_endpoints::create(&request.state.pool, &new, &secret).await?;
    let endpoint = created.map_err(refused)?;
    let secret = secret.expose();
    let location = format!("/v1/callback-endpoints/{}", endpoint.id);
    let created = Json(EndpointWithSecret { endpoint, secret });
    Ok((StatusCode::CREATED, [(header::LOCATION, location)], created).into_response())
}

/// Lists the callback endpoints, oldest first.
#[utoipa::path(
    get, path = "/v1/callback-endpoints", operation_id = "listCallbackEndpoints", tag = "Callbacks",
    security(("apiKey" = ["callbacks:manage"])),
    responses(
        (status = 200, description = "All endpoints that the API key has access to.", body = Endpoints, example = json!({"data": [examples::endpoint()]})),
        Guarded, InvalidQuery,
    )
)]
async fn list(
    State(state): State<AppState>,
    caller: Caller<CallbacksManage>,
    RawQuery(query): RawQuery,
) -> Result<Json<Endpoints>, Error> {
    Query::new(query.as_deref()).finish()?;
    let data = store::callback_endpoints::list(&state.pool, caller.accounts()).await?;
    Ok(Json(Endpoints { data }))
}

/// Retrieves a callback endpoint.
#[utoipa::path(
    get, path = "/v1/callback-endpoints/{id}", operation_id = "getCallbackEndpoint", tag = "Callbacks", params(EndpointPath),
    security(("apiKey" = ["callbacks:manage"])),
    responses(
        (status = 200, description = "The endpoint.", body = Endpoint, example = json!(examples::endpoint())),
        Guarded, NoSuchEndpoint,
    )
)]
async fn get(
    State(state): State<AppState>,
    caller: Caller<CallbacksManage>,
    EndpointPath { id }: EndpointPath,
) -> Result<Json<Endpoint>, Error> {
    let endpoint = store::callback_endpoints::find(&state.pool, id, caller.accounts()).await?;
    endpoint.map(Json).ok_or(Error::NoSuchEndpoint)
}

/// Changes a callback endpoint.
///
/// The body is a JSON merge patch (RFC 7396): what is absent stays as it is, and `null` removes a value. Changes to `types` and
/// `accounts` apply to events that the endpoint hasn't got to yet: what already waits for another attempt is still sent.
#[utoipa::path(
    patch, path = "/v1/callback-endpoints/{id}", operation_id = "changeCallbackEndpoint", tag = "Callbacks", params(EndpointPath),
    request_body(content = ChangedEndpoint, example = json!({"types": null, "description": "All events"})),
    security(("apiKey" = ["callbacks:manage"])),
    responses(
        (status = 200, description = "The endpoint after the change.", body = Endpoint, example = json!(examples::endpoint())),
        BadBody, Guarded, NoSuchEndpoint, Refusal, InvalidBody,
    )
)]
async fn change(request: Request<EndpointPath>) -> Result<Json<Endpoint>, Error> {
    let mut changed: ChangedEndpoint =
        request.body(Key::Optional, |body| faults(&request, body))?;
    let (id, open) = (request.path.id, request.caller.accounts());
    if changed.accounts == Some(None) {
        changed.accounts = Some(request.caller.accounts().map(<[String]>::to_vec));
    }
    store::callback_endpoints::change(&request.state.pool, id, open, &changed)
        .await?
        .ok_or(Error::NoSuchEndpoint)?
        .map(Json)
        .map_err(refused)
}

/// Deletes a callback endpoint.
///
/// Nothing more is sent to it, and its deliveries are removed. A callback that is in flight may still arrive. To stop for a
/// while, pause it instead.
#[utoipa::path(
    delete, path = "/v1/callback-endpoints/{id}", operation_id = "deleteCallbackEndpoint", tag = "Callbacks", params(EndpointPath),
    security(("apiKey" = ["callbacks:manage"])),
    responses((status = 204, description = "The endpoint was deleted."), Guarded, NoSuchEndpoint)
)]
async fn delete(
    State(state): State<AppState>,
    caller: Caller<CallbacksManage>,
    EndpointPath { id }: EndpointPath,
) -> Result<StatusCode, Error> {
    if store::callback_endpoints::delete(&state.pool, id, caller.accounts()).await? {
        Ok(StatusCode::NO_CONTENT)
    } else {
        Err(Error::NoSuchEndpoint)
    }
}

/// How to rotate a secret.
#[derive(Default, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = CallbackSecretRotation)]
struct SecretRotation {
    /// For how many seconds the current secret signs as well. A day if omitted, a week at most.
    #[schema(minimum = 0, maximum = 604_800, nullable = false)]
    overlap_seconds: Option<u32>,
}

/// Gives a callback endpoint a new secret.
///
/// For a day, or as long as requested, callbacks have two signatures: one by each secret. So the receiver can change over at
/// any time within it. The secret is not shown again. If the response is lost, rotate again: up to three earlier secrets keep
/// signing, all of them until the latest of the promised times. With 0, they stop at once.
#[utoipa::path(
    post, path = "/v1/callback-endpoints/{id}/rotate-secret", operation_id = "rotateCallbackSecret", tag = "Callbacks",
    params(EndpointPath),
    request_body(content = SecretRotation, example = json!({"overlapSeconds": 3600})),
    security(("apiKey" = ["callbacks:manage"])),
    responses(
        (status = 200, description = "The endpoint with its new secret.", body = EndpointWithSecret, example = json!(examples::endpoint_with_secret())),
        BadBody, Guarded, NoSuchEndpoint, InvalidBody,
    )
)]
async fn rotate_secret(request: Request<EndpointPath>) -> Result<Json<EndpointWithSecret>, Error> {
    let rotation: SecretRotation = request.optional_body()?;
    let (id, open) = (request.path.id, request.caller.accounts());
    let secret = SigningSecret::generate();
    let overlap = rotation
        .overlap_seconds
        .map_or(Duration::from_hours(24), |seconds| {
            Duration::from_secs(seconds.into())
        })
        .min(LONGEST_OVERLAP);
    let endpoint =
        store::callback_endpoints::rotate_secret(&request.state.pool, id, open, &secret, overlap)
            .await?
            .ok_or(Error::NoSuchEndpoint)?;
    let secret = secret.expose();
    Ok(Json(EndpointWithSecret { endpoint, secret }))
}

/// How an endpoint responded to a ping.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = CallbackPong)]
struct Pong {
    /// Whether the response had a 2xx status.
    delivered: bool,
    /// `delivered`, or why not, as in a delivery's `lastAttempt`.
    #[schema(example = "delivered")]
    outcome: &'static str,
    /// The response's status, if there was a response.
    response_status: Option<u16>,
    /// How long the attempt took.
    milliseconds: u64,
}

impl From<Attempt> for Pong {
    fn from(attempt: Attempt) -> Self {
        Self {
            delivered: attempt.outcome == Outcome::Delivered,
            outcome: attempt.outcome.name(),
            response_status: attempt.status,
            milliseconds: u64::try_from(attempt.duration.as_millis()).unwrap_or(u64::MAX),
        }
    }
}

/// Sends a test to a callback endpoint.
///
/// Sends one signed callback of the type `ping`, which is not part of the feed, and returns how the endpoint responded. Works
/// even if the endpoint is paused, and changes nothing.
#[utoipa::path(
    post, path = "/v1/callback-endpoints/{id}/ping", operation_id = "pingCallbackEndpoint", tag = "Callbacks",
    params(EndpointPath),
    security(("apiKey" = ["callbacks:manage"])),
    responses(
        (status = 200, description = "How the endpoint responded, or why it could not be reached.", body = Pong, example = json!({"delivered": true, "outcome": "delivered", "responseStatus": 204, "milliseconds": 38})),
        BadBody, Guarded, NoSuchEndpoint,
    )
)]
async fn ping(request: Request<EndpointPath>) -> Result<Json<Pong>, Error> {
    request.no_body()?;
    let (state, id, open) = (&request.state, request.path.id, request.caller.accounts());
    let _permit = state.reserve_call()?;
    let target = store::callback_deliveries::target(&state.pool, id, open)
        .await?
        .ok_or(Error::NoSuchEndpoint)?;
    let client = state.callbacks.get().await;
    let client = client.map_err(|_| Error::NoCallbackClient)?;
    timeout(state.time_left(request.begun), target.ping(client))
        .await
        .map(|attempt| Json(attempt.into()))
        .map_err(|_| Error::PingTimedOut)
}

/// Pauses a callback endpoint.
///
/// Nothing more is sent to it until it is resumed, except for what is in flight. Nothing is lost: what happens meanwhile is sent
/// then.
#[utoipa::path(
    post, path = "/v1/callback-endpoints/{id}/pause", operation_id = "pauseCallbackEndpoint", tag = "Callbacks",
    params(EndpointPath),
    security(("apiKey" = ["callbacks:manage"])),
    responses(
        (status = 200, description = "The endpoint.", body = Endpoint, example = json!(examples::endpoint())),
        BadBody, Guarded, NoSuchEndpoint,
    )
)]
async fn pause(request: Request<EndpointPath>) -> Result<Json<Endpoint>, Error> {
    request.no_body()?;
    let (id, open) = (request.path.id, request.caller.accounts());
    let paused = store::callback_endpoints::pause(&request.state.pool, id, open).await?;
    paused.map(Json).ok_or(Error::NoSuchEndpoint)
}

/// Resumes a callback endpoint.
///
/// Callbacks continue where they stopped. What waits for another attempt is attempted at once, and gets all its attempts again:
/// so resuming an active endpoint is useful, too, when it has been repaired.
#[utoipa::path(
    post, path = "/v1/callback-endpoints/{id}/resume", operation_id = "resumeCallbackEndpoint", tag = "Callbacks",
    params(EndpointPath),
    security(("apiKey" = ["callbacks:manage"])),
    responses(
        (status = 200, description = "The endpoint.", body = Endpoint, example = json!(examples::endpoint())),
        BadBody, Guarded, NoSuchEndpoint,
    )
)]
async fn resume(request: Request<EndpointPath>) -> Result<Json<Endpoint>, Error> {
    request.no_body()?;
    let (id, open) = (request.path.id, request.caller.accounts());
    let resumed = store::callback_endpoints::resume(&request.state.pool, id, open).await?;
    resumed.map(Json).ok_or(Error::NoSuchEndpoint)
}

/// What to send again: exactly one of the two.
#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = CallbackReplay)]
struct Replay {
    /// Everything that follows this place in the feed: the `after` of a response of `GET /v1/events`.
    #[schema(nullable = false)]
    after: Option<String>,
    /// This event.
    #[schema(nullable = false, example = "evt_01kaz8v4wce7q8m6s5gq9nq2fd")]
    event_id: Option<String>,
}

/// Sends events again.
///
/// Either everything behind a place in the feed that the endpoint wants, whether it was delivered or not, or one event, whether
/// the endpoint wants its type or not. The callbacks have the same `webhook-id` as before, so a receiver that remembers which it
/// has processed ignores the ones it knows. What waits for another attempt is attempted at once.
#[utoipa::path(
    post, path = "/v1/callback-endpoints/{id}/replay", operation_id = "replayCallbacks", tag = "Callbacks",
    params(EndpointPath),
    request_body(content = Replay, example = json!({"eventId": "evt_01kaz8v4wce7q8m6s5gq9nq2fd"})),
    security(("apiKey" = ["callbacks:manage"])),
    responses(
        (status = 202, description = "The events will be sent.", body = Endpoint, example = json!(examples::endpoint())),
        BadBody, Guarded, NoSuchEndpoint,
        (status = 410, description = "Nothing can be replayed from this `after`: the events that followed it have been removed, or it comes from another database, or from before a backup was restored.", body = Problem, content_type = "application/problem+json", examples(("events-removed" = ()), ("cursor-unknown" = ()))),
        InvalidBody,
    )
)]
async fn replay(request: Request<EndpointPath>) -> Result<(StatusCode, Json<Endpoint>), Error> {
    let replay: Replay = request.body(Key::Optional, replay_faults)?;
    let (pool, id, open) = (
        &request.state.pool,
        request.path.id,
        request.caller.accounts(),
    );
    let find = || store::callback_endpoints::find(pool, id, open);
    find().await?.ok_or(Error::NoSuchEndpoint)?;
    if let Some(after) = replay.after.and_then(|after| after.parse::<Cursor>().ok()) {
        store::callback_endpoints::replay_after(pool, id, open, after)
            .await?
            .ok_or(Error::NoSuchEndpoint)?
            .map_err(|unusable| match unusable {
                Unusable::Pruned => Error::EventsRemoved,
                Unusable::Foreign => Error::CursorUnknown,
            })?;
    }
    if let Some(event) = replay.event_id.and_then(|id| id.parse::<EventId>().ok())
        && !store::callback_endpoints::replay_event(pool, id, event, open).await?
    {
        return Err(Error::Invalid(vec![Fault::new("/eventId", NO_SUCH_EVENT)]));
    }
    let endpoint = find().await?.ok_or(Error::NoSuchEndpoint)?;
    Ok((StatusCode::ACCEPTED, Json(endpoint)))
}

const NO_SUCH_EVENT: &str = "must be the id of an event in the feed that the API key has access to";

fn replay_faults(body: &Value) -> Vec<Fault> {
    let member = |name| body.get(name).filter(|value| !value.is_null());
    let (after, event) = (member("after"), member("eventId"));
    let mut faults = Vec::new();
    if after.is_some() == event.is_some() {
        faults.push(Fault::new("", "must have exactly one of after and eventId"));
    }
    let text = |value: Option<&Value>| value.and_then(Value::as_str).map(str::to_owned);
    if text(after).is_some_and(|after| after.parse::<Cursor>().is_err()) {
        faults.push(Fault::new("/after", format!("must be {AFTER}")));
    }
    if text(event).is_some_and(|event| event.parse::<EventId>().is_err()) {
        faults.push(Fault::new("/eventId", NO_SUCH_EVENT));
    }
    faults
}

/// The filters of the list, for the OpenAPI document.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "describes what `deliveries` reads")]
struct Filters {
    /// Only deliveries with this status. Repeat the parameter to allow several.
    #[param(example = json!(["Failed"]))]
    status: Option<Vec<DeliveryStatus>>,
    /// Only deliveries of events about this link.
    #[param(rename = "paymentLinkId", value_type = Option<String>)]
    payment_link_id: Option<String>,
}

/// Lists the deliveries to a callback endpoint, newest event first.
///
/// Lists what was delivered, what waits for another attempt, and what failed, with the last attempt of each. An event that has
/// never been attempted may not be listed yet.
#[utoipa::path(
    get, path = "/v1/callback-endpoints/{id}/deliveries", operation_id = "listCallbackDeliveries", tag = "Callbacks",
    params(EndpointPath, Filters, PageParameters),
    security(("apiKey" = ["callbacks:manage"])),
    responses(
        (status = 200, description = "A page of deliveries.", body = Page<Delivery>, example = json!(examples::deliveries())),
        Guarded, NoSuchEndpoint, InvalidQuery,
    )
)]
async fn deliveries(
    State(state): State<AppState>,
    caller: Caller<CallbacksManage>,
    EndpointPath { id }: EndpointPath,
    RawQuery(query): RawQuery,
) -> Result<Json<Page<Delivery>>, Error> {
    let mut query = Query::new(query.as_deref());
    let statuses = query.any_of("status", &DeliveryStatus::ALL.map(DeliveryStatus::as_str));
    let link_id = query.take("paymentLinkId", "the id of a payment link", |text| {
        text.parse::<PaymentLinkId>().ok()
    });
    let limit = query.limit();
    let before = query.take("after", AFTER, |text| {
        i64::from_str_radix(text, 16)
            .ok()
            .filter(|position| *position >= 0)
    });
    query.finish()?;
    store::callback_endpoints::find(&state.pool, id, caller.accounts())
        .await?
        .ok_or(Error::NoSuchEndpoint)?;
    let found = store::callback_deliveries::list(
        &state.pool,
        id,
        statuses.as_deref(),
        link_id,
        before,
        to_i64(limit) + 1,
    )
    .await?;
    let cursor = |position: i64| format!("{position:x}");
    let start = cursor(before.unwrap_or(i64::MAX));
    Ok(Json(Page::new(found, limit, start, |last| {
        cursor(last.position)
    })))
}
