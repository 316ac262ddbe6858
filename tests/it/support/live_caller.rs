//! A caller in a room whose waits have deadlines: what does not happen in time fails the test.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use livekit::prelude::*;
use tokio::time::timeout;
use voicebot::caller::{Caller, CallerOptions, wav};

pub use voicebot::caller::Seen;

/// How long anything may take that should happen. Far more than it needs: the machine may be busy.
const DEADLINE: Duration = Duration::from_secs(30);
/// Rate of the recorded lines, Hz.
pub const SAMPLE_RATE_HZ: u32 = 16_000;

/// The samples of a recorded line in `tests/fixtures/audio`.
pub fn line(name: &str) -> Arc<[i16]> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures/audio")
        .join(name);
    let file = std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    wav::samples(&file, SAMPLE_RATE_HZ)
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// A caller in a room. Hangs up when it is dropped.
pub struct LiveCaller {
    caller: Caller,
    pub identity: String,
    /// The sid of the microphone's track.
    pub track: String,
}

impl LiveCaller {
    /// Joins and switches the microphone on.
    pub async fn join(url: &str, token: &str) -> Self {
        Self::join_with(url, token, CallerOptions::default()).await
    }

    /// Joins without a microphone.
    pub async fn watch(url: &str, token: &str) -> Self {
        let options = CallerOptions {
            microphone: None,
            ..CallerOptions::default()
        };
        Self::join_with(url, token, options).await
    }

    async fn join_with(url: &str, token: &str, options: CallerOptions) -> Self {
        let caller = timeout(DEADLINE, Caller::join(url, token, options))
            .await
            .expect("the caller joins in time")
            .expect("the caller joins");
        Self {
            identity: caller.room().local_participant().identity().to_string(),
            track: caller
                .microphone()
                .map_or(String::new(), |m| m.track.clone()),
            caller,
        }
    }

    pub fn seen(&self) -> Seen {
        self.caller.seen()
    }

    /// Waits until what was seen satisfies `wanted`.
    pub async fn until(&mut self, what: &str, mut wanted: impl FnMut(&Seen) -> bool) -> Seen {
        let waiting = |seen: &Seen| wanted(seen).then(|| seen.clone());
        let found = self.caller.until(DEADLINE, waiting).await;
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
        timeout(DEADLINE, self.caller.say(line(name)))
            .await
            .expect("the line is spoken in time")
            .expect("the microphone is on");
    }

    /// Says a recorded line and waits for the whole answer, which has to be heard.
    pub async fn ask(&mut self, name: &str) {
        let before = self.seen();
        self.say(name).await;
        self.agent_has_said(before.replies() + 1).await;
        // The state comes on another path than the sound, and may be faster.
        self.until("sound of the answer", |seen| {
            seen.loud_frames >= before.loud_frames + 10
        })
        .await;
    }

    /// Writes a chat message to the agent.
    pub async fn write(&self, text: &str) {
        let options = livekit::SendTextOptions::new_with_topic("lk.chat");
        self.caller
            .room()
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
            let me = self.caller.room().local_participant();
            me.publish_dtmf(packet).await.expect("the key is sent");
        }
    }

    /// Waits until the agent has ended the call.
    pub async fn hung_up_on(&mut self) -> Seen {
        self.until("end of the call", Seen::is_over).await
    }

    /// Hangs up.
    pub async fn hang_up(self) {
        timeout(DEADLINE, self.caller.leave())
            .await
            .expect("the caller leaves in time");
    }
}
