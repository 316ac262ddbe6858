"""AssemblyAI, recognition of streams, version 3: `/v3/ws`.

Messages and query: the classes of assemblyai 1.8.2 `streaming/v3/models.py`; the order and the meaning of `transcript`,
`utterance` and of formatted turns: assemblyai.com/docs/streaming/universal-streaming/message-sequence and
…/universal-3-pro/u3-pro-message-sequence; the errors: …/docs/streaming/common-session-errors-and-closures. The models
of Universal-Streaming give plain words first and, with `format_turns`, the whole turn once more with punctuation, the
end of turn set in both. The models of Universal-3 give one formatted end, and SpeechStarted.

`session`: "turn_silence_ms" (400), the silence that ends a turn where the client asked for none; "limit_s" ends the
session with 3008.
"""

import json
import time

from aiohttp import web

from .core import Connection, Refused, Vendor
from .sound import Heard, decode

ENCODINGS = {"pcm_s16le": "linear16", "pcm_mulaw": "mulaw"}
UNHEARD = {"opus", "ogg_opus", "aac"}
PLAIN_MODELS = ("universal-streaming-english", "universal-streaming-multilingual")
MODELS = (*PLAIN_MODELS, "u3-rt-pro", "u3-pro", "universal-3-5-pro", "universal-3-6", "universal-3-6-pro")
SHORTEST_MS, LONGEST_MS = 50, 1000
ERRORS = {401: "Not Authorized", 402: "Insufficient Funds", 429: "Too many concurrent sessions"}


def routes(vendor: Vendor):
    vendor.error_body = lambda status: {"error": ERRORS.get(status, "Internal server error")}
    return [web.get("/v3/ws", vendor.socket(check, listen))]


def check(c: Connection) -> dict:
    # The key stands alone in Authorization, or a token in the query.
    if not c.key_is_right():
        raise Refused(401)
    query = c.request.query
    encoding = query.get("encoding", "pcm_s16le")
    if encoding in UNHEARD:
        raise Refused(501, f"this stand-in does not hear {encoding}")
    wrong = None
    if query.get("speech_model") not in MODELS:
        wrong = f"speech_model is required and is one of {', '.join(MODELS)}"
    elif encoding not in ENCODINGS:
        wrong = f"encoding is one of {', '.join(ENCODINGS)}"
    elif not query.get("sample_rate", "16000").isdigit() or not 8000 <= int(query.get("sample_rate", "16000")) <= 48000:
        wrong = "Sample rate must be a positive integer"
    elif query.get("format_turns", "false").lower() not in ("true", "false"):
        wrong = "format_turns is true or false"
    return {
        "wrong": wrong,
        "encoding": ENCODINGS.get(encoding),
        "rate": int(query.get("sample_rate", "16000")) if not wrong else 16000,
        "plain": query.get("speech_model") in PLAIN_MODELS,
        "format": query.get("format_turns", "false").lower() == "true",
        "silence_ms": float(query.get("min_turn_silence") or query.get("min_end_of_turn_silence_when_confident") or 0),
    }


async def fail(c: Connection, code: int, text: str):
    await c.send({"type": "Error", "error_code": code, "error": text}, "Error")
    await c.end(code, text)


async def listen(c: Connection):
    asked = c.checked
    if asked["wrong"]:
        await fail(c, 3006, f"Input validation error: {asked['wrong']}")
    await Session(c, asked).run()


class Session:
    def __init__(self, c: Connection, asked: dict):
        self.c, self.asked = c, asked
        self.turn = 0
        self.recogniser = c.recogniser(asked["rate"], asked["silence_ms"] or c.script.session.get("turn_silence_ms", 400))
        self.began = time.monotonic()

    async def run(self):
        c = self.c
        await c.send({"type": "Begin", "id": c.id, "expires_at": int(time.time()) + 10800}, "Begin")
        limit = c.script.session.get("limit_s")
        while True:
            data = await c.receive(None if limit is None else max(0.0, self.began + limit - time.monotonic()))
            if data is None:
                await fail(c, 3008, "Session Expired: Maximum session duration exceeded")
            if isinstance(data, bytes):
                await self.hear(data)
                continue
            try:
                message = json.loads(data)
                kind = message["type"]
            except (ValueError, TypeError, KeyError):
                c.note({"unknown": data[:200]})
                await fail(c, 3006, "Invalid Message: the message is not JSON with a type")
            c.note(message)
            if kind == "ForceEndpoint":
                for heard in self.recogniser.force_end():
                    await self.tell(heard)
            elif kind == "UpdateConfiguration":
                if silence_ms := message.get("min_turn_silence"):
                    self.recogniser.silence = silence_ms * self.asked["rate"] / 1000
                if message.get("format_turns") is not None:
                    self.asked["format"] = bool(message["format_turns"])
            elif kind == "Terminate":
                for heard in self.recogniser.force_end():
                    await self.tell(heard)
                duration = {
                    "audio_duration_seconds": int(self.recogniser.seconds),
                    "session_duration_seconds": int(time.monotonic() - self.began),
                }
                await c.send({"type": "Termination", **duration}, "Termination")
                return
            elif kind != "KeepAlive":
                await fail(c, 3006, f"Invalid Message: there is no type {kind}")

    async def hear(self, data: bytes):
        rate = self.asked["rate"]
        samples = decode(data, self.asked["encoding"])
        length_ms = len(samples) * 1000 / rate
        await self.c.heard(data, length_ms)
        if not SHORTEST_MS <= length_ms <= LONGEST_MS:
            await fail(self.c, 3007, f"Input Duration violation: {length_ms:.1f} ms. Expected between {SHORTEST_MS} and {LONGEST_MS} ms")
        for at in range(0, len(samples), rate // 10):
            for heard in self.recogniser.feed(samples[at : at + rate // 10]):
                await self.tell(heard)

    async def tell(self, heard: Heard):
        if heard.kind == "started" and not self.asked["plain"] and self.recogniser.has_text:
            await self.c.send({"type": "SpeechStarted", "timestamp": round(heard.start * 1000)}, "SpeechStarted")
        if heard.kind in ("interim", "eager"):
            await self.partial(heard)
        elif heard.kind == "ended" and heard.words:
            if heard.again:
                self.turn -= 1
            if not self.asked["plain"]:
                await self.send(heard, formatted=True, ended=True)
            else:
                await self.send(heard, formatted=False, ended=True)
                if self.asked["format"]:
                    await self.send(heard, formatted=True, ended=True)
            self.turn += 1

    async def partial(self, heard: Heard):
        # The eager end is a pause inside the turn, where the words so far are an utterance.
        if self.asked["plain"] and heard.kind == "interim":
            await self.send(heard, formatted=False, ended=False, open_words=1)
        else:
            await self.send(heard, formatted=not self.asked["plain"], ended=False)

    async def send(self, heard: Heard, formatted: bool, ended: bool, open_words: int = 0):
        sure = self.c.script.hears.get("confidence", 0.98)
        texts = [word.text if formatted else word.text.lower().strip(".,!?;:") for word in heard.words]
        final = len(texts) - open_words
        words = [
            {"text": text, "start": round(word.start * 1000), "end": round(word.end * 1000), "confidence": sure, "word_is_final": n < final}
            for n, (text, word) in enumerate(zip(texts, heard.words))
        ]
        transcript = " ".join(texts[:final])
        message = {
            "type": "Turn",
            "turn_order": self.turn,
            "turn_is_formatted": formatted,
            "end_of_turn": ended,
            "transcript": transcript,
            "utterance": transcript if ended or heard.kind == "eager" else "",
            "end_of_turn_confidence": 0.9 if ended else 0.05,
            "words": words,
        }
        await self.c.send(message, "Turn end" if ended else "Turn", final=ended)
