//! The `Idempotency-Key` header, and what makes two requests the same.

use axum::http::{HeaderMap, HeaderName};
use serde::Serialize;
use sha2::{Digest, Sha256};
use utoipa::IntoParams;

use crate::payment_link::Fault;

/// Set on a response that repeats the outcome of an earlier request with the same `Idempotency-Key`.
pub(super) const IDEMPOTENT_REPLAYED: HeaderName = HeaderName::from_static("idempotent-replayed");

/// The header, for the OpenAPI document.
#[derive(IntoParams)]
#[into_params(parameter_in = Header)]
#[expect(dead_code, reason = "describes what `idempotency_key` reads")]
pub(super) struct OptionalKey {
    /// Makes retries safe: however often you send the request with the same key, it takes effect once. A key belongs to your
    /// client and to one request, that is, its path and its body. It is kept forever. 1 to 255 printable ASCII characters
    /// other than a double quote.
    #[param(
        rename = "Idempotency-Key",
        nullable = false,
        min_length = 1,
        max_length = 255,
        pattern = "^[ !#-~]+$",
        example = "order-236-link"
    )]
    key: Option<String>,
}

/// The same header where it is required.
#[derive(IntoParams)]
#[into_params(parameter_in = Header)]
#[expect(dead_code, reason = "describes what `idempotency_key` reads")]
pub(super) struct RequiredKey {
    /// Makes retries safe: however often you send the request with the same key, it takes effect once. A key belongs to your
    /// client and to one request, that is, its path and its body. It is kept forever. 1 to 255 printable ASCII characters
    /// other than a double quote.
    #[param(
        rename = "Idempotency-Key",
        min_length = 1,
        max_length = 255,
        pattern = "^[ !#-~]+$",
        example = "order-236-refund-1"
    )]
    key: String,
}

/// Reads the `Idempotency-Key`. The IETF draft puts it in quotes, most clients don't. Both mean the same key.
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
            "must be given once, with 1 to 255 printable ASCII characters other than a double quote",
        ))
    }
}

/// Distinguishes a repetition from a different request that reuses the key: a hash of the path and the parsed body, so that
/// white space and the order of fields don't matter. It must stay the same in every version, because keys are stored.
pub(super) fn fingerprint(path: &str, content: &impl Serialize) -> [u8; 32] {
    // `Value` sorts its fields.
    let body = serde_json::to_value(content).expect("a struct of plain values becomes JSON");
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
    fn the_fingerprint_is_the_same_in_every_version() {
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
    fn quotes_around_an_idempotency_key_make_no_difference() {
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
