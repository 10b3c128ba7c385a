use serde::{Deserialize, Deserializer, de::DeserializeOwned};
use serde_json::{Map, Value};
use time::OffsetDateTime;

use crate::payment_link::{
    Attempt, Capture, NewPaymentLink, Payment, PaymentLinkId, ReportedAmount, Status, parse_time,
    recovery::Found,
};

/// A payment intent as Dojo answers it: the parts that this service keeps.
///
/// Only its id is required. Anything else that is missing, `null` or of another form than documented is `None`: a
/// surprise in one field must not lose the answer to a creation, which would then have to be searched for.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PaymentIntent {
    /// `pi_…`, in the sandbox `pi_sandbox_…`.
    pub id: String,
    /// Dojo's word for where it stands; not always one that we know.
    #[serde(default)]
    pub status: String,
    /// Without tips, service charge and cashback.
    #[serde(default, deserialize_with = "lenient")]
    pub amount: Option<ReportedAmount>,
    /// The tip.
    #[serde(default, deserialize_with = "lenient")]
    pub tips_amount: Option<ReportedAmount>,
    /// The whole of it.
    #[serde(default, deserialize_with = "lenient")]
    pub total_amount: Option<ReportedAmount>,
    /// Minor units.
    #[serde(default, deserialize_with = "lenient")]
    pub refunded_amount: Option<i64>,
    /// Its captures, if Dojo tells them.
    #[serde(default, deserialize_with = "lenient_captures")]
    pub captures: Option<Vec<Capture>>,
    /// When it is voided if nobody pays.
    #[serde(default, deserialize_with = "lenient_time")]
    pub expire_at: Option<OffsetDateTime>,
    /// When it was created.
    #[serde(default, deserialize_with = "lenient_time")]
    pub created_at: Option<OffsetDateTime>,
    /// When anything about it last changed: the version of this answer.
    #[serde(default, deserialize_with = "lenient_time")]
    pub updated_at: Option<OffsetDateTime>,
    /// What was sent along with its creation.
    #[serde(default, deserialize_with = "lenient")]
    metadata: Option<Map<String, Value>>,
    #[serde(default, deserialize_with = "lenient")]
    payment_details: Option<PaymentDetails>,
    #[serde(default, deserialize_with = "lenient")]
    payment_events: Option<Vec<PaymentEvent>>,
}

/// Reads what can be read.
fn lenient<'de, D: Deserializer<'de>, T: DeserializeOwned>(
    field: D,
) -> Result<Option<T>, D::Error> {
    let value = Value::deserialize(field)?;
    Ok(serde_json::from_value(value).ok())
}

fn lenient_time<'de, D: Deserializer<'de>>(field: D) -> Result<Option<OffsetDateTime>, D::Error> {
    let text: Option<String> = lenient(field)?;
    Ok(text.as_deref().and_then(parse_time))
}

/// A capture as Dojo answers it. Without an amount it is none that could be counted.
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

fn lenient_captures<'de, D: Deserializer<'de>>(field: D) -> Result<Option<Vec<Capture>>, D::Error> {
    let captures: Option<Vec<CaptureDetails>> = lenient(field)?;
    Ok(captures.map(|captures| {
        captures
            .into_iter()
            .map(|capture| Capture {
                id: capture.id,
                amount: capture.amount,
                tips_amount: capture.tips_amount,
                status: capture.status,
                created_at: capture.created_at,
            })
            .collect()
    }))
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
    /// Its status, if it is one that we know.
    #[must_use]
    pub fn known_status(&self) -> Option<Status> {
        Status::from_dojo(&self.status)
    }

    /// The link that its metadata names.
    #[must_use]
    pub fn link_id(&self) -> Option<PaymentLinkId> {
        let id = self
            .metadata
            .as_ref()?
            .get(NewPaymentLink::ID_METADATA_KEY)?;
        id.as_str()?.parse().ok()
    }

    /// What the rules of recovery need to know about it.
    #[must_use]
    pub fn found(&self) -> Found {
        Found {
            id: self.id.clone(),
            status: self.known_status(),
            created_at: self.created_at,
        }
    }

    /// The payment, once it is final.
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

    /// The tries that were declined or challenged.
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

/// A card number as Dojo writes it, masked already; and masked here should it ever come whole. PCI DSS
/// allows to show the first six or eight digits and the last four at most.
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
    use super::*;

    #[test]
    fn a_card_number_never_stays_whole() {
        assert_eq!(masked("52000000****1005"), "52000000****1005");
        assert_eq!(masked("5200000000001005"), "520000******1005");
        assert_eq!(masked("5200 0000 0000 1005"), "5200 00** **** 1005");
    }

    #[test]
    fn reads_an_intent_with_nothing_but_its_id_and_an_unknown_status() {
        let intent: PaymentIntent =
            serde_json::from_str(r#"{"id": "pi_1", "status": "Voided", "new": {"field": 1}}"#)
                .unwrap();
        assert_eq!(intent.status, "Voided");
        assert_eq!(intent.payment(), None);
        assert_eq!(intent.attempts(), []);
    }

    #[test]
    fn one_odd_field_does_not_lose_the_others() {
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
    fn tells_the_tries_that_did_not_go_through() {
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
    fn reads_an_intent_that_is_null_throughout() {
        let body = r#"{"id": "pi_1", "status": "Created", "amount": null, "tipsAmount": null, "totalAmount": null,
            "refundedAmount": null, "expireAt": null, "createdAt": null, "updatedAt": null, "metadata": null,
            "paymentDetails": null, "paymentEvents": null}"#;
        assert!(serde_json::from_str::<PaymentIntent>(body).is_ok());
    }
}
