use std::str::FromStr;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Where a payment link stands.
///
/// `Created` to `Canceled` are Dojo's words (`PaymentIntentStatus` in its API); `Pending` and `Failed`
/// are ours, for the time before and instead of a payment intent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
pub enum Status {
    /// Saved here; Dojo has not confirmed a payment intent yet. Nothing to send to the customer.
    Pending,
    /// Dojo refused it or was never reached. There is nothing to pay.
    Failed,
    /// The link is live and unpaid.
    Created,
    /// The customer's bank has set the money aside (manual capture). It is not collected yet.
    Authorized,
    /// The money is collected: paid, if the link is `confirmed` as well.
    Captured,
    /// Money went back to the customer: all of it, or a part (Dojo doesn't document which). Compare `refundedAmount`
    /// with `capturedAmount`.
    Refunded,
    /// The authorization, or the payment of the same day, was undone.
    Reversed,
    /// The link was withdrawn or expired before it was paid.
    Canceled,
}

/// What a report of Dojo's means for a link that is in a known state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The link moves forward to this status.
    Moved(Status),
    /// The link has this status already.
    Unchanged,
    /// The report is of an earlier stage: late, or out of order. Nothing changes.
    Stale,
    /// The report cannot follow from the link's status, nor lead to it. Nothing changes on its word
    /// alone; what Dojo answers when it is asked decides.
    Contradictory,
    /// Dojo used a word that this version does not know. Nothing changes.
    Unknown,
    /// The event is not one that reports a payment intent's status, whatever its body says. Nothing changes.
    UnknownEvent,
}

impl Verdict {
    /// The verdict's name in the timeline, in logs and in metrics.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Moved(_) => "applied",
            Self::Unchanged => "unchanged",
            Self::Stale => "stale",
            Self::Contradictory => "contradictory",
            Self::Unknown => "unknownStatus",
            Self::UnknownEvent => "unknownEvent",
        }
    }
}

impl Status {
    /// Every status, in the order of a link's life.
    pub const ALL: [Self; 8] = [
        Self::Pending,
        Self::Failed,
        Self::Created,
        Self::Authorized,
        Self::Captured,
        Self::Refunded,
        Self::Reversed,
        Self::Canceled,
    ];

    /// The word for it in JSON and in the database.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "Pending",
            Self::Failed => "Failed",
            Self::Created => "Created",
            Self::Authorized => "Authorized",
            Self::Captured => "Captured",
            Self::Refunded => "Refunded",
            Self::Reversed => "Reversed",
            Self::Canceled => "Canceled",
        }
    }

    /// Reads one of Dojo's six words. `None` for any other: Dojo may add some without a new version of
    /// its API, and our own `Pending` and `Failed` mean nothing coming from there.
    #[must_use]
    pub fn from_dojo(word: &str) -> Option<Self> {
        match word.parse() {
            Ok(Self::Pending | Self::Failed) | Err(_) => None,
            Ok(status) => Some(status),
        }
    }

    /// Whether a link in this status can come to be in `later`, in one step or several (webhooks may be
    /// missed). The edges are those of Dojo's lifecycle:
    /// `Created` leads to `Authorized`, `Captured` or `Canceled`; `Authorized` to `Captured` or
    /// `Reversed`; `Captured` to `Refunded`, or `Reversed` on the same day.
    #[must_use]
    pub fn leads_to(self, later: Self) -> bool {
        use Status::{
            Authorized, Canceled, Captured, Created, Failed, Pending, Refunded, Reversed,
        };
        match self {
            Pending => later != Pending,
            Created => matches!(
                later,
                Authorized | Captured | Refunded | Reversed | Canceled
            ),
            Authorized => matches!(later, Captured | Refunded | Reversed),
            Captured => matches!(later, Refunded | Reversed),
            Failed | Refunded | Reversed | Canceled => false,
        }
    }

    /// Judges a status that Dojo reports by webhook against the one we hold.
    ///
    /// Webhooks are delivered at least once and in no promised order, so only the relation between the
    /// two statuses counts, never the order of arrival.
    #[must_use]
    pub fn judge(self, reported: Option<Self>) -> Verdict {
        match reported {
            None => Verdict::Unknown,
            Some(reported) if reported == self => Verdict::Unchanged,
            Some(reported) if self.leads_to(reported) => Verdict::Moved(reported),
            Some(reported) if reported.leads_to(self) => Verdict::Stale,
            Some(_) => Verdict::Contradictory,
        }
    }
}

impl FromStr for Status {
    type Err = UnknownStatus;

    fn from_str(word: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|status| status.as_str() == word)
            .ok_or(UnknownStatus)
    }
}

/// A word that is no status of a payment link.
#[derive(Debug, thiserror::Error)]
#[error("no such status of a payment link")]
pub struct UnknownStatus;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Applies reports one after the other, as webhooks do.
    fn after(start: Status, reports: &[Status]) -> Status {
        reports
            .iter()
            .fold(start, |status, report| match status.judge(Some(*report)) {
                Verdict::Moved(next) => next,
                _ => status,
            })
    }

    /// Every way through Dojo's lifecycle, step by step.
    fn histories() -> Vec<Vec<Status>> {
        use Status::{Authorized, Canceled, Captured, Created, Refunded, Reversed};
        vec![
            vec![Created],
            vec![Created, Canceled],
            vec![Created, Authorized],
            vec![Created, Authorized, Reversed],
            vec![Created, Authorized, Captured],
            vec![Created, Authorized, Captured, Refunded],
            vec![Created, Authorized, Captured, Reversed],
            vec![Created, Captured],
            vec![Created, Captured, Refunded],
            vec![Created, Captured, Reversed],
        ]
    }

    /// A history's reports shuffled, each at least once, some of them more often.
    fn shuffled_with_duplicates() -> impl Strategy<Value = (Status, Vec<Status>)> {
        prop::sample::select(histories()).prop_flat_map(|history| {
            let last = *history.last().unwrap();
            let extra = prop::collection::vec(prop::sample::select(history.clone()), 0..6);
            (
                Just(last),
                (Just(history), extra)
                    .prop_map(|(history, extra)| [history, extra].concat())
                    .prop_shuffle(),
            )
        })
    }

    proptest! {
        #[test]
        fn every_order_and_duplication_of_a_history_ends_in_its_last_state(
            (last, reports) in shuffled_with_duplicates()
        ) {
            prop_assert_eq!(after(Status::Created, &reports), last);
        }

        #[test]
        fn whatever_arrives_a_link_only_moves_forward(
            start in prop::sample::select(Status::ALL.to_vec()),
            reports in prop::collection::vec(prop::sample::select(Status::ALL.to_vec()), 0..12),
        ) {
            let mut status = start;
            for report in reports {
                let next = after(status, &[report]);
                prop_assert!(next == status || status.leads_to(next));
                status = next;
            }
        }
    }

    #[test]
    fn the_lifecycle_has_no_way_back() {
        for a in Status::ALL {
            assert!(!a.leads_to(a));
            for b in Status::ALL {
                assert!(!(a.leads_to(b) && b.leads_to(a)), "{a:?} and {b:?}");
                for c in Status::ALL {
                    assert!(
                        !(a.leads_to(b) && b.leads_to(c)) || a.leads_to(c),
                        "{a:?} leads to {b:?} and that to {c:?}, so {a:?} does"
                    );
                }
            }
        }
    }

    #[test]
    fn contradictions_change_nothing() {
        use Status::{Authorized, Canceled, Captured, Refunded, Reversed};
        for (held, reported) in [
            (Canceled, Captured),
            (Captured, Canceled),
            (Authorized, Canceled),
            (Refunded, Reversed),
            (Reversed, Refunded),
            (Status::Failed, Captured),
        ] {
            let verdict = held.judge(Some(reported));
            assert_eq!(
                verdict,
                Verdict::Contradictory,
                "{held:?} then {reported:?}"
            );
        }
        assert_eq!(Captured.judge(None), Verdict::Unknown);
    }

    #[test]
    fn dojo_cannot_report_our_own_words() {
        assert_eq!(Status::from_dojo("Pending"), None);
        assert_eq!(Status::from_dojo("Failed"), None);
        assert_eq!(Status::from_dojo("captured"), None);
        assert_eq!(Status::from_dojo("Captured"), Some(Status::Captured));
    }

    #[test]
    fn every_status_reads_back_from_its_word() {
        for status in Status::ALL {
            assert_eq!(status.as_str().parse::<Status>().unwrap(), status);
            assert_eq!(serde_json::to_value(status).unwrap(), status.as_str());
        }
    }
}
