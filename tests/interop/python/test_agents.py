"""The server's side of agents: workers register, jobs are dispatched and followed, seen through the official protocol types."""

import asyncio
import datetime
import time
import uuid

import aiohttp
import pytest
import pytest_asyncio
from google.protobuf import json_format
from livekit import api, rtc
from livekit.protocol import agent as agent_protocol
from livekit.protocol import models

from signalling import Signalling, token

pytestmark = pytest.mark.conformance

DEADLINE_S = 15


class Worker:
    """The least that a server takes for an agent worker: a WebSocket, a registration, an answer to each offer."""

    def __init__(self, server, agent_name: str, speaks_json: bool = False):
        self.server, self.agent_name, self.speaks_json = server, agent_name, speaks_json
        self.received: list = []
        self.closed = False
        self._changed = asyncio.Event()

    async def open(self):
        jwt = (
            api.AccessToken(self.server.key, self.server.secret)
            .with_ttl(datetime.timedelta(minutes=10))
            .with_grants(api.VideoGrants(agent=True))
            .to_jwt()
        )
        self._http = aiohttp.ClientSession(headers={"Authorization": f"Bearer {jwt}"})
        self.socket = await self._http.ws_connect(f"{self.server.url}/agent")
        self._task = asyncio.create_task(self._run())
        return self

    async def start(self, load: float = 0.0, job_type=agent_protocol.JT_ROOM):
        await self.open()
        await self.send(
            register=agent_protocol.RegisterWorkerRequest(
                type=job_type,
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

    async def send(self, **fields):
        message = agent_protocol.WorkerMessage(**fields)
        if self.speaks_json:
            await self.socket.send_str(json_format.MessageToJson(message))
        else:
            await self.socket.send_bytes(message.SerializeToString())

    async def _run(self):
        async for frame in self.socket:
            # The server answers in the encoding of the worker.
            if frame.type == aiohttp.WSMsgType.TEXT and self.speaks_json:
                self.received.append(json_format.Parse(frame.data, agent_protocol.ServerMessage(), ignore_unknown_fields=True))
            elif frame.type == aiohttp.WSMsgType.BINARY and not self.speaks_json:
                self.received.append(agent_protocol.ServerMessage.FromString(frame.data))
            self._changed.set()
        self.closed = True
        self._changed.set()

    async def is_closed(self, deadline_s: float = DEADLINE_S):
        async def wait():
            while not self.closed:
                self._changed.clear()
                await self._changed.wait()

        await asyncio.wait_for(wait(), deadline_s)

    async def settle(self):
        """After this, the server has read all that the worker said."""
        await self.send(ping=agent_protocol.WorkerPing(timestamp=1))
        await self.message("pong")

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

    async def answer(self, **answer):
        offer = await self.message("availability")
        await self.send(availability=agent_protocol.AvailabilityResponse(job_id=offer.job.id, **answer))
        return offer

    async def accept(self, **answer):
        offer = await self.message("availability")
        fields = {"participant_identity": f"agent-{offer.job.id}", "participant_name": "Robot", **answer}
        await self.send(
            availability=agent_protocol.AvailabilityResponse(job_id=offer.job.id, available=True, **fields)
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

    async def enter(agent_name: str, speaks_json: bool = False, **options) -> Worker:
        worker = Worker(server, agent_name, speaks_json)
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
        assert seen.attributes.get("lk.agent_name") == name
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
    await worker.settle()
    assert worker.received == []


async def test_an_overloaded_worker_is_offered_nothing(register, join, lk, room_name):
    busy = await register(new_name(), load=0.9)
    idle = await register(new_name(), load=0.1)
    await join("caller")
    for worker in (busy, idle):
        # The server must have read the load before it chooses.
        await worker.settle()
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


async def test_a_token_without_the_agent_grant_is_refused_and_so_is_a_plain_request(server, room_name):
    jwt = token(server, "alice", room_name).to_jwt()
    async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {jwt}"}) as http:
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await http.ws_connect(f"{server.url}/agent")
        assert refused.value.status == 401
        async with http.get(f"{server.http}/agent") as response:
            assert response.status == 404


async def test_a_worker_that_does_not_register_first_is_cut_off(server):
    worker = await Worker(server, new_name()).open()
    await worker.settle()
    await worker.status(0.1)
    await worker.is_closed()
    await worker.close()


async def test_a_worker_that_registers_twice_is_cut_off(register):
    worker = await register(new_name())
    await worker.send(register=agent_protocol.RegisterWorkerRequest(type=agent_protocol.JT_ROOM))
    await worker.is_closed()


async def test_a_worker_may_speak_json(register, lk, room_name):
    name = new_name()
    worker = await register(name, speaks_json=True)
    await worker.settle()
    await lk.agent_dispatch.create_dispatch(dispatch_request(name, room_name, metadata="m"))
    offer, assignment = await worker.accept()
    assert (offer.job.metadata, assignment.job.id) == ("m", offer.job.id)


async def test_a_full_worker_is_offered_nothing(register, lk, room_name):
    full, free = await register(new_name(), load=1.0), await register(new_name())
    for worker in (full, free):
        await worker.settle()
        await lk.agent_dispatch.create_dispatch(dispatch_request(worker.agent_name, room_name))
    await free.message("availability")
    assert full.received == []


async def test_a_declined_job_is_offered_to_the_next_worker_and_then_to_nobody(register, lk, room_name):
    name = new_name()
    workers = [await register(name), await register(name)]
    for worker in workers:
        await worker.settle()
    await lk.agent_dispatch.create_dispatch(dispatch_request(name, room_name))
    offers = await asyncio.gather(*(worker.answer(available=False) for worker in workers))
    assert offers[0].job.id == offers[1].job.id
    for worker in workers:
        await worker.settle()
        assert worker.received == []


async def test_a_job_that_a_worker_takes_for_done_goes_to_nobody(register, lk, room_name):
    name = new_name()
    workers = [await register(name), await register(name)]
    for worker in workers:
        await worker.settle()
    await lk.agent_dispatch.create_dispatch(dispatch_request(name, room_name))
    answering = [asyncio.create_task(worker.answer(terminate=True)) for worker in workers]
    done, rest = await asyncio.wait(answering, return_when=asyncio.FIRST_COMPLETED)
    (offer,) = [task.result() for task in done]
    await job_is_known(lk, room_name, offer.job.id)
    for worker in workers:
        await worker.settle()
        assert worker.received == []
    assert not any(task.done() for task in rest)
    for task in rest:
        task.cancel()


async def test_an_agents_token_says_what_its_worker_answered(register, server, lk, room_name):
    name = new_name()
    worker = await register(name)
    await lk.agent_dispatch.create_dispatch(dispatch_request(name, room_name, attributes={"lead": "7"}))
    offer, assignment = await worker.accept(participant_identity="robot", participant_metadata="m")
    assert dict(offer.job.attributes) == {"lead": "7"}
    claims = api.TokenVerifier(server.key, server.secret).verify(assignment.token)
    assert (claims.identity, claims.name, claims.kind, claims.metadata) == ("robot", "Robot", "agent", "m")
    assert (claims.video.room, claims.video.room_join, claims.video.agent) == (room_name, True, True)
    assert not claims.video.room_admin and claims.video.can_update_own_metadata
    assert claims.attributes.get("lk.agent_name") == name
    assert assignment.job.state.status == agent_protocol.JS_RUNNING


async def test_a_worker_has_to_name_its_agent(register, server, lk, room_name):
    name = new_name()
    worker = await register(name)
    await lk.agent_dispatch.create_dispatch(dispatch_request(name, room_name))
    _, assignment = await worker.accept(participant_identity="")
    # The server makes up no name, and nobody joins without one.
    with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
        await Signalling(server, assignment.token).open()
    assert refused.value.status == 400


async def test_jobs_for_participants_come_with_each_of_them(register, server, lk, room_name):
    name = new_name()
    worker = await register(name, job_type=agent_protocol.JT_PARTICIPANT)
    await worker.settle()
    await lk.agent_dispatch.create_dispatch(dispatch_request(name, room_name))
    alice = await Signalling(server, token(server, "alice", room_name).to_jwt()).join()
    offer = await worker.answer(available=False)
    assert (offer.job.type, offer.job.participant.identity) == (agent_protocol.JT_PARTICIPANT, "alice")
    agent = await Signalling(server, token(server, "robot", room_name).with_kind("agent").to_jwt()).join()
    bob = await Signalling(server, token(server, "bob", room_name).to_jwt()).join()
    # Agents bring no agents.
    assert (await worker.answer(available=False)).job.participant.identity == "bob"
    for client in (alice, agent, bob):
        await client.close()


async def test_jobs_for_publishers_come_with_the_first_track(register, join, lk, room_name):
    name = new_name()
    worker = await register(name, job_type=agent_protocol.JT_PUBLISHER)
    await worker.settle()
    await lk.agent_dispatch.create_dispatch(dispatch_request(name, room_name))
    alice = await join("alice")
    await worker.settle()
    assert worker.received == []
    await alice.speak(440)
    offer = await worker.answer(available=False)
    assert (offer.job.type, offer.job.participant.identity) == (agent_protocol.JT_PUBLISHER, "alice")


async def test_a_nameless_worker_is_dispatched_to_every_room_that_names_no_agents(register, join, room_name):
    worker = await register("")
    await worker.settle()
    await join("caller")
    # Other tests of the same server make rooms too.
    while (offer := await worker.answer(available=False)).job.room.name != room_name:
        pass
    assert (offer.job.agent_name, offer.job.type) == ("", agent_protocol.JT_ROOM)


async def test_a_dispatch_to_a_room_makes_the_room(lk, room_name):
    made = await lk.agent_dispatch.create_dispatch(dispatch_request(new_name(), room_name, metadata="m"))
    assert [room.name for room in (await lk.room.list_rooms(api.ListRoomsRequest(names=[room_name]))).rooms] == [room_name]
    # A room that names no agents has a dispatch for those without a name, too.
    nameless, listed = sorted(await lk.agent_dispatch.list_dispatch(room_name), key=lambda one: one.agent_name)
    assert nameless.agent_name == ""
    assert (listed.id, listed.metadata, listed.room) == (made.id, "m", room_name)
    assert made.state.created_at > 0


async def refusal(call) -> tuple[str, int]:
    with pytest.raises(api.TwirpError) as refused:
        await call
    return refused.value.code, refused.value.status


async def test_dispatches_that_are_not_there(lk, room_name):
    await lk.agent_dispatch.create_dispatch(dispatch_request(new_name(), room_name))
    deleted = await refusal(lk.agent_dispatch.delete_dispatch("AD_missing", room_name))
    assert deleted == ("not_found", 404)
    # Nobody holds a room that does not exist, so nobody answers.
    assert await refusal(lk.agent_dispatch.list_dispatch(room_name + "-missing")) == ("unavailable", 503)


async def test_a_dispatch_with_too_much_metadata_is_refused(lk, room_name):
    request = dispatch_request(new_name(), room_name, metadata="m" * (512 * 1024 + 1))
    assert await refusal(lk.agent_dispatch.create_dispatch(request)) == ("invalid_argument", 400)


async def test_dispatches_need_the_administration_of_the_room(server, room_name):
    jwt = token(server, "alice", room_name).to_jwt()
    async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {jwt}"}) as http:
        for method in ("CreateDispatch", "ListDispatch", "DeleteDispatch"):
            url = f"{server.http}/twirp/livekit.AgentDispatchService/{method}"
            async with http.post(url, json={"room": room_name}) as response:
                assert response.status == 401


async def test_a_room_that_ends_terminates_its_jobs(register, lk, room_name):
    name = new_name()
    worker = await register(name)
    await lk.agent_dispatch.create_dispatch(dispatch_request(name, room_name))
    offer, assignment = await worker.accept()
    agent = rtc.Room()
    await agent.connect(assignment.url or worker.server.url, assignment.token)
    await job_is_known(lk, room_name, offer.job.id)
    await lk.room.delete_room(api.DeleteRoomRequest(room=room_name))
    assert (await worker.message("termination")).job_id == offer.job.id
    await agent.disconnect()


async def test_an_agent_that_stays_after_its_dispatch_was_deleted_is_removed(register, join, lk, room_name):
    name = new_name()
    worker = await register(name)
    caller = await join("caller")
    dispatch = await lk.agent_dispatch.create_dispatch(dispatch_request(name, room_name))
    offer, assignment = await worker.accept()
    agent = rtc.Room()
    await agent.connect(assignment.url or worker.server.url, assignment.token)
    await caller.sees(f"agent-{offer.job.id}")
    await job_is_known(lk, room_name, offer.job.id)
    await lk.agent_dispatch.delete_dispatch(dispatch.id, room_name)
    await worker.message("termination")
    await caller.event("participant_disconnected", lambda gone: gone.identity == f"agent-{offer.job.id}")
    assert dispatch.id not in [one.id for one in await lk.agent_dispatch.list_dispatch(room_name)]
    await agent.disconnect()


async def test_an_agent_stays_when_its_worker_goes(register, join, lk, room_name):
    name = new_name()
    worker = await register(name)
    caller = await join("caller")
    await lk.agent_dispatch.create_dispatch(dispatch_request(name, room_name))
    offer, assignment = await worker.accept()
    agent = rtc.Room()
    await agent.connect(assignment.url or worker.server.url, assignment.token)
    try:
        identity = f"agent-{offer.job.id}"
        await caller.sees(identity)
        await worker.close()
        # A dispatch later, the server has long seen that the worker is gone.
        other = await register(new_name())
        await lk.agent_dispatch.create_dispatch(dispatch_request(other.agent_name, room_name))
        await other.message("availability")
        assert identity in caller.room.remote_participants
    finally:
        await agent.disconnect()


async def test_a_worker_may_ask_for_a_job_to_try_out(register, lk, room_name):
    worker = await register(new_name())
    room = await lk.room.create_room(api.CreateRoomRequest(name=room_name))
    await worker.send(simulate_job=agent_protocol.SimulateJobRequest(type=agent_protocol.JT_ROOM, room=room))
    offer, assignment = await worker.accept()
    assert (offer.job.room.name, assignment.job.id) == (room_name, offer.job.id)
