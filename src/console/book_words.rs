//! The books in words: movements, and how they differ from Dojo's list of transactions.

use super::{amount::show, words::Tone};
use crate::payment_link::{
    Currency, Money, ReportedAmount,
    daily_reconciliation::{
        ComparedDay, ComparedMovement, DayState, Difference, DifferenceKind, Transaction,
    },
    movement::{BusinessDays, Movement, MovementType},
};

/// What kind of movement it is.
pub(super) fn movement_name(kind: MovementType) -> &'static str {
    match kind {
        MovementType::Capture => "Capture",
        MovementType::Refund => "Refund",
        MovementType::Reversal => "Reversal",
        MovementType::CaptureCorrection => "Correction of a capture",
        MovementType::RefundCorrection => "Correction of a refund",
    }
}

/// Who requested a movement, as far as the books know.
pub(super) fn done_by(movement: &Movement) -> &str {
    match (&movement.actor, movement.kind) {
        (Some(actor), _) => actor,
        (None, MovementType::Capture) => "the customer, or elsewhere",
        (None, MovementType::Refund | MovementType::Reversal) => "elsewhere",
        (None, MovementType::CaptureCorrection | MovementType::RefundCorrection) => "Dojo",
    }
}

/// When business days begin and end.
pub(super) fn calendar(days: &BusinessDays) -> String {
    let (hour, minute) = (days.cutoff.hour(), days.cutoff.minute());
    let zone = &days.time_zone;
    match hour {
        0 if minute == 0 => format!("Business days begin and end at midnight in {zone}."),
        0..12 => format!("A business day ends at {hour:02}:{minute:02} the next day, in {zone}."),
        _ => format!("A business day ends at {hour:02}:{minute:02} on the same day, in {zone}."),
    }
}

/// A number of things: `1 difference`, `2 differences`.
pub(super) fn counted(number: i64, thing: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{number} {thing}{plural}")
}

/// A word for the result of a comparison.
pub(super) fn state_word(state: DayState) -> (&'static str, Tone) {
    match state {
        DayState::Agrees => ("Agrees", Tone::Good),
        DayState::Differs => ("Differs", Tone::Bad),
        DayState::Unavailable => ("Not compared", Tone::Waiting),
    }
}

/// Why Dojo's list couldn't be read, and what to do.
pub(super) const UNAVAILABLE: &str = "Dojo doesn’t let the account’s key read its transactions. Ask Dojo for access, or \
                                      switch the comparison off (RECONCILE_TRANSACTIONS).";

/// How many differences there are of each kind: `1 only in the books, 2 held or under review`.
pub(super) fn kinds(counts: [(DifferenceKind, i64); 4]) -> String {
    let found = counts.into_iter().filter(|(_, number)| *number > 0);
    let parts = found.map(|(kind, number)| {
        let name = match kind {
            DifferenceKind::OnlyHere => "only in the books",
            DifferenceKind::OnlyAtDojo => "only at Dojo",
            DifferenceKind::DifferentAmount => "with different amounts",
            DifferenceKind::Held => "held or under review",
        };
        format!("{number} {name}")
    });
    parts.collect::<Vec<_>>().join(", ")
}

/// The result of a day's comparison.
pub(super) fn outcome(day: &ComparedDay) -> String {
    match day.state {
        DayState::Agrees => "the books agree with Dojo’s list of transactions".to_owned(),
        DayState::Differs => {
            let differences = counted(day.difference_count, "difference");
            format!("{differences}: {}", kinds(day.kinds.by_kind()))
        }
        DayState::Unavailable => {
            "not compared, because Dojo’s list of transactions can’t be read".to_owned()
        }
    }
}

/// What a difference means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Meaning {
    OnlyHere,
    OnlyAtDojo,
    ReversedAtDojo,
    DifferentAmount,
    Held,
}

impl Meaning {
    pub(super) const ALL: [Self; 5] = [
        Self::OnlyHere,
        Self::OnlyAtDojo,
        Self::ReversedAtDojo,
        Self::DifferentAmount,
        Self::Held,
    ];

    pub(super) fn of(difference: &Difference) -> Self {
        match difference.kind {
            DifferenceKind::OnlyHere => Self::OnlyHere,
            DifferenceKind::OnlyAtDojo if difference.movement.is_some() => Self::ReversedAtDojo,
            DifferenceKind::OnlyAtDojo => Self::OnlyAtDojo,
            DifferenceKind::DifferentAmount => Self::DifferentAmount,
            DifferenceKind::Held => Self::Held,
        }
    }

    pub(super) fn title(self) -> &'static str {
        match self {
            Self::OnlyHere => "Only in the books",
            Self::OnlyAtDojo => "Only at Dojo",
            Self::ReversedAtDojo => "Reversed at Dojo",
            Self::DifferentAmount => "Different amounts",
            Self::Held => "Held or under review",
        }
    }

    /// What it means and what to do, as in the runbook.
    pub(super) fn advice(self) -> &'static str {
        match self {
            Self::OnlyHere => {
                "The books have it, and Dojo doesn’t list it. Dojo may list it late: the day is compared again for a week. If \
                 it stays, look for the payment in Dojo’s portal, and ask Dojo about the transaction."
            }
            Self::OnlyAtDojo => {
                "Dojo lists a transaction of a payment link, and the books don’t have it. If another program creates payment \
                 links with the same account, it is that program’s. If it belongs to a link here, the service reads that \
                 link from Dojo. If Needs attention lists its intent as a second payment, refund it in Dojo’s portal."
            }
            Self::ReversedAtDojo => {
                "Dojo has reversed the payment or refund, and the link doesn’t show that. Read the link from Dojo, and look at \
                 the payment in Dojo’s portal."
            }
            Self::DifferentAmount => {
                "The amounts differ. Dojo’s portal shows what the customer paid."
            }
            Self::Held => {
                "Dojo holds the transaction or reviews it, so the money may not arrive. Don’t hand over goods until Dojo \
                 releases it."
            }
        }
    }
}

/// What is on the two sides of a difference.
pub(super) fn both_sides(difference: &Difference) -> String {
    let booked = difference.movement.as_ref().map(booked);
    let listed = difference.transaction.as_ref().map(listed);
    let or_nothing = |text: Option<String>| text.unwrap_or_else(|| "nothing".to_owned());
    format!(
        "In the books: {}. In Dojo’s list: {}.",
        or_nothing(booked),
        or_nothing(listed)
    )
}

/// `Refund of £3.00`
fn booked(movement: &ComparedMovement) -> String {
    format!(
        "{} of {}",
        movement_name(movement.kind),
        show(movement.amount)
    )
}

/// `Sale of £10.00 (tip £2.00), Authorized`. The type and the status are Dojo's words.
fn listed(transaction: &Transaction) -> String {
    let kind = match transaction.kind.as_str() {
        "" => "Transaction",
        kind => kind,
    };
    let extras: Vec<_> = [
        ("tip", &transaction.tips_amount),
        ("cashback", &transaction.cashback_amount),
    ]
    .into_iter()
    .filter_map(|(name, amount)| {
        let amount = amount.as_ref().filter(|amount| amount.value != 0)?;
        Some(format!("{name} {}", reported(amount)))
    })
    .collect();
    let extras = if extras.is_empty() {
        String::new()
    } else {
        format!(" ({})", extras.join(", "))
    };
    let status = match transaction.status.as_str() {
        "" => String::new(),
        status => format!(", {status}"),
    };
    format!(
        "{kind} of {}{extras}{status}",
        reported(&transaction.amount)
    )
}

/// An amount in whatever currency Dojo reports. Others than those of links may have no decimal places.
fn reported(amount: &ReportedAmount) -> String {
    let (value, code) = (amount.value, &amount.currency_code);
    match code.parse::<Currency>() {
        Ok(currency_code) => show(Money {
            value,
            currency_code,
        }),
        Err(_) => format!("{value} {code} in minor units"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use time::macros::time;

    use super::*;

    fn movement(kind: &str, value: i64) -> Value {
        json!({
            "id": "mov_01kaz8v4wce7q8m6s5gq9nq2fd", "type": kind, "amount": {"value": value, "currencyCode": "GBP"},
            "occurredAt": "2026-11-22T16:20:09Z", "datedBy": "dojo",
            "paymentLinkId": "plink_01kaz8v4wce7q8m6s5gq9nq2fd", "paymentIntentId": "pi_1", "reference": "Order 1",
        })
    }

    fn transaction(kind: &str, status: &str, value: i64, currency: &str) -> Value {
        json!({
            "id": "tx_1", "occurredAt": "2026-11-22T16:20:09Z", "type": kind, "status": status,
            "amount": {"value": value, "currencyCode": currency}, "tipsAmount": null, "cashbackAmount": null,
            "paymentIntentId": "pi_1", "reference": null, "paymentProduct": "PaymentLinks",
        })
    }

    fn difference(kind: &str, movement: &Value, transaction: &Value) -> Difference {
        let difference = json!({"kind": kind, "movement": movement, "transaction": transaction});
        serde_json::from_value(difference).unwrap()
    }

    #[test]
    fn a_difference_shows_what_is_on_both_sides() {
        let nothing = Value::Null;
        let capture = movement("capture", 1000);
        let mut tipped = transaction("Sale", "Authorized", 1001, "GBP");
        tipped["tipsAmount"] = json!({"value": 200, "currencyCode": "GBP"});
        tipped["cashbackAmount"] = json!({"value": 0, "currencyCode": "GBP"});
        for (kind, movement, transaction, meaning, sides) in [
            (
                "onlyHere",
                &capture,
                &nothing,
                Meaning::OnlyHere,
                "In the books: Capture of £10.00. In Dojo’s list: nothing.",
            ),
            (
                "onlyAtDojo",
                &nothing,
                &transaction("Sale", "Authorized", 999, "JPY"),
                Meaning::OnlyAtDojo,
                "In the books: nothing. In Dojo’s list: Sale of 999 JPY in minor units, Authorized.",
            ),
            (
                "onlyAtDojo",
                &movement("refund", 300),
                &transaction("Refund", "Reversed", 300, "GBP"),
                Meaning::ReversedAtDojo,
                "In the books: Refund of £3.00. In Dojo’s list: Refund of £3.00, Reversed.",
            ),
            (
                "differentAmount",
                &capture,
                &tipped,
                Meaning::DifferentAmount,
                "In the books: Capture of £10.00. In Dojo’s list: Sale of £10.01 (tip £2.00), Authorized.",
            ),
            (
                "held",
                &capture,
                &transaction("", "", 1000, "EUR"),
                Meaning::Held,
                "In the books: Capture of £10.00. In Dojo’s list: Transaction of €10.00.",
            ),
        ] {
            let difference = difference(kind, movement, transaction);
            assert_eq!(Meaning::of(&difference), meaning);
            assert_eq!(both_sides(&difference), sides);
        }
    }

    #[test]
    fn the_outcome_counts_what_differs() {
        let mut day: ComparedDay = serde_json::from_value(json!({
            "businessDay": "2026-11-22", "account": "default", "state": "Differs",
            "reconciledAt": "2026-11-23T02:00:04Z", "transactions": 9, "matched": 6, "differenceCount": 3,
            "kinds": {"onlyHere": 1, "onlyAtDojo": 0, "differentAmount": 0, "held": 2},
        }))
        .unwrap();
        assert_eq!(
            outcome(&day),
            "3 differences: 1 only in the books, 2 held or under review"
        );
        day.difference_count = 1;
        assert!(outcome(&day).starts_with("1 difference: "));
        day.state = DayState::Agrees;
        assert!(outcome(&day).starts_with("the books agree"));
    }

    #[test]
    fn the_calendar_says_when_a_business_day_ends() {
        for (cutoff, text) in [
            (
                time!(0:00),
                "Business days begin and end at midnight in Europe/London.",
            ),
            (
                time!(0:30),
                "A business day ends at 00:30 the next day, in Europe/London.",
            ),
            (
                time!(3:00),
                "A business day ends at 03:00 the next day, in Europe/London.",
            ),
            (
                time!(12:00),
                "A business day ends at 12:00 on the same day, in Europe/London.",
            ),
            (
                time!(22:15),
                "A business day ends at 22:15 on the same day, in Europe/London.",
            ),
        ] {
            let days = BusinessDays {
                time_zone: "Europe/London".to_owned(),
                cutoff,
            };
            assert_eq!(calendar(&days), text);
        }
    }
}
