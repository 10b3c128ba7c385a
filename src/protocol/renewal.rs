//! Renewing a link: making sure that nobody can pay the old one.

use super::{Context, Error, reconciliation::refresh_and_search};
use crate::{
    payment_link::{NotRenewable, PaymentLink, PaymentLinkId, timeline::Cause},
    store::{self, orphaned_intents::Surplus},
};

/// Reads a link from Dojo, and checks that nobody can pay it any more: neither its intent nor a surplus one. Returns the link
/// as Dojo then has it, and `None` if there is no such link.
pub async fn retire(
    context: &Context,
    id: PaymentLinkId,
    cause: &Cause,
) -> Result<Option<Result<PaymentLink, NotRenewable>>, Error> {
    let Some((link, searched)) = refresh_and_search(context, id, cause).await? else {
        return Ok(None);
    };
    if let Err(why) = link.check_renewable() {
        return Ok(Some(Err(why)));
    }
    let surplus = store::orphaned_intents::surplus(&context.pool, id).await?;
    Ok(Some(match surplus {
        Surplus::Paid => Err(NotRenewable::Paid),
        Surplus::None if searched => Ok(link),
        Surplus::Open | Surplus::None => Err(NotRenewable::NotConfirmed),
    }))
}
