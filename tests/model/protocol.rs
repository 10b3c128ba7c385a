//! What can happen: the steps of the service, of Dojo, of the network, of customers, and of time.

use std::{
    collections::HashSet,
    hash::{BuildHasher, BuildHasherDefault, DefaultHasher},
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

use dojo_payment_links::payment_link::Status;
use stateright::{Model, Property};

use crate::{
    rules::Rules,
    state::{
        Asked, Budget, Call, Conflicting, Due, Intent, IntentView, Key, Lease, Process,
        ReadOutcome, Response, Row, State, Timing,
    },
};

/// The handler's place among the processes.
const HANDLER: usize = 0;

/// What is checked: the rules, and the world that they must cope with.
#[derive(Debug)]
pub(crate) struct Protocol {
    pub(crate) rules: Rules,
    pub(crate) world: World,
    pub(crate) witness: Witness,
    /// The states that are known to end well, with and without webhooks.
    ends_well: [Mutex<HashSet<State>>; 2],
}

/// What may go wrong.
#[derive(Debug, Clone, Copy)]
pub(crate) struct World {
    pub(crate) budget: Budget,
    /// How many workers there are: one or two.
    pub(crate) workers: usize,
    /// The greatest number of intents that Dojo creates for the link. After that it can't be reached.
    pub(crate) intents: usize,
    /// The capture mode is `Manual`.
    pub(crate) manual: bool,
    /// Dojo's search may lag for longer than the service waits.
    pub(crate) search_lags_on: bool,
    /// Dojo may respond that it doesn't know an intent, as long as search doesn't find it.
    pub(crate) reads_lag: bool,
}

/// What has happened in any history, to show that the interesting cases occurred.
#[derive(Debug, Default)]
pub(crate) struct Witness {
    early: AtomicBool,
    stale: AtomicBool,
    older: AtomicBool,
    conflicting: AtomicBool,
    stood: AtomicBool,
    overtaken: AtomicBool,
    ahead: AtomicBool,
}

impl World {
    /// A process acts, or an intent appears, later than the service assumes.
    pub(crate) fn breaks_time_limits(&self) -> bool {
        self.budget.stalls > 0 || self.search_lags_on
    }
}

impl Witness {
    pub(crate) fn early_webhooks(&self) {
        self.early.store(true, Ordering::Relaxed);
    }

    pub(crate) fn stale_webhooks(&self) {
        self.stale.store(true, Ordering::Relaxed);
    }

    /// What did not occur.
    pub(crate) fn missing(&self, world: World) -> Vec<&'static str> {
        let always = [
            ("an early webhook was applied", &self.early),
            ("a stale webhook was ignored", &self.stale),
            ("an older response was a conflict", &self.older),
            (
                "a response behind a webhook was a conflict",
                &self.conflicting,
            ),
            ("a response stood until it was accepted", &self.stood),
            ("a response was overtaken by a change", &self.overtaken),
        ];
        let ahead = ("an older response was accepted at once", &self.ahead);
        always
            .into_iter()
            .chain((world.budget.ahead > 0).then_some(ahead))
            .filter(|(_, met)| !met.load(Ordering::Relaxed))
            .map(|(what, _)| what)
            .collect()
    }
}

/// Something that happens. Numbers are indexes of processes and intents.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    /// Dojo creates an intent for a request.
    DojoCreates {
        process: usize,
    },
    /// Dojo creates an intent for a request that nobody waits for any more.
    DojoCreatesUnawaited {
        late: bool,
    },
    /// The request provably does nothing.
    DojoIsNotReached {
        process: usize,
    },
    /// Dojo rejects the request.
    DojoRejects {
        process: usize,
    },
    /// No response arrives in time, and the process stores that.
    ResponseIsLost {
        process: usize,
    },
    /// The process takes its next step.
    Proceed {
        process: usize,
    },
    /// The caller repeats the request after a temporary failure.
    Repeat,
    /// The process dies.
    Crash {
        process: usize,
    },
    /// The process sleeps past the end of its lease.
    Stall {
        process: usize,
    },
    /// A worker claims the pending link and searches for its intents.
    Recover {
        worker: usize,
        lagging: bool,
    },
    /// A worker reads the link's intent.
    Read {
        worker: usize,
        lagging: bool,
    },
    /// The same, from a node of Dojo's whose clock runs ahead.
    ReadAhead {
        worker: usize,
    },
    /// A worker reads an orphaned or surplus intent.
    Trace {
        worker: usize,
        intent: usize,
        missing: bool,
    },
    /// A webhook is committed.
    Webhook {
        intent: usize,
        reported: Status,
    },
    /// A webhook is committed that somebody signed with a stolen secret.
    Forgery {
        intent: usize,
        reported: Status,
    },
    /// The customer, the merchant or Dojo's clock changes an intent's status.
    Move {
        intent: usize,
        to: Status,
    },
    /// Search finds the intent from now on.
    Appears {
        intent: usize,
    },
    /// The lagging copies have caught up with it.
    CopiesCatchUp {
        intent: usize,
    },
    LeaseRunsOut,
    /// The settlement window of the last request is over.
    WindowIsOver,
    /// Dojo has stood by its response for the settlement window.
    ConflictStands,
    /// The link reaches the age at which recovery gives up.
    GetsOld,
}

impl Protocol {
    pub(crate) fn new(rules: Rules, world: World) -> Self {
        Self {
            rules,
            world,
            witness: Witness::default(),
            ends_well: Default::default(),
        }
    }

    /// The statuses that an intent can reach in one step.
    fn moves(&self, from: Status) -> &'static [Status] {
        use Status::{Authorized, Canceled, Captured, Created, Refunded, Reversed};
        match from {
            Created if self.world.manual => &[Authorized, Canceled],
            Created => &[Captured, Canceled],
            Authorized => &[Captured, Reversed],
            Captured => &[Refunded],
            _ => &[],
        }
    }

    /// What the processes, the network and time do next if nothing goes wrong, in a fair order: each step is taken once all
    /// before it are done. `None`: nothing is left to do.
    fn calmly(&self, state: &State, webhooks: bool) -> Option<Action> {
        let busy = |process: &usize| state.processes[*process] != Process::Idle;
        if let Some(process) = (0..state.processes.len()).find(busy) {
            return Some(match state.processes[process] {
                Process::Creating {
                    call: Call::Out, ..
                } if state.intents.len() < self.world.intents => Action::DojoCreates { process },
                Process::Creating {
                    call: Call::Out, ..
                } => Action::DojoIsNotReached { process },
                _ => Action::Proceed { process },
            });
        }
        for (intent, at) in state.intents.iter().enumerate() {
            if let Some(reported) = undelivered(at).find(|_| webhooks) {
                return Some(Action::Webhook { intent, reported });
            }
            if !at.visible {
                return Some(Action::Appears { intent });
            }
            if at.before.is_some() {
                return Some(Action::CopiesCatchUp { intent });
            }
            if matches!(at.row, Row::OrphanedIntent | Row::Surplus) {
                return Some(Action::Trace {
                    worker: 1,
                    intent,
                    missing: false,
                });
            }
        }
        let link = state.link;
        if state.pending() {
            let waits = link.asked == Asked::Lately && state.intents.is_empty();
            return Some(if link.leased {
                Action::LeaseRunsOut
            } else if waits {
                Action::WindowIsOver
            } else {
                Action::Recover {
                    worker: 1,
                    lagging: false,
                }
            });
        }
        let intent = link.intent?;
        let differs = link.status != state.intents[intent].status
            || link.version != Some(state.intents[intent].version)
            || !state.confirmed(&self.rules);
        let read = Action::Read {
            worker: 1,
            lagging: false,
        };
        match link.due {
            _ if link.conflicting == Conflicting::Lately => Some(Action::ConflictStands),
            Due::Now => Some(read),
            // A read that finds nothing new changes nothing, so it can be left out.
            Due::Later => differs.then_some(read),
            Due::Never => None,
        }
    }

    /// Whether all is well once nothing goes wrong any more and the remaining steps are taken. With `webhooks`, all that have
    /// not arrived yet arrive. Without, none does.
    fn ends_well(&self, state: &State, webhooks: bool) -> bool {
        /// More steps than any history needs to come to rest.
        const STEPS: usize = 100;
        let known = &self.ends_well[usize::from(webhooks)];
        let mut trail = Vec::new();
        let mut state = state.clone();
        let well = loop {
            if known
                .lock()
                .expect("no thread panics with it")
                .contains(&state)
            {
                break true;
            }
            if trail.len() > STEPS {
                break false;
            }
            let Some(action) = self.calmly(&state, webhooks) else {
                break self.is_well(&state, webhooks) && {
                    trail.push(state);
                    true
                };
            };
            let next = self.next_state(&state, action).expect("it can happen");
            trail.push(std::mem::replace(&mut state, next));
        };
        if well {
            known
                .lock()
                .expect("no thread panics with it")
                .extend(trail);
        }
        well
    }

    /// Whether a state in which nothing is left to do is right.
    fn is_well(&self, state: &State, webhooks: bool) -> bool {
        let link = state.link;
        let converged = match link.intent {
            Some(intent) => {
                link.status == state.intents[intent].status
                    // A link with a final status is not read any more, even if a clock ran ahead.
                    && (link.version == Some(state.intents[intent].version) || link.due == Due::Never)
                    && state.confirmed(&self.rules)
            }
            None => link.status == Status::Failed,
        };
        let others_are_gone = state.intents.iter().enumerate().all(|(intent, at)| {
            // If time limits are broken *and* all webhooks are lost, there may be an intent that the service has never seen.
            // Nobody has its URL, so nobody can pay it, and it expires.
            let is_unknown = !webhooks && at.row == Row::Missing && self.world.breaks_time_limits();
            link.intent == Some(intent) || !at.is_live() || is_unknown
        });
        converged && others_are_gone
    }
}

/// The webhooks about an intent that Dojo has sent and that have not arrived.
fn undelivered(intent: &Intent) -> impl Iterator<Item = Status> {
    let (history, delivered) = (intent.history, intent.delivered);
    Status::ALL
        .into_iter()
        .filter(move |status| history.contains(*status) && !delivered.contains(*status))
}

impl Model for Protocol {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![State::begun(self.world.budget)]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        let budget = state.budget;
        for (process, at) in state.processes.iter().enumerate() {
            let timing = match at {
                Process::Idle => continue,
                Process::Creating { call, timing, .. } => {
                    if *call == Call::Out {
                        if state.intents.len() < self.world.intents {
                            actions.push(Action::DojoCreates { process });
                        }
                        if budget.rejections > 0 {
                            actions.push(Action::DojoIsNotReached { process });
                            actions.push(Action::DojoRejects { process });
                        }
                    } else {
                        actions.push(Action::Proceed { process });
                    }
                    if matches!(call, Call::Out | Call::Done(_)) {
                        actions.push(Action::ResponseIsLost { process });
                    }
                    *timing
                }
                Process::Releasing { timing, .. }
                | Process::Retrying { timing, .. }
                | Process::GivingUp { timing, .. }
                | Process::Adopting { timing, .. } => {
                    actions.push(Action::Proceed { process });
                    *timing
                }
                Process::Reading { .. } | Process::Tracing { .. } | Process::Settling { .. } => {
                    actions.push(Action::Proceed { process });
                    // These have nothing that could harm others, so a late one can do no more than one in time.
                    Timing::Late
                }
            };
            if budget.crashes > 0 {
                actions.push(Action::Crash { process });
            }
            if budget.stalls > 0 && timing != Timing::Late {
                actions.push(Action::Stall { process });
            }
        }

        if state.key == Key::Free
            && budget.repetitions > 0
            && state.processes[HANDLER] == Process::Idle
        {
            actions.push(Action::Repeat);
        }
        if state.abandoned.in_time > 0 && state.intents.len() < self.world.intents {
            actions.push(Action::DojoCreatesUnawaited { late: false });
        }
        if state.abandoned.late > 0 && state.intents.len() < self.world.intents {
            actions.push(Action::DojoCreatesUnawaited { late: true });
        }

        // Workers are alike, so only one idle one needs to be tried.
        let idle = (1..=self.world.workers).find(|n| state.processes[*n] == Process::Idle);
        if let Some(worker) = idle {
            if state.pending() && !state.link.leased {
                let lags = state
                    .intents
                    .iter()
                    .any(|intent| intent.visible && intent.before.is_some());
                for lagging in [false, true] {
                    if lags || !lagging {
                        actions.push(Action::Recover { worker, lagging });
                    }
                }
            }
            // At any moment, because a caller may request it.
            if let Some(intent) = state.link.intent {
                let lags = state.intents[intent].before.is_some();
                for lagging in [false, true] {
                    if lags || !lagging {
                        actions.push(Action::Read { worker, lagging });
                    }
                }
                if budget.ahead > 0 {
                    actions.push(Action::ReadAhead { worker });
                }
            }
            for (intent, at) in state.intents.iter().enumerate() {
                // By any number of workers at once: what a lease would prevent here does no harm.
                if matches!(at.row, Row::OrphanedIntent | Row::Surplus) {
                    for missing in [false, true] {
                        if !missing || (self.world.reads_lag && !at.visible) {
                            actions.push(Action::Trace {
                                worker,
                                intent,
                                missing,
                            });
                        }
                    }
                }
            }
        }

        for (intent, at) in state.intents.iter().enumerate() {
            for reported in Status::ALL {
                let first = at.history.contains(reported) && !at.delivered.contains(reported);
                if first || (at.delivered.contains(reported) && budget.copies > 0) {
                    actions.push(Action::Webhook { intent, reported });
                }
            }
            if budget.forgeries > 0 {
                for reported in [Status::Captured, Status::Canceled] {
                    if !at.history.contains(reported) {
                        actions.push(Action::Forgery { intent, reported });
                    }
                }
            }
            let has_url =
                state.response == Response::Url(intent) || state.link.intent == Some(intent);
            for to in self.moves(at.status) {
                if has_url || *to == Status::Canceled {
                    actions.push(Action::Move { intent, to: *to });
                }
            }
            if !at.visible {
                actions.push(Action::Appears { intent });
            }
            if at.before.is_some() {
                actions.push(Action::CopiesCatchUp { intent });
            }
        }

        let timing_of = |process: &Process| match process {
            Process::Creating { timing, .. }
            | Process::Releasing { timing, .. }
            | Process::Retrying { timing, .. }
            | Process::GivingUp { timing, .. }
            | Process::Adopting { timing, .. } => Some(*timing),
            _ => None,
        };
        if state.pending() {
            // A process that still works on the link either has the lease, and is done before it runs out, or is late.
            if state.link.leased
                && state
                    .processes
                    .iter()
                    .all(|process| matches!(timing_of(process), None | Some(Timing::Late)))
            {
                actions.push(Action::LeaseRunsOut);
            }
            let out_in_time = state.processes.iter().any(|process| {
                matches!(
                    process,
                    Process::Creating {
                        timing: Timing::InTime,
                        ..
                    }
                )
            });
            if state.link.asked == Asked::Lately && !out_in_time {
                actions.push(Action::WindowIsOver);
            }
            if !state.link.old {
                actions.push(Action::GetsOld);
            }
        }
        if state.link.conflicting == Conflicting::Lately {
            actions.push(Action::ConflictStands);
        }
    }

    fn next_state(&self, state: &State, action: Action) -> Option<State> {
        let mut next = state.clone();
        match action {
            Action::DojoCreates { process } => {
                if let Process::Creating { call, timing, .. } = &mut next.processes[process] {
                    *call = Call::Done(next.intents.len());
                    next.intents.push(Intent::new(*timing == Timing::Late));
                }
            }
            Action::DojoCreatesUnawaited { late } => {
                if late {
                    next.abandoned.late -= 1;
                } else {
                    next.abandoned.in_time -= 1;
                }
                next.intents.push(Intent::new(late));
            }
            Action::DojoIsNotReached { process } | Action::DojoRejects { process } => {
                next.budget.rejections = next.budget.rejections.saturating_sub(1);
                if let Process::Creating { call, .. } = &mut next.processes[process] {
                    *call = if matches!(action, Action::DojoRejects { .. }) {
                        Call::Rejected
                    } else {
                        Call::NotReached
                    };
                }
            }
            Action::ResponseIsLost { process } => {
                let lease = next.stop(process);
                if self.rules.lost_is_unknown {
                    next.record_lost_response(lease);
                    next.respond(process, Response::Unknown);
                } else {
                    next.fail(lease, true);
                    next.respond(process, Response::NotReached);
                }
            }
            Action::Proceed { process } => self.proceed(&mut next, process),
            Action::Repeat => {
                next.budget.repetitions -= 1;
                next.reopen();
                next.response = Response::Nothing;
                next.processes[HANDLER] = Process::creates(Timing::InTime);
            }
            Action::Crash { process } => {
                next.budget.crashes -= 1;
                next.stop(process);
            }
            Action::Stall { process } => {
                next.budget.stalls -= 1;
                if let Process::Creating { timing, .. }
                | Process::Releasing { timing, .. }
                | Process::Retrying { timing, .. }
                | Process::GivingUp { timing, .. }
                | Process::Adopting { timing, .. } = &mut next.processes[process]
                {
                    *timing = Timing::Late;
                }
            }
            Action::Recover { worker, lagging } => {
                next.end_lease();
                next.link.leased = true;
                next.processes[worker] = next.recover(&self.rules, lagging);
            }
            Action::Read { worker, lagging } => {
                let view = next.view(next.link.intent?, lagging);
                next.processes[worker] = next.read(&self.rules, view);
            }
            Action::ReadAhead { worker } => {
                next.budget.ahead -= 1;
                let mut view = next.view(next.link.intent?, false);
                // Later than the next change, and as late as the one after that.
                view.version += 2;
                next.processes[worker] = next.read(&self.rules, view);
            }
            Action::Trace {
                worker,
                intent,
                missing,
            } => {
                let view = next.view(intent, false);
                next.processes[worker] = Process::Tracing {
                    intent,
                    view: (!missing).then_some(view.status),
                    version: view.version,
                    surplus: next.intents[intent].row == Row::Surplus,
                };
            }
            Action::Webhook { intent, reported } => {
                if next.intents[intent].delivered.contains(reported) {
                    next.budget.copies -= 1;
                }
                next.intents[intent].delivered.insert(reported);
                next.record(self, intent, reported);
            }
            Action::Forgery { intent, reported } => {
                next.budget.forgeries -= 1;
                next.record(self, intent, reported);
            }
            Action::Move { intent, to } => next.intents[intent].moves(to),
            Action::Appears { intent } => next.intents[intent].visible = true,
            Action::CopiesCatchUp { intent } => next.intents[intent].before = None,
            Action::LeaseRunsOut => next.link.leased = false,
            Action::WindowIsOver => {
                next.link.asked = Asked::LongAgo;
                if !self.world.search_lags_on {
                    next.abandoned.in_time = 0;
                    for intent in next.intents.iter_mut().filter(|intent| !intent.late) {
                        intent.visible = true;
                    }
                }
            }
            Action::ConflictStands => {
                next.link.conflicting = Conflicting::ForLong;
                for intent in &mut next.intents {
                    intent.before = None;
                }
            }
            Action::GetsOld => next.link.old = true,
        }
        next.unfounded |= self.confirms_without_response(state, action, &next);
        next.arrange(self.world);
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let mut properties = vec![
            Property::always(
                "without any webhook, all ends well",
                |model: &Self, state: &State| model.ends_well(state, false),
            ),
            Property::always(
                "once webhooks arrive, all ends well",
                |model, state: &State| model.ends_well(state, true),
            ),
            Property::always(
                "a url that was handed out is the link's",
                |_, state: &State| match (state.response, state.key) {
                    (Response::Url(intent), _) if state.link.intent != Some(intent) => false,
                    (_, Key::Responded(stored)) => state.link.intent == Some(stored),
                    _ => true,
                },
            ),
            Property::always(
                "a failure that was returned stays so",
                |_, state: &State| {
                    let failed = state.link.status == Status::Failed;
                    failed || (state.response != Response::Rejected && state.key != Key::Free)
                },
            ),
            Property::always(
                "a link is what Dojo says it is or was",
                |model, state: &State| {
                    let at_dojo = state.link.intent.map(|intent| &state.intents[intent]);
                    model.world.budget.forgeries > 0
                        || at_dojo.is_none_or(|intent| intent.history.contains(state.link.status))
                },
            ),
            Property::always(
                "a confirmed status was reported by Dojo",
                |_, state: &State| !state.unfounded,
            ),
            Property::always(
                "a confirmed status comes from an accepted response",
                |model: &Self, state: &State| {
                    !state.confirmed(&model.rules) || state.link.accepted == Some(state.link.status)
                },
            ),
            Property::always("a link never goes back", |model, state: &State| {
                // A forged status is corrected.
                !state.went_back || model.world.budget.forgeries > 0
            }),
            Property::always("only the link's intent is ever paid", |_, state: &State| {
                state.intents.iter().enumerate().all(|(n, intent)| {
                    matches!(intent.status, Status::Created | Status::Canceled)
                        || state.link.intent == Some(n)
                })
            }),
            Property::sometimes("a lost creation is found", |_, state: &State| {
                state.response == Response::Unknown && state.link.status == Status::Created
            }),
            Property::sometimes("a link is paid", |_, state: &State| {
                state.link.status == Status::Captured
            }),
            Property::sometimes("a link is given up", |_, state: &State| {
                state.link.status == Status::Failed && state.response == Response::Unknown
            }),
        ];
        if self.world.budget.forgeries > 0 {
            properties.push(Property::sometimes(
                "a forged payment is corrected",
                |model: &Self, state: &State| {
                    state.went_back
                        && state.link.status == Status::Created
                        && state.confirmed(&model.rules)
                },
            ));
        }
        if self.world.breaks_time_limits() {
            properties.push(Property::sometimes(
                "a second intent is canceled",
                |_, state: &State| {
                    state
                        .intents
                        .iter()
                        .any(|intent| intent.row == Row::Settled && !intent.is_live())
                },
            ));
        }
        properties
    }
}

impl Protocol {
    /// Whether a step confirms the link's status without a response of Dojo's with that status.
    fn confirms_without_response(&self, before: &State, action: Action, after: &State) -> bool {
        let (was, is) = (before.link, after.link);
        let the_same =
            before.confirmed(&self.rules) && (was.intent, was.status) == (is.intent, is.status);
        let response = match action {
            Action::Proceed { process } => before.processes[process].response(was.intent),
            _ => None,
        };
        let founded = response.is_some() && response == is.intent.map(|intent| (intent, is.status));
        after.confirmed(&self.rules) && !the_same && !founded
    }

    /// The next step of a process.
    fn proceed(&self, next: &mut State, process: usize) {
        match std::mem::replace(&mut next.processes[process], Process::Idle) {
            Process::Idle => {}
            Process::Creating { call, lease, .. } => match call {
                Call::Out => {}
                Call::Done(intent) => {
                    // What Dojo reported then, whatever has happened to the intent since.
                    let view = IntentView {
                        intent,
                        status: Status::Created,
                        version: 0,
                    };
                    next.adopt(self, view);
                    let response = next.link.intent.map_or(Response::NotReached, Response::Url);
                    next.respond(process, response);
                }
                Call::NotReached if process == HANDLER => {
                    let failed = next.fail(lease, true);
                    next.respond_with_failure(&self.rules, failed, Response::NotReached);
                }
                Call::NotReached => next.undo_retry(lease),
                Call::Rejected => {
                    let failed = next.fail(lease, false);
                    if process == HANDLER {
                        next.respond_with_failure(&self.rules, failed, Response::Rejected);
                    }
                }
            },
            Process::Releasing { lease, .. } => next.release(lease),
            Process::Retrying {
                unchanged,
                timing,
                lease,
            } => {
                if next.retry(lease, unchanged) {
                    next.processes[process] = Process::creates(timing);
                }
            }
            Process::GivingUp { lease, .. } => {
                next.fail(lease, false);
            }
            Process::Adopting { mut rest, timing } => {
                if let Some(view) = rest.pop() {
                    next.adopt(self, view);
                }
                if !rest.is_empty() {
                    next.processes[process] = Process::Adopting { rest, timing };
                }
            }
            Process::Reading {
                outcome,
                version,
                due,
                unchanged,
            } => match outcome {
                ReadOutcome::Accepted(status) if unchanged => {
                    if next.link.conflicting == Conflicting::ForLong {
                        self.witness.stood.store(true, Ordering::Relaxed);
                    } else if Some(version) < next.link.version {
                        self.witness.ahead.store(true, Ordering::Relaxed);
                    }
                    next.apply(&self.rules, status, version, due);
                }
                ReadOutcome::Accepted(_) => {
                    self.witness.overtaken.store(true, Ordering::Relaxed);
                    next.link.due = Due::Now;
                }
                ReadOutcome::Older(reported) | ReadOutcome::Behind(reported) if unchanged => {
                    let met = match outcome {
                        ReadOutcome::Older(_) => &self.witness.older,
                        _ => &self.witness.conflicting,
                    };
                    met.store(true, Ordering::Relaxed);
                    next.record_conflict(reported);
                }
                ReadOutcome::Older(_) | ReadOutcome::Behind(_) => next.link.due = Due::Now,
            },
            Process::Tracing {
                intent,
                view,
                version,
                surplus,
            } => self.trace(next, process, intent, view, version, surplus),
            Process::Settling { intent } => next.intents[intent].row = Row::Settled,
        }
    }

    /// `protocol::orphaned_intents::trace`, once Dojo has responded.
    fn trace(
        &self,
        next: &mut State,
        process: usize,
        intent: usize,
        view: Option<Status>,
        version: u8,
        surplus: bool,
    ) {
        let row = &mut next.intents[intent].row;
        match view {
            None if self.rules.missing_is_read_again => {}
            None => {
                *row = if *row == Row::Surplus {
                    Row::Settled
                } else {
                    Row::Forgotten
                };
            }
            Some(status) if !surplus => next.adopt(
                self,
                IntentView {
                    intent,
                    status,
                    version,
                },
            ),
            Some(Status::Created) => {
                if next.intents[intent].status == Status::Created {
                    next.intents[intent].moves(Status::Canceled);
                    next.processes[process] = Process::Settling { intent };
                }
            }
            Some(_) => *row = Row::Settled,
        }
    }
}

impl State {
    /// The process loses what it has in memory. A request of its own that Dojo has not received yet may still arrive there.
    /// Returns the lease under which it called Dojo, if it did.
    fn stop(&mut self, process: usize) -> Lease {
        let was = std::mem::replace(&mut self.processes[process], Process::Idle);
        let Process::Creating {
            call,
            timing,
            lease,
        } = was
        else {
            return Lease::Gone;
        };
        if call == Call::Out {
            if timing == Timing::Late {
                self.abandoned.late += 1;
            } else {
                self.abandoned.in_time += 1;
            }
        }
        lease
    }

    /// Only the handler has a caller to respond to.
    fn respond(&mut self, process: usize, response: Response) {
        if process == HANDLER {
            self.response = response;
        }
    }

    /// The handler responds to a failure that could not be stored with an unknown outcome.
    fn respond_with_failure(&mut self, rules: &Rules, failed: bool, response: Response) {
        self.response = if failed || !rules.only_stored_failures_are_returned {
            response
        } else {
            Response::Unknown
        };
    }

    /// Makes states equal that differ in nothing that matters any more.
    fn arrange(&mut self, world: World) {
        if !self.pending() {
            // Only pending links are recovered.
            self.link.leased = false;
            self.link.asked = Asked::LongAgo;
            self.link.old = true;
        }
        let found_no_more = !self.pending() && !world.reads_lag;
        for intent in &mut self.intents {
            intent.visible |= found_no_more;
            intent.late &= intent.row == Row::Missing;
            if matches!(intent.row, Row::Surplus | Row::Settled) {
                // Webhooks about these change nothing, and nobody reads lagging copies of them.
                intent.delivered = intent.history;
                intent.before = None;
            }
        }
        // More of these than intents that can still be created make no difference.
        let room = u8::try_from(world.intents - self.intents.len()).unwrap_or_default();
        self.abandoned.in_time = self.abandoned.in_time.min(room);
        self.abandoned.late = self.abandoned.late.min(room);
        // Workers are alike, so their order makes no difference.
        let hash =
            |process: &Process| BuildHasherDefault::<DefaultHasher>::default().hash_one(process);
        self.processes[1..=world.workers].sort_by_cached_key(hash);
    }
}

impl Intent {
    fn moves(&mut self, to: Status) {
        self.before = Some(self.status);
        self.status = to;
        self.version += 1;
        self.history.insert(to);
    }
}
