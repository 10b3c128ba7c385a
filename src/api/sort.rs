//! The orders of a list of links.

use utoipa::ToSchema;

/// The order of a list of links.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ToSchema)]
pub(super) enum Sort {
    #[schema(rename = "-createdAt")]
    Newest,
    #[schema(rename = "updatedAt")]
    Updated,
}
