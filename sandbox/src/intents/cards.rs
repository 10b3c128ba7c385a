//! The test cards, and what is kept of any card: its mask.

/// How the issuer answers a card.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reaction {
    Approve,
    /// Approve, once the cardholder has passed a 3-D Secure challenge.
    Challenge,
    Decline,
}

/// A card as far as it is kept: never the number, never the CVV.
#[derive(Clone, Debug)]
pub(crate) struct Card {
    pub(crate) masked: String,
    pub(crate) last4: String,
    pub(crate) scheme: &'static str,
    /// `2029-12-31`: the last day of the month on the card, as Dojo's answers have it.
    pub(crate) expiry_date: String,
    pub(crate) holder: String,
    pub(crate) reaction: Reaction,
}

/// Dojo's published test cards: number, CVV, reaction.
const TEST_CARDS: [(&str, &str, Reaction); 3] = [
    ("5200000000001005", "020", Reaction::Approve),
    ("5200000000001096", "020", Reaction::Challenge),
    ("4456530000001013", "341", Reaction::Decline),
];

/// Whether this is the number of a published test card, and so nobody's. `number` has digits only.
pub(crate) fn is_test_card(number: &str) -> bool {
    TEST_CARDS.iter().any(|card| card.0 == number)
}

impl Card {
    /// Reads a card and forgets what must not be kept. `number` has digits only.
    pub(crate) fn presented(number: &str, cvv: &str, expiry_date: String, holder: String) -> Self {
        let reaction = TEST_CARDS
            .iter()
            .find(|card| (card.0, card.1) == (number, cvv))
            .map_or(Reaction::Decline, |card| card.2);
        let last4 = number
            .get(number.len().saturating_sub(4)..)
            .unwrap_or_default()
            .to_owned();
        // Eight leading digits may be kept of sixteen, six of anything shorter.
        let shown = if number.len() >= 16 { 8 } else { 6 };
        let first = number.get(..shown).unwrap_or_default();
        Self {
            masked: format!("{first}****{last4}"),
            last4,
            scheme: scheme(number),
            expiry_date,
            holder,
            reaction,
        }
    }

    /// One of the test cards with everything right, by its number; any other is declined.
    pub(crate) fn test_card(number: &str) -> Self {
        let cvv = TEST_CARDS
            .iter()
            .find(|card| card.0 == number)
            .map_or("000", |card| card.1);
        Self::presented(
            number,
            cvv,
            "2029-12-31".to_owned(),
            "Test Cardholder".to_owned(),
        )
    }

    /// The test card that the issuer answers in this way.
    pub(crate) fn that_will(reaction: Reaction) -> Self {
        let number = TEST_CARDS
            .iter()
            .find(|card| card.2 == reaction)
            .map_or("", |card| card.0);
        Self::test_card(number)
    }
}

/// The card scheme, by the ranges that the schemes publish.
fn scheme(number: &str) -> &'static str {
    let prefix = |digits: usize| number.get(..digits).and_then(|p| p.parse::<u32>().ok());
    match (prefix(1), prefix(2), prefix(4)) {
        (Some(4), ..) => "VISA",
        (_, Some(51..=55), _) | (_, _, Some(2221..=2720)) => "MASTERCARD",
        (_, Some(34 | 37), _) => "AMEX",
        (_, Some(50 | 56..=58 | 67), _) => "MAESTRO",
        (_, Some(36 | 38 | 39), _) => "DCI",
        (_, Some(60 | 64 | 65), _) => "DISCOVER",
        _ => "UNKNOWN",
    }
}

#[cfg(test)]
mod tests {
    use super::{Card, Reaction};

    fn reaction(number: &str, cvv: &str) -> Reaction {
        Card::presented(number, cvv, String::new(), String::new()).reaction
    }

    #[test]
    fn test_cards_react_as_published() {
        assert_eq!(reaction("5200000000001005", "020"), Reaction::Approve);
        assert_eq!(reaction("5200000000001096", "020"), Reaction::Challenge);
        assert_eq!(reaction("4456530000001013", "341"), Reaction::Decline);
    }

    #[test]
    fn a_wrong_cvv_or_any_other_card_is_declined() {
        assert_eq!(reaction("5200000000001005", "021"), Reaction::Decline);
        assert_eq!(reaction("4111111111111111", "123"), Reaction::Decline);
    }

    #[test]
    fn only_the_mask_is_kept() {
        let card = Card::test_card("4456530000001013");
        assert_eq!(card.masked, "44565300****1013");
        assert_eq!(card.last4, "1013");
        assert_eq!(card.scheme, "VISA");
    }
}
