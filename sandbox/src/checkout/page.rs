//! The pages themselves, and the headers that keep them to themselves.

use askama::Template;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{Html, IntoResponse, Response};

use super::countries::COUNTRIES;
use super::fields::{self, Section};
use super::form::{Asked, Entered, Fault};
use super::order::{self, Line};
use crate::ids;
use crate::intents::{Card, Intent, Status};
use crate::money::Money;

/// What all pages share.
pub(super) struct Shell {
    nonce: String,
    merchant: String,
    initial: String,
    /// Where a form may lead besides this server: browsers check redirects that follow a form too.
    leads_to: Vec<String>,
}

impl Shell {
    pub(super) fn nameless() -> Self {
        let (merchant, initial) = (String::new(), String::new());
        Self {
            nonce: ids::base64_url(22),
            merchant,
            initial,
            leads_to: Vec::new(),
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
        let leads_to = urls
            .into_iter()
            .flatten()
            .filter_map(|url| origin(url))
            .collect();
        Self {
            nonce: ids::base64_url(22),
            merchant,
            initial,
            leads_to,
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

/// The box above the form that says what went wrong.
pub(super) struct Alert {
    pub(super) title: &'static str,
    pub(super) text: Option<&'static str>,
    /// Field id and message.
    pub(super) links: Vec<Fault>,
}

/// The page to pay on. With `entered`, it shows again what was typed, as far as it may.
pub(super) fn form(
    status: StatusCode,
    intent: &Intent,
    entered: Option<&Entered>,
    alert: Option<Alert>,
) -> Response {
    let asked = Asked::by(&intent.config);
    let faults = alert.as_ref().map_or(&[][..], |alert| &alert.links);
    let mut sections = fields::sections(asked);
    for field in sections.iter_mut().flat_map(|section| &mut section.fields) {
        field.value = entered
            .and_then(|entered| entered.shown_again(&field.id))
            .map_or_else(|| fields::known(intent, &field.id), str::to_owned);
        field.error = faults
            .iter()
            .find(|(id, _)| *id == field.id)
            .map(|(_, message)| *message);
        if field.id == "cvv" && field.error.is_some() {
            // The error already says where the digits are.
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
        reference: shown_reference(intent),
        lines: order::lines(intent),
        sections,
        countries: COUNTRIES,
        has_errors: alert.is_some(),
        alert,
    };
    respond(status, &shell, &template)
}

/// The reference, unless the merchant hides it: it is how a customer knows what they pay for.
fn shown_reference(intent: &Intent) -> Option<&str> {
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

/// The bank's page in the middle of a payment.
pub(super) fn challenge(intent: &Intent, card: &Card) -> Response {
    let shell = Shell::of(intent);
    let total = intent.total_amount;
    let template = ChallengePage {
        shell: &shell,
        id: &intent.id,
        total,
        card: named(card),
    };
    respond(StatusCode::OK, &shell, &template)
}

/// `Mastercard ending 1005`
fn named(card: &Card) -> String {
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

/// What a customer sees who paid, where the merchant has no page for it.
pub(super) fn success(intent: &Intent) -> Response {
    let shell = Shell::of(intent);
    let template = SuccessPage {
        shell: &shell,
        total: intent.total_amount,
        reference: shown_reference(intent),
        card: intent
            .transaction
            .as_ref()
            .map(|transaction| named(&transaction.card)),
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
    /// Whether all is well: a tick in place of an exclamation mark.
    good: bool,
    /// Target and label.
    link: Option<(String, &'a str)>,
}

/// A page that says one thing, with at most one way to go on.
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
            good: false,
            link,
        },
    )
}

/// What a customer sees who opens the link of a payment that was made.
pub(super) fn settled(intent: &Intent, heading: &str) -> Response {
    let shell = Shell::of(intent);
    let text = match intent.status {
        Status::Authorized | Status::Captured => format!(
            "{} was paid to {} on {}. There is nothing more to pay. You can close this page.",
            intent.total_amount,
            shell.merchant,
            paid_at(intent),
        ),
        _ => "The money goes back to the card that paid. There is nothing more to pay. You can close this page."
            .to_owned(),
    };
    let page = NoticePage {
        shell: &shell,
        heading,
        text: &text,
        good: true,
        link: None,
    };
    respond(StatusCode::OK, &shell, &page)
}

fn paid_at(intent: &Intent) -> String {
    intent
        .authorized_at
        .unwrap_or(intent.updated_at)
        .for_people()
}

fn respond(status: StatusCode, shell: &Shell, template: &impl Template) -> Response {
    let html = match template.render() {
        Ok(html) => Html(html),
        Err(error) => {
            tracing::error!(%error, "a page cannot be rendered");
            return StatusCode::INTERNAL_SERVER_ERROR.into_response();
        }
    };
    let policy = format!(
        "default-src 'none'; style-src 'nonce-{nonce}'; script-src 'nonce-{nonce}'; img-src data:; \
         form-action 'self' {leads_to}; base-uri 'none'; frame-ancestors 'none'",
        nonce = shell.nonce,
        leads_to = shell.leads_to.join(" "),
    );
    let mut response = (status, html).into_response();
    let headers = response.headers_mut();
    // Origins are ASCII, so the policy always is a header; were it not, nothing at all is allowed.
    let policy =
        HeaderValue::from_str(&policy).unwrap_or(HeaderValue::from_static("default-src 'none'"));
    headers.insert(header::CONTENT_SECURITY_POLICY, policy);
    for (name, value) in [
        (header::CACHE_CONTROL, "no-store"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::X_FRAME_OPTIONS, "DENY"),
        // Whoever has the link can pay by it and see what for: other sites need not learn it.
        (header::REFERRER_POLICY, "no-referrer"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}

/// The origin of a URL as a policy names it; only the scheme where there is no host, as in an app's
/// own links.
fn origin(url: &str) -> Option<String> {
    let url = reqwest::Url::parse(url).ok()?;
    match url.origin() {
        origin if origin.is_tuple() => Some(origin.ascii_serialization()),
        _ => Some(format!("{}:", url.scheme())),
    }
}
