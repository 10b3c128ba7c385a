//! Which old webhooks can be removed.

use super::Status;

/// Whether a webhook that reported `reported` can be removed once its link has the status `status`.
///
/// While a webhook is stored, a copy of it has no effect. After that, a copy counts as new, and is judged again
/// ([`Status::judge`]). So a webhook can be removed only if a copy couldn't move the link, neither now nor later. That is
/// the case if the link's status doesn't lead to the reported one: whatever the link moves on to then doesn't lead to it
/// either, because [`Status::leads_to`] is transitive and has no cycles.
///
/// This keeps, for example, a forged `Refunded` about a link that Dojo says is `Captured`: a copy of it would make the link
/// look refunded again.
///
/// A link without an intent may be requested again and start anew, so nothing about it can be removed.
#[must_use]
pub fn is_spent(status: Status, reported: Status) -> bool {
    !matches!(status, Status::Pending | Status::Failed) && !status.leads_to(reported)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::payment_link::Verdict;

    fn any_status() -> impl Strategy<Value = Status> {
        prop::sample::select(Status::ALL.to_vec())
    }

    proptest! {
        #[test]
        fn a_copy_of_a_spent_webhook_never_moves_the_link(
            start in any_status(),
            reported in any_status(),
            later in prop::collection::vec(any_status(), 0..8),
        ) {
            prop_assume!(is_spent(start, reported));
            let mut status = start;
            for next in later {
                prop_assert!(!matches!(status.judge(Some(reported)), Verdict::Moved(_)));
                if status.leads_to(next) {
                    status = next;
                }
            }
        }
    }

    #[test]
    fn a_webhook_that_could_still_move_its_link_is_not_spent() {
        use Status::{
            Authorized, Canceled, Captured, Created, Failed, Pending, Refunded, Reversed,
        };
        for (status, reported, spent) in [
            (Captured, Created, true),
            (Captured, Captured, true),
            (Captured, Canceled, true),
            (Captured, Refunded, false),
            (Captured, Reversed, false),
            (Authorized, Captured, false),
            (Canceled, Captured, true),
            (Refunded, Captured, true),
            (Pending, Created, false),
            (Failed, Captured, false),
        ] {
            assert_eq!(
                is_spent(status, reported),
                spent,
                "{status:?}, {reported:?}"
            );
        }
    }
}
