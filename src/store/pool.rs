//! Connections to Postgres with a deadline for every wait.
//!
//! sqlx waits for the server without a limit. When a firewall or a proxy drops what is sent on open connections, or the
//! server freezes, one connection after the other would hang until none is left. TCP doesn't notice if the proxy acknowledges
//! every byte, and sqlx gives no access to the socket's options anyway. So a connection that misses a deadline here is closed
//! and never used again.
//!
//! The pool is deadpool's. sqlx's own pool tests a connection with a round trip whenever a statement returns it, which
//! nearly doubles what a short statement costs.

use std::{
    io,
    ops::{Deref, DerefMut},
    str::FromStr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use deadpool::managed::{self, Metrics, Object, PoolError, QueueMode, RecycleError, RecycleResult};
use futures_util::{
    FutureExt, StreamExt, TryStreamExt,
    future::BoxFuture,
    stream::{self, BoxStream},
};
use secrecy::ExposeSecret;
use sqlx::{
    ConnectOptions, Connection as _, Describe, Either, Execute, Executor, PgConnection, Postgres,
    SqlStr,
    migrate::MigrateError,
    postgres::{
        PgConnectOptions, PgDatabaseError, PgQueryResult, PgRow, PgSeverity, PgStatement,
        PgTypeInfo,
    },
};
use tokio::{
    runtime::Handle,
    time::{error::Elapsed, sleep, timeout},
};
use tracing::warn;

use super::diagnosis::{Diagnosis, Place};
use crate::config::{ConfigError, DatabaseSettings};

/// How long Postgres may take to respond to a statement that does nothing.
const PING: Duration = Duration::from_secs(1);

/// How old a connection gets, and how long one stays open without use.
const LIFETIME: Duration = Duration::from_mins(30);
const IDLE: Duration = Duration::from_mins(10);

/// How much longer to wait for a statement than Postgres's own limit, so that Postgres's error arrives if there is one.
const GRACE: Duration = Duration::from_secs(2);

/// How long a statement waits for a lock. Shorter than [`IDLE_IN_TRANSACTION`]: while a frozen replica has a lock, requests
/// that wait for it return their connections early and are tried again.
const LOCK_TIMEOUT: Duration = Duration::from_secs(3);

/// How long a session may be idle in the middle of a transaction before Postgres ends it. No transaction here waits for
/// anything except Postgres, so such a session belongs to a replica that was frozen or cut off.
const IDLE_IN_TRANSACTION: Duration = Duration::from_secs(5);

/// A pool of connections, which connects only when it is first used.
///
/// Use it like sqlx's own pool: each statement that runs on `&PgPool` takes a connection for itself, and [`Self::begin`]
/// begins a transaction.
#[derive(Debug, Clone)]
pub struct PgPool {
    connections: managed::Pool<Connector>,
    options: Arc<PgConnectOptions>,
    place: Arc<Place>,
    discarded: Discarded,
    /// The settings of each session, as statements.
    session: String,
    statement_timeout: Duration,
    acquire_timeout: Duration,
}

/// When all open connections were last discarded. Those that were opened before are not used again: one of them turned out
/// to be dead, or to lead to a read-only server, and the others most likely are the same.
#[derive(Debug, Clone, Default)]
struct Discarded {
    at: Arc<Mutex<Option<Instant>>>,
    /// Whether the server was found read-only, and not writable since.
    read_only: Arc<AtomicBool>,
}

impl Discarded {
    /// Discards every connection that is open now.
    fn discard_all(&self, reason: &'static str) {
        metrics::counter!("database_connections_discarded_total", "reason" => reason).increment(1);
        // A time can't be half changed.
        *self.at.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    /// Discards every open connection, because the server is read-only. The same address may lead to the primary by now.
    ///
    /// While the server stays read-only, every write finds out anew. So this does nothing within a second of the last time:
    /// opening connections costs the server more than rejecting writes. Returns whether it did.
    fn discard_read_only(&self) -> bool {
        const PAUSE: Duration = Duration::from_secs(1);
        self.read_only.store(true, Ordering::Relaxed);
        let last = *self.at.lock().unwrap_or_else(PoisonError::into_inner);
        if last.is_some_and(|last| last.elapsed() < PAUSE) {
            return false;
        }
        warn!("the database is read-only; closing all connections to it");
        self.discard_all("read_only");
        true
    }

    /// Whether a connection that was opened this long ago has been discarded.
    fn includes(&self, age: Duration) -> bool {
        let until = *self.at.lock().unwrap_or_else(PoisonError::into_inner);
        until.is_some_and(|until| age >= until.elapsed())
    }
}

/// Opens connections, and decides whether one that was used before is used again.
#[derive(Debug)]
struct Connector {
    options: Arc<PgConnectOptions>,
    /// The settings of each session, as statements.
    session: String,
    discarded: Discarded,
}

impl Connector {
    /// A pool that opens no connection before it is first used. `max_connections` is at least 1.
    fn pool(self, max_connections: u32) -> managed::Pool<Self> {
        managed::Pool::builder(self)
            .max_size(usize::try_from(max_connections).unwrap_or(usize::MAX))
            // Those that aren't needed become idle.
            .queue_mode(QueueMode::Lifo)
            .build()
            .expect("only timeouts need a runtime, and this pool has none of its own")
    }
}

impl managed::Manager for Connector {
    type Type = PgConnection;
    type Error = sqlx::Error;

    async fn create(&self) -> Result<PgConnection, sqlx::Error> {
        // Rarely needed, so it takes no space in the future of every statement.
        let connect = async {
            let mut connection = self.options.connect().await?;
            let session = sqlx::AssertSqlSafe(self.session.clone());
            connection.execute(session).await?;
            Ok(connection)
        };
        connect.boxed().await
    }

    async fn recycle(
        &self,
        connection: &mut PgConnection,
        used: &Metrics,
    ) -> RecycleResult<sqlx::Error> {
        if self.discarded.includes(used.age()) || used.age() > LIFETIME {
            return Err(RecycleError::message("discarded"));
        }
        // A connection that was used a moment ago counts as alive: testing it would double the round trips of every
        // request.
        if used.last_used() > Duration::from_secs(1) {
            let ping = timeout(PING, connection.ping()).boxed();
            ping.await.unwrap_or_else(|_| {
                self.discarded.discard_all("silent");
                Err(silent(PING))
            })?;
        }
        Ok(())
    }
}

impl PgPool {
    /// A pool for this database.
    pub fn new(settings: &DatabaseSettings) -> Result<Self, ConfigError> {
        Self::with_session(settings, IDLE_IN_TRANSACTION)
    }

    /// A pool for a service whose shortest lease is this long.
    ///
    /// A replica that freezes in the middle of a transaction keeps its row locks. They must be released before its lease
    /// expires, because the replica that claims its work next would wait for them.
    pub fn for_leases(
        settings: &DatabaseSettings,
        shortest: Duration,
    ) -> Result<Self, ConfigError> {
        Self::with_session(settings, IDLE_IN_TRANSACTION.min(shortest / 2))
    }

    fn with_session(
        settings: &DatabaseSettings,
        idle_in_transaction: Duration,
    ) -> Result<Self, ConfigError> {
        const FORM: &str = "is not of the form postgres://user:password@host:port/name";
        let url = settings.url()?;
        let url = url.expose_secret();
        // The parser accepts any scheme.
        if !url.starts_with("postgres://") && !url.starts_with("postgresql://") {
            return Err(ConfigError::new("DATABASE_URL", FORM));
        }
        let options = PgConnectOptions::from_str(url)
            // The error may contain the address, and with it the password.
            .map_err(|_| ConfigError::new("DATABASE_URL", FORM))?
            .application_name(env!("CARGO_PKG_NAME"))
            .log_slow_statements(log::LevelFilter::Warn, Duration::from_secs(1));
        let place = Place::new(&options, settings.url_setting());
        let discarded = Discarded::default();
        let session = session(settings.database_statement_timeout, idle_in_transaction);
        let options = Arc::new(options);
        let connector = Connector {
            options: Arc::clone(&options),
            session: session.clone(),
            discarded: discarded.clone(),
        };
        Ok(Self {
            connections: connector.pool(settings.database_max_connections),
            options,
            place: Arc::new(place),
            discarded,
            session,
            statement_timeout: settings.database_statement_timeout,
            acquire_timeout: settings.database_acquire_timeout,
        })
    }

    /// A pool for the same database with a single connection of its own, for statements that must not wait behind requests.
    /// Its sessions have the usual settings and then these.
    #[must_use]
    pub fn reserved(&self, settings: &str) -> Self {
        let connector = Connector {
            options: Arc::clone(&self.options),
            session: self.session.clone() + settings,
            discarded: self.discarded.clone(),
        };
        Self {
            session: connector.session.clone(),
            connections: connector.pool(1),
            ..self.clone()
        }
    }

    /// How to connect to the same database, for a connection that does nothing but listen.
    pub(super) fn options(&self) -> PgConnectOptions {
        PgConnectOptions::clone(&self.options)
    }

    /// How long to wait for a connection.
    pub(super) fn acquire_timeout(&self) -> Duration {
        self.acquire_timeout
    }

    /// Begins a transaction. It is rolled back unless it is committed.
    pub async fn begin(&self) -> Result<PgTransaction, sqlx::Error> {
        let mut transaction = PgTransaction {
            connection: self.acquire().await?,
            open: true,
        };
        transaction.connection.execute("BEGIN").await?;
        Ok(transaction)
    }

    /// Closes each connection, those in use as soon as they have been returned.
    pub fn close(&self) {
        self.connections.close();
    }

    /// What is wrong, with which database, and what to do about it.
    #[must_use]
    pub fn diagnose(&self, error: &super::Error) -> Diagnosis {
        self.place.diagnose(error)
    }

    /// What is wrong with the migrations, on which database, and what to do about it.
    pub(super) fn diagnose_migration(&self, error: &MigrateError) -> Diagnosis {
        self.place.diagnose_migration(error)
    }

    /// Connects once, so that a wrong address or password is reported at the start and as what it is. The pool would only
    /// report that no connection was free in time. Waits for a server that is starting for as long as a statement would
    /// wait for a connection.
    pub async fn probe(&self) -> Result<(), Diagnosis> {
        self.connect("").await.map(drop)
    }

    /// A connection outside the pool, with the usual settings of a session and then these.
    pub(super) async fn connect(&self, settings: &str) -> Result<PgConnection, Diagnosis> {
        let session = self.session.clone() + settings;
        let deadline = Instant::now() + self.acquire_timeout;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let connecting = async {
                let mut connection = self.options.connect().await?;
                connection
                    .execute(sqlx::AssertSqlSafe(session.clone()))
                    .await?;
                Ok(connection)
            };
            let error = match timeout(left, connecting).await {
                Ok(Ok(connection)) => return Ok(connection),
                Ok(Err(error)) => error,
                Err(_) => silent(self.acquire_timeout),
            };
            let pause = Duration::from_millis(200);
            if !is_passing(&error) || deadline < Instant::now() + pause {
                return Err(self.place.diagnose(&error.into()));
            }
            sleep(pause).await;
        }
    }

    /// Discards every open connection, because the server is read-only, unless that happened a moment ago.
    pub(super) fn discard_read_only(&self) {
        self.discarded.discard_read_only();
    }

    /// Notes that the server is writable. If it was read-only before, discards the connections that were opened for reading
    /// meanwhile: they lead to the standby, and the first write on each would fail.
    pub(super) fn found_writable(&self) {
        if self.discarded.read_only.swap(false, Ordering::Relaxed) {
            self.discarded.discard_all("read_only");
        }
    }

    /// Updates the metrics that show how much of the pool is in use, and closes connections that haven't been used for long.
    pub fn report(&self) {
        self.connections.retain(|_, used| used.last_used() < IDLE);
        let pool = self.connections.status();
        // A pool has far fewer connections than could make this inexact.
        #[expect(clippy::cast_precision_loss)]
        let count = |connections: usize| connections as f64;
        metrics::gauge!("database_connections", "state" => "idle").set(count(pool.available));
        metrics::gauge!("database_connections", "state" => "used")
            .set(count(pool.size.saturating_sub(pool.available)));
        metrics::gauge!("database_connections_max").set(count(pool.max_size));
    }

    async fn acquire(&self) -> Result<Connection, sqlx::Error> {
        let start = Instant::now();
        let acquired = timeout(self.acquire_timeout, self.open())
            .await
            .unwrap_or(Err(sqlx::Error::PoolTimedOut));
        metrics::histogram!("database_acquire_duration_seconds").record(start.elapsed());
        if matches!(acquired, Err(sqlx::Error::PoolTimedOut)) {
            metrics::counter!("database_acquire_timeouts_total").increment(1);
        }
        Ok(Connection {
            pooled: Some(Pooled(Some(acquired?))),
            began: None,
            discarded: self.discarded.clone(),
            limit: self.statement_timeout + GRACE,
        })
    }

    /// Waits for a connection without a limit.
    async fn open(&self) -> Result<Object<Connector>, sqlx::Error> {
        let mut pause = Duration::from_millis(10);
        loop {
            match self.connections.get().await {
                Ok(connection) => return Ok(connection),
                Err(PoolError::Backend(error)) if is_passing(&error) => sleep(pause).await,
                Err(PoolError::Backend(error)) => return Err(error),
                Err(_) => return Err(sqlx::Error::PoolClosed),
            }
            pause = (pause * 2).min(Duration::from_millis(500));
        }
    }
}

/// The settings of each session, as statements.
fn session(statement_timeout: Duration, idle_in_transaction: Duration) -> String {
    let lock = LOCK_TIMEOUT.min(statement_timeout);
    format!(
        "SET statement_timeout = {};
         SET lock_timeout = {};
         SET idle_in_transaction_session_timeout = {};
         -- For a replica that is cut off, or frozen and not reading its results.
         SET tcp_user_timeout = 10000;
         SET tcp_keepalives_idle = 10;
         SET tcp_keepalives_interval = 5;
         SET tcp_keepalives_count = 3;
         -- The statements rely on it.
         SET default_transaction_isolation = 'read committed';
         -- They are short. With a wrong estimate, such as before tables are analyzed, compiling one would take seconds.
         SET jit = off;
         -- Whatever is acknowledged is on disk, here and on every synchronous standby, regardless of the defaults of
         -- the server, the database and the role. Only remote_apply promises more.
         SELECT set_config('synchronous_commit', 'on', false)
         WHERE current_setting('synchronous_commit') <> 'remote_apply';",
        statement_timeout.as_millis(),
        lock.as_millis(),
        // 0 would mean no limit.
        idle_in_transaction.as_millis().max(1),
    )
}

/// Whether a failure to connect may be over in a moment: nothing listens yet, or the server or a proxy in front of it is
/// starting, or has no connection left.
fn is_passing(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(_) => true,
        sqlx::Error::Database(error) => {
            matches!(error.code().as_deref(), Some("57P03" | "53300"))
        }
        _ => false,
    }
}

/// Whether the session is over after this error.
fn ends_session(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(_) | sqlx::Error::Tls(_) | sqlx::Error::Protocol(_) => true,
        sqlx::Error::Database(error) => {
            let error = error.try_downcast_ref::<PgDatabaseError>();
            error.is_some_and(|error| {
                matches!(error.severity(), PgSeverity::Fatal | PgSeverity::Panic)
            })
        }
        _ => false,
    }
}

fn silent(limit: Duration) -> sqlx::Error {
    io::Error::new(
        io::ErrorKind::TimedOut,
        format!("no response within {} s", limit.as_secs_f64()),
    )
    .into()
}

/// Runs each statement on a connection of its own.
impl<'p> Executor<'p> for &PgPool {
    type Database = Postgres;

    fn fetch_many<'e, 'q: 'e, E>(
        self,
        query: E,
    ) -> BoxStream<'e, Result<Either<PgQueryResult, PgRow>, sqlx::Error>>
    where
        'p: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        let pool = self.clone();
        as_stream(async move { pool.acquire().await?.all(query).await })
    }

    fn fetch_optional<'e, 'q: 'e, E>(
        self,
        query: E,
    ) -> BoxFuture<'e, Result<Option<PgRow>, sqlx::Error>>
    where
        'p: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        let pool = self.clone();
        async move { pool.acquire().await?.first(query).await }.boxed()
    }

    fn prepare_with<'e>(
        self,
        sql: SqlStr,
        parameters: &'e [PgTypeInfo],
    ) -> BoxFuture<'e, Result<PgStatement, sqlx::Error>>
    where
        'p: 'e,
    {
        let pool = self.clone();
        async move { pool.acquire().await?.prepare(sql, parameters).await }.boxed()
    }

    fn describe<'e>(self, sql: SqlStr) -> BoxFuture<'e, Result<Describe<Postgres>, sqlx::Error>>
    where
        'p: 'e,
    {
        let pool = self.clone();
        async move { pool.acquire().await?.explain(sql).await }.boxed()
    }
}

/// A connection from the pool. Dropping it returns it.
#[derive(Debug)]
pub struct Connection {
    /// `None` once it is closed.
    pooled: Option<Pooled>,
    /// When the statement began that hasn't ended yet. If the connection is dropped then, nobody needs the statement's result.
    began: Option<Instant>,
    discarded: Discarded,
    limit: Duration,
}

impl Connection {
    async fn all<'q, E>(
        &mut self,
        query: E,
    ) -> Result<Vec<Either<PgQueryResult, PgRow>>, sqlx::Error>
    where
        E: 'q + Execute<'q, Postgres>,
    {
        let limit = self.limit;
        let rows = self.start()?.fetch_many(query).try_collect();
        let outcome = timeout(limit, rows).await;
        self.finish(outcome)
    }

    async fn first<'q, E>(&mut self, query: E) -> Result<Option<PgRow>, sqlx::Error>
    where
        E: 'q + Execute<'q, Postgres>,
    {
        let limit = self.limit;
        let outcome = timeout(limit, self.start()?.fetch_optional(query)).await;
        self.finish(outcome)
    }

    async fn prepare(
        &mut self,
        sql: SqlStr,
        parameters: &[PgTypeInfo],
    ) -> Result<PgStatement, sqlx::Error> {
        let limit = self.limit;
        let outcome = timeout(limit, self.start()?.prepare_with(sql, parameters)).await;
        self.finish(outcome)
    }

    async fn explain(&mut self, sql: SqlStr) -> Result<Describe<Postgres>, sqlx::Error> {
        let limit = self.limit;
        let outcome = timeout(limit, self.start()?.describe(sql)).await;
        self.finish(outcome)
    }

    fn start(&mut self) -> Result<&mut PgConnection, sqlx::Error> {
        let pooled = self.pooled.as_mut();
        let connection = pooled.and_then(|pooled| pooled.0.as_deref_mut());
        let connection = connection.ok_or_else(|| {
            io::Error::new(io::ErrorKind::NotConnected, "the connection was closed")
        })?;
        self.began = Some(Instant::now());
        Ok(connection)
    }

    fn finish<T>(
        &mut self,
        outcome: Result<Result<T, sqlx::Error>, Elapsed>,
    ) -> Result<T, sqlx::Error> {
        let result = outcome.unwrap_or_else(|_| {
            warn!(
                seconds = self.limit.as_secs_f64(),
                "a connection to the database went silent; closing it and all others"
            );
            self.discarded.discard_all("silent");
            Err(silent(self.limit))
        });
        self.began = None;
        let is_broken = result.as_ref().is_err_and(ends_session);
        // The server has become a standby, or always was one.
        let is_read_only = matches!(
            &result,
            Err(sqlx::Error::Database(error)) if error.code().as_deref() == Some("25006")
        );
        if is_broken || (is_read_only && self.discarded.discard_read_only()) {
            self.pooled = None;
        }
        result
    }

    /// Rolls a transaction back, then returns the connection to the pool.
    fn roll_back(&mut self) {
        if self.began.is_some() {
            return;
        }
        let Some(mut pooled) = self.pooled.take() else {
            return;
        };
        let discarded = self.discarded.clone();
        // Outside the runtime it is just closed.
        if let Ok(runtime) = Handle::try_current() {
            runtime.spawn(async move {
                let Some(connection) = pooled.0.as_deref_mut() else {
                    return;
                };
                match timeout(PING, connection.execute("ROLLBACK")).await {
                    Ok(Ok(_)) => pooled.return_to_pool(),
                    Ok(Err(_)) => {}
                    Err(_) => discarded.discard_all("silent"),
                }
            });
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        let Some(pooled) = self.pooled.take() else {
            return;
        };
        match self.began {
            None => pooled.return_to_pool(),
            Some(began) => pooled.close_after_statement(self.limit.saturating_sub(began.elapsed())),
        }
    }
}

impl<'c> Executor<'c> for &'c mut Connection {
    type Database = Postgres;

    fn fetch_many<'e, 'q: 'e, E>(
        self,
        query: E,
    ) -> BoxStream<'e, Result<Either<PgQueryResult, PgRow>, sqlx::Error>>
    where
        'c: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        as_stream(self.all(query))
    }

    fn fetch_optional<'e, 'q: 'e, E>(
        self,
        query: E,
    ) -> BoxFuture<'e, Result<Option<PgRow>, sqlx::Error>>
    where
        'c: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        self.first(query).boxed()
    }

    fn prepare_with<'e>(
        self,
        sql: SqlStr,
        parameters: &'e [PgTypeInfo],
    ) -> BoxFuture<'e, Result<PgStatement, sqlx::Error>>
    where
        'c: 'e,
    {
        self.prepare(sql, parameters).boxed()
    }

    fn describe<'e>(self, sql: SqlStr) -> BoxFuture<'e, Result<Describe<Postgres>, sqlx::Error>>
    where
        'c: 'e,
    {
        self.explain(sql).boxed()
    }
}

/// A statement's results in the form that sqlx expects. They are read as a whole, within one deadline. No statement here has
/// more than fit into memory.
fn as_stream<'e, T: Send + 'e>(
    results: impl Future<Output = Result<Vec<T>, sqlx::Error>> + Send + 'e,
) -> BoxStream<'e, Result<T, sqlx::Error>> {
    stream::once(results)
        .map(|results| results.map(|results| stream::iter(results.into_iter().map(Ok))))
        .try_flatten()
        .boxed()
}

/// A connection of the pool. Dropping it closes it and frees its place in the pool.
#[derive(Debug)]
struct Pooled(Option<Object<Connector>>);

impl Pooled {
    fn return_to_pool(mut self) {
        drop(self.0.take());
    }

    /// Closes the connection once its statement has ended, but no later than after `limit`.
    ///
    /// Postgres doesn't notice that a connection is closed while it works on a statement or waits for a lock. So until then the
    /// connection keeps its place in the pool. Otherwise callers that give up and try again would open more and more sessions.
    fn close_after_statement(mut self, limit: Duration) {
        if let Ok(runtime) = Handle::try_current() {
            runtime.spawn(async move {
                if let Some(connection) = self.0.as_deref_mut() {
                    let _ = timeout(limit, connection.ping()).await;
                }
            });
        }
    }
}

impl Drop for Pooled {
    fn drop(&mut self) {
        drop(self.0.take().map(Object::take));
    }
}

/// A transaction. Dropping it rolls it back unless it has been committed.
#[derive(Debug)]
pub struct PgTransaction {
    connection: Connection,
    open: bool,
}

impl PgTransaction {
    /// Commits the transaction. After an `Err` it may or may not be committed.
    pub async fn commit(mut self) -> Result<(), sqlx::Error> {
        self.connection.execute("COMMIT").await?;
        self.open = false;
        Ok(())
    }
}

impl Deref for PgTransaction {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        &self.connection
    }
}

impl DerefMut for PgTransaction {
    fn deref_mut(&mut self) -> &mut Connection {
        &mut self.connection
    }
}

impl Drop for PgTransaction {
    fn drop(&mut self) {
        if self.open {
            self.connection.roll_back();
        }
    }
}
