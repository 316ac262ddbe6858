"""Telephone calls by the API. The real server passes them on to the SIP service, which needs Redis and a trunk."""

import asyncio

import aiohttp
import pytest
from livekit import api

from signalling import token

pytestmark = pytest.mark.conformance


async def refusal(call) -> tuple[str, int]:
    with pytest.raises(api.TwirpError) as refused:
        await call
    return refused.value.code, refused.value.status


def call_request(room: str, number: str = "+15550100177", **fields) -> api.CreateSIPParticipantRequest:
    return api.CreateSIPParticipantRequest(
        **{
            "sip_trunk_id": "ST_1",
            "sip_call_to": number,
            "room_name": room,
            "participant_identity": "callee",
            "participant_name": "Ann",
            **fields,
        }
    )


@pytest.mark.parametrize("method", ["CreateSIPParticipant", "TransferSIPParticipant"])
async def test_telephoning_needs_the_grant_for_it(server, room_name, method):
    jwt = token(server, "alice", room_name, room_admin=True).to_jwt()
    body = {"room_name": room_name, "participant_identity": "callee", "sip_call_to": "+1", "transfer_to": "tel:+1"}
    async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {jwt}"}) as http:
        async with http.post(f"{server.http}/twirp/livekit.SIP/{method}", json=body) as response:
            assert response.status == 401
            assert (await response.json())["code"] == "unauthenticated"


@pytest.mark.parametrize(
    "fields",
    [{"sip_trunk_id": ""}, {"sip_call_to": ""}, {"sip_call_to": "ann@example.com"}, {"room_name": ""}],
    ids=["no-trunk", "no-number", "a-uri", "no-room"],
)
async def test_a_call_that_cannot_be_placed_is_refused(needs, lk, room_name, fields):
    needs("redis")
    refused = await refusal(lk.sip.create_sip_participant(call_request(room_name, **fields)))
    assert refused == ("invalid_argument", 400)


async def test_a_transfer_that_cannot_be_made_is_refused(lk, join, room_name):
    await join("alice")
    transfer = lambda **fields: lk.sip.transfer_sip_participant(
        api.TransferSIPParticipantRequest(
            **{"room_name": room_name, "participant_identity": "alice", "transfer_to": "tel:+15550100178", **fields}
        )
    )
    for fields in ({"room_name": ""}, {"participant_identity": ""}, {"transfer_to": "+15550100178"}):
        assert await refusal(transfer(**fields)) == ("invalid_argument", 400)
    assert await refusal(transfer(participant_identity="nobody")) == ("not_found", 404)
    # Who has not come by telephone cannot be transferred.
    assert await refusal(transfer()) == ("invalid_argument", 400)


async def test_dispatch_rules_are_kept_and_listed(needs, server, lk):
    needs("redis")
    jwt = token(server, "alice", "a-room", room_admin=True).to_jwt()
    async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {jwt}"}) as http:
        async with http.post(f"{server.http}/twirp/livekit.SIP/CreateSIPDispatchRule", json={}) as response:
            assert response.status == 401
    assert await refusal(lk.sip.create_dispatch_rule(api.CreateSIPDispatchRuleRequest())) == ("invalid_argument", 400)
    rule = api.SIPDispatchRule(dispatch_rule_individual=api.SIPDispatchRuleIndividual(room_prefix="call-"))
    request = api.CreateSIPDispatchRuleRequest(
        dispatch_rule=api.SIPDispatchRuleInfo(rule=rule, name="calls", trunk_ids=["ST_of_this_test"])
    )
    kept = await lk.sip.create_dispatch_rule(request)
    assert kept.sip_dispatch_rule_id.startswith("SDR_")
    listed = await lk.sip.list_dispatch_rule(api.ListSIPDispatchRuleRequest())
    assert [rule for rule in listed.items if rule.sip_dispatch_rule_id == kept.sip_dispatch_rule_id] == [kept]


async def test_a_call_is_dialled_rings_and_is_answered(needs, lk, join, room_name):
    needs("sip")
    caller = await join("caller")
    info = await lk.sip.create_sip_participant(call_request(room_name))
    assert (info.participant_identity, info.room_name) == ("callee", room_name)
    assert info.sip_call_id.startswith("SCL_")
    callee = await caller.sees("callee")
    await caller.until("an answered call", lambda: callee.attributes.get("sip.callStatus") == "active")
    assert callee.attributes["sip.callID"] == info.sip_call_id
    assert callee.attributes["sip.phoneNumber"] == "+15550100177"
    assert callee.name == "Ann"
    statuses = [
        changed["sip.callStatus"]
        for event, (changed, *_) in caller.events
        if event == "participant_attributes_changed" and "sip.callStatus" in changed
    ]
    assert statuses[-2:] == ["ringing", "active"]
    await lk.room.remove_participant(api.RoomParticipantIdentity(room=room_name, identity="callee"))
    await caller.event("participant_disconnected", lambda gone: gone.identity == "callee")


@pytest.mark.parametrize("status, code", [(486, "resource_exhausted"), (603, "permission_denied"), (503, "failed_precondition")])
async def test_a_call_that_fails_is_answered_with_its_status(needs, lk, room_name, status, code):
    needs("sip")
    request = call_request(room_name, number=f"+15550000{status}", wait_until_answered=True)
    with pytest.raises(api.TwirpError) as failed:
        await lk.sip.create_sip_participant(request)
    assert (failed.value.code, failed.value.metadata["sip_status_code"]) == (code, str(status))


async def test_a_transferred_call_leaves_the_room(needs, lk, join, room_name):
    needs("sip")
    caller = await join("caller")
    await lk.sip.create_sip_participant(call_request(room_name, wait_until_answered=True))
    await caller.sees("callee")
    transfer = api.TransferSIPParticipantRequest(
        room_name=room_name, participant_identity="callee", transfer_to="tel:+15550100178"
    )
    await asyncio.wait_for(lk.sip.transfer_sip_participant(transfer), 30)
    await caller.event("participant_disconnected", lambda gone: gone.identity == "callee")
