//! What Dojo sends to this service: shown, and brought in line.

use std::{collections::BTreeSet, fmt, iter};

use secrecy::{ExposeSecret, SecretString};
use serde::Serialize;
use url::Url;

use super::{
    Done, EVENTS, Error, STATUS_UPDATED, account_flag,
    address::{is_same, objection},
    is_known, listed, secrets_setting, webhook_address,
};
use crate::{
    dojo::{Account, Secret, Subscription},
    payment_link::Environment,
};

/// An account's subscriptions, for people (`Display`) and for machines (`Serialize`).
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Overview {
    account: String,
    environment: Environment,
    subscriptions: Vec<Shown>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Shown {
    id: String,
    url: String,
    events: Vec<String>,
    secrets: Vec<ShownSecret>,
}

/// A secret without its text.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct ShownSecret {
    id: String,
    active: bool,
    /// Null where Dojo does not show the text.
    in_settings: Option<bool>,
}

/// Asks Dojo what it sends where.
pub async fn overview(account: &Account) -> Result<Overview, Error> {
    let subscriptions = account.client.subscriptions().await.map_err(Error::asking(
        account,
        "Dojo does not list the subscriptions",
    ))?;
    let secret = |secret: &Secret| ShownSecret {
        id: secret.id.clone(),
        active: secret.is_active,
        in_settings: is_known(account, secret),
    };
    Ok(Overview {
        account: account.name.clone(),
        environment: account.environment,
        subscriptions: subscriptions
            .into_iter()
            .map(|subscription| Shown {
                secrets: subscription.secrets.iter().map(secret).collect(),
                id: subscription.id,
                url: subscription.url,
                events: subscription.events,
            })
            .collect(),
    })
}

impl fmt::Display for Overview {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.account, self.environment.as_str())?;
        if self.subscriptions.is_empty() {
            write!(f, "\n  no subscription: Dojo sends nothing")?;
        }
        for subscription in &self.subscriptions {
            write!(f, "\n  {}  {}", subscription.id, subscription.url)?;
            write!(f, "\n    events   {}", listed(&subscription.events))?;
            for secret in &subscription.secrets {
                let state = if secret.active { "active" } else { "inactive" };
                let known = match secret.in_settings {
                    Some(true) => "in the settings",
                    Some(false) => "not in the settings",
                    None => "not shown by Dojo, so perhaps in the settings",
                };
                write!(f, "\n    secret   {}  {state}, {known}", secret.id)?;
            }
        }
        Ok(())
    }
}

/// Which of the events that matter an account offers, and which not.
pub(super) fn wanted(offered: &[String]) -> (Vec<&'static str>, Vec<&'static str>) {
    EVENTS
        .into_iter()
        .partition(|event| offered.iter().any(|offered| offered == event))
}

/// One change at Dojo. Changes are made in the order in which they stand: an event has one subscription at most, so it
/// is taken from one before it is given to another.
#[derive(Debug, PartialEq, Eq)]
enum Change<'a> {
    Delete(&'a str),
    Update {
        id: &'a str,
        url: Option<&'a str>,
        events: Option<Vec<&'a str>>,
    },
    Create(Vec<&'a str>),
}

/// What has to change so that the wanted events are sent to `url`, and nothing but them by the subscription that is
/// this service's.
#[derive(Debug, PartialEq, Eq)]
struct Plan<'a> {
    /// Ids of the subscriptions that send wanted events to another address.
    elsewhere: Vec<&'a str>,
    changes: Vec<Change<'a>>,
}

fn plan<'a>(subscriptions: &'a [Subscription], url: &'a str, wanted: &[&'a str]) -> Plan<'a> {
    let has = |subscription: &Subscription, event: &str| {
        subscription.events.iter().any(|held| held == event)
    };
    let count = |subscription: &Subscription| {
        let held = wanted.iter().filter(|event| has(subscription, event));
        held.count()
    };
    let is_ours = |subscription: &&Subscription| is_same(&subscription.url, url);
    let elsewhere: Vec<_> = subscriptions
        .iter()
        .filter(|subscription| !is_ours(subscription) && count(subscription) > 0)
        .collect();
    // Of several with the most events, the first that Dojo lists.
    let ours = subscriptions
        .iter()
        .filter(is_ours)
        .rev()
        .max_by_key(|subscription| count(subscription));
    // One that holds nothing else is moved as a whole, and its secret with it. No event is without a receiver then.
    let moved = elsewhere
        .iter()
        .copied()
        .find(|subscription| ours.is_none() && count(subscription) == subscription.events.len());

    let mut changes = Vec::new();
    for subscription in &elsewhere {
        if moved.is_some_and(|moved| moved.id == subscription.id) {
            continue;
        }
        let rest: Vec<_> = subscription
            .events
            .iter()
            .map(String::as_str)
            .filter(|event| !wanted.contains(event))
            .collect();
        changes.push(if rest.is_empty() {
            Change::Delete(&subscription.id)
        } else {
            Change::Update {
                id: &subscription.id,
                url: None,
                events: Some(rest),
            }
        });
    }
    match ours.or(moved) {
        None => changes.push(Change::Create(wanted.to_vec())),
        Some(main) => {
            let others_hold = |event: &str| {
                subscriptions
                    .iter()
                    .filter(is_ours)
                    .any(|other| other.id != main.id && has(other, event))
            };
            let target: Vec<_> = wanted
                .iter()
                .copied()
                .filter(|event| has(main, event) || !others_hold(event))
                .collect();
            let held: BTreeSet<_> = main.events.iter().map(String::as_str).collect();
            let events = (held != target.iter().copied().collect()).then_some(target);
            let url = (!is_same(&main.url, url)).then_some(url);
            if events.is_some() || url.is_some() {
                changes.push(Change::Update {
                    id: &main.id,
                    url,
                    events,
                });
            }
        }
    }
    Plan {
        elsewhere: elsewhere
            .iter()
            .map(|subscription| subscription.id.as_str())
            .collect(),
        changes,
    }
}

/// Has Dojo send the events that matter to this service at `public_url`. Run again, it changes nothing. Where some of
/// them go to another address, it changes nothing either, unless told to `replace` that.
///
/// Cut short, it is run again: each step leaves less to do.
pub async fn register(
    account: &Account,
    public_url: &Url,
    dojo: &Url,
    replace: bool,
) -> Result<Done, Error> {
    let client = &account.client;
    if let Some(objection) = objection(public_url, dojo) {
        return Err(Error::Refused(format!("{public_url} {objection}")));
    }
    let url = webhook_address(public_url, &account.name);
    let offered = client.offered_events().await.map_err(Error::asking(
        account,
        "Dojo does not list the events that the account offers",
    ))?;
    let (wanted, missing) = wanted(&offered);
    if !wanted.contains(&STATUS_UPDATED) {
        return Err(Error::Refused(format!(
            "the account offers no {STATUS_UPDATED}, and nothing else tells of payments; ask Dojo for it"
        )));
    }
    let before = subscriptions(account).await?;
    let plan = plan(&before, &url, &wanted);
    if !plan.elsewhere.is_empty() && !replace {
        let elsewhere = before
            .iter()
            .filter(|subscription| plan.elsewhere.contains(&subscription.id.as_str()))
            .map(|subscription| {
                let (id, events) = (&subscription.id, listed(&subscription.events));
                format!("  {id} sends {events} to {}", subscription.url)
            });
        let words: Vec<_> = iter::once(
            "nothing was changed: Dojo sends an event to one address only, and".to_owned(),
        )
        .chain(elsewhere)
        .chain(iter::once(format!(
            "If nobody needs them there, run it again with --replace: it moves the events that matter to {url}"
        )))
        .collect();
        return Err(Error::Refused(words.join("\n")));
    }

    let mut done = Done::default();
    for change in &plan.changes {
        done.say(make(account, change, &url).await?);
    }
    if plan.changes.is_empty() {
        done.say(format!("{}: nothing to change", account.name));
    }
    if !missing.is_empty() {
        done.say(format!(
            "The account does not offer {}; the service does without.",
            listed(&missing)
        ));
    }

    // What Dojo holds now, and not what it was asked for.
    let after = subscriptions(account).await?;
    let ours: Vec<_> = after
        .iter()
        .filter(|subscription| {
            is_same(&subscription.url, &url)
                && wanted
                    .iter()
                    .any(|event| subscription.events.iter().any(|held| held == event))
        })
        .collect();
    for event in &wanted {
        let held =
            |subscription: &&Subscription| subscription.events.iter().any(|held| held == event);
        if !ours.iter().copied().any(|subscription| held(&subscription)) {
            return Err(Error::Refused(format!(
                "Dojo took the changes, and yet sends no {event} to {url}; run it again"
            )));
        }
    }
    done.say(format!("Dojo sends {} to {url}", listed(&wanted)));

    let mut unknown: Vec<String> = Vec::new();
    for subscription in ours {
        for secret in signing(account, subscription).await? {
            match (is_known(account, &secret), &secret.value) {
                (Some(true), _) => done.say(format!("The settings know its secret {}.", secret.id)),
                (_, Some(value)) => {
                    done.say(format!(
                        "The settings do not know its secret {}. It stands on standard output: add it to {} on \
                         every replica, and restart them. Until then its webhooks are refused.",
                        secret.id,
                        secrets_setting(account)
                    ));
                    unknown.push(value.expose_secret().to_owned());
                }
                (_, None) => done.say(format!(
                    "Dojo does not show its secret {}. Take it from Dojo's developer portal, add it to {} on every \
                     replica, and restart them.",
                    secret.id,
                    secrets_setting(account)
                )),
            }
        }
    }
    done.secrets = (!unknown.is_empty()).then(|| SecretString::from(unknown.join(",")));
    Ok(done)
}

/// Makes a change, and says it.
async fn make(account: &Account, change: &Change<'_>, url: &str) -> Result<String, Error> {
    const FAILED: &str = "Dojo did not take a change; run it again when the reason is gone";
    let (client, failed) = (&account.client, Error::asking(account, FAILED));
    Ok(match change {
        Change::Delete(id) => {
            client.unsubscribe(id).await.map_err(failed)?;
            format!("{id} is deleted: it sent nothing else")
        }
        Change::Update {
            id,
            url: new_url,
            events,
        } => {
            client
                .update_subscription(id, *new_url, events.as_deref())
                .await
                .map_err(failed)?;
            match (events, new_url) {
                (Some(events), Some(url)) => format!("{id} now sends {} to {url}", listed(events)),
                (Some(events), None) => format!("{id} now sends {}", listed(events)),
                (None, Some(url)) => format!("{id} now goes to {url}"),
                (None, None) => format!("{id} stays as it is"),
            }
        }
        Change::Create(events) => {
            let description = format!("dojo-payment-links, account {}", account.name);
            let made = client
                .subscribe(url, events, &description)
                .await
                .map_err(failed)?;
            format!("{} is made", made.id)
        }
    })
}

async fn subscriptions(account: &Account) -> Result<Vec<Subscription>, Error> {
    account.client.subscriptions().await.map_err(Error::asking(
        account,
        "Dojo does not list the subscriptions",
    ))
}

/// The secrets that sign what a subscription sends. Where there are none, what it sends would be refused by everyone,
/// so one is made to sign.
async fn signing(account: &Account, subscription: &Subscription) -> Result<Vec<Secret>, Error> {
    const FAILED: &str = "Dojo gives the subscription no secret";
    let (client, id) = (&account.client, &subscription.id);
    let mut secrets = client
        .secrets(id)
        .await
        .map_err(Error::asking(account, FAILED))?;
    if secrets.is_empty() {
        secrets = client
            .generate_secret(id)
            .await
            .map_err(Error::asking(account, FAILED))?;
    }
    if !secrets.iter().any(|secret| secret.is_active) {
        let known = |secret: &&Secret| is_known(account, secret) == Some(true);
        if let Some(secret) = secrets.iter().find(known).or(secrets.last()) {
            client
                .activate_secret(id, &secret.id)
                .await
                .map_err(Error::asking(account, FAILED))?;
        }
        secrets = client
            .secrets(id)
            .await
            .map_err(Error::asking(account, FAILED))?;
    }
    secrets.retain(|secret| secret.is_active);
    Ok(secrets)
}

/// The one subscription of an account that feeds this service, or the one that is named.
pub(super) async fn feeding(account: &Account, named: Option<&str>) -> Result<Subscription, Error> {
    let mut candidates = subscriptions(account).await?;
    match named {
        Some(id) => candidates.retain(|subscription| subscription.id == id),
        None => candidates.retain(|subscription| {
            let events = &subscription.events;
            EVENTS
                .iter()
                .any(|event| events.iter().any(|held| held == event))
        }),
    }
    match (candidates.len(), named) {
        (1, _) => Ok(candidates.remove(0)),
        (0, Some(id)) => Err(Error::Refused(format!(
            "the account has no subscription {id}"
        ))),
        (0, None) => Err(Error::Refused(format!(
            "Dojo sends no event that matters here; run webhooks register{} first",
            account_flag(account)
        ))),
        _ => Err(Error::Refused(format!(
            "several subscriptions send events that matter here, each with secrets of its own: name one with \
             --subscription ({})",
            listed(candidates.iter().map(|subscription| &subscription.id))
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: &str = "https://pay.example.com/webhooks/dojo";
    const THERE: &str = "https://shop.example.com/hook";
    const CREATED: &str = EVENTS[0];
    const RECEIPT: &str = EVENTS[2];

    fn subscription(id: &str, url: &str, events: &[&str]) -> Subscription {
        Subscription {
            id: id.to_owned(),
            url: url.to_owned(),
            events: events.iter().map(|event| (*event).to_owned()).collect(),
            secrets: Vec::new(),
        }
    }

    /// Makes the changes as Dojo would, which refuses an event that another subscription has.
    fn make_all(subscriptions: &[Subscription], changes: &[Change<'_>]) -> Vec<Subscription> {
        let mut after = subscriptions.to_vec();
        for change in changes {
            match change {
                Change::Delete(id) => after.retain(|subscription| subscription.id != *id),
                Change::Update { id, url, events } => {
                    let it = after.iter_mut().find(|it| it.id == *id).unwrap();
                    if let Some(url) = url {
                        (*url).clone_into(&mut it.url);
                    }
                    if let Some(events) = events {
                        it.events = events.iter().map(|event| (*event).to_owned()).collect();
                    }
                }
                Change::Create(events) => after.push(subscription("ws_new", HERE, events)),
            }
            let all: Vec<_> = after.iter().flat_map(|it| &it.events).collect();
            let distinct: BTreeSet<_> = all.iter().collect();
            assert_eq!(all.len(), distinct.len(), "{change:?} is refused");
            assert!(after.iter().all(|it| !it.events.is_empty()), "{change:?}");
        }
        after
    }

    #[test]
    fn whatever_is_there_ends_with_every_event_here_and_nothing_left_to_do() {
        // Each event that matters, and one that does not, is nowhere, in one of two subscriptions here, or in one of
        // two elsewhere.
        let names = [CREATED, STATUS_UPDATED, RECEIPT, "order.created"];
        for world in 0..5_usize.pow(4) {
            let mut there = [
                subscription("ws_0", HERE, &[]),
                subscription("ws_1", HERE, &[]),
                subscription("ws_2", THERE, &[]),
                subscription("ws_3", "https://other.example.com", &[]),
            ];
            for (n, name) in (0..).zip(names) {
                if let Some(place) = (world / 5_usize.pow(n) % 5).checked_sub(1) {
                    there[place].events.push(name.to_owned());
                }
            }
            let before: Vec<_> = there
                .into_iter()
                .filter(|it| !it.events.is_empty())
                .collect();
            let first = plan(&before, HERE, &EVENTS);
            let mut after = make_all(&before, &first.changes);
            for event in EVENTS {
                let holder = after
                    .iter()
                    .find(|it| it.events.iter().any(|held| held == event));
                assert_eq!(holder.map(|it| it.url.as_str()), Some(HERE), "{before:?}");
            }
            let again = plan(&after, HERE, &EVENTS);
            assert_eq!(again.elsewhere, Vec::<&str>::new());
            assert_eq!(again.changes, [], "{before:?} → {after:?}");
            // Nobody else loses what is none of ours.
            after.retain(|it| it.url != HERE);
            let theirs = |all: &[Subscription]| {
                all.iter().any(|it| {
                    it.url != HERE && it.events.iter().any(|held| held == "order.created")
                })
            };
            assert_eq!(theirs(&before), theirs(&after), "{before:?} → {after:?}");

            // Cut short after any step, a second run ends in the same place.
            for steps in 0..first.changes.len() {
                let halfway = make_all(&before, &first.changes[..steps]);
                let rest = plan(&halfway, HERE, &EVENTS);
                let after = make_all(&halfway, &rest.changes);
                assert_eq!(plan(&after, HERE, &EVENTS).changes, [], "{before:?}");
            }
        }
    }

    #[test]
    fn a_subscription_that_sends_nothing_else_is_moved_with_its_secret() {
        let there = [subscription("ws_1", THERE, &EVENTS)];
        let plan = plan(&there, HERE, &EVENTS);
        assert_eq!(plan.elsewhere, ["ws_1"]);
        assert_eq!(
            plan.changes,
            [Change::Update {
                id: "ws_1",
                url: Some(HERE),
                events: None
            }]
        );
    }

    #[test]
    fn only_what_is_offered_is_asked_for() {
        let (wanted, missing) = wanted(&["order.created".to_owned(), STATUS_UPDATED.to_owned()]);
        assert_eq!(wanted, [STATUS_UPDATED]);
        assert_eq!(missing, [CREATED, RECEIPT]);
    }
}
