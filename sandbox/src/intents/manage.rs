//! What a merchant does with a payment: capture, refund, reversal, changes of the amount and the tip.

use super::intent::{
    Capture, CaptureMode, Intent, ItemLine, Refund, RefundRequest, Status, TaxLine,
};
use super::payment::Rejection;
use crate::clock::Timestamp;
use crate::ids;
use crate::money::Money;
use crate::transactions::TransactionStatus;

/// Limits the size of an intent.
const MAX_REFUNDS: usize = 1_000;

impl Intent {
    /// Captures part or all of an authorization, and returns the capture's id.
    ///
    /// Dojo doesn't document the status after a partial capture. Here, the first capture makes the intent `Captured`,
    /// because money has been taken and can be refunded. Further captures are allowed until the whole amount is
    /// captured, anything is refunded, or the authorization has ended. `captures` shows how much was captured.
    pub(crate) fn capture(
        &mut self,
        amount: i64,
        tips: Option<i64>,
        now: Timestamp,
    ) -> Result<String, Rejection> {
        let capturable = match self.status {
            Status::Authorized => true,
            Status::Captured => {
                self.capture_mode == CaptureMode::Manual && self.refunded_amount == 0
            }
            _ => false,
        };
        if !capturable || self.authorization_ends().is_some_and(|end| end <= now) {
            return Err(self.rejection("be captured"));
        }
        if amount > self.left_to_capture() {
            let left = self.left_to_capture();
            return Err(Rejection::State(format!(
                "Only {left} can still be captured."
            )));
        }
        self.add_captured_tips(tips.unwrap_or(0))?;
        Ok(self.add_capture(amount, tips, now))
    }

    /// Returns the id of the new capture.
    pub(super) fn add_capture(&mut self, amount: i64, tips: Option<i64>, now: Timestamp) -> String {
        let id = ids::uuid();
        self.captures.push(Capture {
            id: id.clone(),
            amount,
            tips_amount: tips,
            status: "Successful",
            created_at: now,
        });
        self.add_collection(amount, tips.unwrap_or(0), now);
        self.finish(Status::Captured, "DEPOSITED", now);
        id
    }

    /// Refunds part or all of the captured amount. Dojo doesn't document the status after a partial refund. Here, it
    /// stays `Captured` until everything is refunded, and `refundedAmount` shows how much was.
    pub(crate) fn refund(
        &mut self,
        request: RefundRequest,
        idempotency_key: String,
        now: Timestamp,
    ) -> Result<Refund, Rejection> {
        self.must_be(&Status::Captured, "be refunded")?;
        let left = self.left_to_refund();
        if request.amount > left {
            return Err(Rejection::State(format!(
                "Only {left} can still be refunded."
            )));
        }
        if self.refunds.len() >= MAX_REFUNDS {
            return Err(Rejection::State(
                "The payment has too many refunds.".to_owned(),
            ));
        }
        self.refunded_amount += request.amount;
        self.add_refund(request.amount, now);
        if self.refunded_amount == self.captured_total() {
            self.finish(Status::Refunded, "REFUNDED", now);
        } else {
            self.record_event("Refunded", now);
        }
        let refund = Refund {
            id: ids::uuid(),
            idempotency_key,
            request,
        };
        self.refunds.push(refund.clone());
        Ok(refund)
    }

    /// Reverses a payment before it is settled: an authorization at any time, an automatic capture on the same calendar
    /// day (UTC).
    pub(crate) fn reverse(&mut self, now: Timestamp) -> Result<(), Rejection> {
        match (self.capture_mode, &self.status) {
            (CaptureMode::Manual, Status::Authorized) => {}
            (CaptureMode::Auto, Status::Captured) if self.refunded_amount == 0 => {
                if self
                    .authorized_at
                    .is_some_and(|paid| paid.date() != now.date())
                {
                    let reason =
                        "A captured payment can only be reversed on the day of the payment.";
                    return Err(Rejection::State(reason.to_owned()));
                }
            }
            _ => return Err(self.rejection("be reversed")),
        }
        self.set_attempt_status(TransactionStatus::Reversed);
        self.finish(Status::Reversed, "REVERSED", now);
        Ok(())
    }

    /// Changes the amount, if the intent allows it and nothing is captured.
    pub(crate) fn set_amount(
        &mut self,
        amount: Money,
        item_lines: Option<Vec<ItemLine>>,
        tax_lines: Option<Vec<TaxLine>>,
    ) -> Result<(), Rejection> {
        if !self
            .config
            .payment
            .is_some_and(|payment| payment.custom_amount_allowed)
        {
            return Err(Rejection::NotAllowed("customAmountAllowed"));
        }
        self.must_be_uncaptured()?;
        self.must_be_own_currency(amount)?;
        self.requested_amount.get_or_insert(self.amount);
        self.amount = amount;
        if let Some(lines) = item_lines {
            self.item_lines = lines;
        }
        if let Some(lines) = tax_lines {
            self.tax_lines = lines;
        }
        self.amount_changed()
    }

    /// Changes the tip, if the intent allows it and nothing is captured.
    pub(crate) fn set_tips(&mut self, tips: Money) -> Result<(), Rejection> {
        if !self.tips_allowed() {
            return Err(Rejection::NotAllowed("tipsAllowed"));
        }
        self.must_be_uncaptured()?;
        self.must_be_own_currency(tips)?;
        self.tips_amount = Some(tips);
        self.amount_changed()
    }

    /// Rejects a receipt for an intent without a payment.
    pub(crate) fn check_receipt(&self) -> Result<(), Rejection> {
        match self.status {
            Status::Created | Status::Canceled => Err(self.rejection("have a receipt")),
            _ => Ok(()),
        }
    }

    /// Minor units that aren't captured yet, without tips.
    pub(super) fn left_to_capture(&self) -> i64 {
        let tips = self.tips_amount.map_or(0, |tips| tips.value);
        let captured: i64 = self.captures.iter().map(|capture| capture.amount).sum();
        self.total_amount.value - tips - captured
    }

    /// Minor units that were captured and not refunded.
    pub(crate) fn left_to_refund(&self) -> i64 {
        self.captured_total() - self.refunded_amount
    }

    /// Minor units that were captured.
    fn captured_total(&self) -> i64 {
        if self.captures.is_empty() {
            return self.total_amount.value;
        }
        self.captures
            .iter()
            .map(|capture| capture.amount + capture.tips_amount.unwrap_or(0))
            .sum()
    }

    /// Captures a higher tip than agreed only if the intent allows tips.
    fn add_captured_tips(&mut self, tips: i64) -> Result<(), Rejection> {
        let before: i64 = self
            .captures
            .iter()
            .filter_map(|capture| capture.tips_amount)
            .sum();
        let agreed = self.tips_amount.map_or(0, |tips| tips.value);
        let captured = before.saturating_add(tips);
        if captured <= agreed {
            return Ok(());
        }
        if !self.tips_allowed() {
            return Err(Rejection::State(format!(
                "Only {} of the tip can still be captured.",
                agreed - before
            )));
        }
        self.tips_amount = Some(self.amount.with_value(captured));
        self.check_total()?;
        self.update_total();
        Ok(())
    }

    fn tips_allowed(&self) -> bool {
        self.config
            .payment
            .is_some_and(|payment| payment.tips_allowed)
    }

    fn must_be_uncaptured(&self) -> Result<(), Rejection> {
        match self.status {
            Status::Created | Status::Authorized => Ok(()),
            _ => Err(self.rejection("change its amount")),
        }
    }

    fn must_be_own_currency(&self, money: Money) -> Result<(), Rejection> {
        if money.currency_code == self.amount.currency_code {
            Ok(())
        } else {
            Err(Rejection::State(
                "The currency of a payment intent cannot change.".to_owned(),
            ))
        }
    }

    fn amount_changed(&mut self) -> Result<(), Rejection> {
        self.check_total()?;
        self.update_total();
        // The cardholder was about to approve another amount.
        self.challenge = None;
        Ok(())
    }

    fn check_total(&self) -> Result<(), Rejection> {
        let parts = [
            self.tips_amount,
            self.cashback_amount,
            self.service_charge_amount,
        ];
        parts
            .into_iter()
            .flatten()
            .try_fold(self.amount.value, |sum, part| sum.checked_add(part.value))
            .map(|_| ())
            .ok_or_else(|| Rejection::State("The total is too large.".to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use rand::rngs::StdRng;
    use rand::{RngExt, SeedableRng};
    use serde_json::json;
    use time::Duration;

    use crate::account::Account;
    use crate::clock::Timestamp;
    use crate::intents::{Card, CreationContext, Intent, IssuerDecision, RefundRequest, Status};
    use crate::transactions::{Movement, TransactionStatus, TransactionType};

    fn intent(mode: &str, now: Timestamp) -> Intent {
        let request = serde_json::from_value(json!({
            "amount": {"value": 1000, "currencyCode": "GBP"},
            "tipsAmount": {"value": 100, "currencyCode": "GBP"},
            "reference": "Order 234",
            "captureMode": mode,
            "autoExpireAction": "Capture",
            "config": {"payment": {"customAmountAllowed": true, "tipsAllowed": true}},
        }));
        let context = CreationContext {
            account: Account::of_key("sk_sandbox_tests"),
            public_url: "http://localhost",
            now,
        };
        Intent::create(request.expect("a request"), context)
    }

    /// Tries a random operation. The rules may reject it.
    fn try_anything(intent: &mut Intent, rng: &mut StdRng, now: Timestamp) {
        let amount = rng.random_range(1..=700);
        let money = intent.amount.with_value(amount);
        let refund = RefundRequest {
            amount,
            refund_reason: None,
            notes: None,
            previous_transaction_id: None,
        };
        let _ = match rng.random_range(0..10) {
            0 => intent
                .present(Card::with_decision(IssuerDecision::Approve), now)
                .map(|_| ()),
            1 => intent
                .present(Card::with_decision(IssuerDecision::Challenge), now)
                .map(|_| ()),
            2 => intent
                .finish_challenge(rng.random_bool(0.5), now)
                .map(|_| ()),
            3 if rng.random_bool(0.2) => intent.cancel(),
            4 | 5 => intent
                .capture(amount, rng.random_bool(0.3).then_some(50), now)
                .map(|_| ()),
            6 => intent.refund(refund, String::new(), now).map(|_| ()),
            7 if rng.random_bool(0.2) => intent.reverse(now),
            8 => intent.set_amount(money, None, None),
            9 => intent.set_tips(money),
            _ if rng.random_bool(0.1) => intent.expire(now),
            _ => Ok(()),
        };
    }

    /// Minor units that the transactions of this type have moved.
    fn moved(intent: &Intent, kind: &TransactionType) -> i64 {
        let added = intent
            .movements
            .iter()
            .filter_map(|movement| match movement {
                Movement::Added(transaction) => Some(transaction),
                Movement::StatusChanged { .. } => None,
            });
        added
            .filter(|added| added.kind == *kind && added.status != TransactionStatus::Declined)
            .map(|added| added.amount.value + added.tips_amount.value + added.cashback_amount.value)
            .sum()
    }

    fn may_follow(before: &Status, after: &Status) -> bool {
        use Status::{Authorized, Canceled, Captured, Created, Refunded, Reversed};
        before == after
            || matches!(
                (before, after),
                (Created, Authorized | Captured | Canceled)
                    | (Authorized, Captured | Reversed)
                    | (Captured, Reversed | Refunded)
            )
    }

    #[test]
    fn no_sequence_of_operations_creates_or_loses_money() {
        let start = Timestamp::parse("2026-03-01T12:00:00Z").expect("a time");
        let mut ends = std::collections::BTreeSet::new();
        for seed in 0..2_000 {
            let mut rng = StdRng::seed_from_u64(seed);
            let mode = if seed % 2 == 0 { "Auto" } else { "Manual" };
            let mut intent = intent(mode, start);
            for step in 0..40 {
                let before = intent.clone();
                try_anything(&mut intent, &mut rng, start.plus(Duration::hours(step)));
                assert!(
                    may_follow(&before.status, &intent.status),
                    "{before:?}\n{intent:?}"
                );

                let total = intent.total_amount.value;
                let tips = intent.tips_amount.map_or(0, |tips| tips.value);
                assert_eq!(total, intent.amount.value + tips, "{intent:?}");
                assert!(intent.left_to_capture() >= 0, "{intent:?}");
                assert!(intent.captured_total() <= total, "{intent:?}");
                let refunded: i64 = intent
                    .refunds
                    .iter()
                    .map(|refund| refund.request.amount)
                    .sum();
                assert_eq!(intent.refunded_amount, refunded, "{intent:?}");
                assert!(refunded <= intent.captured_total(), "{intent:?}");
                let fully_refunded = refunded > 0 && refunded == intent.captured_total();
                assert_eq!(
                    intent.status == Status::Refunded,
                    fully_refunded,
                    "{intent:?}"
                );

                let paid_at_once = mode == "Auto" && intent.authorized_at.is_some();
                let collected = if intent.captures.is_empty() {
                    0
                } else {
                    intent.captured_total()
                };
                for (kind, expected) in [
                    (TransactionType::Sale, if paid_at_once { total } else { 0 }),
                    (TransactionType::Collection, collected),
                    (TransactionType::Refund, refunded),
                ] {
                    assert_eq!(moved(&intent, &kind), expected, "{kind:?} {intent:?}");
                }
            }
            ends.insert(intent.status.as_str().to_owned());
        }
        assert_eq!(ends.len(), 6, "a status was never reached: {ends:?}");
    }
}
