//! The books: what was captured, refunded and reversed, and how an event of the feed becomes movements.

use std::{collections::BTreeMap, fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use time::{Duration, OffsetDateTime};
use utoipa::ToSchema;

use super::{Capture, Money, MovementId, OperationId, PaymentLinkId, parse_time};

/// One capture, refund or reversal.
///
/// Movements are never removed, and what they say doesn't change. Only when one occurred and who requested it may become known
/// later, and personal metadata can be erased. The `net` of all movements of a link is what was captured less what was
/// refunded, as Dojo's own responses confirmed it.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Movement {
    /// Movements are numbered in the order in which they were recorded.
    #[serde(skip)]
    pub position: i64,
    /// The movement's id, a TypeID.
    #[schema(value_type = String, example = "mov_01kaz8v4wce7q8m6s5gq9nq2fd")]
    pub id: MovementId,
    #[serde(rename = "type")]
    pub kind: MovementType,
    /// How much was captured, refunded or reversed, including tips. Never negative.
    pub amount: Money,
    /// What it adds to the merchant's money: negative for a refund, and zero for the reversal of a payment that was not
    /// captured.
    pub net: Money,
    /// When it occurred. `datedBy` says who says so.
    #[serde(with = "super::timestamp")]
    pub occurred_at: OffsetDateTime,
    pub dated_by: DatedBy,
    /// The local day to which `occurredAt` belongs (`BUSINESS_TIME_ZONE`, `BUSINESS_DAY_CUTOFF`).
    #[schema(value_type = String, format = Date, example = "2026-11-20")]
    #[serde(with = "super::day")]
    pub business_day: time::Date,
    /// When it was recorded here. Later than `occurredAt` if the service learned of it later.
    #[serde(with = "super::timestamp")]
    pub recorded_at: OffsetDateTime,
    /// The Dojo account that takes the money, by its name in this service.
    pub account: String,
    #[schema(value_type = String, example = "plink_01kaz8v4wce7q8m6s5gq9nq2fd")]
    pub payment_link_id: PaymentLinkId,
    /// The id of the payment intent at Dojo.
    pub payment_intent_id: Option<String>,
    /// The link's reference.
    pub reference: String,
    /// The link's metadata entries that the request asks for, or that the operator has chosen, except for those that were erased.
    pub metadata: BTreeMap<String, String>,
    /// The bank's authorization code.
    pub auth_code: Option<String>,
    /// The card number's last four digits.
    pub last4: Option<String>,
    /// The capture's id at Dojo, if Dojo lists it.
    pub capture_id: Option<String>,
    /// The operation of this service that requested it. `null`: it is the customer's payment, or was requested elsewhere.
    #[schema(value_type = Option<String>, example = "op_01kaz8v4wce7q8m6s5gq9nq2fd")]
    pub operation_id: Option<OperationId>,
    /// The name of the client that requested it.
    pub actor: Option<String>,
}

/// What kind of movement it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub enum MovementType {
    /// Money was captured: all of a payment, or a part of a `Manual` one.
    Capture,
    /// Money was refunded, whoever did it.
    Refund,
    /// The payment was reversed.
    Reversal,
    /// Dojo reports another captured amount than before, without a capture or a reversal that explains it.
    CaptureCorrection,
    /// Dojo reports a smaller refunded amount than before, for example because a bank returned a refund.
    RefundCorrection,
}

impl MovementType {
    pub const ALL: [Self; 5] = [
        Self::Capture,
        Self::Refund,
        Self::Reversal,
        Self::CaptureCorrection,
        Self::RefundCorrection,
    ];

    /// The type's name in JSON and in the database.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Capture => "capture",
            Self::Refund => "refund",
            Self::Reversal => "reversal",
            Self::CaptureCorrection => "captureCorrection",
            Self::RefundCorrection => "refundCorrection",
        }
    }

    /// Whether it is about the refunded amount, not about the captured one.
    fn is_about_refunds(self) -> bool {
        matches!(self, Self::Refund | Self::RefundCorrection)
    }
}

/// The text names no type of movement, or nobody who dates one.
#[derive(Debug, thiserror::Error)]
#[error("the word is not known in the books")]
pub struct UnknownWord;

impl FromStr for MovementType {
    type Err = UnknownWord;

    fn from_str(word: &str) -> Result<Self, UnknownWord> {
        let mut all = Self::ALL.into_iter();
        all.find(|kind| kind.as_str() == word).ok_or(UnknownWord)
    }
}

/// Who says when a movement occurred.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub enum DatedBy {
    /// Dojo, in its response about the payment.
    Dojo,
    /// This service: Dojo confirmed the operation at that time.
    Operation,
    /// This service noticed it at that time, and it occurred before. A refund in Dojo's portal is an example.
    Noticed,
    /// Dojo's list of transactions.
    Transaction,
}

impl DatedBy {
    const ALL: [Self; 4] = [
        Self::Dojo,
        Self::Operation,
        Self::Noticed,
        Self::Transaction,
    ];

    /// The name in JSON and in the database.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Dojo => "dojo",
            Self::Operation => "operation",
            Self::Noticed => "noticed",
            Self::Transaction => "transaction",
        }
    }
}

impl FromStr for DatedBy {
    type Err = UnknownWord;

    fn from_str(word: &str) -> Result<Self, UnknownWord> {
        let mut all = Self::ALL.into_iter();
        all.find(|by| by.as_str() == word).ok_or(UnknownWord)
    }
}

/// The metadata entries that are shown with movements, by their keys.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MetadataKeys(Vec<String>);

impl MetadataKeys {
    /// How many keys there can be.
    const MOST: usize = 20;

    /// Reads keys that are separated by commas, exactly as they are. `None`: there are too many, or one can't be a key.
    #[must_use]
    pub fn exactly(text: &str) -> Option<Self> {
        let keys: Vec<_> = text.split(',').map(str::to_owned).collect();
        let is_key = |key: &String| (1..=100).contains(&key.chars().count());
        (keys.len() <= Self::MOST && keys.iter().all(is_key)).then_some(Self(keys))
    }

    /// Reads keys as people type them: with spaces around the commas, or none at all.
    #[must_use]
    pub fn typed(text: &str) -> Option<Self> {
        let keys = text.split(',').map(str::trim).filter(|key| !key.is_empty());
        let text = keys.collect::<Vec<_>>().join(",");
        if text.is_empty() {
            return Some(Self::default());
        }
        Self::exactly(&text)
    }

    #[must_use]
    pub fn keys(&self) -> &[String] {
        &self.0
    }
}

/// The keys, separated by commas.
impl fmt::Display for MetadataKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join(","))
    }
}

/// How times become business days.
#[derive(Debug, Clone)]
pub struct BusinessDays {
    /// A time zone's name that Postgres knows, such as `Europe/London`.
    pub time_zone: String,
    /// When a business day ends, in local time. A day ends in the night that follows it if this is before noon, and in its own
    /// evening otherwise.
    pub cutoff: time::Time,
}

/// Sums of the movements of one business day, account and currency, in minor units.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct DailyTotal {
    #[schema(value_type = String, format = Date, example = "2026-11-20")]
    #[serde(with = "super::day")]
    pub business_day: time::Date,
    /// The Dojo account, by its name in this service.
    pub account: String,
    /// What was captured.
    pub captured: Money,
    /// What was refunded.
    pub refunded: Money,
    /// What was taken back by reversals of captured payments.
    pub reversed: Money,
    /// The sum of all corrections. It can be negative.
    pub corrected: Money,
    /// What all movements together add to the merchant's money. It can be negative.
    pub net: Money,
    /// How many movements there are.
    #[schema(minimum = 1)]
    pub movements: i64,
}

/// What an event of the feed says about money.
#[derive(Debug, Clone, Copy)]
pub struct Report {
    pub what: Reported,
    /// When the change was recorded.
    pub at: OffsetDateTime,
    /// How much has been captured so far, in minor units.
    pub captured: i64,
    /// How much has been refunded so far, in minor units.
    pub refunded: i64,
    /// What the customer was to pay in total, in minor units.
    pub total: i64,
}

/// What an event reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reported {
    Captured,
    Refunded,
    Reversed,
    /// Only the totals: the intent was paid before it was found, or less was captured or refunded than Dojo reported before.
    Totals,
}

/// What is known about a link besides its events.
#[derive(Debug, Default)]
pub struct Evidence {
    /// When the link was requested.
    pub created_at: Option<OffsetDateTime>,
    /// When the payment was made, in Dojo's format.
    pub paid_at: Option<String>,
    /// The captures that Dojo lists, oldest first. Empty for an `Auto` payment.
    pub captures: Vec<Capture>,
    /// The succeeded operations that moved money, oldest first.
    pub operations: Vec<MoneyOperation>,
}

/// A succeeded operation that moved money.
#[derive(Debug, Clone, PartialEq)]
pub struct MoneyOperation {
    pub id: OperationId,
    pub kind: MoneyOperationKind,
    /// Minor units.
    pub amount: i64,
    pub created_at: OffsetDateTime,
    /// When Dojo confirmed it.
    pub succeeded_at: OffsetDateTime,
    /// Dojo's id for what was done.
    pub dojo_id: Option<String>,
    /// The name of the client.
    pub client: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MoneyOperationKind {
    Capture,
    Refund,
    Reversal,
}

/// What of a movement decides about later ones of the same link.
#[derive(Debug, Clone, PartialEq)]
pub struct Booked {
    pub kind: MovementType,
    pub net: i64,
    pub capture_id: Option<String>,
    pub operation_id: Option<OperationId>,
}

/// A movement to be booked.
#[derive(Debug, Clone, PartialEq)]
pub struct NewMovement {
    pub booked: Booked,
    /// Minor units.
    pub amount: i64,
    pub occurred_at: OffsetDateTime,
    pub dated_by: DatedBy,
    pub actor: Option<String>,
}

/// The movements that bring a link's books to what an event reports.
///
/// The event says how much in total. Dojo's captures and our own operations say which parts that amount consists of. What they
/// don't explain was done elsewhere, such as in Dojo's portal, and is one movement. Old events may be booked late, so nothing
/// that happened after the event explains it.
///
/// A response of Dojo's may be an event about captures and one about refunds. Each is booked with its own.
#[must_use]
pub fn book(report: &Report, booked: &[Booked], evidence: &Evidence) -> Vec<NewMovement> {
    let mut ledger = Ledger {
        report,
        evidence,
        booked: booked.to_vec(),
        new: Vec::new(),
    };
    match report.what {
        Reported::Reversed => ledger.reversal(),
        Reported::Captured | Reported::Refunded | Reported::Totals => ledger.captures(),
    }
    if report.what != Reported::Captured {
        ledger.refunds();
    }
    ledger.new
}

struct Ledger<'a> {
    report: &'a Report,
    evidence: &'a Evidence,
    booked: Vec<Booked>,
    new: Vec<NewMovement>,
}

impl<'a> Ledger<'a> {
    /// What the books say was captured, in minor units.
    fn captured(&self) -> i64 {
        let captures = self.booked.iter().filter(|it| !it.kind.is_about_refunds());
        captures.map(|it| it.net).fold(0, i64::saturating_add)
    }

    /// What the books say was refunded, in minor units.
    fn refunded(&self) -> i64 {
        let refunds = self.booked.iter().filter(|it| it.kind.is_about_refunds());
        refunds.map(|it| it.net).fold(0, i64::saturating_sub)
    }

    fn captures(&mut self) {
        let mut left = self.report.captured.saturating_sub(self.captured());
        let evidence = self.evidence;
        for capture in evidence.captures.iter().filter(|it| it.is_collected()) {
            let amount = capture
                .amount
                .saturating_add(capture.tips_amount.unwrap_or(0));
            let created_at = capture.created_at.as_deref();
            let is_later = created_at
                .and_then(parse_time)
                .is_some_and(|at| at > self.latest());
            let is_booked =
                capture.id.is_none() || self.booked.iter().any(|it| it.capture_id == capture.id);
            if is_booked || is_later || amount <= 0 || amount > left {
                continue;
            }
            left -= amount;
            let operation = self
                .unbooked(|it| it.kind == MoneyOperationKind::Capture && it.dojo_id == capture.id);
            let dated = self.dated(created_at, operation);
            self.book(
                MovementType::Capture,
                amount,
                amount,
                dated,
                operation,
                capture.id.clone(),
            );
        }
        if left > 0 {
            // The whole of an `Auto` payment, unless something of it is booked already.
            let paid_at = evidence
                .paid_at
                .as_deref()
                .filter(|_| self.booked.is_empty());
            let dated = self.dated(paid_at, None);
            self.book(MovementType::Capture, left, left, dated, None, None);
        }
        if left < 0 {
            let dated = self.noticed();
            let amount = left.saturating_abs();
            self.book(
                MovementType::CaptureCorrection,
                amount,
                left,
                dated,
                None,
                None,
            );
        }
    }

    fn refunds(&mut self) {
        let mut left = self.report.refunded.saturating_sub(self.refunded());
        while let Some(operation) = self.unbooked(|it| {
            it.kind == MoneyOperationKind::Refund && it.amount > 0 && it.amount <= left
        }) {
            let amount = operation.amount;
            left -= amount;
            let dated = self.dated(None, Some(operation));
            self.book(
                MovementType::Refund,
                amount,
                -amount,
                dated,
                Some(operation),
                None,
            );
        }
        let (dated, amount) = (self.noticed(), left.saturating_abs());
        if left > 0 {
            self.book(MovementType::Refund, amount, -amount, dated, None, None);
        }
        if left < 0 {
            self.book(
                MovementType::RefundCorrection,
                amount,
                amount,
                dated,
                None,
                None,
            );
        }
    }

    /// Books a reversal once, for what was captured or, if nothing was, for what the customer was to pay.
    fn reversal(&mut self) {
        let captured = self.captured().saturating_sub(self.report.captured);
        let is_booked = self
            .booked
            .iter()
            .any(|it| it.kind == MovementType::Reversal);
        if is_booked && captured == 0 {
            return;
        }
        let amount = if captured == 0 {
            self.report.total.max(0)
        } else {
            captured.saturating_abs()
        };
        let operation = self.unbooked(|it| it.kind == MoneyOperationKind::Reversal);
        let dated = self.dated(None, operation);
        let net = 0_i64.saturating_sub(captured);
        self.book(MovementType::Reversal, amount, net, dated, operation, None);
    }

    /// The first operation that fits, isn't booked, and was requested before the event.
    fn unbooked(&self, fits: impl Fn(&MoneyOperation) -> bool) -> Option<&'a MoneyOperation> {
        let mut operations = self.evidence.operations.iter();
        operations.find(|operation| {
            operation.created_at <= self.report.at
                && fits(operation)
                && !self
                    .booked
                    .iter()
                    .any(|it| it.operation_id == Some(operation.id))
        })
    }

    /// The latest time that something can have according to Dojo, whose clock may differ a little.
    fn latest(&self) -> OffsetDateTime {
        self.report.at + Duration::HOUR
    }

    fn noticed(&self) -> (OffsetDateTime, DatedBy) {
        (self.report.at, DatedBy::Noticed)
    }

    /// When something occurred: by Dojo's word if it makes sense, else by the operation.
    fn dated(
        &self,
        dojo: Option<&str>,
        operation: Option<&MoneyOperation>,
    ) -> (OffsetDateTime, DatedBy) {
        // One of Dojo's servers may have a wrong clock.
        let earliest = self.evidence.created_at.map(|at| at - Duration::HOUR);
        let latest = self.latest();
        let is_sensible =
            |at: &OffsetDateTime| *at <= latest && earliest.is_none_or(|earliest| *at >= earliest);
        if let Some(at) = dojo.and_then(parse_time).filter(is_sensible) {
            return (at, DatedBy::Dojo);
        }
        match operation {
            // An operation whose response was lost may have been confirmed after the event that reports it.
            Some(operation) if operation.succeeded_at <= self.report.at => {
                (operation.succeeded_at, DatedBy::Operation)
            }
            _ => self.noticed(),
        }
    }
    fn book(
        &mut self,
        kind: MovementType,
        amount: i64,
        net: i64,
        (occurred_at, dated_by): (OffsetDateTime, DatedBy),
        operation: Option<&MoneyOperation>,
        capture_id: Option<String>,
    ) {
        let booked = Booked {
            kind,
            net,
            capture_id,
            operation_id: operation.map(|operation| operation.id),
        };
        self.booked.push(booked.clone());
        self.new.push(NewMovement {
            booked,
            amount,
            occurred_at,
            dated_by,
            actor: operation.map(|operation| operation.client.clone()),
        });
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use time::macros::datetime;

    use super::*;

    const REQUESTED: OffsetDateTime = datetime!(2026-11-20 09:00 UTC);
    const RECORDED: OffsetDateTime = datetime!(2026-11-20 14:02 UTC);
    const CONFIRMED: OffsetDateTime = datetime!(2026-11-20 13:30 UTC);

    fn report(what: Reported, captured: i64, refunded: i64) -> Report {
        Report {
            what,
            at: RECORDED,
            captured,
            refunded,
            total: 1000,
        }
    }

    fn operation(kind: MoneyOperationKind, amount: i64) -> MoneyOperation {
        MoneyOperation {
            id: OperationId::new(),
            kind,
            amount,
            created_at: CONFIRMED,
            succeeded_at: CONFIRMED,
            dojo_id: None,
            client: "orders".to_owned(),
        }
    }

    fn capture(id: &str, amount: i64) -> Capture {
        Capture {
            id: Some(id.to_owned()),
            amount,
            tips_amount: None,
            status: Some("Successful".to_owned()),
            created_at: Some("2026-11-20T12:00:00.1234567Z".to_owned()),
        }
    }

    fn evidence() -> Evidence {
        Evidence {
            created_at: Some(REQUESTED),
            ..Evidence::default()
        }
    }

    fn lines(movements: &[NewMovement]) -> Vec<(MovementType, i64, i64, DatedBy)> {
        let line = |it: &NewMovement| (it.booked.kind, it.amount, it.booked.net, it.dated_by);
        movements.iter().map(line).collect()
    }

    #[test]
    fn keys_are_read_as_people_type_them() {
        for (typed, keys) in [
            ("", ""),
            (" , ", ""),
            ("order", "order"),
            (" costCentre, order ,", "costCentre,order"),
            ("cost centre", "cost centre"),
        ] {
            let found = MetadataKeys::typed(typed).unwrap();
            assert_eq!(found.to_string(), keys, "{typed:?}");
        }
        for most in [vec!["k"; 20].join(","), "é".repeat(100)] {
            assert!(MetadataKeys::typed(&most).is_some());
        }
        for more in [vec!["k"; 21].join(","), "é".repeat(101)] {
            assert_eq!(MetadataKeys::typed(&more), None);
        }
        // A request contains exactly what it means.
        assert_eq!(
            MetadataKeys::exactly(" a").unwrap().keys(),
            [" a".to_owned()]
        );
        assert_eq!(MetadataKeys::exactly("a,"), None);
        assert_eq!(MetadataKeys::exactly(""), None);
    }

    #[test]
    fn a_payment_is_dated_by_dojo() {
        let evidence = Evidence {
            paid_at: Some("2026-11-20T13:59:58Z".to_owned()),
            ..evidence()
        };
        let new = book(&report(Reported::Captured, 1000, 0), &[], &evidence);
        assert_eq!(
            lines(&new),
            [(MovementType::Capture, 1000, 1000, DatedBy::Dojo)]
        );
        assert_eq!(new[0].occurred_at, datetime!(2026-11-20 13:59:58 UTC));
        assert_eq!(new[0].actor, None);
    }

    #[test]
    fn a_time_that_makes_no_sense_dates_nothing() {
        for absurd in ["2036-11-20T13:59:58Z", "2016-11-20T13:59:58Z", "yesterday"] {
            let evidence = Evidence {
                paid_at: Some(absurd.to_owned()),
                ..evidence()
            };
            let new = book(&report(Reported::Captured, 1000, 0), &[], &evidence);
            assert_eq!(
                (new[0].occurred_at, new[0].dated_by),
                (RECORDED, DatedBy::Noticed)
            );
        }
    }

    #[test]
    fn each_capture_is_one_movement_with_its_operation() {
        let mut second = operation(MoneyOperationKind::Capture, 400);
        second.dojo_id = Some("cap_2".to_owned());
        let evidence = Evidence {
            captures: vec![capture("cap_1", 600), capture("cap_2", 400)],
            operations: vec![second.clone()],
            ..evidence()
        };
        let new = book(&report(Reported::Captured, 1000, 0), &[], &evidence);
        assert_eq!(
            lines(&new),
            [
                (MovementType::Capture, 600, 600, DatedBy::Dojo),
                (MovementType::Capture, 400, 400, DatedBy::Dojo)
            ]
        );
        assert_eq!(new[1].booked.operation_id, Some(second.id));
        assert_eq!(new[1].actor.as_deref(), Some("orders"));
        // Only the first was captured by then. The other one follows with its own event.
        let new = book(&report(Reported::Captured, 600, 0), &[], &evidence);
        assert_eq!(new.len(), 1);
        let booked: Vec<_> = new.into_iter().map(|it| it.booked).collect();
        let new = book(&report(Reported::Captured, 1000, 0), &booked, &evidence);
        assert_eq!(new[0].booked.capture_id.as_deref(), Some("cap_2"));
    }

    #[test]
    fn our_refunds_and_those_in_the_portal_are_separate_movements() {
        let ours = operation(MoneyOperationKind::Refund, 300);
        let evidence = Evidence {
            operations: vec![ours.clone()],
            ..evidence()
        };
        let paid = Booked {
            kind: MovementType::Capture,
            net: 1000,
            capture_id: None,
            operation_id: None,
        };
        let new = book(&report(Reported::Refunded, 1000, 700), &[paid], &evidence);
        assert_eq!(
            lines(&new),
            [
                (MovementType::Refund, 300, -300, DatedBy::Operation),
                (MovementType::Refund, 400, -400, DatedBy::Noticed)
            ]
        );
        assert_eq!(new[0].booked.operation_id, Some(ours.id));
        assert_eq!(new[0].occurred_at, CONFIRMED);
        assert_eq!(new[1].booked.operation_id, None);
    }

    #[test]
    fn nothing_later_explains_an_event() {
        let mut later = operation(MoneyOperationKind::Refund, 300);
        later.created_at = RECORDED + Duration::DAY;
        let mut second = capture("cap_2", 400);
        second.created_at = Some("2026-11-25T12:00:00Z".to_owned());
        let evidence = Evidence {
            captures: vec![second],
            operations: vec![later],
            ..evidence()
        };
        let new = book(&report(Reported::Totals, 400, 300), &[], &evidence);
        assert_eq!(
            lines(&new),
            [
                (MovementType::Capture, 400, 400, DatedBy::Noticed),
                (MovementType::Refund, 300, -300, DatedBy::Noticed)
            ]
        );
        assert!(new.iter().all(|it| it.booked.operation_id.is_none()));
        assert!(new.iter().all(|it| it.booked.capture_id.is_none()));
    }

    #[test]
    fn absurd_totals_are_booked_as_they_are() {
        for absurd in [i64::MIN, i64::MAX] {
            let mut all = report(Reported::Totals, absurd, absurd);
            all.total = absurd;
            for what in [Reported::Captured, Reported::Totals, Reported::Reversed] {
                let new = book(&Report { what, ..all }, &[], &evidence());
                assert!(new.iter().all(|it| it.amount >= 0));
            }
        }
    }

    #[test]
    fn a_reversal_takes_back_what_was_captured_and_is_booked_once() {
        let new = book(&report(Reported::Reversed, 0, 0), &[], &evidence());
        assert_eq!(
            lines(&new),
            [(MovementType::Reversal, 1000, 0, DatedBy::Noticed)]
        );
        let booked = [new[0].booked.clone()];
        assert_eq!(
            book(&report(Reported::Reversed, 0, 0), &booked, &evidence()),
            []
        );
        let paid = Booked {
            kind: MovementType::Capture,
            net: 800,
            capture_id: None,
            operation_id: None,
        };
        let new = book(&report(Reported::Reversed, 0, 0), &[paid], &evidence());
        assert_eq!(
            lines(&new),
            [(MovementType::Reversal, 800, -800, DatedBy::Noticed)]
        );
    }

    #[test]
    fn what_dojo_takes_back_is_corrected() {
        let booked = [
            Booked {
                kind: MovementType::Capture,
                net: 1000,
                capture_id: None,
                operation_id: None,
            },
            Booked {
                kind: MovementType::Refund,
                net: -300,
                capture_id: None,
                operation_id: None,
            },
        ];
        let new = book(&report(Reported::Totals, 900, 0), &booked, &evidence());
        assert_eq!(
            lines(&new),
            [
                (MovementType::CaptureCorrection, 100, -100, DatedBy::Noticed),
                (MovementType::RefundCorrection, 300, 300, DatedBy::Noticed)
            ]
        );
    }

    prop_compose! {
        fn any_report()(what in 0..4_usize, captured in 0..2000_i64, refunded in 0..2000_i64) -> Report {
            let kinds = [Reported::Captured, Reported::Refunded, Reported::Reversed, Reported::Totals];
            report(kinds[what], captured, refunded)
        }
    }

    prop_compose! {
        fn any_evidence()(
            captures in prop::collection::vec(0..900_i64, 0..4),
            operations in prop::collection::vec((0..3_usize, 0..900_i64), 0..5),
        ) -> Evidence {
            let kinds = [
                MoneyOperationKind::Capture,
                MoneyOperationKind::Refund,
                MoneyOperationKind::Reversal,
            ];
            let captures = captures.into_iter().enumerate();
            let operations = operations.into_iter().map(|(kind, amount)| MoneyOperation {
                dojo_id: (kinds[kind] == MoneyOperationKind::Capture).then(|| "cap_0".to_owned()),
                ..operation(kinds[kind], amount)
            });
            Evidence {
                captures: captures.map(|(at, amount)| capture(&format!("cap_{at}"), amount)).collect(),
                operations: operations.collect(),
                ..evidence()
            }
        }
    }

    proptest! {
        #[test]
        fn the_books_follow_dojo(
            reports in prop::collection::vec(any_report(), 1..8),
            evidence in any_evidence(),
        ) {
            let mut booked = Vec::new();
            for report in &reports {
                let new = book(report, &booked, &evidence);
                prop_assert!(new.iter().all(|it| it.amount >= 0));
                booked.extend(new.into_iter().map(|it| it.booked));
                let sum = |refunds| {
                    let part = booked.iter().filter(|it| it.kind.is_about_refunds() == refunds);
                    part.map(|it| it.net).sum::<i64>()
                };
                prop_assert_eq!(sum(false), report.captured);
                if report.what != Reported::Captured {
                    prop_assert_eq!(-sum(true), report.refunded);
                }
                prop_assert_eq!(book(report, &booked, &evidence), []);
                let twice = |key: &dyn Fn(&Booked) -> Option<String>| {
                    let mut keys: Vec<_> = booked.iter().filter_map(key).collect();
                    let all = keys.len();
                    keys.sort();
                    keys.dedup();
                    keys.len() < all
                };
                prop_assert!(!twice(&|it| it.operation_id.map(|id| id.to_string())));
                prop_assert!(!twice(&|it| it.capture_id.clone()));
            }
        }
    }
}
