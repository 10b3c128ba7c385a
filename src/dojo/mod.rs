//! Everything that knows Dojo's wire format: its API, errors and webhooks.

mod account;
mod client;
mod error;
mod intent;
mod subscriptions;
mod transaction;
pub mod webhook;

pub use account::{Account, Accounts};
pub use client::{Client, CreatePaymentIntent, Operate, Page, Probe, SendBy, Window};
pub use error::{Error, On409};
pub use intent::PaymentIntent;
pub use subscriptions::{Secret, Subscription};
pub use transaction::TransactionPage;
