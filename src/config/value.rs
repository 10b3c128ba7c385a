//! Parsers of single values.

use std::{
    fmt::Display, fs, net::SocketAddr, ops::RangeInclusive, path::PathBuf, str::FromStr,
    time::Duration,
};

use clap::builder::{OsStringValueParser, TypedValueParser};
use secrecy::{ExposeSecret, SecretString};
use tracing_subscriber::EnvFilter;
use url::Url;

use super::{ConfigError, error::Expected};

/// Anything beyond this is most likely a slip.
const LONGEST: Duration = Duration::from_hours(24 * 31);

/// A duration from a millisecond to a month. 0 is not allowed, because it could mean both "never" and "at once".
pub(super) fn duration(text: &str) -> Result<Duration, Expected> {
    humantime::parse_duration(text)
        .ok()
        .filter(|duration| (Duration::from_millis(1)..=LONGEST).contains(duration))
        .ok_or_else(|| Expected::new("a duration such as 500ms, 30s, 2m or 24h, from 1ms to 31d"))
}

/// The time limit of a statement. A dead connection is noticed two seconds after it.
pub(super) fn statement_timeout(text: &str) -> Result<Duration, Expected> {
    duration(text)
        .ok()
        .filter(|limit| *limit <= Duration::from_secs(20))
        .ok_or_else(|| Expected::new("a duration from 1ms to 20s, such as 10s"))
}

/// How long two API keys of a client work side by side. Unlike other durations it may be 0.
pub fn overlap(text: &str) -> Result<Duration, Expected> {
    humantime::parse_duration(text)
        .ok()
        .filter(|overlap| *overlap <= LONGEST)
        .ok_or_else(|| Expected::new("a duration such as 30m or 24h, from 0s to 31d"))
}

/// The age from which data is removed. Anything below a month is most likely a slip, and removed data can't be brought back.
pub fn retention(text: &str) -> Result<Duration, Expected> {
    // A year has 365.25 days, as in the text of a duration.
    let range = Duration::from_hours(24 * 30)..=Duration::from_hours(24 * 7305);
    humantime::parse_duration(text)
        .ok()
        .filter(|age| range.contains(age))
        .ok_or_else(|| Expected::new("a duration such as 400d or 2y, from 30d to 20y"))
}

/// The age from which data expires that expires by default. `never` keeps it.
pub(super) fn expiry(text: &str) -> Result<Option<Duration>, Expected> {
    match text.trim() {
        "never" => Ok(None),
        text => retention(text)
            .map(Some)
            .map_err(|_| Expected::new("a duration such as 180d or 2y, from 30d to 20y, or never")),
    }
}

/// A whole number in a range.
pub(super) fn number<T>(
    range: RangeInclusive<T>,
) -> impl Fn(&str) -> Result<T, Expected> + Clone + Send + Sync + 'static
where
    T: FromStr + PartialOrd + Display + Clone + Send + Sync + 'static,
{
    move |text| {
        text.parse()
            .ok()
            .filter(|number| range.contains(number))
            .ok_or_else(|| {
                let (least, most) = (range.start(), range.end());
                Expected::new(format!("a whole number from {least} to {most}"))
            })
    }
}

pub fn listen_address(text: &str) -> Result<SocketAddr, Expected> {
    text.parse()
        .map_err(|_| Expected::new("an IP address and a port such as 0.0.0.0:8080 or [::1]:8080"))
}

/// The value of a setting that may be left out. An empty value means that the setting isn't set, because compose files pass
/// on variables that nobody has set. The field's type must be written as `std::option::Option`: clap parses what is in an
/// `Option`, and would never see that the value is empty.
pub(super) fn optional<T: 'static>(
    parse: impl Fn(&str) -> Result<T, Expected> + Clone + Send + Sync + 'static,
) -> impl Fn(&str) -> Result<Option<T>, Expected> + Clone + Send + Sync + 'static {
    move |text| match text.trim() {
        "" => Ok(None),
        text => parse(text).map(Some),
    }
}

pub(super) fn log_filter(text: &str) -> Result<String, Expected> {
    EnvFilter::try_new(text)
        .map(|_| text.to_owned())
        .map_err(|error| {
            Expected::new(format!(
                "a filter such as info or info,dojo_payment_links=debug ({error})"
            ))
        })
}

pub(super) fn api_version(text: &str) -> Result<String, Expected> {
    let form = time::macros::format_description!("[year]-[month]-[day]");
    time::Date::parse(text, form)
        .map(|_| text.to_owned())
        .map_err(|_| Expected::new("a date such as 2026-02-27"))
}

/// An http or https URL.
pub fn web_url(text: &str) -> Result<Url, Expected> {
    Url::parse(text)
        .ok()
        .filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host())
        .ok_or_else(|| Expected::new("an http or https URL"))
}

/// The base URL of addresses that are handed out, without a slash at its end.
pub(super) fn base_url(text: &str) -> Result<String, Expected> {
    let url = web_url(text)?;
    let is_plain = url.query().is_none()
        && url.fragment().is_none()
        && url.username().is_empty()
        && url.password().is_none();
    if is_plain {
        Ok(url.as_str().trim_end_matches('/').to_owned())
    } else {
        Err(Expected::new(
            "an http or https URL without a user name, a query and a fragment",
        ))
    }
}

/// The name of an account, which needs no escaping in a URL's path.
pub fn account_name(text: &str) -> Result<String, Expected> {
    let plain = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_');
    if (1..=60).contains(&text.len()) && text.bytes().all(plain) {
        Ok(text.to_owned())
    } else {
        Err(Expected::new(
            "1 to 60 characters: lower-case letters, digits, - and _",
        ))
    }
}

/// The path of a file. An empty path means that the setting isn't set, so clap's own parser, which rejects an empty path,
/// can't be used.
pub(super) fn path() -> impl TypedValueParser<Value = PathBuf> {
    OsStringValueParser::new().map(PathBuf::from)
}

/// Reads a secret, which is given either as a value or in a file, and trims it. An empty value means that the secret isn't
/// set, because compose files pass on variables that nobody has set.
pub(super) fn secret(
    setting: &'static str,
    value: Option<&SecretString>,
    file: Option<&PathBuf>,
) -> Result<Option<SecretString>, ConfigError> {
    let value = value
        .map(|value| value.expose_secret().trim())
        .filter(|value| !value.is_empty());
    let file = file.filter(|file| !file.as_os_str().is_empty());
    match (value, file) {
        (Some(_), Some(_)) => Err(ConfigError::new(
            setting,
            format!("and {setting}_FILE are both set: remove one of them"),
        )),
        (Some(value), None) => Ok(Some(value.into())),
        (None, Some(file)) => {
            let text = fs::read_to_string(file).map_err(|error| {
                ConfigError::new(
                    format!("{setting}_FILE"),
                    format!(
                        "names a file that cannot be read, {}: {error}",
                        file.display()
                    ),
                )
            })?;
            let text = text.trim();
            Ok((!text.is_empty()).then(|| text.into()))
        }
        (None, None) => Ok(None),
    }
}
