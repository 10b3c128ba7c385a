//! Subscriptions, and the secrets that sign their webhooks.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::event::EVENTS;
use crate::account::Account;
use crate::clock::Timestamp;
use crate::ids;

/// Dojo documents a conflict if there are too many secrets, but not the limit.
const MAX_SECRETS: usize = 10;

#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Subscription {
    pub(crate) id: String,
    /// `None`: the events of every account.
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
    /// Only the active secret signs, because a delivery has only one signature.
    pub(crate) is_active: bool,
}

/// The body of `POST /webhooks`.
#[derive(Debug, Deserialize)]
pub(crate) struct NewSubscription {
    pub(crate) events: Vec<String>,
    pub(crate) url: String,
    pub(crate) description: Option<String>,
}

/// The body of `PATCH /webhooks/{id}`. Missing members stay as they are.
#[derive(Debug, Deserialize)]
pub(crate) struct SubscriptionUpdate {
    events: Option<Vec<String>>,
    url: Option<String>,
    description: Option<String>,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum SubscriptionError {
    UnknownEvent(String),
    /// Another subscription of the account has this event already.
    AlreadySubscribed(String),
    /// Of the subscription or the secret.
    NotFound,
    TooManySecrets,
}

#[derive(Debug)]
pub(crate) struct Subscriptions {
    all: Vec<Subscription>,
    /// The events that accounts can subscribe to.
    offered: Vec<&'static str>,
    /// Whether a new secret becomes active at once.
    activate_new_secrets: bool,
}

impl Default for Subscriptions {
    fn default() -> Self {
        Self {
            all: Vec::new(),
            offered: EVENTS.to_vec(),
            activate_new_secrets: false,
        }
    }
}

impl Subscriptions {
    /// Adds a subscription with one active secret, which is random unless given.
    pub(crate) fn subscribe(
        &mut self,
        account: Option<Account>,
        new: NewSubscription,
        secret: Option<String>,
        now: Timestamp,
    ) -> Result<&Subscription, SubscriptionError> {
        self.check_events(&new.events, account.as_ref(), None)?;
        let secret = Secret {
            is_active: true,
            ..Secret::new(secret, now)
        };
        self.all.push(Subscription {
            id: ids::prefixed("ws_"),
            account,
            events: without_repeats(new.events),
            url: new.url,
            description: new.description,
            secrets: vec![secret],
            created_at: now,
            updated_at: now,
        });
        self.all.last().ok_or(SubscriptionError::NotFound)
    }

    pub(crate) fn update(
        &mut self,
        id: &str,
        update: SubscriptionUpdate,
        now: Timestamp,
    ) -> Result<&Subscription, SubscriptionError> {
        let account = self.find(id)?.account.clone();
        if let Some(events) = &update.events {
            self.check_events(events, account.as_ref(), Some(id))?;
        }
        let subscription = self.find_mut(id)?;
        if let Some(events) = update.events {
            subscription.events = without_repeats(events);
        }
        if let Some(url) = update.url {
            subscription.url = url;
        }
        if update.description.is_some() {
            subscription.description = update.description;
        }
        subscription.updated_at = now;
        Ok(subscription)
    }

    pub(crate) fn remove(&mut self, id: &str) -> Result<(), SubscriptionError> {
        self.find(id)?;
        self.all.retain(|subscription| subscription.id != id);
        Ok(())
    }

    /// The events that accounts can subscribe to.
    pub(crate) fn offered(&self) -> &[&'static str] {
        &self.offered
    }

    /// Limits the events that accounts can subscribe to. Existing subscriptions stay.
    pub(crate) fn offer(&mut self, events: &[String]) -> Result<(), SubscriptionError> {
        if let Some(unknown) = events
            .iter()
            .find(|event| !EVENTS.contains(&event.as_str()))
        {
            return Err(SubscriptionError::UnknownEvent(unknown.clone()));
        }
        self.offered = EVENTS
            .into_iter()
            .filter(|name| events.iter().any(|event| event == name))
            .collect();
        Ok(())
    }

    /// The subscriptions of an account.
    pub(crate) fn of(&self, account: &Account) -> impl Iterator<Item = &Subscription> {
        self.all
            .iter()
            .filter(|subscription| subscription.is_of(account))
    }

    pub(crate) fn find(&self, id: &str) -> Result<&Subscription, SubscriptionError> {
        self.all
            .iter()
            .find(|subscription| subscription.id == id)
            .ok_or(SubscriptionError::NotFound)
    }

    /// Dojo doesn't document whether a new secret becomes active at once.
    pub(crate) fn activate_new_secrets(&mut self, activate: bool) {
        self.activate_new_secrets = activate;
    }

    /// Adds a secret, which is inactive unless new secrets become active at once.
    pub(crate) fn generate_secret(
        &mut self,
        id: &str,
        now: Timestamp,
    ) -> Result<&Subscription, SubscriptionError> {
        let subscription = self.find_mut(id)?;
        if subscription.secrets.len() >= MAX_SECRETS {
            return Err(SubscriptionError::TooManySecrets);
        }
        let secret = Secret::new(None, now);
        let secret_id = secret.id.clone();
        subscription.secrets.push(secret);
        subscription.updated_at = now;
        if self.activate_new_secrets {
            self.activate_secret(id, &secret_id)?;
        }
        self.find(id)
    }

    /// Makes this secret the active one.
    pub(crate) fn activate_secret(
        &mut self,
        id: &str,
        secret: &str,
    ) -> Result<(), SubscriptionError> {
        let secrets = self.secrets_with(id, secret)?;
        for candidate in secrets {
            candidate.is_active = candidate.id == secret;
        }
        Ok(())
    }

    /// Removes a secret. If it was the active one, the newest remaining secret becomes active.
    pub(crate) fn remove_secret(
        &mut self,
        id: &str,
        secret: &str,
    ) -> Result<(), SubscriptionError> {
        let secrets = self.secrets_with(id, secret)?;
        secrets.retain(|candidate| candidate.id != secret);
        if !secrets.iter().any(|candidate| candidate.is_active)
            && let Some(newest) = secrets.last_mut()
        {
            newest.is_active = true;
        }
        Ok(())
    }

    /// The subscriptions that receive an event of an account. An unknown event, which only the control API sends, goes
    /// to all of the account's subscriptions.
    pub(crate) fn receiving(&self, event: &str, account: &Account) -> Vec<&Subscription> {
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
    ) -> Result<(), SubscriptionError> {
        if let Some(unknown) = events
            .iter()
            .find(|event| !self.offered.contains(&event.as_str()))
        {
            return Err(SubscriptionError::UnknownEvent(unknown.clone()));
        }
        let taken: BTreeSet<&String> = self
            .all
            .iter()
            .filter(|subscription| Some(subscription.id.as_str()) != own)
            .filter(|subscription| account.is_none_or(|account| subscription.is_of(account)))
            .flat_map(|subscription| &subscription.events)
            .collect();
        match events.iter().find(|event| taken.contains(event)) {
            Some(event) => Err(SubscriptionError::AlreadySubscribed(event.clone())),
            None => Ok(()),
        }
    }

    fn find_mut(&mut self, id: &str) -> Result<&mut Subscription, SubscriptionError> {
        self.all
            .iter_mut()
            .find(|subscription| subscription.id == id)
            .ok_or(SubscriptionError::NotFound)
    }

    fn secrets_with(
        &mut self,
        id: &str,
        secret: &str,
    ) -> Result<&mut Vec<Secret>, SubscriptionError> {
        let subscription = self.find_mut(id)?;
        if subscription
            .secrets
            .iter()
            .any(|candidate| candidate.id == secret)
        {
            Ok(&mut subscription.secrets)
        } else {
            Err(SubscriptionError::NotFound)
        }
    }
}

impl Subscription {
    pub(crate) fn is_of(&self, account: &Account) -> bool {
        self.account.as_ref().is_none_or(|own| own == account)
    }

    /// The active secret. `None` if all secrets were deleted.
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
            id: ids::prefixed("sc_"),
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
    use super::{NewSubscription, SubscriptionError, Subscriptions};
    use crate::clock::Clock;

    fn names(events: &[&str]) -> Vec<String> {
        events.iter().map(|event| (*event).to_owned()).collect()
    }

    fn subscribe(to: &mut Subscriptions, events: &[&str]) -> Result<String, SubscriptionError> {
        let now = Clock::default().now();
        let url = "http://localhost/hook".to_owned();
        let new = NewSubscription {
            events: names(events),
            url,
            description: None,
        };
        to.subscribe(None, new, None, now).map(|s| s.id.clone())
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
            Err(SubscriptionError::AlreadySubscribed(
                "payment_intent.created".to_owned()
            ))
        );
        assert_eq!(all.all.len(), 1);
    }

    #[test]
    fn an_unknown_event_fails_the_whole_call() {
        let mut all = Subscriptions::default();
        assert_eq!(
            subscribe(
                &mut all,
                &["payment_intent.created", "payment_intent.unknown"]
            ),
            Err(SubscriptionError::UnknownEvent(
                "payment_intent.unknown".to_owned()
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
            Err(SubscriptionError::NotFound)
        );
        assert_eq!(all.find(&id).expect("it").secrets.len(), 1);
    }
}
