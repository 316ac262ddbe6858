"""The stand-ins by the name under which a test controls them."""

from . import cartesia_stt, cartesia_tts, deepgram_listen, elevenlabs_tts

SERVICES = {
    "cartesia-stt": cartesia_stt,
    "cartesia-tts": cartesia_tts,
    "deepgram-listen": deepgram_listen,
    "elevenlabs-tts": elevenlabs_tts,
}
