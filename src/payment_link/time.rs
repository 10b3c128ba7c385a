use time::{OffsetDateTime, UtcOffset, format_description::well_known::Rfc3339};

/// Parses an RFC 3339 time and converts it to UTC. `None` if it is not valid, or after the year 9999 in UTC.
#[must_use]
pub fn parse_time(text: &str) -> Option<OffsetDateTime> {
    OffsetDateTime::parse(text, &Rfc3339)
        .ok()?
        .checked_to_offset(UtcOffset::UTC)
}
