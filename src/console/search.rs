//! What somebody who types something into the search box may be looking for.

use super::amount;
use crate::payment_link::{OperationId, PaymentLinkId, ShortCode};

/// A way to read a search.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum By {
    /// The id of a link, an operation or an intent.
    Id,
    /// The code of a short address.
    Code,
    /// The start of a reference.
    Reference,
    /// The customer's email address.
    Email,
    /// The last four digits of the card.
    Card,
    Amount,
}

impl By {
    const ALL: [Self; 6] = [
        Self::Id,
        Self::Code,
        Self::Reference,
        Self::Email,
        Self::Card,
        Self::Amount,
    ];

    /// Its name in URLs.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Id => "id",
            Self::Code => "code",
            Self::Reference => "reference",
            Self::Email => "email",
            Self::Card => "card",
            Self::Amount => "amount",
        }
    }

    pub(super) fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|by| by.as_str() == name)
    }

    /// What it means, after "Links whose" or "Search instead for links whose".
    pub(super) fn meaning(self) -> &'static str {
        match self {
            Self::Id => "id is",
            Self::Code => "short address ends with",
            Self::Reference => "reference starts with",
            Self::Email => "customer’s email address is",
            Self::Card => "card ends with",
            Self::Amount => "amount is",
        }
    }
}

/// What matters of the text: people paste whole addresses.
pub(super) fn essence(text: &str) -> &str {
    let text = text.trim();
    if !text.contains("://") {
        return text;
    }
    let path = text.split(['?', '#']).next().unwrap_or(text);
    path.trim_end_matches('/')
        .rsplit('/')
        .next()
        .unwrap_or(text)
}

/// The ways to read this text, the most likely one first. At least one, unless there is no text.
pub(super) fn ways(text: &str) -> Vec<By> {
    let is_id = text.parse::<PaymentLinkId>().is_ok()
        || text.parse::<OperationId>().is_ok()
        || text.starts_with("pi_");
    let is_card = text.len() == 4 && text.bytes().all(|byte| byte.is_ascii_digit());
    let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let is_amount = amount::parse_any(text).is_some();
    [
        (is_id, By::Id),
        (text.parse::<ShortCode>().is_ok(), By::Code),
        (text.contains('@'), By::Email),
        (is_card, By::Card),
        (is_amount, By::Amount),
        (!text.is_empty(), By::Reference),
        // Somebody may leave out the pence.
        (is_number, By::Amount),
    ]
    .into_iter()
    .filter_map(|(applies, by)| applies.then_some(by))
    .collect()
}

/// The amount that is searched for, in minor units.
pub(super) fn amount_of(text: &str) -> Option<i64> {
    amount::parse_any(text).or_else(|| amount::parse_any(&format!("{text}.00")))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_search_is_read_as_what_it_looks_like() {
        use By::{Amount, Card, Code, Email, Id, Reference};
        for (text, expected) in [
            (
                "plink_01m81mqpmrf8384nj77tj0t0e4",
                &[Id, Reference] as &[By],
            ),
            ("op_01kaz8v4wce7q8m6s5gq9nq2fd", &[Id, Reference]),
            ("pi_CggWPWfehUWgVNnDdsdLMQ", &[Id, Reference]),
            ("7m3k9x2c5v8b1n4q", &[Code, Reference]),
            ("ann@example.com", &[Email, Reference]),
            ("1005", &[Card, Reference, Amount]),
            ("24.50", &[Amount, Reference]),
            ("£24", &[Amount, Reference]),
            ("Order 236", &[Reference]),
            ("236", &[Reference, Amount]),
            ("", &[]),
        ] {
            assert_eq!(ways(text), expected, "{text}");
        }
        assert_eq!(amount_of("236"), Some(23_600));
        assert_eq!(amount_of("£24.50"), Some(2450));
    }

    #[test]
    fn addresses_are_reduced_to_what_they_end_with() {
        for (text, expected) in [
            (" Order 236 ", "Order 236"),
            (
                "https://pay.example.com/p/7m3k9x2c5v8b1n4q",
                "7m3k9x2c5v8b1n4q",
            ),
            ("https://pay.dojo.tech/checkout/pi_1/?lang=en", "pi_1"),
            ("2026/11/A", "2026/11/A"),
        ] {
            assert_eq!(essence(text), expected);
        }
    }

    #[test]
    fn every_way_has_a_name() {
        for by in By::ALL {
            assert_eq!(By::named(by.as_str()), Some(by));
        }
    }

    proptest! {
        #[test]
        fn reading_a_search_never_panics(text in "\\PC{0,40}") {
            let essence = essence(&text);
            prop_assert_eq!(ways(essence).is_empty(), essence.is_empty());
            let _ = amount_of(essence);
        }
    }
}
