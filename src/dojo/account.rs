use secrecy::SecretString;

use super::Client;
use crate::{
    config::{ConfigError, DojoSettings},
    payment_link::{Environment, NewPaymentLink},
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
    /// The account that the settings name.
    pub fn from_settings(settings: &DojoSettings) -> Result<Self, ConfigError> {
        let key = settings.api_key()?;
        Ok(Self {
            name: NewPaymentLink::DEFAULT_ACCOUNT.to_owned(),
            environment: key.environment,
            checkout_url: settings
                .checkout_url
                .as_str()
                .trim_end_matches('/')
                .to_owned(),
            webhook_secrets: settings.webhook_secrets()?,
            client: Client::new(settings, &key.secret)?,
        })
    }

    /// The page on which a customer pays this intent. Built and not taken from Dojo's `paymentLink`,
    /// which carries an explicit port; this is the form that Dojo's guide tells to send out.
    #[must_use]
    pub fn checkout_page(&self, payment_intent_id: &str) -> String {
        format!("{}/{payment_intent_id}", self.checkout_url)
    }
}
