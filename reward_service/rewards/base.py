"""What a reward is: a pure function with a name, a parameter model, a range and a version.

To write one: a file beside this one with a docstring that says what earns what, a `score` function and a `REWARD`;
then list it in `reward_service.rewards`.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from decimal import Decimal
from functools import cached_property
from importlib import metadata
from types import MappingProxyType
from typing import Any, ClassVar, Final, NamedTuple

from pydantic import BaseModel, ConfigDict

from reward_service.text.numerals import in_range, parse_number
from reward_service.types import Reason, ReferenceKeys, RewardScore

Reference = Mapping[str, Any] | None
FINAL_ANSWER: Final = ReferenceKeys(required=("final_answer",))


class Task(NamedTuple):
    """What a reward may look at of an item."""

    completion: str
    reference: Reference = None
    prompt: str = ""
    metadata: Mapping[str, Any] = MappingProxyType({})


class RewardParams(BaseModel):
    """Parameters of a reward; a reward without any uses this class itself."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class NotScorableError(Exception):
    """Raised by a reward that cannot tell: the item gets null, the class's reason, and the message in its details."""

    reason: ClassVar[Reason] = Reason.VERIFIER_ERROR


class InvalidReferenceError(NotScorableError):
    """The reference is missing, or not of the kind the reward compares with."""

    reason = Reason.INVALID_REFERENCE


@dataclass(frozen=True, kw_only=True)
class Reward:
    """A named reward.

    `score(completion, reference, params)` is pure: the same arguments give the same score. It raises `NotScorableError`
    where there is nothing to say, and anything else it raises counts as its own failure. It runs in a worker process
    that is killed when the deadline is over.
    """

    name: str
    description: str
    low: float
    high: float
    params: type[RewardParams]
    score: Callable[[str, Reference, Any], RewardScore]
    deadline_s: float | None = None
    """Time for one item, seconds; None: what the service's settings say."""
    keys: ReferenceKeys | Callable[[Any], ReferenceKeys] | None = None
    """Which keys of a reference it reads, or a function of its parameters that says so; None: not known."""
    preload: tuple[str, ...] = ()
    """Modules that are slow to import; `score` imports them, and a worker has them before its first item."""

    def apply(self, task: Task, params: RewardParams) -> RewardScore:
        """The score of a task; rewards that look at more than the completion and the reference override it."""
        return self.score(task.completion, task.reference, params)

    def reference_keys(self, params: RewardParams | None = None) -> ReferenceKeys | None:
        """Which keys it reads with these parameters (None: with their defaults); None where that is not known."""
        if not callable(self.keys):
            return self.keys
        return self.keys(self.params.model_construct() if params is None else params)

    @cached_property
    def version(self) -> str:
        """Sha-256 of the definition: its sources (see `definition_hash`), and the versions of what it preloads."""
        return definition_hash(self.score.__module__, libraries=self.preload)


def definition_hash(module: str, *, libraries: Iterable[str] = ()) -> str:
    """Sha-256 over the source of `module`, the sources of all modules of this package that it reaches through imports,
    and the installed versions of `libraries`.

    A module outside of this package counts with its own file and what it reaches here. Not covered: other modules
    outside, and libraries that are not named.
    """
    package = __name__.partition(".")[0]
    sources: dict[str, str] = {}
    pending = [module]
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


def final_answer(reference: Reference) -> Decimal:
    """The number under `final_answer`, given as a number or as text; InvalidReferenceError if there is none."""
    if reference is None or "final_answer" not in reference:
        raise InvalidReferenceError('the reference has no "final_answer"')
    answer = reference["final_answer"]
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
