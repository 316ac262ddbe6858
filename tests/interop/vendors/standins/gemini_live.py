"""Gemini Live, speech to speech: `/ws/google.ai.generativelanguage.v1beta.GenerativeService.BidiGenerateContent`.

Messages: ai.google.dev/api/live and the classes `Live…` of google-genai 3.6.1; what comes with an interruption: the
description of `generation_complete` there ("interrupted > turn_complete"); sessions:
ai.google.dev/gemini-api/docs/live-session. The vendor sends its JSON in binary frames. Sound comes in at the rate of
its MIME type and goes out at 24 kHz. How a session that is over is closed is not in the specification.

`session`: "text_frames" (false); "go_away_after_turns": the end is announced after so many turns and comes half a
second later.
"""

import asyncio
import base64
import json
import re

from aiohttp import web

from .core import Connection, Vendor, new_id, pieces, sound_of, words_of
from .gemini import error_body
from .sound import Heard, decode, encode, speak

RATE = 24000
SETUP = {
    "model", "generationConfig", "systemInstruction", "tools", "realtimeInputConfig", "sessionResumption", "contextWindowCompression",
    "inputAudioTranscription", "outputAudioTranscription", "proactivity", "historyConfig",
}  # fmt: skip
MESSAGES = {"setup", "clientContent", "realtimeInput", "toolResponse"}
REALTIME = {"audio", "mediaChunks", "video", "text", "audioStreamEnd", "activityStart", "activityEnd"}


def routes(vendor: Vendor):
    vendor.error_body = error_body
    path = "/ws/google.ai.generativelanguage.{version:v1beta|v1alpha}.GenerativeService.BidiGenerateContent"
    return [web.get(path, vendor.socket(lambda c: None, talk))]


async def talk(c: Connection):
    c.json_in_binary = not c.script.session.get("text_frames")
    await Session(c).run()


# Below these, names are the client's own.
FREE = {"args", "response", "parameters", "parametersJsonSchema", "properties"}


def camel(value):
    """Names in camel case: the vendor reads both, and its client sends both."""
    if isinstance(value, list):
        return [camel(one) for one in value]
    if not isinstance(value, dict):
        return value
    named = {re.sub(r"_([a-z])", lambda match: match.group(1).upper(), name): one for name, one in value.items()}
    return {name: one if name in FREE else camel(one) for name, one in named.items()}


class Session:
    def __init__(self, c: Connection):
        self.c = c
        self.setup: dict = {}
        self.recogniser = None
        self.rate = 16000
        self.turn: asyncio.Task | None = None
        self.turns = 0
        # Calls whose answers are missing.
        self.calls: set[str] = set()

    async def send(self, kind: str, body: dict, final: bool = False, **more):
        await self.c.send({kind: body, **more}, kind, final)

    async def content(self, final: bool = False, more: dict | None = None, **fields):
        await self.c.send({"serverContent": fields} | (more or {}), next(iter(fields)), final)

    async def read(self) -> dict:
        data = await self.c.receive()
        try:
            message = camel(json.loads(data))
            if not isinstance(message, dict):
                raise ValueError
        except ValueError:
            self.c.note({"unknown": str(data)[:200]})
            await self.c.end(1007, "Request contains an invalid argument.")
        if unknown := set(message) - MESSAGES:
            await self.c.end(1007, f'Invalid JSON payload received. Unknown name "{sorted(unknown)[0]}": Cannot find field.')
        if "audio" not in message.get("realtimeInput", {}) and "mediaChunks" not in message.get("realtimeInput", {}):
            self.c.note(message)
        return message

    async def run(self):
        c = self.c
        message = await self.read()
        if not c.key_is_right():
            await c.end(1007, "API key not valid. Please pass a valid API key.")
        if "setup" not in message:
            await c.end(1007, "setup must be the first message and only the first")
        self.setup = message["setup"]
        if unknown := set(self.setup) - SETUP:
            await c.end(1007, f"Invalid JSON payload received. Unknown name \"{sorted(unknown)[0]}\" at 'setup': Cannot find field.")
        model = self.setup.get("model", "")
        if not re.fullmatch(r"models/gemini-[\w.-]+", model):
            await c.end(1008, f"{model} is not found for API version v1beta, or is not supported for bidiGenerateContent.")
        handle = (self.setup.get("sessionResumption") or {}).get("handle")
        if handle and handle not in c.script.handles:
            await c.end(1008, "Session not found.")
        await self.send("setupComplete", {})
        await self.handle()
        while True:
            message = await self.read()
            if "setup" in message:
                await c.end(1007, "setup must be the first message and only the first")
            elif "realtimeInput" in message:
                await self.realtime(message["realtimeInput"])
            elif "clientContent" in message:
                if message["clientContent"].get("turnComplete"):
                    await self.respond()
            elif "toolResponse" in message:
                await self.answered(message["toolResponse"])

    async def handle(self):
        """A handle with which the session goes on over another connection."""
        if "sessionResumption" in self.setup:
            handle = new_id()
            self.c.script.handles.add(handle)
            await self.send("sessionResumptionUpdate", {"newHandle": handle, "resumable": True})

    async def go_away(self):
        await self.send("goAway", {"timeLeft": "0.5s"})
        await asyncio.sleep(0.5)
        await self.c.end(1011, "Deadline expired before operation could complete.")

    @property
    def detection(self) -> dict:
        return (self.setup.get("realtimeInputConfig") or {}).get("automaticActivityDetection") or {}

    async def realtime(self, given: dict):
        if unknown := set(given) - REALTIME:
            await self.c.end(
                1007, f"Invalid JSON payload received. Unknown name \"{sorted(unknown)[0]}\" at 'realtime_input': Cannot find field."
            )
        for blob in [given["audio"]] if "audio" in given else given.get("mediaChunks", []):
            await self.hear(blob)
        manual = self.detection.get("disabled", False)
        if ("activityStart" in given or "activityEnd" in given) and not manual:
            await self.c.end(1007, "Explicit activity control is not supported when automatic activity detection is enabled.")
        if "activityStart" in given:
            await self.interrupt()
        if "activityEnd" in given or "audioStreamEnd" in given:
            heard = self.recogniser.force_end() if self.recogniser else []
            for one in heard or ([Heard("ended")] if "activityEnd" in given else []):
                await self.tell(one)
        if "text" in given:
            await self.respond()

    async def hear(self, blob: dict):
        kind = re.fullmatch(r"audio/pcm(?:;\s*rate=(\d+))?", blob.get("mimeType", ""))
        # Both alphabets of base64 are read; the vendor's client sends the one for addresses.
        data = sound_of(blob.get("data", "").translate(str.maketrans("-_", "+/")))
        if not kind or data is None:
            await self.c.end(1007, "Request contains an invalid argument.")
        rate = int(kind.group(1) or 16000)
        manual = self.detection.get("disabled", False)
        if self.recogniser is None or rate != self.rate:
            self.rate = rate
            self.recogniser = self.c.recogniser(rate, self.detection.get("silenceDurationMs", 500))
            if manual:
                self.recogniser.silence = None
        samples = decode(data, "linear16")
        await self.c.heard(data, len(samples) * 1000 / rate)
        for at in range(0, len(samples), rate // 10):
            for heard in self.recogniser.feed(samples[at : at + rate // 10]):
                await self.tell(heard)

    async def tell(self, heard: Heard):
        manual = self.detection.get("disabled", False)
        if heard.kind == "started" and not manual:
            await self.interrupt()
        elif heard.kind == "ended":
            if "inputAudioTranscription" in self.setup:
                for word in words_of(heard.text):
                    await self.content(inputTranscription={"text": word})
            # Sound without words is no turn of the user.
            if not heard.again and (heard.words or manual):
                await self.respond()

    async def interrupt(self):
        if (self.setup.get("realtimeInputConfig") or {}).get("activityHandling") == "NO_INTERRUPTION":
            return
        if self.calls:
            await self.send("toolCallCancellation", {"ids": sorted(self.calls)})
            self.calls.clear()
        if self.turn and not self.turn.done():
            self.turn.cancel()
            await asyncio.gather(self.turn, return_exceptions=True)
            await self.content(interrupted=True)
            await self.complete()

    async def answered(self, given: dict):
        for one in given.get("functionResponses", []):
            if "id" not in one or "response" not in one:
                await self.c.end(1007, "Request contains an invalid argument.")
            self.calls.discard(one["id"])
        if not self.calls:
            await self.respond()

    async def respond(self):
        if self.turn and not self.turn.done():
            await self.interrupt()
        self.turn = self.c.start(self.say(self.c.script.next_reply()))

    async def say(self, reply: dict):
        c = self.c
        await asyncio.sleep(reply.get("first_ms", 0) / 1000)
        rate = c.fault["rate"] if c.has_fault("wrong_rate") else RATE
        if text := reply.get("text"):
            words, said = words_of(text), 0
            speech = speak(text, rate, c.script.says)
            at = 0
            async for piece in pieces(c, speech.samples, rate):
                data = base64.b64encode(encode(piece, "linear16")).decode()
                part = {"inlineData": {"mimeType": f"audio/pcm;rate={RATE}", "data": data}}
                await self.content(modelTurn={"role": "model", "parts": [part]})
                at += len(piece)
                # The text keeps about with the sound.
                upto = len(words) if at >= len(speech.samples) else at * len(words) // len(speech.samples)
                for word in words[said:upto] if "outputAudioTranscription" in self.setup else []:
                    await self.content(outputTranscription={"text": word})
                said = upto
        if reply.get("error"):
            await c.end(1011, "Internal error encountered.")
        if tools := reply.get("tools"):
            calls = [{"id": tool.get("id", new_id()), "name": tool["name"], "args": tool.get("arguments", {})} for tool in tools]
            self.calls |= {call["id"] for call in calls}
            await self.send("toolCall", {"functionCalls": calls})
            return
        await self.content(generationComplete=True)
        for _ in range(2 if c.has_fault("double_finals") else 1):
            await self.complete()

    async def complete(self):
        usage = {"promptTokenCount": 10, "responseTokenCount": 20, "totalTokenCount": 30}
        await self.content(turnComplete=True, final=True, more={"usageMetadata": usage})
        await self.handle()
        self.turns += 1
        if self.turns == self.c.script.session.get("go_away_after_turns"):
            self.c.start(self.go_away())
