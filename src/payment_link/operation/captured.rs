use super::super::Capture;

/// A capture that was requested through this service and hasn't failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OurCapture {
    /// In minor units, including the tip.
    pub amount: i64,
    /// Its id at Dojo, once it is known.
    pub dojo_id: Option<String>,
}

/// How much was captured, and is under way, in minor units, including tips. `captures` are those that Dojo lists.
///
/// One of ours that Dojo doesn't list yet counts as well. If its id isn't known, a capture of the same amount in the list is
/// taken for it, unless that one is known to be another.
#[must_use]
pub fn captured_and_under_way(captures: &[Capture], ours: &[OurCapture]) -> i64 {
    let listed = captures.iter().filter(|capture| !capture.is_void());
    let total = |capture: &Capture| {
        capture
            .amount
            .saturating_add(capture.tips_amount.unwrap_or(0))
    };
    let is_listed = |our: &&OurCapture| {
        our.dojo_id.is_some() && captures.iter().any(|capture| capture.id == our.dojo_id)
    };
    let mut others: Vec<_> = listed
        .clone()
        .filter(|capture| {
            let is_ours = |our: &OurCapture| our.dojo_id.is_some() && our.dojo_id == capture.id;
            !ours.iter().any(is_ours)
        })
        .map(total)
        .collect();
    let missing = ours.iter().filter(|our| !is_listed(our)).filter(|our| {
        let found = others
            .iter()
            .position(|amount| our.dojo_id.is_none() && *amount == our.amount);
        found.map(|place| others.swap_remove(place)).is_none()
    });
    let missing = missing.map(|our| our.amount).fold(0, i64::saturating_add);
    listed.map(total).fold(missing, i64::saturating_add)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn listed(id: &str, amount: i64, status: &str) -> Capture {
        Capture {
            id: Some(id.to_owned()),
            amount,
            tips_amount: None,
            status: Some(status.to_owned()),
            created_at: None,
        }
    }

    fn ours(id: Option<&str>, amount: i64) -> OurCapture {
        OurCapture {
            amount,
            dojo_id: id.map(str::to_owned),
        }
    }

    #[test]
    fn each_capture_counts_once() {
        let captures = [
            listed("a", 300, "Successful"),
            listed("b", 50, "Successful"),
        ];
        for (ours, expected) in [
            (vec![], 350),
            (vec![ours(Some("a"), 300)], 350),
            // Dojo doesn't list it yet.
            (vec![ours(Some("c"), 300)], 650),
            (vec![ours(None, 200)], 550),
            // It is in the list, whatever its id.
            (vec![ours(None, 300)], 350),
            (vec![ours(None, 300), ours(None, 300)], 650),
            // The one in the list is known to be another.
            (vec![ours(Some("a"), 300), ours(None, 300)], 650),
        ] {
            assert_eq!(
                captured_and_under_way(&captures, &ours),
                expected,
                "{ours:?}"
            );
        }
    }

    #[test]
    fn declined_captures_do_not_count_and_tips_do() {
        let mut tipped = listed("a", 300, "Successful");
        tipped.tips_amount = Some(30);
        let captures = [tipped, listed("b", 700, "Declined")];
        assert_eq!(captured_and_under_way(&captures, &[]), 330);
        assert_eq!(captured_and_under_way(&captures, &[ours(None, 330)]), 330);
        // A declined capture doesn't hide one of the same amount that is under way.
        assert_eq!(captured_and_under_way(&captures, &[ours(None, 700)]), 1030);
    }

    proptest! {
        /// Whatever Dojo lists of them so far, captures that were requested here add up.
        #[test]
        fn a_capture_is_never_forgotten(
            amounts in prop::collection::vec((1..5_i64, any::<bool>(), any::<bool>()), 0..8),
        ) {
            let id = |n: usize| n.to_string();
            let all = amounts.iter().enumerate();
            let ours: Vec<_> = all
                .clone()
                .map(|(n, (amount, has_id, _))| ours(has_id.then(|| id(n)).as_deref(), *amount))
                .collect();
            let captures: Vec<_> = all
                .filter(|(_, (_, _, is_listed))| *is_listed)
                .map(|(n, (amount, _, _))| listed(&id(n), *amount, "Successful"))
                .collect();
            let sum: i64 = amounts.iter().map(|(amount, _, _)| amount).sum();
            prop_assert!(captured_and_under_way(&captures, &ours) >= sum);
        }
    }
}
