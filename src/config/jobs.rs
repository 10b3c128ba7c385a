use std::time::Duration;

use clap::Args;

use super::{
    RetentionSettings,
    value::{duration, number},
};
use crate::payment_link::{RecoveryLimits, SettlementWindow};

/// The settings of the background jobs.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Background jobs")]
pub struct JobSettings {
    /// Whether this replica runs background jobs: recovering creations and operations whose response was lost, and
    /// reconciling links with Dojo. At least one replica must run them.
    #[arg(long, env = "RUN_JOBS", default_value_t = true, value_name = "BOOL", action = clap::ArgAction::Set)]
    pub run_jobs: bool,

    /// The settlement window: how long a call to Dojo may still take effect after it was sent, and how far Dojo's search
    /// may lag behind. After a lost response, the service waits this long before it concludes that nothing happened and
    /// creates the intent, or requests the amount or tip, again. A capture counts as not done if Dojo doesn't show it after
    /// this time. A response from Dojo that lags behind a webhook is accepted only if Dojo still returns it after this time.
    /// Dojo documents no limits. A window that is too long delays links. One that is too short risks a surplus intent, which
    /// must then be canceled; raise it if `recoveries_total{outcome="surplus"}` rises.
    #[arg(long, env = "RECOVERY_SETTLE", default_value = "2m", value_name = "DURATION", value_parser = duration)]
    pub recovery_settle: Duration,

    /// How long after the request a lost creation or operation may be sent to Dojo again. After this time the service gives
    /// up, because by then nobody expects the link or operation, and one that appears late would be a surprise.
    #[arg(long, env = "RECOVERY_GIVE_UP", default_value = "24h", value_name = "DURATION", value_parser = duration)]
    pub recovery_give_up: Duration,

    /// How often the background jobs check the database for work.
    #[arg(long, env = "POLL_INTERVAL", default_value = "1s", value_name = "DURATION", value_parser = duration)]
    pub poll_interval: Duration,

    /// The maximum number of items (links, operations or intents) that a background job claims at a time.
    #[arg(id = "background-batch", long, env = "BACKGROUND_BATCH", default_value_t = 100, value_name = "N",
          value_parser = number(1..=1000_i64))]
    pub batch: i64,

    /// The maximum number of items (links, operations or intents) that each background job works on at the same time,
    /// per account and replica.
    #[arg(id = "background-concurrency", long, env = "BACKGROUND_CONCURRENCY", default_value_t = 4, value_name = "N",
          value_parser = number(1..=100_u16))]
    concurrency: u16,

    /// The maximum number of items (links, operations or intents) that the background jobs start per second, per
    /// account and replica. Most take one call to Dojo. Lower it if Dojo returns 429.
    #[arg(long, env = "BACKGROUND_RATE", default_value_t = 20, value_name = "N",
          value_parser = number(1..=1000_u32))]
    pub background_rate: u32,

    /// The longest `Retry-After` from Dojo that background work obeys. A longer one is shortened to this.
    #[arg(long, env = "MAX_RETRY_AFTER", default_value = "5m", value_name = "DURATION", value_parser = duration)]
    pub max_retry_after: Duration,

    #[command(flatten)]
    pub retention: RetentionSettings,
}

impl JobSettings {
    /// The settlement window, and when recovery gives up.
    #[must_use]
    pub fn limits(&self) -> RecoveryLimits {
        RecoveryLimits {
            window: SettlementWindow::new(self.recovery_settle),
            give_up: self.recovery_give_up,
        }
    }

    /// The maximum number of items that each job works on at the same time.
    #[must_use]
    pub fn concurrency(&self) -> i64 {
        self.concurrency.into()
    }
}
