//! Keeps the copy complete: finds the calls that are missing or outdated in it, and writes them.
//!
//! There is no queue that could overflow or be lost. The missing calls are the difference between
//! the records on disk and [`Progress`]. They are written in batches, so a copy that is ten
//! thousand calls behind needs no more memory than one that is ten behind. Writing a call twice
//! changes nothing, so a process may be killed at any instruction.

use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use futures_util::StreamExt as _;
use futures_util::stream;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::document::{CallDocuments, documents};
use super::progress::{Progress, Stamp};
use super::{MirrorPass, MongoError};
use crate::ledger::search::{FoundCall, WholeCall};
use crate::session::{SessionId, mask_numbers};
use crate::store::{CallFile, Place, Store, StoreError};

/// How often the folders are checked. A scan of folders in which nothing has changed costs
/// microseconds.
const SCAN_EVERY: Duration = Duration::from_secs(5);
/// Calls that one pass writes at most.
const BATCH: usize = 500;
/// Calls that are written at the same time.
const PARALLEL: usize = 8;
/// Pause after the first failure; it doubles up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// See [`FIRST_PAUSE`].
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// How long the last pass may take when the worker stops.
const LAST_PASS: Duration = Duration::from_secs(5);
/// A folder that changed less than this before it was listed may change again without a new
/// modification time.
const CLOCK_TICK: Duration = Duration::from_secs(2);
/// How often archived files are checked one by one: they rarely change.
const FULL_SCAN_EVERY: Duration = Duration::from_secs(600);
/// When this many calls in a row are refused and none is accepted, the server counts as
/// unavailable.
const ALL_REFUSED: usize = 20;

/// Why a call was not written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PutError {
    /// The server accepts no writes at present.
    Down(String),
    /// This call is refused permanently.
    Refused(String),
}

/// A database that calls are written to.
pub trait Destination: Send + Sync {
    /// Inserts or replaces a call. Idempotent. `is_new`: the destination probably does not have it.
    fn put(
        &self,
        call: CallDocuments,
        is_new: bool,
    ) -> impl Future<Output = Result<(), PutError>> + Send;

    /// Host and database, without user and password. Progress is stored separately for each name.
    fn name(&self) -> &str;
}

/// Writes the records of a data folder to a destination.
pub struct Mirror<D> {
    store: Store,
    destination: D,
    progress: Option<Arc<Mutex<Progress>>>,
    /// Calls that are not retried until their files change: unreadable or refused.
    left_alone: HashMap<SessionId, Stamp>,
    /// Modification times of the folders at the last scan that left nothing to do.
    seen: Option<[SystemTime; 2]>,
    full_scan: Option<Instant>,
}

impl<D: Destination> fmt::Debug for Mirror<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mirror")
            .field("destination", &self.destination.name())
            .finish_non_exhaustive()
    }
}

/// The calls to be written.
struct Behind {
    batch: Vec<(CallFile, SessionId, Stamp)>,
    count: u64,
}

/// The result for one call.
enum Written {
    Yes,
    /// Its file has moved to the next folder; a later scan finds it there.
    Gone,
    LeftAlone(SessionId, Stamp, String),
    Down(String),
}

impl<D: Destination> Mirror<D> {
    /// A mirror of `store` in `destination`.
    pub fn new(store: Store, destination: D) -> Self {
        Self {
            store,
            destination,
            progress: None,
            left_alone: HashMap::new(),
            seen: None,
            full_scan: None,
        }
    }

    /// The destination.
    pub fn destination(&self) -> &D {
        &self.destination
    }

    /// Writes missing calls until `stop`, and once more after it.
    pub async fn run(mut self, stop: CancellationToken) {
        info!(
            destination = self.destination.name(),
            "calls are also written to MongoDB"
        );
        let mut pause = SCAN_EVERY;
        let mut down = false;
        loop {
            let pass = tokio::select! {
                () = stop.cancelled() => break,
                pass = self.pass() => pass,
            };
            let more;
            (pause, more) = match pass {
                Ok(MirrorPass {
                    down: Some(why),
                    behind,
                    ..
                }) => {
                    if !down {
                        warn!(
                            why,
                            behind,
                            "nothing can be written to MongoDB at present; calls and delivery go on, and it is caught up later"
                        );
                    }
                    let longer = if down { pause * 2 } else { FIRST_PAUSE };
                    down = true;
                    // A random part, so that many workers do not retry at the same moment.
                    let spread = 0.75 + rand::random::<f64>() / 2.0;
                    (longer.min(LONGEST_PAUSE).mul_f64(spread), false)
                }
                Ok(pass) => {
                    if down {
                        info!(
                            written = pass.written,
                            behind = pass.behind,
                            "MongoDB is back"
                        );
                    }
                    down = false;
                    (SCAN_EVERY, pass.behind > 0 && pass.written > 0)
                }
                Err(error) => {
                    error!(%error, "the copy in MongoDB is not kept at present");
                    (LONGEST_PAUSE, false)
                }
            };
            if more {
                continue;
            }
            tokio::select! {
                () = stop.cancelled() => break,
                () = sleep(pause) => {}
            }
        }
        // The last record may have been written after the last scan.
        if !down && timeout(LAST_PASS, self.pass()).await.is_err() {
            warn!("MongoDB took too long; the rest is written by the next start");
        }
    }

    /// Writes all missing calls, as far as that is possible now.
    ///
    /// # Errors
    /// As [`Mirror::pass`].
    pub async fn catch_up(&mut self) -> Result<MirrorPass, MongoError> {
        let mut sum = MirrorPass::default();
        loop {
            let pass = self.pass().await?;
            let more = pass.behind > 0 && pass.written + pass.refused > 0 && pass.down.is_none();
            sum = MirrorPass {
                written: sum.written + pass.written,
                refused: sum.refused + pass.refused,
                ..pass
            };
            if !more {
                return Ok(sum);
            }
        }
    }

    /// Writes at most one batch of the missing calls.
    ///
    /// # Errors
    /// When the folders cannot be listed or the progress cannot be stored. An unavailable
    /// MongoDB is no error.
    pub async fn pass(&mut self) -> Result<MirrorPass, MongoError> {
        let Some(progress) = self.progress().await? else {
            return Ok(MirrorPass {
                elsewhere: true,
                ..MirrorPass::default()
            });
        };
        let now = self.folder_times();
        if now.is_some() && now == self.seen && !self.full_scan_is_due() {
            return Ok(MirrorPass::default());
        }
        let scanned = SystemTime::now();
        let behind = self.scan(progress.clone()).await?;
        metrics::gauge!("voicebot_mongodb_behind").set(behind.count as f64);
        let mut pass = MirrorPass {
            behind: behind.count,
            ..MirrorPass::default()
        };
        let mut refused = Vec::new();
        {
            let (store, destination) = (&self.store, &self.destination);
            let progress = &progress;
            let mut writes = stream::iter(behind.batch)
                .map(|(file, id, stamp)| write(store, destination, progress, file, id, stamp))
                .buffer_unordered(PARALLEL);
            while let Some(written) = writes.next().await {
                match written? {
                    Written::Yes => pass.written += 1,
                    Written::Gone => {}
                    Written::LeftAlone(id, stamp, why) => refused.push((id, stamp, why)),
                    Written::Down(why) => {
                        pass.down = Some(why);
                        break;
                    }
                }
                if pass.written == 0 && refused.len() >= ALL_REFUSED {
                    let why = refused.pop().map(|(_, _, why)| why);
                    pass.down = why.map(|why| format!("MongoDB takes no call at all: {why}"));
                    break;
                }
            }
        }
        if pass.down.is_none() {
            pass.refused = refused.len() as u64;
            for (id, stamp, why) in refused {
                error!(session.id = %id, why = mask_numbers(&why), "the call cannot be written to MongoDB; it is left out until its file changes");
                metrics::counter!("voicebot_mongodb_refused_total").increment(1);
                self.left_alone.insert(id, stamp);
            }
        }
        pass.behind = pass.behind.saturating_sub(pass.written + pass.refused);
        metrics::counter!("voicebot_mongodb_written_total").increment(pass.written);
        metrics::gauge!("voicebot_mongodb_behind").set(pass.behind as f64);
        let calm = |time: &SystemTime| *time + CLOCK_TICK < scanned;
        self.seen = now.filter(|times| pass.behind == 0 && times.iter().all(calm));
        Ok(pass)
    }

    async fn progress(&mut self) -> Result<Option<Arc<Mutex<Progress>>>, MongoError> {
        if let Some(progress) = &self.progress {
            return Ok(Some(progress.clone()));
        }
        let folder = self.folder();
        let name = self.destination.name().to_owned();
        let opened = blocking({
            let folder = folder.clone();
            move || Progress::open(&folder, &name)
        })
        .await;
        let opened = opened.map_err(|source| MongoError::Progress {
            path: folder,
            source,
        })?;
        self.progress = opened.map(|progress| Arc::new(Mutex::new(progress)));
        Ok(self.progress.clone())
    }

    fn folder(&self) -> PathBuf {
        self.store
            .root()
            .join(Place::Waiting.folder())
            .join(".mongodb")
    }

    fn folder_times(&self) -> Option<[SystemTime; 2]> {
        let changed = |place: Place| {
            let folder = self.store.root().join(place.folder());
            std::fs::metadata(folder).ok()?.modified().ok()
        };
        Some([changed(Place::Waiting)?, changed(Place::Archived)?])
    }

    fn full_scan_is_due(&self) -> bool {
        self.full_scan
            .is_none_or(|last| last.elapsed() >= FULL_SCAN_EVERY)
    }

    async fn scan(&mut self, progress: Arc<Mutex<Progress>>) -> Result<Behind, MongoError> {
        let full = self.full_scan_is_due();
        if full {
            self.full_scan = Some(Instant::now());
        }
        let store = self.store.clone();
        let left_alone = std::mem::take(&mut self.left_alone);
        let (scanned, left_alone) = blocking(move || {
            let scanned = scan(&store, &lock(&progress), &left_alone, full);
            (scanned, left_alone)
        })
        .await;
        self.left_alone = left_alone;
        scanned.map_err(|error| MongoError::Unusable(error.to_string()))
    }
}

/// Lists the calls that are missing or outdated in the copy. Blocks on the disk.
fn scan(
    store: &Store,
    progress: &Progress,
    left_alone: &HashMap<SessionId, Stamp>,
    full: bool,
) -> Result<Behind, StoreError> {
    let mut behind = Behind {
        batch: Vec::new(),
        count: 0,
    };
    for place in [Place::Waiting, Place::Archived] {
        store.visit_call_files(place, |file| {
            let Some(id) = file.session_id() else {
                return;
            };
            let archived = place == Place::Archived;
            if archived && !full && progress.is_archived(&id) {
                return;
            }
            // A file that is gone has moved on and is found in the archive.
            let Some((modified, bytes)) = store.changed(&file) else {
                return;
            };
            let stamp = Stamp::new(archived, modified, bytes);
            if progress.is_written(&id, stamp) || left_alone.get(&id) == Some(&stamp) {
                return;
            }
            behind.count += 1;
            if behind.batch.len() < BATCH {
                behind.batch.push((file, id, stamp));
            }
        })?;
    }
    Ok(behind)
}

/// Reads a call, writes it, and stores that in the progress.
async fn write<D: Destination>(
    store: &Store,
    destination: &D,
    progress: &Arc<Mutex<Progress>>,
    file: CallFile,
    id: SessionId,
    stamp: Stamp,
) -> Result<Written, MongoError> {
    let read = {
        let store = store.clone();
        blocking(move || read(&store, &file)).await
    };
    let call = match read {
        Ok(Some(call)) => call,
        Ok(None) => return Ok(Written::Gone),
        Err(why) => return Ok(Written::LeftAlone(id, stamp, why)),
    };
    let is_new = !lock(progress).knows(&id);
    match destination.put(call, is_new).await {
        Ok(()) => {}
        Err(PutError::Down(why)) => return Ok(Written::Down(why)),
        Err(PutError::Refused(why)) => return Ok(Written::LeftAlone(id, stamp, why)),
    }
    let mut progress = lock(progress);
    progress
        .note(&id, stamp)
        .map_err(|source| MongoError::Progress {
            path: progress.path().to_owned(),
            source,
        })?;
    Ok(Written::Yes)
}

/// The documents of a call; `None` if its file is gone.
fn read(store: &Store, file: &CallFile) -> Result<Option<CallDocuments>, String> {
    match FoundCall::open_here(store, file) {
        Ok(Some(call)) => {
            let WholeCall {
                call,
                conversation,
                leads,
            } = WholeCall::read(store, call, |_| {});
            Ok(Some(documents(&call, conversation.as_ref(), &leads)))
        }
        Ok(None) => Ok(None),
        Err(unreadable) => Err(unreadable.problem),
    }
}

fn lock(progress: &Mutex<Progress>) -> MutexGuard<'_, Progress> {
    progress.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs blocking disk work on a thread for it.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        // Only a panic or the shutdown of the runtime ends here; neither may be hidden.
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => std::future::pending().await,
        },
    }
}
