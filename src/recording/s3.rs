//! Recordings in S3 or a compatible service: queried with HEAD, and read in chunks of bounded size.
//!
//! The keys come from the environment, as with Amazon's own tools (`AWS_ACCESS_KEY_ID` and so on),
//! or from the machine's role. Only the worker uses S3, and only for a recording in a listed
//! bucket; call processes never do.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::stream;
use object_store::aws::{AmazonS3, AmazonS3Builder};
use object_store::path::Path;
use object_store::{
    ClientOptions, Error, GetOptions, ObjectStore, ObjectStoreExt as _, RetryConfig,
};
use serde::{Deserialize, Serialize};
use tokio::time::timeout;
use url::Url;

use super::location::S3Location;
use super::resolve::RecordingStream;

/// Chunk size: no more of an object is in memory at a time. Larger chunks are hardly faster: a
/// request costs a few milliseconds.
const PIECE_BYTES: u64 = 1 << 20;
/// Timeout for a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Timeout for one request and its answer, of at most one chunk.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// Timeout for a HEAD request with all retries, including the query for a role of this machine if
/// there are no keys.
const HEAD_TIMEOUT: Duration = Duration::from_secs(15);
/// Retries of one request. The delivery itself is retried as well.
const RETRIES: usize = 2;

/// Section `recording.s3` of the configuration. The keys are not in it: they come from the
/// environment.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct S3Config {
    /// Buckets that recordings may be read from; a manifest that names another is refused. Empty:
    /// none.
    pub buckets: Vec<String>,
    /// URL of the server, such as `https://minio.example.com:9000`. Empty: `AWS_ENDPOINT_URL`, else
    /// Amazon.
    pub endpoint: String,
    /// Its region. Empty: `AWS_REGION`, else `us-east-1`.
    pub region: String,
    /// Whether the bucket is part of the path (`endpoint/bucket/key`) or of the host
    /// (`bucket.endpoint/key`).
    pub path_style: bool,
    /// The one of `buckets` in which an egress is asked to store its files, with its own keys.
    /// Empty: it stores them as it is configured.
    pub egress_bucket: String,
}

impl Default for S3Config {
    fn default() -> Self {
        Self {
            buckets: Vec::new(),
            endpoint: String::new(),
            region: String::new(),
            path_style: true,
            egress_bucket: String::new(),
        }
    }
}

impl S3Config {
    /// Checks for mistakes that a type cannot catch. The error names the key.
    ///
    /// # Errors
    /// When the endpoint is no URL, or a bucket's name is invalid.
    pub fn check(&self) -> Result<(), String> {
        if let Some(bucket) = self
            .buckets
            .iter()
            .find(|bucket| bucket.is_empty() || bucket.contains(['/', ':']))
        {
            return Err(format!(
                "recording.s3.buckets lists names of buckets alone, such as call-recordings, not {bucket:?}"
            ));
        }
        if !self.egress_bucket.is_empty() && !self.buckets.contains(&self.egress_bucket) {
            return Err(format!(
                "recording.s3.egress_bucket {:?} must be one of recording.s3.buckets, or its recordings cannot be read",
                self.egress_bucket
            ));
        }
        if self.endpoint.is_empty() {
            return Ok(());
        }
        match Url::parse(&self.endpoint) {
            Ok(url) if matches!(url.scheme(), "http" | "https") && url.has_host() => Ok(()),
            _ => Err(format!(
                "recording.s3.endpoint must begin with http:// or https:// and name a host, not {:?}",
                self.endpoint
            )),
        }
    }

    /// The server's name for messages.
    fn server(&self) -> String {
        if self.endpoint.is_empty() {
            std::env::var("AWS_ENDPOINT_URL").unwrap_or_else(|_| "Amazon S3".to_owned())
        } else {
            self.endpoint.clone()
        }
    }

    fn client(&self, bucket: &str) -> Result<AmazonS3, Error> {
        let mut builder = AmazonS3Builder::from_env().with_bucket_name(bucket);
        if !self.region.is_empty() {
            builder = builder.with_region(&self.region);
        }
        builder = builder.with_virtual_hosted_style_request(!self.path_style);
        if !self.endpoint.is_empty() {
            builder = builder.with_endpoint(self.endpoint_of(bucket));
        }
        let plain = self.server().starts_with("http://");
        let options = ClientOptions::new()
            .with_allow_http(plain)
            .with_connect_timeout(CONNECT_TIMEOUT)
            .with_timeout(REQUEST_TIMEOUT);
        builder
            .with_client_options(options)
            .with_retry(RetryConfig {
                max_retries: RETRIES,
                retry_timeout: REQUEST_TIMEOUT,
                ..RetryConfig::default()
            })
            .build()
    }

    /// For buckets in the host name, the client expects an endpoint that includes the bucket.
    fn endpoint_of(&self, bucket: &str) -> String {
        let endpoint = self.endpoint.trim_end_matches('/');
        match endpoint.split_once("://") {
            Some((scheme, host)) if !self.path_style => format!("{scheme}://{bucket}.{host}"),
            _ => endpoint.to_owned(),
        }
    }
}

/// The buckets that may be read. Cheap to clone.
#[derive(Clone)]
pub(super) struct S3Access {
    config: S3Config,
    /// Created when the first recording of a bucket is searched for.
    clients: Arc<Mutex<HashMap<String, Arc<AmazonS3>>>>,
}

impl S3Access {
    pub fn new(config: S3Config) -> Self {
        Self {
            config,
            clients: Arc::default(),
        }
    }

    /// Buckets that may be read.
    pub fn buckets(&self) -> &[String] {
        &self.config.buckets
    }

    fn client(&self, bucket: &str) -> Result<Arc<AmazonS3>, Error> {
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(client) = clients.get(bucket) {
            return Ok(client.clone());
        }
        let client = Arc::new(self.config.client(bucket)?);
        clients.insert(bucket.to_owned(), client.clone());
        Ok(client)
    }

    /// Queries an object with HEAD. `None`: it does not exist (yet).
    ///
    /// # Errors
    /// A message about the server, the keys or the settings.
    pub async fn head(&self, location: &S3Location) -> Result<Option<S3Object>, String> {
        let looking = async {
            let client = self.client(&location.bucket)?;
            let path = Path::parse(&location.key)?;
            let meta = client.head(&path).await?;
            Ok(S3Object {
                location: location.clone(),
                path,
                size: meta.size,
                e_tag: meta.e_tag,
                client,
            })
        };
        match timeout(HEAD_TIMEOUT, looking).await {
            Ok(Ok(object)) => Ok(Some(object)),
            Ok(Err(Error::NotFound { .. })) => Ok(None),
            Ok(Err(error)) => Err(self.sentence(location, &reason(&error))),
            Err(_) => Err(self.sentence(
                location,
                &format!("no answer within {} s", HEAD_TIMEOUT.as_secs()),
            )),
        }
    }

    fn sentence(&self, location: &S3Location, why: &str) -> String {
        let keys = if std::env::var_os("AWS_ACCESS_KEY_ID").is_some() {
            ""
        } else {
            "; AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY are not set, so a role of this machine was looked for"
        };
        format!(
            "failed to look for {location} at {} (recording.s3): {why}{keys}",
            self.config.server()
        )
    }
}

/// An existing object.
#[derive(Clone)]
pub(super) struct S3Object {
    location: S3Location,
    path: Path,
    /// Bytes.
    pub size: u64,
    /// The ETag of this content.
    e_tag: Option<String>,
    client: Arc<AmazonS3>,
}

impl fmt::Debug for S3Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("S3Object")
            .field("location", &self.location)
            .field("size", &self.size)
            .finish_non_exhaustive()
    }
}

impl PartialEq for S3Object {
    fn eq(&self, other: &Self) -> bool {
        (&self.location, self.size, &self.e_tag) == (&other.location, other.size, &other.e_tag)
    }
}

impl Eq for S3Object {}

impl S3Object {
    /// Streams its bytes in chunks, each requested when the previous one was consumed. Fails if the
    /// object is replaced meanwhile.
    pub fn open(&self) -> RecordingStream {
        let pieces = stream::try_unfold((self.clone(), 0), |(object, from)| async move {
            if from >= object.size {
                return Ok(None);
            }
            let to = object.size.min(from + PIECE_BYTES);
            let options = GetOptions {
                range: Some((from..to).into()),
                if_match: object.e_tag.clone(),
                ..GetOptions::default()
            };
            let piece = async {
                object
                    .client
                    .get_opts(&object.path, options)
                    .await?
                    .bytes()
                    .await
            };
            let piece = piece.await.map_err(|error| {
                io::Error::other(format!("{} broke off: {}", object.location, reason(&error)))
            })?;
            Ok(Some((piece, (object, to))))
        });
        Box::pin(pieces)
    }
}

/// Describes an error for the operator.
fn reason(error: &Error) -> String {
    match error {
        Error::PermissionDenied { .. } => {
            "the keys may not read it (a server says that of a key that is not there, too, unless they may list the bucket)".to_owned()
        }
        Error::Unauthenticated { .. } => "the server does not accept the keys".to_owned(),
        Error::NotFound { .. } => "it is not there any more".to_owned(),
        Error::Precondition { .. } => "it was replaced by another while it was read".to_owned(),
        error => {
            // The innermost cause is the specific one.
            let mut cause: &dyn std::error::Error = error;
            while let Some(source) = cause.source() {
                cause = source;
            }
            cause.to_string()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_that_cannot_work_are_named() {
        let config = |bucket: &str, endpoint: &str| S3Config {
            buckets: vec![bucket.to_owned()],
            endpoint: endpoint.to_owned(),
            ..S3Config::default()
        };
        assert!(config("calls", "http://127.0.0.1:9000").check().is_ok());
        assert!(S3Config::default().check().is_ok());
        for (bucket, endpoint, key) in [
            ("s3://calls", "", "recording.s3.buckets"),
            ("", "", "recording.s3.buckets"),
            ("calls", "minio:9000", "recording.s3.endpoint"),
            ("calls", "ftp://minio", "recording.s3.endpoint"),
        ] {
            let error = config(bucket, endpoint).check().unwrap_err();
            assert!(error.contains(key), "{error}");
        }
    }

    #[test]
    fn a_bucket_is_in_the_path_or_in_the_host() {
        let mut config = S3Config {
            endpoint: "https://s3.example.com:9000/".to_owned(),
            ..S3Config::default()
        };
        assert_eq!(config.endpoint_of("calls"), "https://s3.example.com:9000");
        config.egress_bucket = "calls".to_owned();
        assert!(config.check().unwrap_err().contains("egress_bucket"));
        config.buckets = vec!["calls".to_owned()];
        assert_eq!(config.check(), Ok(()));
        config.path_style = false;
        assert_eq!(
            config.endpoint_of("calls"),
            "https://calls.s3.example.com:9000"
        );
    }
}
