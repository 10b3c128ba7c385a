//! `dojo-sandbox`: the stand-in for Dojo as a program.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};
use dojo_sandbox::{Sandbox, Settings};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

/// A stand-in for Dojo: its payment API, hosted checkout page and signed webhooks
#[derive(Debug, Parser)]
#[command(version, args_conflicts_with_subcommands = true)]
struct Arguments {
    #[command(flatten)]
    settings: Settings,

    /// Make random faults repeatable
    #[arg(long, env = "SANDBOX_SEED")]
    seed: Option<u64>,

    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Ask the sandbox on the listen address whether it is well; exit 0 if so, 1 if not
    Healthcheck {
        /// Address that the sandbox listens on
        #[arg(long, env = "SANDBOX_LISTEN_ADDR", default_value = "127.0.0.1:9400")]
        listen_addr: SocketAddr,
    },
}

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let result = match arguments.command {
        Some(Command::Healthcheck { listen_addr }) => healthcheck(listen_addr).await,
        None => run(arguments.settings, arguments.seed).await,
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("dojo-sandbox: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(settings: Settings, seed: Option<u64>) -> Result<(), Box<dyn std::error::Error>> {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt().with_env_filter(filter).init();

    let mut terminate = signal(SignalKind::terminate())?;
    let sandbox = Sandbox::start(settings).await?;
    if let Some(seed) = seed {
        sandbox.seed(seed);
    }
    tracing::info!(url = sandbox.url(), "the sandbox is listening");

    tokio::select! {
        _ = terminate.recv() => {}
        result = tokio::signal::ctrl_c() => result?,
    }
    tracing::info!("stopping");
    sandbox.stop().await;
    Ok(())
}

async fn healthcheck(listen_addr: SocketAddr) -> Result<(), Box<dyn std::error::Error>> {
    let addr = SocketAddr::new(reachable(listen_addr.ip()), listen_addr.port());
    // The request is plain HTTP, yet the client does not build without a provider.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = reqwest::Client::builder()
        .timeout(Duration::from_secs(2))
        .build()?;
    let answer = client
        .get(format!("http://{addr}/_sandbox/health"))
        .send()
        .await?;
    answer.error_for_status()?;
    Ok(())
}

/// One cannot call "any address", but a server that listens there hears this machine.
fn reachable(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    }
}
