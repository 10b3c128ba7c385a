use time::OffsetDateTime;

use super::{PaymentLink, Status};

/// Why a customer can't pay a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unpayable {
    /// Dojo hasn't confirmed the link yet.
    Pending,
    /// The link was never created at Dojo.
    Failed,
    /// It was paid. The payment may have been refunded since.
    Paid,
    /// It was canceled, or the payment was reversed.
    Withdrawn,
    /// Nobody paid it in time.
    Expired,
}

impl Unpayable {
    /// Why a link can't be paid, for people to read.
    #[must_use]
    pub fn reason(self) -> &'static str {
        match self {
            Self::Pending => "Dojo has not confirmed it yet",
            Self::Failed => "it was not created",
            Self::Paid => "it has been paid",
            Self::Withdrawn => "it was canceled",
            Self::Expired => "it has expired",
        }
    }
}

impl PaymentLink {
    /// Why a customer can't pay the link now, as far as this service knows. `None` if it can be paid.
    #[must_use]
    pub fn unpayable(&self, now: OffsetDateTime) -> Option<Unpayable> {
        let is_late = self.expire_at.is_some_and(|expire_at| expire_at <= now);
        match self.status {
            Status::Created => is_late.then_some(Unpayable::Expired),
            Status::Pending => Some(Unpayable::Pending),
            Status::Failed => Some(Unpayable::Failed),
            Status::Authorized | Status::Captured | Status::Refunded => Some(Unpayable::Paid),
            // Dojo cancels what nobody has paid in time.
            Status::Canceled if is_late => Some(Unpayable::Expired),
            Status::Reversed | Status::Canceled => Some(Unpayable::Withdrawn),
        }
    }
}
