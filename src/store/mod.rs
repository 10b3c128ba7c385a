//! All SQL: one file per table or question, one function per question.
//!
//! Every statement is checked at compile time against the migrations (`.sqlx/` holds what that needs
//! without a database).

pub mod api_keys;
pub mod condition;
pub mod creation;
pub mod deployment;
pub mod intents;
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
    payment_link::{Environment, PaymentLinkId},
};

/// What a later version has added is left alone: a replica of the version before may start again while the others are
/// replaced.
static MIGRATOR: LazyLock<Migrator> = LazyLock::new(|| {
    let mut migrator = sqlx::migrate!();
    migrator.set_ignore_missing(true);
    migrator
});

/// Why the database did not answer a question.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Postgres was not reached, had no connection free, or refused the statement.
    #[error("the database did not answer")]
    Database(#[from] sqlx::Error),
    /// A payment intent that Dojo answered for one link belongs to another one.
    #[error("payment intent {payment_intent_id} belongs to the link {owner} already")]
    IntentTaken {
        /// The intent.
        payment_intent_id: String,
        /// The link that has it, or for which it is to be canceled.
        owner: PaymentLinkId,
    },
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
            Self::Database(_) | Self::IntentTaken { .. } | Self::Unreadable(_) => false,
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

/// Brings the schema up to this version. Replicas that start together take turns (an advisory lock).
///
/// Runs on a connection of its own, without the time limit that statements have otherwise: an index may take long
/// to build, and the other replicas wait for it.
pub async fn migrate(pool: &PgPool) -> Result<(), MigrateError> {
    let mut connection = pool.connect_options().connect().await?;
    MIGRATOR.run(&mut connection).await?;
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
