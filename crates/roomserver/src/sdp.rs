//! Session descriptions as text: what str0m's own negotiation leaves out.
//!
//! str0m negotiates; it knows nothing of LiveKit's rules. Which track a section carries, that a
//! publisher receives nothing on its own section, and the Opus parameters are put into the text
//! that the client sees. Nothing here changes how str0m itself understands a description.

use std::fmt;

/// A session description, split into lines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Description {
    session: Vec<String>,
    pub sections: Vec<Section>,
}

/// An `m=` section.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Section {
    lines: Vec<String>,
}

/// The direction of a section, from the point of view of whoever wrote the description.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    SendRecv,
    SendOnly,
    RecvOnly,
    Inactive,
}

impl Direction {
    const ALL: [Self; 4] = [
        Self::SendRecv,
        Self::SendOnly,
        Self::RecvOnly,
        Self::Inactive,
    ];

    fn attribute(self) -> &'static str {
        match self {
            Self::SendRecv => "a=sendrecv",
            Self::SendOnly => "a=sendonly",
            Self::RecvOnly => "a=recvonly",
            Self::Inactive => "a=inactive",
        }
    }

    pub fn sends(self) -> bool {
        matches!(self, Self::SendRecv | Self::SendOnly)
    }
}

/// What a section carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Medium {
    Audio,
    Video,
    Data,
}

impl Description {
    pub fn parse(text: &str) -> Self {
        let mut session = Vec::new();
        let mut sections: Vec<Section> = Vec::new();
        for line in text
            .lines()
            .map(str::trim_end)
            .filter(|line| !line.is_empty())
        {
            if line.starts_with("m=") {
                sections.push(Section {
                    lines: vec![line.to_owned()],
                });
            } else if let Some(section) = sections.last_mut() {
                section.lines.push(line.to_owned());
            } else {
                session.push(line.to_owned());
            }
        }
        Self { session, sections }
    }

    /// Removes the stream list of the whole description; each section names its own, and the list
    /// would be out of date.
    pub fn clear_stream_list(&mut self) {
        for line in &mut self.session {
            if line.starts_with("a=msid-semantic:") {
                *line = "a=msid-semantic: WMS *".to_owned();
            }
        }
    }

    pub fn section_mut(&mut self, mid: &str) -> Option<&mut Section> {
        self.sections
            .iter_mut()
            .find(|section| section.mid() == Some(mid))
    }
}

impl fmt::Display for Description {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for line in self
            .session
            .iter()
            .chain(self.sections.iter().flat_map(|section| &section.lines))
        {
            write!(formatter, "{line}\r\n")?;
        }
        Ok(())
    }
}

impl Section {
    fn attribute(&self, prefix: &str) -> Option<&str> {
        self.lines.iter().find_map(|line| line.strip_prefix(prefix))
    }

    pub fn mid(&self) -> Option<&str> {
        self.attribute("a=mid:")
    }

    pub fn medium(&self) -> Medium {
        match self.lines[0].strip_prefix("m=").unwrap_or_default() {
            line if line.starts_with("audio") => Medium::Audio,
            line if line.starts_with("video") => Medium::Video,
            _ => Medium::Data,
        }
    }

    /// The direction; a section that names none sends and receives (RFC 8866, 6.7).
    pub fn direction(&self) -> Direction {
        Direction::ALL
            .into_iter()
            .find(|direction| self.lines.iter().any(|line| line == direction.attribute()))
            .unwrap_or(Direction::SendRecv)
    }

    pub fn set_direction(&mut self, direction: Direction) {
        let attribute = direction.attribute().to_owned();
        let is_direction = |line: &&mut String| {
            Direction::ALL
                .iter()
                .any(|one| one.attribute() == line.as_str())
        };
        match self.lines.iter_mut().find(is_direction) {
            Some(line) => *line = attribute,
            None => self.lines.push(attribute),
        }
    }

    /// The track's id as its sender named it: the second part of `msid` (RFC 8830).
    pub fn track_id(&self) -> Option<&str> {
        let msid = self.attribute("a=msid:").or_else(|| {
            self.lines.iter().find_map(|line| {
                line.strip_prefix("a=ssrc:")?
                    .split_once(" msid:")
                    .map(|(_, msid)| msid)
            })
        })?;
        msid.split_whitespace().nth(1)
    }

    /// Sets stream and track of the section, wherever the section names them.
    pub fn set_msid(&mut self, stream: &str, track: &str) {
        self.clear_msid();
        let position = self
            .lines
            .iter()
            .position(|line| line.starts_with("a=mid:"))
            .map_or(1, |mid| mid + 1);
        self.lines
            .insert(position, format!("a=msid:{stream} {track}"));
    }

    pub fn clear_msid(&mut self) {
        self.lines
            .retain(|line| !line.starts_with("a=msid:") && !is_ssrc_msid(line));
    }

    /// Removes the SSRCs, for a section that does not send.
    pub fn clear_ssrcs(&mut self) {
        self.lines
            .retain(|line| !line.starts_with("a=ssrc:") && !line.starts_with("a=ssrc-group:"));
    }

    fn payload_type_of(&self, codec: &str) -> Option<&str> {
        self.lines.iter().find_map(|line| {
            let (payload_type, name) = line.strip_prefix("a=rtpmap:")?.split_once(' ')?;
            let name = name.split('/').next().unwrap_or_default();
            name.eq_ignore_ascii_case(codec).then_some(payload_type)
        })
    }

    /// Whether the section has redundant audio (RFC 2198).
    pub fn has_red(&self) -> bool {
        self.payload_type_of("red").is_some()
    }

    /// Lists Opus before redundant audio, which is then accepted but not preferred.
    pub fn prefer_opus(&mut self) {
        let (Some(red), Some(opus)) = (self.payload_type_of("red"), self.payload_type_of("opus"))
        else {
            return;
        };
        let (red, opus) = (red.to_owned(), opus.to_owned());
        // Kind, port and protocol come first.
        let mut words: Vec<&str> = self.lines[0].split(' ').collect();
        let place = |words: &[&str], wanted: &str| {
            let formats = words.iter().skip(3);
            formats
                .copied()
                .position(|word| word == wanted)
                .map(|it| it + 3)
        };
        if let (Some(red), Some(opus)) = (place(&words, &red), place(&words, &opus))
            && red < opus
        {
            words.swap(red, opus);
            self.lines[0] = words.join(" ");
        }
    }

    /// Removes redundant audio.
    pub fn remove_red(&mut self) {
        let Some(red) = self.payload_type_of("red").map(str::to_owned) else {
            return;
        };
        let words: Vec<&str> = self.lines[0].split(' ').collect();
        let (head, formats) = words.split_at(words.len().min(3));
        let formats = formats.iter().filter(|format| **format != red);
        self.lines[0] = head
            .iter()
            .chain(formats)
            .copied()
            .collect::<Vec<_>>()
            .join(" ");
        let attribute = |line: &str| {
            ["a=rtpmap:", "a=fmtp:", "a=rtcp-fb:"].iter().any(|name| {
                line.strip_prefix(name)
                    .and_then(|rest| rest.split(' ').next())
                    == Some(&red)
            })
        };
        self.lines.retain(|line| !attribute(line));
    }

    /// Adds format parameters to Opus that it does not have yet.
    pub fn add_opus_parameters(&mut self, parameters: &[&str]) {
        let Some(payload) = self.payload_type_of("opus") else {
            return;
        };
        let prefix = format!("a=fmtp:{payload} ");
        let missing = |present: &str| -> Vec<&str> {
            parameters
                .iter()
                .copied()
                .filter(|wanted| !present.split(';').any(|one| one == *wanted))
                .collect()
        };
        if let Some(line) = self.lines.iter_mut().find(|line| line.starts_with(&prefix)) {
            for parameter in missing(&line[prefix.len()..]) {
                line.push(';');
                line.push_str(parameter);
            }
        } else if !parameters.is_empty() {
            self.lines.push(format!("{prefix}{}", parameters.join(";")));
        }
    }
}

fn is_ssrc_msid(line: &str) -> bool {
    line.starts_with("a=ssrc:") && line.contains(" msid:")
}

#[cfg(test)]
mod tests {
    use super::*;

    const OFFER: &str = "v=0\r\no=- 1 2 IN IP4 127.0.0.1\r\ns=-\r\nt=0 0\r\na=group:BUNDLE 0 1\r\n\
        m=audio 9 UDP/TLS/RTP/SAVPF 111\r\na=mid:0\r\na=sendonly\r\na=msid:stream microphone\r\n\
        a=rtpmap:111 opus/48000/2\r\na=fmtp:111 minptime=10;useinbandfec=1\r\na=ssrc:7 cname:x\r\n\
        a=ssrc:7 msid:stream microphone\r\n\
        m=application 9 UDP/DTLS/SCTP webrtc-datachannel\r\na=mid:1\r\na=sctp-port:5000\r\n";

    #[test]
    fn text_survives_reading_and_writing() {
        assert_eq!(Description::parse(OFFER).to_string(), OFFER);
    }

    #[test]
    fn sections_say_what_they_carry() {
        let offer = Description::parse(OFFER);
        let audio = &offer.sections[0];
        assert_eq!((audio.mid(), audio.medium()), (Some("0"), Medium::Audio));
        assert_eq!(
            (audio.direction(), audio.track_id()),
            (Direction::SendOnly, Some("microphone"))
        );
        assert_eq!(offer.sections[1].medium(), Medium::Data);
    }

    #[test]
    fn a_section_can_be_given_another_track_and_direction() {
        let mut offer = Description::parse(OFFER);
        let audio = offer.section_mut("0").expect("the section exists");
        audio.set_msid("PA_1|TR_2", "TR_2");
        audio.set_direction(Direction::Inactive);
        assert_eq!(
            (audio.track_id(), audio.direction()),
            (Some("TR_2"), Direction::Inactive)
        );
        let text = offer.to_string();
        assert!(!text.contains("microphone"), "{text}");
        assert!(text.contains("a=ssrc:7 cname:x"), "{text}");
    }

    #[test]
    fn redundant_audio_can_be_put_after_opus_or_left_out() {
        let offer = OFFER.replace("SAVPF 111\r\n", "SAVPF 63 111\r\n").replace(
            "a=ssrc:7 cname:x",
            "a=rtpmap:63 red/48000/2\r\na=fmtp:63 111/111\r\na=ssrc:7 cname:x",
        );
        let mut description = Description::parse(&offer);
        assert!(description.sections[0].has_red() && !description.sections[1].has_red());
        description.sections[0].prefer_opus();
        assert_eq!(
            description.to_string(),
            offer.replace("63 111\r\n", "111 63\r\n")
        );
        description.sections[0].prefer_opus();
        assert_eq!(
            description.to_string(),
            offer.replace("63 111\r\n", "111 63\r\n")
        );
        description.sections[0].remove_red();
        assert_eq!(description.to_string(), OFFER);
    }

    #[test]
    fn opus_parameters_are_added_once() {
        let mut offer = Description::parse(OFFER);
        offer.sections[0].add_opus_parameters(&["useinbandfec=1", "stereo=1", "usedtx=1"]);
        offer.sections[0].add_opus_parameters(&["stereo=1"]);
        assert!(
            offer
                .to_string()
                .contains("a=fmtp:111 minptime=10;useinbandfec=1;stereo=1;usedtx=1\r\n")
        );
    }
}
