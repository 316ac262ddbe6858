"""Where the server under test comes from, and a room of its own for each test.

`LIVEKIT_URL` names a server that already runs (any LiveKit-compatible one: that is how these tests are themselves
checked). Without it the room server of the `voicebot` binary is started on a free port for the whole run.
`VOICEBOT_BIN` names that binary; it is also what the tests of whole calls start as the worker.

A server that already runs cannot be told later where its webhooks go, so `LIVEKIT_WEBHOOKS_AT` (`HOST:PORT`) says where they
are expected. Recordings and telephone calls need services beside the real server; `LIVEKIT_HAS=redis` says that it has Redis,
`LIVEKIT_HAS=redis,egress` that it records too. What the server does not have is left out.
"""

import asyncio
import os
import socket
import threading
import time
import uuid
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import pytest_asyncio
from livekit import api

from client import Client
from process import Process, voicebot_binary


@dataclass(frozen=True)
class Server:
    url: str
    key: str
    secret: str
    # Where the server sends its webhooks: host and port. `None` if that is not known.
    webhooks_at: tuple[str, int] | None = None
    # What stands beside the server.
    has: frozenset[str] = frozenset()

    @property
    def http(self) -> str:
        return self.url.replace("ws", "http", 1)

    def env(self) -> dict[str, str]:
        return {"LIVEKIT_URL": self.url, "LIVEKIT_API_KEY": self.key, "LIVEKIT_API_SECRET": self.secret}


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    key = os.environ.get("LIVEKIT_API_KEY", "devkey")
    secret = os.environ.get("LIVEKIT_API_SECRET", "secret")
    if url := os.environ.get("LIVEKIT_URL"):
        host, _, port = os.environ.get("LIVEKIT_WEBHOOKS_AT", "").rpartition(":")
        has = frozenset(os.environ.get("LIVEKIT_HAS", "").split(","))
        yield Server(url, key, secret, (host, int(port)) if port else None, has)
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        webhooks_at = probe.getsockname()
    environment = {"LIVEKIT_API_KEY": key, "LIVEKIT_API_SECRET": secret}
    log = tmp_path_factory.mktemp("roomserver") / "roomserver.log"
    command = [voicebot_binary(), "roomserver", "--bind", "127.0.0.1:0", "--recordings", str(log.parent)]
    command += ["--webhook", f"http://127.0.0.1:{webhooks_at[1]}/hook"]
    with Process(command, log, environment) as process:
        ready = process.first_json_line()
        yield Server(ready["url"], key, secret, webhooks_at, frozenset(["redis", "egress", "sip"]))


@pytest.fixture
def needs(server):
    def needs(service: str):
        if service not in server.has:
            pytest.skip(f"this server has no {service} beside it")

    return needs


class WebhookListener:
    """Takes the server's webhooks for the whole run and hands them to whoever wants them. Nobody else takes those of other tests, and while they are
    tried again they fill the server's queue, until it drops what comes next."""

    def __init__(self, address: tuple[str, int]):
        # Each is called with the body, the signature and the content type, in another thread.
        takers = self.takers = []

        class Take(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                for taker in list(takers):
                    taker(body.decode(), self.headers["Authorization"], self.headers["Content-Type"])
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_):
                pass

        self._server = ThreadingHTTPServer(address, Take)
        self._server.daemon_threads = True

    def __enter__(self):
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()


class Webhooks:
    """The webhooks of one room."""

    def __init__(self, server, listener: WebhookListener, room_name: str):
        self.server, self.room_name = server, room_name
        self.events: list = []
        self.content_types: set[str] = set()
        self.wrongly_signed: list[str] = []
        self._listener = listener
        self._changed = asyncio.Event()

    async def __aenter__(self):
        loop = asyncio.get_running_loop()
        self._taker = lambda *webhook: loop.call_soon_threadsafe(self._take, *webhook)
        self._listener.takers.append(self._taker)
        return self

    async def __aexit__(self, *_):
        self._listener.takers.remove(self._taker)

    def _take(self, body: str, signature: str, content_type: str):
        receiver = api.WebhookReceiver(api.TokenVerifier(self.server.key, self.server.secret))
        try:
            event = receiver.receive(body, signature)
        except Exception as error:
            self.wrongly_signed.append(f"{error}: {body[:200]}")
            self._changed.set()
            return
        room = event.room.name or event.egress_info.room_name
        if room == self.room_name:
            self.events.append(event)
            self.content_types.add(content_type)
            self._changed.set()

    def names(self) -> list[str]:
        return [event.event for event in self.events]

    async def event(self, name: str, deadline_s: float = 30):
        end = time.monotonic() + deadline_s
        while True:
            assert not self.wrongly_signed, self.wrongly_signed
            for event in self.events:
                if event.event == name:
                    return event
            left = end - time.monotonic()
            assert left > 0, f"no webhook {name} in {deadline_s} s; there were {self.names()}"
            self._changed.clear()
            try:
                await asyncio.wait_for(self._changed.wait(), left)
            except asyncio.TimeoutError:
                pass


@pytest.fixture(scope="session", autouse=True)
def webhook_listener(server):
    if server.webhooks_at is None:
        yield None
        return
    with WebhookListener(server.webhooks_at) as listener:
        yield listener


@pytest_asyncio.fixture
async def webhooks(server, webhook_listener, room_name):
    if webhook_listener is None:
        pytest.skip("LIVEKIT_WEBHOOKS_AT does not say where this server's webhooks go")
    async with Webhooks(server, webhook_listener, room_name) as webhooks:
        yield webhooks


@pytest_asyncio.fixture
async def lk(server):
    async with api.LiveKitAPI(server.http, server.key, server.secret) as lk:
        yield lk


@pytest.fixture
def room_name():
    return f"interop-{uuid.uuid4().hex[:12]}"


@pytest_asyncio.fixture
async def join(server, room_name):
    """`await join("alice")` enters this test's room; everyone who entered is seen off at the end."""
    clients: list[Client] = []

    async def enter(identity: str, **options) -> Client:
        client = Client(server, options.pop("room", room_name), identity)
        clients.append(client)
        await client.connect(**options)
        return client

    yield enter
    for client in clients:
        await client.close()
