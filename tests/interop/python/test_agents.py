"""The server's side of agents: workers register, jobs are dispatched and followed, seen through the official protocol types."""

import asyncio
import datetime
import time
import uuid

import aiohttp
import pytest_asyncio
from livekit import api, rtc
from livekit.protocol import agent as agent_protocol
from livekit.protocol import models

DEADLINE_S = 15


class Worker:
    """The least that a server takes for an agent worker: a WebSocket, a registration, an answer to each offer."""

    def __init__(self, server, agent_name: str):
        self.server, self.agent_name = server, agent_name
        self.received: list = []
        self._changed = asyncio.Event()

    async def start(self, load: float = 0.0):
        token = (
            api.AccessToken(self.server.key, self.server.secret)
            .with_ttl(datetime.timedelta(minutes=10))
            .with_grants(api.VideoGrants(agent=True))
            .to_jwt()
        )
        self._http = aiohttp.ClientSession(headers={"Authorization": f"Bearer {token}"})
        self.socket = await self._http.ws_connect(f"{self.server.url}/agent")
        self._task = asyncio.create_task(self._run())
        await self.send(
            register=agent_protocol.RegisterWorkerRequest(
                type=agent_protocol.JT_ROOM,
                agent_name=self.agent_name,
                version="interop",
                ping_interval=30,
                allowed_permissions=models.ParticipantPermission(
                    can_subscribe=True, can_publish=True, can_publish_data=True, can_update_metadata=True, agent=True
                ),
            )
        )
        self.registered = await self.message("register")
        await self.status(load)
        return self

    async def status(self, load: float):
        full = load >= 1
        status = agent_protocol.WS_FULL if full else agent_protocol.WS_AVAILABLE
        await self.send(update_worker=agent_protocol.UpdateWorkerStatus(status=status, load=load, job_count=0))

    async def send(self, **message):
        await self.socket.send_bytes(agent_protocol.WorkerMessage(**message).SerializeToString())

    async def _run(self):
        async for frame in self.socket:
            if frame.type == aiohttp.WSMsgType.BINARY:
                self.received.append(agent_protocol.ServerMessage.FromString(frame.data))
                self._changed.set()

    async def message(self, kind: str, deadline_s: float = DEADLINE_S):
        end = time.monotonic() + deadline_s
        while True:
            for message in self.received:
                if message.WhichOneof("message") == kind:
                    self.received.remove(message)
                    return getattr(message, kind)
            left = end - time.monotonic()
            kinds = [message.WhichOneof("message") for message in self.received]
            assert left > 0, f"the worker waited {deadline_s} s for {kind}; it has {kinds}"
            self._changed.clear()
            try:
                await asyncio.wait_for(self._changed.wait(), left)
            except asyncio.TimeoutError:
                pass

    async def accept(self, **answer):
        offer = await self.message("availability")
        await self.send(
            availability=agent_protocol.AvailabilityResponse(
                job_id=offer.job.id,
                available=True,
                participant_identity=f"agent-{offer.job.id}",
                participant_name="Robot",
                **answer,
            )
        )
        return offer, await self.message("assignment")

    async def job_status(self, job_id: str, status, error: str = ""):
        await self.send(update_job=agent_protocol.UpdateJobStatus(job_id=job_id, status=status, error=error))

    async def close(self):
        self._task.cancel()
        await self.socket.close()
        await self._http.close()


@pytest_asyncio.fixture
async def register(server):
    workers: list[Worker] = []

    async def enter(agent_name: str, **options) -> Worker:
        worker = Worker(server, agent_name)
        workers.append(worker)
        return await worker.start(**options)

    yield enter
    for worker in workers:
        await worker.close()


def new_name() -> str:
    return f"agent-{uuid.uuid4().hex[:8]}"


def dispatch_request(agent_name: str, room_name: str, **more):
    return api.CreateAgentDispatchRequest(agent_name=agent_name, room=room_name, **more)


async def job_is_known(lk, room_name: str, job_id: str):
    """A room learns of its jobs a moment after the agent does, and follows only those it knows."""
    end = time.monotonic() + DEADLINE_S
    while True:
        listed = [job.id for dispatch in await lk.agent_dispatch.list_dispatch(room_name) for job in dispatch.state.jobs]
        if job_id in listed:
            return
        assert time.monotonic() < end, f"the room's dispatches list {listed} and not {job_id}"
        await asyncio.sleep(0.1)


async def test_a_worker_is_registered_and_told_of_the_server(register):
    worker = await register(new_name())
    assert worker.registered.worker_id.startswith("AW_")
    assert worker.registered.server_info.protocol >= 16


async def test_a_ping_is_answered(register):
    worker = await register(new_name())
    await worker.send(ping=agent_protocol.WorkerPing(timestamp=12345))
    assert (await worker.message("pong")).last_timestamp == 12345


async def test_an_explicit_dispatch_brings_the_agent_into_the_room(register, join, lk, room_name):
    name = new_name()
    worker = await register(name)
    caller = await join("caller")
    dispatch = await lk.agent_dispatch.create_dispatch(dispatch_request(name, room_name, metadata='{"lead": 7}'))
    assert dispatch.id.startswith("AD_")
    offer, assignment = await worker.accept(participant_attributes={"tier": "gold"})
    assert offer.job.id.startswith("AJ_")
    assert (offer.job.dispatch_id, offer.job.agent_name) == (dispatch.id, name)
    assert (offer.job.room.name, offer.job.metadata) == (room_name, '{"lead": 7}')
    assert assignment.job.id == offer.job.id

    agent = rtc.Room()
    await agent.connect(assignment.url or worker.server.url, assignment.token)
    try:
        await worker.job_status(offer.job.id, agent_protocol.JS_RUNNING)
        seen = await caller.sees(f"agent-{offer.job.id}")
        assert seen.kind == rtc.ParticipantKind.PARTICIPANT_KIND_AGENT
        assert (seen.name, seen.attributes.get("tier")) == ("Robot", "gold")
        assert seen.attributes.get("lk.agent.name", name) == name
        assert "caller" in agent.remote_participants
        await job_is_known(lk, room_name, offer.job.id)
        await worker.job_status(offer.job.id, agent_protocol.JS_SUCCESS)
    finally:
        await agent.disconnect()


async def test_leaving_without_a_final_status_ends_the_job_as_failed(register, join, lk, room_name):
    name = new_name()
    worker = await register(name)
    await join("caller")
    await lk.agent_dispatch.create_dispatch(dispatch_request(name, room_name))
    offer, assignment = await worker.accept()
    agent = rtc.Room()
    await agent.connect(assignment.url or worker.server.url, assignment.token)
    await worker.job_status(offer.job.id, agent_protocol.JS_RUNNING)
    await job_is_known(lk, room_name, offer.job.id)
    await agent.disconnect()
    assert (await worker.message("termination")).job_id == offer.job.id


async def test_a_room_made_with_agents_dispatches_when_it_is_made(register, lk, room_name):
    name = new_name()
    worker = await register(name)
    agents = [api.RoomAgentDispatch(agent_name=name, metadata="from the room")]
    await lk.room.create_room(api.CreateRoomRequest(name=room_name, agents=agents))
    offer = await worker.message("availability")
    assert (offer.job.room.name, offer.job.metadata) == (room_name, "from the room")


async def test_a_token_with_room_configuration_dispatches(server, register, room_name):
    name = new_name()
    worker = await register(name)
    config = api.RoomConfiguration(agents=[api.RoomAgentDispatch(agent_name=name, metadata="from the token")])
    token = (
        api.AccessToken(server.key, server.secret)
        .with_identity("caller")
        .with_grants(api.VideoGrants(room_join=True, room=room_name))
        .with_room_config(config)
        .to_jwt()
    )
    caller = rtc.Room()
    await caller.connect(server.url, token)
    try:
        offer = await worker.message("availability")
        assert (offer.job.room.name, offer.job.metadata) == (room_name, "from the token")
    finally:
        await caller.disconnect()


async def test_a_named_agent_is_not_dispatched_unasked(register, join):
    worker = await register(new_name())
    await join("caller")
    await worker.send(ping=agent_protocol.WorkerPing(timestamp=1))
    await worker.message("pong")
    assert worker.received == []


async def test_an_overloaded_worker_is_offered_nothing(register, join, lk, room_name):
    busy = await register(new_name(), load=0.9)
    idle = await register(new_name(), load=0.1)
    await join("caller")
    for worker in (busy, idle):
        # The server must have read the load before it chooses.
        await worker.send(ping=agent_protocol.WorkerPing(timestamp=1))
        await worker.message("pong")
        await lk.agent_dispatch.create_dispatch(dispatch_request(worker.agent_name, room_name))
    await idle.message("availability")
    assert busy.received == []


async def test_a_deleted_dispatch_terminates_its_job(register, join, lk, room_name):
    name = new_name()
    worker = await register(name)
    await join("caller")
    dispatch = await lk.agent_dispatch.create_dispatch(dispatch_request(name, room_name))
    offer, assignment = await worker.accept()
    agent = rtc.Room()
    await agent.connect(assignment.url or worker.server.url, assignment.token)
    try:
        await worker.job_status(offer.job.id, agent_protocol.JS_RUNNING)
        await lk.agent_dispatch.delete_dispatch(dispatch.id, room_name)
        assert (await worker.message("termination")).job_id == offer.job.id
    finally:
        await agent.disconnect()


async def test_a_worker_with_a_wrong_key_is_refused(server):
    token = api.AccessToken(server.key, "not-the-secret-not-the-secret-not").with_grants(api.VideoGrants(agent=True))
    async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {token.to_jwt()}"}) as http:
        try:
            async with http.ws_connect(f"{server.url}/agent"):
                raise AssertionError("the server let a worker with a wrong key in")
        except aiohttp.WSServerHandshakeError as refused:
            assert refused.status == 401
