//! Test cards, and what the sandbox stores of a card.

/// The issuer's response to a card.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum IssuerDecision {
    Approve,
    /// Approve after the cardholder has passed a 3-D Secure challenge.
    Challenge,
    Decline,
}

/// What is stored of a card: never the number, never the CVV.
#[derive(Clone, Debug)]
pub(crate) struct Card {
    pub(crate) masked: String,
    pub(crate) last4: String,
    pub(crate) scheme: &'static str,
    /// The last day of the card's expiry month, such as `2029-12-31`, as in Dojo's responses.
    pub(crate) expiry_date: String,
    pub(crate) holder: String,
    pub(crate) decision: IssuerDecision,
}

/// What kind of account every card draws on.
pub(crate) const FUNDING_TYPE: &str = "Debit";

/// Dojo's published test cards: number, CVV and the issuer's decision.
const TEST_CARDS: [(&str, &str, IssuerDecision); 3] = [
    ("5200000000001005", "020", IssuerDecision::Approve),
    ("5200000000001096", "020", IssuerDecision::Challenge),
    ("4456530000001013", "341", IssuerDecision::Decline),
];

/// Whether `number`, in digits only, belongs to a published test card, and so to no person.
pub(crate) fn is_test_card(number: &str) -> bool {
    TEST_CARDS.iter().any(|card| card.0 == number)
}

impl Card {
    /// Keeps only what may be stored. `number` is in digits only.
    pub(crate) fn new(number: &str, cvv: &str, expiry_date: String, holder: String) -> Self {
        let decision = TEST_CARDS
            .iter()
            .find(|card| (card.0, card.1) == (number, cvv))
            .map_or(IssuerDecision::Decline, |card| card.2);
        let last4 = number
            .get(number.len().saturating_sub(4)..)
            .unwrap_or_default()
            .to_owned();
        // Of 16 digits, the first 8 may be stored; of shorter numbers, the first 6.
        let shown = if number.len() >= 16 { 8 } else { 6 };
        let first = number.get(..shown).unwrap_or_default();
        Self {
            masked: format!("{first}****{last4}"),
            last4,
            scheme: scheme(number),
            expiry_date,
            holder,
            decision,
        }
    }

    /// The number of a card that demands a challenge. Only a published test card does, so its number needn't be stored.
    pub(crate) fn challenged_number(&self) -> Option<&'static str> {
        TEST_CARDS
            .iter()
            .find(|card| card.2 == self.decision && card.2 == IssuerDecision::Challenge)
            .map(|card| card.0)
    }

    /// A test card with the right CVV. Any other number is declined.
    pub(crate) fn test_card(number: &str) -> Self {
        let cvv = TEST_CARDS
            .iter()
            .find(|card| card.0 == number)
            .map_or("000", |card| card.1);
        Self::new(
            number,
            cvv,
            "2029-12-31".to_owned(),
            "Test Cardholder".to_owned(),
        )
    }

    /// The test card with this decision.
    pub(crate) fn with_decision(decision: IssuerDecision) -> Self {
        let number = TEST_CARDS
            .iter()
            .find(|card| card.2 == decision)
            .map_or("", |card| card.0);
        Self::test_card(number)
    }
}

/// The card scheme, by the number ranges that the schemes publish.
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
    use super::{Card, IssuerDecision, TEST_CARDS};

    fn decision_of(number: &str, cvv: &str) -> IssuerDecision {
        Card::new(number, cvv, String::new(), String::new()).decision
    }

    #[test]
    fn test_cards_behave_as_published() {
        assert_eq!(
            decision_of("5200000000001005", "020"),
            IssuerDecision::Approve
        );
        assert_eq!(
            decision_of("5200000000001096", "020"),
            IssuerDecision::Challenge
        );
        assert_eq!(
            decision_of("4456530000001013", "341"),
            IssuerDecision::Decline
        );
    }

    #[test]
    fn a_wrong_cvv_or_any_other_card_is_declined() {
        assert_eq!(
            decision_of("5200000000001005", "021"),
            IssuerDecision::Decline
        );
        assert_eq!(
            decision_of("4111111111111111", "123"),
            IssuerDecision::Decline
        );
    }

    #[test]
    fn a_challenged_card_has_a_published_number() {
        for (number, cvv, _) in TEST_CARDS {
            let card = Card::new(number, cvv, String::new(), String::new());
            let is_challenged = card.decision == IssuerDecision::Challenge;
            assert_eq!(card.challenged_number(), is_challenged.then_some(number));
        }
        let other = Card::new("4111111111111111", "020", String::new(), String::new());
        assert_eq!(other.challenged_number(), None);
    }

    #[test]
    fn only_the_masked_number_is_stored() {
        let card = Card::test_card("4456530000001013");
        assert_eq!(card.masked, "44565300****1013");
        assert_eq!(card.last4, "1013");
        assert_eq!(card.scheme, "VISA");
    }
}
