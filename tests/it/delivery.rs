//! Delivery to the CRM: what it receives, what happens when it misbehaves, and what is on disk
//! afterwards.

use std::collections::HashMap;
use std::fs;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::support::crm::{Answer, FakeCrm, SIGNATURE};
use crate::support::data::{CALLER, DataFolder, at, hangup, session_id};
use chrono::{DateTime, TimeDelta, Utc};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use voicebot::recording::RecordingConfig;
use voicebot::recording::resolve::{
    EgressAnswer, EgressDirectory, EgressFile, EgressProgress, EgressQuery, EgressReport,
    RecordingResolver,
};
use voicebot::session::{self, Lead, LeadId, RecordingMetadata, RecordingSource, RecordingState};
use voicebot::settings::Secret;
use voicebot::upload::{
    self, CrmConfig, CrmSecrets, PassOptions, PassStats, SuccessRule, UploadConfig, Uploader,
};

pub(crate) const ID: &str = "session_20261121_100000_aaaaaa";
/// More than one chunk of a recording.
const SOUND_BYTES: usize = 300_000;

/// A data folder, a CRM, an uploader between them, and a clock that only the test moves.
pub(crate) struct World {
    pub(crate) data: DataFolder,
    pub(crate) crm: FakeCrm,
    pub(crate) now: Arc<Mutex<DateTime<Utc>>>,
    pub(crate) egress: Arc<FakeEgress>,
    pub(crate) config: UploadConfig,
    pub(crate) recording: RecordingConfig,
    pub(crate) secrets: CrmSecrets,
    pub(crate) signature_header: &'static str,
}

/// A fake Egress API with fixed reports.
#[derive(Default)]
pub(crate) struct FakeEgress {
    pub(crate) by_id: Mutex<HashMap<String, EgressReport>>,
    pub(crate) questions: Mutex<Vec<EgressQuery>>,
}

impl EgressDirectory for FakeEgress {
    fn find(&self, query: EgressQuery) -> EgressAnswer<'_> {
        let known = self.by_id.lock().unwrap();
        let found = match &query {
            EgressQuery::Id(id) => known.get(id).cloned().into_iter().collect(),
            EgressQuery::Room(_) => known.values().cloned().collect(),
        };
        self.questions.lock().unwrap().push(query);
        Box::pin(std::future::ready(Ok(found)))
    }
}

impl World {
    pub(crate) async fn new() -> Self {
        Self {
            data: DataFolder::new(),
            crm: FakeCrm::start().await,
            now: Arc::new(Mutex::new(at(61))),
            egress: Arc::default(),
            config: UploadConfig::default(),
            recording: RecordingConfig::default(),
            secrets: CrmSecrets {
                token: Some(Secret::new("t0ken")),
                signing: None,
            },
            signature_header: "",
        }
    }

    pub(crate) fn uploader_to(&self, base_url: &str) -> Uploader {
        let crm = CrmConfig {
            base_url: base_url.to_owned(),
            signature_header: self.signature_header.to_owned(),
            timeout_ms: 2_000,
            ..CrmConfig::default()
        };
        let egress: Arc<dyn EgressDirectory> = self.egress.clone();
        let resolver = RecordingResolver::new(
            self.data.store.clone(),
            self.recording.clone(),
            Some(egress),
        );
        let now = self.now.clone();
        Uploader::new(
            self.data.store.clone(),
            self.config.clone(),
            crm,
            self.secrets.clone(),
            resolver,
        )
        .expect("the settings are good")
        .with_clock(Arc::new(move || *now.lock().unwrap()))
    }

    pub(crate) fn uploader(&self) -> Uploader {
        self.uploader_to(self.crm.base_url())
    }

    pub(crate) fn advance(&self, seconds: i64) {
        *self.now.lock().unwrap() += TimeDelta::seconds(seconds);
    }

    /// One pass of a new uploader, as after a restart.
    pub(crate) async fn pass(&self) -> PassStats {
        self.uploader()
            .pass(PassOptions::default())
            .await
            .expect("the folder can be listed")
    }

    /// A call that was recorded by its own process.
    pub(crate) fn recorded_call(&self, id: &str) {
        let (session, lock) = self.data.running_call(id, Some(CALLER));
        let (relative, path) = self.data.store.recording_path(&session_id(id), "ogg");
        fs::write(path, sound()).unwrap();
        session::lock(&session).set_recording_metadata(RecordingMetadata {
            recording_filename: Some(relative),
            source: RecordingSource::Local,
            state: RecordingState::Active,
            ..RecordingMetadata::default()
        });
        session::lock(&session).set_outcome(hangup());
        self.data.store.finish(&session, lock).unwrap();
    }

    /// A call that an egress has recorded.
    pub(crate) fn egress_call(&self, id: &str, egress_id: &str) {
        let (session, lock) = self.data.running_call(id, Some(CALLER));
        session::lock(&session).set_recording_metadata(RecordingMetadata {
            egress_id: Some(egress_id.to_owned()),
            state: RecordingState::Active,
            ..RecordingMetadata::default()
        });
        session::lock(&session).set_outcome(hangup());
        self.data.store.finish(&session, lock).unwrap();
    }

    pub(crate) fn manifest(&self, egress_id: &str, filename: &str, location: &str) {
        let manifest = json!({
            "egress_id": egress_id, "room_id": "RM_1", "room_name": "r",
            "started_at": 1_000_000_000_i64, "ended_at": 61_000_000_000_i64,
            "files": [{ "filename": filename, "location": location }],
        });
        self.data.write(
            &format!("recordings/{egress_id}.json"),
            manifest.to_string(),
        );
    }

    pub(crate) fn waiting(&self) -> Value {
        self.data.json(&format!("call_metadata/metadata_{ID}.json"))
    }

    pub(crate) fn archived(&self) -> Value {
        self.data
            .json(&format!("processed_metadata/metadata_{ID}.json"))
    }

    pub(crate) fn is_archived(&self, id: &str) -> bool {
        self.data
            .path(&format!("processed_metadata/metadata_{id}.json"))
            .exists()
            && !self
                .data
                .path(&format!("call_metadata/metadata_{id}.json"))
                .exists()
    }
}

pub(crate) fn sound() -> Vec<u8> {
    (0..SOUND_BYTES).map(|n| (n % 251) as u8).collect()
}

pub(crate) fn delivered(recordings: u64) -> PassStats {
    PassStats {
        files_processed: 1,
        recordings_uploaded: recordings,
        call_data_sent: 1,
        ..PassStats::default()
    }
}

#[tokio::test]
async fn the_crm_gets_the_recording_then_the_call_and_the_record_is_archived() {
    let world = World::new().await;
    let (session, lock) = world.data.running_call(ID, Some(CALLER));
    let (relative, path) = world.data.store.recording_path(&session_id(ID), "ogg");
    fs::write(path, sound()).unwrap();
    let lead = Lead {
        lead_id: LeadId::random(),
        session_id: session_id(ID),
        call_id: None,
        name: "Asha Example".to_owned(),
        email: "asha@example.com".to_owned(),
        company: "Example Pumps".to_owned(),
        interest: "a pump".to_owned(),
        phone: String::new(),
        job_title: String::new(),
        budget: String::new(),
        timeline: String::new(),
        created_at: at(20),
    };
    let lead_file = world.data.store.save_lead(&session, lead).unwrap();
    session::lock(&session).set_recording_metadata(RecordingMetadata {
        recording_filename: Some(relative.clone()),
        source: RecordingSource::Local,
        ..RecordingMetadata::default()
    });
    session::lock(&session).set_outcome(hangup());
    world.data.store.finish(&session, lock).unwrap();

    assert_eq!(world.pass().await, delivered(1));

    let uploads = world.crm.uploads();
    assert_eq!(uploads.len(), 1);
    assert_eq!(uploads[0].bytes, sound());
    assert_eq!(uploads[0].file_name, format!("{ID}.ogg"));
    assert_eq!(uploads[0].content_type, "audio/ogg");
    assert!(
        uploads[0]
            .content_length
            .is_some_and(|length| length > SOUND_BYTES as u64),
        "streamed with a known length"
    );
    assert_eq!(uploads[0].key, format!("{ID}/recording"));
    assert_eq!(uploads[0].authorization.as_deref(), Some("Bearer t0ken"));
    let calls = world.crm.call_data();
    assert_eq!(calls.len(), 1);
    assert_eq!(calls[0].key, format!("{ID}/call_data"));
    assert_eq!(
        calls[0].body,
        json!({
            "campaignId": "c1", "voiceAgentId": "v1", "client": "k1",
            "callDetails": {
                "callId": "CALL-20261121-50100123", "direction": "inbound",
                "startTime": "2026-11-21T10:00:00.000Z", "endTime": "2026-11-21T10:01:00.000Z", "duration": 60,
                "status": "completed", "callerNumber": CALLER, "trunkNumber": null,
                "answerTime": "2026-11-21T10:00:00.000Z", "ringDuration": null, "callStatus": "completed",
                "closeReason": "participant_disconnected", "disconnectReason": "CLIENT_INITIATED", "error": null,
                "sipCallId": null, "carrierCallId": null,
                "recordingUrl": format!("https://crm.example.com/uploads/1-{ID}.ogg"),
                "recordingDuration": null, "recordingSize": SOUND_BYTES, "recordingStartTime": null,
            },
            "caller": { "phoneNumber": CALLER },
            "transcription": {
                "session_id": ID, "start_time": "2026-11-21T10:00:00.000Z", "end_time": "2026-11-21T10:01:00.000Z",
                "duration_seconds": 60, "total_items": 2,
                "conversation_items": [
                    { "role": "assistant", "content": "Hello, how can I help?", "timestamp": "2026-11-21T10:00:01.000Z",
                      "source": "livekit-session", "transcript_confidence": null },
                    { "role": "user", "content": "I need a pump.", "timestamp": "2026-11-21T10:00:05.000Z",
                      "source": "livekit-session", "transcript_confidence": null },
                ],
                "lead_generated": true, "metadata": { "auto_saved": true },
            },
            "lead": world.data.json(&lead_file),
            "context": {},
            "usage": {
                "llm_requests": 0, "llm_prompt_tokens": 0, "llm_prompt_cached_tokens": 0, "llm_completion_tokens": 0,
                "stt_requests": 0, "stt_audio_ms": 0, "tts_requests": 0, "tts_characters": 0, "tts_audio_ms": 0,
            },
        })
    );
    let record = world.archived();
    assert_eq!(record["status"], "uploaded");
    assert_eq!(record["files"]["recording"], relative);
    assert_eq!(
        (
            &record["upload_attempts"],
            &record["uploads"]["recording"]["state"]
        ),
        (&json!(1), &json!("sent"))
    );
    assert_eq!(
        record["uploads"]["call_data"]["response"]["id"],
        "6900ac4c995436dc7dd9abb4"
    );
    assert!(world.is_archived(ID));
    world.data.assert_nothing_left_over();
    assert_eq!(
        world.pass().await,
        PassStats::default(),
        "nothing is left to do"
    );
}

#[tokio::test]
async fn a_record_of_the_original_is_delivered_with_its_recording() {
    let world = World::new().await;
    let original = "session_20251029_113920_abc123";
    for (fixture, folder) in [
        (format!("metadata_{original}.json"), "call_metadata"),
        (format!("conversation_{original}.json"), "conversations"),
        ("lead_20251029_114101.json".to_owned(), "leads"),
        ("EG_xyz789.json".to_owned(), "recordings"),
    ] {
        world.data.copy_fixture(
            &format!("original/{fixture}"),
            &format!("{folder}/{fixture}"),
        );
    }
    world
        .data
        .write("recordings/number-_918655066243-1761737959.ogg", sound());

    assert_eq!(world.pass().await, delivered(1));

    let body = &world.crm.call_data()[0].body;
    assert_eq!(body["campaignId"], "68fa0c1e995436dc7dd90001");
    assert_eq!(body["callDetails"]["callId"], "CALL-20251029-55066243");
    assert_eq!(body["callDetails"]["duration"], 300);
    assert_eq!(body["callDetails"]["direction"], "inbound");
    assert_eq!(
        body["callDetails"]["recordingDuration"], 299,
        "from the manifest, because the file tells nothing"
    );
    assert_eq!(body["caller"]["phoneNumber"], "+918655066243");
    assert_eq!(
        body["transcription"]["conversation_items"][0]["content"],
        "नमस्ते, how can I help?"
    );
    assert_eq!(
        body["transcription"]["conversation_items"][1]["transcript_confidence"],
        0.93
    );
    assert_eq!(body["lead"]["timeline"], "next month");
    assert!(world.is_archived(original));
    world.data.assert_nothing_left_over();
}

#[tokio::test]
async fn a_half_delivered_record_goes_on_where_it_was() {
    let world = World::new().await;
    let id = "session_20261121_101500_00beef";
    world.data.copy_fixture(
        &format!("v2/metadata_{id}.json"),
        &format!("call_metadata/metadata_{id}.json"),
    );
    *world.now.lock().unwrap() = "2026-11-21T10:17:00Z".parse().unwrap();
    assert_eq!(world.pass().await, delivered(0));
    assert!(
        world.crm.uploads().is_empty(),
        "the recording was sent before"
    );
    let details = &world.crm.call_data()[0].body["callDetails"];
    assert_eq!(
        details["recordingUrl"],
        "https://crm.example.com/files/1.ogg"
    );
    assert_eq!(
        (&details["recordingDuration"], &details["recordingSize"]),
        (&json!(60), &json!(123456))
    );
    assert!(world.is_archived(id));
    let record = world
        .data
        .json(&format!("processed_metadata/metadata_{id}.json"));
    assert_eq!(
        record["operator_note"],
        "kept by readers that do not know it"
    );
}

#[tokio::test]
async fn temporary_failures_are_retried_later_for_the_missing_parts_only() {
    let world = World::new().await;
    world.recorded_call(ID);
    world
        .crm
        .answer_uploads([Answer::Say(503, json!("busy")), Answer::AcceptAndBreakOff]);
    world.crm.answer_call_data([
        Answer::Say(500, json!({ "error": "database" })),
        Answer::Hang,
        Answer::Later(429, 900),
    ]);

    for (pause, uploads, call_data) in [(0, 1, 0), (5, 2, 0), (10, 3, 1), (10, 3, 2), (20, 3, 3)] {
        world.advance(pause);
        let stats = world.pass().await;
        assert_eq!(
            stats,
            PassStats {
                retrying: 1,
                recordings_uploaded: u64::from(call_data == 1),
                ..PassStats::default()
            }
        );
        assert_eq!(
            (world.crm.uploads().len(), world.crm.call_data().len()),
            (uploads, call_data)
        );
        let soon = world.pass().await;
        assert_eq!(
            soon,
            PassStats {
                not_due: 1,
                ..PassStats::default()
            },
            "not before its time"
        );
    }
    let record = world.waiting();
    assert_eq!(
        record["uploads"]["call_data"]["last_error"]
            .as_str()
            .unwrap()
            .matches("answered 429")
            .count(),
        1
    );
    world.advance(890);
    assert_eq!(
        world.pass().await.not_due,
        1,
        "the CRM asked for 900 seconds"
    );
    world.advance(30);
    assert_eq!(world.pass().await, delivered(0));
    let keys: std::collections::HashSet<String> = world
        .crm
        .call_data()
        .into_iter()
        .map(|call| call.key)
        .collect();
    assert_eq!(keys.len(), 1, "one key for all tries");
    world.data.assert_nothing_left_over();
}

#[tokio::test]
async fn the_record_tells_of_every_request_what_came_of_it_and_when() {
    let world = World::new().await;
    world.recorded_call(ID);
    world.crm.answer_uploads([Answer::Say(503, json!("busy"))]);
    world.crm.answer_call_data([Answer::Say(409, json!({}))]);
    assert_eq!(world.pass().await.retrying, 1);
    world.advance(10);
    assert_eq!(world.pass().await, delivered(1));

    let record = world.archived();
    let told = |part: &str| -> Vec<(String, String, bool)> {
        record["uploads"][part]["history"]
            .as_array()
            .expect("a history")
            .iter()
            .map(|attempt| {
                let text = |key: &str| attempt[key].as_str().expect("a text").to_owned();
                assert!(attempt["took_ms"].is_u64());
                (text("at"), text("outcome"), attempt["error"].is_string())
            })
            .collect()
    };
    let (first, second) = ("2026-11-21T10:01:01.000Z", "2026-11-21T10:01:11.000Z");
    assert_eq!(
        told("recording"),
        [
            (first.to_owned(), "try_again".to_owned(), true),
            (second.to_owned(), "accepted".to_owned(), false),
        ]
    );
    assert_eq!(
        told("call_data"),
        [(second.to_owned(), "duplicate".to_owned(), false)]
    );
    assert_eq!(record["timestamps"]["delivered"], second);
}

#[tokio::test]
async fn a_crm_that_is_not_there_costs_nothing_but_time() {
    let world = World::new().await;
    world.recorded_call(ID);
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let nowhere = format!("http://{}/api", listener.local_addr().unwrap());
    drop(listener);
    let stats = world
        .uploader_to(&nowhere)
        .pass(PassOptions::default())
        .await
        .unwrap();
    assert_eq!(stats.retrying, 1);
    let error = world.waiting()["uploads"]["recording"]["last_error"]
        .as_str()
        .unwrap()
        .to_owned();
    assert!(
        error.contains("POST 127.0.0.1:") && error.to_lowercase().contains("refused"),
        "{error}"
    );
    world.advance(10);
    assert_eq!(world.pass().await, delivered(1));
}

#[tokio::test]
async fn a_refused_call_stays_until_an_operator_says_try_again() {
    let world = World::new().await;
    world.recorded_call(ID);
    world.crm.answer_call_data([Answer::Say(
        422,
        json!({ "message": "campaignId is not known" }),
    )]);
    let stats = world.pass().await;
    assert_eq!((stats.failed, stats.recordings_uploaded), (1, 1));
    let record = world.waiting();
    assert_eq!(record["status"], "failed");
    assert_eq!(
        record["uploads"]["call_data"]["response"]["message"],
        "campaignId is not known"
    );
    world.advance(100_000);
    assert_eq!(
        world.pass().await,
        PassStats {
            not_due: 1,
            ..PassStats::default()
        }
    );
    let listed = upload::list(&world.data.store).unwrap();
    assert!(
        listed[0]
            .last_error
            .as_deref()
            .unwrap()
            .contains("answered 422"),
        "{listed:?}"
    );

    assert!(upload::retry(&world.data.store, &session_id(ID)).unwrap());
    assert_eq!(world.pass().await, delivered(0));
    assert_eq!(
        world.crm.uploads().len(),
        1,
        "what was confirmed is not sent again"
    );
    assert!(
        !upload::retry(&world.data.store, &session_id(ID)).unwrap(),
        "nothing left to send"
    );
    assert!(upload::retry(&world.data.store, &session_id("session_unknown")).is_err());
    world.data.assert_nothing_left_over();
}

#[tokio::test]
async fn a_refused_recording_does_not_keep_the_call_from_the_crm() {
    let world = World::new().await;
    world.recorded_call(ID);
    world.crm.answer_uploads([Answer::Text(413, "too large")]);
    let stats = world.pass().await;
    assert_eq!((stats.failed, stats.call_data_sent), (1, 1));
    assert_eq!(
        world.crm.call_data()[0].body["callDetails"]["recordingUrl"],
        Value::Null
    );
    let record = world.waiting();
    assert_eq!(
        (&record["status"], &record["uploads"]["recording"]["state"]),
        (&json!("failed"), &json!("failed"))
    );
}

#[tokio::test]
async fn one_of_the_two_parts_is_enough_where_the_operator_says_so() {
    let mut world = World::new().await;
    world.config.success = SuccessRule::Any;
    world.recorded_call(ID);
    world
        .crm
        .answer_uploads([Answer::Text(413, "too large"), Answer::Accept]);
    assert_eq!(world.pass().await, delivered(0));
    let record = world.archived();
    assert_eq!(
        (
            &record["status"],
            &record["uploads"]["recording"]["state"],
            &record["uploads"]["recording"]["response"],
        ),
        (&json!("uploaded"), &json!("failed"), &json!("too large"))
    );

    // A part that may still succeed is not given up, and two refusals are a refusal.
    let other = "session_20261121_100000_bbbbbb";
    world.recorded_call(other);
    world.crm.answer_call_data([
        Answer::Say(503, json!("busy")),
        Answer::Say(422, json!({ "message": "campaignId is not known" })),
    ]);
    assert_eq!(world.pass().await.retrying, 1);
    world.advance(10);
    assert_eq!(world.pass().await, delivered_without_call_data());
    let third = "session_20261121_100000_cccccc";
    world.data.finished_call(third, Some(CALLER));
    world
        .crm
        .answer_call_data([Answer::Say(422, json!("no such campaign"))]);
    assert_eq!(world.pass().await.failed, 1);
    assert!(!world.is_archived(third));
}

fn delivered_without_call_data() -> PassStats {
    PassStats {
        files_processed: 1,
        ..PassStats::default()
    }
}

#[tokio::test]
async fn an_html_page_of_a_proxy_is_no_receipt() {
    let world = World::new().await;
    world.data.finished_call(ID, Some(CALLER));
    world
        .crm
        .answer_call_data([Answer::Text(200, "<html>maintenance</html>")]);
    assert_eq!(world.pass().await.retrying, 1);
    let call_data = &world.waiting()["uploads"]["call_data"];
    assert_eq!(call_data["state"], "pending");
    assert_eq!(call_data["response"], "<html>maintenance</html>");
    world.advance(10);
    assert_eq!(world.pass().await, delivered(0));
}

#[tokio::test]
async fn what_the_crm_has_already_counts_as_sent() {
    let world = World::new().await;
    world.recorded_call(ID);
    world.crm.answer_uploads([Answer::Say(
        409,
        json!({ "data": { "url": "https://crm.example.com/known.ogg" } }),
    )]);
    world.crm.answer_call_data([Answer::Say(
        400,
        json!({ "message": "Call already exists" }),
    )]);
    assert_eq!(world.pass().await, delivered(1));
    assert_eq!(
        world.archived()["uploads"]["recording"]["url"],
        "https://crm.example.com/known.ogg"
    );
}

#[tokio::test]
async fn an_accepted_upload_without_a_url_is_an_error_that_says_what_came() {
    let world = World::new().await;
    world.recorded_call(ID);
    world.crm.answer_uploads([
        Answer::Say(200, json!({ "stored_at": "there" })),
        Answer::Text(200, "<html>maintenance"),
    ]);
    let stats = world.pass().await;
    assert_eq!((stats.failed, stats.call_data_sent), (1, 1));
    let error = world.waiting()["uploads"]["recording"]["last_error"]
        .as_str()
        .unwrap()
        .to_owned();
    assert!(
        error.contains("crm.url_pointers") && error.contains("stored_at"),
        "{error}"
    );

    world.recorded_call("session_20261121_100000_bbbbbb");
    assert_eq!(
        world.pass().await.retrying,
        1,
        "something in between has answered; it may be gone next time"
    );
}

#[tokio::test]
async fn an_egress_is_waited_for_and_found_by_its_manifest() {
    let world = World::new().await;
    world.egress_call(ID, "EG_1");
    assert_eq!(
        world.pass().await,
        PassStats {
            waiting: 1,
            ..PassStats::default()
        }
    );
    assert_eq!(
        world.egress.questions.lock().unwrap().as_slice(),
        [
            EgressQuery::Id("EG_1".to_owned()),
            EgressQuery::Room(format!("room-{ID}"))
        ]
    );

    // The manifest exists, but the file is still empty: it counts as incomplete.
    world.manifest("EG_1", "recordings/a.ogg", "/elsewhere/recordings/a.ogg");
    world.data.write("recordings/a.ogg", "");
    world.advance(5);
    assert_eq!(world.pass().await.waiting, 1);
    assert!(
        world.waiting()["uploads"]["recording"]["last_error"]
            .as_str()
            .unwrap()
            .contains("recordings/a.ogg is empty")
    );

    world.data.write("recordings/a.ogg", sound());
    world.advance(30);
    assert_eq!(world.pass().await, delivered(1));
    assert_eq!(
        world.crm.call_data()[0].body["callDetails"]["recordingDuration"],
        60
    );
    world.data.assert_nothing_left_over();
}

#[tokio::test]
async fn a_recording_that_never_turns_up_is_waited_for_ten_minutes_and_no_longer() {
    let world = World::new().await;
    world.egress_call(ID, "EG_1");
    let started = *world.now.lock().unwrap();
    let mut passes = 0;
    while world.pass().await.call_data_sent == 0 {
        assert!(passes < 100, "it ends");
        passes += 1;
        world.advance(10);
    }
    let waited = *world.now.lock().unwrap() - started;
    assert!((590..=610).contains(&waited.num_seconds()), "{waited}");
    assert_eq!(
        world.crm.call_data()[0].body["callDetails"]["recordingUrl"],
        Value::Null
    );
    let recording = &world.waiting()["uploads"]["recording"];
    assert_eq!(recording["state"], "missing");
    assert!(recording["last_error"].as_str().unwrap().contains("EG_1"));

    // It is searched for at intervals for a day, and then no more.
    let mut passes = 0;
    while !world.is_archived(ID) {
        assert!(passes < 100, "it ends");
        passes += 1;
        world.advance(1800);
        world.pass().await;
    }
    let waited = *world.now.lock().unwrap() - started;
    assert!((23..=25).contains(&waited.num_hours()), "{waited}");
    assert_eq!(world.archived()["uploads"]["recording"]["state"], "missing");
    assert_eq!(world.crm.call_data().len(), 1);
    world.data.assert_nothing_left_over();
}

#[tokio::test]
async fn a_recording_that_turns_up_late_is_sent_and_the_call_data_once_more_with_its_url() {
    let world = World::new().await;
    world.egress_call(ID, "EG_1");
    assert_eq!(world.pass().await.waiting, 1);
    world.advance(700);
    let stats = world.pass().await;
    assert_eq!((stats.waiting, stats.call_data_sent), (1, 1), "{stats:?}");

    world.manifest("EG_1", "recordings/a.ogg", "");
    world.data.write("recordings/a.ogg", sound());
    world
        .crm
        .answer_uploads([Answer::Say(503, json!("busy")), Answer::AcceptAndBreakOff]);
    world
        .crm
        .answer_call_data([Answer::Say(500, json!("database")), Answer::AcceptAndHang]);
    let mut passes = 0;
    while !world.is_archived(ID) {
        assert!(passes < 20, "{:?}", world.waiting());
        passes += 1;
        world.advance(1800);
        world.pass().await;
    }
    let uploads = world.crm.uploads();
    assert_eq!(uploads.len(), 3);
    assert!(uploads.iter().all(|u| u.key == format!("{ID}/recording")));
    let calls = world.crm.call_data();
    assert_eq!(calls.len(), 4);
    assert_eq!(calls[0].key, format!("{ID}/call_data"));
    for update in &calls[1..] {
        assert_eq!(update.key, format!("{ID}/call_data_update"));
        let (first, second) = (&calls[0].body, &update.body);
        let details = &second["callDetails"];
        assert_eq!(details["callId"], first["callDetails"]["callId"]);
        assert_eq!(second["transcription"], first["transcription"]);
        assert!(
            details["recordingUrl"]
                .as_str()
                .unwrap()
                .starts_with("https://crm.example.com/uploads/")
        );
        assert_eq!(details["recordingSize"], SOUND_BYTES);
    }
    let record = world.archived();
    assert_eq!(record["status"], "uploaded");
    assert_eq!(record["uploads"]["call_data_update"]["state"], "sent");
    assert_eq!(record["uploads"]["call_data"]["attempts"], 1);
    world.data.assert_nothing_left_over();
}

#[tokio::test]
async fn a_refused_update_is_shown_to_an_operator_and_sent_again_at_his_word() {
    let world = World::new().await;
    world.egress_call(ID, "EG_1");
    assert_eq!(world.pass().await.waiting, 1);
    world.advance(700);
    assert_eq!(world.pass().await.call_data_sent, 1);
    world.manifest("EG_1", "recordings/a.ogg", "");
    world.data.write("recordings/a.ogg", sound());
    world
        .crm
        .answer_call_data([Answer::Say(422, json!("calls can not be changed"))]);
    world.advance(3600);
    assert_eq!(world.pass().await.failed, 1);
    let listed = upload::list(&world.data.store).unwrap();
    let error = listed[0].last_error.as_deref().unwrap();
    assert!(error.contains("can not be changed"), "{error}");

    assert!(upload::retry(&world.data.store, &session_id(ID)).unwrap());
    assert_eq!(world.pass().await, delivered(0));
    assert_eq!(world.crm.uploads().len(), 1);
    assert_eq!(world.crm.call_data().len(), 3);
}

#[tokio::test]
async fn a_file_is_found_by_every_form_of_name_that_an_egress_gives_it() {
    for (filename, location, prefix) in [
        ("recordings/a.ogg", "", ""),
        ("/recordings/a.ogg", "", ""),
        ("/out/recordings/a.ogg", "/out/recordings/a.ogg", ""),
        ("data/rec/a.ogg", "/data/rec/a.ogg", "/data/rec"),
        ("/data/rec/a.ogg", "/data/rec/a.ogg", "/data/rec/"),
        ("a.ogg", "/somewhere/flat/a.ogg", ""),
        ("", "C:\\egress\\recordings\\a.ogg", ""),
    ] {
        let mut world = World::new().await;
        world.recording.egress_prefix = prefix.to_owned();
        world.egress_call(ID, "EG_1");
        world.manifest("EG_1", filename, location);
        world.data.write("recordings/a.ogg", sound());
        assert_eq!(
            world.pass().await,
            delivered(1),
            "{filename} {location} {prefix}"
        );
        assert_eq!(world.archived()["files"]["recording"], "recordings/a.ogg");
    }
}

#[tokio::test]
async fn a_manifest_can_not_send_other_files_of_the_machine() {
    let secret = tempfile::NamedTempFile::new().unwrap();
    fs::write(secret.path(), "secret").unwrap();
    let secret_path = secret.path().to_str().unwrap();
    let up = format!("recordings/../../../../../../../..{secret_path}");
    for name in [secret_path, up.as_str(), "recordings/link.ogg"] {
        let world = World::new().await;
        std::os::unix::fs::symlink(secret.path(), world.data.path("recordings/link.ogg")).unwrap();
        world.egress_call(ID, "EG_1");
        world.manifest("EG_1", name, name);
        assert_eq!(world.pass().await.waiting, 1, "{name}");
        world.advance(700);
        assert_eq!(world.pass().await.call_data_sent, 1, "{name}");
        for _ in 0..100 {
            world.advance(1800);
            world.pass().await;
        }
        assert!(world.is_archived(ID), "{name}");
        assert!(world.crm.uploads().is_empty(), "{name}");
    }
    // The path in a record is checked in the same manner.
    let world = World::new().await;
    world.recorded_call(ID);
    let path = format!("call_metadata/metadata_{ID}.json");
    let mut record = world.data.json(&path);
    record["files"]["recording"] = secret_path.into();
    record["files"]["lead"] = format!("../..{secret_path}").into();
    world.data.write(&path, record.to_string());
    assert_eq!(world.pass().await.failed, 1);
    assert!(world.crm.uploads().is_empty() && world.crm.call_data().is_empty());
}

#[tokio::test]
async fn the_servers_egress_api_is_asked_when_there_is_no_manifest() {
    let world = World::new().await;
    world.data.write("recordings/a.ogg", sound());
    let report = |id: &str, progress| EgressReport {
        egress_id: id.to_owned(),
        progress,
        files: vec![EgressFile {
            location: "/out/recordings/a.ogg".to_owned(),
            duration: Some(59),
            ..EgressFile::default()
        }],
        ..EgressReport::default()
    };
    world
        .egress
        .by_id
        .lock()
        .unwrap()
        .insert("EG_1".to_owned(), report("EG_1", EgressProgress::Running));
    world.egress_call(ID, "1");
    assert_eq!(world.pass().await.waiting, 1);
    world
        .egress
        .by_id
        .lock()
        .unwrap()
        .insert("EG_1".to_owned(), report("EG_1", EgressProgress::Done));
    world.advance(30);
    assert_eq!(world.pass().await, delivered(1));
    assert_eq!(
        world.crm.call_data()[0].body["callDetails"]["recordingDuration"],
        59
    );

    let failed = "session_20261121_100000_bbbbbb";
    world.egress_call(failed, "EG_2");
    let reason = EgressProgress::Failed("Start signal not received".to_owned());
    world
        .egress
        .by_id
        .lock()
        .unwrap()
        .insert("EG_2".to_owned(), report("EG_2", reason));
    assert_eq!(
        world.pass().await,
        delivered(0),
        "what has failed is not waited for"
    );
    let record = world
        .data
        .json(&format!("processed_metadata/metadata_{failed}.json"));
    assert!(
        record["uploads"]["recording"]["last_error"]
            .as_str()
            .unwrap()
            .contains("Start signal not received")
    );
}

#[tokio::test]
async fn a_call_that_nobody_recorded_is_delivered_at_once() {
    let world = World::new().await;
    world.data.finished_call(ID, None);
    assert_eq!(world.pass().await, delivered(0));
    let body = &world.crm.call_data()[0].body;
    assert_eq!(body["callDetails"]["callerNumber"], Value::Null);
    assert_eq!(body["lead"], json!({}));
    assert!(world.egress.questions.lock().unwrap().is_empty());
}

#[tokio::test]
async fn one_bad_record_blocks_no_other() {
    let mut world = World::new().await;
    world.config.parallel = 1;
    world.data.write(
        "call_metadata/metadata_session_00000000_broken.json",
        "{\"session_id\":",
    );
    let hole = "session_20261121_090000_000000";
    world.data.finished_call(hole, Some(CALLER));
    world.data.write(
        &format!("conversations/conversation_{hole}.json"),
        "not JSON",
    );
    world.data.finished_call(ID, Some(CALLER));
    let stats = world.pass().await;
    assert_eq!(
        (stats.files_processed, stats.failed, stats.errors),
        (1, 1, 1),
        "{stats:?}"
    );
    assert!(world.is_archived(ID));
    let error = world
        .data
        .json(&format!("call_metadata/metadata_{hole}.json"))["uploads"]["call_data"]["last_error"]
        .clone();
    assert!(
        error
            .as_str()
            .unwrap()
            .contains(&format!("conversation_{hole}.json is not JSON")),
        "{error}"
    );
}

#[tokio::test]
async fn two_workers_on_one_folder_send_each_call_once() {
    let world = World::new().await;
    let ids: Vec<String> = (0..12)
        .map(|n| format!("session_20261121_100000_{n:06x}"))
        .collect();
    for id in &ids {
        world.recorded_call(id);
    }
    let (one, two) = (world.uploader(), world.uploader());
    let (first, second) = tokio::join!(
        one.pass(PassOptions::default()),
        two.pass(PassOptions::default())
    );
    assert_eq!(
        first.unwrap().files_processed + second.unwrap().files_processed,
        12
    );
    assert_eq!(world.crm.uploads().len(), 12);
    assert_eq!(world.crm.call_data().len(), 12);
    let call_ids: std::collections::HashSet<String> = world
        .crm
        .call_data()
        .iter()
        .map(|call| call.body["callDetails"]["callId"].to_string())
        .collect();
    assert_eq!(
        call_ids.len(),
        12,
        "the same number, but each call has an id of its own"
    );
    world.data.assert_nothing_left_over();
}

#[tokio::test]
async fn a_dry_run_sends_and_writes_nothing() {
    let world = World::new().await;
    world.recorded_call(ID);
    let before = world.waiting();
    let stats = world
        .uploader()
        .pass(PassOptions {
            dry_run: true,
            ..PassOptions::default()
        })
        .await
        .unwrap();
    assert_eq!(
        stats,
        PassStats {
            would_deliver: 1,
            ..PassStats::default()
        }
    );
    assert_eq!(world.waiting(), before);
    assert!(world.crm.uploads().is_empty() && world.crm.call_data().is_empty());
}

#[tokio::test]
async fn a_batch_takes_the_oldest_and_one_record_can_be_named() {
    let world = World::new().await;
    *world.now.lock().unwrap() = at(10_000);
    let ids = ["a", "b", "c"].map(|tail| format!("session_20261121_100000_{tail}"));
    for id in &ids {
        world.data.finished_call(id, Some(CALLER));
    }
    let stats = world
        .uploader()
        .pass(PassOptions {
            batch: Some(1),
            ..PassOptions::default()
        })
        .await
        .unwrap();
    assert_eq!((stats.files_processed, stats.not_due), (1, 2));
    assert!(world.is_archived(&ids[0]));
    let only = PassOptions {
        only: Some(session_id(&ids[2])),
        ..PassOptions::default()
    };
    assert_eq!(world.uploader().pass(only).await.unwrap(), delivered(0));
    assert!(world.is_archived(&ids[2]) && !world.is_archived(&ids[1]));
    let unknown = PassOptions {
        only: Some(session_id("session_unknown")),
        ..PassOptions::default()
    };
    assert!(world.uploader().pass(unknown).await.is_err());
}

#[tokio::test]
async fn the_running_task_delivers_at_a_notice_past_a_crm_that_hangs_and_stops_when_told() {
    let mut world = World::new().await;
    world.config.interval_s = 3600;
    world.config.parallel = 1;
    let slow = "session_20261121_090000_000000";
    world.data.finished_call(slow, Some(CALLER));
    world.crm.answer_call_data([Answer::Hang]);
    let (notify, notices) = mpsc::channel(1);
    let stop = CancellationToken::new();
    let task = tokio::spawn(world.uploader().run(notices, stop.clone()));
    world
        .crm
        .wait_until("the slow call is tried", |_, calls| calls.len() == 1)
        .await;

    world.recorded_call(ID);
    notify.send(()).await.unwrap();
    let key = format!("{ID}/call_data");
    world
        .crm
        .wait_until(
            "the new call arrives while the slow one hangs",
            |_, calls| calls.iter().any(|c| c.key == key),
        )
        .await;

    stop.cancel();
    tokio::time::timeout(Duration::from_secs(20), task)
        .await
        .expect("it stops")
        .expect("it does not panic");
    assert!(world.is_archived(ID));
    assert!(!world.is_archived(slow));
    world.data.assert_no_journals_or_temporaries();
}

#[tokio::test]
async fn a_clock_that_jumps_neither_stops_nor_repeats_a_delivery() {
    let world = World::new().await;
    world.recorded_call(ID);
    world
        .crm
        .answer_call_data([Answer::Say(503, json!("busy")), Answer::Later(429, 3600)]);
    assert_eq!(world.pass().await.retrying, 1);

    world.advance(-86_400);
    let stats = world.pass().await;
    assert_eq!(stats.retrying, 1, "not only a day later: {stats:?}");
    let soon = world.pass().await;
    assert_eq!(soon.not_due, 1, "the new wait is by the new clock");

    world.advance(10 * 86_400);
    assert_eq!(world.pass().await, delivered(0));
    assert_eq!(world.crm.uploads().len(), 1);
    assert_eq!(world.crm.call_data().len(), 3);
}

#[tokio::test]
async fn a_clock_that_is_set_back_does_not_prolong_the_search_for_a_recording() {
    let world = World::new().await;
    world.egress_call(ID, "EG_1");
    assert_eq!(world.pass().await.waiting, 1);
    world.advance(-86_400);
    assert_eq!(world.pass().await.waiting, 1, "it is looked for at once");
    world.manifest("EG_1", "recordings/a.ogg", "");
    world.data.write("recordings/a.ogg", sound());
    world.advance(30);
    assert_eq!(world.pass().await, delivered(1));
}

#[tokio::test]
async fn a_crm_that_is_down_is_asked_a_few_times_not_once_for_each_record() {
    let world = World::new().await;
    *world.now.lock().unwrap() = at(10_000);
    for number in 0..60 {
        world
            .data
            .finished_call(&format!("session_20261121_100000_{number:06x}"), None);
    }
    world
        .crm
        .answer_call_data((0..60).map(|_| Answer::Say(503, json!("down"))));
    let stats = world.pass().await;
    assert_eq!(stats.retrying + stats.held_back, 60, "{stats:?}");
    // Requests that were in progress when it opened come to their ends.
    let limit = 10 + 2 * world.config.parallel;
    assert!((10..=limit).contains(&world.crm.call_data().len()));
    let untouched = world.data.json(&format!(
        "call_metadata/metadata_session_20261121_100000_{:06x}.json",
        59
    ));
    assert_eq!(untouched["uploads"]["call_data"]["attempts"], 0);
}

#[tokio::test]
async fn the_running_task_comes_back_after_an_outage_and_delivers_everything() {
    let mut world = World::new().await;
    world.config.interval_s = 3600;
    world.config.first_backoff_ms = 20;
    *world.now.lock().unwrap() = at(10_000);
    for number in 0..40 {
        let id = format!("session_20261121_100000_{number:06x}");
        if number % 2 == 0 {
            world.recorded_call(&id);
        } else {
            world.data.finished_call(&id, None);
        }
    }
    // A record that cannot be claimed here does not block others.
    fs::create_dir_all(
        world
            .data
            .path("call_metadata/.claims/session_20261121_100000_000001.lock"),
    )
    .unwrap();
    world.config.breaker_max_pause_s = 1;
    let down = |times| (0..times).map(|_| Answer::Say(503, json!("down")));
    world.crm.answer_uploads(down(8));
    world.crm.answer_call_data(down(8));
    let now = world.now.clone();
    let started = tokio::time::Instant::now();
    let uploader = world.uploader().with_clock(Arc::new(move || {
        *now.lock().unwrap() + TimeDelta::from_std(started.elapsed()).unwrap()
    }));
    let (_notify, notices) = mpsc::channel(1);
    let stop = CancellationToken::new();
    let task = tokio::spawn(uploader.run(notices, stop.clone()));
    world
        .crm
        .wait_until("every call but one arrives", |_, calls| {
            calls.iter().filter(|call| call.accepted).count() == 39
        })
        .await;
    stop.cancel();
    task.await.expect("it does not panic");
    let uploads = world.crm.uploads();
    assert_eq!(uploads.iter().filter(|upload| upload.accepted).count(), 20);
    assert_eq!(
        world.data.files("call_metadata"),
        ["metadata_session_20261121_100000_000001.json"]
    );
}

/// The signature that `upload/signature.rs` specifies, computed with another library.
fn signature_over(signature: &str, path: &str, key: &str, content: &[u8]) -> String {
    let (time, _) = signature.split_once(',').expect("time and signature");
    let seconds = time.strip_prefix("t=").expect("the time");
    let digest = hex(&Sha256::digest(content));
    let text = format!("{seconds}\n{path}\n{key}\n{digest}");
    // RFC 2104, for a key shorter than a block.
    let pad = |byte: u8| {
        let mut block = [byte; 64];
        block.iter_mut().zip(b"s3cret").for_each(|(b, k)| *b ^= k);
        block
    };
    let inner = Sha256::new().chain_update(pad(0x36)).chain_update(&text);
    let outer = Sha256::new()
        .chain_update(pad(0x5c))
        .chain_update(inner.finalize());
    format!("t={seconds},v1={}", hex(&outer.finalize()))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[tokio::test]
async fn signed_requests_can_be_checked_by_the_crm() {
    let mut world = World::new().await;
    world.signature_header = SIGNATURE;
    world.secrets.signing = Some(Secret::new("s3cret"));
    world.recorded_call(ID);
    assert_eq!(world.pass().await, delivered(1));

    let upload = &world.crm.uploads()[0];
    let signature = upload.signature.as_deref().expect("it is signed");
    assert_eq!(
        signature,
        signature_over(signature, "/api/public/upload", &upload.key, &upload.bytes)
    );
    let call = &world.crm.call_data()[0];
    let signature = call.signature.as_deref().expect("it is signed");
    assert_eq!(
        signature,
        signature_over(signature, "/api/public/call-data", &call.key, &call.text)
    );
}

#[tokio::test]
async fn settings_that_can_not_work_are_named() {
    let world = World::new().await;
    let resolver =
        || RecordingResolver::new(world.data.store.clone(), RecordingConfig::default(), None);
    for (base_url, expected) in [
        ("", "crm.base_url is not set (environment CRM_BASE_URL)"),
        ("crm.example.com", "crm.base_url"),
        (
            "ftp://crm.example.com",
            "must begin with http:// or https://",
        ),
    ] {
        let crm = CrmConfig {
            base_url: base_url.to_owned(),
            ..CrmConfig::default()
        };
        let error = Uploader::new(
            world.data.store.clone(),
            UploadConfig::default(),
            crm,
            CrmSecrets::default(),
            resolver(),
        )
        .unwrap_err()
        .to_string();
        assert!(error.contains(expected), "{error}");
    }
    let zero = UploadConfig {
        batch: 0,
        ..UploadConfig::default()
    };
    assert_eq!(zero.check().unwrap_err(), "upload.batch must be above 0");
    for (signature_header, expected) in [
        ("X-Signature", "environment CRM_HMAC_SECRET"),
        ("no header", "crm.signature_header is \"no header\""),
    ] {
        let crm = CrmConfig {
            base_url: "https://crm.example.com".to_owned(),
            signature_header: signature_header.to_owned(),
            ..CrmConfig::default()
        };
        let error = Uploader::new(
            world.data.store.clone(),
            UploadConfig::default(),
            crm,
            CrmSecrets::default(),
            resolver(),
        )
        .unwrap_err()
        .to_string();
        assert!(error.contains(expected), "{error}");
    }
}
