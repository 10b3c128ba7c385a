//! The service as a whole: put together once, run until it is told to stop.

use std::{
    future::Future,
    io,
    net::SocketAddr,
    sync::{Arc, OnceLock},
    time::Duration,
};

use axum_server::Handle;
use hyper_util::rt::TokioTimer;
use tokio::{
    sync::Notify,
    time::{Instant, timeout_at},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{debug, info, warn};

use crate::{
    api::{self, AppState, auth},
    config::{ConfigError, ServeSettings},
    dojo::Accounts,
    jobs::Jobs,
    payment_link::Environment,
    protocol::Context,
    store::{self, Diagnosis, PgPool, api_keys::Conflict},
    telemetry,
};

/// How long a client may take to send a request's head.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// How large a request's head may be, in bytes, and how many headers it may have.
const HEADER_BYTES: usize = 32 * 1024;
const HEADERS: usize = 64;

/// The service, ready to run.
pub struct Application {
    listener: std::net::TcpListener,
    router: axum::Router,
    pool: PgPool,
    tasks: TaskTracker,
    stop_jobs: CancellationToken,
    state: AppState,
    shutdown_timeout: Duration,
}

/// Why the service did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A setting is missing or wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The address cannot be listened on.
    #[error("cannot listen on {address}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why not.
        source: io::Error,
    },
    /// The database cannot be used.
    #[error(transparent)]
    Database(#[from] Diagnosis),
    /// The metrics cannot be set up.
    #[error("the metrics cannot be set up")]
    Metrics(#[from] metrics_exporter_prometheus::BuildError),
}

impl Application {
    /// Checks the settings, brings the database up to date, and takes the address.
    pub async fn build(settings: &ServeSettings) -> Result<Self, StartError> {
        let accounts = Accounts::from_settings(&settings.dojo)?;
        let environment = accounts.environment();
        telemetry::name_environment(environment);
        let bootstrap_key = settings
            .bootstrap_api_key()?
            .as_ref()
            .map(auth::bootstrap_key_hash)
            .transpose()?;
        for account in accounts.iter() {
            if account.webhook_secrets.is_empty() {
                warn!(
                    account = account.name,
                    "the account has no webhook secrets: every webhook of it will be refused"
                );
            }
        }
        let pool = PgPool::new(&settings.database)?;
        if settings.migrate_on_start {
            store::migrate(&pool).await?;
        }
        // Where others migrate, the service starts without its database as well; it is not ready then.
        let claimed = match store::deployment::claim(&pool, environment).await {
            Err(error) if !settings.migrate_on_start && error.is_outage() => {
                warn!(error = %pool.diagnose(&error), "the service is not ready");
                None
            }
            held => Some(held.map_err(|error| pool.diagnose(&error))?),
        };
        let held = claimed.unwrap_or(environment);
        if held != environment {
            return Err(ConfigError::new(
                settings.dojo.api_key_setting(),
                format!(
                    "is for {}, and the database holds links of {}; each needs one of its own",
                    environment.as_str(),
                    held.as_str()
                ),
            )
            .into());
        }
        warn_of_unconfigured_accounts(&pool, &accounts).await;
        if let Some(hash) = bootstrap_key {
            let scopes = auth::Scope::ALL.map(|scope| scope.as_str().to_owned());
            let replaced = store::api_keys::replace(&pool, "bootstrap", &hash, &scopes).await;
            let replaced = replaced.map_err(|error| pool.diagnose(&error))?;
            replaced.map_err(|conflict| {
                ConfigError::new(
                    "BOOTSTRAP_API_KEY",
                    match conflict {
                        Conflict::OtherClient => "is the key of another client",
                        Conflict::Revoked => {
                            "is a key that was revoked or has expired, which is for good"
                        }
                    },
                )
            })?;
        }

        let tasks = TaskTracker::new();
        let metrics = telemetry::init_metrics()?;
        let (wake, stop_jobs) = (Arc::new(Notify::new()), CancellationToken::new());
        if claimed.is_none() {
            tasks.spawn(claim_later(pool.clone(), environment, stop_jobs.clone()));
        }
        if settings.jobs.run_jobs {
            for account in accounts.iter() {
                let context = Context {
                    pool: pool.clone(),
                    account: account.clone(),
                    limits: settings.jobs.limits(),
                    wake: Arc::clone(&wake),
                };
                Jobs::new(context, settings.jobs.clone(), stop_jobs.clone()).spawn(&tasks);
            }
        }
        let state = AppState::new(
            pool.clone(),
            accounts,
            tasks.clone(),
            metrics,
            wake,
            settings,
        );
        let router = api::router(state.clone());

        let address = settings.listen_addr;
        let listener = listen(address).map_err(|source| StartError::Listen { address, source })?;
        let address = listener.local_addr().unwrap_or(address);
        info!(%address, version = env!("CARGO_PKG_VERSION"), "listening");
        Ok(Self {
            listener,
            router,
            pool,
            tasks,
            stop_jobs,
            state,
            shutdown_timeout: settings.shutdown_timeout,
        })
    }

    /// Serves until `stop` resolves; then stops accepting, finishes what is in flight, and returns, all
    /// within the shutdown timeout.
    pub async fn run(self, stop: impl Future<Output = ()> + Send + 'static) -> io::Result<()> {
        let handle = Handle::new();
        let stopping_since = Arc::new(OnceLock::new());
        let stopper = tokio::spawn({
            let (handle, stop_jobs) = (handle.clone(), self.stop_jobs.clone());
            let (limit, since) = (self.shutdown_timeout, Arc::clone(&stopping_since));
            async move {
                stop.await;
                let _ = since.set(Instant::now());
                info!("stopping: what is in flight is finished");
                stop_jobs.cancel();
                handle.graceful_shutdown(Some(limit));
            }
        });
        let upkeep = tokio::spawn(upkeep(self.state.clone()));

        // HTTP/1 alone: with both, a connection that sends nothing waits for ever to be told apart.
        let mut server = axum_server::from_tcp(self.listener)?
            .handle(handle)
            .http1_only();
        server
            .http_builder()
            .http1()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADER_TIMEOUT)
            .max_buf_size(HEADER_BYTES)
            .max_headers(HEADERS);
        let result = server.serve(self.router.into_make_service()).await;

        // Work whose caller is gone may still be waiting for Dojo. All of the leave-taking shares one limit.
        let deadline =
            stopping_since.get().copied().unwrap_or_else(Instant::now) + self.shutdown_timeout;
        self.tasks.close();
        if timeout_at(deadline, self.tasks.wait()).await.is_err() {
            warn!(tasks = self.tasks.len(), "stopped before all work was done");
        }
        let _ = timeout_at(deadline, self.pool.close()).await;
        stopper.abort();
        upkeep.abort();
        self.state.finish();
        info!("stopped");
        result
    }
}

/// Says what the database is for as soon as it can be said: before that no link can be saved, and `/readyz`, which
/// writes nothing, does not say that the service is ready.
async fn claim_later(pool: PgPool, environment: Environment, stop: CancellationToken) {
    while store::deployment::claim(&pool, environment).await.is_err() {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(Duration::from_secs(1)) => {}
        }
    }
}

/// Tells of links that can still change and whose account is configured no longer: nothing works on them.
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
                    "the account is configured no longer; its links are not kept in step with Dojo"
                );
            }
        }
        // It is only a warning, and what else needs the database says that it is not there.
        Err(error) => debug!(error = %telemetry::causes(&error), "no accounts were compared"),
    }
}

/// Takes the address at once, so that a wrong one stops the start.
fn listen(address: SocketAddr) -> io::Result<std::net::TcpListener> {
    let listener = std::net::TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Folds what was measured, which would grow without end where nobody scrapes it, and sees to what requests leave behind.
async fn upkeep(state: AppState) {
    let mut ticks = tokio::time::interval(Duration::from_secs(5));
    loop {
        ticks.tick().await;
        state.metrics.run_upkeep();
        state.upkeep();
    }
}

/// Resolves when the process is told to stop: SIGTERM from an orchestrator, Ctrl-C from a person.
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
