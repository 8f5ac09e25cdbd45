"""Which tokens a version is proven by."""

from __future__ import annotations

from dataclasses import replace

import torch

from learner.probe import probe_tokens
from rollout_server.arrays import TokenIds
from rollout_server.types import EpisodeTurn, FinishReason, Fork
from tests.learner.helpers import make_group

PROMPT, LONG = tuple(range(100, 160)), tuple(range(200, 230))


def test_in_float32_a_few_tokens_do_and_in_bfloat16_they_stand_behind_the_whole_prompt() -> None:
    group = make_group(PROMPT, [LONG, LONG], [1.0, 0.0])
    assert probe_tokens(group, torch.float32) == PROMPT[-2:] + LONG[:6]
    assert probe_tokens(group, torch.bfloat16) == PROMPT + LONG[:12]


def test_a_short_completion_leaves_room_for_more_of_the_prompt() -> None:
    group = make_group(PROMPT, [LONG[:3], LONG], [1.0, 0.0])
    assert probe_tokens(group, torch.float32) == PROMPT[-6:] + LONG[:2]


def test_a_probe_never_fills_a_context_that_its_completion_filled() -> None:
    for num_tokens in (1, 2, 5, 12, 13):
        group = make_group(PROMPT, [LONG[:num_tokens], LONG], [1.0, 0.0])
        for dtype in (torch.float32, torch.bfloat16):
            assert len(probe_tokens(group, dtype)) < len(PROMPT) + num_tokens


def test_a_prompt_of_one_token_is_no_probe() -> None:
    assert len(probe_tokens(make_group((5,), [(6,), (7,)], [1.0, 0.0]), torch.float32)) == 8


def test_of_an_episode_the_second_turn_is_asked_behind_what_was_given_and_the_end_of_the_first() -> None:
    tokens = tuple(range(200, 230))
    turns = [
        EpisodeTurn(start=start, stop=stop, text="", finish_reason=FinishReason.STOP, adapter_version=0)
        for start, stop in ((0, 10), (16, 30))
    ]
    group = make_group(PROMPT, [tokens[:10], tokens], [1.0, 0.0])
    one, two = group.members
    two = replace(two, completion=replace(two.completion, turns=tuple(turns)))
    group = replace(group, members=(one, two))
    assert probe_tokens(group, torch.float32) == tokens[8:10] + tokens[12:16] + tokens[16:18]
    assert probe_tokens(group, torch.bfloat16) == PROMPT + tokens[:28]
    fork = Fork(start=16, prompt_token_ids=TokenIds(PROMPT))
    forked = replace(two, completion=replace(two.completion, forks=(fork,)))
    assert probe_tokens(replace(group, members=(forked, one)), torch.float32) == PROMPT[-2:] + tokens[:6]
