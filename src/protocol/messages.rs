//! Sending a message once.
//!
//! The message is saved before this begins. Its place in the database moves before and after the content is sent to the mail
//! server, so that it is known for every crash whether the mail server may have the message. If it may, the message is not sent
//! again.

use std::time::Duration;

use backon::Retryable;
use time::OffsetDateTime;
use tracing::{info, warn};

use super::{Context, Error, reconciliation::refresh, through_an_outage};
use crate::{
    mail::{Delivery, Mailer, Outgoing, Refusal},
    payment_link::{
        MessageStatus, PaymentLink, Purpose, Unpayable,
        message::{GIVE_UP, retry_wait},
        timeline::Cause,
    },
    store::{self, messages::DueMessage},
    telemetry::causes,
};

/// How old Dojo's last response about a link may be for the link to be sent out without another one.
const RECENT: time::Duration = time::Duration::minutes(1);

/// How often to try again to store what became of an attempt: for about three seconds.
const RETRIES: usize = 5;

/// Sends a message that is due, and stores the outcome. An `Err` means that the message is still due.
///
/// Without a mailer, the message waits for one, as for a mail server that is down.
pub async fn deliver(
    context: &Context,
    mailer: Option<&Mailer>,
    message: &DueMessage,
) -> Result<(), Error> {
    if message.is_handed_over {
        // The worker that sent it died, or could not store the outcome.
        let reason = "this service failed before it had stored the mail server's response";
        return finish(context, message, MessageStatus::Unknown, Some(reason)).await;
    }
    if message.age >= GIVE_UP {
        let last = message.failure.as_deref().unwrap_or("it was not tried");
        let reason = format!("the message could not be sent within a day: {last}");
        return finish(context, message, MessageStatus::Failed, Some(&reason)).await;
    }
    let Some(mailer) = mailer else {
        let reason = "this service is not set up to send emails".to_owned();
        return refused(context, message, Refusal::ForNow(reason)).await;
    };
    let Some(link) = current(context, message).await? else {
        return Ok(());
    };
    let why = link.unpayable(OffsetDateTime::now_utc());
    let is_doubtful = message.purpose == Purpose::Reminder && !link.confirmed;
    let why = why.or(is_doubtful.then_some(Unpayable::Unconfirmed));
    if let Some(why) = why.filter(|why| why.may_pass()) {
        let reason = format!("the link cannot be paid now: {}", why.reason());
        return refused(context, message, Refusal::ForNow(reason)).await;
    }
    let url = match (why, link.customer_url()) {
        (None, Some(url)) => url,
        (why, _) => {
            let why = why.unwrap_or(Unpayable::Withdrawn);
            let reason = format!("the link can no longer be paid: {}", why.reason());
            return finish(context, message, MessageStatus::Canceled, Some(&reason)).await;
        }
    };
    let outgoing = Outgoing {
        id: message.id,
        purpose: message.purpose,
        to: &message.to,
        locale: &message.locale,
        note: message.note.as_deref(),
        date: message.created_at.into(),
    };
    let email = match mailer.compose(&link, url, &context.account.merchant, outgoing) {
        Ok(email) => email,
        Err(error) => {
            warn!(message_id = %message.id, error = %causes(&error), "a message could not be composed");
            let reason = "the message could not be composed";
            return finish(context, message, MessageStatus::Failed, Some(reason)).await;
        }
    };
    let session = match mailer.announce(&email).await {
        Ok(session) => session,
        Err(refusal) => return refused(context, message, refusal).await,
    };
    let needed = mailer.time_to_send();
    match store::messages::hand_over(&context.pool, message, needed).await {
        Ok(true) => {}
        // It took too long, or the link was paid in the meantime. Unless another worker has the message by now, look again.
        Ok(false) => {
            session.abandon().await;
            let wait = Duration::from_secs(1);
            return Ok(store::messages::release(&context.pool, message, wait).await?);
        }
        Err(error) => {
            session.abandon().await;
            return Err(error.into());
        }
    }
    match session.send(&email.content()).await {
        Delivery::Accepted => finish(context, message, MessageStatus::Sent, None).await,
        Delivery::Refused(refusal) => refused(context, message, refusal).await,
        Delivery::Unknown(reason) => {
            finish(context, message, MessageStatus::Unknown, Some(&reason)).await
        }
    }
}

/// The link as it is now. `None` if there is no such link.
///
/// Dojo is asked before each reminder. Before another message, it is asked unless it has just confirmed the link.
async fn current(context: &Context, message: &DueMessage) -> Result<Option<PaymentLink>, Error> {
    let Some(link) = store::links::find(&context.pool, message.link_id).await? else {
        return Ok(None);
    };
    let now = OffsetDateTime::now_utc();
    let is_recent = link.synced_at.is_some_and(|at| now - at < RECENT);
    let is_known = is_recent && link.confirmed && message.purpose != Purpose::Reminder;
    if link.payment_intent_id.is_none() || is_known {
        return Ok(Some(link));
    }
    refresh(context, message.link_id, &Cause::Delivery).await
}

async fn refused(context: &Context, message: &DueMessage, refusal: Refusal) -> Result<(), Error> {
    match refusal {
        Refusal::ForGood(reason) => {
            finish(context, message, MessageStatus::Failed, Some(&reason)).await
        }
        Refusal::ForNow(reason) => {
            warn!(message_id = %message.id, reason, "a message was not sent; trying again later");
            count("retried");
            let wait = wait(message);
            // Only this process knows that the mail server doesn't have the message.
            (|| store::messages::retry(&context.pool, message, &reason, wait))
                .retry(through_an_outage(RETRIES))
                .when(store::Error::is_outage)
                .await?;
            Ok(())
        }
    }
}

/// How long to wait before the next attempt. Whether the mail server or the link isn't ready, the wait grows with the time that
/// the message has taken so far.
fn wait(message: &DueMessage) -> Duration {
    let shortest = retry_wait(message.attempts);
    shortest.max((message.age / 2).min(Duration::from_mins(30)))
}

/// Stores an outcome. Only this process knows it, so a short outage of the database must not lose it.
async fn finish(
    context: &Context,
    message: &DueMessage,
    status: MessageStatus,
    reason: Option<&str>,
) -> Result<(), Error> {
    let finished = (|| store::messages::finish(&context.pool, message, status, reason))
        .retry(through_an_outage(RETRIES))
        .when(store::Error::is_outage)
        .await?;
    if !finished {
        warn!(message_id = %message.id, outcome = status.as_str(), "the outcome of a message came too late to be stored");
        return Ok(());
    }
    let (message_id, link_id) = (message.id, message.link_id);
    match status {
        MessageStatus::Sent => info!(%message_id, %link_id, "a message was sent"),
        MessageStatus::Canceled => {
            info!(%message_id, %link_id, reason, "a message was not sent");
        }
        _ => {
            warn!(%message_id, %link_id, reason, "a message was not sent, or it is not known whether it was");
        }
    }
    count(match status {
        MessageStatus::Sent => "sent",
        MessageStatus::Canceled => "canceled",
        MessageStatus::Unknown => "unknown",
        MessageStatus::Failed | MessageStatus::Pending => "failed",
    });
    Ok(())
}

fn count(outcome: &'static str) {
    metrics::counter!("messages_total", "outcome" => outcome).increment(1);
}
