"""Run by test_callers_examples.py beside the installed SkyRL-gym: its registry makes our environment."""

from __future__ import annotations

import json
import sys

import gym_remote  # noqa: F401  # which registers it
import skyrl_gym


def main(*completions: str) -> None:
    rewards = []
    for completion in completions:
        env = skyrl_gym.make("remote", extras={"reward_spec": {"ground_truth": "48 + 24 = 72 #### 72"}})
        env.init([{"role": "user", "content": "What is 48 + 24?"}])
        rewards.append(env.step(completion)["reward"])
    print(json.dumps(rewards))


if __name__ == "__main__":
    main(*sys.argv[1:])
