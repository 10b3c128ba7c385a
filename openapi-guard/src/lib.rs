//! For tests: checks calls to Dojo's API, and their responses, against Dojo's OpenAPI document.
//!
//! The document belongs to Dojo and isn't part of this repository. The environment variable `DOJO_OPENAPI` names a copy
//! of it. Without one, a [`Guard`] checks nothing.
//!
//! | module | contains |
//! | --- | --- |
//! | `guard` | collects violations during a test, and fails the test at its end |
//! | `document` | the validator: what in a request or a response violates the document |
//! | `schema` | OpenAPI 3.0 schemas as JSON Schema |
//! | `exceptions` | where Dojo's API, or the sandbox, is known to differ from the document |

mod document;
mod exceptions;
mod guard;
mod schema;

pub use document::Document;
pub use guard::Guard;
