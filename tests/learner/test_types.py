from __future__ import annotations

import pickle
from dataclasses import replace

from learner.types import ScoredCompletion, ScoredGroup, SealedGroup
from rollout_server.types import Completion, FinishReason


def group_of(text: str) -> ScoredGroup:
    completion = Completion(
        prompt_id="p",
        token_ids=(1, 2),
        sampling_logprobs=(-0.5, -1.5),
        text=text,
        finish_reason=FinishReason.STOP,
        adapter_version=0,
    )
    member = ScoredCompletion(completion=completion, rewards=(1.0,), total=1.0)
    return ScoredGroup(prompt_id="p", prompt_token_ids=(5,), members=(member,), category="c")


def test_a_sealed_group_is_passed_on_as_it_came() -> None:
    group = group_of("é")
    sealed = pickle.loads(pickle.dumps(SealedGroup.of(group), pickle.HIGHEST_PROTOCOL))
    assert (sealed.prompt_id, sealed.prompt_token_ids, sealed.members, sealed.category, sealed.flat) == (
        group.prompt_id,
        group.prompt_token_ids,
        group.members,
        group.category,
        group.flat,
    )
    content = pickle.dumps(group, pickle.HIGHEST_PROTOCOL)
    assert content in pickle.dumps(sealed, pickle.HIGHEST_PROTOCOL)


def test_a_changed_one_is_pickled_anew() -> None:
    changed = replace(SealedGroup.of(group_of("before")), members=group_of("after").members)
    assert pickle.loads(pickle.dumps(changed)).members[0].completion.text == "after"
