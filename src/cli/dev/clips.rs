//! The sound of the prepared conversation: what its agent and its caller say, in words.
//!
//! `clips/lines.json` lists the lines, `tests/interop/speech/make_clips.py` makes the clips from
//! it. The voice is free of rights (CC0, see the README there).

use std::io::Cursor;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Deserialize;

use crate::providers::scripted::{Clip, Script};

/// The conversation for whoever has no keys yet.
const SCRIPT: &str = include_str!("../../../config/demo-script.json");
/// Who says what in which clip.
const LINES: &str = include_str!("clips/lines.json");
/// Folder of the clips beside the script.
const FOLDER: &str = "clips";

/// The names of the files and what is in them.
macro_rules! clips {
    ($($file:literal),* $(,)?) => {
        &[$(($file, include_bytes!(concat!("clips/", $file)))),*]
    };
}

const CLIPS: &[(&str, &[u8])] = clips![
    "anything-else.ogg",
    "ask-me.ogg",
    "bye.ogg",
    "call-back.ogg",
    "caller-goodbye.ogg",
    "caller-hello.ogg",
    "caller-lead.ogg",
    "goodbye.ogg",
    "greeting.ogg",
    "help.ogg",
    "not-heard.ogg",
    "offer.ogg",
    "on-its-way.ogg",
    "prepared.ogg",
    "prices.ogg",
    "problem.ogg",
    "say-again.ogg",
    "still-there.ogg",
    "thank-you-goodbye.ogg",
    "thank-you.ogg",
    "thanks.ogg",
    "time-is-up.ogg",
];

/// Somebody in the conversation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Who {
    Agent,
    Caller,
}

/// A line and its clip.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    who: Who,
    file: String,
    /// As it stands in the transcript.
    text: String,
    /// As it is spoken, where that differs. For whoever makes the clips.
    #[serde(default, rename = "say")]
    _say: Option<String>,
}

fn lines() -> Vec<Line> {
    serde_json::from_str(LINES).expect("clips/lines.json is checked by a test")
}

/// Writes the prepared conversation and the agent's clips into `folder`. Gives back the script's
/// path.
///
/// # Errors
/// When the folder cannot be written.
pub fn write_script(folder: &Path) -> std::io::Result<PathBuf> {
    let mut script: Script =
        serde_json::from_str(SCRIPT).expect("config/demo-script.json is checked by a test");
    std::fs::create_dir_all(folder.join(FOLDER))?;
    for line in lines().into_iter().filter(|line| line.who == Who::Agent) {
        let file = Path::new(FOLDER).join(&line.file);
        std::fs::write(folder.join(&file), clip(&line.file))?;
        let text = line.text;
        script.clips.push(Clip { text, file });
    }
    let path = folder.join("script.json");
    std::fs::write(&path, serde_json::to_vec_pretty(&script)?)?;
    Ok(path)
}

/// The samples of a line of the caller: mono, at [`oggopus::SAMPLE_RATE_HZ`].
///
/// # Errors
/// When there is no clip for it.
pub fn caller_line(text: &str) -> Result<Arc<[i16]>, String> {
    let lines = lines();
    let line = lines
        .iter()
        .find(|line| line.who == Who::Caller && line.text == text)
        .ok_or_else(|| format!("there is no clip of the caller saying {text:?}"))?;
    let samples = oggopus::Reader::new(Cursor::new(clip(&line.file)))
        .and_then(|mut reader| reader.read_to_end())
        .map_err(|error| format!("the clip {} cannot be played: {error}", line.file))?;
    Ok(samples.into())
}

fn clip(file: &str) -> &'static [u8] {
    CLIPS
        .iter()
        .find(|(name, _)| *name == file)
        .map_or(&[], |(_, bytes)| bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::call::Persona;
    use crate::call::config::CallConfig;
    use crate::providers::scripted::CallerLine;
    use crate::voice::LinesConfig;
    use crate::voice::speech_text::Speech;

    /// As they are given to speech synthesis.
    fn sentences(text: &str) -> Vec<String> {
        let mut speech = Speech::default();
        let mut sentences = speech.push(text);
        sentences.extend(speech.finish());
        sentences
    }

    #[test]
    fn every_sentence_of_the_prepared_conversation_has_a_clip() {
        let folder = tempfile::tempdir().unwrap();
        let script = Script::read(&write_script(folder.path()).unwrap()).unwrap();
        let persona = include_str!("../../../config/personas/default.json");
        let persona = Persona::read(persona, "default").unwrap();
        let call = CallConfig::default();
        let fixed = LinesConfig::default();
        let said = script.agent.iter().map(|line| line.say.clone());
        let said = said
            .chain([script.otherwise.clone()])
            .chain(persona.greeting)
            .chain(persona.goodbye)
            .chain([fixed.still_there, fixed.silence_goodbye, fixed.say_again])
            .chain([fixed.apology, fixed.goodbye, call.max_duration_goodbye]);
        let missing: Vec<String> = said
            .flat_map(|text| sentences(&text))
            .filter(|sentence| script.clips.iter().all(|clip| clip.text != *sentence))
            .collect();
        assert!(missing.is_empty(), "{missing:?}");
        // Beside the caller's lines, nothing else is in the program.
        let callers = lines().into_iter().filter(|line| line.who == Who::Caller);
        assert_eq!(script.clips.len() + callers.count(), CLIPS.len());
    }

    #[test]
    fn every_line_of_the_caller_is_told_by_its_length() {
        let script: Script = serde_json::from_str(SCRIPT).unwrap();
        // What voice activity detection leaves before and after speech.
        let around = 0.5 + 0.25;
        for (nth, line) in script.caller.iter().enumerate() {
            let samples = caller_line(&line.text).unwrap();
            let seconds = samples.len() as f64 / f64::from(oggopus::SAMPLE_RATE_HZ) + around;
            let off = |line: &CallerLine| (line.seconds - seconds).abs();
            let others = script.caller.iter().enumerate();
            let next = others
                .filter(|(at, _)| *at != nth)
                .map(|(_, other)| off(other))
                .fold(f64::MAX, f64::min);
            // On a busy machine a segment is some tenths of a second longer or shorter.
            assert!(off(line) + 0.3 < next, "{}: {seconds:.2} s", line.text);
        }
        assert!(caller_line("nobody says this").is_err());
    }
}
