//! Parameters of senders and receivers: codecs, header extensions, encodings.

use crate::rtp_transceiver::RtpTransceiverDirection;

/// Priority of an encoding or a data channel.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub enum Priority {
    /// Half the share of `Low`.
    VeryLow,
    /// The default.
    Low,
    /// Twice the share of `Low`.
    Medium,
    /// Four times the share of `Low`.
    High,
}

/// What a video encoder reduces first when the bandwidth is low. Stored for the API; there is no
/// video encoder.
#[derive(Debug, Copy, Clone, PartialEq, Eq, Default)]
pub enum DegradationPreference {
    /// Nothing is given up.
    MaintainFramerateAndResolution,
    /// The resolution is reduced.
    MaintainFramerate,
    /// The frame rate is reduced.
    MaintainResolution,
    /// Both are reduced in balance.
    #[default]
    Balanced,
}

/// A header extension in use.
#[derive(Debug, Clone)]
pub struct RtpHeaderExtensionParameters {
    /// URI that names the extension.
    pub uri: String,
    /// Id of the extension in packets.
    pub id: i32,
    /// Whether the extension is encrypted (RFC 6904).
    pub encrypted: bool,
}

/// Parameters of a sender or receiver.
#[derive(Debug, Clone, Default)]
pub struct RtpParameters {
    /// Codecs in the order of preference.
    pub codecs: Vec<RtpCodecParameters>,
    /// Header extensions.
    pub header_extensions: Vec<RtpHeaderExtensionParameters>,
    /// Encodings of a sender; empty for a receiver.
    pub encodings: Vec<RtpEncodingParameters>,
    /// RTCP settings.
    pub rtcp: RtcpParameters,
    pub(crate) degradation_preference: Option<DegradationPreference>,
}

impl RtpParameters {
    /// Sets what a video encoder reduces first.
    pub fn set_degradation_preference(&mut self, preference: DegradationPreference) {
        self.degradation_preference = Some(preference);
    }

    /// What was set with [`RtpParameters::set_degradation_preference`].
    pub fn degradation_preference(&self) -> Option<DegradationPreference> {
        self.degradation_preference
    }
}

/// A codec in use.
#[derive(Debug, Clone, Default)]
pub struct RtpCodecParameters {
    /// RTP payload type.
    pub payload_type: u8,
    /// For example `audio/opus`.
    pub mime_type: String,
    /// In hertz.
    pub clock_rate: Option<u64>,
    /// Number of channels; `None` for video.
    pub channels: Option<u16>,
}

/// RTCP parameters.
#[derive(Debug, Clone, Default)]
pub struct RtcpParameters {
    /// Canonical name of the sender (RFC 3550, section 6.5.1).
    pub cname: String,
    /// Whether reduced-size RTCP is used (RFC 5506).
    pub reduced_size: bool,
}

/// One encoding of a sender.
#[derive(Debug, Clone)]
pub struct RtpEncodingParameters {
    /// Whether this encoding is sent at all.
    pub active: bool,
    /// Limit in bits per second.
    pub max_bitrate: Option<u64>,
    /// Limit in frames per second (video).
    pub max_framerate: Option<f64>,
    /// Priority among all encodings.
    pub priority: Priority,
    /// Restriction identifier of a simulcast layer; empty without simulcast.
    pub rid: String,
    /// Divisor of width and height (video).
    pub scale_resolution_down_by: Option<f64>,
    /// Scalability mode, such as `L1T3` (video).
    pub scalability_mode: Option<String>,
    /// Whether `ssrc` is set.
    pub has_ssrc: bool,
    /// SSRC of the stream.
    pub ssrc: u32,
}

impl Default for RtpEncodingParameters {
    fn default() -> Self {
        Self {
            active: true,
            max_bitrate: None,
            max_framerate: None,
            priority: Priority::Low,
            rid: String::new(),
            scale_resolution_down_by: None,
            scalability_mode: None,
            has_ssrc: false,
            ssrc: 0,
        }
    }
}

/// A codec that this crate can send or receive.
#[derive(Debug, Clone)]
pub struct RtpCodecCapability {
    /// Number of channels; `None` for video.
    pub channels: Option<u16>,
    /// In hertz.
    pub clock_rate: Option<u64>,
    /// For example `audio/opus`.
    pub mime_type: String,
    /// Parameters as in SDP: `minptime=10;useinbandfec=1`.
    pub sdp_fmtp_line: Option<String>,
}

/// A header extension that this crate can send or receive.
#[derive(Debug, Clone)]
pub struct RtpHeaderExtensionCapability {
    /// URI that names the extension.
    pub uri: String,
    /// In which directions the extension can be used.
    pub direction: RtpTransceiverDirection,
}

/// Everything that this crate can send or receive for one kind of media.
#[derive(Debug, Clone)]
pub struct RtpCapabilities {
    /// Codecs in the order of preference.
    pub codecs: Vec<RtpCodecCapability>,
    /// Header extensions.
    pub header_extensions: Vec<RtpHeaderExtensionCapability>,
}
