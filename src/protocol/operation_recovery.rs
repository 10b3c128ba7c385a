//! Operation recovery: finds out what became of operations whose response was lost, and repeats those that may be repeated.

use std::time::Duration;

use tracing::{error, info, warn};

use super::{Context, Error, operations::count};
use crate::{
    dojo::{self, On409, Operate, PaymentIntent, SendBy},
    payment_link::{
        Capture, Failure, FailureKind, OperationId,
        operation::{
            Action,
            recovery::{IntentView, Step, after_rejection, next_step, pause_before_repetition},
        },
        timeline::Cause,
    },
    store::{
        self, PgPool, creation::Retry, leases::Lease, operation_recovery::ClaimedOperation,
        operations::OperationFailure,
    },
};

const CAUSE: Cause = Cause::Recovery;

/// Takes the next step for a claimed operation.
pub async fn recover(context: &Context, operation: &ClaimedOperation) -> Result<(), Error> {
    let (limits, window) = (context.limits, context.limits.window);
    let lease = operation.lease;
    let step = match read_intent(context, operation).await? {
        Some(intent) => next_step(operation.lost(), view(&intent), limits),
        None if operation.age() < limits.give_up => Step::Wait,
        None => Step::Unconfirmed,
    };
    if operation.has_failed {
        return check_failed(context, operation, step).await;
    }
    match step {
        Step::Succeeded(dojo_id) => succeed(context, operation, dojo_id.as_deref()).await,
        Step::Wait => release(context, operation, Some(window.recheck_interval())).await,
        Step::Repeat => repeat(context, operation).await,
        Step::Failed(reason) => {
            // A capture may appear late. All other operations show in the intent's state.
            let check_again =
                matches!(operation.action, Action::Capture(_)).then_some(window.late_interval());
            let failure = not_performed(reason);
            fail(
                context,
                operation,
                lease,
                &failure,
                Retry::Final,
                check_again,
            )
            .await
        }
        Step::NeverSent => {
            let failure = not_performed("it was never sent to Dojo");
            fail(context, operation, lease, &failure, Retry::Allowed, None).await
        }
        Step::Unconfirmed => give_up(context, operation, lease).await,
    }
}

/// Checks an operation that was recorded as failed: a request that was on its way for very long may have been performed after
/// all.
async fn check_failed(
    context: &Context,
    operation: &ClaimedOperation,
    step: Step,
) -> Result<(), Error> {
    if let Step::Succeeded(dojo_id) = step {
        let (pool, id) = (&context.pool, operation.id);
        if store::operations::succeed(pool, id, dojo_id.as_deref(), &CAUSE).await? {
            error!(operation_id = %id, "an operation that was recorded as failed was performed after all");
            count(&operation.action, "found");
            return Ok(());
        }
    }
    let since_sent = operation.lost().since_sent;
    release(
        context,
        operation,
        context.limits.window.late_check(since_sent),
    )
    .await
}

/// Sends an operation to Dojo again that may be performed twice.
///
/// [`recover`] read Dojo a moment ago, and the client sends a refund only once, so a portal refund can't go unnoticed for
/// longer than that.
async fn repeat(context: &Context, operation: &ClaimedOperation) -> Result<(), Error> {
    let (pool, client) = (&context.pool, &context.account.client);
    // Longer than the call can take, so that nobody else works on the operation meanwhile.
    let new_lease = client.operation_lease();
    let lease =
        store::operation_recovery::begin_repetition(pool, operation.id, operation.lease, new_lease);
    let Some(lease) = lease.await? else {
        return Ok(());
    };
    let request_id = format!("recovery-{}", operation.id);
    let operate = Operate {
        link_id: operation.link_id,
        payment_intent_id: &operation.payment_intent_id,
        action: &operation.action,
        idempotency_key: operation.dojo_key.as_deref(),
        request_id: &request_id,
        send_by: SendBy::within(lease.left()),
    };
    let error = match client.operate(operate).await {
        Ok(dojo_id) => return succeed(context, operation, dojo_id.as_deref()).await,
        Err(error) => error,
    };
    let wait = pause_before_repetition(operation.age());
    match error.proves_nothing_was_changed(On409::NotDone) {
        None => {
            store::operation_recovery::lose_response_again(pool, operation.id, lease, wait).await?;
            Err(error.into())
        }
        Some(failure) if failure.reason == FailureKind::Rejected => {
            rejected(context, operation, lease, &failure).await
        }
        Some(_) => {
            store::operation_recovery::undo_repetition(pool, operation, lease, wait).await?;
            Err(error.into())
        }
    }
}

/// Decides about an operation whose repetition Dojo rejected. The repetition did nothing, as if it had not been sent.
async fn rejected(
    context: &Context,
    operation: &ClaimedOperation,
    lease: Lease,
    failure: &Failure,
) -> Result<(), Error> {
    let read = read_intent(context, operation).await;
    let step = match &read {
        Ok(Some(intent)) => after_rejection(operation.lost(), view(intent), context.limits),
        Ok(None) | Err(_) => Step::Wait,
    };
    match step {
        Step::Succeeded(dojo_id) => succeed(context, operation, dojo_id.as_deref()).await,
        Step::Unconfirmed => give_up(context, operation, lease).await,
        // The conflict may be with an earlier attempt of the same refund that Dojo hasn't finished.
        Step::Failed(_) if operation.action.is_refund() && failure.status == Some(409) => {
            give_up(context, operation, lease).await
        }
        Step::Failed(_) => fail(context, operation, lease, failure, Retry::Final, None).await,
        Step::Wait | Step::Repeat | Step::NeverSent => {
            let wait = pause_before_repetition(operation.age());
            store::operation_recovery::undo_repetition(&context.pool, operation, lease, wait)
                .await?;
            Ok(read.map(drop)?)
        }
    }
}

/// Reads the operation's intent. `None`, which is logged: Dojo doesn't know it.
async fn read_intent(
    context: &Context,
    operation: &ClaimedOperation,
) -> Result<Option<PaymentIntent>, dojo::Error> {
    let client = &context.account.client;
    let intent = client
        .payment_intent(&operation.payment_intent_id, Some(operation.link_id))
        .await?;
    if intent.is_none() {
        error!(
            operation_id = %operation.id, payment_intent_id = operation.payment_intent_id,
            "Dojo does not know the intent of an operation; does the API key belong to another account?"
        );
    }
    Ok(intent)
}

fn view(intent: &PaymentIntent) -> IntentView<'_> {
    let status = intent.known_status();
    IntentView {
        status,
        amount: intent.amount.as_ref().map(|amount| amount.value),
        tips_amount: intent.tips_amount.as_ref().map(|tips| tips.value),
        captured_amount: status
            .zip(intent.total_amount.as_ref())
            .map(|(status, total)| {
                let captures = intent.captures.as_deref().unwrap_or_default();
                Capture::collected(captures, status, total.value)
            }),
        refunded_amount: intent.refunded_amount,
        captures: intent.captures.as_deref(),
    }
}

async fn succeed(
    context: &Context,
    operation: &ClaimedOperation,
    dojo_id: Option<&str>,
) -> Result<(), Error> {
    let (id, action) = (operation.id, &operation.action);
    info!(operation_id = %id, operation = action.kind().as_str(), "Dojo performed an operation whose response was lost");
    count(action, "found");
    store::operations::succeed(&context.pool, id, dojo_id, &CAUSE).await?;
    Ok(())
}

async fn fail(
    context: &Context,
    operation: &ClaimedOperation,
    lease: Lease,
    failure: &Failure,
    retry: Retry,
    check_again: Option<Duration>,
) -> Result<(), Error> {
    let (id, action) = (operation.id, &operation.action);
    // Dojo's own text is stored, but not logged: it may repeat what a caller wrote about a customer.
    warn!(
        operation_id = %id, operation = action.kind().as_str(), reason = ?failure.reason, status = failure.status,
        "an operation whose response was lost was not performed"
    );
    count(action, "given_up");
    let failed = OperationFailure {
        id,
        lease,
        failure,
        retry,
        check_again,
        cause: &CAUSE,
    };
    store::operations::fail(&context.pool, failed).await?;
    Ok(())
}

async fn give_up(
    context: &Context,
    operation: &ClaimedOperation,
    lease: Lease,
) -> Result<(), Error> {
    let (id, action) = (operation.id, &operation.action);
    error!(
        operation_id = %id, link_id = %operation.link_id, operation = action.kind().as_str(),
        "the outcome of an operation cannot be determined: check the payment in Dojo's portal"
    );
    count(action, "unconfirmed");
    store::operation_recovery::give_up(&context.pool, id, lease, &CAUSE).await?;
    Ok(())
}

async fn release(
    context: &Context,
    operation: &ClaimedOperation,
    wait: Option<Duration>,
) -> Result<(), Error> {
    let (id, lease) = (operation.id, operation.lease);
    Ok(store::operation_recovery::release(&context.pool, id, lease, wait).await?)
}

/// What a person found out about an `Unconfirmed` operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finding {
    Performed,
    NotPerformed,
}

/// Settles an `Unconfirmed` operation after a person checked the payment in Dojo's portal. `cause` says who. Returns `false` if
/// the operation isn't `Unconfirmed`.
pub async fn settle(
    pool: &PgPool,
    id: OperationId,
    finding: Finding,
    cause: &Cause,
) -> Result<bool, store::Error> {
    let unconfirmed = store::operation_recovery::unconfirmed(pool).await?;
    if !unconfirmed.iter().any(|operation| operation.id == id) {
        return Ok(false);
    }
    match finding {
        Finding::Performed => store::operations::succeed(pool, id, None, cause).await,
        Finding::NotPerformed => {
            let failure = not_performed("a person checked the payment, and it was not performed");
            store::operation_recovery::fail_unconfirmed(pool, id, &failure, cause).await
        }
    }
}

fn not_performed(reason: &str) -> Failure {
    Failure {
        reason: FailureKind::NotDone,
        status: None,
        detail: reason.to_owned(),
        errors: Vec::new(),
    }
}
