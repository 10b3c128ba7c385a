use std::collections::BTreeMap;

use serde::Deserialize;
use time::OffsetDateTime;

use crate::payment_link::{
    Attempt, Currency, Money, NewPaymentLink, Payment, PaymentLinkId, Status, recovery::Found,
};

/// A payment intent as Dojo answers it: the parts that this service keeps. Anything that Dojo may leave
/// out or add is optional or passed over, so that a new field or word never loses the rest.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PaymentIntent {
    /// `pi_…`, in the sandbox `pi_sandbox_…`.
    pub id: String,
    /// Dojo's word for where it stands; not always one that we know.
    pub status: String,
    /// Without tips, service charge and cashback.
    pub amount: Option<Amount>,
    /// The tip.
    pub tips_amount: Option<Amount>,
    /// The whole of it.
    pub total_amount: Option<Amount>,
    /// Minor units.
    pub refunded_amount: Option<i64>,
    /// When it was created.
    #[serde(default, with = "time::serde::rfc3339::option")]
    pub created_at: Option<OffsetDateTime>,
    /// When anything about it last changed: the version of this answer.
    #[serde(default, with = "time::serde::rfc3339::option")]
    pub updated_at: Option<OffsetDateTime>,
    /// What was sent along with its creation.
    pub metadata: Option<BTreeMap<String, String>>,
    /// When it is voided if nobody pays.
    #[serde(default, with = "time::serde::rfc3339::option")]
    pub expire_at: Option<OffsetDateTime>,
    payment_details: Option<PaymentDetails>,
    #[serde(default)]
    payment_events: Option<Vec<PaymentEvent>>,
}

/// An amount as Dojo answers it, in whatever currency: one that we did not ask for has to be noticed, and so
/// must not make the whole answer unreadable.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Amount {
    /// Minor units.
    pub value: i64,
    /// ISO 4217 code.
    pub currency_code: String,
}

impl Amount {
    /// Whether it is this amount of money.
    #[must_use]
    pub fn is(&self, money: Money) -> bool {
        self.value == money.value
            && self.currency_code.parse::<Currency>().ok() == Some(money.currency_code)
    }
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct PaymentDetails {
    transaction_id: Option<String>,
    transaction_date_time: Option<String>,
    auth_code: Option<String>,
    card: Option<Card>,
}

#[derive(Debug, Clone, Deserialize)]
struct Card {
    #[serde(rename = "cardNumber")]
    number: Option<String>,
    #[serde(rename = "last4PAN")]
    last4: Option<String>,
    #[serde(rename = "cardType")]
    scheme: Option<String>,
    #[serde(rename = "cardFundingType")]
    funding_type: Option<String>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct PaymentEvent {
    event_type: Option<String>,
    created_at: Option<String>,
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
        self.metadata
            .as_ref()?
            .get(NewPaymentLink::ID_METADATA_KEY)?
            .parse()
            .ok()
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
                        created_at: event.created_at.clone(),
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
}
