//! Session descriptions and transceivers: the offer/answer exchange as pure logic, without sockets
//! and time.

pub(crate) mod negotiation;
pub(crate) mod sdp;

/// Header extensions that audio sections offer, with the ids that Google's engine gives them.
pub(crate) const AUDIO_EXTENSIONS: &[(u8, &str)] = &[
    (1, "urn:ietf:params:rtp-hdrext:ssrc-audio-level"),
    (
        2,
        "http://www.webrtc.org/experiments/rtp-hdrext/abs-send-time",
    ),
    (
        3,
        "http://www.ietf.org/id/draft-holmer-rmcat-transport-wide-cc-extensions-01",
    ),
    (4, "urn:ietf:params:rtp-hdrext:sdes:mid"),
];
