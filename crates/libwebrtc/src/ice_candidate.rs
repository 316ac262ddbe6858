//! An ICE candidate as it is sent in signalling.

use std::fmt;

use crate::session_description::SdpParseError;

/// A candidate line with the m-section it belongs to.
#[derive(Clone)]
pub struct IceCandidate {
    mid: String,
    mline_index: i32,
    candidate: String,
}

impl IceCandidate {
    /// Parses a candidate. An empty one marks the end of candidates and is accepted.
    ///
    /// # Errors
    ///
    /// When the text is not a candidate line.
    pub fn parse(
        sdp_mid: &str,
        sdp_mline_index: i32,
        sdp: &str,
    ) -> Result<IceCandidate, SdpParseError> {
        let text = sdp.trim();
        let text = text.strip_prefix("a=").unwrap_or(text);
        let is_end = text.is_empty() || text == "candidate:";
        if !is_end {
            str0m::Candidate::from_sdp_string(text).map_err(|error| SdpParseError {
                line: sdp.to_owned(),
                description: error.to_string(),
            })?;
        }
        Ok(Self::new(sdp_mid, sdp_mline_index, text))
    }

    pub(crate) fn new(mid: &str, mline_index: i32, candidate: &str) -> Self {
        Self {
            mid: mid.to_owned(),
            mline_index,
            candidate: candidate.to_owned(),
        }
    }

    /// Identification tag of the m-section.
    pub fn sdp_mid(&self) -> String {
        self.mid.clone()
    }

    /// Index of the m-section.
    pub fn sdp_mline_index(&self) -> i32 {
        self.mline_index
    }

    /// The candidate itself, starting with `candidate:`.
    pub fn candidate(&self) -> String {
        self.candidate.clone()
    }
}

impl fmt::Display for IceCandidate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.candidate)
    }
}

impl fmt::Debug for IceCandidate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IceCandidate")
            .field("candidate", &self.candidate)
            .finish()
    }
}
