//! `Retry-After` of the servers that we call.

use std::time::Duration;

use reqwest::{Response, header};
use time::{OffsetDateTime, format_description::well_known::Rfc2822};

/// How long a response asks us to wait, but at most `longest`. Reads both forms of RFC 9110: seconds, and a date.
pub(crate) fn retry_after(response: &Response, longest: Duration) -> Option<Duration> {
    let text = response.headers().get(header::RETRY_AFTER)?.to_str().ok()?;
    wait_until(text.trim(), OffsetDateTime::now_utc()).map(|wait| wait.min(longest))
}

fn wait_until(text: &str, now: OffsetDateTime) -> Option<Duration> {
    Some(
        if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
            // Only a number that is too large fails to parse.
            Duration::from_secs(text.parse().unwrap_or(u64::MAX))
        } else {
            let at = OffsetDateTime::parse(text, &Rfc2822).ok()?;
            // A date in the past means no wait.
            Duration::try_from(at - now).unwrap_or_default()
        },
    )
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;

    /// In seconds.
    fn wait(header: &str, longest: u64) -> Option<u64> {
        let response = axum::http::Response::builder().header(header::RETRY_AFTER, header);
        let response = Response::from(response.body("").unwrap());
        retry_after(&response, Duration::from_secs(longest)).map(|wait| wait.as_secs())
    }

    #[test]
    fn both_forms_are_read() {
        let now = datetime!(2026-11-24 12:00 UTC);
        let wait = |text| wait_until(text, now).map(|wait| wait.as_secs());
        assert_eq!(wait("0"), Some(0));
        assert_eq!(wait("120"), Some(120));
        assert_eq!(wait("Tue, 24 Nov 2026 12:02:00 GMT"), Some(120));
        assert_eq!(wait("Tue, 24 Nov 2026 11:00:00 GMT"), Some(0), "past");
    }

    #[test]
    fn no_wait_is_longer_than_the_limit() {
        for absurd in [
            "86401",
            "18446744073709551615",
            "99999999999999999999999999",
            "Fri, 31 Dec 9999 23:59:59 GMT",
        ] {
            assert_eq!(wait(absurd, 3600), Some(3600), "{absurd}");
        }
        assert_eq!(wait(" 12 ", 3600), Some(12));
    }

    #[test]
    fn nonsense_is_ignored() {
        for nonsense in [
            "",
            "-5",
            "+5",
            "1.5",
            "1e3",
            "soon",
            "Fri, 31 Dec 99999 23:59:59 GMT",
        ] {
            assert_eq!(wait(nonsense, 3600), None, "{nonsense}");
        }
    }
}
