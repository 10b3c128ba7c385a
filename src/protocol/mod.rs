//! The dealings between our database and Dojo, exactly once: the only code that makes Dojo do something
//! with money. The API and the background jobs both go through here, under the same rules.

pub mod creation;
