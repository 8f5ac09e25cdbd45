"""`rlvr prepare gsm8k --source …`: the data set divided, with examples, in three formats and with a data card."""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestration.commands.prepare import TRAIN_FILE, VALIDATION_FILE, put_files, to_jsonl
from orchestration.data import card
from orchestration.data.prepared import Prepared, divide, row
from orchestration.data.tasks.gsm8k import (
    HUB_DATASET,
    MAX_SHOTS,
    Gsm8k,
    fixed_examples,
    read_gsm8k_file,
    read_gsm8k_hub,
)
from orchestration.data.tasks.gsm8k_examples import FIXED_EXAMPLES
from orchestration.errors import ConfigError
from orchestration.storage.cache import Progress, ignore_progress
from orchestration.storage.s3 import local_file
from orchestration.types import Problem
from reward_service.types import ANSWER_PREFIX

HUB = "hub"
SHOTS_FILE, CARD_FILE, CARD_JSON, LICENCE_FILE = "shots.jsonl", "DATA_CARD.md", "card.json", "LICENSE"


@dataclass(frozen=True, kw_only=True, slots=True)
class PrepareOptions:
    """What the command line says."""

    source: str | None = None
    """A file, or `hub`; None: the task's `train_file` where it is there, else the hub."""
    test: str | None = None
    """File of test questions; None: the hub's, or test.jsonl beside the source."""
    shots: int | None = None
    """Worked examples; None: the task's `num_shots`."""
    validation: float = 0.1
    seed: int = 42

    def given(self) -> bool:
        """Whether anything was asked for."""
        return self != PrepareOptions()


def prepare_gsm8k(
    task: Gsm8k,
    options: PrepareOptions,
    *,
    out: Path | None,
    upload_to: str | None,
    kms_key: str | None = None,
    progress: Progress = ignore_progress,
) -> str:
    """Write train and validation as .jsonl, .json and .parquet, the examples, and the data card.

    Args:
        task: how problems are asked: its style, examples and answer line.
        out: a folder; None with `upload_to`: nothing stays here.
        upload_to: s3://BUCKET/PREFIX that the files are put below.
        kms_key: encrypts them there.
        progress: told what is being done.

    Returns:
        The settings by which a run reads the files.

    Raises:
        ConfigError: an option is out of range.
        DataError: a file is missing or broken, or there are too few problems.
        MachineError: the disk refuses.
    """
    shots = task.num_shots if options.shots is None else options.shots
    _check(options, shots, task)
    source = options.source or (task.train_file if Path(task.train_file).is_file() else HUB)
    progress(f"reading GSM8K from {source}", 0.0)
    problems, origin, licence = _read(source, task.answer_prefix)
    test = _test_problems(source, options.test, task.answer_prefix)
    progress("looking for test questions and near-duplicates", 0.3)
    prepared = divide(
        problems,
        test,
        shots=shots,
        validation=options.validation,
        seed=options.seed,
        fixed=fixed_examples(task.answer_prefix) if task.examples == "fixed" else None,
    )
    contents = _contents(prepared, task)
    made_with = {"shots": shots, "validation": options.validation, "seed": options.seed} | {
        name: getattr(task, name) for name in ("style", "examples", "answer_prefix")
    }
    hashes = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    said = card.facts(prepared, settings=made_with, source=origin, licence=licence[0], hashes=hashes)
    contents[CARD_JSON] = (json.dumps(said, indent=2, ensure_ascii=False) + "\n").encode()
    contents[CARD_FILE] = card.text(said, prepared).encode()
    if licence[1] is not None:
        contents[LICENCE_FILE] = licence[1]
    places = dict(zip(contents, put_files(contents, out, upload_to, kms_key, progress), strict=True))
    return _settings(places, task, shots)


def _check(options: PrepareOptions, shots: int, task: Gsm8k) -> None:
    most = len(FIXED_EXAMPLES) if task.examples == "fixed" else MAX_SHOTS
    if not 0 <= shots <= most:
        kind = "fixed examples" if task.examples == "fixed" else "worked examples"
        raise ConfigError(f"--shots {shots}: from 0 to {most} {kind} are possible")
    if not 0 < options.validation < 1:
        raise ConfigError(f"--validation {options.validation:g} is a share of the problems: between 0 and 1")
    if options.seed < 0:
        raise ConfigError(f"--seed {options.seed} must not be negative")


def _read(source: str, prefix: str) -> tuple[list[Problem], dict[str, Any], tuple[str, bytes | None]]:
    """The problems, where they come from, and the licence: what it is called and its text."""
    if source == HUB:
        problems = read_gsm8k_hub("train", prefix, setting="--source")
        return problems, {"data set": HUB_DATASET, "split": "train"}, ("MIT, as the hub's data card says", None)
    path = local_file(source, "--source")
    problems = read_gsm8k_file(path, "--source", "train", prefix)
    origin = {"file": path.name, "problems": len(problems), "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    beside = path.parent / LICENCE_FILE
    if not beside.is_file():
        return problems, origin, (f"not stated: there is no {LICENCE_FILE} beside the source", None)
    text = beside.read_bytes()
    lines = [line.strip() for line in text.decode("utf-8", "replace").splitlines() if line.strip()]
    return problems, origin, (", ".join(lines[:2]) or "empty", text)


def _test_problems(source: str, test: str | None, prefix: str) -> list[Problem] | None:
    if test is None and source == HUB:
        return read_gsm8k_hub("test", prefix, setting="--source")
    beside = Path(source).with_name("test.jsonl")
    if test is None and beside.is_file() and beside != Path(source):
        test = str(beside)
    return None if test is None else read_gsm8k_file(local_file(test, "--test"), "--test", "test", prefix)


def _contents(prepared: Prepared, task: Gsm8k) -> dict[str, bytes]:
    problems, layout = prepared.problems, task.layout()
    contents = {}
    for name, members in ((TRAIN_FILE, problems.train), (VALIDATION_FILE, problems.eval)):
        rows = [row(problem, problems.shots, layout, task.answer_prefix) for problem in members]
        stem = Path(name).stem
        contents[name] = to_jsonl(rows)
        contents[f"{stem}.json"] = (json.dumps(rows, ensure_ascii=False, indent=1) + "\n").encode()
        contents[f"{stem}.parquet"] = _parquet(rows)
    contents[SHOTS_FILE] = to_jsonl(row(shot, (), layout, task.answer_prefix) for shot in problems.shots)
    return contents


def _parquet(rows: Sequence[dict[str, Any]]) -> bytes:
    import pyarrow
    from pyarrow import parquet

    sink = pyarrow.BufferOutputStream()
    parquet.write_table(pyarrow.Table.from_pylist(list(rows)), sink, compression="zstd")
    content: bytes = sink.getvalue().to_pybytes()
    return content


def _settings(places: dict[str, str], task: Gsm8k, shots: int) -> str:
    settings: dict[str, Any] = {
        "data.kind": "gsm8k",
        "data.train_file": places[TRAIN_FILE],
        "data.eval_file": places[VALIDATION_FILE],
        "data.num_shots": shots,
    }
    if shots:
        settings["data.shots_file"] = places[SHOTS_FILE]
    if task.style != "auto":
        settings["data.style"] = task.style
    if task.answer_prefix != ANSWER_PREFIX:
        settings["data.answer_prefix"] = json.dumps(task.answer_prefix)
    return " ".join(shlex.quote(f"{name}={value}") for name, value in settings.items())
