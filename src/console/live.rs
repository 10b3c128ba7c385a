//! Pages that bring themselves up to date: the requests that they send for this wait until something has happened to what they
//! show.

use std::time::{Duration, Instant};

use axum::{
    extract::{FromRequestParts, Path, Request, State},
    http::{HeaderMap, HeaderValue, header},
    middleware::Next,
    response::{IntoResponse, Response},
};

use super::{page::LIVE, person::Person, state::Console};
use crate::{api::wait_for_events, payment_link::PaymentLinkId};

/// The longest time that a request waits. Then the page is compared with what it would be now, because the feed doesn't contain
/// everything: a link expires, an approval is requested, a callback is delivered, a webhook says what Dojo hasn't confirmed yet.
const LONGEST: Duration = Duration::from_secs(20);

/// How many seconds a page lets pass before it asks again, if its request could not wait.
const INTERVAL: HeaderValue = HeaderValue::from_static("10");

/// The position in the feed up to which the page that sends a request is up to date. `None` if the response mustn't wait.
fn position(headers: &HeaderMap) -> Option<i64> {
    headers.get(LIVE)?.to_str().ok()?.parse().ok()
}

/// Lets a request that a page sends by itself wait for an event about what it shows: its link, or else the person's accounts.
///
/// The handler then finds out again who sends the request, as it does for every other. So nobody gets anything after the session
/// has ended.
pub(super) async fn wait(
    State(console): State<Console>,
    link: Option<Path<String>>,
    request: Request,
    next: Next,
) -> Response {
    let Some(seen) = position(request.headers()) else {
        return next.run(request).await;
    };
    let begun = Instant::now();
    let (mut parts, body) = request.into_parts();
    let person = match Person::from_request_parts(&mut parts, &console).await {
        Ok(person) => person,
        Err(stop) => return stop.into_response(),
    };
    let request = Request::from_parts(parts, body);
    let link = link.map(|Path(id)| id.parse::<PaymentLinkId>());
    let Ok(link) = link.transpose() else {
        return next.run(request).await;
    };
    let state = &console.state;
    let has_waited = {
        let places = (
            console.waiting.take(person.who.client_id),
            state.reserve_reader(),
        );
        let has_place = matches!(places, (Some(_), Ok(_)));
        if has_place {
            let deadline = begun + LONGEST.min(state.time_left(begun));
            wait_for_events(state, seen, person.accounts(), link, deadline).await;
        }
        has_place
    };
    let mut response = next.run(request).await;
    if !has_waited {
        response.headers_mut().insert(header::RETRY_AFTER, INTERVAL);
    }
    response
}
