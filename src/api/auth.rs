//! API keys: which client sent a request.

use std::{marker::PhantomData, sync::Arc};

use axum::{
    extract::FromRequestParts,
    http::{HeaderMap, header, request::Parts},
};
use time::format_description::well_known::Rfc3339;
use uuid::Uuid;

use super::{error::Error, observe::Sender, scope::RequiredScope, state::AppState};
use crate::{
    api_key::{ApiKey, Scope},
    payment_link::{PaymentLink, PaymentLinkId},
    store::api_keys::Identified,
};

/// Says who sends a request that comes from within the service, in place of an API key: an extension of the request. No request
/// from outside has extensions.
#[derive(Debug, Clone)]
pub(crate) struct Authenticated(pub(crate) Arc<Identified>);

/// The client that sent a request, authenticated by an active API key with the scope `S`. A handler that takes one is open
/// to nobody else.
#[derive(Debug, Clone)]
pub(crate) struct Caller<S> {
    /// The same for all of the client's keys.
    pub(crate) client_id: Uuid,
    /// The client's name.
    pub(crate) client: String,
    /// The accounts that the key is limited to, if it is limited.
    accounts: Option<Vec<String>>,
    /// Whether the key also has the scope `links:send`.
    may_send: bool,
    scope: PhantomData<S>,
}

impl<S> Caller<S> {
    /// Whether the key has access to this account and its links. To the caller, everything else does not exist.
    pub(crate) fn may_see(&self, account: &str) -> bool {
        self.accounts
            .as_ref()
            .is_none_or(|open| open.iter().any(|name| name == account))
    }

    /// The accounts that the key is limited to, if it is limited.
    pub(crate) fn accounts(&self) -> Option<&[String]> {
        self.accounts.as_deref()
    }

    /// Checks that the key has the scope to send a link to its customer.
    pub(crate) fn check_may_send(&self) -> Result<(), Error> {
        if self.may_send {
            Ok(())
        } else {
            Err(Error::Forbidden(Scope::LinksSend))
        }
    }

    /// The link with this id, if the key has access to its account.
    pub(crate) async fn find_link(
        &self,
        state: &AppState,
        id: PaymentLinkId,
    ) -> Result<PaymentLink, Error> {
        state
            .links
            .find(id)
            .await?
            .filter(|link| self.may_see(&link.account))
            .ok_or(Error::NoSuchLink)
    }
}

impl<S: RequiredScope> FromRequestParts<AppState> for Caller<S> {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, state: &AppState) -> Result<Self, Error> {
        let key = match parts.extensions.get::<Authenticated>() {
            Some(Authenticated(key)) => Arc::clone(key),
            None => identify(&parts.headers, state).await?,
        };
        if let Some(sender) = parts.extensions.get::<Sender>() {
            sender.authenticated();
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
        let has = |scope: Scope| key.scopes.iter().any(|name| name == scope.as_str());
        if !has(S::SCOPE) {
            return Err(Error::Forbidden(S::SCOPE));
        }
        Ok(Self {
            client_id: key.client_id,
            client: key.client.clone(),
            accounts: key.accounts.clone(),
            may_send: has(Scope::LinksSend),
            scope: PhantomData,
        })
    }
}

/// The client whose API key a request comes with.
async fn identify(headers: &HeaderMap, state: &AppState) -> Result<Arc<Identified>, Error> {
    // Reject what can't be a key before it costs a database connection.
    let key = bearer(headers)
        .and_then(ApiKey::parse)
        .ok_or(Error::Unauthenticated)?;
    // The lookup compares hashes, so its timing reveals nothing useful: nobody can choose the hash.
    let key = state.keys.identify(&state.pool, key.hash()).await?;
    key.ok_or(Error::Unauthenticated)
}

/// The token of an `Authorization: Bearer` header. The scheme is case-insensitive (RFC 9110).
fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = headers
        .get(header::AUTHORIZATION)?
        .to_str()
        .ok()?
        .split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}
