//! All SQL: one file per table or question, one function per question.
//!
//! Every statement is checked at compile time against the migrations (`.sqlx/` holds what that needs
//! without a database).

pub mod api_keys;
pub mod condition;
pub mod creation;
pub mod deployment;
pub mod intents;
pub mod leases;
pub mod links;
pub mod looks;
pub mod operations;
pub mod webhooks;

use std::{str::FromStr, sync::LazyLock, time::Duration};

use secrecy::ExposeSecret;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;
use sqlx::{
    ConnectOptions, Connection, Executor, PgPool,
    migrate::{MigrateError, Migrator},
    postgres::{PgConnectOptions, PgPoolOptions},
};

use crate::{
    config::{ConfigError, DatabaseSettings},
    payment_link::Environment,
};

/// What a later version has added is left alone: a replica of the version before may start again while the others are
/// replaced.
static MIGRATOR: LazyLock<Migrator> = LazyLock::new(|| {
    let mut migrator = sqlx::migrate!();
    migrator.set_ignore_missing(true);
    // `migrate` has a lock of its own.
    migrator.set_locking(false);
    migrator
});

/// Why the database did not answer a question.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Postgres was not reached, had no connection free, or refused the statement.
    #[error("the database did not answer")]
    Database(#[from] sqlx::Error),
    /// What is stored is not what this version understands.
    #[error("the database holds something unreadable: {0}")]
    Unreadable(String),
}

impl Error {
    /// Whether the database is out of reach for the moment, as opposed to not agreeing with the statement. Of
    /// Postgres's own errors (SQLSTATE classes): connection, rollback by contention, resources, objects in use,
    /// operator intervention.
    #[must_use]
    pub fn is_outage(&self) -> bool {
        match self {
            Self::Database(sqlx::Error::Database(error)) => error.code().is_some_and(|code| {
                // 25006: a server that only reads, as a standby does. 42P01: one that is not migrated yet.
                ["08", "25006", "28", "40", "42P01", "53", "55", "57", "58"]
                    .iter()
                    .any(|class| code.starts_with(class))
            }),
            Self::Database(
                sqlx::Error::Io(_)
                | sqlx::Error::Tls(_)
                | sqlx::Error::Protocol(_)
                | sqlx::Error::PoolTimedOut
                | sqlx::Error::PoolClosed
                | sqlx::Error::WorkerCrashed,
            ) => true,
            Self::Database(_) | Self::Unreadable(_) => false,
        }
    }
}

/// A pool of connections. Connects only when it is first used.
pub fn pool(settings: &DatabaseSettings) -> Result<PgPool, ConfigError> {
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
    let limits = format!(
        "SET statement_timeout = {}",
        settings.database_statement_timeout.as_millis()
    );
    Ok(PgPoolOptions::new()
        .max_connections(settings.database_max_connections)
        .acquire_timeout(settings.database_acquire_timeout)
        // A connection that was used a moment ago is taken to be alive: asking it first would double the round
        // trips of every request.
        .test_before_acquire(false)
        .before_acquire(|connection, used| {
            Box::pin(async move {
                if used.idle_for > Duration::from_secs(1) {
                    connection.ping().await?;
                }
                Ok(true)
            })
        })
        .after_connect(move |connection, _| {
            let limits = limits.clone();
            Box::pin(async move {
                connection.execute(sqlx::AssertSqlSafe(limits)).await?;
                Ok(())
            })
        })
        .connect_lazy_with(options))
}

/// The advisory lock that replicas take turns with to migrate. A number that nobody else uses.
const MIGRATION_LOCK: i64 = 0x646f_6a6f_6c69_6e6b;

/// The indexes that migrations build with `CREATE INDEX CONCURRENTLY`. An attempt that was cut short leaves an invalid
/// one behind, over which the next attempt would fail.
const BUILT_CONCURRENTLY: [&str; 1] = ["payment_links_unsettled"];

/// Brings the schema up to this version. Replicas that start together take turns.
///
/// Runs on a connection of its own, without the time limit that statements have otherwise: an index may take long
/// to build, and the other replicas wait for it.
pub async fn migrate(pool: &PgPool) -> Result<(), MigrateError> {
    let mut connection = pool.connect_options().connect().await?;
    // Asked for again and again, because a statement that waits for a lock holds a snapshot, and an index that is built
    // concurrently waits for all snapshots: the two would wait for each other.
    while !sqlx::query_scalar::<_, bool>("SELECT pg_try_advisory_lock($1)")
        .bind(MIGRATION_LOCK)
        .fetch_one(&mut connection)
        .await?
    {
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    // Whoever was building one held the lock, also if only its backend was left.
    for index in BUILT_CONCURRENTLY {
        let invalid: bool = sqlx::query_scalar(
            "SELECT EXISTS (SELECT FROM pg_index WHERE indexrelid = to_regclass($1) AND NOT indisvalid)",
        )
        .bind(index)
        .fetch_one(&mut connection)
        .await?;
        if invalid {
            let drop = format!("DROP INDEX CONCURRENTLY IF EXISTS {index}");
            connection.execute(sqlx::AssertSqlSafe(drop)).await?;
        }
    }
    MIGRATOR.run(&mut connection).await?;
    // Closing the connection gives the lock back.
    Ok(connection.close().await?)
}

/// Whether the database answers, has every migration of this version, and is for this environment.
pub async fn is_ready(pool: &PgPool, environment: Environment) -> Result<bool, Error> {
    // Without the migrations' table the statement itself fails, which says the same.
    let applied: Vec<i64> =
        sqlx::query_scalar("SELECT version FROM _sqlx_migrations WHERE success")
            .fetch_all(pool)
            .await?;
    let migrated = MIGRATOR
        .iter()
        .all(|migration| applied.contains(&migration.version));
    Ok(migrated && deployment::claim(pool, environment).await? == environment)
}

fn to_json(value: &impl Serialize) -> Result<Value, Error> {
    serde_json::to_value(value).map_err(|error| Error::Unreadable(error.to_string()))
}

fn from_json<T: DeserializeOwned>(value: Value) -> Result<T, Error> {
    serde_json::from_value(value).map_err(|error| Error::Unreadable(error.to_string()))
}

/// Reads a word that the database holds as text.
fn word<T: FromStr<Err: std::fmt::Display>>(text: &str) -> Result<T, Error> {
    text.parse()
        .map_err(|error: T::Err| Error::Unreadable(error.to_string()))
}
