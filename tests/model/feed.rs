//! The feed, checked in every order in which writers, sequencers and a reader can interleave.
//!
//! Two writers change links, in transactions that may end in any order or not at all. Two replicas try to be the sequencer,
//! and each may die before any of its steps. A reader reads on from the place that it has stored.
//!
//! Whatever happens, the reader has read a beginning of the feed, each committed change is in the feed at most once, and the
//! changes of a link are there in the order in which they were made. If nothing more goes wrong, all of them get there.

use stateright::{Checker, HasDiscoveries, Model, Property};

/// What each writer changes, one transaction after the other: numbers of links.
const WRITERS: [&[usize]; 2] = [&[0, 1], &[0, 0]];
const SEQUENCERS: usize = 2;

/// A rule of the service that is broken, to show that the checks notice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Broken {
    Nothing,
    /// The writers assign positions before they commit, and there is no sequencer.
    WritersAssign,
    /// A sequencer reads the outbox before it has the lock.
    ReadsBeforeLocking,
    /// A change gets its number before its link is locked.
    NumbersBeforeLocking,
    /// What is numbered leaves the outbox in a later transaction.
    RemovesLater,
}

/// A change: the number of its timeline entry, its link, and how many changes of the link were made before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Change {
    number: u8,
    link: usize,
    made_after: u8,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Writer {
    /// Between transactions.
    Idle,
    /// Has a number, and waits for the link's lock. Only if numbers are not assigned under the lock.
    Numbered(u8),
    /// Has the lock and has written the change.
    Written(Change),
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Sequencer {
    Idle,
    /// Has read the outbox, and waits for the lock. Only if it reads first.
    Read(Vec<Change>),
    /// Has the lock.
    Locked,
    /// Has the lock, and has read these changes.
    Ready(Vec<Change>),
    /// Has numbered these changes, and has yet to remove them. Only if that is another transaction.
    Removing(Vec<Change>),
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct State {
    /// The next number of a timeline entry.
    next: u8,
    writers: Vec<Writer>,
    /// How many transactions each writer has ended.
    ended: Vec<usize>,
    /// How many changes of each link were committed.
    made: Vec<u8>,
    outbox: Vec<Change>,
    feed: Vec<Change>,
    sequencers: Vec<Sequencer>,
    /// The sequencer that has the lock.
    lock: Option<usize>,
    /// What the reader has read, in its order.
    read: Vec<Change>,
    /// How often something may still go wrong.
    faults: u8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Action {
    Write(usize),
    /// The writer commits.
    Commit(usize),
    /// The writer's transaction is rolled back.
    RollBack(usize),
    Sequence(usize),
    /// The replica dies, and its transaction is rolled back.
    Die(usize),
    Read,
}

struct Feed(Broken);

impl State {
    /// Whether another writer has the lock on this link.
    fn is_locked(&self, link: usize) -> bool {
        self.writers
            .iter()
            .any(|writer| matches!(writer, Writer::Written(change) if change.link == link))
    }

    /// The changes that are visible, in the order of their numbers.
    fn visible(&self) -> Vec<Change> {
        let mut changes = self.outbox.clone();
        changes.sort_unstable();
        changes
    }

    /// The link that a writer changes next.
    fn next_link(&self, writer: usize) -> Option<usize> {
        WRITERS[writer].get(self.ended[writer]).copied()
    }

    fn number(&mut self) -> u8 {
        self.next += 1;
        self.next
    }

    /// Whether every change of a link comes after those that were made before it.
    fn is_in_order(&self) -> bool {
        let mut seen = [0; 2];
        self.feed.iter().all(|change| {
            let expected = seen[change.link];
            seen[change.link] += 1;
            change.made_after == expected
        })
    }

    fn is_without_repetitions(&self) -> bool {
        let mut numbers: Vec<_> = self.feed.iter().map(|change| change.number).collect();
        numbers.sort_unstable();
        numbers.windows(2).all(|pair| pair[0] != pair[1])
    }
}

impl Model for Feed {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![State {
            next: 0,
            writers: vec![Writer::Idle; WRITERS.len()],
            ended: vec![0; WRITERS.len()],
            made: vec![0; 2],
            outbox: Vec::new(),
            feed: Vec::new(),
            sequencers: vec![Sequencer::Idle; SEQUENCERS],
            lock: None,
            read: Vec::new(),
            faults: 2,
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        for (writer, at) in state.writers.iter().enumerate() {
            match at {
                Writer::Idle | Writer::Numbered(_) => {
                    if state.next_link(writer).is_some() {
                        actions.push(Action::Write(writer));
                    }
                }
                Writer::Written(_) => {
                    actions.push(Action::Commit(writer));
                    if state.faults > 0 {
                        actions.push(Action::RollBack(writer));
                    }
                }
            }
        }
        for (sequencer, at) in state.sequencers.iter().enumerate() {
            actions.push(Action::Sequence(sequencer));
            if *at != Sequencer::Idle && state.faults > 0 {
                actions.push(Action::Die(sequencer));
            }
        }
        actions.push(Action::Read);
    }

    fn next_state(&self, before: &State, action: Action) -> Option<State> {
        let Self(broken) = *self;
        let mut state = before.clone();
        match action {
            Action::Write(writer) => {
                let link = state.next_link(writer)?;
                let number = match state.writers[writer] {
                    Writer::Numbered(number) => number,
                    _ if broken != Broken::NumbersBeforeLocking => {
                        if state.is_locked(link) {
                            return None;
                        }
                        state.number()
                    }
                    _ => {
                        let number = state.number();
                        state.writers[writer] = Writer::Numbered(number);
                        return Some(state);
                    }
                };
                if state.is_locked(link) {
                    return None;
                }
                state.writers[writer] = Writer::Written(Change {
                    number,
                    link,
                    made_after: state.made[link],
                });
            }
            Action::Commit(writer) => {
                let Writer::Written(change) = state.writers[writer] else {
                    return None;
                };
                state.made[change.link] += 1;
                state.ended[writer] += 1;
                state.writers[writer] = Writer::Idle;
                if broken == Broken::WritersAssign {
                    // The feed's order is that of the numbers.
                    state.feed.push(change);
                    state.feed.sort_unstable();
                } else {
                    state.outbox.push(change);
                    state.outbox.sort_unstable();
                }
            }
            Action::RollBack(writer) => {
                state.faults -= 1;
                state.ended[writer] += 1;
                state.writers[writer] = Writer::Idle;
            }
            Action::Die(sequencer) => {
                state.faults -= 1;
                state.sequencers[sequencer] = Sequencer::Idle;
                if state.lock == Some(sequencer) {
                    state.lock = None;
                }
            }
            Action::Sequence(sequencer) => {
                let visible = state.visible();
                let at = state.sequencers[sequencer].clone();
                state.sequencers[sequencer] = match at {
                    Sequencer::Idle if visible.is_empty() => return None,
                    Sequencer::Idle if broken == Broken::ReadsBeforeLocking => {
                        Sequencer::Read(visible)
                    }
                    // The lock is not waited for.
                    Sequencer::Idle | Sequencer::Read(_) if state.lock.is_some() => return None,
                    Sequencer::Idle => {
                        state.lock = Some(sequencer);
                        Sequencer::Locked
                    }
                    Sequencer::Read(changes) => {
                        state.lock = Some(sequencer);
                        Sequencer::Ready(changes)
                    }
                    Sequencer::Locked => Sequencer::Ready(visible),
                    Sequencer::Ready(changes) => {
                        state.lock = None;
                        state.feed.extend(&changes);
                        if broken == Broken::RemovesLater {
                            Sequencer::Removing(changes)
                        } else {
                            state.outbox.retain(|change| !changes.contains(change));
                            Sequencer::Idle
                        }
                    }
                    Sequencer::Removing(changes) => {
                        state.outbox.retain(|change| !changes.contains(change));
                        Sequencer::Idle
                    }
                };
            }
            Action::Read => {
                // The place is a position: for positions that the writers assign, the number of the last change.
                let new: Vec<_> = if broken == Broken::WritersAssign {
                    let last = state.read.last().map_or(0, |change| change.number);
                    let feed = state.feed.iter();
                    feed.filter(|change| change.number > last)
                        .copied()
                        .collect()
                } else {
                    state.feed[state.read.len().min(state.feed.len())..].to_vec()
                };
                if new.is_empty() {
                    return None;
                }
                state.read.extend(new);
            }
        }
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(NO_GAPS, |_, state: &State| {
                state.feed.starts_with(&state.read)
            }),
            Property::always(ONCE, |_, state: &State| state.is_without_repetitions()),
            Property::always(IN_ORDER, |_, state: &State| state.is_in_order()),
            Property::always(COMPLETE, |model, state: &State| {
                // At rest, nothing can happen but faults.
                let mut actions = Vec::new();
                model.actions(state, &mut actions);
                let is_at_rest = !actions.into_iter().any(|action| {
                    !matches!(action, Action::RollBack(_) | Action::Die(_))
                        && model.next_state(state, action).is_some()
                });
                let made: usize = state.made.iter().map(|made| usize::from(*made)).sum();
                !is_at_rest || state.read.len() == made
            }),
        ]
    }
}

const NO_GAPS: &str = "a reader has read a beginning of the feed";
const ONCE: &str = "each change is in the feed at most once";
const IN_ORDER: &str = "a link's changes are in the order in which they were made";
const COMPLETE: &str = "at rest, everything was read";

#[test]
fn every_change_is_read_once_in_order() {
    let checker = Feed(Broken::Nothing).checker().spawn_bfs().join();
    checker.assert_properties();
    println!("the feed: {} states", checker.unique_state_count());
}

fn is_detected(broken: Broken, by: &'static str) {
    let checker = Feed(broken)
        .checker()
        .finish_when(HasDiscoveries::AllOf([by].into()))
        .spawn_bfs()
        .join();
    assert!(
        checker.discovery(by).is_some(),
        "{broken:?} is not detected"
    );
}

#[test]
fn positions_that_writers_assign_are_detected() {
    is_detected(Broken::WritersAssign, NO_GAPS);
}

#[test]
fn reading_the_outbox_before_locking_is_detected() {
    is_detected(Broken::ReadsBeforeLocking, ONCE);
}

#[test]
fn numbering_before_locking_the_link_is_detected() {
    is_detected(Broken::NumbersBeforeLocking, IN_ORDER);
}

#[test]
fn removing_in_another_transaction_is_detected() {
    is_detected(Broken::RemovesLater, ONCE);
}
