"""Learner and engine together in bfloat16: is what is sampled and served what is trained, and is all else noticed?"""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

import pytest
import pytest_asyncio
import torch
from safetensors.torch import load, save

from learner.config import LearnerConfig, LoraSettings, LossConfig
from learner.policy.layers import without_dropout
from learner.policy.policy import tree_inputs, tree_logprobs
from learner.tree.prefix_tree import TokenSequence, build_tree
from learner.worker import LearnerRank
from rollout_server.errors import AdapterMismatchError, StaleAdapterError
from rollout_server.publishing.probing import Gap, gap
from rollout_server.types import ADAPTER_WEIGHTS, AdapterPayload, AdapterProbe, Completion, Prompt, SamplingParams
from rollout_server.worker import RolloutWorker
from tests.learner.helpers import make_group
from tests.models import word_model
from tests.rollout_server.conftest import make_config

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]

PROMPT = Prompt(prompt_id="p", token_ids=tuple(range(10, 50)))


@dataclass
class Pair:
    """A learner and an engine of one model."""

    rank: LearnerRank
    worker: RolloutWorker

    def update(self) -> tuple[AdapterPayload, AdapterProbe]:
        """The next version, of a step as small as the smallest that are usual."""
        group = make_group(
            PROMPT.token_ids,
            [range(60, 80), range(80, 100)],
            [1.0, 0.0],
            adapter_version=self.rank._step,
        )
        self.rank.update((group,), max_staleness=0)
        return self.rank.export_adapter(), self.rank.probe_adapter()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pair(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Pair]:
    model = str(word_model())
    config = make_config(tmp_path_factory.mktemp("shm"), dtype="bfloat16", max_model_len=128, max_num_seqs=4)
    worker = RolloutWorker("rollout-0", model, config, "cpu", 0, "precision", lambda values: None)
    rank = LearnerRank(
        rank=0,
        world_size=1,
        master_addr="127.0.0.1",
        master_port=0,
        model_path=model,
        config=LearnerConfig(
            dtype="bfloat16",
            learning_rate=2e-5,
            lora=LoraSettings(r=8),
            loss=LossConfig(vllm_importance_sampling_correction=False),  # of log-probs that no sampler gave
        ),
        temperature=1.0,
        seed=0,
        device="cpu",
    )
    rank.start()
    try:
        await worker.start()
        yield Pair(rank, worker)
    finally:
        await worker.shutdown()
        rank.shutdown()


async def test_what_is_sampled_has_the_learners_log_probabilities(pair: Pair) -> None:
    for completion in await pair.worker.generate(PROMPT, SamplingParams(num_generations=2, max_completion_length=12)):
        found = gap(completion.sampling_logprobs, training_logprobs(pair.rank, completion))
        assert found.within(Gap(0.15, 0.5)), found


async def test_the_smallest_updates_are_served_and_nothing_passes_for_them(pair: Pair) -> None:
    worker = pair.worker
    reports = [await worker.publish(*pair.update()) for _ in range(3)]
    before = pair.rank.export_adapter()
    payload, probe = pair.update()
    as_new = dataclasses.replace(before, version=payload.version)  # the bytes of the version before
    with pytest.raises(StaleAdapterError, match="still serves adapter version 3 in place of 4"):
        await worker.publish(as_new, probe)
    with pytest.raises((AdapterMismatchError, StaleAdapterError)):
        await worker.publish(changed(payload, another), probe)
    with pytest.raises(ValueError, match="adapter version 4 has other tensors"):
        await worker.publish(changed(payload, without_last_layer), probe)
    with pytest.raises(Exception, match="adapter version 4 is damaged"):
        await worker.publish(cut(payload), probe)
    report = await worker.publish(payload, probe)  # none of them left a trace
    assert report.version.number == 4
    assert max(each.probe_difference for each in (*reports, report)) < 0.1


def training_logprobs(rank: LearnerRank, completion: Completion) -> list[float]:
    sequence = TokenSequence(prompt_token_ids=PROMPT.token_ids, completion_token_ids=completion.token_ids)
    inputs = tree_inputs(build_tree([sequence]), rank._device, rank._config.attention)
    with without_dropout(rank._policy.dropouts), torch.no_grad():
        logprobs_BT, _ = tree_logprobs(rank._engine, inputs, temperature=1.0)
    row: list[float] = logprobs_BT[0].tolist()
    return row


Tensors = dict[str, torch.Tensor]


def changed(payload: AdapterPayload, change: Callable[[Tensors], Tensors]) -> AdapterPayload:
    files = tuple(
        (name, save(change(load(content))) if name == ADAPTER_WEIGHTS else content) for name, content in payload.files
    )
    return dataclasses.replace(payload, files=files)


def another(tensors: Tensors) -> Tensors:
    """An adapter of the same make that was trained elsewhere."""
    generator = torch.Generator().manual_seed(1)
    return {
        name: 0.05 * torch.randn(tensor.shape, generator=generator) if "lora_B" in name else tensor
        for name, tensor in tensors.items()
    }


def without_last_layer(tensors: Tensors) -> Tensors:
    return {name: tensor for name, tensor in tensors.items() if ".layers.1." not in name}


def cut(payload: AdapterPayload) -> AdapterPayload:
    files = tuple(
        (name, content[: len(content) // 2] if name == ADAPTER_WEIGHTS else content) for name, content in payload.files
    )
    return dataclasses.replace(payload, files=files)
