//! Tests of the whole sandbox over HTTP.

mod accounts;
mod checkout;
mod clock;
mod controls;
mod documents;
mod faults;
mod manage;
mod payment_intents;
mod program;
mod samples;
mod search;
mod subscriptions;
mod support;
mod transactions;
mod versions;
mod webhooks;
