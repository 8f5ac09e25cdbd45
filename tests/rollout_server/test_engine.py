"""The real vLLM behind a worker: what it samples, what it publishes, what it refuses."""

from __future__ import annotations

import asyncio
import dataclasses
import time

import pytest

from rollout_server.config import RolloutConfig
from rollout_server.engine import VllmEngine
from rollout_server.errors import AdapterMismatchError, EngineDeadError, RolloutTimeoutError, StaleAdapterError
from rollout_server.types import Completion, FinishReason, Prompt, SamplingParams, Turn
from tests.rollout_server.conftest import kept_busy
from tests.waiting import others_run, until_async

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="session")]

PROMPT = Prompt(prompt_id="p", token_ids=tuple(range(10, 50)))
LONG = SamplingParams(num_generations=4, max_completion_length=200)


def assert_sampled_from(reference, completion: Completion, prompt: Prompt, temperature: float) -> None:
    """The completion's log-probabilities are those of transformers with the version it names."""
    expected = reference.logprobs(prompt.token_ids + completion.token_ids, completion.adapter_version, temperature)
    expected = expected[len(prompt.token_ids) - 1 :]
    assert completion.sampling_logprobs == pytest.approx(expected, abs=2e-4)


@pytest.mark.parametrize("temperature", [0.7, 1.0])
async def test_logprobs_are_those_of_the_sampling_distribution(served, reference, temperature):
    sampling = SamplingParams(num_generations=3, max_completion_length=24, temperature=temperature)
    group = await served.worker.generate(PROMPT, sampling)
    assert len(group) == 3
    assert len({completion.token_ids for completion in group}) == 3
    for completion in group:
        assert_sampled_from(reference, completion, PROMPT, temperature)


@pytest.mark.parametrize("one_token", [{"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}])
async def test_a_part_of_the_vocabulary_renormalises_the_logprobs(served, one_token):
    sampling = SamplingParams(num_generations=2, max_completion_length=16, **one_token)
    for completion in await served.worker.generate(PROMPT, sampling):
        assert completion.sampling_logprobs == pytest.approx([0.0] * len(completion.token_ids), abs=1e-6)


async def test_greedy_logprobs_are_at_temperature_one(served, reference):
    (completion,) = await served.worker.generate(
        PROMPT, SamplingParams(num_generations=1, max_completion_length=8, temperature=0)
    )
    assert_sampled_from(reference, completion, PROMPT, 1.0)


async def test_the_token_that_ends_a_completion_is_its_last(served):
    free = SamplingParams(num_generations=1, max_completion_length=12, temperature=0)
    (completion,) = await served.worker.generate(PROMPT, free)
    assert completion.finish_reason is FinishReason.LENGTH
    end = completion.token_ids[4]
    first = completion.token_ids.index(end)
    (ended,) = await served.worker.generate(PROMPT, dataclasses.replace(free, stop_token_ids=(end,)))
    assert ended.token_ids == completion.token_ids[: first + 1]
    assert ended.finish_reason is FinishReason.STOP
    word = f"w{completion.token_ids[2] - 3}"  # token 3 is the word w0
    assert word in completion.text
    (stopped,) = await served.worker.generate(PROMPT, dataclasses.replace(free, stop=(word,)))
    assert stopped.text.endswith(word)
    assert stopped.finish_reason is FinishReason.STOP


async def test_a_completion_ends_with_the_context(served):
    prompt = Prompt(prompt_id="p", token_ids=tuple(range(10, 260)))
    (completion,) = await served.worker.generate(prompt, SamplingParams(num_generations=1, max_completion_length=100))
    assert len(completion.token_ids) <= 6


async def test_a_prompt_longer_than_the_context_is_refused_with_numbers(served):
    prompt = Prompt(prompt_id="long one", token_ids=(5,) * 256)
    with pytest.raises(ValueError, match=r"'long one' has 256 tokens .* context of 256"):
        await served.worker.generate(prompt, SamplingParams())


async def test_a_published_version_serves_what_follows_and_the_old_one_is_dropped(served, reference):
    first, second = served.next_version(), served.next_version()
    await served.worker.publish(*reference.adapter(first))
    report = await served.worker.publish(*reference.adapter(second, previous=first))
    assert report.version.number == second
    assert report.version.num_bytes > 0
    assert report.probe_difference < 2e-4
    for completion in await served.worker.generate(PROMPT, SamplingParams(num_generations=2, max_completion_length=8)):
        assert completion.adapter_version == second
        assert_sampled_from(reference, completion, PROMPT, 1.0)
    assert [path.name for path in served.run_folder.iterdir() if path.is_dir()] == [f"v{second}"]


async def test_publishing_in_the_middle_of_generation(served, reference):
    """Old completions end on the old version, new ones begin on the new, both in one batch, nothing is aborted; the
    probe waits for nobody's place and has a step of its own, in which nobody else gets a token."""
    old, new = served.next_version(), served.next_version()
    await served.worker.publish(*reference.adapter(old))
    adapter = reference.adapter(new, previous=old)
    async with kept_busy(served.worker, PROMPT, LONG, served.config.max_num_seqs) as groups:
        began = time.monotonic()
        await served.worker.publish(*adapter)
        steps = [step for step in await served.worker.recent_steps() if step.at > began]
        assert any(not step.token_gaps_s for step in steps)
        under_way = [group for group in groups if not group.done()]
        after = await served.worker.generate(PROMPT, LONG)
    assert {completion.adapter_version for completion in after} == {new}
    for group in groups:
        assert len(group.result()) == 4
        versions = [completion.adapter_version for completion in group.result()]
        assert set(versions) <= {old, new}
        assert versions == sorted(versions)  # one that waited for a place may begin on the new version
    (still_old, *_) = [group.result() for group in under_way if group.result()[0].adapter_version == old]
    assert_sampled_from(reference, still_old[0], PROMPT, 1.0)
    assert_sampled_from(reference, after[0], PROMPT, 1.0)


async def test_a_tampered_adapter_is_refused_and_the_current_version_stays(served, reference):
    good, bad = served.next_version(), served.next_version()
    await served.worker.publish(*reference.adapter(good))
    _, probe = reference.adapter(bad, strength=0.6)
    tampered, _ = reference.adapter(bad, strength=0.2)
    with pytest.raises(AdapterMismatchError, match=rf"worker rollout-0 .* version {bad} .* differ by .* nats"):
        await served.worker.publish(tampered, probe)
    (completion,) = await served.worker.generate(PROMPT, SamplingParams(num_generations=1, max_completion_length=8))
    assert completion.adapter_version == good
    assert_sampled_from(reference, completion, PROMPT, 1.0)


async def test_an_update_that_changes_nothing_is_refused(served, reference):
    """The learner moved a little (within the tolerance), the files are the old ones: only the second test sees it."""
    before, after = served.next_version(), served.next_version()
    payload, probe = reference.adapter(before)
    await served.worker.publish(payload, probe)
    trained = tuple(value + 1.5e-5 * (-1) ** i for i, value in enumerate(probe.training_logprobs))
    later = dataclasses.replace(
        probe,
        training_logprobs=trained,
        previous_version=before,
        previous_training_logprobs=probe.training_logprobs,
    )
    with pytest.raises(StaleAdapterError, match=f"still serves adapter version {before} in place of {after}"):
        await served.worker.publish(dataclasses.replace(payload, version=after), later)
    assert served.worker._table.current == before


async def test_the_base_is_served_unchanged_beside_adapters(served, reference):
    """Without the plugin, vLLM's CPU operations give tokens without an adapter that of the last slot."""
    engine = served.worker._engine
    await served.worker.publish(*reference.adapter(served.next_version()))
    (completion,) = await engine.generate(PROMPT, SamplingParams(num_generations=1, max_completion_length=16), None)
    assert_sampled_from(reference, completion, PROMPT, 1.0)


async def test_publishing_waits_for_a_place_and_says_who_holds_it(served, reference, monkeypatch):
    versions = [served.next_version() for _ in range(3)]
    await served.worker.publish(*reference.adapter(versions[0]))
    engine, released = type(served.worker._engine), asyncio.Event()
    generate = engine.generate

    async def generate_and_hold(*arguments):
        completions = await generate(*arguments)
        await released.wait()
        return completions

    monkeypatch.setattr(engine, "generate", generate_and_hold)
    first = asyncio.create_task(served.worker.generate(PROMPT, LONG))
    await others_run()
    await served.worker.publish(*reference.adapter(versions[1]))
    second = asyncio.create_task(served.worker.generate(PROMPT, LONG))
    await others_run()
    monkeypatch.setattr(served.worker, "_config", served.config.model_copy(update={"publish_timeout_s": 0.05}))
    adapter, num = reference.adapter(versions[2]), LONG.num_generations  # completions are drawn each by itself
    with pytest.raises(RolloutTimeoutError, match=rf"v{versions[0]}: {num}, v{versions[1]}: {num}"):
        await served.worker.publish(*adapter)
    monkeypatch.setattr(served.worker, "_config", served.config)
    publishing = asyncio.create_task(served.worker.publish(*adapter))
    await others_run()
    released.set()
    report = await publishing
    assert first.done()
    assert report.version.number == versions[2]
    await second


async def test_metrics_are_pushed(served):
    served.metrics.clear()
    groups = [served.worker.generate(PROMPT, LONG) for _ in range(4)]
    await asyncio.gather(*groups)
    await until_async(lambda: any(values["rollout_tokens_per_s"] > 0 for values in served.metrics))
    names = {"rollout_tokens_per_s", "running_requests", "waiting_requests", "adapter_version", "kv_cache_usage"}
    names |= {f"{of}_total" for of in ("generated_tokens", "prompt_tokens", "cached_prompt_tokens", "preemptions")}
    assert all(values.keys() == names for values in served.metrics)
    assert served.metrics[-1]["adapter_version"] == served.worker._table.current


async def test_what_begins_together_is_the_same_in_whatever_order_it_comes(served):
    """Bit for bit; the prompts are more than one engine step takes, so that some are prefilled in parts."""
    sampling = SamplingParams(num_generations=2, max_completion_length=12)
    prompts = [
        Prompt(prompt_id=f"p{i}", token_ids=tuple(5 + (7 * i + 3 * j) % 300 for j in range(240)), seed=1000 * i)
        for i in range(12)
    ]

    async def drawn(key: str, order: list[int], seed: int = 0) -> list[list[Completion]]:
        groups = {
            i: asyncio.create_task(
                served.worker.generate(
                    dataclasses.replace(
                        prompts[i], seed=prompts[i].seed + seed, turn=Turn(key=key, index=i, size=len(prompts))
                    ),
                    sampling,
                )
            )
            for i in order
        }
        return [await groups[i] for i in range(len(prompts))]

    one = SamplingParams(num_generations=1, max_completion_length=1)
    before = await served.worker.heartbeat()
    await asyncio.gather(*(served.worker.generate(prompt, one) for prompt in prompts))
    assert await served.worker.heartbeat() - before >= 12 * 240 // 256
    first = await drawn("first", list(range(12)))
    assert await drawn("second", [*range(7, 12), *range(7)]) == first
    others = await drawn("third", list(range(12)), seed=500_000)
    assert [[c.token_ids for c in group] for group in others] != [[c.token_ids for c in group] for group in first]
    assert len({completion.token_ids for group in first for completion in group}) > 20  # each has a seed of its own


async def test_a_call_that_a_process_of_the_core_dies_under_fails_as_the_engine_does():
    """Before the core is known as dead, and in vLLM's own words; `test_faults` kills such processes."""

    class Core:
        errored = False

    core = Core()
    engine = VllmEngine("model", RolloutConfig(), "cpu", seed=0, _llm=core)
    with pytest.raises(ValueError, match="no room"):
        async with engine._naming_death():
            raise ValueError("no room")
    asyncio.get_running_loop().call_later(0.01, setattr, core, "errored", True)
    with pytest.raises(EngineDeadError, match="died"):
        async with engine._naming_death():
            raise RuntimeError("Call to pause_scheduler method failed: cancelled")
