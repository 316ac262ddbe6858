//! Makes peer connections and local tracks.

use crate::{
    MediaType, RtcError,
    peer_connection::PeerConnection,
    rtp_parameters::{RtpCapabilities, RtpCodecCapability, RtpHeaderExtensionCapability},
    rtp_transceiver::RtpTransceiverDirection,
};

/// A STUN or TURN server.
#[derive(Debug, Clone)]
pub struct IceServer {
    /// For example `turn:turn.example.org:3478?transport=udp`.
    pub urls: Vec<String>,
    /// User name for TURN; empty for STUN.
    pub username: String,
    /// Password for TURN; empty for STUN.
    pub password: String,
}

/// Whether new candidates are gathered while the connection lives.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub enum ContinualGatheringPolicy {
    /// Only with the first description and after a restart of ICE.
    GatherOnce,
    /// Also when network interfaces come and go.
    GatherContinually,
}

/// Which candidates may be used.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub enum IceTransportsType {
    /// Only relays on TURN servers.
    Relay,
    /// All but the addresses of this machine's interfaces.
    NoHost,
    /// All.
    All,
}

/// Configuration of a [`PeerConnection`]. Start from [`RtcConfiguration::default`] and set what you
/// need.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct RtcConfiguration {
    /// STUN and TURN servers.
    pub ice_servers: Vec<IceServer>,
    /// Whether new candidates are gathered later on.
    pub continual_gathering_policy: ContinualGatheringPolicy,
    /// Which candidates may be used.
    pub ice_transport_type: IceTransportsType,
    /// Send the first SCTP packet inside the session description, which saves two round trips when
    /// the other side can do so too.
    pub enable_sctp_snap: bool,
}

impl Default for RtcConfiguration {
    fn default() -> Self {
        Self {
            ice_servers: vec![],
            continual_gathering_policy: ContinualGatheringPolicy::GatherContinually,
            ice_transport_type: IceTransportsType::All,
            enable_sctp_snap: false,
        }
    }
}

/// Makes peer connections. It has no state: the media thread is started by the first connection.
#[derive(Clone, Debug, Default)]
pub struct PeerConnectionFactory {}

impl PeerConnectionFactory {
    /// As [`PeerConnectionFactory::default`]: the option concerns video, which is not supported.
    pub fn with_zero_playout_delay() -> Self {
        Self::default()
    }

    /// As [`PeerConnectionFactory::default`]. The first option concerns video; the second allows
    /// DTLS inside STUN, an acceleration that both sides must offer and this one does not.
    pub fn with_options(_zero_playout_delay: bool, _enable_warp: bool) -> Self {
        Self::default()
    }

    /// Opens the sockets of a new connection.
    ///
    /// # Errors
    ///
    /// `Internal` when this machine has no address that can be used, or no socket can be bound.
    pub fn create_peer_connection(
        &self,
        config: RtcConfiguration,
    ) -> Result<PeerConnection, RtcError> {
        PeerConnection::open(config)
    }

    /// Codecs and header extensions that can be sent.
    pub fn get_rtp_sender_capabilities(&self, media_type: MediaType) -> RtpCapabilities {
        capabilities(media_type)
    }

    /// Codecs and header extensions that can be received.
    pub fn get_rtp_receiver_capabilities(&self, media_type: MediaType) -> RtpCapabilities {
        capabilities(media_type)
    }
}

fn capabilities(media_type: MediaType) -> RtpCapabilities {
    if media_type != MediaType::Audio {
        return RtpCapabilities {
            codecs: vec![],
            header_extensions: vec![],
        };
    }
    RtpCapabilities {
        codecs: [
            ("audio/opus", "minptime=10;useinbandfec=1"),
            ("audio/red", "111/111"),
        ]
        .map(|(mime_type, parameters)| RtpCodecCapability {
            channels: Some(2),
            clock_rate: Some(48_000),
            mime_type: mime_type.to_owned(),
            sdp_fmtp_line: Some(parameters.to_owned()),
        })
        .to_vec(),
        header_extensions: crate::jsep::AUDIO_EXTENSIONS
            .iter()
            .map(|(_, uri)| RtpHeaderExtensionCapability {
                uri: (*uri).to_owned(),
                direction: RtpTransceiverDirection::SendRecv,
            })
            .collect(),
    }
}

/// What only native engines offer.
pub mod native {
    use super::PeerConnectionFactory;
    use crate::{
        audio_source::native::NativeAudioSource, audio_track::RtcAudioTrack,
        video_source::native::NativeVideoSource, video_track::RtcVideoTrack,
    };

    macro_rules! factory_extension {
        ($(
            $(#[$attribute:meta])*
            fn $name:ident(&$this:ident $(, $argument:ident: $argument_type:ty)*) $(-> $result:ty)? $body:block
        )*) => {
            /// Local tracks and audio devices. This engine has no devices: there are none to list,
            /// and what would use one returns `false`.
            pub trait PeerConnectionFactoryExt {
                $($(#[$attribute])* fn $name(&self $(, $argument: $argument_type)*) $(-> $result)?;)*
            }

            impl PeerConnectionFactoryExt for PeerConnectionFactory {
                $(fn $name(&$this $(, $argument: $argument_type)*) $(-> $result)? $body)*
            }
        };
    }

    factory_extension! {
        /// A track that sends what is pushed into `source`.
        fn create_audio_track(&self, label: &str, source: NativeAudioSource) -> RtcAudioTrack {
            RtcAudioTrack::from_source(label.to_owned(), source)
        }
        /// A video track. It can be made, but adding it to a connection is refused.
        fn create_video_track(&self, label: &str, source: NativeVideoSource) -> RtcVideoTrack {
            let _ = source;
            RtcVideoTrack::new(label.to_owned())
        }
        /// A track of a microphone. There are no devices, so it stays silent for ever.
        fn create_device_audio_track(&self, label: &str) -> RtcAudioTrack {
            log::warn!("audio devices are not supported: track {label} will be silent");
            RtcAudioTrack::silent(label.to_owned())
        }
        /// Number of loudspeakers.
        fn playout_devices(&self) -> i16 { 0 }
        /// Number of microphones.
        fn recording_devices(&self) -> i16 { 0 }
        /// Name of a loudspeaker.
        fn playout_device_name(&self, _index: u16) -> String { String::new() }
        /// Name of a microphone.
        fn recording_device_name(&self, _index: u16) -> String { String::new() }
        /// Persistent id of a loudspeaker.
        fn playout_device_guid(&self, _index: u16) -> String { String::new() }
        /// Persistent id of a microphone.
        fn recording_device_guid(&self, _index: u16) -> String { String::new() }
        /// Chooses a loudspeaker.
        fn set_playout_device(&self, _index: u16) -> bool { false }
        /// Chooses a microphone.
        fn set_recording_device(&self, _index: u16) -> bool { false }
        /// Chooses a loudspeaker.
        fn set_playout_device_by_guid(&self, _guid: &str) -> bool { false }
        /// Chooses a microphone.
        fn set_recording_device_by_guid(&self, _guid: &str) -> bool { false }
        /// Stops the microphone.
        fn stop_recording(&self) -> bool { false }
        /// Prepares the microphone.
        fn init_recording(&self) -> bool { false }
        /// Starts the microphone.
        fn start_recording(&self) -> bool { false }
        /// Whether a microphone is ready.
        fn recording_is_initialized(&self) -> bool { false }
        /// Stops the loudspeaker.
        fn stop_playout(&self) -> bool { false }
        /// Prepares the loudspeaker.
        fn init_playout(&self) -> bool { false }
        /// Starts the loudspeaker.
        fn start_playout(&self) -> bool { false }
        /// Whether a loudspeaker is ready.
        fn playout_is_initialized(&self) -> bool { false }
        /// Whether the device cancels echo.
        fn builtin_aec_is_available(&self) -> bool { false }
        /// Whether the device controls the level.
        fn builtin_agc_is_available(&self) -> bool { false }
        /// Whether the device suppresses noise.
        fn builtin_ns_is_available(&self) -> bool { false }
        /// Switches echo cancelling.
        fn enable_builtin_aec(&self, _enable: bool) -> bool { false }
        /// Switches level control.
        fn enable_builtin_agc(&self, _enable: bool) -> bool { false }
        /// Switches noise suppression.
        fn enable_builtin_ns(&self, _enable: bool) -> bool { false }
        /// Allows recording from a device.
        fn set_adm_recording_enabled(&self, _enabled: bool) {}
        /// Whether recording from a device is allowed.
        fn adm_recording_enabled(&self) -> bool { false }
        /// Allows playing on a device.
        fn set_adm_playout_enabled(&self, _enabled: bool) {}
        /// Whether playing on a device is allowed.
        fn adm_playout_enabled(&self) -> bool { false }
        /// Acquires the audio devices.
        fn acquire_platform_adm(&self) -> bool { false }
        /// Releases the audio devices.
        fn release_platform_adm(&self) {}
        /// How often the audio devices were acquired and not released.
        fn platform_adm_ref_count(&self) -> i32 { 0 }
        /// Whether the audio devices are acquired.
        fn is_platform_adm_active(&self) -> bool { false }
    }
}
