//! The sandbox as a program.

use std::io::{self, BufRead, BufReader, IsTerminal, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};
use dojo_sandbox::{Sandbox, Settings, listen_addr};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

const HEALTHCHECK_TIMEOUT: Duration = Duration::from_secs(2);

/// A stand-in for Dojo: its payment API, hosted checkout page and signed webhooks
#[derive(Debug, Parser)]
#[command(version, args_conflicts_with_subcommands = true)]
struct Arguments {
    #[command(flatten)]
    settings: Settings,

    /// Make random faults repeatable
    #[arg(long, env = "SANDBOX_SEED", value_parser = seed)]
    seed: Option<u64>,

    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Check the sandbox on the listen address; exit 0 if it is healthy, 1 if not
    Healthcheck {
        /// Address that the sandbox listens on
        #[arg(long, env = "SANDBOX_LISTEN_ADDR", default_value = "127.0.0.1:9400", value_parser = listen_addr)]
        listen_addr: SocketAddr,
    },
}

fn seed(text: &str) -> Result<u64, &'static str> {
    text.parse()
        .map_err(|_| "SANDBOX_SEED must be a whole number")
}

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let result = match arguments.command {
        Some(Command::Healthcheck { listen_addr }) => healthcheck(listen_addr),
        None => run(arguments.settings, arguments.seed).await,
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("dojo-sandbox: {error}");
            let mut cause = error.source();
            while let Some(error) = cause {
                eprintln!("  because: {error}");
                cause = error.source();
            }
            ExitCode::FAILURE
        }
    }
}

async fn run(settings: Settings, seed: Option<u64>) -> Result<(), Box<dyn std::error::Error>> {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    // https://no-color.org: any value but an empty one turns colors off.
    let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(io::stdout().is_terminal() && !no_color)
        .init();

    let mut terminate = signal(SignalKind::terminate())?;
    let sandbox = Sandbox::start(settings).await?;
    if let Some(seed) = seed {
        sandbox.seed(seed);
    }
    tracing::info!(url = sandbox.url(), "listening");

    tokio::select! {
        _ = terminate.recv() => {}
        result = tokio::signal::ctrl_c() => result?,
    }
    tracing::info!("stopping");
    sandbox.stop().await;
    Ok(())
}

/// Writes the request by hand, because an HTTP client would need root certificates.
fn healthcheck(listen_addr: SocketAddr) -> Result<(), Box<dyn std::error::Error>> {
    let addr = SocketAddr::new(reachable(listen_addr.ip()), listen_addr.port());
    let mut stream = TcpStream::connect_timeout(&addr, HEALTHCHECK_TIMEOUT)
        .map_err(|error| format!("the sandbox at {addr} cannot be reached: {error}"))?;
    stream.set_read_timeout(Some(HEALTHCHECK_TIMEOUT))?;
    stream.set_write_timeout(Some(HEALTHCHECK_TIMEOUT))?;
    write!(
        stream,
        "GET /_sandbox/health HTTP/1.1\r\nhost: {addr}\r\nconnection: close\r\n\r\n"
    )?;
    let mut status_line = String::new();
    BufReader::new(stream).read_line(&mut status_line)?;
    if status_line.starts_with("HTTP/1.1 200 ") {
        Ok(())
    } else {
        Err(format!(
            "the sandbox at {addr} responded with {:?}",
            status_line.trim_end()
        )
        .into())
    }
}

/// The loopback address if the sandbox listens on all addresses, which can't be called.
fn reachable(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    }
}
