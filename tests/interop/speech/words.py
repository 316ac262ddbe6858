"""Word error rate: how many words of a text are wrong, missing or too many in what was recognised."""

import re

SMALL = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen "
    "nineteen"
).split()
TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
# The same word in two spellings.
SPELLINGS = {"e-mail": "email", "voice mail": "voicemail", "log in": "login", "re-enter": "reenter", "okay": "ok", "%": " percent"}


def number(digits: str) -> str:
    value = int(digits)
    if value < 20:
        return SMALL[value]
    if value < 100:
        return " ".join([TENS[value // 10 - 2], *([SMALL[value % 10]] if value % 10 else [])])
    return digits


def words(text: str) -> list[str]:
    """In small letters, without signs, numbers below a hundred as words."""
    text = text.lower().replace("\u2019", "'")
    for spelling, usual in SPELLINGS.items():
        text = text.replace(spelling, usual)
    text = re.sub(r"\d+", lambda digits: f" {number(digits[0])} ", text)
    return re.sub(r"'", "", re.sub(r"[^\w\s']", " ", text)).split()


def errors(said: str, heard: str) -> tuple[int, int]:
    """The fewest words that have to be changed, put in or taken out, and how many words were said."""
    reference, hypothesis = words(said), words(heard)
    row = list(range(len(hypothesis) + 1))
    for at, word in enumerate(reference, 1):
        before, row[0] = row[0], at
        for place, other in enumerate(hypothesis, 1):
            before, row[place] = row[place], min(row[place] + 1, row[place - 1] + 1, before + (word != other))
    return row[-1], len(reference)


def error_rate(pairs: list[tuple[str, str]]) -> float:
    """Over all pairs of what was said and what was heard."""
    counted = [errors(said, heard) for said, heard in pairs]
    return sum(wrong for wrong, _ in counted) / max(1, sum(said for _, said in counted))
