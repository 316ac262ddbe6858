//! A participant on our media engine that is told over stdin what to do, for
//! `tests/interop/sound/real_link.py`; `participant.py` there is the same on Google's engine,
//! through the official Python client.
//!
//! `LIVEKIT_URL` and `LIVEKIT_TOKEN` say where to go, `HEAR` who is listened to (identities with
//! commas between), `FOLDER` where what was heard is kept: `ME-THEM.wav` with the frames as they
//! were delivered, and `ME-THEM.times` with when each was (seconds since 1970, doubles,
//! little-endian). `RED` and `RELAY` set to 1 publish with redundancy and use relays only. Orders:
//! `say FILE` (a WAV file, mono, 48 kHz, 16 bit), `stats`, `leave`. Writes a JSON line for each
//! thing that happens.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use futures_util::StreamExt as _;
use livekit::prelude::*;
use livekit::webrtc::audio_stream::native::NativeAudioStream;
use livekit::webrtc::prelude::IceTransportsType;
use livekit::webrtc::stats::RtcStats;
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use voicebot::caller::{Microphone, MicrophoneOptions, stdin_lines, wav};

const RATE_HZ: u32 = 48_000;
/// How much the microphone holds ahead; the other engine's holds the same.
const QUEUE_MS: u32 = 40;
/// More sound than this is not kept.
const MOST_SECONDS: usize = 300;

fn now_s() -> f64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.unwrap_or_default().as_secs_f64()
}

fn tell(mut what: Value) {
    what["at"] = json!(now_s());
    println!("{what}");
}

fn setting(name: &str) -> String {
    std::env::var(name).unwrap_or_default()
}

/// Keeps what a track plays until it ends.
async fn listen(track: RemoteAudioTrack, file: PathBuf) -> std::io::Result<()> {
    let mut stream = NativeAudioStream::new(track.rtc_track(), RATE_HZ as i32, 1);
    let (mut samples, mut times) = (Vec::new(), Vec::new());
    while let Some(frame) = stream.next().await {
        samples.extend_from_slice(&frame.data);
        times.extend_from_slice(&now_s().to_le_bytes());
        if samples.len() >= MOST_SECONDS * RATE_HZ as usize {
            break;
        }
    }
    std::fs::write(file.with_extension("times"), times)?;
    std::fs::write(file.with_extension("wav"), wav(&samples))
}

fn wav(samples: &[i16]) -> Vec<u8> {
    let bytes = samples.len() as u32 * 2;
    let mut file = b"RIFF".to_vec();
    file.extend((36 + bytes).to_le_bytes());
    file.extend(b"WAVEfmt ");
    file.extend(16u32.to_le_bytes());
    file.extend([1, 0, 1, 0]);
    file.extend(RATE_HZ.to_le_bytes());
    file.extend((RATE_HZ * 2).to_le_bytes());
    file.extend([2, 0, 16, 0]);
    file.extend(b"data");
    file.extend(bytes.to_le_bytes());
    file.extend(samples.iter().flat_map(|sample| sample.to_le_bytes()));
    file
}

/// What both engines tell of a track that is received, and of the paths in use.
async fn stats(room: &Room, heard: &[(String, RemoteAudioTrack)]) -> Result<Value, Box<dyn Error>> {
    let mut tracks = serde_json::Map::new();
    for (identity, track) in heard {
        let entries = track.get_stats().await?;
        let codec = entries.iter().find_map(|entry| match entry {
            RtcStats::Codec(it) => Some(it.codec.mime_type.clone()),
            _ => None,
        });
        for entry in entries {
            let RtcStats::InboundRtp(it) = entry else {
                continue;
            };
            let (received, inbound) = (it.received, it.inbound);
            let told = json!({
                "codec": codec,
                "packets_received": received.packets_received,
                "packets_lost": received.packets_lost,
                "jitter": received.jitter,
                "fec_packets_received": inbound.fec_packets_received,
                "nack_count": inbound.nack_count,
                "retransmitted_packets_received": inbound.retransmitted_packets_received,
                "jitter_buffer_delay": inbound.jitter_buffer_delay,
                "jitter_buffer_target_delay": inbound.jitter_buffer_target_delay,
                "jitter_buffer_emitted_count": inbound.jitter_buffer_emitted_count,
                "total_samples_received": inbound.total_samples_received,
                "concealed_samples": inbound.concealed_samples,
                "silent_concealed_samples": inbound.silent_concealed_samples,
                "concealment_events": inbound.concealment_events,
                "inserted_samples_for_deceleration": inbound.inserted_samples_for_deceleration,
                "removed_samples_for_acceleration": inbound.removed_samples_for_acceleration,
            });
            tracks.insert(identity.clone(), told);
        }
    }
    let session = room.get_stats().await?;
    let paths = [session.publisher_stats, session.subscriber_stats].map(|entries| path(&entries));
    Ok(json!({"tracks": tracks, "paths": paths}))
}

/// The protocol and the kind of the address that is sent from.
fn path(entries: &[RtcStats]) -> Option<String> {
    let pair = entries.iter().find_map(|entry| match entry {
        RtcStats::Transport(it) => Some(&it.transport.selected_candidate_pair_id),
        _ => None,
    })?;
    let local = entries.iter().find_map(|entry| match entry {
        RtcStats::CandidatePair(it) if it.rtc.id == *pair => {
            Some(&it.candidate_pair.local_candidate_id)
        }
        _ => None,
    })?;
    entries.iter().find_map(|entry| match entry {
        RtcStats::LocalCandidate(it) if it.rtc.id == *local => {
            let candidate = &it.local_candidate;
            let kind = candidate.candidate_type?;
            Some(format!("{} {kind:?}", candidate.protocol))
        }
        _ => None,
    })
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    // What `RUST_LOG` asks for, beside the events.
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .with_writer(std::io::stderr)
        .init();
    let mut options = RoomOptions::default();
    options.auto_subscribe = false;
    if setting("RELAY") == "1" {
        options.rtc_config.ice_transport_type = IceTransportsType::Relay;
    }
    let began = now_s();
    let (url, token) = (setting("LIVEKIT_URL"), setting("LIVEKIT_TOKEN"));
    let (room, mut events) = match Room::connect(&url, &token, options).await {
        Ok(connected) => connected,
        Err(error) => {
            let ms = (now_s() - began) * 1000.0;
            tell(json!({"event": "failed", "ms": ms, "error": error.to_string()}));
            return Ok(());
        }
    };
    tell(json!({"event": "joined", "ms": (now_s() - began) * 1000.0}));
    let options = MicrophoneOptions {
        sample_rate_hz: RATE_HZ,
        queue_ms: QUEUE_MS,
        red: setting("RED") == "1",
        ..MicrophoneOptions::default()
    };
    let microphone = match Microphone::switch_on(&room, options).await {
        Ok(microphone) => {
            tell(json!({"event": "published", "ms": (now_s() - began) * 1000.0}));
            Some(Arc::new(microphone))
        }
        Err(error) => {
            tell(json!({"event": "not published", "error": error.to_string()}));
            None
        }
    };

    let hear = setting("HEAR");
    let me = room.local_participant().identity().to_string();
    let mut orders = stdin_lines();
    let mut heard: Vec<(String, RemoteAudioTrack)> = Vec::new();
    let mut listening: Vec<JoinHandle<std::io::Result<()>>> = Vec::new();
    loop {
        tokio::select! {
            order = orders.recv() => {
                let order = order.unwrap_or_else(|| "leave".to_owned());
                match order.split_once(' ').unwrap_or((&order, "")) {
                    ("say", file) => {
                        let line = wav::samples(&std::fs::read(file)?, RATE_HZ)?;
                        let microphone = microphone.clone();
                        // What happens in the room meanwhile is told as it happens.
                        tokio::spawn(async move {
                            let Some(microphone) = microphone else { return };
                            if microphone.begin(line).await.is_some() {
                                tell(json!({"event": "says"}));
                            }
                        });
                    }
                    ("stats", _) => {
                        let told = stats(&room, &heard).await?;
                        tell(json!({"event": "stats", "stats": told}));
                    }
                    _ => break,
                }
            }
            event = events.recv() => match event {
                Some(RoomEvent::TrackPublished { publication, participant }) => {
                    if hear.split(',').any(|wanted| wanted == participant.identity().as_str()) {
                        publication.set_subscribed(true);
                    }
                }
                Some(RoomEvent::Connected { participants_with_tracks }) => {
                    for (participant, publications) in participants_with_tracks {
                        for publication in publications {
                            if hear.split(',').any(|wanted| wanted == participant.identity().as_str()) {
                                publication.set_subscribed(true);
                            }
                        }
                    }
                }
                Some(RoomEvent::TrackSubscribed { track: RemoteTrack::Audio(track), participant, .. }) => {
                    let them = participant.identity().to_string();
                    tell(json!({"event": "hears", "whom": them}));
                    let file = Path::new(&setting("FOLDER")).join(format!("{me}-{them}.wav"));
                    listening.push(tokio::spawn(listen(track.clone(), file)));
                    heard.push((them, track));
                }
                Some(RoomEvent::ConnectionStateChanged(state)) => {
                    tell(json!({"event": "state", "state": format!("{state:?}")}));
                }
                Some(RoomEvent::Disconnected { reason }) => {
                    tell(json!({"event": "disconnected", "reason": reason.as_str_name()}));
                }
                Some(_) => {}
                None => break,
            }
        }
    }
    room.close().await?;
    // Their streams end with the room.
    for task in listening {
        task.await??;
    }
    tell(json!({"event": "left"}));
    Ok(())
}
