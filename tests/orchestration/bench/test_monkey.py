"""Whom `rlvr bench monkey` strikes, and how it counts what came of it. `test_soak` has it strike a training."""

from __future__ import annotations

import mmap
import random
import signal
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from learner.types import ScoredCompletion, ScoredGroup
from orchestration.bench.runs.monkey import (
    FAULTS,
    FORKED,
    Mischief,
    Victim,
    abandoned_mib,
    check_ledger,
    check_reward,
    chosen,
    kind_of,
    settled,
    strike,
)
from orchestration.data.cursor import DataCursor
from orchestration.errors import RlvrError
from orchestration.run.ledger.folder import RunFolder
from orchestration.settings.config import RunConfig, load_config
from rollout_server.forking.leftovers import SHARED_MEMORY, owned_prefix
from rollout_server.types import Completion, FinishReason
from tests.orchestration.fakes import record_of

SERVER = "python -m rollout_server.forking.server 5 /tmp/x vllm"


@pytest.mark.parametrize(
    ("line", "parent", "kind"),
    [
        ("ray::RolloutActor", "raylet/raylet --x", "rollout actor"),
        ("ray::LearnerActor.update", "raylet/raylet --x", "learner actor"),
        (SERVER, "python -m orchestration.cli train tiny", None),
        (SERVER, SERVER, FORKED),
        ("python -m reward_service --settings -", "python -m orchestration.cli train tiny", "reward service"),
        ("/x/ray/core/src/ray/raylet/raylet --y", "python", "raylet"),
        ("/x/gcs_server", "python", "GCS"),
        ("python -m orchestration.cli train tiny reward.stall_timeout_s=10", "bash", "driver"),
        ("python -m pytest", "bash", None),
    ],
)
def test_processes_are_known_by_their_command_lines(line: str, parent: str, kind: str | None) -> None:
    assert kind_of(line, parent) == kind


def test_every_fault_comes_once_before_any_comes_again_however_few_there_are_of_a_kind() -> None:
    victims = [Victim(kind, pid) for pid, kind in enumerate(sorted({kind for kind, _ in FAULTS}))]
    many = [*victims, *(Victim(FORKED, pid) for pid in range(10, 90))]
    draw, faults = random.Random(0), Counter[tuple[str, signal.Signals]]()
    rounds = []
    for _ in range(3):
        for _ in FAULTS:
            found = chosen(many, faults, draw)
            assert found is not None
            faults[found[0].kind, found[1]] += 1
            rounds.append((found[0].kind, found[1]))
        assert set(faults.values()) == {len(rounds) // len(FAULTS)}
    assert rounds[: len(FAULTS)] != rounds[len(FAULTS) : 2 * len(FAULTS)]  # in another order
    faults += Counter({fault: 1 for fault in FAULTS if fault[0] != "raylet"})
    assert chosen([victim for victim in many if victim.kind != "raylet"], faults, draw) is None


def test_shared_memory_that_nobody_has_in_use_is_abandoned() -> None:
    before = abandoned_mib()
    with tempfile.NamedTemporaryFile(dir=SHARED_MEMORY, prefix=owned_prefix("test")) as file:
        file.write(bytes(200 * 2**20))
        file.flush()
        with mmap.mmap(file.fileno(), 0):
            assert abandoned_mib() < before + 100
        assert abandoned_mib() > before + 100
    assert abandoned_mib() < before + 100


def test_who_is_gone_is_not_counted() -> None:
    mischief = Mischief()
    assert not strike(Victim("driver", 2**22 + 1), signal.SIGTERM, mischief)  # above the kernel's largest
    assert not mischief.faults


def trained(run: Path, steps: Sequence[Sequence[str]]) -> RunConfig:
    """The folder of a run whose steps learned from these prompts."""
    config = load_config("tiny", [f"run_dir={run}", "max_steps=3", "prompts_per_step=2", "rollout.num_generations=2"])
    folder = RunFolder.create(config)
    completion = Completion(
        prompt_id="",
        token_ids=(1,),
        sampling_logprobs=(-1.0,),
        text="",
        finish_reason=FinishReason.STOP,
        adapter_version=0,
    )
    for step, prompts in enumerate(steps, 1):
        members = [
            ScoredCompletion(completion=replace(completion, prompt_id=name), rewards=(1.0,), total=1.0)
            for name in prompts
        ]
        groups = [
            ScoredGroup(prompt_id=name, prompt_token_ids=(1,), members=(one, one))
            for name, one in zip(prompts, members, strict=True)
        ]
        folder.write_table(record_of(step, groups, advantages=((0.0, 0.0),) * len(groups)))
        folder.append_metrics({"step": step, "reward_mean": 0.25 * step})
    folder.close()
    return config


def planned() -> list[list[str]]:
    config = load_config("tiny", ["max_steps=3"])
    names = [problem.problem_id for problem in DataCursor(config.data.load().train, config.seed).take(6)]
    return [names[:2], names[2:4], names[4:]]


def test_a_run_as_planned_is_taken_with_the_rewards_of_its_second_half(tmp_path: Path) -> None:
    config = trained(tmp_path / "run", planned())
    check_ledger(config)
    assert settled(config) == [0.5, 0.75]


@pytest.mark.parametrize("reward", [0.24, 0.76, float("nan")])
def test_a_reward_outside_of_what_undisturbed_steps_earn_is_told(reward: float) -> None:
    check_reward(0.4, [0.5, 0.25, 0.75], "run-0")
    with pytest.raises(RlvrError, match=rf"run-0: its reward is {reward:.3f}, and undisturbed 0\.250 to 0\.750"):
        check_reward(reward, [0.5, 0.25, 0.75], "run-0")


def test_a_step_that_is_missing_and_prompts_learned_twice_or_never_are_told(tmp_path: Path) -> None:
    first, second, third = planned()
    with pytest.raises(RlvrError, match=r"the updates are \[1, 2\], and not 1 to 3"):
        check_ledger(trained(tmp_path / "short", [first, second]))
    with pytest.raises(RlvrError, match=rf"too often: {{'{first[0]}': 2}}, too seldom: {{'{third[1]}': 2}}"):
        check_ledger(trained(tmp_path / "twice", [first, second, [third[0], first[0]]]))
