"""`rlvr prepare`: a recipe's problems as two files that any run reads, here or on S3."""

from __future__ import annotations

import json
import shlex
import tempfile
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from pathlib import Path

from orchestration.data.answer_lines import AnswerLineTask
from orchestration.data.problems import Problems
from orchestration.errors import DataError, MachineError
from orchestration.settings.config import RunConfig
from orchestration.storage.atomic import atomic_write
from orchestration.storage.cache import Progress, ignore_progress
from orchestration.storage.s3 import parse, upload
from orchestration.types import Problem
from reward_service.types import ANSWER_PREFIX

TRAIN_FILE, VALIDATION_FILE = "train.jsonl", "validation.jsonl"


def prepare(
    config: RunConfig,
    *,
    out: Path | None,
    upload_to: str | None,
    kms_key: str | None = None,
    progress: Progress = ignore_progress,
) -> str:
    """Write the training problems, with the examples among them, and the held-out ones.

    Problems with answer lines are written in GSM8K's format, others in one that the task `table` reads.

    Args:
        config: the run whose task is written.
        out: a folder; None with `upload_to`: nothing stays here.
        upload_to: s3://BUCKET/PREFIX that both files are put below.
        kms_key: encrypts them there; None: as the bucket does by itself.
        progress: told what is being done.

    Returns:
        The settings by which a run reads the files, those on S3 if they were put there.

    Raises:
        DataError: a problem cannot be said in that format, or S3 refuses.
        MachineError: the disk refuses.
    """
    if upload_to is not None:
        parse(upload_to)
    progress(f"reading the problems of {config.recipe}", 0.0)
    problems = config.data.load()
    train, validation = put_files(_contents(config, problems), out, upload_to, kms_key, progress)
    files = f"data.train_file={train} data.eval_file={validation}"
    if isinstance(config.data, AnswerLineTask):
        prefix = config.data.line_prefix()
        line = "" if prefix == ANSWER_PREFIX else " " + shlex.quote(f"data.answer_prefix={json.dumps(prefix)}")
        return f"data.kind=gsm8k {files}{line}"
    return f"data.kind=table {files} {shlex.join(_table_settings(config, problems))}"


def _table_settings(config: RunConfig, problems: Problems) -> list[str]:
    """What the task `table` has to be told to ask and to judge as the original does."""
    settings = {
        "data.prompt": "question",
        "data.reference": {key: f"reference.{key}" for key in problems.train[0].reference},
        "data.solution": "solution",
        "data.category": "category",
        "data.instruction": config.data.layout().instruction,
        **{f"data.{name}": asdict(spec) for name, spec in config.judges.items()},
        "reward.rewards": [asdict(spec) for spec in config.rewards],
    }
    return [f"{name}={json.dumps(value, ensure_ascii=False)}" for name, value in settings.items()]


def _contents(config: RunConfig, problems: Problems) -> dict[str, bytes]:
    line: Callable[[Problem], dict[str, object]] = _table_line
    if isinstance(config.data, AnswerLineTask):
        line = partial(_gsm8k_line, prefix=config.data.line_prefix())
    return {
        TRAIN_FILE: to_jsonl(map(line, (*problems.shots, *problems.train))),
        VALIDATION_FILE: to_jsonl(map(line, problems.eval)),
    }


def put_files(
    contents: dict[str, bytes], out: Path | None, upload_to: str | None, kms_key: str | None, progress: Progress
) -> list[str]:
    """Write files (name → content) into a folder, or below an S3 prefix, and say where each is.

    Args:
        contents: Name → content.
        out: None: only below `upload_to`.
        upload_to: `s3://BUCKET/PREFIX`, or None.
        kms_key: Of the server's encryption there; None: the bucket's own.
        progress: Is told of each file.

    Returns:
        Where each is, an address or a path.

    Raises:
        MachineError: A file cannot be written or uploaded.
    """
    with ExitStack() as stack:
        folder = out or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="rlvr-data-")))
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for name, content in contents.items():
                atomic_write(folder / name, content)
        except OSError as error:
            raise MachineError(f"{folder} cannot be written: {error.strerror}; choose another --out") from error
        if upload_to is None:
            return [str(folder / name) for name in contents]
        places = [str(parse(upload_to).below(name)) for name in contents]
        for number, (name, place) in enumerate(zip(contents, places, strict=True)):
            progress(f"putting {name} at {place}", (1 + number) / (1 + len(places)))
            upload(folder / name, place, kms_key=kms_key)
    return places


def to_jsonl(lines: Iterable[dict[str, object]]) -> bytes:
    """A JSON object a line."""
    return "".join(f"{json.dumps(line, ensure_ascii=False)}\n" for line in lines).encode()


def _gsm8k_line(problem: Problem, prefix: str) -> dict[str, object]:
    """`{"question": …, "answer": "working\\n#### 18"}`."""
    working = "\n".join(line for line in problem.solution.splitlines() if not line.startswith(prefix)).strip()
    if "####" in working:
        raise DataError(f"the solution of {problem.problem_id} holds '####', which ends one in this format")
    final_answer = problem.reference["final_answer"]
    return {"question": problem.question, "answer": f"{working}\n#### {final_answer}".lstrip("\n")}


def _table_line(problem: Problem) -> dict[str, object]:
    return {
        "question": problem.question,
        "reference": problem.reference,
        "solution": problem.solution,
        "category": problem.category,
    }
