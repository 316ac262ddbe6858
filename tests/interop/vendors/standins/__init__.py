"""The stand-ins by the name under which a test controls them."""

from . import (
    anthropic,
    assemblyai,
    cartesia_stt,
    cartesia_tts,
    deepgram_flux,
    deepgram_listen,
    deepgram_speak,
    elevenlabs_scribe,
    elevenlabs_tts,
    gemini,
    gemini_live,
    openai_realtime,
    sarvam_stt,
    sarvam_tts,
)

SERVICES = {
    "anthropic": anthropic,
    "assemblyai": assemblyai,
    "cartesia-stt": cartesia_stt,
    "cartesia-tts": cartesia_tts,
    "deepgram-flux": deepgram_flux,
    "deepgram-listen": deepgram_listen,
    "deepgram-speak": deepgram_speak,
    "elevenlabs-scribe": elevenlabs_scribe,
    "elevenlabs-tts": elevenlabs_tts,
    "gemini": gemini,
    "gemini-live": gemini_live,
    "openai-realtime": openai_realtime,
    "sarvam-stt": sarvam_stt,
    "sarvam-tts": sarvam_tts,
}
