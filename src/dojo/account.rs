use std::{collections::BTreeMap, sync::Arc};

use secrecy::SecretString;

use super::Client;
use crate::{
    config::{AccountSettings, ConfigError, DojoSettings},
    payment_link::Environment,
};

/// One Dojo account: the key that it is reached with, the secrets that its webhooks are signed with.
#[derive(Debug, Clone)]
pub struct Account {
    /// Its name in this service, as in a link's `account`.
    pub name: String,
    /// Whether its key moves real money.
    pub environment: Environment,
    /// What the address of a checkout page begins with, without a slash at its end.
    pub checkout_url: String,
    /// Any one of them may sign a webhook, so that they can be changed without a gap.
    pub webhook_secrets: Vec<SecretString>,
    /// Calls Dojo with the account's key.
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
        })
    }

    /// The page on which a customer pays this intent. Built and not taken from Dojo's `paymentLink`,
    /// which carries an explicit port; this is the form that Dojo's guide tells to send out.
    #[must_use]
    pub fn checkout_page(&self, payment_intent_id: &str) -> String {
        format!("{}/{payment_intent_id}", self.checkout_url)
    }
}

/// All Dojo accounts of this deployment: at least one, all of one environment. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Accounts {
    by_name: Arc<BTreeMap<String, Account>>,
    environment: Environment,
}

impl Accounts {
    /// The accounts that the settings name, each with an HTTP client of its own, which holds its key.
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

    /// The account of this name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Account> {
        self.by_name.get(name)
    }

    /// All of them, in order of name.
    pub fn iter(&self) -> impl Iterator<Item = &Account> {
        self.by_name.values()
    }

    /// Whether their keys move real money.
    #[must_use]
    pub fn environment(&self) -> Environment {
        self.environment
    }
}
