#!/usr/bin/env python3
"""Builds all fuzz targets, runs each for some seconds and prints how many inputs each has tried. Fails when one crashes.

    fuzz/run.py --seconds 5             all targets
    fuzz/run.py --seconds 300 sdp stun  these

A crash leaves its input in `target/fuzz/artifacts`; `fuzz/run.py --replay FILE TARGET` runs that alone. Inputs that reached new code stay in
`target/fuzz/corpus` for the next run. Needs the stable toolchain and a C++ compiler, and nothing else: coverage is measured by
the compiler's own instrumentation, without sanitizers, because the code is safe Rust but for libopus.
"""

import argparse
import concurrent.futures
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
FUZZ = ROOT / "fuzz"
OUT = ROOT / "target" / "fuzz"
PLATFORM = "x86_64-unknown-linux-gnu"
INSTRUMENTATION = " ".join(
    ["-Cpasses=sancov-module", "-Ccodegen-units=1"]
    + [
        f"-Cllvm-args=-sanitizer-coverage-{what}"
        for what in ("level=4", "inline-8bit-counters", "pc-table", "trace-compares")
    ]
)
# Targets outside of the media engine; without them the program need not be built.
PROGRAM = {"record", "manifest", "crm_answer", "journal", "persona", "server_message", "chat_stream", "vendor_messages", "webhook", "ipc", "twirp", "server_sdp"}
# Longest input, bytes; shorter for targets that take long.
MAX_BYTES = {"jitter": 600, "datagrams": 400, "negotiation": 6000, "ogg_opus": 20_000}
DICTIONARIES = {
    "sdp": ["sdp", "negotiation", "server_sdp", "candidate"],
    "json": ["record", "manifest", "crm_answer", "journal", "persona", "chat_stream", "vendor_messages", "webhook", "ipc", "twirp"],
}
# Initial inputs that the repository has as fixtures.
FIXTURES = {"record": "tests/fixtures/records/**/*.json"}
# An input that takes longer than this is a fault, seconds. Generous, for busy machines.
SLOW_S = 20
# Fewer executions than this mean that a target does not run at all.
FEWEST = 10


def build(targets):
    environment = os.environ | {"RUSTFLAGS": INSTRUMENTATION, "CARGO_TARGET_DIR": str(OUT)}
    command = ["cargo", "build", "--quiet", "--locked", "--target", PLATFORM]
    command += [f"--bin={target}" for target in targets]
    if not PROGRAM.intersection(targets):
        command.append("--no-default-features")
    subprocess.run(command, cwd=FUZZ, env=environment, check=True)


def write_seeds(binary, target, folder):
    wrote = subprocess.run([binary], env=os.environ | {"FUZZ_WRITE_SEEDS": folder}, capture_output=True, text=True)
    if wrote.returncode != 0:
        sys.exit(f"{target} could not write its seeds:\n{wrote.stderr}")
    for number, path in enumerate(sorted(ROOT.glob(FIXTURES[target])) if target in FIXTURES else []):
        shutil.copy(path, pathlib.Path(folder) / f"fixture-{number}")


def fuzz(target, seconds):
    """Returns how many inputs were tried and, after a crash, the end of its output."""
    binary = OUT / PLATFORM / "debug" / target
    corpus, artifacts = OUT / "corpus" / target, OUT / "artifacts"
    corpus.mkdir(parents=True, exist_ok=True)
    artifacts.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as seeds:
        write_seeds(binary, target, seeds)
        command = [
            binary,
            f"-max_total_time={seconds}",
            f"-max_len={MAX_BYTES.get(target, 4096)}",
            f"-timeout={SLOW_S}",
            "-rss_limit_mb=1024",
            "-print_final_stats=1",
            f"-artifact_prefix={artifacts}/{target}-",
        ]
        for name, targets in DICTIONARIES.items():
            if target in targets:
                command.append(f"-dict={FUZZ / 'dictionaries' / name}.dict")
        ran = subprocess.run(
            command + [corpus, seeds], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
        )
    units = re.search(r"stat::number_of_executed_units:\s*(\d+)", ran.stdout)
    units = int(units.group(1)) if units else 0
    if ran.returncode == 0 and units >= FEWEST:
        return units, None
    return units, "\n".join(ran.stdout.splitlines()[-60:])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=5, help="for each target")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="targets that run at once")
    parser.add_argument("--replay", metavar="FILE", help="run one target with this input")
    parser.add_argument("targets", nargs="*")
    arguments = parser.parse_args()
    known = sorted(path.stem for path in (FUZZ / "fuzz_targets").glob("*.rs"))
    unknown = set(arguments.targets) - set(known)
    if unknown:
        parser.error(f"no such target: {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    began = time.monotonic()
    targets = arguments.targets or known
    build(targets)
    print(f"built in {time.monotonic() - began:.0f} s", flush=True)
    if arguments.replay:
        sys.exit(subprocess.run([OUT / PLATFORM / "debug" / targets[0], arguments.replay]).returncode)
    failed = False
    with concurrent.futures.ThreadPoolExecutor(arguments.jobs) as pool:
        runs = {target: pool.submit(fuzz, target, arguments.seconds) for target in targets}
        for target, run in runs.items():
            units, crash = run.result()
            print(f"{target:16} {units:>10} inputs{'' if crash is None else '  FAILED'}", flush=True)
            if crash is not None:
                failed = True
                print(crash, flush=True)
    print(f"all in {time.monotonic() - began:.0f} s")
    sys.exit(failed)


if __name__ == "__main__":
    main()
