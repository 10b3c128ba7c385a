//! The exactly-once protocol between our database and Dojo: the only code that creates or changes payments at Dojo. The API
//! and the background jobs both use it, under the same rules.

mod adoption;
pub mod creation;
pub mod creation_recovery;
pub mod daily_reconciliation;
pub mod intake;
pub mod intent_search;
pub mod messages;
pub mod operation_recovery;
pub mod operations;
pub mod orphaned_intents;
pub mod reconciliation;
pub mod reminders;
pub mod renewal;
pub mod webhooks;

use std::{sync::Arc, time::Duration};

use backon::ExponentialBuilder;
use tokio::sync::Notify;

use crate::{
    dojo::{self, Account},
    payment_link::{RecoveryLimits, erasure::PersonalMetadata},
    store::{self, PgPool},
};

/// What every part of the protocol works with: the database, one Dojo account, and the limits of recovery.
///
/// The account's client determines how long a lease must be ([`dojo::Client::creation_lease`] and
/// [`dojo::Client::operation_lease`]). Cloning is cheap: it copies a handful of short strings and handles.
#[derive(Debug, Clone)]
pub struct Context {
    pub pool: PgPool,
    pub account: Account,
    pub limits: RecoveryLimits,
    /// The metadata that is erased with other personal data.
    pub personal_metadata: PersonalMetadata,
    /// Wakes the background jobs when something has just become due, so that it doesn't wait for the next poll.
    pub wake: Arc<Notify>,
}

/// The pauses before each of these retries of storing an outcome that only this process knows. A short outage of the database
/// must not lose it.
fn through_an_outage(retries: usize) -> ExponentialBuilder {
    ExponentialBuilder::default()
        .with_min_delay(Duration::from_millis(100))
        .with_max_times(retries)
}

/// Why a piece of work was not finished. It is still due and will be tried again.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The database failed, or its contents rule out the change.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// Dojo failed or can't be reached, which may concern all work of the account.
    #[error(transparent)]
    Dojo(#[from] dojo::Error),
    /// Dojo rejects this piece of work or always fails on it, but handles others.
    #[error(transparent)]
    Rejected(dojo::Error),
    /// Dojo has more intents around the time of this creation than are read, so whether its intent exists is unknown.
    #[error("there are too many intents around the time of this creation to read them all")]
    TooManyIntents,
    /// Dojo lists more transactions of a business day than are compared.
    #[error("there are too many transactions on this business day to compare them all")]
    TooManyTransactions,
    /// Dojo's response doesn't say for certain what the state of the link is.
    #[error("Dojo has not confirmed yet what has become of the link")]
    NotConfirmed,
    /// The lease expired.
    #[error("the work took too long")]
    TimedOut,
    /// A bug in this program.
    #[error("the work panicked")]
    Panicked,
}
