//! The offer/answer exchange (RFC 8829).
//!
//! The list of transceivers is the only source: every offer is written from it, so an offer is
//! always possible, and nothing of an exchange takes effect before its answer, so that a rollback
//! only has to forget. When an exchange is complete, [`Agreement`] says what both sides agreed on,
//! as a description of the other side that contains nothing else.

use std::ops::Range;

use super::{
    AUDIO_EXTENSIONS,
    sdp::{Codec, Direction, Kind, Sdp, Section, Setup, Transport},
};
use crate::{
    RtcError,
    peer_connection::SignalingState,
    session_description::{SdpType, SessionDescription},
};

/// Payload type that audio sections offer for Opus unless the other side has chosen another one.
/// Google's number.
const OPUS_PAYLOAD_TYPE: u8 = 111;
/// Payload type that audio sections offer for redundant audio, likewise.
const RED_PAYLOAD_TYPE: u8 = 63;
/// Used instead if the other side has 63 for Opus. Both are below 64, so that they cannot be
/// confused with RTCP (RFC 5761, section 4).
const OTHER_RED_PAYLOAD_TYPE: u8 = 62;
/// Payload type that video sections offer.
const VP8_PAYLOAD_TYPE: u8 = 96;

/// Largest data channel message that this side accepts, in bytes; that of Google's engine.
pub(crate) const MAX_MESSAGE_SIZE: u64 = 262_144;

/// The same for a side that does not announce it (RFC 8841, section 6.1).
const DEFAULT_MAX_MESSAGE_SIZE: u64 = 65_536;

/// The transport attributes in a description of this side.
#[derive(Debug, Clone)]
pub(crate) struct LocalTransport {
    pub ufrag: String,
    pub password: String,
    /// As in SDP: `sha-256 AB:CD:…`.
    pub fingerprint: String,
    /// As in SDP, without `a=`.
    pub candidates: Vec<String>,
}

/// Whether redundant audio (RFC 2198) is offered. A side that lists it before Opus wants to receive
/// it, one that lists it after Opus only accepts it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Redundancy {
    No,
    #[default]
    AfterOpus,
    BeforeOpus,
}

/// How both sides may send redundant audio in a section.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Red {
    pub payload_type: u8,
    /// Payload type of the blocks in it.
    pub opus_payload_type: u8,
    /// The other side prefers it to plain Opus.
    pub preferred: bool,
}

/// A sender and a receiver that share a section.
#[derive(Debug, Clone)]
pub(crate) struct Transceiver {
    pub kind: Kind,
    /// The direction that this side wants.
    pub direction: Direction,
    /// Set for ever by `stop` or when the other side refuses the section.
    pub stopped: bool,
    /// Set while the transceiver belongs to a section.
    pub mid: Option<String>,
    /// The direction that both sides agreed on.
    pub current_direction: Option<Direction>,
    /// Made by `add_track`, so that an offer of the other side may take it over (RFC 8829, section
    /// 5.10).
    pub may_be_taken: bool,
    /// Stream id and track id under which this side sends.
    pub msid: (String, String),
    /// SSRC with which this side sends, and its CNAME.
    pub ssrc: (u32, String),
    /// Whether this side offers redundant audio.
    pub redundancy: Redundancy,
    /// The codec that the other side wants to receive, once agreed.
    pub send_codec: Option<Codec>,
    /// What was agreed on about redundant audio.
    pub red: Option<Red>,
    /// Streams that the other side's track belongs to, while it sends.
    pub remote_streams: Vec<String>,
    /// Track id that the other side announced first.
    pub remote_track_id: Option<String>,
    /// SSRCs that the other side announced.
    pub remote_ssrcs: Vec<u32>,
}

/// What a section belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Owner {
    Transceiver(usize),
    Application,
    Nobody,
}

#[derive(Debug, Clone)]
struct Slot {
    mid: String,
    kind: Kind,
    owner: Owner,
}

impl Slot {
    /// Whether a section with another mid may replace this one: both sides know that nobody uses it
    /// (RFC 8829, section 5.2.2).
    fn is_free(&self) -> bool {
        self.owner == Owner::Nobody
    }
}

#[derive(Debug)]
enum Pending {
    Local {
        description: SessionDescription,
        sdp: Sdp,
        /// As they were before the offer.
        agreed_slots: Vec<Slot>,
        /// The other side has given a provisional answer.
        provisional: bool,
    },
    Remote {
        description: SessionDescription,
        sdp: Sdp,
        /// As they were before the offer.
        agreed_slots: Vec<Slot>,
        /// The transceivers that were made for it.
        made: Range<usize>,
        /// This side has given a provisional answer.
        provisional: bool,
    },
}

/// The result of an exchange.
#[derive(Debug)]
pub(crate) struct Agreement {
    /// The other side as an offer that contains only what was agreed on: answering it must give
    /// exactly the description of this side.
    pub remote: String,
    /// ICE credentials of this side from now on.
    pub credentials: (String, String),
    /// Transceivers in which the other side has begun to send.
    pub started_receiving: Vec<usize>,
}

/// State of the exchange.
#[derive(Debug)]
pub(crate) struct Negotiation {
    pub transceivers: Vec<Transceiver>,
    slots: Vec<Slot>,
    /// Mids of sections that were replaced. They are not used again, as statistics kept under them
    /// belong to the old section.
    retired_mids: Vec<String>,
    wants_application: bool,
    pending: Option<Pending>,
    current_local: Option<SessionDescription>,
    current_remote: Option<SessionDescription>,
    /// Whether this side starts the DTLS handshake; fixed by the first exchange.
    dtls_active: Option<bool>,
    /// Whether this side nominates candidate pairs; fixed by the first exchange.
    controlling: Option<bool>,
    extensions: Vec<(u8, String)>,
    opus_payload_type: u8,
    red_payload_type: u8,
    /// An audio section was agreed on. From then on str0m knows one payload type for redundant
    /// audio and no other.
    red_is_fixed: bool,
    session_id: u64,
    version: u64,
}

impl Negotiation {
    pub fn new(session_id: u64) -> Self {
        Self {
            transceivers: vec![],
            slots: vec![],
            retired_mids: vec![],
            wants_application: false,
            pending: None,
            current_local: None,
            current_remote: None,
            dtls_active: None,
            controlling: None,
            extensions: AUDIO_EXTENSIONS
                .iter()
                .map(|(id, uri)| (*id, (*uri).to_owned()))
                .collect(),
            opus_payload_type: OPUS_PAYLOAD_TYPE,
            red_payload_type: RED_PAYLOAD_TYPE,
            red_is_fixed: false,
            session_id,
            version: 0,
        }
    }

    pub fn state(&self) -> SignalingState {
        match &self.pending {
            None => SignalingState::Stable,
            Some(Pending::Local {
                provisional: false, ..
            }) => SignalingState::HaveLocalOffer,
            Some(Pending::Local {
                provisional: true, ..
            }) => SignalingState::HaveRemotePrAnswer,
            Some(Pending::Remote {
                provisional: false, ..
            }) => SignalingState::HaveRemoteOffer,
            Some(Pending::Remote {
                provisional: true, ..
            }) => SignalingState::HaveLocalPrAnswer,
        }
    }

    pub fn current_local(&self) -> Option<&SessionDescription> {
        self.current_local.as_ref()
    }

    pub fn current_remote(&self) -> Option<&SessionDescription> {
        self.current_remote.as_ref()
    }

    pub fn is_controlling(&self) -> bool {
        self.controlling.unwrap_or(true)
    }

    pub fn is_dtls_active(&self) -> Option<bool> {
        self.dtls_active
    }

    /// Lets the next offer have a section for data channels.
    pub fn want_application(&mut self) {
        self.wants_application = true;
    }

    /// Whether both sides have agreed on a section for data channels.
    pub fn has_application(&self) -> bool {
        let agreed = match &self.pending {
            Some(Pending::Local { agreed_slots, .. } | Pending::Remote { agreed_slots, .. }) => {
                agreed_slots
            }
            None => &self.slots,
        };
        agreed.iter().any(|slot| slot.owner == Owner::Application)
    }

    /// Largest data channel message that the other side takes, in bytes.
    pub fn max_remote_message_size(&self) -> u64 {
        let sdp = self.current_remote.as_ref();
        let sdp = sdp.and_then(|it| Sdp::parse(it.text()).ok());
        let sections = sdp.map(|it| it.sections).unwrap_or_default();
        let mut sections = sections.iter().filter(|it| it.kind == Kind::Application);
        match sections.find_map(|it| it.max_message_size) {
            Some(0) => u64::MAX,
            Some(size) => size,
            None => DEFAULT_MAX_MESSAGE_SIZE,
        }
    }

    /// Whether the remote offer that waits for its answer restarts ICE, so that the answer must do
    /// so too.
    pub fn remote_offer_restarts_ice(&self) -> bool {
        let Some(Pending::Remote { sdp, .. }) = &self.pending else {
            return false;
        };
        let before = self
            .current_remote
            .as_ref()
            .and_then(|it| Sdp::parse(it.text()).ok());
        before.is_some_and(|before| before.credentials() != sdp.credentials())
    }

    /// ICE user name fragment in a description of this side.
    pub fn ufrag_of(&self, description: &SessionDescription) -> Option<String> {
        let sdp = Sdp::parse(description.text()).ok()?;
        sdp.credentials().map(|(ufrag, _)| ufrag)
    }

    /// Mid of the first section that is used, for candidates that are announced one by one.
    pub fn first_mid(&self) -> String {
        self.slots
            .iter()
            .find(|slot| !slot.is_free())
            .or(self.slots.first())
            .map(|slot| slot.mid.clone())
            .unwrap_or_default()
    }

    /// Writes an offer of everything that the transceivers want.
    pub fn create_offer(&mut self, local: &LocalTransport) -> SessionDescription {
        let mut slots = self.slots.clone();
        let waiting = self.transceivers.iter().enumerate();
        let waiting = waiting.filter(|(_, it)| it.mid.is_none() && !it.stopped);
        for (index, transceiver) in waiting {
            let kind = transceiver.kind.clone();
            self.place(&mut slots, kind, Owner::Transceiver(index));
        }
        let has_slot = slots.iter().any(|slot| slot.owner == Owner::Application);
        if self.wants_application && !has_slot {
            self.place(&mut slots, Kind::Application, Owner::Application);
        }
        let sections = slots
            .iter()
            .map(|slot| self.offered_section(slot, local))
            .collect();
        self.describe(SdpType::Offer, sections, local)
    }

    /// Puts a new section in the first free place, or at the end. The place of a section for data
    /// stays reserved for data, as str0m cannot move it.
    fn place(&self, slots: &mut Vec<Slot>, kind: Kind, owner: Owner) {
        let is_used = |mid: &String| {
            let now = slots.iter().chain(&self.slots).map(|slot| &slot.mid);
            now.chain(&self.retired_mids).any(|used| used == mid)
        };
        let mid = (0..)
            .map(|n: u32| n.to_string())
            .find(|mid| !is_used(mid))
            .expect("there are more numbers than sections");
        let is_data = kind == Kind::Application;
        let slot = Slot { mid, kind, owner };
        let fits = |slot: &Slot| slot.is_free() && (slot.kind == Kind::Application) == is_data;
        let any = || slots.iter().position(|slot| is_data && slot.is_free());
        match slots.iter().position(fits).or_else(any) {
            Some(free) => slots[free] = slot,
            None => slots.push(slot),
        }
    }

    /// Records a section of an offer that has been set.
    fn take_place(&mut self, index: usize, section: &Section, owner: Owner) {
        let slot = Slot {
            mid: section.mid.clone(),
            kind: section.kind.clone(),
            owner,
        };
        match self.slots.get_mut(index) {
            Some(free) => *free = slot,
            None => self.slots.push(slot),
        }
    }

    /// Whether a section of an offer existed before it.
    fn is_known(&self, index: usize, section: &Section) -> bool {
        self.slots
            .get(index)
            .is_some_and(|slot| slot.mid == section.mid)
    }

    /// Writes the answer to the remote offer.
    pub fn create_answer(
        &mut self,
        local: &LocalTransport,
    ) -> Result<SessionDescription, RtcError> {
        let Some(Pending::Remote { sdp, .. }) = &self.pending else {
            return Err(RtcError::state(
                "an answer needs an offer of the other side first",
            ));
        };
        let setup = match (self.dtls_active, sdp.setup()) {
            (Some(active), _) => setup_of(active),
            (None, Some(Setup::Active)) => Setup::Passive,
            (None, _) => Setup::Active,
        };
        let sections = sdp
            .sections
            .iter()
            .zip(&self.slots)
            .map(|(offered, slot)| self.answered_section(offered, slot, setup, local))
            .collect();
        Ok(self.describe(SdpType::Answer, sections, local))
    }

    /// Makes an offer of this side the pending one. A pending offer from before is forgotten.
    ///
    /// # Errors
    ///
    /// When the other side's offer waits for an answer, or the description is not an offer of this
    /// connection.
    pub fn set_local_offer(&mut self, description: SessionDescription) -> Result<(), RtcError> {
        if matches!(self.pending, Some(Pending::Remote { .. })) {
            return Err(RtcError::state(
                "an offer cannot be set while an offer of the other side waits for its answer",
            ));
        }
        if self.is_answered_provisionally() {
            return Err(RtcError::state(
                "an offer of this side has a provisional answer and waits for its answer",
            ));
        }
        let sdp = parse(&description)?;
        self.rollback();
        self.check_order(&sdp)?;
        let agreed_slots = self.slots.clone();
        for (place, section) in sdp.sections.iter().enumerate() {
            if self.is_known(place, section) {
                continue;
            }
            let owner = match section.kind {
                // Its transceiver was stopped while an earlier offer waited.
                _ if section.refused => Owner::Nobody,
                Kind::Application => Owner::Application,
                _ => {
                    let index = self.transceivers.iter().position(|transceiver| {
                        transceiver.mid.is_none()
                            && !transceiver.stopped
                            && transceiver.kind == section.kind
                    });
                    let Some(index) = index else {
                        self.restore(agreed_slots);
                        return Err(RtcError::sdp(format!(
                            "section {} of the offer has no transceiver",
                            section.mid
                        )));
                    };
                    self.transceivers[index].mid = Some(section.mid.clone());
                    Owner::Transceiver(index)
                }
            };
            self.take_place(place, section, owner);
        }
        self.pending = Some(Pending::Local {
            description,
            sdp,
            agreed_slots,
            provisional: false,
        });
        Ok(())
    }

    /// Takes the other side's answer to the pending offer of this side.
    pub fn set_remote_answer(
        &mut self,
        description: SessionDescription,
    ) -> Result<Option<Agreement>, RtcError> {
        if !matches!(self.pending, Some(Pending::Local { .. })) {
            return Err(RtcError::state(
                "there is no offer of this side that could be answered",
            ));
        }
        // By applying the last answer again, livekit takes a pending offer back.
        if self
            .current_remote
            .as_ref()
            .is_some_and(|it| it.text() == description.text())
        {
            self.rollback();
            return Ok(None);
        }
        let remote = parse(&description)?;
        let Some(Pending::Local {
            description: local_description,
            sdp: local,
            ..
        }) = &self.pending
        else {
            return Err(RtcError::state(
                "there is no offer of this side that could be answered",
            ));
        };
        check_same_order(local, &remote)?;
        let local = (local_description.clone(), local.clone());
        // Without the attribute an answerer is the active side (RFC 8842, section 5.3).
        let dtls_active = remote.setup() == Some(Setup::Passive);
        self.complete(local, (description, remote), dtls_active, true)
            .map(Some)
    }

    /// Takes a provisional answer of the other side. Like everything before the answer itself it
    /// has no effect yet; it says that the offer has been taken, and another one or the answer
    /// replaces it (RFC 8829, section 4.1.10.1).
    pub fn set_remote_provisional_answer(
        &mut self,
        description: &SessionDescription,
    ) -> Result<(), RtcError> {
        let Some(Pending::Local {
            sdp, provisional, ..
        }) = &mut self.pending
        else {
            return Err(RtcError::state(
                "there is no offer of this side that could be answered",
            ));
        };
        check_same_order(sdp, &parse(description)?)?;
        *provisional = true;
        Ok(())
    }

    /// Gives a provisional answer of this side, to which the same applies.
    pub fn set_local_provisional_answer(
        &mut self,
        description: &SessionDescription,
    ) -> Result<(), RtcError> {
        let Some(Pending::Remote {
            sdp, provisional, ..
        }) = &mut self.pending
        else {
            return Err(RtcError::state(
                "an answer needs an offer of the other side first",
            ));
        };
        check_same_order(sdp, &parse(description)?)?;
        *provisional = true;
        Ok(())
    }

    /// Whether an offer that waits for its answer has been answered provisionally.
    fn is_answered_provisionally(&self) -> bool {
        matches!(
            self.state(),
            SignalingState::HaveLocalPrAnswer | SignalingState::HaveRemotePrAnswer
        )
    }

    /// Forgets the pending offer on the application's wish, which is not possible after a
    /// provisional answer (W3C WebRTC, section 4.4.1.5, "set a session description").
    pub fn roll_back_as_asked(&mut self) -> Result<(), RtcError> {
        if self.is_answered_provisionally() {
            return Err(RtcError::state(
                "an offer with a provisional answer cannot be rolled back",
            ));
        }
        self.rollback();
        Ok(())
    }

    /// Ends the exchange. The two roles hold from the first exchange on.
    fn complete(
        &mut self,
        (local_description, local): (SessionDescription, Sdp),
        (remote_description, remote): (SessionDescription, Sdp),
        dtls_active: bool,
        controlling: bool,
    ) -> Result<Agreement, RtcError> {
        self.dtls_active.get_or_insert(dtls_active);
        self.controlling.get_or_insert(controlling);
        let agreement = self.agree(&local, &remote)?;
        self.current_local = Some(local_description);
        self.current_remote = Some(remote_description);
        if let Some(Pending::Local { agreed_slots, .. } | Pending::Remote { agreed_slots, .. }) =
            self.pending.take()
        {
            self.retire(&agreed_slots);
        }
        Ok(agreement)
    }

    /// Takes an offer of the other side. Returns how many transceivers were made for it.
    pub fn set_remote_offer(
        &mut self,
        description: SessionDescription,
        new_transceiver: &mut dyn FnMut(Kind, Option<&str>) -> Transceiver,
    ) -> Result<usize, RtcError> {
        match &self.pending {
            Some(Pending::Local { .. }) => {
                return Err(RtcError::state(
                    "an offer of this side waits for its answer",
                ));
            }
            Some(Pending::Remote {
                provisional: true, ..
            }) => {
                return Err(RtcError::state(
                    "an offer of the other side has a provisional answer and waits for its answer",
                ));
            }
            Some(Pending::Remote { .. }) => self.rollback(),
            None => {}
        }
        let sdp = parse(&description)?;
        if sdp.sections.is_empty() || sdp.credentials().is_none() || sdp.fingerprint().is_none() {
            return Err(RtcError::sdp(
                "an offer needs sections, ICE credentials and a fingerprint",
            ));
        }
        self.check_order(&sdp)?;
        let agreed_slots = self.slots.clone();
        let before = self.transceivers.len();
        for (place, section) in sdp.sections.iter().enumerate() {
            if self.is_known(place, section) {
                continue;
            }
            let has_data = self.slots.iter().any(|it| it.owner == Owner::Application);
            let owner = match &section.kind {
                _ if section.refused => Owner::Nobody,
                Kind::Other(_) => Owner::Nobody,
                // There is one SCTP association.
                Kind::Application if has_data => Owner::Nobody,
                Kind::Application => Owner::Application,
                kind => {
                    let known = self.transceivers.iter().position(|transceiver| {
                        transceiver.may_be_taken
                            && transceiver.mid.is_none()
                            && !transceiver.stopped
                            && transceiver.kind == *kind
                    });
                    let index = known.unwrap_or_else(|| {
                        let track_id = section.msid.first().map(|(_, track)| track.as_str());
                        let track_id = track_id.filter(|track| !track.is_empty());
                        self.transceivers
                            .push(new_transceiver(kind.clone(), track_id));
                        self.transceivers.len() - 1
                    });
                    self.transceivers[index].mid = Some(section.mid.clone());
                    Owner::Transceiver(index)
                }
            };
            self.take_place(place, section, owner);
        }
        self.learn_numbers(&sdp);
        self.pending = Some(Pending::Remote {
            description,
            sdp,
            agreed_slots,
            made: before..self.transceivers.len(),
            provisional: false,
        });
        Ok(self.transceivers.len() - before)
    }

    /// Makes the answer of this side valid, which completes the exchange.
    pub fn set_local_answer(
        &mut self,
        description: SessionDescription,
    ) -> Result<Agreement, RtcError> {
        let local = parse(&description)?;
        let Some(Pending::Remote {
            description: remote_description,
            sdp: remote,
            ..
        }) = &self.pending
        else {
            return Err(RtcError::state(
                "an answer needs an offer of the other side first",
            ));
        };
        if local.sections.len() != remote.sections.len() {
            return Err(RtcError::sdp(
                "the answer has not as many sections as the offer",
            ));
        }
        let remote = (remote_description.clone(), remote.clone());
        let dtls_active = local.setup() == Some(Setup::Active);
        let controlling = remote.1.ice_lite;
        self.complete((description, local), remote, dtls_active, controlling)
    }

    /// Forgets a pending offer of either side.
    pub fn rollback(&mut self) {
        match self.pending.take() {
            None => {}
            Some(Pending::Local { agreed_slots, .. }) => self.restore(agreed_slots),
            Some(Pending::Remote {
                agreed_slots, made, ..
            }) => {
                self.restore(agreed_slots);
                // Nobody but that offer has asked for them (RFC 8829, section 4.1.10.2).
                for transceiver in &mut self.transceivers[made] {
                    transceiver.stopped = true;
                }
            }
        }
    }

    /// Undoes the effect of an offer on the sections.
    fn restore(&mut self, agreed_slots: Vec<Slot>) {
        for slot in std::mem::replace(&mut self.slots, agreed_slots) {
            let stays = self.slots.iter().any(|kept| kept.owner == slot.owner);
            if let (Owner::Transceiver(index), false) = (slot.owner, stays) {
                self.transceivers[index].mid = None;
            }
        }
    }

    /// Removes the sections that others have replaced. Their transceivers then have no section.
    fn retire(&mut self, agreed_slots: &[Slot]) {
        for (before, now) in agreed_slots.iter().zip(&self.slots) {
            if before.mid == now.mid {
                continue;
            }
            self.retired_mids.push(before.mid.clone());
            for (index, transceiver) in self.transceivers.iter_mut().enumerate() {
                let owner = Owner::Transceiver(index);
                // The other side may have given the mid to another section at once.
                let owns_one = self.slots.iter().any(|slot| slot.owner == owner);
                if transceiver.mid.as_ref() == Some(&before.mid) && !owns_one {
                    transceiver.mid = None;
                }
            }
        }
    }

    /// Checks that sections neither move nor vanish; one that nobody uses may be replaced (RFC
    /// 8829, section 5.2.2).
    fn check_order(&self, sdp: &Sdp) -> Result<(), RtcError> {
        let in_order = sdp.sections.len() >= self.slots.len()
            && self
                .slots
                .iter()
                .zip(&sdp.sections)
                .all(|(slot, section)| slot.mid == section.mid || slot.is_free());
        if in_order {
            Ok(())
        } else {
            Err(RtcError::sdp(
                "the order of m-lines in the offer differs from the order before",
            ))
        }
    }

    /// Takes payload types and extension ids from the other side's offer, which decides them.
    fn learn_numbers(&mut self, offer: &Sdp) {
        for section in &offer.sections {
            if let Some(opus) = section.codecs.iter().find(|codec| codec.is("opus")) {
                self.opus_payload_type = opus.payload_type;
                if !self.red_is_fixed {
                    self.red_payload_type = match section.red_for(opus.payload_type) {
                        Some(red) => red.payload_type,
                        None if opus.payload_type == RED_PAYLOAD_TYPE => OTHER_RED_PAYLOAD_TYPE,
                        None => RED_PAYLOAD_TYPE,
                    };
                }
            }
            for (id, uri) in &section.extensions {
                if let Some(known) = self.extensions.iter_mut().find(|(_, known)| known == uri) {
                    known.0 = *id;
                }
            }
        }
    }

    fn describe(
        &mut self,
        sdp_type: SdpType,
        mut sections: Vec<Section>,
        local: &LocalTransport,
    ) -> SessionDescription {
        if let Some(first) = sections.iter_mut().find(|section| !section.refused) {
            first.transport.candidates = local.candidates.clone();
        }
        self.version += 1;
        let sdp = Sdp {
            ice_lite: false,
            transport: Transport::default(),
            sections,
        };
        SessionDescription::from_checked(sdp_type, sdp.to_text(self.session_id, self.version))
    }

    fn local_section(&self, slot: &Slot, setup: Setup, local: &LocalTransport) -> Section {
        let mut section = Section::new(slot.kind.clone(), &slot.mid);
        section.transport = Transport {
            ufrag: Some(local.ufrag.clone()),
            password: Some(local.password.clone()),
            fingerprint: Some(local.fingerprint.clone()),
            setup: Some(setup),
            candidates: vec![],
        };
        section
    }

    fn offered_section(&self, slot: &Slot, local: &LocalTransport) -> Section {
        let mut section = self.local_section(slot, Setup::ActPass, local);
        match slot.owner {
            Owner::Nobody => return section.refusal(),
            Owner::Application => section.max_message_size = Some(MAX_MESSAGE_SIZE),
            Owner::Transceiver(index) => {
                let transceiver = &self.transceivers[index];
                section.codecs = match slot.kind {
                    Kind::Audio => {
                        self.audio_codecs(self.opus_payload_type, transceiver.redundancy)
                    }
                    _ => vec![vp8(VP8_PAYLOAD_TYPE)],
                };
                section.extensions = self.extensions_of(&slot.kind);
                section.direction = transceiver.direction;
                if transceiver.stopped {
                    return section.refusal();
                }
                add_sending(&mut section, transceiver);
            }
        }
        section
    }

    fn answered_section(
        &self,
        offered: &Section,
        slot: &Slot,
        setup: Setup,
        local: &LocalTransport,
    ) -> Section {
        if offered.refused {
            return offered.refusal();
        }
        let mut section = self.local_section(slot, setup, local);
        section.protocol = offered.protocol.clone();
        match slot.owner {
            Owner::Nobody => return offered.refusal(),
            Owner::Application => section.max_message_size = Some(MAX_MESSAGE_SIZE),
            Owner::Transceiver(index) => {
                let transceiver = &self.transceivers[index];
                let codec = usable_codec(offered);
                let (Some(codec), false) = (codec, transceiver.stopped) else {
                    return offered.refusal();
                };
                section.codecs = match slot.kind {
                    Kind::Audio => {
                        let opus = codec.payload_type;
                        let red = offered
                            .red_for(opus)
                            .map(|red| red.payload_type)
                            .filter(|red| *red == self.red_payload_type);
                        // Without a preference of this side the order stays as it is.
                        let redundancy = match (red, transceiver.redundancy) {
                            (None, _) => Redundancy::No,
                            (Some(red), Redundancy::AfterOpus) if offered.prefers(red, opus) => {
                                Redundancy::BeforeOpus
                            }
                            (Some(_), wanted) => wanted,
                        };
                        self.audio_codecs(opus, redundancy)
                    }
                    _ => vec![vp8(codec.payload_type)],
                };
                let known = self.extensions_of(&slot.kind);
                section.extensions = offered
                    .extensions
                    .iter()
                    .filter(|(_, uri)| known.iter().any(|(_, known)| known == uri))
                    .cloned()
                    .collect();
                section.direction = transceiver.direction.and(offered.direction.reversed());
                add_sending(&mut section, transceiver);
            }
        }
        section
    }

    fn audio_codecs(&self, opus_payload_type: u8, redundancy: Redundancy) -> Vec<Codec> {
        let opus = opus(opus_payload_type);
        let red = red(self.red_payload_type, opus_payload_type);
        match redundancy {
            Redundancy::No => vec![opus],
            Redundancy::AfterOpus => vec![opus, red],
            Redundancy::BeforeOpus => vec![red, opus],
        }
    }

    fn extensions_of(&self, kind: &Kind) -> Vec<(u8, String)> {
        let is_audio = *kind == Kind::Audio;
        let audio_only = AUDIO_EXTENSIONS[0].1;
        self.extensions
            .iter()
            .filter(|(_, uri)| is_audio || uri != audio_only)
            .cloned()
            .collect()
    }

    /// Puts what two descriptions have in common into effect.
    fn agree(&mut self, local: &Sdp, remote: &Sdp) -> Result<Agreement, RtcError> {
        let missing =
            |what| RtcError::sdp(format!("the description of the other side has no {what}"));
        let (ufrag, password) = remote
            .credentials()
            .ok_or_else(|| missing("ICE credentials"))?;
        let fingerprint = remote.fingerprint().ok_or_else(|| missing("fingerprint"))?;
        let credentials = local
            .credentials()
            .ok_or_else(|| RtcError::sdp("the description of this side has no ICE credentials"))?;
        let active = self.dtls_active == Some(true);
        let transport = Transport {
            ufrag: Some(ufrag),
            password: Some(password),
            fingerprint: Some(fingerprint),
            setup: Some(setup_of(!active)),
            candidates: vec![],
        };
        let red_payload_type = self.red_payload_type;
        let mut started_receiving = Vec::new();
        let mut sections = Vec::new();
        for (index, (ours, theirs)) in local.sections.iter().zip(&remote.sections).enumerate() {
            let refused = ours.refused || theirs.refused;
            let mut agreed = Section::new(self.slots[index].kind.clone(), &theirs.mid);
            agreed.transport = transport.clone();
            match self.slots[index].owner {
                Owner::Nobody => {}
                Owner::Application if refused => self.slots[index].owner = Owner::Nobody,
                Owner::Application => agreed.max_message_size = theirs.max_message_size,
                Owner::Transceiver(which) => {
                    let transceiver = &mut self.transceivers[which];
                    let received_before = transceiver
                        .current_direction
                        .is_some_and(|direction| direction.receive);
                    let codec = usable_codec(theirs).filter(|_| !refused);
                    let direction = match &codec {
                        Some(_) => ours.direction.and(theirs.direction.reversed()),
                        None => Direction::INACTIVE,
                    };
                    transceiver.current_direction = Some(direction);
                    transceiver.send_codec = codec.clone().filter(|_| direction.send);
                    transceiver.red = codec.as_ref().and_then(|codec| {
                        let opus_payload_type = codec.payload_type;
                        let red = theirs.red_for(opus_payload_type)?.payload_type;
                        let both = red == red_payload_type
                            && ours.codecs.iter().any(|codec| codec.is("red"));
                        both.then(|| Red {
                            payload_type: red,
                            opus_payload_type,
                            preferred: theirs.prefers(red, opus_payload_type),
                        })
                    });
                    if refused {
                        transceiver.stopped = true;
                        transceiver.current_direction = None;
                        self.slots[index].owner = Owner::Nobody;
                    }
                    transceiver.remote_streams.clear();
                    transceiver.remote_ssrcs.clear();
                    if direction.receive {
                        transceiver.remote_ssrcs =
                            theirs.ssrcs.iter().map(|(ssrc, _)| *ssrc).collect();
                        let streams = theirs.msid.iter().filter(|(stream, _)| stream != "-");
                        transceiver.remote_streams =
                            streams.map(|(stream, _)| stream.clone()).collect();
                        if transceiver.remote_track_id.is_none() {
                            transceiver.remote_track_id =
                                theirs.msid.first().map(|(_, track)| track.clone());
                        }
                        agreed.ssrcs = theirs.ssrcs.clone();
                        if !received_before {
                            started_receiving.push(which);
                        }
                    }
                    agreed.direction = direction.reversed();
                    agreed.codecs = codec.into_iter().collect();
                    if agreed.kind == Kind::Audio
                        && let Some(opus) = agreed.codecs.first()
                    {
                        // str0m enables redundant audio with the first section or never.
                        self.red_is_fixed = true;
                        agreed.codecs.push(red(red_payload_type, opus.payload_type));
                    }
                    for codec in &mut agreed.codecs {
                        codec.feedback.retain(|feedback| feedback == "transport-cc");
                    }
                    agreed.extensions = theirs
                        .extensions
                        .iter()
                        .filter(|(_, uri)| ours.extensions.iter().any(|(_, known)| known == uri))
                        .cloned()
                        .collect();
                }
            }
            if self.slots[index].owner == Owner::Nobody {
                // Unknown kinds cannot be expressed; a refused audio section keeps the numbering. A
                // refused section for data is replaced too: str0m would remember its place and a
                // default for the size of messages.
                let kind = match &agreed.kind {
                    Kind::Other(_) | Kind::Application => Kind::Audio,
                    kind => kind.clone(),
                };
                agreed = Section::new(kind, &theirs.mid).refusal();
            }
            sections.push(agreed);
        }
        if let Some(first) = sections.iter_mut().find(|section| !section.refused) {
            first.transport.candidates = remote.candidates().map(str::to_owned).collect();
        }
        // str0m takes the controlling role when an offer says that its writer is ICE lite.
        let remote = Sdp {
            ice_lite: self.is_controlling(),
            transport: Transport::default(),
            sections,
        };
        Ok(Agreement {
            remote: remote.to_text(1, self.version),
            credentials,
            started_receiving,
        })
    }
}

/// Checks that an answer has the sections of its offer in their order (RFC 8829, section 5.3.1).
fn check_same_order(offer: &Sdp, answer: &Sdp) -> Result<(), RtcError> {
    let same = offer.sections.len() == answer.sections.len()
        && offer
            .sections
            .iter()
            .zip(&answer.sections)
            .all(|(a, b)| a.mid == b.mid);
    if same {
        Ok(())
    } else {
        Err(RtcError::sdp(
            "the order of m-lines in the answer does not match the order in the offer",
        ))
    }
}

fn parse(description: &SessionDescription) -> Result<Sdp, RtcError> {
    Sdp::parse(description.text()).map_err(|error| RtcError::sdp(error.to_string()))
}

fn setup_of(active: bool) -> Setup {
    if active {
        Setup::Active
    } else {
        Setup::Passive
    }
}

fn add_sending(section: &mut Section, transceiver: &Transceiver) {
    if section.direction.send {
        section.msid = vec![transceiver.msid.clone()];
        section.ssrcs = vec![transceiver.ssrc.clone()];
    }
}

/// The codec of a section that this engine can work with.
fn usable_codec(section: &Section) -> Option<Codec> {
    let name = match section.kind {
        Kind::Audio => "opus",
        Kind::Video => "VP8",
        _ => return None,
    };
    section.codecs.iter().find(|codec| codec.is(name)).cloned()
}

fn opus(payload_type: u8) -> Codec {
    Codec {
        payload_type,
        name: "opus".to_owned(),
        clock_rate: 48_000,
        channels: Some(2),
        parameters: "minptime=10;useinbandfec=1".to_owned(),
        feedback: vec!["transport-cc".to_owned()],
    }
}

fn red(payload_type: u8, opus_payload_type: u8) -> Codec {
    Codec {
        payload_type,
        name: "red".to_owned(),
        clock_rate: 48_000,
        channels: Some(2),
        parameters: format!("{opus_payload_type}/{opus_payload_type}"),
        feedback: vec![],
    }
}

/// Offered for receiving, so that servers which insist on a video section get one; nothing is
/// decoded.
fn vp8(payload_type: u8) -> Codec {
    Codec {
        payload_type,
        name: "VP8".to_owned(),
        clock_rate: 90_000,
        channels: None,
        parameters: String::new(),
        feedback: vec!["transport-cc".to_owned()],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn local(name: &str) -> LocalTransport {
        LocalTransport {
            ufrag: format!("user-{name}"),
            password: "a-password-that-is-long-enough".to_owned(),
            fingerprint: "sha-256 AA:BB".to_owned(),
            candidates: vec![],
        }
    }

    fn transceiver(kind: Kind, direction: Direction, stream: &str) -> Transceiver {
        Transceiver {
            kind,
            direction,
            stopped: false,
            mid: None,
            current_direction: None,
            may_be_taken: false,
            msid: (stream.to_owned(), "track".to_owned()),
            ssrc: (77, "cname".to_owned()),
            redundancy: Redundancy::default(),
            send_codec: None,
            red: None,
            remote_streams: vec![],
            remote_track_id: None,
            remote_ssrcs: vec![],
        }
    }

    fn made(kind: Kind, _track: Option<&str>) -> Transceiver {
        transceiver(kind, Direction::RECV_ONLY, "-")
    }

    fn directions(negotiation: &Negotiation) -> Vec<Option<Direction>> {
        negotiation
            .transceivers
            .iter()
            .map(|it| it.current_direction)
            .collect()
    }

    /// `from` offers, `to` answers.
    fn exchange(from: &mut Negotiation, to: &mut Negotiation) -> (Agreement, Agreement) {
        let offer = from.create_offer(&local("from"));
        from.set_local_offer(offer.clone()).expect("our own offer");
        to.set_remote_offer(offer, &mut made).expect("a good offer");
        let answer = to.create_answer(&local("to")).expect("there is an offer");
        let theirs = to.set_local_answer(answer.clone()).expect("our own answer");
        let ours = from
            .set_remote_answer(answer)
            .expect("a good answer")
            .expect("a new one");
        (ours, theirs)
    }

    #[test]
    fn slots_to_receive_are_filled_by_a_later_answer() {
        let (mut client, mut server) = (Negotiation::new(1), Negotiation::new(2));
        client.want_application();
        for kind in [Kind::Audio, Kind::Audio, Kind::Video] {
            client
                .transceivers
                .push(transceiver(kind, Direction::RECV_ONLY, "-"));
        }
        exchange(&mut client, &mut server);
        assert_eq!(directions(&client), [Some(Direction::INACTIVE); 3]);
        assert!(client.has_application() && server.has_application());

        server.transceivers[1].direction = Direction::new(true, false);
        server.transceivers[1].msid.0 = "PA_1|TR_1".to_owned();
        let (ours, _) = exchange(&mut client, &mut server);
        assert_eq!(ours.started_receiving, [1]);
        assert_eq!(client.transceivers[1].remote_streams, ["PA_1|TR_1"]);
        assert_eq!(client.transceivers[1].remote_ssrcs, [77]);

        server.transceivers[1].direction = Direction::INACTIVE;
        let (ours, _) = exchange(&mut client, &mut server);
        assert!(ours.started_receiving.is_empty());
        assert!(client.transceivers[1].remote_streams.is_empty());
    }

    #[test]
    fn an_answer_never_sends_more_than_this_side_wants() {
        let (mut client, mut server) = (Negotiation::new(1), Negotiation::new(2));
        server
            .transceivers
            .push(transceiver(Kind::Audio, Direction::SEND_RECV, "PA_1|TR_1"));
        let (_, agreement) = exchange(&mut server, &mut client);
        assert_eq!(directions(&client), [Some(Direction::RECV_ONLY)]);
        let told = Sdp::parse(&agreement.remote).expect("our own text");
        assert_eq!(told.sections[0].direction, Direction::new(true, false));
    }

    #[test]
    fn redundant_audio_is_sent_where_the_other_side_lists_it_first() {
        use Redundancy::{AfterOpus, BeforeOpus, No};
        let preferred = |preferred| {
            Some(Red {
                payload_type: 63,
                opus_payload_type: 111,
                preferred,
            })
        };
        // What the offerer and the answerer want, and what each has agreed on.
        for (offerer, answerer, ours, theirs) in [
            (AfterOpus, AfterOpus, preferred(false), preferred(false)),
            (BeforeOpus, AfterOpus, preferred(true), preferred(true)),
            (AfterOpus, BeforeOpus, preferred(true), preferred(false)),
            (No, BeforeOpus, None, None),
            (BeforeOpus, No, None, None),
        ] {
            let (mut client, mut server) = (Negotiation::new(1), Negotiation::new(2));
            for (negotiation, redundancy) in [(&mut client, offerer), (&mut server, answerer)] {
                negotiation.transceivers.push(Transceiver {
                    redundancy,
                    may_be_taken: true,
                    ..transceiver(Kind::Audio, Direction::SEND_RECV, "stream")
                });
            }
            let (agreement, _) = exchange(&mut client, &mut server);
            let agreed = (client.transceivers[0].red, server.transceivers[0].red);
            assert_eq!(agreed, (ours, theirs), "{offerer:?} {answerer:?}");
            // str0m would never enable it later if the first section had none.
            let told = Sdp::parse(&agreement.remote).expect("our own text");
            assert!(told.sections[0].red_for(111).is_some());
        }
    }

    #[test]
    fn redundant_audio_has_the_number_that_the_other_side_offers() {
        let offer = |opus: u8, red: &str| {
            let mut server = Negotiation::new(2);
            let direction = Direction::SEND_RECV;
            let audio = transceiver(Kind::Audio, direction, "stream");
            server.transceivers.push(audio);
            let text = server.create_offer(&local("server")).text().to_owned();
            let text = text
                .replace("SAVPF 111 63", &format!("SAVPF 99 {opus}"))
                .replace("a=rtpmap:111", &format!("a=rtpmap:{opus}"))
                .replace("a=rtpmap:63 red/48000/2\r\na=fmtp:63 111/111", red);
            SessionDescription::from_checked(SdpType::Offer, text)
        };
        let first = "a=rtpmap:99 red/48000/2\r\na=fmtp:99 109/109";
        let foreign = "a=rtpmap:99 red/48000/2\r\na=fmtp:99 109/126";
        let none = "a=rtpmap:99 PCMU/8000";
        for (opus, lines, expected) in [
            (109, first, Some((99, true))),
            (109, foreign, None),
            (109, none, None),
            (63, none, None),
        ] {
            let mut client = Negotiation::new(1);
            client
                .set_remote_offer(offer(opus, lines), &mut made)
                .expect("a good offer");
            let answer = client.create_answer(&local("client")).expect("an answer");
            let agreement = client.set_local_answer(answer).expect("our own answer");
            let agreed = client.transceivers[0].red;
            let agreed = agreed.map(|red| (red.payload_type, red.preferred));
            assert_eq!(agreed, expected, "{lines}");
            let told = Sdp::parse(&agreement.remote).expect("our own text");
            let numbers: Vec<_> = told.sections[0]
                .codecs
                .iter()
                .map(|it| it.payload_type)
                .collect();
            assert_eq!(numbers[0], opus);
            assert_ne!(numbers[0], numbers[1]);
        }
    }

    #[test]
    fn a_forgotten_offer_leaves_no_trace() {
        let (mut client, mut server) = (Negotiation::new(1), Negotiation::new(2));
        client.want_application();
        exchange(&mut client, &mut server);
        client
            .transceivers
            .push(transceiver(Kind::Audio, Direction::SEND_RECV, "mine"));
        let offer = client.create_offer(&local("from"));
        client
            .set_local_offer(offer.clone())
            .expect("our own offer");
        assert_eq!(client.state(), SignalingState::HaveLocalOffer);
        assert_eq!(client.transceivers[0].mid.as_deref(), Some("1"));
        let last = client.current_remote().expect("agreed before").clone();
        assert!(client.set_remote_answer(last).expect("known").is_none());
        assert_eq!(client.state(), SignalingState::Stable);
        assert_eq!(client.transceivers[0].mid, None);
        let again = client.create_offer(&local("from"));
        let sections = |offer: &SessionDescription| {
            let sdp = Sdp::parse(offer.text()).expect("our own text");
            sdp.sections
                .iter()
                .map(|it| (it.mid.clone(), it.direction))
                .collect::<Vec<_>>()
        };
        assert_eq!(sections(&again), sections(&offer));
    }

    #[test]
    fn refused_sections_stop_their_transceiver_and_keep_their_place() {
        let (mut client, mut server) = (Negotiation::new(1), Negotiation::new(2));
        client
            .transceivers
            .push(transceiver(Kind::Audio, Direction::SEND_RECV, "one"));
        client
            .transceivers
            .push(transceiver(Kind::Audio, Direction::SEND_RECV, "two"));
        exchange(&mut client, &mut server);
        server.transceivers[0].stopped = true;
        let (agreement, _) = exchange(&mut client, &mut server);
        assert!(client.transceivers[0].stopped);
        assert_eq!(client.transceivers[0].current_direction, None);
        let told = Sdp::parse(&agreement.remote).expect("our own text");
        let refused: Vec<_> = told
            .sections
            .iter()
            .map(|section| section.refused)
            .collect();
        assert_eq!(refused, [true, false]);
        assert_eq!(
            client.first_mid(),
            "1",
            "candidates belong to a section that is used"
        );
    }

    fn mids(negotiation: &Negotiation) -> Vec<&str> {
        let slots = negotiation.slots.iter();
        slots.map(|slot| slot.mid.as_str()).collect()
    }

    #[test]
    fn a_new_section_takes_the_place_of_a_refused_one() {
        let (mut client, mut server) = (Negotiation::new(1), Negotiation::new(2));
        for stream in ["one", "two"] {
            client
                .transceivers
                .push(transceiver(Kind::Audio, Direction::SEND_RECV, stream));
        }
        exchange(&mut client, &mut server);
        client.transceivers[0].stopped = true;
        exchange(&mut client, &mut server);
        assert_eq!(mids(&client), ["0", "1"]);

        client
            .transceivers
            .push(transceiver(Kind::Video, Direction::SEND_RECV, "three"));
        let offer = client.create_offer(&local("from"));
        client
            .set_local_offer(offer.clone())
            .expect("our own offer");
        server
            .set_remote_offer(offer, &mut made)
            .expect("a good offer");
        assert_eq!(
            (mids(&client), mids(&server)),
            (vec!["2", "1"], vec!["2", "1"])
        );
        // It can be taken back.
        client.rollback();
        server.rollback();
        assert_eq!(
            (mids(&client), mids(&server)),
            (vec!["0", "1"], vec!["0", "1"])
        );
        assert_eq!(client.transceivers[2].mid, None);
        assert_eq!(client.transceivers[0].mid.as_deref(), Some("0"));

        exchange(&mut client, &mut server);
        assert_eq!(mids(&client), ["2", "1"]);
        assert_eq!(client.slots[0].kind, Kind::Video);
        assert_eq!(
            client.transceivers[0].mid, None,
            "it has no section any more"
        );
        let agreed: Vec<_> = directions(&client).iter().map(Option::is_some).collect();
        assert_eq!(agreed, [false, true, true]);

        // Statistics under a mid do not belong to another section.
        client.transceivers[2].stopped = true;
        exchange(&mut client, &mut server);
        client.want_application();
        exchange(&mut client, &mut server);
        assert_eq!(mids(&server), ["3", "1"]);
        assert!(server.has_application());
    }

    #[test]
    fn of_two_sections_for_data_the_second_is_refused() {
        let (mut client, mut server) = (Negotiation::new(1), Negotiation::new(2));
        client.want_application();
        let offer = client.create_offer(&local("from"));
        let start = offer.text().find("m=application").expect("data is wanted");
        let again = offer.text()[start..].replace("a=mid:0", "a=mid:1");
        let text = offer.text().replace("BUNDLE 0", "BUNDLE 0 1") + &again;
        let offer = SessionDescription::from_checked(SdpType::Offer, text);
        server
            .set_remote_offer(offer, &mut made)
            .expect("a good offer");
        let answer = server.create_answer(&local("to")).expect("an offer");
        let refused = |text: &str| {
            let sections = Sdp::parse(text).expect("our own text").sections;
            sections.iter().map(|it| it.refused).collect::<Vec<_>>()
        };
        assert_eq!(refused(answer.text()), [false, true]);
        let agreement = server.set_local_answer(answer).expect("our own answer");
        assert_eq!(refused(&agreement.remote), [false, true]);
        assert!(server.has_application());
    }

    #[test]
    fn a_mid_that_moves_to_another_section_belongs_to_that_one_alone() {
        let (mut client, mut server) = (Negotiation::new(1), Negotiation::new(2));
        client
            .transceivers
            .push(transceiver(Kind::Audio, Direction::SEND_RECV, "one"));
        client.want_application();
        exchange(&mut client, &mut server);
        client.transceivers[0].stopped = true;
        exchange(&mut client, &mut server);
        for stream in ["two", "three"] {
            client
                .transceivers
                .push(transceiver(Kind::Audio, Direction::SEND_RECV, stream));
        }
        let offer = client.create_offer(&local("from"));
        let text = offer.text().replace(" 2 1 3", " 2 1 0");
        let text = text.replace("a=mid:3", "a=mid:0");
        let offer = SessionDescription::from_checked(SdpType::Offer, text);
        let transceivers = |negotiation: &Negotiation| {
            let all = negotiation.transceivers.iter();
            all.map(|it| it.mid.clone()).collect::<Vec<_>>()
        };
        let mid = |mid: &str| Some(mid.to_owned());
        for answers in [false, true] {
            server
                .set_remote_offer(offer.clone(), &mut made)
                .expect("a good offer");
            if answers {
                let answer = server.create_answer(&local("to")).expect("an offer");
                server.set_local_answer(answer).expect("our own answer");
                let expected = [None, None, None, mid("2"), mid("0")];
                assert_eq!(transceivers(&server), expected);
            } else {
                server.rollback();
                assert_eq!(transceivers(&server), [mid("0"), None, None]);
            }
        }
    }

    #[test]
    fn a_transceiver_that_is_stopped_while_its_offer_waits_leaves_the_next_one_its_section() {
        let (mut client, mut server) = (Negotiation::new(1), Negotiation::new(2));
        client
            .transceivers
            .push(transceiver(Kind::Audio, Direction::SEND_RECV, "one"));
        let offer = client.create_offer(&local("from"));
        client.set_local_offer(offer).expect("our own offer");
        client.transceivers[0].stopped = true;
        client
            .transceivers
            .push(transceiver(Kind::Audio, Direction::SEND_RECV, "two"));
        exchange(&mut client, &mut server);
        assert!(client.transceivers[1].current_direction.is_some());
        assert_eq!(client.transceivers[0].mid, None);
    }

    #[test]
    fn what_an_offer_asked_for_is_gone_when_the_offer_is_taken_back() {
        let (mut client, mut server) = (Negotiation::new(1), Negotiation::new(2));
        client
            .transceivers
            .push(transceiver(Kind::Audio, Direction::SEND_RECV, "one"));
        let offer = client.create_offer(&local("from"));
        server
            .set_remote_offer(offer, &mut made)
            .expect("a good offer");
        server.roll_back_as_asked().expect("an offer waits");
        let offer = server.create_offer(&local("to"));
        let sdp = Sdp::parse(offer.text()).expect("our own text");
        assert!(sdp.sections.is_empty(), "{}", offer.text());
    }

    #[test]
    fn numbers_of_the_other_side_are_used_from_its_offer_on() {
        let mut client = Negotiation::new(1);
        let offer = "v=0\r\no=- 1 1 IN IP4 0.0.0.0\r\ns=-\r\nt=0 0\r\na=group:BUNDLE x\r\n\
            m=audio 9 UDP/TLS/RTP/SAVPF 0 96\r\na=mid:x\r\na=ice-ufrag:u\r\na=ice-pwd:p\r\n\
            a=fingerprint:sha-256 AA\r\na=setup:actpass\r\na=sendrecv\r\na=rtpmap:0 PCMU/8000\r\n\
            a=rtpmap:96 opus/48000/2\r\na=extmap:9 urn:ietf:params:rtp-hdrext:sdes:mid\r\n";
        let offer = SessionDescription::parse(offer, SdpType::Offer).expect("well formed");
        client
            .set_remote_offer(offer, &mut made)
            .expect("a good offer");
        let answer = client
            .create_answer(&local("to"))
            .expect("there is an offer");
        let sdp = Sdp::parse(answer.text()).expect("our own text");
        assert_eq!(sdp.sections[0].codecs.len(), 1);
        assert_eq!(sdp.sections[0].codecs[0].payload_type, 96);
        assert_eq!(
            sdp.sections[0].extensions,
            [(9, "urn:ietf:params:rtp-hdrext:sdes:mid".into())]
        );
        assert_eq!(sdp.setup(), Some(Setup::Active));
    }

    #[test]
    fn what_does_not_fit_is_an_error_and_changes_nothing() {
        let (mut client, mut server) = (Negotiation::new(1), Negotiation::new(2));
        client.want_application();
        assert!(client.create_answer(&local("x")).is_err());
        exchange(&mut client, &mut server);
        let stray = server.current_local().expect("answered").clone();
        assert!(
            client.set_remote_answer(stray.clone()).is_err(),
            "nothing was offered"
        );
        client
            .transceivers
            .push(transceiver(Kind::Audio, Direction::SEND_RECV, "mine"));
        let offer = client.create_offer(&local("from"));
        client
            .set_local_offer(offer.clone())
            .expect("our own offer");
        let short = SessionDescription::from_checked(
            SdpType::Answer,
            stray.text().replace("s=-", "s=other"),
        );
        assert!(
            client.set_remote_answer(short).is_err(),
            "a section is missing"
        );
        assert_eq!(client.state(), SignalingState::HaveLocalOffer);
        server
            .set_remote_offer(offer, &mut made)
            .expect("a good offer");
        let answer = server
            .create_answer(&local("to"))
            .expect("there is an offer");
        server
            .set_local_answer(answer.clone())
            .expect("our own answer");
        assert!(
            client
                .set_remote_answer(answer)
                .expect("a good answer")
                .is_some()
        );
    }

    #[test]
    fn a_provisional_answer_waits_for_the_answer_and_holds_both_sides_to_it() {
        let (mut caller, mut callee) = (Negotiation::new(1), Negotiation::new(2));
        caller.transceivers.push(transceiver(
            Kind::Audio,
            Direction::new(true, true),
            "stream",
        ));
        let offer = caller.create_offer(&local("caller"));
        caller
            .set_remote_provisional_answer(&offer)
            .expect_err("nothing has been offered");
        callee
            .set_local_provisional_answer(&offer)
            .expect_err("nothing has been offered");
        caller
            .set_local_offer(offer.clone())
            .expect("our own offer");
        callee
            .set_remote_offer(offer.clone(), &mut made)
            .expect("a good offer");
        let answer = callee
            .create_answer(&local("callee"))
            .expect("there is an offer");
        callee
            .set_local_provisional_answer(&answer)
            .expect("our own answer");
        caller
            .set_remote_provisional_answer(&answer)
            .expect("a good answer");
        assert_eq!(callee.state(), SignalingState::HaveLocalPrAnswer);
        assert_eq!(caller.state(), SignalingState::HaveRemotePrAnswer);
        assert_eq!(caller.transceivers[0].current_direction, None);
        for side in [&mut caller, &mut callee] {
            side.roll_back_as_asked()
                .expect_err("a provisional answer cannot be taken back");
        }
        let another = caller.create_offer(&local("caller"));
        caller
            .set_local_offer(another)
            .expect_err("the offer that is out waits for its answer");
        callee
            .set_remote_offer(offer, &mut made)
            .expect_err("the offer that came waits for its answer");
        callee
            .set_local_answer(answer.clone())
            .expect("our own answer");
        caller.set_remote_answer(answer).expect("a good answer");
        assert_eq!(callee.state(), SignalingState::Stable);
        assert_eq!(caller.state(), SignalingState::Stable);
        assert!(caller.transceivers[0].current_direction.is_some());
    }

    #[derive(Debug, Clone, Copy)]
    enum Action {
        Add {
            side: usize,
            video: bool,
            direction: Direction,
        },
        Want {
            side: usize,
            which: usize,
            direction: Direction,
        },
        Stop {
            side: usize,
            which: usize,
        },
        Data {
            side: usize,
        },
        Exchange {
            from: usize,
        },
        OfferAndForget {
            from: usize,
        },
        RefuseToAnswer {
            from: usize,
        },
        /// The answer follows so many provisional ones.
        ProvisionalExchange {
            from: usize,
            times: usize,
        },
        /// Both offer at once; one rolls back (RFC 8829, section 4.1.10.2).
        Glare {
            polite: usize,
        },
        /// New ICE credentials in offer and answer.
        RestartIce {
            from: usize,
        },
        /// A transceiver is stopped, and after that another one takes its section.
        Reuse {
            side: usize,
            which: usize,
            video: bool,
        },
    }

    fn action() -> impl proptest::strategy::Strategy<Value = Action> {
        use proptest::prelude::*;
        let direction = || {
            (any::<bool>(), any::<bool>()).prop_map(|(send, receive)| Direction::new(send, receive))
        };
        prop_oneof![
            (0..2usize, any::<bool>(), direction()).prop_map(|(side, video, direction)| {
                Action::Add {
                    side,
                    video,
                    direction,
                }
            }),
            (0..2usize, 0..8usize, direction()).prop_map(|(side, which, direction)| Action::Want {
                side,
                which,
                direction
            }),
            (0..2usize, 0..8usize).prop_map(|(side, which)| Action::Stop { side, which }),
            (0..2usize).prop_map(|side| Action::Data { side }),
            (0..2usize).prop_map(|from| Action::Exchange { from }),
            (0..2usize).prop_map(|from| Action::OfferAndForget { from }),
            (0..2usize).prop_map(|from| Action::RefuseToAnswer { from }),
            (0..2usize, 1..4usize)
                .prop_map(|(from, times)| Action::ProvisionalExchange { from, times }),
            (0..2usize).prop_map(|polite| Action::Glare { polite }),
            (0..2usize).prop_map(|from| Action::RestartIce { from }),
            (0..2usize, 0..8usize, any::<bool>()).prop_map(|(side, which, video)| Action::Reuse {
                side,
                which,
                video
            }),
        ]
    }

    fn take(sides: &mut [Negotiation; 2], step: Action) {
        match step {
            Action::Add {
                side,
                video,
                direction,
            } => {
                let kind = if video { Kind::Video } else { Kind::Audio };
                let mut added = transceiver(kind, direction, "stream");
                added.may_be_taken = direction.send;
                sides[side].transceivers.push(added);
            }
            Action::Want {
                side,
                which,
                direction,
            } => {
                if let Some(known) = sides[side].transceivers.get_mut(which) {
                    known.direction = direction;
                }
            }
            Action::Stop { side, which } => {
                if let Some(known) = sides[side].transceivers.get_mut(which) {
                    known.stopped = true;
                }
            }
            Action::Data { side } => sides[side].want_application(),
            Action::Exchange { from } => exchange_from(sides, from),
            Action::ProvisionalExchange { from, times } => {
                negotiate(sides, from, times, ("from", "to"));
            }
            Action::Glare { polite } => {
                let offer = sides[polite].create_offer(&local("polite"));
                sides[polite].set_local_offer(offer).expect("our own offer");
                let offer = sides[1 - polite].create_offer(&local("from"));
                let ours = &mut sides[polite];
                if has_transport(&offer) {
                    ours.set_remote_offer(offer, &mut made)
                        .expect_err("both have offered");
                }
                ours.roll_back_as_asked().expect("an offer is pending");
                exchange_from(sides, 1 - polite);
            }
            Action::RestartIce { from } => {
                negotiate(sides, from, 0, ("restarted from", "restarted to"));
            }
            Action::Reuse { side, which, video } => {
                exchange_from(sides, side);
                take(sides, Action::Stop { side, which });
                exchange_from(sides, side);
                let free = sides[side].slots.iter().filter(|it| it.is_free()).count();
                let sections = sides[side].slots.len();
                let add = Action::Add {
                    side,
                    video,
                    direction: Direction::SEND_RECV,
                };
                take(sides, add);
                exchange_from(sides, side);
                // Where nothing could be agreed on, nothing has changed.
                let expected = match free {
                    0 => sections + 1,
                    _ => sections,
                };
                let now = sides[side].slots.len();
                assert!(now <= expected, "{now} sections instead of {expected}");
            }
            Action::OfferAndForget { from } => {
                let offer = sides[from].create_offer(&local("from"));
                sides[from].set_local_offer(offer).expect("our own offer");
                sides[from].rollback();
            }
            Action::RefuseToAnswer { from } => {
                let offer = sides[from].create_offer(&local("from"));
                if Sdp::parse(offer.text())
                    .expect("our own text")
                    .sections
                    .is_empty()
                {
                    return;
                }
                if Sdp::parse(offer.text())
                    .expect("our own text")
                    .credentials()
                    .is_none()
                {
                    return;
                }
                let to = &mut sides[1 - from];
                to.set_remote_offer(offer, &mut made).expect("a good offer");
                to.rollback();
            }
        }
    }

    /// Without a section that both may use there is no transport either.
    fn has_transport(description: &SessionDescription) -> bool {
        let sdp = Sdp::parse(description.text()).expect("our own text");
        sdp.credentials().is_some()
    }

    fn exchange_from(sides: &mut [Negotiation; 2], from: usize) {
        negotiate(sides, from, 0, ("from", "to"));
    }

    /// An exchange with so many provisional answers before the answer, unless there is nothing to
    /// agree on.
    fn negotiate(
        sides: &mut [Negotiation; 2],
        from: usize,
        provisional: usize,
        (offerer, answerer): (&str, &str),
    ) {
        let offer = sides[from].create_offer(&local(offerer));
        if !has_transport(&offer) {
            return;
        }
        let [a, b] = sides;
        let (from, to) = if from == 0 { (a, b) } else { (b, a) };
        from.set_local_offer(offer.clone()).expect("our own offer");
        to.set_remote_offer(offer, &mut made).expect("a good offer");
        let answer = to
            .create_answer(&local(answerer))
            .expect("there is an offer");
        if !has_transport(&answer) {
            from.rollback();
            to.rollback();
            return;
        }
        for _ in 0..provisional {
            to.set_local_provisional_answer(&answer)
                .expect("our own answer");
            from.set_remote_provisional_answer(&answer)
                .expect("a good answer");
            assert_eq!(to.state(), SignalingState::HaveLocalPrAnswer);
            assert_eq!(from.state(), SignalingState::HaveRemotePrAnswer);
        }
        to.set_local_answer(answer.clone()).expect("our own answer");
        from.set_remote_answer(answer).expect("a good answer");
    }

    proptest::proptest! {
        #[test]
        fn any_order_of_steps_ends_in_agreement(steps in proptest::collection::vec(action(), 0..40)) {
            let mut sides = [Negotiation::new(1), Negotiation::new(2)];
            for step in steps {
                take(&mut sides, step);
            }
            // Both sides can use data, so that the last exchange certainly takes place.
            sides[0].want_application();
            sides[1].want_application();
            exchange_from(&mut sides, 0);
            let by_mid = |side: &Negotiation| {
                side.slots
                    .iter()
                    .map(|slot| {
                        let direction = match slot.owner {
                            Owner::Transceiver(index) => side.transceivers[index].current_direction,
                            Owner::Application | Owner::Nobody => None,
                        };
                        (slot.mid.clone(), slot.kind.clone(), direction)
                    })
                    .collect::<Vec<_>>()
            };
            let (ours, theirs) = (by_mid(&sides[0]), by_mid(&sides[1]));
            let mirrored: Vec<_> = theirs
                .into_iter()
                .map(|(mid, kind, direction)| (mid, kind, direction.map(Direction::reversed)))
                .collect();
            proptest::prop_assert_eq!(ours, mirrored);
            proptest::prop_assert_eq!(sides[0].state(), SignalingState::Stable);
            proptest::prop_assert_eq!(sides[1].state(), SignalingState::Stable);
        }
    }
}
