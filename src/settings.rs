//! What the sections of the settings are made of: secrets, and the LiveKit server. Imports nothing
//! of this program, so that everything may import it.

use std::fmt;

/// A value from the environment that must not be seen: it prints as `***`.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps a value that is already in memory, for example a key that a demonstration made up.
    pub fn new(value: impl Into<String>) -> Self {
        Self(value.into())
    }

    /// The value of an environment variable; nothing when it is unset or empty.
    pub fn from_env(name: &str) -> Option<Self> {
        std::env::var(name)
            .ok()
            .filter(|value| !value.is_empty())
            .map(Self)
    }

    /// The value itself, for the request that needs it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// The three values without which no LiveKit server can be talked to.
#[derive(Debug, Clone)]
pub struct LiveKitSettings {
    /// Address as configured.
    pub url: String,
    /// API key.
    pub api_key: String,
    /// API secret.
    pub api_secret: Secret,
}

/// The server's address for its HTTP services.
pub fn http_address(url: &str) -> String {
    match url.split_once("://") {
        Some(("ws", rest)) => format!("http://{rest}"),
        Some(("wss", rest)) => format!("https://{rest}"),
        _ => url.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_do_not_print() {
        assert_eq!(format!("{:?}", Secret::new("hunter2")), "***");
    }
}
