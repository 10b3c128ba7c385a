//! Operations on a payment: capture, refund, reverse, cancel, change its amount, send a receipt.

use axum::{
    Json,
    body::Bytes,
    extract::{FromRequest, FromRequestParts, RawQuery, Request, State},
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use jsonschema::ValidationError;
use serde::de::DeserializeOwned;
use serde_json::Value;
use utoipa::{IntoParams, IntoResponses};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    AppState, Error, IDEMPOTENT_REPLAYED,
    auth::{Caller, LinksRead, PaymentsManage},
    body::{Raw, Schema},
    error::Subject,
    examples,
    idempotency::{fingerprint, idempotency_key},
    observe::RequestId,
    payment_links::LinkId,
    problem::{FaultyQuery, Guarded, NoSuchLink, Problem},
    query::{Page, Query, to_i64},
};
use crate::{
    payment_link::{
        Fault, OperationId, PaymentLink, PaymentLinkId,
        operation::{
            Action, NewAmount, NewCapture, NewReceipt, NewRefund, NewTipsAmount, Operation,
            broken_rules, permission::Objection,
        },
    },
    protocol::operations::{self, Outcome},
    store::{self, creation::IdempotencyKey},
};

/// Names the operation that a request came to.
const OPERATION_ID: HeaderName = HeaderName::from_static("operation-id");

pub(super) fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(cancel))
        .routes(routes!(capture))
        .routes(routes!(refund))
        .routes(routes!(reverse))
        .routes(routes!(change_amount))
        .routes(routes!(change_tips_amount))
        .routes(routes!(send_receipt))
        .routes(routes!(list))
}

/// The names of the bodies' schemas in the OpenAPI document.
pub(super) const BODIES: [&str; 5] = [
    "NewCapture",
    "NewRefund",
    "NewAmount",
    "NewTipsAmount",
    "NewReceipt",
];

/// The schemas of the bodies.
pub(super) struct Schemas {
    capture: Schema,
    refund: Schema,
    amount: Schema,
    tips_amount: Schema,
    receipt: Schema,
}

impl Schemas {
    pub(super) fn new(openapi: &Value) -> Result<Self, ValidationError<'static>> {
        let [capture, refund, amount, tips_amount, receipt] =
            BODIES.map(|name| Schema::new(openapi, name));
        Ok(Self {
            capture: capture?,
            refund: refund?,
            amount: amount?,
            tips_amount: tips_amount?,
            receipt: receipt?,
        })
    }
}

/// The path's parameter, for the document.
#[derive(IntoParams)]
#[into_params(parameter_in = Path)]
#[expect(dead_code, reason = "describes what `LinkId` reads")]
struct OfLink {
    /// The link's id, `plink_…`.
    #[param(example = "plink_01m81mqpmrf8384nj77tj0t0e4")]
    id: String,
}

/// The header's parameter, for the document.
#[derive(IntoParams)]
#[into_params(parameter_in = Header)]
#[expect(dead_code, reason = "describes what `idempotency_key` reads")]
struct Keyed {
    /// Makes repetitions of the request one. 1 to 255 printable ASCII characters.
    #[param(rename = "Idempotency-Key", nullable = false)]
    key: Option<String>,
}

/// What every operation may be answered, for the document.
#[derive(IntoResponses)]
#[expect(
    dead_code,
    reason = "describes what `answer`, `Guarded` and `Error` make"
)]
enum Operated {
    /// Dojo has done it. The link as Dojo has it now. `Operation-Id` names the operation.
    #[response(status = 200, headers(
        ("Operation-Id" = String, description = "The operation's id, `op_…`."),
        ("Idempotent-Replayed" = Option<String>, description = "`true` if this is what an earlier request with the same key came to."),
    ))]
    Done(PaymentLink),
    /// Dojo has done it, and could not be asked for the link after that: the link as it was known before. It is
    /// brought up to date within seconds of Dojo's answering again.
    #[response(status = 202, headers(("Operation-Id" = String, description = "The operation's id, `op_…`.")))]
    DoneNotRead(PaymentLink),
    /// The body is no JSON.
    #[response(status = 400, content_type = "application/problem+json", examples(("malformed-json" = ()), ("body-incomplete" = ())))]
    NoJson(Problem),
    /// The payment does not allow it, and `detail` says what would be possible instead; or Dojo refused it; or the
    /// outcome of another operation, or of an earlier request with the same key, has to be known first, or it is not clear
    /// yet whether that much is left to refund: then there is a `Retry-After`.
    #[response(status = 409, content_type = "application/problem+json", examples(("not-possible" = ()), ("request-in-progress" = ()), ("operation-in-progress" = ()), ("refundable-amount-unclear" = ()), ("not-done" = ()), ("outcome-unconfirmed" = ()), ("refused-by-dojo" = ())))]
    Conflict(Problem),
    /// The body is larger than 256 KiB.
    #[response(status = 413, content_type = "application/problem+json", examples(("body-too-large" = ())))]
    TooLarge(Problem),
    /// The body is not `application/json`.
    #[response(status = 415, content_type = "application/problem+json", examples(("unsupported-media-type" = ())))]
    NotJson(Problem),
    /// The request has faults, or Dojo refused it (`errors` names each), or the key belongs to another request.
    #[response(status = 422, content_type = "application/problem+json", examples(("invalid-request" = ()), ("idempotency-key-reused" = ()), ("refused-by-dojo" = ())))]
    Faulty(Problem),
    /// Dojo refused this service's own key. Nothing was done.
    #[response(status = 502, content_type = "application/problem+json", examples(("dojo-key-refused" = ()), ("dojo-misrouted" = ())))]
    KeyRefused(Problem),
    /// The database or Dojo was not reached, or too much is under way. Nothing is lost: send it again after `Retry-After`.
    #[response(status = 503, content_type = "application/problem+json", examples(("dojo-not-reached" = ()), ("database-unavailable" = ()), ("overloaded" = ()), ("timed-out" = ()), ("account-not-configured" = ())))]
    Unavailable(Problem),
    /// Dojo's answer was lost: whether it was done is not known yet. It is found out in the background; a repetition
    /// with the same key gets the outcome, and so does `/operations`.
    #[response(status = 504, content_type = "application/problem+json", examples(("outcome-unknown" = ())))]
    Unsure(Problem),
}

/// Cancels a link that nobody has paid, so that nobody can.
#[utoipa::path(
    post,
    path = "/v1/payment-links/{id}/cancel",
    tag = "Operations",
    params(OfLink, Keyed),
    responses(Guarded, NoSuchLink, Operated)
)]
async fn cancel(asked: Asked) -> Result<Response, Error> {
    asked.nothing()?;
    asked.carry_out("cancel", Action::Cancel).await
}

/// Captures an authorized payment.
///
/// Captures all of it, or a part, several times until all is captured.
#[utoipa::path(
    post, path = "/v1/payment-links/{id}/captures", tag = "Operations",
    params(OfLink, Keyed),
    request_body(content = NewCapture, example = json!({"amount": {"value": 1500, "currencyCode": "GBP"}})),
    responses(Guarded, NoSuchLink, Operated)
)]
async fn capture(asked: Asked) -> Result<Response, Error> {
    let new = asked.body(|schemas| &schemas.capture, Key::Optional)?;
    asked.carry_out("captures", Action::Capture(new)).await
}

/// Refunds a payment.
///
/// Gives back all that was taken, or a part, several times until all is given back.
///
/// The `Idempotency-Key` is required. Choose a new one for each refund that you want, and repeat the request with it
/// whenever you got no answer: however often it is sent, the money goes back once.
#[utoipa::path(
    post, path = "/v1/payment-links/{id}/refunds", tag = "Operations",
    params(
        OfLink,
        ("Idempotency-Key" = String, Header, description = "Makes repetitions of the request one. 1 to 255 printable ASCII characters."),
    ),
    request_body(content = NewRefund, example = json!({"amount": {"value": 350, "currencyCode": "GBP"}, "refundReason": "Returned goods"})),
    responses(Guarded, NoSuchLink, Operated)
)]
async fn refund(asked: Asked) -> Result<Response, Error> {
    let new = asked.body(|schemas| &schemas.refund, Key::Required)?;
    asked.carry_out("refunds", Action::Refund(new)).await
}

/// Reverses a payment.
///
/// Undoes an authorization, or an `Auto` payment on the day on which it was made; always the whole of it.
#[utoipa::path(
    post,
    path = "/v1/payment-links/{id}/reversal",
    tag = "Operations",
    params(OfLink, Keyed),
    responses(Guarded, NoSuchLink, Operated)
)]
async fn reverse(asked: Asked) -> Result<Response, Error> {
    asked.nothing()?;
    asked.carry_out("reversal", Action::Reversal).await
}

/// Changes the amount of a payment that is not captured yet.
///
/// The link has to be made with `config.payment.customAmountAllowed`.
#[utoipa::path(
    post, path = "/v1/payment-links/{id}/amount", tag = "Operations",
    params(OfLink, Keyed),
    request_body(content = NewAmount, example = json!({"amount": {"value": 1950, "currencyCode": "GBP"}})),
    responses(Guarded, NoSuchLink, Operated)
)]
async fn change_amount(asked: Asked) -> Result<Response, Error> {
    let new = asked.body(|schemas| &schemas.amount, Key::Optional)?;
    asked.carry_out("amount", Action::Amount(new)).await
}

/// Changes the tip of a payment that is not captured yet.
///
/// The link has to be made with `config.payment.tipsAllowed`.
#[utoipa::path(
    post, path = "/v1/payment-links/{id}/tips-amount", tag = "Operations",
    params(OfLink, Keyed),
    request_body(content = NewTipsAmount, example = json!({"tipsAmount": {"value": 200, "currencyCode": "GBP"}})),
    responses(Guarded, NoSuchLink, Operated)
)]
async fn change_tips_amount(asked: Asked) -> Result<Response, Error> {
    let new = asked.body(|schemas| &schemas.tips_amount, Key::Optional)?;
    asked
        .carry_out("tips-amount", Action::TipsAmount(new))
        .await
}

/// Sends a receipt by email.
#[utoipa::path(
    post, path = "/v1/payment-links/{id}/receipt", tag = "Operations",
    params(OfLink, Keyed),
    request_body(content = NewReceipt, example = json!({"emails": ["ann@example.com"]})),
    responses(Guarded, NoSuchLink, Operated)
)]
async fn send_receipt(asked: Asked) -> Result<Response, Error> {
    let new = asked.body(|schemas| &schemas.receipt, Key::Optional)?;
    asked.carry_out("receipt", Action::Receipt(new)).await
}

/// A request for an operation, of a caller who may ask for one.
struct Asked {
    state: AppState,
    caller: Caller<PaymentsManage>,
    request_id: String,
    link_id: PaymentLinkId,
    /// The `Idempotency-Key`, or what is wrong with it.
    key: Result<Option<String>, Fault>,
    headers: HeaderMap,
    bytes: Bytes,
}

impl FromRequest<AppState> for Asked {
    type Rejection = Error;

    async fn from_request(request: Request, state: &AppState) -> Result<Self, Error> {
        let (mut parts, body) = request.into_parts();
        let caller = Caller::from_request_parts(&mut parts, state).await?;
        let LinkId(link_id) = LinkId::from_request_parts(&mut parts, state).await?;
        let request = Request::from_parts(parts, body);
        Ok(Self {
            state: state.clone(),
            caller,
            request_id: RequestId::of(&request),
            link_id,
            key: idempotency_key(request.headers()),
            headers: request.headers().clone(),
            bytes: Raw::from_request(request, state).await?.0,
        })
    }
}

/// Whether an `Idempotency-Key` has to be there.
#[derive(Clone, Copy, PartialEq)]
enum Key {
    Optional,
    Required,
}

impl Asked {
    /// What the body says; or every fault of the request, those of its key too.
    fn body<T: DeserializeOwned>(
        &self,
        schema: impl FnOnce(&Schemas) -> &Schema,
        key: Key,
    ) -> Result<T, Error> {
        let schema = schema(&self.state.operations);
        let (new, faults) = schema.parse(&self.headers, &self.bytes, |body| {
            let mut faults = broken_rules(body);
            faults.extend(self.key.as_ref().err().cloned());
            if key == Key::Required && matches!(self.key, Ok(None)) {
                faults.push(Fault::new(
                    "Idempotency-Key",
                    "is required: a refund whose answer is lost can only be repeated with it",
                ));
            }
            faults
        })?;
        if faults.is_empty() {
            Ok(new)
        } else {
            Err(Error::Invalid(faults))
        }
    }

    /// Sees that the body is empty where none is needed. One that says more than nothing means something else, such as a
    /// reversal of a part.
    fn nothing(&self) -> Result<(), Error> {
        let mut faults: Vec<_> = self.key.as_ref().err().cloned().into_iter().collect();
        if !self.bytes.trim_ascii().is_empty() {
            let body: Value = serde_json::from_slice(&self.bytes)
                .map_err(|error| Error::MalformedJson(error.to_string()))?;
            match body {
                Value::Null => {}
                Value::Object(fields) => {
                    faults.extend(fields.keys().map(|name| {
                        Fault::new(Fault::below("", name), "is no field of this request")
                    }));
                }
                _ => faults.push(Fault::new("", "must be empty")),
            }
        }
        if faults.is_empty() {
            Ok(())
        } else {
            Err(Error::Invalid(faults))
        }
    }

    /// Does it. `path` is the last part of the address.
    async fn carry_out(self, path: &str, action: Action) -> Result<Response, Error> {
        let Self {
            state,
            caller,
            request_id,
            link_id,
            key,
            ..
        } = self;
        let key = key.map_err(|fault| Error::Invalid(vec![fault]))?;
        let link = state.find_link(&caller, link_id).await?;
        let context = state.context(state.account_of(&link)?);
        let path = format!("/v1/payment-links/{link_id}/{path}");
        let id = OperationId::new();
        let request = operations::Request {
            operation_id: id,
            link_id,
            idempotency_key: key.map(|key| IdempotencyKey {
                client_id: caller.client_id,
                key,
                request_hash: fingerprint(&path, &action),
            }),
            action,
            client: caller.client,
            request_id,
        };
        let work = Box::pin(async move { Ok(operations::perform(&context, request).await?) });
        let subject = Subject::Operation { id, link_id };
        answer(link_id, state.see_through(subject, work).await?)
    }
}

/// How an outcome is told.
fn answer(link_id: PaymentLinkId, outcome: Outcome) -> Result<Response, Error> {
    let subject = |id| Subject::Operation { id, link_id };
    let (operation_id, mut response) = match outcome {
        Outcome::Done {
            operation_id,
            link,
            read_back,
        } => {
            let status = if read_back {
                StatusCode::OK
            } else {
                StatusCode::ACCEPTED
            };
            (operation_id, (status, Json(link)).into_response())
        }
        Outcome::Replayed { operation_id, link } => {
            let json = [(header::CONTENT_TYPE, "application/json")];
            let mut response = (json, link).into_response();
            response
                .headers_mut()
                .insert(IDEMPOTENT_REPLAYED, HeaderValue::from_static("true"));
            (operation_id, response)
        }
        Outcome::Objected(Objection::NotPossible(words)) => return Err(Error::NotPossible(words)),
        Outcome::Objected(Objection::Busy) => return Err(Error::OperationRunning),
        Outcome::Objected(Objection::Unclear { retry_after }) => {
            return Err(Error::RefundableUnclear { retry_after });
        }
        Outcome::NotRead(error) => return Err(error.into()),
        Outcome::Objected(Objection::Invalid(faults)) => return Err(Error::Invalid(faults)),
        Outcome::Failed {
            operation_id,
            failure,
            retry_after,
            replayed,
        } => {
            return Err(Error::DojoFailed {
                subject: subject(operation_id),
                failure,
                retry_after,
                replayed,
            });
        }
        Outcome::Unknown { operation_id } => return Err(Error::DojoUnsure(subject(operation_id))),
        Outcome::Running { operation_id } => return Err(Error::Running(subject(operation_id))),
        Outcome::Unconfirmed { operation_id } => {
            return Err(Error::Unconfirmed(subject(operation_id)));
        }
        Outcome::KeyReused => return Err(Error::IdempotencyKeyReused),
        Outcome::NoSuchLink => return Err(Error::NoSuchLink),
    };
    if let Ok(id) = HeaderValue::try_from(operation_id.to_string()) {
        response.headers_mut().insert(OPERATION_ID, id);
    }
    Ok(response)
}

/// Lists the operations on a payment, oldest first.
///
/// Those that were asked for through this service, and what came of them.
#[utoipa::path(
    get, path = "/v1/payment-links/{id}/operations", tag = "Operations",
    params(
        OfLink,
        ("limit" = Option<i64>, Query, description = "How many at most. Default: 50.", minimum = 1, maximum = 100),
        ("after" = Option<String>, Query, description = "Where to go on: the `after` of the page before."),
    ),
    responses(
        (status = 200, description = "A page of operations.", body = Page<Operation>, example = json!(examples::operations())),
        Guarded,
        NoSuchLink,
        FaultyQuery,
    )
)]
async fn list(
    State(state): State<AppState>,
    caller: Caller<LinksRead>,
    LinkId(link_id): LinkId,
    RawQuery(query): RawQuery,
) -> Result<Json<Page<Operation>>, Error> {
    let mut query = Query::new(query.as_deref());
    let limit = query.limit();
    let after = query.take("after", "the after of a page before", |text| {
        text.parse::<OperationId>().ok()
    });
    query.finish()?;

    let link = state.find_link(&caller, link_id).await?;
    let operations =
        store::operations::list(&state.pool, link.id, after, to_i64(limit) + 1).await?;
    Ok(Json(Page::new(operations, limit, |last| {
        last.id.to_string()
    })))
}
