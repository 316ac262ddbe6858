//! `livekit.SIP`, simulated: telephone calls without a telephone network.
//!
//! `CreateSIPParticipant` puts a participant of kind SIP into the room. Its `sip.callStatus` goes
//! from `dialing` over `ringing` to `active`; then it publishes silence. `TransferSIPParticipant`
//! ends that call as a successful transfer does. Dispatch rules are kept and listed, but no call
//! comes in. There are no trunks, no numbers are resolved, nothing is dialled, DTMF is not played,
//! and all waiting is much shorter than in reality; everything else of the service is refused as
//! unimplemented.
//!
//! The number decides what happens to a call: one that ends in `0000` and a SIP status of three
//! digits fails with it (`+15550000486` is busy, `+15550000603` declines, `+15550000503` has a
//! broken trunk), and `0000408` rings until the ringing time-out. `0001` in place of `0000` fails
//! before it rings, as a trunk does that knows the number or refuses us (`+15550001404`). Every
//! other number answers. The same holds for the number that a call is transferred to.

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use livekit_protocol as proto;
use parking_lot::Mutex;
use proto::participant_info::Kind;
use proto::{DisconnectReason, SipStatusCode};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, MissedTickBehavior, sleep, timeout};

use crate::ids;
use crate::room::{Inbox, JoinSpec, MediaPacket, Redundancy, Room, ToPeer};
use crate::rooms::{ParticipantChange, RoomOptions};
use crate::server::Server;
use crate::token::Claims;
use crate::twirp::{Call, Code, TwirpError};

/// From dialling to ringing, and from ringing to an answer. Long enough that an observer sees every
/// state, short enough for tests.
const DIALING: Duration = Duration::from_millis(100);
const RINGING: Duration = Duration::from_millis(200);
/// How long an unanswered call rings unless the request says otherwise.
const DEFAULT_RINGING_TIMEOUT: Duration = Duration::from_secs(30);
/// The longest call (`max_call_duration` of the real service).
const DEFAULT_MAX_CALL: Duration = Duration::from_secs(24 * 3600);
/// One packet of sound.
const PACKET_INTERVAL: Duration = Duration::from_millis(20);
const PACKET_SAMPLES: u32 = 960;
/// 20 ms of silence in Opus: a CELT frame without content.
const SILENCE: [u8; 3] = [0xf8, 0xff, 0xfe];
const CONTROL_CAPACITY: usize = crate::room::INBOX_CAPACITY;
const MEDIA_CAPACITY: usize = crate::room::MEDIA_CAPACITY;

const CALL_STATUS: &str = "sip.callStatus";
const CALL_ID: &str = "sip.callID";

/// What a number does when it is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Script {
    Answers,
    RingsOn,
    Fails(SipStatusCode),
    FailsUnrung(SipStatusCode),
}

impl Script {
    fn of(number: &str) -> Self {
        let digits: Vec<u8> = number.bytes().filter(u8::is_ascii_digit).collect();
        let Some((rest, code)) = digits.split_last_chunk::<3>() else {
            return Script::Answers;
        };
        let rings = rest.ends_with(b"0000");
        if !rings && !rest.ends_with(b"0001") {
            return Script::Answers;
        }
        let code = code
            .iter()
            .fold(0, |code, digit| code * 10 + i32::from(digit - b'0'));
        match SipStatusCode::try_from(code) {
            Ok(SipStatusCode::SipStatusRequestTimeout) if rings => Script::RingsOn,
            Ok(status) if code >= 400 && rings => Script::Fails(status),
            Ok(status) if code >= 400 => Script::FailsUnrung(status),
            _ => Script::Answers,
        }
    }
}

/// All telephone calls. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Sip {
    shared: Arc<Shared>,
}

struct Shared {
    server: Server,
    /// The calls in progress by their ids, each with the channel for requests to transfer it.
    calls: Mutex<HashMap<String, mpsc::Sender<Transfer>>>,
    rules: Mutex<Vec<proto::SipDispatchRuleInfo>>,
}

struct Transfer {
    script: Script,
    ringing_timeout: Duration,
    done: oneshot::Sender<Result<(), SipStatusCode>>,
}

/// Handles one call; `None` if the service has no such method.
pub(crate) async fn serve(sip: &Sip, method: &str, call: Call) -> Option<axum::response::Response> {
    let response = match method {
        "CreateSIPParticipant" => {
            call.serve(async |claims, request| sip.create_participant(claims, request).await)
                .await
        }
        "TransferSIPParticipant" => {
            call.serve(async |claims, request| sip.transfer_participant(claims, &request).await)
                .await
        }
        "CreateSIPDispatchRule" => {
            call.serve(async |claims, request| sip.create_rule(claims, request))
                .await
        }
        "ListSIPDispatchRule" => {
            call.serve(async |claims, request| sip.list_rules(claims, &request))
                .await
        }
        _ => return None,
    };
    Some(response)
}

impl Sip {
    pub fn new(server: Server) -> Self {
        Self {
            shared: Arc::new(Shared {
                server,
                calls: Mutex::default(),
                rules: Mutex::default(),
            }),
        }
    }

    fn create_rule(
        &self,
        claims: &Claims,
        request: proto::CreateSipDispatchRuleRequest,
    ) -> Result<proto::SipDispatchRuleInfo, TwirpError> {
        claims.require_sip_admin()?;
        let rule = request
            .dispatch_rule
            .filter(|info| info.rule.as_ref().is_some_and(|rule| rule.rule.is_some()))
            .ok_or_else(|| TwirpError::invalid("missing rule"))?;
        let rule = proto::SipDispatchRuleInfo {
            sip_dispatch_rule_id: ids::new_id(ids::SIP_DISPATCH_RULE),
            ..rule
        };
        self.shared.rules.lock().push(rule.clone());
        Ok(rule)
    }

    fn list_rules(
        &self,
        claims: &Claims,
        _request: &proto::ListSipDispatchRuleRequest,
    ) -> Result<proto::ListSipDispatchRuleResponse, TwirpError> {
        claims.require_sip_admin()?;
        Ok(proto::ListSipDispatchRuleResponse {
            items: self.shared.rules.lock().clone(),
        })
    }

    async fn create_participant(
        &self,
        claims: &Claims,
        request: proto::CreateSipParticipantRequest,
    ) -> Result<proto::SipParticipantInfo, TwirpError> {
        claims.require_sip_call()?;
        if request.sip_trunk_id.is_empty()
            && request.trunk.is_none()
            && request.sip_number.is_empty()
        {
            return Err(TwirpError::invalid("missing sip trunk id and sip number"));
        }
        if request.sip_call_to.is_empty() {
            return Err(TwirpError::invalid("missing sip callee number"));
        }
        if request.sip_call_to.contains('@') {
            return Err(TwirpError::invalid(
                "SipCallTo should be a phone number or SIP user, not a full SIP URI",
            ));
        }
        if request.room_name.is_empty() {
            return Err(TwirpError::invalid("missing room name"));
        }

        let call_id = ids::new_id(ids::SIP_CALL);
        let script = Script::of(&request.sip_call_to);
        let ringing_timeout =
            duration(request.ringing_timeout.as_ref()).unwrap_or(DEFAULT_RINGING_TIMEOUT);
        let max_call = duration(request.max_call_duration.as_ref()).unwrap_or(DEFAULT_MAX_CALL);
        let wait_until_answered = request.wait_until_answered;
        let (control, control_inbox) = mpsc::channel(CONTROL_CAPACITY);
        let (media, media_inbox) = mpsc::channel(MEDIA_CAPACITY);
        let room = self
            .shared
            .server
            .rooms()
            .open(&request.room_name, RoomOptions::default());
        let joined = room.join(participant(request, &call_id, Inbox { control, media }))?;
        let info = proto::SipParticipantInfo {
            participant_id: joined.participant.sid.clone(),
            participant_identity: joined.participant.identity.clone(),
            room_name: room.name().to_owned(),
            sip_call_id: call_id.clone(),
        };
        room.set_active(&joined.participant.sid);

        let (transfers, transfer_inbox) = mpsc::channel(1);
        self.shared.calls.lock().insert(call_id.clone(), transfers);
        let (answered, answer) = oneshot::channel();
        let call = PhoneCall {
            server: self.shared.server.clone(),
            room,
            identity: joined.participant.identity,
            sid: joined.participant.sid,
            control: control_inbox,
            media: media_inbox,
            transfers: transfer_inbox,
        };
        let (sip, stop) = (self.clone(), self.shared.server.stop().clone());
        self.shared.server.tasks().spawn(async move {
            stop.run_until_cancelled(call.run(script, ringing_timeout, max_call, answered))
                .await;
            sip.shared.calls.lock().remove(&call_id);
        });
        if !wait_until_answered {
            return Ok(info);
        }
        match answer.await {
            Ok(Ok(())) => Ok(info),
            Ok(Err(status)) => Err(sip_error(status)),
            Err(_) => Err(TwirpError::new(
                Code::Aborted,
                "the call was ended before it was answered",
            )),
        }
    }

    async fn transfer_participant(
        &self,
        claims: &Claims,
        request: &proto::TransferSipParticipantRequest,
    ) -> Result<pbjson_types::Empty, TwirpError> {
        if request.room_name.is_empty() {
            return Err(TwirpError::invalid("Missing room name"));
        }
        if request.participant_identity.is_empty() {
            return Err(TwirpError::invalid("Missing participant identity"));
        }
        claims.require_sip_call()?;
        claims.require_room_admin(&request.room_name)?;
        let target = request
            .transfer_to
            .trim_start_matches('<')
            .trim_end_matches('>');
        if !["tel:", "sip:", "sips:"]
            .iter()
            .any(|scheme| target.starts_with(scheme))
        {
            return Err(TwirpError::invalid(
                "transfer_to must be a valid SIP(s) or TEL URI (sip:, sips: or tel:)",
            ));
        }
        let participant = self
            .shared
            .server
            .rooms()
            .participant(&request.room_name, &request.participant_identity)?;
        let no_session = || TwirpError::invalid("no SIP session associated with participant");
        let call_id = participant.attributes.get(CALL_ID).ok_or_else(no_session)?;
        let transfers = self
            .shared
            .calls
            .lock()
            .get(call_id)
            .cloned()
            .ok_or_else(no_session)?;
        let (done, outcome) = oneshot::channel();
        let transfer = Transfer {
            // The user part is the number.
            script: Script::of(target.split('@').next().unwrap_or_default()),
            ringing_timeout: duration(request.ringing_timeout.as_ref())
                .unwrap_or(DEFAULT_RINGING_TIMEOUT),
            done,
        };
        let gone = || TwirpError::new(Code::Aborted, "the call ended before it was transferred");
        transfers.send(transfer).await.map_err(|_| gone())?;
        match outcome.await.map_err(|_| gone())? {
            Ok(()) => Ok(pbjson_types::Empty {}),
            Err(status) => Err(sip_error(status)),
        }
    }
}

/// The participant that joins for a call.
fn participant(
    request: proto::CreateSipParticipantRequest,
    call_id: &str,
    inbox: Inbox,
) -> JoinSpec {
    let number = request.sip_call_to;
    let or_number = |text: String, prefix: &str| {
        if text.is_empty() {
            format!("{prefix}{number}")
        } else {
            text
        }
    };
    let mut attributes = request.participant_attributes;
    attributes.insert(CALL_ID.into(), call_id.to_owned());
    attributes.insert(CALL_STATUS.into(), "dialing".into());
    if !request.sip_trunk_id.is_empty() {
        attributes.insert("sip.trunkID".into(), request.sip_trunk_id);
    }
    if !request.hide_phone_number {
        attributes.insert("sip.phoneNumber".into(), number.clone());
        if !request.sip_number.is_empty() {
            attributes.insert("sip.trunkPhoneNumber".into(), request.sip_number);
        }
    }
    if let Some(trunk) = request.trunk {
        attributes.insert("sip.hostname".into(), trunk.hostname);
    }
    JoinSpec {
        identity: or_number(request.participant_identity, "sip_"),
        name: or_number(request.participant_name, "Phone "),
        kind: Kind::Sip,
        metadata: request.participant_metadata,
        attributes,
        permission: Claims::default().permission(),
        auto_subscribe: true,
        client_protocol: crate::server::PROTOCOL_VERSION,
        capabilities: Vec::new(),
        inbox,
    }
}

fn duration(duration: Option<&pbjson_types::Duration>) -> Option<Duration> {
    let duration = duration?;
    let length = Duration::new(
        u64::try_from(duration.seconds).ok()?,
        u32::try_from(duration.nanos).ok()?,
    );
    Some(length).filter(|length| !length.is_zero())
}

/// A failed call as the API reports it (`livekit/sip.go` of the protocol): the SIP status chooses
/// the code and is in the details.
fn sip_error(status: SipStatusCode) -> TwirpError {
    let code = match status as i32 {
        401..=403 | 603 | 607 | 608 => Code::PermissionDenied,
        404 | 410 | 481 | 604 => Code::NotFound,
        407 => Code::Unauthenticated,
        408 | 504 => Code::DeadlineExceeded,
        480 | 486 | 600 => Code::ResourceExhausted,
        487 | 491 => Code::Aborted,
        500..=599 => Code::FailedPrecondition,
        _ => Code::InvalidArgument,
    };
    let name = status.as_str_name();
    let number = status as i32;
    let short = name.strip_prefix("SIP_STATUS_").unwrap_or(name);
    TwirpError {
        meta: vec![
            ("sip_status_code", number.to_string()),
            ("sip_status", name.to_owned()),
        ],
        ..TwirpError::new(code, format!("sip status {number}: {short}"))
    }
}

/// Why the participant of a failed call leaves.
fn disconnect_reason(status: SipStatusCode) -> DisconnectReason {
    match status as i32 {
        408 | 480 | 486 | 487 | 600 => DisconnectReason::UserUnavailable,
        403 | 603 | 607 | 608 => DisconnectReason::UserRejected,
        _ => DisconnectReason::SipTrunkFailure,
    }
}

/// One call: a participant without a network behind it.
struct PhoneCall {
    server: Server,
    room: Arc<Room>,
    identity: String,
    sid: String,
    control: mpsc::Receiver<ToPeer>,
    media: mpsc::Receiver<MediaPacket>,
    transfers: mpsc::Receiver<Transfer>,
}

impl PhoneCall {
    async fn run(
        mut self,
        script: Script,
        ringing_timeout: Duration,
        max_call: Duration,
        answered: oneshot::Sender<Result<(), SipStatusCode>>,
    ) {
        // Dropping `answered` tells the waiting API call that the call was ended from the room.
        let Some(outcome) = self
            .until_hung_up(ring(script, ringing_timeout, Some(self.ringing())))
            .await
        else {
            return;
        };
        // Usually nobody waits for the answer.
        let _ = answered.send(outcome);
        if let Err(status) = outcome {
            return self.leave(disconnect_reason(status));
        }
        self.set_status("active");
        if timeout(max_call, self.talk()).await.is_err() {
            self.leave(DisconnectReason::ClientInitiated);
        }
    }

    /// Makes the call ring. A function, so that the call itself can wait for other events
    /// meanwhile.
    fn ringing(&self) -> impl FnOnce() + Send + use<> {
        let (server, room, identity) = (
            self.server.clone(),
            self.room.name().to_owned(),
            self.identity.clone(),
        );
        move || set_status(&server, &room, &identity, "ringing")
    }

    /// Sends silence until the call ends.
    async fn talk(&mut self) {
        let track_sid: Arc<str> = ids::new_id(ids::TRACK).into();
        let mut track = proto::TrackInfo {
            sid: track_sid.to_string(),
            name: "audio".into(),
            mime_type: "audio/opus".into(),
            ..Default::default()
        };
        track.set_type(proto::TrackType::Audio);
        track.set_source(proto::TrackSource::Microphone);
        self.room.publish(&self.sid, track);
        let mut ticks = tokio::time::interval(PACKET_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let began = Instant::now();
        let mut sequence = 0;
        loop {
            tokio::select! {
                message = self.control.recv() => if is_end(message.as_ref()) { return },
                packet = self.media.recv() => if packet.is_none() { return },
                transfer = self.transfers.recv() => if let Some(transfer) = transfer && self.transfer(transfer).await { return },
                now = ticks.tick() => {
                    let ticked = now.duration_since(began).as_millis() / PACKET_INTERVAL.as_millis();
                    let packet = MediaPacket {
                        track_sid: Arc::clone(&track_sid),
                        sequence,
                        timestamp: (ticked as u32).wrapping_mul(PACKET_SAMPLES),
                        marker: sequence == 0,
                        level: Some(-127),
                        voice: Some(false),
                        payload: Some(Arc::from(SILENCE)),
                        redundancy: Redundancy::None,
                    };
                    sequence += 1;
                    self.room.forward(&self.sid, &packet);
                }
            }
        }
    }

    /// Transfers the call; returns whether it is over for the room.
    async fn transfer(&mut self, transfer: Transfer) -> bool {
        let ringing = ring(transfer.script, transfer.ringing_timeout, None::<fn()>);
        let Some(outcome) = self.until_hung_up(ringing).await else {
            return true;
        };
        if outcome.is_ok() {
            self.leave(DisconnectReason::ClientInitiated);
        }
        // The client of the API may have given up.
        let _ = transfer.done.send(outcome);
        outcome.is_ok()
    }

    /// Waits for something unless the participant is removed first.
    async fn until_hung_up<T>(&mut self, waiting: impl Future<Output = T>) -> Option<T> {
        tokio::pin!(waiting);
        loop {
            tokio::select! {
                result = &mut waiting => return Some(result),
                message = self.control.recv() => if is_end(message.as_ref()) { return None },
                packet = self.media.recv() => packet.map(drop)?,
            }
        }
    }

    fn set_status(&self, status: &str) {
        set_status(&self.server, self.room.name(), &self.identity, status);
    }

    fn leave(&self, reason: DisconnectReason) {
        self.set_status("hangup");
        self.room.leave(&self.sid, reason);
    }
}

fn set_status(server: &Server, room: &str, identity: &str, status: &str) {
    let attributes = HashMap::from([(CALL_STATUS.to_owned(), status.to_owned())]);
    let change = ParticipantChange {
        attributes,
        ..Default::default()
    };
    if let Err(error) = server.rooms().update_participant(room, identity, change) {
        tracing::debug!("the status of a telephone call has nobody to be shown on: {error}");
    }
}

/// Dials and rings as the number demands.
async fn ring(
    script: Script,
    ringing_timeout: Duration,
    ringing: Option<impl FnOnce()>,
) -> Result<(), SipStatusCode> {
    sleep(DIALING).await;
    if let Script::FailsUnrung(status) = script {
        return Err(status);
    }
    if let Some(ringing) = ringing {
        ringing();
    }
    match script {
        Script::RingsOn => sleep(ringing_timeout).await,
        Script::Answers | Script::Fails(_) | Script::FailsUnrung(_) => {
            sleep(RINGING.min(ringing_timeout)).await;
        }
    }
    match script {
        Script::Answers => Ok(()),
        Script::RingsOn => Err(SipStatusCode::SipStatusRequestTimeout),
        Script::Fails(status) | Script::FailsUnrung(status) => Err(status),
    }
}

fn is_end(message: Option<&ToPeer>) -> bool {
    matches!(message, None | Some(ToPeer::Close { .. }))
}
