//! Answers of every kind, in pieces of every size.

use super::*;

const RATE_HZ: u32 = 24_000;

/// All samples of an answer that comes in pieces of `piece` bytes.
fn read(content_type: &str, bytes: &[u8], piece: usize) -> Result<Vec<i16>, SoundProblem> {
    let mut reader = SoundReader::new(content_type, RATE_HZ);
    let mut samples = Vec::new();
    for piece in bytes.chunks(piece) {
        samples.extend(reader.push(piece)?);
    }
    samples.extend(reader.finish()?);
    Ok(samples)
}

fn little_endian(samples: &[i16]) -> Vec<u8> {
    samples.iter().flat_map(|s| s.to_le_bytes()).collect()
}

/// Tag, channels, rate in Hz, bits.
type WavFormat = (u16, u16, u32, u16);

/// A WAV file; `data_size` is what its header says.
fn wav(format: WavFormat, body: &[u8], data_size: u32, extra: &[u8]) -> Vec<u8> {
    let (tag, channels, rate_hz, bits) = format;
    let mut fmt = Vec::new();
    fmt.extend(tag.to_le_bytes());
    fmt.extend(channels.to_le_bytes());
    fmt.extend(rate_hz.to_le_bytes());
    let frame = channels * bits / 8;
    fmt.extend((rate_hz * u32::from(frame)).to_le_bytes());
    fmt.extend(frame.to_le_bytes());
    fmt.extend(bits.to_le_bytes());
    fmt.extend(extra);
    let mut file = b"RIFF\0\0\0\0WAVEfmt ".to_vec();
    file.extend((fmt.len() as u32).to_le_bytes());
    file.extend(fmt);
    file.extend(b"LIST\x05\0\0\0INFOx\0");
    file.extend(b"data");
    file.extend(data_size.to_le_bytes());
    file.extend(body);
    file
}

/// A tone's frequency by its zero crossings, in Hz.
fn pitch(samples: &[i16]) -> f64 {
    let crossings = samples
        .windows(2)
        .filter(|w| (w[0] < 0) != (w[1] < 0))
        .count();
    crossings as f64 / 2.0 / (samples.len() as f64 / f64::from(RATE_HZ))
}

const VALUES: [i16; 7] = [0, 256, -256, 12_800, -12_800, 32_512, -32_768];

#[test]
fn every_form_of_wav_is_read_without_its_header() {
    let ints = |bytes: usize| -> Vec<u8> {
        let wide = VALUES.map(|value| i32::from(value) << 16);
        wide.iter()
            .flat_map(|value| value.to_le_bytes()[4 - bytes..].to_vec())
            .collect()
    };
    let unsigned: Vec<u8> = VALUES.iter().map(|v| ((v >> 8) + 128) as u8).collect();
    let floats = VALUES.map(|value| f32::from(value) / 32_768.0);
    let float32: Vec<u8> = floats
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect();
    let doubles = floats.map(f64::from);
    let float64: Vec<u8> = doubles
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect();
    let stereo: Vec<u8> = VALUES
        .iter()
        .flat_map(|value| {
            // The louder ones have no room to be different.
            let apart = if value.unsigned_abs() < 20_000 {
                100
            } else {
                0
            };
            little_endian(&[value - apart, value + apart])
        })
        .collect();
    // Size of the rest, bits, mask of channels, and the id that begins with the tag of PCM.
    let extensible = [
        22, 0, 16, 0, 4, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0x10, 0, 0x80, 0, 0, 0xaa, 0, 0x38, 0x9b, 0x71,
    ];
    let tag = 0xfffe;
    let cases: [(&str, WavFormat, Vec<u8>, &[u8]); 8] = [
        ("8 bits", (1, 1, RATE_HZ, 8), unsigned, &[]),
        ("16 bits", (1, 1, RATE_HZ, 16), ints(2), &[]),
        ("24 bits", (1, 1, RATE_HZ, 24), ints(3), &[]),
        ("32 bits", (1, 1, RATE_HZ, 32), ints(4), &[]),
        ("floats", (3, 1, RATE_HZ, 32), float32, &[0, 0]),
        ("doubles", (3, 1, RATE_HZ, 64), float64, &[]),
        ("extensible", (tag, 1, RATE_HZ, 16), ints(2), &extensible),
        ("stereo", (1, 2, RATE_HZ, 16), stereo, &[]),
    ];
    for (what, format, body, extra) in cases {
        let size = body.len() as u32;
        let mut whole = wav(format, &body, size, extra);
        if size % 2 == 1 {
            whole.push(0);
        }
        whole.extend(b"LIST\x04\0\0\0\xff\x7f\xff\x7f");
        let open = |size| wav(format, &body, size, extra);
        let twice = [whole.clone(), whole.clone()].concat();
        for piece in [1, 2, 3, 7, 4_096] {
            let read = |file: &[u8]| read("audio/wav", file, piece).unwrap();
            assert_eq!(read(&whole), VALUES, "{what}, pieces of {piece}");
            assert_eq!(read(&twice), [VALUES, VALUES].concat(), "{what} twice");
            for size in [0, u32::MAX, 0x7fff_ffff] {
                assert_eq!(read(&open(size)), VALUES, "{what} of unknown length");
            }
        }
    }
}

#[test]
fn speech_as_wav_is_read_without_its_header() {
    let file = include_bytes!("../../../tests/fixtures/cases/speech-as-wav/speech.wav");
    let expected: Vec<i16> = file[44..]
        .chunks_exact(2)
        .map(|pair| i16::from_le_bytes([pair[0], pair[1]]))
        .collect();
    for content_type in ["audio/wav", "audio/pcm", "audio/mpeg", ""] {
        for piece in [1, 1_001, 100_000] {
            assert_eq!(
                read(content_type, file, piece).unwrap(),
                expected,
                "{content_type}"
            );
        }
    }
}

#[test]
fn speech_at_another_rate_keeps_its_pitch_and_its_length() {
    let slow = include_bytes!("../../../tests/fixtures/cases/speech-at-another-rate/speech.wav");
    let stereo = include_bytes!("../../../tests/fixtures/cases/speech-at-another-rate/stereo.wav");
    let raw = &slow[44..];
    let mut swapped = raw.to_vec();
    swapped.chunks_exact_mut(2).for_each(|pair| pair.swap(0, 1));
    let raw_stereo = &stereo[44..];
    let cases: [(&str, &[u8], f64); 8] = [
        ("audio/wav", slow, 1.0),
        ("audio/wav", stereo, 0.5),
        ("audio/pcm;rate=16000", raw, 1.0),
        ("Audio/PCM; Rate=\"16000\"; channels=1", raw, 1.0),
        ("audio/L16;rate=16000", &swapped, 1.0),
        ("audio/L16;codec=pcm;rate=16000", raw, 1.0),
        ("audio/pcm;rate=44100;channels=2", raw_stereo, 0.5),
        ("application/octet-stream;rate=16000", raw, 1.0),
    ];
    for (content_type, bytes, seconds) in cases {
        for piece in [1, 999, 1 << 20] {
            let samples = read(content_type, bytes, piece).unwrap();
            let length = samples.len() as f64 / f64::from(RATE_HZ);
            assert!(
                (length - seconds).abs() < 0.002,
                "{content_type}: {length} s"
            );
            let pitch = pitch(&samples);
            assert!((pitch - 300.0).abs() < 3.0, "{content_type}: {pitch} Hz");
        }
    }
}

#[test]
fn what_is_no_sample_is_named_and_never_played() {
    let mp3 = include_bytes!("../../../tests/fixtures/cases/speech-as-mp3/speech.mp3");
    let frames = &mp3[mp3.iter().position(|byte| *byte == 0xff).unwrap()..];
    let zeros = [0; 64];
    let mu_law = wav((7, 1, 8_000, 8), &[0; 8], 8, &[0, 0]);
    let cases: [(&str, &[u8], &str); 17] = [
        ("audio/mpeg", mp3, "MP3 (labelled audio/mpeg)"),
        ("audio/pcm", mp3, "MP3 (labelled audio/pcm)"),
        ("", frames, "MP3 (labelled no media type)"),
        ("audio/mpeg", &zeros, "audio/mpeg"),
        (
            "audio/ogg; codecs=opus",
            b"OggS\0\x02\0\0\0\0\0\0\0\0\0\0\0\0",
            "Ogg",
        ),
        ("audio/pcm", b"fLaC\0\0\0\x22\x10\0\x10\0", "FLAC"),
        ("audio/pcm", b"\0\0\0\x1cftypM4A \0\0\0\0", "MP4"),
        ("audio/webm", &[0x1a, 0x45, 0xdf, 0xa3, 0x9f], "WebM"),
        ("audio/wav", &zeros, "without the header"),
        ("audio/wav", &mu_law, "\u{b5}-law"),
        ("audio/pcm;rate=1", &zeros, "1 Hz"),
        ("audio/pcm;rate=24000;codec=opus", &zeros, "audio/pcm"),
        ("audio/pcm", b"\x1f\x8b\x08\0\0\0\0\0\0\x03", "gzip"),
        ("audio/basic", &zeros, "audio/basic"),
        (
            "audio/pcm",
            b"<html><title>502 Bad Gateway</title>",
            "TEXT audio/pcm",
        ),
        ("", b"{\"error\": 1}", "TEXT no media type"),
        ("audio/wav", b"RIFF", "TEXT audio/wav"),
    ];
    for (content_type, bytes, named) in cases {
        for piece in [1, 5, 100_000] {
            let said = match read(content_type, bytes, piece) {
                Err(SoundProblem::Unreadable(what)) => what,
                Err(SoundProblem::Text(label)) => format!("TEXT {label}"),
                Ok(samples) => panic!("{content_type}: {} samples of {named}", samples.len()),
            };
            assert!(said.contains(named), "{content_type}: {said}");
        }
    }
}

#[test]
fn raw_samples_are_read_whatever_they_begin_with() {
    let soft: Vec<i16> = (0..300).map(|n| (n % 7 - 3) as i16).collect();
    let below_zero = vec![-1_i16; 300];
    // The first bytes of an MP3 frame, and no second one after it.
    let like_mp3: Vec<i16> = std::iter::once(i16::from_le_bytes([0xff, 0xfb]))
        .chain((0..2_000).map(|n| (n % 90) as i16))
        .collect();
    let like_mp4: Vec<i16> = [0, 0, 0x1234, 5].into_iter().chain([7; 20]).collect();
    for samples in [soft, below_zero, like_mp3, like_mp4, vec![5], vec![]] {
        let mut bytes = little_endian(&samples);
        // Half a sample at the end is nothing.
        bytes.push(9);
        for piece in [1, 3, 100_000] {
            let bytes = if samples.is_empty() { &[][..] } else { &bytes };
            assert_eq!(read("audio/pcm", bytes, piece).unwrap(), samples);
        }
    }
    // The first sound is there before the rest has come.
    let mut reader = SoundReader::new("audio/pcm", RATE_HZ);
    assert_eq!(reader.push(&[1, 0, 2, 0]).unwrap(), [1, 2]);
    assert_eq!(
        reader.description(),
        Some("raw samples, 24000 Hz, 1 channel")
    );
}
