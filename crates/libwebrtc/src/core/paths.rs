//! ICE as far as str0m leaves it to us: which candidates are offered, which path is in use, and how
//! long each has been silent.
//!
//! str0m runs the connectivity checks and picks the path. [`Paths`] watches what it sends, makes it
//! repeat checks when a path goes silent, and measures the silences from which the connection's
//! state follows. Whatever needs str0m gets it as an argument.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use str0m::{
    Candidate, CandidateKind, Rtc,
    net::{Protocol, Transmit},
};

use crate::{
    ice::stun, peer_connection::IceGatheringState, peer_connection_factory::IceTransportsType,
};

/// A connection on which nothing arrives for so long is disconnected. Connectivity checks are
/// answered every second even when nothing else is sent; Google's engine shows a lost path after
/// about the same time.
const DISCONNECTED_AFTER_SILENCE: Duration = Duration::from_secs(5);
/// A connection none of whose checks has been answered for so long is disconnected, even when
/// packets arrive: the other side may not want them any more (RFC 7675 allows 30 s).
const DISCONNECTED_WITHOUT_CONSENT: Duration = Duration::from_secs(5);
/// Time between two steps of ICE (an answer, or a check) while it is fast. RFC 8445, section 14.2,
/// wants 5 ms or more; left alone, str0m takes one each 50 ms, and most of the time to connect to a
/// host nearby would be waiting.
const FAST_PACE: Duration = Duration::from_millis(5);
/// How long ICE stays fast after it has learned of new candidates.
const FAST_FOR: Duration = Duration::from_millis(500);
/// A path on which nothing arrives for so long is left for another one that works, if there is one.
/// Google's receiving time-out.
pub(super) const SWITCH_AFTER_SILENCE: Duration = Duration::from_millis(2500);
/// A candidate that received something less than this ago works. Less than
/// [`SWITCH_AFTER_SILENCE`]: its last packet may have come just before the path in use went silent,
/// and both may have failed together.
const FRESH_PROOF: Duration = Duration::from_millis(1250);
/// Relays are allocated when no direct path has come up in this time: longer than a connection to
/// the other side of the world takes. A relay that is not needed costs the server an allocation and
/// this side a check each second.
pub(super) const RELAYS_AFTER_START: Duration = Duration::from_millis(400);
/// Relays are allocated when the path has been silent for so long; checks are answered every
/// second.
const RELAYS_AFTER_SILENCE: Duration = Duration::from_millis(1500);

/// A candidate of this side that str0m has accepted.
struct LocalCandidate {
    candidate: Candidate,
    /// As in SDP; `None` for one that is not announced (see [`Candidates::add`]).
    text: Option<String>,
    /// When the last packet came to it.
    received: Option<Instant>,
}

impl LocalCandidate {
    /// Whether this candidate is the local end of a path.
    fn is_at(&self, path: Path) -> bool {
        self.candidate.addr() == path.local && self.candidate.proto() == path.protocol
    }

    /// Whether a packet has come to it within [`FRESH_PROOF`].
    fn works(&self, now: Instant) -> bool {
        self.received.is_some_and(|at| now < at + FRESH_PROOF)
    }
}

/// A pair of addresses between which packets travel.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Path {
    pub protocol: Protocol,
    pub local: SocketAddr,
    pub remote: SocketAddr,
}

impl Path {
    fn of(transmit: &Transmit) -> Self {
        Self {
            protocol: transmit.proto,
            local: transmit.source,
            remote: transmit.destination,
        }
    }
}

/// The candidates of this side, and how far gathering them has come.
struct Candidates {
    policy: IceTransportsType,
    /// Sockets of this side, whether the policy lets them be candidates or not.
    sockets: Vec<Candidate>,
    accepted: Vec<LocalCandidate>,
    gathering: IceGatheringState,
    /// ICE user name fragment for which candidates were gathered last, and when that began.
    gathered_for: Option<(String, Instant)>,
}

impl Candidates {
    fn is_allowed(&self, kind: CandidateKind) -> bool {
        match self.policy {
            IceTransportsType::All => true,
            IceTransportsType::NoHost => kind != CandidateKind::Host,
            IceTransportsType::Relay => kind == CandidateKind::Relayed,
        }
    }

    /// Gives str0m a candidate. Returns its text if it is now to be announced: candidates over TCP
    /// are not, because this side only opens connections and the other side cannot do anything with
    /// their address (RFC 6544, section 4.1).
    fn add(&mut self, rtc: &mut Rtc, candidate: Candidate) -> Option<String> {
        let known = self.accepted.iter().any(|it| it.candidate == candidate);
        if known || !self.is_allowed(candidate.kind()) {
            return None;
        }
        // str0m refuses a candidate that is redundant (RFC 8445, section 5.1.3).
        let added = rtc.add_local_candidate(candidate.clone())?;
        let text = (candidate.proto() == Protocol::Udp).then(|| {
            let text = added.to_sdp_string();
            // The credentials change with every restart of ICE, the candidates do not.
            text.split(" ufrag ").next().unwrap_or(&text).to_owned()
        });
        let announced = text.clone().filter(|_| self.gathered_for.is_some());
        self.accepted.push(LocalCandidate {
            candidate,
            text,
            received: None,
        });
        announced
    }
}

/// The paths that this side has nominated in its connectivity checks.
#[derive(Default)]
struct Nomination {
    /// Path nominated by the last USE-CANDIDATE check.
    latest: Option<Path>,
    /// Paths nominated before that str0m has not forgotten yet.
    superseded: Vec<Path>,
}

/// Since when what has been silent.
struct SilenceClocks {
    /// When the last packet came, on whatever path.
    received: Instant,
    /// When the last packet came on the path in use.
    path_received: Instant,
    /// Whether other paths have been checked since then because of the silence.
    path_doubted: bool,
    /// Since when ICE has no confirmed pair of candidates, although it had one.
    unconfirmed_since: Option<Instant>,
}

impl SilenceClocks {
    fn restart_path(&mut self, now: Instant) {
        self.path_received = now;
        self.path_doubted = false;
    }
}

/// Candidates of this side and the path that packets take. See the module's documentation.
pub(super) struct Paths {
    candidates: Candidates,
    /// Where everything but connectivity checks goes.
    current: Option<Path>,
    nomination: Nomination,
    clocks: SilenceClocks,
    /// Whether ICE has found a path since the beginning or the last failure.
    pub had_path: bool,
    /// The current path went through a relay that is gone.
    pub relay_gone: bool,
    /// Every pair of candidates has failed: all are to be checked again.
    recheck: bool,
    /// ICE takes its steps faster until then.
    fast_until: Instant,
}

impl Paths {
    pub fn new(now: Instant) -> Self {
        Self {
            candidates: Candidates {
                policy: IceTransportsType::All,
                sockets: vec![],
                accepted: vec![],
                gathering: IceGatheringState::New,
                gathered_for: None,
            },
            current: None,
            nomination: Nomination::default(),
            clocks: SilenceClocks {
                received: now,
                path_received: now,
                path_doubted: false,
                unconfirmed_since: None,
            },
            had_path: false,
            relay_gone: false,
            recheck: false,
            fast_until: now,
        }
    }

    // ---- candidates ----

    /// Decides which candidates may be used. Returns the texts of those to announce.
    pub fn set_policy(&mut self, rtc: &mut Rtc, policy: IceTransportsType) -> Vec<String> {
        let candidates = &mut self.candidates;
        if candidates.policy == policy {
            return vec![];
        }
        candidates.policy = policy;
        for candidate in std::mem::take(&mut candidates.accepted) {
            match candidates.is_allowed(candidate.candidate.kind()) {
                true => candidates.accepted.push(candidate),
                false => {
                    rtc.direct_api().invalidate_candidate(&candidate.candidate);
                }
            }
        }
        let sockets = candidates.sockets.clone();
        let added = sockets.into_iter();
        added.filter_map(|it| candidates.add(rtc, it)).collect()
    }

    /// Adds a socket, which stays known when the policy does not allow it now. Returns the text to
    /// announce.
    pub fn add_socket(&mut self, rtc: &mut Rtc, candidate: Candidate) -> Option<String> {
        self.candidates.sockets.push(candidate.clone());
        self.candidates.add(rtc, candidate)
    }

    /// Adds an address that a STUN or TURN server has given. Returns the text to announce.
    pub fn add_candidate(&mut self, rtc: &mut Rtc, candidate: Candidate) -> Option<String> {
        self.candidates.add(rtc, candidate)
    }

    /// Removes all candidates at an address, and those that send from it.
    pub fn remove_local(&mut self, rtc: &mut Rtc, address: SocketAddr) {
        let candidates = &mut self.candidates;
        candidates.sockets.retain(|it| it.addr() != address);
        let (gone, kept) = std::mem::take(&mut candidates.accepted)
            .into_iter()
            .partition(|it| it.candidate.addr() == address || it.candidate.local() == address);
        candidates.accepted = kept;
        for LocalCandidate { candidate, .. } in gone {
            rtc.direct_api().invalidate_candidate(&candidate);
        }
    }

    /// Notes that the server of a relay is gone. If the current path went through it, every other
    /// path that does not provably work is checked again.
    pub fn relay_lost(&mut self, rtc: &mut Rtc, now: Instant, address: SocketAddr) {
        if self.current.is_some_and(|path| path.local == address) {
            self.relay_gone = true;
            self.recheck_some(rtc, |it| it.candidate.addr() != address && !it.works(now));
        }
    }

    /// How a local address became a candidate, for statistics.
    pub fn kind_of_local(&self, address: SocketAddr) -> Option<CandidateKind> {
        let mut accepted = self.candidates.accepted.iter();
        let found = accepted.find(|it| it.candidate.addr() == address)?;
        Some(found.candidate.kind())
    }

    /// The candidates as SDP has them.
    pub fn candidate_texts(&self) -> impl Iterator<Item = &String> {
        let accepted = self.candidates.accepted.iter();
        accepted.filter_map(|it| it.text.as_ref())
    }

    // ---- gathering ----

    pub fn gathering(&self) -> IceGatheringState {
        self.candidates.gathering
    }

    /// Begins to gather candidates for a user name fragment, with the first description of this
    /// side and again with every restart of ICE. `None` if that has begun before, otherwise whether
    /// this is the first time.
    pub fn begin_gathering(&mut self, now: Instant, ufrag: Option<String>) -> Option<bool> {
        let before = self.candidates.gathered_for.as_ref();
        let ufrag = ufrag.filter(|ufrag| before.map(|(it, _)| it) != Some(ufrag))?;
        let is_first = before.is_none();
        self.candidates.gathered_for = Some((ufrag, now));
        self.candidates.gathering = IceGatheringState::Gathering;
        Some(is_first)
    }

    /// Ends gathering. Returns whether it had not ended before.
    pub fn end_gathering(&mut self) -> bool {
        let before = std::mem::replace(&mut self.candidates.gathering, IceGatheringState::Complete);
        before != IceGatheringState::Complete
    }

    /// When relays are to be allocated, unless a path is found or a packet comes before.
    pub fn relays_wanted_at(&self) -> Option<Instant> {
        let (_, gathering_since) = self.candidates.gathered_for.as_ref()?;
        Some(match self.candidates.policy {
            IceTransportsType::Relay | IceTransportsType::NoHost => *gathering_since,
            IceTransportsType::All => match self.had_path {
                false => *gathering_since + RELAYS_AFTER_START,
                true => self.clocks.path_received + RELAYS_AFTER_SILENCE,
            },
        })
    }

    /// Makes ICE fast for [`FAST_FOR`], because there are new candidates.
    pub fn hurry(&mut self, now: Instant) {
        self.fast_until = now + FAST_FOR;
    }

    /// When ICE is to take its next step if it is still looking for a path and fast.
    pub fn next_fast_step(&self, now: Instant) -> Option<Instant> {
        (now < self.fast_until).then_some(now + FAST_PACE)
    }

    // ---- what goes in and out ----

    /// Notes a packet of a known kind from the other side.
    pub fn received(&mut self, now: Instant, path: Path) {
        self.clocks.received = now;
        if self.current == Some(path) {
            self.clocks.restart_path(now);
        }
        let mut accepted = self.candidates.accepted.iter_mut();
        if let Some(candidate) = accepted.find(|it| it.is_at(path)) {
            candidate.received = Some(now);
        }
    }

    /// Notes which path a check nominates. str0m goes on nominating all earlier ones with every
    /// check, and a server that speaks ICE lite then sends its packets over another one each second
    /// for a while.
    pub fn note_nomination(&mut self, transmit: &Transmit) {
        if !stun::nominates(&transmit.contents) {
            return;
        }
        let path = Path::of(transmit);
        if let Some(before) = self.nomination.latest.replace(path)
            && before.local != path.local
        {
            self.nomination.superseded.push(before);
        }
    }

    /// Notes the path of a packet that is no connectivity check: that is the one ICE has chosen.
    pub fn note_sent(&mut self, now: Instant, transmit: &Transmit) {
        let path = Path::of(transmit);
        if self.current != Some(path) {
            log::debug!(
                "packets go from {} to {} ({})",
                path.local,
                path.remote,
                path.protocol
            );
            self.current = Some(path);
            self.clocks.restart_path(now);
        }
    }

    // ---- how ICE fares ----

    /// Notes whether ICE has a confirmed pair of candidates.
    pub fn note_confirmed(&mut self, now: Instant, confirmed: bool) {
        if confirmed {
            if !std::mem::replace(&mut self.had_path, true) {
                (self.clocks.received, self.clocks.path_received) = (now, now);
            }
            self.clocks.unconfirmed_since = None;
            self.relay_gone = false;
        } else if self.had_path {
            self.clocks.unconfirmed_since.get_or_insert(now);
        }
    }

    /// Notes whether every pair of candidates has failed.
    pub fn note_all_failed(&mut self, all_failed: bool) {
        self.recheck = all_failed && !self.relay_gone;
    }

    /// When the connection is disconnected if nothing more comes; `None` before there was a path.
    pub fn lost_at(&self) -> Option<Instant> {
        self.had_path.then(|| {
            let silent_from = self.clocks.received + DISCONNECTED_AFTER_SILENCE;
            match self.clocks.unconfirmed_since {
                Some(since) => silent_from.min(since + DISCONNECTED_WITHOUT_CONSENT),
                None => silent_from,
            }
        })
    }

    /// Notes a restart of ICE; with `begins_anew`, of a connection that is treated as if it never
    /// had a path.
    pub fn restarted(&mut self, begins_anew: bool) {
        self.clocks.unconfirmed_since = None;
        if begins_anew {
            self.had_path = false;
            self.relay_gone = false;
        }
    }

    // ---- other paths ----

    /// Makes str0m forget that a path was nominated, by checking its pairs again from the start.
    pub fn withdraw_nomination(&mut self, rtc: &mut Rtc, path: Path) {
        self.recheck_some(rtc, |it| it.is_at(path));
    }

    /// Takes the paths whose nomination is to be withdrawn: those that begin at another socket than
    /// the path nominated after them.
    pub fn take_superseded(&mut self) -> Vec<Path> {
        std::mem::take(&mut self.nomination.superseded)
    }

    /// Checks all pairs of candidates again if all have failed. Returns whether str0m has something
    /// to do.
    pub fn recheck_all_failed(&mut self, rtc: &mut Rtc, failed: bool) -> bool {
        let wanted = std::mem::take(&mut self.recheck) && self.had_path && !failed;
        if wanted {
            self.recheck_some(rtc, |_| true);
        }
        wanted
    }

    /// When the current path will have been silent for too long; `None` if it has been already and
    /// other paths have been checked.
    pub fn doubted_at(&self) -> Option<Instant> {
        (self.current.is_some() && !self.clocks.path_doubted)
            .then_some(self.clocks.path_received + SWITCH_AFTER_SILENCE)
    }

    /// Makes str0m leave the current path, which has been silent for too long, for one that works.
    ///
    /// What broke this path may have broken others too, and they would be tried one after another,
    /// each for as long as this one. So all candidates that do not provably work are checked again.
    pub fn leave_current(&mut self, rtc: &mut Rtc, now: Instant) {
        let Some(path) = self.current else { return };
        log::debug!("nothing has come from {} for a while", path.remote);
        self.clocks.path_doubted = true;
        self.recheck_some(rtc, |it| it.is_at(path) || !it.works(now));
    }

    /// Checks the pairs of some candidates again from the beginning, not nominated; meanwhile str0m
    /// uses others that work.
    fn recheck_some(&self, rtc: &mut Rtc, which: impl Fn(&LocalCandidate) -> bool) {
        for it in self.candidates.accepted.iter().filter(|it| which(it)) {
            if rtc.direct_api().invalidate_candidate(&it.candidate) {
                rtc.add_local_candidate(it.candidate.clone());
            }
        }
    }

    /// Local address of the current path.
    #[cfg(test)]
    pub fn current_local(&self) -> Option<SocketAddr> {
        self.current.map(|path| path.local)
    }
}
