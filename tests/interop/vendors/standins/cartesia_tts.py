"""Cartesia, voices: `/tts/websocket`, many texts over one connection.

Messages: the classes `GenerationRequest`, `CancelContextRequest` and `WebsocketResponse` of cartesia 4.2.0, made from
the vendor's OpenAPI document; docs.cartesia.ai/api-reference/tts/websocket and …/use-the-api/tts-websocket/contexts;
errors docs.cartesia.ai/use-the-api/api-errors. After a cancel nothing more comes for that context ("so that no more
messages are generated for that context"). Times of words are those of the whole context, as livekit-plugins-cartesia
takes them.

`session`: "expire_s" (1): a context that is to go on ends so long after its last sound; "done_after_cancel" (false).
"""

import asyncio
import base64
import json

from aiohttp import web

from .core import Connection, Refused, Vendor, pieces
from .sound import encode, speak

ENCODINGS = {"pcm_f32le": "float32", "pcm_s16le": "linear16", "pcm_mulaw": "mulaw", "pcm_alaw": "alaw"}
RATES = (8000, 16000, 22050, 24000, 44100, 48000)
ERRORS = {
    401: ("unauthorized", "Unauthorized", "The API key is missing or invalid."),
    402: ("quota_exceeded", "Payment required", "You have used up your credits."),
    429: ("concurrency_limited", "Too many concurrent requests", "You have exceeded your plan's concurrency limit."),
}


def routes(vendor: Vendor):
    vendor.error_body = error_body
    return [web.get("/tts/websocket", vendor.socket(check, talk))]


def error_body(status: int, message: str | None = None) -> dict:
    code, title, text = ERRORS.get(
        status, ("bad_request", "Bad request", "") if status < 500 else ("internal", "Internal error", "Try again.")
    )
    return {"error_code": code, "title": title, "message": message or text, "request_id": "550e8400-e29b-41d4-a716-446655440000"}


def check(c: Connection):
    if not c.key_is_right():
        raise Refused(401)
    if not (c.request.headers.get("Cartesia-Version") or c.request.query.get("cartesia_version")):
        raise Refused(
            400, error_body(400, "The API version is missing: send the header Cartesia-Version or cartesia_version in the query.")
        )


class Context:
    """One text that grows, spoken in order."""

    def __init__(self, c: Connection, request: dict, forget):
        self.c, self.id, self.forget = c, request["context_id"], forget
        # All requests of a context are the same but for these.
        self.same = {name: value for name, value in request.items() if name not in ("transcript", "continue", "flush", "duration")}
        self.encoding = ENCODINGS[request["output_format"]["encoding"]]
        self.rate = c.fault["rate"] if c.has_fault("wrong_rate") else request["output_format"]["sample_rate"]
        self.delay_s = request.get("max_buffer_delay_ms", 3000) / 1000
        self.flushes = 0
        self.spoken_s = 0.0
        # Text, "flush", or "end".
        self.inbox: asyncio.Queue[tuple[str, str]] = asyncio.Queue()
        self.task = c.start(self.run())

    def add(self, request: dict):
        if request["transcript"]:
            self.inbox.put_nowait(("text", request["transcript"]))
        if request.get("flush"):
            self.inbox.put_nowait(("flush", ""))
        if not request.get("continue"):
            self.inbox.put_nowait(("end", ""))

    async def run(self):
        clock = asyncio.get_running_loop().time
        buffer, since, expires = "", 0.0, None
        while True:
            until = since + self.delay_s if buffer else expires
            try:
                async with asyncio.timeout_at(until):
                    what, text = await self.inbox.get()
            except TimeoutError:
                if not buffer:
                    break
                what, text = "speak", ""
            if text and not buffer:
                since = clock()
            buffer += text
            # A whole sentence is spoken at once, the rest when its time has come.
            if buffer and (what in ("flush", "end", "speak") or self.delay_s == 0 or buffer.rstrip().endswith((".", "?", "!"))):
                await self.speak(buffer)
                buffer = ""
                expires = clock() + self.c.script.session.get("expire_s", 1)
            if what == "flush":
                self.flushes += 1
                await self.send("flush_done", done=False, flush_done=True, flush_id=self.flushes, status_code=206)
            if what == "end":
                break
        self.forget()
        for _ in range(2 if self.c.has_fault("double_finals") else 1):
            await self.send("done", done=True, status_code=200)

    async def speak(self, text: str):
        speech = speak(text, self.rate, self.c.script.says)
        words = speech.words()
        at = 0
        async for piece in pieces(self.c, speech.samples, self.rate):
            began, at = at / self.rate, at + len(piece)
            data = base64.b64encode(encode(piece, self.encoding)).decode()
            await self.send("chunk", data=data, done=False, status_code=206, step_time=1.5, flush_id=self.flushes + 1)
            here = [word for word in words if began <= word.start < at / self.rate]
            if here and self.same.get("add_timestamps"):
                times = {
                    "words": [word.text for word in here],
                    "start": [round(self.spoken_s + word.start, 3) for word in here],
                    "end": [round(self.spoken_s + word.end, 3) for word in here],
                }
                await self.send("timestamps", done=False, status_code=206, word_timestamps=times)
        self.spoken_s += len(speech.samples) / self.rate

    async def send(self, kind: str, **fields):
        await self.c.send({"type": kind, "context_id": self.id, **fields}, kind, final=kind == "done")


async def refuse(c: Connection, message: str, context: str | None = None):
    error = {"type": "error", "done": True, "status_code": 400, **error_body(400, message), "request_id": c.id}
    if context:
        error["context_id"] = context
    await c.send(error, "error")


def fault_of(request) -> str | None:
    """What is wrong with a request, as a sentence."""
    if not isinstance(request, dict) or not isinstance(request.get("context_id"), str):
        return "context_id is required."
    if "cancel" in request:
        return None if request["cancel"] is True else "cancel is true."
    for name in ("model_id", "transcript", "voice", "output_format"):
        if name not in request:
            return f"{name} is required."
    output, voice = request["output_format"], request["voice"]
    if not isinstance(request["transcript"], str):
        return "transcript is a string."
    if not isinstance(voice, dict) or voice.get("mode") != "id" or not voice.get("id"):
        return "voice has mode id and an id."
    if not isinstance(output, dict) or output.get("container") != "raw" or output.get("encoding") not in ENCODINGS:
        return f"output_format has container raw and an encoding of {', '.join(ENCODINGS)}."
    if output.get("sample_rate") not in RATES:
        return f"sample_rate is one of {', '.join(map(str, RATES))}."
    if not 0 <= (request.get("max_buffer_delay_ms") or 0) <= 5000:
        return "max_buffer_delay_ms is between 0 and 5000."
    return None


async def talk(c: Connection):
    contexts: dict[str, Context] = {}
    while True:
        data = await c.receive()
        try:
            request = json.loads(data)
        except ValueError:
            c.note({"unknown": str(data)[:200]})
            await refuse(c, "The message is not valid JSON.")
            continue
        c.note(request if isinstance(request, dict) else {"unknown": request})
        name = request.get("context_id") if isinstance(request, dict) else None
        if fault := fault_of(request):
            await refuse(c, fault, name)
        elif "cancel" in request:
            if context := contexts.pop(name, None):
                context.task.cancel()
                if c.script.session.get("done_after_cancel"):
                    await context.send("done", done=True, status_code=200)
        elif name not in contexts:
            contexts[name] = Context(c, request, lambda name=name: contexts.pop(name, None))
            contexts[name].add(request)
        elif any(request.get(field) != value for field, value in contexts[name].same.items()):
            await refuse(c, "All fields but transcript, continue and duration stay the same in a context.", name)
        else:
            contexts[name].add(request)
