//! The settings of a sandbox.

use std::net::{Ipv4Addr, SocketAddr};

use reqwest::Url;

/// Flags or environment variables for the binary, fields for a test.
#[derive(Clone, Debug, clap::Args)]
pub struct Settings {
    /// Address to listen on; port 0 means any free port
    #[arg(long, env = "SANDBOX_LISTEN_ADDR", default_value = "127.0.0.1:9400", value_parser = listen_addr)]
    pub listen_addr: SocketAddr,

    /// API keys to accept, separated by commas; each opens its own account [default: any key that starts with
    /// `sk_sandbox_`]
    #[arg(long, env = "SANDBOX_API_KEY", hide_env_values = true)]
    pub api_key: Option<String>,

    /// Start of every payment link, such as `http://localhost:9400` [default: the bound address]
    #[arg(long, env = "SANDBOX_PUBLIC_URL", value_parser = public_url)]
    pub public_url: Option<String>,

    /// URL to send all webhooks to from the start, without a call to `POST /webhooks`: those of the first key's
    /// account, or, if any key is accepted, of every account
    #[arg(long, env = "SANDBOX_WEBHOOK_URL", value_parser = webhook_url)]
    pub webhook_url: Option<String>,

    /// Secret that signs the webhooks to that URL [default: random]
    #[arg(long, env = "SANDBOX_WEBHOOK_SECRET", hide_env_values = true)]
    pub webhook_secret: Option<String>,
}

impl Default for Settings {
    /// For a test: any free port on this machine, and any sandbox key.
    fn default() -> Self {
        Self {
            listen_addr: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            api_key: None,
            public_url: None,
            webhook_url: None,
            webhook_secret: None,
        }
    }
}

// The parsers' errors name the variables, because clap names only the flags.

/// Parses `SANDBOX_LISTEN_ADDR`.
pub fn listen_addr(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| {
        "SANDBOX_LISTEN_ADDR must be an IP address and a port such as 127.0.0.1:9400".to_owned()
    })
}

fn public_url(text: &str) -> Result<String, String> {
    web_url("SANDBOX_PUBLIC_URL", text)
}

fn webhook_url(text: &str) -> Result<String, String> {
    web_url("SANDBOX_WEBHOOK_URL", text)
}

fn web_url(variable: &str, text: &str) -> Result<String, String> {
    let is_web = Url::parse(text)
        .is_ok_and(|url| matches!(url.scheme(), "http" | "https") && url.has_host());
    if is_web || text.is_empty() {
        Ok(text.to_owned())
    } else {
        Err(format!("{variable} must be an http or https URL"))
    }
}

/// Treats an empty environment variable as unset, because a Compose file can't leave a variable out.
pub(crate) fn non_empty(setting: Option<String>) -> Option<String> {
    setting.filter(|value| !value.is_empty())
}
