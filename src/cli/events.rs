use std::time::Duration;

use clap::{Args, Subcommand};
use dojo_payment_links::{
    config::{DatabaseSettings, Expected},
    payment_link::{PaymentLinkId, feed::Happening},
    store::{
        self, PgPool,
        feed::{Cursor, Filter, Page, Unusable},
    },
};
use tokio::time::sleep;

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
    /// Begins with the next event. Prints the place in the feed on standard error when it stops at the end of what there is.
    Tail {
        /// Begin behind this place: the `after` of a response of the API, or one that this command printed.
        #[arg(long, value_name = "AFTER", value_parser = cursor)]
        after: Option<Cursor>,
        /// Begin with the oldest event that is kept.
        #[arg(long, conflicts_with = "after")]
        from_start: bool,
        /// Only events of these types, separated by commas.
        #[arg(long, value_name = "TYPES", value_delimiter = ',', value_parser = event_type)]
        types: Option<Vec<String>>,
        /// Only events about links of this account.
        #[arg(long, value_name = "NAME")]
        account: Option<String>,
        /// Only events about this link.
        #[arg(long, value_name = "ID", value_parser = link_id)]
        link: Option<PaymentLinkId>,
        /// Stop at the end of the feed instead of waiting for more events.
        #[arg(long)]
        no_wait: bool,
    },
}

fn cursor(text: &str) -> std::result::Result<Cursor, Expected> {
    text.parse()
        .map_err(|_| Expected::new("the after of an earlier response"))
}

fn event_type(text: &str) -> std::result::Result<String, Expected> {
    let is_known = Happening::TYPES.iter().any(|(known, _)| *known == text);
    is_known
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
        } = self.command;
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

async fn read(pool: &PgPool, after: Option<Cursor>, filter: &Filter<'_>) -> Result<Page> {
    let page = store::feed::read(pool, after, filter, 100).await?;
    page.map_err(|unusable| {
        let reason = match unusable {
            Unusable::Pruned => "events behind it have been removed",
            Unusable::Foreign => {
                "it comes from another database, or from before a backup was restored"
            }
        };
        format!("--after is not a place in this feed: {reason}. Use --from-start").into()
    })
}
