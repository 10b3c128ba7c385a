//! Reading links together.
//!
//! A statement costs Postgres and the service about as much for one link as for ten. So the requests that arrive while all
//! readers wait for Postgres share the next statement. If a reader is free, a link is read at once, by itself.

use std::{collections::HashMap, sync::Arc, time::Duration};

use tokio::{
    sync::{Mutex, mpsc, oneshot},
    time::timeout,
};
use uuid::Uuid;

use super::{
    Error, PgPool,
    links::{self, Row},
};
use crate::payment_link::{PaymentLink, PaymentLinkId};

/// How many statements run at once. The fewer, the more requests share one.
const READERS: usize = 2;

/// The most requests that share a statement.
const BATCH: usize = 128;

/// How long a reader waits for a statement. If it takes longer, the reader goes on with those that have arrived since: the
/// statement may hang on a dead connection, or wait for a free one.
const PATIENCE: Duration = Duration::from_millis(250);

/// How many requests may wait for a reader. Further ones wait until there is a place.
const QUEUE: usize = 1024;

type Reply = oneshot::Sender<Result<Option<Row>, Arc<Error>>>;

/// A request that waits for a reader.
struct Waiting {
    id: Uuid,
    reply: Reply,
}

/// Reads links for requests.
///
/// A statement begins after the requests that share it have arrived, so each of them sees everything that was committed before.
#[derive(Debug)]
pub struct LinkReader {
    pool: PgPool,
    queue: mpsc::Sender<Waiting>,
}

impl LinkReader {
    /// Starts the readers. They end when this is dropped.
    #[must_use]
    pub fn start(pool: &PgPool) -> Self {
        let (queue, waiting) = mpsc::channel(QUEUE);
        let waiting = Arc::new(Mutex::new(waiting));
        for _ in 0..READERS {
            tokio::spawn(read_all(pool.clone(), Arc::clone(&waiting)));
        }
        Self {
            pool: pool.clone(),
            queue,
        }
    }

    /// The link with this id. If the statement fails, so do all requests that share it.
    pub async fn find(&self, id: PaymentLinkId) -> Result<Option<PaymentLink>, Arc<Error>> {
        let (reply, row) = oneshot::channel();
        let waiting = Waiting {
            id: id.uuid(),
            reply,
        };
        let row = match self.queue.send(waiting).await {
            Ok(()) => row.await.ok(),
            Err(_) => None,
        };
        match row {
            Some(row) => Ok(row?.map(Row::into_link).transpose()?),
            // The reader panicked.
            None => Ok(links::find(&self.pool, id).await?),
        }
    }
}

/// Answers requests until no more can come.
async fn read_all(pool: PgPool, waiting: Arc<Mutex<mpsc::Receiver<Waiting>>>) {
    loop {
        let mut batch = Vec::new();
        if waiting.lock().await.recv_many(&mut batch, BATCH).await == 0 {
            return;
        }
        // A panic drops the replies, and nothing else.
        let reading = tokio::spawn(read(pool.clone(), batch));
        let _ = timeout(PATIENCE, reading).await;
    }
}

async fn read(pool: PgPool, mut batch: Vec<Waiting>) {
    // Clients that have disconnected may have sent their requests again.
    batch.retain(|waiting| !waiting.reply.is_closed());
    let mut replies: HashMap<Uuid, Vec<Reply>> = HashMap::new();
    for Waiting { id, reply } in batch {
        replies.entry(id).or_default().push(reply);
    }
    let ids: Vec<_> = replies.keys().copied().collect();
    match links::rows(&pool, &ids).await {
        Ok(rows) => {
            for row in rows {
                let mut replies = replies.remove(&row.id).unwrap_or_default();
                let last = replies.pop();
                for reply in replies {
                    send(reply, Ok(Some(row.clone())));
                }
                if let Some(reply) = last {
                    send(reply, Ok(Some(row)));
                }
            }
            for reply in replies.into_values().flatten() {
                send(reply, Ok(None));
            }
        }
        Err(error) => {
            let error = Arc::new(error);
            for reply in replies.into_values().flatten() {
                send(reply, Err(Arc::clone(&error)));
            }
        }
    }
}

fn send(reply: Reply, row: Result<Option<Row>, Arc<Error>>) {
    // The client may have disconnected.
    let _ = reply.send(row);
}
