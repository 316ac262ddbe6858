#!/usr/bin/env python3
"""Fails when a comment line of a Rust file has more than 100 columns. Links and commands to copy cannot be broken and may."""

import pathlib
import subprocess
import sys

LIMIT = 100


def too_long(line: str) -> bool:
    text = line.strip()
    return len(line) > LIMIT and text.startswith("//") and "://" not in text and not text.lstrip("/!").startswith("     ")


def main() -> int:
    files = subprocess.run(["git", "ls-files", "*.rs"], check=True, capture_output=True, text=True).stdout.split()
    found = [
        f"{file}:{number}: {len(line)} columns"
        for file in files
        for number, line in enumerate(pathlib.Path(file).read_text().splitlines(), 1)
        if too_long(line)
    ]
    print("\n".join(found), end="\n" if found else "")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
