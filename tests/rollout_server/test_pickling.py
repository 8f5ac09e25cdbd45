from __future__ import annotations

import copy
import pickle

import pytest

from rollout_server.arrays import Logprobs, TokenIds
from rollout_server.types import Completion, FinishReason, Prompt, SamplingParams, Turn

VALUES = (
    Completion(
        prompt_id="p",
        token_ids=TokenIds((1, 2)),
        sampling_logprobs=Logprobs((-0.5, -1.5)),
        text="é",
        finish_reason=FinishReason.LENGTH,
        adapter_version=3,
    ),
    Prompt(prompt_id="p", token_ids=TokenIds((1,)), seed=5, turn=Turn(key="k", index=0, size=2)),
    SamplingParams(stop=("\n",)),
)


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
@pytest.mark.parametrize("protocol", [2, 5])
def test_what_is_pickled_by_its_fields_comes_back_equal(value: object, protocol: int) -> None:
    again = pickle.loads(pickle.dumps(value, protocol=protocol))
    assert again == value == copy.copy(value)
    assert repr(again) == repr(value)
