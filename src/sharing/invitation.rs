//! A link as a text that asks the customer to pay.

use std::borrow::Cow;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use crate::payment_link::{Currency, Money, PaymentLink};

/// What may stay as it is in a URL's query (RFC 3986, unreserved characters).
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

/// A text that asks a customer to pay, and the same as links that open a program with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invitation {
    pub subject: String,
    pub text: String,
    /// Opens a new email (RFC 6068).
    pub mailto: String,
    /// Opens a new text message (RFC 5724).
    pub sms: String,
    /// Opens a new message in WhatsApp.
    pub whatsapp: String,
}

impl Invitation {
    /// Asks to pay `link` at `url`. If the link has the customer's email address or phone number, messages are addressed to it.
    #[must_use]
    pub fn new(link: &PaymentLink, url: &str) -> Self {
        let terms = &link.terms;
        let subject = format!("Payment request: {}", one_line(&terms.reference));
        let amount = price(link.total_amount.unwrap_or(link.amount));
        let what = match terms.description.as_deref().map(one_line) {
            Some(description) if !description.is_empty() => {
                format!("{description} ({})", one_line(&terms.reference))
            }
            _ => one_line(&terms.reference).into_owned(),
        };
        let text = format!("Please pay {amount} for {what}:\n{url}");
        let customer = terms.customer.as_ref();
        let email = customer.and_then(|customer| customer.email_address.as_deref());
        let phone = customer.and_then(|customer| customer.phone_number.as_deref());
        Self {
            mailto: format!(
                "mailto:{}?subject={}&body={}",
                escape(email.unwrap_or_default()).replace("%40", "@"),
                escape(&subject),
                // RFC 6068: line breaks are CRLF.
                escape(&text.replace('\n', "\r\n"))
            ),
            sms: format!(
                "sms:{}?body={}",
                phone.and_then(global_number).unwrap_or_default(),
                escape(&text)
            ),
            whatsapp: format!(
                "https://wa.me/{}?text={}",
                phone
                    .and_then(global_number)
                    .unwrap_or_default()
                    .trim_start_matches('+'),
                escape(&text)
            ),
            subject,
            text,
        }
    }
}

fn escape(text: &str) -> String {
    utf8_percent_encode(text, ESCAPED).to_string()
}

/// A text without line breaks and other control characters.
fn one_line(text: &str) -> Cow<'_, str> {
    if text.contains(char::is_control) {
        let words = text.split(|letter: char| letter.is_control() || letter == ' ');
        let words: Vec<_> = words.filter(|word| !word.is_empty()).collect();
        Cow::Owned(words.join(" "))
    } else {
        Cow::Borrowed(text)
    }
}

/// A phone number with its country code, in digits after a `+`. `None` if it has no country code, because it then means
/// different phones in different countries, or if it has a zero in brackets, which is dialed only within a country.
fn global_number(number: &str) -> Option<String> {
    let digits = number.trim().strip_prefix('+')?;
    if digits.contains("(0)") {
        return None;
    }
    let digits: String = digits.chars().filter(char::is_ascii_digit).collect();
    (8..=15)
        .contains(&digits.len())
        .then(|| format!("+{digits}"))
}

/// An amount as customers write it: `£24.50`.
#[must_use]
pub fn price(amount: Money) -> String {
    let symbol = match amount.currency_code {
        Currency::Gbp => '£',
        Currency::Eur => '€',
    };
    let value = amount.value.unsigned_abs();
    format!("{symbol}{}.{:02}", value / 100, value % 100)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use url::Url;

    use super::*;

    #[test]
    fn only_numbers_with_a_country_code_are_addressed() {
        for (number, global) in [
            ("+44 7700 900123", Some("+447700900123")),
            ("+353 (0)85-012-3456", None),
            (" +1.202.555.0143 ", Some("+12025550143")),
            ("07700 900123", None),
            ("+44", None),
            ("+1234567890123456", None),
            ("ask me", None),
        ] {
            assert_eq!(global_number(number).as_deref(), global, "{number}");
        }
    }

    #[test]
    fn a_price_has_the_symbol_of_its_currency() {
        let price = |value, currency_code| {
            super::price(Money {
                value,
                currency_code,
            })
        };
        assert_eq!(price(2450, Currency::Gbp), "£24.50");
        assert_eq!(price(5, Currency::Eur), "€0.05");
    }

    #[test]
    fn line_breaks_become_spaces() {
        assert_eq!(one_line("a\r\nBcc: b\t c"), "a Bcc: b c");
    }

    proptest! {
        #[test]
        fn whatever_is_escaped_is_one_parameter(text in "\\PC*") {
            let url = Url::parse(&format!("mailto:?body={}", escape(&text))).unwrap();
            let pairs: Vec<_> = url.query_pairs().into_owned().collect();
            prop_assert_eq!(pairs, [("body".to_owned(), text)]);
        }
    }
}
