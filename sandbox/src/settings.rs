//! What a sandbox is started with.

use std::net::{Ipv4Addr, SocketAddr};

/// The settings of one sandbox: flags or environment variables for the binary, fields for a test.
#[derive(Clone, Debug, clap::Args)]
pub struct Settings {
    /// Address to listen on; port 0 takes any free one
    #[arg(long, env = "SANDBOX_LISTEN_ADDR", default_value = "127.0.0.1:9400")]
    pub listen_addr: SocketAddr,

    /// The API key to accept, or several, separated by commas; each is an account of its own [default: any that
    /// starts with `sk_sandbox_`]
    #[arg(long, env = "SANDBOX_API_KEY", hide_env_values = true)]
    pub api_key: Option<String>,

    /// What payment links begin with, such as `http://localhost:9400` [default: the bound address]
    #[arg(long, env = "SANDBOX_PUBLIC_URL")]
    pub public_url: Option<String>,

    /// Where to send webhooks from the start, without a call to `POST /webhooks`: those of the first key's account,
    /// or where any key is accepted, of every account
    #[arg(long, env = "SANDBOX_WEBHOOK_URL")]
    pub webhook_url: Option<String>,

    /// The secret that signs the webhooks to that URL [default: a random one]
    #[arg(long, env = "SANDBOX_WEBHOOK_SECRET", hide_env_values = true)]
    pub webhook_secret: Option<String>,
}

impl Default for Settings {
    /// Any free port on this machine and any sandbox key: what a test wants.
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

/// An empty environment variable means the same as none: compose files cannot leave one out.
pub(crate) fn given(setting: Option<String>) -> Option<String> {
    setting.filter(|value| !value.is_empty())
}
