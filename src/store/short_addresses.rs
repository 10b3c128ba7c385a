//! Short addresses: the link that one leads to.

use super::{
    Error, PgPool,
    links::{Row, select_links},
};
use crate::payment_link::{PaymentLink, ShortCode};

/// The link that the address with this code leads to.
pub async fn find(pool: &PgPool, code: &ShortCode) -> Result<Option<PaymentLink>, Error> {
    select_links!(
        "WHERE id = (SELECT payment_link_id FROM short_addresses WHERE code = $1)",
        code.as_str()
    )
    .fetch_optional(pool)
    .await?
    .map(Row::into_link)
    .transpose()
}
