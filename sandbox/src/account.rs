//! Accounts. As at Dojo, each API key opens one account, which sees only its own intents, transactions and
//! subscriptions.

use serde::Serialize;
use sha2::{Digest, Sha256};

/// An account's id, in the form of Dojo's. It is derived from the API key, so that no table of accounts is needed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Account(String);

impl Account {
    pub(crate) fn of_key(key: &str) -> Self {
        let digest: [u8; 32] = Sha256::digest(key.as_bytes()).into();
        let number = digest.first_chunk().copied().map_or(0, u64::from_be_bytes);
        Self(format!("acc_sandbox_{number:016x}"))
    }

    /// The merchant's unique identifier in the Transactions API. An account has one merchant.
    pub(crate) fn merchant_id(&self) -> String {
        self.0.replacen("acc_", "mid_", 1)
    }
}

#[cfg(test)]
mod tests {
    use super::Account;

    #[test]
    fn the_id_of_a_key_never_changes() {
        let account = Account::of_key("sk_sandbox_tests");
        assert_eq!(account, Account("acc_sandbox_f8e8c88d16d336ce".to_owned()));
    }
}
