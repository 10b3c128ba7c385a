//! The form for a new link.

use askama::Template;
use axum::{
    extract::{RawQuery, State},
    http::StatusCode,
    response::Response,
};
use serde_json::{Value, json};

use super::{
    actions::{is_over, is_spent, is_used},
    amount::{FORM, parse, show},
    deed::end_of_day,
    form::{Entry, Field, Form, FormKey, explain, fill},
    page::{Layout, Part, Stop, Trouble, forbidden, open_accounts, page, redirect, status_of},
    person::Person,
    session::Submission,
    state::Console,
    work::Work,
};
use crate::{
    api_key::Scope,
    payment_link::{Currency, Fault, Money},
};

/// Where the form is.
const PATH: &str = "/links/new";

/// When the customer is reminded: after the request, and before the link expires.
const REMIND_AFTER: [(&str, &str); 6] = [
    ("", "No reminder"),
    ("P1D", "After 1 day"),
    ("P3D", "After 3 days"),
    ("P7D", "After 1 week"),
    ("P14D", "After 2 weeks"),
    ("P21D", "After 3 weeks"),
];
const REMIND_BEFORE: [(&str, &str); 5] = [
    ("", "No reminder"),
    ("P1D", "1 day before the last day"),
    ("P2D", "2 days before the last day"),
    ("P3D", "3 days before the last day"),
    ("P7D", "1 week before the last day"),
];

#[derive(Template)]
#[template(path = "console/create.html")]
struct CreatePage {
    layout: Layout,
    /// Where the form is sent to.
    to: String,
    /// Where a new form is.
    anew: &'static str,
    fields: Vec<Field>,
    trouble: Option<Trouble>,
    form_token: String,
    key: FormKey,
    /// Whether it was sent before.
    is_sent: bool,
    /// Whether it can't be sent any more.
    is_closed: bool,
}

/// The accounts that the person may use.
fn accounts(console: &Console, person: &Person) -> Vec<(String, String)> {
    open_accounts(console, person)
        .into_iter()
        .map(|name| (name.clone(), name))
        .collect()
}

fn fields(console: &Console, person: &Person) -> Vec<Field> {
    let choices = |choices: &[(&str, &str)]| {
        Entry::Choice(
            choices
                .iter()
                .map(|(value, name)| ((*value).to_owned(), (*name).to_owned()))
                .collect(),
        )
    };
    let accounts = accounts(console, person);
    let first = accounts
        .first()
        .map(|(name, _)| name.clone())
        .unwrap_or_default();
    let mut fields = vec![
        Field::new("account", "Account", Entry::Choice(accounts))
            .required()
            .value(first),
        Field::new("amount", "Amount", Entry::Amount)
            .required()
            .hint("Such as 24.50")
            .limit(30),
        Field::new(
            "currency",
            "Currency",
            choices(&[("GBP", "Pounds (GBP)"), ("EUR", "Euros (EUR)")]),
        )
        .required()
        .value("GBP"),
        Field::new("reference", "Reference", Entry::Text)
            .required()
            .hint("Your own, such as an order’s number")
            .limit(60),
        Field::new("description", "Description", Entry::Lines)
            .hint("The customer sees it on the checkout page")
            .limit(4096),
        Field::new("email", "Customer’s email address", Entry::Email).limit(254),
        Field::new("expires", "Last day to pay", Entry::Date)
            .hint("30 days from now, unless you say otherwise; until midnight UTC"),
        Field::new(
            "collect",
            "How the money is collected",
            choices(&[
                ("auto", "At once, when the customer pays"),
                (
                    "release",
                    "When somebody captures it; otherwise it is released",
                ),
                (
                    "capture",
                    "When somebody captures it; otherwise it is captured automatically",
                ),
            ]),
        )
        .required()
        .value("auto"),
    ];
    if person.may(Scope::LinksSend) {
        fields.push(Field::new(
            "send",
            "Send the link to the customer by email",
            Entry::Check,
        ));
        fields.push(
            Field::new("note", "Note in the email", Entry::Lines)
                .hint("Your own text")
                .limit(1000),
        );
    }
    let hint = if person.may(Scope::LinksSend) {
        "If nobody has paid by then. By email if the link is sent by email; otherwise, only an event for your other systems"
    } else {
        "If nobody has paid by then: an event for your other systems, and no email"
    };
    fields.extend([
        Field::new("remind-after", "Reminder", choices(&REMIND_AFTER)).hint(hint),
        Field::new(
            "remind-before",
            "Reminder before the last day",
            choices(&REMIND_BEFORE),
        )
        .hint("If nobody has paid by then"),
    ]);
    fields
}

/// The request that the form asks for, with its amount, or what is wrong with it.
fn read(form: &Form) -> Result<(Value, Money), Vec<Fault>> {
    let mut faults = Vec::new();
    let currency_code = form.text("currency").parse().unwrap_or(Currency::Gbp);
    let value = parse(form.text("amount"), currency_code);
    if value.is_none() {
        faults.push(Fault::new("/amount/value", FORM));
    }
    let amount = Money {
        value: value.unwrap_or_default(),
        currency_code,
    };
    let mut body = json!({
        "account": form.text("account"),
        "amount": amount,
        "reference": form.text("reference"),
    });
    if form.has("description") {
        body["description"] = json!(form.text("description"));
    }
    if form.has("email") {
        body["customer"] = json!({"emailAddress": form.text("email")});
    }
    if form.has("expires") {
        match end_of_day(form.text("expires")) {
            Some(at) => body["expireAt"] = json!(at),
            None => faults.push(Fault::new("/expireAt", "must be a date")),
        }
    }
    let action = match form.text("collect") {
        "release" => Some("Release"),
        "capture" => Some("Capture"),
        _ => None,
    };
    if let Some(action) = action {
        body["captureMode"] = json!("Manual");
        body["autoExpireAction"] = json!(action);
    }
    if form.text("send") == "yes" {
        body["send"] = json!({"email": form.text("email")});
        if form.has("note") {
            body["send"]["note"] = json!(form.text("note"));
        }
        if !form.has("email") {
            let detail = "is required to send the link";
            faults.push(Fault::new("/customer/emailAddress", detail));
        }
    }
    let reminders: Vec<_> = [("remind-after", "after"), ("remind-before", "beforeExpiry")]
        .into_iter()
        .filter(|(field, _)| form.has(field))
        .map(|(field, member)| json!({member: form.text(field)}))
        .collect();
    if !reminders.is_empty() {
        body["reminders"] = json!(reminders);
    }
    if faults.is_empty() {
        Ok((body, amount))
    } else {
        Err(faults)
    }
}

/// What is wrong with the request, in the words of the form, whose reminders are never malformed.
fn in_words(mut faults: Vec<Fault>) -> Vec<Fault> {
    for fault in &mut faults {
        let detail = match field_of(&fault.pointer) {
            Some("remind-after") => "must be before the last day to pay",
            Some("remind-before") => "must be later than now",
            _ => continue,
        };
        detail.clone_into(&mut fault.detail);
    }
    faults
}

fn field_of(pointer: &str) -> Option<&'static str> {
    Some(match pointer {
        "/account" => "account",
        "/amount" | "/amount/value" => "amount",
        "/amount/currencyCode" => "currency",
        "/reference" => "reference",
        "/description" => "description",
        "/customer/emailAddress" | "/send/email" => "email",
        "/expireAt" => "expires",
        "/send" => "send",
        "/send/note" => "note",
        _ if pointer.starts_with("/reminders/") => {
            if pointer.ends_with("/after") {
                "remind-after"
            } else {
                "remind-before"
            }
        }
        _ => return None,
    })
}

/// What a form is shown with.
struct Shown {
    status: StatusCode,
    fields: Vec<Field>,
    trouble: Option<Trouble>,
    key: FormKey,
    is_closed: bool,
}

async fn show_form(console: &Console, person: &Person, shown: Shown) -> Result<Response, Stop> {
    let page_of = CreatePage {
        layout: Layout::new(console, person, Part::Create, "New link"),
        to: shown.key.address(PATH),
        anew: PATH,
        is_sent: shown.trouble.is_none() && is_used(console, person, shown.key).await?,
        is_closed: shown.is_closed,
        fields: shown.fields,
        trouble: shown.trouble,
        form_token: person.token.form_token(),
        key: shown.key,
    };
    Ok(page(shown.status, &page_of))
}

fn permitted(console: &Console, person: &Person) -> Result<(), Stop> {
    if person.may(Scope::LinksWrite) {
        Ok(())
    } else {
        Err(forbidden(console, person, Scope::LinksWrite))
    }
}

pub(super) async fn show_create(
    State(console): State<Console>,
    person: Person,
    RawQuery(query): RawQuery,
) -> Result<Response, Stop> {
    permitted(&console, &person)?;
    let Some(key) = FormKey::in_query(query.as_deref()) else {
        return Ok(redirect(&FormKey::generate().address(PATH)));
    };
    let shown = Shown {
        status: StatusCode::OK,
        fields: fields(&console, &person),
        trouble: None,
        key,
        is_closed: false,
    };
    show_form(&console, &person, shown).await
}

pub(super) async fn submit_create(
    State(console): State<Console>,
    Submission { person, form }: Submission,
) -> Result<Response, Stop> {
    permitted(&console, &person)?;
    // No page of the console sends another key. With a new one, a repetition would be another request.
    let Some(key) = FormKey::of(&form) else {
        return Ok(redirect(PATH));
    };
    let mut fields = fields(&console, &person);
    fill(&mut fields, &form);
    let (body, amount) = match read(&form) {
        Ok(read) => read,
        Err(faults) => {
            let rest = explain(&mut fields, faults, field_of);
            let trouble = (!rest.is_empty()).then(|| Trouble {
                errors: rest,
                ..Trouble::new("Not sent", "The form has these errors:", &person.request_id)
            });
            let shown = Shown {
                status: StatusCode::UNPROCESSABLE_ENTITY,
                fields,
                trouble,
                key,
                is_closed: false,
            };
            return show_form(&console, &person, shown).await;
        }
    };
    let was_sent = is_used(&console, &person, key).await?;
    let work = Work {
        what: "create".to_owned(),
        account: Some(form.text("account").to_owned()),
        link_id: None,
        detail: Some(show(amount)),
        path: "/v1/payment-links".to_owned(),
        key: key.to_string(),
        body: Some(body),
    };
    match work.run(&console, &person, person.clone()).await? {
        Ok(answer) => {
            let id = answer.json()["id"].as_str().unwrap_or_default().to_owned();
            let happened = if was_sent { "again=new" } else { "created=yes" };
            Ok(redirect(&format!("/links/{id}?{happened}")))
        }
        Err(problem) => {
            let spent = is_spent(&problem, &person.request_id);
            let is_closed = spent.is_some();
            let trouble = spent.unwrap_or_else(|| Trouble {
                errors: explain(&mut fields, in_words(problem.errors.clone()), field_of),
                ..Trouble::of(&problem)
            });
            let key = if is_over(&problem) {
                key.successor()
            } else {
                key
            };
            let shown = Shown {
                status: status_of(&problem),
                fields,
                trouble: Some(trouble),
                key,
                is_closed,
            };
            show_form(&console, &person, shown).await
        }
    }
}
