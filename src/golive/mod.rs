//! What an operator does before the first payment, and when a secret changes: proves a deployment, sets up what Dojo
//! sends, rotates what it is signed with.

mod address;
pub mod check;
pub mod rotation;
pub mod subscriptions;

use std::fmt;

use secrecy::{ExposeSecret, SecretString};

use crate::{
    dojo::{self, Account, Secret},
    payment_link::NewPaymentLink,
    telemetry,
};

pub use address::{path, webhook_address};

/// Without this event no webhook tells of a payment.
const STATUS_UPDATED: &str = "payment_intent.status_updated";

/// The events that matter here.
const EVENTS: [&str; 3] = [
    "payment_intent.created",
    STATUS_UPDATED,
    "payment_intent.send-receipt",
];

/// Why a command did nothing, or not all.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Dojo did not do it, or its answer was lost.
    #[error("{what}: {}", reason(.source))]
    Dojo {
        /// What it was asked for.
        what: &'static str,
        /// What came instead.
        source: dojo::Error,
    },
    /// Something stands against it; the words say what, and what to do.
    #[error("{0}")]
    Refused(String),
}

impl Error {
    fn asking(what: &'static str) -> impl FnOnce(dojo::Error) -> Self {
        move |source| Self::Dojo { what, source }
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
        dojo::Error::Refused { problem, .. } => {
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
