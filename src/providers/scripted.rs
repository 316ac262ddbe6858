//! A vendor without a network: plays a prepared conversation, for the demo, for development without
//! keys, and for tests.
//!
//! It keeps no state, so it does not matter how often or how early it is asked: a stretch of speech
//! is told by its length, an answer by what the caller said last. The voice says what it has clips
//! for; the rest it hums, with syllables, so that a recording has something to hear.

use std::f32::consts::TAU;
use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::{StreamExt as _, stream};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::time::sleep;

use super::ProviderError;
use super::llm::{ChatChunk, ChatMessage, ChatModel, ChatRequest, ChatStream, ToolCall};
use super::stt::{SpeechSegment, Transcriber, Transcript};
use super::tts::{SpeechPiece, SpeechRequest, SpeechStream, TextToSpeech};

/// Rate of the voice: that of the clips.
const SAMPLE_RATE_HZ: u32 = oggopus::SAMPLE_RATE_HZ;
/// Characters that the made-up voice says in a second, like a quick speaker.
const CHARACTERS_PER_S: f32 = 16.0;
/// Samples of one piece of the made-up voice: 100 ms.
const PIECE: usize = SAMPLE_RATE_HZ as usize / 10;

/// A prepared conversation.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Script {
    /// What the caller may say. A stretch of speech is taken for the line whose length is nearest.
    pub caller: Vec<CallerLine>,
    /// What the agent answers; the first that fits.
    pub agent: Vec<AgentLine>,
    /// What it answers when nothing fits.
    pub otherwise: String,
    /// Sentences of the agent that are spoken. The others are hummed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub clips: Vec<Clip>,
    /// How long each provider takes.
    #[serde(default)]
    pub delays: Delays,
}

/// One sentence of the agent as sound.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Clip {
    /// The sentence, as it is given to speech synthesis.
    pub text: String,
    /// The sound: one channel of Opus in Ogg. Relative to the script's folder.
    pub file: PathBuf,
}

/// One thing that the caller may say.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct CallerLine {
    /// How long it is, in seconds.
    pub seconds: f64,
    /// The words.
    pub text: String,
}

/// One thing that the agent answers.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct AgentLine {
    /// Fits when the caller's last words contain this, in any case.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub when: Option<String>,
    /// Fits when this tool has just answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after_tool: Option<String>,
    /// The words; may be empty.
    #[serde(default)]
    pub say: String,
    /// A tool to ask for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool: Option<ScriptedTool>,
}

/// A tool that the agent asks for.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ScriptedTool {
    /// Its name.
    pub name: String,
    /// What it is given.
    #[serde(default)]
    pub arguments: Value,
}

/// How long each provider takes, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Delays {
    /// To recognise a stretch of speech.
    pub stt_ms: u64,
    /// To the model's first word.
    pub llm_ms: u64,
    /// From one word of the model to the next.
    pub word_ms: u64,
    /// To the first sound.
    pub tts_ms: u64,
}

impl Default for Delays {
    /// What good providers nearby take.
    fn default() -> Self {
        Self {
            stt_ms: 150,
            llm_ms: 200,
            word_ms: 12,
            tts_ms: 150,
        }
    }
}

impl Script {
    /// Reads a script from a file. The paths of its clips are whole afterwards.
    ///
    /// # Errors
    /// When the file cannot be read or is no script, or when one of its clips cannot be played.
    pub fn read(path: &Path) -> Result<Self, ProviderError> {
        let fault = |why: String| {
            ProviderError::config(format!(
                "the script {} (providers.script) cannot be used: {why}",
                path.display()
            ))
        };
        let text = std::fs::read_to_string(path).map_err(|error| fault(error.to_string()))?;
        let mut script: Self =
            serde_json::from_str(&text).map_err(|error| fault(error.to_string()))?;
        let folder = path.parent().unwrap_or(Path::new(""));
        for clip in &mut script.clips {
            clip.file = folder.join(&clip.file);
            clip.open().map_err(|error| fault(error.to_string()))?;
        }
        Ok(script)
    }

    fn caller_line(&self, seconds: f64) -> &str {
        let distance = |line: &&CallerLine| (line.seconds - seconds).abs();
        self.caller
            .iter()
            .min_by(|a, b| distance(a).total_cmp(&distance(b)))
            .map_or("", |line| &line.text)
    }

    fn agent_line(&self, messages: &[ChatMessage]) -> AgentLine {
        let otherwise = || AgentLine {
            when: None,
            after_tool: None,
            say: self.otherwise.clone(),
            tool: None,
        };
        let tool = match messages.last() {
            Some(ChatMessage::Tool { call_id, .. }) => tool_name(messages, call_id),
            _ => None,
        };
        let heard = messages.iter().rev().find_map(|message| match message {
            ChatMessage::User(text) => Some(text.to_lowercase()),
            _ => None,
        });
        let heard = heard.unwrap_or_default();
        let fits = |line: &&AgentLine| match (&line.after_tool, &tool) {
            (Some(wanted), Some(tool)) => wanted == tool,
            (None, None) => line
                .when
                .as_ref()
                .is_some_and(|when| heard.contains(&when.to_lowercase())),
            _ => false,
        };
        match self.agent.iter().find(fits) {
            Some(line) => line.clone(),
            // After a tool that nothing is to be said about, all has been said.
            None if tool.is_some() => AgentLine {
                say: String::new(),
                ..otherwise()
            },
            None => otherwise(),
        }
    }
}

impl Clip {
    fn open(&self) -> Result<oggopus::Reader<BufReader<File>>, ProviderError> {
        let reader = oggopus::Reader::open(&self.file).map_err(|error| self.fault(error))?;
        match reader.channels() {
            oggopus::Channels::Mono => Ok(reader),
            oggopus::Channels::Stereo => Err(self.fault("it has two channels")),
        }
    }

    /// The sound, as it is decoded.
    fn play(&self) -> Result<SpeechStream, ProviderError> {
        let state = (self.open()?, self.clone());
        Ok(stream::try_unfold(state, |(mut reader, clip)| async move {
            let samples = reader.read().map_err(|error| clip.fault(error))?;
            Ok(samples.map(|samples| (SpeechPiece::Sound(samples), (reader, clip))))
        })
        .boxed())
    }

    fn fault(&self, why: impl std::fmt::Display) -> ProviderError {
        let file = self.file.display();
        ProviderError::config(format!("the clip {file} cannot be played: {why}"))
    }
}

fn tool_name(messages: &[ChatMessage], id: &str) -> Option<String> {
    messages.iter().rev().find_map(|message| match message {
        ChatMessage::Assistant { tool_calls, .. } => tool_calls
            .iter()
            .find(|call| call.id == id)
            .map(|call| call.name.clone()),
        _ => None,
    })
}

/// All three providers of a prepared conversation.
pub struct Scripted {
    script: Arc<Script>,
}

impl Scripted {
    /// Plays `script`.
    pub fn new(script: Script) -> Self {
        Self {
            script: Arc::new(script),
        }
    }
}

#[async_trait]
impl Transcriber for Scripted {
    fn name(&self) -> &str {
        "scripted"
    }

    async fn transcribe(&self, segment: SpeechSegment) -> Result<Transcript, ProviderError> {
        sleep(Duration::from_millis(self.script.delays.stt_ms)).await;
        let text = self.script.caller_line(segment.duration().as_secs_f64());
        Ok(Transcript {
            text: text.to_owned(),
            confidence: Some(1.0),
        })
    }
}

#[async_trait]
impl ChatModel for Scripted {
    fn name(&self) -> &str {
        "scripted"
    }

    async fn chat(&self, request: ChatRequest) -> Result<ChatStream, ProviderError> {
        let line = self.script.agent_line(&request.messages);
        let delays = self.script.delays;
        let mut chunks: Vec<ChatChunk> = line
            .say
            .split_inclusive(' ')
            .map(|word| ChatChunk::Text(word.to_owned()))
            .collect();
        if let Some(tool) = line.tool {
            let arguments = if tool.arguments.is_null() {
                "{}".to_owned()
            } else {
                tool.arguments.to_string()
            };
            chunks.push(ChatChunk::ToolCall(ToolCall {
                id: format!("call_{}", request.messages.len()),
                name: tool.name,
                arguments,
            }));
        }
        let chunks = chunks.into_iter().enumerate();
        Ok(stream::iter(chunks)
            .then(move |(index, chunk)| async move {
                let pause = if index == 0 {
                    delays.llm_ms
                } else {
                    delays.word_ms
                };
                sleep(Duration::from_millis(pause)).await;
                Ok(chunk)
            })
            .boxed())
    }
}

#[async_trait]
impl TextToSpeech for Scripted {
    fn name(&self) -> &str {
        "scripted"
    }

    fn sample_rate_hz(&self) -> u32 {
        SAMPLE_RATE_HZ
    }

    async fn synthesize(&self, request: SpeechRequest) -> Result<SpeechStream, ProviderError> {
        let delay = Duration::from_millis(self.script.delays.tts_ms);
        if let Some(clip) = self.script.clips.iter().find(|c| c.text == request.text) {
            sleep(delay).await;
            return clip.play();
        }
        let pieces: Vec<Vec<i16>> = hum(&request.text)
            .chunks(PIECE)
            .map(<[i16]>::to_vec)
            .collect();
        Ok(stream::iter(pieces.into_iter().enumerate())
            .then(move |(index, piece)| async move {
                if index == 0 {
                    sleep(delay).await;
                }
                Ok(piece.into())
            })
            .boxed())
    }
}

/// A hum as long as `text` takes to say: each letter has its own colour, words are set apart by a
/// dip that is never silent.
fn hum(text: &str) -> Vec<i16> {
    const LEVEL: f32 = 9_000.0;
    const PITCH_HZ: f32 = 130.0;
    let letters: Vec<char> = text.chars().collect();
    let per_letter = SAMPLE_RATE_HZ as f32 / CHARACTERS_PER_S;
    let length = (letters.len() as f32 * per_letter) as usize;
    let mut phase = 0.0f32;
    let mut level = 0.0f32;
    (0..length)
        .map(|at| {
            let index = (at as f32 / per_letter) as usize;
            let letter = letters.get(index).copied().unwrap_or(' ');
            let said = index as f32 / letters.len().max(1) as f32;
            let target = if letter.is_alphanumeric() { 1.0 } else { 0.25 };
            level += (target - level) / (SAMPLE_RATE_HZ as f32 * 0.008);
            // The pitch sinks over a sentence, as a speaker's does.
            phase = (phase + PITCH_HZ * (1.1 - 0.2 * said) / SAMPLE_RATE_HZ as f32).fract();
            let colour = (u32::from(letter) % 7) as f32 / 7.0;
            let wave = (TAU * phase).sin()
                + 0.5 * (TAU * phase * 2.0).sin()
                + colour * (TAU * phase * 5.0).sin();
            (LEVEL * level * wave / 2.0) as i16
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn script() -> Script {
        let line = |when: Option<&str>, after: Option<&str>, say: &str| AgentLine {
            when: when.map(str::to_owned),
            after_tool: after.map(str::to_owned),
            say: say.to_owned(),
            tool: None,
        };
        Script {
            caller: vec![
                CallerLine {
                    seconds: 2.0,
                    text: "short".into(),
                },
                CallerLine {
                    seconds: 6.0,
                    text: "long".into(),
                },
            ],
            agent: vec![
                line(Some("Short"), None, "yes"),
                line(None, Some("create_lead"), "done"),
            ],
            otherwise: "what".into(),
            clips: Vec::new(),
            delays: Delays::default(),
        }
    }

    #[test]
    fn speech_is_told_by_its_length_and_answers_by_the_last_words() {
        let script = script();
        assert_eq!(script.caller_line(2.7), "short");
        assert_eq!(script.caller_line(5.0), "long");
        let user = |text: &str| ChatMessage::User(text.into());
        assert_eq!(script.agent_line(&[user("it is SHORT")]).say, "yes");
        assert_eq!(script.agent_line(&[user("else")]).say, "what");
        let call = ToolCall {
            id: "1".into(),
            name: "create_lead".into(),
            arguments: "{}".into(),
        };
        let asked = ChatMessage::Assistant {
            text: String::new(),
            tool_calls: vec![call],
        };
        let answered = ChatMessage::Tool {
            call_id: "1".into(),
            output: "ok".into(),
        };
        assert_eq!(
            script.agent_line(&[user("short"), asked, answered]).say,
            "done"
        );
        let call = ToolCall {
            id: "1".into(),
            name: "detect_intent".into(),
            arguments: "{}".into(),
        };
        let asked = ChatMessage::Assistant {
            text: "said".into(),
            tool_calls: vec![call],
        };
        let answered = ChatMessage::Tool {
            call_id: "1".into(),
            output: "ok".into(),
        };
        assert_eq!(script.agent_line(&[user("short"), asked, answered]).say, "");
    }

    fn sine(samples: usize, channels: oggopus::Channels) -> Vec<u8> {
        let sound = (0..samples).map(|at| ((at as f32 / 20.0).sin() * 9_000.0) as i16);
        let sound: Vec<i16> = sound.collect();
        let options = oggopus::WriterOptions::speech(channels);
        let mut writer = oggopus::Writer::new(Vec::new(), options).unwrap();
        writer.write(&sound).unwrap();
        writer.finish().unwrap()
    }

    async fn spoken(scripted: &Scripted, text: &str) -> usize {
        let request = SpeechRequest {
            text: text.to_owned(),
            voice: None,
            language: None,
        };
        let mut pieces = scripted.synthesize(request).await.unwrap();
        let mut samples = 0;
        while let Some(piece) = pieces.next().await {
            if let SpeechPiece::Sound(sound) = piece.unwrap() {
                samples += sound.len();
            }
        }
        samples
    }

    #[tokio::test(start_paused = true)]
    async fn a_sentence_with_a_clip_is_spoken_and_others_are_hummed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("script.json");
        std::fs::write(
            folder.path().join("yes.ogg"),
            sine(9_600, oggopus::Channels::Mono),
        )
        .unwrap();
        let mut script = script();
        script.clips.push(Clip {
            text: "We open at nine.".into(),
            file: "yes.ogg".into(),
        });
        std::fs::write(&path, serde_json::to_vec(&script).unwrap()).unwrap();
        let scripted = Scripted::new(Script::read(&path).unwrap());
        assert_eq!(spoken(&scripted, "We open at nine.").await, 9_600);
        assert_eq!(
            spoken(&scripted, "We open at ten..").await,
            SAMPLE_RATE_HZ as usize
        );
    }

    #[test]
    fn a_clip_that_cannot_be_played_is_named_before_any_call() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("script.json");
        let mut script = script();
        script.clips.push(Clip {
            text: "yes".into(),
            file: "yes.ogg".into(),
        });
        std::fs::write(&path, serde_json::to_vec(&script).unwrap()).unwrap();
        let stereo = sine(9_600, oggopus::Channels::Stereo);
        for (clip, why) in [
            (None, "No such file"),
            (Some(b"RIFF".to_vec()), "not"),
            (Some(stereo), "two channels"),
        ] {
            if let Some(bytes) = clip {
                std::fs::write(folder.path().join("yes.ogg"), bytes).unwrap();
            }
            let error = Script::read(&path).unwrap_err().to_string();
            assert!(
                error.contains("script.json") && error.contains("yes.ogg") && error.contains(why),
                "{error}"
            );
        }
    }

    #[test]
    fn the_voice_is_as_long_as_the_words_and_never_silent_within_them() {
        let sound = hum("We open at nine.");
        assert_eq!(sound.len(), SAMPLE_RATE_HZ as usize);
        let quietest = sound[2_400..]
            .chunks(960)
            .map(|piece| {
                piece
                    .iter()
                    .map(|sample| sample.unsigned_abs())
                    .max()
                    .unwrap_or(0)
            })
            .min();
        assert!(quietest > Some(600), "{quietest:?}");
    }
}
