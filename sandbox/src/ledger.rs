//! Everything the sandbox remembers about payments. One lock around it makes each operation happen
//! wholly and in order; what it causes to be told is put in the outbox and sent after the lock.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use crate::clock::{Clock, Timestamp};
use crate::intents::{Intent, Refund, Refusal};
use crate::webhooks::Event;

/// The oldest intents are forgotten beyond this many, so that a load test cannot eat the machine.
const MOST_INTENTS: usize = 200_000;

/// Which intent came when; also what search cursors stand for.
pub(crate) type Position = u64;

#[derive(Debug)]
pub(crate) struct Ledger {
    clock: Arc<Clock>,
    intents: BTreeMap<Position, Intent>,
    positions: HashMap<String, Position>,
    due: BTreeSet<(Timestamp, Position)>,
    /// Which intent a refund belongs to.
    refunds: HashMap<String, Position>,
    next: Position,
    outbox: Vec<Event>,
}

/// Why a change of an intent did not happen.
#[derive(Debug)]
pub(crate) enum ChangeError {
    NoSuchIntent,
    Refused(Refusal),
}

impl Ledger {
    pub(crate) fn new(clock: Arc<Clock>) -> Self {
        Self {
            clock,
            intents: BTreeMap::new(),
            positions: HashMap::new(),
            due: BTreeSet::new(),
            refunds: HashMap::new(),
            next: 1,
            outbox: Vec::new(),
        }
    }

    /// Takes in a new intent.
    pub(crate) fn add(&mut self, intent: Intent) -> &Intent {
        if self.intents.len() >= MOST_INTENTS
            && let Some((position, forgotten)) = self.intents.pop_first()
        {
            self.positions.remove(&forgotten.id);
            for refund in &forgotten.refunds {
                self.refunds.remove(&refund.id);
            }
            if let Some(moment) = forgotten.due_at() {
                self.due.remove(&(moment, position));
            }
        }
        let position = self.next;
        self.next += 1;
        self.outbox.push(Event::created(&intent, self.clock.now()));
        self.positions.insert(intent.id.clone(), position);
        self.due
            .extend(intent.due_at().map(|moment| (moment, position)));
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

    /// All intents with their positions, oldest first.
    pub(crate) fn all(&self) -> impl DoubleEndedIterator<Item = (Position, &Intent)> {
        self.intents
            .iter()
            .map(|(position, intent)| (*position, intent))
    }

    /// The intents from one position on, itself left out, towards newer ones.
    pub(crate) fn newer_than(
        &self,
        position: Position,
    ) -> impl Iterator<Item = (Position, &Intent)> {
        self.intents
            .range(position.saturating_add(1)..)
            .map(|(position, intent)| (*position, intent))
    }

    /// The intents from one position on, itself left out, towards older ones.
    pub(crate) fn older_than(
        &self,
        position: Position,
    ) -> impl Iterator<Item = (Position, &Intent)> {
        self.intents
            .range(..position)
            .rev()
            .map(|(position, intent)| (*position, intent))
    }

    /// Changes one intent by one of its rules, wholly or not at all.
    pub(crate) fn change<T>(
        &mut self,
        id: &str,
        rule: impl FnOnce(&mut Intent, Timestamp) -> Result<T, Refusal>,
    ) -> Result<(T, &Intent), ChangeError> {
        let position = *self.positions.get(id).ok_or(ChangeError::NoSuchIntent)?;
        self.change_at(position, rule)
    }

    fn change_at<T>(
        &mut self,
        position: Position,
        rule: impl FnOnce(&mut Intent, Timestamp) -> Result<T, Refusal>,
    ) -> Result<(T, &Intent), ChangeError> {
        let current = self
            .intents
            .get_mut(&position)
            .ok_or(ChangeError::NoSuchIntent)?;
        let now = self.clock.now();
        let mut changed = current.clone();
        let outcome = rule(&mut changed, now).map_err(ChangeError::Refused)?;
        changed.updated_at = now;
        if changed.status != current.status {
            self.outbox.push(Event::status_updated(&changed, now));
        }
        if let Some(moment) = current.due_at() {
            self.due.remove(&(moment, position));
        }
        self.due
            .extend(changed.due_at().map(|moment| (moment, position)));
        for refund in changed.refunds.iter().skip(current.refunds.len()) {
            self.refunds.insert(refund.id.clone(), position);
        }
        *current = changed;
        Ok((outcome, current))
    }

    /// Lets happen what time alone brings about.
    pub(crate) fn catch_up(&mut self) {
        let now = self.clock.now();
        while let Some((moment, position)) = self.due.first().copied()
            && moment <= now
        {
            self.due.pop_first();
            // Only intents that can run out are due, so none refuses.
            let _ = self.change_at(position, Intent::run_out);
        }
    }

    /// Says something about an intent that is no change of it.
    pub(crate) fn announce(&mut self, event: Event) {
        self.outbox.push(event);
    }

    pub(crate) fn take_outbox(&mut self) -> Vec<Event> {
        std::mem::take(&mut self.outbox)
    }
}
