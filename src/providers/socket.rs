//! A WebSocket to a vendor: opened within a limit, watched, and its end put into words.
//!
//! Knows no vendor's messages. A connection that is half open, on which TCP still seems well, is
//! noticed within [`PING_INTERVAL`] and [`PONG_LIMIT`] together.

use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::http::{self, HeaderName, HeaderValue, StatusCode};
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, WebSocketConfig};
use tokio_tungstenite::tungstenite::{self, Message};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};
use url::Url;

use super::ProviderError;
use super::openai::said;
use crate::settings::Secret;

/// How long opening may take, with name look-up and TLS.
const CONNECT_LIMIT: Duration = Duration::from_secs(3);

/// A connection without a message for this long is asked whether it is alive …
const PING_INTERVAL: Duration = Duration::from_secs(2);

/// … and is dead without any answer for this long.
const PONG_LIMIT: Duration = Duration::from_millis(2_500);

/// A message that cannot be written for this long means a dead connection.
const WRITE_LIMIT: Duration = Duration::from_secs(2);

/// How long the goodbye may take.
const CLOSE_LIMIT: Duration = Duration::from_millis(500);

/// The longest message, bytes. A second of sound is less than 200 kB in base64.
const MAX_MESSAGE: usize = 4 << 20;

/// The key of a vendor: the value of the first of `variables` that is set.
///
/// # Errors
/// When none is set; the error names the first.
pub(super) fn vendor_key(vendor: &str, variables: &[&str]) -> Result<Secret, ProviderError> {
    let set = variables.iter().find_map(|name| Secret::from_env(name));
    set.ok_or_else(|| {
        let name = variables.first().copied().unwrap_or_default();
        ProviderError::config(format!(
            "{name} is not set: {vendor} wants a key (environment variable)"
        ))
    })
}

/// How a vendor is told whose requests these are: the same for its recognition and its voices.
pub(in crate::providers) struct Account {
    /// The vendor, for messages.
    pub vendor: &'static str,
    /// The variables that hold its key, first choice first.
    pub variables: &'static [&'static str],
    /// The header with the key.
    pub header: &'static str,
    /// What stands in front of the key there.
    pub before: &'static str,
}

impl Account {
    /// The key.
    ///
    /// # Errors
    /// When no variable is set; the error names the first.
    pub fn key(&self) -> Result<Secret, ProviderError> {
        vendor_key(self.vendor, self.variables)
    }

    /// `path` below the vendor's `base_url`, with the key.
    ///
    /// # Errors
    /// When `base` is no address.
    pub fn address(&self, base: &str, path: &str, key: &Secret) -> Result<Address, ProviderError> {
        let mut address = Address::new(base, "base_url", path, self.variables[0])?;
        address.key(self.header, self.before, key);
        Ok(address)
    }
}

/// Where a vendor is, and how to be let in.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Address {
    url: Url,
    headers: Vec<(&'static str, String, bool)>,
    /// The variable that holds the key, for messages.
    key_name: &'static str,
}

impl Address {
    /// `path` below `base`, a `ws`, `wss`, `http` or `https` address that the key `setting` holds.
    ///
    /// # Errors
    /// When it is no address.
    pub fn new(
        base: &str,
        setting: &str,
        path: &str,
        key_name: &'static str,
    ) -> Result<Self, ProviderError> {
        let base = base.trim_end_matches('/');
        let wrong = |why: &str| ProviderError::config(format!("{setting} {base:?} {why}"));
        let mut url = Url::parse(&format!("{base}{path}"))
            .map_err(|error| wrong(&format!("is no address: {error}")))?;
        let scheme = match url.scheme() {
            "ws" | "http" => "ws",
            "wss" | "https" => "wss",
            other => return Err(wrong(&format!("begins with {other}: it must be wss"))),
        };
        url.set_scheme(scheme)
            .map_err(|()| wrong("has no usable scheme"))?;
        Ok(Self {
            url,
            headers: Vec::new(),
            key_name,
        })
    }

    /// Adds an option to the query.
    pub fn option(&mut self, name: &str, value: &str) {
        self.url.query_pairs_mut().append_pair(name, value);
    }

    /// Adds a header.
    pub fn header(&mut self, name: &'static str, value: &str) {
        self.headers.push((name, value.to_owned(), false));
    }

    /// Adds the header with the key, which has `before` in front of it.
    pub fn key(&mut self, name: &'static str, before: &str, key: &Secret) {
        let value = format!("{before}{}", key.expose());
        self.headers.push((name, value, true));
    }

    /// Host and port, for messages.
    pub fn host(&self) -> String {
        let host = self.url.host_str().unwrap_or_default();
        match self.url.port() {
            Some(port) => format!("{host}:{port}"),
            None => host.to_owned(),
        }
    }

    /// The address with its options, without the key; for tests of vendors.
    #[cfg(test)]
    pub fn url(&self) -> &str {
        self.url.as_str()
    }
}

/// An open connection.
pub(crate) struct Socket {
    stream: WebSocketStream<MaybeTlsStream<TcpStream>>,
    host: String,
    /// When something came last.
    last_message: Instant,
    /// When we asked whether it is alive.
    pinged: Option<Instant>,
}

/// What came.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Frame {
    Text(String),
    Binary(Vec<u8>),
}

impl Socket {
    /// Opens a connection.
    ///
    /// # Errors
    /// When the vendor refuses, or cannot be reached in time.
    pub async fn connect(address: &Address) -> Result<Self, ProviderError> {
        let host = address.host();
        let mut request = address
            .url
            .as_str()
            .into_client_request()
            .map_err(|error| ProviderError::config(format!("{host} is no address: {error}")))?;
        for (name, value, is_key) in &address.headers {
            let mut value = HeaderValue::from_str(value).map_err(|_| {
                let key = address.key_name;
                ProviderError::config(format!("{key} has characters that no header takes"))
            })?;
            value.set_sensitive(*is_key);
            request
                .headers_mut()
                .insert(HeaderName::from_static(name), value);
        }
        let config = WebSocketConfig::default()
            .max_message_size(Some(MAX_MESSAGE))
            .max_frame_size(Some(MAX_MESSAGE));
        let opening = tokio_tungstenite::connect_async_with_config(request, Some(config), true);
        match timeout(CONNECT_LIMIT, opening).await {
            Ok(Ok((stream, _))) => Ok(Self {
                stream,
                host,
                last_message: Instant::now(),
                pinged: None,
            }),
            Ok(Err(error)) => Err(refused(&host, address.key_name, error)),
            Err(_) => Err(ProviderError::temporary(format!(
                "{host} did not open a connection within {} s",
                CONNECT_LIMIT.as_secs()
            ))),
        }
    }

    /// Host and port, for messages.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Sends a message.
    ///
    /// # Errors
    /// When the connection is dead.
    pub async fn send(&mut self, message: Message) -> Result<(), ProviderError> {
        match timeout(WRITE_LIMIT, self.stream.send(message)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(broken(&self.host, &error)),
            Err(_) => Err(ProviderError::temporary(format!(
                "{} takes nothing any more",
                self.host
            ))),
        }
    }

    /// The next message with something in it. Can be dropped and called again.
    ///
    /// # Errors
    /// When the connection is closed or dead.
    pub async fn next(&mut self) -> Result<Frame, ProviderError> {
        loop {
            let deadline = match self.pinged {
                Some(at) => at + PONG_LIMIT,
                None => self.last_message + PING_INTERVAL,
            };
            let message = tokio::select! {
                biased;
                message = self.stream.next() => message,
                () = sleep_until(deadline) => {
                    if self.pinged.is_some() {
                        return Err(ProviderError::temporary(format!(
                            "{} does not answer any more, though the connection is open",
                            self.host
                        )));
                    }
                    self.pinged = Some(Instant::now());
                    self.send(Message::Ping(Default::default())).await?;
                    continue;
                }
            };
            self.last_message = Instant::now();
            self.pinged = None;
            match message {
                Some(Ok(Message::Text(text))) => return Ok(Frame::Text(text.as_str().to_owned())),
                Some(Ok(Message::Binary(bytes))) => return Ok(Frame::Binary(bytes.to_vec())),
                Some(Ok(Message::Close(frame))) => return Err(closed(&self.host, frame)),
                Some(Ok(_)) => {}
                Some(Err(error)) => return Err(broken(&self.host, &error)),
                None => return Err(closed(&self.host, None)),
            }
        }
    }

    /// Closes the connection properly, if the other side plays its part in time.
    pub async fn close(mut self, goodbye: Option<Message>) {
        let _ = timeout(CLOSE_LIMIT, async {
            if let Some(goodbye) = goodbye {
                self.stream.send(goodbye).await?;
            }
            self.stream.close(None).await
        })
        .await;
    }
}

/// What the end of a connection means. 1003, 1007, 1008 and 1009 object to what we sent (RFC 6455,
/// 7.4.1); everything else may pass.
fn closed(host: &str, frame: Option<CloseFrame>) -> ProviderError {
    let Some(frame) = frame else {
        return ProviderError::temporary(format!("{host} broke the connection off"));
    };
    let code = u16::from(frame.code);
    let reason = frame.reason.trim();
    let said = match reason.is_empty() {
        true => String::new(),
        false => format!(": {}", short(reason)),
    };
    let message = format!("{host} closed the connection ({code}){said}");
    match code {
        1003 | 1007 | 1008 | 1009 => ProviderError::bad_input(message),
        _ => ProviderError::temporary(message),
    }
}

fn broken(host: &str, error: &tungstenite::Error) -> ProviderError {
    ProviderError::temporary(format!("the connection to {host} broke: {error}"))
}

/// Why a connection was not opened.
fn refused(host: &str, key_name: &str, error: tungstenite::Error) -> ProviderError {
    let tungstenite::Error::Http(response) = error else {
        return ProviderError::temporary(format!("{host} cannot be reached: {error}"));
    };
    let status = response.status();
    let said = explanation(&response).map_or(String::new(), |text| format!(": {text}"));
    match status {
        // The message of a refused key may quote the key.
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
            ProviderError::config(format!("{host} refuses {key_name} ({status})"))
        }
        StatusCode::PAYMENT_REQUIRED => ProviderError::config(format!(
            "{host} wants to be paid first ({status}; the account of {key_name})"
        )),
        StatusCode::NOT_FOUND => ProviderError::config(format!(
            "{host} does not know the address or the model ({status}; base_url, model){said}"
        )),
        StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_EARLY | StatusCode::TOO_MANY_REQUESTS => {
            let retry_after = response
                .headers()
                .get(http::header::RETRY_AFTER)
                .and_then(|value| value.to_str().ok()?.trim().parse().ok())
                .map(Duration::from_secs);
            ProviderError::Temporary {
                message: format!("{host} asks us to wait ({status}){said}"),
                retry_after,
            }
        }
        status if status.is_client_error() => {
            ProviderError::config(format!("{host} refuses the settings ({status}){said}"))
        }
        status => ProviderError::temporary(format!("{host} failed ({status}){said}")),
    }
}

/// The explanation of a refusal: Deepgram writes it into a header, others into the body.
fn explanation(response: &http::Response<Option<Vec<u8>>>) -> Option<String> {
    if let Some(text) = response.headers().get("dg-error") {
        return text.to_str().ok().map(short);
    }
    let body = serde_json::from_slice(response.body().as_deref()?).ok()?;
    said(&body).or_else(|| said(body.get("err_msg")?))
}

fn short(text: &str) -> String {
    text.chars().take(200).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::future::pending;
    use tokio::net::TcpListener;
    use tungstenite::protocol::frame::coding::CloseCode;

    #[test]
    fn a_refusal_says_what_to_do_and_never_the_key() {
        let answer = |status: u16, header: Option<(&str, &str)>| {
            let mut response = http::Response::builder().status(status);
            if let Some((name, value)) = header {
                response = response.header(name, value);
            }
            let body = br#"{"err_msg":"x","message":"key sk-1"}"#.to_vec();
            let response = response.body(Some(body)).unwrap();
            let error = tungstenite::Error::Http(Box::new(response));
            refused("api.example", "EXAMPLE_API_KEY", error)
        };
        let refusal = answer(401, None);
        assert!(matches!(refusal, ProviderError::Config { .. }));
        let text = refusal.to_string();
        assert!(
            text.contains("EXAMPLE_API_KEY") && !text.contains("sk-1"),
            "{text}"
        );
        let ProviderError::Temporary { retry_after, .. } = answer(429, Some(("retry-after", "7")))
        else {
            panic!("too many requests pass")
        };
        assert_eq!(retry_after, Some(Duration::from_secs(7)));
        assert!(answer(500, None).is_temporary());
        let text = answer(400, Some(("dg-error", "Unknown model"))).to_string();
        assert!(text.contains("Unknown model"), "{text}");
    }

    #[test]
    fn a_close_code_tells_whether_asking_again_helps() {
        for (code, is_temporary) in [
            (1000, true),
            (1001, true),
            (1008, false),
            (1011, true),
            (4000, true),
        ] {
            let frame = CloseFrame {
                code: CloseCode::from(code),
                reason: "why".into(),
            };
            assert_eq!(
                closed("api.example", Some(frame)).is_temporary(),
                is_temporary,
                "{code}"
            );
        }
    }

    #[tokio::test]
    async fn a_half_open_connection_is_noticed_within_five_seconds() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("ws://{}", listener.local_addr().unwrap());
        let server = tokio::spawn(async move {
            let (stream, _) = listener.accept().await.unwrap();
            let socket = tokio_tungstenite::accept_async(stream).await.unwrap();
            // It reads nothing more, and so answers no ping.
            pending::<()>().await;
            drop(socket);
        });
        let address = Address::new(&base, "base_url", "/", "KEY").unwrap();
        let mut socket = Socket::connect(&address).await.unwrap();
        tokio::time::pause();
        let began = Instant::now();
        let error = socket.next().await.unwrap_err();
        assert!(
            began.elapsed() <= Duration::from_secs(5),
            "{:?}",
            began.elapsed()
        );
        assert!(error.is_temporary());
        server.abort();
    }
}
