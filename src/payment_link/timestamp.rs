//! RFC 3339 in UTC, always with six decimal places, so that times sort as text. For `#[serde(with)]`.

use serde::{Deserialize, Deserializer, Serializer, de::Error as _, ser::Error as _};
use time::{
    OffsetDateTime, UtcOffset, format_description::BorrowedFormatItem, macros::format_description,
};

use super::parse_time;

const FORMAT: &[BorrowedFormatItem<'_>] =
    format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:6]Z");

pub(crate) fn serialize<S: Serializer>(at: &OffsetDateTime, to: S) -> Result<S::Ok, S::Error> {
    let text = at.to_offset(UtcOffset::UTC).format(FORMAT);
    to.serialize_str(&text.map_err(S::Error::custom)?)
}

/// The time as [`serialize`] writes it.
pub(crate) fn to_text(at: OffsetDateTime) -> String {
    let text = at.to_offset(UtcOffset::UTC).format(FORMAT);
    text.expect("a time has every part of the format")
}

pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<OffsetDateTime, D::Error> {
    let text = String::deserialize(from)?;
    parse_time(&text).ok_or_else(|| D::Error::custom("not an RFC 3339 time"))
}
