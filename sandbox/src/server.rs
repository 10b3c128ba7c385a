//! The HTTP server. Its own loop, and not axum's, because a fault may cut a connection or leave it
//! silent: axum always answers.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::response::Response;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

/// Callers beyond this many wait until one is done.
const MOST_CONNECTIONS: usize = 1024;

/// How long a caller may take to send a request's head.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);

/// How long calls under way may take to end when the sandbox stops.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(5);

/// A response that is none: the connection closes without a word.
pub(crate) fn cut() -> Response {
    broken(Broken::Cut)
}

/// A response that never comes: the connection stays open, and nothing is said on it.
pub(crate) fn silence() -> Response {
    broken(Broken::Silent)
}

fn broken(how: Broken) -> Response {
    let mut response = Response::new(Body::empty());
    response.extensions_mut().insert(how);
    response
}

#[derive(Clone, Copy, Debug)]
enum Broken {
    Cut,
    Silent,
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cut => f.write_str("the connection is cut, as asked"),
            Self::Silent => f.write_str("the connection stays silent, as asked"),
        }
    }
}

impl std::error::Error for Broken {}

/// Serves until told to stop, and then until calls under way are done.
pub(crate) async fn serve(listener: TcpListener, routes: Router, stop: CancellationToken) {
    let connections = GracefulShutdown::new();
    let room = Arc::new(Semaphore::new(MOST_CONNECTIONS));
    while let Some(stream) = stop.run_until_cancelled(accept(&listener)).await {
        let Some(Ok(seat)) = stop
            .run_until_cancelled(Arc::clone(&room).acquire_owned())
            .await
        else {
            break;
        };
        let (routes, stop) = (routes.clone(), stop.clone());
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIMEOUT)
            .serve_connection(
                TokioIo::new(stream),
                service_fn(move |request: hyper::Request<hyper::body::Incoming>| {
                    let (routes, stop) = (routes.clone(), stop.clone());
                    async move {
                        let Ok(response) = routes.oneshot(request.map(Body::new)).await;
                        let Some(how) = response.extensions().get::<Broken>().copied() else {
                            return Ok(response);
                        };
                        if matches!(how, Broken::Silent) {
                            // Until the caller closes the connection, which drops this, or the sandbox stops.
                            stop.cancelled().await;
                        }
                        // An error here makes hyper drop the connection without an answer.
                        Err(how)
                    }
                }),
            );
        let connection = connections.watch(connection);
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection ended early");
            }
            drop(seat);
        });
    }
    drop(listener);
    if tokio::time::timeout(SHUTDOWN_TIMEOUT, connections.shutdown())
        .await
        .is_err()
    {
        tracing::warn!("some calls did not end in time");
    }
}

/// Running out of file handles passes; the pause keeps the loop from spinning until it does.
async fn accept(listener: &TcpListener) -> TcpStream {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                // Small answers must not wait for company; failing that they are late, not lost.
                let _ = stream.set_nodelay(true);
                return stream;
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}
