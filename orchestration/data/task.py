"""What a task is: where its problems come from, how they are asked, what an answer earns and what counts as right.

A task is one class in one file. Its fields are its settings (`data.num_train=…`), so nothing else has to know them:

    @register
    class Doubling(Task):
        \"\"\"Double a number.\"\"\"

        name: ClassVar[str] = "doubling"
        num_train: int = Field(100, ge=1, description="Training problems.")

        def load(self) -> Problems: ...
        def layout(self) -> PromptLayout: ...
        def rewards(self) -> tuple[RewardSpec, ...]: ...
        def judges(self) -> Judges: ...

In `orchestration.data.tasks` it is found by its name, `data=doubling`. A class of anybody's needs no registration:
`data=mypackage.mymodule:Doubling`, from an installed module or from a file beside the recipe.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import traceback
from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, wraps
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar, get_args

from pydantic import Field, model_validator
from pydantic.fields import FieldInfo

from orchestration.data.problems import Problems
from orchestration.environments.environment import Environment
from orchestration.environments.tools.load import load_tools
from orchestration.environments.tools.python import RUNS
from orchestration.environments.tools.tool import Schema, schema_of
from orchestration.environments.tools.use import ToolUse
from orchestration.errors import ConfigError, DataError, RlvrError, one_line
from orchestration.extras import make_importable
from orchestration.section import Section
from reward_service.types import RewardSpec

PromptStyle = Literal["auto", "chat", "plain"]
"""chat: examples are turns of the conversation (small models follow these far better than examples within one message);
plain: no template; auto: chat if the tokenizer has a template, else plain."""

_BUILT_IN = "orchestration.data.tasks"


_FILE = "a file that a run reads"

DataFile = Annotated[str, _FILE]
"""A setting that names a file: here, on s3://, or as a channel of a training job. `rlvr submit` takes it along."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptLayout:
    """How a problem is put to the model."""

    instruction: str = ""
    """The system message, or the first line of a plain prompt; may be empty."""
    style: PromptStyle = "auto"
    question_label: str = "Question:"
    """In a plain prompt, in front of each question."""
    answer_label: str = "Answer:"
    """In a plain prompt, on a new line in front of each answer."""
    answer_joint: Literal["\n", " "] = "\n"
    """In a plain prompt, what stands between that label and the answer."""
    stop: tuple[str, ...] | None = None
    """Strings that end a completion; None: a blank line in a plain prompt, where the next example would begin."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Judges:
    """The rewards that decide whether a held-out answer is right: 1 for right, 0 for wrong."""

    strict: RewardSpec | None = None
    """In the form that was asked for."""
    lenient: RewardSpec | None = None
    """In any form in which a person would find it."""
    first_try: RewardSpec | None = None
    """Where an answer may be mended: whether it was right at once."""

    def named(self) -> dict[str, RewardSpec]:
        """Those there are, by `strict`, `lenient` and `first_try`."""
        every = {"strict": self.strict, "lenient": self.lenient, "first_try": self.first_try}
        return {name: spec for name, spec in every.items() if spec is not None}


class Task(Section):
    """A task; its fields are its settings. Loads no heavy library before `load`."""

    name: ClassVar[str] = ""
    """How a registered task is called in `data.kind`; a task that is not registered is called `module:Class`."""

    named_by: ClassVar[str] = ""
    """The setting that may stand behind the task's name: `data=gymnasium:Taxi-v4` where that is `environment_id`."""

    kind: str = Field("", description="Which task: a built-in one's name, or module:Class for one of your own.")
    num_shots: int = Field(0, ge=0, le=64, description="Worked examples in front of the question.")
    tools: tuple[str, ...] = Field(
        (), description="What the model may call before it answers: calculator, python, search, or module:function."
    )
    corpus: DataFile | None = Field(
        None, description="Where the tool search looks: a text file, a passage a line, or .jsonl with title and text."
    )

    def __init_subclass__(cls, **options: Any) -> None:
        """Turns what a task's own code raises, or gives in place of what is wanted, into one sentence about it."""
        super().__init_subclass__(**options)
        for name, wanted in _WANTED.items():
            if inspect.isfunction(method := vars(cls).get(name)):
                setattr(cls, name, _answering(method, wanted))

    @model_validator(mode="before")
    @classmethod
    def _is_of_this_kind(cls, tree: Any) -> Any:
        if not isinstance(tree, dict):
            return tree
        kind = tree.get("kind") or cls.target()
        if kind != cls.target():
            raise ValueError(f"kind={kind!r} is not {cls.target()!r}")
        return {**tree, "kind": kind}

    @model_validator(mode="after")
    def _has_one_world(self) -> Self:
        if self.tools and type(self).environment is not Task.environment:
            raise ValueError(
                f"tools={list(self.tools)}: the task {self.kind!r} has an environment of its own, without room "
                f"for them; leave data.tools out"
            )
        return self

    @classmethod
    def target(cls) -> str:
        """What `data.kind` calls the task."""
        return cls.name if _REGISTERED.get(cls.name) is cls else f"{cls.__module__}:{cls.__qualname__}"

    @abstractmethod
    def load(self) -> Problems:
        """Make or read the problems; the same settings give the same problems.

        Raises:
            DataError: a file is missing or broken, or there are too few problems.
            ConfigError: a setting is out of range.
        """

    @abstractmethod
    def layout(self) -> PromptLayout:
        """How the problems are put to the model."""

    @abstractmethod
    def rewards(self) -> tuple[RewardSpec, ...]:
        """What a run learns from unless `reward.rewards` says otherwise; may be empty, then it has to."""

    def judges(self) -> Judges:
        """What decides whether a held-out answer is right; with neither, the run's first reward does."""
        return Judges()

    def environment(self) -> Environment | None:
        """A new world for one episode of several turns, by the problem that it is begun with; None: an answer is one
        turn, and ends there."""
        return ToolUse(load_tools(self.tools, self.corpus)) if self.tools else None

    def has_turns(self) -> bool:
        """Whether it has an environment; makes none."""
        return bool(self.tools) or type(self).environment is not Task.environment

    def tool_schemas(self) -> tuple[Schema, ...]:
        """Of what the model may call, as chat templates take them.

        Raises:
            ConfigError: One cannot be had.
        """
        return tuple(schema_of(getattr(tool, "__func__", tool)) for tool in load_tools(self.tools, self.corpus))

    def named_modules(self) -> tuple[str, ...]:
        """Modules that its settings name, which may lie in the current folder or beside the recipe: a run finds them
        there, and a job takes them along. Its own class's is not among them."""
        return tuple(name.partition(":")[0] for name in self.tools if ":" in name)

    def asks(self) -> tuple[RewardSpec, ...]:
        """What its environment has the reward service do as it goes."""
        return (RUNS,) if "python" in self.tools else ()

    def parts(self) -> Mapping[str, Task]:
        """Of a mixture: its tasks by the name that stands in `Problem.part`. Empty: the task is one."""
        return {}

    def part(self, name: str) -> Task:
        """The task of a problem with that `part`.

        Args:
            name: `Problem.part`; of a task that is one, empty.
        """
        return self.parts().get(name, self)

    def category_weights(self) -> Mapping[str, float]:
        """How often each category is drawn unless `curriculum.weights` says otherwise; empty: by its problems."""
        return {}

    def check(self) -> None:
        """Refuse settings that contradict each other.

        Raises:
            ValueError: One sentence that names them and what to do.
        """

    def files(self) -> dict[str, str]:
        """The files that the task reads, by the field that names them."""
        marked = [name for name, field in type(self).model_fields.items() if _names_a_file(field)]
        return {name: value for name in marked if (value := getattr(self, name)) is not None}


_WANTED: Mapping[str, type] = {
    "load": Problems,
    "layout": PromptLayout,
    "rewards": tuple,
    "judges": Judges,
    "check": type(None),
}
"""What the methods give that a task's author writes."""


def _answering(method: Callable[[Any], Any], wanted: type) -> Callable[[Any], Any]:
    """The method, with a sentence for the author in place of a traceback, or of an error elsewhere later on."""

    @wraps(method)
    def asked(self: Task) -> Any:
        called = f"data={self.kind!r}: {method.__name__}()"
        try:
            given = method(self)
        except RlvrError:
            raise
        except (Exception, SystemExit) as error:  # the latter as of argparse, in a file that was a script
            if method.__name__ == "check" and isinstance(error, ValueError):
                raise
            said = f"{type(error).__name__}: {one_line(error)}".removesuffix(": ")
            raise DataError(f"{called} ended with {said}{_line_of(method, error)}; mend the task") from error
        if wanted is tuple and isinstance(given, list):
            given = tuple(given)
        if not isinstance(given, wanted):
            raise DataError(f"{called} gave {given!r:.100}, where {_written(wanted)} is wanted")
        others = [spec for spec in given if not isinstance(spec, RewardSpec)] if isinstance(given, tuple) else []
        if others:
            raise DataError(f"{called} gave {others[0]!r:.100}, where RewardSpec(name=…) is wanted")
        if isinstance(given, Problems) and len(given.shots) < self.num_shots:
            raise DataError(
                f"data.num_shots={self.num_shots}, and {called} gave {len(given.shots)} examples, Problems.shots; "
                f"lower it, or have load() take them out, as split(…, num_shots=self.num_shots) does"
            )
        return given

    return asked


def _written(wanted: type) -> str:
    return {tuple: "a tuple of RewardSpec", type(None): "None"}.get(wanted, f"a {wanted.__name__}")


def _line_of(method: Callable[..., Any], error: BaseException) -> str:
    """The last line of the method's own file that the error came through."""
    file = method.__code__.co_filename
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    return f" ({Path(file).name}, line {lines[-1]})" if lines else ""


def _names_a_file(field: FieldInfo) -> bool:
    marks = [*field.metadata]
    for variant in get_args(field.annotation):  # `DataFile | None` keeps the mark inside
        marks += get_args(variant)
    return _FILE in marks


TaskClass = TypeVar("TaskClass", bound=type[Task])
_REGISTERED: dict[str, type[Task]] = {}


def register(task: TaskClass) -> TaskClass:
    """Let `data.kind` call a task by its name.

    Raises:
        ValueError: The name is missing or taken.
    """
    if not task.name:
        raise ValueError(f"{task.__qualname__} needs a name to be registered by")
    if _REGISTERED.setdefault(task.name, task) is not task:
        raise ValueError(f"the task name {task.name!r} is taken by {_REGISTERED[task.name].__qualname__}")
    return task


@cache
def _import_built_in() -> None:
    package = importlib.import_module(_BUILT_IN)
    for module in pkgutil.walk_packages(package.__path__, f"{_BUILT_IN}."):
        importlib.import_module(module.name)


def registered_tasks() -> Mapping[str, type[Task]]:
    """The tasks that have a name, by it."""
    _import_built_in()
    return dict(sorted(_REGISTERED.items()))


def called(kind: str) -> dict[str, str]:
    """What `data=KIND` says: the task's kind, and what stands behind a name that takes more, `openenv:URL`."""
    name, colon, rest = kind.partition(":")
    task = registered_tasks().get(name)
    return {"kind": name, task.named_by: rest} if colon and task is not None and task.named_by else {"kind": kind}


def find_task(kind: str, *, beside: Path | None = None) -> type[Task]:
    """The task that `data.kind` names.

    Args:
        kind: a registered name, `module:Class`, or `file.py:Class`.
        beside: the recipe's folder; a module that is not installed is looked for there, and in the current folder.

    Raises:
        ConfigError: there is no such task, or its module does not load.
    """
    tasks = registered_tasks()
    if kind in tasks:
        return tasks[kind]
    module_name, colon, class_name = kind.partition(":")
    if not colon:
        own = f"{':'.join(kind.rsplit('.', 1))}, as module:Class, for" if "." in kind else "module:Class for"
        raise ConfigError(f"unknown task {kind!r}; tasks are: {', '.join(tasks)}, or {own} one of your own")
    if module_name.endswith(".py"):
        file = Path(module_name)
        beside, module_name = (beside or Path()) / file.parent, file.stem
    module = _imported(module_name, kind, [folder for folder in (beside, Path()) if folder is not None])
    if (task := getattr(module, class_name, None)) is None:
        found = [name for name, one in vars(module).items() if getattr(one, "__module__", "") == module.__name__]
        raise ConfigError(f"data={kind!r}: {module_name} has no class {class_name!r}, but {', '.join(found) or 'none'}")
    if not (isinstance(task, type) and issubclass(task, Task)):
        raise ConfigError(f"data={kind!r}: {class_name!r} of {module_name} is not a subclass of {Task.__module__}.Task")
    if lacks := sorted(task.__abstractmethods__):
        raise ConfigError(f"data={kind!r}: {class_name} lacks {', '.join(f'{name}()' for name in lacks)}; write them")
    return task


def _imported(name: str, kind: str, folders: list[Path]) -> Any:
    """The module, from where Python finds it or from one of the folders.

    A folder that is needed stays on the path: the run's other processes unpickle by it too.
    """
    for folder in (None, *folders):
        if folder is not None:
            make_importable(folder)
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{name}.".startswith(f"{error.name}."):
                raise ConfigError(f"data={kind!r}: {name} needs {error.name!r}, which is not installed") from error
        except (Exception, SystemExit) as error:
            reason = one_line(error, 500)
            raise ConfigError(f"data={kind!r}: {name} does not load: {type(error).__name__}: {reason}") from error
    places = " or ".join(dict.fromkeys(str(folder.resolve()) for folder in folders))
    raise ConfigError(
        f"data={kind!r}: there is no module {name!r}, installed or in {places}; install it, or put it beside the recipe"
    )
