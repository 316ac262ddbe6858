//! Keys of end-to-end encryption: derivation, key rings, ratcheting.
//!
//! Compatible with the frame cryptor of LiveKit's builds of Google's engine and of its JavaScript
//! SDK: what the application sets is the *material*; the key of AES-128-GCM is derived from it with
//! the salt of the options, and the next material of a ratchet likewise.

use std::{
    collections::HashMap,
    num::NonZeroU32,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
};

use aws_lc_rs::{
    aead::{AES_128_GCM, LessSafeKey, UnboundKey},
    hkdf, pbkdf2,
};
use parking_lot::Mutex;

use super::frame_cryptor::{KeyDerivationAlgorithm, KeyProviderOptions};

/// Rounds of PBKDF2, the number that all of LiveKit's SDKs use.
const PBKDF2_ROUNDS: NonZeroU32 = NonZeroU32::new(100_000).expect("it is not zero");

/// Length of the context that LiveKit's SDKs give to HKDF: so many zeros.
const HKDF_INFO_BYTES: usize = 128;

/// Lengths of a derived key of AES-128 and of a ratcheted material, in bytes.
const KEY_BYTES: usize = 16;
const MATERIAL_BYTES: usize = 32;

/// Keys in a ring if the options have no usable number, and the largest number, since the index is
/// one byte of a frame.
const DEFAULT_RING_SIZE: usize = 16;
const MAX_RING_SIZE: usize = 255;

/// The most ratchet steps to find the key that fits: each takes tens of milliseconds of a core.
const MAX_RATCHET_STEPS: usize = 64;

/// A key and what it was made from.
pub(super) struct Key {
    pub material: Vec<u8>,
    pub cipher: LessSafeKey,
    /// The next ratchet step, once it was derived.
    next: OnceLock<Arc<Key>>,
    searching: AtomicBool,
}

impl std::fmt::Debug for Key {
    /// Keys are never written anywhere.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Key")
    }
}

/// How keys are derived, as the options say.
#[derive(Debug, Clone)]
struct Derivation {
    algorithm: KeyDerivationAlgorithm,
    salt: Vec<u8>,
}

/// The length of an output of HKDF.
struct Length(usize);

impl hkdf::KeyType for Length {
    fn len(&self) -> usize {
        self.0
    }
}

impl Derivation {
    fn derive(&self, material: &[u8], out: &mut [u8]) {
        match self.algorithm {
            KeyDerivationAlgorithm::PBKDF2 => {
                let algorithm = pbkdf2::PBKDF2_HMAC_SHA256;
                pbkdf2::derive(algorithm, PBKDF2_ROUNDS, &self.salt, material, out);
            }
            KeyDerivationAlgorithm::HKDF => {
                let pseudo_random =
                    hkdf::Salt::new(hkdf::HKDF_SHA256, &self.salt).extract(material);
                let info = [0; HKDF_INFO_BYTES];
                pseudo_random
                    .expand(&[&info], Length(out.len()))
                    .and_then(|output| output.fill(out))
                    .expect("HKDF gives up to 255 hashes, and a key is shorter than one");
            }
        }
    }

    fn key(&self, material: Vec<u8>) -> Arc<Key> {
        let mut bytes = [0; KEY_BYTES];
        self.derive(&material, &mut bytes);
        let key = UnboundKey::new(&AES_128_GCM, &bytes).expect("a key of AES-128 has 16 bytes");
        Arc::new(Key {
            material,
            cipher: LessSafeKey::new(key),
            next: OnceLock::new(),
            searching: AtomicBool::new(false),
        })
    }

    fn next<'a>(&self, key: &'a Key) -> &'a Arc<Key> {
        key.next.get_or_init(|| {
            let mut material = vec![0; MATERIAL_BYTES];
            self.derive(&key.material, &mut material);
            self.key(material)
        })
    }
}

/// The keys of one participant, by index.
#[derive(Debug, Clone)]
struct Ring(Vec<Option<Arc<Key>>>);

impl Ring {
    fn slot(&self, index: i32) -> usize {
        // Wraps around the ring, as in Google's engine. A negative index means the first.
        usize::try_from(index).unwrap_or(0) % self.0.len()
    }

    fn set(&mut self, index: i32, key: Arc<Key>) {
        let slot = self.slot(index);
        self.0[slot] = Some(key);
    }

    fn get(&self, index: i32) -> Option<Arc<Key>> {
        let index = usize::try_from(index).ok()?;
        self.0.get(index)?.clone()
    }
}

struct Rings {
    /// The key for everybody.
    shared: Ring,
    participants: HashMap<String, Ring>,
    sif_trailer: Vec<u8>,
}

/// All keys of an application. Deriving is slow, so it is never done while the rings are locked.
pub(super) struct KeyRings {
    derivation: Derivation,
    is_shared: bool,
    ratchet_steps: usize,
    /// After how many failures a key is given up; `None` for never.
    pub failure_tolerance: Option<u32>,
    empty: Ring,
    rings: Mutex<Rings>,
}

impl KeyRings {
    pub fn new(options: KeyProviderOptions) -> Self {
        let size = match usize::try_from(options.key_ring_size) {
            Ok(size) if size > 0 => size.min(MAX_RING_SIZE),
            _ => DEFAULT_RING_SIZE,
        };
        let empty = Ring(vec![None; size]);
        Self {
            derivation: Derivation {
                algorithm: options.key_derivation_algorithm,
                salt: options.ratchet_salt,
            },
            is_shared: options.shared_key,
            ratchet_steps: usize::try_from(options.ratchet_window_size)
                .unwrap_or(0)
                .min(MAX_RATCHET_STEPS),
            failure_tolerance: u32::try_from(options.failure_tolerance).ok(),
            rings: Mutex::new(Rings {
                shared: empty.clone(),
                participants: HashMap::new(),
                sif_trailer: vec![],
            }),
            empty,
        }
    }

    pub fn set_shared(&self, index: i32, material: Vec<u8>) {
        let key = self.derivation.key(material);
        self.replace_shared(index, &key);
    }

    fn replace_shared(&self, index: i32, key: &Arc<Key>) {
        let mut rings = self.rings.lock();
        rings.shared.set(index, key.clone());
        for ring in rings.participants.values_mut() {
            ring.set(index, key.clone());
        }
    }

    pub fn shared(&self, index: i32) -> Option<Arc<Key>> {
        self.rings.lock().shared.get(index)
    }

    pub fn ratchet_shared(&self, index: i32) -> Option<Vec<u8>> {
        let key = self.shared(index)?;
        let next = self.derivation.next(&key);
        self.replace_shared(index, next);
        Some(next.material.clone())
    }

    pub fn set(&self, participant: &str, index: i32, material: Vec<u8>) {
        let key = self.derivation.key(material);
        self.replace(participant, index, key);
    }

    /// Puts a key into the ring of a participant.
    pub fn replace(&self, participant: &str, index: i32, key: Arc<Key>) {
        let mut rings = self.rings.lock();
        let empty = match self.is_shared {
            true => rings.shared.clone(),
            false => self.empty.clone(),
        };
        let ring = rings.participants.entry(participant.to_owned());
        ring.or_insert(empty).set(index, key);
    }

    /// The key with which a participant's frames and data are encrypted.
    pub fn of(&self, participant: &str, index: i32) -> Option<Arc<Key>> {
        let rings = self.rings.lock();
        match rings.participants.get(participant) {
            Some(ring) => ring.get(index),
            None if self.is_shared => rings.shared.get(index),
            None => None,
        }
    }

    pub fn ratchet(&self, participant: &str, index: i32) -> Option<Vec<u8>> {
        let key = self.of(participant, index)?;
        let next = self.derivation.next(&key).clone();
        let material = next.material.clone();
        self.replace(participant, index, next);
        Some(material)
    }

    /// Searches the ratchet steps after `key` for one that fits, as far as the options let the
    /// other side be ahead.
    pub fn find_ahead<T>(
        &self,
        key: &Arc<Key>,
        mut fits: impl FnMut(&Key) -> Option<T>,
    ) -> Option<(Arc<Key>, T)> {
        let mut key = key.clone();
        for _ in 0..self.ratchet_steps {
            key = self.derivation.next(&key).clone();
            if let Some(found) = fits(&key) {
                return Some((key, found));
            }
        }
        None
    }

    /// Like [`find_ahead`](Self::find_ahead), but never waits: steps that are not derived yet are
    /// derived by another thread, for the next time.
    pub fn find_ahead_at_once<T>(
        &self,
        first: &Arc<Key>,
        mut fits: impl FnMut(&Key) -> Option<T>,
    ) -> Option<(Arc<Key>, T)> {
        let mut key = first.clone();
        for _ in 0..self.ratchet_steps {
            let Some(next) = key.next.get() else {
                self.derive_ahead(first);
                return None;
            };
            key = next.clone();
            if let Some(found) = fits(&key) {
                return Some((key, found));
            }
        }
        None
    }

    fn derive_ahead(&self, first: &Arc<Key>) {
        if first.searching.swap(true, Ordering::AcqRel) {
            return;
        }
        let (derivation, steps) = (self.derivation.clone(), self.ratchet_steps);
        let first = first.clone();
        let thread = std::thread::Builder::new().name("ratchet".to_owned());
        let started = thread.spawn(move || {
            let mut key = first.clone();
            for _ in 0..steps {
                key = derivation.next(&key).clone();
            }
            first.searching.store(false, Ordering::Release);
        });
        if let Err(error) = started {
            log::warn!("keys could not be ratcheted, as there is no thread for it: {error}");
        }
    }

    pub fn set_sif_trailer(&self, trailer: Vec<u8>) {
        self.rings.lock().sif_trailer = trailer;
    }

    /// A server-injected frame, which is not encrypted, without its trailer; `None` if it is no
    /// such frame.
    pub fn without_sif_trailer<'a>(&self, frame: &'a [u8]) -> Option<&'a [u8]> {
        let rings = self.rings.lock();
        match rings.sif_trailer.as_slice() {
            [] => None,
            trailer => frame.strip_suffix(trailer),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(shared_key: bool, algorithm: KeyDerivationAlgorithm) -> KeyProviderOptions {
        KeyProviderOptions {
            shared_key,
            ratchet_window_size: 2,
            ratchet_salt: b"LKFrameEncryptionKey".to_vec(),
            failure_tolerance: -1,
            key_ring_size: 4,
            key_derivation_algorithm: algorithm,
        }
    }

    /// A key of 16 and a material of 32 bytes.
    const PBKDF2_EXPECTED: (&str, &str) = (
        "421890b1557504a8ea1a90c253b419e4",
        "421890b1557504a8ea1a90c253b419e4e1a3a43283f7115909d6fce6926e5e5f",
    );
    const HKDF_EXPECTED: (&str, &str) = (
        "ba01b33ca65575da0ac43ec45570668c",
        "ba01b33ca65575da0ac43ec45570668c82fc310200d7efa835629847cc30a774",
    );

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn keys_are_derived_as_by_the_other_sdks() {
        // The expected values come from Python's hashlib and hmac: pbkdf2_hmac("sha256",
        // b"password", b"LKFrameEncryptionKey", 100000, n), and RFC 5869 with the same salt and 128
        // zeros.
        for (algorithm, expected) in [
            (KeyDerivationAlgorithm::PBKDF2, PBKDF2_EXPECTED),
            (KeyDerivationAlgorithm::HKDF, HKDF_EXPECTED),
        ] {
            let derivation = Derivation {
                algorithm,
                salt: b"LKFrameEncryptionKey".to_vec(),
            };
            let (mut key, mut material) = ([0; KEY_BYTES], [0; MATERIAL_BYTES]);
            derivation.derive(b"password", &mut key);
            derivation.derive(b"password", &mut material);
            assert_eq!((hex(&key).as_str(), hex(&material).as_str()), expected);
        }
    }

    #[test]
    fn shared_key_is_everybodys_until_one_is_ahead() {
        let rings = KeyRings::new(options(true, KeyDerivationAlgorithm::HKDF));
        assert!(rings.of("anna", 0).is_none());
        rings.set_shared(0, b"password".to_vec());
        assert_eq!(
            rings.of("anna", 0).map(|key| key.material.clone()),
            Some(b"password".to_vec())
        );
        let ratcheted = rings.ratchet("anna", 0).expect("there is a key");
        assert_eq!(
            rings.of("anna", 0).map(|key| key.material.clone()),
            Some(ratcheted)
        );
        assert_eq!(
            rings.of("ben", 0).map(|key| key.material.clone()),
            Some(b"password".to_vec())
        );
        let everybodys = rings.ratchet_shared(0).expect("there is a key");
        for participant in ["anna", "ben"] {
            let key = rings.of(participant, 0).map(|key| key.material.clone());
            assert_eq!(key.as_ref(), Some(&everybodys));
        }
    }

    #[test]
    fn own_keys_are_nobody_elses_and_unknown_indices_have_none() {
        let rings = KeyRings::new(options(false, KeyDerivationAlgorithm::HKDF));
        rings.set("anna", 1, b"hers".to_vec());
        assert!(rings.of("anna", 1).is_some());
        assert!(rings.of("anna", 0).is_none() && rings.of("ben", 1).is_none());
        assert!(rings.of("anna", -1).is_none() && rings.of("anna", 200).is_none());
        assert!(rings.ratchet("ben", 0).is_none());
        // Indices beyond the ring wrap around.
        rings.set("anna", 6, b"sixth".to_vec());
        assert_eq!(
            rings.of("anna", 2).map(|key| key.material.clone()),
            Some(b"sixth".to_vec())
        );
    }

    #[test]
    fn key_ahead_is_found_within_the_window_only() {
        let rings = KeyRings::new(options(true, KeyDerivationAlgorithm::HKDF));
        rings.set_shared(0, b"password".to_vec());
        let first = rings.shared(0).expect("it was set");
        let mut ahead: Vec<Vec<u8>> = Vec::new();
        for _ in 0..3 {
            ahead.extend(rings.ratchet_shared(0));
        }
        let find = |wanted: &Vec<u8>| {
            rings
                .find_ahead(&first, |key| (key.material == *wanted).then_some(()))
                .is_some()
        };
        assert_eq!(
            ahead.iter().map(find).collect::<Vec<_>>(),
            [true, true, false]
        );
    }
}
