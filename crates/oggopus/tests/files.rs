//! Properties that a reader of the files sees: length, channels, and what is left after a crash.

use std::io::Cursor;
use std::time::Duration;

use oggopus::{Channels, Error, Reader, SAMPLE_RATE_HZ, Writer, WriterOptions, duration};
use proptest::prelude::*;

const SECOND: usize = SAMPLE_RATE_HZ as usize;

fn sine(frequency_hz: f64, samples: usize) -> Vec<i16> {
    (0..samples)
        .map(|i| {
            (8_000.0 * (std::f64::consts::TAU * frequency_hz * i as f64 / SECOND as f64).sin())
                as i16
        })
        .collect()
}

fn interleave(left: &[i16], right: &[i16]) -> Vec<i16> {
    left.iter().zip(right).flat_map(|(l, r)| [*l, *r]).collect()
}

fn channel(interleaved: &[i16], index: usize) -> Vec<i16> {
    interleaved.iter().skip(index).step_by(2).copied().collect()
}

/// Strength of one frequency (Goertzel), as the amplitude of a sine of that strength.
fn amplitude(pcm: &[i16], frequency_hz: f64) -> f64 {
    let step = std::f64::consts::TAU * frequency_hz / SECOND as f64;
    let (re, im) = pcm
        .iter()
        .enumerate()
        .fold((0.0, 0.0), |(re, im), (i, &sample)| {
            let phase = step * i as f64;
            (
                re + f64::from(sample) * phase.cos(),
                im + f64::from(sample) * phase.sin(),
            )
        });
    2.0 * f64::hypot(re, im) / pcm.len() as f64
}

fn encode(channels: Channels, pcm: &[i16]) -> Vec<u8> {
    let mut writer = Writer::new(Vec::new(), WriterOptions::speech(channels)).unwrap();
    writer.write(pcm).unwrap();
    writer.finish().unwrap()
}

fn decode(file: &[u8]) -> Vec<i16> {
    Reader::new(Cursor::new(file))
        .unwrap()
        .read_to_end()
        .unwrap()
}

fn on_disk(bytes: &[u8]) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), bytes).unwrap();
    file
}

#[test]
fn each_party_is_heard_on_its_own_channel_only() {
    let pcm = interleave(&sine(440.0, 3 * SECOND), &sine(1_000.0, 3 * SECOND));
    let decoded = decode(&encode(Channels::Stereo, &pcm));
    assert_eq!(decoded.len(), pcm.len());
    let (left, right) = (channel(&decoded, 0), channel(&decoded, 1));
    assert!(amplitude(&left, 440.0) > 7_000.0);
    assert!(amplitude(&right, 1_000.0) > 7_000.0);
    // 30 dB of separation is enough to keep the other party out of a transcript of one channel.
    assert!(
        amplitude(&left, 1_000.0) < 250.0,
        "{}",
        amplitude(&left, 1_000.0)
    );
    assert!(
        amplitude(&right, 440.0) < 250.0,
        "{}",
        amplitude(&right, 440.0)
    );
}

#[test]
fn a_party_that_speaks_alone_leaves_the_other_channel_silent() {
    let pcm = interleave(&sine(300.0, 2 * SECOND), &vec![0; 2 * SECOND]);
    let decoded = decode(&encode(Channels::Stereo, &pcm));
    let loudest_right = channel(&decoded, 1)
        .iter()
        .map(|s| s.unsigned_abs())
        .max()
        .unwrap();
    assert!(loudest_right < 300, "{loudest_right}");
}

#[test]
fn sound_comes_back_in_its_place() {
    // Silence, a tone from 1 s to 2 s, silence: a mistake in the codec's delay would move the
    // edges.
    let mut pcm = vec![0; 3 * SECOND];
    pcm[SECOND..2 * SECOND].copy_from_slice(&sine(500.0, SECOND));
    let decoded = decode(&encode(Channels::Mono, &pcm));
    let first_loud = decoded
        .iter()
        .position(|s| s.unsigned_abs() > 1_000)
        .unwrap();
    let last_loud = decoded
        .iter()
        .rposition(|s| s.unsigned_abs() > 1_000)
        .unwrap();
    assert!(first_loud.abs_diff(SECOND) < 240, "{first_loud}");
    assert!(last_loud.abs_diff(2 * SECOND) < 240, "{last_loud}");
}

#[test]
fn duration_is_exact() {
    for samples in [0, 1, 647, 648, 649, 960, 961, SECOND, 10 * SECOND + 12_345] {
        let file = on_disk(&encode(Channels::Mono, &vec![100; samples]));
        let expected = Duration::from_nanos(samples as u64 * 1_000_000_000 / SECOND as u64);
        assert_eq!(
            duration(file.path()).unwrap(),
            expected,
            "{samples} samples"
        );
    }
}

#[test]
fn duration_of_a_long_file_is_read_from_its_end() {
    // Noise fills the pages, so that the file is much longer than the part that is read.
    let mut state = 1u32;
    let noise: Vec<i16> = (0..SECOND)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 16) as i16 / 4
        })
        .collect();
    let mut options = WriterOptions::speech(Channels::Mono);
    options.bitrate_bps = 256_000;
    options.complexity = 0;
    let mut writer = Writer::new(Vec::new(), options).unwrap();
    for _ in 0..15 {
        writer.write(&noise).unwrap();
    }
    let bytes = writer.finish().unwrap();
    assert!(bytes.len() > 300_000, "{}", bytes.len());
    assert_eq!(
        duration(on_disk(&bytes).path()).unwrap(),
        Duration::from_secs(15)
    );
}

#[test]
fn a_recording_cut_off_by_a_crash_keeps_all_but_its_last_second() {
    let mut writer = Writer::new(Vec::new(), WriterOptions::speech(Channels::Stereo)).unwrap();
    let pcm = interleave(
        &sine(440.0, 5 * SECOND + SECOND / 2),
        &sine(700.0, 5 * SECOND + SECOND / 2),
    );
    writer.write(&pcm).unwrap();
    let whole = writer.finish().unwrap();
    // The last page starts after five seconds; without its last bytes it is no page.
    let cut = &whole[..whole.len() - 10];
    let length = duration(on_disk(cut).path()).unwrap();
    assert!(length >= Duration::from_millis(4_900), "{length:?}");
    assert!(length < Duration::from_millis(5_500), "{length:?}");
    let decoded = decode(cut);
    assert!(decoded.len() / 2 >= 5 * SECOND - 1_000, "{}", decoded.len());
    assert!(amplitude(&channel(&decoded, 0), 440.0) > 7_000.0);
}

#[test]
fn a_writer_that_is_never_finished_has_written_whole_pages() {
    let mut file = Vec::new();
    let mut writer = Writer::new(&mut file, WriterOptions::speech(Channels::Mono)).unwrap();
    writer.write(&sine(440.0, 3 * SECOND + 5_000)).unwrap();
    drop(writer);
    let decoded = decode(&file);
    assert_eq!(decoded.len(), 3 * SECOND - 312);
}

#[test]
fn other_files_are_refused_in_words() {
    let file = on_disk(b"RIFF, or so it seems, and then more of the same");
    assert!(matches!(duration(file.path()), Err(Error::Malformed(_))));
    assert!(Reader::open(file.path()).is_err());
    assert!(matches!(
        duration(on_disk(b"").path()),
        Err(Error::Malformed(_))
    ));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn any_sequence_of_lengths_gives_exactly_that_much_sound(
        lengths in prop::collection::vec(0usize..6_000, 0..12),
        stereo in any::<bool>(),
    ) {
        let channels = if stereo { Channels::Stereo } else { Channels::Mono };
        let mut options = WriterOptions::speech(channels);
        options.complexity = 0;
        let mut writer = Writer::new(Vec::new(), options).unwrap();
        for length in &lengths {
            writer.write(&vec![1_000; *length]).unwrap();
        }
        let samples = lengths.iter().sum::<usize>() / channels.count();
        prop_assert_eq!(writer.samples(), samples as u64);
        let bytes = writer.finish().unwrap();
        let file = on_disk(&bytes);
        let expected = Duration::from_nanos(samples as u64 * 1_000_000_000 / SECOND as u64);
        prop_assert_eq!(duration(file.path()).unwrap(), expected);
        prop_assert_eq!(decode(&bytes).len(), samples * channels.count());
    }

    #[test]
    fn damaged_files_never_panic(cut in 0usize..3_000, flip in 0usize..3_000, bit in 0u8..8) {
        let mut bytes = encode(Channels::Mono, &sine(440.0, SECOND / 2));
        let at = flip % bytes.len();
        bytes[at] ^= 1 << bit;
        bytes.truncate(bytes.len() - cut % bytes.len());
        let _ = duration(on_disk(&bytes).path());
        if let Ok(mut reader) = Reader::new(Cursor::new(&bytes[..])) {
            let _ = reader.read_to_end();
        }
    }
}
