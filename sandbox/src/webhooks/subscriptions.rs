//! Who wants to be told what, and the secrets that sign what they are told.

use std::collections::BTreeSet;

use serde::Serialize;

use super::event::EVENTS;
use crate::account::Account;
use crate::clock::Timestamp;
use crate::ids;

/// Dojo documents a conflict for one secret too many, but not the number.
const MOST_SECRETS: usize = 10;

#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Subscription {
    pub(crate) id: String,
    /// Whose it is. `None`: it is told of every account's.
    #[serde(rename = "accountId")]
    pub(crate) account: Option<Account>,
    pub(crate) events: Vec<String>,
    pub(crate) url: String,
    pub(crate) description: Option<String>,
    pub(crate) secrets: Vec<Secret>,
    pub(crate) created_at: Timestamp,
    pub(crate) updated_at: Timestamp,
}

#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Secret {
    pub(crate) id: String,
    pub(crate) value: String,
    pub(crate) created_at: Timestamp,
    /// Exactly one secret of a subscription signs: a delivery has room for one signature.
    pub(crate) is_active: bool,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum SubscribeError {
    /// The account offers no such event.
    UnknownEvent(String),
    /// Another subscription has this event already.
    Taken(String),
    NotFound,
    TooManySecrets,
}

#[derive(Debug)]
pub(crate) struct Subscriptions {
    all: Vec<Subscription>,
    /// The events that the account offers.
    offered: Vec<&'static str>,
    /// Whether a new secret signs from the start, in place of the one that did.
    new_secrets_sign: bool,
}

impl Default for Subscriptions {
    fn default() -> Self {
        Self {
            all: Vec::new(),
            offered: EVENTS.to_vec(),
            new_secrets_sign: false,
        }
    }
}

impl Subscriptions {
    /// Adds a subscription with one secret, a random one unless given, that signs from the start.
    pub(crate) fn subscribe(
        &mut self,
        account: Option<Account>,
        events: Vec<String>,
        url: String,
        description: Option<String>,
        secret: Option<String>,
        now: Timestamp,
    ) -> Result<&Subscription, SubscribeError> {
        self.check_events(&events, account.as_ref(), None)?;
        let secret = Secret {
            is_active: true,
            ..Secret::new(secret, now)
        };
        self.all.push(Subscription {
            id: ids::tagged("ws_"),
            account,
            events: without_repeats(events),
            url,
            description,
            secrets: vec![secret],
            created_at: now,
            updated_at: now,
        });
        self.all.last().ok_or(SubscribeError::NotFound)
    }

    pub(crate) fn update(
        &mut self,
        id: &str,
        events: Option<Vec<String>>,
        url: Option<String>,
        description: Option<String>,
        now: Timestamp,
    ) -> Result<&Subscription, SubscribeError> {
        let account = self.find(id)?.account.clone();
        if let Some(events) = &events {
            self.check_events(events, account.as_ref(), Some(id))?;
        }
        let subscription = self.find_mut(id)?;
        if let Some(events) = events {
            subscription.events = without_repeats(events);
        }
        if let Some(url) = url {
            subscription.url = url;
        }
        if description.is_some() {
            subscription.description = description;
        }
        subscription.updated_at = now;
        Ok(subscription)
    }

    pub(crate) fn remove(&mut self, id: &str) -> Result<(), SubscribeError> {
        self.find(id)?;
        self.all.retain(|subscription| subscription.id != id);
        Ok(())
    }

    /// The events that the account offers.
    pub(crate) fn offered(&self) -> &[&'static str] {
        &self.offered
    }

    /// Has the account offer these alone. What is subscribed stays. `Err` names one that does not exist.
    pub(crate) fn offer(&mut self, events: &[String]) -> Result<(), SubscribeError> {
        if let Some(unknown) = events
            .iter()
            .find(|event| !EVENTS.contains(&event.as_str()))
        {
            return Err(SubscribeError::UnknownEvent(unknown.clone()));
        }
        self.offered = EVENTS
            .into_iter()
            .filter(|name| events.iter().any(|event| event == name))
            .collect();
        Ok(())
    }

    /// Those that an account sees.
    pub(crate) fn of(&self, account: &Account) -> impl Iterator<Item = &Subscription> {
        self.all
            .iter()
            .filter(|subscription| subscription.is_of(account))
    }

    pub(crate) fn find(&self, id: &str) -> Result<&Subscription, SubscribeError> {
        self.all
            .iter()
            .find(|subscription| subscription.id == id)
            .ok_or(SubscribeError::NotFound)
    }

    /// Dojo's documents do not say whether a new secret signs from the start.
    pub(crate) fn let_new_secrets_sign(&mut self, sign: bool) {
        self.new_secrets_sign = sign;
    }

    /// Adds a secret that does not sign until it is activated, unless new ones are told to.
    pub(crate) fn generate_secret(
        &mut self,
        id: &str,
        now: Timestamp,
    ) -> Result<&Subscription, SubscribeError> {
        let subscription = self.find_mut(id)?;
        if subscription.secrets.len() >= MOST_SECRETS {
            return Err(SubscribeError::TooManySecrets);
        }
        let secret = Secret::new(None, now);
        let secret_id = secret.id.clone();
        subscription.secrets.push(secret);
        subscription.updated_at = now;
        if self.new_secrets_sign {
            self.activate_secret(id, &secret_id)?;
        }
        self.find(id)
    }

    /// Lets this secret sign from now on, in place of the one that did.
    pub(crate) fn activate_secret(&mut self, id: &str, secret: &str) -> Result<(), SubscribeError> {
        let secrets = self.secrets_with(id, secret)?;
        for candidate in secrets {
            candidate.is_active = candidate.id == secret;
        }
        Ok(())
    }

    /// Removes a secret. Where it was the active one, the newest of the rest signs instead.
    pub(crate) fn remove_secret(&mut self, id: &str, secret: &str) -> Result<(), SubscribeError> {
        let secrets = self.secrets_with(id, secret)?;
        secrets.retain(|candidate| candidate.id != secret);
        if !secrets.iter().any(|candidate| candidate.is_active)
            && let Some(newest) = secrets.last_mut()
        {
            newest.is_active = true;
        }
        Ok(())
    }

    /// Which subscriptions an event of an account goes to. One that nobody can subscribe to goes to all that the
    /// account has: it is sent only on demand, to show a receiver something it does not know.
    pub(crate) fn wanting(&self, event: &str, account: &Account) -> Vec<&Subscription> {
        let known = EVENTS.contains(&event);
        self.of(account)
            .filter(|subscription| !known || subscription.events.iter().any(|name| name == event))
            .collect()
    }

    fn check_events(
        &self,
        events: &[String],
        account: Option<&Account>,
        own: Option<&str>,
    ) -> Result<(), SubscribeError> {
        if let Some(unknown) = events
            .iter()
            .find(|event| !self.offered.contains(&event.as_str()))
        {
            return Err(SubscribeError::UnknownEvent(unknown.clone()));
        }
        let taken: BTreeSet<&String> = self
            .all
            .iter()
            .filter(|subscription| Some(subscription.id.as_str()) != own)
            .filter(|subscription| account.is_none_or(|account| subscription.is_of(account)))
            .flat_map(|subscription| &subscription.events)
            .collect();
        match events.iter().find(|event| taken.contains(event)) {
            Some(event) => Err(SubscribeError::Taken(event.clone())),
            None => Ok(()),
        }
    }

    fn find_mut(&mut self, id: &str) -> Result<&mut Subscription, SubscribeError> {
        self.all
            .iter_mut()
            .find(|subscription| subscription.id == id)
            .ok_or(SubscribeError::NotFound)
    }

    fn secrets_with(&mut self, id: &str, secret: &str) -> Result<&mut Vec<Secret>, SubscribeError> {
        let subscription = self.find_mut(id)?;
        if subscription
            .secrets
            .iter()
            .any(|candidate| candidate.id == secret)
        {
            Ok(&mut subscription.secrets)
        } else {
            Err(SubscribeError::NotFound)
        }
    }
}

impl Subscription {
    pub(crate) fn is_of(&self, account: &Account) -> bool {
        self.account.as_ref().is_none_or(|own| own == account)
    }

    /// The secret that signs now. A subscription whose secrets were all deleted has none.
    pub(crate) fn signing_secret(&self) -> Option<&str> {
        self.secrets
            .iter()
            .find(|secret| secret.is_active)
            .map(|secret| secret.value.as_str())
    }
}

impl Secret {
    fn new(value: Option<String>, now: Timestamp) -> Self {
        Self {
            id: ids::tagged("sc_"),
            value: value.unwrap_or_else(|| ids::base64_url(43)),
            created_at: now,
            is_active: false,
        }
    }
}

fn without_repeats(mut events: Vec<String>) -> Vec<String> {
    let mut seen = BTreeSet::new();
    events.retain(|event| seen.insert(event.clone()));
    events
}

#[cfg(test)]
mod tests {
    use super::{SubscribeError, Subscriptions};
    use crate::clock::Clock;

    fn names(events: &[&str]) -> Vec<String> {
        events.iter().map(|event| (*event).to_owned()).collect()
    }

    fn subscribe(to: &mut Subscriptions, events: &[&str]) -> Result<String, SubscribeError> {
        let now = Clock::default().now();
        let url = "http://localhost/hook".to_owned();
        to.subscribe(None, names(events), url, None, None, now)
            .map(|s| s.id.clone())
    }

    #[test]
    fn an_event_has_one_subscriber() {
        let mut all = Subscriptions::default();
        assert!(subscribe(&mut all, &["payment_intent.created"]).is_ok());
        assert_eq!(
            subscribe(
                &mut all,
                &["payment_intent.status_updated", "payment_intent.created"]
            ),
            Err(SubscribeError::Taken("payment_intent.created".to_owned()))
        );
        assert_eq!(all.all.len(), 1);
    }

    #[test]
    fn an_unknown_event_fails_the_whole_call() {
        let mut all = Subscriptions::default();
        assert_eq!(
            subscribe(
                &mut all,
                &["payment_intent.created", "payment_intent.unheard"]
            ),
            Err(SubscribeError::UnknownEvent(
                "payment_intent.unheard".to_owned()
            ))
        );
        assert!(all.all.is_empty());
    }

    #[test]
    fn secrets_rotate() {
        let mut all = Subscriptions::default();
        let now = Clock::default().now();
        let id = subscribe(&mut all, &["payment_intent.created"]).expect("a subscription");
        let old = all.find(&id).expect("it").secrets[0].clone();
        let new = all.generate_secret(&id, now).expect("a secret").secrets[1].clone();
        assert_eq!(
            all.find(&id).expect("it").signing_secret(),
            Some(old.value.as_str())
        );
        assert_eq!(all.activate_secret(&id, &new.id), Ok(()));
        assert_eq!(
            all.find(&id).expect("it").signing_secret(),
            Some(new.value.as_str())
        );
        assert_eq!(all.remove_secret(&id, &old.id), Ok(()));
        assert_eq!(
            all.remove_secret(&id, &old.id),
            Err(SubscribeError::NotFound)
        );
        assert_eq!(all.find(&id).expect("it").secrets.len(), 1);
    }
}
