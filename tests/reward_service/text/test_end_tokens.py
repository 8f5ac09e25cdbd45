"""Taking off what ends a turn, and nothing else."""

from __future__ import annotations

import pytest

from reward_service.settings import END_TOKENS
from reward_service.text.end_tokens import without_end_tokens


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("72", "72"),
        ("", ""),
        ("72\n", "72\n"),
        ("72<|im_end|>", "72"),
        ("72<|im_end|>\n", "72"),
        ("72\n<|im_end|>\n", "72\n"),
        ("72<end_of_turn>\n<eos>", "72"),
        ("72</s></s> </s>\n\n", "72"),
        ("<|endoftext|>" * 3, ""),
        ("72<|eot_id|>\r\nuser: thanks", "72\r\nuser: thanks"),
        ("72<|im_end|> \n71", "72 \n71"),  # what follows stays
        ("say <|im_end|> twice", "say <|im_end|> twice"),
        ("print('<s>old</s>')\nprint('<s>new</s>')", "print('<s>old</s>')\nprint('<s>new</s>')"),
        ("<s>old</s>\n72", "<s>old</s>\n72"),
    ],
)
def test_end_tokens(text: str, left: str) -> None:
    assert without_end_tokens(text, END_TOKENS) == left


def test_without_any_nothing_is_taken_off() -> None:
    assert without_end_tokens("72<|im_end|>\n", ()) == "72<|im_end|>\n"


def test_long_padding() -> None:
    assert without_end_tokens("72" + "<|endoftext|> \n" * 100_000, END_TOKENS) == "72"
