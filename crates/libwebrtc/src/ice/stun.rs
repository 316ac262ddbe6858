//! STUN messages (RFC 8489) and their retransmission.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::{Duration, Instant},
};

use aws_lc_rs::{constant_time, hmac};
use md5::{Digest, Md5};
use thiserror::Error;

const MAGIC_COOKIE: [u8; 4] = [0x21, 0x12, 0xa4, 0x42];
const HEADER_BYTES: usize = 20;
const INTEGRITY_BYTES: usize = 20;
const FINGERPRINT_XOR: u32 = 0x5354_554e;

/// Numbers of attributes (RFC 8489, section 18.3; RFC 8656, section 18).
pub(crate) mod attribute {
    pub const USERNAME: u16 = 0x0006;
    pub const MESSAGE_INTEGRITY: u16 = 0x0008;
    pub const ERROR_CODE: u16 = 0x0009;
    pub const CHANNEL_NUMBER: u16 = 0x000c;
    pub const LIFETIME: u16 = 0x000d;
    pub const XOR_PEER_ADDRESS: u16 = 0x0012;
    pub const DATA: u16 = 0x0013;
    pub const REALM: u16 = 0x0014;
    pub const NONCE: u16 = 0x0015;
    pub const XOR_RELAYED_ADDRESS: u16 = 0x0016;
    pub const REQUESTED_ADDRESS_FAMILY: u16 = 0x0017;
    pub const REQUESTED_TRANSPORT: u16 = 0x0019;
    pub const XOR_MAPPED_ADDRESS: u16 = 0x0020;
    pub const USE_CANDIDATE: u16 = 0x0025;
    pub const ALTERNATE_SERVER: u16 = 0x8023;
    pub const FINGERPRINT: u16 = 0x8028;
}

/// The class of a message (RFC 8489, section 5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Method {
    Binding = 0x001,
    Allocate = 0x003,
    Refresh = 0x004,
    Send = 0x006,
    Data = 0x007,
    CreatePermission = 0x008,
    ChannelBind = 0x009,
}

impl Method {
    const ALL: [Self; 7] = [
        Self::Binding,
        Self::Allocate,
        Self::Refresh,
        Self::Send,
        Self::Data,
        Self::CreatePermission,
        Self::ChannelBind,
    ];
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Class {
    Request,
    Indication,
    Success,
    Error,
}

impl Class {
    const ALL: [Self; 4] = [Self::Request, Self::Indication, Self::Success, Self::Error];
}

/// Identifies the request that an answer belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct TransactionId(pub [u8; 12]);

impl TransactionId {
    pub fn random() -> Self {
        Self(rand::random())
    }
}

/// Bytes that are not a STUN message, or a broken one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub(crate) enum Malformed {
    #[error("these bytes are no STUN message")]
    NotStun,
    #[error("the STUN message ends in the middle of an attribute")]
    Attribute,
    #[error("the fingerprint of the STUN message is wrong")]
    Fingerprint,
}

/// The key of long-term credentials (RFC 8489, section 9.2.2). The string preparation that the
/// standard asks for (OpaqueString, RFC 8265) is left out: it changes nothing in credentials that
/// servers give out.
pub(crate) fn long_term_key(username: &str, realm: &[u8], password: &str) -> [u8; 16] {
    let mut hash = Md5::new();
    hash.update(username);
    hash.update(":");
    hash.update(realm);
    hash.update(":");
    hash.update(password);
    hash.finalize().into()
}

/// Writes a message.
pub(crate) struct Writer {
    bytes: Vec<u8>,
}

impl Writer {
    pub fn new(method: Method, class: Class, id: TransactionId) -> Self {
        let mut bytes = Vec::with_capacity(128);
        bytes.extend_from_slice(&message_type(method, class).to_be_bytes());
        bytes.extend_from_slice(&[0, 0]);
        bytes.extend_from_slice(&MAGIC_COOKIE);
        bytes.extend_from_slice(&id.0);
        Self { bytes }
    }

    pub fn attribute(mut self, kind: u16, value: &[u8]) -> Self {
        let length =
            u16::try_from(value.len()).expect("attributes are made from packets and names");
        self.bytes.extend_from_slice(&kind.to_be_bytes());
        self.bytes.extend_from_slice(&length.to_be_bytes());
        self.bytes.extend_from_slice(value);
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
        self.set_length(0);
        self
    }

    pub fn address(self, kind: u16, address: SocketAddr) -> Self {
        let mut value = vec![0];
        let mask = mask(&self.bytes);
        let port = address.port() ^ u16::from_be_bytes([mask[0], mask[1]]);
        match address.ip() {
            IpAddr::V4(ip) => {
                value.push(1);
                value.extend_from_slice(&port.to_be_bytes());
                value.extend(ip.octets().iter().zip(mask).map(|(a, b)| a ^ b));
            }
            IpAddr::V6(ip) => {
                value.push(2);
                value.extend_from_slice(&port.to_be_bytes());
                value.extend(ip.octets().iter().zip(mask).map(|(a, b)| a ^ b));
            }
        }
        self.attribute(kind, &value)
    }

    /// Adds MESSAGE-INTEGRITY with `key`.
    pub fn integrity(mut self, key: &[u8]) -> Self {
        self.set_length(4 + INTEGRITY_BYTES);
        let tag = integrity(key, &self.bytes);
        self.attribute(attribute::MESSAGE_INTEGRITY, tag.as_ref())
    }

    /// Ends the message with a FINGERPRINT, which tells it from other packets of the same socket.
    pub fn finish(mut self) -> Vec<u8> {
        self.set_length(8);
        let fingerprint = crc32(&self.bytes) ^ FINGERPRINT_XOR;
        self.attribute(attribute::FINGERPRINT, &fingerprint.to_be_bytes())
            .bytes
    }

    fn set_length(&mut self, more: usize) {
        let length = u16::try_from(self.bytes.len() - HEADER_BYTES + more)
            .expect("attributes are made from packets and names");
        self.bytes[2..4].copy_from_slice(&length.to_be_bytes());
    }
}

/// A received message, found to be well-formed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Message<'a> {
    bytes: &'a [u8],
    pub method: Method,
    pub class: Class,
    pub id: TransactionId,
}

impl<'a> Message<'a> {
    /// Parses exactly one message.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let header = bytes.get(..HEADER_BYTES).ok_or(Malformed::NotStun)?;
        let kind = u16::from_be_bytes([header[0], header[1]]);
        let length = usize::from(u16::from_be_bytes([header[2], header[3]]));
        let whole = length.is_multiple_of(4) && bytes.len() == HEADER_BYTES + length;
        if header[4..8] != MAGIC_COOKIE || !whole {
            return Err(Malformed::NotStun);
        }
        let known = Method::ALL
            .iter()
            .flat_map(|method| Class::ALL.map(|class| (*method, class)))
            .find(|(method, class)| message_type(*method, *class) == kind);
        let (method, class) = known.ok_or(Malformed::NotStun)?;
        let id = TransactionId(header[8..].try_into().map_err(|_| Malformed::NotStun)?);
        let message = Self {
            bytes,
            method,
            class,
            id,
        };
        let mut end = HEADER_BYTES;
        for attribute in message.all_attributes() {
            let (at, kind, value) = attribute.ok_or(Malformed::Attribute)?;
            end = at + 4 + value.len().next_multiple_of(4);
            if kind == attribute::FINGERPRINT {
                let expected = crc32(&bytes[..at]) ^ FINGERPRINT_XOR;
                if value != expected.to_be_bytes() || end != bytes.len() {
                    return Err(Malformed::Fingerprint);
                }
            }
        }
        if end != bytes.len() {
            return Err(Malformed::Attribute);
        }
        Ok(message)
    }

    /// Offset, type and value of every attribute; `None` for one that extends beyond the end.
    fn all_attributes(&self) -> impl Iterator<Item = Option<(usize, u16, &'a [u8])>> + use<'a> {
        let bytes = self.bytes;
        let mut at = HEADER_BYTES;
        std::iter::from_fn(move || {
            if at >= bytes.len() {
                return None;
            }
            let read = || {
                let header = bytes.get(at..at + 4)?;
                let kind = u16::from_be_bytes([header[0], header[1]]);
                let length = usize::from(u16::from_be_bytes([header[2], header[3]]));
                let value = bytes.get(at + 4..at + 4 + length)?;
                Some((at, kind, value))
            };
            let attribute = read();
            at = match attribute {
                Some((at, _, value)) => at + 4 + value.len().next_multiple_of(4),
                None => bytes.len(),
            };
            Some(attribute)
        })
    }

    /// The first attribute of a type. What follows MESSAGE-INTEGRITY is not protected by it and
    /// does not count.
    pub fn attribute(&self, wanted: u16) -> Option<&'a [u8]> {
        let mut protected = self
            .all_attributes()
            .flatten()
            .take_while(|(_, kind, _)| *kind != attribute::MESSAGE_INTEGRITY);
        protected
            .find(|(_, kind, _)| *kind == wanted)
            .map(|(_, _, value)| value)
    }

    /// An address in an XOR-ed attribute, such as XOR-MAPPED-ADDRESS.
    pub fn address(&self, kind: u16) -> Option<SocketAddr> {
        read_address(self.attribute(kind)?, &mask(self.bytes))
    }

    /// An address in an attribute that is not XOR-ed, such as MAPPED-ADDRESS.
    pub fn plain_address(&self, kind: u16) -> Option<SocketAddr> {
        read_address(self.attribute(kind)?, &[0; 16])
    }

    pub fn number(&self, kind: u16) -> Option<u32> {
        let value = self.attribute(kind)?.try_into().ok()?;
        Some(u32::from_be_bytes(value))
    }

    /// Code and reason of an error response.
    pub fn error(&self) -> Option<(u16, String)> {
        let value = self.attribute(attribute::ERROR_CODE)?;
        let code = u16::from(*value.get(2)? & 7) * 100 + u16::from(*value.get(3)?);
        Some((code, String::from_utf8_lossy(&value[4..]).into_owned()))
    }

    /// Whether MESSAGE-INTEGRITY was made with `key`.
    pub fn is_from_holder_of(&self, key: &[u8]) -> bool {
        let tag = self
            .all_attributes()
            .flatten()
            .find(|(_, kind, _)| *kind == attribute::MESSAGE_INTEGRITY);
        let Some((at, _, tag)) = tag else {
            return false;
        };
        // The length that was signed ends after MESSAGE-INTEGRITY, whatever follows.
        let mut signed = self.bytes[..at].to_vec();
        let Ok(length) = u16::try_from(at + 4 + INTEGRITY_BYTES - HEADER_BYTES) else {
            return false;
        };
        signed[2..4].copy_from_slice(&length.to_be_bytes());
        constant_time::verify_slices_are_equal(integrity(key, &signed).as_ref(), tag).is_ok()
    }
}

/// Whether a packet is a connectivity check with USE-CANDIDATE (RFC 8445, section 7.1.2).
pub(crate) fn nominates(packet: &[u8]) -> bool {
    // Most packets are not STUN at all (RFC 7983).
    packet.first() == Some(&0)
        && Message::parse(packet).is_ok_and(|message| {
            message.class == Class::Request && message.attribute(attribute::USE_CANDIDATE).is_some()
        })
}

fn read_address(value: &[u8], mask: &[u8; 16]) -> Option<SocketAddr> {
    let (family, port, ip) = (*value.get(1)?, value.get(2..4)?, value.get(4..)?);
    let port = u16::from_be_bytes([port[0] ^ mask[0], port[1] ^ mask[1]]);
    let ip = match family {
        1 => {
            let mut octets: [u8; 4] = ip.try_into().ok()?;
            octets.iter_mut().zip(mask).for_each(|(a, b)| *a ^= b);
            IpAddr::V4(Ipv4Addr::from(octets))
        }
        2 => {
            let mut octets: [u8; 16] = ip.try_into().ok()?;
            octets.iter_mut().zip(mask).for_each(|(a, b)| *a ^= b);
            IpAddr::V6(Ipv6Addr::from(octets))
        }
        _ => return None,
    };
    Some(SocketAddr::new(ip, port))
}

/// Cookie and transaction id, with which addresses are XOR-ed.
fn mask(message: &[u8]) -> [u8; 16] {
    let mut mask = [0; 16];
    mask.copy_from_slice(&message[4..HEADER_BYTES]);
    mask
}

fn message_type(method: Method, class: Class) -> u16 {
    let method = method as u16;
    let class = class as u16;
    (method & 0x0f)
        | ((method & 0x70) << 1)
        | ((method & 0xf80) << 2)
        | ((class & 1) << 4)
        | ((class & 2) << 7)
}

fn integrity(key: &[u8], signed: &[u8]) -> hmac::Tag {
    let key = hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, key);
    hmac::sign(&key, signed)
}

/// CRC-32 of Ethernet (ITU-T V.42), which FINGERPRINT uses. Messages are short and rare, so no
/// table is needed.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg())
        })
    })
}

/// Time to the first retransmission over UDP (RFC 8489, section 6.2.1); every further wait is twice
/// as long.
pub(crate) const FIRST_WAIT: Duration = Duration::from_millis(500);
/// How often a request is sent over UDP. The standard proposes 7, which takes 39.5 s; with 5 a
/// silent server is given up after 9.5 s, as in Google's engine.
const MOST_SENDS: u32 = 5;
/// How long to wait for the answer after the last transmission.
const LAST_WAIT: Duration = Duration::from_secs(2);
/// How long an answer may take over TCP and TLS, where nothing is retransmitted; as long as over
/// UDP.
const STREAM_PATIENCE: Duration = Duration::from_millis(9500);

/// What is to be done for a request.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Due<'a> {
    Nothing,
    Send(&'a [u8]),
    /// No answer has come: the request has failed.
    GiveUp,
}

/// A request that waits for its answer.
#[derive(Debug)]
pub(crate) struct Transaction {
    pub id: TransactionId,
    bytes: Vec<u8>,
    sends: u32,
    next: Instant,
    over_stream: bool,
}

impl Transaction {
    /// `over_stream`: TCP or TLS, which retransmit by themselves.
    pub fn new(now: Instant, id: TransactionId, bytes: Vec<u8>, over_stream: bool) -> Self {
        Self {
            id,
            bytes,
            sends: 0,
            next: now,
            over_stream,
        }
    }

    pub fn due(&mut self, now: Instant) -> Due<'_> {
        if now < self.next {
            return Due::Nothing;
        }
        let most = if self.over_stream { 1 } else { MOST_SENDS };
        if self.sends == most {
            return Due::GiveUp;
        }
        self.next = now
            + match (self.over_stream, self.sends + 1 == most) {
                (true, _) => STREAM_PATIENCE,
                (false, true) => LAST_WAIT,
                (false, false) => FIRST_WAIT * 2u32.pow(self.sends),
            };
        self.sends += 1;
        Due::Send(&self.bytes)
    }

    pub fn next_timeout(&self) -> Instant {
        self.next
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PASSWORD: &[u8] = b"VOkJxbRl1RmTxUk/WvJxBt";

    fn hex(text: &str) -> Vec<u8> {
        let digits: String = text.split_whitespace().collect();
        (0..digits.len() / 2)
            .map(|n| u8::from_str_radix(&digits[2 * n..2 * n + 2], 16).expect("a hex digit"))
            .collect()
    }

    /// RFC 5769, section 2.1.
    const REQUEST: &str = "00010058 2112a442 b7e7a701 bc34d686 fa87dfae 80220010 5354554e 20746573
        7420636c 69656e74 00240004 6e0001ff 80290008 932ff9b1 51263b36 00060009 6576746a 3a683676
        59202020 00080014 9aeaa70c bfd8cb56 781ef2b5 b2d3f249 c1b571a2 80280004 e57a3bcf";
    /// RFC 5769, section 2.2.
    const IPV4_ANSWER: &str = "0101003c 2112a442 b7e7a701 bc34d686 fa87dfae 8022000b 74657374
        20766563 746f7220 00200008 0001a147 e112a643 00080014 2b91f599 fd9e90c3 8c7489f9 2af9ba53
        f06be7d7 80280004 c07d4c96";
    /// RFC 5769, section 2.3.
    const IPV6_ANSWER: &str = "01010048 2112a442 b7e7a701 bc34d686 fa87dfae 8022000b 74657374
        20766563 746f7220 00200014 0002a147 0113a9fa a5d3f179 bc25f4b5 bed2b9d9 00080014 a382954e
        4be67bf1 1784c97c 8292c275 bfe3ed41 80280004 c8fb0b4c";
    /// RFC 5769, section 2.4.
    const LONG_TERM_REQUEST: &str = "00010060 2112a442 78ad3433 c6ad72c0 29da412e 00060012
        e3839ee3 8388e383 aae38383 e382afe3 82b90000 0015001c 662f2f34 39396b39 35346436 4f4c3334
        6f4c3946 53547679 36347341 0014000b 6578616d 706c652e 6f726700 00080014 f6702465 6dd64a3e
        02b8e071 2e85c9a2 8ca89666";

    #[test]
    fn the_vectors_of_the_standard_are_read() {
        let bytes = hex(REQUEST);
        let message = Message::parse(&bytes).expect("a good request");
        assert_eq!(
            (message.method, message.class),
            (Method::Binding, Class::Request)
        );
        assert_eq!(
            message.attribute(attribute::USERNAME),
            Some(&b"evtj:h6vY"[..])
        );
        assert!(message.is_from_holder_of(PASSWORD));
        assert!(!message.is_from_holder_of(b"another"));
        for (text, expected) in [
            (IPV4_ANSWER, "192.0.2.1:32853"),
            (IPV6_ANSWER, "[2001:db8:1234:5678:11:2233:4455:6677]:32853"),
        ] {
            let bytes = hex(text);
            let message = Message::parse(&bytes).expect("a good answer");
            assert_eq!(message.class, Class::Success);
            let expected: SocketAddr = expected.parse().expect("an address");
            assert_eq!(
                message.address(attribute::XOR_MAPPED_ADDRESS),
                Some(expected)
            );
            assert!(message.is_from_holder_of(PASSWORD));
        }
        let bytes = hex(LONG_TERM_REQUEST);
        let message = Message::parse(&bytes).expect("a good request");
        let key = long_term_key("マトリックス", b"example.org", "TheMatrIX");
        assert!(message.is_from_holder_of(&key));
    }

    #[test]
    fn what_is_written_is_what_is_in_the_standard() {
        let bytes = hex(LONG_TERM_REQUEST);
        let id = Message::parse(&bytes).expect("a good request").id;
        let key = long_term_key("マトリックス", b"example.org", "TheMatrIX");
        let written = Writer::new(Method::Binding, Class::Request, id)
            .attribute(attribute::USERNAME, "マトリックス".as_bytes())
            .attribute(attribute::NONCE, b"f//499k954d6OL34oL9FSTvy64sA")
            .attribute(attribute::REALM, b"example.org")
            .integrity(&key);
        assert_eq!(written.bytes, bytes);
    }

    #[test]
    fn a_changed_byte_is_noticed() {
        for text in [REQUEST, IPV4_ANSWER, IPV6_ANSWER] {
            let good = hex(text);
            for at in 0..good.len() {
                let mut bytes = good.clone();
                bytes[at] ^= 0x10;
                // With another type the fingerprint is an unknown attribute.
                let number = good.len() - 8..good.len() - 6;
                assert!(
                    Message::parse(&bytes).is_err() || number.contains(&at),
                    "byte {at}"
                );
            }
        }
    }

    #[test]
    fn a_request_is_repeated_at_growing_intervals_and_then_given_up() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut request = Transaction::new(start, TransactionId([1; 12]), vec![7], false);
        for ms in [0, 500, 1500, 3500, 7500] {
            assert_eq!(request.next_timeout(), at(ms));
            assert_eq!(request.due(at(ms)), Due::Send(&[7]), "{ms} ms");
            assert_eq!(request.due(at(ms)), Due::Nothing, "{ms} ms");
        }
        assert_eq!(request.due(at(9500)), Due::GiveUp);
        let mut request = Transaction::new(start, TransactionId([1; 12]), vec![7], true);
        assert_eq!(request.due(start), Due::Send(&[7]));
        assert_eq!(request.due(at(9499)), Due::Nothing);
        assert_eq!(request.due(at(9500)), Due::GiveUp);
    }

    proptest! {
        #[test]
        fn no_bytes_break_the_reader(mut bytes in prop::collection::vec(any::<u8>(), 0..200), valid in any::<bool>()) {
            if valid && bytes.len() >= HEADER_BYTES {
                bytes.truncate(bytes.len() / 4 * 4);
                bytes[..2].copy_from_slice(&[1, 1]);
                let length = (bytes.len() - HEADER_BYTES) as u16;
                bytes[2..4].copy_from_slice(&length.to_be_bytes());
                bytes[4..8].copy_from_slice(&MAGIC_COOKIE);
            }
            if let Ok(message) = Message::parse(&bytes) {
                for kind in 0..0x30 {
                    let _ = (message.address(kind), message.plain_address(kind), message.number(kind));
                }
                let _ = (message.error(), message.is_from_holder_of(b"key"));
            }
        }

        #[test]
        fn addresses_survive_the_mask(ip in any::<IpAddr>(), port in any::<u16>(), id in any::<[u8; 12]>(), value in prop::collection::vec(any::<u8>(), 0..40)) {
            let address = SocketAddr::new(ip, port);
            let bytes = Writer::new(Method::Allocate, Class::Success, TransactionId(id))
                .attribute(attribute::DATA, &value)
                .address(attribute::XOR_RELAYED_ADDRESS, address)
                .integrity(b"key")
                .finish();
            let message = Message::parse(&bytes).expect("our own message");
            prop_assert_eq!(message.address(attribute::XOR_RELAYED_ADDRESS), Some(address));
            prop_assert_eq!(message.attribute(attribute::DATA), Some(&value[..]));
            prop_assert!(message.is_from_holder_of(b"key"));
            prop_assert!(!message.is_from_holder_of(b"other"));
        }
    }
}
