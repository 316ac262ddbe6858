//! The state of a call's recording, from the request to its file. Pure: no files, no network, no
//! clock.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::{CallRecord, time};

/// Number of state changes that a record keeps at most. There are five states and they only move
/// forward, so a longer list was not written by this program.
const MAX_HISTORY: usize = 16;

/// How far a recording has come, in this order. It moves forward only: what was found stays found.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "snake_case")]
pub enum RecordingState {
    /// Asked for, not confirmed.
    #[default]
    Requested,
    /// Running.
    Active,
    /// It should be there, and did not turn up in time. It may still do so.
    Missing,
    /// It could not be made. What is left of it may still turn up, in an egress's backup storage
    /// for example.
    Failed,
    /// The file is there.
    Resolved,
}

impl RecordingState {
    /// Whether a recording in this state may be put into `next`: the same, or one further on.
    pub fn can_become(self, next: Self) -> bool {
        next >= self
    }
}

/// Who makes the recording.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RecordingSource {
    /// LiveKit Egress, started by us.
    #[default]
    Egress,
    /// The call's own process.
    Local,
    /// LiveKit Egress, started by whoever made the campaign metadata.
    External,
}

/// What a change of the state was learnt from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RecordingEvidence {
    /// The call's own process.
    Call,
    /// The path that the record names.
    Record,
    /// The manifest that an egress leaves beside its file.
    Manifest,
    /// LiveKit's Egress API.
    EgressApi,
    /// The time allowed for it is over.
    Deadline,
}

/// One step of a recording.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordingChange {
    /// The new state.
    pub state: RecordingState,
    /// When it was noticed.
    #[serde(with = "time")]
    pub at: DateTime<Utc>,
    /// What it was learnt from.
    pub source: RecordingEvidence,
}

/// What is known about the recording of the call.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct RecordingMetadata {
    /// `EG_…`, when an egress makes it.
    pub egress_id: Option<String>,
    /// Path as asked for: relative to the data folder when local, the egress host's path otherwise.
    pub recording_filename: Option<String>,
    /// When it was asked for.
    #[serde(with = "time::option")]
    pub recording_start_time: Option<DateTime<Utc>>,
    /// When an egress was seen to record; it begins later than it is asked to. What was said before
    /// is not in the file.
    #[serde(with = "time::option", skip_serializing_if = "Option::is_none")]
    pub active_at: Option<DateTime<Utc>>,
    /// How far it has come.
    pub state: RecordingState,
    /// Who makes it.
    pub source: RecordingSource,
    /// Why it failed or is missing, or what is wrong with the file that there is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Its steps, oldest first; empty in records of earlier versions.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub history: Vec<RecordingChange>,
}

impl RecordingMetadata {
    /// A recording that begins in `state` at `at`.
    pub fn begun(source: RecordingSource, state: RecordingState, at: DateTime<Utc>) -> Self {
        Self {
            recording_start_time: Some(at),
            state,
            source,
            history: vec![RecordingChange {
                state,
                at,
                source: RecordingEvidence::Call,
            }],
            ..Self::default()
        }
    }

    /// When what is in the file begins, where that is known. We record from the moment on at which
    /// we begin to; an egress takes its time.
    pub fn began_at(&self) -> Option<DateTime<Utc>> {
        let at_once = self.recording_start_time.filter(|_| {
            self.source == RecordingSource::Local && self.state != RecordingState::Failed
        });
        self.active_at.or(at_once)
    }

    /// Moves the recording forward. `false`, and no change, when that would be backward or no move.
    pub fn advance(
        &mut self,
        next: RecordingState,
        at: DateTime<Utc>,
        source: RecordingEvidence,
    ) -> bool {
        if next <= self.state {
            return false;
        }
        self.state = next;
        if self.history.len() < MAX_HISTORY {
            self.history.push(RecordingChange {
                state: next,
                at,
                source,
            });
        }
        true
    }

    /// The same, for a change that has a reason to be told.
    #[must_use]
    pub fn advanced(
        mut self,
        next: RecordingState,
        at: DateTime<Utc>,
        error: Option<String>,
    ) -> Self {
        self.advance(next, at, RecordingEvidence::Call);
        self.error = error.or(self.error);
        self
    }

    /// Takes over what was learnt later, unless it would lead back. An egress that was named is not
    /// forgotten.
    pub(super) fn take_newer(known: &mut Option<Self>, newer: &Self) {
        let named = known.as_mut().and_then(|known| known.egress_id.take());
        let egress_id = newer.egress_id.clone().or(named);
        match known {
            Some(known) if !known.state.can_become(newer.state) => known.egress_id = egress_id,
            _ => {
                *known = Some(Self {
                    egress_id,
                    ..newer.clone()
                });
            }
        }
    }
}

impl CallRecord {
    /// Notes how far the recording has come. `error`: what is wrong, if something is; a recording
    /// that is found has forgotten what was wrong before. Backward moves change nothing.
    pub fn recording_came_to(
        &mut self,
        state: RecordingState,
        at: DateTime<Utc>,
        evidence: RecordingEvidence,
        error: Option<String>,
    ) {
        let egress_id = self.egress_id().map(str::to_owned);
        // A record of the original knows of its recording by the campaign metadata alone.
        let recording = self.recording.get_or_insert_with(|| RecordingMetadata {
            egress_id,
            source: RecordingSource::External,
            ..RecordingMetadata::default()
        });
        if recording.advance(state, at, evidence) {
            recording.error = error;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const STATES: [RecordingState; 5] = [
        RecordingState::Requested,
        RecordingState::Active,
        RecordingState::Missing,
        RecordingState::Failed,
        RecordingState::Resolved,
    ];
    const EVIDENCE: [RecordingEvidence; 5] = [
        RecordingEvidence::Call,
        RecordingEvidence::Record,
        RecordingEvidence::Manifest,
        RecordingEvidence::EgressApi,
        RecordingEvidence::Deadline,
    ];

    fn at(second: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(1_795_000_000 + second, 0).unwrap()
    }

    #[test]
    fn a_recording_that_was_found_late_keeps_its_history() {
        let mut recording =
            RecordingMetadata::begun(RecordingSource::Egress, RecordingState::Requested, at(0));
        assert!(recording.advance(RecordingState::Active, at(1), RecordingEvidence::Call));
        assert!(recording.advance(
            RecordingState::Missing,
            at(600),
            RecordingEvidence::Deadline
        ));
        assert!(!recording.advance(
            RecordingState::Active,
            at(601),
            RecordingEvidence::EgressApi
        ));
        assert!(recording.advance(
            RecordingState::Resolved,
            at(900),
            RecordingEvidence::Manifest
        ));
        let written = serde_json::to_value(&recording).unwrap();
        assert_eq!(written["state"], "resolved");
        assert_eq!(written["history"][2]["state"], "missing");
        assert_eq!(written["history"][3]["source"], "manifest");
        assert_eq!(
            serde_json::from_value::<RecordingMetadata>(written).unwrap(),
            recording
        );
    }

    #[test]
    fn a_record_without_history_is_read() {
        let old = serde_json::json!({
            "egress_id": "EG_1", "recording_filename": null, "recording_start_time": null, "state": "active", "source": "external",
        });
        let mut recording: RecordingMetadata = serde_json::from_value(old).unwrap();
        assert!(recording.advance(RecordingState::Resolved, at(0), RecordingEvidence::Record));
        assert_eq!(recording.history.len(), 1);
    }

    proptest! {
        /// Whatever is reported in whatever order: the state never goes back, and the history is
        /// the path it took.
        #[test]
        fn a_recording_only_moves_forward(
            steps in prop::collection::vec(
                (prop::sample::select(STATES.to_vec()), prop::sample::select(EVIDENCE.to_vec())), 0..30),
        ) {
            let mut recording = RecordingMetadata::begun(RecordingSource::Egress, RecordingState::Requested, at(0));
            let mut known = Some(recording.clone());
            for (second, (next, evidence)) in (1..).zip(steps) {
                let before = recording.state;
                let moved = recording.advance(next, at(second), evidence);
                prop_assert_eq!(moved, next > before);
                prop_assert!(before.can_become(recording.state));
                // An event that comes late, or twice, takes nothing back either.
                let reported = RecordingMetadata { state: next, ..recording.clone() };
                let state_before = known.as_ref().map(|known| known.state);
                RecordingMetadata::take_newer(&mut known, &reported);
                prop_assert!(known.as_ref().map(|known| known.state) >= state_before);
            }
            let states: Vec<_> = recording.history.iter().map(|change| change.state).collect();
            prop_assert!(states.windows(2).all(|pair| pair[0] < pair[1]));
            prop_assert_eq!(states.last().copied(), Some(recording.state));
            prop_assert!(recording.history.windows(2).all(|pair| pair[0].at < pair[1].at));
        }
    }
}
