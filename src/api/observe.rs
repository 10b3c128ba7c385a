//! Observes each request: gives it an id, logs it, counts it and times it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use axum::{
    extract::{FromRequestParts, MatchedPath, Request, State},
    http::{HeaderName, HeaderValue, Method, header, request::Parts},
    middleware::Next,
    response::Response,
};
use tracing::{Instrument, debug, error, field::display, info, info_span};
use uuid::Uuid;

use super::anonymous::{Anonymous, AnonymousRequests};
use crate::{
    payment_link::PaymentLinkId,
    protocol::webhooks::Receipt,
    telemetry::trace::{self, Span, Trace},
};

/// The methods that are counted by name. HTTP allows any text as a method, and the number of labels must be limited.
const METHODS: [Method; 6] = [
    Method::GET,
    Method::HEAD,
    Method::POST,
    Method::PUT,
    Method::PATCH,
    Method::DELETE,
];

/// The route of a request for an unknown path.
const NO_ROUTE: &str = "none";

/// The request's id, in requests and responses.
pub(crate) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The id of a request: the caller's own, or a new one. It is in the log, the response, problems and timelines, and is sent
/// to Dojo.
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

    /// The id from the caller, if it can be used as it is: short, and without white space or line breaks that would break
    /// log lines.
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

/// The header that says which trace a request belongs to.
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// The caller's span, if the request continues the caller's trace.
fn caller_of(request: &Request) -> Option<Trace> {
    let mut headers = request.headers().get_all(TRACEPARENT).iter();
    match (headers.next(), headers.next()) {
        (Some(header), None) => header.to_str().ok().and_then(Trace::continued),
        // Nobody can tell which one of several is right.
        _ => None,
    }
}

/// Whether the route is for probes and scrapes, which come every few seconds. They are neither logged nor begin a trace.
fn is_routine(route: &str) -> bool {
    matches!(route, "/healthz" | "/readyz" | "/metrics")
}

/// The request as a span. Like the log, it contains the route and not the URL.
fn span_of(caller: Option<&Trace>, method: &str, route: &str) -> Span {
    if caller.is_none() && is_routine(route) {
        return Span::unrecorded();
    }
    let mut span = if route == NO_ROUTE {
        Span::of_request(format_args!("{method}"), caller)
    } else {
        let mut span = Span::of_request(format_args!("{method} {route}"), caller);
        span.set("http.route", route);
        span
    };
    span.set("http.request.method", method);
    span
}

/// Why a request failed that the caller is not to blame for: an extension of its response. [`observe`] logs it.
#[derive(Debug, Clone)]
pub(crate) struct FailureCause(pub(crate) String);

/// Whether the sender of a request is authenticated, by an API key or a signature.
#[derive(Debug, Clone, Default)]
pub(crate) struct Sender(Arc<AtomicBool>);

impl Sender {
    pub(crate) fn authenticated(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl<S: Sync> FromRequestParts<S> for Sender {
    type Rejection = std::convert::Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Self::Rejection> {
        Ok(parts.extensions.get::<Self>().cloned().unwrap_or_default())
    }
}

/// The link that a path of the API is about.
fn link_id_in(path: &str) -> Option<PaymentLinkId> {
    let rest = path.strip_prefix("/v1/payment-links/")?;
    rest.split('/').next()?.parse().ok()
}

/// Counts and logs a request whose sender disconnects before the response: the server then drops its handler.
struct Abandoned {
    start: Instant,
    span: tracing::Span,
    method: String,
    route: String,
    sender: Sender,
    has_response: bool,
}

impl Drop for Abandoned {
    fn drop(&mut self) {
        if self.has_response {
            return;
        }
        let milliseconds = self.start.elapsed().as_secs_f64() * 1000.0;
        if self.sender.0.load(Ordering::Relaxed) {
            self.span
                .in_scope(|| info!(milliseconds, "the client disconnected before the response"));
        }
        count(&self.method, &self.route, "aborted", self.start.elapsed());
    }
}

fn count(method: &str, route: &str, status: &str, elapsed: Duration) {
    metrics::counter!(
        "http_requests_total",
        "method" => method.to_owned(), "route" => route.to_owned(), "status" => status.to_owned()
    )
    .increment(1);
    metrics::histogram!("http_request_duration_seconds", "route" => route.to_owned())
        .record(elapsed);
}

/// Gives the request its id and its span, and logs and counts it once it has a response. The log contains the route and not
/// the URL: queries contain references, and references may contain names of people.
///
/// A request from an unknown sender is logged at the level `debug`, unless it is the first of its kind for a while.
/// Otherwise anybody could fill the log.
pub(crate) async fn observe(
    State(anonymous): State<Arc<AnonymousRequests>>,
    mut request: Request,
    next: Next,
) -> Response {
    let start = Instant::now();
    let id = RequestId::given(&request).unwrap_or_else(|| Uuid::now_v7().to_string());
    let method = request.method().clone();
    let known_method = METHODS.contains(&method).then(|| method.to_string());
    let route = request
        .extensions()
        .get::<MatchedPath>()
        .map_or_else(|| NO_ROUTE.to_owned(), |path| path.as_str().to_owned());
    let mut trace_span = span_of(
        caller_of(&request).as_ref(),
        known_method.as_deref().unwrap_or("_OTHER"),
        &route,
    );
    let trace = trace_span.place().cloned().unwrap_or_else(Trace::begin);
    let link_id = link_id_in(request.uri().path());
    let sender = Sender::default();
    request.extensions_mut().insert(RequestId(id.clone()));
    request.extensions_mut().insert(sender.clone());

    let span = info_span!(
        "request", request_id = id, trace_id = %trace.id(), %method, route, client = tracing::field::Empty,
        key_ends_at = tracing::field::Empty, account = tracing::field::Empty
    );
    let method = known_method.unwrap_or_else(|| "other".to_owned());
    let mut abandoned = Abandoned {
        start,
        span: span.clone(),
        method: method.clone(),
        route: route.clone(),
        sender: sender.clone(),
        has_response: false,
    };
    let mut response = trace::within(Some(trace), next.run(request))
        .instrument(span.clone())
        .await;
    abandoned.has_response = true;

    let status = response.status().as_u16();
    trace_span.set_status(status);
    if response.status().is_server_error() {
        trace_span.failed(response.status().as_str());
    }
    drop(trace_span);
    let failure = response.extensions_mut().remove::<FailureCause>();
    let elapsed = start.elapsed();
    let milliseconds = elapsed.as_secs_f64() * 1000.0;
    let is_logged = match route.as_str() {
        route if is_routine(route) => false,
        _ if sender.0.load(Ordering::Relaxed) => true,
        // The handler logs rejected webhooks, by account.
        route if route.starts_with("/webhooks/") && status == 401 => false,
        route => {
            let route = route.to_owned();
            anonymous.is_first(Anonymous::Request { route, status }, Instant::now())
        }
    };
    let created = response.headers().get(header::LOCATION);
    let created = created.and_then(|location| link_id_in(location.to_str().ok()?));
    let webhook = response.extensions_mut().remove::<Receipt>();
    let judged = webhook.as_ref().and_then(|webhook| webhook.judged);
    let link_id = link_id
        .or(created)
        .or(judged.map(|(link_id, ..)| link_id))
        .map(display);
    span.in_scope(|| {
        match failure {
            Some(FailureCause(error)) if is_logged => error!(error, "a request failed"),
            Some(FailureCause(error)) => debug!(error, "a request failed"),
            None => {}
        }
        if is_logged {
            info!(
                status,
                milliseconds,
                link_id,
                event_id = webhook.as_ref().map(|webhook| webhook.dedup_key.as_str()),
                verdict = webhook.as_ref().map(|webhook| webhook.verdict.as_str()),
                before = judged.map(|(_, before, _)| before.as_str()),
                after = judged.map(|(_, _, after)| after.as_str()),
                "request completed"
            );
        } else {
            debug!(status, milliseconds, "request completed");
        }
    });
    count(&method, &route, response.status().as_str(), elapsed);

    if let Ok(id) = HeaderValue::from_str(&id) {
        response.headers_mut().insert(REQUEST_ID, id);
    }
    response
}
