//! The forms that do something with a link. Each works without scripts: it is sent, and leads on to a page that says what became
//! of it.
//!
//! The form contains the idempotency key of its request from the beginning. So a double click, a reload and the back button
//! repeat the same request, and the person sees the outcome of the first one.

use askama::Template;
use axum::{
    extract::{Path, State},
    http::StatusCode,
    response::Response,
};
use serde_json::Value;
use time::OffsetDateTime;
use uuid::Uuid;

use super::{
    amount::show,
    api_client::{Answer, slug},
    deed::{Deed, Requested},
    form::{Field, Form, explain, fill},
    link::find,
    page::{
        Layout, Part, Stop, Trouble, forbidden, not_found, out_of_order, page, redirect, status_of,
        trouble,
    },
    person::Person,
    session::Submission,
    state::Console,
    words::{card, state},
    work::Work,
};
use crate::{
    api::Problem,
    payment_link::{Fault, Money, PaymentLink},
    store::{
        self,
        console_approvals::NewApproval,
        console_audit::{self, NewEntry},
    },
};

/// A form for a link.
#[derive(Template)]
#[template(path = "console/action.html")]
struct ActionPage {
    layout: Layout,
    /// Where the form is sent to.
    to: String,
    back: String,
    name: &'static str,
    meaning: &'static str,
    reference: String,
    id: String,
    sentence: String,
    fields: Vec<Field>,
    /// What is entered, to be looked at once more.
    review: Option<Review>,
    trouble: Option<Trouble>,
    form_token: String,
    key: String,
    /// What the button does: shows what was entered once more, or sends it.
    step: &'static str,
    button: String,
    is_dangerous: bool,
    /// Whether a second person must approve it.
    needs_approval: bool,
}

/// What was entered.
struct Review {
    amount: String,
    card: Option<String>,
}

/// What a form is shown with.
struct Shown {
    status: StatusCode,
    fields: Vec<Field>,
    trouble: Option<Trouble>,
    key: String,
    /// What is entered, if it is to be looked at once more.
    requested: Option<Requested>,
}

/// The key of a new request.
pub(super) fn new_key() -> String {
    format!("console-{}", Uuid::now_v7())
}

/// The key in a form. A person may send anything; the API checks the rest.
pub(super) fn key_of(form: &Form) -> String {
    let key = form.text("key");
    if key.starts_with("console-") {
        key.to_owned()
    } else {
        new_key()
    }
}

fn needs_approval(console: &Console, deed: Deed, amount: Option<Money>) -> bool {
    let is_limited = matches!(
        deed,
        Deed::Refund | Deed::Capture | Deed::Reverse | Deed::Amount
    );
    let limit = console.approval_limit.filter(|_| is_limited);
    limit.is_some_and(|limit| amount.is_none_or(|amount| amount.value > limit))
}

fn show_form(
    console: &Console,
    person: &Person,
    deed: Deed,
    link: &PaymentLink,
    shown: Shown,
) -> Response {
    let amount = shown
        .requested
        .as_ref()
        .and_then(|requested| requested.amount);
    let is_review = shown.requested.is_some() && deed.is_reviewed();
    let needs_approval = shown.requested.is_some() && needs_approval(console, deed, amount);
    let is_last_step = is_review || !deed.is_reviewed();
    let button = match (is_last_step, needs_approval) {
        (false, _) => "Continue".to_owned(),
        (true, true) => "Request the approval".to_owned(),
        (true, false) => deed.button(amount),
    };
    let page_of = ActionPage {
        layout: Layout::new(console, person, Part::Links, deed.name()),
        to: format!("/links/{}/{}", link.id, deed.slug()),
        back: format!("/links/{}", link.id),
        name: deed.name(),
        meaning: deed.meaning(),
        reference: link.terms.reference.clone(),
        id: link.id.to_string(),
        sentence: state(link, OffsetDateTime::now_utc()),
        review: is_review.then(|| Review {
            amount: amount.map(show).unwrap_or_default(),
            card: card(link),
        }),
        fields: shown.fields,
        trouble: shown.trouble,
        form_token: person.token.form_token(),
        key: shown.key,
        step: if is_last_step { "do" } else { "review" },
        button,
        is_dangerous: deed.is_dangerous() && is_last_step,
        needs_approval,
    };
    page(shown.status, &page_of)
}

/// The deed in a path, if there is one and the person may do it.
fn permitted(console: &Console, person: &Person, slug: &str) -> Result<Deed, Stop> {
    let deed = Deed::named(slug).ok_or_else(|| not_found(console, person))?;
    if person.may(deed.scope()) {
        Ok(deed)
    } else {
        Err(forbidden(console, person, deed.scope()))
    }
}

pub(super) async fn show_action(
    State(console): State<Console>,
    person: Person,
    Path((id, slug)): Path<(String, String)>,
) -> Result<Response, Stop> {
    let deed = permitted(&console, &person, &slug)?;
    let link = find(&console, &person, &id).await?;
    let fields = deed.fields(&link);
    let nothing = Form::parse(b"");
    let shown = Shown {
        status: StatusCode::OK,
        // Without fields there is nothing to enter, so the button says what it does.
        requested: fields
            .is_empty()
            .then(|| deed.read(&nothing, &link).ok())
            .flatten(),
        fields,
        trouble: None,
        key: new_key(),
    };
    Ok(show_form(&console, &person, deed, &link, shown))
}

pub(super) async fn submit_action(
    State(console): State<Console>,
    Path((id, slug)): Path<(String, String)>,
    Submission { person, form }: Submission,
) -> Result<Response, Stop> {
    let deed = permitted(&console, &person, &slug)?;
    let link = find(&console, &person, &id).await?;
    let mut fields = deed.fields(&link);
    fill(&mut fields, &form);
    let key = key_of(&form);
    let requested = match deed.read(&form, &link) {
        Ok(requested) => requested,
        Err(faults) => {
            let shown = wrong(fields, faults, key, &person);
            return Ok(show_form(&console, &person, deed, &link, shown));
        }
    };
    if form.text("step") != "do" {
        let is_review = form.text("step") == "review";
        let shown = Shown {
            status: StatusCode::OK,
            fields,
            trouble: None,
            key,
            requested: is_review.then_some(requested),
        };
        return Ok(show_form(&console, &person, deed, &link, shown));
    }
    if needs_approval(&console, deed, requested.amount) {
        return ask_for_approval(&console, &person, deed, &link, &key, requested).await;
    }
    let work = Work {
        what: deed.slug().to_owned(),
        account: Some(link.account.clone()),
        link_id: Some(link.id),
        detail: requested.amount.map(show),
        path: format!("/v1/payment-links/{}/{}", link.id, deed.api_name()),
        key: key.clone(),
        body: requested.body,
    };
    match work.run(&console, &person, person.clone()).await? {
        Ok(answer) => Ok(redirect(&outcome_of(deed, &link, &answer))),
        Err(problem) => {
            let shown = failed(fields, &problem, key);
            Ok(show_form(&console, &person, deed, &link, shown))
        }
    }
}

/// A form with values that are wrong.
fn wrong(mut fields: Vec<Field>, faults: Vec<Fault>, key: String, person: &Person) -> Shown {
    let rest = explain(&mut fields, faults, Deed::field_of);
    let trouble = (!rest.is_empty()).then(|| Trouble {
        errors: rest,
        ..Trouble::new(
            "Not sent",
            "Something is wrong with it.",
            &person.request_id,
        )
    });
    Shown {
        status: StatusCode::UNPROCESSABLE_ENTITY,
        fields,
        trouble,
        key,
        requested: None,
    }
}

/// A form whose request has failed.
fn failed(mut fields: Vec<Field>, problem: &Problem, key: String) -> Shown {
    let rest = explain(&mut fields, problem.errors.clone(), Deed::field_of);
    let trouble = Trouble {
        errors: rest,
        ..Trouble::of(problem)
    };
    Shown {
        status: status_of(problem),
        fields,
        trouble: Some(trouble),
        key: if is_over(problem) { new_key() } else { key },
        requested: None,
    }
}

/// Whether the request has ended without having done anything, so that another one needs a key of its own. In all other cases the
/// same key must be sent again: the request may have taken effect.
pub(super) fn is_over(problem: &Problem) -> bool {
    matches!(
        slug(problem),
        "rejected-by-dojo" | "not-done" | "not-created" | "idempotency-key-reused" | "erased"
    )
}

/// The page that says what became of it.
fn outcome_of(deed: Deed, link: &PaymentLink, answer: &Answer) -> String {
    let (id, json) = (link.id, answer.json());
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    match deed {
        Deed::Send => format!("/links/{id}?message={}", text(&json["id"])),
        Deed::Renew => format!("/links/{}?created=yes", text(&json["id"])),
        _ => format!("/links/{id}?operation={}", text(&json["operation"]["id"])),
    }
}

/// Has the operation wait for a second person.
async fn ask_for_approval(
    console: &Console,
    person: &Person,
    deed: Deed,
    link: &PaymentLink,
    key: &str,
    requested: Requested,
) -> Result<Response, Stop> {
    let (Some(kind), Some(amount)) = (deed.operation(), requested.amount) else {
        return Err(not_found(console, person));
    };
    let mut body = requested.body;
    if link.erased_at.is_some() {
        // Nothing would erase the reason if nobody approved the operation.
        body.as_mut()
            .and_then(Value::as_object_mut)
            .and_then(|body| body.remove("refundReason"));
    }
    let pool = &console.state.pool;
    let new = NewApproval {
        id: Uuid::now_v7(),
        link_id: link.id,
        account: &link.account,
        kind: kind.as_str(),
        amount,
        body: body.as_ref(),
        idempotency_key: key,
        requested_by: person.who.client_id,
        expires_in: console.approval_expiry,
    };
    let detail = show(amount);
    let saved = async {
        let entry = NewEntry {
            client: Some((person.who.client_id, &person.who.client)),
            what: deed.slug(),
            account: Some(&link.account),
            link_id: Some(link.id),
            detail: Some(&detail),
            outcome: "approval requested",
            request_id: &person.request_id,
        };
        console_audit::record(pool, &entry).await?;
        store::console_approvals::request(pool, &new).await
    };
    let saved = saved.await.map_err(out_of_order(console, person))?;
    let Some(id) = saved else {
        let used = Trouble::new(
            "Already sent",
            "This form was sent before with other values. Open it again to send something else.",
            &person.request_id,
        );
        return Ok(trouble(console, Some(person), StatusCode::CONFLICT, used));
    };
    Ok(redirect(&format!("/approvals/{id}")))
}
