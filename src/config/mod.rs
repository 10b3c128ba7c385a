//! The settings. Each is a flag with an environment variable of the same name, and is parsed and validated once, at the
//! start. [`ConfigError`] names everything that is wrong at once, and never contains a secret.

mod accounts;
mod books;
mod callbacks;
mod console;
mod database;
mod dojo;
mod error;
mod jobs;
mod log;
mod mail;
mod privacy;
mod public_url;
mod retention;
mod server;
mod traces;
mod value;
mod webhook_secrets;

pub use accounts::{AccountSettings, DojoApiKey, Merchant};
pub use books::BookSettings;
pub use callbacks::CallbackSettings;
pub use console::{AuthenticatingProxy, ConsoleSettings, ConsoleUrl, Permissions};
pub use database::DatabaseSettings;
pub use dojo::{ConfiguredAccounts, DojoSettings};
pub use error::{ConfigError, Expected, Problem};
pub use jobs::JobSettings;
pub use log::{LogFormat, LogSettings};
pub use mail::{Credentials, Encryption, MailServer, MailSettings};
pub use privacy::PrivacySettings;
pub use public_url::PublicUrl;
pub use retention::{Retention, RetentionSettings};
pub use server::ServeSettings;
pub use traces::TraceSettings;
pub use value::{account_name, listen_address, overlap, retention, web_url};
