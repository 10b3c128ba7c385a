use std::{net::SocketAddr, path::PathBuf, time::Duration};

use clap::Args;
use secrecy::{ExposeSecret, SecretString};

use super::{
    BookSettings, CallbackSettings, ConfigError, ConsoleSettings, DatabaseSettings, DojoSettings,
    JobSettings, MailSettings, PrivacySettings, PublicUrl, TraceSettings,
    value::{base_url, duration, listen_address, number, optional, path, secret},
};
use crate::api_key::ApiKey;

/// The settings of `serve`.
#[derive(Debug, Clone, Args)]
pub struct ServeSettings {
    /// The IP address and port to listen on. Port 0 picks a free port; the log says which.
    #[arg(long, env = "LISTEN_ADDR", default_value = "0.0.0.0:8080", value_name = "ADDRESS",
          value_parser = listen_address)]
    pub listen_addr: SocketAddr,

    /// A second IP address and port, for the internet: Dojo's webhooks and short addresses. `/webhooks/…` and `/p/…` are
    /// then served there and nowhere else, and everything else only on `LISTEN_ADDR`. `/healthz` is served on both.
    #[arg(long, env = "PUBLIC_LISTEN_ADDR", default_value = "", hide_default_value = true, value_name = "ADDRESS",
          value_parser = optional(listen_address))]
    pub public_listen_addr: std::option::Option<SocketAddr>,

    #[command(flatten)]
    pub public_url: PublicUrl,

    /// The public base URL of this service for customers, such as `https://pay.example.com`. If it is set, each new link gets
    /// a short address below it: `/p/` and a code. Route `/p/` to this service.
    #[arg(long, env = "SHORT_URL_BASE", default_value = "", hide_default_value = true, value_name = "URL",
          value_parser = optional(base_url))]
    pub short_url_base: std::option::Option<String>,

    /// The maximum number of requests per second for short addresses that this replica serves, from all customers together.
    /// Any more get a page with status 429.
    #[arg(long, env = "PAGE_RATE", default_value_t = 200, value_name = "N", value_parser = number(1..=1_000_000_u32))]
    pub page_rate: u32,

    /// The time limit of a request. A request that takes longer gets 503. Work at Dojo that has begun continues in the
    /// background.
    #[arg(long, env = "REQUEST_TIMEOUT", default_value = "30s", value_name = "DURATION", value_parser = duration)]
    pub request_timeout: Duration,

    /// The maximum number of creations, operations and refreshes in progress on this replica. Any more get 503
    /// before anything is saved, so that a slow Dojo can't exhaust the memory.
    #[arg(long, env = "MAX_CREATIONS", default_value_t = 256, value_name = "N", value_parser = number(1..=u16::MAX))]
    pub max_creations: u16,

    /// The maximum number of requests that wait for events on this replica. Any more get 503. A waiting request needs no
    /// database connection.
    #[arg(long, env = "MAX_READERS", default_value_t = 2000, value_name = "N", value_parser = number(1..=u16::MAX))]
    pub max_readers: u16,

    /// The maximum number of requests per second from each client to this replica. Bursts of up to the same number are
    /// allowed. Further requests get 429.
    #[arg(long, env = "CLIENT_RATE", default_value_t = 200, value_name = "N",
          value_parser = number(1..=1_000_000_u32))]
    pub client_rate: u32,

    /// How long requests in progress may take to finish after SIGTERM. Set the orchestrator's grace period to a longer
    /// time.
    #[arg(long, env = "SHUTDOWN_TIMEOUT", default_value = "25s", value_name = "DURATION", value_parser = duration)]
    pub shutdown_timeout: Duration,

    /// Whether to run `migrate` before serving. Many replicas may start and migrate at the same time. With `false`, the
    /// service starts even if the database is unreachable, and becomes ready once the database is reachable and migrated.
    #[arg(long, env = "MIGRATE_ON_START", default_value_t = true, value_name = "BOOL", action = clap::ArgAction::Set)]
    pub migrate_on_start: bool,

    /// An API key that is created at the start for the client `bootstrap`, with all scopes: `dpl_` and at least 32
    /// characters. A new value replaces the previous one, which is rejected from then on. Meant for compose files and
    /// demos. Use `api-keys create` for real clients.
    #[arg(
        long,
        env = "BOOTSTRAP_API_KEY",
        hide_env_values = true,
        value_name = "KEY"
    )]
    bootstrap_api_key: Option<SecretString>,

    /// A file that contains `BOOTSTRAP_API_KEY`.
    #[arg(long, env = "BOOTSTRAP_API_KEY_FILE", value_name = "FILE", value_parser = path())]
    bootstrap_api_key_file: Option<PathBuf>,

    #[command(flatten)]
    pub database: DatabaseSettings,

    #[command(flatten)]
    pub dojo: DojoSettings,

    #[command(flatten)]
    pub jobs: JobSettings,

    #[command(flatten)]
    pub books: BookSettings,

    #[command(flatten)]
    pub privacy: PrivacySettings,

    #[command(flatten)]
    pub callbacks: CallbackSettings,

    #[command(flatten)]
    pub mail: MailSettings,

    #[command(flatten)]
    pub console: ConsoleSettings,

    #[command(flatten)]
    pub traces: TraceSettings,
}

impl ServeSettings {
    /// Checks that the addresses to listen on don't overlap. Some systems would allow it, and then nobody could tell which of
    /// them a connection reaches.
    pub fn check_listen_addresses(&self) -> Result<(), ConfigError> {
        let mut error = ConfigError::default();
        let mut taken = vec![("LISTEN_ADDR", self.listen_addr)];
        for (setting, address) in [
            ("PUBLIC_LISTEN_ADDR", self.public_listen_addr),
            ("CONSOLE_LISTEN_ADDR", self.console.listen_addr),
        ] {
            let Some(address) = address else { continue };
            if let Some((other, at)) = taken.iter().find(|(_, at)| overlap(*at, address)) {
                error.add(
                    setting,
                    format!("{address} overlaps with {other} {at}: choose another port"),
                );
            }
            taken.push((setting, address));
        }
        if error.is_empty() { Ok(()) } else { Err(error) }
    }

    /// The API key to create at the start, if any.
    pub fn bootstrap_api_key(&self) -> Result<Option<ApiKey>, ConfigError> {
        const SETTING: &str = "BOOTSTRAP_API_KEY";
        let key = secret(
            SETTING,
            self.bootstrap_api_key.as_ref(),
            self.bootstrap_api_key_file.as_ref(),
        )?;
        key.map(|key| {
            ApiKey::parse(key.expose_secret())
                .ok_or_else(|| ConfigError::new(SETTING, format!("must be {}", ApiKey::FORM)))
        })
        .transpose()
    }
}

/// Whether a connection could reach both addresses.
fn overlap(one: SocketAddr, other: SocketAddr) -> bool {
    let same_ip = one.ip() == other.ip() || [one, other].iter().any(|it| it.ip().is_unspecified());
    one.port() == other.port() && one.port() != 0 && same_ip
}
