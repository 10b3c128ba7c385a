//! What an operator does before the first payment, and when a secret changes: proves a deployment, sets up what Dojo
//! sends, rotates what it is signed with.

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
        // Without `STATUS_UPDATED` no webhook tells of a payment.
        webhook::{INTENT_EVENTS as EVENTS, STATUS_UPDATED},
    },
    payment_link::NewPaymentLink,
    telemetry,
};

pub use address::{path, webhook_address};

/// Why a command did nothing, or not all.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Dojo did not do it, or its answer was lost. The words hold all of the causes, so that there is no source to tell
    /// them again.
    #[error("account {account}: {what}: {reason}{}", .mend.as_ref().map(|mend| format!(" → {mend}")).unwrap_or_default())]
    Dojo {
        /// Whose key it was asked with.
        account: String,
        /// What it was asked for.
        what: &'static str,
        /// What came instead.
        reason: String,
        /// What to do about it, where that is not what Dojo says.
        mend: Option<String>,
    },
    /// Something stands against it; the words say what, and what to do.
    #[error("{0}")]
    Refused(String),
}

impl Error {
    fn asking(account: &Account, what: &'static str) -> impl FnOnce(dojo::Error) -> Self {
        move |error| Self::Dojo {
            account: account.name.clone(),
            what,
            reason: reason(&error),
            mend: mend(account, &error),
        }
    }
}

/// What a command did: words for the operator, and the text of the secrets to configure, which nothing else shows.
#[derive(Debug, Default)]
pub struct Done {
    /// What was done, and what is to do now.
    pub words: Vec<String>,
    /// What to configure.
    pub secrets: Option<SecretString>,
}

impl Done {
    fn say(&mut self, words: impl fmt::Display) {
        self.words.push(words.to_string());
    }
}

/// Dojo's error with its causes, and Dojo's own reasons where it gave some.
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

/// What to do about a call to Dojo that failed. `None` where Dojo's own reasons are all there is to say.
fn mend(account: &Account, error: &dojo::Error) -> Option<String> {
    match error {
        dojo::Error::KeyRejected { .. } => Some(format!(
            "make a key in Dojo's developer portal, or have this one allowed to do it, and set it as {}",
            key_setting(account)
        )),
        dojo::Error::Unreachable(_) | dojo::Error::ResponseLost { .. } => Some(
            "see that Dojo can be reached from here, and that DOJO_API_URL is right".to_owned(),
        ),
        dojo::Error::Busy { .. } => Some("wait a minute".to_owned()),
        dojo::Error::Rejected { .. } => None,
    }
}

/// Whether the settings hold this secret. `None` where Dojo does not show its text.
fn is_known(account: &Account, secret: &Secret) -> Option<bool> {
    let value = secret.value.as_ref()?.expose_secret();
    Some(
        account
            .webhook_secrets
            .iter()
            .any(|known| known.expose_secret() == value),
    )
}

/// Where an account's webhook secrets are configured.
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

/// How several webhook secrets of an account are written where they are configured.
fn several_secrets(account: &Account) -> String {
    let entry = format!(
        "in DOJO_ACCOUNTS_FILE under [accounts.{}] as webhook_secrets = [\"…\", \"…\"], or with a line each in the file \
         that its webhook_secrets_file names",
        account.name
    );
    if account.name == NewPaymentLink::DEFAULT_ACCOUNT {
        format!("as it is in DOJO_WEBHOOK_SECRETS; or {entry}")
    } else {
        entry
    }
}

/// Where an account's key to Dojo is configured.
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

/// ` --account NAME`, for a command about this account.
fn account_flag(account: &Account) -> String {
    format!(" --account {}", account.name)
}

/// Joins names for a sentence.
fn listed<T: AsRef<str>>(names: impl IntoIterator<Item = T>) -> String {
    let names: Vec<_> = names
        .into_iter()
        .map(|name| name.as_ref().to_owned())
        .collect();
    names.join(", ")
}
