#!/usr/bin/env python3
"""Fails when a home-made word stands where the field has a standard term: in names, comments, logs and documents.

    words.py                  the folders that are free of such words and stay so (ROOTS)
    words.py docs README.md   other folders or files

Names are split first (`next_beat` and `NextBeat` are "next beat"), and only whole words count: "trail" is not in "trailer". A word that is right at one
place is allowed by what stands beside it, in its own pattern, or for one file in ALLOWED.
"""

import re
import subprocess
import sys

ROOTS = [".ci", "config", "crates", "deploy", "docs", "examples", "fuzz", "src", "tests"] + [
    "CHANGELOG.md", "CONTRIBUTING.md", "README.md"]
SUFFIXES = (".rs", ".py", ".md", ".toml", ".js", ".html", ".dict", ".txt")

# Pattern of the words, standard term, and why. The pattern is matched against text whose names are split into words in lower case.
WORDS = [
    (r"beats?|beating", "tick", "a clock ticks"),
    (r"pokes?|poked|poking", "notify", "a task that waits is notified"),
    (r"looks?(?! (?:up|ups|at|for|in|like|alike|as|through|into|back|ahead|behind|the same)\b| ?$)", "scan or poll", "files are scanned, a state is polled"),
    (
        r"(?<!this )(?<!same )(?<!that )(?<!half )(?<!in the )(?<!on the )(?<!on its )(?<!on their )(?<!gives )(?<!no )(?<!any )(?<!one )(?<!under )ways?(?! (?:to|back|round|out)\b)",
        "direction, path, route or lifecycle",
        "media has directions, a packet takes a path, a record has a lifecycle",
    ),
    (r"mouths?(?! to ear\b)", "audio output", "the caller's audio output or the agent's"),
    (r"(?<!mouth to )ears?", "playout recorder", "it records what was played out"),
    (r"judges|(?:the|an?|as|no|our|outside) judge", "interop tests", "tests against other implementations; audio is scored"),
    (r"scenery", "dev fixtures", "what `demo` and `dev` start around a worker"),
    (r"sets? aside|setting aside", "quarantine", "a file that cannot be processed is quarantined"),
    (r"trails?", "timeline", "what happened to a call is a timeline of entries"),
    (r"desks?", "dispatcher", "it gives jobs to call processes"),
    (r"studios?", "reply pipeline", "it makes a reply into sound"),
    (r"parcels?", "delivery attempt", "one attempt to deliver a record"),
    (r"(?<!is )(?<!are )(?<!was )(?<!were )happenings?", "event", "something that happened is an event"),
    (r"leftovers?", "unwritten records", "records of calls whose process died before it wrote them"),
    (r"line watch", "input watchdog", "it notices that a caller's sound stays away"),
    (r"early transcriptions?", "preemptive transcription", "LiveKit's term"),
]
# The same for type names that are ordinary words elsewhere; matched against the text as it is.
TYPES = [
    (r"Moment", "Entry", "an entry of a timeline"),
    (r"Step", "Event or Action", "a timeline has events, a test's story has actions"),
    (r"Hearing", "VadState", "the state of voice activity detection"),
    (r"min_delay_ms", "min_endpointing_delay_ms", "LiveKit's term"),
]
# By file: what is right there, and why.
ALLOWED = [
    (".ci/words.py", r".*", "the list itself"),
    ("CHANGELOG.md", r"min_delay_ms|early transcription", "old keys, with their new names"),
    ("src/config.rs", r"min_delay_ms|early transcription", "old keys, which are refused with the new name"),
    ("crates/roomserver/CONFORMANCE.md", r"`[^`]*`", "names of tests in other folders"),
]

PATTERNS = [(re.compile(rf"\b(?:{pattern})\b"), *rest) for pattern, *rest in WORDS]
TYPE_PATTERNS = [(re.compile(rf"\b(?:{pattern})\b"), *rest) for pattern, *rest in TYPES]
ALLOWED_PATTERNS = [(file, re.compile(pattern)) for file, pattern, _ in ALLOWED]


def split_names(line: str) -> str:
    """The line in lower case, with the parts of names separated by spaces."""
    line = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", " ", line)
    return re.sub(r"[_\-\s]+", " ", line).lower()


def found_in(file: str, line: str) -> list[str]:
    """A sentence for each home-made word in a line."""
    text = split_names(line)
    for name, pattern in ALLOWED_PATTERNS:
        if name == file:
            line, text = pattern.sub("", line), pattern.sub("", text)
    matches = [(pattern.search(text), term, why) for pattern, term, why in PATTERNS]
    matches += [(pattern.search(line), term, why) for pattern, term, why in TYPE_PATTERNS]
    return [f'"{match.group()}" is a home-made word; write {term} ({why})' for match, term, why in matches if match]


def main() -> int:
    roots = sys.argv[1:] or ROOTS
    listed = subprocess.run(["git", "ls-files", "--", *roots], check=True, capture_output=True, text=True).stdout.splitlines()
    if not listed:
        sys.exit(f"no file of the repository is in {', '.join(roots)}")
    found = []
    for file in listed:
        if not file.endswith(SUFFIXES):
            continue
        with open(file, encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                found += [f"{file}:{number}: {sentence}" for sentence in found_in(file, line)]
    print("\n".join(found), end="\n" if found else "")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
