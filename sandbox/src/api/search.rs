//! Searching payment intents, newest first, in pages.

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::State;
use axum::{Extension, Json};
use serde::Deserialize;

use super::body::{self, BodySchema};
use crate::account::Account;
use crate::app_state::AppState;
use crate::intents::Intent;
use crate::paging::{self, Cursor, Period, check_cursor};
use crate::problem::JsonResult;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Search {
    statuses: Option<Vec<String>>,
    start_date: Option<String>,
    end_date: Option<String>,
    cursor: Option<Cursor>,
}

/// `POST /payment-intents/search`
pub(super) async fn search(
    State(state): State<Arc<AppState>>,
    Extension(account): Extension<Account>,
    bytes: Bytes,
) -> JsonResult {
    let request: Search = body::read_with(BodySchema::Search, &bytes, check_cursor)?;
    let lag = *state.search_lag();
    let period = Period::new(
        request.start_date.as_deref(),
        request.end_date.as_deref(),
        state.clock.now(),
        lag,
    );
    // An empty list means any status.
    let statuses = request.statuses.filter(|statuses| !statuses.is_empty());
    let matches = |intent: &Intent| {
        intent.account == account
            && statuses.as_ref().is_none_or(|statuses| {
                statuses
                    .iter()
                    .any(|status| status == intent.status.as_str())
            })
            && period.contains(intent.created_at)
    };
    let cursor = request.cursor.unwrap_or_default();
    Ok(Json(state.with_intents(|intents| {
        paging::page(intents.all(), matches, &cursor, Intent::to_json)
    })))
}
