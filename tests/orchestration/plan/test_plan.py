"""Virtual time, queues, rates from measurements, and plans: against what can be counted by hand."""

from __future__ import annotations

import asyncio
import json
import random
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from learner.types import ScoredCompletion, ScoredGroup
from orchestration.cli import main
from orchestration.errors import ConfigError
from orchestration.machine.model_sizes import model_size
from orchestration.plan.gpus import GPUS
from orchestration.plan.lengths import RecordedLengths, StatedLengths, distinct_tokens, lengths_of
from orchestration.plan.measured import MeasuredRun, engine_steps, fit, measured_rates
from orchestration.plan.rates import Rates, kv_bytes, operations_per_token, prefilled
from orchestration.plan.servers import Server, Site
from orchestration.plan.simulate import Split, part, simulate
from orchestration.plan.splits import best_split, possible
from orchestration.plan.virtual_time import StalledError, run_virtually
from orchestration.settings.config import RunConfig, load_config
from rollout_server.arrays import Logprobs, TokenIds
from rollout_server.types import Completion, FinishReason

RATES = Rates(
    step_s=0.01,
    sequence_s=0.001,
    prefill_token_s=0.0001,
    update_s=1.0,
    token_s=0.0,
    publish_s=0.5,
    scoring_s=0.25,
    slots=64,
    source="by hand",
)
EQUAL = StatedLengths(prompt_tokens=16, shared_prompt_tokens=0, mean=1e6, deviation=0.1)
"""All completions are cut off at the limit."""


def run_config(**changes: object) -> RunConfig:
    return load_config("tiny", [f"{key.replace('__', '.')}={value}" for key, value in changes.items()])


def scored_group(
    prompt: tuple[int, ...], members: list[tuple[int, ...]], truncated: tuple[int, ...] = ()
) -> ScoredGroup:
    """Members numbered in `truncated` were cut off."""
    scored = (
        ScoredCompletion(
            completion=Completion(
                prompt_id="p",
                token_ids=TokenIds(tokens),
                sampling_logprobs=Logprobs((0.0,) * len(tokens)),
                text="",
                finish_reason=FinishReason.LENGTH if number in truncated else FinishReason.STOP,
                adapter_version=0,
            ),
            rewards=(float(number),),
            total=float(number),
        )
        for number, tokens in enumerate(members)
    )
    return ScoredGroup(prompt_id="p", prompt_token_ids=TokenIds(prompt), members=tuple(scored))


# --- time and queues


def test_hours_pass_at_once_and_in_order() -> None:
    told: list[tuple[str, float]] = []

    async def sleeper(name: str, seconds: float) -> None:
        await asyncio.sleep(seconds)
        told.append((name, asyncio.get_running_loop().time()))

    async def both() -> None:
        await asyncio.gather(sleeper("late", 7200.0), sleeper("early", 0.5))

    began = time.monotonic()
    run_virtually(both())
    assert told == [("early", 0.5), ("late", pytest.approx(7200.0))]
    assert time.monotonic() - began < 5


def test_what_can_never_happen_is_said() -> None:
    async def forever() -> None:
        await asyncio.get_running_loop().create_future()

    with pytest.raises(StalledError):
        run_virtually(forever())


def test_an_engine_decodes_together_and_queues_what_is_too_much() -> None:
    async def timed() -> float:
        engine = Server(lambda count: 0.1 * count, slots=2)
        await engine.work([3, 1, 2], extra_s=1.0)
        assert engine.busy_s == asyncio.get_running_loop().time()
        return engine.busy_s

    # Prefill, then ticks of two sequences: 1, in which the second ends, and 2, in which first and third do.
    assert run_virtually(timed()) == pytest.approx(1.0 + 3 * 0.2)


def test_neighbours_share_the_time() -> None:
    async def timed() -> list[float]:
        site, loop, ends = Site(), asyncio.get_running_loop(), []

        async def work(server: Server, seconds: float) -> None:
            await server.work([seconds])
            ends.append(loop.time())

        servers = [Server(lambda count: 1.0, 1, [site]) for _ in range(2)]
        await asyncio.gather(*(work(server, seconds) for server, seconds in zip(servers, (2.0, 5.0), strict=True)))
        return ends

    assert run_virtually(timed()) == [pytest.approx(4.0), pytest.approx(7.0)]


# --- the flow in virtual time


def test_without_staleness_a_step_is_the_sum_of_its_parts() -> None:
    config = run_config(prompts_per_step=4, rollout__num_generations=4, rollout__max_completion_length=10)
    outcome = simulate(config, Split(workers=2, ranks=1), RATES, EQUAL)
    generation_s = 10 * RATES.tick_s(8) + 2 * RATES.prefill_s(16, 4, 16)
    assert outcome.step_s == pytest.approx(generation_s + 0.25 + 1.0 + 0.5)
    assert (outcome.learning_s, outcome.publishing_s, outcome.age) == (pytest.approx(1.0), pytest.approx(0.5), 0.0)
    assert outcome.generated_tokens == 4 * 4 * 10
    assert outcome.rollout_busy == pytest.approx(generation_s / outcome.step_s)


def test_with_staleness_the_slower_side_is_the_limit() -> None:
    config = run_config(prompts_per_step=4, max_staleness=1, rollout__max_completion_length=10)
    quick = simulate(config, Split(workers=2, ranks=1), RATES, EQUAL)
    assert quick.step_s == pytest.approx(1.5, rel=0.02)
    slow = simulate(config, Split(workers=2, ranks=1), replace(RATES, step_s=1.0, sequence_s=0.0), EQUAL)
    assert 5.0 < slow.step_s < 10.5  # ten ticks a batch, of two batches that are decoded side by side at best
    assert slow.rollout_busy > 0.9 > slow.learner_busy


def test_the_same_seed_gives_the_same_outcome_and_a_part_stands_for_the_whole() -> None:
    config = run_config(prompts_per_step=512, max_staleness=1)
    split, lengths = (
        Split(workers=64, ranks=16),
        StatedLengths(prompt_tokens=64, shared_prompt_tokens=48, mean=8, deviation=0.5),
    )
    rates = replace(RATES, token_s=1e-4)
    whole = simulate(config, split, rates, lengths, num_steps=4)
    assert part(config, split) == (16, 128)
    assert simulate(config, split, rates, lengths, num_steps=4) == whole
    other = simulate(config, split, rates, lengths, seed=1, num_steps=4)
    assert other.step_s == pytest.approx(whole.step_s, rel=0.05)
    assert whole.generated_tokens == pytest.approx(512 * 8 * 8, rel=0.05)


def test_the_best_split_is_the_best_of_all() -> None:
    config = run_config(prompts_per_step=12, max_staleness=1, rollout__max_completion_length=40)
    lengths = StatedLengths(prompt_tokens=64, shared_prompt_tokens=48, mean=20, deviation=0.5)
    rates = replace(RATES, token_s=2e-3)
    splits = possible(config, 8)
    assert {(split.workers, split.ranks) for split in splits} == {*((8 - n, n) for n in range(1, 8)), (8, 8)}
    all_outcomes = [simulate(config, split, rates, lengths) for split in splits]
    best = best_split(config, splits, rates, lengths)[0]
    assert best.step_s <= 1.02 * min(outcome.step_s for outcome in all_outcomes)


# --- measurements


def test_rates_are_found_again_whatever_one_sample_says() -> None:
    chance = random.Random(3)
    true = (0.02, 0.0003, 0.0)
    samples = []
    for _ in range(20):
        features = (chance.uniform(5, 30), chance.uniform(100, 2000), chance.uniform(10, 500))
        samples.append((features, sum(a * b for a, b in zip(true, features, strict=True)) * chance.uniform(0.98, 1.02)))
    samples.append((samples[0][0], 10 * samples[0][1]))  # a neighbour was busy
    found = fit(samples)
    assert found[:2] == (pytest.approx(0.02, rel=0.1), pytest.approx(0.0003, rel=0.1))
    assert 0 <= found[2] < 1e-4


def test_steps_whose_generation_grows_with_prompts_alone_are_refused_where_others_hide_it() -> None:
    groups = [scored_group((5,) * prompt, [(1,) * length]) for prompt, length in ((40, 3), (80, 2), (60, 1))]
    rows = tuple({"generation_busy_s": 1e-3 * len(group.prompt_token_ids)} for group in groups)
    records = cast(Any, tuple(SimpleNamespace(groups_P=(group,)) for group in groups))
    run = MeasuredRun(path=Path("run"), config=run_config(max_staleness=1), rows=rows, records=records)
    with pytest.raises(ConfigError, match="measure a run with max_staleness=0"):
        measured_rates([run], on_cpu=False)
    learned = {"num_distinct_tokens": 10, "learning_busy_s": 0.1, "publish_ms": 1.0, "scoring_s": 0.0, "other_s": 0.0}
    alone = replace(run, config=run_config(), rows=tuple(row | learned for row in rows))
    rates = measured_rates([alone], on_cpu=False)
    assert rates.step_s + rates.sequence_s > 0 == rates.prefill_token_s


def test_engine_steps_and_prefill() -> None:
    assert engine_steps([3, 1, 2], 2) == 3
    assert engine_steps([5, 5, 5], 64) == 5
    assert prefilled(40, 8, 16) == 40 + 7 * 8


def test_distinct_tokens_are_those_of_a_tree() -> None:
    groups = [scored_group((1, 2), [(5, 6), (5, 7)]), scored_group((1, 3), [(9,), (9,)])]
    assert distinct_tokens(groups) == len([1, 2, 5, 6, 7, 3, 9])


def test_recorded_lengths_go_on_where_a_limit_cut_them_off() -> None:
    cut, ended = (tuple(range(10)), tuple(range(7)))
    group = scored_group((1,), [cut, ended], truncated=(0,))
    lengths = RecordedLengths([group], 10)
    chance = random.Random(0)
    drawn = [sorted(lengths_of(lengths.group("x", 2, 40, chance))) for _ in range(50)]
    assert {low for low, _ in drawn} == {7}
    assert 10 < max(high for _, high in drawn) <= 40
    assert max(lengths_of(lengths.group("x", 8, 5, chance))) == 5


def test_a_roofline_counts_what_papers_count() -> None:
    size = model_size("Qwen/Qwen2.5-7B-Instruct")
    assert size is not None
    assert size == model_size("Qwen/Qwen2.5-Coder-7B")
    assert size.num_parameters == pytest.approx(7.6e9, rel=0.01)
    assert kv_bytes(size, 2.0) == 2 * 28 * 4 * 128 * 2
    config = load_config("gsm8k")
    assert operations_per_token(size, config.learner) == 4 * size.num_parameters


# --- the command

ONE_EACH = ("rollout.num_workers=1", "learner.num_ranks=1")
QLORA = ("learner.quantization=nf4", "learner.gradient_checkpointing=true", "prompts_per_step=1")


def test_plans_for_one_node_and_for_many(capsys: pytest.CaptureFixture[str]) -> None:
    began = time.process_time()
    assert main(["plan", "gsm8k", "--json"]) == 0
    one = json.loads(capsys.readouterr().out)
    split = one["best"]["split"]
    assert split["workers"] + split["ranks"] == 8
    assert one["dollars_an_hour"] == GPUS["a100-40"].dollars_an_hour
    words = ["plan", "gsm8k", "--nodes", "64", "prompts_per_step=2048", "--gpu", "h100", "--price", "50"]
    assert main([*words, "--json"]) == 0
    many = json.loads(capsys.readouterr().out)
    assert many["dollars_an_hour"] == 64 * 50
    assert (
        many["best"]["generated_tokens"] / many["best"]["step_s"]
        > 30 * one["best"]["generated_tokens"] / (one["best"]["step_s"])
    )
    assert time.process_time() - began < 10
    assert main(["plan", "gsm8k", "--nodes", "64"]) == 0
    said = capsys.readouterr().out
    assert "GPUs are idle: 16 groups a step" in said
    assert "list prices" in said


@pytest.mark.parametrize(
    ("words", "what", "never"),
    [
        (["--gpus-per-node", "7"], "the settings' own 4 + 4 need 8 GPUs, and 7 are there", "as set"),
        (["rollout.num_workers=3"], "(as set)", "settings' own"),
        (["max_staleness=0"], "the settings say placement=split: change it for this split", "with one rank"),
        (
            ["placement=auto", "--gpus-per-node", "1", *ONE_EACH],
            "1 rollout worker and 1 learner rank share a GPU",
            "own",
        ),
    ],
)
def test_a_terminal_of_80_columns_shows_a_plan_that_the_gpus_allow(
    words: list[str], what: str, never: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["plan", "gsm8k-7b-p4d", "prompts_per_step=8", "rollout.max_completion_length=64", *words]) == 0
    said = capsys.readouterr().out
    assert max(len(line) for line in said.splitlines()) <= 80
    one_line = " ".join(said.split())
    assert what in one_line
    assert never not in one_line


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["tiny", "--gpu", "cpu"], "--measured RUN_DIR"),
        (["tiny", "--gpu", "cpu", "--nodes", "2"], "planned for one node"),
        (["gsm8k", "--measured", "{tmp}"], "not a run's folder"),
        (["gsm8k", "--check", "{tmp}"], "leave the recipe out"),
        (["--check", "{tmp}/none"], "not a run's folder"),
        (["gsm8k", "model.name=somebody/model"], "how large the model is"),
        (["gsm8k", "model.name=Qwen/Qwen2.5-72B"], "larger GPUs, or learner.quantization=nf4"),
        (["gsm8k", "model.name=Qwen/Qwen2.5-72B"], "and rollout.tensor_parallel_size=4 for"),
        (["gsm8k", "model.name=Qwen/Qwen2.5-72B", *QLORA], "take larger GPUs, and rollout.tensor_parallel_size=4 for"),
        (["gsm8k", "rollout.tensor_parallel_size=16"], "more than the 8 GPUs of a node"),
        (["gsm8k", "rollout.tensor_parallel_size=8"], "leaves no GPU to learn on"),
        (["gsm8k", "--completion-tokens", "1000000"], "more than rollout.max_completion_length"),
        (["gsm8k", "--prompt-tokens", "1000000"], "more than rollout.max_model_len"),
    ],
)
def test_what_cannot_be_planned_is_one_sentence(
    words: list[str], what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", *(word.format(tmp=tmp_path) for word in words)]) in (1, 2)
    said = capsys.readouterr()
    assert what in said.err
    assert (said.out, said.err.count("\n")) == ("", 1)
