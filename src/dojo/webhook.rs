//! Dojo's webhooks: signature and event.

use hmac::{Hmac, KeyInit, Mac};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use serde_json::Value;
use sha2::Sha256;
use time::OffsetDateTime;

use crate::payment_link::parse_time;

/// The header that contains the signature.
pub const SIGNATURE_HEADER: &str = "dojo-signature";

/// The event that reports a new intent.
pub const CREATED: &str = "payment_intent.created";

/// The event that reports a change of an intent's status.
pub const STATUS_UPDATED: &str = "payment_intent.status_updated";

/// The events that report a payment intent and its status. An event of any other type may be about something that only
/// resembles a payment intent, so its status is ignored.
pub const INTENT_EVENTS: [&str; 3] = [CREATED, STATUS_UPDATED, "payment_intent.send-receipt"];

/// Whether `signature` is valid for `body` and any of `secrets`.
///
/// The header contains `sha256=` and the HMAC-SHA256 of the raw body, keyed with the secret's UTF-8 bytes, in upper-case
/// hex with a dash between the bytes (the format of .NET's `BitConverter`). Lower case and no dashes are accepted too, as
/// in Dojo's own libraries. The comparison takes constant time.
#[must_use]
pub fn is_genuine(secrets: &[SecretString], signature: &str, body: &[u8]) -> bool {
    let Some(claimed) = decode(signature) else {
        return false;
    };
    secrets.iter().any(|secret| {
        Hmac::<Sha256>::new_from_slice(secret.expose_secret().as_bytes())
            .is_ok_and(|mac| mac.chain_update(body).verify_slice(&claimed).is_ok())
    })
}

/// Decodes a signature header: 64 hex digits, or 32 pairs of them with dashes in between.
fn decode(signature: &str) -> Option<[u8; 32]> {
    let hex = signature.strip_prefix("sha256=")?.as_bytes();
    let step = match hex.len() {
        64 => 2,
        95 => 3,
        _ => return None,
    };
    let digit = |byte: u8| {
        char::from(byte)
            .to_digit(16)
            .and_then(|digit| u8::try_from(digit).ok())
    };
    let mut bytes = [0; 32];
    for (byte, pair) in bytes.iter_mut().zip(hex.chunks(step)) {
        *byte = (digit(pair[0])? << 4) | digit(pair[1])?;
        if pair.get(2).is_some_and(|separator| *separator != b'-') {
            return None;
        }
    }
    Some(bytes)
}

/// A webhook's event. The body is thin: it names an intent and its status, and contains no amounts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// `evt_…`, the same in every copy of the event.
    pub id: String,
    /// For example `payment_intent.status_updated`.
    pub event_type: String,
    /// When the event happened according to Dojo, if it reports a readable time.
    pub created_at: Option<OffsetDateTime>,
    /// The intent that the event is about. `None` if the event is about something else.
    pub payment_intent_id: Option<String>,
    /// The intent's status, which isn't necessarily one that we know.
    pub payment_status: Option<String>,
}

/// Why a webhook with a valid signature could not be parsed.
#[derive(Debug, thiserror::Error)]
pub enum EventError {
    /// The body is not valid JSON, or not of the form that Dojo documents.
    #[error("the body is not an event in the format that Dojo documents")]
    Form(#[source] serde_json::Error),
    /// A field is empty, not text, longer than any id or name should be, or contains a NUL character.
    #[error("the event's {0} is not a plausible value")]
    Field(&'static str),
}

impl EventError {
    /// The reason, in words that quote nothing from the body.
    #[must_use]
    pub fn reason(&self) -> String {
        match self {
            Self::Form(error) => {
                format!("{self} (line {}, column {})", error.line(), error.column())
            }
            Self::Field(_) => self.to_string(),
        }
    }
}

impl Event {
    /// Parses a body whose signature is valid. Everything but `id` and `event` may be missing, because Dojo adds event
    /// types without notice.
    pub fn parse(body: &[u8]) -> Result<Self, EventError> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Body {
            id: String,
            event: String,
            #[serde(default)]
            created_at: Value,
            #[serde(default)]
            data: Value,
        }

        let body: Body = serde_json::from_slice(body).map_err(EventError::Form)?;
        // A field may be missing, but must be text if it is there.
        let text = |name, pointer| match body.data.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.clone())),
            Some(_) => Err(EventError::Field(pointer)),
        };
        let event = Self {
            created_at: body.created_at.as_str().and_then(parse_time),
            payment_intent_id: text("paymentIntentId", "data.paymentIntentId")?,
            payment_status: text("paymentStatus", "data.paymentStatus")?,
            id: body.id,
            event_type: body.event,
        };
        let plausible = |text: &str| !text.is_empty() && text.len() <= 200 && !text.contains('\0');
        for (name, value) in [
            ("id", Some(&event.id)),
            ("event", Some(&event.event_type)),
            ("data.paymentIntentId", event.payment_intent_id.as_ref()),
            ("data.paymentStatus", event.payment_status.as_ref()),
        ] {
            if !value.is_none_or(|value| plausible(value)) {
                return Err(EventError::Field(name));
            }
        }
        Ok(event)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use time::macros::datetime;

    use super::*;

    /// Published by Dojo, like the two signatures below.
    const BODY: &str = r#"{"id":"evt_hnnHxIKR_Uy6bhZCusCltw","event":"payment_intent.created","accountId":"acc_test","createdAt":"2022-02-01T13:07:41.8667859Z","data":{"paymentIntentId":"pi_vpwd4ooAPEqyNAQe4z89WQ","paymentStatus":"Created","captureMode":"Auto"}}"#;
    const VECTORS: [(&str, &str); 2] = [
        (
            "PDYkJQq6sESYHp_zJuTTBQ",
            "sha256=4B-49-F8-FE-25-A7-E6-7D-00-4F-A7-9C-F8-0B-63-00-C7-77-B4-F2-2D-E5-E1-22-84-FA-04-18-50-A1-76-FD",
        ),
        (
            "ws_OYsyzcrH70GpJfs8MMkKpg",
            "sha256=94-AC-93-67-D6-8B-69-6D-15-A2-C2-45-40-98-B5-E7-64-72-38-C5-1F-6D-32-D0-5F-CB-91-20-A9-20-64-F4",
        ),
    ];

    fn genuine(secret: &str, signature: &str, body: &[u8]) -> bool {
        is_genuine(&[SecretString::from(secret)], signature, body)
    }

    #[test]
    fn dojos_published_signatures_are_valid() {
        for (secret, signature) in VECTORS {
            assert!(genuine(secret, signature, BODY.as_bytes()));
            let plain = signature.replace('-', "");
            assert!(genuine(secret, &plain, BODY.as_bytes()));
            let lower = plain.replace("sha256=", "").to_lowercase();
            assert!(genuine(secret, &format!("sha256={lower}"), BODY.as_bytes()));
        }
    }

    #[test]
    fn any_of_several_secrets_may_sign_and_without_secrets_nothing_is_valid() {
        let secrets: Vec<_> = VECTORS
            .iter()
            .map(|(secret, _)| SecretString::from(*secret))
            .collect();
        for (_, signature) in VECTORS {
            assert!(is_genuine(&secrets, signature, BODY.as_bytes()));
            assert!(!is_genuine(&[], signature, BODY.as_bytes()));
        }
        assert!(!genuine(VECTORS[0].0, VECTORS[1].1, BODY.as_bytes()));
    }

    #[test]
    fn malformed_signatures_are_invalid() {
        let (secret, signature) = VECTORS[0];
        for wrong in [
            "",
            "sha256=",
            signature.trim_start_matches("sha256="),
            &signature.replace("sha256=", "sha512="),
            &signature.replace('-', ":"),
            &signature[..signature.len() - 1],
            &format!("{signature}-00"),
            &format!("{signature} "),
            &signature.replace("4B", "+B"),
            &signature.replacen('-', "", 1),
        ] {
            assert!(!genuine(secret, wrong, BODY.as_bytes()), "{wrong:?}");
        }
    }

    proptest! {
        #[test]
        fn a_body_with_one_flipped_bit_is_invalid(byte in 0..BODY.len(), bit in 0..8u8) {
            let mut body = BODY.as_bytes().to_vec();
            body[byte] ^= 1 << bit;
            prop_assert!(!genuine(VECTORS[0].0, VECTORS[0].1, &body));
        }

        #[test]
        fn no_header_or_body_causes_a_panic(signature in "\\PC*", body: Vec<u8>) {
            prop_assert!(!genuine("secret", &signature, &body));
            let _ = Event::parse(&body);
        }
    }

    #[test]
    fn times_may_have_seven_fractional_digits() {
        assert_eq!(
            Event::parse(BODY.as_bytes()).unwrap(),
            Event {
                id: "evt_hnnHxIKR_Uy6bhZCusCltw".into(),
                event_type: "payment_intent.created".into(),
                created_at: Some(datetime!(2022-02-01 13:07:41.866_785_900 UTC)),
                payment_intent_id: Some("pi_vpwd4ooAPEqyNAQe4z89WQ".into()),
                payment_status: Some("Created".into()),
            }
        );
    }

    #[test]
    fn events_of_an_unknown_type_are_accepted() {
        let event = Event::parse(br#"{"id":"evt_1","event":"terminal.moved","data":[1]}"#).unwrap();
        assert_eq!(event.payment_intent_id, None);
        assert_eq!(event.created_at, None);
    }

    #[test]
    fn an_impossible_time_is_ignored() {
        for at in ["9999-12-31T23:59:59-12:00", "yesterday"] {
            let body = format!(r#"{{"id":"evt_1","event":"e","createdAt":"{at}"}}"#);
            assert_eq!(Event::parse(body.as_bytes()).unwrap().created_at, None);
        }
    }

    #[test]
    fn errors_quote_nothing_from_the_body() {
        for body in [
            &b"not json at all"[..],
            br#"{"id":5,"event":"e"}"#,
            br#"{"id":"evt\u0000","event":"e"}"#,
            br#"{"id":"evt_1","event":"e","data":{"paymentStatus":5}}"#,
            br#"{"id":"evt_1","event":"e","data":{"paymentIntentId":{}}}"#,
            &[0xff, 0xfe],
        ] {
            let reason = Event::parse(body).unwrap_err().reason();
            assert!(!reason.contains("not json at all"), "{reason}");
        }
    }
}
