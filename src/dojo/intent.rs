use serde::{
    Deserialize, Deserializer,
    de::{self, DeserializeOwned},
};
use serde_json::{Map, Value};
use time::OffsetDateTime;

use crate::payment_link::{
    Attempt, Capture, NewPaymentLink, Payment, PaymentLinkId, ReportedAmount, Status,
    creation_recovery::Found, parse_time,
};

/// The parts of Dojo's payment intent that this service stores.
///
/// Only its id is required. Any other field that is missing, `null`, given twice or of another form than documented is
/// `None`: a surprise in one field must not lose the response to a creation, which would then have to be searched for.
///
/// A body that `serde_json` can't parse is lost as a whole. Besides invalid JSON, that is a number beyond `f64` (`1e400`), a
/// lone surrogate (`"\ud800"`), or nesting deeper than 128 levels, in any field.
#[derive(Debug, Clone)]
pub struct PaymentIntent {
    /// `pi_…`, in the sandbox `pi_sandbox_…`.
    pub id: String,
    /// Dojo's status, which isn't necessarily one that we know. Empty if there is none.
    pub status: String,
    /// The amount without tips, service charge and cashback.
    pub amount: Option<ReportedAmount>,
    pub tips_amount: Option<ReportedAmount>,
    /// The amount including tips, service charge and cashback.
    pub total_amount: Option<ReportedAmount>,
    /// In minor units.
    pub refunded_amount: Option<i64>,
    /// Whether Dojo reported a refunded amount that can't be read, so that it is unknown what is left to refund.
    pub refunds_are_unreadable: bool,
    /// The intent's captures, if Dojo reports them.
    pub captures: Option<Vec<Capture>>,
    /// When Dojo voids the intent if nobody pays.
    pub expire_at: Option<OffsetDateTime>,
    pub created_at: Option<OffsetDateTime>,
    /// When the intent last changed. Identifies the version of this response.
    pub updated_at: Option<OffsetDateTime>,
    metadata: Option<Map<String, Value>>,
    payment_details: Option<PaymentDetails>,
    payment_events: Option<Vec<PaymentEvent>>,
}

impl<'de> Deserialize<'de> for PaymentIntent {
    fn deserialize<D: Deserializer<'de>>(body: D) -> Result<Self, D::Error> {
        // Not derived, because a derived implementation rejects a field that is given twice.
        let mut fields = Fields::of(Map::deserialize(body)?);
        let id: String = fields.take("id").unwrap_or_default();
        let has_refunded_amount = fields.has("refundedAmount");
        let refunded_amount = fields.take("refundedAmount");
        if !is_valid_id(&id) {
            return Err(de::Error::custom("a payment intent without a valid id"));
        }
        Ok(Self {
            id,
            status: fields.take("status").unwrap_or_default(),
            amount: fields.take("amount"),
            // The database doesn't accept a negative tip.
            tips_amount: fields
                .take("tipsAmount")
                .filter(|tips: &ReportedAmount| tips.value >= 0),
            total_amount: fields.take("totalAmount"),
            refunds_are_unreadable: has_refunded_amount && refunded_amount.is_none(),
            refunded_amount,
            captures: fields
                .take("captures")
                .map(|captures: Vec<CaptureDetails>| {
                    captures.into_iter().map(Capture::from).collect()
                }),
            expire_at: fields.take_time("expireAt"),
            created_at: fields.take_time("createdAt"),
            updated_at: fields.take_time("updatedAt"),
            metadata: fields.take("metadata"),
            payment_details: fields.take("paymentDetails"),
            payment_events: fields.take("paymentEvents"),
        })
    }
}

/// Whether this can be an intent's id. The id becomes part of URLs. So it must consist of characters that need no escaping
/// there, and must not be `.` or `..`.
fn is_valid_id(id: &str) -> bool {
    let fits = |c: char| c.is_ascii_alphanumeric() || "-._~".contains(c);
    id.len() <= 200 && id.chars().all(fits) && id.contains(|c: char| c.is_ascii_alphanumeric())
}

/// The fields of an object in Dojo's response.
pub(super) struct Fields(Map<String, Value>);

impl Fields {
    pub(super) fn of(members: Map<String, Value>) -> Self {
        Self(members)
    }

    /// Takes a field out, or returns `None` if it is missing or can't be parsed.
    pub(super) fn take<T: DeserializeOwned>(&mut self, name: &str) -> Option<T> {
        let mut value = self.0.remove(name)?;
        drop_unstorable(&mut value);
        serde_json::from_value(value).ok()
    }

    /// A time in an unlikely year is as good as none, and Postgres can't read some of them.
    pub(super) fn take_time(&mut self, name: &str) -> Option<OffsetDateTime> {
        self.take::<String>(name)
            .as_deref()
            .and_then(parse_time)
            .filter(|at| (1970..=9999).contains(&at.year()))
    }

    /// Whether the field is there and is not `null`.
    fn has(&self, name: &str) -> bool {
        self.0.get(name).is_some_and(|value| !value.is_null())
    }
}

/// Replaces texts that contain a NUL character by `null`, because Postgres can't store them.
fn drop_unstorable(value: &mut Value) {
    match value {
        Value::String(text) if text.contains('\0') => *value = Value::Null,
        Value::Array(values) => values.iter_mut().for_each(drop_unstorable),
        Value::Object(fields) => {
            fields.retain(|name, _| !name.contains('\0'));
            fields.values_mut().for_each(drop_unstorable);
        }
        _ => {}
    }
}

/// Parses a field, or returns `None` if it can't be parsed.
fn lenient<'de, D: Deserializer<'de>, T: DeserializeOwned>(
    field: D,
) -> Result<Option<T>, D::Error> {
    let value = Value::deserialize(field)?;
    Ok(serde_json::from_value(value).ok())
}

/// A capture as Dojo reports it. One without an amount can't be counted, and is not accepted.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct CaptureDetails {
    amount: i64,
    #[serde(default, deserialize_with = "lenient")]
    id: Option<String>,
    #[serde(default, deserialize_with = "lenient")]
    tips_amount: Option<i64>,
    #[serde(default, deserialize_with = "lenient")]
    status: Option<String>,
    #[serde(default, deserialize_with = "lenient")]
    created_at: Option<String>,
}

impl From<CaptureDetails> for Capture {
    fn from(capture: CaptureDetails) -> Self {
        Self {
            id: capture.id,
            amount: capture.amount,
            tips_amount: capture.tips_amount,
            status: capture.status,
            created_at: capture.created_at,
        }
    }
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct PaymentDetails {
    #[serde(default, deserialize_with = "lenient")]
    transaction_id: Option<String>,
    #[serde(default, deserialize_with = "lenient")]
    transaction_date_time: Option<String>,
    #[serde(default, deserialize_with = "lenient")]
    auth_code: Option<String>,
    #[serde(default, deserialize_with = "lenient")]
    card: Option<Card>,
}

#[derive(Debug, Clone, Deserialize)]
struct Card {
    #[serde(default, deserialize_with = "lenient", rename = "cardNumber")]
    number: Option<String>,
    #[serde(default, deserialize_with = "lenient", rename = "last4PAN")]
    last4: Option<String>,
    #[serde(default, deserialize_with = "lenient", rename = "cardType")]
    scheme: Option<String>,
    #[serde(default, deserialize_with = "lenient", rename = "cardFundingType")]
    funding_type: Option<String>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct PaymentEvent {
    #[serde(default, deserialize_with = "lenient")]
    event_type: Option<String>,
    #[serde(default, deserialize_with = "lenient")]
    transaction_date_time: Option<String>,
}

impl PaymentIntent {
    /// The intent's status, if it is one that we know.
    #[must_use]
    pub fn known_status(&self) -> Option<Status> {
        Status::from_dojo(&self.status)
    }

    /// Whether the metadata names a different link. It need not name any.
    #[must_use]
    pub fn is_of_another_link(&self, link_id: PaymentLinkId) -> bool {
        self.link_id().is_some_and(|named| named != link_id)
    }

    /// The link that the metadata names, if any.
    #[must_use]
    pub fn link_id(&self) -> Option<PaymentLinkId> {
        let id = self
            .metadata
            .as_ref()?
            .get(NewPaymentLink::ID_METADATA_KEY)?;
        id.as_str()?.parse().ok()
    }

    /// How much was captured, in minor units. `None` if the status isn't known, or no amount is reported.
    #[must_use]
    pub fn captured_amount(&self) -> Option<i64> {
        let whole = self.total_amount.as_ref().or(self.amount.as_ref())?.value;
        let captures = self.captures.as_deref().unwrap_or_default();
        Some(Capture::collected(captures, self.known_status()?, whole))
    }

    /// What the rules of creation recovery need to know about the intent.
    #[must_use]
    pub fn found(&self) -> Found {
        Found {
            id: self.id.clone(),
            status: self.known_status(),
            created_at: self.created_at,
        }
    }

    /// The payment's details, once Dojo reports any.
    #[must_use]
    pub fn payment(&self) -> Option<Payment> {
        let details = self.payment_details.as_ref()?;
        let card = details.card.as_ref();
        let payment = Payment {
            transaction_id: details.transaction_id.clone(),
            transaction_date_time: details.transaction_date_time.clone(),
            auth_code: details.auth_code.clone(),
            card_number: card.and_then(|card| card.number.as_deref()).map(masked),
            last4: card.and_then(|card| card.last4.clone()),
            card_type: card.and_then(|card| card.scheme.clone()),
            card_funding_type: card.and_then(|card| card.funding_type.clone()),
        };
        (payment != Payment::default()).then_some(payment)
    }

    /// The payment attempts that were declined or challenged, or failed.
    #[must_use]
    pub fn attempts(&self) -> Vec<Attempt> {
        self.payment_events
            .iter()
            .flatten()
            .filter_map(|event| {
                let event_type = event.event_type.clone()?;
                matches!(event_type.as_str(), "Declined" | "AuthChallenged" | "Error").then(|| {
                    Attempt {
                        event_type,
                        transaction_date_time: event.transaction_date_time.clone(),
                    }
                })
            })
            .collect()
    }
}

/// Masks a card number. Dojo sends it masked already; this is a safeguard in case it ever sends a full one. PCI DSS
/// allows at most the first six or eight digits and the last four to be shown.
fn masked(number: &str) -> String {
    let digits = number.chars().filter(char::is_ascii_digit).count();
    if digits <= 12 {
        return number.to_owned();
    }
    let mut seen = 0;
    number
        .chars()
        .map(|c| {
            if !c.is_ascii_digit() {
                return c;
            }
            seen += 1;
            if seen <= 6 || seen > digits - 4 {
                c
            } else {
                '*'
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    /// Any JSON value, a few levels deep.
    fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            any::<String>().prop_map(Value::from),
            Just(Value::from("2026-01-01T00:00:00.1234567Z")),
        ];
        leaf.prop_recursive(3, 24, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::vec((any_name(), inner), 0..6)
                    .prop_map(|fields| Value::Object(fields.into_iter().collect())),
            ]
        })
    }

    /// A field's name, mostly one that we read.
    fn any_name() -> impl Strategy<Value = String> {
        let known = [
            "status",
            "amount",
            "tipsAmount",
            "totalAmount",
            "refundedAmount",
            "captures",
            "expireAt",
            "createdAt",
            "updatedAt",
            "metadata",
            "paymentDetails",
            "paymentEvents",
            "value",
            "currencyCode",
            "paymentLinkId",
            "card",
            "eventType",
            "tipsAmount",
            "cardNumber",
            "last4PAN",
        ];
        prop_oneof![
            9 => prop::sample::select(known.to_vec()).prop_map(str::to_owned),
            1 => any::<String>().prop_filter("the test adds the id", |name| name != "id"),
        ]
    }

    proptest! {
        #[test]
        fn any_object_with_a_valid_id_is_accepted(
            id in "pi_(sandbox_)?[A-Za-z0-9_-]{1,30}",
            at in 0..8_usize,
            fields in prop::collection::vec((any_name(), any_json()), 0..8),
        ) {
            // Built as text, because fields may be given twice.
            let mut fields: Vec<_> = fields
                .iter()
                .map(|(name, value)| format!("{}:{value}", Value::from(name.as_str())))
                .collect();
            fields.insert(at.min(fields.len()), format!(r#""id":"{id}""#));
            let body = format!("{{{}}}", fields.join(","));
            let intent: PaymentIntent = serde_json::from_str(&body).unwrap();
            prop_assert_eq!(&intent.id, &id);
            prop_assert!(!intent.status.contains('\0'));
        }
    }

    #[test]
    fn an_unexpected_status_does_not_lose_the_response() {
        for (status, read) in [
            ("null", ""),
            ("5", ""),
            (r#"{"is": "Created"}"#, ""),
            (r#""Created", "status": "Captured""#, "Captured"),
            (r#""a\u0000""#, ""),
        ] {
            let body = format!(r#"{{"status": {status}, "id": "pi_1"}}"#);
            let intent: PaymentIntent = serde_json::from_str(&body).unwrap();
            assert_eq!((intent.id.as_str(), intent.status.as_str()), ("pi_1", read));
        }
    }

    #[test]
    fn an_intent_without_a_valid_id_is_rejected() {
        let long = format!(r#""{}""#, "x".repeat(201));
        for id in [
            r#""""#,
            r#""  ""#,
            r#""\t""#,
            r#""pi 1""#,
            r#""pi/1""#,
            r#""..""#,
            r#""pi_\u0000""#,
            r#""pi_ä""#,
            "null",
            "5",
            "[]",
            &long,
        ] {
            let body = format!(r#"{{"id": {id}, "status": "Created"}}"#);
            assert!(
                serde_json::from_str::<PaymentIntent>(&body).is_err(),
                "{id}"
            );
        }
        for body in [r#"{"status": "Created"}"#, "[]", "null", r#""pi_1""#] {
            assert!(
                serde_json::from_str::<PaymentIntent>(body).is_err(),
                "{body}"
            );
        }
    }

    #[test]
    fn times_that_postgres_cannot_read_and_unreadable_refunds_are_noticed() {
        let intent = |more: Value| -> PaymentIntent {
            let mut body = json!({"id": "pi_1", "status": "Captured"});
            body.as_object_mut()
                .unwrap()
                .extend(more.as_object().cloned().unwrap());
            serde_json::from_value(body).unwrap()
        };
        for at in ["0000-01-01T00:00:00Z", "0001-01-01T00:00:00+14:00"] {
            let read = intent(json!({"expireAt": at, "updatedAt": at}));
            assert_eq!((read.expire_at, read.updated_at), (None, None), "{at}");
        }
        for refunded in [json!({"value": 5}), json!(1.5), json!("5")] {
            assert!(intent(json!({"refundedAmount": refunded})).refunds_are_unreadable);
        }
        assert!(!intent(json!({"refundedAmount": 5})).refunds_are_unreadable);
        assert!(!intent(json!({"refundedAmount": null})).refunds_are_unreadable);
        assert!(!intent(json!({})).refunds_are_unreadable);
    }

    #[test]
    fn card_numbers_are_masked() {
        assert_eq!(masked("52000000****1005"), "52000000****1005");
        assert_eq!(masked("5200000000001005"), "520000******1005");
        assert_eq!(masked("5200 0000 0000 1005"), "5200 00** **** 1005");
    }

    #[test]
    fn an_unknown_status_and_missing_fields_are_accepted() {
        let intent: PaymentIntent =
            serde_json::from_str(r#"{"id": "pi_1", "status": "Voided", "new": {"field": 1}}"#)
                .unwrap();
        assert_eq!(intent.status, "Voided");
        assert_eq!(intent.payment(), None);
        assert_eq!(intent.attempts(), []);
    }

    #[test]
    fn one_malformed_field_does_not_lose_the_others() {
        let body = r#"{
            "id": "pi_1", "status": "Captured", "amount": {}, "totalAmount": {"value": 5, "currencyCode": "USD", "x": 1},
            "tipsAmount": null, "refundedAmount": null, "expireAt": "2026-01-01T00:00:00", "updatedAt": 5,
            "createdAt": "2026-01-01T00:00:00.1234567Z", "paymentEvents": {"eventType": 1},
            "metadata": {"a": null, "paymentLinkId": "plink_01kaz8v4wce7q8m6s5gq9nq2fd"},
            "paymentDetails": {"transactionId": "t", "card": {"last4PAN": 1005, "cardNumber": "5200********1005"}}
        }"#;
        let intent: PaymentIntent = serde_json::from_str(body).unwrap();
        assert!(intent.link_id().is_some());
        assert!(intent.created_at.is_some() && intent.updated_at.is_none());
        let total = intent.total_amount.as_ref().unwrap();
        assert_eq!((total.value, total.currency_code.as_str()), (5, "USD"));
        let payment = intent.payment().unwrap();
        assert_eq!(payment.transaction_id.as_deref(), Some("t"));
        assert_eq!(
            (payment.last4, payment.card_number.as_deref()),
            (None, Some("5200********1005"))
        );
    }

    #[test]
    fn failed_attempts_are_reported() {
        let body = r#"{"id": "pi_1", "status": "Captured", "paymentEvents": [
            {"eventType": "Created", "transactionDateTime": "2026-01-01T00:00:00Z"},
            {"eventType": "Declined", "transactionDateTime": "2026-01-01T00:01:00Z", "cardNumber": "44565300****1013"},
            {"eventType": "Captured"}]}"#;
        let intent: PaymentIntent = serde_json::from_str(body).unwrap();
        let declined = Attempt {
            event_type: "Declined".to_owned(),
            transaction_date_time: Some("2026-01-01T00:01:00Z".to_owned()),
        };
        assert_eq!(intent.attempts(), [declined]);
    }

    #[test]
    fn an_intent_with_null_in_every_field_is_accepted() {
        let body = r#"{"id": "pi_1", "status": "Created", "amount": null, "tipsAmount": null, "totalAmount": null,
            "refundedAmount": null, "expireAt": null, "createdAt": null, "updatedAt": null, "metadata": null,
            "paymentDetails": null, "paymentEvents": null}"#;
        assert!(serde_json::from_str::<PaymentIntent>(body).is_ok());
    }
}
