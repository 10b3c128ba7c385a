//! [`super::timestamp`] for a time that may be missing. For `#[serde(with)]`.

use serde::{Deserialize, Deserializer, Serializer, de::Error as _};
use time::OffsetDateTime;

use super::{parse_time, timestamp};

#[expect(clippy::ref_option, reason = "serde passes a reference to the field")]
pub(crate) fn serialize<S: Serializer>(
    at: &Option<OffsetDateTime>,
    to: S,
) -> Result<S::Ok, S::Error> {
    match at {
        Some(at) => timestamp::serialize(at, to),
        None => to.serialize_none(),
    }
}

pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
    from: D,
) -> Result<Option<OffsetDateTime>, D::Error> {
    let text = Option::<String>::deserialize(from)?;
    text.map(|text| parse_time(&text).ok_or_else(|| D::Error::custom("not an RFC 3339 time")))
        .transpose()
}
