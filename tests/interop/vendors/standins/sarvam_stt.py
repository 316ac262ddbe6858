"""Sarvam, recognition of streams: `/speech-to-text-realtime/ws` with partial transcripts, and the older
`/speech-to-text/ws`.

Messages and query: the classes `Realtime…` and `SpeechToTextStreaming…` of sarvamai 0.1.39; closing codes: its
`RealtimeError` (1003 key, quota, rate; 1008 inactivity; 4000 a setting). Sound comes as `audio_input` with base64 or,
as livekit-plugins-sarvam sends it, in binary messages.

`session`: "turn_silence_ms" (500) for the older endpoint; "idle_s" (60).
"""

import json
import time

from aiohttp import web

from .core import Connection, Refused, Vendor, sound_of
from .sound import Heard, decode

ENCODINGS = {"linear16": "linear16", "mulaw": "mulaw", "alaw": "alaw"}
CODECS = ("wav", "pcm_s16le", "pcm_l16", "pcm_raw")
LANGUAGES = ("auto", "unknown", "en-IN", "hi-IN", "bn-IN", "kn-IN", "ml-IN", "mr-IN", "or-IN", "od-IN", "pa-IN", "ta-IN", "te-IN", "gu-IN")
ERRORS = {401: "invalid_api_key_error", 403: "invalid_api_key_error", 429: "rate_limit_exceeded_error"}


def routes(vendor: Vendor):
    vendor.error_body = error_body
    return [
        web.get("/speech-to-text-realtime/ws", vendor.socket(check_realtime, realtime)),
        web.get("/speech-to-text/ws", vendor.socket(check_older, older)),
    ]


def error_body(status: int, message: str = "The request was refused.") -> dict:
    code = ERRORS.get(status, "internal_server_error" if status >= 500 else "invalid_request_error")
    return {"error": {"message": message, "code": code, "request_id": "20260101_0"}}


def check_realtime(c: Connection) -> dict:
    # A wrong key or setting is told on the open connection.
    query = c.request.query
    rate = query.get("sample_rate", "16000")
    wrong = None
    if query.get("language_code") not in LANGUAGES:
        wrong = "language_code is required and is a language of India or auto"
    elif query.get("model", "saaras:v3-realtime") not in ("saaras:v3-realtime", "saaras:v4"):
        wrong = "model is saaras:v3-realtime or saaras:v4"
    elif query.get("encoding", "linear16") not in ENCODINGS:
        wrong = f"encoding is one of {', '.join(ENCODINGS)}"
    elif rate not in ("8000", "16000"):
        wrong = "sample_rate is 8000 or 16000"
    elif query.get("endpointing", "vad") not in ("vad", "manual"):
        wrong = "endpointing is vad or manual"
    elif query.get("stream_type", "fast") not in ("fast", "balanced", "simulated"):
        wrong = "stream_type is fast, balanced or simulated"
    elif query.get("mode", "transcribe") not in ("transcribe", "translate", "verbatim", "translit", "codemix"):
        wrong = "mode is transcribe, translate, verbatim, translit or codemix"
    return {
        "wrong": wrong,
        "encoding": ENCODINGS.get(query.get("encoding", "linear16"), "linear16"),
        "rate": int(rate) if rate.isdigit() else 16000,
        "manual": query.get("endpointing") == "manual",
        "silence_ms": float(query.get("silence_duration_ms", 500)),
        "times": query.get("return_timestamps") == "true",
        "auto": query.get("language_code") == "auto",
    }


class Realtime:
    def __init__(self, c: Connection):
        self.c, self.asked = c, c.checked
        self.recogniser = c.recogniser(self.asked["rate"], None if self.asked["manual"] else self.asked["silence_ms"])
        self.utterance = 0
        self.began = time.monotonic()

    async def send(self, event: str, final: bool = False, **fields):
        await self.c.send({"event": event, **fields}, event, final)

    async def fail(self, code: str, message: str, close: int, status: int):
        await self.send("error", code=code, is_fatal=True, message=message, status_code=status)
        await self.c.end(close, message)

    async def run(self):
        c, query = self.c, self.c.request.query
        if not c.key_is_right():
            await self.fail("invalid_api_key", "Invalid subscription key", 1003, 401)
        if self.asked["wrong"]:
            await self.fail("invalid_request", self.asked["wrong"], 4000, 400)
        config = {
            "model": query.get("model", "saaras:v3-realtime"),
            "language_code": query["language_code"],
            "sample_rate": self.asked["rate"],
        }
        config |= {"encoding": self.asked["encoding"], "turn_detection": "manual" if self.asked["manual"] else "vad"}
        await self.send("session.begin", request_id=c.id, config=config)
        while True:
            data = await c.receive(c.script.session.get("idle_s", 60))
            if data is None:
                await self.fail("inactivity_timeout", "No audio for too long", 1008, 408)
            if isinstance(data, bytes):
                await self.hear(data)
                continue
            try:
                message = json.loads(data)
                event = message["event"]
                sound = sound_of(message["audio"]) if event == "audio_input" else b""
                if sound is None:
                    raise ValueError
            except (ValueError, TypeError, KeyError):
                c.note({"unknown": data[:200]})
                await self.send("error", code="invalid_message", is_fatal=False, message="The message cannot be read.")
                continue
            if event == "audio_input":
                await self.hear(sound)
                continue
            c.note(message)
            if event == "end":
                await self.end_of_speech()
                times = {"total_duration_s": round(time.monotonic() - self.began, 3), "audio_duration_s": self.recogniser.seconds}
                await self.send("session.end", request_id=c.id, total_utterances=self.utterance, **times)
                return
            await self.command(event, message)

    async def command(self, event: str, message: dict):
        if event == "ping":
            await self.send("pong")
        elif event == "config.update":
            await self.update({name: value for name, value in message.items() if name != "event" and value is not None})
        elif event in ("speech_end", "flush") and self.asked["manual"]:
            await self.end_of_speech()
        elif event != "speech_start":
            await self.send("error", code="invalid_message", is_fatal=False, message=f"{event} is not for this session.")

    async def update(self, settings: dict):
        if settings.get("stream_type") == "simulated" or settings.get("mode", "transcribe") not in (
            "transcribe",
            "translate",
            "verbatim",
            "translit",
            "codemix",
        ):
            await self.send("error", code="invalid_config", is_fatal=False, message="The setting cannot be changed so.")
            return
        if "silence_duration_ms" in settings and not self.asked["manual"]:
            self.recogniser.silence = settings["silence_duration_ms"] * self.asked["rate"] / 1000
        await self.send("config.updated", applied=sorted(settings))

    async def hear(self, data: bytes):
        rate = self.asked["rate"]
        samples = decode(data, self.asked["encoding"])
        await self.c.heard(data, len(samples) * 1000 / rate)
        for at in range(0, len(samples), rate // 10):
            for heard in self.recogniser.feed(samples[at : at + rate // 10]):
                await self.tell(heard)

    async def end_of_speech(self):
        for heard in self.recogniser.force_end():
            await self.tell(heard)

    async def tell(self, heard: Heard):
        language = {"language": "en-IN"} if self.asked["auto"] else {}
        index = self.utterance - 1 if heard.again else self.utterance
        if heard.kind == "started" and not self.asked["manual"]:
            await self.send("vad.speech_start", utterance_idx=index, confidence=0.9)
        elif heard.kind == "interim":
            await self.send("transcript.partial", utterance_idx=index, text=heard.text, **language)
        elif heard.kind == "ended":
            if not self.asked["manual"] and not heard.again:
                await self.send("vad.speech_end", utterance_idx=index, confidence=0.9)
            times = {"start_s": heard.start, "end_s": heard.end} if self.asked["times"] else {}
            sure = {"language_confidence": 0.95} if self.asked["auto"] else {}
            await self.send("transcript.final", final=True, utterance_idx=index, text=heard.text, **language, **sure, **times)
            self.utterance += not heard.again


async def realtime(c: Connection):
    await Realtime(c).run()


def check_older(c: Connection) -> dict:
    query = c.request.query
    if not c.key_is_right():
        raise Refused(403)
    codec, rate = query.get("input_audio_codec", "wav"), query.get("sample_rate", "16000")
    language = query.get("language-code", query.get("language_code"))
    if language not in LANGUAGES or codec not in CODECS or rate not in ("8000", "16000"):
        raise Refused(400, error_body(400, "language-code, input_audio_codec or sample_rate is not supported."))
    return {"codec": codec, "rate": int(rate), "signals": query.get("vad_signals") == "true", "language": language}


async def older(c: Connection):
    asked = c.checked
    rate = asked["rate"]
    recogniser = c.recogniser(rate, c.script.session.get("turn_silence_ms", 500))
    heard_s = 0.0

    async def tell(heard: Heard):
        nonlocal heard_s
        if heard.kind in ("started", "ended") and asked["signals"] and not heard.again:
            signal = "START_SPEECH" if heard.kind == "started" else "END_SPEECH"
            data = {"event_type": "vad", "signal_type": signal, "occured_at": time.time()}
            await c.send({"type": "events", "data": data}, signal)
        if heard.kind in ("final", "ended"):
            data = {
                "request_id": c.id,
                "transcript": heard.text,
                "timestamps": None,
                "diarized_transcript": None,
                "language_code": asked["language"],
            }
            data["metrics"] = {"audio_duration": round(recogniser.seconds - heard_s, 3), "processing_latency": 0.1}
            heard_s = recogniser.seconds
            await c.send({"type": "data", "data": data}, "data", final=True)

    while True:
        data = await c.receive(c.script.session.get("idle_s", 60))
        if data is None:
            await c.end(1008, "Inactivity timeout")
        try:
            message = json.loads(data)
            sound = None
            if "audio" in message:
                sound = sound_of(message["audio"]["data"])
                if sound is None:
                    raise ValueError
            elif message["type"] not in ("flush", "config"):
                raise ValueError
        except (ValueError, TypeError, KeyError):
            c.note({"unknown": str(data)[:200]})
            await c.send({"type": "error", "data": {"error": "The message cannot be read.", "code": "invalid_request_error"}}, "error")
            continue
        if sound:
            # Each message is a WAV file of its own; its 44 bytes of header are no sound.
            pcm = sound[44:] if sound[:4] == b"RIFF" else sound
            samples = decode(pcm, "linear16")
            await c.heard(sound, len(samples) * 1000 / rate)
            for at in range(0, len(samples), rate // 10):
                for heard in recogniser.feed(samples[at : at + rate // 10]):
                    await tell(heard)
        elif sound is None:
            c.note(message)
        # "end_of_stream" ends what is open, as does a flush.
        if message.get("type") in ("flush", "end_of_stream"):
            for heard in recogniser.force_end():
                await tell(heard)
            if message["type"] == "end_of_stream":
                return
