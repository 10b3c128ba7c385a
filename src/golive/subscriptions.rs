//! Lists Dojo's webhook subscriptions, and sets up the one for this service.

use std::{collections::BTreeSet, fmt, iter};

use secrecy::{ExposeSecret, SecretString};
use serde::Serialize;
use url::Url;

use super::{
    EVENTS, Error, Outcome, STATUS_UPDATED, account_flag,
    address::{is_same, objection},
    is_known, listed, secrets_setting, webhook_address,
};
use crate::{
    dojo::{Account, Secret, Subscription},
    payment_link::Environment,
};

/// An account's subscriptions. `Display` writes them for people, `Serialize` for programs.
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

/// A secret without its value.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct ShownSecret {
    id: String,
    active: bool,
    /// `None` if Dojo doesn't show the value.
    in_settings: Option<bool>,
}

/// Reads an account's subscriptions from Dojo.
pub async fn overview(account: &Account) -> Result<Overview, Error> {
    let subscriptions = subscriptions(account).await?;
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
            write!(f, "\n  no subscription: Dojo sends no webhooks")?;
        }
        for subscription in &self.subscriptions {
            write!(f, "\n  {}  {}", subscription.id, subscription.url)?;
            write!(f, "\n    events   {}", listed(&subscription.events))?;
            for secret in &subscription.secrets {
                let state = if secret.active { "active" } else { "inactive" };
                let known = match secret.in_settings {
                    Some(true) => "in the settings",
                    Some(false) => "not in the settings",
                    None => "not shown by Dojo, so it may or may not be in the settings",
                };
                write!(f, "\n    secret   {}  {state}, {known}", secret.id)?;
            }
        }
        Ok(())
    }
}

/// The events that this service needs: those that the account offers, and those that it doesn't.
pub(super) fn wanted(offered: &[String]) -> (Vec<&'static str>, Vec<&'static str>) {
    EVENTS
        .into_iter()
        .partition(|event| offered.iter().any(|offered| offered == event))
}

/// A change to the subscriptions. Changes are made in order: an account has at most one subscription per event, so an event
/// must be removed from one subscription before it can be added to another.
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

/// The changes that make Dojo send the wanted events to `url`, and only these events from this service's subscription.
#[derive(Debug, PartialEq, Eq)]
struct Plan<'a> {
    /// Ids of the subscriptions that send wanted events to another URL.
    elsewhere: Vec<&'a str>,
    changes: Vec<Change<'a>>,
}

fn plan<'a>(subscriptions: &'a [Subscription], url: &'a str, wanted: &[&'a str]) -> Plan<'a> {
    let has = |subscription: &Subscription, event: &str| {
        subscription.events.iter().any(|other| other == event)
    };
    let count = |subscription: &Subscription| {
        let sent = wanted.iter().filter(|event| has(subscription, event));
        sent.count()
    };
    let is_ours = |subscription: &&Subscription| is_same(&subscription.url, url);
    let elsewhere: Vec<_> = subscriptions
        .iter()
        .filter(|subscription| !is_ours(subscription) && count(subscription) > 0)
        .collect();
    // If several have the most events, take the first that Dojo lists.
    let ours = subscriptions
        .iter()
        .filter(is_ours)
        .rev()
        .max_by_key(|subscription| count(subscription));
    // A subscription that sends nothing but wanted events is moved as a whole and keeps its secret. That way there is a
    // receiver for every event at any time.
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
            let others_send = |event: &str| {
                subscriptions
                    .iter()
                    .filter(is_ours)
                    .any(|other| other.id != main.id && has(other, event))
            };
            let target: Vec<_> = wanted
                .iter()
                .copied()
                .filter(|event| has(main, event) || !others_send(event))
                .collect();
            let current: BTreeSet<_> = main.events.iter().map(String::as_str).collect();
            let events = (current != target.iter().copied().collect()).then_some(target);
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

/// Makes Dojo send the events that this service needs to `public_url`. `api` is the base URL of Dojo's API.
///
/// Does nothing if that is already the case. Fails without changing anything if Dojo sends some of the events to another
/// URL, unless `replace` is set. After an interruption it can be run again, because each step leaves less to do.
pub async fn register(
    account: &Account,
    public_url: &Url,
    api: &Url,
    replace: bool,
) -> Result<Outcome, Error> {
    let client = &account.client;
    if let Some(objection) = objection(public_url, api) {
        return Err(Error::NotPossible(format!("{public_url} {objection}")));
    }
    let url = webhook_address(public_url, &account.name);
    let offered = client.offered_events().await.map_err(Error::calling(
        account,
        "Dojo did not list the events that the account offers",
    ))?;
    let (wanted, missing) = wanted(&offered);
    if !wanted.contains(&STATUS_UPDATED) {
        return Err(Error::NotPossible(format!(
            "the account does not offer {STATUS_UPDATED}, the only event that reports payments; ask Dojo to enable it"
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
        let lines: Vec<_> = iter::once(
            "nothing was changed: Dojo sends each event to only one URL, and".to_owned(),
        )
        .chain(elsewhere)
        .chain(iter::once(format!(
            "If no other system needs them there, run the command again with --replace, which moves the events that this \
             service needs to {url}"
        )))
        .collect();
        return Err(Error::NotPossible(lines.join("\n")));
    }

    let mut outcome = Outcome::default();
    for change in &plan.changes {
        outcome.say(make(account, change, &url).await?);
    }
    if plan.changes.is_empty() {
        outcome.say(format!("{}: nothing to change.", account.name));
    }
    if !missing.is_empty() {
        outcome.say(format!(
            "The account does not offer {}. The service works without it.",
            listed(&missing)
        ));
    }

    // Check what Dojo has now, not what was requested.
    let after = subscriptions(account).await?;
    let ours: Vec<_> = after
        .iter()
        .filter(|subscription| {
            is_same(&subscription.url, &url)
                && wanted
                    .iter()
                    .any(|event| subscription.events.iter().any(|other| other == event))
        })
        .collect();
    for event in &wanted {
        let sends =
            |subscription: &&&Subscription| subscription.events.iter().any(|other| other == event);
        if !ours.iter().any(|subscription| sends(&subscription)) {
            return Err(Error::NotPossible(format!(
                "Dojo accepted the changes, but does not send {event} to {url}; run the command again"
            )));
        }
    }
    outcome.say(format!("Dojo sends {} to {url}.", listed(&wanted)));

    let mut unknown: Vec<String> = Vec::new();
    for subscription in ours {
        for secret in active_secrets(account, subscription).await? {
            match (is_known(account, &secret), &secret.value) {
                (Some(true), _) => outcome.say(format!("The settings contain its secret {}.", secret.id)),
                (_, Some(value)) => {
                    outcome.say(format!(
                        "The settings do not contain the secret with the id {}. The secret itself, which is on standard \
                         output, belongs in {} on every replica. Add it, and restart them. Until then its webhooks are \
                         rejected.",
                        secret.id,
                        secrets_setting(account)
                    ));
                    unknown.push(value.expose_secret().to_owned());
                }
                (_, None) => outcome.say(format!(
                    "Dojo does not show its secret {}. Copy it from Dojo's developer portal, add it to {} on every \
                     replica, and restart them.",
                    secret.id,
                    secrets_setting(account)
                )),
            }
        }
    }
    outcome.secrets = (!unknown.is_empty()).then(|| SecretString::from(unknown.join(",")));
    Ok(outcome)
}

/// Makes a change, and returns a message about it.
async fn make(account: &Account, change: &Change<'_>, url: &str) -> Result<String, Error> {
    const FAILED: &str =
        "Dojo did not accept a change; run the command again once the cause is fixed";
    let (client, failed) = (&account.client, Error::calling(account, FAILED));
    Ok(match change {
        Change::Delete(id) => {
            client.unsubscribe(id).await.map_err(failed)?;
            format!("Deleted {id}, which sent nothing else.")
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
                (Some(events), Some(url)) => format!("{id} now sends {} to {url}.", listed(events)),
                (Some(events), None) => format!("{id} now sends {}.", listed(events)),
                (None, Some(url)) => format!("{id} now sends to {url}."),
                (None, None) => format!("{id} is unchanged."),
            }
        }
        Change::Create(events) => {
            let description = format!("dojo-payment-links, account {}", account.name);
            let created = client
                .subscribe(url, events, &description)
                .await
                .map_err(failed)?;
            format!("Created {}.", created.id)
        }
    })
}

async fn subscriptions(account: &Account) -> Result<Vec<Subscription>, Error> {
    account.client.subscriptions().await.map_err(Error::calling(
        account,
        "Dojo did not list the subscriptions",
    ))
}

/// The active secrets of a subscription. If there are none, creates or activates one, because the webhooks would otherwise
/// be unsigned and rejected.
async fn active_secrets(
    account: &Account,
    subscription: &Subscription,
) -> Result<Vec<Secret>, Error> {
    const FAILED: &str = "Dojo did not provide a secret for the subscription";
    let (client, id) = (&account.client, &subscription.id);
    let mut secrets = client
        .secrets(id)
        .await
        .map_err(Error::calling(account, FAILED))?;
    if secrets.is_empty() {
        secrets = client
            .generate_secret(id)
            .await
            .map_err(Error::calling(account, FAILED))?;
    }
    if !secrets.iter().any(|secret| secret.is_active) {
        let known = |secret: &&Secret| is_known(account, secret) == Some(true);
        if let Some(secret) = secrets.iter().find(known).or(secrets.last()) {
            client
                .activate_secret(id, &secret.id)
                .await
                .map_err(Error::calling(account, FAILED))?;
        }
        secrets = client
            .secrets(id)
            .await
            .map_err(Error::calling(account, FAILED))?;
    }
    secrets.retain(|secret| secret.is_active);
    Ok(secrets)
}

/// The only subscription of an account that sends events that this service needs, or the one with this id.
pub(super) async fn subscription(
    account: &Account,
    id: Option<&str>,
) -> Result<Subscription, Error> {
    let mut candidates = subscriptions(account).await?;
    match id {
        Some(id) => candidates.retain(|subscription| subscription.id == id),
        None => candidates.retain(|subscription| {
            let events = &subscription.events;
            EVENTS
                .iter()
                .any(|event| events.iter().any(|other| other == event))
        }),
    }
    match (candidates.len(), id) {
        (1, _) => Ok(candidates.remove(0)),
        (0, Some(id)) => Err(Error::NotPossible(format!(
            "the account has no subscription {id}"
        ))),
        (0, None) => Err(Error::NotPossible(format!(
            "Dojo sends no event that this service needs; run webhooks register{} first",
            account_flag(account)
        ))),
        _ => Err(Error::NotPossible(format!(
            "several subscriptions send events that this service needs, each with its own secrets: choose one with \
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

    fn with_events(id: &str, url: &str, events: &[&str]) -> Subscription {
        Subscription {
            id: id.to_owned(),
            url: url.to_owned(),
            events: events.iter().map(|event| (*event).to_owned()).collect(),
            secrets: Vec::new(),
        }
    }

    /// Makes the changes as Dojo would. Dojo rejects an event that another subscription has.
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
                Change::Create(events) => after.push(with_events("ws_new", HERE, events)),
            }
            let all: Vec<_> = after.iter().flat_map(|it| &it.events).collect();
            let distinct: BTreeSet<_> = all.iter().collect();
            assert_eq!(all.len(), distinct.len(), "{change:?} is rejected");
            assert!(after.iter().all(|it| !it.events.is_empty()), "{change:?}");
        }
        after
    }

    #[test]
    fn from_any_state_every_event_ends_up_here_with_nothing_left_to_do() {
        // Each needed event, and one that isn't needed, is in no subscription, in one of two for this service, or in one of
        // two for another URL.
        let names = [CREATED, STATUS_UPDATED, RECEIPT, "order.created"];
        for world in 0..5_usize.pow(4) {
            let mut there = [
                with_events("ws_0", HERE, &[]),
                with_events("ws_1", HERE, &[]),
                with_events("ws_2", THERE, &[]),
                with_events("ws_3", "https://other.example.com", &[]),
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
            // No other system loses an event that this service doesn't need.
            after.retain(|it| it.url != HERE);
            let theirs = |all: &[Subscription]| {
                all.iter().any(|it| {
                    it.url != HERE && it.events.iter().any(|held| held == "order.created")
                })
            };
            assert_eq!(theirs(&before), theirs(&after), "{before:?} → {after:?}");

            // After an interruption at any step, a second run ends in the same state.
            for steps in 0..first.changes.len() {
                let halfway = make_all(&before, &first.changes[..steps]);
                let rest = plan(&halfway, HERE, &EVENTS);
                let after = make_all(&halfway, &rest.changes);
                assert_eq!(plan(&after, HERE, &EVENTS).changes, [], "{before:?}");
            }
        }
    }

    #[test]
    fn a_subscription_with_only_wanted_events_is_moved_with_its_secret() {
        let there = [with_events("ws_1", THERE, &EVENTS)];
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
    fn only_offered_events_are_requested() {
        let (wanted, missing) = wanted(&["order.created".to_owned(), STATUS_UPDATED.to_owned()]);
        assert_eq!(wanted, [STATUS_UPDATED]);
        assert_eq!(missing, [CREATED, RECEIPT]);
    }
}
