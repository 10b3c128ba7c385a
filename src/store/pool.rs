//! Connections to Postgres that keep nobody waiting forever.
//!
//! sqlx puts no limit on how long it waits for the server: not for a statement, and not for the check that it makes
//! when a connection goes back to its pool. When a firewall or a proxy swallows what is sent on open connections, or
//! the server freezes, each of them would be lost one after the other until none is left. TCP does not notice where
//! the proxy acknowledges every byte, and sqlx gives no access to the socket's options anyway. So every wait has a
//! deadline here, and a connection that misses it is closed and never used again.

use std::{
    io,
    ops::{Deref, DerefMut},
    str::FromStr,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

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
    pool::PoolConnection,
    postgres::{PgConnectOptions, PgPoolOptions, PgQueryResult, PgRow, PgStatement, PgTypeInfo},
};
use tokio::{
    runtime::Handle,
    time::{error::Elapsed, sleep, timeout},
};
use tracing::warn;

use super::diagnosis::{Diagnosis, Place};
use crate::config::{ConfigError, DatabaseSettings};

/// How long a server that has nothing else to do may take to answer.
const PING: Duration = Duration::from_secs(1);

/// How much longer than Postgres's own limit a statement is waited for, so that Postgres's error is seen where there
/// is one.
const GRACE: Duration = Duration::from_secs(2);

/// How long a statement waits for a lock. Shorter than [`IDLE_IN_TRANSACTION`]: while a frozen replica holds a lock,
/// those who wait for it give their connections back early and try again.
const LOCK: Duration = Duration::from_secs(3);

/// After how long Postgres rolls back the transaction of a client that has gone quiet in the middle of it. No
/// transaction here waits for anything but Postgres, so it is a replica that was frozen or cut off.
const IDLE_IN_TRANSACTION: Duration = Duration::from_secs(5);

/// A pool of connections. Connects only when it is first used.
///
/// It is used as sqlx's own pool is: each statement that is run on `&PgPool` takes a connection for itself, and
/// [`Self::begin`] begins a transaction.
#[derive(Debug, Clone)]
pub struct PgPool {
    connections: sqlx::PgPool,
    options: Arc<PgConnectOptions>,
    place: Arc<Place>,
    distrust: Distrust,
    /// The settings of each session, as statements.
    session: String,
    statement_timeout: Duration,
    acquire_timeout: Duration,
}

/// Until when connections were opened that are not to be used again: one of them turned out to lead nowhere, or to a
/// server that only reads, and the others most likely lead there too.
#[derive(Debug, Clone, Default)]
struct Distrust(Arc<Mutex<Option<Instant>>>);

impl Distrust {
    fn all_until_now(&self, reason: &'static str) {
        metrics::counter!("database_connections_discarded_total", "reason" => reason).increment(1);
        // It holds a time and nothing that could be half changed.
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    fn covers(&self, age: Duration) -> bool {
        let until = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        until.is_some_and(|until| age >= until.elapsed())
    }
}

impl PgPool {
    /// A pool for this database.
    pub fn new(settings: &DatabaseSettings) -> Result<Self, ConfigError> {
        Self::with_session(settings, IDLE_IN_TRANSACTION)
    }

    /// A pool for a service whose shortest lease is this long.
    ///
    /// A replica that freezes in the middle of a transaction has row locks, and they must be gone before its lease is:
    /// whoever claims its work next would wait for them.
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
        // Its parser takes any scheme.
        if !url.starts_with("postgres://") && !url.starts_with("postgresql://") {
            return Err(ConfigError::new("DATABASE_URL", FORM));
        }
        let options = PgConnectOptions::from_str(url)
            // Its error may quote the address, and with it the password.
            .map_err(|_| ConfigError::new("DATABASE_URL", FORM))?
            .application_name(env!("CARGO_PKG_NAME"))
            .log_slow_statements(log::LevelFilter::Warn, Duration::from_secs(1));
        let place = Place::new(&options, settings.url_setting());
        let distrust = Distrust::default();
        let session = session(settings.database_statement_timeout, idle_in_transaction);
        let connections = PgPoolOptions::new()
            .max_connections(settings.database_max_connections)
            .acquire_timeout(settings.database_acquire_timeout)
            // A connection that was used a moment ago is taken to be alive: asking it first would double the round
            // trips of every request.
            .test_before_acquire(false)
            .before_acquire({
                let distrust = distrust.clone();
                move |connection, used| {
                    let distrust = distrust.clone();
                    Box::pin(async move {
                        if distrust.covers(used.age) {
                            return Ok(false);
                        }
                        if used.idle_for > Duration::from_secs(1) {
                            timeout(PING, connection.ping()).await.unwrap_or_else(|_| {
                                distrust.all_until_now("silent");
                                Err(silent(PING))
                            })?;
                        }
                        Ok(true)
                    })
                }
            })
            .after_connect({
                let session = session.clone();
                move |connection, _| {
                    let session = session.clone();
                    Box::pin(async move {
                        connection.execute(sqlx::AssertSqlSafe(session)).await?;
                        Ok(())
                    })
                }
            })
            .connect_lazy_with(options.clone());
        Ok(Self {
            connections,
            options: Arc::new(options),
            place: Arc::new(place),
            distrust,
            session,
            statement_timeout: settings.database_statement_timeout,
            acquire_timeout: settings.database_acquire_timeout,
        })
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

    /// Closes every connection, once each is given back.
    pub async fn close(&self) {
        self.connections.close().await;
    }

    /// What is wrong, where, and what to do about it, for whoever runs a command.
    #[must_use]
    pub fn diagnose(&self, error: &super::Error) -> Diagnosis {
        self.place.diagnose(error)
    }

    /// What is wrong with the migrations, where, and what to do about it.
    pub(super) fn diagnose_migration(&self, error: &MigrateError) -> Diagnosis {
        self.place.diagnose_migration(error)
    }

    /// Connects once, so that a wrong address or password is told at the start and by its own name: the pool would
    /// only say that it had no connection in time. Waits for a server that is just starting for as long as a
    /// statement would wait for a connection.
    pub async fn probe(&self) -> Result<(), Diagnosis> {
        self.connect("").await.map(drop)
    }

    /// A connection outside the pool, with the session's settings and these on top.
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

    /// Has every connection that is open now closed instead of being used again.
    pub(super) fn distrust(&self, reason: &'static str) {
        self.distrust.all_until_now(reason);
    }

    async fn acquire(&self) -> Result<Connection, sqlx::Error> {
        Ok(Connection {
            held: Some(Held(Some(self.connections.acquire().await?))),
            busy: false,
            distrust: self.distrust.clone(),
            limit: self.statement_timeout + GRACE,
        })
    }
}

/// What each session is set to, as statements.
fn session(statement_timeout: Duration, idle_in_transaction: Duration) -> String {
    let lock = LOCK.min(statement_timeout);
    format!(
        "SET statement_timeout = {};
         SET lock_timeout = {};
         SET idle_in_transaction_session_timeout = {};
         -- A replica that is cut off, or too frozen to take in what it asked for.
         SET tcp_user_timeout = 10000;
         SET tcp_keepalives_idle = 10;
         SET tcp_keepalives_interval = 5;
         SET tcp_keepalives_count = 3;
         -- What the statements are written for.
         SET default_transaction_isolation = 'read committed';
         -- What is acknowledged is on disk, here and on every synchronous standby, whatever is the server's, the
         -- database's or the role's default. Only remote_apply promises more.
         SELECT set_config('synchronous_commit', 'on', false)
         WHERE current_setting('synchronous_commit') <> 'remote_apply';",
        statement_timeout.as_millis(),
        lock.as_millis(),
        // 0 would mean no limit.
        idle_in_transaction.as_millis().max(1),
    )
}

/// Whether a failure to connect may be over in a moment: nobody listens yet, or the server or a proxy in front of it
/// is just starting, or full.
fn is_passing(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(_) => true,
        sqlx::Error::Database(error) => {
            matches!(error.code().as_deref(), Some("57P03" | "53300"))
        }
        _ => false,
    }
}

fn silent(limit: Duration) -> sqlx::Error {
    io::Error::new(
        io::ErrorKind::TimedOut,
        format!("no answer within {} s", limit.as_secs_f64()),
    )
    .into()
}

/// Runs a statement on a connection of its own.
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
        one_by_one(async move { pool.acquire().await?.all(query).await })
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

/// A connection of the pool's, given back when it is dropped.
#[derive(Debug)]
pub struct Connection {
    /// `None` once it was closed.
    held: Option<Held>,
    /// Whether a statement was begun and is not over. Dropped like this, nobody waits for its end, and the connection
    /// is closed.
    busy: bool,
    distrust: Distrust,
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
        let rows = self.begin()?.fetch_many(query).try_collect();
        let outcome = timeout(limit, rows).await;
        self.end(outcome)
    }

    async fn first<'q, E>(&mut self, query: E) -> Result<Option<PgRow>, sqlx::Error>
    where
        E: 'q + Execute<'q, Postgres>,
    {
        let limit = self.limit;
        let outcome = timeout(limit, self.begin()?.fetch_optional(query)).await;
        self.end(outcome)
    }

    async fn prepare(
        &mut self,
        sql: SqlStr,
        parameters: &[PgTypeInfo],
    ) -> Result<PgStatement, sqlx::Error> {
        let limit = self.limit;
        let outcome = timeout(limit, self.begin()?.prepare_with(sql, parameters)).await;
        self.end(outcome)
    }

    async fn explain(&mut self, sql: SqlStr) -> Result<Describe<Postgres>, sqlx::Error> {
        let limit = self.limit;
        let outcome = timeout(limit, self.begin()?.describe(sql)).await;
        self.end(outcome)
    }

    fn begin(&mut self) -> Result<&mut PgConnection, sqlx::Error> {
        let held = self.held.as_mut().and_then(|held| held.0.as_deref_mut());
        let connection = held.ok_or_else(|| {
            io::Error::new(io::ErrorKind::NotConnected, "the connection was closed")
        })?;
        self.busy = true;
        Ok(connection)
    }

    fn end<T>(
        &mut self,
        outcome: Result<Result<T, sqlx::Error>, Elapsed>,
    ) -> Result<T, sqlx::Error> {
        let result = outcome.unwrap_or_else(|_| {
            warn!(
                seconds = self.limit.as_secs_f64(),
                "a connection to the database went silent; it is closed, and the others with it"
            );
            self.distrust.all_until_now("silent");
            Err(silent(self.limit))
        });
        self.busy = false;
        match &result {
            Err(sqlx::Error::Io(_) | sqlx::Error::Tls(_) | sqlx::Error::Protocol(_)) => {
                self.held = None;
            }
            // The server became a standby, or is one: whatever leads to the primary now, this connection does not.
            Err(sqlx::Error::Database(error)) if error.code().as_deref() == Some("25006") => {
                warn!("the database only reads; its connections are closed");
                self.distrust.all_until_now("read_only");
                self.held = None;
            }
            _ => {}
        }
        result
    }

    /// Gives the connection back, after running this on it.
    fn give_back(&mut self, last: Option<&'static str>) {
        let Some(held) = self.held.take().filter(|_| !self.busy) else {
            return;
        };
        let distrust = self.distrust.clone();
        // Outside the runtime it is only closed.
        if let Ok(runtime) = Handle::try_current() {
            runtime.spawn(async move {
                if timeout(PING, held.give_back(last)).await.is_err() {
                    distrust.all_until_now("silent");
                }
            });
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.give_back(None);
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
        one_by_one(self.all(query))
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

/// A statement's results as sqlx wants them. They are read whole, within one deadline; no statement here has more
/// than fit into memory.
fn one_by_one<'e, T: Send + 'e>(
    results: impl Future<Output = Result<Vec<T>, sqlx::Error>> + Send + 'e,
) -> BoxStream<'e, Result<T, sqlx::Error>> {
    stream::once(results)
        .map(|results| results.map(|results| stream::iter(results.into_iter().map(Ok))))
        .try_flatten()
        .boxed()
}

/// A connection that was taken out of sqlx's pool. Dropping it closes it and frees its place; sqlx's own would ask
/// the server first, for as long as that takes.
#[derive(Debug)]
struct Held(Option<PoolConnection<Postgres>>);

impl Held {
    async fn give_back(mut self, last: Option<&'static str>) {
        let Some(connection) = self.0.as_deref_mut() else {
            return;
        };
        if let Some(statement) = last
            && connection.execute(statement).await.is_err()
        {
            return;
        }
        let returned = self
            .0
            .take()
            .map(|mut connection| connection.return_to_pool());
        if let Some(returned) = returned {
            returned.await;
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        drop(self.0.take().map(PoolConnection::detach));
    }
}

/// A transaction, rolled back when it is dropped before it is committed.
#[derive(Debug)]
pub struct PgTransaction {
    connection: Connection,
    open: bool,
}

impl PgTransaction {
    /// Commits it. An `Err` proves nothing: it may be committed all the same.
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
            self.connection.give_back(Some("ROLLBACK"));
        }
    }
}
