//! Where Dojo's API, or the sandbox, is known to differ from Dojo's OpenAPI document.

use http::{HeaderMap, header};
use serde_json::{Value, json};

/// Adds the members to the schemas that Dojo's own examples show and its schemas don't list.
pub(crate) fn add_members_of_examples(schemas: &mut Value) {
    let events =
        json!({"type": "array", "items": {"$ref": "#/components/schemas/PaymentStatusResponse"}});
    for (schema, member, member_schema) in [
        ("PaymentIntent", "paymentEvents", events),
        ("PaymentIntent", "paymentSource", json!({"type": "string"})),
        (
            "PaymentIntentConfigResponse",
            "branding",
            json!({"type": "object"}),
        ),
        (
            "PaymentIntentConfigResponse",
            "tradingName",
            json!({"type": "string"}),
        ),
    ] {
        if let Some(members) = schemas[schema]["properties"].as_object_mut() {
            members.entry(member).or_insert(member_schema);
        }
    }
}

/// The sandbox accepts webhook URLs with plain HTTP. Dojo doesn't.
pub(crate) fn allow_plain_http_webhooks(schemas: &mut Value) {
    for schema in [
        "Subscription",
        "SubscriptionRequest",
        "SubscriptionUpdateRequest",
    ] {
        let url = &mut schemas[schema]["properties"]["url"];
        // A nullable URL has its pattern in the first alternative.
        for pointer in ["/pattern", "/anyOf/0/pattern"] {
            if let Some(pattern) = url.pointer_mut(pointer) {
                *pattern = json!("^https?://.+");
            }
        }
    }
}

/// Removes `paymentSource` from a creation: Dojo's guide requires it, and the document doesn't list it.
pub(crate) fn remove_payment_source(method: &str, path: &str, body: &mut Value) {
    if method == "POST"
        && path == "/payment-intents"
        && let Some(members) = body.as_object_mut()
    {
        members.remove("paymentSource");
    }
}

/// The document says nothing about the form of the key. Dojo's guide does: `Basic ` and the key itself, not in base64.
pub(crate) fn authorization_violation(headers: &HeaderMap) -> Option<String> {
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let first = values.next().and_then(|value| value.to_str().ok());
    let valid = first.is_some_and(|key| key.starts_with("Basic sk_")) && values.next().is_none();
    // Never the value: it is a secret.
    (!valid).then(|| "header authorization: is not `Basic sk_…`".to_owned())
}
