//! The state of the database, the processes and Dojo, and what each transaction of the service does to the database.
//!
//! Every method of [`State`] that is named after a function of `store` is that function's statement. It takes effect as a
//! whole or not at all, as Postgres guarantees.

use std::time::Duration;

use dojo_payment_links::payment_link::{
    RecoveryLimits, SettlementWindow, Status, Verdict,
    creation_recovery::{Found, Step},
    reconciliation::{Conflict, Decision, StoredState},
};
use time::OffsetDateTime;

use crate::{protocol::Protocol, rules::Rules};

/// The model only knows whether such a period is over.
pub(crate) const LIMITS: RecoveryLimits = RecoveryLimits {
    window: SettlementWindow::new(Duration::from_mins(2)),
    give_up: Duration::from_hours(24),
};

/// Everything, at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct State {
    pub(crate) link: Link,
    pub(crate) key: Key,
    pub(crate) response: Response,
    /// Those that Dojo created for the link, in the order of their creation, each with what this service knows about it.
    pub(crate) intents: Vec<Intent>,
    /// Requests to create an intent that left and that nobody waits for any more.
    pub(crate) abandoned: Abandoned,
    /// The request's handler, then the workers.
    pub(crate) processes: [Process; 3],
    /// How much may still go wrong.
    pub(crate) budget: Budget,
    /// The link went back to an earlier stage of its life. This is never reset.
    pub(crate) went_back: bool,
    /// The link became confirmed by something other than a response of Dojo's with its status. This is never reset either.
    pub(crate) unfounded: bool,
}

/// The link's row in `payment_links`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Link {
    pub(crate) status: Status,
    pub(crate) intent: Option<usize>,
    /// `leased_until` is in the future.
    pub(crate) leased: bool,
    pub(crate) asked: Asked,
    /// The link is older than [`RecoveryLimits::give_up`].
    pub(crate) old: bool,
    /// `dojo_updated_at`.
    pub(crate) version: Option<u8>,
    /// `dojo_status`.
    pub(crate) accepted: Option<Status>,
    /// `unsettled_status`.
    pub(crate) latest: Option<Status>,
    pub(crate) conflicting: Conflicting,
    pub(crate) due: Due,
}

/// The meaning of `asked_until`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Asked {
    Never,
    /// Less than [`RecoveryLimits::window`] ago, or in the future.
    Lately,
    /// Longer ago than that.
    LongAgo,
}

/// The meaning of `disputed_since`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Conflicting {
    No,
    /// For less than the settlement window.
    Lately,
    /// For at least the settlement window.
    ForLong,
}

/// The meaning of `due_at`, once the link has an intent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Due {
    Never,
    Later,
    Now,
}

/// The row in `idempotency_keys`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Key {
    /// It has led to the link.
    Claimed,
    /// The link has this intent, whose URL a retry gets.
    Responded(usize),
    /// Its request failed for a temporary reason. A repetition makes the link pending again.
    Free,
}

/// The response to the caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Response {
    Nothing,
    /// 201, with this intent's URL.
    Url(usize),
    /// 504: the outcome is unknown.
    Unknown,
    /// 503: nothing was created, and the request may be retried.
    NotReached,
    /// 422: nothing was created, and a retry would fail as well.
    Rejected,
}

/// A payment intent at Dojo.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Intent {
    pub(crate) status: Status,
    /// Counts its changes: `updatedAt`.
    pub(crate) version: u8,
    /// Its status before, as long as a lagging copy of Dojo's data may still show it.
    pub(crate) before: Option<Status>,
    /// Whether search finds it.
    pub(crate) visible: bool,
    /// Whether its request left later than allowed.
    pub(crate) late: bool,
    /// Every status that it has had. There is a webhook for each.
    pub(crate) history: Statuses,
    /// The webhooks that are committed.
    pub(crate) delivered: Statuses,
    /// The webhooks that no link has claimed, in the order of their arrival.
    pub(crate) early: Vec<Status>,
    pub(crate) row: Row,
}

/// An intent's row in `payment_intents`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Row {
    Missing,
    /// A webhook named it and no link has claimed it. It will be traced.
    OrphanedIntent,
    /// It is settled without a link.
    Forgotten,
    /// It is the link's.
    Adopted,
    /// It is surplus and will be canceled.
    Surplus,
    /// It was surplus and is settled.
    Settled,
}

/// A set of statuses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub(crate) struct Statuses(u8);

impl Statuses {
    pub(crate) fn insert(&mut self, status: Status) {
        self.0 |= 1 << status as u8;
    }

    pub(crate) fn contains(self, status: Status) -> bool {
        self.0 & (1 << status as u8) != 0
    }
}

/// Requests to create an intent that their senders have given up on. Dojo may still act on them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub(crate) struct Abandoned {
    /// They left in time, so they arrive in time or never.
    pub(crate) in_time: u8,
    /// They left from a process whose lease was over.
    pub(crate) late: u8,
}

/// How much may still go wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Budget {
    pub(crate) crashes: u8,
    /// Processes that sleep past the end of their lease.
    pub(crate) stalls: u8,
    /// Webhooks that are sent again, as another event.
    pub(crate) copies: u8,
    /// Calls that provably do nothing.
    pub(crate) rejections: u8,
    /// Webhooks with a valid signature that report something that never happened.
    pub(crate) forgeries: u8,
    /// Responses from a node of Dojo's whose clock runs ahead.
    pub(crate) ahead: u8,
    /// Repetitions of the request after a temporary failure.
    pub(crate) repetitions: u8,
}

/// What a process does. Each variant has what the process keeps in memory and loses when it dies.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Process {
    /// A worker waits for work. The handler is done or dead.
    Idle,
    /// Waits for Dojo's response to a request to create an intent.
    Creating {
        call: Call,
        timing: Timing,
        lease: Lease,
    },
    /// Is about to release the link.
    Releasing { timing: Timing, lease: Lease },
    /// Is about to store that it retries the creation.
    Retrying {
        timing: Timing,
        lease: Lease,
        /// `asked_until` is still what this process read.
        unchanged: bool,
    },
    /// Is about to give the link up.
    GivingUp { timing: Timing, lease: Lease },
    /// Is about to give the link these intents, the last one first.
    Adopting {
        rest: Vec<IntentView>,
        timing: Timing,
    },
    /// Has a response about the link's intent, and is about to store it.
    Reading {
        outcome: ReadOutcome,
        version: u8,
        due: Due,
        /// `revision` is still what this process read.
        unchanged: bool,
    },
    /// Has a response about an orphaned or surplus intent.
    Tracing {
        intent: usize,
        view: Option<Status>,
        version: u8,
        surplus: bool,
    },
    /// Has canceled a surplus intent, or found it canceled, and is about to store that.
    Settling { intent: usize },
}

impl Process {
    /// A process that has just claimed the link, and is about to call Dojo.
    pub(crate) fn creates(timing: Timing) -> Self {
        Self::Creating {
            call: Call::Out,
            timing,
            lease: Lease::Own,
        }
    }

    /// The response of Dojo's that the process is about to store: which intent, and its status.
    pub(crate) fn response(&self, of: Option<usize>) -> Option<(usize, Status)> {
        match self {
            Self::Creating {
                call: Call::Done(intent),
                ..
            } => Some((*intent, Status::Created)),
            Self::Adopting { rest, .. } => rest.last().map(|view| (view.intent, view.status)),
            Self::Reading {
                outcome:
                    ReadOutcome::Accepted(status)
                    | ReadOutcome::Older(status)
                    | ReadOutcome::Behind(status),
                ..
            } => of.map(|intent| (intent, *status)),
            Self::Tracing { intent, view, .. } => view.map(|status| (*intent, status)),
            _ => None,
        }
    }
}

/// The state of a request to create an intent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Call {
    /// About to leave, or on its way.
    Out,
    /// Dojo created this intent. The response is on its way back.
    Done(usize),
    /// Provably not created: no connection, or 429.
    NotReached,
    /// Provably not created: Dojo rejects it.
    Rejected,
}

/// Whether `leased_until` is still what the process got when it claimed the link. Its statements require that, even after
/// that time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Lease {
    Own,
    /// Somebody else has claimed the link, or the lease was ended.
    Gone,
}

/// Whether a process acts within its lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Timing {
    /// It has its lease.
    InTime,
    /// It would have its lease if nobody else had ended it early.
    CutShort,
    /// It sleeps, or has slept, past the end of its lease.
    Late,
}

/// An intent as a response of Dojo's shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct IntentView {
    pub(crate) intent: usize,
    pub(crate) status: Status,
    pub(crate) version: u8,
}

/// [`Decision`], hashable, with the status that was reported.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum ReadOutcome {
    Accepted(Status),
    Older(Status),
    Behind(Status),
}

impl Intent {
    pub(crate) fn new(late: bool) -> Self {
        let mut history = Statuses::default();
        history.insert(Status::Created);
        Self {
            status: Status::Created,
            version: 0,
            before: None,
            visible: false,
            late,
            history,
            delivered: Statuses::default(),
            early: Vec::new(),
            row: Row::Missing,
        }
    }

    /// Somebody could pay it, or has paid it.
    pub(crate) fn is_live(&self) -> bool {
        self.status != Status::Canceled
    }
}

/// `version` as Dojo's `updatedAt`.
fn updated_at(version: u8) -> OffsetDateTime {
    OffsetDateTime::UNIX_EPOCH + Duration::from_secs(version.into())
}

impl State {
    /// The moment after `store::creation::begin`: the link is saved, and Dojo is about to be called. A crash before that leaves
    /// nothing at all.
    pub(crate) fn begun(budget: Budget) -> Self {
        Self {
            link: Link {
                status: Status::Pending,
                intent: None,
                leased: true,
                asked: Asked::Lately,
                old: false,
                version: None,
                accepted: None,
                latest: None,
                conflicting: Conflicting::No,
                due: Due::Never,
            },
            key: Key::Claimed,
            response: Response::Nothing,
            intents: Vec::new(),
            abandoned: Abandoned::default(),
            processes: [
                Process::creates(Timing::InTime),
                Process::Idle,
                Process::Idle,
            ],
            budget,
            went_back: false,
            unfounded: false,
        }
    }

    pub(crate) fn pending(&self) -> bool {
        self.link.status == Status::Pending
    }

    /// Whether the link is confirmed, as a caller reads it.
    pub(crate) fn confirmed(&self, rules: &Rules) -> bool {
        let link = self.link;
        let latest = link.latest.map(Status::as_str);
        link.intent.is_some() && (rules.is_confirmed)(link.status, link.accepted, latest)
    }

    /// What Dojo's response shows of an intent: its state, or that of a lagging copy.
    pub(crate) fn view(&self, intent: usize, lagging: bool) -> IntentView {
        let at_dojo = &self.intents[intent];
        match at_dojo.before.filter(|_| lagging) {
            Some(before) => IntentView {
                intent,
                status: before,
                version: at_dojo.version - 1,
            },
            None => IntentView {
                intent,
                status: at_dojo.status,
                version: at_dojo.version,
            },
        }
    }

    /// `protocol::creation_recovery::recover` up to its decision: a claim, a search, and the rule.
    pub(crate) fn recover(&self, rules: &Rules, lagging: bool) -> Process {
        let views: Vec<_> = (0..self.intents.len())
            .filter(|intent| self.intents[*intent].visible)
            .map(|intent| self.view(intent, lagging))
            .collect();
        let found: Vec<_> = views
            .iter()
            .map(|view| Found {
                id: format!("pi_{}", view.intent),
                status: Some(view.status),
                created_at: Some(
                    OffsetDateTime::UNIX_EPOCH + Duration::from_secs(view.intent as u64),
                ),
            })
            .collect();
        let since_sent = match self.link.asked {
            Asked::Never => None,
            Asked::Lately => Some(Duration::ZERO),
            Asked::LongAgo => Some(LIMITS.window.length()),
        };
        let age = if self.link.old {
            LIMITS.give_up
        } else {
            Duration::ZERO
        };
        let (timing, lease) = (Timing::InTime, Lease::Own);
        match (rules.next_step)(&found, since_sent, age, false, LIMITS) {
            Step::Adopt(best) => {
                let mut rest = views;
                let best = rest.remove(best);
                rest.push(best);
                Process::Adopting { rest, timing }
            }
            Step::Wait => Process::Releasing { timing, lease },
            Step::CreateAgain => Process::Retrying {
                timing,
                lease,
                unchanged: true,
            },
            Step::GiveUp => Process::GivingUp { timing, lease },
        }
    }

    /// `protocol::reconciliation::reconcile_due` up to its decision: the stored state, Dojo's response, and the rule.
    pub(crate) fn read(&self, rules: &Rules, view: IntentView) -> Process {
        let stored = StoredState {
            status: self.link.status,
            accepted: self.link.accepted,
            dojo_updated_at: self.link.version.map(updated_at),
            conflicting_for: match self.link.conflicting {
                Conflicting::No => None,
                Conflicting::Lately => Some(Duration::ZERO),
                Conflicting::ForLong => Some(LIMITS.window.length()),
            },
        };
        let decision = (rules.reconcile)(
            stored,
            Some(view.status),
            Some(updated_at(view.version)),
            LIMITS.window,
        );
        Process::Reading {
            outcome: match decision {
                Decision::Accept(status) => ReadOutcome::Accepted(status),
                Decision::Conflict(Conflict::Older) => ReadOutcome::Older(view.status),
                Decision::Conflict(Conflict::Behind) => ReadOutcome::Behind(view.status),
            },
            version: view.version,
            due: self.link.due,
            unchanged: true,
        }
    }

    /// `store::adoption::adopt_intent`.
    pub(crate) fn adopt(&mut self, model: &Protocol, view: IntentView) {
        let IntentView {
            intent,
            status,
            version,
        } = view;
        if self.pending() || !model.rules.first_intent_stays {
            self.link.intent = Some(intent);
            self.link.status = status;
            self.link.version = Some(version);
            self.link.accepted = Some(status);
            self.link.due = Due::Later;
            self.end_lease();
            self.revise();
            self.intents[intent].row = Row::Adopted;
            for reported in std::mem::take(&mut self.intents[intent].early) {
                model.witness.early_webhooks();
                self.judge(&model.rules, reported);
                self.link.due = Due::Now;
            }
        }
        if self.link.intent == Some(intent) {
            if self.key == Key::Claimed {
                self.key = Key::Responded(intent);
            }
        } else if model.rules.surplus_is_canceled {
            let row = &mut self.intents[intent].row;
            if matches!(row, Row::Missing | Row::OrphanedIntent | Row::Forgotten) {
                *row = Row::Surplus;
                self.intents[intent].early.clear();
            }
        }
    }

    /// `store::creation::fail`. `false`: the link is no longer pending under that lease, and stays as it is.
    pub(crate) fn fail(&mut self, lease: Lease, frees_the_key: bool) -> bool {
        let may = self.pending() && lease == Lease::Own;
        if may {
            self.link.status = Status::Failed;
            self.end_lease();
            if frees_the_key {
                self.key = Key::Free;
            }
        }
        may
    }

    /// `store::creation::reopen`, before Dojo is called for a repetition of the request.
    pub(crate) fn reopen(&mut self) {
        self.link.status = Status::Pending;
        self.key = Key::Claimed;
        self.end_lease();
        self.link.leased = true;
        self.link.old = false;
        self.set_asked(Asked::Lately, false);
        self.revise();
    }

    /// `store::creation::record_lost_response`.
    pub(crate) fn record_lost_response(&mut self, lease: Lease) {
        if self.pending() && lease == Lease::Own {
            self.end_lease();
            self.set_asked(Asked::Lately, true);
        }
    }

    /// `store::creation_recovery::undo_retry`.
    pub(crate) fn undo_retry(&mut self, lease: Lease) {
        if self.pending() && lease == Lease::Own {
            self.end_lease();
            self.set_asked(Asked::Never, true);
        }
    }

    /// `store::creation_recovery::release`.
    pub(crate) fn release(&mut self, lease: Lease) {
        if self.pending() && lease == Lease::Own {
            self.end_lease();
        }
    }

    /// `store::creation_recovery::retry`. `false`: Dojo must not be called.
    pub(crate) fn retry(&mut self, lease: Lease, unchanged: bool) -> bool {
        let may = self.pending() && self.link.leased && lease == Lease::Own && unchanged;
        if may {
            // Later than everything that was stored before, so it also covers requests that are still on their way.
            self.set_asked(Asked::Lately, false);
        }
        may
    }

    /// `store::reconciliation::apply`.
    pub(crate) fn apply(&mut self, rules: &Rules, status: Status, version: u8, due: Due) {
        if status != self.link.status {
            self.moved(status);
        } else if self.link.conflicting != Conflicting::No || !self.confirmed(rules) {
            self.revise();
        }
        self.link.version = Some(version);
        self.link.accepted = Some(status);
        self.link.latest = None;
        self.link.conflicting = Conflicting::No;
        if self.link.due == due {
            self.link.due = match (rules.next_reconciliation)(status, false, Duration::ZERO, None) {
                Some(_) => Due::Later,
                None => Due::Never,
            };
        }
    }

    /// `store::reconciliation::record_conflict`.
    pub(crate) fn record_conflict(&mut self, reported: Status) {
        self.link.latest = Some(reported);
        if self.link.conflicting == Conflicting::No {
            self.link.conflicting = Conflicting::Lately;
        }
        self.link.due = Due::Now;
    }

    /// `store::webhooks::record`, for the first copy of an event.
    pub(crate) fn record(&mut self, model: &Protocol, intent: usize, reported: Status) {
        let at = &mut self.intents[intent];
        match at.row {
            Row::Missing => {
                at.row = Row::OrphanedIntent;
                at.early.push(reported);
            }
            Row::OrphanedIntent | Row::Forgotten => at.early.push(reported),
            Row::Surplus | Row::Settled => {}
            Row::Adopted => {
                if self.link.intent == Some(intent) {
                    if self.judge(&model.rules, reported) == Verdict::Stale {
                        model.witness.stale_webhooks();
                    }
                    self.link.due = Due::Now;
                }
            }
        }
    }

    fn judge(&mut self, rules: &Rules, reported: Status) -> Verdict {
        let verdict = (rules.judge)(self.link.status, Some(reported));
        if let Verdict::Moved(status) = verdict
            && status != self.link.status
        {
            self.moved(status);
            if rules.a_move_ends_a_conflict {
                self.link.conflicting = Conflicting::No;
                self.link.latest = None;
            }
        }
        verdict
    }

    fn moved(&mut self, status: Status) {
        self.went_back |= status.leads_to(self.link.status);
        self.link.status = status;
        self.revise();
    }

    /// Writes `leased_until`: whoever had the lease has it no longer.
    pub(crate) fn end_lease(&mut self) {
        self.link.leased = false;
        for process in &mut self.processes {
            if let Process::Creating { lease, .. }
            | Process::Releasing { lease, .. }
            | Process::Retrying { lease, .. }
            | Process::GivingUp { lease, .. } = process
            {
                *lease = Lease::Gone;
            }
        }
    }

    /// Increases `revision`: what other processes have read is outdated.
    fn revise(&mut self) {
        for process in &mut self.processes {
            if let Process::Reading { unchanged, .. } = process {
                *unchanged = false;
            }
        }
    }

    /// Writes `asked_until`: what other processes have read or written is outdated. If it is in the past, nobody waits any more
    /// for a call of another process that is still on its way.
    fn set_asked(&mut self, asked: Asked, over: bool) {
        self.link.asked = asked;
        for process in &mut self.processes {
            match process {
                Process::Retrying { unchanged, .. } => *unchanged = false,
                Process::Creating { timing, .. } if over && *timing == Timing::InTime => {
                    *timing = Timing::CutShort;
                }
                _ => {}
            }
        }
    }
}
