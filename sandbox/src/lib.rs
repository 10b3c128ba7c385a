//! A stand-in for Dojo: its payment and transaction APIs, hosted checkout page and signed webhooks, for demos, for
//! tests, and for anyone who integrates with Dojo.
//!
//! ```no_run
//! # async fn example() -> std::io::Result<()> {
//! use dojo_sandbox::{Sandbox, Settings};
//!
//! let sandbox = Sandbox::start(Settings::default()).await?;
//! println!("Dojo's API is at {}", sandbox.url());
//! sandbox.stop().await;
//! # Ok(())
//! # }
//! ```
//!
//! | module | contains |
//! | --- | --- |
//! | `intents` | a payment intent and its rules: creation, payment, management, expiry |
//! | `account` | which API key an intent, a transaction or a subscription belongs to |
//! | `transactions` | the record of money movements, which the Transactions API shows |
//! | `intent_store` | all intents, changed one at a time; the transactions and events that each change causes |
//! | `webhooks` | subscriptions and their secrets, deliveries, retries, delivery faults |
//! | `api` | Dojo's API over HTTP |
//! | `paging` | what searches share: periods, pages and cursors |
//! | `checkout` | the page where a customer pays |
//! | `control` | `/_sandbox`: what tests use to pay, to inject faults and to see what happened |
//! | `faults`, `requests`, `traffic` | faults in API calls, the record of calls, and the middleware that applies both |
//! | `app_state` | everything above that the handlers share |
//! | `server` | the HTTP loop, which can close a connection without a response or leave it silent |

mod account;
mod api;
mod app_state;
mod chance;
mod checkout;
mod clock;
mod control;
mod faults;
mod ids;
mod intent_store;
mod intents;
mod money;
mod paging;
mod problem;
mod requests;
mod sandbox;
mod server;
mod settings;
pub mod signature;
mod traffic;
mod transactions;
mod webhooks;

pub use requests::Exchange;
pub use sandbox::Sandbox;
pub use settings::{Settings, listen_addr};
