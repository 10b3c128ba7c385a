//! The form that records the outcome of an operation that nothing at Dojo shows.

use askama::Template;
use axum::{
    extract::{Path, State},
    http::StatusCode,
    response::Response,
};
use tracing::error;

use super::{
    api_client::get,
    approvals::APPROVED_BY,
    page::{
        Layout, Part, Stop, Trouble, When, forbidden, not_found, out_of_order, page, redirect,
        stop, trouble,
    },
    person::Person,
    session::Submission,
    state::Console,
    words::operation_name,
};
use crate::{
    api_key::Scope,
    payment_link::{
        OperationId,
        operation::{Operation, OperationStatus},
        timeline::Cause,
    },
    protocol::operation_recovery::{Finding, settle},
    store::console_audit::{self, NewEntry},
    telemetry::causes,
};

#[derive(Template)]
#[template(path = "console/settle.html")]
struct SettlePage {
    layout: Layout,
    id: String,
    name: String,
    link: String,
    by: String,
    at: When,
    form_token: String,
}

/// The operation in a path, if the person may see and settle it.
async fn find(console: &Console, person: &Person, id: &str) -> Result<Operation, Stop> {
    if !person.may(Scope::PaymentsManage) {
        return Err(forbidden(console, person, Scope::PaymentsManage));
    }
    let id: OperationId = id.parse().map_err(|_| not_found(console, person))?;
    get(console, person, &format!("/v1/operations/{id}"))
        .await
        .map_err(stop(console, person))
}

fn is_settled(console: &Console, person: &Person, operation: &Operation) -> Response {
    let settled = Trouble {
        more: Some((
            format!("/links/{}", operation.payment_link_id),
            "Open the link".to_owned(),
        )),
        ..Trouble::new(
            "Nothing to settle",
            "The outcome of this operation is known.",
            &person.request_id,
        )
    };
    trouble(console, Some(person), StatusCode::CONFLICT, settled)
}

/// Where some operations need a second person, nobody records the outcome of their own: a refund that was recorded as not done
/// could be made once more.
fn check_second_person(
    console: &Console,
    person: &Person,
    operation: &Operation,
) -> Result<(), Stop> {
    let requested_by = operation.created_by.strip_prefix(&*person.who.client);
    let is_own = requested_by.is_some_and(|rest| rest.is_empty() || rest.starts_with(APPROVED_BY));
    if console.approval_limit.is_none() || !is_own {
        return Ok(());
    }
    let own = Trouble {
        more: Some((
            format!("/links/{}", operation.payment_link_id),
            "Open the link".to_owned(),
        )),
        ..Trouble::new(
            "A second person must record it",
            "You requested this operation yourself.",
            &person.request_id,
        )
    };
    Err(trouble(console, Some(person), StatusCode::FORBIDDEN, own).into())
}

pub(super) async fn show_settle(
    State(console): State<Console>,
    person: Person,
    Path(id): Path<String>,
) -> Result<Response, Stop> {
    let operation = find(&console, &person, &id).await?;
    check_second_person(&console, &person, &operation)?;
    if operation.status != OperationStatus::Unconfirmed {
        return Ok(is_settled(&console, &person, &operation));
    }
    let kind = operation.action.kind().as_str();
    let page_of = SettlePage {
        layout: Layout::new(&console, &person, Part::Attention, "Record the outcome"),
        id: operation.id.to_string(),
        name: operation_name(kind, operation.action.amount()),
        link: operation.payment_link_id.to_string(),
        by: operation.created_by,
        at: When(operation.created_at),
        form_token: person.token.form_token(),
    };
    Ok(page(StatusCode::OK, &page_of))
}

/// Records what a person found in Dojo's portal, by the rules of the command `operations settle`.
pub(super) async fn submit_settle(
    State(console): State<Console>,
    Path(id): Path<String>,
    Submission { person, form }: Submission,
) -> Result<Response, Stop> {
    let operation = find(&console, &person, &id).await?;
    check_second_person(&console, &person, &operation)?;
    let (finding, outcome) = match form.text("outcome") {
        "done" => (Finding::Performed, "done"),
        "not-done" => (Finding::NotPerformed, "not done"),
        _ => return Ok(redirect(&format!("/operations/{}", operation.id))),
    };
    let detail = format!("{}: {outcome}", operation.id);
    let cause = Cause::Request {
        client: person.who.client.clone(),
        request_id: person.request_id.clone(),
    };
    let entry = |outcome| NewEntry {
        client: Some((person.who.client_id, &person.who.client)),
        what: "settle",
        account: Some(&operation.account),
        link_id: Some(operation.payment_link_id),
        detail: Some(&detail),
        outcome,
        request_id: &person.request_id,
    };
    let pool = &console.state.pool;
    let settled = async {
        console_audit::record(pool, &entry("requested")).await?;
        settle(pool, operation.id, finding, &cause).await
    };
    let settled = settled.await.map_err(out_of_order(&console, &person))?;
    // Somebody else may have settled it meanwhile.
    let result = if settled { "done" } else { "not-possible" };
    if let Err(error) = console_audit::record(pool, &entry(result)).await {
        // The timeline has it in any case.
        error!(error = %causes(&error), "an outcome is missing from the console's audit list");
    }
    if settled {
        let (link, id) = (operation.payment_link_id, operation.id);
        Ok(redirect(&format!("/links/{link}?operation={id}")))
    } else {
        Ok(is_settled(&console, &person, &operation))
    }
}
