//! API keys: which client calls, and what it may do.

use std::{fmt, marker::PhantomData, str::FromStr};

use axum::{
    extract::FromRequestParts,
    http::{HeaderMap, header, request::Parts},
};
use rand::RngExt;
use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest, Sha256};
use time::format_description::well_known::Rfc3339;
use uuid::Uuid;

use super::{AppState, Error, observe::Sender};
use crate::{config::ConfigError, store};

/// What a key is good for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// Read links and their timelines.
    LinksRead,
    /// Make links.
    LinksWrite,
    /// Move money: capture, refund, reverse, cancel.
    PaymentsManage,
}

impl Scope {
    /// Every scope.
    pub const ALL: [Self; 3] = [Self::LinksRead, Self::LinksWrite, Self::PaymentsManage];

    /// The word for it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::LinksRead => "links:read",
            Self::LinksWrite => "links:write",
            Self::PaymentsManage => "payments:manage",
        }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Scope {
    type Err = String;

    fn from_str(word: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|scope| scope.as_str() == word)
            .ok_or_else(|| format!("is none of {}", Self::ALL.map(Self::as_str).join(", ")))
    }
}

/// A new key, and the hash to store of it: `dpl_` and 256 random bits in hex. The prefix lets secret
/// scanners find keys that went where they should not.
#[must_use]
pub fn new_key() -> (SecretString, Vec<u8>) {
    let random: [u8; 32] = rand::rng().random();
    let key = format!("dpl_{}", hex::encode(random));
    let hash = hash(&key);
    (key.into(), hash)
}

/// The hash of the key that an operator chose for the start (`BOOTSTRAP_API_KEY`).
pub fn bootstrap_key_hash(key: &SecretString) -> Result<Vec<u8>, ConfigError> {
    let key = key.expose_secret();
    if is_wellformed(key) {
        Ok(hash(key))
    } else {
        Err(ConfigError::new(
            "BOOTSTRAP_API_KEY",
            "is not dpl_ and at least 32 characters without spaces",
        ))
    }
}

fn is_wellformed(key: &str) -> bool {
    (36..=200).contains(&key.len())
        && key.starts_with("dpl_")
        && key.bytes().all(|byte| byte.is_ascii_graphic())
}

fn hash(key: &str) -> Vec<u8> {
    Sha256::digest(key.as_bytes()).to_vec()
}

/// Who sent a request, once it is known that the key is active and has the scope `S`. A handler that takes one is
/// open to nobody else, and says so where it is declared.
#[derive(Debug, Clone)]
pub(crate) struct Caller<S> {
    /// The client's id, whichever of its keys came with the request.
    pub(crate) client_id: Uuid,
    /// The client's name.
    pub(crate) client: String,
    /// The accounts that the key is limited to. `None`: it is open to all.
    accounts: Option<Vec<String>>,
    scope: PhantomData<S>,
}

impl<S> Caller<S> {
    /// Whether the key is open to this account, and so to its links. What it may not see is, to it, not there.
    pub(crate) fn may_see(&self, account: &str) -> bool {
        self.accounts
            .as_ref()
            .is_none_or(|open| open.iter().any(|name| name == account))
    }

    /// The accounts that the key is limited to. `None`: it is open to all.
    pub(crate) fn accounts(&self) -> Option<&[String]> {
        self.accounts.as_deref()
    }
}

/// A scope as a type.
pub(crate) trait Needed {
    /// The scope.
    const SCOPE: Scope;
}

/// [`Scope::LinksRead`].
#[derive(Debug, Clone)]
pub(crate) struct LinksRead;

impl Needed for LinksRead {
    const SCOPE: Scope = Scope::LinksRead;
}

/// [`Scope::LinksWrite`].
#[derive(Debug, Clone)]
pub(crate) struct LinksWrite;

impl Needed for LinksWrite {
    const SCOPE: Scope = Scope::LinksWrite;
}

/// [`Scope::PaymentsManage`].
#[derive(Debug, Clone)]
pub(crate) struct PaymentsManage;

impl Needed for PaymentsManage {
    const SCOPE: Scope = Scope::PaymentsManage;
}

impl<S: Needed> FromRequestParts<AppState> for Caller<S> {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, state: &AppState) -> Result<Self, Error> {
        // What cannot be a key is turned away before it costs a connection to the database.
        let key = bearer(&parts.headers)
            .filter(|key| is_wellformed(key))
            .ok_or(Error::Unauthenticated)?;
        // LinkSnapshot up by hash: whatever the comparison's time tells is about a hash that nobody can choose.
        let key = store::api_keys::identify(&state.pool, &hash(key))
            .await?
            .ok_or(Error::Unauthenticated)?;
        if let Some(sender) = parts.extensions.get::<Sender>() {
            sender.is_known();
        }
        let span = tracing::Span::current();
        span.record("client", &key.client);
        if let Some(ends_at) = key.ends_at.and_then(|at| at.format(&Rfc3339).ok()) {
            span.record("key_ends_at", ends_at);
        }
        state
            .rates
            .check(key.client_id)
            .map_err(Error::RateLimited)?;
        if !key.scopes.iter().any(|held| held == S::SCOPE.as_str()) {
            return Err(Error::Forbidden(S::SCOPE));
        }
        Ok(Self {
            client_id: key.client_id,
            client: key.client,
            accounts: key.accounts,
            scope: PhantomData,
        })
    }
}

/// The token of an `Authorization: Bearer` header; the scheme in any case (RFC 9110).
fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = headers
        .get(header::AUTHORIZATION)?
        .to_str()
        .ok()?
        .split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}
