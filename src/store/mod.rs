//! All SQL: one file per table or question, one function per question.
//!
//! Every statement is checked at compile time against the migrations. `.sqlx/` contains what this needs if there is no database.

pub mod adoption;
pub mod api_keys;
pub mod condition;
pub mod creation;
pub mod creation_recovery;
pub mod deployment;
mod diagnosis;
pub mod leases;
pub mod links;
mod migration;
pub mod operation_recovery;
pub mod operations;
pub mod orphaned_intents;
mod pool;
pub mod reconciliation;
mod timeline;
pub mod webhooks;

use std::str::FromStr;

use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

use crate::payment_link::PaymentLinkId;

pub use diagnosis::{Cause, Diagnosis};
pub use migration::migrate;
pub use pool::{PgPool, PgTransaction};

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
    /// Whether the database is out of reach for the moment, as opposed to rejecting the statement. Of Postgres's own errors
    /// (SQLSTATE classes): connection, rollback by contention, resources, objects in use, operator intervention.
    #[must_use]
    pub fn is_outage(&self) -> bool {
        match self {
            Self::Database(Cause(sqlx::Error::Database(error))) => {
                error.code().is_some_and(|code| {
                    // 25006: a read-only server, such as a standby. 25P03 and 25P04: Postgres ended a transaction that
                    // took too long. 42P01: a database that is not migrated yet.
                    [
                        "08", "25006", "25P03", "25P04", "28", "40", "42P01", "53", "55", "57",
                        "58",
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
            )) => true,
            Self::Database(_) | Self::IntentOfAnotherLink { .. } | Self::Unreadable(_) => false,
        }
    }
}

fn to_json(value: &impl Serialize) -> Result<Value, Error> {
    serde_json::to_value(value).map_err(|error| Error::Unreadable(error.to_string()))
}

fn from_json<T: DeserializeOwned>(value: Value) -> Result<T, Error> {
    serde_json::from_value(value).map_err(|error| Error::Unreadable(error.to_string()))
}

/// Times in JSON for Postgres, whose `timestamptz` has microseconds.
///
/// Postgres would round the seven digits that Dojo writes, and a time that is rounded up makes the same response look older
/// when it is read again. So they are truncated, as sqlx does for its parameters.
mod microseconds {
    use time::OffsetDateTime;

    pub(super) fn truncate(at: OffsetDateTime) -> OffsetDateTime {
        at.replace_nanosecond(at.nanosecond() / 1000 * 1000)
            .unwrap_or(at)
    }

    pub(super) mod option {
        use serde::Serializer;
        use time::OffsetDateTime;

        #[expect(clippy::ref_option, reason = "serde passes the field like this")]
        pub(in crate::store) fn serialize<S: Serializer>(
            at: &Option<OffsetDateTime>,
            serializer: S,
        ) -> Result<S::Ok, S::Error> {
            time::serde::rfc3339::option::serialize(&at.map(super::truncate), serializer)
        }
    }
}

/// Parses a word that is stored as text.
fn word<T: FromStr<Err: std::fmt::Display>>(text: &str) -> Result<T, Error> {
    text.parse()
        .map_err(|error: T::Err| Error::Unreadable(error.to_string()))
}
