//! Erasing the personal data of a payment link.

use axum::Json;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    error::Error,
    examples,
    payment_links::LinkId,
    problem::Problem,
    responses::{BadBody, Guarded, NoSuchLink},
    scope::DataErase,
    state::AppState,
    write_request::WriteRequest,
};
use crate::{
    payment_link::{PaymentLink, timeline::Cause},
    store,
};

pub(super) fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(erase))
}

/// Erases the personal data of a payment link.
///
/// Erases the customer, addresses, the customer's device, recipients and texts of messages and receipts, the reasons and notes
/// of refunds, Dojo's words in failures, the metadata entries that this service's operator has marked as personal, and the
/// `Idempotency-Key`s, of which a hash remains. Amounts, statuses, times, the reference, the description and the masked card
/// number stay. The link can still be refunded. `erasedAt` and the timeline show that it was erased.
///
/// Nothing may be open about the link: it must be paid, or no longer payable, and Dojo must have confirmed that. Until then, the
/// response is a 409. Messages that wait to be sent are canceled.
///
/// A request that is repeated with an `Idempotency-Key` of the link gets a 410 from then on. Erasing a link again is fine, and
/// erases what was added since. This request itself needs no key. Dojo's own copy is not affected.
#[utoipa::path(
    post, path = "/v1/payment-links/{id}/erase", operation_id = "erasePaymentLink", tag = "Payment links",
    params(LinkId),
    security(("apiKey" = ["data:erase"])),
    responses(
        (status = 200, description = "The payment link without personal data.", body = PaymentLink, example = json!(examples::erased_link())),
        BadBody,
        Guarded,
        NoSuchLink,
        (status = 409, description = "Something about the link is still open: `detail` says what.", body = Problem, content_type = "application/problem+json", examples(("not-erasable" = ()))),
        (status = 422, description = "The body is not empty.", body = Problem, content_type = "application/problem+json", examples(("invalid-request" = ()))),
    )
)]
async fn erase(request: WriteRequest<DataErase, LinkId>) -> Result<Json<PaymentLink>, Error> {
    request.no_body()?;
    let WriteRequest {
        state,
        caller,
        request_id,
        path: LinkId { id },
        ..
    } = request;
    caller.find_link(&state, id).await?;
    let cause = Cause::Request {
        client: caller.client,
        request_id,
    };
    let erased = store::erasure::erase(&state.pool, id, &state.personal_metadata, &cause).await?;
    let erased = erased.ok_or(Error::NoSuchLink)?;
    let erased = erased.map_err(Error::NotErasable)?;
    Ok(Json(erased.link))
}
