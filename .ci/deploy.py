#!/usr/bin/env python3
"""Fails when deploy/ or docs/operations.md name a setting, variable, metric, label, path, command, alert or test that the code
does not have, or leave out what they should have. Reads files only.

`.ci/deploy.py --rules` prints the dashboard's queries as a rule file instead, for promtool."""

import json
import pathlib
import re
import sys
import tomllib

ROOT = pathlib.Path(__file__).resolve().parent.parent
DOC = ROOT / "docs/operations.md"
DASHBOARD = ROOT / "deploy/monitoring/dashboard.json"
ALERTS = ROOT / "deploy/monitoring/alerts.yaml"
# What the worker needs after worker.drain_timeout_s: the calls' last words and records, then the delivery's.
AFTER_DRAIN_S = 60
# Variables that are not ours: those of the images beside the worker, of AWS's and of Docker's own.
FOREIGN = {"LIVEKIT_KEYS", "LIVEKIT_CONFIG", "SIP_CONFIG_BODY", "EGRESS_CONFIG_BODY"}

faults: list[str] = []


def fault(file: pathlib.Path, what: str) -> None:
    faults.append(f"{file.relative_to(ROOT)}: {what}")


def sources(folder: str) -> str:
    return "\n".join(path.read_text() for path in sorted((ROOT / folder).rglob("*.rs")))


def keys_of(table: dict, prefix: str = "") -> set[str]:
    found = set()
    for name, value in table.items():
        found.add(prefix + name)
        for inner in value if isinstance(value, list) else [value]:
            if isinstance(inner, dict):
                found |= keys_of(inner, f"{prefix}{name}.")
    return found


def settings() -> set[str]:
    """All keys; a unit test sees to it that each stands in this file. Those without a default are comments."""
    text = (ROOT / "config/voicebot.toml").read_text()
    return keys_of(tomllib.loads(re.sub(r"(?m)^# (\[\[|[a-z_]+ = )", r"\1", text)))


def metrics(code: str) -> set[str]:
    named = re.findall(r'const [A-Z_]+: &str = "((?:lk_agents|voicebot|process)_[a-z0-9_]+)"', code)
    direct = re.findall(r'(?:gauge|counter|histogram)!\(\s*"([a-z0-9_]+)"', code)
    return set(named) | set(direct)


def metrics_in(text: str) -> set[str]:
    names = set(re.findall(r"\b(?:lk_agents|voicebot|process)_[a-z0-9_]+[a-z0-9]\b", text))
    return {re.sub(r"(_seconds)_(bucket|sum|count)$", r"\1", name) for name in names}


def check_settings(file: pathlib.Path, text: str, keys: set[str]) -> None:
    for name in set(re.findall(r"\bVOICEBOT__(\w+)", text)):
        key = name.lower().replace("__", ".")
        if key not in keys and key != "section.key":
            fault(file, f"VOICEBOT__{name} sets no key of config/voicebot.toml")
    sections = {key for key in keys if "." not in key}
    for name in set(re.findall(r"(?<![\w./-])([a-z]+(?:\.[a-z0-9_]+)+)\b(?![\w/(-])", text)):
        section, last = name.split(".")[0], name.rsplit(".", 1)[1]
        if section in sections and name not in keys and last not in {"toml", "env", "yaml", "rs", "svc", "sh"}:
            fault(file, f"{name} is no key of config/voicebot.toml")


def check_variables(file: pathlib.Path, text: str, code: str) -> None:
    """Variables that the worker is given, or that the text names as its own."""
    for name in set(re.findall(r"(?m)\b((?:LIVEKIT|OPENAI|CRM|PERSONA|MONGODB|AWS|PAGE)_[A-Z_]+)\b(?=[=:`, ])", text)):
        used_by_compose = f"${{{name}" in (ROOT / "deploy/compose.yaml").read_text()
        if f'"{name}"' not in code and name not in FOREIGN and not used_by_compose:
            fault(file, f"{name} is no variable that the code reads")


def check_metrics(file: pathlib.Path, text: str, known: set[str], code: str) -> None:
    for name in sorted(metrics_in(text) - known):
        fault(file, f"{name} is no metric of the code")
    for label, values in re.findall(r'\b(outcome|answer|state|part|request)=~?"([a-z_|]+)"', text):
        for value in values.split("|"):
            if f'"{value}"' not in code:
                fault(file, f'{label}="{value}": no metric has this value')


def check_commands(file: pathlib.Path, text: str) -> None:
    code = sources("src/cli")
    enums = re.findall(r"(?ms)^(?:pub )?enum \w*Command \{$(.*?)^\}$", code)
    variants = [name for body in enums for name in re.findall(r"(?m)^    ([A-Z]\w*)(?:\(| \{|,)", body)]
    commands = {re.sub(r"(?<!^)(?=[A-Z])", "-", name).lower() for name in variants}
    for line in re.findall(r"(?m)(?:^ {4}|`)voicebot ([^`\n#]+)", text):
        words = line.split()
        heads = [word for word in words[:2] if re.fullmatch(r"[a-z-]+", word) and not word.startswith("-")]
        for word in heads:
            if word not in commands:
                fault(file, f"there is no command voicebot {line.strip()}")
        for option in re.findall(r"(?<!\S)--([a-z-]+)", line):
            if not re.search(rf"\b{option.replace('-', '_')}\b", code):
                fault(file, f"voicebot {line.strip()}: there is no option --{option}")


def check_dashboard(known: set[str]) -> None:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    shown = set().union(*(metrics_in(query) for query in queries()))
    for name in sorted(known - shown):
        fault(DASHBOARD, f"{name} is a metric of the code and in no panel")
    if len({panel["id"] for panel in panels}) != len(panels):
        fault(DASHBOARD, "two panels have one id")
    taken: dict[tuple[int, int], str] = {}
    for panel in panels:
        place = panel["gridPos"]
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                if (x, y) in taken or x >= 24:
                    fault(DASHBOARD, f"the panel {panel['title']!r} lies on {taken.get((x, y), 'no column')!r}")
                    return
                taken[x, y] = panel["title"]


def queries() -> list[str]:
    return [target["expr"] for panel in json.loads(DASHBOARD.read_text())["panels"] for target in panel.get("targets", [])]


def check_alerts() -> None:
    alerts = set(re.findall(r"- alert: (\w+)", ALERTS.read_text()))
    tested = set(re.findall(r"alertname: (\w+)", (ALERTS.parent / "alerts.test.yaml").read_text()))
    told = set(re.findall(r"\bVoicebot[A-Z]\w+", DOC.read_text()))
    for missing, where in ((alerts - told, DOC), (alerts - tested, ALERTS.parent / "alerts.test.yaml")):
        for name in sorted(missing):
            fault(where, f"says nothing of the alert {name}")
    for name in sorted((told | tested) - alerts):
        fault(ALERTS, f"has no alert {name}, which others speak of")


def check_patience(drain_s: int) -> None:
    """Nobody kills a worker that still drains."""
    unit, compose, pod = (ROOT / "deploy" / name for name in ("voicebot@.service", "compose.yaml", "kubernetes/voicebot.yaml"))
    seconds = {
        unit: re.findall(r"(?m)^TimeoutStopSec=(\d+)$", unit.read_text()),
        pod: re.findall(r"terminationGracePeriodSeconds: (\d+)", pod.read_text()),
        compose: [str(int(minutes) * 60) for minutes in re.findall(r"stop_grace_period: (\d+)m", compose.read_text())],
    }
    for file, found in seconds.items():
        if not found or min(map(int, found)) < drain_s + AFTER_DRAIN_S:
            fault(file, f"waits {found} s for the end of a worker that may drain for {drain_s} s and then some")
    if "KillMode=process" not in unit.read_text():
        fault(unit, "signals the calls' processes as well, which end at once then")


def check_image() -> None:
    file = ROOT / "deploy/Dockerfile"
    text, package = file.read_text(), tomllib.loads((ROOT / "Cargo.toml").read_text())["workspace"]["package"]
    shipped = re.search(r"cargo build (--profile dist .*?)\s+#", (ROOT / "README.md").read_text())
    if not shipped or shipped[1] not in text:
        fault(file, "does not build what README calls the production build")
    if f"FROM rust:{package['rust-version']}-" not in text:
        fault(file, f"does not build with Rust {package['rust-version']}, the rust-version of Cargo.toml")
    for path in (ROOT / "deploy").rglob("*"):
        if path.is_file():
            for version in re.findall(r"(?<!/)\bvoicebot:(\d+\.\d+\.\d+)", path.read_text()):
                if version != package["version"]:
                    fault(path, f"names voicebot:{version}; the version is {package['version']}")
    context = re.findall(r"(?m)^!(.*)$", (ROOT / ".dockerignore").read_text())
    for source in re.findall(r"(?m)^COPY (?:--chmod=\d+ )?((?:config|deploy)\S*) ", text):
        if not any(source == kept or source.startswith(f"{kept}/") for kept in context):
            fault(file, f"copies {source}, which .dockerignore leaves out")


def main() -> int:
    if sys.argv[1:] == ["--rules"]:
        rules = [
            {"record": f"dashboard:query{number}", "expr": query.replace("$__rate_interval", "5m").replace("$instance", ".*")}
            for number, query in enumerate(queries())
        ]
        print(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))
        return 0
    code, keys = sources("src"), settings()
    known = metrics(code)
    files = [path for path in sorted((ROOT / "deploy").rglob("*")) if path.is_file()] + [DOC]
    files = [path for path in files if not path.is_relative_to(ROOT / "deploy/data") and path.name != ".env"]
    for file in files:
        text = file.read_text()
        check_settings(file, text, keys)
        check_variables(file, text, code)
        check_metrics(file, text, known, code)
        check_commands(file, text)
        asked = r"path: (/\w+)|https?://[^\s/\"]+:80\d\d(/\w+)|GET (/\w+) HTTP|`(?:GET |POST )?(/[a-z]+)`"
        for path in {path for match in re.findall(asked, text) for path in match if path} - {"/data", "/recordings"}:
            if f'"{path}"' not in code:
                fault(file, f"{path} is no path of the worker's page")
    tests = sources("tests/it")
    for name in set(re.findall(r"`([a-z]+(?:_[a-z]+){4,})`", DOC.read_text())):
        if f"fn {name}(" not in tests and name not in known:
            fault(DOC, f"there is no test {name}")
    for path in set(re.findall(r"`(deploy/[\w./@-]+|src/[\w./]+\.rs)`", DOC.read_text())):
        if path != "deploy/.env" and not (ROOT / path).exists():
            fault(DOC, f"there is no {path}")
    for title in set(re.findall(r'`decisions\.md`, "([^"]+)"', DOC.read_text())):
        if title.lower() not in (ROOT / "docs/decisions.md").read_text().lower():
            fault(DOC, f"docs/decisions.md has nothing that begins with {title!r}")
    check_dashboard(known)
    check_alerts()
    check_patience(tomllib.loads((ROOT / "config/voicebot.toml").read_text())["worker"]["drain_timeout_s"])
    check_image()
    print("\n".join(sorted(set(faults))), end="\n" if faults else "")
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main())
