//! The parts of turn taking that need no call, for the bench in `tests/interop/turns`.
//!
//! `turns speech FILE…` finds the speech in files of 16-bit mono samples at 16 kHz: one line of
//! JSON for each, with the begin and end of every stretch in milliseconds.
//!
//! `turns wait` reads lines of JSON from its input: first the delays of `[voice.turn]`, then turns
//! of callers. For each turn it prints how long the turn machine, in made-up time, waits at the end
//! of each stretch before the caller hears an answer, in milliseconds. It knows only what was said
//! up to there.

use std::error::Error;
use std::time::Duration;

use serde::Deserialize;
use voicebot::voice::turn::{Input, Output, TurnMachine};
use voicebot::voice::vad::{Vad, VadEvent};
use voicebot::voice::{INPUT_SAMPLE_RATE_HZ, LinesConfig, TurnConfig, VadConfig};

/// When the detector reports the beginning of speech, after it, in milliseconds.
const ONSET_MS: u64 = 50;

/// A wait beyond this is none, in milliseconds.
const LONGEST_MS: u64 = 60_000;

/// One turn of a caller.
#[derive(Deserialize)]
struct Turn {
    id: String,
    /// What the agent has said before; empty for nothing.
    asked: String,
    stretches: Vec<Stretch>,
}

/// Speech without a pause that the detector would notice.
#[derive(Deserialize)]
struct Stretch {
    onset_ms: u64,
    end_ms: u64,
    /// What recognition makes of it.
    text: String,
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.split_first() {
        Some((command, files)) if command == "speech" => {
            for file in files {
                let stretches = speech(&std::fs::read(file)?);
                println!("{}", serde_json::to_string(&stretches)?);
            }
            Ok(())
        }
        Some((command, [])) if command == "wait" => {
            let mut lines = std::io::stdin().lines();
            let config = lines.next().ok_or("the first line has the delays")??;
            let config: TurnConfig = serde_json::from_str(&config)?;
            for line in lines {
                let turn: Turn = serde_json::from_str(&line?)?;
                let waits: Vec<Option<u64>> = (0..turn.stretches.len())
                    .map(|last| wait_ms(&config, &turn, last))
                    .collect();
                println!("{}", serde_json::json!({"id": turn.id, "waits_ms": waits}));
            }
            Ok(())
        }
        _ => Err("say `speech FILE…`, or `wait` with delays and turns on the input".into()),
    }
}

/// Where speech begins and ends, in milliseconds.
fn speech(bytes: &[u8]) -> Vec<(u64, u64)> {
    let samples: Vec<i16> = bytes
        .chunks_exact(2)
        .map(|pair| i16::from_le_bytes([pair[0], pair[1]]))
        .collect();
    let early_pause = TurnConfig::default().preemptive_transcription_ms;
    let mut vad = Vad::new(VadConfig::default(), early_pause);
    let mut events = Vec::new();
    vad.push(&samples, &mut events);
    let at_ms = |position: u64| position * 1_000 / u64::from(INPUT_SAMPLE_RATE_HZ);
    let mut stretches = Vec::new();
    let mut began = 0;
    for event in events {
        match event {
            VadEvent::Started { onset } => began = at_ms(onset),
            VadEvent::Ended { end } => stretches.push((began, at_ms(end))),
            VadEvent::Paused | VadEvent::Resumed => {}
        }
    }
    stretches
}

/// From the end of the stretch `last` to the answer, when the caller says nothing more. None when
/// there is no answer.
fn wait_ms(config: &TurnConfig, turn: &Turn, last: usize) -> Option<u64> {
    let early_pause = config.preemptive_transcription_ms;
    let min_silence = VadConfig::default().min_silence_ms;
    let mut machine = TurnMachine::new(
        config.clone(),
        LinesConfig::default(),
        Duration::from_secs(10),
    );
    let at = Duration::from_millis;
    machine.handle(at(0), Input::Started { greeting: None });
    if !turn.asked.is_empty() {
        let say = Input::Say {
            text: turn.asked.clone(),
            interruptible: true,
        };
        machine.handle(at(0), say);
        if let Some(reply) = machine.active_reply() {
            machine.handle(at(0), Input::AudioReady { reply });
            let text = turn.asked.clone();
            machine.handle(at(0), Input::AgentSaid { text });
            machine.handle(at(0), Input::ReplyFinished { reply });
        }
    }
    // Clear of what has just been said.
    let shift = 5_000;
    for stretch in &turn.stretches[..=last] {
        let (onset, end) = (stretch.onset_ms + shift, stretch.end_ms + shift);
        let started = Input::SpeechStarted { onset: at(onset) };
        machine.handle(at((onset + ONSET_MS).min(end)), started);
        let segment = machine.open_segment()?;
        machine.handle(at(end + early_pause), Input::SpeechPaused);
        machine.handle(at(end + min_silence), Input::SpeechEnded { end: at(end) });
        let transcript = Input::Transcript {
            segment,
            text: stretch.text.clone(),
            confidence: None,
            is_final: true,
        };
        let mut outputs = machine.handle(at(end + min_silence), transcript);
        if stretch.end_ms != turn.stretches[last].end_ms {
            continue;
        }
        let mut now = at(end + min_silence);
        while now < at(end + LONGEST_MS) {
            if let Some(reply) = machine.active_reply() {
                outputs.extend(machine.handle(now, Input::AudioReady { reply }));
            }
            let is_heard = |output: &Output| matches!(output, Output::Play { .. });
            if outputs.iter().any(is_heard) {
                return u64::try_from((now - at(end)).as_millis()).ok();
            }
            now = machine.next_deadline()?;
            outputs = machine.handle(now, Input::Tick);
        }
    }
    None
}
