"""What a server that speaks MongoDB's protocol has of our calls, as the official Python client reads it."""

import json
import shutil
from datetime import datetime

from conftest import FIXTURES, until
from process import Process, voicebot_binary

V2 = "session_20261121_101500_00beef"
ORIGINAL = "session_20251029_113920_abc123"


def two_calls(data):
    data.copy(f"v2/metadata_{V2}.json", f"processed_metadata/metadata_{V2}.json")
    lead = {
        "lead_id": "0123456789abcdef0123456789abcdef", "session_id": V2, "name": "Asha Example", "email": "asha@example.com",
        "company": "Example Pumps", "interest": "a pump", "created_at": "2026-11-21T10:15:40.000Z",
    }
    (data.root / f"leads/lead_{V2}_1.json").write_text(json.dumps(lead))
    items = [{"role": "user", "content": "नमस्ते", "timestamp": "2026-11-21T10:15:09.500Z"}]
    (data.root / f"conversations/conversation_{V2}.json").write_text(json.dumps({"conversation_items": items}))
    record = json.loads((FIXTURES / f"original/metadata_{ORIGINAL}.json").read_text())
    # As a campaign's document has it in MongoDB's own JSON: keys that older servers refuse.
    record["campaign_metadata"]["owner"] = {"_id": {"$oid": "68fa0c1e995436dc7dd90009"}, "a.b": 1}
    (data.root / f"call_metadata/metadata_{ORIGINAL}.json").write_text(json.dumps(record))
    data.copy(f"original/conversation_{ORIGINAL}.json", f"conversations/conversation_{ORIGINAL}.json")
    data.copy("original/lead_20251029_114101.json", "leads/lead_20251029_114101.json")


def test_sessions_and_leads_are_there_with_indexes_and_can_be_looked_up_when_the_files_are_gone(data, server):
    two_calls(data)
    written = data.run("calls", "sync", "--json")
    assert written.returncode == 0, written.stderr
    assert json.loads(written.stdout)["written"] == 2
    assert json.loads(data.run("calls", "sync", "--json").stdout)["written"] == 0

    sessions, leads = server.database["sessions"], server.database["leads"]
    assert sessions.count_documents({}) == 2 and leads.count_documents({}) == 2
    session = sessions.find_one({"call_id": "CALL-20261121-50100123"})
    assert session["_id"] == V2 and session["archived"] is True
    assert session["call_start"] == datetime(2026, 11, 21, 10, 15)
    assert session["numbers"] == ["15550100123", "15550100999"]
    assert session["conversation"]["conversation_items"][0]["content"] == "नमस्ते"
    assert session["record"]["operator_note"] == "kept by readers that do not know it"
    lead = leads.find_one({"session_id": V2})
    assert lead["created_at"] == datetime(2026, 11, 21, 10, 15, 40)
    names = {index["name"] for index in sessions.list_indexes()}
    assert {"call_id", "job_id", "egress_id", "lead_ids", "numbers", "room_name", "room_sid"} <= names
    assert {"session_id", "call_id"} <= {index["name"] for index in leads.list_indexes()}

    on_disk = data.run("calls", "show", V2).stdout.splitlines()
    for folder in ["call_metadata", "processed_metadata", "conversations", "leads"]:
        shutil.rmtree(data.root / folder)
    for query in [V2, "CALL-20261121-50100123", "AJ_example", "RM_example", "call-_15550100123-1", lead["_id"], "0100123"]:
        for flags in [[], ["--mongodb"]]:
            shown = data.run("calls", "show", query, *flags)
            assert shown.returncode == 0, f"{query}: {shown.stderr}"
            assert shown.stdout.startswith(f"{V2}  archived"), query
            assert "caller said" in shown.stdout and "Asha Example" in shown.stdout, query
            assert "5550100123" not in shown.stdout.replace("CALL-20261121-50100123", ""), query
    in_mongodb = data.run("calls", "show", V2).stdout.splitlines()
    differ = [(a, b) for a, b in zip(on_disk, in_mongodb, strict=True) if a != b]
    assert all("processed_metadata/" in a and "in MongoDB" in b for a, b in differ), differ
    for query in ["xyz789", "EG_xyz789", "918655066243", "lead_id_of_nobody"]:
        shown = data.run("calls", "show", query)
        assert (shown.returncode == 0) == (query != "lead_id_of_nobody"), shown.stderr
    original = json.loads(data.run("calls", "show", ORIGINAL, "--json").stdout)
    assert original["record"]["campaign_metadata"]["owner"] == {"_id": {"$oid": "68fa0c1e995436dc7dd90009"}, "a.b": 1}
    assert data.run("check").stdout.count(f"MongoDB: {server.address}/calls_test answers") == 1


def test_a_server_that_is_away_and_killed_in_the_middle_is_caught_up_by_the_worker(data, server, tmp_path):
    calls = 400
    record = json.loads((FIXTURES / f"v2/metadata_{V2}.json").read_text())
    ids = [f"session_20261121_101500_{number:06x}" for number in range(calls)]
    for session_id in ids:
        record["session_id"] = session_id
        (data.root / f"processed_metadata/metadata_{session_id}.json").write_text(json.dumps(record))
    server.kill()
    key, secret = "devkey", "a-secret-of-the-test-0123456789abcdef"
    data.environment |= {
        "LIVEKIT_API_KEY": key, "LIVEKIT_API_SECRET": secret, "VOICEBOT__WORKER__HTTP_BIND": "127.0.0.1:0",
        "VOICEBOT__PROVIDERS__VENDOR": "scripted", "VOICEBOT__PROVIDERS__SCRIPT": str(tmp_path / "script.json"),
    }
    shutil.copy(FIXTURES.parents[2] / "config/demo-script.json", tmp_path / "script.json")
    log = tmp_path / "worker.log"
    sessions = server.database["sessions"]
    with Process([voicebot_binary(), "roomserver", "--bind", "127.0.0.1:0"], tmp_path / "rooms.log", data.environment) as rooms:
        data.environment["LIVEKIT_URL"] = rooms.first_json_line()["url"]
        with Process([voicebot_binary(), "start"], log, data.environment, cwd=data.root):
            until(lambda: "caught up later" in log.read_text(), "the worker says that MongoDB is away")
            server.start()
            until(lambda: sessions.estimated_document_count() > 50, "some calls are there", 60)
            server.kill()
            server.start()
            until(lambda: sessions.estimated_document_count() == calls, "all calls are there", 120)
        # The worker has ended in order.
    found = {document["_id"] for document in sessions.find({}, {"_id": 1})}
    assert found == set(ids)
    assert "MongoDB is back" in log.read_text()
    assert json.loads(data.run("calls", "sync", "--json").stdout)["behind"] == 0


def test_what_is_wrong_with_the_address_is_said_without_its_password(data, server):
    two_calls(data)
    server.kill()
    for uri, part in [
        (f"mongodb://bob:hunter2@{server.address}/?serverSelectionTimeoutMS=500", server.address),
        (f"mongodb://bob:hun/ter2@{server.address}/", "MONGODB_URI"),
        ("postgres://bob:hunter2@db.example.com/", "MONGODB_URI"),
    ]:
        data.environment["MONGODB_URI"] = uri
        for command in [["calls", "sync"], ["calls", "show", "EG_1"], ["check"]]:
            done = data.run(*command)
            said = done.stdout + done.stderr
            assert done.returncode != 0 and part in said, said
            assert "hunter2" not in said and "ter2" not in said, said
