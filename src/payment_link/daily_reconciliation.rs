//! Comparing the books of a business day with Dojo's list of transactions.

use std::{collections::BTreeMap, str::FromStr};

use serde::{Deserialize, Serialize};
use time::{Duration, OffsetDateTime};
use utoipa::ToSchema;

use super::{
    Currency, Money, MovementId, PaymentLinkId, ReportedAmount,
    movement::{DatedBy, MovementType},
};

/// A transaction in Dojo's list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Transaction {
    /// The transaction's id at Dojo.
    pub id: String,
    /// When it was made.
    #[serde(with = "super::timestamp")]
    pub occurred_at: OffsetDateTime,
    /// In Dojo's words: `Sale`, `Refund`, `PreAuth` or `Collection`.
    #[serde(rename = "type")]
    #[schema(example = "Sale")]
    pub kind: String,
    /// In Dojo's words, such as `Authorized`, `Held` or `Reversed`.
    #[schema(example = "Authorized")]
    pub status: String,
    pub amount: ReportedAmount,
    /// The tip, if Dojo reports one. Dojo doesn't document whether `amount` includes it.
    pub tips_amount: Option<ReportedAmount>,
    /// The cashback, if Dojo reports any.
    pub cashback_amount: Option<ReportedAmount>,
    pub payment_intent_id: Option<String>,
    pub reference: Option<String>,
    /// In Dojo's words, such as `PaymentLinks`.
    #[schema(example = "PaymentLinks")]
    pub payment_product: Option<String>,
}

impl Transaction {
    /// The payment product of payment links.
    const PAYMENT_LINKS: &str = "PaymentLinks";

    /// Whether it was made with a payment link, as far as Dojo says.
    #[must_use]
    pub fn is_of_a_payment_link(&self) -> bool {
        self.payment_product.as_deref() == Some(Self::PAYMENT_LINKS)
    }

    /// Whether money moves because of it, or would if Dojo didn't hold it. An authorization alone moves none.
    fn moves_money(&self) -> bool {
        let is_void = matches!(self.status.as_str(), "Declined" | "Expired");
        !is_void && (self.kind != "PreAuth" || self.is_reversed())
    }

    /// The kind of operation that may have made it. `None`: it wasn't an operation.
    #[must_use]
    pub fn operation(&self) -> Option<&'static str> {
        match self.kind.as_str() {
            "Collection" => Some("capture"),
            "Refund" => Some("refund"),
            _ => None,
        }
    }

    /// Whether what made it has succeeded for good, and was done with a payment link. A refund on a terminal was somebody else's
    /// doing, and one that Dojo holds or has reversed may come to nothing.
    #[must_use]
    pub fn is_proof(&self) -> bool {
        self.status == "Authorized" && self.is_of_a_payment_link()
    }

    fn is_reversed(&self) -> bool {
        self.status == "Reversed"
    }

    fn is_held(&self) -> bool {
        matches!(self.status.as_str(), "Held" | "UnderReview")
    }

    /// Which movements it can be the counterpart of.
    fn is_like(&self, kind: MovementType) -> bool {
        match kind {
            MovementType::Capture => matches!(self.kind.as_str(), "Sale" | "Collection"),
            MovementType::Refund => self.kind == "Refund",
            MovementType::Reversal => self.is_reversed() && self.kind != "Refund",
            MovementType::CaptureCorrection | MovementType::RefundCorrection => false,
        }
    }

    /// The sums that it can stand for, in this currency: Dojo doesn't document what `amount` includes. None if it is in another
    /// currency.
    fn sums(&self, currency: Currency) -> Vec<i64> {
        let Some(amount) = self.amount.in_currency(currency) else {
            return Vec::new();
        };
        let part = |part: &Option<ReportedAmount>| {
            let part = part.as_ref().and_then(|part| part.in_currency(currency));
            part.unwrap_or(0)
        };
        let with_tips = amount.saturating_add(part(&self.tips_amount));
        let whole = with_tips.saturating_add(part(&self.cashback_amount));
        vec![amount, with_tips, whole]
    }
}

/// A movement, as far as it is compared.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ComparedMovement {
    #[schema(value_type = String, example = "mov_01kaz8v4wce7q8m6s5gq9nq2fd")]
    pub id: MovementId,
    #[serde(rename = "type")]
    pub kind: MovementType,
    pub amount: Money,
    #[serde(with = "super::timestamp")]
    pub occurred_at: OffsetDateTime,
    pub dated_by: DatedBy,
    #[schema(value_type = String, example = "plink_01kaz8v4wce7q8m6s5gq9nq2fd")]
    pub payment_link_id: PaymentLinkId,
    pub payment_intent_id: String,
    /// The link's reference.
    pub reference: String,
    /// What it adds to the merchant's money, in minor units.
    #[serde(skip)]
    pub net: i64,
    /// Whether an operation of this service requested it. Otherwise it may stand for several things that were done elsewhere.
    #[serde(skip)]
    pub is_requested: bool,
    /// The transactions that earlier comparisons matched it with.
    #[serde(skip)]
    pub pairs: Vec<EarlierPair>,
    /// Whether it belongs to the business day that is compared.
    #[serde(skip)]
    pub is_of_day: bool,
}

/// A transaction that an earlier comparison matched a movement with.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EarlierPair {
    pub transaction_id: String,
    /// How much of the movement it explains, in minor units.
    pub amount: i64,
    /// Whether it was made in the time whose transactions are compared. If Dojo no longer lists it, it explains nothing.
    pub is_in_window: bool,
}

/// How the books and Dojo's list differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub enum DifferenceKind {
    /// The books have a movement that Dojo doesn't list. Dojo may list it later.
    OnlyHere,
    /// Dojo lists a transaction of a payment link, and the books have no movement for it. With a movement: Dojo has reversed the
    /// transaction, and the books haven't.
    OnlyAtDojo,
    /// The amounts differ.
    DifferentAmount,
    /// Dojo holds the transaction or reviews it, so the money may not arrive.
    Held,
}

impl DifferenceKind {
    pub const ALL: [Self; 4] = [
        Self::OnlyHere,
        Self::OnlyAtDojo,
        Self::DifferentAmount,
        Self::Held,
    ];

    /// The kind's name in JSON and in metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::OnlyHere => "onlyHere",
            Self::OnlyAtDojo => "onlyAtDojo",
            Self::DifferentAmount => "differentAmount",
            Self::Held => "held",
        }
    }
}

/// A difference between the books and Dojo's list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Difference {
    pub kind: DifferenceKind,
    /// The movement, if the books have one.
    pub movement: Option<ComparedMovement>,
    /// The transaction, if Dojo lists one.
    pub transaction: Option<Transaction>,
}

/// The result of comparing a day.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Comparison {
    /// How many transactions of payment links Dojo lists that moved money.
    pub listed: u64,
    /// How many of them have their movement.
    pub matched: u64,
    pub differences: Vec<Difference>,
    /// Which transactions belong to which movements.
    pub pairs: Vec<Pair>,
    /// When movements occurred, by Dojo's list, if the books didn't know or have it on another day.
    pub dates: Vec<(MovementId, OffsetDateTime)>,
}

/// A transaction that explains a movement, or a part of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pair {
    pub transaction_id: String,
    /// When the transaction was made.
    pub transaction_at: OffsetDateTime,
    pub movement_id: MovementId,
    /// How much of the movement it explains, in minor units.
    pub amount: i64,
}

/// The state of a day's reconciliation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub enum DayState {
    /// The books agree with Dojo's list.
    Agrees,
    /// They differ.
    Differs,
    /// Dojo's list of transactions can't be read, for example because the account's key isn't permitted to.
    Unavailable,
}

impl DayState {
    pub const ALL: [Self; 3] = [Self::Agrees, Self::Differs, Self::Unavailable];

    /// The state's name in JSON and in the database.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Agrees => "Agrees",
            Self::Differs => "Differs",
            Self::Unavailable => "Unavailable",
        }
    }
}

/// The comparison of an account's books with Dojo's list of transactions, for one business day.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct DailyReconciliation {
    #[schema(value_type = String, format = Date, example = "2026-11-20")]
    #[serde(with = "super::day")]
    pub business_day: time::Date,
    /// The Dojo account, by its name in this service.
    pub account: String,
    pub state: DayState,
    /// When they were last compared.
    #[serde(with = "super::timestamp")]
    pub reconciled_at: OffsetDateTime,
    /// How many transactions of payment links Dojo lists that moved money.
    pub transactions: i64,
    /// How many of them have their movement.
    pub matched: i64,
    /// How many differences there are.
    pub difference_count: i64,
    /// The first thousand differences.
    pub differences: Vec<Difference>,
}

/// The result of comparing an account's books with Dojo's list of transactions, for one business day, without the differences
/// themselves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ComparedDay {
    #[schema(value_type = String, format = Date, example = "2026-11-20")]
    #[serde(with = "super::day")]
    pub business_day: time::Date,
    /// The Dojo account, by its name in this service.
    pub account: String,
    pub state: DayState,
    /// When they were last compared.
    #[serde(with = "super::timestamp")]
    pub reconciled_at: OffsetDateTime,
    /// How many transactions of payment links Dojo lists that moved money.
    pub transactions: i64,
    /// How many of them have their movement.
    pub matched: i64,
    /// How many differences there are.
    pub difference_count: i64,
    pub kinds: DifferenceCounts,
}

/// How many of the first thousand differences are of each kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct DifferenceCounts {
    pub only_here: i64,
    pub only_at_dojo: i64,
    pub different_amount: i64,
    pub held: i64,
}

impl DifferenceCounts {
    #[must_use]
    pub fn by_kind(self) -> [(DifferenceKind, i64); 4] {
        DifferenceKind::ALL.map(|kind| {
            let count = match kind {
                DifferenceKind::OnlyHere => self.only_here,
                DifferenceKind::OnlyAtDojo => self.only_at_dojo,
                DifferenceKind::DifferentAmount => self.different_amount,
                DifferenceKind::Held => self.held,
            };
            (kind, count)
        })
    }
}

/// The text is not the name of a state.
#[derive(Debug, thiserror::Error)]
#[error("the state of a reconciliation is unknown")]
pub struct UnknownState;

impl FromStr for DayState {
    type Err = UnknownState;

    fn from_str(word: &str) -> Result<Self, UnknownState> {
        let mut all = Self::ALL.into_iter();
        all.find(|state| state.as_str() == word).ok_or(UnknownState)
    }
}

/// A transaction to compare.
#[derive(Debug, Clone, Copy)]
pub struct Listed<'a> {
    pub transaction: &'a Transaction,
    /// Whether its payment intent belongs to one of our links.
    pub is_ours: bool,
    /// Whether it belongs to the business day that is compared.
    pub is_of_day: bool,
}

/// Compares movements with Dojo's transactions.
///
/// `listed` are the transactions of a business day and shortly around it. `movements` are those of the day, and all others of
/// the same intents, because the two sides may date the same thing differently. A difference belongs to the day of its
/// transaction or, if it has none, of its movement. What an earlier comparison has matched stays matched, so a movement of
/// another day explains a transaction of this one only if nothing else has explained it.
///
/// Transactions of other products count only if they are about an intent of ours.
#[must_use]
pub fn compare(movements: &[ComparedMovement], listed: &[Listed<'_>]) -> Comparison {
    let mut result = Comparison::default();
    let mut intents: BTreeMap<&str, (Vec<&ComparedMovement>, Vec<Listed<'_>>)> = BTreeMap::new();
    for movement in movements {
        let intent = intents.entry(&movement.payment_intent_id).or_default();
        intent.0.push(movement);
    }
    for listed in listed {
        let transaction = listed.transaction;
        if transaction.moves_money() && (listed.is_ours || transaction.is_of_a_payment_link()) {
            result.listed += u64::from(listed.is_of_day);
            // Without an intent, there is nothing to match it with.
            let intent = transaction.payment_intent_id.as_deref().unwrap_or("");
            intents.entry(intent).or_default().1.push(*listed);
        }
    }
    for (movements, listed) in intents.into_values() {
        Intent::new(&movements).compare(listed, &mut result);
    }
    result
}

/// A movement, and how much of it no transaction explains yet, in minor units.
struct Open<'a> {
    movement: &'a ComparedMovement,
    left: i64,
}

/// What is left to be explained of one intent's movements.
struct Intent<'a> {
    /// Captures and refunds.
    open: Vec<Open<'a>>,
    reversals: Vec<&'a ComparedMovement>,
    corrections: Vec<&'a ComparedMovement>,
    /// Whether Dojo lists a capture of the day that it hasn't reversed.
    has_kept_capture: bool,
}

impl<'a> Intent<'a> {
    fn new(movements: &[&'a ComparedMovement]) -> Self {
        let mut intent = Self {
            open: Vec::new(),
            reversals: Vec::new(),
            corrections: Vec::new(),
            has_kept_capture: false,
        };
        for &movement in movements {
            match movement.kind {
                MovementType::Reversal => intent.reversals.push(movement),
                MovementType::CaptureCorrection | MovementType::RefundCorrection => {
                    intent.corrections.push(movement);
                }
                MovementType::Capture | MovementType::Refund => {
                    let elsewhere = movement.pairs.iter().filter(|pair| !pair.is_in_window);
                    let explained = elsewhere.map(|pair| pair.amount).sum::<i64>();
                    intent.open.push(Open {
                        movement,
                        left: movement.amount.value - explained,
                    });
                }
            }
        }
        intent
    }

    fn compare(mut self, listed: Vec<Listed<'_>>, result: &mut Comparison) {
        // First those that agree exactly. Then refunds that were noticed here together, and made one by one.
        let mut rest = self.match_all(listed, result, |sums, left| sums.contains(&left));
        rest = self.match_all(rest, result, |sums, left| {
            sums.iter()
                .max()
                .is_some_and(|sum| (1..=left).contains(sum))
        });
        for listed in rest {
            let transaction = listed.transaction;
            let candidate = self.nearest(transaction, |_| true);
            let movement = candidate.map(|at| {
                let open = &mut self.open[at];
                open.left = 0;
                open.movement
            });
            if !listed.is_of_day {
                continue;
            }
            let kind = match movement {
                Some(_) => DifferenceKind::DifferentAmount,
                // It moved no money in the end, whether the books know of it or not.
                None if transaction.is_reversed() => {
                    self.reversals.pop();
                    result.matched += 1;
                    continue;
                }
                None => DifferenceKind::OnlyAtDojo,
            };
            result.differences.push(Difference {
                kind,
                movement: movement.cloned(),
                transaction: Some(transaction.clone()),
            });
        }
        for open in &self.open {
            let is_explained = open.left == 0 || self.is_taken_back(open);
            if open.movement.is_of_day && !is_explained {
                result.differences.push(Difference {
                    kind: DifferenceKind::OnlyHere,
                    movement: Some(open.movement.clone()),
                    transaction: None,
                });
            }
        }
        // A reversal has no transaction of its own. It changes that of the payment, so it is judged on the day of that one.
        let unexplained = self.reversals.iter().filter(|it| it.net != 0);
        for movement in unexplained.filter(|_| self.has_kept_capture) {
            result.differences.push(Difference {
                kind: DifferenceKind::OnlyHere,
                movement: Some((*movement).clone()),
                transaction: None,
            });
        }
    }

    /// Matches transactions with movements of which `fits` accepts what is left. Returns the other transactions.
    fn match_all<'b>(
        &mut self,
        listed: Vec<Listed<'b>>,
        result: &mut Comparison,
        fits: impl Fn(&[i64], i64) -> bool,
    ) -> Vec<Listed<'b>> {
        let mut rest = Vec::new();
        for listed in listed {
            let transaction = listed.transaction;
            let found = self.nearest(transaction, |open| {
                let sums = transaction.sums(open.movement.amount.currency_code);
                let is_whole = sums.contains(&open.left);
                let is_divisible =
                    open.movement.kind == MovementType::Refund && !open.movement.is_requested;
                fits(&sums, open.left) && (is_whole || is_divisible)
            });
            match found {
                Some(at) => self.matched(at, listed, result),
                None => rest.push(listed),
            }
        }
        rest
    }

    /// The movement that a transaction can belong to. One that it was matched with before comes first, and then the nearest in
    /// time. One that was only noticed may have occurred long before.
    fn nearest(
        &self,
        transaction: &Transaction,
        fits: impl Fn(&Open<'a>) -> bool,
    ) -> Option<usize> {
        let open = self.open.iter().enumerate();
        let candidates = open.filter(|(_, open)| {
            open.left > 0 && transaction.is_like(open.movement.kind) && fits(open)
        });
        let best = candidates.min_by_key(|(_, open)| {
            let is_known = open
                .movement
                .pairs
                .iter()
                .any(|pair| pair.transaction_id == transaction.id);
            let distance = (open.movement.occurred_at - transaction.occurred_at).abs();
            let is_far = distance > Duration::DAY && open.movement.dated_by != DatedBy::Noticed;
            (!is_known, is_far, distance)
        });
        best.map(|(at, _)| at)
    }

    fn matched(&mut self, at: usize, listed: Listed<'_>, result: &mut Comparison) {
        let open = &mut self.open[at];
        let (movement, transaction) = (open.movement, listed.transaction);
        let sums = transaction.sums(movement.amount.currency_code);
        let amount = if sums.contains(&open.left) {
            open.left
        } else {
            sums.into_iter().max().unwrap_or(0)
        };
        open.left -= amount;
        result.pairs.push(Pair {
            transaction_id: transaction.id.clone(),
            transaction_at: transaction.occurred_at,
            movement_id: movement.id,
            amount,
        });
        let is_dated_otherwise =
            movement.dated_by == DatedBy::Noticed || (listed.is_of_day && !movement.is_of_day);
        if is_dated_otherwise && movement.dated_by != DatedBy::Transaction {
            result.dates.push((movement.id, transaction.occurred_at));
        }
        let is_unknown_reversal = transaction.is_reversed() && !self.takes_back(movement);
        if !listed.is_of_day {
            return;
        }
        self.has_kept_capture |=
            movement.kind == MovementType::Capture && !transaction.is_reversed();
        let kind = if is_unknown_reversal {
            DifferenceKind::OnlyAtDojo
        } else if transaction.is_held() {
            DifferenceKind::Held
        } else {
            result.matched += 1;
            return;
        };
        result.differences.push(Difference {
            kind,
            movement: Some(movement.clone()),
            transaction: Some(transaction.clone()),
        });
    }

    /// Whether the books know that Dojo took this back: a payment by its reversal, which explains one payment, or a refund by a
    /// correction.
    fn takes_back(&mut self, movement: &ComparedMovement) -> bool {
        if movement.kind == MovementType::Refund {
            return self
                .correction(movement.kind, movement.amount.value)
                .is_some();
        }
        self.reversals.pop().is_some()
    }

    /// Whether a correction has taken back exactly what is left of a movement.
    fn is_taken_back(&self, open: &Open<'_>) -> bool {
        self.correction(open.movement.kind, open.left).is_some()
    }

    /// A correction of this amount that lessens captures or refunds.
    fn correction(&self, kind: MovementType, amount: i64) -> Option<&&'a ComparedMovement> {
        self.corrections.iter().find(|it| match kind {
            MovementType::Capture => {
                it.kind == MovementType::CaptureCorrection && it.net == -amount
            }
            _ => it.kind == MovementType::RefundCorrection && it.net == amount,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use time::macros::datetime;

    use super::*;

    const NOON: OffsetDateTime = datetime!(2026-11-20 12:00 UTC);

    fn movement(intent: &str, kind: MovementType, value: i64) -> ComparedMovement {
        ComparedMovement {
            id: MovementId::new(),
            kind,
            amount: Money {
                value,
                currency_code: Currency::Gbp,
            },
            occurred_at: NOON,
            dated_by: DatedBy::Dojo,
            payment_link_id: PaymentLinkId::new(),
            payment_intent_id: intent.to_owned(),
            reference: "Order 1".to_owned(),
            net: match kind {
                MovementType::Refund => -value,
                _ => value,
            },
            is_requested: true,
            pairs: Vec::new(),
            is_of_day: true,
        }
    }

    /// A transaction, whether its intent is ours, and whether it is of the day.
    #[derive(Debug, Clone)]
    struct Row {
        transaction: Transaction,
        is_ours: bool,
        is_of_day: bool,
    }

    fn compare(movements: &[ComparedMovement], rows: &[Row]) -> Comparison {
        let listed: Vec<_> = rows
            .iter()
            .map(|row| Listed {
                transaction: &row.transaction,
                is_ours: row.is_ours,
                is_of_day: row.is_of_day,
            })
            .collect();
        super::compare(movements, &listed)
    }

    fn listed(intent: &str, kind: &str, status: &str, value: i64) -> Row {
        Row {
            transaction: Transaction {
                id: format!("tx_{intent}_{kind}_{value}"),
                occurred_at: NOON,
                kind: kind.to_owned(),
                status: status.to_owned(),
                amount: ReportedAmount {
                    value,
                    currency_code: "GBP".to_owned(),
                },
                tips_amount: None,
                cashback_amount: None,
                payment_intent_id: Some(intent.to_owned()),
                reference: None,
                payment_product: Some("PaymentLinks".to_owned()),
            },
            is_ours: true,
            is_of_day: true,
        }
    }

    #[test]
    fn only_what_has_moved_money_for_good_proves_an_operation() {
        for (kind, status, product, operation) in [
            ("Refund", "Authorized", "PaymentLinks", Some("refund")),
            ("Collection", "Authorized", "PaymentLinks", Some("capture")),
            ("Sale", "Authorized", "PaymentLinks", None),
            ("PreAuth", "Authorized", "PaymentLinks", None),
            ("Refund", "Declined", "PaymentLinks", None),
            ("Refund", "Reversed", "PaymentLinks", None),
            ("Refund", "Held", "PaymentLinks", None),
            ("Collection", "UnderReview", "PaymentLinks", None),
            ("Refund", "Of a later version", "PaymentLinks", None),
            ("Refund", "Authorized", "Terminal", None),
        ] {
            let mut row = listed("pi_1", kind, status, 300).transaction;
            row.payment_product = Some(product.to_owned());
            let proven = row.operation().filter(|_| row.is_proof());
            assert_eq!(proven, operation, "{kind} {status} {product}");
        }
    }

    fn pair(transaction_id: &str, amount: i64, is_in_window: bool) -> EarlierPair {
        EarlierPair {
            transaction_id: transaction_id.to_owned(),
            amount,
            is_in_window,
        }
    }

    fn kinds(comparison: &Comparison) -> Vec<DifferenceKind> {
        comparison.differences.iter().map(|it| it.kind).collect()
    }

    #[test]
    fn what_agrees_is_matched() {
        let movements = [
            movement("pi_1", MovementType::Capture, 1000),
            movement("pi_1", MovementType::Refund, 300),
            movement("pi_1", MovementType::Refund, 300),
            movement("pi_2", MovementType::Capture, 400),
            movement("pi_2", MovementType::Capture, 600),
            movement("pi_3", MovementType::Reversal, 500),
            movement("pi_4", MovementType::Capture, 700),
            movement("pi_4", MovementType::Reversal, 700),
        ];
        let transactions = [
            listed("pi_1", "Sale", "Authorized", 1000),
            listed("pi_1", "Refund", "Authorized", 300),
            listed("pi_1", "Refund", "Authorized", 300),
            listed("pi_2", "PreAuth", "AwaitingCollection", 1000),
            listed("pi_2", "Collection", "Authorized", 600),
            listed("pi_2", "Collection", "Authorized", 400),
            listed("pi_3", "PreAuth", "Reversed", 500),
            listed("pi_4", "Sale", "Reversed", 700),
            listed("pi_5", "Sale", "Declined", 100),
            listed("pi_6", "PreAuth", "Expired", 100),
        ];
        let comparison = compare(&movements, &transactions);
        assert_eq!(comparison.differences, []);
        assert_eq!(comparison.matched, 7);
    }

    #[test]
    fn each_kind_of_difference_is_found() {
        let movements = [
            movement("pi_1", MovementType::Capture, 1000),
            movement("pi_2", MovementType::Capture, 1000),
            movement("pi_3", MovementType::Capture, 1000),
        ];
        let transactions = [
            listed("pi_2", "Sale", "Authorized", 999),
            listed("pi_3", "Sale", "UnderReview", 1000),
            listed("pi_4", "Refund", "Authorized", 100),
        ];
        assert_eq!(
            kinds(&compare(&movements, &transactions)),
            [
                DifferenceKind::OnlyHere,
                DifferenceKind::DifferentAmount,
                DifferenceKind::Held,
                DifferenceKind::OnlyAtDojo
            ]
        );
    }

    #[test]
    fn a_reversal_that_the_books_lack_is_found() {
        let paid = movement("pi_1", MovementType::Capture, 1000);
        let sale = listed("pi_1", "Sale", "Reversed", 1000);
        let comparison = compare(&[paid], &[sale]);
        assert_eq!(kinds(&comparison), [DifferenceKind::OnlyAtDojo]);
        assert!(comparison.differences[0].movement.is_some());
    }

    #[test]
    fn other_products_are_not_compared() {
        let mut terminal = listed("pi_1", "Sale", "Authorized", 1000);
        terminal.transaction.payment_product = Some("Terminal".to_owned());
        terminal.transaction.payment_intent_id = None;
        terminal.is_ours = false;
        assert_eq!(compare(&[], &[terminal.clone()]), Comparison::default());
        // A link whose payment source is switched off shows as another product.
        terminal.is_ours = true;
        terminal.transaction.payment_intent_id = Some("pi_1".to_owned());
        let paid = movement("pi_1", MovementType::Capture, 1000);
        assert_eq!(compare(&[paid], &[terminal]).matched, 1);
    }

    #[test]
    fn what_another_day_has_explained_explains_nothing_else() {
        let mut monday = movement("pi_1", MovementType::Refund, 300);
        monday.is_of_day = false;
        monday.pairs = vec![pair("tx_of_monday", 300, false)];
        let thursday = listed("pi_1", "Refund", "Authorized", 300);
        assert_eq!(
            kinds(&compare(
                std::slice::from_ref(&monday),
                std::slice::from_ref(&thursday)
            )),
            [DifferenceKind::OnlyAtDojo]
        );
        // The same comparison again finds the same. If Dojo doesn't list it any more, that is found, too.
        monday.pairs = vec![pair(&thursday.transaction.id, 300, true)];
        let again = compare(std::slice::from_ref(&monday), &[thursday]);
        assert_eq!((again.matched, again.differences), (1, vec![]));
        monday.is_of_day = true;
        assert_eq!(kinds(&compare(&[monday], &[])), [DifferenceKind::OnlyHere]);
    }

    #[test]
    fn refunds_that_were_noticed_together_are_matched_one_by_one() {
        let mut noticed = movement("pi_1", MovementType::Refund, 600);
        noticed.is_requested = false;
        noticed.dated_by = DatedBy::Noticed;
        noticed.is_of_day = false;
        let mut rows = [
            listed("pi_1", "Refund", "Authorized", 200),
            listed("pi_1", "Refund", "Authorized", 400),
        ];
        let both = compare(&[noticed.clone()], &rows);
        assert_eq!((both.matched, both.differences), (2, vec![]));
        // On different days.
        rows[1].is_of_day = false;
        let one = compare(&[noticed.clone()], &rows[..1]);
        assert_eq!((one.matched, one.differences), (1, vec![]));
        noticed.pairs = vec![pair(&rows[0].transaction.id, 200, false)];
        noticed.is_of_day = true;
        rows[1].is_of_day = true;
        let other = compare(&[noticed.clone()], &rows[1..]);
        assert_eq!((other.matched, other.differences), (1, vec![]));
        // A transaction over nothing explains nothing.
        let nothing = listed("pi_1", "Refund", "Authorized", 0);
        assert_eq!(compare(&[noticed.clone()], &[nothing]).pairs, []);
        // Nothing explains the rest.
        assert_eq!(kinds(&compare(&[noticed], &[])), [DifferenceKind::OnlyHere]);
    }

    #[test]
    fn a_reversal_is_judged_with_its_payment() {
        let mut reversal = movement("pi_1", MovementType::Reversal, 1000);
        reversal.net = 0;
        // Dojo's list has the authorization on the day on which it was made, or doesn't show that it was released.
        assert_eq!(compare(&[reversal.clone()], &[]), Comparison::default());
        let released = listed("pi_1", "PreAuth", "Released", 1000);
        assert_eq!(
            compare(&[reversal.clone()], &[released]),
            Comparison::default()
        );
        // The payment was captured and reversed on different days.
        reversal.net = -1000;
        assert_eq!(compare(&[reversal.clone()], &[]), Comparison::default());
        let mut paid = movement("pi_1", MovementType::Capture, 1000);
        paid.is_of_day = false;
        paid.pairs = vec![pair("tx_of_the_day_before", 1000, false)];
        assert_eq!(
            compare(&[paid.clone(), reversal.clone()], &[]),
            Comparison::default()
        );
        reversal.is_of_day = false;
        paid = movement("pi_1", MovementType::Capture, 1000);
        let both = [paid, reversal];
        let sale = listed("pi_1", "Sale", "Reversed", 1000);
        assert_eq!(kinds(&compare(&both, &[sale])), []);
        let sale = listed("pi_1", "Sale", "Authorized", 1000);
        assert_eq!(kinds(&compare(&both, &[sale])), [DifferenceKind::OnlyHere]);
    }

    #[test]
    fn a_correction_takes_back_what_dojo_does_not_list() {
        let mut correction = movement("pi_1", MovementType::CaptureCorrection, 1000);
        correction.net = -1000;
        let paid = movement("pi_1", MovementType::Capture, 1000);
        assert_eq!(compare(&[paid, correction], &[]), Comparison::default());
        let mut correction = movement("pi_1", MovementType::RefundCorrection, 300);
        correction.net = 300;
        let refund = movement("pi_1", MovementType::Refund, 300);
        let reversed = listed("pi_1", "Refund", "Reversed", 300);
        let comparison = compare(&[refund, correction], &[reversed]);
        assert_eq!((comparison.matched, comparison.differences), (1, vec![]));
    }

    #[test]
    fn what_belongs_to_another_day_is_dated() {
        let mut late = movement("pi_1", MovementType::Refund, 300);
        late.dated_by = DatedBy::Operation;
        late.is_of_day = false;
        let refund = listed("pi_1", "Refund", "Authorized", 300);
        assert_eq!(compare(&[late.clone()], &[refund]).dates, [(late.id, NOON)]);
    }

    #[test]
    fn tips_may_be_apart_or_included() {
        let mut sale = listed("pi_1", "Sale", "Authorized", 1000);
        sale.transaction.tips_amount = Some(ReportedAmount {
            value: 200,
            currency_code: "GBP".to_owned(),
        });
        for value in [1000, 1200] {
            let paid = movement("pi_1", MovementType::Capture, value);
            assert_eq!(compare(&[paid], &[sale.clone()]).matched, 1);
        }
        let mut euro = sale;
        euro.transaction.amount.currency_code = "EUR".to_owned();
        let paid = movement("pi_1", MovementType::Capture, 1000);
        assert_eq!(
            kinds(&compare(&[paid], &[euro])),
            [DifferenceKind::DifferentAmount]
        );
    }

    #[test]
    fn a_portal_refund_is_dated_and_may_have_been_noticed_on_another_day() {
        let mut noticed = movement("pi_1", MovementType::Refund, 300);
        noticed.dated_by = DatedBy::Noticed;
        noticed.occurred_at = NOON + Duration::DAY;
        noticed.is_of_day = false;
        let refund = listed("pi_1", "Refund", "Authorized", 300);
        let comparison = compare(&[noticed.clone()], &[refund]);
        assert_eq!((comparison.matched, comparison.differences), (1, vec![]));
        assert_eq!(comparison.dates, [(noticed.id, NOON)]);
    }

    #[test]
    fn a_neighbouring_day_has_its_own_differences() {
        let mut other = listed("pi_1", "Sale", "Authorized", 1000);
        other.is_of_day = false;
        assert_eq!(compare(&[], &[other]), Comparison::default());
        let mut paid = movement("pi_1", MovementType::Capture, 1000);
        paid.is_of_day = false;
        assert_eq!(compare(&[paid], &[]), Comparison::default());
    }

    /// What is planted into one payment of a day's traffic.
    #[derive(Debug, Clone, Copy, PartialEq)]
    enum Plant {
        Nothing,
        Missing,
        Unknown,
        Amount,
        Held,
    }

    prop_compose! {
        fn payment()(
            value in 1..5000_i64,
            refunds in prop::collection::vec(1..500_i64, 0..3),
            manual in any::<bool>(),
            plant in prop::sample::select(vec![
                Plant::Nothing, Plant::Nothing, Plant::Nothing, Plant::Missing, Plant::Unknown, Plant::Amount, Plant::Held,
            ]),
        ) -> (i64, Vec<i64>, bool, Plant) {
            (value, refunds, manual, plant)
        }
    }

    proptest! {
        #[test]
        fn every_planted_difference_is_found_and_no_other(
            payments in prop::collection::vec(payment(), 0..40),
            seed in any::<u64>(),
        ) {
            let (mut movements, mut transactions) = (Vec::new(), Vec::new());
            let mut expected = Vec::new();
            for (number, (value, refunds, manual, plant)) in payments.iter().enumerate() {
                let intent = format!("pi_{number:03}");
                let kind = if *manual { "Collection" } else { "Sale" };
                if *plant != Plant::Unknown {
                    movements.push(movement(&intent, MovementType::Capture, *value));
                }
                let (status, amount) = match plant {
                    Plant::Held => ("Held", *value),
                    Plant::Amount => ("Authorized", value + 5001),
                    _ => ("Authorized", *value),
                };
                if *plant != Plant::Missing {
                    transactions.push(listed(&intent, kind, status, amount));
                }
                for refund in refunds {
                    movements.push(movement(&intent, MovementType::Refund, *refund));
                    transactions.push(listed(&intent, "Refund", "Authorized", *refund));
                }
                expected.extend(match plant {
                    Plant::Nothing => None,
                    Plant::Missing => Some((DifferenceKind::OnlyHere, intent)),
                    Plant::Unknown => Some((DifferenceKind::OnlyAtDojo, intent)),
                    Plant::Amount => Some((DifferenceKind::DifferentAmount, intent)),
                    Plant::Held => Some((DifferenceKind::Held, intent)),
                });
            }
            // Neither side's order matters.
            let (some, more) = (seed % 7 + 1, seed % 11 + 1);
            movements.sort_by_key(|it| (it.amount.value.unsigned_abs() * some) % 13);
            transactions.sort_by_key(|it| (it.transaction.amount.value.unsigned_abs() * more) % 17);

            let comparison = compare(&movements, &transactions);
            let found: Vec<_> = comparison.differences.iter().map(|it| {
                let intent = it.movement.as_ref().map(|it| it.payment_intent_id.clone());
                let listed = it.transaction.as_ref().and_then(|it| it.payment_intent_id.clone());
                (it.kind, intent.or(listed).unwrap_or_default())
            }).collect();
            prop_assert_eq!(found, expected.clone());
            let all = transactions.len();
            let unmatched = expected.iter().filter(|(kind, _)| *kind != DifferenceKind::OnlyHere).count();
            prop_assert_eq!(comparison.matched, u64::try_from(all - unmatched).unwrap());
        }

        /// Refunds of one payment, some of equal amounts, some noticed days later: every day agrees once all are compared.
        #[test]
        fn days_agree_whatever_was_noticed_late(
            refunds in prop::collection::vec((0..4_i64, 1..4_i64, 0..3_i64), 1..6),
        ) {
            let at = |day: i64, number: usize| {
                NOON + Duration::days(day) + Duration::minutes(i64::try_from(number).unwrap())
            };
            let (mut movements, mut rows) = (Vec::new(), Vec::new());
            for (number, (day, amount, delay)) in refunds.iter().enumerate() {
                let mut refund = movement("pi_1", MovementType::Refund, amount * 100);
                refund.occurred_at = at(day + delay, number);
                if *delay > 0 {
                    refund.dated_by = DatedBy::Noticed;
                    refund.is_requested = false;
                }
                movements.push(refund);
                let mut row = listed("pi_1", "Refund", "Authorized", amount * 100);
                row.transaction.id = format!("tx_{number}");
                row.transaction.occurred_at = at(*day, number);
                rows.push(row);
            }
            for last in [false, true] {
                for day in 0..7 {
                    let is_of_day = |at: OffsetDateTime| at.date() == (NOON + Duration::days(day)).date();
                    for movement in &mut movements {
                        movement.is_of_day = is_of_day(movement.occurred_at);
                        for pair in &mut movement.pairs {
                            let row = rows.iter().find(|row| row.transaction.id == pair.transaction_id);
                            pair.is_in_window = is_of_day(row.unwrap().transaction.occurred_at);
                        }
                    }
                    let mut listed = rows.clone();
                    listed.retain(|row| is_of_day(row.transaction.occurred_at));
                    let comparison = compare(&movements, &listed);
                    for pair in &comparison.pairs {
                        let movement = movements.iter_mut().find(|it| it.id == pair.movement_id).unwrap();
                        movement.pairs.retain(|earlier| earlier.transaction_id != pair.transaction_id);
                        movement.pairs.push(super::tests::pair(&pair.transaction_id, pair.amount, true));
                    }
                    for (id, at) in &comparison.dates {
                        let movement = movements.iter_mut().find(|it| it.id == *id).unwrap();
                        movement.occurred_at = *at;
                        movement.dated_by = DatedBy::Transaction;
                    }
                    if last {
                        prop_assert_eq!(&comparison.differences, &vec![]);
                    }
                }
            }
        }
    }
}
