//! The pages themselves, and the headers that keep them to themselves.

use askama::Template;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{Html, IntoResponse, Response};

use super::countries::COUNTRIES;
use super::form::{Asked, Entered, Fault};
use crate::ids;
use crate::intents::{Card, Intent};
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

struct Line {
    name: String,
    notes: Vec<String>,
    amount: String,
    /// Not an item, but something that comes on top.
    extra: bool,
}

/// The box above the form that says what went wrong.
pub(super) struct Alert {
    pub(super) title: &'static str,
    pub(super) text: Option<&'static str>,
    /// Field id and message.
    pub(super) links: Vec<Fault>,
}

struct Section {
    title: &'static str,
    note: Option<&'static str>,
    fields: Vec<Field>,
}

struct Field {
    id: String,
    label: &'static str,
    autocomplete: String,
    kind: &'static str,
    inputmode: &'static str,
    maxlength: u16,
    placeholder: Option<&'static str>,
    hint: Option<&'static str>,
    required: bool,
    half: bool,
    capitalize: bool,
    value: String,
    error: Option<&'static str>,
}

impl Field {
    fn text(id: impl Into<String>, label: &'static str, autocomplete: impl Into<String>) -> Self {
        Self {
            id: id.into(),
            label,
            autocomplete: autocomplete.into(),
            kind: "text",
            inputmode: "text",
            maxlength: 100,
            placeholder: None,
            hint: None,
            required: true,
            half: false,
            capitalize: true,
            value: String::new(),
            error: None,
        }
    }

    fn digits(self, maxlength: u16) -> Self {
        Self {
            inputmode: "numeric",
            maxlength,
            capitalize: false,
            ..self
        }
    }

    fn half(self) -> Self {
        Self { half: true, ..self }
    }

    fn optional(self) -> Self {
        Self {
            required: false,
            ..self
        }
    }

    fn is_country(&self) -> bool {
        self.id.ends_with("-country")
    }

    /// What assistive technology reads along with the label.
    fn described_by(&self) -> Option<String> {
        let hint = self.hint.map(|_| format!("{}-hint", self.id));
        let error = self.error.map(|_| format!("{}-error", self.id));
        let both: Vec<String> = error.into_iter().chain(hint).collect();
        (!both.is_empty()).then(|| both.join(" "))
    }
}

/// The page to pay on. With `entered`, it shows again what was typed, but never the card.
pub(super) fn form(
    status: StatusCode,
    intent: &Intent,
    entered: Option<&Entered>,
    alert: Option<Alert>,
) -> Response {
    let asked = Asked::by(&intent.config);
    let faults = alert.as_ref().map_or(&[][..], |alert| &alert.links);
    let mut sections = sections(asked);
    for field in sections.iter_mut().flat_map(|section| &mut section.fields) {
        let sensitive = matches!(field.id.as_str(), "card-number" | "cvv" | "expiry");
        field.value = match entered {
            _ if sensitive => String::new(),
            Some(entered) => entered.get(&field.id).to_owned(),
            None => known(intent, &field.id),
        };
        field.error = faults
            .iter()
            .find(|(id, _)| *id == field.id)
            .map(|(_, message)| *message);
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
        lines: lines(intent),
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

fn sections(asked: Asked) -> Vec<Section> {
    let mut sections = Vec::new();
    if asked.email {
        let email = Field {
            kind: "email",
            inputmode: "email",
            maxlength: 254,
            capitalize: false,
            hint: Some("Your receipt goes here."),
            ..Field::text("email", "Email address", "email")
        };
        sections.push(Section {
            title: "Contact",
            note: None,
            fields: vec![email],
        });
    }
    if asked.shipping {
        let mut fields = vec![Field::text("shipping-name", "Full name", "shipping name")];
        fields.extend(address_fields("shipping"));
        let notes = Field::text("shipping-notes", "Delivery notes", "off").optional();
        fields.push(Field {
            maxlength: 1024,
            ..notes
        });
        sections.push(Section {
            title: "Delivery address",
            note: None,
            fields,
        });
    }
    if asked.billing {
        let fields = address_fields("billing");
        sections.push(Section {
            title: "Billing address",
            note: None,
            fields,
        });
    }
    sections.push(Section {
        title: "Card details",
        note: Some("Visa, Mastercard, Maestro, Amex, Discover, Diners Club"),
        fields: vec![
            Field::text("card-number", "Card number", "cc-number").digits(23),
            Field {
                placeholder: Some("MM/YY"),
                ..Field::text("expiry", "Expiry date", "cc-exp")
                    .digits(9)
                    .half()
            },
            Field {
                hint: Some("3 digits on the back of the card, 4 on the front of Amex."),
                ..Field::text("cvv", "CVV", "cc-csc").digits(4).half()
            },
            Field::text("name", "Name on card", "cc-name"),
        ],
    });
    sections
}

fn address_fields(whose: &str) -> Vec<Field> {
    let field = |part: &str, label, autocomplete: &str| {
        Field::text(
            format!("{whose}-{part}"),
            label,
            format!("{whose} {autocomplete}"),
        )
    };
    vec![
        field("country", "Country", "country"),
        field("address1", "Address line 1", "address-line1"),
        field("address2", "Address line 2", "address-line2").optional(),
        field("city", "Town or city", "address-level2").half(),
        Field {
            maxlength: 50,
            ..field("postcode", "Postcode", "postal-code").half()
        },
    ]
}

/// What the intent already says for a field.
fn known(intent: &Intent, field: &str) -> String {
    let shipping = intent.shipping_details.as_ref();
    if let Some((whose, part)) = field.split_once('-')
        && part != "name"
        && part != "notes"
    {
        let address = match whose {
            "billing" => intent.billing_address.as_ref(),
            _ => shipping.and_then(|shipping| shipping.address.as_ref()),
        };
        let Some(address) = address else {
            return String::new();
        };
        let text = match part {
            "address1" => &address.address1,
            "address2" => &address.address2,
            "city" => &address.city,
            "postcode" => &address.postcode,
            _ => return address.country_code.clone(),
        };
        return text.clone().unwrap_or_default();
    }
    let text = match field {
        "email" => intent
            .customer
            .as_ref()
            .and_then(|customer| customer.email_address.as_ref()),
        "shipping-name" => shipping.and_then(|shipping| shipping.name.as_ref()),
        "shipping-notes" => shipping.and_then(|shipping| shipping.delivery_notes.as_ref()),
        _ => None,
    };
    text.cloned().unwrap_or_default()
}

fn lines(intent: &Intent) -> Vec<Line> {
    let mut lines = Vec::new();
    for item in &intent.item_lines {
        let name = item.name.as_deref().unwrap_or("Item");
        let name = match item.quantity {
            Some(quantity) if quantity != 1 => format!("{quantity} × {name}"),
            _ => name.to_owned(),
        };
        let modifiers = item
            .modifiers
            .as_ref()
            .and_then(|modifiers| modifiers.as_array());
        let notes = modifiers
            .into_iter()
            .flatten()
            .filter_map(modifier)
            .collect();
        let amount = item
            .amount_total
            .map(|amount| amount.to_string())
            .unwrap_or_default();
        lines.push(Line {
            name,
            notes,
            amount,
            extra: false,
        });
    }
    for tax in &intent.tax_lines {
        lines.push(Line {
            name: tax.caption.clone().unwrap_or_else(|| "Tax".to_owned()),
            notes: tax.sub_caption.iter().cloned().collect(),
            amount: tax.amount_total.to_string(),
            extra: true,
        });
    }
    for (name, amount) in [
        ("Tip", intent.tips_amount),
        ("Service charge", intent.service_charge_amount),
        ("Cashback", intent.cashback_amount),
    ] {
        if let Some(amount) = amount.filter(|amount| amount.value != 0) {
            let (name, amount) = (name.to_owned(), amount.to_string());
            lines.push(Line {
                name,
                notes: Vec::new(),
                amount,
                extra: true,
            });
        }
    }
    lines
}

/// `2 × Extra cheese, £1.00`
fn modifier(modifier: &serde_json::Value) -> Option<String> {
    let name = modifier["name"].as_str()?;
    let amount: Money = serde_json::from_value(modifier["amountPerModifier"].clone()).ok()?;
    let quantity = match modifier["quantity"].as_i64() {
        Some(1) | None => String::new(),
        Some(quantity) => format!("{quantity} × "),
    };
    Some(if amount.value == 0 {
        format!("{quantity}{name}")
    } else {
        format!("{quantity}{name}, {amount}")
    })
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
        date: intent
            .authorized_at
            .unwrap_or(intent.updated_at)
            .for_people(),
    };
    respond(StatusCode::OK, &shell, &template)
}

#[derive(Template)]
#[template(path = "notice.html")]
struct NoticePage<'a> {
    shell: &'a Shell,
    heading: &'a str,
    text: &'a str,
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
            link,
        },
    )
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
        "default-src 'none'; style-src 'nonce-{}'; img-src data:; form-action 'self' {}; \
         base-uri 'none'; frame-ancestors 'none'",
        shell.nonce,
        shell.leads_to.join(" "),
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
