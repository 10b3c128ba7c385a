//! A closed loop: each connection sends a request, waits for the response, and sends the next one.

use std::{
    cell::Cell,
    net::SocketAddr,
    time::{Duration, Instant},
};

use futures_util::future::try_join_all;
use hdrhistogram::Histogram;

use crate::{
    Result,
    http::{Connection, Request},
};

/// How long the last responses may take after a loop's time is over.
const PATIENCE: Duration = Duration::from_mins(1);

/// Requests that several connections share.
pub struct Deck {
    requests: Vec<Request>,
    next: Cell<usize>,
    repeats: bool,
}

impl Deck {
    /// Each request is sent once. A loop ends early if none is left.
    pub fn once(requests: Vec<Request>) -> Self {
        Self {
            requests,
            next: Cell::new(0),
            repeats: false,
        }
    }

    /// The requests are sent again and again.
    pub fn repeat(requests: Vec<Request>) -> Self {
        Self {
            repeats: true,
            ..Self::once(requests)
        }
    }

    pub fn requests(&self) -> &[Request] {
        &self.requests
    }

    fn take(&self) -> Option<&Request> {
        let next = self.next.get();
        self.next.set(next + 1);
        if self.repeats {
            self.requests.get(next % self.requests.len().max(1))
        } else {
            self.requests.get(next)
        }
    }
}

/// What a loop measured.
pub struct Load {
    pub responses: u64,
    pub elapsed: Duration,
    latency: Histogram<u64>,
}

impl Load {
    fn new() -> Result<Self> {
        Ok(Self {
            responses: 0,
            elapsed: Duration::ZERO,
            // From a microsecond to ten minutes, with three significant digits.
            latency: Histogram::new_with_bounds(1, 600_000_000, 3)?,
        })
    }

    /// Responses per second.
    pub fn rate(&self) -> f64 {
        rate(self.responses, self.elapsed)
    }

    /// The latency that this share of the requests does not exceed, in milliseconds.
    pub fn quantile(&self, quantile: f64) -> f64 {
        let latency = Duration::from_micros(self.latency.value_at_quantile(quantile));
        milliseconds(latency)
    }

    pub fn p50(&self) -> f64 {
        self.quantile(0.5)
    }

    pub fn p99(&self) -> f64 {
        self.quantile(0.99)
    }

    /// The mean latency, in milliseconds.
    pub fn mean(&self) -> f64 {
        self.latency.mean() / 1000.0
    }

    /// Several loops as one.
    pub fn merge(loads: &[Load]) -> Result<Load> {
        let mut all = Self::new()?;
        for load in loads {
            all.responses += load.responses;
            all.elapsed += load.elapsed;
            all.latency.add(&load.latency)?;
        }
        Ok(all)
    }
}

/// So many things per second.
#[expect(
    clippy::cast_precision_loss,
    reason = "no run counts to 2^52, beyond which a float loses whole numbers"
)]
pub fn rate(count: u64, elapsed: Duration) -> f64 {
    count as f64 / elapsed.as_secs_f64()
}

pub fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

/// The middle one, or the mean of the two in the middle.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => f64::NAN,
        length if length % 2 == 1 => sorted[middle],
        _ => f64::midpoint(sorted[middle - 1], sorted[middle]),
    }
}

/// Sends requests on so many connections, for so long. A response other than 2xx is an error.
pub async fn run(
    address: SocketAddr,
    connections: usize,
    deck: &Deck,
    length: Duration,
) -> Result<Load> {
    let open = try_join_all((0..connections).map(|_| Connection::open(address))).await?;
    let start = Instant::now();
    let end = start + length;
    let loops = open
        .into_iter()
        .map(|connection| closed_loop(connection, deck, end));
    let loads = tokio::time::timeout(length + PATIENCE, try_join_all(loops))
        .await
        .map_err(|_| "some requests got no response")??;
    Ok(Load {
        elapsed: start.elapsed(),
        ..Load::merge(&loads)?
    })
}

async fn closed_loop(mut connection: Connection, deck: &Deck, end: Instant) -> Result<Load> {
    let mut load = Load::new()?;
    let mut now = Instant::now();
    while now < end
        && let Some(request) = deck.take()
    {
        let response = connection.call(request).await?;
        if !response.is_success() {
            let body = String::from_utf8_lossy(response.body);
            return Err(format!("a response has status {}: {body}", response.status).into());
        }
        let sent = now;
        now = Instant::now();
        let micros = (now - sent).as_micros();
        load.latency
            .saturating_record(u64::try_from(micros).unwrap_or(u64::MAX));
        load.responses += 1;
    }
    Ok(load)
}
