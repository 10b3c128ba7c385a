//! Performing an operation on a payment: save it, call Dojo, store the outcome, and read the link back from Dojo.
//!
//! Dojo recognizes repeated requests only for refunds, by their idempotency key. Three rules protect the other operations:
//! each is saved before Dojo is called, a link has one pending change at a time, and after a lost response nothing is repeated
//! until Dojo has been read ([`super::operation_recovery`]).

use std::time::{Duration, Instant};

use backon::Retryable;
use sha2::{Digest, Sha256};
use time::OffsetDateTime;
use tracing::{error, info, warn};

use super::{Context, Error, reconciliation, through_an_outage};
use crate::{
    dojo::{self, On409, Operate, SendBy},
    payment_link::{
        Failure, FailureKind, OperationId, PaymentLink, PaymentLinkId, Progress,
        operation::{
            Action, Operation, OperationStatus,
            permission::{Denial, OtherOperations, PermitContext, permit},
        },
        timeline::Cause,
    },
    store::{
        self, PgPool,
        creation::{IdempotencyKey, Retry},
        operations::{EarlierRequest, NewOperation, OperationFailure, SaveOutcome, SavedOperation},
    },
    telemetry::causes,
};

/// A client's request for an operation.
#[derive(Debug)]
pub struct Request {
    /// The id that the operation gets if it is saved.
    pub operation_id: OperationId,
    pub link_id: PaymentLinkId,
    /// What to do. Amounts may be missing.
    pub action: Action,
    /// The name of the client.
    pub client: String,
    pub request_id: String,
    /// Required for a refund.
    pub idempotency_key: Option<IdempotencyKey>,
}

impl Request {
    /// What [`await_outcome`] needs to know of the request.
    #[must_use]
    pub fn waiting(&self) -> (Option<IdempotencyKey>, Cause) {
        let cause = Cause::Request {
            client: self.client.clone(),
            request_id: self.request_id.clone(),
        };
        (self.idempotency_key.clone(), cause)
    }
}

/// The outcome of a request for an operation.
#[derive(Debug)]
pub enum Outcome {
    /// Dojo performed it, now or for an earlier request with the same key.
    Done {
        operation: Box<Operation>,
        /// The link as it is now. If Dojo couldn't be read after the operation, the link as it was before, not confirmed.
        link: Box<PaymentLink>,
        /// Whether Dojo could be read after the operation.
        read_back: bool,
        /// Whether this is the outcome of an earlier request.
        replayed: bool,
    },
    /// The rules deny it. Dojo was not called.
    Denied(Denial),
    /// How much is left to refund could not be read from Dojo, so the refund was not sent.
    NotRead(Error),
    /// It was not performed, now or for an earlier request with the same key.
    Failed {
        operation_id: OperationId,
        failure: Failure,
        /// How long Dojo asks to wait before another attempt, if it does.
        retry_after: Option<Duration>,
        /// Whether this is the outcome of an earlier request.
        replayed: bool,
    },
    /// Dojo's response was lost, so the outcome isn't known yet.
    Unknown {
        operation_id: OperationId,
    },
    /// Dojo's response to an earlier request with the same key was lost, and the outcome can't be determined automatically.
    Unconfirmed {
        operation_id: OperationId,
    },
    /// An earlier request with the same key is in progress, or its outcome isn't known yet.
    Running {
        operation_id: OperationId,
        progress: Progress,
    },
    /// The idempotency key was used for a different request.
    KeyReused,
    /// An earlier request had the same key, and the personal data of its link was erased.
    Erased,
    NoSuchLink,
}

/// Performs an operation, at most once for each idempotency key. `Err` means that it was not sent to Dojo.
pub async fn perform(context: &Context, request: Request) -> Result<Outcome, store::Error> {
    let cause = Cause::Request {
        client: request.client.clone(),
        request_id: request.request_id.clone(),
    };
    let key = request.idempotency_key.as_ref();
    let dojo_key = key.filter(|_| request.action.is_refund()).map(dojo_key);
    let new = NewOperation {
        id: request.operation_id,
        link_id: request.link_id,
        action: &request.action,
        dojo_key: dojo_key.as_deref(),
        created_by: &request.client,
        cause: &cause,
        lease: context.account.client.operation_lease(),
    };
    let saved = if request.action.is_refund() {
        save_refund(context, &new, key).await
    } else {
        save(context, &new, key).await
    };
    match saved {
        Ok(SaveOutcome::Saved(saved)) => {
            let call = SavedCall {
                context,
                new: &new,
                saved: *saved,
                request_id: &request.request_id,
            };
            Ok(call.perform().await)
        }
        Ok(SaveOutcome::Denied(denial)) => {
            let is_unclear = matches!(denial, Denial::Unclear { .. });
            let outcome = if is_unclear {
                "unclear"
            } else {
                "not_possible"
            };
            count(&request.action, outcome);
            Ok(Outcome::Denied(denial))
        }
        Ok(SaveOutcome::Earlier(earlier)) => {
            replay(context, request.link_id, *earlier, &cause).await
        }
        Ok(SaveOutcome::KeyReused) => Ok(Outcome::KeyReused),
        Ok(SaveOutcome::Erased) => Ok(Outcome::Erased),
        Ok(SaveOutcome::NoSuchLink) => Ok(Outcome::NoSuchLink),
        Err(Error::Store(error)) => Err(error),
        Err(error) => Ok(Outcome::NotRead(error)),
    }
}

/// Saves an operation other than a refund, if the rules allow it.
///
/// The stored state may be out of date: the customer may have paid a moment ago. So before the rules deny an operation,
/// Dojo is read if possible. A capture of all that is left always needs Dojo's current amounts.
async fn save(
    context: &Context,
    new: &NewOperation<'_>,
    key: Option<&IdempotencyKey>,
) -> Result<SaveOutcome, Error> {
    let rules = |action: &mut Action, link: &PaymentLink, others: &OtherOperations| {
        permit(action, link, others, permit_context(context, None))
    };
    let mut needs_read = captures_the_rest(new.action);
    if needs_read && let Some(earlier) = earlier_request(context, key).await? {
        return Ok(earlier);
    }
    loop {
        if needs_read {
            read_back(context, new.link_id, new.cause).await?;
        }
        // If another copy of this request was saved during the read, this one is a repetition, and `save` returns that
        // one's outcome.
        let outcome = store::operations::save(&context.pool, new, key, rules).await?;
        let is_denied = matches!(outcome, SaveOutcome::Denied(Denial::NotPossible(_)));
        if needs_read || !is_denied {
            return Ok(outcome);
        }
        needs_read = true;
    }
}

/// How many times Dojo is read if its refund total doesn't show whether enough is left for a refund.
const READS_FOR_A_REFUND: usize = 2;

/// Saves a refund, if that much is left to refund at Dojo. Returns an error if Dojo can't be read.
///
/// Someone may have refunded in Dojo's portal a moment ago, and no webhook announces a partial refund. So Dojo is
/// always read first. Under the link's lock, the refund is then checked against Dojo's refund total. Only a total that
/// was read after this request arrived counts.
async fn save_refund(
    context: &Context,
    new: &NewOperation<'_>,
    key: Option<&IdempotencyKey>,
) -> Result<SaveOutcome, Error> {
    if let Some(earlier) = earlier_request(context, key).await? {
        return Ok(earlier);
    }
    let mut outcome = SaveOutcome::Denied(Denial::STALE);
    for _ in 0..READS_FOR_A_REFUND {
        // `permit` checks under the link's lock that the stored amounts come from a response that was requested since
        // then.
        let read = read_now(context, new.link_id, new.cause).await?;
        let read_since = read.map(|read| read.since);
        let rules = |action: &mut Action, link: &PaymentLink, others: &OtherOperations| {
            permit(action, link, others, permit_context(context, read_since))
        };
        outcome = store::operations::save(&context.pool, new, key, rules).await?;
        // A refund in progress may have ended by the second read.
        if !matches!(outcome, SaveOutcome::Denied(Denial::Unclear { .. })) {
            break;
        }
    }
    Ok(outcome)
}

fn permit_context(context: &Context, read_since: Option<OffsetDateTime>) -> PermitContext {
    PermitContext {
        now: OffsetDateTime::now_utc(),
        read_since,
        window: context.limits.window,
    }
}

/// Waits until the outcome of an operation is known, but not longer than `limit`. Holds no database connection meanwhile.
pub async fn await_outcome(
    context: &Context,
    key: Option<&IdempotencyKey>,
    link_id: PaymentLinkId,
    cause: &Cause,
    outcome: Outcome,
    limit: Duration,
) -> Result<Outcome, store::Error> {
    let Some(key) = key else { return Ok(outcome) };
    let mut latest = outcome;
    let deadline = Instant::now() + limit;
    let mut wait = Duration::from_millis(100);
    while matches!(latest, Outcome::Unknown { .. } | Outcome::Running { .. }) {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            break;
        }
        tokio::time::sleep(wait.min(left)).await;
        wait = (wait * 2).min(Duration::from_secs(1));
        match store::operations::earlier_request(&context.pool, key).await? {
            Some(SaveOutcome::Earlier(earlier)) => {
                latest = replay(context, link_id, *earlier, cause).await?;
            }
            // The key is free again: nothing was done.
            _ => break,
        }
    }
    Ok(latest)
}

async fn earlier_request(
    context: &Context,
    key: Option<&IdempotencyKey>,
) -> Result<Option<SaveOutcome>, store::Error> {
    match key {
        Some(key) => store::operations::earlier_request(&context.pool, key).await,
        None => Ok(None),
    }
}

/// Whether the action captures all that is left.
fn captures_the_rest(action: &Action) -> bool {
    matches!(action, Action::Capture(_)) && action.amount().is_none()
}

/// A read of a link for one request.
struct FreshRead {
    /// When it began, by the database's clock.
    since: OffsetDateTime,
    /// Whether the stored state comes from a response that was requested since then.
    is_accepted: bool,
}

/// Reconciles the link. `None` if it has no intent to read.
async fn read_now(
    context: &Context,
    link_id: PaymentLinkId,
    cause: &Cause,
) -> Result<Option<FreshRead>, Error> {
    const READS: usize = 3;
    let mut since = None;
    // If something else changes the link during the read, such as a webhook, the response may predate that change. Another
    // read reflects both.
    for read in 0..=READS {
        let Some(snapshot) = store::reconciliation::find(&context.pool, link_id).await? else {
            return Ok(None);
        };
        let since = *since.get_or_insert(snapshot.now);
        let accepted = Ok(Some(FreshRead {
            since,
            is_accepted: true,
        }));
        // The response to one of several concurrent requests may be stored first and make the others stale. It serves all of
        // them.
        let is_fresh = snapshot
            .refunds_read_at
            .is_some_and(|read_at| read_at >= since);
        if read > 0 && is_fresh {
            return accepted;
        }
        if read == READS {
            break;
        }
        let outcome = reconciliation::reconcile_for_caller(context, &snapshot, cause).await?;
        if outcome == reconciliation::Outcome::Accepted {
            return accepted;
        }
    }
    Ok(since.map(|since| FreshRead {
        since,
        is_accepted: false,
    }))
}

/// Reconciles the link. Returns `false` if Dojo can't be read, which is logged, or if its response is not accepted.
async fn read_back(
    context: &Context,
    link_id: PaymentLinkId,
    cause: &Cause,
) -> Result<bool, store::Error> {
    match read_now(context, link_id, cause).await {
        Ok(read) => Ok(read.is_some_and(|read| read.is_accepted)),
        Err(Error::Store(error)) => Err(error),
        Err(error) => {
            warn!(%link_id, error = %causes(&error), "the link could not be read back from Dojo");
            Ok(false)
        }
    }
}

/// The idempotency key that is sent to Dojo: a hash of the client's id and its `Idempotency-Key`.
///
/// It is derived from the `Idempotency-Key`, so that even a service whose database was restored from a backup doesn't
/// refund twice for one key. It includes the client's id, because two clients may choose the same key. It doesn't
/// depend on the client's API key, which may change. It has 64 characters; Dojo accepts up to 100.
fn dojo_key(key: &IdempotencyKey) -> String {
    let hash = Sha256::new()
        .chain_update(key.client_id.as_bytes())
        .chain_update(&key.key)
        .finalize();
    hex::encode(hash)
}

/// The outcome of an earlier request with the same key, and the link as it is now.
async fn replay(
    context: &Context,
    link_id: PaymentLinkId,
    earlier: EarlierRequest,
    cause: &Cause,
) -> Result<Outcome, store::Error> {
    let operation_id = earlier.operation_id;
    Ok(match (earlier.status, earlier.failure) {
        (OperationStatus::Succeeded, _) => {
            // Until the link has been read after the operation, it has the amounts from before it.
            let read_back = earlier.is_read_back
                || read_operation_back(context, operation_id, link_id, cause).await?;
            done(&context.pool, operation_id, link_id, read_back, true).await?
        }
        (OperationStatus::Failed, Some(failure)) => Outcome::Failed {
            operation_id,
            failure,
            retry_after: None,
            replayed: true,
        },
        (OperationStatus::Unconfirmed, _) => Outcome::Unconfirmed { operation_id },
        (OperationStatus::Pending | OperationStatus::Failed, _) => Outcome::Running {
            operation_id,
            progress: earlier.progress,
        },
    })
}

/// Reconciles the link after an operation on it, and stores that it was. Returns `false` if Dojo can't be read.
async fn read_operation_back(
    context: &Context,
    operation_id: OperationId,
    link_id: PaymentLinkId,
    cause: &Cause,
) -> Result<bool, store::Error> {
    let is_read_back = read_back(context, link_id, cause).await?;
    if is_read_back {
        store::operations::record_read_back(&context.pool, operation_id).await?;
    }
    Ok(is_read_back)
}

/// The outcome of an operation that Dojo performed.
async fn done(
    pool: &PgPool,
    operation_id: OperationId,
    link_id: PaymentLinkId,
    read_back: bool,
    replayed: bool,
) -> Result<Outcome, store::Error> {
    let operation = store::operations::find(pool, operation_id).await?;
    let link = store::links::find(pool, link_id).await?;
    let (Some(operation), Some(link)) = (operation, link) else {
        return Ok(Outcome::NoSuchLink);
    };
    Ok(Outcome::Done {
        operation: Box::new(operation),
        link: Box::new(link),
        read_back,
        replayed,
    })
}

/// The call to Dojo for an operation that is saved.
struct SavedCall<'a> {
    context: &'a Context,
    new: &'a NewOperation<'a>,
    saved: SavedOperation,
    request_id: &'a str,
}

impl SavedCall<'_> {
    /// Calls Dojo and stores the outcome.
    ///
    /// From here on the operation may have been performed, so this returns no errors: an outcome that can't be stored is
    /// *unknown*, the operation stays pending, and recovery determines the outcome.
    async fn perform(self) -> Outcome {
        let operation_id = self.new.id;
        let outcome = match self.prepare().await {
            Ok(()) => {
                let operate = Operate {
                    link_id: self.new.link_id,
                    payment_intent_id: &self.saved.payment_intent_id,
                    action: &self.saved.action,
                    idempotency_key: self.new.dojo_key,
                    request_id: self.request_id,
                    send_by: SendBy::within(self.saved.lease.left()),
                };
                match self.context.account.client.operate(operate).await {
                    Ok(dojo_id) => self.responded(dojo_id.as_deref()).await,
                    Err(error) => self.not_confirmed(error).await,
                }
            }
            Err(Error::Dojo(error)) => self.not_sent(error).await,
            Err(Error::Store(error)) => Err(error),
            Err(_) => Ok(Outcome::Unknown { operation_id }),
        };
        outcome.unwrap_or_else(|error| {
            error!(%operation_id, error = %causes(&error), "the outcome of an operation could not be stored");
            count(&self.saved.action, "unknown");
            Outcome::Unknown { operation_id }
        })
    }

    /// Checks that Dojo may still be called. For a capture, stores which captures Dojo already has, so that this one can be
    /// distinguished from them if the response is lost.
    async fn prepare(&self) -> Result<(), Error> {
        let before = match self.saved.action {
            Action::Capture(_) => Some(self.captures_at_dojo().await?),
            _ => None,
        };
        let (pool, lease) = (&self.context.pool, self.saved.lease);
        if store::operations::prepare_call(pool, self.new.id, lease, before.as_deref()).await? {
            Ok(())
        } else {
            Err(Error::TimedOut)
        }
    }

    /// The ids of the captures that Dojo has for the intent.
    async fn captures_at_dojo(&self) -> Result<Vec<String>, dojo::Error> {
        let client = &self.context.account.client;
        let intent = client
            .payment_intent(&self.saved.payment_intent_id, Some(self.new.link_id))
            .await?;
        let captures = intent
            .and_then(|intent| intent.captures)
            .unwrap_or_default();
        Ok(captures
            .into_iter()
            .filter_map(|capture| capture.id)
            .collect())
    }

    async fn responded(&self, dojo_id: Option<&str>) -> Result<Outcome, store::Error> {
        let (pool, id) = (&self.context.pool, self.new.id);
        if let Some(dojo_id) = dojo_id
            && store::operations::is_of_another(pool, id, self.new.link_id, dojo_id).await?
        {
            return self
                .not_confirmed(dojo::Error::about_another(dojo_id))
                .await;
        }
        self.succeeded(dojo_id).await
    }

    async fn succeeded(&self, dojo_id: Option<&str>) -> Result<Outcome, store::Error> {
        let pool = &self.context.pool;
        let NewOperation {
            id: operation_id,
            link_id,
            cause,
            ..
        } = *self.new;
        let operation = self.saved.action.kind().as_str();
        // Logged before it is stored: if storing fails, the log is the only record.
        info!(%link_id, %operation_id, operation, dojo_id, "Dojo performed an operation");
        (|| store::operations::succeed(pool, operation_id, dojo_id, cause))
            .retry(through_an_outage(3))
            .when(store::Error::is_outage)
            .await?;
        count(&self.saved.action, "succeeded");
        let read_back = read_operation_back(self.context, operation_id, link_id, cause).await?;
        done(pool, operation_id, link_id, read_back, false).await
    }

    /// Stores that Dojo rejected the operation, or that its response was lost.
    async fn not_confirmed(&self, error: dojo::Error) -> Result<Outcome, store::Error> {
        let operation_id = self.new.id;
        let action = &self.saved.action;
        // A refund has an idempotency key at Dojo, so a 409 may be about its own first attempt.
        let on_409 = if action.is_refund() {
            On409::Unknown
        } else {
            On409::NotDone
        };
        if let Some(failure) = error.proves_nothing_was_changed(on_409) {
            return self.failed(&error, failure).await;
        }
        let operation = action.kind().as_str();
        warn!(%operation_id, operation, error = %causes(&error), "Dojo's response to an operation was lost");
        count(action, "unknown");
        let (pool, lease) = (&self.context.pool, self.saved.lease);
        let reason = error.to_string();
        store::operations::lose_response(pool, operation_id, lease, &reason, self.new.cause)
            .await?;
        Ok(Outcome::Unknown { operation_id })
    }

    /// Stores that the operation was not sent, because Dojo could not be read first.
    async fn not_sent(&self, error: dojo::Error) -> Result<Outcome, store::Error> {
        let failure = error
            .proves_nothing_was_changed(On409::NotDone)
            .unwrap_or_else(|| Failure {
                reason: FailureKind::NotReached,
                status: None,
                detail: "Dojo could not be read, so the operation was not sent".to_owned(),
                errors: Vec::new(),
            });
        self.failed(&error, failure).await
    }

    async fn failed(&self, error: &dojo::Error, failure: Failure) -> Result<Outcome, store::Error> {
        let operation_id = self.new.id;
        let action = &self.saved.action;
        let operation = action.kind().as_str();
        // Only a rejection of the request itself would recur on a retry.
        let retry = match failure.reason {
            FailureKind::Rejected => {
                info!(%operation_id, operation, status = failure.status, "Dojo rejected an operation");
                Retry::Final
            }
            FailureKind::KeyRejected | FailureKind::Misrouted => {
                error!(
                    %operation_id, operation, error = %causes(error),
                    "operations will fail until the account's API key and DOJO_API_URL are correct"
                );
                Retry::Allowed
            }
            _ => {
                warn!(%operation_id, operation, error = %causes(error), "Dojo could not be reached for an operation");
                Retry::Allowed
            }
        };
        count(action, error.name());
        let failed = OperationFailure {
            id: operation_id,
            lease: self.saved.lease,
            failure: &failure,
            retry,
            check_again: None,
            cause: self.new.cause,
        };
        if !store::operations::fail(&self.context.pool, failed).await? {
            // This call took so long that its lease expired. Recovery determines the outcome.
            return Ok(Outcome::Unknown { operation_id });
        }
        Ok(Outcome::Failed {
            operation_id,
            failure,
            retry_after: error.retry_after(),
            replayed: false,
        })
    }
}

pub(super) fn count(action: &Action, outcome: &'static str) {
    metrics::counter!("operations_total", "operation" => action.kind().as_str(), "outcome" => outcome)
        .increment(1);
}
