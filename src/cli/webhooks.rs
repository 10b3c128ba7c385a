use clap::{Args, Subcommand};
use dojo_payment_links::{
    config::{ConfigError, DojoSettings, PublicUrl},
    dojo::Accounts,
    golive::{rotation, subscriptions},
};
use secrecy::ExposeSecret;

use super::{
    accounts::choose,
    outcome::Result,
    stdout::{print, print_secret},
};

/// List and set up Dojo's webhooks, and rotate the secrets that sign them.
#[derive(Debug, Args)]
pub(super) struct Webhooks {
    #[command(flatten)]
    dojo: DojoSettings,

    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List the webhook subscriptions at Dojo with their URLs, events, and the ids of their secrets.
    List {
        /// The account to list. Default: all accounts.
        #[arg(long, value_name = "NAME")]
        account: Option<String>,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Make Dojo send this service the events that it needs.
    ///
    /// Prints the secret to add to the settings on standard output, unless the settings already contain it. Changes nothing
    /// if everything is set up already.
    Register {
        /// The account. Required if there are several.
        #[arg(long, value_name = "NAME")]
        account: Option<String>,
        #[command(flatten)]
        public_url: PublicUrl,
        /// Take over events that Dojo sends to other URLs now. Dojo sends each event to only one URL.
        #[arg(long)]
        replace: bool,
    },
    /// Rotate the secret that webhooks are signed with, in two steps.
    ///
    /// Without `--every-replica-knows`, creates a new secret that is not active yet, prints the old and the new secret on
    /// standard output, and explains what to do next.
    RotateSecret {
        /// The account. Required if there are several.
        #[arg(long, value_name = "NAME")]
        account: Option<String>,
        /// The id of the subscription. Required if several subscriptions send events to this service.
        #[arg(long, value_name = "ID")]
        subscription: Option<String>,
        /// The second step: activate the secret with this id, and delete all others at Dojo. Run it only after every
        /// replica has the secret in its settings.
        #[arg(long, value_name = "SECRET_ID")]
        every_replica_knows: Option<String>,
    },
}

impl Webhooks {
    pub(super) async fn run(&self) -> Result {
        let mut error = ConfigError::default();
        let accounts = error.keep(Accounts::from_settings(&self.dojo));
        let url = match &self.command {
            Command::Register { public_url, .. } => error.keep(public_url.required()),
            _ => None,
        };
        let (Some(accounts), true) = (accounts, error.is_empty()) else {
            return Err(error.into());
        };
        let outcome = match &self.command {
            Command::List { account, json } => {
                return list(&accounts, account.as_deref(), *json).await;
            }
            Command::Register {
                account, replace, ..
            } => {
                let account = choose(&accounts, account.as_deref())?;
                let url = url.ok_or("the public URL is missing")?;
                subscriptions::register(account, &url, &self.dojo.api_url, *replace).await?
            }
            Command::RotateSecret {
                account,
                subscription,
                every_replica_knows,
            } => {
                let account = choose(&accounts, account.as_deref())?;
                let subscription = subscription.as_deref();
                match every_replica_knows {
                    None => rotation::create_secret(account, subscription).await?,
                    Some(secret) => {
                        rotation::activate_secret(account, subscription, secret).await?
                    }
                }
            }
        };
        // Standard output is for the secrets alone, so that it can be redirected to where the settings come from.
        for message in &outcome.messages {
            eprintln!("{message}");
        }
        if let Some(secrets) = &outcome.secrets {
            print_secret(secrets.expose_secret(), "run the command again")?;
        }
        Ok(())
    }

    pub(super) fn validate(&self, error: &mut ConfigError) {
        error.keep(Accounts::from_settings(&self.dojo));
        if let Command::Register { public_url, .. } = &self.command {
            error.keep(public_url.required());
        }
    }
}

async fn list(accounts: &Accounts, name: Option<&str>, json: bool) -> Result {
    let chosen: Vec<_> = match name {
        Some(_) => vec![choose(accounts, name)?],
        None => accounts.iter().collect(),
    };
    let mut overviews = Vec::new();
    for account in chosen {
        overviews.push(subscriptions::overview(account).await?);
    }
    if json {
        print(format_args!(
            "{}\n",
            serde_json::to_string_pretty(&overviews)?
        ))?;
    } else {
        for overview in &overviews {
            print(format_args!("{overview}\n"))?;
        }
    }
    Ok(())
}
