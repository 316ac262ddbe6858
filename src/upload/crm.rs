//! The HTTP client of the CRM and its two requests. [`super::policy`] decides what the answers
//! mean.

use std::io::Read as _;
use std::time::Duration;

use flate2::read::{DeflateDecoder, MultiGzDecoder, ZlibDecoder};
use futures_util::StreamExt as _;
use reqwest::header::{
    ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_TYPE, DATE, HeaderName, LOCATION, RETRY_AFTER,
};
use reqwest::multipart::{Form, Part};
use reqwest::{Body, Client, RequestBuilder, Url, redirect};
use serde_json::Value;
use tracing::debug;

use crate::recording::resolve::FoundRecording;
use crate::session::time;
use crate::settings::Secret;

use super::policy::{self, Answer, Verdict};
use super::signature::{ContentDigest, Signer};
use super::{CrmConfig, CrmSecrets, UploadError};

/// Bytes of an answer that are read at most, before and after decompression.
const MAX_ANSWER_BYTES: usize = 64 * 1024;
/// Redirects that one request follows.
const MAX_REDIRECTS: usize = 3;
/// Statuses of a redirect that keeps method and body (RFC 9110, sections 15.4.8 and 15.4.9).
const KEEPS_THE_METHOD: [u16; 2] = [307, 308];

/// A finished request.
#[derive(Debug)]
pub(super) struct Answered {
    pub verdict: Verdict,
    /// What the header `Location` of an accepted request leads to.
    pub location: Option<Url>,
}

/// The result of one HTTP exchange.
enum Exchange {
    Answered(Answered),
    /// A redirect: repeat the same request at this URL.
    Moved(Url),
}

/// The client of one CRM.
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
            // Automatic redirects would turn a POST into a GET, cannot repeat a streamed body, and
            // could send the token to another host.
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

    /// `POST {base}/upload`: streams the recording from its file or object, with a known length.
    ///
    /// # Errors
    /// When the recording cannot be opened, which says nothing about the CRM.
    pub(super) async fn upload(
        &self,
        recording: &FoundRecording,
        key: &str,
    ) -> Result<Answered, String> {
        let content = match &self.signer {
            Some(_) => digest_of(recording).await?,
            None => String::new(),
        };
        let mut url = self.endpoint(&self.config.upload_path);
        for _ in 0..=MAX_REDIRECTS {
            let stream = recording.open().await?;
            let name = recording.file_name();
            let part = Part::stream_with_length(Body::wrap_stream(stream), recording.size)
                .file_name(name.to_owned())
                .mime_str(media_type(name))
                .map_err(|error| format!("failed to describe {}: {error}", recording.name))?;
            let request = self
                .client
                .post(url.clone())
                .timeout(Duration::from_secs(self.config.upload_timeout_s))
                .multipart(Form::new().part("file", part));
            match self.exchange(request, &url, key, &content, None).await {
                Exchange::Answered(answered) => return Ok(answered),
                Exchange::Moved(there) => url = there,
            }
        }
        Ok(too_many_redirects(&url))
    }

    /// `POST {base}/call-data`.
    pub(super) async fn call_data(&self, payload: &Value, key: &str) -> Answered {
        let body = payload.to_string();
        let mut content = ContentDigest::new();
        content.update(body.as_bytes());
        let content = content.finish();
        let body = bytes::Bytes::from(body);
        let sent_status = payload["callDetails"]["status"].as_str();
        let mut url = self.endpoint(&self.config.call_data_path);
        for _ in 0..=MAX_REDIRECTS {
            let request = self
                .client
                .post(url.clone())
                .timeout(Duration::from_millis(self.config.timeout_ms))
                .header(CONTENT_TYPE, "application/json")
                .body(body.clone());
            match self
                .exchange(request, &url, key, &content, sent_status)
                .await
            {
                Exchange::Answered(answered) => return answered,
                Exchange::Moved(there) => url = there,
            }
        }
        too_many_redirects(&url)
    }

    fn endpoint(&self, path: &str) -> Url {
        let mut url = self.base.clone();
        let joined = format!(
            "{}/{}",
            url.path().trim_end_matches('/'),
            path.trim_start_matches('/')
        );
        url.set_path(&joined);
        url
    }

    /// One request and its answer. `content` is the digest of what is sent, for the signature.
    async fn exchange(
        &self,
        request: RequestBuilder,
        url: &Url,
        key: &str,
        content: &str,
        sent_status: Option<&str>,
    ) -> Exchange {
        let who = name_of(url);
        let mut request = request
            .header("Idempotency-Key", key)
            .header(ACCEPT_ENCODING, "gzip");
        if let Some(signer) = &self.signer {
            let (name, value) = signer.sign(time::now(), url.path(), key, content);
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
        let encoding = text(CONTENT_ENCODING);
        let location = text(LOCATION).and_then(|location| url.join(location.trim()).ok());
        if KEEPS_THE_METHOD.contains(&status)
            && let Some(there) = location.as_ref().filter(|there| is_same_site(url, there))
        {
            debug!(
                from = who,
                to = name_of(there),
                "redirected; set crm.base_url and the paths to save a request"
            );
            return Exchange::Moved(there.clone());
        }
        let (mut body, mut cut) = (Vec::new(), false);
        let mut chunks = response.bytes_stream();
        while let Some(chunk) = chunks.next().await {
            match chunk {
                Ok(chunk) => body.extend_from_slice(&chunk),
                // The CRM may have accepted it; the idempotency key makes a repetition harmless.
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
        let unpacked = unpack(body, encoding.as_deref(), cut);
        let answer = Answer {
            status,
            retry_after: retry_after.as_deref(),
            date: date.as_deref(),
            body: &unpacked.body,
            cut: unpacked.cut,
            encoding: unpacked.unknown.as_deref(),
            sent_status,
        };
        let mut verdict = policy::judge(&who, answer, &self.config.receipts, time::now());
        if let Verdict::NotAdmitted { why, .. } = &mut verdict
            && let Some(there) = &location
            && (300..400).contains(&status)
        {
            why.push_str(&format!(
                " ({} at {})",
                there.path(),
                there.origin().ascii_serialization()
            ));
        }
        Exchange::Answered(Answered {
            verdict,
            location: location.filter(|_| (200..300).contains(&status)),
        })
    }
}

/// The request's name for messages, without secrets.
fn name_of(url: &Url) -> String {
    let port = url
        .port()
        .map(|port| format!(":{port}"))
        .unwrap_or_default();
    format!(
        "POST {}{port}{}",
        url.host_str().unwrap_or_default(),
        url.path()
    )
}

/// Whether a redirect stays on the same host and port, or upgrades the same host to HTTPS. No other
/// host gets the token or the transcript.
fn is_same_site(from: &Url, to: &Url) -> bool {
    let same_port = from.port_or_known_default() == to.port_or_known_default();
    let encrypts = from.scheme() == "http" && to.scheme() == "https";
    from.host() == to.host()
        && ((from.scheme() == to.scheme() && same_port)
            || (encrypts && (to.port().is_none() || same_port)))
}

fn too_many_redirects(url: &Url) -> Answered {
    Answered {
        verdict: Verdict::NotAdmitted {
            why: format!(
                "{} is the end of {MAX_REDIRECTS} redirects and leads on; set crm.base_url to the address that takes calls",
                name_of(url)
            ),
            body: Value::Null,
        },
        location: None,
    }
}

/// The decompressed body of an answer.
struct Unpacked {
    body: Vec<u8>,
    cut: bool,
    /// The content encoding, when it is not supported.
    unknown: Option<String>,
}

/// Decompresses gzip and deflate, though only gzip is asked for. Gzip is known by its first bytes,
/// because a proxy may have dropped the header; deflate has no such mark, so that the header must
/// name it. Everything else, such as brotli, is named for the operator.
fn unpack(body: Vec<u8>, encoding: Option<&str>, cut: bool) -> Unpacked {
    const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];
    let encoding = encoding.map(|encoding| encoding.trim().to_ascii_lowercase());
    if body.starts_with(&GZIP_MAGIC) {
        return decompressed(MultiGzDecoder::new(body.as_slice()), cut);
    }
    // Some servers name a content encoding that they have not applied.
    let is_plain =
        body.is_empty() || serde_json::from_slice::<serde::de::IgnoredAny>(&body).is_ok();
    if encoding.as_deref() == Some("deflate") && !is_plain {
        // RFC 9110 means the zlib format; several servers send the bare stream. Other bytes can
        // look like either, so that only a stream that is whole and all of the body counts.
        let zlib = whole(
            ZlibDecoder::new(body.as_slice()),
            &body,
            ZlibDecoder::total_in,
        );
        let bare = || {
            let reader = DeflateDecoder::new(body.as_slice());
            whole(reader, &body, DeflateDecoder::total_in)
        };
        if let Some(unpacked) = zlib.or_else(bare) {
            return unpacked;
        }
    }
    let known = ["", "identity", "gzip", "x-gzip"];
    let unknown = encoding.filter(|encoding| !known.contains(&encoding.as_str()) && !is_plain);
    Unpacked { body, cut, unknown }
}

/// What a decompressor gives when the body ends with its stream, or when it reaches the size limit.
fn whole<R: std::io::Read>(
    mut reader: R,
    body: &[u8],
    total_in: impl Fn(&R) -> u64,
) -> Option<Unpacked> {
    let mut plain = Vec::new();
    let mut limited = reader.by_ref().take(MAX_ANSWER_BYTES as u64 + 1);
    limited.read_to_end(&mut plain).ok()?;
    let cut = plain.len() > MAX_ANSWER_BYTES;
    plain.truncate(MAX_ANSWER_BYTES);
    let is_whole = cut || total_in(&reader) == body.len() as u64;
    (is_whole && !plain.is_empty()).then_some(Unpacked {
        body: plain,
        cut,
        unknown: None,
    })
}

/// Reads a decompressor to its end, or to the size limit. The bytes before an error count: a
/// truncated stream is treated like a truncated body.
fn decompressed(reader: impl std::io::Read, cut: bool) -> Unpacked {
    let mut plain = Vec::new();
    let mut reader = reader.take(MAX_ANSWER_BYTES as u64 + 1);
    let whole = reader.read_to_end(&mut plain).is_ok();
    let longer = plain.len() > MAX_ANSWER_BYTES;
    plain.truncate(MAX_ANSWER_BYTES);
    Unpacked {
        body: plain,
        cut: longer || (cut && !whole),
        unknown: None,
    }
}

/// Reads a recording once, in chunks, for its digest.
async fn digest_of(recording: &FoundRecording) -> Result<String, String> {
    let mut pieces = recording.open().await?;
    let mut content = ContentDigest::new();
    while let Some(piece) = pieces.next().await {
        let piece = piece.map_err(|error| format!("failed to read {}: {error}", recording.name))?;
        content.update(&piece);
    }
    Ok(content.finish())
}

fn try_again(why: String) -> Exchange {
    Exchange::Answered(Answered {
        verdict: Verdict::TryAgain {
            why,
            body: None,
            after: None,
        },
        location: None,
    })
}

/// The innermost cause says what happened ("connection refused"); the outer ones only say that
/// something did. Without the address, which may have secrets in it.
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    #[test]
    fn a_redirect_is_followed_only_to_the_same_host() {
        for (from, to, follows) in [
            (
                "https://crm.example.com/call-data",
                "https://crm.example.com/v2/call-data",
                true,
            ),
            ("https://crm.example.com/call-data", "/call-data/", true),
            (
                "http://crm.example.com/call-data",
                "https://crm.example.com/call-data",
                true,
            ),
            (
                "http://crm.example.com:8080/a",
                "https://crm.example.com/a",
                true,
            ),
            (
                "https://crm.example.com/a",
                "https://crm.example.com:443/b",
                true,
            ),
            (
                "https://crm.example.com/a",
                "http://crm.example.com/a",
                false,
            ),
            (
                "https://crm.example.com/a",
                "https://crm.example.com:8443/a",
                false,
            ),
            (
                "http://crm.example.com/a",
                "https://crm.example.com:8443/a",
                false,
            ),
            (
                "https://crm.example.com/a",
                "https://www.crm.example.com/a",
                false,
            ),
            ("https://crm.example.com/a", "//evil.example.com/a", false),
        ] {
            let from = Url::parse(from).unwrap();
            let to = from.join(to).unwrap();
            assert_eq!(is_same_site(&from, &to), follows, "{from} {to}");
        }
    }

    #[test]
    fn a_compressed_answer_is_decompressed_whatever_its_headers_say() {
        let pack = |text: &[u8]| {
            let mut packer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            packer.write_all(text).unwrap();
            packer.finish().unwrap()
        };
        let packed = pack(b"{\"success\":true}");
        for encoding in [Some("gzip"), Some("X-GZIP"), None, Some("identity")] {
            let unpacked = unpack(packed.clone(), encoding, false);
            assert_eq!(unpacked.body, b"{\"success\":true}");
            assert!(!unpacked.cut && unpacked.unknown.is_none());
        }
        for (body, encoding, unknown) in [
            (&b"{}"[..], Some("gzip"), None),
            (b"{}", Some("br"), None),
            (b"{}", Some("deflate"), None),
            (b"\xff\xff\xff", Some("deflate"), Some("deflate")),
            (b"\x0b\x02\x80{}\x03", Some("br"), Some("br")),
            (b"", Some("br"), None),
        ] {
            let unpacked = unpack(body.to_vec(), encoding, false);
            assert_eq!(
                (unpacked.body, unpacked.unknown.as_deref()),
                (body.to_vec(), unknown)
            );
        }
        let text = b"{\"success\":true}";
        let mut zlib = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::fast());
        zlib.write_all(text).unwrap();
        let mut bare = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::fast());
        bare.write_all(text).unwrap();
        for packed in [zlib.finish().unwrap(), bare.finish().unwrap()] {
            let unpacked = unpack(packed, Some("Deflate"), false);
            assert_eq!(unpacked.body, text);
            assert!(!unpacked.cut && unpacked.unknown.is_none());
        }
        // A small answer that unpacks to a very large one.
        let bomb = unpack(
            pack(&vec![b' '; 10 * MAX_ANSWER_BYTES]),
            Some("gzip"),
            false,
        );
        assert!(bomb.cut && bomb.body.len() == MAX_ANSWER_BYTES);
        let half = unpack(packed[..20].to_vec(), Some("gzip"), false);
        assert!(half.body.len() < 16 && !half.cut);
    }
}
