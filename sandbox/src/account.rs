//! Whose something is. As at Dojo, each API key opens one account, which sees its own intents and subscriptions.

use serde::Serialize;
use sha2::{Digest, Sha256};

/// An account, by an id of Dojo's form. It is made from the key, so nothing has to be remembered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Account(String);

impl Account {
    /// The account that this key opens.
    pub(crate) fn of_key(key: &str) -> Self {
        let hash = Sha256::digest(key.as_bytes());
        let digits = hash[..8]
            .iter()
            .fold(0, |digits, byte| digits << 8 | u64::from(*byte));
        Self(format!("acc_sandbox_{digits:016x}"))
    }
}
