"""The stand-ins by the name under which a test controls them."""

from . import deepgram_listen

SERVICES = {
    "deepgram-listen": deepgram_listen,
}
