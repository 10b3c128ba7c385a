//! The transactions of an intent: one for each attempt to pay, for each capture and for each refund.
//!
//! Dojo documents the types and statuses of transactions, but not when each of them applies. The README lists what the
//! sandbox does.

use super::cards::FUNDING_TYPE;
use super::intent::{Attempt, CaptureMode, Intent};
use crate::clock::Timestamp;
use crate::transactions::{
    Movement, Transaction, TransactionCard, TransactionStatus, TransactionType,
};

impl Intent {
    /// Adds the transaction of an attempt to pay. Its id is the attempt's, and its amounts stay as they are, whatever
    /// is captured.
    pub(super) fn add_attempt(&mut self, attempt: &Attempt, now: Timestamp) {
        let (kind, approved) = match self.capture_mode {
            CaptureMode::Auto => (TransactionType::Sale, TransactionStatus::Authorized),
            CaptureMode::Manual => (
                TransactionType::PreAuth,
                TransactionStatus::AwaitingCollection,
            ),
        };
        let status = if attempt.is_approved() {
            approved
        } else {
            TransactionStatus::Declined
        };
        let service_charge = self.service_charge_amount.map_or(0, |charge| charge.value);
        let amount = self.amount.value.saturating_add(service_charge);
        let mut transaction = self.transaction(kind, status, amount, Some(attempt), now);
        transaction.id.clone_from(&attempt.id);
        if let Some(cashback) = self.cashback_amount {
            transaction.cashback_amount = cashback;
        }
        if let Some(tips) = self.tips_amount {
            transaction.tips_amount = tips;
        }
        self.add(transaction);
    }

    /// Adds the transaction of a capture. Dojo documents no relation between the ids of both, so there is none.
    pub(super) fn add_collection(&mut self, amount: i64, tips: i64, now: Timestamp) {
        let mut transaction = self.money_moved(TransactionType::Collection, amount, now);
        transaction.tips_amount.value = tips;
        self.add(transaction);
        self.set_attempt_status(TransactionStatus::Authorized);
    }

    /// Adds the transaction of a refund. Dojo documents no relation between the ids of both, so there is none.
    pub(super) fn add_refund(&mut self, amount: i64, now: Timestamp) {
        let transaction = self.money_moved(TransactionType::Refund, amount, now);
        self.add(transaction);
    }

    /// Changes the status of the transaction of the approved attempt. An intent whose status the control API has set
    /// may have none.
    pub(super) fn set_attempt_status(&mut self, status: TransactionStatus) {
        if let Some(attempt) = &self.approved {
            let id = attempt.id.clone();
            self.movements.push(Movement::StatusChanged { id, status });
        }
    }

    fn add(&mut self, transaction: Transaction) {
        self.movements.push(Movement::Added(Box::new(transaction)));
    }

    /// A transaction on the card of the approved attempt.
    fn money_moved(&self, kind: TransactionType, amount: i64, now: Timestamp) -> Transaction {
        let status = TransactionStatus::Authorized;
        self.transaction(kind, status, amount, self.approved.as_ref(), now)
    }

    fn transaction(
        &self,
        kind: TransactionType,
        status: TransactionStatus,
        amount: i64,
        attempt: Option<&Attempt>,
        now: Timestamp,
    ) -> Transaction {
        let mut transaction = Transaction::new(
            &self.account,
            kind,
            status,
            self.amount.with_value(amount),
            self.payment_product.clone(),
            now,
        );
        transaction.payment_intent_id = Some(self.id.clone());
        transaction.reference = Some(self.reference.clone());
        if let Some(attempt) = attempt {
            let (initial, rest) = attempt.card.scheme.split_at(1);
            transaction.payment_details.card = Some(TransactionCard {
                number: format!("**********{}", attempt.card.last4),
                funding_type: FUNDING_TYPE,
                // `Mastercard`, as in Dojo's example. Intents have `MASTERCARD`.
                scheme: format!("{initial}{}", rest.to_ascii_lowercase()),
            });
            transaction.payment_details.auth_code =
                attempt.is_approved().then(|| attempt.auth_code.clone());
        }
        transaction
    }
}
