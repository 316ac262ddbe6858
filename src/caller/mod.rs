//! The other side of a call, for the demo, measurements and tests: somebody in a room on the
//! official client, with a microphone that plays recorded lines and a clock on what is heard.
//!
//! It knows of the agent only what the room shows of it. No part of a production build.

mod microphone;
mod person;
pub mod wav;

pub use microphone::{BegunLine, Microphone, MicrophoneOptions, publish};
pub use person::{Caller, CallerOptions, Heard, LOUD, Seen, Transcript};

use livekit_api::access_token::{AccessToken, AccessTokenError, VideoGrants};
use tokio::sync::mpsc;

/// A token with which `identity` may join `room`, signed with a key of the server.
///
/// # Errors
/// When the token cannot be signed.
pub fn token(
    key: &str,
    secret: &str,
    identity: &str,
    room: &str,
) -> Result<String, AccessTokenError> {
    AccessToken::with_api_key(key, secret)
        .with_identity(identity)
        .with_grants(VideoGrants {
            room_join: true,
            room: room.to_owned(),
            ..VideoGrants::default()
        })
        .to_jwt()
}

/// The lines of stdin, until it ends. A thread reads them: a runtime that ends would wait for a
/// read of its own.
pub fn stdin_lines() -> mpsc::Receiver<String> {
    let (sender, lines) = mpsc::channel(1);
    std::thread::spawn(move || {
        for line in std::io::stdin().lines().map_while(Result::ok) {
            if sender.blocking_send(line).is_err() {
                return;
            }
        }
    });
    lines
}
