//! Everything that knows Dojo's wire: its API, its errors and its webhooks.

mod account;
mod client;
mod error;
mod intent;
mod subscriptions;
pub mod webhook;

pub use account::{Account, Accounts};
pub use client::{Client, CreatePaymentIntent, Operate, Page, Probe, Window};
pub use error::Error;
pub use intent::PaymentIntent;
pub use subscriptions::{Secret, Subscription};
