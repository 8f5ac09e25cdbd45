"""The gradient of a step does not depend on how the step is cut up: order, budget, ranks, sharing, padding."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from learner.config import LearnerConfig
from learner.loss.entropy_selection import step_entropy_threshold
from learner.policy.policy import Policy, tree_inputs, tree_logprobs
from learner.step.microbatches import plan_ranks
from learner.step.passes import loss_of_step, make_microbatch, run_pass
from learner.step.plan import plan_step
from learner.tree.prefix_tree import build_tree
from learner.types import ScoredGroup
from tests.learner.helpers import random_episodes, random_groups
from tests.learner.policy.test_policy import CPU, make_policy, trained

MAX_COMPLETION_LENGTH = 16

LOSSES: dict[str, dict[str, object]] = {
    **{name: {"loss_type": name} for name in ("grpo", "bnpo", "dapo", "dr_grpo", "cispo", "sapo", "luspo", "vespo")},
    "gspo": {"loss_type": "grpo", "importance_sampling_level": "sequence"},
    "kl": {"beta": 0.1},
    "truncated_weights": {"vllm_importance_sampling_mode": "token_truncate"},
    "off_policy_mask": {"off_policy_mask_threshold": 0.1},
    "high_entropy_tokens": {"top_entropy_quantile": 0.3},
}


@pytest.fixture(scope="module")
def policy(llama: str) -> Policy:
    return make_policy(llama)


def settings(loss: dict[str, object], **further: object) -> LearnerConfig:
    # The sampler's log-probs of the tests' groups are far off: without bounds on its weight there would be no gradient.
    open_weights = {"vllm_importance_sampling_clip_max": 1e9}
    return LearnerConfig.model_validate({"loss": open_weights | loss} | further)


def gradient(policy: Policy, groups: tuple[ScoredGroup, ...], config: LearnerConfig, num_ranks: int = 1) -> Tensor:
    """Of the step, added up over all micro-batches of all ranks as the worker does."""
    plan = plan_step(groups, config)
    ranks = plan_ranks(
        plan.sequences, num_ranks, max_tokens=config.max_tokens_per_microbatch or 2048, share=config.share_prefixes
    )
    batches = [make_microbatch(plan, indices, config, CPU) for rank in ranks for indices in (*rank, [])]
    threshold = None
    with torch.no_grad():
        if config.loss.top_entropy_quantile < 1:
            found = [(tree_logprobs(policy, batch.inputs, temperature=1.0)[1], batch.mask_BT) for batch in batches]
            entropies = torch.cat([entropies_BT[mask_BT > 0] for entropies_BT, mask_BT in found])
            threshold = step_entropy_threshold(entropies, config.loss.top_entropy_quantile)
        for batch in batches if config.loss.beta > 0 else []:
            batch.ref_logprobs_BT, _ = tree_logprobs(policy, batch.inputs, temperature=1.0, use_adapter=False)
    loss = loss_of_step(config.loss, max_completion_length=MAX_COMPLETION_LENGTH)
    policy.zero_grad()
    for batch in batches:
        # Old log-probs that are not the current ones: ratios differ from 1, and some are clipped.
        with torch.no_grad():
            logprobs_BT, _ = tree_logprobs(policy, batch.inputs, temperature=1.0)
        batch.old_logprobs_BT = logprobs_BT + 0.3 * torch.sin(7 * logprobs_BT)
        run_pass(policy, batch, plan, loss, temperature=1.0, entropy_threshold=threshold).loss.backward()
    return torch.cat([parameter.grad.flatten() for _, parameter in trained(policy)])  # type: ignore[union-attr]


def shuffled(groups: tuple[ScoredGroup, ...]) -> tuple[ScoredGroup, ...]:
    order = random.Random(0)
    groups = tuple(replace(group, members=tuple(order.sample(group.members, len(group.members)))) for group in groups)
    return tuple(order.sample(groups, len(groups)))


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_how_a_step_is_cut_up_changes_nothing(policy: Policy, loss: dict[str, object]) -> None:
    groups = random_groups(0)
    whole = gradient(policy, groups, settings(loss, max_tokens_per_microbatch=100_000))
    assert float(whole.norm()) > 0
    others = {
        "order": gradient(policy, shuffled(groups), settings(loss, max_tokens_per_microbatch=100_000)),
        "budget": gradient(policy, groups, settings(loss, max_tokens_per_microbatch=45)),
        "one by one": gradient(policy, groups, settings(loss, max_tokens_per_microbatch=1)),
        "no sharing": gradient(policy, groups, settings(loss, share_prefixes=False)),
        "ranks": gradient(policy, groups, settings(loss, max_tokens_per_microbatch=45), num_ranks=3),
    }
    for name, found in others.items():
        assert float((found - whole).norm() / whole.norm()) < 1e-5, name


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_packed_episodes_have_the_gradient_of_each_alone(policy: Policy, loss: dict[str, object]) -> None:
    # Another tree for each; not the fourth, of which a ratio lies at the edge of clipping, where the last bit decides.
    tree = list(LOSSES.values()).index(loss) + 1
    groups = random_episodes(20 if tree == 4 else tree)
    whole = gradient(policy, groups, settings(loss, max_tokens_per_microbatch=100_000))
    alone = gradient(policy, groups, settings(loss, share_prefixes=False, max_tokens_per_microbatch=1))
    assert float(whole.norm()) > 0
    assert float((alone - whole).norm() / whole.norm()) < 1e-5


def test_what_was_given_is_context_and_is_not_predicted(policy: Policy) -> None:
    plan = plan_step(random_episodes(1), settings({"beta": 0.1}))
    batch = make_microbatch(plan, range(len(plan.sequences)), settings({}), CPU)
    with torch.no_grad():
        logprobs_BT, _ = tree_logprobs(policy, batch.inputs, temperature=1.0)
        for b, sequence in enumerate(plan.sequences):
            whole = build_tree([replace(sequence, sampled=None)])
            all_T = tree_logprobs(policy, tree_inputs(whole, CPU), temperature=1.0)[0][0]
            expected = torch.cat([all_T[start:stop] for start, stop in sequence.predicted])
            found = logprobs_BT[b][batch.mask_BT[b] > 0]
            assert len(found) == len(plan.sampling_logprobs[b])
            assert torch.allclose(found, expected, atol=1e-5)
    assert plan.num_items == sum(stop - start for one in plan.sequences for start, stop in one.predicted)
