//! Reads session descriptions (RFC 8866, RFC 8829) as far as a connection needs them.

use crate::session_description::SdpParseError;

/// A session description.
#[derive(Debug, Clone)]
pub(crate) struct Sdp {}

impl Sdp {
    pub fn parse(text: &str) -> Result<Self, SdpParseError> {
        let first = text.lines().next().unwrap_or_default();
        if first.trim_end() != "v=0" {
            return Err(SdpParseError {
                line: first.to_owned(),
                description: "Expect line: v=".to_owned(),
            });
        }
        Ok(Self {})
    }
}
