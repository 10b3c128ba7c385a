use std::time::Duration;

use clap::Args;
use dojo_payment_links::{
    config::{DatabaseSettings, retention},
    jobs::prune,
};

use super::{
    outcome::{Result, on_database},
    stdout::print,
};

/// Remove old webhooks, the timeline entries of those that changed nothing, old events of the feed, and old deliveries of callbacks.
///
/// Keeps everything about links that can still change, and every entry that changed a link. Prints how many rows of each
/// table it removed. Can be interrupted and run again at any time, next to running replicas. To have the service do the
/// same all the time, set `PRUNE_OLDER_THAN`.
#[derive(Debug, Args)]
pub(super) struct Prune {
    #[command(flatten)]
    pub(super) database: DatabaseSettings,

    /// How old a webhook must be to be removed: at least 30d. Its link must not have changed since then either.
    #[arg(long, value_name = "DURATION", value_parser = retention)]
    older_than: Duration,

    /// Only count what would be removed.
    #[arg(long)]
    dry_run: bool,
}

impl Prune {
    pub(super) async fn run(self) -> Result {
        let verb = if self.dry_run { "to remove" } else { "removed" };
        on_database(&self.database, async |pool| {
            let removed = prune(pool, self.older_than, self.dry_run, |so_far| {
                let [(_, webhooks), (_, entries), ..] = so_far.by_table();
                eprintln!("{webhooks} webhooks and {entries} timeline entries {verb} so far");
            })
            .await?;
            for (table, rows) in removed.by_table() {
                print(format_args!("{table}\t{rows}\n"))?;
            }
            Ok(())
        })
        .await
    }
}
