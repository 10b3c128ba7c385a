//! Creation and convergence, checked in every order in which things can happen.
//!
//! [`stateright`] explores all reachable states of a small world: one link, the handler of the request that asked
//! for it, one worker or two (on one replica or two, which is the same: they share nothing but the database), Dojo,
//! its webhooks, and a customer. The decisions are the service's own functions (`Status::judge`, `reconcile`,
//! `next_reconciliation`, `next_step`); what is modelled is what stands around them: which transaction writes what
//! ([`state`]), and what can happen between two of them ([`protocol`]).
//!
//! **What goes wrong.** A process may die before each of its steps. It may sleep through the end of its lease and
//! then go on. Dojo may not be reached, refuse, act and not answer, or act after everybody gave up. Its search may
//! lag, and so may copies of its data. Webhooks arrive in any order, early, twice or never. How often each happens
//! in one history is bounded, so that there is an end; which happens when is not. Each world below has its own share
//! of this: what two of them have is not checked together.
//!
//! **What is abstracted, and why that loses nothing.**
//! - *Time.* The rules ask only whether a span is over, so the model has an event for the end of each. One cannot
//!   come before what it waits for: a lease ends only once its holder is done, dead or asleep, and what was asked
//!   for in time comes to light before the settling time is over. Where the service's assumptions are dropped
//!   (`stalls`, `search_lags_on`), so is this.
//! - *A transaction is one step*, which is Postgres's promise. Reading before a call and the call's own effect are
//!   one step where the write that follows is guarded by what was read (`revision`, `asked_until`): anything that
//!   happens in between makes the guard fail.
//! - *No leases on looks and orphaned intents*, so more of them overlap here than ever do.
//! - *A lost webhook* is one that has not arrived. Each state is asked how it would end if none came any more.
//! - *A freed key* leads to another link, for which all of this holds again; here it is enough that nothing of the
//!   first one stays alive.
//!
//! **How convergence is checked.** Histories may go round in circles (a look that finds nothing, again and again), so
//! "in the end" means: from each state, if nothing *more* goes wrong and what remains to be done is done in a fair
//! order, everything comes to rest, and what it comes to is right ([`protocol::Protocol`]'s `ends_well`).
//!
//! `cargo test --test model -- --nocapture` prints how many states there are, and how each broken rule is found out.

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
    refusals: 0,
    forgeries: 0,
    ahead: 0,
};

/// Answers are lost and webhooks come as they like, but nothing else goes wrong.
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
        refusals: 1,
        ..NOTHING
    },
    ..MILD
};

/// A process sleeps through the end of its lease.
const STALLS: World = World {
    budget: Budget {
        stalls: 1,
        ..NOTHING
    },
    workers: 1,
    ..MILD
};

/// Dojo's search and Dojo's copies lag for longer than the service allows for.
const LAGS: World = World {
    workers: 1,
    search_lags_on: true,
    reads_lag: true,
    ..MILD
};

/// A payment has more stages, and an event may come twice under two names.
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

/// A node of Dojo's has a clock that runs ahead.
const AHEAD: World = World {
    budget: Budget {
        ahead: 1,
        ..NOTHING
    },
    workers: 1,
    intents: 1,
    ..MILD
};

/// What a check came to.
struct Checked {
    states: usize,
    /// The properties that do not hold, and what leads there.
    broken: Vec<(&'static str, Vec<Action>)>,
    /// What should have been met and was not.
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

/// All properties hold, the interesting cases were met, and there were at least so many states.
fn holds(name: &str, world: World, at_least: usize) {
    let start = Instant::now();
    let checked = check(Rules::REAL, world, HasDiscoveries::AnyFailures);
    println!("{name}: {} states, {:.1?}", checked.states, start.elapsed());
    assert_eq!(checked.broken, Vec::new(), "{name}");
    assert_eq!(checked.missing, Vec::<&str>::new(), "{name}: never met");
    assert!(checked.states > at_least, "{name}: this says nothing");
}

#[test]
fn holds_when_answers_are_lost_and_webhooks_come_as_they_like() {
    holds("mild", MILD, 10_000);
}

#[test]
fn holds_when_processes_die() {
    holds("crashes", CRASHES, 50_000);
}

#[test]
fn holds_when_a_process_sleeps_through_its_lease() {
    holds("stalls", STALLS, 50_000);
}

#[test]
fn holds_when_dojo_lags_for_longer_than_allowed_for() {
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

/// A broken rule is found out, in this world and by this property.
fn is_found_out(what: &str, rules: Rules, world: World, by: &'static str) {
    let broken = check(rules, world, HasDiscoveries::AnyOf([by].into())).broken;
    let Some((_, actions)) = broken.iter().find(|(property, _)| *property == by) else {
        panic!("{what}: not found out by \"{by}\"");
    };
    println!("{what}: not \"{by}\" after");
    for action in actions {
        println!("    {action:?}");
    }
}

const WITHOUT_WEBHOOKS: &str = "without any webhook, all ends well";
const WITH_WEBHOOKS: &str = "once webhooks arrive, all ends well";
const CONFIRMED: &str = "what is confirmed, Dojo has answered";
const ACCEPTED: &str = "what is confirmed, was accepted";
const NO_WAY_BACK: &str = "a link never goes back";

#[test]
fn a_lost_answer_taken_for_a_failure_is_found_out() {
    let rules = Rules {
        lost_is_unknown: false,
        ..Rules::REAL
    };
    is_found_out("a lost answer is a failure", rules, MILD, WITHOUT_WEBHOOKS);
}

#[test]
fn creating_again_without_waiting_is_found_out() {
    let rules = Rules {
        next_step: rules::never_wait,
        ..Rules::REAL
    };
    is_found_out("no waiting", rules, MILD, WITHOUT_WEBHOOKS);
    let rules = Rules {
        surplus_is_canceled: false,
        ..rules
    };
    is_found_out("no waiting, no canceling", rules, MILD, WITH_WEBHOOKS);
}

#[test]
fn leaving_a_second_intent_alone_is_found_out() {
    let rules = Rules {
        surplus_is_canceled: false,
        ..Rules::REAL
    };
    is_found_out("no canceling", rules, STALLS, WITH_WEBHOOKS);
}

#[test]
fn replacing_a_links_intent_is_found_out() {
    let rules = Rules {
        first_intent_stays: false,
        ..Rules::REAL
    };
    let by = "a url that was handed out is the link's";
    is_found_out("the last intent wins", rules, STALLS, by);
}

#[test]
fn believing_webhooks_in_the_order_of_arrival_is_found_out() {
    let rules = Rules {
        judge: rules::judge_by_arrival,
        ..Rules::REAL
    };
    is_found_out("the last webhook wins", rules, MILD, NO_WAY_BACK);
}

#[test]
fn believing_any_answer_is_found_out() {
    let rules = Rules {
        reconcile: rules::reconcile_blindly,
        ..Rules::REAL
    };
    is_found_out("the last answer wins", rules, MILD, NO_WAY_BACK);
}

#[test]
fn believing_no_answer_is_found_out() {
    let rules = Rules {
        reconcile: rules::reconcile_never,
        ..Rules::REAL
    };
    is_found_out("no answer counts", rules, MILD, WITH_WEBHOOKS);
}

#[test]
fn believing_a_webhook_against_dojo_is_found_out() {
    let rules = Rules {
        reconcile: rules::reconcile_for_webhooks,
        ..Rules::REAL
    };
    let what = "webhooks beat answers";
    is_found_out(what, rules, FORGERY, WITH_WEBHOOKS);
}

#[test]
fn never_believing_an_older_answer_is_found_out() {
    let rules = Rules {
        reconcile: rules::reconcile_by_time,
        ..Rules::REAL
    };
    let what = "an older answer never counts";
    is_found_out(what, rules, AHEAD, WITH_WEBHOOKS);
}

#[test]
fn confirming_what_only_a_webhook_reported_is_found_out() {
    let rules = Rules {
        is_confirmed: rules::confirm_unless_disputed,
        ..Rules::REAL
    };
    is_found_out("webhooks confirm", rules, FORGERY, CONFIRMED);
}

#[test]
fn confirming_what_was_not_accepted_is_found_out() {
    let rules = Rules {
        reconcile: rules::reconcile_with_patience,
        is_confirmed: rules::confirm_by_latest,
        ..Rules::REAL
    };
    is_found_out("the latest answer confirms", rules, AHEAD, ACCEPTED);
}

#[test]
fn a_dispute_that_outlives_its_status_is_found_out() {
    let rules = Rules {
        a_move_ends_a_dispute: false,
        ..Rules::REAL
    };
    is_found_out("disputes go on", rules, MILD, NO_WAY_BACK);
}

#[test]
fn waiting_for_webhooks_is_found_out() {
    let rules = Rules {
        next_reconciliation: rules::look_only_when_told,
        ..Rules::REAL
    };
    is_found_out("no schedule", rules, MILD, WITHOUT_WEBHOOKS);
}

#[test]
fn telling_of_a_failure_that_came_too_late_is_found_out() {
    let rules = Rules {
        only_failures_are_told: false,
        ..Rules::REAL
    };
    let by = "what came to nothing stays so";
    let budget = Budget {
        refusals: 1,
        ..STALLS.budget
    };
    let world = World { budget, ..STALLS };
    is_found_out("late failures are told", rules, world, by);
}

#[test]
fn forgetting_an_intent_that_is_not_there_yet_is_found_out() {
    let rules = Rules {
        missing_is_asked_again: false,
        ..Rules::REAL
    };
    is_found_out("404 is final", rules, LAGS, WITH_WEBHOOKS);
}
