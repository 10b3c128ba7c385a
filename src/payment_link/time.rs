use time::{OffsetDateTime, UtcOffset, format_description::well_known::Rfc3339};

/// Reads a time as RFC 3339 has it, as UTC. `None` for what is no time, or lies beyond the year 9999 in UTC.
#[must_use]
pub fn parse_time(text: &str) -> Option<OffsetDateTime> {
    OffsetDateTime::parse(text, &Rfc3339)
        .ok()?
        .checked_to_offset(UtcOffset::UTC)
}
