//! The REST API: routes, one file per resource with its request and response types.

pub mod auth;
mod body;
mod docs;
mod error;
mod examples;
mod idempotency;
mod observe;
pub mod openapi;
mod operations;
mod payment_links;
mod problem;
mod query;
mod rates;
mod refusals;
mod service;
mod webhooks;

use std::{
    future::Future,
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    Router,
    extract::{DefaultBodyLimit, Request},
    http::{HeaderName, HeaderValue, StatusCode, header},
    middleware::{Next, from_fn, from_fn_with_state},
    response::Response,
};
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio_util::task::TaskTracker;
use tower_http::{catch_panic::CatchPanicLayer, timeout::TimeoutLayer};
use tracing::Instrument;
use utoipa_axum::router::OpenApiRouter;

use crate::{
    config::ServeSettings,
    dojo::{Account, Accounts},
    payment_link::{NewPaymentLink, PaymentLink, PaymentLinkId, RecoveryLimits},
    protocol::Context,
    store::{self, PgPool},
};
use auth::Caller;
use body::Schema;
pub(crate) use error::Error;
use error::Subject;
use rates::Rates;
use refusals::Refusals;

/// Says that an answer is that of an earlier request with the same `Idempotency-Key`.
pub(crate) const IDEMPOTENT_REPLAYED: HeaderName = HeaderName::from_static("idempotent-replayed");

/// What the handlers share.
#[derive(Clone)]
pub struct AppState(Arc<Shared>);

/// What [`AppState`] holds.
pub struct Shared {
    /// The database.
    pub pool: PgPool,
    /// The Dojo accounts that take the money.
    pub accounts: Accounts,
    /// Work that goes on when its caller has gone away, and that a shutdown waits for.
    pub tasks: TaskTracker,
    /// Writes the metrics.
    pub metrics: PrometheusHandle,
    /// Tells the background that something has just become due.
    pub wake: Arc<Notify>,
    /// The settlement window, and when recovery gives up.
    pub limits: RecoveryLimits,
    /// How long a request may take.
    pub request_timeout: Duration,
    /// How many more links, operations and refreshes may be under way.
    places: Arc<Semaphore>,
    /// How many more requests each client may send.
    rates: Rates,
    /// Requests whose sender proved nothing, counted for the log.
    refusals: Arc<Refusals>,
    /// The schema of a request for a link.
    new_payment_link: Schema,
    /// The schemas of requests for operations.
    operations: operations::Schemas,
    /// The OpenAPI document, as YAML.
    openapi: String,
    /// The OpenAPI document, as pages.
    docs: docs::Pages,
}

impl std::ops::Deref for AppState {
    type Target = Shared;

    fn deref(&self) -> &Shared {
        &self.0
    }
}

impl AppState {
    /// The state of a service on this database, for these accounts.
    ///
    /// # Panics
    ///
    /// If the OpenAPI document, which is made from the code, is broken. A test builds it.
    #[must_use]
    pub fn new(
        pool: PgPool,
        accounts: Accounts,
        tasks: TaskTracker,
        metrics: PrometheusHandle,
        wake: Arc<Notify>,
        settings: &ServeSettings,
    ) -> Self {
        let document = openapi::document();
        Self(Arc::new(Shared {
            pool,
            accounts,
            tasks,
            metrics,
            wake,
            limits: settings.jobs.limits(),
            request_timeout: settings.request_timeout,
            places: Arc::new(Semaphore::new(settings.max_creations.into())),
            rates: Rates::new(settings.client_rate),
            refusals: Arc::default(),
            new_payment_link: Schema::new(&document, NewPaymentLink::SCHEMA_NAME)
                .expect("the document is made from the code and a test builds it"),
            operations: operations::Schemas::new(&document)
                .expect("the document is made from the code and a test builds it"),
            openapi: openapi::to_yaml(&document),
            docs: docs::Pages::new(&document)
                .expect("the pages are made from the document and a test reads them"),
        }))
    }

    /// The account of this name, which the log of the request names from here on.
    pub(crate) fn account(&self, name: &str) -> Option<&Account> {
        let account = self.accounts.get(name)?;
        tracing::Span::current().record("account", &account.name);
        Some(account)
    }

    /// The account that takes a link's money. It may be configured no longer.
    pub(crate) fn account_of(&self, link: &PaymentLink) -> Result<&Account, Error> {
        self.account(&link.account)
            .ok_or(Error::AccountNotConfigured(link.id))
    }

    /// What the protocol needs to work for this account.
    pub(crate) fn context(&self, account: &Account) -> Context {
        Context {
            pool: self.pool.clone(),
            account: account.clone(),
            limits: self.limits,
            wake: Arc::clone(&self.wake),
        }
    }

    /// Forgets what is no longer needed and writes to the log what has been summed up for it. To be called every few
    /// seconds.
    pub fn upkeep(&self) {
        self.rates.forget_idle();
        self.refusals.report(Instant::now());
    }

    /// Writes to the log what has not been summed up yet. To be called when nothing is served any more.
    pub fn finish(&self) {
        self.refusals.report_all();
    }

    /// A place among the calls to Dojo that may be under way for callers, until it is dropped.
    pub(crate) fn place(&self) -> Result<OwnedSemaphorePermit, Error> {
        Arc::clone(&self.places)
            .try_acquire_owned()
            .map_err(|_| Error::Overloaded)
    }

    /// Does work that leads to `subject`, in a task of its own: a caller that hangs up, or a time limit, must not cut it
    /// short between saving what is asked for, asking Dojo, and keeping the answer.
    pub(crate) async fn see_through<T: Send + 'static>(
        &self,
        subject: Subject,
        work: impl Future<Output = Result<T, Error>> + Send + 'static,
    ) -> Result<T, Error> {
        let place = self.place()?;
        let work = async move {
            let _place = place;
            work.await
        };
        let work = self.tasks.spawn(work.in_current_span());
        match tokio::time::timeout(self.request_timeout, work).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(_)) | Err(_) => Err(Error::DojoUnsure(subject)),
        }
    }

    /// The link with this id. One of an account that is not open to the caller is there for others only.
    pub(crate) async fn find_link<S>(
        &self,
        caller: &Caller<S>,
        id: PaymentLinkId,
    ) -> Result<PaymentLink, Error> {
        store::links::find(&self.pool, id)
            .await?
            .filter(|link| caller.may_see(&link.account))
            .ok_or(Error::NoSuchLink)
    }
}

/// The routes that the OpenAPI document describes, and the document.
fn documented() -> OpenApiRouter<AppState> {
    OpenApiRouter::with_openapi(openapi::header())
        .merge(payment_links::routes())
        .merge(operations::routes())
        .merge(webhooks::routes())
        .merge(service::routes())
}

/// The whole API.
pub fn router(state: AppState) -> Router {
    // A creation watches the time itself, for it can tell the link's id; this is for whatever else hangs.
    let request_timeout = state.request_timeout + Duration::from_secs(2);
    let refusals = Arc::clone(&state.refusals);
    let (routes, _) = documented().split_for_parts();
    let routes = routes
        .merge(docs::routes())
        .fallback(async || Error::NotFound)
        .with_state(state);
    guarded(routes, request_timeout, refusals)
}

/// What stands around every route: limits, an answer to a panic, problems, and what is told of a request.
fn guarded(routes: Router, request_timeout: Duration, refusals: Arc<Refusals>) -> Router {
    routes
        .layer(DefaultBodyLimit::max(body::LIMIT))
        .layer(TimeoutLayer::with_status_code(
            StatusCode::SERVICE_UNAVAILABLE,
            request_timeout,
        ))
        .layer(CatchPanicLayer::custom(
            |_: Box<dyn std::any::Any + Send>| {
                // The panic's own message is in the log already, written by the panic hook.
                axum::response::IntoResponse::into_response(StatusCode::INTERNAL_SERVER_ERROR)
            },
        ))
        .layer(from_fn(problem::complete))
        .layer(from_fn(not_to_be_stored))
        .layer(from_fn_with_state(refusals, observe::observe))
}

/// Tells proxies and browsers to keep no copy of what may say something about a customer: whatever the API answers, and
/// every problem.
async fn not_to_be_stored(request: Request, next: Next) -> Response {
    let is_api = request.uri().path().starts_with("/v1/");
    let mut response = next.run(request).await;
    let status = response.status();
    if is_api || status.is_client_error() || status.is_server_error() {
        let no_store = HeaderValue::from_static("no-store");
        response
            .headers_mut()
            .insert(header::CACHE_CONTROL, no_store);
    }
    response
}

#[cfg(test)]
mod tests {
    use axum::{body::Body, http::Request, routing::get};
    use tower::ServiceExt;

    use super::*;

    async fn answer(routes: Router) -> (StatusCode, serde_json::Value) {
        let request = Request::get("/broken").body(Body::empty()).unwrap();
        let response = guarded(routes, Duration::from_millis(50), Arc::default())
            .oneshot(request)
            .await
            .unwrap();
        let status = response.status();
        assert_eq!(
            response.headers()["content-type"],
            "application/problem+json"
        );
        let body = axum::body::to_bytes(response.into_body(), 10_000)
            .await
            .unwrap();
        (status, serde_json::from_slice(&body).unwrap())
    }

    #[tokio::test]
    async fn a_panic_is_a_500_that_tells_nothing_of_it() {
        async fn broken() -> &'static str {
            panic!("a secret");
        }
        let (status, problem) = answer(Router::new().route("/broken", get(broken))).await;
        assert_eq!(status, StatusCode::INTERNAL_SERVER_ERROR);
        assert!(!problem.to_string().contains("secret"));
        assert_ne!(problem["requestId"], "");
    }

    #[tokio::test]
    async fn a_handler_that_hangs_is_a_503() {
        let hangs = get(async || std::future::pending::<&'static str>().await);
        let (status, problem) = answer(Router::new().route("/broken", hangs)).await;
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(problem["instance"], "/broken");
    }
}
