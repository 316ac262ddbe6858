//! A caller in a room: the official LiveKit client, with a microphone that plays recorded lines and
//! an ear.

use std::path::Path;
use std::time::Duration;

use futures_util::StreamExt as _;
use livekit::StreamReader as _;
use livekit::options::TrackPublishOptions;
use livekit::participant::ParticipantKind;
use livekit::prelude::*;
use livekit::webrtc::audio_frame::AudioFrame;
use livekit::webrtc::audio_source::native::NativeAudioSource;
use livekit::webrtc::audio_source::{AudioSourceOptions, RtcAudioSource};
use livekit::webrtc::audio_stream::native::NativeAudioStream;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;

/// How long anything may take that should happen. Far more than it needs: the machine may be busy.
const DEADLINE: Duration = Duration::from_secs(30);
/// Rate of the recorded lines and of what is received.
pub const SAMPLE_RATE_HZ: u32 = 16_000;
/// Samples of 10 ms.
const FRAME: usize = SAMPLE_RATE_HZ as usize / 100;
/// What counts as sound, of a full scale of 32,768: well above a codec's noise in silence.
const LOUD: i16 = 600;
/// How much the microphone holds ahead, ms.
const MICROPHONE_QUEUE_MS: u32 = 40;

/// The samples of a recorded line in `tests/fixtures/audio`.
pub fn line(name: &str) -> Vec<i16> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures/audio")
        .join(name);
    let file = std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let data = file
        .windows(4)
        .position(|window| window == b"data")
        .expect("a WAV file has data")
        + 8;
    file[data..]
        .chunks_exact(2)
        .map(|pair| i16::from_le_bytes([pair[0], pair[1]]))
        .collect()
}

/// One transcription stream, as far as it has come.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Words {
    /// Whose words they are, by the stream's sender.
    pub speaker: String,
    /// `lk.segment_id`.
    pub segment: String,
    /// `lk.transcribed_track_id`.
    pub track: String,
    /// `lk.transcription_final` of the stream's beginning.
    pub final_at_start: bool,
    /// What it said.
    pub text: String,
    /// Nothing more comes.
    pub ended: bool,
}

/// What the caller has seen and heard so far.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    /// The agent's identity, once it was in the room.
    pub agent: Option<String>,
    /// The sid of the agent's track.
    pub agent_track: Option<String>,
    /// Somebody in the room has our sound.
    pub is_heard: bool,
    /// The agent has left the room.
    pub agent_gone: bool,
    /// How often our own connection was lost.
    pub lost: usize,
    /// We are out of the room; why, in LiveKit's word.
    pub ended: Option<&'static str>,
    /// Every value that `lk.agent.state` had, in order.
    pub states: Vec<String>,
    /// Loud frames of 10 ms that were heard.
    pub loud_frames: usize,
    /// All `lk.transcription` streams.
    pub words: Vec<Words>,
}

impl Seen {
    /// How often the agent has finished speaking.
    pub fn replies(&self) -> usize {
        self.states
            .windows(2)
            .filter(|pair| pair[0] == "speaking" && pair[1] != "speaking")
            .count()
    }

    pub fn state(&self) -> &str {
        self.states.last().map_or("", String::as_str)
    }

    /// The call is over for the caller.
    pub fn is_over(&self) -> bool {
        self.agent_gone || self.ended.is_some()
    }
}

struct Line {
    samples: Vec<i16>,
    spoken: oneshot::Sender<()>,
}

/// A caller in a room. Hangs up when it is dropped.
pub struct LiveCaller {
    room: std::sync::Arc<Room>,
    pub identity: String,
    /// The sid of the microphone's track.
    pub track: String,
    microphone: mpsc::Sender<Line>,
    seen: watch::Receiver<Seen>,
    tasks: Vec<JoinHandle<()>>,
}

impl LiveCaller {
    /// Joins and switches the microphone on.
    pub async fn join(url: &str, token: &str) -> Self {
        let mut caller = Self::watch(url, token).await;
        let source = NativeAudioSource::new(
            AudioSourceOptions::default(),
            SAMPLE_RATE_HZ,
            1,
            MICROPHONE_QUEUE_MS,
        );
        let track = LocalAudioTrack::create_audio_track(
            "microphone",
            RtcAudioSource::Native(source.clone()),
        );
        let publish = TrackPublishOptions {
            source: TrackSource::Microphone,
            dtx: false,
            red: false,
            ..Default::default()
        };
        let publication = caller
            .room
            .local_participant()
            .publish_track(LocalTrack::Audio(track), publish)
            .await
            .expect("the microphone is published");
        caller.track = publication.sid().to_string();
        let (microphone, lines) = mpsc::channel(1);
        caller.microphone = microphone;
        caller.tasks.push(tokio::spawn(speak(source, lines)));
        caller
    }

    /// Joins without a microphone.
    pub async fn watch(url: &str, token: &str) -> Self {
        let mut options = RoomOptions::default();
        options.auto_subscribe = true;
        let (room, events) = timeout(DEADLINE, Room::connect(url, token, options))
            .await
            .expect("the caller joins in time")
            .expect("the caller joins");
        let room = std::sync::Arc::new(room);
        let (microphone, _) = mpsc::channel(1);
        let (see, seen) = watch::channel(Seen::default());
        Self {
            identity: room.local_participant().identity().to_string(),
            track: String::new(),
            room,
            microphone,
            seen,
            tasks: vec![tokio::spawn(watch_room(events, see))],
        }
    }

    pub fn seen(&self) -> Seen {
        self.seen.borrow().clone()
    }

    /// Waits until what was seen satisfies `wanted`.
    pub async fn until(&mut self, what: &str, wanted: impl FnMut(&Seen) -> bool) -> Seen {
        let found = match timeout(DEADLINE, self.seen.wait_for(wanted)).await {
            Ok(Ok(seen)) => Some(seen.clone()),
            _ => None,
        };
        found.unwrap_or_else(|| panic!("no {what} within {DEADLINE:?}; seen: {:#?}", self.seen()))
    }

    /// Waits until the agent has finished speaking for the nth time, and was heard.
    pub async fn agent_has_said(&mut self, nth: usize) {
        let what = format!("end of the agent's reply number {nth}");
        self.until(&what, |seen| seen.replies() >= nth && seen.loud_frames > 0)
            .await;
    }

    /// Says a recorded line; returns when its last sample is on its way.
    pub async fn say(&self, name: &str) {
        let (spoken, done) = oneshot::channel();
        let line = Line {
            samples: line(name),
            spoken,
        };
        self.microphone
            .send(line)
            .await
            .expect("the microphone is on");
        timeout(DEADLINE, done)
            .await
            .expect("the line is spoken in time")
            .expect("the microphone is on");
    }

    /// Says a recorded line and waits for the whole answer, which has to be heard.
    pub async fn ask(&mut self, name: &str) {
        let before = self.seen();
        self.say(name).await;
        self.agent_has_said(before.replies() + 1).await;
        // The state comes by another way than the sound, and may be faster.
        self.until("sound of the answer", |seen| {
            seen.loud_frames >= before.loud_frames + 10
        })
        .await;
    }

    /// Writes a chat message to the agent.
    pub async fn write(&self, text: &str) {
        let options = livekit::SendTextOptions::new_with_topic("lk.chat");
        self.room
            .local_participant()
            .send_text(text, options)
            .await
            .expect("the message is sent");
    }

    /// Presses keys of the telephone, as a SIP bridge passes them on.
    pub async fn press(&self, keys: &str) {
        const CODES: &str = "0123456789*#ABCD";
        for key in keys.chars() {
            let packet = SipDTMF {
                code: CODES.find(key).expect("a key of the telephone") as u32,
                digit: key.to_string(),
                ..Default::default()
            };
            let me = self.room.local_participant();
            me.publish_dtmf(packet).await.expect("the key is sent");
        }
    }

    /// Waits until the agent has ended the call.
    pub async fn hung_up_on(&mut self) -> Seen {
        self.until("end of the call", Seen::is_over).await
    }

    /// Hangs up.
    pub async fn hang_up(self) {
        // An error means that the room is gone already.
        let _ = timeout(DEADLINE, self.room.close())
            .await
            .expect("the caller leaves in time");
    }
}

impl Drop for LiveCaller {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

/// The microphone: never stops, sends silence between lines.
async fn speak(source: NativeAudioSource, mut lines: mpsc::Receiver<Line>) {
    let silence = [0i16; FRAME];
    loop {
        let (samples, spoken) = match lines.try_recv() {
            Ok(line) => (line.samples, Some(line.spoken)),
            Err(mpsc::error::TryRecvError::Empty) => (silence.to_vec(), None),
            Err(mpsc::error::TryRecvError::Disconnected) => return,
        };
        for piece in samples.chunks(FRAME) {
            let mut data = silence;
            data[..piece.len()].copy_from_slice(piece);
            let frame = AudioFrame {
                data: data.as_slice().into(),
                sample_rate: SAMPLE_RATE_HZ,
                num_channels: 1,
                samples_per_channel: FRAME as u32,
            };
            if source.capture_frame(&frame).await.is_err() {
                return;
            }
        }
        if let Some(spoken) = spoken {
            let _ = spoken.send(());
        }
    }
}

async fn watch_room(mut events: mpsc::UnboundedReceiver<RoomEvent>, see: watch::Sender<Seen>) {
    let mut listeners = Vec::new();
    while let Some(event) = events.recv().await {
        match event {
            RoomEvent::ParticipantConnected(participant) => agent_here(&participant, &see),
            RoomEvent::ParticipantAttributesChanged {
                participant: Participant::Remote(participant),
                ..
            } => agent_here(&participant, &see),
            RoomEvent::TrackSubscribed {
                track: RemoteTrack::Audio(track),
                participant,
                ..
            } if participant.kind() == ParticipantKind::Agent => {
                agent_here(&participant, &see);
                see.send_modify(|seen| seen.agent_track = Some(track.sid().to_string()));
                let stream = NativeAudioStream::new(track.rtc_track(), SAMPLE_RATE_HZ as i32, 1);
                listeners.push(tokio::spawn(listen(stream, see.clone())));
            }
            RoomEvent::Reconnecting => see.send_modify(|seen| {
                seen.lost += 1;
                seen.is_heard = false;
                seen.agent_track = None;
            }),
            RoomEvent::LocalTrackSubscribed { .. } => see.send_modify(|seen| seen.is_heard = true),
            RoomEvent::ParticipantDisconnected(participant)
                if participant.kind() == ParticipantKind::Agent =>
            {
                see.send_modify(|seen| seen.agent_gone = true);
            }
            RoomEvent::TextStreamOpened {
                reader,
                topic,
                participant_identity,
            } if topic == "lk.transcription" => {
                if let Some(reader) = reader.take() {
                    listeners.push(tokio::spawn(read_words(
                        reader,
                        participant_identity.to_string(),
                        see.clone(),
                    )));
                }
            }
            RoomEvent::Disconnected { reason } => {
                see.send_modify(|seen| seen.ended = Some(reason.as_str_name()));
                break;
            }
            _ => {}
        }
    }
    for listener in listeners {
        listener.abort();
    }
}

fn agent_here(participant: &RemoteParticipant, see: &watch::Sender<Seen>) {
    if participant.kind() != ParticipantKind::Agent {
        return;
    }
    let state = participant.attributes().get("lk.agent.state").cloned();
    see.send_modify(|seen| {
        seen.agent = Some(participant.identity().to_string());
        if let Some(state) = state
            && seen.states.last() != Some(&state)
        {
            seen.states.push(state);
        }
    });
}

async fn listen(mut stream: NativeAudioStream, see: watch::Sender<Seen>) {
    while let Some(frame) = stream.next().await {
        if frame
            .data
            .iter()
            .any(|sample| sample.saturating_abs() > LOUD)
        {
            see.send_modify(|seen| seen.loud_frames += 1);
        }
    }
}

async fn read_words(
    mut reader: livekit::TextStreamReader,
    speaker: String,
    see: watch::Sender<Seen>,
) {
    let attribute = |name: &str| {
        reader
            .info()
            .attributes()
            .get(name)
            .cloned()
            .unwrap_or_default()
    };
    let words = Words {
        speaker,
        segment: attribute("lk.segment_id"),
        track: attribute("lk.transcribed_track_id"),
        final_at_start: attribute("lk.transcription_final") == "true",
        ..Default::default()
    };
    let mut at = 0;
    see.send_modify(|seen| {
        at = seen.words.len();
        seen.words.push(words);
    });
    while let Some(Ok(text)) = reader.next().await {
        see.send_modify(|seen| seen.words[at].text.push_str(&text));
    }
    see.send_modify(|seen| seen.words[at].ended = true);
}
