//! The accounts that a command is about.

use clap::Parser;
use dojo_payment_links::{
    config::DojoSettings,
    dojo::{Account, Accounts},
};

use super::outcome::Result;

/// The account of this name, or the only account.
pub(super) fn choose<'a>(accounts: &'a Accounts, name: Option<&str>) -> Result<&'a Account> {
    let names: Vec<_> = accounts
        .iter()
        .map(|account| account.name.as_str())
        .collect();
    let names = names.join(", ");
    if let Some(name) = name {
        return accounts.get(name).ok_or_else(|| {
            format!("there is no account {name:?}. The configured accounts are: {names}").into()
        });
    }
    let mut all = accounts.iter();
    match (all.next(), all.next()) {
        (Some(account), None) => Ok(account),
        _ => Err(format!("choose an account with --account: {names}").into()),
    }
}

/// Warns of names that are no account's, because they give access to nothing.
///
/// The command's own settings say nothing about accounts, so the settings of `serve` are read from the environment. If they
/// aren't there, or are wrong, nobody can tell, and there is no warning.
pub(super) fn warn_of_unknown(names: &[String]) {
    #[derive(Debug, Parser)]
    struct Environment {
        #[command(flatten)]
        dojo: DojoSettings,
    }

    let Some(accounts) = Environment::try_parse_from([""])
        .ok()
        .and_then(|settings| settings.dojo.accounts().ok())
    else {
        return;
    };
    let configured: Vec<_> = accounts
        .accounts
        .iter()
        .map(|account| account.name.as_str())
        .collect();
    for name in names {
        if !configured.contains(&name.as_str()) {
            eprintln!(
                "Warning: no account {name:?} is configured here. The configured accounts are: {}.",
                configured.join(", ")
            );
        }
    }
}
