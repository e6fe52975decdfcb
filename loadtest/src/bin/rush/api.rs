//! A client of Rushgate's API for staff and for the verdict. Users' requests go through goose.

use std::time::Duration;

use reqwest::{Client, Method, StatusCode};
use rushgate_loadtest::Outcome;
use rushgate_loadtest::token::mint_token;
use serde_json::Value;

const TOKEN_TTL: Duration = Duration::from_secs(24 * 60 * 60);

pub struct Api {
    /// Without a trailing slash.
    pub host: String,
    secret: String,
    client: Client,
}

impl Api {
    pub fn new(host: &str, secret: &str) -> Outcome<Self> {
        let client = Client::builder().timeout(Duration::from_secs(30)).no_proxy().build()?;
        Ok(Self { host: host.trim_end_matches('/').to_owned(), secret: secret.to_owned(), client })
    }

    pub fn token(&self, subject: &str, scope: &str) -> Outcome<String> {
        mint_token(self.secret.as_bytes(), subject, scope, TOKEN_TTL)
    }

    /// A request by staff that must succeed.
    pub async fn staff(&self, method: Method, path: &str, body: Option<&Value>) -> Outcome<Value> {
        let token = self.token("rush-staff", "admin service")?;
        let mut request =
            self.client.request(method.clone(), format!("{}{path}", self.host)).bearer_auth(token);
        if let Some(body) = body {
            request = request.json(body);
        }
        let response = request.send().await?;
        let (status, text) = (response.status(), response.text().await?);
        match status.is_success() {
            true => Ok(serde_json::from_str(&text)?),
            false => Err(format!("{method} {path}: {status} {text}").into()),
        }
    }

    /// A POST by the shop's backend. Returns the answer, whatever its status is.
    pub async fn backend_post(&self, path: &str, body: &Value) -> Outcome<(StatusCode, Value)> {
        let token = self.token("rush-backend", "service")?;
        let request = self.client.post(format!("{}{path}", self.host)).bearer_auth(token);
        let response = request.json(body).send().await?;
        let (status, text) = (response.status(), response.text().await?);
        Ok((status, serde_json::from_str(&text).unwrap_or_default()))
    }

    pub async fn get(&self, path: &str) -> Outcome<Value> {
        self.staff(Method::GET, path, None).await
    }
}
