//! What state the database is in, for who is about to rely on it. Nothing here changes anything.

use std::collections::BTreeMap;

use sqlx::PgPool;
use time::OffsetDateTime;

use super::{Error, MIGRATOR};

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
