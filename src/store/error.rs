use std::{error, fmt};

use crate::payment_link::PaymentLinkId;

/// Why a function of the store failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Postgres can't be reached, has no free connection, or rejected the statement.
    #[error("the database could not complete the request")]
    Database(#[source] Cause),
    /// A payment intent that Dojo returned for one link belongs to another one.
    #[error("payment intent {payment_intent_id} already belongs to the link {owner}")]
    IntentOfAnotherLink {
        payment_intent_id: String,
        /// The link that has the intent, or that it is surplus for.
        owner: PaymentLinkId,
    },
    /// Somebody else was already waiting for the same, for too long.
    #[error("the database takes too long")]
    Slow,
    /// This version doesn't understand what is stored.
    #[error("a value in the database is unreadable: {0}")]
    Unreadable(String),
}

impl From<sqlx::Error> for Error {
    fn from(error: sqlx::Error) -> Self {
        Self::Database(Cause(error))
    }
}

impl Error {
    /// Whether Postgres rejected the statement because of something else that runs at the same time: contention (SQLSTATE
    /// class 40), a lock that was not available (55P03), or a statement that took too long (57014).
    #[must_use]
    pub fn is_contention(&self) -> bool {
        matches!(
            self,
            Self::Database(Cause(sqlx::Error::Database(error)))
                if error.code().is_some_and(|code| {
                    code.starts_with("40") || code == "55P03" || code == "57014"
                })
        )
    }

    /// Whether a row with the same key exists already (SQLSTATE 23505).
    pub(super) fn is_unique_violation(&self) -> bool {
        matches!(
            self,
            Self::Database(Cause(sqlx::Error::Database(error))) if error.is_unique_violation()
        )
    }

    /// Whether the statement writes, and the server is read-only, as a standby is (SQLSTATE 25006).
    pub(super) fn is_read_only(&self) -> bool {
        matches!(
            self,
            Self::Database(Cause(sqlx::Error::Database(error)))
                if error.code().as_deref() == Some("25006")
        )
    }

    /// Whether an `Idempotency-Key` was inserted that has been erased. The trigger `idempotency_key_is_erased` says so.
    pub(super) fn is_erased_key(&self) -> bool {
        matches!(
            self,
            Self::Database(Cause(sqlx::Error::Database(error)))
                if error.code().as_deref() == Some("DPE01")
        )
    }

    /// Whether the database is out of reach for the moment, as opposed to rejecting the statement. Of Postgres's own errors
    /// (SQLSTATE classes): connection, rollback by contention, resources, objects in use, operator intervention.
    #[must_use]
    pub fn is_outage(&self) -> bool {
        match self {
            Self::Database(Cause(sqlx::Error::Database(error))) => {
                error.code().is_some_and(|code| {
                    // 3D000: no such database. 42501: a missing permission. An operator can fix both at any time.
                    // 25006: a read-only server, such as a standby. 25P03 and 25P04: Postgres ended a transaction that
                    // took too long. 42P01: a database that is not migrated yet.
                    [
                        "08", "25006", "25P03", "25P04", "28", "3D000", "3F000", "40", "42501",
                        "42P01", "53", "55", "57", "58",
                    ]
                    .iter()
                    .any(|class| code.starts_with(class))
                })
            }
            Self::Database(Cause(
                sqlx::Error::Io(_)
                | sqlx::Error::Tls(_)
                | sqlx::Error::Protocol(_)
                | sqlx::Error::PoolTimedOut
                | sqlx::Error::PoolClosed
                | sqlx::Error::WorkerCrashed,
            ))
            | Self::Slow => true,
            Self::Database(_) | Self::IntentOfAnotherLink { .. } | Self::Unreadable(_) => false,
        }
    }
}

/// An error of sqlx without the line of Postgres's source code that sqlx appends to it.
#[derive(Debug)]
pub struct Cause(pub(super) sqlx::Error);

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&reason(&self.0))
    }
}

impl error::Error for Cause {
    fn source(&self) -> Option<&(dyn error::Error + 'static)> {
        match &self.0 {
            sqlx::Error::Database(_) => None,
            error => error.source(),
        }
    }
}

pub(super) fn reason(error: &sqlx::Error) -> String {
    match error {
        sqlx::Error::Database(error) => match error.code() {
            Some(code) => format!("{} (SQLSTATE {code})", error.message()),
            None => error.message().to_owned(),
        },
        error => error.to_string(),
    }
}
