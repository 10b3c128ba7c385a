use std::{
    pin::pin,
    sync::LazyLock,
    time::{Duration, Instant},
};

use sqlx::{
    Connection, Executor, PgConnection,
    migrate::{MigrateError, Migrator},
};
use tokio::time::{sleep, timeout};
use tracing::{info, warn};

use super::{condition, diagnosis::Diagnosis, pool::PgPool};

/// What a later version has added is left alone: a replica of the version before may start again while the others are
/// replaced.
pub(super) static MIGRATOR: LazyLock<Migrator> = LazyLock::new(|| {
    let mut migrator = sqlx::migrate!();
    migrator.set_ignore_missing(true);
    // `take_turns` does that.
    migrator.set_locking(false);
    migrator
});

/// How long a migration waits for a lock. Whoever wants the table after it queues up behind it, webhooks too, which is
/// why it is shorter than they are willing to wait.
const LOCK: Duration = Duration::from_secs(1);

/// How long a migration is tried again while others hold the locks that it needs.
const LIMITS: Duration = Duration::from_secs(15);

/// How long to leave the tables alone between two tries.
const PAUSE: Duration = Duration::from_secs(2);

/// Brings the schema up to this version. Replicas that start together take turns.
///
/// Runs on a connection of its own, without the time limit that statements have otherwise: an index may take long
/// to build, and the other replicas wait for it. For a lock it waits a second at a time.
pub async fn migrate(pool: &PgPool) -> Result<(), Diagnosis> {
    pool.probe().await?;
    let found = condition::migrations(pool).await;
    let found = found.map_err(|error| pool.diagnose(&error))?;
    if found.pending.is_empty() && found.broken.is_empty() {
        return Ok(());
    }
    // A session that is idle was frozen or cut off between two statements, and holds up the other replicas.
    let settings = format!(
        "SET statement_timeout = 0; SET idle_session_timeout = '1min'; SET lock_timeout = {}",
        LOCK.as_millis()
    );
    let mut connection = pool.connect(&settings).await?;
    let migrated = match take_turns(&mut connection).await {
        Ok(()) => watch(pool, &mut connection).await,
        Err(error) => Err(error),
    };
    migrated.map_err(|error| pool.diagnose_migration(&error))?;
    // It ends with the process otherwise.
    let _ = timeout(LOCK, connection.close()).await;
    Ok(())
}

/// The advisory lock that replicas take turns with. A number that nobody else uses.
const TURN: i64 = 0x646f_6a6f_6c69_6e6b;

/// The indexes that migrations build with `CREATE INDEX CONCURRENTLY`. An attempt that was cut short leaves an invalid
/// one behind, and the next attempt would fail because of it.
const BUILT_CONCURRENTLY: [&str; 1] = ["payment_links_unsettled"];

/// Waits until no other replica migrates, for as long as that takes. The lock is the connection's, and ends with it.
///
/// It is tried again and again, because a statement that waits for a lock holds a snapshot, and an index that is built
/// concurrently waits for all snapshots: the two would wait for each other.
async fn take_turns(connection: &mut PgConnection) -> Result<(), MigrateError> {
    let mut told = false;
    loop {
        let locked = sqlx::query_scalar("SELECT pg_try_advisory_lock($1)").bind(TURN);
        // Postgres answers at once: anything else is a connection that leads nowhere.
        let locked = timeout(LOCK * 10, locked.fetch_one(&mut *connection)).await;
        if locked.map_err(|_| silent())?? {
            return Ok(());
        }
        if !told {
            info!("another replica migrates the database; waiting");
            told = true;
        }
        sleep(LOCK / 5).await;
    }
}

/// Drops what an earlier attempt to build an index left behind. Whoever built it held the lock, so nobody builds it now.
async fn drop_invalid_indexes(connection: &mut PgConnection) -> Result<(), sqlx::Error> {
    for index in BUILT_CONCURRENTLY {
        let invalid: bool = sqlx::query_scalar(
            "SELECT EXISTS (SELECT FROM pg_index WHERE indexrelid = to_regclass($1) AND NOT indisvalid)",
        )
        .bind(index)
        .fetch_one(&mut *connection)
        .await?;
        if invalid {
            let drop = format!("DROP INDEX CONCURRENTLY IF EXISTS {index}");
            connection.execute(sqlx::AssertSqlSafe(drop)).await?;
        }
    }
    Ok(())
}

/// Applies the migrations for as long as Postgres works on them, and no longer: the answer may have been lost.
async fn watch(pool: &PgPool, connection: &mut PgConnection) -> Result<(), MigrateError> {
    let id = sqlx::query_scalar("SELECT pg_backend_pid()");
    let id = timeout(LOCK * 10, id.fetch_one(&mut *connection)).await;
    let id: i32 = id.map_err(|_| silent())??;
    let mut applied = pin!(apply(connection));
    loop {
        if let Ok(applied) = timeout(PAUSE * 5, applied.as_mut()).await {
            return applied;
        }
        // If this is not answered either, then neither is it known that the migrations are over.
        if condition::is_idle(pool, id, PAUSE * 2)
            .await
            .unwrap_or(false)
        {
            return Err(silent());
        }
    }
}

async fn apply(connection: &mut PgConnection) -> Result<(), MigrateError> {
    let give_up = Instant::now() + LIMITS;
    loop {
        let migrated = match drop_invalid_indexes(connection).await {
            Ok(()) => MIGRATOR.run(&mut *connection).await,
            Err(error) => Err(MigrateError::Execute(error)),
        };
        match migrated {
            Err(error) if is_locked_out(&error) && Instant::now() + PAUSE < give_up => {
                warn!("a migration waits for the transactions of others to end; trying again");
                sleep(PAUSE).await;
            }
            migrated => return migrated,
        }
    }
}

fn is_locked_out(error: &MigrateError) -> bool {
    let (MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _)) = error else {
        return false;
    };
    error
        .as_database_error()
        .and_then(sqlx::error::DatabaseError::code)
        .is_some_and(|code| code == "55P03")
}

fn silent() -> MigrateError {
    MigrateError::Execute(sqlx::Error::Io(std::io::ErrorKind::TimedOut.into()))
}
