//! Amounts as people type and read them: in pounds or euros, with two decimal places. Never as floating-point numbers.

use crate::payment_link::{Currency, Money};

/// What [`parse`] accepts, for messages.
pub(super) const FORM: &str = "must be an amount such as 24.50";

fn symbol(currency: Currency) -> char {
    match currency {
        Currency::Gbp => '£',
        Currency::Eur => '€',
    }
}

/// The amount with its currency's symbol: `£1,234.50`.
pub(super) fn show(money: Money) -> String {
    let sign = if money.value < 0 { "−" } else { "" };
    format!(
        "{sign}{}{}",
        symbol(money.currency_code),
        with_commas(money.value)
    )
}

/// The amount as the value of a field: `1234.50`.
pub(super) fn field(money: Money) -> String {
    let value = money.value.unsigned_abs();
    format!("{}.{:02}", value / 100, value % 100)
}

fn with_commas(value: i64) -> String {
    let value = value.unsigned_abs();
    let whole = (value / 100).to_string();
    let mut text = String::new();
    for (place, digit) in whole.chars().enumerate() {
        if place > 0 && (whole.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    format!("{text}.{:02}", value % 100)
}

/// Reads an amount in this currency, in minor units: `24`, `24.50`, `£1,234.50`. `None` for everything that could mean
/// something else, such as `24.5` or `24,50`.
pub(super) fn parse(text: &str, currency: Currency) -> Option<i64> {
    let (given, value) = split_symbol(text.trim())?;
    if given.is_some_and(|given| given != currency) {
        return None;
    }
    minor_units(value)
}

/// Reads an amount in any currency, for a search. Whole amounts need a symbol: a number alone may be anything.
pub(super) fn parse_any(text: &str) -> Option<i64> {
    let (symbol, value) = split_symbol(text.trim())?;
    (symbol.is_some() || value.contains('.')).then(|| minor_units(value))?
}

/// Takes the symbol off.
fn split_symbol(text: &str) -> Option<(Option<Currency>, &str)> {
    for currency in [Currency::Gbp, Currency::Eur] {
        if let Some(rest) = text.strip_prefix(symbol(currency)) {
            return Some((Some(currency), rest.trim_start()));
        }
    }
    (!text.is_empty()).then_some((None, text))
}

fn minor_units(text: &str) -> Option<i64> {
    let (whole, pence) = match text.split_once('.') {
        Some((whole, pence)) if pence.len() == 2 => (whole, pence),
        Some(_) => return None,
        None => (text, "00"),
    };
    let whole = digits(&without_commas(whole)?)?.checked_mul(100)?;
    whole
        .checked_add(digits(pence)?)
        .filter(|value| *value <= Money::MAX)
}

/// The digits without commas, which must be before each group of three digits if there are any.
fn without_commas(text: &str) -> Option<String> {
    if !text.contains(',') {
        return Some(text.to_owned());
    }
    let groups: Vec<_> = text.split(',').collect();
    let is_grouped = groups.iter().skip(1).all(|group| group.len() == 3)
        && (1..=3).contains(&groups.first().map_or(0, |group| group.len()));
    is_grouped.then(|| groups.concat())
}

fn digits(text: &str) -> Option<i64> {
    // `parse` alone would accept a sign.
    (!text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()))
        .then(|| text.parse().ok())?
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn gbp(value: i64) -> Money {
        Money {
            value,
            currency_code: Currency::Gbp,
        }
    }

    #[test]
    fn amounts_are_shown_with_symbol_and_commas() {
        for (value, shown) in [
            (0, "£0.00"),
            (5, "£0.05"),
            (2450, "£24.50"),
            (99_999, "£999.99"),
            (100_000, "£1,000.00"),
            (123_456_789, "£1,234,567.89"),
            (-350, "−£3.50"),
        ] {
            assert_eq!(show(gbp(value)), shown);
        }
    }

    #[test]
    fn amounts_are_read_as_people_write_them() {
        for (text, value) in [
            ("24.50", 2450),
            (" 24.50 ", 2450),
            ("24", 2400),
            ("£24.50", 2450),
            ("£ 24.50", 2450),
            ("1,234.50", 123_450),
            ("£1,234,567.89", 123_456_789),
            ("0.01", 1),
            ("007.00", 700),
            ("90071992547409.91", Money::MAX),
        ] {
            assert_eq!(parse(text, Currency::Gbp), Some(value), "{text}");
        }
    }

    #[test]
    fn everything_else_is_rejected() {
        for text in [
            "",
            "£",
            ".",
            ".50",
            "24.",
            "24.5",
            "24.500",
            "24,50",
            "1,23.00",
            "1234,567.00",
            ",123.00",
            "1,,234.00",
            "-1.00",
            "+1.00",
            "1.+1",
            "1e3",
            "0x10",
            "24 50",
            "24.50 GBP",
            "€24.50",
            "££24.50",
            "24.50£",
            "NaN",
            "inf",
            "٢٤.٥٠",
            "90071992547409.92",
            "92233720368547758.08",
            "99999999999999999999999",
        ] {
            assert_eq!(parse(text, Currency::Gbp), None, "{text}");
        }
        assert_eq!(parse("€24.50", Currency::Eur), Some(2450));
    }

    #[test]
    fn a_number_alone_is_no_amount_to_search_for() {
        assert_eq!(parse_any("24.50"), Some(2450));
        assert_eq!(parse_any("£24"), Some(2400));
        assert_eq!(parse_any("€24"), Some(2400));
        assert_eq!(parse_any("24"), None);
        assert_eq!(parse_any("1.2.3"), None);
    }

    proptest! {
        #[test]
        fn what_is_shown_is_read_back(value in 0..=Money::MAX, euro: bool) {
            let currency_code = if euro { Currency::Eur } else { Currency::Gbp };
            let money = Money { value, currency_code };
            prop_assert_eq!(parse(&show(money), currency_code), Some(value));
            prop_assert_eq!(parse(&field(money), currency_code), Some(value));
            prop_assert_eq!(parse_any(&show(money)), Some(value));
        }

        #[test]
        fn reading_never_panics_and_never_goes_beyond_the_limit(text in "\\PC{0,24}") {
            for value in [parse(&text, Currency::Gbp), parse_any(&text)].into_iter().flatten() {
                prop_assert!((0..=Money::MAX).contains(&value));
            }
        }

        #[test]
        fn a_number_with_two_decimal_places_is_read_exactly(whole in 0..90_071_992_547_409_i64, pence in 0..100_i64) {
            let text = format!("{whole}.{pence:02}");
            prop_assert_eq!(parse(&text, Currency::Gbp), Some(whole * 100 + pence));
        }
    }
}
