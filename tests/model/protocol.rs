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
        Asked, Budget, Disputed, Due, Finding, Intent, Key, Process, Row, Seen, State, Throttle,
        Told, Wire,
    },
};

/// The handler's place among the processes.
const HANDLER: usize = 0;

/// What is checked: the rules, and the world that they have to cope with.
#[derive(Debug)]
pub(crate) struct Protocol {
    pub(crate) rules: Rules,
    pub(crate) world: World,
    pub(crate) witness: Witness,
    /// The states that are known to end well by themselves, with and without webhooks.
    ends_well: [Mutex<HashSet<State>>; 2],
}

/// What may go wrong.
#[derive(Debug, Clone, Copy)]
pub(crate) struct World {
    pub(crate) budget: Budget,
    /// How many workers there are: one or two.
    pub(crate) workers: usize,
    /// How many intents Dojo creates for the link at most. After that nobody gets through to it.
    pub(crate) intents: usize,
    /// The link is captured by hand.
    pub(crate) manual: bool,
    /// Dojo's search may lag for longer than the service waits.
    pub(crate) search_lags_on: bool,
    /// Dojo may answer that there is no such intent, as long as search does not find it.
    pub(crate) reads_lag: bool,
}

/// What has happened in some history: to show that the interesting cases were met.
#[derive(Debug, Default)]
pub(crate) struct Witness {
    early: AtomicBool,
    stale: AtomicBool,
    older: AtomicBool,
    disputed: AtomicBool,
    outstood: AtomicBool,
    overtaken: AtomicBool,
    ahead: AtomicBool,
}

impl World {
    /// Somebody acts, or something comes to light, later than the service allows for.
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

    /// What was not met.
    pub(crate) fn missing(&self, world: World) -> Vec<&'static str> {
        let always = [
            ("an early webhook was applied", &self.early),
            ("a stale webhook was ignored", &self.stale),
            ("an older answer was disputed", &self.older),
            ("an answer was disputed for being behind", &self.disputed),
            ("an answer stood until it was accepted", &self.outstood),
            ("an answer was overtaken by a change", &self.overtaken),
        ];
        let ahead = ("an older answer was accepted at once", &self.ahead);
        always
            .into_iter()
            .chain((world.budget.ahead > 0).then_some(ahead))
            .filter(|(_, met)| !met.load(Ordering::Relaxed))
            .map(|(what, _)| what)
            .collect()
    }
}

/// Something that happens. Numbers are those of processes and intents.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    /// Dojo creates an intent for a request.
    DojoCreates {
        asked_by: usize,
    },
    /// Dojo creates an intent for a request that nobody waits for any more.
    DojoCreatesForNobody {
        late: bool,
    },
    /// The request provably comes to nothing.
    DojoIsNotReached {
        asked_by: usize,
    },
    /// Dojo does not take the request.
    DojoRefuses {
        asked_by: usize,
    },
    /// No answer comes, in time or at all, and the process notes it.
    AnswerIsLost {
        asked_by: usize,
    },
    /// The process takes its next step.
    Proceed {
        process: usize,
    },
    /// The process dies.
    Crash {
        process: usize,
    },
    /// The process sleeps past the end of its lease.
    Stall {
        process: usize,
    },
    /// A worker takes the pending link up, and searches.
    Recover {
        worker: usize,
        lagging: bool,
    },
    /// A worker asks Dojo about the link's intent.
    Look {
        worker: usize,
        lagging: bool,
    },
    /// The same, of a node of Dojo's whose clock runs ahead.
    LookAhead {
        worker: usize,
    },
    /// A worker asks Dojo about an intent that is a orphan or one too many.
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
    /// The customer, the merchant or Dojo's clock moves an intent along.
    Move {
        intent: usize,
        to: Status,
    },
    /// Search finds the intent from now on.
    ComesToLight {
        intent: usize,
    },
    /// The lagging copies have caught up with it.
    CopiesCatchUp {
        intent: usize,
    },
    LeaseRunsOut,
    /// What was asked for last was asked for so long ago that it is taken to be settled.
    AskedLongAgo,
    /// Dojo has stood by its answer for long.
    DisputedForLong,
    /// Nobody waits for the link any more.
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

    /// Where an intent can get to in one step.
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

    /// What the processes, the network and time do by themselves, in an order that is fair: each step is taken
    /// once all before it are through. `None`: there is nothing left to do.
    fn calmly(&self, state: &State, webhooks: bool) -> Option<Action> {
        let busy = |process: &usize| state.processes[*process] != Process::Idle;
        if let Some(process) = (0..state.processes.len()).find(busy) {
            return Some(match state.processes[process] {
                Process::Creating {
                    wire: Wire::Out, ..
                } if state.intents.len() < self.world.intents => {
                    Action::DojoCreates { asked_by: process }
                }
                Process::Creating {
                    wire: Wire::Out, ..
                } => Action::DojoIsNotReached { asked_by: process },
                _ => Action::Proceed { process },
            });
        }
        for (intent, at) in state.intents.iter().enumerate() {
            if let Some(reported) = undelivered(at).find(|_| webhooks) {
                return Some(Action::Webhook { intent, reported });
            }
            if !at.visible {
                return Some(Action::ComesToLight { intent });
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
                Action::AskedLongAgo
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
        let look = Action::Look {
            worker: 1,
            lagging: false,
        };
        match link.due {
            _ if link.disputed == Disputed::Lately => Some(Action::DisputedForLong),
            Due::Now => Some(look),
            // A look that finds nothing new changes nothing, so it need not be taken.
            Due::Later => differs.then_some(look),
            Due::Never => None,
        }
    }

    /// Whether all is well once nothing goes wrong any more, and what remains to be done is done. With `webhooks`,
    /// all that are still out arrive; without, none does.
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

    /// Whether a state in which nothing is left to do is as it should be.
    fn is_well(&self, state: &State, webhooks: bool) -> bool {
        let link = state.link;
        let converged = match link.intent {
            Some(intent) => {
                link.status == state.intents[intent].status
                    // At its end it is not looked at any more, even if a clock ran ahead.
                    && (link.version == Some(state.intents[intent].version) || link.due == Due::Never)
                    && state.confirmed(&self.rules)
            }
            None => link.status == Status::Failed,
        };
        let others_are_gone = state.intents.iter().enumerate().all(|(intent, at)| {
            // Where time limits are broken *and* all webhooks are lost, there may be an intent that nobody here
            // has ever heard of. Nobody has its url, so nobody can pay it, and Dojo lets it expire.
            let unheard_of = !webhooks && at.row == Row::Missing && self.world.breaks_time_limits();
            link.intent == Some(intent) || !at.is_live() || unheard_of
        });
        converged && others_are_gone
    }
}

/// The webhooks that Dojo has sent for an intent and that have not arrived.
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
            let throttle = match at {
                Process::Idle => continue,
                Process::Creating { wire, throttle, .. } => {
                    let asked_by = process;
                    if *wire == Wire::Out {
                        if state.intents.len() < self.world.intents {
                            actions.push(Action::DojoCreates { asked_by });
                        }
                        if budget.refusals > 0 {
                            actions.push(Action::DojoIsNotReached { asked_by });
                            actions.push(Action::DojoRefuses { asked_by });
                        }
                    } else {
                        actions.push(Action::Proceed { process });
                    }
                    if matches!(wire, Wire::Out | Wire::Done(_)) {
                        actions.push(Action::AnswerIsLost { asked_by });
                    }
                    *throttle
                }
                Process::GivingBack { throttle }
                | Process::AskingAgain { throttle, .. }
                | Process::GivingUp { throttle, .. }
                | Process::Adopting { throttle, .. } => {
                    actions.push(Action::Proceed { process });
                    *throttle
                }
                Process::Looking { .. } | Process::Tracing { .. } | Process::Settling { .. } => {
                    actions.push(Action::Proceed { process });
                    // These hold nothing that could be used against others, so all that a late one could do
                    // one in time may do as well.
                    Throttle::Late
                }
            };
            if budget.crashes > 0 {
                actions.push(Action::Crash { process });
            }
            if budget.stalls > 0 && throttle != Throttle::Late {
                actions.push(Action::Stall { process });
            }
        }

        if state.abandoned.in_time > 0 && state.intents.len() < self.world.intents {
            actions.push(Action::DojoCreatesForNobody { late: false });
        }
        if state.abandoned.late > 0 && state.intents.len() < self.world.intents {
            actions.push(Action::DojoCreatesForNobody { late: true });
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
            // At any moment: a caller may ask for it.
            if let Some(intent) = state.link.intent {
                let lags = state.intents[intent].before.is_some();
                for lagging in [false, true] {
                    if lags || !lagging {
                        actions.push(Action::Look { worker, lagging });
                    }
                }
                if budget.ahead > 0 {
                    actions.push(Action::LookAhead { worker });
                }
            }
            for (intent, at) in state.intents.iter().enumerate() {
                // By any number of workers at once: what a lease here would prevent does no harm.
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
            let url_is_out = state.told == Told::Url(intent) || state.link.intent == Some(intent);
            for to in self.moves(at.status) {
                if url_is_out || *to == Status::Canceled {
                    actions.push(Action::Move { intent, to: *to });
                }
            }
            if !at.visible {
                actions.push(Action::ComesToLight { intent });
            }
            if at.before.is_some() {
                actions.push(Action::CopiesCatchUp { intent });
            }
        }

        let pace_of = |process: &Process| match process {
            Process::Creating { throttle, .. }
            | Process::GivingBack { throttle }
            | Process::AskingAgain { throttle, .. }
            | Process::GivingUp { throttle, .. }
            | Process::Adopting { throttle, .. } => Some(*throttle),
            _ => None,
        };
        if state.pending() {
            // Whoever still works on the link either holds the lease, and is done before it runs out, or is late.
            if state.link.leased
                && state
                    .processes
                    .iter()
                    .all(|process| matches!(pace_of(process), None | Some(Throttle::Late)))
            {
                actions.push(Action::LeaseRunsOut);
            }
            let out_in_time = state.processes.iter().any(|process| {
                matches!(
                    process,
                    Process::Creating {
                        throttle: Throttle::InTime,
                        ..
                    }
                )
            });
            if state.link.asked == Asked::Lately && !out_in_time {
                actions.push(Action::AskedLongAgo);
            }
            if !state.link.old {
                actions.push(Action::GetsOld);
            }
        }
        if state.link.disputed == Disputed::Lately {
            actions.push(Action::DisputedForLong);
        }
    }

    fn next_state(&self, state: &State, action: Action) -> Option<State> {
        let mut next = state.clone();
        match action {
            Action::DojoCreates { asked_by } => {
                if let Process::Creating { wire, throttle, .. } = &mut next.processes[asked_by] {
                    *wire = Wire::Done(next.intents.len());
                    next.intents.push(Intent::new(*throttle == Throttle::Late));
                }
            }
            Action::DojoCreatesForNobody { late } => {
                if late {
                    next.abandoned.late -= 1;
                } else {
                    next.abandoned.in_time -= 1;
                }
                next.intents.push(Intent::new(late));
            }
            Action::DojoIsNotReached { asked_by } | Action::DojoRefuses { asked_by } => {
                next.budget.refusals = next.budget.refusals.saturating_sub(1);
                if let Process::Creating { wire, .. } = &mut next.processes[asked_by] {
                    *wire = if matches!(action, Action::DojoRefuses { .. }) {
                        Wire::Refused
                    } else {
                        Wire::NotReached
                    };
                }
            }
            Action::AnswerIsLost { asked_by } => {
                next.stop(asked_by);
                if self.rules.lost_is_unknown {
                    next.unanswered();
                    next.tell(asked_by, Told::Unknown);
                } else {
                    next.fail(true);
                    next.tell(asked_by, Told::NotReached);
                }
            }
            Action::Proceed { process } => self.proceed(&mut next, process),
            Action::Crash { process } => {
                next.budget.crashes -= 1;
                next.stop(process);
            }
            Action::Stall { process } => {
                next.budget.stalls -= 1;
                if let Process::Creating { throttle, .. }
                | Process::GivingBack { throttle }
                | Process::AskingAgain { throttle, .. }
                | Process::GivingUp { throttle, .. }
                | Process::Adopting { throttle, .. } = &mut next.processes[process]
                {
                    *throttle = Throttle::Late;
                }
            }
            Action::Recover { worker, lagging } => {
                next.link.leased = true;
                next.processes[worker] = next.decide(&self.rules, lagging);
            }
            Action::Look { worker, lagging } => {
                let seen = next.ask(next.link.intent?, lagging);
                next.processes[worker] = next.weigh(&self.rules, seen);
            }
            Action::LookAhead { worker } => {
                next.budget.ahead -= 1;
                let mut seen = next.ask(next.link.intent?, false);
                // Later than the next change, and as late as the one after that.
                seen.version += 2;
                next.processes[worker] = next.weigh(&self.rules, seen);
            }
            Action::Trace {
                worker,
                intent,
                missing,
            } => {
                let seen = next.ask(intent, false);
                next.processes[worker] = Process::Tracing {
                    intent,
                    seen: (!missing).then_some(seen.status),
                    version: seen.version,
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
            Action::ComesToLight { intent } => next.intents[intent].visible = true,
            Action::CopiesCatchUp { intent } => next.intents[intent].before = None,
            Action::LeaseRunsOut => next.link.leased = false,
            Action::AskedLongAgo => {
                next.link.asked = Asked::LongAgo;
                if !self.world.search_lags_on {
                    next.abandoned.in_time = 0;
                    for intent in next.intents.iter_mut().filter(|intent| !intent.late) {
                        intent.visible = true;
                    }
                }
            }
            Action::DisputedForLong => {
                next.link.disputed = Disputed::ForLong;
                for intent in &mut next.intents {
                    intent.before = None;
                }
            }
            Action::GetsOld => next.link.old = true,
        }
        next.unfounded |= self.confirms_without_answer(state, action, &next);
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
                |_, state: &State| match (state.told, state.key) {
                    (Told::Url(told), _) if state.link.intent != Some(told) => false,
                    (_, Key::Answered(stored)) => state.link.intent == Some(stored),
                    _ => true,
                },
            ),
            Property::always("what came to nothing stays so", |_, state: &State| {
                let failed = state.link.status == Status::Failed;
                failed || (state.told != Told::Refused && state.key != Key::Free)
            }),
            Property::always(
                "a link is what Dojo says it is or was",
                |model, state: &State| {
                    let at_dojo = state.link.intent.map(|intent| &state.intents[intent]);
                    model.world.budget.forgeries > 0
                        || at_dojo.is_none_or(|intent| intent.history.contains(state.link.status))
                },
            ),
            Property::always(
                "what is confirmed, Dojo has answered",
                |_, state: &State| !state.unfounded,
            ),
            Property::always(
                "what is confirmed, was accepted",
                |model: &Self, state: &State| {
                    !state.confirmed(&model.rules) || state.link.settled == Some(state.link.status)
                },
            ),
            Property::always("a link never goes back", |model, state: &State| {
                // What was forged is taken back.
                !state.went_back || model.world.budget.forgeries > 0
            }),
            Property::always("only the link's intent is ever paid", |_, state: &State| {
                state.intents.iter().enumerate().all(|(n, intent)| {
                    matches!(intent.status, Status::Created | Status::Canceled)
                        || state.link.intent == Some(n)
                })
            }),
            Property::sometimes("a lost creation is found", |_, state: &State| {
                state.told == Told::Unknown && state.link.status == Status::Created
            }),
            Property::sometimes("a link is paid", |_, state: &State| {
                state.link.status == Status::Captured
            }),
            Property::sometimes("a link is given up", |_, state: &State| {
                state.link.status == Status::Failed && state.told == Told::Unknown
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
    /// Whether a step confirms what the link is now without an answer of Dojo's that says so.
    fn confirms_without_answer(&self, before: &State, action: Action, after: &State) -> bool {
        let (was, is) = (before.link, after.link);
        let the_same =
            before.confirmed(&self.rules) && (was.intent, was.status) == (is.intent, is.status);
        let answer = match action {
            Action::Proceed { process } => before.processes[process].answer(was.intent),
            _ => None,
        };
        let founded = answer.is_some() && answer == is.intent.map(|intent| (intent, is.status));
        after.confirmed(&self.rules) && !the_same && !founded
    }

    /// The next step of a process: what it does with what it holds.
    fn proceed(&self, next: &mut State, process: usize) {
        match std::mem::replace(&mut next.processes[process], Process::Idle) {
            Process::Idle => {}
            Process::Creating { wire, .. } => match wire {
                Wire::Out => {}
                Wire::Done(intent) => {
                    // What Dojo answered then, whatever became of the intent since.
                    let seen = Seen {
                        intent,
                        status: Status::Created,
                        version: 0,
                    };
                    next.confirm(self, seen);
                    let told = next.link.intent.map_or(Told::NotReached, Told::Url);
                    next.tell(process, told);
                }
                Wire::NotReached if process == HANDLER => {
                    let failed = next.fail(true);
                    next.tell_failure(&self.rules, failed, Told::NotReached);
                }
                Wire::NotReached => next.not_asked(),
                Wire::Refused => {
                    let failed = next.fail(false);
                    if process == HANDLER {
                        next.tell_failure(&self.rules, failed, Told::Refused);
                    }
                }
            },
            Process::GivingBack { .. } => next.give_back(),
            Process::AskingAgain {
                unchanged,
                throttle,
            } => {
                if next.ask_again(unchanged) {
                    next.processes[process] = Process::Creating {
                        wire: Wire::Out,
                        throttle,
                    };
                }
            }
            Process::GivingUp { .. } => {
                next.fail(false);
            }
            Process::Adopting { mut rest, throttle } => {
                if let Some(seen) = rest.pop() {
                    next.confirm(self, seen);
                }
                if !rest.is_empty() {
                    next.processes[process] = Process::Adopting { rest, throttle };
                }
            }
            Process::Looking {
                finding,
                version,
                due,
                unchanged,
            } => match finding {
                Finding::Accepted(status) if unchanged => {
                    if next.link.disputed == Disputed::ForLong {
                        self.witness.outstood.store(true, Ordering::Relaxed);
                    } else if Some(version) < next.link.version {
                        self.witness.ahead.store(true, Ordering::Relaxed);
                    }
                    next.apply(&self.rules, status, version, due);
                }
                Finding::Accepted(_) => {
                    self.witness.overtaken.store(true, Ordering::Relaxed);
                    next.link.due = Due::Now;
                }
                Finding::Older(answered) | Finding::Behind(answered) if unchanged => {
                    let met = match finding {
                        Finding::Older(_) => &self.witness.older,
                        _ => &self.witness.disputed,
                    };
                    met.store(true, Ordering::Relaxed);
                    next.dispute(answered);
                }
                Finding::Older(_) | Finding::Behind(_) => next.link.due = Due::Now,
            },
            Process::Tracing {
                intent,
                seen,
                version,
                surplus,
            } => self.trace(next, process, intent, seen, version, surplus),
            Process::Settling { intent } => next.intents[intent].row = Row::Settled,
        }
    }

    /// `protocol::orphaned_intents::look`, once Dojo has answered.
    fn trace(
        &self,
        next: &mut State,
        process: usize,
        intent: usize,
        seen: Option<Status>,
        version: u8,
        surplus: bool,
    ) {
        let row = &mut next.intents[intent].row;
        match seen {
            None if self.rules.missing_is_asked_again => {}
            None => {
                *row = if *row == Row::Surplus {
                    Row::Settled
                } else {
                    Row::Forgotten
                };
            }
            Some(status) if !surplus => next.confirm(
                self,
                Seen {
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
    /// The process drops what it holds. A request of its that Dojo has not seen yet may still arrive there.
    fn stop(&mut self, process: usize) {
        let was = std::mem::replace(&mut self.processes[process], Process::Idle);
        if let Process::Creating {
            wire: Wire::Out,
            throttle,
            ..
        } = was
        {
            if throttle == Throttle::Late {
                self.abandoned.late += 1;
            } else {
                self.abandoned.in_time += 1;
            }
        }
    }

    /// Only the handler has somebody to tell.
    fn tell(&mut self, process: usize, told: Told) {
        if process == HANDLER {
            self.told = told;
        }
    }

    /// What the handler says of a failure that could not be written is that it does not know.
    fn tell_failure(&mut self, rules: &Rules, failed: bool, told: Told) {
        self.told = if failed || !rules.only_failures_are_told {
            told
        } else {
            Told::Unknown
        };
    }

    /// Makes states the same that differ in nothing that matters any more.
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
                // Webhooks for these change nothing, and nobody looks at lagging copies of them.
                intent.delivered = intent.history;
                intent.before = None;
            }
        }
        // More of these than intents that may still come into being make no difference.
        let room = u8::try_from(world.intents - self.intents.len()).unwrap_or_default();
        self.abandoned.in_time = self.abandoned.in_time.min(room);
        self.abandoned.late = self.abandoned.late.min(room);
        // Workers are alike: which is which makes no difference.
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
