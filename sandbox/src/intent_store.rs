//! All payment intents and their transactions. One lock around them makes each operation atomic. The events that an
//! operation causes wait in the outbox and are published after the lock is released.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use crate::clock::{Clock, Timestamp};
use crate::intents::{Intent, Refund, Rejection};
use crate::paging::Position;
use crate::transactions::Transactions;
use crate::webhooks::Event;

/// Beyond this number, the oldest intents are forgotten, so that a load test can't use up the machine's memory.
const MAX_INTENTS: usize = 200_000;

#[derive(Debug)]
pub(crate) struct IntentStore {
    clock: Arc<Clock>,
    /// By the order in which they were created.
    intents: BTreeMap<Position, Intent>,
    positions: HashMap<String, Position>,
    due: BTreeSet<(Timestamp, Position)>,
    /// The intent that a refund belongs to, by the refund's id.
    refunds: HashMap<String, Position>,
    next: Position,
    pub(crate) transactions: Transactions,
    outbox: Vec<Event>,
}

#[derive(Debug)]
pub(crate) enum ChangeError {
    UnknownIntent,
    Rejected(Rejection),
}

impl IntentStore {
    pub(crate) fn new(clock: Arc<Clock>) -> Self {
        Self {
            clock,
            intents: BTreeMap::new(),
            positions: HashMap::new(),
            due: BTreeSet::new(),
            refunds: HashMap::new(),
            next: 1,
            transactions: Transactions::default(),
            outbox: Vec::new(),
        }
    }

    /// Adds a new intent, and the event that announces it.
    pub(crate) fn add(&mut self, intent: Intent) -> &Intent {
        self.outbox.push(Event::created(&intent, self.clock.now()));
        self.insert(intent)
    }

    /// Adds an intent without any event, as if it had existed for a while.
    pub(crate) fn insert(&mut self, intent: Intent) -> &Intent {
        if self.intents.len() >= MAX_INTENTS
            && let Some((position, forgotten)) = self.intents.pop_first()
        {
            self.positions.remove(&forgotten.id);
            for refund in &forgotten.refunds {
                self.refunds.remove(&refund.id);
            }
            if let Some(time) = forgotten.due_at() {
                self.due.remove(&(time, position));
            }
        }
        let position = self.next;
        self.next += 1;
        self.positions.insert(intent.id.clone(), position);
        self.due
            .extend(intent.due_at().map(|time| (time, position)));
        self.intents.entry(position).or_insert(intent)
    }

    pub(crate) fn find(&self, id: &str) -> Option<&Intent> {
        self.positions
            .get(id)
            .and_then(|position| self.intents.get(position))
    }

    /// A refund and the intent it belongs to.
    pub(crate) fn find_refund(&self, id: &str) -> Option<(&Intent, &Refund)> {
        let intent = self
            .refunds
            .get(id)
            .and_then(|position| self.intents.get(position))?;
        let refund = intent.refunds.iter().find(|refund| refund.id == id)?;
        Some((intent, refund))
    }

    /// All intents, oldest first.
    pub(crate) fn all(&self) -> &BTreeMap<Position, Intent> {
        &self.intents
    }

    /// Changes an intent. If `rule` rejects the change, the intent stays as it was.
    pub(crate) fn change<T>(
        &mut self,
        id: &str,
        rule: impl FnOnce(&mut Intent, Timestamp) -> Result<T, Rejection>,
    ) -> Result<(T, &Intent), ChangeError> {
        let position = *self.positions.get(id).ok_or(ChangeError::UnknownIntent)?;
        self.change_at(position, rule)
    }

    fn change_at<T>(
        &mut self,
        position: Position,
        rule: impl FnOnce(&mut Intent, Timestamp) -> Result<T, Rejection>,
    ) -> Result<(T, &Intent), ChangeError> {
        let current = self
            .intents
            .get_mut(&position)
            .ok_or(ChangeError::UnknownIntent)?;
        let now = self.clock.now();
        let mut changed = current.clone();
        let outcome = rule(&mut changed, now).map_err(ChangeError::Rejected)?;
        changed.updated_at = now;
        if changed.status != current.status {
            self.outbox.push(Event::status_updated(&changed, now));
        }
        if let Some(time) = current.due_at() {
            self.due.remove(&(time, position));
        }
        self.due
            .extend(changed.due_at().map(|time| (time, position)));
        for refund in changed.refunds.iter().skip(current.refunds.len()) {
            self.refunds.insert(refund.id.clone(), position);
        }
        for movement in changed.movements.drain(..) {
            self.transactions.apply(movement);
        }
        *current = changed;
        Ok((outcome, current))
    }

    /// Expires the intents and authorizations whose time is up.
    pub(crate) fn expire_due(&mut self) {
        let now = self.clock.now();
        while let Some((time, position)) = self.due.first().copied()
            && time <= now
        {
            self.due.pop_first();
            // Only intents that can expire are due, so none is rejected.
            let _ = self.change_at(position, Intent::expire);
        }
    }

    /// Adds an event that no change of an intent causes.
    pub(crate) fn announce(&mut self, event: Event) {
        self.outbox.push(event);
    }

    pub(crate) fn take_outbox(&mut self) -> Vec<Event> {
        std::mem::take(&mut self.outbox)
    }
}
