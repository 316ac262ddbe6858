//! Data channels between two cores under load and at their limits, in virtual time.

use std::time::Duration;

use super::{
    tests::{Line, Pair, message, numbers},
    *,
};
use crate::{
    audio::link::Link,
    data_channel::DataChannelInit,
    jsep::{negotiation::MAX_MESSAGE_SIZE, sdp::Sdp},
};

/// Numbers of the messages that have come to the second core since the last time.
fn arrived(pair: &mut Pair) -> Vec<u32> {
    numbers(&std::mem::take(&mut pair.events[1]))
}

/// Opens a channel of a connected pair.
fn open(pair: &mut Pair, init: DataChannelInit) -> Arc<Channel> {
    let now = pair.now;
    let channel = pair.cores[0]
        .create_channel(now, "load", init)
        .expect("a channel");
    pair.run(Duration::from_secs(5), |_| {
        channel.state() == DataChannelState::Open
    })
    .expect("the channel opens");
    channel
}

fn lossy() -> DataChannelInit {
    DataChannelInit {
        ordered: false,
        max_retransmits: Some(0),
        ..DataChannelInit::default()
    }
}

/// The bytes and messages given to a channel, and what it has reported of them.
struct Load {
    channel: Arc<Channel>,
    accepted: u64,
    drained: u64,
    most_buffered: u64,
    most_waiting: [usize; 2],
}

impl Load {
    fn on(channel: Arc<Channel>) -> Self {
        Self {
            channel,
            accepted: 0,
            drained: 0,
            most_buffered: 0,
            most_waiting: [0, 0],
        }
    }

    fn send(&mut self, pair: &mut Pair, message: &[u8]) -> bool {
        let now = pair.now;
        let sent = pair.cores[0].send_data(now, &self.channel, message, true);
        if sent.is_ok() {
            self.accepted += message.len() as u64;
        }
        self.most_waiting = [
            self.most_waiting[0].max(pair.cores[0].transmits.len()),
            self.most_waiting[1].max(pair.cores[0].events.len()),
        ];
        sent.is_ok()
    }

    /// Lets a millisecond pass and checks that the byte count is exact.
    fn pass(&mut self, pair: &mut Pair) {
        self.check(pair);
        pair.run(Duration::from_millis(1), |_| false);
        self.check(pair);
    }

    fn check(&mut self, pair: &mut Pair) {
        let mut told = std::mem::take(&mut pair.events[0]);
        told.extend(std::mem::take(&mut pair.cores[0].events));
        for event in told {
            if let Event::ChannelDrained(channel, bytes) = event {
                assert!(Arc::ptr_eq(&channel, &self.channel) && bytes > 0);
                self.drained += bytes;
            }
        }
        let buffered = self.channel.buffered_amount();
        assert_eq!(buffered, self.accepted - self.drained);
        let id = self.channel.account.lock().id.expect("it is open");
        let engine = pair.cores[0].rtc.channel(id);
        assert_eq!(
            buffered,
            engine.expect("it is open").buffered_amount() as u64
        );
        self.most_buffered = self.most_buffered.max(buffered);
    }
}

#[test]
fn ten_thousand_messages_a_second_arrive_and_nothing_grows() {
    const MILLISECONDS: u32 = 200;
    const A_MILLISECOND: u32 = 10;
    const BYTES: usize = 200;
    for init in [DataChannelInit::default(), lossy()] {
        let mut pair = Pair::connected();
        let reliable = init.max_retransmits.is_none();
        let mut load = Load::on(open(&mut pair, init));
        let mut numbers = 0..;
        let mut got = Vec::new();
        for _ in 0..MILLISECONDS {
            for number in numbers.by_ref().take(A_MILLISECOND as usize) {
                assert!(load.send(&mut pair, &message(number, BYTES)), "{number}");
            }
            load.pass(&mut pair);
            got.extend(arrived(&mut pair));
        }
        while load.channel.buffered_amount() > 0 {
            load.pass(&mut pair);
            got.extend(arrived(&mut pair));
        }
        assert_eq!(load.drained, load.accepted);
        if !reliable {
            got.sort_unstable();
        }
        let sent: Vec<u32> = (0..MILLISECONDS * A_MILLISECOND).collect();
        assert!(got == sent, "{} of {}", got.len(), sent.len());
        // What is in flight or waits for the window to open: a good part of the two megabytes sent
        // each second.
        assert!(load.most_buffered < 1_000_000, "{}", load.most_buffered);
        let [packets, events] = load.most_waiting;
        assert!(packets <= 2 * A_MILLISECOND as usize, "{packets}");
        assert!(events <= A_MILLISECOND as usize, "{events}");
        assert!(pair.cores[0].transmits.is_empty() && pair.cores[0].events.is_empty());
    }
}

#[test]
fn a_lossy_line_takes_from_lossy_channels_only_and_their_accounts_stay_right() {
    for init in [DataChannelInit::default(), lossy()] {
        let mut pair = Pair::connected();
        let reliable = init.max_retransmits.is_none();
        let mut load = Load::on(open(&mut pair, init));
        let loss = 0.05;
        let link = Link {
            loss,
            ..Link::default()
        };
        pair.line = Some(Line::new(pair.now, link, 7));
        let mut got = Vec::new();
        for number in 0..600 {
            assert!(load.send(&mut pair, &message(number, 3_000)), "{number}");
            for _ in 0..10 {
                load.pass(&mut pair);
            }
            got.extend(arrived(&mut pair));
        }
        let deadline = pair.now + Duration::from_secs(30);
        while load.channel.buffered_amount() > 0 {
            assert!(pair.now < deadline, "{}", load.channel.buffered_amount());
            load.pass(&mut pair);
            got.extend(arrived(&mut pair));
        }
        load.pass(&mut pair);
        got.extend(arrived(&mut pair));
        assert_eq!(load.drained, load.accepted);
        if reliable {
            assert!(got == (0..600).collect::<Vec<_>>(), "{}", got.len());
        } else {
            // Each message is three packets.
            assert!((400..600).contains(&got.len()), "{}", got.len());
        }
    }
}

/// Both sides agree on a channel, and each announces `max_message_size` as given.
fn connected_with(max_message_size: &str) -> Pair {
    let mut pair = Pair::new();
    let now = pair.now;
    pair.cores[0]
        .create_channel(now, "data", DataChannelInit::default())
        .expect("a channel");
    pair.negotiate_as_told(0, false, |description| {
        let own = format!("a=max-message-size:{}\r\n", MAX_MESSAGE_SIZE);
        let text = description.text().replace(&own, max_message_size);
        SessionDescription::from_checked(description.sdp_type(), text)
    });
    pair.run(Duration::from_secs(5), |pair| {
        let channels = pair.cores.iter().filter_map(|it| it.channels().first());
        let open = channels.filter(|it| it.state() == DataChannelState::Open);
        open.count() == 2
    })
    .expect("the channel opens");
    pair
}

#[test]
fn the_largest_message_arrives_and_a_larger_one_is_refused_in_words() {
    for (said, limit) in [
        ("a=max-message-size:262144\r\n", 262_144),
        ("a=max-message-size:1000\r\n", 1_000),
        // The default for a side that does not announce a size.
        ("", 65_536),
    ] {
        let mut pair = connected_with(said);
        for side in 0..2 {
            let (now, channel) = (pair.now, pair.cores[side].channels()[0].clone());
            let refused = pair.cores[side]
                .send_data(now, &channel, &vec![1; limit + 1], true)
                .expect_err("too large");
            assert_eq!(
                refused.to_string(),
                format!(
                    "a message of {} bytes is larger than the {limit} bytes that the other side takes",
                    limit + 1
                )
            );
            assert_eq!(channel.buffered_amount(), 0);
            pair.cores[side]
                .send_data(now, &channel, &vec![2; limit], true)
                .expect("as large as can be");
            let arrived = |pair: &Pair| {
                let mut events = pair.events[1 - side].iter();
                events.any(|event| match event {
                    Event::ChannelMessage { data, .. } => *data == vec![2; limit],
                    _ => false,
                })
            };
            pair.run(Duration::from_secs(20), arrived)
                .unwrap_or_else(|| panic!("{limit} bytes from {side}"));
            pair.run(Duration::from_secs(1), |_| channel.buffered_amount() == 0)
                .expect("it has gone");
        }
    }
}

#[test]
fn data_that_was_refused_can_be_agreed_on_later() {
    let mut pair = Pair::new();
    let audio = |core: &mut Core| {
        let init = RtpTransceiverInit {
            direction: RtpTransceiverDirection::SendRecv,
            stream_ids: vec![],
            send_encodings: vec![],
        };
        core.add_transceiver(MediaType::Audio, None, init, false)
            .expect("a transceiver")
    };
    let first = audio(&mut pair.cores[0]);
    audio(&mut pair.cores[0]);
    let now = pair.now;
    let channel = pair.cores[0]
        .create_channel(now, "data", DataChannelInit::default())
        .expect("a channel");
    let refuse_data = |description: SessionDescription| {
        if description.sdp_type() != SdpType::Offer {
            return description;
        }
        let mut sdp = Sdp::parse(description.text()).expect("our own text");
        for section in &mut sdp.sections {
            section.refused |= section.kind == Kind::Application;
        }
        SessionDescription::from_checked(SdpType::Offer, sdp.to_text(1, 1))
    };
    pair.negotiate_as_told(0, false, refuse_data);
    // A section that becomes free is not used for data, which str0m cannot move.
    pair.cores[0].stop_transceiver(&first).expect("it is open");
    pair.negotiate_as_told(0, false, refuse_data);
    pair.negotiate(0, false);
    pair.run(Duration::from_secs(5), |_| {
        channel.state() == DataChannelState::Open
    })
    .expect("the channel opens");
    let now = pair.now;
    pair.cores[0]
        .send_data(now, &channel, &message(3, 200_000), true)
        .expect("what the other side has said that it takes counts");
    pair.run(Duration::from_secs(5), |_| channel.buffered_amount() == 0)
        .expect("it has gone");
    assert_eq!(arrived(&mut pair), [3]);
}

#[test]
fn an_empty_message_is_refused_and_holds_nothing_up() {
    let mut pair = Pair::connected();
    let (now, channel) = (pair.now, pair.cores[0].channels()[0].clone());
    for binary in [true, false] {
        let refused = pair.cores[0].send_data(now, &channel, b"", binary);
        let refused = refused.expect_err("it cannot be sent");
        assert_eq!(refused.to_string(), "an empty message cannot be sent");
    }
    pair.cores[0]
        .send_data(now, &channel, &message(5, 4), true)
        .expect("the channel is open");
    pair.run(Duration::from_secs(1), |_| false);
    assert_eq!(arrived(&mut pair), [5]);
}

#[test]
fn a_full_buffer_has_room_again_when_the_line_is_back() {
    let mut pair = Pair::connected();
    let mut load = Load::on(open(&mut pair, DataChannelInit::default()));
    pair.cut = true;
    let mut taken = 0;
    while load.send(&mut pair, &message(taken, 200_000)) {
        taken += 1;
        load.check(&mut pair);
    }
    assert!(load.accepted as usize <= MAX_BUFFERED_BYTES);
    assert!(load.accepted as usize > MAX_BUFFERED_BYTES - 200_000);
    pair.cut = false;
    let mut got = Vec::new();
    // All of them would take long.
    while got.len() < 5 {
        load.pass(&mut pair);
        got.extend(arrived(&mut pair));
    }
    assert_eq!(got, [0, 1, 2, 3, 4]);
    assert!(
        load.send(&mut pair, &message(taken, 200_000)),
        "there is room again"
    );
}
