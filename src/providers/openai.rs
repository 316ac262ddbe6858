//! What providers that are asked over HTTP share: the address, the key, the client, and what its
//! errors mean. The servers are OpenAI-compatible, or those of a vendor with an interface of its
//! own ([`Api::of_vendor`]).

use std::time::Duration;

use reqwest::header::{HeaderName, HeaderValue};
use reqwest::{RequestBuilder, Response, StatusCode};
use serde_json::Value;

use super::ProviderError;
use super::socket::vendor_key;
use crate::settings::Secret;

/// The key's variable. Servers on the own machine often want none.
pub(super) const KEY: &str = "OPENAI_API_KEY";
/// How much of an error's body is read for its message, bytes.
const MAX_ERROR_BODY: usize = 8 * 1024;

/// The longest explanation of an error that is passed on, characters.
const MAX_SAID: usize = 300;

/// A request that brought no answer.
pub(super) struct Refusal {
    /// What it means for the conversation.
    pub error: ProviderError,
    /// What the server said, when it objects to the request itself; a text when it is no JSON.
    pub body: Option<Value>,
}

/// One server. Cheap to clone; all clones share the client's connections.
#[derive(Clone)]
pub(super) struct Api {
    http: reqwest::Client,
    base: String,
    host: String,
    pass: Pass,
    key_name: String,
    /// The settings that hold its address and model, for messages.
    settings: &'static str,
}

/// How it is told the key.
#[derive(Clone)]
enum Pass {
    Bearer(Option<Secret>),
    Header(HeaderName, HeaderValue),
}

/// Host and port of `base`, which the key `setting` holds.
fn host_of(base: &str, setting: &str) -> Result<String, ProviderError> {
    let url = url::Url::parse(base).map_err(|error| {
        ProviderError::config(format!("{setting} {base:?} is no address: {error}"))
    })?;
    match (url.host_str(), url.port()) {
        (Some(host), Some(port)) => Ok(format!("{host}:{port}")),
        (Some(host), None) => Ok(host.to_owned()),
        (None, _) => Err(ProviderError::config(format!(
            "{setting} {base:?} names no host"
        ))),
    }
}

impl Api {
    /// The server at `base`, which ends in `/v1`. The key is in the variable `key_name`.
    pub fn new(http: reqwest::Client, base: &str, key_name: &str) -> Result<Self, ProviderError> {
        let host = host_of(base, "OPENAI_BASE_URL (providers.openai_base_url)")?;
        let key = Secret::from_env(key_name);
        if key.is_none() && host.ends_with("openai.com") {
            return Err(ProviderError::config(format!(
                "{key_name} is not set: {host} wants a key (environment variable)"
            )));
        }
        Ok(Self {
            http,
            base: base.trim_end_matches('/').to_owned(),
            host,
            pass: Pass::Bearer(key),
            key_name: key_name.to_owned(),
            settings: "OPENAI_BASE_URL, providers.*_model",
        })
    }

    /// The server of a vendor at `base`, which is told the key in the header `header`.
    ///
    /// # Errors
    /// When none of the variables `key_names` is set, or `base` is no address.
    pub fn of_vendor(
        http: reqwest::Client,
        vendor: &str,
        base: &str,
        header: &'static str,
        key_names: &[&str],
    ) -> Result<Self, ProviderError> {
        let host = host_of(base, "base_url")?;
        let key = vendor_key(vendor, key_names)?;
        let is_set = |name: &&&str| Secret::from_env(name).is_some();
        let key_name = key_names.iter().find(is_set).copied().unwrap_or_default();
        let mut value = HeaderValue::from_str(key.expose().trim()).map_err(|_| {
            ProviderError::config(format!(
                "{key_name} holds characters that no key of {vendor} has"
            ))
        })?;
        value.set_sensitive(true);
        Ok(Self {
            http,
            base: base.trim_end_matches('/').to_owned(),
            host,
            pass: Pass::Header(HeaderName::from_static(header), value),
            key_name: key_name.to_owned(),
            settings: "base_url and model of its entry in the settings",
        })
    }

    /// A request to `path`, such as `chat/completions`, with the key.
    pub fn post(&self, path: &str) -> RequestBuilder {
        self.authorised(self.http.post(format!("{}/{path}", self.base)))
    }

    fn authorised(&self, request: RequestBuilder) -> RequestBuilder {
        match &self.pass {
            Pass::Bearer(Some(key)) => request.bearer_auth(key.expose()),
            Pass::Bearer(None) => request,
            Pass::Header(name, value) => request.header(name.clone(), value.clone()),
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

    /// Host and port, for logs.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Sends a request and makes an error of every answer that is none.
    pub async fn send(&self, request: RequestBuilder) -> Result<Response, ProviderError> {
        self.try_send(request)
            .await
            .map_err(|refusal| refusal.error)
    }

    /// As [`Api::send`], for a caller who can change a request that the server does not take.
    pub async fn try_send(&self, request: RequestBuilder) -> Result<Response, Refusal> {
        let response = request.send().await.map_err(|error| Refusal {
            error: self.broken(error),
            body: None,
        })?;
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

    /// An answer that no request will make better.
    pub fn misconfigured(&self, what: &str) -> ProviderError {
        ProviderError::config(format!("{} answered with {what}", self.host))
    }

    /// The key is not right.
    pub fn refuses_key(&self, status: StatusCode) -> ProviderError {
        let (host, key_name) = (&self.host, &self.key_name);
        ProviderError::config(format!("{host} refuses {key_name} ({status})"))
    }

    async fn refused(&self, mut response: Response) -> Refusal {
        let status = response.status();
        let retry_after = response
            .headers()
            .get(reqwest::header::RETRY_AFTER)
            .and_then(|value| value.to_str().ok()?.trim().parse().ok())
            .map(Duration::from_secs);
        let mut bytes = Vec::new();
        while let Ok(Some(chunk)) = response.chunk().await {
            bytes.extend_from_slice(&chunk);
            if bytes.len() >= MAX_ERROR_BODY {
                break;
            }
        }
        let body = serde_json::from_slice(&bytes)
            .unwrap_or_else(|_| Value::String(String::from_utf8_lossy(&bytes).into_owned()));
        let retry_after = retry_after.or_else(|| retry_delay(&body));
        let said = said(&body).map_or(String::new(), |message| format!(": {message}"));
        let host = &self.host;
        let error = match status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                // The message of a refused key quotes the key.
                let error = self.refuses_key(status);
                return Refusal { error, body: None };
            }
            StatusCode::NOT_FOUND => ProviderError::config(format!(
                "{host} does not know the address or the model ({status}; {}){said}",
                self.settings
            )),
            StatusCode::REQUEST_TIMEOUT
            | StatusCode::TOO_EARLY
            | StatusCode::TOO_MANY_REQUESTS
            | StatusCode::CONFLICT => {
                let error = ProviderError::Temporary {
                    message: format!("{host} asks us to wait ({status}){said}"),
                    retry_after,
                };
                return Refusal { error, body: None };
            }
            // Some servers fail over a request that they should refuse, so that their words count.
            status if status.is_server_error() => ProviderError::Temporary {
                message: format!("{host} failed ({status}){said}"),
                retry_after,
            },
            status => {
                ProviderError::bad_input(format!("{host} refused the request ({status}){said}"))
            }
        };
        Refusal {
            error,
            body: Some(body),
        }
    }
}

/// How long Google's services ask us to wait: `retryDelay`, such as `34.07s`, in the details of the
/// error (google.rpc.RetryInfo).
fn retry_delay(body: &Value) -> Option<Duration> {
    let details = body.pointer("/error/details")?.as_array()?;
    let delay = details.iter().find_map(|detail| detail.get("retryDelay"))?;
    let seconds: f64 = delay.as_str()?.strip_suffix('s')?.parse().ok()?;
    Duration::try_from_secs_f64(seconds).ok()
}

/// The explanation in the body of an error, wherever servers put it. Checks of single fields repeat
/// what was sent, that is, what people said; only which field it is and why goes on.
pub(super) fn said(body: &Value) -> Option<String> {
    let text = match body {
        Value::Object(body) => ["error", "message", "detail"]
            .iter()
            .find_map(|key| said(body.get(*key)?))?,
        Value::Array(checks) => {
            let checks: Vec<String> = checks
                .iter()
                .filter_map(|check| {
                    let path: Vec<&str> = check
                        .get("loc")
                        .and_then(Value::as_array)?
                        .iter()
                        .filter_map(Value::as_str)
                        .collect();
                    let why = check
                        .get("msg")
                        .and_then(Value::as_str)
                        .unwrap_or("refused");
                    Some(format!("{}: {why}", path.join(".")))
                })
                .collect();
            checks.join("; ")
        }
        Value::String(text) => text.clone(),
        _ => return None,
    };
    // A page for people is no explanation.
    let is_page = text.trim_start().starts_with('<');
    (!text.trim().is_empty() && !is_page).then(|| text.chars().take(MAX_SAID).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_pause_that_google_asks_for_is_found() {
        let body = |delay: Value| {
            json!({ "error": { "code": 429, "details": [{ "@type": "type.googleapis.com/google.rpc.QuotaFailure" },
            { "@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": delay }] } })
        };
        for (delay, expected) in [
            (json!("34.5s"), Some(34_500)),
            (json!("0s"), Some(0)),
            (json!("-1s"), None),
            (json!("1e300s"), None),
            (json!("soon"), None),
            (json!(7), None),
        ] {
            let expected = expected.map(Duration::from_millis);
            assert_eq!(retry_delay(&body(delay.clone())), expected, "{delay}");
        }
        assert_eq!(retry_delay(&json!("busy")), None);
    }

    #[test]
    fn the_explanation_of_an_error_is_found_and_nothing_that_was_said_in_it() {
        for (body, expected) in [
            (
                json!({"error": {"message": "no such model"}}),
                Some("no such model"),
            ),
            (json!({"error": "no such model"}), Some("no such model")),
            (
                json!({"object": "error", "message": "roles"}),
                Some("roles"),
            ),
            (
                json!({"message": {"detail": [{"loc": ["body", "x", 0], "msg": "not permitted", "input": "My name is Asha"}]}}),
                Some("body.x: not permitted"),
            ),
            (json!({"detail": "not found"}), Some("not found")),
            (json!("<html>no</html>"), None),
            (json!(""), None),
            (json!(7), None),
        ] {
            assert_eq!(said(&body).as_deref(), expected, "{body}");
        }
    }
}
