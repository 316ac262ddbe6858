//! What the three OpenAI-compatible providers share: the address, the key, the client, and what its errors mean.

use std::time::Duration;

use reqwest::{RequestBuilder, Response, StatusCode};
use serde_json::Value;

use super::ProviderError;
use crate::config::Secret;

/// The key's variable. Servers on the own machine often want none.
const KEY: &str = "OPENAI_API_KEY";
/// How much of an error's body is read for its message, bytes.
const MAX_ERROR_BODY: usize = 8 * 1024;

/// An OpenAI-compatible server. Cheap to clone; all clones share the client's connections.
#[derive(Clone)]
pub(super) struct Api {
    http: reqwest::Client,
    base: String,
    host: String,
    key: Option<Secret>,
}

impl Api {
    /// The server at `base`, which ends in `/v1`.
    pub fn new(http: reqwest::Client, base: &str) -> Result<Self, ProviderError> {
        let url = url::Url::parse(base).map_err(|error| {
            ProviderError::config(format!(
                "OPENAI_BASE_URL (providers.openai_base_url) {base:?} is no address: {error}"
            ))
        })?;
        let host = match (url.host_str(), url.port()) {
            (Some(host), Some(port)) => format!("{host}:{port}"),
            (Some(host), None) => host.to_owned(),
            (None, _) => {
                return Err(ProviderError::config(format!(
                    "OPENAI_BASE_URL (providers.openai_base_url) {base:?} names no host"
                )));
            }
        };
        let key = Secret::from_env(KEY);
        if key.is_none() && host.ends_with("openai.com") {
            return Err(ProviderError::config(format!(
                "{KEY} is not set: {host} wants a key (environment variable)"
            )));
        }
        Ok(Self {
            http,
            base: base.trim_end_matches('/').to_owned(),
            host,
            key,
        })
    }

    /// A request to `path`, such as `chat/completions`, with the key.
    pub fn post(&self, path: &str) -> RequestBuilder {
        self.authorised(self.http.post(format!("{}/{path}", self.base)))
    }

    fn authorised(&self, request: RequestBuilder) -> RequestBuilder {
        match &self.key {
            Some(key) => request.bearer_auth(key.expose()),
            None => request,
        }
    }

    /// Opens a connection: the answer does not matter.
    pub async fn prewarm(&self) {
        const PATIENCE: Duration = Duration::from_secs(5);
        let request = self
            .authorised(self.http.head(format!("{}/models", self.base)))
            .timeout(PATIENCE);
        if let Err(error) = request.send().await {
            tracing::debug!(error = %error.without_url(), server.host = self.host, "the provider could not be reached ahead of time");
        }
    }

    /// Sends a request and makes an error of every answer that is none.
    pub async fn send(&self, request: RequestBuilder) -> Result<Response, ProviderError> {
        let response = request.send().await.map_err(|error| self.broken(error))?;
        if response.status().is_success() {
            Ok(response)
        } else {
            Err(self.refused(response).await)
        }
    }

    /// No answer, or one that was cut short.
    pub fn broken(&self, error: reqwest::Error) -> ProviderError {
        let error = error.without_url();
        let mut text = error.to_string();
        let mut source = std::error::Error::source(&error);
        while let Some(inner) = source {
            text = format!("{text}: {inner}");
            source = inner.source();
        }
        ProviderError::temporary(format!("{} did not answer as it should: {text}", self.host))
    }

    /// An answer that cannot be understood.
    pub fn strange(&self, what: &str) -> ProviderError {
        ProviderError::temporary(format!("{} answered with {what}", self.host))
    }

    async fn refused(&self, mut response: Response) -> ProviderError {
        let status = response.status();
        let retry_after = response
            .headers()
            .get(reqwest::header::RETRY_AFTER)
            .and_then(|value| value.to_str().ok()?.trim().parse().ok())
            .map(Duration::from_secs);
        let mut body = Vec::new();
        while let Ok(Some(chunk)) = response.chunk().await {
            body.extend_from_slice(&chunk);
            if body.len() >= MAX_ERROR_BODY {
                break;
            }
        }
        let said = serde_json::from_slice::<Value>(&body)
            .ok()
            .and_then(|body| {
                body.pointer("/error/message")
                    .and_then(Value::as_str)
                    .map(str::to_owned)
            })
            .map_or(String::new(), |message| format!(": {message}"));
        let host = &self.host;
        match status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                // The message of a refused key quotes the key.
                ProviderError::config(format!("{host} refuses {KEY} ({status})"))
            }
            StatusCode::NOT_FOUND => ProviderError::config(format!(
                "{host} does not know the address or the model ({status}; OPENAI_BASE_URL, providers.*_model){said}"
            )),
            StatusCode::REQUEST_TIMEOUT
            | StatusCode::TOO_EARLY
            | StatusCode::TOO_MANY_REQUESTS
            | StatusCode::CONFLICT => ProviderError::Temporary {
                message: format!("{host} asks us to wait ({status}){said}"),
                retry_after,
            },
            status if status.is_server_error() => ProviderError::Temporary {
                message: format!("{host} failed ({status}){said}"),
                retry_after,
            },
            status => {
                ProviderError::bad_input(format!("{host} refused the request ({status}){said}"))
            }
        }
    }
}
