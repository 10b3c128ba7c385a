//! What there is: the database, the processes, Dojo; and what each transaction of the service does to the database.
//!
//! Every method of [`State`] that is named after a function of `store` is that function's statement: it happens
//! whole or not at all, which is what Postgres is trusted with.

use std::time::Duration;

use dojo_payment_links::payment_link::{
    RecoveryLimits, SettlementWindow, Status, Verdict,
    creation_recovery::{Found, Step},
    reconciliation::{Conflict, Decision, StoredState},
};
use time::OffsetDateTime;

use crate::{protocol::Protocol, rules::Rules};

/// How long things take. The model knows only whether such a time is over.
pub(crate) const LIMITS: RecoveryLimits = RecoveryLimits {
    window: SettlementWindow::new(Duration::from_mins(2)),
    give_up: Duration::from_hours(24),
};

/// Everything, at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct State {
    pub(crate) link: Link,
    pub(crate) key: Key,
    pub(crate) told: Told,
    /// Those that Dojo created for the link, in the order of their creation, each with what is known of it here.
    pub(crate) intents: Vec<Intent>,
    /// Requests to create that left, and that nobody waits for any more.
    pub(crate) abandoned: Abandoned,
    /// The request's handler, then the workers.
    pub(crate) processes: [Process; 3],
    /// How much may still go wrong.
    pub(crate) budget: Budget,
    /// A link went back to an earlier stage of its life. Nothing ever takes this back.
    pub(crate) went_back: bool,
    /// The link came to be confirmed by something else than an answer of Dojo's with its status. Nor does anything take
    /// this back.
    pub(crate) unfounded: bool,
}

/// The link's row in `payment_links`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Link {
    pub(crate) status: Status,
    pub(crate) intent: Option<usize>,
    /// `leased_until` lies in the future.
    pub(crate) leased: bool,
    pub(crate) asked: Asked,
    /// The link is older than [`RecoveryLimits::give_up`].
    pub(crate) old: bool,
    /// `dojo_updated_at`.
    pub(crate) version: Option<u8>,
    /// `dojo_status`.
    pub(crate) settled: Option<Status>,
    /// `unsettled_status`.
    pub(crate) unsettled: Option<Status>,
    pub(crate) disputed: Disputed,
    pub(crate) due: Due,
}

/// What `asked_until` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Asked {
    Never,
    /// Less than [`RecoveryLimits::window`] ago, or still to come.
    Lately,
    /// Longer ago than that.
    LongAgo,
}

/// What `disputed_since` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Disputed {
    No,
    /// For less than the patience.
    Lately,
    ForLong,
}

/// What `due_at` says, once the link has an intent.
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
    /// The answer is stored: a link with this intent's url.
    Answered(usize),
    /// It may be used for another try.
    Free,
}

/// What the caller was answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Told {
    Nothing,
    /// 201, with this intent's url.
    Url(usize),
    /// 504: nobody knows yet.
    Unknown,
    /// 503: it came to nothing, and may be tried again.
    NotReached,
    /// 422: it came to nothing, and so it will again.
    Refused,
}

/// A payment intent at Dojo.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Intent {
    pub(crate) status: Status,
    /// Counts its changes: `updatedAt`.
    pub(crate) version: u8,
    /// What it was before, as long as a lagging copy of Dojo's data may still say so.
    pub(crate) before: Option<Status>,
    /// Search finds it.
    pub(crate) visible: bool,
    /// Its request left later than it was allowed to.
    pub(crate) late: bool,
    /// All that it ever was. There is a webhook for each.
    pub(crate) history: Statuses,
    /// The webhooks that are committed.
    pub(crate) delivered: Statuses,
    /// The webhooks that no link claimed, in the order of their arrival.
    pub(crate) early: Vec<Status>,
    pub(crate) row: Row,
}

/// An intent's row in `payment_intents`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Row {
    Missing,
    /// A webhook named it, and no link claimed it. To be traced.
    OrphanedIntent,
    /// It was settled without a link.
    Forgotten,
    /// It is the link's.
    Adopted,
    /// It is one too many, and to be canceled.
    Surplus,
    /// It was one too many, and is dealt with.
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

/// Requests to create that somebody sent and gave up on. Dojo may act on them still.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub(crate) struct Abandoned {
    /// They left in time, so they arrive in time or never.
    pub(crate) in_time: u8,
    /// They left from a process that had lost its lease long ago.
    pub(crate) late: u8,
}

/// How much may still go wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Budget {
    pub(crate) crashes: u8,
    /// Processes that sleep through the end of their lease.
    pub(crate) stalls: u8,
    /// Webhooks sent once more, as another event.
    pub(crate) copies: u8,
    /// Calls that provably come to nothing.
    pub(crate) refusals: u8,
    /// Webhooks that bear a right signature and tell what never was.
    pub(crate) forgeries: u8,
    /// Answers from a node of Dojo's whose clock runs ahead.
    pub(crate) ahead: u8,
}

/// What a process is at. Each is what it holds in memory, and loses when it dies.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Process {
    /// A worker waits for work; the handler is done, or dead.
    Idle,
    /// Waits for Dojo to answer a request to create.
    Creating { wire: Wire, throttle: Throttle },
    /// Is about to give the link back.
    GivingBack { throttle: Throttle },
    /// Is about to write that it will ask again.
    AskingAgain {
        throttle: Throttle,
        /// `asked_until` is what this process read.
        unchanged: bool,
    },
    /// Is about to give the link up.
    GivingUp { throttle: Throttle },
    /// Is about to give the link these intents, the last one first.
    Adopting { rest: Vec<Seen>, throttle: Throttle },
    /// Has an answer about the link's intent, and is about to write it.
    Looking {
        finding: Finding,
        version: u8,
        due: Due,
        /// `revision` is what this process read.
        unchanged: bool,
    },
    /// Has an answer about an intent that may be a orphan, or one too many.
    Tracing {
        intent: usize,
        seen: Option<Status>,
        version: u8,
        surplus: bool,
    },
    /// Has canceled an intent, or found it so, and is about to write it.
    Settling { intent: usize },
}

impl Process {
    /// The answer of Dojo's that the process is about to write: which intent, and its status.
    pub(crate) fn answer(&self, of: Option<usize>) -> Option<(usize, Status)> {
        match self {
            Self::Creating {
                wire: Wire::Done(intent),
                ..
            } => Some((*intent, Status::Created)),
            Self::Adopting { rest, .. } => rest.last().map(|seen| (seen.intent, seen.status)),
            Self::Looking {
                finding:
                    Finding::Accepted(status) | Finding::Older(status) | Finding::Behind(status),
                ..
            } => of.map(|intent| (intent, *status)),
            Self::Tracing { intent, seen, .. } => seen.map(|status| (*intent, status)),
            _ => None,
        }
    }
}

/// How far a request to create has got.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Wire {
    /// About to leave, or on its way.
    Out,
    /// Dojo created this intent; the answer is on its way back.
    Done(usize),
    /// Provably not created: no connection, or 429.
    NotReached,
    /// Provably not created: Dojo does not take it.
    Refused,
}

/// Whether a process keeps the time it was given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Throttle {
    /// It holds its lease.
    InTime,
    /// It would hold its lease, had nobody else cut it short.
    CutShort,
    /// It sleeps, or has slept, past the end of its lease.
    Late,
}

/// An intent as an answer of Dojo's shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Seen {
    pub(crate) intent: usize,
    pub(crate) status: Status,
    pub(crate) version: u8,
}

/// [`Decision`], hashable, with the status that was answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Finding {
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
    /// The moment after `store::creation::begin`: the link is saved, and Dojo is about to be asked. A crash before
    /// it leaves nothing at all.
    pub(crate) fn begun(budget: Budget) -> Self {
        Self {
            link: Link {
                status: Status::Pending,
                intent: None,
                leased: true,
                asked: Asked::Lately,
                old: false,
                version: None,
                settled: None,
                unsettled: None,
                disputed: Disputed::No,
                due: Due::Never,
            },
            key: Key::Claimed,
            told: Told::Nothing,
            intents: Vec::new(),
            abandoned: Abandoned::default(),
            processes: [
                Process::Creating {
                    wire: Wire::Out,
                    throttle: Throttle::InTime,
                },
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
        let unsettled = link.unsettled.map(Status::as_str);
        link.intent.is_some() && (rules.is_confirmed)(link.status, link.settled, unsettled)
    }

    /// What Dojo answers about an intent: how it is, or how a lagging copy has it.
    pub(crate) fn ask(&self, intent: usize, lagging: bool) -> Seen {
        let at_dojo = &self.intents[intent];
        match at_dojo.before.filter(|_| lagging) {
            Some(before) => Seen {
                intent,
                status: before,
                version: at_dojo.version - 1,
            },
            None => Seen {
                intent,
                status: at_dojo.status,
                version: at_dojo.version,
            },
        }
    }

    /// `protocol::creation_recovery::recover` up to its decision: a claim, a search, and the rule.
    pub(crate) fn decide(&self, rules: &Rules, lagging: bool) -> Process {
        let seen: Vec<_> = (0..self.intents.len())
            .filter(|intent| self.intents[*intent].visible)
            .map(|intent| self.ask(intent, lagging))
            .collect();
        let found: Vec<_> = seen
            .iter()
            .map(|seen| Found {
                id: format!("pi_{}", seen.intent),
                status: Some(seen.status),
                created_at: Some(
                    OffsetDateTime::UNIX_EPOCH + Duration::from_secs(seen.intent as u64),
                ),
            })
            .collect();
        let since_asked = match self.link.asked {
            Asked::Never => None,
            Asked::Lately => Some(Duration::ZERO),
            Asked::LongAgo => Some(LIMITS.window.length()),
        };
        let age = if self.link.old {
            LIMITS.give_up
        } else {
            Duration::ZERO
        };
        let throttle = Throttle::InTime;
        match (rules.next_step)(&found, since_asked, age, false, LIMITS) {
            Step::Adopt(best) => {
                let mut rest = seen;
                let best = rest.remove(best);
                rest.push(best);
                Process::Adopting { rest, throttle }
            }
            Step::Wait => Process::GivingBack { throttle },
            Step::CreateAgain => Process::AskingAgain {
                throttle,
                unchanged: true,
            },
            Step::GiveUp => Process::GivingUp { throttle },
        }
    }

    /// `protocol::reconciliation::look` up to its decision: what is held, what Dojo answers, and the rule.
    pub(crate) fn weigh(&self, rules: &Rules, seen: Seen) -> Process {
        let stored = StoredState {
            status: self.link.status,
            accepted: self.link.settled,
            dojo_updated_at: self.link.version.map(updated_at),
            conflicting_for: match self.link.disputed {
                Disputed::No => None,
                Disputed::Lately => Some(Duration::ZERO),
                Disputed::ForLong => Some(LIMITS.window.length()),
            },
        };
        let decision = (rules.reconcile)(
            stored,
            Some(seen.status),
            Some(updated_at(seen.version)),
            LIMITS.window,
        );
        Process::Looking {
            finding: match decision {
                Decision::Accept(status) => Finding::Accepted(status),
                Decision::Conflict(Conflict::Older) => Finding::Older(seen.status),
                Decision::Conflict(Conflict::Behind) => Finding::Behind(seen.status),
            },
            version: seen.version,
            due: self.link.due,
            unchanged: true,
        }
    }

    /// `store::creation::confirm`.
    pub(crate) fn confirm(&mut self, model: &Protocol, seen: Seen) {
        let Seen {
            intent,
            status,
            version,
        } = seen;
        if self.pending() || !model.rules.first_intent_stays {
            self.link.intent = Some(intent);
            self.link.status = status;
            self.link.version = Some(version);
            self.link.settled = Some(status);
            self.link.due = Due::Later;
            self.link.leased = false;
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
                self.key = Key::Answered(intent);
            }
        } else if model.rules.surplus_is_canceled {
            let row = &mut self.intents[intent].row;
            if matches!(row, Row::Missing | Row::OrphanedIntent | Row::Forgotten) {
                *row = Row::Surplus;
                self.intents[intent].early.clear();
            }
        }
    }

    /// `store::creation::fail`. `false`: the link is settled already, and stays so.
    pub(crate) fn fail(&mut self, frees_the_key: bool) -> bool {
        let may = self.pending();
        if may {
            self.link.status = Status::Failed;
            self.link.leased = false;
            if frees_the_key {
                self.key = Key::Free;
            }
        }
        may
    }

    /// `store::creation::unanswered`.
    pub(crate) fn unanswered(&mut self) {
        if self.pending() {
            self.link.leased = false;
            self.asked(Asked::Lately, true);
        }
    }

    /// `store::creation::not_asked`.
    pub(crate) fn not_asked(&mut self) {
        if self.pending() {
            self.link.leased = false;
            self.asked(Asked::Never, true);
        }
    }

    /// `store::creation::give_back`.
    pub(crate) fn give_back(&mut self) {
        if self.pending() {
            self.link.leased = false;
        }
    }

    /// `store::creation::ask_again`. `false`: Dojo must not be asked.
    pub(crate) fn ask_again(&mut self, unchanged: bool) -> bool {
        let may = self.pending() && self.link.leased && unchanged;
        if may {
            // Later than all that was written before, so whoever is still out stays covered by it.
            self.asked(Asked::Lately, false);
        }
        may
    }

    /// `store::reconciliation::apply`.
    pub(crate) fn apply(&mut self, rules: &Rules, status: Status, version: u8, due: Due) {
        if status != self.link.status {
            self.moved(status);
        } else if self.link.disputed != Disputed::No || !self.confirmed(rules) {
            self.revise();
        }
        self.link.version = Some(version);
        self.link.settled = Some(status);
        self.link.unsettled = None;
        self.link.disputed = Disputed::No;
        if self.link.due == due {
            self.link.due = match (rules.next_reconciliation)(status, false, Duration::ZERO, None) {
                Some(_) => Due::Later,
                None => Due::Never,
            };
        }
    }

    /// `store::reconciliation::dispute`.
    pub(crate) fn dispute(&mut self, answered: Status) {
        self.link.unsettled = Some(answered);
        if self.link.disputed == Disputed::No {
            self.link.disputed = Disputed::Lately;
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
            if rules.a_move_ends_a_dispute {
                self.link.disputed = Disputed::No;
                self.link.unsettled = None;
            }
        }
        verdict
    }

    fn moved(&mut self, status: Status) {
        self.went_back |= status.leads_to(self.link.status);
        self.link.status = status;
        self.revise();
    }

    /// `revision` goes up: what others have read is outdated.
    fn revise(&mut self) {
        for process in &mut self.processes {
            if let Process::Looking { unchanged, .. } = process {
                *unchanged = false;
            }
        }
    }

    /// `asked_until` is written: what others have read or written is outdated. If it is written as over, nobody
    /// waits for somebody else's call any more that is still out.
    fn asked(&mut self, asked: Asked, over: bool) {
        self.link.asked = asked;
        for process in &mut self.processes {
            match process {
                Process::AskingAgain { unchanged, .. } => *unchanged = false,
                Process::Creating { throttle, .. } if over && *throttle == Throttle::InTime => {
                    *throttle = Throttle::CutShort;
                }
                _ => {}
            }
        }
    }
}
