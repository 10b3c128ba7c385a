//! Reminding the customers of links that nobody has paid.

use time::OffsetDateTime;
use tracing::info;

use super::{Context, Error, reconciliation::refresh};
use crate::{
    payment_link::{
        MessageId, Unpayable,
        timeline::{Cause, ReminderDueDetail},
    },
    store::{self, reminders::DueReminder},
};

/// Gives a reminder that is due: reads the link from Dojo, and records the reminder if it can still be paid. With that, its email
/// is saved, and its event is on the way. An `Err` means that the reminder is still due.
pub async fn remind(context: &Context, reminder: &DueReminder) -> Result<(), Error> {
    let pool = &context.pool;
    let link = refresh(context, reminder.link_id, &Cause::Schedule).await?;
    let Some(link) = link else {
        return Ok(());
    };
    let why = link.unpayable(OffsetDateTime::now_utc());
    // What Dojo hasn't confirmed in this very call may be about to be paid.
    if why.is_some_and(Unpayable::may_pass) || !link.confirmed {
        return Err(Error::NotConfirmed);
    }
    let (None, Some(url)) = (why, link.customer_url()) else {
        return Ok(store::reminders::drop_all(pool, reminder.link_id).await?);
    };
    let requested = link
        .reminders
        .as_deref()
        .and_then(|all| all.get(reminder.number));
    let detail = ReminderDueDetail {
        after: requested.and_then(|requested| requested.after.as_deref()),
        before_expiry: requested.and_then(|requested| requested.before_expiry.as_deref()),
        url,
        message_id: link.send.as_ref().map(|_| MessageId::new()),
    };
    if store::reminders::give(pool, reminder, &detail).await? {
        info!(link_id = %link.id, "a reminder was due");
        metrics::counter!("reminders_total").increment(1);
        context.wake.notify_waiters();
    }
    Ok(())
}
