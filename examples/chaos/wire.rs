//! The wire between a replica and its database. It can go silent, as when a firewall drops its connections or a network loses
//! packets: neither side is told, so each waits for the other. It can also hold back what the database sends.

use std::{io, time::Duration};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, copy, sink},
    net::{TcpListener, TcpStream},
    sync::watch,
    time::timeout,
};

/// How long the server keeps its side of a silent connection. A real server notices by its TCP keepalive.
const SERVER_NOTICES: Duration = Duration::from_secs(45);

/// A TCP proxy in front of one address.
pub struct Wire {
    pub port: u16,
    silenced: watch::Sender<u64>,
    holds_responses: watch::Sender<bool>,
}

impl Wire {
    pub async fn to(server: u16) -> io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let port = listener.local_addr()?.port();
        let (silenced, heard) = watch::channel(0);
        let (holds_responses, hold) = watch::channel(false);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (mut heard, hold) = (heard.clone(), hold.clone());
                heard.mark_unchanged();
                tokio::spawn(async move {
                    // If the server is not there, the client notices.
                    if let Ok(server) = TcpStream::connect(("127.0.0.1", server)).await {
                        carry(client, server, heard, hold).await;
                    }
                });
            }
        });
        Ok(Self {
            port,
            silenced,
            holds_responses,
        })
    }

    /// From now on, whatever is sent on a connection that is open now is dropped. New connections work.
    pub fn go_silent(&self) {
        self.silenced.send_modify(|times| *times += 1);
    }

    /// Holds back whatever the database sends from now on, or passes it on again. Statements still reach the database.
    pub fn hold_responses(&self, hold: bool) {
        self.holds_responses.send_replace(hold);
    }
}

async fn carry(
    mut client: TcpStream,
    mut server: TcpStream,
    mut heard: watch::Receiver<u64>,
    hold: watch::Receiver<bool>,
) {
    // Delaying small messages would only make everything slow.
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    {
        let (mut from_client, to_client) = client.split();
        let (from_server, mut to_server) = server.split();
        tokio::select! {
            // A cut is for both sides to notice.
            _ = copy(&mut from_client, &mut to_server) => return,
            _ = pass_on(from_server, to_client, hold) => return,
            silenced = heard.changed() => if silenced.is_err() {
                return;
            },
        }
    }
    let (mut from_client, to_client) = client.into_split();
    let (mut from_server, to_server) = server.into_split();
    let (mut nowhere, mut nowhere_else) = (sink(), sink());
    let swallow = async {
        tokio::join!(
            copy(&mut from_client, &mut nowhere),
            copy(&mut from_server, &mut nowhere_else),
        )
    };
    // The end of the client's side is dropped as well.
    let _ = timeout(SERVER_NOTICES, swallow).await;
    // So is the end of the server's side.
    drop((from_server, to_server));
    let mut rest = [0; 1024];
    while from_client.read(&mut rest).await.is_ok_and(|read| read > 0) {}
    drop(to_client);
}

/// Copies from the database to its client, except while responses are held back.
async fn pass_on(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    mut hold: watch::Receiver<bool>,
) -> io::Result<()> {
    let mut buffer = vec![0; 16 << 10];
    loop {
        let read = from.read(&mut buffer).await?;
        if read == 0 || hold.wait_for(|hold| !hold).await.is_err() {
            return Ok(());
        }
        to.write_all(&buffer[..read]).await?;
    }
}
