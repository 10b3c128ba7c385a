//! Payment, cancellation and expiry.

use time::Duration;

use super::cards::{Card, FUNDING_TYPE, IssuerDecision};
use super::intent::{
    Attempt, AutoExpireAction, CaptureMode, CardDetails, Intent, PaymentDetails, PaymentEvent,
    Status,
};
use crate::clock::Timestamp;
use crate::ids;
use crate::transactions::TransactionStatus;

/// Dojo reverses an authorization that wasn't captured for this long.
const AUTHORIZATION_LIFETIME: Duration = Duration::days(7);

/// The number of attempts isn't limited, but only the latest events are stored.
const MAX_EVENTS: usize = 100;

/// The outcome of an attempt to pay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PaymentOutcome {
    Paid,
    /// The cardholder must pass a 3-D Secure challenge first.
    Challenged,
    /// The status is unchanged, and the customer can try again.
    Declined,
}

/// Why an operation on an intent was rejected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Rejection {
    /// The intent's status or amounts don't allow it.
    State(String),
    /// `config.payment` doesn't allow it. Contains the member that would.
    NotAllowed(&'static str),
}

impl std::fmt::Display for Rejection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::State(reason) => f.write_str(reason),
            Self::NotAllowed(member) => {
                write!(
                    f,
                    "The payment intent was created without config.payment.{member}."
                )
            }
        }
    }
}

impl Intent {
    /// Attempts a payment with a card. An intent accepts one successful payment, so its status must be `Created`.
    pub(crate) fn present(
        &mut self,
        card: Card,
        now: Timestamp,
    ) -> Result<PaymentOutcome, Rejection> {
        self.must_be_payable()?;
        self.challenge = None;
        let decision = card.decision;
        let attempt = Attempt {
            id: ids::uuid(),
            auth_code: String::new(),
            card,
        };
        Ok(match decision {
            IssuerDecision::Approve => {
                self.approve(attempt, now);
                PaymentOutcome::Paid
            }
            IssuerDecision::Challenge => {
                self.record("AuthChallenged", Some(&attempt), now);
                self.challenge = Some(attempt);
                PaymentOutcome::Challenged
            }
            IssuerDecision::Decline => {
                self.decline(&attempt, now);
                PaymentOutcome::Declined
            }
        })
    }

    /// Ends the 3-D Secure challenge that the cardholder passed or failed.
    pub(crate) fn finish_challenge(
        &mut self,
        passed: bool,
        now: Timestamp,
    ) -> Result<PaymentOutcome, Rejection> {
        self.must_be_payable()?;
        let attempt = self
            .challenge
            .take()
            .ok_or_else(|| Rejection::State("No challenge is in progress.".to_owned()))?;
        if passed {
            self.approve(attempt, now);
            Ok(PaymentOutcome::Paid)
        } else {
            self.decline(&attempt, now);
            Ok(PaymentOutcome::Declined)
        }
    }

    pub(crate) fn cancel(&mut self) -> Result<(), Rejection> {
        self.must_be(&Status::Created, "be canceled")?;
        self.challenge = None;
        self.status = Status::Canceled;
        Ok(())
    }

    /// When this intent or its authorization expires.
    pub(crate) fn due_at(&self) -> Option<Timestamp> {
        match self.status {
            Status::Created => Some(self.expire_at),
            Status::Authorized => self.authorization_ends(),
            _ => None,
        }
    }

    /// When the authorization can no longer be captured.
    pub(super) fn authorization_ends(&self) -> Option<Timestamp> {
        let authorized = self.authorized_at?;
        let lifetime = self.auto_expire_after().unwrap_or(AUTHORIZATION_LIFETIME);
        // If the customer pays after `autoExpireAt`, the authorization ends at once.
        Some(self.auto_expire_at.unwrap_or(authorized.plus(lifetime)))
    }

    /// Expires the intent: voids it if it is unpaid, and captures or releases an authorization as `autoExpireAction`
    /// says. Without an `autoExpireAction`, the authorization is released.
    pub(crate) fn expire(&mut self, now: Timestamp) -> Result<(), Rejection> {
        match self.status {
            Status::Created => {
                self.expired = true;
                self.cancel()
            }
            Status::Authorized => {
                let has_deadline = self.auto_expire_in.is_some() || self.auto_expire_at.is_some();
                let capture =
                    has_deadline && self.auto_expire_action == Some(AutoExpireAction::Capture);
                if capture {
                    self.capture_all(now);
                } else {
                    self.set_attempt_status(if has_deadline {
                        TransactionStatus::Released
                    } else {
                        TransactionStatus::Expired
                    });
                    self.finish(Status::Reversed, "REVERSED", now);
                }
                Ok(())
            }
            _ => Err(self.rejection("expire")),
        }
    }

    fn must_be_payable(&self) -> Result<(), Rejection> {
        self.must_be(&Status::Created, "be paid")
    }

    pub(super) fn must_be(&self, status: &Status, verb: &str) -> Result<(), Rejection> {
        if self.status == *status {
            Ok(())
        } else {
            Err(self.rejection(verb))
        }
    }

    pub(super) fn rejection(&self, verb: &str) -> Rejection {
        Rejection::State(format!(
            "A payment intent with status {} cannot {verb}.",
            self.status.as_str()
        ))
    }

    fn decline(&mut self, attempt: &Attempt, now: Timestamp) {
        self.record("Declined", Some(attempt), now);
        self.add_attempt(attempt, now);
    }

    fn approve(&mut self, mut attempt: Attempt, now: Timestamp) {
        attempt.auth_code = ids::auth_code();
        self.add_attempt(&attempt, now);
        self.approved = Some(attempt);
        self.authorized_at = Some(now);
        match self.capture_mode {
            CaptureMode::Auto => self.finish(Status::Captured, "DEPOSITED", now),
            CaptureMode::Manual => {
                self.status = Status::Authorized;
                self.record_event("Authorized", now);
            }
        }
    }

    fn capture_all(&mut self, now: Timestamp) {
        let tips = self.tips_amount.map(|tips| tips.value);
        self.add_capture(self.left_to_capture(), tips, now);
    }

    /// Moves to a final status and adds the payment details.
    pub(super) fn finish(&mut self, status: Status, message: &str, now: Timestamp) {
        let event = match status {
            Status::Reversed => "Reversed",
            Status::Refunded => "Refunded",
            _ => "Captured",
        };
        self.status = status;
        self.record_event(event, now);
        self.payment_details = self.approved.as_ref().map(|attempt| PaymentDetails {
            transaction_id: attempt.id.clone(),
            transaction_date_time: now,
            message: message.to_owned(),
            auth_code: attempt.auth_code.clone(),
            card: CardDetails {
                card_number: attempt.card.masked.clone(),
                card_name: attempt.card.holder.clone(),
                expiry_date: attempt.card.expiry_date.clone(),
                card_type: attempt.card.scheme.to_owned(),
                card_funding_type: FUNDING_TYPE.to_owned(),
                last4_pan: attempt.card.last4.clone(),
                entry_mode: "ManualEntry".to_owned(),
                verification_method: "None".to_owned(),
            },
            avs_result: self
                .billing_address
                .as_ref()
                .map(|_| "ADDRESS_MATCH_POSTCODE_MATCH".to_owned()),
        });
    }

    pub(super) fn record_event(&mut self, event_type: &'static str, now: Timestamp) {
        let attempt = self.approved.clone();
        self.record(event_type, attempt.as_ref(), now);
    }

    /// Adds a payment event. An intent whose status the control API has set may have no attempt.
    fn record(&mut self, event_type: &'static str, attempt: Option<&Attempt>, now: Timestamp) {
        if self.payment_events.len() >= MAX_EVENTS {
            self.payment_events.remove(0);
        }
        let text = |of: fn(&Attempt) -> &str| attempt.map_or("", of).to_owned();
        self.payment_events.push(PaymentEvent {
            transaction_id: text(|attempt| &attempt.id),
            transaction_date_time: now,
            event_type,
            auth_code: text(|attempt| &attempt.auth_code),
            card_number: text(|attempt| &attempt.card.masked),
            expiry_date: text(|attempt| &attempt.card.expiry_date),
            card_type: text(|attempt| attempt.card.scheme),
            cardholder_name: text(|attempt| &attempt.card.holder),
            payment_method_id: String::new(),
        });
    }
}
