//! End-to-end encryption: not supported. Keys are kept so that an application can be configured, but whatever
//! would need a cipher fails: data cannot be encrypted or decrypted, and a frame cryptor that is switched on
//! reports `InternalError`. Media is protected by DTLS-SRTP as in every WebRTC call.

use std::{collections::HashMap, sync::Arc};

use parking_lot::Mutex;

use crate::{
    native::packet_trailer::PacketTrailerHandler, peer_connection_factory::PeerConnectionFactory,
    rtp_receiver::RtpReceiver, rtp_sender::RtpSender,
};

const NOT_SUPPORTED: &str = "end-to-end encryption is not supported by this media engine";

/// Called when the state of a frame cryptor changes, with the participant's identity.
pub type OnStateChange = Box<dyn FnMut(String, EncryptionState) + Send + Sync>;

/// How keys are made from a passphrase.
#[derive(Copy, Clone, Debug)]
#[non_exhaustive]
#[allow(
    clippy::upper_case_acronyms,
    reason = "the names are part of the API that is replaced"
)]
pub enum KeyDerivationAlgorithm {
    PBKDF2,
    HKDF,
}

/// Configuration of a [`KeyProvider`].
#[derive(Debug, Clone)]
pub struct KeyProviderOptions {
    pub shared_key: bool,
    pub ratchet_window_size: i32,
    pub ratchet_salt: Vec<u8>,
    pub failure_tolerance: i32,
    pub key_ring_size: i32,
    pub key_derivation_algorithm: KeyDerivationAlgorithm,
}

/// Cipher of frames and data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EncryptionAlgorithm {
    AesGcm,
    AesCbc,
}

/// State of a frame cryptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EncryptionState {
    New,
    Ok,
    EncryptionFailed,
    DecryptionFailed,
    MissingKey,
    KeyRatcheted,
    InternalError,
}

/// Encrypted data with what is needed to decrypt it.
#[derive(Debug, Clone)]
pub struct EncryptedPacket {
    pub data: Vec<u8>,
    pub iv: Vec<u8>,
    pub key_index: u32,
}

#[derive(Default)]
struct Keys {
    shared: HashMap<i32, Vec<u8>>,
    by_participant: HashMap<(String, i32), Vec<u8>>,
}

/// Keeps keys. Ratcheting needs a cipher and yields nothing.
#[derive(Clone)]
pub struct KeyProvider {
    keys: Arc<Mutex<Keys>>,
}

impl KeyProvider {
    /// An empty provider.
    pub fn new(_options: KeyProviderOptions) -> Self {
        log::warn!("{NOT_SUPPORTED}");
        Self {
            keys: Arc::default(),
        }
    }

    /// Keeps a key for everybody.
    pub fn set_shared_key(&self, key_index: i32, key: Vec<u8>) -> bool {
        self.keys.lock().shared.insert(key_index, key);
        true
    }

    /// Not supported: always `None`.
    pub fn ratchet_shared_key(&self, _key_index: i32) -> Option<Vec<u8>> {
        None
    }

    /// The key for everybody.
    pub fn get_shared_key(&self, key_index: i32) -> Option<Vec<u8>> {
        self.keys.lock().shared.get(&key_index).cloned()
    }

    /// Keeps a key of one participant.
    pub fn set_key(&self, participant_id: String, key_index: i32, key: Vec<u8>) -> bool {
        self.keys
            .lock()
            .by_participant
            .insert((participant_id, key_index), key);
        true
    }

    /// Not supported: always `None`.
    pub fn ratchet_key(&self, _participant_id: String, _key_index: i32) -> Option<Vec<u8>> {
        None
    }

    /// The key of one participant.
    pub fn get_key(&self, participant_id: String, key_index: i32) -> Option<Vec<u8>> {
        self.keys
            .lock()
            .by_participant
            .get(&(participant_id, key_index))
            .cloned()
    }

    /// Marker of frames that the server injects; nothing is encrypted, so it is not needed.
    pub fn set_sif_trailer(&self, _trailer: Vec<u8>) {}
}

struct Cryptor {
    participant_id: String,
    key_index: i32,
    enabled: bool,
    on_state_change: Option<OnStateChange>,
}

/// Would encrypt the frames of one sender or decrypt those of one receiver. Switching it on reports
/// [`EncryptionState::InternalError`].
#[derive(Clone)]
pub struct FrameCryptor {
    cryptor: Arc<Mutex<Cryptor>>,
}

impl FrameCryptor {
    fn new(participant_id: String) -> Self {
        let cryptor = Cryptor {
            participant_id,
            key_index: 0,
            enabled: false,
            on_state_change: None,
        };
        Self {
            cryptor: Arc::new(Mutex::new(cryptor)),
        }
    }

    /// Cryptor of a sender.
    pub fn new_for_rtp_sender(
        _peer_factory: &PeerConnectionFactory,
        participant_id: String,
        _algorithm: EncryptionAlgorithm,
        _key_provider: KeyProvider,
        _sender: RtpSender,
    ) -> Self {
        Self::new(participant_id)
    }

    /// Cryptor of a receiver.
    pub fn new_for_rtp_receiver(
        _peer_factory: &PeerConnectionFactory,
        participant_id: String,
        _algorithm: EncryptionAlgorithm,
        _key_provider: KeyProvider,
        _receiver: RtpReceiver,
    ) -> Self {
        Self::new(participant_id)
    }

    /// Switching on is answered by the state `InternalError`, as nothing will be encrypted.
    pub fn set_enabled(&self, enabled: bool) {
        let mut cryptor = self.cryptor.lock();
        cryptor.enabled = enabled;
        if !enabled {
            return;
        }
        log::error!(
            "{NOT_SUPPORTED}: frames of {} are not encrypted",
            cryptor.participant_id
        );
        let participant_id = cryptor.participant_id.clone();
        if let Some(mut callback) = cryptor.on_state_change.take() {
            drop(cryptor);
            callback(participant_id, EncryptionState::InternalError);
            self.cryptor.lock().on_state_change.get_or_insert(callback);
        }
    }

    /// Whether it was switched on.
    pub fn enabled(&self) -> bool {
        self.cryptor.lock().enabled
    }

    /// Chooses the key.
    pub fn set_key_index(&self, index: i32) {
        self.cryptor.lock().key_index = index;
    }

    /// The chosen key.
    pub fn key_index(&self) -> i32 {
        self.cryptor.lock().key_index
    }

    /// Whose frames they are.
    pub fn participant_id(&self) -> String {
        self.cryptor.lock().participant_id.clone()
    }

    /// Sets or removes the callback.
    pub fn on_state_change(&self, handler: Option<OnStateChange>) {
        self.cryptor.lock().on_state_change = handler;
    }

    /// Concerns video frames only.
    pub fn set_packet_trailer_handler(&self, _handler: &PacketTrailerHandler) {}
}

/// Would encrypt data packets; every call fails.
#[derive(Clone)]
pub struct DataPacketCryptor {}

impl DataPacketCryptor {
    /// A cryptor that fails.
    pub fn new(_algorithm: EncryptionAlgorithm, _key_provider: KeyProvider) -> Self {
        Self {}
    }

    /// Not supported: always an error.
    pub fn encrypt(
        &self,
        _participant_id: &str,
        _key_index: u32,
        _data: &[u8],
    ) -> Result<EncryptedPacket, Box<dyn std::error::Error>> {
        Err(NOT_SUPPORTED.into())
    }

    /// Not supported: always an error.
    pub fn decrypt(
        &self,
        _participant_id: &str,
        _encrypted_packet: &EncryptedPacket,
    ) -> Result<Vec<u8>, Box<dyn std::error::Error>> {
        Err(NOT_SUPPORTED.into())
    }
}
