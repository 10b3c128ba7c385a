//! How much of a payment is left to refund.
//!
//! Dojo reports one figure: what went back to the customer, whether it was refunded through this service or elsewhere, such
//! as in Dojo's portal. It doesn't say which refunds the figure includes. What is left is between two bounds, depending on
//! how many of our own refunds are in the figure already.

use time::{OffsetDateTime, PrimitiveDateTime};

use super::{SettlementWindow, operation::OperationStatus};

/// A refund that was requested through this service and has not failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OurRefund {
    /// Minor units.
    pub amount: i64,
    /// Where it stands.
    pub status: OperationStatus,
    /// When its outcome was known here.
    pub completed_at: Option<OffsetDateTime>,
}

impl OurRefund {
    /// Whether Dojo has done it, or nobody can tell and it is not attempted any more: either way it can't change what Dojo
    /// reports after `at`.
    fn is_over_before(&self, at: OffsetDateTime) -> bool {
        matches!(
            self.status,
            OperationStatus::Succeeded | OperationStatus::Unconfirmed
        ) && self
            .completed_at
            .is_some_and(|completed_at| completed_at < at)
    }

    fn is_done_before(&self, at: OffsetDateTime) -> bool {
        self.status == OperationStatus::Succeeded && self.is_over_before(at)
    }
}

/// What is known about the refunds of a payment, apart from Dojo's figure.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Refunds {
    /// Those requested through this service that have not failed.
    pub ours: Vec<OurRefund>,
    /// A lower bound of what was refunded elsewhere, in minor units.
    pub elsewhere: i64,
    /// When the request was sent whose response Dojo's figure comes from. `None`: not known.
    pub read_at: Option<OffsetDateTime>,
}

/// How much is left to refund, in minor units.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Left {
    /// At least this much: no refund up to it can exceed what Dojo has left.
    pub certain: i64,
    /// At most this much, should Dojo's figure include all of our refunds. The two are equal unless refunds are under way,
    /// or Dojo's figure lags behind.
    pub possible: i64,
}

impl Refunds {
    /// How much is left of what was captured, where Dojo reports that `refunded` went back.
    ///
    /// Refunds that are under way or in doubt count as made. A refund of ours that was made before Dojo was asked is in the
    /// figure; one that was under way then, or was requested later, may not be. `window`: how long Dojo's responses may lag
    /// behind. A figure that is too low to include what it has to comes from a copy that lags, and then only refunds
    /// that are older than the window are taken to be in it.
    #[must_use]
    pub fn left(&self, captured: i64, refunded: i64, window: SettlementWindow) -> Left {
        let ours = self.sum(|_| true);
        let known = self.elsewhere.saturating_add(ours);
        let included = self.read_at.map_or(0, |read_at| {
            let done = self.sum(|refund| refund.is_done_before(read_at));
            let lags = refunded < self.elsewhere.saturating_add(done);
            let until = if lags {
                before(read_at, window)
            } else {
                read_at
            };
            self.sum(|refund| refund.is_over_before(until))
        });
        let at_most = refunded.saturating_add(ours - included).max(known);
        let at_least = refunded.max(known);
        Left {
            certain: captured.saturating_sub(at_most),
            possible: captured.saturating_sub(at_least),
        }
    }

    /// The lower bound of what was refunded elsewhere, now that Dojo reports `refunded` for a request sent at
    /// [`Refunds::read_at`]: all of the figure that can't be ours.
    ///
    /// The bound only rises while refunds of ours are under way or so recent that a copy of Dojo's data may lack them. After
    /// that the figure is known to include all of ours, and the rest of it is what was refunded elsewhere.
    #[must_use]
    pub fn elsewhere_by(&self, refunded: i64, window: SettlementWindow) -> i64 {
        let not_ours = refunded.saturating_sub(self.sum(|_| true)).max(0);
        let is_exact = self.read_at.is_some_and(|read_at| {
            let until = before(read_at, window);
            self.ours.iter().all(|refund| refund.is_done_before(until))
        });
        if is_exact {
            not_ours
        } else {
            not_ours.max(self.elsewhere)
        }
    }

    /// Whether one of ours has this status.
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

/// The moment that lies this long before another; the earliest that can be written down if there is none.
fn before(at: OffsetDateTime, by: SettlementWindow) -> OffsetDateTime {
    time::Duration::try_from(by.length())
        .ok()
        .and_then(|by| at.checked_sub(by))
        .unwrap_or_else(|| PrimitiveDateTime::MIN.assume_utc())
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

    fn left(ours: Vec<OurRefund>, elsewhere: i64, refunded: i64) -> (i64, i64) {
        let refunds = Refunds {
            ours,
            elsewhere,
            read_at: Some(at(100)),
        };
        let left = refunds.left(CAPTURED, refunded, WINDOW);
        (left.certain, left.possible)
    }

    #[test]
    fn what_dojo_shows_is_told_from_what_it_may_not_show_yet() {
        use OperationStatus::{Pending, Succeeded, Unconfirmed};
        let before = ours(4, Succeeded, Some(99));
        let after = ours(4, Succeeded, Some(100));
        let running = ours(4, Pending, None);
        let in_doubt = ours(4, Unconfirmed, Some(99));
        // Refunds made elsewhere are in the figure, and so are ours of before.
        assert_eq!(left(vec![], 0, 4), (6, 6));
        assert_eq!(left(vec![before], 0, 4), (6, 6));
        assert_eq!(left(vec![before], 0, 8), (2, 2));
        // What is shown may be ours that is under way, or of somebody else.
        assert_eq!(left(vec![running], 0, 4), (2, 6));
        assert_eq!(left(vec![after], 0, 4), (2, 6));
        assert_eq!(left(vec![running], 4, 4), (2, 2));
        assert_eq!(left(vec![running], 0, 0), (6, 6));
        assert_eq!(left(vec![before, running], 0, 5), (1, 2));
        // One that nobody can tell about is in the figure or was never made, and stays reserved.
        assert_eq!(left(vec![in_doubt], 0, 0), (6, 6));
        assert_eq!(left(vec![in_doubt], 0, 4), (6, 6));
        // A figure that lacks what it has to include comes from a copy that lags.
        assert_eq!(left(vec![before], 0, 3), (3, 6));
        let long_before = ours(4, Succeeded, Some(91));
        assert_eq!(left(vec![long_before], 0, 3), (6, 6));
    }

    #[test]
    fn without_the_time_of_the_figure_none_of_ours_is_taken_to_be_in_it() {
        let refunds = Refunds {
            ours: vec![ours(4, OperationStatus::Succeeded, Some(1))],
            elsewhere: 0,
            read_at: None,
        };
        let Left { certain, possible } = refunds.left(CAPTURED, 4, WINDOW);
        assert_eq!((certain, possible), (2, 6));
        assert_eq!(refunds.elsewhere_by(7, WINDOW), 3);
    }

    /// What can happen to a payment. The numbers choose which refund or reading, and how much.
    #[derive(Debug, Clone, Copy)]
    enum Event {
        /// Somebody refunds in Dojo's portal.
        Elsewhere(i64),
        /// Dojo is asked, and its answer written down at once.
        Read,
        /// A reading begins.
        Ask,
        /// Dojo answers a reading; where its copies lag, as of this much earlier.
        Answer(usize, i64),
        /// A reading is written down, unless it was overtaken.
        Accept(usize),
        /// A refund is weighed that was requested this much earlier.
        Request(i64, i64),
        /// A refund arrives at Dojo.
        Arrive(usize),
        /// Dojo's answer to it arrives here.
        Learn(usize),
        /// Nobody learns what became of it.
        GiveUp(usize),
    }

    fn events() -> impl Strategy<Value = Vec<Event>> {
        let event = prop_oneof![
            2 => (1..5_i64).prop_map(Event::Elsewhere),
            6 => Just(Event::Read),
            2 => Just(Event::Ask),
            2 => (0..3_usize, 0..8_i64).prop_map(|(n, lag)| Event::Answer(n, lag)),
            2 => (0..3_usize).prop_map(Event::Accept),
            6 => (1..8_i64, 0..6_i64).prop_map(|(amount, ago)| Event::Request(amount, ago)),
            4 => (0..4_usize).prop_map(Event::Arrive),
            2 => (0..4_usize).prop_map(Event::Learn),
            1 => (0..4_usize).prop_map(Event::GiveUp),
        ];
        prop::collection::vec(event, 1..80)
    }

    struct Reading {
        began: i64,
        revision: u32,
        /// Dojo's figure, and how much of it was refunded elsewhere.
        answer: Option<(i64, i64)>,
    }

    struct Refund {
        ours: OurRefund,
        requested: i64,
        arrived: bool,
        /// How much had been refunded elsewhere by the figure that it was weighed against.
        elsewhere_then: i64,
    }

    #[derive(Default)]
    struct World {
        now: i64,
        lags: bool,
        elsewhere: i64,
        /// Dojo's figure and how much of it was refunded elsewhere, second by second.
        history: Vec<(i64, i64)>,
        refunds: Vec<Refund>,
        readings: Vec<Reading>,
        revision: u32,
        refunded: i64,
        elsewhere_in_it: i64,
        held_elsewhere: i64,
        read_at: Option<i64>,
    }

    type Rule = fn(&Refunds, i64, i64, SettlementWindow) -> Left;

    impl World {
        fn at_dojo(&self) -> i64 {
            let arrived = self.refunds.iter().filter(|refund| refund.arrived);
            self.elsewhere + arrived.map(|refund| refund.ours.amount).sum::<i64>()
        }

        fn refunds(&self, read_at: Option<i64>) -> Refunds {
            let ours = self.refunds.iter().map(|refund| refund.ours);
            Refunds {
                ours: ours
                    .filter(|ours| ours.status != OperationStatus::Failed)
                    .collect(),
                elsewhere: self.held_elsewhere,
                read_at: read_at.map(at),
            }
        }

        /// The `n`th refund whose outcome is not known here, if it has arrived at Dojo or not.
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
            let left = rule(&refunds, CAPTURED, self.refunded, WINDOW);
            let promised: i64 = refunds.ours.iter().map(|ours| ours.amount).sum();
            if amount > left.possible {
                let free = CAPTURED - self.elsewhere - promised;
                if amount <= free {
                    return Err(format!("{amount} was refused, and {free} is left"));
                }
            } else if amount <= left.certain {
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
            // What was refunded elsewhere after Dojo answered, nobody could know.
            if refund.elsewhere_then < elsewhere {
                return Ok(());
            }
            Err(format!("Dojo refuses {} of ours", refund.ours.amount))
        }

        fn accept(&mut self, n: usize) -> Result<(), String> {
            if n >= self.readings.len() || self.readings[n].answer.is_none() {
                return Ok(());
            }
            let reading = self.readings.remove(n);
            let Some((figure, elsewhere)) =
                reading.answer.filter(|_| reading.revision == self.revision)
            else {
                return Ok(());
            };
            let refunds = self.refunds(Some(reading.began));
            self.held_elsewhere = refunds.elsewhere_by(figure, WINDOW);
            if figure == self.refunded {
                self.read_at = self.read_at.max(Some(reading.began));
            } else {
                self.read_at = Some(reading.began);
                self.refunded = figure;
                self.revision += 1;
            }
            self.elsewhere_in_it = elsewhere;
            if self.held_elsewhere > self.elsewhere {
                return Err(format!("{} is not elsewhere", self.held_elsewhere));
            }
            Ok(())
        }

        fn happens(&mut self, event: Event, rule: Rule) -> Result<(), String> {
            self.now += 1;
            self.history.push((self.at_dojo(), self.elsewhere));
            let now = self.now;
            match event {
                Event::Elsewhere(amount) => {
                    self.elsewhere += amount.min(CAPTURED - self.at_dojo());
                }
                Event::Read => {
                    self.readings.insert(
                        0,
                        Reading {
                            began: now,
                            revision: self.revision,
                            answer: Some((self.at_dojo(), self.elsewhere)),
                        },
                    );
                    return self.accept(0);
                }
                Event::Ask => self.readings.push(Reading {
                    began: now,
                    revision: self.revision,
                    answer: None,
                }),
                Event::Answer(n, lag) => {
                    let mut answer = (self.at_dojo(), self.elsewhere);
                    if self.lags && lag > 0 {
                        let then = usize::try_from(now - lag).unwrap_or_default();
                        answer = self.history[then.min(self.history.len() - 1)];
                    }
                    let mut open = self.readings.iter_mut().filter(|one| one.answer.is_none());
                    if let Some(reading) = open.nth(n) {
                        reading.answer = Some(answer);
                    }
                }
                Event::Accept(n) => return self.accept(n),
                Event::Request(amount, ago) => return self.request(amount, now - ago, rule),
                Event::Arrive(n) => return self.arrive(n),
                Event::Learn(n) => {
                    if let Some(refund) = self.running(n, Some(true)) {
                        refund.ours =
                            ours(refund.ours.amount, OperationStatus::Succeeded, Some(now));
                    }
                }
                Event::GiveUp(n) => {
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

    /// What an answer that is late by up to the settlement window may lack.
    fn lagging(events: &[Event], rule: Rule) -> Result<(), TestCaseError> {
        happen(events, true, rule).map(|_| ())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1000))]

        #[test]
        fn whoever_refunds_elsewhere_dojo_never_has_to_refuse_one_of_ours(events in events()) {
            let mut world = happen(&events, false, Refunds::left)?;
            // When all is over, what is left is known to the penny.
            for n in (0..world.refunds.len()).rev() {
                world.happens(Event::Learn(n), Refunds::left).map_err(TestCaseError::fail)?;
            }
            let open = |refund: &&mut Refund| refund.ours.status == OperationStatus::Pending;
            for refund in world.refunds.iter_mut().filter(open) {
                refund.ours.status = OperationStatus::Failed;
            }
            world.now += 100;
            world.happens(Event::Read, Refunds::left).map_err(TestCaseError::fail)?;
            let never_made: i64 = world
                .refunds
                .iter()
                .filter(|refund| refund.ours.status == OperationStatus::Unconfirmed && !refund.arrived)
                .map(|refund| refund.ours.amount)
                .sum();
            let left = world.refunds(world.read_at).left(CAPTURED, world.refunded, WINDOW);
            prop_assert_eq!(left.certain, left.possible);
            let free = CAPTURED - world.at_dojo();
            prop_assert!((free - never_made..=free).contains(&left.certain), "{} of {}", left.certain, free);
        }

        #[test]
        fn a_copy_that_lags_hides_only_what_was_refunded_elsewhere(events in events()) {
            lagging(&events, Refunds::left)?;
        }
    }

    #[test]
    fn weaker_rules_are_found_out() {
        let larger_of_the_two: Rule = |refunds, captured, refunded, _| {
            let given = refunded.max(refunds.sum(|_| true));
            Left {
                certain: captured - given,
                possible: captured - given,
            }
        };
        let whatever_is_possible: Rule = |refunds, captured, refunded, window| {
            let Left { possible, .. } = refunds.left(captured, refunded, window);
            Left {
                certain: possible,
                possible,
            }
        };
        let all_of_ours_again: Rule = |refunds, captured, refunded, _| {
            let left = captured - refunded - refunds.sum(|_| true);
            Left {
                certain: left,
                possible: left,
            }
        };
        for (name, rule) in [
            ("the larger of the two figures", larger_of_the_two),
            ("whatever is possible", whatever_is_possible),
            ("all of ours once more", all_of_ours_again),
        ] {
            let mut runner = TestRunner::new(ProptestConfig {
                cases: 10_000,
                max_shrink_iters: 0,
                failure_persistence: None,
                ..ProptestConfig::default()
            });
            let found = runner.run(&events(), |events| happen(&events, false, rule).map(|_| ()));
            assert!(found.is_err(), "{name} is not found out");
        }
    }
}
