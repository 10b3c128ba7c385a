//! Operations on a payment: capture, refund, reverse, cancel, change its amount, send a receipt.

use axum::{
    Json,
    extract::{FromRequestParts, Path, RawQuery, State},
    http::{HeaderName, HeaderValue, StatusCode, request::Parts},
    response::{IntoResponse, Response},
};
use utoipa::{IntoParams, IntoResponses};
use utoipa_axum::{router::OpenApiRouter, routes};
use uuid::Uuid;

use super::{
    auth::Caller,
    error::Error,
    examples,
    idempotency::{IDEMPOTENT_REPLAYED, OptionalKey, RequiredKey},
    payment_links::LinkId,
    performed_operation::PerformedOperation,
    problem::{Problem, Subject},
    query::{AFTER, Page, PageParameters, Query, one_to_sixty, to_i64},
    responses::{BadBody, Guarded, InvalidQuery, NoSuchLink, NoSuchOperation},
    scope::{LinksRead, PaymentsManage},
    state::AppState,
    write_request::{Key, PreferWait, WriteRequest, applied},
};
use crate::{
    payment_link::{
        OperationId, PaymentLinkId,
        operation::{
            Action, NewAmount, NewCapture, NewReceipt, NewRefund, NewTipsAmount, Operation,
            OperationStatus, broken_rules, permission::Denial,
        },
    },
    protocol::operations::{self, Outcome},
    store,
};

/// The id of the operation that a request started or repeated.
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
        .routes(routes!(list_of_link))
        .routes(routes!(list))
        .routes(routes!(get))
}

/// The responses of every operation, for the OpenAPI document.
#[derive(IntoResponses)]
#[expect(
    dead_code,
    reason = "describes the responses of `respond` and of `Error`"
)]
enum OperationResponse {
    /// The operation succeeded. The link in its new state, as Dojo reports it.
    #[response(status = 200)]
    Done(PerformedOperation),
    /// The operation succeeded, but reading the link from Dojo afterwards failed. The link in its state before the operation,
    /// with `confirmed` `false`. It is updated within seconds once Dojo responds again. To get it then, repeat the request
    /// with the same key, or read the link.
    #[response(status = 202)]
    DoneNotRead(PerformedOperation),
    /// With `Retry-After`, repeat the request with the same key: the outcome of another operation, or of an earlier request
    /// with the same key, must be known first, or it's not clear yet whether enough is left to refund. Without it, the
    /// payment doesn't allow the operation (`allowedActions` lists what it allows), Dojo rejected it, or it failed:
    /// retrying won't help.
    #[response(status = 409, content_type = "application/problem+json", examples(("not-possible" = ()), ("request-in-progress" = ()), ("operation-in-progress" = ()), ("refundable-amount-unclear" = ()), ("not-done" = ()), ("outcome-unconfirmed" = ()), ("rejected-by-dojo" = ())))]
    Conflict(Problem),
    /// The key was used before, and the link's personal data was erased since.
    #[response(status = 410, content_type = "application/problem+json", examples(("erased" = ())))]
    Erased(Problem),
    /// The request is invalid or Dojo rejected it (`errors` lists the reasons), or the key was already used for a different
    /// request.
    #[response(status = 422, content_type = "application/problem+json", examples(("invalid-request" = ()), ("idempotency-key-reused" = ()), ("rejected-by-dojo" = ())))]
    Invalid(Problem),
    /// Dojo rejected this service's API key, or the server at the configured address is not Dojo's API. Nothing was done.
    #[response(status = 502, content_type = "application/problem+json", examples(("dojo-key-rejected" = ()), ("dojo-misrouted" = ())))]
    BadGateway(Problem),
    /// The database or Dojo could not be reached, or too many requests are in progress. Retry after `Retry-After`.
    #[response(status = 503, content_type = "application/problem+json", examples(("dojo-not-reached" = ()), ("database-unavailable" = ()), ("overloaded" = ()), ("timed-out" = ()), ("account-not-configured" = ())))]
    Unavailable(Problem),
    /// Dojo's response was lost, so it is not known yet whether the operation took effect. The service finds out in the
    /// background. To get the outcome, repeat the request with the same key, or list the link's operations.
    #[response(status = 504, content_type = "application/problem+json", examples(("outcome-unknown" = ())))]
    OutcomeUnknown(Problem),
}

/// A request for an operation on the link in its path.
type OperationRequest = WriteRequest<PaymentsManage, LinkId>;

/// Cancels a payment link.
///
/// Only a link that nobody has paid can be canceled. Nobody can pay it afterwards.
#[utoipa::path(
    post,
    path = "/v1/payment-links/{id}/cancel",
    operation_id = "cancelPaymentLink",
    tag = "Operations",
    params(LinkId, OptionalKey, PreferWait),
    security(("apiKey" = ["payments:manage"])),
    responses(BadBody, Guarded, NoSuchLink, OperationResponse)
)]
async fn cancel(request: OperationRequest) -> Result<Response, Error> {
    request.no_body()?;
    carry_out(request, "cancel", Action::Cancel).await
}

/// Captures an authorized payment.
///
/// Captures the whole amount or a part of it. You can capture several parts until the whole amount is captured.
#[utoipa::path(
    post, path = "/v1/payment-links/{id}/captures", operation_id = "capturePaymentLink", tag = "Operations",
    params(LinkId, OptionalKey, PreferWait),
    request_body(content = NewCapture, example = json!({"amount": {"value": 1500, "currencyCode": "GBP"}})),
    security(("apiKey" = ["payments:manage"])),
    responses(BadBody, Guarded, NoSuchLink, OperationResponse)
)]
async fn capture(request: OperationRequest) -> Result<Response, Error> {
    let new: NewCapture = request.body(Key::Optional, broken_rules)?;
    carry_out(request, "captures", Action::Capture(new)).await
}

/// Refunds a payment.
///
/// Refunds the whole captured amount or a part of it. You can refund several parts until the whole amount is refunded.
///
/// The `Idempotency-Key` is required. Use a new one for each refund. If you get no response, send the same request again with
/// the same key: however often you send it, the money is refunded once.
#[utoipa::path(
    post, path = "/v1/payment-links/{id}/refunds", operation_id = "refundPaymentLink", tag = "Operations",
    params(LinkId, RequiredKey, PreferWait),
    request_body(content = NewRefund, example = json!({"amount": {"value": 350, "currencyCode": "GBP"}, "refundReason": "Returned goods"})),
    security(("apiKey" = ["payments:manage"])),
    responses(BadBody, Guarded, NoSuchLink, OperationResponse)
)]
async fn refund(request: OperationRequest) -> Result<Response, Error> {
    let new: NewRefund = request.body(Key::Required, broken_rules)?;
    carry_out(request, "refunds", Action::Refund(new)).await
}

/// Reverses a payment.
///
/// Undoes the whole payment: an authorization that is not captured yet, or, on the day it was made, a payment with the capture
/// mode `Auto`.
#[utoipa::path(
    post,
    path = "/v1/payment-links/{id}/reversal",
    operation_id = "reversePaymentLink",
    tag = "Operations",
    params(LinkId, OptionalKey, PreferWait),
    security(("apiKey" = ["payments:manage"])),
    responses(BadBody, Guarded, NoSuchLink, OperationResponse)
)]
async fn reverse(request: OperationRequest) -> Result<Response, Error> {
    request.no_body()?;
    carry_out(request, "reversal", Action::Reversal).await
}

/// Changes the amount of a payment that is not captured yet.
///
/// The link must have been created with `config.payment.customAmountAllowed`.
#[utoipa::path(
    post, path = "/v1/payment-links/{id}/amount", operation_id = "changePaymentLinkAmount", tag = "Operations",
    params(LinkId, OptionalKey, PreferWait),
    request_body(content = NewAmount, example = json!({"amount": {"value": 1950, "currencyCode": "GBP"}})),
    security(("apiKey" = ["payments:manage"])),
    responses(BadBody, Guarded, NoSuchLink, OperationResponse)
)]
async fn change_amount(request: OperationRequest) -> Result<Response, Error> {
    let new: NewAmount = request.body(Key::Optional, broken_rules)?;
    carry_out(request, "amount", Action::Amount(new)).await
}

/// Changes the tip of a payment that is not captured yet.
///
/// The link must have been created with `config.payment.tipsAllowed`.
#[utoipa::path(
    post, path = "/v1/payment-links/{id}/tips-amount", operation_id = "changePaymentLinkTipsAmount", tag = "Operations",
    params(LinkId, OptionalKey, PreferWait),
    request_body(content = NewTipsAmount, example = json!({"tipsAmount": {"value": 200, "currencyCode": "GBP"}})),
    security(("apiKey" = ["payments:manage"])),
    responses(BadBody, Guarded, NoSuchLink, OperationResponse)
)]
async fn change_tips_amount(request: OperationRequest) -> Result<Response, Error> {
    let new: NewTipsAmount = request.body(Key::Optional, broken_rules)?;
    carry_out(request, "tips-amount", Action::TipsAmount(new)).await
}

/// Sends a receipt by email.
#[utoipa::path(
    post, path = "/v1/payment-links/{id}/receipt", operation_id = "sendPaymentLinkReceipt", tag = "Operations",
    params(LinkId, OptionalKey, PreferWait),
    request_body(content = NewReceipt, example = json!({"emails": ["ann@example.com"]})),
    security(("apiKey" = ["payments:manage"])),
    responses(BadBody, Guarded, NoSuchLink, OperationResponse)
)]
async fn send_receipt(request: OperationRequest) -> Result<Response, Error> {
    let new: NewReceipt = request.body(Key::Optional, broken_rules)?;
    carry_out(request, "receipt", Action::Receipt(new)).await
}

/// Carries out an operation. `name` is the last part of its path.
async fn carry_out(
    request: OperationRequest,
    name: &str,
    action: Action,
) -> Result<Response, Error> {
    let link_id = request.path.id;
    let path = format!("/v1/payment-links/{link_id}/{name}");
    let idempotency_key = request.idempotency_key(&path, &action)?;
    let WriteRequest {
        state,
        caller,
        request_id,
        prefer_wait,
        begun,
        ..
    } = request;
    let link = caller.find_link(&state, link_id).await?;
    let context = state.context(state.account_of(&link)?);
    let id = OperationId::new();
    let request = operations::Request {
        operation_id: id,
        link_id,
        idempotency_key,
        action,
        client: caller.client,
        request_id,
    };
    let waiting = prefer_wait.map(|limit| (limit, request.waiting()));
    let work = Box::pin({
        let context = context.clone();
        async move { Ok(operations::perform(&context, request).await?) }
    });
    let subject = || Subject::Operation { id, link_id };
    let mut outcome = state.run_to_completion(subject, work).await?;
    if let Some((limit, (key, cause))) = waiting {
        let limit = limit.min(state.time_left(begun));
        outcome =
            operations::await_outcome(&context, key.as_ref(), link_id, &cause, outcome, limit)
                .await?;
    }
    respond(&state, link_id, outcome).map(|response| applied(response, prefer_wait))
}

fn respond(state: &AppState, link_id: PaymentLinkId, outcome: Outcome) -> Result<Response, Error> {
    let subject = |id| Subject::Operation { id, link_id };
    let (operation_id, mut response) = match outcome {
        Outcome::Done {
            operation,
            link,
            read_back,
            replayed,
        } => {
            let status = if read_back {
                StatusCode::OK
            } else {
                StatusCode::ACCEPTED
            };
            let performed = PerformedOperation {
                operation: *operation,
                link: *link,
            };
            let operation_id = performed.operation.id;
            let mut response = (status, Json(performed)).into_response();
            if replayed {
                response
                    .headers_mut()
                    .insert(IDEMPOTENT_REPLAYED, HeaderValue::from_static("true"));
            }
            (operation_id, response)
        }
        Outcome::Denied(Denial::NotPossible(denial)) => {
            return Err(Error::NotPossible(denial));
        }
        Outcome::Denied(Denial::Busy) => return Err(Error::OperationInProgress),
        Outcome::Denied(Denial::Unclear { retry_after }) => {
            return Err(Error::RefundableUnclear { retry_after });
        }
        Outcome::NotRead(error) => return Err(error.into()),
        Outcome::Denied(Denial::Invalid(faults)) => return Err(Error::Invalid(faults)),
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
        Outcome::Unknown { operation_id } => {
            return Err(Error::OutcomeUnknown(subject(operation_id)));
        }
        Outcome::Running {
            operation_id,
            progress,
        } => {
            return Err(Error::RequestInProgress {
                subject: subject(operation_id),
                progress,
                retry_after: state.limits.window.retry_after(progress),
            });
        }
        Outcome::Unconfirmed { operation_id } => {
            return Err(Error::Unconfirmed(subject(operation_id)));
        }
        Outcome::KeyReused => return Err(Error::IdempotencyKeyReused),
        Outcome::Erased => return Err(Error::Erased),
        Outcome::NoSuchLink => return Err(Error::NoSuchLink),
    };
    if let Ok(id) = HeaderValue::try_from(operation_id.to_string()) {
        response.headers_mut().insert(OPERATION_ID, id);
    }
    Ok(response)
}

/// Lists the operations on a payment, oldest first.
///
/// Lists the operations requested through this service, with their outcomes.
#[utoipa::path(
    get, path = "/v1/payment-links/{id}/operations", operation_id = "listPaymentLinkOperations", tag = "Operations",
    params(LinkId, PageParameters),
    security(("apiKey" = ["links:read"])),
    responses(
        (status = 200, description = "A page of operations.", body = Page<Operation>, example = json!(examples::operations())),
        Guarded,
        NoSuchLink,
        InvalidQuery,
    )
)]
async fn list_of_link(
    State(state): State<AppState>,
    caller: Caller<LinksRead>,
    LinkId { id: link_id }: LinkId,
    RawQuery(query): RawQuery,
) -> Result<Json<Page<Operation>>, Error> {
    let mut query = Query::new(query.as_deref());
    let limit = query.limit();
    let after = query.take("after", AFTER, |text| text.parse::<OperationId>().ok());
    query.finish()?;

    let link = caller.find_link(&state, link_id).await?;
    let operations =
        store::operations::of_link(&state.pool, link.id, after, to_i64(limit) + 1).await?;
    let start = after.map_or_else(
        || OperationId::from_uuid(Uuid::nil()).to_string(),
        |after| after.to_string(),
    );
    Ok(Json(Page::new(operations, limit, start, |last| {
        last.id.to_string()
    })))
}

/// The filters of the list, for the OpenAPI document.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "describes what `list` reads")]
struct Filters {
    /// Only operations on links of this account.
    #[param(min_length = 1, max_length = 60)]
    account: Option<String>,
    /// Only operations with this status. Repeat the parameter to allow several.
    #[param(example = json!(["Unconfirmed"]))]
    status: Option<Vec<OperationStatus>>,
}

/// Lists operations on all payments, newest first.
///
/// Use it to find operations that need attention, such as those with the status `Unconfirmed`.
#[utoipa::path(
    get, path = "/v1/operations", operation_id = "listOperations", tag = "Operations", params(Filters, PageParameters),
    security(("apiKey" = ["links:read"])),
    responses(
        (status = 200, description = "A page of operations.", body = Page<Operation>, example = json!(examples::unconfirmed_operations())),
        Guarded,
        InvalidQuery,
    )
)]
async fn list(
    State(state): State<AppState>,
    caller: Caller<LinksRead>,
    RawQuery(query): RawQuery,
) -> Result<Json<Page<Operation>>, Error> {
    let mut query = Query::new(query.as_deref());
    let filter = store::operations::Filter {
        open: caller.accounts(),
        account: query.take("account", "1 to 60 characters", one_to_sixty),
        statuses: query.any_of("status", &OperationStatus::ALL.map(OperationStatus::as_str)),
    };
    let limit = query.limit();
    let after = query.take("after", AFTER, |text| text.parse::<OperationId>().ok());
    query.finish()?;

    let operations =
        store::operations::list(&state.pool, &filter, after, to_i64(limit) + 1).await?;
    let start = after
        .unwrap_or_else(|| OperationId::from_uuid(Uuid::max()))
        .to_string();
    Ok(Json(Page::new(operations, limit, start, |last| {
        last.id.to_string()
    })))
}

/// Retrieves an operation.
#[utoipa::path(
    get, path = "/v1/operations/{id}", operation_id = "getOperation", tag = "Operations",
    params(OperationPath),
    security(("apiKey" = ["links:read"])),
    responses(
        (status = 200, description = "The operation.", body = Operation, example = json!(examples::operations()["data"][0])),
        Guarded,
        NoSuchOperation,
    )
)]
async fn get(
    State(state): State<AppState>,
    caller: Caller<LinksRead>,
    OperationPath { id }: OperationPath,
) -> Result<Json<Operation>, Error> {
    let operation = store::operations::find(&state.pool, id).await?;
    operation
        .filter(|operation| caller.may_see(&operation.account))
        .map(Json)
        .ok_or(Error::NoSuchOperation)
}

/// The id in a path. If it isn't a valid id, there is no such operation.
#[derive(IntoParams)]
#[into_params(parameter_in = Path)]
struct OperationPath {
    /// The id of the operation, `op_…`.
    #[param(value_type = String, example = "op_01kaz8v4wce7q8m6s5gq9nq2fd")]
    id: OperationId,
}

impl<S: Send + Sync> FromRequestParts<S> for OperationPath {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Error> {
        let Path(id) = Path::<String>::from_request_parts(parts, state)
            .await
            .map_err(|_| Error::NotFound)?;
        let id = id.parse().map_err(|_| Error::NoSuchOperation)?;
        Ok(Self { id })
    }
}
