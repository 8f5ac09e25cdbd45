"""Placement is arithmetic: literal machines and what they are divided into."""

from __future__ import annotations

from typing import Any

import pytest

from orchestration.errors import MachineError
from orchestration.machine.needs import needs_of
from orchestration.machine.placement import (
    COLOCATED_MEMORY_SHARE,
    MARK,
    PlacementMode,
    effective_rollout,
    place,
    refuse_unseen_gpus,
    sized,
)
from orchestration.settings.config import RunConfig


def config(workers: int | None = 1, ranks: int | None = 1, width: int = 1, **changes: object) -> RunConfig:
    return RunConfig.model_validate(
        {
            "rollout": {"num_workers": workers, "tensor_parallel_size": width},
            "learner": {"num_ranks": ranks},
            **changes,
        }
    )


def test_eight_gpus_are_split_between_four_workers_and_four_ranks() -> None:
    placement = place(config(4, 4), num_gpus=8)
    assert placement.mode is PlacementMode.SPLIT
    bundles = [slot.bundle for slot in (*placement.rollout, *placement.learner)]
    assert bundles == list(range(8))  # no two actors share a GPU
    assert placement.bundle_gpus == (1.0,) * 8


def test_one_gpu_is_shared() -> None:
    placement = place(config(), num_gpus=1)
    assert placement.mode is PlacementMode.COLOCATED
    assert placement.rollout[0].num_gpus + placement.learner[0].num_gpus == placement.bundle_gpus[0] == 1.0
    assert effective_rollout(config().rollout, placement).gpu_memory_utilization == COLOCATED_MEMORY_SHARE


def test_four_gpus_are_shared_by_four_and_four() -> None:
    placement = place(config(4, 4), num_gpus=4)
    assert placement.mode is PlacementMode.COLOCATED
    assert [slot.bundle for slot in placement.rollout] == [slot.bundle for slot in placement.learner] == [0, 1, 2, 3]


def test_wide_workers_get_whole_bundles() -> None:
    placement = place(config(2, 4, width=2), num_gpus=8)
    assert placement.bundle_gpus == (2.0, 2.0, 1.0, 1.0, 1.0, 1.0)


def test_without_gpus_actors_reserve_nothing() -> None:
    placement = place(config(2, 2), num_gpus=0)
    assert placement.mode is PlacementMode.CPU
    assert placement.device == "cpu"
    assert placement.num_gpus == 0
    assert {slot.num_cpus for slot in (*placement.rollout, *placement.learner)} == {0.0}


def elastic(least: int | None, most: int | None, **changes: Any) -> RunConfig:
    rollout = {"min_workers": least, "max_workers": most}
    return RunConfig.model_validate({"rollout": rollout, "learner": {"num_ranks": 2}, **changes})


def test_an_elastic_run_has_a_bundle_for_each_worker_that_may_come() -> None:
    placement = place(elastic(1, 6), num_gpus=4)
    assert placement.mode is PlacementMode.SPLIT
    assert (placement.least_workers, len(placement.rollout)) == (1, 6)
    bundles = [slot.bundle for slot in (*placement.rollout, *placement.learner)]
    assert bundles == list(range(8))
    assert placement.describe(4) == "1 to 6 rollout workers on 6 GPUs, 2 learner ranks on 2 GPUs"
    assert sized(elastic(1, 6), num_gpus=4).rollout.num_workers == 2  # those there is room for by now
    with pytest.raises(MachineError, match=r"needs 5 GPUs .* use fewer rollout.min_workers"):
        place(elastic(3, 6), num_gpus=4)


def test_on_cpus_an_elastic_runs_workers_take_a_core_each() -> None:
    placement = place(elastic(1, 3), num_gpus=0)
    assert [slot.num_cpus for slot in placement.rollout] == [1.0, 1.0, 1.0]
    assert (placement.bundle_cpus, placement.num_gpus, placement.least_workers) == ((1.0, 1.0, 1.0), 0, 1)
    assert {slot.bundle for slot in placement.learner}.isdisjoint(slot.bundle for slot in placement.rollout)
    assert placement.describe(0) == "1 to 3 rollout workers and 2 learner ranks on the processor"


def test_numbers_of_an_elastic_run_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"rollout.min_workers=3, rollout.max_workers=2: min_workers is the fewest"):
        elastic(3, 2)
    with pytest.raises(ValueError, match=r"use placement=split"):
        elastic(1, 2, placement="colocated")


def test_a_machine_has_to_hold_as_many_of_an_elastic_runs_workers_as_may_be_on_it() -> None:
    on_gpus, on_cpus = needs_of(elastic(1, 64), num_gpus=8), needs_of(elastic(1, 4), num_gpus=0)
    assert on_gpus.least_memory_bytes == needs_of(config(6, 2), num_gpus=8).least_memory_bytes
    assert on_cpus.least_memory_bytes == needs_of(config(4, 2), num_gpus=0).least_memory_bytes
    assert on_gpus.gpu_division.startswith("1 to 64 rollout workers")


def test_gpus_serve_in_16_bits_alone() -> None:
    whole = RunConfig.model_validate({"rollout": {"dtype": "float32"}})
    assert place(whole, num_gpus=0).mode is PlacementMode.CPU
    with pytest.raises(MachineError, match=r"rollout.dtype=float32 .* use auto"):
        place(whole, num_gpus=2)


def test_marked_nodes_are_asked_for() -> None:
    marked = config(2, 1, rollout_nodes="rollout", learner_nodes="learner")
    for num_gpus in (0, 3):
        placement = place(marked, num_gpus=num_gpus)
        assert [slot.marks for slot in placement.rollout] == [{"rollout": MARK}] * 2
        assert [slot.marks for slot in placement.learner] == [{"learner": MARK}]
    assert placement.bundle_marks == ({"rollout": MARK}, {"rollout": MARK}, {"learner": MARK})


def test_rooms_on_nodes_of_their_own_share_no_gpu() -> None:
    with pytest.raises(MachineError, match="rollout_nodes=rollout and learner_nodes=None need 2 GPUs"):
        place(config(rollout_nodes="rollout"), num_gpus=1)
    with pytest.raises(ValueError, match="use placement=split"):
        config(rollout_nodes="rollout", placement="colocated")
    shared = place(config(rollout_nodes="gpu", learner_nodes="gpu"), num_gpus=1)
    assert shared.bundle_marks == ({"gpu": 2 * MARK},)  # both actors of the bundle take theirs out of it


def test_device_cpu_leaves_gpus_alone() -> None:
    assert place(config(device="cpu"), num_gpus=8).mode is PlacementMode.CPU


@pytest.mark.parametrize(
    ("settings", "num_gpus", "says"),
    [
        (config(4, 4, placement="split"), 4, "needs 8 GPUs"),
        (config(4, 4), 2, "at least 4 GPUs"),
        (config(1, 1, width=4), 4, "GPUs of its own"),
        (config(1, 1, width=2), 0, "must be 1"),
        (config(device="cuda"), 0, "no GPU"),
    ],
)
def test_too_few_gpus_are_refused_with_the_number(settings: RunConfig, num_gpus: int, says: str) -> None:
    with pytest.raises(MachineError, match=says):
        place(settings, num_gpus=num_gpus)


@pytest.mark.parametrize(
    ("settings", "num_gpus", "told"),
    [
        (RunConfig(), 1, "1 rollout worker and 1 learner rank share 1 GPU"),
        (RunConfig(), 2, "1 rollout worker on 1 GPU, 1 learner rank on 1 GPU"),
        (RunConfig(), 3, "2 rollout workers on 2 GPUs, 1 learner rank on 1 GPU"),
        (RunConfig(), 8, "4 rollout workers on 4 GPUs, 4 learner ranks on 4 GPUs"),
        (config(None, None, width=4), 8, "1 rollout worker on 4 GPUs, 4 learner ranks on 4 GPUs"),
        (config(None, None, width=3), 8, "1 rollout worker on 3 GPUs, 5 learner ranks on 5 GPUs"),
        (config(1, None), 4, "1 rollout worker on 1 GPU, 3 learner ranks on 3 GPUs"),
        (config(None, 1), 4, "3 rollout workers on 3 GPUs, 1 learner rank on 1 GPU"),
        (config(4, None), 4, "4 rollout workers and 4 learner ranks share 4 GPUs"),
        (config(None, None, placement="colocated"), 4, "4 rollout workers and 4 learner ranks share 4 GPUs"),
        (config(1, 1), 8, "1 rollout worker on 1 GPU, 1 learner rank on 1 GPU, 6 of 8 idle"),
        (
            config(None, None, prompts_per_step=2),
            8,
            "2 rollout workers on 2 GPUs, 2 learner ranks on 2 GPUs, 4 of 8 idle",
        ),
        (RunConfig(), 0, "1 rollout worker and 1 learner rank on the processor"),
    ],
)
def test_open_numbers_are_those_of_the_gpus(settings: RunConfig, num_gpus: int, told: str) -> None:
    assert place(settings, num_gpus=num_gpus).describe(num_gpus) == told


def numbers(settings: RunConfig, num_gpus: int, **pools: int | None) -> tuple[int | None, int | None]:
    run = sized(settings, num_gpus=num_gpus, **pools)
    return run.rollout.num_workers, run.learner.num_ranks


def test_ranks_stay_on_one_host_and_rooms_on_their_nodes() -> None:
    assert numbers(config(None, None, prompts_per_step=32), 24, on_a_host=8) == (16, 8)
    assert numbers(config(None, None, width=2), 12, on_a_host=8, rollout_gpus=4, learner_gpus=8) == (2, 8)
    assert numbers(config(3, 2), 24, on_a_host=8) == (3, 2)


def test_gpus_that_nobody_sees_are_not_passed_over() -> None:
    signs = ("/dev/nvidia0", "the machine's type p4d.24xlarge")
    with pytest.raises(
        MachineError, match=r"device=auto finds no GPU.*/dev/nvidia0, the machine's type p4d.*device=cpu"
    ):
        refuse_unseen_gpus(config(), num_gpus=0, signs=signs)
    refuse_unseen_gpus(config(), num_gpus=8, signs=signs)
    refuse_unseen_gpus(config(device="cpu"), num_gpus=0, signs=signs)
    refuse_unseen_gpus(config(), num_gpus=0, signs=())
