//! The service as a whole: built once, then run until it receives a signal to stop.

use std::{
    future::Future,
    io,
    net::SocketAddr,
    sync::{Arc, OnceLock},
    time::Duration,
};

use axum_server::Handle;
use futures_util::future::try_join_all;
use hyper_util::rt::TokioTimer;
use time::format_description::well_known::Rfc3339;
use tokio::{
    sync::Notify,
    time::{Instant, timeout_at},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{debug, error, info, warn};

use crate::{
    api::{self, AppState, Background},
    api_key::{ApiKey, Scope},
    config::{BookSettings, ConfigError, ServeSettings},
    console,
    dojo::Accounts,
    jobs::{
        Books, Callbacks, Follower, Heartbeat, Jobs, Pruning, RESTART_PAUSE, Sequencer, supervise,
    },
    mail::Mailer,
    payment_link::Environment,
    protocol::Context,
    store::{self, Diagnosis, PgPool, api_keys::Conflict},
    telemetry::{self, export::Exporter},
};

/// How long a client may take to send the request line and headers.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// The maximum size of the request line and headers in bytes, and the maximum number of headers.
const HEADER_BYTES: usize = 32 * 1024;
const HEADERS: usize = 64;

/// The service, ready to run.
pub struct Application {
    /// What is served on each address.
    servers: Vec<(std::net::TcpListener, axum::Router)>,
    pool: PgPool,
    tasks: TaskTracker,
    stop_jobs: CancellationToken,
    state: AppState,
    /// `None` if no spans are exported.
    exporter: Option<Exporter>,
    shutdown_timeout: Duration,
}

/// Why the service did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The service cannot listen on the address.
    #[error("{setting} {address} {}", cannot_listen(error))]
    Listen {
        /// The setting that contains the address.
        setting: &'static str,
        address: SocketAddr,
        /// Why not. Not named `source`, because the message already contains it.
        error: io::Error,
    },
    #[error(transparent)]
    Database(#[from] Diagnosis),
    #[error("the metrics cannot be set up")]
    Metrics(#[from] metrics_exporter_prometheus::BuildError),
}

impl Application {
    /// Validates the settings, migrates the database, and opens the ports.
    pub async fn build(settings: &ServeSettings) -> Result<Self, StartError> {
        let mut error = ConfigError::default();
        let accounts = error.keep(Accounts::from_settings(&settings.dojo));
        let leases = accounts.iter().flat_map(Accounts::iter);
        let shortest_lease = leases.map(|account| account.client.creation_lease()).min();
        let pool = error.keep(PgPool::for_leases(
            &settings.database,
            shortest_lease.unwrap_or(Duration::MAX),
        ));
        let bootstrap_key = error.keep(settings.bootstrap_api_key());
        let addresses = error.keep(settings.check_listen_addresses());
        let mailer = error.keep(Mailer::from_settings(&settings.mail));
        let names = accounts.as_ref().map(Accounts::names);
        let proxy = error.keep(settings.console.proxy(names.as_deref()));
        let public_url = error.keep(settings.public_url.get());
        let (
            Some(accounts),
            Some(pool),
            Some(bootstrap_key),
            Some(()),
            Some(mailer),
            Some(proxy),
            Some(public_url),
        ) = (
            accounts,
            pool,
            bootstrap_key,
            addresses,
            mailer,
            proxy,
            public_url,
        )
        else {
            return Err(error.into());
        };

        let mailer = mailer.map(Arc::new);
        let environment = accounts.environment();
        telemetry::set_environment(environment.as_str());
        for account in accounts.iter() {
            if account.webhook_secrets.is_empty() {
                warn!(
                    account = account.name,
                    "the account has no webhook secrets, so every webhook will be rejected"
                );
            }
        }
        if settings.migrate_on_start {
            store::migrate(&pool).await?;
        }
        // If another process runs the migrations, the service starts even without its database, but isn't ready then.
        let claimed = match store::deployment::claim(&pool, environment).await {
            Err(error) if !settings.migrate_on_start && error.is_outage() => {
                warn!(error = %pool.diagnose(&error), "the service is not ready");
                None
            }
            stored => Some(stored.map_err(|error| pool.diagnose(&error))?),
        };
        let stored = claimed.unwrap_or(environment);
        if stored != environment {
            return Err(ConfigError::new(
                settings.dojo.api_key_setting(),
                format!(
                    "configures {}, but the database contains {} links: use a separate database for each environment",
                    environment.as_str(),
                    stored.as_str()
                ),
            )
            .into());
        }
        if claimed.is_some() {
            check_time_zone(&pool, &settings.books).await?;
        }
        warn_of_unconfigured_accounts(&pool, &accounts).await;
        if let Some(key) = bootstrap_key.as_ref().filter(|_| claimed.is_some()) {
            save_bootstrap_key(&pool, key).await?;
            warn_of_ending_bootstrap_key(&pool, key).await;
        }

        let endpoint = settings.traces.otel_exporter_otlp_endpoint.as_ref();
        let exporter = endpoint
            .map(|endpoint| Exporter::start(endpoint, environment.as_str()))
            .transpose()?;
        let tasks = TaskTracker::new();
        let metrics = telemetry::init_metrics()?;
        let (wake, stop_jobs) = (Arc::new(Notify::new()), CancellationToken::new());
        if claimed.is_none() {
            let stop = stop_jobs.clone();
            tasks.spawn(claim_later(pool.clone(), environment, bootstrap_key, stop));
        }
        if settings.jobs.run_jobs {
            for account in accounts.iter() {
                let context = Context {
                    pool: pool.clone(),
                    account: account.clone(),
                    limits: settings.jobs.limits(),
                    personal_metadata: settings.privacy.personal_metadata.clone(),
                    wake: Arc::clone(&wake),
                };
                Jobs::new(
                    context,
                    settings.jobs.clone(),
                    mailer.clone(),
                    settings.books.reconciled_days(),
                    stop_jobs.clone(),
                )
                .spawn(&tasks);
            }
            Pruning::new(
                pool.clone(),
                settings.jobs.retention.retention(),
                settings.privacy.personal_metadata.clone(),
                stop_jobs.clone(),
            )
            .spawn(&tasks);
            Sequencer::new(pool.clone(), stop_jobs.clone()).spawn(&tasks);
        }
        let feed_head = Follower::start(pool.clone(), stop_jobs.clone(), &tasks);
        let callbacks = Arc::new(settings.callbacks.client());
        if settings.jobs.run_jobs {
            Books::new(
                pool.clone(),
                settings.books.days(),
                feed_head.clone(),
                stop_jobs.clone(),
            )
            .spawn(&tasks);
            Callbacks::new(
                pool.clone(),
                Arc::clone(&callbacks),
                settings.callbacks.concurrency(),
                feed_head.clone(),
                stop_jobs.clone(),
            )
            .spawn(&tasks);
        }
        let state = AppState::new(
            pool.clone(),
            accounts,
            Background {
                tasks: tasks.clone(),
                wake,
                stop: stop_jobs.clone(),
                feed_head,
                callbacks,
                sends_mail: mailer.is_some(),
            },
            metrics,
            settings,
            api::document,
        );

        let mut servers = Vec::new();
        let router = if let Some(address) = settings.public_listen_addr {
            let (listener, address) = listen("PUBLIC_LISTEN_ADDR", address)?;
            info!(%address, "listening for webhooks");
            servers.push((listener, api::public_router(state.clone())));
            api::internal_router(state.clone())
        } else {
            api::router(state.clone())
        };
        if let Some(address) = settings.console.listen_addr {
            let (listener, address) = listen("CONSOLE_LISTEN_ADDR", address)?;
            info!(%address, "listening for the console");
            let outside = console::Outside {
                dojo_api: settings.dojo.api_url.clone(),
                public_url,
                mailer,
            };
            let (state, tasks) = (state.clone(), tasks.clone());
            let console = console::router(state, &settings.console, proxy, outside, tasks);
            servers.push((listener, console));
        }
        let (listener, address) = listen("LISTEN_ADDR", settings.listen_addr)?;
        info!(%address, version = env!("CARGO_PKG_VERSION"), "listening");
        servers.push((listener, router));
        Ok(Self {
            servers,
            pool,
            tasks,
            stop_jobs,
            state,
            exporter,
            shutdown_timeout: settings.shutdown_timeout,
        })
    }

    /// Serves requests until `stop` resolves. Then stops accepting connections, finishes the work in progress, and returns,
    /// all within the shutdown timeout.
    pub async fn run(self, stop: impl Future<Output = ()> + Send + 'static) -> io::Result<()> {
        let handles: Vec<_> = self.servers.iter().map(|_| Handle::new()).collect();
        let stopping_since = Arc::new(OnceLock::new());
        let stopper = tokio::spawn({
            let (handles, stop_jobs) = (handles.clone(), self.stop_jobs.clone());
            let (limit, since) = (self.shutdown_timeout, Arc::clone(&stopping_since));
            async move {
                stop.await;
                let _ = since.set(Instant::now());
                info!("stopping: finishing the work in progress");
                stop_jobs.cancel();
                for handle in handles {
                    handle.graceful_shutdown(Some(limit));
                }
            }
        });
        let upkeep = tokio::spawn(supervised_upkeep(
            self.state.clone(),
            self.stop_jobs.clone(),
        ));

        let servers = self.servers.into_iter().zip(handles);
        let serving = servers.map(|((listener, router), handle)| serve(listener, router, handle));
        let result = try_join_all(serving).await.map(drop);

        // Work whose caller has disconnected may still be waiting for Dojo. The whole shutdown shares one limit.
        let deadline =
            stopping_since.get().copied().unwrap_or_else(Instant::now) + self.shutdown_timeout;
        self.tasks.close();
        if timeout_at(deadline, self.tasks.wait()).await.is_err() {
            warn!(
                tasks = self.tasks.len(),
                "stopped before all work was finished"
            );
        }
        self.pool.close();
        if let Some(exporter) = self.exporter {
            let left = deadline.saturating_duration_since(Instant::now());
            exporter.finish(left).await;
        }
        stopper.abort();
        upkeep.abort();
        self.state.finish();
        info!("stopped");
        result
    }
}

/// Checks that Postgres can assign movements to business days.
async fn check_time_zone(pool: &PgPool, books: &BookSettings) -> Result<(), StartError> {
    let known = store::movements::knows_time_zone(pool, &books.days().time_zone).await;
    if known.map_err(|error| pool.diagnose(&error))? {
        Ok(())
    } else {
        Err(books.unknown_time_zone().into())
    }
}

/// Stores the client `bootstrap` with this key, in place of any earlier key.
async fn save_bootstrap_key(pool: &PgPool, key: &ApiKey) -> Result<(), StartError> {
    let scopes = Scope::ALL.map(|scope| scope.as_str().to_owned());
    let replaced = store::api_keys::replace(pool, "bootstrap", &key.hash(), &scopes).await;
    let replaced = replaced.map_err(|error| pool.diagnose(&error))?;
    replaced.map_err(|conflict| {
        let text = match conflict {
            Conflict::OtherClient => "is the key of another client: choose a new key",
            Conflict::Revoked => "was revoked or has expired: choose a new key",
        };
        ConfigError::new("BOOTSTRAP_API_KEY", text).into()
    })
}

/// Stores the environment, and the bootstrap key if there is one, in the database as soon as the database is reachable. Until
/// then no link can be saved, and `/readyz`, which writes nothing, reports that the service isn't ready.
async fn claim_later(
    pool: PgPool,
    environment: Environment,
    bootstrap_key: Option<ApiKey>,
    stop: CancellationToken,
) {
    let stored = loop {
        if let Ok(stored) = store::deployment::claim(&pool, environment).await {
            break stored;
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(Duration::from_secs(1)) => {}
        }
    };
    // A database of the other environment gets nothing from this service.
    if let Some(key) = bootstrap_key.filter(|_| stored == environment) {
        if let Err(error) = save_bootstrap_key(&pool, &key).await {
            error!(error = %telemetry::causes(&error), "the bootstrap key was not stored");
        }
        warn_of_ending_bootstrap_key(&pool, &key).await;
    }
}

/// Warns of links that can still change but whose account is no longer configured, because they aren't reconciled.
async fn warn_of_unconfigured_accounts(pool: &PgPool, accounts: &Accounts) {
    let configured: Vec<_> = accounts
        .iter()
        .map(|account| account.name.clone())
        .collect();
    match store::reconciliation::unconfigured(pool, &configured).await {
        Ok(left) => {
            for (account, links) in left {
                warn!(
                    account,
                    links,
                    "the account is no longer configured, so its links are not reconciled with Dojo"
                );
            }
        }
        // It is only a warning. If the database is unreachable, other parts report that.
        Err(error) => debug!(error = %telemetry::causes(&error), "could not compare accounts"),
    }
}

/// Warns if `BOOTSTRAP_API_KEY` is a key that has been rotated: once the key expires, the service doesn't start with it.
async fn warn_of_ending_bootstrap_key(pool: &PgPool, key: &ApiKey) {
    let key = store::api_keys::identify(pool, &key.hash())
        .await
        .ok()
        .flatten();
    let ends_at = key.and_then(|key| key.ends_at?.format(&Rfc3339).ok());
    if let Some(ends_at) = ends_at {
        warn!(
            ends_at,
            "the key in BOOTSTRAP_API_KEY has been rotated: replace it with the new one before it expires, \
             or the service will no longer start"
        );
    }
}

/// Why the service cannot listen, and what to do.
fn cannot_listen(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::AddrInUse => {
            "is in use: stop the process that listens there or choose another address".to_owned()
        }
        io::ErrorKind::AddrNotAvailable => {
            "is not an address of this machine: choose one of its own, or 0.0.0.0 for all"
                .to_owned()
        }
        io::ErrorKind::PermissionDenied => {
            "is not permitted for this user: choose a port above 1023, or grant permission to use it"
                .to_owned()
        }
        _ => format!("cannot be listened on: {error}"),
    }
}

/// Binds the address in this setting before the service runs, so that a wrong address makes the start fail. Also returns the
/// address with the port that was taken.
fn listen(
    setting: &'static str,
    address: SocketAddr,
) -> Result<(std::net::TcpListener, SocketAddr), StartError> {
    let bind = || {
        let listener = std::net::TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        Ok::<_, io::Error>((listener, address))
    };
    bind().map_err(|error| StartError::Listen {
        setting,
        address,
        error,
    })
}

/// Serves requests on one address until the handle stops it.
async fn serve(
    listener: std::net::TcpListener,
    router: axum::Router,
    handle: Handle<SocketAddr>,
) -> io::Result<()> {
    // HTTP/1 only: with HTTP/2 enabled too, a connection that sends nothing would wait forever for its version to be
    // detected.
    let mut server = axum_server::from_tcp(listener)?.handle(handle).http1_only();
    server
        .http_builder()
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(HEADER_BYTES)
        .max_headers(HEADERS);
    let service = router.into_make_service_with_connect_info::<SocketAddr>();
    server.serve(service).await
}

/// Runs [`upkeep`] until `stop` is canceled.
async fn supervised_upkeep(state: AppState, stop: CancellationToken) {
    let heartbeat = Heartbeat::default();
    let limit = Duration::from_mins(1);
    let run = || upkeep(&state, &heartbeat, &stop);
    supervise("upkeep", &heartbeat, limit, RESTART_PAUSE, &stop, run).await;
}

/// Compacts the metrics, which would grow without bound if nobody scraped them, forgets idle rate limits, and logs summaries
/// of anonymous requests.
async fn upkeep(state: &AppState, heartbeat: &Heartbeat, stop: &CancellationToken) {
    let mut ticks = tokio::time::interval(Duration::from_secs(5));
    while !stop.is_cancelled() {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = ticks.tick() => {}
        }
        heartbeat.beat();
        state.metrics.run_upkeep();
        state.upkeep();
    }
}

/// Resolves on SIGTERM or SIGINT (Ctrl-C).
pub async fn stop_signal() {
    let interrupted = tokio::signal::ctrl_c();
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        match signal(SignalKind::terminate()) {
            Ok(mut terminated) => tokio::select! {
                _ = interrupted => {}
                _ = terminated.recv() => {}
            },
            Err(_) => {
                let _ = interrupted.await;
            }
        }
    }
    #[cfg(not(unix))]
    {
        let _ = interrupted.await;
    }
}
