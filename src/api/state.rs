//! What the handlers share.

use std::{
    future::Future,
    sync::Arc,
    time::{Duration, Instant},
};

use metrics_exporter_prometheus::PrometheusHandle;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, SemaphorePermit, watch};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::Instrument;

use super::{
    anonymous::AnonymousRequests,
    body::{Document, RequestSchemas},
    error::Error,
    known_keys::KnownKeys,
    problem::Subject,
    rates::{PageRate, Rates},
};
use crate::{
    callbacks::client::LazyClient,
    config::{BookSettings, ServeSettings},
    dojo::{Account, Accounts},
    payment_link::{Fault, PaymentLink, RecoveryLimits, erasure::PersonalMetadata},
    protocol::{Context, intake::Intake},
    store::{PgPool, link_reader::LinkReader},
    telemetry::{recent::Recent, trace},
};

/// What runs besides the handlers.
pub struct Background {
    /// Work that continues after its caller has disconnected, and that a shutdown waits for.
    pub tasks: TaskTracker,
    /// Wakes the background jobs when something has just become due.
    pub wake: Arc<Notify>,
    /// Canceled when the service begins to stop.
    pub stop: CancellationToken,
    /// The position of the newest event in the feed.
    pub feed_head: watch::Receiver<i64>,
    /// Sends callbacks.
    pub callbacks: Arc<LazyClient>,
    /// Whether emails can be sent.
    pub sends_mail: bool,
}

/// What the handlers share.
#[derive(Clone)]
pub struct AppState(Arc<Shared>);

/// The contents of [`AppState`].
pub struct Shared {
    pub pool: PgPool,
    /// For `/readyz`: a busy pool is no reason to take a replica out of service.
    pub(super) probes: PgPool,
    /// The Dojo accounts that take the money.
    pub accounts: Accounts,
    pub(super) tasks: TaskTracker,
    pub metrics: PrometheusHandle,
    /// What this replica has counted lately.
    pub recent: Recent,
    wake: Arc<Notify>,
    pub(super) stop: CancellationToken,
    pub(super) feed_head: watch::Receiver<i64>,
    pub(super) callbacks: Arc<LazyClient>,
    /// Whether emails can be sent.
    pub(super) sends_mail: bool,
    /// Stores webhooks.
    pub(super) intake: Intake,
    /// Reads links.
    pub(super) links: LinkReader,
    pub limits: RecoveryLimits,
    /// How the books are kept.
    pub(crate) books: BookSettings,
    /// The metadata that is erased with other personal data.
    pub(super) personal_metadata: PersonalMetadata,
    /// How long a request may take.
    pub request_timeout: Duration,
    /// Limits the creations, operations and refreshes in progress (`MAX_CREATIONS`).
    calls: Arc<Semaphore>,
    /// Limits the requests that wait for events (`MAX_READERS`).
    readers: Semaphore,
    max_readers: u16,
    /// Limits the reads of the feed that run at once. When something happens, all waiting requests read at the same moment.
    /// They queue here, so that other requests get connections in between.
    pub(super) feed_reads: Semaphore,
    pub(super) keys: KnownKeys,
    pub(crate) rates: Rates,
    pub(super) page_rate: PageRate,
    /// The base URL of new short addresses, if there are any.
    pub(super) short_url_base: Option<Arc<str>>,
    pub(super) anonymous: Arc<AnonymousRequests>,
    pub(super) schemas: RequestSchemas,
    pub(super) document: Document,
}

impl std::ops::Deref for AppState {
    type Target = Shared;

    fn deref(&self) -> &Shared {
        &self.0
    }
}

impl AppState {
    /// The state of a service that uses this database and these accounts.
    #[must_use]
    pub fn new(
        pool: PgPool,
        accounts: Accounts,
        background: Background,
        metrics: PrometheusHandle,
        settings: &ServeSettings,
        document: Document,
    ) -> Self {
        let Background {
            tasks,
            wake,
            stop,
            feed_head,
            callbacks,
            sends_mail,
        } = background;
        Self(Arc::new(Shared {
            probes: pool.reserved(""),
            intake: Intake::start(&pool, Arc::clone(&wake)),
            links: LinkReader::start(&pool),
            pool,
            accounts,
            tasks,
            metrics,
            recent: Recent::new(Instant::now()),
            wake,
            stop,
            feed_head,
            callbacks,
            sends_mail,
            limits: settings.jobs.limits(),
            books: settings.books.clone(),
            personal_metadata: settings.privacy.personal_metadata.clone(),
            request_timeout: settings.request_timeout,
            calls: Arc::new(Semaphore::new(settings.max_creations.into())),
            readers: Semaphore::new(settings.max_readers.into()),
            max_readers: settings.max_readers,
            feed_reads: Semaphore::new(settings.database.feed_reads()),
            keys: KnownKeys::default(),
            rates: Rates::new(settings.client_rate),
            page_rate: PageRate::new(settings.page_rate),
            short_url_base: settings.short_url_base.as_deref().map(Arc::from),
            anonymous: Arc::default(),
            schemas: RequestSchemas::of(document),
            document,
        }))
    }

    /// What is wrong with a request for an email if this service can't send any.
    pub(crate) fn mail_fault(&self, pointer: &str) -> Option<Fault> {
        (!self.sends_mail).then(|| {
            Fault::new(
                pointer,
                "is not possible, because this service is not set up to send emails (SMTP_URL)",
            )
        })
    }

    /// Tells the background jobs that something has just become due.
    pub(crate) fn wake_jobs(&self) {
        self.wake.notify_waiters();
    }

    /// The account with this name. The request's log lines carry it from here on.
    pub(crate) fn account(&self, name: &str) -> Option<&Account> {
        let account = self.accounts.get(name)?;
        tracing::Span::current().record("account", &account.name);
        Some(account)
    }

    /// The account that takes a link's money. It may no longer be configured.
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
            personal_metadata: self.personal_metadata.clone(),
            wake: Arc::clone(&self.wake),
        }
    }

    /// Forgets what is no longer needed, logs the counts that are due, and remembers the counters. Call it every few seconds.
    pub fn upkeep(&self) {
        self.keys.forget_old();
        self.rates.forget_idle();
        let now = Instant::now();
        self.anonymous.report(now);
        self.recent.remember(now, || self.metrics.render());
        let free = u16::try_from(self.readers.available_permits()).unwrap_or(u16::MAX);
        metrics::gauge!("feed_waiting_readers").set(self.max_readers.saturating_sub(free));
    }

    /// Logs the remaining counts. Call it after the last request.
    pub fn finish(&self) {
        self.anonymous.report_all();
    }

    /// Counts a creation, an operation or a refresh as in progress until the permit is dropped. Fails if there are too
    /// many.
    pub(crate) fn reserve_call(&self) -> Result<OwnedSemaphorePermit, Error> {
        Arc::clone(&self.calls)
            .try_acquire_owned()
            .map_err(|_| Error::Overloaded)
    }

    /// Counts a request as waiting for events until the permit is dropped. Fails if there are too many.
    pub(crate) fn reserve_reader(&self) -> Result<SemaphorePermit<'_>, Error> {
        self.readers
            .try_acquire()
            .map_err(|_| Error::TooManyReaders)
    }

    /// The position of the newest event in the feed that this replica knows of. Whatever it reads afterwards contains that event.
    pub(crate) fn feed_position(&self) -> i64 {
        *self.feed_head.borrow()
    }

    /// How long a request that began then may go on. Waiting longer would cut it off without its outcome.
    pub(crate) fn time_left(&self, begun: Instant) -> Duration {
        self.request_timeout.saturating_sub(begun.elapsed())
    }

    /// Runs work about `subject` in a task of its own. A caller that disconnects, or the time limit, must not interrupt it
    /// between saving the request, calling Dojo, and saving the response.
    pub(crate) async fn run_to_completion<T: Send + 'static>(
        &self,
        subject: impl FnOnce() -> Subject,
        work: impl Future<Output = Result<T, Error>> + Send + 'static,
    ) -> Result<T, Error> {
        let permit = self.reserve_call()?;
        let work = async move {
            let _permit = permit;
            work.await
        };
        let work = self.tasks.spawn(trace::continuing(work).in_current_span());
        match tokio::time::timeout(self.request_timeout, work).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(_)) | Err(_) => Err(Error::OutcomeUnknown(subject())),
        }
    }
}
