"""GSM8K's JSON lines as problems in the AWS article's answer format (`#### The final answer is 18`)."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

from orchestration.data.problems import Problems, answer_line, question_key
from orchestration.errors import DataError
from orchestration.settings.config import Gsm8kData
from orchestration.storage.s3 import local_file
from orchestration.types import Problem

_CALCULATOR_MARK = re.compile(r"<<[^<>]*>>")
_ANSWER_SEPARATOR = "####"
_NUMBER = re.compile(r"[-+]?\$?(\d{1,3}(?:,\d{3})+|\d+)(\.\d+)?")


def read_gsm8k(config: Gsm8kData) -> Problems:
    """Read both files; the examples are the first of the shuffled training problems, taken out of training.

    A training question that is also held out is left out of training and of the examples.

    Raises:
        DataError: a file is missing, a line is not a GSM8K item, or there are too few.
    """
    train = _shuffled(
        read_gsm8k_file(local_file(config.train_file, "data.train_file"), "data.train_file", "train"), config.seed
    )
    held_out = _shuffled(
        read_gsm8k_file(local_file(config.eval_file, "data.eval_file"), "data.eval_file", "eval"), config.seed
    )
    eval_problems = held_out[: config.num_eval]
    seen = {question_key(problem.question) for problem in eval_problems}
    candidates = [problem for problem in train if question_key(problem.question) not in seen]
    shots, rest = candidates[: config.num_shots], candidates[config.num_shots :]
    shown = {question_key(problem.question) for problem in shots}
    rest = [problem for problem in rest if question_key(problem.question) not in shown]
    return Problems(train=tuple(rest[: config.num_train]), eval=tuple(eval_problems), shots=tuple(shots))


def _read(path: str, setting: str, split: str) -> list[Problem]:
    return read_gsm8k_file(local_file(path, setting), setting, split)


def read_gsm8k_file(path: Path, setting: str, split: str) -> list[Problem]:
    """All items of a file, in its order.

    Args:
        path: JSON lines with `question` and `answer`.
        setting: the setting the path came from, for the error.
        split: goes into the ids (`gsm8k/train/17` is the file's line 17, counted from 1).

    Raises:
        DataError: the file is missing or empty, or names the first broken line.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")  # splitlines would also cut at U+2028 inside a text
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"cannot read {path} ({error.__class__.__name__}); get GSM8K's train.jsonl and test.jsonl from the openai "
            f"grade-school-math repository, and put them there or name the file with {setting}=PATH"
        ) from error
    problems = [_parse(line, path, number, split) for number, line in enumerate(lines, 1) if line.strip()]
    if not problems:
        raise DataError(f"{path} ({setting}) holds no problems")
    return problems


def _parse(line: str, path: Path, number: int, split: str) -> Problem:
    where = f"{path}, line {number}"
    try:
        item = json.loads(line)
        question, answer = item["question"], item["answer"]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{where}: not a JSON object with `question` and `answer` ({error})") from error
    if not isinstance(question, str) or not isinstance(answer, str) or not question.strip():
        raise DataError(f"{where}: `question` and `answer` must be texts")
    working, separator, final = answer.rpartition(_ANSWER_SEPARATOR)
    match = _NUMBER.fullmatch(final.strip())
    if not separator or match is None:
        raise DataError(f"{where}: `answer` must end with a line like '#### 18', got {answer.strip()[-40:]!r}")
    final_answer = final.strip().replace(",", "").replace("$", "").removeprefix("+")
    steps = _CALCULATOR_MARK.sub("", working).strip()
    return Problem(
        problem_id=f"gsm8k/{split}/{number}",
        question=question.strip(),
        final_answer=final_answer,
        solution=f"{steps}\n{answer_line(final_answer)}" if steps else answer_line(final_answer),
        category="gsm8k",
    )


def _shuffled(problems: list[Problem], seed: int) -> list[Problem]:
    random.Random(f"gsm8k/{seed}").shuffle(problems)
    return problems
