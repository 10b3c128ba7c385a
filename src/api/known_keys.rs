//! API keys that were looked up a moment ago, so that a request needs no round trip to the database for its key.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use crate::store::{self, PgPool, api_keys::Identified};

/// How long the result of a lookup is used. A key that is revoked is rejected by every replica after this time at the
/// latest, so it must stay well below the second that the documentation promises.
const FRESH: Duration = Duration::from_millis(500);

/// By the hash of the key: when it was looked up, and what was found.
type Lookups = HashMap<[u8; 32], (Instant, Arc<Identified>)>;

/// The valid keys that were looked up a moment ago, by their hashes. Unknown keys are not remembered, so there are never more
/// entries than keys.
#[derive(Debug, Default)]
pub(super) struct KnownKeys(Mutex<Lookups>);

impl KnownKeys {
    /// The client with this key, by the key's hash. `None`: there is none, or the key is revoked or has expired.
    pub(super) async fn identify(
        &self,
        pool: &PgPool,
        hash: [u8; 32],
    ) -> Result<Option<Arc<Identified>>, store::Error> {
        if let Some((asked, known)) = self.lock().get(&hash)
            && asked.elapsed() < FRESH
        {
            return Ok(Some(Arc::clone(known)));
        }
        // Before the lookup: the key may be revoked while its result is on the way.
        let asked = Instant::now();
        let found = store::api_keys::identify(pool, &hash).await?.map(Arc::new);
        match &found {
            Some(key) => self.lock().insert(hash, (asked, Arc::clone(key))),
            None => self.lock().remove(&hash),
        };
        Ok(found)
    }

    /// Forgets the keys that have to be looked up again anyway.
    pub(super) fn forget_old(&self) {
        self.lock().retain(|_, (asked, _)| asked.elapsed() < FRESH);
    }

    fn lock(&self) -> MutexGuard<'_, Lookups> {
        // Each change of the map is a single step, so a panic leaves it intact.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
