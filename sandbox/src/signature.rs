//! The signature of a webhook.

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

/// The value of the `dojo-signature` header for a webhook body.
///
/// It is `sha256=` and the HMAC-SHA256 of the body's bytes, keyed with the secret's UTF-8 bytes. As Dojo does with
/// .NET's `BitConverter`, it is written in upper-case hex with a dash between bytes.
#[must_use]
pub fn sign(secret: &str, body: &[u8]) -> String {
    let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(secret.as_bytes()) else {
        unreachable!("HMAC accepts keys of any length");
    };
    mac.update(body);
    let bytes = mac.finalize().into_bytes();
    let hex: Vec<String> = bytes.iter().map(|byte| format!("{byte:02X}")).collect();
    format!("sha256={}", hex.join("-"))
}

#[cfg(test)]
mod tests {
    use super::sign;

    const BODY: &[u8] = br#"{"id":"evt_hnnHxIKR_Uy6bhZCusCltw","event":"payment_intent.created","accountId":"acc_test","createdAt":"2022-02-01T13:07:41.8667859Z","data":{"paymentIntentId":"pi_vpwd4ooAPEqyNAQe4z89WQ","paymentStatus":"Created","captureMode":"Auto"}}"#;

    #[test]
    fn matches_the_signatures_that_dojo_publishes() {
        assert_eq!(
            sign("PDYkJQq6sESYHp_zJuTTBQ", BODY),
            "sha256=4B-49-F8-FE-25-A7-E6-7D-00-4F-A7-9C-F8-0B-63-00-C7-77-B4-F2-2D-E5-E1-22-84-FA-04-18-50-A1-76-FD"
        );
        assert_eq!(
            sign("ws_OYsyzcrH70GpJfs8MMkKpg", BODY),
            "sha256=94-AC-93-67-D6-8B-69-6D-15-A2-C2-45-40-98-B5-E7-64-72-38-C5-1F-6D-32-D0-5F-CB-91-20-A9-20-64-F4"
        );
    }
}
