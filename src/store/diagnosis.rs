//! What to tell an operator when the database cannot be used: which database it is, what is wrong, and what to do about it.
//! Never the password.

use std::fmt;

use sqlx::{migrate::MigrateError, postgres::PgConnectOptions};

use super::error::{Cause, Error, reason};

/// Why the database cannot be used, and what to do.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{problem}; {remedy}")]
pub struct Diagnosis {
    /// What is wrong, and with which database.
    pub problem: String,
    /// What to do about it.
    pub remedy: String,
}

/// Which database it is, and which user connects to it.
#[derive(Debug)]
pub(super) struct Place {
    server: String,
    database: String,
    user: String,
    /// The setting that says this.
    setting: &'static str,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            server,
            database,
            user,
            setting,
        } = self;
        write!(
            f,
            "database \"{database}\" at {server} as user \"{user}\" ({setting})"
        )
    }
}

impl Place {
    pub(super) fn new(options: &PgConnectOptions, setting: &'static str) -> Self {
        let port = options.get_port();
        let user = options.get_username().to_owned();
        Self {
            server: match options.get_socket() {
                Some(socket) => format!("{}, port {port}", socket.display()),
                None => format!("{}:{port}", options.get_host()),
            },
            // Postgres has the same default.
            database: options.get_database().unwrap_or(&user).to_owned(),
            user,
            setting,
        }
    }

    /// What an error of a function in `store` means.
    pub(super) fn diagnose(&self, error: &Error) -> Diagnosis {
        match error {
            Error::Database(Cause(error)) => self.explain("", error),
            Error::Slow => Diagnosis {
                problem: format!("{error}, {self}"),
                remedy: "find out what keeps it busy, or what slows down the connection to it"
                    .to_owned(),
            },
            Error::Unreadable(_) | Error::IntentOfAnotherLink { .. } => Diagnosis {
                problem: format!("{error}, {self}"),
                remedy: "find out whether another version of this program uses it".to_owned(),
            },
        }
    }

    /// What an error of the migrations means.
    pub(super) fn diagnose_migration(&self, error: &MigrateError) -> Diagnosis {
        let changed = |version| Diagnosis {
            problem: format!(
                "migration {version} was applied to {self} and differs from this version's"
            ),
            remedy: "this is another program's database, or someone changed it by hand: restore it"
                .to_owned(),
        };
        match error {
            MigrateError::Execute(error) => self.explain("migrations: ", error),
            MigrateError::ExecuteMigration(error, version) => {
                self.explain(&format!("migration {version}: "), error)
            }
            MigrateError::VersionMismatch(version) | MigrateError::Dirty(version) => {
                changed(*version)
            }
            error => Diagnosis {
                problem: format!("the migrations failed on {self}: {error}"),
                remedy: "see the server's log".to_owned(),
            },
        }
    }

    /// What an error of sqlx means. `at` says where it occurred.
    fn explain(&self, at: &str, error: &sqlx::Error) -> Diagnosis {
        let setting = self.setting;
        let cause = reason(error);
        let code = error
            .as_database_error()
            .and_then(sqlx::error::DatabaseError::code);
        let (problem, remedy) = match (code.as_deref(), error) {
            (Some("28P01"), _) => (
                "cannot log in",
                format!("correct the user or the password in {setting}"),
            ),
            (Some(code), _) if code.starts_with("28") => (
                "cannot log in",
                format!(
                    "correct the user in {setting}, or create it; check that the server's pg_hba.conf lets it in from \
                     this machine"
                ),
            ),
            (Some("3D000"), _) => (
                "there is no such database",
                format!(
                    "correct the name in {setting}, or create the database: CREATE DATABASE \"{}\" OWNER \"{}\"",
                    self.database, self.user
                ),
            ),
            (Some("42501"), _) => (
                "the user lacks a privilege",
                format!(
                    "use the user in {setting} that owns the database and its tables, or make this one the owner: \
                     ALTER DATABASE \"{}\" OWNER TO \"{}\"",
                    self.database, self.user
                ),
            ),
            // A table, a column or a schema that does not exist.
            (Some("42P01" | "42703" | "3F000"), _) => (
                "migrations are missing",
                "run dojo-payment-links migrate".to_owned(),
            ),
            (Some("25006"), _) => (
                "the server is read-only, as a standby is",
                format!("point {setting} to the primary"),
            ),
            (Some("53300"), _) => (
                "the server has no connection left",
                "raise its max_connections, or lower DATABASE_MAX_CONNECTIONS".to_owned(),
            ),
            (Some("55P03" | "40P01"), _) => (
                "another transaction holds a lock that this one needs",
                "wait until it ends, or end it, and try again: find the oldest one by xact_start in pg_stat_activity"
                    .to_owned(),
            ),
            (Some("57P03"), _) => (
                "the server is starting or stopping",
                "try again in a moment".to_owned(),
            ),
            (Some(_), _) => ("Postgres reports an error", "see the server's log".to_owned()),
            (None, sqlx::Error::Tls(_)) => (
                "cannot set up TLS",
                format!("correct sslmode and sslrootcert in {setting}, or the server's certificate"),
            ),
            (None, sqlx::Error::Io(_) | sqlx::Error::PoolTimedOut) => (
                "cannot connect",
                format!("check that Postgres is running, and the host and port in {setting}"),
            ),
            (None, _) => (
                "the server did not respond like Postgres",
                format!("check that {setting} points to Postgres"),
            ),
        };
        Diagnosis {
            problem: format!("{problem}: {self}: {at}{cause}"),
            remedy,
        }
    }
}
