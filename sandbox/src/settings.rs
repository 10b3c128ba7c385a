//! The settings of a sandbox.

use std::net::{Ipv4Addr, SocketAddr};

/// Flags or environment variables for the binary, fields for a test.
#[derive(Clone, Debug, clap::Args)]
pub struct Settings {
    /// Address to listen on; port 0 means any free port
    #[arg(long, env = "SANDBOX_LISTEN_ADDR", default_value = "127.0.0.1:9400")]
    pub listen_addr: SocketAddr,

    /// API keys to accept, separated by commas; each opens its own account [default: any key that starts with
    /// `sk_sandbox_`]
    #[arg(long, env = "SANDBOX_API_KEY", hide_env_values = true)]
    pub api_key: Option<String>,

    /// Start of every payment link, such as `http://localhost:9400` [default: the bound address]
    #[arg(long, env = "SANDBOX_PUBLIC_URL")]
    pub public_url: Option<String>,

    /// URL to send all webhooks to from the start, without a call to `POST /webhooks`: those of the first key's
    /// account, or, if any key is accepted, of every account
    #[arg(long, env = "SANDBOX_WEBHOOK_URL")]
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

/// Treats an empty environment variable as unset, because a Compose file can't leave a variable out.
pub(crate) fn non_empty(setting: Option<String>) -> Option<String> {
    setting.filter(|value| !value.is_empty())
}
