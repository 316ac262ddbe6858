"""What the tests of several vendors share: a caller's sound, and a strict reading of what the SDKs read leniently."""

import asyncio

import numpy as np
import pydantic

from standins.sound import encode, speak


def sound(*parts: float, rate: int = 16000, encoding: str = "linear16") -> bytes:
    """Speech of so many seconds, then silence of so many, and so on."""
    pieces = []
    for n, seconds in enumerate(parts):
        length = round(seconds * rate)
        if n % 2 == 0:
            pieces.append(speak("a" * (int(seconds * 1000 / 60) + 1), rate, {}).samples[:length])
        else:
            pieces.append(np.zeros(length, dtype=np.int16))
    return encode(np.concatenate(pieces), encoding)


def chunks(data: bytes, size: int = 3200):
    return [data[at : at + size] for at in range(0, len(data), size)]


def conforms(message: pydantic.BaseModel, beyond: frozenset[str] = frozenset()):
    """Fails unless the message has all that its class requires, of the right types, and no field that the class does not know.

    The SDKs themselves build their classes without validation, so that a misspelt or missing field would go unseen.
    """
    # Unions of the SDKs end in "or anything", so that unknown values pass; fields and their types do not.
    type(message).model_validate(message.model_dump(by_alias=True, exclude_unset=True), strict=False)
    _nothing_beyond(message, beyond)


def _nothing_beyond(value, beyond):
    if isinstance(value, pydantic.BaseModel):
        extra = set(value.model_extra or {}) - beyond
        assert not extra, f"{type(value).__name__} does not know {sorted(extra)}"
        for name in value.__class__.model_fields:
            _nothing_beyond(getattr(value, name), beyond)
    elif isinstance(value, (list, tuple)):
        for one in value:
            _nothing_beyond(one, beyond)
    elif isinstance(value, dict):
        for one in value.values():
            _nothing_beyond(one, beyond)


async def collect(messages, into: list):
    """Reads until the connection ends; what ended it, if it was an error."""
    try:
        async for message in messages:
            into.append(message)
    except Exception as error:
        return error


async def until(condition, seconds: float = 20):
    """Waits for something that another task brings about."""
    async with asyncio.timeout(seconds):
        while not (value := condition()):
            await asyncio.sleep(0.01)
    return value
