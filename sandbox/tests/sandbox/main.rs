//! The sandbox as its users meet it: over HTTP, as a whole.

mod accounts;
mod checkout;
mod clock;
mod controls;
mod documents;
mod faults;
mod manage;
mod payment_intents;
mod samples;
mod search;
mod subscriptions;
mod support;
mod versions;
mod webhooks;
