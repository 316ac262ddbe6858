"""ElevenLabs, voices: many texts over one connection (`/v1/text-to-speech/{voice}/multi-stream-input`), and one
(`…/stream-input`).

Messages and query: elevenlabs/elevenlabs-docs `fern/apis/api/asyncapi.yml`. The refusal of a sixth context:
livekit/agents-js#1985. Without `sync_alignment` the times of a whole piece of text come with its first sound and the
rest has none (elevenlabs-python#689 sees "None while audio data is still being sent"). How a wrong key is refused is
not in the specification: here with 401 before the connection is open, and with a message and 1008 if no key came at
all.

`session`: "names": "camel" (default, the specification) or "snake" (`context_id`, as livekit-plugins-elevenlabs says
the vendor sends now); "nulls": true writes the fields without a value as null; "max_contexts" (5).
"""

import asyncio
import base64
import json

from aiohttp import web

from .core import Connection, Refused, Vendor, pieces
from .sound import encode, speak

MODELS_CHUNKS = [120, 160, 250, 290]
FORMATS = {f"pcm_{rate}": ("linear16", rate) for rate in (8000, 16000, 22050, 24000, 44100, 48000)}
FORMATS |= {"ulaw_8000": ("mulaw", 8000), "alaw_8000": ("alaw", 8000)}
# In the specification, but this voice does not speak them.
UNSPOKEN = ("mp3_", "opus_")
ERRORS = {
    401: ("invalid_api_key", "Invalid API key"),
    403: ("missing_permissions", "The API key you used is missing the permission text_to_speech to execute this operation."),
    429: ("too_many_concurrent_requests", "Too many concurrent requests."),
}
MULTI = {
    "text", "voice_settings", "generation_config", "pronunciation_dictionary_locators", "xi_api_key", "xi-api-key", "authorization", "context_id",
    "contextId", "flush", "close_context", "close_socket", "keep_alive",
}  # fmt: skip


def routes(vendor: Vendor):
    vendor.error_body = lambda status: error_body(*ERRORS.get(status, ("internal_server_error", "An unexpected error occurred.")))
    return [
        web.get("/v1/text-to-speech/{voice}/multi-stream-input", vendor.socket(check, many)),
        web.get("/v1/text-to-speech/{voice}/stream-input", vendor.socket(check, one)),
    ]


def error_body(status: str, message: str) -> dict:
    return {"detail": {"status": status, "message": message}}


def check(c: Connection) -> dict:
    if c.key and not c.key_is_right():
        raise Refused(401)
    query = c.request.query
    output = query.get("output_format", "mp3_44100_128")
    if output not in FORMATS:
        if output.startswith(UNSPOKEN):
            raise Refused(501, f"this stand-in does not speak {output}")
        raise Refused(400, error_body("invalid_output_format", f"output_format {output} is not supported."))
    for name in ("auto_mode", "sync_alignment", "enable_logging", "enable_ssml_parsing"):
        if query.get(name, "true").lower() not in ("true", "false"):
            raise Refused(400, error_body("invalid_parameters", f"{name} is true or false."))
    timeout = query.get("inactivity_timeout", "20")
    if not timeout.isdigit() or int(timeout) > 180:
        raise Refused(400, error_body("invalid_parameters", "inactivity_timeout is at most 180 seconds."))
    encoding, rate = FORMATS[output]
    return {
        "encoding": encoding,
        "rate": rate,
        "auto": query.get("auto_mode") == "true",
        "sync": query.get("sync_alignment") == "true",
        "idle_s": int(timeout),
    }


class Context:
    """One text that grows; what is generated of it is spoken in order by a task of its own."""

    def __init__(self, c: Connection, name: str | None, first: dict):
        self.c, self.name = c, name
        config = first.get("generation_config") or {}
        self.schedule = list(config.get("chunk_length_schedule") or MODELS_CHUNKS)
        self.buffer = ""
        self.to_speak: asyncio.Queue[str | None] = asyncio.Queue()
        self.task = c.start(self.run())
        self.last_use = asyncio.get_running_loop().time()

    def add(self, text: str, flush: bool, try_now: bool = False):
        self.last_use = asyncio.get_running_loop().time()
        self.buffer += text
        if not self.buffer.strip():
            return
        enough = len(self.buffer) >= self.schedule[0]
        if flush or self.c.checked["auto"] or enough or (try_now and len(self.buffer) >= 50):
            if enough and len(self.schedule) > 1:
                self.schedule.pop(0)
            self.to_speak.put_nowait(self.buffer)
            self.buffer = ""

    def end(self, generate_rest: bool):
        if generate_rest and self.buffer.strip():
            self.to_speak.put_nowait(self.buffer)
        self.buffer = ""
        self.to_speak.put_nowait(None)

    async def run(self):
        while (text := await self.to_speak.get()) is not None:
            # The space that opens a context and the one at the end of each text are no speech.
            await self.speak(text.strip())
        await self.send({"isFinal": True}, "final", final=True)

    async def speak(self, text: str):
        asked = self.c.checked
        rate = self.c.fault["rate"] if self.c.has_fault("wrong_rate") else asked["rate"]
        speech = speak(text, rate, self.c.script.says)
        at = 0
        async for piece in pieces(self.c, speech.samples, rate):
            began, ended = at * 1000 / rate, (at + len(piece)) * 1000 / rate
            if asked["sync"]:
                characters = [(text, start - began, length) for text, start, length in speech.characters if began <= start < ended]
            else:
                characters = speech.characters if at == 0 else []
            at += len(piece)
            times = None
            if characters:
                times = {
                    "chars": [character for character, _, _ in characters],
                    "charStartTimesMs": [round(start) for _, start, _ in characters],
                    "charDurationsMs": [length for _, _, length in characters],
                }
            audio = base64.b64encode(encode(piece, asked["encoding"])).decode()
            await self.send({"audio": audio, "alignment": times, "normalizedAlignment": times}, "audio")

    async def send(self, message: dict, kind: str, final: bool = False):
        if self.c.script.session.get("nulls"):
            message = {"audio": None, "isFinal": None, "alignment": None, "normalizedAlignment": None} | message
        else:
            message = {name: value for name, value in message.items() if value is not None}
        if self.name is not None:
            snake = self.c.script.session.get("names") == "snake"
            message["context_id" if snake else "contextId"] = self.name
        times = 2 if final and self.c.has_fault("double_finals") else 1
        for _ in range(times):
            await self.c.send(message, kind, final)


async def refuse(c: Connection, error: str, text: str):
    await c.send({"message": text, "error": error, "code": 1008}, "error")
    await c.end(1008, text)


async def read(c: Connection, names: set | None, idle_s: float) -> dict | None:
    """The next message; `None` after a silence. Closes the connection on one that is none."""
    data = await c.receive(idle_s)
    if data is None:
        return None
    try:
        message = json.loads(data)
        if not isinstance(message, dict):
            raise ValueError
    except ValueError:
        await refuse(c, "invalid_message", "Message is not a JSON object.")
    c.note({name: "(key)" if "key" in name or name == "authorization" else value for name, value in message.items()})
    if names and (unknown := set(message) - names):
        await refuse(c, "invalid_message", f"Unknown fields: {', '.join(sorted(unknown))}")
    text = message.get("text")
    if text is not None and not isinstance(text, str):
        await refuse(c, "invalid_message", "text must be a string.")
    return message


async def check_first(c: Connection, message: dict):
    key = c.key or message.get("xi_api_key") or message.get("xi-api-key") or ""
    if not key or (c.script.key and key != c.script.key):
        await refuse(c, "invalid_api_key", "Invalid API key")


async def many(c: Connection):
    contexts: dict[str | None, Context] = {}
    first = True
    while True:
        clock = asyncio.get_running_loop().time
        # Contexts that nobody has touched for the time-out are closed; those that speak are in use.
        oldest = min((context.last_use for context in contexts.values()), default=clock())
        message = await read(c, MULTI, max(0.01, oldest + c.checked["idle_s"] - clock()))
        if message is None:
            for name in [name for name, context in contexts.items() if clock() - context.last_use >= c.checked["idle_s"]]:
                contexts.pop(name).end(generate_rest=False)
            if not contexts:
                await c.end(1000, "input_timeout_exceeded")
            continue
        if first:
            await check_first(c, message)
            first = False
        if message.get("close_socket"):
            for context in contexts.values():
                context.end(generate_rest=True)
            await asyncio.gather(*(context.task for context in contexts.values()))
            return
        name = message.get("context_id", message.get("contextId"))
        if message.get("close_context"):
            if context := contexts.pop(name, None):
                context.end(generate_rest=False)
            continue
        text, flush = message.get("text") or "", bool(message.get("flush"))
        if name not in contexts:
            if not text:
                # Nothing to keep alive or to flush: that context is closed.
                continue
            if len(contexts) >= c.script.session.get("max_contexts", 5):
                limit = c.script.session.get("max_contexts", 5)
                text = f"Maximum simultaneous contexts per WebSocket connection exceeded ({limit}). Please close an existing context before opening a new one."
                await refuse(c, "max_active_conversations", text)
            contexts[name] = Context(c, name, message)
        contexts[name].add(text, flush)


async def one(c: Connection):
    context = None
    while True:
        message = await read(c, None, c.checked["idle_s"])
        if message is None:
            await refuse(c, "input_timeout_exceeded", "Have not received a new text input within the timeout.")
        if context is None:
            await check_first(c, message)
            context = Context(c, None, message)
        if message.get("text") == "":
            context.end(generate_rest=True)
            await context.task
            return
        context.add(message.get("text") or "", bool(message.get("flush")), bool(message.get("try_trigger_generation")))
