//! A TCP proxy that can stop passing data on, as a firewall, a cut cable or a frozen host does: connections stay open, every
//! byte is accepted, and no response comes.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicBool, AtomicUsize, Ordering},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
    task::JoinHandle,
};

/// The proxy. Dropping it closes everything.
pub struct Proxy {
    pub port: u16,
    shared: Arc<Shared>,
    accepting: JoinHandle<()>,
}

struct Shared {
    target: Mutex<u16>,
    /// How often it went silent. A connection that was opened before the last time passes nothing on.
    silences: watch::Sender<usize>,
    /// Whether new connections are silent as well.
    cut: AtomicBool,
    /// The number of connections that pass data on.
    passing: AtomicUsize,
}

impl Proxy {
    /// A proxy in front of this port on this machine.
    pub async fn to(port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let shared = Arc::new(Shared {
            target: Mutex::new(port),
            silences: watch::Sender::new(0),
            cut: AtomicBool::new(false),
            passing: AtomicUsize::new(0),
        });
        Self {
            port: listener.local_addr().unwrap().port(),
            shared: Arc::clone(&shared),
            accepting: tokio::spawn(accept(listener, shared)),
        }
    }

    /// Makes new connections lead to this port.
    pub fn lead_to(&self, port: u16) {
        *self.shared.target.lock().unwrap() = port;
    }

    /// Drops whatever is sent on connections that are open now. Returns how many there are.
    pub fn silence(&self) -> usize {
        self.shared.silences.send_modify(|times| *times += 1);
        self.shared.passing.swap(0, Ordering::SeqCst)
    }

    /// Drops whatever is sent on any connection from now on.
    pub fn cut(&self) {
        self.shared.cut.store(true, Ordering::SeqCst);
        self.silence();
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    // The connections end when the set is dropped.
    let mut connections = tokio::task::JoinSet::new();
    while let Ok((client, _)) = listener.accept().await {
        let shared = Arc::clone(&shared);
        connections.spawn(async move {
            let _ = pass_on(client, &shared).await;
        });
    }
}

async fn pass_on(client: TcpStream, shared: &Shared) -> std::io::Result<()> {
    if shared.cut.load(Ordering::SeqCst) {
        let (read, write) = client.into_split();
        swallow(read, write).await;
        return Ok(());
    }
    let mut silences = shared.silences.subscribe();
    silences.mark_unchanged();
    let target = *shared.target.lock().unwrap();
    let server = TcpStream::connect(("127.0.0.1", target)).await?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    shared.passing.fetch_add(1, Ordering::SeqCst);
    let went_silent = {
        let both = async {
            tokio::select! {
                _ = copy(&mut from_client, &mut to_server) => {}
                _ = copy(&mut from_server, &mut to_client) => {}
            }
        };
        tokio::select! {
            biased;
            _ = silences.changed() => true,
            () = both => false,
        }
    };
    if went_silent {
        tokio::join!(
            swallow(from_client, to_server),
            swallow(from_server, to_client)
        );
    } else {
        shared.passing.fetch_sub(1, Ordering::SeqCst);
    }
    Ok(())
}

async fn copy(from: &mut OwnedReadHalf, to: &mut OwnedWriteHalf) -> std::io::Result<()> {
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let read = from.read(&mut buffer).await?;
        if read == 0 {
            return Ok(());
        }
        to.write_all(&buffer[..read]).await?;
    }
}

/// Accepts everything, and never closes the other side.
async fn swallow(mut from: OwnedReadHalf, to: OwnedWriteHalf) {
    let mut buffer = vec![0; 16 * 1024];
    while matches!(from.read(&mut buffer).await, Ok(1..)) {}
    std::future::pending::<()>().await;
    drop(to);
}
