"""What all tests share: nothing leaves the machine, and the order in which they run."""

from __future__ import annotations

import functools
import os
import signal
import sys
from pathlib import Path
from typing import Any

import hypothesis
import pytest

hypothesis.settings.register_profile("untimed", deadline=None)  # a busy machine is no failure
hypothesis.settings.load_profile("untimed")

# Before any of these libraries is imported, and inherited by the processes that tests start.
os.environ.update(
    HF_HUB_OFFLINE="1",
    HF_DATASETS_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    VLLM_NO_USAGE_STATS="1",
    RAY_USAGE_STATS_ENABLED="0",
    OMP_WAIT_POLICY="PASSIVE",  # threads that wait by spinning took a quarter of the processor from the other processes
    TOKENIZERS_PARALLELISM="false",  # forking after the tokenizer's threads started warns and may hang
)

# Each of some hundred processes would compile our files again, and each of pytest's the tests.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# A shell without job control starts what it puts in the background deaf to Ctrl-C, nohup what it starts to a terminal
# that hangs up, and children inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)


ROOM = Path(__file__).parent
ENGINES = tuple(
    f"rollout_server/test_{name}.py"
    for name in ("engine", "vllm_extension", "hosted_engine", "waiting", "dequantized_base")
)
"""Files whose engines are forked from a process that has imported vLLM: by one server, where one process runs them."""

LONGEST = (
    "orchestration/cluster/test_soak.py",
    "orchestration/submit/test_sagemaker_emulated.py",
    "orchestration/cluster/test_end_to_end.py",
    "orchestration/submit/test_local.py",
    "orchestration/cluster/test_tasks.py",
    "orchestration/cluster/test_hosts.py",
    "learner/test_worker.py",
    *ENGINES,
    "learner/engine/test_checkpoint.py",
    "orchestration/bench/test_learner.py",
    "learner/loss/test_trl_conformance.py",
    "learner/policy/test_modules_to_save.py",
    "reward_service/api/test_service.py",
    "orchestration/submit/test_sagemaker_command.py",
    "reward_service/api/test_openapi.py",
    "orchestration/models/test_resolve.py",
)
"""Files that take half a minute or more, roughly by how long. What is not here follows, slow tests first."""


@functools.cache
def _has_clusters(file: str) -> bool:
    path = ROOM / file
    return path.is_file() and "mark.cluster" in path.read_text(encoding="utf-8")


def _file(item: pytest.Item) -> str:
    return item.path.relative_to(ROOM).as_posix()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Slow tests go last; but in several processes the longest files go first, or one would run on at the end alone."""
    order = {file: place for place, file in enumerate(LONGEST)}

    def place(item: pytest.Item) -> tuple[bool, int, bool]:
        file = _file(item)
        return not _has_clusters(file), order.get(file, len(order)), item.get_closest_marker("slow") is None

    if hasattr(config, "workerinput"):
        items.sort(key=place)
    else:
        items.sort(key=lambda item: item.get_closest_marker("slow") is not None)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """One process runs all tests of a file, and all of `ENGINES`. Two run those with clusters, which wait for a third
    of their time; the others fill that. With more, two Rays meet on one port."""
    from xdist.scheduler import LoadFileScheduling

    class BySharing(LoadFileScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            file = str(super()._split_scope(nodeid)).removeprefix("tests/")
            return "engines" if file in ENGINES else file

        def _assign_work_unit(self, node: Any) -> None:
            if node not in self.nodes[:2]:
                other = next((scope for scope in self.workqueue if not _has_clusters(scope)), None)
                if other is None:
                    return node.shutdown()
                self.workqueue.move_to_end(other, last=False)
            return super()._assign_work_unit(node)

    return BySharing(config, log) if config.getvalue("dist") == "loadfile" else None
