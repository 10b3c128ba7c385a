//! Times in JSON for Postgres, whose `timestamptz` has microseconds.
//!
//! Postgres would round the seven digits that Dojo writes, and a time that is rounded up makes the same response look older
//! when it is read again. So they are truncated, as sqlx does for its parameters.

use serde::Serializer;
use time::OffsetDateTime;

pub(super) fn truncate(at: OffsetDateTime) -> OffsetDateTime {
    at.replace_nanosecond(at.nanosecond() / 1000 * 1000)
        .unwrap_or(at)
}

#[expect(clippy::ref_option, reason = "serde passes the field like this")]
pub(super) fn serialize_option<S: Serializer>(
    at: &Option<OffsetDateTime>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    time::serde::rfc3339::option::serialize(&at.map(truncate), serializer)
}
