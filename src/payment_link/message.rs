//! Messages that give a link to its customer, and reminders of links that nobody has paid.

use std::{fmt, str::FromStr, time::Duration};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use time::OffsetDateTime;
use utoipa::ToSchema;

use super::{Fault, MessageId, PaymentLinkId, parse_time};

/// How a message reaches the customer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub enum Channel {
    /// By email.
    #[default]
    Email,
}

/// A message to be sent.
#[derive(Clone, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct NewMessage {
    /// How the message is sent.
    pub channel: Channel,
    /// The email address to send it to. Default: the link's `customer.emailAddress`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(max_length = 254, nullable = false, example = "ann@example.com")]
    pub to: Option<String>,
    /// The language of the message, as a BCP 47 tag. Default: `en`, which is also used if there are no texts in this language.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(max_length = 35, nullable = false, example = "en-GB")]
    pub locale: Option<String>,
    /// A text of yours in the message.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(
        min_length = 1,
        max_length = 1000,
        nullable = false,
        example = "Thank you for your order."
    )]
    pub note: Option<String>,
}

impl fmt::Debug for NewMessage {
    /// Shows no address and no text: customers' data must not be logged.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NewMessage({:?})", self.channel)
    }
}

/// The email that gives a new link to its customer as soon as the link can be paid.
#[derive(Clone, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct SendByEmail {
    /// The email address to send it to.
    #[schema(max_length = 254, example = "ann@example.com")]
    pub email: String,
    /// The language of the email and of reminders, as a BCP 47 tag. Default: `en`, which is also used if there are no texts in
    /// this language.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(max_length = 35, nullable = false, example = "en-GB")]
    pub locale: Option<String>,
    /// A text of yours in the email.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(min_length = 1, max_length = 1000, nullable = false)]
    pub note: Option<String>,
}

impl fmt::Debug for SendByEmail {
    /// Shows nothing: customers' data must not be logged.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SendByEmail(..)")
    }
}

/// When the customer is reminded of a link that nobody has paid: either `after` or `beforeExpiry`. ISO 8601 durations of
/// weeks, days, hours and minutes, from one minute to a year.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Reminder {
    /// How long after the link was requested.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, example = "P3D")]
    pub after: Option<String>,
    /// How long before the link expires.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, example = "P1D")]
    pub before_expiry: Option<String>,
}

/// Why there is a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub enum Purpose {
    /// A request for the message.
    Request,
    /// The creation of the link.
    Creation,
    /// A reminder that was due.
    Reminder,
}

/// Where a message stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub enum MessageStatus {
    /// It is going to be sent, or to be sent again after the mail server was unreachable or busy.
    Pending,
    /// The mail server has accepted it. Whether it reaches the customer's mailbox is not known here.
    Sent,
    /// The mail server has refused it, or could not be reached in time.
    Failed,
    /// It was not sent, because the link could no longer be paid.
    Canceled,
    /// The mail server's response was lost after the message had been sent to it, so the message may or may not arrive. It is
    /// not sent again automatically.
    Unknown,
}

/// Declares the words of an enum in JSON and in the database.
macro_rules! words {
    ($name:ident, $unknown:ident, $what:literal: $($variant:ident = $word:literal),* $(,)?) => {
        impl $name {
            pub const ALL: &[Self] = &[$(Self::$variant),*];

            /// Its word in JSON and in the database.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word,)* }
            }
        }

        impl FromStr for $name {
            type Err = $unknown;

            fn from_str(word: &str) -> Result<Self, $unknown> {
                Self::ALL.iter().copied().find(|known| known.as_str() == word).ok_or($unknown)
            }
        }

        #[derive(Debug, thiserror::Error)]
        #[error($what)]
        pub struct $unknown;
    };
}

words!(Channel, UnknownChannel, "unknown channel of a message": Email = "email");
words!(Purpose, UnknownPurpose, "unknown purpose of a message":
    Request = "request", Creation = "creation", Reminder = "reminder");
words!(MessageStatus, UnknownMessageStatus, "unknown status of a message":
    Pending = "Pending", Sent = "Sent", Failed = "Failed", Canceled = "Canceled", Unknown = "Unknown");

/// A message that gives a link to its customer.
#[derive(Clone, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Message {
    /// The message's id, a TypeID.
    #[schema(value_type = String, example = "msg_01kaz8v4wce7q8m6s5gq9nq2fd")]
    pub id: MessageId,
    #[schema(value_type = String, example = "plink_01kaz8v4wce7q8m6s5gq9nq2fd")]
    pub payment_link_id: PaymentLinkId,
    pub channel: Channel,
    pub purpose: Purpose,
    pub status: MessageStatus,
    /// Why the message was not sent, or what happened to the last attempt.
    pub failure: Option<String>,
    /// The number of attempts in which the message was about to be sent to the mail server.
    pub attempts: i32,
    /// The email address. `null` if it was erased.
    pub to: Option<String>,
    /// The requested language.
    pub locale: String,
    /// The caller's text in the message.
    pub note: Option<String>,
    /// The name of the client that requested the message, or the link.
    pub created_by: String,
    /// When the message was requested, or when it was due.
    #[serde(with = "super::timestamp")]
    pub created_at: OffsetDateTime,
    /// When the outcome was known.
    #[serde(with = "super::optional_timestamp")]
    pub completed_at: Option<OffsetDateTime>,
}

impl fmt::Debug for Message {
    /// Shows no address and no text: customers' data must not be logged.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Message({}, {:?})", self.id, self.status)
    }
}

/// How long a message may take, from its request to the last attempt. Later it would surprise the customer.
pub const GIVE_UP: Duration = Duration::from_hours(24);

/// How long to wait after this many attempts that the mail server didn't accept. RFC 5321, section 4.5.4.1, wants at least 30
/// minutes in general, but a mail server that is restarting, or that lets unknown senders wait, accepts sooner.
#[must_use]
pub fn retry_wait(attempts: u32) -> Duration {
    (Duration::from_secs(15) * 2_u32.saturating_pow(attempts.min(16))).min(Duration::from_mins(30))
}

/// The language of a message that asks for none.
pub const DEFAULT_LOCALE: &str = "en";

/// Whether this may be an email address that every mail server accepts: ASCII, with a user and a domain.
///
/// The rule for receipts is less strict, because Dojo sends those. This one finds typing errors, and rules out whatever has a meaning in a message's header. Only sending an email shows whether an
/// address exists (RFC 5321, section 3.3).
#[must_use]
pub fn is_email_address(text: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-/=?^_`{|}~.".contains(&byte);
    let host = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
    let Some((user, domain)) = text.rsplit_once('@') else {
        return false;
    };
    let dots = |text: &str| text.starts_with('.') || text.ends_with('.') || text.contains("..");
    text.len() <= 254
        && (1..=64).contains(&user.len())
        && user.bytes().all(plain)
        && !dots(user)
        && domain.contains('.')
        && domain.split('.').all(|label| {
            (1..=63).contains(&label.len())
                && label.bytes().all(host)
                && !label.starts_with('-')
                && !label.ends_with('-')
        })
}

fn address_fault(pointer: &str, value: &Value) -> Option<Fault> {
    let address = value.as_str()?;
    (!is_email_address(address)).then(|| {
        Fault::new(
            pointer,
            "must be an email address in ASCII, such as ann@example.com",
        )
    })
}

fn locale_fault(pointer: &str, value: &Value) -> Option<Fault> {
    let locale = value.as_str()?;
    let is_tag = locale.split('-').enumerate().all(|(n, part)| {
        (1..=8).contains(&part.len())
            && part.bytes().all(|byte| byte.is_ascii_alphanumeric())
            && (n > 0 || part.bytes().all(|byte| byte.is_ascii_alphabetic()))
    });
    (!is_tag).then(|| Fault::new(pointer, "must be a language tag such as en or en-GB"))
}

/// A line break is fine in a text. Anything else that doesn't print is a slip.
fn note_fault(pointer: &str, value: &Value) -> Option<Fault> {
    let note = value.as_str()?;
    note.contains(|letter: char| letter.is_control() && !matches!(letter, '\n' | '\r' | '\t'))
        .then(|| Fault::new(pointer, "must not contain control characters"))
}

/// The rules for a [`NewMessage`] that its schema can't express: a fault for each rule that is broken.
#[must_use]
pub fn broken_message_rules(body: &Value) -> Vec<Fault> {
    let faults = [
        address_fault("/to", &body["to"]),
        locale_fault("/locale", &body["locale"]),
        note_fault("/note", &body["note"]),
    ];
    faults.into_iter().flatten().collect()
}

/// The rules for `send` and `reminders` in a request for a link. `now` is the time of the request.
#[must_use]
pub(super) fn broken_sending_rules(body: &Value, now: OffsetDateTime) -> Vec<Fault> {
    let send = &body["send"];
    let mut faults: Vec<_> = [
        address_fault("/send/email", &send["email"]),
        locale_fault("/send/locale", &send["locale"]),
        note_fault("/send/note", &send["note"]),
    ]
    .into_iter()
    .flatten()
    .collect();
    let life = body["expireAt"]
        .as_str()
        .and_then(parse_time)
        .and_then(|expire_at| Duration::try_from(expire_at - now).ok());
    let reminders = body["reminders"].as_array();
    for (n, reminder) in reminders.into_iter().flatten().enumerate() {
        let given = ["after", "beforeExpiry"].map(|name| (name, reminder[name].as_str()));
        match given {
            [(_, Some(_)), (_, Some(_))] => faults.push(Fault::new(
                format!("/reminders/{n}"),
                "must have after or beforeExpiry, not both",
            )),
            [(_, None), (_, None)] if reminder.is_object() => faults.push(Fault::new(
                format!("/reminders/{n}"),
                "must have after or beforeExpiry",
            )),
            _ => {}
        }
        for (name, text) in given {
            let Some(text) = text else { continue };
            let detail = match parse_period(text) {
                None => {
                    "must be an ISO 8601 duration of weeks, days, hours and minutes, such as P3D or PT12H, from one minute \
                     to a year"
                }
                Some(period) if life.is_some_and(|life| period >= life) => {
                    "must be shorter than the time until expireAt"
                }
                Some(_) => continue,
            };
            faults.push(Fault::new(format!("/reminders/{n}/{name}"), detail));
        }
    }
    faults
}

/// Parses an ISO 8601 duration of weeks, days, hours and minutes, from a minute to a year.
///
/// Months and years are left out, because their length depends on where they begin. Postgres reads what this accepts as an
/// `interval`.
#[must_use]
pub fn parse_period(text: &str) -> Option<Duration> {
    const UNITS: [(char, u64, bool); 4] = [
        ('W', 7 * 24 * 60, false),
        ('D', 24 * 60, false),
        ('H', 60, true),
        ('M', 1, true),
    ];
    let mut rest = text.strip_prefix('P')?;
    let (mut minutes, mut is_time, mut next) = (0_u64, false, 0);
    while !rest.is_empty() {
        if let Some(time) = rest.strip_prefix('T') {
            if is_time || time.is_empty() {
                return None;
            }
            (rest, is_time) = (time, true);
            continue;
        }
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let (number, unit) = rest.split_at_checked(digits)?;
        let unit = unit.chars().next()?;
        let place = UNITS
            .iter()
            .position(|known| known.0 == unit && known.2 == is_time)?;
        if place < next || digits == 0 || digits > 6 {
            return None;
        }
        minutes = minutes.checked_add(number.parse::<u64>().ok()?.checked_mul(UNITS[place].1)?)?;
        next = place + 1;
        rest = &rest[digits + 1..];
    }
    let period = Duration::from_secs(minutes * 60);
    (Duration::from_mins(1)..=Duration::from_hours(24 * 366))
        .contains(&period)
        .then_some(period)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;
    use time::macros::datetime;

    use super::*;

    #[test]
    fn periods_are_iso_8601() {
        let minutes = |text| parse_period(text).map(|period| period.as_secs() / 60);
        assert_eq!(minutes("P3D"), Some(3 * 24 * 60));
        assert_eq!(minutes("P1W"), Some(7 * 24 * 60));
        assert_eq!(minutes("PT12H"), Some(12 * 60));
        assert_eq!(minutes("P1DT2H30M"), Some(24 * 60 + 150));
        assert_eq!(minutes("PT1M"), Some(1));
        for text in [
            "",
            "P",
            "PT",
            "P3",
            "3D",
            "P1M",
            "P1Y",
            "PT1S",
            "P1D2D",
            "PT1M1H",
            "P1H",
            "P1DT",
            "PT0M",
            "P367D",
            "P-1D",
            "P1.5D",
            "P1000000W",
            "PTT1M",
            "p3d",
            "P3D ",
            "P٣D",
        ] {
            assert_eq!(parse_period(text), None, "{text}");
        }
    }

    #[test]
    fn addresses_are_ascii_and_have_a_user_and_a_domain() {
        for address in ["ann@example.com", "a.b+c@mail.example.co.uk", "o'hara@x.io"] {
            assert!(is_email_address(address), "{address}");
        }
        let long = format!("{}@example.com", "a".repeat(65));
        for text in [
            "",
            "ann",
            "ann@",
            "@example.com",
            "ann@example",
            "a b@example.com",
            "ann@exa mple.com",
            "a@b@c d.com",
            "ann@example.com\r\nBcc: bob@example.com",
            "<ann@example.com>",
            "ann@-example.com",
            "ann@example..com",
            ".ann@example.com",
            "änn@example.com",
            "ann@exämple.com",
            "\"a b\"@example.com",
            &long,
        ] {
            assert!(!is_email_address(text), "{text}");
        }
    }

    #[test]
    fn every_fault_of_a_request_is_found() {
        let body = json!({
            "expireAt": "2026-01-03T00:00:00Z",
            "send": {"email": "nobody", "locale": "e n", "note": "a\u{0}b"},
            "reminders": [
                {"after": "P1D"}, {"beforeExpiry": "P2D"}, {"after": "soon"}, {}, {"after": "P1D", "beforeExpiry": "P1D"},
            ],
        });
        let faults = broken_sending_rules(&body, datetime!(2026-01-01 00:00 UTC));
        let pointers: Vec<_> = faults.into_iter().map(|fault| fault.pointer).collect();
        assert_eq!(
            pointers,
            [
                "/send/email",
                "/send/locale",
                "/send/note",
                "/reminders/1/beforeExpiry",
                "/reminders/2/after",
                "/reminders/3",
                "/reminders/4",
            ]
        );
        let faults = broken_message_rules(&json!({"to": "x", "locale": "", "note": "\u{7}"}));
        assert_eq!(faults.len(), 3);
        assert!(broken_message_rules(&json!({"note": "Two\nlines", "locale": "pt-BR"})).is_empty());
    }

    #[test]
    fn the_wait_grows_up_to_half_an_hour() {
        assert_eq!(retry_wait(0), Duration::from_secs(15));
        assert_eq!(retry_wait(3), Duration::from_mins(2));
        assert_eq!(retry_wait(u32::MAX), Duration::from_mins(30));
    }

    #[test]
    fn words_read_back() {
        for status in MessageStatus::ALL {
            assert_eq!(json!(status), status.as_str());
            assert_eq!(status.as_str().parse::<MessageStatus>().unwrap(), *status);
        }
        for purpose in Purpose::ALL {
            assert_eq!(json!(purpose), purpose.as_str());
        }
        assert_eq!(json!(Channel::Email), Channel::Email.as_str());
    }

    proptest! {
        #[test]
        fn parsing_a_period_never_panics(text in "P?[0-9WDHMT]{0,12}\\PC{0,3}") {
            let _ = parse_period(&text);
        }

        #[test]
        fn no_address_can_end_a_header_or_a_command(text in "\\PC{0,20}[\r\n <>,;:]\\PC{0,20}") {
            prop_assert!(!is_email_address(&text));
        }
    }
}
