//! Limits how many requests of one person wait for events.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use uuid::Uuid;

/// How many pages of a person wait at once. Without HTTP/2, a browser has six connections to a host, for all of its windows. What
/// the person clicks needs some of them.
const MOST: usize = 4;

/// The requests that wait, by the person's client.
#[derive(Default)]
pub(super) struct Waiting(Mutex<HashMap<Uuid, usize>>);

impl Waiting {
    /// A place for one more request of the person, until it is dropped. `None` if there are enough.
    pub(super) fn take(&self, client_id: Uuid) -> Option<Place<'_>> {
        let mut counts = self.counts();
        let count = counts.entry(client_id).or_default();
        if *count >= MOST {
            return None;
        }
        *count += 1;
        Some(Place {
            waiting: self,
            client_id,
        })
    }

    /// A panic leaves nothing half done there.
    fn counts(&self) -> MutexGuard<'_, HashMap<Uuid, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The place of a request that waits.
pub(super) struct Place<'a> {
    waiting: &'a Waiting,
    client_id: Uuid,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut counts = self.waiting.counts();
        match counts.get_mut(&self.client_id) {
            Some(count) if *count > 1 => *count -= 1,
            _ => {
                counts.remove(&self.client_id);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_person_has_a_few_places_and_gets_them_back() {
        let waiting = Waiting::default();
        let (ann, ben) = (Uuid::from_u128(1), Uuid::from_u128(2));
        let mut places: Vec<_> = (0..MOST).map_while(|_| waiting.take(ann)).collect();
        assert_eq!(places.len(), MOST);
        assert!(waiting.take(ann).is_none());
        assert!(waiting.take(ben).is_some());
        places.pop();
        assert!(waiting.take(ann).is_some());
        places.clear();
        assert!(waiting.counts().is_empty(), "somebody is never forgotten");
    }
}
