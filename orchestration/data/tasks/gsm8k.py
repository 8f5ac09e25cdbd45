"""GSM8K's JSON lines as problems in the AWS article's answer format (`#### The final answer is 18`), or in GSM8K's own
(`#### 18`), which is what lm-eval's filter `strict-match` reads."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import ClassVar

from pydantic import Field

from orchestration.data.answer_lines import AnswerLineTask
from orchestration.data.problems import Problems, answer_line, split
from orchestration.data.task import DataFile, register
from orchestration.errors import DataError
from orchestration.storage.s3 import local_file
from orchestration.types import Problem
from reward_service.types import ANSWER_PREFIX

_CALCULATOR_MARK = re.compile(r"<<[^<>]*>>")
_ANSWER_SEPARATOR = "####"
_NUMBER = re.compile(r"[-+]?\$?(\d{1,3}(?:,\d{3})+|\d+)(\.\d+)?")


@register
class Gsm8k(AnswerLineTask):
    """GSM8K files (JSON lines with `question` and `answer`), in the AWS article's answer format."""

    name: ClassVar[str] = "gsm8k"

    train_file: DataFile = Field("gsm8k/train.jsonl", description="Training problems.")
    eval_file: DataFile = Field("gsm8k/test.jsonl", description="Held-out problems.")
    num_train: int | None = Field(None, ge=1, description="Use only the first so many after shuffling; all if unset.")
    num_eval: int = Field(100, ge=1, description="Held-out problems used.")
    num_shots: int = Field(8, ge=0, le=8, description="Worked examples in front of the question.")
    seed: int = Field(0, ge=0, description="Seed of the shuffle.")
    answer_prefix: str = Field(
        ANSWER_PREFIX,
        pattern=r"^\S(.{0,98}\S)?$",
        description="How an answer line begins; '####' is GSM8K's own way, which lm-eval's strict-match reads.",
    )

    def line_prefix(self) -> str:
        return self.answer_prefix

    def check(self) -> None:
        if self.train_file == self.eval_file:
            raise ValueError(f"data.train_file and data.eval_file are the same file: {self.train_file}")

    def load(self) -> Problems:
        """Both files; the examples are the first of the shuffled training problems, taken out of training.

        A training question that is also held out is left out of training and of the examples.

        Raises:
            DataError: a file is missing, a line is not a GSM8K item, or there are too few.
        """
        return split(
            self._read(self.train_file, "data.train_file", "train"),
            self._read(self.eval_file, "data.eval_file", "eval"),
            num_eval=self.num_eval,
            num_shots=self.num_shots,
            num_train=self.num_train,
            shuffle=f"gsm8k/{self.seed}",
        )

    def _read(self, path: str, setting: str, part: str) -> list[Problem]:
        return read_gsm8k_file(local_file(path, setting), setting, part, self.answer_prefix)


def read_gsm8k_file(path: Path, setting: str, split: str, prefix: str = ANSWER_PREFIX) -> list[Problem]:
    """All items of a file, in its order.

    Args:
        path: JSON lines with `question` and `answer`.
        setting: the setting the path came from, for the error.
        split: goes into the ids (`gsm8k/train/17` is the file's line 17, counted from 1).
        prefix: how the answer lines of the worked solutions begin.

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
    problems = [_parse(line, path, number, split, prefix) for number, line in enumerate(lines, 1) if line.strip()]
    if not problems:
        raise DataError(f"{path} ({setting}) holds no problems")
    return problems


def _parse(line: str, path: Path, number: int, split: str, prefix: str) -> Problem:
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
        reference={"final_answer": final_answer},
        solution="\n".join([*([steps] if steps else []), answer_line(final_answer, prefix)]),
        category="gsm8k",
    )
