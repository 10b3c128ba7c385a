//! A REST service for Dojo's payment links.
//!
//! Other services request a link. This service creates the payment intent at Dojo exactly once, stores it in Postgres and
//! returns the URL of the checkout page for the customer. Dojo's signed webhooks and reconciliation keep the link's state
//! in line with Dojo.
//!
//! A request passes through the modules in one direction:
//!
//! ```text
//! client → api → protocol → dojo (out) / store (Postgres)
//!                    ↓
//!              payment_link (the rules)
//! ```
//!
//! | module | contains | must not use |
//! | --- | --- | --- |
//! | [`payment_link`] | what a link is and how its state changes, without I/O | axum, sqlx, reqwest, other modules |
//! | [`api_key`] | the form, hash and scopes of our clients' API keys | other modules |
//! | [`config`] | settings, parsed and validated once | modules other than the two above |
//! | [`dojo`] | Dojo's wire format: client, errors, webhook signature and event | axum, sqlx |
//! | [`store`] | all SQL, one function per question | axum, reqwest |
//! | [`protocol`] | the steps between `store` and `dojo` that make everything happen exactly once | axum, SQL |
//! | [`jobs`] | background jobs: creation and operation recovery, reconciliation, orphaned intents, messages, feed, callbacks, removal of old data | axum, SQL |
//! | [`api`] | routes, authentication, problem details, the OpenAPI document and its pages | SQL |
//! | [`console`] | the page for people, as a client of [`api`] within the process | SQL |
//! | [`golive`] | the commands `check` and `webhooks`, and what the console shows of `check` | axum, sqlx, [`api`] |
//! | [`callbacks`] | events, signed and sent to an address: signature, permitted addresses, client | axum, SQL, other modules |
//! | [`sharing`] | what a customer gets: QR codes and texts | modules other than [`payment_link`] |
//! | [`mail`] | emails to customers: templates, and the dealings with a mail server | axum, SQL, Dojo |
//! | [`telemetry`] | logs, metrics and traces | modules other than [`config`] and [`payment_link`] |
//! | [`application`] | builds and runs the service from all of these | |
//!
//! The command line is in the executable, `src/cli/`.

pub mod api;
pub mod api_key;
pub mod application;
pub mod callbacks;
pub mod config;
pub mod console;
pub mod dojo;
pub mod golive;
pub mod jobs;
pub mod mail;
pub mod payment_link;
pub mod protocol;
mod retry_after;
pub mod sharing;
pub mod store;
pub mod telemetry;
