//! Payment links: create one, read one, list them, read a timeline, reconcile now.

use std::fmt;

use axum::{
    Json,
    extract::{FromRequestParts, Path, RawQuery, State},
    http::{HeaderValue, StatusCode, header, request::Parts},
    response::{IntoResponse, Response},
};
use serde_json::Value;
use time::OffsetDateTime;
use utoipa::IntoParams;
use utoipa_axum::{router::OpenApiRouter, routes};
use uuid::Uuid;

use super::{
    auth::Caller,
    error::Error,
    examples,
    idempotency::{IDEMPOTENT_REPLAYED, OptionalKey},
    observe::RequestId,
    problem::{Problem, Subject},
    query::{Page, PageParameters, Query, to_i64},
    responses::{BadBody, Guarded, InvalidQuery, NoSuchLink},
    scope::{LinksRead, LinksWrite},
    state::AppState,
    write_request::{Key, WriteRequest},
};
use crate::{
    payment_link::{
        Fault, NewPaymentLink, PaymentLink, PaymentLinkId, Status, broken_rules, parse_time,
        timeline,
    },
    protocol::{
        self,
        creation::{self, Outcome},
    },
    store::{
        self,
        links::{Filter, Place},
    },
};

const PATH: &str = "/v1/payment-links";

pub(super) fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(create, list))
        .routes(routes!(get))
        .routes(routes!(events))
        .routes(routes!(refresh))
}

/// Creates a payment link.
///
/// Send an `Idempotency-Key`, and use a new one for each link you need. If you get no response, a 503 or 504, or a 409 with
/// `Retry-After`, send the same request again with the same key: however often you send it, only one link is created.
#[utoipa::path(
    post, path = "/v1/payment-links", tag = "Payment links",
    params(OptionalKey),
    request_body(content = NewPaymentLink, example = json!({"amount": {"value": 2450, "currencyCode": "GBP"}, "reference": "Order 236"})),
    responses(
        (status = 201, description = "The payment link.", body = PaymentLink, headers(
            ("Location" = String, description = "The path of the payment link."),
            ("Idempotent-Replayed" = Option<String>, description = "`true` if this response repeats that of an earlier request with the same key."),
        ), example = json!(examples::link())),
        BadBody,
        Guarded,
        (status = 409, description = "An earlier request with this key is still in progress: retry after `Retry-After`. Or nothing was created (`not-created`).", body = Problem, content_type = "application/problem+json", examples(("request-in-progress" = ()), ("not-created" = ()))),
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
        faults
    })?;
    let key = request.idempotency_key(PATH, &new);
    let WriteRequest {
        state,
        caller,
        request_id,
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
        return earlier.map_or(Err(Error::Invalid(faults)), respond);
    }
    let id = PaymentLinkId::new();
    let request = creation::Request {
        link_id: id,
        new,
        client: caller.client,
        request_id,
        idempotency_key: key?,
    };
    let work = Box::pin({
        let state = state.clone();
        async move {
            // The account is configured; otherwise the request would have had a fault.
            let account = state.account(&request.new.account);
            let account = account.ok_or(Error::AccountNotConfigured(id))?;
            Ok(creation::create(&state.context(account), request).await?)
        }
    });
    respond(state.run_to_completion(Subject::Link(id), work).await?)
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

fn respond(outcome: Outcome) -> Result<Response, Error> {
    match outcome {
        Outcome::Created(link) => Ok(created(link.id, Json(link), false)),
        Outcome::Replayed { link_id, body } => {
            let json = [(header::CONTENT_TYPE, "application/json")];
            Ok(created(link_id, (json, body), true))
        }
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
        Outcome::Running { link_id } => Err(Error::RequestInProgress(Subject::Link(link_id))),
        Outcome::KeyReused => Err(Error::IdempotencyKeyReused),
    }
}

fn created(id: PaymentLinkId, body: impl IntoResponse, replayed: bool) -> Response {
    let mut response = (
        StatusCode::CREATED,
        [(header::LOCATION, format!("{PATH}/{id}"))],
        body,
    )
        .into_response();
    if replayed {
        response
            .headers_mut()
            .insert(IDEMPOTENT_REPLAYED, HeaderValue::from_static("true"));
    }
    response
}

/// Retrieves a payment link.
#[utoipa::path(
    get, path = "/v1/payment-links/{id}", tag = "Payment links",
    params(LinkId),
    responses(
        (status = 200, description = "The payment link.", body = PaymentLink, example = json!(examples::paid_link())),
        Guarded,
        NoSuchLink,
    )
)]
async fn get(
    State(state): State<AppState>,
    caller: Caller<LinksRead>,
    LinkId { id }: LinkId,
) -> Result<Json<PaymentLink>, Error> {
    caller.find_link(&state, id).await.map(Json)
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
    /// Only links with this status.
    #[param(inline, example = "Captured")]
    status: Option<Status>,
    /// Only links with this reference.
    #[param(min_length = 1, max_length = 60)]
    reference: Option<String>,
    /// Only the link with this payment intent at Dojo.
    #[param(rename = "paymentIntentId")]
    payment_intent_id: Option<String>,
    /// Only links created at or after this time.
    #[param(rename = "createdAfter")]
    created_after: Option<OffsetDateTime>,
    /// Only links created before this time.
    #[param(rename = "createdBefore")]
    created_before: Option<OffsetDateTime>,
}

/// Lists payment links, newest first.
///
/// Pages don't shift while you read them: links created in the meantime neither repeat nor hide an item.
#[utoipa::path(
    get, path = "/v1/payment-links", tag = "Payment links", params(Filters, PageParameters),
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
        status: query.take(
            "status",
            &format!("one of {}", Status::ALL.map(Status::as_str).join(", ")),
            |text| text.parse().ok(),
        ),
        reference: query.take("reference", "1 to 60 characters", one_to_sixty),
        payment_intent_id: query.take("paymentIntentId", "an id", |text| Some(text.to_owned())),
        created_after: query.take("createdAfter", "an RFC 3339 time", parse_time),
        created_before: query.take("createdBefore", "an RFC 3339 time", parse_time),
    };
    let limit = query.limit();
    let after = query.take("after", "the after of an earlier page", |text| {
        text.parse::<Cursor>().ok()
    });
    query.finish()?;

    let links = store::links::list(
        &state.pool,
        &filter,
        after.map(|cursor| cursor.0),
        to_i64(limit) + 1,
    )
    .await?;
    Ok(Json(Page::new(links, limit, |last| {
        let place = Place {
            created_at: last.created_at,
            id: last.id.uuid(),
        };
        Cursor(place).to_string()
    })))
}

/// Lists the timeline of a payment link, oldest entry first.
///
/// Each entry is a change, or an attempt at one, with its cause.
#[utoipa::path(
    get, path = "/v1/payment-links/{id}/events", tag = "Payment links",
    params(LinkId, PageParameters),
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
    let after = query.take("after", "the after of an earlier page", |text| {
        text.parse().ok().filter(|after| *after >= 0)
    });
    query.finish()?;

    caller.find_link(&state, id).await?;
    let entries = store::links::timeline(&state.pool, id, after.unwrap_or(0), to_i64(limit) + 1)
        .await?
        .ok_or(Error::NoSuchLink)?;
    Ok(Json(Page::new(entries, limit, |last| last.id.clone())))
}

/// Reconciles a payment link with Dojo now, and returns it.
///
/// Usually you don't need this call: webhooks and background jobs keep links up to date. Use it when you need Dojo's current
/// state immediately. `confirmed` is `true` only if Dojo reported this `status` in this call. It is `false` if Dojo's response
/// conflicts with what is stored: it's older than an earlier response, or doesn't yet show a payment that a webhook reported.
/// Then call again, or wait: if Dojo keeps reporting the same state, the link adopts it within minutes. A link whose
/// creation is still in progress is returned unchanged.
#[utoipa::path(
    post, path = "/v1/payment-links/{id}/refresh", tag = "Payment links",
    params(LinkId),
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

/// A value that a reference or an account's name can have.
fn one_to_sixty(text: &str) -> Option<String> {
    (1..=60)
        .contains(&text.chars().count())
        .then(|| text.to_owned())
}

/// A [`Place`] in the list as it is sent to callers, who pass it back unread: microseconds since 1970 and the link's UUID,
/// in hex.
#[derive(Debug, PartialEq, Eq)]
struct Cursor(Place);

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let microseconds = self.0.created_at.unix_timestamp_nanos() / 1000;
        write!(f, "{microseconds:x}-{}", self.0.id.simple())
    }
}

impl std::str::FromStr for Cursor {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (microseconds, id) = text.split_once('-').ok_or(())?;
        let microseconds = i64::from_str_radix(microseconds, 16).map_err(|_| ())?;
        Ok(Self(Place {
            created_at: OffsetDateTime::from_unix_timestamp_nanos(i128::from(microseconds) * 1000)
                .map_err(|_| ())?,
            id: Uuid::try_parse(id).map_err(|_| ())?,
        }))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_cursor_parses_back_to_its_place(seconds in 0..4_000_000_000_i64, micro in 0..1_000_000_u32, id: u128) {
            let created_at = OffsetDateTime::from_unix_timestamp(seconds).unwrap()
                .replace_microsecond(micro).unwrap();
            let cursor = Cursor(Place { created_at, id: Uuid::from_u128(id) });
            prop_assert_eq!(cursor.to_string().parse::<Cursor>(), Ok(cursor));
        }

        #[test]
        fn parsing_a_cursor_never_panics(text in "\\PC*") {
            let _ = text.parse::<Cursor>();
        }
    }
}
