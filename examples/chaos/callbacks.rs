//! Callback endpoints: one that works, and one that fails, hangs and hangs up. Both must get everything, and each link's
//! events in order.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use rand::{RngExt, SeedableRng, rngs::StdRng};
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::{Instant, sleep, timeout},
};

use crate::{
    people::text,
    promise::{Promise, broken},
    stage::{CALLBACK_TIMEOUT, Result, Stage},
};

/// A server that callbacks are sent to.
pub struct Receiver {
    /// The endpoint's id.
    id: String,
    name: &'static str,
    got: Arc<Mutex<Vec<Callback>>>,
}

/// A callback as it arrived.
struct Callback {
    id: String,
    link: String,
    /// Whether the response was a 2xx.
    accepted: bool,
}

/// How a receiver responds.
#[derive(Clone, Copy, PartialEq)]
enum Mood {
    Accepts,
    Fails,
    AsksToWait,
    /// Responds too late.
    Hangs,
    HangsUp,
}

impl Mood {
    fn any(rng: &mut StdRng) -> Self {
        match rng.random_range(0..100) {
            0..5 => Self::Fails,
            5..8 => Self::AsksToWait,
            8..10 => Self::Hangs,
            10..13 => Self::HangsUp,
            _ => Self::Accepts,
        }
    }
}

impl Receiver {
    /// Starts both receivers and creates their endpoints.
    pub async fn both(stage: &Stage, rng: &mut StdRng) -> Result<[Self; 2]> {
        Ok([
            Self::start(stage, "the steady receiver", None).await?,
            Self::start(stage, "the moody receiver", Some(rng.random())).await?,
        ])
    }

    async fn start(stage: &Stage, name: &'static str, moods: Option<u64>) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let url = format!("http://{}/", listener.local_addr()?);
        let got = Arc::new(Mutex::new(Vec::new()));
        let received = Arc::clone(&got);
        tokio::spawn(async move {
            let mut rng = moods.map(StdRng::seed_from_u64);
            while let Ok((stream, _)) = listener.accept().await {
                let mood = rng.as_mut().map_or(Mood::Accepts, Mood::any);
                let received = Arc::clone(&received);
                tokio::spawn(async move {
                    // A connection that breaks concerns nobody else.
                    let _ = respond(stream, mood, &received).await;
                });
            }
        });
        stage
            .command(&["callback-endpoints", "create", "--url", &url])
            .await?;
        let listed = stage.command(&["callback-endpoints", "list"]).await?;
        let endpoints = listed.lines().map(serde_json::from_str::<Value>);
        let endpoints: Vec<Value> = endpoints.collect::<std::result::Result<_, _>>()?;
        let own = endpoints.iter().find(|endpoint| endpoint["url"] == url);
        let id = own.map(|endpoint| text(&endpoint["id"]).to_owned());
        Ok(Self {
            id: id.ok_or("the endpoint isn't listed")?,
            name,
            got,
        })
    }
}

/// Receives one callback and responds. Each comes on a connection of its own.
async fn respond(mut stream: TcpStream, mood: Mood, got: &Mutex<Vec<Callback>>) -> Result {
    let body = timeout(Duration::from_secs(10), body(&mut stream)).await??;
    let event: Value = serde_json::from_slice(&body)?;
    got.lock()
        .unwrap_or_else(PoisonError::into_inner)
        .push(Callback {
            id: text(&event["id"]).to_owned(),
            link: text(&event["paymentLinkId"]).to_owned(),
            accepted: mood == Mood::Accepts,
        });
    let response = match mood {
        Mood::Accepts => "HTTP/1.1 204 No Content\r\n\r\n",
        Mood::Fails => "HTTP/1.1 500 Oops\r\ncontent-length: 4\r\n\r\noops",
        Mood::AsksToWait => "HTTP/1.1 503 Later\r\nretry-after: 1\r\ncontent-length: 0\r\n\r\n",
        Mood::Hangs => {
            sleep(CALLBACK_TIMEOUT * 2).await;
            "HTTP/1.1 204 No Content\r\n\r\n"
        }
        Mood::HangsUp => return Ok(()),
    };
    stream.write_all(response.as_bytes()).await?;
    stream.shutdown().await?;
    Ok(())
}

/// The body of a request with `content-length`.
async fn body(stream: &mut TcpStream) -> Result<Vec<u8>> {
    let mut request = Vec::new();
    loop {
        if stream.read_buf(&mut request).await? == 0 {
            return Err("the connection ended early".into());
        }
        let Some(end) = request.windows(4).position(|bytes| bytes == b"\r\n\r\n") else {
            continue;
        };
        let head = String::from_utf8_lossy(&request[..end]).to_lowercase();
        let length = head
            .lines()
            .find_map(|line| line.strip_prefix("content-length:")?.trim().parse().ok());
        let length: usize = length.ok_or("no content-length")?;
        if request.len() >= end + 4 + length {
            return Ok(request.split_off(end + 4));
        }
    }
}

/// Waits until every endpoint has got everything, when nothing goes wrong and nothing more happens. What waits for another
/// attempt is attempted at once, as if its time had come.
pub async fn finish(stage: &Stage, receivers: &[Receiver]) -> Result {
    let limit = Instant::now() + Duration::from_mins(1);
    loop {
        let left: i64 = sqlx::query_scalar(
            "SELECT (SELECT count(*) FROM callback_deliveries WHERE status <> 'Delivered')
                  + (SELECT count(*) FROM callback_endpoints, feed WHERE position < head)",
        )
        .fetch_one(&stage.database.pool)
        .await?;
        if left == 0 {
            return Ok(());
        }
        if Instant::now() > limit {
            let what = format!("{left} deliveries or endpoints aren't finished after a minute");
            return broken(Promise::Called, "callbacks", what);
        }
        for receiver in receivers {
            stage
                .command(&["callback-endpoints", "resume", &receiver.id])
                .await?;
        }
        sleep(Duration::from_secs(1)).await;
    }
}

/// Checks that every receiver has accepted every event, and each link's events in the order of the feed. Returns how many
/// callbacks arrived.
pub async fn judge(stage: &Stage, receivers: &[Receiver]) -> Result<usize> {
    let feed: Vec<(String, String)> = sqlx::query_as(
        "SELECT event->>'id', event->>'paymentLinkId' FROM feed_events
         WHERE position > (SELECT max(coalesce(begin, 0)) FROM (
             SELECT min(position) - 1 AS begin FROM callback_deliveries GROUP BY endpoint_id) first)
         ORDER BY position",
    )
    .fetch_all(&stage.database.pool)
    .await?;
    let mut arrived = 0;
    for receiver in receivers {
        let got = receiver.got.lock().unwrap_or_else(PoisonError::into_inner);
        arrived += got.len();
        // A repetition may come late. What is accepted for the first time comes in order.
        let mut known = HashSet::new();
        let mut by_link: HashMap<&str, Vec<&str>> = HashMap::new();
        for callback in got.iter().filter(|callback| callback.accepted) {
            if known.insert(&callback.id) {
                by_link
                    .entry(&callback.link)
                    .or_default()
                    .push(&callback.id);
            }
        }
        let mut expected: HashMap<&str, Vec<&str>> = HashMap::new();
        for (id, link) in &feed {
            expected.entry(link).or_default().push(id);
        }
        for (link, events) in expected {
            let came = by_link.get(link).map(Vec::as_slice).unwrap_or_default();
            if came != events {
                let what = format!("{} got {came:?} instead of {events:?}", receiver.name);
                return broken(Promise::Called, link, what);
            }
        }
    }
    Ok(arrived)
}
