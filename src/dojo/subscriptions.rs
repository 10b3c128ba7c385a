use reqwest::Method;
use secrecy::SecretString;
use serde::{Deserialize, Deserializer};
use serde_json::{Value, json};
use time::OffsetDateTime;

use super::{Client, Error};
use crate::payment_link::parse_time;

/// A webhook subscription. An account has at most one subscription per event.
#[derive(Debug, Clone, Deserialize)]
pub struct Subscription {
    pub id: String,
    /// The names of the events that Dojo sends.
    #[serde(default)]
    pub events: Vec<String>,
    /// Where Dojo sends the events.
    #[serde(default)]
    pub url: String,
    /// The secrets that Dojo signs the webhooks with.
    #[serde(default)]
    pub secrets: Vec<Secret>,
}

/// A subscription's secret.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Secret {
    pub id: String,
    /// The secret itself. Dojo documents that it can be read back, but doesn't mark it as required.
    #[serde(default, deserialize_with = "secret_text")]
    pub value: Option<SecretString>,
    /// When the secret was created, if Dojo reports a readable time.
    #[serde(default, deserialize_with = "utc_time")]
    pub created_at: Option<OffsetDateTime>,
    /// Whether Dojo signs webhooks with this secret.
    #[serde(default)]
    pub is_active: bool,
}

#[derive(Deserialize)]
struct Secrets {
    #[serde(default)]
    secrets: Vec<Secret>,
}

impl Client {
    /// `GET /webhooks/events`: the names of all events that the account offers. A subscription that contains any other
    /// event is rejected as a whole.
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

    /// `PATCH /webhooks/{id}`. A field that is `None` isn't changed.
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
        let response: Secrets = Self::call("webhooks", request).await?;
        Ok(response.secrets)
    }

    /// `POST /webhooks/{id}/secrets`: creates a secret. Returns all of the subscription's secrets.
    pub async fn generate_secret(&self, subscription: &str) -> Result<Vec<Secret>, Error> {
        let request = self.request(Method::POST, &["webhooks", subscription, "secrets"]);
        let response: Secrets = Self::call("webhooks", request).await?;
        Ok(response.secrets)
    }

    /// `PUT /webhooks/{id}/secrets/{secret}/activate`: makes Dojo sign with the secret.
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

/// Parses a UTC time. In Dojo's examples some have a `Z` at the end and some don't.
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

    /// The example in Dojo's OpenAPI file.
    const EXAMPLE: &str = r#"{"id": "ws_lgQzejyXb0SD8oIDE2zcqA", "secrets": [
        {"id": "sc_qNkU6yob0vOMxUlb2oynUw", "value": "U3Vic2NyaXB0aW9u", "createdAt": "2023-12-13T14:15:01",
         "lastUsedAt": "2023-12-16T13:44:03.3656144Z", "isActive": true},
        {"id": "sc_zNkU6yob0vOMxUlb2oynUw", "value": "FGswesds", "createdAt": "2020-12-13T14:15:01Z",
         "isActive": false}]}"#;

    #[test]
    fn dojos_example_is_read_and_secrets_stay_hidden() {
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
    fn a_secret_may_consist_of_its_id_alone() {
        for body in [
            r#"{"id": "sc_1"}"#,
            r#"{"id": "sc_1", "value": null, "createdAt": null}"#,
            r#"{"id": "sc_1", "value": "", "createdAt": "lately"}"#,
        ] {
            let secret: Secret = serde_json::from_str(body).unwrap();
            assert!(secret.value.is_none() && secret.created_at.is_none() && !secret.is_active);
        }
    }
}
