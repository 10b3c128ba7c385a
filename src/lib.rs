//! A REST service around Dojo's payment links.
//!
//! Internal services ask for a link; this service creates the payment intent at Dojo, keeps it in Postgres,
//! and hands back an address for the customer. Dojo's signed webhooks move the link along, and everyone
//! reads the truth from the API.
//!
//! A request walks in one direction:
//!
//! ```text
//! caller → api → protocol → dojo (out) / store (Postgres)
//!                    ↓
//!              payment_link (the rules)
//! ```
//!
//! | room | holds | knows nothing of |
//! | --- | --- | --- |
//! | [`payment_link`] | what a link is and how its state moves; pure | axum, sqlx, reqwest |
//! | [`dojo`] | Dojo's wire: client, errors, webhook signature and event | axum, sqlx |
//! | [`store`] | all SQL, a function per question | axum, reqwest |
//! | [`protocol`] | the exactly-once dealings between `store` and `dojo` | HTTP |
//! | [`jobs`] | background loops: recovery, refresh, orphaned_intents | HTTP |
//! | [`api`] | routes, authentication, problems, the OpenAPI document and its pages | SQL |
//! | [`config`] | settings, parsed and checked once | everything else |
//! | [`telemetry`] | logs and metrics | the domain |
//! | [`golive`] | what proves a deployment, and sets up Dojo's webhooks | HTTP routes, SQL |
//! | [`application`] | puts all of it together | |

pub mod api;
pub mod application;
pub mod config;
pub mod dojo;
pub mod golive;
pub mod jobs;
pub mod payment_link;
pub mod protocol;
pub mod store;
pub mod telemetry;
