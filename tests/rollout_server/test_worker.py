"""A worker's bookkeeping on a scripted engine: versions, limits, failures. The real engine is in test_engine.py."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from rollout_server.counters import EngineLoad
from rollout_server.errors import (
    AdapterCorruptError,
    AdapterMismatchError,
    EngineDeadError,
    EngineSpoiledError,
    FullTensorsError,
    RolloutTimeoutError,
    StaleAdapterError,
)
from rollout_server.publishing import adapters
from rollout_server.types import (
    AdapterPayload,
    AdapterProbe,
    AdapterVersion,
    Completion,
    FinishReason,
    Prompt,
    SamplingParams,
)
from rollout_server.worker import RolloutWorker
from tests.waiting import others_run, until_async

PROMPT = Prompt(prompt_id="p", token_ids=(1, 2))


class ScriptedEngine:
    """Completes a group when `let_go` is set; serves log-probabilities of minus the version's number."""

    def __init__(self) -> None:
        self.let_go = asyncio.Event()
        self.loaded: list[int] = []
        self.pipelined: list[int] = []
        self.same = False
        self.fails_to_load = False
        self.under_way = 0
        self.tensors_of = 0
        self.fails_to_check = False
        self.fails_half_way = False
        self.cached_prefixes = False

    async def start(self) -> None: ...

    async def generate(self, prompt: Prompt, sampling: SamplingParams, lora: AdapterVersion | None) -> list[Completion]:
        number = 0 if lora is None else lora.number
        assert number == 0 or number in self.loaded
        self.under_way += 1
        self.cached_prefixes = True
        await self.let_go.wait()
        self.under_way -= 1
        assert number == 0 or number in self.loaded
        return [
            Completion(
                prompt_id=prompt.prompt_id,
                token_ids=(7,),
                sampling_logprobs=(-1.0,),
                text="",
                finish_reason=FinishReason.STOP,
                adapter_version=number,
            )
        ]

    async def prompt_logprobs(
        self, token_ids: Sequence[int], versions: Sequence[AdapterVersion | None]
    ) -> list[list[float]]:
        return [[-float(0 if lora is None else lora.number)] * (len(token_ids) - 1) for lora in versions]

    async def add_lora_and_probe(
        self,
        version: AdapterVersion,
        token_ids: Sequence[int],
        versions: Sequence[AdapterVersion | None],
        before: AdapterVersion | None,
    ) -> tuple[float, list[list[float]], bool]:
        self.pipelined.append(version.number)
        await self.add_lora(version)
        return 1.0, await self.prompt_logprobs(token_ids, versions), self.same

    async def same_adapters(self, first: AdapterVersion, second: AdapterVersion | None) -> bool:
        return self.same

    async def add_lora(self, version: AdapterVersion) -> None:
        if self.fails_to_load:
            raise EngineDeadError("gone")
        assert "adapter_model.safetensors" in {path.name for path in Path(version.path).iterdir()}
        self.loaded.append(version.number)

    async def remove_lora(self, version: AdapterVersion) -> None:
        if version.number in self.loaded:
            self.loaded.remove(version.number)

    async def check_full_tensors(self, version: AdapterVersion) -> None:
        assert (Path(version.path) / "full_tensors.safetensors").is_file()
        if self.fails_to_check:
            raise FullTensorsError("no such tensor")

    async def check(self) -> None: ...

    async def drop_prefix_cache(self) -> None:
        self.cached_prefixes = False

    async def load_full_tensors(self, version: AdapterVersion) -> None:
        assert self.under_way == 0
        assert not self.cached_prefixes
        self.tensors_of = version.number
        if self.fails_half_way:
            raise FullTensorsError("out of memory")

    def load(self) -> EngineLoad:
        return EngineLoad(running=0, waiting=0, generated_tokens=0)

    async def shutdown(self) -> None: ...


MATRICES = {"base_model.model.model.q_proj.lora_A.weight": torch.ones(1, 2)}


def payload(version: int, matrices: dict[str, torch.Tensor] = MATRICES) -> AdapterPayload:
    files = (("adapter_model.safetensors", save(matrices)),)
    return AdapterPayload(version=version, files=files, probe_token_ids=(1, 2, 3))


def probe(trained: float, previous: float | None = None, *, base: float = 0.0, tolerance: float = 1.0) -> AdapterProbe:
    return AdapterProbe(
        version=1,
        training_logprobs=(trained,) * 2,
        base_training_logprobs=(base,) * 2,
        previous_version=1,
        previous_training_logprobs=None if previous is None else (previous,) * 2,
        tolerance=tolerance,
    )


def whole(version: int, *, modules: tuple[str, ...] = ("embed_tokens",)) -> AdapterPayload:
    """An adapter with whole tensors beside its matrices."""
    tensors = {f"base_model.model.model.{name}.weight": torch.full((2, 2), float(version)) for name in modules}
    tensors |= MATRICES
    config = json.dumps({"modules_to_save": modules}).encode()
    files = (("adapter_config.json", config), ("adapter_model.safetensors", save(tensors)))
    return dataclasses.replace(payload(version), files=files)


@pytest.fixture
def engine() -> ScriptedEngine:
    return ScriptedEngine()


@pytest.fixture
async def worker(engine, run_root, rollout_config):
    worker = RolloutWorker("rollout-3", "model", rollout_config(), "cpu", 0, "r", lambda values: None, engine=engine)
    await worker.start()
    yield worker
    engine.let_go.set()
    await worker.shutdown()
    assert list(run_root.iterdir()) == []


async def begin(worker: RolloutWorker) -> asyncio.Task[list[Completion]]:
    """A request that has taken its version."""
    request = asyncio.create_task(worker.generate(PROMPT, SamplingParams(num_generations=1)))
    await others_run(3)
    return request


async def test_a_request_keeps_its_version_and_the_version_lives_until_then(worker, engine):
    await worker.publish(payload(1))
    request = await begin(worker)
    await worker.publish(payload(2))
    assert engine.loaded == [1, 2]
    engine.let_go.set()
    assert (await request)[0].adapter_version == 1
    await until_async(lambda: engine.loaded == [2])
    assert (await worker.generate(PROMPT, SamplingParams()))[0].adapter_version == 2


async def test_a_long_group_goes_on_with_a_new_version_between_completions(
    engine, run_root, rollout_config, monkeypatch
):
    config = rollout_config(max_num_seqs=1, generate_timeout_s=0.5)
    worker = RolloutWorker("rollout-3", "model", config, "cpu", 0, "r", lambda values: None, engine=engine)
    seeds = []
    stock = engine.generate

    async def generate(prompt, sampling, lora):
        seeds.append(prompt.seed)
        await asyncio.sleep(0.3)  # both together take longer than one may
        return await stock(prompt, sampling, lora)

    monkeypatch.setattr(engine, "generate", generate)
    engine.let_go.set()
    await worker.start()
    seeded = dataclasses.replace(PROMPT, seed=40)
    request = asyncio.create_task(worker.generate(seeded, SamplingParams(num_generations=2)))
    await until_async(lambda: len(seeds) == 1)
    await worker.publish(payload(1))
    assert [completion.adapter_version for completion in await request] == [0, 1]
    assert seeds == [40, 41]
    await worker.shutdown()


async def test_an_idle_version_goes_as_soon_as_it_is_replaced(worker, engine):
    await worker.publish(payload(1))
    await worker.publish(payload(2))
    await until_async(lambda: engine.loaded == [2])


async def test_the_probe_is_measured_and_a_failed_one_leaves_no_trace(worker, engine, run_root):
    report = await worker.publish(payload(1), probe(-1.05))
    assert report.worker == "rollout-3"
    assert report.probe_difference == pytest.approx(0.05)
    with pytest.raises(AdapterMismatchError, match=r"rollout-3 .* version 2"):
        await worker.publish(payload(2), probe(-1.0, -1.05))
    assert engine.loaded == [1]
    assert worker._table.current == 1
    assert sorted(path.name for path in (run_root / "rlvr-r").iterdir()) == ["guard.lock", "v1", "v1.lock"]
    assert (await worker.publish(payload(2), probe(-2.0, -1.05))).probe_difference == 0
    assert engine.pipelined == [2, 2]  # the first of its kind is loaded before anything is asked of it


async def test_the_probe_is_awaited_last_and_may_fail_there(worker, engine):
    told = asyncio.get_running_loop().create_future()
    publishing = asyncio.create_task(worker.publish(payload(1), told))
    await until_async(lambda: engine.loaded == [1])
    assert worker._table.current == 0
    told.set_exception(ValueError("the learner is gone"))
    with pytest.raises(ValueError, match="the learner is gone"):
        await publishing
    assert (engine.loaded, worker._table.current) == ([], 0)


async def test_another_base_model_is_refused_before_any_adapter(worker):
    with pytest.raises(AdapterMismatchError, match=r"rollout-3 serves another base .* differ by 1 nats"):
        await worker.publish(payload(1), probe(-1.0, base=-1.0))


async def test_a_worker_that_comes_later_judges_by_its_own_version_before(worker, engine):
    """The learner tells of version 4; this worker serves the base until now."""
    assert (await worker.publish(payload(5), probe(-5.0, -4.0))).probe_difference == 0


async def test_an_earlier_version_that_is_not_the_one_before_tells_nothing(worker, engine):
    """A learner that died made steps again, and remembers those before them."""
    await worker.publish(payload(2), probe(-2.0))
    update = dataclasses.replace(probe(-3.0, -1.0), previous_version=1)
    assert (await worker.publish(payload(3), update)).probe_difference == 0


@pytest.mark.parametrize("noise", [0.0, 0.01])
async def test_an_engine_that_does_not_move_with_the_learner_is_stale(worker, engine, monkeypatch, noise):
    """Without noise what it says tells, with it the adapter in its memory."""
    await worker.publish(payload(1), probe(-1.0))

    async def prompt_logprobs(token_ids, versions):
        return [[-1.0 + noise] * 2 for _ in versions]

    monkeypatch.setattr(engine, "prompt_logprobs", prompt_logprobs)
    engine.same = noise > 0
    with pytest.raises(StaleAdapterError, match=r"rollout-3 still serves adapter version 1 in place of 2"):
        await worker.publish(payload(2), probe(-1.001, -1.0))
    assert worker._table.current == 1


@pytest.mark.parametrize("damage", ["cut", "no tensors", "fewer tensors", "other shapes"])
async def test_a_payload_that_is_not_whole_never_reaches_the_engine(worker, engine, damage):
    await worker.publish(payload(1))
    good = payload(2).files[0][1]
    content = {
        "cut": good[:-4],
        "no tensors": good[:4],
        "fewer tensors": save({}),
        "other shapes": save({name: matrix[:, :1] for name, matrix in MATRICES.items()}),
    }[damage]
    bad = dataclasses.replace(payload(2), files=(("adapter_model.safetensors", content),))
    with pytest.raises((AdapterCorruptError, ValueError), match="adapter version 2"):
        await worker.publish(bad)
    assert engine.loaded == [1]


async def test_files_that_lie_otherwise_than_they_were_sent_are_not_served(worker, engine, run_root, monkeypatch):
    await worker.publish(payload(1))

    def write_one_bit_wrong(target, files):
        ((name, content),) = files
        target.mkdir()
        (target / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))

    monkeypatch.setattr(adapters, "_write_folder", write_one_bit_wrong)
    with pytest.raises(AdapterCorruptError, match=r"version 2 in .* is not what the learner sent, by its adapter"):
        await worker.publish(payload(2))
    assert engine.loaded == [1]
    assert sorted(path.name for path in (run_root / "rlvr-r").iterdir()) == ["guard.lock", "v1", "v1.lock"]
    engine.let_go.set()
    assert (await worker.generate(PROMPT, SamplingParams()))[0].adapter_version == 1


async def test_a_version_that_does_not_load_leaves_no_trace(worker, engine, run_root):
    engine.fails_to_load = True
    with pytest.raises(EngineDeadError):
        await worker.publish(payload(1))
    assert [path.name for path in (run_root / "rlvr-r").iterdir()] == ["guard.lock"]


async def test_publishing_the_current_version_again_probes_it_again(worker, engine):
    await worker.publish(payload(1), probe(-1.0))
    assert (await worker.publish(payload(1), probe(-1.0))).load_ms == 0
    assert engine.loaded == [1]
    with pytest.raises(ValueError, match="another adapter as version 1"):
        await worker.publish(payload(1, {"other": torch.zeros(1)}))


async def test_versions_only_grow(worker):
    await worker.publish(payload(5))
    with pytest.raises(ValueError, match="serves adapter version 5 and cannot go to 4"):
        await worker.publish(payload(4))


async def test_publishing_waits_for_the_first_version_to_fall_idle(worker, engine):
    await worker.publish(payload(1))
    request = await begin(worker)
    await worker.publish(payload(2))
    other = await begin(worker)
    publishing = asyncio.create_task(worker.publish(payload(3)))  # max_adapter_versions is 2
    await asyncio.sleep(0.05)
    assert engine.loaded == [1, 2]
    engine.let_go.set()
    assert (await publishing).version.number == 3
    assert [(await request)[0].adapter_version, (await other)[0].adapter_version] == [1, 2]


async def test_a_full_worker_does_not_make_publishing_wait_for_ever(worker, rollout_config, monkeypatch):
    requests = []
    for version in (1, 2):
        await worker.publish(payload(version))
        requests.append(await begin(worker))
    monkeypatch.setattr(worker, "_config", rollout_config(publish_timeout_s=0.05))
    with pytest.raises(RolloutTimeoutError, match=r"version 3 within 0\.05 s; .* v1: 1, v2: 1"):
        await worker.publish(payload(3))


async def test_whole_tensors_wait_until_no_group_is_under_way(worker, engine):
    before = await begin(worker)
    publishing = asyncio.create_task(worker.publish(whole(1), probe(-1.0)))
    await until_async(lambda: not worker._admitting.is_set())
    late = await begin(worker)
    assert (engine.tensors_of, engine.under_way) == (0, 1)  # the late one has not begun
    engine.let_go.set()
    assert (await publishing).version.number == 1
    assert [(await group)[0].adapter_version for group in (before, late)] == [0, 1]
    assert engine.tensors_of == 1


async def test_a_drain_that_takes_too_long_leaves_the_old_version(worker, engine, rollout_config, monkeypatch):
    group = await begin(worker)
    monkeypatch.setattr(worker, "_config", rollout_config(publish_timeout_s=0.05))
    with pytest.raises(RolloutTimeoutError, match=r"version 1 within 0\.05 s; .* v0: 1"):
        await worker.publish(whole(1))
    engine.let_go.set()
    assert (await group)[0].adapter_version == 0
    assert (await worker.generate(PROMPT, SamplingParams()))[0].adapter_version == 0
    assert engine.tensors_of == 0


async def test_whole_tensors_that_do_not_fit_change_nothing(worker, engine):
    engine.let_go.set()
    engine.fails_to_check = True
    with pytest.raises(FullTensorsError):
        await worker.publish(whole(1))
    assert (await worker.generate(PROMPT, SamplingParams()))[0].adapter_version == 0


@pytest.mark.parametrize("failure", ["half way", "probe"])
async def test_a_spoiled_engine_generates_no_more_until_a_version_is_whole(worker, engine, failure):
    engine.let_go.set()
    await worker.publish(whole(1))
    engine.fails_half_way = failure == "half way"
    with pytest.raises((FullTensorsError, AdapterMismatchError)):
        await worker.publish(whole(2), probe(-3.0, -1.0))
    with pytest.raises(EngineSpoiledError, match=r"rollout-3 holds a part of adapter version 2, .* back to version 1"):
        await worker.generate(PROMPT, SamplingParams())
    engine.fails_half_way = False
    await worker.publish(whole(2), probe(-2.0, -1.0))
    assert (await worker.generate(PROMPT, SamplingParams()))[0].adapter_version == 2


async def test_every_version_has_the_same_whole_tensors(worker):
    await worker.publish(whole(1, modules=("embed_tokens", "lm_head")))
    for later in (payload(2), whole(2)):
        with pytest.raises(ValueError, match=r"version 2 lacks \[.*'model\.lm_head\.weight'\]"):
            await worker.publish(later)


async def test_the_version_before_is_asked_before_its_tensors_go(worker, engine, monkeypatch):
    asked: list[tuple[int, int]] = []

    async def prompt_logprobs(token_ids: Sequence[int], versions: Sequence[AdapterVersion | None]) -> list[list[float]]:
        asked.extend((0 if lora is None else lora.number, engine.tensors_of) for lora in versions)
        return [[-1.0 - 0.01 * engine.tensors_of] * (len(token_ids) - 1) for _ in versions]

    monkeypatch.setattr(engine, "prompt_logprobs", prompt_logprobs)
    await worker.publish(whole(1))
    await worker.publish(whole(2), probe(-1.05, -1.03))
    assert asked == [(1, 1), (2, 2)]


async def test_a_group_that_takes_too_long_is_given_up(worker, rollout_config, monkeypatch):
    monkeypatch.setattr(worker, "_config", rollout_config(generate_timeout_s=0.05))
    with pytest.raises(RolloutTimeoutError, match=r"rollout-3 .* prompt 'p' within 0\.05 s"):
        await worker.generate(PROMPT, SamplingParams())


async def test_a_broken_metrics_sink_does_not_stop_the_worker(engine, rollout_config, monkeypatch, caplog):
    monkeypatch.setattr("rollout_server.counters.METRICS_PERIOD_S", 0.01)
    calls = []

    def sink(values: dict[str, float]) -> None:
        calls.append(values)
        raise OSError("no dashboard")

    config = rollout_config()
    worker = RolloutWorker("rollout-3", "model", config, "cpu", 0, "r", sink, engine=engine)
    await worker.start()
    await until_async(lambda: "the metrics sink failed" in caplog.text)
    await asyncio.sleep(0.05)
    await worker.shutdown()
    assert len(calls) == 1
