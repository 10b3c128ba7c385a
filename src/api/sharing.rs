//! A link in the forms in which it is given to a customer: as a QR code and as a text.

use axum::{
    Json,
    extract::{RawQuery, State},
    http::header,
    response::IntoResponse,
};
use serde::Serialize;
use time::OffsetDateTime;
use utoipa::{IntoParams, IntoResponses, ToSchema};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    auth::Caller,
    error::Error,
    examples,
    payment_links::LinkId,
    problem::Problem,
    query::Query,
    responses::{Guarded, InvalidQuery, NoSuchLink},
    scope::LinksRead,
    state::AppState,
};
use crate::{
    payment_link::{PaymentLink, PaymentLinkId, Unpayable},
    sharing::{invitation::Invitation, qr_code::Image},
};

pub(super) fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(qr_svg))
        .routes(routes!(qr_png))
        .routes(routes!(share))
}

/// The link can't be paid, so there is nothing to give to a customer. `detail` says why.
#[derive(IntoResponses)]
#[response(status = 409, content_type = "application/problem+json", examples(("not-payable" = ())))]
#[expect(dead_code, reason = "describes the response that `Error` creates")]
struct NotPayable(Problem);

/// The parameters of an image, for the OpenAPI document.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "describes what `image` reads")]
struct ImageParameters {
    /// The least width of the image in pixels. 300 if omitted. The image may be wider by a few pixels, so that every module of
    /// the code has the same size.
    #[param(minimum = 50, maximum = 2000)]
    size: Option<u16>,
}

/// An image, for the OpenAPI document.
#[derive(ToSchema)]
#[schema(value_type = String, format = Binary)]
#[expect(dead_code, reason = "describes the body of a response")]
struct PngImage(Vec<u8>);

/// Returns the link as a QR code, in SVG.
///
/// The code leads to the link's `shortUrl`, or to its `url` if it has none. It has error correction level M and the margin
/// that scanners need. It is returned for every link that has a `url` and was not renewed, so an invoice that was paid can be
/// printed again.
#[utoipa::path(
    get, path = "/v1/payment-links/{id}/qr.svg", operation_id = "getQrCodeAsSvg", tag = "Sharing", params(LinkId, ImageParameters),
    security(("apiKey" = ["links:read"])),
    responses(
        (status = 200, description = "The image.", body = String, content_type = "image/svg+xml"),
        Guarded, NoSuchLink, NotPayable, InvalidQuery,
    )
)]
async fn qr_svg(
    State(state): State<AppState>,
    caller: Caller<LinksRead>,
    LinkId { id }: LinkId,
    RawQuery(query): RawQuery,
) -> Result<impl IntoResponse, Error> {
    let svg = image(&state, &caller, id, query.as_deref()).await?.svg();
    Ok(([(header::CONTENT_TYPE, "image/svg+xml")], svg))
}

/// Returns the link as a QR code, in PNG.
///
/// As `qr.svg`, for programs that can't show SVG.
#[utoipa::path(
    get, path = "/v1/payment-links/{id}/qr.png", operation_id = "getQrCodeAsPng", tag = "Sharing", params(LinkId, ImageParameters),
    security(("apiKey" = ["links:read"])),
    responses(
        (status = 200, description = "The image.", body = PngImage, content_type = "image/png"),
        Guarded, NoSuchLink, NotPayable, InvalidQuery,
    )
)]
async fn qr_png(
    State(state): State<AppState>,
    caller: Caller<LinksRead>,
    LinkId { id }: LinkId,
    RawQuery(query): RawQuery,
) -> Result<impl IntoResponse, Error> {
    let image = image(&state, &caller, id, query.as_deref()).await?;
    let png = image.png().map_err(Error::NoImage)?;
    Ok(([(header::CONTENT_TYPE, "image/png")], png))
}

/// The QR code of a link, as wide as the query says.
async fn image(
    state: &AppState,
    caller: &Caller<LinksRead>,
    id: PaymentLinkId,
    query: Option<&str>,
) -> Result<Image, Error> {
    let mut query = Query::new(query);
    let width = query.take("size", "50 to 2000", |text| {
        text.parse().ok().filter(|size| (50..=2000).contains(size))
    });
    query.finish()?;
    let link = caller.find_link(state, id).await?;
    Image::new(address(&link)?, width.unwrap_or(300)).map_err(Error::NoImage)
}

/// The address to give to the customer.
fn address(link: &PaymentLink) -> Result<&str, Error> {
    link.customer_url().ok_or_else(|| {
        let now = OffsetDateTime::now_utc();
        Error::NotPayable(link.unpayable(now).unwrap_or(Unpayable::Pending))
    })
}

/// A text that asks a customer to pay, and URLs that open a program with it.
#[derive(Serialize, ToSchema)]
struct Share {
    /// Where the customer pays: the link's `shortUrl`, or its `url` if it has none.
    url: String,
    /// A subject, for email.
    #[schema(example = "Payment request: Order 236")]
    subject: String,
    /// The text, with the URL in its last line.
    text: String,
    /// A `mailto:` URL, which opens a new email. It is addressed to `customer.emailAddress`, if the link has one.
    mailto: String,
    /// An `sms:` URL, which opens a new text message. It is addressed to `customer.phoneNumber`, if the link has one with a
    /// country code.
    sms: String,
    /// A URL that opens a new message in WhatsApp, addressed like `sms`.
    whatsapp: String,
}

/// Returns a text that asks the customer to pay.
///
/// For a person who sends the link from their own mailbox or phone. Show `mailto`, `sms` and `whatsapp` as links.
#[utoipa::path(
    get, path = "/v1/payment-links/{id}/share", operation_id = "sharePaymentLink", tag = "Sharing", params(LinkId),
    security(("apiKey" = ["links:read"])),
    responses(
        (status = 200, description = "The text.", body = Share, example = json!(examples::share())),
        Guarded, NoSuchLink, NotPayable, InvalidQuery,
    )
)]
async fn share(
    State(state): State<AppState>,
    caller: Caller<LinksRead>,
    LinkId { id }: LinkId,
    RawQuery(query): RawQuery,
) -> Result<Json<Share>, Error> {
    Query::new(query.as_deref()).finish()?;
    let link = caller.find_link(&state, id).await?;
    if let Some(why) = link.unpayable(OffsetDateTime::now_utc()) {
        return Err(Error::NotPayable(why));
    }
    let url = address(&link)?.to_owned();
    let Invitation {
        subject,
        text,
        mailto,
        sms,
        whatsapp,
    } = Invitation::new(&link, &url);
    Ok(Json(Share {
        url,
        subject,
        text,
        mailto,
        sms,
        whatsapp,
    }))
}
