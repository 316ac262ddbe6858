#!/usr/bin/env python3
"""A server that speaks OpenAI's HTTP interface, with real recognition (Whisper tiny.en), a real voice (Piper) and a model that
answers by rule: a conversation without any key and without the internet.

    server.py                     serves; the first line on stdout is JSON with the address
    server.py cargo run           serves for a command, which finds the address in OPENAI_BASE_URL, and ends with it

It listens on loopback only, and stops by itself after `--seconds`."""

import argparse
import asyncio
import json
import os
import sys
import threading
import time
import uuid

import numpy as np
from aiohttp import web

import mind
from engines import STT_RATE_HZ, Recognizer, voice
from sound import read, resample

# Of OpenAI's `response_format: pcm`.
SPEECH_RATE_HZ = 24_000
# OpenAI's own limits ("Create transcription", "Create speech").
MAX_UPLOAD_BYTES = 25 << 20
MAX_INPUT_CHARACTERS = 4_096
# How much sound one request may hold: decoded it is larger than uploaded.
MAX_SOUND_S = 600
STT_MODEL, LLM_MODEL, TTS_MODEL = "whisper-tiny.en", "answers-by-rule", "piper-joe"
DEFAULT_SECONDS = 8 * 3600


def refusal(message: str, status: int = 400) -> web.HTTPException:
    body = json.dumps({"error": {"message": message, "type": "invalid_request_error", "param": None, "code": None}})
    kind = {400: web.HTTPBadRequest, 413: web.HTTPRequestEntityTooLarge}[status]
    options = {"max_size": MAX_UPLOAD_BYTES, "actual_size": 0} if status == 413 else {}
    return kind(text=body, content_type="application/json", **options)


async def json_body(request: web.Request) -> dict:
    try:
        body = await request.json()
    except ValueError:
        body = None
    if not isinstance(body, dict):
        raise refusal("the body is no JSON object")
    return body


class Server:
    """The three services, and who may use recognizer and voice: one request at a time, because each uses all cores."""

    def __init__(self):
        self.recognizer, self.voice = Recognizer(), voice()
        self._recognizing, self._speaking = asyncio.Lock(), asyncio.Lock()

    def app(self) -> web.Application:
        app = web.Application(client_max_size=MAX_UPLOAD_BYTES)
        app.add_routes([
            web.get("/v1/models", self.models),
            web.post("/v1/audio/transcriptions", self.transcriptions),
            web.post("/v1/audio/speech", self.speech),
            web.post("/v1/chat/completions", self.chat),
        ])
        return app

    async def models(self, _):
        models = [{"id": name, "object": "model", "owned_by": "here"} for name in (STT_MODEL, LLM_MODEL, TTS_MODEL)]
        return web.json_response({"object": "list", "data": models})

    async def transcriptions(self, request: web.Request):
        form = await request.post()
        file, form_of_answer = form.get("file"), form.get("response_format", "json")
        if not isinstance(file, web.FileField):
            raise refusal("the form has no file")
        if form_of_answer not in ("json", "text", "verbose_json"):
            raise refusal(f"response_format {form_of_answer!r} is not known here: json, text or verbose_json")
        sound = file.file.read()
        try:
            pcm = await asyncio.to_thread(read, sound, STT_RATE_HZ)
        except ValueError as error:
            raise refusal(str(error))
        if len(pcm) > MAX_SOUND_S * STT_RATE_HZ:
            raise refusal(f"the sound is longer than {MAX_SOUND_S} s", 413)
        # A request that was given up while it waited never gets here.
        async with self._recognizing:
            segments = await asyncio.to_thread(self.recognizer.transcribe, pcm)
        text = " ".join(segment.text.strip() for segment in segments)
        if form_of_answer == "text":
            return web.Response(text=text + "\n")
        if form_of_answer == "json":
            return web.json_response({"text": text})
        details = [
            {"id": number, "start": s.start_s, "end": s.end_s, "text": s.text,
             "avg_logprob": s.mean_log_probability, "no_speech_prob": s.no_speech_probability}
            for number, s in enumerate(segments)
        ]
        return web.json_response({
            "task": "transcribe", "language": "english", "duration": len(pcm) / STT_RATE_HZ, "text": text, "segments": details,
        })

    async def speech(self, request: web.Request):
        body = await json_body(request)
        text, form_of_answer = body.get("input"), body.get("response_format", "wav")
        speed = body.get("speed", 1.0)
        if not isinstance(text, str) or not text.strip():
            raise refusal("input is no text")
        if len(text) > MAX_INPUT_CHARACTERS:
            raise refusal(f"input is longer than {MAX_INPUT_CHARACTERS} characters")
        if form_of_answer not in ("pcm", "wav"):
            raise refusal(f"response_format {form_of_answer!r} is not known here: pcm or wav")
        if not isinstance(speed, int | float) or not 0.25 <= speed <= 4:
            raise refusal("speed is no number from 0.25 to 4")
        response = web.StreamResponse(headers={"Content-Type": "audio/pcm" if form_of_answer == "pcm" else "audio/wav"})
        async with self._speaking:
            sentences = self.voice.say(text, speed)
            first = await asyncio.to_thread(next, sentences, None)
            await response.prepare(request)
            if form_of_answer == "wav":
                await response.write(wav_header())
            while first is not None:
                sound = resample(first, self.voice.rate_hz, SPEECH_RATE_HZ)
                await response.write(sound.astype("<i2").tobytes())
                first = await asyncio.to_thread(next, sentences, None)
        await response.write_eof()
        return response

    async def chat(self, request: web.Request):
        body = await json_body(request)
        messages = body.get("messages")
        if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages) or not messages:
            raise refusal("messages is no list of messages")
        tools = body.get("tools") or []
        offered = {tool["function"]["name"] for tool in tools if isinstance(tool, dict) and "function" in tool}
        reply = mind.answer(messages, offered)
        calls = [
            {"index": index, "id": f"call_{uuid.uuid4().hex[:12]}", "type": "function",
             "function": {"name": name, "arguments": json.dumps(arguments)}}
            for index, (name, arguments) in enumerate(reply.tools)
        ]
        about = {"id": f"chatcmpl-{uuid.uuid4().hex[:12]}", "created": int(time.time()), "model": LLM_MODEL}
        finish = "tool_calls" if calls else "stop"
        written = {"prompt_tokens": sum(len(mind.text_of(m)) for m in messages) // 4, "completion_tokens": len(reply.text) // 4}
        usage = {**written, "total_tokens": sum(written.values())}
        if not body.get("stream"):
            message = {"role": "assistant", "content": reply.text or None} | ({"tool_calls": calls} if calls else {})
            choice = {"index": 0, "message": message, "finish_reason": finish}
            return web.json_response({**about, "object": "chat.completion", "choices": [choice], "usage": usage})

        response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache"})
        await response.prepare(request)

        async def event(delta: dict | None, finish: str | None = None, usage: dict | None = None):
            choices = [] if delta is None else [{"index": 0, "delta": delta, "finish_reason": finish}]
            chunk = {**about, "object": "chat.completion.chunk", "choices": choices} | ({"usage": usage} if usage else {})
            await response.write(f"data: {json.dumps(chunk)}\n\n".encode())

        await event({"role": "assistant", "content": ""})
        for word in reply.text.split(" ") if reply.text else []:
            await event({"content": word + " "})
        for call in calls:
            await event({"tool_calls": [call]})
        await event({}, finish)
        if (body.get("stream_options") or {}).get("include_usage"):
            await event(None, usage=usage)
        await response.write(b"data: [DONE]\n\n")
        await response.write_eof()
        return response


def wav_header() -> bytes:
    """Of a WAV file whose length is not known yet: mono, 16 bit."""
    unknown = (0xFFFFFFFF).to_bytes(4, "little")
    numbers = np.array([16], "<u4").tobytes() + np.array([1, 1], "<u2").tobytes()
    numbers += np.array([SPEECH_RATE_HZ, SPEECH_RATE_HZ * 2], "<u4").tobytes() + np.array([2, 16], "<u2").tobytes()
    return b"RIFF" + unknown + b"WAVEfmt " + numbers + b"data" + unknown


async def stdin_closes():
    """Waits in a thread, because not everything that stdin can be tells when it may be read."""
    closed, loop = asyncio.Event(), asyncio.get_running_loop()

    def read_all():
        while sys.stdin.buffer.read1(4096):
            pass
        loop.call_soon_threadsafe(closed.set)

    threading.Thread(target=read_all, daemon=True).start()
    await closed.wait()


async def run_for(command: list[str], url: str) -> int:
    """Runs a command that finds us in its environment. What it is set to already stays."""
    ours = {"VOICEBOT__PROVIDERS__STT_MODEL": STT_MODEL, "VOICEBOT__PROVIDERS__LLM_MODEL": LLM_MODEL,
            "VOICEBOT__PROVIDERS__TTS_MODEL": TTS_MODEL}
    environment = {**ours, **os.environ, "OPENAI_BASE_URL": url}
    child = await asyncio.create_subprocess_exec(*command, env=environment)
    try:
        return await child.wait()
    finally:
        if child.returncode is None:
            child.terminate()
            await child.wait()


async def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=0, help="port on loopback; 0 takes a free one")
    parser.add_argument("--seconds", type=float, default=DEFAULT_SECONDS, help="stops after so long (default: eight hours)")
    parser.add_argument("--stop-with-stdin", action="store_true", help="stops when stdin closes")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="what to serve for")
    arguments = parser.parse_args()

    server = await asyncio.to_thread(Server)
    # A caller who goes on speaking makes the worker give a request up, and what nobody waits for costs a core.
    runner = web.AppRunner(server.app(), handler_cancellation=True, access_log=None)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", arguments.port)
        await site.start()
        url = f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}/v1"
        print(json.dumps({"url": url, "voice": server.voice.name}), flush=True)
        if arguments.command:
            return await run_for(arguments.command, url)
        if arguments.stop_with_stdin:
            await asyncio.wait_for(stdin_closes(), arguments.seconds)
        else:
            await asyncio.sleep(arguments.seconds)
    except TimeoutError:
        pass
    except OSError as error:
        print(f"server.py: port {arguments.port} on 127.0.0.1 or the command cannot be used: {error}", file=sys.stderr)
        return 1
    finally:
        await runner.cleanup()
    return 0


if __name__ == "__main__":
    try:
        sys.exit(asyncio.run(main()))
    except KeyboardInterrupt:
        sys.exit(130)
