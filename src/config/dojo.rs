use std::{path::PathBuf, time::Duration};

use clap::Args;
use secrecy::{ExposeSecret, SecretString};
use url::Url;

use super::{
    ConfigError, accounts,
    accounts::{AccountSettings, Defaults, DojoApiKey, Merchant},
    value::{api_version, duration, path, secret, web_url},
    webhook_secrets,
};
use crate::payment_link::{Environment, NewPaymentLink};

const API_KEY: &str = "DOJO_API_KEY";
const WEBHOOK_SECRETS: &str = "DOJO_WEBHOOK_SECRETS";
const WEBHOOK_SECRETS_FILE: &str = "DOJO_WEBHOOK_SECRETS_FILE";

/// What is wrong if no account is configured.
const NO_ACCOUNT: &str = "is required: set it to sk_sandbox_… or sk_prod_…, or configure an account in DOJO_ACCOUNTS_FILE";

/// The settings of Dojo and of the accounts there.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Dojo")]
pub struct DojoSettings {
    /// Dojo's API key for the account `default`: `sk_sandbox_…`, or `sk_prod_…` for real money. Required, unless
    /// `DOJO_ACCOUNTS_FILE` configures an account.
    #[arg(long, env = "DOJO_API_KEY", hide_env_values = true, value_name = "KEY")]
    dojo_api_key: Option<SecretString>,

    /// A file that contains `DOJO_API_KEY`.
    #[arg(long, env = "DOJO_API_KEY_FILE", value_name = "FILE", value_parser = path())]
    dojo_api_key_file: Option<PathBuf>,

    /// A TOML file that configures more Dojo accounts. Each has a table `[accounts.NAME]` with `environment`, `api_key` or
    /// `api_key_file`, `webhook_secrets` or `webhook_secrets_file`, and optionally `checkout_url`, `merchant_name`,
    /// `merchant_contact`, `mail_from`, `mail_reply_to` and `brand_color`.
    #[arg(long, env = "DOJO_ACCOUNTS_FILE", value_name = "FILE", value_parser = path())]
    dojo_accounts_file: Option<PathBuf>,

    /// The base URL of Dojo's API. When you point it at a sandbox, set `DOJO_CHECKOUT_URL` to the same sandbox.
    #[arg(id = "dojo-api-url", long, env = "DOJO_API_URL", default_value = "https://api.dojo.tech",
          value_name = "URL", value_parser = web_url)]
    pub api_url: Url,

    /// The version of Dojo's API, sent with every call. Change it only when you upgrade to a version of this service that
    /// supports another one.
    #[arg(
        id = "dojo-api-version",
        long,
        env = "DOJO_API_VERSION",
        default_value = "2026-02-27",
        value_name = "DATE",
        value_parser = api_version
    )]
    pub api_version: String,

    /// The base URL of Dojo's checkout pages. A link's `url` is this and the payment intent's id. An account in
    /// `DOJO_ACCOUNTS_FILE` may override it.
    #[arg(id = "dojo-checkout-url", long, env = "DOJO_CHECKOUT_URL",
          default_value = "https://pay.dojo.tech/checkout", value_name = "URL", value_parser = web_url)]
    pub checkout_url: Url,

    /// The merchant's name, as customers know it. It is shown in emails and on the pages at short addresses. An account in
    /// `DOJO_ACCOUNTS_FILE` may override it.
    #[arg(
        long,
        env = "MERCHANT_NAME",
        default_value = "",
        hide_default_value = true,
        value_name = "NAME"
    )]
    merchant_name: String,

    /// Whom customers can ask: an email address, a phone number or a sentence. It is shown in emails and on the pages at short
    /// addresses. An account in `DOJO_ACCOUNTS_FILE` may override it.
    #[arg(
        long,
        env = "MERCHANT_CONTACT",
        default_value = "",
        hide_default_value = true,
        value_name = "TEXT"
    )]
    merchant_contact: String,

    /// The `paymentSource` of every intent, by which you can filter payments in Dojo's portal. Set it to an empty value to
    /// send none.
    #[arg(
        long,
        env = "DOJO_PAYMENT_SOURCE",
        default_value = "payment-links",
        value_name = "NAME"
    )]
    dojo_payment_source: String,

    /// The time limit of one call to Dojo. Raise it if Dojo is slow and callers get 504.
    #[arg(id = "dojo-timeout", long, env = "DOJO_TIMEOUT", default_value = "10s", value_name = "DURATION",
          value_parser = duration)]
    pub timeout: Duration,

    /// Extra time in the leases that give one replica the exclusive right to work on a link or operation. A lease lasts
    /// 2 × `DOJO_TIMEOUT` for a creation or reconciliation, 3 × `DOJO_TIMEOUT` for an operation, and this much more for the
    /// database and for a machine that stalls. Another replica takes over the work of one that died once the lease has
    /// expired. A lease that is too short risks a surplus intent for a link that is merely slow, which must then be canceled.
    #[arg(id = "lease-slack", long, env = "LEASE_SLACK", default_value = "10s", value_name = "DURATION",
          value_parser = duration)]
    pub lease_slack: Duration,

    /// The secrets that Dojo signs the webhooks of the account `default` with, separated by commas. Without any, every
    /// webhook is rejected. `webhooks register` prints the secret to set.
    #[arg(
        long,
        env = "DOJO_WEBHOOK_SECRETS",
        hide_env_values = true,
        value_name = "SECRETS"
    )]
    dojo_webhook_secrets: Option<SecretString>,

    /// A file that contains `DOJO_WEBHOOK_SECRETS`, separated by commas or line breaks.
    #[arg(long, env = "DOJO_WEBHOOK_SECRETS_FILE", value_name = "FILE", value_parser = path())]
    dojo_webhook_secrets_file: Option<PathBuf>,
}

/// The configured accounts: at least one, in order of name, all of the same environment.
#[derive(Debug, Clone)]
pub struct ConfiguredAccounts {
    pub accounts: Vec<AccountSettings>,
    /// Whether the accounts' keys move test money or real money.
    pub environment: Environment,
}

impl DojoSettings {
    /// All configured accounts.
    pub fn accounts(&self) -> Result<ConfiguredAccounts, ConfigError> {
        let mut error = ConfigError::default();
        let default = error.keep(self.default_account()).flatten();
        let mut accounts = Vec::new();
        if let Some(file) = self.accounts_file() {
            let defaults = Defaults {
                checkout_url: &self.checkout_url,
                merchant: &self.merchant(),
            };
            let read = accounts::read(file, defaults, default.as_ref());
            accounts.extend(error.keep(read).into_iter().flatten());
        }
        accounts.extend(default);
        accounts.sort_by(|one, other| one.name.cmp(&other.name));
        let environment = accounts.first().map(|account| account.api_key.environment);
        if environment == Some(Environment::Production) {
            error.keep(self.check_api_url());
        }
        if environment.is_none() && error.is_empty() {
            error.add(API_KEY, NO_ACCOUNT);
        }
        match environment {
            Some(environment) if error.is_empty() => Ok(ConfiguredAccounts {
                accounts,
                environment,
            }),
            _ => Err(error),
        }
    }

    /// The setting that the accounts' keys come from, for messages about all of them.
    #[must_use]
    pub fn api_key_setting(&self) -> &'static str {
        let key = self.dojo_api_key.as_ref();
        let file = self.dojo_api_key_file.as_ref();
        if key.is_some_and(|key| !key.expose_secret().trim().is_empty())
            || file.is_some_and(|file| !file.as_os_str().is_empty())
        {
            API_KEY
        } else {
            accounts::SETTING
        }
    }

    fn accounts_file(&self) -> Option<&PathBuf> {
        let file = self.dojo_accounts_file.as_ref();
        file.filter(|file| !file.as_os_str().is_empty())
    }

    /// The account `default`, if `DOJO_API_KEY` is set.
    fn default_account(&self) -> Result<Option<AccountSettings>, ConfigError> {
        let mut error = ConfigError::default();
        let key = secret(
            API_KEY,
            self.dojo_api_key.as_ref(),
            self.dojo_api_key_file.as_ref(),
        )
        .and_then(|key| {
            key.map(DojoApiKey::new)
                .transpose()
                .map_err(|problem| ConfigError::new(API_KEY, problem))
        });
        let key = error.keep(key);
        let webhook_secrets = error.keep(self.webhook_secrets());
        let is_missing = matches!(key, Some(None)) && self.accounts_file().is_none();
        let (Some(key), Some(webhook_secrets)) = (key, webhook_secrets) else {
            if is_missing {
                error.add(API_KEY, NO_ACCOUNT);
            }
            return Err(error);
        };
        let Some(api_key) = key else {
            // The secrets would be ignored, and nobody would notice.
            if webhook_secrets.is_some() && self.accounts_file().is_some() {
                return Err(ConfigError::new(
                    WEBHOOK_SECRETS,
                    "is set, but DOJO_API_KEY is not: move the secrets to webhook_secrets of an account in \
                     DOJO_ACCOUNTS_FILE",
                ));
            }
            return Ok(None);
        };
        Ok(Some(AccountSettings {
            name: NewPaymentLink::DEFAULT_ACCOUNT.to_owned(),
            api_key,
            webhook_secrets: webhook_secrets.unwrap_or_default(),
            checkout_url: self.checkout_url.clone(),
            merchant: self.merchant(),
        }))
    }

    /// The secrets of the account `default`, if they are set.
    fn webhook_secrets(&self) -> Result<Option<Vec<SecretString>>, ConfigError> {
        let text = secret(
            WEBHOOK_SECRETS,
            self.dojo_webhook_secrets.as_ref(),
            self.dojo_webhook_secrets_file.as_ref(),
        )?;
        let Some(text) = text else {
            return Ok(None);
        };
        let file = self.dojo_webhook_secrets_file.as_ref();
        let setting = match file.filter(|file| !file.as_os_str().is_empty()) {
            Some(_) => WEBHOOK_SECRETS_FILE,
            None => WEBHOOK_SECRETS,
        };
        webhook_secrets::split(&text).map(Some).map_err(|problem| {
            let account = NewPaymentLink::DEFAULT_ACCOUNT;
            ConfigError::new(format!("{setting} (account {account})"), problem)
        })
    }

    fn merchant(&self) -> Merchant {
        let text = |text: &str| {
            let text = text.trim();
            (!text.is_empty()).then(|| text.to_owned())
        };
        Merchant {
            name: text(&self.merchant_name),
            contact: text(&self.merchant_contact),
            ..Merchant::default()
        }
    }

    /// Rejects a URL that would send a production key over an unencrypted connection. On this machine as well: what listens
    /// there is most likely a sandbox, which has no use for such a key.
    fn check_api_url(&self) -> Result<(), ConfigError> {
        if self.api_url.scheme() == "https" {
            return Ok(());
        }
        Err(ConfigError::new(
            "DOJO_API_URL",
            "must be https, because a production key (sk_prod_…) must not be sent unencrypted. For a sandbox, use a key that \
             begins with sk_sandbox_",
        ))
    }

    /// The `paymentSource` to send, if any.
    #[must_use]
    pub fn payment_source(&self) -> Option<String> {
        let source = self.dojo_payment_source.trim();
        (!source.is_empty()).then(|| source.to_owned())
    }
}
