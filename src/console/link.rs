//! A link: its state in words, what can be done with it, who was told about it, and its whole story.

use askama::Template;
use axum::{
    extract::{OriginalUri, Path, Query, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;
use time::OffsetDateTime;

use super::{
    amount::show,
    api_client::{List, get, get_raw, post, slug, with_query},
    deed::{Deed, left_to_capture, may_go_out},
    page::{LIVE, Layout, Part, Region, Stop, When, not_found, out_of_order, page, redirect, stop},
    person::Person,
    session::Submission,
    state::Console,
    words::{self, Tone, in_british, operation_name},
};
use crate::{
    api_key::Scope,
    payment_link::{
        MessageId, Money, OperationId, PaymentLink, PaymentLinkId, Status,
        operation::Operation,
        timeline::{Cause, Entry},
    },
    store::{
        self,
        console_approvals::{Approval, ApprovalStatus},
        console_audit::{self, NewEntry},
    },
};

/// How many pages of the timeline are read, of 100 entries each.
const TIMELINE_PAGES: usize = 5;

/// What a link to this page says has just happened.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Happened {
    operation: String,
    message: String,
    created: Option<String>,
    /// When Dojo was read, in seconds since 1970.
    refreshed: String,
    /// The form that was sent again, and did nothing new.
    again: String,
}

/// A sentence about something, and how much attention it needs.
struct Notice {
    text: String,
    tone: &'static str,
    /// The path of a new form, for whoever wants to do something once more.
    anew: Option<String>,
}

impl From<(String, Tone)> for Notice {
    fn from((text, tone): (String, Tone)) -> Self {
        Self {
            text,
            tone: tone.class(),
            anew: None,
        }
    }
}

/// A name and a value.
struct Fact {
    name: String,
    value: String,
}

impl Fact {
    fn new(name: impl Into<String>, value: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            value: value.into(),
        }
    }
}

/// A timeline entry.
struct Event {
    at: When,
    text: String,
    tone: &'static str,
    cause: String,
    request_id: Option<String>,
}

/// An operation on the payment.
struct OperationRow {
    id: String,
    at: When,
    text: String,
    tone: &'static str,
    by: String,
    reason: String,
}

/// A message to the customer, as far as the page shows it.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Message {
    purpose: String,
    status: String,
    failure: Option<String>,
    to: Option<String>,
    created_by: String,
    #[serde(with = "crate::payment_link::timestamp")]
    created_at: OffsetDateTime,
}

struct MessageRow {
    at: When,
    text: String,
    by: String,
}

struct ApprovalRow {
    id: String,
    text: String,
}

/// A callback endpoint, as far as the page shows it.
#[derive(Deserialize)]
struct Endpoint {
    id: String,
    url: String,
}

#[derive(Deserialize)]
struct Endpoints {
    data: Vec<Endpoint>,
}

/// What an endpoint got about the link, as far as the page shows it.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Delivery {
    event_id: String,
    #[serde(rename = "type")]
    kind: String,
    status: String,
    attempts: u16,
    #[serde(default, with = "crate::payment_link::optional_timestamp")]
    next_attempt_at: Option<OffsetDateTime>,
    last_attempt: Option<LastAttempt>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct LastAttempt {
    #[serde(with = "crate::payment_link::timestamp")]
    at: OffsetDateTime,
    outcome: String,
    response_status: Option<u16>,
}

struct DeliveryRow {
    kind: String,
    id: String,
    text: String,
    tone: &'static str,
    /// When it was last attempted.
    at: Option<When>,
}

/// What callback endpoints got about the link.
#[derive(Default)]
struct Callbacks {
    /// Those that got anything.
    receivers: Vec<Receiver>,
    /// Whether some could not be read.
    is_incomplete: bool,
}

/// What one endpoint got.
struct Receiver {
    url: String,
    rows: Vec<DeliveryRow>,
    has_more: bool,
}

/// A way to go on, as a link to its form.
struct Way {
    path: String,
    name: &'static str,
}

/// The part of the page that changes as things happen.
#[derive(Template)]
#[template(path = "console/link_state.html")]
struct StatePart {
    id: String,
    notices: Vec<Notice>,
    sentence: String,
    word: &'static str,
    tone: &'static str,
    /// What Dojo reports, if it isn't what was requested.
    mismatch: Option<String>,
    replaced_by: Option<String>,
    ways: Vec<Way>,
    /// Where the customer pays, while that is possible.
    address: Option<String>,
    facts: Vec<Fact>,
    operations: Vec<OperationRow>,
    approvals: Vec<ApprovalRow>,
    messages: Vec<MessageRow>,
    events: Vec<Event>,
    /// Whether there are more entries than these.
    has_more_events: bool,
    /// `None`: the person may not see them.
    callbacks: Option<Callbacks>,
}

#[derive(Template)]
#[template(path = "console/link.html")]
struct LinkPage {
    layout: Layout,
    id: String,
    reference: String,
    form_token: String,
    region: Region,
    /// Where the page brings itself up to date.
    here: String,
    /// The position in the feed up to which the page is up to date.
    seen: i64,
    /// What the link was requested with.
    requested: Vec<Fact>,
    metadata: Vec<Fact>,
    item_lines: Vec<Fact>,
    replaces: Option<String>,
    /// All terms, as JSON.
    terms: String,
}

/// The link in a path, if there is one and the person may see it.
pub(super) async fn find(
    console: &Console,
    person: &Person,
    id: &str,
) -> Result<PaymentLink, Stop> {
    let id: PaymentLinkId = id.parse().map_err(|_| not_found(console, person))?;
    get(console, person, &format!("/v1/payment-links/{id}"))
        .await
        .map_err(stop(console, person))
}

/// All items of one of the link's lists, up to a limit, and whether there are more.
async fn all<T: DeserializeOwned>(
    console: &Console,
    person: &Person,
    path: &str,
) -> Result<(Vec<T>, bool), Stop> {
    let mut items = Vec::new();
    let mut after = String::new();
    for _ in 0..TIMELINE_PAGES {
        let path = with_query(path, [("limit", "100"), ("after", &after)]);
        let page: List<T> = get(console, person, &path)
            .await
            .map_err(stop(console, person))?;
        items.extend(page.data);
        if !page.has_more {
            return Ok((items, false));
        }
        after = page.after;
    }
    Ok((items, true))
}

fn facts(link: &PaymentLink) -> Vec<Fact> {
    let mut facts = vec![Fact::new("Amount", show(link.amount))];
    let mut add = |name: &str, money: Option<Money>| {
        facts.extend(money.map(|money| Fact::new(name, show(money))));
    };
    add("Tip", link.tips_amount.filter(|money| money.value > 0));
    add(
        "Total",
        link.total_amount.filter(|total| *total != link.amount),
    );
    let positive = |money: Money| Some(money).filter(|money| money.value > 0);
    add("Captured", positive(link.captured_amount));
    if link.status == Status::Authorized {
        let left = left_to_capture(link, link.amount, |capture| capture.amount.value);
        add("Left to capture", positive(left));
    }
    add("Refunded", positive(link.refunded_amount));
    add("Left to refund", positive(link.refundable_amount));
    for capture in &link.captures {
        let status = capture.status.as_deref().unwrap_or("unknown");
        let text = format!("{} ({status})", show(capture.amount));
        facts.push(Fact::new("Part captured", text));
    }
    let time = |at: OffsetDateTime| When(at).text();
    facts.push(Fact::new("Created", time(link.created_at)));
    if let Some(at) = link.expire_at {
        facts.push(Fact::new("Expires", time(at)));
    }
    if let Some(at) = link.synced_at {
        facts.push(Fact::new("Last read from Dojo", time(at)));
    }
    if let Some(at) = link.erased_at {
        facts.push(Fact::new("Personal data erased", time(at)));
    }
    if let Some(payment) = &link.payment {
        for (name, value) in [
            ("Card", &payment.card_number),
            ("Funding", &payment.card_funding_type),
            ("Authorization code", &payment.auth_code),
            ("Transaction at Dojo", &payment.transaction_id),
        ] {
            facts.extend(value.as_ref().map(|value| Fact::new(name, value)));
        }
    }
    for attempt in &link.attempts {
        facts.push(Fact::new("Attempt to pay", words::attempt(attempt)));
    }
    facts.push(Fact::new("Status at Dojo", link.status.as_str()));
    if let Some(id) = &link.payment_intent_id {
        facts.push(Fact::new("Intent at Dojo", id));
    }
    facts.push(Fact::new("Account", &link.account));
    facts.push(Fact::new("Requested by", &link.created_by));
    facts
}

/// What the link was requested with, as far as people ask for it.
fn requested(link: &PaymentLink) -> Vec<Fact> {
    let terms = &link.terms;
    let customer = terms.customer.as_ref();
    let shipping = terms.shipping_details.as_ref();
    let texts = [
        ("Description", terms.description.clone()),
        (
            "Customer’s email address",
            customer.and_then(|customer| customer.email_address.clone()),
        ),
        (
            "Customer’s phone number",
            customer.and_then(|customer| customer.phone_number.clone()),
        ),
        (
            "Shipped to",
            shipping.and_then(|shipping| shipping.name.clone()),
        ),
        (
            "Delivery notes",
            shipping.and_then(|shipping| shipping.delivery_notes.clone()),
        ),
        ("Sent to", link.send.as_ref().map(|send| send.email.clone())),
    ];
    let reminders = link.reminders.iter().flatten();
    let reminders = reminders.map(|reminder| ("Reminder", Some(words::reminder(reminder))));
    texts
        .into_iter()
        .chain(reminders)
        .filter_map(|(name, text)| Some(Fact::new(name, text?)))
        .collect()
}

/// The entries of a map in the terms.
fn entries(value: &Value) -> Vec<Fact> {
    let entries = value.as_object().into_iter().flatten();
    entries
        .map(|(name, value)| Fact::new(name, value.as_str().unwrap_or_default()))
        .collect()
}

fn item_lines(link: &PaymentLink) -> Vec<Fact> {
    let lines = link.terms.item_lines.iter().flatten();
    lines
        .map(|line| {
            let quantity = line.quantity.unwrap_or(1);
            let name = line.name.as_deref().unwrap_or("Item");
            Fact::new(format!("{quantity} × {name}"), show(line.amount_total))
        })
        .collect()
}

fn event(entry: &Entry) -> Event {
    let (text, tone) = words::event(entry);
    let request_id = match &entry.cause {
        Cause::Request { request_id, .. } => Some(request_id.clone()),
        _ => None,
    };
    Event {
        at: When(entry.occurred_at),
        text,
        tone: tone.class(),
        cause: words::cause(&entry.cause),
        request_id: request_id.filter(|id| !id.is_empty()),
    }
}

fn operation_row(operation: &Operation) -> OperationRow {
    let (text, tone) = words::operation(operation);
    OperationRow {
        id: operation.id.to_string(),
        at: When(operation.created_at),
        text,
        tone: tone.class(),
        by: operation.created_by.clone(),
        reason: words::reason(&operation.action)
            .unwrap_or_default()
            .to_owned(),
    }
}

fn message_row(message: Message) -> MessageRow {
    let to = message.to.as_deref().unwrap_or("an erased address");
    let why = match message.purpose.as_str() {
        "reminder" => "Reminder",
        _ => "Email",
    };
    let outcome = match message.status.as_str() {
        "Sent" => "sent".to_owned(),
        "Pending" => "about to be sent".to_owned(),
        "Unknown" => "it is not known whether it was sent".to_owned(),
        _ => format!(
            "not sent: {}",
            in_british(message.failure.as_deref().unwrap_or("canceled"))
        ),
    };
    MessageRow {
        at: When(message.created_at),
        text: format!("{why} to {to}: {outcome}"),
        by: message.created_by,
    }
}

fn approval_row(approval: &Approval) -> ApprovalRow {
    let state = match approval.status {
        ApprovalStatus::Pending if approval.is_expired => "expired without an approval",
        ApprovalStatus::Pending => "waits for a second person",
        ApprovalStatus::Approved if approval.outcome.is_none() => {
            "approved; its outcome isn’t known yet"
        }
        ApprovalStatus::Approved => "approved",
        ApprovalStatus::Rejected => "rejected",
        ApprovalStatus::Erased => "erased",
    };
    let name = operation_name(&approval.kind, Some(approval.amount));
    ApprovalRow {
        id: approval.id.to_string(),
        text: format!("{name}, requested by {}: {state}", approval.requested_by.1),
    }
}

fn delivery_row(delivery: Delivery) -> DeliveryRow {
    let last = delivery.last_attempt.as_ref();
    let response = last.map_or_else(String::new, |last| {
        let outcome = last.outcome.replace('_', " ");
        match last.response_status {
            Some(status) => format!("{outcome} (response {status})"),
            None => outcome,
        }
    });
    let (text, tone) = match delivery.status.as_str() {
        "Delivered" => (
            format!("delivered on attempt {}", delivery.attempts),
            Tone::Good,
        ),
        "Failed" => (
            format!("given up after {} attempts: {response}", delivery.attempts),
            Tone::Bad,
        ),
        _ if last.is_none() => ("not attempted yet".to_owned(), Tone::Waiting),
        _ => {
            let next = delivery.next_attempt_at.map(|at| When(at).text());
            let next = next.map_or_else(String::new, |at| format!(", not before {at}"));
            (
                format!("{response}; it is attempted again{next}"),
                Tone::Waiting,
            )
        }
    };
    DeliveryRow {
        at: last.map(|last| When(last.at)),
        kind: delivery.kind,
        id: delivery.event_id,
        text,
        tone: tone.class(),
    }
}

/// What callback endpoints got about the link. `None` if the person may not see callbacks. The page is useful without, so a
/// problem only leaves it incomplete.
async fn callbacks(console: &Console, person: &Person, id: PaymentLinkId) -> Option<Callbacks> {
    if !person.may(Scope::CallbacksManage) {
        return None;
    }
    let mut callbacks = Callbacks::default();
    let endpoints: Result<Endpoints, _> = get(console, person, "/v1/callback-endpoints").await;
    let Ok(endpoints) = endpoints else {
        callbacks.is_incomplete = true;
        return Some(callbacks);
    };
    let id = id.to_string();
    for endpoint in endpoints.data {
        let path = with_query(
            &format!("/v1/callback-endpoints/{}/deliveries", endpoint.id),
            [("paymentLinkId", id.as_str()), ("limit", "100")],
        );
        let list: Result<List<Delivery>, _> = get(console, person, &path).await;
        match list {
            Ok(list) if list.data.is_empty() => {}
            Ok(list) => callbacks.receivers.push(Receiver {
                url: endpoint.url,
                rows: list.data.into_iter().map(delivery_row).collect(),
                has_more: list.has_more,
            }),
            // It was deleted meanwhile.
            Err(problem) if slug(&problem) == "not-found" => {}
            Err(_) => callbacks.is_incomplete = true,
        }
    }
    Some(callbacks)
}

/// The part of the page that changes as things happen.
async fn state_part(
    console: &Console,
    person: &Person,
    link: &PaymentLink,
    happened: &Happened,
    now: OffsetDateTime,
) -> Result<Region, Stop> {
    let base = format!("/v1/payment-links/{}", link.id);
    let (entries, has_more_events) =
        all::<Entry>(console, person, &format!("{base}/events")).await?;
    let (operations, _) = all::<Operation>(console, person, &format!("{base}/operations")).await?;
    let (messages, _) = all::<Message>(console, person, &format!("{base}/messages")).await?;
    let approvals = store::console_approvals::of_link(&console.state.pool, link.id, 20)
        .await
        .map_err(out_of_order(console, person))?;
    let (word, tone) = words::state_word(link, now);
    let ways = Deed::possible(link, console.state.limits.window, now)
        .into_iter()
        .filter(|deed| person.may(deed.scope()));
    Ok(Region::of(&StatePart {
        id: link.id.to_string(),
        notices: notices(console, person, link, happened).await,
        sentence: words::state(link, now),
        word,
        tone: tone.class(),
        mismatch: words::mismatch(link),
        replaced_by: link.replaced_by.map(|id| id.to_string()),
        ways: ways
            .map(|deed| Way {
                path: format!("/links/{}/{}", link.id, deed.slug()),
                name: deed.name(),
            })
            .collect(),
        address: link
            .customer_url()
            .filter(|_| may_go_out(link, now))
            .map(str::to_owned),
        facts: facts(link),
        operations: operations.iter().map(operation_row).collect(),
        approvals: approvals.iter().map(approval_row).collect(),
        messages: messages.into_iter().map(message_row).collect(),
        events: entries.iter().map(event).collect(),
        has_more_events,
        callbacks: callbacks(console, person, link.id).await,
    }))
}

/// What has just happened, as it is now: a reload tells the truth as well.
async fn notices(
    console: &Console,
    person: &Person,
    link: &PaymentLink,
    happened: &Happened,
) -> Vec<Notice> {
    let mut notices = Vec::new();
    if !happened.again.is_empty() {
        let text = "This form was sent before. Nothing new was done this time.".to_owned();
        let anew = match happened.again.as_str() {
            "new" => Some("/links/new".to_owned()),
            slug => Deed::named(slug).map(|deed| format!("/links/{}/{}", link.id, deed.slug())),
        };
        notices.push(Notice {
            anew,
            ..Notice::from((text, Tone::Waiting))
        });
    }
    if happened.created.is_some() {
        notices.push(Notice::from((
            "The link is created.".to_owned(),
            Tone::Good,
        )));
    }
    // The page may stay open, and updates itself, long after.
    let age = |at: i64| {
        let now = OffsetDateTime::now_utc().unix_timestamp();
        now.saturating_sub(at)
    };
    if happened
        .refreshed
        .parse()
        .is_ok_and(|at| (0..60).contains(&age(at)))
    {
        let text = "Read from Dojo just now.".to_owned();
        notices.push(Notice::from((text, Tone::Neutral)));
    }
    if let Ok(id) = happened.operation.parse::<OperationId>() {
        let path = format!("/v1/operations/{id}");
        let operation: Result<Operation, _> = get(console, person, &path).await;
        let operation = operation
            .ok()
            .filter(|operation| operation.payment_link_id == link.id);
        notices.extend(operation.map(|operation| Notice::from(words::operation(&operation))));
    }
    if let Ok(id) = happened.message.parse::<MessageId>() {
        let path = format!("/v1/payment-links/{}/messages/{id}", link.id);
        let message: Result<Message, _> = get(console, person, &path).await;
        notices.extend(message.ok().map(|message| {
            let text = format!("{}.", message_row(message).text);
            Notice::from((text, Tone::Neutral))
        }));
    }
    notices
}

pub(super) async fn show_link(
    State(console): State<Console>,
    person: Person,
    Path(id): Path<String>,
    Query(happened): Query<Happened>,
    OriginalUri(uri): OriginalUri,
    headers: HeaderMap,
) -> Result<Response, Stop> {
    let (now, seen) = (OffsetDateTime::now_utc(), console.state.feed_position());
    let link = find(&console, &person, &id).await?;
    let region = state_part(&console, &person, &link, &happened, now).await?;
    if headers.contains_key(LIVE) {
        return Ok(region.response(headers.get(header::IF_NONE_MATCH), seen));
    }
    let terms = serde_json::to_value(&link.terms).unwrap_or_default();
    let reference = link.terms.reference.clone();
    let page_of = LinkPage {
        layout: Layout::new(&console, &person, Part::Links, &*reference),
        id: link.id.to_string(),
        form_token: person.token.form_token(),
        requested: requested(&link),
        metadata: entries(&terms["metadata"]),
        item_lines: item_lines(&link),
        replaces: link.replaces.map(|id| id.to_string()),
        terms: serde_json::to_string_pretty(&terms).unwrap_or_default(),
        reference,
        region,
        // With what has just happened: its outcome is part of what changes.
        here: uri
            .path_and_query()
            .map_or_else(String::new, ToString::to_string),
        seen,
    };
    Ok(page(StatusCode::OK, &page_of))
}

pub(super) async fn qr_code(
    State(console): State<Console>,
    person: Person,
    Path(id): Path<String>,
) -> Result<Response, Stop> {
    let id: PaymentLinkId = id.parse().map_err(|_| not_found(&console, &person))?;
    let path = format!("/v1/payment-links/{id}/qr.svg?size=240");
    let image = get_raw(&console, &person, &path)
        .await
        .map_err(stop(&console, &person))?;
    let kind = [(header::CONTENT_TYPE, "image/svg+xml")];
    Ok((kind, image.body).into_response())
}

/// Reads the payment from Dojo now.
pub(super) async fn refresh(
    State(console): State<Console>,
    Path(id): Path<String>,
    Submission { person, .. }: Submission,
) -> Result<Response, Stop> {
    let link = find(&console, &person, &id).await?;
    let path = format!("/v1/payment-links/{}/refresh", link.id);
    let record = async |outcome: &str| {
        let entry = NewEntry {
            client: Some((person.who.client_id, &person.who.client)),
            what: "refresh",
            account: Some(&link.account),
            link_id: Some(link.id),
            detail: None,
            outcome,
            request_id: &person.request_id,
        };
        console_audit::record(&console.state.pool, &entry)
            .await
            .map_err(out_of_order(&console, &person))
    };
    record("requested").await?;
    let answer = post(&console, &person, &path, None, None).await;
    record(match &answer {
        Ok(_) => "done",
        Err(problem) => slug(problem),
    })
    .await?;
    match answer {
        Ok(_) => {
            let now = OffsetDateTime::now_utc().unix_timestamp();
            Ok(redirect(&format!("/links/{}?refreshed={now}", link.id)))
        }
        Err(problem) => Err(stop(&console, &person)(problem)),
    }
}
