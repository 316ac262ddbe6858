"""OpenAI Realtime: `/v1/realtime?model=…` (speech to speech) and `/v1/realtime?intent=transcription`.

Events: the classes of openai 3.57.0 `types/realtime`; developers.openai.com/api/docs/guides/realtime-conversations and
…/realtime-transcription. Models that transcribe while one speaks (`LIVE`) take no turn detection, say nothing of speech
and need a commit, as livekit-plugins-openai has it.

`session`: "limit_s" ends the session with the error session_expired.
"""

import json
import time

from aiohttp import web

from .core import Connection, Refused, Vendor, new_id, sound_of, words_of
from .openai_response import Response
from .sound import Heard, decode

LIVE = ("gpt-realtime-whisper", "gpt-live-transcribe")
FORMATS = {"audio/pcm": ("linear16", 24000), "audio/pcmu": ("mulaw", 8000), "audio/pcma": ("alaw", 8000)}
SHORTEST_COMMIT_MS = 100
INPUT = {"format": None, "noise_reduction": None, "transcription": None, "turn_detection": None}
COMMON = {"type", "include", "audio"}
SPEECH = COMMON | {
    "model", "output_modalities", "instructions", "tools", "tool_choice", "max_output_tokens", "tracing", "truncation", "prompt", "reasoning",
    "parallel_tool_calls",
}  # fmt: skip
ERRORS = {401: ("invalid_request_error", "invalid_api_key"), 429: ("rate_limit_error", "rate_limit_exceeded")}


def routes(vendor: Vendor):
    vendor.error_body = error_body
    return [web.get("/v1/realtime", vendor.socket(check, talk))]


def error_body(status: int, message: str = "The request was refused.") -> dict:
    kind, code = ERRORS.get(status, ("server_error" if status >= 500 else "invalid_request_error", None))
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


def check(c: Connection) -> dict:
    if not c.request.headers.get("Authorization", "").startswith("Bearer ") or not c.key_is_right():
        raise Refused(401, error_body(401, "Incorrect API key provided."))
    transcribe = c.request.query.get("intent") == "transcription"
    model = c.request.query.get("model")
    if not transcribe and not model:
        raise Refused(400, error_body(400, "You must provide a model parameter."))
    return {"transcribe": transcribe, "model": model}


async def talk(c: Connection):
    await Session(c).run()


class Session:
    def __init__(self, c: Connection):
        self.c = c
        self.transcribe = c.checked["transcribe"]
        detection = {"type": "server_vad", "threshold": 0.5, "prefix_padding_ms": 300, "silence_duration_ms": 500}
        listening = dict(INPUT, format={"type": "audio/pcm", "rate": 24000}, turn_detection=detection)
        if self.transcribe:
            self.config = {"type": "transcription", "audio": {"input": listening}}
        else:
            detection |= {"create_response": True, "interrupt_response": True}
            speaking = {"format": {"type": "audio/pcm", "rate": 24000}, "voice": "marin", "speed": 1.0}
            audio = {"input": listening, "output": speaking}
            self.config = {
                "type": "realtime",
                "model": c.checked["model"],
                "output_modalities": ["audio"],
                "instructions": "",
                "tools": [],
                "audio": audio,
            }
        # The conversation: items by their id, in order; the milliseconds of sound of those that were spoken.
        self.items: dict[str, dict] = {}
        self.spoken_ms: dict[str, float] = {}
        self.response: Response | None = None
        self.item = self.new_item()
        self.buffered_ms = 0.0
        self.said = 0
        self.listen()

    def new_item(self) -> str:
        return f"item_{new_id()[:18]}"

    @property
    def input(self) -> dict:
        return self.config["audio"]["input"]

    def listen(self):
        """A new recogniser for the settings."""
        self.encoding, self.rate = FORMATS[self.input["format"]["type"]]
        detection = self.input["turn_detection"]
        self.recogniser = self.c.recogniser(self.rate, detection.get("silence_duration_ms", 500) if detection else None)
        if not detection:
            self.recogniser.silence = None
        self.live = (self.input["transcription"] or {}).get("model") in LIVE

    async def send(self, kind: str, final: bool = False, **fields):
        await self.c.send({"type": kind, "event_id": f"event_{new_id()[:18]}", **fields}, kind, final)

    async def error(self, message: str, code: str | None = None, param: str | None = None, cause: str | None = None):
        error = {"type": "invalid_request_error", "code": code, "message": message, "param": param, "event_id": cause}
        await self.send("error", error=error)

    async def run(self):
        c = self.c
        await self.send("session.created", session=self.shown())
        limit, began = c.script.session.get("limit_s"), time.monotonic()
        while True:
            data = await c.receive(None if limit is None else max(0.0, began + limit - time.monotonic()))
            if data is None:
                await self.error("Your session hit the maximum duration of 60 minutes.", "session_expired")
                await c.end(1001)
            try:
                event = json.loads(data)
                kind = event["type"]
            except (ValueError, TypeError, KeyError):
                c.note({"unknown": str(data)[:200]})
                await self.error("Could not parse the event.", "invalid_json")
                continue
            handler = self.HANDLERS.get(kind)
            if kind != "input_audio_buffer.append":
                c.note(event)
            if handler is None:
                await self.error(f"Invalid value: '{kind}'.", "invalid_value", "type", event.get("event_id"))
                continue
            await handler(self, event)

    def shown(self) -> dict:
        return {"object": "realtime.session", "id": f"sess_{self.c.id}", "expires_at": int(time.time()) + 3600} | self.config

    async def update(self, event: dict):
        new = event.get("session") or {}
        cause = event.get("event_id")
        known = COMMON if self.transcribe else SPEECH
        if unknown := set(new) - known:
            name = f"session.{sorted(unknown)[0]}"
            return await self.error(f"Unknown parameter: '{name}'.", "unknown_parameter", name, cause)
        if new.get("type") != self.config["type"]:
            code = "missing_required_parameter" if "type" not in new else "invalid_value"
            return await self.error("session.type is that of the session.", code, "session.type", cause)
        listening = (new.get("audio") or {}).get("input") or {}
        if unknown := set(listening) - set(INPUT):
            name = f"session.audio.input.{sorted(unknown)[0]}"
            return await self.error(f"Unknown parameter: '{name}'.", "unknown_parameter", name, cause)
        for part in (listening, (new.get("audio") or {}).get("output") or {}):
            form = part.get("format")
            if form is not None and (form.get("type") not in FORMATS or form.get("rate", 24000) != 24000):
                return await self.error("Invalid format.", "invalid_value", "session.audio.input.format", cause)
        merged = self.input | listening
        if (merged["transcription"] or {}).get("model") in LIVE and merged["turn_detection"]:
            return await self.error(
                "Turn detection is not supported for this model.", "invalid_value", "session.audio.input.turn_detection", cause
            )
        audio = {"input": merged}
        if not self.transcribe:
            audio["output"] = self.config["audio"]["output"] | ((new.get("audio") or {}).get("output") or {})
        before = self.input
        self.config |= {name: value for name, value in new.items() if name != "audio"} | {"audio": audio}
        if any(before[name] != merged[name] for name in ("format", "turn_detection", "transcription")):
            self.listen()
        await self.send("session.updated", session=self.shown())

    async def append(self, event: dict):
        sound = sound_of(event.get("audio") or "")
        if not sound:
            return await self.error(
                "Invalid 'audio'. Expected base64-encoded audio bytes.", "invalid_value", "audio", event.get("event_id")
            )
        samples = decode(sound, self.encoding)
        milliseconds = len(samples) * 1000 / self.rate
        self.buffered_ms += milliseconds
        await self.c.heard(sound, milliseconds)
        for at in range(0, len(samples), self.rate // 10):
            for heard in self.recogniser.feed(samples[at : at + self.rate // 10]):
                await self.tell(heard)

    async def tell(self, heard: Heard):
        detection = self.input["turn_detection"]
        if heard.kind == "interim" and self.live:
            # While one speaks, the words that are new.
            words = heard.words[self.said :]
            self.said = len(heard.words)
            if words:
                delta = " ".join(word.text for word in words) + " "
                await self.send("conversation.item.input_audio_transcription.delta", item_id=self.item, content_index=0, delta=delta)
        if not detection:
            return
        if heard.kind == "started":
            await self.send("input_audio_buffer.speech_started", audio_start_ms=round(heard.start * 1000), item_id=self.item)
            if self.response and detection.get("interrupt_response", True) and not self.transcribe:
                await self.response.cancel("turn_detected")
        elif heard.kind == "ended":
            if heard.again:
                return await self.transcript(heard, self.last_item)
            await self.send("input_audio_buffer.speech_stopped", audio_end_ms=round(heard.end * 1000), item_id=self.item)
            await self.committed(heard)
            if not self.transcribe and detection.get("create_response", True):
                await self.respond()

    async def commit(self, event: dict):
        if self.buffered_ms < SHORTEST_COMMIT_MS:
            text = f"Error committing input audio buffer: buffer too small. Expected at least 100ms of audio, but buffer only has {self.buffered_ms:.2f}ms."
            return await self.error(text, "input_audio_buffer_commit_empty", cause=event.get("event_id"))
        for heard in self.recogniser.force_end() or [Heard("ended")]:
            if heard.again:
                await self.transcript(heard, self.last_item)
            else:
                await self.committed(heard)

    async def committed(self, heard: Heard):
        item, self.item = self.item, self.new_item()
        self.last_item = item
        self.buffered_ms, self.said = 0.0, 0
        previous = next(reversed(self.items), None)
        await self.send("input_audio_buffer.committed", item_id=item, previous_item_id=previous)
        content = {"type": "input_audio", "transcript": None}
        await self.add(
            {"id": item, "object": "realtime.item", "type": "message", "status": "completed", "role": "user", "content": [content]}
        )
        await self.transcript(heard, item)

    async def transcript(self, heard: Heard, item: str):
        if not self.input["transcription"]:
            return
        kind = "conversation.item.input_audio_transcription"
        if not self.live:
            for word in words_of(heard.text):
                await self.send(f"{kind}.delta", item_id=item, content_index=0, delta=word)
        usage = {"type": "duration", "seconds": round(heard.end - heard.start, 3)}
        await self.send(f"{kind}.completed", final=True, item_id=item, content_index=0, transcript=heard.text, usage=usage)

    async def clear(self, event: dict):
        self.buffered_ms, self.said = 0.0, 0
        self.listen()
        await self.send("input_audio_buffer.cleared")

    async def add(self, item: dict):
        previous = next(reversed(self.items), None)
        self.items[item["id"]] = item
        await self.send("conversation.item.added", item=item, previous_item_id=previous)
        if item["status"] != "in_progress":
            await self.send("conversation.item.done", item=item, previous_item_id=previous)

    async def create_item(self, event: dict):
        item = event.get("item") or {}
        if item.get("type") not in ("message", "function_call", "function_call_output"):
            return await self.error("Invalid value for item.type.", "invalid_value", "item.type", event.get("event_id"))
        if item["type"] == "function_call_output" and item.get("call_id") not in {one.get("call_id") for one in self.items.values()}:
            return await self.error(
                f"Tool call ID '{item.get('call_id')}' not found in conversation.", "invalid_tool_call_id", cause=event.get("event_id")
            )
        await self.add({"id": self.new_item(), "object": "realtime.item", "status": "completed"} | item)

    async def delete_item(self, event: dict):
        if self.items.pop(event.get("item_id"), None) is None:
            return await self.error("Item was not found.", "item_delete_invalid_item_id", cause=event.get("event_id"))
        await self.send("conversation.item.deleted", item_id=event["item_id"])

    async def truncate(self, event: dict):
        item, end_ms = event.get("item_id"), event.get("audio_end_ms")
        if item not in self.spoken_ms or not isinstance(end_ms, int):
            return await self.error("Item was not found.", "item_truncate_invalid_item_id", cause=event.get("event_id"))
        if end_ms > self.spoken_ms[item]:
            text = f"Audio content of {self.spoken_ms[item]:.0f}ms is already shorter than {end_ms}ms"
            return await self.error(text, "invalid_value", "audio_end_ms", event.get("event_id"))
        self.spoken_ms[item] = end_ms
        # The vendor forgets the text of what it truncates.
        self.items[item]["content"] = [{"type": "output_audio", "transcript": ""}]
        await self.send("conversation.item.truncated", item_id=item, content_index=event.get("content_index", 0), audio_end_ms=end_ms)

    async def create_response(self, event: dict):
        if self.transcribe:
            return await self.error("A transcription session gives no responses.", "invalid_value", "type", event.get("event_id"))
        if self.response:
            text = f"Conversation already has an active response in progress: {self.response.id}. Wait until the response is finished before creating a new one."
            return await self.error(text, "conversation_already_has_active_response", cause=event.get("event_id"))
        await self.respond()

    async def respond(self):
        if self.response:
            await self.response.cancel("turn_detected")
        self.response = Response(self, self.c.script.next_reply())
        self.response.start()

    async def cancel_response(self, event: dict):
        if not self.response:
            return await self.error(
                "Cancellation failed: no active response found", "response_cancel_not_active", cause=event.get("event_id")
            )
        await self.response.cancel("client_cancelled")

    HANDLERS = {
        "session.update": update,
        "input_audio_buffer.append": append,
        "input_audio_buffer.commit": commit,
        "input_audio_buffer.clear": clear,
        "conversation.item.create": create_item,
        "conversation.item.delete": delete_item,
        "conversation.item.truncate": truncate,
        "response.create": create_response,
        "response.cancel": cancel_response,
    }
