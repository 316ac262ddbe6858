//! One function for each fuzz target, and [`seeds`], the initial inputs.
//!
//! Besides "nothing panics", each checks what must be true of any input: what was parsed is written
//! so that it parses the same, a stream gives the same packets however it is cut, every pull from a
//! jitter buffer gives 10 ms.

use std::{
    cell::RefCell,
    net::SocketAddr,
    sync::OnceLock,
    time::{Duration, Instant},
};

use str0m::net::{Protocol, Transmit};

use super::pair::{Pair, new_core};
use crate::{
    MediaType,
    audio::{
        TICK_SAMPLES,
        decoder::{self, OpusDecoder},
        encoder::{EncodedAudio, OpusSendConfig, PacketEncoder, RtpClock},
        jitter::{JitterBuffer, RtpAudioPacket},
        track::Pcm,
    },
    data_channel::DataChannelInit,
    ice::{
        stun::{Class, Message, Method, TransactionId, Writer, attribute, long_term_key},
        turn::{Allocation, take_message},
    },
    ice_candidate::IceCandidate,
    ice_tcp,
    jsep::sdp::Sdp,
    native::frame_cryptor::{
        Cryptor, DataPacketCryptor, EncryptedPacket, EncryptionAlgorithm, KeyDerivationAlgorithm,
        KeyProvider, KeyProviderOptions,
    },
    rtp_transceiver::{RtpTransceiverDirection, RtpTransceiverInit},
    session_description::{SdpType, SessionDescription},
};

/// Takes numbers and pieces from the front of the fuzzer's input.
struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    fn number(&mut self) -> Option<u16> {
        Some(u16::from_be_bytes([self.byte()?, self.byte()?]))
    }

    /// At most that many bytes.
    fn piece(&mut self, length: usize) -> &'a [u8] {
        let (piece, rest) = self.0.split_at(length.min(self.0.len()));
        self.0 = rest;
        piece
    }
}

/// Session descriptions: what is parsed is written so that it parses the same.
pub fn sdp(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let Ok(sdp) = Sdp::parse(text) else { return };
    for section in &sdp.sections {
        for codec in &section.codecs {
            let _ = (codec.is("opus"), codec.parameter("usedtx"));
        }
        let _ = section.refusal();
    }
    let _ = (sdp.credentials(), sdp.fingerprint(), sdp.setup());
    let written = sdp.to_text(1, 2);
    let again = Sdp::parse(&written)
        .unwrap_or_else(|error| panic!("what was written is not read: {error}\n{written}"));
    // Sections that share an identification belong to the bundle or not together, as it names one
    // of them or none.
    let mut mids: Vec<_> = sdp.sections.iter().map(|section| &section.mid).collect();
    mids.sort_unstable();
    if mids.windows(2).all(|two| two[0] != two[1]) {
        assert_eq!(written, again.to_text(1, 2));
    }
}

fn described(text: &str, sdp_type: SdpType) -> Option<SessionDescription> {
    SessionDescription::parse(text, sdp_type).ok()
}

/// Offers and answers of the other side, one after the other, which are given to str0m too.
/// Descriptions are separated by a zero byte, and the first byte of each says what it is.
pub fn negotiation(data: &[u8]) {
    let start = Instant::now();
    let mut core = new_core(start, "192.0.2.1:1000");
    let mut now = start;
    for description in data.split(|byte| *byte == 0).take(6) {
        let Some((kind, text)) = description.split_first() else {
            continue;
        };
        let Ok(text) = std::str::from_utf8(text) else {
            continue;
        };
        now += Duration::from_millis(20);
        match kind % 4 {
            0 | 1 => {
                let Some(offer) = described(text, SdpType::Offer) else {
                    continue;
                };
                if core.set_remote_description(now, offer).is_ok()
                    && kind % 4 == 0
                    && let Ok(answer) = core.create_answer()
                {
                    let _ = core.set_local_description(now, answer, &[]);
                }
            }
            2 => {
                let _ = core.create_channel(now, "data", DataChannelInit::default());
                let _ = core.add_transceiver(
                    MediaType::Audio,
                    None,
                    RtpTransceiverInit {
                        direction: RtpTransceiverDirection::SendRecv,
                        stream_ids: vec![],
                        send_encodings: vec![],
                    },
                    false,
                );
                let Ok(offer) = core.create_offer(false) else {
                    continue;
                };
                let _ = core.set_local_description(now, offer, &[]);
                if let Some(answer) = described(text, SdpType::Answer) {
                    let _ = core.set_remote_description(now, answer);
                }
            }
            _ => {
                let _ = core.add_remote_candidate(now, text);
            }
        }
        core.settle(now);
        core.transmits.clear();
        core.events.clear();
    }
    let offer = core
        .create_offer(true)
        .expect("an offer is always possible");
    Sdp::parse(offer.text()).expect("our own offer can be read");
    core.close(now);
}

/// ICE candidates as they come from the other side.
pub fn candidate(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    if let Ok(candidate) = IceCandidate::parse("0", 0, text) {
        let again = IceCandidate::parse("0", 0, &candidate.candidate());
        assert!(again.is_ok(), "read once and not again: {text}");
        let now = Instant::now();
        let mut core = new_core(now, "192.0.2.1:1000");
        let _ = core.add_remote_candidate(now, &candidate.candidate());
    }
}

/// STUN messages (RFC 8489).
pub fn stun(data: &[u8]) {
    let Ok(message) = Message::parse(data) else {
        return;
    };
    for kind in (0..=0x30).chain(0x8000..=0x8030) {
        let _ = message.attribute(kind);
        let _ = message.address(kind);
        let _ = message.plain_address(kind);
        let _ = message.number(kind);
    }
    let _ = message.error();
    let _ = message.is_from_holder_of(b"key");
}

const TURN_USER: &str = "user";
const TURN_PASSWORD: &str = "password";
const TURN_REALM: &[u8] = b"realm";

/// A TURN server that answers anything: it may refer to the request, and knows the password.
pub fn turn(data: &[u8]) {
    let mut input = Input(data);
    let mut now = Instant::now();
    let peer: SocketAddr = "198.51.100.7:4000".parse().expect("an address");
    let over_stream = input.byte().unwrap_or(0) & 1 == 1;
    let mut allocation = Allocation::new(now, TURN_USER, TURN_PASSWORD, over_stream, false);
    let mut last_id = [0; 12];
    for _ in 0..64 {
        for sent in allocation.transmits.drain(..) {
            if let Some(id) = sent.get(8..20).filter(|_| sent[0] >> 6 == 0) {
                last_id.copy_from_slice(id);
            }
        }
        allocation.events.clear();
        let Some(what) = input.byte() else { break };
        match what & 7 {
            0 => {
                now += Duration::from_millis(u64::from(input.number().unwrap_or(0)));
                allocation.handle_timeout(now);
            }
            1 => allocation.send(now, peer, b"sound"),
            2 => {
                let length = usize::from(input.byte().unwrap_or(0));
                let _ = allocation.handle(now, input.piece(length));
            }
            // A response to the last request, with any method, class and attributes.
            _ => {
                let methods = [
                    Method::Binding,
                    Method::Allocate,
                    Method::Refresh,
                    Method::CreatePermission,
                    Method::ChannelBind,
                ];
                let class = match what >> 6 {
                    0 => Class::Success,
                    1 => Class::Error,
                    2 => Class::Indication,
                    _ => Class::Request,
                };
                let method = methods[usize::from(what >> 3) % methods.len()];
                let mut writer = Writer::new(method, class, TransactionId(last_id));
                for _ in 0..what & 7 {
                    let (Some(kind), Some(length)) = (input.number(), input.byte()) else {
                        break;
                    };
                    writer = writer.attribute(kind, input.piece(usize::from(length)));
                }
                if input.byte().unwrap_or(0) & 1 == 1 {
                    let key = long_term_key(TURN_USER, TURN_REALM, TURN_PASSWORD);
                    writer = writer.integrity(&key);
                }
                let _ = allocation.handle(now, &writer.finish());
            }
        }
        let _ = allocation.next_timeout();
    }
    allocation.close();
}

/// Reads a stream whole and byte by byte, and returns whether both give the same.
fn same_in_pieces<T: PartialEq + std::fmt::Debug>(
    data: &[u8],
    mut take: impl FnMut(&mut Vec<u8>) -> Option<T>,
) {
    let mut buffer = data.to_vec();
    let whole: Vec<T> = std::iter::from_fn(|| take(&mut buffer)).collect();
    let (mut buffer, mut pieces) = (Vec::new(), Vec::new());
    for byte in data {
        buffer.push(*byte);
        while let Some(packet) = take(&mut buffer) {
            pieces.push(packet);
        }
    }
    assert_eq!(whole, pieces);
}

/// TURN over TCP and TLS: messages out of a stream.
pub fn turn_stream(data: &[u8]) {
    same_in_pieces(data, |buffer| take_message(buffer).ok().flatten());
}

/// ICE-TCP: packets out of a stream (RFC 4571).
pub fn ice_tcp(data: &[u8]) {
    same_in_pieces(data, ice_tcp::take_frame);
}

/// Inspection of an Opus packet before it is decoded, and the decoding.
pub fn opus_packet(data: &[u8]) {
    let recovers = decoder::recovers_previous(data);
    let frames = decoder::packet_frames(data);
    let Some(frames) = frames.filter(|frames| *frames > 0) else {
        return;
    };
    // RFC 6716, section 3.2.5: at most 120 ms.
    assert!(frames <= 5760, "{frames}");
    let mut decoder = OpusDecoder::new().expect("a decoder");
    let _ = decoder.follow_channels(data);
    let mut pcm = Vec::new();
    if recovers {
        let _ = decoder.recover_previous(data, 960, &mut pcm);
    }
    pcm.clear();
    if decoder.decode(data, frames, &mut pcm).is_ok() {
        assert_eq!(pcm.len(), frames * decoder.channels());
    }
    let _ = decoder.conceal(480, &mut pcm);
}

fn keys() -> &'static KeyProvider {
    static KEYS: OnceLock<KeyProvider> = OnceLock::new();
    KEYS.get_or_init(|| keys_of(b"secret"))
}

/// Another party's keys, with which the input was never encrypted.
fn other_keys() -> &'static KeyProvider {
    static KEYS: OnceLock<KeyProvider> = OnceLock::new();
    KEYS.get_or_init(|| keys_of(b"another secret"))
}

fn keys_of(secret: &[u8]) -> KeyProvider {
    let keys = KeyProvider::new(KeyProviderOptions {
        shared_key: true,
        // Looking for later keys is done by another thread, and is no part of the parser.
        ratchet_window_size: 0,
        ratchet_salt: b"salt".to_vec(),
        failure_tolerance: -1,
        key_ring_size: 16,
        key_derivation_algorithm: KeyDerivationAlgorithm::HKDF,
    });
    keys.set_shared_key(0, secret.to_vec());
    keys.set_sif_trailer(b"injected".to_vec());
    keys
}

/// Encrypted frames with their trailer, and encrypted data packets. Nothing that was not encrypted
/// with the key may be accepted.
pub fn encrypted(data: &[u8]) {
    let cryptor = Cryptor::switched_on("alice", keys());
    // The seeds are encrypted with this key, so this may well succeed.
    let _ = cryptor.decrypt(data);
    if let Some(clear) = Cryptor::switched_on("bob", other_keys()).decrypt(data) {
        assert!(data.ends_with(b"injected"), "a forged frame was accepted");
        assert!(clear.len() < data.len());
    }
    if !data.is_empty() {
        let mut encrypted = cryptor.encrypt(data, 48_000).expect("there is a key");
        assert_eq!(cryptor.decrypt(&encrypted).as_deref(), Some(data));
        let place = usize::from(data[0]) % encrypted.len();
        encrypted[place] ^= 1;
        if !encrypted.ends_with(b"injected") {
            assert_eq!(cryptor.decrypt(&encrypted), None);
        }
    }
    let mut input = Input(data);
    let packets = DataPacketCryptor::new(EncryptionAlgorithm::AesGcm, keys().clone());
    let key_index = u32::from(input.byte().unwrap_or(0));
    let iv_length = usize::from(input.byte().unwrap_or(0) % 16);
    let forged = EncryptedPacket {
        iv: input.piece(iv_length).to_vec(),
        data: input.0.to_vec(),
        key_index,
    };
    assert!(packets.decrypt("alice", &forged).is_err());
    let packet = packets.encrypt("alice", 0, data).expect("there is a key");
    assert_eq!(
        packets.decrypt("alice", &packet).ok().as_deref(),
        Some(data)
    );
}

/// Packets of our own encoder, so that a fuzzer does not have to find out what sound looks like.
fn voice() -> &'static [EncodedAudio] {
    static VOICE: OnceLock<Vec<EncodedAudio>> = OnceLock::new();
    VOICE.get_or_init(|| {
        let config = OpusSendConfig {
            fec: true,
            ..OpusSendConfig::default()
        };
        let mut encoder = PacketEncoder::new(config, RtpClock::starting_at(0)).expect("an encoder");
        encoder.set_packet_loss_percent(20);
        let start = Instant::now();
        let mut packets = Vec::new();
        for tick in 0..64_u16 {
            let samples: Vec<i16> = (0..480_u16)
                .map(|index| {
                    let phase = f32::from(tick * 480 + index) * 0.03;
                    (phase.sin() * (1.0 + (phase * 0.011).sin()) * 6_000.0) as i16
                })
                .collect();
            let pcm = Pcm {
                samples: &samples,
                sample_rate_hz: 48_000,
                channels: 1,
            };
            encoder.push(start + Duration::from_millis(10 * u64::from(tick)), pcm);
            packets.extend(std::iter::from_fn(|| encoder.next_packet()));
        }
        packets
    })
}

/// The jitter buffer, through any sequence of pushes and pulls. Each pull must give 10 ms.
pub fn jitter(data: &[u8]) {
    let mut input = Input(data);
    let mut jitter = JitterBuffer::new().expect("a decoder");
    let mut now = Instant::now();
    // Unwrapped numbers begin in the middle, so that they can also go down.
    let (mut seq, mut timestamp) = (1_u64 << 32, 1_u64 << 40);
    let mut pcm = Vec::new();
    while let Some(what) = input.byte() {
        match what & 15 {
            0..=3 => {
                now += Duration::from_millis(10);
                let channels = jitter.pull(now, &mut pcm);
                assert_eq!(pcm.len(), TICK_SAMPLES * channels);
            }
            // The next packets in order.
            4..=6 => {
                for _ in 0..=(what >> 4) {
                    seq += 1;
                    timestamp += 960;
                    let payload = &voice()[seq as usize % voice().len()].payload;
                    jitter.push(now, packet(1, seq, timestamp, payload));
                }
            }
            // Some are lost.
            7 => {
                seq += u64::from(what >> 4);
                timestamp += 960 * u64::from(what >> 4);
            }
            // A jump of number or time, or of both, forward or back.
            8 => {
                let by = i64::from(input.number().unwrap_or(0) as i16);
                seq = seq.wrapping_add_signed(by);
            }
            9 => {
                let by = i64::from(input.number().unwrap_or(0) as i16);
                timestamp = timestamp.wrapping_add_signed(by << (what >> 4));
            }
            10 => now += Duration::from_micros(u64::from(input.number().unwrap_or(0)) * 10),
            // A packet that came before, or one that is far away.
            11 => {
                let back = u64::from(what >> 4);
                let payload = &voice()[back as usize].payload;
                jitter.push(now, packet(1, seq - back, timestamp - 960 * back, payload));
            }
            12 => {
                seq += 1;
                let payload = &voice()[0].payload;
                let there = (1 << 40) + (u64::from(input.number().unwrap_or(0)) << (what >> 4));
                jitter.push(now, packet(u32::from(what >> 4), seq, there, payload));
            }
            // Any bytes as a packet.
            13 | 14 => {
                seq += 1;
                let length = usize::from(input.byte().unwrap_or(0));
                let payload = input.piece(length);
                if let Some(frames) = decoder::packet_frames(payload) {
                    timestamp += frames as u64;
                }
                jitter.push(now, packet(1, seq, timestamp, payload));
            }
            _ => match what >> 4 {
                0 => jitter.clear(),
                1 => jitter.drop_overdue(now),
                _ => {
                    let _ = jitter.playout_delay_us(now);
                    let _ = jitter.stats();
                }
            },
        }
    }
    for _ in 0..3 {
        now += Duration::from_millis(10);
        let channels = jitter.pull(now, &mut pcm);
        assert_eq!(pcm.len(), TICK_SAMPLES * channels);
    }
}

fn packet(ssrc: u32, extended_seq: u64, rtp_timestamp: u64, payload: &[u8]) -> RtpAudioPacket {
    RtpAudioPacket {
        ssrc,
        extended_seq,
        rtp_timestamp,
        payload: payload.into(),
    }
}

/// Datagrams for a connection that is up: arbitrary ones, and real ones that were changed, cut or
/// duplicated. The pair is used for many inputs, because connecting takes longer than everything
/// else here.
pub fn datagrams(data: &[u8]) {
    const RUNS_OF_A_PAIR: u32 = 500;
    thread_local! {
        static PAIR: RefCell<Option<(Pair, u32)>> = const { RefCell::new(None) };
    }
    PAIR.with_borrow_mut(|slot| {
        let (pair, runs) = slot.get_or_insert_with(|| (Pair::connected(None), 0));
        let mut input = Input(data);
        while let Some(what) = input.byte() {
            match what & 3 {
                0 => pair.step(Duration::from_millis(u64::from(what >> 2))),
                1 => {
                    let channel = pair.cores[1].channels().first().cloned();
                    let now = pair.now;
                    if let Some(channel) = channel {
                        let text = input.piece(usize::from(what >> 2));
                        let _ = pair.cores[1].send_data(now, &channel, text, true);
                    }
                }
                2 => {
                    let length = usize::from(input.byte().unwrap_or(0));
                    let packet = input.piece(length);
                    let (source, destination) = ("192.0.2.2:2000", "192.0.2.1:1000");
                    let (source, destination) = (
                        source.parse().expect("an address"),
                        destination.parse().expect("an address"),
                    );
                    let now = pair.now;
                    pair.cores[0].receive(now, Protocol::Udp, source, destination, packet);
                }
                _ => {
                    let index = usize::from(what >> 2) % pair.seen.len().max(1);
                    let Some(like) = pair.seen.get(index) else {
                        continue;
                    };
                    let like = Transmit {
                        proto: like.proto,
                        source: like.source,
                        destination: like.destination,
                        contents: like.contents.to_vec().into(),
                    };
                    let mut packet = like.contents.to_vec();
                    let place = usize::from(input.number().unwrap_or(0)) % packet.len().max(1);
                    match input.byte().unwrap_or(0) {
                        0 => packet.truncate(place),
                        change => {
                            if let Some(byte) = packet.get_mut(place) {
                                *byte ^= change;
                            }
                        }
                    }
                    pair.give(0, &like, &packet);
                }
            }
        }
        pair.step(Duration::from_millis(1));
        *runs += 1;
        if *runs >= RUNS_OF_A_PAIR {
            *slot = None;
        }
    });
}

/// Initial inputs by target: what our own code writes, where the fuzzer would not soon find it by
/// itself.
#[must_use]
pub fn seeds(target: &str) -> Vec<Vec<u8>> {
    let now = Instant::now();
    let mut core = new_core(now, "192.0.2.1:1000");
    let _ = core.create_channel(now, "data", DataChannelInit::default());
    let audio = RtpTransceiverInit {
        direction: RtpTransceiverDirection::SendRecv,
        stream_ids: vec!["PA_1|TR_1".to_owned()],
        send_encodings: vec![],
    };
    let _ = core.add_transceiver(MediaType::Audio, None, audio, false);
    let offer = core
        .create_offer(false)
        .map(|offer| offer.text().to_owned());
    let offer = offer.unwrap_or_default();
    let answer = {
        let mut other = new_core(now, "192.0.2.2:2000");
        described(&offer, SdpType::Offer)
            .and_then(|offer| other.set_remote_description(now, offer).ok())
            .and_then(|()| other.create_answer().ok())
            .map(|answer| answer.text().to_owned())
            .unwrap_or_default()
    };
    let text = |first: u8, text: &str| [&[first], text.as_bytes()].concat();
    let id = TransactionId([7; 12]);
    let binding = Writer::new(Method::Binding, Class::Success, id)
        .address(
            attribute::XOR_MAPPED_ADDRESS,
            SocketAddr::from(([192, 0, 2, 1], 4000)),
        )
        .integrity(b"key")
        .finish();
    match target {
        "sdp" => vec![offer.into_bytes(), answer.into_bytes()],
        "negotiation" => vec![
            text(b'0', &offer),
            [text(b'0', &offer), text(b'0', &offer)].join(&0),
            [text(b'2', &answer), text(b'0', &offer)].join(&0),
            [
                text(b'0', &offer),
                text(b'3', "candidate:1 1 udp 2130706431 192.0.2.9 5000 typ host"),
            ]
            .join(&0),
        ],
        "candidate" => [
            "candidate:1 1 udp 2130706431 192.0.2.9 5000 typ host",
            "candidate:1 1 tcp 1518280447 2001:db8::1 9 typ host tcptype active",
            "candidate:2 1 udp 1694498815 203.0.113.1 6000 typ srflx raddr 192.0.2.9 rport 5000",
        ]
        .map(|text| text.as_bytes().to_vec())
        .to_vec(),
        "stun" => vec![binding],
        "turn" => {
            // 401 with realm and nonce, then a success with a relayed address and a lifetime.
            let challenge = [
                &[0, 0x4b, 0, 9, 4][..],
                &[0, 0, 4, 1, 0, 0x14, 5],
                TURN_REALM,
                &[0, 0x15, 5],
                b"nonce",
                &[0],
            ]
            .concat();
            let granted = [
                &[0x0b, 0, 0x16, 8, 0, 1, 0x2c, 0x5d][..],
                &[0xe1, 0x12, 0xa4, 0x43, 0, 0x0d, 4, 0, 0, 2, 0x58],
                &[0, 0x20, 8, 0, 1, 0x2c, 0x5d, 0xe1, 0x12, 0xa4, 0x43, 1, 1],
            ]
            .concat();
            vec![challenge.clone(), [challenge, granted].concat()]
        }
        "turn_stream" => vec![[&binding[..], &[0x40, 0, 0, 2, 1, 2, 0, 0]].concat()],
        "ice_tcp" => vec![b"\0\x03one\0\0\0\x02hi".to_vec()],
        "opus_packet" => voice()
            .iter()
            .step_by(8)
            .map(|packet| packet.payload.clone())
            .collect(),
        "encrypted" => {
            let cryptor = Cryptor::switched_on("alice", keys());
            cryptor
                .encrypt(b"a frame of sound", 960)
                .into_iter()
                .collect()
        }
        "jitter" => vec![
            [4, 0, 0].repeat(40),
            [0x24, 0, 0, 0x27, 4, 0, 0, 0x1b, 0x0f].repeat(10),
            [4, 0, 0, 9, 0x40, 0, 4, 0, 0x3c, 1, 1, 10, 9, 9].repeat(6),
        ],
        "datagrams" => vec![
            [
                &[1 | 5 << 2],
                &b"hello"[..],
                &[5 << 2, 3, 0, 20, 1, 7, 0, 9, 0],
            ]
            .concat(),
        ],
        _ => vec![],
    }
}
