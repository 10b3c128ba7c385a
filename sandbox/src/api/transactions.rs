//! Dojo's Transactions API: searching the transactions of an account, newest first, in pages.

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::State;
use axum::{Extension, Json};
use serde::Deserialize;
use serde_json::{Value, json};
use time::Duration;

use super::body::{self, BodySchema};
use crate::account::Account;
use crate::app_state::AppState;
use crate::clock::Timestamp;
use crate::paging::{self, Cursor, Period, check_cursor};
use crate::problem::{FieldErrors, JsonResult};
use crate::transactions::Transaction;

/// The longest period that one search can look at.
const MAX_PERIOD: Duration = Duration::days(7);

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Search {
    start_date: String,
    end_date: String,
    cursor: Option<Cursor>,
}

/// `POST /transactions/search`
pub(super) async fn search(
    State(state): State<Arc<AppState>>,
    Extension(account): Extension<Account>,
    bytes: Bytes,
) -> JsonResult {
    let request: Search = body::read_with(BodySchema::SearchTransactions, &bytes, |body| {
        let mut errors = check_cursor(body);
        errors.extend(check_period(body));
        errors
    })?;
    let lag = *state.transaction_lag();
    let period = Period::new(
        Some(&request.start_date),
        Some(&request.end_date),
        state.clock.now(),
        lag,
    );
    let matches = |transaction: &Transaction| {
        transaction.account == account
            && !transaction.hidden
            && period.contains(transaction.date_time)
    };
    let cursor = request.cursor.unwrap_or_default();
    Ok(Json(state.with_intents(|intents| {
        let transactions = intents.transactions.all();
        paging::page(transactions, matches, &cursor, |found| json!(found))
    })))
}

/// Validates what the schemas of `startDate` and `endDate` can't express.
fn check_period(body: &Value) -> FieldErrors {
    let time = |member: &str| body[member].as_str().and_then(Timestamp::parse);
    // The schema reports a time that can't be parsed.
    let (Some(start), Some(end)) = (time("startDate"), time("endDate")) else {
        return FieldErrors::new();
    };
    let message = if end < start {
        "The value must not be before StartDate."
    } else if end > start.plus(MAX_PERIOD) {
        "The value must not be more than 7 days after StartDate."
    } else {
        return FieldErrors::new();
    };
    FieldErrors::from([("EndDate".to_owned(), vec![message.to_owned()])])
}
