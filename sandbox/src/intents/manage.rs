//! How a merchant manages a payment: capture, refund, reversal, another amount, tips.

use super::{
    Capture, CaptureMode, Intent, ItemLine, Refund, RefundRequest, Refusal, Status, TaxLine,
};
use crate::clock::Timestamp;
use crate::ids;
use crate::money::Money;

/// Far more refunds than anyone makes of one payment; it keeps an intent small.
const MOST_REFUNDS: usize = 1_000;

impl Intent {
    /// Captures part or all of an authorization, and tells the capture's id.
    ///
    /// Dojo does not document what the status reads after a part. Here the first capture makes the
    /// intent `Captured`, because money has been taken and can be refunded; further captures are
    /// allowed until the whole amount is taken, anything is refunded, or the authorization has run
    /// out. `captures` tells how much was taken.
    pub(crate) fn capture(
        &mut self,
        amount: i64,
        tips: Option<i64>,
        now: Timestamp,
    ) -> Result<String, Refusal> {
        let open = match self.status {
            Status::Authorized => true,
            Status::Captured => {
                self.capture_mode == CaptureMode::Manual && self.refunded_amount == 0
            }
            _ => false,
        };
        if !open || self.authorization_ends().is_some_and(|end| end <= now) {
            return Err(self.refuses("be captured"));
        }
        if amount > self.left_to_capture() {
            let left = self.left_to_capture();
            return Err(Refusal::State(format!("There are {left} left to capture.")));
        }
        self.add_captured_tips(tips.unwrap_or(0))?;

        let id = ids::uuid();
        self.captures.push(Capture {
            id: id.clone(),
            amount,
            tips_amount: tips,
            status: "Successful",
            created_at: now,
        });
        self.settle(Status::Captured, "DEPOSITED", now);
        Ok(id)
    }

    /// Gives money back. Dojo does not document the status after a part of it either: it stays
    /// `Captured` here until all is returned, and `refundedAmount` is the truth.
    pub(crate) fn refund(
        &mut self,
        request: RefundRequest,
        idempotency_key: String,
        now: Timestamp,
    ) -> Result<Refund, Refusal> {
        self.must_be(&Status::Captured, "be refunded")?;
        let left = self.left_to_refund();
        if request.amount > left {
            return Err(Refusal::State(format!("There are {left} left to refund.")));
        }
        if self.refunds.len() >= MOST_REFUNDS {
            return Err(Refusal::State(
                "There are too many refunds of this payment.".to_owned(),
            ));
        }
        self.refunded_amount += request.amount;
        if self.refunded_amount == self.taken() {
            self.settle(Status::Refunded, "REFUNDED", now);
        } else {
            self.record_own("Refunded", now);
        }
        let refund = Refund {
            id: ids::uuid(),
            idempotency_key,
            request,
        };
        self.refunds.push(refund.clone());
        Ok(refund)
    }

    /// Undoes a payment before it settles: an authorization at any time, an automatic capture on the
    /// same calendar day (UTC).
    pub(crate) fn reverse(&mut self, now: Timestamp) -> Result<(), Refusal> {
        match (self.capture_mode, &self.status) {
            (CaptureMode::Manual, Status::Authorized) => {}
            (CaptureMode::Auto, Status::Captured) if self.refunded_amount == 0 => {
                if self
                    .authorized_at
                    .is_some_and(|paid| paid.date() != now.date())
                {
                    let reason = "A captured payment can only be reversed on the day it was made.";
                    return Err(Refusal::State(reason.to_owned()));
                }
            }
            _ => return Err(self.refuses("be reversed")),
        }
        self.settle(Status::Reversed, "REVERSED", now);
        Ok(())
    }

    /// Changes the amount, where creation allowed it and nothing is captured.
    pub(crate) fn set_amount(
        &mut self,
        amount: Money,
        item_lines: Option<Vec<ItemLine>>,
        tax_lines: Option<Vec<TaxLine>>,
    ) -> Result<(), Refusal> {
        if !self
            .config
            .payment
            .is_some_and(|payment| payment.custom_amount_allowed)
        {
            return Err(Refusal::NotAllowed("customAmountAllowed"));
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

    /// Changes the tip, where creation allowed it and nothing is captured.
    pub(crate) fn set_tips(&mut self, tips: Money) -> Result<(), Refusal> {
        if !self.tips_allowed() {
            return Err(Refusal::NotAllowed("tipsAllowed"));
        }
        self.must_be_uncaptured()?;
        self.must_be_own_currency(tips)?;
        self.tips_amount = Some(tips);
        self.amount_changed()
    }

    /// Whether there is a payment to write a receipt for.
    pub(crate) fn check_receipt(&self) -> Result<(), Refusal> {
        match self.status {
            Status::Created | Status::Canceled => Err(self.refuses("have a receipt")),
            _ => Ok(()),
        }
    }

    /// Minor units not captured yet, tips aside.
    pub(super) fn left_to_capture(&self) -> i64 {
        let tips = self.tips_amount.map_or(0, |tips| tips.value);
        let captured: i64 = self.captures.iter().map(|capture| capture.amount).sum();
        self.total_amount.value - tips - captured
    }

    /// Minor units that were taken from the card and not given back.
    pub(crate) fn left_to_refund(&self) -> i64 {
        self.taken() - self.refunded_amount
    }

    /// Minor units that were taken from the card.
    fn taken(&self) -> i64 {
        if self.captures.is_empty() {
            return self.total_amount.value;
        }
        self.captures
            .iter()
            .map(|capture| capture.amount + capture.tips_amount.unwrap_or(0))
            .sum()
    }

    /// More tips than were agreed are taken only where creation allowed tips.
    fn add_captured_tips(&mut self, tips: i64) -> Result<(), Refusal> {
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
            return Err(Refusal::State(format!(
                "There are {} left of the tip.",
                agreed - before
            )));
        }
        self.tips_amount = Some(self.amount.with_value(captured));
        self.check_total()?;
        self.add_up();
        Ok(())
    }

    fn tips_allowed(&self) -> bool {
        self.config
            .payment
            .is_some_and(|payment| payment.tips_allowed)
    }

    fn must_be_uncaptured(&self) -> Result<(), Refusal> {
        match self.status {
            Status::Created | Status::Authorized => Ok(()),
            _ => Err(self.refuses("change its amount")),
        }
    }

    fn must_be_own_currency(&self, money: Money) -> Result<(), Refusal> {
        if money.currency_code == self.amount.currency_code {
            Ok(())
        } else {
            Err(Refusal::State(
                "The currency of a payment intent cannot change.".to_owned(),
            ))
        }
    }

    fn amount_changed(&mut self) -> Result<(), Refusal> {
        self.check_total()?;
        self.add_up();
        // What a cardholder was about to approve is not what they would pay now.
        self.challenge = None;
        Ok(())
    }

    fn check_total(&self) -> Result<(), Refusal> {
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
            .ok_or_else(|| Refusal::State("The total is too large.".to_owned()))
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
    use crate::intents::{Card, Intent, Origin, Reaction, RefundRequest, Status};

    fn intent(mode: &str, now: Timestamp) -> Intent {
        let request = serde_json::from_value(json!({
            "amount": {"value": 1000, "currencyCode": "GBP"},
            "tipsAmount": {"value": 100, "currencyCode": "GBP"},
            "reference": "Order 234",
            "captureMode": mode,
            "autoExpireAction": "Capture",
            "config": {"payment": {"customAmountAllowed": true, "tipsAllowed": true}},
        }));
        let origin = Origin {
            account: Account::of_key("sk_sandbox_tests"),
            public_url: "http://localhost",
            now,
        };
        Intent::create(request.expect("a request"), origin)
    }

    /// Does anything that can be done; whether it is refused is the rules' affair.
    fn do_anything(intent: &mut Intent, rng: &mut StdRng, now: Timestamp) {
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
                .present(Card::that_will(Reaction::Approve), now)
                .map(|_| ()),
            1 => intent
                .present(Card::that_will(Reaction::Challenge), now)
                .map(|_| ()),
            2 => intent
                .answer_challenge(rng.random_bool(0.5), now)
                .map(|_| ()),
            3 if rng.random_bool(0.2) => intent.cancel(),
            4 | 5 => intent
                .capture(amount, rng.random_bool(0.3).then_some(50), now)
                .map(|_| ()),
            6 => intent.refund(refund, String::new(), now).map(|_| ()),
            7 if rng.random_bool(0.2) => intent.reverse(now),
            8 => intent.set_amount(money, None, None),
            9 => intent.set_tips(money),
            _ if rng.random_bool(0.1) => intent.run_out(now),
            _ => Ok(()),
        };
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
    fn whatever_is_tried_no_money_appears_or_vanishes() {
        let start = Timestamp::parse("2026-03-01T12:00:00Z").expect("a moment");
        let mut ends = std::collections::BTreeSet::new();
        for seed in 0..2_000 {
            let mut rng = StdRng::seed_from_u64(seed);
            let mode = if seed % 2 == 0 { "Auto" } else { "Manual" };
            let mut intent = intent(mode, start);
            for step in 0..40 {
                let before = intent.clone();
                do_anything(&mut intent, &mut rng, start.plus(Duration::hours(step)));
                assert!(
                    may_follow(&before.status, &intent.status),
                    "{before:?}\n{intent:?}"
                );

                let total = intent.total_amount.value;
                let tips = intent.tips_amount.map_or(0, |tips| tips.value);
                assert_eq!(total, intent.amount.value + tips, "{intent:?}");
                assert!(intent.left_to_capture() >= 0, "{intent:?}");
                assert!(intent.taken() <= total, "{intent:?}");
                let refunded: i64 = intent
                    .refunds
                    .iter()
                    .map(|refund| refund.request.amount)
                    .sum();
                assert_eq!(intent.refunded_amount, refunded, "{intent:?}");
                assert!(refunded <= intent.taken(), "{intent:?}");
                let all_returned = refunded > 0 && refunded == intent.taken();
                assert_eq!(
                    intent.status == Status::Refunded,
                    all_returned,
                    "{intent:?}"
                );
            }
            ends.insert(intent.status.word().to_owned());
        }
        assert_eq!(ends.len(), 6, "some status was never reached: {ends:?}");
    }
}
