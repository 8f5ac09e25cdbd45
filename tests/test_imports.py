"""The walls between the rooms, read from the source: imports in functions and under TYPE_CHECKING count too.

Not covered: names put together at run time (`import_module(some_variable)`).
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("rollout_server", "learner", "reward_service", "orchestration")

# room → what it may import of the other rooms
OPENINGS = {
    "rollout_server": (),
    "learner": ("rollout_server.types",),
    "reward_service": (),
    "orchestration": ("rollout_server", "learner", "reward_service"),
}

# library → the only files of ours that import it
HOLDERS = {
    "vllm": ("rollout_server/engine.py", "rollout_server/cpu_lora_plugin.py"),
    "deepspeed": ("learner/engine/engine.py",),
    "ray": (
        *(f"orchestration/cluster/{name}.py" for name in ("calls", "cluster", "gauges", "nodes")),
        "orchestration/submit/ray/jobs.py",
    ),
    "sagemaker": ("orchestration/submit/sagemaker*",),
    "kubernetes": ("orchestration/submit/hyperpod*",),
    "boto3": ("orchestration/storage/aws.py", "orchestration/submit/sagemaker*"),
}

# room → libraries it must work without
ABSENT = {"reward_service": ("torch",)}

# What `rlvr --help`, `rlvr doctor` and a bad key must not wait for.
HEAVY = ("torch", "ray", "vllm", "deepspeed", "transformers", "peft", "trl")


def imported(source: str, *, package: str) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of everything a module of `package` imports; `from a import b` is `a.b`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            # `from ..x import y` in package a.b is a.x.y
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            module = ".".join([*above, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{module}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call):
            match ast.unparse(node.func).split(".")[-1], node.args:
                case (("import_module" | "__import__"), [ast.Constant(value=str(name)), *_]):
                    yield node.lineno, name


def is_within(name: str, module: str) -> bool:
    return name == module or name.startswith(f"{module}.")


def breaches(path: str, source: str) -> list[str]:
    """What a file of a room, given by its path from the root, imports against the rules."""
    room = path.split("/")[0]
    found = []
    for line, name in imported(source, package=path.rsplit("/", 1)[0].replace("/", ".")):
        top = name.split(".")[0]
        if top in ROOMS and top != room and not any(is_within(name, opening) for opening in OPENINGS[room]):
            found.append(f"{path}:{line}: {room} may not import {name}")
        if top in HOLDERS and not any(fnmatch(path, holder) for holder in HOLDERS[top]):
            found.append(f"{path}:{line}: only {', '.join(HOLDERS[top])} may import {top}")
        if top in ABSENT.get(room, ()):
            found.append(f"{path}:{line}: {room} must work without {top}")
    return found


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_import_only_what_they_may(room: str) -> None:
    files = sorted((ROOT / room).rglob("*.py"))
    assert files
    assert [b for f in files for b in breaches(f.relative_to(ROOT).as_posix(), f.read_text())] == []


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("rollout_server/worker.py", "import learner"),
        ("rollout_server/worker.py", "from ray.util import metrics"),
        ("rollout_server/worker.py", "def f():\n    import ray"),
        ("rollout_server/balancing.py", "if TYPE_CHECKING:\n    from vllm import LLM"),
        ("reward_service/clients/client.py", "from orchestration.run.ports import Problem"),
        ("reward_service/rewards/format.py", "import torch.nn as nn"),
        ("learner/worker.py", "from rollout_server.config import RolloutConfig"),
        ("learner/worker.py", "from rollout_server import config"),
        ("learner/worker.py", "from .. import orchestration\nfrom ..orchestration import loop"),
        ("learner/policy/policy.py", "importlib.import_module('deepspeed.comm')"),
        ("orchestration/bench/rollout.py", "__import__('vllm')"),
        ("orchestration/cli.py", "from sagemaker.train import ModelTrainer"),
    ],
)
def test_a_breach_is_seen(path: str, source: str) -> None:
    assert breaches(path, source)


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("learner/worker.py", "from rollout_server.types import Completion\nfrom rollout_server import types"),
        ("learner/engine/engine.py", "import deepspeed\nfrom .policy import Policy\nfrom . import loss"),
        ("orchestration/submit/sagemaker/backend.py", "from sagemaker.train import ModelTrainer"),
        ("orchestration/bench/rollout.py", "from rollout_server.engine import Engine"),
        ("rollout_server/worker.py", "import raycast, vllm_tools  # other packages whose names begin alike"),
    ],
)
def test_what_is_allowed_is_let_through(path: str, source: str) -> None:
    assert breaches(path, source) == []


def loaded_after(code: str) -> list[str]:
    """Which heavy libraries a fresh interpreter holds after `code`."""
    report = f"import sys; print('loaded:', *(m for m in {HEAVY} if m in sys.modules))"
    result = subprocess.run(
        [sys.executable, "-c", f"{code}\n{report}"], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()[-1].split()[1:]


@pytest.mark.parametrize(
    "module", ["orchestration.settings.config", "orchestration.cli", "orchestration.machine.doctor"]
)
def test_what_starts_first_loads_nothing_heavy(module: str) -> None:
    assert loaded_after(f"import {module}") == []


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys\nfrom orchestration.cli import main\nsys.argv = ['rlvr', '--help']\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code, end.code"
    )
    assert loaded_after(code) == []


def test_the_reward_service_loads_nothing_heavy() -> None:
    assert loaded_after("import reward_service.api.app") == []
