"""`rlvr trace`: one completion's way through a run, or the proof that a run's files belong together."""

from __future__ import annotations

import json
import sys
from argparse import ArgumentTypeError
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from re import fullmatch
from typing import Any

from orchestration.commands.arguments import add_json, add_run_dir
from orchestration.errors import ConfigError


def add_trace(commands: Any) -> None:
    """Adds `trace` to the commands of `rlvr`."""
    trace = commands.add_parser(
        "trace",
        help="where a completion came from, how it was scored, which update it went into; or --verify",
        description="All that a run's folder knows of one completion, with the audit log's chain verified; or, with "
        "--verify, whether log, completions, metrics, records and adapters belong together: exit status 1 and each "
        "file named where they do not. `rlvr train … audit=true` keeps log and digests.",
    )
    add_run_dir(trace)
    trace.add_argument("completion_id", metavar="ID", nargs="?", help="STEP/GROUP/MEMBER, as 12/0/3")
    trace.add_argument(
        "--gradient",
        action="store_true",
        help="learn the step again from its record, as `rlvr replay` does, and measure the completion's share of its "
        "gradient",
    )
    trace.add_argument("--verify", action="store_true", help="look at every file of the folder")
    trace.add_argument("--expect-head", metavar="HASH", type=_digest, help="the trail's head, as the run's end said it")
    add_json(trace)
    trace.set_defaults(run=_trace)


def _digest(text: str) -> str:
    if fullmatch(r"[0-9a-f]{64}", text) is None:
        raise ArgumentTypeError(f"{text!r} is not a SHA-256 of 64 hexadecimal digits")
    return text


def _trace(arguments: Any) -> int:
    if arguments.verify == (arguments.completion_id is not None):
        raise ConfigError("what of the run? give a completion's id, as 12/0/3, or --verify")
    if arguments.verify:
        return _verify(arguments)
    from orchestration.trace.completion import trace_completion
    from orchestration.trace.words import completion_in_words

    found = trace_completion(arguments.run_dir, arguments.completion_id)
    if arguments.gradient:
        found["gradient"] = _gradient(arguments.run_dir, arguments.completion_id)
    print(json.dumps(found) if arguments.json else completion_in_words(found))
    return int(bool(found["audit"] and found["audit"]["findings"]))


def _verify(arguments: Any) -> int:
    from orchestration.trace.verify import verify_run
    from orchestration.trace.words import verified_in_words

    found = verify_run(arguments.run_dir, expected_head=arguments.expect_head)
    print(json.dumps({"intact": found.intact, **asdict(found)}) if arguments.json else verified_in_words(found))
    return int(not found.intact)


def _gradient(run_dir: Path, completion_id: str) -> Mapping[str, Any]:
    """The completion's share, and whether the step that was learned again is the recorded one."""
    from orchestration.commands.replay import ReplayOptions, run_replay
    from orchestration.report.progress import progress_printer
    from orchestration.trace.completion import parse_id

    step, group, member = parse_id(completion_id)
    options = ReplayOptions(run_dir=run_dir, step=step, rollout=False, completion=(group, member))
    with progress_printer(sys.stderr) as progress:
        replayed = run_replay(options, progress)
    kept = {name: replayed[name] for name in ("from_step", "before_equal", "equal")}
    return {**kept, "in_loss": replayed["gradient"] is not None, **(replayed["gradient"] or {})}
