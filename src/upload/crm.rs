//! The CRM's two requests. Knows what is sent and how; [`super::policy`] knows what the answers mean.

use std::time::Duration;

use futures_util::StreamExt as _;
use reqwest::header::{CONTENT_TYPE, DATE, HeaderName, HeaderValue, RETRY_AFTER};
use reqwest::multipart::{Form, Part};
use reqwest::{Body, Client, RequestBuilder, Url, redirect};
use serde_json::Value;

use crate::config::Secret;
use crate::recording::resolve::FoundRecording;
use crate::session::time;

use super::policy::{self, Answer, Verdict};
use super::signature::{ContentDigest, Signer};
use super::{CrmConfig, CrmSecrets, UploadError};

/// More than this of an answer is not read.
const MAX_ANSWER_BYTES: usize = 64 * 1024;

/// A CRM that can be sent to.
#[derive(Debug)]
pub(super) struct Crm {
    client: Client,
    config: CrmConfig,
    base: Url,
    token: Option<Secret>,
    signer: Option<Signer>,
}

impl Crm {
    pub(super) fn new(config: CrmConfig, secrets: CrmSecrets) -> Result<Self, UploadError> {
        let base = config.parsed_base_url()?;
        let signer = match (config.parsed_signature_header()?, &secrets.signing) {
            (None, _) => None,
            (Some(header), Some(secret)) => Some(Signer::new(header, secret)),
            (Some(_), None) => return Err(UploadError::NoSigningSecret),
        };
        let client = Client::builder()
            .user_agent(concat!("voicebot/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(Duration::from_millis(config.connect_timeout_ms))
            // A POST that follows a redirect turns into a GET, and the token would go to somebody else.
            .redirect(redirect::Policy::none())
            .build()
            .map_err(|error| UploadError::Client(error.to_string()))?;
        Ok(Self {
            client,
            config,
            base,
            token: secrets.token,
            signer,
        })
    }

    pub(super) fn base(&self) -> &Url {
        &self.base
    }

    /// The name of its host, for log and metrics.
    pub(super) fn host(&self) -> &str {
        self.base.host_str().unwrap_or_default()
    }

    pub(super) fn url_pointers(&self) -> &[String] {
        &self.config.url_pointers
    }

    /// `POST {base}/upload` with the recording streamed from where it is, with its length known beforehand.
    ///
    /// # Errors
    /// When the recording cannot be opened, which says nothing about the CRM.
    pub(super) async fn upload(
        &self,
        recording: &FoundRecording,
        key: &str,
    ) -> Result<Verdict, String> {
        let (who, url) = self.endpoint(&self.config.upload_path);
        let signature = match &self.signer {
            Some(signer) => {
                let content = digest_of(recording).await?;
                Some(signer.sign(time::now(), url.path(), key, &content))
            }
            None => None,
        };
        let stream = recording.open().await?;
        let name = recording.file_name();
        let part = Part::stream_with_length(Body::wrap_stream(stream), recording.size)
            .file_name(name.to_owned())
            .mime_str(media_type(name))
            .map_err(|error| format!("failed to describe {}: {error}", recording.name))?;
        let request = self
            .client
            .post(url)
            .timeout(Duration::from_secs(self.config.upload_timeout_s))
            .multipart(Form::new().part("file", part));
        Ok(self.send(request, &who, key, signature).await)
    }

    /// `POST {base}/call-data`.
    pub(super) async fn call_data(&self, payload: &Value, key: &str) -> Verdict {
        let (who, url) = self.endpoint(&self.config.call_data_path);
        let body = payload.to_string();
        let signature = self.signer.as_ref().map(|signer| {
            let mut content = ContentDigest::new();
            content.update(body.as_bytes());
            signer.sign(time::now(), url.path(), key, &content.finish())
        });
        let request = self
            .client
            .post(url)
            .timeout(Duration::from_millis(self.config.timeout_ms))
            .header(CONTENT_TYPE, "application/json")
            .body(body);
        self.send(request, &who, key, signature).await
    }

    /// The name for sentences, without anything secret, and the address.
    fn endpoint(&self, path: &str) -> (String, Url) {
        let mut url = self.base.clone();
        let joined = format!(
            "{}/{}",
            url.path().trim_end_matches('/'),
            path.trim_start_matches('/')
        );
        url.set_path(&joined);
        let port = url
            .port()
            .map(|port| format!(":{port}"))
            .unwrap_or_default();
        (
            format!("POST {}{port}{joined}", url.host_str().unwrap_or_default()),
            url,
        )
    }

    async fn send(
        &self,
        request: RequestBuilder,
        who: &str,
        key: &str,
        signature: Option<(HeaderName, HeaderValue)>,
    ) -> Verdict {
        let mut request = request.header("Idempotency-Key", key);
        if let Some((name, value)) = signature {
            request = request.header(name, value);
        }
        if let Some(token) = &self.token {
            request = request.bearer_auth(token.expose());
        }
        let response = match request.send().await {
            Ok(response) => response,
            Err(error) => return try_again(format!("{who} failed: {}", explain(&error))),
        };
        let status = response.status().as_u16();
        let text = |name: HeaderName| {
            let value = response.headers().get(name)?.to_str().ok()?;
            Some(value.to_owned())
        };
        let (retry_after, date) = (text(RETRY_AFTER), text(DATE));
        let (mut body, mut cut) = (Vec::new(), false);
        let mut chunks = response.bytes_stream();
        while let Some(chunk) = chunks.next().await {
            match chunk {
                Ok(chunk) => body.extend_from_slice(&chunk),
                // It may have accepted; the same key makes asking again harmless.
                Err(error) => {
                    return try_again(format!(
                        "{who} answered {status}, but the answer broke off: {}",
                        explain(&error)
                    ));
                }
            }
            if body.len() > MAX_ANSWER_BYTES {
                body.truncate(MAX_ANSWER_BYTES);
                cut = true;
                break;
            }
        }
        let answer = Answer {
            status,
            retry_after: retry_after.as_deref(),
            date: date.as_deref(),
            body: &body,
            cut,
        };
        policy::judge(who, answer, time::now())
    }
}

/// Reads a recording once for its digest, in pieces.
async fn digest_of(recording: &FoundRecording) -> Result<String, String> {
    let mut pieces = recording.open().await?;
    let mut content = ContentDigest::new();
    while let Some(piece) = pieces.next().await {
        let piece = piece.map_err(|error| format!("failed to read {}: {error}", recording.name))?;
        content.update(&piece);
    }
    Ok(content.finish())
}

fn try_again(why: String) -> Verdict {
    Verdict::TryAgain {
        why,
        body: None,
        after: None,
    }
}

/// The innermost cause says what happened ("connection refused"); the outer ones only say that something did. Without the address,
/// which may have secrets in it.
fn explain(error: &reqwest::Error) -> String {
    if error.is_timeout() {
        return if error.is_connect() {
            "no connection within the time allowed"
        } else {
            "no answer within the time allowed"
        }
        .to_owned();
    }
    let mut cause: &dyn std::error::Error = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

fn media_type(file_name: &str) -> &'static str {
    match file_name
        .rsplit_once('.')
        .map_or("", |(_, extension)| extension)
    {
        "ogg" | "opus" | "oga" => "audio/ogg",
        "mp3" => "audio/mpeg",
        "mp4" | "m4a" => "audio/mp4",
        "wav" => "audio/wav",
        "webm" => "audio/webm",
        _ => "application/octet-stream",
    }
}
