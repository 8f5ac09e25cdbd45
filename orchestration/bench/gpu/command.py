"""`rlvr bench gpu` as a command. Loads nothing that a machine with torch alone has not: `orchestration.__main__` comes
here without the command line's own settings."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from orchestration.bench.gpu.parts import PARTS, choose
from orchestration.bench.gpu.runner import Bench, run_parts, write_line
from orchestration.bench.gpu.table import summary

LINES_FILE, SUMMARY_FILE = "lines.jsonl", "summary.md"
_EXIT_FAILED, _EXIT_USAGE, _EXIT_INTERRUPTED = 1, 2, 130


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Its options."""
    parser.add_argument(
        "--minutes", type=int, choices=(10, 30), default=10, help="time in all; 10 leaves the longer parts out"
    )
    parser.add_argument("--only", metavar="PART,…", help="these parts alone")
    parser.add_argument("--out", metavar="DIR", help="folder of lines, summary and logs (default: bench-gpu-TIME)")
    parser.epilog = "parts: " + "; ".join(f"{part.name} ({part.text})" for part in PARTS)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    parser = argparse.ArgumentParser(prog="rlvr bench gpu", description="Measure everything that needs a GPU.")
    add_arguments(parser)
    return run(parser.parse_args(argv))


def run(arguments: argparse.Namespace) -> int:
    """Run the parts: a line of JSON on standard output for each result, at once, then tables in Markdown.

    Returns:
        The exit status: 1 when a part failed, 2 for a wrong word, 130 when it was interrupted.
    """
    try:
        parts = choose(arguments.only, minutes=arguments.minutes)
        folder = Path(arguments.out or f"bench-gpu-{time.strftime('%Y%m%d-%H%M%S')}").absolute()
        folder.mkdir(parents=True, exist_ok=True)
    except ValueError as error:
        print(f"rlvr: {error}", file=sys.stderr)
        return _EXIT_USAGE
    except OSError as error:
        print(f"rlvr: --out {error.filename} cannot be made a folder: {error.strerror}", file=sys.stderr)
        return _EXIT_USAGE
    from orchestration.bench.machine import machine_line, num_gpus

    bench = Bench(minutes=arguments.minutes, cuda=num_gpus() > 0, card=machine_line(), folder=folder)
    lines: list[dict[str, Any]] = []

    def say(line: dict[str, Any]) -> None:
        lines.append(line)
        write_line(line, folder / LINES_FILE)
        print(json.dumps(line), flush=True)

    interrupted = False
    try:
        run_parts(parts, bench, say)
    except KeyboardInterrupt:
        interrupted = True
    text = summary(lines, card=bench.card)
    (folder / SUMMARY_FILE).write_text(text + "\n", encoding="utf-8")
    print(f"\n{text}")
    print(f"rlvr: lines, summary and logs are in {folder}", file=sys.stderr)
    if interrupted:
        return _EXIT_INTERRUPTED
    return _EXIT_FAILED if any(str(line.get("status", "")).startswith("failed") for line in lines) else 0


if __name__ == "__main__":
    sys.exit(main())
