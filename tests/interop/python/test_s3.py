"""Recordings in S3: `voicebot uploads run` reads them from moto, which speaks Amazon's protocol and is not ours, and the CRM gets them."""

import asyncio
import json
import os
import random

import boto3
import pytest
from crm import Crm
from moto.server import ThreadedMotoServer
from process import voicebot_binary

BUCKET = "calls"
KEY = "2026/11/a call.ogg"
SESSION = "session_20261121_100000_aaaaaa"
# Several pieces, the last of them short.
SOUND = random.Random(7).randbytes(3_300_000)
KEYS = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing"}
DEADLINE_S = 60


@pytest.fixture
def s3():
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    url = f"http://{host}:{port}"
    client = boto3.client(
        "s3", endpoint_url=url, region_name="us-east-1", aws_access_key_id="testing", aws_secret_access_key="testing"
    )
    client.create_bucket(Bucket=BUCKET)
    client.put_object(Bucket=BUCKET, Key=KEY, Body=SOUND)
    yield url
    server.stop()


async def deliver(folder, endpoint: str, crm_url: str, filename: str, location: str) -> dict:
    """One pass over a folder with one call, whose manifest names this object. The record afterwards."""
    for name in ("call_metadata", "recordings"):
        (folder / name).mkdir(exist_ok=True)
    record = {
        "session_id": SESSION,
        "dialed_number": "+15550100177",
        "campaign_metadata": {"egressId": "EG_s3"},
        "timestamps": {"call_start": "2020-01-01T10:00:00Z", "call_end": "2020-01-01T10:01:00Z"},
    }
    manifest = {"egress_id": "EG_s3", "files": [{"filename": filename, "location": location}]}
    (folder / f"call_metadata/metadata_{SESSION}.json").write_text(json.dumps(record))
    (folder / "recordings/EG_s3.json").write_text(json.dumps(manifest))
    settings = {
        "PATH": os.environ["PATH"],
        "CRM_BASE_URL": crm_url,
        "VOICEBOT__RECORDING__S3__BUCKETS": json.dumps([BUCKET]),
        "VOICEBOT__RECORDING__S3__ENDPOINT": endpoint,
        "VOICEBOT__RECORDING__WAIT_S": "0",
        "VOICEBOT__RECORDING__LATE_S": "0",
        **KEYS,
    }
    program = await asyncio.create_subprocess_exec(
        voicebot_binary(), "uploads", "run", "--once", "--json",
        cwd=folder, env=settings, stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await asyncio.wait_for(program.communicate(), DEADLINE_S)
    file = folder / f"processed_metadata/metadata_{SESSION}.json"
    assert file.exists(), output.decode()
    return json.loads(file.read_text())


@pytest.mark.parametrize("address", ["s3://{bucket}/{key}", "{url}/{bucket}/{key}", "https://{bucket}.s3.amazonaws.com/{key}"])
async def test_a_recording_in_s3_reaches_the_crm_byte_for_byte(s3, tmp_path, address):
    location = address.format(url=s3, bucket=BUCKET, key=KEY)
    async with Crm() as crm:
        record = await deliver(tmp_path, s3, crm.url, KEY, location)
        assert [(name, sound == SOUND) for name, sound in crm.recordings] == [("a call.ogg", True)]
        assert record["files"]["recording"] == f"s3://{BUCKET}/{KEY}"
        details = (await crm.call())["callDetails"]
        assert details["recordingSize"] == len(SOUND)
        assert details["recordingUrl"]


@pytest.mark.parametrize(
    ("location", "words"),
    [
        ("s3://calls/other.ogg", "s3://calls/other.ogg is not there"),
        ("s3://others/a.ogg", "recording.s3.buckets"),
    ],
)
async def test_a_recording_that_is_not_there_is_named_and_the_call_goes_without(s3, tmp_path, location, words):
    async with Crm() as crm:
        record = await deliver(tmp_path, s3, crm.url, "", location)
        assert words in record["uploads"]["recording"]["last_error"]
        assert crm.recordings == []
        assert (await crm.call())["callDetails"]["recordingUrl"] is None
