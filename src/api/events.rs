//! The feed of events.

use std::time::{Duration, Instant};

use axum::{
    Json,
    extract::{RawQuery, State},
};
use serde::Serialize;
use serde_json::value::RawValue;
use tokio::time::{sleep, sleep_until};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    auth::Caller,
    error::Error,
    examples,
    problem::Problem,
    query::{AFTER, Query, one_to_sixty, to_i64},
    responses::{Guarded, InvalidQuery},
    scope::EventsRead,
    state::AppState,
};
use crate::{
    payment_link::{
        PaymentLinkId,
        feed::{Event, Happening},
    },
    store::{
        self,
        feed::{Cursor, Filter, Page, Unusable},
    },
};

/// The longest time that a request may wait for events.
const LONGEST_WAIT: u64 = 25;

pub(super) fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(list))
}

/// The parameters of the feed, for the OpenAPI document.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "describes what `list` reads")]
struct Parameters {
    /// Where to continue: the `after` of the previous response. If omitted, the feed begins with the oldest event there is.
    after: Option<String>,
    /// How many seconds to wait if there is no event yet. The response comes with the first event. 0 if omitted.
    #[param(minimum = 0, maximum = 25)]
    wait: Option<u64>,
    /// The maximum number of events to return. 50 if omitted.
    #[param(minimum = 1, maximum = 100)]
    limit: Option<i64>,
    /// Only events of this type. Repeat the parameter, or separate types by commas, to allow several.
    #[param(example = json!(["payment_link.captured", "payment_link.refunded"]))]
    types: Option<Vec<String>>,
    /// Only events about links of this account.
    #[param(min_length = 1, max_length = 60)]
    account: Option<String>,
    /// Only events about this link.
    #[param(rename = "paymentLinkId", value_type = Option<String>)]
    payment_link_id: Option<String>,
}

/// A part of the feed.
#[derive(Serialize, ToSchema)]
struct Events {
    /// The events, in order.
    #[schema(value_type = Vec<Event>)]
    data: Vec<Box<RawValue>>,
    /// The `after` to send next. Store it once you have processed `data`.
    after: String,
}

/// Reads the feed of events.
///
/// The feed contains everything that happened to the links, in an order that is the same for every reader and never changes.
/// Events about one link are in the order in which they happened. To get each event exactly once, store the `after` of a
/// response together with the result of processing its `data`, and send it with the next request.
///
/// With `wait`, a request that finds nothing waits for the first event. `data` may be empty even so: because nothing happened
/// in time, because a filter matched nothing in the part of the feed that was searched, or because the service is stopping.
/// Continue with the new `after` in any case.
///
/// Events about money appear only once Dojo's own response confirms them, never because of a webhook alone.
#[utoipa::path(
    get, path = "/v1/events", operation_id = "listEvents", tag = "Events", params(Parameters),
    security(("apiKey" = ["events:read"])),
    responses(
        (status = 200, description = "The next events.", body = Events, example = json!(examples::events())),
        Guarded,
        (status = 410, description = "Nothing can be read from this `after`: the events that followed it have been removed, or it comes from another database, or from before a backup was restored.", body = Problem, content_type = "application/problem+json", examples(("events-removed" = ()), ("cursor-unknown" = ()))),
        InvalidQuery,
        (status = 503, description = "The database could not be reached, or too many requests wait for events. Retry after `Retry-After`.", body = Problem, content_type = "application/problem+json", examples(("database-unavailable" = ()), ("overloaded" = ()), ("timed-out" = ()))),
    )
)]
async fn list(
    State(state): State<AppState>,
    caller: Caller<EventsRead>,
    RawQuery(query): RawQuery,
) -> Result<Json<Events>, Error> {
    let begun = Instant::now();
    let mut query = Query::new(query.as_deref());
    let filter = Filter {
        open: caller.accounts(),
        account: query.take("account", "1 to 60 characters", one_to_sixty),
        types: query.any_of("types", Happening::TYPES),
        link: query.take("paymentLinkId", "the id of a payment link", |text| {
            text.parse::<PaymentLinkId>().ok()
        }),
    };
    let limit = to_i64(query.limit());
    let wait = query.take("wait", "0 to 25", |text| {
        text.parse().ok().filter(|wait| *wait <= LONGEST_WAIT)
    });
    let after = query.take("after", AFTER, |text| text.parse::<Cursor>().ok());
    query.finish()?;

    // A request that waits must not be cut off without its response.
    let wait = Duration::from_secs(wait.unwrap_or(0)).min(state.time_left(begun));
    let page = if wait.is_zero() {
        read(&state, after, &filter, limit).await?
    } else {
        wait_and_read(&state, after, &filter, limit, begun + wait).await?
    };
    Ok(Json(Events {
        data: page.events,
        after: page.after.to_string(),
    }))
}

/// How long a page that waits for events about some links pauses after events about others, before it looks again.
const PAUSE: Duration = Duration::from_millis(500);

/// Waits for an event after the position `seen`: about the link or, without one, about any link of the accounts `open`. Also
/// returns at the deadline, when the service stops, and when the database fails. No database connection is held meanwhile.
pub(crate) async fn wait_for_events(
    state: &AppState,
    mut seen: i64,
    open: Option<&[String]>,
    link: Option<PaymentLinkId>,
    deadline: Instant,
) {
    let mut head = state.feed_head.clone();
    let events = async {
        loop {
            // The receiver is only closed when the service stops.
            let Ok(position) = head.wait_for(|head| *head > seen).await.map(|head| *head) else {
                return;
            };
            // The semaphore is never closed.
            let turn = state.feed_reads.acquire().await;
            let has_events = store::feed::has_events(&state.pool, seen, open, link).await;
            drop(turn);
            if has_events.unwrap_or(true) {
                return;
            }
            seen = position;
            sleep(PAUSE).await;
        }
    };
    tokio::select! {
        () = events => {}
        () = sleep_until(deadline.into()) => {}
        () = state.stop.cancelled() => {}
    }
}

async fn read(
    state: &AppState,
    after: Option<Cursor>,
    filter: &Filter<'_>,
    limit: i64,
) -> Result<Page, Error> {
    // The semaphore is never closed.
    let _turn = state.feed_reads.acquire().await;
    let page = store::feed::read(&state.pool, after, filter, limit).await?;
    page.map_err(|unusable| match unusable {
        Unusable::Pruned => Error::EventsRemoved,
        Unusable::Foreign => Error::CursorUnknown,
    })
}

/// Reads once there are events that match, or at the deadline. No database connection is held meanwhile.
async fn wait_and_read(
    state: &AppState,
    mut after: Option<Cursor>,
    filter: &Filter<'_>,
    limit: i64,
    deadline: Instant,
) -> Result<Page, Error> {
    let _reader = state.reserve_reader()?;
    let mut head = state.feed_head.clone();
    loop {
        // Marked as seen before the read, so that an event that comes during the read isn't missed.
        head.mark_unchanged();
        let page = read(state, after, filter, limit).await?;
        if !page.events.is_empty() || page.more {
            return Ok(page);
        }
        after = Some(page.after);
        tokio::select! {
            changed = head.changed() => if changed.is_err() { return Ok(page) },
            () = sleep_until(deadline.into()) => return Ok(page),
            () = state.stop.cancelled() => return Ok(page),
        }
    }
}
