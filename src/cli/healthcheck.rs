use std::{
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use clap::Args;
use dojo_payment_links::config::listen_address;

use super::outcome::Result;

/// Check that a running service is alive. Exits with 1 if it isn't.
///
/// Meant for container health checks. It checks liveness, not readiness, because restarting the service doesn't help when
/// the database is down.
#[derive(Debug, Args)]
pub(super) struct Healthcheck {
    /// The IP address and port that the service listens on.
    #[arg(long, env = "LISTEN_ADDR", default_value = "0.0.0.0:8080", value_name = "ADDRESS",
          value_parser = listen_address)]
    listen_addr: SocketAddr,
}

impl Healthcheck {
    pub(super) async fn run(&self) -> Result {
        let mut address = self.listen_addr;
        if address.ip().is_unspecified() {
            address.set_ip(match address {
                SocketAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
                SocketAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
            });
        }
        let client = reqwest::Client::builder()
            .timeout(Duration::from_secs(3))
            .no_proxy()
            .build()?;
        client
            .get(format!("http://{address}/healthz"))
            .send()
            .await?
            .error_for_status()?;
        Ok(())
    }
}
