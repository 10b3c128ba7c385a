//! What a link's state, its operations and its timeline mean, in the words of the people who look after payments.

use std::borrow::Cow;

use serde_json::Value;
use time::OffsetDateTime;

use super::{amount::show, deed::Deed, page::When};
use crate::payment_link::{
    Attempt, Money, PaymentLink, Reminder, Status, Unpayable,
    message::parse_period,
    operation::{Action, Operation, OperationStatus},
    parse_time,
    timeline::{Cause, Entry, Kind},
};

/// A text of the API, or a status at Dojo, in the spelling of the console. In the API, Dojo's spelling is used throughout.
pub(super) fn in_british(text: &str) -> String {
    let text = text.replace("anceled", "ancelled");
    text.replace("anceling", "ancelling")
}

/// How much attention something needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tone {
    Neutral,
    Good,
    Waiting,
    Bad,
}

impl Tone {
    /// Its class in the style sheet.
    pub(super) fn class(self) -> &'static str {
        match self {
            Self::Neutral => "neutral",
            Self::Good => "good",
            Self::Waiting => "waiting",
            Self::Bad => "bad",
        }
    }
}

/// A short word for a link's state, for lists. It never says "paid" unless Dojo confirmed it.
pub(super) fn state_word(link: &PaymentLink, now: OffsetDateTime) -> (&'static str, Tone) {
    match (link.status, link.confirmed) {
        (Status::Pending, _) => ("Not created yet", Tone::Waiting),
        (Status::Failed, _) => ("Not created", Tone::Bad),
        (_, false) => ("Not confirmed by Dojo", Tone::Waiting),
        (Status::Created, true) if is_late(link, now) => ("Expired", Tone::Neutral),
        (Status::Created, true) => ("Waiting for payment", Tone::Neutral),
        (Status::Authorized, true) => ("Authorized, not captured", Tone::Waiting),
        (Status::Captured, true) if link.refunded_amount.value == 0 => ("Paid", Tone::Good),
        // Dojo may call a payment refunded after a partial refund.
        (Status::Captured | Status::Refunded, true) if left_to_refund(link) > 0 => {
            ("Paid, partly refunded", Tone::Good)
        }
        (Status::Captured | Status::Refunded, true) => ("Refunded", Tone::Neutral),
        (Status::Reversed, true) => ("Reversed", Tone::Neutral),
        (Status::Canceled, true) if link.unpayable(now) == Some(Unpayable::Expired) => {
            ("Expired", Tone::Neutral)
        }
        (Status::Canceled, true) => ("Cancelled", Tone::Neutral),
    }
}

fn is_late(link: &PaymentLink, now: OffsetDateTime) -> bool {
    link.expire_at.is_some_and(|expire_at| expire_at <= now)
}

fn left_to_refund(link: &PaymentLink) -> i64 {
    link.captured_amount
        .value
        .saturating_sub(link.refunded_amount.value)
}

/// A link's state in a sentence.
pub(super) fn state(link: &PaymentLink, now: OffsetDateTime) -> String {
    let total = show(link.total_amount.unwrap_or(link.amount));
    if !link.confirmed && !matches!(link.status, Status::Pending | Status::Failed) {
        return match link.status {
            Status::Captured => format!(
                "A payment of {total} was reported, but Dojo hasn’t confirmed this yet. Don’t hand anything over."
            ),
            Status::Created => {
                "Dojo hasn’t confirmed yet what has become of this link. Somebody may have paid it."
                    .to_owned()
            }
            status => format!(
                "Reported as {}, but Dojo hasn’t confirmed this yet.",
                in_british(status.as_str())
            ),
        };
    }
    match link.status {
        Status::Pending => format!(
            "Requested for {total}, but Dojo hasn’t confirmed this yet. There is nothing to pay until it does."
        ),
        Status::Failed => {
            let why = link.failure.as_ref().map(|failure| failure.detail.as_str());
            match why {
                Some(why) => format!("Not created: {}", in_british(why)),
                None => "Not created.".to_owned(),
            }
        }
        Status::Created => waiting(link, &total, now),
        Status::Authorized => {
            format!("{total} authorized{}, not captured yet.", paid_with(link))
        }
        Status::Captured | Status::Refunded => paid(link),
        Status::Reversed => {
            format!("The payment of {total} was reversed. The customer pays nothing.")
        }
        Status::Canceled if link.unpayable(now) == Some(Unpayable::Expired) => {
            "Expired: nobody paid it in time.".to_owned()
        }
        Status::Canceled => "Cancelled before it was paid.".to_owned(),
    }
}

fn waiting(link: &PaymentLink, total: &str, now: OffsetDateTime) -> String {
    let declined = link
        .attempts
        .iter()
        .filter(|attempt| attempt.is_declined())
        .count();
    let attempts = match declined {
        0 => String::new(),
        1 => " One attempt to pay was declined.".to_owned(),
        more => format!(" {more} attempts to pay were declined."),
    };
    match link.expire_at {
        Some(at) if at <= now => format!(
            "Not paid. It expired on {}, but Dojo hasn’t closed it yet.{attempts}",
            When(at).text()
        ),
        Some(at) => format!("Waiting for {total}, until {}.{attempts}", When(at).text()),
        None => format!("Waiting for {total}.{attempts}"),
    }
}

fn paid(link: &PaymentLink) -> String {
    let (captured, refunded) = (link.captured_amount, link.refunded_amount);
    let with = paid_with(link);
    let whole = link.total_amount.unwrap_or(link.amount);
    let of = if captured.value < whole.value {
        format!(" of {} authorized", show(whole))
    } else {
        String::new()
    };
    let refunds = match refunded.value {
        0 => String::new(),
        all if all >= captured.value => "; refunded in full".to_owned(),
        _ => format!("; {} refunded", show(refunded)),
    };
    format!("Paid {}{of}{with}{refunds}.", show(captured))
}

/// ` by Mastercard ··1005 on 27 Nov 2026, 14:02 UTC`
fn paid_with(link: &PaymentLink) -> String {
    let card = card(link).map_or_else(String::new, |card| format!(" by {card}"));
    let at = link.payment.as_ref().and_then(|payment| {
        let at = payment.transaction_date_time.as_deref()?;
        parse_time(at)
    });
    match at {
        Some(at) => format!("{card} on {}", When(at).text()),
        None => card,
    }
}

/// The card that paid: `Mastercard ··1005`.
pub(super) fn card(link: &PaymentLink) -> Option<String> {
    let payment = link.payment.as_ref()?;
    let last4 = payment.last4.as_deref()?;
    let kind = payment.card_type.as_deref().unwrap_or("card");
    Some(format!("{} ··{last4}", brand(kind)))
}

/// A card's scheme as people write it. Dojo writes it in capitals.
fn brand(scheme: &str) -> String {
    let (first, rest) = scheme.split_at_checked(1).unwrap_or((scheme, ""));
    if scheme.bytes().all(|byte| byte.is_ascii_uppercase()) {
        format!("{first}{}", rest.to_ascii_lowercase())
    } else {
        scheme.to_owned()
    }
}

/// What Dojo would charge, if that isn't what was requested.
pub(super) fn mismatch(link: &PaymentLink) -> Option<String> {
    let reported = link.reported_amount.as_ref()?;
    let (sign, value) = (
        if reported.value < 0 { "−" } else { "" },
        reported.value.unsigned_abs(),
    );
    Some(format!(
        "Dojo would charge {sign}{}.{:02} {}, and {} was requested.",
        value / 100,
        value % 100,
        reported.currency_code,
        show(link.amount)
    ))
}

/// An attempt to pay that didn't lead to a payment. Dojo gives no reason.
pub(super) fn attempt(attempt: &Attempt) -> String {
    let what = match attempt.event_type.as_str() {
        "Declined" => "Declined",
        "AuthChallenged" => "The bank asked the customer to confirm it",
        _ => "Failed",
    };
    let at = attempt.transaction_date_time.as_deref();
    match at.and_then(parse_time) {
        Some(at) => format!("{what} on {}", When(at).text()),
        None => what.to_owned(),
    }
}

/// When a customer is reminded: `3 days after the request`.
pub(super) fn reminder(reminder: &Reminder) -> String {
    match (&reminder.after, &reminder.before_expiry) {
        (Some(after), _) => format!("{} after the request", period(after)),
        (None, Some(before)) => format!("{} before the link expires", period(before)),
        (None, None) => String::new(),
    }
}

/// An ISO 8601 duration in the largest unit that fits: `3 days`.
fn period(text: &str) -> String {
    let Some(minutes) = parse_period(text).map(|period| period.as_secs() / 60) else {
        return text.to_owned();
    };
    let (number, unit) = match minutes {
        minutes if minutes.is_multiple_of(7 * 24 * 60) => (minutes / (7 * 24 * 60), "week"),
        minutes if minutes.is_multiple_of(24 * 60) => (minutes / (24 * 60), "day"),
        minutes if minutes.is_multiple_of(60) => (minutes / 60, "hour"),
        minutes => (minutes, "minute"),
    };
    let plural = if number == 1 { "" } else { "s" };
    format!("{number} {unit}{plural}")
}

/// What an operation does: `Refund of £3.50`.
pub(super) fn operation_name(kind: &str, amount: Option<Money>) -> String {
    let name = match kind {
        "cancel" => "Cancellation",
        "capture" => "Capture",
        "refund" => "Refund",
        "reversal" => "Reversal",
        "amount" => "New amount",
        "tipsAmount" => "New tip",
        "receipt" => "Receipt",
        other => other,
    };
    match amount {
        Some(money) if matches!(kind, "amount" | "tipsAmount") => {
            format!("{name} {}", show(money))
        }
        Some(money) => format!("{name} of {}", show(money)),
        None => name.to_owned(),
    }
}

/// An operation and what became of it, in a sentence.
pub(super) fn operation(operation: &Operation) -> (String, Tone) {
    let name = operation_name(operation.action.kind().as_str(), operation.action.amount());
    let failure = operation.failure.as_ref();
    match operation.status {
        OperationStatus::Succeeded => (format!("{name}: done."), Tone::Good),
        OperationStatus::Pending => (
            format!(
                "{name}: the outcome isn’t known yet. Dojo’s response is late or was lost, and the service is finding out. \
                 Don’t request it again."
            ),
            Tone::Waiting,
        ),
        OperationStatus::Unconfirmed => (
            format!(
                "{name}: nothing at Dojo shows whether it was done. Look at the payment in Dojo’s portal, and record what \
                 you find under Needs attention."
            ),
            Tone::Bad,
        ),
        OperationStatus::Failed => {
            let why = failure.map_or("", |failure| failure.detail.as_str());
            (format!("{name}: not done. {}", in_british(why)), Tone::Bad)
        }
    }
}

/// The reason that an operation was requested with.
pub(super) fn reason(action: &Action) -> Option<&str> {
    match action {
        Action::Refund(refund) => refund.refund_reason.as_deref(),
        _ => None,
    }
}

/// A timeline entry as a sentence.
pub(super) fn event(entry: &Entry) -> (String, Tone) {
    let (text, tone) = event_in_words(entry);
    (in_british(&text), tone)
}

fn event_in_words(entry: &Entry) -> (String, Tone) {
    let detail = entry.detail.as_ref().unwrap_or(&Value::Null);
    let text = |name: &str| detail[name].as_str().unwrap_or_default();
    let operation = || {
        let amount = serde_json::from_value(detail["amount"].clone()).ok();
        operation_name(text("operation"), amount)
    };
    let failure = || detail["failure"]["detail"].as_str().unwrap_or_default();
    match entry.kind {
        Kind::Requested => ("The link was requested".to_owned(), Tone::Neutral),
        Kind::Created => ("Dojo created the payment".to_owned(), Tone::Good),
        Kind::Failed => (
            format!("Nothing was created: {}", text("detail")),
            Tone::Bad,
        ),
        Kind::ResponseLost => (
            "Dojo’s response was lost: the service looks for the payment".to_owned(),
            Tone::Waiting,
        ),
        Kind::Webhook => webhook(entry, text("verdict"), text("reported")),
        Kind::Reconciled => (reconciled(entry, detail), Tone::Neutral),
        Kind::ConflictingResponse => (
            format!(
                "Dojo’s response says {}, which contradicts what is known; it is read again",
                text("reported")
            ),
            Tone::Waiting,
        ),
        Kind::AmountMismatch => (
            "Dojo reports a different amount from the one that was requested".to_owned(),
            Tone::Bad,
        ),
        Kind::CreationRetried => (
            "The first try created nothing: Dojo is asked again".to_owned(),
            Tone::Waiting,
        ),
        Kind::UnknownAtDojo => (
            "Dojo doesn’t know this payment: the API key may belong to another Dojo account"
                .to_owned(),
            Tone::Bad,
        ),
        Kind::SurplusFound => (
            "A second payment for the same link was found; it will be cancelled".to_owned(),
            Tone::Waiting,
        ),
        Kind::SurplusCanceled => ("The second payment is cancelled".to_owned(), Tone::Neutral),
        Kind::SurplusPaid => (
            "Somebody paid the second payment: refund it in Dojo’s portal".to_owned(),
            Tone::Bad,
        ),
        Kind::OperationRequested => (format!("{} requested", operation()), Tone::Neutral),
        Kind::OperationSucceeded => (format!("{}: done", operation()), Tone::Good),
        Kind::OperationFailed => (
            format!("{}: not done. {}", operation(), failure()),
            Tone::Bad,
        ),
        Kind::OperationResponseLost => (
            format!("{}: Dojo’s response was lost", operation()),
            Tone::Waiting,
        ),
        Kind::OperationUnconfirmed => (
            format!("{}: nobody knows whether it was done", operation()),
            Tone::Bad,
        ),
        Kind::RenewalRequested => (
            format!("Another link takes its place: {}", text("paymentLinkId")),
            Tone::Neutral,
        ),
        Kind::MessageRequested => (
            "An email to the customer was requested".to_owned(),
            Tone::Neutral,
        ),
        Kind::MessageSent => (
            "The mail server has accepted the email to the customer".to_owned(),
            Tone::Good,
        ),
        Kind::MessageFailed => (
            format!("The email to the customer was not sent: {}", text("reason")),
            Tone::Bad,
        ),
        Kind::MessageCanceled => (
            format!("The email to the customer was not sent: {}", text("reason")),
            Tone::Neutral,
        ),
        Kind::MessageUnknown => (
            "It is not known whether the email to the customer was sent".to_owned(),
            Tone::Bad,
        ),
        Kind::ReminderDue => (
            "A reminder to the customer was due".to_owned(),
            Tone::Neutral,
        ),
        Kind::Erased => ("The personal data was erased".to_owned(), Tone::Neutral),
    }
}

fn webhook(entry: &Entry, verdict: &str, reported: &str) -> (String, Tone) {
    let says = |status: &str| format!("Dojo’s webhook says {status}");
    let text = match verdict {
        "applied" => return (says(entry.status_after.as_str()), Tone::Neutral),
        "contradictory" => {
            let text = format!("{}, which contradicts what is known", says(reported));
            return (text, Tone::Waiting);
        }
        "unchanged" => format!("{}, which is known already", says(reported)),
        "stale" => format!(
            "{}, but comes late: the payment has moved on",
            says(reported)
        ),
        "unknownStatus" if reported.is_empty() => {
            "Dojo’s webhook doesn’t say which status the payment has".to_owned()
        }
        "unknownStatus" => format!("{}, a status that the service doesn’t know", says(reported)),
        _ => "Dojo’s webhook is about something else, and changes nothing".to_owned(),
    };
    (text, Tone::Neutral)
}

fn reconciled(entry: &Entry, detail: &Value) -> String {
    let changed = detail["changed"].as_object();
    let names: Vec<_> = changed
        .into_iter()
        .flatten()
        .map(|(name, _)| member(name))
        .collect();
    let status = entry.status_after.as_str();
    if names.is_empty() {
        return format!("Read from Dojo: {status}");
    }
    format!("Read from Dojo: {status}. New: {}", names.join(", "))
}

/// What a link's member is called.
fn member(name: &str) -> &str {
    match name {
        "confirmed" => "confirmation by Dojo",
        "confirmedStatus" => "status at Dojo",
        "reported" => "a status that the service doesn’t know",
        "totalAmount" => "total",
        "tipsAmount" => "tip",
        "capturedAmount" => "captured amount",
        "refundedAmount" => "refunded amount",
        "attempts" => "attempts to pay",
        "payment" => "card and time of the payment",
        other => other,
    }
}

/// What somebody did, by its name in the audit list.
pub(super) fn audited(what: &str) -> Cow<'_, str> {
    if let Some(kind) = what.strip_prefix("approved ") {
        return format!("{}, approved", operation_name(kind, None)).into();
    }
    let words = match what {
        "signIn" => "Sign in",
        "signOut" => "Sign out",
        "create" => "New link",
        "refresh" => "Read from Dojo",
        "settle" => "Record an outcome",
        "approval" => "Decide about an approval",
        other => match Deed::named(other) {
            Some(deed) => deed.name(),
            None => other,
        },
    };
    words.into()
}

/// What became of something: a word of the audit list, or the end of a problem's type.
pub(super) fn outcome(word: &str) -> String {
    word.replace('-', " ").replace("dojo", "Dojo")
}

/// What caused a timeline entry.
pub(super) fn cause(cause: &Cause) -> String {
    match cause {
        Cause::Request { client, .. } => format!("Requested by {client}"),
        Cause::Webhook { .. } => "Webhook from Dojo".to_owned(),
        Cause::Recovery => "Search for a lost response".to_owned(),
        Cause::Reconciliation => "Scheduled read from Dojo".to_owned(),
        Cause::Operator => "Operator’s command".to_owned(),
        Cause::Schedule => "Schedule of the link".to_owned(),
        Cause::Delivery => "Delivery of a message".to_owned(),
        Cause::Retention => "Data retention rule".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use time::macros::datetime;

    use super::*;

    const NOW: OffsetDateTime = datetime!(2026-11-27 12:00 UTC);

    /// A link over 24.50 GBP with these members on top.
    fn link(more: &Value) -> PaymentLink {
        let money = |value: i64| json!({"value": value, "currencyCode": "GBP"});
        let mut link = json!({
            "id": "plink_01m81mqpmrf8384nj77tj0t0e4", "account": "default", "environment": "sandbox",
            "status": "Created", "confirmed": true, "url": "https://pay.example/1", "shortUrl": null,
            "paymentIntentId": "pi_1", "amount": money(2450), "tipsAmount": null, "totalAmount": money(2450),
            "reportedAmount": null, "capturedAmount": money(0), "refundedAmount": money(0),
            "refundableAmount": money(0), "captures": [], "payment": null, "attempts": [], "failure": null,
            "replaces": null, "replacedBy": null, "createdBy": "orders", "createdAt": "2026-11-01T10:00:00Z",
            "updatedAt": "2026-11-01T10:00:00Z", "reference": "Order 236",
        });
        let members = more.as_object().unwrap().clone();
        link.as_object_mut().unwrap().extend(members);
        serde_json::from_value(link).unwrap()
    }

    fn card() -> Value {
        json!({"transactionDateTime": "2026-11-27T14:02:00Z", "cardType": "Mastercard", "last4": "1005",
               "transactionId": null, "authCode": null, "cardNumber": null, "cardFundingType": null})
    }

    fn gbp(value: i64) -> Value {
        json!({"value": value, "currencyCode": "GBP"})
    }

    #[test]
    fn a_payment_is_told_with_card_time_and_refunds() {
        let paid = json!({"status": "Captured", "capturedAmount": gbp(2450), "payment": card()});
        assert_eq!(
            state(&link(&paid), NOW),
            "Paid £24.50 by Mastercard ··1005 on 27 Nov 2026, 14:02 UTC."
        );
        let mut partly = paid.clone();
        partly["refundedAmount"] = gbp(350);
        assert_eq!(
            state(&link(&partly), NOW),
            "Paid £24.50 by Mastercard ··1005 on 27 Nov 2026, 14:02 UTC; £3.50 refunded."
        );
        assert_eq!(state_word(&link(&partly), NOW).0, "Paid, partly refunded");
        let mut whole = paid;
        whole["refundedAmount"] = gbp(2450);
        whole["status"] = json!("Refunded");
        assert!(state(&link(&whole), NOW).ends_with("; refunded in full."));
        assert_eq!(state_word(&link(&whole), NOW).0, "Refunded");
    }

    #[test]
    fn schemes_are_written_as_people_do() {
        for (scheme, written) in [
            ("MASTERCARD", "Mastercard"),
            ("Mastercard", "Mastercard"),
            ("VISA", "Visa"),
            ("Visa Debit", "Visa Debit"),
            ("Ébène", "Ébène"),
            ("", ""),
        ] {
            assert_eq!(brand(scheme), written);
        }
    }

    #[test]
    fn a_link_is_called_paid_only_if_it_is_captured_and_confirmed() {
        for status in Status::ALL {
            for confirmed in [true, false] {
                for refunded in [0, 350, 2450] {
                    let captured = if matches!(status, Status::Captured | Status::Refunded) {
                        2450
                    } else {
                        0
                    };
                    let link = link(&json!({
                        "status": status, "confirmed": confirmed, "payment": card(),
                        "capturedAmount": gbp(captured), "refundedAmount": gbp(refunded),
                    }));
                    let is_paid =
                        confirmed && matches!(status, Status::Captured | Status::Refunded);
                    let sentence = state(&link, NOW);
                    assert_eq!(
                        sentence.starts_with("Paid"),
                        is_paid,
                        "{status:?}: {sentence}"
                    );
                    let (word, tone) = state_word(&link, NOW);
                    assert!(!word.starts_with("Paid") || is_paid, "{status:?}: {word}");
                    assert!(tone != Tone::Good || is_paid, "{status:?}");
                    if !confirmed {
                        assert!(
                            sentence.contains("Dojo hasn’t confirmed") || status == Status::Failed,
                            "{sentence}"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn an_unpaid_link_says_how_long_it_waits_and_what_was_declined() {
        let declined = json!({"eventType": "Declined", "transactionDateTime": null});
        let waiting = link(&json!({
            "expireAt": "2026-12-03T00:00:00Z", "attempts": [declined, declined],
        }));
        assert_eq!(
            state(&waiting, NOW),
            "Waiting for £24.50, until 3 Dec 2026, 00:00 UTC. 2 attempts to pay were declined."
        );
        let late = link(&json!({"expireAt": "2026-11-20T00:00:00Z"}));
        assert!(state(&late, NOW).starts_with("Not paid. It expired on"));
        let canceled = link(&json!({"status": "Canceled", "expireAt": "2026-11-20T00:00:00Z"}));
        assert_eq!(state(&canceled, NOW), "Expired: nobody paid it in time.");
    }

    #[test]
    fn every_word_has_one_spelling() {
        let cancelled = link(&json!({"status": "Canceled"}));
        assert_eq!(state(&cancelled, NOW), "Cancelled before it was paid.");
        assert_eq!(state_word(&cancelled, NOW).0, "Cancelled");
        assert_eq!(
            in_british("already canceled; canceling a Canceled one"),
            "already cancelled; cancelling a Cancelled one"
        );
        assert_eq!(in_british("cancelled"), "cancelled");
    }

    #[test]
    fn attempts_and_reminders_are_told_in_words() {
        let attempt = |event: &str, at: Option<&str>| {
            let json = json!({"eventType": event, "transactionDateTime": at});
            super::attempt(&serde_json::from_value(json).unwrap())
        };
        let at = Some("2026-11-27T14:02:00Z");
        assert_eq!(
            attempt("Declined", at),
            "Declined on 27 Nov 2026, 14:02 UTC"
        );
        assert_eq!(attempt("Error", None), "Failed");
        assert!(attempt("AuthChallenged", None).contains("confirm"));
        let reminder = |json: Value| super::reminder(&serde_json::from_value(json).unwrap());
        for (given, told) in [
            (json!({"after": "P3D"}), "3 days after the request"),
            (json!({"after": "P1W"}), "1 week after the request"),
            (json!({"after": "P14D"}), "2 weeks after the request"),
            (json!({"after": "PT36H"}), "36 hours after the request"),
            (json!({"after": "PT90M"}), "90 minutes after the request"),
            (
                json!({"beforeExpiry": "P1D"}),
                "1 day before the link expires",
            ),
            (json!({"after": "soon"}), "soon after the request"),
        ] {
            assert_eq!(reminder(given), told);
        }
    }

    #[test]
    fn webhooks_and_readings_are_told_without_names_of_the_api() {
        let told = |kind: Kind, detail: Value| {
            let entry: Entry = serde_json::from_value(json!({
                "id": "1", "type": kind, "statusBefore": "Created", "statusAfter": "Captured",
                "cause": {"type": "recovery"}, "detail": detail, "occurredAt": "2026-11-01T10:00:00Z",
            }))
            .unwrap();
            event(&entry).0
        };
        for (verdict, reported, words) in [
            ("applied", "Captured", "Dojo’s webhook says Captured"),
            (
                "unchanged",
                "Captured",
                "Dojo’s webhook says Captured, which is known already",
            ),
            (
                "stale",
                "Canceled",
                "Dojo’s webhook says Cancelled, but comes late: the payment has moved on",
            ),
            (
                "contradictory",
                "Reversed",
                "Dojo’s webhook says Reversed, which contradicts what is known",
            ),
            (
                "unknownStatus",
                "Settled",
                "Dojo’s webhook says Settled, a status that the service doesn’t know",
            ),
            (
                "unknownEvent",
                "",
                "Dojo’s webhook is about something else, and changes nothing",
            ),
        ] {
            let detail = json!({"verdict": verdict, "reported": reported});
            assert_eq!(told(Kind::Webhook, detail), words);
        }
        let change = json!({"from": null, "to": null});
        let changed =
            json!({"capturedAmount": change, "confirmedStatus": change, "status": change});
        assert_eq!(
            told(Kind::Reconciled, json!({"changed": changed})),
            "Read from Dojo: Captured. New: captured amount, status at Dojo, status"
        );
    }

    #[test]
    fn entries_of_the_audit_list_are_told_in_words() {
        for (what, words) in [
            ("signIn", "Sign in"),
            ("refund", "Refund"),
            ("cancel", "Cancel the link"),
            ("approved tipsAmount", "New tip, approved"),
            ("of a later version", "of a later version"),
        ] {
            assert_eq!(audited(what), words);
        }
        assert_eq!(outcome("approval requested"), "approval requested");
        assert_eq!(outcome("rejected-by-dojo"), "rejected by Dojo");
    }

    #[test]
    fn every_kind_of_entry_has_its_words() {
        for kind in Kind::ALL {
            let entry: Entry = serde_json::from_value(json!({
                "id": "1", "type": kind, "statusBefore": null, "statusAfter": "Created",
                "cause": {"type": "recovery"}, "detail": null, "occurredAt": "2026-11-01T10:00:00Z",
            }))
            .unwrap();
            assert!(!event(&entry).0.is_empty());
        }
    }
}
