//! All SQL: one file per table or question, one function per question.
//!
//! Every statement is checked at compile time against the migrations. `.sqlx/` contains what this needs if there is no database.

pub mod adoption;
pub mod api_keys;
pub mod attention;
pub mod callback_deliveries;
pub mod callback_endpoints;
pub mod condition;
pub mod console_approvals;
pub mod console_audit;
pub mod console_claims;
pub mod console_sessions;
pub mod creation;
pub mod creation_recovery;
pub mod daily_reconciliation;
pub mod deployment;
mod diagnosis;
pub mod erasure;
mod error;
pub mod feed;
pub mod idempotency_keys;
pub mod leases;
pub mod link_reader;
pub mod links;
pub mod messages;
mod microseconds;
mod migration;
mod migrator;
pub mod movements;
pub mod operation_recovery;
pub mod operations;
pub mod orphaned_intents;
pub mod personal_data;
mod pool;
pub mod pruning;
pub mod reconciliation;
pub mod reminders;
pub mod retention;
pub mod short_addresses;
mod timeline;
pub mod webhooks;

use std::str::FromStr;

use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

pub use diagnosis::Diagnosis;
pub use error::{Cause, Error};
pub use migration::{Migrated, migrate};
pub use pool::{PgPool, PgTransaction};

fn to_json(value: &impl Serialize) -> Result<Value, Error> {
    serde_json::to_value(value).map_err(|error| Error::Unreadable(error.to_string()))
}

fn from_json<T: DeserializeOwned>(value: Value) -> Result<T, Error> {
    serde_json::from_value(value).map_err(|error| Error::Unreadable(error.to_string()))
}

/// Parses a word that is stored as text.
fn parse_stored<T: FromStr<Err: std::fmt::Display>>(text: &str) -> Result<T, Error> {
    text.parse()
        .map_err(|error: T::Err| Error::Unreadable(error.to_string()))
}
