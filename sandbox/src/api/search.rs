//! Searching payment intents: newest first, by pages.

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::State;
use axum::{Extension, Json};
use serde::Deserialize;
use serde_json::{Value, json};

use super::JsonResult;
use super::body::{self, Shape};
use crate::account::Account;
use crate::clock::Timestamp;
use crate::intents::Intent;
use crate::ledger::{Ledger, Position};
use crate::problem::{FieldErrors, Problem};
use crate::world::World;

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
    State(world): State<Arc<World>>,
    Extension(account): Extension<Account>,
    bytes: Bytes,
) -> JsonResult {
    let request: Search = body::read_with(Shape::Search, &bytes, check)?;
    let lag = *world.search_lag();
    let visible_until = world.clock.now().plus(-lag);
    let wanted = Wanted {
        account,
        // An empty list asks for nothing in particular.
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
    Ok(Json(world.with_ledger(|ledger| {
        page(ledger, &wanted, limit, before, after)
    })))
}

struct Wanted {
    account: Account,
    statuses: Option<Vec<String>>,
    from: Option<Timestamp>,
    to: Option<Timestamp>,
    visible_until: Option<Timestamp>,
}

impl Wanted {
    fn has(&self, intent: &Intent) -> bool {
        let word = intent.status.word();
        intent.account == self.account
            && self
                .statuses
                .as_ref()
                .is_none_or(|statuses| statuses.iter().any(|status| status == word))
            && self.from.is_none_or(|from| intent.created_at >= from)
            && self.to.is_none_or(|to| intent.created_at <= to)
            && self
                .visible_until
                .is_none_or(|until| intent.created_at <= until)
    }
}

/// One page and the cursors to its neighbours, where there are any.
fn page(
    ledger: &Ledger,
    wanted: &Wanted,
    limit: usize,
    before: Option<Position>,
    after: Option<Position>,
) -> Value {
    let matching = |(_, intent): &(Position, &Intent)| wanted.has(intent);
    let found: Vec<(Position, &Intent)> = match (before, after) {
        (Some(before), _) => {
            let mut found: Vec<_> = ledger
                .newer_than(before)
                .filter(matching)
                .take(limit)
                .collect();
            found.reverse();
            found
        }
        (None, Some(after)) => ledger
            .older_than(after)
            .filter(matching)
            .take(limit)
            .collect(),
        (None, None) => ledger.all().rev().filter(matching).take(limit).collect(),
    };
    // An empty page lies just beyond the cursor that led to it.
    let newest = found.first().map(|(position, _)| *position);
    let oldest = found.last().map(|(position, _)| *position);
    let newer = newest.or(after.map(|after| after.saturating_sub(1)));
    let older = oldest.or(before.map(|before| before.saturating_add(1)));
    let newer_exist = newer.is_some_and(|p| ledger.newer_than(p).any(|entry| matching(&entry)));
    let older_exist = older.is_some_and(|p| ledger.older_than(p).any(|entry| matching(&entry)));
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

/// Cursors mean nothing to callers, so they do not look like anything.
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
        .ok_or_else(|| Problem::invalid_field(field, "The value is not a cursor."))
}
