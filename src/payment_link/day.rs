//! A date without a time, as `2026-01-31`. For `#[serde(with)]`.

use serde::{Deserialize, Deserializer, Serializer, de::Error as _, ser::Error as _};
use time::{Date, format_description::BorrowedFormatItem, macros::format_description};

const FORMAT: &[BorrowedFormatItem<'_>] = format_description!("[year]-[month]-[day]");

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde passes a reference to the field"
)]
pub(crate) fn serialize<S: Serializer>(day: &Date, to: S) -> Result<S::Ok, S::Error> {
    let text = day.format(FORMAT);
    to.serialize_str(&text.map_err(S::Error::custom)?)
}

pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Date, D::Error> {
    let text = String::deserialize(from)?;
    parse_day(&text).ok_or_else(|| D::Error::custom("not a date such as 2026-01-31"))
}

/// Parses a date of RFC 3339, such as `2026-01-31`. `None` if it is not valid.
#[must_use]
pub fn parse_day(text: &str) -> Option<Date> {
    // Such a date has no sign, and Postgres doesn't know a year 0.
    let date = Date::parse(text, FORMAT).ok()?;
    (text.len() == 10 && date.year() >= 1).then_some(date)
}
