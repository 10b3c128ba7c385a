use std::{collections::BTreeMap, sync::Arc};

use secrecy::SecretString;

use super::Client;
use crate::{
    config::{AccountSettings, ConfigError, DojoSettings, Merchant},
    payment_link::Environment,
};

/// One Dojo account, with what it takes to call Dojo and to verify its webhooks.
#[derive(Debug, Clone)]
pub struct Account {
    /// The name in this service, as in a link's `account`.
    pub name: String,
    /// Whether the account's key moves test money or real money.
    pub environment: Environment,
    /// The base URL of checkout pages, without a trailing slash.
    pub checkout_url: String,
    /// A webhook may be signed with any of these, so that secrets can be rotated without a gap.
    pub webhook_secrets: Vec<SecretString>,
    pub merchant: Merchant,
    pub client: Client,
}

impl Account {
    fn new(settings: &DojoSettings, account: AccountSettings) -> Result<Self, ConfigError> {
        Ok(Self {
            client: Client::new(settings, &account.api_key.secret)?,
            name: account.name,
            environment: account.api_key.environment,
            checkout_url: account
                .checkout_url
                .as_str()
                .trim_end_matches('/')
                .to_owned(),
            webhook_secrets: account.webhook_secrets,
            merchant: account.merchant,
        })
    }

    /// The URL of the page on which a customer pays this intent. It has the form that Dojo's guide recommends, and is
    /// not taken from Dojo's `paymentLink`, which contains an explicit port.
    #[must_use]
    pub fn checkout_page(&self, payment_intent_id: &str) -> String {
        format!("{}/{payment_intent_id}", self.checkout_url)
    }
}

/// All Dojo accounts of this deployment: at least one, all of the same environment. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Accounts {
    by_name: Arc<BTreeMap<String, Account>>,
    environment: Environment,
}

impl Accounts {
    /// Creates the accounts that are configured. Each has its own HTTP client, which contains its key.
    pub fn from_settings(settings: &DojoSettings) -> Result<Self, ConfigError> {
        let configured = settings.accounts()?;
        let environment = configured.environment;
        let by_name = configured
            .accounts
            .into_iter()
            .map(|account| Ok((account.name.clone(), Account::new(settings, account)?)))
            .collect::<Result<_, ConfigError>>()?;
        Ok(Self {
            by_name: Arc::new(by_name),
            environment,
        })
    }

    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Account> {
        self.by_name.get(name)
    }

    /// Iterates over the accounts in order of name.
    pub fn iter(&self) -> impl Iterator<Item = &Account> {
        self.by_name.values()
    }

    /// The names of the accounts, in order.
    #[must_use]
    pub fn names(&self) -> Vec<&str> {
        self.iter().map(|account| account.name.as_str()).collect()
    }

    /// Whether the accounts' keys move test money or real money.
    #[must_use]
    pub fn environment(&self) -> Environment {
        self.environment
    }
}
