use std::time::Duration;

use clap::Args;
use dojo_payment_links::{
    config::{DatabaseSettings, PrivacySettings, Retention, retention},
    jobs::prune,
};

use super::{
    outcome::{Result, on_database},
    stdout::print,
};

/// Remove old data: webhooks, the timeline entries of webhooks that changed nothing, messages, events of the feed, deliveries
/// of callbacks, the bodies of webhooks, stored responses, and the personal data of links.
///
/// Removes only data for which you give an age. Keeps everything about links that can still change, and every entry that changed a
/// link. Prints how many rows of each table it removed. Can be interrupted and run again at any time, also while
/// replicas are running. To have the service do the same continuously, use the settings of `serve` under `Retention`.
#[derive(Debug, Args)]
pub(super) struct Prune {
    #[command(flatten)]
    pub(super) database: DatabaseSettings,

    #[command(flatten)]
    privacy: PrivacySettings,

    /// How old webhooks, messages, events of the feed and deliveries of callbacks must be to be removed: at least 30d. The link
    /// of a webhook or message must not have changed since then either.
    #[arg(long, value_name = "DURATION", value_parser = retention, required_unless_present_any = [
        "webhooks_older_than", "events_older_than", "messages_older_than", "webhook_bodies_older_than",
        "stored_responses_older_than", "erase_older_than"
    ])]
    older_than: Option<Duration>,

    /// The same for webhooks and their timeline entries.
    #[arg(long, value_name = "DURATION", value_parser = retention)]
    webhooks_older_than: Option<Duration>,

    /// The same for events of the feed and deliveries of callbacks.
    #[arg(long, value_name = "DURATION", value_parser = retention)]
    events_older_than: Option<Duration>,

    /// The same for messages.
    #[arg(long, value_name = "DURATION", value_parser = retention)]
    messages_older_than: Option<Duration>,

    /// How old webhooks must be for their bodies to be emptied.
    #[arg(long, value_name = "DURATION", value_parser = retention)]
    webhook_bodies_older_than: Option<Duration>,

    /// How old the responses that versions before migration 14 stored must be to be removed.
    #[arg(long, value_name = "DURATION", value_parser = retention)]
    stored_responses_older_than: Option<Duration>,

    /// How long links must not have changed for their personal data to be erased, as `erase` does.
    #[arg(long, value_name = "DURATION", value_parser = retention)]
    erase_older_than: Option<Duration>,

    /// Only count what would be removed.
    #[arg(long)]
    dry_run: bool,
}

impl Prune {
    pub(super) async fn run(self) -> Result {
        let verb = if self.dry_run { "to remove" } else { "removed" };
        let retention = Retention {
            webhooks: self.webhooks_older_than.or(self.older_than),
            events: self.events_older_than.or(self.older_than),
            messages: self.messages_older_than.or(self.older_than),
            webhook_bodies: self.webhook_bodies_older_than,
            stored_responses: self.stored_responses_older_than,
            personal_data: self.erase_older_than,
        };
        let personal = &self.privacy.personal_metadata;
        on_database(&self.database, async |pool| {
            let removed = prune(pool, &retention, personal, self.dry_run, |so_far| {
                for (what, number) in so_far.of(&retention) {
                    eprintln!("{what}: {number} {verb} so far");
                }
            })
            .await?;
            for (what, number) in removed.of(&retention) {
                print(format_args!("{what}\t{number}\n"))?;
            }
            Ok(())
        })
        .await
    }
}
