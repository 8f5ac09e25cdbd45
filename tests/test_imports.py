"""The walls of the house, read from the source: imports in functions and under TYPE_CHECKING count too.

Rooms have doors, the folders inside a room lie on floors, and arrows run down only. Heavy libraries have holders.
Not covered: names put together at run time (`import_module(some_variable)`).
"""

from __future__ import annotations

import ast
import functools
import graphlib
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# room → its modules that other rooms may import
DOORS = {
    "rollout_server": ("arrays", "pickling", "types", "config", "errors", "worker", "balancing", "forking"),
    "learner": ("types", "config", "errors", "worker", "checkpoint"),
    "reward_service": ("types", "settings", "errors", "commands", "child", "keys", "clients", "audit.reading"),
    "orchestration": (),
}

# room → the rooms whose doors it may use; of the learner's neighbour, three modules
NEIGHBOURS = {
    "rollout_server": (),
    "learner": ("rollout_server.arrays", "rollout_server.pickling", "rollout_server.types"),
    "reward_service": (),
    "orchestration": ("rollout_server", "learner", "reward_service"),
}

# What is compared with the inside of a room must reach it: benchmark → modules behind the doors
OPENINGS = {
    "orchestration/bench/gpu/attention.py": (
        "learner.tree.blocks",
        "learner.tree.flex",
        "learner.tree.levels",
        "learner.tree.prefix_tree",
    ),
    "orchestration/bench/gpu/learner.py": ("learner.tree.prefix_tree",),
    "orchestration/bench/gpu/probe.py": ("learner.policy.policy", "learner.tree.prefix_tree"),
    "orchestration/bench/gpu/trees.py": ("learner.tree.prefix_tree",),
    "orchestration/bench/learner.py": ("learner.tree.prefix_tree",),
    "orchestration/bench/contenders/__init__.py": ("learner.tree.attention",),
    "orchestration/bench/contenders/trl_trainer.py": ("learner.policy.policy", "learner.step.plan"),
    "orchestration/bench/contenders/trl_async.py": (
        "learner.policy.policy",
        "learner.step.plan",
        "learner.tree.prefix_tree",
    ),
    "orchestration/bench/learner_floor.py": ("learner.tree.prefix_tree",),
    "orchestration/bench/plain_vllm.py": ("rollout_server.engine_settings", "rollout_server.vllm_types"),
    "orchestration/bench/reward.py": (
        "reward_service.audit.settings",
        "reward_service.registry",
        "reward_service.rewards",
        "reward_service.scoring",
    ),
    "orchestration/bench/reward_servers.py": ("reward_service.schemas",),
    "orchestration/bench/reward_soak.py": ("reward_service.audit",),
}

# room → its floors, the lowest first: folders, and modules that lie in none of these folders. Two units of one floor do
# not import each other; the modules of one unit may.
FLOORS = {
    "rollout_server": (
        ("arrays", "pickling"),
        ("types", "config", "errors", "balancing", "forking", "vllm_extension"),
        ("repeatable",),
        ("engine_settings", "counters", "publishing", "cpu_lora_plugin"),
        ("vllm_types",),
        ("engine",),
        ("hosted_engine",),
        ("worker",),
    ),
    "learner": (
        ("config", "errors", "types"),
        ("advantages", "checkpoint", "probe"),
        ("tree", "loss", "engine"),
        ("policy",),
        ("step",),
        ("worker",),
    ),
    "reward_service": (
        ("errors", "types", "retry", "judging/settings", "sandbox/settings"),
        ("rates",),
        ("text", "audit/settings", "sandbox/inside", "keys", "schemas"),
        ("audit", "sandbox", "clients"),
        ("rewards",),
        ("settings",),
        ("custom", "scoring"),
        ("judging", "child"),
        ("registry",),
        ("pool",),
        ("api",),
        ("serve",),
        ("commands",),
        ("__main__",),
    ),
    "orchestration": (
        ("errors", "section", "concurrency", "control_tokens"),
        ("types", "extras", "watch", "sockets"),
        ("storage",),
        ("environments", "scratch"),
        ("data", "noise"),
        ("data/tasks",),
        ("settings",),
        ("run",),
        ("models", "report", "trace", "episodes"),
        ("page",),
        ("machine", "monitor", "tracking"),
        ("cluster", "plan"),
        ("evals",),
        ("sweep",),
        ("submit/common",),
        ("submit/ray",),
        ("submit/sagemaker/host",),
        ("submit/sagemaker/driver", "submit/sagemaker"),
        ("submit/hyperpod",),
        ("submit",),
        ("bench",),
        ("commands",),
        ("cli",),
        ("__main__",),
    ),
}

# library → the only files of ours that import it
HOLDERS = {
    "vllm": (
        "rollout_server/engine.py",
        "rollout_server/vllm_types.py",
        "rollout_server/vllm_extension.py",
        "rollout_server/cpu_lora_plugin.py",
        "rollout_server/publishing/probes_alone.py",
        "orchestration/bench/plain_vllm.py",
    ),
    "deepspeed": ("learner/engine/engine.py",),
    "peft": ("learner/policy/*.py", "orchestration/bench/contenders/trl_async.py"),
    "bitsandbytes": ("learner/policy/dequantize.py",),
    "trl": ("orchestration/bench/contenders/trl_*.py",),
    "datasets": ("orchestration/data/hub.py", "orchestration/bench/contenders/trl_*.py"),
    "ray": (
        *(f"orchestration/cluster/{name}.py" for name in ("bundles", "calls", "cluster", "gauges", "joining", "nodes")),
        "orchestration/cluster/showing/*.py",
        "orchestration/submit/ray/jobs.py",
        "orchestration/bench/driver.py",
    ),
    "reasoning_gym": ("orchestration/data/tasks/reasoning_gym.py", "reward_service/rewards/reasoning_gym.py"),
    "websockets": ("orchestration/environments/foreign/openenv.py",),
    "gymnasium": ("orchestration/environments/foreign/gymnasium.py",),
    "sagemaker": ("orchestration/submit/sagemaker/logs.py",),
    "kubernetes": ("orchestration/submit/hyperpod/api.py",),
    "boto3": ("orchestration/storage/aws.py",),
    **dict.fromkeys(("tensorboard", "mlflow", "wandb", "trackio"), ("orchestration/tracking/trackers.py",)),
    "matplotlib": ("orchestration/sweep/chart.py",),
    "scipy": ("orchestration/run/intervals.py",),
    "sqlalchemy": tuple(f"reward_service/audit/{name}.py" for name in ("database", "store", "tables")),
    "sympy": (
        "reward_service/text/expressions.py",
        "reward_service/text/plain.py",
        "reward_service/text/latex/*.py",
    ),
    "math_verify": ("reward_service/rewards/mathematics.py",),
    "fastapi": ("reward_service/api/*.py", "orchestration/bench/reward_servers.py"),
    "uvicorn": (
        "reward_service/api/connections.py",
        "reward_service/serve.py",
        "orchestration/bench/reward_servers.py",
    ),
}

# room → libraries it must work without
ABSENT = {"reward_service": ("torch", "transformers", "numpy")}

NO_MODULE = "no module"

# Breaches that are still to be mended: (from, to), units of FLOORS, or a file and a name. One that is mended must go.
STILL_OPEN: set[tuple[str, str]] = set()


@functools.cache
def modules() -> dict[str, str]:
    """Dotted name → path from the root, of every module of the rooms."""
    paths = (path.relative_to(ROOT).as_posix() for room in DOORS for path in sorted((ROOT / room).rglob("*.py")))
    return {path.removesuffix(".py").removesuffix("/__init__").replace("/", "."): path for path in paths}


@functools.cache
def imports_of(path: str) -> tuple[tuple[int, str], ...]:
    return tuple(imported((ROOT / path).read_text(), package=path.rsplit("/", 1)[0].replace("/", ".")))


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


def module_of(name: str) -> str | None:
    """The module of ours that an imported name is, or lies in; None if it is no module of ours."""
    while name and name not in modules():
        name = name.rpartition(".")[0]
    return name or None


# --- sizes -------------------------------------------------------------------------------------------------------

MOST_MODULES, MOST_LINES, LONGEST_CHAIN = 14, 400, 12
"""Of a folder, of a file; and of files that import each other when the first of them is imported."""


def test_folders_files_and_chains_stay_short() -> None:
    paths = list(modules().values())
    folders = Counter(path.rpartition("/")[0] for path in paths if not path.endswith("/__init__.py"))
    assert {folder: count for folder, count in folders.items() if count > MOST_MODULES} == {}
    lines = {path: (ROOT / path).read_text().count("\n") for path in paths}
    assert {path: count for path, count in lines.items() if count > MOST_LINES} == {}
    chains = {name: chain(name) for name in modules()}
    assert [found for found in chains.values() if len(found) > LONGEST_CHAIN] == []


@functools.cache
def chain(name: str) -> tuple[str, ...]:
    """The longest chain of modules of ours that importing one begins with; there are no circles, which `import` would
    stumble over."""
    path = modules()[name]
    package = path.rsplit("/", 1)[0].replace("/", ".")
    statements = [node for node in ast.parse((ROOT / path).read_text()).body if not isinstance(node, ast.If)]
    at_once = "\n".join(ast.unparse(node) for node in statements if isinstance(node, ast.Import | ast.ImportFrom))
    others = {module_of(imported_name) for _, imported_name in imported(at_once, package=package)} - {None, name}
    return (name, *max((chain(other) for other in others if other is not None), key=len, default=()))


# --- doors and holders -------------------------------------------------------------------------------------------


def breaches(path: str, source: str) -> list[tuple[str, str]]:
    """(file, name) of what a file of a room, given by its path from the root, imports against the rules."""
    names = [name for _, name in imported(source, package=path.rsplit("/", 1)[0].replace("/", "."))]
    return [(path, name) for name in names if not (may_enter(path, name) and may_hold(path, name))]


def may_enter(path: str, name: str) -> bool:
    room, other = path.split("/")[0], name.split(".")[0]
    if other not in DOORS or other == room:
        return True
    if any(is_within(name, opening) for opening in OPENINGS.get(path, ())):
        return True
    return any(is_within(name, neighbour) for neighbour in NEIGHBOURS[room]) and any(
        is_within(name, f"{other}.{door}") for door in DOORS[other]
    )


def may_hold(path: str, name: str) -> bool:
    library = name.split(".")[0]
    held = library not in HOLDERS or any(fnmatch(path, holder) for holder in HOLDERS[library])
    return held and library not in ABSENT.get(path.split("/")[0], ())


def all_breaches() -> set[tuple[str, str]]:
    return {breach for path in modules().values() for breach in breaches(path, (ROOT / path).read_text())}


def test_rooms_are_entered_by_their_doors_and_libraries_have_holders() -> None:
    assert all_breaches() - STILL_OPEN == set()


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
        ("orchestration/cluster/local.py", "from learner.step.plan import plan_step"),
        ("orchestration/cluster/local.py", "from reward_service import scoring"),
        ("orchestration/bench/rollout.py", "__import__('vllm')"),
        ("orchestration/bench/rollout.py", "from rollout_server.engine import VllmEngine"),
        ("orchestration/bench/learner.py", "from learner.tree.flex import flex"),
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
        ("orchestration/submit/sagemaker/logs.py", "from sagemaker.core.logs import multi_stream_iter"),
        ("orchestration/bench/plain_vllm.py", "from rollout_server.vllm_types import completion_from"),
        ("orchestration/cluster/actors.py", "from reward_service.clients.asynchronous import RewardClient"),
        ("rollout_server/worker.py", "import raycast, vllm_tools  # other packages whose names begin alike"),
    ],
)
def test_what_is_allowed_is_let_through(path: str, source: str) -> None:
    assert breaches(path, source) == []


def test_every_door_opening_and_holder_is_used() -> None:
    assert [
        f"{room}.{door}" for room, doors in DOORS.items() for door in doors if f"{room}.{door}" not in modules()
    ] == []
    for path, openings in OPENINGS.items():
        names = [name for _, name in imports_of(path)]
        assert [opening for opening in openings if not any(is_within(name, opening) for name in names)] == [], path
    held = {(path, name.split(".")[0]) for path in modules().values() for _, name in imports_of(path)}
    for library, holders in HOLDERS.items():
        idle = [one for one in holders if not any(fnmatch(path, one) and name == library for path, name in held)]
        assert idle == [], library


# --- floors ------------------------------------------------------------------------------------------------------


def unit_of(path: str) -> str | None:
    """The unit of FLOORS that a file belongs to, the innermost; None if it has no place."""
    room, _, inside = path.removesuffix(".py").partition("/")
    units = [unit for floor in FLOORS[room] for unit in floor if inside == unit or inside.startswith(f"{unit}/")]
    return f"{room}/{max(units, key=len)}" if units else None


def heights() -> dict[str, int]:
    return {f"{room}/{unit}": level for room in FLOORS for level, floor in enumerate(FLOORS[room]) for unit in floor}


def climbs(arrows: Mapping[str, set[str]], height: Mapping[str, int]) -> set[tuple[str, str]]:
    """Arrows between units that do not run down. `arrows`: file → files of the same room that it imports."""
    pairs = {(unit_of(path), unit_of(other)) for path, others in arrows.items() for other in others}
    return {(a, b) for a, b in pairs if a and b and a != b and height[b] >= height[a]}


def arrows_of_rooms() -> dict[str, set[str]]:
    """file → files of the same room that it imports."""
    found = {}
    for path in modules().values():
        targets = {modules()[module] for _, name in imports_of(path) if (module := module_of(name))}
        found[path] = {target for target in targets if target.split("/")[0] == path.split("/")[0]}
    return found


def test_arrows_run_down() -> None:
    assert climbs(arrows_of_rooms(), heights()) - STILL_OPEN == set()


@pytest.mark.parametrize(
    ("path", "other"),
    [
        ("learner/tree/blocks.py", "learner/step/plan.py"),
        ("learner/tree/blocks.py", "learner/loss/kl.py"),  # the same floor
        ("learner/config.py", "learner/worker.py"),
        ("orchestration/storage/s3.py", "orchestration/run/loop.py"),
        ("orchestration/submit/ray/jobs.py", "orchestration/submit/registry.py"),
        ("reward_service/audit/settings.py", "reward_service/audit/store.py"),
    ],
)
def test_an_arrow_that_climbs_is_seen(path: str, other: str) -> None:
    assert climbs({path: {other}}, heights()) == {(unit_of(path), unit_of(other))}
    assert climbs({other: {path}}, heights()) == set() or heights()[unit_of(path)] == heights()[unit_of(other)]


def empty_units() -> set[tuple[str, str]]:
    return {(unit, NO_MODULE) for unit in heights().keys() - set(map(unit_of, modules().values()))}


def test_every_module_has_a_floor_and_every_floor_a_module() -> None:
    roots = {f"{room}/__init__.py" for room in DOORS}
    assert [path for path in modules().values() if unit_of(path) is None and path not in roots] == []
    assert empty_units() - STILL_OPEN == set()


def test_what_is_said_to_be_open_is_open() -> None:
    assert STILL_OPEN - all_breaches() - climbs(arrows_of_rooms(), heights()) - empty_units() == set()


# --- circles -----------------------------------------------------------------------------------------------------


def circle_in(arrows: Mapping[str, set[str]]) -> list[str]:
    """The files of one circle, if there is any; a package that imports its own modules is none."""
    try:
        graphlib.TopologicalSorter({path: others - {path} for path, others in arrows.items()}).prepare()
    except graphlib.CycleError as error:
        return list(error.args[1])
    return []


def test_no_modules_import_each_other() -> None:
    assert circle_in(arrows_of_rooms()) == []


def test_a_circle_is_seen() -> None:
    assert set(circle_in({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}})) == {"a", "b", "c"}


# --- what starts quickly -----------------------------------------------------------------------------------------

# What `rlvr --help`, `rlvr doctor` and a bad key must not wait for.
HEAVY = ("torch", "ray", "vllm", "deepspeed", "transformers", "peft", "trl", "scipy", "boto3", "datasets")
SERVER = ("fastapi", "sqlalchemy", "sympy", "pydantic")
HELP = (
    "import sys\nfrom orchestration.cli import main\nsys.argv = ['rlvr', '--help']\n"
    "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code, end.code"
)


def loaded_after(code: str, libraries: tuple[str, ...]) -> list[str]:
    """Which of `libraries` a fresh interpreter holds after `code`."""
    report = f"import sys; print('loaded:', *(m for m in {libraries} if m in sys.modules))"
    result = subprocess.run(
        [sys.executable, "-c", f"{code}\n{report}"], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()[-1].split()[1:]


@pytest.mark.parametrize(
    ("code", "absent"),
    [
        pytest.param("import orchestration.settings.config", HEAVY, id="settings"),
        pytest.param("import orchestration.machine.doctor", HEAVY, id="doctor"),
        pytest.param(HELP, HEAVY, id="help"),
        pytest.param("import reward_service.api.app", (*HEAVY, "numpy"), id="reward service"),
        pytest.param("import reward_service.clients.asynchronous", (*HEAVY, *SERVER), id="client"),
        pytest.param("import reward_service.clients.blocking", (*HEAVY, *SERVER), id="blocking client"),
        pytest.param("import reward_service.clients.trl", (*HEAVY, *SERVER), id="TRL's client"),
        pytest.param("import reward_service.clients.verl", (*HEAVY, *SERVER), id="verl's client"),
    ],
)
def test_what_starts_first_loads_nothing_heavy(code: str, absent: tuple[str, ...]) -> None:
    assert loaded_after(code, absent) == []


def test_something_heavy_is_seen() -> None:
    assert loaded_after("import sympy", HEAVY + SERVER) == ["sympy"]
