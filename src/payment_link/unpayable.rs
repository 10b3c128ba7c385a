use time::OffsetDateTime;

use super::{PaymentLink, Status};

/// Why a customer can't pay a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unpayable {
    /// Dojo hasn't confirmed the link yet.
    Pending,
    /// The link was never created at Dojo.
    Failed,
    /// Something has happened to it, and Dojo hasn't confirmed yet what.
    Unconfirmed,
    /// The payment is authorized, and not captured yet.
    Authorized,
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
            Self::Unconfirmed => "Dojo has not confirmed yet what has become of it",
            Self::Authorized => "its payment has been authorized",
            Self::Paid => "it has been paid",
            Self::Withdrawn => "it was canceled",
            Self::Expired => "it has expired",
        }
    }

    /// Whether that may still turn out differently.
    #[must_use]
    pub fn may_pass(self) -> bool {
        matches!(self, Self::Pending | Self::Unconfirmed)
    }
}

impl PaymentLink {
    /// The address to give to the customer: the short one, if the link has one. `None` for a link that was never created, and for
    /// one that was renewed, whose successor has the address now.
    #[must_use]
    pub fn customer_url(&self) -> Option<&str> {
        let address = self.short_url.as_deref().or(self.url.as_deref());
        address.filter(|_| self.url.is_some() && self.replaced_by.is_none())
    }

    /// Why a customer can't pay the link now. `None` if it can be paid.
    ///
    /// Whatever only a webhook or the clock of this service says is unconfirmed: somebody may have paid the link in the last
    /// moment.
    #[must_use]
    pub fn unpayable(&self, now: OffsetDateTime) -> Option<Unpayable> {
        let is_late = self.expire_at.is_some_and(|expire_at| expire_at <= now);
        match self.status {
            Status::Pending => Some(Unpayable::Pending),
            Status::Failed => Some(Unpayable::Failed),
            Status::Created => is_late.then_some(Unpayable::Unconfirmed),
            _ if !self.confirmed => Some(Unpayable::Unconfirmed),
            Status::Authorized => Some(Unpayable::Authorized),
            Status::Captured | Status::Refunded => Some(Unpayable::Paid),
            // Dojo cancels what nobody has paid in time.
            Status::Canceled if is_late => Some(Unpayable::Expired),
            Status::Reversed | Status::Canceled => Some(Unpayable::Withdrawn),
        }
    }
}
