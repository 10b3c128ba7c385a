//! The state of the database. Nothing here changes anything.

use std::{collections::BTreeMap, time::Duration};

use time::OffsetDateTime;

use super::{Error, PgPool, deployment, migrator::MIGRATOR};
use crate::payment_link::Environment;

/// The oldest Postgres that the service runs on.
pub const OLDEST_POSTGRES: i32 = 15;

/// How long a commit may wait for a synchronous standby before the service is no longer ready.
const COMMIT_LIMIT: Duration = Duration::from_secs(3);

/// The server, once it was reached.
#[derive(Debug, Clone, Copy)]
pub struct Server {
    /// The major version.
    pub version: i32,
    /// Whether it is read-only, as a standby is.
    pub is_read_only: bool,
    /// The server's clock.
    pub now: OffsetDateTime,
}

/// How the schema compares with this version's migrations, by their numbers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Migrations {
    /// Not applied yet.
    pub pending: Vec<i64>,
    /// Begun and not finished, or different from this version's migrations of the same numbers.
    pub broken: Vec<i64>,
    /// From a later version.
    pub unknown: Vec<i64>,
    /// The newest of this version.
    pub newest: i64,
}

/// Whether requests can be served from the database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Readiness {
    Ready,
    /// The server is read-only: a standby, or a primary that was made read-only.
    ReadOnly,
    /// Commits hang: they wait for a synchronous standby that doesn't respond.
    CommitsHang,
    /// Migrations of this version are missing.
    NotMigrated,
    /// The database hasn't been claimed for an environment yet.
    NotClaimed,
    /// The database is for the other environment.
    OtherEnvironment,
}

/// Whether a service of this environment can work with the database. That includes writing, which this finds out without
/// writing anything.
pub async fn readiness(pool: &PgPool, environment: Environment) -> Result<Readiness, Error> {
    if server(pool).await?.is_read_only {
        pool.discard_read_only();
        return Ok(Readiness::ReadOnly);
    }
    pool.found_writable();
    if commits_hang(pool).await? {
        return Ok(Readiness::CommitsHang);
    }
    let found = migrations(pool).await?;
    if !found.pending.is_empty() || !found.broken.is_empty() {
        return Ok(Readiness::NotMigrated);
    }
    Ok(match deployment::claimed(pool).await? {
        Some(held) if held == environment => Readiness::Ready,
        Some(_) => Readiness::OtherEnvironment,
        None => Readiness::NotClaimed,
    })
}

pub async fn server(pool: &PgPool) -> Result<Server, Error> {
    let row = sqlx::query!(
        r#"SELECT current_setting('server_version_num')::integer / 10000 AS "version!",
             pg_is_in_recovery() OR current_setting('transaction_read_only')::boolean AS "is_read_only!",
             now() AS "now!""#
    )
    .fetch_one(pool)
    .await?;
    Ok(Server {
        version: row.version,
        is_read_only: row.is_read_only,
        now: row.now,
    })
}

/// Whether a commit of this service has been waiting for a synchronous standby for longer than it should. Such a commit
/// can't be canceled, so after the caller has got its 503 its session keeps showing that the standby is away.
///
/// Every user may see the sessions of its own name in `pg_stat_activity`.
async fn commits_hang(pool: &PgPool) -> Result<bool, Error> {
    Ok(sqlx::query_scalar!(
        r#"SELECT EXISTS (
             SELECT FROM pg_stat_activity
             WHERE usename = session_user AND wait_event = 'SyncRep'
               AND state_change < now() - make_interval(secs => $1)
           ) AS "hang!""#,
        COMMIT_LIMIT.as_secs_f64()
    )
    .fetch_one(pool)
    .await?)
}

/// The tables that links, operations and webhooks are stored in and that the user may not write to. A role that was set up by
/// hand may lack a privilege. Nothing else shows that before the first payment.
pub async fn closed_tables(pool: &PgPool) -> Result<Vec<String>, Error> {
    // There is no privilege to ask about on a table that a missing migration creates.
    Ok(sqlx::query_scalar!(
        r#"SELECT name AS "name!"
           FROM unnest(ARRAY['payment_links', 'payment_link_events', 'idempotency_keys', 'operations', 'webhook_events',
                             'feed_outbox']) name
           WHERE NOT (has_table_privilege(to_regclass(name), 'INSERT') AND has_table_privilege(to_regclass(name), 'UPDATE'))"#
    )
    .fetch_all(pool)
    .await?)
}

/// Compares the migrations that were applied with those of this version.
pub async fn migrations(pool: &PgPool) -> Result<Migrations, Error> {
    // sqlx creates the table with the first migration.
    let exists: bool = sqlx::query_scalar("SELECT to_regclass('_sqlx_migrations') IS NOT NULL")
        .fetch_one(pool)
        .await?;
    let applied: Vec<(i64, bool, Vec<u8>)> = if exists {
        sqlx::query_as("SELECT version, success, checksum FROM _sqlx_migrations ORDER BY version")
            .fetch_all(pool)
            .await?
    } else {
        Vec::new()
    };
    let mut applied: BTreeMap<_, _> = applied
        .into_iter()
        .map(|(version, success, checksum)| (version, (success, checksum)))
        .collect();
    let mut found = Migrations::default();
    for migration in MIGRATOR.iter() {
        let version = migration.version;
        found.newest = found.newest.max(version);
        match applied.remove(&version) {
            None => found.pending.push(version),
            Some((true, checksum)) if *checksum == *migration.checksum => {}
            Some(_) => found.broken.push(version),
        }
    }
    found.unknown = applied.into_keys().collect();
    Ok(found)
}
