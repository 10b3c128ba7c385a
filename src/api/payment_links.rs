//! Payment links: ask for one, read one, list them, read a timeline.

use std::fmt;

use axum::{
    Json,
    extract::{FromRequestParts, Path, RawQuery, State},
    http::{HeaderMap, HeaderValue, StatusCode, header, request::Parts},
    response::{IntoResponse, Response},
};
use serde_json::Value;
use time::OffsetDateTime;
use utoipa::IntoParams;
use utoipa_axum::{router::OpenApiRouter, routes};
use uuid::Uuid;

use super::{
    AppState, Error, IDEMPOTENT_REPLAYED,
    auth::{Caller, LinksRead, LinksWrite},
    body::Raw,
    error::Subject,
    examples,
    idempotency::{fingerprint, idempotency_key},
    observe::RequestId,
    problem::{FaultyQuery, Guarded, NoSuchLink, Problem},
    query::{Page, Query, to_i64},
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
        creation::IdempotencyKey,
        links::{Filter, Place},
    },
};

pub(super) fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(create, list))
        .routes(routes!(get))
        .routes(routes!(events))
        .routes(routes!(refresh))
}

/// Makes a payment link.
///
/// Send an `Idempotency-Key` of your own, new for each link that you want, and repeat the request with it
/// whenever you got no answer or one of 409, 503 or 504: however often it is sent, there is one link.
#[utoipa::path(
    post, path = "/v1/payment-links", tag = "Payment links",
    params(("Idempotency-Key" = Option<String>, Header,
            description = "Makes repetitions of the request one. 1 to 255 printable ASCII characters.", example = "order-236")),
    request_body(content = NewPaymentLink, example = json!({"amount": {"value": 2450, "currencyCode": "GBP"}, "reference": "Order 236"})),
    responses(
        (status = 201, description = "The link.", body = PaymentLink, headers(
            ("Location" = String, description = "The link's address."),
            ("Idempotent-Replayed" = Option<String>, description = "`true` if this is what an earlier request with the same key made."),
        ), example = json!(examples::link())),
        (status = 400, description = "The body is no JSON.", body = Problem, content_type = "application/problem+json", examples(("malformed-json" = ()), ("body-incomplete" = ()))),
        Guarded,
        (status = 409, description = "A request with this key is being worked on, or its outcome is not known yet. Repeat it after `Retry-After`.", body = Problem, content_type = "application/problem+json", examples(("request-in-progress" = ()), ("not-created" = ()))),
        (status = 413, description = "The body is larger than 256 KiB.", body = Problem, content_type = "application/problem+json", examples(("body-too-large" = ()))),
        (status = 415, description = "The body is not `application/json`.", body = Problem, content_type = "application/problem+json", examples(("unsupported-media-type" = ()))),
        (status = 422, description = "The request has faults, or Dojo refused it (`errors` names each), or the key belongs to another request.", body = Problem, content_type = "application/problem+json", examples(("invalid-request" = ()), ("idempotency-key-reused" = ()), ("refused-by-dojo" = ()))),
        (status = 502, description = "Dojo refused this service's own key. Nothing was created.", body = Problem, content_type = "application/problem+json", examples(("dojo-key-refused" = ()), ("dojo-misrouted" = ()))),
        (status = 503, description = "The database or Dojo was not reached, or too much is under way. Nothing is lost: send it again after `Retry-After`.", body = Problem, content_type = "application/problem+json", examples(("dojo-not-reached" = ()), ("database-unavailable" = ()), ("overloaded" = ()), ("timed-out" = ()))),
        (status = 504, description = "Dojo's answer was lost: whether there is a link is not known yet. `paymentLinkId` names the one that it would be.", body = Problem, content_type = "application/problem+json", examples(("outcome-unknown" = ()))),
    )
)]
async fn create(
    State(state): State<AppState>,
    caller: Caller<LinksWrite>,
    RequestId(request_id): RequestId,
    headers: HeaderMap,
    Raw(body): Raw,
) -> Result<Response, Error> {
    let (key, key_fault) = match idempotency_key(&headers) {
        Ok(key) => (key, None),
        Err(fault) => (None, Some(fault)),
    };
    let (new, broken): (NewPaymentLink, _) =
        state.new_payment_link.parse(&headers, &body, |body| {
            let mut faults = broken_rules(body, OffsetDateTime::now_utc());
            faults.extend(key_fault);
            faults.extend(account_fault(&state, &caller, body));
            faults
        })?;
    let idempotency_key = key.map(|key| IdempotencyKey {
        client_id: caller.client_id,
        key,
        request_hash: fingerprint("/v1/payment-links", &new),
    });
    if !broken.is_empty() {
        // What was right when it was first asked for may be late by now: a repetition gets the outcome of then. Not one
        // about an account that the client's new key is not open to any more.
        let earlier = match &idempotency_key {
            Some(key) if caller.may_see(&new.account) => creation::replay(&state.pool, key).await?,
            _ => None,
        };
        return earlier.map_or(Err(Error::Invalid(broken)), answer);
    }
    let id = PaymentLinkId::new();
    let request = creation::Request {
        link_id: id,
        new,
        client: caller.client,
        request_id,
        idempotency_key,
    };
    let work = Box::pin({
        let state = state.clone();
        async move {
            // It is configured: the request would have had a fault otherwise.
            let account = state.account(&request.new.account);
            let account = account.ok_or(Error::AccountNotConfigured(id))?;
            Ok(creation::create(&state.context(account), request).await?)
        }
    });
    answer(state.see_through(Subject::Link(id), work).await?)
}

/// What is wrong with the account that a request names, or means where it names none.
fn account_fault<S>(state: &AppState, caller: &Caller<S>, body: &Value) -> Option<Fault> {
    let (name, unknown) = match body.get("account") {
        // What is no text is a fault by the schema.
        Some(name) => (name.as_str()?, "is no account of this service"),
        None => (
            NewPaymentLink::DEFAULT_ACCOUNT,
            "is needed, for this service has no account default",
        ),
    };
    // First what the key may see: it is not told which other accounts there are.
    let detail = if !caller.may_see(name) {
        "is not open to this API key"
    } else if state.accounts.get(name).is_none() {
        unknown
    } else {
        return None;
    };
    Some(Fault::new("/account", detail))
}

/// How an outcome is told.
fn answer(outcome: Outcome) -> Result<Response, Error> {
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
        Outcome::Unknown { link_id } => Err(Error::DojoUnsure(Subject::Link(link_id))),
        Outcome::Running { link_id } => Err(Error::Running(Subject::Link(link_id))),
        Outcome::KeyReused => Err(Error::IdempotencyKeyReused),
    }
}

fn created(id: PaymentLinkId, body: impl IntoResponse, replayed: bool) -> Response {
    let mut response = (
        StatusCode::CREATED,
        [(header::LOCATION, format!("/v1/payment-links/{id}"))],
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

/// Reads a payment link.
#[utoipa::path(
    get, path = "/v1/payment-links/{id}", tag = "Payment links",
    params(("id" = String, Path, description = "The link's id, `plink_…`.", example = "plink_01m81mqpmrf8384nj77tj0t0e4")),
    responses(
        (status = 200, description = "The link.", body = PaymentLink, example = json!(examples::paid_link())),
        Guarded,
        NoSuchLink,
    )
)]
async fn get(
    State(state): State<AppState>,
    caller: Caller<LinksRead>,
    LinkId(id): LinkId,
) -> Result<Json<PaymentLink>, Error> {
    state.find_link(&caller, id).await.map(Json)
}

/// The id in a path. What is no id of a link is the id of no link.
pub(super) struct LinkId(pub(super) PaymentLinkId);

impl<S: Send + Sync> FromRequestParts<S> for LinkId {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Error> {
        let Path(id) = Path::<String>::from_request_parts(parts, state)
            .await
            .map_err(|_| Error::NotFound)?;
        id.parse().map(Self).map_err(|_| Error::NoSuchLink)
    }
}

/// What to list.
#[derive(Debug, Default, IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(
    dead_code,
    reason = "describes the query to the document; `ListQuery` reads it"
)]
struct ListParameters {
    /// Links of this account.
    #[param(min_length = 1, max_length = 60)]
    account: Option<String>,
    /// Links with this status.
    #[param(inline, example = "Captured")]
    status: Option<Status>,
    /// Links with this reference.
    #[param(min_length = 1, max_length = 60)]
    reference: Option<String>,
    /// The link of this payment intent.
    #[param(rename = "paymentIntentId")]
    payment_intent_id: Option<String>,
    /// Links asked for at this time or later.
    #[param(rename = "createdAfter")]
    created_after: Option<OffsetDateTime>,
    /// Links asked for before this time.
    #[param(rename = "createdBefore")]
    created_before: Option<OffsetDateTime>,
    /// How many at most.
    #[param(minimum = 1, maximum = 100, default = 50)]
    limit: Option<i64>,
    /// Where to go on: the `after` of the page before.
    after: Option<String>,
}

/// Lists payment links, newest first.
///
/// A page ends at a place in time (a keyset cursor), so links that are made meanwhile neither shift nor
/// repeat anything.
#[utoipa::path(
    get, path = "/v1/payment-links", tag = "Payment links", params(ListParameters),
    responses(
        (status = 200, description = "A page of links.", body = Page<PaymentLink>, example = json!(examples::links())),
        Guarded,
        FaultyQuery,
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
        created_after: query.take("createdAfter", "a time as in RFC 3339", parse_time),
        created_before: query.take("createdBefore", "a time as in RFC 3339", parse_time),
    };
    let limit = query.limit();
    let after = query.take("after", "the after of a page before", |text| {
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

/// Lists what happened to a payment link, oldest first.
///
/// Each change is listed once, with its cause.
#[utoipa::path(
    get, path = "/v1/payment-links/{id}/events", tag = "Payment links",
    params(
        ("id" = String, Path, description = "The link's id, `plink_…`.", example = "plink_01m81mqpmrf8384nj77tj0t0e4"),
        ("limit" = Option<i64>, Query, description = "How many at most. Default: 50.", minimum = 1, maximum = 100),
        ("after" = Option<String>, Query, description = "Where to go on: the `after` of the page before."),
    ),
    responses(
        (status = 200, description = "A page of the timeline.", body = Page<timeline::Entry>, example = json!(examples::timeline())),
        Guarded,
        NoSuchLink,
        FaultyQuery,
    )
)]
async fn events(
    State(state): State<AppState>,
    caller: Caller<LinksRead>,
    LinkId(id): LinkId,
    RawQuery(query): RawQuery,
) -> Result<Json<Page<timeline::Entry>>, Error> {
    let mut query = Query::new(query.as_deref());
    let limit = query.limit();
    let after = query.take("after", "the after of a page before", |text| {
        text.parse().ok().filter(|after| *after >= 0)
    });
    query.finish()?;

    state.find_link(&caller, id).await?;
    let entries = store::links::timeline(&state.pool, id, after.unwrap_or(0), to_i64(limit) + 1)
        .await?
        .ok_or(Error::NoSuchLink)?;
    Ok(Json(Page::new(entries, limit, |last| last.id.clone())))
}

/// Asks Dojo about a payment link now, and returns the link.
///
/// There is no need to: webhooks and a schedule keep links in step. It is for the moment when somebody wants to
/// be sure. `confirmed` is `true` only if Dojo reported this `status` in this very call. It is `false` where Dojo's
/// answer disagrees with what is known and is not accepted yet (an answer that is older than an earlier one, or that
/// does not show a payment yet that a webhook reported): ask again, or wait; Dojo's standing answer wins within minutes. A link
/// whose creation is not settled yet is returned as it is.
#[utoipa::path(
    post, path = "/v1/payment-links/{id}/refresh", tag = "Payment links",
    params(("id" = String, Path, description = "The link's id, `plink_…`.", example = "plink_01m81mqpmrf8384nj77tj0t0e4")),
    responses(
        (status = 200, description = "The link.", body = PaymentLink, example = json!(examples::paid_link())),
        Guarded,
        NoSuchLink,
        (status = 502, description = "Dojo refused this service's own key.", body = Problem, content_type = "application/problem+json", examples(("dojo-key-refused" = ()))),
        (status = 503, description = "The database or Dojo was not reached. Send it again after `Retry-After`.", body = Problem, content_type = "application/problem+json", examples(("dojo-not-reached" = ()), ("database-unavailable" = ()), ("timed-out" = ()), ("account-not-configured" = ()))),
    )
)]
async fn refresh(
    State(state): State<AppState>,
    caller: Caller<LinksRead>,
    RequestId(request_id): RequestId,
    LinkId(id): LinkId,
) -> Result<Json<PaymentLink>, Error> {
    let link = state.find_link(&caller, id).await?;
    let account = state.account_of(&link)?;
    let cause = timeline::Cause::Request {
        client: caller.client,
        request_id,
    };
    let _place = state.place()?;
    let context = state.context(account);
    let link = protocol::reconciliation::refresh(&context, id, &cause).await?;
    link.map(Json).ok_or(Error::NoSuchLink)
}

/// A text that is neither empty nor longer than a reference or an account's name may be.
fn one_to_sixty(text: &str) -> Option<String> {
    (1..=60)
        .contains(&text.chars().count())
        .then(|| text.to_owned())
}

/// A [`Place`] in the list, as callers carry it from page to page: microseconds since 1970 and the link's
/// UUID, in hex. Callers need not look inside.
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
        fn a_cursor_leads_back_to_its_place(seconds in 0..4_000_000_000_i64, micro in 0..1_000_000_u32, id: u128) {
            let created_at = OffsetDateTime::from_unix_timestamp(seconds).unwrap()
                .replace_microsecond(micro).unwrap();
            let cursor = Cursor(Place { created_at, id: Uuid::from_u128(id) });
            prop_assert_eq!(cursor.to_string().parse::<Cursor>(), Ok(cursor));
        }

        #[test]
        fn no_cursor_makes_it_panic(text in "\\PC*") {
            let _ = text.parse::<Cursor>();
        }
    }
}
