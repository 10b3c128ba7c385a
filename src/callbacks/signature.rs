//! Signatures of callbacks, as in [Standard Webhooks](https://www.standardwebhooks.com).

use std::fmt;

use base64::{Engine, engine::general_purpose::STANDARD};
use hmac::{Hmac, KeyInit, Mac};
use rand::RngExt;
use reqwest::header::HeaderValue;
use secrecy::{ExposeSecret, SecretSlice};
use sha2::Sha256;

/// The header that contains the event's id.
pub const ID_HEADER: &str = "webhook-id";

/// The header that contains the time of the attempt, in seconds since 1970.
pub const TIMESTAMP_HEADER: &str = "webhook-timestamp";

/// The header that contains the signatures.
pub const SIGNATURE_HEADER: &str = "webhook-signature";

const PREFIX: &str = "whsec_";

/// The secret that an endpoint and this service share.
#[derive(Clone)]
pub struct SigningSecret(SecretSlice<u8>);

impl SigningSecret {
    /// What [`Self::parse`] accepts, for messages.
    pub const FORM: &'static str = "whsec_ and 24 to 64 bytes in standard base64";

    /// Generates a secret with 256 random bits.
    #[must_use]
    pub fn generate() -> Self {
        let random: [u8; 32] = rand::rng().random();
        Self(random.to_vec().into())
    }

    /// Returns `None` if the text doesn't have the form of a secret.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let bytes = STANDARD.decode(text.strip_prefix(PREFIX)?).ok()?;
        (24..=64).contains(&bytes.len()).then(|| Self(bytes.into()))
    }

    /// The secret as text, which only the endpoint's owner may see.
    #[must_use]
    pub fn expose(&self) -> String {
        format!("{PREFIX}{}", STANDARD.encode(self.0.expose_secret()))
    }

    /// Signs an event. `timestamp` is the time of the attempt, in seconds since 1970.
    ///
    /// The id must not contain a dot. Otherwise one signature would be valid for several divisions into id, time and body.
    #[must_use]
    #[expect(clippy::missing_panics_doc, reason = "it never panics")]
    pub fn sign(&self, id: &str, timestamp: i64, body: &[u8]) -> String {
        let mac = Hmac::<Sha256>::new_from_slice(self.0.expose_secret())
            .expect("HMAC accepts keys of any length")
            .chain_update(format!("{id}.{timestamp}."))
            .chain_update(body)
            .finalize();
        format!("v1,{}", STANDARD.encode(mac.into_bytes()))
    }
}

impl fmt::Debug for SigningSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SigningSecret([REDACTED])")
    }
}

/// The value of [`SIGNATURE_HEADER`].
///
/// During a rotation earlier secrets sign as well, so that the endpoint's owner can change over at any time. A receiver accepts
/// an event if any of the signatures is valid.
#[must_use]
#[expect(clippy::missing_panics_doc, reason = "it never panics")]
pub fn header(
    newest: &SigningSecret,
    previous: &[SigningSecret],
    id: &str,
    timestamp: i64,
    body: &[u8],
) -> HeaderValue {
    let mut text = newest.sign(id, timestamp, body);
    for previous in previous {
        text.push(' ');
        text.push_str(&previous.sign(id, timestamp, body));
    }
    HeaderValue::try_from(text).expect("base64, commas and spaces are allowed in a header")
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};
    use reqwest::header::HeaderMap;
    use standardwebhooks::Webhook;
    use time::OffsetDateTime;

    use super::*;

    const SECRET: &str = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD";
    const ID: &str = "msg_p5jXN8AQM9LWM0D4loKWxJek";
    const BODY: &str = r#"{"test": 2432232314}"#;

    fn secret(text: &str) -> SigningSecret {
        SigningSecret::parse(text).unwrap()
    }

    /// Whether the reference implementation accepts a header.
    fn accepts(
        secret: &SigningSecret,
        timestamp: i64,
        id: &str,
        header: HeaderValue,
        body: &[u8],
    ) -> bool {
        let mut headers = HeaderMap::new();
        headers.insert(ID_HEADER, id.try_into().unwrap());
        headers.insert(TIMESTAMP_HEADER, timestamp.into());
        headers.insert(SIGNATURE_HEADER, header);
        let webhook = Webhook::new(&secret.expose()).unwrap();
        webhook.verify(body, &headers).is_ok()
    }

    fn now() -> i64 {
        OffsetDateTime::now_utc().unix_timestamp()
    }

    #[test]
    fn the_specifications_example_is_reproduced() {
        let expected = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=";
        let secret = secret("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw");
        assert_eq!(secret.sign(ID, 1_614_265_330, BODY.as_bytes()), expected);
        let header = header(&secret, &[], ID, 1_614_265_330, BODY.as_bytes());
        assert_eq!(header, expected);
    }

    #[test]
    fn another_sdks_example_is_reproduced() {
        let secret = secret(SECRET);
        let body = br#"{"email":"test@example.com","username":"test_user"}"#;
        assert_eq!(
            secret.sign("msg_27UH4WbU6Z5A5EzD8u03UvzRbpk", 1_649_367_553, body),
            "v1,tZ1I4/hDygAJgO5TYxiSd6Sd0kDW6hPenDe+bTa3Kkw="
        );
    }

    #[test]
    fn both_secrets_sign_during_a_rotation_and_the_newest_comes_first() {
        let now = now();
        let (newest, previous) = (SigningSecret::generate(), SigningSecret::generate());
        let header = header(
            &newest,
            std::slice::from_ref(&previous),
            ID,
            now,
            BODY.as_bytes(),
        );
        let text = header.to_str().unwrap().to_owned();
        let first = text.split(' ').next().unwrap();
        assert!(accepts(
            &newest,
            now,
            ID,
            first.try_into().unwrap(),
            BODY.as_bytes()
        ));
        for accepted in [&newest, &previous] {
            assert!(accepts(accepted, now, ID, header.clone(), BODY.as_bytes()));
        }
        let other = SigningSecret::generate();
        assert!(!accepts(&other, now, ID, header, BODY.as_bytes()));
    }

    #[test]
    fn generated_secrets_differ_and_can_be_parsed() {
        let first = SigningSecret::generate();
        assert_ne!(first.expose(), SigningSecret::generate().expose());
        assert_eq!(first.expose().len(), "whsec_".len() + 44);
        assert_eq!(secret(&first.expose()).expose(), first.expose());
    }

    #[test]
    fn malformed_secrets_are_rejected() {
        let of = |length: usize| format!("whsec_{}", STANDARD.encode(vec![7; length]));
        for length in [0, 1, 23, 65, 100] {
            assert!(SigningSecret::parse(&of(length)).is_none(), "{length}");
        }
        for length in [24, 25, 32, 64] {
            assert!(SigningSecret::parse(&of(length)).is_some(), "{length}");
        }
        for wrong in [
            "",
            "whsec_",
            SECRET.trim_start_matches("whsec_"),
            &SECRET.to_uppercase(),
            &format!(" {SECRET}"),
            &format!("{SECRET}\n"),
            &format!("{SECRET}="),
            // No padding, and the URL-safe alphabet.
            of(32).trim_end_matches('='),
            &format!("whsec_{}", "-_-_".repeat(8)),
        ] {
            assert!(SigningSecret::parse(wrong).is_none(), "{wrong:?}");
        }
    }

    #[test]
    fn debug_output_does_not_show_the_secret() {
        let debug = format!("{:?}", secret(SECRET));
        assert_eq!(debug, "SigningSecret([REDACTED])");
    }

    proptest! {
        #[test]
        fn signatures_are_those_of_the_reference_implementation(
            key in vec(any::<u8>(), 24..=64),
            id in "[a-zA-Z0-9_]{1,40}",
            timestamp: i64,
            body in "\\PC*",
        ) {
            let secret = secret(&format!("whsec_{}", STANDARD.encode(&key)));
            let reference = Webhook::from_bytes(key).unwrap();
            let expected = reference.sign(&id, timestamp, body.as_bytes()).unwrap();
            prop_assert_eq!(&secret.sign(&id, timestamp, body.as_bytes()), &expected);
            let header = header(&secret, &[], &id, timestamp, body.as_bytes());
            prop_assert_eq!(header, expected);
        }

        #[test]
        fn the_reference_implementation_accepts_signatures_but_no_altered_body(
            id in "[a-zA-Z0-9_]{1,40}",
            body in "[a-z]{1,100}",
            byte in any::<prop::sample::Index>(),
        ) {
            let secret = SigningSecret::generate();
            let mut body = body.into_bytes();
            let now = now();
            let header = header(&secret, &[], &id, now, &body);
            prop_assert!(accepts(&secret, now, &id, header.clone(), &body));
            let byte = byte.index(body.len());
            body[byte] ^= 1;
            prop_assert!(!accepts(&secret, now, &id, header, &body));
        }

        #[test]
        fn no_text_causes_a_panic(text in "(whsec_)?\\PC*") {
            if let Some(secret) = SigningSecret::parse(&text) {
                prop_assert_eq!(secret.expose(), text);
            }
        }
    }
}
