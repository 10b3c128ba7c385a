//! The form for a new link.

use askama::Template;
use axum::{extract::State, http::StatusCode, response::Response};
use serde_json::{Value, json};

use super::{
    actions::{is_over, key_of, new_key},
    amount::{FORM, parse, show},
    deed::end_of_day,
    form::{Entry, Field, Form, explain, fill},
    page::{Layout, Part, Stop, Trouble, forbidden, page, redirect, status_of},
    person::Person,
    session::Submission,
    state::Console,
    work::Work,
};
use crate::{
    api_key::Scope,
    payment_link::{Currency, Fault, Money},
};

#[derive(Template)]
#[template(path = "console/create.html")]
struct CreatePage {
    layout: Layout,
    fields: Vec<Field>,
    trouble: Option<Trouble>,
    form_token: String,
    key: String,
}

/// The accounts that the person may use.
fn accounts(console: &Console, person: &Person) -> Vec<(String, String)> {
    let accounts = console.state.accounts.iter();
    accounts
        .map(|account| account.name.clone())
        .filter(|name| person.may_see(name))
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
                    "When somebody captures it; otherwise it is captured by itself",
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
                .hint("A text of yours")
                .limit(1000),
        );
    }
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
    if faults.is_empty() {
        Ok((body, amount))
    } else {
        Err(faults)
    }
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
        _ => return None,
    })
}

fn show_form(
    console: &Console,
    person: &Person,
    status: StatusCode,
    fields: Vec<Field>,
    trouble: Option<Trouble>,
    key: String,
) -> Response {
    let page_of = CreatePage {
        layout: Layout::new(console, person, Part::Create, "New link"),
        fields,
        trouble,
        form_token: person.token.form_token(),
        key,
    };
    page(status, &page_of)
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
) -> Result<Response, Stop> {
    permitted(&console, &person)?;
    let fields = fields(&console, &person);
    Ok(show_form(
        &console,
        &person,
        StatusCode::OK,
        fields,
        None,
        new_key(),
    ))
}

pub(super) async fn submit_create(
    State(console): State<Console>,
    Submission { person, form }: Submission,
) -> Result<Response, Stop> {
    permitted(&console, &person)?;
    let mut fields = fields(&console, &person);
    fill(&mut fields, &form);
    let key = key_of(&form);
    let (body, amount) = match read(&form) {
        Ok(read) => read,
        Err(faults) => {
            let rest = explain(&mut fields, faults, field_of);
            let trouble = (!rest.is_empty()).then(|| Trouble {
                errors: rest,
                ..Trouble::new(
                    "Not sent",
                    "Something is wrong with it.",
                    &person.request_id,
                )
            });
            let status = StatusCode::UNPROCESSABLE_ENTITY;
            return Ok(show_form(&console, &person, status, fields, trouble, key));
        }
    };
    let work = Work {
        what: "create".to_owned(),
        account: Some(form.text("account").to_owned()),
        link_id: None,
        detail: Some(show(amount)),
        path: "/v1/payment-links".to_owned(),
        key: key.clone(),
        body: Some(body),
    };
    match work.run(&console, &person, person.clone()).await? {
        Ok(answer) => {
            let id = answer.json()["id"].as_str().unwrap_or_default().to_owned();
            Ok(redirect(&format!("/links/{id}?created=yes")))
        }
        Err(problem) => {
            let rest = explain(&mut fields, problem.errors.clone(), field_of);
            let trouble = Trouble {
                errors: rest,
                ..Trouble::of(&problem)
            };
            let status = status_of(&problem);
            let key = if is_over(&problem) { new_key() } else { key };
            Ok(show_form(
                &console,
                &person,
                status,
                fields,
                Some(trouble),
                key,
            ))
        }
    }
}
