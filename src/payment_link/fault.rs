use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// One thing that is wrong with a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Fault {
    /// A JSON pointer (RFC 6901) into the body, or the name of a query parameter or header.
    #[schema(example = "/amount/value")]
    pub pointer: String,
    /// What is wrong.
    #[schema(example = "must be at least 1")]
    pub detail: String,
}

impl Fault {
    #[must_use]
    pub fn new(pointer: impl Into<String>, detail: impl Into<String>) -> Self {
        Self {
            pointer: pointer.into(),
            detail: detail.into(),
        }
    }

    /// The JSON pointer to the member `name` of the value at `pointer` (RFC 6901, section 3).
    #[must_use]
    pub fn below(pointer: &str, name: &str) -> String {
        format!("{pointer}/{}", name.replace('~', "~0").replace('/', "~1"))
    }
}
