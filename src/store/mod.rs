//! All SQL: one file per table or question, one function per question.
//!
//! Every statement is checked at compile time against the migrations (`.sqlx/` holds what that needs
//! without a database).

pub mod api_keys;
pub mod condition;
pub mod creation;
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

/// Why the database did not answer a question.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Postgres was not reached, had no connection free, or refused the statement.
    #[error("the database did not answer")]
    Database(#[source] Cause),
    /// A payment intent that Dojo answered for one link belongs to another one.
    #[error("payment intent {payment_intent_id} belongs to the link {owner} already")]
    IntentOfAnotherLink {
        /// The intent.
        payment_intent_id: String,
        /// The link that has it, or for which it is to be canceled.
        owner: PaymentLinkId,
    },
    /// What is stored is not what this version understands.
    #[error("the database holds something unreadable: {0}")]
    Unreadable(String),
}

impl From<sqlx::Error> for Error {
    fn from(error: sqlx::Error) -> Self {
        Self::Database(Cause(error))
    }
}

impl Error {
    /// Whether the database is out of reach for the moment, as opposed to rejecting the statement. Of Postgres's own
    /// errors (SQLSTATE classes): connection, rollback by contention, resources, objects in use, operator intervention.
    #[must_use]
    pub fn is_outage(&self) -> bool {
        match self {
            Self::Database(Cause(sqlx::Error::Database(error))) => {
                error.code().is_some_and(|code| {
                    // 25006: a server that only reads, as a standby does. 25P03 and 25P04: Postgres ended a transaction
                    // that took too long. 42P01: a database that is not migrated yet.
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

/// Reads a word that the database holds as text.
fn word<T: FromStr<Err: std::fmt::Display>>(text: &str) -> Result<T, Error> {
    text.parse()
        .map_err(|error: T::Err| Error::Unreadable(error.to_string()))
}
