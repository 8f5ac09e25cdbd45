"""What there is to say of a loss, as plain floats. Shapes: B sequences, T positions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

WEIGHT_SQUARES = "importance_sampling_weight_squares"
"""Mean of the sampler weights' squares: with their mean, the effective sample share of whatever it is averaged over."""


class Statistics(Mapping[str, float]):
    """Name → number. They stay on the device until one is looked at: then all are read at once, which waits for it."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._names = tuple(tensors)
        self._values = torch.stack([value.detach().double() for value in tensors.values()])
        self._read: dict[str, float] | None = None

    def __getitem__(self, name: str) -> float:
        if self._read is None:
            self._read = dict(zip(self._names, self._values.tolist(), strict=True))
        return self._read[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


class LossMetrics:
    """Collects statistics over the mask's tokens, as tensors of no dimension.

    A value of shape (B, 1) counts once for each token of its sequence. Of no tokens at all every statistic is 0.
    """

    def __init__(self, mask_BT: Tensor) -> None:
        self._mask_BT = mask_BT
        self._tensors: dict[str, Tensor] = {}

    def mean(self, name: str, values: Tensor, *, among_BT: Tensor | None = None) -> None:
        """Mean over the mask's tokens, or those of them that are also in `among_BT`."""
        mask_BT = self._mask_BT if among_BT is None else self._mask_BT * among_BT
        self._tensors[name] = (values.detach() * mask_BT).sum() / mask_BT.sum().clamp(min=1)

    def spread(self, name: str, values: Tensor, *, among_BT: Tensor | None = None) -> None:
        """Mean, smallest and largest: `name_mean`, `name_min`, `name_max`.

        Args:
            name: Of the three figures.
            values: Broadcast to (B, T).
            among_BT: Which of the mask's tokens count; of none all three are 0.
        """
        self.mean(f"{name}_mean", values, among_BT=among_BT)
        inside_BT = self._mask_BT > 0 if among_BT is None else (self._mask_BT > 0) & among_BT
        values_BT = values.detach().expand_as(self._mask_BT)
        empty = ~inside_BT.any()
        largest = torch.where(inside_BT, values_BT, -torch.inf).max()
        smallest = torch.where(inside_BT, values_BT, torch.inf).min()
        self._tensors[f"{name}_max"] = torch.where(empty, 0.0, largest)
        self._tensors[f"{name}_min"] = torch.where(empty, 0.0, smallest)

    def values(self) -> Statistics:
        return Statistics(self._tensors)
