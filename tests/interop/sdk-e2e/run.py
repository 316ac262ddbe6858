#!/usr/bin/env python3
"""Runs the official SDK's own end-to-end tests on our media engine, against a server.

The tests ship inside the `livekit` package that cargo has fetched; nothing of them is kept here. This makes a scratch
package below `target/` whose test entries point into that package, with `libwebrtc` patched as in our workspace,
builds it, and runs every test by itself with a time limit.

    run.py                        against our own room server, started for the purpose
    LIVEKIT_URL=ws://… run.py     against any other LiveKit server
    run.py --only rpc_test        one file; add --test NAME for one test, --all to run also what does not apply
    run.py --build-only

`expectations.toml` names the tests that do not apply, each with its reason. Prints a table and closes with
"N passed, N failed, N skipped"; the exit code is 0 only if nothing failed. Needs nothing but Python's own library.
"""

import argparse
import fnmatch
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[2]
SCRATCH = REPOSITORY / "target/sdk-e2e"
TARGET = Path(os.environ.get("CARGO_TARGET_DIR", REPOSITORY / "target"))
DEFAULT_FILES = [
    "audio_test",
    "room_test",
    "engine_lifecycle_test",
    "rpc_test",
    "data_channel_test",
    "data_channel_encryption",
    "data_stream_test",
    "data_track_test",
    "peer_connection_signaling_test",
    "reconnection_test",
]
# The slowest of them (reconnection) waits for time-outs of 30 s on purpose.
TEST_LIMIT_S = 120
# How often an inconclusive test is run again.
REPEATS = 9
START_LIMIT_S = 20


def workspace_metadata() -> dict:
    command = ["cargo", "metadata", "--format-version", "1", "--manifest-path", str(REPOSITORY / "Cargo.toml")]
    return json.loads(subprocess.run(command, check=True, capture_output=True).stdout)


def fetched_livekit(metadata: dict) -> Path:
    """The folder of the `livekit` package that our Cargo.lock selects."""
    found = [p for p in metadata["packages"] if p["name"] == "livekit"]
    if len(found) != 1:
        sys.exit(f"cargo metadata names {len(found)} packages called livekit, and one was expected")
    return Path(found[0]["manifest_path"]).parent


def compatible(requirement: str) -> str:
    """The part of a version requirement that decides whether cargo can use one version for two: `1` of `^1.10.1`, `0.4` of `0.4.38`."""
    numbers = requirement.lstrip("^=").split(".")
    return numbers[0] if numbers[0] != "0" else ".".join(numbers[:2])


def with_workspace_features(dependencies: dict, metadata: dict) -> dict:
    """The dependencies, and all that our workspace depends on with the features that it chooses: cargo then takes shared
    packages as they were built for the workspace."""
    result = {name: dict(table) for name, table in dependencies.items()}
    known = {(table.get("package", name), compatible(table["version"])): table for name, table in result.items()}
    for package in metadata["packages"]:
        if package["id"] not in metadata["workspace_members"]:
            continue
        for ours in package["dependencies"]:
            if ours.get("path") or ours["target"] or ours["name"] in ("libwebrtc", "livekit"):
                continue
            name, version = ours["name"], compatible(ours["req"])
            table = known.get((name, version))
            if table is None:
                table = {"package": name, "version": ours["req"], "default-features": False, "features": []}
                known[name, version] = result[f"workspace-{name}-{version.replace('.', '-')}"] = table
            table["default-features"] = table.get("default-features", True) or ours["uses_default_features"]
            table["features"] = sorted({*table.get("features", []), *ours["features"]})
    return result


def as_toml(value) -> str:
    """Enough of TOML for a dependency table."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{json.dumps(k)} = {as_toml(v)}" for k, v in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(as_toml, value)) + "]"
    return json.dumps(value)


def write_if_changed(path: Path, text: str) -> bool:
    """Leaves a file alone that has this text already, because cargo builds again after every write."""
    if path.exists() and path.read_text() == text:
        return False
    path.write_text(text)
    return True


def write_package(livekit: Path, files: list[str], metadata: dict):
    theirs = tomllib.loads((livekit / "Cargo.toml").read_text())
    ours = tomllib.loads((REPOSITORY / "Cargo.toml").read_text())
    dependencies = with_workspace_features({**theirs["dependencies"], **theirs["dev-dependencies"]}, metadata)
    # The features that our worker uses, so that what is tested is what is shipped.
    dependencies["livekit"] = {
        "version": "=" + theirs["package"]["version"],
        "default-features": False,
        "features": [*ours["dependencies"]["livekit"]["features"], "__lk-e2e-test"],
    }
    profiles = {name: table for name, table in ours.get("profile", {}).items() if name == "dev"}
    # In our workspace the engine is a member, to which the profile's wildcard does not apply; here it is not a member.
    engine = profiles["dev"]["package"].setdefault("libwebrtc", {})
    engine.setdefault("debug", profiles["dev"]["debug"])
    lines = [
        "[workspace]",
        '[package]\nname = "sdk-e2e"\nversion = "0.0.0"\npublish = false\nautotests = false',
        f"edition = {json.dumps(theirs['package']['edition'])}",
        '[lib]\npath = "lib.rs"',
        # Without this feature of their package the test files are empty.
        '[features]\ndefault = ["__lk-e2e-test"]\n__lk-e2e-test = []',
        # Warnings in their code cannot be fixed here.
        '[lints.rust]\nunused = "allow"\ndeprecated = "allow"',
        "[dev-dependencies]",
        *(f"{name} = {as_toml(table)}" for name, table in dependencies.items()),
        "[patch.crates-io]",
        f"libwebrtc = {{ path = {json.dumps(str(REPOSITORY / 'crates/libwebrtc'))} }}",
        *(f"[profile.{name}]\n" + "\n".join(f"{k} = {as_toml(v)}" for k, v in table.items()) for name, table in profiles.items()),
    ]
    for file in files:
        lines.append(f"[[test]]\nname = {json.dumps(file)}\npath = {json.dumps(str(livekit / 'tests' / (file + '.rs')))}")
    SCRATCH.mkdir(parents=True, exist_ok=True)
    write_if_changed(SCRATCH / "lib.rs", "")
    write_if_changed(SCRATCH / "Cargo.toml", "\n".join(lines) + "\n")
    # The same versions of everything as our workspace; cargo adds what only the tests need.
    if write_if_changed(SCRATCH / "workspace.lock", (REPOSITORY / "Cargo.lock").read_text()):
        shutil.copy(REPOSITORY / "Cargo.lock", SCRATCH / "Cargo.lock")


def build(files: list[str]) -> dict[str, str]:
    command = ["cargo", "test", "--no-run", "--message-format=json-render-diagnostics", "--manifest-path", str(SCRATCH / "Cargo.toml")]
    for file in files:
        command += ["--test", file]
    environment = {**os.environ, "CARGO_TARGET_DIR": str(TARGET)}
    run = subprocess.run(command, stdout=subprocess.PIPE, env=environment)
    if run.returncode:
        sys.exit("the SDK's end-to-end tests do not build")
    messages = [json.loads(line) for line in run.stdout.splitlines() if line.startswith(b"{")]
    return {m["target"]["name"]: m["executable"] for m in messages if m.get("executable") and m["target"]["name"] in files}


class RoomServer:
    """Our own server, for as long as the tests run; or the one that LIVEKIT_URL names."""

    def __enter__(self):
        self.child = None
        if url := os.environ.get("LIVEKIT_URL"):
            return url
        binary = os.environ.get("VOICEBOT_BIN", str(TARGET / "debug/voicebot"))
        with open(SCRATCH / "roomserver.log", "wb") as log:
            self.child = subprocess.Popen(
                [binary, "roomserver", "--bind", "127.0.0.1:0"],
                env={**os.environ, "LIVEKIT_API_KEY": key(), "LIVEKIT_API_SECRET": secret()},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
            )
        signal.alarm(START_LIMIT_S)
        line = self.child.stdout.readline()
        signal.alarm(0)
        return json.loads(line)["url"]

    def __exit__(self, *_):
        if self.child:
            self.child.terminate()
            try:
                self.child.wait(START_LIMIT_S)
            except subprocess.TimeoutExpired:
                self.child.kill()


def key() -> str:
    return os.environ.get("LIVEKIT_API_KEY", "devkey")


def secret() -> str:
    return os.environ.get("LIVEKIT_API_SECRET", "secret")


def log_of(file: str, name: str) -> Path:
    return SCRATCH / "logs" / f"{file}-{name.replace('::', '-')}.log"


def is_inconclusive(inconclusive: list[dict], file: str, name: str) -> bool:
    """Whether a failed test did not reach what it tests."""
    said = log_of(file, name).read_text(errors="replace")
    return any(entry["file"] == file and entry["test"] == name and entry["says"] in said for entry in inconclusive)


def run_test(binary: str, file: str, name: str, url: str) -> tuple[str, float]:
    log = log_of(file, name)
    log.parent.mkdir(exist_ok=True)
    environment = {
        "RUST_LOG": "info",
        **{k: v for k, v in os.environ.items() if "proxy" not in k.lower()},
        "LIVEKIT_URL": url,
        "LIVEKIT_API_KEY": key(),
        "LIVEKIT_API_SECRET": secret(),
    }
    started = time.monotonic()
    with open(log, "wb") as out:
        try:
            command = [binary, "--exact", name, "--test-threads=1", "--nocapture"]
            run = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, stdout=out, stderr=out, timeout=TEST_LIMIT_S)
            verdict = "passed" if run.returncode == 0 else "failed"
        except subprocess.TimeoutExpired:
            verdict = "failed"
            out.write(f"\nended by the time limit of {TEST_LIMIT_S} s\n".encode())
    if verdict == "passed" and b"1 passed" not in log.read_bytes():
        verdict = "skipped"  # the SDK itself marks it as ignored
    return verdict, time.monotonic() - started


def reason_against(expectations: list[dict], file: str, name: str) -> str | None:
    for entry in expectations:
        if entry["file"] == file and fnmatch.fnmatchcase(name, entry["test"]):
            return entry["reason"]
    return None


def main():
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--only", action="append", help="a test file without .rs; may be given several times")
    options.add_argument("--test", help="only tests whose name contains this")
    options.add_argument("--all", action="store_true", help="run also the tests that do not apply")
    options.add_argument("--build-only", action="store_true")
    o = options.parse_args()

    files = o.only or DEFAULT_FILES
    file_of_expectations = tomllib.loads((HERE / "expectations.toml").read_text())
    expectations = file_of_expectations["not_applicable"]
    inconclusive = file_of_expectations["inconclusive"]
    metadata = workspace_metadata()
    write_package(fetched_livekit(metadata), files, metadata)
    binaries = build(files)
    if o.build_only:
        return
    totals = {"passed": 0, "failed": 0, "skipped": 0}
    table = []
    with RoomServer() as url:
        for file in files:
            listed = subprocess.run([binaries[file], "--list"], check=True, capture_output=True, text=True).stdout
            names = [line.removesuffix(": test") for line in listed.splitlines() if line.endswith(": test")]
            counts = dict.fromkeys(totals, 0)
            for name in names:
                if o.test and o.test not in name:
                    continue
                reason = None if o.all else reason_against(expectations, file, name)
                if reason:
                    verdict, detail = "skipped", f"does not apply: {reason}"
                else:
                    verdict, took_s = run_test(binaries[file], file, name, url)
                    for _ in range(REPEATS):
                        if verdict != "failed" or not is_inconclusive(inconclusive, file, name):
                            break
                        verdict, took_s = run_test(binaries[file], file, name, url)
                    detail = f"{took_s:.1f} s"
                    if verdict == "failed":
                        detail += f", see target/sdk-e2e/logs/{file}-{name.replace('::', '-')}.log"
                counts[verdict] += 1
                totals[verdict] += 1
                print(f"{verdict:8} {file}::{name} ({detail})", flush=True)
            table.append((file, counts))
    print(f"\n{'file':34}{'passed':>8}{'failed':>8}{'skipped':>9}")
    for file, counts in table:
        print(f"{file:34}{counts['passed']:>8}{counts['failed']:>8}{counts['skipped']:>9}")
    print(f"\n{totals['passed']} passed, {totals['failed']} failed, {totals['skipped']} skipped")
    sys.exit(1 if totals["failed"] or not totals["passed"] else 0)


if __name__ == "__main__":
    main()
