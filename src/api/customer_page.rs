//! The page at a short address, for customers: it leads on to Dojo's checkout page while the link can be paid, and otherwise
//! says why not.
//!
//! It works without scripts and discloses nothing about the payment: whoever finds an old message learns no name and no
//! amount from it.

use std::sync::LazyLock;

use askama::Template;
use axum::{
    Router,
    extract::{Path, State, rejection::PathRejection},
    http::{HeaderName, StatusCode, header},
    response::{Html, IntoResponse, Response},
    routing::get,
};
use time::OffsetDateTime;

use super::{observe::FailureCause, page_policy::page_policy, problem::ForPeople, state::AppState};
use crate::{
    config::Merchant,
    payment_link::{ShortCode, Unpayable},
    store,
    telemetry::causes,
};

const STYLE: &str = include_str!("../../templates/customer.css");

pub(super) fn routes() -> Router<AppState> {
    Router::new().route("/p/{code}", get(open))
}

/// What a page says.
#[derive(Debug, Clone, Copy)]
struct Message {
    status: StatusCode,
    heading: &'static str,
    text: &'static str,
}

impl Message {
    const PAID: Self = Self {
        status: StatusCode::OK,
        heading: "This has already been paid",
        text: "There is nothing more to pay. You can close this page.",
    };
    const AUTHORIZED: Self = Self {
        status: StatusCode::OK,
        heading: "You have already approved this payment",
        text: "There is nothing more to do. You can close this page.",
    };
    const UNCONFIRMED: Self = Self {
        status: StatusCode::OK,
        heading: "We are checking this payment",
        text: "If you have paid, don’t pay again. Open this page again in a few minutes.",
    };
    const WITHDRAWN: Self = Self {
        status: StatusCode::OK,
        heading: "This link has been withdrawn",
        text: "It can no longer be used to pay.",
    };
    const EXPIRED: Self = Self {
        status: StatusCode::OK,
        heading: "This link has expired",
        text: "It can no longer be used to pay. Ask for a new one.",
    };
    const NOT_READY: Self = Self {
        status: StatusCode::SERVICE_UNAVAILABLE,
        heading: "This link is not ready yet",
        text: "Open this page again in a minute.",
    };
    const UNKNOWN: Self = Self {
        status: StatusCode::NOT_FOUND,
        heading: "There is no such link",
        text: "Check the address, or open the link that you were sent once more.",
    };
    const BUSY: Self = Self {
        status: StatusCode::TOO_MANY_REQUESTS,
        heading: "Too many people are here right now",
        text: "Open this page again in a minute.",
    };
    const OUT_OF_ORDER: Self = Self {
        status: StatusCode::SERVICE_UNAVAILABLE,
        heading: "The link can’t be looked up right now",
        text: "Open this page again in a few minutes.",
    };

    /// What to say about a link that can't be paid.
    fn about(why: Unpayable) -> Self {
        match why {
            Unpayable::Pending => Self::NOT_READY,
            Unpayable::Unconfirmed => Self::UNCONFIRMED,
            Unpayable::Authorized => Self::AUTHORIZED,
            Unpayable::Paid => Self::PAID,
            Unpayable::Withdrawn | Unpayable::Failed => Self::WITHDRAWN,
            Unpayable::Expired => Self::EXPIRED,
        }
    }
}

#[derive(Template)]
#[template(path = "customer.html")]
struct Page<'a> {
    heading: &'a str,
    text: &'a str,
    contact: &'a str,
    style: &'a str,
}

/// Whom to ask.
fn contact(merchant: &Merchant) -> String {
    match (&merchant.name, &merchant.contact) {
        (Some(name), Some(contact)) => format!("Contact {name}: {contact}"),
        (Some(name), None) => format!("Contact {name}."),
        (None, Some(contact)) => contact.clone(),
        (None, None) => "Contact whoever sent you this link.".to_owned(),
    }
}

async fn open(
    State(state): State<AppState>,
    code: Result<Path<String>, PathRejection>,
) -> Response {
    let nobody = Merchant::default();
    let code = code
        .ok()
        .and_then(|Path(code)| code.parse::<ShortCode>().ok());
    let Some(code) = code else {
        return page(Message::UNKNOWN, &nobody);
    };
    if !state.page_rate.allows() {
        return page(Message::BUSY, &nobody);
    }
    let link = match store::short_addresses::find(&state.pool, &code).await {
        Ok(Some(link)) => link,
        Ok(None) => return page(Message::UNKNOWN, &nobody),
        Err(error) => {
            let mut response = page(Message::OUT_OF_ORDER, &nobody);
            let cause = FailureCause(causes(&error).to_string());
            response.extensions_mut().insert(cause);
            return response;
        }
    };
    let message = match (link.unpayable(OffsetDateTime::now_utc()), &link.url) {
        (None, Some(url)) => return redirect(url),
        (None, None) => Message::NOT_READY,
        (Some(why), _) => Message::about(why),
    };
    let account = state.accounts.get(&link.account);
    page(
        message,
        account.map_or(&nobody, |account| &account.merchant),
    )
}

/// What every response has: it isn't stored or indexed, and no other site learns its address.
const HEADERS: [(HeaderName, &str); 3] = [
    (header::CACHE_CONTROL, "no-store"),
    (header::REFERRER_POLICY, "no-referrer"),
    (HeaderName::from_static("x-robots-tag"), "noindex, nofollow"),
];

/// Not a permanent redirect: browsers would skip this page even after the payment.
fn redirect(url: &str) -> Response {
    let location = [(header::LOCATION, url.to_owned())];
    (StatusCode::FOUND, HEADERS, location).into_response()
}

fn page(message: Message, merchant: &Merchant) -> Response {
    static POLICY: LazyLock<String> = LazyLock::new(|| page_policy(STYLE));
    let Message {
        status,
        heading,
        text,
    } = message;
    let page = Page {
        heading,
        text,
        contact: &contact(merchant),
        style: STYLE,
    };
    let html = page
        .render()
        .expect("the template renders, and a test reads the pages");
    let headers = [
        (header::CONTENT_SECURITY_POLICY, POLICY.as_str()),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ];
    let mut response = (status, HEADERS, headers, Html(html)).into_response();
    if status == StatusCode::SERVICE_UNAVAILABLE || status == StatusCode::TOO_MANY_REQUESTS {
        let minute = header::HeaderValue::from_static("60");
        response.headers_mut().insert(header::RETRY_AFTER, minute);
    }
    response.extensions_mut().insert(ForPeople);
    response
}
