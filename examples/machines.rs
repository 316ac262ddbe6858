//! Who answers, by the sound of openings of calls, for the bench in `tests/interop/machines`.
//!
//! Reads lines from its input: a file of 16-bit mono samples at 16 kHz, a tab, and the words of it
//! as `milliseconds:text`, joined by `|`. Prints for each: the first verdict, its reason, when it
//! came, the last verdict, and when a message would begin after that, in milliseconds of the sound.
//! After the sound there is silence.

use std::error::Error;
use std::time::Duration;

use voicebot::voice::answer::{
    AnswerDetector, AnswerPlan, Finding, MachinePolicy, Sign, ToneListener,
};
use voicebot::voice::vad::{Vad, VadEvent};
use voicebot::voice::{INPUT_SAMPLE_RATE_HZ, VadConfig};

/// Samples in 10 ms.
const FRAME: usize = INPUT_SAMPLE_RATE_HZ as usize / 100;

/// The silence after the sound, in frames: longer than the longest wait.
const SILENCE_FRAMES: usize = 1_500;

fn main() -> Result<(), Box<dyn Error>> {
    for line in std::io::stdin().lines() {
        let line = line?;
        let (path, words) = line.split_once('\t').ok_or("a line has no tab")?;
        let mut known = Vec::new();
        for part in words.split('|').filter(|part| !part.is_empty()) {
            let (at, text) = part.split_once(':').ok_or("words have no time")?;
            known.push((at.parse::<u64>()?, text));
        }
        println!("{path}\t{}", heard(&std::fs::read(path)?, &known));
    }
    Ok(())
}

fn heard(bytes: &[u8], words: &[(u64, &str)]) -> String {
    let mut sound: Vec<i16> = bytes
        .chunks_exact(2)
        .map(|pair| i16::from_le_bytes([pair[0], pair[1]]))
        .collect();
    let length = sound.len() / FRAME;
    sound.resize(sound.len() + SILENCE_FRAMES * FRAME, 0);
    let plan = AnswerPlan {
        voicemail: MachinePolicy::LeaveMessage,
        ivr: MachinePolicy::HangUp,
        message: String::new(),
        after_beep: Duration::from_millis(400),
        silence_before_message: Duration::from_secs(3),
    };
    let mut detector = AnswerDetector::new(&plan);
    let mut vad = Vad::new(VadConfig::default(), 100);
    let mut listener = ToneListener::new();
    let (mut events, mut tones) = (Vec::new(), Vec::new());
    let mut words = words.iter().peekable();
    let (mut verdicts, mut message) = (Vec::new(), None);
    for (at, frame) in sound.chunks(FRAME).enumerate() {
        let now = Duration::from_millis((at as u64 + 1) * 10);
        let time = |position: u64| {
            Duration::from_secs_f64(position as f64 / f64::from(INPUT_SAMPLE_RATE_HZ))
        };
        vad.push(frame, &mut events);
        for event in events.drain(..) {
            match event {
                VadEvent::Started { onset } => {
                    let onset = time(onset);
                    detector.note(now, Sign::SpeechStarted { onset });
                }
                VadEvent::Ended { end } => {
                    detector.note(now, Sign::SpeechEnded { end: time(end) });
                }
                VadEvent::Paused | VadEvent::Resumed => {}
            }
        }
        listener.hear(frame, &mut tones);
        for tone in tones.drain(..) {
            detector.note(now, Sign::Tone(tone));
        }
        while let Some((_, text)) = words.next_if(|(at, _)| Duration::from_millis(*at) <= now) {
            let is_final = true;
            detector.note(now, Sign::Words { text, is_final });
        }
        while let Some(finding) = detector.poll(now) {
            match finding {
                Finding::Verdict(verdict) => {
                    verdicts.push((verdict, now));
                    if plan.about(verdict.answered_by) == MachinePolicy::LeaveMessage {
                        detector.wait_for_message(now);
                    }
                }
                Finding::MessageTime => message = Some(now),
                Finding::NoMessageTime => {}
            }
        }
        let takes_message = verdicts.last().is_some_and(|(verdict, _)| {
            plan.about(verdict.answered_by) == MachinePolicy::LeaveMessage
        });
        let is_all = at > length && words.peek().is_none() && !verdicts.is_empty();
        if is_all && (message.is_some() || !takes_message) {
            break;
        }
    }
    let (Some((first, at)), Some((last, _))) = (verdicts.first(), verdicts.last()) else {
        return "undecided\t\t\t\t".to_owned();
    };
    let message = message.map(|at| at.as_millis().to_string());
    format!(
        "{}\t{}\t{}\t{}\t{}",
        first.answered_by.name(),
        first.reason.name(),
        at.as_millis(),
        last.answered_by.name(),
        message.unwrap_or_default()
    )
}
