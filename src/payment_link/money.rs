use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// An amount of money.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Money {
    /// The amount in ISO 4217 minor units: 1000 is 10.00 GBP. Limited to the integers that every JSON parser reads exactly
    /// (RFC 7493).
    #[schema(example = 1000, minimum = -9_007_199_254_740_991_i64, maximum = 9_007_199_254_740_991_i64)]
    pub value: i64,
    /// The ISO 4217 code of the currency.
    pub currency_code: Currency,
}

impl Money {
    /// The largest amount that every JSON parser reads exactly.
    pub const MAX: i64 = 9_007_199_254_740_991;

    /// The amount in major units, such as `10.00`. Both currencies have two decimal places (ISO 4217).
    #[must_use]
    pub fn decimal(self) -> String {
        let sign = if self.value < 0 { "-" } else { "" };
        let value = self.value.unsigned_abs();
        format!("{sign}{}.{:02}", value / 100, value % 100)
    }
}

/// The currencies that Dojo accepts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "UPPERCASE")]
pub enum Currency {
    /// Pound sterling.
    Gbp,
    /// Euro.
    Eur,
}

impl Currency {
    #[must_use]
    pub fn code(self) -> &'static str {
        match self {
            Self::Gbp => "GBP",
            Self::Eur => "EUR",
        }
    }
}

impl FromStr for Currency {
    type Err = UnknownCurrency;

    fn from_str(code: &str) -> Result<Self, Self::Err> {
        match code {
            "GBP" => Ok(Self::Gbp),
            "EUR" => Ok(Self::Eur),
            _ => Err(UnknownCurrency),
        }
    }
}

#[derive(Debug, thiserror::Error)]
#[error("the currency is neither GBP nor EUR")]
pub struct UnknownCurrency;

impl fmt::Display for Money {
    /// `10.00 GBP`, for people to read.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.decimal(), self.currency_code.code())
    }
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
    fn is_displayed_with_two_decimal_places() {
        assert_eq!(gbp(1000).to_string(), "10.00 GBP");
        assert_eq!(gbp(5).to_string(), "0.05 GBP");
        assert_eq!(gbp(-350).to_string(), "-3.50 GBP");
        assert_eq!(gbp(i64::MIN).to_string(), "-92233720368547758.08 GBP");
    }

    #[test]
    fn fractions_of_a_penny_and_other_currencies_are_rejected() {
        for body in [
            r#"{"value": 10.5, "currencyCode": "GBP"}"#,
            r#"{"value": 9223372036854775808, "currencyCode": "GBP"}"#,
            r#"{"value": 10, "currencyCode": "USD"}"#,
            r#"{"value": 10, "currencyCode": "gbp"}"#,
            r#"{"value": 10}"#,
        ] {
            assert!(serde_json::from_str::<Money>(body).is_err(), "{body}");
        }
    }

    proptest! {
        #[test]
        fn is_read_back_from_json_unchanged(value: i64, euro: bool) {
            let money = Money {
                value,
                currency_code: if euro { Currency::Eur } else { Currency::Gbp },
            };
            let json = serde_json::to_string(&money).unwrap();
            prop_assert_eq!(serde_json::from_str::<Money>(&json).unwrap(), money);
        }
    }
}
