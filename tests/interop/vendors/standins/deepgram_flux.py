"""Deepgram Flux, recognition with turns: `/v2/listen`.

Messages and query: deepgram/deepgram-api-specs `asyncapi.yml` `/v2/listen`, and for ForceEndTurn and `trigger` the
classes of deepgram-sdk 7.17.0. The order of events: developers.deepgram.com/docs/flux/state; ranges:
…/docs/flux/configuration; the end without EndOfTurn and without a closing code: …/docs/flux/close-stream. A message
that cannot be read is answered with Error and the end of the connection; its code is not in the specification.

`session`: "turn_silence_ms" (600), the silence that ends a turn; "idle_s" (10). With `eager_eot_threshold`, the eager
end comes after `hears.eager_ms` (250) of silence.
"""

import json

from aiohttp import web

from .core import Connection, Refused, Vendor
from .deepgram_listen import ERRORS, bad_request, check_key, check_sound, error_body
from .sound import Heard, decode

RANGES = {"eager_eot_threshold": (0.3, 0.9), "eot_threshold": (0.5, 1.0), "eot_timeout_ms": (500, 60000)}
EVENTS = {
    "quiet": "Update", "interim": "Update", "started": "StartOfTurn", "eager": "EagerEndOfTurn", "resumed": "TurnResumed", "ended": "EndOfTurn",
}  # fmt: skip


def routes(vendor: Vendor):
    vendor.error_body = lambda status: error_body(*ERRORS.get(status, ("INTERNAL_SERVER_ERROR", "Internal server error.")))
    return [web.get("/v2/listen", vendor.socket(check, listen))]


def out_of_range(settings: dict) -> str | None:
    for name, value in settings.items():
        low, high = RANGES.get(name, (None, None))
        if low is None:
            return f"There is no setting {name}."
        try:
            if value is not None and not low <= float(value) <= high:
                return f"{name} is between {low} and {high}."
        except (TypeError, ValueError):
            return f"{name} is a number."
    return None


def check(c: Connection) -> dict:
    check_key(c)
    query = c.request.query
    model = query.get("model")
    if model not in ("flux-general-en", "flux-general-multi"):
        raise bad_request("Bad Request: No such model/language/tier combination found.")
    if "language_hint" in query and (model != "flux-general-multi" or not all(query.getall("language_hint"))):
        raise bad_request("Bad Request: language_hint is only for flux-general-multi, and not empty.")
    settings = {name: query[name] for name in RANGES if name in query}
    if wrong := out_of_range(settings):
        raise bad_request(f"Bad Request: {wrong}")
    encoding, rate = check_sound(query)
    if encoding is None:
        raise Refused(501, "this stand-in hears no containers: give an encoding")
    thresholds = {"eot_threshold": 0.7, "eot_timeout_ms": 5000} | {name: float(value) for name, value in settings.items()}
    keyterms, hints = query.getall("keyterm", []), query.getall("language_hint", [])
    return {
        "encoding": encoding,
        "rate": rate,
        "thresholds": thresholds,
        "keyterms": keyterms,
        "hints": hints,
        "multi": model.endswith("multi"),
    }


async def listen(c: Connection):
    session = Session(c, c.checked)
    await session.send({"type": "Connected", "request_id": c.id}, "Connected")
    while True:
        data = await c.receive(c.script.session.get("idle_s", 10))
        if data is None:
            await c.end(1011, "NET-0001: Deepgram did not receive audio data within the timeout window.")
        if isinstance(data, bytes):
            await session.hear(data)
        elif await session.command(data):
            await c.close_without_code()
            return


class Session:
    def __init__(self, c: Connection, asked: dict):
        self.c, self.asked = c, asked
        self.sequence = 0
        self.turn = 0
        # Whether StartOfTurn was sent; sound that is no words begins no turn.
        self.in_turn = False
        self.window_start = 0.0
        self.recogniser = c.recogniser(asked["rate"], None)
        self.recogniser.interim = self.recogniser.quiet = asked["rate"] // 4
        self.configure()

    def configure(self):
        thresholds = self.asked["thresholds"]
        hears = self.c.script.hears
        # At 1.0 the model ends no turn by itself, only the time-out does.
        natural = thresholds["eot_threshold"] < 1.0
        silence_ms = hears.get("silence_ms", self.c.script.session.get("turn_silence_ms", 600)) if natural else thresholds["eot_timeout_ms"]
        self.timeout_ends = not natural or thresholds["eot_timeout_ms"] <= silence_ms
        silence_ms = min(silence_ms, thresholds["eot_timeout_ms"])
        self.recogniser.silence = silence_ms * self.asked["rate"] / 1000
        eager = "eager_eot_threshold" in thresholds
        self.recogniser.eager = min(hears.get("eager_ms", 250), silence_ms - 10) * self.asked["rate"] / 1000 if eager else 0

    async def hear(self, data: bytes):
        rate = self.asked["rate"]
        samples = decode(data, self.asked["encoding"])
        await self.c.heard(data, len(samples) * 1000 / rate)
        for at in range(0, len(samples), rate // 10):
            for heard in self.recogniser.feed(samples[at : at + rate // 10]):
                await self.tell(heard)

    async def command(self, data: str) -> bool:
        """Whether the stream is to end."""
        try:
            message = json.loads(data)
            kind = message["type"]
            if kind not in ("Configure", "CloseStream", "ForceEndTurn"):
                raise ValueError(kind)
        except (ValueError, TypeError, KeyError):
            self.c.note({"unknown": data[:200]})
            error = {"type": "Error", "code": "UNPARSABLE_CLIENT_MESSAGE", "description": "The message could not be read."}
            await self.send(error, "Error")
            await self.c.end(1008, "UNPARSABLE_CLIENT_MESSAGE")
        self.c.note(message)
        if kind == "Configure":
            await self.change(message)
        elif kind == "ForceEndTurn":
            for heard in self.recogniser.force_end():
                await self.tell(heard, trigger="manual")
        return kind == "CloseStream"

    async def change(self, message: dict):
        thresholds = {name: value for name, value in (message.get("thresholds") or {}).items() if value is not None}
        wrong = out_of_range(thresholds)
        if message.get("language_hints") and not self.asked["multi"]:
            wrong = "language_hints are only for flux-general-multi."
        if wrong:
            failure = {"type": "ConfigureFailure", "request_id": self.c.id, "code": "INVALID_CONFIGURATION", "description": wrong}
            await self.send(failure, "ConfigureFailure")
            return
        self.asked["thresholds"] |= {name: float(value) for name, value in thresholds.items()}
        for field, name in (("keyterms", "keyterms"), ("language_hints", "hints")):
            if message.get(field) is not None:
                self.asked[name] = message[field]
        self.configure()
        success = {
            "type": "ConfigureSuccess",
            "request_id": self.c.id,
            "thresholds": self.asked["thresholds"],
            "keyterms": self.asked["keyterms"],
        }
        if self.asked["multi"]:
            success["language_hints"] = self.asked["hints"]
        await self.send(success, "ConfigureSuccess")

    async def tell(self, heard: Heard, trigger: str | None = None):
        event = EVENTS.get(heard.kind)
        if event == "StartOfTurn":
            self.in_turn = self.recogniser.has_text
        if event is None or (heard.kind != "quiet" and not self.in_turn and not heard.again):
            return
        confidence = {
            "EagerEndOfTurn": self.asked["thresholds"].get("eager_eot_threshold", 0.5),
            "EndOfTurn": self.asked["thresholds"]["eot_threshold"],
        }
        sure = self.c.script.hears.get("confidence", 0.98)
        if heard.again:
            self.turn -= 1
        message = {
            "type": "TurnInfo",
            "request_id": self.c.id,
            "event": event,
            "turn_index": self.turn,
            "audio_window_start": self.window_start,
            "audio_window_end": heard.end,
            "transcript": heard.text,
            "words": [{"word": word.text, "confidence": sure, "start": word.start, "end": word.end} for word in heard.words],
            "end_of_turn_confidence": confidence.get(event, 0.05),
        }
        if event == "EndOfTurn":
            message["trigger"] = trigger or ("timeout" if self.timeout_ends else "model")
            self.turn += 1
            self.in_turn = False
            self.window_start = heard.end
        if self.asked["multi"] and heard.words:
            message["languages"] = ["en"]
            if self.asked["hints"]:
                message["languages_hinted"] = self.asked["hints"]
        await self.send(message, event, final=event == "EndOfTurn")

    async def send(self, message: dict, kind: str, final: bool = False):
        message["sequence_id"] = self.sequence
        self.sequence += 1
        await self.c.send(message, kind, final)
