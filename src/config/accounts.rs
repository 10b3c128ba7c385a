//! The accounts file, `DOJO_ACCOUNTS_FILE`.
//!
//! All of its faults are reported at once, each with its account and field, and without any value from the file, because
//! that could be a secret. So the fields are read by hand instead of with serde, whose errors quote the value. The TOML
//! parser's own errors quote the line, so only their message is used.

use std::path::Path;

use lettre::message::Mailbox;
use secrecy::{ExposeSecret, SecretString};
use toml::{Table, Value};
use url::Url;

use super::{
    ConfigError,
    error::Expected,
    mail::{color, mailbox},
    value::{account_name, web_url},
    webhook_secrets,
};
use crate::payment_link::Environment;

pub(super) const SETTING: &str = "DOJO_ACCOUNTS_FILE";

/// One of Dojo's API keys.
#[derive(Debug, Clone)]
pub struct DojoApiKey {
    pub secret: SecretString,
    /// Whether the key moves test money or real money. Its prefix says so.
    pub environment: Environment,
}

impl DojoApiKey {
    /// On error, returns what is wrong as the text of a [`Problem`](super::Problem).
    pub(super) fn new(secret: SecretString) -> Result<Self, &'static str> {
        let key = secret.expose_secret();
        let environment = if key.starts_with("sk_sandbox_") {
            Environment::Sandbox
        } else if key.starts_with("sk_prod_") {
            Environment::Production
        } else {
            return Err("must begin with sk_sandbox_ or sk_prod_");
        };
        if !key.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err("contains a character that is not allowed in an HTTP header");
        }
        Ok(Self {
            secret,
            environment,
        })
    }
}

/// A Dojo account as configured.
#[derive(Debug, Clone)]
pub struct AccountSettings {
    pub name: String,
    pub api_key: DojoApiKey,
    pub webhook_secrets: Vec<SecretString>,
    /// The base URL of the account's checkout pages.
    pub checkout_url: Url,
    pub merchant: Merchant,
}

/// How customers know the merchant.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Merchant {
    /// The name that customers know.
    pub name: Option<String>,
    /// Whom customers can ask: an email address, a phone number or a sentence.
    pub contact: Option<String>,
    /// The sender of emails. `None`: that of the service.
    pub mail_from: Option<Mailbox>,
    /// Where replies to emails go. `None`: where the service says.
    pub mail_reply_to: Option<Mailbox>,
    /// The color of the button in emails, such as `#1f5fbf`. `None`: that of the service.
    pub brand_color: Option<String>,
}

/// What applies to accounts that don't set their own.
#[derive(Debug, Clone, Copy)]
pub(super) struct Defaults<'a> {
    pub(super) checkout_url: &'a Url,
    pub(super) merchant: &'a Merchant,
}

/// Reads the accounts in this file. `default` is the account of `DOJO_API_KEY`, if that is set.
pub(super) fn read(
    file: &Path,
    defaults: Defaults<'_>,
    default: Option<&AccountSettings>,
) -> Result<Vec<AccountSettings>, ConfigError> {
    let path = file.display();
    let text = std::fs::read_to_string(file).map_err(|error| {
        ConfigError::new(
            SETTING,
            format!("names a file that cannot be read, {path}: {error}"),
        )
    })?;
    let folder = file.parent().unwrap_or(Path::new(""));
    parse(&text, folder, defaults, default).map_err(|faults| {
        let mut error = ConfigError::default();
        for fault in faults {
            error.add(SETTING, format!("{path}: {fault}"));
        }
        error
    })
}

/// Parses the text of an accounts file in `folder`. On error, returns all faults.
fn parse(
    text: &str,
    folder: &Path,
    defaults: Defaults<'_>,
    default: Option<&AccountSettings>,
) -> Result<Vec<AccountSettings>, Vec<String>> {
    let mut top: Table = text
        .parse()
        .map_err(|error| vec![syntax_fault(text, &error)])?;
    let mut faults = Vec::new();
    let entries = match top.remove("accounts") {
        None => Table::new(),
        Some(Value::Table(entries)) => entries,
        Some(_) => {
            faults.push("accounts must be a table: write [accounts.NAME]".to_owned());
            Table::new()
        }
    };
    for name in top.keys() {
        faults.push(format!(
            "{name:?} is unknown: the file may contain only [accounts.NAME]"
        ));
    }
    let mut accounts = Vec::new();
    for (name, fields) in entries {
        if let Err(expected) = account_name(&name) {
            faults.push(format!("the account name {name:?} {expected}"));
        }
        if default.is_some_and(|default| default.name == name) {
            faults.push(format!(
                "[accounts.{name}] is configured by DOJO_API_KEY already: remove one of them"
            ));
        }
        let Value::Table(fields) = fields else {
            faults.push(format!(
                "accounts.{name} must be a table: write [accounts.{name}]"
            ));
            continue;
        };
        let entry = Entry {
            name: &name,
            folder,
            fields,
            faults: &mut faults,
        };
        accounts.extend(entry.account(defaults));
    }
    contradictions(&accounts, default, &mut faults);
    if faults.is_empty() {
        Ok(accounts)
    } else {
        Err(faults)
    }
}

/// Where and why the text is not valid TOML, without the line itself.
fn syntax_fault(text: &str, error: &toml::de::Error) -> String {
    let before = error
        .span()
        .and_then(|span| text.get(..span.start))
        .unwrap_or_default();
    let line = before.matches('\n').count() + 1;
    let column = before.chars().rev().take_while(|c| *c != '\n').count() + 1;
    format!("line {line}, column {column}: {}", error.message())
}

/// Finds accounts that have the same key, or different environments.
fn contradictions(
    accounts: &[AccountSettings],
    default: Option<&AccountSettings>,
    faults: &mut Vec<String>,
) {
    for (n, account) in accounts.iter().enumerate() {
        let name = &account.name;
        let mut others = default.into_iter().chain(&accounts[..n]);
        if let Some(same) = others.clone().find(|other| {
            other.name != *name
                && other.api_key.secret.expose_secret() == account.api_key.secret.expose_secret()
        }) {
            faults.push(format!(
                "[accounts.{name}] api_key is also the key of account {}",
                same.name
            ));
        }
        if let Some(other) =
            others.find(|other| other.api_key.environment != account.api_key.environment)
        {
            faults.push(format!(
                "[accounts.{name}] environment is {}, but account {} is {}: run a separate service with its own \
                 database for each environment",
                account.api_key.environment.as_str(),
                other.name,
                other.api_key.environment.as_str(),
            ));
        }
    }
}

/// One `[accounts.NAME]`. Known fields are taken out one by one, and any that remain are unknown.
struct Entry<'a> {
    name: &'a str,
    /// File names in the entry are relative to this folder.
    folder: &'a Path,
    fields: Table,
    faults: &'a mut Vec<String>,
}

impl Entry<'_> {
    /// Returns the account if it can be compared with the others, even if other fields have faults.
    fn account(mut self, defaults: Defaults<'_>) -> Option<AccountSettings> {
        let environment = self.environment();
        let api_key = self.api_key();
        if let (Some(environment), Some(api_key)) = (environment, &api_key)
            && environment != api_key.environment
        {
            self.fault(
                "environment",
                &format!(
                    "is {}, but api_key is a {} key",
                    environment.as_str(),
                    api_key.environment.as_str()
                ),
            );
        }
        let webhook_secrets = self.webhook_secrets();
        let own = self.parsed("checkout_url", web_url);
        let merchant = Merchant {
            name: self
                .text("merchant_name")
                .or_else(|| defaults.merchant.name.clone()),
            contact: self
                .text("merchant_contact")
                .or_else(|| defaults.merchant.contact.clone()),
            mail_from: self.parsed("mail_from", mailbox),
            mail_reply_to: self.parsed("mail_reply_to", mailbox),
            brand_color: self.parsed("brand_color", color),
        };
        for field in std::mem::take(&mut self.fields).keys() {
            self.fault(&format!("{field:?}"), "is not a field of an account");
        }
        Some(AccountSettings {
            name: self.name.to_owned(),
            api_key: api_key?,
            webhook_secrets,
            checkout_url: own.unwrap_or_else(|| defaults.checkout_url.clone()),
            merchant,
        })
    }

    fn environment(&mut self) -> Option<Environment> {
        const FIELD: &str = "environment";
        if !self.fields.contains_key(FIELD) {
            self.fault(FIELD, "is missing: set it to sandbox or production");
        }
        let word = self.text(FIELD)?;
        word.parse()
            .map_err(|_| self.fault(FIELD, "must be sandbox or production"))
            .ok()
    }

    fn api_key(&mut self) -> Option<DojoApiKey> {
        const FIELD: &str = "api_key";
        const FILE: &str = "api_key_file";
        if !self.one_of(FIELD, FILE) {
            self.fault(FIELD, "is missing: set it to sk_sandbox_… or sk_prod_…");
        }
        let secret = match self.text(FIELD) {
            Some(key) => key.into(),
            None => self.secret_file(FILE)?,
        };
        DojoApiKey::new(secret)
            .map_err(|problem| self.fault(FIELD, problem))
            .ok()
    }

    fn webhook_secrets(&mut self) -> Vec<SecretString> {
        const FIELD: &str = "webhook_secrets";
        const FILE: &str = "webhook_secrets_file";
        self.one_of(FIELD, FILE);
        let (field, secrets) = if let Some(text) = self.secret_file(FILE) {
            (FILE, webhook_secrets::split(&text))
        } else {
            match self.fields.remove(FIELD) {
                None => return Vec::new(),
                Some(Value::Array(entries)) => {
                    let entries = entries.iter().map(Value::as_str);
                    (FIELD, webhook_secrets::parse(entries))
                }
                Some(_) => {
                    self.fault(FIELD, "must be a list: write [\"…\"]");
                    return Vec::new();
                }
            }
        };
        secrets.unwrap_or_else(|problem| {
            self.fault(field, &problem);
            Vec::new()
        })
    }

    /// Whether a secret is given in one of its two forms. Giving both is a fault.
    fn one_of(&mut self, field: &str, file: &str) -> bool {
        let given = [field, file].map(|name| self.fields.contains_key(name));
        if given == [true, true] {
            self.fault(
                field,
                &format!("and {file} are both set: remove one of them"),
            );
        }
        given.contains(&true)
    }

    /// The trimmed text of the file that this field names.
    fn secret_file(&mut self, field: &str) -> Option<SecretString> {
        let path = self.folder.join(self.text(field)?);
        match std::fs::read_to_string(&path) {
            Ok(text) if text.trim().is_empty() => {
                self.fault(field, &format!("names an empty file, {}", path.display()));
                None
            }
            Ok(text) => Some(text.trim().into()),
            Err(error) => {
                self.fault(
                    field,
                    &format!(
                        "names a file that cannot be read, {}: {error}",
                        path.display()
                    ),
                );
                None
            }
        }
    }

    /// A field's value.
    fn parsed<T>(
        &mut self,
        field: &str,
        parse: impl FnOnce(&str) -> Result<T, Expected>,
    ) -> Option<T> {
        let text = self.text(field)?;
        parse(&text)
            .map_err(|expected| self.fault(field, &expected.to_string()))
            .ok()
    }

    /// A field's trimmed text.
    fn text(&mut self, field: &str) -> Option<String> {
        let value = self.fields.remove(field)?;
        let text = value.as_str().map(str::trim).unwrap_or_default();
        if text.is_empty() {
            self.fault(field, "must be a non-empty string");
            return None;
        }
        Some(text.to_owned())
    }

    fn fault(&mut self, field: &str, problem: &str) {
        self.faults
            .push(format!("[accounts.{}] {field} {problem}", self.name));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const RIGHT: &str = r#"
        [accounts.leeds]
        environment = "sandbox"
        api_key = "sk_sandbox_hush1"
        webhook_secrets = ["hush2", "hush3"]
        [accounts.york]
        environment = "sandbox"
        api_key = "sk_sandbox_hush4"
        checkout_url = "https://pay.example/checkout"
        merchant_contact = "york@example.com"
        mail_from = "York <york@example.com>"
        brand_color = "\u0023AA0000"
    "#;

    fn read(text: &str) -> Result<Vec<AccountSettings>, Vec<String>> {
        read_besides(None, text)
    }

    fn read_besides(
        default: Option<&AccountSettings>,
        text: &str,
    ) -> Result<Vec<AccountSettings>, Vec<String>> {
        let defaults = Defaults {
            checkout_url: &Url::parse("https://pay.dojo.tech/checkout").unwrap(),
            merchant: &Merchant {
                name: Some("Theatre".to_owned()),
                ..Merchant::default()
            },
        };
        parse(text, Path::new("/nowhere"), defaults, default)
    }

    #[test]
    fn accounts_are_sorted_by_name_and_inherit_what_they_do_not_set() {
        let accounts = read(RIGHT).unwrap();
        let summary: Vec<_> = accounts
            .iter()
            .map(|account| {
                (
                    account.name.as_str(),
                    account.webhook_secrets.len(),
                    account.checkout_url.as_str(),
                    account.merchant.name.as_deref(),
                    account.merchant.contact.as_deref(),
                )
            })
            .collect();
        assert_eq!(
            summary,
            [
                (
                    "leeds",
                    2,
                    "https://pay.dojo.tech/checkout",
                    Some("Theatre"),
                    None
                ),
                (
                    "york",
                    0,
                    "https://pay.example/checkout",
                    Some("Theatre"),
                    Some("york@example.com")
                )
            ]
        );
    }

    #[test]
    fn all_faults_are_reported_at_once() {
        let faults =
            read("color = 1\n[accounts.leeds]\napi_key = 1\nkey = 2\n[accounts.York]").unwrap_err();
        assert_eq!(
            faults,
            [
                "\"color\" is unknown: the file may contain only [accounts.NAME]",
                "the account name \"York\" must be 1 to 60 characters: lower-case letters, digits, - and _",
                "[accounts.York] environment is missing: set it to sandbox or production",
                "[accounts.York] api_key is missing: set it to sk_sandbox_… or sk_prod_…",
                "[accounts.leeds] environment is missing: set it to sandbox or production",
                "[accounts.leeds] api_key must be a non-empty string",
                "[accounts.leeds] \"key\" is not a field of an account",
            ]
        );
    }

    #[test]
    fn contradictions_are_reported_along_with_other_faults() {
        let default = AccountSettings {
            name: "default".to_owned(),
            api_key: DojoApiKey::new("sk_prod_hush".into()).unwrap(),
            webhook_secrets: Vec::new(),
            checkout_url: Url::parse("https://pay.dojo.tech/checkout").unwrap(),
            merchant: Merchant::default(),
        };
        let file = "[accounts.default]\n[accounts.leeds]\nenvironment = \"sandbox\"\n\
                    api_key = \"sk_sandbox_hush\"\ncheckout_url = \"nowhere\"";
        let faults = read_besides(Some(&default), file).unwrap_err();
        for words in [
            "[accounts.default] is configured by DOJO_API_KEY already",
            "[accounts.default] api_key is missing",
            "[accounts.leeds] checkout_url must be an http or https URL",
            "[accounts.leeds] environment is sandbox, but account default is production",
        ] {
            assert!(
                faults.iter().any(|fault| fault.starts_with(words)),
                "{words}: {faults:?}"
            );
        }
    }

    #[test]
    fn syntax_errors_are_reported_with_line_and_column() {
        let faults = read("[accounts.leeds]\napi_key = sk_sandbox_hush").unwrap_err();
        assert!(faults[0].starts_with("line 2, column 11: "), "{faults:?}");
    }

    proptest! {
        /// After any typo: characters missing, added or replaced.
        #[test]
        fn faults_contain_no_secret(at in 0..RIGHT.len(), cut in 0..3_usize, slip in "[ -~\n]{0,2}") {
            let mut text = RIGHT.to_owned();
            text.replace_range(at..(at + cut).min(RIGHT.len()), &slip);
            if let Err(faults) = read(&text) {
                prop_assert!(!faults.concat().contains("hush"), "{faults:?}");
            }
        }
    }
}
