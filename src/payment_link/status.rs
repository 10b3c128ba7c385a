use std::str::FromStr;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The status of a payment link.
///
/// `Created` to `Canceled` are Dojo's (`PaymentIntentStatus` in its API). `Pending` and `Failed` are this service's, for a link
/// that has no payment intent yet, or will never have one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
pub enum Status {
    /// Saved, but Dojo has not confirmed a payment intent yet. There is nothing to send to the customer.
    Pending,
    /// Dojo rejected the link or was never reached. There is nothing to pay.
    Failed,
    /// The link is live and unpaid.
    Created,
    /// The customer's bank has reserved the money (manual capture). It is not collected yet.
    Authorized,
    /// The money is collected: paid, if the link is `confirmed` as well.
    Captured,
    /// Money went back to the customer: all of it, or a part (Dojo doesn't document which). Compare `refundedAmount`
    /// with `capturedAmount`.
    Refunded,
    /// The authorization was undone, or the payment was undone on the same day.
    Reversed,
    /// The link was canceled or expired before it was paid.
    Canceled,
}

/// What a webhook means for a link with a known status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The link moves forward to this status.
    Moved(Status),
    /// The link already has this status.
    Unchanged,
    /// The webhook reports an earlier stage: it is late, or out of order. Nothing changes.
    Stale,
    /// The reported status can neither follow the link's status nor lead to it. Nothing changes until Dojo's response to a read
    /// decides.
    Contradictory,
    /// This version does not know the word. Nothing changes.
    Unknown,
    /// It is not an event that reports a payment intent's status, whatever its body says. Nothing changes.
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
    /// In the order of a link's life.
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

    /// The status's word in JSON and in the database.
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

    /// Parses one of Dojo's six words. `None` for any other: Dojo may add words without a new version of its API, and our own
    /// `Pending` and `Failed` mean nothing there.
    #[must_use]
    pub fn from_dojo(word: &str) -> Option<Self> {
        match word.parse() {
            Ok(Self::Pending | Self::Failed) | Err(_) => None,
            Ok(status) => Some(status),
        }
    }

    /// Whether a link with this status can reach `later`, in one step or in several (webhooks may be missed).
    ///
    /// The steps are those of Dojo's lifecycle: `Created` leads to `Authorized`, `Captured` or `Canceled`, `Authorized` to
    /// `Captured` or `Reversed`, and `Captured` to `Refunded`, or to `Reversed` on the same day.
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

    /// What a status that Dojo reports by webhook means for a link with this status.
    ///
    /// Webhooks are delivered at least once and in any order, so only the relation between the two statuses counts, never the
    /// order of arrival.
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

/// The word is not a status of a payment link.
#[derive(Debug, thiserror::Error)]
#[error("unknown status of a payment link")]
pub struct UnknownStatus;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The status after these webhooks.
    fn after(start: Status, reports: &[Status]) -> Status {
        reports
            .iter()
            .fold(start, |status, report| match status.judge(Some(*report)) {
                Verdict::Moved(next) => next,
                _ => status,
            })
    }

    /// Every path through Dojo's lifecycle, step by step.
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

    /// The webhooks of a history, shuffled, each at least once and some more often.
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
        fn every_order_of_a_history_ends_in_its_last_status(
            (last, reports) in shuffled_with_duplicates()
        ) {
            prop_assert_eq!(after(Status::Created, &reports), last);
        }

        #[test]
        fn webhooks_only_move_a_link_forward(
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
    fn the_lifecycle_has_no_cycles() {
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
        for (status, reported) in [
            (Canceled, Captured),
            (Captured, Canceled),
            (Authorized, Canceled),
            (Refunded, Reversed),
            (Reversed, Refunded),
            (Status::Failed, Captured),
        ] {
            let verdict = status.judge(Some(reported));
            assert_eq!(
                verdict,
                Verdict::Contradictory,
                "{status:?} then {reported:?}"
            );
        }
        assert_eq!(Captured.judge(None), Verdict::Unknown);
    }

    #[test]
    fn our_own_statuses_are_not_accepted_from_dojo() {
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
