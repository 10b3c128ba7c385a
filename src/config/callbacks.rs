use std::time::Duration;

use clap::Args;

use super::{
    error::Expected,
    value::{duration, number},
};
use crate::callbacks::{
    client::{LazyClient, Timeouts},
    target::Allow,
};

/// The settings of callbacks.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Callbacks")]
pub struct CallbackSettings {
    /// Which addresses callbacks may reach besides public ones, separated by commas: networks such as 10.0.0.0/8, and hosts
    /// with or without a port, such as hooks.internal:8080. Hosts and addresses that are listed may also use plain http.
    /// Loopback addresses and the metadata services of clouds need an entry each.
    #[arg(id = "callback-allow", long, env = "CALLBACK_ALLOW", default_value = "", hide_default_value = true, value_name = "LIST",
          value_parser = allow)]
    allow: Allow,

    /// The maximum number of callbacks in flight to each endpoint.
    #[arg(id = "callback-concurrency", long, env = "CALLBACK_CONCURRENCY", default_value_t = 8, value_name = "N",
          value_parser = number(1..=100_u16))]
    concurrency: u16,

    /// How long an endpoint may take to respond. At most 1m. If a replica dies, another one takes over its endpoints
    /// after twice this time plus 5 seconds.
    #[arg(id = "callback-timeout", long, env = "CALLBACK_TIMEOUT", default_value = "15s", value_name = "DURATION", value_parser = timeout)]
    timeout: Duration,
}

fn allow(text: &str) -> Result<Allow, Expected> {
    text.parse()
        .map_err(|error: crate::callbacks::target::AllowError| {
            Expected::new(format!("a list of networks and hosts ({error})"))
        })
}

fn timeout(text: &str) -> Result<Duration, Expected> {
    duration(text)
        .ok()
        .filter(|limit| *limit <= Duration::from_mins(1))
        .ok_or_else(|| Expected::new("a duration from 1ms to 1m, such as 15s"))
}

impl CallbackSettings {
    /// The client that sends callbacks.
    #[must_use]
    pub fn client(&self) -> LazyClient {
        let total = self.timeout;
        let connect = Timeouts::default().connect.min(total);
        LazyClient::new(self.allow.clone(), Timeouts { connect, total })
    }

    /// The maximum number of callbacks in flight to each endpoint.
    #[must_use]
    pub fn concurrency(&self) -> usize {
        self.concurrency.into()
    }
}
