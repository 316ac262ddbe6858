//! A participant that says back what it hears, for `tests/interop/python`: whoever hears an echo
//! shares the format with us, and the key if we encrypt end to end, in both directions.
//!
//! `LIVEKIT_URL` and `LIVEKIT_TOKEN` say where to go, `ECHO_KEY` is the shared passphrase; without
//! it nothing is encrypted. Writes a JSON line when it is there, and one with the codecs of both
//! directions whenever they are others; ends with its room.

use std::{error::Error, time::Duration};

use futures_util::StreamExt as _;
use livekit::{
    E2eeOptions,
    e2ee::{
        EncryptionType,
        key_provider::{KeyProvider, KeyProviderOptions},
    },
    options::TrackPublishOptions,
    prelude::*,
    webrtc::{
        audio_source::{AudioSourceOptions, RtcAudioSource, native::NativeAudioSource},
        audio_stream::native::NativeAudioStream,
        stats::RtcStats,
    },
};

const RATE_HZ: u32 = 48_000;
const QUEUE_MS: u32 = 100;
/// How often the codecs are polled.
const POLL_INTERVAL: Duration = Duration::from_millis(200);

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let setting = |name: &str| std::env::var(name).map_err(|_| format!("{name} must be set"));
    let mut options = RoomOptions::default();
    options.encryption = setting("ECHO_KEY").ok().map(|key| E2eeOptions {
        encryption_type: EncryptionType::Gcm,
        key_provider: KeyProvider::with_shared_key(KeyProviderOptions::default(), key.into_bytes()),
    });
    let (url, token) = (setting("LIVEKIT_URL")?, setting("LIVEKIT_TOKEN")?);
    let (room, mut events) = Room::connect(&url, &token, options).await?;

    let source = NativeAudioSource::new(AudioSourceOptions::default(), RATE_HZ, 1, QUEUE_MS);
    let said = LocalAudioTrack::create_audio_track("echo", RtcAudioSource::Native(source.clone()));
    room.local_participant()
        .publish_track(
            LocalTrack::Audio(said.clone()),
            TrackPublishOptions::default(),
        )
        .await?;
    println!("{{\"ready\":true}}");

    while let Some(event) = events.recv().await {
        match event {
            RoomEvent::TrackSubscribed {
                track: RemoteTrack::Audio(track),
                ..
            } => {
                tokio::spawn(tell_codecs(track.clone(), said.clone()));
                let source = source.clone();
                tokio::spawn(async move {
                    let mut heard = NativeAudioStream::new(track.rtc_track(), RATE_HZ as i32, 1);
                    while let Some(frame) = heard.next().await {
                        if source.capture_frame(&frame).await.is_err() {
                            return;
                        }
                    }
                });
            }
            RoomEvent::DataReceived {
                payload,
                topic: Some(topic),
                participant: Some(_),
                ..
            } if topic == "say" => {
                let echo = DataPacket {
                    payload: payload.to_vec(),
                    topic: Some("echo".to_owned()),
                    reliable: true,
                    ..DataPacket::default()
                };
                room.local_participant().publish_data(echo).await?;
            }
            RoomEvent::Disconnected { .. } => return Ok(()),
            _ => {}
        }
    }
    Ok(())
}

/// Writes with which codecs sound comes and goes.
async fn tell_codecs(heard: RemoteAudioTrack, said: LocalAudioTrack) {
    let mut told = None;
    let mut poll = tokio::time::interval(POLL_INTERVAL);
    loop {
        poll.tick().await;
        let (Ok(heard), Ok(said)) = (heard.get_stats().await, said.get_stats().await) else {
            return;
        };
        let codecs = (codec(&heard), codec(&said));
        if let (Some(heard), Some(said)) = &codecs
            && told.as_ref() != Some(&codecs)
        {
            println!("{{\"heard\":\"{heard}\",\"said\":\"{said}\"}}");
            told = Some(codecs);
        }
    }
}

/// The codec of the stream that the statistics are of.
fn codec(report: &[RtcStats]) -> Option<String> {
    let id = report.iter().find_map(|entry| match entry {
        RtcStats::InboundRtp(stream) if stream.received.packets_received > 0 => {
            Some(&stream.stream.codec_id)
        }
        RtcStats::OutboundRtp(stream) if stream.sent.packets_sent > 0 => {
            Some(&stream.stream.codec_id)
        }
        _ => None,
    })?;
    report.iter().find_map(|entry| match entry {
        RtcStats::Codec(codec) if codec.rtc.id == *id => Some(codec.codec.mime_type.clone()),
        _ => None,
    })
}
