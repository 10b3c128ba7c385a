//! Amounts in minor units.

use serde::{Deserialize, Serialize};

/// `{"value": 1000, "currencyCode": "GBP"}` is ten pounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Money {
    pub(crate) value: i64,
    pub(crate) currency_code: Currency,
}

/// The two currencies that Dojo accepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Currency {
    #[serde(rename = "GBP")]
    Gbp,
    #[serde(rename = "EUR")]
    Eur,
}

impl Money {
    pub(crate) fn with_value(self, value: i64) -> Self {
        Self { value, ..self }
    }
}

impl std::fmt::Display for Money {
    /// `£1,234.50`
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let sign = if self.value < 0 { "-" } else { "" };
        let symbol = match self.currency_code {
            Currency::Gbp => '£',
            Currency::Eur => '€',
        };
        let minor = self.value.unsigned_abs();
        let digits = (minor / 100).to_string();
        write!(f, "{sign}{symbol}")?;
        for (position, digit) in digits.chars().enumerate() {
            if position > 0 && (digits.len() - position).is_multiple_of(3) {
                f.write_str(",")?;
            }
            write!(f, "{digit}")?;
        }
        write!(f, ".{:02}", minor % 100)
    }
}

#[cfg(test)]
mod tests {
    use super::{Currency, Money};

    fn pounds(value: i64) -> String {
        Money {
            value,
            currency_code: Currency::Gbp,
        }
        .to_string()
    }

    #[test]
    fn displays_as_people_write_it() {
        assert_eq!(pounds(1), "£0.01");
        assert_eq!(pounds(1000), "£10.00");
        assert_eq!(pounds(123_456), "£1,234.56");
        assert_eq!(pounds(100_000_000), "£1,000,000.00");
        assert_eq!(pounds(-250), "-£2.50");
        assert_eq!(
            Money {
                value: 999,
                currency_code: Currency::Eur
            }
            .to_string(),
            "€9.99"
        );
    }
}
