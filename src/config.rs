//! The settings: each a flag with an environment variable, parsed and checked once, at the start.
//!
//! An operator who gets one wrong is told which, and why, and never its value: it may be a secret.

mod accounts;

use std::{error::Error, fmt, net::SocketAddr, path::PathBuf, time::Duration};

use clap::{
    Args, ValueEnum,
    builder::{OsStringValueParser, TypedValueParser},
};
use secrecy::{ExposeSecret, SecretString};
use tracing_subscriber::EnvFilter;
use url::Url;

use crate::{
    payment_link::{Environment, NewPaymentLink, RecoveryLimits, SettlementWindow},
    telemetry,
};

/// Everything that `serve` needs.
#[derive(Debug, Clone, Args)]
pub struct ServeSettings {
    /// The address to listen on. Port 0 takes a free one; the log tells which.
    #[arg(long, env = "LISTEN_ADDR", default_value = "0.0.0.0:8080")]
    pub listen_addr: SocketAddr,

    /// How long a request may take before it is answered 503. Work at Dojo goes on all the same.
    #[arg(long, env = "REQUEST_TIMEOUT", default_value = "30s", value_parser = duration)]
    pub request_timeout: Duration,

    /// How many links, operations and refreshes may be under way at once. More are answered 503 before anything is saved,
    /// so that a slow Dojo fills no memory.
    #[arg(long, env = "MAX_CREATIONS", default_value_t = 256, value_name = "N",
          value_parser = clap::value_parser!(u16).range(1..))]
    pub max_creations: u16,

    /// How many requests a second each client may send to this replica, in bursts of up to as many. More are answered 429.
    #[arg(long, env = "CLIENT_RATE", default_value_t = 200, value_name = "N",
          value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub client_rate: u32,

    /// How long requests in flight may take to finish after SIGTERM.
    #[arg(long, env = "SHUTDOWN_TIMEOUT", default_value = "25s", value_parser = duration)]
    pub shutdown_timeout: Duration,

    /// Whether to migrate the database before serving. Safe with many replicas starting at once. Without it the service
    /// starts even if the database cannot be reached, and is ready once it can and somebody has migrated it.
    #[arg(long, env = "MIGRATE_ON_START", default_value_t = true, action = clap::ArgAction::Set)]
    pub migrate_on_start: bool,

    /// The API key of the client `bootstrap`, with every scope, made at the start if it is not there: `dpl_` and at least
    /// 32 characters. Another one takes the place of the one before, which is rejected from then on. For compose and demos;
    /// make real keys with `api-keys create`.
    #[arg(
        long,
        env = "BOOTSTRAP_API_KEY",
        hide_env_values = true,
        value_name = "KEY"
    )]
    bootstrap_api_key: Option<SecretString>,

    /// A file that holds it.
    #[arg(long, env = "BOOTSTRAP_API_KEY_FILE", value_name = "FILE", value_parser = path())]
    bootstrap_api_key_file: Option<PathBuf>,

    /// The database.
    #[command(flatten)]
    pub database: DatabaseSettings,

    /// Dojo.
    #[command(flatten)]
    pub dojo: DojoSettings,

    /// The background.
    #[command(flatten)]
    pub jobs: JobSettings,
}

impl ServeSettings {
    /// The key to make at the start, if any.
    pub fn bootstrap_api_key(&self) -> Result<Option<SecretString>, ConfigError> {
        secret(
            "BOOTSTRAP_API_KEY",
            self.bootstrap_api_key.as_ref(),
            self.bootstrap_api_key_file.as_ref(),
        )
    }
}

/// Where the database is.
#[derive(Debug, Clone, Args)]
pub struct DatabaseSettings {
    /// The Postgres database: `postgres://user:password@host:5432/name`. Required.
    #[arg(long, env = "DATABASE_URL", hide_env_values = true, value_name = "URL")]
    database_url: Option<SecretString>,

    /// A file that holds it.
    #[arg(long, env = "DATABASE_URL_FILE", value_name = "FILE", value_parser = path())]
    database_url_file: Option<PathBuf>,

    /// How many connections to hold at most.
    #[arg(long, env = "DATABASE_MAX_CONNECTIONS", default_value_t = 10, value_name = "N",
          value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub database_max_connections: u32,

    /// How long to wait for a free connection before a request is answered 503.
    #[arg(long, env = "DATABASE_ACQUIRE_TIMEOUT", default_value = "5s", value_parser = duration)]
    pub database_acquire_timeout: Duration,

    /// How long one statement may take before Postgres ends it. A connection on which nothing is heard for two seconds
    /// longer is closed. A statement waits at most three seconds for a lock.
    #[arg(long, env = "DATABASE_STATEMENT_TIMEOUT", default_value = "10s", value_parser = duration)]
    pub database_statement_timeout: Duration,
}

impl DatabaseSettings {
    /// The setting that the address comes from.
    #[must_use]
    pub fn url_setting(&self) -> &'static str {
        let url = self.database_url.as_ref();
        if url.is_some_and(|url| !url.expose_secret().trim().is_empty()) {
            "DATABASE_URL"
        } else {
            "DATABASE_URL_FILE"
        }
    }

    /// The database's address.
    pub fn url(&self) -> Result<SecretString, ConfigError> {
        secret(
            "DATABASE_URL",
            self.database_url.as_ref(),
            self.database_url_file.as_ref(),
        )?
        .ok_or_else(|| {
            ConfigError::new(
                "DATABASE_URL",
                "is required: postgres://user:password@host/name",
            )
        })
    }
}

/// Where Dojo is, and who we are there.
#[derive(Debug, Clone, Args)]
pub struct DojoSettings {
    /// The API key of the account `default`: `sk_sandbox_…`, or `sk_prod_…` for real money. Required unless
    /// `DOJO_ACCOUNTS_FILE` names an account.
    #[arg(long, env = "DOJO_API_KEY", hide_env_values = true, value_name = "KEY")]
    dojo_api_key: Option<SecretString>,

    /// A file that holds it.
    #[arg(long, env = "DOJO_API_KEY_FILE", value_name = "FILE", value_parser = path())]
    dojo_api_key_file: Option<PathBuf>,

    /// A TOML file with further accounts: for each an `[accounts.NAME]` with `environment`, `api_key` or
    /// `api_key_file`, `webhook_secrets` or `webhook_secrets_file`, and `checkout_url` if it has its own.
    #[arg(long, env = "DOJO_ACCOUNTS_FILE", value_name = "FILE", value_parser = path())]
    dojo_accounts_file: Option<PathBuf>,

    /// Where Dojo's API is.
    #[arg(id = "dojo-api-url", long, env = "DOJO_API_URL", default_value = "https://api.dojo.tech",
          value_name = "URL", value_parser = web_address)]
    pub api_url: Url,

    /// The version of Dojo's API to speak.
    #[arg(
        id = "dojo-api-version",
        long,
        env = "DOJO_API_VERSION",
        default_value = "2026-02-27",
        value_name = "DATE",
        value_parser = api_version
    )]
    pub api_version: String,

    /// What the address of a checkout page begins with; the payment intent's id follows. An account of
    /// `DOJO_ACCOUNTS_FILE` may have its own.
    #[arg(id = "dojo-checkout-url", long, env = "DOJO_CHECKOUT_URL",
          default_value = "https://pay.dojo.tech/checkout", value_name = "URL", value_parser = web_address)]
    pub checkout_url: Url,

    /// The `paymentSource` to send, by which Dojo's portal filters payments. Empty: send none.
    #[arg(
        long,
        env = "DOJO_PAYMENT_SOURCE",
        default_value = "payment-links",
        value_name = "NAME"
    )]
    dojo_payment_source: String,

    /// How long one call to Dojo may take.
    #[arg(id = "dojo-timeout", long, env = "DOJO_TIMEOUT", default_value = "10s", value_name = "DURATION",
          value_parser = duration)]
    pub timeout: Duration,

    /// Whoever creates a link or looks at one is left alone with it for twice the time limit of a call to Dojo, whoever
    /// carries out an operation for three times that, and this much more: the database's share, and that of a machine
    /// that stalls. What a replica held when it died is taken up by another one after that long. Too short, and a link
    /// that is merely slow may get a second intent, which has to be canceled.
    #[arg(id = "lease-slack", long, env = "LEASE_SLACK", default_value = "10s", value_name = "DURATION",
          value_parser = duration)]
    pub lease_slack: Duration,

    /// The secrets that webhooks of the account `default` may be signed with, separated by commas. Without any,
    /// none is accepted.
    #[arg(
        long,
        env = "DOJO_WEBHOOK_SECRETS",
        hide_env_values = true,
        value_name = "SECRETS"
    )]
    dojo_webhook_secrets: Option<SecretString>,

    /// A file that holds them.
    #[arg(long, env = "DOJO_WEBHOOK_SECRETS_FILE", value_name = "FILE", value_parser = path())]
    dojo_webhook_secrets_file: Option<PathBuf>,
}

/// One Dojo account, as the settings have it.
#[derive(Debug, Clone)]
pub struct AccountSettings {
    /// Its name in this service.
    pub name: String,
    /// The key that it is reached with.
    pub api_key: DojoApiKey,
    /// The secrets that its webhooks may be signed with.
    pub webhook_secrets: Vec<SecretString>,
    /// What the address of a checkout page begins with.
    pub checkout_url: Url,
}

/// All accounts that are configured: at least one, in order of name, all of one environment.
#[derive(Debug, Clone)]
pub struct ConfiguredAccounts {
    /// The accounts.
    pub accounts: Vec<AccountSettings>,
    /// Whether their keys move real money.
    pub environment: Environment,
}

/// A key of Dojo's, and what it moves.
#[derive(Debug, Clone)]
pub struct DojoApiKey {
    /// The key.
    pub secret: SecretString,
    /// Whether it moves real money, as its prefix says.
    pub environment: Environment,
}

impl DojoApiKey {
    /// Reads the environment off the key's prefix. An `Err` says what is wrong with it.
    fn new(secret: SecretString) -> Result<Self, &'static str> {
        let key = secret.expose_secret();
        let environment = if key.starts_with("sk_sandbox_") {
            Environment::Sandbox
        } else if key.starts_with("sk_prod_") {
            Environment::Production
        } else {
            return Err("begins with neither sk_sandbox_ nor sk_prod_");
        };
        if !key.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err("holds a character that no header may carry");
        }
        Ok(Self {
            secret,
            environment,
        })
    }
}

impl DojoSettings {
    /// Every account.
    pub fn accounts(&self) -> Result<ConfiguredAccounts, ConfigError> {
        let default = self.default_account();
        let known = default.as_ref().ok().and_then(Option::as_ref);
        let from_file = match self.accounts_file() {
            Some(file) => accounts::read(file, &self.checkout_url, known),
            None => Ok(Vec::new()),
        };
        let (default, mut accounts) = both(default, from_file)?;
        accounts.extend(default);
        accounts.sort_by(|one, other| one.name.cmp(&other.name));
        let Some(environment) = accounts.first().map(|account| account.api_key.environment) else {
            return Err(ConfigError::new(
                "DOJO_API_KEY",
                "is required, or an account in DOJO_ACCOUNTS_FILE: sk_sandbox_… or sk_prod_…",
            ));
        };
        self.check_api_url(environment)?;
        Ok(ConfiguredAccounts {
            accounts,
            environment,
        })
    }

    /// The setting that the API keys come from, for what is wrong with all of them.
    #[must_use]
    pub fn api_key_setting(&self) -> &'static str {
        let key = self.dojo_api_key.as_ref();
        let file = self.dojo_api_key_file.as_ref();
        if key.is_some_and(|key| !key.expose_secret().trim().is_empty())
            || file.is_some_and(|file| !file.as_os_str().is_empty())
        {
            "DOJO_API_KEY"
        } else {
            accounts::SETTING
        }
    }

    fn accounts_file(&self) -> Option<&PathBuf> {
        let file = self.dojo_accounts_file.as_ref();
        file.filter(|file| !file.as_os_str().is_empty())
    }

    /// The one account that the environment describes by itself, if it does.
    fn default_account(&self) -> Result<Option<AccountSettings>, ConfigError> {
        const KEY: &str = "DOJO_API_KEY";
        const SECRETS: &str = "DOJO_WEBHOOK_SECRETS";
        let key = secret(
            KEY,
            self.dojo_api_key.as_ref(),
            self.dojo_api_key_file.as_ref(),
        )
        .and_then(|key| {
            key.map(DojoApiKey::new)
                .transpose()
                .map_err(|problem| ConfigError::new(KEY, problem))
        });
        let secrets = secret(
            SECRETS,
            self.dojo_webhook_secrets.as_ref(),
            self.dojo_webhook_secrets_file.as_ref(),
        );
        let (key, secrets) = both(key, secrets)?;
        let Some(api_key) = key else {
            return match secrets {
                // Nobody would notice that they are good for nothing.
                Some(_) if self.accounts_file().is_some() => Err(ConfigError::new(
                    SECRETS,
                    "is set without DOJO_API_KEY: an account of DOJO_ACCOUNTS_FILE has its own",
                )),
                _ => Ok(None),
            };
        };
        Ok(Some(AccountSettings {
            name: NewPaymentLink::DEFAULT_ACCOUNT.to_owned(),
            api_key,
            webhook_secrets: secrets.as_ref().map(webhook_secrets).unwrap_or_default(),
            checkout_url: self.checkout_url.clone(),
        }))
    }

    fn check_api_url(&self, environment: Environment) -> Result<(), ConfigError> {
        let loopback = match self.api_url.host() {
            Some(url::Host::Domain(name)) => name == "localhost",
            Some(url::Host::Ipv4(address)) => address.is_loopback(),
            Some(url::Host::Ipv6(address)) => address.is_loopback(),
            None => false,
        };
        if environment == Environment::Production && self.api_url.scheme() != "https" && !loopback {
            return Err(ConfigError::new(
                "DOJO_API_URL",
                "is not https, and a production key must not travel in the clear",
            ));
        }
        Ok(())
    }

    /// The `paymentSource` to send, if any.
    #[must_use]
    pub fn payment_source(&self) -> Option<String> {
        let source = self.dojo_payment_source.trim();
        (!source.is_empty()).then(|| source.to_owned())
    }
}

/// How the world reaches this service.
#[derive(Debug, Clone, Args)]
pub struct PublicUrl {
    /// The base of the public address: https, and what stands before `/webhooks/dojo`, which the command adds itself
    /// (and `/NAME` behind it for an account other than `default`).
    #[arg(
        id = "public-url",
        long = "url",
        env = "PUBLIC_URL",
        value_name = "URL"
    )]
    url: Option<String>,
}

impl PublicUrl {
    /// The base, if it is given.
    pub fn get(&self) -> Result<Option<Url>, ConfigError> {
        const NAME: &str = "--url or PUBLIC_URL";
        // Compose files pass on variables that nobody has set.
        let Some(text) = self
            .url
            .as_deref()
            .map(str::trim)
            .filter(|text| !text.is_empty())
        else {
            return Ok(None);
        };
        let wrong = |problem: &str| Err(ConfigError::new(NAME, problem));
        let url = match web_address(text) {
            Ok(url) => url,
            Err(problem) => return wrong(&format!("is no web address: {problem}")),
        };
        if !url.username().is_empty() || url.password().is_some() {
            return wrong("holds a user's name or password");
        }
        if url.query().is_some() || url.fragment().is_some() {
            return wrong("holds a query or a fragment");
        }
        if url.path().contains("/webhooks/dojo") {
            return wrong("is the base only: leave out /webhooks/dojo, which is added");
        }
        Ok(Some(url))
    }
}

/// How the background works.
#[derive(Debug, Clone, Args)]
pub struct JobSettings {
    /// Whether this replica does its share of the background work: seeing lost creations and operations through,
    /// keeping links in step with Dojo. At least one replica has to.
    #[arg(long, env = "RUN_JOBS", default_value_t = true, action = clap::ArgAction::Set)]
    pub run_jobs: bool,

    /// How long after Dojo was last asked to create an intent, without an answer, the intent may still come to
    /// light. Only then is it created again. Longer than Dojo's search lags behind and a request can be on its
    /// way; Dojo documents neither, and too long costs a late link where too short may cost a second intent
    /// that has to be canceled. A capture whose answer was lost is taken for not done after that long if Dojo shows
    /// none, and only then another amount or tip is asked for again. Also how long Dojo has to stand by an answer that is
    /// behind what a webhook told.
    #[arg(long, env = "RECOVERY_SETTLE", default_value = "2m", value_parser = duration)]
    pub recovery_settle: Duration,

    /// How long after a link or an operation was asked for Dojo may still be asked for it again, where its answer was
    /// lost. After that nobody waits for it, and a link that comes to life would surprise.
    #[arg(long, env = "RECOVERY_GIVE_UP", default_value = "24h", value_parser = duration)]
    pub recovery_give_up: Duration,

    /// How often to look for work that is due.
    #[arg(long, env = "POLL_INTERVAL", default_value = "1s", value_parser = duration)]
    pub poll_interval: Duration,

    /// How many links to claim at once.
    #[arg(id = "background-batch", long, env = "BACKGROUND_BATCH", default_value_t = 100, value_parser = clap::value_parser!(i64).range(1..=1000))]
    pub batch: i64,

    /// How many calls to Dojo the background makes at once, for each kind of work and each account.
    #[arg(id = "background-concurrency", long, env = "BACKGROUND_CONCURRENCY", default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=100))]
    concurrency: u16,

    /// How many pieces of work the background begins in a second at most, for each account. Most of them are one
    /// call to Dojo.
    #[arg(long, env = "BACKGROUND_RATE", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub background_rate: u32,
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

    /// How many calls to Dojo the background makes at once, for each kind of work.
    #[must_use]
    pub fn concurrency(&self) -> i64 {
        self.concurrency.into()
    }
}

/// How to write the log.
#[derive(Debug, Clone, Args)]
pub struct LogSettings {
    /// How to write the log. Default: text on a terminal, JSON elsewhere.
    #[arg(long, env = "LOG_FORMAT", global = true)]
    pub log_format: Option<LogFormat>,

    /// What to log: a level, or a filter such as `info,dojo_payment_links=debug`.
    #[arg(
        long,
        env = "LOG_FILTER",
        default_value = "info",
        global = true,
        value_name = "FILTER",
        value_parser = log_filter
    )]
    pub log_filter: String,
}

/// A form of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// An object a line, for machines.
    Json,
    /// A line for people.
    Text,
}

/// A setting that is missing or wrong.
#[derive(Debug)]
pub struct ConfigError {
    setting: &'static str,
    problem: String,
    source: Option<Box<dyn Error + Send + Sync>>,
}

impl ConfigError {
    /// The setting `setting`, by its environment variable, has this problem.
    #[must_use]
    pub fn new(setting: &'static str, problem: impl Into<String>) -> Self {
        Self {
            setting,
            problem: problem.into(),
            source: None,
        }
    }

    /// As [`Self::new`], because of `source`.
    #[must_use]
    pub fn with_source(
        setting: &'static str,
        problem: impl Into<String>,
        source: impl Error + Send + Sync + 'static,
    ) -> Self {
        Self {
            source: Some(Box::new(source)),
            ..Self::new(setting, problem)
        }
    }
}

/// Both, or all that is wrong with either.
fn both<A, B>(
    one: Result<A, ConfigError>,
    other: Result<B, ConfigError>,
) -> Result<(A, B), ConfigError> {
    match (one, other) {
        (Ok(one), Ok(other)) => Ok((one, other)),
        (Err(error), Ok(_)) | (Ok(_), Err(error)) => Err(error),
        (Err(one), Err(other)) => Err(ConfigError {
            setting: one.setting,
            // The cause of the first would stand behind the second.
            problem: format!(
                "{}; {}",
                telemetry::causes(&one)
                    .to_string()
                    .trim_start_matches(one.setting)
                    .trim_start(),
                telemetry::causes(&other)
            ),
            source: None,
        }),
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.setting, self.problem)
    }
}

impl Error for ConfigError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}

/// A secret given as it is or in a file, without the white space around it. An empty one counts as none:
/// compose files pass on variables that nobody has set.
fn secret(
    name: &'static str,
    value: Option<&SecretString>,
    file: Option<&PathBuf>,
) -> Result<Option<SecretString>, ConfigError> {
    let value = value
        .map(|value| value.expose_secret().trim())
        .filter(|value| !value.is_empty());
    let file = file.filter(|file| !file.as_os_str().is_empty());
    match (value, file) {
        (Some(_), Some(_)) => Err(ConfigError::new(
            name,
            format!("and {name}_FILE are both set: leave one out"),
        )),
        (Some(value), None) => Ok(Some(value.into())),
        (None, Some(file)) => {
            let text = std::fs::read_to_string(file).map_err(|error| {
                ConfigError::with_source(
                    name,
                    format!("cannot be read from {}", file.display()),
                    error,
                )
            })?;
            Ok(Some(text.trim().into()).filter(|_| !text.trim().is_empty()))
        }
        (None, None) => Ok(None),
    }
}

/// A file's path. An empty one counts as none, which clap's own parser does not allow.
fn path() -> impl TypedValueParser<Value = PathBuf> {
    OsStringValueParser::new().map(PathBuf::from)
}

/// The name of an account: what may stand in a URL's path as it is.
pub fn account_name(text: &str) -> Result<String, String> {
    let plain = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_');
    if (1..=60).contains(&text.len()) && text.bytes().all(plain) {
        Ok(text.to_owned())
    } else {
        Err("is not 1 to 60 lower-case letters, digits, - and _".to_owned())
    }
}

/// The secrets that stand in one text, separated by commas or lines.
fn webhook_secrets(text: &SecretString) -> Vec<SecretString> {
    text.expose_secret()
        .split([',', '\n'])
        .map(str::trim)
        .filter(|secret| !secret.is_empty())
        .map(SecretString::from)
        .collect()
}

/// Anything from a millisecond to a month: what is beyond is a slip, and 0 would mean "never" in one place and "at
/// once" in another.
fn duration(text: &str) -> Result<Duration, String> {
    let duration = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    if (Duration::from_millis(1)..=Duration::from_hours(24 * 31)).contains(&duration) {
        Ok(duration)
    } else {
        Err("not between 1ms and 31days".to_owned())
    }
}

/// How long two keys of a client work side by side. Unlike other durations it may be 0: then they do not.
pub fn overlap(text: &str) -> Result<Duration, String> {
    let overlap = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    if overlap <= Duration::from_hours(24 * 31) {
        Ok(overlap)
    } else {
        Err("is more than 31days".to_owned())
    }
}

fn log_filter(text: &str) -> Result<String, String> {
    EnvFilter::try_new(text)
        .map(|_| text.to_owned())
        .map_err(|error| error.to_string())
}

fn api_version(text: &str) -> Result<String, String> {
    let form = time::macros::format_description!("[year]-[month]-[day]");
    time::Date::parse(text, form)
        .map(|_| text.to_owned())
        .map_err(|_| "no date such as 2026-02-27".to_owned())
}

fn web_address(text: &str) -> Result<Url, String> {
    let url = Url::parse(text).map_err(|error| error.to_string())?;
    if matches!(url.scheme(), "http" | "https") {
        Ok(url)
    } else {
        Err("neither http nor https".to_owned())
    }
}
