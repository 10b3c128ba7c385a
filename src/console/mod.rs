//! The console: the web interface for the people who look after payments, served on an address of its own.
//!
//! It is a client of this service's own API, within the process, as the person who is signed in. So whatever the API checks,
//! limits and records, it does for the console as well, and the console can do nothing that the API can't, except for settling
//! operations, which the command line can as well. Only searching for short addresses, sessions, approvals, the audit list, the
//! current business day, what one person has moved, whether a key was used, whether something has happened to what a page shows,
//! and what needs attention or says how the service is doing have queries of their own. Only the health page calls Dojo, to find
//! out what the command `check` does.
//!
//! Every page works without scripts. With them, pages bring themselves up to date, as the feed has events about what they show.

mod actions;
mod amount;
mod api_client;
mod approvals;
mod assets;
mod attempts;
mod attention;
mod audit;
mod book_words;
mod books;
mod comparison;
mod create;
mod deed;
mod dojo_checks;
mod finding;
mod form;
mod health;
mod link;
mod links;
mod live;
mod page;
mod person;
mod preferences;
mod readings;
mod replica;
mod runbook;
mod search;
mod session;
mod settle;
mod sign_in;
mod state;
mod waiting;
mod words;
mod work;

use std::net::SocketAddr;

use axum::{
    Router,
    body::to_bytes,
    extract::{ConnectInfo, Request, State},
    http::{HeaderName, HeaderValue, StatusCode, header},
    middleware::{Next, from_fn_with_state},
    response::{Redirect, Response},
    routing::{get, post},
};
use tokio_util::task::TaskTracker;

use crate::{
    api::{self, AppState, Problem, REQUEST_ID},
    config::{AuthenticatingProxy, ConsoleSettings, ConsoleUrl},
};
use page::{Trouble, trouble};
use state::Console;

pub use dojo_checks::Outside;

/// Nothing comes from elsewhere, nothing runs that isn't in the console's own files, and no other page can contain one of these.
const POLICY: &str = "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self' data:; connect-src 'self'; \
                      form-action 'self'; base-uri 'none'; frame-ancestors 'none'";

/// What every response has.
const HEADERS: [(HeaderName, &str); 7] = [
    (header::CONTENT_SECURITY_POLICY, POLICY),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::X_FRAME_OPTIONS, "DENY"),
    (header::REFERRER_POLICY, "no-referrer"),
    (
        HeaderName::from_static("cross-origin-opener-policy"),
        "same-origin",
    ),
    (
        HeaderName::from_static("cross-origin-resource-policy"),
        "same-origin",
    ),
    (HeaderName::from_static("x-robots-tag"), "noindex, nofollow"),
];

/// The routes of the console.
pub fn router(
    state: AppState,
    settings: &ConsoleSettings,
    proxy: Option<AuthenticatingProxy>,
    outside: Outside,
    tasks: TaskTracker,
) -> Router {
    let api = api::internal_router(state.clone());
    let console = Console::new(state, api, settings, proxy, outside, tasks);
    // For the routes of pages that bring themselves up to date.
    let live = from_fn_with_state(console.clone(), live::wait);
    let routes = Router::new()
        .route("/", get(async || Redirect::to("/links")))
        .route("/healthz", get(async || "ok"))
        .route("/style.css", get(assets::style))
        .route("/console.js", get(assets::script))
        .route(
            "/sign-in",
            get(sign_in::show_sign_in).post(sign_in::submit_sign_in),
        )
        .route("/sign-out", post(sign_in::sign_out))
        .route("/links", get(links::list).layer(live.clone()))
        .route(
            "/links/new",
            get(create::show_create).post(create::submit_create),
        )
        .route("/links/{id}", get(link::show_link).layer(live))
        .route("/links/{id}/qr.svg", get(link::qr_code))
        .route("/links/{id}/refresh", post(link::refresh))
        .route(
            "/links/{id}/{action}",
            get(actions::show_action).post(actions::submit_action),
        )
        .route("/attention", get(attention::show_attention))
        .route(
            "/operations/{id}",
            get(settle::show_settle).post(settle::submit_settle),
        )
        .route("/approvals", get(approvals::list))
        .route("/approvals/{id}", get(approvals::show_approval))
        .route("/approvals/{id}/approve", post(approvals::approve))
        .route("/approvals/{id}/reject", post(approvals::reject))
        .route("/books", get(books::show_books))
        .route("/books/movements.csv", get(books::download))
        .route("/books/reconciliations/{date}", get(comparison::show_day))
        .route("/audit", get(audit::list))
        .route(
            "/health",
            get(health::show_health).post(health::check_again),
        )
        .route("/runbook", get(runbook::show_runbook))
        .route(
            "/preferences",
            get(preferences::show_preferences).post(preferences::submit_preferences),
        )
        .with_state(console.clone());
    api::guard_console(routes, &console.state).layer(from_fn_with_state(console, finish))
}

/// Gives every response its headers, and shows as a page what went wrong outside the pages: an unknown path, a panic, a time
/// limit.
async fn finish(State(console): State<Console>, mut request: Request, next: Next) -> Response {
    if !may_name_request(&console, &request) {
        request.headers_mut().remove(REQUEST_ID);
    }
    let mut response = next.run(request).await;
    let is_problem = response
        .headers()
        .get(header::CONTENT_TYPE)
        .is_some_and(|kind| kind == "application/problem+json");
    if is_problem {
        response = as_page(&console, response).await;
    }
    let headers = response.headers_mut();
    for (name, value) in HEADERS {
        headers.insert(name, HeaderValue::from_static(value));
    }
    headers
        .entry(header::CACHE_CONTROL)
        .or_insert(HeaderValue::from_static("no-store"));
    if console.url.as_ref().is_some_and(ConsoleUrl::is_tls) {
        let year = HeaderValue::from_static("max-age=31536000");
        headers.insert(header::STRICT_TRANSPORT_SECURITY, year);
    }
    response
}

/// Whether the sender may choose the request's id. The id is evidence: it leads from the audit list to the log and the timeline.
/// People can't choose it, because they could give two requests the same one. The authenticating proxy can, so that the id also
/// leads to the proxy's log. If a request has two, one of them may be the person's.
fn may_name_request(console: &Console, request: &Request) -> bool {
    let peer = request.extensions().get::<ConnectInfo<SocketAddr>>();
    let is_proxy = peer.zip(console.proxy.as_ref());
    let is_proxy = is_proxy.is_some_and(|(ConnectInfo(peer), proxy)| proxy.is_at(peer.ip()));
    is_proxy && request.headers().get_all(REQUEST_ID).iter().count() == 1
}

async fn as_page(console: &Console, response: Response) -> Response {
    const LIMIT: usize = 64 * 1024;

    let (parts, body) = response.into_parts();
    let body = to_bytes(body, LIMIT).await.unwrap_or_default();
    let what = match serde_json::from_slice::<Problem>(&body) {
        Ok(problem) if parts.status == StatusCode::NOT_FOUND => Trouble::new(
            "Not found",
            "There is nothing at this address.",
            &problem.request_id,
        ),
        Ok(problem) => Trouble::of(&problem),
        Err(_) => Trouble::new("Something went wrong", "Try again in a moment.", ""),
    };
    let mut page = trouble(console, None, parts.status, what);
    for (name, value) in &parts.headers {
        if name != header::CONTENT_TYPE && name != header::CONTENT_LENGTH {
            page.headers_mut().insert(name, value.clone());
        }
    }
    page
}
