"""What a run has reserved of its cluster: all GPUs at once, or the place of each rollout worker by itself.

An elastic run asks for a bundle a worker. Ray places those there is room for; the others wait, where an autoscaler sees
them, until a node joins that takes them. The bundle of a node that is lost waits again.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.placement_group import PlacementGroup, placement_group, placement_group_table, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from orchestration.cluster.nodes import alive_nodes
from orchestration.concurrency import at_most
from orchestration.errors import MachineError
from orchestration.machine.placement import Placement, Slot

RESERVE_S = 120.0
"""How long a run waits at its start for what it needs."""
_LOOK_S = 1.0
"""Between two looks at where the bundles are."""
_ANSWER_S = 30.0
"""What Ray may take for one."""


class Bundles:
    """The bundles of a placement, by their numbers there.

    Args:
        dashboard_url: For the message where there are too few GPUs.
    """

    def __init__(self, placement: Placement, *, run_id: str, dashboard_url: str | None) -> None:
        self._placement, self._name, self._dashboard_url = placement, f"rlvr-{run_id}", dashboard_url
        self._groups: dict[int, tuple[PlacementGroup, int]] = {}
        self._looked_at = 0.0
        self._there: frozenset[str] = frozenset()

    def reserve(self) -> None:
        """Returns when all bundles are reserved; of an elastic run's workers the least that it begins with.

        Raises MachineError when that does not come about within two minutes.
        """
        count, least = len(self._placement.bundle_gpus), self._placement.least_workers
        num_single = 0 if least is None else len(self._placement.rollout)
        for bundle in range(num_single):
            self._ask(f"{self._name}-{bundle}", range(bundle, bundle + 1))
        if count > num_single:
            self._ask(self._name, range(num_single, count))
        deadline = time.monotonic() + RESERVE_S
        while not self._enough():
            if time.monotonic() > deadline:
                raise MachineError(self._too_little())
            time.sleep(0.1)

    def _ask(self, name: str, bundles: range) -> None:
        group = placement_group([self._resources(bundle) for bundle in bundles], strategy="PACK", name=name)
        self._groups |= {bundle: (group, index) for index, bundle in enumerate(bundles)}

    def _resources(self, bundle: int) -> dict[str, float]:
        of = self._placement
        amounts = {"GPU": of.bundle_gpus[bundle], "CPU": of.bundle_cpus[bundle], **of.bundle_marks[bundle]}
        return {name: amount for name, amount in amounts.items() if amount}

    def _enough(self) -> bool:
        there = _placed_groups()
        missing = {bundle for bundle, (group, _) in self._groups.items() if group.id.hex() not in there}
        of, least = self._placement, self._placement.least_workers
        if least is None:
            return not missing
        workers = {slot.bundle for slot in of.rollout}
        return missing <= workers and len(workers - missing) >= least

    def _too_little(self) -> str:
        free, of = ray.available_resources(), self._placement
        if of.least_workers is None:
            wanted = f"{of.num_gpus:g} GPUs"
        else:
            wanted = f"the place of {of.least_workers} rollout workers (rollout.min_workers) and of the learner's ranks"
        return (
            f"Ray could not reserve {wanted} within {RESERVE_S:g} s: {free.get('GPU', 0):g} GPUs and "
            f"{free.get('CPU', 0):g} cores are free; another job may hold them (see the dashboard at "
            f"{self._dashboard_url})"
        )

    def options(self, slot: Slot) -> Mapping[str, Any]:
        """Of an actor that is to live in a slot's bundle."""
        if slot.bundle not in self._groups:
            return {}
        group, index = self._groups[slot.bundle]
        strategy = PlacementGroupSchedulingStrategy(placement_group=group, placement_group_bundle_index=index)
        return {"scheduling_strategy": strategy}

    async def has(self, slot: Slot) -> bool:
        """Whether its bundle is on a node that is there; as at the last look, where Ray does not say it."""
        if time.monotonic() - self._looked_at > _LOOK_S:
            self._looked_at = time.monotonic()
            await at_most(_ANSWER_S, self._look)
        return self._groups[slot.bundle][0].id.hex() in self._there

    def _look(self) -> None:
        self._there = _placed_groups()

    def free(self) -> None:
        """Give all of them back."""
        for group, _ in self._groups.values():
            with suppress(RayError):
                remove_placement_group(group)


def _placed_groups() -> frozenset[str]:
    """Ids of the cluster's placement groups of which every bundle is on a node that is there."""
    alive = {node.node_id for node in alive_nodes()}
    return frozenset(
        name
        for name, told in placement_group_table().items()
        if told["state"] == "CREATED" and set(told["bundles_to_node_id"].values()) <= alive
    )
