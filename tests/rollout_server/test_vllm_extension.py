"""Whole tensors in the real vLLM: a model with an output head of its own and a vocabulary that vLLM pads."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from safetensors.torch import load, save

from rollout_server.errors import FullTensorsError
from rollout_server.types import AdapterPayload, Completion, Prompt, SamplingParams
from rollout_server.worker import RolloutWorker
from tests.models import word_model
from tests.rollout_server.conftest import Reference, Served, kept_busy, make_config
from tests.rollout_server.test_engine import LONG, assert_sampled_from

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]

VOCABULARY_SIZE = 307  # vLLM allocates 320 rows
MODULES = ("embed_tokens", "lm_head")
PROMPT = Prompt(prompt_id="p", token_ids=tuple(range(10, 210)))  # longer than a block of the prefix cache
SHORT = SamplingParams(num_generations=1, max_completion_length=8)


@pytest.fixture(scope="module")
def whole_reference(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    return Reference(model_path=word_model(VOCABULARY_SIZE), folder=tmp_path_factory.mktemp("whole-adapters"))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def whole_served(whole_reference: Reference, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Served]:
    adapter_dir = tmp_path_factory.mktemp("shm")
    config = make_config(adapter_dir)
    worker = RolloutWorker("rollout-0", str(whole_reference.model_path), config, "cpu", 0, "whole", lambda values: None)
    await worker.start()
    yield Served(worker, config, adapter_dir / "rlvr-whole", [], itertools.count(1).__next__)
    await worker.shutdown()


async def test_whole_tensors_are_served_after_generation_has_drained(whole_served, whole_reference, monkeypatch):
    """Published in the middle of generation, with and without the matrices' help, and replaced by the next version."""
    worker, engine = whole_served.worker, whole_served.worker._engine
    # Matrices of zero: the version is the base with other tensors, so the base's cached prefix must be gone.
    first, probe = whole_reference.adapter(whole_served.next_version(), strength=0.0, modules_to_save=MODULES)
    await worker.generate(PROMPT, SHORT)
    begun: list[asyncio.Task[list[Completion]]] = []
    close = worker._admitting.clear

    def closing() -> None:
        begun.extend(group for group in groups if not group.done())
        close()
        begun.append(asyncio.create_task(worker.generate(PROMPT, SHORT)))

    async with kept_busy(worker, PROMPT, LONG, 4) as groups:
        monkeypatch.setattr(worker._admitting, "clear", closing)
        report = await worker.publish(first, probe)
    *old, new = begun
    assert old
    assert report.probe_difference < 2e-4
    for completion in old[0].result():
        assert completion.adapter_version == 0
        assert_sampled_from(whole_reference, completion, PROMPT, 1.0)
    (completion,) = await new
    assert completion.adapter_version == first.version
    assert_sampled_from(whole_reference, completion, PROMPT, 1.0)
    (bare,) = await engine.generate(PROMPT, SHORT, None)
    assert_sampled_from(whole_reference, dataclasses.replace(bare, adapter_version=first.version), PROMPT, 1.0)

    second, probe = whole_reference.adapter(
        whole_served.next_version(), previous=first.version, modules_to_save=MODULES
    )
    assert (await worker.publish(second, probe)).probe_difference < 2e-4
    (completion,) = await worker.generate(PROMPT, SHORT)
    assert completion.adapter_version == second.version
    assert_sampled_from(whole_reference, completion, PROMPT, 1.0)


async def test_tensors_without_a_place_change_nothing(whole_served, whole_reference):
    worker = whole_served.worker
    good, probe = whole_reference.adapter(whole_served.next_version(), modules_to_save=MODULES)
    await worker.publish(good, probe)
    bad, _ = whole_reference.adapter(whole_served.next_version(), modules_to_save=MODULES)
    for change, complaint in (
        (
            lambda tensors: {"base_model.model.score.weight": tensors["base_model.model.lm_head.weight"].clone()},
            "'score.weight'",
        ),
        (lambda tensors: {"base_model.model.lm_head.weight": tensors["base_model.model.lm_head.weight"][:-1]}, "306"),
    ):
        with pytest.raises(FullTensorsError, match=f"version {bad.version} do not load: .*{complaint}"):
            await worker.publish(_changed(bad, change))
    (completion,) = await worker.generate(PROMPT, SHORT)
    assert completion.adapter_version == good.version
    assert_sampled_from(whole_reference, completion, PROMPT, 1.0)


def _changed(payload: AdapterPayload, change) -> AdapterPayload:
    (config, (name, weights)) = payload.files
    tensors = load(weights)
    return dataclasses.replace(payload, files=(config, (name, save(tensors | change(tensors)))))
