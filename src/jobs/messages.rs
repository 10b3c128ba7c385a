use std::{fmt::Display, time::Duration};

use super::{job::Job, shared::Jobs};
use crate::{
    protocol::{self, Context},
    store::{self, messages::DueMessage, reminders::DueReminder},
};

/// Sends the messages that are due.
pub(super) struct Messages(pub(super) Jobs);

impl Job for Messages {
    const NAME: &'static str = "messages";

    type Item = DueMessage;

    fn id(message: &DueMessage) -> impl Display + Send {
        message.id
    }

    async fn claim(&self, limit: i64) -> Result<Vec<DueMessage>, store::Error> {
        let Context { pool, account, .. } = &self.0.context;
        // Dojo may be asked first.
        let lease = account.client.operation_lease() + self.0.mail_time();
        store::messages::claim(pool, &account.name, lease, limit).await
    }

    async fn work(&self, message: &DueMessage) -> Result<(), protocol::Error> {
        let Jobs {
            context, mailer, ..
        } = &self.0;
        let work = protocol::messages::deliver(context, mailer.as_deref(), message);
        let lease = message.lease.left();
        self.0.within_lease(lease, Box::pin(work)).await
    }

    async fn release(
        &self,
        message: &DueMessage,
        _error: Option<&protocol::Error>,
        wait: Duration,
    ) -> Result<(), store::Error> {
        store::messages::release(&self.0.context.pool, message, wait).await
    }
}

/// Gives the reminders that are due.
pub(super) struct Reminders(pub(super) Jobs);

impl Job for Reminders {
    const NAME: &'static str = "reminders";

    type Item = DueReminder;

    fn id(reminder: &DueReminder) -> impl Display + Send {
        format!("{} {}", reminder.link_id, reminder.number)
    }

    async fn claim(&self, limit: i64) -> Result<Vec<DueReminder>, store::Error> {
        let Context { pool, account, .. } = &self.0.context;
        let lease = account.client.operation_lease();
        store::reminders::claim(pool, &account.name, lease, limit).await
    }

    async fn work(&self, reminder: &DueReminder) -> Result<(), protocol::Error> {
        let work = protocol::reminders::remind(&self.0.context, reminder);
        let lease = reminder.lease.left();
        self.0.within_lease(lease, Box::pin(work)).await
    }

    async fn release(
        &self,
        reminder: &DueReminder,
        _error: Option<&protocol::Error>,
        wait: Duration,
    ) -> Result<(), store::Error> {
        store::reminders::release(&self.0.context.pool, reminder, wait).await
    }
}
