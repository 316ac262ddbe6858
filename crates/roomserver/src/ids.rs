//! Identifiers in LiveKit's style: a prefix that names the kind of thing, then twelve letters and
//! digits.

use rand::Rng;

/// Letters and digits without the pairs that people confuse when they read an id aloud.
const ALPHABET: &[u8] = b"23456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz";
const RANDOM_LENGTH: usize = 12;

/// `RM_`, a room's session: a room that is created again under the same name gets a new one.
pub const ROOM: &str = "RM_";
/// `PA_`, one participant's stay in a room.
pub const PARTICIPANT: &str = "PA_";
/// `TR_`, a published audio or video track.
pub const TRACK: &str = "TR_";
/// `AD_`, the request for an agent in a room.
pub const DISPATCH: &str = "AD_";
/// `AJ_`, one agent's work in a room.
pub const JOB: &str = "AJ_";
/// `AW_`, an agent worker's connection.
pub const WORKER: &str = "AW_";
/// `EG_`, a recording.
pub const EGRESS: &str = "EG_";
/// `SCL_`, a telephone call.
pub const SIP_CALL: &str = "SCL_";
/// `SDR_`, a dispatch rule for telephone calls.
pub const SIP_DISPATCH_RULE: &str = "SDR_";
/// `EV_`, a webhook.
pub const EVENT: &str = "EV_";
/// `DTR_`, a published data track.
pub const DATA_TRACK: &str = "DTR_";
/// `ND_`, this server.
pub const NODE: &str = "ND_";

/// A fresh identifier with the given prefix.
pub fn new_id(prefix: &str) -> String {
    let mut random = rand::rng();
    let mut id = String::with_capacity(prefix.len() + RANDOM_LENGTH);
    id.push_str(prefix);
    for _ in 0..RANDOM_LENGTH {
        id.push(char::from(ALPHABET[random.random_range(0..ALPHABET.len())]));
    }
    id
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_carry_their_prefix_and_differ() {
        let first = new_id(TRACK);
        assert_eq!(first.len(), TRACK.len() + RANDOM_LENGTH);
        assert!(first.starts_with("TR_"));
        assert_ne!(first, new_id(TRACK));
    }
}
