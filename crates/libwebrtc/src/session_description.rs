//! A session description with its role in the offer/answer exchange.

use std::{fmt, str::FromStr};

use thiserror::Error;

use crate::jsep::sdp::Sdp;

/// Role of a description in the exchange.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub enum SdpType {
    /// Proposes an exchange.
    Offer,
    /// Provisional answer; the final one follows.
    PrAnswer,
    /// Completes the exchange.
    Answer,
    /// Ends the exchange without effect.
    Rollback,
}

impl FromStr for SdpType {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        [Self::Offer, Self::PrAnswer, Self::Answer, Self::Rollback]
            .into_iter()
            .find(|sdp_type| sdp_type.name() == text)
            .ok_or("invalid SdpType")
    }
}

impl SdpType {
    fn name(self) -> &'static str {
        match self {
            Self::Offer => "offer",
            Self::PrAnswer => "pranswer",
            Self::Answer => "answer",
            Self::Rollback => "rollback",
        }
    }
}

impl fmt::Display for SdpType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Why a text is not a session description or not a candidate.
#[derive(Clone, Error, Debug)]
#[error("Failed to parse sdp: {line} - {description}")]
pub struct SdpParseError {
    /// The line that could not be parsed.
    pub line: String,
    /// What is wrong with it.
    pub description: String,
}

/// A session description whose text has been checked.
#[derive(Clone)]
pub struct SessionDescription {
    sdp_type: SdpType,
    text: String,
}

impl SessionDescription {
    /// Checks a text and keeps it. `livekit` edits descriptions as text, so this is called on our
    /// own offers too.
    ///
    /// # Errors
    ///
    /// Names the first line that is malformed.
    pub fn parse(sdp: &str, sdp_type: SdpType) -> Result<Self, SdpParseError> {
        if sdp_type != SdpType::Rollback {
            Sdp::parse(sdp)?;
        }
        Ok(Self::from_checked(sdp_type, sdp.to_owned()))
    }

    pub(crate) fn from_checked(sdp_type: SdpType, text: String) -> Self {
        Self { sdp_type, text }
    }

    /// Role of the description.
    pub fn sdp_type(&self) -> SdpType {
        self.sdp_type
    }

    pub(crate) fn text(&self) -> &str {
        &self.text
    }
}

impl fmt::Display for SessionDescription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for SessionDescription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SessionDescription")
            .field("sdp_type", &self.sdp_type)
            .finish()
    }
}
