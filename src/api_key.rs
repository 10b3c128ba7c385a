//! The API keys of this service's clients: form, hash and scopes.

use std::{fmt, str::FromStr};

use rand::RngExt;
use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest, Sha256};

/// What an API key permits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// Read links and their timelines.
    LinksRead,
    /// Create links.
    LinksWrite,
    /// Send links to customers.
    LinksSend,
    /// Move money: capture, refund, reverse, cancel.
    PaymentsManage,
    /// Read the feed of events.
    EventsRead,
    /// Create, change and delete callback endpoints, and read what was sent to them.
    CallbacksManage,
    /// Erase the personal data of links.
    DataErase,
}

impl Scope {
    pub const ALL: [Self; 7] = [
        Self::LinksRead,
        Self::LinksWrite,
        Self::LinksSend,
        Self::PaymentsManage,
        Self::EventsRead,
        Self::CallbacksManage,
        Self::DataErase,
    ];

    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::LinksRead => "links:read",
            Self::LinksWrite => "links:write",
            Self::LinksSend => "links:send",
            Self::PaymentsManage => "payments:manage",
            Self::EventsRead => "events:read",
            Self::CallbacksManage => "callbacks:manage",
            Self::DataErase => "data:erase",
        }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The text is not the name of a [`Scope`].
#[derive(Debug, thiserror::Error)]
#[error("must be one of {}", Scope::ALL.map(Scope::as_str).join(", "))]
pub struct UnknownScope;

impl FromStr for Scope {
    type Err = UnknownScope;

    fn from_str(text: &str) -> Result<Self, UnknownScope> {
        Self::ALL
            .into_iter()
            .find(|scope| scope.as_str() == text)
            .ok_or(UnknownScope)
    }
}

/// An API key: `dpl_` and at least 32 printable ASCII characters. The prefix lets secret scanners find keys that were
/// leaked.
#[derive(Debug, Clone)]
pub struct ApiKey(SecretString);

impl ApiKey {
    /// What [`Self::parse`] accepts, for messages.
    pub const FORM: &'static str = "dpl_ and 32 to 196 characters without spaces";

    /// Generates a key with 256 random bits, in hex.
    #[must_use]
    pub fn generate() -> Self {
        let random: [u8; 32] = rand::rng().random();
        Self(format!("dpl_{}", hex::encode(random)).into())
    }

    /// Returns `None` if the text doesn't have the form of a key.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let is_key = (36..=200).contains(&text.len())
            && text.starts_with("dpl_")
            && text.bytes().all(|byte| byte.is_ascii_graphic());
        is_key.then(|| Self(text.into()))
    }

    /// The SHA-256 of the key, which is all that the database stores of it.
    #[must_use]
    pub fn hash(&self) -> [u8; 32] {
        Sha256::digest(self.0.expose_secret().as_bytes()).into()
    }

    /// The key itself, to show it to the person who requested it.
    #[must_use]
    pub fn expose(&self) -> &str {
        self.0.expose_secret()
    }
}
