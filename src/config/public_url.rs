use clap::Args;
use url::Url;

use super::{ConfigError, value::web_url};

/// The address under which the internet reaches this service.
#[derive(Debug, Clone, Args)]
pub struct PublicUrl {
    /// The public base URL of this service, for example `https://pay.example.com`. Dojo sends webhooks to `/webhooks/dojo` below
    /// it, and to `/webhooks/dojo/NAME` for an account other than `default`. With it, `check` and the console's health page can
    /// tell whether they arrive here.
    #[arg(
        id = "public-url",
        long = "public-url",
        visible_alias = "url",
        env = "PUBLIC_URL",
        value_name = "URL"
    )]
    url: Option<String>,
}

impl PublicUrl {
    /// The base URL, if it is set. An empty value means that it isn't, because compose files pass on variables that nobody
    /// has set.
    pub fn get(&self) -> Result<Option<Url>, ConfigError> {
        self.parse("PUBLIC_URL")
    }

    /// The base URL, for the command `webhooks register`, which needs it and is usually given it as `--url`.
    pub fn required(&self) -> Result<Url, ConfigError> {
        const SETTING: &str = "--url or PUBLIC_URL";

        self.parse(SETTING)?.ok_or_else(|| {
            ConfigError::new(
                SETTING,
                "is required: set it to the public base URL of this service",
            )
        })
    }

    /// The base URL, if it is set. `setting` is its name in messages.
    fn parse(&self, setting: &str) -> Result<Option<Url>, ConfigError> {
        let text = self.url.as_deref().map(str::trim).unwrap_or_default();
        if text.is_empty() {
            return Ok(None);
        }
        let wrong = |text: String| ConfigError::new(setting, text);
        let url = web_url(text).map_err(|expected| wrong(expected.not(text)))?;
        if !url.username().is_empty() || url.password().is_some() {
            return Err(wrong("must not contain a user name or password".to_owned()));
        }
        if url.query().is_some() || url.fragment().is_some() {
            return Err(wrong(format!(
                "must not contain a query or a fragment: {text:?}"
            )));
        }
        if url.path().contains("/webhooks/dojo") {
            return Err(wrong(format!(
                "must be the base URL only, without /webhooks/dojo, which is appended: {text:?}"
            )));
        }
        Ok(Some(url))
    }
}
