//! End-to-end encryption of sound and data, compatible with LiveKit's other SDKs.
//!
//! A frame of sound keeps its first byte (Opus's table of contents, which servers read); the rest
//! is encrypted with AES-128-GCM, which also authenticates the first byte. It is followed by the
//! initialisation vector (12 bytes), its length and the index of the key. Data packets are
//! encrypted whole, and LiveKit's protocol carries vector and index beside them. Keys are derived
//! and ratcheted in [`keys`](super::keys).

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicI32, Ordering},
};

use aws_lc_rs::aead::{Aad, NONCE_LEN, Nonce};
use parking_lot::Mutex;

use super::keys::{Key, KeyRings};
use crate::{
    engine, native::packet_trailer::PacketTrailerHandler,
    peer_connection_factory::PeerConnectionFactory, rtp_receiver::RtpReceiver,
    rtp_sender::RtpSender,
};

/// Bytes at the beginning of a frame of sound that are not encrypted.
const CLEAR_BYTES: usize = 1;

/// What follows the initialisation vector at the end of a frame: its length and the index of the
/// key.
const TRAILER_BYTES: usize = 2;

/// Called when the state of a frame cryptor changes, with the participant's identity.
pub type OnStateChange = Box<dyn FnMut(String, EncryptionState) + Send + Sync>;

/// How keys are derived from what the application sets.
#[derive(Copy, Clone, Debug)]
#[non_exhaustive]
#[allow(
    clippy::upper_case_acronyms,
    reason = "the names are part of the API that is replaced"
)]
pub enum KeyDerivationAlgorithm {
    /// PBKDF2 with SHA-256 and 100,000 rounds, for passphrases.
    PBKDF2,
    /// HKDF with SHA-256, for keys that are random already.
    HKDF,
}

/// Configuration of a [`KeyProvider`].
#[derive(Debug, Clone)]
pub struct KeyProviderOptions {
    /// One key for everybody, instead of one for each participant.
    pub shared_key: bool,
    /// By how many ratchet steps the key of a received frame may be ahead of ours; 0 means none.
    pub ratchet_window_size: i32,
    /// Salt of every derivation.
    pub ratchet_salt: Vec<u8>,
    /// After how many failures in a row a key is not tried any more; negative for no limit.
    pub failure_tolerance: i32,
    /// How many keys a participant can have, up to 255.
    pub key_ring_size: i32,
    /// How keys are made.
    pub key_derivation_algorithm: KeyDerivationAlgorithm,
}

/// Cipher of frames and data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EncryptionAlgorithm {
    /// AES-128 in Galois/counter mode.
    AesGcm,
    /// Not supported: such a cryptor drops everything.
    AesCbc,
}

/// State of a frame cryptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EncryptionState {
    /// Nothing was encrypted or decrypted yet.
    New,
    /// The last frame was encrypted or decrypted.
    Ok,
    /// A frame could not be encrypted and was not sent.
    EncryptionFailed,
    /// A frame could not be decrypted and is not played.
    DecryptionFailed,
    /// There is no key with the index that is needed.
    MissingKey,
    /// A frame needed a later key than ours, which has been replaced by that one.
    KeyRatcheted,
    /// The algorithm is not supported.
    InternalError,
}

/// Encrypted data with what is needed to decrypt it.
#[derive(Debug, Clone)]
pub struct EncryptedPacket {
    /// The encrypted bytes, followed by the authentication tag of 16 bytes.
    pub data: Vec<u8>,
    /// The initialisation vector, 12 bytes.
    pub iv: Vec<u8>,
    /// Index of the key in the participant's ring.
    pub key_index: u32,
}

/// The keys that frame and data cryptors use. Clones share them.
#[derive(Clone)]
pub struct KeyProvider {
    rings: Arc<KeyRings>,
}

impl KeyProvider {
    /// A provider without keys.
    pub fn new(options: KeyProviderOptions) -> Self {
        Self {
            rings: Arc::new(KeyRings::new(options)),
        }
    }

    /// Sets the shared key with an index. With PBKDF2 that takes tens of milliseconds. Returns
    /// whether it was set.
    pub fn set_shared_key(&self, key_index: i32, key: Vec<u8>) -> bool {
        self.rings.set_shared(key_index, key);
        true
    }

    /// Replaces the shared key by its next ratchet step and returns the new one; `None` without a
    /// key.
    pub fn ratchet_shared_key(&self, key_index: i32) -> Option<Vec<u8>> {
        self.rings.ratchet_shared(key_index)
    }

    /// The shared key with an index.
    pub fn get_shared_key(&self, key_index: i32) -> Option<Vec<u8>> {
        let key = self.rings.shared(key_index)?;
        Some(key.material.clone())
    }

    /// Sets a key of one participant. With PBKDF2 that takes tens of milliseconds. Returns whether
    /// it was set.
    pub fn set_key(&self, participant_id: String, key_index: i32, key: Vec<u8>) -> bool {
        self.rings.set(&participant_id, key_index, key);
        true
    }

    /// Replaces a participant's key by its next ratchet step and returns the new one; `None`
    /// without a key.
    pub fn ratchet_key(&self, participant_id: String, key_index: i32) -> Option<Vec<u8>> {
        self.rings.ratchet(&participant_id, key_index)
    }

    /// The key of one participant.
    pub fn get_key(&self, participant_id: String, key_index: i32) -> Option<Vec<u8>> {
        let key = self.rings.of(&participant_id, key_index)?;
        Some(key.material.clone())
    }

    /// Sets the trailer of server-injected frames (SIF), which are not encrypted.
    pub fn set_sif_trailer(&self, trailer: Vec<u8>) {
        self.rings.set_sif_trailer(trailer);
    }
}

/// Encrypts the frames of one sender or decrypts those of one receiver.
pub(crate) struct Cryptor {
    participant_id: String,
    rings: Arc<KeyRings>,
    algorithm: EncryptionAlgorithm,
    key_index: AtomicI32,
    enabled: AtomicBool,
    state: Mutex<CryptorState>,
    on_state_change: Arc<Mutex<Option<OnStateChange>>>,
}

struct CryptorState {
    shown: EncryptionState,
    /// First part of the initialisation vectors, so that no two senders with the same key use the
    /// same one.
    sender: u32,
    frames: u32,
    /// Failures in a row with this key.
    failures: u32,
    failing: Option<Arc<Key>>,
}

impl Cryptor {
    fn new(participant_id: String, algorithm: EncryptionAlgorithm, rings: Arc<KeyRings>) -> Self {
        Self {
            participant_id,
            rings,
            algorithm,
            key_index: AtomicI32::new(0),
            enabled: AtomicBool::new(false),
            state: Mutex::new(CryptorState {
                shown: EncryptionState::New,
                sender: rand::random(),
                frames: rand::random(),
                failures: 0,
                failing: None,
            }),
            on_state_change: Arc::default(),
        }
    }

    /// A cryptor that works, without a peer connection around it.
    #[cfg(feature = "internals")]
    pub fn switched_on(participant_id: &str, keys: &KeyProvider) -> Self {
        let algorithm = EncryptionAlgorithm::AesGcm;
        let cryptor = Self::new(participant_id.to_owned(), algorithm, keys.rings.clone());
        cryptor.enabled.store(true, Ordering::Release);
        cryptor
    }

    /// Encrypts a frame to send; returns it unchanged while switched off. `None`: it must not be
    /// sent.
    pub fn encrypt(&self, frame: &[u8], rtp_timestamp: u32) -> Option<Vec<u8>> {
        if !self.enabled.load(Ordering::Acquire) || frame.is_empty() {
            return Some(frame.to_vec());
        }
        let result = self.try_encrypt(frame, rtp_timestamp);
        self.show(
            result
                .as_ref()
                .err()
                .copied()
                .unwrap_or(EncryptionState::Ok),
        );
        result.ok()
    }

    fn try_encrypt(&self, frame: &[u8], rtp_timestamp: u32) -> Result<Vec<u8>, EncryptionState> {
        if self.algorithm != EncryptionAlgorithm::AesGcm {
            return Err(EncryptionState::InternalError);
        }
        let index = self.key_index.load(Ordering::Relaxed);
        let key = self.rings.of(&self.participant_id, index);
        let (Some(key), Ok(index)) = (key, u8::try_from(index)) else {
            return Err(EncryptionState::MissingKey);
        };
        let iv = {
            let mut state = self.state.lock();
            state.frames = state.frames.wrapping_add(1);
            let mut iv = [0; NONCE_LEN];
            iv[..4].copy_from_slice(&state.sender.to_be_bytes());
            iv[4..8].copy_from_slice(&rtp_timestamp.to_be_bytes());
            iv[8..].copy_from_slice(&state.frames.to_be_bytes());
            iv
        };
        let mut encrypted = Vec::with_capacity(frame.len() + 16 + NONCE_LEN + TRAILER_BYTES);
        encrypted.extend(frame);
        let (clear, secret) = encrypted.split_at_mut(CLEAR_BYTES);
        let tag = key
            .cipher
            .seal_in_place_separate_tag(Nonce::assume_unique_for_key(iv), Aad::from(clear), secret)
            .map_err(|_| EncryptionState::EncryptionFailed)?;
        encrypted.extend(tag.as_ref());
        encrypted.extend(iv);
        encrypted.extend([NONCE_LEN as u8, index]);
        Ok(encrypted)
    }

    /// Decrypts a received frame; returns it unchanged while switched off. `None`: it must not be
    /// played.
    pub fn decrypt(&self, frame: &[u8]) -> Option<Vec<u8>> {
        if !self.enabled.load(Ordering::Acquire) {
            return Some(frame.to_vec());
        }
        if let Some(clear) = self.rings.without_sif_trailer(frame) {
            return Some(clear.to_vec());
        }
        let result = self.try_decrypt(frame);
        match result {
            Ok((frame, state)) => {
                self.show(state);
                Some(frame)
            }
            Err(state) => {
                self.show(state);
                None
            }
        }
    }

    fn try_decrypt(&self, frame: &[u8]) -> Result<(Vec<u8>, EncryptionState), EncryptionState> {
        if self.algorithm != EncryptionAlgorithm::AesGcm {
            return Err(EncryptionState::InternalError);
        }
        let parts = FrameParts::of(frame).ok_or(EncryptionState::DecryptionFailed)?;
        let index = i32::from(parts.key_index);
        let key = self
            .rings
            .of(&self.participant_id, index)
            .ok_or(EncryptionState::MissingKey)?;
        {
            let mut state = self.state.lock();
            let same = state
                .failing
                .as_ref()
                .is_some_and(|failing| Arc::ptr_eq(failing, &key));
            if !same {
                state.failing = None;
                state.failures = 0;
            }
            let tolerance = self.rings.failure_tolerance;
            if tolerance.is_some_and(|tolerance| state.failures > tolerance) {
                return Err(EncryptionState::DecryptionFailed);
            }
        }
        if let Some(frame) = parts.open(&key) {
            self.state.lock().failures = 0;
            // The state stays "ratcheted" until something else happens.
            return Ok((frame, EncryptionState::Ok));
        }
        if let Some((key, frame)) = self.rings.find_ahead_at_once(&key, |key| parts.open(key)) {
            self.rings.replace(&self.participant_id, index, key);
            return Ok((frame, EncryptionState::KeyRatcheted));
        }
        let mut state = self.state.lock();
        state.failures = state.failures.saturating_add(1);
        state.failing = Some(key);
        Err(EncryptionState::DecryptionFailed)
    }

    /// Tells the application the state if it has changed.
    fn show(&self, state: EncryptionState) {
        {
            let mut shown = self.state.lock();
            if shown.shown == state {
                return;
            }
            shown.shown = state;
        }
        log::debug!("encryption of {} is {state:?}", self.participant_id);
        if self.on_state_change.lock().is_none() {
            return;
        }
        // Later and without a lock: this is called in the middle of receiving, and the callback may
        // use the connection.
        let (callbacks, participant_id) =
            (self.on_state_change.clone(), self.participant_id.clone());
        engine::handle().spawn(async move {
            let callback = callbacks.lock().take();
            if let Some(mut callback) = callback {
                callback(participant_id, state);
                callbacks.lock().get_or_insert(callback);
            }
        });
    }
}

/// An encrypted frame of sound.
struct FrameParts<'a> {
    clear: &'a [u8],
    secret: &'a [u8],
    iv: [u8; NONCE_LEN],
    key_index: u8,
}

impl<'a> FrameParts<'a> {
    fn of(frame: &'a [u8]) -> Option<Self> {
        let (rest, [iv_length, key_index]) = frame.split_last_chunk::<TRAILER_BYTES>()?;
        if usize::from(*iv_length) != NONCE_LEN {
            return None;
        }
        let (rest, iv) = rest.split_last_chunk::<NONCE_LEN>()?;
        let (clear, secret) = rest.split_at_checked(CLEAR_BYTES)?;
        Some(Self {
            clear,
            secret,
            iv: *iv,
            key_index: *key_index,
        })
    }

    fn open(&self, key: &Key) -> Option<Vec<u8>> {
        let mut buffer = self.secret.to_vec();
        let nonce = Nonce::assume_unique_for_key(self.iv);
        let opened = key
            .cipher
            .open_in_place(nonce, Aad::from(self.clear), &mut buffer)
            .ok()?;
        Some([self.clear, opened].concat())
    }
}

/// Encrypts the frames of one sender or decrypts those of one receiver. Clones refer to the same
/// cryptor. It begins switched off and then passes everything on unchanged; switched on, what
/// cannot be encrypted is not sent, and what cannot be decrypted is not played.
#[derive(Clone)]
pub struct FrameCryptor {
    cryptor: Arc<Cryptor>,
}

impl FrameCryptor {
    /// Makes the cryptor of a sender, which uses it from now on.
    pub fn new_for_rtp_sender(
        _peer_factory: &PeerConnectionFactory,
        participant_id: String,
        algorithm: EncryptionAlgorithm,
        key_provider: KeyProvider,
        sender: RtpSender,
    ) -> Self {
        let cryptor = Arc::new(Cryptor::new(participant_id, algorithm, key_provider.rings));
        sender.sender.set_cryptor(cryptor.clone());
        Self { cryptor }
    }

    /// Makes the cryptor of a receiver, which uses it from now on. Video is not received, so
    /// nothing is decrypted there.
    pub fn new_for_rtp_receiver(
        _peer_factory: &PeerConnectionFactory,
        participant_id: String,
        algorithm: EncryptionAlgorithm,
        key_provider: KeyProvider,
        receiver: RtpReceiver,
    ) -> Self {
        let cryptor = Arc::new(Cryptor::new(participant_id, algorithm, key_provider.rings));
        if let Some(audio) = &receiver.receiver.audio {
            audio.set_cryptor(cryptor.clone());
        }
        Self { cryptor }
    }

    /// Switches the cryptor on or off.
    pub fn set_enabled(&self, enabled: bool) {
        self.cryptor.enabled.store(enabled, Ordering::Release);
    }

    /// Whether it is switched on.
    pub fn enabled(&self) -> bool {
        self.cryptor.enabled.load(Ordering::Acquire)
    }

    /// Sets the index of a sender's key; receivers use the index in the frame.
    pub fn set_key_index(&self, index: i32) {
        self.cryptor.key_index.store(index, Ordering::Relaxed);
    }

    /// The index of a sender's key.
    pub fn key_index(&self) -> i32 {
        self.cryptor.key_index.load(Ordering::Relaxed)
    }

    /// Identity of the participant whose frames it encrypts or decrypts.
    pub fn participant_id(&self) -> String {
        self.cryptor.participant_id.clone()
    }

    /// Sets or removes the callback. It is called from the media thread, so it must be quick.
    pub fn on_state_change(&self, handler: Option<OnStateChange>) {
        *self.cryptor.on_state_change.lock() = handler;
    }

    /// Does nothing: trailers belong to video frames.
    pub fn set_packet_trailer_handler(&self, _handler: &PacketTrailerHandler) {}
}

/// Encrypts and decrypts data packets.
#[derive(Clone)]
pub struct DataPacketCryptor {
    algorithm: EncryptionAlgorithm,
    rings: Arc<KeyRings>,
}

impl DataPacketCryptor {
    /// A cryptor with the keys of a provider.
    pub fn new(algorithm: EncryptionAlgorithm, key_provider: KeyProvider) -> Self {
        Self {
            algorithm,
            rings: key_provider.rings,
        }
    }

    fn key(&self, participant_id: &str, key_index: u32) -> Result<(Arc<Key>, i32), String> {
        if self.algorithm != EncryptionAlgorithm::AesGcm {
            return Err(format!(
                "{:?} is not supported for data packets; use AesGcm",
                self.algorithm
            ));
        }
        i32::try_from(key_index)
            .ok()
            .and_then(|index| Some((self.rings.of(participant_id, index)?, index)))
            .ok_or_else(|| format!("there is no key {key_index} for {participant_id}"))
    }

    /// Encrypts data with a participant's key.
    ///
    /// # Errors
    ///
    /// If there is no such key, or the algorithm is not AES-GCM.
    pub fn encrypt(
        &self,
        participant_id: &str,
        key_index: u32,
        data: &[u8],
    ) -> Result<EncryptedPacket, Box<dyn std::error::Error>> {
        let (key, _) = self.key(participant_id, key_index)?;
        let iv: [u8; NONCE_LEN] = rand::random();
        let mut data = data.to_vec();
        key.cipher
            .seal_in_place_append_tag(Nonce::assume_unique_for_key(iv), Aad::empty(), &mut data)
            .map_err(|_| format!("{} bytes could not be encrypted", data.len()))?;
        Ok(EncryptedPacket {
            data,
            iv: iv.to_vec(),
            key_index,
        })
    }

    /// Decrypts data with a participant's key, or with a later ratchet step of it, which then
    /// replaces the key.
    ///
    /// # Errors
    ///
    /// If there is no such key, or none that fits.
    pub fn decrypt(
        &self,
        participant_id: &str,
        encrypted_packet: &EncryptedPacket,
    ) -> Result<Vec<u8>, Box<dyn std::error::Error>> {
        let EncryptedPacket {
            data,
            iv,
            key_index,
        } = encrypted_packet;
        let (key, index) = self.key(participant_id, *key_index)?;
        let iv: [u8; NONCE_LEN] = iv.as_slice().try_into().map_err(|_| {
            format!(
                "data of {participant_id} has an initialisation vector of {} bytes instead of {NONCE_LEN}",
                iv.len()
            )
        })?;
        let open = |key: &Key| {
            let mut buffer = data.clone();
            let nonce = Nonce::assume_unique_for_key(iv);
            let opened = key.cipher.open_in_place(nonce, Aad::empty(), &mut buffer);
            opened.ok().map(|opened| opened.to_vec())
        };
        if let Some(data) = open(&key) {
            return Ok(data);
        }
        match self.rings.find_ahead(&key, open) {
            Some((key, data)) => {
                self.rings.replace(participant_id, index, key);
                Ok(data)
            }
            None => {
                Err(format!("data of {participant_id} does not fit its key {key_index}").into())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn provider(shared_key: bool, failure_tolerance: i32) -> KeyProvider {
        let provider = KeyProvider::new(KeyProviderOptions {
            shared_key,
            ratchet_window_size: 4,
            ratchet_salt: b"LKFrameEncryptionKey".to_vec(),
            failure_tolerance,
            key_ring_size: 16,
            key_derivation_algorithm: KeyDerivationAlgorithm::HKDF,
        });
        if shared_key {
            provider.set_shared_key(0, b"password".to_vec());
        }
        provider
    }

    /// A cryptor that is switched on, and the states that it reports.
    fn cryptor(provider: &KeyProvider) -> (FrameCryptor, Arc<Mutex<Vec<EncryptionState>>>) {
        let algorithm = EncryptionAlgorithm::AesGcm;
        let cryptor = Cryptor::new("anna".to_owned(), algorithm, provider.rings.clone());
        let cryptor = FrameCryptor {
            cryptor: Arc::new(cryptor),
        };
        let states = Arc::new(Mutex::new(vec![]));
        let told = states.clone();
        cryptor.on_state_change(Some(Box::new(move |_, state| told.lock().push(state))));
        cryptor.set_enabled(true);
        (cryptor, states)
    }

    /// Waits until so many states were reported, and returns all.
    fn told(states: &Mutex<Vec<EncryptionState>>, count: usize) -> Vec<EncryptionState> {
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while states.lock().len() < count && std::time::Instant::now() < deadline {
            std::thread::yield_now();
        }
        states.lock().clone()
    }

    const FRAME: &[u8] = b"\x78 a frame of Opus";

    #[test]
    fn frame_comes_back_and_shows_only_its_first_byte() {
        let (ours, states) = cryptor(&provider(true, -1));
        let (theirs, _) = cryptor(&provider(true, -1));
        let encrypted = ours.cryptor.encrypt(FRAME, 960).expect("there is a key");
        assert_eq!(encrypted.len(), FRAME.len() + 16 + 12 + 2);
        assert_eq!(encrypted[0], FRAME[0]);
        assert!(!encrypted.windows(4).any(|part| part == b"Opus"));
        assert_eq!(encrypted[encrypted.len() - 2..], [12, 0]);
        assert_eq!(theirs.cryptor.decrypt(&encrypted).as_deref(), Some(FRAME));
        assert_ne!(
            ours.cryptor.encrypt(FRAME, 960),
            Some(encrypted),
            "no vector comes twice"
        );
        assert_eq!(told(&states, 1), [EncryptionState::Ok]);
    }

    #[test]
    fn cryptor_that_is_off_changes_nothing() {
        let (ours, _) = cryptor(&provider(true, -1));
        ours.set_enabled(false);
        assert_eq!(ours.cryptor.encrypt(FRAME, 0).as_deref(), Some(FRAME));
        assert_eq!(ours.cryptor.decrypt(FRAME).as_deref(), Some(FRAME));
    }

    #[test]
    fn nothing_is_sent_or_heard_without_a_key_and_the_application_is_told_once() {
        let keyless = provider(false, -1);
        let (ours, states) = cryptor(&keyless);
        let (sender, _) = cryptor(&provider(true, -1));
        let encrypted = sender.cryptor.encrypt(FRAME, 0).expect("there is a key");
        for _ in 0..3 {
            assert_eq!(ours.cryptor.encrypt(FRAME, 0), None);
            assert_eq!(ours.cryptor.decrypt(&encrypted), None);
        }
        assert_eq!(told(&states, 1), [EncryptionState::MissingKey]);
        keyless.set_key("anna".to_owned(), 0, b"password".to_vec());
        assert_eq!(ours.cryptor.decrypt(&encrypted).as_deref(), Some(FRAME));
        assert_eq!(
            told(&states, 2),
            [EncryptionState::MissingKey, EncryptionState::Ok]
        );
    }

    #[test]
    fn damaged_or_foreign_frames_are_not_heard() {
        let (ours, states) = cryptor(&provider(true, -1));
        let encrypted = ours.cryptor.encrypt(FRAME, 0).expect("there is a key");
        for position in 0..encrypted.len() {
            let mut damaged = encrypted.clone();
            damaged[position] ^= 1;
            assert_eq!(ours.cryptor.decrypt(&damaged), None, "byte {position}");
        }
        assert_eq!(ours.cryptor.decrypt(&encrypted).as_deref(), Some(FRAME));
        assert!(told(&states, 3).contains(&EncryptionState::DecryptionFailed));
    }

    #[test]
    fn frame_of_the_server_is_heard_without_a_key() {
        let provider = provider(true, -1);
        provider.set_sif_trailer(b"MARK".to_vec());
        let (ours, _) = cryptor(&provider);
        assert_eq!(
            ours.cryptor.decrypt(b"silenceMARK").as_deref(),
            Some(&b"silence"[..])
        );
        assert_eq!(ours.cryptor.decrypt(b"silence"), None);
    }

    #[test]
    fn sender_that_ratchets_is_followed() {
        let (theirs, ours) = (provider(true, -1), provider(true, -1));
        let (sender, _) = cryptor(&theirs);
        let (receiver, states) = cryptor(&ours);
        theirs.ratchet_shared_key(0);
        let material = theirs.ratchet_shared_key(0);
        let encrypted = sender.cryptor.encrypt(FRAME, 0).expect("there is a key");
        // The later keys are derived by another thread, and what comes meanwhile is not played.
        let heard = std::iter::repeat_with(|| {
            std::thread::yield_now();
            receiver.cryptor.decrypt(&encrypted)
        });
        let heard = heard.take(1_000_000).flatten().next();
        assert_eq!(heard.as_deref(), Some(FRAME));
        let states = told(&states, 2);
        assert_eq!(
            states.last(),
            Some(&EncryptionState::KeyRatcheted),
            "{states:?}"
        );
        assert_eq!(ours.get_key("anna".to_owned(), 0), material);
    }

    #[test]
    fn key_that_failed_too_often_is_not_tried_again_until_it_is_another() {
        let keys = provider(true, 2);
        let (receiver, _) = cryptor(&keys);
        let (sender, _) = cryptor(&provider(true, -1));
        let good = sender.cryptor.encrypt(FRAME, 0).expect("there is a key");
        let mut bad = good.clone();
        bad[5] ^= 1;
        for _ in 0..3 {
            assert_eq!(receiver.cryptor.decrypt(&bad), None);
        }
        assert_eq!(
            receiver.cryptor.decrypt(&good),
            None,
            "the key was given up"
        );
        keys.set_shared_key(0, b"password".to_vec());
        assert_eq!(receiver.cryptor.decrypt(&good).as_deref(), Some(FRAME));
    }

    #[test]
    fn data_comes_back_and_follows_a_ratcheting_sender() {
        let (theirs, ours) = (provider(true, -1), provider(true, -1));
        let sender = DataPacketCryptor::new(EncryptionAlgorithm::AesGcm, theirs.clone());
        let receiver = DataPacketCryptor::new(EncryptionAlgorithm::AesGcm, ours);
        for _ in 0..3 {
            let packet = sender.encrypt("anna", 0, b"hello").expect("there is a key");
            assert_ne!(packet.data[..5], *b"hello");
            assert_eq!(
                receiver.decrypt("anna", &packet).expect("the same key"),
                b"hello"
            );
            theirs.ratchet_shared_key(0);
        }
        let mut packet = sender.encrypt("anna", 0, b"hello").expect("there is a key");
        packet.data[0] ^= 1;
        assert!(receiver.decrypt("anna", &packet).is_err());
        packet.iv.clear();
        assert!(receiver.decrypt("anna", &packet).is_err());
        let error = sender
            .encrypt("anna", 7, b"hello")
            .expect_err("no such key");
        assert!(error.to_string().contains("no key 7"), "{error}");
    }

    proptest! {
        /// Whatever comes from the network is either decrypted or dropped.
        #[test]
        fn arbitrary_frames_are_dropped(frame in prop::collection::vec(any::<u8>(), 0..80)) {
            let (ours, _) = cryptor(&provider(true, 0));
            prop_assert_eq!(ours.cryptor.decrypt(&frame), None);
        }
    }
}
