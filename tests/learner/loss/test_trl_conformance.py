"""The same rewards, log-probs and masks through the real TRL and through ours: the same advantages, loss and gradient.

TRL's side is a whole optimizer step of its `GRPOTrainer` (`trl_reference`); ours is advantages, then `policy_loss` of
every micro-batch with the step's denominators, added up. Where we differ on purpose, a test of its own says so.

Shapes: B sequences, T positions, P groups of G, K rewards.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, get_args

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from learner.advantages import aggregate_advantages, overlong_penalty
from learner.config import LossType
from learner.loss import LossConfig, policy_loss, step_entropy_threshold
from tests.learner.loss.trl_reference import Batch, Step, TrlReference, double_precision, with_gradient

TOLERANCE = 1e-6
MAX_COMPLETION_LENGTH = 6
EXAMPLES = settings(
    deadline=None,
    derandomize=True,
    database=None,
    max_examples=60,
    phases=[Phase.generate],  # to shrink a failure would take minutes and say little more
    suppress_health_check=[HealthCheck.too_slow],
)
LOSS_NAMES = set(LossConfig.model_fields)


@pytest.fixture(scope="module")
def trl(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TrlReference]:
    with double_precision():
        yield TrlReference(tmp_path_factory.mktemp("trl"))


# --- what both are given -------------------------------------------------------------------------------------------


@st.composite
def batches(draw: st.DrawFn, *, num_rewards: int = 1, missing: bool = False, silent: bool = False) -> Batch:
    """Groups of rows; every row is scored by at least the last reward. `missing`: the others may be None. `silent`: the
    sampler may have no log-prob."""
    num_generations = draw(st.integers(2, 4))
    num_rows = num_generations * draw(st.integers(1, 3))
    reward = st.integers(-4, 8).map(lambda eighths: eighths / 8)  # exact in the float32 that TRL makes of them
    other = reward | st.none() if missing else reward
    rows = st.tuples(*[other] * (num_rewards - 1), reward)
    lengths = tuple(draw(st.lists(st.integers(1, MAX_COMPLETION_LENGTH), min_size=num_rows, max_size=num_rows)))
    random = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    shape = num_rows, max(lengths)

    def normal() -> Tensor:
        return torch.randn(shape, generator=random, dtype=torch.float64)

    logprobs_BT = -3 * torch.rand(shape, generator=random, dtype=torch.float64)
    old_BT = logprobs_BT + 0.4 * normal()
    sampling_BT = old_BT + 0.5 * normal()
    if silent:
        sampling_BT[torch.rand(shape, generator=random) < 0.2] = math.nan
    return Batch(
        num_generations=num_generations,
        lengths=lengths,
        truncated=tuple(draw(st.lists(st.booleans(), min_size=num_rows, max_size=num_rows))),
        rewards=tuple(draw(st.lists(rows, min_size=num_rows, max_size=num_rows))),
        logprobs_BT=logprobs_BT,
        old_BT=old_BT,
        ref_BT=logprobs_BT + normal(),
        sampling_BT=sampling_BT,
        # Values of float32, in which TRL takes their quantile.
        entropies_BT=torch.rand(shape, generator=random, dtype=torch.float32).double(),
    )


@st.composite
def loss_settings(draw: st.DrawFn, loss_type: LossType) -> dict[str, Any]:
    """Of the loss, under the names that TRL and ours share."""

    def some(*values: Any) -> Any:
        return draw(st.sampled_from(values))

    chosen: dict[str, Any] = {
        "loss_type": loss_type,
        "importance_sampling_level": some("token", "sequence"),
        "epsilon": some(0.1, 0.2),
        "epsilon_high": some(None, 0.28, 1.2),
        "delta": some(None, 1.1, 1.5),
        "beta": some(0.0, 0.2),
        "use_bias_correction_kl": some(True, False),
        "max_completion_length": MAX_COMPLETION_LENGTH,
        "off_policy_mask_threshold": some(None, 0.0, 0.3),
        "top_entropy_quantile": some(1.0, 0.8, 0.25),
        "vllm_importance_sampling_correction": some(True, False),
        "vllm_importance_sampling_mode": some("token_truncate", "token_mask", "sequence_truncate", "sequence_mask"),
        "vllm_importance_sampling_clip_max": some(3.0, 1.3),
        "vllm_importance_sampling_clip_min": some(None, 0.8),
        "sapo_temperature_pos": some(1.0, 0.7),
        "sapo_temperature_neg": some(1.05, 2.0),
        "vespo_k_pos": some(2.0, 1.0),
        "vespo_lambda_pos": some(3.0, 0.5),
        "vespo_k_neg": some(3.0, 1.5),
        "vespo_lambda_neg": some(2.0, 1.0),
    }
    if some(False, False, True):  # no upper bound: TRL's truncate modes then want a lower one
        chosen |= {"vllm_importance_sampling_clip_max": None, "vllm_importance_sampling_clip_min": 0.8}
    if chosen["top_entropy_quantile"] == 1.0:
        chosen["entropy_coef"] = some(0.0, 0.3, -0.1)
    if loss_type == "vespo":  # the only modes with which TRL takes it
        chosen["vllm_importance_sampling_mode"] = some("token_truncate", "token_mask")
    return chosen


# --- our side ------------------------------------------------------------------------------------------------------


def our_advantages(batch: Batch, **options: Any) -> Tensor:
    """Shape (B,)."""
    numbers = [[math.nan if reward is None else reward for reward in row] for row in batch.rewards]
    num_rewards = len(batch.rewards[0])
    rewards_PGK = torch.tensor(numbers, dtype=torch.float64).view(-1, batch.num_generations, num_rewards)
    weights_K = torch.tensor(options.get("reward_weights") or [1.0] * num_rewards, dtype=torch.float64)
    return aggregate_advantages(
        rewards_PGK,
        weights_K,
        aggregation=options.get("multi_objective_aggregation", "sum_then_normalize"),
        scale=options.get("scale_rewards", "group"),
    ).flatten()


def our_step(
    batch: Batch,
    microbatches: Sequence[Sequence[int]],
    *,
    use_vllm: bool = False,
    num_iterations: int = 1,
    mask_truncated_completions: bool = False,
    **options: Any,
) -> Step:
    """TRL's settings, taken as the learner takes them. Old log-probs: TRL computes them for a second iteration, and for
    the sampler correction."""
    config = LossConfig(**{name: value for name, value in options.items() if name in LOSS_NAMES})
    advantages_B = our_advantages(batch, **options)
    mask_BT = batch.mask_BT
    if mask_truncated_completions:
        mask_BT = mask_BT * ~torch.tensor(batch.truncated).unsqueeze(1)
    has_old = num_iterations > 1 or (use_vllm and config.vllm_importance_sampling_correction)
    leaf_BT = batch.logprobs_BT.clone().requires_grad_()
    total = 0.0
    for rows in map(list, microbatches):
        loss, _ = policy_loss(
            leaf_BT[rows],
            advantages_B[rows],
            mask_BT[rows],
            config=config,
            old_logprobs_BT=batch.old_BT[rows] if has_old else None,
            ref_logprobs_BT=batch.ref_BT[rows] if config.beta > 0 else None,
            sampling_logprobs_BT=batch.sampling_BT[rows] if use_vllm else None,
            num_items=float(mask_BT.sum().clamp(min=1)),
            num_sequences=len(batch.lengths),
            entropies_BT=with_gradient(batch.entropies_BT, leaf_BT)[rows],
        )
        if config.loss_type == "bnpo":  # a mean of local means, see test_bnpo_of_a_step
            loss = loss / len(microbatches)
        loss.backward()
        total += float(loss.detach())
    assert leaf_BT.grad is not None
    return Step(loss=total, gradient_BT=leaf_BT.grad, microbatches=tuple(map(tuple, microbatches)))


def assert_same(ours: Step, theirs: Step) -> None:
    assert ours.loss == pytest.approx(theirs.loss, abs=TOLERANCE, rel=TOLERANCE)
    assert_close(ours.gradient_BT, theirs.gradient_BT, atol=TOLERANCE, rtol=TOLERANCE)


# --- the same ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss_type", get_args(LossType))
@EXAMPLES
@given(data=st.data())
def test_a_step(trl: TrlReference, loss_type: LossType, data: st.DataObject) -> None:
    """With the sampler's log-probs, as both train when vLLM generates."""
    batch = data.draw(batches(silent=True))
    chosen = data.draw(loss_settings(loss_type)) | {
        "use_vllm": data.draw(st.sampled_from([True, True, False])),
        "num_iterations": data.draw(st.sampled_from([1, 2])),
        "mask_truncated_completions": data.draw(st.booleans()),
    }
    accumulation = data.draw(st.sampled_from([n for n in (1, 2, 3) if len(batch.lengths) % n == 0]))
    if accumulation > 1:  # of each micro-batch theirs takes the mean entropy, ours the step's, however it is cut
        chosen["entropy_coef"] = 0.0
    theirs = trl.step(batch, accumulation=accumulation, **chosen)
    assert_same(our_step(batch, theirs.microbatches, **chosen), theirs)


@EXAMPLES
@given(data=st.data())
def test_a_step_on_several_rewards(trl: TrlReference, data: st.DataObject) -> None:
    batch = data.draw(batches(num_rewards=3, missing=True))
    chosen = {
        "loss_type": data.draw(st.sampled_from(get_args(LossType))),
        "multi_objective_aggregation": data.draw(st.sampled_from(["sum_then_normalize", "normalize_then_sum"])),
        "scale_rewards": data.draw(st.sampled_from(["group", "batch", "none"])),
        "reward_weights": data.draw(st.sampled_from([None, [1.0, 0.5, 0.25], [2.0, -1.0, 0.0]])),
        "max_completion_length": MAX_COMPLETION_LENGTH,
        "num_iterations": 2,
    }
    theirs = trl.step(batch, **chosen)
    assert_same(our_step(batch, theirs.microbatches, **chosen), theirs)


@pytest.mark.parametrize("aggregation", ["sum_then_normalize", "normalize_then_sum"])
@pytest.mark.parametrize("scale", ["group", "batch", "none"])
@settings(EXAMPLES, max_examples=20)
@given(data=st.data())
def test_advantages(trl: TrlReference, aggregation: str, scale: str, data: st.DataObject) -> None:
    """Completions that nothing scored among them. TRL trains on those with the advantage 0; ours is NaN, which the
    loss leaves out: see test_what_was_not_scored."""
    batch = data.draw(batches(num_rewards=3, missing=True))
    rows = len(batch.lengths)
    unscored = data.draw(st.lists(st.booleans(), min_size=rows, max_size=rows))
    if all(unscored):
        unscored[0] = False
    scores = zip(batch.rewards, unscored, strict=True)
    batch = replace(batch, rewards=tuple((None, None, None) if none else row for row, none in scores))
    chosen = {
        "multi_objective_aggregation": aggregation,
        "scale_rewards": scale,
        "reward_weights": data.draw(st.sampled_from([None, [1.0, 0.5, 0.25], [2.0, -1.0, 0.0]])),
    }
    ours_B, theirs_B = our_advantages(batch, **chosen), trl.advantages(batch, **chosen)
    assert ours_B.isnan().tolist() == unscored
    assert_close(ours_B.nan_to_num(nan=0.0), theirs_B, atol=TOLERANCE, rtol=TOLERANCE)


def test_the_overlong_penalty(trl: TrlReference) -> None:
    from trl.rewards import get_soft_overlong_punishment

    lengths = list(range(1, 40))
    theirs = get_soft_overlong_punishment(max_completion_len=30, soft_punish_cache=12)([[0] * n for n in lengths])
    ours = overlong_penalty(torch.tensor(lengths), max_completion_length=30, cache=12)
    assert_close(ours, torch.tensor(theirs, dtype=ours.dtype))


# --- different on purpose ------------------------------------------------------------------------------------------

PLAIN = Batch(
    num_generations=2,
    lengths=(4, 2, 3, 1),
    truncated=(False,) * 4,
    rewards=((1.0,), (0.0,), (0.0,), (1.0,)),
    logprobs_BT=-torch.arange(1, 17, dtype=torch.float64).view(4, 4) / 8,
    old_BT=-torch.arange(2, 18, dtype=torch.float64).view(4, 4) / 8,
    ref_BT=torch.zeros(4, 4, dtype=torch.float64),
    sampling_BT=-torch.arange(3, 19, dtype=torch.float64).view(4, 4) / 8,
    entropies_BT=torch.arange(16, dtype=torch.float64).view(4, 4),
)


def test_bnpo_of_a_step(trl: TrlReference) -> None:
    """TRL's bnpo divides by the tokens of a micro-batch, so that a smaller micro-batch is another gradient. A learner
    whose budget may change must not do that: it takes the whole step as the batch, which is TRL's bnpo without
    accumulation, and is dapo."""
    cut = trl.step(PLAIN, loss_type="bnpo", accumulation=2)
    whole = trl.step(PLAIN, loss_type="bnpo")
    assert not torch.allclose(cut.gradient_BT, whole.gradient_BT, atol=1e-3)
    assert_same(our_step(PLAIN, cut.microbatches, loss_type="dapo"), whole)


def test_the_entropy_threshold_of_a_step(trl: TrlReference) -> None:
    """TRL's threshold is a micro-batch's; ours, given to `policy_loss`, is the step's, for the same reason."""
    chosen: dict[str, Any] = {"loss_type": "dapo", "top_entropy_quantile": 0.5}
    cut = trl.step(PLAIN, accumulation=2, **chosen)
    whole = trl.step(PLAIN, **chosen)
    assert not torch.allclose(cut.gradient_BT, whole.gradient_BT, atol=1e-3)
    threshold = step_entropy_threshold(PLAIN.entropies_BT[PLAIN.mask_BT > 0], 0.5)
    leaf_BT = PLAIN.logprobs_BT.clone().requires_grad_()
    for rows in map(list, cut.microbatches):
        policy_loss(
            leaf_BT[rows],
            our_advantages(PLAIN)[rows],
            PLAIN.mask_BT[rows],
            config=LossConfig(**chosen),
            num_items=10,
            entropies_BT=PLAIN.entropies_BT[rows],
            entropy_threshold=threshold,
        )[0].backward()
    assert leaf_BT.grad is not None
    assert_close(leaf_BT.grad, whole.gradient_BT, atol=TOLERANCE, rtol=TOLERANCE)


@pytest.mark.parametrize(("loss_type", "ours_per_theirs"), [("grpo", 4 / 3), ("dapo", 10 / 9)])
def test_what_was_not_scored(trl: TrlReference, loss_type: str, ours_per_theirs: float) -> None:
    """A completion that could not be scored: TRL gives it the advantage 0 and counts it in the denominators, so that a
    reward service that fails makes every step smaller. Ours leaves it out. Of 4 sequences with 10 tokens, the last (1
    token) is not scored: ours is 4/3 and 10/9 of theirs."""
    batch = replace(PLAIN, rewards=((1.0,), (0.0,), (0.0,), (None,)))
    theirs = trl.step(batch, loss_type=loss_type)
    leaf_BT = batch.logprobs_BT.clone().requires_grad_()
    loss, _ = policy_loss(leaf_BT, our_advantages(batch), batch.mask_BT, config=LossConfig(loss_type=loss_type))  # type: ignore[arg-type]
    loss.backward()
    assert leaf_BT.grad is not None
    assert_close(leaf_BT.grad, theirs.gradient_BT * ours_per_theirs, atol=TOLERANCE, rtol=TOLERANCE)


def test_vespo_does_not_count_padding(trl: TrlReference) -> None:
    """A truncated sampler weight is clip_min or more even on padding, where there is no ratio to truncate. TRL's vespo
    adds up the logs of all positions, so that with clip_min > 1 a sequence's weight depends on how long the longest of
    its micro-batch is. Ours counts completion tokens: both agree where there is no padding."""
    chosen: dict[str, Any] = {
        "loss_type": "vespo",
        "use_vllm": True,
        "vllm_importance_sampling_mode": "token_truncate",
        "vllm_importance_sampling_clip_min": 1.5,
    }
    padded = trl.step(PLAIN, **chosen)
    assert not torch.allclose(our_step(PLAIN, padded.microbatches, **chosen).gradient_BT, padded.gradient_BT, atol=1e-3)
    full = replace(PLAIN, lengths=(4, 4, 4, 4))
    theirs = trl.step(full, **chosen)
    assert_same(our_step(full, theirs.microbatches, **chosen), theirs)


def test_vespo_takes_every_mode(trl: TrlReference) -> None:
    """TRL refuses the sequence modes with vespo. The formula takes a weight of the sequence as it takes the product of
    its tokens', and `sequence_mask` is the default, so ours takes them; unbounded, both levels are the same."""
    options: dict[str, Any] = {"loss_type": "vespo", "use_vllm": True, "vllm_importance_sampling_clip_max": None}
    with pytest.raises(ValueError, match="vllm_importance_sampling_mode"):
        trl.step(PLAIN, **options, vllm_importance_sampling_mode="sequence_mask")
    theirs = trl.step(PLAIN, **options, vllm_importance_sampling_mode="token_mask")
    ours = our_step(PLAIN, theirs.microbatches, **options, vllm_importance_sampling_mode="sequence_mask")
    assert_same(ours, theirs)
