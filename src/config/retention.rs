use std::time::Duration;

use clap::Args;

use super::value::{expiry, optional, retention};

/// How long each kind of data is kept. `None`: forever.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Retention {
    /// Webhooks about links that can't change any more, and the timeline entries that say nothing without them.
    pub webhooks: Option<Duration>,
    /// Events of the feed, and deliveries of callbacks.
    pub events: Option<Duration>,
    /// Messages about links that can't change any more.
    pub messages: Option<Duration>,
    /// The bodies of webhooks.
    pub webhook_bodies: Option<Duration>,
    /// The responses that earlier versions stored.
    pub stored_responses: Option<Duration>,
    /// The personal data of links that haven't changed and can't change any more.
    pub personal_data: Option<Duration>,
}

/// The settings of what is removed when it is old.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Retention")]
pub struct RetentionSettings {
    /// Removes events of the feed that are older than this. Also removes older webhooks, the timeline entries of webhooks that
    /// changed nothing, and messages, if their link can no longer change. Entries that changed a link's status or amounts stay.
    /// At least 30d. Unset: nothing is removed. `prune --dry-run` shows how much would be removed.
    #[arg(long, env = "PRUNE_OLDER_THAN", default_value = "", hide_default_value = true, value_name = "DURATION",
          value_parser = optional(retention))]
    pub prune_older_than: std::option::Option<Duration>,

    /// The same for webhooks and their timeline entries. Default: `PRUNE_OLDER_THAN`.
    #[arg(long, env = "PRUNE_WEBHOOKS_OLDER_THAN", default_value = "", hide_default_value = true,
          value_name = "DURATION", value_parser = optional(retention))]
    prune_webhooks_older_than: std::option::Option<Duration>,

    /// The same for events of the feed and deliveries of callbacks. Default: `PRUNE_OLDER_THAN`.
    #[arg(long, env = "PRUNE_EVENTS_OLDER_THAN", default_value = "", hide_default_value = true,
          value_name = "DURATION", value_parser = optional(retention))]
    prune_events_older_than: std::option::Option<Duration>,

    /// The same for messages. Default: `PRUNE_OLDER_THAN`.
    #[arg(long, env = "PRUNE_MESSAGES_OLDER_THAN", default_value = "", hide_default_value = true,
          value_name = "DURATION", value_parser = optional(retention))]
    prune_messages_older_than: std::option::Option<Duration>,

    /// Empties the bodies of webhooks that are older than this. The webhooks themselves stay; nothing reads their bodies. At
    /// least 30d, or `never`.
    #[arg(long, env = "WEBHOOK_BODIES_OLDER_THAN", default_value = "180d", value_name = "DURATION", value_parser = expiry)]
    webhook_bodies_older_than: std::option::Option<Duration>,

    /// Removes the responses that versions before migration 14 stored with requests, if they are older than this. At least
    /// 30d, or `never`.
    #[arg(long, env = "STORED_RESPONSES_OLDER_THAN", default_value = "180d", value_name = "DURATION", value_parser = expiry)]
    stored_responses_older_than: std::option::Option<Duration>,

    /// Erases the personal data of links that haven't changed for this long and about which nothing is open, as `erase` does.
    /// At least 30d. Unset: the data stays until somebody erases it.
    #[arg(long, env = "ERASE_OLDER_THAN", default_value = "", hide_default_value = true, value_name = "DURATION",
          value_parser = optional(retention))]
    erase_older_than: std::option::Option<Duration>,
}

impl RetentionSettings {
    #[must_use]
    pub fn retention(&self) -> Retention {
        let all = self.prune_older_than;
        Retention {
            webhooks: self.prune_webhooks_older_than.or(all),
            events: self.prune_events_older_than.or(all),
            messages: self.prune_messages_older_than.or(all),
            webhook_bodies: self.webhook_bodies_older_than,
            stored_responses: self.stored_responses_older_than,
            personal_data: self.erase_older_than,
        }
    }
}
