//! Who is in the room, and whom the agent talks to.
//!
//! Pure: it looks at everybody who is there and says what to do. Telephones go first, then whoever
//! has a microphone; recorders, other agents and ingests are nobody's caller.

use std::collections::HashMap;

/// State of a telephone call (livekit/protocol `attrs.go`): `dialing`, `ringing`, `automation`,
/// `active`, `hangup`.
const SIP_CALL_STATUS: &str = "sip.callStatus";
/// LiveKit's id of a telephone call.
const SIP_CALL_ID: &str = "sip.callID";
/// The dispatch rule that let a telephone call in; calls that were placed from here have none.
const SIP_RULE_ID: &str = "sip.ruleID";
/// The other party's number.
const SIP_PHONE_NUMBER: &str = "sip.phoneNumber";
/// The name that an agent's worker registered under. The server puts it into the token of every job
/// (livekit-server `pkg/agent/worker.go`, `AgentNameAttributeKey`).
const AGENT_NAME: &str = "lk.agent_name";
/// When the job of an agent of ours was accepted, in milliseconds since 1970; our worker sets it.
pub const AGENT_SINCE: &str = "voicebot.since_ms";

/// Jobs that were accepted within one step of this length count as equally old, ms: longer than
/// joining takes, shorter than a conversation that is worth to be kept.
const SAME_DISPATCH_MS: i64 = 10_000;

/// What somebody in the room is to an agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// On the telephone.
    Telephone,
    /// A person with a browser or an app.
    Person,
    /// An agent, ours or another.
    Agent,
    /// A recorder, an ingest, or somebody hidden.
    Machine,
}

/// Somebody in the room.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Party {
    /// LiveKit identity.
    pub identity: String,
    /// What they are to us.
    pub role: Role,
    /// All attributes, with the `sip.*` ones.
    pub attributes: HashMap<String, String>,
    /// Whether they publish sound that is not muted.
    pub microphone: bool,
    /// When they joined, in milliseconds since 1970, by the server's clock.
    pub joined_at_ms: i64,
}

/// How far somebody is from a conversation; the order is the one in which they are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    TelephoneAnswered,
    TelephoneRinging,
    Microphone,
    Silent,
}

/// Whom to talk to, of those who are there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Choice<'a> {
    /// Nobody is.
    Nobody,
    /// Only people who have no microphone, or not yet.
    Silent(&'a Party),
    /// A telephone that was not answered yet.
    Ringing(&'a Party),
    /// Caller and agent can hear each other.
    Talk(&'a Party),
}

impl Party {
    /// A telephone of which only is known that it was here.
    pub fn unknown_telephone() -> Self {
        Self {
            identity: String::new(),
            role: Role::Telephone,
            attributes: HashMap::new(),
            microphone: false,
            joined_at_ms: 0,
        }
    }

    /// See [`Self::unknown_telephone`].
    pub fn is_unknown(&self) -> bool {
        self.identity.is_empty()
    }

    fn attribute(&self, name: &str) -> Option<&str> {
        self.attributes
            .get(name)
            .map(String::as_str)
            .filter(|value| !value.is_empty())
    }

    /// Whether this may be a caller at all.
    pub fn may_be_caller(&self) -> bool {
        matches!(self.role, Role::Telephone | Role::Person)
    }

    /// Whether this is the telephone of somebody who is called from here: no dispatch rule has let
    /// it in.
    pub fn is_called_from_here(&self) -> bool {
        self.role == Role::Telephone && self.attribute(SIP_RULE_ID).is_none()
    }

    /// Somebody who knows says that this telephone is answered: that it rings is old news.
    pub fn counts_as_answered(&mut self) {
        if self.rings(false) && self.attribute(SIP_CALL_STATUS) != Some("hangup") {
            let active = "active".to_owned();
            self.attributes.insert(SIP_CALL_STATUS.to_owned(), active);
        }
    }

    /// Whether this is a telephone that has not been answered. `agent_heard`: our track was taken a
    /// while ago.
    ///
    /// An inbound call is answered when our track is taken (livekit-sip `inbound.go`,
    /// `waitSubscribe`), so that a status that still says `ringing` long after is an old one: after
    /// a restart of the server, the telephone comes back with the attributes of its first token.
    fn rings(&self, agent_heard: bool) -> bool {
        let rings = self.role == Role::Telephone
            && self
                .attribute(SIP_CALL_STATUS)
                .is_some_and(|status| status != "active" && status != "automation");
        rings && !(agent_heard && self.attribute(SIP_RULE_ID).is_some())
    }

    fn rank(&self, agent_heard: bool) -> Option<Rank> {
        match self.role {
            Role::Telephone if self.rings(agent_heard) => Some(Rank::TelephoneRinging),
            Role::Telephone => Some(Rank::TelephoneAnswered),
            Role::Person if self.microphone => Some(Rank::Microphone),
            Role::Person => Some(Rank::Silent),
            Role::Agent | Role::Machine => None,
        }
    }

    /// Whether this is the caller `other` again: by identity, or the same telephone call or number
    /// under another one.
    pub fn is_same_caller(&self, other: &Party) -> bool {
        let same = |name| {
            self.role == Role::Telephone
                && other.role == Role::Telephone
                && self
                    .attribute(name)
                    .is_some_and(|value| other.attribute(name) == Some(value))
        };
        self.may_be_caller()
            && (self.identity == other.identity || same(SIP_CALL_ID) || same(SIP_PHONE_NUMBER))
    }

    /// Whether the call is over for good when this one is not there any more, though nobody has
    /// talked yet. A telephone that gave up does not come back; a person who looked in may not be
    /// the caller where a telephone is expected.
    pub fn leaves_nobody_to_wait_for(&self, telephone_expected: bool) -> bool {
        match self.role {
            Role::Telephone => true,
            Role::Person => !telephone_expected,
            Role::Agent | Role::Machine => false,
        }
    }

    fn since_ms(&self) -> Option<i64> {
        self.attribute(AGENT_SINCE)?.parse().ok()
    }
}

/// The first of them, and how far they are. Equals are taken in the order in which they came.
fn first<'a>(
    parties: impl Iterator<Item = &'a Party>,
    agent_heard: bool,
) -> Option<(Rank, &'a Party)> {
    parties
        .filter_map(|party| Some((party.rank(agent_heard)?, party)))
        .min_by_key(|(rank, party)| (*rank, party.joined_at_ms, party.identity.as_str()))
}

/// Whom to talk to when nobody is talked to yet. `agent_heard`: our track was taken a while ago.
pub fn choose(parties: &[Party], agent_heard: bool) -> Choice<'_> {
    match first(parties.iter(), agent_heard) {
        None => Choice::Nobody,
        Some((Rank::Silent, party)) => Choice::Silent(party),
        Some((Rank::TelephoneRinging, party)) => Choice::Ringing(party),
        Some((Rank::TelephoneAnswered | Rank::Microphone, party)) => Choice::Talk(party),
    }
}

/// Who should be talked to instead of `caller`, of whom nothing has been heard: somebody who goes
/// first and can be talked to now.
pub fn better<'a>(caller: &Party, parties: &'a [Party], agent_heard: bool) -> Option<&'a Party> {
    let now = parties
        .iter()
        .find(|party| party.identity == caller.identity)?;
    let rank = now.rank(agent_heard)?;
    // A telephone that rings can neither be heard nor hear.
    let talkable = parties.iter().filter(|party| !party.rings(agent_heard));
    let (best, party) = first(talkable, agent_heard)?;
    (best < rank).then_some(party)
}

/// The agent of our own name that was here before us, if there is one: then this room was
/// dispatched twice, and we leave.
///
/// Both agents compare the same values, so that exactly one of them stays. The age of the job
/// counts before the time of joining: after a restart of the server, the conversation in progress
/// stays and not the agent that the new room was given. It is counted in steps of
/// [`SAME_DISPATCH_MS`]: of two jobs of one moment, whoever was there first has begun to talk. An
/// agent without a name belongs to a worker that takes every room; only one that carries our mark
/// is of our kind.
pub fn elder_agent<'a>(us: &Party, parties: &'a [Party]) -> Option<&'a Party> {
    let name = us.attribute(AGENT_NAME);
    let is_elder = |other: &Party| {
        let both = us.since_ms().zip(other.since_ms());
        let (ours, theirs) = both.unwrap_or_default();
        let age = |since_ms: i64, agent: &Party| {
            (
                since_ms / SAME_DISPATCH_MS,
                agent.joined_at_ms,
                agent.identity.clone(),
            )
        };
        age(theirs, other) < age(ours, us)
    };
    parties
        .iter()
        .filter(|other| other.role == Role::Agent && other.identity != us.identity)
        .filter(|other| other.attribute(AGENT_NAME) == name)
        .filter(|other| name.is_some() || (us.since_ms().is_some() && other.since_ms().is_some()))
        .filter(|other| is_elder(other))
        .min_by_key(|other| (other.joined_at_ms, other.identity.as_str()))
}

/// Characters of the random part at the end of the name of a room that the SIP service makes for
/// one call (livekit/protocol `utils/guid`).
const RANDOM_PART: usize = 12;

/// Whether the room was made by a telephone call that came in: its name is what a dispatch rule
/// with one of these prefixes makes of prefix, number and a random part (livekit/protocol
/// `sip/sip.go`, `EvaluateDispatchRule`). Nobody comes later into such a room.
pub fn is_room_of_one_call(room_name: &str, prefixes: &[String]) -> bool {
    let Some((rest, random)) = room_name.rsplit_once('_') else {
        return false;
    };
    random.len() == RANDOM_PART
        && random.chars().all(|c| c.is_ascii_alphanumeric())
        && prefixes.iter().any(|prefix| {
            let number = match prefix.is_empty() {
                true => Some(rest),
                false => rest
                    .strip_prefix(prefix.as_str())
                    .and_then(|rest| rest.strip_prefix('_')),
            };
            number.is_some_and(|number| !number.is_empty())
        })
}

/// What becomes of a room whose agent died.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AfterDeath {
    /// It is deleted, which hangs up.
    DeleteRoom,
    /// Only what the server still holds of the agent goes.
    RemoveAgent,
    /// There is nothing to do.
    Leave,
}

/// What becomes of the room of the dead agent `agent`, registered as `agent_name`, with everybody
/// in it. `delete`: rooms are deleted at the end of calls.
///
/// A room in which another agent of that name talks is its room now.
pub fn after_death(agent: &str, agent_name: &str, parties: &[Party], delete: bool) -> AfterDeath {
    let name = Some(agent_name).filter(|name| !name.is_empty());
    let other_agent = parties.iter().any(|party| {
        party.role == Role::Agent && party.identity != agent && party.attribute(AGENT_NAME) == name
    });
    let is_there = parties.iter().any(|party| party.identity == agent);
    if delete && !other_agent {
        AfterDeath::DeleteRoom
    } else if is_there {
        AfterDeath::RemoveAgent
    } else {
        AfterDeath::Leave
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    fn party(identity: &str, role: Role, microphone: bool, joined_at_ms: i64) -> Party {
        Party {
            identity: identity.into(),
            role,
            attributes: HashMap::new(),
            microphone,
            joined_at_ms,
        }
    }

    fn with(mut party: Party, attributes: &[(&str, &str)]) -> Party {
        let pairs = attributes
            .iter()
            .map(|(k, v)| (k.to_string(), v.to_string()));
        party.attributes.extend(pairs);
        party
    }

    fn phone(identity: &str, status: &str, joined_at_ms: i64) -> Party {
        let phone = party(identity, Role::Telephone, true, joined_at_ms);
        with(phone, &[("sip.callStatus", status)])
    }

    fn person(identity: &str, microphone: bool, joined_at_ms: i64) -> Party {
        party(identity, Role::Person, microphone, joined_at_ms)
    }

    fn chosen(parties: &[Party], agent_heard: bool) -> String {
        match choose(parties, agent_heard) {
            Choice::Nobody => "nobody".into(),
            Choice::Silent(party) => format!("silent {}", party.identity),
            Choice::Ringing(party) => format!("ringing {}", party.identity),
            Choice::Talk(party) => format!("talk {}", party.identity),
        }
    }

    #[test]
    fn telephones_go_first_then_microphones_then_whoever_came_first() {
        let recorder = party("recorder", Role::Machine, true, 0);
        let agent = party("agent", Role::Agent, true, 0);
        for (parties, expected) in [
            (vec![], "nobody"),
            (vec![recorder.clone(), agent.clone()], "nobody"),
            (vec![agent, recorder, person("ann", true, 5)], "talk ann"),
            (vec![person("observer", false, 0)], "silent observer"),
            (
                vec![person("observer", false, 0), person("ann", true, 600)],
                "talk ann",
            ),
            (
                vec![person("ann", true, 0), phone("phone", "active", 600)],
                "talk phone",
            ),
            (
                vec![person("ann", true, 0), phone("phone", "ringing", 600)],
                "ringing phone",
            ),
            (
                vec![phone("second", "active", 2), phone("first", "active", 1)],
                "talk first",
            ),
            (
                vec![phone("first", "ringing", 1), phone("second", "active", 2)],
                "talk second",
            ),
            (
                vec![phone("b", "active", 1), phone("a", "active", 1)],
                "talk a",
            ),
            (vec![phone("phone", "automation", 1)], "talk phone"),
            (vec![phone("phone", "dialing", 1)], "ringing phone"),
            // A connector has no status: its call was answered before.
            (
                vec![party("whatsapp", Role::Telephone, true, 1)],
                "talk whatsapp",
            ),
        ] {
            assert_eq!(chosen(&parties, false), expected, "{parties:?}");
        }
    }

    #[test]
    fn observer_who_came_before_the_telephone_is_not_the_caller() {
        let text =
            include_str!("../../tests/fixtures/cases/observer-before-the-telephone/order.json");
        let order: Vec<Value> = serde_json::from_str(text).unwrap();
        let mut parties: Vec<Party> = Vec::new();
        let mut choices = Vec::new();
        for one in &order {
            let attributes = one["attributes"].as_object().cloned().unwrap_or_default();
            parties.push(Party {
                identity: one["identity"].as_str().unwrap().into(),
                role: match one["kind"].as_str().unwrap() {
                    "SIP" => Role::Telephone,
                    _ => Role::Person,
                },
                attributes: attributes
                    .into_iter()
                    .map(|(key, value)| (key, value.as_str().unwrap().to_owned()))
                    .collect(),
                microphone: one["tracks"].as_array().unwrap().contains(&"audio".into()),
                joined_at_ms: (one["at_s"].as_f64().unwrap() * 1000.0) as i64,
            });
            choices.push(chosen(&parties, false));
        }
        assert_eq!(choices, ["silent supervisor-1", "talk sip_+15550123456"]);
        // Had the observer been taken, the telephone would take its place.
        let better = better(&parties[0], &parties, false).map(|party| party.identity.as_str());
        assert_eq!(better, Some("sip_+15550123456"));
    }

    #[test]
    fn a_caller_without_sound_is_given_up_only_for_somebody_who_can_be_talked_to() {
        let observer = person("observer", false, 0);
        let ann = person("ann", true, 1);
        let answered = phone("phone", "active", 2);
        let ringing = phone("phone", "ringing", 2);
        for (caller, others, expected) in [
            (&observer, vec![&ann], Some("ann")),
            (&observer, vec![&ringing], None),
            (&observer, vec![&answered], Some("phone")),
            (&ann, vec![&observer], None),
            (&ann, vec![&ringing], None),
            (&ann, vec![&answered], Some("phone")),
            (&answered, vec![&ann, &observer], None),
        ] {
            let mut parties = vec![caller.clone()];
            parties.extend(others.into_iter().cloned());
            let better = better(caller, &parties, false).map(|party| party.identity.as_str());
            assert_eq!(better, expected, "{parties:?}");
        }
    }

    #[test]
    fn ringing_that_outlasts_the_answer_of_an_inbound_call_is_an_old_status() {
        let inbound = with(phone("in", "ringing", 1), &[("sip.ruleID", "SDR_1")]);
        let outbound = phone("out", "ringing", 1);
        assert_eq!(chosen(std::slice::from_ref(&inbound), false), "ringing in");
        assert_eq!(chosen(&[inbound], true), "talk in");
        // A telephone that we call rings until somebody picks it up.
        assert_eq!(chosen(&[outbound], true), "ringing out");
    }

    #[test]
    fn a_caller_who_is_back_is_known_by_identity_call_or_number() {
        let number = ("sip.phoneNumber", "+15550123456");
        let before = with(
            phone("sip_1", "active", 1),
            &[("sip.callID", "SCL_1"), number],
        );
        for (back, same) in [
            (phone("sip_1", "ringing", 9), true),
            (
                with(phone("sip_2", "ringing", 9), &[("sip.callID", "SCL_1")]),
                true,
            ),
            (with(phone("sip_2", "ringing", 9), &[number]), true),
            (phone("sip_2", "active", 9), false),
            (with(person("ann", true, 9), &[number]), false),
            (party("sip_1", Role::Agent, true, 9), false),
        ] {
            assert_eq!(back.is_same_caller(&before), same, "{back:?}");
        }
    }

    #[test]
    fn of_two_agents_of_one_name_the_elder_stays_and_exactly_one() {
        let agent = |identity: &str, name: &str, joined_at_ms| {
            with(
                party(identity, Role::Agent, true, joined_at_ms),
                &[(AGENT_NAME, name)],
            )
        };
        let aged = |agent: Party, since: &str| with(agent, &[(AGENT_SINCE, since)]);
        for (one, other, leaves) in [
            // One room dispatched twice.
            (
                agent("agent-1", "sales", 10),
                agent("agent-2", "sales", 20),
                Some("agent-2"),
            ),
            (
                agent("agent-1", "sales", 10),
                agent("agent-2", "sales", 10),
                Some("agent-2"),
            ),
            // Two agents that work together.
            (
                agent("agent-1", "sales", 10),
                agent("agent-2", "notes", 20),
                None,
            ),
            (agent("agent-1", "", 10), agent("agent-2", "", 20), None),
            // The elder conversation came back to the new room last.
            (
                aged(agent("agent-1", "sales", 90), "1000"),
                aged(agent("agent-2", "sales", 20), "50000"),
                Some("agent-2"),
            ),
            // One room dispatched twice, and the elder job took longer to join.
            (
                aged(agent("agent-1", "sales", 90), "1000"),
                aged(agent("agent-2", "sales", 20), "1080"),
                Some("agent-1"),
            ),
            (
                aged(agent("agent-1", "", 10), "1000"),
                aged(agent("agent-2", "", 20), "1000"),
                Some("agent-2"),
            ),
        ] {
            let pair = [one, other];
            let leaving: Vec<&str> = pair
                .iter()
                .filter(|us| elder_agent(us, &pair).is_some())
                .map(|us| us.identity.as_str())
                .collect();
            assert_eq!(leaving, Vec::from_iter(leaves), "{pair:?}");
        }
        // A browser cannot be one, whatever its attributes are.
        let us = agent("agent-1", "sales", 10);
        let person = with(person("ann", true, 1), &[(AGENT_NAME, "sales")]);
        assert_eq!(elder_agent(&us, &[person]), None);
    }

    #[test]
    fn rooms_that_a_telephone_call_made_are_known_by_their_rule() {
        let prefixes = |prefixes: &[&str]| Vec::from_iter(prefixes.iter().map(|p| p.to_string()));
        for (room, rules, made) in [
            ("call-_+15550999_x44dWZvLdPSC", vec!["call-"], true),
            ("call-_+15550999_x44dWZvLdPSC", vec!["sales", "call-"], true),
            ("call-_anonymous_x44dWZvLdPSC", vec!["call-"], true),
            ("+15550999_x44dWZvLdPSC", vec![""], true),
            // Another rule, or none: rooms that somebody else makes are waited in.
            ("call-_+15550999_x44dWZvLdPSC", vec!["sales"], false),
            ("call-_+15550999_x44dWZvLdPSC", vec![], false),
            ("call-_+15550999", vec!["call-"], false),
            ("call-_x44dWZvLdPSC", vec!["call-"], false),
            ("number-_918655066243-1698567890", vec!["number-"], false),
            ("demo", vec!["", "call-"], false),
        ] {
            let rules = prefixes(&rules);
            assert_eq!(is_room_of_one_call(room, &rules), made, "{room} {rules:?}");
        }
    }

    #[test]
    fn room_of_a_dead_agent_is_deleted_unless_another_agent_talks_there() {
        let dead = with(
            party("agent-1", Role::Agent, true, 1),
            &[(AGENT_NAME, "sales")],
        );
        let other = with(
            party("agent-2", Role::Agent, true, 2),
            &[(AGENT_NAME, "sales")],
        );
        let notes = with(
            party("agent-3", Role::Agent, true, 2),
            &[(AGENT_NAME, "notes")],
        );
        let caller = phone("phone", "active", 1);
        for (parties, delete, expected) in [
            (vec![&dead, &caller], true, AfterDeath::DeleteRoom),
            (vec![&caller], true, AfterDeath::DeleteRoom),
            (vec![&caller, &notes], true, AfterDeath::DeleteRoom),
            (vec![&dead, &caller, &other], true, AfterDeath::RemoveAgent),
            (vec![&caller, &other], true, AfterDeath::Leave),
            (vec![&dead, &caller], false, AfterDeath::RemoveAgent),
            (vec![&caller], false, AfterDeath::Leave),
        ] {
            let parties: Vec<Party> = parties.into_iter().cloned().collect();
            let done = after_death("agent-1", "sales", &parties, delete);
            assert_eq!(done, expected, "{parties:?} {delete}");
        }
    }
}
