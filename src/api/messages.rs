//! Messages that give a link to its customer.

use axum::{
    Json,
    extract::{FromRequestParts, Path, RawQuery, State},
    http::{HeaderValue, StatusCode, header, request::Parts},
    response::{IntoResponse, Response},
};
use time::OffsetDateTime;
use utoipa::IntoParams;
use utoipa_axum::{router::OpenApiRouter, routes};
use uuid::Uuid;

use super::{
    auth::Caller,
    error::Error,
    examples,
    idempotency::{IDEMPOTENT_REPLAYED, RequiredKey},
    payment_links::LinkId,
    problem::Problem,
    query::{AFTER, Page, PageParameters, Query, to_i64},
    responses::{BadBody, Guarded, InvalidQuery, NoSuchLink, NoSuchMessage},
    scope::{LinksRead, LinksSend},
    state::AppState,
    write_request::{Key, WriteRequest},
};
use crate::{
    payment_link::{
        Fault, Message, MessageId, NewMessage, PaymentLink, PaymentLinkId,
        message::{DEFAULT_LOCALE, broken_message_rules, is_email_address},
        timeline::Cause,
    },
    store::{
        self,
        messages::{Admission, Draft},
    },
};

pub(super) fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(send, list))
        .routes(routes!(get))
}

/// Sends a payment link to the customer.
///
/// The message is saved, and sent within seconds. To learn its outcome, read it, or the link's timeline. If the mail server is
/// unreachable or busy, it is sent again for a day. It is not sent if the link can no longer be paid by then.
///
/// The message is sent once. If the mail server's response is lost, the message gets the status `Unknown` and is not sent again,
/// because it may have arrived. To send it again all the same, use a new `Idempotency-Key`.
#[utoipa::path(
    post, path = "/v1/payment-links/{id}/messages", operation_id = "sendPaymentLink", tag = "Messages",
    params(LinkId, RequiredKey),
    request_body(content = NewMessage, example = json!({"channel": "email", "to": "ann@example.com", "note": "Thank you for your order."})),
    security(("apiKey" = ["links:send"])),
    responses(
        (status = 201, description = "The message.", body = Message, example = json!(examples::message())),
        BadBody,
        Guarded,
        NoSuchLink,
        (status = 409, description = "The link can't be paid, so there is nothing to send. `detail` says why.", body = Problem, content_type = "application/problem+json", examples(("not-payable" = ()))),
        (status = 410, description = "The key was used before, and the personal data of the link was erased, or the message was removed because it was old.", body = Problem, content_type = "application/problem+json", examples(("erased" = ()))),
        (status = 503, description = "The database could not be reached (retry after `Retry-After`), or the link's account is no longer configured.", body = Problem, content_type = "application/problem+json", examples(("database-unavailable" = ()), ("timed-out" = ()), ("account-not-configured" = ()))),
        (status = 422, description = "The request is invalid (`errors` lists the reasons), or the key was already used for a different request.", body = Problem, content_type = "application/problem+json", examples(("invalid-request" = ()), ("idempotency-key-reused" = ()))),
    )
)]
async fn send(request: WriteRequest<LinksSend, LinkId>) -> Result<Response, Error> {
    let (new, mut faults): (NewMessage, _) = request.parse(Key::Required, broken_message_rules)?;
    let id = request.path.id;
    let key = request.idempotency_key(&format!("/v1/payment-links/{id}/messages"), &new);
    let WriteRequest {
        state,
        caller,
        request_id,
        ..
    } = request;
    let link = caller.find_link(&state, id).await?;
    // A repetition is recognized first: by now, the link may be in another state, or have another customer's address.
    if let Ok(Some(key)) = &key
        && let Some(earlier) = store::messages::earlier(&state.pool, key).await?
    {
        return respond(&state, id, earlier).await;
    }
    faults.extend(state.mail_fault("/channel"));
    let to = recipient(&new, &link, &mut faults);
    if !faults.is_empty() {
        return Err(Error::Invalid(faults));
    }
    let key = key?.expect("the key is required, so a request without one has a fault");
    // Nothing would send the message of an account that is no longer configured.
    state.account_of(&link)?;
    if let Some(why) = link.unpayable(OffsetDateTime::now_utc()) {
        return Err(Error::NotPayable(why));
    }
    let cause = Cause::Request {
        client: caller.client.clone(),
        request_id,
    };
    let draft = Draft {
        id: MessageId::new(),
        link_id: id,
        channel: new.channel,
        to,
        locale: new.locale.as_deref().unwrap_or(DEFAULT_LOCALE),
        note: new.note.as_deref(),
        created_by: &caller.client,
        cause: &cause,
    };
    match store::messages::save(&state.pool, &draft, &key).await? {
        Admission::New => {
            state.wake_jobs();
            created(&state, id, draft.id, false).await
        }
        earlier => respond(&state, id, earlier).await,
    }
}

/// The address that a message goes to. Adds what is wrong with it.
fn recipient<'a>(new: &'a NewMessage, link: &'a PaymentLink, faults: &mut Vec<Fault>) -> &'a str {
    if let Some(to) = &new.to {
        return to;
    }
    let customer = link.terms.customer.as_ref();
    let address = customer.and_then(|customer| customer.email_address.as_deref());
    match address {
        Some(address) if is_email_address(address) => address,
        Some(_) => {
            faults.push(Fault::new(
                "/to",
                "is required, because the link's customer.emailAddress can't be used",
            ));
            ""
        }
        None => {
            faults.push(Fault::new(
                "/to",
                "is required, because the link has no customer.emailAddress",
            ));
            ""
        }
    }
}

async fn respond(
    state: &AppState,
    link_id: PaymentLinkId,
    earlier: Admission,
) -> Result<Response, Error> {
    match earlier {
        Admission::Repeated(id) => created(state, link_id, id, true).await,
        Admission::Erased => Err(Error::Erased),
        Admission::New | Admission::KeyReused => Err(Error::IdempotencyKeyReused),
    }
}

async fn created(
    state: &AppState,
    link_id: PaymentLinkId,
    id: MessageId,
    replayed: bool,
) -> Result<Response, Error> {
    let message = store::messages::find(&state.pool, link_id, id).await?;
    // Old messages are removed, like what was erased.
    let message = message.ok_or(Error::Erased)?;
    let location = format!("/v1/payment-links/{link_id}/messages/{id}");
    let location = [(header::LOCATION, location)];
    let mut response = (StatusCode::CREATED, location, Json(message)).into_response();
    if replayed {
        response
            .headers_mut()
            .insert(IDEMPOTENT_REPLAYED, HeaderValue::from_static("true"));
    }
    Ok(response)
}

/// Lists the messages about a payment link, oldest first.
///
/// Includes the messages that were requested, the one that the link was created with, and reminders, each with its outcome.
#[utoipa::path(
    get, path = "/v1/payment-links/{id}/messages", operation_id = "listPaymentLinkMessages", tag = "Messages",
    params(LinkId, PageParameters),
    security(("apiKey" = ["links:read"])),
    responses(
        (status = 200, description = "A page of messages.", body = Page<Message>, example = json!(examples::messages())),
        Guarded,
        NoSuchLink,
        InvalidQuery,
    )
)]
async fn list(
    State(state): State<AppState>,
    caller: Caller<LinksRead>,
    LinkId { id }: LinkId,
    RawQuery(query): RawQuery,
) -> Result<Json<Page<Message>>, Error> {
    let mut query = Query::new(query.as_deref());
    let limit = query.limit();
    let after = query.take("after", AFTER, |text| text.parse::<MessageId>().ok());
    query.finish()?;

    let link = caller.find_link(&state, id).await?;
    let messages = store::messages::of_link(&state.pool, link.id, after, to_i64(limit) + 1).await?;
    let start = after
        .unwrap_or_else(|| MessageId::from_uuid(Uuid::nil()))
        .to_string();
    Ok(Json(Page::new(messages, limit, start, |last| {
        last.id.to_string()
    })))
}

/// Retrieves a message.
#[utoipa::path(
    get, path = "/v1/payment-links/{id}/messages/{messageId}", operation_id = "getMessage", tag = "Messages",
    params(MessagePath),
    security(("apiKey" = ["links:read"])),
    responses(
        (status = 200, description = "The message.", body = Message, example = json!(examples::sent_message())),
        Guarded,
        NoSuchMessage,
    )
)]
async fn get(
    State(state): State<AppState>,
    caller: Caller<LinksRead>,
    MessagePath { id, message_id }: MessagePath,
) -> Result<Json<Message>, Error> {
    let link = caller.find_link(&state, id).await?;
    let message = store::messages::find(&state.pool, link.id, message_id).await?;
    message.map(Json).ok_or(Error::NoSuchMessage)
}

/// The ids in a path. If one isn't a valid id, there is no such link or message.
#[derive(IntoParams)]
#[into_params(parameter_in = Path)]
struct MessagePath {
    /// The id of the payment link, `plink_…`.
    #[param(value_type = String, example = "plink_01m81mqpmrf8384nj77tj0t0e4")]
    id: PaymentLinkId,
    /// The id of the message, `msg_…`.
    #[param(rename = "messageId", value_type = String, example = "msg_01m81mzv2jf8x9qk4s7wd3h6rb")]
    message_id: MessageId,
}

impl<S: Send + Sync> FromRequestParts<S> for MessagePath {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Error> {
        let Path((id, message_id)) = Path::<(String, String)>::from_request_parts(parts, state)
            .await
            .map_err(|_| Error::NotFound)?;
        Ok(Self {
            id: id.parse().map_err(|_| Error::NoSuchLink)?,
            message_id: message_id.parse().map_err(|_| Error::NoSuchMessage)?,
        })
    }
}
