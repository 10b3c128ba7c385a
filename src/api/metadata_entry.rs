//! The filter of a list by metadata.

use utoipa::ToSchema;

/// An entry of a link's metadata: its key, a colon, and its value. The key itself contains no colon.
#[derive(ToSchema)]
#[schema(pattern = "^[^:]*:", example = "order:236")]
#[expect(dead_code, reason = "describes what `Query::entries` reads")]
pub(super) struct MetadataEntry(String);
