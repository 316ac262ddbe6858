//! The records that wait in `call_metadata/`, and their order. A scan lists the folder, but reads a
//! record again only when its file has changed; a record that becomes due between two scans needs
//! no scan.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::io;
use std::sync::{Arc, OnceLock, mpsc};
use std::time::{Duration, SystemTime};

use chrono::{DateTime, TimeDelta, Utc};
use tracing::error;

use crate::recording::resolve::LONGEST_SCAN_PAUSE;
use crate::session::{CallRecord, PartState, RecordStatus, RecordingSource, SessionId};
use crate::store::{PendingRecord, Store, StoreError};

use super::policy::Backoff;
use super::{Endpoint, later};

/// Calls that ended less than this ago go before older ones: somebody may be waiting for them.
const FRESH: TimeDelta = TimeDelta::seconds(60);
/// A time this far in the future is explained by the clock of another machine on the same folder;
/// one further ahead means that the clock was set back.
const CLOCKS_DIFFER: TimeDelta = TimeDelta::seconds(60);
/// Two writes can get the same modification time, so a file that was written less than this before
/// it was read is read again at the next scan.
const TICK: Duration = Duration::from_secs(2);

/// When a record is to be tried next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Due {
    /// At `due`, which was set at `since` or later.
    At {
        due: DateTime<Utc>,
        since: Option<DateTime<Utc>>,
    },
    /// Only when an operator asks for it.
    Never,
    /// Its file cannot be read.
    Unreadable,
}

impl Due {
    /// The due time. A `since` in the future was written before the clock was set back; the record
    /// is then due now.
    pub(super) fn time(self, now: DateTime<Utc>) -> Option<DateTime<Utc>> {
        match self {
            Self::At {
                since: Some(since), ..
            } if since > now + CLOCKS_DIFFER => Some(now),
            Self::At { due, .. } => Some(due),
            Self::Never | Self::Unreadable => None,
        }
    }
}

/// When the next unsent part of a record is to be tried.
pub(super) fn due_of(record: &CallRecord) -> Due {
    let at_once = Due::At {
        due: DateTime::UNIX_EPOCH,
        since: None,
    };
    match record.status {
        // Delivered, but the process was killed before it moved the file.
        RecordStatus::Uploaded => return at_once,
        RecordStatus::Failed => return Due::Never,
        RecordStatus::ReadyForUpload | RecordStatus::Uploading => {}
    }
    let uploads = &record.uploads;
    let last_scan = uploads.recording.watch.and_then(|watch| watch.last_scan);
    let call_data_is_open = !uploads.call_data.state.is_settled();
    let (next_attempt, since) = if !uploads.recording.state.is_settled() {
        let next = uploads.recording.next_attempt;
        // Waiting for a recording is no attempt, and a planned pause is never longer than this.
        let since = match uploads.recording.state {
            PartState::Waiting => last_scan.or(next.map(|due| due - LONGEST_SCAN_PAUSE)),
            _ => record.last_upload_attempt,
        };
        // The record is due earlier if its call data may go before the next attempt at the
        // recording.
        let release = uploads
            .recording
            .release_at
            .filter(|_| call_data_is_open)
            .map(|at| uploads.call_data.next_attempt.map_or(at, |due| due.max(at)));
        (next.map(|due| release.map_or(due, |at| due.min(at))), since)
    } else if call_data_is_open {
        (uploads.call_data.next_attempt, record.last_upload_attempt)
    } else if let Some(update) = &uploads.call_data_update
        && !update.state.is_settled()
    {
        (update.next_attempt, record.last_upload_attempt)
    } else if let Some(due) = late_scan(record) {
        (Some(due), last_scan.or(record.last_upload_attempt))
    } else {
        // All parts are settled, but the process was killed before it wrote the final status.
        (None, None)
    };
    match next_attempt {
        Some(due) => Due::At { due, since },
        None => at_once,
    }
}

/// When to search again for a recording that was missing when the call data was sent; `None` when
/// the search is over.
pub(super) fn late_scan(record: &CallRecord) -> Option<DateTime<Utc>> {
    let uploads = &record.uploads;
    let missed =
        uploads.recording.state == PartState::Missing && uploads.call_data.state == PartState::Sent;
    uploads.recording.next_attempt.filter(|_| missed)
}

/// What a record needs next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Need {
    /// Its recording must be found, even while the CRM is down: LiveKit forgets an egress after a
    /// day.
    Search,
    /// It only has to be sent, first to this endpoint.
    Send(Endpoint),
}

impl Need {
    fn of(record: &CallRecord) -> Self {
        let recording = record.uploads.recording.state;
        if record.files.recording.is_some() && recording == PartState::Pending {
            Self::Send(Endpoint::Upload)
        } else if recording.is_settled() && late_scan(record).is_none() {
            Self::Send(Endpoint::CallData)
        } else {
            Self::Search
        }
    }
}

/// When the call data goes without a recording that was found and not yet uploaded; `None` if that
/// does not apply. `otherwise`: the time for a record that has none yet.
fn release_of(record: &CallRecord, otherwise: DateTime<Utc>) -> Option<DateTime<Utc>> {
    let holds = Need::of(record) == Need::Send(Endpoint::Upload)
        && !record.uploads.call_data.state.is_settled();
    holds.then(|| record.uploads.recording.release_at.unwrap_or(otherwise))
}

/// Hash of an egress's id, or of its room if the id was lost. A hash is small to store; a collision
/// only causes one unnecessary read of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct EgressMark(u64);

impl EgressMark {
    pub(super) fn of_id(id: &str) -> Self {
        Self::of("id", id.strip_prefix("EG_").unwrap_or(id))
    }

    pub(super) fn of_room(room: &str) -> Self {
        Self::of("room", room)
    }

    fn of(kind: &str, name: &str) -> Self {
        let mut hasher = DefaultHasher::new();
        (kind, name).hash(&mut hasher);
        Self(hasher.finish())
    }

    /// The egress whose recording a record waits for, before or after its call data was sent.
    fn awaited_by(record: &CallRecord) -> Option<Self> {
        if record.uploads.recording.state.is_settled() && late_scan(record).is_none() {
            return None;
        }
        if let Some(id) = record.egress_id() {
            return Some(Self::of_id(id));
        }
        let recording = record.recording.as_ref()?;
        let room = record.room.name.as_deref()?;
        (recording.source == RecordingSource::Egress).then(|| Self::of_room(room))
    }
}

/// A class of waiting records with its own place in the order and its own limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Lane {
    /// Whether their calls have just ended.
    fresh: bool,
    need: Need,
}

const UPLOAD: Need = Need::Send(Endpoint::Upload);
const CALL_DATA: Need = Need::Send(Endpoint::CallData);
const LANES: usize = 6;

impl Lane {
    const fn new(fresh: bool, need: Need) -> Self {
        Self { fresh, need }
    }

    /// The lanes by priority. Call data is small, so it does not wait behind recordings.
    const IN_ORDER: [Self; LANES] = [
        Self::new(true, CALL_DATA),
        Self::new(true, UPLOAD),
        Self::new(true, Need::Search),
        Self::new(false, Need::Search),
        Self::new(false, CALL_DATA),
        Self::new(false, UPLOAD),
    ];

    fn index(self) -> usize {
        match (self.fresh, self.need) {
            (true, CALL_DATA) => 0,
            (true, UPLOAD) => 1,
            (true, Need::Search) => 2,
            (false, Need::Search) => 3,
            (false, CALL_DATA) => 4,
            (false, UPLOAD) => 5,
        }
    }

    pub(super) fn is_fresh(self) -> bool {
        self.fresh
    }

    /// The endpoint, if the records of this lane only have to be sent.
    pub(super) fn sends(self) -> Option<Endpoint> {
        match self.need {
            Need::Send(endpoint) => Some(endpoint),
            Need::Search => None,
        }
    }
}

/// A record that waits for delivery.
#[derive(Debug, Clone)]
pub(super) struct Waiting {
    pub pending: PendingRecord,
    pub due: DateTime<Utc>,
    pub ended_at: Option<DateTime<Utc>>,
    pub need: Need,
    /// When its call data goes without the recording, if only the upload is still missing.
    pub release_at: Option<DateTime<Utc>>,
    /// The egress whose recording it waits for.
    pub egress: Option<EgressMark>,
}

/// The result of a scan of the folder.
#[derive(Debug, Default)]
pub(super) struct Scan {
    /// Oldest first.
    pub waiting: Vec<Waiting>,
    /// Number of records that are tried only when an operator asks for it.
    pub resting: u64,
    pub unreadable: u64,
}

/// A record as the last scan found it.
#[derive(Debug, Clone, Copy)]
struct Known {
    modified: SystemTime,
    /// Whether its file was written so recently that it must be read again.
    unsure: bool,
    due: Due,
    ended_at: Option<DateTime<Utc>>,
    need: Need,
    release_at: Option<DateTime<Utc>>,
    /// When a scan of this process first found it.
    first_seen: DateTime<Utc>,
    egress: Option<EgressMark>,
    /// The scan that last found it.
    scan: u64,
}

/// The known records of the folder. Updated in place: a second copy at each scan would take
/// megabytes for thousands of records.
#[derive(Debug)]
struct Folder {
    store: Store,
    /// How long call data waits for its recording.
    wait: Duration,
    known: HashMap<SessionId, Known>,
    scans: u64,
}

/// A scan request: current time, reply channel.
type Ask = (DateTime<Utc>, mpsc::Sender<Result<Scan, StoreError>>);

/// The queue of waiting records. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Queue {
    store: Store,
    /// How long call data waits for its recording.
    wait: Duration,
    scanner: Arc<OnceLock<mpsc::Sender<Ask>>>,
}

impl Queue {
    pub(super) fn new(store: Store, wait: Duration) -> Self {
        Self {
            store,
            wait,
            scanner: Arc::default(),
        }
    }

    /// Scans the folder. Blocks on the disk.
    ///
    /// One long-lived thread makes all scans. The allocator keeps a heap for each thread, and scans
    /// on short-lived threads would leave memory behind in each of them: 32 MB in 400 s with 10,000
    /// records.
    pub(super) fn scan(&self, now: DateTime<Utc>) -> Result<Scan, StoreError> {
        let (answer, answered) = mpsc::channel();
        let scanner = self.scanner.get_or_init(|| self.start_scanner());
        let _ = scanner.send((now, answer));
        answered.recv().unwrap_or_else(|_| {
            let gone = io::Error::other("the thread that scans it is gone");
            Err(StoreError::io("list", self.store.root())(gone))
        })
    }

    /// Starts the scan thread, which ends when the last sender is dropped.
    fn start_scanner(&self) -> mpsc::Sender<Ask> {
        let (ask, asked) = mpsc::channel::<Ask>();
        let mut folder = Folder {
            store: self.store.clone(),
            wait: self.wait,
            known: HashMap::new(),
            scans: 0,
        };
        let thread = std::thread::Builder::new().name("folder".to_owned());
        let started = thread.spawn(move || {
            for (now, answer) in asked {
                let _ = answer.send(folder.scan(now));
            }
        });
        if let Err(error) = started {
            error!(%error, "failed to start the thread that scans for records");
        }
        ask
    }

    /// The record of one session, whether it is due or not; empty when it is delivered. Blocks on
    /// the disk.
    pub(super) fn only(&self, id: &SessionId, now: DateTime<Utc>) -> Result<Scan, StoreError> {
        let waiting: Vec<Waiting> = self
            .store
            .pending()?
            .into_iter()
            .filter(|pending| pending.session_id == *id)
            .map(|pending| Waiting {
                pending,
                due: now,
                ended_at: None,
                need: CALL_DATA,
                release_at: None,
                egress: None,
            })
            .collect();
        if waiting.is_empty() {
            // A delivered record is no error; an unknown one is reported to the operator.
            self.store.read_record(id)?;
        }
        Ok(Scan {
            waiting,
            ..Scan::default()
        })
    }
}

impl Folder {
    /// Scans the folder. Blocks on the disk.
    fn scan(&mut self, now: DateTime<Utc>) -> Result<Scan, StoreError> {
        let pending = self.store.pending()?;
        self.scans += 1;
        let mut scan = Scan {
            waiting: Vec::with_capacity(pending.len()),
            ..Scan::default()
        };
        for mut record in pending {
            let last = self.known.get_key_value(&record.session_id);
            let last = last.map(|(id, known)| {
                // Share the id's text with the known record.
                record.session_id = id.clone();
                *known
            });
            let first_seen = last.map_or(now, |last| last.first_seen.min(now));
            let last = last.filter(|last| last.modified == record.modified && !last.unsure);
            let Some(current) = last.or_else(|| self.read(&record, first_seen)) else {
                continue;
            };
            let seen = Known {
                scan: self.scans,
                ..current
            };
            self.known.insert(record.session_id.clone(), seen);
            match current.due.time(now) {
                Some(due) => scan.waiting.push(Waiting {
                    pending: record,
                    due,
                    ended_at: current.ended_at,
                    need: current.need,
                    release_at: current.release_at,
                    egress: current.egress,
                }),
                None if current.due == Due::Unreadable => scan.unreadable += 1,
                None => scan.resting += 1,
            }
        }
        self.known.retain(|_, known| known.scan == self.scans);
        // After an outage, release the memory of a large backlog.
        if self.known.capacity() > 4 * self.known.len() {
            self.known.shrink_to(2 * self.known.len());
        }
        Ok(scan)
    }

    /// `None` when it has been archived since the folder was listed.
    fn read(&self, pending: &PendingRecord, first_seen: DateTime<Utc>) -> Option<Known> {
        // Taken before the file is read, so that a write in between is noticed.
        let age = pending.modified.elapsed();
        let (due, ended_at, need, release_at, egress) = match self.store.read_pending(pending) {
            Ok(Some(record)) => (
                due_of(&record),
                record.timestamps.call_end,
                Need::of(&record),
                release_of(&record, later(first_seen, self.wait)),
                EgressMark::awaited_by(&record),
            ),
            Ok(None) => return None,
            Err(error) => {
                // Logged once per version of the file: a repair changes its modification time.
                error!(session.id = %pending.session_id, %error, "record left out");
                metrics::counter!("voicebot_records_unreadable_total").increment(1);
                (Due::Unreadable, None, Need::Search, None, None)
            }
        };
        Some(Known {
            modified: pending.modified,
            unsure: due != Due::Unreadable && age.is_ok_and(|age| age < TICK),
            due,
            ended_at,
            need,
            release_at,
            first_seen,
            egress,
            scan: 0,
        })
    }
}

/// A record that could not be processed because of this machine, for example because its file
/// cannot be written.
#[derive(Debug, Clone, Copy)]
struct PutOff {
    times: u32,
    until: DateTime<Utc>,
}

/// The order of deliveries between two scans of the folder. Pure.
#[derive(Debug, Default)]
pub(super) struct Schedule {
    /// Records that are due, by lane, oldest first.
    ready: [BTreeMap<SessionId, Waiting>; LANES],
    /// Records that are not due yet, by time.
    later: BTreeMap<(DateTime<Utc>, SessionId), Waiting>,
    under_way: HashMap<SessionId, (Lane, Waiting)>,
    /// Records that fail on this machine. Without a pause they would stay the oldest and be tried
    /// again and again.
    put_off: HashMap<SessionId, PutOff>,
    /// Records whose egress has ended since the scan: they are due now, whatever the file says.
    hurried: HashSet<SessionId>,
}

impl Schedule {
    /// Replaces the waiting records by the result of a scan. Deliveries in progress stay.
    pub(super) fn replace(&mut self, waiting: Vec<Waiting>, now: DateTime<Utc>) {
        self.ready = Default::default();
        self.later.clear();
        let mut put_off = HashMap::new();
        for mut next in waiting {
            let id = &next.pending.session_id;
            if let Some((id, state)) = self.put_off.remove_entry(id) {
                next.due = next.due.max(state.until);
                put_off.insert(id, state);
            }
            if self.hurried.contains(&next.pending.session_id) {
                next.due = now;
            }
            if !self.under_way.contains_key(&next.pending.session_id) {
                self.add(next, now);
            }
        }
        self.put_off = put_off;
        let (ready, under_way) = (&self.ready, &self.under_way);
        self.hurried.retain(|id| {
            under_way.contains_key(id) || ready.iter().any(|lane| lane.contains_key(id))
        });
    }

    /// These egresses have ended: records that wait for their recordings are due at once, and those
    /// being processed now are due again afterwards.
    pub(super) fn hurry(&mut self, ended: &[EgressMark], now: DateTime<Utc>) {
        let waits = |next: &Waiting| next.egress.is_some_and(|egress| ended.contains(&egress));
        let under_way = self.under_way.iter().filter(|(_, (_, next))| waits(next));
        self.hurried.extend(under_way.map(|(id, _)| id.clone()));
        let keys: Vec<_> = self
            .later
            .iter()
            .filter(|(_, next)| waits(next))
            .map(|(key, _)| key.clone())
            .collect();
        for key in keys {
            if let Some(mut next) = self.later.remove(&key) {
                next.due = now;
                self.add(next, now);
                self.hurried.insert(key.1);
            }
        }
    }

    /// Whether a record that is delivered now was hurried. Clears the mark.
    pub(super) fn is_hurried(&mut self, id: &SessionId) -> bool {
        self.hurried.remove(id)
    }

    fn add(&mut self, next: Waiting, now: DateTime<Utc>) {
        let id = next.pending.session_id.clone();
        if next.due > now {
            self.later.insert((next.due, id), next);
        } else {
            let fresh = next.ended_at.is_some_and(|end| now - end < FRESH);
            self.ready[Lane::new(fresh, next.need).index()].insert(id, next);
        }
    }

    /// Takes the next record whose lane has room.
    pub(super) fn next(
        &mut self,
        now: DateTime<Utc>,
        has_room: impl Fn(&Self, Lane) -> bool,
    ) -> Option<PendingRecord> {
        while let Some(first) = self.later.first_entry()
            && first.key().0 <= now
        {
            let next = first.remove();
            self.add(next, now);
        }
        for lane in Lane::IN_ORDER {
            if !self.ready[lane.index()].is_empty()
                && has_room(self, lane)
                && let Some((id, next)) = self.ready[lane.index()].pop_first()
            {
                let pending = next.pending.clone();
                self.under_way.insert(id, (lane, next));
                return Some(pending);
            }
        }
        None
    }

    /// Takes the next record whose recording cannot be uploaded at present and whose call data has
    /// waited long enough. It counts in the lane of call data.
    pub(super) fn next_released(
        &mut self,
        now: DateTime<Utc>,
        has_room: impl Fn(&Self, Lane) -> bool,
    ) -> Option<PendingRecord> {
        for fresh in [true, false] {
            let lane = Lane::new(fresh, CALL_DATA);
            if !has_room(self, lane) {
                continue;
            }
            let held = &mut self.ready[Lane::new(fresh, UPLOAD).index()];
            let released = |next: &Waiting| next.release_at.is_some_and(|at| at <= now);
            let first = held.iter().find(|(_, next)| released(next));
            if let Some(id) = first.map(|(id, _)| id.clone())
                && let Some(mut next) = held.remove(&id)
            {
                let pending = next.pending.clone();
                // Only once: if the record has to wait for the CRM again, the next scan sets a new
                // time.
                next.release_at = None;
                self.under_way.insert(id, (lane, next));
                return Some(pending);
            }
        }
        None
    }

    /// Number of deliveries in progress in the lanes that `like` selects.
    pub(super) fn under_way(&self, like: impl Fn(Lane) -> bool) -> usize {
        let lanes = self.under_way.values();
        lanes.filter(|(lane, _)| like(*lane)).count()
    }

    /// A delivery has ended, and this schedule does not try it again.
    pub(super) fn done(&mut self, id: &SessionId) {
        self.under_way.remove(id);
        self.put_off.remove(id);
        self.hurried.remove(id);
    }

    /// A delivery has ended and is tried again at `due`.
    pub(super) fn again(&mut self, id: &SessionId, due: DateTime<Utc>, now: DateTime<Utc>) {
        self.put_off.remove(id);
        if let Some((_, mut next)) = self.under_way.remove(id) {
            next.due = if self.hurried.contains(id) { now } else { due };
            self.add(next, now);
        }
    }

    /// A delivery has ended whose record only has to be sent to `endpoint`, and waits for the CRM.
    pub(super) fn held(&mut self, id: &SessionId, endpoint: Endpoint, now: DateTime<Utc>) {
        if let Some((_, next)) = self.under_way.get_mut(id) {
            next.need = Need::Send(endpoint);
        }
        self.again(id, now, now);
    }

    /// A delivery failed on this machine, or the CRM rejected it regardless of its content: other
    /// records go first.
    pub(super) fn put_off(&mut self, id: &SessionId, backoff: Backoff, now: DateTime<Utc>) {
        let times = self.put_off.get(id).map_or(0, |state| state.times) + 1;
        let until = later(now, backoff.pause(times, 1.0, None));
        if let Some((_, mut next)) = self.under_way.remove(id) {
            next.due = until;
            self.add(next, now);
        }
        self.put_off.insert(id.clone(), PutOff { times, until });
    }

    /// When the next waiting record becomes due.
    pub(super) fn next_due(&self) -> Option<DateTime<Utc>> {
        self.later.keys().next().map(|(due, _)| *due)
    }

    /// Number of records that are due and wait for room.
    pub(super) fn ready(&self) -> usize {
        self.ready.iter().map(BTreeMap::len).sum()
    }

    /// Whether a due record only has to be sent to this endpoint.
    pub(super) fn has_to_send(&self, endpoint: Endpoint) -> bool {
        let mut lanes = Lane::IN_ORDER.into_iter();
        lanes.any(|lane| lane.sends() == Some(endpoint) && !self.ready[lane.index()].is_empty())
    }

    /// Number of records that are not due yet.
    pub(super) fn later(&self) -> usize {
        self.later.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now() -> DateTime<Utc> {
        "2026-11-21T10:00:00Z".parse().unwrap()
    }

    fn seconds(seconds: i64) -> DateTime<Utc> {
        now() + TimeDelta::seconds(seconds)
    }

    fn waiting(name: &str, due: i64, ended: i64, sends: bool) -> Waiting {
        Waiting {
            pending: PendingRecord::new(name.parse().unwrap(), SystemTime::UNIX_EPOCH),
            due: seconds(due),
            ended_at: Some(seconds(ended)),
            need: if sends { CALL_DATA } else { Need::Search },
            release_at: None,
            egress: Some(EgressMark::of_id(name)),
        }
    }

    fn take_all(schedule: &mut Schedule, now: DateTime<Utc>) -> Vec<String> {
        std::iter::from_fn(|| schedule.next(now, |_, _| true))
            .map(|next| next.session_id.to_string())
            .collect()
    }

    #[test]
    fn calls_that_just_ended_go_first_then_the_oldest() {
        let mut schedule = Schedule::default();
        schedule.replace(
            vec![
                waiting("a", 0, -9000, true),
                waiting("b", 0, -8000, false),
                waiting("c", 0, -10, true),
                waiting("d", 5, -10, true),
                waiting("e", 0, -20, false),
                waiting("f", 0, -7000, true),
            ],
            now(),
        );
        assert_eq!(take_all(&mut schedule, now()), ["c", "e", "b", "a", "f"]);
        assert_eq!(schedule.next_due(), Some(seconds(5)));
        assert_eq!(take_all(&mut schedule, seconds(5)), ["d"]);
    }

    #[test]
    fn a_full_lane_holds_up_no_other() {
        let mut schedule = Schedule::default();
        schedule.replace(
            vec![
                waiting("a", 0, -9000, true),
                waiting("b", 0, -9000, false),
                waiting("c", 0, -10, true),
            ],
            now(),
        );
        let search_only = |_: &Schedule, lane: Lane| lane.sends().is_none();
        let next = schedule.next(now(), search_only).unwrap();
        assert_eq!(next.session_id.as_str(), "b");
        assert!(schedule.next(now(), search_only).is_none());
        assert_eq!(schedule.ready(), 2);

        // Its recording was found while the CRM is down.
        schedule.held(&next.session_id, Endpoint::CallData, now());
        assert!(schedule.next(now(), search_only).is_none());
        assert_eq!(take_all(&mut schedule, now()), ["c", "a", "b"]);
    }

    #[test]
    fn call_data_goes_without_a_recording_that_the_crm_does_not_take_once_it_has_waited_long_enough()
     {
        let mut schedule = Schedule::default();
        let held = |name: &str, release: Option<i64>| Waiting {
            need: UPLOAD,
            release_at: release.map(seconds),
            ..waiting(name, 0, -9000, true)
        };
        let all = vec![
            held("a", Some(60)),
            held("b", Some(30)),
            held("c", None),
            waiting("d", 0, -9000, true),
        ];
        schedule.replace(all, now());
        let no_recordings = |_: &Schedule, lane: Lane| lane.sends() != Some(Endpoint::Upload);
        let take = |schedule: &mut Schedule, second: i64| {
            let next = schedule.next_released(seconds(second), no_recordings);
            next.map(|next| next.session_id.to_string())
        };
        let d = schedule.next(now(), no_recordings).unwrap();
        assert_eq!(d.session_id.as_str(), "d");
        assert!(schedule.next(now(), no_recordings).is_none());
        assert_eq!(take(&mut schedule, 29), None);
        assert_eq!(take(&mut schedule, 61).as_deref(), Some("a"));
        let call_data = |lane: Lane| lane.sends() == Some(Endpoint::CallData);
        assert_eq!(schedule.under_way(call_data), 2);
        // Its call data is sent, its recording still has to be uploaded: it is not released again.
        schedule.held(&"a".parse().unwrap(), Endpoint::Upload, seconds(61));
        assert_eq!(take(&mut schedule, 61).as_deref(), Some("b"));
        assert_eq!(take(&mut schedule, 9000), None);
        assert_eq!(take_all(&mut schedule, seconds(61)), ["a", "c"]);
    }

    #[test]
    fn a_record_that_fails_here_is_put_off_even_when_the_folder_says_it_is_due() {
        let backoff = Backoff {
            first: Duration::from_secs(10),
            max: Duration::from_secs(600),
        };
        let mut schedule = Schedule::default();
        let all = || vec![waiting("a", 0, -9000, true), waiting("b", 0, -8000, true)];
        schedule.replace(all(), now());
        let bad = schedule.next(now(), |_, _| true).unwrap().session_id;
        schedule.put_off(&bad, backoff, now());
        schedule.replace(all(), seconds(1));
        assert_eq!(take_all(&mut schedule, seconds(1)), ["b"]);
        assert_eq!(take_all(&mut schedule, seconds(10)), ["a"]);
        schedule.put_off(&bad, backoff, seconds(10));
        assert_eq!(schedule.next_due(), Some(seconds(30)));
        // Gone from the folder: forgotten.
        schedule.replace(Vec::new(), seconds(11));
        schedule.replace(all(), seconds(12));
        assert_eq!(take_all(&mut schedule, seconds(12)), ["a"]);
    }

    #[test]
    fn a_delivery_in_progress_is_not_started_twice() {
        let mut schedule = Schedule::default();
        schedule.replace(vec![waiting("a", 0, -9000, true)], now());
        let id = schedule.next(now(), |_, _| true).unwrap().session_id;
        schedule.replace(vec![waiting("a", 0, -9000, true)], now());
        assert!(schedule.next(now(), |_, _| true).is_none());
        schedule.again(&id, seconds(7), now());
        assert_eq!(schedule.next_due(), Some(seconds(7)));
        assert_eq!(take_all(&mut schedule, seconds(7)), ["a"]);
        schedule.done(&id);
        assert_eq!((schedule.ready(), schedule.later()), (0, 0));
    }

    #[test]
    fn the_end_of_an_egress_hurries_the_record_that_waits_for_it_and_no_other() {
        let mut schedule = Schedule::default();
        let all = || vec![waiting("a", 30, -9, false), waiting("b", 30, -9, false)];
        schedule.replace(all(), now());
        assert!(take_all(&mut schedule, now()).is_empty());
        schedule.hurry(
            &[EgressMark::of_room("b"), EgressMark::of_id("EG_b")],
            now(),
        );
        // Neither a scan of the folder nor the due time in the file undoes it.
        schedule.replace(all(), now());
        let next = schedule.next(now(), |_, _| true).unwrap().session_id;
        assert_eq!(next.as_str(), "b");
        assert!(schedule.is_hurried(&next) && !schedule.is_hurried(&next));

        // The egress ends while the record is being processed, which may have been a moment too
        // early.
        schedule.hurry(&[EgressMark::of_id("b")], now());
        schedule.again(&next, seconds(30), now());
        assert_eq!(take_all(&mut schedule, now()), ["b"]);
        schedule.done(&next);
        assert!(!schedule.is_hurried(&next));
        schedule.hurry(&[EgressMark::of_id("c")], now());
        assert!(take_all(&mut schedule, now()).is_empty());
    }

    #[test]
    fn a_time_from_before_the_clock_was_set_back_means_nothing() {
        for (due, since, expected) in [
            (600, Some(-10), 600),
            (600, None, 600),
            (90_000, Some(86_400), 0),
            // The other machine's clock is a little ahead.
            (600, Some(30), 600),
        ] {
            let since = since.map(seconds);
            let due = Due::At {
                due: seconds(due),
                since,
            };
            assert_eq!(due.time(now()), Some(seconds(expected)));
        }
    }
}
