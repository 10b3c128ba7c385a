//! The record of money movements, which the Transactions API shows.

use std::collections::{BTreeMap, HashMap};

use serde::{Deserialize, Serialize};

use crate::account::Account;
use crate::clock::Timestamp;
use crate::ids;
use crate::money::Money;
use crate::paging::Position;

/// Beyond this number, the oldest transactions are forgotten, so that a load test can't use up the machine's memory.
const MAX_TRANSACTIONS: usize = 200_000;

/// A transaction. Its JSON form is the response of Dojo's API. As in an intent, members without a value are left out.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Transaction {
    pub(crate) id: String,
    legacy_id: String,
    pub(crate) date_time: Timestamp,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) payment_intent_id: Option<String>,
    merchant_id: String,
    #[serde(rename = "type")]
    pub(crate) kind: TransactionType,
    pub(crate) status: TransactionStatus,
    /// Without tips and cashback. Positive for refunds as well: the type says which way the money moves.
    pub(crate) amount: Money,
    pub(crate) cashback_amount: Money,
    pub(crate) tips_amount: Money,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) reference: Option<String>,
    pub(crate) payment_details: TransactionDetails,
    #[serde(skip)]
    pub(crate) account: Account,
    /// Missing from search results. Only the control API hides transactions.
    #[serde(skip)]
    pub(crate) hidden: bool,
}

#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct TransactionDetails {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) card: Option<TransactionCard>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) auth_code: Option<String>,
    is_remote: bool,
    payment_product: PaymentProduct,
}

#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct TransactionCard {
    /// `**********1005`
    pub(crate) number: String,
    pub(crate) funding_type: &'static str,
    #[serde(rename = "type")]
    pub(crate) scheme: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum TransactionType {
    Sale,
    Refund,
    PreAuth,
    Collection,
    /// A type that Dojo doesn't document. Only the control API sets it.
    #[serde(untagged)]
    Other(String),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum TransactionStatus {
    Authorized,
    Declined,
    Held,
    UnderReview,
    Reversed,
    AwaitingCollection,
    Released,
    Expired,
    /// A status that Dojo doesn't document. Only the control API sets it.
    #[serde(untagged)]
    Other(String),
}

/// How the merchant took the payment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum PaymentProduct {
    TapToPayOnIPhone,
    DojoPocket,
    Terminal,
    OnlineCheckout,
    VirtualTerminal,
    PaymentLinks,
    DojoBookings,
    PayByQr,
    /// Dojo's own `Other`, or a product that Dojo doesn't document. Only the control API sets the latter.
    #[serde(untagged)]
    Other(String),
}

impl PaymentProduct {
    /// Whether the card isn't where the merchant is.
    fn is_remote(&self) -> bool {
        !matches!(
            self,
            Self::TapToPayOnIPhone | Self::DojoPocket | Self::Terminal
        )
    }
}

impl Transaction {
    /// A transaction with an id of its own, and without an intent, a reference or a card.
    pub(crate) fn new(
        account: &Account,
        kind: TransactionType,
        status: TransactionStatus,
        amount: Money,
        payment_product: PaymentProduct,
        date_time: Timestamp,
    ) -> Self {
        Self {
            id: ids::prefixed("txn_sandbox_"),
            legacy_id: ids::uuid(),
            date_time,
            payment_intent_id: None,
            merchant_id: account.merchant_id(),
            kind,
            status,
            amount,
            cashback_amount: amount.with_value(0),
            tips_amount: amount.with_value(0),
            reference: None,
            payment_details: TransactionDetails {
                card: None,
                auth_code: None,
                is_remote: payment_product.is_remote(),
                payment_product,
            },
            account: account.clone(),
            hidden: false,
        }
    }
}

/// What a change of an intent does to the record.
#[derive(Clone, Debug)]
pub(crate) enum Movement {
    Added(Box<Transaction>),
    /// The transaction with this id has another status now.
    StatusChanged {
        id: String,
        status: TransactionStatus,
    },
}

/// All transactions.
#[derive(Debug, Default)]
pub(crate) struct Transactions {
    by_time: BTreeMap<Position, Transaction>,
    /// By the transaction's id.
    positions: HashMap<String, Position>,
    added: u64,
}

impl Transactions {
    /// All transactions by time, oldest first. Those with the same time are in the order in which they were added.
    pub(crate) fn all(&self) -> &BTreeMap<Position, Transaction> {
        &self.by_time
    }

    /// A transaction, to be changed except for its id and time.
    pub(crate) fn find_mut(&mut self, id: &str) -> Option<&mut Transaction> {
        let position = self.positions.get(id)?;
        self.by_time.get_mut(position)
    }

    pub(crate) fn add(&mut self, transaction: Transaction) {
        if self.by_time.len() >= MAX_TRANSACTIONS
            && let Some((_, forgotten)) = self.by_time.pop_first()
        {
            self.positions.remove(&forgotten.id);
        }
        self.added += 1;
        let time = Position::from(transaction.date_time.ticks());
        let position = (time << u64::BITS) | Position::from(self.added);
        self.positions.insert(transaction.id.clone(), position);
        self.by_time.insert(position, transaction);
    }

    /// Ignores a change of a transaction that is forgotten.
    pub(crate) fn apply(&mut self, movement: Movement) {
        match movement {
            Movement::Added(transaction) => self.add(*transaction),
            Movement::StatusChanged { id, status } => {
                if let Some(transaction) = self.find_mut(&id) {
                    transaction.status = status;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{PaymentProduct, TransactionStatus};

    #[test]
    fn words_that_dojo_does_not_document_are_kept() {
        for (word, status) in [
            ("Held", TransactionStatus::Held),
            ("Lost", TransactionStatus::Other("Lost".to_owned())),
        ] {
            let read: TransactionStatus = serde_json::from_value(json!(word)).expect("a status");
            assert_eq!(read, status);
            assert_eq!(json!(status), word);
        }
        let other: PaymentProduct = serde_json::from_value(json!("Other")).expect("a product");
        assert_eq!(json!(other), "Other");
    }
}
