//! The service from the outside: the real program over HTTP, a real Postgres, the sandbox as Dojo. Each test
//! has all three to itself, and they run in parallel.

#![allow(
    unreachable_pub,
    reason = "one program: everything is as public as its module says"
)]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod accounts;
mod browser;
mod callbacks;
mod check;
mod clients;
mod commands;
mod confirmed;
mod console;
mod console_attention;
mod console_books;
mod console_browser;
mod console_flows;
mod console_health;
mod console_live;
mod console_operator;
mod console_proxy;
mod console_security;
mod convergence;
mod crashes;
mod creation;
mod daily_reconciliation;
mod database;
mod docs;
mod erasure;
mod export;
mod failover;
mod faults;
mod feed;
mod generated_clients;
mod idempotency;
mod intake;
mod jobs;
mod kubernetes;
mod limits;
mod lost_operations;
mod messages;
mod misrouted;
mod monitoring;
mod movements;
mod openapi;
mod operations;
mod portal_refunds;
mod promises_to_clients;
mod prune;
mod public_address;
mod reading;
mod recovery;
mod reminders;
mod renewal;
mod replicas;
mod restore;
mod retries;
mod rotation;
mod running;
mod schemathesis;
mod sharing;
mod short_addresses;
mod subscriptions;
mod support;
mod traces;
mod validation;
mod webhooks;
