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
import time
import uuid
from dataclasses import dataclass

import pytest
import pytest_asyncio
from aiohttp import web
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


class Webhooks:
    """Listens where the server's webhooks go. Those that nobody listens to are tried again for a while, and come too."""

    def __init__(self, server, room_name: str):
        self.server, self.room_name = server, room_name
        self.events: list = []
        self.content_types: set[str] = set()
        self.wrongly_signed: list[str] = []
        self._changed = asyncio.Event()

    async def __aenter__(self):
        app = web.Application()
        app.add_routes([web.post("/hook", self._take)])
        self._runner = web.AppRunner(app)
        await self._runner.setup()
        await web.TCPSite(self._runner, *self.server.webhooks_at).start()
        return self

    async def __aexit__(self, *_):
        await self._runner.cleanup()

    async def _take(self, request):
        receiver = api.WebhookReceiver(api.TokenVerifier(self.server.key, self.server.secret))
        body = await request.text()
        try:
            event = receiver.receive(body, request.headers["Authorization"])
        except Exception as error:
            self.wrongly_signed.append(f"{error}: {body[:200]}")
            return web.Response(status=401)
        room = event.room.name or event.egress_info.room_name
        if room == self.room_name:
            self.events.append(event)
            self.content_types.add(request.content_type)
            self._changed.set()
        return web.Response()

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


@pytest_asyncio.fixture
async def webhooks(server, room_name):
    if server.webhooks_at is None:
        pytest.skip("LIVEKIT_WEBHOOKS_AT does not say where this server's webhooks go")
    async with Webhooks(server, room_name) as webhooks:
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
