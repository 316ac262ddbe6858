"""The stand-ins by the name under which a test controls them."""

from . import deepgram_listen, elevenlabs_tts

SERVICES = {
    "deepgram-listen": deepgram_listen,
    "elevenlabs-tts": elevenlabs_tts,
}
