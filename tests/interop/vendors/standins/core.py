"""What all stand-ins share: the script and its faults, what was seen, a WebSocket and a stream of server-sent events.

`standin.py` describes the script. A vendor's module says what it refuses before the connection is open, and speaks its
format once it is; faults come between the two and the wire, here.
"""

import asyncio
import base64
import json
import re
import uuid
from dataclasses import replace

from aiohttp import WSMsgType, web

from .sound import Recogniser, Memory

# What is kept of one script's connections, so that a long run does not fill memory.
MAX_CONNECTIONS = 2000
MAX_ENTRIES = 5000
# How long a connection may stay half-open.
MAX_HALF_OPEN_S = 600

PARTS = {"key", "hears", "says", "replies", "session", "faults"}
REPLY = {"text", "tools", "finish", "error", "first_ms", "piece_ms"}
HEARS = {"utterances", "repeat", "counter", "word_ms", "interim_ms", "silence_ms", "confidence", "eager_ms", "events"}
SAYS = {"ms_per_character", "chunk_ms", "first_ms", "pace"}
FAULTS = {
    "status": {"status", "retry_after"},
    "no_answer": set(),
    "stall": {"at"},
    "half_open": {"at"},
    "close": {"at", "code", "reason"},
    "garbage": {"at", "frame"},
    "double_finals": set(),
    "empty_finals": set(),
    "wrong_rate": {"rate"},
    "drip": {"at", "ms"},
}
PLACES = {"sound_ms", "audio_ms", "sent", "received", "finals"}


class ScriptError(Exception):
    """A sentence about what is wrong with a script."""


class Refused(Exception):
    """The vendor refuses before the connection is open. Without a body it is the vendor's own for this status."""

    def __init__(self, status: int, body: dict | str | None = None, headers: dict | None = None):
        super().__init__(status)
        self.status, self.body, self.headers = status, body, headers or {}


class Ended(Exception):
    """The connection is over."""


class Vendor:
    """One service: its scripts and what it saw."""

    def __init__(self, name: str):
        self.name = name
        # From a status to the body of the vendor's refusal; the vendor's module sets it.
        self.error_body = lambda status: {"error": {"status": status}}
        self._scripts: dict[str | None, Script] = {None: Script({})}

    def set_script(self, script: dict, key: str | None):
        new = Script(script)
        if old := self._scripts.get(key):
            old.replaced.set()
        self._scripts[key] = new

    def seen(self, key: str | None) -> dict:
        # Who has set no script sees what the common one has seen of this key.
        script = self.script_for(key)
        mine = [one for one in script.exchanges if key is None or one.key == key]
        return {"connections": [one.seen for one in mine], "dropped": script.dropped}

    def script_for(self, key: str | None) -> "Script":
        return self._scripts.get(key) or self._scripts[None]

    def socket(self, check, session):
        """A WebSocket. `check(connection)` raises `Refused` before it is open; `session(connection)` speaks the format."""

        async def handle(request: web.Request):
            connection = Connection(self, request)
            if connection.has_fault("no_answer"):
                return await connection.never_answer()
            try:
                connection.refuse_if_told()
                connection.checked = check(connection)
            except Refused as refused:
                return connection.refusal(refused)
            return await connection.run(session)

        return handle

    def stream(self, check, answer):
        """A request that is answered with server-sent events. `await check(stream)` is as in `socket`."""

        async def handle(request: web.Request):
            stream = Stream(self, request)
            if stream.has_fault("no_answer"):
                return await stream.never_answer()
            try:
                stream.refuse_if_told()
                stream.checked = await check(stream)
            except Refused as refused:
                return stream.refusal(refused)
            return await stream.run(answer)

        return handle


class Script:
    def __init__(self, script: dict):
        if not isinstance(script, dict):
            raise ScriptError("a script is a JSON object")
        known(script, PARTS, "a script")
        known(script.get("hears", {}), HEARS, "hears")
        known(script.get("says", {}), SAYS, "says")
        for reply in script.get("replies", []):
            known(reply, REPLY, "a reply")
        for fault in script.get("faults", []):
            if fault is None:
                continue
            if fault.get("kind") not in FAULTS:
                raise ScriptError(f"there is no fault {fault.get('kind')}; there are {', '.join(FAULTS)}")
            known(fault, FAULTS[fault["kind"]] | {"kind", "always"}, f"the fault {fault['kind']}")
            known(fault.get("at", {}), PLACES, "the place of a fault")
        self.key = script.get("key")
        self.hears = script.get("hears", {})
        self.says = script.get("says", {})
        self.session = script.get("session", {})
        self.replies = script.get("replies", [])
        self.faults = script.get("faults", [])
        self.memory = Memory()
        self.exchanges: list[Exchange] = []
        self.dropped = 0
        self.opened = 0
        self.answered = 0
        # Handles of sessions that may go on over another connection.
        self.handles: set[str] = set()
        self.replaced = asyncio.Event()

    def next_fault(self) -> dict | None:
        index = self.opened
        self.opened += 1
        if index < len(self.faults):
            return self.faults[index]
        last = self.faults[-1] if self.faults else None
        return last if last and last.get("always") else None

    def next_reply(self) -> dict:
        if not self.replies:
            return {"text": "Yes."}
        reply = self.replies[min(self.answered, len(self.replies) - 1)]
        self.answered += 1
        return reply


def known(given: dict, names: set, where: str):
    if unknown := set(given) - names:
        raise ScriptError(f"{where} has no {', '.join(sorted(unknown))}; it has {', '.join(sorted(names))}")


# Where vendors want their keys: header or query, and what stands before the key.
KEYS = [
    ("authorization", ("Token ", "Bearer ", "token ", "bearer ")),
    ("xi-api-key", ()),
    ("x-api-key", ()),
    ("x-goog-api-key", ()),
    ("api-subscription-key", ()),
]
KEYS_IN_QUERY = ("api_key", "key", "token", "access_token")


def key_of(request: web.Request) -> str:
    """The client's key, empty if there is none."""
    for header, schemes in KEYS:
        if value := request.headers.get(header):
            scheme = next((scheme for scheme in schemes if value.startswith(scheme)), "")
            return value[len(scheme) :]
    return next((request.query[name] for name in KEYS_IN_QUERY if request.query.get(name)), "")


def new_id() -> str:
    return str(uuid.uuid4())


class Exchange:
    """One connection or request: its fault, its counts and what was seen of it."""

    def __init__(self, vendor: Vendor, request: web.Request):
        self.vendor = vendor
        self.request = request
        self.key = key_of(request)
        self.script = vendor.script_for(self.key)
        self.fault = self.script.next_fault()
        self.id = new_id()
        # What the vendor's `check` returned.
        self.checked = None
        # Headers of the answer, also of a refusal and of the answer to an upgrade.
        self.answer_headers: dict[str, str] = {}
        self.counts = dict.fromkeys(PLACES, 0)
        self.silent = False
        self.recognisers: list[Recogniser] = []
        self.half_open = False
        self.fault_done = False
        headers = {name.lower(): value for name, value in request.headers.items()}
        query = {name: request.query.getall(name) for name in request.query}
        for name, schemes in KEYS:
            if value := headers.get(name):
                headers[name] = next((scheme for scheme in schemes if value.startswith(scheme)), "") + "(key)"
        for name in KEYS_IN_QUERY:
            if name in query:
                query[name] = ["(key)"]
        self.seen = {
            "path": request.path,
            "query": {name: values[0] if len(values) == 1 else values for name, values in query.items()},
            "headers": headers,
            "messages": [],
            "sent": [],
            "sound_bytes": 0,
            "sound_ms": 0,
            "audio_ms": 0,
            "status": None,
            "closed": None,
        }
        if len(self.script.exchanges) < MAX_CONNECTIONS:
            self.script.exchanges.append(self)
        else:
            self.script.dropped += 1

    def has_fault(self, kind: str) -> bool:
        return bool(self.fault) and self.fault["kind"] == kind

    def key_is_right(self) -> bool:
        return self.key == self.script.key if self.script.key else bool(self.key)

    def refuse_if_told(self):
        if self.has_fault("status"):
            after = self.fault.get("retry_after")
            raise Refused(self.fault["status"], None, {} if after is None else {"Retry-After": str(after)})

    def refusal(self, refused: Refused) -> web.Response:
        self.seen["status"] = refused.status
        body = refused.body or self.vendor.error_body(refused.status)
        headers = {**self.answer_headers, **refused.headers}
        if isinstance(body, str):
            return web.Response(status=refused.status, text=body, headers=headers)
        return web.json_response(body, status=refused.status, headers=headers)

    def note(self, entry, where: str = "messages"):
        kept = self.seen[where]
        if where == "messages" and "sound" in entry and kept and "sound" in kept[-1]:
            kept[-1]["sound"] += entry["sound"]
        elif len(kept) < MAX_ENTRIES:
            kept.append(entry)
        else:
            self.script.dropped += 1

    def fault_reached(self) -> bool:
        if not self.fault or self.fault_done:
            return False
        return all(self.counts[name] >= value for name, value in self.fault.get("at", {}).items())

    async def count(self, name: str, by: float = 1):
        self.counts[name] += by
        if name in ("sound_ms", "audio_ms"):
            self.seen[name] = round(self.counts[name])
        await self.checkpoint()

    async def checkpoint(self):
        """Lets the fault come if its place is reached."""
        if not self.fault_reached():
            return
        kind = self.fault["kind"]
        if kind == "stall":
            self.silent = True
            # Nobody gets the words that are final from now on: another connection hears them.
            for recogniser in self.recognisers:
                recogniser.memory = replace(recogniser.memory)
        elif kind == "half_open":
            self.half_open = True
            await self.stay()
        elif kind == "close":
            self.fault_done = True
            await self.end(self.fault.get("code", 1011), self.fault.get("reason", ""))
        elif kind == "garbage":
            self.fault_done = True
            await self.send_garbage(self.fault.get("frame", "text"))

    async def before_send(self) -> bool:
        """Whether the message may go out."""
        await self.checkpoint()
        if self.has_fault("drip") and self.fault_reached():
            await asyncio.sleep(self.fault.get("ms", 1000) / 1000)
        return not self.silent

    async def stay(self):
        """Neither reads nor writes until the script is replaced."""
        try:
            await asyncio.wait_for(self.script.replaced.wait(), MAX_HALF_OPEN_S)
        except TimeoutError:
            pass
        raise Ended

    async def never_answer(self) -> web.Response:
        """Keeps the client waiting for the answer to its request."""
        try:
            await self.stay()
        except Ended:
            self.abort()
        return web.Response(status=503)

    def abort(self):
        """Ends without a word: what clients call 1006."""
        self.seen["closed"] = self.seen["closed"] or {"by": "server", "code": 1006}
        if self.request.transport:
            self.request.transport.abort()


class Connection(Exchange):
    """A WebSocket as the vendor's module uses it."""

    def __init__(self, vendor: Vendor, request: web.Request):
        super().__init__(vendor, request)
        self.ws: web.WebSocketResponse | None = None
        # Whether JSON goes out in binary frames.
        self.json_in_binary = False
        self.tasks: set[asyncio.Task] = set()

    async def run(self, session) -> web.WebSocketResponse:
        self.ws = web.WebSocketResponse(autoping=False, max_msg_size=16 << 20, compress=False)
        self.ws.headers.update(self.answer_headers)
        await self.ws.prepare(self.request)
        self.seen["status"] = 101
        try:
            await self.checkpoint()
            await session(self)
            await self.close(1000)
        except (Ended, ConnectionResetError):
            pass
        finally:
            for task in self.tasks:
                task.cancel()
            await asyncio.gather(*self.tasks, return_exceptions=True)
            if self.half_open:
                self.abort()
        return self.ws

    def start(self, work) -> asyncio.Task:
        """Work beside the reading; it ends with the connection."""

        async def quietly():
            try:
                await work
            except (Ended, ConnectionResetError):
                pass

        task = asyncio.create_task(quietly())
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return task

    async def receive(self, idle_s: float | None = None) -> str | bytes | None:
        """The client's next message; `None` after `idle_s` seconds without any."""
        clock = asyncio.get_running_loop().time
        until = None if idle_s is None else clock() + idle_s
        while True:
            if self.half_open:
                await self.stay()
            try:
                async with asyncio.timeout_at(until):
                    message = await self.ws.receive()
            except TimeoutError:
                return None
            if self.half_open:
                continue
            if message.type == WSMsgType.PING:
                await self.ws.pong(message.data)
            elif message.type in (WSMsgType.TEXT, WSMsgType.BINARY):
                await self.count("received")
                return message.data
            elif message.type != WSMsgType.PONG:
                self.seen["closed"] = self.seen["closed"] or {"by": "client", "code": self.ws.close_code}
                raise Ended

    async def heard(self, data: bytes, milliseconds: float):
        """Takes note of sound that came in."""
        self.note({"sound": len(data)})
        self.seen["sound_bytes"] += len(data)
        await self.count("sound_ms", milliseconds)

    async def send(self, message: dict, kind: str, final: bool = False):
        """Sends JSON. `kind` is what the record of what was sent calls it."""
        if not await self.before_send():
            return
        if self.json_in_binary:
            await self.ws.send_bytes(json.dumps(message).encode())
        else:
            await self.ws.send_str(json.dumps(message))
        await self.sent(kind, final)

    async def send_bytes(self, data: bytes, kind: str = "sound"):
        if not await self.before_send():
            return
        await self.ws.send_bytes(data)
        await self.sent(kind, False)

    async def sent(self, kind: str, final: bool):
        self.note(kind, "sent")
        await self.count("sent")
        if final:
            await self.count("finals")

    async def close(self, code: int, reason: str = ""):
        self.seen["closed"] = self.seen["closed"] or {"by": "server", "code": code}
        await self.ws.close(code=code, message=reason.encode()[:123])

    async def close_without_code(self):
        self.seen["closed"] = self.seen["closed"] or {"by": "server", "code": 1005}
        await self.ws._writer.send_frame(b"", WSMsgType.CLOSE)
        # The client's answer.
        await self.ws.receive(timeout=5)

    async def end(self, code: int, reason: str = ""):
        if code == 1006:
            self.abort()
        else:
            await self.close(code, reason)
        raise Ended

    async def send_garbage(self, frame: str):
        if frame == "binary":
            await self.ws.send_bytes(bytes(range(256)))
        else:
            await self.ws.send_str(
                '{"type": "\\ud800", "channel": 7, "audio": ["' if frame == "text" else '{"type":17,"event":{"type":[]},"data":null}'
            )
        self.note("garbage", "sent")

    def recogniser(self, rate: int, silence_ms: float | None) -> Recogniser:
        hears = self.script.hears
        memory = Memory() if hears.get("counter") == "connection" else self.script.memory
        # A connection that is silent from the start has told nobody anything.
        memory = replace(memory) if self.silent else memory
        recogniser = Recogniser(rate, hears, memory, silence_ms, self.has_fault("double_finals"), self.has_fault("empty_finals"))
        self.recognisers.append(recogniser)
        return recogniser


def words_of(text: str) -> list[str]:
    """The pieces in which a model gives its text: words, each with the space before it."""
    return re.findall(r"\s*\S+\s*$|\s*\S+", text)


class Stream(Exchange):
    """A request and its answer of server-sent events as the vendor's module uses it."""

    async def read(self) -> dict:
        """The request's JSON object."""
        try:
            body = json.loads(await self.request.read())
            if not isinstance(body, dict):
                raise ValueError
        except ValueError:
            raise Refused(400) from None
        self.note(body)
        await self.count("received")
        return body

    async def pieces(self, reply: dict):
        """The pieces of the reply's text, at its pace."""
        await asyncio.sleep(reply.get("first_ms", 0) / 1000)
        for n, piece in enumerate(words_of(reply.get("text", ""))):
            if n:
                await asyncio.sleep(reply.get("piece_ms", 0) / 1000)
            yield piece

    def __init__(self, vendor: Vendor, request: web.Request):
        super().__init__(vendor, request)
        self.response: web.StreamResponse | None = None

    async def run(self, answer) -> web.StreamResponse:
        self.response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8", **self.answer_headers})
        try:
            await self.checkpoint()
            self.seen["status"] = 200
            await self.response.prepare(self.request)
            await answer(self)
            if self.silent:
                await self.stay()
            await self.response.write_eof()
            self.seen["closed"] = {"by": "server", "code": 1000}
        except (Ended, ConnectionResetError):
            # A response that is cut off must not seem complete.
            self.abort()
        return self.response

    async def send(self, message: dict | str, kind: str, event: str | None = None):
        """One event. `kind` is what the record of what was sent calls it."""
        if not await self.before_send():
            return
        data = message if isinstance(message, str) else json.dumps(message)
        await self.response.write(((f"event: {event}\n" if event else "") + f"data: {data}\n\n").encode())
        self.note(kind, "sent")
        await self.count("sent")

    async def end(self, code: int, reason: str = ""):
        raise Ended

    async def send_garbage(self, frame: str):
        await self.response.write(b'event: \xff\xfe\ndata: {"type": [\n\n' if frame != "json" else b'data: {"type":17}\n\n')
        self.note("garbage", "sent")


def sound_of(text: str) -> bytes | None:
    """Sound in base64, or `None` if it is none."""
    try:
        return base64.b64decode(text, validate=True)
    except ValueError:
        return None


async def pieces(connection: Connection, samples, rate: int):
    """The sound of a voice in pieces of the script's length, at its pace: yields samples."""
    says = connection.script.says
    step = max(1, rate * says.get("chunk_ms", 100) // 1000)
    if first := says.get("first_ms"):
        await asyncio.sleep(first / 1000)
    for at in range(0, len(samples), step):
        piece = samples[at : at + step]
        yield piece
        if not connection.silent:
            await connection.count("audio_ms", len(piece) * 1000 / rate)
        if pace := says.get("pace"):
            await asyncio.sleep(len(piece) / rate / pace)
