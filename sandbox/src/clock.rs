//! The sandbox's clock: real time plus an offset that tests can increase.

use std::sync::{Mutex, PoisonError};

use serde::{Serialize, Serializer};
use time::format_description::FormatItem;
use time::format_description::well_known::Rfc3339;
use time::macros::format_description;
use time::{Duration, OffsetDateTime};

/// A time in Dojo's format: UTC with seven fractional digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Timestamp(OffsetDateTime);

/// The smallest difference that seven fractional digits can show.
const TICK: Duration = Duration::nanoseconds(100);

const SEVEN_DIGITS: &[FormatItem<'_>] =
    format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:7]Z");

const HUMAN_READABLE: &[FormatItem<'_>] =
    format_description!("[day padding:none] [month repr:long] [year], [hour]:[minute] UTC");

/// The format of HTTP's `Date` header.
const HTTP_DATE: &[FormatItem<'_>] = format_description!(
    "[weekday repr:short], [day] [month repr:short] [year] [hour]:[minute]:[second] GMT"
);

impl Timestamp {
    /// Reads RFC 3339 with any offset.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let parsed = OffsetDateTime::parse(text, &Rfc3339).ok()?;
        parsed
            .checked_to_offset(time::UtcOffset::UTC)
            .map(Self::truncated)
    }

    /// Saturates at the end of the calendar.
    pub(crate) fn plus(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(duration))
    }

    /// Ticks of 100 nanoseconds since 1970, or 0 for an earlier time.
    pub(crate) fn ticks(self) -> u64 {
        u64::try_from(self.0.unix_timestamp_nanos() / 100).unwrap_or(0)
    }

    pub(crate) fn date(self) -> time::Date {
        self.0.date()
    }

    /// `22 November 2026, 12:24 UTC`
    pub(crate) fn human_readable(self) -> String {
        self.0
            .format(HUMAN_READABLE)
            .unwrap_or_else(|_| self.to_string())
    }

    /// `Sun, 22 Nov 2026 12:24:00 GMT`
    pub(crate) fn http_date(self) -> Option<String> {
        self.0.format(HTTP_DATE).ok()
    }

    fn truncated(time: OffsetDateTime) -> Self {
        let below = i64::from(time.nanosecond() % 100);
        Self(time - Duration::nanoseconds(below))
    }
}

impl std::fmt::Display for Timestamp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let text = self.0.format(SEVEN_DIGITS).map_err(|_| std::fmt::Error)?;
        f.write_str(&text)
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Never returns the same time twice, so that no two changes have the same time.
#[derive(Debug, Default)]
pub(crate) struct Clock(Mutex<Reading>);

#[derive(Debug, Default)]
struct Reading {
    offset: Duration,
    last: Option<Timestamp>,
}

impl Clock {
    pub(crate) fn now(&self) -> Timestamp {
        let mut reading = self.reading();
        let real = Timestamp::truncated(OffsetDateTime::now_utc()).plus(reading.offset);
        let now = match reading.last {
            Some(last) if last >= real => last.plus(TICK),
            _ => real,
        };
        reading.last = Some(now);
        now
    }

    /// Moves the clock forward. It can't move back, because events would then precede their cause.
    pub(crate) fn advance(&self, by: Duration) {
        let mut reading = self.reading();
        reading.offset = reading.offset.saturating_add(by);
    }

    /// How far this clock is ahead of real time.
    pub(crate) fn offset(&self) -> Duration {
        self.reading().offset
    }

    fn reading(&self) -> std::sync::MutexGuard<'_, Reading> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::{Clock, Timestamp};
    use time::Duration;

    #[test]
    fn writes_seven_digits_even_if_they_are_zero() {
        let time = Timestamp::parse("2024-05-07T23:25:44Z").map(|m| m.to_string());
        assert_eq!(time.as_deref(), Some("2024-05-07T23:25:44.0000000Z"));
    }

    #[test]
    fn reads_any_offset_as_utc() {
        let time = Timestamp::parse("2024-05-07T23:25:44.12345678+02:00").map(|m| m.to_string());
        assert_eq!(time.as_deref(), Some("2024-05-07T21:25:44.1234567Z"));
    }

    #[test]
    fn never_returns_the_same_time_twice() {
        let clock = Clock::default();
        let times: Vec<_> = (0..1000).map(|_| clock.now()).collect();
        assert!(times.windows(2).all(|pair| pair[0] < pair[1]));
    }

    #[test]
    fn runs_ahead_after_it_is_advanced() {
        let clock = Clock::default();
        let before = clock.now();
        clock.advance(Duration::days(30));
        assert!(clock.now() >= before.plus(Duration::days(30)));
    }
}
