//! How an intent moves: paying, canceling and running out of time.

use time::Duration;

use super::{
    AutoExpireAction, Capture, Card, CardDetails, Intent, PaymentDetails, PaymentEvent, Reaction,
    Status, Transaction,
};
use crate::clock::Timestamp;
use crate::ids;

/// Dojo reverses an authorization that nobody captured for this long.
const AUTHORIZATION_LIFE: Duration = Duration::days(7);

/// A customer may try as often as they like; the history keeps the latest tries only.
const MOST_EVENTS: usize = 100;

/// What came of an attempt to pay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Attempt {
    Paid,
    /// The cardholder must answer a 3-D Secure challenge first.
    Challenged,
    /// The intent is as it was, and the customer may try again.
    Declined,
}

/// Why an intent does not do what it is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// Its state or its amounts do not allow it.
    State(String),
    /// The member of `config.payment` that would allow it is not set.
    NotAllowed(&'static str),
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::State(reason) => f.write_str(reason),
            Self::NotAllowed(member) => {
                write!(
                    f,
                    "This payment intent was created without config.payment.{member}."
                )
            }
        }
    }
}

impl Intent {
    /// Presents a card. A link takes one successful payment, so only a `Created` intent has any use
    /// for one.
    pub(crate) fn present(&mut self, card: Card, now: Timestamp) -> Result<Attempt, Refusal> {
        self.must_be_payable()?;
        self.challenge = None;
        let reaction = card.reaction;
        let transaction = Transaction {
            id: ids::uuid(),
            auth_code: String::new(),
            card,
        };
        Ok(match reaction {
            Reaction::Approve => {
                self.approve(transaction, now);
                Attempt::Paid
            }
            Reaction::Challenge => {
                self.record("AuthChallenged", Some(&transaction), now);
                self.challenge = Some(transaction);
                Attempt::Challenged
            }
            Reaction::Decline => {
                self.record("Declined", Some(&transaction), now);
                Attempt::Declined
            }
        })
    }

    /// The cardholder's answer to the 3-D Secure challenge.
    pub(crate) fn answer_challenge(
        &mut self,
        passed: bool,
        now: Timestamp,
    ) -> Result<Attempt, Refusal> {
        self.must_be_payable()?;
        let transaction = self
            .challenge
            .take()
            .ok_or_else(|| Refusal::State("No challenge is waiting for an answer.".to_owned()))?;
        if passed {
            self.approve(transaction, now);
            Ok(Attempt::Paid)
        } else {
            self.record("Declined", Some(&transaction), now);
            Ok(Attempt::Declined)
        }
    }

    /// Cancels, which only an intent that nobody paid allows.
    pub(crate) fn cancel(&mut self) -> Result<(), Refusal> {
        self.must_be(&Status::Created, "be canceled")?;
        self.challenge = None;
        self.status = Status::Canceled;
        Ok(())
    }

    /// When time alone will change this intent, if nothing else does before.
    pub(crate) fn due_at(&self) -> Option<Timestamp> {
        match self.status {
            Status::Created => Some(self.expire_at),
            Status::Authorized => self.authorization_ends(),
            _ => None,
        }
    }

    /// Until when the card's issuer holds the money.
    pub(super) fn authorization_ends(&self) -> Option<Timestamp> {
        let authorized = self.authorized_at?;
        let life = self.auto_expire_after().unwrap_or(AUTHORIZATION_LIFE);
        // A customer who pays after `autoExpireAt` leaves no time at all.
        Some(self.auto_expire_at.unwrap_or(authorized.plus(life)))
    }

    /// What becomes of the intent when its time is up: unpaid, it is voided; authorized, it is
    /// captured or released as `autoExpireAction` says, and released where nothing says so.
    pub(crate) fn run_out(&mut self, now: Timestamp) -> Result<(), Refusal> {
        match self.status {
            Status::Created => {
                self.expired = true;
                self.cancel()
            }
            Status::Authorized => {
                let timed = self.auto_expire_in.is_some() || self.auto_expire_at.is_some();
                let capture = timed && self.auto_expire_action == Some(AutoExpireAction::Capture);
                if capture {
                    self.capture_all(now);
                } else {
                    self.settle(Status::Reversed, "REVERSED", now);
                }
                Ok(())
            }
            _ => Err(self.refuses("expire")),
        }
    }

    fn must_be_payable(&self) -> Result<(), Refusal> {
        self.must_be(&Status::Created, "be paid")
    }

    pub(super) fn must_be(&self, status: &Status, verb: &str) -> Result<(), Refusal> {
        if self.status == *status {
            Ok(())
        } else {
            Err(self.refuses(verb))
        }
    }

    pub(super) fn refuses(&self, verb: &str) -> Refusal {
        Refusal::State(format!(
            "A payment intent with status {} cannot {verb}.",
            self.status.word()
        ))
    }

    fn approve(&mut self, mut transaction: Transaction, now: Timestamp) {
        transaction.auth_code = ids::auth_code();
        self.transaction = Some(transaction);
        self.authorized_at = Some(now);
        match self.capture_mode {
            super::CaptureMode::Auto => self.settle(Status::Captured, "DEPOSITED", now),
            super::CaptureMode::Manual => {
                self.status = Status::Authorized;
                self.record_own("Authorized", now);
            }
        }
    }

    fn capture_all(&mut self, now: Timestamp) {
        let tips = self.tips_amount.map(|tips| tips.value);
        self.captures.push(Capture {
            id: ids::uuid(),
            amount: self.left_to_capture(),
            tips_amount: tips,
            status: "Successful",
            created_at: now,
        });
        self.settle(Status::Captured, "DEPOSITED", now);
    }

    /// Moves to a status in which the payment is final, and shows how it went.
    pub(super) fn settle(&mut self, status: Status, message: &str, now: Timestamp) {
        let event = match status {
            Status::Reversed => "Reversed",
            Status::Refunded => "Refunded",
            _ => "Captured",
        };
        self.status = status;
        self.record_own(event, now);
        self.payment_details = self.transaction.as_ref().map(|transaction| PaymentDetails {
            transaction_id: transaction.id.clone(),
            transaction_date_time: now,
            message: message.to_owned(),
            auth_code: transaction.auth_code.clone(),
            card: CardDetails {
                card_number: transaction.card.masked.clone(),
                card_name: transaction.card.holder.clone(),
                expiry_date: transaction.card.expiry_date.clone(),
                card_type: transaction.card.scheme.to_owned(),
                card_funding_type: "Debit".to_owned(),
                last4_pan: transaction.card.last4.clone(),
                entry_mode: "ManualEntry".to_owned(),
                verification_method: "None".to_owned(),
            },
            avs_result: self
                .billing_address
                .as_ref()
                .map(|_| "ADDRESS_MATCH_POSTCODE_MATCH".to_owned()),
        });
    }

    pub(super) fn record_own(&mut self, event_type: &'static str, now: Timestamp) {
        let transaction = self.transaction.clone();
        self.record(event_type, transaction.as_ref(), now);
    }

    /// Adds to the history. An intent forced into a status by the controls has no transaction.
    fn record(
        &mut self,
        event_type: &'static str,
        transaction: Option<&Transaction>,
        now: Timestamp,
    ) {
        if self.payment_events.len() >= MOST_EVENTS {
            self.payment_events.remove(0);
        }
        let text = |of: fn(&Transaction) -> &str| transaction.map_or("", of).to_owned();
        self.payment_events.push(PaymentEvent {
            transaction_id: text(|t| &t.id),
            transaction_date_time: now,
            event_type,
            auth_code: text(|t| &t.auth_code),
            card_number: text(|t| &t.card.masked),
            expiry_date: text(|t| &t.card.expiry_date),
            card_type: text(|t| t.card.scheme),
            cardholder_name: text(|t| &t.card.holder),
            payment_method_id: String::new(),
        });
    }
}
