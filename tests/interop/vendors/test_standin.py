"""What no vendor's client checks: the control, the recogniser and the encodings."""

import urllib.error
import urllib.request

import aiohttp
import numpy as np
import pytest

from standins.sound import Recogniser, Memory, decode, encode, speak
from support import chunks, sound


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ({"hear": {}}, "a script has no hear"),
        ({"hears": {"texts": []}}, "hears has no texts"),
        ({"faults": [{"kind": "fire"}]}, "there is no fault fire"),
        ({"faults": [{"kind": "stall", "after": 1}]}, "the fault stall has no after"),
        ({"faults": [{"kind": "stall", "at": {"minutes": 1}}]}, "the place of a fault has no minutes"),
        ({"replies": [{"say": "Hi."}]}, "a reply has no say"),
    ],
)
def test_a_wrong_script_is_refused_with_a_sentence(control, script, words):
    with pytest.raises(urllib.error.HTTPError) as refused:
        control("anthropic").script(**script)
    assert refused.value.code == 400 and words in refused.value.read().decode()


def test_an_unknown_stand_in_is_refused_with_those_that_there_are(control):
    with pytest.raises(urllib.error.HTTPError) as refused:
        control("nobody").seen()
    assert refused.value.code == 404 and "deepgram-listen" in refused.value.read().decode()


def test_scripts_and_what_was_seen_are_apart_by_key(control):
    one, two = control("anthropic", "one"), control("anthropic", "two")
    one.script(faults=[{"kind": "status", "status": 529}])
    for at, status in ((one, 529), (two, 400), (one, 400)):
        headers = {"x-api-key": at.key, "anthropic-version": "2023-06-01"}
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(urllib.request.Request(f"{at.http}/v1/messages", b"{}", headers), timeout=20)
        assert refused.value.code == status
    assert [seen["status"] for seen in one.seen()] == [529, 400] and [seen["status"] for seen in two.seen()] == [400]
    one.script()
    assert one.seen() == [] and len(two.seen()) == 1


@pytest.mark.parametrize("step", [37, 160, 1601, 100000])
def test_what_is_heard_does_not_depend_on_how_the_sound_is_cut(step):
    samples = decode(sound(1.0, 0.6, 0.7, 0.6), "linear16")

    def heard(step):
        recogniser = Recogniser(16000, {"utterances": ["one two three", "four"], "eager_ms": 200}, Memory(), 400)
        return [one for at in range(0, len(samples), step) for one in recogniser.feed(samples[at : at + step])]

    assert heard(step) == heard(len(samples))
    assert [one.text for one in heard(step) if one.kind == "ended"] == ["one two three", "four"]


def test_a_click_is_no_speech_and_the_gap_between_syllables_no_end():
    recogniser = Recogniser(8000, {"utterances": ["one"]}, Memory(), 10)
    click = np.zeros(8000, dtype=np.int16)
    click[4000:4100] = 20000
    assert [one.kind for one in recogniser.feed(click)] == ["quiet"]
    pieces = [decode(sound(0.3, 0.1, 0.3, 0.5, rate=8000), "linear16")]
    assert [one.text for one in recogniser.feed(np.concatenate(pieces)) if one.kind == "ended"] == ["one"]


def test_speech_whose_words_were_asked_for_right_after_it_is_over():
    # Only questions end a stretch here, and each comes sooner than a gap between syllables is long.
    recogniser = Recogniser(8000, {"utterances": ["one two", "three four"]}, Memory(), None)
    words = []
    for seconds in (1.0, 0.8):
        recogniser.feed(decode(sound(seconds, 0.1, rate=8000), "linear16"))
        words.append([one.text for one in recogniser.finalize()])
        recogniser.feed(decode(sound(0.0, 0.9, rate=8000), "linear16"))
    assert words == [["one two"], ["three four"]]


def test_companding_has_the_values_of_g711():
    # ITU-T G.711: the ends and the middle of both laws.
    assert decode(bytes([0xFF, 0x7F, 0x80, 0x00, 0xF0]), "mulaw").tolist() == [0, 0, 32124, -32124, 120]
    assert decode(bytes([0xD5, 0x55, 0xAA, 0x2A]), "alaw").tolist() == [8, -8, 32256, -32256]


@pytest.mark.parametrize("encoding", ["mulaw", "alaw"])
def test_companded_sound_comes_back_as_the_nearest_value(encoding):
    every = decode(bytes(range(256)), encoding)
    assert decode(encode(every, encoding), encoding).tolist() == every.tolist()
    tone = speak("abc", 8000, {}).samples
    back = decode(encode(tone, encoding), encoding).astype(int)
    assert np.all(np.abs(back - tone) <= np.maximum(np.abs(tone.astype(int)) * 0.04, 16))


async def test_words_that_a_stalled_connection_keeps_to_itself_are_heard_by_the_next(control):
    at = control("cartesia-stt")
    at.script(hears={"utterances": ["one two three", "four"]}, faults=[{"kind": "stall", "at": {"sound_ms": 500}}])
    url = f"{at.http}/stt/websocket?model=ink-2&encoding=pcm_s16le&sample_rate=16000"
    headers = {"X-API-Key": at.key, "Cartesia-Version": "2025-04-16"}
    texts = []
    async with aiohttp.ClientSession(headers=headers) as http:
        for _ in range(2):
            async with http.ws_connect(url) as socket:
                for piece in chunks(sound(1.0, 1.0)):
                    await socket.send_bytes(piece)
                await socket.send_str("done")
                async for message in socket:
                    answer = message.json()
                    if answer["type"] == "transcript" and answer["is_final"]:
                        texts.append(answer["text"])
    assert texts == ["one two three"]
