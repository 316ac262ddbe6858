//! Signs requests, so that the CRM can authenticate them and reject replays.
//!
//! The header that `crm.signature_header` names gets `t=<seconds since 1970>,v1=<hex>`, where `v1`
//! is HMAC-SHA256 (RFC 2104) with the secret over four lines, joined by `\n`: the seconds, the path
//! of the request, its `Idempotency-Key`, and the SHA-256 of the content in hex. The content is the
//! body of call data, and the file of an upload: the multipart frame around it is not signed. So a
//! recording is read twice, the first time for its digest, and never held in memory.

use aws_lc_rs::{digest, hmac};
use chrono::{DateTime, Utc};
use reqwest::header::{HeaderName, HeaderValue};

use crate::settings::Secret;

/// Incremental SHA-256 of the content.
pub(super) struct ContentDigest(digest::Context);

impl ContentDigest {
    pub(super) fn new() -> Self {
        Self(digest::Context::new(&digest::SHA256))
    }

    pub(super) fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The digest in lower-case hex.
    pub(super) fn finish(self) -> String {
        hex(self.0.finish().as_ref())
    }
}

/// Signs requests with one secret. `Debug` hides the secret.
pub(super) struct Signer {
    header: HeaderName,
    key: hmac::Key,
}

impl std::fmt::Debug for Signer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Signer").field(&self.header).finish()
    }
}

impl Signer {
    pub(super) fn new(header: HeaderName, secret: &Secret) -> Self {
        Self {
            header,
            key: hmac::Key::new(hmac::HMAC_SHA256, secret.expose().as_bytes()),
        }
    }

    /// The signature header of one request. `content` is the digest of its content in hex.
    pub(super) fn sign(
        &self,
        at: DateTime<Utc>,
        path: &str,
        idempotency_key: &str,
        content: &str,
    ) -> (HeaderName, HeaderValue) {
        let seconds = at.timestamp();
        let text = format!("{seconds}\n{path}\n{idempotency_key}\n{content}");
        let tag = hmac::sign(&self.key, text.as_bytes());
        let value = HeaderValue::from_str(&format!("t={seconds},v1={}", hex(tag.as_ref())))
            .expect("digits, hex and punctuation are a header value");
        (self.header.clone(), value)
    }
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The figures are those of `openssl dgst -sha256` with and without `-hmac s3cret`.
    #[test]
    fn a_signature_can_be_checked_with_any_other_tool() {
        let mut content = ContentDigest::new();
        content.update(b"{\"a\"");
        content.update(b":1}");
        let content = content.finish();
        assert_eq!(
            content,
            "015abd7f5cc57a2dd94b7590f04ad8084273905ee33ec5cebeae62276a97f862"
        );
        let signer = Signer::new(
            HeaderName::from_static("x-signature"),
            &Secret::new("s3cret"),
        );
        let at = DateTime::from_timestamp(1_795_255_200, 0).unwrap();
        let (name, value) = signer.sign(at, "/api/call-data", "session_1/call_data", &content);
        assert_eq!(name, "x-signature");
        assert_eq!(
            value,
            "t=1795255200,v1=2463813640e634b48e12ceff988d7542372b77b50fee6f10b7c8ffa96c0c8cab"
        );
        assert!(!format!("{signer:?}").contains("s3cret"));
    }
}
