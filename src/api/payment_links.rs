//! Payment links: create one, read one, list them, read a timeline, reconcile now.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    Json,
    extract::{FromRequestParts, Path, RawQuery, State},
    http::{HeaderMap, HeaderValue, StatusCode, header, request::Parts},
    response::{IntoResponse, Response},
};
use serde_json::Value;
use sha2::{Digest, Sha256};
use time::{OffsetDateTime, macros::datetime};
use utoipa::IntoParams;
use utoipa_axum::{router::OpenApiRouter, routes};
use uuid::Uuid;

use super::{
    auth::Caller,
    error::Error,
    examples,
    idempotency::{IDEMPOTENT_REPLAYED, OptionalKey, RequiredKey},
    metadata_entry::MetadataEntry,
    observe::RequestId,
    problem::{Problem, Subject},
    query::{AFTER, Page, PageParameters, Query, one_to_sixty, to_i64},
    responses::{BadBody, Guarded, InvalidQuery, NoSuchLink},
    scope::{LinksRead, LinksWrite},
    sort::Sort,
    state::AppState,
    write_request::{Key, PreferWait, WriteRequest, applied},
};
use crate::{
    payment_link::{
        Fault, NewPaymentLink, NotRenewable, OperationId, PaymentLink, PaymentLinkId, Renewal,
        Status, broken_rules, parse_time, timeline,
    },
    protocol::{
        self,
        creation::{self, Outcome},
    },
    store::{
        self,
        links::{Filter, Place, Term},
    },
};

const PATH: &str = "/v1/payment-links";

pub(super) fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(create, list))
        .routes(routes!(get))
        .routes(routes!(events))
        .routes(routes!(refresh))
        .routes(routes!(renew))
}

/// Creates a payment link.
///
/// Send an `Idempotency-Key`, and use a new one for each link you need. If you get no response, a 429, any 5xx, or a 409 with
/// `Retry-After`, send the same request again with the same key: however often you send it, only one link is created. A
/// repeated request gets the link as it is now. Keys are kept forever.
///
/// With `send`, the link is sent to the customer by email as soon as it can be paid, which requires the scope `links:send` as well.
#[utoipa::path(
    post, path = "/v1/payment-links", operation_id = "createPaymentLink", tag = "Payment links",
    params(OptionalKey, PreferWait),
    request_body(content = NewPaymentLink, example = json!({"amount": {"value": 2450, "currencyCode": "GBP"}, "reference": "Order 236"})),
    security(("apiKey" = ["links:write"])),
    responses(
        (status = 201, description = "The payment link.", body = PaymentLink, example = json!(examples::link())),
        BadBody,
        Guarded,
        (status = 409, description = "An earlier request with this key is still in progress: retry after `Retry-After`. Or nothing was created (`not-created`).", body = Problem, content_type = "application/problem+json", examples(("request-in-progress" = ()), ("not-created" = ()))),
        (status = 410, description = "The key was used before, and the personal data of the link that it led to was erased.", body = Problem, content_type = "application/problem+json", examples(("erased" = ()))),
        (status = 422, description = "The request is invalid or Dojo rejected it (`errors` lists the reasons), or the key was already used for a different request.", body = Problem, content_type = "application/problem+json", examples(("invalid-request" = ()), ("idempotency-key-reused" = ()), ("rejected-by-dojo" = ()))),
        (status = 502, description = "Dojo rejected this service's API key, or the server at the configured address is not Dojo's API. Nothing was created.", body = Problem, content_type = "application/problem+json", examples(("dojo-key-rejected" = ()), ("dojo-misrouted" = ()))),
        (status = 503, description = "The database or Dojo could not be reached, or too many requests are in progress. Retry after `Retry-After`.", body = Problem, content_type = "application/problem+json", examples(("dojo-not-reached" = ()), ("database-unavailable" = ()), ("overloaded" = ()), ("timed-out" = ()))),
        (status = 504, description = "Dojo's response was lost, so it is not known yet whether the link was created. `paymentLinkId` is the id it has if it was.", body = Problem, content_type = "application/problem+json", examples(("outcome-unknown" = ()))),
    )
)]
async fn create(request: WriteRequest<LinksWrite>) -> Result<Response, Error> {
    let (new, faults): (NewPaymentLink, _) = request.parse(Key::Optional, |body| {
        let mut faults = broken_rules(body, OffsetDateTime::now_utc());
        faults.extend(account_fault(&request.state, &request.caller, body));
        faults.extend(sending_fault(&request.state, body));
        faults
    })?;
    if new.send.is_some() {
        request.caller.check_may_send()?;
    }
    let key = request.idempotency_key(PATH, &new);
    let WriteRequest {
        state,
        caller,
        request_id,
        prefer_wait,
        begun,
        ..
    } = request;
    if !faults.is_empty() {
        // A request that was valid at first may be invalid by now, for example because `expireAt` has passed. A repetition
        // still gets the original outcome, unless the client's new API key has no access to the account.
        let earlier = match &key {
            Ok(Some(key)) if caller.may_see(&new.account) => {
                creation::replay(&state.pool, key).await?
            }
            _ => None,
        };
        return match earlier {
            Some(earlier) => finish(&state, earlier, prefer_wait, begun).await,
            None => Err(Error::Invalid(faults)),
        };
    }
    let request = creation::Request {
        link_id: PaymentLinkId::new(),
        known_id: Arc::default(),
        new,
        client: caller.client,
        request_id,
        idempotency_key: key?,
        short_url_base: state.short_url_base.clone(),
        replaces: None,
    };
    perform(&state, request, prefer_wait, begun).await
}

/// Creates a link at Dojo, and responds with it.
async fn perform(
    state: &AppState,
    request: creation::Request,
    prefer_wait: Option<Duration>,
    begun: Instant,
) -> Result<Response, Error> {
    let (id, known_id) = (request.link_id, Arc::clone(&request.known_id));
    let work = Box::pin({
        let state = state.clone();
        async move {
            // The account is configured; otherwise the request would have had a fault.
            let account = state.account(&request.new.account);
            let account = account.ok_or(Error::AccountNotConfigured(id))?;
            Ok(creation::create(&state.context(account), request).await?)
        }
    });
    let subject = || Subject::Link(known_id.get().copied().unwrap_or(id));
    let outcome = state.run_to_completion(subject, work).await?;
    finish(state, outcome, prefer_wait, begun).await
}

/// Responds with an outcome, once it is known or the time that the caller prefers to wait is over.
async fn finish(
    state: &AppState,
    mut outcome: Outcome,
    prefer_wait: Option<Duration>,
    begun: Instant,
) -> Result<Response, Error> {
    if let Some(limit) = prefer_wait {
        let limit = limit.min(state.time_left(begun));
        outcome = creation::await_outcome(&state.pool, outcome, limit).await?;
    }
    respond(state, outcome).map(|response| applied(response, prefer_wait))
}

/// What is wrong with a request to send the link, if no emails can be sent.
fn sending_fault(state: &AppState, body: &Value) -> Option<Fault> {
    let is_requested = body.get("send").is_some_and(|send| !send.is_null());
    is_requested.then(|| state.mail_fault("/send")).flatten()
}

/// What is wrong with the account of a request, which is `default` if the request names none.
fn account_fault<S>(state: &AppState, caller: &Caller<S>, body: &Value) -> Option<Fault> {
    let (name, unknown) = match body.get("account") {
        // If it isn't a string, the schema reports it.
        Some(name) => (name.as_str()?, "is not an account of this service"),
        None => (
            NewPaymentLink::DEFAULT_ACCOUNT,
            "is required, because this service has no account default",
        ),
    };
    // Check access first: a key with limited access must not learn which other accounts exist.
    let detail = if !caller.may_see(name) {
        "is not accessible with this API key"
    } else if state.accounts.get(name).is_none() {
        unknown
    } else {
        return None;
    };
    Some(Fault::new("/account", detail))
}

fn respond(state: &AppState, outcome: Outcome) -> Result<Response, Error> {
    match outcome {
        Outcome::Created { link, replayed } => Ok(created(&link, replayed)),
        Outcome::Failed {
            link_id,
            failure,
            retry_after,
            replayed,
        } => Err(Error::DojoFailed {
            subject: Subject::Link(link_id),
            failure,
            retry_after,
            replayed,
        }),
        Outcome::Unknown { link_id } => Err(Error::OutcomeUnknown(Subject::Link(link_id))),
        Outcome::Running { link_id, progress } => Err(Error::RequestInProgress {
            subject: Subject::Link(link_id),
            progress,
            retry_after: state.limits.window.retry_after(progress),
        }),
        Outcome::KeyReused => Err(Error::IdempotencyKeyReused),
        Outcome::Erased => Err(Error::Erased),
        Outcome::ReplacedErased => Err(Error::NotRenewable(NotRenewable::Erased)),
        Outcome::Taken(by) => Err(Error::NotRenewable(match by.status {
            Status::Pending => NotRenewable::BeingRenewed(by.id),
            _ => NotRenewable::Renewed(by.id),
        })),
    }
}

fn created(link: &PaymentLink, replayed: bool) -> Response {
    let location = [(header::LOCATION, format!("{PATH}/{}", link.id))];
    let mut response = (StatusCode::CREATED, location, Json(link)).into_response();
    if replayed {
        response
            .headers_mut()
            .insert(IDEMPOTENT_REPLAYED, HeaderValue::from_static("true"));
    }
    response
}

/// Retrieves a payment link.
///
/// To poll cheaply, send the `ETag` of the last response as `If-None-Match`: while nothing has changed, the response is a 304
/// without a body.
#[utoipa::path(
    get, path = "/v1/payment-links/{id}", operation_id = "getPaymentLink", tag = "Payment links",
    params(LinkId, IfNoneMatch),
    security(("apiKey" = ["links:read"])),
    responses(
        (status = 200, description = "The payment link.", body = PaymentLink, example = json!(examples::paid_link())),
        (status = 304, description = "The link is as `If-None-Match` says."),
        Guarded,
        NoSuchLink,
    )
)]
async fn get(
    State(state): State<AppState>,
    caller: Caller<LinksRead>,
    LinkId { id }: LinkId,
    headers: HeaderMap,
) -> Result<Response, Error> {
    let link = caller.find_link(&state, id).await?;
    let body = serde_json::to_vec(&link).expect("a struct of plain values becomes JSON");
    let etag = entity_tag(&body);
    let is_same = headers
        .get_all(header::IF_NONE_MATCH)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|tags| tags.split(','))
        .any(|tag| tag.trim().trim_start_matches("W/") == etag);
    let etag = [(header::ETAG, etag)];
    Ok(if is_same {
        (StatusCode::NOT_MODIFIED, etag).into_response()
    } else {
        let json = [(header::CONTENT_TYPE, "application/json")];
        (etag, json, body).into_response()
    })
}

/// A strong entity tag: a hash of the body. The link's revision would not do, because not every member counts as a change.
fn entity_tag(body: &[u8]) -> String {
    let hash = Sha256::digest(body);
    format!("\"{}\"", hex::encode(&hash[..16]))
}

/// The header of [`get`], for the OpenAPI document.
#[derive(IntoParams)]
#[into_params(parameter_in = Header)]
#[expect(dead_code, reason = "describes what `get` reads")]
struct IfNoneMatch {
    /// The `ETag` of an earlier response.
    #[param(rename = "If-None-Match", nullable = false)]
    tag: Option<String>,
}

/// The id in a path. If it isn't a valid id, there is no such link.
#[derive(IntoParams)]
#[into_params(parameter_in = Path)]
pub(super) struct LinkId {
    /// The id of the payment link, `plink_…`.
    #[param(value_type = String, example = "plink_01m81mqpmrf8384nj77tj0t0e4")]
    pub(super) id: PaymentLinkId,
}

impl<S: Send + Sync> FromRequestParts<S> for LinkId {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Error> {
        let Path(id) = Path::<String>::from_request_parts(parts, state)
            .await
            .map_err(|_| Error::NotFound)?;
        let id = id.parse().map_err(|_| Error::NoSuchLink)?;
        Ok(Self { id })
    }
}

/// The filters of the list, for the OpenAPI document.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "describes what `list` reads")]
struct Filters {
    /// Only links of this account.
    #[param(min_length = 1, max_length = 60)]
    account: Option<String>,
    /// Only links with this status. Repeat the parameter to allow several.
    status: Option<Vec<Status>>,
    /// Only links with this reference.
    #[param(min_length = 1, max_length = 60, example = "Order 236")]
    reference: Option<String>,
    /// Only the link with this payment intent at Dojo.
    #[param(rename = "paymentIntentId")]
    payment_intent_id: Option<String>,
    /// Only links with this metadata entry: `order:236`. Repeat the parameter to require several entries.
    /// `metadata[order]=236` means the same, and its key may contain colons.
    metadata: Option<Vec<MetadataEntry>>,
    /// Only links whose `customer.emailAddress` is this, whatever the case of its letters.
    #[param(rename = "customerEmail", max_length = 256)]
    customer_email: Option<String>,
    /// Only links paid by a card whose number ends with these digits.
    #[param(rename = "cardLast4", pattern = "^[0-9]{4}$")]
    card_last4: Option<String>,
    /// Only links with this amount, in minor units.
    #[param(minimum = 0)]
    amount: Option<i64>,
    /// Only the link, payment intent or operation with this id, or links whose reference starts with this text.
    #[param(min_length = 1, max_length = 100)]
    q: Option<String>,
    /// Only links created at or after this time.
    #[param(rename = "createdAfter")]
    created_after: Option<OffsetDateTime>,
    /// Only links created before this time.
    #[param(rename = "createdBefore")]
    created_before: Option<OffsetDateTime>,
    /// Only links that changed at or after this time.
    #[param(rename = "updatedAfter")]
    updated_after: Option<OffsetDateTime>,
    /// `-createdAt`: newest first, the order if omitted. `updatedAt`: in the order of their last change, oldest first. With
    /// `updatedAt`, the `after` of the last page leads to links that change later. A change that is stored late appears
    /// behind newer ones, so to miss none, begin again from a minute before, with `updatedAfter`.
    sort: Option<Sort>,
}

/// Lists payment links, newest first.
///
/// Pages don't shift while you read them: links created in the meantime neither repeat nor hide an item.
#[utoipa::path(
    get, path = "/v1/payment-links", operation_id = "listPaymentLinks", tag = "Payment links", params(Filters, PageParameters),
    security(("apiKey" = ["links:read"])),
    responses(
        (status = 200, description = "A page of payment links.", body = Page<PaymentLink>, example = json!(examples::links())),
        Guarded,
        InvalidQuery,
    )
)]
async fn list(
    State(state): State<AppState>,
    caller: Caller<LinksRead>,
    RawQuery(query): RawQuery,
) -> Result<Json<Page<PaymentLink>>, Error> {
    let mut query = Query::new(query.as_deref());
    let filter = Filter {
        open: caller.accounts(),
        account: query.take("account", "1 to 60 characters", one_to_sixty),
        statuses: query.any_of("status", &Status::ALL.map(Status::as_str)),
        reference: query.take("reference", "1 to 60 characters", one_to_sixty),
        payment_intent_id: query.take("paymentIntentId", "an id", |text| Some(text.to_owned())),
        metadata: query.entries("metadata"),
        customer_email: query.take("customerEmail", "1 to 256 characters", |text| {
            (1..=256)
                .contains(&text.chars().count())
                .then(|| text.to_lowercase())
        }),
        card_last4: query.take("cardLast4", "4 digits", |text| {
            (text.len() == 4 && text.bytes().all(|byte| byte.is_ascii_digit()))
                .then(|| text.to_owned())
        }),
        amount: query.take("amount", "an amount in minor units", |text| {
            text.parse().ok().filter(|amount| *amount >= 0)
        }),
        term: query.take("q", "1 to 100 characters", search_term),
        created_after: query.take("createdAfter", "an RFC 3339 time", parse_time),
        created_before: query.take("createdBefore", "an RFC 3339 time", parse_time),
        updated_after: query.take("updatedAfter", "an RFC 3339 time", parse_time),
    };
    let sort = query.take("sort", "-createdAt or updatedAt", |text| match text {
        "-createdAt" => Some(Sort::Newest),
        "updatedAt" => Some(Sort::Updated),
        _ => None,
    });
    let sort = sort.unwrap_or(Sort::Newest);
    let limit = query.limit();
    let after = query.take(
        "after",
        "the after of an earlier page with the same sort",
        |text| {
            text.parse::<Cursor>()
                .ok()
                .filter(|cursor| cursor.sort == sort)
        },
    );
    query.finish()?;

    let (place, more) = (after.map(|cursor| cursor.place), to_i64(limit) + 1);
    let links = match sort {
        Sort::Newest => store::links::list(&state.pool, &filter, place, more).await?,
        Sort::Updated => store::links::list_updated(&state.pool, &filter, place, more).await?,
    };
    let start = after.unwrap_or_else(|| Cursor::start(sort)).to_string();
    Ok(Json(Page::new(links, limit, start, |last| {
        let at = match sort {
            Sort::Newest => last.created_at,
            Sort::Updated => last.updated_at,
        };
        let place = Place {
            at,
            id: last.id.uuid(),
        };
        Cursor { sort, place }.to_string()
    })))
}

/// What to search for: ids are recognized by their prefix.
fn search_term(text: &str) -> Option<Term> {
    if !(1..=100).contains(&text.chars().count()) {
        return None;
    }
    Some(if let Ok(id) = text.parse::<PaymentLinkId>() {
        Term::Link(id)
    } else if let Ok(id) = text.parse::<OperationId>() {
        Term::Operation(id)
    } else {
        Term::Text(text.to_owned())
    })
}

/// Lists the timeline of a payment link, oldest entry first.
///
/// Each entry is a change, or an attempt at one, with its cause. When a link can no longer change, old entries of webhooks
/// that changed nothing may be removed. All others are kept, and an `after` stays valid.
#[utoipa::path(
    get, path = "/v1/payment-links/{id}/events", operation_id = "listPaymentLinkEvents", tag = "Payment links",
    params(LinkId, PageParameters),
    security(("apiKey" = ["links:read"])),
    responses(
        (status = 200, description = "A page of the timeline.", body = Page<timeline::Entry>, example = json!(examples::timeline())),
        Guarded,
        NoSuchLink,
        InvalidQuery,
    )
)]
async fn events(
    State(state): State<AppState>,
    caller: Caller<LinksRead>,
    LinkId { id }: LinkId,
    RawQuery(query): RawQuery,
) -> Result<Json<Page<timeline::Entry>>, Error> {
    let mut query = Query::new(query.as_deref());
    let limit = query.limit();
    let after = query.take("after", AFTER, |text| {
        text.parse().ok().filter(|after| *after >= 0)
    });
    query.finish()?;

    caller.find_link(&state, id).await?;
    let entries = store::links::timeline(&state.pool, id, after.unwrap_or(0), to_i64(limit) + 1)
        .await?
        .ok_or(Error::NoSuchLink)?;
    let start = after.unwrap_or(0).to_string();
    Ok(Json(Page::new(entries, limit, start, |last| {
        last.id.clone()
    })))
}

/// Reconciles a payment link with Dojo now, and returns it.
///
/// Usually you don't need this call: webhooks and background jobs keep links up to date. Use it when you need Dojo's current
/// state immediately. `confirmed` is `true` only if Dojo reported this `status` in this call. It is `false` if Dojo's response
/// conflicts with what is stored: it's older than an earlier response, or doesn't yet show a payment that a webhook reported.
/// Then call again, or wait: if Dojo keeps reporting the same state, the link adopts it within minutes. A link whose
/// creation is still in progress is returned unchanged.
#[utoipa::path(
    post, path = "/v1/payment-links/{id}/refresh", operation_id = "refreshPaymentLink", tag = "Payment links",
    params(LinkId),
    security(("apiKey" = ["links:read"])),
    responses(
        (status = 200, description = "The payment link.", body = PaymentLink, example = json!(examples::paid_link())),
        Guarded,
        NoSuchLink,
        (status = 502, description = "Dojo rejected this service's API key.", body = Problem, content_type = "application/problem+json", examples(("dojo-key-rejected" = ()))),
        (status = 503, description = "The database or Dojo could not be reached. Retry after `Retry-After`.", body = Problem, content_type = "application/problem+json", examples(("dojo-not-reached" = ()), ("database-unavailable" = ()), ("timed-out" = ()), ("account-not-configured" = ()))),
    )
)]
async fn refresh(
    State(state): State<AppState>,
    caller: Caller<LinksRead>,
    RequestId(request_id): RequestId,
    LinkId { id }: LinkId,
) -> Result<Json<PaymentLink>, Error> {
    let link = caller.find_link(&state, id).await?;
    let account = state.account_of(&link)?;
    let cause = timeline::Cause::Request {
        client: caller.client,
        request_id,
    };
    let _permit = state.reserve_call()?;
    let context = state.context(account);
    let link = protocol::reconciliation::refresh(&context, id, &cause).await?;
    link.map(Json).ok_or(Error::NoSuchLink)
}

/// Renews a payment link that can no longer be paid.
///
/// Creates a link with the same terms and a new expiry, which takes the place of an expired, canceled or reversed one: it is
/// the `replacedBy` of that one, and gets its short address. Dojo is asked first, and nothing is created unless it confirms
/// that nobody can pay the old link any more. A link that can still be paid must be canceled first. However many requests
/// there are, only one link takes its place.
///
/// The terms are those of the old link as it is now, without `customer.secret`, which is not stored. The new link is sent, and
/// its customer reminded, only if this request says so.
///
/// If you get no response, a 429, any 5xx, or a 409 with `Retry-After`, send the same request again with the same
/// `Idempotency-Key`.
#[utoipa::path(
    post, path = "/v1/payment-links/{id}/renew", operation_id = "renewPaymentLink", tag = "Payment links",
    params(LinkId, RequiredKey, PreferWait),
    request_body(content = Renewal, example = json!({})),
    security(("apiKey" = ["links:write"])),
    responses(
        (status = 201, description = "The new payment link.", body = PaymentLink, example = json!(examples::renewed_link())),
        BadBody,
        Guarded,
        NoSuchLink,
        (status = 409, description = "The link can still be paid, was paid, or another link has taken its place (`not-renewable`). Or an earlier request with this key is still in progress: retry after `Retry-After`. Or nothing was created (`not-created`).", body = Problem, content_type = "application/problem+json", examples(("not-renewable" = ()), ("request-in-progress" = ()), ("not-created" = ()))),
        (status = 410, description = "The key was used before, and the personal data of the link that it led to was erased.", body = Problem, content_type = "application/problem+json", examples(("erased" = ()))),
        (status = 422, description = "The request is invalid or Dojo rejected it (`errors` lists the reasons), or the key was already used for a different request.", body = Problem, content_type = "application/problem+json", examples(("invalid-request" = ()), ("idempotency-key-reused" = ()), ("rejected-by-dojo" = ()))),
        (status = 502, description = "Dojo rejected this service's API key, or the server at the configured address is not Dojo's API. Nothing was created.", body = Problem, content_type = "application/problem+json", examples(("dojo-key-rejected" = ()), ("dojo-misrouted" = ()))),
        (status = 503, description = "The database or Dojo could not be reached, or too many requests are in progress. Retry after `Retry-After`.", body = Problem, content_type = "application/problem+json", examples(("dojo-not-reached" = ()), ("database-unavailable" = ()), ("overloaded" = ()), ("timed-out" = ()), ("account-not-configured" = ()))),
        (status = 504, description = "Dojo's response was lost, so it is not known yet whether the link was created. `paymentLinkId` is the id it has if it was.", body = Problem, content_type = "application/problem+json", examples(("outcome-unknown" = ()))),
    )
)]
async fn renew(request: WriteRequest<LinksWrite, LinkId>) -> Result<Response, Error> {
    let (renewal, faults): (Renewal, _) = request.parse_optional(Key::Required, |body| {
        let mut faults = broken_rules(body, OffsetDateTime::now_utc());
        faults.extend(sending_fault(&request.state, body));
        faults
    })?;
    if renewal.send.is_some() {
        request.caller.check_may_send()?;
    }
    let id = request.path.id;
    let key = request.idempotency_key(&format!("{PATH}/{id}/renew"), &renewal);
    let WriteRequest {
        state,
        caller,
        request_id,
        prefer_wait,
        begun,
        ..
    } = request;
    let link = caller.find_link(&state, id).await?;
    // A repetition is recognized first: by now, the old link may be in another state, or `expireAt` may have passed.
    let earlier = match &key {
        Ok(Some(key)) => creation::replay(&state.pool, key).await?,
        _ => None,
    };
    if let Some(earlier) = earlier {
        return finish(&state, earlier, prefer_wait, begun).await;
    }
    if !faults.is_empty() {
        return Err(Error::Invalid(faults));
    }
    let cause = timeline::Cause::Request {
        client: caller.client.clone(),
        request_id: request_id.clone(),
    };
    let link = {
        let context = state.context(state.account_of(&link)?);
        let _permit = state.reserve_call()?;
        protocol::renewal::retire(&context, id, &cause).await?
    };
    let link = link.ok_or(Error::NoSuchLink)?;
    let link = link.map_err(Error::NotRenewable)?;
    let request = creation::Request {
        link_id: PaymentLinkId::new(),
        known_id: Arc::default(),
        new: link.renewed(&renewal),
        client: caller.client,
        request_id,
        idempotency_key: key?,
        short_url_base: state.short_url_base.clone(),
        replaces: Some(id),
    };
    perform(&state, request, prefer_wait, begun).await
}

/// A [`Place`] in the list as it is sent to callers, who pass it back unread: the order, microseconds since 1970 and the
/// link's UUID, in hex.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Cursor {
    sort: Sort,
    place: Place,
}

impl Cursor {
    /// Where the list begins.
    fn start(sort: Sort) -> Self {
        let place = match sort {
            Sort::Newest => Place {
                at: datetime!(9999-12-31 0:00 UTC),
                id: Uuid::max(),
            },
            Sort::Updated => Place {
                at: OffsetDateTime::UNIX_EPOCH,
                id: Uuid::nil(),
            },
        };
        Self { sort, place }
    }
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let order = match self.sort {
            Sort::Newest => "",
            Sort::Updated => "u",
        };
        let microseconds = self.place.at.unix_timestamp_nanos() / 1000;
        write!(f, "{order}{microseconds:x}-{}", self.place.id.simple())
    }
}

impl std::str::FromStr for Cursor {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (sort, text) = match text.strip_prefix('u') {
            Some(rest) => (Sort::Updated, rest),
            None => (Sort::Newest, text),
        };
        let (microseconds, id) = text.split_once('-').ok_or(())?;
        let microseconds = i64::from_str_radix(microseconds, 16).map_err(|_| ())?;
        let place = Place {
            at: OffsetDateTime::from_unix_timestamp_nanos(i128::from(microseconds) * 1000)
                .map_err(|_| ())?,
            id: Uuid::try_parse(id).map_err(|_| ())?,
        };
        Ok(Self { sort, place })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_cursor_parses_back_to_its_place(seconds in 0..4_000_000_000_i64, micro in 0..1_000_000_u32, id: u128, updated: bool) {
            let at = OffsetDateTime::from_unix_timestamp(seconds).unwrap()
                .replace_microsecond(micro).unwrap();
            let sort = if updated { Sort::Updated } else { Sort::Newest };
            let cursor = Cursor { sort, place: Place { at, id: Uuid::from_u128(id) } };
            prop_assert_eq!(cursor.to_string().parse::<Cursor>(), Ok(cursor));
        }

        #[test]
        fn parsing_a_cursor_never_panics(text in "\\PC*") {
            let _ = text.parse::<Cursor>();
        }
    }
}
