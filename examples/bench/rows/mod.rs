//! The rows of the benchmark.

mod bloat;
mod callbacks;
mod creations;
mod feed;
mod process;
mod reads;
mod webhooks;

use clap::ValueEnum;

use crate::{Result, lab::Lab, report::RowReport};

/// A row: one kind of work, its goals and its figures.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Row {
    /// webhooks on 64 connections, compared with pgbench and with Node.js
    Webhooks,
    /// webhooks on one connection, compared with pgbench
    WebhookLatency,
    /// what a creation takes beyond Dojo's own time
    CreationOverhead,
    /// 1,000 creations while Dojo is slow
    SlowDojo,
    /// creations per second, compared with the sandbox's own
    CreationRate,
    /// reading one link, compared with pgbench
    Read,
    /// how soon a revoked API key is rejected
    Revocation,
    /// pages of a long list
    List,
    /// searching many links, compared with pgbench
    Search,
    /// webhooks with many links and stored events
    FullDatabase,
    /// how soon a reader of the feed gets a change
    Feed,
    /// callbacks to one endpoint
    Callbacks,
    /// memory, idle and under load
    Memory,
    /// how long a start takes
    Start,
    /// the size of tables after 3 million webhooks (12 minutes; only if named)
    Bloat,
}

impl Row {
    pub fn name(self) -> &'static str {
        match self {
            Self::Webhooks => "webhooks",
            Self::WebhookLatency => "webhook-latency",
            Self::CreationOverhead => "creation-overhead",
            Self::SlowDojo => "slow-dojo",
            Self::CreationRate => "creation-rate",
            Self::Read => "read",
            Self::Revocation => "revocation",
            Self::List => "list",
            Self::Search => "search",
            Self::FullDatabase => "full-database",
            Self::Feed => "feed",
            Self::Callbacks => "callbacks",
            Self::Memory => "memory",
            Self::Start => "start",
            Self::Bloat => "bloat",
        }
    }

    /// Whether it takes too long to be part of every run.
    pub fn is_only_if_named(self) -> bool {
        matches!(self, Self::Bloat)
    }

    pub async fn run(self, lab: &mut Lab, mut report: RowReport<'_>) -> Result {
        let report = &mut report;
        match self {
            Self::Webhooks => webhooks::rate(lab, report).await,
            Self::WebhookLatency => webhooks::latency(lab, report).await,
            Self::CreationOverhead => creations::overhead(lab, report).await,
            Self::SlowDojo => creations::slow_dojo(lab, report).await,
            Self::CreationRate => creations::rate(lab, report).await,
            Self::Read => reads::read(lab, report).await,
            Self::Revocation => reads::revocation(lab, report).await,
            Self::List => reads::list(lab, report).await,
            Self::Search => reads::search(lab, report).await,
            Self::FullDatabase => webhooks::full_database(lab, report).await,
            Self::Feed => feed::delay(lab, report).await,
            Self::Callbacks => callbacks::rate(lab, report).await,
            Self::Memory => process::memory(lab, report).await,
            Self::Start => process::start(lab, report).await,
            Self::Bloat => bloat::measure(lab, report).await,
        }
    }
}
