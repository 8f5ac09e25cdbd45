"""A tiny random model, adapters for it, a reference for its log-probabilities, and one worker on the real vLLM."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import json
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from rollout_server.config import RolloutConfig
from rollout_server.types import AdapterPayload, AdapterProbe, Completion, Prompt, SamplingParams
from rollout_server.worker import RolloutWorker
from tests.models import word_model
from tests.waiting import POLL_S, until_async

PROBE_TOKENS = tuple(5 + (7 * i) % 300 for i in range(24))
TOLERANCE = 2e-4  # float32 on both sides


@dataclass
class Reference:
    """The tiny model in transformers and peft, and the adapters made for it."""

    model_path: Path
    folder: Path
    _model: Any = None
    _folders: dict[int, Path] = field(default_factory=dict)

    def adapter(
        self,
        version: int,
        *,
        strength: float = 0.3,
        previous: int | None = None,
        modules_to_save: Sequence[str] = (),
    ) -> tuple[AdapterPayload, AdapterProbe]:
        """A random adapter as `version`, and its probe; `previous` is the version before."""
        folder = self._make_adapter(version, strength, modules_to_save)
        names = ("adapter_config.json", "adapter_model.safetensors")
        files = tuple((name, (folder / name).read_bytes()) for name in names)
        payload = AdapterPayload(version=version, files=files, probe_token_ids=PROBE_TOKENS)
        probe = AdapterProbe(
            version=version,
            training_logprobs=tuple(self.logprobs(PROBE_TOKENS, version)),
            base_training_logprobs=tuple(self.logprobs(PROBE_TOKENS, 0)),
            previous_version=previous,
            previous_training_logprobs=None if previous is None else tuple(self.logprobs(PROBE_TOKENS, previous)),
            tolerance=TOLERANCE,
        )
        return payload, probe

    def logprobs(self, token_ids: Sequence[int], version: int, temperature: float = 1.0) -> list[float]:
        """log p(token_ids[i+1] | token_ids[:i+1]) under an adapter version (0: the base)."""
        import torch
        from peft import PeftModel
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(self.model_path, dtype=torch.float32)
        if version:
            model = PeftModel.from_pretrained(model, self._folders[version])
        tokens_T = torch.tensor(token_ids)
        with torch.no_grad():
            logits_TV = model(tokens_T[None]).logits[0] / temperature
        return logits_TV[:-1].log_softmax(-1).gather(-1, tokens_T[1:, None])[:, 0].tolist()

    def _make_adapter(self, version: int, strength: float, modules_to_save: Sequence[str]) -> Path:
        import torch
        from peft import LoraConfig, get_peft_model
        from transformers import AutoModelForCausalLM

        torch.manual_seed(1000 + version)
        model = AutoModelForCausalLM.from_pretrained(self.model_path, dtype=torch.float32)
        linear = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
        whole = list(modules_to_save) or None
        adapter = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules=linear, modules_to_save=whole))
        for name, parameter in adapter.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=strength * 0.1)
            elif "modules_to_save" in name:
                parameter.data += 0.05 * torch.randn_like(parameter)
        folder = self._folders[version] = self.folder / f"v{version}"
        adapter.save_pretrained(folder)
        # peft writes the base model's folder into the configuration, and vLLM would look for it
        path = folder / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": None}))
        return folder


@pytest.fixture(scope="session")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    return Reference(model_path=word_model(), folder=tmp_path_factory.mktemp("adapters"))


@dataclass
class Served:
    """A worker on the real vLLM, and what its metrics sink was given."""

    worker: RolloutWorker
    config: RolloutConfig
    run_folder: Path
    metrics: list[dict[str, float]]
    next_version: Callable[[], int]


def make_config(adapter_dir: Path, **changes: Any) -> RolloutConfig:
    settings: dict[str, Any] = {
        "max_model_len": 256,
        "max_num_seqs": 16,
        "kv_cache_gib": 0.05,
        "max_lora_rank": 8,
        "max_adapter_versions": 2,
        "publish_timeout_s": 60,
        "adapter_dir": str(adapter_dir),
    }
    return RolloutConfig(**settings | changes)


@pytest_asyncio.fixture(scope="session", loop_scope="session", params=[1, 2], ids=["V1", "V2"])
async def served(
    request: pytest.FixtureRequest, reference: Reference, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Served]:
    """On each of vLLM's model runners: V1 serves on CPUs, V2 on GPUs, and on CPUs with a Triton that has them."""
    if request.param == 2 and (find_spec("triton") is None or find_spec("triton.backends.cpu") is None):
        pytest.skip("vLLM refuses its model runner V2 without Triton, whose package on PyPI has no backend for CPUs")
    adapter_dir = tmp_path_factory.mktemp("shm")
    config = make_config(adapter_dir)
    metrics: list[dict[str, float]] = []
    worker = RolloutWorker("rollout-0", str(reference.model_path), config, "cpu", 0, "test", metrics.append)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_USE_V2_MODEL_RUNNER", str(request.param - 1))
        await worker.start()
    yield Served(worker, config, adapter_dir / "rlvr-test", metrics, itertools.count(1).__next__)
    await worker.shutdown()
    assert list(adapter_dir.iterdir()) == []


@contextlib.asynccontextmanager
async def kept_busy(
    worker: RolloutWorker, prompt: Prompt, sampling: SamplingParams, num_running: int
) -> AsyncIterator[list[asyncio.Task[list[Completion]]]]:
    """At least `num_running` sequences run inside, however fast the machine is; yields the groups begun so far."""
    groups: list[asyncio.Task[list[Completion]]] = []

    async def refill() -> None:
        while True:
            if not await running(worker, num_running) and sum(not group.done() for group in groups) < num_running:
                groups.append(asyncio.create_task(worker.generate(prompt, sampling)))
            await asyncio.sleep(POLL_S)

    refilling = asyncio.create_task(refill())
    try:
        await until_async(lambda: running(worker, num_running))
        yield groups
    finally:
        refilling.cancel()
        await asyncio.gather(*groups)


async def running(worker: RolloutWorker, count: int) -> bool:
    """Whether at least so many requests are running."""
    return worker._engine.load().running >= count


@pytest.fixture
def run_root(tmp_path: Path) -> Path:
    root = tmp_path / "shm"
    root.mkdir()
    return root


@pytest.fixture
def rollout_config(run_root: Path) -> Callable[..., RolloutConfig]:
    """Settings for the tiny model, with changes."""
    return functools.partial(make_config, run_root)
