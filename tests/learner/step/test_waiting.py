"""Between the first micro-batch of a step and the last nothing waits for the device, so that a GPU always has work."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import learner.worker
from learner.config import LearnerConfig, LossConfig
from learner.step.passes import Microbatches
from tests.learner.helpers import make_rank, random_groups

READS = {"aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::_unique2", "aten::equal"}
"""Operations whose answer, or its shape, the host needs at once."""


class Events(TorchDispatchMode):
    """What happens, in order: operations that wait, and what else is noted."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func._schema.name in READS:
            self.seen.append(func._schema.name)
        return func(*args, **(kwargs or {}))

    def noting(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def noted(*args: Any, **kwargs: Any) -> Any:
            self.seen.append(name)
            return call(*args, **kwargs)

        return noted


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> Iterator[Events]:
    found = Events()
    for name in ("tolist", "cpu", "numpy", "item"):  # of a CPU's tensors some are no operation
        monkeypatch.setattr(torch.Tensor, name, found.noting(name, getattr(torch.Tensor, name)))
    for name in ("make_microbatch", "run_pass"):
        monkeypatch.setattr(learner.worker, name, found.noting(name, getattr(learner.worker, name)))
    with found:
        yield found


@pytest.mark.parametrize(
    "loss",
    [
        {},
        {"beta": 0.1, "off_policy_mask_threshold": 0.5, "delta": 3.0},
        {"loss_type": "vespo"},
        {"loss_type": "luspo", "importance_sampling_level": "sequence"},
    ],
)
def test_nothing_is_read_before_the_last_micro_batch_is_sent(
    llama: str, events: Events, loss: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    rank = make_rank(llama, LearnerConfig(max_tokens_per_microbatch=30, num_threads=1, loss=LossConfig(**loss)))
    try:
        rank.start()
        monkeypatch.setattr(rank._engine, "backward", events.noting("backward", rank._engine.backward))
        rank.update(random_groups(0), max_staleness=99)
        events.seen.clear()
        rank.update(random_groups(1), max_staleness=99)
    finally:
        rank.shutdown()
    first, last = events.seen.index("run_pass"), len(events.seen) - 1 - events.seen[::-1].index("backward")
    step = events.seen[first : last + 1]
    assert step.count("run_pass") > 2
    assert set(step) <= {"make_microbatch", "run_pass", "backward"}
    assert set(events.seen[last:]) & {"tolist", "item", "aten::_local_scalar_dense"}  # the control: they are seen
    if not loss:  # each is made when the one before has been sent
        assert ["make_microbatch", *step] == ["make_microbatch", "run_pass", "backward"] * step.count("run_pass")


def test_a_step_keeps_what_it_made() -> None:
    made: list[Sequence[int]] = []

    def make(indices: Sequence[int]) -> Any:
        made.append(indices)
        return indices

    batches = Microbatches([[0, 1], [2]], make)
    assert made == []
    assert [*batches, *batches, batches[0]] == [[0, 1], [2], [0, 1], [2], [0, 1]]
    assert made == [[0, 1], [2]]
    assert batches[:1] == [[0, 1]]
    with pytest.raises(IndexError):
        batches[2]
