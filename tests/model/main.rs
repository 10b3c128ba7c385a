//! Creation and convergence, checked in every order in which things can happen.
//!
//! [`stateright`] explores all reachable states of a small world: one link, the handler of the request that created it, one
//! or two workers (on one replica or on two, which is the same, because they share only the database), Dojo, its webhooks,
//! and a customer. The decisions are the service's own functions (`Status::judge`, `reconcile`, `next_reconciliation`,
//! `next_step`). The model is of everything around them: which transaction writes what ([`state`]), and what can happen
//! between two transactions ([`protocol`]).
//!
//! **What goes wrong.** A process may die before each of its steps. It may sleep past the end of its lease and then go
//! on. Dojo may be unreachable, reject a call, act without responding, or act after everybody has given up. Its search
//! may lag, and so may copies of its data. Webhooks arrive in any order, early, twice or never. How often each of these
//! happens in one history is limited, so that there is an end. In which order they happen is not. Each scenario below
//! has its own mix of faults. Combinations of faults from two scenarios are not checked.
//!
//! **What is abstracted, and why nothing is lost by that.**
//! - *Time.* The rules only ask whether a period is over, so the model has an event for the end of each period. It
//!   can't come before what the period waits for: a lease ends only once its holder is done, dead or asleep, and the
//!   intent of a request that left in time appears before the settlement window is over. Scenarios that drop the
//!   service's assumptions (`stalls`, `search_lags_on`) drop this as well.
//! - *A transaction is one step*, as Postgres guarantees. A read before a call, and what the call itself does, are one step if
//!   the write that follows is guarded by what was read (`revision`, `asked_until`): anything that happens in between makes
//!   the guard fail.
//! - *No leases on reconciliations and orphaned intents*, so more of them overlap here than in the service.
//! - *A lost webhook* is one that has not arrived. For each state, the model also checks how it ends if no more arrive.
//!
//! **How convergence is checked.** Histories may go in circles (a read that finds nothing, again and again), so "in the end"
//! means: from each state, if nothing *more* goes wrong and the remaining steps are taken in a fair order, everything comes to
//! rest, and the result is right ([`protocol::Protocol`]'s `ends_well`).
//!
//! `cargo test --test model -- --nocapture` prints how many states there are, and how each broken rule is detected.

mod feed;
mod protocol;
mod rules;
mod state;

use std::time::Instant;

use protocol::{Action, Protocol, World};
use rules::Rules;
use state::Budget;
use stateright::{Checker, DiscoveryClassification, HasDiscoveries, Model};

const NOTHING: Budget = Budget {
    crashes: 0,
    stalls: 0,
    copies: 0,
    rejections: 0,
    forgeries: 0,
    ahead: 0,
    repetitions: 0,
};

/// Responses are lost and webhooks arrive in any order, but nothing else goes wrong.
const MILD: World = World {
    budget: NOTHING,
    workers: 2,
    intents: 2,
    manual: false,
    search_lags_on: false,
    reads_lag: false,
};

/// Processes die.
const CRASHES: World = World {
    budget: Budget {
        crashes: 2,
        rejections: 1,
        ..NOTHING
    },
    ..MILD
};

/// A process sleeps past the end of its lease.
const STALLS: World = World {
    budget: Budget {
        stalls: 1,
        ..NOTHING
    },
    workers: 1,
    ..MILD
};

/// A caller repeats a request that failed for a temporary reason, which makes the link pending again, and processes die.
const REPETITIONS: World = World {
    budget: Budget {
        rejections: 1,
        repetitions: 1,
        crashes: 1,
        ..NOTHING
    },
    workers: 1,
    ..MILD
};

/// Dojo's search and the copies of its data lag for longer than the service assumes.
const LAGS: World = World {
    workers: 1,
    search_lags_on: true,
    reads_lag: true,
    ..MILD
};

/// A payment has more stages, and an event may arrive twice with two ids.
const MANUAL: World = World {
    budget: Budget {
        copies: 1,
        ..NOTHING
    },
    workers: 1,
    manual: true,
    ..MILD
};

/// Somebody has stolen the secret that webhooks are signed with.
const FORGERY: World = World {
    budget: Budget {
        forgeries: 1,
        ..NOTHING
    },
    workers: 1,
    intents: 1,
    ..MILD
};

/// The clock of one of Dojo's nodes runs ahead.
const AHEAD: World = World {
    budget: Budget {
        ahead: 1,
        ..NOTHING
    },
    workers: 1,
    intents: 1,
    ..MILD
};

/// The result of a check.
struct Checked {
    states: usize,
    /// The properties that do not hold, with the actions that lead there.
    broken: Vec<(&'static str, Vec<Action>)>,
    /// The cases that should have occurred and did not.
    missing: Vec<&'static str>,
}

fn check(rules: Rules, world: World, until: HasDiscoveries) -> Checked {
    let checker = Protocol::new(rules, world)
        .checker()
        .finish_when(until)
        .spawn_bfs()
        .join();
    let mut broken = Vec::new();
    let mut missing = checker.model().witness.missing(world);
    for property in checker.model().properties() {
        let found = checker.discovery(property.name);
        match (checker.discovery_classification(property.name), found) {
            (DiscoveryClassification::Counterexample, Some(path)) => {
                broken.push((property.name, path.into_actions()));
            }
            (DiscoveryClassification::Example, None) => missing.push(property.name),
            _ => {}
        }
    }
    Checked {
        states: checker.unique_state_count(),
        broken,
        missing,
    }
}

/// Checks that all properties hold, that the interesting cases occurred, and that there were at least this many states.
fn holds(name: &str, world: World, at_least: usize) {
    let start = Instant::now();
    let checked = check(Rules::REAL, world, HasDiscoveries::AnyFailures);
    println!("{name}: {} states, {:.1?}", checked.states, start.elapsed());
    assert_eq!(checked.broken, Vec::new(), "{name}");
    assert_eq!(checked.missing, Vec::<&str>::new(), "{name}: did not occur");
    assert!(
        checked.states > at_least,
        "{name}: too few states to say anything"
    );
}

#[test]
fn holds_when_responses_are_lost_and_webhooks_arrive_in_any_order() {
    holds("mild", MILD, 10_000);
}

#[test]
fn holds_when_processes_die() {
    holds("crashes", CRASHES, 50_000);
}

#[test]
fn holds_when_a_process_sleeps_past_its_lease() {
    holds("stalls", STALLS, 50_000);
}

#[test]
fn holds_when_a_request_is_repeated_after_a_temporary_failure() {
    holds("repetitions", REPETITIONS, 10_000);
}

#[test]
fn holds_when_dojo_lags_for_longer_than_assumed() {
    holds("lags", LAGS, 50_000);
}

#[test]
fn holds_for_manual_capture_and_events_sent_twice() {
    holds("manual", MANUAL, 10_000);
}

#[test]
fn holds_when_webhooks_are_forged() {
    holds("forgery", FORGERY, 5_000);
}

#[test]
fn holds_when_a_clock_at_dojo_runs_ahead() {
    holds("ahead", AHEAD, 5_000);
}

/// Checks that a broken rule is detected, in this world and by this property.
fn is_detected(what: &str, rules: Rules, world: World, by: &'static str) {
    let broken = check(rules, world, HasDiscoveries::AnyOf([by].into())).broken;
    let Some((_, actions)) = broken.iter().find(|(property, _)| *property == by) else {
        panic!("{what}: not detected by \"{by}\"");
    };
    println!("{what}: not \"{by}\" after");
    for action in actions {
        println!("    {action:?}");
    }
}

const WITHOUT_WEBHOOKS: &str = "without any webhook, all ends well";
const WITH_WEBHOOKS: &str = "once webhooks arrive, all ends well";
const CONFIRMED: &str = "a confirmed status was reported by Dojo";
const ACCEPTED: &str = "a confirmed status comes from an accepted response";
const NO_WAY_BACK: &str = "a link never goes back";

#[test]
fn treating_a_lost_response_as_a_failure_is_detected() {
    let rules = Rules {
        lost_is_unknown: false,
        ..Rules::REAL
    };
    is_detected(
        "a lost response is a failure",
        rules,
        MILD,
        WITHOUT_WEBHOOKS,
    );
}

#[test]
fn retrying_without_waiting_is_detected() {
    let rules = Rules {
        next_step: rules::never_wait,
        ..Rules::REAL
    };
    is_detected("no waiting", rules, MILD, WITHOUT_WEBHOOKS);
    let rules = Rules {
        surplus_is_canceled: false,
        ..rules
    };
    is_detected("no waiting, no canceling", rules, MILD, WITH_WEBHOOKS);
}

#[test]
fn ignoring_a_surplus_intent_is_detected() {
    let rules = Rules {
        surplus_is_canceled: false,
        ..Rules::REAL
    };
    is_detected("no canceling", rules, STALLS, WITH_WEBHOOKS);
}

#[test]
fn replacing_a_links_intent_is_detected() {
    let rules = Rules {
        first_intent_stays: false,
        ..Rules::REAL
    };
    let by = "a url that was handed out is the link's";
    is_detected("the last intent wins", rules, STALLS, by);
}

#[test]
fn applying_webhooks_in_the_order_of_arrival_is_detected() {
    let rules = Rules {
        judge: rules::judge_by_arrival,
        ..Rules::REAL
    };
    is_detected("the last webhook wins", rules, MILD, NO_WAY_BACK);
}

#[test]
fn accepting_any_response_is_detected() {
    let rules = Rules {
        reconcile: rules::reconcile_blindly,
        ..Rules::REAL
    };
    is_detected("the last response wins", rules, MILD, NO_WAY_BACK);
}

#[test]
fn accepting_no_response_is_detected() {
    let rules = Rules {
        reconcile: rules::reconcile_never,
        ..Rules::REAL
    };
    is_detected("no response is accepted", rules, MILD, WITH_WEBHOOKS);
}

#[test]
fn preferring_webhooks_to_responses_is_detected() {
    let rules = Rules {
        reconcile: rules::reconcile_for_webhooks,
        ..Rules::REAL
    };
    let what = "webhooks beat responses";
    is_detected(what, rules, FORGERY, WITH_WEBHOOKS);
}

#[test]
fn never_accepting_an_older_response_is_detected() {
    let rules = Rules {
        reconcile: rules::reconcile_by_time,
        ..Rules::REAL
    };
    let what = "an older response is never accepted";
    is_detected(what, rules, AHEAD, WITH_WEBHOOKS);
}

#[test]
fn confirming_what_only_a_webhook_reported_is_detected() {
    let rules = Rules {
        is_confirmed: rules::confirm_unless_conflicting,
        ..Rules::REAL
    };
    is_detected("webhooks adopt", rules, FORGERY, CONFIRMED);
}

#[test]
fn confirming_a_response_that_was_not_accepted_is_detected() {
    let rules = Rules {
        reconcile: rules::reconcile_older_late,
        is_confirmed: rules::confirm_by_latest,
        ..Rules::REAL
    };
    is_detected("the latest response confirms", rules, AHEAD, ACCEPTED);
}

#[test]
fn a_conflict_that_outlives_its_status_is_detected() {
    let rules = Rules {
        a_move_ends_a_conflict: false,
        ..Rules::REAL
    };
    is_detected("conflicts go on", rules, MILD, NO_WAY_BACK);
}

#[test]
fn relying_on_webhooks_is_detected() {
    let rules = Rules {
        next_reconciliation: rules::reconcile_only_after_webhooks,
        ..Rules::REAL
    };
    is_detected("no schedule", rules, MILD, WITHOUT_WEBHOOKS);
}

#[test]
fn returning_a_failure_that_was_not_stored_is_detected() {
    let rules = Rules {
        only_stored_failures_are_returned: false,
        ..Rules::REAL
    };
    let by = "a failure that was returned stays so";
    let budget = Budget {
        rejections: 1,
        ..STALLS.budget
    };
    let world = World { budget, ..STALLS };
    is_detected(
        "failures are returned without being stored",
        rules,
        world,
        by,
    );
}

#[test]
fn forgetting_an_intent_that_is_not_shown_yet_is_detected() {
    let rules = Rules {
        missing_is_read_again: false,
        ..Rules::REAL
    };
    is_detected("404 is final", rules, LAGS, WITH_WEBHOOKS);
}
