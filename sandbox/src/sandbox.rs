//! A running sandbox, from start to stop.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use axum::http::Uri;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tower::util::MapRequest;

use crate::settings::Settings;
use crate::traffic::{Exchange, Watcher};
use crate::world::World;
use crate::{api, checkout, control, server};

/// How often the sandbox looks for intents whose time is up. Any call looks as well, so nobody ever
/// meets one that should be gone; this is for the webhooks.
const CATCH_UP_EVERY: Duration = Duration::from_millis(200);

/// A sandbox that is listening. Dropping it ends it at once; [`Sandbox::stop`] lets calls finish.
#[derive(Debug)]
pub struct Sandbox {
    addr: SocketAddr,
    url: String,
    world: Arc<World>,
    stop_listening: CancellationToken,
    server: JoinHandle<()>,
}

impl Sandbox {
    /// Binds and serves; returns once it is listening.
    pub async fn start(settings: Settings) -> io::Result<Self> {
        // Another part of the program may have chosen a provider already, and that one is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let listener = TcpListener::bind(settings.listen_addr).await?;
        let addr = listener.local_addr()?;
        let url = format!("http://{}", reachable(addr));
        let world = Arc::new(World::new(settings, &url).map_err(io::Error::other)?);

        let routes = api::routes(Arc::clone(&world))
            .nest("/_sandbox", control::routes(Arc::clone(&world)))
            .nest("/checkout", checkout::routes(Arc::clone(&world)));
        // Around the routes: what stands in front of them has to happen before one is chosen.
        let routes = Router::new().fallback_service(MapRequest::new(routes, without_slash_at_end));
        let stop_listening = CancellationToken::new();
        let server = tokio::spawn(server::serve(listener, routes, stop_listening.clone()));
        world.tasks.spawn(keep_up(Arc::clone(&world)));
        Ok(Self {
            addr,
            url,
            world,
            stop_listening,
            server,
        })
    }

    /// Where its API is: `http://127.0.0.1:PORT`.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The address it listens on.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Makes the draws of random faults repeatable.
    pub fn seed(&self, seed: u64) {
        self.world.seed(seed);
    }

    /// Shows every API call to `watcher`, just before it is answered; the last one set counts.
    pub fn watch(&self, watcher: impl Fn(&Exchange) + Send + Sync + 'static) {
        self.world.set_watcher(Watcher(Arc::new(watcher)));
    }

    /// Stops listening, lets calls under way finish, and drops deliveries that are still waiting.
    pub async fn stop(mut self) {
        self.stop_listening.cancel();
        // An error means that the server's task is gone, which is what is wanted.
        let _ = (&mut self.server).await;
        self.world.shutdown.cancel();
        self.world.tasks.close();
        self.world.tasks.wait().await;
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        self.stop_listening.cancel();
        self.world.shutdown.cancel();
        self.server.abort();
    }
}

async fn keep_up(world: Arc<World>) {
    let mut ticks = tokio::time::interval(CATCH_UP_EVERY);
    while world
        .shutdown
        .run_until_cancelled(ticks.tick())
        .await
        .is_some()
    {
        world.with_ledger(|_| ());
    }
}

/// Dojo takes `/payment-intents/` for `/payment-intents`.
fn without_slash_at_end(mut request: Request) -> Request {
    let uri = request.uri();
    let path = uri.path().trim_end_matches('/');
    if path.is_empty() || path.len() == uri.path().len() {
        return request;
    }
    let shorter = match uri.query() {
        Some(query) => format!("{path}?{query}"),
        None => path.to_owned(),
    };
    // A part of a good address is a good address.
    if let Ok(shorter) = Uri::try_from(shorter) {
        *request.uri_mut() = shorter;
    }
    request
}

/// One cannot call "any address", but a server that listens there hears this machine.
fn reachable(addr: SocketAddr) -> SocketAddr {
    let ip = match addr.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, addr.port())
}
