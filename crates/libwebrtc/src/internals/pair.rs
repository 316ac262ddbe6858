//! Two cores that are connected to each other, in virtual time.

use std::{
    net::SocketAddr,
    sync::Weak,
    time::{Duration, Instant},
};

use str0m::{
    media::Mid,
    net::{Protocol, Transmit},
};

use crate::{
    MediaType,
    core::Core,
    data_channel::{DataChannelInit, DataChannelState},
    media_stream_track::MediaStreamTrack,
    peer_connection::PeerConnectionState,
    rtp_transceiver::{RtpTransceiverDirection, RtpTransceiverInit},
};

/// How many datagrams are remembered.
const SEEN: usize = 64;

pub(super) fn new_core(now: Instant, address: &str) -> Core {
    let mut core = Core::new(now, Weak::new());
    core.add_udp_candidate(address.parse::<SocketAddr>().expect("an address"));
    core
}

/// Two cores with sound from the first to the second, and a data channel.
pub(super) struct Pair {
    pub now: Instant,
    pub cores: [Core; 2],
    /// The last datagrams of the second core.
    pub seen: Vec<Transmit>,
}

impl Pair {
    pub fn connected(track: Option<MediaStreamTrack>) -> Self {
        let now = Instant::now();
        let mut pair = Self {
            now,
            cores: [
                new_core(now, "192.0.2.1:1000"),
                new_core(now, "192.0.2.2:2000"),
            ],
            seen: vec![],
        };
        let init = DataChannelInit::default();
        pair.cores[0]
            .create_channel(now, "data", init)
            .expect("a channel");
        let audio = RtpTransceiverInit {
            direction: RtpTransceiverDirection::SendOnly,
            stream_ids: vec!["stream".to_owned()],
            send_encodings: vec![],
        };
        pair.cores[0]
            .add_transceiver(MediaType::Audio, track, audio, false)
            .expect("a transceiver");
        let [a, b] = &mut pair.cores;
        let offer = a.create_offer(false).expect("an offer");
        a.set_local_description(now, offer.clone(), &[])
            .expect("our own offer");
        b.set_remote_description(now, offer).expect("a good offer");
        let answer = b.create_answer().expect("there is an offer");
        b.set_local_description(now, answer.clone(), &[])
            .expect("our own answer");
        a.set_remote_description(now, answer)
            .expect("a good answer");
        for _ in 0..1_000 {
            pair.step(Duration::from_millis(5));
            let up = |core: &Core| {
                core.connection_state() == PeerConnectionState::Connected
                    && core
                        .channels()
                        .first()
                        .is_some_and(|channel| channel.state() == DataChannelState::Open)
            };
            if pair.cores.iter().all(up) {
                return pair;
            }
        }
        panic!("the two have not connected");
    }

    /// The section in which the first core sends sound.
    pub fn mid(&self) -> Mid {
        self.cores[0]
            .transceivers()
            .find_map(|transceiver| transceiver.view().sending)
            .expect("sending was negotiated")
            .mid
    }

    /// Lets time pass and carries what both have sent.
    pub fn step(&mut self, time: Duration) {
        self.now += time;
        for from in 0..2 {
            self.cores[from].settle(self.now);
            self.cores[from].events.clear();
            for transmit in std::mem::take(&mut self.cores[from].transmits) {
                self.give(1 - from, &transmit, &transmit.contents);
                if from == 1 {
                    self.seen.push(transmit);
                }
            }
        }
        let surplus = self.seen.len().saturating_sub(SEEN);
        self.seen.drain(..surplus);
    }

    /// Gives a core a packet with the addresses of `like`.
    pub fn give(&mut self, to: usize, like: &Transmit, packet: &[u8]) {
        let (source, destination) = (like.source, like.destination);
        self.cores[to].receive(self.now, Protocol::Udp, source, destination, packet);
    }
}
