"""Data, attributes, metadata, text and byte streams and RPC between two official clients."""

import asyncio
import json

import pytest
from livekit import rtc

pytestmark = pytest.mark.conformance


@pytest.mark.parametrize("reliable", [True, False], ids=["reliable", "lossy"])
async def test_data_goes_in_both_directions(join, reliable):
    alice, bob = await join("alice"), await join("bob")
    await alice.sees("bob")
    for sender, receiver in ((alice, bob), (bob, alice)):
        body = f"from {sender.identity}".encode()

        async def keep_sending():
            # A lossy packet may be lost while the channel opens; a reliable one is sent once and must come.
            while True:
                await sender.room.local_participant.publish_data(body, reliable=reliable, topic="greeting")
                await asyncio.sleep(3600 if reliable else 0.2)

        sending = asyncio.create_task(keep_sending())
        (packet,) = await receiver.event("data_received", lambda packet: packet.data == body)
        sending.cancel()
        assert packet.topic == "greeting"
        assert packet.participant.identity == sender.identity
        assert packet.kind == (rtc.DataPacketKind.KIND_RELIABLE if reliable else rtc.DataPacketKind.KIND_LOSSY)


async def test_reliable_data_arrives_whole_and_in_order(join):
    alice, bob = await join("alice"), await join("bob")
    await alice.sees("bob")
    bodies = [f"{i}:".encode() + bytes(1000 + i % 7 * 1500) for i in range(200)]
    for body in bodies:
        await alice.room.local_participant.publish_data(body)

    def received():
        return [args[0].data for event, args in bob.events if event == "data_received"]

    await bob.until("200 packets", lambda: len(received()) >= len(bodies))
    assert received() == bodies


async def test_data_for_one_is_not_seen_by_another(join):
    alice, bob, carol = await join("alice"), await join("bob"), await join("carol")
    for identity in ("bob", "carol"):
        await alice.sees(identity)
    await alice.room.local_participant.publish_data(b"for bob", destination_identities=["bob"])
    await alice.room.local_participant.publish_data(b"for all")
    for client in (bob, carol):
        await client.event("data_received", lambda packet: packet.data == b"for all")
    seen = lambda client: [args[0].data for event, args in client.events if event == "data_received"]
    assert seen(bob) == [b"for bob", b"for all"]
    assert seen(carol) == [b"for all"]


async def test_dtmf_reaches_the_other(join):
    alice, bob = await join("alice"), await join("bob")
    digits = []
    bob.room.on("sip_dtmf_received", lambda dtmf: digits.append((dtmf.code, dtmf.digit)))
    await alice.sees("bob")
    await alice.room.local_participant.publish_dtmf(code=5, digit="5")
    await bob.until("the digit", lambda: digits == [(5, "5")])


async def test_attributes_metadata_and_name_reach_those_present_and_those_who_come_later(join):
    alice, bob = await join("alice"), await join("bob")
    me = alice.room.local_participant
    await me.set_attributes({"lk.agent.state": "listening", "gone": "soon"})
    await bob.event(
        "participant_attributes_changed",
        lambda changed, participant: participant.identity == "alice" and changed.get("lk.agent.state") == "listening",
    )
    await me.set_attributes({"gone": ""})
    await me.set_metadata('{"role": "caller"}')
    await me.set_name("Alice A.")
    await bob.event("participant_metadata_changed", lambda participant, old, new: new == '{"role": "caller"}')
    await bob.event("participant_name_changed", lambda participant, old, new: new == "Alice A.")
    carol = await join("carol")
    seen = await carol.sees("alice")
    assert (seen.name, seen.metadata) == ("Alice A.", '{"role": "caller"}')
    assert seen.attributes == {"lk.agent.state": "listening"}


@pytest.mark.parametrize("size", [0, 5, 40_000, 300_000], ids=lambda size: f"{size}-characters")
async def test_a_text_stream_arrives_whole(join, size):
    alice, bob = await join("alice"), await join("bob", topics=("lk.chat",))
    await alice.sees("bob")
    text = ("Grüße, how are you? " * (size // 20 + 1))[:size]
    await alice.room.local_participant.send_text(text, topic="lk.chat", attributes={"lang": "de"})
    identity, info, received = await bob.until("the text", lambda: bob.text_streams and bob.text_streams[0])
    assert (identity, info.topic, info.attributes.get("lang")) == ("alice", "lk.chat", "de")
    assert received == text


async def test_a_text_stream_written_in_pieces_arrives_as_one(join):
    alice, bob = await join("alice"), await join("bob", topics=("lk.transcription",))
    await alice.sees("bob")
    attributes = {"lk.segment_id": "SG_1", "lk.transcription_final": "false"}
    writer = await alice.room.local_participant.stream_text(topic="lk.transcription", attributes=attributes)
    for piece in ("Good ", "morning, ", "what can I do for you?"):
        await writer.write(piece)
    await writer.aclose()
    _, info, received = await bob.until("the text", lambda: bob.text_streams and bob.text_streams[0])
    assert received == "Good morning, what can I do for you?"
    assert info.attributes["lk.segment_id"] == "SG_1"


async def test_a_byte_stream_arrives_whole(join):
    alice, bob = await join("alice"), await join("bob", topics=("files",))
    await alice.sees("bob")
    body = bytes(i * 7 % 256 for i in range(200_000))
    writer = await alice.room.local_participant.stream_bytes(
        name="recording.bin", total_size=len(body), mime_type="application/octet-stream", topic="files"
    )
    await writer.write(body)
    await writer.aclose()
    identity, info, received = await bob.until("the file", lambda: bob.byte_streams and bob.byte_streams[0])
    assert (identity, info.name, info.size) == ("alice", "recording.bin", len(body))
    assert received == body


async def test_rpc_is_answered_and_its_errors_are_told(join):
    alice, bob = await join("alice"), await join("bob")
    await alice.sees("bob")
    await bob.sees("alice")

    async def add(call):
        return json.dumps(sum(json.loads(call.payload)))

    async def refuse(call):
        raise rtc.RpcError(1234, f"not for {call.caller_identity}")

    bob.room.local_participant.register_rpc_method("add", add)
    bob.room.local_participant.register_rpc_method("refuse", refuse)
    call = alice.room.local_participant.perform_rpc
    assert await call(destination_identity="bob", method="add", payload="[1, 2, 39]") == "42"
    with pytest.raises(rtc.RpcError) as refused:
        await call(destination_identity="bob", method="refuse", payload="")
    assert (refused.value.code, refused.value.message) == (1234, "not for alice")
    with pytest.raises(rtc.RpcError) as unknown:
        await call(destination_identity="bob", method="nobody-registered-this", payload="")
    assert unknown.value.code == rtc.RpcError.ErrorCode.UNSUPPORTED_METHOD
