//! The `Idempotency-Key` header: what it is, and what makes two requests the same.

use axum::http::HeaderMap;
use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::payment_link::Fault;

/// The `Idempotency-Key`. The IETF draft has it in quotes, most clients send it bare; both mean the same.
pub(super) fn idempotency_key(headers: &HeaderMap) -> Result<Option<String>, Fault> {
    let mut values = headers.get_all("idempotency-key").iter();
    let Some(value) = values.next() else {
        return Ok(None);
    };
    let text = value.to_str().unwrap_or_default().trim();
    let key = text
        .strip_prefix('"')
        .and_then(|text| text.strip_suffix('"'))
        .unwrap_or(text);
    let plain = |byte| matches!(byte, b' '..=b'~') && byte != b'"';
    if values.next().is_none() && (1..=255).contains(&key.len()) && key.bytes().all(plain) {
        Ok(Some(key.to_owned()))
    } else {
        Err(Fault::new(
            "Idempotency-Key",
            "must be 1 to 255 printable ASCII characters other than a quote, once",
        ))
    }
}

/// What tells a repetition from another request: the hash of what was understood, so that white space and
/// the order of fields do not matter. It has to stay the same from version to version, for keys are kept.
pub(super) fn fingerprint(path: &str, asked: &impl Serialize) -> [u8; 32] {
    // `Value` keeps its fields sorted.
    let body = serde_json::to_value(asked).expect("a struct of plain values becomes JSON");
    Sha256::new()
        .chain_update(format!("POST {path}\n"))
        .chain_update(body.to_string())
        .finalize()
        .into()
}

#[cfg(test)]
mod tests {
    use axum::http::{HeaderName, HeaderValue};

    use super::*;
    use crate::payment_link::NewPaymentLink;

    #[test]
    fn a_fingerprint_stays_what_it_was() {
        let new = serde_json::json!({
            "reference": "Order 1", "amount": {"value": 1000, "currencyCode": "GBP"}, "metadata": {"b": "2", "a": "1"},
        });
        let new: NewPaymentLink = serde_json::from_value(new).unwrap();
        let hash = fingerprint("/v1/payment-links", &new);
        assert_eq!(
            hex::encode(hash),
            "0e32950fcf4c5560610039114f295563c7d4921a67e1dc56e6c002c43e6b5478"
        );
    }

    #[test]
    fn an_idempotency_key_means_the_same_with_and_without_quotes() {
        let key = |value: &str| {
            let headers = HeaderMap::from_iter([(
                HeaderName::from_static("idempotency-key"),
                HeaderValue::from_str(value).unwrap(),
            )]);
            idempotency_key(&headers).ok().flatten()
        };
        assert_eq!(key("\"order-1"), None);
        assert_eq!(key("order-1").as_deref(), Some("order-1"));
        assert_eq!(key("\"order-1\"").as_deref(), Some("order-1"));
        assert_eq!(key(""), None);
        assert_eq!(key(&"x".repeat(256)), None);
        assert_eq!(key("caf\u{e9}"), None);
    }
}
