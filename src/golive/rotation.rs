//! Changes what webhooks are signed with, so that there is no moment in which a genuine one is refused.
//!
//! The order is what protects: the new secret is made and does not sign; every replica learns it beside the old one;
//! only then it signs; only then the old one is deleted. A replica goes on accepting the old one for as long as its
//! settings hold it, for a webhook may have been signed before and be on its way, or be tried again.
//!
//! | cut short after | what stands | run again |
//! | --- | --- | --- |
//! | making the new secret | the old one signs | the first step finds the new one and shows it again |
//! | activating it | the new one signs, and every replica knows it | the second step deletes the old one |
//! | deleting the old one | the new one signs | there is nothing to do |
//!
//! Dojo's documents do not say whether a new secret signs from the start, nor whether two can sign at the same time.
//! In the example of its OpenAPI file the new one does not, and the old one goes on. The first step looks: should the
//! new one sign in the old one's place, it puts the old one back at once.

use secrecy::{ExposeSecret, SecretString};

use super::{
    Done, Error, account_flag, is_known, listed, secrets_setting, several_secrets,
    subscriptions::feeding,
};
use crate::dojo::{Account, Secret, Subscription};

/// The flag that ends a rotation.
const FLAG: &str = "--every-replica-knows";

/// What the first step of a rotation finds.
#[derive(Debug, PartialEq, Eq)]
enum Found<'a> {
    /// No rotation is under way.
    Settled,
    /// A secret that does not sign yet, of a rotation that was begun.
    Begun(&'a str),
    /// Secrets beside the one that signs, and none of them is newer for certain: a rotation was not ended.
    NotEnded {
        signs: Vec<&'a str>,
        left: Vec<&'a str>,
    },
    /// Nothing signs.
    Unsigned,
}

fn find(secrets: &[Secret], is_known: impl Fn(&Secret) -> bool) -> Found<'_> {
    let (active, inactive): (Vec<_>, Vec<_>) = secrets.iter().partition(|secret| secret.is_active);
    if active.is_empty() {
        return Found::Unsigned;
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
        Some(secret) => Found::Begun(&secret.id),
        None if inactive.is_empty() => Found::Settled,
        None => Found::NotEnded {
            signs: active.iter().map(|secret| secret.id.as_str()).collect(),
            left: inactive.iter().map(|secret| secret.id.as_str()).collect(),
        },
    }
}

/// The first step: makes a secret that does not sign yet, or finds the one of a rotation that was begun, and shows what
/// to configure: all that the settings hold, and it.
pub async fn begin(account: &Account, subscription: Option<&str>) -> Result<Done, Error> {
    const FAILED: &str = "Dojo makes no new secret; run it again when the reason is gone";
    let client = &account.client;
    let Subscription {
        id: subscription,
        url,
        ..
    } = feeding(account, subscription).await?;
    let before = read(account, &subscription).await?;
    let mut done = Done::default();
    done.say(format!(
        "This is about {subscription}, which sends to {url}."
    ));
    let (secrets, new) = match find(&before, |secret| is_known(account, secret) == Some(true)) {
        Found::Begun(new) => {
            done.say(format!("{new} was made before and does not sign yet."));
            let new = new.to_owned();
            (before, new)
        }
        Found::Unsigned => {
            return Err(Error::Refused(format!(
                "no secret of {subscription} signs; run webhooks register{} first",
                account_flag(account)
            )));
        }
        Found::NotEnded { signs, left } => {
            return Err(Error::Refused(format!(
                "a rotation was not ended: beside {}, which signs, there is {}, which is not known to be newer. If every \
                 replica knows the one that signs, end it with {}",
                listed(&signs),
                listed(&left),
                command(account, &subscription, signs[0])
            )));
        }
        Found::Settled => {
            let made = client
                .generate_secret(&subscription)
                .await
                .map_err(Error::asking(account, FAILED))?;
            let is_new = |secret: &&Secret| before.iter().all(|old| old.id != secret.id);
            let Some(new) = made.iter().find(is_new).map(|secret| secret.id.clone()) else {
                return Err(Error::Refused(
                    "Dojo says that it made a secret, and shows no new one; run it again"
                        .to_owned(),
                ));
            };
            let after = put_back(account, &subscription, &before, &new, &mut done).await?;
            done.say(format!("{new} is made and does not sign yet."));
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
                    done.say(format!(
                        "Take care: {} signs now, and the settings here do not hold it, so what it signs is refused.",
                        secret.id
                    ));
                }
            }
            (_, None) => {
                return Err(Error::Refused(format!(
                    "Dojo does not show the text of {}. Take it from Dojo's developer portal, give it to every replica, \
                     and activate it there.",
                    secret.id
                )));
            }
        }
    }
    done.say(format!(
        "Configure all secrets that stand on standard output, separated by commas there, on every replica: {}. Restart \
         the replicas one by one. When every one runs with it, and not before:\n  {}",
        several_secrets(account),
        command(account, &subscription, &new)
    ));
    done.secrets = Some(SecretString::from(values.join(",")));
    Ok(done)
}

/// Should Dojo let a new secret sign at once, nobody knows it yet: has the old ones sign again. Answers the secrets as
/// they are then.
async fn put_back(
    account: &Account,
    subscription: &str,
    before: &[Secret],
    new: &str,
    done: &mut Done,
) -> Result<Vec<Secret>, Error> {
    const FAILED: &str = "Dojo lets the new secret sign at once, and does not put the old one back";
    let after = read(account, subscription).await?;
    let signs = |secrets: &[Secret], id: &str| {
        secrets
            .iter()
            .any(|secret| secret.id == id && secret.is_active)
    };
    if !signs(&after, new) {
        return Ok(after);
    }
    for old in before.iter().filter(|secret| secret.is_active) {
        if !signs(&after, &old.id) {
            account
                .client
                .activate_secret(subscription, &old.id)
                .await
                .map_err(Error::asking(account, FAILED))?;
        }
    }
    let after = read(account, subscription).await?;
    if signs(&after, new) {
        done.say(format!(
            "Take care: Dojo says that {new} signs already. Configure it now: what only it signs is refused until then, \
             and Dojo sends that again for a while."
        ));
    } else {
        done.say(format!(
            "Dojo let {new} sign at once; it was put back. What was signed in that moment is refused, and Dojo sends it \
             again."
        ));
    }
    Ok(after)
}

/// The second step, when every replica knows the secret `new`: has it sign, and deletes every other at Dojo. Does
/// nothing unless at least the settings here hold it. Run again, it does what is left.
pub async fn end(account: &Account, subscription: Option<&str>, new: &str) -> Result<Done, Error> {
    const AGAIN: &str = "Dojo did not do it, or its answer was lost; run it again";
    let client = &account.client;
    let subscription = feeding(account, subscription).await?.id;
    let before = read(account, &subscription).await?;
    let Some(secret) = before.iter().find(|secret| secret.id == new) else {
        return Err(Error::Refused(format!(
            "{subscription} has no secret {new}; it has {}",
            listed(before.iter().map(|secret| &secret.id))
        )));
    };
    match is_known(account, secret) {
        Some(true) => {}
        Some(false) => {
            return Err(Error::Refused(format!(
                "nothing was changed: not even the settings here hold {new}. What it signs would be refused. Configure \
                 what webhooks rotate-secret{} shows, on every replica",
                account_flag(account)
            )));
        }
        None => {
            return Err(Error::Refused(format!(
                "nothing was changed: Dojo does not show the text of {new}, so nothing proves that the settings hold \
                 it. Activate it in Dojo's developer portal, if they do"
            )));
        }
    }

    let mut done = Done::default();
    if secret.is_active {
        done.say(format!("{new} signs already."));
    } else {
        client
            .activate_secret(&subscription, new)
            .await
            .map_err(Error::asking(account, AGAIN))?;
        done.say(format!("{new} signs from now on."));
    }
    // Deleting comes last, and only where the new one is seen to sign: without any, webhooks would come unsigned.
    let others: Vec<_> = before.iter().filter(|other| other.id != new).collect();
    sees_signing(account, &subscription, new).await?;
    for other in &others {
        client
            .delete_secret(&subscription, &other.id)
            .await
            .map_err(Error::asking(account, AGAIN))?;
        done.say(format!("{} is deleted at Dojo.", other.id));
    }
    if !others.is_empty() {
        sees_signing(account, &subscription, new).await?;
    }
    if account.webhook_secrets.len() > 1 {
        done.say(format!(
            "Leave the old secret in the settings for now: a webhook that was signed with it may still be tried again. \
             Dojo tells no limit; a day is a careful choice. Then leave {new} alone in {}, and see that \
             webhooks_total{{verdict=\"refused\"}} stays where it is.",
            secrets_setting(account)
        ));
    }
    Ok(done)
}

async fn sees_signing(account: &Account, subscription: &str, new: &str) -> Result<(), Error> {
    let secrets = read(account, subscription).await?;
    if secrets
        .iter()
        .any(|secret| secret.id == new && secret.is_active)
    {
        Ok(())
    } else {
        Err(Error::Refused(format!(
            "Dojo said that {new} signs, and does not show it as active; look with webhooks list, and run it again"
        )))
    }
}

async fn read(account: &Account, subscription: &str) -> Result<Vec<Secret>, Error> {
    account
        .client
        .secrets(subscription)
        .await
        .map_err(Error::asking(account, "Dojo does not list the secrets"))
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

    /// A secret that was made so many days in.
    fn secret(id: &str, day: Option<i64>, is_active: bool) -> Secret {
        Secret {
            id: id.to_owned(),
            value: Some(id.into()),
            created_at: day.map(|day| datetime!(2026-01-01 0:00 UTC) + Duration::days(day)),
            is_active,
        }
    }

    fn found<'a>(secrets: &'a [Secret], known: &[&str]) -> Found<'a> {
        find(secrets, |secret| known.contains(&secret.id.as_str()))
    }

    #[test]
    fn each_interruption_is_recognised() {
        let old = secret("old", Some(1), true);
        assert_eq!(found(std::slice::from_ref(&old), &["old"]), Found::Settled);
        let made = [old, secret("new", Some(2), false)];
        assert_eq!(found(&made, &["old"]), Found::Begun("new"));
        let activated = [secret("old", Some(1), false), secret("new", Some(2), true)];
        let not_ended = Found::NotEnded {
            signs: vec!["new"],
            left: vec!["old"],
        };
        assert_eq!(found(&activated, &["old", "new"]), not_ended);
        assert_eq!(found(&activated[1..], &["old", "new"]), Found::Settled);
        assert_eq!(found(&[], &[]), Found::Unsigned);
        assert_eq!(found(&activated[..1], &[]), Found::Unsigned);
    }

    #[test]
    fn what_is_not_newer_for_certain_is_never_taken_for_the_new_one() {
        for (active, other) in [
            (Some(1), Some(1)),
            (None, Some(1)),
            (Some(1), None),
            (None, None),
        ] {
            let secrets = [secret("a", active, true), secret("b", other, false)];
            assert!(
                matches!(found(&secrets, &["a", "b"]), Found::NotEnded { .. }),
                "{active:?} {other:?}"
            );
        }
    }

    #[test]
    fn of_several_new_ones_the_configured_one_counts_then_the_newest() {
        let secrets = [
            secret("old", Some(1), true),
            secret("second", Some(2), false),
            secret("third", Some(3), false),
        ];
        assert_eq!(found(&secrets, &["old"]), Found::Begun("third"));
        assert_eq!(found(&secrets, &["old", "second"]), Found::Begun("second"));
    }
}
