//! The secrets that Dojo signs webhooks with.
//!
//! Something else in their place is rejected at the start. Otherwise the service would reject every webhook, and nobody would
//! notice until payments are confirmed late.

use secrecy::{ExposeSecret, SecretString};

/// Parses a list that is separated by commas or line breaks. Empty lines don't count.
///
/// On error, returns what is wrong as the text of a [`Problem`](super::Problem), without any of the entries.
pub(super) fn split(text: &SecretString) -> Result<Vec<SecretString>, String> {
    let lines = text.expose_secret().lines();
    let lines = lines.filter(|line| !line.trim().is_empty());
    parse(lines.flat_map(|line| line.split(',')).map(Some))
}

/// Parses the entries of a list. `None` is an entry that isn't text. On error, returns the same as [`split`].
pub(super) fn parse<'a>(
    entries: impl Iterator<Item = Option<&'a str>>,
) -> Result<Vec<SecretString>, String> {
    let entries: Vec<_> = entries.map(|entry| entry.map(str::trim)).collect();
    let count = entries.len();
    let faults: Vec<_> = entries
        .iter()
        .zip(1..)
        .filter_map(|(entry, position)| {
            let fault = fault(*entry)?;
            Some(format!("entry {position} of {count} {fault}"))
        })
        .collect();
    if faults.is_empty() {
        return Ok(entries.into_iter().flatten().map(Into::into).collect());
    }
    Err(format!(
        "is wrong: {}. Every entry must be a secret that Dojo signs webhooks with, as dojo-payment-links webhooks register \
         prints it",
        faults.join("; ")
    ))
}

/// Why this can't be one of Dojo's secrets, which are letters, digits, `-` and `_`. Their form isn't documented, so only what
/// is certainly something else is rejected. The ids of subscriptions begin with `ws_`, but so does a secret that Dojo has
/// published.
fn fault(entry: Option<&str>) -> Option<&'static str> {
    let Some(entry) = entry else {
        return Some("is not a string");
    };
    if entry.is_empty() {
        return Some("is empty");
    }
    if entry.contains("://") {
        return Some("is a URL");
    }
    if entry.starts_with(['"', '\'']) {
        return Some("begins with a quotation mark");
    }
    if !entry.bytes().all(|byte| byte.is_ascii_graphic()) || entry.contains(',') {
        return Some("contains a space or another character that no secret contains");
    }
    [
        (
            "sc_",
            "begins with sc_: it is the id of a secret, not the secret",
        ),
        ("sk_", "is an API key of Dojo"),
        ("dpl_", "is an API key of this service"),
        ("whsec_", "is the secret of a callback endpoint"),
    ]
    .into_iter()
    .find_map(|(prefix, fault)| entry.starts_with(prefix).then_some(fault))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn secrets(text: &str) -> Result<Vec<String>, String> {
        let secrets = split(&text.into())?;
        let expose = |secret: &SecretString| secret.expose_secret().to_owned();
        Ok(secrets.iter().map(expose).collect())
    }

    #[test]
    fn secrets_are_separated_by_commas_or_lines() {
        assert_eq!(secrets("dev").unwrap(), ["dev"]);
        // Both are published by Dojo.
        let published = ["PDYkJQq6sESYHp_zJuTTBQ", "ws_OYsyzcrH70GpJfs8MMkKpg"];
        for separator in [",", " , ", "\n", "\r\n", "\n\n"] {
            assert_eq!(secrets(&published.join(separator)).unwrap(), published);
        }
        assert!(secrets("").unwrap().is_empty());
    }

    #[test]
    fn every_wrong_entry_is_named_by_its_position() {
        for (text, fault) in [
            ("hush,,hush", "entry 2 of 3 is empty"),
            ("hush,", "entry 2 of 2 is empty"),
            (",", "entry 1 of 2 is empty; entry 2 of 2 is empty"),
            ("hush hush", "entry 1 of 1 contains a space"),
            ("hush\nhush\thush", "entry 2 of 2 contains a space"),
            ("hush…", "entry 1 of 1 contains a space"),
            (
                "sc_qNkU6yob0vOMxUlb2oynUw",
                "entry 1 of 1 begins with sc_: it is the id of a secret",
            ),
            ("hush,sk_sandbox_hush", "entry 2 of 2 is an API key of Dojo"),
            ("dpl_hush", "entry 1 of 1 is an API key of this service"),
            (
                "whsec_hush",
                "entry 1 of 1 is the secret of a callback endpoint",
            ),
            ("\"hush\"", "entry 1 of 1 begins with a quotation mark"),
            ("https://hush.example.com", "entry 1 of 1 is a URL"),
        ] {
            let error = secrets(text).unwrap_err();
            assert!(
                error.starts_with(&format!("is wrong: {fault}")),
                "{text}: {error}"
            );
            assert!(
                !error.contains("hush") && !error.contains("qNkU6"),
                "{error}"
            );
        }
        let error = parse([Some("hush"), None, Some("a,b")].into_iter()).unwrap_err();
        let faults = "is wrong: entry 2 of 3 is not a string; entry 3 of 3 contains a space";
        assert!(error.starts_with(faults), "{error}");
    }

    proptest! {
        #[test]
        fn every_secret_in_the_form_of_dojos_is_accepted(secret in "[A-Za-z0-9_-]{22,43}") {
            let is_something_else = ["sc_", "sk_", "dpl_", "whsec_"]
                .iter()
                .any(|prefix| secret.starts_with(prefix));
            prop_assert_eq!(secrets(&secret).is_err(), is_something_else);
        }
    }
}
