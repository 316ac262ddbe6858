"""Whose turn it is, judged as eot-bench does: every pause of a turn is a hold but the last, which is its end. Each judge is asked at each
pause with what was heard until then; its waits are swept, and the share of holds cut off stands against the mean delay of the ends.

    bench.py            all methods, and the table
    bench.py --words    on words only, without sound: the lines of every language, as written"""

import argparse
import itertools
import json
import subprocess
import sys
from pathlib import Path

import numpy as np

from material import FOLDER, RATE_HZ, REPOSITORY, SEED, cut_turns, lines, pause, piper_turns

EXAMPLE = REPOSITORY / "target/debug/examples/turns"
BUDGETS_MS = (300, 600)
CUT_OFFS = (0.05, 0.10)
# Our detector says that speech has ended after so much silence; nothing is decided before.
EARLIEST_MS = 250
# Delays so far apart that a wait tells what the machine made of the words, though callers who pause are given up to twice as much.
TELLING = {"complete_delay_ms": 1_001, "min_endpointing_delay_ms": 2_003, "dictation_delay_ms": 5_009, "max_endpointing_delay_ms": 20_011}
NEVER = 10**9


class Span:
    """One pause: how long the caller is silent, and whether more follows."""

    def __init__(self, turn, at_s, length_ms, is_end, stretch):
        self.turn, self.at_s, self.length_ms, self.is_end, self.stretch = turn, at_s, length_ms, is_end, stretch


def spans_of(turn, stretches):
    spans = [
        Span(turn, end / 1000, following - end, False, at)
        for at, ((_, end), (following, _)) in enumerate(zip(stretches, stretches[1:]))
    ]
    heard = [(span.at_s, span.at_s + span.length_ms / 1000) for span in spans]
    # Pauses too short for our detector are pauses all the same; nothing of ours is asked there.
    for at, length in turn.pauses:
        if not any(begin < at + length and at < end for begin, end in heard):
            spans.append(Span(turn, at, length * 1000, False, None))
    spans.append(Span(turn, stretches[-1][1] / 1000, NEVER, True, len(stretches) - 1))
    return spans


def run_example(command, lines_in=()):
    text = "\n".join(json.dumps(line) for line in lines_in)
    done = subprocess.run([str(EXAMPLE), *command], input=text, capture_output=True, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def cached(name, make):
    path = FOLDER / f"{name}.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    return known, lambda: path.write_text(json.dumps(known))


def hear(turns):
    """What our detector and Whisper make of each turn: stretches with words."""
    folder = FOLDER / "sound"
    folder.mkdir(parents=True, exist_ok=True)
    for turn in turns:
        (folder / f"{turn.id.replace('/', '_')}.raw").write_bytes(turn.pcm.tobytes())
    files = [str(folder / f"{turn.id.replace('/', '_')}.raw") for turn in turns]
    stretches = run_example(["speech", *files])
    words, keep = cached("words", None)
    model = None
    for turn, found in zip(turns, stretches):
        for onset, end in found:
            key = f"{turn.id} {onset} {end}"
            if key not in words:
                if model is None:
                    from engines import Recognizer

                    model = Recognizer()
                sound = turn.pcm[max(0, (onset - 300) * 16) : (end + 100) * 16]
                words[key] = model.words(sound)
                if len(words) % 50 == 0:
                    keep()
                    print(len(words), "stretches recognised", file=sys.stderr, flush=True)
    keep()
    return [[(onset, end, words[f"{turn.id} {onset} {end}"]) for onset, end in found] for turn, found in zip(turns, stretches)]


# ---- methods ----


def waits_of_machine(delays, turns, heard):
    config = {"ask_after_ms": 0, "hang_up_after_ms": 0, **delays}
    asks = [
        {"id": turn.id, "asked": turn.asked, "stretches": [{"onset_ms": a, "end_ms": b, "text": c} for a, b, c in stretches]}
        for turn, stretches in zip(turns, heard)
    ]
    return {answer["id"]: answer["waits_ms"] for answer in run_example(["wait"], [config, *asks])}


def machine_classes(turns, heard, spans):
    """0 complete, 1 open, 2 dictation, 3 unfinished, for each span; -1 where it is not asked."""
    limits = [1_500, 4_500, 10_500]
    waits = waits_of_machine(TELLING, turns, heard)
    return np.array([-1 if s.stretch is None else int(np.searchsorted(limits, waits[s.turn.id][s.stretch])) for s in spans])


NEVER_LAST = set("a also an and as at because but for from if is my of or our so the their to uh um with your".split())


def classes_before(turns, heard, spans):
    """The rule before: 0 ends like a sentence, 1 open, 3 in mid phrase."""
    by_turn = {turn.id: stretches for turn, stretches in zip(turns, heard)}

    def judge(span):
        if span.stretch is None:
            return -1
        text = " ".join(words for _, _, words in by_turn[span.turn.id][: span.stretch + 1] if words).rstrip()
        if text.endswith(("...", "…")):
            return 3
        if text[-1:] in tuple(".?!।"):
            return 0
        if text[-1:] in tuple(",-–—:;"):
            return 3
        return 3 if text.split()[-1:] and text.split()[-1].lower() in NEVER_LAST else 1

    return np.array([judge(span) for span in spans])


def smart_turn_scores(turns, spans):
    """smart-turn v3.2 as Pipecat runs it, asked after 0.2 s of silence; None without its wheel."""
    wheel = next((FOLDER / "wheels").glob("pipecat_ai-*.whl"), None)
    if wheel is None:
        return None
    import zipfile

    import onnxruntime

    folder = FOLDER / "smart-turn"
    inside = "pipecat/audio/turn/smart_turn/"
    if not folder.exists():
        with zipfile.ZipFile(wheel) as file:
            for name in file.namelist():
                if name.startswith(inside) and name.endswith(("_whisper_features.py", "v3.2-cpu.onnx")):
                    target = folder / Path(name).name
                    target.parent.mkdir(exist_ok=True)
                    target.write_bytes(file.read(name))
    sys.path.insert(0, str(folder))
    import _whisper_features as features

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(next(folder.glob("*.onnx"))), options)
    scores, keep = cached("smart-turn", None)
    for span in spans:
        key = f"{span.turn.id} {span.at_s:.3f}"
        if key not in scores:
            end = round((span.at_s + 0.2) * RATE_HZ)
            sound = span.turn.pcm[max(0, end - 8 * RATE_HZ) : end].astype(np.float32) / 32768
            scores[key] = smart_turn_score(session, features, sound)
    keep()
    return np.array([scores[f"{span.turn.id} {span.at_s:.3f}"] for span in spans])


def smart_turn_score(session, features, sound):
    sound = np.pad(sound, (8 * RATE_HZ - len(sound), 0))
    mel = features.compute_whisper_log_mel_features(sound, do_normalize=True)
    (result,) = session.run(None, {"input_features": mel[None].astype(np.float32)})
    return float(np.ravel(result)[0])


# ---- policies ----


def frontier(policies, lengths, is_end):
    """(mean delay of the ends in ms, share of holds cut off) of each policy's waits."""
    points = []
    for waits in policies:
        cut = waits[~is_end] < lengths[~is_end]
        points.append((float(waits[is_end].mean()), float(cut.mean())))
    return points


def at_delay(points, budget):
    fitting = [cut for delay, cut in points if delay <= budget]
    return min(fitting) if fitting else None


def at_cut_offs(points, share):
    fitting = [delay for delay, cut in points if cut <= share]
    return min(fitting) if fitting else None


def silence_policies(count):
    return (np.full(count, wait, float) for wait in range(100, 3_001, 50))


def class_policies(classes, with_dictation):
    complete = (250, 300, 350, 400, 500)
    opens = (250, 300, 350, 400, 500, 600, 700, 800, 1_000, 1_200)
    dictations = (400, 600, 800, 1_000, 1_200, 1_500, 2_000) if with_dictation else (0,)
    unfinished = (500, 600, 800, 1_000, 1_200, 1_500, 2_000, 2_500, 3_000)
    for a, b, c, d in itertools.product(complete, opens, dictations, unfinished):
        if a <= b <= d and (not with_dictation or b <= c <= max(c, d)):
            yield np.where(classes < 0, NEVER, np.array([a, b, c, d, NEVER], float)[classes])


def score_policies(scores):
    for threshold in np.arange(0.05, 1.0, 0.05):
        for action in range(200, 1_001, 50):
            for timeout in range(max(action, 400), 3_001, 200):
                yield np.where(scores >= threshold, action, timeout).astype(float)


def show(title, rows, spans):
    is_end = np.array([span.is_end for span in spans])
    lengths = np.array([span.length_ms for span in spans], float)
    print(f"\n{title}: {int((~is_end).sum())} holds, {int(is_end.sum())} ends\n")
    print("| judge | cut off @300 ms | @600 ms | delay @5 % | @10 % |\n|---|---|---|---|---|")
    for name, policies in rows:
        points = frontier(policies, lengths, is_end)
        shares = [at_delay(points, budget) for budget in BUDGETS_MS]
        delays = [at_cut_offs(points, share) for share in CUT_OFFS]
        cells = ["–" if x is None else f"{100 * x:.1f} %" for x in shares] + ["–" if x is None else f"{x:.0f} ms" for x in delays]
        if len(points) == 1:
            cells = [f"{100 * points[0][1]:.1f} % at {points[0][0]:.0f} ms", "", "", ""]
        print(f"| {name} | " + " | ".join(cells) + " |")


def classes_shown(title, classes, spans):
    is_end = np.array([span.is_end for span in spans])
    for name, which in (("holds", ~is_end), ("ends", is_end)):
        asked = classes[which]
        print(f"{title}, {name}: " + ", ".join(f"{label} {int((asked == at).sum())}" for at, label in enumerate(("complete", "open", "dictation", "unfinished"))))


def judge(title, turns, heard, spans, smart, wanted):
    keep = np.array([wanted(span.turn) for span in spans])
    chosen = [span for span, kept in zip(spans, keep) if kept]
    if not chosen:
        return
    before, now = classes_before(turns, heard, chosen), machine_classes(turns, heard, chosen)
    default = waits_of_machine({}, turns, heard)
    shipped = np.array([NEVER if s.stretch is None else default[s.turn.id][s.stretch] for s in chosen], float)
    shipped_before = np.where(before < 0, NEVER, np.array([300, 500, 0, 3_000, NEVER], float)[before])
    rows = [
        ("silence only", silence_policies(len(chosen))),
        ("silence, fixed 0.5 s", [np.full(len(chosen), 500.0)]),
        ("ours before", class_policies(before, False)),
        ("ours before, its defaults", [shipped_before]),
    ]
    if smart is not None:
        rows += [("smart-turn v3.2 (int8)", score_policies(smart[keep]))]
    rows += [("ours now", class_policies(now, True)), ("ours now, defaults", [shipped])]
    show(title, rows, chosen)
    classes_shown("before", before, chosen)
    classes_shown("now", now, chosen)


def written_turns():
    """Lines of every language as written, with a full stop behind every stretch."""
    import random

    from material import Turn

    turns, heard, languages = [], [], []
    for name, kind, language, asked, text in lines():
        rng = random.Random(f"{SEED} {name}")
        at, stretches = 0, []
        for piece in (piece.strip() for piece in text.split("/")):
            stretches.append((at, at + 1_000, f"{piece[:1].upper()}{piece[1:]}."))
            at += 1_000 + max(round(pause(rng, kind) * 1000), EARLIEST_MS + 10)
        turns.append(Turn(name, kind, asked, np.zeros(0, np.int16)))
        heard.append(stretches)
        languages.append(language)
    return turns, heard, languages


def main():
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--words", action="store_true")
    arguments.add_argument("--wrong", action="store_true", help="print holds taken for complete and ends that are waited for")
    options = arguments.parse_args()
    if options.words:
        turns, heard, languages = written_turns()
        spoken = {turn.id: language for turn, language in zip(turns, languages)}
        spans = [span for turn, stretches in zip(turns, heard) for span in spans_of(turn, [s[:2] for s in stretches])]
        for language in sorted(set(languages)):
            judge(f"words only, {language}", turns, heard, spans, None, lambda turn, language=language: spoken[turn.id] == language)
    else:
        turns = [*cut_turns(), *piper_turns()]
        heard = hear(turns)
        turns, heard = zip(*[(turn, stretches) for turn, stretches in zip(turns, heard) if stretches])
        spans = [span for turn, stretches in zip(turns, heard) for span in spans_of(turn, [s[:2] for s in stretches])]
        smart = smart_turn_scores(turns, spans)
        judge("all", turns, heard, spans, smart, lambda turn: True)
        recorded = ("prompt", "librivox")
        judge("recordings of people, cut at any word", turns, heard, spans, smart, lambda turn: turn.kind in recorded)
        judge("lines of callers", turns, heard, spans, smart, lambda turn: turn.kind not in recorded)
    if options.wrong:
        classes = machine_classes(turns, heard, spans)
        by_turn = {turn.id: stretches for turn, stretches in zip(turns, heard)}
        for span, found in zip(spans, classes):
            if found >= 0 and (not span.is_end and found < 2 or span.is_end and found != 0):
                text = " / ".join(words for _, _, words in by_turn[span.turn.id][: span.stretch + 1])
                print("end " if span.is_end else "hold", found, span.turn.kind, repr(span.turn.asked), repr(text))


if __name__ == "__main__":
    main()
