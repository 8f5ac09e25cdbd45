"""Whole updates by real ranks on tiny models: the same step however it is divided, exports, refusals."""

from __future__ import annotations

import json
import math
import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load
from torch import Tensor
from torch.testing import assert_close

from learner.config import LearnerConfig, LossConfig
from learner.errors import LearnerError, NonFiniteLossError, NothingToLearnError, StaleSampleError
from learner.step.passes import loss_of_step
from learner.types import UNKNOWN, UPDATE_METRICS, ScoredGroup, UpdateMetrics, together
from learner.worker import LearnerRank
from rollout_server.arrays import Logprobs
from rollout_server.types import AdapterPayload, FinishReason
from tests.learner.helpers import make_group, make_rank, random_episodes, random_groups, run_ranks
from tests.learner.policy.families import build

BASE = {"learning_rate": 1e-2, "num_threads": 1}
UNBOUNDED = LossConfig(vllm_importance_sampling_mode="token_mask", vllm_importance_sampling_clip_max=None)
IMPOSSIBLE = -1e30
"""A sampling log-prob whose weight, unbounded, is infinite."""


@contextmanager
def started(model_path: str, **settings: Any) -> Iterator[LearnerRank]:
    rank = make_rank(model_path, LearnerConfig(**(BASE | settings)))
    try:
        rank.start()
        yield rank
    finally:
        rank.shutdown()


def update(rank: LearnerRank, groups: tuple[ScoredGroup, ...], *, max_staleness: int = 99) -> UpdateMetrics:
    return rank.update(groups, max_staleness=max_staleness)


def weights(payload: AdapterPayload) -> dict[str, Tensor]:
    """Empty on other ranks than the first."""
    return load(dict(payload.files)["adapter_model.safetensors"]) if payload.files else {}


def adapter(rank: LearnerRank) -> dict[str, Tensor]:
    return weights(rank.export_adapter())


def three_steps(rank: LearnerRank) -> tuple[AdapterPayload, list[UpdateMetrics]]:
    """A job for ranks of any number: three groups of uneven lengths a step."""
    metrics = [update(rank, random_groups(seed)) for seed in range(3)]
    return rank.export_adapter(), metrics


def undocumented(metrics: UpdateMetrics) -> list[str]:
    patterns = [re.escape(name).replace(r"\{of\}", "(mean|min|max)") for name in UPDATE_METRICS]
    return [name for name in metrics.values if not any(re.fullmatch(pattern, name) for pattern in patterns)]


def difference(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """Relative, of all parameters together."""
    assert set(found) == set(expected)
    apart = sum(float((found[name] - expected[name]).double().square().sum()) for name in expected)
    return math.sqrt(apart / sum(float(tensor.double().square().sum()) for tensor in expected.values()))


def test_an_update_moves_the_adapter_and_says_so(tiny_model: str) -> None:
    with started(tiny_model) as rank:
        before = adapter(rank)
        metrics = update(rank, random_groups(0))
        assert difference(adapter(rank), before) > 0
    assert metrics.step == 1
    assert re.fullmatch(r"1 rank of \d+ threads? on \w.*", metrics.computed_by)
    assert [len(row) for row in metrics.advantages] == [4, 4, 4]
    assert 0 < metrics.num_distinct_tokens < metrics.num_tokens
    names = {"loss", "grad_norm", "learning_rate", "clip_fraction", "kl_to_sampler", "entropy"}
    assert names <= set(metrics.values)
    assert undocumented(metrics) == []
    assert all(math.isfinite(value) for value in metrics.values.values())
    assert metrics.values["learning_rate"] == 1e-2
    assert metrics.values["num_loss_tokens"] > 0
    assert 0 < metrics.values["effective_sample_share"] < 1
    assert 0 < metrics.values["entropy"] < math.log(96)
    nats = [unit / 1000 for row in metrics.log_ratios for ratios in row if ratios is not None for unit in ratios]
    assert len(nats) == metrics.values["num_loss_tokens"]
    assert sum(nats) / len(nats) == pytest.approx(-metrics.values["kl_to_sampler"], abs=5e-4)


def test_of_an_episode_the_ratios_lie_where_it_was_sampled(llama: str) -> None:
    groups = random_episodes(3)
    first = groups[0].members[0]
    unknown = Logprobs((math.nan, *first.completion.sampling_logprobs[1:]))
    member = replace(first, completion=replace(first.completion, sampling_logprobs=unknown))
    groups = (replace(groups[0], members=(member, *groups[0].members[1:])), *groups[1:])
    with started(llama, loss=LossConfig(beta=0.1)) as rank:
        found = update(rank, groups).log_ratios
    with started(llama, loss=LossConfig(beta=0.1), max_tokens_per_microbatch=1) as rank:
        alone = update(rank, groups).log_ratios
    for group, row, others in zip(groups, found, alone, strict=True):
        for member, ratios, other in zip(group.members, row, others, strict=True):
            sampled = {t for start, stop in member.completion.sampled for t in range(start, stop)}
            if not sampled:
                assert ratios is None
                continue
            assert ratios is not None
            known = {t for t, unit in enumerate(ratios) if unit != UNKNOWN}
            assert known == {t for t in sampled if not math.isnan(member.completion.sampling_logprobs[t])}
            assert other is not None
            assert all(abs(a - b) <= 1 for a, b in zip(ratios, other, strict=True))


@pytest.mark.parametrize("loss_type", ["cispo", "vespo"])
def test_every_figure_of_an_update_is_documented(llama: str, loss_type: str) -> None:
    loss = LossConfig(loss_type=loss_type, beta=0.1, off_policy_mask_threshold=1.0)  # type: ignore[arg-type]
    with started(llama, loss=loss) as rank:
        metrics = update(rank, random_groups(0))
    assert {"kl_to_ref", "off_policy_masked_fraction"} <= metrics.values.keys()
    assert undocumented(metrics) == []


@pytest.mark.parametrize("loss_type", ["grpo", "dapo", "dr_grpo"])
def test_budget_and_sharing_change_nothing(llama: str, loss_type: str) -> None:
    found = []
    for settings in ({}, {"max_tokens_per_microbatch": 30}, {"share_prefixes": False}):
        loss = LossConfig(loss_type=loss_type, beta=0.1)  # type: ignore[arg-type]
        # Without clipping and with one step: Adam's first step is the gradient's sign, so compare what has magnitude.
        with started(llama, loss=loss, **settings) as rank:
            update(rank, random_groups(0))
            state = rank._engine.training_state()
            assert state is not None
            found.append(dict(state.exp_avg))
    for other in found[1:]:
        assert difference(other, found[0]) < 1e-5


def test_the_gradient_rises_with_the_better_completion(llama: str) -> None:
    good, bad = (5, 6, 7), (8, 9, 10)
    group = make_group((1, 2, 3), [good, bad], [1.0, 0.0], prompt_id="p")
    with started(llama, loss=LossConfig(vllm_importance_sampling_correction=False)) as rank:
        kl = [update(rank, (group,)).values["kl_to_sampler"] for _ in range(6)]
        tokens, probe = rank.export_adapter().probe_token_ids, rank.probe_adapter()
    assert len(set(kl)) == 6
    assert tokens == (1, 2, 3, 5, 6)
    assert sum(probe.training_logprobs[2:]) > sum(probe.base_training_logprobs[2:]) + 2


def test_flat_groups_are_not_computed_and_count_in_the_denominators(llama: str) -> None:
    # Two completions of 2 tokens with advantages, and two of 3 tokens without: dapo divides by 4 + 6 tokens.
    live = make_group((1, 2), [(3, 4), (5, 6)], [1.0, 0.0])
    flat = make_group((1, 7), [(8, 9, 10), (11, 12, 13)], [1.0, 1.0])
    off = {"vllm_importance_sampling_correction": False}
    found = {}
    for name, groups in (("alone", (live,)), ("both", (live, flat))):
        with started(llama, loss=LossConfig(**off), max_grad_norm=0.0) as rank:  # type: ignore[arg-type]
            found[name] = update(rank, groups)
    assert found["both"].num_distinct_tokens == found["alone"].num_distinct_tokens
    assert found["both"].values["grad_norm"] == pytest.approx(found["alone"].values["grad_norm"] * 4 / 10, rel=1e-5)
    assert found["both"].advantages[1] == (0.0, 0.0)


@pytest.mark.parametrize("loss", [LossConfig(), LossConfig(beta=0.1)])
def test_shares_of_a_gradient_add_up_to_it(llama: str, loss: LossConfig) -> None:
    groups = (*random_groups(0), make_group((1, 7), [(8, 9), (11, 12)], [1.0, 1.0]), make_group((1,), [(8,)], [None]))
    members = [(p, g) for p, group in enumerate(groups) for g in range(len(group.members))]
    with started(llama, loss=loss, max_grad_norm=0.0) as rank:  # type: ignore[arg-type]
        before = adapter(rank)
        found = {where: rank.gradient_share(groups, *where) for where in members}
        shares = [share for share in found.values() if share is not None]
        assert difference(adapter(rank), before) == 0
        moved = update(rank, groups).values
    assert sum(share["share"] for share in shares) == pytest.approx(1, rel=1e-4)
    for share in shares:
        assert share["step_norm"] == pytest.approx(moved["grad_norm"], rel=1e-4)
    flat, unscored = len(groups) - 2, len(groups) - 1
    assert [found[where] is None for where in ((flat, 0), (unscored, 0))] == [loss.beta == 0, True]


def test_unscored_and_truncated_completions(llama: str) -> None:
    group = make_group((1, 2), [(3, 4), (5, 6), (7, 8)], [1.0, None, 0.0])
    cut = make_group((1, 9), [(3, 4), (5, 6)], [1.0, 0.0], finish_reason=FinishReason.LENGTH)
    with started(llama, mask_truncated_completions=True) as rank:
        metrics = update(rank, (group, cut))
    assert metrics.advantages[0][1] is None
    # Prompts and completions of the four scored; through the model: (1, 2, 3) and (7) alone.
    assert metrics.num_tokens == 16
    assert metrics.num_distinct_tokens == 4


def test_nothing_scored_and_all_flat(llama: str) -> None:
    with started(llama) as rank:
        with pytest.raises(NothingToLearnError, match="none of the 2"):
            update(rank, (make_group((1, 2), [(3,), (4,)], [None, None]),))
        before = adapter(rank)
        assert update(rank, (make_group((1, 2), [(3,), (4,)], [1.0, 1.0]),)).values["grad_norm"] == 0.0
        assert difference(adapter(rank), before) == 0.0


def test_stale_samples_are_refused(llama: str) -> None:
    groups = (make_group((1, 2), [(3,), (4,)], [1.0, 0.0], adapter_version=0),)
    with started(llama) as rank:
        assert [update(rank, groups, max_staleness=1).step for _ in range(2)] == [1, 2]
        before = adapter(rank)
        with pytest.raises(StaleSampleError, match="version 0, 2 behind version 2; the bound is 1"):
            update(rank, groups, max_staleness=1)
        assert difference(adapter(rank), before) == 0.0
        update(rank, groups, max_staleness=2)


def test_an_update_that_was_made_is_not_made_again(llama: str) -> None:
    first, second = random_groups(1), random_groups(2)
    with started(llama) as rank:
        answer = rank.update(first, max_staleness=99, step=1)
        moved = adapter(rank)
        assert rank.update(first, max_staleness=99, step=1) is answer
        assert difference(adapter(rank), moved) == 0
        with pytest.raises(LearnerError, match="is at step 1, and was asked for update 3"):
            rank.update(second, max_staleness=99, step=3)
        assert rank.update(second, max_staleness=99, step=2).step == 2


def test_passes_are_told_as_they_are_made(llama: str) -> None:
    told: list[int] = []
    with started(llama, num_iterations=2, max_tokens_per_microbatch=1) as rank:
        rank._on_progress = told.append
        metrics = update(rank, random_groups(1))
    assert told == list(range(1, int(2 * metrics.values["num_microbatches"]) + 1))


def test_iterations_on_a_batch_take_the_old_logprobs_once(llama: str) -> None:
    with started(llama, num_iterations=3) as rank, started(llama) as once:
        three, one = update(rank, random_groups(0)), update(once, random_groups(0))
        assert (three.step, one.step) == (1, 1)
        assert three.num_distinct_tokens == one.num_distinct_tokens
        assert one.values["ratio_max"] == pytest.approx(1.0, abs=1e-5)  # old and new are the same
        assert three.values["ratio_max"] > 1.01
        # The next batch starts from its own old log-probs.
        assert update(once, random_groups(1)).values["ratio_max"] == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("zero_stage", [0, 2])
def test_a_non_finite_loss_moves_nothing(llama: str, zero_stage: int) -> None:
    poisoned = make_group((1, 2), [(3,), (4,)], [1.0, 0.0], sampling_logprob=IMPOSSIBLE)
    with started(llama, zero_stage=zero_stage, loss=UNBOUNDED) as rank, started(llama, loss=UNBOUNDED) as fresh:
        before = adapter(rank)
        with pytest.raises(NonFiniteLossError, match="step 1"):
            update(rank, (*random_groups(0), poisoned))
        assert difference(adapter(rank), before) == 0.0
        # Nothing of it is left: the next step is that of a rank that never saw it.
        update(rank, random_groups(1))
        update(fresh, random_groups(1))
        assert difference(adapter(rank), adapter(fresh)) < 1e-5


def test_an_exported_adapter_loads_with_plain_peft(tiny_model: str, tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    with started(tiny_model) as rank:
        update(rank, random_groups(0))
        payload, probe = rank.export_adapter(), rank.probe_adapter()
    assert payload.version == 1  # the batches learned from
    for name, content in payload.files:
        (tmp_path / name).write_bytes(content)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == tiny_model
    assert config["r"] == 16
    assert "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight" in weights(payload)
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model), tmp_path)
    ids = torch.tensor([payload.probe_token_ids])
    for told, context in (
        (probe.training_logprobs, nullcontext()),
        (probe.base_training_logprobs, model.disable_adapter()),
    ):
        with torch.no_grad(), context:
            logprobs = model(input_ids=ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None]).squeeze(1)
        assert_close(logprobs, torch.tensor(told), atol=1e-4, rtol=0)
    assert max(abs(a - b) for a, b in zip(probe.training_logprobs, probe.base_training_logprobs, strict=True)) > 5e-4
    assert probe.tolerance == 1e-3


def test_weight_decay_shrinks_what_no_gradient_moves(llama: str) -> None:
    flat = (make_group((1, 2), [(3,), (4,)], [1.0, 1.0]),)
    for decay in (0.0, 0.5):
        with started(llama, weight_decay=decay) as rank:
            before = adapter(rank)
            update(rank, flat)
            after = adapter(rank)
        # AdamW: p ← p·(1 − learning rate · weight decay).
        assert difference(after, before) == pytest.approx(1e-2 * decay, abs=1e-6)


@pytest.mark.parametrize(("beta1", "beta2"), [(0.9, 0.999), (0.5, 0.75)])
def test_moments_keep_as_much_of_the_past_as_adam_beta1_and_adam_beta2_say(
    llama: str, beta1: float, beta2: float
) -> None:
    with started(llama, adam_beta1=beta1, adam_beta2=beta2) as rank:
        update(rank, random_groups(0))
        state = rank._engine.training_state()
    assert state is not None
    name = next(name for name in state.exp_avg if "lora_B" in name)
    first, second = state.exp_avg[name].double(), state.exp_avg_sq[name].double()
    # After one step of gradient g they are (1 − beta1)·g and (1 − beta2)·g².
    assert_close(first.square() / (1 - beta1) ** 2, second / (1 - beta2), rtol=1e-5, atol=0)
    assert float(second.max()) > 0


def test_a_probe_tells_of_the_version_before(llama: str) -> None:
    """Of that version's own number, however often either is exported."""
    with started(llama, probe_tolerance=50.0) as rank:
        unmoved = rank.probe_adapter()
        update(rank, random_groups(0))
        first, again = rank.probe_adapter(), rank.probe_adapter()
        update(rank, random_groups(1))
        second = rank.probe_adapter()
    assert unmoved.training_logprobs == unmoved.base_training_logprobs
    assert unmoved.previous_training_logprobs is None
    assert first == again
    assert first.previous_training_logprobs is None  # before the first batch it was another probe
    assert first.training_logprobs != first.base_training_logprobs == second.base_training_logprobs
    assert second.previous_training_logprobs == first.training_logprobs
    assert second.tolerance == 50.0


def test_a_probe_leaves_half_of_the_threads_to_the_engine(llama: str) -> None:
    before, seen = torch.get_num_threads(), set()
    with started(llama, num_threads=4) as rank:
        rank._policy.register_forward_pre_hook(lambda *given: seen.add(torch.get_num_threads()))
        rank.probe_adapter()
        assert (seen, torch.get_num_threads()) == ({2}, 4)
    torch.set_num_threads(before)


def test_dropout_and_bfloat16_and_checkpointing_run(llama: str) -> None:
    with started(llama, dtype="bfloat16", gradient_checkpointing=True) as rank:
        update(rank, random_groups(0))
        payload, probe = rank.export_adapter(), rank.probe_adapter()
        base = {name: parameter.dtype for name, parameter in rank._policy.named_parameters()}
    assert probe.tolerance == 0.5
    assert {dtype for name, dtype in base.items() if "lora_" not in name} == {torch.bfloat16}
    assert {tensor.dtype for tensor in weights(payload).values()} == {torch.float32}


def test_settings_that_do_not_go_together() -> None:
    with pytest.raises(ValueError, match="use zero_stage=2"):
        LearnerConfig(zero_stage=3, quantization="nf4")
    with pytest.raises(ValueError, match="temperature above 0"):
        make_rank("nowhere", LearnerConfig(), temperature=0.0)
    with pytest.raises(ValueError, match="overlong_cache=17 is more than max_completion_length=16"):
        make_rank("nowhere", LearnerConfig(overlong_cache=17))
    for config in (LearnerConfig(overlong_cache=1), LearnerConfig(loss=LossConfig(loss_type="dr_grpo"))):
        with pytest.raises(ValueError, match="need max_completion_length"):
            config.check_run(max_steps=1, max_completion_length=None)
    with pytest.raises(ValueError, match="leave it out of loss"):
        LearnerConfig(loss=LossConfig(max_completion_length=9))


def test_dr_grpo_divides_by_the_length_that_the_learner_is_told() -> None:
    loss = LearnerConfig(loss=LossConfig(loss_type="dr_grpo", beta=0.1)).loss
    assert loss_of_step(loss, max_completion_length=9) == LossConfig(
        loss_type="dr_grpo", beta=0.1, max_completion_length=9
    )


def test_rewards_weigh_what_the_learner_is_told(llama: str) -> None:
    """Two rewards that contradict each other: the heavier one decides which completion is the better."""
    group = make_group((1, 2), [(3,), (4,)], [1.0, 1.0])
    rewards = ((1.0, 0.0), (0.0, 1.0))
    members = tuple(replace(member, rewards=row) for member, row in zip(group.members, rewards, strict=True))
    advantages = []
    for weights_K in ((3.0, 1.0), (1.0, 3.0)):
        config = LearnerConfig(**BASE, multi_objective_aggregation="normalize_then_sum")  # type: ignore[arg-type]
        rank = make_rank(llama, config, reward_weights=weights_K)
        try:
            rank.start()
            advantages.append(update(rank, (replace(group, members=members),)).advantages[0][0])
        finally:
            rank.shutdown()
    assert advantages[0] == -advantages[1] != 0


@pytest.mark.slow
def test_qlora_updates(llama: str) -> None:
    pytest.importorskip("bitsandbytes")
    with started(llama, quantization="nf4") as rank:
        before = adapter(rank)
        quantised = [name for name, parameter in rank._policy.named_parameters() if parameter.dtype == torch.uint8]
        metrics = update(rank, random_groups(0))
        assert difference(adapter(rank), before) > 0
    assert len(quantised) == 14  # seven projections of two layers
    assert metrics.values["grad_norm"] > 0


@pytest.mark.slow
def test_a_rank_leaves_the_environment_as_it_was(llama: str) -> None:
    """A process started later, another trainer even, must not believe that it belongs to this process group."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    before = {name: os.environ.get(name) for name in names}
    with started(llama):
        pass
    assert {name: os.environ.get(name) for name in names} == before
    first, second = (make_rank(llama, LearnerConfig(**BASE)) for _ in range(2))
    for rank in (first, second):
        rank.start()
    first.shutdown()  # not in the order of a stack
    second.shutdown()
    assert {name: os.environ.get(name) for name in names} == before
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(OSError, match="in use"):
        make_rank(llama, LearnerConfig(**BASE), port=taken.getsockname()[1]).start()
    assert {name: os.environ.get(name) for name in names} == before


@pytest.mark.slow
@pytest.mark.parametrize("zero_stage", [0, 2, 3])
def test_two_ranks_are_one(llama: str, zero_stage: int) -> None:
    settings = BASE | {"loss": LossConfig(beta=0.05)}
    with started(llama, **settings) as rank:
        expected, expected_metrics = three_steps(rank)
    config = LearnerConfig(**(settings | {"zero_stage": zero_stage, "num_ranks": 2, "max_tokens_per_microbatch": 60}))
    (found, metrics), (nothing, others) = run_ranks(2, llama, config, three_steps)
    assert difference(weights(found), weights(expected)) < 1e-3
    assert not nothing.files  # only rank 0 exports
    for a, b, c in zip(metrics, others, expected_metrics, strict=True):
        assert a.values == b.values
        assert a.advantages == c.advantages
        for ratios, same in zip(chain(*together((a, b)).log_ratios), chain(*c.log_ratios), strict=True):
            assert (ratios is None) == (same is None)
            assert all(abs(x - y) <= 5 for x, y in zip(ratios or (), same or (), strict=True))
        for name in (
            *("loss", "grad_norm", "kl_to_sampler", "entropy", "ratio_max", "kl_to_ref"),
            *("effective_sample_share", "num_loss_tokens"),
        ):
            assert a.values[name] == pytest.approx(c.values[name], rel=1e-3, abs=1e-6)


def bad_step_and_less_work_than_ranks(rank: LearnerRank) -> tuple[str, AdapterPayload, float]:
    groups = random_groups(1)
    first = groups[0].members[0]
    unknown = (IMPOSSIBLE,) * len(first.completion.token_ids)
    bad = replace(first, completion=replace(first.completion, sampling_logprobs=unknown))
    groups = (replace(groups[0], members=(bad, *groups[0].members[1:])), *groups[1:])
    with pytest.raises(NonFiniteLossError) as caught:
        update(rank, groups)
    payload = rank.export_adapter()
    flat = make_group((1, 2), [(3, 4), (3, 4), (5, 6)], [0.0, 0.0, 0.0])
    single = make_group((1, 7), [(8,), (9,)], [1.0, 0.0], sampling_logprob=-40.0)
    unscored = replace(single, members=(single.members[0], replace(single.members[1], total=None)))
    return str(caught.value), payload, update(rank, (flat, unscored)).values["grad_norm"]


@pytest.mark.slow
def test_ranks_refuse_a_non_finite_loss_together_and_idle_together(llama: str) -> None:
    with started(llama) as rank:
        untouched = adapter(rank)
    config = LearnerConfig(**(BASE | {"zero_stage": 2, "num_ranks": 2, "loss": UNBOUNDED}))
    (message, found, norm), (other, _, other_norm) = run_ranks(2, llama, config, bad_step_and_less_work_than_ranks)
    assert "step 1" in message
    assert "step 1" in other
    assert difference(weights(found), untouched) == 0.0
    assert norm == other_norm == 0.0


def test_a_hybrid_shares_nothing_and_learns_the_same_within_any_budget(tmp_path: Path) -> None:
    build("qwen3_next", tmp_path)
    outcomes = []
    for budget in (1, 100, 100_000):
        with started(str(tmp_path), max_tokens_per_microbatch=budget) as rank:
            assert any(note.startswith("share_prefixes=false: layers of the kind linear") for note in rank.notes())
            metrics = update(rank, random_groups(0))
            outcomes.append((adapter(rank), metrics.values["grad_norm"], metrics.values["num_microbatches"]))
    assert [count for *_, count in outcomes] == [8, 4, 1]  # eight of the twelve have an advantage
    for moved, grad_norm, _ in outcomes[1:]:
        assert grad_norm == pytest.approx(outcomes[0][1], rel=1e-4)
        assert difference(moved, outcomes[0][0]) < 1e-3


def test_a_sequence_whose_frequencies_are_its_own_goes_alone(tmp_path: Path) -> None:
    build("llama, longrope", tmp_path)  # they change beyond 32 tokens, which some of these have
    with started(str(tmp_path)) as rank:
        assert update(rank, random_groups(0)).values["num_microbatches"] == 8
        short = (make_group([5] * 8, [[1, 2], [3]], [0.0, 1.0]),)
        assert update(rank, short).values["num_microbatches"] == 1


@pytest.mark.slow
def test_a_hybrid_on_ranks_that_hold_parts_of_it(tmp_path: Path) -> None:
    build("qwen3_next", tmp_path)
    with started(str(tmp_path)) as rank:
        payload, _ = three_steps(rank)
    config = LearnerConfig(**BASE, zero_stage=3, max_tokens_per_microbatch=90)
    parts, *_ = run_ranks(2, str(tmp_path), config, three_steps)
    assert difference(weights(parts[0]), weights(payload)) < 1e-4


def test_a_gpu_that_torch_does_not_see_is_named() -> None:
    rank = LearnerRank(
        rank=0,
        world_size=1,
        master_addr="127.0.0.1",
        master_port=1,
        model_path="nowhere",
        config=LearnerConfig(),
        temperature=1.0,
        seed=0,
        device=f"cuda:{torch.cuda.device_count()}",
    )
    with pytest.raises(LearnerError, match=r"the learner was given cuda:\d+, and torch .* sees \d+ GPUs here"):
        rank.start()
