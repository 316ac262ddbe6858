"""Deepgram, recognition of streams, version 1: `/v1/listen`.

Messages and query: deepgram/deepgram-api-specs `asyncapi.yml` `/v1/listen`; end of speech, Finalize, CloseStream,
KeepAlive and refusals:
developers.deepgram.com/docs/{endpointing,utterance-end,finalize,close-stream,audio-keep-alive,errors}, the closing
codes …/docs/stt-troubleshooting-websocket-data-and-net-errors.

`session`: "idle_s" (10) without anything from the client ends the connection; "speech_final_on_finalize" (false):
whether the answer to Finalize also ends the speech, about which the specification is silent.
"""

import hashlib
import json
import re
from datetime import datetime, timezone

from aiohttp import web

from .core import Connection, Refused, Vendor, new_id
from .sound import Heard, decode

MODELS = re.compile(
    r"nova-3(-general|-medical)?|nova-2(-(general|meeting|finance|conversationalai|voicemail|video|medical|drivethru|automotive))?"
    r"|nova(-general|-phonecall|-medical)?|enhanced(-(general|meeting|phonecall|finance))?"
    r"|base|meeting|phonecall|finance|conversationalai|voicemail|video|custom"
)
SPOKEN = {"linear16", "mulaw", "alaw"}
# In the specification, but this recogniser does not hear them.
UNHEARD = {"linear32", "flac", "amr-nb", "amr-wb", "opus", "ogg-opus", "speex", "g729"}
BOOLEANS = (
    "diarize",
    "dictation",
    "interim_results",
    "multichannel",
    "numerals",
    "punctuate",
    "smart_format",
    "vad_events",
    "profanity_filter",
)
ERRORS = {
    400: ("Bad Request", "Bad request."),
    401: ("INVALID_AUTH", "Invalid credentials."),
    402: ("ASR_PAYMENT_REQUIRED", "Project does not have enough credits for an ASR request and does not have an overage agreement."),
    403: ("INSUFFICIENT_PERMISSIONS", "User does not have sufficient permissions."),
    429: ("TOO_MANY_REQUESTS", "Too many requests. Please try again later"),
}


def routes(vendor: Vendor):
    vendor.error_body = lambda status: error_body(*ERRORS.get(status, ("INTERNAL_SERVER_ERROR", "Internal server error.")))
    return [web.get("/v1/listen", vendor.socket(check, listen))]


def error_body(code: str, message: str) -> dict:
    return {"err_code": code, "err_msg": message, "request_id": new_id()}


def check_key(c: Connection):
    """Deepgram takes `Token KEY`, or `Bearer` with a temporary token."""
    c.answer_headers["dg-request-id"] = c.id
    scheme = c.request.headers.get("Authorization", "").partition(" ")[0].lower()
    if scheme not in ("token", "bearer") or not c.key_is_right():
        raise Refused(401, headers={"dg-error": "Invalid credentials."})


def bad_request(message: str) -> Refused:
    return Refused(400, error_body("Bad Request", message), {"dg-error": message})


def check_sound(query) -> tuple[str | None, int]:
    encoding = query.get("encoding")
    if encoding is None:
        return None, 0
    if encoding in UNHEARD:
        raise Refused(501, f"this stand-in does not hear {encoding}")
    if encoding not in SPOKEN:
        raise bad_request(f"Bad Request: unsupported encoding {encoding}.")
    try:
        rate = int(query["sample_rate"])
    except (KeyError, ValueError):
        raise bad_request("Bad Request: sample_rate is required with encoding and is a whole number.") from None
    if not 8000 <= rate <= 48000:
        raise bad_request(f"Bad Request: unsupported sample rate {rate}.")
    return encoding, rate


def check(c: Connection) -> dict:
    check_key(c)
    query = c.request.query
    model = query.get("model", "base")
    if not MODELS.fullmatch(model):
        raise bad_request("Bad Request: No such model/language/tier combination found.")
    for name in BOOLEANS:
        if query.get(name, "true") not in ("true", "false"):
            raise bad_request(f"Bad Request: {name} is true or false.")
    if query.get("channels", "1") != "1":
        raise Refused(501, "this stand-in hears one channel")
    encoding, rate = check_sound(query)
    endpointing = query.get("endpointing", "10")
    utterance_end = query.get("utterance_end_ms")
    if endpointing not in ("true", "false") and not endpointing.isdigit():
        raise bad_request("Bad Request: endpointing is a number of milliseconds or false.")
    if utterance_end is not None and not utterance_end.isdigit():
        raise bad_request("Bad Request: utterance_end_ms is a number of milliseconds.")
    return {
        "model": model,
        "encoding": encoding,
        "rate": rate,
        "endpointing": None if endpointing == "false" else 10.0 if endpointing == "true" else float(endpointing),
        # Utterance ends are found in interim results.
        "utterance_end": float(utterance_end) / 1000 if utterance_end and query.get("interim_results") == "true" else None,
        "interim": query.get("interim_results") == "true",
        "vad_events": query.get("vad_events") == "true",
        "punctuated": "true" in (query.get("punctuate"), query.get("smart_format")),
    }


async def listen(c: Connection):
    session = Session(c, c.checked)
    while True:
        message = await c.receive(c.script.session.get("idle_s", 10))
        if message is None:
            await c.end(1011, "NET-0001: Deepgram did not receive audio data or a text message within the timeout window.")
        if isinstance(message, bytes) and message:
            await session.hear(message)
            continue
        # An empty binary message ends the stream.
        kind = "CloseStream" if message == b"" else await session.read(message)
        if kind == "Finalize":
            for heard in session.recogniser.finalize():
                await session.tell(heard)
        elif kind == "CloseStream":
            await session.close()
            return


class Session:
    def __init__(self, c: Connection, asked: dict):
        self.c, self.asked = c, asked
        # Without an encoding the sound would come in a container.
        self.rate = asked["rate"] or 16000
        self.recogniser = c.recogniser(self.rate, asked["endpointing"])
        # The end of what is final, and of its last word until the end of the utterance is told.
        self.final_to = 0.0
        self.last_word_end: float | None = None
        self.sha256 = hashlib.sha256()

    async def hear(self, data: bytes):
        self.sha256.update(data)
        if self.asked["encoding"] is None:
            await self.c.heard(data, 0)
            await self.c.end(1008, "DATA-0000: The payload cannot be decoded as audio.")
        samples = decode(data, self.asked["encoding"])
        await self.c.heard(data, len(samples) * 1000 / self.rate)
        # In small steps, so that what is said does not depend on how the client cuts its sound.
        step = self.rate // 10
        for at in range(0, len(samples), step):
            for heard in self.recogniser.feed(samples[at : at + step]):
                await self.tell(heard)
            await self.utterance_end()

    async def read(self, text: str) -> str:
        try:
            message = json.loads(text)
            kind = message["type"]
            if kind not in ("Finalize", "CloseStream", "KeepAlive"):
                raise ValueError(kind)
        except (ValueError, TypeError, KeyError):
            self.c.note({"unknown": text[:200]})
            error = {"type": "Error", "variant": "SchemaError", "description": "Could not deserialize last text message", "message": text}
            await self.c.send(error, "Error")
            return ""
        self.c.note(message)
        return kind

    async def tell(self, heard: Heard):
        if heard.kind == "started":
            if self.asked["vad_events"]:
                await self.c.send({"type": "SpeechStarted", "channel": [0], "timestamp": heard.start}, "SpeechStarted")
        elif heard.kind in ("interim", "quiet"):
            if self.asked["interim"]:
                await self.results(heard, is_final=False, speech_final=False)
        elif heard.kind in ("final", "ended"):
            by_finalize = heard.from_finalize
            speech_final = self.c.script.session.get("speech_final_on_finalize", False) if by_finalize else heard.kind == "ended"
            await self.results(heard, is_final=True, speech_final=speech_final)

    async def results(self, heard: Heard, is_final: bool, speech_final: bool):
        confidence = self.c.script.hears.get("confidence", 0.98)
        words = []
        for word in heard.words:
            plain = word.text.lower().strip(".,!?;:")
            entry = {"word": plain, "start": word.start, "end": word.end, "confidence": confidence}
            if self.asked["punctuated"]:
                entry["punctuated_word"] = word.text
            words.append(entry)
        transcript = heard.text if self.asked["punctuated"] else " ".join(entry["word"] for entry in words)
        message = {
            "type": "Results",
            "channel_index": [0, 1],
            "start": self.final_to,
            "duration": round(max(heard.end - self.final_to, 0), 3),
            "is_final": is_final,
            "speech_final": speech_final,
            "channel": {"alternatives": [{"transcript": transcript, "confidence": confidence if words else 0.0, "words": words}]},
            "metadata": {
                "request_id": self.c.id,
                "model_info": {
                    "name": self.asked["model"],
                    "version": "2026-01-01.0",
                    "arch": self.asked["model"].partition("-general")[0],
                },
                "model_uuid": "1dbdfb4d-85b2-4659-9831-16b3c76229aa",
            },
            "from_finalize": heard.from_finalize,
        }
        if is_final:
            self.final_to = heard.end
            if words:
                self.last_word_end = words[-1]["end"]
        elif words:
            self.last_word_end = None
        await self.c.send(message, f"Results{' final' if is_final else ''}", is_final)

    async def utterance_end(self):
        after, end = self.asked["utterance_end"], self.last_word_end
        if after is None or end is None or self.recogniser.speaking or self.recogniser.seconds - end < after:
            return
        self.last_word_end = None
        await self.c.send({"type": "UtteranceEnd", "channel": [0, 1], "last_word_end": end}, "UtteranceEnd")

    async def close(self):
        for heard in self.recogniser.finalize():
            heard.from_finalize = False
            await self.tell(heard)
        metadata = {
            "type": "Metadata",
            "transaction_key": "deprecated",
            "request_id": self.c.id,
            "sha256": self.sha256.hexdigest(),
            "created": datetime.now(timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "duration": self.recogniser.seconds,
            "channels": 1,
        }
        await self.c.send(metadata, "Metadata")
