"""Cartesia, recognition: `/stt/turns/websocket` finds the turns itself, `/stt/websocket` gives words on `finalize`.

Messages and query: the classes `STTAutoFinalize…` and `STTManualFinalize…` of cartesia 4.2.0, made from the vendor's
OpenAPI document. A manual transcript is what comes after the last final, with its white space, to be put together as it
is. Signals "preview" (eager end, resume) come with `hears.eager_ms`.

`session`: "turn_silence_ms" (640), the silence that ends a turn.
"""

import json

from aiohttp import web

from .cartesia_tts import check as check_key
from .cartesia_tts import error_body
from .core import Connection, Refused, Vendor
from .sound import Heard, decode

ENCODINGS = {"pcm_s16le": "linear16", "pcm_mulaw": "mulaw", "pcm_alaw": "alaw"}
UNHEARD = {"pcm_s32le", "pcm_f16le", "pcm_f32le"}
THRESHOLDS = {
    "eager_end_threshold": (0.3, 0.6),
    "end_threshold": (0.05, 0.5),
    "end_timeout_ms": (640, 11200),
    "start_threshold": (0.5, 0.9),
}


def routes(vendor: Vendor):
    vendor.error_body = error_body
    return [
        web.get("/stt/turns/websocket", vendor.socket(lambda c: check(c, turns=True), find_turns)),
        web.get("/stt/websocket", vendor.socket(lambda c: check(c, turns=False), on_finalize)),
    ]


def check(c: Connection, turns: bool) -> dict:
    check_key(c)
    query = c.request.query
    for name in ("model", "encoding", "sample_rate"):
        if name not in query:
            raise Refused(400, error_body(400, f"{name} is required."))
    models = ("ink-2",) if turns else ("ink-2", "ink-whisper")
    if not query["model"].startswith(models):
        raise Refused(400, error_body(400, f"There is no model {query['model']} for this endpoint."))
    if query["encoding"] in UNHEARD:
        raise Refused(501, f"this stand-in does not hear {query['encoding']}")
    if query["encoding"] not in ENCODINGS:
        raise Refused(400, error_body(400, f"encoding {query['encoding']} is not supported."))
    if not query["sample_rate"].isdigit() or not 8000 <= int(query["sample_rate"]) <= 48000:
        raise Refused(400, error_body(400, "sample_rate is a number of Hz."))
    if turns and (
        wrong := wrong_threshold({name.removeprefix("turn_"): value for name, value in query.items() if name.startswith("turn_")})
    ):
        raise Refused(400, error_body(400, wrong))
    return {"encoding": ENCODINGS[query["encoding"]], "rate": int(query["sample_rate"]), "model": query["model"]}


def wrong_threshold(settings: dict) -> str | None:
    for name, value in settings.items():
        if name not in THRESHOLDS:
            return f"There is no setting {name}."
        low, high = THRESHOLDS[name]
        try:
            if not low <= float(value) <= high:
                return f"{name} is between {low} and {high}."
        except (TypeError, ValueError):
            return f"{name} is a number."
    return None


async def refuse(c: Connection, message: str):
    error = {"type": "error", "status_code": 400, **error_body(400, message), "request_id": c.id}
    await c.send(error, "error")
    await c.end(1008, message)


async def hear(c: Connection, recogniser, data: bytes, tell):
    samples = decode(data, c.checked["encoding"])
    rate = c.checked["rate"]
    await c.heard(data, len(samples) * 1000 / rate)
    for at in range(0, len(samples), rate // 10):
        for heard in recogniser.feed(samples[at : at + rate // 10]):
            await tell(heard)


KINDS = {"started": "turn.start", "interim": "turn.update", "eager": "turn.eager_end", "resumed": "turn.resume", "ended": "turn.end"}


async def find_turns(c: Connection):
    recogniser = c.recogniser(c.checked["rate"], c.script.session.get("turn_silence_ms", 640))

    async def tell(heard: Heard):
        # The event "final" of a script has no message here.
        if kind := KINDS.get(heard.kind):
            message = {"type": kind, "request_id": c.id}
            if kind not in ("turn.start", "turn.resume"):
                message["transcript"] = heard.text
            await c.send(message, kind, final=kind == "turn.end")

    await c.send({"type": "connected", "request_id": c.id}, "connected")
    while True:
        data = await c.receive()
        if isinstance(data, bytes):
            await hear(c, recogniser, data, tell)
            continue
        try:
            command = json.loads(data)
            kind = command["type"]
        except (ValueError, TypeError, KeyError):
            c.note({"unknown": data[:200]})
            await refuse(c, "A text message is a JSON object with a type.")
        c.note(command)
        if kind == "close":
            for heard in recogniser.finalize():
                heard.kind = "ended"
                await tell(heard)
            return
        if kind != "config":
            await refuse(c, f"There is no command {kind}.")
        if wrong := wrong_threshold(command.get("turn") or {}):
            await refuse(c, wrong)


async def on_finalize(c: Connection):
    # ink-whisper also finds pauses by itself.
    silence_s = c.request.query.get("max_silence_duration_secs")
    whisper = c.checked["model"].startswith("ink-whisper")
    recogniser = c.recogniser(c.checked["rate"], float(silence_s) * 1000 if whisper and silence_s else None)
    first = True

    async def tell(heard: Heard):
        nonlocal first
        if heard.kind not in ("interim", "final", "ended"):
            return
        final = heard.kind != "interim"
        text = heard.text if first or not heard.words else f" {heard.text}"
        words = [{"word": word.text, "start": word.start, "end": word.end} for word in heard.words]
        message = {"type": "transcript", "request_id": c.id, "text": text, "is_final": final, "duration": round(heard.end - heard.start, 3)}
        message |= {"language": c.request.query.get("language", "en"), "words": words}
        first = first and not (final and heard.words)
        await c.send(message, "transcript final" if final else "transcript", final)

    while True:
        data = await c.receive()
        if isinstance(data, bytes):
            await hear(c, recogniser, data, tell)
            continue
        c.note({"command": data[:200]})
        # "done" is the older name of "close".
        if data not in ("finalize", "close", "done"):
            await refuse(c, f"There is no command {data[:50]}.")
        for heard in recogniser.finalize():
            await tell(heard)
        if data == "finalize":
            await c.send({"type": "flush_done", "request_id": c.id}, "flush_done")
        else:
            await c.send({"type": "done", "request_id": c.id}, "done")
            return
