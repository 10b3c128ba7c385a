//! A stand-in for Dojo: its payment API, hosted checkout page and signed webhooks, for a demo, for
//! tests, and for anyone who integrates.
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
//! The map:
//!
//! | room | holds |
//! | --- | --- |
//! | `intents` | the rules of a payment intent, pure: how it begins, is paid, captured, refunded, runs out |
//! | `account` | whose each of them is, by the API key |
//! | `ledger` | all intents, changed one at a time; what each change tells subscribers |
//! | `webhooks` | subscriptions and their secrets, deliveries, retries, delivery faults |
//! | `api` | Dojo's API over HTTP |
//! | `checkout` | the page a customer pays on |
//! | `control` | `/_sandbox`: what tests use to pay, to break things and to look inside |
//! | `traffic`, `faults` | the record of API calls and what goes wrong with them |
//! | `document` | Dojo's OpenAPI file, which calls are held to where it is at hand |
//! | `server` | the HTTP loop, which can cut a connection or leave it silent |

mod account;
mod api;
mod chance;
mod checkout;
mod clock;
mod control;
pub mod document;
mod faults;
mod ids;
mod intents;
mod ledger;
mod money;
mod problem;
mod sandbox;
mod server;
mod settings;
pub mod signature;
mod traffic;
mod webhooks;
mod world;

pub use sandbox::Sandbox;
pub use settings::Settings;
pub use traffic::Exchange;
