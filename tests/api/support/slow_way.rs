//! A connection to Postgres that holds back the response to a statement.

use std::time::Duration;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, tcp::OwnedReadHalf, tcp::OwnedWriteHalf},
    sync::watch,
};

use super::within;

/// A connection to Postgres on which the response to a statement can be delayed.
pub struct SlowWay {
    pub url: String,
    waiting: watch::Receiver<bool>,
    hold: watch::Sender<bool>,
}

impl SlowWay {
    /// The response to a statement with these words is delayed until [`SlowWay::let_go`].
    pub async fn to(database_url: &str, words: &'static str) -> Self {
        let url = url::Url::parse(database_url).unwrap();
        let target = format!("{}:{}", url.host_str().unwrap(), url.port().unwrap_or(5432));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (hold, _) = watch::channel(true);
        let (strike, waiting) = watch::channel(false);
        tokio::spawn({
            let hold = hold.clone();
            async move {
                while let Ok((client, _)) = listener.accept().await {
                    let server = TcpStream::connect(&target).await.unwrap();
                    let (from_client, to_client) = client.into_split();
                    let (from_server, to_server) = server.into_split();
                    let (seen, words_seen) = watch::channel(false);
                    tokio::spawn(pass_on(from_client, to_server, words, seen));
                    tokio::spawn(pass_back(
                        from_server,
                        to_client,
                        words_seen,
                        hold.subscribe(),
                        strike.clone(),
                    ));
                }
            }
        });
        let mut url = url;
        url.set_host(Some("127.0.0.1")).unwrap();
        url.set_port(Some(address.port())).unwrap();
        Self {
            url: url.into(),
            waiting,
            hold,
        }
    }

    /// Waits until a response is held back.
    pub async fn holds(&mut self) {
        let held = self.waiting.wait_for(|waiting| *waiting);
        within(Duration::from_mins(1), "a response is held back", held)
            .await
            .unwrap();
    }

    /// Holds back responses from now on.
    pub fn hold(&self) {
        self.hold.send_replace(true);
    }

    pub fn let_go(&self) {
        self.hold.send_replace(false);
    }
}

/// Passes on what the client sends. `seen` becomes true once it has sent the words and then something more: a statement is
/// first sent to be parsed, and then to be executed.
async fn pass_on(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    words: &str,
    seen: watch::Sender<bool>,
) {
    let (mut buffer, mut parsed) = (vec![0; 64 * 1024], false);
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        if parsed {
            seen.send_replace(true);
        }
        let sent = String::from_utf8_lossy(&buffer[..read]);
        parsed = parsed || sent.contains(words);
        if to.write_all(&buffer[..read]).await.is_err() {
            return;
        }
    }
}

async fn pass_back(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    words_seen: watch::Receiver<bool>,
    mut hold: watch::Receiver<bool>,
    strike: watch::Sender<bool>,
) {
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        if *words_seen.borrow() && *hold.borrow() {
            strike.send_replace(true);
            let _ = hold.wait_for(|hold| !hold).await;
        }
        if to.write_all(&buffer[..read]).await.is_err() {
            return;
        }
    }
}
