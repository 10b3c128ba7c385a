//! The sandbox's clock, and the delays after which intents and transactions appear in search.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde::Deserialize;
use serde_json::{Value, json};
use time::Duration;

use super::body::Body;
use crate::app_state::AppState;
use crate::problem::{JsonResult, Problem};

/// A hundred years. The calendar ends later.
const MAX_ADVANCE_SECONDS: i64 = 100 * 366 * 86_400;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Advance {
    advance_seconds: i64,
}

/// `GET /_sandbox/clock`
pub(super) async fn clock(State(state): State<Arc<AppState>>) -> Json<Value> {
    Json(clock_json(&state))
}

/// `POST /_sandbox/clock`: everything that falls due has happened by the time this responds.
pub(super) async fn advance(
    State(state): State<Arc<AppState>>,
    Body(Advance { advance_seconds }): Body<Advance>,
) -> JsonResult {
    if !(0..=MAX_ADVANCE_SECONDS).contains(&advance_seconds) {
        return Err(Problem::bad_request(
            "advanceSeconds must be between 0 and a hundred years.",
        ));
    }
    state.clock.advance(Duration::seconds(advance_seconds));
    state.with_intents(|_| ());
    Ok(Json(clock_json(&state)))
}

fn clock_json(state: &AppState) -> Value {
    json!({ "now": state.clock.now(), "advancedSeconds": state.clock.offset().whole_seconds() })
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Lag {
    seconds: f64,
}

/// `GET /_sandbox/search-lag`
pub(super) async fn search_lag(State(state): State<Arc<AppState>>) -> Json<Value> {
    lag_json(*state.search_lag())
}

/// `POST /_sandbox/search-lag`: hides younger intents from search.
pub(super) async fn set_search_lag(
    State(state): State<Arc<AppState>>,
    Body(Lag { seconds }): Body<Lag>,
) -> JsonResult {
    set_lag(&mut state.search_lag(), seconds)
}

/// `GET /_sandbox/transaction-lag`
pub(super) async fn transaction_lag(State(state): State<Arc<AppState>>) -> Json<Value> {
    lag_json(*state.transaction_lag())
}

/// `POST /_sandbox/transaction-lag`: hides younger transactions from search.
pub(super) async fn set_transaction_lag(
    State(state): State<Arc<AppState>>,
    Body(Lag { seconds }): Body<Lag>,
) -> JsonResult {
    set_lag(&mut state.transaction_lag(), seconds)
}

fn set_lag(lag: &mut Duration, seconds: f64) -> JsonResult {
    if !(0.0..=86_400.0).contains(&seconds) {
        return Err(Problem::bad_request("seconds must be between 0 and 86400."));
    }
    *lag = Duration::seconds_f64(seconds);
    Ok(lag_json(*lag))
}

fn lag_json(lag: Duration) -> Json<Value> {
    Json(json!({ "seconds": lag.as_seconds_f64() }))
}
