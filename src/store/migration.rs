use std::{
    pin::pin,
    time::{Duration, Instant},
};

use sqlx::{Connection, Executor, PgConnection, migrate::MigrateError};
use tokio::time::{sleep, timeout};
use tracing::{info, warn};

use super::{
    Error,
    condition::{self, Migrations},
    diagnosis::Diagnosis,
    migrator::MIGRATOR,
    pool::PgPool,
};

/// How long a statement of a migration waits for a lock. Every statement that needs the table after it queues up behind
/// it, webhooks included, so this must be shorter than they wait.
const LOCK_TIMEOUT: Duration = Duration::from_secs(1);

/// How long a migration is retried while other transactions hold the locks that it needs.
const RETRY_FOR: Duration = Duration::from_secs(15);

/// How long to leave the tables alone between two attempts.
const RETRY_PAUSE: Duration = Duration::from_secs(2);

/// How long Postgres may take to respond to a statement that has nothing to wait for.
const RESPONSE_LIMIT: Duration = Duration::from_secs(10);

/// What [`migrate`] has done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Migrated {
    /// How many migrations it applied.
    pub applied: usize,
    /// The number of the newest migration that the database has. It may be one of a later version.
    pub newest: i64,
}

impl Migrated {
    /// The result of applying what was pending.
    fn of(before: &Migrations) -> Self {
        let later = before.unknown.iter().copied();
        Self {
            applied: before.pending.len(),
            newest: later.fold(before.newest, i64::max),
        }
    }
}

/// Brings the schema up to this version. Replicas that start together take turns.
///
/// Uses a connection of its own without a statement timeout: an index may take long to build, and the other replicas wait
/// for it. A statement that takes a lock waits for it for one second at a time.
pub async fn migrate(pool: &PgPool) -> Result<Migrated, Diagnosis> {
    pool.probe().await?;
    let before = migrations(pool).await?;
    if before.pending.is_empty() && before.broken.is_empty() {
        return Ok(Migrated::of(&before));
    }
    // A replica that is frozen or cut off between two statements has an idle session, which must not hold up the others.
    // Notices only say that what should be there is there.
    let settings = "SET statement_timeout = 0; SET idle_session_timeout = '1min'; SET client_min_messages = warning";
    let mut connection = pool.connect(settings).await?;
    let failed = |error| pool.diagnose_migration(&error);
    take_turns(&mut connection).await.map_err(failed)?;
    // Another replica may have applied some, or all, meanwhile.
    let before = migrations(pool).await?;
    let applied = apply_while_active(pool, &mut connection).await;
    applied.map_err(failed)?;
    // If this fails, the connection ends with the process.
    let _ = timeout(LOCK_TIMEOUT, connection.close()).await;
    Ok(Migrated::of(&before))
}

async fn migrations(pool: &PgPool) -> Result<Migrations, Diagnosis> {
    let found = condition::migrations(pool).await;
    found.map_err(|error| pool.diagnose(&error))
}

/// The key of the advisory lock that serializes migrations. Any number that nothing else uses.
const TURN: i64 = 0x646f_6a6f_6c69_6e6b;

/// The indexes that migrations build with `CREATE INDEX CONCURRENTLY`. An attempt that was cut short leaves an invalid
/// index behind, and the next attempt would take it for a finished one.
const BUILT_CONCURRENTLY: [&str; 20] = [
    "payment_links_unsettled",
    "operations_open",
    "payment_links_metadata",
    "payment_links_customer_email",
    "payment_links_card_last4",
    "payment_links_amount",
    "payment_links_updated_at",
    "payment_links_reference_prefix",
    "payment_links_reference",
    "payment_intents_surplus",
    "callback_deliveries_responses",
    "idempotency_keys_freed",
    "idempotency_keys_responses",
    "operations_responses",
    "messages_recipient",
    "payment_links_recipient",
    "payment_links_mismatch",
    "payment_link_events_surplus_paid",
    "payment_links_unconfirmed",
    "callback_deliveries_of_link",
];

/// Waits until no other replica migrates, however long that takes. The lock ends with the connection.
///
/// Polls, because a statement that waits for a lock has a snapshot, and an index that is built concurrently waits for all
/// snapshots: the two would wait for each other.
async fn take_turns(connection: &mut PgConnection) -> Result<(), MigrateError> {
    let mut logged = false;
    loop {
        let locked = sqlx::query_scalar("SELECT pg_try_advisory_lock($1)").bind(TURN);
        // Postgres responds at once, so a late response means that the connection is dead.
        let locked = timeout(RESPONSE_LIMIT, locked.fetch_one(&mut *connection)).await;
        if locked.map_err(|_| no_response())?? {
            return Ok(());
        }
        if !logged {
            info!("another replica migrates the database; waiting");
            logged = true;
        }
        sleep(LOCK_TIMEOUT / 5).await;
    }
}

/// Drops the indexes that an earlier attempt left unfinished. Waits for those that an operator is building by hand.
async fn drop_invalid_indexes(connection: &mut PgConnection) -> Result<(), sqlx::Error> {
    for index in BUILT_CONCURRENTLY {
        let mut logged = false;
        loop {
            // A session that builds an index concurrently locks the table in this mode from beginning to end. Vacuum does
            // as well, and then this waits a little for nothing.
            let invalid: Option<bool> = sqlx::query_scalar(
                "SELECT EXISTS (
                     SELECT FROM pg_locks
                     WHERE relation = indrelid AND mode = 'ShareUpdateExclusiveLock' AND granted
                       AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
                       AND pid <> pg_backend_pid()
                 )
                 FROM pg_index WHERE indexrelid = to_regclass($1) AND NOT indisvalid",
            )
            .bind(index)
            .fetch_optional(&mut *connection)
            .await?;
            match invalid {
                None => break,
                Some(false) => {
                    let drop = format!("DROP INDEX CONCURRENTLY IF EXISTS {index}");
                    connection.execute(sqlx::AssertSqlSafe(drop)).await?;
                }
                Some(true) => {
                    if !logged {
                        info!(index, "another session is building this index; waiting");
                        logged = true;
                    }
                    sleep(RETRY_PAUSE).await;
                }
            }
        }
    }
    Ok(())
}

/// Applies the migrations. Gives up when Postgres is no longer working on them although no response has come: it may have
/// been lost.
async fn apply_while_active(
    pool: &PgPool,
    connection: &mut PgConnection,
) -> Result<(), MigrateError> {
    let id = sqlx::query_scalar("SELECT pg_backend_pid()");
    let id = timeout(RESPONSE_LIMIT, id.fetch_one(&mut *connection)).await;
    let id: i32 = id.map_err(|_| no_response())??;
    let mut applied = pin!(apply(connection));
    loop {
        if let Ok(applied) = timeout(RESPONSE_LIMIT, applied.as_mut()).await {
            return applied;
        }
        // If this fails as well, it isn't known whether the migrations have ended.
        if is_idle(pool, id, RETRY_PAUSE * 2).await.unwrap_or(false) {
            return Err(no_response());
        }
        info!(
            "still migrating; building an index without blocking writes waits until every transaction that was open \
             before has ended"
        );
    }
}

/// Applies every pending migration, in order.
async fn apply(connection: &mut PgConnection) -> Result<(), MigrateError> {
    for migration in MIGRATOR.iter().filter(|migration| migration.no_tx) {
        apply_up_to(connection, migration.version - 1, LOCK_TIMEOUT).await?;
        // An index that is built concurrently. Nothing queues up behind it, and it waits for old transactions twice, to
        // which `lock_timeout` applies: with a limit, a database where some transaction is always open would build the
        // index again and again.
        apply_up_to(connection, migration.version, Duration::ZERO).await?;
    }
    apply_up_to(connection, i64::MAX, LOCK_TIMEOUT).await
}

/// Applies the pending migrations up to this version. Their statements wait this long for a lock; zero means no limit.
async fn apply_up_to(
    connection: &mut PgConnection,
    version: i64,
    lock_timeout: Duration,
) -> Result<(), MigrateError> {
    let give_up = Instant::now() + RETRY_FOR;
    loop {
        let attempt = async {
            connection.execute("SET lock_timeout = 0").await?;
            drop_invalid_indexes(connection).await?;
            let set = format!("SET lock_timeout = {}", lock_timeout.as_millis());
            connection.execute(sqlx::AssertSqlSafe(set)).await?;
            MIGRATOR.run_to(version, &mut *connection).await
        };
        match attempt.await {
            Err(error) if is_locked_out(&error) && Instant::now() + RETRY_PAUSE < give_up => {
                warn!("a migration waits for other transactions to end; trying again");
                sleep(RETRY_PAUSE).await;
            }
            migrated => return migrated,
        }
    }
}

/// Whether other transactions were in the way: of a lock (55P03), or in a deadlock that Postgres resolved by rolling back
/// the migration (40P01).
fn is_locked_out(error: &MigrateError) -> bool {
    let (MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _)) = error else {
        return false;
    };
    error
        .as_database_error()
        .and_then(sqlx::error::DatabaseError::code)
        .is_some_and(|code| code == "55P03" || code == "40P01")
}

fn no_response() -> MigrateError {
    MigrateError::Execute(sqlx::Error::Io(std::io::ErrorKind::TimedOut.into()))
}

/// Whether a session has had nothing to do for this long, or is gone.
async fn is_idle(pool: &PgPool, id: i32, time: Duration) -> Result<bool, Error> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_migration_waits_longer_for_a_lock_than_the_others() {
        for migration in MIGRATOR.iter() {
            let sets_its_own = migration.sql.as_str().contains("lock_timeout");
            assert!(!sets_its_own, "migration {}", migration.version);
        }
    }
}
