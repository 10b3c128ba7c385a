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

use crate::app_state::AppState;
use crate::requests::{Exchange, Watcher};
use crate::settings::Settings;
use crate::{api, checkout, control, server};

/// How often intents that are due expire. Every call expires them as well, so a caller never sees an intent that should
/// have expired. This interval is for the webhooks.
const EXPIRY_INTERVAL: Duration = Duration::from_millis(200);

/// A sandbox that is listening. Dropping it ends it at once. [`Sandbox::stop`] lets calls in progress finish.
#[derive(Debug)]
pub struct Sandbox {
    addr: SocketAddr,
    url: String,
    state: Arc<AppState>,
    stop_listening: CancellationToken,
    server: JoinHandle<()>,
}

impl Sandbox {
    /// Returns once the sandbox is listening.
    pub async fn start(settings: Settings) -> io::Result<Self> {
        // Fails if the program has already installed a provider, which works as well.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let addr = settings.listen_addr;
        let listener = TcpListener::bind(addr).await.map_err(|error| {
            let text = format!("cannot listen on {addr}: {error}");
            io::Error::new(error.kind(), text)
        })?;
        let addr = listener.local_addr()?;
        let url = format!("http://{}", reachable(addr));
        let state = Arc::new(AppState::new(settings, &url).map_err(io::Error::other)?);

        let routes = api::routes(Arc::clone(&state))
            .nest("/_sandbox", control::routes(Arc::clone(&state)))
            .nest("/checkout", checkout::routes(Arc::clone(&state)));
        // A layer of the router would only run after a route was chosen.
        let routes =
            Router::new().fallback_service(MapRequest::new(routes, without_trailing_slash));
        let stop_listening = CancellationToken::new();
        let server = tokio::spawn(server::serve(listener, routes, stop_listening.clone()));
        state.tasks.spawn(expire_due_intents(Arc::clone(&state)));
        Ok(Self {
            addr,
            url,
            state,
            stop_listening,
            server,
        })
    }

    /// The base URL of the API: `http://127.0.0.1:PORT`.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The address that the sandbox listens on.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Makes random faults repeatable.
    pub fn seed(&self, seed: u64) {
        self.state.seed(seed);
    }

    /// Calls `watcher` with every API call, just before its response is sent. It replaces an earlier watcher.
    pub fn watch(&self, watcher: impl Fn(&Exchange) + Send + Sync + 'static) {
        self.state.set_watcher(Watcher(Arc::new(watcher)));
    }

    /// Stops listening, lets calls in progress finish, and drops webhook deliveries that are still waiting.
    pub async fn stop(mut self) {
        self.stop_listening.cancel();
        // An error means that the server's task has ended already.
        let _ = (&mut self.server).await;
        self.state.shutdown.cancel();
        self.state.tasks.close();
        self.state.tasks.wait().await;
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        self.stop_listening.cancel();
        self.state.shutdown.cancel();
        self.server.abort();
    }
}

async fn expire_due_intents(state: Arc<AppState>) {
    let mut ticks = tokio::time::interval(EXPIRY_INTERVAL);
    while state
        .shutdown
        .run_until_cancelled(ticks.tick())
        .await
        .is_some()
    {
        state.with_intents(|_| ());
    }
}

/// Dojo treats `/payment-intents/` like `/payment-intents`.
fn without_trailing_slash(mut request: Request) -> Request {
    let uri = request.uri();
    let path = uri.path().trim_end_matches('/');
    if path.is_empty() || path.len() == uri.path().len() {
        return request;
    }
    let shorter = match uri.query() {
        Some(query) => format!("{path}?{query}"),
        None => path.to_owned(),
    };
    // Removing slashes from a valid URI leaves a valid URI.
    if let Ok(shorter) = Uri::try_from(shorter) {
        *request.uri_mut() = shorter;
    }
    request
}

/// The loopback address if the sandbox listens on all addresses, which can't be called.
fn reachable(addr: SocketAddr) -> SocketAddr {
    let ip = match addr.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, addr.port())
}
