//! The templates of emails: those that are built in, or an operator's own.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::Path,
};

use minijinja::{Environment, UndefinedBehavior, value::Serde};
use serde::Serialize;
use time::OffsetDateTime;

use crate::{config::ConfigError, payment_link::message::DEFAULT_LOCALE};

const SETTING: &str = "MAIL_TEMPLATES";

/// The files of each language.
const SUBJECT: &str = "subject.txt";
const TEXT: &str = "body.txt";
const HTML: &str = "body.html";
const FILES: [&str; 3] = [SUBJECT, TEXT, HTML];

/// Longer files than this are no templates of emails.
const LONGEST: u64 = 256 * 1024;

/// What a template can use.
#[derive(Clone, Serialize)]
pub(super) struct Context<'a> {
    /// The merchant's name.
    pub(super) merchant: Option<&'a str>,
    /// Whom customers can ask.
    pub(super) contact: Option<&'a str>,
    /// What the customer is to pay, such as `£24.50`.
    pub(super) amount: String,
    pub(super) reference: &'a str,
    pub(super) description: Option<&'a str>,
    /// The caller's text.
    pub(super) note: Option<&'a str>,
    /// Where the customer pays.
    pub(super) url: &'a str,
    /// Whether it is a reminder.
    pub(super) reminder: bool,
    /// Whether no real money moves.
    pub(super) test: bool,
    /// The last day on which the link can be paid.
    pub(super) expires: Option<Day>,
    /// The color of the button, and of the text on it.
    pub(super) color: &'a str,
    pub(super) on_color: &'a str,
    /// The URL of the QR code's image.
    pub(super) qr_code: &'a str,
}

/// A day in UTC.
#[derive(Debug, Clone, Serialize)]
#[expect(clippy::struct_field_names, reason = "templates use these names")]
pub(super) struct Day {
    year: i32,
    month: u8,
    day: u8,
    /// In English: `22 December 2026`.
    text: String,
}

impl Day {
    pub(super) fn of(at: OffsetDateTime) -> Self {
        Self {
            year: at.year(),
            month: at.month().into(),
            day: at.day(),
            text: format!("{} {} {}", at.day(), at.month(), at.year()),
        }
    }
}

/// An email's texts.
pub(super) struct Texts {
    pub(super) subject: String,
    pub(super) text: String,
    pub(super) html: String,
}

/// Why a template can't be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{}", with_causes(.0))]
    Template(#[from] minijinja::Error),
    #[error("the template {name} {what}")]
    Result { name: String, what: &'static str },
}

/// What is wrong with a template, and in which one: the error may be in a file that it includes.
fn with_causes(error: &minijinja::Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

pub(super) struct Templates {
    environment: Environment<'static>,
    /// The languages that there are templates in, by their tags in lower case.
    locales: BTreeMap<String, String>,
}

impl Templates {
    /// The templates in this folder, or those that are built in.
    pub(super) fn load(folder: Option<&Path>) -> Result<Self, ConfigError> {
        let mut sources = BTreeMap::from(
            [
                (SUBJECT, include_str!("../../templates/mail/en/subject.txt")),
                (TEXT, include_str!("../../templates/mail/en/body.txt")),
                (HTML, include_str!("../../templates/mail/en/body.html")),
            ]
            .map(|(file, source)| (format!("{DEFAULT_LOCALE}/{file}"), source.to_owned())),
        );
        let mut error = ConfigError::default();
        if let Some(folder) = folder {
            match read(folder) {
                Ok(found) => sources.extend(found),
                Err(cause) => {
                    let text = format!(
                        "names a folder that cannot be read, {}: {cause}",
                        folder.display()
                    );
                    return Err(ConfigError::new(SETTING, text));
                }
            }
        }
        let mut templates = Self {
            environment: Environment::new(),
            locales: BTreeMap::new(),
        };
        templates
            .environment
            .set_undefined_behavior(UndefinedBehavior::Strict);
        // An operator's template must not keep a replica busy.
        templates.environment.set_recursion_limit(20);
        let mut languages = BTreeSet::new();
        for (name, source) in sources {
            if let Some((locale, _)) = name.split_once('/') {
                languages.insert(locale.to_owned());
            }
            if let Err(cause) = templates.environment.add_template_owned(name, source) {
                error.add(
                    SETTING,
                    format!("contains a template with an error: {}", with_causes(&cause)),
                );
            }
        }
        for locale in languages {
            for file in FILES {
                let name = format!("{locale}/{file}");
                if error.is_empty() && templates.environment.get_template(&name).is_err() {
                    error.add(SETTING, format!("lacks {name}"));
                }
            }
            templates
                .locales
                .insert(locale.to_ascii_lowercase(), locale);
        }
        if error.is_empty() {
            for locale in templates.locales.values() {
                if let Err(cause) = templates.try_out(locale) {
                    error.add(SETTING, format!("contains a template that fails: {cause}"));
                }
            }
        }
        if error.is_empty() {
            Ok(templates)
        } else {
            Err(error)
        }
    }

    /// Renders the templates of a language with everything that they can get, with as little as they can get, and with each
    /// value that may be missing alone, and alone missing.
    fn try_out(&self, locale: &str) -> Result<(), Error> {
        let least = Context {
            merchant: None,
            contact: None,
            amount: "£24.50".to_owned(),
            reference: "Order 236",
            description: None,
            note: None,
            url: "https://pay.example.com/p/7m3k9x2c5v8b1n4q",
            reminder: false,
            test: false,
            expires: None,
            color: "#1f5fbf",
            on_color: "#ffffff",
            qr_code: "cid:qr",
        };
        let most = Context {
            merchant: Some("Theatre"),
            contact: Some("box@theatre.example"),
            description: Some("Two tickets"),
            note: Some("See you\nsoon"),
            reminder: true,
            test: true,
            expires: Some(Day::of(OffsetDateTime::UNIX_EPOCH)),
            ..least.clone()
        };
        let mut contexts = vec![least.clone(), most.clone()];
        for n in 0..7 {
            let (mut one, mut others) = (least.clone(), most.clone());
            for (context, from) in [(&mut one, &most), (&mut others, &least)] {
                match n {
                    0 => context.merchant = from.merchant,
                    1 => context.contact = from.contact,
                    2 => context.description = from.description,
                    3 => context.note = from.note,
                    4 => context.reminder = from.reminder,
                    5 => context.test = from.test,
                    _ => context.expires.clone_from(&from.expires),
                }
            }
            contexts.extend([one, others]);
        }
        for context in contexts {
            let texts = self.render(locale, &context)?;
            for (file, text) in [(TEXT, texts.text), (HTML, texts.html)] {
                // In HTML, slashes are escaped.
                if !text.replace("&#x2f;", "/").contains(context.url) {
                    return Err(Error::Result {
                        name: format!("{locale}/{file}"),
                        what: "does not contain the url",
                    });
                }
            }
        }
        Ok(())
    }

    /// The texts of an email in this language, or in one that it is a variant of, or in English.
    pub(super) fn render(&self, locale: &str, context: &Context<'_>) -> Result<Texts, Error> {
        let locale = self.nearest(locale);
        let render = |file: &str| {
            let template = self.environment.get_template(&format!("{locale}/{file}"))?;
            template.render(Serde(context))
        };
        // A header is one line. The library encodes the rest.
        let subject = render(SUBJECT)?;
        let words: Vec<_> = subject
            .split(|letter: char| letter.is_whitespace() || letter.is_control())
            .filter(|word| !word.is_empty())
            .collect();
        let subject = words.join(" ");
        if subject.is_empty() {
            return Err(Error::Result {
                name: format!("{locale}/{SUBJECT}"),
                what: "is empty",
            });
        }
        Ok(Texts {
            subject,
            text: render(TEXT)?,
            html: render(HTML)?,
        })
    }

    fn nearest(&self, locale: &str) -> &str {
        let mut tag = locale.to_ascii_lowercase();
        loop {
            if let Some(known) = self.locales.get(&tag) {
                return known;
            }
            match tag.rfind('-') {
                Some(end) => tag.truncate(end),
                None => return DEFAULT_LOCALE,
            }
        }
    }
}

/// The files in the folders of a folder, by names such as `en/body.html`. Files whose names begin with a dot are left out.
fn read(folder: &Path) -> io::Result<BTreeMap<String, String>> {
    let mut found = BTreeMap::new();
    for language in visible(folder)? {
        let path = folder.join(&language);
        if !path.is_dir() {
            continue;
        }
        for file in visible(&path)? {
            let path = path.join(&file);
            let metadata = fs::metadata(&path)?;
            if metadata.len() > LONGEST {
                let text = format!("{language}/{file} is larger than {LONGEST} bytes");
                return Err(io::Error::other(text));
            }
            if metadata.is_file() {
                found.insert(format!("{language}/{file}"), fs::read_to_string(&path)?);
            }
        }
    }
    Ok(found)
}

fn visible(folder: &Path) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder)? {
        names.extend(entry?.file_name().into_string());
    }
    names.retain(|name| !name.starts_with('.'));
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn context() -> Context<'static> {
        Context {
            merchant: Some("Smith & <Sons>"),
            contact: Some("box@theatre.example"),
            amount: "£24.50".to_owned(),
            reference: "Order\r\nBcc: bob@example.com",
            description: Some("<script>alert(1)</script>"),
            note: Some("One\n<b>two</b>"),
            url: "https://pay.example.com/p/7m3k9x2c5v8b1n4q?a=1&b=2",
            reminder: false,
            test: false,
            expires: None,
            color: "#1f5fbf",
            on_color: "#ffffff",
            qr_code: "cid:qr",
        }
    }

    #[test]
    fn a_subject_is_one_line_and_html_is_escaped() {
        let templates = Templates::load(None).unwrap();
        let texts = templates.render("en-GB", &context()).unwrap();
        assert!(!texts.subject.contains(['\r', '\n']));
        assert!(texts.subject.contains("Order Bcc: bob@example.com"));
        assert!(!texts.html.contains("<script>") && !texts.html.contains("<b>"));
        assert!(texts.html.contains("Smith &amp; &lt;Sons&gt;"));
        assert!(texts.text.contains("<b>two</b>") && texts.text.contains("Smith & <Sons>"));
        assert!(texts.text.contains(context().url));
    }

    #[test]
    fn a_reminder_and_a_test_say_so() {
        let templates = Templates::load(None).unwrap();
        let plain = templates.render("en", &context()).unwrap();
        let more = Context {
            reminder: true,
            test: true,
            expires: Some(Day::of(OffsetDateTime::UNIX_EPOCH)),
            ..context()
        };
        let more = templates.render("en", &more).unwrap();
        assert!(!plain.subject.contains("Reminder") && more.subject.contains("Reminder"));
        for (plain, more) in [(&plain.text, &more.text), (&plain.html, &more.html)] {
            assert!(!plain.contains("test") && more.contains("test"), "{more}");
            assert!(!plain.contains("1 January 1970") && more.contains("1 January 1970"));
        }
    }

    #[test]
    fn a_language_falls_back_to_the_one_it_is_a_variant_of() {
        let folder = std::env::temp_dir().join(format!("mail-{}", std::process::id()));
        for language in ["pt-BR", "pt"] {
            fs::create_dir_all(folder.join(language)).unwrap();
            for file in FILES {
                let source = format!("{language} {{{{ url }}}} {{% include 'en/subject.txt' %}}");
                fs::write(folder.join(language).join(file), source).unwrap();
            }
        }
        let templates = Templates::load(Some(&folder)).unwrap();
        for (locale, subject) in [
            ("pt-br", "pt-BR"),
            ("pt-PT", "pt "),
            ("pt", "pt "),
            ("fr", "Payment"),
        ] {
            let texts = templates.render(locale, &context()).unwrap();
            assert!(
                texts.subject.starts_with(subject),
                "{locale}: {}",
                texts.subject
            );
        }

        fs::write(folder.join("pt/body.txt"), "{{ nobody }}").unwrap();
        fs::remove_file(folder.join("pt-BR/body.html")).unwrap();
        let error = Templates::load(Some(&folder)).err().unwrap().to_string();
        assert!(error.contains("lacks pt-BR/body.html"), "{error}");
        fs::write(folder.join("pt-BR/body.html"), "{{ url }}").unwrap();
        let error = Templates::load(Some(&folder)).err().unwrap().to_string();
        assert!(error.contains("pt/body.txt"), "{error}");
        fs::write(folder.join("pt/body.txt"), "{% if %}").unwrap();
        let error = Templates::load(Some(&folder)).err().unwrap().to_string();
        assert!(error.contains("pt/body.txt"), "{error}");
        fs::write(folder.join("pt/body.txt"), "no address").unwrap();
        let error = Templates::load(Some(&folder)).err().unwrap().to_string();
        assert!(error.contains("does not contain the url"), "{error}");
        fs::remove_dir_all(&folder).unwrap();
        assert!(Templates::load(Some(&folder)).is_err());
    }
}
