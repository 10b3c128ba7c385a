use std::{path::PathBuf, time::Duration};

use clap::Args;
use secrecy::{ExposeSecret, SecretString};

use super::{
    ConfigError,
    value::{duration, number, path, secret, statement_timeout},
};

/// The settings of the database.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Database")]
pub struct DatabaseSettings {
    /// The URL of the Postgres database: `postgres://user:password@host:5432/name`. Required.
    #[arg(long, env = "DATABASE_URL", hide_env_values = true, value_name = "URL")]
    database_url: Option<SecretString>,

    /// A file that contains `DATABASE_URL`.
    #[arg(long, env = "DATABASE_URL_FILE", value_name = "FILE", value_parser = path())]
    database_url_file: Option<PathBuf>,

    /// The maximum number of connections to the database. Each replica opens one more for `/readyz`, one to store
    /// webhooks, one to listen for events, and two while it migrates. The total over all replicas must stay below
    /// Postgres's `max_connections`.
    #[arg(long, env = "DATABASE_MAX_CONNECTIONS", default_value_t = 10, value_name = "N",
          value_parser = number(1..=1000_u32))]
    pub database_max_connections: u32,

    /// How long a request waits for a free connection before it gets 503.
    #[arg(long, env = "DATABASE_ACQUIRE_TIMEOUT", default_value = "5s", value_name = "DURATION",
          value_parser = duration)]
    pub database_acquire_timeout: Duration,

    /// How long a statement may run before Postgres cancels it. If there is no response two seconds after that, the
    /// connection is closed. At most 20s: the service must notice dead connections in time to serve again within 30s.
    /// Waiting for a lock is limited to three seconds.
    #[arg(long, env = "DATABASE_STATEMENT_TIMEOUT", default_value = "10s", value_name = "DURATION",
          value_parser = statement_timeout)]
    pub database_statement_timeout: Duration,
}

impl DatabaseSettings {
    /// How many connections reads of the feed may use at once: half of them.
    #[must_use]
    pub fn feed_reads(&self) -> usize {
        usize::try_from(self.database_max_connections / 2).map_or(1, |half| half.max(1))
    }

    /// The setting that the URL comes from, for messages.
    #[must_use]
    pub fn url_setting(&self) -> &'static str {
        let url = self.database_url.as_ref();
        if url.is_some_and(|url| !url.expose_secret().trim().is_empty()) {
            "DATABASE_URL"
        } else {
            "DATABASE_URL_FILE"
        }
    }

    pub fn url(&self) -> Result<SecretString, ConfigError> {
        const SETTING: &str = "DATABASE_URL";
        secret(
            SETTING,
            self.database_url.as_ref(),
            self.database_url_file.as_ref(),
        )?
        .ok_or_else(|| {
            ConfigError::new(
                SETTING,
                "is required: set it to postgres://user:password@host:5432/name",
            )
        })
    }
}
