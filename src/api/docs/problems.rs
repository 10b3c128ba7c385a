//! The page at `/docs/problems`: every type of problem under its own anchor, with what to do about it.

use askama::Template;
use serde_json::Value;

use super::{
    sample,
    schema::{Schemas, plain},
    text::{Html, block},
};
use crate::api::{examples, problem};

#[derive(Template)]
#[template(path = "docs/problems.html")]
pub(super) struct Page {
    title: String,
    introduction: Html,
    types: Vec<Type>,
}

struct Type {
    slug: &'static str,
    statuses: &'static str,
    what_to_do: Html,
    examples: Vec<String>,
}

impl Page {
    pub(super) fn new(document: &Value) -> Self {
        let schemas = Schemas::of(document);
        let schema = &document["components"]["schemas"]["Problem"];
        Self {
            title: plain(&document["info"]["title"]),
            introduction: block(problem::INTRODUCTION, 1),
            types: problem::KINDS
                .iter()
                .map(|&(slug, statuses, what_to_do)| Type {
                    slug,
                    statuses,
                    what_to_do: block(what_to_do, 2),
                    examples: examples::problems(slug)
                        .iter()
                        .map(|problem| sample::json(schemas, problem, schema))
                        .collect(),
                })
                .collect(),
        }
    }
}
