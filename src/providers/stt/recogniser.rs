//! One session of a list of vendors: the first choice as long as it works, then the next, with the
//! sound that is waiting.
//!
//! The sound since the last final words is kept. A new connection, of whichever vendor, gets it
//! again, so that no word is lost; nothing before it is sent, so that none comes twice. A vendor
//! that is asked for each stretch of speech gets the stretches that have no words yet.

use std::future::poll_fn;
use std::ops::Range;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::{BoxFuture, FutureExt as _, join_all};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_tungstenite::tungstenite::Message;

use super::ring::Ring;
use super::stream::{FinalWords, Heard, Reader, UNTOLD, Wire};
use super::{
    ListenRequest, Opened, SpeechSegment, SpeechToText, SttEvent, SttInput, SttSession,
    Transcriber, Transcript, Word,
};
use crate::providers::ProviderError;
use crate::providers::asked::{self, Asked};
use crate::providers::retry::{pause, with_retries};
use crate::providers::socket::{Frame, Socket};
use crate::session::Usage;
use crate::voice::resample::Resampler;

/// What one message carries of the sound: vendors take 20 to 1000 ms, the longest minimum is
/// AssemblyAI's.
const PIECE: Duration = Duration::from_millis(50);

/// Sound that is kept while words of it may come.
const MOST_KEPT: Duration = Duration::from_secs(30);

/// Sound that is kept while nobody seems to speak.
const QUIET_KEPT: Duration = Duration::from_secs(5);

/// After this long without an answer to [`Wire::finalise`], a vendor that has said about all of the
/// sound that it found no words in it will not say more …
const NO_WORDS_LIMIT: Duration = Duration::from_secs(1);

/// … and one that has not has stopped.
const FINALISE_LIMIT: Duration = Duration::from_secs(2);

/// The words of a vendor that cannot be asked may end this much before the speech, as voice
/// activity detection has it, and are all of its words. Alignment takes no less for one place.
const BESIDE: Duration = Duration::from_millis(400);

/// A vendor that cannot be asked has stopped when it says nothing for so long after speech.
const TURN_LIMIT: Duration = Duration::from_secs(3);

/// A vendor that has words which are not final says more about them within this time.
const UNFINISHED_LIMIT: Duration = Duration::from_secs(4);

/// A vendor that is sent nothing wants a word now and then; Deepgram closes after 10 s.
const KEEP_ALIVE: Duration = Duration::from_secs(4);

/// How long a vendor may take to speak first ([`Wire::greets`]).
const GREETING_LIMIT: Duration = Duration::from_secs(3);

/// How often a vendor may fail in a row while there is another.
const RETRIES_WITH_NEXT: u32 = 1;

/// How long a request may take while there is another vendor.
const REQUEST_LIMIT_WITH_NEXT: Duration = Duration::from_millis(2_500);

/// A vendor that has failed is tried again after this long.
const RECOVER_AFTER: Duration = Duration::from_secs(20);

/// Stretches of speech that may wait for words.
const MOST_WAITING: usize = 16;

/// A vendor of recognition.
#[derive(Clone)]
pub enum Vendor {
    /// It is asked for each stretch of speech.
    Requests(Arc<dyn Transcriber>),
    /// It listens all the time.
    #[expect(private_interfaces, reason = "only this crate's vendors stream")]
    Stream(Arc<dyn Wire>),
}

impl Vendor {
    fn name(&self) -> &str {
        match self {
            Self::Requests(vendor) => vendor.name(),
            Self::Stream(vendor) => vendor.name(),
        }
    }
}

/// Recognition by a list of vendors, in one session that does not notice which of them listens.
pub struct Recogniser {
    vendors: Arc<[Vendor]>,
    name: String,
}

impl Recogniser {
    /// Listens with the first of `vendors` that works.
    pub fn new(vendors: Vec<Vendor>) -> Self {
        let names: Vec<&str> = vendors.iter().map(Vendor::name).collect();
        Self {
            name: names.join(", then "),
            vendors: vendors.into(),
        }
    }

    /// Listens with a vendor that is asked for each stretch of speech.
    pub fn requests(vendor: Arc<dyn Transcriber>) -> Arc<Self> {
        Arc::new(Self::new(vec![Vendor::Requests(vendor)]))
    }
}

async fn open_once(wire: &dyn Wire, request: &ListenRequest) -> Result<Duration, ProviderError> {
    let began = Instant::now();
    let mut socket = Socket::connect(&wire.address(request)?).await?;
    if wire.greets() {
        let greeting = timeout(GREETING_LIMIT, socket.next()).await;
        let greeting = greeting.unwrap_or_else(|_| {
            Err(ProviderError::temporary(format!(
                "{} says nothing on a new connection",
                socket.host()
            )))
        })?;
        let mut heard = Vec::new();
        if let Frame::Text(text) = greeting {
            wire.reader().read(&text, &mut heard);
        }
        for heard in heard {
            if let Heard::Error(error) = heard {
                return Err(error);
            }
        }
    }
    let took = began.elapsed();
    socket.close(wire.close()).await;
    Ok(took)
}

#[async_trait]
impl SpeechToText for Recogniser {
    fn name(&self) -> &str {
        &self.name
    }

    fn open(&self, request: ListenRequest) -> SttSession {
        let streams = |vendor: &Vendor| matches!(vendor, Vendor::Stream(_));
        let wants_sound = self.vendors.iter().any(streams);
        let vendors = self.vendors.clone();
        let asked = Arc::new(Asked::default());
        let watch = asked.clone();
        let session = SttSession::new(wants_sound, move |inputs, events| async move {
            let listener = Listener {
                sick: vec![None; vendors.len()],
                vendors,
                rate: request.sample_rate_hz.max(1),
                request,
                inputs,
                events,
                ring: Ring::default(),
                waiting: Vec::new(),
                settled: 0,
                final_to: 0,
                words_to: 0,
                has_interim: false,
                probe: None,
            };
            watch.watch(listener.run()).await;
        });
        session.asked_by(asked)
    }

    async fn prewarm(&self) {
        let warm = self.vendors.iter().map(|vendor| async move {
            if let Vendor::Requests(vendor) = vendor {
                vendor.prewarm().await;
            }
        });
        join_all(warm).await;
    }

    async fn check(&self, request: &ListenRequest) -> Vec<Opened> {
        let streams = self.vendors.iter().filter_map(|vendor| match vendor {
            Vendor::Stream(wire) => Some(wire),
            Vendor::Requests(_) => None,
        });
        let opened = streams.map(|wire| async move {
            Opened {
                name: wire.name().to_owned(),
                result: open_once(wire.as_ref(), request).await,
            }
        });
        join_all(opened).await
    }
}

/// Speech whose words are wanted.
#[derive(Debug, Clone)]
struct Wanted {
    range: Range<u64>,
    sound: Arc<[i16]>,
    /// Where the sound ended that the vendor had got when it was asked, and when that was.
    asked: Option<(u64, Instant)>,
    /// A connection was given up because it did not answer.
    was_sent_again: bool,
}

/// Why a vendor is not listened to any more.
enum Over {
    /// The conversation is over.
    Closed,
    /// It has failed.
    Failed(ProviderError),
    /// A better one is well again.
    Better,
}

struct Listener {
    vendors: Arc<[Vendor]>,
    /// When a vendor failed, by its place in the list.
    sick: Vec<Option<Instant>>,
    request: ListenRequest,
    rate: u32,
    inputs: mpsc::Receiver<SttInput>,
    events: mpsc::Sender<SttEvent>,
    /// The sound since the last final words.
    ring: Ring,
    waiting: Vec<Wanted>,
    /// All words before this position are known, or are taken not to be there.
    settled: u64,
    /// Where the last final words end, or what was final without a word.
    final_to: u64,
    /// Where the last final words end: those that end there come a second time.
    words_to: u64,
    /// The vendor has heard words that are not final.
    has_interim: bool,
    /// A better vendor that is being tried, by its place in the list.
    probe: Option<BoxFuture<'static, (usize, Result<Duration, ProviderError>)>>,
}

impl Listener {
    async fn run(mut self) {
        let mut current = 0;
        loop {
            asked::served_by(self.vendors[current].name());
            let over = match self.vendors[current].clone() {
                Vendor::Stream(wire) => self.stream(current, wire.as_ref()).await,
                Vendor::Requests(vendor) => self.requests(current, &vendor).await,
            };
            self.has_interim = false;
            for wanted in &mut self.waiting {
                wanted.asked = None;
            }
            match over {
                Over::Closed => return,
                Over::Better => {
                    current = self.first_well().unwrap_or(current);
                    tracing::info!(
                        vendor = self.vendors[current].name(),
                        "recognition goes back to a vendor that is well again"
                    );
                }
                Over::Failed(error) => {
                    self.sick[current] = Some(Instant::now());
                    match self.first_well() {
                        Some(next) => {
                            tracing::warn!(
                                vendor = self.vendors[next].name(),
                                %error,
                                "recognition goes on with another vendor"
                            );
                            asked::fell_back();
                            self.tell(SttEvent::Trouble(error)).await;
                            current = next;
                        }
                        None => {
                            if self.all_down(error).await {
                                return;
                            }
                            self.sick.fill(None);
                            current = 0;
                        }
                    }
                }
            }
        }
    }

    fn first_well(&self) -> Option<usize> {
        self.sick.iter().position(Option::is_none)
    }

    fn has_other(&self, current: usize) -> bool {
        let mut others = self.sick.iter().enumerate();
        others.any(|(at, sick)| at != current && sick.is_none())
    }

    /// Nobody hears. The next speech is a reason to try all again, unless that cannot help. Answers
    /// whether the conversation is over.
    async fn all_down(&mut self, error: ProviderError) -> bool {
        self.waiting.clear();
        self.tell(SttEvent::Failed {
            range: None,
            error: error.clone(),
        })
        .await;
        let began = Instant::now();
        loop {
            let again = began + RECOVER_AFTER;
            tokio::select! {
                input = self.inputs.recv() => match input {
                    Some(input) => self.take(input),
                    None => return true,
                },
                () = sleep_until(again), if error.is_temporary() => return false,
            }
            if let Some(wanted) = self.waiting.first() {
                if error.is_temporary() {
                    return false;
                }
                let range = Some(wanted.range.clone());
                self.waiting.clear();
                let error = error.clone();
                self.tell(SttEvent::Failed { range, error }).await;
            }
        }
    }

    async fn tell(&mut self, event: SttEvent) {
        // Whoever holds the receiver polls this future.
        let _ = self.events.send(event).await;
    }

    fn samples(&self, duration: Duration) -> usize {
        (duration.as_secs_f64() * f64::from(self.rate)).round() as usize
    }

    fn take(&mut self, input: SttInput) {
        match input {
            SttInput::Sound { at, samples } => {
                let most = self.samples(MOST_KEPT);
                self.ring.push(at, &samples, most);
            }
            SttInput::Finalise { range, sound } => {
                if self.waiting.len() == MOST_WAITING {
                    self.waiting.remove(0);
                }
                self.waiting.push(Wanted {
                    range,
                    sound,
                    asked: None,
                    was_sent_again: false,
                });
            }
            SttInput::Discard { from } => self.waiting.retain(|w| w.range.start != from),
        }
    }

    /// Takes inputs until `work` is done; nothing when the conversation is over before.
    async fn meanwhile<T>(&mut self, work: impl Future<Output = T>) -> Option<T> {
        let mut work = std::pin::pin!(work);
        loop {
            tokio::select! {
                done = &mut work => return Some(done),
                input = self.inputs.recv() => self.take(input?),
            }
        }
    }

    /// Begins to try a vendor before `current` that has been down for long enough.
    fn probe_better(&mut self, current: usize) {
        if self.probe.is_some() {
            return;
        }
        let is_due =
            |at: &usize| self.sick[*at].is_some_and(|since| since.elapsed() >= RECOVER_AFTER);
        let Some(at) = (0..current).find(is_due) else {
            return;
        };
        let (vendor, request) = (self.vendors[at].clone(), self.request.clone());
        self.probe = Some(
            async move {
                let result = match vendor {
                    Vendor::Stream(wire) => open_once(wire.as_ref(), &request).await,
                    // The next stretch of speech will tell.
                    Vendor::Requests(_) => Ok(Duration::ZERO),
                };
                (at, result)
            }
            .boxed(),
        );
    }

    fn probed(&mut self, at: usize, result: &Result<Duration, ProviderError>) {
        self.probe = None;
        self.sick[at] = match result {
            Ok(_) => None,
            Err(error) => {
                tracing::debug!(%error, "a vendor of recognition is still down");
                Some(Instant::now())
            }
        };
    }

    /// Whether a better vendor is well, and nothing is on its way through this one.
    fn may_go_back(&self, current: usize) -> bool {
        self.first_well().is_some_and(|well| well < current)
            && self.waiting.is_empty()
            && !self.has_interim
    }

    // ---- a vendor that is asked for each stretch of speech ----

    async fn requests(&mut self, current: usize, vendor: &Arc<dyn Transcriber>) -> Over {
        let mut asked: Vec<(Range<u64>, BoxFuture<'static, _>)> = Vec::new();
        loop {
            // Speech that was discarded is not asked for any more.
            asked.retain(|(range, _)| self.waiting.iter().any(|wanted| wanted.range == *range));
            for at in 0..self.waiting.len() {
                let range = self.waiting[at].range.clone();
                if !asked.iter().any(|(known, _)| *known == range) {
                    let sound = self.waiting[at].sound.clone();
                    let request = self.ask(current, vendor.clone(), sound).await;
                    asked.push((range, request));
                }
            }
            if self.waiting.is_empty() {
                self.ring.keep(self.samples(QUIET_KEPT));
            }
            self.probe_better(current);
            tokio::select! {
                biased;
                (range, result) = next_answer(&mut asked) => {
                    let result: Result<Transcript, ProviderError> = result;
                    match result {
                        Ok(transcript) => {
                            self.answered(range, transcript).await;
                            // The caller has paused: nothing of a speech is behind us unheard.
                            if self.may_go_back(current) {
                                return Over::Better;
                            }
                        }
                        Err(error) if self.has_other(current) => return Over::Failed(error),
                        Err(error) => {
                            self.waiting.retain(|wanted| wanted.range != range);
                            let range = Some(range);
                            self.tell(SttEvent::Failed { range, error }).await;
                        }
                    }
                }
                input = self.inputs.recv() => match input {
                    Some(input) => self.take(input),
                    None => return Over::Closed,
                },
                (at, result) = next_probe(&mut self.probe) => self.probed(at, &result),
                () = sleep(RECOVER_AFTER), if current > 0 => {}
            }
        }
    }

    async fn ask(
        &mut self,
        current: usize,
        vendor: Arc<dyn Transcriber>,
        samples: Arc<[i16]>,
    ) -> BoxFuture<'static, Result<Transcript, ProviderError>> {
        let segment = SpeechSegment {
            samples,
            sample_rate_hz: self.rate,
            language: self.request.language.clone(),
        };
        self.tell(SttEvent::Usage(Usage {
            stt_requests: 1,
            stt_audio_ms: millis(segment.duration()),
            ..Usage::default()
        }))
        .await;
        let mut limits = self.request.limits.clone();
        if self.has_other(current) {
            limits.max_retries = limits.max_retries.min(RETRIES_WITH_NEXT);
            limits.request_timeout_ms = limits
                .request_timeout_ms
                .min(millis(REQUEST_LIMIT_WITH_NEXT));
        }
        async move {
            let ask = || -> BoxFuture<'_, Result<Transcript, ProviderError>> {
                let request = vendor.transcribe(segment.clone());
                let (name, after) = (vendor.name(), limits.request_timeout_ms);
                Box::pin(async move {
                    timeout(Duration::from_millis(after), request)
                        .await
                        .unwrap_or_else(|_| {
                            Err(ProviderError::temporary(format!(
                                "{name} sent no transcript for {after} ms"
                            )))
                        })
                })
            };
            with_retries(&limits, ask).await
        }
        .boxed()
    }

    async fn answered(&mut self, range: Range<u64>, transcript: Transcript) {
        self.waiting.retain(|wanted| wanted.range != range);
        self.settled = self.settled.max(range.end);
        self.final_to = self.final_to.max(range.end);
        self.words_to = self.words_to.max(range.end);
        self.ring.forget_before(self.settled);
        let up_to = range.end;
        self.tell(SttEvent::Final {
            range,
            text: transcript.text,
            confidence: transcript.confidence,
            words: Vec::new(),
        })
        .await;
        self.tell(SttEvent::Settled { up_to }).await;
    }

    // ---- a vendor that listens all the time ----

    async fn stream(&mut self, current: usize, wire: &dyn Wire) -> Over {
        let address = match wire.address(&self.request) {
            Ok(address) => address,
            Err(error) => return Over::Failed(error),
        };
        let mut failures = 0;
        loop {
            let Some(opened) = self.meanwhile(Socket::connect(&address)).await else {
                return Over::Closed;
            };
            let error = match opened {
                Ok(socket) => {
                    self.has_interim = false;
                    for wanted in &mut self.waiting {
                        wanted.asked = None;
                    }
                    let rate = wire.sample_rate_hz(&self.request);
                    let mut link = Link {
                        base: self.ring.from(),
                        sent: self.ring.from(),
                        finalised: self.ring.from(),
                        known_to: self.ring.from(),
                        unpaid: self.ring.from(),
                        has_spoken: false,
                        opening: wire.opening(&self.request),
                        resampler: (rate != self.rate).then(|| Resampler::new(self.rate, rate)),
                        last_sent: Instant::now(),
                        last_sound: Instant::now(),
                        last_message: Instant::now(),
                        reader: wire.reader(),
                        socket,
                    };
                    match self.listen(current, wire, &mut link).await {
                        Over::Failed(error) => {
                            if link.has_spoken {
                                failures = 0;
                            }
                            error
                        }
                        over => {
                            link.socket.close(wire.close()).await;
                            return over;
                        }
                    }
                }
                Err(error) => error,
            };
            let most = match self.has_other(current) {
                true => RETRIES_WITH_NEXT,
                false => self.request.limits.max_retries,
            };
            if !error.is_temporary() || failures >= most {
                return Over::Failed(error);
            }
            let wait = pause(&self.request.limits, failures, &error);
            if self.has_other(current) && wait > REQUEST_LIMIT_WITH_NEXT {
                return Over::Failed(error);
            }
            failures += 1;
            tracing::warn!(%error, "the connection to recognition is opened again");
            asked::retried();
            self.tell(SttEvent::Trouble(error)).await;
            if self.meanwhile(sleep(wait)).await.is_none() {
                return Over::Closed;
            }
        }
    }

    /// Holds one connection.
    async fn listen(&mut self, current: usize, wire: &dyn Wire, link: &mut Link) -> Over {
        let mut heard = Vec::new();
        loop {
            if let Err(error) = self.send_sound(wire, link).await {
                return Over::Failed(error);
            }
            if wire.finalise().is_none() {
                self.settle_decided().await;
            }
            if self.may_go_back(current) {
                return Over::Better;
            }
            self.probe_better(current);
            if !self.has_interim && self.waiting.is_empty() {
                // Sound in which the vendor has heard nobody need not be sent again.
                let unknown = self.ring.end().saturating_sub(link.known_to) as usize;
                self.ring.keep(unknown + self.samples(QUIET_KEPT));
            }
            let (deadline, at_deadline) = self.deadline(wire, link);
            tokio::select! {
                biased;
                frame = link.socket.next() => match frame {
                    Ok(Frame::Text(text)) => {
                        link.last_message = Instant::now();
                        link.reader.read(&text, &mut heard);
                        for heard in heard.drain(..) {
                            if let Err(error) = self.heard(link, heard).await {
                                return Over::Failed(error);
                            }
                        }
                    }
                    Ok(Frame::Binary(_)) => {}
                    Err(error) => return Over::Failed(error),
                },
                input = self.inputs.recv() => match input {
                    Some(input) => self.take(input),
                    None => return Over::Closed,
                },
                (at, result) = next_probe(&mut self.probe) => self.probed(at, &result),
                () = sleep_until(deadline) => {
                    if let Err(error) = self.overdue(wire, link, at_deadline).await {
                        return Over::Failed(error);
                    }
                }
            }
        }
    }

    /// Sends the sound that is there in pieces, all of it when words are wanted.
    async fn send_sound(&mut self, wire: &dyn Wire, link: &mut Link) -> Result<(), ProviderError> {
        if let Some(opening) = link.opening.take() {
            link.socket.send(opening).await?;
        }
        let piece = self.samples(PIECE).max(1);
        let shortest = self.samples(wire.shortest_finalise()) as u64;
        loop {
            let wanted = self.waiting.iter().position(|w| w.asked.is_none());
            // What is wanted too early is asked for when there is more sound.
            let is_enough = self.ring.end().saturating_sub(link.finalised) >= shortest;
            let wanted = wanted.filter(|_| is_enough);
            // Sound that is more than the piece is sent at once: after a reconnect all of it.
            let (at, sound) = self.ring.read(link.sent, piece);
            let is_whole = sound.len() == piece;
            // A vendor that cannot be asked decides by itself, and may want whole pieces.
            let is_rest = sound.is_empty() || wire.finalise().is_none();
            if !is_whole && (wanted.is_none() || is_rest) {
                let Some(wanted) = wanted else {
                    return Ok(());
                };
                if let Some(message) = wire.finalise() {
                    link.socket.send(message).await?;
                    link.last_sent = Instant::now();
                    link.finalised = link.sent;
                }
                // The rest of a piece, which was not sent, is silence after the speech.
                let up_to = link.sent.max(self.waiting[wanted].range.end);
                self.waiting[wanted].asked = Some((up_to, Instant::now()));
                continue;
            }
            if at > link.sent {
                // It was forgotten before it could be sent: places count from the first sample that
                // was.
                link.base += at - link.sent;
            }
            link.sent = at + sound.len() as u64;
            let sound = link.resampled(sound);
            link.socket.send(wire.sound(&sound)).await?;
            link.last_sent = Instant::now();
            link.last_sound = link.last_sent;
        }
    }

    /// When something is overdue, and what.
    fn deadline(&self, wire: &dyn Wire, link: &Link) -> (Instant, Overdue) {
        let mut deadlines = vec![(link.last_sent + KEEP_ALIVE, Overdue::KeepAlive)];
        if let Some((_, at)) = self.waiting.iter().find_map(|wanted| wanted.asked) {
            if self.has_no_words(link) {
                deadlines.push((at + NO_WORDS_LIMIT, Overdue::NoWords));
            } else if !self.has_interim && self.was_sent_again() {
                // It has not found any in the sound that it got again, however much that was.
                let since = at.max(link.last_message);
                deadlines.push((since + FINALISE_LIMIT, Overdue::NoWords));
            } else if wire.finalise().is_some() {
                deadlines.push((at + FINALISE_LIMIT, Overdue::Finalise));
            } else if !self.has_interim {
                let since = at.max(link.last_message);
                deadlines.push((since + TURN_LIMIT, Overdue::Finalise));
            }
        }
        let limit = wire.longest_silence();
        let limit = limit.or(self.has_interim.then_some(UNFINISHED_LIMIT));
        if let Some(limit) = limit
            && link.last_sound > link.last_message
        {
            deadlines.push((link.last_message + limit, Overdue::Message));
        }
        let first = deadlines.into_iter().min_by_key(|(at, _)| *at);
        first.expect("there is the keep-alive")
    }

    /// The vendor has said about all of the speech that is waiting that there are no words in it.
    fn has_no_words(&self, link: &Link) -> bool {
        let is_past = |wanted: &Wanted| link.known_to >= wanted.range.end;
        !self.has_interim && self.waiting.first().is_some_and(is_past)
    }

    fn was_sent_again(&self) -> bool {
        let first = self.waiting.first();
        first.is_some_and(|wanted| wanted.was_sent_again)
    }

    async fn overdue(
        &mut self,
        wire: &dyn Wire,
        link: &mut Link,
        what: Overdue,
    ) -> Result<(), ProviderError> {
        let host = link.socket.host();
        match what {
            Overdue::KeepAlive => {
                link.last_sent = Instant::now();
                match wire.keep_alive() {
                    Some(message) => link.socket.send(message).await,
                    None => Ok(()),
                }
            }
            Overdue::NoWords => {
                let asked = self.waiting.iter().filter_map(|wanted| wanted.asked);
                if let Some((up_to, _)) = asked.min_by_key(|(up_to, _)| *up_to) {
                    self.settle(up_to).await;
                }
                Ok(())
            }
            Overdue::Finalise => {
                for wanted in &mut self.waiting {
                    wanted.was_sent_again = true;
                }
                Err(ProviderError::temporary(format!(
                    "{host} sends no words after the end of the speech"
                )))
            }
            Overdue::Message => Err(ProviderError::temporary(format!(
                "{host} gets sound but says nothing"
            ))),
        }
    }

    /// A vendor that decides by itself when words are final has decided about all speech that ends
    /// about where they do.
    async fn settle_decided(&mut self) {
        let settled = self.settled;
        self.waiting.retain(|wanted| wanted.range.end > settled);
        let beside = self.samples(BESIDE) as u64;
        let decided = |wanted: &&Wanted| {
            wanted.range.start < self.final_to && wanted.range.end <= self.final_to + beside
        };
        let ends = self.waiting.iter().filter(decided);
        if let Some(up_to) = ends.map(|wanted| wanted.range.end).max()
            && !self.has_interim
        {
            self.settle(up_to).await;
        }
    }

    /// All words before `up_to` are known.
    async fn settle(&mut self, up_to: u64) {
        if up_to <= self.settled {
            return;
        }
        self.settled = up_to;
        self.ring.forget_before(up_to);
        self.waiting.retain(|wanted| wanted.range.end > up_to);
        self.tell(SttEvent::Settled { up_to }).await;
    }

    async fn heard(&mut self, link: &mut Link, heard: Heard) -> Result<(), ProviderError> {
        match heard {
            Heard::SpeechStarted { at } => {
                let at = link.position(at, self.rate);
                self.tell(SttEvent::SpeechStarted { at }).await;
            }
            Heard::Interim { from, to, text } => {
                link.has_spoken = true;
                let mut range = link.range(from, to, self.rate);
                range.start = range.start.max(self.words_to.min(range.end));
                if to != UNTOLD {
                    link.known_to = link.known_to.max(range.end);
                }
                // Words of the connection before this one do not count.
                self.has_interim = !text.trim().is_empty();
                if self.has_interim {
                    self.tell(SttEvent::Interim { range, text }).await;
                }
            }
            Heard::Final(words) => {
                link.has_spoken = true;
                self.final_words(link, words).await;
            }
            Heard::EagerEndOfTurn { text, probability } => {
                let eager = Some(text);
                self.tell(SttEvent::EndOfTurn { probability, eager }).await;
            }
            Heard::TurnResumed => self.tell(SttEvent::TurnResumed).await,
            Heard::EndOfTurn { probability } => {
                let eager = None;
                self.tell(SttEvent::EndOfTurn { probability, eager }).await;
            }
            Heard::Error(error) => return Err(error),
        }
        Ok(())
    }

    async fn final_words(&mut self, link: &mut Link, words: FinalWords) {
        let FinalWords {
            from,
            to,
            text,
            confidence,
            words,
            answers_finalise,
        } = words;
        let mut range = link.range(from, to, self.rate);
        let mut up_to = range.end;
        if answers_finalise {
            // They cover everything that the vendor had got when it was asked.
            let asked = self.waiting.iter().filter_map(|wanted| wanted.asked);
            let asked = asked.map(|(sent, _)| sent).min();
            if to == UNTOLD {
                let end = asked.unwrap_or(link.finalised).min(range.end);
                range = range.start.min(end)..end;
                up_to = end;
            }
            up_to = asked.unwrap_or(0).max(up_to);
        }
        link.known_to = link.known_to.max(range.end);
        let slack = u64::from(self.rate) / 50;
        let is_known = range.end <= self.words_to + slack && self.words_to > 0;
        if !text.trim().is_empty() && !is_known {
            let place = |(text, from, to)| Word {
                text,
                range: link.range(from, to, self.rate),
            };
            let words: Vec<Word> = words.into_iter().map(place).collect();
            self.tell(SttEvent::Final {
                range: range.start.max(self.words_to.min(range.end))..range.end,
                text,
                confidence,
                words,
            })
            .await;
            self.words_to = self.words_to.max(range.end);
        }
        self.final_to = self.final_to.max(range.end);
        self.has_interim = false;
        let paid = link.sent.saturating_sub(link.unpaid);
        if paid > 0 {
            self.tell(SttEvent::Usage(Usage {
                stt_requests: u64::from(link.unpaid == link.base),
                stt_audio_ms: paid * 1_000 / u64::from(self.rate),
                ..Usage::default()
            }))
            .await;
            link.unpaid = link.sent;
        }
        self.settle(up_to).await;
    }
}

/// What can be overdue on a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Overdue {
    /// A word that keeps it open.
    KeepAlive,
    /// An answer that will not come, because there are no words.
    NoWords,
    /// An answer that should have come.
    Finalise,
    /// Any message.
    Message,
}

/// One connection.
struct Link {
    socket: Socket,
    reader: Box<dyn Reader>,
    /// Position of the connection's first sample.
    base: u64,
    /// Position after the last sample that was sent.
    sent: u64,
    /// The same when the vendor was asked last.
    finalised: u64,
    /// How far the vendor has said anything.
    known_to: u64,
    /// Position after the last sample that is counted as paid for.
    unpaid: u64,
    /// It has worked.
    has_spoken: bool,
    /// What it has to be told first.
    opening: Option<Message>,
    /// Where it wants another rate than ours.
    resampler: Option<Resampler>,
    last_sent: Instant,
    last_sound: Instant,
    last_message: Instant,
}

impl Link {
    fn position(&self, at: Duration, rate: u32) -> u64 {
        let samples = at.as_secs_f64() * f64::from(rate);
        self.base.saturating_add(samples.round() as u64)
    }

    /// Sound at the vendor's rate.
    fn resampled(&mut self, sound: Vec<i16>) -> Vec<i16> {
        let Some(resampler) = &mut self.resampler else {
            return sound;
        };
        let mut resampled = Vec::with_capacity(2 * sound.len());
        resampler.push(&sound, &mut resampled);
        resampled
    }

    /// A vendor cannot know what it was not sent.
    fn range(&self, from: Duration, to: Duration, rate: u32) -> Range<u64> {
        let end = self.position(to, rate).min(self.sent);
        self.position(from, rate).min(end)..end
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// The next answer. Pending while nothing is asked.
async fn next_answer<T>(asked: &mut Vec<(Range<u64>, BoxFuture<'static, T>)>) -> (Range<u64>, T) {
    poll_fn(|context| {
        for at in 0..asked.len() {
            if let Poll::Ready(answer) = asked[at].1.as_mut().poll(context) {
                let (range, _) = asked.swap_remove(at);
                return Poll::Ready((range, answer));
            }
        }
        Poll::Pending
    })
    .await
}

async fn next_probe<T>(probe: &mut Option<BoxFuture<'static, T>>) -> T {
    match probe {
        Some(probe) => probe.await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
#[path = "recogniser_tests.rs"]
mod tests;
