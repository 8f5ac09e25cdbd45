"""`python -m tests.learner.tree.flex_code 80 90`: the code generated for flex attention on GPUs that are not here.

Tensors are fake ones on `cuda:0`, and whatever asks for the device is told of one of that compute capability. Dynamo,
autograd's tracer and inductor are the real ones, up to the source of the kernel, which is not compiled. In a process of
its own, for what it replaces. Prints one JSON line for each capability.
"""

from __future__ import annotations

import importlib
import json
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch._dynamo import device_interface
from torch._dynamo.backends.common import aot_autograd
from torch._inductor.decomposition import select_decomp_table
from torch._inductor.graph import GraphLowering
from torch._inductor.runtime.hints import DeviceProperties
from torch._inductor.virtualized import V
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from learner.tree import flex
from learner.tree.prefix_tree import PrefixTree, TokenSequence, build_tree

GPU = torch.device("cuda", 0)
SHARED_MEMORY = {80: 166_912, 90: 232_448}


@contextmanager
def a_gpu(capability: int) -> Iterator[None]:
    """A device of this capability, to whoever asks."""
    import triton
    from triton.backends.compiler import GPUTarget

    properties = SimpleNamespace(
        name="none",
        gcnArchName="",
        major=capability // 10,
        minor=capability % 10,
        multi_processor_count=108,
        warp_size=32,
        regs_per_multiprocessor=65_536,
        max_threads_per_multi_processor=2048,
        max_threads_per_block=1024,
        total_memory=80 * 2**30,
        shared_memory_per_block=49_152,
        shared_memory_per_block_optin=SHARED_MEMORY[capability],
        L2_cache_size=40 * 2**20,
    )
    answers = {
        "current_device": lambda: 0,
        "device_count": lambda: 1,
        "get_device_properties": lambda device=None: properties,
        "get_device_capability": lambda device=None: (properties.major, properties.minor),
    }
    interface = type(
        "Interface",
        (device_interface.CudaInterface,),
        {
            **{name: staticmethod(answer) for name, answer in answers.items()},
            "is_available": staticmethod(lambda: True),
            "get_compute_capability": staticmethod(lambda device=None: capability),
            "get_raw_stream": staticmethod(lambda index: 0),
            "is_triton_capable": staticmethod(lambda device=None: True),
            "raise_if_triton_unavailable": staticmethod(lambda device=None: None),
        },
    )
    driver = SimpleNamespace(
        get_current_target=lambda: GPUTarget("cuda", capability, 32),
        get_active_torch_device=lambda: GPU,
        get_current_device=lambda: 0,
        get_current_stream=lambda device: 0,
        get_device_interface=lambda: interface,
    )
    triton.runtime.driver.set_active(driver)
    device_interface.init_device_reg()
    for name in ("cuda", "cuda:0"):
        device_interface.register_interface_for_device(name, interface)
    operator = importlib.import_module(type(torch._higher_order_ops.flex_attention).__module__)
    permuted = operator._permute_strides

    def permuted_only(out: Any, strides: Any) -> Any:
        with mock.patch.object(torch.Tensor, "copy_", lambda self, *rest: self):  # a fake tensor's needs a device
            return permuted(out, strides)

    with ExitStack() as stack:
        for name, answer in answers.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, answer))
        stack.enter_context(mock.patch.object(operator, "_permute_strides", permuted_only))
        yield


def generated(sources: list[str]) -> Any:
    """A backend of `torch.compile` that keeps the source of what inductor generates."""

    def lower(module: Any, inputs: Sequence[Any], **unused: Any) -> Any:
        mode = torch._guards.detect_fake_mode(inputs)
        assert mode is not None
        with V.set_fake_mode(mode):
            graph = GraphLowering(module, example_inputs=inputs, shape_env=mode.shape_env)
            debug = V.set_debug_handler(mock.MagicMock())
            with V.set_graph_handler(graph), V.set_extern_kernel_nodes([]), debug:
                graph.run(*inputs)
                sources.append(graph.codegen()[0].value)
        return module.forward

    compiler = aot_autograd(fw_compiler=lower, inference_compiler=lower, decompositions=select_decomp_table())
    return lambda module, inputs: compiler(module, inputs)


def attend(kernel: Any, tree: PrefixTree, mode: FakeTensorMode, heads: tuple[int, int, int]) -> None:
    def fake(tensor: torch.Tensor) -> torch.Tensor:
        with mode:
            return torch.empty(tensor.shape, dtype=tensor.dtype, device=GPU)

    made = flex.block_mask(tree, torch.device("cpu"))
    with mock.patch.object(flex, "on_device", lambda values, device: fake(torch.from_numpy(values))):
        test = flex._ancestor_test(tree, GPU, None)
    lists = {
        f"{full}{side}_{what}" for full in ("", "full_") for side in ("q", "kv") for what in ("num_blocks", "indices")
    }
    mask = BlockMask(
        seq_lengths=made.seq_lengths,
        BLOCK_SIZE=made.BLOCK_SIZE,
        mask_mod=test,
        **{name: fake(getattr(made, name)) for name in lists},
    )
    num_heads, num_groups, size = heads
    query, key, value = (
        fake(torch.empty(1, count, tree.num_tokens, size, dtype=torch.bfloat16))
        for count in (num_heads, num_groups, num_groups)
    )
    kernel(query, key, value, block_mask=mask, scale=size**-0.5, enable_gqa=True)


def tree_of(length: int) -> PrefixTree:
    prompt = tuple(range(1, length))
    return build_tree([TokenSequence(prompt_token_ids=prompt, completion_token_ids=(5, last, 6)) for last in range(3)])


def main(capabilities: Sequence[int]) -> None:
    for capability in capabilities:
        torch._dynamo.reset()
        DeviceProperties.create.cache_clear()
        sources: list[str] = []
        graphs = []
        with a_gpu(capability):
            mode = FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True)
            kernel = flex.compiled(flex_attention, backend=generated(sources))
            for length in (300, 1000, 20):
                attend(kernel, tree_of(length), mode, (14, 2, 64))
                graphs.append(len(sources))
        said = {
            "capability": capability,
            "generated_for": int(re.findall(r"cc=(\d+)", sources[0])[0]),
            "graphs": graphs,
            "products": [source.count("tl.dot(") for source in sources],
        }
        print(json.dumps(said), flush=True)


if __name__ == "__main__":
    main([int(one) for one in sys.argv[1:]])
