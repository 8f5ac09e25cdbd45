"""What a reward is: a pure function with a name, a parameter model, a range and a version.

To write one: a file beside this one with a docstring that says what earns what, a `score` function and a `REWARD`;
then list it in `reward_service.registry`.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import inspect
import math
import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from decimal import Decimal
from functools import cached_property
from importlib import metadata
from types import MappingProxyType
from typing import Any, ClassVar, Final, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from reward_service.text.answers import AnswerPlace
from reward_service.text.labels import answer_of
from reward_service.text.numerals import in_range, parse_number
from reward_service.types import ANSWER_PREFIX, Reason, ReferenceKeys, RewardScore

Reference = Mapping[str, Any] | None
FINAL_ANSWER: Final = ReferenceKeys(required=("final_answer",))
_MAX_PLACES: Final = 40  # nobody writes a number with more zeros than that without an exponent


class Task(NamedTuple):
    """What a reward may look at of an item."""

    completion: str
    reference: Reference = None
    prompt: str = ""
    metadata: Mapping[str, Any] = MappingProxyType({})


class RewardParams(BaseModel):
    """Parameters of a reward; a reward without any uses this class itself."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class AnswerParams(RewardParams):
    """Where the answer stands."""

    answer_in: AnswerPlace = Field("auto", description="auto: answer lines and boxes; every answer there is counts.")
    prefix: str = Field(ANSWER_PREFIX, min_length=1, max_length=200, description="How an answer line begins.")
    tag: str = Field(
        "answer", pattern=r"^[A-Za-z][A-Za-z0-9_-]{0,39}$", description="The name in `<answer>`, for tags."
    )
    after: str | None = Field(
        None, min_length=1, max_length=200, description="Look only behind the last occurrence of this, e.g. `</think>`."
    )


class NotScorableError(Exception):
    """Raised by a reward that cannot tell: the item gets null, the class's reason, and the message in its details."""

    reason: ClassVar[Reason] = Reason.VERIFIER_ERROR


class InvalidReferenceError(NotScorableError):
    """The reference is missing, or not of the kind the reward compares with."""

    reason = Reason.INVALID_REFERENCE


class UnavailableError(NotScorableError):
    """Something that the reward needs cannot be had: a sandbox, a library."""

    reason = Reason.UNAVAILABLE


@dataclass(frozen=True, kw_only=True)
class Reward:
    """A named reward.

    `score(completion, reference, params)` is pure: the same arguments give the same score. It raises `NotScorableError`
    where there is nothing to say, and anything else it raises counts as its own failure. It runs in a worker process
    that is killed when the deadline is over.
    """

    name: str
    score: Callable[[str, Reference, Any], RewardScore]
    params: type[RewardParams] = RewardParams
    low: float = 0.0
    high: float = 1.0
    description: str = ""
    """Empty: the first paragraph of the docstring of `score`'s module."""
    deadline_s: float | None = None
    """Time for one item, seconds; None: what the service's settings say."""
    keys: ReferenceKeys | Callable[[Any], ReferenceKeys] | None = None
    """Which keys of a reference it reads, or a function of its parameters that says so; None: not known."""
    preload: tuple[str, ...] = ()
    """Modules that are slow to import, or make at their import what is slow to make; a worker has them before its first
    item."""

    on_demand: tuple[str, ...] = ()
    """The same for modules that take seconds, or need not be installed: a worker has them before its first item of this
    reward, or of any where the settings' `rewards` name it."""

    def __post_init__(self) -> None:
        if not self.description:
            module = sys.modules.get(self.score.__module__)
            object.__setattr__(self, "description", first_paragraph(getattr(module, "__doc__", None)))

    def apply(self, task: Task, params: RewardParams) -> RewardScore:
        """The score of a task; rewards that look at more than the completion and the reference override it."""
        return self.score(task.completion, task.reference, params)

    def prepare(self) -> None:
        """What a worker does once before its first item of this reward, whose time this is not."""

    def reference_keys(self, params: RewardParams | None = None) -> ReferenceKeys | None:
        """Which keys it reads with these parameters (None: with their defaults); None where that is not known."""
        if not callable(self.keys):
            return self.keys
        return self.keys(self.params.model_construct() if params is None else params)

    @cached_property
    def version(self) -> str:
        """Sha-256 of the definition: its sources (see `definition_hash`), and its libraries' versions."""
        return definition_hash(self.score.__module__, libraries=(*self.preload, *self.on_demand))


def definition_hash(*modules: str, libraries: Iterable[str] = ()) -> str:
    """Sha-256 over the sources of `modules` and of all modules of this package that they reach by imports, and the
    installed versions of `libraries`.

    A module outside of this package counts with its own file and what it reaches here. Not covered: other modules
    outside, and libraries that are not named.
    """
    package = __name__.partition(".")[0]
    sources: dict[str, str] = {}
    pending = [*modules]
    while pending:
        name = pending.pop()
        if name in sources or (path := _source_path(name)) is None:
            continue
        with open(path, encoding="utf-8") as file:
            sources[name] = file.read()
        for node in ast.walk(ast.parse(sources[name])):
            if isinstance(node, ast.ImportFrom) and node.module is not None:
                # what is imported from a package may be a module of it
                imported = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            elif isinstance(node, ast.Import):
                imported = [alias.name for alias in node.names]
            else:
                continue
            pending += [other for other in imported if other.partition(".")[0] == package]
    digest = hashlib.sha256()
    for name in sorted(sources):
        digest.update(f"{name}\0{sources[name]}\0".encode())
    for library in sorted({library.partition(".")[0] for library in libraries}):
        with suppress(metadata.PackageNotFoundError):
            digest.update(f"{library}=={metadata.version(library)}\0".encode())
    return digest.hexdigest()


def _source_path(module: str) -> str | None:
    """Where the Python source of a module lies, None if it has none or there is no such module."""
    try:
        spec = importlib.util.find_spec(module)
    except ModuleNotFoundError:  # its parent is no package: the name is one of a class or function
        return None
    return spec.origin if spec is not None and spec.origin is not None and spec.origin.endswith(".py") else None


def first_paragraph(docstring: str | None) -> str:
    """A module's docstring up to its first blank line, on one line."""
    return " ".join(inspect.cleandoc(docstring or "").partition("\n\n")[0].split())


def acceptable_answers(reference: Reference) -> tuple[str, ...]:
    """The texts under `final_answer`: one text or number, or a list of them, any of which will do."""
    if reference is None or "final_answer" not in reference:
        raise InvalidReferenceError('the reference has no "final_answer"')
    answer: Any = reference["final_answer"]
    answers = answer if isinstance(answer, list | tuple) else [answer]
    if not answers or not all(_is_answer(one) for one in answers):
        raise InvalidReferenceError(f"final_answer {answer!r:.100} is neither a text, nor a number, nor a list of them")
    return tuple(dict.fromkeys(text for one in answers for text in _spellings(one)))


def _is_answer(answer: Any) -> bool:
    """A text or a finite number of JSON; `true` is no number."""
    if isinstance(answer, float):
        return math.isfinite(answer)
    return isinstance(answer, str | int) and not isinstance(answer, bool)


def _spellings(answer: str | int | float) -> tuple[str, ...]:
    """How a JSON number may be written: without an exponent, as Python and as people write one.

    A float that is off a short decimal by its last bit stands for that as well: 0.1 + 0.2 is 0.3.
    """
    if not isinstance(answer, float):
        return (str(answer),)
    written, short = Decimal(repr(answer)), Decimal(f"{answer:.15g}").normalize()
    if len(short.as_tuple().digits) > 10:
        short = written
    scientific = repr(answer).replace("e+", "e").replace("e-0", "e-")
    plain = (_positional(number) for number in (short, written) if abs(number.adjusted()) < _MAX_PLACES)
    return (*plain, repr(answer), scientific)


def _positional(number: Decimal) -> str:
    text = format(number, "f")
    return text.rstrip("0").rstrip(".") if "." in text else text


def final_answer(reference: Reference) -> Decimal:
    """The number under `final_answer`, given as a number, as text or as GSM8K's answer column ("… #### 72");
    InvalidReferenceError if there is none."""
    if reference is None or "final_answer" not in reference:
        raise InvalidReferenceError('the reference has no "final_answer"')
    answer = answer_of(reference["final_answer"])
    value: Decimal | None = None
    if isinstance(answer, str):
        value = parse_number(answer)
    elif isinstance(answer, int) and not isinstance(answer, bool):
        value = Decimal(answer)
    elif isinstance(answer, float) and math.isfinite(answer):
        value = Decimal(repr(answer))
    if value is None or not in_range(value):
        raise InvalidReferenceError(f"final_answer {answer!r:.100} is not a finite number")
    return value
