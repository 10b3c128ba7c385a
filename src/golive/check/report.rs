use std::{fmt, time::Duration};

use serde::Serialize;

/// The result of all checks. `Display` writes it for people, one line per check, and `Serialize` for programs.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Whether every check passed.
    ok: bool,
    checks: Vec<Check>,
}

/// What one check found.
#[derive(Debug, Clone, Serialize)]
pub struct Check {
    pub name: Name,
    /// The Dojo account that the check is about.
    pub account: Option<String>,
    pub outcome: Outcome,
    /// What was found. Never contains a secret.
    pub detail: String,
    /// How to fix a failure.
    pub fix: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    Passed,
    /// Nothing is wrong as far as Dojo shows it, which isn't everything.
    #[serde(rename = "passed")]
    Unverified,
    Failed,
    /// A setting is missing without which nobody can tell.
    #[serde(rename = "failed")]
    Unknown,
    /// Not checked, because an earlier check failed.
    Skipped,
}

impl Outcome {
    fn is_passed(self) -> bool {
        matches!(self, Self::Passed | Self::Unverified)
    }
}

/// The name of a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Name {
    Settings,
    Database,
    Migrations,
    Writable,
    Environment,
    ApiKeys,
    DatabaseClock,
    Dojo,
    DojoClock,
    CheckoutAddress,
    WebhookAddress,
    WebhookEvents,
    WebhookSecrets,
    MailServer,
    Callbacks,
}

impl Name {
    /// The checks of the database, in order. Later checks depend on earlier ones.
    pub(super) const DATABASE: [Self; 6] = [
        Self::Database,
        Self::Migrations,
        Self::Writable,
        Self::Environment,
        Self::ApiKeys,
        Self::DatabaseClock,
    ];

    /// The checks of each account, in order.
    pub(super) const ACCOUNT: [Self; 6] = [
        Self::Dojo,
        Self::DojoClock,
        Self::CheckoutAddress,
        Self::WebhookAddress,
        Self::WebhookEvents,
        Self::WebhookSecrets,
    ];

    fn as_str(self) -> &'static str {
        match self {
            Self::Settings => "settings",
            Self::Database => "database",
            Self::Migrations => "migrations",
            Self::Writable => "writable",
            Self::Environment => "environment",
            Self::ApiKeys => "api-keys",
            Self::DatabaseClock => "database-clock",
            Self::Dojo => "dojo",
            Self::DojoClock => "dojo-clock",
            Self::CheckoutAddress => "checkout-address",
            Self::WebhookAddress => "webhook-address",
            Self::WebhookEvents => "webhook-events",
            Self::WebhookSecrets => "webhook-secrets",
            Self::MailServer => "mail-server",
            Self::Callbacks => "callbacks",
        }
    }
}

impl Report {
    pub(super) fn new(checks: Vec<Check>) -> Self {
        Self {
            ok: checks.iter().all(|check| check.outcome.is_passed()),
            checks,
        }
    }

    /// Whether every check passed.
    #[must_use]
    pub fn is_ok(&self) -> bool {
        self.ok
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for check in &self.checks {
            let (mark, why) = match check.outcome {
                Outcome::Passed | Outcome::Unverified => ('✔', ""),
                Outcome::Failed | Outcome::Unknown => ('✘', ""),
                Outcome::Skipped => ('-', "not checked: "),
            };
            let name = match &check.account {
                Some(account) => format!("{} ({account})", check.name.as_str()),
                None => check.name.as_str().to_owned(),
            };
            write!(f, "{mark} {name:27} {why}{}", check.detail)?;
            if let Some(fix) = &check.fix {
                write!(f, " → {fix}")?;
            }
            writeln!(f)?;
        }
        let outcomes = self.checks.iter().map(|check| check.outcome);
        let passed = outcomes
            .clone()
            .filter(|outcome| outcome.is_passed())
            .count();
        let skipped = outcomes
            .filter(|outcome| *outcome == Outcome::Skipped)
            .count();
        let failed = self.checks.len() - passed - skipped;
        write!(f, "{passed} passed, {failed} failed, {skipped} not checked")
    }
}

/// The time limit for all checks of the database, for those of one account, and for that of the mail server.
pub(super) const LIMIT: Duration = Duration::from_secs(30);

/// How far two clocks may differ. Deadlines depend on Dojo's clock and the database's, timestamps in the log on this
/// machine's.
const CLOCK_TOLERANCE: Duration = Duration::from_secs(30);

/// Collects the results of checks, in order.
pub(super) struct Checks {
    account: Option<String>,
    list: Vec<Check>,
}

impl Checks {
    /// For checks that aren't about one account.
    pub(super) fn new() -> Self {
        Self {
            account: None,
            list: Vec::new(),
        }
    }

    /// Checks the difference between another clock and this machine's.
    pub(super) fn compare_clocks(&mut self, name: Name, difference: Duration) {
        let detail = format!(
            "{:.1} s away from this machine's clock",
            difference.as_secs_f64()
        );
        if difference > CLOCK_TOLERANCE {
            self.fail(name, detail, "synchronize both clocks with NTP");
        } else {
            self.pass(name, detail);
        }
    }

    pub(super) fn of_account(account: &str) -> Self {
        Self {
            account: Some(account.to_owned()),
            ..Self::new()
        }
    }

    pub(super) fn pass(&mut self, name: Name, detail: impl fmt::Display) {
        self.add(name, Outcome::Passed, &detail, None);
    }

    /// What can't be verified counts as passed, and `detail` says how to make sure.
    pub(super) fn pass_unverified(&mut self, name: Name, detail: impl fmt::Display) {
        self.add(name, Outcome::Unverified, &detail, None);
    }

    /// What can't be known without a setting counts as failed.
    pub(super) fn unknown(&mut self, name: Name, detail: impl fmt::Display, fix: &str) {
        self.add(name, Outcome::Unknown, &detail, Some(fix.to_owned()));
    }

    pub(super) fn fail(&mut self, name: Name, detail: impl fmt::Display, fix: impl fmt::Display) {
        self.add(name, Outcome::Failed, &detail, Some(fix.to_string()));
    }

    pub(super) fn skip(&mut self, name: Name, because: &str) {
        self.add(name, Outcome::Skipped, &because, None);
    }

    /// Skips those of the checks that have no result yet.
    pub(super) fn skip_rest(&mut self, names: &[Name], because: &str) {
        for name in names {
            if !self.list.iter().any(|check| check.name == *name) {
                self.skip(*name, because);
            }
        }
    }

    /// Fails the first of the checks that has no result yet, which took too long, and skips the rest.
    pub(super) fn out_of_time(&mut self, names: &[Name], because: &str, fix: &str) {
        let is_pending = |name: &&Name| !self.list.iter().any(|check| check.name == **name);
        if let Some(name) = names.iter().find(is_pending) {
            self.fail(*name, because, fix);
        }
        self.skip_rest(names, because);
    }

    pub(super) fn into_list(self) -> Vec<Check> {
        self.list
    }

    fn add(
        &mut self,
        name: Name,
        outcome: Outcome,
        detail: &dyn fmt::Display,
        fix: Option<String>,
    ) {
        // An error may have several lines, but a check has only one.
        let detail = detail.to_string();
        let words: Vec<_> = detail.split_whitespace().collect();
        self.list.push(Check {
            name,
            account: self.account.clone(),
            outcome,
            detail: words.join(" "),
            fix,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_the_same_in_text_and_json() {
        for name in [Name::Settings]
            .into_iter()
            .chain(Name::DATABASE)
            .chain(Name::ACCOUNT)
            .chain([Name::MailServer, Name::Callbacks])
        {
            assert_eq!(serde_json::json!(name), name.as_str());
        }
    }
}
