"""Problems from anybody's table: a file, or a data set of the hub, and which of its columns is what."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from pydantic import Field

from orchestration.data.hub import hub_rows
from orchestration.data.problems import INSTRUCTION, Problems, answer_line, split
from orchestration.data.rows import Row, cell, read_rows
from orchestration.data.task import DataFile, Judges, PromptLayout, PromptStyle, Task, register
from orchestration.errors import DataError
from orchestration.storage.s3 import local_file
from orchestration.types import ROLES, Message, Problem, is_message
from reward_service.types import ANSWER_PREFIX, RewardSpec

_INSTRUCTIONS = {
    "number": INSTRUCTION,
    "expression": "Solve the problem. Put the final answer into \\boxed{}.",
    "text": f"Answer the question. End with {ANSWER_PREFIX} followed by the answer.",
    "other": "",
}
_REWARDS = {
    "number": (RewardSpec(name="gsm8k_format"), RewardSpec(name="gsm8k_correctness")),
    "expression": (RewardSpec(name="math"),),
    "text": (RewardSpec(name="exact"),),
    "other": (),
}
_JUDGES = {
    "number": Judges(strict=RewardSpec(name="gsm8k_correctness"), lenient=RewardSpec(name="last_number")),
    "expression": Judges(strict=RewardSpec(name="math")),
    "text": Judges(strict=RewardSpec(name="exact")),
    "other": Judges(),
}


@register
class Table(Task):
    """Any JSON lines, JSON, CSV or parquet file, or a data set of the hub, with a map of its columns.

    data=table data.train_file=problems.csv data.prompt=question data.reference='{final_answer: answer}'
    """

    name: ClassVar[str] = "table"

    train_file: DataFile | None = Field(None, description="Training problems: .jsonl, .json, .csv, .tsv or .parquet.")
    eval_file: DataFile | None = Field(None, description="Held-out problems; unset: split off the training problems.")
    dataset: str | None = Field(
        None, description="Instead of files: a data set of the hub, by its id (needs the package `datasets`)."
    )
    subset: str | None = Field(None, description="Of the data set: its configuration, such as `main`.")
    train_split: str = Field("train", description="Of the data set: the split that is trained on.")
    eval_split: str | None = Field(None, description="The split that is held out; unset: split off the training split.")
    prompt: str = Field("prompt", description="Column of the question: a text, or messages with role and content.")
    reference: dict[str, str] = Field(
        default_factory=lambda: {"final_answer": "answer"},
        min_length=1,
        description="Which column is which key of the reference that the rewards read; `a.b` reaches into an object, "
        "`a.0` into a list.",
    )
    solution: str | None = Field(
        None, description="Column of a worked solution as the model should write it, for the examples."
    )
    category: str | None = Field(None, description="Column of a kind or difficulty.")
    answers: Literal["number", "expression", "text", "other"] = Field(
        "number",
        description="What final_answer is; it decides the instruction, the rewards and the judges that hold unless "
        "others are set. number: on an answer line; expression: in a box, by `math`; text: on an answer line, by "
        "`exact`; other: set reward.rewards.",
    )
    instruction: str | None = Field(
        None, description="System message, or first line of a plain prompt: how to answer; unset: by `answers`."
    )
    style: PromptStyle = Field("auto", description="chat, plain, or auto: chat where the tokenizer has a template.")
    strict: RewardSpec | None = Field(None, description="Judge of held-out answers: 1 right, 0 wrong; by `answers`.")
    lenient: RewardSpec | None = Field(None, description="A second, lenient one.")
    num_train: int | None = Field(None, ge=1, description="Use only the first so many after shuffling; all if unset.")
    num_eval: int = Field(100, ge=1, description="Held-out problems used.")
    seed: int = Field(0, ge=0, description="Seed of the shuffle.")

    def check(self) -> None:
        if (self.train_file is None) == (self.dataset is None):
            raise ValueError("data.kind=table reads either data.train_file or data.dataset: give one of them")
        if self.train_file is not None and self.train_file == self.eval_file:
            raise ValueError(
                f"data.train_file and data.eval_file are the same file: {self.train_file}; leave the second out, and "
                f"data.num_eval problems are split off"
            )

    def load(self) -> Problems:
        train = self._problems("train")
        has_own = self.eval_file is not None or (self.dataset is not None and self.eval_split is not None)
        return split(
            train,
            self._problems("eval") if has_own else None,
            num_eval=self.num_eval,
            num_shots=self.num_shots,
            num_train=self.num_train,
            shuffle=f"table/{self.seed}",
        )

    def layout(self) -> PromptLayout:
        instruction = _INSTRUCTIONS[self._kind_of_answer()] if self.instruction is None else self.instruction
        return PromptLayout(instruction=instruction, style=self.style)

    def rewards(self) -> tuple[RewardSpec, ...]:
        return _REWARDS[self._kind_of_answer()]

    def judges(self) -> Judges:
        own = Judges(strict=self.strict, lenient=self.lenient)
        return own if own.named() else _JUDGES[self._kind_of_answer()]

    def _kind_of_answer(self) -> str:
        return self.answers if "final_answer" in self.reference else "other"

    def _problems(self, part: Literal["train", "eval"]) -> list[Problem]:
        if self.dataset is not None:
            name = self.train_split if part == "train" else self.eval_split
            rows, where = hub_rows(self.dataset, self.subset, name), f"data.dataset={self.dataset!r}, split {name!r}"
        else:
            file = self.train_file if part == "train" else self.eval_file
            assert file is not None, "check() has seen to it"
            rows, where = read_rows(local_file(file, f"data.{part}_file"), f"data.{part}_file"), f"{file!r}"
        return [self._problem(row, f"table/{part}/{number}", where) for number, row in enumerate(rows, 1)]

    def _problem(self, row: Row, name: str, where: str) -> Problem:
        try:
            question = _question(cell(row, self.prompt))
            reference = {key: cell(row, column) for key, column in self.reference.items()}
            solution = "" if self.solution is None else str(cell(row, self.solution))
            category = "" if self.category is None else str(cell(row, self.category))
        except KeyError as error:
            columns = ", ".join(map(repr, row)) or "none"
            raise DataError(f"{where}: {name} has no column {error}; its columns are: {columns}") from error
        except ValueError as error:
            raise DataError(f"{where}: {name}: column {self.prompt!r} {error}") from error
        if reference.get("final_answer", "?") in (None, "", []):
            raise DataError(
                f"{where}: {name} has no answer in the column {self.reference['final_answer']!r}; fill it, or leave "
                f"the row out"
            )
        if not solution and self._kind_of_answer() in ("number", "text"):
            solution = _as_solution(reference["final_answer"])
        return Problem(problem_id=name, question=question, reference=reference, solution=solution, category=category)


def _as_solution(final_answer: Any) -> str:
    """An answer, the first of a list, or GSM8K's working with one behind `####`, as the answer line asks for it."""
    answer = final_answer[0] if isinstance(final_answer, list) else final_answer
    working, _, last = str(answer).rpartition("####")
    return f"{working.strip()}\n{answer_line(last.strip())}".lstrip()


def _question(value: Any) -> str | tuple[Message, ...]:
    """A text or messages. Raises ValueError."""
    if isinstance(value, str):
        if not value.strip():
            raise ValueError("is empty")
        return value.strip()
    if not isinstance(value, Sequence) or not value:
        raise ValueError(f"holds neither a text nor messages: {value!r:.100}")
    for message in value:
        if not is_message(message):
            raise ValueError(f"has a message without role ({', '.join(ROLES)}) and content: {message!r:.100}")
    if value[-1]["role"] == "assistant":
        raise ValueError("ends with the assistant's turn, and the model would have nothing to answer")
    return tuple({"role": message["role"], "content": message["content"]} for message in value)
