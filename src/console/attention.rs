//! What a person must look at, each with what it means and what to do about it.

use std::time::Duration;

use askama::Template;
use axum::{
    extract::{Path, State},
    http::StatusCode,
    response::Response,
};
use serde::Deserialize;
use time::OffsetDateTime;
use url::form_urlencoded::byte_serialize;

use super::{
    api_client::{List, get, with_query},
    approvals::APPROVED_BY,
    book_words::outcome,
    books::{comparison_path, today},
    page::{
        Layout, Part, Stop, Trouble, When, day_text, forbidden, not_found, out_of_order, page,
        redirect, stop, trouble,
    },
    person::Person,
    session::Submission,
    state::Console,
    words::{mismatch, operation_name},
};
use crate::{
    api_key::Scope,
    payment_link::{
        OperationId, PaymentLink,
        daily_reconciliation::ComparedDay,
        operation::{Operation, OperationStatus},
        timeline::Cause,
    },
    protocol::operation_recovery::{Finding, settle},
    store::{
        attention,
        console_audit::{self, NewEntry},
    },
};

/// How many items a section shows at most.
const MOST: i64 = 50;

/// How long something may take before a person should look at it.
const PATIENCE: Duration = Duration::from_mins(10);

/// How long a paid surplus intent is shown. The service can't see that it was refunded.
const SURPLUS: Duration = Duration::from_hours(90 * 24);

/// How many business days back differences from Dojo's list are shown. The service compares these days by itself.
const DIFFERENCES: time::Duration = time::Duration::days(31);

/// Something to look at.
struct Item {
    /// What it is about.
    name: String,
    /// The path of a page about it.
    path: Option<String>,
    text: String,
    /// The path of the form that settles it.
    settle: Option<String>,
}

/// One kind of things to look at.
struct Section {
    id: &'static str,
    title: &'static str,
    /// What it means, and what to do.
    advice: &'static str,
    items: Vec<Item>,
}

impl Section {
    /// Whether there may be more than is shown.
    fn is_full(&self) -> bool {
        i64::try_from(self.items.len()).is_ok_and(|items| items >= MOST)
    }
}

#[derive(Template)]
#[template(path = "console/attention.html")]
struct AttentionPage {
    layout: Layout,
    /// Those with items.
    sections: Vec<Section>,
    /// The titles of those without.
    quiet: Vec<&'static str>,
}

/// Operations with this status.
async fn operations(
    console: &Console,
    person: &Person,
    status: OperationStatus,
) -> Result<Vec<Operation>, Stop> {
    let path = format!("/v1/operations?status={}&limit={MOST}", status.as_str());
    let list: List<Operation> = get(console, person, &path)
        .await
        .map_err(stop(console, person))?;
    Ok(list.data)
}

fn operation_item(operation: &Operation, may_settle: bool) -> Item {
    let kind = operation.action.kind().as_str();
    Item {
        name: operation_name(kind, operation.action.amount()),
        path: Some(format!("/links/{}", operation.payment_link_id)),
        text: format!(
            "requested by {} on {}",
            operation.created_by,
            When(operation.created_at).text()
        ),
        settle: may_settle.then(|| format!("/operations/{}", operation.id)),
    }
}

fn link_item(link: &PaymentLink, text: String) -> Item {
    Item {
        name: link.terms.reference.clone(),
        path: Some(format!("/links/{}", link.id)),
        text,
        settle: None,
    }
}

async fn unconfirmed_operations(console: &Console, person: &Person) -> Result<Section, Stop> {
    let found = operations(console, person, OperationStatus::Unconfirmed).await?;
    let may_settle = person.may(Scope::PaymentsManage);
    Ok(Section {
        id: "unconfirmed",
        title: "Operations with an unconfirmed outcome",
        advice: "Dojo’s response was lost, and nothing at Dojo shows whether the operation was done. Look at the payment in \
                 Dojo’s portal, and record what you find. Don’t request it again until then.",
        items: found
            .iter()
            .map(|operation| operation_item(operation, may_settle))
            .collect(),
    })
}

async fn pending_operations(
    console: &Console,
    person: &Person,
    now: OffsetDateTime,
) -> Result<Section, Stop> {
    let found = operations(console, person, OperationStatus::Pending).await?;
    Ok(Section {
        id: "pending-operations",
        title: "Operations that are taking a long time",
        advice: "The service finds out what became of them, as soon as Dojo responds. If they stay here, see Health: at least one replica \
                 must run background jobs.",
        items: found
            .iter()
            .filter(|operation| now - operation.created_at > PATIENCE)
            .map(|operation| operation_item(operation, false))
            .collect(),
    })
}

async fn mismatches(console: &Console, person: &Person) -> Result<Section, Stop> {
    let links = attention::mismatches(&console.state.pool, person.accounts(), MOST)
        .await
        .map_err(out_of_order(console, person))?;
    Ok(Section {
        id: "mismatches",
        title: "Links with another amount at Dojo",
        advice: "Dojo would charge a different amount from the one that was requested. Don’t send such a link out. Cancel it, or \
                 if it is paid, reverse or refund it. Then find out how it happened.",
        items: links
            .iter()
            .map(|link| link_item(link, mismatch(link).unwrap_or_default()))
            .collect(),
    })
}

async fn paid_surplus(console: &Console, person: &Person) -> Result<Section, Stop> {
    let pool = &console.state.pool;
    let found = attention::paid_surplus(pool, person.accounts(), SURPLUS, MOST)
        .await
        .map_err(out_of_order(console, person))?;
    Ok(Section {
        id: "surplus",
        title: "Second payments for one link",
        advice: "Somebody paid a second payment before it could be cancelled. Refund it in Dojo’s portal: it belongs to no link, \
                 so it can’t be refunded here. It is shown for 90 days.",
        items: found
            .into_iter()
            .map(|surplus| Item {
                name: surplus.reference,
                path: Some(format!("/links/{}", surplus.link_id)),
                text: format!(
                    "intent {} of account {}, found on {}",
                    surplus.payment_intent_id.unwrap_or_default(),
                    surplus.account,
                    When(surplus.found_at).text()
                ),
                settle: None,
            })
            .collect(),
    })
}

async fn pending_links(
    console: &Console,
    person: &Person,
    now: OffsetDateTime,
) -> Result<Section, Stop> {
    let before = (now - PATIENCE).format(&time::format_description::well_known::Rfc3339);
    let parameters = [
        ("status", "Pending"),
        ("createdBefore", &before.unwrap_or_default()),
        ("limit", &MOST.to_string()),
    ];
    let path = with_query("/v1/payment-links", parameters);
    let list: List<PaymentLink> = get(console, person, &path)
        .await
        .map_err(stop(console, person))?;
    let links = list.data.iter();
    Ok(Section {
        id: "pending",
        title: "Links that are not created yet",
        advice: "Dojo’s response was lost, and the service is finding out what happened. If they stay here although Dojo responds, \
                 see Health: a replica must run background jobs.",
        items: links
            .map(|link| {
                let text = format!("requested on {}", When(link.created_at).text());
                link_item(link, text)
            })
            .collect(),
    })
}

async fn unconfirmed_links(console: &Console, person: &Person) -> Result<Section, Stop> {
    let pool = &console.state.pool;
    let links = attention::unconfirmed(pool, person.accounts(), PATIENCE, MOST)
        .await
        .map_err(out_of_order(console, person))?;
    Ok(Section {
        id: "unconfirmed-links",
        title: "Links that Dojo hasn’t confirmed",
        advice: "Something was reported about them, and Dojo’s own response doesn’t agree yet. Don’t rely on their status. Read \
                 them from Dojo now. If Dojo keeps contradicting itself, ask Dojo, quoting the intent’s id.",
        items: links
            .iter()
            .map(|link| {
                let at = When(link.updated_at).text();
                link_item(link, format!("{} since {at}", link.status.as_str()))
            })
            .collect(),
    })
}

/// A callback endpoint, as far as the page shows it.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Endpoint {
    id: String,
    url: String,
    status: String,
    pause_reason: Option<String>,
}

#[derive(Deserialize)]
struct Endpoints {
    data: Vec<Endpoint>,
}

/// A delivery to an endpoint, as far as the page shows it.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Delivery {
    #[serde(rename = "type")]
    kind: String,
    payment_link_id: String,
}

async fn callbacks(console: &Console, person: &Person) -> Result<Section, Stop> {
    let list: Endpoints = get(console, person, "/v1/callback-endpoints")
        .await
        .map_err(stop(console, person))?;
    let mut items = Vec::new();
    for endpoint in list.data {
        if endpoint.status == "Paused" {
            let why = endpoint.pause_reason.as_deref().unwrap_or("unknown");
            items.push(Item {
                name: endpoint.url.clone(),
                path: None,
                text: format!("{} is paused: {why}", endpoint.id),
                settle: None,
            });
        }
        let id: String = byte_serialize(endpoint.id.as_bytes()).collect();
        let path = format!("/v1/callback-endpoints/{id}/deliveries?status=Failed&limit=10");
        // It may have been deleted meanwhile.
        let failed: Result<List<Delivery>, _> = get(console, person, &path).await;
        let failed = failed.map(|list| list.data).unwrap_or_default();
        items.extend(failed.into_iter().map(|delivery| Item {
            path: Some(format!("/links/{}", delivery.payment_link_id)),
            name: delivery.kind,
            text: format!("not accepted by {} ({})", endpoint.url, endpoint.id),
            settle: None,
        }));
    }
    Ok(Section {
        id: "callbacks",
        title: "Callbacks that failed",
        advice: "Another system didn’t accept an event in 10 attempts over about 3 days, or its endpoint is paused. Ask its \
                 owner. Once it is repaired, an operator sends the events again with callback-endpoints replay, or resumes \
                 it with callback-endpoints resume.",
        items,
    })
}

async fn differences(console: &Console, person: &Person) -> Result<Section, Stop> {
    let from = today(console, person).await?.saturating_sub(DIFFERENCES);
    let parameters = [
        ("state", "Differs"),
        ("from", &from.to_string()),
        ("limit", &MOST.to_string()),
    ];
    let path = with_query("/v1/reconciliations", parameters);
    let days: List<ComparedDay> = get(console, person, &path)
        .await
        .map_err(stop(console, person))?;
    let item = |day: ComparedDay| Item {
        name: format!("{}, account {}", day_text(day.business_day), day.account),
        path: Some(comparison_path(&day)),
        text: format!(
            "{}; compared on {}",
            outcome(&day),
            When(day.reconciled_at).text()
        ),
        settle: None,
    };
    Ok(Section {
        id: "differences",
        title: "Differences between the books and Dojo",
        advice: "On these business days, the books and Dojo’s list of transactions don’t agree. Open a day to see each \
                 difference and what to do about it. A day is compared again for a week, because Dojo may list transactions \
                 late. It is shown until a comparison finds no difference, for 31 days at most.",
        items: days.data.into_iter().map(item).collect(),
    })
}

pub(super) async fn show_attention(
    State(console): State<Console>,
    person: Person,
) -> Result<Response, Stop> {
    let now = OffsetDateTime::now_utc();
    let mut sections = vec![
        unconfirmed_operations(&console, &person).await?,
        paid_surplus(&console, &person).await?,
        mismatches(&console, &person).await?,
        unconfirmed_links(&console, &person).await?,
        pending_links(&console, &person, now).await?,
        pending_operations(&console, &person, now).await?,
        differences(&console, &person).await?,
    ];
    if person.may(Scope::CallbacksManage) {
        sections.push(callbacks(&console, &person).await?);
    }
    let (sections, quiet): (Vec<_>, Vec<_>) = sections
        .into_iter()
        .partition(|section| !section.items.is_empty());
    let page_of = AttentionPage {
        layout: Layout::new(&console, &person, Part::Attention, "Needs attention"),
        sections,
        quiet: quiet.iter().map(|section| section.title).collect(),
    };
    Ok(page(StatusCode::OK, &page_of))
}

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
    let detail = operation.id.to_string();
    let cause = Cause::Request {
        client: person.who.client.clone(),
        request_id: person.request_id.clone(),
    };
    let pool = &console.state.pool;
    let settled = async {
        let entry = NewEntry {
            client: Some((person.who.client_id, &person.who.client)),
            what: "settle",
            account: Some(&operation.account),
            link_id: Some(operation.payment_link_id),
            detail: Some(&detail),
            outcome,
            request_id: &person.request_id,
        };
        console_audit::record(pool, &entry).await?;
        settle(pool, operation.id, finding, &cause).await
    };
    let settled = settled.await.map_err(out_of_order(&console, &person))?;
    if settled {
        let (link, id) = (operation.payment_link_id, operation.id);
        Ok(redirect(&format!("/links/{link}?operation={id}")))
    } else {
        Ok(is_settled(&console, &person, &operation))
    }
}
