//! Checks a deployment before it takes money: settings, database, Dojo, webhooks, clocks and the mail server. Changes
//! nothing. A failed check doesn't prevent the checks that don't depend on it, and everything has a time limit.

mod callbacks;
mod database;
mod dojo;
mod mail;
mod report;

use futures_util::{StreamExt, future::join4, stream};
use tokio::time::timeout;
use url::Url;

use super::{listed, secrets_setting};
use crate::{
    config::{ConfigError, ServeSettings},
    dojo::Accounts,
    mail::Mailer,
    payment_link::Environment,
    store::{self, PgPool},
};
use dojo::PublicAddress;
use report::{Checks, LIMIT};

pub use report::{Check, Name, Outcome, Report};

/// How many accounts are checked at once.
const CONCURRENCY: usize = 8;

impl Report {
    /// The report if the settings can't be parsed, so that nothing else can be checked.
    #[must_use]
    pub fn of_wrong_settings(error: &ConfigError) -> Self {
        let mut checks = Checks::new();
        checks.fail(Name::Settings, error, "correct the settings");
        for name in Name::DATABASE.into_iter().chain(Name::ACCOUNT) {
            checks.skip(name, "the settings are wrong");
        }
        Self::new(checks.into_list())
    }
}

/// Runs all checks. Pings the callback endpoints only if `ping_callbacks`, because their owners see that.
pub async fn run(settings: &ServeSettings, ping_callbacks: bool) -> Report {
    let mut error = ConfigError::default();
    let accounts = error.keep(Accounts::from_settings(&settings.dojo));
    let pool = error.keep(PgPool::new(&settings.database));
    error.keep(settings.bootstrap_api_key());
    error.keep(settings.check_listen_addresses());
    let names = accounts.as_ref().map(Accounts::names);
    error.keep(settings.console.proxy(names.as_deref()));
    let mailer = error.keep(Mailer::from_settings(&settings.mail));
    let url = error.keep(settings.public_url.get());
    let address = match &url {
        Some(Some(url)) => PublicAddress::Given(url),
        Some(None) => PublicAddress::NotGiven,
        None => PublicAddress::Wrong,
    };
    for account in accounts.iter().flat_map(Accounts::iter) {
        if account.webhook_secrets.is_empty() {
            error.add(
                secrets_setting(account),
                format!(
                    "is required: without it, every webhook of account {} is rejected (webhooks register prints it)",
                    account.name
                ),
            );
        }
    }

    let environment = accounts.as_ref().map(Accounts::environment);
    let of_database = async {
        if let Some(pool) = &pool {
            return database::check(pool, environment).await;
        }
        let mut checks = Checks::new();
        checks.skip_rest(
            &Name::DATABASE,
            "the settings do not say where the database is",
        );
        checks
    };
    let of_accounts = async {
        if let Some(accounts) = &accounts {
            return check_accounts(accounts, &settings.dojo.api_url, address).await;
        }
        let mut checks = Checks::new();
        checks.skip_rest(
            &Name::ACCOUNT,
            "the settings do not configure the Dojo accounts",
        );
        vec![checks]
    };
    let of_mail = async {
        match &mailer {
            Some(Some(mailer)) => Some(mail::check(mailer).await),
            // No emails are sent, or the check of the settings says why none can be.
            Some(None) | None => None,
        }
    };
    let of_time_zone = async {
        let name = &settings.books.days().time_zone;
        let known = timeout(
            LIMIT,
            store::movements::knows_time_zone(pool.as_ref()?, name),
        );
        // If Postgres doesn't respond, the checks of the database say so.
        matches!(known.await, Ok(Ok(false))).then(|| settings.books.unknown_time_zone())
    };
    let (of_database, of_accounts, of_mail, of_time_zone) =
        join4(of_database, of_accounts, of_mail, of_time_zone).await;
    if let Some(wrong) = of_time_zone {
        error.keep::<()>(Err(wrong));
    }
    let of_settings = check_settings(error, accounts.as_ref());
    let of_callbacks = match &pool {
        Some(pool) if ping_callbacks => Some(callbacks::check(pool, &settings.callbacks).await),
        _ => None,
    };
    let all = [of_settings, of_database]
        .into_iter()
        .chain(of_accounts)
        .chain(of_mail)
        .chain(of_callbacks);
    Report::new(all.flat_map(Checks::into_list).collect())
}

/// Reports what is wrong with the settings.
fn check_settings(error: ConfigError, accounts: Option<&Accounts>) -> Checks {
    let mut checks = Checks::new();
    if error.is_empty() {
        let names = accounts
            .into_iter()
            .flat_map(Accounts::iter)
            .map(|account| &account.name);
        checks.pass(
            Name::Settings,
            format!("complete; accounts: {}", listed(names)),
        );
    } else {
        checks.fail(
            Name::Settings,
            error,
            "correct the settings; serve --help explains them",
        );
    }
    checks
}

/// Checks each account at Dojo, a few at a time.
async fn check_accounts(accounts: &Accounts, api: &Url, address: PublicAddress<'_>) -> Vec<Checks> {
    let each: Vec<_> = accounts
        .iter()
        .map(|account| dojo::check(account, api, address))
        .collect();
    stream::iter(each).buffered(CONCURRENCY).collect().await
}

/// Checks what a running service depends on at Dojo: for each account, the key, the clock and the webhooks. `api` is the base URL of
/// Dojo's API, and `public_url` is that of this service.
pub async fn at_dojo(accounts: &Accounts, api: &Url, public_url: Option<&Url>) -> Vec<Check> {
    let address = public_url.map_or(PublicAddress::NotGiven, PublicAddress::Given);
    let checks = check_accounts(accounts, api, address).await;
    checks.into_iter().flat_map(Checks::into_list).collect()
}

/// Checks the mail server of a running service.
pub async fn of_mail(mailer: &Mailer) -> Vec<Check> {
    mail::check(mailer).await.into_list()
}

/// Checks the database of a running service.
pub async fn of_database(pool: &PgPool, environment: Environment) -> Vec<Check> {
    database::check_in_use(pool, environment).await.into_list()
}
