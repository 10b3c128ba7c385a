use std::time::Duration;

use clap::{Args, Subcommand};
use dojo_payment_links::{
    callbacks::{
        client::{CallbackClient, Timeouts},
        endpoint::Target,
        signature::SigningSecret,
        target::{Allow, check_url},
    },
    config::{DatabaseSettings, Expected, account_name, web_url},
    payment_link::{PaymentLinkId, feed::Happening},
    store::{
        self, PgPool,
        feed::{Cursor, Filter, Page, Unusable},
    },
};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use tokio::time::sleep;
use url::Url;

use super::{
    outcome::{Result, on_database},
    stdout::print,
};

/// How often to look for new events.
const PAUSE: Duration = Duration::from_millis(200);

/// Follow the feed of events.
#[derive(Debug, Args)]
pub(super) struct Events {
    #[command(flatten)]
    pub(super) database: DatabaseSettings,

    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Print events as they happen, one JSON object per line. Interrupt it with Ctrl-C.
    ///
    /// Begins with the next event. When it stops at the end of the feed, it prints on standard error how to continue from there.
    Tail {
        /// Begin after this place in the feed: the `after` of a response of the API, or one that this command has printed.
        #[arg(long, value_name = "AFTER", value_parser = cursor)]
        after: Option<Cursor>,
        /// Begin with the oldest event in the feed.
        #[arg(long, conflicts_with = "after")]
        from_start: bool,
        /// Only events of these types, separated by commas.
        #[arg(long, value_name = "TYPES", value_delimiter = ',', value_parser = event_type)]
        types: Option<Vec<String>>,
        /// Only events about links of this account.
        #[arg(long, value_name = "NAME", value_parser = account_name)]
        account: Option<String>,
        /// Only events about this link.
        #[arg(long, value_name = "ID", value_parser = link_id)]
        link: Option<PaymentLinkId>,
        /// Stop at the end of the feed instead of waiting for more events.
        #[arg(long)]
        no_wait: bool,
        /// Also post each event to this URL, signed as Standard Webhooks specifies, to develop a receiver. Posts each once, in
        /// order, and prints the outcomes on standard error.
        #[arg(long, value_name = "URL", value_parser = web_url)]
        forward_to: Option<Url>,
        /// The secret to sign with. Default: a new one, which is printed on standard error.
        #[arg(long, value_name = "WHSEC", requires = "forward_to")]
        secret: Option<SecretString>,
    },
}

pub(super) fn cursor(text: &str) -> std::result::Result<Cursor, Expected> {
    text.parse()
        .map_err(|_| Expected::new("the after of an earlier response"))
}

pub(super) fn event_type(text: &str) -> std::result::Result<String, Expected> {
    Happening::TYPES
        .contains(&text)
        .then(|| text.to_owned())
        .ok_or_else(|| Expected::new("a type of events, such as payment_link.captured"))
}

fn link_id(text: &str) -> std::result::Result<PaymentLinkId, Expected> {
    text.parse()
        .map_err(|_| Expected::new("the id of a payment link, plink_…"))
}

impl Events {
    pub(super) async fn run(self) -> Result {
        let Command::Tail {
            after,
            from_start,
            types,
            account,
            link,
            no_wait,
            forward_to,
            secret,
        } = self.command;
        let receiver = forward_to
            .map(|url| Receiver::new(url, secret))
            .transpose()?;
        let filter = Filter {
            open: None,
            account,
            types,
            link,
        };
        on_database(&self.database, async |pool| {
            let mut after = match after {
                None if !from_start => Some(store::feed::end(pool).await?),
                after => after,
            };
            loop {
                let page = read(pool, after, &filter).await?;
                for event in &page.events {
                    print(format_args!("{event}\n"))?;
                    if let Some(receiver) = &receiver {
                        receiver.post(event.get()).await?;
                    }
                }
                after = Some(page.after);
                if page.more {
                    continue;
                }
                if no_wait {
                    eprintln!("To continue: --after {}", page.after);
                    return Ok(());
                }
                sleep(PAUSE).await;
            }
        })
        .await
    }
}

/// Where events are posted to.
struct Receiver {
    target: Target,
    client: CallbackClient,
}

impl Receiver {
    fn new(url: Url, secret: Option<SecretString>) -> Result<Self> {
        // Whoever runs the command chooses the address, so it may be any, but no other.
        let address = url
            .host_str()
            .zip(url.port_or_known_default())
            .ok_or("--forward-to must be a URL with a host")?;
        let allow: Allow = format!("{}:{}", address.0, address.1).parse()?;
        check_url(&url, &allow).map_err(|faults| {
            let faults: Vec<_> = faults.iter().map(ToString::to_string).collect();
            format!("--forward-to {}", faults.join(", and "))
        })?;
        let secret = if let Some(secret) = secret {
            // Parsed here, because an error of the arguments' parser would show the secret.
            SigningSecret::parse(secret.expose_secret())
                .ok_or_else(|| format!("--secret is not {}", SigningSecret::FORM))?
        } else {
            let secret = SigningSecret::generate();
            eprintln!("The signing secret is {}", secret.expose());
            secret
        };
        let client = CallbackClient::new(allow, Timeouts::default())
            .map_err(|error| format!("callbacks can't be sent: {error}"))?;
        let target = Target {
            url,
            header: None,
            secret,
            previous_secrets: Vec::new(),
        };
        Ok(Self { target, client })
    }

    async fn post(&self, event: &str) -> Result {
        #[derive(Deserialize)]
        struct Head<'a> {
            id: &'a str,
            #[serde(rename = "type")]
            kind: &'a str,
        }
        let Head { id, kind } = serde_json::from_str(event)?;
        let attempt = self.target.send(&self.client, None, id, event).await;
        eprintln!("{attempt}: {kind} {id}");
        Ok(())
    }
}

async fn read(pool: &PgPool, after: Option<Cursor>, filter: &Filter<'_>) -> Result<Page> {
    let page = store::feed::read(pool, after, filter, 100).await?;
    page.map_err(|unusable| {
        let reason = match unusable {
            Unusable::Pruned => "events after it have been removed",
            Unusable::Foreign => {
                "it comes from another database, or from before a backup was restored"
            }
        };
        format!("--after is not a place in this feed: {reason}. Use --from-start").into()
    })
}
