//! Renders Markdown, the format of descriptions in an OpenAPI document, as HTML.

use std::fmt;

use pulldown_cmark::{BrokenLink, CowStr, Event, HeadingLevel, Options, Parser, Tag, TagEnd, html};

/// The style of every page. It's embedded in each page, so that a page is a single file.
pub(super) const STYLE: &str = include_str!("../../../templates/docs/style.css");

/// Text that is HTML already.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Html(pub(super) String);

impl fmt::Display for Html {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Templates don't escape it.
impl askama::filters::HtmlSafe for Html {}

impl Html {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Renders paragraphs, lists and tables. Headings become subheadings of a heading of level `below`.
pub(super) fn block(markdown: &str, below: u8) -> Html {
    render(markdown, |event| {
        Some(match event {
            Event::Start(Tag::Heading { level, .. }) => Event::Start(Tag::Heading {
                level: lower(level, below),
                id: None,
                classes: Vec::new(),
                attrs: Vec::new(),
            }),
            Event::End(TagEnd::Heading(level)) => Event::End(TagEnd::Heading(lower(level, below))),
            event => event,
        })
    })
}

/// Renders text within a line, without a paragraph around it.
pub(super) fn inline(markdown: &str) -> Html {
    render(markdown, |event| {
        let is_frame = matches!(
            event,
            Event::Start(Tag::Paragraph) | Event::End(TagEnd::Paragraph)
        );
        (!is_frame).then_some(event)
    })
}

/// Escapes text for HTML.
pub(super) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            other => escaped.push(other),
        }
    }
    escaped
}

/// The anchor of a text: its words in lower case, joined by hyphens.
pub(super) fn anchor(text: &str) -> String {
    let words: Vec<_> = text
        .split(|character: char| !character.is_ascii_alphanumeric())
        .filter(|word| !word.is_empty())
        .map(str::to_ascii_lowercase)
        .collect();
    words.join("-")
}

pub(super) fn schema_anchor(name: &str) -> String {
    format!("schema-{name}")
}

fn render(markdown: &str, arrange: impl for<'a> Fn(Event<'a>) -> Option<Event<'a>>) -> Html {
    // Descriptions come from doc comments, which link to types as [`Type`].
    let to_schema = |link: BrokenLink<'_>| {
        let name = link.reference.trim_matches('`').to_owned();
        let is_name = name.chars().all(char::is_alphanumeric);
        is_name.then(|| {
            let target = format!("#{}", schema_anchor(&name));
            (CowStr::from(target), CowStr::from(""))
        })
    };
    let events =
        Parser::new_with_broken_link_callback(markdown, Options::ENABLE_TABLES, Some(to_schema));
    // `<id>` in a description is text, not a tag.
    let events = events.map(|event| match event {
        Event::Html(text) | Event::InlineHtml(text) => Event::Text(text),
        event => event,
    });
    let mut out = String::new();
    html::push_html(&mut out, events.filter_map(arrange));
    Html(out.trim_end().to_owned())
}

fn lower(level: HeadingLevel, by: u8) -> HeadingLevel {
    let level = usize::from(by) + level as usize;
    HeadingLevel::try_from(level).unwrap_or(HeadingLevel::H6)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markdown_is_rendered_as_html() {
        for (markdown, html) in [
            ("`a` *b*", "<p><code>a</code> <em>b</em></p>"),
            ("one\n\ntwo", "<p>one</p>\n<p>two</p>"),
            ("# a", "<h3>a</h3>"),
            ("##### a", "<h6>a</h6>"),
            ("not <b>bold</b>", "<p>not &lt;b&gt;bold&lt;/b&gt;</p>"),
            (
                "<script>alert(1)</script>",
                "&lt;script&gt;alert(1)&lt;/script&gt;",
            ),
            (
                "an [`Action`]",
                "<p>an <a href=\"#schema-Action\"><code>Action</code></a></p>",
            ),
            ("[not a name]", "<p>[not a name]</p>"),
        ] {
            assert_eq!(block(markdown, 2).0, html);
        }
        let table = block("| a | b |\n| --- | --- |\n| `c` | d |", 2).0;
        assert!(table.contains("<td><code>c</code></td>"), "{table}");
        assert_eq!(inline("a `b`").0, "a <code>b</code>");
    }

    #[test]
    fn anchors_consist_of_words() {
        assert_eq!(
            anchor("POST /v1/payment-links/{id}"),
            "post-v1-payment-links-id"
        );
        assert_eq!(anchor("For callers"), "for-callers");
    }
}
