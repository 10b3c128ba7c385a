//! The page at `/docs/problems`: every problem type under its own anchor, with what to do about it.

use askama::Template;
use serde_json::Value;

use super::{
    sample,
    schema::{Schemas, plain},
    text::{Html, block},
};
use crate::api::{
    examples,
    problem_type::{INTRODUCTION, ProblemType},
};

#[derive(Template)]
#[template(path = "docs/problems.html")]
pub(super) struct Page {
    title: String,
    introduction: Html,
    types: Vec<Type>,
}

struct Type {
    slug: &'static str,
    statuses: String,
    advice: Html,
    examples: Vec<String>,
}

impl Page {
    pub(super) fn new(document: &Value) -> Self {
        let schemas = Schemas::of(document);
        let schema = &document["components"]["schemas"]["Problem"];
        Self {
            title: plain(&document["info"]["title"]),
            introduction: block(INTRODUCTION, 1),
            types: ProblemType::ALL
                .iter()
                .map(|kind| Type {
                    slug: kind.slug(),
                    statuses: kind.statuses_text(),
                    advice: block(kind.advice(), 2),
                    examples: examples::problems(*kind)
                        .iter()
                        .map(|problem| sample::json(schemas, problem, schema))
                        .collect(),
                })
                .collect(),
        }
    }
}
