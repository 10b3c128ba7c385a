//! The HTTP server. It has its own loop, because a fault may close a connection or leave it silent. axum's loop always
//! responds.

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

/// Further callers wait until a connection closes.
const MAX_CONNECTIONS: usize = 1024;

/// How long a caller may take to send the head of a request.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);

/// How long calls in progress may take to finish when the sandbox stops.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(5);

/// Makes the server close the connection without a response.
pub(crate) fn cut() -> Response {
    no_response(NoResponse::Cut)
}

/// Makes the server leave the connection open without ever responding.
pub(crate) fn silence() -> Response {
    no_response(NoResponse::Silent)
}

fn no_response(kind: NoResponse) -> Response {
    let mut response = Response::new(Body::empty());
    response.extensions_mut().insert(kind);
    response
}

#[derive(Clone, Copy, Debug)]
enum NoResponse {
    Cut,
    Silent,
}

impl fmt::Display for NoResponse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cut => f.write_str("a fault closed the connection"),
            Self::Silent => f.write_str("a fault left the connection silent"),
        }
    }
}

impl std::error::Error for NoResponse {}

/// Serves until `stop` is canceled, and then until the calls in progress have finished.
pub(crate) async fn serve(listener: TcpListener, routes: Router, stop: CancellationToken) {
    let connections = GracefulShutdown::new();
    let connection_limit = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    while let Some(stream) = stop.run_until_cancelled(accept(&listener)).await {
        let Some(Ok(permit)) = stop
            .run_until_cancelled(Arc::clone(&connection_limit).acquire_owned())
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
                        let Some(kind) = response.extensions().get::<NoResponse>().copied() else {
                            return Ok(response);
                        };
                        if matches!(kind, NoResponse::Silent) {
                            // Waits until the caller closes the connection, which drops this future, or until the
                            // sandbox stops.
                            stop.cancelled().await;
                        }
                        // An error makes hyper close the connection without a response.
                        Err(kind)
                    }
                }),
            );
        let connection = connections.watch(connection);
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection ended early");
            }
            drop(permit);
        });
    }
    drop(listener);
    if tokio::time::timeout(SHUTDOWN_TIMEOUT, connections.shutdown())
        .await
        .is_err()
    {
        tracing::warn!("some calls did not finish in time");
    }
}

/// Retries after a pause if accepting fails, for example because there are no file descriptors left.
async fn accept(listener: &TcpListener) -> TcpStream {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                // Without `TCP_NODELAY`, small responses are only late, so an error here doesn't matter.
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
