//! What the jobs of an account share.

use std::{sync::Arc, time::Duration};

use tokio_util::sync::CancellationToken;

use super::{progress::Progress, throttle::Throttle};
use crate::{
    config::JobSettings,
    dojo,
    mail::Mailer,
    payment_link::{PaymentLinkId, movement::BusinessDays},
    protocol::{self, Context},
    store::{self, leases::Lease},
};

/// The jobs of one account, and what they share.
#[derive(Clone)]
pub struct Jobs {
    pub(super) context: Context,
    pub(super) settings: JobSettings,
    pub(super) throttle: Arc<Throttle>,
    /// `None` if no emails can be sent. Messages then wait, and fail after a day.
    pub(super) mailer: Option<Arc<Mailer>>,
    /// `None` if the books aren't compared with Dojo's transactions.
    pub(super) business_days: Option<BusinessDays>,
    pub(super) stop: CancellationToken,
}

impl Jobs {
    /// The jobs for this account. Each account has a throttle of its own, so that an account whose key Dojo rejects doesn't
    /// hold up the others.
    #[must_use]
    pub fn new(
        context: Context,
        settings: JobSettings,
        mailer: Option<Arc<Mailer>>,
        business_days: Option<BusinessDays>,
        stop: CancellationToken,
    ) -> Self {
        Self {
            throttle: Arc::new(Throttle::new(
                settings.background_rate,
                settings.max_retry_after,
            )),
            context,
            settings,
            mailer,
            business_days,
            stop,
        }
    }

    /// How long sending an email can take.
    pub(super) fn mail_time(&self) -> Duration {
        let mailer = self.mailer.as_ref();
        mailer.map_or(Duration::ZERO, |mailer| mailer.time_limit())
    }

    pub(super) fn progress(&self, job: &'static str) -> Arc<Progress> {
        Arc::new(Progress::new(&self.context.account.name, job))
    }

    /// Waits until the throttle allows another call, and shows that the job is alive.
    pub(super) async fn ready(&self, progress: &Progress) {
        self.throttle.ready().await;
        progress.mark();
    }

    /// Renews the lease on a claimed link unless it lasts for the work on one item. `None`: the link was released meanwhile,
    /// or is leased to another replica.
    pub(super) async fn renewed(
        &self,
        id: PaymentLinkId,
        lease: Lease,
    ) -> Result<Option<Lease>, store::Error> {
        if lease.is_fresh() {
            return Ok(Some(lease));
        }
        let (lease, renewed) = store::leases::renew(&self.context.pool, &lease, &[id]).await?;
        Ok(renewed.contains(&id).then_some(lease))
    }

    /// Works on an item for no longer than its lease lasts: after that, another replica may work on it.
    ///
    /// If Dojo rejects the work, this finds out whether that concerns the item or the account's key, by trying whether Dojo
    /// accepts the key for another call.
    pub(super) async fn within_lease<T>(
        &self,
        lease: Duration,
        work: impl Future<Output = Result<T, protocol::Error>> + Send,
    ) -> Result<(), protocol::Error> {
        let result = tokio::time::timeout(lease, Box::pin(work)).await;
        match result.unwrap_or(Err(protocol::Error::TimedOut)) {
            Ok(_) => Ok(()),
            Err(protocol::Error::Dojo(error @ dojo::Error::Rejected { .. })) => {
                Err(protocol::Error::Rejected(error))
            }
            // This says nothing about Dojo.
            Err(protocol::Error::Dojo(dojo::Error::TooLate)) => Err(protocol::Error::TimedOut),
            Err(protocol::Error::Dojo(error @ dojo::Error::KeyRejected { .. })) => {
                Err(self.attribute(error).await)
            }
            Err(error) => Err(error),
        }
    }

    /// Finds out whether a failure concerns one item or the whole account, by a call that succeeds if the account works.
    pub(super) async fn attribute(&self, error: dojo::Error) -> protocol::Error {
        self.throttle.ready().await;
        match self.context.account.client.probe().await {
            Ok(_) => protocol::Error::Rejected(error),
            Err(_) => protocol::Error::Dojo(error),
        }
    }
}
