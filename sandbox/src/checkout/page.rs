//! The pages and their security headers.

use askama::Template;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{Html, IntoResponse, Response};

use super::countries::COUNTRIES;
use super::fields::{self, Section};
use super::form::{FieldError, FormInput, RequiredParts};
use super::order::{self, Line};
use crate::ids;
use crate::intents::{Card, Intent, Status};
use crate::money::Money;

/// What all pages have in common.
pub(super) struct Shell {
    nonce: String,
    merchant: String,
    initial: String,
    /// Origins that a form may redirect to. Browsers also check redirects against `form-action`.
    redirect_origins: Vec<String>,
}

impl Shell {
    pub(super) fn nameless() -> Self {
        let (merchant, initial) = (String::new(), String::new());
        Self {
            nonce: ids::base64_url(22),
            merchant,
            initial,
            redirect_origins: Vec::new(),
        }
    }

    pub(super) fn of(intent: &Intent) -> Self {
        let merchant = intent.config.trading_name.clone();
        let initial = merchant
            .chars()
            .next()
            .into_iter()
            .flat_map(char::to_uppercase)
            .collect();
        let urls = [&intent.config.redirect_url, &intent.config.cancel_url];
        let redirect_origins = urls
            .into_iter()
            .flatten()
            .filter_map(|url| origin(url))
            .collect();
        Self {
            nonce: ids::base64_url(22),
            merchant,
            initial,
            redirect_origins,
        }
    }
}

#[derive(Template)]
#[template(path = "form.html")]
struct FormPage<'a> {
    shell: &'a Shell,
    id: &'a str,
    heading: &'a str,
    total: Money,
    total_minor: i64,
    show_total: bool,
    description: Option<&'a str>,
    reference: Option<&'a str>,
    lines: Vec<Line>,
    sections: Vec<Section>,
    countries: &'static [(&'static str, &'static str)],
    has_errors: bool,
    alert: Option<Alert>,
}

/// The message above the form.
pub(super) struct Alert {
    pub(super) title: &'static str,
    pub(super) text: Option<&'static str>,
    pub(super) links: Vec<FieldError>,
}

/// The payment form. With `input`, it is filled in again as far as that is allowed.
pub(super) fn form(
    status: StatusCode,
    intent: &Intent,
    input: Option<&FormInput>,
    alert: Option<Alert>,
) -> Response {
    let required_parts = RequiredParts::of(&intent.config);
    let errors = alert.as_ref().map_or(&[][..], |alert| &alert.links);
    let mut sections = fields::sections(required_parts);
    for field in sections.iter_mut().flat_map(|section| &mut section.fields) {
        field.value = input
            .and_then(|input| input.refill(&field.id))
            .map_or_else(|| fields::initial_value(intent, &field.id), str::to_owned);
        field.error = errors
            .iter()
            .find(|(id, _)| *id == field.id)
            .map(|(_, message)| *message);
        if field.id == "cvv" && field.error.is_some() {
            // The error already says where to find the digits.
            field.hint = None;
        }
    }
    let shell = Shell::of(intent);
    let details = intent.config.details.unwrap_or_default();
    let template = FormPage {
        shell: &shell,
        id: &intent.id,
        heading: intent.config.title.as_deref().unwrap_or("Amount to pay"),
        total: intent.total_amount,
        total_minor: intent.total_amount.value,
        show_total: details.show_total != Some(false),
        description: intent.description.as_deref(),
        reference: visible_reference(intent),
        lines: order::lines(intent),
        sections,
        countries: COUNTRIES,
        has_errors: alert.is_some(),
        alert,
    };
    respond(status, &shell, &template)
}

/// The reference, unless the merchant hides it.
fn visible_reference(intent: &Intent) -> Option<&str> {
    let hidden = intent
        .config
        .details
        .and_then(|details| details.show_reference)
        == Some(false);
    (!hidden).then_some(intent.reference.as_str())
}

#[derive(Template)]
#[template(path = "challenge.html")]
struct ChallengePage<'a> {
    shell: &'a Shell,
    id: &'a str,
    total: Money,
    card: String,
}

/// The bank's 3-D Secure page.
pub(super) fn challenge(intent: &Intent, card: &Card) -> Response {
    let shell = Shell::of(intent);
    let total = intent.total_amount;
    let template = ChallengePage {
        shell: &shell,
        id: &intent.id,
        total,
        card: describe_card(card),
    };
    respond(StatusCode::OK, &shell, &template)
}

/// `Mastercard ending 1005`
fn describe_card(card: &Card) -> String {
    let scheme = match card.scheme {
        "VISA" => "Visa",
        "MASTERCARD" => "Mastercard",
        "MAESTRO" => "Maestro",
        "AMEX" => "American Express",
        "DISCOVER" => "Discover",
        "DCI" => "Diners Club",
        _ => "Card",
    };
    format!("{scheme} ending {}", card.last4)
}

#[derive(Template)]
#[template(path = "success.html")]
struct SuccessPage<'a> {
    shell: &'a Shell,
    total: Money,
    reference: Option<&'a str>,
    card: Option<String>,
    date: String,
}

/// The page after a payment, if the merchant has no page of its own.
pub(super) fn success(intent: &Intent) -> Response {
    let shell = Shell::of(intent);
    let template = SuccessPage {
        shell: &shell,
        total: intent.total_amount,
        reference: visible_reference(intent),
        card: intent
            .approved
            .as_ref()
            .map(|attempt| describe_card(&attempt.card)),
        date: paid_at(intent),
    };
    respond(StatusCode::OK, &shell, &template)
}

#[derive(Template)]
#[template(path = "notice.html")]
struct NoticePage<'a> {
    shell: &'a Shell,
    heading: &'a str,
    text: &'a str,
    /// Shows a tick instead of an exclamation mark.
    positive: bool,
    /// Target and label.
    link: Option<(String, &'a str)>,
}

/// A page with a message and an optional link.
pub(super) fn notice(
    status: StatusCode,
    shell: &Shell,
    heading: &str,
    text: &str,
    link: Option<(String, &str)>,
) -> Response {
    respond(
        status,
        shell,
        &NoticePage {
            shell,
            heading,
            text,
            positive: false,
            link,
        },
    )
}

/// The page of a link that has already been paid.
pub(super) fn settled(intent: &Intent, heading: &str) -> Response {
    let shell = Shell::of(intent);
    let text = match intent.status {
        Status::Authorized | Status::Captured => format!(
            "{} was paid to {} on {}. There is nothing left to pay. You can close this page.",
            intent.total_amount,
            shell.merchant,
            paid_at(intent),
        ),
        _ => "The money is being returned to the card that was used. There is nothing left to pay. You can close this page."
            .to_owned(),
    };
    let page = NoticePage {
        shell: &shell,
        heading,
        text: &text,
        positive: true,
        link: None,
    };
    respond(StatusCode::OK, &shell, &page)
}

fn paid_at(intent: &Intent) -> String {
    intent
        .authorized_at
        .unwrap_or(intent.updated_at)
        .human_readable()
}

fn respond(status: StatusCode, shell: &Shell, template: &impl Template) -> Response {
    let html = match template.render() {
        Ok(html) => Html(html),
        Err(error) => {
            tracing::error!(%error, "failed to render a page");
            return StatusCode::INTERNAL_SERVER_ERROR.into_response();
        }
    };
    let policy = format!(
        "default-src 'none'; style-src 'nonce-{nonce}'; script-src 'nonce-{nonce}'; img-src data:; \
         form-action 'self' {redirect_origins}; base-uri 'none'; frame-ancestors 'none'",
        nonce = shell.nonce,
        redirect_origins = shell.redirect_origins.join(" "),
    );
    let mut response = (status, html).into_response();
    let headers = response.headers_mut();
    // Origins are ASCII, so the policy is a valid header. If it weren't, the page may load nothing.
    let policy =
        HeaderValue::from_str(&policy).unwrap_or(HeaderValue::from_static("default-src 'none'"));
    headers.insert(header::CONTENT_SECURITY_POLICY, policy);
    for (name, value) in [
        (header::CACHE_CONTROL, "no-store"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::X_FRAME_OPTIONS, "DENY"),
        // Anyone with the link can see the payment, so other sites mustn't learn it.
        (header::REFERRER_POLICY, "no-referrer"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}

/// The origin of a URL in a content security policy. For a URL without a host, such as an app's link, only the scheme.
fn origin(url: &str) -> Option<String> {
    let url = reqwest::Url::parse(url).ok()?;
    match url.origin() {
        origin if origin.is_tuple() => Some(origin.ascii_serialization()),
        _ => Some(format!("{}:", url.scheme())),
    }
}
