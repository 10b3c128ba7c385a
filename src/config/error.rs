use std::{error::Error, fmt};

/// Everything that is wrong with the settings, so that an operator can correct all of it at once.
///
/// The text of a problem never contains a secret.
#[derive(Debug, Default)]
pub struct ConfigError {
    problems: Vec<Problem>,
}

/// One setting that is missing or wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The setting's environment variable, or its flag.
    pub setting: String,
    /// What is wrong and what is expected, as the rest of a sentence that begins with the setting's name.
    pub text: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.setting, self.text)
    }
}

impl ConfigError {
    /// An error about one setting. `text` continues a sentence that begins with the setting's name.
    #[must_use]
    pub fn new(setting: impl Into<String>, text: impl Into<String>) -> Self {
        let mut error = Self::default();
        error.add(setting, text);
        error
    }

    pub fn add(&mut self, setting: impl Into<String>, text: impl Into<String>) {
        self.problems.push(Problem {
            setting: setting.into(),
            text: text.into(),
        });
    }

    /// Returns the value, or adds the problems of `result` to this error.
    pub fn keep<T>(&mut self, result: Result<T, Self>) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(error) => {
                self.problems.extend(error.problems);
                None
            }
        }
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.problems.is_empty()
    }

    #[must_use]
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, problem) in self.problems.iter().enumerate() {
            let separator = if n == 0 { "" } else { "; " };
            write!(f, "{separator}{problem}")?;
        }
        Ok(())
    }
}

impl Error for ConfigError {}

/// Why the value of a setting is rejected, in terms of what is expected.
///
/// The parsers of settings return it, so that the code that reports the problem can add the setting's name and, unless
/// it is a secret, the value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expected(pub(super) String);

impl Expected {
    /// `what` continues a sentence that begins with "must be".
    #[must_use]
    pub fn new(what: impl Into<String>) -> Self {
        Self(what.into())
    }

    /// What is wrong with `value`, as the text of a [`Problem`].
    ///
    /// The value is left out if it looks like a secret. No secret setting is parsed this way, but an operator may have
    /// put a secret into the wrong setting.
    #[must_use]
    pub fn not(&self, value: &str) -> String {
        let is_suspicious = ["sk_", "dpl_", "whs_", "@"]
            .iter()
            .any(|mark| value.contains(mark));
        if is_suspicious {
            self.to_string()
        } else {
            format!("{self}, not {value:?}")
        }
    }
}

impl fmt::Display for Expected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "must be {}", self.0)
    }
}

impl Error for Expected {}
