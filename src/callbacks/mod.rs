//! Callbacks: events, signed and sent to an address.
//!
//! They follow [Standard Webhooks](https://www.standardwebhooks.com), so receivers can verify them with any of its libraries.

pub mod client;
pub mod endpoint;
pub mod signature;
pub mod target;
