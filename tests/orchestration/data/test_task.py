"""A task is one class in one file: registered, or anybody's by module:Class."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pytest
import yaml

from orchestration.data.problems import Problems
from orchestration.data.prompts import PromptBuilder
from orchestration.data.task import Judges, PromptLayout, Task, find_task, register, registered_tasks
from orchestration.errors import ConfigError, DataError
from orchestration.extras import own_file
from orchestration.run.rewards import own_modules
from orchestration.settings.config import dump_config, flat_keys, load_config
from orchestration.submit.common.paths import data_files
from orchestration.types import Problem
from reward_service.types import RewardSpec
from tests.orchestration.data.test_prompts import byte_tokenizer

OWN_TASK = '''
from typing import ClassVar

from pydantic import Field

from orchestration.data.problems import Problems
from orchestration.data.task import DataFile, Judges, PromptLayout, Task
from orchestration.types import Problem
from reward_service.types import RewardSpec


class Doubling(Task):
    """Double a number."""

    word_file: DataFile | None = Field(None, description="Not needed.")
    largest: int = Field(50, ge=1, description="Largest number.")

    def load(self):
        problems = tuple(
            Problem(problem_id=f"double/{n}", question=f"Double {n}.", reference={"final_answer": str(2 * n)})
            for n in range(self.largest)
        )
        return Problems(train=problems[10:], eval=problems[:10])

    def layout(self):
        return PromptLayout(instruction="Double it.")

    def rewards(self):
        return RewardSpec(name="last_number"), RewardSpec(name="repetition", weight=0.5)

    def judges(self):
        return Judges(strict=RewardSpec(name="last_number"))
'''


@pytest.fixture
def beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with a task's module and a recipe that names it."""
    modules = set(sys.modules)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setenv("PYTHONPATH", "")
    (tmp_path / "doubling_task.py").write_text(OWN_TASK)
    (tmp_path / "double.yaml").write_text("{data: 'doubling_task:Doubling', model: {name: tiny}}")
    yield tmp_path
    for name in {*sys.modules} - modules:
        if name.startswith("doubling_task"):
            del sys.modules[name]


def test_a_module_beside_the_recipe_is_a_task_and_nothing_else_is_touched(beside: Path) -> None:
    config = load_config(str(beside / "double.yaml"), ["data.largest=30"])
    assert config.data.kind == "doubling_task:Doubling"
    assert len(config.data.load().train) == 20
    assert [spec.name for spec in config.rewards] == ["last_number", "repetition"]
    assert list(config.judges) == ["strict"]
    (beside / "saved.yaml").write_text(dump_config(config))
    assert load_config(str(beside / "saved.yaml")) == config
    with pytest.raises(ConfigError, match=r"unknown setting 'data\.largst'"):
        load_config(str(beside / "double.yaml"), ["data.largst=30"])
    with pytest.raises(ConfigError, match=r"data\.largest=0: input should be greater"):
        load_config(str(beside / "double.yaml"), ["data.largest=0"])


def test_its_files_and_its_module_are_sent_along(beside: Path) -> None:
    config = load_config(str(beside / "double.yaml"), ["data.word_file=/words.txt"])
    assert data_files(config) == {"data.word_file": "/words.txt"}
    (beside / "shout.py").write_text("def shout(completion, reference, params):\n    return 1.0")
    (beside / "mixed.yaml").write_text(
        "{model: {name: tiny}, data: {kind: mixture, tasks: {double: {kind: 'doubling_task:Doubling'}, copy: {}}},"
        " reward: {custom_rewards: [{name: shout, target: 'shout:shout'}]}}"
    )
    modules = list(own_modules(load_config(str(beside / "mixed.yaml"))))
    files = [own_file(module) for module in modules if not module.startswith("orchestration.")]
    assert files == [beside / "doubling_task.py", beside / "shout.py"]
    assert own_file("pydantic.main") is own_file("json") is None
    with pytest.raises(ConfigError, match="there is no module 'nowhere', installed or beside the recipe"):
        own_file("nowhere.at_all")


@pytest.mark.parametrize(
    ("data", "module"),
    [
        ("{kind: arithmetic, tools: [calculator, 'mine:add']}", "mine"),
        ("{kind: mixture, tasks: {arithmetic: {tools: ['mine:add']}, copy: {}}}", "mine"),
        ("'trl:mine.worlds:World'", "mine.worlds"),
        ("'gymnasium:mine:World-v0'", "mine"),
        ("'verifiers:me/Mine@0.1'", "mine"),
    ],
)
def test_modules_that_settings_name_are_found_beside_the_recipe_and_sent_along(
    beside: Path, data: str, module: str
) -> None:
    (beside / "mine.py").write_text("")
    (beside / "recipe.yaml").write_text(f"{{model: {{name: tiny}}, data: {data}}}")
    modules = [name for name in own_modules(load_config(str(beside / "recipe.yaml"))) if "orchestration" not in name]
    assert modules == [module]
    assert own_file(modules[0]) == beside / "mine.py"


@pytest.mark.parametrize("data", ["verifiers:not-here", "gymnasium:FrozenLake-v1", "trl", "trl::Wrong"])
def test_what_is_not_here_is_passed_over_until_it_is_needed(data: str) -> None:
    assert [name for name in own_modules(load_config("tiny", [f"data={data}"])) if "orchestration" not in name] == []


def test_a_file_can_be_named_instead_of_a_module(beside: Path) -> None:
    assert find_task(f"{beside / 'doubling_task.py'}:Doubling").__name__ == "Doubling"


def test_a_dry_run_of_a_submission_packs_it(beside: Path) -> None:
    words = ["submit", str(beside / "double.yaml"), "--to", "local", "--dry-run", "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "orchestration.cli", *words], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "doubling_task:Doubling" in done.stdout
    plain = subprocess.run(
        [sys.executable, "-m", "orchestration.cli", "submit", "tiny", "--to", "local", "--dry-run", "--json"],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert packed_files(done.stdout) == packed_files(plain.stdout) + 1


def packed_files(said: str) -> int:
    (found,) = re.findall(r"uploaded: (\d+) files", said)
    return int(found)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("arithmetik", "unknown task 'arithmetik'; tasks are: arithmetic, calculator, code, code-repair, copy, gsm8k"),
        (
            "no_such_module:Task",
            "there is no module 'no_such_module', installed or in .*; install it, or put",
        ),
        ("json.JSONDecoder", "or json:JSONDecoder, as module:Class, for one of your own"),
        ("json:Nothing", "json has no class 'Nothing', but dump, dumps"),
        ("orchestration.data.task:Task", r"Task lacks layout\(\), load\(\), rewards\(\); write them"),
        ("json:JSONDecoder", "'JSONDecoder' of json is not a subclass of"),
        ("broken_task:Task", "broken_task does not load: ZeroDivisionError"),
        ("leaving_task:Task", "leaving_task does not load: SystemExit: 2"),
        ("needy_task:Task", "needy_task needs 'no_such_library', which is not installed"),
    ],
)
def test_what_is_no_task_is_said(kind: str, message: str, beside: Path) -> None:
    (beside / "broken_task.py").write_text("1 / 0")
    (beside / "leaving_task.py").write_text("import sys; sys.exit(2)")
    (beside / "needy_task.py").write_text("import no_such_library")
    with pytest.raises(ConfigError, match=message):
        find_task(kind, beside=beside)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("def load(self): {}['x']", r"load\(\) ended with KeyError: 'x' \(doubling_task.py, line 34\); mend the task"),
        ("def load(self): raise StopIteration", r"load\(\) ended with StopIteration \(doubling_task.py, line 34\)"),
        ("def load(self): exit(3)", r"load\(\) ended with SystemExit: 3"),
        ("def load(self): pass", r"load\(\) gave None, where a Problems is wanted"),
        ("def load(self): return Problems(train=({},), eval=())", r"training problems hold {}, which is not a Problem"),
        ("def load(self): Problem(problem_id=1, question='', reference={})", "problem_id 1 is not a text"),
        ("def load(self): Problem(problem_id='1', question=3, reference={})", "'1': the question 3 is neither a text"),
        (
            "def load(self): Problem(problem_id='1', question='', reference='7')",
            "reference and metadata are to be dict",
        ),
        (
            "def load(self): Problem(problem_id='1', question=[{'role': 'human', 'content': ''}], reference={})",
            r"'1' has a message without role \(system, developer, user, assistant, tool, call\) and content: {'role'",
        ),
        ("num_shots: int = 2", r"data.num_shots=2, and .* load\(\) gave 0 examples, Problems.shots; lower it"),
        ("def layout(self): return 'Solve.'", r"layout\(\) gave 'Solve.', where a PromptLayout is wanted"),
        ("def rewards(self): return RewardSpec(name='x')", "where a tuple of RewardSpec is wanted"),
        ("def rewards(self): return ['last_number']", r"gave 'last_number', where RewardSpec\(name=…\) is wanted"),
        ("def judges(self): 1 / 0", r"judges\(\) ended with ZeroDivisionError: division by zero"),
        ("def check(self): {}['n']", r"check\(\) ended with KeyError: 'n'"),
        ("def check(self): raise ValueError('n is odd')", "^n is odd$"),
    ],
)
def test_a_mistake_in_a_task_is_one_sentence(body: str, message: str, beside: Path) -> None:
    (beside / "doubling_task.py").write_text(f"{OWN_TASK}\n    {body}")
    with pytest.raises((ConfigError, DataError), match=message):
        _ask_all_of_it(beside / "double.yaml")


def _ask_all_of_it(recipe: Path) -> None:
    config = load_config(str(recipe))
    config.data.load(), config.data.layout(), config.judges


def test_every_registered_task_is_in_the_settings_with_all_its_fields() -> None:
    keys = set(flat_keys())
    for name, task in registered_tasks().items():
        assert task.target() == name
        assert {f"data.{field}" for field in task.model_fields} <= keys


def test_a_name_is_given_once() -> None:
    class Twice(Task):
        name: ClassVar[str] = "copy"

    class Nameless(Task):
        pass

    with pytest.raises(ValueError, match="'copy' is taken by Copy"):
        register(Twice)
    with pytest.raises(ValueError, match="Nameless needs a name"):
        register(Nameless)


class Conversation(Task):
    """Questions that are conversations; registered nowhere."""

    def load(self) -> Problems:
        turns = ({"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Yes?"})
        problem = Problem(problem_id="1", question=(*turns, {"role": "user", "content": "How many?"}), reference={})
        own = Problem(
            problem_id="2",
            question=({"role": "system", "content": "Be brief."}, {"role": "user", "content": "How many?"}),
            reference={},
        )
        return Problems(train=(problem,), eval=(own,))

    def layout(self) -> PromptLayout:
        return PromptLayout(instruction="Count.", stop=("</end>",))

    def rewards(self) -> tuple[RewardSpec, ...]:
        return (RewardSpec(name="length"),)


def test_a_question_may_be_a_conversation_with_a_system_message_of_its_own() -> None:
    task = Conversation()
    problems = task.load()
    builder = PromptBuilder(byte_tokenizer(), layout=task.layout())
    several, own = builder.build(problems.train[0]), builder.build(problems.eval[0])
    assert several is not None
    assert own is not None
    assert several.text == (
        "<s>system\nCount.</s>\n<s>user\nHello</s>\n<s>assistant\nYes?</s>\n<s>user\nHow many?</s>\n<s>assistant\n"
    )
    assert own.text == "<s>system\nBe brief.</s>\n<s>user\nHow many?</s>\n<s>assistant\n"
    assert tuple(several.prompt.token_ids[: len(builder.header_token_ids)]) == builder.header_token_ids
    tokenizer = byte_tokenizer()
    assert tokenizer.decode(several.prompt.token_ids) == several.text
    assert tokenizer.decode(own.prompt.token_ids) == own.text
    assert builder.stop == ("</end>",)


def test_without_judges_the_first_reward_decides() -> None:
    kind = f"{Conversation.__module__}:Conversation"
    assert load_config("tiny", [f"data={kind}"]).judges == {"strict": RewardSpec(name="length")}
    assert Judges().named() == {}


def test_a_task_without_rewards_wants_to_be_told() -> None:
    words = ["data=table", "data.train_file=x.jsonl", "data.reference={tests: tests}"]
    with pytest.raises(ConfigError, match="the task 'table' has no rewards of its own: say what is learned from"):
        load_config("tiny", words)
    rewards = yaml.safe_dump([{"name": "code"}], default_flow_style=True).strip()
    assert load_config("tiny", [*words, f"reward.rewards={rewards}"]).rewards == (RewardSpec(name="code"),)
