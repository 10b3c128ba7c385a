//! Findings of the health page: what was looked at, what was found, and what to do about it.

use std::time::Duration;

use super::{runbook::Entry, words::Tone};
use crate::golive::check::{Check, Name, Outcome};

/// Something that was looked at, and what was found.
pub(super) struct Finding {
    pub(super) name: String,
    pub(super) text: String,
    tone: Tone,
    /// What it means and what to do, if something is wrong.
    pub(super) advice: Option<String>,
    /// The entries of the runbook about it.
    runbook: &'static [Entry],
}

impl Finding {
    pub(super) fn new(name: impl Into<String>, tone: Tone, text: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            text: text.into(),
            tone,
            advice: None,
            runbook: &[],
        }
    }

    pub(super) fn advice(self, advice: impl Into<String>, runbook: &'static [Entry]) -> Self {
        Self {
            advice: Some(advice.into()),
            runbook,
            ..self
        }
    }

    /// A finding of `check`.
    pub(super) fn of_check(check: &Check) -> Self {
        let (name, runbook) = about(check.name);
        let tone = match check.outcome {
            Outcome::Passed => Tone::Good,
            Outcome::Failed => Tone::Bad,
            Outcome::Unverified | Outcome::Unknown | Outcome::Skipped => Tone::Neutral,
        };
        let why = match check.outcome {
            Outcome::Skipped => "not checked, because ",
            _ => "",
        };
        Self {
            advice: check.fix.as_deref().map(sentence),
            runbook,
            ..Self::new(name, tone, sentence(&format!("{why}{}", check.detail)))
        }
    }

    /// The class of its tone in the style sheet.
    pub(super) fn class(&self) -> &'static str {
        self.tone.class()
    }

    /// A sign for its tone, for those who don't see colors.
    pub(super) fn sign(&self) -> &'static str {
        match self.tone {
            Tone::Good => "✓",
            Tone::Neutral => "·",
            Tone::Waiting => "!",
            Tone::Bad => "✗",
        }
    }

    /// A word for its tone.
    pub(super) fn word(&self) -> &'static str {
        match self.tone {
            Tone::Good => "Fine",
            Tone::Neutral => "Note",
            Tone::Waiting => "Warning",
            Tone::Bad => "Wrong",
        }
    }

    /// Whether somebody should do something about it.
    pub(super) fn is_wrong(&self) -> bool {
        matches!(self.tone, Tone::Waiting | Tone::Bad)
    }

    /// The entries of the runbook, if something is wrong.
    pub(super) fn entries(&self) -> &'static [Entry] {
        if self.is_wrong() { self.runbook } else { &[] }
    }
}

/// What was found about one thing.
pub(super) struct Group {
    pub(super) id: String,
    pub(super) title: String,
    /// What to know before reading them.
    pub(super) intro: Option<String>,
    pub(super) findings: Vec<Finding>,
}

impl Group {
    pub(super) fn new(
        id: impl Into<String>,
        title: impl Into<String>,
        findings: Vec<Finding>,
    ) -> Self {
        Self {
            id: id.into(),
            title: title.into(),
            intro: None,
            findings,
        }
    }

    /// How many of them are wrong.
    pub(super) fn wrong(&self) -> usize {
        self.findings.iter().filter(|one| one.is_wrong()).count()
    }
}

/// What a check is about, and the entries of the runbook about that.
fn about(name: Name) -> (&'static str, &'static [Entry]) {
    match name {
        Name::Settings => ("Settings", &[Entry::DoesNotStart]),
        Name::Database => ("Server", &[Entry::DatabaseDown]),
        Name::Migrations => ("Migrations", &[Entry::DoesNotStart]),
        Name::Writable => ("Writable", &[Entry::DatabaseDown]),
        Name::Environment => ("Environment", &[Entry::DoesNotStart]),
        Name::ApiKeys => ("API keys of clients", &[]),
        Name::DatabaseClock => ("Clock of the database", &[]),
        Name::Dojo => (
            "Dojo and the API key",
            &[Entry::DojoRejectsKey, Entry::DojoUnreachable],
        ),
        Name::DojoClock => ("Clock of Dojo", &[]),
        Name::CheckoutAddress => ("Checkout pages", &[]),
        Name::WebhookAddress => ("Webhook subscription", &[Entry::NoWebhooks]),
        Name::WebhookEvents => ("Events of the subscription", &[Entry::NoWebhooks]),
        Name::WebhookSecrets => ("Webhook secret", &[Entry::WebhooksRejected]),
        Name::MailServer => ("Mail server", &[Entry::MessagesNotSent]),
        Name::Callbacks => ("Callbacks", &[Entry::CallbacksFallBehind]),
    }
}

/// The text of a check as a sentence, as pages write it.
fn sentence(text: &str) -> String {
    if text.starts_with("http") && !text.contains(' ') {
        return text.to_owned();
    }
    let text = text.replace('\'', "’");
    // A name such as `payment_intent.created` has one spelling.
    let first = text.split(' ').next().unwrap_or_default();
    let is_name = first.trim_end_matches(['.', ',', ':']).contains(['_', '.']);
    let mut sentence = if is_name { text } else { capitalized(&text) };
    if !sentence.ends_with(['.', '!', '?', '…']) {
        sentence.push('.');
    }
    sentence
}

/// A text with a capital letter at its beginning.
pub(super) fn capitalized(text: &str) -> String {
    let mut letters = text.chars();
    let first = letters.next().map(char::to_uppercase);
    first.into_iter().flatten().chain(letters).collect()
}

/// A length of time in the unit that fits: `3 min`.
pub(super) fn spoken(time: Duration) -> String {
    let seconds = time.as_secs();
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} days", seconds / 86_400),
    }
}

/// A length of time that the database has measured.
pub(super) fn measured(seconds: f64) -> Duration {
    Duration::from_secs_f64(seconds.clamp(0.0, 1e9))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_spoken_in_the_unit_that_fits() {
        for (seconds, text) in [
            (0, "0 s"),
            (119, "119 s"),
            (120, "2 min"),
            (7199, "119 min"),
            (7200, "2 h"),
            (172_800, "2 days"),
        ] {
            assert_eq!(spoken(Duration::from_secs(seconds)), text);
        }
    }

    #[test]
    fn texts_of_checks_become_sentences() {
        assert_eq!(sentence("yes"), "Yes.");
        assert_eq!(
            sentence("0.1 s away from this machine's clock"),
            "0.1 s away from this machine’s clock."
        );
        assert_eq!(sentence("run it!"), "Run it!");
        assert_eq!(sentence("http://a/"), "http://a/");
        assert_eq!(
            sentence("payment_intent.created, payment_intent.status_updated"),
            "payment_intent.created, payment_intent.status_updated."
        );
        assert_eq!(sentence("none. create some"), "None. create some.");
    }
}
