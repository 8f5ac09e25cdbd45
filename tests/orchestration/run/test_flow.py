"""The flow's promises: staleness, refill, order, and nothing lost when something breaks."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from learner.types import ScoredGroup
from orchestration.run.flow import Batch, FlowSettings, RolloutFlow
from orchestration.run.scorer import RandomControlScorer
from rollout_server.arrays import Logprobs, TokenIds
from rollout_server.types import Completion, FinishReason, Prompt, SamplingParams
from tests.orchestration.fakes import FakeClock, FakeGenerator, FakeScorer, FakeSource
from tests.waiting import others_run


def make_flow(
    generator: FakeGenerator,
    scorer: FakeScorer | None = None,
    *,
    first_version: int = 0,
    source: FakeSource | None = None,
    finished: Sequence[ScoredGroup] = (),
    **changes: Any,
) -> RolloutFlow:
    settings: dict[str, Any] = {
        "prompts_per_step": 2,
        "max_staleness": 0,
        "drop_flat_groups": False,
        "max_refills": 3,
        "max_batches": 100,
        "sampling": SamplingParams(num_generations=2),
    }
    return RolloutFlow(
        generator=generator,
        scorer=scorer or FakeScorer(),
        source=source or FakeSource(),
        settings=FlowSettings(**{**settings, **changes}),
        clock=FakeClock(),
        first_version=first_version,
        finished=finished,
    )


def names(batch: Batch) -> list[str]:
    return [group.built.problem.problem_id for group in batch.groups_P]


async def test_on_policy_flow_admits_one_batch_a_version() -> None:
    generator = FakeGenerator()
    flow = make_flow(generator)
    assert names(await flow.next_batch()) == ["p0", "p1"]
    waiting = asyncio.create_task(flow.next_batch())
    await others_run(10)
    assert generator.started == ["p0", "p1"]  # nothing more before the next version is served
    generator.version = 1
    flow.published(1)
    batch = await waiting
    assert names(batch) == ["p2", "p3"]
    assert {m.completion.adapter_version for g in batch.scored_P for m in g.members} == {1}


async def test_a_flow_that_begins_later_admits_as_much_as_one_that_begins_at_0() -> None:
    generator = FakeGenerator()
    flow = make_flow(generator, max_staleness=1, first_version=7)
    assert names(await flow.next_batch()) == ["p0", "p1"]
    await others_run(10)
    assert generator.started == ["p0", "p1", "p2", "p3"]


async def test_one_batch_is_generated_while_one_is_learned_and_no_more_however_stale_it_may_be(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    generator = FakeGenerator()
    flow = make_flow(generator, max_staleness=4)
    for version in range(4):
        batch = await flow.next_batch()
        monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda seconds=float(version): seconds)
        await others_run(10)  # the next is ready when the learner asks for it, and no time passes until it has it
        assert len(generator.started) == 2 * version + 4
        assert {m.completion.adapter_version for g in batch.scored_P for m in g.members} == {max(version - 1, 0)}
        generator.version = version + 1
        flow.published(version + 1)


async def test_what_failed_before_anything_was_sampled_is_as_old_as_its_group() -> None:
    class Failing(FakeGenerator):
        async def generate(self, prompt: Prompt, sampling: SamplingParams) -> Sequence[Completion]:
            sampled, failed = await super().generate(prompt, sampling)
            nothing = replace(failed, token_ids=TokenIds(), sampling_logprobs=Logprobs(), adapter_version=0)
            return [sampled, replace(nothing, finish_reason=FinishReason.FAILED, failure="no world")]

    generator = Failing()
    generator.version = 5
    batch = await make_flow(generator, first_version=5).next_batch()
    assert {m.completion.adapter_version for g in batch.scored_P for m in g.members} == {5}


async def test_no_more_is_asked_for_than_keeps_the_workers_busy() -> None:
    generator = FakeGenerator()
    generator.hold()
    generator.max_sequences = 2
    flow = make_flow(generator, max_staleness=1)
    batch = asyncio.create_task(flow.next_batch())
    await others_run(10)
    assert generator.started == ["p0"]
    generator.release("p0")
    await others_run(10)
    assert generator.started == ["p0", "p1"]
    generator.release("p1")
    assert names(await batch) == ["p0", "p1"]


async def test_stragglers_are_left_to_the_next_batch_until_they_would_be_too_old() -> None:
    generator = FakeGenerator()
    generator.hold()
    flow = make_flow(generator, max_staleness=2)

    async def waited_for(*ready: str) -> asyncio.Task[Batch]:
        batch = asyncio.create_task(flow.next_batch())
        await asyncio.sleep(0.01)  # the learner waits: more are begun ahead of it
        generator.release(*ready)
        await others_run(10)
        return batch

    for version, ready in enumerate((["p0", "p1"], ["p2", "p3"])):
        assert names(await (await waited_for(*ready))) == ready
        flow.published(version + 1)
    await others_run(10)
    assert generator.started[4:] == ["p4", "p5", "p6", "p7"]  # p4 to p7 on version 1 or 2
    assert names(await (await waited_for("p5", "p6"))) == ["p5", "p6"]
    flow.published(3)
    last = await waited_for("p8", "p9", "p10")
    assert not last.done()  # at the next version p4 would be three updates old
    generator.release("p4", "p7")
    assert "p4" in names(await last)


async def test_one_slow_group_holds_no_batch_that_staleness_lets_leave_without_it() -> None:
    generator = FakeGenerator()
    generator.hold()
    flow = make_flow(generator, max_staleness=1)
    first = asyncio.create_task(flow.next_batch())
    await others_run(10)
    generator.release("p1")  # p0 is in an environment that does not answer
    await others_run(10)
    generator.release("p2")  # begun while the learner waited
    assert names(await first) == ["p1", "p2"]
    flow.published(1)
    second = asyncio.create_task(flow.next_batch())
    await others_run(10)
    generator.release("p3", "p4")
    await others_run(10)
    assert not second.done()  # the last batch that may learn from p0
    generator.release("p0")
    assert "p0" in names(await second)


async def test_batches_leave_oldest_first() -> None:
    generator = FakeGenerator()
    generator.hold()
    flow = make_flow(generator)
    batch = asyncio.create_task(flow.next_batch())
    await others_run(10)
    generator.release("p1")
    await others_run(10)
    generator.release("p0")
    assert names(await batch) == ["p0", "p1"]


async def test_flat_groups_are_refilled_up_to_the_bound() -> None:
    scorer = FakeScorer(lambda name, index: 1.0 if name in ("p0", "p2") else float(index))
    flow = make_flow(FakeGenerator(), scorer, drop_flat_groups=True)
    batch = await flow.next_batch()
    assert names(batch) == ["p1", "p3"]
    assert batch.num_dropped_flat == len(batch.dropped_flat) == 2
    assert batch.num_generated_tokens == 4 * 2  # four groups of two one-token completions, thrown-away ones included


async def test_when_everything_is_flat_the_refill_ends() -> None:
    flow = make_flow(FakeGenerator(), FakeScorer(lambda name, index: 0.0), drop_flat_groups=True, max_refills=3)
    batch = await flow.next_batch()
    assert batch.num_dropped_flat == 3 * 2
    assert len(batch.groups_P) == 2


async def test_nothing_is_generated_beyond_the_last_batch() -> None:
    generator = FakeGenerator()
    flow = make_flow(generator, max_staleness=1, max_batches=1)
    await flow.next_batch()
    flow.published(1)
    await others_run(10)
    assert generator.started == ["p0", "p1"]


async def test_a_failure_is_raised_and_the_prompts_are_kept() -> None:
    generator = FakeGenerator()
    generator.failure = RuntimeError("engine gone")
    flow = make_flow(generator)
    with pytest.raises(RuntimeError, match="engine gone"):
        await flow.next_batch()
    await flow.close()
    assert [built.problem.problem_id for built in flow.pending()] == ["p0", "p1"]


async def test_close_cancels_and_keeps_what_is_under_way() -> None:
    generator = FakeGenerator()
    generator.hold()
    flow = make_flow(generator)
    waiting = asyncio.create_task(flow.next_batch())
    await others_run(10)
    waiting.cancel()
    await flow.close()
    assert [built.problem.problem_id for built in flow.pending()] == ["p0", "p1"]


async def test_a_versions_groups_begin_together_and_have_seeds_that_every_start_knows() -> None:
    async def asked(first_version: int, seed: int = 0) -> list[Prompt]:
        generator = FakeGenerator()
        flow = make_flow(generator, first_version=first_version, seed=seed)
        await flow.next_batch()
        flow.published(first_version + 1)
        await flow.next_batch()
        return generator.prompts

    prompts = await asked(0)
    turns = [prompt.turn for prompt in prompts]
    assert [(turn.index, turn.size) for turn in turns if turn is not None] == [(0, 2), (1, 2)] * 2
    keys = [turn.key for turn in turns if turn is not None]
    assert keys[0] == keys[1] != keys[2] == keys[3]
    seeds = [prompt.seed for prompt in prompts]
    assert len(set(seeds)) == 4
    assert [prompt.seed for prompt in await asked(0)] == seeds
    assert not {prompt.seed for prompt in await asked(0, seed=1)} & set(seeds)
    assert not {prompt.seed for prompt in await asked(7)} & set(seeds)


async def test_refills_and_stale_groups_begin_at_once() -> None:
    generator = FakeGenerator()
    flat_first = FakeScorer(lambda name, index: 0.0 if name == "p0" else float(index))
    await make_flow(generator, flat_first, drop_flat_groups=True).next_batch()
    assert [prompt.turn is None for prompt in generator.prompts] == [False, False, True]
    ahead = FakeGenerator()
    await make_flow(ahead, max_staleness=1).next_batch()
    assert {prompt.turn for prompt in ahead.prompts} == {None}
    assert None not in {prompt.seed for prompt in ahead.prompts}


@pytest.mark.parametrize(("version", "kept"), [(3, True), (4, True), (5, False)])
async def test_a_group_of_an_earlier_start_is_taken_unless_it_is_too_old(version: int, kept: bool) -> None:
    earlier = FakeGenerator()
    earlier.version = 3
    flow = make_flow(earlier, first_version=3, max_staleness=1)
    (await flow.next_batch())
    flow.learned()
    await others_run(10)
    finished = [group for group in flow.finished() if group.prompt_id == "p2"]
    generator = FakeGenerator()
    generator.version = version
    source = FakeSource()
    source.restore(4, ["p2", "p3"])
    again = make_flow(generator, source=source, finished=finished, first_version=version, max_staleness=1)
    batch = await again.next_batch()
    assert names(batch) == ["p2", "p3"]
    assert ("p2" in generator.started) != kept
    versions = {member.completion.adapter_version for member in batch.scored_P[0].members}
    assert versions == {3 if kept else version}


async def test_a_random_control_hangs_on_no_order() -> None:
    control = RandomControlScorer(FakeScorer(), seed=1)
    problem = FakeSource().next().problem
    completions = await FakeGenerator().generate(Prompt(prompt_id="p0", token_ids=(1,)), SamplingParams())
    first = [member.total for member in await control.score(problem, "", completions)]
    assert len(set(first)) == len(first)
    assert [member.total for member in await control.score(problem, "", completions)] == first


async def test_a_control_at_the_same_rate_deals_out_the_groups_own_totals() -> None:
    problem = FakeSource().next().problem
    completions = await FakeGenerator().generate(Prompt(prompt_id="p0", token_ids=(1,)), SamplingParams())
    own = [member.total for member in await FakeScorer().score(problem, "", completions)]
    dealt = []
    for seed in (1, 1, *range(2, 12)):
        control = RandomControlScorer(FakeScorer(), seed=seed, same_rate=True)
        dealt.append([member.total for member in await control.score(problem, "", completions)])
        assert sorted(dealt[-1]) == sorted(own)
    assert dealt[0] == dealt[1]
    assert len(set(own)) == 1 or any(one != own for one in dealt)
