"""ElevenLabs Scribe, recognition of streams: `/v1/speech-to-text/realtime`.

Messages and query: the classes `…Payload` of elevenlabs 2.78.0 and its `realtime/scribe.py`. With `include_timestamps`
each commit comes twice: plain, and with the times of its words. An error is a message before the connection ends; a
wrong key is one, too.

`session`: "limit_s" ends the session with `session_time_limit_exceeded`.
"""

import json
import time

from aiohttp import web

from .core import Connection, Refused, Vendor, sound_of
from .elevenlabs_tts import ERRORS, error_body
from .sound import Heard, decode

FORMATS = {f"pcm_{rate}": ("linear16", rate) for rate in (8000, 16000, 22050, 24000, 44100, 48000)} | {"ulaw_8000": ("mulaw", 8000)}
# Below this, a commit has nothing to work with.
SHORTEST_COMMIT_MS = 300


def routes(vendor: Vendor):
    vendor.error_body = lambda status: error_body(*ERRORS.get(status, ("internal_server_error", "An unexpected error occurred.")))
    return [web.get("/v1/speech-to-text/realtime", vendor.socket(check, listen))]


def check(c: Connection) -> dict:
    query = c.request.query
    wrong = None
    if not query.get("model_id", "").startswith("scribe_v2_realtime"):
        wrong = "model_id is scribe_v2_realtime"
    elif query.get("audio_format", "pcm_16000") not in FORMATS:
        wrong = f"audio_format is one of {', '.join(FORMATS)}"
    elif query.get("commit_strategy", "manual") not in ("manual", "vad"):
        wrong = "commit_strategy is manual or vad"
    silence = query.get("vad_silence_threshold_secs", "1.5")
    try:
        if not 0.3 <= float(silence) <= 3.0:
            raise ValueError
    except ValueError:
        wrong = "vad_silence_threshold_secs is between 0.3 and 3.0"
    if wrong:
        raise Refused(400, error_body("invalid_parameters", wrong))
    encoding, rate = FORMATS[query.get("audio_format", "pcm_16000")]
    by_silence = query.get("commit_strategy") == "vad"
    return {
        "encoding": encoding,
        "rate": rate,
        "silence_ms": float(silence) * 1000 if by_silence else None,
        "times": query.get("include_timestamps") == "true",
        "by_silence": by_silence,
    }


async def fail(c: Connection, kind: str, text: str, code: int = 1008):
    await c.send({"message_type": kind, "error": text}, kind)
    await c.end(code, text)


async def listen(c: Connection):
    asked, query = c.checked, c.request.query
    if not c.key_is_right():
        await fail(c, "auth_error", "You must be authenticated to use this endpoint.")
    recogniser = c.recogniser(asked["rate"], asked["silence_ms"])
    if not asked["by_silence"]:
        # Only a commit ends a segment, whatever the pauses are.
        recogniser.silence = None

    async def tell(heard: Heard):
        if heard.kind == "interim":
            await c.send({"message_type": "partial_transcript", "text": heard.text}, "partial_transcript")
        elif heard.kind in ("final", "ended"):
            await commit(heard)

    async def commit(heard: Heard):
        await c.send({"message_type": "committed_transcript", "text": heard.text}, "committed_transcript", final=True)
        if not asked["times"]:
            return
        words = []
        for n, word in enumerate(heard.words):
            if n:
                words.append({"text": " ", "start": heard.words[n - 1].end, "end": word.start, "type": "spacing", "logprob": 0.0})
            words.append({"text": word.text, "start": word.start, "end": word.end, "type": "word", "logprob": -0.02})
        message = {"message_type": "committed_transcript_with_timestamps", "text": heard.text}
        await c.send(message | {"language_code": query.get("language_code", "en"), "words": words}, "committed_transcript_with_timestamps")

    config = {"sample_rate": asked["rate"], "audio_format": query.get("audio_format", "pcm_16000"), "model_id": query["model_id"]}
    config |= {"commit_strategy": query.get("commit_strategy", "manual"), "include_timestamps": asked["times"]}
    if language := query.get("language_code"):
        config["language_code"] = language
    await c.send({"message_type": "session_started", "session_id": c.id, "config": config}, "session_started")
    limit, began = c.script.session.get("limit_s"), time.monotonic()
    since_commit_ms = 0.0
    while True:
        data = await c.receive(None if limit is None else max(0.0, began + limit - time.monotonic()))
        if data is None:
            await fail(c, "session_time_limit_exceeded", "The session has reached its time limit.")
        try:
            message = json.loads(data)
            if message["message_type"] != "input_audio_chunk":
                raise ValueError
            sound = sound_of(message["audio_base_64"])
            if sound is None:
                raise ValueError
        except (ValueError, TypeError, KeyError):
            c.note({"unknown": str(data)[:200]})
            await fail(c, "input_error", "The message is no input_audio_chunk.")
        if message.get("sample_rate", asked["rate"]) != asked["rate"]:
            await fail(c, "input_error", "sample_rate is not that of audio_format.")
        rate = asked["rate"]
        samples = decode(sound, asked["encoding"])
        if sound:
            since_commit_ms += len(samples) * 1000 / rate
            await c.heard(sound, len(samples) * 1000 / rate)
        for at in range(0, len(samples), rate // 10):
            for heard in recogniser.feed(samples[at : at + rate // 10]):
                await tell(heard)
        if message.get("commit"):
            c.note({"commit": True})
            if since_commit_ms < SHORTEST_COMMIT_MS:
                await c.send({"message_type": "commit_throttled", "error": "Less than 0.3 s of uncommitted audio."}, "commit_throttled")
                continue
            since_commit_ms = 0.0
            for heard in recogniser.finalize() or [Heard("ended", [], recogniser.seconds, recogniser.seconds)]:
                await tell(heard)
