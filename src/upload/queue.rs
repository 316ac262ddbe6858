//! What waits in `call_metadata/`, and who goes next. A folder of thousands is listed, but a record
//! is read again only when its file has changed, and between two scans of the folder a due time
//! costs no scan.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::io;
use std::sync::{Arc, OnceLock, mpsc};
use std::time::{Duration, SystemTime};

use chrono::{DateTime, TimeDelta, Utc};
use tracing::error;

use crate::recording::resolve::LONGEST_LOOK;
use crate::session::{CallRecord, PartState, RecordStatus, RecordingSource, SessionId};
use crate::store::{PendingRecord, Store, StoreError};

use super::policy::Backoff;
use super::{Endpoint, later};

/// A call that ended less than this ago goes before the older ones: somebody may be waiting for it.
const FRESH: TimeDelta = TimeDelta::seconds(60);
/// The clocks of two machines on one folder may differ by this without anybody having set one back.
const CLOCKS_DIFFER: TimeDelta = TimeDelta::seconds(60);
/// Two writes can fall into one tick of the file system's clock, so a file that was just written is
/// read again at the next scan.
const TICK: Duration = Duration::from_secs(2);

/// When a record wants to be tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Due {
    /// Not before `due`, which was decided at `since` or later.
    At {
        due: DateTime<Utc>,
        since: Option<DateTime<Utc>>,
    },
    /// Not by itself.
    Never,
    /// Its file cannot be read.
    Unreadable,
}

impl Due {
    /// The time, seen from now. A decision from the future was made before the clock was set back,
    /// and its time means nothing.
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

/// When the open part of a record wants to be tried.
pub(super) fn due_of(record: &CallRecord) -> Due {
    let at_once = Due::At {
        due: DateTime::UNIX_EPOCH,
        since: None,
    };
    match record.status {
        // Delivered, but killed before it was moved.
        RecordStatus::Uploaded => return at_once,
        RecordStatus::Failed => return Due::Never,
        RecordStatus::ReadyForUpload | RecordStatus::Uploading => {}
    }
    let uploads = &record.uploads;
    let last_scan = uploads.recording.watch.and_then(|watch| watch.last_scan);
    let call_data_is_open = !uploads.call_data.state.is_settled();
    let (next_attempt, since) = if !uploads.recording.state.is_settled() {
        let next = uploads.recording.next_attempt;
        // A wait is no attempt, but never longer than this.
        let since = match uploads.recording.state {
            PartState::Waiting => last_scan.or(next.map(|due| due - LONGEST_LOOK)),
            _ => record.last_upload_attempt,
        };
        // The call data goes first if it may go before there is another try.
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
    } else if let Some(look) = late_scan(record) {
        (Some(look), last_scan.or(record.last_upload_attempt))
    } else {
        // Both are settled, but it was killed before it could say so.
        (None, None)
    };
    match next_attempt {
        Some(due) => Due::At { due, since },
        None => at_once,
    }
}

/// When to scan again for a recording that was missing when the call data went; nothing when it is
/// not looked for any more.
pub(super) fn late_scan(record: &CallRecord) -> Option<DateTime<Utc>> {
    let uploads = &record.uploads;
    let missed =
        uploads.recording.state == PartState::Missing && uploads.call_data.state == PartState::Sent;
    uploads.recording.next_attempt.filter(|_| missed)
}

/// What a record is at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Need {
    /// Its recording has to be found, CRM or no CRM: what is known about a recording is not known
    /// for ever.
    Search,
    /// All that is left to do is to send it, this first.
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

/// When the call data of a record goes without its recording that only needs sending; none, if
/// there is nothing to release. `otherwise`: for a record of which no try has said when.
fn release_of(record: &CallRecord, otherwise: DateTime<Utc>) -> Option<DateTime<Utc>> {
    let holds = Need::of(record) == Need::Send(Endpoint::Upload)
        && !record.uploads.call_data.state.is_settled();
    holds.then(|| record.uploads.recording.release_at.unwrap_or(otherwise))
}

/// What an egress is known by: its id, or its room where the id was lost. A number, which costs
/// little to keep; should two ever be the same, a record is read once too often.
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

    /// The egress whose recording a record waits for, in time or late.
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

/// What records wait for together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Lane {
    /// Their calls have just ended.
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

    /// In which they go. Call data is small, so it does not wait behind recordings.
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

    /// What it sends, if all that is left to do is to send.
    pub(super) fn sends(self) -> Option<Endpoint> {
        match self.need {
            Need::Send(endpoint) => Some(endpoint),
            Need::Search => None,
        }
    }
}

/// A record that is waiting for its turn.
#[derive(Debug, Clone)]
pub(super) struct Waiting {
    pub pending: PendingRecord,
    pub due: DateTime<Utc>,
    pub ended_at: Option<DateTime<Utc>>,
    pub need: Need,
    /// When its call data waits for the recording no longer, where it is only the CRM that keeps it
    /// waiting.
    pub release_at: Option<DateTime<Utc>>,
    /// Whose recording it waits for.
    pub egress: Option<EgressMark>,
}

/// What a scan of the folder found.
#[derive(Debug, Default)]
pub(super) struct Look {
    /// Oldest first.
    pub waiting: Vec<Waiting>,
    /// Records that nothing is going to happen to by itself.
    pub resting: u64,
    pub unreadable: u64,
}

/// What was last seen of a record.
#[derive(Debug, Clone, Copy)]
struct Known {
    modified: SystemTime,
    /// Its file was written just before it was read.
    unsure: bool,
    due: Due,
    ended_at: Option<DateTime<Utc>>,
    need: Need,
    release_at: Option<DateTime<Utc>>,
    /// When this process first saw it.
    first_seen: DateTime<Utc>,
    egress: Option<EgressMark>,
    /// The scan that last found it.
    look: u64,
}

/// What is known of the folder. Kept up in place: a second copy of it at each scan would cost
/// megabytes for thousands of records.
#[derive(Debug)]
struct Folder {
    store: Store,
    /// How long call data waits for its recording.
    wait: Duration,
    known: HashMap<SessionId, Known>,
    looks: u64,
}

/// When it is now, and where the answer goes.
type Ask = (DateTime<Utc>, mpsc::Sender<Result<Look, StoreError>>);

/// The records that wait. Cheap to clone.
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

    /// Lists what waits. Blocks on the disk.
    ///
    /// Scans are made by one thread that stays. The allocator has a heap for each thread, and scans
    /// from threads that come and go would leave what a scan needs behind in each of them: 32 MB in
    /// 400 s with 10,000 records.
    pub(super) fn look(&self, now: DateTime<Utc>) -> Result<Look, StoreError> {
        let (answer, answered) = mpsc::channel();
        let scanner = self.scanner.get_or_init(|| self.start_scanner());
        let _ = scanner.send((now, answer));
        answered.recv().unwrap_or_else(|_| {
            let gone = io::Error::other("the thread that looks at it is gone");
            Err(StoreError::io("list", self.store.root())(gone))
        })
    }

    /// Ends with the last one who could ask.
    fn start_scanner(&self) -> mpsc::Sender<Ask> {
        let (ask, asked) = mpsc::channel::<Ask>();
        let mut folder = Folder {
            store: self.store.clone(),
            wait: self.wait,
            known: HashMap::new(),
            looks: 0,
        };
        let thread = std::thread::Builder::new().name("folder".to_owned());
        let started = thread.spawn(move || {
            for (now, answer) in asked {
                let _ = answer.send(folder.look(now));
            }
        });
        if let Err(error) = started {
            error!(%error, "no thread could be started to look for records");
        }
        ask
    }

    /// The record of one session, whether its time has come or not; none when it is delivered.
    /// Blocks on the disk.
    pub(super) fn only(&self, id: &SessionId, now: DateTime<Utc>) -> Result<Look, StoreError> {
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
            // Delivered already is fine; unknown is a mistake that the operator should hear of.
            self.store.read_record(id)?;
        }
        Ok(Look {
            waiting,
            ..Look::default()
        })
    }
}

impl Folder {
    /// Lists what waits. Blocks on the disk.
    fn look(&mut self, now: DateTime<Utc>) -> Result<Look, StoreError> {
        let pending = self.store.pending()?;
        self.looks += 1;
        let mut look = Look {
            waiting: Vec::with_capacity(pending.len()),
            ..Look::default()
        };
        for mut record in pending {
            let last = self.known.get_key_value(&record.session_id);
            let last = last.map(|(id, known)| {
                // The text that is there already, instead of one more.
                record.session_id = id.clone();
                *known
            });
            let first_seen = last.map_or(now, |last| last.first_seen.min(now));
            let last = last.filter(|last| last.modified == record.modified && !last.unsure);
            let Some(current) = last.or_else(|| self.read(&record, first_seen)) else {
                continue;
            };
            let seen = Known {
                look: self.looks,
                ..current
            };
            self.known.insert(record.session_id.clone(), seen);
            match current.due.time(now) {
                Some(due) => look.waiting.push(Waiting {
                    pending: record,
                    due,
                    ended_at: current.ended_at,
                    need: current.need,
                    release_at: current.release_at,
                    egress: current.egress,
                }),
                None if current.due == Due::Unreadable => look.unreadable += 1,
                None => look.resting += 1,
            }
        }
        self.known.retain(|_, known| known.look == self.looks);
        // After an outage, what a heap of records needed is given back.
        if self.known.capacity() > 4 * self.known.len() {
            self.known.shrink_to(2 * self.known.len());
        }
        Ok(look)
    }

    /// `None` when it has been archived since the folder was listed.
    fn read(&self, pending: &PendingRecord, first_seen: DateTime<Utc>) -> Option<Known> {
        // Asked for before it is read.
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
                // Said once per version of the file: when a person repairs it, its time of change
                // is new.
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
            look: 0,
        })
    }
}

/// A record that could not be worked on because of this machine: its file cannot be written, for
/// one.
#[derive(Debug, Clone, Copy)]
struct PutOff {
    times: u32,
    until: DateTime<Utc>,
}

/// Who goes next, between two scans of the folder. Pure.
#[derive(Debug, Default)]
pub(super) struct Schedule {
    /// Due, by lane, oldest first.
    ready: [BTreeMap<SessionId, Waiting>; LANES],
    /// Not due yet, by time.
    later: BTreeMap<(DateTime<Utc>, SessionId), Waiting>,
    under_way: HashMap<SessionId, (Lane, Waiting)>,
    /// Records that fail here would otherwise be the oldest for ever, and tried for ever.
    put_off: HashMap<SessionId, PutOff>,
    /// Records whose recording is said to have come since they were scanned: their time on disk
    /// does not count.
    hurried: HashSet<SessionId>,
}

impl Schedule {
    /// Starts over from what a scan has found. What is in progress stays so.
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

    /// An egress has ended: what waits for its recording is due at once, and what looks for it just
    /// now is due again.
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

    /// Whether a record that goes now does so before its time on disk.
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

    /// Takes the next record whose recording the CRM does not take and whose call data has waited
    /// for that long enough: it goes as call data.
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
                // Once: if it comes back to wait for the CRM, a scan of its file says how it
                // stands.
                next.release_at = None;
                self.under_way.insert(id, (lane, next));
                return Some(pending);
            }
        }
        None
    }

    /// How many are in progress in lanes like this.
    pub(super) fn under_way(&self, like: impl Fn(Lane) -> bool) -> usize {
        let lanes = self.under_way.values();
        lanes.filter(|(lane, _)| like(*lane)).count()
    }

    /// What was in progress has ended, and it is not for this schedule to try it again.
    pub(super) fn done(&mut self, id: &SessionId) {
        self.under_way.remove(id);
        self.put_off.remove(id);
        self.hurried.remove(id);
    }

    /// What was in progress is to be sent at this time.
    pub(super) fn again(&mut self, id: &SessionId, due: DateTime<Utc>, now: DateTime<Utc>) {
        self.put_off.remove(id);
        if let Some((_, mut next)) = self.under_way.remove(id) {
            next.due = if self.hurried.contains(id) { now } else { due };
            self.add(next, now);
        }
    }

    /// What was in progress has only to be sent, and waits for the CRM.
    pub(super) fn held(&mut self, id: &SessionId, endpoint: Endpoint, now: DateTime<Utc>) {
        if let Some((_, next)) = self.under_way.get_mut(id) {
            next.need = Need::Send(endpoint);
        }
        self.again(id, now, now);
    }

    /// What was in progress could not be worked on here, or was turned away by the CRM: the others
    /// go first.
    pub(super) fn put_off(&mut self, id: &SessionId, backoff: Backoff, now: DateTime<Utc>) {
        let times = self.put_off.get(id).map_or(0, |state| state.times) + 1;
        let until = later(now, backoff.pause(times, 1.0, None));
        if let Some((_, mut next)) = self.under_way.remove(id) {
            next.due = until;
            self.add(next, now);
        }
        self.put_off.insert(id.clone(), PutOff { times, until });
    }

    /// When the next of those that are not due yet is.
    pub(super) fn next_due(&self) -> Option<DateTime<Utc>> {
        self.later.keys().next().map(|(due, _)| *due)
    }

    /// How many are due and wait for room.
    pub(super) fn ready(&self) -> usize {
        self.ready.iter().map(BTreeMap::len).sum()
    }

    /// Whether any of those has only this to be sent.
    pub(super) fn has_to_send(&self, endpoint: Endpoint) -> bool {
        let mut lanes = Lane::IN_ORDER.into_iter();
        lanes.any(|lane| lane.sends() == Some(endpoint) && !self.ready[lane.index()].is_empty())
    }

    /// How many are not due yet.
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

        // It has found its recording while the CRM is away.
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
        // Its call data is there, its recording still has to go: it is not released again.
        schedule.held(&"a".parse().unwrap(), Endpoint::Upload, seconds(61));
        assert_eq!(take(&mut schedule, 61).as_deref(), Some("b"));
        assert_eq!(take(&mut schedule, 9000), None);
        assert_eq!(take_all(&mut schedule, seconds(61)), ["a", "c"]);
    }

    #[test]
    fn a_record_that_breaks_here_steps_back_even_when_the_folder_says_it_is_due() {
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
    fn what_is_under_way_is_not_taken_twice() {
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
        // Neither a scan of the folder nor the time on disk takes it back.
        schedule.replace(all(), now());
        let next = schedule.next(now(), |_, _| true).unwrap().session_id;
        assert_eq!(next.as_str(), "b");
        assert!(schedule.is_hurried(&next) && !schedule.is_hurried(&next));

        // The end comes while the record is scanned, which may have been a moment too early.
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
