//! What an API key may do.

use std::{fmt, str::FromStr};

/// What an API key may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// Read links and their timelines.
    LinksRead,
    /// Create links.
    LinksWrite,
    /// Move money: capture, refund, reverse, cancel.
    PaymentsManage,
}

impl Scope {
    pub const ALL: [Self; 3] = [Self::LinksRead, Self::LinksWrite, Self::PaymentsManage];

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
            .ok_or_else(|| {
                let scopes = Self::ALL.map(Self::as_str).join(", ");
                format!("must be one of {scopes}")
            })
    }
}

/// A scope as a type, so that a handler's signature says which scope it requires.
pub(crate) trait RequiredScope {
    const SCOPE: Scope;
}

#[derive(Debug, Clone)]
pub(crate) struct LinksRead;

impl RequiredScope for LinksRead {
    const SCOPE: Scope = Scope::LinksRead;
}

#[derive(Debug, Clone)]
pub(crate) struct LinksWrite;

impl RequiredScope for LinksWrite {
    const SCOPE: Scope = Scope::LinksWrite;
}

#[derive(Debug, Clone)]
pub(crate) struct PaymentsManage;

impl RequiredScope for PaymentsManage {
    const SCOPE: Scope = Scope::PaymentsManage;
}
