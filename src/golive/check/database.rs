use time::OffsetDateTime;
use tokio::time::{error::Elapsed, timeout};

use super::report::{Checks, LIMIT, Name};
use crate::{
    golive::listed,
    payment_link::Environment,
    store::{
        self, Diagnosis, PgPool,
        condition::{Migrations, OLDEST_POSTGRES},
    },
};

/// Checks the database. `environment` is that of the configured accounts, if they are known.
pub(super) async fn check(pool: &PgPool, environment: Option<Environment>) -> Checks {
    let mut checks = Checks::new();
    let all = async {
        pool.probe().await.map_err(|diagnosis| Failure {
            check: Name::Database,
            diagnosis,
        })?;
        check_reached(pool, environment, &mut checks).await
    };
    let result = timeout(LIMIT, all).await;
    add_rest(result, &mut checks);
    checks
}

/// Checks the database of a running service. Opens no connection besides the pool's.
pub(super) async fn check_in_use(pool: &PgPool, environment: Environment) -> Checks {
    let mut checks = Checks::new();
    let all = check_reached(pool, Some(environment), &mut checks);
    let result = timeout(LIMIT, all).await;
    add_rest(result, &mut checks);
    checks
}

/// Adds why the checks ended early, if they did.
fn add_rest(result: Result<Result<(), Failure>, Elapsed>, checks: &mut Checks) {
    match result {
        Ok(Ok(())) => {}
        Ok(Err(failure)) => {
            checks.fail(
                failure.check,
                failure.diagnosis.problem,
                failure.diagnosis.remedy,
            );
            checks.skip_rest(&Name::DATABASE, "the database cannot be used");
        }
        Err(_) => checks.out_of_time(
            &Name::DATABASE,
            "the database takes too long",
            "find out what keeps it busy, or what slows down the connection to it",
        ),
    }
}

/// An error of the database, and the check in which it occurred.
struct Failure {
    check: Name,
    diagnosis: Diagnosis,
}

async fn check_reached(
    pool: &PgPool,
    environment: Option<Environment>,
    checks: &mut Checks,
) -> Result<(), Failure> {
    let during = |check| {
        move |error| Failure {
            check,
            diagnosis: pool.diagnose(&error),
        }
    };

    let server = store::condition::server(pool)
        .await
        .map_err(during(Name::Database))?;
    let here = OffsetDateTime::now_utc();
    let version = format!("Postgres {}", server.version);
    if server.version < OLDEST_POSTGRES {
        checks.fail(
            Name::Database,
            version,
            format!("upgrade to Postgres {OLDEST_POSTGRES} or later"),
        );
    } else {
        checks.pass(Name::Database, version);
    }

    let found = store::condition::migrations(pool)
        .await
        .map_err(during(Name::Migrations))?;
    check_migrations(&found, checks);

    let is_migrated = found.pending.is_empty() && found.broken.is_empty();
    if server.is_read_only {
        checks.fail(
            Name::Writable,
            "the server is read-only, as a standby is",
            "point DATABASE_URL to the primary",
        );
    } else {
        let closed = store::condition::closed_tables(pool)
            .await
            .map_err(during(Name::Writable))?;
        if !closed.is_empty() {
            checks.fail(
                Name::Writable,
                format!("the user in DATABASE_URL may not write to {}", listed(closed)),
                "use the user that owns the database and its tables, or grant it SELECT, INSERT, UPDATE and DELETE on them",
            );
        } else if is_migrated {
            checks.pass(Name::Writable, "yes");
        }
    }

    if is_migrated {
        let stored = store::deployment::claimed(pool)
            .await
            .map_err(during(Name::Environment))?;
        check_environment(stored, environment, checks);
        match store::api_keys::count_active_clients(pool)
            .await
            .map_err(during(Name::ApiKeys))?
        {
            0 => checks.fail(
                Name::ApiKeys,
                "no client has an active key, so nobody can call the service",
                "run dojo-payment-links api-keys create --name orders --scopes links:read,links:write",
            ),
            count => checks.pass(
                Name::ApiKeys,
                format!("clients with an active key: {count}"),
            ),
        }
    } else {
        checks.skip_rest(
            &[Name::Writable, Name::Environment, Name::ApiKeys],
            "the database is not migrated",
        );
    }
    let difference = (server.now - here).unsigned_abs();
    checks.compare_clocks(Name::DatabaseClock, difference);
    Ok(())
}

fn check_migrations(found: &Migrations, checks: &mut Checks) {
    if !found.broken.is_empty() {
        checks.fail(
            Name::Migrations,
            format!(
                "incomplete, or different from this version's: {}",
                ranges(&found.broken)
            ),
            "this is another program's database, or it was changed by hand: restore it",
        );
    } else if !found.pending.is_empty() {
        checks.fail(
            Name::Migrations,
            format!("pending: {}", ranges(&found.pending)),
            "run dojo-payment-links migrate",
        );
    } else if !found.unknown.is_empty() {
        checks.fail(
            Name::Migrations,
            format!("from a later version: {}", ranges(&found.unknown)),
            "deploy the later version. This one can run beside it only during an upgrade",
        );
    } else {
        checks.pass(
            Name::Migrations,
            format!("all applied, up to {}", found.newest),
        );
    }
}

/// Ascending numbers as text, such as `1 to 11, 13`.
fn ranges(numbers: &[i64]) -> String {
    let runs = numbers.chunk_by(|one, next| one + 1 == *next);
    listed(runs.map(|run| match run {
        [first, .., last] => format!("{first} to {last}"),
        _ => listed(run.iter().map(ToString::to_string)),
    }))
}

/// Compares the environment that is stored in the database with that of the accounts.
fn check_environment(
    stored: Option<Environment>,
    configured: Option<Environment>,
    checks: &mut Checks,
) {
    let name = Name::Environment;
    match (stored, configured) {
        (_, None) => checks.skip(name, "the settings do not configure the Dojo accounts"),
        (None, Some(configured)) => checks.pass(
            name,
            format!(
                "not set yet: the first start sets it to {}",
                configured.as_str()
            ),
        ),
        (Some(stored), Some(configured)) if stored == configured => {
            checks.pass(name, format!("the database is for {}", stored.as_str()));
        }
        (Some(stored), Some(configured)) => checks.fail(
            name,
            format!(
                "the key is for {}, but the database is for {}",
                configured.as_str(),
                stored.as_str()
            ),
            "use a separate database for each environment",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::ranges;

    #[test]
    fn consecutive_numbers_are_a_range() {
        for (numbers, text) in [
            (&[][..], ""),
            (&[7], "7"),
            (&[1, 2, 3, 5, 8, 9], "1 to 3, 5, 8 to 9"),
        ] {
            assert_eq!(ranges(numbers), text);
        }
    }
}
