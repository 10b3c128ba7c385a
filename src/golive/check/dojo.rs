use futures_util::future::join;
use url::Url;

use super::report::{Checks, LIMIT, Name};
use crate::{
    dojo::{Account, Probe, Subscription},
    golive::{
        EVENTS, STATUS_UPDATED, account_flag,
        address::{is_elsewhere, is_same, objection},
        fix, is_known, listed, reason, secrets_setting,
        subscriptions::wanted,
        webhook_address,
    },
    payment_link::Environment,
};

/// The public base URL of this service, as far as the settings say.
#[derive(Debug, Clone, Copy)]
pub(super) enum PublicAddress<'a> {
    Given(&'a Url),
    NotGiven,
    /// It is set, but is not usable. The check of the settings reports that.
    Wrong,
}

/// Checks one account at Dojo. `api` is the base URL of Dojo's API.
pub(super) async fn check(account: &Account, api: &Url, address: PublicAddress<'_>) -> Checks {
    let mut checks = Checks::of_account(&account.name);
    let all = check_all(account, api, address, &mut checks);
    if tokio::time::timeout(LIMIT, all).await.is_err() {
        checks.out_of_time(&Name::ACCOUNT, "Dojo takes too long", "wait a minute");
    }
    checks
}

async fn check_all(account: &Account, api: &Url, address: PublicAddress<'_>, checks: &mut Checks) {
    match account.client.probe().await {
        Ok(probe) => {
            checks.pass(
                Name::Dojo,
                match account.environment {
                    Environment::Sandbox => "Dojo accepts the key; sandbox: test money",
                    Environment::Production => "Dojo accepts the key; PRODUCTION: REAL MONEY",
                },
            );
            check_clock(probe, checks);
            check_checkout(account, api, checks);
        }
        Err(error) => {
            let fix = fix(account, &error)
                .unwrap_or_else(|| "check DOJO_API_URL and DOJO_API_VERSION".to_owned());
            checks.fail(Name::Dojo, reason(&error), fix);
            checks.skip_rest(&Name::ACCOUNT, "the first call to Dojo failed");
            return;
        }
    }

    let responses = join(
        account.client.offered_events(),
        account.client.subscriptions(),
    )
    .await;
    let (offered, subscriptions) = match responses {
        (Ok(offered), Ok(subscriptions)) => (offered, subscriptions),
        (Err(error), _) | (_, Err(error)) => {
            checks.fail(
                Name::WebhookAddress,
                format!(
                    "Dojo did not return the webhook subscriptions: {}",
                    reason(&error)
                ),
                "make sure that the key may manage webhooks, in Dojo's developer portal",
            );
            checks.skip_rest(
                &Name::ACCOUNT,
                "Dojo did not return the webhook subscriptions",
            );
            return;
        }
    };
    let ours = check_address(account, api, address, &subscriptions, checks);
    if ours.is_empty() {
        checks.skip_rest(&Name::ACCOUNT, "there is no subscription for this service");
        return;
    }
    check_events(account, &offered, &ours, checks);
    check_secrets(account, &ours, checks);
}

fn check_clock(probe: Probe, checks: &mut Checks) {
    let Some(date) = probe.date else {
        checks.fail(
            Name::DojoClock,
            "Dojo's response has no Date header",
            "check whether a proxy between this machine and Dojo removes it",
        );
        return;
    };
    // Dojo's clock was read at some time between sending and receiving, and `Date` is rounded down to a second.
    let earliest = probe.sent_at - time::Duration::SECOND;
    let difference = if date > probe.received_at {
        date - probe.received_at
    } else if date < earliest {
        earliest - date
    } else {
        time::Duration::ZERO
    };
    checks.compare_clocks(Name::DojoClock, difference.unsigned_abs());
}

/// Checks whether the links lead to the server that has the payment intents.
fn check_checkout(account: &Account, api: &Url, checks: &mut Checks) {
    let address = &account.checkout_url;
    if is_elsewhere(address, api, account.environment) {
        checks.fail(
            Name::CheckoutAddress,
            format!("links lead to {address}, where the payment intents of {api} don't exist"),
            "set DOJO_CHECKOUT_URL (in DOJO_ACCOUNTS_FILE: checkout_url) to the checkout pages of the sandbox, for example \
             http://localhost:9400/checkout",
        );
    } else {
        checks.pass(Name::CheckoutAddress, address);
    }
}

fn has(subscription: &Subscription, event: &str) -> bool {
    subscription.events.iter().any(|other| other == event)
}

/// Checks whether Dojo sends webhooks to this service. Returns the subscriptions whose events and secrets to check.
fn check_address<'a>(
    account: &Account,
    api: &Url,
    address: PublicAddress<'_>,
    subscriptions: &'a [Subscription],
    checks: &mut Checks,
) -> Vec<&'a Subscription> {
    let name = Name::WebhookAddress;
    let relevant: Vec<_> = subscriptions
        .iter()
        .filter(|subscription| EVENTS.iter().any(|event| has(subscription, event)))
        .collect();
    let found = if relevant.is_empty() {
        "the account has no webhook subscription for payment events".to_owned()
    } else {
        format!(
            "Dojo sends webhooks to {}",
            listed(relevant.iter().map(|subscription| &subscription.url))
        )
    };
    let base = match address {
        PublicAddress::Given(base) => base,
        PublicAddress::NotGiven => {
            checks.unknown(
                name,
                format!("cannot tell whether webhooks reach this service, because its public URL is not set. {found}"),
                "set it with PUBLIC_URL or --public-url",
            );
            return relevant;
        }
        PublicAddress::Wrong => {
            checks.skip(name, "the public URL is wrong");
            return relevant;
        }
    };
    if let Some(objection) = objection(base, api) {
        checks.fail(
            name,
            format!("{base} {objection}"),
            "set it to the URL under which the internet reaches this service",
        );
        return relevant;
    }
    let expected = webhook_address(base, &account.name);
    let (ours, elsewhere): (Vec<_>, Vec<_>) = relevant
        .into_iter()
        .partition(|subscription| is_same(&subscription.url, &expected));
    if ours.is_empty() {
        let replace = if elsewhere.is_empty() {
            ""
        } else {
            " --replace, if no other system needs them"
        };
        checks.fail(
            name,
            format!("Dojo sends no webhooks to {expected}. {found}"),
            format!(
                "run dojo-payment-links webhooks register --url {base}{}{replace}",
                account_flag(account)
            ),
        );
    } else {
        checks.pass(name, expected);
    }
    ours
}

fn check_events(
    account: &Account,
    offered: &[String],
    ours: &[&Subscription],
    checks: &mut Checks,
) {
    let name = Name::WebhookEvents;
    let (wanted, not_offered) = wanted(offered);
    let missing: Vec<_> = wanted
        .iter()
        .filter(|event| !ours.iter().any(|subscription| has(subscription, event)))
        .collect();
    if !wanted.contains(&STATUS_UPDATED) {
        checks.fail(
            name,
            format!(
                "the account does not offer {STATUS_UPDATED}, the only event that reports payments"
            ),
            "ask Dojo to enable it",
        );
    } else if !missing.is_empty() {
        checks.fail(
            name,
            format!("not subscribed: {}", listed(missing)),
            register_again(account),
        );
    } else if not_offered.is_empty() {
        checks.pass(name, listed(wanted));
    } else {
        checks.pass(
            name,
            format!(
                "{}; the account does not offer {}",
                listed(wanted),
                listed(not_offered)
            ),
        );
    }
}

fn check_secrets(account: &Account, ours: &[&Subscription], checks: &mut Checks) {
    let name = Name::WebhookSecrets;
    let is_signed =
        |subscription: &&&Subscription| subscription.secrets.iter().any(|secret| secret.is_active);
    let unsigned: Vec<_> = ours
        .iter()
        .filter(|subscription| !is_signed(subscription))
        .map(|subscription| &subscription.id)
        .collect();
    let active: Vec<_> = ours
        .iter()
        .flat_map(|subscription| &subscription.secrets)
        .filter(|secret| secret.is_active)
        .collect();
    let ids = |known: Option<bool>| -> Vec<_> {
        active
            .iter()
            .filter(|secret| is_known(account, secret) == known)
            .map(|secret| &secret.id)
            .collect()
    };
    let (known, unknown, hidden) = (ids(Some(true)), ids(Some(false)), ids(None));
    if !unsigned.is_empty() {
        checks.fail(
            name,
            format!(
                "{} has no active secret, so its webhooks are unsigned",
                listed(unsigned)
            ),
            register_again(account),
        );
    } else if !unknown.is_empty() {
        checks.fail(
            name,
            format!(
                "Dojo signs with {}, which is not in the settings, so these webhooks are rejected",
                listed(unknown)
            ),
            format!(
                "add it to {}; webhooks register prints it",
                secrets_setting(account)
            ),
        );
    } else if !hidden.is_empty() {
        checks.pass_unverified(
            name,
            format!(
                "NOT VERIFIED: Dojo does not reveal the value of {}, so the settings cannot be compared with it. Pay a \
                 link with a test card, and make sure that its webhook arrives",
                listed(hidden)
            ),
        );
    } else {
        checks.pass(
            name,
            format!(
                "Dojo signs with {}, which is in the settings",
                listed(known)
            ),
        );
    }
}

fn register_again(account: &Account) -> String {
    format!(
        "run dojo-payment-links webhooks register{} again",
        account_flag(account)
    )
}
