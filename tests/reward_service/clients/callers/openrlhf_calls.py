"""Run by test_callers_openrlhf.py beside an installed OpenRLHF: its own command line's parser and its own executor.

    openrlhf_calls.py URL FLAG      prints JSON: what the flag's value became, and what each completion earned

Ours are the engine, which says what it is told to, the tokenizer, of which a token is a letter, and in place of kernels
that do not exist for CPUs, nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.machinery
import json
import runpy
import sys
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest import mock

import torch

KERNELS = ("flash_attn", "flash_attn.bert_padding", "flash_attn.utils", "flash_attn.utils.distributed")
PROMPT = "<|im_start|>user\nWhat is 48 + 24?<|im_end|>\n<|im_start|>assistant\n"
GOOD = "48 + 24 = 72\n#### The final answer is 72"
ROWS: list[tuple[str, Any]] = [
    (f"{GOOD}<|im_end|>\n", "72"),
    (f"{GOOD}<|im_end|>", "48 + 24 = <<48+24=72>>72\n#### 72"),
    (f"{GOOD}<|im_end|>", ["72"]),
    (f"{GOOD}<|im_end|>", "73"),
    ("no idea<|im_end|>", "72"),
    (f"{GOOD}<|im_end|>", "nobody knows"),
    (f"{GOOD}<|im_end|>", ""),
]


class ParsedError(Exception):
    """The command line has been read; nothing is to be trained."""


def without_kernels() -> None:
    for name in KERNELS:
        module = ModuleType(name)
        module.__spec__ = importlib.machinery.ModuleSpec(name, None, is_package=True)
        module.__path__ = []  # type: ignore[attr-defined]
        module.__getattr__ = lambda _: None  # type: ignore[method-assign]
        sys.modules[name] = module


def parsed(flag: str, value: str) -> Any:
    """What the trainer's own parser makes of the flag."""
    parse = argparse.ArgumentParser.parse_args
    found: list[Any] = []

    def record(self: argparse.ArgumentParser, *arguments: Any) -> argparse.Namespace:
        found.append(parse(self, *arguments))
        raise ParsedError

    without_kernels()
    with (
        mock.patch.object(sys, "argv", ["train_ppo_ray", flag, value]),
        mock.patch.object(argparse.ArgumentParser, "parse_args", record),
    ):
        try:
            runpy.run_module("openrlhf.cli.train_ppo_ray", run_name="__main__")
        except ParsedError:
            return vars(found[0])[flag.removeprefix("--")]
    raise AssertionError("the trainer read no command line")


class Letters:
    """A token is a letter."""

    def __call__(self, text: str, **_: Any) -> Any:
        return {"input_ids": torch.tensor([[ord(letter) for letter in text]])}

    def decode(self, ids: Any, skip_special_tokens: bool = False) -> str:
        return "".join(chr(int(one)) for one in ids)


class Engine:
    """Says what it is told to."""

    def __init__(self, text: str) -> None:
        self._text = text

    async def generate(self, *_: Any, **__: Any) -> Any:
        ids = [ord(letter) for letter in self._text]
        return SimpleNamespace(outputs=[SimpleNamespace(token_ids=ids, finish_reason="stop", logprobs=None)])


async def executed(url: str) -> list[dict[str, Any]]:
    """What the executor hands on to the trainer, of which that makes tensors."""
    from openrlhf.utils.agent import SingleTurnAgentExecutor

    executor = SingleTurnAgentExecutor(url)
    sampling = SimpleNamespace(max_tokens=500, logprobs=None)
    outputs = await asyncio.gather(
        *(executor.execute(PROMPT, label, sampling, 1000, Letters(), Engine(text)) for text, label in ROWS),
        executor.execute(PROMPT, "72", sampling, 540, Letters(), Engine(GOOD)),  # whose prompt is cut to 40 tokens
    )
    torch.cat([torch.tensor([output["reward"]]) for output in outputs])
    return list(outputs)


def kept_by_dynamic_filtering(groups: dict[str, list[dict[str, Any]]]) -> list[str]:
    """Which groups the trainer's own filter keeps; Ray is asked for nothing, the groups are there already."""
    from openrlhf.trainer.ppo_utils import samples_generator as module

    generator = object.__new__(module.SamplesGenerator)
    generator.args = SimpleNamespace(algo=SimpleNamespace(dynamic_filtering_range=(0, 1)))
    generator._dispatch_prompts_to_vllm = lambda *_, **__: list(groups)
    drawn = iter([(list(groups), [None], [None], False)])

    def draw(*_: Any) -> Any:
        return next(drawn, ([], [], [], True))

    with (
        mock.patch.object(module, "_collect_prompt_batch", draw),
        mock.patch.object(module.ray, "wait", lambda refs, **_: (refs[:1], refs[1:])),
        mock.patch.object(module.ray, "get", lambda ref: [{**output, "prompt": ref} for output in groups[ref]]),
    ):
        experiences, _, _ = generator._generate_vllm(iter(()), len(groups), True, max_len=1000)
    return list(dict.fromkeys(experience.prompts[0] for experience in experiences))


def main(url: str, flag: str) -> None:
    outputs = asyncio.run(executed(url))
    found: dict[str, Any] = {"flag": parsed(flag, url)}
    if flag == "--reward.remote_url":
        right, wrong, unscorable = outputs[0], outputs[3], outputs[5]
        found["kept"] = kept_by_dynamic_filtering({"scored": [right, wrong], "one is not": [right, right, unscorable]})
    found["outputs"] = [{key: output[key] for key in ("reward", "scores", "extra_logs")} for output in outputs]
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
