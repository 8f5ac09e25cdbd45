"""GSM8K's JSON lines as problems in the AWS article's answer format (`#### The final answer is 18`), or in GSM8K's own
(`#### 18`), which is what lm-eval's filter `strict-match` reads."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from orchestration.data.answer_lines import AnswerLineTask
from orchestration.data.hub import hub_rows
from orchestration.data.problems import Problems, answer_line, split
from orchestration.data.rows import read_rows
from orchestration.data.task import DataFile, PromptLayout, PromptStyle, register
from orchestration.data.tasks.gsm8k_examples import FIXED_EXAMPLES
from orchestration.errors import DataError
from orchestration.storage.s3 import local_file
from orchestration.types import Problem
from reward_service.types import ANSWER_PREFIX

HUB_DATASET, HUB_SUBSET = "openai/gsm8k", "main"
MAX_SHOTS = 16

_CALCULATOR_MARK = re.compile(r"<<[^<>]*>>")
_ANSWER_SEPARATOR = "####"
_NUMBER = re.compile(r"[-+]?\$?(\d{1,3}(?:,\d{3})+|\d+)(\.\d+)?")


@register
class Gsm8k(AnswerLineTask):
    """GSM8K files (JSON lines with `question` and `answer`), in the AWS article's answer format."""

    name: ClassVar[str] = "gsm8k"

    train_file: DataFile = Field(
        "gsm8k/train.jsonl", description="Training problems: .jsonl, or the same columns as .json, .csv or .parquet."
    )
    eval_file: DataFile = Field("gsm8k/test.jsonl", description="Held-out problems.")
    num_train: int | None = Field(None, ge=1, description="Use only the first so many after shuffling; all if unset.")
    num_eval: int = Field(100, ge=1, description="Held-out problems used.")
    num_shots: int = Field(8, ge=0, le=MAX_SHOTS, description="Worked examples in front of the question.")
    examples: Literal["training", "fixed"] = Field(
        "training",
        description="Where they are from. training: taken out of the training problems; fixed: eight that belong to "
        "no data set, the same in every run, as the AWS article does it.",
    )
    shots_file: DataFile | None = Field(
        None, description="Take them from this file instead, in its order, such as `rlvr prepare` writes."
    )
    style: PromptStyle | Literal["article"] = Field(
        "auto",
        description="chat, plain, or auto: chat where the tokenizer has a template; article: the AWS article's plain "
        "text, `Question: …` and `Solution: Let's think step by step. …`, without an instruction.",
    )
    seed: int = Field(0, ge=0, description="Seed of the shuffle.")
    answer_prefix: str = Field(
        ANSWER_PREFIX,
        pattern=r"^\S(.{0,98}\S)?$",
        description="How an answer line begins; '####' is GSM8K's own way, which lm-eval's strict-match reads.",
    )

    def line_prefix(self) -> str:
        return self.answer_prefix

    def layout(self) -> PromptLayout:
        if self.style != "article":
            return replace(super().layout(), style=self.style)
        label = "Solution: Let's think step by step."
        return PromptLayout(style="plain", answer_label=label, answer_joint=" ")

    def check(self) -> None:
        if self.train_file == self.eval_file:
            raise ValueError(f"data.train_file and data.eval_file are the same file: {self.train_file}")
        if self.shots_file is None and self.examples == "fixed" and self.num_shots > len(FIXED_EXAMPLES):
            raise ValueError(
                f"data.num_shots={self.num_shots}: there are {len(FIXED_EXAMPLES)} fixed examples; lower it, or set "
                f"data.examples=training"
            )

    def load(self) -> Problems:
        """Both files; the examples are the first of the shuffled training problems, taken out of training, unless
        they are fixed or in a file of their own.

        A training question that is also held out, or an example, is left out of training.

        Raises:
            DataError: a file is missing, a line is not a GSM8K item, or there are too few.
        """
        given = self._given_shots()
        taken = {example.text for example in given or ()}
        train = [item for item in self._read(self.train_file, "data.train_file", "train") if item.text not in taken]
        problems = split(
            train,
            self._read(self.eval_file, "data.eval_file", "eval"),
            num_eval=self.num_eval,
            num_shots=self.num_shots if given is None else 0,
            num_train=self.num_train,
            shuffle=f"gsm8k/{self.seed}",
        )
        return problems if given is None else replace(problems, shots=given)

    def _given_shots(self) -> tuple[Problem, ...] | None:
        """Examples that do not come from the training problems; None: they do."""
        if self.shots_file is not None:
            found = self._read(self.shots_file, "data.shots_file", "shot")
        elif self.examples == "fixed":
            found = fixed_examples(self.answer_prefix)
        else:
            return None
        if len(found) < self.num_shots:
            raise DataError(f"data.num_shots={self.num_shots}, and data.shots_file holds {len(found)}; lower it")
        return tuple(found[: self.num_shots])

    def _read(self, path: str, setting: str, part: str) -> list[Problem]:
        return read_gsm8k_file(local_file(path, setting), setting, part, self.answer_prefix)


def fixed_examples(prefix: str = ANSWER_PREFIX) -> list[Problem]:
    """The eight that belong to no data set."""
    return [
        Problem(
            problem_id=f"gsm8k/example/{number}",
            question=question,
            reference={"final_answer": answer},
            solution=f"{working}\n{answer_line(answer, prefix)}",
            category="gsm8k",
        )
        for number, (question, working, answer) in enumerate(FIXED_EXAMPLES, 1)
    ]


def read_gsm8k_file(path: Path, setting: str, split: str, prefix: str = ANSWER_PREFIX) -> list[Problem]:
    """All items of a file, in its order.

    Args:
        path: JSON lines with `question` and `answer`; or .json, .csv or .parquet with these columns.
        setting: the setting the path came from, for the error.
        split: goes into the ids (`gsm8k/train/17` is the file's line 17, counted from 1).
        prefix: how the answer lines of the worked solutions begin.

    Raises:
        DataError: the file is missing or empty, or names the first broken line.
    """
    if path.suffix.lower() in (".json", ".csv", ".parquet"):
        rows: Iterable[tuple[int, Any]] = enumerate(read_rows(path, setting), 1)
        unit = "row"
    else:
        rows, unit = _lines(path, setting), "line"
    problems = [_problem(item, f"{path}, {unit} {number}", f"{split}/{number}", prefix) for number, item in rows]
    if not problems:
        raise DataError(f"{path} ({setting}) holds no problems")
    return problems


def read_gsm8k_hub(split: str, prefix: str = ANSWER_PREFIX, *, setting: str) -> list[Problem]:
    """All items of one of the hub's two splits.

    Args:
        split: `train` or `test`.
        prefix: What stands before the answer in the worked solutions of the examples.
        setting: That asked for it, for messages.

    Raises:
        ConfigError: What reads the hub is not installed.
        DataError: It cannot be read, or an item is not GSM8K's.
    """
    rows = hub_rows(HUB_DATASET, HUB_SUBSET, split, setting=setting)
    where = f"{HUB_DATASET}, split {split}, row"
    return [_problem(row, f"{where} {number}", f"{split}/{number}", prefix) for number, row in enumerate(rows, 1)]


def _lines(path: Path, setting: str) -> Iterator[tuple[int, Any]]:
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")  # splitlines would also cut at U+2028 inside a text
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"cannot read {path} ({error.__class__.__name__}); get GSM8K's train.jsonl and test.jsonl from the openai "
            f"grade-school-math repository, and put them there or name the file with {setting}=PATH"
        ) from error
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except ValueError as error:
                raise DataError(_not_an_item(f"{path}, line {number}", error)) from error


def _not_an_item(where: str, error: Exception) -> str:
    return f"{where}: not a JSON object with `question` and `answer` ({error})"


def _problem(item: Any, where: str, name: str, prefix: str) -> Problem:
    try:
        question, answer = item["question"], item["answer"]
    except (KeyError, TypeError) as error:
        raise DataError(_not_an_item(where, error)) from error
    if not isinstance(question, str) or not isinstance(answer, str) or not question.strip():
        raise DataError(f"{where}: `question` and `answer` must be texts")
    working, separator, final = answer.rpartition(_ANSWER_SEPARATOR)
    match = _NUMBER.fullmatch(final.strip())
    if not separator or match is None:
        raise DataError(f"{where}: `answer` must end with a line like '#### 18', got {answer.strip()[-40:]!r}")
    final_answer = final.strip().replace(",", "").replace("$", "").removeprefix("+")
    steps = _CALCULATOR_MARK.sub("", working).strip()
    return Problem(
        problem_id=f"gsm8k/{name}",
        question=question.strip(),
        reference={"final_answer": final_answer},
        solution="\n".join([*([steps] if steps else []), answer_line(final_answer, prefix)]),
        category="gsm8k",
    )
