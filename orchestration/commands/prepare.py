"""`rlvr prepare`: a recipe's problems as two files that any run reads, here or on S3."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path

from orchestration.data.datasets import load_problems
from orchestration.data.problems import ANSWER_PREFIX
from orchestration.errors import DataError, MachineError
from orchestration.settings.config import RunConfig
from orchestration.storage.atomic import atomic_write
from orchestration.storage.cache import Progress, ignore_progress
from orchestration.storage.s3 import parse, upload
from orchestration.types import Problem

TRAIN_FILE, VALIDATION_FILE = "train.jsonl", "validation.jsonl"


def prepare(
    config: RunConfig, *, out: Path | None, upload_to: str | None, progress: Progress = ignore_progress
) -> list[str]:
    """Write the training problems, with the examples among them, and the held-out ones, in GSM8K's format.

    Args:
        out: a folder; None with `upload_to`: nothing stays here.
        upload_to: s3://BUCKET/PREFIX that both files are put below.
        progress: told what is being done.

    Returns:
        Where the two lie, on S3 if they were put there.

    Raises:
        DataError: a problem cannot be said in that format, or S3 refuses.
        MachineError: the disk refuses.
    """
    if upload_to is not None:
        parse(upload_to)
    progress(f"reading the problems of {config.recipe}", 0.0)
    problems = load_problems(config.data)
    contents = {
        TRAIN_FILE: to_jsonl((*problems.shots, *problems.train)),
        VALIDATION_FILE: to_jsonl(problems.eval),
    }
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
            upload(folder / name, place)
    return places


def to_jsonl(problems: Iterable[Problem]) -> bytes:
    """Lines of `{"question": …, "answer": "working\\n#### 18"}`."""
    return "".join(f"{json.dumps(_item(problem), ensure_ascii=False)}\n" for problem in problems).encode()


def _item(problem: Problem) -> dict[str, str]:
    working = "\n".join(line for line in problem.solution.splitlines() if not line.startswith(ANSWER_PREFIX)).strip()
    if "####" in working:
        raise DataError(f"the solution of {problem.problem_id} holds '####', which ends one in this format")
    return {"question": problem.question, "answer": f"{working}\n#### {problem.final_answer}".lstrip("\n")}
