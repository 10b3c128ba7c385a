//! What an operator does before the first payment and when a secret changes: check a deployment, set up Dojo's webhooks,
//! and rotate the secrets that they are signed with.

mod address;
pub mod check;
pub mod rotation;
pub mod subscriptions;

use std::fmt;

use secrecy::{ExposeSecret, SecretString};

use crate::{
    dojo::{
        self,
        Account,
        Secret,
        // `STATUS_UPDATED` is the only event that reports payments.
        webhook::{INTENT_EVENTS as EVENTS, STATUS_UPDATED},
    },
    payment_link::NewPaymentLink,
    telemetry,
};

pub use address::webhook_address;

/// Why a command failed, perhaps halfway.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A call to Dojo failed. `reason` contains all causes, so there is no source that would repeat them.
    #[error("account {account}: {failed}: {reason}{}", .fix.as_ref().map(|fix| format!(" → {fix}")).unwrap_or_default())]
    Dojo {
        account: String,
        /// What failed, as a sentence.
        failed: &'static str,
        reason: String,
        /// How to fix it. `None` if Dojo's reasons are all that is known.
        fix: Option<String>,
    },
    /// The command can't be carried out. The text says why, and what to do.
    #[error("{0}")]
    NotPossible(String),
}

impl Error {
    fn calling(account: &Account, failed: &'static str) -> impl FnOnce(dojo::Error) -> Self {
        move |error| Self::Dojo {
            account: account.name.clone(),
            failed,
            reason: reason(&error),
            fix: fix(account, &error),
        }
    }
}

/// What a command did.
#[derive(Debug, Default)]
pub struct Outcome {
    /// What was done and what to do next, for the operator.
    pub messages: Vec<String>,
    /// The secrets to configure, separated by commas. They appear in no message.
    pub secrets: Option<SecretString>,
}

impl Outcome {
    fn say(&mut self, message: impl fmt::Display) {
        self.messages.push(message.to_string());
    }
}

/// The error with its causes, and with Dojo's own reasons if it gave any.
fn reason(error: &dojo::Error) -> String {
    let causes = telemetry::causes(error);
    match error {
        dojo::Error::Rejected { problem, .. } => {
            let faults: Vec<_> = problem
                .errors
                .iter()
                .flatten()
                .flat_map(|(_, messages)| messages)
                .map(String::as_str)
                .collect();
            format!("{causes}: {} {}", problem.words(), faults.join(" "))
                .trim_end()
                .to_owned()
        }
        _ => causes.to_string(),
    }
}

/// How to fix a failed call to Dojo. `None` if Dojo's own reasons are all that is known.
fn fix(account: &Account, error: &dojo::Error) -> Option<String> {
    match error {
        dojo::Error::KeyRejected { .. } => Some(format!(
            "create a key in Dojo's developer portal, or give this one the permission, and set it as {}",
            key_setting(account)
        )),
        dojo::Error::Unreachable(_) | dojo::Error::ResponseLost { .. } | dojo::Error::TooLate => {
            Some("check the connection from this machine to Dojo, and DOJO_API_URL".to_owned())
        }
        dojo::Error::Busy { .. } => Some("wait a minute".to_owned()),
        dojo::Error::Rejected { .. } => None,
    }
}

/// Whether the settings contain this secret. `None` if Dojo doesn't show its value.
fn is_known(account: &Account, secret: &Secret) -> Option<bool> {
    let value = secret.value.as_ref()?.expose_secret();
    Some(
        account
            .webhook_secrets
            .iter()
            .any(|known| known.expose_secret() == value),
    )
}

/// The setting that contains an account's webhook secrets, for messages.
fn secrets_setting(account: &Account) -> String {
    let file = format!(
        "webhook_secrets of [accounts.{}] in DOJO_ACCOUNTS_FILE",
        account.name
    );
    if account.name == NewPaymentLink::DEFAULT_ACCOUNT {
        format!("DOJO_WEBHOOK_SECRETS, or {file}")
    } else {
        file
    }
}

/// How to write several webhook secrets of an account in the settings.
fn several_secrets(account: &Account) -> String {
    let entry = format!(
        "in DOJO_ACCOUNTS_FILE under [accounts.{}] as webhook_secrets = [\"…\", \"…\"], or on separate lines of its \
         webhook_secrets_file",
        account.name
    );
    if account.name == NewPaymentLink::DEFAULT_ACCOUNT {
        format!("unchanged in DOJO_WEBHOOK_SECRETS, or {entry}")
    } else {
        entry
    }
}

/// The setting that contains an account's API key for Dojo, for messages.
fn key_setting(account: &Account) -> String {
    let entry = format!(
        "api_key of [accounts.{}] in DOJO_ACCOUNTS_FILE",
        account.name
    );
    if account.name == NewPaymentLink::DEFAULT_ACCOUNT {
        format!("DOJO_API_KEY, or {entry}")
    } else {
        entry
    }
}

/// The flag ` --account NAME` of a suggested command.
fn account_flag(account: &Account) -> String {
    format!(" --account {}", account.name)
}

/// Joins names with commas.
fn listed<T: AsRef<str>>(names: impl IntoIterator<Item = T>) -> String {
    let names: Vec<_> = names
        .into_iter()
        .map(|name| name.as_ref().to_owned())
        .collect();
    names.join(", ")
}
