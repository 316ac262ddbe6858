//! Two parties on one timeline.

use std::io::Cursor;

use oggopus::{DualChannelTimeline, DualChannelWriter, Placed, Reader, Side, TimelineOptions};
use proptest::prelude::*;

const OPTIONS: TimelineOptions = TimelineOptions {
    delay_samples: 100,
    jitter_samples: 20,
    max_ahead_samples: 1_000,
};

/// Everything up to `position`, as one list a side.
fn drain_all(timeline: &mut DualChannelTimeline, position: u64) -> (Vec<i16>, Vec<i16>) {
    let (mut left, mut right) = (Vec::new(), Vec::new());
    while let Some(piece) = timeline.drain_until(position) {
        for pair in piece.chunks_exact(2) {
            left.push(pair[0]);
            right.push(pair[1]);
        }
    }
    (left, right)
}

#[test]
fn agent_is_left_and_caller_right_and_holes_are_silence() {
    let mut timeline = DualChannelTimeline::new(OPTIONS);
    let agent = timeline.add_source(Side::Left);
    let caller = timeline.add_source(Side::Right);
    timeline.push(agent, 0, &[1; 10]);
    timeline.push(caller, 50, &[2; 10]);
    timeline.push(agent, 80, &[3; 10]);
    let (left, right) = drain_all(&mut timeline, 100);
    let mut expected_left = vec![0; 100];
    expected_left[..10].fill(1);
    expected_left[80..90].fill(3);
    let mut expected_right = vec![0; 100];
    expected_right[50..60].fill(2);
    assert_eq!(left, expected_left);
    assert_eq!(right, expected_right);
}

#[test]
fn a_party_that_stops_sending_does_not_block_the_other() {
    let mut timeline = DualChannelTimeline::new(OPTIONS);
    let agent = timeline.add_source(Side::Left);
    let caller = timeline.add_source(Side::Right);
    timeline.push(caller, 0, &[5; 10]);
    let mut drained = 0;
    for now in (0..5_000).step_by(50) {
        timeline.push(agent, now, &[7; 50]);
        while let Some(piece) = timeline.drain(now + 50) {
            drained += piece.len() as u64 / 2;
        }
        // Only the waiting time is outstanding, however long the caller has been silent.
        assert_eq!(drained, (now + 50).saturating_sub(100));
    }
}

#[test]
fn jittering_positions_are_joined() {
    let mut timeline = DualChannelTimeline::new(OPTIONS);
    let agent = timeline.add_source(Side::Left);
    for (start, value) in [(0, 1), (57, 2), (95, 3), (161, 4)] {
        timeline.push(agent, start, &[value; 50]);
    }
    let (left, _) = drain_all(&mut timeline, 200);
    let expected: Vec<i16> = [1, 2, 3, 4].iter().flat_map(|value| [*value; 50]).collect();
    assert_eq!(left, expected);
}

#[test]
fn joining_does_not_let_the_error_grow() {
    // The sender's clock runs slow: each piece of 50 stands for 51.
    let mut timeline = DualChannelTimeline::new(OPTIONS);
    let agent = timeline.add_source(Side::Left);
    let mut worst = 0;
    for i in 0..200u64 {
        let placed = timeline.push(agent, i * 51, &[1; 50]);
        worst = worst.max(placed.start.abs_diff(i * 51));
        while timeline.drain(i * 51).is_some() {}
    }
    assert!(worst <= 20, "{worst}");
}

#[test]
fn a_real_overlap_keeps_what_was_there() {
    let mut timeline = DualChannelTimeline::new(OPTIONS);
    let agent = timeline.add_source(Side::Left);
    timeline.push(agent, 0, &[1; 100]);
    let placed = timeline.push(agent, 60, &[2; 50]);
    assert_eq!(
        placed,
        Placed {
            start: 100,
            kept: 10,
            dropped: 40
        }
    );
    let (left, _) = drain_all(&mut timeline, 120);
    assert_eq!(left[99..112], [1, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 0, 0]);
}

#[test]
fn two_callers_on_one_side_are_mixed_without_wrapping() {
    let mut timeline = DualChannelTimeline::new(OPTIONS);
    let one = timeline.add_source(Side::Right);
    let two = timeline.add_source(Side::Right);
    timeline.push(one, 0, &[30_000, 100, 100]);
    timeline.push(two, 0, &[30_000, 20, -300]);
    let (_, right) = drain_all(&mut timeline, 3);
    assert_eq!(right, [i16::MAX, 120, -200]);
}

#[test]
fn late_sound_is_cut_and_counted_and_the_sender_goes_on() {
    let mut timeline = DualChannelTimeline::new(OPTIONS);
    let agent = timeline.add_source(Side::Left);
    while timeline.drain(600).is_some() {}
    assert_eq!(timeline.push(agent, 400, &[1; 50]).dropped, 50);
    assert_eq!(
        timeline.push(agent, 450, &[2; 100]),
        Placed {
            start: 500,
            kept: 50,
            dropped: 50
        }
    );
    assert_eq!(timeline.push(agent, 552, &[3; 10]).start, 550);
    assert_eq!(timeline.end(), 560);
}

#[test]
fn sound_from_a_wild_future_takes_no_memory() {
    let mut timeline = DualChannelTimeline::new(OPTIONS);
    let agent = timeline.add_source(Side::Left);
    assert_eq!(timeline.push(agent, u64::MAX - 5, &[1; 10]).kept, 0);
    assert_eq!(
        timeline.push(agent, 995, &[1; 10]),
        Placed {
            start: 995,
            kept: 5,
            dropped: 5
        }
    );
    assert_eq!(timeline.end(), 1_000);
}

#[test]
fn a_recorded_call_has_both_parties_and_its_whole_length() {
    let second = 48_000u64;
    let tone = |frequency: f64| -> Vec<i16> {
        (0..48_000)
            .map(|i| {
                (8_000.0 * (i as f64 * frequency / 48_000.0 * std::f64::consts::TAU).sin()) as i16
            })
            .collect()
    };
    let mut recording = DualChannelWriter::new(Vec::new(), TimelineOptions::default()).unwrap();
    let agent = recording.add_source(Side::Left);
    let caller = recording.add_source(Side::Right);
    recording.push(agent, 0, &tone(440.0));
    recording.advance(second).unwrap();
    recording.push(caller, 2 * second, &tone(700.0));
    recording.advance(3 * second).unwrap();
    let file = recording.finish(4 * second).unwrap();
    let decoded = Reader::new(Cursor::new(file))
        .unwrap()
        .read_to_end()
        .unwrap();
    assert_eq!(decoded.len() as u64, 2 * 4 * second);
    let loudness = |side: usize, at_second: usize| -> u64 {
        // The ends of a second ring a little; its middle is compared.
        let from = at_second * 48_000 + 4_800;
        let values = (from..from + 38_400).map(|i| u64::from(decoded[2 * i + side].unsigned_abs()));
        values.sum::<u64>() / 38_400
    };
    for (at_second, left, right) in [
        (0, true, false),
        (1, false, false),
        (2, false, true),
        (3, false, false),
    ] {
        assert_eq!(
            loudness(0, at_second) > 2_000,
            left,
            "left, second {at_second}"
        );
        assert_eq!(
            loudness(1, at_second) > 2_000,
            right,
            "right, second {at_second}"
        );
        assert!(left || loudness(0, at_second) < 100);
        assert!(right || loudness(1, at_second) < 100);
    }
}

proptest! {
    #[test]
    fn nothing_is_lost_or_invented(
        pieces in prop::collection::vec((0u64..400, 1usize..80, any::<bool>(), 0u64..120), 1..60),
    ) {
        let mut timeline = DualChannelTimeline::new(OPTIONS);
        let sources = [timeline.add_source(Side::Left), timeline.add_source(Side::Right)];
        let (mut now, mut given, mut kept, mut dropped, mut drained, mut heard) = (0, 0, 0, 0, 0, 0);
        for (ahead, length, right, step) in pieces {
            let placed = timeline.push(sources[usize::from(right)], now + ahead, &vec![1; length]);
            given += length;
            kept += placed.kept;
            dropped += placed.dropped;
            now += step;
            while let Some(piece) = timeline.drain(now) {
                drained += piece.len() / 2;
                heard += piece.iter().filter(|value| **value == 1).count();
            }
        }
        let end = timeline.end();
        while let Some(piece) = timeline.drain_until(end) {
            drained += piece.len() / 2;
            heard += piece.iter().filter(|value| **value == 1).count();
        }
        prop_assert_eq!(given, kept + dropped);
        prop_assert_eq!(kept, heard);
        prop_assert_eq!(drained as u64, end);
        prop_assert_eq!(timeline.drained(), end);
    }
}
