//! What is told of each request: an id, a span in the log, a count and a time.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use axum::{
    extract::{FromRequestParts, MatchedPath, Request, State},
    http::{HeaderName, HeaderValue, Method, request::Parts},
    middleware::Next,
    response::Response,
};
use tracing::{Instrument, debug, error, info, info_span};
use uuid::Uuid;

use super::refusals::{Refusals, Refused};

/// The methods that are counted by name. Methods are free text to HTTP: a label for each that somebody makes up
/// would never end.
const METHODS: [Method; 5] = [
    Method::GET,
    Method::HEAD,
    Method::POST,
    Method::PUT,
    Method::DELETE,
];

/// Carries the request's id, both ways.
pub(crate) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The id of a request: the caller's own, or a new one. It stands in the log, in the answer, in problems and
/// in timelines, and goes to Dojo.
#[derive(Debug, Clone)]
pub(crate) struct RequestId(pub(crate) String);

impl RequestId {
    /// The id that [`observe`] gave this request.
    pub(crate) fn of(request: &Request) -> String {
        request
            .extensions()
            .get::<Self>()
            .map_or_else(String::new, |id| id.0.clone())
    }

    /// The caller's id if it can be passed on as it is: short, and without white space or line breaks that
    /// would upset a log.
    fn given(request: &Request) -> Option<String> {
        let id = request.headers().get(&REQUEST_ID)?.to_str().ok()?;
        let fits = (1..=128).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_graphic());
        fits.then(|| id.to_owned())
    }
}

impl<S: Sync> FromRequestParts<S> for RequestId {
    type Rejection = std::convert::Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Self::Rejection> {
        Ok(parts
            .extensions
            .get::<Self>()
            .cloned()
            .unwrap_or_else(|| Self(String::new())))
    }
}

/// Why a request failed that the caller is not to blame for: an extension of its response. [`observe`] logs it.
#[derive(Debug, Clone)]
pub(super) struct FailureCause(pub(super) String);

/// Whether a request's sender has proved who it is, by an API key or a signature.
#[derive(Debug, Clone, Default)]
pub(crate) struct Sender(Arc<AtomicBool>);

impl Sender {
    /// Notes that it has.
    pub(crate) fn is_known(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl<S: Sync> FromRequestParts<S> for Sender {
    type Rejection = std::convert::Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Self::Rejection> {
        Ok(parts.extensions.get::<Self>().cloned().unwrap_or_default())
    }
}

/// Gives the request its id, and tells of it when it is answered. The log names the route and not the
/// address: queries hold references, and references may name people.
///
/// A request whose sender proves nothing has a line only at the level `debug`, or if it is the first of its kind for a
/// while: anybody could fill the log otherwise.
pub(crate) async fn observe(
    State(refusals): State<Arc<Refusals>>,
    mut request: Request,
    next: Next,
) -> Response {
    let start = Instant::now();
    let id = RequestId::given(&request).unwrap_or_else(|| Uuid::now_v7().to_string());
    let method = request.method().clone();
    let route = request
        .extensions()
        .get::<MatchedPath>()
        .map_or_else(|| "none".to_owned(), |path| path.as_str().to_owned());
    let sender = Sender::default();
    request.extensions_mut().insert(RequestId(id.clone()));
    request.extensions_mut().insert(sender.clone());

    let span = info_span!(
        "request", request_id = id, %method, route, client = tracing::field::Empty,
        key_ends_at = tracing::field::Empty, account = tracing::field::Empty
    );
    let mut response = next.run(request).instrument(span.clone()).await;

    let status = response.status().as_u16();
    let failure = response.extensions_mut().remove::<FailureCause>();
    let elapsed = start.elapsed();
    let milliseconds = elapsed.as_secs_f64() * 1000.0;
    let is_told = match route.as_str() {
        // Probes and scrapes come every few seconds and say nothing new.
        "/healthz" | "/readyz" | "/metrics" => false,
        _ if sender.0.load(Ordering::Relaxed) => true,
        // A webhook that is refused is told of by account.
        route if route.starts_with("/webhooks/") && status == 401 => false,
        route => {
            let route = route.to_owned();
            refusals.is_first(Refused::Request { route, status }, Instant::now())
        }
    };
    span.in_scope(|| {
        match failure {
            Some(FailureCause(error)) if is_told => error!(error, "a request failed"),
            Some(FailureCause(error)) => debug!(error, "a request failed"),
            None => {}
        }
        if is_told {
            info!(status, milliseconds, "answered");
        } else {
            debug!(status, milliseconds, "answered");
        }
    });
    let method = if METHODS.contains(&method) {
        method.to_string()
    } else {
        "other".to_owned()
    };
    metrics::counter!(
        "http_requests_total",
        "method" => method, "route" => route.clone(), "status" => status.to_string()
    )
    .increment(1);
    metrics::histogram!("http_request_duration_seconds", "route" => route).record(elapsed);

    if let Ok(id) = HeaderValue::from_str(&id) {
        response.headers_mut().insert(REQUEST_ID, id);
    }
    response
}
