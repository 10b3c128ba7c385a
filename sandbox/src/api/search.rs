//! Searching payment intents, newest first, in pages.

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::State;
use axum::{Extension, Json};
use serde::Deserialize;
use serde_json::{Value, json};

use super::body::{self, BodySchema};
use crate::account::Account;
use crate::app_state::AppState;
use crate::clock::Timestamp;
use crate::intent_store::{IntentStore, Position};
use crate::intents::Intent;
use crate::problem::{FieldErrors, JsonResult, Problem};

const DEFAULT_LIMIT: usize = 50;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Search {
    statuses: Option<Vec<String>>,
    start_date: Option<String>,
    end_date: Option<String>,
    cursor: Option<Cursor>,
}

#[derive(Debug, Default, Deserialize)]
struct Cursor {
    limit: Option<usize>,
    before: Option<String>,
    after: Option<String>,
}

/// `POST /payment-intents/search`
pub(super) async fn search(
    State(state): State<Arc<AppState>>,
    Extension(account): Extension<Account>,
    bytes: Bytes,
) -> JsonResult {
    let request: Search = body::read_with(BodySchema::Search, &bytes, check)?;
    let lag = *state.search_lag();
    let visible_until = state.clock.now().plus(-lag);
    let filter = Filter {
        account,
        // An empty list means any status.
        statuses: request.statuses.filter(|statuses| !statuses.is_empty()),
        from: request.start_date.as_deref().and_then(Timestamp::parse),
        to: request.end_date.as_deref().and_then(Timestamp::parse),
        visible_until: (!lag.is_zero()).then_some(visible_until),
    };
    let cursor = request.cursor.unwrap_or_default();
    let limit = cursor.limit.unwrap_or(DEFAULT_LIMIT);
    let before = cursor
        .before
        .as_deref()
        .map(|text| position("Cursor.Before", text))
        .transpose()?;
    let after = cursor
        .after
        .as_deref()
        .map(|text| position("Cursor.After", text))
        .transpose()?;
    Ok(Json(state.with_intents(|intents| {
        page(intents, &filter, limit, before, after)
    })))
}

struct Filter {
    account: Account,
    statuses: Option<Vec<String>>,
    from: Option<Timestamp>,
    to: Option<Timestamp>,
    visible_until: Option<Timestamp>,
}

impl Filter {
    fn matches(&self, intent: &Intent) -> bool {
        let intent_status = intent.status.as_str();
        intent.account == self.account
            && self
                .statuses
                .as_ref()
                .is_none_or(|statuses| statuses.iter().any(|status| status == intent_status))
            && self.from.is_none_or(|from| intent.created_at >= from)
            && self.to.is_none_or(|to| intent.created_at <= to)
            && self
                .visible_until
                .is_none_or(|until| intent.created_at <= until)
    }
}

/// One page, with cursors to the pages before and after it if there are any.
fn page(
    intents: &IntentStore,
    filter: &Filter,
    limit: usize,
    before: Option<Position>,
    after: Option<Position>,
) -> Value {
    let matching = |(_, intent): &(Position, &Intent)| filter.matches(intent);
    let found: Vec<(Position, &Intent)> = match (before, after) {
        (Some(before), _) => {
            let mut found: Vec<_> = intents
                .newer_than(before)
                .filter(matching)
                .take(limit)
                .collect();
            found.reverse();
            found
        }
        (None, Some(after)) => intents
            .older_than(after)
            .filter(matching)
            .take(limit)
            .collect(),
        (None, None) => intents.all().rev().filter(matching).take(limit).collect(),
    };
    // An empty page is directly before or after its cursor.
    let newest = found.first().map(|(position, _)| *position);
    let oldest = found.last().map(|(position, _)| *position);
    let newer = newest.or(after.map(|after| after.saturating_sub(1)));
    let older = oldest.or(before.map(|before| before.saturating_add(1)));
    let newer_exist = newer.is_some_and(|p| intents.newer_than(p).any(|entry| matching(&entry)));
    let older_exist = older.is_some_and(|p| intents.older_than(p).any(|entry| matching(&entry)));
    json!({
        "data": found.iter().map(|(_, intent)| intent.to_json()).collect::<Vec<_>>(),
        "before": newer.filter(|_| newer_exist).map(cursor),
        "after": older.filter(|_| older_exist).map(cursor),
    })
}

fn check(body: &Value) -> FieldErrors {
    let cursor = &body["cursor"];
    if cursor["before"].is_null() || cursor["after"].is_null() {
        return FieldErrors::new();
    }
    let message = "Before and After are mutually exclusive.".to_owned();
    FieldErrors::from([("Cursor".to_owned(), vec![message])])
}

/// Cursors are scrambled, so that callers can't rely on their content.
const CURSOR_PREFIX: &str = "cur_";
const SCRAMBLE: u64 = 0x9e37_79b9_7f4a_7c15;

fn cursor(position: Position) -> String {
    format!("{CURSOR_PREFIX}{:016x}", position ^ SCRAMBLE)
}

fn position(field: &str, cursor: &str) -> Result<Position, Problem> {
    cursor
        .strip_prefix(CURSOR_PREFIX)
        .filter(|digits| digits.len() == 16)
        .and_then(|digits| u64::from_str_radix(digits, 16).ok())
        .map(|scrambled| scrambled ^ SCRAMBLE)
        .ok_or_else(|| Problem::invalid_field(field, "The value is not a valid cursor."))
}
