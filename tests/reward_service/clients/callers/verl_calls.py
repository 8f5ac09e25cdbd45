"""Run by test_callers_verl.py beside the installed verl: its own configuration, loader and reward managers.

    verl_calls.py URL PATH…    prints JSON: path → manager → what it made of three completions

The tokenizer alone is ours: a token is a character.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import sys
from typing import Any

import numpy as np
import torch
from hydra import compose, initialize_config_module
from verl import DataProto
from verl.experimental.reward_loop.reward_loop import migrate_legacy_reward_impl
from verl.trainer.ppo.reward import get_custom_reward_fn, load_reward_manager
from verl.workers.reward_manager import get_reward_manager_cls

GOOD = "48 + 24 = 72\n#### The final answer is 72"
ROWS = [
    (GOOD, np.array(["48 + 24 = <<48+24=72>>72\n#### 72"], dtype=object)),
    (GOOD, '{"final_answer": "73"}'),
    ("no idea", b"72"),
]
LENGTH = 64


class Letters:
    """A token is a letter."""

    eos_token = "</s>"

    def decode(self, ids: Any, skip_special_tokens: bool = True) -> str:
        return "".join(chr(int(one)) for one in ids)

    def batch_decode(self, rows: Any, skip_special_tokens: bool = True) -> list[str]:
        return [self.decode(row).rstrip("\0") for row in rows]


def config_of(path: str, function: str, url: str, manager: str) -> Any:
    """verl's own configuration, with the overrides that our README names."""
    overrides = [
        f"custom_reward_function.path={path}",
        f"custom_reward_function.name={function}",
        f"+custom_reward_function.reward_kwargs.url={url}",
        f"reward_model.reward_manager={manager}",
        "reward_model.num_workers=1",
        "data.max_response_length=64",
    ]
    with initialize_config_module("verl.trainer.config", version_base=None):
        return migrate_legacy_reward_impl(compose("ppo_trainer", overrides=overrides))


def batch_of(rows: list[tuple[str, Any]]) -> DataProto:
    """The rows as verl's rollout hands them on, padded with zeros."""
    responses = torch.zeros(len(rows), LENGTH, dtype=torch.long)
    mask = torch.zeros(len(rows), 1 + LENGTH, dtype=torch.long)
    mask[:, 0] = 1
    for row, (text, _) in enumerate(rows):
        responses[row, : len(text)] = torch.tensor([ord(letter) for letter in text])
        mask[row, 1 : 1 + len(text)] = 1
    tensors = {"prompts": torch.full((len(rows), 1), 63), "responses": responses, "attention_mask": mask}
    return DataProto.from_dict(
        tensors=tensors,
        non_tensors={
            "data_source": np.array(["openai/gsm8k"] * len(rows), dtype=object),
            "reward_model": np.array([{"style": "rule", "ground_truth": truth} for _, truth in rows], dtype=object),
            "extra_info": np.array([{"split": "train", "index": row} for row in range(len(rows))], dtype=object),
        },
    )


def scores_of(config: Any) -> list[float]:
    """What the reward loop gets."""
    manager = load_reward_manager(config, Letters())
    batch = batch_of(ROWS)

    async def score() -> list[dict[str, Any]]:
        return await asyncio.gather(*(manager.run_single(batch[row : row + 1]) for row in range(len(ROWS))))

    return [float(one["reward_score"]) for one in manager.loop.run_until_complete(score())]


def scores_of_legacy(name: str, config: Any) -> list[float]:
    """What the managers give that old configurations name; `prime` sends the function to other processes."""
    manager = get_reward_manager_cls(name)(Letters(), 0, get_custom_reward_fn(config))
    with contextlib.redirect_stdout(io.StringIO()) as said:
        scores = manager(batch_of(ROWS))
    assert "[Error]" not in said.getvalue(), said.getvalue()
    return [float(row.sum()) for row in scores]


def by_the_reward_loop(url: str, path: str) -> dict[str, list[float]]:
    """By every manager that calls the function in this process."""
    return {
        f"{manager}, {function}": scores_of(config_of(path, function, url, manager))
        for manager in ("naive", "dapo", "gdpo", "rate_limited")
        for function in ("compute_score", "compute_score_async")
    }


def by_the_old_managers(url: str, path: str) -> dict[str, list[float]]:
    """`prime` leaves no event loop behind that could be used."""
    one, many = (config_of(path, function, url, "naive") for function in ("compute_score", "compute_score_batch"))
    named = {"naive": one, "dapo": one, "prime": one, "batch": many}
    return {f"{name} of old": scores_of_legacy(name, config) for name, config in named.items()}


def by_ray_actors(url: str, path: str) -> dict[str, list[float]]:
    """By the manager that sends the function to other processes of Ray's."""
    return {"remote": scores_of(config_of(path, "compute_score", url, "remote"))}


def main(url: str, *paths: str) -> None:
    import ray

    ray.init("local", num_cpus=1, include_dashboard=False, configure_logging=False, log_to_driver=False)
    found = {path: by_ray_actors(url, path) for path in paths}
    ray.shutdown()
    for path in paths:
        found[path] |= by_the_reward_loop(url, path)
    for path in paths:
        found[path] |= by_the_old_managers(url, path)
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
