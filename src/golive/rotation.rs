//! Rotates the secret that webhooks are signed with, without rejecting a single genuine webhook.
//!
//! The order of the steps makes this safe. First a new secret is created, which Dojo doesn't sign with yet. Then every
//! replica gets it in addition to the old one. Only then is the new secret activated, and only after that the old one is
//! deleted at Dojo. Replicas accept the old secret for as long as it is in their settings, because a webhook that was
//! signed with it may still be in transit or be sent again.
//!
//! | interrupted after | state | when run again |
//! | --- | --- | --- |
//! | creating the new secret | Dojo signs with the old one | the first step finds the new one and prints it again |
//! | activating it | Dojo signs with the new one, which every replica has | the second step deletes the old one |
//! | deleting the old one | Dojo signs with the new one | nothing is left to do |
//!
//! Dojo doesn't document whether a new secret is active from the start, nor whether two can be active at the same time.
//! In the example in its OpenAPI file the new one is inactive and the old one stays active. The first step checks: if the
//! new secret is active, it activates the old one again at once.

use secrecy::{ExposeSecret, SecretString};

use super::{
    Error, Outcome, account_flag, is_known, listed, secrets_setting, several_secrets, subscriptions,
};
use crate::dojo::{Account, Secret, Subscription};

/// The flag that starts the second step.
const FLAG: &str = "--every-replica-knows";

/// The state of a rotation, by the subscription's secrets. The values are ids of secrets.
#[derive(Debug, PartialEq, Eq)]
enum State<'a> {
    /// No rotation is in progress.
    NotBegun,
    /// A rotation was begun: this secret is new and not active yet.
    Begun(&'a str),
    /// A rotation was not finished: there are inactive secrets, but none is certainly newer than the active ones.
    Unfinished {
        active: Vec<&'a str>,
        inactive: Vec<&'a str>,
    },
    /// No secret is active.
    NoActiveSecret,
}

fn state(secrets: &[Secret], is_known: impl Fn(&Secret) -> bool) -> State<'_> {
    let (active, inactive): (Vec<_>, Vec<_>) = secrets.iter().partition(|secret| secret.is_active);
    if active.is_empty() {
        return State::NoActiveSecret;
    }
    let newest_active = active
        .iter()
        .map(|secret| secret.created_at)
        .max()
        .flatten();
    let begun = inactive
        .iter()
        .filter(|secret| newest_active.is_some() && secret.created_at > newest_active)
        .max_by_key(|secret| (is_known(secret), secret.created_at));
    match begun {
        Some(secret) => State::Begun(&secret.id),
        None if inactive.is_empty() => State::NotBegun,
        None => State::Unfinished {
            active: active.iter().map(|secret| secret.id.as_str()).collect(),
            inactive: inactive.iter().map(|secret| secret.id.as_str()).collect(),
        },
    }
}

/// The first step: creates a secret that is not active yet, or finds that of a rotation that was begun. Returns the
/// secrets to configure: those in the settings, and the new one.
pub async fn create_secret(
    account: &Account,
    subscription: Option<&str>,
) -> Result<Outcome, Error> {
    const FAILED: &str =
        "Dojo did not create a secret; run the command again once the cause is fixed";
    let client = &account.client;
    let Subscription {
        id: subscription,
        url,
        ..
    } = subscriptions::subscription(account, subscription).await?;
    let before = read(account, &subscription).await?;
    let mut outcome = Outcome::default();
    outcome.say(format!(
        "Rotating the secret of {subscription}, which sends webhooks to {url}."
    ));
    let (secrets, new) = match state(&before, |secret| is_known(account, secret) == Some(true)) {
        State::Begun(new) => {
            outcome.say(format!(
                "{new} was created by an earlier run and is not active yet."
            ));
            let new = new.to_owned();
            (before, new)
        }
        State::NoActiveSecret => {
            return Err(Error::NotPossible(format!(
                "{subscription} has no active secret; run webhooks register{} first",
                account_flag(account)
            )));
        }
        State::Unfinished { active, inactive } => {
            return Err(Error::NotPossible(format!(
                "an earlier rotation is not finished: {} is active, and {} is inactive but not known to be newer. If every \
                 replica has the active secret in its settings, finish the rotation with {}",
                listed(&active),
                listed(&inactive),
                command(account, &subscription, active[0])
            )));
        }
        State::NotBegun => {
            let made = client
                .generate_secret(&subscription)
                .await
                .map_err(Error::calling(account, FAILED))?;
            let is_new = |secret: &&Secret| before.iter().all(|old| old.id != secret.id);
            let Some(new) = made.iter().find(is_new).map(|secret| secret.id.clone()) else {
                return Err(Error::NotPossible(
                    "Dojo reports that it created a secret, but lists no new one; run the command again"
                        .to_owned(),
                ));
            };
            let after =
                reactivate_old_secrets(account, &subscription, &before, &new, &mut outcome).await?;
            outcome.say(format!("Created {new}, which is not active yet."));
            (after, new)
        }
    };

    let mut values: Vec<&str> = account
        .webhook_secrets
        .iter()
        .map(SecretString::expose_secret)
        .collect();
    for secret in secrets
        .iter()
        .filter(|secret| secret.is_active || secret.id == new)
    {
        match (is_known(account, secret), &secret.value) {
            (Some(true), _) => {}
            (_, Some(value)) => {
                values.push(value.expose_secret());
                if secret.id != new {
                    outcome.say(format!(
                        "Warning: {} is active but not in these settings, so webhooks that are signed with it are rejected.",
                        secret.id
                    ));
                }
            }
            (_, None) => {
                return Err(Error::NotPossible(format!(
                    "Dojo does not show the value of {}. Copy it from Dojo's developer portal into the settings of every \
                     replica, then activate it in the portal.",
                    secret.id
                )));
            }
        }
    }
    outcome.say(format!(
        "Set the secrets on standard output, which are separated by commas, on every replica: {}. Restart the replicas \
         one by one. Only after every replica runs with them, run:\n  {}",
        several_secrets(account),
        command(account, &subscription, &new)
    ));
    outcome.secrets = Some(SecretString::from(values.join(",")));
    Ok(outcome)
}

/// If Dojo activated the new secret at once, no replica has it yet. Activates the old ones again in that case. Returns the
/// secrets as they are then.
async fn reactivate_old_secrets(
    account: &Account,
    subscription: &str,
    before: &[Secret],
    new: &str,
    outcome: &mut Outcome,
) -> Result<Vec<Secret>, Error> {
    const FAILED: &str =
        "Dojo activated the new secret at once, and failed to activate the old one again";
    let after = read(account, subscription).await?;
    let is_active = |secrets: &[Secret], id: &str| {
        secrets
            .iter()
            .any(|secret| secret.id == id && secret.is_active)
    };
    if !is_active(&after, new) {
        return Ok(after);
    }
    for old in before.iter().filter(|secret| secret.is_active) {
        if !is_active(&after, &old.id) {
            account
                .client
                .activate_secret(subscription, &old.id)
                .await
                .map_err(Error::calling(account, FAILED))?;
        }
    }
    let after = read(account, subscription).await?;
    if is_active(&after, new) {
        outcome.say(format!(
            "Warning: Dojo reports that {new} is already active. Set it now. Until then, webhooks that are signed only \
             with it are rejected. Dojo sends them again for a while."
        ));
    } else {
        outcome.say(format!(
            "Dojo activated {new} at once, so the old secret was activated again. Webhooks that were signed in between are \
             rejected, and Dojo sends them again."
        ));
    }
    Ok(after)
}

/// The second step, for when every replica has the secret `new` in its settings: activates it, and deletes every other
/// secret at Dojo. Does nothing unless at least the settings of this command contain it. Can be run again after an
/// interruption.
pub async fn activate_secret(
    account: &Account,
    subscription: Option<&str>,
    new: &str,
) -> Result<Outcome, Error> {
    const AGAIN: &str =
        "Dojo did not carry out the change, or its response was lost; run the command again";
    let client = &account.client;
    let subscription = subscriptions::subscription(account, subscription).await?.id;
    let before = read(account, &subscription).await?;
    let Some(secret) = before.iter().find(|secret| secret.id == new) else {
        return Err(Error::NotPossible(format!(
            "{subscription} has no secret {new}; it has {}",
            listed(before.iter().map(|secret| &secret.id))
        )));
    };
    match is_known(account, secret) {
        Some(true) => {}
        Some(false) => {
            return Err(Error::NotPossible(format!(
                "nothing was changed: {new} is not in the settings of this command, so webhooks signed with it would be \
                 rejected. Set the secrets that webhooks rotate-secret{} prints on every replica",
                account_flag(account)
            )));
        }
        None => {
            return Err(Error::NotPossible(format!(
                "nothing was changed: Dojo does not show the value of {new}, so the command cannot tell whether it is in the \
                 settings. If it is, activate it in Dojo's developer portal"
            )));
        }
    }

    let mut outcome = Outcome::default();
    if secret.is_active {
        outcome.say(format!("{new} is already active."));
    } else {
        client
            .activate_secret(&subscription, new)
            .await
            .map_err(Error::calling(account, AGAIN))?;
        outcome.say(format!("Activated {new}."));
    }
    // Delete last, and only once Dojo shows the new secret as active. Without an active secret, webhooks would be unsigned.
    let others: Vec<_> = before.iter().filter(|other| other.id != new).collect();
    require_active(account, &subscription, new).await?;
    for other in &others {
        client
            .delete_secret(&subscription, &other.id)
            .await
            .map_err(Error::calling(account, AGAIN))?;
        outcome.say(format!("Deleted {} at Dojo.", other.id));
    }
    if !others.is_empty() {
        require_active(account, &subscription, new).await?;
    }
    if account.webhook_secrets.len() > 1 {
        outcome.say(format!(
            "Keep the old secret in the settings for now, because Dojo may still retry webhooks that were signed with it. \
             Dojo documents no limit; a day is a safe choice. Then remove every secret but the new one ({new}) from {}, \
             restart the replicas, and make sure that webhooks_total{{verdict=\"rejected\"}} does not rise.",
            secrets_setting(account)
        ));
    }
    Ok(outcome)
}

async fn require_active(account: &Account, subscription: &str, new: &str) -> Result<(), Error> {
    let secrets = read(account, subscription).await?;
    if secrets
        .iter()
        .any(|secret| secret.id == new && secret.is_active)
    {
        Ok(())
    } else {
        Err(Error::NotPossible(format!(
            "Dojo reported success, but does not list {new} as active; check with webhooks list, and run the command again"
        )))
    }
}

async fn read(account: &Account, subscription: &str) -> Result<Vec<Secret>, Error> {
    account
        .client
        .secrets(subscription)
        .await
        .map_err(Error::calling(account, "Dojo did not list the secrets"))
}

fn command(account: &Account, subscription: &str, new: &str) -> String {
    format!(
        "dojo-payment-links webhooks rotate-secret{} --subscription {subscription} {FLAG} {new}",
        account_flag(account)
    )
}

#[cfg(test)]
mod tests {
    use time::{Duration, macros::datetime};

    use super::*;

    /// A secret that was created on this day.
    fn secret(id: &str, day: Option<i64>, is_active: bool) -> Secret {
        Secret {
            id: id.to_owned(),
            value: Some(id.into()),
            created_at: day.map(|day| datetime!(2026-01-01 0:00 UTC) + Duration::days(day)),
            is_active,
        }
    }

    fn state_of<'a>(secrets: &'a [Secret], known: &[&str]) -> State<'a> {
        state(secrets, |secret| known.contains(&secret.id.as_str()))
    }

    #[test]
    fn each_interruption_is_recognized() {
        let old = secret("old", Some(1), true);
        assert_eq!(
            state_of(std::slice::from_ref(&old), &["old"]),
            State::NotBegun
        );
        let made = [old, secret("new", Some(2), false)];
        assert_eq!(state_of(&made, &["old"]), State::Begun("new"));
        let activated = [secret("old", Some(1), false), secret("new", Some(2), true)];
        let unfinished = State::Unfinished {
            active: vec!["new"],
            inactive: vec!["old"],
        };
        assert_eq!(state_of(&activated, &["old", "new"]), unfinished);
        assert_eq!(state_of(&activated[1..], &["old", "new"]), State::NotBegun);
        assert_eq!(state_of(&[], &[]), State::NoActiveSecret);
        assert_eq!(state_of(&activated[..1], &[]), State::NoActiveSecret);
    }

    #[test]
    fn a_secret_that_may_be_older_is_never_treated_as_the_new_one() {
        for (active, other) in [
            (Some(1), Some(1)),
            (None, Some(1)),
            (Some(1), None),
            (None, None),
        ] {
            let secrets = [secret("a", active, true), secret("b", other, false)];
            assert!(
                matches!(state_of(&secrets, &["a", "b"]), State::Unfinished { .. }),
                "{active:?} {other:?}"
            );
        }
    }

    #[test]
    fn of_several_new_secrets_a_configured_one_wins_then_the_newest() {
        let secrets = [
            secret("old", Some(1), true),
            secret("second", Some(2), false),
            secret("third", Some(3), false),
        ];
        assert_eq!(state_of(&secrets, &["old"]), State::Begun("third"));
        assert_eq!(
            state_of(&secrets, &["old", "second"]),
            State::Begun("second")
        );
    }
}
