use reqwest::Method;
use secrecy::SecretString;
use serde::{Deserialize, Deserializer};
use serde_json::{Value, json};
use time::OffsetDateTime;

use super::{Client, Error};
use crate::payment_link::parse_time;

/// What Dojo sends where. An account has one subscription for an event at most.
#[derive(Debug, Clone, Deserialize)]
pub struct Subscription {
    /// Its id.
    pub id: String,
    /// The events that it is for.
    #[serde(default)]
    pub events: Vec<String>,
    /// Where they are sent.
    #[serde(default)]
    pub url: String,
    /// What they are signed with.
    #[serde(default)]
    pub secrets: Vec<Secret>,
}

/// A secret of a subscription's, as Dojo shows it.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Secret {
    /// Its id.
    pub id: String,
    /// Its text. Dojo documents that it can be read back, and requires it nowhere.
    #[serde(default, deserialize_with = "secret_text")]
    pub value: Option<SecretString>,
    /// When it was made, where that can be read.
    #[serde(default, deserialize_with = "utc_time")]
    pub created_at: Option<OffsetDateTime>,
    /// Whether it signs.
    #[serde(default)]
    pub is_active: bool,
}

#[derive(Deserialize)]
struct Secrets {
    #[serde(default)]
    secrets: Vec<Secret>,
}

impl Client {
    /// `GET /webhooks/events`: the names of all events that the account offers. A subscription to any other fails
    /// as a whole.
    pub async fn offered_events(&self) -> Result<Vec<String>, Error> {
        #[derive(Deserialize)]
        struct Model {
            #[serde(default)]
            events: Vec<String>,
        }

        let request = self.request(Method::GET, &["webhooks", "events"]);
        let models: Vec<Model> = Self::call("webhooks", request).await?;
        Ok(models.into_iter().flat_map(|model| model.events).collect())
    }

    /// `GET /webhooks`: all subscriptions of the account, with their secrets.
    pub async fn subscriptions(&self) -> Result<Vec<Subscription>, Error> {
        let request = self.request(Method::GET, &["webhooks"]);
        let mut all: Vec<Subscription> = Self::call("webhooks", request).await?;
        // Dojo's schema does not require them here.
        for subscription in all.iter_mut().filter(|one| one.secrets.is_empty()) {
            subscription.secrets = self.secrets(&subscription.id).await?;
        }
        Ok(all)
    }

    /// `POST /webhooks`: subscribes to these events.
    pub async fn subscribe(
        &self,
        url: &str,
        events: &[&str],
        description: &str,
    ) -> Result<Subscription, Error> {
        let body = json!({"events": events, "url": url, "description": description});
        let request = self.request(Method::POST, &["webhooks"]).json(&body);
        Self::call("webhooks", request).await
    }

    /// `PATCH /webhooks/{id}`: what is `None` stays as it is.
    pub async fn update_subscription(
        &self,
        id: &str,
        url: Option<&str>,
        events: Option<&[&str]>,
    ) -> Result<Subscription, Error> {
        let mut body = json!({});
        if let Some(url) = url {
            body["url"] = json!(url);
        }
        if let Some(events) = events {
            body["events"] = json!(events);
        }
        let request = self.request(Method::PATCH, &["webhooks", id]).json(&body);
        Self::call("webhooks", request).await
    }

    /// `DELETE /webhooks/{id}`.
    pub async fn unsubscribe(&self, id: &str) -> Result<(), Error> {
        Self::call("webhooks", self.request(Method::DELETE, &["webhooks", id])).await
    }

    /// `GET /webhooks/{id}/secrets`.
    pub async fn secrets(&self, subscription: &str) -> Result<Vec<Secret>, Error> {
        let request = self.request(Method::GET, &["webhooks", subscription, "secrets"]);
        let answer: Secrets = Self::call("webhooks", request).await?;
        Ok(answer.secrets)
    }

    /// `POST /webhooks/{id}/secrets`: makes a secret. Answers all that there are then.
    pub async fn generate_secret(&self, subscription: &str) -> Result<Vec<Secret>, Error> {
        let request = self.request(Method::POST, &["webhooks", subscription, "secrets"]);
        let answer: Secrets = Self::call("webhooks", request).await?;
        Ok(answer.secrets)
    }

    /// `PUT /webhooks/{id}/secrets/{secret}/activate`: has it sign.
    pub async fn activate_secret(&self, subscription: &str, secret: &str) -> Result<(), Error> {
        let path = ["webhooks", subscription, "secrets", secret, "activate"];
        Self::call("webhooks", self.request(Method::PUT, &path)).await
    }

    /// `DELETE /webhooks/{id}/secrets/{secret}`.
    pub async fn delete_secret(&self, subscription: &str, secret: &str) -> Result<(), Error> {
        let path = ["webhooks", subscription, "secrets", secret];
        Self::call("webhooks", self.request(Method::DELETE, &path)).await
    }
}

fn secret_text<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<SecretString>, D::Error> {
    let text = Option::<String>::deserialize(deserializer)?;
    Ok(text.filter(|text| !text.is_empty()).map(SecretString::from))
}

/// Dojo's examples write these times both with and without the `Z`, and mean UTC.
fn utc_time<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<OffsetDateTime>, D::Error> {
    let value = Value::deserialize(deserializer)?;
    Ok(value
        .as_str()
        .and_then(|text| parse_time(text).or_else(|| parse_time(&format!("{text}Z")))))
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret;
    use time::macros::datetime;

    use super::*;

    /// The example of Dojo's OpenAPI file.
    const EXAMPLE: &str = r#"{"id": "ws_lgQzejyXb0SD8oIDE2zcqA", "secrets": [
        {"id": "sc_qNkU6yob0vOMxUlb2oynUw", "value": "U3Vic2NyaXB0aW9u", "createdAt": "2023-12-13T14:15:01",
         "lastUsedAt": "2023-12-16T13:44:03.3656144Z", "isActive": true},
        {"id": "sc_zNkU6yob0vOMxUlb2oynUw", "value": "FGswesds", "createdAt": "2020-12-13T14:15:01Z",
         "isActive": false}]}"#;

    #[test]
    fn reads_dojos_example_and_shows_no_secret() {
        let secrets = serde_json::from_str::<Secrets>(EXAMPLE).unwrap().secrets;
        assert_eq!(
            secrets[0].created_at,
            Some(datetime!(2023-12-13 14:15:01 UTC))
        );
        assert_eq!(
            secrets[1].created_at,
            Some(datetime!(2020-12-13 14:15:01 UTC))
        );
        assert!(secrets[0].is_active && !secrets[1].is_active);
        let value = secrets[0].value.as_ref().unwrap();
        assert_eq!(value.expose_secret(), "U3Vic2NyaXB0aW9u");
        assert!(!format!("{secrets:?}").contains("U3Vic2Ny"));
    }

    #[test]
    fn reads_a_secret_of_which_only_the_id_is_told() {
        for told in [
            r#"{"id": "sc_1"}"#,
            r#"{"id": "sc_1", "value": null, "createdAt": null}"#,
            r#"{"id": "sc_1", "value": "", "createdAt": "lately"}"#,
        ] {
            let secret: Secret = serde_json::from_str(told).unwrap();
            assert!(secret.value.is_none() && secret.created_at.is_none() && !secret.is_active);
        }
    }
}
