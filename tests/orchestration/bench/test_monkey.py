"""Whom `rlvr bench monkey` strikes, and how it counts what came of it. `test_faults` has it strike a training."""

from __future__ import annotations

import random
import signal
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from learner.types import ScoredCompletion, ScoredGroup
from orchestration.bench.runs.monkey import FATAL, FORKED, Mischief, Victim, checked, chosen, kind_of, strike
from orchestration.data.cursor import DataCursor
from orchestration.errors import RlvrError
from orchestration.run.ledger.folder import RunFolder
from orchestration.settings.config import RunConfig, load_config
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


def test_every_kind_is_struck_with_every_signal_of_its_own_however_few_there_are_of_it() -> None:
    victims = [
        Victim("driver", 1),
        Victim("raylet", 2),
        Victim("GCS", 3),
        *(Victim(FORKED, pid) for pid in range(4, 90)),
    ]
    draw = random.Random(0)
    drawn = Counter((victim.kind, number) for victim, number in (chosen(victims, draw) for _ in range(400)))
    assert set(drawn) == {
        ("driver", signal.SIGKILL),
        ("driver", signal.SIGTERM),
        ("raylet", signal.SIGKILL),
        ("GCS", signal.SIGKILL),
        (FORKED, signal.SIGKILL),
        (FORKED, signal.SIGSTOP),
    }
    assert all(sum(n for (kind, _), n in drawn.items() if kind == one) > 60 for one in (*FATAL, FORKED))


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


def test_a_run_as_planned_is_taken_with_the_reward_of_its_last_steps(tmp_path: Path) -> None:
    assert checked(trained(tmp_path / "run", planned())) == 0.75


def test_a_step_that_is_missing_and_prompts_learned_twice_or_never_are_told(tmp_path: Path) -> None:
    first, second, third = planned()
    with pytest.raises(RlvrError, match=r"the updates are \[1, 2\], and not 1 to 3"):
        checked(trained(tmp_path / "short", [first, second]))
    with pytest.raises(RlvrError, match=rf"too often: {{'{first[0]}': 2}}, too seldom: {{'{third[1]}': 2}}"):
        checked(trained(tmp_path / "twice", [first, second, [third[0], first[0]]]))
