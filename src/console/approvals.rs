//! Operations that wait for a second person, who approves or rejects them.

use std::sync::Arc;

use askama::Template;
use axum::{
    extract::{Path, Query, State},
    http::StatusCode,
    response::Response,
};
use serde::Deserialize;
use time::OffsetDateTime;
use uuid::Uuid;

use super::{
    amount::{field, show},
    api_client::{get, slug},
    deed::{Deed, reversible},
    link,
    page::{
        Layout, Part, Stop, Trouble, When, forbidden, not_found, out_of_order, page, redirect,
        status_of, trouble,
    },
    person::Person,
    session::Submission,
    state::Console,
    words::{self, operation_name},
    work::Work,
};
use crate::{
    api::Problem,
    api_key::Scope,
    payment_link::{Currency, Money, OperationId, operation::Operation},
    store::{
        self,
        api_keys::Identified,
        console_approvals::{self, Approval, ApprovalStatus},
        console_audit::NewEntry,
    },
};

/// What separates the names of the two people, in the name that the timeline shows.
pub(super) const APPROVED_BY: &str = ", approved by ";

struct Row {
    id: String,
    name: String,
    by: String,
    at: When,
    state: String,
    is_open: bool,
}

#[derive(Template)]
#[template(path = "console/approvals.html")]
struct ApprovalsPage {
    layout: Layout,
    /// The amount above which an operation needs an approval.
    limit: Option<String>,
    waiting: Vec<Row>,
    decided: Vec<Row>,
}

#[derive(Template)]
#[template(path = "console/approval.html")]
struct ApprovalPage {
    layout: Layout,
    id: String,
    name: String,
    state: String,
    /// The path of a new form, if the one that requested the approval was sent again.
    anew: Option<String>,
    link: String,
    reference: String,
    /// What has become of the link.
    sentence: String,
    account: String,
    by: String,
    at: When,
    expires: When,
    decided: Option<(String, When)>,
    reason: String,
    operation: Option<String>,
    form_token: String,
    /// The text of the button that carries it out, if the person may.
    approve: Option<&'static str>,
    /// The text of the button that rejects it, if the person may.
    reject: Option<&'static str>,
}

fn state(approval: &Approval) -> String {
    match (approval.status, &approval.outcome) {
        (ApprovalStatus::Pending, _) if approval.is_expired => {
            "Expired, or whoever requested it may no longer do so".to_owned()
        }
        (ApprovalStatus::Pending, _) => "Waits for a second person".to_owned(),
        (ApprovalStatus::Approved, None) => "Approved; its outcome isn’t known yet".to_owned(),
        (ApprovalStatus::Approved, Some(outcome)) if outcome == "done" => {
            "Approved and done".to_owned()
        }
        (ApprovalStatus::Approved, Some(outcome)) if outcome == "changed" => {
            "Approved, but not done: the payment was changed after it was requested".to_owned()
        }
        (ApprovalStatus::Approved, Some(outcome)) if outcome == "outcome-unconfirmed" => {
            "Approved, but nobody knows yet whether it was done".to_owned()
        }
        (ApprovalStatus::Approved, Some(outcome)) if outcome == "not-done" => {
            "Approved, but not done".to_owned()
        }
        (ApprovalStatus::Approved, Some(outcome)) => {
            format!("Approved, but not done: {}", words::outcome(outcome))
        }
        (ApprovalStatus::Rejected, _) => "Rejected".to_owned(),
        (ApprovalStatus::Erased, _) => "Erased".to_owned(),
    }
}

fn row(approval: &Approval) -> Row {
    Row {
        id: approval.id.to_string(),
        name: operation_name(&approval.kind, Some(approval.amount)),
        by: approval.requested_by.1.clone(),
        at: When(approval.requested_at),
        state: state(approval),
        is_open: approval.status == ApprovalStatus::Pending && !approval.is_expired,
    }
}

pub(super) async fn list(State(console): State<Console>, person: Person) -> Result<Response, Stop> {
    let pool = &console.state.pool;
    let found = async {
        let waiting = console_approvals::waiting(pool, person.accounts(), 200).await?;
        let newest = console_approvals::newest(pool, person.accounts(), 50).await?;
        Ok::<_, store::Error>((waiting, newest))
    };
    let (waiting, newest) = found.await.map_err(out_of_order(&console, &person))?;
    let waits = |approval: &Approval| waiting.iter().any(|other| other.id == approval.id);
    let page_of = ApprovalsPage {
        layout: Layout::new(&console, &person, Part::Approvals, "Approvals"),
        limit: console.approval_limit.map(|value| {
            // Without a symbol: it applies to both currencies.
            field(Money {
                value,
                currency_code: Currency::Gbp,
            })
        }),
        decided: newest
            .iter()
            .filter(|approval| !waits(approval))
            .map(row)
            .collect(),
        waiting: waiting.iter().map(row).collect(),
    };
    Ok(page(StatusCode::OK, &page_of))
}

/// The approval in a path, if the person may see its link.
async fn find(console: &Console, person: &Person, id: &str) -> Result<Approval, Stop> {
    let id: Uuid = id.parse().map_err(|_| not_found(console, person))?;
    console_approvals::find(&console.state.pool, id)
        .await
        .map_err(out_of_order(console, person))?
        .filter(|approval| person.may_see(&approval.account))
        .ok_or_else(|| not_found(console, person))
}

/// What a link to this page says has just happened.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Happened {
    /// The form was sent again, and did nothing new.
    again: Option<String>,
}

/// What an approval would carry out.
fn deed_of(approval: &Approval) -> Option<Deed> {
    Deed::of_kind(&approval.kind).filter(|deed| deed.is_limited())
}

pub(super) async fn show_approval(
    State(console): State<Console>,
    person: Person,
    Path(id): Path<String>,
    Query(happened): Query<Happened>,
) -> Result<Response, Stop> {
    let approval = find(&console, &person, &id).await?;
    let link = link::find(&console, &person, &approval.link_id.to_string()).await?;
    let again = happened.again.and_then(|_| deed_of(&approval));
    let may_manage = person.may(Scope::PaymentsManage);
    let is_open = approval.status == ApprovalStatus::Pending && !approval.is_expired;
    let is_own = approval.requested_by.0 == person.who.client_id;
    let name = operation_name(&approval.kind, Some(approval.amount));
    let reason = approval
        .body
        .as_ref()
        .and_then(|body| body["refundReason"].as_str())
        .unwrap_or_default();
    let operation = match approval.operation_id {
        Some(id) => describe(&console, &person, id).await,
        None => None,
    };
    let page_of = ApprovalPage {
        layout: Layout::new(&console, &person, Part::Approvals, &*name),
        id: approval.id.to_string(),
        state: state(&approval),
        anew: again.map(|deed| format!("/links/{}/{}", approval.link_id, deed.slug())),
        link: link.id.to_string(),
        reference: link.terms.reference.clone(),
        sentence: words::state(&link, OffsetDateTime::now_utc()),
        account: approval.account.clone(),
        by: approval.requested_by.1.clone(),
        at: When(approval.requested_at),
        expires: When(approval.expires_at),
        decided: approval
            .decided_by
            .clone()
            .zip(approval.decided_at.map(When)),
        reason: reason.to_owned(),
        operation,
        form_token: person.token.form_token(),
        approve: match approval.status {
            _ if is_own || !may_manage => None,
            ApprovalStatus::Pending if is_open => Some("Approve and carry out"),
            ApprovalStatus::Approved if approval.outcome.is_none() => Some("Send it again"),
            _ => None,
        },
        reject: (is_open && may_manage).then_some(if is_own { "Withdraw" } else { "Reject" }),
        name,
    };
    Ok(page(StatusCode::OK, &page_of))
}

async fn describe(console: &Console, person: &Person, id: OperationId) -> Option<String> {
    let operation: Result<Operation, _> =
        get(console, person, &format!("/v1/operations/{id}")).await;
    operation
        .ok()
        .map(|operation| words::operation(&operation).0)
}

/// What was decided about, for the audit list.
fn subject(approval: &Approval) -> String {
    let name = operation_name(&approval.kind, Some(approval.amount));
    format!("{name}, requested by {}", approval.requested_by.1)
}

/// The entry of a decision in the audit list.
fn entry<'a>(
    person: &'a Person,
    approval: &'a Approval,
    subject: &'a str,
    outcome: &'a str,
) -> NewEntry<'a> {
    NewEntry {
        client: Some((person.who.client_id, &person.who.client)),
        what: "approval",
        account: Some(&approval.account),
        link_id: Some(approval.link_id),
        detail: Some(subject),
        outcome,
        request_id: &person.request_id,
    }
}

fn permitted(console: &Console, person: &Person) -> Result<(), Stop> {
    if person.may(Scope::PaymentsManage) {
        Ok(())
    } else {
        Err(forbidden(console, person, Scope::PaymentsManage))
    }
}

pub(super) async fn reject(
    State(console): State<Console>,
    Path(id): Path<String>,
    Submission { person, .. }: Submission,
) -> Result<Response, Stop> {
    permitted(&console, &person)?;
    let approval = find(&console, &person, &id).await?;
    let (pool, subject) = (&console.state.pool, subject(&approval));
    let rejected = entry(&person, &approval, &subject, "rejected");
    console_approvals::reject(pool, approval.id, person.who.client_id, &rejected)
        .await
        .map_err(out_of_order(&console, &person))?;
    Ok(redirect(&format!("/approvals/{}", approval.id)))
}

/// Approves an operation and carries it out. However often and by however many people this is requested, it is done once: one of
/// them approves it, and its idempotency key is always the same.
pub(super) async fn approve(
    State(console): State<Console>,
    Path(id): Path<String>,
    Submission { person, .. }: Submission,
) -> Result<Response, Stop> {
    permitted(&console, &person)?;
    let approval = find(&console, &person, &id).await?;
    let here = format!("/approvals/{}", approval.id);
    if approval.requested_by.0 == person.who.client_id {
        let own = Trouble {
            more: Some((here, "Open the approval".to_owned())),
            ..Trouble::new(
                "A second person must approve it",
                "You requested this operation yourself.",
                &person.request_id,
            )
        };
        let status = StatusCode::FORBIDDEN;
        return Ok(trouble(&console, Some(&person), status, own));
    }
    let decided = async {
        let (pool, subject) = (&console.state.pool, subject(&approval));
        let approved = entry(&person, &approval, &subject, "approved");
        console_approvals::approve(pool, approval.id, person.who.client_id, &approved).await?;
        console_approvals::find(pool, approval.id).await
    };
    let approval = decided
        .await
        .map_err(out_of_order(&console, &person))?
        .ok_or_else(|| not_found(&console, &person))?;
    // Somebody has rejected it, it has expired, or it has been carried out.
    if approval.status != ApprovalStatus::Approved || approval.outcome.is_some() {
        return Ok(redirect(&here));
    }
    carry_out(&console, &person, approval).await
}

/// Whether an approved reversal would undo another amount by now. Its request has none: it undoes the whole payment, whatever that
/// is. Nobody has approved the new amount.
async fn has_changed(
    console: &Console,
    person: &Person,
    approval: &Approval,
) -> Result<bool, Stop> {
    if deed_of(approval) != Some(Deed::Reverse) {
        return Ok(false);
    }
    let link = link::find(console, person, &approval.link_id.to_string()).await?;
    if reversible(&link) == approval.amount {
        return Ok(false);
    }
    // A reversal that was sent before may be what has changed it.
    let (pool, requester) = (&console.state.pool, approval.requested_by.0);
    let was_sent = store::idempotency_keys::is_used(pool, requester, &approval.idempotency_key)
        .await
        .map_err(out_of_order(console, person))?;
    Ok(!was_sent)
}

async fn carry_out(
    console: &Console,
    person: &Person,
    approval: Approval,
) -> Result<Response, Stop> {
    let here = format!("/approvals/{}", approval.id);
    let Some(deed) = deed_of(&approval) else {
        return Err(not_found(console, person));
    };
    if deed.has_body() && approval.body.is_none() {
        // Its request was erased meanwhile.
        return Ok(redirect(&here));
    }
    if has_changed(console, person, &approval).await? {
        let subject = subject(&approval);
        let changed = entry(person, &approval, &subject, "changed");
        console_approvals::give_up(&console.state.pool, approval.id, "changed", &changed)
            .await
            .map_err(out_of_order(console, person))?;
        return Ok(redirect(&here));
    }
    let (requester_id, requester) = &approval.requested_by;
    // The idempotency key belongs to the client of the person who requested it. The timeline names both.
    let caller = Person {
        who: Arc::new(Identified {
            client_id: *requester_id,
            client: format!("{requester}{APPROVED_BY}{}", person.who.client),
            scopes: person.who.scopes.clone(),
            accounts: person.who.accounts.clone(),
            ends_at: person.who.ends_at,
        }),
        ..person.clone()
    };
    let work = Work {
        what: format!("approved {}", approval.kind),
        account: Some(approval.account.clone()),
        link_id: Some(approval.link_id),
        detail: Some(show(approval.amount)),
        path: format!("/v1/payment-links/{}/{}", approval.link_id, deed.api_name()),
        key: approval.idempotency_key.clone(),
        body: approval.body.clone(),
    };
    let answer = work.run(console, person, caller).await?;
    let (outcome, operation_id) = match &answer {
        Ok(answer) => {
            let id = answer.json()["operation"]["id"].as_str().map(str::parse);
            (Some("done"), id.and_then(Result::ok))
        }
        Err(problem) => (
            is_final(problem).then(|| slug(problem)),
            problem.operation_id,
        ),
    };
    if let Some(outcome) = outcome {
        let pool = &console.state.pool;
        console_approvals::finish(pool, approval.id, outcome, operation_id)
            .await
            .map_err(out_of_order(console, person))?;
    }
    match answer {
        Ok(_) => Ok(redirect(&here)),
        Err(problem) => {
            let status = status_of(&problem);
            let failed = Trouble {
                more: Some((here, "Open the approval".to_owned())),
                ..Trouble::of(&problem)
            };
            Ok(trouble(console, Some(person), status, failed))
        }
    }
}

/// Whether sending the same request again would lead to the same problem.
fn is_final(problem: &Problem) -> bool {
    matches!(
        slug(problem),
        "rejected-by-dojo"
            | "not-done"
            | "not-possible"
            | "invalid-request"
            | "idempotency-key-reused"
            | "erased"
            | "not-found"
            | "outcome-unconfirmed"
    )
}
