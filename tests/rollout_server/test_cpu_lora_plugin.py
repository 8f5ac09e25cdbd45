"""The grouped LoRA operations give vLLM's numbers, and stay away where they do not belong."""

from __future__ import annotations

import functools
import importlib.util
import subprocess
import sys
import types

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from rollout_server import cpu_lora_plugin
from rollout_server.cpu_lora_plugin import expand, group_rows, shrink

SLOTS = 4


def rows_by_slot(slots_T: list[int]) -> dict[int, list[int]]:
    return {group.slot: torch.arange(len(slots_T))[group.rows].tolist() for group in group_rows(slots_T)}


@given(st.lists(st.integers(-1, SLOTS - 1), max_size=12))
def test_every_row_with_an_adapter_is_in_its_group(slots_T):
    expected = {slot: [row for row, s in enumerate(slots_T) if s == slot] for slot in set(slots_T) - {-1}}
    assert rows_by_slot(slots_T) == expected


@functools.cache
def stock_wrapper_class():
    """vLLM's CPU wrapper as it came, whatever was registered in this process: its file, read again."""
    from vllm.lora.punica_wrapper import punica_cpu

    spec = importlib.util.spec_from_file_location("vllm.lora.punica_wrapper.fresh_punica_cpu", punica_cpu.__file__)
    fresh = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fresh)
    return fresh.PunicaWrapperCPU


def wrappers(slots_T: list[int], *, is_prefill: bool):
    """Both wrappers after vLLM told them the adapters of a batch; adapter ids are slot + 1, and 0 is none."""
    from vllm.lora.layers import LoRAMapping

    ids = tuple(slot + 1 for slot in slots_T)
    stock = stock_wrapper_class()
    grouped = types.new_class("Grouped", (stock,))
    cpu_lora_plugin.install(grouped)
    made = []
    for wrapper_class in (stock, grouped):
        wrapper = wrapper_class(64, 64, "cpu")
        wrapper.update_metadata(LoRAMapping(ids, ids, is_prefill), [*range(1, SLOTS), None], SLOTS + 1, 100)
        made.append(wrapper)
    return made


slots = st.lists(st.integers(-1, SLOTS - 2), min_size=2, max_size=12)  # the last slot stays empty, as in our engine


@settings(max_examples=60)
@given(
    slots_T=slots,
    is_prefill=st.booleans(),
    widths=st.lists(st.integers(1, 9), min_size=1, max_size=3),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    scale=st.sampled_from([1.0, 0.5]),
    seed=st.integers(0, 99),
)
def test_linear_layers_get_the_same_numbers(slots_T, is_prefill, widths, dtype, scale, seed):
    """Random shapes, one to three packed slices (q, k, v), several adapters, rows without one."""
    torch.manual_seed(seed)
    x = torch.randn(len(slots_T), 6).to(dtype)
    a = tuple(torch.randn(SLOTS, 1, 4, 6).to(dtype) for _ in widths)
    b = tuple(torch.randn(SLOTS, 1, width, 4).to(dtype) for width in widths)
    for matrix in (*a, *b):
        matrix[-1] = 0
    y = torch.randn(len(slots_T), sum(widths)).to(dtype)
    results = []
    for wrapper in wrappers(slots_T, is_prefill=is_prefill):
        result = y.clone()
        wrapper.add_lora_linear(result, x, a, b, scale, tuple(widths))
        results.append(result)
    # in bfloat16 theirs is rounded once more, before it is added
    tolerance = {"rtol": 0.02, "atol": 0.05} if dtype is torch.bfloat16 else {}
    torch.testing.assert_close(results[1], results[0], **tolerance)


@settings(max_examples=30)
@given(slots_T=slots, is_prefill=st.booleans(), add_inputs=st.booleans(), offset=st.integers(0, 2))
def test_shrinking_and_expanding_get_the_same_numbers(slots_T, is_prefill, add_inputs, offset):
    assume(add_inputs or any(slot >= 0 for slot in slots_T))  # without any adapter theirs may leave what was there
    torch.manual_seed(len(slots_T))
    x, a, b = torch.randn(len(slots_T), 6), torch.randn(SLOTS, 1, 4, 6), torch.randn(SLOTS, 1, 5, 4)
    a[-1] = b[-1] = 0
    y = torch.randn(len(slots_T), 8)
    results = []
    for wrapper in wrappers(slots_T, is_prefill=is_prefill):
        hidden, result = torch.zeros(len(slots_T), 4), y.clone()
        wrapper.add_shrink((hidden,), x, (a,), 2.0)
        wrapper.add_expand(result, (hidden,), (b,), (5,), offset_start=offset, add_inputs=add_inputs)
        results.append((hidden, result))
    torch.testing.assert_close(results[1], results[0])


@settings(max_examples=30)
@given(slots_T=slots, head_is_trained=st.booleans())
def test_logits_and_embeddings_get_the_same_numbers(slots_T, head_is_trained):
    torch.manual_seed(len(slots_T))
    x, a, b = torch.randn(len(slots_T), 6), torch.randn(SLOTS, 1, 4, 6), torch.randn(SLOTS, 1, 9, 4)
    a[-1] = b[-1] = 0
    if not head_is_trained:
        a, b = torch.zeros_like(a), torch.zeros_like(b)
    logits, embeddings = torch.randn(len(slots_T), 7), torch.randn(len(slots_T), 9)  # B is padded beyond the logits
    results = []
    for wrapper in wrappers(slots_T, is_prefill=False):
        result, embedded = logits.clone(), embeddings.clone()
        wrapper.add_lora_logits(result, x, a, b, 1.0)
        wrapper.add_lora_embedding(embedded, x[:, :4], b)
        results.append((result, embedded))
    torch.testing.assert_close(results[1], results[0])


def test_rows_without_an_adapter_are_left_alone_where_vllm_gives_them_the_last_slot():
    torch.manual_seed(0)
    x, a, b = torch.randn(3, 6), torch.randn(SLOTS, 1, 4, 6), torch.randn(SLOTS, 1, 5, 4)
    y = torch.randn(3, 5)
    stock, grouped = wrappers([-1, 0, -1], is_prefill=False)
    theirs, ours = y.clone(), y.clone()
    stock.add_lora_linear(theirs, x, (a,), (b,), 1.0, (5,))
    grouped.add_lora_linear(ours, x, (a,), (b,), 1.0, (5,))
    assert torch.equal(ours[0], y[0])
    assert torch.equal(ours[2], y[2])
    torch.testing.assert_close(ours[1], theirs[1])
    torch.testing.assert_close(theirs[0], y[0] + x[0] @ a[-1, 0].T @ b[-1, 0].T)  # what vLLM does


def test_the_operations_alone():
    x_TI, a_SRI, b_SOR = torch.randn(5, 3), torch.randn(2, 4, 3), torch.randn(2, 6, 4)
    slots_T = [1, -1, 0, 1, 0]
    groups = group_rows(slots_T)
    y_TR = torch.full((5, 4), 9.0)
    shrink(x_TI, a_SRI, groups, y_TR, 2.0)
    expected_TR = torch.stack([2 * x_I @ a_SRI[slot].T for x_I, slot in zip(x_TI, slots_T, strict=True)])
    expected_TR[1] = 0
    torch.testing.assert_close(y_TR, expected_TR)
    y_TO = torch.ones(5, 6)
    expand(y_TR, b_SOR, groups, y_TO, add_inputs=True)
    torch.testing.assert_close(y_TO[0], 1 + expected_TR[0] @ b_SOR[1].T)
    torch.testing.assert_close(y_TO[1], torch.ones(6))


@pytest.fixture
def fresh_wrapper_class(monkeypatch):
    """A stock wrapper in the place where vLLM has its own."""
    from vllm.lora.punica_wrapper import punica_cpu

    stock = types.new_class("PunicaWrapperCPU", (stock_wrapper_class(),))
    monkeypatch.setattr(punica_cpu, "PunicaWrapperCPU", stock)
    return stock


def test_unknown_code_is_left_alone_and_said_so(fresh_wrapper_class, monkeypatch, caplog):
    stock = fresh_wrapper_class.add_lora_linear
    monkeypatch.setattr(cpu_lora_plugin, "KNOWN_CODE", frozenset())
    cpu_lora_plugin.register()
    assert fresh_wrapper_class.add_lora_linear is stock
    assert "leaving them as they are" in caplog.text


def test_this_vllm_is_known_and_registering_twice_is_registering_once(fresh_wrapper_class):
    stock = fresh_wrapper_class.add_lora_linear
    cpu_lora_plugin.register()
    assert fresh_wrapper_class.add_lora_linear is not stock
    first = fresh_wrapper_class.update_metadata
    cpu_lora_plugin.register()
    assert fresh_wrapper_class.update_metadata is first


def test_an_adapter_is_scaled_without_a_change_to_its_file(fresh_wrapper_class, monkeypatch):
    from vllm.lora.lora_weights import LoRALayerWeights

    monkeypatch.setattr(LoRALayerWeights, "optimize", _stock_optimize())
    a, b = torch.randn(4, 6), torch.randn(5, 4)
    theirs = LoRALayerWeights("layer", 4, 8, a, b.clone()).optimize()
    cpu_lora_plugin.register()
    assert LoRALayerWeights.optimize is cpu_lora_plugin._scaled_beside
    ours = LoRALayerWeights("layer", 4, 8, a, b)
    before = b.clone()
    assert torch.equal(ours.optimize().lora_b, theirs.lora_b)
    assert torch.equal(ours.optimize().lora_b, 2 * before)  # once
    assert torch.equal(b, before)


def _stock_optimize():
    from vllm.lora import lora_weights

    spec = importlib.util.spec_from_file_location("vllm.lora.fresh_lora_weights", lora_weights.__file__)
    fresh = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fresh)
    return fresh.LoRALayerWeights.optimize


def test_a_gpu_is_left_alone(fresh_wrapper_class, monkeypatch):
    from vllm.platforms import current_platform

    stock = fresh_wrapper_class.add_lora_linear
    monkeypatch.setattr(type(current_platform), "is_cpu", lambda self: False)
    cpu_lora_plugin.register()
    assert fresh_wrapper_class.add_lora_linear is stock


def test_the_fingerprint_sees_code_and_nothing_else():
    bare = cpu_lora_plugin._bare
    assert bare("def f(x: int) -> int:\n    '''Says.'''\n    return x  # why\n") == bare("def f(x):\n    return x\n")
    assert bare("def f(x):\n    return x\n") != bare("def f(x):\n    return -x\n")


@pytest.mark.parametrize("module", ["torch", "vllm"])
def test_importing_the_plugin_loads_nothing_heavy(module):
    code = f"import sys, rollout_server.cpu_lora_plugin; sys.exit({module!r} in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0
