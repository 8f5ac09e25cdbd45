"""Which tokens a version is proven by."""

from __future__ import annotations

import torch

from learner.probe import probe_tokens
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
