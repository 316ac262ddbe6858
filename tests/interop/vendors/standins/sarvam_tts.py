"""Sarvam, voices: `/text-to-speech/ws`.

Messages and query: the classes `ConfigureConnection`, `SendText`, `FlushSignal`, `PingSignal`, `AudioOutput` and
`EventResponse` of sarvamai 0.1.39. The language is `language_code` there and `target_language_code` in
livekit-plugins-sarvam; both are read. The completion event comes with `send_completion_event=true` in any case of
letters, after each flush. The content types of raw sound are our guess.

`session`: "idle_s" (60).
"""

import asyncio
import base64
import json

from aiohttp import web

from .core import Connection, Refused, Vendor, pieces
from .sarvam_stt import error_body
from .sound import encode, speak

CODECS = {"linear16": "linear16", "mulaw": "mulaw", "alaw": "alaw"}
UNSPOKEN = ("mp3", "opus", "flac", "aac", "wav")
RATES = (8000, 16000, 22050, 24000)
MODELS = ("bulbul:v2", "bulbul:v3", "bulbul:v4-flash")


def routes(vendor: Vendor):
    vendor.error_body = error_body
    return [web.get("/text-to-speech/ws", vendor.socket(check, talk))]


def check(c: Connection) -> dict:
    query = c.request.query
    if not c.key_is_right():
        raise Refused(403)
    if query.get("model", "bulbul:v2") not in MODELS:
        raise Refused(400, error_body(400, f"model is one of {', '.join(MODELS)}."))
    return {"completion": query.get("send_completion_event", "false").lower() == "true"}


async def refuse(c: Connection, message: str, code: int = 422):
    await c.send({"type": "error", "data": {"message": message, "code": code, "request_id": c.id}}, "error")


def fault_of(config: dict) -> str | None:
    codec = config.get("output_audio_codec") or "mp3"
    if not (config.get("language_code") or config.get("target_language_code")) or not config.get("speaker"):
        return "language_code and speaker are required."
    if config["speaker"] != config["speaker"].lower():
        return "Speaker names are lower case."
    if codec in UNSPOKEN:
        return f"this stand-in does not speak {codec}"
    if codec not in CODECS:
        return f"output_audio_codec {codec} is not supported."
    if config.get("speech_sample_rate", 22050) not in RATES:
        return f"speech_sample_rate is one of {', '.join(map(str, RATES))}."
    return None


class Voice:
    def __init__(self, c: Connection):
        self.c = c
        self.config: dict = {}
        self.buffer = ""
        # The configuration with a text, or `None` for the end of a flush.
        self.inbox: asyncio.Queue[tuple[dict, str] | None] = asyncio.Queue()
        c.start(self.run())

    def add(self, text: str):
        self.buffer += text
        if len(self.buffer) >= (self.config.get("min_buffer_size") or 50):
            self.generate()

    def generate(self):
        if self.buffer.strip():
            self.inbox.put_nowait((self.config, self.buffer.strip()))
        self.buffer = ""

    def flush(self):
        self.generate()
        self.inbox.put_nowait(None)

    async def run(self):
        c = self.c
        while True:
            what = await self.inbox.get()
            if what is None:
                for _ in range((2 if c.has_fault("double_finals") else 1) if c.checked["completion"] else 0):
                    await c.send({"type": "event", "data": {"event_type": "final", "message": "Completed"}}, "final", final=True)
                continue
            config, text = what
            rate = c.fault["rate"] if c.has_fault("wrong_rate") else config.get("speech_sample_rate") or 22050
            codec = config["output_audio_codec"]
            async for piece in pieces(c, speak(text, rate, c.script.says).samples, rate):
                data = {
                    "content_type": f"audio/{codec}",
                    "audio": base64.b64encode(encode(piece, CODECS[codec])).decode(),
                    "request_id": c.id,
                }
                await c.send({"type": "audio", "data": data}, "audio")


async def talk(c: Connection):
    voice = Voice(c)
    while True:
        data = await c.receive(c.script.session.get("idle_s", 60))
        if data is None:
            await c.end(1008, "Inactivity timeout")
        try:
            message = json.loads(data)
            kind = message["type"]
            text = message["data"]["text"] if kind == "text" else ""
        except (ValueError, TypeError, KeyError):
            c.note({"unknown": str(data)[:200]})
            await refuse(c, "The message cannot be read.", 400)
            continue
        c.note(message)
        if kind == "config":
            if wrong := fault_of(message.get("data") or {}):
                await refuse(c, wrong)
                continue
            # What waits is spoken with the settings that it was sent with.
            voice.generate()
            voice.config = message["data"]
        elif kind in ("text", "flush") and not voice.config:
            await refuse(c, "The first message must be the configuration.", 400)
        elif kind == "text":
            if not 1 <= len(text) <= 2500:
                await refuse(c, "Text has 1 to 2500 characters.")
                continue
            voice.add(text)
        elif kind == "flush":
            voice.flush()
        elif kind != "ping":
            await refuse(c, f"There is no message {kind}.", 400)
