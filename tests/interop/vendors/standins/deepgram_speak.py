"""Deepgram Aura, voices: `/v1/speak`.

Messages and query: deepgram/deepgram-api-specs `asyncapi.yml` `/v1/speak`; what Flush, Clear and Close do:
developers.deepgram.com/docs/{tts-ws-flush,tts-ws-clear,tts-ws-close}. Text is generated at a flush, or when 2000
characters wait.
"""

import asyncio
import json

from aiohttp import web

from .core import Connection, Vendor, pieces
from .deepgram_listen import ERRORS, bad_request, check_key, error_body
from .sound import encode, speak

RATES = {"linear16": (8000, 16000, 24000, 32000, 48000), "mulaw": (8000, 16000), "alaw": (8000, 16000)}
MAX_WAITING = 2000


def routes(vendor: Vendor):
    vendor.error_body = lambda status: error_body(*ERRORS.get(status, ("INTERNAL_SERVER_ERROR", "Internal server error.")))
    return [web.get("/v1/speak", vendor.socket(check, talk))]


def check(c: Connection) -> dict:
    check_key(c)
    query = c.request.query
    model, encoding = query.get("model", "aura-asteria-en"), query.get("encoding", "linear16")
    if not model.startswith(("aura-", "aura-2-")):
        raise bad_request("Bad Request: No such model found.")
    if encoding not in RATES:
        raise bad_request(f"Bad Request: unsupported encoding {encoding}.")
    rate = query.get("sample_rate", "24000" if encoding == "linear16" else "8000")
    if not rate.isdigit() or int(rate) not in RATES[encoding]:
        raise bad_request(f"Bad Request: unsupported sample rate {rate}.")
    return {"model": model, "encoding": encoding, "rate": int(rate)}


class Voice:
    """Speaks what was flushed, in order."""

    def __init__(self, c: Connection):
        self.c = c
        self.waiting = ""
        self.sequence = 0
        # Text, or the number of a flush.
        self.inbox: asyncio.Queue[str | int] = asyncio.Queue()
        self.task = c.start(self.run())

    def generate(self):
        if self.waiting.strip():
            self.inbox.put_nowait(self.waiting.strip())
        self.waiting = ""

    def flush(self):
        self.generate()
        self.inbox.put_nowait(self.sequence)
        self.sequence += 1

    async def clear(self):
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)
        self.waiting, self.inbox = "", asyncio.Queue()
        self.task = self.c.start(self.run())
        await self.c.send({"type": "Cleared", "sequence_id": self.sequence}, "Cleared")

    async def run(self):
        asked = self.c.checked
        rate = self.c.fault["rate"] if self.c.has_fault("wrong_rate") else asked["rate"]
        while True:
            what = await self.inbox.get()
            if isinstance(what, int):
                for _ in range(2 if self.c.has_fault("double_finals") else 1):
                    await self.c.send({"type": "Flushed", "sequence_id": what}, "Flushed", final=True)
                continue
            async for piece in pieces(self.c, speak(what, rate, self.c.script.says).samples, rate):
                await self.c.send_bytes(encode(piece, asked["encoding"]))


async def talk(c: Connection):
    metadata = {"type": "Metadata", "request_id": c.id, "model_name": c.checked["model"], "model_version": "2026-01-01.0"}
    metadata |= {"model_uuid": "ecb76e9d-f2db-4127-8060-79b05590d22f"}
    await c.send(metadata, "Metadata")
    voice = Voice(c)
    while True:
        data = await c.receive()
        try:
            message = json.loads(data)
            kind = message["type"]
            text = message["text"] if kind == "Speak" else ""
            if kind not in ("Speak", "Flush", "Clear", "Close") or not isinstance(text, str):
                raise ValueError(kind)
        except (ValueError, TypeError, KeyError):
            c.note({"unknown": str(data)[:200]})
            await c.end(1008, "DATA-0000: The message cannot be read.")
        c.note(message)
        if kind == "Speak":
            if len(text) > MAX_WAITING:
                await c.send({"type": "Warning", "code": "TEXT_LENGTH_EXCEEDED", "description": "The text is too long."}, "Warning")
                continue
            voice.waiting += text
            if len(voice.waiting) >= MAX_WAITING:
                voice.generate()
        elif kind == "Flush":
            voice.flush()
        elif kind == "Clear":
            await voice.clear()
        else:
            return
