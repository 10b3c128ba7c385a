//! The list of what people did at the console.

use askama::Template;
use axum::{
    extract::{Query, State},
    http::StatusCode,
    response::Response,
};
use serde::Deserialize;

use super::{
    page::{Layout, Part, Stop, When, out_of_order, page},
    person::Person,
    state::Console,
    words,
};
use crate::store::console_audit::{self, Entry};

/// How many entries a page has.
const PAGE: usize = 50;

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Asked {
    before: String,
}

struct Row {
    at: When,
    who: String,
    what: String,
    link: Option<String>,
    detail: String,
    outcome: String,
    request_id: String,
}

impl From<Entry> for Row {
    fn from(entry: Entry) -> Self {
        Self {
            at: When(entry.occurred_at),
            who: entry.client.unwrap_or_else(|| "nobody".to_owned()),
            what: words::audited(&entry.what).into_owned(),
            link: entry.link_id.map(|id| id.to_string()),
            detail: entry.detail.unwrap_or_default(),
            outcome: words::outcome(&entry.outcome),
            request_id: entry.request_id,
        }
    }
}

#[derive(Template)]
#[template(path = "console/audit.html")]
struct AuditPage {
    layout: Layout,
    rows: Vec<Row>,
    next: Option<i64>,
    is_later: bool,
}

pub(super) async fn list(
    State(console): State<Console>,
    person: Person,
    Query(asked): Query<Asked>,
) -> Result<Response, Stop> {
    let before = asked.before.parse().ok();
    let limit = i64::try_from(PAGE + 1).unwrap_or(i64::MAX);
    let mut entries = console_audit::list(&console.state.pool, person.accounts(), before, limit)
        .await
        .map_err(out_of_order(&console, &person))?;
    let has_more = entries.len() > PAGE;
    entries.truncate(PAGE);
    let next = entries.last().map(|entry| entry.id);
    let page_of = AuditPage {
        layout: Layout::new(&console, &person, Part::Audit, "Audit"),
        next: next.filter(|_| has_more),
        is_later: before.is_some(),
        rows: entries.into_iter().map(Row::from).collect(),
    };
    Ok(page(StatusCode::OK, &page_of))
}
