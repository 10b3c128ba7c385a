//! The sandbox's clock, and how far search lags behind it.

use std::sync::Arc;

use axum::Json;
use axum::body::Bytes;
use axum::extract::State;
use serde::Deserialize;
use serde_json::{Value, json};
use time::Duration;

use super::{JsonResult, read};
use crate::problem::Problem;
use crate::world::World;

/// A hundred years: more would leave the calendar.
const FURTHEST: i64 = 100 * 366 * 86_400;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Advance {
    advance_seconds: i64,
}

/// `GET /_sandbox/clock`
pub(super) async fn clock(State(world): State<Arc<World>>) -> Json<Value> {
    Json(shown(&world))
}

/// `POST /_sandbox/clock`: what falls due in between has happened when this answers.
pub(super) async fn advance(State(world): State<Arc<World>>, bytes: Bytes) -> JsonResult {
    let Advance { advance_seconds } = read(&bytes)?;
    if !(0..=FURTHEST).contains(&advance_seconds) {
        return Err(Problem::bad_request(
            "The clock only goes ahead, at most a hundred years.",
        ));
    }
    world.clock.advance(Duration::seconds(advance_seconds));
    world.with_ledger(|_| ());
    Ok(Json(shown(&world)))
}

fn shown(world: &World) -> Value {
    json!({ "now": world.clock.now(), "advancedSeconds": world.clock.offset().whole_seconds() })
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Lag {
    seconds: f64,
}

/// `GET /_sandbox/search-lag`
pub(super) async fn search_lag(State(world): State<Arc<World>>) -> Json<Value> {
    Json(json!({ "seconds": world.search_lag().as_seconds_f64() }))
}

/// `POST /_sandbox/search-lag`: intents younger than this do not show in search.
pub(super) async fn set_search_lag(State(world): State<Arc<World>>, bytes: Bytes) -> JsonResult {
    let Lag { seconds } = read(&bytes)?;
    if !(0.0..=86_400.0).contains(&seconds) {
        return Err(Problem::bad_request("seconds is from 0 to 86400."));
    }
    *world.search_lag() = Duration::seconds_f64(seconds);
    Ok(Json(json!({ "seconds": seconds })))
}
