use clap::Args;

use super::error::Expected;
use crate::payment_link::{NewPaymentLink, erasure::PersonalMetadata};

/// The settings of erasing personal data.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Privacy")]
pub struct PrivacySettings {
    /// The keys of the metadata entries that contain personal data, separated by commas. They are erased together with the
    /// customer, addresses and everything else that is personal. Set the same for `serve`, `erase` and `prune`.
    #[arg(long, env = "PERSONAL_METADATA", default_value = "", hide_default_value = true, value_name = "KEYS",
          value_parser = metadata_keys)]
    pub personal_metadata: PersonalMetadata,
}

/// Anything longer than this is most likely a value.
const LONGEST_KEY: usize = 100;

fn metadata_keys(text: &str) -> Result<PersonalMetadata, Expected> {
    let keys = text.split(',').map(str::trim).filter(|key| !key.is_empty());
    let keys: Vec<_> = keys.map(str::to_owned).collect();
    let is_key = |key: &String| key.len() <= LONGEST_KEY && key != NewPaymentLink::ID_METADATA_KEY;
    if keys.iter().all(is_key) {
        Ok(keys.into_iter().collect())
    } else {
        Err(Expected::new(
            "the keys of metadata entries such as guest,room, each of up to 100 bytes, and without paymentLinkId",
        ))
    }
}
