//! What state the database is in, for who is about to rely on it. Nothing here changes anything.

use std::{collections::BTreeMap, time::Duration};

use time::OffsetDateTime;

use super::{Error, PgPool, deployment, migration::MIGRATOR};
use crate::payment_link::Environment;

/// The oldest Postgres that the service runs on.
pub const OLDEST_POSTGRES: i32 = 15;

/// A server that was reached.
#[derive(Debug, Clone, Copy)]
pub struct Server {
    /// Its major version.
    pub version: i32,
    /// Whether it only reads, as a standby does.
    pub reads_only: bool,
    /// Its clock.
    pub now: OffsetDateTime,
}

/// How the schema stands to this version's migrations, by their numbers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Migrations {
    /// Not there yet.
    pub pending: Vec<i64>,
    /// Begun and not ended, or not the ones that this version knows by these numbers.
    pub broken: Vec<i64>,
    /// Of a later version.
    pub unknown: Vec<i64>,
    /// The newest that this version has.
    pub newest: i64,
}

/// Whether requests can be served from the database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Readiness {
    /// They can.
    Ready,
    /// It only reads: a standby, or a primary that was made to.
    ReadsOnly,
    /// It lacks migrations of this version.
    NotMigrated,
    /// Nobody has said yet which environment it is for.
    NotClaimed,
    /// It is for the other environment.
    OtherEnvironment,
}

/// Whether a service of this environment can do its work on the database: writing included, which is found out without
/// writing anything.
pub async fn readiness(pool: &PgPool, environment: Environment) -> Result<Readiness, Error> {
    if server(pool).await?.reads_only {
        // The same address may lead to the new primary by now.
        pool.distrust("read_only");
        return Ok(Readiness::ReadsOnly);
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

/// Asks the server about itself.
pub async fn server(pool: &PgPool) -> Result<Server, Error> {
    let told = sqlx::query!(
        r#"SELECT current_setting('server_version_num')::integer / 10000 AS "version!",
             pg_is_in_recovery() OR current_setting('transaction_read_only')::boolean AS "reads_only!",
             now() AS "now!""#
    )
    .fetch_one(pool)
    .await?;
    Ok(Server {
        version: told.version,
        reads_only: told.reads_only,
        now: told.now,
    })
}

/// Compares what was applied with what this version has.
pub async fn migrations(pool: &PgPool) -> Result<Migrations, Error> {
    // The table is sqlx's own, and not there before the first migration.
    let there: bool = sqlx::query_scalar("SELECT to_regclass('_sqlx_migrations') IS NOT NULL")
        .fetch_one(pool)
        .await?;
    let applied: Vec<(i64, bool, Vec<u8>)> = if there {
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

/// Whether nobody works on a session any more: Postgres has had nothing to do for it for this long, or it is gone.
pub(super) async fn is_idle(pool: &PgPool, id: i32, time: Duration) -> Result<bool, Error> {
    Ok(sqlx::query_scalar!(
        r#"SELECT NOT EXISTS (
             SELECT FROM pg_stat_activity
             WHERE pid = $1 AND (state = 'active' OR state_change > now() - make_interval(secs => $2))
           ) AS "idle!""#,
        id,
        time.as_secs_f64()
    )
    .fetch_one(pool)
    .await?)
}
