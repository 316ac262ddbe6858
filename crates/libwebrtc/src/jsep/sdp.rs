//! Parses and writes session descriptions (RFC 8866, RFC 8829) as far as a connection needs them.
//!
//! Unknown lines are skipped; a known line that is malformed is an error that names it.

use std::fmt::Write;

use crate::{rtp_transceiver::RtpTransceiverDirection, session_description::SdpParseError};

/// What a section carries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Kind {
    Audio,
    Video,
    Application,
    Other(String),
}

impl Kind {
    fn name(&self) -> &str {
        match self {
            Self::Audio => "audio",
            Self::Video => "video",
            Self::Application => "application",
            Self::Other(name) => name,
        }
    }
}

/// In which directions media flows, seen from the side that wrote the description.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Direction {
    pub send: bool,
    pub receive: bool,
}

impl Direction {
    pub const SEND_RECV: Self = Self::new(true, true);
    pub const RECV_ONLY: Self = Self::new(false, true);
    pub const INACTIVE: Self = Self::new(false, false);

    pub const fn new(send: bool, receive: bool) -> Self {
        Self { send, receive }
    }

    /// The same direction seen from the other side.
    pub fn reversed(self) -> Self {
        Self::new(self.receive, self.send)
    }

    /// The directions that both allow.
    pub fn and(self, other: Self) -> Self {
        Self::new(self.send && other.send, self.receive && other.receive)
    }

    fn name(self) -> &'static str {
        match (self.send, self.receive) {
            (true, true) => "sendrecv",
            (true, false) => "sendonly",
            (false, true) => "recvonly",
            (false, false) => "inactive",
        }
    }

    fn from_name(name: &str) -> Option<Self> {
        [(true, true), (true, false), (false, true), (false, false)]
            .map(|(send, receive)| Self::new(send, receive))
            .into_iter()
            .find(|direction| direction.name() == name)
    }
}

impl From<RtpTransceiverDirection> for Direction {
    fn from(direction: RtpTransceiverDirection) -> Self {
        match direction {
            RtpTransceiverDirection::SendRecv => Self::new(true, true),
            RtpTransceiverDirection::SendOnly => Self::new(true, false),
            RtpTransceiverDirection::RecvOnly => Self::new(false, true),
            RtpTransceiverDirection::Inactive | RtpTransceiverDirection::Stopped => Self::INACTIVE,
        }
    }
}

impl From<Direction> for RtpTransceiverDirection {
    fn from(direction: Direction) -> Self {
        match (direction.send, direction.receive) {
            (true, true) => Self::SendRecv,
            (true, false) => Self::SendOnly,
            (false, true) => Self::RecvOnly,
            (false, false) => Self::Inactive,
        }
    }
}

/// Which side starts the DTLS handshake (RFC 8842).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Setup {
    ActPass,
    Active,
    Passive,
}

impl Setup {
    fn name(self) -> &'static str {
        match self {
            Self::ActPass => "actpass",
            Self::Active => "active",
            Self::Passive => "passive",
        }
    }
}

/// A codec of a section.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Codec {
    pub payload_type: u8,
    pub name: String,
    pub clock_rate: u32,
    pub channels: Option<u16>,
    /// Parameters as written: `minptime=10;useinbandfec=1`.
    pub parameters: String,
    /// Feedback messages as written: `transport-cc`, `nack pli`.
    pub feedback: Vec<String>,
}

impl Codec {
    pub fn is(&self, name: &str) -> bool {
        self.name.eq_ignore_ascii_case(name)
    }

    /// Value of a parameter.
    pub fn parameter(&self, name: &str) -> Option<&str> {
        self.parameters.split(';').find_map(|parameter| {
            let (key, value) = parameter.split_once('=')?;
            (key.trim().eq_ignore_ascii_case(name)).then_some(value.trim())
        })
    }
}

/// ICE and DTLS of a section or of the whole description.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Transport {
    pub ufrag: Option<String>,
    pub password: Option<String>,
    /// As written: `sha-256 AB:CD:…`.
    pub fingerprint: Option<String>,
    pub setup: Option<Setup>,
    /// As written, without `a=`.
    pub candidates: Vec<String>,
}

/// One section (`m=` and the lines that follow it).
#[derive(Debug, Clone)]
pub(crate) struct Section {
    pub kind: Kind,
    /// Port 0 without being part of a bundle: this section is not wanted.
    pub refused: bool,
    pub protocol: String,
    /// Payload types, or the name of the data channel format.
    pub formats: Vec<String>,
    pub mid: String,
    pub direction: Direction,
    pub codecs: Vec<Codec>,
    /// Ids and URIs of header extensions.
    pub extensions: Vec<(u8, String)>,
    /// Stream id and track id.
    pub msid: Vec<(String, String)>,
    /// SSRC and CNAME.
    pub ssrcs: Vec<(u32, String)>,
    pub transport: Transport,
    /// Largest data channel message that the writer of the description accepts, in bytes; 0 is no
    /// limit.
    pub max_message_size: Option<u64>,
}

impl Section {
    pub fn new(kind: Kind, mid: &str) -> Self {
        let is_data = kind == Kind::Application;
        Self {
            kind,
            refused: false,
            protocol: if is_data {
                "UDP/DTLS/SCTP"
            } else {
                "UDP/TLS/RTP/SAVPF"
            }
            .to_owned(),
            formats: if is_data {
                vec!["webrtc-datachannel".to_owned()]
            } else {
                vec![]
            },
            mid: mid.to_owned(),
            direction: Direction::SEND_RECV,
            codecs: vec![],
            extensions: vec![],
            msid: vec![],
            ssrcs: vec![],
            transport: Transport::default(),
            max_message_size: None,
        }
    }

    /// This section as refused (port 0).
    pub fn refusal(&self) -> Self {
        let mut refusal = Self::new(self.kind.clone(), &self.mid);
        refusal.protocol = self.protocol.clone();
        refusal.formats = self.formats.clone();
        refusal.refused = true;
        refusal.direction = Direction::INACTIVE;
        refusal
    }

    /// The codec for redundant audio (RFC 2198) whose blocks are all of the given payload type.
    pub fn red_for(&self, payload_type: u8) -> Option<&Codec> {
        self.codecs.iter().find(|codec| {
            let blocks = || codec.parameters.trim().split('/');
            codec.is("red")
                && codec.clock_rate == 48_000
                && codec.channels == Some(2)
                && blocks().all(|block| block.parse() == Ok(payload_type))
        })
    }

    /// Whether the writer prefers one payload type to another: the order in the first line is the
    /// order of preference (RFC 3264, section 5.1).
    pub fn prefers(&self, payload_type: u8, other: u8) -> bool {
        let place = |wanted: u8| {
            let is_it = |format: &String| format.parse() == Ok(wanted);
            self.formats.iter().position(is_it)
        };
        match (place(payload_type), place(other)) {
            (Some(one), Some(other)) => one < other,
            (one, _) => one.is_some(),
        }
    }

    fn codec_mut(&mut self, payload_type: &str) -> Option<&mut Codec> {
        let payload_type: u8 = payload_type.parse().ok()?;
        self.codecs
            .iter_mut()
            .find(|codec| codec.payload_type == payload_type)
    }

    fn write(&self, out: &mut String) {
        let formats = if self.codecs.is_empty() {
            if self.formats.is_empty() {
                "0".to_owned()
            } else {
                self.formats.join(" ")
            }
        } else {
            let numbers: Vec<_> = self
                .codecs
                .iter()
                .map(|codec| codec.payload_type.to_string())
                .collect();
            numbers.join(" ")
        };
        let port = if self.refused { 0 } else { 9 };
        line(
            out,
            format_args!("m={} {port} {} {formats}", self.kind.name(), self.protocol),
        );
        line(out, format_args!("c=IN IP4 0.0.0.0"));
        for candidate in &self.transport.candidates {
            line(out, format_args!("a={candidate}"));
        }
        let transport = &self.transport;
        if let (Some(ufrag), Some(password)) = (&transport.ufrag, &transport.password) {
            line(out, format_args!("a=ice-ufrag:{ufrag}"));
            line(out, format_args!("a=ice-pwd:{password}"));
            line(out, format_args!("a=ice-options:trickle"));
        }
        if let Some(fingerprint) = &transport.fingerprint {
            line(out, format_args!("a=fingerprint:{fingerprint}"));
        }
        if let Some(setup) = transport.setup {
            line(out, format_args!("a=setup:{}", setup.name()));
        }
        line(out, format_args!("a=mid:{}", self.mid));
        if self.kind == Kind::Application {
            if !self.refused {
                line(out, format_args!("a=sctp-port:5000"));
            }
            if let Some(size) = self.max_message_size {
                line(out, format_args!("a=max-message-size:{size}"));
            }
            return;
        }
        for (id, uri) in &self.extensions {
            line(out, format_args!("a=extmap:{id} {uri}"));
        }
        line(out, format_args!("a={}", self.direction.name()));
        for (stream, track) in &self.msid {
            line(out, format_args!("a=msid:{stream} {track}"));
        }
        if !self.refused {
            line(out, format_args!("a=rtcp-mux"));
        }
        for codec in &self.codecs {
            self.write_codec(codec, out);
        }
        for (ssrc, cname) in &self.ssrcs {
            line(out, format_args!("a=ssrc:{ssrc} cname:{cname}"));
            for (stream, track) in &self.msid {
                line(out, format_args!("a=ssrc:{ssrc} msid:{stream} {track}"));
            }
        }
    }

    fn write_codec(&self, codec: &Codec, out: &mut String) {
        let number = codec.payload_type;
        let channels = codec
            .channels
            .map(|channels| format!("/{channels}"))
            .unwrap_or_default();
        line(
            out,
            format_args!(
                "a=rtpmap:{number} {}/{}{channels}",
                codec.name, codec.clock_rate
            ),
        );
        for feedback in &codec.feedback {
            line(out, format_args!("a=rtcp-fb:{number} {feedback}"));
        }
        if !codec.parameters.is_empty() {
            line(out, format_args!("a=fmtp:{number} {}", codec.parameters));
        }
    }
}

/// A session description.
#[derive(Debug, Clone)]
pub(crate) struct Sdp {
    /// The writer is an ICE lite agent: it only answers connectivity checks (RFC 8445, section
    /// 2.5).
    pub ice_lite: bool,
    /// The attributes before the first section, which hold for all of them.
    pub transport: Transport,
    pub sections: Vec<Section>,
}

impl Sdp {
    /// Parses a description.
    ///
    /// # Errors
    ///
    /// Names the first line that is malformed.
    pub fn parse(text: &str) -> Result<Self, SdpParseError> {
        let mut sdp = Self {
            ice_lite: false,
            transport: Transport::default(),
            sections: Vec::new(),
        };
        // Mids of the bundle, and for every section whether its port was 0.
        let mut bundle: Vec<String> = Vec::new();
        let mut port_is_zero: Vec<bool> = Vec::new();
        let mut lines = text
            .split('\n')
            .map(|line| line.trim_end_matches('\r'))
            .filter(|line| !line.is_empty());
        match lines.next() {
            Some("v=0") => {}
            other => return Err(error(other.unwrap_or_default(), "Expect line: v=")),
        }
        for line in lines {
            // Neither may stand in a line (RFC 8866, section 9: byte-string). Others may take them
            // for the end of a line, and then a value could smuggle lines into descriptions that
            // are made from this one.
            if line.contains(['\r', '\0']) {
                return Err(error(
                    line,
                    "a line must not contain a carriage return or a zero byte",
                ));
            }
            let Some((kind, value)) = line.split_once('=').filter(|(kind, _)| kind.len() == 1)
            else {
                return Err(error(
                    line,
                    "a line must be a letter, an equals sign and a value",
                ));
            };
            match kind {
                "m" => {
                    let (section, port) = parse_media_line(line, value)?;
                    sdp.sections.push(section);
                    port_is_zero.push(port == 0);
                }
                "a" => {
                    let (name, value) = value.split_once(':').unwrap_or((value, ""));
                    match sdp.sections.split_last_mut() {
                        // No two sections share one (RFC 5888, section 4).
                        Some((_, before))
                            if name == "mid"
                                && !value.is_empty()
                                && before.iter().any(|it| it.mid == value) =>
                        {
                            return Err(error(line, "another section has the same mid"));
                        }
                        Some((section, _)) => parse_section_attribute(section, line, name, value)?,
                        None if name == "ice-lite" => sdp.ice_lite = true,
                        None if name == "group" => {
                            let mut words = value.split_ascii_whitespace();
                            if words.next() == Some("BUNDLE") {
                                bundle.extend(words.map(str::to_owned));
                            }
                        }
                        None => {
                            parse_transport_attribute(&mut sdp.transport, line, name, value)?;
                        }
                    }
                }
                _ => {}
            }
        }
        for (section, port_is_zero) in sdp.sections.iter_mut().zip(port_is_zero) {
            // A section that shares the transport of the first one may have port 0 too (RFC 8843,
            // section 7.2).
            section.refused = port_is_zero && !bundle.contains(&section.mid);
        }
        Ok(sdp)
    }

    /// Writes the description with the given session id and version (`o=`).
    pub fn to_text(&self, session_id: u64, version: u64) -> String {
        let mut out = String::with_capacity(2048);
        line(&mut out, format_args!("v=0"));
        line(
            &mut out,
            format_args!("o=- {session_id} {version} IN IP4 127.0.0.1"),
        );
        line(&mut out, format_args!("s=-"));
        line(&mut out, format_args!("t=0 0"));
        if self.ice_lite {
            line(&mut out, format_args!("a=ice-lite"));
        }
        let mids: Vec<_> = self
            .sections
            .iter()
            .filter(|section| !section.refused)
            .map(|section| section.mid.as_str())
            .collect();
        line(&mut out, format_args!("a=group:BUNDLE {}", mids.join(" ")));
        line(&mut out, format_args!("a=extmap-allow-mixed"));
        line(&mut out, format_args!("a=msid-semantic: WMS"));
        for section in &self.sections {
            section.write(&mut out);
        }
        out
    }

    /// ICE credentials: those of the whole description, else the first that a section has.
    pub fn credentials(&self) -> Option<(String, String)> {
        self.transports()
            .find_map(|transport| Some((transport.ufrag.clone()?, transport.password.clone()?)))
    }

    /// Certificate fingerprint of the writer.
    pub fn fingerprint(&self) -> Option<String> {
        self.transports()
            .find_map(|transport| transport.fingerprint.clone())
    }

    /// Which side the writer wants to start the DTLS handshake.
    pub fn setup(&self) -> Option<Setup> {
        self.transports().find_map(|transport| transport.setup)
    }

    /// Candidates of all sections.
    pub fn candidates(&self) -> impl Iterator<Item = &str> {
        self.transports()
            .flat_map(|transport| transport.candidates.iter().map(String::as_str))
    }

    fn transports(&self) -> impl Iterator<Item = &Transport> {
        let sections = self.sections.iter().filter(|section| !section.refused);
        std::iter::once(&self.transport).chain(sections.map(|section| &section.transport))
    }
}

fn line(out: &mut String, text: std::fmt::Arguments<'_>) {
    out.write_fmt(text)
        .expect("writing to a string cannot fail");
    out.push_str("\r\n");
}

fn error(line: &str, description: &str) -> SdpParseError {
    SdpParseError {
        line: line.to_owned(),
        description: description.to_owned(),
    }
}

fn parse_media_line(line: &str, value: &str) -> Result<(Section, u16), SdpParseError> {
    let mut words = value.split_ascii_whitespace();
    let (Some(kind), Some(port), Some(protocol)) = (words.next(), words.next(), words.next())
    else {
        return Err(error(
            line,
            "m= needs a kind, a port, a protocol and formats",
        ));
    };
    let port = port.split('/').next().unwrap_or_default();
    let port: u16 = port
        .parse()
        .map_err(|_| error(line, "the port is no number below 65536"))?;
    let kind = match kind {
        "audio" => Kind::Audio,
        "video" => Kind::Video,
        "application" => Kind::Application,
        other => Kind::Other(other.to_owned()),
    };
    let mut section = Section::new(kind, "");
    section.protocol = protocol.to_owned();
    section.formats = words.map(str::to_owned).collect();
    Ok((section, port))
}

fn parse_transport_attribute(
    transport: &mut Transport,
    line: &str,
    name: &str,
    value: &str,
) -> Result<(), SdpParseError> {
    match name {
        "ice-ufrag" => transport.ufrag = Some(value.to_owned()),
        "ice-pwd" => transport.password = Some(value.to_owned()),
        // Several may be given for several hashes; the strongest common one is SHA-256, which
        // everybody has.
        "fingerprint"
            if transport.fingerprint.is_none()
                || value.to_ascii_lowercase().starts_with("sha-256") =>
        {
            transport.fingerprint = Some(value.to_owned());
        }
        "setup" => {
            transport.setup = Some(match value {
                "actpass" => Setup::ActPass,
                "active" => Setup::Active,
                "passive" => Setup::Passive,
                _ => return Err(error(line, "setup must be actpass, active or passive")),
            });
        }
        "candidate" => transport.candidates.push(format!("candidate:{value}")),
        _ => {}
    }
    Ok(())
}

fn parse_section_attribute(
    section: &mut Section,
    line: &str,
    name: &str,
    value: &str,
) -> Result<(), SdpParseError> {
    match name {
        "mid" => section.mid = value.to_owned(),
        "sendrecv" | "sendonly" | "recvonly" | "inactive" => {
            section.direction = Direction::from_name(name).unwrap_or(Direction::SEND_RECV);
        }
        "msid" => {
            let (stream, track) = value.split_once(' ').unwrap_or((value, ""));
            section.msid.push((stream.to_owned(), track.to_owned()));
        }
        "rtpmap" => section.codecs.push(parse_rtpmap(line, value)?),
        "fmtp" => {
            if let Some((number, parameters)) = value.split_once(' ')
                && let Some(codec) = section.codec_mut(number)
            {
                codec.parameters = parameters.to_owned();
            }
        }
        "rtcp-fb" => {
            if let Some((number, feedback)) = value.split_once(' ')
                && let Some(codec) = section.codec_mut(number)
            {
                codec.feedback.push(feedback.to_owned());
            }
        }
        "extmap" => {
            let (id, uri) = value
                .split_once(' ')
                .ok_or_else(|| error(line, "extmap needs an id and a URI"))?;
            let id = id.split('/').next().unwrap_or_default();
            let id = id
                .parse()
                .map_err(|_| error(line, "the id of extmap is no number"))?;
            let uri = uri.split(' ').next().unwrap_or_default();
            section.extensions.push((id, uri.to_owned()));
        }
        "ssrc" => {
            let (ssrc, attribute) = value.split_once(' ').unwrap_or((value, ""));
            let ssrc = ssrc
                .parse()
                .map_err(|_| error(line, "the SSRC is no number"))?;
            if !section.ssrcs.iter().any(|(known, _)| *known == ssrc) {
                section.ssrcs.push((ssrc, String::new()));
            }
            if let Some(cname) = attribute.strip_prefix("cname:")
                && let Some(entry) = section.ssrcs.iter_mut().find(|(known, _)| *known == ssrc)
            {
                entry.1 = cname.to_owned();
            }
        }
        "max-message-size" => {
            let size = value
                .parse()
                .map_err(|_| error(line, "the size is no number"))?;
            section.max_message_size = Some(size);
        }
        _ => parse_transport_attribute(&mut section.transport, line, name, value)?,
    }
    Ok(())
}

fn parse_rtpmap(line: &str, value: &str) -> Result<Codec, SdpParseError> {
    let broken = || error(line, "rtpmap needs a payload type, a name and a clock rate");
    let (number, codec) = value.split_once(' ').ok_or_else(broken)?;
    let mut parts = codec.trim().split('/');
    let (Some(name), Some(clock_rate)) = (parts.next(), parts.next()) else {
        return Err(broken());
    };
    Ok(Codec {
        payload_type: number.parse().map_err(|_| broken())?,
        name: name.to_owned(),
        clock_rate: clock_rate.parse().map_err(|_| broken())?,
        channels: parts.next().and_then(|channels| channels.parse().ok()),
        parameters: String::new(),
        feedback: vec![],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const OFFER: &str = "v=0\r\no=- 7 2 IN IP4 0.0.0.0\r\ns=-\r\nt=0 0\r\na=ice-lite\r\n\
        a=fingerprint:sha-256 AA:BB\r\na=group:BUNDLE 0 1\r\n\
        m=audio 9 UDP/TLS/RTP/SAVPF 109 0\r\nc=IN IP4 0.0.0.0\r\na=setup:actpass\r\na=mid:0\r\n\
        a=ice-ufrag:user\r\na=ice-pwd:secret\r\na=rtpmap:109 opus/48000/2\r\na=rtpmap:0 PCMU/8000\r\n\
        a=rtcp-fb:109 transport-cc\r\na=fmtp:109 minptime=10;useinbandfec=1; stereo=1\r\n\
        a=extmap:5/recvonly urn:ietf:params:rtp-hdrext:sdes:mid\r\na=ssrc:99 cname:me\r\n\
        a=ssrc:99 msid:PA_x|TR_y TR_y\r\na=msid:PA_x|TR_y TR_y\r\na=sendonly\r\n\
        a=candidate:1 1 udp 2130706431 127.0.0.1 5000 typ host\r\n\
        m=application 0 UDP/DTLS/SCTP webrtc-datachannel\r\na=mid:1\r\na=sctp-port:5000\r\n\
        a=max-message-size:65535\r\n\
        m=video 0 UDP/TLS/RTP/SAVPF 96\r\na=mid:2\r\na=rtpmap:96 VP8/90000\r\n";

    #[test]
    fn offer_of_a_server_is_read() {
        let sdp = Sdp::parse(OFFER).expect("the offer is well formed");
        assert!(sdp.ice_lite);
        assert_eq!(sdp.credentials(), Some(("user".into(), "secret".into())));
        assert_eq!(sdp.fingerprint().as_deref(), Some("sha-256 AA:BB"));
        assert_eq!(sdp.setup(), Some(Setup::ActPass));
        let audio = &sdp.sections[0];
        assert_eq!(audio.direction, Direction::new(true, false));
        assert_eq!(audio.msid, [("PA_x|TR_y".into(), "TR_y".into())]);
        assert_eq!(audio.ssrcs, [(99, "me".into())]);
        assert_eq!(
            audio.extensions,
            [(5, "urn:ietf:params:rtp-hdrext:sdes:mid".into())]
        );
        assert_eq!(audio.codecs[0].parameter("stereo"), Some("1"));
        assert_eq!(audio.codecs[0].parameter("usedtx"), None);
        assert_eq!(sdp.candidates().count(), 1);
    }

    #[test]
    fn port_zero_means_refused_only_outside_the_bundle() {
        let sdp = Sdp::parse(OFFER).expect("the offer is well formed");
        let refused: Vec<_> = sdp.sections.iter().map(|section| section.refused).collect();
        assert_eq!(refused, [false, false, true]);
    }

    #[test]
    fn what_is_written_reads_the_same() {
        let sdp = Sdp::parse(OFFER).expect("the offer is well formed");
        let again = Sdp::parse(&sdp.to_text(1, 2)).expect("our own text is well formed");
        assert_eq!(again.sections.len(), 3);
        assert_eq!(again.sections[0].codecs, sdp.sections[0].codecs);
        assert_eq!(again.sections[0].transport, sdp.sections[0].transport);
        assert_eq!(again.sections[1].max_message_size, Some(65535));
        assert!(again.sections[2].refused);
    }

    #[test]
    fn line_feeds_alone_are_accepted() {
        assert_eq!(
            Sdp::parse(&OFFER.replace("\r\n", "\n"))
                .expect("read")
                .sections
                .len(),
            3
        );
    }

    #[test]
    fn broken_lines_are_named() {
        for (text, line) in [
            ("", ""),
            ("hello", "hello"),
            ("v=0\r\nnonsense\r\n", "nonsense"),
            ("v=0\r\nm=audio\r\n", "m=audio"),
            (
                "v=0\r\nm=audio 70000 RTP/AVP 0\r\n",
                "m=audio 70000 RTP/AVP 0",
            ),
            (
                "v=0\r\nm=audio 9 RTP/AVP 0\r\na=rtpmap:x opus/48000\r\n",
                "a=rtpmap:x opus/48000",
            ),
            ("v=0\r\na=setup:later\r\n", "a=setup:later"),
            (
                "v=0\r\na=ice-ufrag:x\ra=candidate:1\r\n",
                "a=ice-ufrag:x\ra=candidate:1",
            ),
            ("v=0\r\na=ice-pwd:x\0y\r\n", "a=ice-pwd:x\0y"),
            (
                "v=0\r\nm=audio 9 RTP/AVP 0\r\na=mid:a\r\nm=video 9 RTP/AVP 96\r\na=mid:a\r\n",
                "a=mid:a",
            ),
        ] {
            assert_eq!(Sdp::parse(text).expect_err("must be refused").line, line);
        }
    }
}
