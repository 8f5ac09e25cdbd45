"""Tasks that are not GSM8K, from the command to the adapter: real Ray, vLLM, DeepSpeed and HTTP on the tiny model.

Long because every run starts a cluster, an engine and a learner of its own, as a user's does.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.orchestration.data.test_task import OWN_TASK

pytestmark = [pytest.mark.slow, pytest.mark.cluster, pytest.mark.timeout(900)]

SMALL = ("dashboard=false", "max_steps=1", "prompts_per_step=2", "data.num_shots=0", "rollout.max_model_len=512")


def rlvr(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "orchestration.cli", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)


def trained(run: Path, *words: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The last row and the summary of a run of a step or more."""
    done = rlvr("train", *words, f"run_dir={run}")
    assert done.returncode == 0, done.stdout + done.stderr
    row = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    return row, json.loads((run / "summary.json").read_text())


def test_a_task_and_a_reward_of_ones_own_are_trained_on_and_evaluated(tmp_path: Path) -> None:
    """Two files and a recipe beside each other; several rewards at once, with weights and parameters."""
    (tmp_path / "own_task_of_a_test.py").write_text(OWN_TASK)
    (tmp_path / "own_reward_of_a_test.py").write_text(
        "def brevity(completion, reference, params):\n    return 1 / (1 + len(completion))\n"
    )
    (tmp_path / "service.yaml").write_text(
        "custom_rewards: [{name: brevity, target: 'own_reward_of_a_test:brevity', low: 0, high: 1}]"
    )
    recipe = tmp_path / "own.yaml"
    recipe.write_text(
        json.dumps(
            {
                "model": {"name": "tiny"},
                "data": {"kind": "own_task_of_a_test:Doubling"},
                "rollout": {"num_generations": 4, "max_completion_length": 12, "kv_cache_gib": 0.25},
                "reward": {
                    "settings_file": str(tmp_path / "service.yaml"),
                    "rewards": [
                        {"name": "brevity", "weight": 2.0},
                        {"name": "length", "weight": 0.1, "params": {"max_length": 40, "cache": 40}},
                        {"name": "last_number"},
                    ],
                },
            }
        )
    )
    row, summary = trained(tmp_path / "run", str(recipe), *SMALL)
    weighted = 2 * row["reward_brevity_mean"] + 0.1 * row["reward_length_mean"] + row["reward_last_number_mean"]
    assert row["reward_mean"] == pytest.approx(weighted)
    assert summary["accuracy"].keys() == {"strict"}
    assert summary["accuracy"]["strict"]["after"] is not None
    adapter = ("--model", "tiny", "--adapter", f"{tmp_path}/run/adapter")
    done = rlvr("eval", *adapter, "--data", str(recipe), "--json", "rollout.max_model_len=512")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["held_out"]["sides"]["adapter"]["greedy"].keys() >= {"strict"}


def test_episodes_of_several_turns_are_learned_from(tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = ("rollout.num_generations=8", "data.num_eval=4", "learner.learning_rate=1e-3", "rollout.block_size=32")
    words += ("data.max_guesses=3", "episodes.max_turns=3")  # the third turn finds a block of the second's
    words += ("reward.rewards=[{name: environment, params: {discount: 0.5}}]", "episodes.credit=turn")
    row, summary = trained(run, "guess", *SMALL, *words, "max_steps=2", "rollout.max_model_len=256")
    assert (row["num_completions"], row["num_unscored"], row["failed_episodes"]) == (16, 0, 0)
    assert 2 < row["turns_mean"] <= 3
    assert row["given_tokens_mean"] > 0
    assert row["retokenised_tokens"] == 0
    assert row["sampling_logprob_difference_max"] < 1e-3  # of both turns: served is trained
    assert summary["accuracy"]["strict"]["after"] is not None
    assert row["prefix_cache_hit_share"] > 0.9
    replayed = rlvr("replay", str(run), "2", "--compare")
    assert replayed.returncode == 0, replayed.stdout + replayed.stderr
    told = rlvr("trace", str(run), "2/0/0")
    assert "turn 1" in told.stdout, told.stderr
    assert "answers for" in told.stdout
    again = rlvr("replay", str(run), "2", "--compare", "--rollout")  # turns in lockstep: bit for bit
    assert again.returncode == 0, again.stdout + again.stderr
