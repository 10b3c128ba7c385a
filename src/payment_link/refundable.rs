//! How much of a payment is left to refund.
//!
//! Dojo reports one refund total for a payment: the sum of all its refunds, whether they were requested through this
//! service or elsewhere, such as in Dojo's portal. Dojo doesn't say which refunds the total includes. So what is left
//! lies between two bounds, which depend on how many of our own refunds (those requested through this service) are in
//! the total.
//!
//! One of our refunds is *certainly* in the total if it ended (succeeded, or was given up as unconfirmed) more than a
//! settlement window before Dojo was read. Any other may or may not be in it: it may not have reached Dojo by then, or the
//! response may come from a copy of Dojo's data that doesn't have it yet. It doesn't help that Dojo confirmed the refund
//! before the read: a lagging copy may lack it and show a portal refund that is at least as large instead.
//!
//! Often the total itself proves what it includes. All refunds together never exceed what was captured. If we refunded
//! 6 of 10 and the total is 6, then it is our refund: a portal refund of 6 wouldn't have fit as well.

use std::{collections::BTreeSet, time::Duration};

use time::{OffsetDateTime, PrimitiveDateTime};

use super::{SettlementWindow, operation::OperationStatus};

/// A refund that was requested through this service and hasn't failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OurRefund {
    /// Minor units.
    pub amount: i64,
    /// Never `Failed`.
    pub status: OperationStatus,
    /// When we learned its outcome, by the database's clock.
    pub completed_at: Option<OffsetDateTime>,
}

impl OurRefund {
    /// Whether Dojo had made the refund before `at`, or its outcome is unknown and it was no longer attempted by then. Either
    /// way it can't change what Dojo shows as of `at` or later.
    fn ended_before(&self, at: OffsetDateTime) -> bool {
        matches!(
            self.status,
            OperationStatus::Succeeded | OperationStatus::Unconfirmed
        ) && self
            .completed_at
            .is_some_and(|completed_at| completed_at < at)
    }
}

/// What is known about the refunds of a payment, apart from Dojo's refund total.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Refunds {
    /// Those requested through this service that haven't failed.
    pub ours: Vec<OurRefund>,
    /// A lower bound on what was refunded elsewhere, in minor units.
    pub elsewhere: i64,
    /// When the request that returned Dojo's refund total was sent, by the database's clock. `None` if not known.
    pub read_at: Option<OffsetDateTime>,
}

/// How much is left to refund, in minor units.
///
/// The two bounds are equal once none of our refunds is in progress and all of them ended more than a settlement window ago.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RefundBounds {
    /// At least this much is left. A refund up to this amount can't exceed what Dojo has left.
    pub certain: i64,
    /// At most this much is left: exactly this much if Dojo's refund total includes all of our refunds that were made.
    pub possible: i64,
}

/// The maximum number of refunds, of those that may or may not be in Dojo's refund total, that are distinguished by
/// their amounts. With more of them, the worst case is assumed, because the number of combinations doubles with each.
const MAX_UNCLEAR_REFUNDS: usize = 10;

impl Refunds {
    /// How much is left of what was captured, given that Dojo reports `refunded` as refunded.
    ///
    /// Refunds that are in progress or whose outcome is unknown count as made. `window` is how long Dojo's responses may lag.
    #[must_use]
    pub fn bounds(&self, captured: i64, refunded: i64, window: SettlementWindow) -> RefundBounds {
        let ours = self.sum(|_| true);
        let known = self.elsewhere.saturating_add(ours);
        let at_most = self
            .elsewhere_at_most(captured, refunded, window)
            .saturating_add(ours)
            .max(known);
        RefundBounds {
            certain: captured.saturating_sub(at_most),
            possible: captured.saturating_sub(self.at_least(refunded)),
        }
    }

    /// How much was refunded at least, and is under way, given that Dojo reports `refunded` as refunded.
    #[must_use]
    pub fn at_least(&self, refunded: i64) -> i64 {
        refunded.max(self.elsewhere.saturating_add(self.sum(|_| true)))
    }

    /// The largest part of Dojo's refund total that may be refunds made elsewhere: as few of ours as possible are in
    /// it.
    fn elsewhere_at_most(&self, captured: i64, refunded: i64, window: SettlementWindow) -> i64 {
        let read_at = self.read_at.map(|read_at| before(read_at, window));
        let is_included = |refund: &OurRefund| read_at.is_some_and(|at| refund.ended_before(at));
        let unexplained = refunded.saturating_sub(self.sum(is_included));
        let unclear: Vec<_> = self
            .ours
            .iter()
            .filter(|refund| !is_included(refund))
            .map(|refund| refund.amount)
            .collect();
        if unclear.len() > MAX_UNCLEAR_REFUNDS {
            return unexplained;
        }
        let mut sums = BTreeSet::from([0_i64]);
        for amount in unclear {
            let with_it: Vec<i64> = sums.iter().map(|sum| sum.saturating_add(amount)).collect();
            sums.extend(with_it);
        }
        // Dojo made all of these, so what was refunded elsewhere can't exceed what they leave.
        let made = self.sum(|refund| refund.status == OperationStatus::Succeeded);
        let room = captured.saturating_sub(made);
        sums.into_iter()
            .map(|included| unexplained.saturating_sub(included))
            .find(|elsewhere| *elsewhere <= room)
            .unwrap_or(unexplained)
    }

    /// How long until it is likely to be clear whether an amount between the two bounds is left, if nothing else is refunded.
    ///
    /// A refund in progress may end at any moment. Otherwise the bounds converge as the settlement windows of earlier refunds
    /// end.
    #[must_use]
    pub fn unclear_for(
        &self,
        captured: i64,
        refunded: i64,
        window: SettlementWindow,
        is_clear: impl Fn(RefundBounds) -> bool,
    ) -> Duration {
        const SOON: Duration = Duration::from_secs(1);
        let Some(read_at) = self.read_at.filter(|_| !self.has(OperationStatus::Pending)) else {
            return SOON;
        };
        let mut ends: Vec<_> = self
            .ours
            .iter()
            .filter_map(|refund| after(refund.completed_at?, window))
            .filter(|end| *end >= read_at)
            .collect();
        ends.sort_unstable();
        let clear_at = ends.into_iter().find(|end| {
            let then = Self {
                read_at: Some(*end + time::Duration::SECOND),
                ..self.clone()
            };
            is_clear(then.bounds(captured, refunded, window))
        });
        let wait = clear_at.and_then(|at| u64::try_from((at - read_at).whole_seconds()).ok());
        wait.map_or(SOON, |wait| Duration::from_secs(wait) + SOON)
    }

    /// The lower bound on what was refunded elsewhere, now that Dojo reports `refunded` for a request sent at
    /// [`Refunds::read_at`]: the part of the total that can't be ours.
    ///
    /// While any of our refunds is in progress, or so recent that a copy of Dojo's data may lack it, the bound only rises.
    /// After that the total is known to include all of ours, and the rest of it is what was refunded elsewhere.
    #[must_use]
    pub fn refunded_elsewhere(&self, refunded: i64, window: SettlementWindow) -> i64 {
        let not_ours = refunded.saturating_sub(self.sum(|_| true)).max(0);
        let is_exact = self.read_at.is_some_and(|read_at| {
            let until = before(read_at, window);
            self.ours.iter().all(|refund| {
                refund.status == OperationStatus::Succeeded && refund.ended_before(until)
            })
        });
        if is_exact {
            not_ours
        } else {
            not_ours.max(self.elsewhere)
        }
    }

    /// Whether any of our refunds has this status.
    #[must_use]
    pub fn has(&self, status: OperationStatus) -> bool {
        self.ours.iter().any(|refund| refund.status == status)
    }

    fn sum(&self, which: impl Fn(&OurRefund) -> bool) -> i64 {
        let amounts = self.ours.iter().filter(|refund| which(refund));
        amounts
            .map(|refund| refund.amount)
            .fold(0, i64::saturating_add)
    }
}

/// The time one settlement window before this one, or the earliest possible time.
fn before(at: OffsetDateTime, window: SettlementWindow) -> OffsetDateTime {
    time::Duration::try_from(window.length())
        .ok()
        .and_then(|window| at.checked_sub(window))
        .unwrap_or_else(|| PrimitiveDateTime::MIN.assume_utc())
}

/// The time one settlement window after this one, if there is such a time.
fn after(at: OffsetDateTime, window: SettlementWindow) -> Option<OffsetDateTime> {
    at.checked_add(time::Duration::try_from(window.length()).ok()?)
}

#[cfg(test)]
mod tests {
    use proptest::{
        prelude::*,
        test_runner::{TestCaseError, TestRunner},
    };
    use time::macros::datetime;

    use super::*;

    const CAPTURED: i64 = 10;
    const WINDOW: SettlementWindow = SettlementWindow::new(std::time::Duration::from_secs(8));

    fn at(seconds: i64) -> OffsetDateTime {
        datetime!(2026-03-01 12:00 UTC) + time::Duration::seconds(seconds)
    }

    fn ours(amount: i64, status: OperationStatus, completed: Option<i64>) -> OurRefund {
        OurRefund {
            amount,
            status,
            completed_at: completed.map(at),
        }
    }

    fn bounds(ours: Vec<OurRefund>, elsewhere: i64, refunded: i64) -> (i64, i64) {
        let refunds = Refunds {
            ours,
            elsewhere,
            read_at: Some(at(100)),
        };
        let bounds = refunds.bounds(CAPTURED, refunded, WINDOW);
        (bounds.certain, bounds.possible)
    }

    #[test]
    fn refunds_in_the_total_are_told_from_those_that_may_not_be() {
        use OperationStatus::{Pending, Succeeded, Unconfirmed};
        let settled = ours(4, Succeeded, Some(91));
        let recent = ours(4, Succeeded, Some(99));
        let later = ours(4, Succeeded, Some(100));
        let running = ours(4, Pending, None);
        let unconfirmed = ours(4, Unconfirmed, Some(91));
        // Refunds made elsewhere are in the total, and so are ours that ended a window ago.
        assert_eq!(bounds(vec![], 0, 4), (6, 6));
        assert_eq!(bounds(vec![settled], 0, 4), (6, 6));
        assert_eq!(bounds(vec![settled], 0, 8), (2, 2));
        // The total may show any other refund of ours, or one made elsewhere.
        for unclear in [recent, later, running] {
            assert_eq!(bounds(vec![unclear], 0, 4), (2, 6));
            assert_eq!(bounds(vec![unclear], 4, 4), (2, 2));
            assert_eq!(bounds(vec![unclear], 0, 0), (6, 6));
            assert_eq!(bounds(vec![settled, unclear], 0, 5), (1, 2));
        }
        // An unconfirmed refund is in the total or was never made. It stays reserved.
        assert_eq!(bounds(vec![unconfirmed], 0, 0), (6, 6));
        assert_eq!(bounds(vec![unconfirmed], 0, 4), (6, 6));
        // A total that lacks what it must include comes from a lagging copy.
        assert_eq!(bounds(vec![recent], 0, 3), (3, 6));
    }

    #[test]
    fn a_total_that_only_our_refunds_can_explain_proves_that_they_are_in_it() {
        use OperationStatus::Succeeded;
        let recent = |amount| ours(amount, Succeeded, Some(99));
        // 6 elsewhere wouldn't fit beside our 6.
        assert_eq!(bounds(vec![recent(6)], 0, 6), (4, 4));
        // 8 elsewhere wouldn't fit beside our 5 and 3, and neither would 5 or 3.
        assert_eq!(bounds(vec![recent(5), recent(3)], 0, 8), (2, 2));
        // 3 would fit.
        assert_eq!(bounds(vec![recent(3), recent(3)], 0, 6), (1, 4));
        assert_eq!(bounds(vec![recent(3)], 0, 3), (4, 7));
        // One that may not have been made needs no room.
        let running = ours(6, OperationStatus::Pending, None);
        assert_eq!(bounds(vec![running], 0, 6), (-2, 4));
        // Too many to tell apart.
        let many = vec![recent(1); MAX_UNCLEAR_REFUNDS];
        assert_eq!(bounds(many, 0, 10), (0, 0));
        let many = vec![recent(1); MAX_UNCLEAR_REFUNDS + 1];
        assert_eq!(bounds(many, 0, 11), (-12, -1));
    }

    #[test]
    fn without_the_time_of_the_total_none_of_ours_is_certain_to_be_in_it() {
        let refunds = Refunds {
            ours: vec![ours(4, OperationStatus::Succeeded, Some(1))],
            elsewhere: 0,
            read_at: None,
        };
        let RefundBounds { certain, possible } = refunds.bounds(CAPTURED, 4, WINDOW);
        assert_eq!((certain, possible), (2, 6));
        assert_eq!(refunds.refunded_elsewhere(7, WINDOW), 3);
    }

    #[test]
    fn an_unclear_amount_is_clear_when_enough_windows_have_ended() {
        use OperationStatus::{Pending, Succeeded};
        let refunds = |ours| Refunds {
            ours,
            elsewhere: 0,
            read_at: Some(at(100)),
        };
        let wait = |refunds: &Refunds, amount| {
            let is_clear = |bounds: RefundBounds| amount <= bounds.certain;
            let refunded = refunds.sum(|refund| refund.status == Succeeded);
            let wait = refunds.unclear_for(CAPTURED, refunded, WINDOW, is_clear);
            wait.as_secs()
        };
        let two = refunds(vec![
            ours(2, Succeeded, Some(95)),
            ours(2, Succeeded, Some(99)),
        ]);
        assert_eq!(two.bounds(CAPTURED, 4, WINDOW).certain, 2);
        assert_eq!(wait(&two, 4), 4);
        assert_eq!(wait(&two, 6), 8);
        let one_runs = refunds(vec![ours(2, Succeeded, Some(95)), ours(2, Pending, None)]);
        assert_eq!(wait(&one_runs, 6), 1);
    }

    /// What can happen to a payment. An event whose index or amount is out of range has no effect.
    #[derive(Debug, Clone, Copy)]
    enum Event {
        /// Someone refunds this much in Dojo's portal.
        Elsewhere(i64),
        /// We read Dojo and save the response at once.
        Read,
        /// We send a read.
        SendRead,
        /// Dojo responds to the `n`th open read. A lagging copy responds as of this many seconds ago.
        ReceiveResponse(usize, i64),
        /// We save the response to the `n`th read, unless the link has changed meanwhile.
        Accept(usize),
        /// We check a refund of this amount that was requested this many seconds ago, and save it if enough is left.
        Request(i64, i64),
        /// The `n`th open refund arrives at Dojo.
        Arrive(usize),
        /// We learn that Dojo has made the `n`th refund: its response arrives.
        LearnOutcome(usize),
        /// We give up on the `n`th open refund, and mark it as unconfirmed.
        MarkUnconfirmed(usize),
    }

    fn events() -> impl Strategy<Value = Vec<Event>> {
        let event = prop_oneof![
            2 => (1..5_i64).prop_map(Event::Elsewhere),
            6 => Just(Event::Read),
            2 => Just(Event::SendRead),
            2 => (0..3_usize, 0..8_i64).prop_map(|(n, lag)| Event::ReceiveResponse(n, lag)),
            2 => (0..3_usize).prop_map(Event::Accept),
            6 => (1..8_i64, 0..6_i64).prop_map(|(amount, ago)| Event::Request(amount, ago)),
            4 => (0..4_usize).prop_map(Event::Arrive),
            2 => (0..4_usize).prop_map(Event::LearnOutcome),
            1 => (0..4_usize).prop_map(Event::MarkUnconfirmed),
        ];
        prop::collection::vec(event, 1..80)
    }

    /// The same events, with many portal refunds that cross ours, and many reads from lagging copies.
    fn lagging_events() -> impl Strategy<Value = Vec<Event>> {
        use Event::{
            Accept, Arrive, Elsewhere, LearnOutcome, Read, ReceiveResponse, Request, SendRead,
        };
        let request = |amount| vec![Request(amount, 3)];
        let crossing = move |(amount, elsewhere)| {
            let arrival = vec![Elsewhere(elsewhere), Arrive(0), LearnOutcome(0)];
            [request(amount), arrival].concat()
        };
        let weighed_against_a_copy = move |(lag, amount)| {
            let read = vec![SendRead, ReceiveResponse(0, lag), Accept(0)];
            [read, request(amount), vec![Arrive(0)]].concat()
        };
        let steps = prop_oneof![
            1 => (1..6_i64).prop_map(|amount| vec![Elsewhere(amount)]),
            2 => Just(vec![Read]),
            3 => (1..8_i64, 1..6_i64).prop_map(crossing),
            3 => (1..8_i64, 1..8_i64).prop_map(weighed_against_a_copy),
            1 => (1..8_i64).prop_map(request),
            1 => (0..2_usize).prop_map(|n| vec![Arrive(n)]),
            1 => (0..2_usize).prop_map(|n| vec![LearnOutcome(n)]),
        ];
        prop::collection::vec(steps, 1..20).prop_map(|steps| steps.concat())
    }

    /// What Dojo, or a copy of its data, shows.
    #[derive(Clone, Copy)]
    struct RefundTotal {
        refunded: i64,
        /// How much of it was refunded elsewhere. Only the test knows.
        elsewhere: i64,
        as_of: i64,
    }

    struct PendingRead {
        began: i64,
        revision: u32,
        response: Option<RefundTotal>,
    }

    struct Refund {
        ours: OurRefund,
        requested: i64,
        arrived: bool,
        /// How much had been refunded elsewhere in the total that it was checked against.
        elsewhere_then: i64,
    }

    /// Dojo, and what we have stored about one payment.
    #[derive(Default)]
    struct World {
        now: i64,
        lags: bool,
        elsewhere: i64,
        /// Dojo's refund total, second by second.
        history: Vec<RefundTotal>,
        refunds: Vec<Refund>,
        reads: Vec<PendingRead>,
        revision: u32,
        refunded: i64,
        elsewhere_in_it: i64,
        as_of: i64,
        stored_elsewhere: i64,
        read_at: Option<i64>,
    }

    type Rule = fn(&Refunds, i64, i64, SettlementWindow) -> RefundBounds;

    impl World {
        fn at_dojo(&self) -> i64 {
            let arrived = self.refunds.iter().filter(|refund| refund.arrived);
            self.elsewhere + arrived.map(|refund| refund.ours.amount).sum::<i64>()
        }

        fn refund_total(&self) -> RefundTotal {
            RefundTotal {
                refunded: self.at_dojo(),
                elsewhere: self.elsewhere,
                as_of: self.now,
            }
        }

        fn refunds(&self, read_at: Option<i64>) -> Refunds {
            let ours = self.refunds.iter().map(|refund| refund.ours);
            Refunds {
                ours: ours
                    .filter(|ours| ours.status != OperationStatus::Failed)
                    .collect(),
                elsewhere: self.stored_elsewhere,
                read_at: read_at.map(at),
            }
        }

        /// The `n`th refund whose outcome we don't know. `arrived`: only those that have arrived at Dojo, or haven't.
        fn running(&mut self, n: usize, arrived: Option<bool>) -> Option<&mut Refund> {
            let mut running = self.refunds.iter_mut().filter(|refund| {
                refund.ours.status == OperationStatus::Pending
                    && arrived.is_none_or(|arrived| arrived == refund.arrived)
            });
            running.nth(n)
        }

        fn request(&mut self, amount: i64, since: i64, rule: Rule) -> Result<(), String> {
            if self.read_at.is_none_or(|read_at| read_at < since) {
                return Ok(());
            }
            let refunds = self.refunds(self.read_at);
            let bounds = rule(&refunds, CAPTURED, self.refunded, WINDOW);
            let promised: i64 = refunds.ours.iter().map(|ours| ours.amount).sum();
            if amount > bounds.possible {
                let free = CAPTURED - self.elsewhere - promised;
                if amount <= free {
                    return Err(format!("{amount} was rejected, and {free} is left"));
                }
            } else if amount <= bounds.certain {
                self.refunds.push(Refund {
                    ours: ours(amount, OperationStatus::Pending, None),
                    requested: self.now,
                    arrived: false,
                    elsewhere_then: self.elsewhere_in_it,
                });
            }
            Ok(())
        }

        fn arrive(&mut self, n: usize) -> Result<(), String> {
            let (there, elsewhere) = (self.at_dojo(), self.elsewhere);
            let Some(refund) = self.running(n, Some(false)) else {
                return Ok(());
            };
            if there + refund.ours.amount <= CAPTURED {
                refund.arrived = true;
                return Ok(());
            }
            refund.ours.status = OperationStatus::Failed;
            // Nobody could know of what was refunded elsewhere after Dojo responded.
            if refund.elsewhere_then < elsewhere {
                return Ok(());
            }
            Err(format!("Dojo rejects {} of ours", refund.ours.amount))
        }

        fn accept(&mut self, n: usize) -> Result<(), String> {
            if n >= self.reads.len() || self.reads[n].response.is_none() {
                return Ok(());
            }
            let read = self.reads.remove(n);
            let Some(total) = read.response.filter(|_| read.revision == self.revision) else {
                return Ok(());
            };
            // A response that is older by its `updatedAt` than an accepted one conflicts with it.
            if total.as_of < self.as_of {
                return Ok(());
            }
            let refunds = self.refunds(Some(read.began));
            self.stored_elsewhere = refunds.refunded_elsewhere(total.refunded, WINDOW);
            if total.refunded == self.refunded {
                self.read_at = self.read_at.max(Some(read.began));
            } else {
                self.read_at = Some(read.began);
                self.refunded = total.refunded;
                self.revision += 1;
            }
            self.elsewhere_in_it = total.elsewhere;
            self.as_of = total.as_of;
            if self.stored_elsewhere > self.elsewhere {
                return Err(format!("{} is not elsewhere", self.stored_elsewhere));
            }
            Ok(())
        }

        fn happens(&mut self, event: Event, rule: Rule) -> Result<(), String> {
            self.now += 1;
            self.history.push(self.refund_total());
            let now = self.now;
            match event {
                Event::Elsewhere(amount) => {
                    self.elsewhere += amount.min(CAPTURED - self.at_dojo());
                }
                Event::Read => {
                    let read = PendingRead {
                        began: now,
                        revision: self.revision,
                        response: Some(self.refund_total()),
                    };
                    self.reads.insert(0, read);
                    return self.accept(0);
                }
                Event::SendRead => self.reads.push(PendingRead {
                    began: now,
                    revision: self.revision,
                    response: None,
                }),
                Event::ReceiveResponse(n, lag) => {
                    let mut response = self.refund_total();
                    if self.lags && lag > 0 {
                        let then = usize::try_from(now - lag).unwrap_or_default();
                        response = self.history[then.min(self.history.len() - 1)];
                    }
                    let mut open = self.reads.iter_mut().filter(|one| one.response.is_none());
                    if let Some(read) = open.nth(n) {
                        read.response = Some(response);
                    }
                }
                Event::Accept(n) => return self.accept(n),
                Event::Request(amount, ago) => return self.request(amount, now - ago, rule),
                Event::Arrive(n) => return self.arrive(n),
                Event::LearnOutcome(n) => {
                    if let Some(refund) = self.running(n, Some(true)) {
                        refund.ours =
                            ours(refund.ours.amount, OperationStatus::Succeeded, Some(now));
                    }
                }
                Event::MarkUnconfirmed(n) => {
                    if let Some(refund) = self.running(n, None)
                        && now - refund.requested > 8
                    {
                        let amount = refund.ours.amount;
                        refund.ours = ours(amount, OperationStatus::Unconfirmed, Some(now));
                    }
                }
            }
            Ok(())
        }
    }

    fn happen(events: &[Event], lags: bool, rule: Rule) -> Result<World, TestCaseError> {
        let mut world = World {
            lags,
            ..World::default()
        };
        for event in events {
            world.happens(*event, rule).map_err(TestCaseError::fail)?;
        }
        Ok(world)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1000))]

        #[test]
        fn dojo_never_has_to_reject_a_refund_of_ours(
            events in prop_oneof![events(), lagging_events()], lags: bool,
        ) {
            let mut world = happen(&events, lags, Refunds::bounds)?;
            // Once everything has ended and settled, what is left is known exactly.
            for n in (0..world.refunds.len()).rev() {
                world.happens(Event::LearnOutcome(n), Refunds::bounds).map_err(TestCaseError::fail)?;
            }
            let open = |refund: &&mut Refund| refund.ours.status == OperationStatus::Pending;
            for refund in world.refunds.iter_mut().filter(open) {
                refund.ours.status = OperationStatus::Failed;
            }
            world.now += 100;
            world.happens(Event::Read, Refunds::bounds).map_err(TestCaseError::fail)?;
            let never_made: i64 = world
                .refunds
                .iter()
                .filter(|refund| refund.ours.status == OperationStatus::Unconfirmed && !refund.arrived)
                .map(|refund| refund.ours.amount)
                .sum();
            let bounds = world.refunds(world.read_at).bounds(CAPTURED, world.refunded, WINDOW);
            prop_assert_eq!(bounds.certain, bounds.possible);
            let free = CAPTURED - world.at_dojo();
            prop_assert!((free - never_made..=free).contains(&bounds.certain), "{} of {}", bounds.certain, free);
        }

        /// Nobody refunds elsewhere. Each refund is made at once, read back, and followed by the next.
        #[test]
        fn refunds_in_a_row_are_permitted_while_they_fit_in_the_worst_case(
            amounts in prop::collection::vec(1..8_i64, 1..8), pause in 0..12_i64,
        ) {
            let mut world = World::default();
            for amount in amounts {
                world.happens(Event::Read, Refunds::bounds).map_err(TestCaseError::fail)?;
                let refunds = world.refunds(world.read_at);
                let made = world.at_dojo();
                let recent: i64 = refunds
                    .ours
                    .iter()
                    .filter(|refund| refund.completed_at >= Some(at(world.now - 8)))
                    .map(|refund| refund.amount)
                    .sum();
                let bounds = refunds.bounds(CAPTURED, world.refunded, WINDOW);
                prop_assert_eq!(bounds.possible, CAPTURED - made);
                prop_assert!(bounds.certain >= CAPTURED - made - recent);
                for event in [Event::Request(amount, 1), Event::Arrive(0), Event::LearnOutcome(0)] {
                    world.happens(event, Refunds::bounds).map_err(TestCaseError::fail)?;
                }
                let saved = amount <= bounds.certain;
                prop_assert_eq!(world.at_dojo(), made + if saved { amount } else { 0 });
                world.now += pause;
            }
        }
    }

    /// What a lagging copy shows may be a portal refund and not ours, although Dojo has confirmed ours.
    const PORTAL_REFUND_HIDES_OURS: [Event; 11] = [
        Event::Read,
        Event::Request(4, 1),
        Event::Elsewhere(4),
        Event::LearnOutcome(3),
        Event::Arrive(0),
        Event::LearnOutcome(0),
        Event::SendRead,
        Event::ReceiveResponse(0, 4),
        Event::Accept(0),
        Event::Request(6, 3),
        Event::Arrive(0),
    ];

    #[test]
    fn a_portal_refund_in_a_lagging_copy_does_not_pass_for_ours() {
        let world = happen(&PORTAL_REFUND_HIDES_OURS, true, Refunds::bounds).unwrap();
        assert_eq!((world.refunded, world.at_dojo()), (4, 8));
        let bounds = world
            .refunds(world.read_at)
            .bounds(CAPTURED, world.refunded, WINDOW);
        let expected = RefundBounds {
            certain: 2,
            possible: 6,
        };
        assert_eq!(bounds, expected);
    }

    #[test]
    fn weaker_rules_fail_the_same_test() {
        let larger_of_both: Rule = |refunds, captured, refunded, _| {
            let given = refunded.max(refunds.sum(|_| true));
            RefundBounds {
                certain: captured - given,
                possible: captured - given,
            }
        };
        let possible: Rule = |refunds, captured, refunded, window| {
            let RefundBounds { possible, .. } = refunds.bounds(captured, refunded, window);
            RefundBounds {
                certain: possible,
                possible,
            }
        };
        let all_of_ours_again: Rule = |refunds, captured, refunded, _| {
            let left = captured - refunded - refunds.sum(|_| true);
            RefundBounds {
                certain: left,
                possible: left,
            }
        };
        // Ours that Dojo confirmed before it was read are in the total, unless the total is too low for that.
        let confirmed_is_included: Rule = |refunds, captured, refunded, window| {
            let read_at = refunds.read_at.unwrap_or_else(|| at(0));
            let made = |at| {
                refunds.sum(|refund| {
                    refund.status == OperationStatus::Succeeded && refund.ended_before(at)
                })
            };
            let lags = refunded < refunds.elsewhere + made(read_at);
            let until = if lags {
                before(read_at, window)
            } else {
                read_at
            };
            let included = refunds.sum(|refund| refund.ended_before(until));
            let ours = refunds.sum(|_| true);
            let at_most = (refunded + ours - included).max(refunds.elsewhere + ours);
            RefundBounds {
                certain: captured - at_most,
                ..refunds.bounds(captured, refunded, window)
            }
        };
        assert!(happen(&PORTAL_REFUND_HIDES_OURS, true, confirmed_is_included).is_err());
        for (name, rule, lags) in [
            ("the larger of both totals", larger_of_both, false),
            ("what is possible", possible, false),
            ("all of ours again", all_of_ours_again, false),
            (
                "what was confirmed is included",
                confirmed_is_included,
                true,
            ),
        ] {
            let mut runner = TestRunner::new(ProptestConfig {
                cases: 10_000,
                max_shrink_iters: 0,
                failure_persistence: None,
                ..ProptestConfig::default()
            });
            let events = if lags {
                lagging_events().boxed()
            } else {
                events().boxed()
            };
            let found = runner.run(&events, |events| happen(&events, lags, rule).map(|_| ()));
            assert!(found.is_err(), "{name} passes");
        }
    }
}
