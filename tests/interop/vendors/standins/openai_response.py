"""A response of OpenAI Realtime: its items, in the order of events that the vendor has."""

import asyncio
import base64
import json

from .core import new_id, pieces, words_of
from .sound import encode, speak

FORMATS = {"audio/pcm": ("linear16", 24000), "audio/pcmu": ("mulaw", 8000), "audio/pcma": ("alaw", 8000)}


class Response:
    def __init__(self, session, reply: dict):
        self.session, self.reply = session, reply
        self.id = f"resp_{new_id()[:18]}"
        self.output: list[dict] = []
        self.task: asyncio.Task | None = None
        # The item that is being spoken.
        self.open: dict | None = None

    def start(self):
        self.task = self.session.c.start(self.run())

    async def cancel(self, reason: str):
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)
        if self.open:
            self.open["status"] = "incomplete"
            await self.send("output_item.done", output_index=len(self.output) - 1, item=self.open)
        await self.done("cancelled", {"type": "cancelled", "reason": reason})

    async def send(self, kind: str, **fields):
        await self.session.send(f"response.{kind}", response_id=self.id, **fields)

    def shown(self, status: str, details: dict | None = None) -> dict:
        return {"object": "realtime.response", "id": self.id, "status": status, "status_details": details, "output": self.output}

    async def done(self, status: str, details: dict | None = None):
        self.session.response = None
        tokens = {"input_tokens": 10, "output_tokens": 20, "total_tokens": 30}
        for _ in range(2 if self.session.c.has_fault("double_finals") else 1):
            await self.session.send("response.done", final=True, response=self.shown(status, details) | {"usage": tokens})

    async def run(self):
        session, reply = self.session, self.reply
        await session.send("response.created", response=self.shown("in_progress"))
        await asyncio.sleep(reply.get("first_ms", 0) / 1000)
        if reply.get("text"):
            await self.say(reply["text"])
        for tool in reply.get("tools", []):
            await self.call(tool)
        if error := reply.get("error"):
            await self.done(
                "failed", {"type": "failed", "error": {"type": "server_error", "code": error, "message": "The response failed."}}
            )
            return
        await self.done("completed")
        await session.send(
            "rate_limits.updated", rate_limits=[{"name": "tokens", "limit": 40000, "remaining": 39000, "reset_seconds": 1.5}]
        )

    async def add(self, item: dict) -> int:
        self.output.append(item)
        index = len(self.output) - 1
        await self.send("output_item.added", output_index=index, item=dict(item))
        await self.session.add(item)
        return index

    async def finish(self, index: int, item: dict):
        item["status"] = "completed"
        await self.send("output_item.done", output_index=index, item=item)
        await self.session.send("conversation.item.done", item=item, previous_item_id=None)

    async def say(self, text: str):
        session = self.session
        encoding, rate = FORMATS[session.config["audio"]["output"]["format"]["type"]]
        if session.c.has_fault("wrong_rate"):
            rate = session.c.fault["rate"]
        item = {
            "id": session.new_item(),
            "object": "realtime.item",
            "type": "message",
            "status": "in_progress",
            "role": "assistant",
            "content": [],
        }
        index = await self.add(item)
        self.open = item
        place = {"item_id": item["id"], "output_index": index, "content_index": 0}
        await self.send("content_part.added", **place, part={"type": "audio", "transcript": ""})
        speech = speak(text, rate, session.c.script.says)
        # The transcript runs ahead of the sound.
        for word in words_of(text):
            await self.send("output_audio_transcript.delta", **place, delta=word)
        item["content"] = [{"type": "output_audio", "transcript": text}]
        session.spoken_ms[item["id"]] = 0
        async for piece in pieces(session.c, speech.samples, rate):
            await self.send("output_audio.delta", **place, delta=base64.b64encode(encode(piece, encoding)).decode())
            session.spoken_ms[item["id"]] += len(piece) * 1000 / rate
        await self.send("output_audio.done", **place)
        await self.send("output_audio_transcript.done", **place, transcript=text)
        await self.send("content_part.done", **place, part={"type": "audio", "transcript": text})
        self.open = None
        await self.finish(index, item)

    async def call(self, tool: dict):
        arguments, call = json.dumps(tool.get("arguments", {})), tool.get("id", f"call_{new_id()[:16]}")
        item = {"id": self.session.new_item(), "object": "realtime.item", "type": "function_call", "status": "in_progress"}
        item |= {"name": tool["name"], "call_id": call, "arguments": ""}
        index = await self.add(item)
        place = {"item_id": item["id"], "output_index": index, "call_id": call}
        for at in range(0, len(arguments), 7):
            await self.send("function_call_arguments.delta", **place, delta=arguments[at : at + 7])
        await self.send("function_call_arguments.done", **place, arguments=arguments, name=tool["name"])
        item["arguments"] = arguments
        await self.finish(index, item)
