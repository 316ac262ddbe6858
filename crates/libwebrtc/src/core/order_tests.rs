//! Two cores that offer, answer, stop, send and lose their link in any order end connected, and
//! agree on the result.

use std::time::Duration;

use proptest::prelude::*;

use super::{
    tests::{Line, Pair, message, numbers},
    *,
};
use crate::{
    audio::{encoder::EncodedAudio, link::Link},
    data_channel::DataChannelInit,
    jsep::sdp::Sdp,
};

/// What one of two sides does, or what happens to the line between them.
#[derive(Debug, Clone, Copy)]
enum Action {
    Add {
        side: usize,
        direction: Direction,
        from_add_track: bool,
    },
    Want {
        side: usize,
        which: usize,
        direction: Direction,
    },
    Stop {
        side: usize,
        which: usize,
    },
    /// An answer follows, perhaps after provisional ones, and packets flow while offer and answer
    /// are in transit.
    Exchange {
        from: usize,
        restart: bool,
        provisional: bool,
    },
    OfferAndForget {
        from: usize,
    },
    RefuseToAnswer {
        from: usize,
    },
    /// Both offer at once; one rolls back.
    Glare {
        polite: usize,
    },
    /// A transceiver is stopped, and another one gets the place of its section.
    Reuse {
        side: usize,
        which: usize,
    },
    Data {
        side: usize,
        bytes: usize,
    },
    Sound {
        side: usize,
    },
    Pass {
        ms: u64,
    },
    /// The link is cut, but not for so long that the first handshake would be given up, and then
    /// works for a short time.
    Cut {
        ms: u64,
    },
    /// From now on the link loses, delays, reorders and duplicates what the first side sends.
    Spoil {
        seed: u64,
    },
    /// The link is good again.
    Mend,
}

fn action() -> impl Strategy<Value = Action> {
    let side = || 0..2usize;
    let direction =
        || (any::<bool>(), any::<bool>()).prop_map(|(send, receive)| Direction::new(send, receive));
    prop_oneof![
        2 => (side(), direction(), any::<bool>()).prop_map(|(side, direction, add_track)| {
            Action::Add { side, direction, from_add_track: add_track && direction.send }
        }),
        1 => (side(), 0..8usize, direction())
            .prop_map(|(side, which, direction)| Action::Want { side, which, direction }),
        1 => (side(), 0..8usize).prop_map(|(side, which)| Action::Stop { side, which }),
        3 => (side(), any::<bool>(), any::<bool>())
            .prop_map(|(from, restart, provisional)| Action::Exchange { from, restart, provisional }),
        1 => side().prop_map(|from| Action::OfferAndForget { from }),
        1 => side().prop_map(|from| Action::RefuseToAnswer { from }),
        1 => side().prop_map(|polite| Action::Glare { polite }),
        1 => (side(), 0..8usize).prop_map(|(side, which)| Action::Reuse { side, which }),
        2 => (side(), 4..5_000usize).prop_map(|(side, bytes)| Action::Data { side, bytes }),
        2 => side().prop_map(|side| Action::Sound { side }),
        2 => (1..1_500u64).prop_map(|ms| Action::Pass { ms }),
        1 => (1..4_000u64).prop_map(|ms| Action::Cut { ms }),
        1 => any::<u64>().prop_map(|seed| Action::Spoil { seed }),
        1 => Just(Action::Mend),
    ]
}

/// Two sides, and what they have sent each other.
struct Story {
    pair: Pair,
    messages: [u32; 2],
    rtp_time: u32,
}

impl Story {
    fn new() -> Self {
        let mut pair = Pair::new();
        pair.cores[0]
            .create_channel(pair.now, "data", DataChannelInit::default())
            .expect("a channel");
        Self {
            pair,
            messages: [0, 0],
            rtp_time: 0,
        }
    }

    fn pass(&mut self, ms: u64) {
        self.pair.run(Duration::from_millis(ms), |_| false);
    }

    fn take(&mut self, step: Action) {
        match step {
            Action::Add {
                side,
                direction,
                from_add_track,
            } => {
                let init = RtpTransceiverInit {
                    direction: direction.into(),
                    stream_ids: vec!["stream".to_owned()],
                    send_encodings: vec![],
                };
                self.pair.cores[side]
                    .add_transceiver(MediaType::Audio, None, init, from_add_track)
                    .expect("a transceiver");
            }
            Action::Want {
                side,
                which,
                direction,
            } => {
                let transceivers = &mut self.pair.cores[side].negotiation.transceivers;
                if let Some(known) = transceivers.get_mut(which) {
                    known.direction = direction;
                }
            }
            Action::Stop { side, which } => {
                let core = &mut self.pair.cores[side];
                let transceiver = core.transceivers().nth(which).cloned();
                if let Some(transceiver) = transceiver {
                    core.stop_transceiver(&transceiver).expect("it is open");
                }
            }
            Action::Exchange {
                from,
                restart,
                provisional,
            } => self.exchange(from, restart, provisional),
            Action::OfferAndForget { from } => {
                let offer = self.offer(from, false);
                self.set_local(from, offer);
                self.pass(30);
                self.set_local(from, rollback());
            }
            Action::RefuseToAnswer { from } => {
                let offer = self.offer(from, false);
                if has_transport(&offer) {
                    self.set_remote(1 - from, offer);
                    self.pass(30);
                    self.set_remote(1 - from, rollback());
                }
            }
            Action::Glare { polite } => {
                let (ours, theirs) = (self.offer(polite, false), self.offer(1 - polite, false));
                self.set_local(polite, ours);
                if has_transport(&theirs) {
                    let now = self.pair.now;
                    self.pair.cores[polite]
                        .set_remote_description(now, theirs)
                        .expect_err("both have offered");
                }
                self.set_local(polite, rollback());
                self.exchange(1 - polite, false, false);
            }
            Action::Reuse { side, which } => {
                self.take(Action::Stop { side, which });
                self.exchange(side, false, false);
                self.take(Action::Add {
                    side,
                    direction: Direction::SEND_RECV,
                    from_add_track: false,
                });
                self.exchange(side, false, false);
            }
            Action::Data { side, bytes } => self.send_data(side, bytes),
            Action::Sound { side } => {
                for _ in 0..3 {
                    self.send_sound(side);
                    self.pass(20);
                }
            }
            Action::Pass { ms } => self.pass(ms),
            Action::Spoil { seed } => {
                let link = Link {
                    loss: 0.1,
                    jitter_ms: 30.0,
                    overtaken: 0.05,
                    doubled: 0.05,
                    ..Link::default()
                };
                self.pair.line = Some(Line::new(self.pair.now, link, seed));
            }
            Action::Mend => self.pair.line = None,
            Action::Cut { ms } => {
                let up = [PeerConnectionState::Connected; 2] == self.pair.states();
                self.pair.cut = true;
                self.pass(if up { ms } else { ms.min(200) });
                self.pair.cut = false;
                self.pass(500);
            }
        }
    }

    fn offer(&mut self, from: usize, restart: bool) -> SessionDescription {
        self.pair.cores[from]
            .create_offer(restart)
            .expect("it is open")
    }

    fn set_local(&mut self, whose: usize, description: SessionDescription) {
        let now = self.pair.now;
        self.pair.cores[whose]
            .set_local_description(now, description, &[])
            .expect("our own description");
    }

    fn set_remote(&mut self, whose: usize, description: SessionDescription) {
        let now = self.pair.now;
        self.pair.cores[whose]
            .set_remote_description(now, description)
            .expect("a good description");
    }

    /// An exchange, unless there is nothing that could be agreed on.
    fn exchange(&mut self, from: usize, restart: bool, provisional: bool) {
        let to = 1 - from;
        let offer = self.offer(from, restart);
        if !has_transport(&offer) {
            return;
        }
        self.set_local(from, offer.clone());
        self.pass(20);
        self.set_remote(to, offer);
        let answer = self.pair.cores[to]
            .create_answer()
            .expect("there is an offer");
        if !has_transport(&answer) {
            self.set_remote(to, rollback());
            self.set_local(from, rollback());
            return;
        }
        if provisional {
            let text = answer.text().to_owned();
            let provisional = SessionDescription::from_checked(SdpType::PrAnswer, text);
            self.set_local(to, provisional.clone());
            self.pass(20);
            self.set_remote(from, provisional);
        }
        self.set_local(to, answer.clone());
        self.pass(20);
        self.set_remote(from, answer);
    }

    fn channel(&self, side: usize) -> Option<Arc<Channel>> {
        self.pair.cores[side].channels().first().cloned()
    }

    /// Sends a message that begins with its number, if the channel is open.
    fn send_data(&mut self, side: usize, bytes: usize) {
        let Some(channel) = self.channel(side) else {
            return;
        };
        let (now, message) = (self.pair.now, message(self.messages[side], bytes));
        if self.pair.cores[side]
            .send_data(now, &channel, &message, true)
            .is_ok()
        {
            self.messages[side] += 1;
        }
    }

    /// Sends a packet of sound in each transceiver that may send. Returns their mids.
    fn send_sound(&mut self, side: usize) -> Vec<Mid> {
        let (now, core) = (self.pair.now, &mut self.pair.cores[side]);
        let views = core.transceivers().map(|it| it.view().sending);
        let streams: Vec<_> = views.flatten().collect();
        self.rtp_time += 960;
        for stream in &streams {
            let packet = EncodedAudio {
                payload: vec![1, 2, 3],
                rtp_timestamp: self.rtp_time,
                marker: false,
                audio_level_dbov: -30,
                voice_activity: true,
                narrow: false,
            };
            core.send_audio(now, stream.mid, stream.payload_type, packet);
        }
        streams.iter().map(|stream| stream.mid).collect()
    }

    /// The last exchanges on a good link, after which everything must work.
    fn end(&mut self) {
        self.take(Action::Mend);
        let failed = |pair: &Pair| pair.states().contains(&PeerConnectionState::Failed);
        let restart = failed(&self.pair);
        self.exchange(0, restart, false);
        self.exchange(1, false, false);
        let both = [PeerConnectionState::Connected; 2];
        let connected = self
            .pair
            .run(Duration::from_secs(30), |pair| pair.states() == both);
        assert!(connected.is_some(), "{:?}", self.pair.states());

        let sections = [0, 1].map(|side| sections(&self.pair.cores[side]));
        let mirrored: Vec<_> = sections[1]
            .iter()
            .map(|(mid, kind, refused, direction)| {
                (mid.clone(), kind.clone(), *refused, direction.reversed())
            })
            .collect();
        assert_eq!(sections[0], mirrored);
        for core in &self.pair.cores {
            assert_eq!(core.signaling_state(), SignalingState::Stable);
            for transceiver in core.transceivers() {
                let view = transceiver.view();
                let agreed = sections[0]
                    .iter()
                    .find(|(mid, ..)| Some(mid) == view.mid.as_ref());
                let refused = agreed.is_none_or(|(_, _, refused, _)| *refused);
                let stopped = view.direction == RtpTransceiverDirection::Stopped;
                assert_eq!(stopped, refused, "{view:?}");
                assert_eq!(view.current_direction.is_none(), refused, "{view:?}");
            }
        }

        let open = |pair: &Pair| {
            let channels = pair.cores.iter().map(|core| core.channels().first());
            channels
                .into_iter()
                .all(|it| it.is_some_and(|it| it.state() == DataChannelState::Open))
        };
        let opened = self.pair.run(Duration::from_secs(30), open);
        assert!(opened.is_some(), "the channel opens");
        let [ours, theirs] = self.messages;
        for side in 0..2 {
            self.send_data(side, 100);
        }
        assert_eq!(self.messages, [ours + 1, theirs + 1]);
        for side in 0..2 {
            let sent: Vec<u32> = (0..self.messages[1 - side]).collect();
            let last = sent.len();
            for _ in 0..300 {
                if numbers(&self.pair.events[side]).len() >= last {
                    break;
                }
                self.pass(100);
            }
            assert_eq!(numbers(&self.pair.events[side]), sent);
        }

        for core in &mut self.pair.cores {
            core.media.incoming.clear();
        }
        let mut sounding = [vec![], vec![]];
        for _ in 0..5 {
            for (side, sounding) in sounding.iter_mut().enumerate() {
                *sounding = self.send_sound(side);
            }
            self.pass(20);
        }
        self.pass(100);
        for (side, mids) in sounding.iter().enumerate() {
            let other = &self.pair.cores[1 - side];
            for mid in mids {
                let heard = other.media.incoming.values().find(|it| it.mid == *mid);
                let heard = heard.unwrap_or_else(|| panic!("section {mid} of {side} is not heard"));
                assert_eq!(heard.index, other.index_of_mid(*mid));
            }
            let directions = sections[side]
                .iter()
                .filter(|(.., direction)| direction.send);
            assert_eq!(directions.count(), mids.len());
        }
    }
}

fn rollback() -> SessionDescription {
    SessionDescription::from_checked(SdpType::Rollback, String::new())
}

/// Without a section that both may use there is no transport either.
fn has_transport(description: &SessionDescription) -> bool {
    let sdp = Sdp::parse(description.text()).expect("our own text");
    sdp.credentials().is_some()
}

/// What the two current descriptions say together: mid, kind, whether nobody uses it, and who may
/// send.
fn sections(core: &Core) -> Vec<(String, Kind, bool, Direction)> {
    let parse = |description: Option<SessionDescription>| {
        let description = description.expect("there was an exchange");
        Sdp::parse(description.text()).expect("our own text")
    };
    let local = parse(core.current_local_description());
    let remote = parse(core.current_remote_description());
    assert_eq!(local.sections.len(), remote.sections.len());
    let both = local.sections.into_iter().zip(remote.sections);
    both.map(|(ours, theirs)| {
        assert_eq!((&ours.mid, &ours.kind), (&theirs.mid, &theirs.kind));
        let refused = ours.refused || theirs.refused;
        let direction = match ours.kind {
            Kind::Audio if !refused => ours.direction.and(theirs.direction.reversed()),
            _ => Direction::INACTIVE,
        };
        let agreed = core.negotiation.transceivers.iter();
        let mut agreed = agreed.filter(|it| !it.stopped && it.mid.as_ref() == Some(&ours.mid));
        if ours.kind == Kind::Audio && !refused {
            let transceiver = agreed.next().expect("a section has a transceiver");
            assert_eq!(transceiver.current_direction, Some(direction));
        }
        assert!(agreed.next().is_none(), "{} has two", ours.mid);
        (ours.mid, ours.kind, refused, direction)
    })
    .collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]
    #[test]
    fn any_order_of_steps_ends_connected_and_of_one_mind(
        steps in proptest::collection::vec(action(), 0..40),
    ) {
        let mut story = Story::new();
        for step in steps {
            story.take(step);
        }
        story.end();
    }
}
