//! A participant that encrypts end to end and says back what it hears, for `tests/interop/python/test_encryption.py`: whoever hears an echo shares the key
//! and the format with us, in both directions.
//!
//! `LIVEKIT_URL` and `LIVEKIT_TOKEN` say where to go, `ECHO_KEY` is the shared passphrase. Writes a JSON line when it is there; ends with its room.

use std::error::Error;

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
    },
};

const RATE_HZ: u32 = 48_000;
const QUEUE_MS: u32 = 100;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let setting = |name: &str| std::env::var(name).map_err(|_| format!("{name} must be set"));
    let key_provider = KeyProvider::with_shared_key(
        KeyProviderOptions::default(),
        setting("ECHO_KEY")?.into_bytes(),
    );
    let mut options = RoomOptions::default();
    options.encryption = Some(E2eeOptions {
        encryption_type: EncryptionType::Gcm,
        key_provider,
    });
    let (url, token) = (setting("LIVEKIT_URL")?, setting("LIVEKIT_TOKEN")?);
    let (room, mut events) = Room::connect(&url, &token, options).await?;

    let source = NativeAudioSource::new(AudioSourceOptions::default(), RATE_HZ, 1, QUEUE_MS);
    let track = LocalAudioTrack::create_audio_track("echo", RtcAudioSource::Native(source.clone()));
    room.local_participant()
        .publish_track(LocalTrack::Audio(track), TrackPublishOptions::default())
        .await?;
    println!("{{\"ready\":true}}");

    while let Some(event) = events.recv().await {
        match event {
            RoomEvent::TrackSubscribed {
                track: RemoteTrack::Audio(track),
                ..
            } => {
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
