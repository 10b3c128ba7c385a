//! The dealings between our database and Dojo, exactly once: the only code that makes Dojo do something
//! with money. The API and the background jobs both go through here, under the same rules.

mod adoption;
pub mod creation;
pub mod creation_recovery;
pub mod operation_recovery;
pub mod operations;
pub mod orphaned_intents;
pub mod reconciliation;

use crate::{
    dojo::{self, Account},
    payment_link::RecoveryLimits,
    store::{self, PgPool},
};

/// What every part of the protocol works with: the database, one Dojo account, and the limits of recovery.
///
/// How long a lease has to be follows from the account's client ([`dojo::Client::creation_lease`] and
/// [`dojo::Client::operation_lease`]). A clone copies a handful of short strings and handles.
#[derive(Debug, Clone)]
pub struct Context {
    pub pool: PgPool,
    pub account: Account,
    pub limits: RecoveryLimits,
}

/// Why a piece of work came to no end. It is still due, and somebody will take it up again.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The database did not answer, or what it holds stands against it.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// Dojo did not answer, or not with what is needed.
    #[error(transparent)]
    Dojo(#[from] dojo::Error),
    /// Dojo refused this piece of work and would take others.
    #[error(transparent)]
    Rejected(dojo::Error),
    /// Dojo has more intents around a creation than are read, so nobody can tell whether its intent is there.
    #[error("there are too many intents around this creation to read them all")]
    TooManyIntents,
    /// It took longer than it may be held.
    #[error("it took too long")]
    TimedOut,
    /// A fault of this program.
    #[error("it panicked")]
    Panicked,
}
