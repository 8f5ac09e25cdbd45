"""Tools: how calls are written and read, what the built-in ones do, and what they refuse."""

from __future__ import annotations

import asyncio
import importlib.util
import re
import sys
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Any, Literal

import pytest

from orchestration.data.prompts import PromptBuilder
from orchestration.data.task import PromptLayout
from orchestration.data.tasks.calculator import Calculator
from orchestration.data.tasks.code_repair import CodeRepair
from orchestration.environments.environment import Step, Surroundings
from orchestration.environments.tools.calculator import calculator
from orchestration.environments.tools.calls import Call, describe, read_calls, write_call
from orchestration.environments.tools.load import load_tools
from orchestration.environments.tools.python import Python
from orchestration.environments.tools.search import open_search
from orchestration.environments.tools.tool import Tool, WrongCallError, schema_of
from orchestration.environments.tools.use import ToolUse
from orchestration.episodes.rendering import TurnRenderer
from orchestration.errors import ConfigError
from orchestration.models.resolve import resolve_model
from orchestration.models.tokenizer import load_tokenizer
from orchestration.settings.config import load_config
from orchestration.types import Problem
from reward_service.child import start_in_subprocess
from reward_service.clients.asynchronous import RewardClient
from reward_service.settings import ServiceSettings

PROBLEM = Problem(problem_id="p", question="What is 3 * 4?", reference={"final_answer": "12"})


def scale(values: list[int], factor: int = 2, name: str | None = None) -> list[int]:
    """Multiply numbers.

    Args:
        values: The numbers.
        factor: By what.
        name: Of nothing.
    """
    if factor == 0:
        raise ZeroDivisionError("by nothing")
    return [value * factor for value in values]


SCHEMAS = [schema_of(calculator), schema_of(scale)]


@pytest.mark.parametrize("fenced", [False, True], ids=["tagged", "fenced"])
@pytest.mark.parametrize(
    ("name", "arguments"),
    [("calculator", {"expression": '3 * 4 "'}), ("scale", {"values": [1, 2], "factor": 3})],
)
def test_a_call_that_is_written_is_read(name: str, arguments: dict[str, Any], fenced: bool) -> None:
    text = write_call(name, arguments, SCHEMAS, fenced=fenced)
    assert read_calls(f"I ask.\n{text}\n{text}", SCHEMAS, fenced=fenced) == [Call(name, arguments)] * 2
    assert read_calls(f"<think>{text}</think>\n#### 3", SCHEMAS, fenced=fenced) == []


@pytest.mark.parametrize(
    ("text", "fenced", "said"),
    [
        ("<tool_call>{'a'}</tool_call>", False, "the tool call is not JSON"),
        ('<tool_call>["calculator"]</tool_call>', False, 'a tool call is {"name": NAME'),
        ('<tool_call>{"name": "calc", "arguments": {}}</tool_call>', False, "there is no tool 'calc'; there are"),
        (
            '<tool_call>{"name": "scale", "arguments": 3}</tool_call>',
            False,
            "the arguments of scale are no JSON object",
        ),
        ('<tool_call>{"name": "scale", "arguments": {"by": 3}}', False, "scale has no argument 'by'; it has values"),
        ("```scale\n{}\n```", True, "scale: 'values' is a required property"),
        ('```scale\n{"values": ["a"], "name": null}\n```', True, "scale: argument 'values': 'a' is not of type"),
        ('```scale\n{"values": [1], "factor": 0}\n```', True, "scale failed: ZeroDivisionError: by nothing"),
        ("```scale\n1, 2\n```", True, "the arguments of scale are not JSON"),
        ("<tool_call>" + "[" * 10**5, False, "the tool call is not JSON: it is nested too deeply"),
        ("```calculator\nimport os\n```", True, "calculator failed: ValueError: 'import os' is no arithmetic"),
        ('```scale\n{"values": [1, 2]}\n```', True, "[2, 4]"),
        ('```calculator\n{"expression": "2 + 3"}\n```', True, "5"),
        ("```calculator\n1234*1000", True, "1234000"),  # cut at its end
    ],
)
async def test_a_call_is_answered_and_a_wrong_one_told_why(text: str, fenced: bool, said: str) -> None:
    world = ToolUse([calculator, scale])
    world.enter(Surroundings(template_takes_tools=not fenced))
    step = await world.step(text)
    assert not step.done
    assert isinstance(step.observation, list)
    assert step.observation[0]["role"] == "tool"
    assert step.observation[0]["content"].startswith(said)


class Unit(Enum):
    METRE, FOOT = "m", 12


def measure(length: float, unit: Unit, other: Unit | None = None) -> Any:
    """Say a length.

    Args:
        length: How long.
        unit: In what.
        other: In what else.
    """
    if length < 0:
        sys.exit(2)
    endless: list[Any] = []
    endless.append(endless)
    return [unit.name, None if other is None else other.name] if length else endless


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"length": 1, "unit": "m"}, '["METRE", null]'),
        ({"length": 1, "unit": 12, "other": "m"}, '["FOOT", "METRE"]'),
        ({"length": 1, "unit": "m", "other": None}, '["METRE", null]'),
        ({"length": -1, "unit": "m"}, "measure failed: SystemExit: 2"),
        ({"length": 0, "unit": "m"}, "measure failed: ValueError: Circular reference"),
    ],
)
async def test_an_enum_is_given_by_its_values_and_nothing_that_a_tool_does_ends_more(
    arguments: dict[str, Any], said: str
) -> None:
    tool = Tool(measure)
    assert tool.parameters["properties"]["unit"] == {"enum": ["m", 12], "description": "In what."}
    assert (await tool.call(arguments)).startswith(said)
    with pytest.raises(WrongCallError, match=r"argument 'unit': 'yard' is not one of \['m', 12\]"):
        await tool.call({"length": 1, "unit": "yard"})


def test_an_argument_that_no_call_can_name_is_refused() -> None:
    def total(*numbers: int) -> int:
        """Add.

        Args:
            numbers: Any.
        """
        return sum(numbers)

    with pytest.raises(ConfigError, match=r"its argument \*numbers.* cannot be given by name"):
        schema_of(total)


async def test_what_calls_nothing_is_the_answer() -> None:
    for text in ("#### 12", "```python\nprint(1)\n```", "<tool_call> is how", "calculator"):
        assert await ToolUse([calculator]).step(text) == Step(done=True)


def test_long_output_is_cut_and_a_function_without_hints_is_no_tool() -> None:
    assert asyncio.run(Tool(scale).call({"values": [1] * 3000})).endswith("… (7000 characters more)")
    with pytest.raises(ConfigError, match=r"<lambda> is no tool: .*type hints"):
        schema_of(lambda x: x)
    with pytest.raises(ConfigError, match=r"data\.tools='abacus': there are calculator, python, search"):
        load_tools(["abacus"])
    with pytest.raises(ConfigError, match=r"has an environment of its own, without room for them"):
        load_config("guess", ["data.tools=[calculator]"])


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("3 * (4 + 5)", "27"),
        ("98765*43219", "4268524535"),
        ("-7 // 2", "-4"),
        ("7 % 4", "3"),
        ("1/3", "0.3333333333"),
        ("0.1 + 0.2", "0.3"),
        ("2^10 =", "1024"),
        ("6 × 7 ÷ 2 − 1", "20"),
    ],
)
def test_the_calculator_works_out_arithmetic(expression: str, value: str) -> None:
    assert calculator(expression) == value


@pytest.mark.parametrize(
    "expression",
    [
        "__import__('os').system('true')",
        "9**9**9",
        "9**99**9",
        "(9**99)**99",
        "2**0.5",
        "1/0",
        "True + 1",
        "'a' * 9",
        "a",
        "[1]*10**9",
        "1" * 201,
        "(" * 150 + "1" + ")" * 40,
        "",
        "10**59*10",
    ],
)
def test_the_calculator_refuses_all_else(expression: str) -> None:
    with pytest.raises((ValueError, ZeroDivisionError)):
        calculator(expression)


def test_search_ranks_by_rare_words_and_reads_both_kinds_of_file(tmp_path: Path) -> None:
    lines = [
        "The cat sat on the mat.",
        "The dog sat on the log.",
        "A cat and a dog.",
        "Cats have nine lives: a cat, a cat.",
    ]
    plain = tmp_path / "passages.txt"
    plain.write_text("\n".join(lines))
    found = open_search(str(plain)).best("the mat", 2)
    assert found == [lines[0], lines[1]]
    assert open_search(str(plain)).best("cat", 1) == [lines[3]]
    assert open_search(str(plain)).search("zebra") == "nothing was found"
    rows = tmp_path / "passages.jsonl"
    rows.write_text('{"title": "Oslo", "text": "A city."}\n{"text": "Another."}\n')
    assert open_search(str(rows)).search("oslo") == "[1] Oslo: A city."
    with pytest.raises(ConfigError, match=r"set data\.corpus=FILE"):
        open_search(None)
    with pytest.raises(ConfigError, match=r"data\.corpus=.*FileNotFoundError"):
        open_search(str(tmp_path / "none.txt"))
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(ConfigError, match="no passage"):
        open_search(str(tmp_path / "empty.txt"))


# --- in prompts --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return load_tokenizer(Path(resolve_model("tiny", None)))


def qwen_template() -> str:
    spec = importlib.util.find_spec("trl")
    if spec is None or spec.origin is None:
        pytest.skip("TRL, which has Qwen's chat template with it, is not installed")
    return (Path(spec.origin).parent / "chat_templates" / "qwen2_5.jinja").read_text()


def shots() -> tuple[Problem, ...]:
    return Calculator(num_train=4, num_eval=1, num_shots=1).load().shots


def test_a_template_that_takes_tools_shows_them_and_the_call_in_its_own_form(tokenizer: Any) -> None:
    own, tokenizer.chat_template = tokenizer.chat_template, qwen_template()
    try:
        builder = PromptBuilder(tokenizer, shots(), layout=PromptLayout(), tools=SCHEMAS[:1])
        assert builder.template_takes_tools
        built = builder.build(PROBLEM)
        assert built is not None
        assert "# Tools" in built.text
        assert '<tool_call>\n{"name": "calculator", "arguments": {"expression": ' in built.text
        assert "<tool_response>" in built.text
        said = '<tool_call>\n{"name": "calculator", "arguments": {"expression": "3*4"}}\n</tool_call>'
        answered = asyncio.run(ToolUse([calculator]).answers(""))
        assert answered == []
        given = TurnRenderer(builder).between(
            builder.messages(PROBLEM), said, 0, [{"role": "tool", "name": "calculator", "content": "12"}]
        )
        between = tokenizer.decode(list(given.token_ids))
        assert "<|im_start|>user\n<tool_response>\n12\n</tool_response><|im_end|>\n<|im_start|>assistant\n" in between
        assert not given.rewrites_history
    finally:
        tokenizer.chat_template = own


def test_where_a_template_takes_none_the_instruction_tells_of_them(tokenizer: Any) -> None:
    own, tokenizer.chat_template = tokenizer.chat_template, None
    try:
        builder = PromptBuilder(tokenizer, layout=PromptLayout(), tools=SCHEMAS)
        built = builder.build(PROBLEM)
        assert built is not None
        assert built.text.startswith(describe(SCHEMAS))
        assert "```calculator\nexpression\n```\nWork out an arithmetic expression." in built.text
        shown = PromptBuilder(tokenizer, shots(), layout=PromptLayout(), tools=SCHEMAS[:1]).build(PROBLEM)
        assert shown is not None
        asked, called, heard = re.findall(r"Question: (.*)\nAnswer:\n", shown.text)[:3]
        assert re.search(
            rf"Answer:\n```calculator\n[^`]*```\n\nQuestion: {called}\nAnswer:\n#### .* {called}", shown.text
        )
        assert (asked, heard) == (shots()[0].question[0]["content"], PROBLEM.text)  # type: ignore[index]
    finally:
        tokenizer.chat_template = own
    builder = PromptBuilder(tokenizer, shots(), layout=PromptLayout(), tools=SCHEMAS[:1])
    assert not builder.template_takes_tools
    asked, call, said = builder.messages(PROBLEM)[1:4] if builder.messages(PROBLEM)[0]["role"] == "system" else ()
    assert call["content"].startswith("```calculator\n")
    assert (asked["role"], call["role"], said["role"]) == ("user", "assistant", "user")


# --- in the sandbox ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    log = tmp_path_factory.mktemp("service") / "service.log"
    with start_in_subprocess(ServiceSettings(port=0, rewards=("python", "code")), log_path=log) as running:
        yield running.url


async def test_python_runs_in_the_services_sandbox(service: str) -> None:
    async with RewardClient(service) as client:
        tool = Python()
        tool.enter(Surroundings(scoring=client))
        said = [
            await tool.python(program)
            for program in ("print(6 * 7)", "x = 1", "print(1)\n1/0", "print(", "import os; print(os.environ)")
        ]
    assert said[0] == "42"
    assert said[1] == "(it printed nothing)"
    assert said[2] == "1\nZeroDivisionError: division by zero"
    assert said[3].startswith("does not compile: SyntaxError")
    assert said[4] == "environ({'LC_CTYPE': 'C.UTF-8'})"  # what Python itself sets


async def test_python_without_a_service_is_the_episodes_failure() -> None:
    with pytest.raises(Exception, match="the tool python needs a reward service"):
        await ToolUse([Python().python]).step("```python\nprint(1)\n```")


async def test_a_program_is_mended_after_what_its_tests_say(service: str) -> None:
    task = CodeRepair()
    problem = next(one for one in task.load().train if one.reference["calls"][0]["args"] and one.solution)
    name, calls = problem.reference["entry_point"], problem.reference["calls"]
    broken = f"```python\ndef {name}(*args):\n    return args[99]\n```"
    async with RewardClient(service) as client:

        async def played(*tries: str) -> list[Step]:
            world = task.environment()
            world.enter(Surroundings(scoring=client))
            await world.reset(problem)
            return [await world.step(text) for text in tries]

        first, second = await played(broken, problem.solution)
        assert (first.reward, first.done, second.reward, second.done) == (0.0, False, 1.0, True)
        lines = str(first.observation).splitlines()
        assert lines[0] == f"0 of {len(calls)} tests pass."
        assert lines[1] == f"{name}({', '.join(map(repr, calls[0]['args']))}): IndexError: tuple index out of range"
        assert (await played(problem.solution))[0].done
        assert [step.done for step in await played("I cannot.", broken)] == [False, True]


@pytest.mark.parametrize("operations", [1, 2])
def test_functions_of_operations_have_solutions_that_are_right(operations: Literal[1, 2]) -> None:
    for problem in CodeRepair(operations=operations, num_train=100).make(0):
        names: dict[str, Any] = {}
        exec(problem.solution.strip("`").removeprefix("python"), names)
        function = names[problem.reference["entry_point"]]
        assert [function(*call["args"]) for call in problem.reference["calls"]] == [
            call["expected"] for call in problem.reference["calls"]
        ], problem.solution
